"""A number at each place, drawn into nilearn's glass brain in MNI space."""

import numpy as np

from ..core.checks import check_array, check_choice
from .common import new_axes
from .cortex import colour_scale, draw_scale, opacity

__all__ = ["plot_glass_brain"]

_VIEWS = ("ortho", "lyrz", "lzry", "x", "y", "z", "l", "r", "xz", "yx", "yz", "lr", "lzr", "lyr")
_LARGEST_BRAIN = 1.0  # m
_DIAMETER = 6.0  # mm of a disc, the spacing of 5,000 sources on the cortex


def plot_glass_brain(
    values,
    mni_pos,
    *,
    ax=None,
    views="lyrz",
    label="expected number of dipoles",
    vmax=None,
    vmin=None,
):
    """Draw values at places of the brain, projected along the axes of MNI space.

    Parameters
    ----------
    values : (n,) array
        Magnitudes are drawn in reds that follow a square root, values with a sign in blue and red
        around zero. The largest lie on top.
    mni_pos : (n, 3) array
        In m in MNI152, such as ``head.to_mni(head.source_pos)``.
    ax : Axes, optional
        Becomes the frame of the projections.
    views : str
        Projections, as nilearn calls them: "l" and "r" show one hemisphere from the side, "x", "y"
        and "z" the whole brain from the side, back and top; "ortho" is x, y and z.
    label : str
        What the values are, with their unit, for the colour bar.
    vmax : float, optional
        Upper end of the colour scale; the largest value if None.
    vmin : float, optional
        Lower end of a linear scale for magnitudes.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If values and places differ in number or are not finite, or places look like mm.
    """
    from nilearn import plotting

    mni_pos = check_array("mni_pos", mni_pos, shape=("n", 3))
    largest = np.max(np.abs(mni_pos))
    if largest > _LARGEST_BRAIN:
        raise ValueError(
            f"mni_pos must be in m, got values up to {largest:.4g}, which look like mm; divide by "
            "1000."
        )
    values = check_array("values", values, shape=(len(mni_pos),), remedy="One for each place.")
    check_choice("views", views, _VIEWS)
    if ax is None:
        ax = new_axes(1, 1, (2.6 * (3 if views == "ortho" else len(views)) + 0.8, 2.6))[0]
    scale = colour_scale(values, vmax, vmin)
    draw_scale(ax, scale, label)
    # nilearn lays its projections over the place that the axes have at this moment.
    ax.figure.draw_without_rendering()
    display = plotting.plot_glass_brain(None, display_mode=views, axes=ax, annotate=False)
    shown = np.flatnonzero(opacity(values, scale) > 0)
    shown = shown[np.argsort(np.abs(values[shown]))]
    if len(shown):
        colours = scale.to_rgba(values[shown])
        colours[:, 3] = 0.3 + 0.7 * opacity(values[shown], scale)
        size = _disc_area(display)
        display.add_markers(1e3 * mni_pos[shown], colours, size, linewidths=0)
    display.annotate(size=9)
    return ax


def _disc_area(display):
    """Area of a disc in points^2, as scatter wants it, from its diameter in mm."""
    frame = next(iter(display.axes.values())).ax
    left, right = frame.transData.transform([(0.0, 0.0), (_DIAMETER, 0.0)])
    return (abs(right[0] - left[0]) * 72 / frame.figure.dpi) ** 2
