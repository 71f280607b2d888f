"""Reweighted mixed norms: the objective falls, supports are nested, the end is stationary."""

import itertools

import numpy as np
import pytest

from bayes_esi.inference import group_scales, irmxne, mixed_norm

M, N, D, T = 20, 60, 3, 7


def make(seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((M, N, D))
    field[:, 1:] += 0.7 * field[:, :-1]
    data = noise * rng.standard_normal((M, T))
    for j in (5, 20, 40):
        data += field[:, j] @ (2 * rng.standard_normal((D, 1)) @ rng.standard_normal((1, T)))
    return data, field, rng.uniform(0.5, 2, N)


def objective(data, field, alpha, weights, unit, support, sources):
    misfit = data - mixed_norm.predict(field, support, sources)
    norms = np.linalg.norm(sources, axis=(1, 2))
    return 0.5 * np.sum(misfit**2) + alpha * weights[support] @ np.sqrt(unit * norms)


@pytest.mark.parametrize("unit", [1.0, 20.0])
def test_objective_never_rises_and_supports_are_nested(unit, monkeypatch):
    supports, solve = [], group_scales.run

    def spy(field, *args):
        found = solve(field, *args)
        lengths = np.linalg.norm(found.sources, axis=(1, 2))
        supports.append({tuple(f) for f in np.asarray(field)[lengths > 0, 0].round(9)})
        return found

    for seed in range(3):
        data, field, weights = make(seed)
        alpha = 0.15 * mixed_norm.alpha_max(data, field, weights)
        supports.clear()
        monkeypatch.setattr(group_scales, "run", solve)
        first = mixed_norm.run(data, field, alpha, weights)
        monkeypatch.setattr(group_scales, "run", spy)
        found = irmxne.run(data, field, alpha, weights, unit=unit, tol=1e-10)
        assert found.is_converged and found.gap >= 0
        assert np.all(np.diff(found.objective) <= 0) and len(found.objective) > 3
        assert np.all(np.diff(found.n_active) <= 0) and found.n_active[0] >= len(first.support)
        assert set(found.support) <= set(first.support)
        # The first call inside is traced within the mixed norm; the others are reweightings.
        nested = supports[-len(found.objective) + 1 :]
        assert all(later <= former for former, later in itertools.pairwise(nested))
        value = objective(data, field, alpha, weights, unit, found.support, found.sources)
        assert value == pytest.approx(found.objective[-1], rel=1e-12)
    if unit > 1:
        assert len(found.support) < len(first.support)


def test_the_end_is_stationary():
    """G_j'(Y - G X) = alpha w_j/2 (u / |X_j|)^(1/2) X_j / |X_j| on the support."""
    data, field, weights = make(4)
    alpha = 0.1 * mixed_norm.alpha_max(data, field, weights)
    found = irmxne.run(data, field, alpha, weights, unit=5.0, tol=1e-13, max_reweightings=200)
    misfit = data - mixed_norm.predict(field, found.support, found.sources)
    linked = np.einsum("mnd,mt->ndt", field[:, found.support], misfit)
    norms = np.linalg.norm(found.sources, axis=(1, 2))
    pull = 0.5 * alpha * weights[found.support] * np.sqrt(5.0) / norms**1.5
    # The weights still move by the root of the last decrease of the objective.
    np.testing.assert_allclose(linked, pull[:, None, None] * found.sources, atol=1e-4 * alpha)


def test_a_single_source_in_closed_form():
    """One source, one number: x + alpha/2 sqrt(u / x) = y, the larger root."""
    field = np.ones((1, 1, 1))
    found = irmxne.run(np.full((1, 1), 9.0), field, 2.0, tol=1e-14, max_reweightings=100)
    roots = np.roots([1, 0, -9.0, 1.0])  # of sqrt(x)
    assert found.sources[0, 0, 0] == pytest.approx(roots.max() ** 2, rel=1e-7)


def test_unit_is_that_of_the_sources():
    """Fields measured in other units, sources and unit in the opposite ones: the same answer."""
    data, field, weights = make(5)
    alpha = 0.2 * mixed_norm.alpha_max(data, field, weights)
    one = irmxne.run(data, field, alpha, weights, unit=3.0)
    other = irmxne.run(data, 10 * field, 10 * alpha, weights, unit=0.3)
    np.testing.assert_array_equal(one.support, other.support)
    np.testing.assert_allclose(one.sources, 10 * other.sources, atol=1e-6)


def test_nothing_is_left():
    data, field, _ = make(6)
    most = mixed_norm.alpha_max(data, field)
    none = irmxne.run(data, field, 1.1 * most)
    assert none.is_converged and none.support.size == 0 and none.sources.shape == (0, D, T)
    # A large unit drives everything to zero after the first problem.
    gone = irmxne.run(data, field, 0.8 * most, unit=1e6)
    assert gone.is_converged and gone.support.size == 0 and gone.n_active[0] > 0
    assert gone.objective[-1] == pytest.approx(0.5 * np.sum(data**2), rel=1e-12)


def test_out_of_reweightings_says_so():
    data, field, _ = make(7)
    alpha = 0.1 * mixed_norm.alpha_max(data, field)
    assert not irmxne.run(data, field, alpha, tol=1e-12, max_reweightings=1).is_converged


def test_bad_input():
    data, field, _ = make()
    with pytest.raises(ValueError, match="unit must be positive"):
        irmxne.run(data, field, 1.0, unit=0)
    with pytest.raises(ValueError, match="max_reweightings must be an integer"):
        irmxne.run(data, field, 1.0, max_reweightings=0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        irmxne.run(data, field, np.nan)
