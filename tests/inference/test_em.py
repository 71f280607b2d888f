"""EM against EM with dense matrices, monotone, and its simulated variant against the exact one."""

import jax
import numpy as np
import pytest
import scipy.linalg
from scipy import sparse

from bayes_esi.inference import em
from bayes_esi.inference.stationary_prior import count_terms, dynamics

N_STATES, N_CHANNELS, N_TIMES = 12, 5, 25


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    F = 0.6 * np.eye(N_STATES) + 0.15 * np.eye(N_STATES, k=1) - 0.1 * np.eye(N_STATES, k=-2)
    G = rng.normal(size=(N_CHANNELS, N_STATES))
    truth = np.exp(rng.normal(size=N_STATES))
    x = np.linalg.cholesky(scipy.linalg.solve_discrete_lyapunov(F, np.diag(truth)))
    x, data = x @ rng.normal(size=N_STATES), []
    for _ in range(N_TIMES):
        data.append(G @ x + rng.normal(size=N_CHANNELS))
        x = F @ x + np.sqrt(truth) * rng.normal(size=N_STATES)
    return np.array(data).T, G, sparse.csr_array(F)


def dense_step(data, G, F, theta, noise_var, n_past):
    """One E-step on the joint law of all disturbances and data, past included.

    Returns sums of E[w w'] over disturbances (diagonal), of E|v|^2, and the log likelihood.
    """
    n, m, n_times = len(theta), len(G), data.shape[1]
    count = n_past + n_times - 1
    # Row t, column k: x_t = sum F^(t - 1 - k) w_k over the disturbances before it.
    path = np.zeros((n_times, m, count, n))
    power = [np.eye(n)]
    for _ in range(count):
        power.append(F @ power[-1])
    for t in range(n_times):
        for k in range(n_past + t):
            path[t, :, k] = G @ power[n_past + t - 1 - k]
    path = path.reshape(n_times * m, count * n)
    prior = np.tile(theta, count)
    cov = (path * prior) @ path.T + noise_var * np.eye(len(path))
    y = data.T.ravel()
    gain = np.linalg.solve(cov, path * prior).T
    mean, var = gain @ y, prior - np.sum(gain.T * (path * prior), axis=0)
    noise = y - path @ mean
    noise_total = noise @ noise + noise_var * np.trace(
        np.eye(len(y)) - noise_var * np.linalg.inv(cov)
    )
    log_likelihood = -0.5 * (y @ np.linalg.solve(cov, y) + np.linalg.slogdet(2 * np.pi * cov)[1])
    return (mean**2 + var).reshape(count, n).sum(axis=0), noise_total, log_likelihood, count


def test_one_step_equals_dense_em(case):
    data, G, F = case
    theta, noise_var = np.linspace(0.5, 2, N_STATES), 1.3
    groups = np.arange(N_STATES) // 2
    options = {"groups": groups, "prior_shape": 2.0, "prior_scale": 1.5, "max_steps": 1}
    found = em.run(data, G, F, theta, noise_var, update=("process", "noise"), **options)
    n_past = count_terms(dynamics(F, theta, np.float64), 1e-6)
    power, noise, log_likelihood, count = dense_step(data, G, F.toarray(), theta, noise_var, n_past)
    wanted = (0.5 * np.bincount(groups, power) + 1.5) / (0.5 * count * 2 + 2.0 + 1)
    # The oracle's past ends where a millionth of it is left.
    np.testing.assert_allclose(found.process_cov, wanted[groups], rtol=1e-6)
    np.testing.assert_allclose(found.noise_var, noise / data.size, rtol=1e-6)
    np.testing.assert_allclose(found.log_likelihood[0], log_likelihood, rtol=1e-6)
    first = theta[::2]
    prior = np.sum(-3 * np.log(first) - 1.5 / first)
    np.testing.assert_allclose(found.log_posterior[0] - found.log_likelihood[0], prior)


@pytest.mark.parametrize("part", ["process", pytest.param("scale", marks=pytest.mark.slow)])
def test_penalised_likelihood_never_falls(case, part):
    data, G, F = case
    start = np.linspace(0.2, 4, N_STATES)
    prior = {"prior_shape": 2.0, "prior_scale": 1.0} if part == "process" else {}
    found = em.run(data, G, F, start, 2.0, update=(part, "noise"), max_steps=12, tol=0, **prior)
    rises = np.diff(found.log_posterior)
    assert np.all(rises > 0)  # it is far from converged: strictly
    assert len(rises) == 11
    assert not found.is_converged
    if part == "scale":
        ratio = found.process_cov / start
        np.testing.assert_allclose(ratio, ratio[0])
        matrix = em.run(
            data,
            G,
            F,
            sparse.diags_array(start).tocsr(),
            2.0,
            update=("scale", "noise"),
            max_steps=3,
            tol=0,
        )
        np.testing.assert_allclose(matrix.log_posterior, found.log_posterior[:3], rtol=1e-9)


@pytest.mark.slow
def test_simulated_variances_give_the_exact_step(case):
    data, G, F = case
    theta = np.linspace(0.5, 2, N_STATES)
    options = {"update": ("process", "noise"), "max_steps": 1}
    exact = em.run(data, G, F, theta, 1.0, **options)
    found = em.run(
        data, G, F, theta, 1.0, exact=False, n_draws=256, key=jax.random.key(0), **options
    )
    # N is known to sqrt(2 / 256) = 0.09 or better, and averaged over 25 samples of memory 2.
    change = np.abs(exact.process_cov / theta - 1)
    assert np.max(np.abs(found.process_cov / exact.process_cov - 1)) < 0.05 * np.max(change) + 0.02
    assert abs(found.noise_var / exact.noise_var - 1) < 0.05
    assert found.process_cov[0] != exact.process_cov[0]


def test_bad_input(case):
    data, G, F = case
    theta = np.ones(N_STATES)
    for arguments, message in (
        ({"update": ("sigma",)}, "update must be one of"),
        ({"update": ("process", "scale")}, "variances contain the scale"),
        ({"prior_shape": 1.0}, "go together"),
        ({"groups": np.zeros(3, int)}, "groups must have shape"),
        ({"exact": False}, "key is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            em.run(data, G, F, theta, 1.0, **arguments)
    with pytest.raises(ValueError, match="start above zero"):
        em.run(data, G, F, 0 * theta, 1.0)
    with pytest.raises(ValueError, match="needs process_cov as variances"):
        em.run(data, G, F, sparse.eye_array(N_STATES).tocsr(), 1.0)
