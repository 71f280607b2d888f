"""Which sources are neighbours: the graph on which a dipole takes its local steps.

Detailed balance of a local move needs a symmetric relation, so every builder
returns one: if j is among the neighbours of i then i is among those of j.
"""

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

__all__ = ["neighbour_table", "radius_adjacency", "source_spacing"]


def source_spacing(source_pos):
    """Median distance from a source to its nearest other source, in m; 0 for a single source."""
    if len(source_pos) < 2:
        return 0.0
    distance, _ = cKDTree(source_pos).query(source_pos, k=2)
    return float(np.median(distance[:, 1]))


def radius_adjacency(source_pos, factor=1.2, n_nearest=3):
    """Join sources closer than `factor` spacings, and each to its `n_nearest` nearest.

    Parameters
    ----------
    source_pos : (n_sources, 3) array
        Positions in m.
    factor : float
        Radius in units of the source spacing. 1.2 joins the 6 nearest on a cubic
        grid.
    n_nearest : int
        Keeps irregular grids free of isolated sources.

    Returns
    -------
    scipy.sparse.csr_array, (n_sources, n_sources), bool
        Symmetric, with an empty diagonal. Cost O(n_sources log n_sources).
    """
    n_sources = len(source_pos)
    tree = cKDTree(source_pos)
    pairs = tree.query_pairs(factor * source_spacing(source_pos), output_type="ndarray")
    k = min(n_nearest + 1, n_sources)
    _, nearest = tree.query(source_pos, k=k)
    nearest = np.reshape(nearest, (n_sources, k))
    own = np.repeat(np.arange(n_sources), k)
    rows = np.concatenate([pairs[:, 0], own])
    cols = np.concatenate([pairs[:, 1], nearest.ravel()])
    graph = sparse.coo_array((np.ones(rows.size, bool), (rows, cols)), (n_sources, n_sources))
    return _symmetric(graph)


def neighbour_table(adjacency):
    """Write a sparse adjacency as a padded table.

    Parameters
    ----------
    adjacency : sparse or dense (n_sources, n_sources)
        Non-zero where two sources are neighbours; made symmetric, diagonal ignored.

    Returns
    -------
    (n_sources, max_degree) int32 array
        Neighbours of each source, padded with -1. `max_degree` is at least 1.
    """
    graph = _symmetric(sparse.coo_array(adjacency))
    degree = np.diff(graph.indptr)
    table = np.full((graph.shape[0], max(int(degree.max(initial=0)), 1)), -1, dtype=np.int32)
    column = np.arange(graph.indices.size) - np.repeat(graph.indptr[:-1], degree)
    table[np.repeat(np.arange(graph.shape[0]), degree), column] = graph.indices
    return table


def _symmetric(graph):
    graph = (graph.tocsr() != 0).astype(np.int8)
    graph = (graph + graph.T).tolil()
    graph.setdiag(0)
    graph = graph.tocsr()
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph.astype(bool)
