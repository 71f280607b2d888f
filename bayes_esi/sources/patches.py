"""Patches of sources: parcels that cover the brain, and smooth patterns around places.

*Parcels.* The source of the highest score that is still free, with all free sources within some
steps of it on the graph, is a parcel, and so on until none is left. Parcels are connected; where
little is left over they are small.

*Smooth patterns.* q = exp(s A) e_centre, A the adjacency: the number of walks to a source, those of
length i weighted s^i / i!. Terms up to the reach are summed; then |q| = 1.

Cost O(n_sources n_neighbours) a pattern and step, O(n_sources) a parcel.

References: Friston et al. 2008, doi:10.1016/j.neuroimage.2007.09.048 (patterns); Chowdhury et al.
2013, doi:10.1371/journal.pone.0055969 (parcels grown from scores).
"""

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from ..core.checks import check_array, check_count, check_positive

__all__ = ["evenly_spaced", "grow_parcels", "pattern_fields", "smooth_patterns"]


def evenly_spaced(source_pos, n_places):
    """Numbers of sources far from each other: each is the farthest from all before.

    Parameters
    ----------
    source_pos : (n_sources, 3) array
    n_places : int

    Returns
    -------
    (n_places,) int array
        The first is the source nearest to the centre. All sources where there are no more.
    """
    pos = check_array("source_pos", source_pos, shape=(None, 3))
    n_places = min(check_count("n_places", n_places), len(pos))
    chosen = [int(np.argmin(np.sum((pos - pos.mean(axis=0)) ** 2, axis=1)))]
    distance = np.full(len(pos), np.inf)
    while len(chosen) < n_places:
        distance = np.minimum(distance, cdist(pos[chosen[-1:]], pos)[0])
        chosen.append(int(np.argmax(distance)))
    return np.array(chosen)


def grow_parcels(neighbours, score, n_steps=3):
    """Cover the sources with connected parcels around those of high scores.

    Parameters
    ----------
    neighbours : (n_sources, max_degree) int array
        Padded with -1; see `adjacency.neighbour_table`.
    score : (n_sources,) array
    n_steps : int
        Steps from the seed of a parcel to its border.

    Returns
    -------
    (n_sources,) int array
        Parcel of each source, from 0 on, in the order of the scores of their seeds.
    """
    neighbours = np.asarray(neighbours)
    score = check_array("score", score, shape=(len(neighbours),))
    n_steps = check_count("n_steps", n_steps, minimum=0)
    labels = np.full(len(neighbours), -1)
    n_parcels = 0
    for seed in np.argsort(-score, kind="stable"):
        if labels[seed] >= 0:
            continue
        labels[seed] = n_parcels
        front = np.array([seed])
        for _ in range(n_steps):
            around = np.unique(neighbours[front])
            front = around[(around >= 0) & (labels[around] < 0)]
            labels[front] = n_parcels
        n_parcels += 1
    return labels


def pattern_fields(lead_field, patterns):
    """Fields of patterns of sources: (m, n_patterns, d).

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
    patterns : sparse (n_sources, n_patterns)
    """
    m, n_sources, d = lead_field.shape
    by_source = np.moveaxis(np.asarray(lead_field, float), 1, 0).reshape(n_sources, m * d)
    return np.moveaxis((patterns.T @ by_source).reshape(-1, m, d), 0, 1)


def smooth_patterns(neighbours, centres, smoothness=0.6, reach=8):
    """Patterns that fall off around places.

    Parameters
    ----------
    neighbours : (n_sources, max_degree) int array
        Padded with -1.
    centres : (n_patterns,) int array
    smoothness : float
        s; 0.6 is that of SPM.
    reach : int
        Steps to the farthest source of a pattern.

    Returns
    -------
    scipy.sparse.csc_array, (n_sources, n_patterns)
        Columns of unit length.
    """
    smoothness = check_positive("smoothness", smoothness)
    reach = check_count("reach", reach, minimum=0)
    neighbours, centres = np.asarray(neighbours), np.asarray(centres)
    rows, columns = np.nonzero(neighbours >= 0)
    n = len(neighbours)
    graph = sparse.csr_array((np.ones(len(rows)), (rows, neighbours[rows, columns])), shape=(n, n))
    term = sparse.csc_array(
        (np.ones(len(centres)), (centres, np.arange(len(centres)))), shape=(n, len(centres))
    )
    total = term
    for i in range(1, reach + 1):
        term = (smoothness / i) * (graph @ term)
        total = total + term
    lengths = np.sqrt(np.asarray(total.multiply(total).sum(axis=0)).ravel())
    return sparse.csc_array(total @ sparse.diags_array(1 / lengths))
