"""Tetrahedra between nested surfaces that share their faces: no mesher needed.

Spheres, and heads whose surfaces are sampled along common rays, are stacks of *prisms*: the
triangle (a, b, c) of one surface and the same triangle of the next enclose one. A prism is cut
into three tetrahedra along the diagonals from the lower of two vertex numbers at the bottom to
the higher at the top; neighbours cut their common side alike, so the mesh conforms.

The inside of the innermost surface is meshed in a reference ball, where that surface is the
convex hull of points on the unit sphere: the Delaunay tetrahedra of these and of a
body-centred cubic lattice (the lattice whose Delaunay tetrahedra are all alike and nearly
regular) that is coarser in the middle. A few rounds move every inner point to the centre of
gravity of its elements. The ball is mapped to the head by x = centre + s X(direction), X linear
on every face.

Cost O(n_nodes log n_nodes), about 10 s for 100,000 nodes, nearly all of it in Qhull.

Reference: Dompierre, Labbé, Vallet, Camarero 1999, "How to subdivide pyramids, prisms and
hexahedra into tetrahedra", 8th International Meshing Roundtable (the rule for diagonals).
"""

import itertools

import numpy as np
from scipy.spatial import ConvexHull, Delaunay, cKDTree

from ..core.checks import check_array, check_count, check_positive
from ._points import check_points
from .mesh import Mesh
from .surfaces import (
    check_surface,
    edge_lengths,
    enclosed_volume,
    icosphere,
)

__all__ = ["align_surfaces", "layered_mesh"]

# Lattice points stay this many spacings away from the hull, so that no flat element arises.
_CLEARANCE = 0.55
# Rounds of smoothing: they close the gaps between lattice and hull, which cost superficial
# sources up to 3 % of RDM; more rounds change nothing.
_SMOOTHING = 3
# The kinks of a head's surface turn a few flat elements over: rounds that repair them, and the
# volume, as a fraction of the median, that each is given.
_MAX_UNTANGLING = 20
_LEAST_VOLUME = 0.02


def layered_mesh(surfaces, faces, *, spacing=None, n_layers=None, centre=None, reference=None):
    """Mesh the space inside nested star-shaped surfaces that share their faces.

    Parameters
    ----------
    surfaces : sequence of (n_vertices, 3) arrays
        In m, in any order: the innermost encloses label 0, the shell around it is label 1, and
        so on. Vertex i of one surface lies outside vertex i of the next smaller one.
    faces : (n_faces, 3) int array
        Triangles of every surface, normals outward.
    spacing : float, optional
        Wanted edge length inside the innermost surface, in m; by default the surface's mean
        edge. Beyond a depth of eight edges they are twice as long.
    n_layers : sequence of int, optional
        Layers of elements in each shell from the inside out; by default as many as make them
        half a `spacing` high. A poor conductor carries the steepest potential: four layers in
        the skull and one each in cerebrospinal fluid and scalp served best for their nodes.
    centre : (3,) array, optional
        A point that sees all of the innermost surface, in m; by default the mean of its vertices.
    reference : (n_vertices, 3) array, optional
        Points of the unit sphere with the given faces as their convex hull, such as the
        icosphere that the surfaces were made from; by default the directions of the innermost
        vertices from `centre`.

    Returns
    -------
    Mesh

    Raises
    ------
    ValueError
        If surfaces cross, are not star-shaped around `centre`, or their directions have
        another hull than `faces`: then give `reference`, or use `align_surfaces` first.
    """
    surfaces, faces = _check_surfaces(surfaces, faces)
    innermost = surfaces[0]
    centre = innermost.mean(axis=0) if centre is None else check_array("centre", centre, shape=(3,))
    edge = float(edge_lengths(innermost, faces).mean())
    spacing = edge if spacing is None else check_positive("spacing", spacing)
    ray = innermost - centre
    if reference is None:
        reference = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    reference = check_array("reference", reference, shape=innermost.shape)
    radius = float(np.linalg.norm(ray, axis=1).mean())
    n_layers = _check_layers(n_layers, len(surfaces) - 1)
    points, inner = _ball(reference, faces, spacing / radius)
    n_vertices = len(innermost)
    core = _untangle(centre + _lift(points, reference, faces, ray), inner, n_vertices)[n_vertices:]

    # The vertices of the innermost surface are nodes 0 to n_vertices - 1, the core follows,
    # then one layer of nodes after the other.
    nodes, elements, labels = [innermost, core], [inner], [np.zeros(len(inner), np.int32)]
    bottom, n_nodes = np.arange(n_vertices), n_vertices + len(core)
    for label, (low, high) in enumerate(itertools.pairwise(surfaces), start=1):
        gap = float(np.linalg.norm(high - low, axis=1).mean())
        count = max(1, round(2 * gap / spacing)) if n_layers is None else n_layers[label - 1]
        for layer in range(1, count + 1):
            top = n_nodes + np.arange(n_vertices)
            nodes.append(low + (high - low) * (layer / count))
            prisms = _split_prisms(faces, bottom, top)
            elements.append(prisms)
            labels.append(np.full(len(prisms), label, np.int32))
            bottom, n_nodes = top, n_nodes + n_vertices
    nodes, elements = np.concatenate(nodes), np.concatenate(elements)
    labels = np.concatenate(labels)
    _check_volumes(nodes, elements, labels)
    return Mesh(nodes, elements, labels)


