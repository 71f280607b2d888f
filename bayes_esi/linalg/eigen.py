"""Symmetric eigen-decomposition whose derivative survives ties.

    dA -> d lambda_i = (U' dA U)_ii,      dU = U F,     F_ij = (U' dA U)_ij / (lambda_j - lambda_i)

F is without bounds where eigenvalues meet. What a Gaussian density makes of eigenvectors does not
change when vectors of equal eigenvalues are turned into each other, so those entries of F are set
to zero: gaps below `TIE` of the largest eigenvalue count as none.

Cost O(n^3). Reference: Magnus 1985, doi:10.1017/S0266466600011129 (derivatives of eigenvectors).
"""

import jax
import jax.numpy as jnp

from ..core.types import Array, Float

__all__ = ["TIE", "eigh"]

# Relative gap below which two eigenvalues count as equal; their mixing is lost to rounding anyway.
TIE = 1e-12


@jax.custom_jvp
def eigh(matrix: Float[Array, "n n"]):
    """Eigenvalues (ascending) and eigenvectors (columns) of a symmetric matrix."""
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return eigenvalues, eigenvectors


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    eigenvalues, eigenvectors = eigh(matrix)
    turned = eigenvectors.T @ tangent @ eigenvectors
    gaps = eigenvalues[None, :] - eigenvalues[:, None]
    is_apart = jnp.abs(gaps) > TIE * jnp.max(jnp.abs(eigenvalues))
    mixing = jnp.where(is_apart, turned / jnp.where(is_apart, gaps, 1), 0)
    return (eigenvalues, eigenvectors), (jnp.diagonal(turned), eigenvectors @ mixing)
