"""Sparse covariance matrices: whether they are positive semidefinite, and a factor to draw with.

    P (C + delta I) P' = L D L'   without pivoting,    B = P' L D^(1/2),    B B' = C + delta I

By Sylvester's law the pivots D have the signs of the eigenvalues. delta is 1e-10 of the largest
variance: it lets singular covariances pass, and is far below any Monte Carlo error of a draw.

Cost: that of a sparse factorisation with a minimum degree ordering.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

__all__ = ["sparse_factor"]

_SHIFT = 1e-10


def sparse_factor(name, cov):
    """Factor a sparse covariance matrix, or say that it is none.

    Parameters
    ----------
    name : str
        The argument's name as the user knows it.
    cov : sparse (n, n)
        Symmetric.

    Returns
    -------
    scipy.sparse.csr_array, (n, n)
        B with B B' = cov, in the square root of its units.

    Raises
    ------
    ValueError
        If the matrix is not symmetric or has an eigenvalue below zero.
    """
    cov = sparse.csc_array(cov, dtype=np.float64)
    scale = float(np.max(np.abs(cov.data), initial=0.0))
    if scale == 0:
        raise ValueError(f"{name} is zero; give at least one source a positive variance.")
    gap = abs(cov - cov.T).max() / scale
    if gap > 1e-8:
        raise ValueError(
            f"{name} must be symmetric, but it differs from its transpose by {gap:.1e} of its "
            "largest entry; use (C + C.T) / 2 if that is rounding."
        )
    scaled = (cov + cov.T) / (2 * scale) + _SHIFT * sparse.eye_array(cov.shape[0])
    try:
        lu = splu(
            scaled.tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        pivots = lu.U.diagonal()
        is_definite = np.array_equal(lu.perm_r, lu.perm_c) and np.min(pivots) > 0
    except RuntimeError:  # a pivot of exactly zero
        is_definite = False
    if not is_definite:
        raise ValueError(
            f"{name} is not positive semidefinite: no law has it as covariance. Check its signs, "
            "or give a precision matrix's inverse rather than the precision itself."
        )
    factor = sparse.csr_array(lu.L) @ sparse.diags_array(np.sqrt(pivots * scale))
    return sparse.csr_array(factor)[lu.perm_r]
