"""Where chains off the grid start: sets of places on the grid, their dipoles in one order.

Each set is matched to a reference by the assignment with the least total squared distance.

Reference: Kuhn 1955, doi:10.1002/nav.3800020109 (the assignment algorithm).
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from ..core.checks import check_count
from ..sources.adjacency import source_spacing

__all__ = ["Sets", "from_positions", "from_posterior", "matching_order"]

# Variance, on the logarithm, of scales that all sets share: 3 % is less than any data can tell.
LEAST_SCALE_VARIANCE = 1e-3
# Rounds in which the reference moves to the means of what is matched to it.
_N_ROUNDS = 5
# Spacings of the sources from which on a position has nothing to do with them.
_FURTHEST = 2.0


class Sets(NamedTuple):
    """Sets of n_dipoles places with their scales."""

    pos: np.ndarray  # (n_sets, n_dipoles, 3) in m
    cell_variance: np.ndarray  # (n_sets, n_dipoles) in m^2: how far a position may be from pos
    weights: np.ndarray  # (n_sets,) probabilities
    moment_std: np.ndarray | None  # (n_sets,) in A·m
    noise_std: np.ndarray | None  # (n_sets, n_groups)


def from_posterior(posterior, n_dipoles=None):
    """Draws of a posterior on the grid with a given number of dipoles.

    Parameters
    ----------
    posterior : DipolePosterior
    n_dipoles : int, optional
        By default the most probable number above zero.

    Raises
    ------
    ValueError
        If no draw has that many.
    """
    draws, problem = posterior.draws, posterior.problem
    n_runs, n_draws, n_slots = draws.places.shape
    active = draws.active.reshape(-1, n_slots)
    numbers = active.sum(axis=1)
    weights = np.repeat(posterior.run_weights / n_draws, n_draws)
    mass = np.bincount(numbers, weights=weights, minlength=2)
    if n_dipoles is None:
        n_dipoles = 1 + int(np.argmax(mass[1:]))
    n_dipoles = check_count("n_dipoles", n_dipoles)
    rows = np.flatnonzero(numbers == n_dipoles)
    if not rows.size or not weights[rows].sum() > 0:
        seen = ", ".join(str(n) for n in np.flatnonzero(mass > 0))
        raise ValueError(
            f"no draw of the posterior has {n_dipoles} dipoles, they have {seen}; take one of "
            "these, or give positions to start from."
        )
    # Slots that hold a dipole come first, so the others can be cut off.
    slots = np.argsort(~active[rows], axis=1, kind="stable")[:, :n_dipoles]
    places = np.take_along_axis(draws.places.reshape(-1, n_slots)[rows], slots, axis=1)
    pos = problem.source_pos[places]
    best = np.argmax(draws.log_likelihood.ravel()[rows])
    order = matching_order(pos, pos[best])
    places = np.take_along_axis(places, order, axis=1)
    return Sets(
        pos=problem.source_pos[places],
        cell_variance=problem.cell_variance[places],
        weights=weights[rows] / weights[rows].sum(),
        moment_std=draws.moment_std.ravel()[rows],
        noise_std=draws.noise_std.reshape(n_runs * n_draws, -1)[rows],
    )


def from_positions(pos, problem):
    """Positions (n_dipoles, 3) or (n_sets, n_dipoles, 3) in m, equally probable.

    Raises
    ------
    ValueError
        If some are further than two spacings from the sources, where the prior is nil.
    """
    pos = np.asarray(pos, np.float64)
    furthest = cKDTree(problem.source_pos).query(pos.reshape(-1, 3))[0].max()
    spacing = source_spacing(problem.source_pos)
    if furthest > _FURTHEST * spacing:
        raise ValueError(
            f"start has positions up to {1e3 * furthest:.3g} mm from the sources, which are "
            f"{1e3 * spacing:.3g} mm apart; give them in m and in the frame of the sources."
        )
    pos = pos[None] if pos.ndim == 2 else pos
    pos = np.take_along_axis(pos, matching_order(pos, pos[0])[..., None], axis=1)
    variance = np.full(pos.shape[:2], np.median(problem.cell_variance))
    return Sets(pos, variance, np.full(len(pos), 1 / len(pos)), None, None)


def matching_order(pos, reference):
    """Order in which the dipoles of each set come to lie closest to those of a reference.

    Parameters
    ----------
    pos : (n_sets, n_dipoles, 3) array
    reference : (n_dipoles, 3) array

    Returns
    -------
    (n_sets, n_dipoles) int array

    Notes
    -----
    The reference moves to the means of what is matched to it, a few times: of two dipoles close
    to each other, one draw alone may have both on one side. Cost O(n_sets n_dipoles^3) a round.
    """
    from scipy.optimize import linear_sum_assignment  # a tenth of the time to import the package

    order = np.tile(np.arange(len(reference)), (len(pos), 1))
    if len(reference) == 1:
        return order
    for _ in range(_N_ROUNDS):
        before = order.copy()
        squared = np.sum((reference[:, None] - pos[:, None]) ** 2, axis=-1)
        for row, cost in zip(order, squared, strict=True):
            row[:] = linear_sum_assignment(cost)[1]
        if np.array_equal(order, before):
            break
        reference = np.take_along_axis(pos, order[..., None], axis=1).mean(axis=0)
    return order
