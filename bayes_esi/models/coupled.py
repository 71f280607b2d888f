"""Sources that drive each other: a linear state-space model with a sparse transition matrix.

    x_1 ~ N(0, Pi),    x_{t+1} = F x_t + w_t,    w_t ~ N(0, Q),    Pi = F Pi F' + Q
    y_t = G x_t + v_t,    v_t ~ N(0, noise_std^2 I)

x_t are the moments of all sources at sample t, orientation fastest. F and Q of one row a
source act on each orientation alike: F is then kron(F, I), Q is kron(Q, I).

`neighbour_dynamics` writes the transition matrices of the literature:

- Galka et al. 2004: x_j <- a x_j + (b / 6) sum of the neighbours;
- Lamus et al. 2012: x_j <- phi [a x_j + (1 - a) sum_i d_ji x_i], d_ji in proportion to the
  inverse distance, summing to one.

References: Galka, Yamashita, Ozaki, Biscay, Valdés-Sosa 2004,
doi:10.1016/j.neuroimage.2004.02.022; Lamus, Hämäläinen, Temereanca, Brown, Purdon 2012,
doi:10.1016/j.neuroimage.2011.11.020.
"""

import dataclasses
import warnings
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigs

from ..core.checks import check_array, check_choice, check_count, check_positive
from .sparse_cov import sparse_factor

__all__ = [
    "CoupledSources",
    "CoupledSystem",
    "coupled_system",
    "neighbour_dynamics",
    "spectral_radius",
]

# Up to this size all eigenvalues cost less than a Krylov method that may not converge.
_DENSE_SIZE = 400


@dataclasses.dataclass(frozen=True, eq=False)
class CoupledSources:
    """Moments that follow x_{t+1} = F x_t + w with a sparse, stable F and a stationary start.

    Parameters
    ----------
    transition : sparse or dense (n_sources, n_sources) or (n_sources * n_orient, ...) array
        F, unitless. Of one row a source it acts on each orientation alike; otherwise rows run
        over sources and, fastest, orientations.
    process_cov : float, (n,) array, or sparse or dense (n, n) array
        Q in (A·m)^2: one variance for all, variances, or a covariance; of either size.
    noise_std : float
        Noise level relative to the given noise covariance.

    Raises
    ------
    ValueError
        On an F that is not square or not stable (spectral radius below 1), a covariance that is
        not positive semidefinite, or sizes that do not go together.
    """

    transition: object
    process_cov: object
    noise_std: float = 1.0

    def __post_init__(self):
        transition = _check_square("transition", self.transition)
        radius = spectral_radius(transition)
        if not radius < 1:
            raise ValueError(
                f"transition must have a spectral radius below 1, got {radius:.6g}: the sources "
                "would grow without bound and no stationary start exists. Scale it by "
                f"{0.95 / radius:.3g} for a radius of 0.95; a random walk of uncoupled sources is "
                "AutoregressiveSources."
            )
        process_cov = _check_process_cov(self.process_cov)
        size = np.shape(process_cov)
        n = transition.shape[0]
        if size and size[0] not in (n, 3 * n) and n != 3 * size[0]:
            raise ValueError(
                f"process_cov of shape {size} does not go with a transition of shape "
                f"{transition.shape}: each has one row a source or one a source and orientation."
            )
        object.__setattr__(self, "transition", transition)
        object.__setattr__(self, "process_cov", process_cov)
        object.__setattr__(
            self,
            "noise_std",
            check_positive("noise_std", self.noise_std, remedy="1 is the given covariance."),
        )


class CoupledSystem(NamedTuple):
    """The model on one problem as arrays: states run over sources and, fastest, orientations."""

    lead_field: np.ndarray  # (rank, n_states), whitened, per moment unit
    transition: sparse.csr_array  # (n_states, n_states)
    process_cov: object  # (n_states,) variances or sparse (n_states, n_states), moment_unit^2
    noise_var: float  # in whitened units


def coupled_system(model, problem):
    """Write `model` on `problem` as arrays in the problem's inner units.

    Parameters
    ----------
    model : CoupledSources
    problem : Problem

    Returns
    -------
    CoupledSystem

    Raises
    ------
    ValueError
        If the transition or the covariance has another size than the problem's sources.
    """
    n_sources, n_orient = problem.n_sources, problem.n_orient
    n_states = n_sources * n_orient
    wanted = f"{n_sources}" if n_orient == 1 else f"{n_sources} or {n_states}"
    shapes = {"transition": model.transition.shape}
    if np.ndim(model.process_cov) or sparse.issparse(model.process_cov):
        shapes["process_cov"] = model.process_cov.shape
    for name, shape in shapes.items():
        if shape[0] not in (n_sources, n_states):
            raise ValueError(
                f"{name} has shape {shape}, but the lead field has {n_sources} sources with "
                f"{n_orient} orientation{'s' if n_orient > 1 else ''}: {name} needs {wanted} rows."
            )
    transition = model.transition
    if transition.shape[0] != n_states:
        transition = sparse.csr_array(sparse.kron(transition, sparse.eye_array(n_orient)))
    unit = problem.moment_unit**2
    cov = model.process_cov
    if sparse.issparse(cov):
        if cov.shape[0] != n_states:
            cov = sparse.kron(cov, sparse.eye_array(n_orient))
        cov = sparse.csr_array(cov) / unit
    elif np.ndim(cov) == 0:
        cov = np.full(n_states, cov / unit)
    else:
        cov = (cov if cov.size == n_states else np.repeat(cov, n_orient)) / unit
    lead_field = problem.lead_field.reshape(problem.lead_field.shape[0], n_states)
    return CoupledSystem(lead_field, transition, cov, model.noise_std**2)


