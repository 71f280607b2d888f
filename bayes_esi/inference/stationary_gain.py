"""Online filter with the steady gain: one sample in, posterior mean out.

    e = y - G x,   x_t|t = x + L S^-1 e,   x <- F x_t|t,    L = P G',  S = G L + R

P solves the Riccati equation P = F P F' - F P G' S^-1 G P F' + Q; it is never formed. The gain
comes from the same recursion as the exact filter, run until it no longer changes, so the posterior
is that of a recording that has gone on for `n_transient` samples or longer.

Cost of a sample O(n_states n_channels).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float
from .chandrasekhar import Gain, Model
from .coupled_kalman import make_model
from .disturbance_smoother import filter_step
from .gain_sequence import solve_gains

__all__ = ["Info", "State", "StationaryGain", "init", "solve", "step"]


class State(NamedTuple):
    """What the next sample needs."""

    predicted_mean: Float[Array, " n_states"]


class Info(NamedTuple):
    """Posterior after a sample."""

    mean: Float[Array, " n_states"]  # filtered
    innovation: Float[Array, " n_channels"]
    log_evidence_increment: Float[Array, ""]  # whitened units, nats


@struct
class StationaryGain:
    """A model with its steady gain; `solve` makes it."""

    model: Model
    gain: Gain
    filtered_std: Float[Array, " n_states"] | None  # of x after a sample
    dare_residual: float  # relative residual of the Riccati equation
    n_transient: int  # samples that the gain took to be steady


def solve(
    lead_field,
    transition,
    process_cov,
    noise_var,
    *,
    tol=None,
    with_std=True,
    memory_limit=6 * 2**30,
    max_steps=10_000,
):
    """Find the steady gain.

    Parameters
    ----------
    lead_field, transition, process_cov, noise_var
        As in `coupled_kalman.make_model`.
    tol : float, optional
        Relative accuracy; see `solve_gains`.
    with_std : bool
        Whether posterior standard deviations are wanted.
    memory_limit : float
        Bytes for the series of the stationary law.
    max_steps : int
        Samples within which the gain must be steady.

    Returns
    -------
    StationaryGain

    Raises
    ------
    ValueError
        If the gain is not steady after `max_steps` samples.
    """
    model = make_model(lead_field, transition, process_cov, noise_var)
    gains = solve_gains(
        model, max_steps, tol=tol, memory_limit=memory_limit, with_var=with_std, keep=False
    )
    if gains.n_transient == max_steps - 1:
        raise ValueError(
            f"the gain is not steady after max_steps={max_steps} samples; raise max_steps or tol, "
            "or scale the transition down."
        )
    std = jnp.sqrt(jnp.asarray(np.maximum(gains.filtered_var[-1], 0.0))) if with_std else None
    return StationaryGain(model, gains.steady, std, gains.dare_residual, gains.n_transient)


def init(stationary: StationaryGain) -> State:
    """Start before the first sample."""
    return State(jnp.zeros_like(stationary.model.dynamics.process_var))


@jax.jit
def step(
    stationary: StationaryGain, state: State, sample: Float[Array, " n_channels"]
) -> tuple[State, Info]:
    """Take one whitened sample in."""
    gain = stationary.gain
    predicted, mean, innovation, scaled = filter_step(
        stationary.model, gain, state.predicted_mean, sample
    )
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(gain.innovation_chol)))
    increment = -0.5 * (innovation @ scaled + log_det + sample.shape[0] * np.log(2 * np.pi))
    return State(predicted), Info(mean, innovation, increment)
