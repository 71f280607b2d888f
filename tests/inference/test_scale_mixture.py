"""The Gibbs sampler of group-Laplace sources against quadrature, its prior and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayes_esi.inference import scale_mixture

KEY = jax.random.key(0)


def effective(draws):
    """Standard error of the mean of (n_chains, n_samples) draws, from the spread of chains."""
    means = draws.mean(axis=1)
    return means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize(("mean", "shape"), [(0.5, 2.0), (30.0, 0.7), (1e6, 1.0)])
def test_draws_are_inverse_gaussian(mean, shape):
    n = 20_000
    draws = scale_mixture.inverse_gaussian(KEY, jnp.full(n, mean), jnp.full(n, shape))
    law = stats.invgauss(mean / shape, scale=shape)
    assert stats.kstest(np.asarray(draws), law.cdf).pvalue > 1e-3


def test_one_scalar_source_follows_its_law():
    """One component and one sample: the density of x on a grid."""
    gain, y, alpha = np.array([[0.8], [-0.5]]), np.array([[1.4], [0.2]]), 1.3
    draws = scale_mixture.run(
        KEY, y, gain[:, :, None], alpha, n_chains=40, n_warmup=50, n_samples=500
    )
    x = np.linspace(-20, 20, 40_001)
    log_density = -0.5 * np.sum((y - gain * x) ** 2, axis=0) - alpha * np.abs(x)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    for of in (np.abs, np.square):
        expected = np.sum(density * of(x))
        found = of(draws.norm[:, :, 0])
        assert abs(found.mean() - expected) < 4 * effective(found)
    is_loud = np.sum(density * (np.sum(gain**2) * x**2 > 1))
    found = draws.is_loud[:, :, 0].astype(float)
    assert abs(found.mean() - is_loud) < 4 * effective(found)


def test_two_sources_follow_their_law():
    """Two correlated sources of one component: moments of the norms on a grid."""
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((3, 2)) + 1.0
    y, alpha, weights = np.array([2.0, -0.5, 1.5]), 0.9, np.array([1.0, 2.0])
    draws = scale_mixture.run(
        KEY, y[:, None], gain[:, :, None], alpha, weights,
        n_chains=40, n_warmup=100, n_samples=500,
    )  # fmt: skip
    axis = np.linspace(-12, 12, 1201)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    misfit = y - grid @ gain.T
    log_density = -0.5 * np.sum(misfit**2, axis=-1) - alpha * np.abs(grid) @ weights
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    for j in range(2):
        found = draws.norm[:, :, j]
        expected = np.sum(density * np.abs(grid[..., j]))
        # Steps of the grid: 0.02, whose error is far below.
        assert abs(found.mean() - expected) < 4 * effective(found) + 1e-3


def test_without_data_norms_keep_their_prior():
    """|X_j| of the prior is a gamma law with shape D and rate alpha w_j."""
    n, d, n_times, alpha = 6, 3, 4, 2.0
    weights = np.linspace(1, 2, n)
    field = 1e-8 * np.random.default_rng(0).standard_normal((5, n, d))
    draws = scale_mixture.run(
        KEY, np.full((5, n_times), 1e-6), field, alpha, weights,
        n_chains=50, n_warmup=20, n_samples=200,
    )  # fmt: skip
    for j in range(n):
        law = stats.gamma(d * n_times, scale=1 / (alpha * weights[j]))
        found = draws.norm[:, :, j]
        assert abs(found.mean() - law.mean()) < 4.5 * effective(found)
        square = found**2
        assert abs(square.mean() - (law.var() + law.mean() ** 2)) < 4.5 * effective(square)
    assert not draws.is_loud.any()


def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(2)
    field, data = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 6))
    options = {"n_chains": 2, "n_warmup": 25, "n_samples": 40}
    whole = scale_mixture.run(KEY, data, field, 2.0, **options)

    def interrupt(done):
        if done > 0.5:
            raise KeyboardInterrupt

    path = tmp_path / "chains.npz"
    with pytest.raises(KeyboardInterrupt):
        scale_mixture.run(KEY, data, field, 2.0, **options, checkpoint=path, progress=interrupt)
    assert path.exists()
    again = scale_mixture.run(KEY, data, field, 2.0, **options, checkpoint=path)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not path.exists()
    with pytest.raises(ValueError, match="alpha"):
        scale_mixture.run(KEY, data, field, 0.0)
