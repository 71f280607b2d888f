"""Head models meet MNE: sensors, surfaces and source spaces in, forward solutions in and out.

What MNE keeps in two axes (channels, sources x orientations) is three axes here, and what it may
keep in MRI or device coordinates is in head coordinates. A lead field that was read from a
forward solution and is written with the same `info` and `src` has the same numbers.
"""

from pathlib import Path

import numpy as np
from scipy import sparse

from ..forward._points import check_points
from ..forward.lead_field import LeadField
from ..forward.sensors import FAMILIES, rows_of
from . import netcdf
from ._channels import sensor_positions
from ._files import read_file
from ._lead_field_file import lead_field_from_tree, lead_field_to_tree
from ._mne_source_space import (
    FREE_ORIENTATION,
    described,
    in_head,
    kept,
    matched,
    mri_to_head_of,
    read_source_space,
    rebuilt,
)
from ._sensors import HEAD_FRAME, sensors_of
from ._source_space import FIXED_ORIENTATION, mesh_triangles, sources_of
from ._source_space import lead_field_of as columns_of

__all__ = [
    "bem_surfaces_of",
    "compute_forward",
    "lead_field_from_mne",
    "lead_field_to_mne",
    "load_lead_field",
    "save_lead_field",
    "sensors_of",
]


def compute_forward(
    model,
    info,
    src,
    *,
    trans=None,
    keep=None,
    accuracy="accurate",
    kinds=tuple(FAMILIES),
    eeg_reference="recorded",
    memory_limit=2**29,
):
    """Compute the lead field of a recording's sensors in a head model.

    Parameters
    ----------
    model : object
        Head model in head coordinates with `meg`, `eeg` or `seeg`, as the channels need.
    info : mne.Info
    src : mne.SourceSpaces, path-like or (n_sources, 3) array
        Source space, or positions in m in head coordinates.
    trans : mne.Transform, path-like or "fsaverage", optional
        Between MRI and head, either way; needed if `src` is in MRI coordinates.
    keep : (n_sources,) bool array, optional
        Which sources to take, for example those inside of the brain.
    accuracy, kinds, eeg_reference
        As in `sensors_of`.
    memory_limit : int
        As in `bayes_esi.forward.sensors.lead_field_of`.

    Returns
    -------
    LeadField
        With three orientations along the axes of head coordinates.

    Raises
    ------
    ValueError
        On sensors without position or transform, a source space in MRI coordinates without
        `trans`, sensors among the sources, positions in mm, a model without the methods that
        the channels need.
    """
    sensors = sensors_of(info, accuracy=accuracy, kinds=kinds, eeg_reference=eeg_reference)
    mri_to_head = None if trans is None else mri_to_head_of(trans)["trans"]
    src = read_source_space(src, trans)
    n_sources = sum(int(block["nuse"]) for block in src)
    if keep is not None:
        keep = np.asarray(keep)
        if keep.dtype != bool or keep.shape != (n_sources,) or not keep.any():
            raise ValueError(
                f"keep must be a mask of {n_sources} sources, some of them true, got "
                f"{keep.dtype} of shape {keep.shape}."
            )
        src = kept(src, keep)
    space = described(src)
    pos = check_points("src", space["source_rr"])
    return LeadField.compute(
        model,
        sensors,
        pos,
        memory_limit=memory_limit,
        mri_to_head=mri_to_head,
        **_description(space),
    )


def lead_field_from_mne(forward):
    """Read a forward solution of MNE, and with it of OpenMEEG or others that write one.

    Parameters
    ----------
    forward : mne.Forward or path-like
        In head coordinates; fixed or free orientation, the latter in head or local frames.

    Returns
    -------
    LeadField
        All channels, bad ones included. Fixed orientation stays fixed; free orientation is along
        the axes of head coordinates.

    Raises
    ------
    ValueError
        If it is no forward solution, has no sources, or is not in head coordinates.
    """
    import mne

    if isinstance(forward, str | Path):
        forward = read_file("forward", forward, mne.read_forward_solution)
    if not isinstance(forward, mne.Forward):
        raise ValueError(
            f"forward must be an mne.Forward, got {type(forward).__name__}; make it with "
            "mne.make_forward_solution."
        )
    names = list(forward["sol"]["row_names"])
    info = forward["info"]
    picks = rows_of(info["ch_names"], names)
    types = info.get_channel_types(picks=picks)
    return LeadField.from_arrays(
        columns_of(forward, names),
        np.asarray(forward["source_rr"], np.float64),
        ch_names=names,
        ch_types=types,
        bads=tuple(name for name in names if name in info["bads"]),
        sensor_pos=sensor_positions(info, picks),
        mri_to_head=np.asarray(mri_to_head_of(forward["mri_head_t"])["trans"], np.float64),
        **_description(forward),
    )


