"""Source spaces of MNE: brought to head coordinates, cut to a part, made from what is known."""

from pathlib import Path

import numpy as np

from ..forward._points import check_points
from ._files import read_file
from ._sensors import HEAD_FRAME
from ._source_space import LEFT_HEMISPHERE, RIGHT_HEMISPHERE

__all__ = [
    "FREE_ORIENTATION",
    "described",
    "in_head",
    "kept",
    "matched",
    "mri_to_head_of",
    "read_source_space",
    "rebuilt",
]

# FIFF constants, which are part of the file format.
MRI_FRAME = 5
FREE_ORIENTATION = 2
UNKNOWN_SURFACE = -1

# Positions of a source space and of its lead field that differ by less (m) are the same: FIF
# files keep single precision.
SAME_PLACE = 1e-6


def read_source_space(src, trans):
    """Source space in head coordinates, from any of its forms."""
    import mne

    if isinstance(src, str | Path):
        src = read_file("src", src, mne.read_source_spaces)
    if not isinstance(src, mne.SourceSpaces):
        is_blocks = isinstance(src, list | tuple) and all(isinstance(b, dict) for b in src)
        if not is_blocks or not src:
            pos = check_points("src", src)
            return mne.SourceSpaces([_discrete(np.asarray(pos, np.float64))])
    blocks = [in_head("src", block, trans) for block in src]
    if not sum(int(block["nuse"]) for block in blocks):
        raise ValueError("src has no sources in use; make it with mne.setup_source_space.")
    return mne.SourceSpaces(blocks)


def in_head(argument, surface, trans):
    """Copy of a surface or a block of a source space in head coordinates."""
    import mne

    frame = int(surface["coord_frame"])
    if frame not in (HEAD_FRAME, MRI_FRAME):
        raise ValueError(f"{argument} is in coordinate frame {frame}, neither MRI nor head.")
    if frame == MRI_FRAME and trans is None:
        raise ValueError(
            f"{argument} is in MRI coordinates: give trans, the transform between MRI and head "
            "that coregistration found (a -trans.fif file), or mne.Transform('mri', 'head') if "
            "both frames are one, as around a sphere that was fitted in head coordinates."
        )
    trans = None if trans is None else mri_to_head_of(trans)
    return mne.transform_surface_to(surface, "head", trans, copy=True)


def mri_to_head_of(trans):
    """`mne.Transform` from MRI to head coordinates, from one that goes either way."""
    import mne

    if isinstance(trans, str) and trans == "fsaverage":
        trans = Path(mne.__file__).parent / "data" / "fsaverage" / "fsaverage-trans.fif"
    if isinstance(trans, str | Path):
        trans = read_file("trans", trans, mne.read_trans)
    if not isinstance(trans, mne.Transform):
        raise ValueError(
            f"trans must be an mne.Transform or its file, got {type(trans).__name__}; see "
            "mne.read_trans."
        )
    ends = (int(trans["from"]), int(trans["to"]))
    if ends == (HEAD_FRAME, MRI_FRAME):
        return mne.transforms.invert_transform(trans)
    if ends != (MRI_FRAME, HEAD_FRAME):
        raise ValueError(
            f"trans must lead between MRI and head, but it leads from {trans.from_str} to "
            f"{trans.to_str}."
        )
    return trans


def kept(src, keep):
    """Part of a source space."""
    import mne

    blocks, start = [], 0
    for block in src:
        mask = keep[start : start + int(block["nuse"])]
        start += int(block["nuse"])
        block = block.copy()
        block["vertno"] = np.asarray(block["vertno"])[mask]
        block["nuse"] = len(block["vertno"])
        block["inuse"] = np.zeros(int(block["np"]), int)
        block["inuse"][block["vertno"]] = 1
        if block.get("patch_inds") is not None:
            block["patch_inds"] = np.asarray(block["patch_inds"])[mask]
        blocks.append(block)
    return mne.SourceSpaces(blocks)


def matched(src, lead_field):
    """The part of a source space that a lead field has, after a check that places agree."""
    blocks = np.repeat(np.arange(len(src)), [int(block["nuse"]) for block in src])
    vertices = np.concatenate([np.asarray(block["vertno"]) for block in src])
    wanted = set(zip(lead_field.source_block, lead_field.source_vertices, strict=True))
    keep = np.array([pair in wanted for pair in zip(blocks, vertices, strict=True)])
    if keep.sum() == lead_field.n_sources:
        src = src if keep.all() else kept(src, keep)
        distance = np.linalg.norm(described(src)["source_rr"] - lead_field.source_pos, axis=1)
        if distance.max() < SAME_PLACE:
            return src
    raise ValueError(
        f"src, with {len(keep)} sources, is not the source space of this lead field with "
        f"{lead_field.n_sources}: their vertices or places differ."
    )


