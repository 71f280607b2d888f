"""Likelihood of a trajectory, and its moments: births and deaths given, moments integrated out.

One pass of the Kalman filter of `moment_filter` along the samples gives the log likelihood; a
backward pass gives what the later samples say; both together, the smoothed moments.
Cost O(n_times (n_slots d)^3), whatever the number of channels.
"""

import jax
import jax.numpy as jnp

from ..core.types import Array, Bool, Float, Int
from . import moment_filter
from .dynamic_dipoles import TrackPrior
from .track_gram import TrackGram

__all__ = ["log_likelihood", "scales_of", "smoothed_moments"]


def scales_of(parameters: Float[Array, "*batch n_parameters"]):
    """Moment scale and noise precisions (n_groups,) of a parameter vector."""
    return jnp.exp(parameters[..., 0]), jnp.exp(-2 * parameters[..., 1:-2])


def log_likelihood(
    gram: TrackGram,
    prior: TrackPrior,
    parameters: Float[Array, " n_parameters"],
    places: Int[Array, "n_times n_slots"],
    is_new: Bool[Array, "n_times n_slots"],
) -> Float[Array, ""]:
    """Log density of the whitened data given a trajectory."""
    _, _, increments = _filter(gram, prior, parameters, places, is_new)
    return jnp.sum(increments)


def smoothed_moments(
    gram: TrackGram,
    prior: TrackPrior,
    parameters: Float[Array, " n_parameters"],
    places: Int[Array, "n_times n_slots"],
    is_new: Bool[Array, "n_times n_slots"],
):
    """Law of the moments at each sample given all samples and a trajectory.

    Returns
    -------
    mean : (n_times, n_slots, d)
        In whitened units, zero where a slot is empty.
    cov : (n_times, n_slots, d, n_slots, d)
        Meaningless in the rows of empty slots.
    """
    mean, cov, _ = _filter(gram, prior, parameters, places, is_new)
    moment_std, weights = scales_of(parameters)

    def step(carry, now):
        precision, shift = carry
        told = (precision, shift)  # by the samples after this one
        projected, held, new = now
        later = precision + gram.matrix(held, weights)
        shift = shift + gram.projection(projected, held, weights)
        carry = moment_filter.look_back(later, shift, held >= 0, new, prior.persistence, moment_std)
        return carry, told

    nothing = (jnp.zeros_like(cov[0]), jnp.zeros_like(mean[0]))
    _, (precision, shift) = jax.lax.scan(
        step, nothing, (gram.projected_data, places, is_new), reverse=True
    )
    mean, cov, _ = jax.vmap(moment_filter.update)(mean, cov, precision, shift)
    n_times, n_slots = places.shape
    return mean.reshape(n_times, n_slots, -1), cov.reshape(
        n_times, n_slots, gram.n_orient, n_slots, gram.n_orient
    )


def _filter(gram, prior, parameters, places, is_new):
    """Filtered means and covariances, and the log density of each sample given those before."""
    moment_std, weights = scales_of(parameters)

    def step(carry, now):
        projected, power, held, new = now
        mean, cov = moment_filter.predict(*carry, held >= 0, new, prior.persistence, moment_std)
        mean, cov, log_factor = moment_filter.update(
            mean,
            cov,
            gram.matrix(held, weights),
            gram.projection(projected, held, weights),
        )
        return (mean, cov), (mean, cov, log_factor + gram.log_noise(power, weights))

    start = moment_filter.empty(places.shape[1], gram.n_orient, gram.field.dtype)
    now = (gram.projected_data, gram.data_power, places, is_new)
    _, told = jax.lax.scan(step, start, now)
    return told
