"""Closed triangulated surfaces: what they must satisfy, and where points lie relative to them.

A surface is a pair (vertices, faces): positions in m, and triples of vertex indices that run
counter-clockwise seen from outside. With the solid angle Omega_T(r) that a triangle subtends at
r, counted positive where its outer side faces away from r,

    winding number w(r) = 1 / (4 pi) sum_T Omega_T(r) = 1 inside, 0 outside,
    volume = 1/6 sum_T v_1 . (v_2 x v_3).

Solid angles cost O(n_points n_faces). Nearest points and intersections first ask a k-d tree for
the triangles that can matter.

References: van Oosterom & Strackee 1983, doi:10.1109/TBME.1983.325207 (solid angle); Moeller &
Trumbore 1997, doi:10.1080/10867651.1997.10487468 (segment against triangle).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from ._points import check_points
from .triangle_integrals import norm, solid_angle

__all__ = [
    "Projection",
    "check_nested",
    "check_surface",
    "coarsen",
    "crossing_faces",
    "edge_lengths",
    "enclosed_volume",
    "face_areas_and_normals",
    "icosphere",
    "is_inside",
    "nearest_points",
    "refine",
    "vertex_normals",
    "winding_number",
]

# Pairs of points and triangles handled at a time: some tens of MB of temporaries.
_CHUNK_PAIRS = 200_000
_POINT_CHUNK = 128


class Projection(NamedTuple):
    """Nearest points of a surface.

    Attributes
    ----------
    pos : (n_points, 3) array
        On the surface, in m.
    face : (n_points,) int array
        The triangle each lies in.
    barycentric : (n_points, 3) array
        Weights of that triangle's corners: not negative, of sum one.
    distance : (n_points,) array
        In m.
    """

    pos: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    distance: np.ndarray


def check_surface(vertices, faces, name="surface"):
    """Return (vertices, faces) as float64 and int32 if they form a closed surface.

    Parameters
    ----------
    vertices : (n_vertices, 3) array
        In m.
    faces : (n_faces, 3) int array
        Counter-clockwise seen from outside.
    name : str
        How errors call the surface.

    Raises
    ------
    ValueError
        If positions look like mm, an index points nowhere, a vertex is unused, triangles are
        degenerate, the surface is open, not a manifold or in several pieces, triangles are
        oriented inconsistently or the surface is inside out.

    Notes
    -----
    Self-intersections are another matter: `crossing_faces`.
    """
    vertices = check_points(f"{name}: vertices", vertices).astype(np.float64)
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu" or len(faces) < 4:
        raise ValueError(
            f"{name}: faces must be integers of shape (n_faces, 3) with at least 4 faces, got "
            f"shape {faces.shape} of {faces.dtype}."
        )
    n_vertices = len(vertices)
    if faces.min() < 0 or faces.max() >= n_vertices:
        raise ValueError(
            f"{name}: faces must index the {n_vertices} vertices from 0, got indices from "
            f"{faces.min()} to {faces.max()}."
        )
    faces = faces.astype(np.int32)
    n_unused = n_vertices - len(np.unique(faces))
    if n_unused:
        raise ValueError(f"{name}: {n_unused} vertices belong to no face; remove them.")
    areas, _ = face_areas_and_normals(vertices, faces)
    longest = edge_lengths(vertices, faces).reshape(-1, 3).max(axis=1)
    # A height below a millionth of the longest edge: the normal is made of rounding errors.
    n_flat = np.count_nonzero(areas <= 5e-7 * longest**2)
    if n_flat:
        raise ValueError(
            f"{name}: {n_flat} degenerate faces (a corner twice, or three on a line); remove them."
        )
    _check_closed(vertices, faces, name)
    if enclosed_volume(vertices, faces) < 0:
        raise ValueError(
            f"{name} is inside out: faces must run counter-clockwise seen from outside; "
            "reverse them with faces[:, ::-1]."
        )
    return vertices, faces


def check_nested(surfaces, names):
    """Refuse surfaces that cross or do not lie inside each other.

    Parameters
    ----------
    surfaces : list of (vertices, faces)
        From the outermost in, each of them checked by `check_surface`.
    names : list of str

    Raises
    ------
    ValueError
        If a surface crosses itself or its neighbour, or does not lie inside the one before.
    """
    for (vertices, faces), name in zip(surfaces, names, strict=True):
        crossing = crossing_faces(vertices, faces)
        if len(crossing):
            raise ValueError(
                f"{name} crosses itself in {len(crossing)} faces, near vertices "
                f"{_some(np.unique(faces[crossing]))}; smooth it there."
            )
    for outer in range(len(surfaces) - 1):
        (outside, inside), pair = surfaces[outer : outer + 2], names[outer : outer + 2]
        crossing = crossing_faces(*inside, *outside)
        if len(crossing):
            raise ValueError(
                f"{pair[1]} crosses {pair[0]} in {len(crossing)} faces; push the one inward or the "
                "other outward."
            )
        if not is_inside(inside[0][:1], *outside)[0]:
            swapped = is_inside(outside[0][:1], *inside)[0]
            remedy = "list the surfaces from the outermost in" if swapped else "they must be nested"
            raise ValueError(f"{pair[1]} does not lie inside {pair[0]}: {remedy}.")


def face_areas_and_normals(vertices, faces):
    """Areas (n_faces,) in m^2 and outward unit normals (n_faces, 3)."""
    first, second, third = (vertices[faces[:, i]] for i in range(3))
    twice = np.cross(second - first, third - first)
    length = np.linalg.norm(twice, axis=1)
    return 0.5 * length, twice / np.where(length > 0, length, 1.0)[:, None]


def vertex_normals(vertices, faces):
    """Outward unit normals (n_vertices, 3): area-weighted means of the faces around."""
    areas, normals = face_areas_and_normals(vertices, faces)
    total = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(total, faces[:, corner], areas[:, None] * normals)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def edge_lengths(vertices, faces):
    """Lengths of the three edges of each face, (3 n_faces,) in m: each edge appears twice."""
    corners = vertices[faces]
    return np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2).ravel()


def enclosed_volume(vertices, faces):
    """Volume inside in m^3; negative if the surface is inside out."""
    centred = vertices - vertices.mean(axis=0)
    first, second, third = (centred[faces[:, i]] for i in range(3))
    return float(np.sum(first * np.cross(second, third)) / 6)


def winding_number(points, vertices, faces):
    """How many times the surface surrounds each point: 1 inside, 0 outside, 1/2 on a face.

    Parameters
    ----------
    points : (n_points, 3) array
        In m.
    vertices, faces
        Of a closed surface.

    Returns
    -------
    (n_points,) array
    """
    points = np.asarray(points)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    corners = np.ascontiguousarray(np.moveaxis(vertices[faces], 0, 2), dtype)
    winding = np.empty(len(points))
    for start in range(0, len(points), _POINT_CHUNK):
        part = points[start : start + _POINT_CHUNK]
        # Chunks of one shape compile once.
        padded = np.resize(part, (_POINT_CHUNK, 3)).astype(dtype)
        total = np.asarray(_solid_angle_sum(padded.T, corners))
        winding[start : start + len(part)] = total[: len(part)]
    return winding / (4 * np.pi)


def is_inside(points, vertices, faces):
    """Whether each point (n_points, 3) lies inside the surface."""
    return winding_number(points, vertices, faces) > 0.5


def nearest_points(points, vertices, faces):
    """Project points on a surface.

    Parameters
    ----------
    points : (n_points, 3) array
        In m.
    vertices, faces
        Of any triangulated surface.

    Returns
    -------
    Projection

    Notes
    -----
    No triangle can be nearer than its centre less its reach, and the nearest vertex bounds the
    distance from above: only triangles between the two are tried.
    """
    points = np.asarray(points, np.float64)
    corners = vertices[faces]
    centres = corners.mean(axis=1)
    reach = np.linalg.norm(corners - centres[:, None], axis=2).max()
    bound = cKDTree(vertices).query(points)[0]
    tree = cKDTree(centres)
    face = np.empty(len(points), np.int64)
    barycentric = np.empty((len(points), 3))
    n_candidates = tree.query_ball_point(points, bound + reach, return_length=True)
    for rows in _chunks(n_candidates):
        lists = tree.query_ball_point(points[rows], bound[rows] + reach)
        count = np.array([len(candidates) for candidates in lists])
        pair_face = np.concatenate(lists).astype(np.int64)
        pair_point = np.repeat(np.arange(len(count)), count)
        weights, squared = _nearest_in_triangles(points[rows][pair_point], corners[pair_face])
        order = np.lexsort((pair_face, squared, pair_point))
        best = order[np.searchsorted(pair_point[order], np.arange(len(count)))]
        face[rows], barycentric[rows] = pair_face[best], weights[best]
    pos = np.einsum("nc,ncd->nd", barycentric, corners[face])
    return Projection(pos, face, barycentric, np.linalg.norm(points - pos, axis=1))


def crossing_faces(vertices, faces, other_vertices=None, other_faces=None):
    """Faces of a surface that another surface, or the same, crosses.

    Parameters
    ----------
    vertices, faces
        The surface.
    other_vertices, other_faces : optional
        Another one; without it the surface is tested against itself.

    Returns
    -------
    (n_crossing,) int array
        Indices of `faces`.

    Notes
    -----
    Two triangles cross if an edge of the one passes through the other. Within a surface an edge
    is not tested against the triangles that share a vertex with it.
    """
    alone = other_vertices is None
    if alone:
        other_vertices, other_faces = vertices, faces
    hit = _pierced(vertices, faces, other_vertices, other_faces, alone)[1]
    if not alone:
        edges_hit = _pierced(other_vertices, other_faces, vertices, faces, alone)[0]
        hit = np.concatenate([hit, edges_hit])
    else:
        hit = np.concatenate([hit, _pierced(vertices, faces, vertices, faces, alone)[0]])
    return np.unique(hit)


def icosphere(order):
    """Unit sphere of 10 * 4^order + 2 vertices: an icosahedron, each face cut into four.

    Parameters
    ----------
    order : int
        0: 12 vertices, 1: 42, 2: 162, 3: 642, 4: 2562, 5: 10242.

    Returns
    -------
    vertices : (n_vertices, 3) array
        The vertices of each lower order come first.
    faces : (20 * 4^order, 3) int array
        The children of face f are faces 4 f to 4 f + 3 of the next order.
    """
    golden = (1 + np.sqrt(5)) / 2
    signs = np.array([(a, b) for a in (-1, 1) for b in (-golden, golden)])
    flat = np.column_stack([np.zeros(4), signs])
    vertices = np.concatenate([np.roll(flat, shift, axis=1) for shift in range(3)])
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    distance = np.linalg.norm(vertices[:, None] - vertices, axis=2)
    near = distance < 1.1 * distance[distance > 1e-6].min()
    triples = np.array(
        [
            (i, j, k)
            for i in range(12)
            for j in range(i + 1, 12)
            for k in range(j + 1, 12)
            if near[i, j] and near[j, k] and near[i, k]
        ]
    )
    is_backward = np.linalg.det(vertices[triples]) < 0
    triples[is_backward] = triples[is_backward][:, ::-1]
    faces = triples.astype(np.int32)
    for _ in range(order):
        n_old = len(vertices)
        vertices, faces = refine(vertices, faces)
        vertices[n_old:] /= np.linalg.norm(vertices[n_old:], axis=1, keepdims=True)
    return vertices, faces


def refine(vertices, faces):
    """Cut each face into four at its edge midpoints.

    Returns
    -------
    vertices : (n_vertices + n_edges, 3) array
        The old ones first.
    faces : (4 n_faces, 3) int array
        The children of face f are 4 f to 4 f + 3: three corners, then the middle.
    """
    n_vertices = len(vertices)
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    edges, which = np.unique(ends, axis=0, return_inverse=True)
    middle = (n_vertices + which.reshape(faces.shape)).astype(faces.dtype)
    before = np.roll(middle, 1, axis=1)
    children = np.concatenate(
        [np.stack([faces, middle, before], axis=2), middle[:, None, :]], axis=1
    )
    midpoints = 0.5 * (vertices[edges[:, 0]] + vertices[edges[:, 1]])
    return np.concatenate([vertices, midpoints]), children.reshape(-1, 3)


def coarsen(vertices, faces):
    """Undo one cut of each face into four; the order of the faces does not matter.

    Parameters
    ----------
    vertices : (n_vertices, 3) array
        Of a sphere-like surface, those of the coarser mesh first.
    faces : (n_faces, 3) int array

    Returns
    -------
    vertices : ((n_vertices + 6) / 4, 3) array
    faces : (n_faces / 4, 3) int array

    Raises
    ------
    ValueError
        If the mesh is not a coarser one with its faces cut at midpoints.

    Notes
    -----
    A middle child has three new vertices; across each of its edges lies a corner child, whose
    old vertex is a corner of the parent. Positions are not looked at: a mesh that was deformed
    after it was cut is coarsened all the same.
    """
    n_coarse = (len(vertices) + 6) // 4
    is_new = faces >= n_coarse
    middle = faces[is_new.all(axis=1)]
    corner = faces[is_new.sum(axis=1) == 2]
    refusal = ValueError(
        f"faces: {len(faces)} faces on {len(vertices)} vertices are not those of a coarser mesh "
        f"cut into four whose {n_coarse} vertices come first."
    )
    if len(middle) * 4 != len(faces) or len(corner) != 3 * len(middle):
        raise refusal
    old_at = np.argmin(corner, axis=1)
    rolled = np.take_along_axis(corner, (old_at[:, None] + np.arange(3)) % 3, axis=1)
    # An edge runs one way in the corner child and the other way in the middle child.
    size = len(vertices)
    key = rolled[:, 2].astype(np.int64) * size + rolled[:, 1]
    order = np.argsort(key)
    wanted = middle.astype(np.int64) * size + np.roll(middle, -1, axis=1)
    found = np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)
    if not np.array_equal(key[order][found], wanted):
        raise refusal
    return vertices[:n_coarse], rolled[order[found], 0].astype(faces.dtype)


def _check_closed(vertices, faces, name):
    """Each edge must be run along once in each direction, each vertex have one fan of faces."""
    n_vertices = len(vertices)
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel()
    forward, backward = start * n_vertices + end, end.astype(np.int64) * n_vertices + start
    count = np.unique(np.minimum(forward, backward), return_counts=True)[1]
    n_open, n_crowded = np.count_nonzero(count == 1), np.count_nonzero(count > 2)
    if n_open:
        raise ValueError(f"{name} is open: {n_open} edges belong to one face only; close the hole.")
    if n_crowded:
        raise ValueError(f"{name} is not a manifold: {n_crowded} edges belong to over two faces.")
    if len(np.unique(forward)) < len(forward):
        n_twice = len(forward) - len(np.unique(forward))
        raise ValueError(
            f"{name} is oriented inconsistently: {n_twice} edges run the same way in both of their "
            "faces; orient all faces counter-clockwise seen from outside."
        )
    graph = sp.coo_array((np.ones(len(start)), (start, end)), shape=(n_vertices,) * 2)
    n_pieces = sp.csgraph.connected_components(graph, directed=False)[0]
    if n_pieces > 1:
        raise ValueError(f"{name} is in {n_pieces} pieces; pass one closed surface.")
    # Faces around a vertex that hang together by edges through it form one fan. Corner (f, v)
    # is linked with the corner of the neighbour across the edge that starts at v.
    corner = np.arange(faces.size)
    owner = np.empty(faces.size, np.int64)
    by_forward, by_backward = np.argsort(forward), np.argsort(backward)
    owner[by_backward] = by_forward  # the half-edge that runs the other way
    follower = (owner // 3) * 3 + (owner % 3 + 1) % 3  # it starts at the vertex where ours does
    links = sp.coo_array((np.ones(len(corner)), (corner, follower)), shape=(len(corner),) * 2)
    n_fans = sp.csgraph.connected_components(links, directed=False)[0]
    if n_fans != n_vertices:
        raise ValueError(f"{name} touches itself at {n_fans - n_vertices} vertices; part them.")


@jax.jit
def _solid_angle_sum(points, corners):
    """Sum of solid angles (n,) at points (3, n) of triangles with corners (3, 3, n_faces)."""
    relative = [corner[:, :, None] - points[:, None, :] for corner in corners]
    return jnp.sum(solid_angle(relative, [norm(r) for r in relative]), axis=0)


def _nearest_in_triangles(points, corners):
    """Barycentric weights (n, 3) and squared distance (n,) of the nearest point of one triangle.

    Either the foot of the perpendicular lies inside, or the nearest point is on an edge.
    """
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(second - first, third - first)
    scale = 1 / np.sum(normal**2, axis=1)
    relative = points - first
    beta = np.sum(np.cross(relative, third - first) * normal, axis=1) * scale
    gamma = np.sum(np.cross(second - first, relative) * normal, axis=1) * scale
    weights = np.stack([1 - beta - gamma, beta, gamma], axis=1)
    squared = np.sum(relative * normal, axis=1) ** 2 * scale
    squared[np.any(weights < 0, axis=1)] = np.inf
    for i in range(3):
        j = (i + 1) % 3
        edge, along = corners[:, j] - corners[:, i], points - corners[:, i]
        t = np.clip(np.sum(along * edge, axis=1) / np.sum(edge**2, axis=1), 0, 1)
        at_edge = np.sum((along - t[:, None] * edge) ** 2, axis=1)
        is_nearer = at_edge < squared
        on_edge = np.zeros_like(weights)
        on_edge[:, i], on_edge[:, j] = 1 - t, t
        weights[is_nearer] = on_edge[is_nearer]
        squared = np.minimum(squared, at_edge)
    return weights, squared


def _pierced(edge_vertices, edge_faces, vertices, faces, alone):
    """Pairs (face that owns an edge, face that this edge passes through)."""
    ends = np.stack([edge_faces, np.roll(edge_faces, -1, axis=1)], axis=2).reshape(-1, 2)
    start, end = edge_vertices[ends[:, 0]], edge_vertices[ends[:, 1]]
    half = 0.5 * np.linalg.norm(end - start, axis=1)
    corners = vertices[faces]
    centres = corners.mean(axis=1)
    reach = np.linalg.norm(corners - centres[:, None], axis=2).max(axis=1)
    tree = cKDTree(0.5 * (start + end))
    radius = reach + half.max()
    n_candidates = tree.query_ball_point(centres, radius, return_length=True)
    owners, hits = [], []
    for rows in _chunks(n_candidates):
        lists = tree.query_ball_point(centres[rows], radius[rows])
        face = np.repeat(np.arange(rows.start, rows.stop), [len(c) for c in lists])
        edge = np.concatenate(lists).astype(np.int64)
        if alone:
            shares = (ends[edge][:, :, None] == faces[face][:, None, :]).any(axis=(1, 2))
            face, edge = face[~shares], edge[~shares]
        crosses = _segments_cross(start[edge], end[edge] - start[edge], corners[face])
        owners.append(edge[crosses] // 3)
        hits.append(face[crosses])
    return np.concatenate(owners), np.concatenate(hits)


def _segments_cross(start, direction, corners):
    """Whether segments (n, 3) pass through triangles (n, 3, 3)."""
    side, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(direction, other)
    det = np.sum(side * across, axis=1)
    # A segment in the plane of the triangle crosses it only where edges of others do too.
    inverse = 1 / np.where(det == 0, np.inf, det)
    offset = start - corners[:, 0]
    u = np.sum(offset * across, axis=1) * inverse
    turned = np.cross(offset, side)
    v = np.sum(direction * turned, axis=1) * inverse
    t = np.sum(other * turned, axis=1) * inverse
    return (det != 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (t <= 1)


def _chunks(counts):
    """Slices of consecutive items whose counts add up to at most a chunk (or single items)."""
    start, total = 0, 0
    for stop, count in enumerate(counts):
        if total + count > _CHUNK_PAIRS and stop > start:
            yield slice(start, stop)
            start, total = stop, 0
        total += count
    yield slice(start, len(counts))


def _some(indices, most=8):
    listed = ", ".join(str(i) for i in indices[:most])
    return listed + (", ..." if len(indices) > most else "")
