"""No-U-turn chains of a program: a law that is known, and what the loop around them does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayes_esi.inference import hamiltonian

COV = np.array([[2.0, 1.2, 0.0], [1.2, 1.0, 0.3], [0.0, 0.3, 1.0]])


def program(mean, chol):
    numpyro.sample("x", dist.MultivariateNormal(mean, scale_tril=chol))
    numpyro.sample("y", dist.LogNormal(0.5, 0.2))


def run(mean, *, n_samples=1000, n_warmup=210, variances=None, key=0):
    return hamiltonian.run(
        jax.random.key(key),
        program,
        (jnp.asarray(mean), jnp.asarray(np.linalg.cholesky(COV))),
        {"x": jnp.zeros((4, 3)), "y": jnp.zeros(4)},
        variances or {"x": jnp.ones(3), "y": jnp.asarray(0.04)},
        n_warmup=n_warmup,
        n_samples=n_samples,
        target_acceptance=0.8,
        progress=lambda done, **facts: None,
    )


@pytest.fixture(scope="module")
def chains():
    return run([1.0, -1.0, 5.0])


@pytest.mark.slow
def test_draws_have_the_law(chains):
    x = chains.coordinates["x"]
    assert x.shape == (4, 1000, 3)
    assert chains.diverging.shape == chains.n_steps.shape == (4, 1000)
    assert not chains.diverging.any()
    # Coordinates without constraints: the logarithm of y. Every fifth draw is independent.
    white = np.linalg.solve(np.linalg.cholesky(COV), (x - [1, -1, 5]).reshape(-1, 3)[::5].T)
    draws = [*white, (chains.coordinates["y"].ravel()[::5] - 0.5) / 0.2]
    assert min(stats.kstest(values, "norm").pvalue for values in draws) > 2.5e-4
    white = np.linalg.solve(np.linalg.cholesky(COV), (x - [1, -1, 5]).reshape(-1, 3).T)
    # 4,000 draws: 2.2 % of a variance if independent, and twice that as they are.
    np.testing.assert_allclose(white @ white.T / 4000, np.eye(3), atol=0.15)
    assert abs(chains.coordinates["y"].std() - 0.2) < 0.015
    mean = x.mean(axis=(0, 1))
    # Four chains of 1,000: a standard error is at most 2 % of a deviation; five of these.
    assert np.all(np.abs(mean - [1, -1, 5]) < 0.1 * np.sqrt(np.diag(COV)))
    # Adapted: nothing moves any more, and trajectories are accepted as often as was asked.
    assert np.all(np.ptp(chains.step_size, axis=1) == 0)
    assert 0.7 < chains.acceptance_rate.mean() < 0.95


def test_other_data_and_length_compile_nothing_and_a_key_gives_its_bits(chains):
    size = hamiltonian._advance._cache_size()
    again = run([1.0, -1.0, 5.0], n_samples=40)
    assert hamiltonian._advance._cache_size() == size
    np.testing.assert_array_equal(again.coordinates["x"], chains.coordinates["x"][:, :40])
    other = run([0.0, 0.0, 0.0], n_samples=40)
    assert hamiltonian._advance._cache_size() == size
    assert np.all(other.coordinates["x"] != again.coordinates["x"])
