"""From files to a lead field and back to a file: what ``bayes-esi forward`` does."""

from pathlib import Path

import numpy as np

from ..core.drive import write_atomically
from ..forward.bem import BEM
from ..forward.surfaces import nearest_points
from ._files import read_file
from ._mne_source_space import described, read_source_space
from .mne_forward import bem_surfaces_of, compute_forward, lead_field_to_mne, save_lead_field
from .template_files import info_of, source_space_of, template_head

__all__ = ["CONDUCTIVITY", "check_out", "forward_of_files", "write_forward"]

# Skin, skull, brain in S/m; of a single surface the last.
CONDUCTIVITY = (0.33, 0.0066, 0.33)
SPACING = 7.0  # mm
LEAST_DEPTH = 0.005  # m from grid points to the inner skull


def forward_of_files(
    recording_path,
    *,
    bem_path=None,
    trans_path=None,
    src_path=None,
    spacing=None,
    conductivity=None,
):
    """Compute the lead field of the sensors of a recording.

    Parameters
    ----------
    recording_path : path-like
        Raw, epochs or evoked, of which only the sensors are read.
    bem_path : path-like, optional
        Surfaces of the head. Without them the average head is used: electrodes are put on it by
        their names or landmarks, and the sources are its cortex.
    trans_path : path-like, optional
        Between head and MRI; needed with `bem_path`.
    src_path : path-like, optional
        Source space; by default a cubic grid within the innermost surface.
    spacing : float, optional
        Of that grid, in mm.
    conductivity : sequence of float, optional
        Inside each surface, from the outermost in, in S/m.

    Returns
    -------
    LeadField, mne.Info, mne.SourceSpaces

    Raises
    ------
    ValueError
        If a file is missing or cannot be read, options do not go together, or head, sensors and
        sources do not fit.
    """
    import mne

    info = read_file("recording", recording_path, mne.io.read_info)
    if bem_path is None:
        given = {"trans": trans_path, "src": src_path, "spacing": spacing}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} goes with bem: the average head brings its own transform and sources."
                )
        return _on_average_head(info, conductivity or CONDUCTIVITY)
    if trans_path is None:
        raise ValueError(
            "trans is missing: surfaces are in MRI coordinates, and only the transform tells "
            "where the head is; make it with mne coreg."
        )
    if src_path is not None and spacing is not None:
        raise ValueError("src and spacing exclude each other: the source space has its own.")
    vertices, faces = bem_surfaces_of(bem_path, trans_path)
    if conductivity is None:
        conductivity = CONDUCTIVITY[-len(vertices) :] if len(vertices) in (1, 3) else ()
    bem = BEM(vertices, faces, conductivity)
    if src_path is not None:
        src = read_file("src", src_path, mne.read_source_spaces)
        return compute_forward(bem, info, src, trans=trans_path), info, src
    src = mne.setup_volume_source_space(
        pos=SPACING if spacing is None else spacing,
        bem=bem_path,
        mindist=0.0,
        add_interpolator=False,
        verbose="ERROR",
    )
    # MNE's least distance is that to vertices, not to the surface between them.
    pos = described(read_source_space(src, trans_path))["source_rr"]
    keep = nearest_points(pos, vertices[-1], faces[-1]).distance > LEAST_DEPTH
    if not keep.any():
        raise ValueError(f"spacing {spacing} mm leaves no grid point inside the head; lower it.")
    return compute_forward(bem, info, src, trans=trans_path, keep=keep), info, src


def write_forward(lead_field, info, src, path):
    """Write a lead field, whole or not at all.

    Parameters
    ----------
    lead_field : LeadField
    info : mne.Info
    src : mne.SourceSpaces
    path : path-like
        Ending in ``-fwd.fif`` (or another ending that MNE takes for a forward solution): for
        MNE; in ``.nc``: for `bayes_esi.load`.

    Raises
    ------
    ValueError
        On another ending or a folder that does not exist.
    """
    import mne

    path = check_out(path)
    if path.suffix == ".nc":
        save_lead_field(lead_field, path)
        return
    forward = lead_field_to_mne(lead_field, info, src)
    with write_atomically(path) as part:
        # MNE judges by the ending whether to compress.
        whole = part.with_name(f"{part.name}-{path.name[-11:].lstrip('-_')}")
        mne.write_forward_solution(whole, forward, overwrite=True, verbose="ERROR")
        whole.replace(part)


def check_out(path):
    """Return where to write a lead field, or say what is wrong with it before any computation.

    Raises
    ------
    ValueError
        See `write_forward`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"out {path} lies in a folder that does not exist; create it first.")
    if not path.name.endswith((".nc", "-fwd.fif", "_fwd.fif", "-fwd.fif.gz", "_fwd.fif.gz")):
        raise ValueError(f"out must end in -fwd.fif or .nc, got {path.name}.")
    return path


def _on_average_head(info, conductivity):
    """Lead field of a recording's electrodes on the average head."""
    import mne

    head = template_head()
    picks = mne.pick_types(info, meg=False, eeg=True, exclude=[])
    if not len(picks):
        raise ValueError(
            "recording has no EEG, for which alone the average head can stand in: coils were "
            "somewhere around another head. Give bem and trans."
        )
    own = mne.pick_info(info, picks, verbose="ERROR")
    montage = own.get_montage()
    if montage is None:
        raise ValueError("recording has EEG without positions; use raw.set_montage.")
    placed = info_of(head, montage, sfreq=own["sfreq"])
    missing = [name for name in own["ch_names"] if name not in placed["ch_names"]]
    if missing:
        raise ValueError(f"recording has no position for {', '.join(missing[:5])}; drop them.")
    order = [placed["ch_names"].index(name) for name in own["ch_names"]]
    placed = mne.pick_info(placed, np.array(order), verbose="ERROR")
    placed["bads"] = list(own["bads"])
    src = source_space_of(head)
    return compute_forward(head.bem(conductivity), placed, src), placed, src