def neighbour_dynamics(
    problem, self_weight, neighbour_weight, *, weights="inverse_distance", n_neighbours=None
):
    """Write nearest-neighbour dynamics on the neighbours of a problem.

    Parameters
    ----------
    problem : Problem
        Its `neighbours` and `source_pos` are used.
    self_weight, neighbour_weight : float
        Weight of the source itself, and of its neighbours together. Lamus et al.: phi a
        and phi (1 - a); Galka et al.: a and b.
    weights : "inverse_distance" or "equal"
        How `neighbour_weight` is split: in proportion to the inverse distance, or equally.
    n_neighbours : int, optional
        With "equal", each neighbour gets neighbour_weight / n_neighbours also where the source
        has fewer (6 on a cubic grid: sources at the rim lose activity). By default the number that
        the source has.

    Returns
    -------
    scipy.sparse.csr_array, (n_sources, n_sources)
        Row sums are self_weight + neighbour_weight where a source has all its neighbours.

    Raises
    ------
    ValueError
        On weights that are not finite, or an unknown rule.
    """
    check_choice("weights", weights, ("inverse_distance", "equal"))
    self_weight = float(check_array("self_weight", self_weight, ndim=0))
    neighbour_weight = float(check_array("neighbour_weight", neighbour_weight, ndim=0))
    if n_neighbours is not None:
        n_neighbours = check_count("n_neighbours", n_neighbours)
        if weights != "equal":
            raise ValueError('n_neighbours goes with weights="equal" only; leave it out.')
    table = problem.neighbours
    is_there = table >= 0
    if weights == "equal":
        share = is_there.astype(np.float64)
        total = np.full(len(table), n_neighbours) if n_neighbours else share.sum(axis=1)
    else:
        steps = problem.source_pos[np.maximum(table, 0)] - problem.source_pos[:, None]
        distance = np.where(is_there, np.linalg.norm(steps, axis=2), 1.0)
        share = np.where(is_there, 1 / distance, 0.0)
        total = share.sum(axis=1)
    share = neighbour_weight * share / np.where(total > 0, total, 1.0)[:, None]
    n = len(table)
    rows = np.repeat(np.arange(n), is_there.sum(axis=1))
    coupling = sparse.csr_array((share[is_there], (rows, table[is_there])), (n, n))
    return sparse.csr_array(coupling + self_weight * sparse.eye_array(n))


def spectral_radius(transition):
    """Largest modulus of the eigenvalues, or a bound of it below 1 where one is at hand.

    Norms come first: max row sum and max column sum bound it, and settle most neighbour dynamics.
    Then all eigenvalues (small), Arnoldi, and where that does not converge the mean growth of a
    power iteration, which needs no single dominant eigenvalue.
    """
    size = abs(transition)
    bound = min(size.sum(axis=0).max(), size.sum(axis=1).max())
    if bound < 1:
        return float(bound)
    n = transition.shape[0]
    if n <= _DENSE_SIZE:
        return float(np.max(np.abs(np.linalg.eigvals(transition.toarray()))))
    start = np.random.default_rng(0).standard_normal(n)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = eigs(transition, k=1, which="LM", v0=start, maxiter=1000, tol=1e-8)[0]
        return float(np.max(np.abs(values)))
    except (ArpackNoConvergence, ArpackError):
        return _mean_growth(transition, start)


def _mean_growth(transition, start, n_steps=4000):
    """Growth per step of a power iteration, over its second half."""
    total, vector = 0.0, start / np.linalg.norm(start)
    for step in range(n_steps):
        vector = transition @ vector
        norm = np.linalg.norm(vector)
        if norm == 0:
            return 0.0
        vector = vector / norm
        if step >= n_steps // 2:
            total += np.log(norm)
    return float(np.exp(total / (n_steps - n_steps // 2)))


def _check_square(name, matrix):
    """Return a finite square matrix as canonical CSR of doubles."""
    if sparse.issparse(matrix):
        matrix = sparse.csr_array(matrix)
        if matrix.nnz:
            check_array(name, matrix.data)
    else:
        matrix = sparse.csr_array(
            check_array(name, matrix, ndim=2, remedy="It has one row and one column a state.")
        )
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name} must be square, got shape {matrix.shape}. It has one row and column a source "
            "(or a source and orientation)."
        )
    matrix = matrix.astype(np.float64)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _check_process_cov(cov):
    """Return a number, variances, or a sparse matrix, all positive semidefinite."""
    if sparse.issparse(cov) or np.ndim(cov) == 2:
        cov = _check_square("process_cov", cov)
        sparse_factor("process_cov", cov)
        return cov
    remedy = "It is a variance, one variance a source, or a covariance, in (A·m)^2."
    if np.ndim(cov) == 0:
        return check_positive("process_cov", cov, remedy=remedy)
    cov = check_array("process_cov", cov, ndim=1, remedy=remedy).astype(np.float64)
    if np.any(cov < 0) or not np.any(cov > 0):
        raise ValueError(
            f"process_cov has variances below zero or all zero (smallest {cov.min():.3g}): it is "
            f"not positive semidefinite or leaves nothing to estimate. {remedy}"
        )
    return cov