def align_surfaces(vertices, faces, *, order=4, centre=None):
    """Sample closed surfaces along common rays, so that `layered_mesh` can take them.

    Parameters
    ----------
    vertices : sequence of (n_vertices, 3) arrays
        In m; each surface star-shaped around `centre`, with any number of vertices.
    faces : sequence of (n_faces, 3) int arrays
        Triangles of each surface, normals outward.
    order : int
        Of the icosphere whose vertices are the rays' directions: 10 * 4^order + 2 of them.
    centre : (3,) array, optional
        Where the rays start, in m; by default the middle of the smallest surface.

    Returns
    -------
    surfaces : list of (n_rays, 3) arrays
        Where the rays leave each surface, in m: the points lie on it, edges shortcut its curves.
    faces : (n_ray_faces, 3) int array
        Triangles of all of them.
    centre : (3,) array
        Where the rays started, for `layered_mesh`.

    Raises
    ------
    ValueError
        If a surface is not closed, or not star-shaped around `centre`: then use `mesh_surfaces`.

    Notes
    -----
    Ray direction d meets the triangle with corners c_i (from the centre) where
    d = sum_i w_i c_i has no negative w; the point is d / sum_i w_i.
    """
    directions, ray_faces = icosphere(check_count("order", order, minimum=0))
    closed = [
        check_surface(v, f, f"surface {i}")
        for i, (v, f) in enumerate(zip(vertices, faces, strict=True))
    ]
    if centre is None:
        smallest, _ = min(closed, key=lambda surface: enclosed_volume(*surface))
        centre = 0.5 * (smallest.min(axis=0) + smallest.max(axis=0))
    centre = check_array("centre", centre, shape=(3,))
    surfaces = []
    for i, (v, f) in enumerate(closed):
        n_hidden = int(np.count_nonzero(np.linalg.det((v - centre)[f]) <= 0))
        if n_hidden:
            raise ValueError(
                f"surface {i} is not star-shaped: {n_hidden} of {len(f)} faces are hidden from "
                "centre; move centre, smooth the surface, or use mesh_surfaces."
            )
        face, weights = _cones(directions, v - centre, f)
        total = weights.sum(axis=1, keepdims=True)
        surfaces.append(centre + np.einsum("na,nax->nx", weights / total, (v - centre)[f[face]]))
    return surfaces, ray_faces, centre


