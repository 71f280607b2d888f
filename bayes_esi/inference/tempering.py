"""Adaptive tempering, shared by the samplers that go from the prior to the posterior in steps.

    target at temperature b:  prior * likelihood^b,        b from 0 to 1

The next b is the largest at which the conditional effective sample size,

    CESS = (sum_i W_i v_i)^2 / sum_i W_i v_i^2,        v_i = likelihood_i^(b' - b),

is still a given share of the population. The mean of v estimates the ratio of normalising
constants; the product over steps is an unbiased estimate of the evidence where temperatures are
fixed, and a consistent one where they adapt.

Cost O(n_particles) times sixty halvings.

Reference: Zhou, Johansen, Aston 2016, doi:10.1080/10618600.2015.1060885.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Array, Float, Int
from .resampling import systematic

__all__ = ["Reweighted", "reweight", "stack_traces"]


class Reweighted(NamedTuple):
    """A population at its next temperature."""

    inverse_temperature: Float[Array, ""]
    ancestors: Int[Array, " n_particles"]  # whom each particle copies: itself, unless resampled
    log_weights: Float[Array, " n_particles"]  # normalised, after resampling
    ess: Float[Array, ""]  # before resampling
    log_evidence_increment: Float[Array, ""]


def reweight(
    key, log_weights, inverse_temperature, log_likelihood, cess_target, ess_threshold
) -> Reweighted:
    """Find the next inverse temperature, weigh, and resample if need be.

    Parameters
    ----------
    key : PRNG key
    log_weights : (n_particles,)
        Normalised.
    inverse_temperature : scalar
        Below 1.
    log_likelihood : (n_particles,)
        What the temperature multiplies.
    cess_target, ess_threshold : float
        Shares of the population. Resampled is below the latter, and at the end.
    """
    n_particles, start = log_likelihood.shape[0], inverse_temperature

    def cess(temperature):
        log_increment = (temperature - start) * log_likelihood
        first = jax.nn.logsumexp(log_weights + log_increment)
        second = jax.nn.logsumexp(log_weights + 2 * log_increment)
        return jnp.exp(2 * first - second)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        is_short = cess(middle) > cess_target
        return jnp.where(is_short, middle, low), jnp.where(is_short, high, middle)

    low, _ = jax.lax.fori_loop(0, 60, halve, (start, jnp.ones_like(start)))
    # Never stand still: floats next to each other may share one CESS.
    low = jnp.maximum(low, jnp.nextafter(start, jnp.ones_like(start)))
    temperature = jnp.where(cess(jnp.ones_like(start)) >= cess_target, 1.0, low)
    log_weights = log_weights + (temperature - start) * log_likelihood
    increment = jax.nn.logsumexp(log_weights)
    log_weights = log_weights - increment
    ess = jnp.exp(-jax.nn.logsumexp(2 * log_weights))
    is_low = (ess < ess_threshold * n_particles) | (temperature == 1)
    ancestors = jnp.where(
        is_low, systematic(key, log_weights), jnp.arange(n_particles, dtype=jnp.int32)
    )
    log_weights = jnp.where(is_low, -jnp.log(1.0 * n_particles), log_weights)
    return Reweighted(temperature, ancestors, log_weights, ess, increment)


def stack_traces(traces):
    """Stack what runs of different lengths tell, padded with NaN at the end.

    Parameters
    ----------
    traces : sequence of dict of (n_steps, ...) arrays

    Returns
    -------
    dict of (n_runs, n_steps, ...) arrays
    """
    stacked = {}
    for name in traces[0]:
        values = [np.asarray(trace[name], np.float64) for trace in traces]
        length = max((v.shape[0] for v in values if v.ndim), default=0)
        padded = [
            np.pad(v, ((0, length - len(v)), *((0, 0),) * (v.ndim - 1)), constant_values=np.nan)
            if v.ndim
            else v
            for v in values
        ]
        stacked[name] = np.stack(padded)
    return stacked
