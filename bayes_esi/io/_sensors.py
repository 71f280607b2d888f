"""From the channels of a recording to `Sensors`: coil definitions, frames, electrodes.

A channel's `loc` holds the origin and the three axes of its coil, in device coordinates for MEG;
for EEG it holds the electrode and, where known, the reference electrode, in head coordinates.
What lies inside of a coil is told by MNE's coil definition file, which this module reads itself:

    <class> <type> <accuracy> <number of points> <size> <baseline> "<description>"
    <weight> <x> <y> <z> <n_x> <n_y> <n_z>        for each point; m, unit vectors
"""

import functools
from pathlib import Path

import numpy as np

from ..core.checks import check_choice
from ..forward.coils import Coil, electrode
from ..forward.sensors import FAMILIES, make_sensors
from ._channels import DEVICE_FRAME, MEG_CHANNEL

__all__ = ["ACCURACIES", "coil_definitions", "sensors_of"]

ACCURACIES = {"point": 0, "normal": 1, "accurate": 2}

# FIFF constant, part of the file format.
HEAD_FRAME = 4

_FRAMES = {1: "MEG device", 5: "MRI", 0: "unknown"}


def sensors_of(info, *, accuracy="accurate", kinds=tuple(FAMILIES), eeg_reference="recorded"):
    """Read the sensors of a recording, in its order.

    Parameters
    ----------
    info : mne.Info
    accuracy : str
        How many points a coil is integrated by: "point", "normal", or "accurate", which is what
        MNE computes forward solutions with.
    kinds : sequence of str
        Kinds of channels to take: "mag", "grad", "eeg", "seeg", "ecog", "dbs".
    eeg_reference : str
        "recorded" reads each electrode against the reference electrode where the recording names
        one, as MNE does. "none" does not: all the same once the average reference is taken, as
        `bayes_esi.from_mne` and MNE's inverse operators do, and the way out where the reference
        (nose, mastoid) lies off the head model, such as a sphere.

    Returns
    -------
    Sensors
        In head coordinates. Bad channels are modelled and named in `bads`; reference channels
        of the MEG system and other kinds are left out.

    Raises
    ------
    ValueError
        If there are no such channels, EEG or intracranial channels have no position, MEG has no
        `dev_head_t`, a compensation grade other than 0 or an unknown coil, or positions look
        like mm.
    """
    import mne

    if not isinstance(info, mne.Info):
        raise ValueError(
            f"info must be an mne.Info, got {type(info).__name__}; give evoked.info or "
            "mne.io.read_info(path)."
        )
    check_choice("accuracy", accuracy, tuple(ACCURACIES))
    check_choice("eeg_reference", eeg_reference, ("recorded", "none"))
    types = info.get_channel_types(unique=False)
    picks = [i for i, kind in enumerate(types) if kind in FAMILIES and kind in kinds]
    if not picks:
        raise ValueError(
            f"info has no channels of kind {', '.join(kinds)}; its kinds are "
            f"{', '.join(sorted(set(types)))}."
        )
    channels = [info["chs"][i] for i in picks]
    _check_positions(channels)
    _check_compensation(channels)
    to_head = _device_to_head(info, channels)
    has_reference = eeg_reference == "recorded"
    coils = [
        _coil_of(channel, accuracy, to_head)
        if int(channel["kind"]) == MEG_CHANNEL
        else _electrode_of(channel, has_reference)
        for channel in channels
    ]
    return make_sensors(
        coils,
        [channel["ch_name"] for channel in channels],
        [types[i] for i in picks],
        sensor_pos=[_origin(channel, to_head) for channel in channels],
        bads=[channel["ch_name"] for channel in channels if channel["ch_name"] in info["bads"]],
    )


