"""What particle filters of dynamic dipoles share: weights, the loop over samples, marginal laws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from ..core.types import Array, Float, Int

__all__ = ["Info", "State", "first_weights", "intensity", "number_law", "run"]


class State(NamedTuple):
    """Weighted particles after a sample."""

    particles: Any  # stacked, as the filter has them
    log_weights: Float[Array, " n_particles"]  # normalised
    time: Int[Array, ""]  # samples seen
    log_evidence: Float[Array, ""]


class Info(NamedTuple):
    """What one sample tells: laws given all samples so far, before the last resampling."""

    log_evidence_increment: Float[Array, ""]
    ess: Float[Array, ""]  # effective number of particles of the sample before that have heirs
    n_stages: Int[Array, ""]
    n_dipoles_pmf: Float[Array, " n_numbers"]
    intensity: Float[Array, " n_sources"]
    ancestors: Int[Array, " n_particles"]  # of the new particles, among those before the sample
    acceptance: Float[Array, ""]  # of moves; NaN where none was made


def first_weights(key, target, n_particles):
    """Parameters from the reference law, weighted by prior over reference.

    Returns
    -------
    parameters : (n_particles, n_parameters)
    log_weights : (n_particles,)
        Normalised.
    log_evidence : scalar
        Log of the mean weight before that.
    """
    prior = target.prior
    parameters = target.reference.sample_parameters(key, n_particles)
    density = jax.vmap(lambda law, p: law.log_density_of_parameters(p), in_axes=(None, 0))
    log_weights = density(prior, parameters) - density(target.reference, parameters)
    total = jax.nn.logsumexp(log_weights)
    log_evidence = (total - jnp.log(n_particles)).astype(target.gram.field.dtype)
    return parameters, log_weights - total, log_evidence


def run(key, step, state, target, options, *, keep=None, progress=False, description):
    """Filter all samples of the target.

    Parameters
    ----------
    key : PRNG key
    step : callable
        Compiled; see `particle_filter.step`.
    state : State
        Before the first sample.
    target : Target
    options : tuple
        Of the filter.
    keep : callable, optional
        Called after each sample with (time, particles, log_weights, info), particles as they were
        before resampling. A true value that it returns ends the run there.
    progress : bool
    description : str
        Label of the progress bar.

    Returns
    -------
    State
    Info
        Stacked over samples, NumPy.
    """
    gram = target.gram
    told = []
    with progress_bar(progress, description) as show:
        for time in range(gram.n_times):
            state, info, weighted = step(
                jax.random.fold_in(key, time),
                state,
                target,
                gram.projected_data,
                gram.data_power[time],
                options,
            )
            told.append(jax.tree.map(np.asarray, info))
            show((time + 1) / gram.n_times, ESS=f"{float(info.ess):.0f}")
            if keep is not None and keep(time, *weighted, told[-1]):
                break
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *told)


def number_law(places, log_weights):
    """Probability of each number of dipoles among weighted particles: (n_slots + 1,)."""
    numbers = jnp.sum(places >= 0, axis=1)
    possible = jnp.arange(places.shape[1] + 1)
    return jnp.exp(log_weights) @ (numbers[:, None] == possible).astype(log_weights.dtype)


def intensity(places, log_weights, n_sources):
    """Expected number of dipoles of weighted particles at each place: (n_sources,)."""
    weights = jnp.where(places >= 0, jnp.exp(log_weights)[:, None], 0.0)
    return jnp.zeros(n_sources, log_weights.dtype).at[places].add(weights)
