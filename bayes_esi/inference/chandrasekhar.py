"""Kalman gains of a time-invariant model without a covariance matrix of the states.

With a stationary start the predicted covariance shrinks by a matrix of low rank at each step,

    P_{t+1} = P_t - Z_t Z_t',    L_t = P_t G',    S_t = G L_t + R,    W_t = G Z_t,

and the increment has a recursion of its own (Chandrasekhar type):

    L_{t+1} = L_t - Z_t W_t',    S_{t+1} = S_t - W_t W_t'
    Z_{t+1} = F (Z_t - L_{t+1} S_{t+1}^-1 W_t) C',    C' C = (I + W_t' S_{t+1}^-1 W_t)^-1
    Z_1 = F L_1 S_1^(-1/2),    L_1 = Pi G'

Z is n_states x rank, rank at most n_channels. Directions of Z that no longer matter at the
tolerance are dropped, and once Z is so small that its roundings in single precision do not
matter either, it goes on in single precision, at half the cost.

Predicted and filtered variances are exact; with Z_{t+1} = F Y_t, the rows of Y_t give the latter:

    diag P_{t+1} = diag P_t - rowsum(Z_t^2),    diag P_{t+1|t+1} = diag P_t|t - rowsum(Y_t^2)

Cost of a step O(n_states n_channels rank).

References: Morf, Sidhu, Kailath 1974, doi:10.1109/TAC.1974.1100576; the form with a factored
increment follows from theirs by the matrix inversion lemma.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float
from .sparse_product import multiply
from .stationary_prior import Dynamics

__all__ = ["Gain", "Info", "Model", "State", "gain", "init", "step"]

# Directions dropped from the increment carry this fraction of the tolerance times the mean
# predicted variance: summed over steps and over their effect on later ones, still below it.
_DROPPED = 0.01
_SMALL_RANK = 16  # below this rank nothing is gained by dropping
# Single precision once changes are below this many tolerances: its roundings of 6e-8, summed over
# a few hundred terms, make 1e-6 of a change.
_SINGLE = 1e5


@struct
class Model:
    """The whole linear model as compiled code sees it."""

    dynamics: Dynamics
    lead_field: Float[Array, "n_channels n_states"]  # G, whitened
    noise_var: Float[Array, ""]  # R = noise_var I


class State(NamedTuple):
    """Where the recursion stands at sample t."""

    predicted_cov: Float[Array, "n_states n_channels"]  # L = P G'
    innovation_cov: Float[Array, "n_channels n_channels"]  # S
    increment: Float[Array, "n_states rank"]  # Z
    predicted_var: Float[Array, " n_states"] | None  # diag P, where it is followed
    filtered_var: Float[Array, " n_states"] | None  # diag of P after sample t


class Gain(NamedTuple):
    """What filter and smoother need of one sample."""

    predicted_cov: Float[Array, "n_states n_channels"]  # L = P G'
    innovation_chol: Float[Array, "n_channels n_channels"]  # lower Cholesky factor of S


class Info(NamedTuple):
    """How far one step went."""

    change_of_cov: float  # |Z W'| / |L|
    change_of_var: float  # largest rowsum(Z^2) / diag P
    rank: int  # of the next increment


def init(model: Model, first_cov, first_var) -> State:
    """Start at the stationary law.

    Parameters
    ----------
    model : Model
    first_cov : (n_states, n_channels) array
        Pi G'.
    first_var : (n_states,) array or None
        Diagonal of Pi; None leaves variances out.
    """
    return _init(model, first_cov, first_var)


def step(model: Model, state: State, tol, *, compress) -> tuple[State, Info]:
    """Go from sample t to t + 1, dropping directions of the increment if `compress`."""
    new, change_of_cov, change_of_var = _advance(model, state)
    change_of_cov, change_of_var = float(change_of_cov), float(change_of_var)
    increment = new.increment
    if compress:
        scale = model.dynamics.process_var if new.predicted_var is None else new.predicted_var
        increment = _drop(increment, _DROPPED * tol * float(jnp.mean(scale)))
    if max(change_of_cov, change_of_var) < _SINGLE * tol:
        increment = increment.astype(jnp.float32)
    info = Info(change_of_cov, change_of_var, increment.shape[1])
    return new._replace(increment=increment), info


def gain(state: State) -> Gain:
    """Factor the innovation covariance."""
    return Gain(state.predicted_cov, _cholesky(state.innovation_cov))


@jax.jit
def _init(model, first_cov, first_var):
    n_channels = model.lead_field.shape[0]
    cov = model.lead_field @ first_cov
    cov = 0.5 * (cov + cov.T) + model.noise_var * jnp.eye(n_channels, dtype=cov.dtype)
    half = first_cov @ _inverse(jnp.linalg.cholesky(cov)).T
    increment = multiply(model.dynamics.transition, half)
    filtered_var = None if first_var is None else first_var - jnp.sum(half**2, axis=1)
    return State(first_cov, cov, increment, first_var, filtered_var)


@jax.jit
def _advance(model, state):
    increment = state.increment
    precise, fast = state.predicted_cov.dtype, increment.dtype
    seen = model.lead_field.astype(fast) @ increment
    difference = increment @ seen.T
    predicted_cov = state.predicted_cov - difference.astype(precise)
    wide = seen.astype(precise)
    innovation_cov = state.innovation_cov - wide @ wide.T
    # Small inverses, so that everything with n_states rows is a plain product.
    inverse = _inverse(jnp.linalg.cholesky(innovation_cov))
    half = inverse @ wide
    # I + W' S^-1 W has no cancellation, unlike its inverse I - W' (S + W W')^-1 W.
    inner = half.T @ half + jnp.eye(half.shape[1], dtype=precise)
    shrink = _inverse(jnp.linalg.cholesky(inner)).T
    weights = inverse.T @ half @ shrink
    filtered = increment @ shrink.astype(fast) - predicted_cov.astype(fast) @ weights.astype(fast)
    new = multiply(model.dynamics.transition, filtered)
    change_of_cov = jnp.linalg.norm(difference) / jnp.linalg.norm(predicted_cov)
    if state.predicted_var is None:
        return State(predicted_cov, innovation_cov, new, None, None), change_of_cov, 0.0
    lost = jnp.sum(increment**2, axis=1).astype(precise)
    predicted_var = state.predicted_var - lost
    filtered_var = state.filtered_var - jnp.sum(filtered**2, axis=1).astype(precise)
    tiny = jnp.finfo(lost.dtype).tiny
    change_of_var = jnp.max(lost / jnp.maximum(predicted_var, tiny))
    state = State(predicted_cov, innovation_cov, new, predicted_var, filtered_var)
    return state, change_of_cov, change_of_var


def _inverse(chol):
    """Inverse of a lower triangular matrix."""
    identity = jnp.eye(chol.shape[0], dtype=chol.dtype)
    return jax.scipy.linalg.solve_triangular(chol, identity, lower=True)


def _drop(increment, limit):
    """Leave out directions of the increment whose squared norms sum to at most `limit`."""
    rank = increment.shape[1]
    if rank <= _SMALL_RANK:
        return increment
    values, vectors = np.linalg.eigh(np.asarray(_gram(increment), np.float64))
    n_dropped = int(np.searchsorted(np.cumsum(np.maximum(values, 0)), limit, side="right"))
    # Few shapes, so that the step compiles a few times only.
    block = max(-(-rank // 8), _SMALL_RANK)
    keep = max(-(-(rank - n_dropped) // block), 1) * block
    if keep >= rank:
        return increment
    return _rotate(increment, jnp.asarray(vectors[:, rank - keep :], increment.dtype))


_cholesky = jax.jit(jnp.linalg.cholesky)


@jax.jit
def _gram(x):
    return x.T @ x


@jax.jit
def _rotate(x, basis):
    return x @ basis
