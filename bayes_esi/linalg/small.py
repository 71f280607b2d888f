"""Batched linear algebra of 1 x 1 to 3 x 3 symmetric positive definite matrices.

Written out by element, so that a batch of any shape becomes a few fused vector operations
where a LAPACK call for each matrix would cost a microsecond.
"""

import jax.numpy as jnp

from ..core.types import Array, Float

__all__ = ["inverse", "log_det_and_trace"]


def log_det_and_trace(
    matrix: Float[Array, "*batch d d"], other: Float[Array, "*batch d d"], floor: Float[Array, ""]
):
    """Log determinant of S and trace of S^-1 R.

    Parameters
    ----------
    matrix : (..., d, d)
        S, symmetric positive definite, d at most 3.
    other : (..., d, d)
        R, symmetric.
    floor : scalar
        A lower bound of the eigenvalues of S. Pivots of a Cholesky factorisation cannot be
        below it in exact arithmetic, nor are they here.

    Returns
    -------
    log_det, trace : (...)
    """
    rows, log_det = _lower_inverse(matrix, floor)
    trace = 0.0
    for row in rows:  # tr(S^-1 R) = sum over rows l of L^-1 of l R l'
        for i, left in enumerate(row):
            trace = trace + left**2 * other[..., i, i]
            for j in range(i):
                trace = trace + 2 * left * row[j] * other[..., i, j]
    return log_det, trace


def inverse(matrix: Float[Array, "*batch d d"], floor) -> Float[Array, "*batch d d"]:
    """Invert symmetric positive definite matrices whose eigenvalues are at least `floor`."""
    rows, _ = _lower_inverse(matrix, floor)
    d = matrix.shape[-1]
    columns = [
        jnp.stack([sum(row[i] * row[j] for row in rows[max(i, j) :]) for i in range(d)], axis=-1)
        for j in range(d)
    ]
    return jnp.stack(columns, axis=-1)


def _lower_inverse(matrix, floor):
    """Rows of L^-1 without the zeros, for the Cholesky factor L, and the log determinant."""
    d = matrix.shape[-1]
    chol = [[None] * d for _ in range(d)]
    log_det = 0.0
    for j in range(d):
        pivot = matrix[..., j, j] - sum(chol[j][m] ** 2 for m in range(j))
        pivot = jnp.maximum(pivot, floor)
        log_det = log_det + jnp.log(pivot)
        chol[j][j] = jnp.sqrt(pivot)
        for i in range(j + 1, d):
            inner = sum(chol[i][m] * chol[j][m] for m in range(j))
            chol[i][j] = (matrix[..., i, j] - inner) / chol[j][j]
    rows = []
    for i in range(d):
        row = [-sum(chol[i][m] * rows[m][j] for m in range(j, i)) / chol[i][i] for j in range(i)]
        rows.append([*row, 1 / chol[i][i]])
    return rows, log_det
