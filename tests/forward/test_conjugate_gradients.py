"""Conjugate gradients against dense solves."""

import jax
import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array, diags_array

from bayes_esi.forward import conjugate_gradients
from bayes_esi.forward.conjugate_gradients import solve


def laplacian(n=200, contrast=100.0, seed=0):
    """Graph Laplacian of a ring with random chords: symmetric, constants are its null space."""
    rng = np.random.default_rng(seed)
    i = np.concatenate([np.arange(n), rng.integers(0, n, 2 * n)])
    j = np.concatenate([(np.arange(n) + 1) % n, rng.integers(0, n, 2 * n)])
    weight = contrast ** rng.uniform(0, 1, len(i)) * (i != j)
    half = coo_array((weight, (i, j)), shape=(n, n)).tocsr()
    links = half + half.T
    return csr_array(diags_array(np.asarray(links.sum(axis=1)).ravel()) - links)


MATRIX = laplacian()


def zero_sum(n_columns, seed=1):
    columns = np.random.default_rng(seed).standard_normal((MATRIX.shape[0], n_columns))
    return columns - columns.mean(axis=0)


def test_it_solves_a_singular_system():
    right_sides = 1e-9 * zero_sum(3)  # of any size
    result = solve(MATRIX, right_sides, tol=1e-10)
    expected = np.linalg.pinv(MATRIX.toarray()) @ right_sides
    found = result.solution - result.solution.mean(axis=0)
    # The tolerance times the condition number of the scaled matrix, about 1e3.
    np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())
    assert result.n_steps > 10


def test_the_certificate_is_the_residual():
    right_sides = zero_sum(4)
    result = solve(MATRIX, right_sides, tol=1e-6)
    scale = 1 / np.sqrt(MATRIX.diagonal())[:, None]
    left = np.linalg.norm(scale * (right_sides - MATRIX @ result.solution), axis=0)
    expected = left / np.linalg.norm(scale * right_sides, axis=0)
    np.testing.assert_allclose(result.residual, expected, rtol=1e-6)
    assert np.all(expected <= 1e-6)


def test_batches_and_empty_columns_change_nothing(monkeypatch):
    right_sides = zero_sum(7)
    right_sides[:, 3] = 0
    together = solve(MATRIX, right_sides, tol=1e-11).solution
    monkeypatch.setattr(conjugate_gradients, "_BATCH", 3)
    apart = solve(MATRIX, right_sides, tol=1e-11).solution
    np.testing.assert_allclose(apart, together, atol=1e-8 * np.abs(together).max())
    assert not together[:, 3].any()


def test_single_precision_reaches_the_same_tolerance():
    jax.config.update("jax_enable_x64", False)
    try:
        result = solve(MATRIX, zero_sum(2), tol=1e-10)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert np.all(result.residual <= 1e-10)


def test_a_missed_tolerance_is_no_solution():
    with pytest.raises(RuntimeError, match="2 of 2 columns above the tolerance"):
        solve(MATRIX, zero_sum(2), tol=1e-10, max_steps=1)
