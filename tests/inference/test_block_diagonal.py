"""The block-diagonal filter against its equations in loops, and against the exact filter."""

import numpy as np
import pytest
import scipy.linalg
from scipy import sparse

from bayes_esi.inference import block_diagonal

N_SOURCES, N_ORIENT, N_CHANNELS, N_TIMES = 10, 3, 6, 20
N_STATES = N_SOURCES * N_ORIENT


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    chain = sparse.diags_array([0.2, 0.5, 0.2], offsets=[-1, 0, 1], shape=(N_SOURCES,) * 2)
    turn = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    F = sparse.csr_array(sparse.kron(chain, turn))
    root = sparse.block_diag([sparse.coo_array(rng.normal(size=(3, 3))) for _ in range(N_SOURCES)])
    Q = sparse.csr_array(root @ root.T)
    G = rng.normal(size=(N_CHANNELS, N_STATES))
    return 5 * rng.normal(size=(N_CHANNELS, N_TIMES)), G, F, Q, 1.5


def test_equals_its_equations(case):
    data, G, F, Q, noise_var = case
    found = block_diagonal.run(*case, n_orient=N_ORIENT)
    blocks = [slice(3 * v, 3 * v + 3) for v in range(N_SOURCES)]
    F, Q = F.toarray(), Q.toarray()
    P = []
    for b in blocks:  # the stationary law of each source by itself
        cov = Q[b, b]
        for _ in range(300):
            cov = F[b, b] @ cov @ F[b, b].T + Q[b, b]
        P.append(cov)
    x, total = np.zeros(N_STATES), 0.0
    for t in range(N_TIMES):
        S = noise_var * np.eye(N_CHANNELS) + sum(
            G[:, b] @ P[v] @ G[:, b].T for v, b in enumerate(blocks)
        )
        e = data[:, t] - G @ x
        total -= 0.5 * (e @ np.linalg.solve(S, e) + np.linalg.slogdet(2 * np.pi * S)[1])
        for v, b in enumerate(blocks):
            K = P[v] @ G[:, b].T @ np.linalg.inv(S)
            x[b] = x[b] + K @ e
            P[v] = P[v] - K @ S @ K.T
        # Rounding only.
        np.testing.assert_allclose(found.mean[:, t], x, atol=1e-11 * np.abs(x).max())
        np.testing.assert_allclose(found.std[:, t] ** 2, np.concatenate([*map(np.diag, P)]))
        x = F @ x
        P = [F[b, b] @ P[v] @ F[b, b].T + Q[b, b] for v, b in enumerate(blocks)]
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-12)


def exact_log_likelihood(data, G, F, Q):
    """Kalman filter with dense matrices and noise variance 1, as `coupled_kalman` has it."""
    P, x, total = scipy.linalg.solve_discrete_lyapunov(F, Q), np.zeros(len(F)), 0.0
    for y in data.T:
        S, e = G @ P @ G.T + np.eye(len(G)), y - G @ x
        K = np.linalg.solve(S, G @ P).T
        total -= 0.5 * (e @ np.linalg.solve(S, e) + np.linalg.slogdet(2 * np.pi * S)[1])
        x, P = F @ (x + K @ e), F @ (P - K @ S @ K.T) @ F.T + Q
    return total


def test_the_exact_likelihood_is_higher_on_data_from_the_model():
    """On average, as the exact filter is the true law; the gap is the approximation's price."""
    rng = np.random.default_rng(1)
    chain = sparse.diags_array([0.45, 0.45], offsets=[-1, 1], shape=(N_STATES,) * 2)
    F, q = sparse.csr_array(chain), np.ones(N_STATES)
    G = rng.normal(size=(N_CHANNELS, N_STATES))
    x, data = np.zeros(N_STATES), []
    for t in range(250):
        x = F @ x + rng.normal(size=N_STATES)
        if t >= 50:
            data.append(G @ x + rng.normal(size=N_CHANNELS))
    data = np.array(data).T
    exact = exact_log_likelihood(data, G, F.toarray(), np.diag(q))
    assert exact > block_diagonal.run(data, G, F, q, 1.0).log_likelihood + 1


def test_a_process_that_couples_sources_is_refused(case):
    data, G, F, Q, noise_var = case
    with pytest.raises(ValueError, match="couples different sources"):
        block_diagonal.run(data, G, F, Q, noise_var)  # blocks of one: orientations are coupled
