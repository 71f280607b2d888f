"""Sampler of active sources: the law of sets, variances and noise against sums over all of them."""

import itertools

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from bayes_esi.inference import spike_slab
from bayes_esi.models.hierarchical import log_odds

M, N, T, KEY = 10, 7, 3, jax.random.key(0)


def toy(d, seed=0, noise=1.0, strength=0.7):
    """Neighbours with like fields, two of them active and neither certain."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((M, N, d))
    field[:, 1] = field[:, 0] + 0.5 * rng.standard_normal((M, d))
    sources = np.zeros((N, d, T))
    sources[[1, 4]] = strength * rng.standard_normal((2, d, T))
    data = np.tensordot(field, sources, axes=2) + noise * rng.standard_normal((M, T))
    return data, field


def enumerate_sets(data, field, grid, probability, max_active, noise_vars):
    """Probability of each source, of each number, and of each noise level, by dense Gaussians."""
    odds = np.append(0, np.cumsum(log_odds(N, max_active, probability)[:-1]))
    told = []
    for k in range(max_active + 1):
        for places in itertools.combinations(range(N), k):
            for own in itertools.product(grid, repeat=k):
                signal = np.zeros((M, M))
                for j, g in zip(places, own, strict=True):
                    signal += g * field[:, j] @ field[:, j].T
                values, basis = np.linalg.eigh(signal)
                power = np.sum((basis.T @ data) ** 2, axis=1)
                total = values[:, None] + noise_vars
                log = -0.5 * np.sum(T * np.log(total) + power[:, None] / total, axis=0)
                told.append((places, log + odds[k] - k * np.log(len(grid))))
    logs = np.array([log for _, log in told])
    weights = np.exp(logs - logsumexp(logs))
    inclusion, number = np.zeros(N), np.zeros(max_active + 1)
    for (places, _), weight in zip(told, weights.sum(axis=1), strict=True):
        inclusion[list(places)] += weight
        number[len(places)] += weight
    return inclusion, number, weights.sum(axis=0)


@pytest.mark.parametrize(
    ("d", "probability", "is_noise_known"),
    [
        (1, None, True),
        pytest.param(1, 0.2, True, marks=pytest.mark.slow),
        pytest.param(1, None, False, marks=pytest.mark.slow),
        pytest.param(3, 0.1, True, marks=pytest.mark.slow),
        pytest.param(2, None, False, marks=pytest.mark.slow),
    ],
)
def test_law_of_sets_is_that_of_all_sets(d, probability, is_noise_known):
    max_active = 3
    data, field = toy(d)
    bounds = (0.05, 2.0)
    given = spike_slab.prepare(data, field, bounds, probability, max_active)
    noise_vars = np.array([1.0]) if is_noise_known else np.geomspace(0.1, 10, 200)
    grid = np.asarray(given.variances)
    inclusion, number, noise = enumerate_sets(
        data, field, grid, probability, max_active, noise_vars
    )
    drawn = spike_slab.run(
        KEY, data, field, bounds=bounds, probability=probability, max_active=max_active,
        noise_var=1.0 if is_noise_known else None, n_samples=3000, n_moves=5, n_warmup=20,
    )  # fmt: skip
    assert 0.05 < number.max() < 0.95
    is_on = drawn.source_var > 0
    counted = np.bincount(is_on.sum(axis=2).ravel(), minlength=max_active + 1) / is_on[..., 0].size
    # 12,000 draws, of which one in two to five is new: a standard error below 0.01.
    np.testing.assert_allclose(counted, number, atol=0.03)
    np.testing.assert_allclose(drawn.inclusion.mean(axis=0), inclusion, atol=0.02)
    seen = np.zeros(N)
    np.add.at(seen, drawn.places[is_on], 1 / is_on[..., 0].size)
    np.testing.assert_allclose(seen, inclusion, atol=0.03)
    if not is_noise_known:
        logs = np.log(noise_vars)
        mean = noise @ logs
        std = np.sqrt(noise @ (logs - mean) ** 2)
        found = np.log(drawn.noise_var)
        assert abs(found.mean() - mean) < 0.1 * std
        assert found.std() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("probability", [None, pytest.param(0.3, marks=pytest.mark.slow)])
def test_without_a_field_the_prior_stays(probability):
    data, field = toy(1)
    drawn = spike_slab.run(
        KEY, data, 1e-9 * field, bounds=(0.1, 1.0), probability=probability, max_active=4,
        n_samples=1500, n_moves=5, n_warmup=5,
    )  # fmt: skip
    log_pmf = np.append(0, np.cumsum(log_odds(N, 4, probability)[:-1]))
    log_sets = [np.log(len(list(itertools.combinations(range(N), k)))) for k in range(5)]
    expected = np.exp(log_pmf + log_sets - logsumexp(log_pmf + log_sets))
    if probability is None:
        np.testing.assert_allclose(expected, 0.2)
    number = (drawn.source_var > 0).sum(axis=2)
    counted = np.bincount(number.ravel(), minlength=5) / number.size
    # 6,000 draws, each some moves after the last: standard errors of 0.01.
    np.testing.assert_allclose(counted, expected, atol=0.04)
    mean = (expected @ np.arange(5)) / N
    np.testing.assert_allclose(drawn.inclusion.mean(axis=0), mean, atol=0.02)


def test_strong_sources_are_found_and_axes_do_not_matter():
    data, field = toy(3, strength=5.0)
    options = {"max_active": 4, "n_chains": 2, "n_samples": 100, "n_warmup": 20}
    drawn = spike_slab.run(KEY, data, field, **options)
    found = drawn.inclusion.mean(axis=0)
    assert np.all(found[[1, 4]] > 0.99) and np.all(np.delete(found, [1, 4]) < 0.2)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((N, 3, 3)))[0]
    turned = np.einsum("mnd,nde->mne", field, turn)
    again = spike_slab.run(KEY, data, turned, **options)
    np.testing.assert_allclose(again.inclusion, drawn.inclusion, atol=1e-8)
    single = spike_slab.run(KEY, data.astype(np.float32), field.astype(np.float32), **options)
    np.testing.assert_allclose(single.inclusion.mean(axis=0), found, atol=0.05)


def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path):
    data, field = toy(2)
    options = {"max_active": 3, "n_chains": 2, "n_samples": 25, "n_warmup": 15, "noise_var": None}
    path = tmp_path / "chains.npz"
    whole = spike_slab.run(KEY, data, field, **options)

    def stop(share):
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spike_slab.run(KEY, data, field, checkpoint=path, progress=stop, **options)
    assert path.exists()
    again = spike_slab.run(KEY, data, field, checkpoint=path, **options)
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not path.exists()


def test_other_data_compile_nothing():
    options = {"bounds": (0.1, 1.0), "n_chains": 2, "n_samples": 10, "n_warmup": 10}
    for seed in range(2):
        data, field = toy(2, seed)
        spike_slab.run(KEY, data, field, **options)
        size = spike_slab._sweeps._cache_size()
        if seed == 0:
            first = size
    assert size == first


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bounds": (2.0, 1.0)}, "bounds"),
        ({"bounds": (0.0, 1.0)}, "bounds"),
        ({"probability": 1.5}, "probability"),
        ({"noise_var": -1.0}, "noise_var"),
        ({"max_active": 0}, "max_active"),
        ({"n_moves": 0}, "n_moves"),
    ],
)
def test_bad_arguments_are_named(options, text):
    data, field = toy(1)
    with pytest.raises(ValueError, match=text):
        spike_slab.run(KEY, data, field, **options)
    field[0, 0] = np.nan
    with pytest.raises(ValueError, match="lead_field"):
        spike_slab.run(KEY, data, field)
