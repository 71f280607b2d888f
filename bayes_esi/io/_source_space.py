"""What a forward solution says about its sources: fields, places, directions, neighbours."""

import dataclasses

import numpy as np
from scipy import sparse

from ..core.checks import check_array
from ..sources.adjacency import radius_adjacency, source_spacing

__all__ = ["CORTICAL_THICKNESS", "Sources", "lead_field_of", "mesh_triangles", "sources_of"]

# Mean thickness of the human cortex in m (Fischl and Dale 2000, doi:10.1073/pnas.200033797): turns
# the area that a source of a surface stands for into a volume.
CORTICAL_THICKNESS = 2.5e-3

# FIFF constants, which are part of the file format.
HEAD_FRAME = 4
FIXED_ORIENTATION = 1
LEFT_HEMISPHERE = 101
RIGHT_HEMISPHERE = 102


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources of a forward solution, in its order, in head coordinates.

    Attributes
    ----------
    pos : (n_sources, 3)
        In m.
    normals : (n_sources, 3) or None
        Unit vectors; None if some sources have none.
    volume : (n_sources,)
        Volume that each source stands for, in m^3.
    adjacency : scipy.sparse array, (n_sources, n_sources)
        Non-zero between neighbours.
    vertices, block : (n_sources,) int
    block_kinds : tuple of str
    subject : str or None
    """

    pos: np.ndarray
    normals: np.ndarray | None
    volume: np.ndarray
    adjacency: sparse.sparray
    vertices: np.ndarray
    block: np.ndarray
    block_kinds: tuple
    subject: str | None


def sources_of(forward):
    """Read places, directions, volumes and neighbours of a forward solution.

    Sources of a surface are neighbours along the edges of its decimated mesh. Where the mesh is
    gone or has holes, and in volumes, they are neighbours by distance. Sources of different
    blocks (hemispheres, structures) are not neighbours.

    Parameters
    ----------
    forward : mne.Forward

    Returns
    -------
    Sources

    Raises
    ------
    ValueError
        If there are no sources, or they are not in head coordinates.
    """
    n_sources = int(forward["nsource"])
    blocks = list(forward["src"])
    n_used = [int(block["nuse"]) for block in blocks]
    if n_sources == 0 or sum(n_used) == 0:
        raise ValueError(
            "forward has no sources; make a source space inside the inner skull and compute it "
            "again with mne.make_forward_solution."
        )
    if int(forward["coord_frame"]) != HEAD_FRAME:
        raise ValueError(
            f"forward is in coordinate frame {int(forward['coord_frame'])}, not in head "
            f"coordinates ({HEAD_FRAME}); compute it with mne.make_forward_solution."
        )
    if sum(n_used) != n_sources or len(forward["source_rr"]) != n_sources:
        raise ValueError(
            f"forward is inconsistent: {n_sources} sources, but its source space uses "
            f"{sum(n_used)}; compute it again with mne.make_forward_solution."
        )
    pos = check_array("forward positions", np.asarray(forward["source_rr"], np.float64))
    adjacencies, volumes = [], []
    for block, own in zip(blocks, np.split(pos, np.cumsum(n_used)[:-1]), strict=True):
        if len(own):
            adjacencies.append(_adjacency(block, own))
            volumes.append(np.full(len(own), _volume(block, own)))
    return Sources(
        pos=pos,
        normals=_normals(forward, blocks),
        volume=np.concatenate(volumes),
        adjacency=sparse.block_diag(adjacencies, format="csr"),
        vertices=np.concatenate([np.asarray(block["vertno"], np.int64) for block in blocks]),
        block=np.repeat(np.arange(len(blocks), dtype=np.int32), n_used),
        block_kinds=_kinds(blocks),
        subject=blocks[0].get("subject_his_id"),
    )


def lead_field_of(forward, ch_names):
    """Lead field of some channels, with three orientations along the axes of head coordinates.

    Parameters
    ----------
    forward : mne.Forward
        Fixed or free orientation, the latter in head or in local (surface) frames.
    ch_names : sequence of str

    Returns
    -------
    (n_channels, n_sources, n_orient) array
        In data units per A·m; `n_orient` is 1 along the normals if orientation is fixed, else 3.
    """
    place = {name: i for i, name in enumerate(forward["sol"]["row_names"])}
    rows = [place[name] for name in ch_names]
    columns = check_array("forward", np.asarray(forward["sol"]["data"], np.float64)[rows])
    n_sources = int(forward["nsource"])
    n_orient = 1 if _is_fixed(forward) else 3
    if columns.shape[1] != n_sources * n_orient:
        raise ValueError(
            f"forward has {columns.shape[1]} columns for {n_sources} sources with {n_orient} "
            "orientation(s); compute it again with mne.make_forward_solution."
        )
    lead_field = columns.reshape(len(rows), n_sources, n_orient)
    if n_orient == 3:
        # Column k is the field of a unit dipole along axis k of the local frame, and the frames
        # are orthonormal: g_local = g_head frame', so g_head = g_local frame.
        frames = np.asarray(forward["source_nn"], np.float64).reshape(n_sources, 3, 3)
        lead_field = np.einsum("msk,skc->msc", lead_field, frames)
    return lead_field


def _is_fixed(forward):
    return int(forward["source_ori"]) == FIXED_ORIENTATION


def _is_grid(block):
    """Whether the places of a block are a volume grid, whose normals mean nothing."""
    if block["type"] == "surf":
        return False
    if block["type"] == "vol" or block.get("src_mri_t") is not None:
        return True
    # MNE calls grids without an interpolator discrete and gives every place the same normal.
    normals = np.asarray(block["nn"])[block["vertno"]]
    return len(normals) > 1 and bool(np.all(np.ptp(normals, axis=0) < 1e-6))


def _kinds(blocks):
    kinds = []
    for block in blocks:
        if block["type"] != "surf":
            kinds.append("vol" if _is_grid(block) else "discrete")
        elif int(block["id"]) in (LEFT_HEMISPHERE, RIGHT_HEMISPHERE):
            kinds.append("lh" if int(block["id"]) == LEFT_HEMISPHERE else "rh")
        else:
            kinds.append("rh" if "lh" in kinds else "lh")
    return tuple(kinds)


def _normals(forward, blocks):
    source_nn = np.asarray(forward["source_nn"], np.float64)
    if _is_fixed(forward):
        return source_nn
    if any(_is_grid(block) and block["nuse"] for block in blocks):
        return None
    if forward["surf_ori"]:
        # The third axis of a local frame is the normal, averaged over the patch where MNE did.
        normals = source_nn.reshape(-1, 3, 3)[:, 2]
    else:
        normals = np.concatenate([np.asarray(b["nn"])[b["vertno"]] for b in blocks])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / length if np.all(length > 0) else None


def _adjacency(block, pos):
    if block["type"] == "surf":
        edges = _mesh_edges(block)
        if edges is not None:
            return edges
    return radius_adjacency(pos)


def mesh_triangles(block):
    """Triangles of the decimated mesh of a surface as numbers of sources, -1 for unused vertices.

    Parameters
    ----------
    block : dict
        Part of an `mne.SourceSpaces`.

    Returns
    -------
    (n_triangles, 3) int array
        Empty if the mesh is not known.
    """
    triangles = _used_triangles(block)
    if triangles is None:
        return np.zeros((0, 3), int)
    number = np.full(int(block["np"]), -1)
    number[block["vertno"]] = np.arange(len(block["vertno"]))
    return number[triangles]


def _mesh_edges(block):
    """Edges between the used vertices of a surface, or None if some vertex would have none."""
    corners = mesh_triangles(block)
    if not len(corners):
        return None
    pairs = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    pairs = pairs[np.all(pairs >= 0, axis=1)]
    n_sources = len(block["vertno"])
    if len(np.unique(pairs)) < n_sources:
        return None
    graph = sparse.coo_array(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n_sources, n_sources)
    )
    return (graph + graph.T).tocsr()


def _used_triangles(block):
    triangles = block.get("use_tris")
    if triangles is not None and len(triangles):
        return np.asarray(triangles)
    if block["nuse"] == block["np"] and block["tris"] is not None:
        return np.asarray(block["tris"])
    return None


def _volume(block, pos):
    if block.get("src_mri_t") is not None:
        return float(abs(np.linalg.det(block["src_mri_t"]["trans"][:3, :3])))
    if block["type"] == "surf" and block["tris"] is not None:
        corners = np.asarray(block["rr"], np.float64)[block["tris"]]
        sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = 0.5 * np.linalg.norm(sides, axis=1).sum()
        # Sources that a forward solution left out keep their share of the area.
        triangles = block.get("use_tris")
        has_mesh = triangles is not None and len(triangles)
        n_vertices = len(np.unique(triangles)) if has_mesh else int(block["nuse"])
        return float(area / n_vertices * CORTICAL_THICKNESS)
    return source_spacing(pos) ** 3
