"""Products over pieces of sources, against NumPy on the whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.linalg import pieces


# One piece, a last one that repeats most of its sources, one that fits; one strip and more.
@pytest.mark.parametrize(("m", "n", "d"), [(5, 20, 3), (160, 130, 2), (83, 256, 1)])
def test_products_are_those_of_the_whole(m, n, d):
    rng = np.random.default_rng(0)
    field = rng.standard_normal((m, n, d))
    cov = rng.standard_normal((n, d, d))
    cov = cov + cov.swapaxes(1, 2)
    matrix = rng.standard_normal((m, m))
    matrix = matrix + matrix.T
    unit = jnp.asarray(2.0)
    cut = pieces.over_pieces(lambda piece: piece, jnp.asarray(2 * field), unit)
    size = cut.shape[-1]
    n_padded = len(cut) * size
    # The repeated sources are silent, whatever stands at their place.
    first = n_padded - size
    places = np.r_[0:first, n_padded - (n - first) : n_padded]
    padded = rng.standard_normal((d, d, n_padded))
    padded = padded + padded.swapaxes(0, 1)
    padded[..., places] = cov.transpose(1, 2, 0)
    np.testing.assert_array_equal(pieces.in_order(jnp.asarray(padded), n).transpose(2, 0, 1), cov)

    for k in (m, max(1, m // 2)):
        rows = field[:k]
        whole = np.einsum("msd,sde,kse->mk", rows, cov, rows, optimize=True)
        found = pieces.data_cov(cut, jnp.asarray(padded), k)
        np.testing.assert_allclose(found, whole, atol=1e-11 * np.abs(whole).max())
        form = np.einsum("msd,mk,kse->sde", rows, matrix[:k, :k], rows, optimize=True)
        found = pieces.in_order(pieces.quadratic(cut, jnp.asarray(matrix[:k, :k])), n)
        np.testing.assert_allclose(found.transpose(2, 0, 1), form, atol=1e-11 * np.abs(form).max())
    # The first pieces alone, of a number known at run time.
    n_used = jnp.asarray(len(cut) - 1)
    alone = jnp.asarray(padded).at[..., int(n_used) * size :].set(0)
    np.testing.assert_allclose(
        pieces.data_cov(cut, jnp.asarray(padded), m, n_used),
        pieces.data_cov(cut, alone, m),
        atol=1e-11 * np.abs(padded).max() * n,
    )
    some = pieces.quadratic(cut, jnp.asarray(matrix), n_used)
    whole = pieces.quadratic(cut, jnp.asarray(matrix))
    np.testing.assert_array_equal(some[..., int(n_used) * size :], 0)
    np.testing.assert_allclose(some[..., : int(n_used) * size], whole[..., : int(n_used) * size])
    gram = pieces.joined(jnp.stack([pieces.sum_of_products(piece, piece) for piece in cut]))
    expected = np.einsum("msd,mse->sde", field, field)
    np.testing.assert_allclose(
        pieces.in_order(gram, n).transpose(2, 0, 1), expected, rtol=1e-10, atol=1e-10
    )
    turned = pieces.combined(jnp.asarray(matrix), cut[0])
    expected = np.einsum("km,msd->kds", matrix, field[:, :size])
    np.testing.assert_allclose(turned, expected, atol=1e-11 * np.abs(expected).max())
