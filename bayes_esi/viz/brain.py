"""Figures of a posterior on the average brain: on its cortex, and in the glass brain."""

import numpy as np

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
    problem = posterior.problem
    _check_subject(problem)
    if set(problem.block_kinds) != {"lh", "rh"}:
        raise ValueError(
            "the figure needs sources on the cortex of the average head, but these are of kind "
            f"{', '.join(problem.block_kinds)}; use kind='glass_brain'."
        )
    side = (np.array(problem.block_kinds) == "rh").astype(int)[problem.source_block]
    # The nearest source in the same hemisphere: a coarser source space covers the cortex, too.
    values = np.zeros(head.n_sources)
    for hemisphere in range(2):
        own, wanted = np.flatnonzero(side == hemisphere), head.hemisphere == hemisphere
        share = _spread(head.source_pos[wanted], problem.source_pos[own], posterior.intensity[own])
        values[wanted] = share
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
    _check_subject(posterior.problem)
    mni_pos = head.to_mni(posterior.problem.source_pos)
    return draw_glass_brain(posterior.intensity, mni_pos, ax=ax, views=views)


def _check_subject(problem):
    if problem.subject != "fsaverage":
        raise ValueError(
            f"the figure needs sources in the average head, subject 'fsaverage', but these are of "
            f"{problem.subject!r}; use kind='intensity', or morph the estimate of to_mne()."
        )


def _spread(places, source_pos, values):
    """Value at each place: that of the nearest source."""
    from scipy.spatial import cKDTree

    return values[cKDTree(source_pos).query(places)[1]]
