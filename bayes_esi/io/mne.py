"""MNE objects in, MNE objects out: nothing else in the package reads or writes them.

Reading picks the channels that all three objects share, applies the recording's projectors and
reference to data, lead field and covariance alike (`_channels`), turns the lead field to head
coordinates (`_source_space`) and leaves whitening to `Problem.from_arrays`.
"""

import numbers

import numpy as np

from ..core.checks import check_array
from ..models.problem import Problem
from ._channels import (
    GROUPS,
    covariance_of,
    known_ranks,
    pick_channels,
    projector,
    sensor_positions,
)
from ._files import read_file
from ._mne_dipoles import dipoles_to_mne, tracks_to_mne
from ._source_space import lead_field_of, sources_of

__all__ = [
    "dipoles_to_mne",
    "from_mne",
    "read_problem_files",
    "source_estimate",
    "tracks_to_mne",
]


def from_mne(evoked, forward, noise_cov, tmin=None, tmax=None):
    """Build a `Problem` from MNE objects.

    Parameters
    ----------
    evoked : mne.Evoked or mne.Epochs
        The recording: MEG, EEG, SEEG, ECoG and DBS channels, together or alone. Epochs are
        averaged.
    forward : mne.Forward
        In head coordinates; surface, volume, discrete or mixed source space; fixed orientation
        (one orientation per source, along its normal) or free (three, in any frame).
    noise_cov : mne.Covariance
        Of single trials, full or diagonal: it is divided by `evoked.nave`. For a covariance that
        already is that of the average, multiply it by `evoked.nave` first.
    tmin, tmax : float, optional
        Window in s, both ends included; by default all samples.

    Returns
    -------
    Problem
        With groups "meg", "eeg", "seeg", "ecog" and "dbs", as far as present, which may have
        noise scales of their own; covariance between groups is dropped. Channels keep the order
        of `evoked`. Bad channels of any of the three objects are left out.

    Raises
    ------
    ValueError
        On objects of another kind, NaN or infinite values, an empty window, objects without
        shared channels, of different compensation grades or head positions, scalp EEG without a
        reference, a covariance that is not positive semidefinite, a forward solution without
        sources or in another coordinate frame.

    Notes
    -----
    All projectors in `evoked.info["projs"]`, active or not, are applied to data, lead field and
    covariance. Scalp EEG is put to average reference whatever its reference was, and rank falls
    by one; for intracranial contacts see `bayes_esi.io._channels.projector`. Noise ranks are the
    numbers of eigenvalues of the projected covariance that are not zero; after Maxwell filtering,
    at most the number of degrees of freedom that it left. Nothing is regularised.

    Cost O(n_channels^3 + n_channels^2 n_sources n_orient).
    """
    evoked = _check_evoked(evoked)
    _check_kind("forward", forward, "Forward", "mne.make_forward_solution")
    _check_kind("noise_cov", noise_cov, "Covariance", "mne.compute_covariance")
    window = _window(evoked.times, evoked.info["sfreq"], tmin, tmax)
    sources = sources_of(forward)
    picks, ch_types = pick_channels(evoked, forward, noise_cov)
    ch_names = tuple(evoked.ch_names[i] for i in picks)
    groups = tuple(GROUPS[kind] for kind in ch_types)

    data = check_array("evoked", np.asarray(evoked.data, np.float64)[picks][:, window])
    operator = projector(evoked.info, ch_names, ch_types)
    lead_field = np.tensordot(operator, lead_field_of(forward, ch_names), axes=1)
    noise_cov = operator @ covariance_of(noise_cov, ch_names) @ operator.T / evoked.nave
    noise_cov = 0.5 * (noise_cov + noise_cov.T)
    return Problem.from_arrays(
        operator @ data,
        lead_field,
        sources.pos,
        noise_cov,
        sources.normals,
        sources.adjacency,
        np.asarray(evoked.times[window], np.float64),
        source_volume=sources.volume,
        ch_names=ch_names,
        ch_types=ch_types,
        noise_groups=groups,
        noise_ranks=known_ranks(evoked.info, ch_names, groups, noise_cov),
        sensor_pos=sensor_positions(evoked.info, picks),
        source_vertices=sources.vertices,
        source_block=sources.block,
        block_kinds=sources.block_kinds,
        subject=sources.subject,
    )


def read_problem_files(evoked_path, forward_path, noise_cov_path, condition=None):
    """Read the three objects of `from_mne` from FIF files.

    Parameters
    ----------
    evoked_path, forward_path, noise_cov_path : path-like
    condition : int or str, optional
        Number or name of the response in `evoked_path`; by default the first.

    Returns
    -------
    evoked : mne.Evoked
        With its baseline and its projectors as they are in the file.
    forward : mne.Forward
    noise_cov : mne.Covariance

    Raises
    ------
    ValueError
        If a file is missing or cannot be read, or there is no such condition.
    """
    import mne

    evokeds = read_file("evoked", evoked_path, mne.read_evokeds, proj=False)
    evoked = _choose(evokeds, condition)
    forward = read_file("forward", forward_path, mne.read_forward_solution)
    noise_cov = read_file("noise_cov", noise_cov_path, mne.read_cov)
    return evoked, forward, noise_cov


