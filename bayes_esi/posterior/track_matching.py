"""Which dipole's life in one draw is which in another.

A draw is an unordered set of lives, each with a place (of a walk, its mean) and the samples from
birth to death. Two lives can be of one dipole only if they overlap in time; how far apart they are
is told in mm,

    distance = |place - place'| + `_TIME_SCALE` (1 - overlap / union)

with the samples that both, and that either of them lives. Labels start from a reference draw; each
draw is matched to them by the assignment with the least total distance, in which a life farther
than `_GATE` from all labels stays without one (Hungarian algorithm, no factorial search). Labels
move to the mean place and the median birth and death of what was matched to them; lives left over
found further labels while enough draws have them alike; labels that too few draws have are given
up; and so on until nothing changes.

Reference: Kuhn 1955, doi:10.1002/nav.3800020109 (the assignment algorithm).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Lives", "list_lives", "match_lives"]

# In m. Fields of sources nearer than about 2 cm are alike, and so a place may be uncertain by that
# much; sources farther apart than 5 cm are told apart by any sensors.
_GATE = 0.05
# Lives at one place that hardly overlap are as far apart as two places 2 cm from each other: always
# within the gate, so that a dipole of uncertain birth has one label, but behind a better candidate.
_TIME_SCALE = 0.02
_MIN_PROBABILITY = 0.05  # that a label needs: what is rarer is noise of the sampler
_N_ROUNDS = 10
# Candidates for a further label, evenly spaced among lives left over: with 200, some lie near the
# middle of any group that holds enough probability.
_N_CANDIDATES = 200


class Lives(NamedTuple):
    """Every life in some trajectories, sorted by draw: arrays of (n_lives,) integers."""

    draw: np.ndarray
    slot: np.ndarray
    birth: np.ndarray  # first sample
    death: np.ndarray  # first sample without it; n_times if it is alive at the end


class _Labels(NamedTuple):
    """What each label looks like."""

    pos: np.ndarray  # (n_labels, 3)
    birth: np.ndarray  # (n_labels,)
    death: np.ndarray


def list_lives(places, is_new):
    """Find the lives of dipoles in trajectories.

    Parameters
    ----------
    places : (n_draws, n_times, n_slots) int array
        -1 where a slot is empty.
    is_new : (n_draws, n_times, n_slots) bool array
        True where a dipole lives its first sample.

    Returns
    -------
    Lives

    Raises
    ------
    ValueError
        If a dipole is alive that was never born.
    """
    is_alive = np.asarray(places) >= 0
    nobody = np.zeros_like(is_alive[:, :1])
    before = np.concatenate([nobody, is_alive[:, :-1]], axis=1)
    begins = is_alive & np.asarray(is_new, bool)
    unborn = is_alive & ~before & ~begins
    if unborn.any():
        draw, time, slot = np.argwhere(unborn)[0]
        raise ValueError(
            f"is_new must be true at the first sample of every life: in draw {draw}, a dipole "
            f"appears in slot {slot} at sample {time} without a birth."
        )
    ends = before & (~is_alive | begins)
    ends = np.concatenate([ends, is_alive[:, -1:]], axis=1)
    # Along time within each draw and slot, births and ends alternate.
    draw, slot, birth = np.nonzero(begins.swapaxes(1, 2))
    death = np.nonzero(ends.swapaxes(1, 2))[2]
    return Lives(draw, slot, birth, death)


def match_lives(lives, places, weights, source_pos, score):
    """Label the lives of all draws.

    Parameters
    ----------
    lives : Lives
    places : (n_draws, n_times, n_slots) int array
    weights : (n_draws,) array
        Probabilities of the draws.
    source_pos : (n_sources, 3) array
        In m.
    score : (n_draws,) array
        Log posterior up to a constant: the best draw of the most probable number of lives
        gives the first labels.

    Returns
    -------
    members : (n_draws, n_labels) int array
        Which of `lives` has each label in each draw, -1 where the draw lacks it.

    Notes
    -----
    Cost O(n_lives (n_labels + n_times) + n_draws (n_lives a draw)^3) a round.
    """
    n_draws = len(places)
    if not np.any(weights[lives.draw] > 0):
        return np.zeros((n_draws, 0), int)
    pos = mean_places(lives, places, source_pos)
    mass = weights[lives.draw]
    numbers = np.bincount(lives.draw, minlength=n_draws)
    most_probable = 1 + int(np.argmax(np.bincount(numbers, weights=weights)[1:]))
    candidates = np.flatnonzero((numbers == most_probable) & (weights > 0))
    best = lives.draw == candidates[np.argmax(score[candidates])]
    labels = _Labels(pos[best], lives.birth[best], lives.death[best])

    given = _assign(lives, pos, labels)
    for _ in range(_N_ROUNDS):
        labels = _refine(lives, pos, mass, given, labels)
        labels = _found(lives, pos, mass, given, labels)
        last, given = given, _assign(lives, pos, labels)
        if np.array_equal(last, given):
            break
    held = np.bincount(given[given >= 0], mass[given >= 0], minlength=len(labels.pos))
    kept = np.flatnonzero(held >= _MIN_PROBABILITY)
    members = np.full((n_draws, len(labels.pos)), -1)
    named = np.flatnonzero(given >= 0)
    members[lives.draw[named], given[named]] = named
    return members[:, kept]


def mean_places(lives, places, source_pos):
    """Mean position of each life: (n_lives, 3), in m."""
    length = lives.death - lives.birth
    owner = np.repeat(np.arange(len(length)), length)
    # Samples of all lives, one after the other.
    elapsed = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    visited = places[lives.draw[owner], lives.birth[owner] + elapsed, lives.slot[owner]]
    first = places[lives.draw, lives.birth, lives.slot]
    if np.array_equal(visited, first[owner]):
        return source_pos[first]
    sums = [np.bincount(owner, weights=source_pos[visited, axis]) for axis in range(3)]
    return np.stack(sums, axis=1) / length[:, None]


def _distances(pos, birth, death, labels):
    """Distance of lives to labels, (n_lives, n_labels); infinite where they share no sample."""
    apart = np.linalg.norm(pos[:, None] - labels.pos, axis=2)
    overlap = np.minimum(death[:, None], labels.death) - np.maximum(birth[:, None], labels.birth)
    union = np.maximum(death[:, None], labels.death) - np.minimum(birth[:, None], labels.birth)
    return np.where(overlap > 0, apart + _TIME_SCALE * (1 - overlap / union), np.inf)


def _assign(lives, pos, labels):
    """Label of each life, -1 for none."""
    from scipy.optimize import linear_sum_assignment  # a tenth of the time to import the package

    distance = _distances(pos, lives.birth, lives.death, labels)
    # To stay without a label costs as much as the farthest label that may be taken.
    gain = np.minimum(distance - _GATE, 0.0)
    given = np.full(len(pos), -1)
    if not len(labels.pos):
        return given
    starts = np.flatnonzero(np.diff(lives.draw, prepend=-1))
    for begin, end in zip(starts, np.append(starts[1:], len(pos)), strict=True):
        rows, columns = linear_sum_assignment(gain[begin:end])
        given[begin + rows] = columns
    near = np.take_along_axis(gain, np.maximum(given, 0)[:, None], axis=1)[:, 0] < 0
    return np.where(near, given, -1)


def _refine(lives, pos, mass, given, labels):
    """Labels as what was matched to them, without those that are too rare."""
    kept = []
    for label in range(len(labels.pos)):
        own = np.flatnonzero(given == label)
        if mass[own].sum() >= _MIN_PROBABILITY:
            kept.append(
                (
                    mass[own] @ pos[own] / mass[own].sum(),
                    _median(lives.birth[own], mass[own]),
                    _median(lives.death[own], mass[own]),
                )
            )
    return _labels(kept)


def _found(lives, pos, mass, given, labels):
    """Labels, and one more for each group of lives that were left over."""
    added = []
    left = np.flatnonzero(given < 0)
    while left.size and mass[left].sum() >= _MIN_PROBABILITY:
        n_candidates = min(left.size, _N_CANDIDATES)
        candidates = left[np.linspace(0, left.size - 1, n_candidates).astype(int)]
        probes = _Labels(pos[candidates], lives.birth[candidates], lives.death[candidates])
        distance = _distances(pos[left], lives.birth[left], lives.death[left], probes)
        # Most lives nearby, the nearer the better.
        best = int(np.argmax(mass[left] @ np.maximum(1 - distance / _GATE, 0.0)))
        near = distance[:, best] < _GATE
        if mass[left[near]].sum() < _MIN_PROBABILITY:
            break
        added.append((probes.pos[best], probes.birth[best], probes.death[best]))
        left = left[~near]
    return _labels([*zip(*labels, strict=True), *added])


def _labels(rows):
    pos, birth, death = zip(*rows, strict=True) if rows else ((), (), ())
    return _Labels(np.reshape(pos, (-1, 3)), np.array(birth, float), np.array(death, float))


def _median(values, weights):
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return values[order[np.searchsorted(cumulative, 0.5 * cumulative[-1])]]
