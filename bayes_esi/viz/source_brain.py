"""Figures of distributed sources on the average brain: on its cortex, in the glass brain."""

from .brain_places import on_cortex, to_mni
from .common import take_axes
from .cortex import plot_cortex as draw_cortex
from .glass_brain import plot_glass_brain as draw_glass_brain
from .quantities import at_sample, lower_end, rows_of, sample_of

__all__ = ["plot_cortex", "plot_glass_brain"]


def plot_cortex(posterior, *, head, axes=None, quantity="mean", time=None, surface="inflated"):
    """Draw a quantity on the cortex of the average head.

    Parameters
    ----------
    posterior : SourcePosterior
        Of sources on the cortex of the average head, all of them or a part.
    head : TemplateHead
    axes : sequence of Axes, optional
        Eight for "mean", which has its standard deviation below it; else four.
    quantity, time
        As in `plot_map`.
    surface : "inflated", "pial" or "white"

    Returns
    -------
    (4,) or (8,) array of Axes

    Raises
    ------
    ValueError
        If the sources are not those of the average head, and as in `plot_map`.
    """
    rows = rows_of(quantity)
    problem, sample = posterior.problem, sample_of(posterior, time)
    shown = []
    for name in rows:
        values, label = at_sample(posterior, name, sample)
        shown.append((on_cortex(problem, values, head, instead="map"), label))
    axes = take_axes(axes, 4 * len(rows), 4, (2.9, 2.3), "one for each view")
    for row, name, (values, label) in zip(axes.reshape(-1, 4), rows, shown, strict=True):
        low = lower_end(name, values)
        draw_cortex(values, head, axes=row, surface=surface, label=label, vmin=low)
    return axes


def plot_glass_brain(posterior, *, head, axes=None, quantity="mean", time=None, views="lyrz"):
    """Draw a quantity in the glass brain, in MNI space.

    Parameters
    ----------
    posterior : SourcePosterior
        Of sources anywhere in the average head.
    head : TemplateHead
    axes : sequence of Axes, optional
        Two for "mean", which has its standard deviation below it; else one.
    quantity, time
        As in `plot_map`.
    views : str
        See `bayes_esi.viz.glass_brain.plot_glass_brain`.

    Returns
    -------
    (1,) or (2,) array of Axes

    Raises
    ------
    ValueError
        If the sources are not in the average head, and as in `plot_map`.
    """
    rows = rows_of(quantity)
    sample = sample_of(posterior, time)
    mni_pos = to_mni(posterior.problem, head, instead="map")
    width = 2.6 * (3 if views == "ortho" else len(views)) + 0.8
    axes = take_axes(axes, len(rows), 1, (width, 2.6), "one for each quantity")
    for ax, name in zip(axes, rows, strict=True):
        values, label = at_sample(posterior, name, sample)
        low = lower_end(name, values)
        draw_glass_brain(values, mni_pos, ax=ax, views=views, label=label, vmin=low)
    return axes
