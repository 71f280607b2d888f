"""An average head: skin, skull and cortex, their landmarks and sources, in head coordinates.

The ingredients are surfaces of FreeSurfer's `fsaverage` (an average of 40 brains in MNI305 space)
as arrays; `bayes_esi.io.template_files` reads them from installed packages. What is derived here:

    cortex       mid-thickness m = (white + pial) / 2; the sources are the vertices of the mesh
                 that fsaverage5 refines, the first 2,562 of each hemisphere
    inner skull  the bundled surface with 2,562 vertices; where it crosses itself (at the skull
                 base) it is relaxed, x_i <- x_i / 2 + mean of x_j over neighbours j / 2
    outer skull  x_i + t_i d_i, thickness t = clip(0.48 distance to the skin, 4.5 mm, 7.5 mm),
                 smoothed; directions d are normals smoothed over the surface, since an offset
                 along raw normals folds over at the concave base

The average head is larger than most: its inner skull holds 2.2 litres. Positions are in m in head
coordinates as MNE defines them: the x axis runs through the left and right preauricular points
to the right, the y axis is perpendicular to it through the nasion, the z axis points up.

References: Fischl et al. 1999, doi:10.1002/(SICI)1097-0193(1999)8:4<272::AID-HBM10>3.0.CO;2-4
(fsaverage); Oostenveld & Praamstra 2001, doi:10.1016/S1388-2457(00)00527-7 (10-05 system).
"""

import dataclasses
import functools

import numpy as np
from scipy import sparse

from ..core import ports
from ..core.checks import check_choice
from . import placement
from .bem import BEM
from .placement import apply_trans, head_frame
from .surfaces import (
    check_nested,
    coarsen,
    crossing_faces,
    face_areas_and_normals,
    is_inside,
    nearest_points,
    vertex_normals,
)

__all__ = ["TemplateHead", "build_template"]

SKULL_SHARE = 0.48  # of the way from the inner skull to the skin
SKULL_THICKNESS = (4.5e-3, 7.5e-3)  # m
LEAST_DEPTH = 2e-3  # m from the cortex to the inner skull
_NORMAL_STEPS = 50  # smooths normals over about 5 edges: the base unfolds, the vault stays
_THICKNESS_STEPS = 10
_UNTANGLE_STEPS = 50