@functools.cache
def coil_definitions(path=None):
    """Read a coil definition file.

    Parameters
    ----------
    path : path-like, optional
        By default that of the installed MNE.

    Returns
    -------
    dict of (int, int) to Coil
        By type and accuracy, each in its own frame.

    Raises
    ------
    ValueError
        If the file is missing or not of this format.
    """
    import mne

    path = Path(mne.__file__).parent / "data" / "coil_def.dat" if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"the coil definition file {path} does not exist.")
    text = path.read_text(encoding="utf-8").splitlines()
    lines = iter([line for line in text if line.strip() and not line.startswith("#")])
    coils = {}
    try:
        for line in lines:
            _, kind, accuracy, n_points = (int(word) for word in line.split()[:4])
            table = np.array([next(lines).split() for _ in range(n_points)], np.float64)
            weights, pos, normals = np.split(table, [1, 4], axis=1)
            normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
            coils[kind, accuracy] = Coil(pos, normals, weights[:, 0])
    except (ValueError, StopIteration):
        raise ValueError(
            f"{path} is not a coil definition file: it breaks off at {line!r}."
        ) from None
    return coils


def _electrode_of(channel, has_reference):
    pos, reference = np.asarray(channel["loc"][:6], np.float64).reshape(2, 3)
    is_named = np.all(np.isfinite(reference)) and np.any(reference)
    return electrode(pos, reference if has_reference and is_named else None)


def _coil_of(channel, accuracy, to_head):
    kind = int(channel["coil_type"]) & 0xFFFF
    coil = coil_definitions().get((kind, ACCURACIES[accuracy]))
    if coil is None:
        raise ValueError(
            f"info has channel {channel['ch_name']} with coil type {kind}, which MNE's coil "
            "definition file does not know; drop the channel or correct its coil_type."
        )
    return coil.placed(_trans_of(channel, to_head) @ _frame(channel))


def _frame(channel):
    """Transform from the frame of a coil to that of its channel."""
    origin, *axes = np.asarray(channel["loc"], np.float64).reshape(4, 3)
    frame = np.eye(4)
    frame[:3] = np.stack([*axes, origin], axis=1)
    return frame


def _origin(channel, to_head):
    trans = _trans_of(channel, to_head)
    return trans[:3, :3] @ np.asarray(channel["loc"][:3], np.float64) + trans[:3, 3]


def _trans_of(channel, to_head):
    return to_head if int(channel["coord_frame"]) == DEVICE_FRAME else np.eye(4)


def _device_to_head(info, channels):
    """Transform to head coordinates, which every channel must have a way to."""
    frames = {int(channel["coord_frame"]) for channel in channels}
    lost = frames - {DEVICE_FRAME, HEAD_FRAME}
    if lost:
        text = ", ".join(f"{_FRAMES.get(frame, 'coordinates')} ({frame})" for frame in lost)
        raise ValueError(
            f"info has channels in {text}, which are neither head nor MEG device coordinates; "
            "set their positions with info.set_montage."
        )
    if DEVICE_FRAME not in frames:
        return None
    if info["dev_head_t"] is None:
        raise ValueError(
            "info['dev_head_t'] is missing: where the head was in the MEG device is not known. "
            "Take it from a recording with head position coils, or fit it by coregistration."
        )
    return np.asarray(info["dev_head_t"]["trans"], np.float64)


def _check_positions(channels):
    lost = [
        channel["ch_name"]
        for channel in channels
        if not np.all(np.isfinite(channel["loc"][:3]))
        or (int(channel["kind"]) != MEG_CHANNEL and not np.any(channel["loc"][:3]))
        or (int(channel["kind"]) == MEG_CHANNEL and not np.all(np.isfinite(channel["loc"])))
    ]
    if lost:
        raise ValueError(
            f"info has {len(lost)} of {len(channels)} channels without position: "
            f"{', '.join(lost[:10])}{' and others' if len(lost) > 10 else ''}; set them with "
            "info.set_montage, or drop the channels."
        )


def _check_compensation(channels):
    grades = {
        int(channel["coil_type"]) >> 16
        for channel in channels
        if int(channel["kind"]) == MEG_CHANNEL
    }
    if grades - {0}:
        raise ValueError(
            f"info has MEG channels with compensation grade {', '.join(map(str, sorted(grades)))}, "
            "which a lead field of the coils alone does not hold; undo it with "
            "evoked.apply_gradient_compensation(0)."
        )
