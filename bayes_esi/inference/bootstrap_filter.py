"""Bootstrap particle filter for dipoles that are born and die: the filter of the literature.

A particle is a set of dipoles with one value of their moments. From sample to sample (see
`models.dynamic_dipoles` for the law):

1. propose everything from the prior: deaths, steps, a birth and its place, the moments q_t;
2. weigh: w <- w p(y_t | places, q_t), the Gaussian density of the sample;
3. when the effective sample size falls below a share of n_particles, resample.

The sum of the weights before normalisation is an unbiased estimate of p(y_t | y_1..t-1), as that
of `particle_filter` is, from which it differs in what it does not do: moments are guessed, not
integrated out; a birth does not look at the data; a place is never put right. It is here to be
compared with, and needs many times the particles.

Cost O(n_particles (n_slots d)^2) a sample, whatever the number of channels, and nothing grows with
the number of sources but one look-up.

References: Sorrentino, Parkkonen, Pascarella, Campi, Piana 2009, doi:10.1002/hbm.20786 (dipoles as
random sets, bootstrap filter); Gordon, Salmond, Smith 1993, doi:10.1049/ip-f-2.1993.0015.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Bool, Float, Int
from ..models.track_likelihood import scales_of
from . import weighted_particles
from .resampling import systematic
from .weighted_particles import Info, State, first_weights, intensity, number_law

__all__ = ["Options", "Particles", "advance", "init", "run", "step"]


class Particles(NamedTuple):
    """Hypotheses about the dipoles alive; a leading axis of particles where stacked."""

    places: Int[Array, " n_slots"]  # -1: empty
    is_new: Bool[Array, " n_slots"]
    moments: Float[Array, "n_slots d"]  # zero where a slot is empty
    parameters: Float[Array, " n_parameters"]
    past_places: Int[Array, "n_past n_slots"]  # sample t in row t modulo n_past
    past_new: Bool[Array, "n_past n_slots"]


class Options(NamedTuple):
    """Fixed choices, compiled in."""

    ess_threshold: float = 0.5


def init(key, target, n_particles, n_past):
    """Start before any sample: no dipole, parameters from the reference law.

    Returns
    -------
    State
        Weighted by prior over reference.
    """
    gram, n_slots = target.gram, target.prior.max_dipoles
    dtype = gram.field.dtype
    parameters, log_weights, log_evidence = first_weights(key, target, n_particles)
    nobody = jnp.full((n_particles, n_slots), -1, jnp.int32)
    particles = Particles(
        places=nobody,
        is_new=nobody >= 0,
        moments=jnp.zeros((n_particles, n_slots, gram.n_orient), dtype),
        parameters=parameters,
        past_places=jnp.full((n_particles, n_past, n_slots), -1, jnp.int32),
        past_new=jnp.zeros((n_particles, n_past, n_slots), bool),
    )
    return State(particles, log_weights, jnp.zeros((), jnp.int32), log_evidence)


def advance(key, particle, target, cumulative, projected, power, time):
    """Take one particle over one sample.

    Parameters
    ----------
    key : PRNG key
    particle : Particles
    target : Target
    cumulative : (n_sources,)
        Distribution function of the location prior.
    projected : (n_sources, n_groups, d)
        The sample.
    power : (n_groups,)
        Of the sample.
    time : int

    Returns
    -------
    Particles, log_weight
        Log density of the sample.
    """
    prior, gram = target.prior, target.gram
    n_slots, d = particle.moments.shape
    moment_std, weights = scales_of(particle.parameters)
    birth_prob, death_prob = jax.nn.sigmoid(particle.parameters[-2:])
    key_events, key_walk, key_moment = jax.random.split(key, 3)
    uniform = jax.random.uniform(key_events, (n_slots + 2,), moment_std.dtype)

    was_alive = particle.places >= 0
    survives = was_alive & (uniform[:n_slots] >= death_prob)
    walked = prior.walk(key_walk, jnp.where(was_alive, particle.places, 0))
    places = jnp.where(survives, walked, -1)
    is_born = ~jnp.all(was_alive) & (uniform[-2] < birth_prob)
    is_new = is_born & (jnp.arange(n_slots) == jnp.argmin(survives))
    places = jnp.where(is_new, _free_place(uniform[-1], places, cumulative), places)

    keep = jnp.where(survives, prior.persistence, 0.0)[:, None]
    innovation = jax.random.normal(key_moment, (n_slots, d), moment_std.dtype)
    moments = keep * particle.moments + jnp.sqrt(1 - keep**2) * moment_std * innovation
    moments = jnp.where(places[:, None] >= 0, moments, 0.0)

    q = moments.ravel()
    residual = gram.projection(projected, places, weights)
    residual = residual - 0.5 * gram.matrix(places, weights) @ q
    row = time % particle.past_places.shape[0]
    particle = particle._replace(
        places=places,
        is_new=is_new,
        moments=moments,
        past_places=particle.past_places.at[row].set(places),
        past_new=particle.past_new.at[row].set(is_new),
    )
    return particle, gram.log_noise(power, weights) + residual @ q


def step(key, state, target, projected, power, options):
    """Take all particles over one sample.

    Parameters
    ----------
    key : PRNG key
    state : State
    target : Target
    projected : (n_rows, n_sources, n_groups, d)
        Samples; sample t in row t modulo n_rows.
    power : (n_groups,)
        Of the sample.
    options : Options

    Returns
    -------
    State
        Resampled, if need be.
    Info
        With no move to accept: `acceptance` is NaN.
    Particles, log_weights
        Before that.
    """
    prior = target.prior
    n_particles = state.log_weights.shape[0]
    key_advance, key_resample = jax.random.split(key)
    keys = jax.random.split(key_advance, n_particles)
    cumulative = jnp.cumsum(jnp.exp(prior.log_place))
    now = projected[state.time % projected.shape[0]]
    particles, log_density = jax.vmap(advance, in_axes=(0, 0, None, None, None, None, None))(
        keys, state.particles, target, cumulative / cumulative[-1], now, power, state.time
    )
    log_weights = state.log_weights + log_density
    increment = jax.nn.logsumexp(log_weights)
    log_weights = log_weights - increment
    ess = jnp.exp(-jax.nn.logsumexp(2 * log_weights))

    everyone = jnp.arange(n_particles, dtype=jnp.int32)
    is_low = ess < options.ess_threshold * n_particles
    ancestors = jnp.where(is_low, systematic(key_resample, log_weights), everyone)
    chosen = jax.tree.map(lambda leaf: leaf[ancestors], particles)
    even = jnp.full_like(log_weights, -jnp.log(n_particles))
    info = Info(
        log_evidence_increment=increment,
        ess=ess,
        n_stages=jnp.ones((), jnp.int32),
        n_dipoles_pmf=number_law(particles.places, log_weights),
        intensity=intensity(particles.places, log_weights, prior.n_sources),
        ancestors=ancestors,
        acceptance=jnp.full((), jnp.nan, ess.dtype),
    )
    new_log_weights = jnp.where(is_low, even, log_weights)
    state = State(chosen, new_log_weights, state.time + 1, state.log_evidence + increment)
    return state, info, (particles, log_weights)


def run(key, target, n_particles, options, *, n_past=None, description="bootstrap filter", **more):
    """Filter all samples of the target; parameters and returns as of `particle_filter.run`."""
    key_init, key_steps = jax.random.split(key)
    n_past = target.gram.n_times + 1 if n_past is None else n_past
    state = init(key_init, target, n_particles, n_past)
    return weighted_particles.run(
        key_steps, _step, state, target, options, description=description, **more
    )


_step = jax.jit(step, static_argnames="options")


def _free_place(uniform, survivors, cumulative):
    """Draw a place that no survivor holds from the location prior, by its distribution function.

    The intervals of the places held are cut out: the uniform number is scaled to the length that
    is left, and every interval that begins before it, in ascending order, pushes it on.
    """
    ordered = jnp.sort(survivors)
    is_again = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
    is_cut = (ordered >= 0) & ~is_again  # walks may meet: a place is cut out once
    safe = jnp.where(ordered >= 0, ordered, 0)
    start = jnp.where(safe > 0, cumulative[safe - 1], 0.0)
    length = jnp.where(is_cut, cumulative[safe] - start, 0.0)
    point = uniform * (1 - jnp.sum(length))
    for i in range(survivors.shape[0]):
        point = jnp.where(is_cut[i] & (point >= start[i]), point + length[i], point)
    place = jnp.searchsorted(cumulative, point, side="right")
    return jnp.minimum(place, cumulative.shape[0] - 1).astype(jnp.int32)
