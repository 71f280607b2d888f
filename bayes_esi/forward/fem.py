"""The finite element method: any tissue geometry, any conductivity tensor, EEG and MEG.

    -div(sigma grad u) = -div(q delta(x - p)),   no current through the skin   ->   K u = b(p, q)

What a sensor measures is linear in the potential: e' u for an electrode (e holds the
barycentric weights of its boundary triangle, less the mean over the skin) and g' u for the
volume currents under a coil. One solve per *sensor* instead of per source therefore gives the
**transfer matrix** T = K^+ (e_1, ..., g_1, ...), and every dipole costs one sparse product,

    lead field = T' b(p, q)   (+ the field of the dipole itself, for a coil).

`fem_assembly` holds K and g, `fem_sources` b, `conjugate_gradients` the solves.

Accuracy on the four-layer sphere (78/80/86/92 mm; 0.33, 1.79, skull 0.01 radial and 0.03
tangential, 0.43 S/m), `layered_mesh` of icospheres of order 5, spacing 4.1 mm, layers (1, 4, 1),
105,000 nodes, St Venant: median (largest of 50) RDM in per cent at 64 electrodes and 102
magnetometers, and median amplitude error MAG in per cent.

    eccentricity          0.3         0.7         0.9         0.95        0.98
    EEG radial, RDM       .05 (.07)   .04 (.07)   .07 (.21)   .10 (.25)   .36 (.68)
    EEG radial, MAG       0           +.04        +.04        -.01        -.45
    EEG tangential, RDM   .04 (.07)   .04 (.06)   .06 (.19)   .12 (.51)   .14 (.40)
    EEG tangential, MAG   +.01        -.02        -.01        +.01        -.02
    MEG tangential, RDM   .12 (.22)   .04 (.06)   .04 (.17)   .10 (.68)   .06 (.25)
    MEG of radial, silent .25 (.36)   .08 (.16)   .12 (.40)   .14 (.37)   .57 (1.5)

The last row is the field of radial dipoles in per cent of that of tangential ones. Icospheres
of order 4 at their own spacing, 30,000 nodes, have EEG medians of .06 to .46 and nothing above 1,
|MAG| medians of .1 to .3, and cost a quarter.

References: Wolters, Grasedyck, Hackbusch 2004, doi:10.1088/0266-5611/20/4/007 (transfer
matrices); Wolters, Anwander, Tricoche, Weinstein, Koch, MacLeod 2006,
doi:10.1016/j.neuroimage.2005.10.014 (anisotropy).
"""

import dataclasses
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from ..core import ports
from ..core.checks import check_array, check_choice, check_count
from ..core.drive import fingerprint, write_atomically
from ..core.struct import static, struct
from ..core.types import Array, Float
from ._points import check_points, is_known
from .conjugate_gradients import solve
from .fem_assembly import conductivity_tensors, stiffness_matrix, volume_current_rows
from .fem_sources import SourceMesh, build_source_mesh, locate, partial_integration, venant
from .mesh import Mesh, locate_points
from .surfaces import nearest_points

__all__ = ["FEM", "Transfer"]

_SOURCE_MODELS = {"venant": venant, "partial_integration": partial_integration}
# An electrode further from the skin than this (m) belongs to another head or another unit.
_FARTHEST_ELECTRODE = 0.015
# Coil normals are unit vectors up to the rounding of a file in float32.
_UNIT_TOL = 1e-3
# Dipoles whose loads are formed at once.
_BATCH = 256
# Inside, up to rounding in local coordinates.
_INSIDE_TOL = -1e-6


