"""Values at the sources of a problem, taken to the places of the average head."""

import numpy as np

__all__ = ["on_cortex", "to_mni"]


def on_cortex(problem, values, head, instead):
    """Value at each cortical source of the average head: that of the nearest in its hemisphere.

    A coarser source space covers the cortex, too.

    Parameters
    ----------
    problem : Problem
    values : (n_sources,) array
    head : TemplateHead
    instead : str
        Kind of figure that serves all other heads.

    Raises
    ------
    ValueError
        If the sources are not on the cortex of the average head.
    """
    _check_subject(problem, instead)
    if set(problem.block_kinds) != {"lh", "rh"}:
        raise ValueError(
            "the figure needs sources on the cortex of the average head, but these are of kind "
            f"{', '.join(problem.block_kinds)}; use kind='glass_brain'."
        )
    side = (np.array(problem.block_kinds) == "rh").astype(int)[problem.source_block]
    spread = np.zeros(head.n_sources)
    for hemisphere in range(2):
        own, wanted = np.flatnonzero(side == hemisphere), head.hemisphere == hemisphere
        share = _nearest(head.source_pos[wanted], problem.source_pos[own], values[own])
        spread[wanted] = share
    return spread


def to_mni(problem, head, instead):
    """Places of the sources in MNI space: (n_sources, 3), in m.

    Raises
    ------
    ValueError
        If the sources are not in the average head.
    """
    _check_subject(problem, instead)
    return head.to_mni(problem.source_pos)


def _check_subject(problem, instead):
    if problem.subject != "fsaverage":
        raise ValueError(
            f"the figure needs sources in the average head, subject 'fsaverage', but these are of "
            f"{problem.subject!r}; use kind={instead!r}, or morph the estimate of to_mne()."
        )


def _nearest(places, source_pos, values):
    from scipy.spatial import cKDTree

    return values[cKDTree(source_pos).query(places)[1]]
