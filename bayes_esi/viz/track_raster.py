"""When the tracks live: a bar for each, with the uncertainty of its birth and its death."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.ticker import MaxNLocator

from .common import new_axes, write_note
from .track_times import (
    LEAST_PROBABILITY,
    cell_edges,
    colour_of,
    life_edges,
    place_of,
    shown_tracks,
)

__all__ = ["plot_raster"]

_HALF = 0.3  # of a bar's height, in rows
_OFFSET = 0.12  # of the whiskers from the middle of the bar, in rows
_MARGIN = 0.75  # rows below the last bar, for the key
_KEY = "opacity: probability to be alive · frame: median · whiskers: 95 % of birth and death"
_POWER_ROWS = 1.3  # height of the field above the rows
_POWER_SHARE = 0.28  # at most, of the rows' height


def plot_raster(posterior, *, ax=None, min_probability=LEAST_PROBABILITY):
    """Draw each track as a bar over time, below the power of the data.

    A bar is as opaque as it is probable that the track exists and is alive at that sample. Its
    frame reaches from the median birth to the median death (dashed where the track is less
    probable than not), and a whisker for each of the two, the upper one for the birth, covers
    95 %, given that the track exists. The frame of a track that outlives the window is open, and a
    whisker that reaches beyond it is an arrow.

    Parameters
    ----------
    posterior : TrackPosterior
    ax : Axes, optional
        The power of the data is put above it.
    min_probability : float
        Tracks less probable than this have no bar.

    Returns
    -------
    Axes
        Rows in the order of ``posterior.tracks()`` against time in ms. Its child axes hold the
        root mean square over whitened channels, of which noise at the given level has 1.
    """
    tracks = shown_tracks(posterior, min_probability)
    n_rows = max(len(tracks), 1)
    if ax is None:
        ax = new_axes(1, 1, (8.0, 2.2 + 0.5 * n_rows))[0]
    times = posterior.problem.times
    edges = cell_edges(times)
    for row, (number, track) in enumerate(tracks):
        _draw_track(ax, row, number, track, times)
    # A mesh sets limits of its own.
    ax.set(xlim=(edges[0], edges[-1]), ylim=(n_rows - 0.5 + _MARGIN, -0.5))
    ax.set_yticks(
        range(len(tracks)),
        [f"{number}: p = {t.probability:.2f}\n{place_of(t)}" for number, t in tracks],
        fontsize="small",
    )
    for label, (number, _) in zip(ax.get_yticklabels(), tracks, strict=True):
        label.set_color(colour_of(number))
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if not tracks:
        write_note(ax, f"no track with probability of at least {min_probability:g}")
        ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlabel("time (ms)")
    ax.set_ylabel("track")
    n_left = len(posterior.tracks()) - len(tracks)
    key = [_KEY] if tracks else []
    key += [f"not drawn: {n_left} below p = {min_probability:g}"] if n_left else []
    key = " · ".join(key)
    ax.text(0.01, 0.02, key, transform=ax.transAxes, fontsize="x-small", color="0.4")
    share = min(_POWER_ROWS / (n_rows + _MARGIN), _POWER_SHARE)
    _draw_power(ax.inset_axes([0, 1.03, 1, share], sharex=ax), posterior.problem)
    return ax


def _draw_track(ax, row, number, track, times):
    colour, edges = colour_of(number), cell_edges(times)
    fade = LinearSegmentedColormap.from_list("", [to_rgba(colour, 0.0), to_rgba(colour, 0.9)])
    ax.pcolormesh(
        edges,
        [row - _HALF, row + _HALF],
        track.probability * track.prob_alive[None],
        cmap=fade,
        vmin=0,
        vmax=1,
    )
    birth, death = life_edges(track, times)
    top, bottom = row - _HALF, row + _HALF
    x = [death[1], birth[1], birth[1], death[1]]
    y = [top, top, bottom, bottom]
    outlives = death[1] == edges[-1]
    if not outlives:
        x, y = [*x, x[0]], [*y, y[0]]
    dash = "-" if track.probability >= 0.5 else (0, (4, 2))
    ax.plot(x, y, color=colour, lw=1.4, ls=dash, solid_joinstyle="miter", clip_on=False)
    # One above the other, because the latest birth may follow the earliest death.
    _draw_whisker(ax, row - _OFFSET, birth[0], birth[2], is_open=False)
    _draw_whisker(ax, row + _OFFSET, death[0], death[2], is_open=death[2] == edges[-1])


def _draw_whisker(ax, height, low, high, is_open):
    """A 95 % interval; an arrow where it reaches beyond the window."""
    ax.plot([low, high], [height, height], color="0.1", lw=1.1, clip_on=False)
    caps = [low] if is_open else [low, high]
    if low < high or not is_open:
        ax.plot(caps, [height] * len(caps), "|", color="0.1", ms=6, mew=1.1, clip_on=False)
    if is_open:
        ax.plot(high, height, ">", color="0.1", ms=5, clip_on=False)


def _draw_power(ax, problem):
    times = 1e3 * problem.times
    power = np.sqrt(np.mean(np.asarray(problem.data) ** 2, axis=0))
    if len(times) == 1:
        ax.bar(times, power, color="0.75", width=np.ptp(cell_edges(problem.times)))
    else:
        ax.fill_between(times, power, color="0.85", lw=0)
        ax.plot(times, power, color="0.35", lw=1)
    ax.axhline(1, color="0.35", lw=0.8, ls=":")
    ax.set_ylim(0, 1.08 * max(power.max(), 1))
    ax.set_ylabel("field, rms\n(whitened)", fontsize="small", rotation=0, ha="right", va="center")
    ax.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    ax.tick_params(axis="y", labelsize="x-small")
    ax.tick_params(axis="x", labelbottom=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
