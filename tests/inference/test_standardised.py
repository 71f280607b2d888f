"""The standardised filter against its equation, and sLORETA as its limit without memory."""

import numpy as np
import pytest
import scipy.linalg
from scipy import sparse

from bayes_esi.inference import standardised

N_STATES, N_CHANNELS, N_TIMES = 20, 6, 12


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(N_CHANNELS, N_STATES)) * rng.random(N_STATES)
    return rng.normal(size=(N_CHANNELS, N_TIMES)), G


def test_equals_its_equation(case):
    data, G = case
    F = np.diag(np.full(N_STATES, 0.5)) + np.diag(np.full(N_STATES - 1, 0.3), 1)
    q, exponent = np.linspace(1, 2, N_STATES), 1.25
    found = standardised.run(data, G, sparse.csr_array(F), q, 0.5, exponent=exponent)
    P, x = scipy.linalg.solve_discrete_lyapunov(F, np.diag(q)), np.zeros(N_STATES)
    for t in range(N_TIMES):
        K = np.linalg.solve(G @ P @ G.T + 0.5 * np.eye(N_CHANNELS), G @ P).T
        x = x + K @ (data[:, t] - G @ x)
        wanted = x / np.diag(K @ G @ P) ** (exponent / 2)
        # Rounding, and the tolerance 1e-11 of the gains.
        np.testing.assert_allclose(found.statistic[:, t], wanted, rtol=1e-8, atol=1e-9)
        x, P = F @ x, F @ (P - K @ G @ P) @ F.T + np.diag(q)


def test_without_memory_it_is_sloreta(case):
    """x / sqrt(diag of the resolution matrix), times the square root of the variance."""
    data, G = case
    found = standardised.run(
        data, G, sparse.csr_array((N_STATES, N_STATES)), np.full(N_STATES, 4.0), 1.0
    )
    T = np.linalg.solve(G @ G.T + np.eye(N_CHANNELS) / 4, G).T
    wanted = T @ data / np.sqrt(np.sum(T * G.T, axis=1))[:, None] / 2
    np.testing.assert_allclose(found.statistic, wanted, rtol=1e-9, atol=1e-11)
    # One source without noise has its largest statistic at its own place.
    for j in range(N_STATES):
        field = np.repeat(G[:, [j]], N_TIMES, axis=1)
        alone = standardised.run(
            field, G, sparse.csr_array((N_STATES, N_STATES)), np.full(N_STATES, 4.0), 1.0
        )
        assert np.argmax(np.abs(alone.statistic[:, 0])) == j


def test_bad_exponent(case):
    data, G = case
    with pytest.raises(ValueError, match="exponent must be at least 0"):
        standardised.run(
            data, G, sparse.eye_array(N_STATES) * 0.5, np.ones(N_STATES), 1.0, exponent=-1
        )
