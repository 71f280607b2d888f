"""Boundary element head model: linear Galerkin double layer, isolated source, analytic sources.

Nested closed surfaces S_1 (outermost) to S_K part the head into compartments of conductivity
s_k inside S_k; outside is s_k-1, and air (0) around S_1. For unit conductivity a dipole has the
potential v_inf and b_i = int_S_K phi_i v_inf. With the matrices D, M of `galerkin.py`, the
potential V_0 of the innermost compartment alone in air solves

    s_K (M - D / 2 pi)_KK V_0 = 2 b

and the correction W of the whole head, whose right side knows the source through V_0 alone,

    A W = -s_K-1 R V_0 ,     V = W + (V_0 on S_K, else 0)
    A_kl = (s_k + s_k-1) M_k delta_kl - (s_l - s_l-1) D_kl / 2 pi
    R_k = D_kK / 2 pi + M_K delta_kK

This isolated-source approach keeps small what a skull that conducts badly makes inaccurate.
Sensors see the potential through the integral equations themselves, in closed form for linear V:

    electrode  s_1 W(r) = 2 s_K-1 / s_K v_inf + 1 / (2 pi) sum_k (s_k - s_k-1) int_S_k W dOmega
    contact    s_K V(r) = v_inf + 1 / (4 pi) sum_k (s_k - s_k-1) int_S_k V dOmega
    coil       n.B(r) = n.B_0 + mu_0 / (4 pi) sum_k (s_k - s_k-1) n.int_S_k V n' x y / |y|^3 dS'

(Geselowitz; y = r' - r), potentials less their mean over S_1. At electrodes this is one more
iteration of the equation (Sloan): the integral smooths the error that linear interpolation
between vertices has, and halves that of EEG. With E and E_0 the rows by which sensors see W and
V_0, a lead field is

    L = Z b + primary field ,     Z = 2 / s_K [ E_0 - s_K-1 E A^-1 R ] (M - D / 2 pi)^-1

so that only as many systems are solved as there are sensors, and after that a source costs its b
and a product. A and M - D / 2 pi are singular for constants; a rank-one term makes them regular,
and the rows E are such that it changes nothing.

Cost with n vertices in all: matrices O(n^2) (`galerkin.py`), one LU factorisation of 2/3 n^3 per
set of conductivities, 2 n^2 per sensor; memory 16 n^2 bytes.

References: Hämäläinen & Sarvas 1989, doi:10.1109/10.16463 (isolated source); Geselowitz 1970,
doi:10.1109/TMAG.1970.1066765 (field); Mosher, Leahy, Lewis 1999, doi:10.1109/10.748978
(Galerkin); Stenroos & Sarvas 2012, doi:10.1088/0031-9155/57/11/3517 (both combined); Sloan 1976,
doi:10.1090/S0025-5718-1976-0474802-4 (iteration).
"""

import dataclasses
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ..core import ports
from ..core.checks import check_array, check_positive
from ..core.drive import fingerprint, write_atomically
from ._points import check_points, is_known
from .bem_adjoint import (
    Geometry,
    Sensors,
    factorise,
    primary_gains,
    sensor_rows,
    solve,
    solve_derivatives,
)
from .bem_transfer import BEMTransfer, lead_field
from .galerkin import double_layer
from .surfaces import check_nested, check_surface, edge_lengths, is_inside, nearest_points

__all__ = ["BEM"]

# Electrodes further than this from the skin are not on this head.
_ELECTRODE_REACH = 0.015  # m
# Electrodes on an edge are moved into a triangle by this fraction of it (some 10 um), where the
# solid angle of the surface is 2 pi.
_OFF_EDGE = 1e-3
# Sources nearer to the innermost surface than this fraction of its edges are told: single
# sources may be wrong by some per cent there.
_CLOSE = 0.5
_FORMAT = "bayes_esi BEM 1"


