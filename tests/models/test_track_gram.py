"""Gram blocks along time: table, factors and dense products are three ways to the same numbers."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayes_esi.models.track_gram import build_track_gram, project, track_table_bytes

WEIGHTS = {1: np.array([0.7]), 2: np.array([0.7, 2.0])}
CASES = [(1, 1), (2, 3)]


# 35 places: one whole chunk of the table and a part of one.
def make_arrays(n_groups, n_orient, n_sources=35, rank=9, n_times=4, seed=0):
    rng = np.random.default_rng(seed)
    lead_field = rng.standard_normal((rank, n_sources, n_orient))
    data = rng.standard_normal((rank, n_times))
    return lead_field, data, np.arange(rank) % n_groups


def dense_matrix(lead_field, places, weights_of_rows):
    field = np.where(np.asarray(places)[:, None] >= 0, lead_field[:, places], 0.0)
    field = field.reshape(len(lead_field), -1)
    return field, field.T @ (weights_of_rows[:, None] * field)


@pytest.mark.parametrize("tabulate", [True, False])
@pytest.mark.parametrize(("n_groups", "n_orient"), CASES)
def test_blocks_of_pairs_are_dense_products(n_groups, n_orient, tabulate):
    lead_field, data, row_group = make_arrays(n_groups, n_orient)
    weights = WEIGHTS[n_groups]
    gram = build_track_gram(lead_field, data, row_group, n_groups, tabulate=tabulate)
    assert (gram.pair_blocks is not None) == tabulate
    assert (gram.n_sources, gram.n_orient, gram.n_groups, gram.n_times) == (
        35,
        n_orient,
        n_groups,
        4,
    )
    weighted = lead_field * weights[row_group][:, None, None]
    wanted = np.einsum("rix,rjy->ijxy", weighted, lead_field)
    rows, columns = np.array([0, 34, 17, 31]), np.array([33, 0, 5])
    # Entries near 20: 1e-12 is rounding.
    np.testing.assert_allclose(
        gram.blocks(rows, columns, weights), wanted[rows[:, None], columns], atol=1e-12
    )
    np.testing.assert_allclose(gram.blocks(rows, None, weights), wanted[rows], atol=1e-12)
    own = np.einsum("ngxy,g->nxy", gram.own_blocks, weights)
    np.testing.assert_allclose(own, wanted[np.arange(35), np.arange(35)], atol=1e-12)


@pytest.mark.parametrize("tabulate", [True, False])
@pytest.mark.parametrize(("n_groups", "n_orient"), CASES)
def test_slots_see_their_places_and_nothing_where_they_are_empty(n_groups, n_orient, tabulate):
    lead_field, data, row_group = make_arrays(n_groups, n_orient)
    weights = WEIGHTS[n_groups]
    gram = build_track_gram(lead_field, data, row_group, n_groups, tabulate=tabulate)
    # The last place: an empty slot that is read as place -1 would show it. One place twice:
    # walking dipoles may meet.
    for places in ([34, -1, 3], [-1, -1, -1], [7, 7, 12], [0, 34, -1]):
        places = np.array(places, np.int32)
        field, wanted = dense_matrix(lead_field, places, weights[row_group])
        matrix = np.asarray(gram.matrix(places, weights))
        np.testing.assert_allclose(matrix, wanted, atol=1e-12)
        is_empty = np.repeat(places < 0, n_orient)
        assert np.all(matrix[is_empty] == 0) and np.all(matrix[:, is_empty] == 0)
        for t in range(4):
            found = gram.projection(gram.projected_data[t], places, weights)
            np.testing.assert_allclose(
                found, field.T @ (weights[row_group] * data[:, t]), atol=1e-12
            )
            assert np.all(np.asarray(found)[is_empty] == 0)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_density_of_noise_is_that_of_a_gaussian(n_groups):
    lead_field, data, row_group = make_arrays(n_groups, 3)
    weights = WEIGHTS[n_groups]
    gram = build_track_gram(lead_field, data, row_group, n_groups)
    wanted = multivariate_normal(cov=np.diag(1 / weights[row_group])).logpdf(data.T)
    found = [float(gram.log_noise(power, weights)) for power in gram.data_power]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_new_samples_are_projected_like_those_of_the_problem():
    lead_field, data, row_group = make_arrays(2, 3)
    more = np.random.default_rng(5).standard_normal((9, 6))
    gram = build_track_gram(lead_field, data, row_group, 2)
    whole = build_track_gram(lead_field, more, row_group, 2, tabulate=False)
    projected, power = project(gram, more)
    np.testing.assert_allclose(projected, whole.projected_data, atol=1e-13)
    np.testing.assert_allclose(power, whole.data_power, atol=1e-13)
    grouped = np.stack([np.where(row_group[:, None] == g, more, 0.0) for g in range(2)])
    np.testing.assert_allclose(
        projected, np.einsum("rsd,grt->tsgd", lead_field, grouped), atol=1e-12
    )
    np.testing.assert_allclose(power, np.sum(grouped**2, axis=1).T, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_of_the_table_is_known_beforehand(dtype):
    lead_field, data, row_group = make_arrays(2, 3)
    gram = build_track_gram(lead_field.astype(dtype), data, row_group, 2)
    for array in (gram.pair_blocks, gram.own_blocks, gram.projected_data, gram.data_power):
        assert array.dtype == dtype
    wanted = track_table_bytes(35, 3, 2, np.dtype(dtype).itemsize)
    assert gram.pair_blocks.nbytes == wanted
