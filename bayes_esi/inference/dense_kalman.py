"""Square-root Kalman filter and smoother of a general linear model, for small states.

    x_{t+1} = F x_t + N(0, Q),     data_t = G x_t + N(0, noise_var I),     x_1 ~ N(0, P_1)

Covariances travel as factors C, P = C C', and are updated by QR factorisations only: they stay
positive semidefinite and keep twice the digits. With E = [F C, C_Q] and LQ for "the lower
triangular factor of":

    update     LQ [noise_std I, G C; 0, C] = [S^1/2, 0; K S^1/2, C_filtered]
    predict    LQ E = C_predicted,    E = C_predicted Theta

The way back carries L, h: the likelihood of all later data as a function of x_{t+1} is
exp(-|L'x|^2 / 2 + h'x). With hats for what it says of x_t, and R'R = I + B'B from a QR:

    L^ = F'L (I + L'QL)^-1/2,        h^ = F'(I + LL'Q)^-1 h
    smoothed factor C R^-1, B = L^'C;    smoothed mean x + CR^-1 (CR^-1)' (h^ - L^L^'x)
    Cov(x_{t+1}, x_t | data) = C_predicted (R'R)^-1 Theta_1 C',  B = L'C_predicted,
                               Theta_1 the columns of Theta that belong to F C
    L <- LQ [L^, G' / noise_std],    h <- h^ + G' data / noise_var

These are the moments of the Rauch-Tung-Striebel smoother (the two-filter form). Nothing but
matrices above the identity is inverted: singular P_1, Q and predicted covariances, and a
transition without inverse, need no care.

Some samples may be observed through an operator of their own, O_t data_t, when channels go bad
for a time (`observation_patterns`).

Cost O(n_times (n + m)^3), memory O(n_times n^2).

References: Kaminski, Bryson, Schmidt 1971, doi:10.1109/TAC.1971.1099816 (square-root arrays);
Rauch, Tung, Striebel 1965, doi:10.2514/3.3166; Fraser, Potter 1969, IEEE Trans. Autom.
Control 14:387 (smoother as two filters).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array
from ..core.types import Array, Float, Int

__all__ = ["Moments", "Observation", "factor_of", "observation_patterns", "run"]


class Moments(NamedTuple):
    """Filtered and smoothed moments of the states; a covariance is factor @ factor.T."""

    filtered_mean: Float[Array, "n n_times"]
    filtered_factor: Float[Array, "n_times n n"]
    smoothed_mean: Float[Array, "n n_times"]
    smoothed_factor: Float[Array, "n_times n n"]
    lag_one_cov: Float[Array, "n_times-1 n n"]  # of x_{t+1} (rows) and x_t, given all data
    innovations: Float[Array, "m n_times"]  # standard normal under the model; 0 if unobserved
    log_likelihood: Float[Array, ""]  # of what was observed, in nats


class Observation(NamedTuple):
    """What is observed at each sample: operators[pattern[t]] @ data[:, t]."""

    operators: Float[Array, "n_patterns m m"]  # orthonormal rows, then rows of zeros
    pattern: Int[Array, " n_times"]
    n_observed: Int[Array, " n_patterns"]  # rows that are not zero


class _Sample(NamedTuple):
    """What one sample brings."""

    data: Float[Array, " m"]
    pattern: Int[Array, ""]


@jax.jit
def run(
    data: Float[Array, "m n_times"],
    lead_field: Float[Array, "m n"],
    transition: Float[Array, "n n"],
    process_factor: Float[Array, "n k"],
    initial_factor: Float[Array, "n n"],
    noise_var: Float[Array, ""],
    observation: Observation | None = None,
) -> Moments:
    """Filter and smooth.

    Parameters
    ----------
    data : (m, n_times)
        Whitened, finite also where not observed.
    lead_field : (m, n)
        Whitened field of each state.
    transition : (n, n)
    process_factor : (n, k)
        Any factor of the process covariance (`factor_of`), k at least 1.
    initial_factor : (n, n)
        Any factor of the covariance of the first state.
    noise_var : ()
        Positive.
    observation : Observation, optional
        By default every sample is observed in full.
    """
    dtype = data.dtype
    m, n_times = data.shape
    if observation is None:
        observation = Observation(
            np.eye(m, dtype=dtype)[None], np.zeros(n_times, np.int32), np.array([m])
        )
    lead_field, transition, process_factor, initial_factor, noise_var, operators = (
        jnp.asarray(array).astype(dtype)
        for array in (
            lead_field,
            transition,
            process_factor,
            initial_factor,
            noise_var,
            observation.operators,
        )
    )
    fields = operators @ lead_field
    is_row = jnp.arange(m) < jnp.asarray(observation.n_observed)[:, None]
    # Rows of zeros get unit noise: no part in the update, none in the log determinant.
    noise_std = jnp.where(is_row, jnp.sqrt(noise_var), jnp.ones_like(noise_var))
    pattern = jnp.asarray(observation.pattern)
    seen = jnp.einsum("tij,jt->ti", operators[pattern], data)
    samples = _Sample(seen, pattern)

    def advance(predicted, sample):
        mean, factor = predicted
        field, spread = fields[sample.pattern], noise_std[sample.pattern]
        mean, factor, innovation, log_det = _update(mean, factor, sample.data, field, spread)
        after, _ = _lq(jnp.concatenate([transition @ factor, process_factor], axis=1))
        return (transition @ mean, after), (mean, factor, innovation, log_det)

    n = transition.shape[0]
    none = jnp.zeros((n,), dtype)
    _, (mean, factor, innovations, log_det) = jax.lax.scan(
        advance, (none, _lq(initial_factor)[0]), samples
    )
    n_numbers = jnp.sum(is_row[pattern]).astype(dtype)
    constant = n_numbers * np.log(2 * np.pi).astype(dtype)
    log_likelihood = -(jnp.sum(innovations**2) + constant) / 2 - jnp.sum(log_det)

    def retreat(future, inputs):
        sample, mean, factor = inputs
        lag_one_cov = _lag_one(future[0], factor, transition, process_factor)
        root, linear = _unpredict(*future, transition, process_factor)
        smoothed_factor = _divide(factor, root.T @ factor)
        shift = smoothed_factor.T @ (linear - root @ (root.T @ mean))
        smoothed_mean = mean + smoothed_factor @ shift
        scaled = fields[sample.pattern] / jnp.sqrt(noise_var)
        root, _ = _lq(jnp.concatenate([root, scaled.T], axis=1))
        linear = linear + scaled.T @ sample.data / jnp.sqrt(noise_var)
        return (root, linear), (smoothed_mean, smoothed_factor, lag_one_cov)

    last = (jnp.zeros((n, n), dtype), none)
    _, (smoothed_mean, smoothed_factor, lag_one_cov) = jax.lax.scan(
        retreat, last, (samples, mean, factor), reverse=True
    )
    return Moments(
        filtered_mean=mean.T,
        filtered_factor=factor,
        smoothed_mean=smoothed_mean.T,
        smoothed_factor=smoothed_factor,
        lag_one_cov=lag_one_cov[:-1],
        innovations=innovations.T,
        log_likelihood=log_likelihood,
    )


def factor_of(cov, name="cov"):
    """Factor C of a symmetric positive semidefinite matrix C C', singular ones included.

    Parameters
    ----------
    cov : (n, n) array
    name : str
        What the message calls it.

    Returns
    -------
    (n, n) array

    Raises
    ------
    ValueError
        If the matrix is not symmetric or not positive semidefinite.
    """
    cov = check_array(name, cov, ndim=2)
    largest = np.abs(cov).max()
    if cov.shape[0] != cov.shape[1] or not np.allclose(cov, cov.T, rtol=0, atol=1e-8 * largest):
        raise ValueError(f"{name} must be a symmetric matrix, got shape {cov.shape}.")
    eigenvalues, vectors = np.linalg.eigh((cov + cov.T) / 2)
    if eigenvalues[0] < -1e-8 * largest:
        raise ValueError(
            f"{name} must be positive semidefinite, but it has the eigenvalue "
            f"{eigenvalues[0]:.3g} beside entries of {largest:.3g}; add to its diagonal."
        )
    return vectors * np.sqrt(np.maximum(eigenvalues, 0))


def observation_patterns(whitener, is_missing):
    """Operators that leave out the channels that are missing at each sample.

    Parameters
    ----------
    whitener : (rank, n_channels) array
        In inverse data units.
    is_missing : (n_channels, n_times) bool array
        What the missing channels hold is not used, but must be finite: set it to zero before
        whitening.

    Returns
    -------
    observation : Observation
    log_jacobian_change : float
        Added to `Problem.log_jacobian`; that sum turns a log density of observed whitened data
        into one of the good channels' data in their own units. In nats.

    Notes
    -----
    With W the whitener, whatever the bad channels hold moves W y within the range of W_b only.
    What is left is the orthogonal complement: O'O = I - P_b. For noise of full rank that is all
    the good channels know: their precision (C_gg)^-1, the Schur complement of W_b'W_b in
    C^-1 = W'W, is W_g'(I - P_b) W_g = (O W_g)'(O W_g). In an average reference (rank
    n_channels - 1) it is the good channels referenced to their own average, which no fault of
    the bad ones before or after re-referencing can reach.

    Cost O(n_patterns rank^2 n_channels).

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    whitener = check_array("whitener", whitener, ndim=2)
    is_missing = np.asarray(is_missing)
    rank, n_channels = whitener.shape
    if is_missing.dtype != bool or is_missing.ndim != 2 or len(is_missing) != n_channels:
        raise ValueError(
            f"is_missing must be a boolean array ({n_channels}, n_times), one row for each "
            f"column of whitener; got {is_missing.dtype} {is_missing.shape}."
        )
    cases, pattern = np.unique(is_missing.T, axis=0, return_inverse=True)
    pattern = pattern.reshape(-1)
    operators = np.zeros((len(cases), rank, rank))
    n_observed = np.zeros(len(cases), np.int32)
    log_pdet = np.zeros(len(cases))
    for p, is_bad in enumerate(cases):
        complement = _complement(whitener[:, is_bad])
        n_observed[p] = len(complement)
        operators[p, : len(complement)] = complement
        log_pdet[p] = _log_pdet(complement @ whitener[:, ~is_bad])
    change = float(np.sum(log_pdet[pattern] - _log_pdet(whitener)))
    return Observation(operators, pattern.astype(np.int32), n_observed), change


