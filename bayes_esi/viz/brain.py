"""Figures of a posterior of dipoles on the average brain: on its cortex, in the glass brain."""

from .brain_places import on_cortex, to_mni
from .cortex import plot_cortex as draw_cortex
from .glass_brain import plot_glass_brain as draw_glass_brain

__all__ = ["plot_cortex", "plot_glass_brain"]


def plot_cortex(posterior, *, head, axes=None, surface="inflated"):
    """Draw the expected number of dipoles at each source on the cortex of the average head.

    Parameters
    ----------
    posterior : DipolePosterior
        Of sources on the cortex of the average head, all of them or a part.
    head : TemplateHead
    axes : sequence of four Axes, optional
    surface : "inflated", "pial" or "white"

    Returns
    -------
    (4,) array of Axes

    Raises
    ------
    ValueError
        If the sources are not those of the average head.
    """
    values = on_cortex(posterior.problem, posterior.intensity, head, instead="intensity")
    return draw_cortex(values, head, axes=axes, surface=surface)


def plot_glass_brain(posterior, *, head, ax=None, views="lyrz"):
    """Draw the expected number of dipoles at each source in the glass brain, in MNI space.

    Parameters
    ----------
    posterior : DipolePosterior
        Of sources anywhere in the average head.
    head : TemplateHead
    ax : Axes, optional
    views : str
        See `bayes_esi.viz.glass_brain.plot_glass_brain`.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the sources are not in the average head.
    """
    mni_pos = to_mni(posterior.problem, head, instead="intensity")
    return draw_glass_brain(posterior.intensity, mni_pos, ax=ax, views=views)