def rebuilt(lead_field):
    """Source space from what a lead field knows."""
    import mne

    kinds, block_of = lead_field.block_kinds, np.asarray(lead_field.source_block)
    has_surfaces = bool({"lh", "rh"} & set(kinds))
    if has_surfaces and lead_field.source_normals is None:
        raise ValueError(
            "src is needed: a source space of surfaces and volumes cannot be made from a lead "
            "field, which keeps no normals of it."
        )
    if np.any(np.diff(block_of) < 0):
        raise ValueError("src is needed: the sources are not in the order of their blocks.")
    blocks = []
    for number, kind in enumerate(kinds):
        members = np.flatnonzero(block_of == number)
        pos = np.asarray(lead_field.source_pos, np.float64)[members]
        vertices = np.asarray(lead_field.source_vertices)[members]
        normals = lead_field.source_normals
        normals = None if normals is None else np.asarray(normals, np.float64)[members]
        if np.any(np.diff(vertices) <= 0):
            raise ValueError("src is needed: the vertices of the sources do not increase.")
        if kind in ("lh", "rh"):
            side = LEFT_HEMISPHERE if kind == "lh" else RIGHT_HEMISPHERE
            faces = _own_faces(lead_field.faces, members)
            block = _surface(side, pos, normals, vertices, vertices[faces])
        else:
            block = _discrete(pos, None if kind == "vol" else normals, vertices)
        block["subject_his_id"] = lead_field.subject
        blocks.append(block)
    return mne.SourceSpaces(blocks)


def _own_faces(faces, members):
    if faces is None or not len(members):
        return np.zeros((0, 3), int)
    own = (faces >= members[0]) & (faces <= members[-1])
    return faces[np.all(own, axis=1)] - members[0]


def _discrete(pos, normals=None, vertices=None):
    """Block of a discrete source space; without normals all point upwards, as in grids of MNE."""
    vertices = np.arange(len(pos)) if vertices is None else vertices
    normals = np.tile([0.0, 0.0, 1.0], (len(pos), 1)) if normals is None else normals
    rr, nn, inuse = _spread(pos, normals, vertices)
    return {
        "id": UNKNOWN_SURFACE, "type": "discrete", "coord_frame": HEAD_FRAME, "np": len(rr),
        "rr": rr, "nn": nn, "nuse": len(pos), "inuse": inuse, "vertno": vertices, "ntri": 0,
        "tris": np.zeros((0, 3), int), "nuse_tri": 0, "use_tris": np.zeros((0, 3), int),
        "nearest": None, "nearest_dist": None, "pinfo": None, "patch_inds": None, "dist": None,
        "dist_limit": None, "subject_his_id": None,
    }  # fmt: skip


def _surface(side, pos, normals, vertices, triangles):
    """Block of a surface of which only the used vertices are known."""
    rr, nn, inuse = _spread(pos, normals, vertices)
    return _discrete(pos, normals, vertices) | {
        "id": side, "type": "surf", "np": len(rr), "rr": rr, "nn": nn, "inuse": inuse,
        "ntri": len(triangles), "tris": triangles,
        "nuse_tri": len(triangles), "use_tris": triangles,
    }  # fmt: skip


def _spread(pos, normals, vertices):
    """Arrays over all vertices up to the last, zero where nothing is known."""
    n_vertices = int(vertices[-1]) + 1 if len(vertices) else 0
    rr, nn = np.zeros((n_vertices, 3)), np.tile([0.0, 0.0, 1.0], (n_vertices, 1))
    rr[vertices], nn[vertices] = pos, normals
    inuse = np.zeros(n_vertices, int)
    inuse[vertices] = 1
    return rr, nn, inuse


def described(src):
    """What a forward solution says about a source space in head coordinates."""
    pos = np.concatenate([np.asarray(b["rr"], np.float64)[b["vertno"]] for b in src])
    return {
        "src": src,
        "nsource": len(pos),
        "coord_frame": HEAD_FRAME,
        "source_rr": pos,
        "source_nn": np.tile(np.eye(3), (len(pos), 1)),
        "source_ori": FREE_ORIENTATION,
        "surf_ori": False,
    }
