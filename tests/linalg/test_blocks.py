"""Blocks of one to three, sources last, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.linalg import blocks


@pytest.mark.parametrize("d", [1, 2, 3])
def test_eigenvalues_and_back(d):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((200, d, d))
    matrix = matrix @ matrix.swapaxes(1, 2)
    matrix[:5] = np.eye(d)
    matrix[5] = np.diag([1e-12, 1.0, 1e6][:d])
    values, vectors = blocks.eigen(jnp.asarray(matrix.transpose(1, 2, 0)))
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.sort(values.T, axis=1), expected, rtol=1e-9, atol=1e-13)
    back = blocks.assemble(values, vectors).transpose(2, 0, 1)
    np.testing.assert_allclose(back, matrix, atol=1e-13 * np.abs(matrix).max())


def test_products_and_norms():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 7, 3, 3))
    left[2] = 0
    last = [jnp.asarray(x.transpose(1, 2, 0)) for x in (left, right)]
    np.testing.assert_allclose(blocks.product(*last).transpose(2, 0, 1), left @ right, atol=1e-14)
    np.testing.assert_allclose(
        blocks.project(*last).transpose(2, 0, 1), right @ left @ right, atol=1e-13
    )
    np.testing.assert_allclose(blocks.trace(last[0]), np.trace(left, axis1=1, axis2=2), atol=1e-14)
    sizes = np.linalg.norm(left, axis=(1, 2))
    ratios = np.linalg.norm(right, axis=(1, 2))[sizes > 0] / sizes[sizes > 0]
    np.testing.assert_allclose(blocks.largest_ratio(last[1], last[0]), ratios.max(), rtol=1e-12)
    shifted = last[0] + blocks.diagonal(2.0, last[0])
    np.testing.assert_allclose(shifted.transpose(2, 0, 1), left + 2 * np.eye(3), atol=1e-14)
