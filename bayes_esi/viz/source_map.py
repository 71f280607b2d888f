"""Where distributed sources are, and how sure that is: three projections of a quantity."""

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from .common import COLOURS
from .quantities import at_sample, norm_of, rows_of, sample_of
from .source_courses import chosen_sources
from .views import VIEWS, draw_views, take_views, write_number

__all__ = ["plot_map", "plot_power"]

_EDGE = [withStroke(linewidth=2.5, foreground="white")]


def plot_map(posterior, *, axes=None, quantity="mean", time=None, sources=None):
    """Draw a quantity at each source, seen from the side, back and top.

    Parameters
    ----------
    posterior : SourcePosterior
        Positions in head coordinates, in m.
    axes : sequence of Axes, optional
        Six for "mean", which has its standard deviation below it; else three.
    quantity : str
        "mean", "std", "ratio" (mean over standard deviation), "dSPM", "sLORETA", "eLORETA", or of
        draws of active sources "inclusion", the probability of being active in the whole window.
        Signed for one orientation, else magnitudes; deviations add squares over axes.
    time : float, optional
        In s; by default the peak of the source that stands out most.
    sources : int array, optional
        Numbered, in this order; by default those of `plot_courses`.

    Returns
    -------
    (3,) or (6,) array of Axes
        Sagittal, coronal and axial view, in mm. Each row has a colour scale of its own.

    Raises
    ------
    ValueError
        On another quantity, a time outside the window, or a wrong number of axes.
    """
    rows = rows_of(quantity)
    axes = take_views(axes, len(rows))
    sample = sample_of(posterior, time)
    problem = posterior.problem
    for row, name in zip(axes, rows, strict=True):
        values, label = at_sample(posterior, name, sample)
        norm, cmap = norm_of(name, values)
        draw_views(row, problem, values, norm, label, cmap)
    marked = chosen_sources(posterior, sources)
    pos = 1e3 * problem.source_pos[marked]
    middle = 1e3 * problem.source_pos.mean(axis=0)
    for ax, plane in zip(axes[0], VIEWS.values(), strict=True):
        plane = list(plane)
        for number, place in enumerate(pos, start=1):
            colour = COLOURS[(number - 1) % len(COLOURS)]
            ax.plot(*place[plane], "o", ms=7, mfc="none", mec=colour, path_effects=_EDGE)
            write_number(ax, number, place[plane], (place - middle)[plane], colour)
    return axes.ravel()


def plot_power(source_map, *, axes=None):
    """Draw the power of a source map, seen from the side, back and top.

    Parameters
    ----------
    source_map : SourceMap
    axes : sequence of Axes, optional
        Three.

    Returns
    -------
    (3,) array of Axes
    """
    axes = take_views(axes, 1)
    values = np.asarray(source_map.power, np.float64)
    norm = Normalize(0, values.max())
    draw_views(axes[0], source_map.problem, values, norm, f"{source_map.name} (no uncertainty)")
    return axes.ravel()
