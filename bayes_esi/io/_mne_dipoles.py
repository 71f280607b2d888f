"""Estimates of dipoles as `mne.Dipole`."""

import numpy as np

from ..core.checks import check_array

__all__ = ["dipoles_to_mne", "sources_to_dipoles", "tracks_to_mne"]


def dipoles_to_mne(problem, estimates):
    """Write dipole estimates as one `mne.Dipole` each.

    Parameters
    ----------
    problem : Problem
    estimates : sequence of DipoleEstimate
        With `pos` (3,) in m, `moment_mean` (3, n_times) in A·m along the axes of head
        coordinates, `probability`, and possibly `gof` (n_times,) in per cent.

    Returns
    -------
    list of mne.Dipole
        At the times of the problem. The goodness of fit is zero where it is not given.

    Raises
    ------
    ValueError
        If a moment does not have three components for each time.
    """
    dipoles = []
    for number, estimate in enumerate(estimates, start=1):
        gof = getattr(estimate, "gof", None)
        dipoles.append(
            _dipole(
                f"dipole {number} (p={estimate.probability:.2f})",
                problem.times,
                np.tile(np.asarray(estimate.pos, np.float64), (problem.n_times, 1)),
                estimate.moment_mean,
                np.zeros(problem.n_times) if gof is None else np.asarray(gof, np.float64),
            )
        )
    return dipoles


def sources_to_dipoles(problem, sources, moments):
    """Write some sources as one `mne.Dipole` each.

    Parameters
    ----------
    problem : Problem
    sources : (n,) int array
    moments : (n, n_orient, n_times) array
        In A·m; of one orientation along the normals.

    Returns
    -------
    list of mne.Dipole
        At the times of the problem. The goodness of fit is zero: it is not given.

    Raises
    ------
    ValueError
        If orientation is fixed and the problem has no normals.
    """
    if moments.shape[1] == 1 and problem.source_normals is not None:
        moments = problem.source_normals[sources][:, :, None] * moments
    pos = np.asarray(problem.source_pos, np.float64)
    none = np.zeros(problem.n_times)
    return [
        _dipole(f"source {j}", problem.times, np.tile(pos[j], (problem.n_times, 1)), moment, none)
        for j, moment in zip(sources, moments, strict=True)
    ]


def tracks_to_mne(problem, tracks):
    """Write tracks as one `mne.Dipole` each, at the samples of their probable lives.

    Parameters
    ----------
    problem : Problem
    tracks : sequence of TrackEstimate

    Returns
    -------
    list of mne.Dipole
        From the first to the last sample at which the dipole is alive with at least half its
        greatest probability to be so. Amplitudes are given that it is alive. A walking dipole is at
        its mean position of each sample. The goodness of fit is zero: it is not given.

    Raises
    ------
    ValueError
        If a moment does not have three components for each time.
    """
    dipoles = []
    for number, track in enumerate(tracks, start=1):
        probable = np.flatnonzero(track.prob_alive >= 0.5 * track.prob_alive.max())
        life = slice(probable[0], probable[-1] + 1)
        # Within a life there may be samples that no draw lives.
        is_seen = track.prob_alive[life] > 0
        moment = np.asarray(track.moment_mean)[:, life]
        path = np.asarray(track.path)[life]
        times = problem.times[life]
        dipoles.append(
            _dipole(
                f"track {number} (p={track.probability:.2f})",
                times,
                np.where(is_seen[:, None], path, track.pos),
                np.where(is_seen, moment, 0.0),
                np.zeros(len(times)),
            )
        )
    return dipoles


def _dipole(name, times, pos, moment, gof):
    """An `mne.Dipole` at positions (n_times, 3) with moments (3, n_times)."""
    import mne

    moment = check_array(
        "moment_mean",
        moment,
        shape=(3, len(times)),
        remedy="A dipole of MNE has an orientation in space; give source_normals to "
        "Problem.from_arrays if orientation is fixed.",
    )
    amplitude = np.linalg.norm(moment, axis=0)
    ori = np.tile(_main_direction(moment), (len(times), 1))
    seen = amplitude > 0
    ori[seen] = moment.T[seen] / amplitude[seen, None]
    return mne.Dipole(
        times=times, pos=pos, amplitude=amplitude, ori=ori, gof=gof, name=name, verbose="ERROR"
    )


def _main_direction(moment):
    """Unit vector along which a moment course is strongest; the first axis if it is zero."""
    if not np.any(moment):
        return np.array([1.0, 0.0, 0.0])
    return np.linalg.svd(moment / np.abs(moment).max(), full_matrices=False)[0][:, 0]
