"""Source terms of dipoles on a triangulated surface, in closed form and compiled.

A dipole q at r0 in an unbounded medium of conductivity 1 has the potential

    v_inf(r') = 1 / (4 pi) q.(r' - r0) / |r' - r0|^3 ,     b_i = int phi_i v_inf = q.F_i / (4 pi)

with F_i of `triangle_integrals.py` summed over the triangles around vertex i. Rearranged by what
is shared, F_i is a sum of constant vectors (geometry) times scalars that depend on r0:

    F_i = sum over triangles around i of n Omega_i + g_i I
        - sum over edges at i of (sum of m_e of both triangles) int_e phi_i / R dl

so that distances are computed once per vertex, logarithms once per edge, arc tangents once per
triangle. No quadrature: b is smooth for every r0 off the surface, and so are its derivatives.

Arrays are structures of arrays: components first, then the mesh, then sources. A batch of few
sources keeps the intermediates in a processor's cache; a single source has none but the mesh axis.

Cost per source about 70 ns n_faces on one core, a quarter of it arc tangents.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float, Int
from .triangle_integrals import (
    Triangles,
    corner_solid_angles,
    cross,
    edge_integral,
    edge_moment,
    norm,
    single_layer,
    solid_angle,
    triangles,
)

__all__ = ["SurfaceMesh", "potential_terms", "source_terms", "surface_integrals", "surface_mesh"]


@struct
class SurfaceMesh:
    """A surface as the kernels want it: which vertices, edges and triangles share what.

    The `n_around` triangles and edges around a vertex are padded with weights of zero.
    """

    vertices: Float[Array, "3 n_vertices"]
    edge_ends: Int[Array, "2 n_edges"]
    edge_length: Float[Array, " n_edges"]
    edge_direction: Float[Array, "3 n_edges"]
    faces: Int[Array, "3 n_faces"]
    face_edges: Int[Array, "3 n_faces"]
    shape: Triangles
    corner_at: Int[Array, "n_around n_vertices"]  # into the 3 n_faces corners, corner by corner
    normal_weight: Float[Array, "3 n_around n_vertices"]
    gradient_weight: Float[Array, "3 n_around n_vertices"]
    edge_at: Int[Array, "n_around_edges n_vertices"]  # into the 2 n_edges ends: starts, then ends
    edge_weight: Float[Array, "3 n_around_edges n_vertices"]


def surface_mesh(vertices, faces):
    """Prepare a surface for the kernels; arrays of JAX's default precision."""
    n_vertices, n_faces = len(vertices), len(faces)
    shape = triangles(vertices, faces)
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    ends, which = np.unique(ends, axis=0, return_inverse=True)
    face_edges = which.reshape(n_faces, 3)
    along = vertices[ends[:, 1]] - vertices[ends[:, 0]]
    length = np.linalg.norm(along, axis=1)
    edge_normal = np.zeros((len(ends), 3))
    for e in range(3):
        np.add.at(edge_normal, face_edges[:, e], shape.edge_normal[e].T)

    corner_at, corner_mask = _lists(faces.T.ravel(), n_vertices)
    edge_at, edge_mask = _lists(ends.T.ravel(), n_vertices)
    normal = np.tile(shape.normal, 3)[:, corner_at] * corner_mask
    gradient = np.concatenate(shape.gradient, axis=1)[:, corner_at] * corner_mask
    return jax.tree.map(
        lambda array: jnp.asarray(np.ascontiguousarray(array)),
        SurfaceMesh(
            vertices=vertices.T,
            edge_ends=ends.T.astype(np.int32),
            edge_length=length,
            edge_direction=along.T / length,
            faces=faces.T.astype(np.int32),
            face_edges=face_edges.T.astype(np.int32),
            shape=shape,
            corner_at=corner_at.astype(np.int32),
            normal_weight=normal,
            gradient_weight=gradient,
            edge_at=edge_at.astype(np.int32),
            edge_weight=np.tile(edge_normal.T, 2)[:, edge_at] * edge_mask,
        ),
    )


