"""The boundary element equations solved for sensors: rows Z of the transfer, and dZ by s.

Notation of `bem.py`. A sensor sees W through its row E and V_0 through E_0. As columns,

    X = A^-T E ,   Y = E_0 - s_K-1 R^T X ,   Z = 2 / s_K (M - D / 2 pi)_KK^-T Y

and by a conductivity s (dA, dE, ds_K, ds_K-1 being known)

    dX = A^-T (dE - dA^T X)
    dY = dE_0 - ds_K-1 R^T X - s_K-1 R^T dX
    dZ = 2 / s_K (M - D / 2 pi)_KK^-T dY - ds_K / s_K Z

Host linear algebra in float64: n_sensors columns at a time, as LAPACK likes them.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from .galerkin import mass_matrix, vertex_areas
from .source_terms import potential_terms, surface_mesh

__all__ = [
    "MU_0",
    "Geometry",
    "SensorRows",
    "Sensors",
    "factorise",
    "primary_gains",
    "sensor_rows",
    "solve",
    "solve_derivatives",
]

MU_0 = 4e-7 * np.pi  # T·m/A
_POINT_CHUNK = 32


class Geometry:
    """What does not depend on conductivities: surfaces, matrices, the isolated problem solved.

    Parameters
    ----------
    surfaces : list of (vertices, faces)
    matrix : (n_vertices, n_vertices) array
        `double_layer` of them.
    """

    def __init__(self, surfaces, matrix):
        self.surfaces = surfaces
        self.double_layer = matrix
        self.mass = sp.block_diag([mass_matrix(*surface) for surface in surfaces], format="csr")
        self.areas = [vertex_areas(*surface) for surface in surfaces]
        self.meshes = [surface_mesh(*surface) for surface in surfaces]
        self.offsets = np.cumsum([0] + [len(vertices) for vertices, _ in surfaces])
        self.inner = slice(self.offsets[-2], self.offsets[-1])
        isolated = -matrix[self.inner, self.inner] / (2 * np.pi)
        isolated += self.mass[self.inner, self.inner].toarray() + _deflation(self.areas[-1])
        self.isolated = scipy.linalg.lu_factor(isolated, overwrite_a=True, check_finite=False)

    def spread(self, values):
        """Repeat one value per surface over its vertices, as a column."""
        return np.repeat(values, np.diff(self.offsets))[:, None]

    def isolated_rows(self, columns):
        """R^T times columns (n_vertices, n)."""
        rows = self.double_layer[:, self.inner].T @ columns / (2 * np.pi)
        return rows + self.mass[self.inner, self.inner] @ columns[self.inner]


class SensorRows:
    """Parts of E as columns (n_vertices, n_channels), before conductivities enter.

    Attributes
    ----------
    mean : array
        Less the mean over the outermost surface, for electrodes and contacts.
    skin, field, potential : arrays
        Surface integrals at electrodes, coils and contacts.
    """

    def __init__(self, mean, skin, field, potential):
        self.mean, self.skin, self.field, self.potential = mean, skin, field, potential

    def of_correction(self, conductivity, spread):
        """E: how sensors see W."""
        return self.mean + spread(_jumps(conductivity)) * self._integrals(conductivity)

    def of_isolated(self, conductivity, spread):
        """E_0: how sensors see V_0, which at electrodes stands in the primary field."""
        if len(conductivity) == 1:
            return self.of_correction(conductivity, spread)
        jumps = spread(_jumps(conductivity))
        return jumps * (self.field + self.potential / conductivity[-1])

    def derivatives(self, conductivity, spread, k):
        """Derivatives of E and E_0 by the conductivity inside surface k."""
        unit = np.eye(len(conductivity))[k]
        by_jumps, jumps = spread(_jumps(unit)), spread(_jumps(conductivity))
        contacts = by_jumps * self.potential - unit[-1] / conductivity[-1] * jumps * self.potential
        others = by_jumps * self.field + contacts / conductivity[-1]
        skin = by_jumps * self.skin - unit[0] / conductivity[0] * jumps * self.skin
        total = others + skin / conductivity[0]
        return total, total if len(conductivity) == 1 else others

    def _integrals(self, conductivity):
        return self.skin / conductivity[0] + self.field + self.potential / conductivity[-1]


class Sensors(NamedTuple):
    """Checked positions (n, 3) of each kind, possibly empty; electrodes lie on the surface.

    Attributes
    ----------
    electrodes, coils, normals, contacts : (n, 3) arrays
    electrode_faces : (n_electrodes,) int array
        Triangles of the outermost surface.
    """

    electrodes: np.ndarray
    coils: np.ndarray
    normals: np.ndarray
    contacts: np.ndarray
    electrode_faces: np.ndarray

    @property
    def counts(self):
        """Numbers of electrodes, coils and contacts."""
        return len(self.electrodes), len(self.coils), len(self.contacts)


def sensor_rows(geometry, sensors, mixing=None):
    """Rows of sensors, mixed into channels."""
    bounds = np.cumsum([0, *sensors.counts])
    parts = [np.zeros((geometry.offsets[-1], bounds[-1])) for _ in range(4)]
    mean, skin, field, potential = parts
    outermost = geometry.areas[0] / geometry.areas[0].sum()
    mean[: len(outermost), : bounds[1]] = -outermost[:, None]
    mean[: len(outermost), bounds[2] :] = -outermost[:, None]
    for k, mesh in enumerate(geometry.meshes):
        rows = slice(geometry.offsets[k], geometry.offsets[k + 1])
        faces = sensors.electrode_faces if k == 0 else None
        for part, solid, _ in _in_chunks(sensors.electrodes, mesh, faces):
            skin[rows, part] = solid / (2 * np.pi)
        for part, _, turned in _in_chunks(sensors.coils, mesh):
            along = np.einsum("vdn,nd->vn", turned, sensors.normals[part])
            field[rows, bounds[1] :][:, part] = MU_0 / (4 * np.pi) * along
        for part, solid, _ in _in_chunks(sensors.contacts, mesh):
            potential[rows, bounds[2] :][:, part] = solid / (4 * np.pi)
    if mixing is not None:
        parts = [part @ mixing.T for part in parts]
    return SensorRows(*parts)


def primary_gains(sensors, conductivity):
    """Gains (n_sensors,) of the primary potential and field, and their derivatives by s_k.

    Contacts see v_inf / s_K. Electrodes see s_K-1 / s_K of what they would see of the
    unbounded medium on a boundary to air, 2 v_inf / s_1; without a skull, all of it.
    """
    n_electrodes, n_coils, n_contacts = sensors.counts
    n_surfaces = len(conductivity)
    # Powers of each conductivity in the gains.
    skin, contact = np.zeros(n_surfaces), np.zeros(n_surfaces)
    contact[-1] = -1
    skin[0] -= 1
    if n_surfaces > 1:
        skin[-2] += 1
        skin[-1] -= 1
    counts = (n_electrodes, n_coils, n_contacts)
    potential = np.array([2 * np.prod(conductivity**skin), 0, np.prod(conductivity**contact)])
    gains = potential / (4 * np.pi) + [0, MU_0 / (4 * np.pi), 0]
    powers = np.stack([skin, np.zeros(n_surfaces), contact], axis=1)
    derivatives = powers / conductivity[:, None] * gains
    return np.repeat(gains, counts), np.repeat(derivatives, counts, axis=1)


def factorise(geometry, conductivity):
    """LU factors of A; None if a single surface leaves nothing to correct."""
    if len(conductivity) == 1:
        return None
    jumps = geometry.spread(_jumps(conductivity))[:, 0]
    # Fortran order, which LAPACK factorises in place.
    matrix = np.empty_like(geometry.double_layer, order="F")
    np.multiply(geometry.double_layer, jumps / (-2 * np.pi), out=matrix)
    mass = geometry.mass.tocoo()
    total = geometry.spread(_totals(conductivity))[:, 0]
    matrix[mass.row, mass.col] += total[mass.row] * mass.data
    areas = np.concatenate(geometry.areas)
    scale = conductivity.mean() / areas.sum()
    for column, area in zip(matrix.T, areas, strict=True):
        column += scale * area * areas
    return scipy.linalg.lu_factor(matrix, overwrite_a=True, check_finite=False)


def solve(geometry, conductivity, factors, rows):
    """Z (n_channels, n_inner_vertices) of sensor rows, and the columns X it came from."""
    columns = rows.of_isolated(conductivity, geometry.spread)[geometry.inner]
    adjoint = None
    if factors is not None:
        right = rows.of_correction(conductivity, geometry.spread)
        adjoint = scipy.linalg.lu_solve(factors, right, trans=1, check_finite=False)
        columns = columns - conductivity[-2] * geometry.isolated_rows(adjoint)
    return _isolated(geometry, conductivity, columns), adjoint


def solve_derivatives(geometry, conductivity, factors, rows):
    """Derivatives of Z by each conductivity, (n_surfaces, n_channels, n_inner_vertices)."""
    weights, adjoint = solve(geometry, conductivity, factors, rows)
    if factors is not None:
        double = geometry.double_layer.T @ adjoint / (2 * np.pi)
        mass = geometry.mass @ adjoint
        seen = geometry.isolated_rows(adjoint)
    derivatives = []
    for k, unit in enumerate(np.eye(len(conductivity))):
        right, columns = rows.derivatives(conductivity, geometry.spread, k)
        columns = columns[geometry.inner]
        if factors is not None:
            by_a = geometry.spread(_totals(unit)) * mass - geometry.spread(_jumps(unit)) * double
            change = scipy.linalg.lu_solve(factors, right - by_a, trans=1, check_finite=False)
            columns = columns - unit[-2] * seen
            columns -= conductivity[-2] * geometry.isolated_rows(change)
        derivative = _isolated(geometry, conductivity, columns)
        derivatives.append(derivative - unit[-1] / conductivity[-1] * weights)
    return np.stack(derivatives)


def _isolated(geometry, conductivity, columns):
    """Last step of both: 2 / s_K (M - D / 2 pi)^-T, as rows."""
    solved = scipy.linalg.lu_solve(geometry.isolated, columns, trans=1, check_finite=False)
    return 2 / conductivity[-1] * solved.T


def _totals(conductivity):
    """Sums s_k + s_k-1 of the conductivities on both sides of each surface."""
    return conductivity + np.concatenate([[0.0], conductivity[:-1]])


def _jumps(conductivity):
    """Differences s_k - s_k-1 across each surface."""
    return np.diff(conductivity, prepend=0.0)


def _in_chunks(points, mesh, own_face=None):
    """Yield (slice, solid, turned) of `potential_terms`; chunks of one shape compile once."""
    own_face = np.full(len(points), -1) if own_face is None else own_face
    for start in range(0, len(points), _POINT_CHUNK):
        part = slice(start, min(start + _POINT_CHUNK, len(points)))
        padded = np.resize(points[part], (_POINT_CHUNK, 3)).T.astype(mesh.vertices.dtype)
        own = np.resize(own_face[part], _POINT_CHUNK).astype(np.int32)
        terms = potential_terms(padded, mesh, own)
        yield part, *(np.asarray(t, np.float64)[..., : part.stop - start] for t in terms)


def _deflation(areas):
    return np.multiply.outer(areas, areas / areas.sum())
