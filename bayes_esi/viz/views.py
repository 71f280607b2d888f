"""A value at each source in three projections: from the side, from the back and from the top."""

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.patheffects import withStroke

from ..sources.adjacency import source_spacing
from .common import take_axes

__all__ = ["VIEWS", "draw_views", "take_views", "write_number"]

# Title: the two axes of space that span the plane.
VIEWS = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}
_AXIS_LABELS = ("x, right (mm)", "y, front (mm)", "z, up (mm)")
_MARGIN = 25.0  # mm around the sources
# Values below this share of the peak are left out: they would only tint the grid.
_LEAST = 1e-3


def take_views(axes, n_rows=1):
    """Axes for `n_rows` of three views, opened or checked: (n_rows, 3) array."""
    taken = take_axes(axes, 3 * n_rows, 3, (4.1, 3.9), "one for each view")
    return taken.reshape(n_rows, 3)


def draw_views(axes, problem, values, norm, label, cmap="Reds", views=VIEWS):
    """Draw a value at each source as a disc, with the grid and the sensors below.

    Where sources hide each other the one of largest magnitude is on top. All views have one
    scale; sensors far outside are cut off, because sources need the space.

    Parameters
    ----------
    axes : sequence of Axes
        One for each view.
    problem : Problem
        Positions in head coordinates, in m.
    values : (n_sources,) array
    norm : matplotlib.colors.Normalize
    label : str
        Of the colour bar, with the unit; "" for no bar.
    cmap : str
    views : dict
        Some of `VIEWS`.
    """
    pos = 1e3 * problem.source_pos
    diameter = np.clip(1e3 * source_spacing(problem.source_pos), 2.0, 10.0)
    dot = np.clip(2000 / len(pos), 0.8, 6.0)
    size = np.abs(values)
    shown = np.flatnonzero(size > _LEAST * size.max())
    shown = shown[np.argsort(size[shown])]
    low, high = pos.min(axis=0), pos.max(axis=0)
    centre, half = (low + high) / 2, np.max(high - low) / 2 + _MARGIN
    for ax, (view, plane) in zip(axes, views.items(), strict=True):
        plane = list(plane)
        _draw_sensors(ax, problem, plane)
        ax.scatter(*pos[:, plane].T, s=dot, color="0.87", linewidths=0)
        width = np.full(len(shown), diameter)
        discs = EllipseCollection(
            width,
            width,
            np.zeros(len(shown)),
            units="xy",
            offsets=pos[shown][:, plane],
            offset_transform=ax.transData,
            cmap=cmap,
            norm=norm,
            linewidths=0,
        )
        discs.set_array(values[shown])
        ax.add_collection(discs)
        ax.set_aspect("equal")
        for axis, name in zip(plane, "xy", strict=True):
            limits = (centre[axis] - half, centre[axis] + half)
            ax.set(**{f"{name}lim": limits, f"{name}label": _AXIS_LABELS[axis]})
        ax.set_title(view)
    if label:
        bar = axes[-1].figure.colorbar(discs, ax=list(axes), shrink=0.7, pad=0.01)
        bar.set_label(label)


def write_number(ax, number, centre, away, colour):
    """Write a number beside a place of a view, off in the direction `away`."""
    length = np.linalg.norm(away)
    away = away / length if length > 1e-6 else np.array([0.0, 1.0])
    ax.annotate(
        str(number),
        centre,
        xytext=10 * away,
        textcoords="offset points",
        ha="center",
        va="center",
        color=colour,
        weight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _draw_sensors(ax, problem, plane):
    if problem.sensor_pos is None:
        return
    pos = np.unique(np.round(1e3 * problem.sensor_pos, 1), axis=0)  # one marker for a coil triplet
    ax.scatter(
        *pos[:, plane].T, s=9, marker="o", facecolors="none", edgecolors="0.75", linewidths=0.5
    )
