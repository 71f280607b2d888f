"""Linear Galerkin matrices of nested triangulated surfaces: geometry only, no conductivity.

With phi_i the function that is linear on each triangle, 1 at vertex i and 0 at the others, n the
outward normal,

    D_ij = int phi_i(r) int phi_j(r') n'.(r' - r) / |r' - r|^3 dS' dS     (double layer)
    M_ij = int phi_i phi_j dS                                             (mass)

for every pair of surfaces. Two rules share the work:

- all pairs of triangles: 3 x 3 points, exact for quadratic functions on each triangle;
- pairs whose centres are nearer than `near` edge lengths: that sum is taken back, and 7 points
  (exact to degree 5) times the closed-form inner integral are put in its place. A flat triangle
  does not see itself.

What is left of the error shows in the solid angle a surface subtends at its own points, which is
2 pi, and at those of the surfaces inside (4 pi) and around it (0): the diagonal of each surface's
own block takes the difference, the other blocks spread it evenly (it is 1e-5 there), so that a
constant potential solves the discrete equations exactly.

Cost: 9 n_faces^2 kernel evaluations of about 5 ns and, on an even mesh, 7 x 116 n_faces closed
forms (for near = 4, by its square) of about 90 ns for each pair of surfaces; memory n_vertices^2
numbers for all surfaces, and for one pair of them some more.

References: Mosher, Leahy, Lewis 1999, doi:10.1109/10.748978 (Galerkin for MEG and EEG); de Munck
1992, doi:10.1109/10.256433 (inner integral); Dunavant 1985, doi:10.1002/nme.1620210612 (rules).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from .surfaces import edge_lengths
from .triangle_integrals import (
    Triangles,
    corner_solid_angles,
    dot,
    edge_integral,
    norm,
    solid_angle,
    triangles,
)

__all__ = ["double_layer", "mass_matrix", "vertex_areas"]

# Barycentric weights of the quadrature points. Three points: degree 2.
_FAR_POINTS = 0.5 * np.eye(3) + 1 / 6

# Seven points: degree 5; the centre and two triples on the medians.
_ROOT = np.sqrt(15)
_NEAR_POINTS = np.concatenate(
    [np.full((1, 3), 1 / 3)]
    + [np.full((3, 3), a) + (1 - 3 * a) * np.eye(3) for a in ((6 - _ROOT) / 21, (6 + _ROOT) / 21)]
)
_NEAR_WEIGHTS = np.concatenate(
    [[9 / 40], np.full(3, (155 - _ROOT) / 1200), np.full(3, (155 + _ROOT) / 1200)]
)

# Triangles of the outer surface handled at a time in the far rule: the temporaries of one step
# (9 n_faces _FAR_CHUNK numbers) should stay near the size of a cache.
_FAR_CHUNK = 16
_NEAR_CHUNK = 8192  # pairs


def double_layer(surfaces, *, near=4.0):
    """Double-layer matrix D of all pairs of surfaces.

    Parameters
    ----------
    surfaces : list of (vertices, faces)
        Closed, oriented outwards, in m.
    near : float
        Pairs of triangles nearer than this many edge lengths are integrated in closed form.

    Returns
    -------
    (n_vertices, n_vertices) array
        Float64 in m^2; the vertices of all surfaces one after the other.

    Notes
    -----
    The kernels compute in JAX's default precision: with x64 off the result has single precision.
    """
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in surfaces])
    matrix = np.empty((offsets[-1], offsets[-1]))
    parts = [_Parts(vertices, faces) for vertices, faces in surfaces]
    areas = [vertex_areas(vertices, faces) for vertices, faces in surfaces]
    for k, outer in enumerate(parts):
        rows = slice(offsets[k], offsets[k + 1])
        for m, inner in enumerate(parts):
            block = _far(outer, inner)
            block += _near_correction(outer, inner, near, is_self=k == m)
            # Seen from within, on and outside a closed surface.
            turns = 4 if k > m else 2 if k == m else 0
            missing = turns * np.pi * areas[k] - block.sum(axis=1)
            if k == m:
                block[np.diag_indices_from(block)] += missing
            else:
                block += np.multiply.outer(missing, areas[m] / areas[m].sum())
            matrix[rows, offsets[m] : offsets[m + 1]] = block
    return matrix


def mass_matrix(vertices, faces):
    """Sparse mass matrix M (n_vertices, n_vertices) of one surface, in m^2."""
    area = triangles(vertices, faces).area
    local = (1 + np.eye(3)) / 12 * area[:, None, None]
    rows = np.broadcast_to(faces[:, :, None], local.shape)
    columns = np.broadcast_to(faces[:, None, :], local.shape)
    size = (len(vertices),) * 2
    return sp.coo_array((local.ravel(), (rows.ravel(), columns.ravel())), shape=size).tocsr()


def vertex_areas(vertices, faces):
    """Integrals of phi_i (n_vertices,) in m^2: a third of the area around each vertex."""
    area = triangles(vertices, faces).area
    return np.bincount(faces.ravel(), np.repeat(area / 3, 3), len(vertices))


class _Parts:
    """Arrays of one surface as the kernels want them: components first, triangles last."""

    def __init__(self, vertices, faces):
        self.n_vertices, self.faces = len(vertices), faces
        self.shape = triangles(vertices, faces)
        self.corners = np.moveaxis(vertices[faces], 0, 2)  # corner, xyz, face
        self.centres = self.corners.mean(axis=0).T
        self.size = edge_lengths(vertices, faces).reshape(-1, 3).mean(axis=1)


def _far(outer, inner):
    """All pairs of triangles by 3 x 3 points: (n_outer_vertices, n_inner_vertices)."""
    n_faces = len(outer.faces)
    n_steps = -(-n_faces // _FAR_CHUNK)
    # The last step is filled up with triangles of no area.
    fill = n_steps * _FAR_CHUNK - n_faces

    def in_steps(array):
        padded = np.concatenate([array, np.repeat(array[..., :1], fill, axis=-1)], axis=-1)
        split = padded.reshape(*array.shape[:-1], n_steps, _FAR_CHUNK)
        return np.moveaxis(split, -2, 0)

    area = np.concatenate([outer.shape.area, np.zeros(fill)]).reshape(n_steps, _FAR_CHUNK)
    points = np.einsum("pc,cdf->dpf", _FAR_POINTS, outer.corners)
    arguments = (
        in_steps(points),
        area / 3,
        in_steps(outer.faces.T),
        np.einsum("pc,cdf->pdf", _FAR_POINTS, inner.corners),
        inner.shape.normal,
        inner.shape.area / 3,
        inner.faces.T,
    )
    block = _far_kernel(*(_device(a) for a in arguments), outer.n_vertices, inner.n_vertices)
    return np.array(block, np.float64)


@jax.jit(static_argnums=(7, 8))
def _far_kernel(points, weights, faces, inner_points, normal, inner_weights, inner_faces, n, m):
    """Accumulate the far rule over steps of outer triangles into an (n, m) matrix."""
    mix = jnp.asarray(_FAR_POINTS, points.dtype)
    n_inner = inner_faces.shape[1]

    def step(block, chunk):
        at, weight, owner = chunk
        flat = at.reshape(3, -1)
        kernels = [
            _point_kernel(p[:, :, None], flat[:, None, :], normal[:, :, None]) for p in inner_points
        ]
        values = [kernel * inner_weights[:, None] for kernel in kernels]
        # Without the barrier the kernel would be evaluated again for each of its uses.
        values = jnp.stack(jax.lax.optimization_barrier(values))
        corners = 0.5 * values + jnp.sum(values, axis=0, keepdims=True) / 6  # = mix @ values
        columns = jnp.zeros((m, flat.shape[1]), values.dtype)
        columns = columns.at[inner_faces.reshape(-1)].add(corners.reshape(3 * n_inner, -1))
        rows = columns.T.reshape(3, -1, m) * weight[None, :, None]
        rows = jnp.einsum("pc,pfm->cfm", mix, rows)
        return block.at[owner.reshape(-1)].add(rows.reshape(-1, m)), None

    zero = jnp.zeros((n, m), points.dtype)
    return jax.lax.scan(step, zero, (points, weights, faces))[0]


def _point_kernel(inner, outer, normal):
    """n'.(r' - r) / |r' - r|^3 at r' = inner, r = outer; 0 where they coincide."""
    between = [inner[d] - outer[d] for d in range(3)]
    squared = dot(between, between)
    apart = squared > 0
    squared = jnp.where(apart, squared, 1)
    return jnp.where(apart, dot(normal, between) / (squared * jnp.sqrt(squared)), 0)


def _near_correction(outer, inner, near, is_self):
    """What near pairs contribute beyond the far rule, as an (n_outer, n_inner) matrix."""
    tree = cKDTree(outer.centres)
    radius = near * np.maximum(inner.size, outer.size.mean())
    lists = tree.query_ball_point(inner.centres, radius)
    inner_face = np.repeat(np.arange(len(lists)), [len(found) for found in lists])
    outer_face = np.concatenate(lists).astype(np.int64)
    if is_self:
        apart = inner_face != outer_face
        inner_face, outer_face = inner_face[apart], outer_face[apart]
    indices, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    shape = [_device(a) for a in inner.shape]
    geometry = _device(outer.corners), _device(outer.shape.area), _device(inner.corners)
    for start in range(0, len(inner_face), _NEAR_CHUNK):
        pairs = slice(start, start + _NEAR_CHUNK)
        pair = outer_face[pairs], inner_face[pairs]
        # Chunks of one shape compile once.
        padded = [_device(np.resize(p, _NEAR_CHUNK)) for p in pair]
        local = np.asarray(_near_kernel(*geometry, Triangles(*shape), *padded), np.float64)
        index = outer.faces[pair[0]].T[:, None] * np.int64(inner.n_vertices)
        index = index + inner.faces[pair[1]].T[None, :]
        indices.append(index.ravel())
        values.append(local[:, :, : index.shape[2]].ravel())
    size = outer.n_vertices * inner.n_vertices
    total = np.bincount(np.concatenate(indices), np.concatenate(values), size)
    return total.reshape(outer.n_vertices, inner.n_vertices)


@jax.jit
def _near_kernel(outer_corners, outer_area, inner_corners, shape, outer_face, inner_face):
    """Closed form less far rule of pairs: (3 outer corners, 3 inner corners, n_pairs)."""
    dtype = outer_corners.dtype
    outer = outer_corners[:, :, outer_face]
    inner = inner_corners[:, :, inner_face]
    shape = Triangles(*(array[..., inner_face] for array in shape))
    normal, area = shape.normal, shape.area

    def at_point(total, rule):
        weights, weight = rule
        point = weights[0] * outer[0] + weights[1] * outer[1] + weights[2] * outer[2]
        relative = [inner[c] - point for c in range(3)]
        distance = [norm(y) for y in relative]
        edges = [
            edge_integral(distance[e], distance[(e + 1) % 3], shape.edge_length[e])
            for e in range(3)
        ]
        # Without the barriers logarithms and arc tangents would be computed for each result.
        omega, edges = jax.lax.optimization_barrier((solid_angle(relative, distance), edges))
        angles = jnp.stack(corner_solid_angles(shape, relative, omega, edges)[0])
        angles = jax.lax.optimization_barrier(angles)
        return total + (weight * weights)[:, None, None] * angles[None], None

    def far_point(total, weights):
        point = weights[0] * outer[0] + weights[1] * outer[1] + weights[2] * outer[2]
        values = jnp.stack(
            [
                _point_kernel(p[0] * inner[0] + p[1] * inner[1] + p[2] * inner[2], point, normal)
                for p in _FAR_POINTS
            ]
        )
        values = jax.lax.optimization_barrier(values * (area / 9)[None])
        corners = 0.5 * values + jnp.sum(values, axis=0, keepdims=True) / 6
        return total - weights[:, None, None] * corners[None], None

    zero = jnp.zeros((3, 3, outer_face.shape[0]), dtype)
    rule = jnp.asarray(_NEAR_POINTS, dtype), jnp.asarray(_NEAR_WEIGHTS, dtype)
    total, _ = jax.lax.scan(at_point, zero, rule)
    total, _ = jax.lax.scan(far_point, total, jnp.asarray(_FAR_POINTS, dtype))
    return total * outer_area[None, None, outer_face]


def _device(array):
    """A JAX array of the default precision."""
    return jnp.asarray(np.ascontiguousarray(array))
