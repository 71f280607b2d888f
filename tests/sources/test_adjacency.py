"""The graph of local moves: symmetric, six neighbours on a cubic grid, nobody alone."""

import numpy as np

from bayes_esi.sources.adjacency import neighbour_table, radius_adjacency, source_spacing


def grid(n):
    axes = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    return 0.007 * np.stack(axes, axis=-1).reshape(-1, 3)


def test_cubic_grid():
    pos = grid(5)
    assert np.isclose(source_spacing(pos), 0.007)
    graph = radius_adjacency(pos).toarray()
    assert np.array_equal(graph, graph.T) and not graph.diagonal().any()
    centre = 2 * 25 + 2 * 5 + 2
    assert graph[centre].sum() == 6
    table = neighbour_table(graph)
    for i, row in enumerate(table):
        listed = row[row >= 0]
        assert set(listed) == set(np.flatnonzero(graph[i]))
        # True neighbours first: the walk counts on it.
        assert np.array_equal(row[: len(listed)], listed)


def test_far_sources_have_neighbours_and_one_source_has_none():
    pos = np.vstack([grid(3), [[1.0, 1.0, 1.0]]])
    graph = radius_adjacency(pos).toarray()
    assert graph[-1].any() and np.array_equal(graph, graph.T)
    assert np.array_equal(neighbour_table(radius_adjacency(pos[:1])), [[-1]])