def lead_field_to_mne(lead_field, info=None, src=None):
    """Write a lead field as a forward solution of MNE.

    Parameters
    ----------
    lead_field : LeadField
    info : mne.Info, optional
        With the channels of the lead field and possibly others. Without it names, types and
        positions are written, but not the geometry of coils.
    src : mne.SourceSpaces or path-like, optional
        The source space, of which the lead field may hold a part. Without it one is made from
        what the lead field knows: surfaces with the triangles between the sources, other places
        as a discrete source space.

    Returns
    -------
    mne.Forward
        MEG rows first, as MNE keeps them. Free orientation in head coordinates, or fixed
        orientation, from which MNE cannot return to free.

    Raises
    ------
    ValueError
        If `info` lacks channels, `src` has other places, or it is needed and missing.

    Notes
    -----
    MNE writes MEG and EEG rows of a forward solution to files; rows of intracranial contacts
    live in memory only. Save the `LeadField` itself to keep them.
    """
    import mne

    families = [FAMILIES[kind] for kind in lead_field.ch_types]
    order = np.argsort([("meg", "eeg", "seeg").index(f) for f in families], kind="stable")
    names = [lead_field.ch_names[i] for i in order]
    mri_to_head = np.eye(4) if lead_field.mri_to_head is None else lead_field.mri_to_head
    mri_head_t = mne.Transform("mri", "head", np.array(mri_to_head, np.float64))
    if src is None:
        src = rebuilt(lead_field)
    else:
        src = matched(read_source_space(src, mri_head_t), lead_field)
    space = described(src)
    n_sources, n_orient = lead_field.n_sources, lead_field.n_orient
    is_fixed = n_orient == 1
    sol = np.asarray(lead_field.data, np.float64)[order].reshape(len(names), -1)
    return mne.Forward(
        sol={
            "data": sol, "nrow": len(names), "ncol": n_sources * n_orient,
            "row_names": names, "col_names": [],
        },
        sol_grad=None,
        source_ori=FIXED_ORIENTATION if is_fixed else FREE_ORIENTATION,
        surf_ori=is_fixed,
        source_rr=space["source_rr"],
        source_nn=np.array(lead_field.source_normals) if is_fixed else space["source_nn"],
        nsource=n_sources,
        nchan=len(names),
        coord_frame=HEAD_FRAME,
        src=src,
        info=_forward_info(_info_of(lead_field) if info is None else info, names, mri_head_t),
        mri_head_t=mri_head_t,
        _orig_sol=sol.copy(),
        _orig_sol_grad=None,
        _orig_source_ori=FIXED_ORIENTATION if is_fixed else FREE_ORIENTATION,
    )  # fmt: skip


