"""Where the dipoles are at some times: three projections of the intensity for each."""

import dataclasses

import numpy as np
from matplotlib.colors import PowerNorm

from ..core.checks import check_array
from .common import write_key
from .intensity import draw_dipole
from .track_times import LEAST_PROBABILITY, is_filtered, shown_tracks
from .views import VIEWS, draw_views, take_views

__all__ = ["at_sample", "chosen_samples", "intensity_at", "plot_intensity"]

_N_TIMES = 4  # rows, unless others are asked for
_LABEL = "expected number of dipoles"


def plot_intensity(posterior, *, axes=None, times=None, min_probability=LEAST_PROBABILITY):
    """Draw the expected number of dipoles at each source at some times, from three sides.

    Each track that is likely to be alive has its number, an ellipse that holds its projected
    position with 95 % probability (Gaussian; of a dipole that walks as wide as over its life), and
    a line along its mean moment, which is short where the moment points at the viewer.

    Parameters
    ----------
    posterior : TrackPosterior
        Positions in head coordinates, in m.
    axes : sequence of Axes, optional
        Three for each time.
    times : array of float or "mean", optional
        In s, each taken to the nearest sample; "mean": one row, averaged over the window. By
        default the peaks of the four most probable tracks, or four times evenly spaced.
    min_probability : float
        Tracks less likely to be alive than this are not marked.

    Returns
    -------
    (3 n_times,) array of Axes
        Sagittal, coronal and axial view, in mm, row by row. All have one colour scale; it follows
        a square root, so that a dipole spread over many sources stays visible.

    Raises
    ------
    ValueError
        If a time lies outside the window, or the axes are not three for each time.
    """
    problem = posterior.problem
    is_mean = isinstance(times, str) and times == "mean"
    samples = [None] if is_mean else list(chosen_samples(posterior, times, min_probability))
    rows = take_views(axes, len(samples))
    values = [intensity_at(posterior, sample) for sample in samples]
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(v.max()) for v in values) or 1.0)
    tracks = shown_tracks(posterior, min_probability)
    middle = np.mean([1e3 * track.pos for _, track in tracks], axis=0) if tracks else np.zeros(3)
    for row, sample, value in zip(rows, samples, values, strict=True):
        draw_views(row, problem, value, scale, "")
        marked = [
            (number, alive)
            for number, track in tracks
            if (alive := at_sample(track, sample)).probability >= min_probability
        ]
        for ax, plane in zip(row, VIEWS.values(), strict=True):
            for number, track in marked:
                draw_dipole(ax, number, track, list(plane), middle)
        title = "mean over the window" if is_mean else f"{1e3 * problem.times[sample]:z.0f} ms"
        row[0].set_title(f"{title}\nsagittal" if is_mean else f"{title}: sagittal")
        if not np.any(value):
            row[1].text(0.5, 0.5, "no dipole", transform=row[1].transAxes, ha="center", color="0.4")
    bar = rows[0, 0].figure.colorbar(
        rows[0, -1].collections[-1], ax=list(rows.ravel()), shrink=0.7 / len(rows) ** 0.5, pad=0.01
    )
    told = ", given the data so far" if is_filtered(posterior) else ""
    bar.set_label(f"{_LABEL}{told}")
    if tracks:
        write_key(rows[0, 0], "ellipse: 95 % of the position")
    return rows.ravel()


def intensity_at(posterior, sample=None):
    """Expected number of dipoles at each source at a sample, by default its mean over samples."""
    if sample is None:
        return np.asarray(posterior.intensity, np.float64).mean(axis=0)
    return np.asarray(posterior.intensity[sample], np.float64)


def chosen_samples(posterior, times=None, min_probability=LEAST_PROBABILITY):
    """Numbers of the samples that figures show.

    Parameters
    ----------
    posterior : TrackPosterior
    times : float or array of float, optional
        In s; by default the peaks of the four most probable tracks, in order of time; without any
        track four samples evenly spaced.
    min_probability : float

    Returns
    -------
    (n,) int array

    Raises
    ------
    ValueError
        If a time is not a number within the window.
    """
    known = posterior.problem.times
    if times is not None:
        wanted = np.atleast_1d(np.asarray(times))
        wanted = check_array("times", wanted, ndim=1, remedy="They are in s.")
        nearest = np.argmin(np.abs(known[:, None] - wanted), axis=0)
        step = np.diff(known).mean() if len(known) > 1 else np.inf
        is_off = np.abs(known[nearest] - wanted) > step
        if is_off.any():
            raise ValueError(
                f"times must lie between {known[0]:g} and {known[-1]:g} s, got "
                f"{wanted[is_off][0]:g}; they are in s."
            )
        return nearest
    tracks = [track for _, track in shown_tracks(posterior, min_probability)]
    tracks = sorted(tracks, key=lambda track: -track.probability)[:_N_TIMES]
    if not tracks:
        n_shown = min(_N_TIMES, len(known))
        return ((np.arange(n_shown) + 0.5) / n_shown * len(known)).astype(int)
    return np.unique([_peak(track) for track in tracks])


def _peak(track):
    """Sample where a track's expected moment, counted as zero where it does not live, peaks."""
    amplitude = np.linalg.norm(np.nan_to_num(track.moment_mean), axis=0)
    return int(np.argmax(track.prob_alive * amplitude))


def at_sample(track, sample):
    """The track as a dipole at a sample: probable as it is alive, with its moment and place there.

    Without a sample: at its peak, and where it is over its life.
    """
    if sample is None:
        moment = np.nan_to_num(track.moment_mean[:, [_peak(track)]])
        return dataclasses.replace(track, moment_mean=moment)
    pos = track.path[sample]
    return dataclasses.replace(
        track,
        probability=track.probability * float(track.prob_alive[sample]),
        pos=np.where(np.isfinite(pos), pos, track.pos),
        moment_mean=np.nan_to_num(track.moment_mean[:, [sample]]),
    )
