"""The boundary element equations solved for sensors: rows Z of the transfer, and dZ by s.

Notation of `bem.py`. A sensor sees the surface potential through its row E, which depends on the
conductivities linearly but for the 1 / s_K of contacts. As columns,

    X = A^-T E ,   Y = E_K - s_K-1 R^T X ,   Z = 2 / s_K (M - D / 2 pi)_KK^-T Y

and by a conductivity s (dA, dE, ds_K, ds_K-1 being simple)

    dX = A^-T (dE - dA^T X)
    dY = dE_K - ds_K-1 R^T X - s_K-1 R^T dX
    dZ = 2 / s_K (M - D / 2 pi)_KK^-T dY - ds_K / s_K Z

Host linear algebra in float64: n_sensors columns at a time, as LAPACK likes them.
"""

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from .galerkin import mass_matrix, vertex_areas
from .source_terms import potential_terms, surface_mesh
from .surfaces import nearest_points

__all__ = [
    "MU_0",
    "Geometry",
    "SensorRows",
    "factorise",
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
    """The parts of E, as columns (n_vertices, n_channels), before conductivities enter.

    Attributes
    ----------
    fixed : array
        Interpolation at electrodes, less the mean over the outermost surface.
    field, potential : arrays
        Surface integrals at coils and at contacts, to be weighted by the jumps.
    """

    def __init__(self, fixed, field, potential):
        self.fixed, self.field, self.potential = fixed, field, potential

    def at(self, geometry, conductivity):
        """E for conductivities (n_surfaces,)."""
        jumps = geometry.spread(np.diff(conductivity, prepend=0.0))
        return self.fixed + jumps * (self.field + self.potential / conductivity[-1])

    def derivative(self, geometry, conductivity, k):
        """DE by the conductivity inside surface k."""
        unit = np.eye(len(conductivity))[k]
        by_jumps = geometry.spread(np.diff(unit, prepend=0.0))
        jumps = geometry.spread(np.diff(conductivity, prepend=0.0))
        result = by_jumps * (self.field + self.potential / conductivity[-1])
        return result - unit[-1] * jumps * self.potential / conductivity[-1] ** 2


def sensor_rows(geometry, electrodes, coils, normals, contacts, mixing=None):
    """Rows of sensors at positions (n, 3), each kind possibly empty, mixed into channels."""
    n_vertices = geometry.offsets[-1]
    counts = np.cumsum([0, len(electrodes), len(coils), len(contacts)])
    fixed, field, potential = (np.zeros((n_vertices, counts[-1])) for _ in range(3))
    if len(electrodes):
        found = nearest_points(electrodes, *geometry.surfaces[0])
        corners = geometry.surfaces[0][1][found.face]
        np.add.at(fixed, (corners, np.arange(len(electrodes))[:, None]), found.barycentric)
    outermost = geometry.areas[0]
    mean = outermost / outermost.sum()
    for first, last in ((counts[0], counts[1]), (counts[2], counts[3])):
        fixed[: len(mean), first:last] -= mean[:, None]
    for k, mesh in enumerate(geometry.meshes):
        rows = slice(geometry.offsets[k], geometry.offsets[k + 1])
        for part, (_, turned) in _in_chunks(coils, mesh):
            along = np.einsum("vdn,nd->vn", turned, normals[part])
            field[rows, counts[1] + part.start : counts[1] + part.stop] = 1e-7 * along
        for part, (solid, _) in _in_chunks(contacts, mesh):
            columns = slice(counts[2] + part.start, counts[2] + part.stop)
            potential[rows, columns] = solid / (4 * np.pi)
    if mixing is not None:
        fixed, field, potential = (part @ mixing.T for part in (fixed, field, potential))
    return SensorRows(fixed, field, potential)


def factorise(geometry, conductivity):
    """LU factors of A; None if a single surface leaves nothing to correct."""
    if len(conductivity) == 1:
        return None
    jumps = geometry.spread(np.diff(conductivity, prepend=0.0))[:, 0]
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


def solve(geometry, conductivity, factors, sensors):
    """Rows Z (n_channels, n_inner_vertices) of sensors, and the columns X they came from."""
    right = sensors.at(geometry, conductivity)
    columns = right[geometry.inner]
    adjoint = None
    if factors is not None:
        adjoint = scipy.linalg.lu_solve(factors, right, trans=1, check_finite=False)
        columns = columns - conductivity[-2] * geometry.isolated_rows(adjoint)
    return _isolated(geometry, conductivity, columns), adjoint


def solve_derivatives(geometry, conductivity, factors, sensors):
    """Derivatives of Z by each conductivity, (n_surfaces, n_channels, n_inner_vertices)."""
    rows, adjoint = solve(geometry, conductivity, factors, sensors)
    n_surfaces = len(conductivity)
    if factors is not None:
        double = geometry.double_layer.T @ adjoint / (2 * np.pi)
        mass = geometry.mass @ adjoint
        seen = geometry.isolated_rows(adjoint)
    derivatives = []
    for k, unit in enumerate(np.eye(n_surfaces)):
        change = sensors.derivative(geometry, conductivity, k)
        columns = change[geometry.inner]
        if factors is not None:
            jumps, totals = np.diff(unit, prepend=0.0), _totals(unit)
            change -= geometry.spread(totals) * mass - geometry.spread(jumps) * double
            turned = scipy.linalg.lu_solve(factors, change, trans=1, check_finite=False)
            columns = columns - unit[-2] * seen
            columns -= conductivity[-2] * geometry.isolated_rows(turned)
        derivative = _isolated(geometry, conductivity, columns)
        derivatives.append(derivative - unit[-1] / conductivity[-1] * rows)
    return np.stack(derivatives)


def _isolated(geometry, conductivity, columns):
    """Last step of both: 2 / s_K (M - D / 2 pi)^-T, as rows."""
    solved = scipy.linalg.lu_solve(geometry.isolated, columns, trans=1, check_finite=False)
    return 2 / conductivity[-1] * solved.T


def _totals(conductivity):
    """Sums s_k + s_k-1 of the conductivities on both sides of each surface."""
    return conductivity + np.concatenate([[0.0], conductivity[:-1]])


def _in_chunks(points, mesh):
    """Yield (slice, surface integrals) of points in chunks of one shape, which compile once."""
    for start in range(0, len(points), _POINT_CHUNK):
        part = slice(start, min(start + _POINT_CHUNK, len(points)))
        padded = np.resize(points[part], (_POINT_CHUNK, 3)).T.astype(mesh.vertices.dtype)
        terms = potential_terms(padded, mesh)
        yield part, [np.asarray(t, np.float64)[..., : part.stop - start] for t in terms]


def _deflation(areas):
    return np.multiply.outer(areas, areas / areas.sum())