def bem_surfaces_of(bem, trans=None):
    """Triangle meshes of a boundary element model, in head coordinates.

    Parameters
    ----------
    bem : mne.bem.ConductorModel, list of dict, or path-like
        A BEM or its solution, the surfaces of `mne.read_bem_surfaces` or
        `mne.make_bem_model`, or their file.
    trans : mne.Transform, path-like or "fsaverage", optional
        Between MRI and head, either way; needed if the surfaces are in MRI coordinates, as they
        are in all files of MNE.

    Returns
    -------
    vertices : list of (n_vertices, 3) arrays
        In m, from the outermost surface in.
    faces : list of (n_faces, 3) int arrays
        In the order of the file, counter-clockwise from outside.

    Raises
    ------
    ValueError
        On a sphere, no surfaces, an unknown frame, a missing transform, or positions in mm.
    """
    import mne

    if isinstance(bem, str | Path):
        bem = read_file("bem", bem, mne.read_bem_surfaces)
    if (isinstance(bem, dict) and "surfs" in bem) or isinstance(bem, mne.bem.ConductorModel):
        if bem["is_sphere"]:
            raise ValueError(
                "bem is a sphere, which has no surfaces; use a sphere model of bayes_esi.forward."
            )
        bem = bem["surfs"]
    if isinstance(bem, dict):
        bem = [bem]
    if not isinstance(bem, list | tuple) or not bem or any("tris" not in s for s in bem):
        raise ValueError(
            f"bem must be a BEM of MNE, its surfaces or a file of them, got {type(bem).__name__}."
        )
    surfaces = [in_head("bem", surface, trans) for surface in bem]
    vertices = [check_points("bem", np.asarray(s["rr"], np.float64)) for s in surfaces]
    faces = [np.asarray(s["tris"], np.int32) for s in surfaces]
    outermost_first = np.argsort([-_extent(v) for v in vertices], kind="stable")
    return [vertices[i] for i in outermost_first], [faces[i] for i in outermost_first]


def save_lead_field(lead_field, path):
    """Write a lead field to a NetCDF file, whole or not at all."""
    netcdf.write(lead_field_to_tree(lead_field), path, kind="lead_field")


def load_lead_field(path):
    """Read what `save_lead_field` wrote; `ValueError` if it is something else or damaged."""
    return lead_field_from_tree(netcdf.read(path, kind="lead_field"))


def _description(forward):
    """Attributes of a `LeadField` that describe the sources of a forward solution."""
    sources = sources_of(forward)
    upper = sparse.triu(sources.adjacency, k=1).tocoo()
    return {
        "source_normals": sources.normals,
        "source_volume": sources.volume,
        "edges": np.stack([upper.row, upper.col], axis=1).astype(np.int32),
        "faces": _faces(forward["src"]),
        "source_vertices": sources.vertices,
        "source_block": sources.block,
        "block_kinds": sources.block_kinds,
        "subject": sources.subject,
    }


def _faces(blocks):
    """Triangles between the sources of all surfaces, or None."""
    faces, start = [np.zeros((0, 3), int)], 0
    for block in blocks:
        if block["type"] == "surf":
            triangles = mesh_triangles(block)
            faces.append(start + triangles[np.all(triangles >= 0, axis=1)])
        start += int(block["nuse"])
    faces = np.concatenate(faces)
    return faces if len(faces) else None


def _info_of(lead_field):
    """Names, kinds and positions of channels, for those who have no recording."""
    import mne

    info = mne.create_info(
        list(lead_field.ch_names), 1000.0, list(lead_field.ch_types), verbose="ERROR"
    )
    for i, channel in enumerate(info["chs"]):
        channel["coord_frame"] = np.int32(HEAD_FRAME)
        if lead_field.sensor_pos is not None:
            channel["loc"][:3] = lead_field.sensor_pos[i]
    info["bads"] = list(lead_field.bads)
    return info


def _forward_info(info, names, mri_head_t):
    """The part of a recording's `info` that a forward solution keeps."""
    import mne

    if not isinstance(info, mne.Info):
        raise ValueError(f"info must be an mne.Info, got {type(info).__name__}.")
    picked = mne.pick_info(info, rows_of(info["ch_names"], names), verbose="ERROR")
    system = {k: picked[k] for k in ("kit_system_id",) if k in picked}
    return mne.Info(
        **system,
        chs=picked["chs"],
        ch_names=list(names),
        nchan=len(names),
        bads=list(picked["bads"]),
        comps=picked["comps"],
        dev_head_t=picked["dev_head_t"],
        mri_head_t=mri_head_t,
        mri_file="",
        mri_id={"machid": np.zeros(2, np.int32), "version": 0, "secs": 0, "usecs": 0},
        meas_file="",
        meas_id=None,
        working_dir="",
        command_line="bayes_esi",
    )


def _extent(vertices):
    """Size of a surface, which orders nested ones."""
    return float(np.prod(np.ptp(vertices, axis=0)))