def _check_surfaces(surfaces, faces):
    surfaces = [check_points(f"surfaces[{i}]", vertices) for i, vertices in enumerate(surfaces)]
    if not surfaces or any(s.shape != surfaces[0].shape for s in surfaces):
        raise ValueError(
            "surfaces must be one or more vertex arrays of equal shape, got shapes "
            f"{[s.shape for s in surfaces]}; surfaces with other faces need mesh_surfaces."
        )
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise ValueError(f"faces must be integers of shape (n_faces, 3), got {faces.shape}.")
    if faces.min() < 0 or faces.max() >= len(surfaces[0]):
        raise ValueError(f"faces must index the {len(surfaces[0])} vertices of the surfaces.")
    enclosed = [enclosed_volume(vertices, faces) for vertices in surfaces]
    if min(enclosed) <= 0:
        raise ValueError("faces must be ordered outward: flip them with faces[:, ::-1].")
    return [surfaces[i] for i in np.argsort(enclosed)], faces


def _check_layers(n_layers, n_shells):
    if n_layers is None:
        return None
    if not np.iterable(n_layers) or len(n_layers) != n_shells:
        raise ValueError(
            f"n_layers must have one entry for each of the {n_shells} shells, got {n_layers!r}."
        )
    return [check_count(f"n_layers[{i}]", n) for i, n in enumerate(n_layers)]


def _ball(reference, faces, spacing):
    """Points of the unit ball, the sphere's first, and tetrahedra between them."""
    length = np.linalg.norm(reference, axis=1, keepdims=True)
    reference = reference / length
    hull = ConvexHull(reference).simplices
    if {*map(tuple, np.sort(hull, axis=1))} != {*map(tuple, np.sort(faces, axis=1))}:
        raise ValueError(
            "faces are not the convex hull of the surfaces' directions from the centre: give "
            "reference (the icosphere the surfaces were made from), or use align_surfaces first."
        )
    # The BCC lattice of constant a has edges a and a sqrt(3)/2; their mean is 0.91 a.
    a = spacing / 0.91
    fine, coarse = _lattice(a), _lattice(2 * a)
    depth = 1 - np.linalg.norm(fine, axis=1)
    # Hull facets lie below the sphere by the sagitta of an edge.
    switch = 1 - max(0.0, 1 - 8 * a)
    fine = fine[(depth > _CLEARANCE * spacing + spacing**2 / 8) & (depth < switch)]
    depth = 1 - np.linalg.norm(coarse, axis=1)
    coarse = coarse[depth >= switch]
    if len(coarse) and len(fine):
        distance, _ = cKDTree(fine).query(coarse)
        coarse = coarse[distance > 0.9 * a]
    points = np.concatenate([reference, fine, coarse])
    for _ in range(_SMOOTHING):
        points = _smooth(points, Delaunay(points).simplices, len(reference))
    elements = Delaunay(points).simplices
    six_volumes = np.linalg.det(points[elements[:, 1:]] - points[elements[:, :1]])
    elements = np.where((six_volumes < 0)[:, None], elements[:, [0, 2, 1, 3]], elements)
    # Flat elements between hull facets are rounding: their facets are the same to 1e-12.
    return points, elements[np.abs(six_volumes) > 1e-10 * spacing**3]


def _smooth(points, elements, n_fixed):
    """Move each free point to the centre of gravity of the elements around it."""
    corners = points[elements]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1]))
    centres = corners.mean(axis=1)
    weight = np.bincount(elements.ravel(), np.repeat(volumes, 4), minlength=len(points))
    moved = np.stack(
        [
            np.bincount(elements.ravel(), np.repeat(volumes * c, 4), minlength=len(points))
            for c in centres.T
        ],
        axis=1,
    )
    free = slice(n_fixed, None)
    points = points.copy()
    points[free] = moved[free] / weight[free, None]
    return points


