"""How far the estimate of distributed sources smears and shifts a single source."""

import numpy as np
from matplotlib.colors import Normalize

from .common import COLOURS, take_axes
from .source_courses import chosen_sources
from .views import VIEWS, draw_views

__all__ = ["plot_resolution"]

_METRICS = {  # column: label
    "peak_error_mm": "peak localisation error (mm)",
    "spatial_deviation_mm": "spatial deviation (mm)",
}
_TOP = {"axial": VIEWS["axial"]}
_N_SPREADS = 3
_N_BINS = 12


def plot_resolution(posterior, *, axes=None, sources=None, course="sustained"):
    """Draw point spreads of three sources, and the errors of all sources against depth.

    Parameters
    ----------
    posterior : SourcePosterior
    axes : sequence of six Axes, optional
    sources : int array, optional
        Up to three whose point spread is drawn; by default a shallow one, a middle one and a deep
        one.
    course : str
        See `SourcePosterior.resolution`.

    Returns
    -------
    (6,) array of Axes
        Point spreads from the top, relative to their peak, with a cross where the source is; the
        same against the distance from the source; peak localisation error and spatial deviation
        of the point spread of all sources against depth, with medians and the middle 50 % and
        95 % of sources of like depth.
    """
    axes = take_axes(axes, 2 * _N_SPREADS, _N_SPREADS, (4.1, 3.9), "three maps and three curves")
    problem = posterior.problem
    resolution = posterior.resolution(course)
    depth, depth_label = _depth(problem)
    if sources is None:
        sources = _at_depths(depth)
    sources = chosen_sources(posterior, sources)[:_N_SPREADS]
    maps, curves = axes[:_N_SPREADS], axes[_N_SPREADS:]
    for number, (ax, source) in enumerate(zip(maps, sources, strict=False)):
        spread = _magnitude(resolution.point_spread(int(source)))
        colour = COLOURS[number]
        is_last = number == len(sources) - 1
        label = "point spread / its peak" if is_last else ""
        draw_views([ax], problem, spread, Normalize(0.0, 1.0), label, views=_TOP)
        x, y, z = 1e3 * problem.source_pos[source]
        ax.plot(x, y, "x", ms=9, mew=2, color=colour)
        title = f"source {source}, ({x:.0f}, {y:.0f}, {z:.0f}) mm, from the top"
        ax.set_title(title, fontsize="medium", color=colour)
        distance = 1e3 * np.linalg.norm(problem.source_pos - problem.source_pos[source], axis=1)
        curves[0].plot(distance, spread, ".", ms=2.5, color=colour, alpha=0.6)
    for ax in maps[len(sources) :]:
        ax.set_axis_off()
    curves[0].set(
        xlabel="distance from the source (mm)", ylabel="point spread / its peak", ylim=(0, 1.05)
    )
    metrics = resolution.metrics()
    for ax, (column, label) in zip(curves[1:], _METRICS.items(), strict=True):
        _draw_by_depth(ax, depth, metrics[column].to_numpy())
        ax.set(xlabel=depth_label, ylabel=label)
        ax.set_ylim(bottom=0)
    curves[1].set_title("median, 50 % and 95 % of sources", fontsize="medium")
    return axes


def _depth(problem):
    """Depth of each source in mm, and what it is."""
    pos = problem.source_pos
    if problem.sensor_pos is not None:
        from scipy.spatial import cKDTree

        return 1e3 * cKDTree(problem.sensor_pos).query(pos)[0], "distance to a sensor (mm)"
    radius = np.linalg.norm(pos - pos.mean(axis=0), axis=1)
    return 1e3 * (radius.max() - radius), "depth below the outermost source (mm)"


def _at_depths(depth):
    order = np.argsort(depth, kind="stable")
    ranks = np.unique(np.round(np.array([0.05, 0.5, 0.95]) * (len(depth) - 1)).astype(int))
    return order[ranks]


def _magnitude(spread):
    spread = np.asarray(spread, np.float64)
    size = np.abs(spread) if spread.ndim == 1 else np.linalg.norm(spread, axis=1)
    return size / (size.max() or 1.0)


def _draw_by_depth(ax, depth, values):
    is_seen = np.isfinite(values)
    depth, values = depth[is_seen], values[is_seen]
    ax.plot(depth, values, ".", ms=2, color="0.75", zorder=0)
    edges = np.quantile(depth, np.linspace(0, 1, min(_N_BINS, max(len(depth) // 10, 1)) + 1))
    member = np.clip(np.searchsorted(edges, depth, side="right") - 1, 0, len(edges) - 2)
    bins = [b for b in range(len(edges) - 1) if np.any(member == b)]
    x = np.array([depth[member == b].mean() for b in bins])
    levels = (0.025, 0.25, 0.5, 0.75, 0.975)
    q = np.array([np.quantile(values[member == b], levels) for b in bins]).T
    ax.fill_between(x, q[0], q[4], color=COLOURS[0], alpha=0.2, lw=0)
    ax.fill_between(x, q[1], q[3], color=COLOURS[0], alpha=0.35, lw=0)
    ax.plot(x, q[2], color=COLOURS[0], lw=1.5, marker="o" if len(x) == 1 else None)
