"""Volume meshes of a head: tetrahedra, or the voxels of a labelled image.

A mesh is three arrays: nodes x_i, elements (corner indices) and one label per element, which
names its tissue. Every element is an affine image of one reference element,

    x(xi) = x_0 + J xi,     tetrahedron: xi >= 0, sum xi <= 1;     voxel: 0 <= xi <= 1,

so one map serves point location, shape functions and integrals of both kinds. Corner 0 of an
element is xi = 0; a tetrahedron's corners 1, 2, 3 are the unit vectors, and a voxel's corner
i + 2 j + 4 k is xi = (i, j, k).

Cost: boundary and neighbours O(n_elements log n_elements) by sorting faces; locating a point
O(log n_elements).

Reference for the quality measure: Liu, Joe 1994, doi:10.1007/BF01955874 (relationships between
tetrahedron shape measures).
"""

import dataclasses

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ._points import check_points

__all__ = ["Mesh", "local_depth", "locate_points"]

# Faces of the two elements, corners in outward order, as rows of corner numbers. Face i of a
# tetrahedron lies opposite corner i; face 2 a + s of a voxel is where xi_a = s.
_FACES = {
    4: np.array([[1, 2, 3], [0, 3, 2], [0, 1, 3], [0, 2, 1]]),
    8: np.array(
        [[0, 4, 6, 2], [1, 3, 7, 5], [0, 1, 5, 4], [2, 6, 7, 3], [0, 2, 3, 1], [4, 5, 7, 6]]
    ),
}
_FRAME = {4: [1, 2, 3], 8: [1, 2, 4]}  # the corners whose offsets from corner 0 are J's columns
_BITS = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], dtype=float)


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """Nodes, elements and labels of a volume mesh, checked.

    Parameters
    ----------
    nodes : (n_nodes, 3) array
        In m.
    elements : (n_elements, 4) or (n_elements, 8) int array
        Corners of tetrahedra, or of voxels (parallelepipeds) in binary order.
    labels : (n_elements,) int array
        Tissue of each element, 0 to n_labels - 1; label 0 is the brain unless a solver is told
        otherwise.

    Raises
    ------
    ValueError
        If a shape, an index or a volume's sign is wrong, a node belongs to no element, the mesh
        falls into separate pieces, or the nodes look like millimetres.
    """

    nodes: np.ndarray
    elements: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        nodes = check_points("nodes", self.nodes)
        elements = _check_indices("elements", self.elements, len(nodes))
        if elements.ndim != 2 or elements.shape[1] not in _FACES:
            raise ValueError(
                "elements must have shape (n_elements, 4) for tetrahedra or (n_elements, 8) for "
                f"voxels, got {elements.shape}."
            )
        labels = np.asarray(self.labels)
        if labels.shape != (len(elements),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"labels must be non-negative integers of shape ({len(elements)},), one per "
                f"element, got {labels.dtype} {labels.shape}."
            )
        for name, value in (
            ("nodes", nodes),
            ("elements", elements),
            ("labels", labels.astype(np.int32)),
        ):
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        self._check_geometry()

    def _check_geometry(self):
        jacobian = self.jacobian()
        volumes = np.linalg.det(jacobian)
        size = np.linalg.norm(jacobian, axis=1).max(axis=1)
        n_bad = int(np.count_nonzero(volumes <= 1e-9 * size**3))
        if n_bad:
            raise ValueError(
                f"elements must have positive volume; {n_bad} of {len(volumes)} are flat or "
                "inside out: order their corners right-handed, or mesh again."
            )
        if self.is_voxel:
            corners = self.nodes[self.elements]
            straight = corners[:, :1] + np.einsum("ca,nxa->ncx", _BITS, jacobian)
            if np.abs(straight - corners).max() > 1e-6 * size.max():
                raise ValueError(
                    "elements with 8 corners must be parallelepipeds in binary corner order "
                    "(i + 2 j + 4 k); use hexahedra_from_volume, or split them into tetrahedra."
                )
        first = np.repeat(self.elements[:, :1], self.elements.shape[1] - 1, axis=1)
        links = coo_array(
            (np.ones(first.size, bool), (first.ravel(), self.elements[:, 1:].ravel())),
            shape=(self.n_nodes, self.n_nodes),
        )
        n_pieces, piece = connected_components(links, directed=False)
        if n_pieces > 1:
            n_outside = int(self.n_nodes - np.bincount(piece).max())
            raise ValueError(
                f"the mesh falls into {n_pieces} pieces ({n_outside} nodes outside the largest); "
                "remove unused nodes and islands: no current flows between them."
            )

    @property
    def n_nodes(self):
        """Number of nodes."""
        return len(self.nodes)

    @property
    def n_elements(self):
        """Number of elements."""
        return len(self.elements)

    @property
    def n_labels(self):
        """Number of tissues."""
        return int(self.labels.max()) + 1

    @property
    def is_voxel(self):
        """Whether the elements are voxels rather than tetrahedra."""
        return self.elements.shape[1] == 8

    def jacobian(self):
        """Matrices J (n_elements, 3, 3), in m: column a is d x / d xi_a."""
        origin = self.nodes[self.elements[:, 0]]
        return np.stack([self.nodes[self.elements[:, c]] - origin for c in self._frame], axis=2)

    @property
    def _frame(self):
        return _FRAME[self.elements.shape[1]]

    def volumes(self):
        """Volume of each element (n_elements,), in m³."""
        volumes = np.linalg.det(self.jacobian())
        return volumes if self.is_voxel else volumes / 6

    def centroids(self):
        """Centre of each element (n_elements, 3), in m."""
        corners = self.elements.shape[1]
        return sum(self.nodes[self.elements[:, c]] for c in range(corners)) / corners

    def quality(self):
        """Shape of each element (n_elements,), from 0 (flat) to 1 (regular).

        For tetrahedra three times the inscribed over the circumscribed radius; for voxels the
        shortest over the longest edge.
        """
        jacobian = self.jacobian()
        lengths = np.linalg.norm(jacobian, axis=1)
        if self.is_voxel:
            return lengths.min(axis=1) / lengths.max(axis=1)
        a, b, c = np.moveaxis(jacobian, 2, 0)
        normals = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
        areas = np.linalg.norm(normals, axis=2).sum(axis=1)
        areas += np.linalg.norm(np.cross(b - a, c - a), axis=1)
        six_volumes = np.einsum("ni,ni->n", a, normals[:, 0])
        # Circumcentre offset from corner 0: (|a|² b x c + |b|² c x a + |c|² a x b) / (12 V).
        offset = np.einsum("na,nai->ni", lengths**2, normals)
        return 6 * six_volumes**2 / (areas * np.linalg.norm(offset, axis=1))

    def boundary(self):
        """Outer surface as triangles with outward normals.

        Returns
        -------
        triangles : (n_triangles, 3) int array
            Nodes. The squares of voxels are cut in two.
        """
        faces, partner = self._paired_faces()
        outer = faces[partner < 0]
        if self.is_voxel:
            return np.concatenate([outer[:, [0, 1, 2]], outer[:, [0, 2, 3]]])
        return outer

    def neighbours(self):
        """Element across each face (n_elements, n_faces), -1 outside the mesh."""
        n_faces = len(_FACES[self.elements.shape[1]])
        _, partner = self._paired_faces()
        return np.where(partner < 0, -1, partner // n_faces).reshape(-1, n_faces)

    def _paired_faces(self):
        """All faces, element by element, and the number of the same face of the neighbour."""
        faces = self.elements[:, _FACES[self.elements.shape[1]]]
        faces = faces.reshape(-1, faces.shape[2])
        # Three corners identify a face; of four the smallest three would do as well.
        key = np.sort(faces, axis=1)[:, :3].astype(np.int64)
        key = (key[:, 0] * self.n_nodes + key[:, 1]) * self.n_nodes + key[:, 2]
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1])
        partner = np.full(len(faces), -1)
        partner[order[same]] = order[same + 1]
        partner[order[same + 1]] = order[same]
        return faces, partner

    def locate(self, points):
        """Find the elements that hold points.

        Parameters
        ----------
        points : (n_points, 3) array
            In m.

        Returns
        -------
        element : (n_points,) int array
            -1 for a point outside the mesh.
        local : (n_points, 3) array
            Coordinates xi in that element.
        """
        return locate_points(self.nodes, self.elements, points)


