import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.inference import kalman
from bayes_esi.models import time_kernels as tk

M, N_TIMES = 4, 11
SIGNAL_VAR = np.array([0.0, 0.3, 2.0, 50.0])  # a channel without signal is a common case
NOISE_VAR = np.array(0.7)
KERNELS = {
    "ar1": tk.autoregressive(0.8),
    "ar3": tk.from_partial_autocorrelations(np.array([0.7, -0.4, 0.2])),
    "walk": tk.random_walk(0.1, 0.02),
}
EVERYTHING = np.ones(N_TIMES, bool)
RNG = np.random.default_rng(4)
DATA = RNG.normal(size=(M, N_TIMES))
OBSERVED = RNG.random(N_TIMES) > 0.3


def conditioned(kernel, observed):
    """Condition the dense Gaussian process; mean, covariance, noise variance of the mean."""
    cov = SIGNAL_VAR[:, None, None] * np.asarray(kernel.covariance(N_TIMES))
    weight = cov[:, :, observed] @ np.linalg.inv(
        cov[:, observed][:, :, observed] + NOISE_VAR * np.eye(int(observed.sum()))
    )
    mean = np.einsum("mts,ms->mt", weight, DATA[:, observed])
    return mean, cov - weight @ cov[:, observed], NOISE_VAR * np.sum(weight**2, axis=2)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("observed", [EVERYTHING, OBSERVED], ids=["all", "some"])
def test_smoother_is_dense_conditioning(name, observed):
    kernel = KERNELS[name]
    data = np.where(observed, DATA, np.nan)  # what is not observed must not matter
    moments = kalman.smooth_moments(data, SIGNAL_VAR, NOISE_VAR, kernel, observed)
    mean, cov, noise = conditioned(kernel, observed)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-10)
    np.testing.assert_allclose(moments.variance, np.diagonal(cov, 0, 1, 2), atol=1e-10)
    np.testing.assert_allclose(moments.lag_one_cov, np.diagonal(cov, -1, 1, 2), atol=1e-10)
    np.testing.assert_allclose(moments.noise_gain, noise, atol=1e-10)
    value = kalman.log_likelihood(data, SIGNAL_VAR, NOISE_VAR, kernel, observed)
    np.testing.assert_allclose(moments.log_likelihood, value, rtol=1e-13)


@pytest.mark.parametrize("name", KERNELS)
def test_filter_is_dense_conditioning_on_the_past(name):
    kernel = KERNELS[name]
    data = np.where(OBSERVED, DATA, np.nan)
    moments = kalman.filter_moments(data, SIGNAL_VAR, NOISE_VAR, kernel, OBSERVED)
    for t in range(N_TIMES):
        mean, cov, noise = conditioned(kernel, OBSERVED & (np.arange(N_TIMES) <= t))
        np.testing.assert_allclose(moments.mean[:, t], mean[:, t], atol=1e-10)
        np.testing.assert_allclose(moments.variance[:, t], cov[:, t, t], atol=1e-10)
        np.testing.assert_allclose(moments.noise_gain[:, t], noise[:, t], atol=1e-10)
    value = kalman.log_likelihood(data, SIGNAL_VAR, NOISE_VAR, kernel, OBSERVED)
    np.testing.assert_allclose(moments.log_likelihood, value, rtol=1e-13)


@pytest.mark.parametrize("n_times", [1, N_TIMES])
def test_no_correlation_or_one_sample_is_independent_shrinkage(n_times):
    data = DATA[:, :n_times]
    gain = (SIGNAL_VAR / (SIGNAL_VAR + NOISE_VAR))[:, None]
    kernel = KERNELS["ar1"] if n_times == 1 else tk.autoregressive(0.0)
    for moments in (kalman.filter_moments, kalman.smooth_moments):
        got = moments(data, SIGNAL_VAR, NOISE_VAR, kernel, EVERYTHING[:n_times])
        np.testing.assert_allclose(got.mean, gain * data, rtol=1e-13)
        np.testing.assert_allclose(got.variance, NOISE_VAR * gain + 0 * data, rtol=1e-13)
        np.testing.assert_allclose(got.noise_gain, NOISE_VAR * gain**2 + 0 * data, rtol=1e-13)
    assert got.lag_one_cov.shape == (M, n_times - 1)
    np.testing.assert_array_equal(got.lag_one_cov, 0)


