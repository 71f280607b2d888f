"""Spatial correlation of sources: C of size n_sources, never formed unless it was given so.

Every kind of correlation here answers three questions, each without an n x n matrix of its own:
C V for a few columns V, the diagonal of C, and R w with R R' = C for white w.

| given as | C |
|---|---|
| "identity" | I |
| "laplacian", "laura" | c (B'B)^-1 with the operators of `sources.laplacian`; mean variance 1 |
| dense, square | the covariance itself |
| sparse, square | the inverse: the array is a precision |
| dense, tall or wide (n, k) | F F': the array is a factor |

A given array may have the size of the sources or of all components (n_sources d, source by source).

Cost of C V: O(n k), O(fill k), O(n^2 k) for identity, sparse and dense.
Reference: Pascual-Marqui, Michel, Lehmann 1994, doi:10.1016/0167-8760(84)90014-X (LORETA).
"""

import functools

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu, spsolve_triangular

from ..core.checks import check_array, check_choice
from ..sources.laplacian import SparseFactor, laura_operator, loreta_operator

__all__ = ["KINDS", "Correlation", "check_covariance", "correlation_of", "smooth_factor"]

KINDS = ("identity", "laplacian", "laura")

# Correlation of some three steps on a mesh of six neighbours: (6 epsilon)^(-1/2).
_MESH_EPSILON = 0.02

# Columns solved at once for the diagonal of an inverse: the block stays in the cache's reach.
_BLOCK = 64
# Negative eigenvalues of a given covariance above this share of the largest are rounding.
_ROUNDING = 1e-10


class Correlation:
    """C through its actions.

    Attributes
    ----------
    size : int
        Rows of C: n_sources, or n_sources times the components of each.
    n_white : int
        Length of the white vectors that `root` takes.
    """

    def __init__(self, size, apply, diagonal, root, n_white=None):
        self.size = size
        self.n_white = size if n_white is None else n_white
        self.apply = apply  # (size, k) -> (size, k)
        self._diagonal = diagonal
        self.root = root  # (n_white, k) -> (size, k)

    @functools.cached_property
    def diagonal(self):
        """Variances: (size,). The dearest answer of a sparse precision, so asked for once."""
        return self._diagonal()


def check_covariance(covariance):
    """Refuse what is neither a known kind nor a two-dimensional array.

    Raises
    ------
    ValueError
        Naming the kinds and the forms of an array.
    """
    if isinstance(covariance, str):
        check_choice("covariance", covariance, KINDS)
    elif not sparse.issparse(covariance):
        check_array(
            "covariance",
            covariance,
            ndim=2,
            remedy=f"Give one of {', '.join(KINDS)}, a dense covariance, a sparse precision or a "
            "factor (n_sources, k).",
        )


def correlation_of(covariance, problem, n_components):
    """Turn the `covariance` of a model into a `Correlation`.

    Parameters
    ----------
    covariance : str, array or sparse array
        See the table of this module.
    problem : Problem
    n_components : int
        Components of each source.

    Returns
    -------
    Correlation

    Raises
    ------
    ValueError
        If an array has another size than the sources, is not symmetric, or not positive
        semidefinite (a precision: positive definite).
    """
    if isinstance(covariance, str):
        return _named(covariance, problem)
    n_sources = problem.n_sources
    n_rows = covariance.shape[0]
    if n_rows not in (n_sources, n_sources * n_components):
        raise ValueError(
            f"covariance must have {n_sources} rows, one for each source"
            + (f", or {n_sources * n_components}, one for each component" * (n_components > 1))
            + f"; got shape {covariance.shape}."
        )
    if sparse.issparse(covariance):
        return _of_precision(covariance)
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape[0] == covariance.shape[1]:
        return _of_dense(covariance)
    return _of_factor(covariance)