def _check_indices(name, value, n_nodes):
    value = np.asarray(value)
    if value.dtype.kind not in "iu" or value.size == 0:
        raise ValueError(f"{name} must be a non-empty integer array, got {value.dtype}.")
    if value.min() < 0 or value.max() >= n_nodes:
        raise ValueError(
            f"{name} must index the {n_nodes} nodes from 0 to {n_nodes - 1}, got "
            f"{value.min()} to {value.max()}."
        )
    return value.astype(np.int32)


def local_depth(xi, n_corners, xp=np):
    """Smallest distance (...) to a face in local coordinates (..., 3): negative outside."""
    if n_corners == 8:
        return xp.minimum(xi, 1 - xi).min(axis=-1)
    return xp.minimum(xi.min(axis=-1), 1 - xi.sum(axis=-1))


def locate_points(nodes, elements, points):
    """Find the elements that hold points; see `Mesh.locate`."""
    points = np.asarray(points, dtype=np.float64)
    n_corners = elements.shape[1]
    corners = nodes[elements]
    jacobian = np.stack([corners[:, c] - corners[:, 0] for c in _FRAME[n_corners]], axis=2)
    inverse, origin = np.linalg.inv(jacobian), corners[:, 0]
    tree = cKDTree(corners.mean(axis=1))
    element, local = np.full(len(points), -1), np.zeros((len(points), 3))
    # Nearly always one of the nearest centroids is the right one; slivers need more.
    for n_candidates in (8, 64, 512):
        left = np.flatnonzero(element < 0)
        if not left.size:
            break
        n_candidates = min(n_candidates, len(elements))
        _, near = tree.query(points[left], k=n_candidates)
        near = near.reshape(len(left), n_candidates)
        xi = np.einsum("pkab,pkb->pka", inverse[near], points[left, None] - origin[near])
        depth = local_depth(xi, n_corners)
        best = np.argmax(depth, axis=1)
        rows = np.arange(len(left))
        inside = depth[rows, best] >= -1e-9
        element[left[inside]] = near[rows, best][inside]
        local[left[inside]] = xi[rows, best][inside]
    return element, local