def test_a_walk_that_does_not_walk_is_the_average():
    walk = tk.random_walk(1e18, 1.0)
    got = kalman.smooth_moments(DATA, SIGNAL_VAR, NOISE_VAR, walk, EVERYTHING)
    var = 1 / (1 / SIGNAL_VAR[1:] + N_TIMES / NOISE_VAR)
    mean = var * DATA[1:].sum(axis=1) / NOISE_VAR
    # The walk moves by 1e-18 a sample.
    np.testing.assert_allclose(got.mean[1:], mean[:, None] + 0 * DATA[1:], atol=1e-13)
    np.testing.assert_allclose(got.variance[1:], var[:, None] + 0 * DATA[1:], rtol=1e-13)
    nearly = tk.autoregressive(1 - 1e-14)
    got = kalman.smooth_moments(DATA, SIGNAL_VAR, NOISE_VAR, nearly, EVERYTHING)
    np.testing.assert_allclose(got.mean[1:], mean[:, None] + 0 * DATA[1:], atol=1e-11)


def test_high_signal_loses_no_digits():
    signal_var = np.array([1e12])
    kernel = KERNELS["ar1"]
    got = kalman.smooth_moments(DATA[:1], signal_var, NOISE_VAR, kernel)
    # Information form, which is exact where the covariance form cancels.
    precision = np.linalg.inv(kernel.covariance(N_TIMES)) / signal_var + np.eye(N_TIMES) / NOISE_VAR
    cov = np.linalg.inv(precision)
    np.testing.assert_allclose(got.variance[0], np.diag(cov), rtol=1e-13)
    # Lag-one covariances are 1e-12 of the variances and still have their digits.
    np.testing.assert_allclose(got.lag_one_cov[0], np.diag(cov, -1), rtol=1e-4)
    lag = NOISE_VAR**2 * np.linalg.inv(kernel.covariance(N_TIMES)) / signal_var
    np.testing.assert_allclose(got.lag_one_cov[0], -np.diag(lag, -1), rtol=1e-10)


def test_gain_tends_to_the_steady_one():
    signal_var = np.array([0.0, 1e-3, 1.0, 1e3, 1e8])
    data = np.zeros((5, 2000))
    moments = kalman.filter_moments(data, signal_var, NOISE_VAR, tk.autoregressive(0.95))
    gain = kalman.steady_gain(signal_var, NOISE_VAR, 0.95)
    np.testing.assert_allclose(moments.variance[:, -1], NOISE_VAR * gain, rtol=1e-12)
    gain = kalman.steady_gain(signal_var, NOISE_VAR, 1.0)
    np.testing.assert_array_equal(gain, 0)


def test_draws_have_the_moments_of_the_smoother():
    kernel, n_draws = KERNELS["ar3"], 3000  # three states, process covariance of rank 1
    data = np.where(OBSERVED, DATA, np.nan)
    draws = kalman.sample_paths(
        jax.random.key(1), data, SIGNAL_VAR, NOISE_VAR, kernel, OBSERVED, n_draws=n_draws
    )
    mean, cov, _ = conditioned(kernel, OBSERVED)
    assert draws.shape == (n_draws, M, N_TIMES)
    np.testing.assert_allclose(draws[:, 0], 0, atol=1e-15)
    for i in range(1, M):
        # Whitened by the exact covariance, all moments have Monte Carlo errors of known size:
        # 33 means and 198 covariances below 4.5 standard errors fail once in 1000 seeds.
        white = np.linalg.solve(np.linalg.cholesky(cov[i]), (draws[:, i] - mean[i]).T)
        assert np.abs(white.mean(axis=1)).max() < 4.5 / np.sqrt(n_draws)
        error = white @ white.T / n_draws - np.eye(N_TIMES)
        assert np.abs(error).max() < 4.5 * np.sqrt(2 / n_draws)


def test_everything_is_observed_by_default():
    for moments in (kalman.filter_moments, kalman.smooth_moments):
        arguments = (DATA, SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
        for got, want in zip(
            jax.tree.leaves(moments(*arguments)),
            jax.tree.leaves(moments(*arguments, EVERYTHING)),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-14)


def test_float32():
    arguments = (DATA, SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), arguments)
    for moments in (kalman.filter_moments, kalman.smooth_moments):
        got, want = moments(*single), moments(*arguments, EVERYTHING)
        for single_leaf, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert single_leaf.dtype == jnp.float32
            np.testing.assert_allclose(single_leaf, leaf, rtol=1e-5, atol=1e-6)
