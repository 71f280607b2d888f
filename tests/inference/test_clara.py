"""CLARA: the first image is LORETA's, support shrinks, one dipole stays where it is."""

import numpy as np
import pytest

from bayes_esi.inference import clara
from bayes_esi.sources.adjacency import neighbour_table, radius_adjacency
from bayes_esi.sources.depth import depth_weights
from bayes_esi.sources.laplacian import SparseFactor, loreta_operator

M, LAMBDA2 = 24, 0.1


def place_grid():
    axis = 0.012 * (np.arange(8) - 3.5)
    pos = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return pos[np.linalg.norm(pos, axis=1) < 0.045]


@pytest.fixture(scope="module")
def scene():
    """Potentials in an infinite medium at sensors around a ball of sources."""
    pos = place_grid()
    z = 1 - 2 * (np.arange(M) + 0.5) / M
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(M)
    ring = np.sqrt(1 - z**2)
    sensors = 0.08 * np.column_stack([ring * np.cos(angle), ring * np.sin(angle), z])
    away = sensors[:, None] - pos
    field = away / np.linalg.norm(away, axis=2, keepdims=True) ** 3
    field /= np.sqrt(np.mean(np.sum(field**2, axis=(1, 2))))
    table = neighbour_table(radius_adjacency(pos))
    factor = SparseFactor(loreta_operator(table))
    return pos, field, table, factor, np.sqrt(depth_weights(field, 1.0, limit=None))


def dipole(field, j, seed=0):
    ori = np.random.default_rng(seed).standard_normal(3)
    return (field[:, j] @ ori)[:, None] * np.array([1.0, -2.0, 0.5])


def test_first_image_is_loreta_in_the_other_form(scene):
    _, field, table, factor, depth = scene
    m, n, d = field.shape
    data = dipole(field, 40)
    result = clara.run(field, factor, data, LAMBDA2, table, depth=depth, n_steps=1)
    penalty = factor.operator.toarray() @ np.diag(1 / depth)
    cov = np.kron(np.linalg.inv(penalty.T @ penalty), np.eye(d))
    flat = field.reshape(m, -1)
    scale = np.trace(flat @ cov @ flat.T) / m
    # The n d x n d form of the estimate, with the penalty in place of the covariance.
    system = flat.T @ flat + LAMBDA2 * scale * np.kron(penalty.T @ penalty, np.eye(d))
    expected = np.linalg.solve(system, flat.T @ data).reshape(n, d, -1)
    # Conditions of the system up to 1e8.
    np.testing.assert_allclose(result.estimate, expected, atol=1e-7 * np.abs(expected).max())
    one = clara.loreta(field, factor, data, LAMBDA2, depth)
    np.testing.assert_array_equal(result.estimate, one)
    assert np.all(result.weights == 1) and result.maps.shape == (1, n)


def test_support_shrinks_and_the_image_sharpens(scene):
    _, field, table, factor, depth = scene
    noise = np.random.default_rng(1).standard_normal((M, 3))
    data = dipole(field, 30) + dipole(field, 200, seed=1) + 0.1 * noise
    result = clara.run(field, factor, data, LAMBDA2, table, depth=depth, n_steps=8, cut=0.1)
    support = result.weights > 0
    assert np.all(support[1:] <= support[:-1]) and support[-1].sum() < 0.8 * support[1].sum()
    # An image lives on its support.
    assert np.all(result.maps[~support] == 0)
    share = np.sort(result.maps**2, axis=1)[:, ::-1].cumsum(axis=1)
    n_half = np.argmax(share >= 0.5 * share[:, -1:], axis=1)
    assert np.all(np.diff(n_half) <= 0) and n_half[-1] < 0.6 * n_half[0]


def test_one_dipole_is_approached(scene):
    """Without noise the peak moves from LORETA's, which is off by most of a step, to the source."""
    pos, field, table, factor, depth = scene
    places = np.arange(0, len(pos), 7)
    errors = []
    for j in places:
        result = clara.run(field, factor, dipole(field, j), 1e-3, table, depth=depth, n_steps=6)
        errors.append(np.linalg.norm(pos[np.argmax(result.maps, axis=1)] - pos[j], axis=1))
    mean = np.mean(errors, axis=0)
    assert np.all(np.diff(mean) <= 0) and mean[0] > 0.005 and mean[-1] < 0.002
    # Peaks that LORETA has right stay.
    right = np.array(errors)[:, 0] == 0
    assert right.any() and np.all(np.array(errors)[right, -1] == 0)


def test_scales_and_callbacks(scene):
    _, field, table, factor, depth = scene
    data = dipole(field, 100)
    first = clara.run(field, factor, data, LAMBDA2, table, depth=depth)
    doubled = clara.run(field, factor, 2 * data, LAMBDA2, table, depth=5 * depth)
    np.testing.assert_allclose(doubled.estimate, 2 * first.estimate, atol=1e-10)

    def solve(weights):
        return clara.loreta(field, factor, data, LAMBDA2, weights)

    called = clara.run(field, solve, data, LAMBDA2, table, depth=depth)
    np.testing.assert_array_equal(called.estimate, first.estimate)


def test_what_was_removed_stays_removed(scene):
    _, field, table, _, _ = scene
    images = np.ones((3, field.shape[1], 1, 1))
    images[0, 20:] = 1e-6
    pile = list(images)
    result = clara.run(field, lambda weights: pile.pop(0), dipole(field, 3), LAMBDA2, table)
    gone = result.weights[1] == 0
    assert gone.any() and np.all(result.weights[2, gone] == 0)
    np.testing.assert_allclose(result.weights[2, ~gone], 1, rtol=1e-14)


def test_bad_input(scene):
    _, field, table, factor, _ = scene
    data = dipole(field, 3)
    with pytest.raises(ValueError, match="data must have shape"):
        clara.run(field, factor, data[1:], LAMBDA2, table)
    with pytest.raises(ValueError, match="data are zero"):
        clara.run(field, factor, 0 * data, LAMBDA2, table)
    with pytest.raises(ValueError, match="neighbours must be an integer table"):
        clara.run(field, factor, data, LAMBDA2, table[1:])
    with pytest.raises(ValueError, match="lambda2 must be positive"):
        clara.run(field, factor, data, 0.0, table)
    with pytest.raises(ValueError, match="no source that the lead field"):
        clara.loreta(field, factor, data, LAMBDA2, np.zeros(field.shape[1]))