def _complement(columns):
    """Orthonormal rows that annihilate the columns."""
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    if columns.shape[1] == 0:
        return np.eye(columns.shape[0])
    vectors, values, _ = np.linalg.svd(columns)
    # Unit columns are dependent to rounding or not at all, as in an average reference with every
    # channel bad.
    return vectors[:, np.count_nonzero(values > 1e-10 * values[0]) :].T


def _log_pdet(rows):
    """Log of the product of singular values of a matrix of full row rank; 0 for no rows."""
    return float(np.sum(np.log(np.linalg.svd(rows, compute_uv=False)))) if len(rows) else 0.0


def _lq(matrix):
    """Lower triangular factor with a non-negative diagonal, and the orthonormal rows."""
    rows, upper = jnp.linalg.qr(matrix.T)
    sign = jnp.where(jnp.diagonal(upper) < 0, -jnp.ones_like(upper[0, 0]), 1)
    return upper.T * sign, rows.T * sign[:, None]


def _update(mean, factor, data, field, noise_std):
    """Condition on one sample; also the standardised innovation and half the log determinant."""
    m = data.shape[0]
    top = jnp.concatenate([jnp.diag(noise_std), field @ factor], axis=1)
    below = jnp.concatenate([jnp.zeros_like(field.T), factor], axis=1)
    array, _ = _lq(jnp.concatenate([top, below]))
    spread_root = array[:m, :m]
    innovation = jax.scipy.linalg.solve_triangular(spread_root, data - field @ mean, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(spread_root)))
    return mean + array[m:, :m] @ innovation, array[m:, m:], innovation, log_det


