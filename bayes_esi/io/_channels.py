"""Which channels of a recording are used, and the linear map that their reference calls for.

    data -> P data,   lead_field -> P lead_field,   noise_cov -> P noise_cov P',   P = I - U U'

U spans the recording's projectors (SSP), restricted to the channels in use, and the constant over
every kind of channel whose reference is not known to be at infinity. Whatever was subtracted
before (a projector that is already active, another reference electrode, channels that were
dropped after projecting) lies in the span of U, so that P makes the model exact in every case.
"""

import numpy as np

from ..core.checks import check_array
from ..linalg.whitening import whitener_of

__all__ = [
    "GROUPS",
    "covariance_of",
    "known_ranks",
    "pick_channels",
    "projector",
    "sensor_positions",
]

# Noise group of each kind of channel; other kinds are not used.
GROUPS = {
    "mag": "meg",
    "grad": "meg",
    "eeg": "eeg",
    "seeg": "seeg",
    "ecog": "ecog",
    "dbs": "dbs",
}

# FIFF constants, which are part of the file format.
PROJECTOR_IS_AVERAGE_REFERENCE = 10
MEG_CHANNEL = 1
DEVICE_FRAME = 1

# Directions of the projectors that differ by less are one direction.
DEPENDENT_TOLERANCE = 1e-6


def pick_channels(evoked, forward, noise_cov):
    """Good channels that a recording, a forward solution and a covariance share.

    Parameters
    ----------
    evoked : mne.Evoked
    forward : mne.Forward
    noise_cov : mne.Covariance

    Returns
    -------
    picks : (n_channels,) int array
        Numbers of the channels in `evoked`, in its order.
    ch_types : tuple of str
        Keys of `GROUPS`.

    Raises
    ------
    ValueError
        If nothing is shared, or if recording and forward solution have different compensation
        grades or head positions.
    """
    names, kinds = evoked.ch_names, evoked.get_channel_types()
    bads = {*evoked.info["bads"], *forward["info"]["bads"], *noise_cov["bads"]}
    usable = [i for i, kind in enumerate(kinds) if kind in GROUPS and names[i] not in bads]
    if not usable:
        raise ValueError(
            f"evoked has no good channels of kind {', '.join(GROUPS)}; its kinds are "
            f"{', '.join(sorted(set(kinds)))}, and {len(bads)} channels are marked as bad."
        )
    modelled = set(forward["sol"]["row_names"])
    shared = [i for i in usable if names[i] in modelled]
    if not shared:
        raise ValueError(
            "forward has none of the good channels of evoked (for example "
            f"{names[usable[0]]!r}); compute it with mne.make_forward_solution(evoked.info, ...)."
        )
    measured = set(noise_cov["names"])
    picks = [i for i in shared if names[i] in measured]
    if not picks:
        raise ValueError(
            "noise_cov has none of the good channels that evoked and forward share (for example "
            f"{names[shared[0]]!r}); compute it from the same recording with "
            "mne.compute_covariance."
        )
    ch_types = tuple(kinds[i] for i in picks)
    if "meg" in {GROUPS[kind] for kind in ch_types}:
        _check_same_sensors(evoked.info, forward["info"], {names[i] for i in picks})
    return np.array(picks), ch_types


def projector(info, ch_names, ch_types):
    """Orthogonal projector that the projectors and the reference of a recording call for.

    Scalp EEG is always put to average reference: its lead field is known up to a constant over
    channels, and the average reference of data, lead field and covariance alike does not depend
    on the reference of the recording. The lead field of SEEG, ECoG and DBS contacts is that of
    potentials against infinity. They are used as they are, unless `info["custom_ref_applied"]`
    tells of a re-reference, which MNE does not describe further: then the average over the
    contacts of each kind is removed, which is right for every common reference.

    Parameters
    ----------
    info : mne.Info
    ch_names, ch_types : sequence of str

    Returns
    -------
    (n_channels, n_channels) array
        Unitless.

    Raises
    ------
    ValueError
        On scalp EEG without a reference, or if nothing remains.
    """
    n_channels = len(ch_names)
    has_custom_reference = int(info["custom_ref_applied"]) != 0
    has_average_reference = any(
        int(p["kind"]) == PROJECTOR_IS_AVERAGE_REFERENCE for p in info["projs"]
    )
    if "eeg" in ch_types and not (has_custom_reference or has_average_reference):
        raise ValueError(
            "evoked has EEG without reference: neither an average reference projector nor the "
            "mark of a re-reference; use evoked.set_eeg_reference(projection=True)."
        )
    rows = [p["data"]["data"] for p in info["projs"]]
    columns = [p["data"]["col_names"] for p in info["projs"]]
    vectors = [_restrict(*pair, ch_names) for pair in zip(rows, columns, strict=True)]
    for kind in ("eeg", "seeg", "ecog", "dbs"):
        members = np.array([t == kind for t in ch_types])
        if not members.any() or (kind != "eeg" and not has_custom_reference):
            continue
        if np.count_nonzero(members) == 1:
            raise ValueError(
                f"evoked shares a single good {kind} channel with forward and noise_cov, of which "
                "the average reference leaves nothing; keep at least two or drop it."
            )
        vectors.append(members[None].astype(float))
    vectors = np.concatenate([np.zeros((0, n_channels)), *vectors])
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[length[:, 0] > 0] / length[length[:, 0] > 0]
    if not len(vectors):
        return np.eye(n_channels)
    _, singular, basis = np.linalg.svd(vectors, full_matrices=False)
    basis = basis[singular > DEPENDENT_TOLERANCE * singular[0]]
    if len(basis) >= n_channels:
        raise ValueError(
            f"evoked has {len(basis)} projectors for {n_channels} good channels: nothing remains."
        )
    return np.eye(n_channels) - basis.T @ basis


