"""Whitening on the range of a covariance."""

import numpy as np
import pytest

from bayes_esi.linalg.whitening import block_whitener, whitener_of


def covariance(n, rank, seed=0):
    factor = np.random.default_rng(seed).standard_normal((n, rank))
    return factor @ factor.T


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_whitened_noise_has_identity_covariance(rank):
    noise_cov = covariance(6, rank)
    whitener, log_pdet = whitener_of(noise_cov)
    assert whitener.shape == (rank, 6)
    np.testing.assert_allclose(whitener @ noise_cov @ whitener.T, np.eye(rank), atol=1e-9)
    eigenvalues = np.linalg.eigvalsh(noise_cov)[-rank:]
    assert log_pdet == pytest.approx(-0.5 * np.log(eigenvalues).sum())
    # The pseudo-inverse colours again: nothing of the range is lost.
    np.testing.assert_allclose(
        np.linalg.pinv(whitener) @ whitener @ noise_cov, noise_cov, atol=1e-9
    )


def test_units_do_not_change_rank_or_whiteness():
    scale = np.diag([1e-15, 1e-13, 1e-6, 1.0, 1e-15, 1e-13])
    noise_cov = scale @ covariance(6, 4) @ scale
    whitener, log_pdet = whitener_of(noise_cov)
    assert whitener.shape[0] == 4
    # The covariance itself knows its smallest directions, 1e-13 of its largest deviation, to
    # a few digits only: its entries are rounded.
    np.testing.assert_allclose(whitener @ noise_cov @ whitener.T, np.eye(4), atol=1e-4)
    assert np.isfinite(log_pdet)


def test_groups_are_whitened_apart():
    noise_cov = covariance(6, 6)
    group = np.array([0, 1, 0, 1, 1, 0])
    whitener, row_group, log_pdet = block_whitener(noise_cov, group)
    for g in range(2):
        own = np.flatnonzero(group == g)
        assert not whitener[row_group == g][:, group != g].any()
        block = whitener[row_group == g][:, own]
        np.testing.assert_allclose(
            block @ noise_cov[np.ix_(own, own)] @ block.T, np.eye(3), atol=1e-9
        )
    parts = [whitener_of(noise_cov[np.ix_(group == g, group == g)])[1] for g in range(2)]
    assert log_pdet == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    ("noise_cov", "message"),
    [
        (np.diag([1.0, -1.0]), "not positive semidefinite"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "not positive semidefinite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.zeros((2, 2)), "zero"),
    ],
)
def test_what_is_no_covariance_is_refused(noise_cov, message):
    with pytest.raises(ValueError, match=f"noise_cov.*{message}"):
        whitener_of(noise_cov)
