"""Gram blocks: table, factors and dense products are three ways to the same numbers."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayes_esi.models.dipole_gram import build_gram, table_bytes

WEIGHTS = {1: np.array([0.7]), 2: np.array([0.7, 2.0]), 3: np.array([0.7, 2.0, 0.1])}


def make_arrays(n_groups, n_orient, n_times, n_sources=35, rank=9, seed=0):
    rng = np.random.default_rng(seed)
    lead_field = rng.standard_normal((rank, n_sources, n_orient))
    data = rng.standard_normal((rank, n_times))
    return lead_field, data, np.arange(rank) % n_groups


def dense_blocks(lead_field, data, row_group, weights):
    """A = G'WG and M = G'WY Y'WG, as (n_sources, n_sources, d, d)."""
    rank, n_sources, d = lead_field.shape
    flat = lead_field.reshape(rank, n_sources * d)
    weighted = flat * weights[row_group][:, None]
    projected = weighted.T @ data
    return [
        product.reshape(n_sources, d, n_sources, d).swapaxes(1, 2)
        for product in (flat.T @ weighted, projected @ projected.T)
    ]


# 35 places: one whole chunk of the table and a last one that overlaps it. 20 samples: more than
# the rank, so that time is compressed.
@pytest.mark.parametrize("tabulate", [True, False])
@pytest.mark.parametrize(
    ("n_groups", "n_orient", "n_times"), [(1, 1, 4), (1, 3, 20), (2, 3, 4), (3, 1, 20)]
)
def test_table_and_factors_equal_the_dense_blocks(n_groups, n_orient, n_times, tabulate):
    arrays = make_arrays(n_groups, n_orient, n_times)
    weights = WEIGHTS[n_groups]
    gram = build_gram(*arrays, n_groups, tabulate=tabulate)
    assert (gram.pair_blocks is not None) == tabulate
    assert (gram.n_sources, gram.n_orient, gram.n_groups) == (35, n_orient, n_groups)
    wanted = dense_blocks(*arrays, weights)
    rows, columns = np.array([0, 34, 17, 31]), np.array([33, 0, 5])
    # The largest entries are near 100: 1e-9 is rounding.
    for found, whole in zip(gram.cross(rows, columns, weights), wanted, strict=True):
        np.testing.assert_allclose(found, whole[rows[:, None], columns], atol=1e-9)
    for found, whole in zip(gram.cross(rows, None, weights), wanted, strict=True):
        np.testing.assert_allclose(found, whole[rows], atol=1e-9)
    diagonal = np.arange(35)
    for places in (slice(None), rows):
        for found, whole in zip(gram.own(places, weights), wanted, strict=True):
            own = whole[diagonal, diagonal][places]
            np.testing.assert_allclose(found, own, atol=1e-9)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_density_of_noise_is_that_of_a_gaussian(n_groups):
    lead_field, data, row_group = make_arrays(n_groups, 3, 20)
    weights = WEIGHTS[n_groups]
    gram = build_gram(lead_field, data, row_group, n_groups)
    wanted = multivariate_normal(cov=np.diag(1 / weights[row_group])).logpdf(data.T).sum()
    assert float(gram.log_density_of_noise(weights)) == pytest.approx(wanted, rel=1e-12)


def test_time_is_compressed_without_loss():
    lead_field, data, row_group = make_arrays(2, 3, 40)
    gram = build_gram(lead_field, data, row_group, 2)
    assert gram.projected_data.shape[-1] == 9 and float(gram.n_times) == 40
    # Only Y Y' matters: samples may be turned into each other by any rotation.
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))[0]
    turned = build_gram(lead_field, data @ rotation, row_group, 2)
    np.testing.assert_allclose(turned.pair_blocks, gram.pair_blocks, atol=1e-9)
    np.testing.assert_allclose(turned.data_power, gram.data_power, rtol=1e-12)


def test_a_pair_seen_from_either_side_is_one_block_transposed():
    gram = build_gram(*make_arrays(2, 3, 4), 2)
    table = np.asarray(gram.pair_blocks)
    np.testing.assert_allclose(table, table.swapaxes(0, 1).swapaxes(3, 4), atol=1e-10)


@pytest.mark.parametrize("n_sources", [1, 31, 32, 33, 64])
def test_every_row_of_the_table_is_filled(n_sources):
    arrays = make_arrays(1, 1, 4, n_sources=n_sources)
    gram = build_gram(*arrays, 1)
    field = gram.cross(np.arange(n_sources), None, WEIGHTS[1])[0]
    np.testing.assert_allclose(field, dense_blocks(*arrays, WEIGHTS[1])[0], atol=1e-10)


@pytest.mark.parametrize(("n_groups", "n_orient"), [(1, 1), (2, 3), (3, 3)])
def test_the_memory_of_a_table_is_known_beforehand(n_groups, n_orient):
    gram = build_gram(*make_arrays(n_groups, n_orient, 4), n_groups)
    assert gram.pair_blocks.nbytes == table_bytes(35, n_orient, n_groups, 8)


def test_a_lead_field_in_single_precision_gives_a_table_in_single_precision():
    lead_field, data, row_group = make_arrays(2, 3, 4)
    single = build_gram(lead_field.astype(np.float32), data, row_group, 2)
    assert single.pair_blocks.dtype == single.n_times.dtype == np.float32
    double = build_gram(lead_field, data, row_group, 2)
    # Sums of some ten products of order one in single precision, of entries up to 100.
    np.testing.assert_allclose(single.pair_blocks, double.pair_blocks, atol=1e-4)
