"""Credible sets of places: the smallest sets that hold a given share of probability."""

import numpy as np

from ..core.checks import check_fraction

__all__ = ["credible_set", "to_millilitres"]


def credible_set(mass, level):
    """Smallest set of places with at least `level` of the mass.

    Parameters
    ----------
    mass : (n_sources,) array
        Non-negative; need not sum to one.
    level : float
        Share, between 0 and 1.

    Returns
    -------
    (n_places,) int array
        Most probable place first; empty if there is no mass.
    """
    level = check_fraction("level", level)
    total = mass.sum()
    if not total > 0:
        return np.zeros(0, int)
    order = np.argsort(-mass, kind="stable")
    cumulative = np.cumsum(mass[order]) / total
    # A share of one part in 10^12 is rounding, not probability.
    return order[: int(np.searchsorted(cumulative, level - 1e-12)) + 1]


def to_millilitres(volume):
    """Cubic metres to millilitres."""
    return 1e6 * float(volume)
