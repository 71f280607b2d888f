"""The average head from files inside installed packages, and what MNE needs to work with it.

Nothing is downloaded. mne ships the skin, the inner skull, the landmarks and the head transform of
fsaverage, positions of 10-05 electrodes on it and the coils of three MEG systems; nilearn ships
the cortex of fsaverage5. What is derived is kept in the user's cache folder, never in the package:
the surfaces are FreeSurfer's.

Cache folder: ``$BAYES_ESI_CACHE``, else ``$XDG_CACHE_HOME/bayes_esi``, else ``~/.cache/bayes_esi``.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..core.checks import check_choice
from ..core.drive import write_atomically
from ..forward.surfaces import coarsen, vertex_normals
from ..forward.template import TemplateHead, build_template

__all__ = [
    "MEG_SYSTEMS",
    "build_template_head",
    "info_of",
    "source_space_of",
    "template_head",
]

# Coils that ship inside mne, in device coordinates.
MEG_SYSTEMS = ("neuromag", "ctf151", "ctf275")

# Raised whenever the arrays of a cached head change their meaning or their numbers.
_FORMAT = 1
# Names of the 10-20 system that the 10-05 system gave up.
_OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
# A montage follows the 10-05 system if this share of its names does; numbered caps have a few
# names, A1 or C3, that mean something else.
_NAMED_SHARE = 0.9
# Landmarks this near to those of the average head are meant to be the same, in m.
_SAME_LANDMARKS = 5e-3


@functools.cache
def template_head():
    """Average head with 5,124 cortical sources, made from files inside installed packages.

    Returns
    -------
    TemplateHead
        The same object at each call; its arrays are read-only.

    Notes
    -----
    Built in a few seconds the first time, then read from the cache folder in a fraction of one. A
    cache that is damaged or was made by other versions of mne and nilearn is made again; a folder
    that cannot be written is done without.
    """
    path = _cache_path()
    head = _read_cache(path)
    if head is None:
        head = build_template_head()
        _write_cache(path, head)
    return head


def build_template_head():
    """Make the average head anew, past the cache: a few seconds.

    Returns
    -------
    TemplateHead
    """
    import mne
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    folder = Path(mne.__file__).parent / "data" / "fsaverage"

    def surface(name):
        read = mne.read_bem_surfaces(folder / f"fsaverage-{name}.fif", verbose="ERROR")[0]
        return read["rr"].astype(np.float64), read["tris"]

    # nilearn has other meshes too, but downloads them.
    meshes = load_fsaverage("fsaverage5")
    depth = load_fsaverage_data("fsaverage5", mesh_type="inflated", data_type="sulcal").data

    def hemispheres(name):
        parts = [meshes[name].parts[side] for side in ("left", "right")]
        return [(1e-3 * part.coordinates.astype(np.float64), part.faces) for part in parts]

    trans = mne.read_trans(folder / "fsaverage-trans.fif", verbose="ERROR")
    return build_template(
        skin=surface("head"),
        inner_skull=surface("inner_skull-bem"),
        white=hemispheres("white_matter"),
        pial=hemispheres("pial"),
        inflated=hemispheres("inflated"),
        sulcal_depth=[depth.parts[side] for side in ("left", "right")],
        fiducials=_fiducials(folder / "fsaverage-fiducials.fif"),
        trans=trans["trans"],
    )


def info_of(head, montage="biosemi64", *, meg=None, sfreq=1000.0):
    """Describe sensors on the average head for MNE.

    Parameters
    ----------
    head : TemplateHead
    montage : str, sequence of str, mne.channels.DigMontage or None
        EEG: a montage that MNE knows by name, names of the 10-05 system, or positions with
        landmarks. None for MEG alone.
    meg : "neuromag", "ctf151", "ctf275" or None
        MEG: the real coils of a system, its helmet put over the head.
    sfreq : float
        Sampling frequency in Hz.

    Returns
    -------
    mne.Info
        MEG channels first. Electrodes lie on the skin in head coordinates; landmarks and
        electrodes are digitised, and ``dev_head_t`` says where the helmet is.

    Raises
    ------
    ValueError
        If a name is unknown, a montage has no landmarks, or there are no sensors at all.

    Notes
    -----
    Names of the 10-05 system (any case) go to their measured places on fsaverage, whatever
    idealised positions the montage gives them: those are 5 mm off the skin, up to 23 mm at Fpz.
    Montages in the coordinates of fsaverage keep their positions. Others are fitted by their
    landmarks, which is good to about a centimetre. All are then projected on the skin.
    """
    import mne

    if montage is None and meg is None:
        raise ValueError("montage and meg are both None; name a montage, an MEG system or both.")
    coils, names, places = [], [], {}
    if meg is not None:
        check_choice("meg", meg, MEG_SYSTEMS)
        system = mne.channels.read_meg_canonical_info(meg, verbose="ERROR")
        coils, names = system["chs"], list(system["ch_names"])
    if montage is not None:
        places = _electrodes(head, montage)
    kinds = ["mag"] * len(coils) + ["eeg"] * len(places)
    info = mne.create_info(names + list(places), sfreq, kinds, verbose="ERROR")
    for channel, coil in zip(info["chs"], coils, strict=False):
        for key in ("loc", "coil_type", "coord_frame", "unit"):
            channel[key] = coil[key]
    if meg is not None:
        coil_pos = np.array([coil["loc"][:3] for coil in coils])
        info["dev_head_t"] = mne.Transform("meg", "head", head.place_helmet(coil_pos))
    nasion, lpa, rpa = head.fiducials
    digitised = mne.channels.make_dig_montage(
        places, nasion=nasion, lpa=lpa, rpa=rpa, coord_frame="head"
    )
    info.set_montage(digitised, verbose="ERROR")
    return info


def source_space_of(head, order=4):
    """Describe the cortex of the average head for MNE.

    Parameters
    ----------
    head : TemplateHead
    order : 3 or 4
        1,284 sources, some 12 mm apart, or all 5,124.

    Returns
    -------
    mne.SourceSpaces
        Left and right mid-thickness surface of subject "fsaverage" in head coordinates, with the
        sources among the vertices of fsaverage5 and the triangles between them (``use_tris``).
    """
    import mne
    from mne.io.constants import FIFF

    check_choice("order", order, (3, 4))
    mid, half_vertices = head.mid_thickness, len(head.white) // 2
    normals = vertex_normals(mid, head.cortex_faces)
    blocks = []
    for side, number in enumerate((FIFF.FIFFV_MNE_SURF_LEFT_HEMI, FIFF.FIFFV_MNE_SURF_RIGHT_HEMI)):
        own = slice(side * half_vertices, (side + 1) * half_vertices)
        used = head.vertices[head.hemisphere == side]
        fine = np.split(head.cortex_faces, 2)[side] - own.start
        coarse = np.split(head.source_faces, 2)[side] - side * len(used)
        if order == 3:
            coarser, coarse = coarsen(used[:, None], coarse)
            used = coarser[:, 0]
        is_used = np.zeros(half_vertices, int)
        is_used[used] = 1
        block = {
            "id": int(number),
            "type": "surf",
            "coord_frame": FIFF.FIFFV_COORD_HEAD,
            "subject_his_id": "fsaverage",
            "np": half_vertices,
            "ntri": len(fine),
            "rr": mid[own].copy(),
            "nn": normals[own].copy(),
            "tris": fine,
            "nuse": len(used),
            "inuse": is_used,
            "vertno": used,
            "nuse_tri": len(coarse),
            "use_tris": coarse,
        }
        for absent in ("nearest", "nearest_dist", "pinfo", "patch_inds", "dist", "dist_limit"):
            block[absent] = None
        blocks.append(block)
    return mne.SourceSpaces(blocks, info={})


def _fiducials(path):
    import mne
    from mne.io.constants import FIFF

    points, _ = mne.io.read_fiducials(path, verbose="ERROR")
    by_kind = {int(point["ident"]): point["r"] for point in points}
    order = (FIFF.FIFFV_POINT_NASION, FIFF.FIFFV_POINT_LPA, FIFF.FIFFV_POINT_RPA)
    return np.array([by_kind[int(kind)] for kind in order], np.float64)


def _electrodes(head, montage):
    """Names and places on the skin, in head coordinates."""
    import mne

    if isinstance(montage, str):
        montage = mne.channels.make_standard_montage(_current_name(montage))
    if isinstance(montage, mne.channels.DigMontage):
        return _montage_places(head, montage.get_positions())
    names = [str(name) for name in montage]
    known = _known_places(head)
    unknown = [name for name in names if name.casefold() not in known]
    if unknown or not names:
        raise ValueError(
            f"montage must name electrodes of the 10-05 system, got {', '.join(unknown) or 'none'};"
            " pass a montage with positions instead."
        )
    pos = head.place_montage([known[name.casefold()] for name in names])
    return dict(zip(names, pos, strict=True))


def _montage_places(head, positions):
    if not positions["ch_pos"]:
        raise ValueError("montage has no electrodes; add them with mne.channels.make_dig_montage.")
    names, pos = list(positions["ch_pos"]), np.array(list(positions["ch_pos"].values()))
    landmarks = [positions[key] for key in ("nasion", "lpa", "rpa")]
    has_landmarks = all(point is not None for point in landmarks)
    if has_landmarks:
        offset = np.array(landmarks) - head.to_mri(head.fiducials)
        if np.max(np.linalg.norm(offset, axis=1)) < _SAME_LANDMARKS:
            return dict(zip(names, head.place_montage(head.from_mri(pos)), strict=True))
    known = _known_places(head)
    is_named = np.array([name.casefold() in known for name in names])
    if np.mean(is_named) < _NAMED_SHARE:
        is_named[:] = False
    if not has_landmarks and not np.all(is_named):
        raise ValueError(
            "montage has no nasion, LPA and RPA, and its names are not those of the 10-05 system; "
            "add landmarks with mne.channels.make_dig_montage."
        )
    places = np.empty_like(pos)
    if not np.all(is_named):
        places[:] = head.place_montage(pos, np.array(landmarks))
    if np.any(is_named):
        named = [known[name.casefold()] for name in np.array(names)[is_named]]
        places[is_named] = head.place_montage(named)
    return dict(zip(names, places, strict=True))


def _known_places(head):
    """Places of 10-05 electrodes near the skin, in head coordinates, by name in lower case.

    Measured along the skin of fsaverage; ears and mastoids, which the system does not have, come
    from another head in the same coordinates.
    """
    import mne

    places = {}
    for name in ("colin27_1005", "fsaverage_1005"):
        montage = mne.channels.make_standard_montage(name).get_positions()
        pos = head.from_mri(list(montage["ch_pos"].values()))
        places |= dict(zip(montage["ch_pos"], pos, strict=True))
    places |= {old: places[new] for old, new in _OLD_NAMES.items()}
    return {name.casefold(): pos for name, pos in places.items()}


def _current_name(name):
    """MNE calls its standard_* montages by the head they were measured on, colin27_*."""
    return name.replace("standard_", "colin27_", 1) if name.startswith("standard_") else name


def _cache_path():
    folder = os.environ.get("BAYES_ESI_CACHE")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(base) / "bayes_esi"
    return Path(folder).expanduser() / "template_head.npz"


def _identity():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("mne", "nilearn"))
    return f"template head {_FORMAT}, " + ", ".join(versions)


def _read_cache(path):
    """Return the cached head, or None if there is none of this identity that can be read."""
    unreadable = (EOFError, KeyError, OSError, TypeError, ValueError)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            if str(file["identity"]) != _identity():
                return None
            names = [field.name for field in dataclasses.fields(TemplateHead)]
            return TemplateHead(**{name: file[name] for name in names})
    except (*unreadable, zipfile.BadZipFile, zlib.error):
        return None


def _write_cache(path, head):
    arrays = {field.name: getattr(head, field.name) for field in dataclasses.fields(head)}
    # A head that cannot be kept is as good as one that is.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as name, open(name, "wb") as file:
            np.savez(file, identity=_identity(), **arrays)