def source_estimate(problem, values):
    """Write values of sources, of sources and times, or vectors of these, as a source estimate.

    Parameters
    ----------
    problem : Problem
    values : (n_sources,), (n_sources, n_times) or (n_sources, n_axes, n_times) array
        In any unit; `n_axes` is 1, or 3 for vectors along the axes of space. One column alone
        stands at the first time.

    Returns
    -------
    mne.SourceEstimate, mne.VolSourceEstimate or mne.MixedSourceEstimate
        For sources on surfaces, in volumes (or at discrete places), or both; of vectors
        `mne.VectorSourceEstimate` and its siblings.

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    import mne

    values = check_array("values", values)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 3 and values.shape[1] == 1:
        values = values[:, 0]
    is_vector = values.ndim == 3 and values.shape[1] == 3
    if len(values) != problem.n_sources or not (is_vector or values.ndim == 2):
        raise ValueError(
            f"values must have shape ({problem.n_sources},), ({problem.n_sources}, n_times) or "
            f"({problem.n_sources}, 1 or 3, n_times), got {values.shape}."
        )
    if values.shape[-1] not in (1, problem.n_times):
        raise ValueError(
            f"values must have one column or one for each of {problem.n_times} times, "
            f"got {values.shape[-1]}."
        )
    kinds, block = problem.block_kinds, problem.source_block
    surfaces = [i for side in ("lh", "rh") for i, kind in enumerate(kinds) if kind == side]
    volumes = [i for i, kind in enumerate(kinds) if kind not in ("lh", "rh")]
    parts = [np.flatnonzero(block == i) for i in volumes]
    if surfaces:
        sides = [[i for i in surfaces if kinds[i] == side] for side in ("lh", "rh")]
        parts = [np.flatnonzero(np.isin(block, side)) for side in sides] + parts
    # MNE wants increasing vertices.
    parts = [part[np.argsort(problem.source_vertices[part])] for part in parts]
    kind = "Mixed" if surfaces and volumes else "Vol" if volumes else ""
    make = getattr(mne, f"{kind}{'Vector' if is_vector else ''}SourceEstimate")
    times = problem.times
    return make(
        values[np.concatenate(parts)],
        vertices=[problem.source_vertices[part] for part in parts],
        tmin=float(times[0]),
        tstep=float(np.mean(np.diff(times))) if len(times) > 1 else 1.0,
        subject=problem.subject,
        verbose="ERROR",
    )


def _check_evoked(evoked):
    import mne

    if isinstance(evoked, mne.BaseEpochs):
        with mne.utils.use_log_level("ERROR"):
            epochs = evoked.copy().load_data()
            if len(epochs) == 0:
                raise ValueError("evoked is an mne.Epochs without good epochs to average.")
            evoked = epochs.average()
    if not isinstance(evoked, mne.Evoked):
        raise ValueError(
            f"evoked must be an mne.Evoked or mne.Epochs, got {_kind_of(evoked)}; choose one of "
            "mne.read_evokeds, or average epochs."
        )
    if evoked.kind != "average":
        raise ValueError(f"evoked must be an average, but its kind is {evoked.kind!r}.")
    if not evoked.nave > 0:
        raise ValueError(
            f"evoked.nave must be the positive number of averaged trials, got {evoked.nave}."
        )
    return evoked


def _check_kind(argument, value, class_name, maker):
    import mne

    if not isinstance(value, getattr(mne, class_name)):
        raise ValueError(
            f"{argument} must be an mne.{class_name}, got {_kind_of(value)}; make it with {maker}."
        )


def _kind_of(value):
    return type(value).__name__


def _window(times, sfreq, tmin, tmax):
    """Mask of the samples from the one nearest to `tmin` to the one nearest to `tmax`."""
    first, last = float(times[0]), float(times[-1])
    limits = {"tmin": first if tmin is None else tmin, "tmax": last if tmax is None else tmax}
    for name, value in limits.items():
        if not isinstance(value, numbers.Real) or not np.isfinite(value):
            raise ValueError(f"{name} must be a finite time in s, got {value!r}.")
        if not first - 0.5 / sfreq <= value <= last + 0.5 / sfreq:
            raise ValueError(
                f"{name} = {value:g} s lies outside of the recording, which lasts from "
                f"{first:g} to {last:g} s."
            )
    tmin, tmax = limits["tmin"], limits["tmax"]
    if tmin > tmax:
        raise ValueError(
            f"tmin must not exceed tmax, got {tmin:g} s and {tmax:g} s: the window is empty."
        )
    slack = 1e-3 / sfreq
    if not np.any((times >= tmin - slack) & (times <= tmax + slack)):
        raise ValueError(
            f"the window from tmin = {tmin:g} s to tmax = {tmax:g} s is empty: it lies between "
            f"two samples, which are {1 / sfreq:g} s apart."
        )
    # The samples nearest to both ends belong to the window, as in `mne.Evoked.crop`.
    first, last = (round(value * sfreq) / sfreq for value in (tmin, tmax))
    return (times >= first - 0.5 / sfreq) & (times <= last + 0.5 / sfreq)


def _choose(evokeds, condition):
    names = [evoked.comment for evoked in evokeds]
    if isinstance(condition, str) and condition in names:
        return evokeds[names.index(condition)]
    number = 0 if condition is None else condition
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if isinstance(number, int | np.integer) and 0 <= number < len(evokeds):
        return evokeds[number]
    listed = ", ".join(f"{i}: {name!r}" for i, name in enumerate(names))
    raise ValueError(f"condition must be one of {listed}; got {condition!r}.")
