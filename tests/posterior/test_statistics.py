"""dSPM and sLORETA: their laws, invariances, and blocks without full rank."""

import numpy as np
import pytest
from scipy.stats import kstest

from bayes_esi.posterior.statistics import dspm, dspm_kernel, sloreta, sloreta_kernel

M, N, T = 12, 9, 4000


def model(a, seed=0):
    """Lead field, posterior-mean kernel and S of a unit prior."""
    rng = np.random.default_rng(seed)
    lead_field = rng.standard_normal((M, N, a))
    flat = lead_field.reshape(M, -1)
    data_cov = flat @ flat.T + np.eye(M)
    kernel = np.linalg.solve(data_cov, flat).T
    cov = (kernel @ flat).reshape(N, a, N, a)
    blocks = np.stack([cov[j, :, j] for j in range(N)])
    return lead_field, kernel.reshape(N, a, M), blocks, data_cov


@pytest.mark.parametrize("a", [1, 3])
def test_laws(a):
    _, kernel, blocks, data_cov = model(a)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((M, T))
    noise_variance = np.sum(kernel**2, axis=2)
    z = dspm(kernel @ noise, noise_variance)
    assert z.shape == (N, T)
    # Mean squares of 4000 independent values: standard error below sqrt(2 / 4000) = 0.022.
    np.testing.assert_allclose(np.mean(z**2, axis=1), 1, atol=0.1)
    data = np.linalg.cholesky(data_cov) @ noise
    z = sloreta(kernel @ data, blocks)
    assert all(kstest(row**2, "chi2", args=(a,)).pvalue > 1e-4 for row in z)
    assert (z.min() < 0) == (a == 1)


@pytest.mark.parametrize("a", [1, 3])
def test_kernels_give_the_statistics(a):
    _, kernel, blocks, _ = model(a)
    data = np.random.default_rng(2).standard_normal((M, 5))

    def length(x):
        return x[:, 0] if a == 1 else np.linalg.norm(x, axis=1)

    expected = dspm(kernel @ data, np.sum(kernel**2, axis=2))
    np.testing.assert_allclose(length(dspm_kernel(kernel) @ data), expected, rtol=1e-12)
    expected = sloreta(kernel @ data, blocks)
    np.testing.assert_allclose(length(sloreta_kernel(kernel, blocks) @ data), expected, rtol=1e-12)


def test_sloreta_needs_no_axes():
    _, kernel, blocks, _ = model(3)
    mean = kernel @ np.random.default_rng(3).standard_normal((M, 5))
    turn, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))
    # Any invertible change of coordinates, not rotations alone.
    turn = turn @ np.diag([1.0, 2.0, 5.0])
    np.testing.assert_allclose(
        sloreta(turn @ mean, turn @ blocks @ turn.T), sloreta(mean, blocks), rtol=1e-11
    )


def test_rank_deficient_blocks_use_their_range():
    _, kernel, blocks, _ = model(2)
    mean = kernel @ np.random.default_rng(3).standard_normal((M, 5))
    frame = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0][:, :2]
    z = sloreta(frame @ mean, frame @ blocks @ frame.T)
    np.testing.assert_allclose(z, sloreta(mean, blocks), rtol=1e-9)
    silent = np.zeros_like(blocks)
    assert np.all(sloreta(mean, silent) == 0)
    assert np.all(dspm(mean, np.zeros((N, 2))) == 0)


def test_variances_may_change_in_time():
    _, kernel, _, _ = model(3)
    mean = kernel @ np.random.default_rng(3).standard_normal((M, 5))
    variance = np.sum(kernel**2, axis=2)
    in_time = np.repeat(variance[:, :, None], 5, axis=2) * np.arange(1, 6)
    expected = dspm(mean, variance) / np.sqrt(np.arange(1, 6))
    np.testing.assert_allclose(dspm(mean, in_time), expected, rtol=1e-12)


def test_bad_input():
    _, kernel, blocks, _ = model(3)
    mean = kernel @ np.ones((M, 5))
    with pytest.raises(ValueError, match="noise_variance must have shape"):
        dspm(mean, np.ones(N))
    with pytest.raises(ValueError, match="noise_variance has a negative variance"):
        dspm(mean, -np.ones((N, 3)))
    with pytest.raises(ValueError, match="block_cov must have shape"):
        sloreta(mean, np.ones((N, 2, 2)))
    with pytest.raises(ValueError, match="symmetric"):
        sloreta(mean, blocks + np.triu(np.ones((3, 3)), 1))