def covariance_of(noise_cov, ch_names):
    """Square covariance of some channels, from a full or a diagonal `mne.Covariance`.

    Returns
    -------
    (n_channels, n_channels) array
        In squared data units.

    Raises
    ------
    ValueError
        On NaN or infinite values.
    """
    rows = _rows(noise_cov["names"], ch_names)
    if noise_cov["diag"]:
        return np.diag(check_array("noise_cov", np.asarray(noise_cov["data"])[rows]))
    covariance = np.asarray(noise_cov["data"], np.float64)[np.ix_(rows, rows)]
    return check_array(
        "noise_cov", covariance, remedy="Compute it again with mne.compute_covariance."
    )


def known_ranks(info, ch_names, groups, noise_cov):
    """Rank of the MEG noise covariance after signal-space separation (Maxwell filtering).

    The number of degrees of freedom that separation leaves is written in the recording. A
    regularised or noisy covariance does not show it, so the smaller of the two is taken. In all
    other cases the eigenvalues of the projected covariance tell.

    Parameters
    ----------
    info : mne.Info
    ch_names, groups : sequence of str
    noise_cov : (n_channels, n_channels) array
        Projected, in squared data units.

    Returns
    -------
    dict or None
        Rank of group "meg".
    """
    import mne

    is_separated = any(
        "in_order" in record.get("max_info", {}).get("sss_info", {})
        for record in info["proc_history"]
    )
    if not is_separated or "meg" not in groups:
        return None
    members = [i for i, group in enumerate(groups) if group == "meg"]
    names = [ch_names[i] for i in members]
    block = noise_cov[np.ix_(members, members)]
    picked = mne.pick_info(info, _rows(info["ch_names"], names), verbose="ERROR")
    covariance = mne.Covariance(block, names, [], picked["projs"], nfree=1, verbose="ERROR")
    ranks = mne.compute_rank(covariance, rank="info", info=picked, verbose="ERROR")
    documented = sum(ranks.values())
    return {"meg": max(1, min(documented, whitener_of(block)[0].shape[0]))}


def sensor_positions(info, picks):
    """Positions of channels in head coordinates.

    Parameters
    ----------
    info : mne.Info
    picks : (n_channels,) int array

    Returns
    -------
    (n_channels, 3) array or None
        In m; None if some are unknown.
    """
    channels = [info["chs"][i] for i in picks]
    pos = np.array([channel["loc"][:3] for channel in channels], np.float64)
    if not np.all(np.isfinite(pos)) or not np.any(pos):
        return None
    in_device = np.array([int(channel["coord_frame"]) == DEVICE_FRAME for channel in channels])
    if in_device.any():
        if info["dev_head_t"] is None:
            return None
        trans = info["dev_head_t"]["trans"]
        pos[in_device] = pos[in_device] @ trans[:3, :3].T + trans[:3, 3]
    return pos


def _restrict(rows, columns, ch_names):
    """Vectors of one projector on the channels in use, zero where it has none."""
    place = {name: i for i, name in enumerate(columns)}
    restricted = np.zeros((len(rows), len(ch_names)))
    for i, name in enumerate(ch_names):
        if name in place:
            restricted[:, i] = rows[:, place[name]]
    return restricted


def _rows(names, wanted):
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[name] for name in wanted])


def _check_same_sensors(info, forward_info, names):
    grade, forward_grade = (_compensation_grades(i, names) for i in (info, forward_info))
    if grade != forward_grade:
        raise ValueError(
            f"forward has compensation grade {_text(forward_grade)}, but evoked has "
            f"{_text(grade)}; use evoked.apply_gradient_compensation, or compute forward again "
            "from evoked.info."
        )
    trans, forward_trans = info["dev_head_t"], forward_info["dev_head_t"]
    if trans is None or forward_trans is None:
        return
    step = np.linalg.inv(forward_trans["trans"]) @ trans["trans"]
    shift = 1e3 * np.linalg.norm(step[:3, 3])
    angle = np.rad2deg(np.arccos(np.clip((np.trace(step[:3, :3]) - 1) / 2, -1, 1)))
    if shift > 1 or angle > 1:
        raise ValueError(
            f"forward was computed for another head position than that of evoked ({shift:.1f} mm "
            f"and {angle:.1f} degrees away); compute it again with "
            "mne.make_forward_solution(evoked.info, ...)."
        )


def _compensation_grades(info, names):
    # The upper half of a coil type is the grade of the software gradient compensation.
    return {
        int(channel["coil_type"]) >> 16
        for channel in info["chs"]
        if int(channel["kind"]) == MEG_CHANNEL and channel["ch_name"] in names
    }


def _text(grades):
    return ", ".join(str(grade) for grade in sorted(grades)) or "none"
