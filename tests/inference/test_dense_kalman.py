import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayes_esi.inference import dense_kalman, kalman
from bayes_esi.linalg.whitening import whitener_of
from bayes_esi.models import time_kernels as tk

RNG = np.random.default_rng(7)
N, M, N_TIMES = 5, 3, 6
NOISE_VAR = np.array(0.6)
LEAD_FIELD = RNG.normal(size=(M, N))
TRANSITION = 0.5 * RNG.normal(size=(N, N)) / np.sqrt(N) + 0.6 * np.eye(N)
TRANSITION[:, -1] = 0  # singular, and one mode grows by 1.2 a sample
PROCESS = RNG.normal(size=(N, 2))  # rank 2
INITIAL = RNG.normal(size=(N, N)) * np.array([1, 1, 1, 1, 0])  # rank 4
DATA = RNG.normal(size=(M, N_TIMES))


def prior_paths(transition, process, initial, n_times):
    """Covariance of the stacked states of all samples."""
    n = transition.shape[0]
    # Each state is linear in the independent normals of the start and of every step.
    columns = n + (n_times - 1) * process.shape[1]
    state = np.zeros((n_times, n, columns))
    state[0, :, :n] = initial
    for t in range(1, n_times):
        state[t] = transition @ state[t - 1]
        start = n + (t - 1) * process.shape[1]
        state[t, :, start : start + process.shape[1]] = process
    state = state.reshape(n_times * n, columns)
    return state @ state.T


def conditioned(design, data, paths, noise_var):
    """Mean, covariance and log density from the dense joint Gaussian."""
    cov = design @ paths @ design.T + noise_var * np.eye(len(design))
    gain = np.linalg.solve(cov, design @ paths).T
    log_density = stats.multivariate_normal(np.zeros(len(cov)), cov).logpdf(data)
    return gain @ data, paths - gain @ design @ paths, log_density


def check(moments, designs, seen, paths, n, noise_var):
    """Compare with conditioning on the rows of each sample's design."""
    n_times = len(designs)

    def until(last):
        design = [np.kron(np.eye(n_times)[t], designs[t]) for t in range(last + 1)]
        return np.concatenate(design), np.concatenate(seen[: last + 1])

    mean, cov, log_density = conditioned(*until(n_times - 1), paths, noise_var)
    cov = cov.reshape(n_times, n, n_times, n)
    np.testing.assert_allclose(moments.smoothed_mean.T, mean.reshape(n_times, n), atol=1e-10)
    np.testing.assert_allclose(moments.log_likelihood, log_density, atol=1e-10)
    for t in range(n_times):
        factor = moments.smoothed_factor[t]
        np.testing.assert_allclose(factor @ factor.T, cov[t, :, t], atol=1e-10)
        if t:
            np.testing.assert_allclose(moments.lag_one_cov[t - 1], cov[t, :, t - 1], atol=1e-10)
        design, data = until(t)
        now = slice(t * n, (t + 1) * n)
        if not len(data):
            continue
        past_mean, past_cov, _ = conditioned(design, data, paths, noise_var)
        factor = moments.filtered_factor[t]
        np.testing.assert_allclose(moments.filtered_mean[:, t], past_mean[now], atol=1e-10)
        np.testing.assert_allclose(factor @ factor.T, past_cov[now, now], atol=1e-10)


def test_filter_and_smoother_are_dense_conditioning():
    moments = dense_kalman.run(DATA, LEAD_FIELD, TRANSITION, PROCESS, INITIAL, NOISE_VAR)
    paths = prior_paths(TRANSITION, PROCESS, INITIAL, N_TIMES)
    check(moments, [LEAD_FIELD] * N_TIMES, list(DATA.T), paths, N, NOISE_VAR)
    assert moments.lag_one_cov.shape == (N_TIMES - 1, N, N)


