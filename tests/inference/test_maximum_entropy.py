"""Maximum entropy on the mean: minimum norm, the dual by autodiff and SciPy, limits, symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bayes_esi.inference import maximum_entropy


def scene(m=10, n=24, d=2, n_times=5, n_parcels=6, seed=0):
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((m, n, d))
    labels = np.arange(n) % n_parcels
    moments = np.zeros((n, d, n_times))
    moments[labels == 2] = 1.5 * rng.standard_normal((np.sum(labels == 2), d, n_times))
    data = np.einsum("mjd,jdt->mt", field, moments) + rng.standard_normal((m, n_times))
    return data, field, labels


def law(n=24, n_parcels=6, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.05, 0.9, n_parcels), rng.uniform(0.2, 2, n)


def test_certain_parcels_are_a_weighted_minimum_norm():
    data, field, labels = scene()
    var = law()[1]
    result = maximum_entropy.run(
        data, field, labels, probability=np.ones(6), source_var=var, noise_var=0.7
    )
    flat = field.reshape(10, -1)
    weighted = flat * np.repeat(var, 2)
    expected = weighted.T @ np.linalg.solve(weighted @ flat.T + 0.7 * np.eye(10), data)
    np.testing.assert_allclose(result.mean, expected.reshape(24, 2, 5), atol=1e-12)
    assert np.all(result.n_steps == 1) and np.all(result.is_converged)


@pytest.mark.parametrize("d", [1, 3])
def test_maximum_of_the_dual(d):
    data, field, labels = scene(d=d)
    probability, var = law()
    mu = 0.3 * np.random.default_rng(2).standard_normal((24, d))
    result = maximum_entropy.run(
        data,
        field,
        labels,
        probability=probability,
        source_var=var,
        source_mean=mu,
        noise_var=0.8,
        tol=1e-12,
    )
    assert np.all(result.is_converged) and result.n_steps.max() < 30

    @jax.jit
    def by_hand(xi, y):
        total = xi @ y - 0.4 * xi @ xi
        for k in range(6):
            own = labels == k
            u = jnp.einsum("mjd,m->jd", field[:, own], xi)
            exponent = jnp.sum(var[own][:, None] * u**2) / 2 + jnp.sum(u * mu[own])
            total = total - jnp.log(1 - probability[k] + probability[k] * jnp.exp(exponent))
        return total

    slope = jax.jit(jax.grad(by_hand))
    for t in range(5):
        xi, y = np.asarray(result.dual[:, t]), data[:, t]
        assert np.isclose(result.value[t], by_hand(xi, y), rtol=1e-12)
        assert np.linalg.norm(slope(xi, y)) < 1e-10 * np.linalg.norm(y)
        found = minimize(
            lambda x, y=y: (-float(by_hand(x, y)), -np.asarray(slope(x, y))),
            np.zeros(10),
            jac=True,
            method="BFGS",
        )
        np.testing.assert_allclose(xi, found.x, atol=1e-4)
        # Stationarity is the constraint: the mean explains the data up to noise_var xi.
        fitted = np.einsum("mjd,jd->m", field, result.mean[:, :, t])
        np.testing.assert_allclose(fitted, y - 0.8 * xi, atol=1e-10)
    # Concave: along any line the middle is above the mean of the ends.
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.standard_normal((2, 10))
        y = data[:, 0]
        assert by_hand((a + b) / 2, y) >= (by_hand(a, y) + by_hand(b, y)) / 2 - 1e-10


def test_limits_and_symmetries():
    data, field, labels = scene()
    probability, var = law()

    def solve(data=data, field=field, probability=probability, labels=labels):
        return maximum_entropy.run(
            data, field, labels, probability=probability, source_var=var, tol=1e-11
        )

    base = solve()
    np.testing.assert_allclose(solve(data=-data).mean, -base.mean, atol=1e-9)
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    turned = solve(data=rows @ data, field=np.tensordot(rows, field, 1))
    np.testing.assert_allclose(turned.mean, base.mean, atol=1e-9)
    order = rng.permutation(5)
    np.testing.assert_allclose(solve(data=data[:, order]).mean, base.mean[..., order], atol=1e-9)
    # Impossible parcels are silent; unlikely ones nearly so.
    silent = solve(probability=np.where(np.arange(6) == 2, 0.0, probability))
    assert not np.any(silent.mean[labels == 2])
    # Where F, at most that of xi = y, leaves them so.
    quiet = solve(data=0.01 * data, probability=np.full(6, 1e-12))
    assert np.abs(quiet.mean).max() < 1e-9
    zero = solve(data=np.zeros_like(data))
    assert not np.any(zero.mean) and np.all(zero.is_converged)
    # Not homogeneous.
    assert np.abs(solve(data=2 * data).mean - 2 * base.mean).max() > 0.05
    # Sources in no parcel are as if they were not there.
    without = np.where(labels == 5, -1, labels)
    fewer = maximum_entropy.run(
        data, field, without, probability=probability[:5], source_var=var, tol=1e-11
    )
    none = solve(probability=np.where(np.arange(6) == 5, 0.0, probability))
    np.testing.assert_allclose(fewer.mean, none.mean, atol=1e-9)
    assert fewer.active.shape == (5, 5)


def test_defaults_find_the_parcel():
    data, field, labels = scene(m=16, n_times=12, seed=4)
    result = maximum_entropy.run(data, field, labels)
    assert np.all(result.is_converged)
    assert np.argmax(np.sum(result.mean**2, axis=(1, 2)).reshape(4, 6).sum(axis=0)) == 2
    probability, var = maximum_entropy.reference_law(data, field, labels)
    assert probability.shape == (6,) and np.all((probability > 0) & (probability < 1))
    expected = np.sum(probability[labels] * var * np.sum(field**2, axis=(0, 2)))
    assert np.isclose(expected, np.mean(np.sum(data**2, axis=0)) - 16, rtol=1e-10)


def test_strong_data_and_single_precision():
    """F of thousands: nothing overflows, and the line search brings Newton home."""
    data, field, labels = scene()
    probability, var = law()
    for size in (30.0, 1000.0):
        args = {"probability": probability, "source_var": var}
        result = maximum_entropy.run(size * data, field, labels, **args)
        assert np.all(result.is_converged) and np.all(np.isfinite(result.mean))
    low = maximum_entropy.run(data, field.astype(np.float32), labels, **args)
    assert low.mean.dtype == np.float32 and np.all(low.is_converged)
    high = maximum_entropy.run(data, field, labels, **args)
    np.testing.assert_allclose(low.mean, high.mean, atol=1e-3)
    n_traced = maximum_entropy._run._cache_size()
    other = scene(seed=7)
    maximum_entropy.run(*other, **args, noise_var=2.0, tol=1e-6)
    assert maximum_entropy._run._cache_size() == n_traced


def test_the_score_is_highest_at_a_single_source():
    """Standardised estimates of one source without noise have their peak there, at any depth."""
    rng = np.random.default_rng(2)
    field = rng.standard_normal((12, 20, 3)) * np.geomspace(0.05, 1, 20)[:, None]
    for place in range(20):
        data = field[:, place] @ rng.standard_normal((3, 4))
        score = maximum_entropy.score(data, field, noise_var=1e-3 * np.mean(data**2))
        assert score.shape == (20,) and np.argmax(score) == place
    data[0, 0] = np.nan
    with pytest.raises(ValueError, match="data"):
        maximum_entropy.score(data, field)


def test_refusals():
    data, field, labels = scene()
    for bad, word in (
        ({"labels": labels[:-1]}, "labels"),
        ({"labels": np.where(labels == 3, 7, labels)}, "labels"),
        ({"probability": np.full(6, 1.5)}, "probability"),
        ({"source_var": -np.ones(24)}, "source_var"),
        ({"noise_var": 0.0}, "noise_var"),
    ):
        with pytest.raises(ValueError, match=word):
            maximum_entropy.run(**{"data": data, "lead_field": field, "labels": labels, **bad})