def surface_integrals(point, mesh):
    """Integrals over all triangles of a surface, seen from points.

    Parameters
    ----------
    point : (3,) or (3, n_points) array
        In m.
    mesh : SurfaceMesh

    Returns
    -------
    angles : (3 n_faces,) or (3 n_faces, n_points) array
        Omega_i, first those of the first corner of every triangle.
    layers : (n_faces, ...) array
        I, in m.
    moments : (2 n_edges, ...) array
        Integrals of phi / R along the edges, phi being 1 at the start, then at the end.
    """

    def over_points(array):
        return array.reshape(*array.shape, *(1,) * (point.ndim - 1))

    relative = over_points(mesh.vertices) - point[:, None]
    distance = norm(relative)
    start, end = mesh.edge_ends
    length = over_points(mesh.edge_length)
    integral = edge_integral(distance[start], distance[end], length)
    at_end = edge_moment(
        relative[:, start],
        over_points(mesh.edge_direction),
        distance[start],
        distance[end],
        length,
        integral,
    )
    # Without the barriers, here and below, XLA computes each value again for each of its users.
    relative, distance, integral, at_end = jax.lax.optimization_barrier(
        (relative, distance, integral, at_end)
    )
    corners = [relative[:, vertex] for vertex in mesh.faces]
    edges = [integral[edge] for edge in mesh.face_edges]
    shape = Triangles(*map(over_points, mesh.shape))
    omega = solid_angle(corners, [distance[vertex] for vertex in mesh.faces])
    angles, height = corner_solid_angles(shape, corners, omega, edges)
    layers = single_layer(shape, corners, omega, edges, height)
    moments = jnp.concatenate([integral - at_end, at_end])
    return jax.lax.optimization_barrier((jnp.concatenate(angles), layers, moments))


def source_terms(source_pos, mesh):
    """Source terms b of the three unit dipoles at each place.

    Parameters
    ----------
    source_pos : (3,) or (3, n_sources) array
        In m; not on the surface.
    mesh : SurfaceMesh

    Returns
    -------
    (n_vertices, 3) or (n_vertices, 3, n_sources) array
        For conductivity 1 S/m.
    """
    angles, layers, moments = surface_integrals(source_pos, mesh)
    n_faces = layers.shape[0]

    def gather(weights, values, at):
        weights = weights.reshape(*weights.shape, *(1,) * (source_pos.ndim - 1))
        return jnp.sum(weights * values[at][None], axis=1)  # xyz, vertex, source

    total = gather(mesh.normal_weight, angles, mesh.corner_at)
    total += gather(mesh.gradient_weight, layers, mesh.corner_at % n_faces)
    total -= gather(mesh.edge_weight, moments, mesh.edge_at)
    return jnp.swapaxes(total, 0, 1) / (4 * np.pi)


@jax.jit
def potential_terms(points, mesh, own_face):
    """What the potential on a surface adds to potential and magnetic field at points.

    Parameters
    ----------
    points : (3, n_points) array
        In m.
    mesh : SurfaceMesh
    own_face : (n_points,) int array
        The triangle in which a point of the surface lies, which it does not see; -1 for none.

    Returns
    -------
    solid : (n_vertices, n_points) array
        int phi_i n.(r' - r) / |r' - r|^3 dS'.
    turned : (n_vertices, 3, n_points) array
        int phi_i n x (r' - r) / |r' - r|^3 dS': the sum of (n x g_i) I over the triangles around i;
        the edge terms of neighbours cancel.
    """
    angles, layers, _ = surface_integrals(points, mesh)
    n_vertices, n_faces = mesh.vertices.shape[1], layers.shape[0]
    is_own = jnp.arange(n_faces, dtype=own_face.dtype)[:, None] == own_face[None]
    angles = jnp.where(jnp.tile(is_own, (3, 1)), 0, angles)
    corner = mesh.faces.reshape(-1)
    solid = jnp.zeros((n_vertices, points.shape[1]), angles.dtype).at[corner].add(angles)
    curl = jnp.stack([jnp.stack(cross(mesh.shape.normal, g), axis=1) for g in mesh.shape.gradient])
    turned = (curl[..., None] * layers[None, :, None]).reshape(len(corner), 3, -1)
    return solid, jnp.zeros((n_vertices, *turned.shape[1:]), turned.dtype).at[corner].add(turned)


def _lists(owner, n_owners):
    """Items of each owner as columns (n_most, n_owners) of indices, and a mask of the real ones."""
    order = np.argsort(owner, kind="stable")
    sorted_owner = owner[order]
    slot = np.arange(len(owner)) - np.searchsorted(sorted_owner, sorted_owner)
    index = np.zeros((slot.max() + 1, n_owners), np.int64)
    mask = np.zeros(index.shape)
    index[slot, sorted_owner], mask[slot, sorted_owner] = order, 1
    return index, mask
