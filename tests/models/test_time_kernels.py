import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from bayes_esi.models import time_kernels as tk

N_TIMES = 12
LAG = np.abs(np.arange(N_TIMES)[:, None] - np.arange(N_TIMES))


def test_ar1_covariance_is_a_power_of_the_lag():
    kernel = tk.autoregressive(0.8)
    np.testing.assert_allclose(kernel.covariance(N_TIMES), 0.8**LAG, atol=1e-15)
    np.testing.assert_allclose(kernel.variance(N_TIMES), 1, atol=1e-15)
    np.testing.assert_array_equal(tk.autoregressive(0).covariance(N_TIMES), np.eye(N_TIMES))


@pytest.mark.parametrize("coefficient", [[0.5, 0.3], [0.0, 0.0, 0.6], [1.2, -0.7, 0.2, -0.1]])
def test_ar_covariance_is_that_of_its_impulse_response(coefficient):
    kernel = tk.autoregressive(np.array(coefficient))
    # An independent road to the autocovariance: correlate the impulse response with itself.
    # 4000 samples leave less than 1e-16 of it for these processes.
    impulse = np.zeros(4000)
    impulse[0] = 1
    response = signal.lfilter([1.0], np.r_[1.0, -np.array(coefficient)], impulse)
    gamma = np.array([response[k:] @ response[: response.size - k] for k in range(N_TIMES)])
    # Rounding of sums of 4000 terms.
    np.testing.assert_allclose(kernel.covariance(N_TIMES), (gamma / gamma[0])[LAG], atol=1e-13)
    np.testing.assert_allclose(kernel.process_cov[0, 0], 1 / gamma[0], rtol=1e-13)


def test_stationary_covariance_solves_the_lyapunov_equation():
    kernel = tk.from_partial_autocorrelations(np.array([0.9, -0.5, 0.3, 0.2, -0.1]))
    after = kernel.transition @ kernel.initial_cov @ kernel.transition.T + kernel.process_cov
    np.testing.assert_allclose(after, kernel.initial_cov, atol=1e-14)


def test_partial_autocorrelations_are_those_of_the_covariance():
    partial = np.array([0.6, -0.4, 0.3])
    corr = np.asarray(tk.from_partial_autocorrelations(partial).covariance(N_TIMES))
    # The k-th partial autocorrelation is the last coefficient of the best predictor from k lags.
    found = [np.linalg.solve(corr[:k, :k], corr[1 : k + 1, 0])[-1] for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, [*partial, 0], atol=1e-14)


@pytest.mark.parametrize("order", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("step", [1e-3, 0.05, 2.0])
def test_matern_covariance_is_the_formula(order, step):
    time_scale = 0.1
    r = np.sqrt(2 * order) * LAG * step / time_scale
    formula = {0.5: 1, 1.5: 1 + r, 2.5: 1 + r + r**2 / 3}[order] * np.exp(-r)
    kernel = tk.matern(order, time_scale, step)
    np.testing.assert_allclose(kernel.covariance(N_TIMES), formula, atol=1e-14)
    np.testing.assert_allclose(kernel.variance(N_TIMES), 1, atol=1e-14)


def test_matern_process_covariance_keeps_its_digits_at_small_steps():
    u = 1e-3
    q = tk.matern(2.5, np.sqrt(5.0), u).process_cov
    # Leading terms of the integral of g g', g = (s^2 / 2, s, 1): errors of relative order u.
    leading = 16 / 3 * np.array([[u**5 / 20, u**4 / 8, u**3 / 6], [0, u**3 / 3, u**2 / 2]])
    upper = np.triu_indices(2, m=3)
    np.testing.assert_allclose(np.asarray(q)[:2][upper], leading[upper], rtol=5 * u)
    # Positive definite to rounding although the eigenvalues span 13 orders of magnitude.
    scale = np.sqrt(np.diag(q))
    assert np.linalg.eigvalsh(q / np.outer(scale, scale))[0] > 1e-3
    both = [tk.matern(2.5, np.sqrt(5.0), u).process_cov for u in (1 - 1e-12, 1.0)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-10)  # the two branches meet


def test_random_walk_variance_grows_by_one_each_time_scale():
    kernel = tk.random_walk(0.5, 0.1)
    np.testing.assert_allclose(kernel.variance(11)[::5], [1, 2, 3], rtol=1e-14)
    t = np.arange(6)
    np.testing.assert_allclose(kernel.covariance(6), 1 + 0.2 * np.minimum.outer(t, t), rtol=1e-14)


@pytest.mark.parametrize(
    "make, at",
    [
        (tk.autoregressive, np.array([0.5, 0.2])),
        (tk.from_partial_autocorrelations, np.array([0.5, -0.2, 0.3])),
        (lambda p: tk.matern(2.5, p[0], p[1]), np.array([0.1, 0.02])),
        (lambda p: tk.random_walk(p[0], p[1]), np.array([0.1, 0.02])),
    ],
    ids=["ar", "partial", "matern", "walk"],
)
def test_kernels_are_differentiable(make, at):
    def value(p):
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(make(p))]
        return sum(jnp.sum(jnp.cos(1 + jnp.arange(leaf.size)) * leaf) for leaf in leaves)

    value, gradient = jax.jit(value), jax.jit(jax.grad(value))(at)
    for i, unit in enumerate(np.eye(len(at))):
        h = 1e-5 * at[i]
        numeric = (value(at + h * unit) - value(at - h * unit)) / (2 * h)
        # Central differences: rounding 1e-16 / h, truncation (h / scale)^2.
        np.testing.assert_allclose(gradient[i], numeric, rtol=1e-6)


def test_float32_stays_float32():
    kernel = tk.matern(2.5, np.float32(0.1), np.float32(0.001))
    assert {leaf.dtype for leaf in jax.tree.leaves(kernel)} == {np.dtype(np.float32)}
    # In single precision P - F P F' would be noise here: its smallest entry is 1e-10.
    exact = tk.matern(2.5, 0.1, 0.001).process_cov
    np.testing.assert_allclose(kernel.process_cov, exact, rtol=1e-4)


def test_stationarity_is_checked():
    np.testing.assert_array_equal(tk.check_stationary(0.9), [0.9])
    np.testing.assert_array_equal(tk.check_stationary([0.5, 0.3]), [0.5, 0.3])
    for bad in (1.0, -1.2, [0.5, 0.5], [0.0, 0.0, 1.1]):
        with pytest.raises(ValueError, match=r"coefficient must give a stationary.*random walk"):
            tk.check_stationary(bad)
    with pytest.raises(ValueError, match="order must be"):
        tk.matern(1.0, 0.1, 0.01)
