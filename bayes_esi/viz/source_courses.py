"""How strong distributed sources are, over time."""

import numpy as np

from ..core.checks import check_choice
from .common import COLOURS, draw_band, main_direction, new_axes, write_key, write_note

__all__ = ["chosen_sources", "draw_missing", "plot_courses"]

_N_SOURCES = 4
_N_COLUMNS = 4
_AXES = ("x, right", "y, front", "z, up")


def plot_courses(posterior, *, axes=None, sources=None, along="main"):
    """Draw moments over time with 50 % and 95 % bands, a panel for each source.

    Parameters
    ----------
    posterior : SourcePosterior
    axes : sequence of Axes, optional
        Panels for the first sources; those left over are switched off.
    sources : int array, optional
        By default the four that stand out most.
    along : str
        "main": the direction that holds most of the mean course, signed so that its peak is
        positive; of one orientation that orientation, with its sign. "axes": the axes of space.

    Returns
    -------
    (n_panels,) array of Axes
        Moments in nA·m against time in ms. Bands are those of single samples, not of whole
        courses; samples that were left out are grey.

    Raises
    ------
    ValueError
        If a source does not exist, or `along` is unknown.
    """
    check_choice("along", along, ("main", "axes"))
    sources = chosen_sources(posterior, sources)
    if axes is None:
        n_panels = max(len(sources), 1)
        n_columns = min(n_panels, _N_COLUMNS)
        axes = new_axes(-(-n_panels // n_columns), n_columns, (3.2, 2.9), sharey=True)
    axes = np.asarray(axes, dtype=object).ravel()
    sources = sources[: len(axes)]
    n_axes = posterior.mean.shape[1]
    by_axis = along == "axes" and n_axes == 3
    if by_axis:
        mean, std = posterior.mean[sources], posterior.std[sources]
    else:
        is_one = n_axes == 1
        directions = np.array(
            [[1.0] if is_one else main_direction(posterior.mean[j]) for j in sources]
        ).reshape(len(sources), n_axes)
        mean, std = (v[:, None] for v in posterior.answers.along(sources, directions))
    times = 1e3 * posterior.problem.times
    for number, (ax, source) in enumerate(zip(axes, sources, strict=False)):
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)
        draw_missing(ax, times, posterior.observed)
        for axis, (course, deviation) in enumerate(zip(mean[number], std[number], strict=True)):
            colour = COLOURS[(axis if by_axis else number) % len(COLOURS)]
            draw_band(ax, times, 1e9 * course, 1e9 * deviation, colour)
            if by_axis and number == 0:
                ax.plot([], [], color=colour, label=_AXES[axis])
        x, y, z = 1e3 * posterior.problem.source_pos[source]
        ax.set_title(f"{number + 1}: ({x:.0f}, {y:.0f}, {z:.0f}) mm", fontsize="medium")
        ax.set_xlabel("time (ms)")
    for ax in axes[::_N_COLUMNS]:
        ax.set(xlabel="time (ms)", ylabel="moment (nA·m)")
    for ax in axes[max(len(sources), 1) :]:
        ax.set_axis_off()
    if not len(sources):
        write_note(axes[0], "no source stands out")
        return axes
    write_key(axes[0], "bands: 50 % and 95 %")
    if by_axis:
        axes[0].legend(frameon=False, fontsize="small")
    return axes


def chosen_sources(posterior, sources=None):
    """Numbers of the sources that figures tell of; by default the four that stand out most.

    Raises
    ------
    ValueError
        If there is no such source.
    """
    if sources is None:
        return posterior.peaks[:_N_SOURCES]
    n_sources = posterior.problem.n_sources
    sources = np.atleast_1d(np.asarray(sources))
    is_index = sources.ndim == 1 and sources.size and sources.dtype.kind in "iu"
    if not is_index or sources.min() < 0 or sources.max() >= n_sources:
        raise ValueError(
            f"sources must be numbers of sources from 0 to {n_sources - 1}, got {sources.tolist()}."
        )
    return sources


def draw_missing(ax, times, observed):
    """Shade the samples that were left out."""
    step = np.diff(times).mean() if len(times) > 1 else 1.0
    edges = np.diff(np.concatenate([[0], ~observed, [0]]).astype(int))
    starts, stops = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0) - 1
    for start, stop in zip(starts, stops, strict=True):
        ax.axvspan(times[start] - step / 2, times[stop] + step / 2, color="0.93", lw=0, zorder=-1)