def _above_identity(root):
    """Upper triangular R with R'R = I + B'B, from B."""
    eye = jnp.eye(root.shape[1], dtype=root.dtype)
    return jnp.linalg.qr(jnp.concatenate([eye, root]), mode="r")


def _divide(left, root):
    """Left times R^-1, for R'R = I + B'B."""
    upper = _above_identity(root)
    return jax.scipy.linalg.solve_triangular(upper, left.T, trans="T").T


def _unpredict(root, linear, transition, process_factor):
    """Take the likelihood of later data from x_{t+1} to x_t."""
    reach = process_factor.T @ root  # C_Q'L
    shrunk = _divide(root, reach)  # L (I + L'QL)^-1/2, its square root the inverse of R
    pulled = linear - shrunk @ (shrunk.T @ (process_factor @ (process_factor.T @ linear)))
    return transition.T @ shrunk, transition.T @ pulled


def _lag_one(root, factor, transition, process_factor):
    """Covariance of x_{t+1} and x_t given all data, rows for x_{t+1}."""
    n = factor.shape[0]
    predicted, rows = _lq(jnp.concatenate([transition @ factor, process_factor], axis=1))
    half = _divide(predicted, root.T @ predicted)
    upper = _above_identity(root.T @ predicted)
    turned = jax.scipy.linalg.solve_triangular(upper, rows[:, :n], trans="T")
    return half @ turned @ factor.T