# Points of MNI305 (mm) to MNI152 (mm), published by FreeSurfer (wiki page CoordinateSystems).
_MNI152_FROM_MNI305 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TemplateHead:
    """Surfaces, sources and landmarks of the average head, in head coordinates (m).

    Faces run counter-clockwise seen from outside. Arrays are read-only. The cortex has two
    resolutions: all vertices of fsaverage5 for drawing, and the sources among them.

    Attributes
    ----------
    skin_pos, skin_faces : (n_skin, 3) arrays
    outer_skull_pos, inner_skull_pos : (2562, 3) arrays
        The first 642 vertices are a coarser mesh.
    skull_faces : (5120, 3) int array
        Of both.
    white, pial : (20484, 3) arrays
        Left hemisphere, then right.
    inflated : (20484, 3) array
        For drawing only: each hemisphere around its own origin, axes right, front, up.
    sulcal_depth : (20484,) array
        Positive in sulci, for drawing only.
    cortex_faces : (40960, 3) int array
        Of the four arrays above.
    source_normals : (n_sources, 3) array
        Outward unit normals of the mid-thickness surface.
    source_areas : (n_sources,) array
        Area of cortex that each source stands for, in m^2.
    source_volumes : (n_sources,) array
        Volume between white and pial surface that each stands for, in m^3.
    fiducials : (3, 3) array
        Nasion, left and right preauricular point.
    head_mri_trans : (4, 4) array
        Takes head coordinates to MRI coordinates, which are those of MNI305.
    """

    skin_pos: np.ndarray
    skin_faces: np.ndarray
    outer_skull_pos: np.ndarray
    inner_skull_pos: np.ndarray
    skull_faces: np.ndarray
    white: np.ndarray
    pial: np.ndarray
    inflated: np.ndarray
    sulcal_depth: np.ndarray
    cortex_faces: np.ndarray
    source_normals: np.ndarray
    source_areas: np.ndarray
    source_volumes: np.ndarray
    fiducials: np.ndarray
    head_mri_trans: np.ndarray

    def __post_init__(self):
        """Guard the arrays: a head is shared by all who ask for it."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).setflags(write=False)

    def __repr__(self):
        sizes = ", ".join(str(len(pos)) for pos in self.surfaces(4)[0])
        return f"<TemplateHead | {self.n_sources} sources | surfaces of {sizes} vertices>"

    @property
    def n_sources(self):
        """Number of sources: 5,124."""
        return len(self.source_normals)

    @property
    def mid_thickness(self):
        """Surface half way between white and pial, (20484, 3) in m."""
        return 0.5 * (self.white + self.pial)

    @property
    def source_index(self):
        """Vertex (n_sources,) of the fine cortex at which each source lies."""
        return self.hemisphere * (len(self.white) // 2) + self.vertices

    @property
    def source_pos(self):
        """Places of the sources on the mid-thickness surface, (n_sources, 3) in m."""
        return self.mid_thickness[self.source_index]

    @property
    def hemisphere(self):
        """0 (left) or 1 (right) for each source."""
        return np.repeat([0, 1], self.n_sources // 2)

    @property
    def vertices(self):
        """Number (n_sources,) of each source among the vertices of its hemisphere."""
        return np.tile(np.arange(self.n_sources // 2), 2)

    @property
    def source_faces(self):
        """Triangles (10240, 3) between the sources: those that fsaverage5 cuts into four."""
        half_vertices, half_faces = len(self.white) // 2, len(self.cortex_faces) // 2
        left = coarsen(self.white[:half_vertices], self.cortex_faces[:half_faces])[1]
        right_fine = self.cortex_faces[half_faces:] - half_vertices
        right = coarsen(self.white[half_vertices:], right_fine)[1]
        return np.concatenate([left, right + self.n_sources // 2])

    def surfaces(self, order=3):
        """Skin, outer and inner skull for a boundary element model.

        Parameters
        ----------
        order : 3 or 4
            Skulls of 642 or 2,562 vertices; the skin has 2,033 in both.

        Returns
        -------
        vertices : list of (n_vertices, 3) arrays
            In m in head coordinates, from the outermost surface in.
        faces : list of (n_faces, 3) int arrays

        Raises
        ------
        ValueError
            If there is no such order.
        """
        check_choice("order", order, (3, 4))
        outer, inner, faces = self.outer_skull_pos, self.inner_skull_pos, self.skull_faces
        if order == 3:
            outer, coarse = coarsen(outer, faces)
            inner, faces = coarsen(inner, faces)[0], coarse
        return [self.skin_pos, outer, inner], [self.skin_faces, faces, faces]

    def bem(self, conductivity=(0.33, 0.0066, 0.33), order=3):
        """Boundary element model of this head.

        Parameters
        ----------
        conductivity : sequence of three floats
            Of skin, skull and brain, in S/m.
        order : 3 or 4
            See `surfaces`.

        Returns
        -------
        BEM
            Its matrices are computed once for each order and kept as long as the head is: some
            ten seconds and 90 MB at order 3, a minute and 400 MB at order 4.
        """
        return _geometry_of(self, order).with_conductivity(conductivity)

    def info(self, montage="biosemi64", *, meg=None, sfreq=1000.0):
        """Sensors on this head as `mne.Info`; see `bayes_esi.io.template_files.info_of`."""
        return ports.perform(self, "info", montage, meg=meg, sfreq=sfreq)

    def source_space(self, order=4):
        """Cortex as `mne.SourceSpaces`; see `bayes_esi.io.template_files.source_space_of`."""
        return ports.perform(self, "source_space", order)

    def refine(self, values):
        """Interpolate values (n_sources,) linearly to all vertices of the fine cortex, (20484,)."""
        half_faces = len(self.cortex_faces) // 2
        n_fine, n_coarse = len(self.white) // 2, self.n_sources // 2
        parts = []
        for side, part in enumerate(np.split(np.asarray(values), 2)):
            faces = self.cortex_faces[side * half_faces : (side + 1) * half_faces] - side * n_fine
            parts += [part, part[_parents(faces, n_coarse)].mean(axis=1)]
        return np.concatenate(parts)

    def to_mri(self, pos):
        """Take head coordinates (..., 3) to MRI coordinates (surface RAS of fsaverage), in m."""
        return apply_trans(self.head_mri_trans, pos)

    def from_mri(self, pos):
        """Take MRI coordinates (..., 3) to head coordinates, in m."""
        return apply_trans(np.linalg.inv(self.head_mri_trans), pos)

    def to_mni(self, pos, *, space="MNI152"):
        """Take head coordinates to coordinates of the Montreal Neurological Institute.

        Parameters
        ----------
        pos : (..., 3) array
            In m in head coordinates.
        space : "MNI152" or "MNI305"
            fsaverage lives in MNI305; atlases, coordinate tables and nilearn's glass brain in
            MNI152, which is up to 4 mm away and reached by FreeSurfer's published affine map.

        Returns
        -------
        (..., 3) array
            In m; multiply by 1,000 for the usual mm.
        """
        return apply_trans(self._mni_trans(space), pos)

    def from_mni(self, pos, *, space="MNI152"):
        """Undo `to_mni`: MNI coordinates (..., 3) in m to head coordinates in m."""
        return apply_trans(np.linalg.inv(self._mni_trans(space)), pos)

    def _mni_trans(self, space):
        check_choice("space", space, ("MNI152", "MNI305"))
        if space == "MNI305":
            return self.head_mri_trans
        metres = _MNI152_FROM_MNI305.copy()
        metres[:3, 3] *= 1e-3
        return metres @ self.head_mri_trans

    def place_montage(self, pos, fiducials=None):
        """Put electrodes on the skin, (n_electrodes, 3) in m: `placement.place_montage`."""
        return placement.place_montage(pos, self.skin_pos, self.skin_faces, fiducials)

    def place_helmet(self, coil_pos, *, gap=0.017):
        """Put a helmet on the head, a transform (4, 4) from device: `placement.place_helmet`."""
        return placement.place_helmet(coil_pos, self.skin_pos, self.skin_faces, gap=gap)

    def even_sensors(self, n_sensors, *, distance=0.0):
        """Spread sensors over the upper head, places and normals: `placement.even_sensors`."""
        return placement.even_sensors(n_sensors, self.skin_pos, self.skin_faces, distance=distance)


@functools.lru_cache(maxsize=2)
def _geometry_of(head, order):
    """The matrices of a head's surfaces, which do not depend on conductivities."""
    return BEM(*head.surfaces(order), (1.0, 1.0, 1.0))


