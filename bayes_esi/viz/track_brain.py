"""Figures of dynamic dipoles on the average brain: on its cortex, in the glass brain."""

from .brain_places import on_cortex, to_mni
from .cortex import plot_cortex as draw_cortex
from .glass_brain import plot_glass_brain as draw_glass_brain
from .track_intensity import chosen_samples, intensity_at
from .track_times import is_filtered

__all__ = ["plot_cortex", "plot_glass_brain", "values_at"]


def plot_cortex(posterior, *, head, axes=None, time=None, surface="inflated"):
    """Draw the expected number of dipoles at each source on the cortex of the average head.

    Parameters
    ----------
    posterior : TrackPosterior
        Of sources on the cortex of the average head, all of them or a part.
    head : TemplateHead
    axes : sequence of four Axes, optional
    time : float, optional
        In s; by default the mean over the window.
    surface : "inflated", "pial" or "white"

    Returns
    -------
    (4,) array of Axes

    Raises
    ------
    ValueError
        If the sources are not those of the average head, or the time lies outside the window.
    """
    values, label = values_at(posterior, time)
    values = on_cortex(posterior.problem, values, head, instead="intensity")
    return draw_cortex(values, head, axes=axes, surface=surface, label=label)


def plot_glass_brain(posterior, *, head, ax=None, time=None, views="lyrz"):
    """Draw the expected number of dipoles at each source in the glass brain, in MNI space.

    Parameters
    ----------
    posterior : TrackPosterior
        Of sources anywhere in the average head.
    head : TemplateHead
    ax : Axes, optional
    time : float, optional
        In s; by default the mean over the window.
    views : str
        See `bayes_esi.viz.glass_brain.plot_glass_brain`.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the sources are not in the average head, or the time lies outside the window.
    """
    mni_pos = to_mni(posterior.problem, head, instead="intensity")
    values, label = values_at(posterior, time)
    return draw_glass_brain(values, mni_pos, ax=ax, views=views, label=label)


def values_at(posterior, time):
    """Expected number of dipoles at each source at a time (None: averaged), and what it is."""
    if time is None:
        return intensity_at(posterior), "expected number of dipoles\nmean over the window"
    (sample,) = chosen_samples(posterior, time)
    told = f"at {1e3 * posterior.problem.times[sample]:z.0f} ms"
    told += ", given the data so far" if is_filtered(posterior) else ""
    return intensity_at(posterior, sample), f"expected number of dipoles\n{told}"
