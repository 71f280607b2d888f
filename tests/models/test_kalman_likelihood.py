from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.models import time_kernels as tk
from bayes_esi.models.kalman_likelihood import log_likelihood

M, N_TIMES = 4, 11
SIGNAL_VAR = np.array([0.0, 0.3, 2.0, 50.0])  # a channel without signal is a common case
NOISE_VAR = np.array(0.7)
KERNELS = {
    "ar1": tk.autoregressive(0.8),
    "matern": tk.matern(2.5, 0.1, 0.02),
    "walk": tk.random_walk(0.1, 0.02),
}
RNG = np.random.default_rng(3)
DATA = RNG.normal(size=(M, N_TIMES))
OBSERVED = RNG.random(N_TIMES) > 0.3


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
def dense(data, signal_var, noise_var, kernel, observed):
    """Density of the Kronecker Gaussian process and its derivatives, channel by channel."""
    # A sample that is not observed becomes an independent standard normal that is zero.
    both = observed[:, None] & observed
    cov = jnp.where(both, signal_var[:, None, None] * kernel.covariance(N_TIMES), 0)
    cov = cov + jnp.diag(jnp.where(observed, noise_var, 1))
    data = jnp.where(observed, data, 0)
    solved = jnp.linalg.solve(cov, data[..., None])[..., 0]
    constant = M * jnp.sum(observed) * np.log(2 * np.pi)
    return -0.5 * (jnp.sum(data * solved) + jnp.sum(jnp.linalg.slogdet(cov)[1]) + constant)


value_and_scores = jax.jit(jax.value_and_grad(log_likelihood, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("observed", [np.ones(N_TIMES, bool), OBSERVED], ids=["all", "some"])
def test_value_and_scores_are_those_of_the_dense_density(name, observed):
    data = np.where(observed, DATA, np.nan)  # what is not observed must not matter
    arguments = (data, SIGNAL_VAR, NOISE_VAR, KERNELS[name])
    value, scores = value_and_scores(*arguments, observed)
    exact, exact_scores = dense(DATA, *arguments[1:], observed)
    np.testing.assert_allclose(value, exact, atol=1e-10)
    for got, want in zip(jax.tree.leaves(scores), jax.tree.leaves(exact_scores), strict=True):
        # A covariance moves symmetrically; the dense density reads one triangle of it only.
        if np.shape(got) == (3, 3):
            got, want = got + got.T, want + want.T
        # Rounding, in units of the largest entry: process covariances of Matern are near 1e-6.
        np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())


def parametrised(parameters):
    log_std, log_noise, coefficient = parameters
    kernel = tk.autoregressive(coefficient)
    return log_likelihood(DATA, SIGNAL_VAR * jnp.exp(2 * log_std), jnp.exp(log_noise), kernel)


@pytest.mark.slow
def test_gradient_hessian_forward_mode_and_vmap():
    at = jnp.array([0.3, -0.2, 0.6])
    value, gradient = (jax.jit(f) for f in (parametrised, jax.grad(parametrised)))
    h = 1e-5

    def differences(f):
        return [(f(at + h * e) - f(at - h * e)) / (2 * h) for e in np.eye(3)]

    np.testing.assert_allclose(gradient(at), differences(value), rtol=1e-7)  # rounding 1e-14 / h
    hessian = jax.jit(jax.hessian(parametrised))(at)
    np.testing.assert_allclose(hessian, differences(gradient), rtol=1e-7, atol=1e-7)
    forward = jax.jit(jax.jacfwd(parametrised))(at)
    np.testing.assert_allclose(forward, gradient(at), rtol=1e-12)  # the same pass, transposed
    many = at + np.array([0.0, 0.1, 0.2])[:, None] * np.array([1.0, -1.0, 1.0])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(parametrised)))(many)
    np.testing.assert_allclose(values, [value(p) for p in many], rtol=1e-12)
    np.testing.assert_allclose(gradients, [gradient(p) for p in many], rtol=1e-11)


def test_no_correlation_gives_independent_samples():
    value = log_likelihood(DATA, SIGNAL_VAR, NOISE_VAR, tk.autoregressive(0.0))
    var = (SIGNAL_VAR + NOISE_VAR)[:, None]
    np.testing.assert_allclose(
        value, -0.5 * np.sum(DATA**2 / var + np.log(2 * np.pi * var)), rtol=1e-14
    )


def test_nothing_observed_is_certain():
    nothing = np.zeros(N_TIMES, bool)
    value, scores = value_and_scores(DATA, SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"], nothing)
    assert value == 0
    assert all(np.all(score == 0) for score in jax.tree.leaves(scores))


def test_float32():
    arguments = (DATA, SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), arguments)
    everything = np.ones(N_TIMES, bool)
    exact, got = value_and_scores(*arguments, everything), value_and_scores(*single, everything)
    for single_leaf, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert single_leaf.dtype == jnp.float32
        # Sums of 44 terms in single precision.
        np.testing.assert_allclose(single_leaf, leaf, atol=1e-5 * np.abs(leaf).max())


def test_two_data_sets_share_one_trace():
    log_likelihood.clear_cache()
    for data in (DATA, 2 * DATA):
        log_likelihood(data, SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
    assert log_likelihood._cache_size() == 1