class BEM:
    """A head of nested compartments, prepared once for any sources and sensors.

    Parameters
    ----------
    vertices : list of (n_vertices, 3) array
        One to any number of surfaces, from the outermost (skin) in, in m.
    faces : list of (n_faces, 3) int array
        Triangles of each surface, counter-clockwise seen from outside.
    conductivity : sequence of float
        Of the compartment inside each surface, in S/m: skin, skull, brain.
    near : float, optional
        Pairs of triangles nearer than this many edge lengths are integrated in closed form.

    Raises
    ------
    ValueError
        If surfaces are open, inside out, degenerate, cross or are not nested from the outermost
        in, look like mm, or conductivities are not positive or not one per surface.

    Notes
    -----
    Against the exact three-shell sphere (80/86/92 mm, skull 1:80) with 642 (2562) vertices a
    surface the median error of EEG topographies is .05 to .7 % (.01 to .1 %), of MEG .01 to .4 %
    (.002 to .05 %) for sources from 30 to 98 % of the inner radius; flat faces within the sphere
    make fields .6 to .7 % (.13 to .18 %) too strong.
    """

    def __init__(self, vertices, faces, conductivity, *, near=4.0):
        if len(vertices) != len(faces) or not len(vertices) or np.ndim(vertices[0]) != 2:
            raise ValueError(
                "vertices and faces must be lists with one array for each surface, from the "
                f"outermost in; got {len(vertices)} and {len(faces)} items."
            )
        conductivity = _check_conductivity(conductivity, len(vertices))
        near = check_positive("near", near)
        names = [f"surface {k}" for k in range(len(vertices))]
        surfaces = [check_surface(*s) for s in zip(vertices, faces, names, strict=True)]
        check_nested(surfaces, names)
        self._prepare(Geometry(surfaces, double_layer(surfaces, near=near)), conductivity)

    def _prepare(self, geometry, conductivity):
        self._geometry = geometry
        self.conductivity = conductivity
        self._factors = None
        self._last = None, None

    @classmethod
    def from_mne(cls, bem, conductivity, trans=None):
        """Prepare the surfaces of an MNE boundary element model.

        Parameters
        ----------
        bem : mne.bem.ConductorModel, list of dict, or path-like
            See `bayes_esi.io.mne_forward.bem_surfaces_of`.
        conductivity : sequence of float
            Of the compartment inside each surface, from the outermost in, in S/m.
        trans : mne.Transform or path-like, optional
            Between MRI and head; needed where the surfaces are in MRI coordinates.

        Returns
        -------
        BEM
        """
        return ports.perform(cls, "from_mne", bem, conductivity, trans)

    @property
    def surfaces(self):
        """List of (vertices, faces), from the outermost in."""
        return self._geometry.surfaces

    def with_conductivity(self, conductivity):
        """Return the same head with other conductivities; its matrices are not assembled again."""
        other = object.__new__(BEM)
        other._prepare(
            self._geometry, _check_conductivity(conductivity, len(self._geometry.surfaces))
        )
        return other

    def eeg(self, source_pos, electrode_pos, *, memory_limit=2**28):
        """Lead field of electrodes on the skin.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            In the innermost compartment, in m. It may be traced by jit, vmap and derivatives.
        electrode_pos : (n_channels, 3) array
            In m; projected on the outermost surface.
        memory_limit : int
            Bytes for the temporary arrays of a batch of sources.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m, against the mean potential of the outermost surface. The reference of a
            recording is for the caller to apply.

        Raises
        ------
        ValueError
            If sources lie outside the innermost surface or electrodes over 15 mm off the skin.

        Warns
        -----
        UserWarning
            If sources lie closer to the innermost surface than the accuracy holds.

        Notes
        -----
        Cost per source O(n_vertices n_channels) and about 70 ns a face of the innermost surface.
        """
        return self._lead_field(source_pos, memory_limit, electrode_pos=electrode_pos)

    def meg(self, source_pos, coil_pos, coil_normal, *, memory_limit=2**28):
        """Lead field of point magnetometers outside the head.

        Parameters
        ----------
        source_pos, memory_limit
            As for `eeg`.
        coil_pos : (n_channels, 3) array
            In m.
        coil_normal : (n_channels, 3) array
            Directions in which the field is measured, unit vectors.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            T per A·m.

        Raises
        ------
        ValueError
            As for `eeg`, and if coils lie inside the head.
        """
        return self._lead_field(
            source_pos, memory_limit, coil_pos=coil_pos, coil_normal=coil_normal
        )

    def seeg(self, source_pos, contact_pos, *, memory_limit=2**28):
        """Lead field of contacts in the innermost compartment.

        Parameters
        ----------
        source_pos, memory_limit
            As for `eeg`.
        contact_pos : (n_channels, 3) array
            In m.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m, against the mean potential of the outermost surface.

        Raises
        ------
        ValueError
            As for `eeg`, and if contacts lie outside the innermost surface.
        """
        return self._lead_field(source_pos, memory_limit, contact_pos=contact_pos)

    def lead_field(self, info, source_pos, **options):
        """Lead field of the sensors of a recording.

        Parameters
        ----------
        info : mne.Info
        source_pos : (n_sources, 3) array or mne.SourceSpaces
            Positions in m in head coordinates, or a source space.
        **options
            `trans`, `keep`, `accuracy`, `kinds`, `memory_limit` of
            `bayes_esi.io.mne_forward.compute_forward`.

        Returns
        -------
        LeadField
            (n_channels, n_sources, 3), in V, T or T/m per A·m.
        """
        return ports.perform(self, "lead_field", info, source_pos, **options)

    def transfer(
        self, electrode_pos=None, coil_pos=None, coil_normal=None, contact_pos=None, *, mixing=None
    ):
        """Solve for sensors, so that sources cost no solution any more.

        Parameters
        ----------
        electrode_pos, coil_pos, coil_normal, contact_pos : (n, 3) array, optional
            As for `eeg`, `meg` and `seeg`; rows come in this order.
        mixing : (n_channels, n_sensors) array, optional
            Combines the sensors linearly into channels before anything is solved: integration
            points to coils, electrodes to bipolar leads.

        Returns
        -------
        BEMTransfer
            A frozen pytree: `transfer(source_pos)` is the lead field, and jit, vmap and
            derivatives pass through it. The last one is remembered.

        Raises
        ------
        ValueError
            If no sensors are given or they are not where they belong.
        """
        # Sensors are known also where a transformation traces the sources.
        with jax.ensure_compile_time_eval():
            checked = self._check_sensors(electrode_pos, coil_pos, coil_normal, contact_pos, mixing)
            return self._transfer(*checked)

    def conductivity_derivative(
        self,
        source_pos,
        electrode_pos=None,
        coil_pos=None,
        coil_normal=None,
        contact_pos=None,
        *,
        mixing=None,
        memory_limit=2**28,
    ):
        """Derivative of the lead field with respect to the conductivities.

        Parameters
        ----------
        source_pos, electrode_pos, coil_pos, coil_normal, contact_pos, mixing, memory_limit
            As for `transfer` and `eeg`.

        Returns
        -------
        (n_surfaces, n_channels, n_sources, 3) or (n_surfaces, n_channels, 3) array
            Row k for the conductivity inside surface k, in units of the lead field per S/m.

        Notes
        -----
        Exact, from the factorisation of the lead field itself: two triangular solutions for each
        conductivity and sensor.
        """
        source_pos = self.check_sources(source_pos)
        with jax.ensure_compile_time_eval():
            sensors, mixing = self._check_sensors(
                electrode_pos, coil_pos, coil_normal, contact_pos, mixing
            )
            transfer = self._transfer(sensors, mixing)
            rows = sensor_rows(self._geometry, sensors, mixing)
            weights = solve_derivatives(self._geometry, self.conductivity, self._factorised(), rows)
            gains = primary_gains(sensors, self.conductivity)[1]
            kind = transfer.weights.dtype
            parts = [
                dataclasses.replace(transfer, weights=w, gain=g)
                for w, g in zip(jnp.asarray(weights, kind), jnp.asarray(gains, kind), strict=True)
            ]
        return jnp.stack([lead_field(part, source_pos, memory_limit) for part in parts])

    def save(self, path):
        """Write the head with its matrices to an `.npz` file without pickle.

        Parameters
        ----------
        path : path-like
            8 n_vertices^2 bytes. A kill leaves the old file or the new one.
        """
        arrays = {"conductivity": self.conductivity, "double_layer": self._geometry.double_layer}
        for k, (vertices, faces) in enumerate(self.surfaces):
            arrays[f"vertices_{k}"], arrays[f"faces_{k}"] = vertices, faces
        with write_atomically(path) as name, open(name, "wb") as file:
            np.savez(file, format=_FORMAT, **arrays)

    @classmethod
    def load(cls, path):
        """Read a head that `save` wrote; nothing is assembled again.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        BEM

        Raises
        ------
        ValueError
            If the file is not one of `save`.
        """
        try:
            # NumPy would leave a file open that it fails to read.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise KeyError("format")
                conductivity, matrix = file["conductivity"], file["double_layer"]
                surfaces = [
                    (file[f"vertices_{k}"], file[f"faces_{k}"]) for k in range(len(conductivity))
                ]
        except FileNotFoundError:
            raise
        except (EOFError, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
            raise ValueError(
                f"path: {path} is not a head model that BEM.save wrote; prepare it again."
            ) from None
        loaded = object.__new__(cls)
        loaded._prepare(Geometry(surfaces, matrix), conductivity)
        return loaded

    def _lead_field(self, source_pos, memory_limit, **sensors):
        source_pos = self.check_sources(source_pos)
        return lead_field(self.transfer(**sensors), source_pos, memory_limit)

    def check_sources(self, source_pos):
        """Return positions, checked as `eeg` does where they are known."""
        source_pos = check_points("source_pos", source_pos, allow_single=True)
        if not is_known(source_pos):
            return source_pos
        _check_sources_within(np.atleast_2d(source_pos), self.surfaces[-1])
        return source_pos

    def _check_sensors(self, electrode_pos, coil_pos, coil_normal, contact_pos, mixing):
        """Check where sensors are and put electrodes on the skin: `Sensors` and mixing."""
        given = dict(
            electrode_pos=electrode_pos,
            coil_pos=coil_pos,
            coil_normal=coil_normal,
            contact_pos=contact_pos,
        )
        if electrode_pos is None and coil_pos is None and contact_pos is None:
            raise ValueError("give electrode_pos, coil_pos with coil_normal, or contact_pos.")
        if (coil_pos is None) != (coil_normal is None):
            raise ValueError("coil_pos and coil_normal must be given together.")
        electrodes, coils, normals, contacts = (
            np.zeros((0, 3))
            if value is None
            else np.asarray(check_points(name, value, in_metres=name != "coil_normal"), np.float64)
            for name, value in given.items()
        )
        if coils.shape != normals.shape:
            raise ValueError(
                f"coil_normal must have one row for each of the {len(coils)} rows of coil_pos, "
                f"got shape {normals.shape}."
            )
        electrodes, faces = _on_skin(electrodes, self.surfaces[0])
        n_inside = np.count_nonzero(is_inside(coils, *self.surfaces[0])) if len(coils) else 0
        if n_inside:
            raise ValueError(
                f"coil_pos: {n_inside} of {len(coils)} coils lie inside the head; check the "
                "transformation between device and head coordinates."
            )
        n_off = len(contacts) and np.count_nonzero(~is_inside(contacts, *self.surfaces[-1]))
        if n_off:
            raise ValueError(
                f"contact_pos: {n_off} of {len(contacts)} contacts lie outside the innermost "
                "surface, where alone `seeg` holds; leave them out."
            )
        sensors = Sensors(electrodes, coils, normals, contacts, faces)
        if mixing is not None:
            mixing = check_array("mixing", mixing, shape=("n_channels", sum(sensors.counts)))
        return sensors, mixing

    def _transfer(self, sensors, mixing):
        """Transfer of checked sensors, solved for unless they were the last ones too."""
        identity = fingerprint(sensors, mixing)
        if self._last[0] != identity:
            self._last = identity, self._solve(sensors, mixing)
        return self._last[1]

    def _solve(self, sensors, mixing):
        rows = sensor_rows(self._geometry, sensors, mixing)
        weights, _ = solve(self._geometry, self.conductivity, self._factorised(), rows)
        dtype = self._geometry.meshes[-1].vertices.dtype
        return BEMTransfer(
            self._geometry.meshes[-1],
            *(
                None if array is None else jnp.asarray(array, dtype)
                for array in (
                    weights,
                    sensors.electrodes.T,
                    sensors.coils.T,
                    sensors.normals.T,
                    sensors.contacts.T,
                    primary_gains(sensors, self.conductivity)[0],
                    mixing,
                )
            ),
        )

    def _factorised(self):
        """LU factors for these conductivities, computed once."""
        if self._factors is None:
            self._factors = factorise(self._geometry, self.conductivity)
        return self._factors


def _check_conductivity(conductivity, n_surfaces):
    remedy = "give that of the compartment inside each surface, from the outermost in, in S/m."
    values = check_array("conductivity", conductivity, shape=(n_surfaces,), remedy=remedy)
    if np.any(values <= 0):
        raise ValueError(f"conductivity must be positive, got {values.tolist()}; {remedy}")
    return values.astype(np.float64)


def _on_skin(electrodes, surface):
    """Projections of electrodes on the outermost surface, and the faces they lie in."""
    if not len(electrodes):
        return electrodes, np.zeros(0, np.int64)
    found = nearest_points(electrodes, *surface)
    far = np.flatnonzero(found.distance > _ELECTRODE_REACH)
    if far.size:
        raise ValueError(
            f"electrode_pos: {far.size} of {len(electrodes)} electrodes lie more than "
            f"{1e3 * _ELECTRODE_REACH:.0f} mm off the outermost surface, the first is {far[0]} "
            f"with {1e3 * found.distance[far[0]]:.1f} mm; check their coordinate frame."
        )
    weights = np.maximum(found.barycentric, _OFF_EDGE)
    weights /= weights.sum(axis=1, keepdims=True)
    corners = surface[0][surface[1][found.face]]
    return np.einsum("nc,ncd->nd", weights, corners), found.face


def _check_sources_within(points, surface):
    """Refuse sources outside a surface; warn of those that are close to it."""
    vertices, faces = surface
    inside = is_inside(points, vertices, faces)
    if not inside.all():
        outside = np.flatnonzero(~inside)
        raise ValueError(
            f"source_pos: {outside.size} of {len(points)} sources lie outside the innermost "
            f"surface, the first is {outside[0]}; remove them or move them in."
        )
    lengths = edge_lengths(vertices, faces).reshape(-1, 3)
    # A source further from all vertices than this is further than that from all faces.
    candidates = np.flatnonzero(cKDTree(vertices).query(points)[0] < 1.5 * lengths.max())
    if not candidates.size:
        return
    found = nearest_points(points[candidates], vertices, faces)
    is_close = found.distance < _CLOSE * lengths[found.face].mean(axis=1)
    if is_close.any():
        warnings.warn(
            f"{np.count_nonzero(is_close)} of {len(points)} sources lie closer to the innermost "
            f"surface than half its edges (the closest {1e3 * found.distance.min():.2f} mm): "
            "their lead fields may be wrong by some per cent; use a finer surface or deeper "
            "sources.",
            UserWarning,
            stacklevel=5,
        )
