"""Which dipole of one draw is which dipole of another.

A draw is an unordered set, so its members carry no names. Names come from a reference set:
each draw is matched to it by the assignment with the least total distance (Hungarian algorithm,
no factorial search), the reference moves to the means of what was matched to it, and so on.
Members that are left over, in draws with more dipoles than the reference, found further
names while they hold enough probability.

Reference: Kuhn 1955, doi:10.1002/nav.3800020109 (the assignment algorithm).
"""

import numpy as np

__all__ = ["match"]

_N_ROUNDS = 10
_MIN_EXTRA = 0.05  # probability that leftovers need to become a dipole of their own


def match(places, active, weights, source_pos, score):
    """Label the dipoles of all draws.

    Parameters
    ----------
    places : (n_draws, n_slots) int array
    active : (n_draws, n_slots) bool array
    weights : (n_draws,) array
        Probabilities of the draws.
    source_pos : (n_sources, 3) array
        In m.
    score : (n_draws,) array
        Log posterior up to a constant: the best draw of the most probable number starts
        the reference.

    Returns
    -------
    slots : (n_draws, n_labels) int array
        Slot of each label in each draw, -1 where the draw lacks it.

    Notes
    -----
    Cost O(n_distinct_draws n_slots^3) a round.
    """
    numbers = active.sum(axis=1)
    mass = np.bincount(numbers, weights=weights)
    if len(mass) < 2:
        return np.zeros((len(places), 0), int)
    most_probable = 1 + int(np.argmax(mass[1:]))
    candidates = np.flatnonzero(numbers == most_probable)
    best = candidates[np.argmax(score[candidates])]
    reference = source_pos[places[best][active[best]]]

    listed = np.where(active, places, -1)
    _, first, inverse = np.unique(listed, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    group_weights = np.bincount(inverse, weights=weights)
    places, active = places[first], active[first]

    slots = _assign(places, active, source_pos, reference)
    for _ in range(_N_ROUNDS):
        moved = _centres(slots, places, group_weights, source_pos, reference)
        if np.allclose(moved, reference, atol=1e-6):
            break
        reference = moved
        slots = _assign(places, active, source_pos, reference)

    while slots.shape[1] < places.shape[1]:
        left = active.copy()
        rows, labels = np.nonzero(slots >= 0)
        left[rows, slots[rows, labels]] = False
        if np.sum(group_weights[left.any(axis=1)]) < _MIN_EXTRA:
            break
        slots = np.column_stack([slots, _extra(left, places, group_weights, source_pos)])
    return slots[inverse]


def _assign(places, active, source_pos, reference):
    from scipy.optimize import linear_sum_assignment  # a tenth of the time to import the package

    slots = np.full((len(places), len(reference)), -1)
    for i, (row, mask) in enumerate(zip(places, active, strict=True)):
        members = np.flatnonzero(mask)
        if members.size:
            offset = source_pos[row[members], None] - reference
            chosen, labels = linear_sum_assignment(np.linalg.norm(offset, axis=2))
            slots[i, labels] = members[chosen]
    return slots


def _centres(slots, places, weights, source_pos, reference):
    centres = reference.copy()
    for label in range(slots.shape[1]):
        has = slots[:, label] >= 0
        if has.any():
            pos = source_pos[places[has, slots[has, label]]]
            centres[label] = np.average(pos, axis=0, weights=weights[has])
    return centres


def _extra(left, places, weights, source_pos):
    """One leftover dipole of each draw: the one nearest to where most leftovers are."""
    rows, columns = np.nonzero(left)
    density = np.bincount(places[rows, columns], weights=weights[rows], minlength=len(source_pos))
    distance = np.linalg.norm(source_pos - source_pos[np.argmax(density)], axis=1)
    distance = np.where(left, distance[places], np.inf)
    nearest = np.argmin(distance, axis=1)
    return np.where(left.any(axis=1), nearest, -1)