def build_template(*, skin, inner_skull, white, pial, inflated, sulcal_depth, fiducials, trans):
    """Make the average head from its surfaces.

    Parameters
    ----------
    skin, inner_skull : (vertices, faces)
        In MRI coordinates in m. The inner skull has 10,242 vertices: a refined icosahedron, the
        vertices of each coarser mesh first.
    white, pial, inflated : pairs of (vertices, faces)
        Left and right hemisphere of fsaverage5, in MRI coordinates in m, with the same faces.
    sulcal_depth : pair of (10242,) arrays
    fiducials : (3, 3) array
        Nasion, left and right preauricular point in MRI coordinates in m.
    trans : (4, 4) array
        Takes head to MRI coordinates.

    Returns
    -------
    TemplateHead

    Raises
    ------
    ValueError
        If landmarks and transform disagree, a surface crosses itself or its neighbour, or cortex
        lies less than 2 mm from the skull or outside.

    Notes
    -----
    A few seconds, most of them for the checks.
    """
    to_head = np.linalg.inv(trans)
    n_fine = len(white[0][0])
    cortex_faces = np.concatenate([white[0][1], white[1][1] + n_fine]).astype(np.int32)
    white, pial, inflated = (
        np.concatenate([part[0] for part in pair]).astype(np.float64)
        for pair in (white, pial, inflated)
    )
    white, pial = apply_trans(to_head, white), apply_trans(to_head, pial)
    inner_pos, skull_faces = coarsen(*inner_skull)
    inner_pos = _untangle(inner_pos, skull_faces)
    outer_pos = _outer_skull(inner_pos, skull_faces, skin)
    head = TemplateHead(
        skin_pos=apply_trans(to_head, skin[0]),
        skin_faces=np.array(skin[1], np.int32),
        outer_skull_pos=apply_trans(to_head, outer_pos),
        inner_skull_pos=apply_trans(to_head, inner_pos),
        skull_faces=np.array(skull_faces, np.int32),
        white=white,
        pial=pial,
        inflated=inflated,
        sulcal_depth=np.concatenate(sulcal_depth).astype(np.float64),
        cortex_faces=cortex_faces,
        **_source_shares(white, pial, cortex_faces),
        fiducials=apply_trans(to_head, fiducials),
        head_mri_trans=np.array(trans, np.float64),
    )
    _check(head)
    return head


