"""Sparse matrix times a block of vectors, compiled: a padded gather and a remainder.

    y_i = sum_w values[i, w] x[columns[i, w]]  +  entries of rows longer than the table

The table (ELLPACK) is as wide as most rows need; XLA fuses its columns into one pass over y. On
two cores, 75,000 entries times 960 vectors take 11 ms in blocks that fit the cache.
A matrix that is a Kronecker product with the identity (the same coupling for each orientation) is
stored once and acts on all copies at once, as one product with more vectors.

Cost O(n_entries n_vectors).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ..core.struct import static, struct
from ..core.types import Array, Float, Int

__all__ = ["SparseMatrix", "multiply", "sparse_matrix"]

_MAX_WIDTH = 32  # the table's columns are unrolled in the compiled code
_COVERED = 0.95  # share of the entries that the table holds
_DENSE_SHARE = 0.2  # above this share of non-zeros a dense product costs less


@struct
class SparseMatrix:
    """A sparse matrix as arrays; `sparse_matrix` builds it."""

    columns: Int[Array, "n_rows width"]
    values: Float[Array, "n_rows width"]
    rest_rows: Int[Array, " n_rest"]
    rest_columns: Int[Array, " n_rest"]
    rest_values: Float[Array, " n_rest"]
    dense: Float[Array, "n_rows n_rows"] | None
    n_copies: int = static()  # the matrix is this one times the identity of this size


def sparse_matrix(matrix, dtype, *, copies=(3, 1)):
    """Store a square SciPy matrix for `multiply`.

    Parameters
    ----------
    matrix : scipy sparse (n, n)
    dtype : dtype of the values
    copies : sequence of int
        Sizes d tried in turn for matrix = kron(small, I_d).

    Returns
    -------
    SparseMatrix
    """
    matrix = sparse.csr_array(matrix)
    matrix.sum_duplicates()
    for n_copies in copies:
        small = _without_copies(matrix, n_copies)
        if small is not None:
            break
    else:
        small, n_copies = matrix, 1
    n = small.shape[0]
    counts = np.diff(small.indptr)
    dense = None
    if small.nnz > _DENSE_SHARE * n * n:
        dense = jnp.asarray(small.toarray(), dtype)
        small, counts = sparse.csr_array((n, n)), np.zeros(n, int)
    width = int(min(counts.max(initial=0), _MAX_WIDTH))
    while width > 1 and np.minimum(counts, width - 1).sum() >= _COVERED * small.nnz:
        width -= 1
    row = np.repeat(np.arange(n), counts)
    position = np.arange(small.nnz) - np.repeat(small.indptr[:-1], counts)
    is_inside = position < width
    columns, values = np.zeros((n, width), np.int32), np.zeros((n, width))
    columns[row[is_inside], position[is_inside]] = small.indices[is_inside]
    values[row[is_inside], position[is_inside]] = small.data[is_inside]
    return SparseMatrix(
        columns=jnp.asarray(columns),
        values=jnp.asarray(values, dtype),
        rest_rows=jnp.asarray(row[~is_inside], jnp.int32),
        rest_columns=jnp.asarray(small.indices[~is_inside], jnp.int32),
        rest_values=jnp.asarray(small.data[~is_inside], dtype),
        dense=dense,
        n_copies=n_copies,
    )


def multiply(matrix: SparseMatrix, x):
    """Matrix product with x of shape (n,) or (n, n_vectors), in the precision of x."""
    dtype = x.dtype
    # Barriers keep the reshapes out of the gather's fusion, where they would cost a division for
    # each element (six times slower on a CPU).
    block = jax.lax.optimization_barrier(x.reshape(matrix.values.shape[0], -1))
    if matrix.dense is not None:
        return (matrix.dense.astype(dtype) @ block).reshape(x.shape)
    product = jnp.zeros_like(block)
    for w in range(matrix.values.shape[1]):
        product = product + matrix.values[:, w, None].astype(dtype) * block[matrix.columns[:, w]]
    if matrix.rest_rows.size:
        rest = matrix.rest_values[:, None].astype(dtype) * block[matrix.rest_columns]
        product = product.at[matrix.rest_rows].add(rest, indices_are_sorted=True)
    return jax.lax.optimization_barrier(product).reshape(x.shape)


def _without_copies(matrix, n_copies):
    """Small matrix with matrix = kron(small, I), or None."""
    if n_copies == 1:
        return matrix
    if matrix.shape[0] % n_copies:
        return None
    small = sparse.csr_array(matrix[::n_copies, ::n_copies])
    if small.nnz * n_copies != matrix.nnz:
        return None
    difference = matrix - sparse.kron(small, sparse.eye_array(n_copies))
    return None if difference.nnz and abs(difference).max() > 0 else small
