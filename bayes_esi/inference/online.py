"""Kalman filter of the scalar channels for streams: one sample in, posterior out.

The same updates as `kalman.filter_moments` (model and recursions there and in `kalman_steps`),
held in a `State` that carries its parameters, so that `step` is one compiled function for every
stream of the same shape. A whole recording in chunks gives bit for bit what one run gives.

Cost of a sample O(m q^3), and no memory of the past.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Array, Bool, Float
from ..models import kalman_steps as steps
from ..models.kalman_likelihood import log_density
from ..models.time_kernels import TimeKernel

__all__ = ["Info", "State", "init", "step"]


class State(NamedTuple):
    """What is predicted of the next sample, and the parameters of the stream."""

    mean: Float[Array, "q m"]
    cov: Float[Array, "q q m"]
    signal_var: Float[Array, " m"]
    noise_var: Float[Array, ""]
    kernel: TimeKernel


class Info(NamedTuple):
    """Posterior of the signals at the sample, given all samples so far."""

    mean: Float[Array, " m"]
    variance: Float[Array, " m"]
    log_evidence_increment: Float[Array, ""]  # in nats, of whitened data; 0 if nothing came


def init(signal_var: Float[Array, " m"], noise_var: Float[Array, ""], kernel: TimeKernel) -> State:
    """Prior of the first sample; the dtype is that of `signal_var`."""
    signal_var = jnp.asarray(signal_var)
    noise_var, kernel = jax.tree.map(
        lambda leaf: jnp.asarray(leaf).astype(signal_var.dtype), (noise_var, kernel)
    )
    return State(*steps.start(signal_var, kernel), signal_var, noise_var, kernel)


@jax.jit
def step(
    state: State, sample: Float[Array, " m"], is_observed: Bool[Array, ""] | None = None
) -> tuple[State, Info]:
    """Take in one sample.

    Parameters
    ----------
    state : State
    sample : (m,)
        Channels in whitened eigen-coordinates, unitless; may hold NaN if not observed.
    is_observed : () bool, optional
        False where the sample is missing: the posterior is then the prediction.
    """
    dtype = state.mean.dtype
    if is_observed is None:
        is_observed = np.array(True)
    data = jnp.where(is_observed, sample.astype(dtype), jnp.zeros((), dtype))
    weight = jnp.asarray(is_observed).astype(dtype)
    innovation = data - state.mean[0]
    cov, gain = steps.update(state.cov, state.noise_var, weight)
    mean = state.mean + gain.gain * innovation
    predicted = steps.predict(mean, cov, state.signal_var, state.kernel)
    info = Info(mean[0], cov[0, 0], log_density(innovation, gain.spread, weight))
    return State(*predicted, *state[2:]), info
