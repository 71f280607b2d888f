"""Galka's approximate filter: covariance kept block diagonal. For comparison only.

    x_pred = F x,   P_v <- A_v P_v A_v' + Q_v,   S = sum_v G_v P_v G_v' + R,
    K_v = P_v G_v' S^-1,   x <- x_pred + K (y - G x_pred),   P_v <- P_v - K_v S K_v'

v runs over sources with their orientations, A_v is the diagonal block of F: neighbours enter the
mean as if they were known, and correlations between sources are forgotten at each sample. The
exact filter is `coupled_kalman`; the difference of the two log likelihoods is the price of this
approximation. Its variances are not posterior variances.

Galka et al. choose the driving noise so that Q is block diagonal after a Laplacian change of
variables; here Q must be block diagonal in the states given.

Cost O(n_states n_channels^2) a sample.

References: Galka, Yamashita, Ozaki, Biscay, Valdés-Sosa 2004,
doi:10.1016/j.neuroimage.2004.02.022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ..core.types import Array, Float
from .chandrasekhar import Model
from .coupled_kalman import make_model
from .sparse_product import multiply

__all__ = ["BlockDiagonal", "State", "init", "run", "step"]


class BlockDiagonal(NamedTuple):
    """What the approximate filter found; an approximation throughout."""

    mean: np.ndarray  # (n_states, n_times) filtered
    std: np.ndarray  # (n_states, n_times) as the approximation believes
    log_likelihood: float  # innovation likelihood of the approximation, in nats


class State(NamedTuple):
    """Prediction for the next sample."""

    predicted_mean: Float[Array, " n_states"]
    predicted_cov: Float[Array, "n_sources d d"]  # P_v


def init(own: Float[np.ndarray, "n_sources d d"], process: Float[np.ndarray, "n_sources d d"]):
    """Start at the stationary law of each source by itself, P_v = A_v P_v A_v' + Q_v."""
    n_sources, d, _ = own.shape
    kron = np.einsum("vij,vkl->vikjl", own, own).reshape(n_sources, d * d, d * d)
    cov = np.linalg.solve(np.eye(d * d) - kron, process.reshape(n_sources, d * d, 1))
    return State(np.zeros(n_sources * d), cov.reshape(n_sources, d, d))


def step(model: Model, own, process, state: State, sample):
    """Take one sample in: next state, filtered mean, variances, log likelihood increment."""
    n_sources, d, _ = own.shape
    n_channels = model.lead_field.shape[0]
    lead_field = model.lead_field.reshape(n_channels, n_sources, d)
    cross = jnp.einsum("mvd,vde->mve", lead_field, state.predicted_cov)  # G_v P_v
    noise = model.noise_var * jnp.eye(n_channels, dtype=cross.dtype)
    flat = cross.reshape(n_channels, -1)
    chol = jnp.linalg.cholesky(flat @ model.lead_field.T + noise)
    innovation = sample - model.lead_field @ state.predicted_mean
    half = jax.scipy.linalg.solve_triangular(chol, flat, lower=True)
    white = jax.scipy.linalg.solve_triangular(chol, innovation, lower=True)
    mean = state.predicted_mean + half.T @ white
    blocks = half.reshape(n_channels, n_sources, d)
    cov = state.predicted_cov - jnp.einsum("mvd,mve->vde", blocks, blocks)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol)))
    increment = -0.5 * (white @ white + log_det + n_channels * np.log(2 * np.pi))
    predicted = jnp.einsum("vij,vjk,vlk->vil", own, cov, own) + process
    state = State(multiply(model.dynamics.transition, mean), predicted)
    return state, mean, jnp.diagonal(cov, axis1=1, axis2=2).ravel(), increment


def run(data, lead_field, transition, process_cov, noise_var, *, n_orient=1):
    """Filter approximately.

    Parameters
    ----------
    data : (n_channels, n_times) array
        Whitened.
    lead_field, transition, process_cov, noise_var
        As in `coupled_kalman.make_model`; `process_cov` couples orientations of one source at most.
    n_orient : int
        Orientations per source: the size of the blocks.

    Returns
    -------
    BlockDiagonal

    Raises
    ------
    ValueError
        If `process_cov` couples sources.
    """
    is_matrix = sparse.issparse(process_cov)
    process_matrix = process_cov if is_matrix else sparse.diags_array(np.asarray(process_cov))
    process = _diagonal_blocks(process_matrix, n_orient)
    if is_matrix and abs(process_matrix - _block_matrix(process)).max() > 0:
        raise ValueError(
            "process_cov couples different sources, which the block-diagonal filter cannot hold; "
            "use the exact filter, or change variables so that it is block diagonal."
        )
    own = _diagonal_blocks(transition, n_orient)
    model = make_model(lead_field, transition, process_cov, noise_var)
    dtype = model.lead_field.dtype
    own, process, state, samples = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (own, process, init(own, process), np.asarray(data).T)
    )
    mean, variance, log_likelihood = _run(model, own, process, state, samples)
    std = np.sqrt(np.maximum(np.asarray(variance), 0))
    return BlockDiagonal(np.asarray(mean).T, std.T, float(log_likelihood))


@jax.jit
def _run(model, own, process, state, samples):
    def body(state, sample):
        state, mean, variance, increment = step(model, own, process, state, sample)
        return state, (mean, variance, increment)

    _, (mean, variance, increment) = jax.lax.scan(body, state, samples)
    return mean, variance, jnp.sum(increment)


def _diagonal_blocks(matrix, d):
    """Blocks on the diagonal: (n / d, d, d) array."""
    matrix = sparse.coo_array(matrix)
    blocks = np.zeros((matrix.shape[0] // d, d, d))
    row, col = matrix.coords
    is_own = row // d == col // d
    row, col, value = row[is_own], col[is_own], matrix.data[is_own]
    np.add.at(blocks, (row // d, row % d, col % d), value)
    return blocks


def _block_matrix(blocks):
    n_sources, d, _ = blocks.shape
    base = d * np.arange(n_sources)[:, None, None]
    row = base + np.arange(d)[:, None] + np.zeros((n_sources, d, d), int)
    col = base + np.arange(d)[None, :] + np.zeros((n_sources, d, d), int)
    coords = row.ravel(), col.ravel()
    return sparse.csr_array((blocks.ravel(), coords), (n_sources * d, n_sources * d))