def test_channels_that_go_bad_are_left_out():
    n_channels = 4
    root = RNG.normal(size=(n_channels, n_channels)) * np.array([1e-6, 1e-6, 1e-13, 1e-13])[:, None]
    noise_cov = root @ root.T
    field = root @ RNG.normal(size=(n_channels, N))
    data = root @ RNG.normal(size=(n_channels, N_TIMES))
    is_missing = np.zeros((n_channels, N_TIMES), bool)
    is_missing[0, 1] = is_missing[[0, 2], 2] = is_missing[[0, 2], 5] = is_missing[:, 3] = True
    whitener, log_pdet = whitener_of(noise_cov)
    observation, change = dense_kalman.observation_patterns(whitener, is_missing)
    assert len(observation.operators) == 4
    # Whatever the bad channels hold must not matter.
    blank = np.where(is_missing, 1e3 * data, data)
    moments = dense_kalman.run(
        whitener @ blank, whitener @ field, TRANSITION, PROCESS, INITIAL, NOISE_VAR, observation
    )
    designs, seen, log_jacobian = [], [], 0.0
    for t in range(N_TIMES):
        good = np.flatnonzero(~is_missing[:, t])
        alone = np.zeros((0, len(good)))
        if good.size:
            alone, one = whitener_of(noise_cov[np.ix_(good, good)])
            log_jacobian += one
        designs.append(alone @ field[good])
        seen.append(alone @ data[good, t])
    paths = prior_paths(TRANSITION, PROCESS, INITIAL, N_TIMES)
    check(moments, designs, seen, paths, N, NOISE_VAR)
    # The density of the good channels in their own units is the same either way. Scales of
    # 1e-6 and 1e-13 in one matrix leave singular values 1e-9 of their digits.
    np.testing.assert_allclose(change + N_TIMES * log_pdet, log_jacobian, atol=1e-7)
    np.testing.assert_array_equal(moments.innovations[:, 3], 0)


def test_bad_channel_in_an_average_reference_is_a_smaller_average_reference():
    n_channels = 5
    raw_cov = np.diag(RNG.uniform(1, 2, n_channels))
    reference = np.eye(n_channels) - 1 / n_channels
    whitener, log_pdet = whitener_of(reference @ raw_cov @ reference)
    is_missing = np.zeros((n_channels, 2), bool)
    is_missing[1, 1] = True
    observation, change = dense_kalman.observation_patterns(whitener, is_missing)
    np.testing.assert_array_equal(observation.n_observed[observation.pattern], [4, 3])
    operator = observation.operators[observation.pattern[1]] @ whitener
    # A fault of the bad channel leaks into all channels when they are re-referenced.
    fault = reference[:, 1]
    np.testing.assert_allclose(operator @ fault, 0, atol=1e-14)
    good = [0, 2, 3, 4]
    smaller = np.eye(4) - 1 / 4
    alone, log_pdet_alone = whitener_of(smaller @ raw_cov[np.ix_(good, good)] @ smaller)
    raw = RNG.normal(size=n_channels)
    np.testing.assert_allclose(
        np.sum((operator @ reference @ raw) ** 2), np.sum((alone @ smaller @ raw[good]) ** 2)
    )
    np.testing.assert_allclose(change, log_pdet_alone - log_pdet, atol=1e-12)
    everything, _ = dense_kalman.observation_patterns(whitener, np.ones((n_channels, 2), bool))
    np.testing.assert_array_equal(everything.n_observed, [0])


