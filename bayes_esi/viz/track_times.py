"""When a track lives, as the figures draw it: samples as cells of time, medians, intervals.

A sample stands for the interval half a step around it. A life of one sample has a width then,
and an edge drawn at the median birth lies where the first cell begins.
"""

import numpy as np

from .common import COLOURS

__all__ = [
    "LEAST_PROBABILITY",
    "cell_edges",
    "colour_of",
    "is_filtered",
    "life_edges",
    "place_of",
    "shown_tracks",
]

LEAST_PROBABILITY = 0.05  # of a track that is drawn
_LEVEL = 0.95


def shown_tracks(posterior, min_probability=LEAST_PROBABILITY):
    """Tracks that are probable enough, with their numbers from 1: list of (int, TrackEstimate)."""
    return [
        (number, track)
        for number, track in enumerate(posterior.tracks(), start=1)
        if track.probability >= min_probability
    ]


def colour_of(number):
    """Colour of a track: the same in all figures."""
    return COLOURS[(number - 1) % len(COLOURS)]


def place_of(track):
    """Posterior mean position in words."""
    x, y, z = 1e3 * track.pos
    return f"({x:z.0f}, {y:z.0f}, {z:z.0f}) mm"


def is_filtered(posterior):
    """Whether numbers and intensity at a sample are told by the data up to it, not by all."""
    return posterior.method == "particle_filter" and posterior.draws.n_dipoles_pmf is not None


def cell_edges(times):
    """Edges in ms of the cells of the samples: (n_times + 1,) array."""
    times = 1e3 * np.asarray(times, np.float64)
    if len(times) == 1:
        return times[0] + np.array([-0.5, 0.5])
    middle = (times[1:] + times[:-1]) / 2
    return np.concatenate([[2 * times[0] - middle[0]], middle, [2 * times[-1] - middle[-1]]])


def life_edges(track, times):
    """Where a track begins and ends.

    Parameters
    ----------
    track : TrackEstimate
    times : (n_times,) array
        In s.

    Returns
    -------
    birth, death : (3,) arrays
        Lower end of the 95 % interval, median, upper end, in ms, at edges of cells. A death at
        the end of the last cell is none: the track outlives the window.
    """
    edges = cell_edges(times)
    ends = (0.5 - _LEVEL / 2, 0.5, 0.5 + _LEVEL / 2)
    return tuple(edges[_quantiles(pmf, ends)] for pmf in (track.birth_pmf, track.death_pmf))


def _quantiles(pmf, levels):
    cumulative = np.cumsum(pmf)
    # A share of one part in 10^12 is rounding, not probability.
    index = np.searchsorted(cumulative / cumulative[-1], np.asarray(levels) - 1e-12)
    return np.minimum(index, len(pmf) - 1)
