"""Parcels cover connected sources; patterns are those of the matrix exponential."""

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import expm
from scipy.sparse.csgraph import connected_components

from bayes_esi.sources import patches
from bayes_esi.sources.adjacency import neighbour_table, radius_adjacency


@pytest.fixture(scope="module")
def grid():
    pos = np.stack(np.meshgrid(*[np.arange(6.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    adjacency = radius_adjacency(pos)
    return pos, sparse.csr_array(adjacency), neighbour_table(adjacency)


def test_parcels_cover_and_are_connected(grid):
    _, adjacency, table = grid
    score = np.random.default_rng(0).random(len(table))
    labels = patches.grow_parcels(table, score, n_steps=2)
    assert labels.min() == 0 and np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert labels[np.argmax(score)] == 0
    for k in range(labels.max() + 1):
        own = np.flatnonzero(labels == k)
        assert connected_components(adjacency[own][:, own], directed=False)[0] == 1
    seeds = [own[np.argmax(score[own])] for own in (np.flatnonzero(labels == 0),)]
    assert seeds[0] == np.argmax(score)
    alone = patches.grow_parcels(table, score, n_steps=0)
    assert alone.max() == len(table) - 1


def test_patterns_are_those_of_the_exponential(grid):
    _, adjacency, table = grid
    centres = np.array([0, 100, 215])
    found = patches.smooth_patterns(table, centres, 0.6, reach=25).toarray()
    expected = expm(0.6 * adjacency.toarray().astype(float))[:, centres]
    expected /= np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    short = patches.smooth_patterns(table, centres, 0.6, reach=1).toarray()
    for column, centre in zip(short.T, centres, strict=True):
        assert set(np.flatnonzero(column)) == {centre, *table[centre][table[centre] >= 0]}


def test_places_are_far_apart(grid):
    pos, _, _ = grid
    chosen = patches.evenly_spaced(pos, 9)
    assert len(set(chosen)) == 9
    distance = np.linalg.norm(pos[chosen][:, None] - pos[chosen], axis=2)
    # The centre and the eight corners of the cube.
    assert distance[distance > 0].min() > 3
    assert len(patches.evenly_spaced(pos, 1000)) == len(pos)