def _named(kind, problem):
    n = problem.n_sources
    if kind == "identity":
        return Correlation(n, lambda v: v, lambda: np.ones(n), lambda w: w)
    factor = smooth_factor(kind, problem)
    variances = factor.marginal_variances()
    scale = 1 / np.mean(variances)
    return Correlation(
        n,
        lambda v: scale * factor.solve(factor.solve_transposed(v)),
        lambda: scale * variances,
        lambda w: np.sqrt(scale) * factor.solve(w),
    )


def smooth_factor(kind, problem):
    """The factor B of a smooth prior on the sources of a problem.

    Grids have a border, where the operator is corrected and therefore invertible. A closed cortex
    has none: there its correlation is held to some three steps (see `sources.laplacian`).
    """
    is_mesh = set(problem.block_kinds) <= {"lh", "rh"}
    options = {"epsilon": _MESH_EPSILON, "is_border_corrected": False} if is_mesh else {}
    if kind == "laplacian":
        return SparseFactor(loreta_operator(problem.neighbours, **options))
    return SparseFactor(laura_operator(problem.neighbours, problem.source_pos, **options))


def _of_dense(covariance):
    _check_symmetric(covariance)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    if eigenvalues[0] < -_ROUNDING * max(eigenvalues[-1], 0.0):
        raise ValueError(
            "covariance is not positive semidefinite: its smallest eigenvalue is "
            f"{eigenvalues[0]:.3g}, its largest {eigenvalues[-1]:.3g}. Was a precision meant? Give "
            "that as a scipy.sparse array."
        )
    if not eigenvalues[-1] > 0:
        raise ValueError("covariance is zero: nothing could be active.")
    root = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    return Correlation(
        len(covariance), lambda v: covariance @ v, lambda: np.diag(covariance), lambda w: root @ w
    )


def _of_factor(factor):
    if not np.any(factor):
        raise ValueError("covariance is zero: nothing could be active.")
    return Correlation(
        len(factor),
        lambda v: factor @ (factor.T @ v),
        lambda: np.sum(factor**2, axis=1),
        lambda w: factor @ w,
        n_white=factor.shape[1],
    )


def _of_precision(precision):
    """P = L D L' up to a symmetric permutation, so that pivots tell whether P is positive."""
    if precision.shape[0] != precision.shape[1]:
        raise ValueError(
            f"covariance as a sparse array is a precision and must be square, got shape "
            f"{precision.shape}; give a factor as a dense array."
        )
    precision = sparse.csc_array(precision, dtype=np.float64)
    _check_symmetric(precision)
    n = precision.shape[0]
    try:
        lu = splu(
            precision,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        pivots = lu.U.diagonal()
    except RuntimeError:  # exactly singular
        pivots = np.zeros(1)
    if not np.all(pivots > 0) or not np.array_equal(lu.perm_r, lu.perm_c):
        raise ValueError(
            "covariance, given as a sparse precision, is not positive definite; add a small "
            "multiple of the identity, or give a dense covariance."
        )
    upper = sparse.csr_array(lu.L.T)

    def root(white):
        scaled = np.asarray(white) / np.sqrt(pivots)[:, None]
        return spsolve_triangular(upper, scaled, lower=False, unit_diagonal=True)[lu.perm_c]

    def diagonal():
        variances = np.empty(n)
        for start in range(0, n, _BLOCK):
            columns = np.arange(start, min(start + _BLOCK, n))
            unit = np.zeros((n, columns.size))
            unit[columns, np.arange(columns.size)] = 1.0
            variances[columns] = lu.solve(unit)[columns, np.arange(columns.size)]
        return variances

    return Correlation(n, lambda v: lu.solve(np.ascontiguousarray(v)), diagonal, root)


def _check_symmetric(matrix):
    difference = abs(matrix - matrix.T).max()
    if difference > 1e-8 * abs(matrix).max():
        raise ValueError(f"covariance is not symmetric: entries differ by up to {difference:.3g}.")
