"""Dipoles as right-hand sides of the finite element method.

A dipole of moment q at p is no function, so it is replaced by few nodal values b_i.

*St Venant* (blurred dipole): monopoles on a node near p, the centre, and on the nodes that share
an element with it. In units of the local edge length h, with d_i = (x_i - p) / h, they have the
dipole's moments of order 0 and 1 exactly and those of order 2 as nearly zero as possible:

    min sum_i D_i b_i² + |S b|² / lambda    subject to    F b = (0, q / h),

    F = (1, d_x, d_y, d_z)',   S = (d_x², d_y², d_z², d_x d_y, d_y d_z, d_z d_x)',
    D_i = |d_i|² + eps.

The minimum is b = D^-1 A' y with A = (F; S) and the 10 x 10 system
(A D^-1 A' + diag(0, lambda I)) y = (0, q / h, 0). All six second moments count: matching them
axis by axis only leaves errors of tens of per cent.

Every corner of the element that holds p is a centre in turn, and the loads are averaged with
the shape functions phi_i(p) as weights: averages keep the moments, lessen the error, and make b
continuous where a nearest node would switch. Its derivative still jumps at faces of elements.
Only nodes *all of whose elements* lie in the source compartment are centres, so that no
monopole of a superficial source falls into the cerebrospinal fluid.

*Partial integration*: b_i = q . grad phi_i(p) in the element that holds p. Exact first
moments, four nodes only: cheap, coarse, and for tetrahedra constant within an element, so that
its gradient with respect to p is zero almost everywhere.

Finding the element: a coarse grid of boxes gives a start, and a walk through the face that p
lies furthest behind ends after a few steps.

Cost per dipole: a few steps and four 10 x 10 solves (eight for voxels); nothing depends on the
size of the mesh.

References: Buchner, Knoll, Fuchs, Rienäcker, Beckmann, Wagner, Silny, Pesch 1997,
doi:10.1016/S0013-4694(96)95698-9 (St Venant); Yan, Nunez, Hart 1991, doi:10.1007/BF02442317
(partial integration).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array
from scipy.spatial import cKDTree

from ..core.struct import struct
from ..core.types import Array, Bool, Float, Int
from .fem_assembly import reference_gradients
from .mesh import local_depth

__all__ = ["SourceMesh", "build_source_mesh", "locate", "partial_integration", "venant"]

# Weight of the second moments, lambda, and the distance floor, eps.
_MOMENT_TOL = 1e-3
_DISTANCE_FLOOR = 1e-2
# Steps of a walk: a start is at most a box away, some ten elements.
_MAX_WALK = 200


@struct
class SourceMesh:
    """The source compartment as the kernels see it: nodes, their neighbours, elements, boxes.

    `links[i]` lists node i first, then its neighbours, padded with i; `n_links` counts the true
    ones. Boxes are cubes of edge `box_size` from `box_origin` on.
    """

    nodes: Float[Array, "n_nodes 3"]
    links: Int[Array, "n_nodes width"]
    n_links: Int[Array, " n_nodes"]
    edge: Float[Array, " n_nodes"]  # mean distance to the neighbours
    is_centre: Bool[Array, " n_nodes"]  # all elements of the node are in the compartment
    elements: Int[Array, "n_elements n_corners"]
    across: Int[Array, "n_elements n_faces"]  # element behind each face, -1 outside
    stand_in: Int[Array, " n_elements"]  # nearest centre, for elements without one at a corner
    box_origin: Float[Array, " 3"]
    box_size: Float[Array, ""]
    box_element: Int[Array, "nx ny nz"]


def build_source_mesh(mesh, label):
    """Prepare the compartment `label` of a mesh for the kernels.

    Parameters
    ----------
    mesh : Mesh
    label : int

    Returns
    -------
    source_mesh : SourceMesh
    nodes : (n_source_nodes,) int array
        Numbers of its nodes in `mesh`.

    Raises
    ------
    ValueError
        If the compartment is too thin to hold a node away from its surface.
    """
    inside = mesh.labels == label
    nodes, elements = np.unique(mesh.elements[inside], return_inverse=True)
    elements = elements.reshape(-1, mesh.elements.shape[1]).astype(np.int32)
    is_centre = np.ones(mesh.n_nodes, bool)
    is_centre[mesh.elements[~inside]] = False
    is_centre[mesh.boundary()] = False
    is_centre = is_centre[nodes]
    if not is_centre.any():
        raise ValueError(
            f"source_label {label} names a compartment of {len(elements)} elements without any "
            "node off its surface; refine the mesh, or name the brain's label."
        )
    pos = mesh.nodes[nodes]
    links, n_links = _link_table(elements, len(nodes))
    gaps = np.linalg.norm(pos[links] - pos[:, None], axis=2)
    edge = gaps.sum(axis=1) / (n_links - 1)

    number = np.cumsum(inside) - 1
    across = mesh.neighbours()[inside]
    is_inner = (across >= 0) & inside[across]
    across = np.where(is_inner, number[across], -1)

    box_size = 2 * float(edge.mean())
    low, high = pos.min(axis=0), pos.max(axis=0)
    counts = np.ceil((high - low) / box_size).astype(int) + 1
    middles = low + box_size * (np.stack(np.indices(counts), axis=-1) + 0.5)
    centres = np.flatnonzero(is_centre)
    centroids = pos[elements].mean(axis=1)
    _, nearest = cKDTree(pos[centres]).query(centroids)
    _, element = cKDTree(centroids).query(middles)
    source_mesh = SourceMesh(
        nodes=jnp.asarray(pos),
        links=jnp.asarray(links),
        n_links=jnp.asarray(n_links),
        edge=jnp.asarray(edge),
        is_centre=jnp.asarray(is_centre),
        elements=jnp.asarray(elements),
        across=jnp.asarray(across.astype(np.int32)),
        stand_in=jnp.asarray(centres[nearest].astype(np.int32)),
        box_origin=jnp.asarray(low),
        box_size=jnp.asarray(np.asarray(box_size)),
        box_element=jnp.asarray(element.astype(np.int32)),
    )
    return source_mesh, nodes


def _link_table(elements, n_nodes):
    """Every node's own number and its neighbours', padded with its own, and their count."""
    n_corners = elements.shape[1]
    i, j = np.indices((n_corners, n_corners)).reshape(2, -1)
    pairs = coo_array(
        (
            np.ones(elements.size * n_corners, np.int8),
            (elements[:, i].ravel(), elements[:, j].ravel()),
        ),
        shape=(n_nodes, n_nodes),
    ).tocsr()
    n_links = np.diff(pairs.indptr).astype(np.int32)
    row = np.repeat(np.arange(n_nodes), n_links)
    links = np.tile(np.arange(n_nodes, dtype=np.int32)[:, None], (1, n_links.max()))
    # Own number to the front: the others move up one place until they have passed it.
    order = np.argsort(2 * row + (pairs.indices != row), kind="stable")
    links[row, np.arange(pairs.nnz) - pairs.indptr[row]] = pairs.indices[order]
    return links, n_links


def venant(source_mesh, pos: Float[Array, " 3"]):
    """Monopoles of the three unit dipoles at one place.

    Parameters
    ----------
    source_mesh : SourceMesh
    pos : (3,)
        In m.

    Returns
    -------
    nodes : (n_loads,) int
        Nodes of the source mesh, some of them twice.
    loads : (n_loads, 3)
        b for moments along x, y, z, in 1/m: currents per A·m.
    """
    element, xi = _containing_element(source_mesh, pos)
    corners = source_mesh.elements[element]
    share = jnp.where(source_mesh.is_centre[corners], _shape_functions(xi, corners.shape[0]), 0)
    # Rounding may place a source on a face a little outside: no share is negative.
    share = jnp.maximum(share, 0)
    total = jnp.sum(share)
    is_alone = jnp.arange(corners.shape[0]) == 0
    centres = jnp.where((total <= 0) & is_alone, source_mesh.stand_in[element], corners)
    share = jnp.where(total > 0, share / jnp.where(total > 0, total, 1), jnp.where(is_alone, 1, 0))
    nodes, loads = jax.vmap(_monopoles, (None, 0, None))(source_mesh, centres, pos)
    return nodes.ravel(), (share[:, None, None] * loads).reshape(-1, 3)


def _monopoles(source_mesh, centre, pos):
    """St Venant loads around one centre: nodes (width,) and loads (width, 3)."""
    nodes = source_mesh.links[centre]
    edge = source_mesh.edge[centre]
    d = (source_mesh.nodes[nodes] - pos) / edge
    x, y, z = d.T
    moments = jnp.stack([jnp.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x])
    is_used = jnp.arange(nodes.shape[0]) < source_mesh.n_links[centre]
    freedom = jnp.where(is_used, 1 / (jnp.sum(d**2, axis=1) + _DISTANCE_FLOOR), 0)
    slack = jnp.asarray([0.0] * 4 + [_MOMENT_TOL] * 6, d.dtype)
    weighted = moments * freedom
    wanted = jnp.asarray(np.eye(10)[:, 1:4], d.dtype) / edge
    gram = weighted @ moments.T + jnp.diag(slack)
    return nodes, weighted.T @ jax.scipy.linalg.solve(gram, wanted, assume_a="pos")


def partial_integration(source_mesh, pos: Float[Array, " 3"]):
    """Loads of the three unit dipoles at one place, on the corners of its element.

    Parameters and returns as `venant`, with one row per corner.
    """
    element, xi = _containing_element(source_mesh, pos)
    corners = source_mesh.elements[element]
    inverse, _ = _inverse_map(source_mesh.nodes[corners])
    return corners, reference_gradients(xi, corners.shape[0], jnp) @ inverse


@jax.jit
def locate(source_mesh, source_pos: Float[Array, "n_sources 3"]):
    """Find the elements that hold places.

    Returns
    -------
    depth : (n_sources,)
        Smallest distance to a face in local coordinates: negative outside the compartment, or,
        rarely, where the walk ended at a concave corner of it.
    is_exposed : (n_sources,) bool
        Whether all corners of the element lie on the surface of the compartment, so that
        `venant` has to borrow a centre from beyond it.
    """

    def one(pos):
        element, xi = _containing_element(source_mesh, pos)
        corners = source_mesh.elements[element]
        is_exposed = ~jnp.any(source_mesh.is_centre[corners])
        return local_depth(xi, corners.shape[0], jnp), is_exposed

    return jax.lax.map(one, source_pos, batch_size=256)


def _containing_element(source_mesh, pos):
    """Walk through the face that the place lies furthest behind; element and coordinates."""
    n_corners = source_mesh.elements.shape[1]

    def coordinates(element, pos):
        inverse, origin = _inverse_map(source_mesh.nodes[source_mesh.elements[element]])
        return jnp.dot(inverse, pos - origin)

    def advance(state):
        step, element, _ = state
        behind = _face_depths(coordinates(element, fixed), n_corners)
        across = source_mesh.across[element]
        behind = jnp.where(across >= 0, behind, jnp.inf)
        face = jnp.argmin(behind)
        is_outside = behind[face] < 0
        return step + 1, jnp.where(is_outside, across[face], element), is_outside

    def is_walking(state):
        return state[2] & (state[0] < _MAX_WALK)

    fixed = jax.lax.stop_gradient(pos)  # which element it is has no derivative
    box = jnp.floor((fixed - source_mesh.box_origin) / source_mesh.box_size).astype(jnp.int32)
    box = jnp.clip(box, 0, jnp.asarray(source_mesh.box_element.shape, jnp.int32) - 1)
    start = source_mesh.box_element[box[0], box[1], box[2]]
    state = (jnp.asarray(0, jnp.int32), start, jnp.asarray(True))
    _, element, _ = jax.lax.while_loop(is_walking, advance, state)
    return element, coordinates(element, pos)


def _shape_functions(xi, n_corners):
    if n_corners == 4:
        return jnp.concatenate([1 - jnp.sum(xi, keepdims=True), xi])
    pairs = jnp.stack([1 - xi, xi])
    return jnp.stack([pairs[c & 1, 0] * pairs[c >> 1 & 1, 1] * pairs[c >> 2, 2] for c in range(8)])


def _face_depths(xi, n_corners):
    if n_corners == 4:
        return jnp.concatenate([1 - jnp.sum(xi, keepdims=True), xi])
    return jnp.stack([xi, 1 - xi], axis=1).ravel()


def _inverse_map(corners):
    """J^-1, by cofactors, and x_0 of one element."""
    frame = corners[jnp.asarray([1, 2, 3] if corners.shape[0] == 4 else [1, 2, 4])] - corners[0]
    a, b, c = frame
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    return rows / jnp.dot(a, rows[0]), corners[0]