def test_decoupled_channels_are_the_dense_filter_and_smoother():
    n, m, n_times, coefficient, noise_var = 60, 8, 20, 0.85, np.array(0.8)
    rng = np.random.default_rng(11)
    root = rng.normal(size=(n, n)) / np.sqrt(n)
    cov = root @ root.T
    field, data = rng.normal(size=(m, n)), 3 * rng.normal(size=(m, n_times))
    dense = dense_kalman.run(
        data, field, coefficient * np.eye(n), np.sqrt(1 - coefficient**2) * root, root, noise_var
    )
    signal_var, vectors = np.linalg.eigh(field @ cov @ field.T)
    arguments = (vectors.T @ data, signal_var, noise_var, tk.autoregressive(coefficient))
    back = cov @ field.T @ vectors / signal_var  # from the signals to the sources
    kept = [
        (kalman.filter_moments(*arguments), dense.filtered_mean, dense.filtered_factor),
        (kalman.smooth_moments(*arguments), dense.smoothed_mean, dense.smoothed_factor),
    ]
    for moments, mean, factor in kept:
        np.testing.assert_allclose(back @ moments.mean, mean, atol=1e-10)
        for t in range(n_times):
            lost = signal_var - moments.variance[:, t]
            np.testing.assert_allclose(
                cov - (back * lost) @ back.T, factor[t] @ factor[t].T, atol=1e-10
            )
        np.testing.assert_allclose(moments.log_likelihood, dense.log_likelihood, atol=1e-10)
    for t in range(n_times - 1):
        lost = coefficient * signal_var - moments.lag_one_cov[:, t]
        lag_one_cov = coefficient * cov - (back * lost) @ back.T
        np.testing.assert_allclose(lag_one_cov, dense.lag_one_cov[t], atol=1e-10)


def test_innovations_of_the_model_are_white():
    n_times, lags = 400, 20
    stable = 0.7 * TRANSITION
    rng = np.random.default_rng(5)
    state, data = INITIAL @ rng.normal(size=N), np.zeros((M, n_times))
    for t in range(n_times):
        data[:, t] = LEAD_FIELD @ state + np.sqrt(NOISE_VAR) * rng.normal(size=M)
        state = stable @ state + PROCESS @ rng.normal(size=2)
    moments = dense_kalman.run(data, LEAD_FIELD, stable, PROCESS, INITIAL, NOISE_VAR)
    white = np.asarray(moments.innovations)
    assert min(ljung_box(x, lags) for x in white) > 1e-3  # fixed seed
    assert stats.kstest(np.ravel(white), "norm").pvalue > 1e-3
    wrong = dense_kalman.run(data, LEAD_FIELD, 0 * stable, PROCESS, INITIAL, NOISE_VAR)
    assert min(ljung_box(x, lags) for x in np.asarray(wrong.innovations)) < 1e-6


def ljung_box(series, lags):
    """p-value that the first autocorrelations are those of white noise."""
    centred = series - series.mean()
    n = len(series)
    corr = np.array([centred[k:] @ centred[: n - k] for k in range(1, lags + 1)])
    corr = corr / (centred @ centred)
    statistic = n * (n + 2) * np.sum(corr**2 / (n - np.arange(1, lags + 1)))
    return stats.chi2(lags).sf(statistic)


def test_float32():
    arguments = (DATA, LEAD_FIELD, TRANSITION, PROCESS, INITIAL, NOISE_VAR)
    exact = dense_kalman.run(*arguments)
    single = dense_kalman.run(*(jnp.asarray(a, jnp.float32) for a in arguments))
    for got, want, name in zip(single, exact, exact._fields, strict=True):
        assert got.dtype == jnp.float32
        if name.endswith("factor"):  # unique up to a rotation
            got, want = (f @ jnp.swapaxes(f, 1, 2) for f in (got, want))
        np.testing.assert_allclose(got, want, atol=2e-5)  # single precision, numbers below 10


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="process_cov must be positive semidefinite"):
        dense_kalman.factor_of(np.diag([1.0, -0.1]), "process_cov")
    with pytest.raises(ValueError, match="must be a symmetric"):
        dense_kalman.factor_of(np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"is_missing must be a boolean array \(3, n_times\)"):
        dense_kalman.observation_patterns(np.eye(3), np.zeros((2, 4), bool))
    cov = RNG.normal(size=(4, 2)) @ RNG.normal(size=(2, 4))
    cov = cov @ cov.T
    factor = dense_kalman.factor_of(cov)
    np.testing.assert_allclose(factor @ factor.T, cov, atol=1e-14)
    assert isinstance(jax.tree.leaves(factor)[0], np.ndarray)
