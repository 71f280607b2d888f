"""How strong the tracks are, over time."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.path import Path
from scipy.stats import norm

from .common import main_direction, new_axes, write_note
from .track_spread import moment_along
from .track_times import (
    LEAST_PROBABILITY,
    cell_edges,
    colour_of,
    life_edges,
    place_of,
    shown_tracks,
)

__all__ = ["direction_of", "plot_moments"]

_N_COLUMNS = 4
_BANDS = ((0.95, 0.22), (0.5, 0.35))  # level, opacity
_RAIL = 0.035  # height of the marks of birth and death above the axis, as a share
# A course is drawn where its track is at least this likely to be alive: what is less likely
# would be invisible, and only stretch the axis.
_LEAST_ALIVE = 0.02


def plot_moments(posterior, *, axes=None, min_probability=LEAST_PROBABILITY):
    """Draw the moment of each track along its main direction, with 50 % and 95 % bands.

    The direction is the first left singular vector of the expected moment (zero where the track
    does not live), signed so that its peak is positive. Course and bands are given that the dipole
    is alive at a sample, and as opaque as that is probable given that the track exists.

    Parameters
    ----------
    posterior : TrackPosterior
    axes : sequence of Axes, optional
        Panels for the first tracks; those left over are switched off.
    min_probability : float
        Tracks less probable than this have no panel.

    Returns
    -------
    (n_panels,) array of Axes
        Moments in nA·m against time in ms. Triangles above the axis are at the median birth
        (upwards) and death (downwards), bars there cover 95 %; a death beyond the window has none.
    """
    tracks = shown_tracks(posterior, min_probability)
    if axes is None:
        n_panels = max(len(tracks), 1)
        n_columns = min(n_panels, _N_COLUMNS)
        axes = new_axes(-(-n_panels // n_columns), n_columns, (3.2, 2.9), sharey=True)
    axes = np.asarray(axes, dtype=object).ravel()
    if not tracks:
        write_note(axes[0], f"no track with probability of at least {min_probability:g}")
    for ax, (number, track) in zip(axes, tracks, strict=False):
        _draw_panel(ax, posterior, number, track)
        ax.set_title(
            f"track {number}, p = {track.probability:.2f}\n{place_of(track)}", fontsize="medium"
        )
        ax.set_xlabel("time (ms)")
    for ax in axes[::_N_COLUMNS]:
        ax.set(xlabel="time (ms)", ylabel="moment (nA·m)")
    if tracks:
        _write_key(axes[0])
    for ax in axes[max(len(tracks), 1) :]:
        ax.set_axis_off()
    return axes


def direction_of(track):
    """Direction that holds most of a track's expected moment: (n_axes,) unit vector."""
    return main_direction(np.nan_to_num(track.moment_mean) * track.prob_alive)


def _draw_panel(ax, posterior, number, track):
    problem, colour = posterior.problem, colour_of(number)
    mean, std = (1e9 * x for x in moment_along(posterior, number - 1, direction_of(track)))
    alive = np.where(np.isfinite(mean), track.prob_alive, 0.0)
    alive = np.where(alive >= _LEAST_ALIVE, alive, 0.0)
    edges = cell_edges(problem.times)
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    ax.set_xlim(edges[0], edges[-1])
    if problem.n_times == 1:
        ax.set_xticks(1e3 * problem.times)
    times = 1e3 * problem.times
    for level, opacity in _BANDS:
        width = norm.ppf(0.5 + level / 2) * std
        _draw_faded_band(ax, times, mean - width, mean + width, alive, colour, opacity)
    _draw_faded_line(ax, times, mean, alive, colour)
    _draw_single_samples(ax, times, mean, std, alive, colour)
    ax.use_sticky_edges = False  # those of the cells would cut the margin
    ax.autoscale_view(scalex=False)
    _mark_life(ax, track, problem.times, colour)


def _draw_faded_band(ax, times, low, high, alive, colour, opacity):
    """A band that is as opaque as its track is alive; gaps where it never is.

    Cells of colour, one for each sample, are cut to the shape of the band: pieces of the band,
    each with an opacity of its own, would show seams.
    """
    shape = ax.fill_between(times, low, high, where=alive > 0, color="none", lw=0)
    paths = shape.get_paths()
    if not paths:
        return
    there = alive > 0
    mesh = ax.pcolormesh(
        cell_edges(1e-3 * times),
        [np.min(low[there]), np.max(high[there])],
        opacity * alive[None],
        cmap=LinearSegmentedColormap.from_list("", [to_rgba(colour, 0.0), to_rgba(colour, 1.0)]),
        vmin=0,
        vmax=1,
    )
    mesh.set_clip_path(Path.make_compound_path(*paths), ax.transData)


def _draw_faded_line(ax, times, mean, alive, colour):
    points = np.stack([times, mean], axis=1)
    pieces = np.flatnonzero((alive[:-1] > 0) & (alive[1:] > 0))
    fade = np.minimum(alive[:-1], alive[1:])[pieces]
    lines = [points[i : i + 2] for i in pieces]
    ax.add_collection(LineCollection(lines, colors=_faded(colour, fade), linewidths=1.5))


def _draw_single_samples(ax, times, mean, std, alive, colour):
    """Samples without a neighbour: points with bars."""
    near = np.concatenate([[0.0], alive, [0.0]])
    for i in np.flatnonzero((alive > 0) & (near[:-2] == 0) & (near[2:] == 0)):
        for level, width in ((0.95, 1.5), (0.5, 4.0)):
            bar = norm.ppf(0.5 + level / 2) * std[i]
            ax.errorbar(
                times[i], mean[i], bar, fmt="o", ms=3, lw=width, color=colour, alpha=alive[i]
            )


def _faded(colour, opacity):
    colours = np.tile(to_rgba(colour), (len(opacity), 1))
    colours[:, 3] = opacity
    return colours


def _mark_life(ax, track, times, colour):
    """Median birth and death with their 95 % intervals, just above the axis."""
    end = cell_edges(times)[-1]
    place = {"transform": ax.get_xaxis_transform(), "color": colour, "clip_on": False}
    for (low, median, high), marker in zip(life_edges(track, times), "^v", strict=True):
        if low < end or marker == "^":
            ax.plot([low, high], [_RAIL, _RAIL], lw=2, solid_capstyle="butt", **place)
        if median < end or marker == "^":
            ax.plot(median, _RAIL, marker, ms=6, mec="white", mew=0.6, **place)


def _write_key(ax):
    ax.text(
        0.98,
        0.98,
        "bands: 50 % and 95 %\nopacity: probability to be alive",
        transform=ax.transAxes,
        fontsize="x-small",
        color="0.4",
        ha="right",
        va="top",
    )
