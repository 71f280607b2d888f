"""Kalman filter and disturbance smoother that need gains only, no covariance of the states.

    filter:     e_t = y_t - G x_t,   x_t|t = x_t + L_t S_t^-1 e_t,   x_{t+1} = F x_t|t
    backward:   r_{t-1} = G' S_t^-1 (e_t - L_t' u_t) + u_t,   u_t = F' r_t,   r_T = 0
    forward:    x_1|T = Pi r_0,   x_{t+1}|T = F x_t|T + Q r_t

x_t is the predicted mean; S_t^-1 (e_t - L_t' u_t) noise_var is the smoothed noise. With
L_t = P_t G' instead of the gain F L_t S_t^-1, each sample costs two products with L and two with G.

Everything works on one series (n_states,) or many at once (n_states, n_series).

Cost O(n_states n_channels) a sample and series; memory O(n_states n_times).

References: Koopman 1993, doi:10.1093/biomet/80.1.117; Durbin, Koopman 2012, "Time Series
Analysis by State Space Methods", doi:10.1093/acprof:oso/9780199641178.001.0001.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .chandrasekhar import Gain, Model
from .sparse_product import multiply
from .stationary_prior import apply_process_cov, apply_stationary_cov

__all__ = [
    "Filtered",
    "backward",
    "backward_step",
    "filter_step",
    "forward",
    "log_density",
    "run_filter",
    "smooth",
    "turn",
]


_LONG = 8  # samples; fewer products do not repay a transposed copy


class Filtered(NamedTuple):
    """What the filter found."""

    mean: np.ndarray | None  # (n_times, n_states) filtered, if asked for
    innovation: np.ndarray  # (n_times, n_channels)
    log_likelihood: float  # of the whitened data


def filter_step(model: Model, gain: Gain, predicted, sample):
    """Take one sample in.

    Returns
    -------
    next_predicted, filtered : (n_states, ...) arrays
    innovation, scaled : (n_channels, ...) arrays
        e and S^-1 e.
    """
    innovation = sample - model.lead_field @ predicted
    scaled = _solve(gain, innovation)
    filtered = predicted + gain.predicted_cov @ scaled
    return multiply(model.dynamics.transition, filtered), filtered, innovation, scaled


def run_filter(gains, data, *, keep_mean):
    """Filter whitened data.

    Parameters
    ----------
    gains : GainSequence
    data : (n_times, n_channels) array
    keep_mean : bool
        Whether filtered means are returned.

    Returns
    -------
    Filtered
    """
    model = gains.model
    predicted = jnp.zeros_like(model.dynamics.process_var)
    means, innovations, log_likelihood = [], [], 0.0
    for gain, start, length in gains.blocks():
        samples = data[start : start + length]
        predicted, mean, innovation, value = _filter_block(
            model, gain, predicted, samples, keep_mean
        )
        innovations.append(innovation)
        log_likelihood += float(value)
        if keep_mean:
            means.append(np.asarray(mean))
    mean = np.concatenate(means) if keep_mean else None
    return Filtered(mean, jnp.concatenate(innovations), log_likelihood)


def backward(gains, innovation):
    """Run the disturbance recursion from the last sample to the first.

    Parameters
    ----------
    gains : GainSequence
    innovation : (n_times, n_channels, ...) array

    Returns
    -------
    first : (n_states, ...) array
        r_0.
    disturbance : (n_times, n_states, ...) array
        r_1 to r_T; w_t is smoothed to Q r_t.
    noise : (n_times, n_channels, ...) array
        Smoothed noise in units of noise_var.
    """
    model = gains.model
    r = jnp.zeros((model.dynamics.process_var.shape[0], *innovation.shape[2:]), innovation.dtype)
    disturbances, noises = [], []
    for gain, start, length in gains.reversed_blocks():
        r, block, noise = _backward_block(model, gain, r, innovation[start : start + length])
        disturbances.append(block)
        noises.append(noise)
    return r, jnp.concatenate(disturbances[::-1]), jnp.concatenate(noises[::-1])


def smooth(gains, innovation, memory_limit):
    """Smoothed means (n_times, n_states) from the innovations (n_times, n_channels)."""
    first, disturbance, _ = backward(gains, innovation)
    system = gains.model.dynamics
    start = apply_stationary_cov(system, first[:, None], gains.n_terms, memory_limit)[:, 0]
    return forward(system, start, disturbance)


def _solve(gain, x):
    return jax.scipy.linalg.cho_solve((gain.innovation_chol, True), x)


@functools.partial(jax.jit, static_argnums=4)
def _filter_block(model, gain, predicted, samples, keep_mean):
    def body(predicted, sample):
        predicted, filtered, innovation, scaled = filter_step(model, gain, predicted, sample)
        return predicted, (filtered if keep_mean else None, innovation, innovation @ scaled)

    predicted, (mean, innovation, square) = jax.lax.scan(body, predicted, samples)
    return predicted, mean, innovation, log_density(gain, jnp.sum(square), len(samples))


def log_density(gain: Gain, square, n_times):
    """Log density of `n_times` samples whose e' S^-1 e sum to `square`."""
    chol = gain.innovation_chol
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol)))
    return -0.5 * (square + n_times * (log_det + len(chol) * np.log(2 * np.pi)))


def turn(model: Model, gain: Gain, length):
    """Transposes of L and G, copied where a block is long enough to be worth it."""
    pair = gain.predicted_cov.T, model.lead_field.T
    return jax.lax.optimization_barrier(pair) if length >= _LONG else pair


def backward_step(model: Model, gain: Gain, turned, r, innovation):
    """One step back: r_t and e_t give r_{t-1} and the smoothed noise of sample t.

    `turned` comes from `turn`.
    """
    cov_t, lead_field_t = turned
    u = multiply(model.dynamics.transposed, r)
    noise = _solve(gain, innovation - cov_t @ u)
    return lead_field_t @ noise + u, noise


@jax.jit
def _backward_block(model, gain, r, innovation):
    turned = turn(model, gain, innovation.shape[0])

    def body(r, innovation):
        new, noise = backward_step(model, gain, turned, r, innovation)
        return new, (r, noise)

    r, (disturbance, noise) = jax.lax.scan(body, r, innovation, reverse=True)
    return r, disturbance, noise


@functools.partial(jax.jit, donate_argnums=2)
def forward(system, start, disturbance):
    """Smoothed means (n_times, n_states) from x_1|T and the disturbances."""

    def body(mean, r):
        return multiply(system.transition, mean) + apply_process_cov(system, r), mean

    return jax.lax.scan(body, start, disturbance)[1]