def _averaging(faces, n_vertices):
    """Matrix that takes the mean over the neighbours of each vertex."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    graph = sparse.coo_array((np.ones(len(start)), (start, end)), (n_vertices, n_vertices)).tocsr()
    return sparse.diags_array(1 / graph.sum(axis=1)) @ graph


def _untangle(pos, faces):
    """Relax a surface around the places where it crosses itself until it no longer does."""
    averaging, pos = _averaging(faces, len(pos)), np.array(pos, np.float64)
    for _ in range(_UNTANGLE_STEPS):
        crossing = crossing_faces(pos, faces)
        if not len(crossing):
            return pos
        near = np.zeros(len(pos))
        near[faces[crossing]] = 1
        near = near + averaging @ (near + averaging @ near) > 0  # and two rings around
        for _ in range(2):
            pos[near] = 0.5 * (pos + averaging @ pos)[near]
    raise ValueError(f"inner_skull still crosses itself in {len(crossing)} faces; smooth it.")


def _outer_skull(inner_pos, faces, skin):
    averaging = _averaging(faces, len(inner_pos))
    direction = vertex_normals(inner_pos, faces)
    for _ in range(_NORMAL_STEPS):
        direction = direction + averaging @ direction
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    room = nearest_points(inner_pos, *skin).distance
    thickness = np.clip(SKULL_SHARE * room, *SKULL_THICKNESS)
    for _ in range(_THICKNESS_STEPS):
        thickness = 0.5 * (thickness + averaging @ thickness)
    return inner_pos + thickness[:, None] * direction


def _parents(faces, n_coarse):
    """Ends (n_fine - n_coarse, 2) of the coarse edge that each new vertex cuts in the middle."""
    pairs = np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    pairs = pairs[(pairs[:, 0] < n_coarse) & (pairs[:, 1] >= n_coarse)]
    return pairs[np.argsort(pairs[:, 1], kind="stable"), 0].reshape(-1, 2)


def _source_shares(white, pial, cortex_faces):
    """Normals at the sources; area and volume of cortex that each of them stands for.

    A third of each face, of the prism between white and pial face, goes to each corner; a vertex
    that is not a source passes half of its share to each end of the edge that it cuts.
    """
    mid = 0.5 * (white + pial)
    areas, _ = face_areas_and_normals(mid, cortex_faces)
    normals = vertex_normals(mid, cortex_faces)
    low, high = white[cortex_faces], pial[cortex_faces]
    volumes = np.abs(_prism_volumes(low, high))
    n_fine, half_faces = len(white) // 2, len(cortex_faces) // 2
    n_coarse = (n_fine + 6) // 4
    out = {"source_normals": [], "source_areas": [], "source_volumes": []}
    for side in range(2):
        own = slice(side * half_faces, (side + 1) * half_faces)
        faces = cortex_faces[own] - side * n_fine
        parents = _parents(faces, n_coarse)
        out["source_normals"].append(normals[side * n_fine : side * n_fine + n_coarse])
        for name, amounts in (("source_areas", areas[own]), ("source_volumes", volumes[own])):
            share = np.bincount(faces.ravel(), np.repeat(amounts / 3, 3), n_fine)
            passed = np.bincount(parents.ravel(), np.repeat(share[n_coarse:] / 2, 2), n_coarse)
            out[name].append(share[:n_coarse] + passed)
    return {name: np.concatenate(parts) for name, parts in out.items()}


def _prism_volumes(low, high):
    """Volumes (n,) between triangles (n, 3, 3) and their partners: three tetrahedra each."""
    tetrahedra = (
        (low[:, 0], low[:, 1], low[:, 2], high[:, 2]),
        (low[:, 0], low[:, 1], high[:, 2], high[:, 1]),
        (low[:, 0], high[:, 1], high[:, 2], high[:, 0]),
    )
    return sum(np.sum((b - a) * np.cross(c - a, d - a), axis=1) / 6 for a, b, c, d in tetrahedra)


def _check(head):
    """Refuse a head that no boundary element model could use."""
    frame = head_frame(head.to_mri(head.fiducials))
    if not np.allclose(frame @ head.head_mri_trans, np.eye(4), atol=1e-6):
        raise ValueError("trans does not agree with fiducials: they define other head coordinates.")
    names = ["skin", "outer skull", "inner skull"]
    for order in (3, 4):
        vertices, faces = head.surfaces(order)
        check_nested(list(zip(vertices, faces, strict=True)), names)
        skull = vertices[-1], faces[-1]
        depth = nearest_points(head.source_pos, *skull).distance
        depth[~is_inside(head.source_pos, *skull)] *= -1
        if depth.min() < LEAST_DEPTH:
            raise ValueError(
                f"inner_skull must enclose the cortex by {1e3 * LEAST_DEPTH:.0f} mm, but a source "
                f"is {1e3 * depth.min():.2f} mm inside it."
            )