def _untangle(points, elements, n_fixed):
    """Move free points of elements that the map to the head turned over, until none is.

    A Newton step on the volume, along its gradient: the least motion that restores it.
    """
    points = points.copy()
    for _ in range(_MAX_UNTANGLING):
        a, b, c = np.moveaxis(points[elements[:, 1:]] - points[elements[:, :1]], 1, 0)
        volumes = np.sum(np.cross(a, b) * c, axis=1)  # six times
        wanted = _LEAST_VOLUME * np.median(volumes)
        bad = volumes < 0.1 * wanted
        if not bad.any():
            break
        a, b, c = a[bad], b[bad], c[bad]
        slopes = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
        slopes = np.concatenate([-slopes.sum(axis=1, keepdims=True), slopes], axis=1)
        slopes[elements[bad] < n_fixed] = 0
        steepness = np.maximum(np.sum(slopes**2, axis=(1, 2)), np.finfo(float).tiny)
        step = (wanted - volumes[bad]) / steepness
        np.add.at(points, elements[bad], step[:, None, None] * slopes)
    return points


def _lattice(a):
    n = int(np.ceil(1 / a))
    grid = a * np.stack(np.meshgrid(*[np.arange(-n, n + 1)] * 3, indexing="ij"), axis=-1)
    grid = grid.reshape(-1, 3)
    return np.concatenate([grid, grid + a / 2])


def _lift(points, reference, faces, ray):
    """Map points of the reference ball to offsets from the centre, face by face linear."""
    if not len(points):
        return np.zeros((0, 3))
    face, weights = _cones(points, reference, faces)
    return np.einsum("pa,pax->px", weights, ray[faces[face]])


def _cones(points, corners, faces):
    """Face whose cone from the origin holds each point, and the weights w with p = sum w_i c_i."""
    columns = np.swapaxes(corners[faces], 1, 2)
    inverse = np.linalg.inv(columns)
    middles = columns.mean(axis=2)
    tree = cKDTree(middles / np.linalg.norm(middles, axis=1, keepdims=True))
    direction = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    face, weights = np.zeros(len(points), np.int64), np.full((len(points), 3), -np.inf)
    # Nearly always one of the nearest faces; a long triangle among small ones takes more.
    for n_near in (12, 100, 1000):
        left = np.flatnonzero(weights.min(axis=1) < -1e-9)
        if not left.size:
            break
        _, near = tree.query(direction[left], k=min(n_near, len(faces)))
        found = np.einsum("pkab,pb->pka", inverse[near], points[left])
        best = np.argmax(found.min(axis=2), axis=1)
        rows = np.arange(len(left))
        face[left], weights[left] = near[rows, best], found[rows, best]
    return face, weights


def _split_prisms(faces, bottom, top):
    a, b, c = np.sort(faces, axis=1).T
    cuts = [
        [bottom[a], bottom[b], bottom[c], top[c]],
        [bottom[a], bottom[b], top[c], top[b]],
        [bottom[a], top[b], top[c], top[a]],
    ]
    elements = np.concatenate([np.stack(cut, axis=1) for cut in cuts])
    # Sorting turned every other face over.
    is_even = np.all(np.sort(faces, axis=1) == _rolled(faces), axis=1)
    odd = np.tile(~is_even, 3)
    elements[odd] = elements[odd][:, [1, 0, 2, 3]]
    return elements


def _rolled(faces):
    """Faces turned so that the smallest vertex comes first."""
    turn = np.argmin(faces, axis=1)
    return faces[np.arange(len(faces))[:, None], (turn[:, None] + np.arange(3)) % 3]


def _check_volumes(nodes, elements, labels):
    volumes = np.linalg.det(nodes[elements[:, 1:]] - nodes[elements[:, :1]])
    n_bad = np.bincount(labels, weights=volumes <= 0)
    if n_bad.any():
        label = int(np.argmax(n_bad > 0))
        raise ValueError(
            f"surfaces must be nested and star-shaped around the centre: {int(n_bad[label])} "
            f"elements of compartment {label} are inside out; smooth the surfaces, move centre, "
            "or use align_surfaces or mesh_surfaces."
        )
