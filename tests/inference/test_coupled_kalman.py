"""The matrix-free filter and smoother against textbook recursions with dense matrices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import sparse, stats

from bayes_esi.inference import chandrasekhar, coupled_kalman, disturbance_smoother, stationary_gain
from bayes_esi.inference.gain_sequence import solve_gains
from bayes_esi.inference.sparse_product import multiply, sparse_matrix

N_STATES, N_CHANNELS, N_TIMES = 60, 8, 60
# Rounding of dense inverses and the tolerance 1e-12 of the gains, summed over samples.
EXACT = 1e-10


class Case(NamedTuple):
    data: np.ndarray
    lead_field: np.ndarray
    transition: sparse.csr_array
    process_cov: object
    noise_var: float
    states: np.ndarray  # the truth that made the data


class Moments(NamedTuple):
    log_likelihood: float
    filtered: np.ndarray
    filtered_var: np.ndarray
    smoothed: np.ndarray
    smoothed_var: np.ndarray
    predicted_var: np.ndarray


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.diag(matrix)


def oracle(case):
    """Kalman filter and Rauch-Tung-Striebel smoother as in textbooks."""
    y, G, F, Q = case.data, case.lead_field, dense(case.transition), dense(case.process_cov)
    m, n_times = y.shape
    P, x, total = scipy.linalg.solve_discrete_lyapunov(F, Q), np.zeros(len(F)), 0.0
    predicted, filtered = [], []
    for t in range(n_times):
        predicted.append((x, P))
        S = G @ P @ G.T + case.noise_var * np.eye(m)
        e = y[:, t] - G @ x
        total -= 0.5 * (e @ np.linalg.solve(S, e) + np.linalg.slogdet(2 * np.pi * S)[1])
        K = np.linalg.solve(S, G @ P).T
        x, P = x + K @ e, P - K @ S @ K.T
        filtered.append((x, P))
        x, P = F @ x, F @ P @ F.T + Q
    smoothed = [filtered[-1]]
    for t in range(n_times - 2, -1, -1):
        (x, P), (ahead, P_ahead), (xs, Ps) = filtered[t], predicted[t + 1], smoothed[-1]
        J = np.linalg.solve(P_ahead, F @ P).T
        smoothed.append((x + J @ (xs - ahead), P + J @ (Ps - P_ahead) @ J.T))
    smoothed = smoothed[::-1]

    def columns(pairs, which):
        return np.array([pair[0] if which == "mean" else np.diag(pair[1]) for pair in pairs]).T

    return Moments(
        total,
        columns(filtered, "mean"),
        columns(filtered, "var"),
        columns(smoothed, "mean"),
        columns(smoothed, "var"),
        columns(predicted, "var"),
    )


def simulate(rng, lead_field, transition, process_cov, noise_var, n_times=N_TIMES):
    F, Q = dense(transition), dense(process_cov)
    root = np.linalg.cholesky(Q + 1e-12 * np.eye(len(Q)))
    x = np.linalg.cholesky(scipy.linalg.solve_discrete_lyapunov(F, Q)) @ rng.normal(size=len(F))
    states = []
    for _ in range(n_times):
        states.append(x)
        x = F @ x + root @ rng.normal(size=len(F))
    states = np.array(states).T
    noise = np.sqrt(noise_var) * rng.normal(size=(len(lead_field), n_times))
    return Case(lead_field @ states + noise, lead_field, transition, process_cov, noise_var, states)


@functools.cache
def case(kind):
    """ "random": signed, not symmetric F; "chain": neighbours, three orientations, full Q."""
    rng = np.random.default_rng(3)
    G = 0.7 * rng.normal(size=(N_CHANNELS, N_STATES))
    if kind == "random":
        F = sparse.random_array((N_STATES,) * 2, density=0.1, rng=rng).toarray()
        F -= 0.5 * sparse.random_array((N_STATES,) * 2, density=0.1, rng=rng).toarray()
        F *= 0.9 / np.max(np.abs(np.linalg.eigvals(F)))
        return simulate(rng, G, sparse.csr_array(F), 0.1 + rng.random(N_STATES), 20.0)
    n = N_STATES // 3
    chain = sparse.diags_array([0.15, 0.4, 0.2], offsets=[-1, 0, 1], shape=(n, n))
    F = sparse.csr_array(sparse.kron(chain, sparse.eye_array(3)))
    root = sparse.diags_array([1.0, -0.4], offsets=[0, 2], shape=(N_STATES,) * 2)
    return simulate(rng, G, F, sparse.csr_array(root @ root.T), 1.0)


def model_of(case):
    return case.lead_field, case.transition, case.process_cov, case.noise_var


@functools.cache
def gains_of(kind):
    return coupled_kalman.prepare(*model_of(case(kind)), N_TIMES, tol=1e-12)


@functools.cache
def smoothed(kind):
    c, key = case(kind), jax.random.key(5)
    return coupled_kalman.run(c.data, *model_of(c), n_draws=32, key=key, gains=gains_of(kind))


def relative(found, truth):
    return np.max(np.abs(found - truth)) / np.max(np.abs(truth))


@pytest.mark.parametrize("kind", ["random", pytest.param("chain", marks=pytest.mark.slow)])
def test_filter_and_smoothed_mean_equal_the_dense_ones(kind):
    c, gains, truth = case(kind), gains_of(kind), oracle(case(kind))
    filtered = coupled_kalman.run(c.data, *model_of(c), smooth=False, gains=gains)
    assert gains.n_transient < N_TIMES - 8, (
        gains.n_transient
    )  # otherwise the frozen gain is not tested
    assert gains.dare_residual < 1e-8
    assert abs(filtered.log_likelihood - truth.log_likelihood) < EXACT * abs(truth.log_likelihood)
    assert relative(filtered.mean, truth.filtered) < EXACT
    np.testing.assert_allclose(filtered.std**2, truth.filtered_var, rtol=EXACT)
    rows = np.minimum(np.arange(N_TIMES), gains.n_transient)
    np.testing.assert_allclose(gains.predicted_var[rows].T, truth.predicted_var, rtol=EXACT)
    assert not np.any(filtered.std_error)
    innovation = disturbance_smoother.run_filter(gains, jnp.asarray(c.data.T), keep_mean=False)[1]
    mean = disturbance_smoother.smooth(gains, innovation, 1e8)
    assert relative(mean.T, truth.smoothed) < EXACT


@pytest.mark.parametrize("kind", ["random", pytest.param("chain", marks=pytest.mark.slow)])
def test_smoothed_variances_lie_within_their_stated_errors(kind):
    """At the last sample smoothing adds nothing: exact, with an error of zero."""
    found, truth = smoothed(kind), np.sqrt(oracle(case(kind)).smoothed_var)
    assert relative(found.mean, oracle(case(kind)).smoothed) < EXACT
    np.testing.assert_allclose(found.std[:, -1], truth[:, -1], rtol=EXACT)
    gap = (found.std / truth - 1)[:, :-1]
    error = found.std_error[:, :-1]
    steady = slice(20, 40)
    assert np.median(error[:, steady]) < 0.01  # pooled over time; 32 draws alone give 0.12
    # The mean square of 60 correlated t variables with 31 degrees of freedom.
    assert 0.4 < np.mean((gap / error)[:, steady] ** 2) < 2.5
    # At the edges the error is a plug-in of half the draws: tails are heavier.
    edges = np.r_[0:8, N_TIMES - 9 : N_TIMES - 1]
    assert 0.5 < np.median(np.abs(gap / error)[:, edges]) / 0.674 < 1.5
    assert np.all(found.std**2 <= oracle(case(kind)).filtered_var * (1 + EXACT))


@pytest.mark.slow
def test_equal_memory_of_all_sources_is_a_separable_gaussian_process():
    """F = a I: Cov(x_t, x_s) = a^|t-s| Q / (1 - a^2)."""
    rng = np.random.default_rng(0)
    c, a = case("random"), 0.8
    q = c.process_cov
    F = sparse.csr_array(a * sparse.eye_array(N_STATES))
    data = rng.normal(size=(N_CHANNELS, N_TIMES)) * 4
    gains = coupled_kalman.prepare(c.lead_field, F, q, 1.5, N_TIMES, tol=1e-12)
    found = coupled_kalman.run(data, c.lead_field, F, q, 1.5, smooth=False, gains=gains)
    time = a ** np.abs(np.subtract.outer(range(N_TIMES), range(N_TIMES))) / (1 - a**2)
    cov = np.kron(time, (c.lead_field * q) @ c.lead_field.T) + 1.5 * np.eye(data.size)
    truth = stats.multivariate_normal(np.zeros(data.size), cov).logpdf(data.T.ravel())
    assert abs(found.log_likelihood - truth) < EXACT * abs(truth)
    weights = np.linalg.solve(cov, data.T.ravel()).reshape(N_TIMES, N_CHANNELS)
    mean = q[:, None] * (c.lead_field.T @ weights.T @ time)
    samples = jnp.asarray(data.T)
    innovation = disturbance_smoother.run_filter(gains, samples, keep_mean=False).innovation
    assert relative(disturbance_smoother.smooth(gains, innovation, 1e8).T, mean) < EXACT


@pytest.mark.slow
def test_draws_have_the_posterior_law():
    """Along random directions of the whole path, from the joint dense covariance."""
    c, gains, n_draws = case("random"), gains_of("random"), 96
    draws = coupled_kalman.sample(
        jax.random.key(1), n_draws, c.data, gains, memory_limit=4 * 2 * 4 * N_STATES * N_TIMES * 32
    )
    assert draws.shape == (n_draws, N_STATES, N_TIMES)
    F, Q, G = dense(c.transition), dense(c.process_cov), c.lead_field
    stationary = scipy.linalg.solve_discrete_lyapunov(F, Q)
    prior = np.empty((N_TIMES, N_STATES, N_TIMES, N_STATES))
    for lag in range(N_TIMES):
        block = np.linalg.matrix_power(F, lag) @ stationary
        for t in range(N_TIMES - lag):
            prior[t + lag, :, t], prior[t, :, t + lag] = block, block.T
    rng = np.random.default_rng(2)
    direction = rng.normal(size=(200, N_TIMES, N_STATES)) * rng.random((200, N_TIMES, 1)) ** 4
    for k in range(100):  # what channels see: here the noise decides, elsewhere the prior
        direction[k] = 0
        direction[k, rng.integers(N_TIMES)] = rng.normal(size=N_CHANNELS) @ G
    moved = np.tensordot(direction, prior, 2)
    seen = np.einsum("ktn,mn->ktm", moved, G).reshape(200, -1)
    data_cov = np.einsum("mn,tnsk,lk->tmsl", G, prior, G, optimize=True)
    data_cov = data_cov.reshape(seen.shape[1], -1) + c.noise_var * np.eye(seen.shape[1])
    left = np.einsum("ktn,jtn->kj", moved, direction) - seen @ np.linalg.solve(data_cov, seen.T)
    mean = seen @ np.linalg.solve(data_cov, c.data.T.ravel())
    along = np.einsum("ktn,dnt->dk", direction, draws) - mean
    white = np.linalg.solve(np.linalg.cholesky(left), along.T)
    # Each bound is crossed once in 1e4 seeds.
    assert abs(white.mean()) * np.sqrt(white.size) < 3.9
    p = stats.chi2(white.size).cdf(np.sum(white**2))
    assert 1e-4 < p < 1 - 1e-4
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-4


def test_innovations_are_white_and_intervals_cover():
    c, gains = case("random"), gains_of("random")
    samples = jnp.asarray(c.data.T)
    innovation = disturbance_smoother.run_filter(gains, samples, keep_mean=False).innovation
    white = np.array(
        [
            np.linalg.solve(np.asarray(block.gain.innovation_chol), np.asarray(innovation[t]))
            for block in gains.blocks()
            for t in range(block.start, block.start + block.length)
        ]
    )
    assert 1e-3 < stats.chi2(white.size).cdf(np.sum(white**2)) < 1 - 1e-3
    # Ljung-Box over five lags, all pairs of channels.
    lagged = [white[lag:].T @ white[:-lag] / np.sqrt(N_TIMES - lag) for lag in range(1, 6)]
    assert stats.chi2(np.size(lagged)).sf(np.sum(np.square(lagged))) > 1e-3
    found = smoothed("random")
    covered = np.mean(np.abs(c.states - found.mean) < 1.645 * found.std)
    # Nearly 3,600 / (5 correlated samples) independent intervals: three standard errors.
    assert abs(covered - 0.9) < 0.035


def test_gains_computed_again_are_the_stored_ones():
    stored = gains_of("random")
    tight = coupled_kalman.prepare(
        *model_of(case("random")),
        N_TIMES,
        tol=1e-12,
        memory_limit=2 * 3 * 8 * N_STATES * N_CHANNELS,
    )
    assert stored.is_stored and not tight.is_stored
    for pair in (
        zip(stored.blocks(), tight.blocks(), strict=True),
        zip(stored.reversed_blocks(), tight.reversed_blocks(), strict=True),
    ):
        for one, other in pair:
            assert one[1:] == other[1:]
            # Sums of the same numbers in another order.
            assert relative(one.gain.predicted_cov, other.gain.predicted_cov) < 1e-12, one.start


@pytest.mark.slow
def test_directions_of_the_increment_that_do_not_matter_are_dropped():
    """Many channels that see little more than a few patterns: ranks fall, gains stay exact."""
    rng = np.random.default_rng(4)
    m = 40
    patterns = rng.normal(size=(m, m)) * 10.0 ** -np.linspace(0, 6, m)
    G = patterns @ rng.normal(size=(m, N_STATES))
    c = simulate(rng, G, case("chain").transition, np.ones(N_STATES), 1.0, n_times=40)
    gains = coupled_kalman.prepare(*model_of(c), 40, tol=1e-12)
    state, ranks = gains.first, []
    for _ in range(6):
        state, info = chandrasekhar.step(gains.model, state, 1e-12, compress=True)
        ranks.append(info.rank)
    assert ranks[-1] < ranks[0]
    found = coupled_kalman.run(c.data, *model_of(c), smooth=False, gains=gains)
    truth = oracle(c)
    assert abs(found.log_likelihood - truth.log_likelihood) < EXACT * abs(truth.log_likelihood)
    np.testing.assert_allclose(found.std**2, truth.filtered_var, rtol=EXACT)


def test_steady_gain_solves_the_riccati_equation_and_streams():
    c = case("random")
    F, Q, G = dense(c.transition), dense(c.process_cov), c.lead_field
    steady = stationary_gain.solve(*model_of(c), tol=1e-12)
    P = scipy.linalg.solve_discrete_are(F.T, G.T, Q, c.noise_var * np.eye(N_CHANNELS))
    assert steady.dare_residual < 1e-8
    assert relative(steady.gain.predicted_cov, P @ G.T) < EXACT
    S = G @ P @ G.T + c.noise_var * np.eye(N_CHANNELS)
    left = np.diag(P - P @ G.T @ np.linalg.solve(S, G @ P))
    np.testing.assert_allclose(steady.filtered_std**2, left, rtol=EXACT)
    state, x = stationary_gain.init(steady), np.zeros(N_STATES)
    for t in range(5):
        state, info = stationary_gain.step(steady, state, jnp.asarray(c.data[:, t]))
        e = c.data[:, t] - G @ x
        x = x + P @ G.T @ np.linalg.solve(S, e)
        np.testing.assert_allclose(info.mean, x, atol=EXACT * np.abs(x).max())
        truth = stats.multivariate_normal(np.zeros(N_CHANNELS), S).logpdf(e)
        np.testing.assert_allclose(info.log_evidence_increment, truth, rtol=EXACT)
        x = F @ x
    with pytest.raises(ValueError, match="max_steps=3"):
        stationary_gain.solve(*model_of(c), max_steps=3)


@pytest.mark.parametrize("smooth", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_single_precision(smooth):
    c = case("random")
    small = Case(*(x.astype(np.float32) if isinstance(x, np.ndarray) else x for x in c))
    found = coupled_kalman.run(
        small.data, *model_of(small), smooth=smooth, n_draws=4, key=jax.random.key(0)
    )
    truth = oracle(c)
    assert found.mean.dtype == found.std.dtype == found.std_error.dtype == np.float32
    # A few hundred roundings of 6e-8.
    assert relative(found.mean, truth.smoothed if smooth else truth.filtered) < 1e-4
    assert abs(found.log_likelihood - truth.log_likelihood) < 1e-4 * abs(truth.log_likelihood)
    np.testing.assert_allclose(found.std[:, -1] ** 2, truth.filtered_var[:, -1], rtol=1e-4)


def test_sparse_product_of_any_shape_of_rows():
    """Rows longer than the table, dense matrices, and copies for each orientation."""
    rng = np.random.default_rng(0)
    star = sparse.random_array((90, 90), density=0.02, rng=rng).tolil()
    star[7] = rng.normal(size=90)  # one row far longer than the others
    full = sparse.csr_array(rng.normal(size=(30, 30)))
    x = rng.normal(size=(90, 5))
    for matrix in (star, sparse.kron(full, sparse.eye_array(3)), sparse.csr_array((90, 90))):
        stored = sparse_matrix(sparse.csr_array(matrix), np.float64)
        np.testing.assert_allclose(multiply(stored, jnp.asarray(x)), matrix @ x, atol=1e-13)
        found = multiply(stored, jnp.asarray(x[:, 0]))
        np.testing.assert_allclose(found, matrix @ x[:, 0], atol=1e-13)
    assert sparse_matrix(star, np.float64).rest_rows.size > 0
    assert sparse_matrix(sparse.kron(full, sparse.eye_array(3)), np.float64).n_copies == 3


def test_bad_input():
    c = case("random")
    with pytest.raises(ValueError, match="key is needed"):
        coupled_kalman.run(c.data, *model_of(c))
    with pytest.raises(ValueError, match="n_draws must be at least 4"):
        coupled_kalman.run(c.data, *model_of(c), key=jax.random.key(0), n_draws=2)
    slow = coupled_kalman.make_model(
        c.lead_field, sparse.csr_array((1 - 1e-7) * sparse.eye_array(N_STATES)), c.process_cov, 1.0
    )
    with pytest.raises(ValueError, match="forgets its start too slowly"):
        solve_gains(slow, 5)