@struct
class Transfer:
    """Solved adjoint rows of a set of sensors, ready for any source position.

    A pytree: pass it as an argument of jitted functions.
    """

    rows: Float[Array, "n_source_nodes n_channels"]  # T at the nodes of the source compartment
    source_mesh: SourceMesh
    coil_pos: Float[Array, "n_channels 3"] | None  # None for electrodes
    coil_normal: Float[Array, "n_channels 3"] | None
    residual: Float[Array, " n_channels"]  # certificate: relative residual of each solve
    source_model: str = static(default="venant")

    @property
    def n_channels(self):
        """Number of sensors."""
        return self.rows.shape[1]

    def apply(self, source_pos):
        """Lead field of dipoles.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            In m, inside the source compartment.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m against the mean potential of the skin, or T per A·m.

        Raises
        ------
        ValueError
            If positions look like millimetres or some lie outside the source compartment.

        Notes
        -----
        Works under jit, vmap and grad; positions are checked only where they are known. The
        derivative is that of the discrete lead field: for St Venant it jumps at the faces of
        elements, for partial integration with tetrahedra it is zero (see `fem_sources`).
        """
        points = check_points("source_pos", source_pos, allow_single=True)
        is_single, dtype = points.ndim == 1, self.rows.dtype
        if is_known(points, self):
            points = np.atleast_2d(points)
            padded = jnp.asarray(_pad(points), dtype)
            self._check_inside(points, padded)
            lead_field = _apply(self, padded)[:, : len(points)]
        else:
            lead_field = _apply(self, jnp.atleast_2d(jnp.asarray(points, dtype)))
        return lead_field[:, 0] if is_single else lead_field

    def _check_inside(self, points, padded):
        mesh = self.source_mesh
        located = locate(mesh, padded)
        depth, is_exposed = (np.asarray(x)[: len(points)] for x in located)
        doubtful = np.flatnonzero(depth < _INSIDE_TOL)
        if doubtful.size:  # the walk can end early at a concave corner: search all elements
            nodes, elements = np.asarray(mesh.nodes, np.float64), np.asarray(mesh.elements)
            found, _ = locate_points(nodes, elements, points[doubtful])
            outside = doubtful[found < 0]
            if outside.size:
                listed = ", ".join(map(str, outside[:8])) + (", ..." if outside.size > 8 else "")
                raise ValueError(
                    f"source_pos: {outside.size} of {len(points)} sources lie outside the source "
                    f"compartment (numbers {listed}); leave them out or move them inside."
                )
        if is_exposed.any() and self.source_model == "venant":
            warnings.warn(
                f"source_pos: {np.count_nonzero(is_exposed)} of {len(points)} sources lie in "
                "elements with all corners on the surface of the source compartment, where St "
                "Venant is inaccurate; move them inwards or refine the mesh.",
                UserWarning,
                stacklevel=4,
            )

    def save(self, path):
        """Write the arrays to `path`, ``.npz`` without pickle; a kill leaves the old or the new."""
        arrays = {f"source_mesh.{k}": v for k, v in vars(self.source_mesh).items()}
        arrays |= {k: v for k, v in vars(self).items() if k != "source_mesh" and v is not None}
        with write_atomically(path) as name, open(name, "wb") as file:
            np.savez(file, **{k: np.asarray(v) for k, v in arrays.items()})

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is not a saved transfer.
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            prefix = "source_mesh."
            inner = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            outer = {k: v for k, v in arrays.items() if not k.startswith(prefix)}
            source_model = check_choice(
                "source_model", str(outer.pop("source_model")), list(_SOURCE_MODELS)
            )
            outer = {"coil_pos": None, "coil_normal": None} | outer
            return cls(
                source_mesh=SourceMesh(**jax.tree.map(jnp.asarray, inner)),
                source_model=source_model,
                **jax.tree.map(jnp.asarray, outer),
            )
        except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
            raise ValueError(
                f"{path} is no transfer matrix of bayes_esi; compute it again with FEM.transfer."
            ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class FEM:
    """Finite element head model.

    Parameters
    ----------
    mesh : Mesh
        From `layered_mesh`, `mesh_surfaces` or `hexahedra_from_volume`.
    conductivity : sequence with an entry per label, or (n_elements, 3, 3) array
        In S/m. An entry is a number, a pair (radial, tangential), or a symmetric positive
        definite (3, 3) tensor.
    centre : (3,) array, optional
        Radial directions of pairs point away from here, in m.
    normals : (n_elements, 3) array, optional
        Radial direction of pairs by element, instead of `centre`.
    source_label : int
        Compartment in which sources may lie.
    source_model : {"venant", "partial_integration"}
        See `fem_sources`.
    tol : float
        Largest relative residual of a solve.

    Raises
    ------
    ValueError
        If a conductivity is missing, not symmetric or not positive definite, or the source
        compartment has no node off its surface.

    Notes
    -----
    Assembly costs O(n_elements); a transfer matrix takes about 330 conjugate-gradient steps.
    For 105,000 nodes on one core: assembly 2.4 s, 64 electrodes 11 s, 102 coils 24 s, then 5,124
    sources with three components 0.13 s; 1.0 GB (1.1 GB with the coils). Accuracy stands at the
    top of this file.

    Attributes beside the parameters: `tensors` (n_elements, 3, 3), `stiffness` (sparse),
    `source_mesh`, and `source_nodes`, the numbers of its nodes in the mesh.
    """

    mesh: Mesh
    conductivity: object
    centre: object = None
    normals: object = None
    source_label: int = 0
    source_model: str = "venant"
    tol: float = 1e-6

    def __post_init__(self):
        check_choice("source_model", self.source_model, list(_SOURCE_MODELS))
        label = check_count("source_label", self.source_label, minimum=0)
        if label >= self.mesh.n_labels:
            raise ValueError(
                f"source_label must be a label of the mesh, 0 to {self.mesh.n_labels - 1}, "
                f"got {label}."
            )
        tensors = conductivity_tensors(
            self.mesh, self.conductivity, centre=self.centre, normals=self.normals
        )
        source_mesh, source_nodes = build_source_mesh(self.mesh, label)
        for name, value in (
            ("tensors", tensors),
            ("stiffness", stiffness_matrix(self.mesh, tensors)),
            ("source_mesh", source_mesh),
            ("source_nodes", source_nodes),
            ("_last", {}),
        ):
            object.__setattr__(self, name, value)

    def eeg(self, source_pos, electrode_pos):
        """Potential at electrodes.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            In m, inside the source compartment.
        electrode_pos : (n_channels, 3) array
            In m, within 15 mm of the skin, onto which they are projected.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m, against the mean potential of the skin. The reference of a recording is
            for the caller to apply.

        Raises
        ------
        ValueError
            As `transfer` and `Transfer.apply` do.

        Notes
        -----
        The transfer matrix of the last electrodes is kept: a second call costs the sources only.
        """
        return self._transfer_of("eeg", electrode_pos).apply(source_pos)

    def meg(self, source_pos, coil_pos, coil_normal):
        """Magnetic field at point magnetometers: the dipole's own and that of volume currents.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            In m, inside the source compartment.
        coil_pos, coil_normal : (n_channels, 3) arrays
            In m, outside the head, and unit vectors.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            T per A·m.

        Raises
        ------
        ValueError
            As `transfer` and `Transfer.apply` do.
        """
        return self._transfer_of("meg", coil_pos, coil_normal).apply(source_pos)

    def lead_field(self, info, source_pos, **options):
        """Lead field of the sensors of an `mne.Info`; see `BEM.lead_field`."""
        return ports.perform(self, "lead_field", info, source_pos, **options)

    def _transfer_of(self, kind, *sensors):
        identity = fingerprint([np.asarray(x) for x in sensors])
        if self._last.get(kind, (None,))[0] != identity:
            if kind == "eeg":
                transfer = self.transfer(*sensors)
            else:
                transfer = self.transfer(coil_pos=sensors[0], coil_normal=sensors[1])
            self._last[kind] = identity, transfer
        return self._last[kind][1]

    def transfer(self, electrode_pos=None, *, coil_pos=None, coil_normal=None):
        """Solve the adjoint problem of every sensor.

        Parameters
        ----------
        electrode_pos : (n_channels, 3) array
            In m; give either electrodes or coils.
        coil_pos, coil_normal : (n_channels, 3) arrays
            In m, and unit vectors.

        Returns
        -------
        Transfer

        Raises
        ------
        ValueError
            If neither or both kinds are given, electrodes lie further than 15 mm from the skin,
            coils inside the head, normals are not unit vectors, or positions look like mm.
        RuntimeError
            If a solve misses the tolerance.
        """
        if (electrode_pos is None) == (coil_pos is None):
            raise ValueError("give either electrode_pos, or coil_pos and coil_normal.")
        if coil_pos is None:
            right_sides = self._electrode_rows(electrode_pos)
        else:
            coil_pos, coil_normal = self._check_coils(coil_pos, coil_normal)
            right_sides = volume_current_rows(self.mesh, self.tensors, coil_pos, coil_normal)
            coil_pos, coil_normal = jnp.asarray(coil_pos), jnp.asarray(coil_normal)
        solved = solve(self.stiffness, right_sides, tol=self.tol)
        return Transfer(
            rows=jnp.asarray(solved.solution[self.source_nodes]),
            source_mesh=self.source_mesh,
            coil_pos=coil_pos,
            coil_normal=coil_normal,
            residual=jnp.asarray(solved.residual),
            source_model=self.source_model,
        )

    def _electrode_rows(self, electrode_pos):
        """Right-hand sides e: potential of an electrode against the mean of the skin."""
        electrode_pos = check_points("electrode_pos", electrode_pos)
        triangles = self.mesh.boundary()
        projected = nearest_points(electrode_pos, self.mesh.nodes, triangles)
        n_far = int(np.count_nonzero(projected.distance > _FARTHEST_ELECTRODE))
        if n_far:
            raise ValueError(
                f"electrode_pos: {n_far} of {len(electrode_pos)} electrodes are further than "
                f"15 mm from the skin (up to {1e3 * projected.distance.max():.0f} mm); check "
                "the coordinate frame, or leave them out."
            )
        corners = self.mesh.nodes[triangles]
        areas = np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        mean = np.bincount(triangles.ravel(), np.repeat(areas, 3), minlength=self.mesh.n_nodes)
        rows = np.tile(-mean[:, None] / mean.sum(), (1, len(electrode_pos)))
        channels = np.repeat(np.arange(len(electrode_pos)), 3)
        nodes = triangles[projected.face].ravel()
        np.add.at(rows, (nodes, channels), projected.barycentric.ravel())
        return rows

    def _check_coils(self, coil_pos, coil_normal):
        coil_pos = check_points("coil_pos", coil_pos)
        coil_normal = check_array("coil_normal", coil_normal, shape=coil_pos.shape)
        length = np.linalg.norm(coil_normal, axis=1)
        if np.any(np.abs(length - 1) > _UNIT_TOL):
            raise ValueError(
                "coil_normal must hold unit vectors, got lengths from "
                f"{length.min():.3g} to {length.max():.3g}; divide each by its length."
            )
        element, _ = self.mesh.locate(coil_pos)
        if np.any(element >= 0):
            raise ValueError(
                f"coil_pos: {np.count_nonzero(element >= 0)} of {len(coil_pos)} coils lie inside "
                "the head; check the transform between device and head."
            )
        return coil_pos, coil_normal.astype(np.float64)


def _pad(points):
    """Repeat the last point up to one of few sizes: another number rarely compiles again."""
    size = 1
    while size < min(len(points), _BATCH):
        size *= 4
    return np.concatenate([points, np.repeat(points[-1:], -len(points) % size, axis=0)])


@jax.jit
def _apply(transfer, source_pos: Float[Array, "n_sources 3"]):
    """Lead field (n_channels, n_sources, 3)."""

    def one(pos):
        nodes, loads = _SOURCE_MODELS[transfer.source_model](transfer.source_mesh, pos)
        field = jnp.einsum("nc,nx->cx", transfer.rows[nodes], loads)
        if transfer.coil_pos is not None:
            offset = transfer.coil_pos - pos
            cube = jnp.sum(offset**2, axis=1, keepdims=True) ** 1.5
            # (q x R) . n = q . (R x n): the dipole's own field.
            field = field + 1e-7 * jnp.cross(offset, transfer.coil_normal) / cube
        return field

    return jnp.moveaxis(jax.lax.map(one, source_pos, batch_size=_BATCH), 0, 1)
