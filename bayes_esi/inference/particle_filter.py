"""Particle filter for dipoles that are born and die, with their moments integrated out.

A particle is a set of dipoles, where each was born, and the Gaussian law of its moments given the
past; from sample to sample (see `models.dynamic_dipoles` for the law):

1. propose: deaths and steps from the prior, a birth from what the sample says (`birth_proposal`);
2. weigh: w <- w p(y_t | dipoles, past) p(change) / q(change), moments by a Kalman filter;
3. when the effective sample size falls below a share of n_particles, resample, and let some dipoles
   of some particles move to other places, accepted by the exact likelihood of their whole life:
   the filter is run again from the sample before the birth, so that a place chosen on the first
   weak samples can be put right by the later ones. Unknown parameters are moved likewise, through
   all samples (`parameter_moves`), as long as those are no more than `longest_life`: afterwards
   resampling goes on to narrow them.

A sample that would leave few particles (302 channels may tell more than 100 nats of a strong
onset) is taken in stages: its likelihood to powers b that rise to 1, each such that a tenth of the
particles stay, with resampling and moves in between.

The product of the sums of weights is an unbiased estimate of the evidence without moves. Moves and
stages that the particles call for by their effective number bias it by O(1 / n_particles): on a
small problem -7 % with 30 particles, below 1 % with 120.
A dipole that has lived longer than `longest_life` samples is no longer moved. Walking dipoles
do not need step 3's moves, their places renew themselves.

Cost O(n_particles (n_slots d)^3 + n_surveyed n_sources d^2 n_slots d) a sample, whatever the number
of channels; a move takes the samples of the longest life again, or twice. Time and memory are
bounded.

References: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (static
places, resample-move); Gilks, Berzuini 2001, doi:10.1111/1467-9868.00280 (resample-move); Campi,
Pascarella, Sorrentino, Piana 2008, doi:10.1088/0266-5611/24/2/025021 (moments integrated out).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Bool, Float, Int
from ..models import moment_filter
from ..models.dynamic_dipoles import log_transition
from ..models.track_likelihood import scales_of
from . import parameter_moves, weighted_particles
from .birth_proposal import survey
from .life_moves import move
from .resampling import systematic
from .weighted_particles import Info, State, first_weights, intensity, number_law

__all__ = ["Options", "Particles", "advance", "init", "run", "step"]


class Particles(NamedTuple):
    """Hypotheses about the dipoles alive; a leading axis of particles where stacked."""

    places: Int[Array, " n_slots"]  # -1: empty
    is_new: Bool[Array, " n_slots"]
    birth: Int[Array, " n_slots"]  # sample
    mean: Float[Array, " n"]
    cov: Float[Array, "n n"]
    parameters: Float[Array, " n_parameters"]
    life: Float[Array, " n_slots"]  # log density of all that happened since the birth
    past_places: Int[Array, "n_past n_slots"]  # sample t in row t modulo n_past
    past_new: Bool[Array, "n_past n_slots"]
    start_mean: Float[Array, "n_slots n"]  # moments at the sample before each birth
    start_cov: Float[Array, "n_slots n n"]


class Options(NamedTuple):
    """Fixed choices, compiled in."""

    ess_threshold: float = 0.5
    n_surveyed: int = 8
    n_moves: int = 1  # dipoles moved of each chosen particle after resampling
    n_moved: int = 250  # particles chosen
    longest_life: int = 100  # samples, of dipoles that are still moved
    least_share: float = 0.1  # of effective particles that a stage leaves; 0: one stage
    n_parameter_moves: int = 0  # of each chosen particle, while it remembers all samples


def init(key, target, n_particles, n_past):
    """Start before any sample: no dipole, parameters from the reference law.

    Returns
    -------
    State
        Weighted by prior over reference.
    """
    prior, gram = target.prior, target.gram
    dtype, n_slots = gram.field.dtype, prior.max_dipoles
    parameters, log_weights, log_evidence = first_weights(key, target, n_particles)
    mean, cov = moment_filter.empty(n_slots, gram.n_orient, dtype)

    def repeat(leaf):
        return jnp.broadcast_to(leaf, (n_particles, *leaf.shape))

    nobody = jnp.full((n_slots,), -1, jnp.int32)
    particles = Particles(
        places=repeat(nobody),
        is_new=repeat(nobody >= 0),
        birth=repeat(jnp.zeros_like(nobody)),
        mean=repeat(mean),
        cov=repeat(cov),
        parameters=parameters,
        life=repeat(jnp.zeros((n_slots,), dtype)),
        past_places=repeat(jnp.full((n_past, n_slots), -1, jnp.int32)),
        past_new=repeat(jnp.zeros((n_past, n_slots), bool)),
        start_mean=repeat(jnp.zeros((n_slots, *mean.shape), dtype)),
        start_cov=repeat(jnp.zeros((n_slots, *cov.shape), dtype)),
    )
    return State(particles, log_weights, jnp.zeros((), jnp.int32), log_evidence)


def advance(key, particle, target, proposal, time):
    """Take one particle to the next sample, before its data.

    Returns
    -------
    Particles, log_weight
        Log of prior over proposal.
    """
    prior = target.prior
    n_slots = particle.places.shape[0]
    parameters = particle.parameters
    moment_std, _ = scales_of(parameters)
    log_death, log_life = jax.nn.log_sigmoid(parameters[-1]), jax.nn.log_sigmoid(-parameters[-1])

    key_events, key_walk = jax.random.split(key)
    uniform = jax.random.uniform(key_events, (n_slots + 2,), particle.mean.dtype)
    was_alive = particle.places >= 0
    survives = was_alive & (uniform[:n_slots] >= jnp.exp(log_death))
    walked = prior.walk(key_walk, jnp.where(was_alive, particle.places, 0))
    places = jnp.where(survives, walked, -1)
    log_proposed = jnp.where(
        survives,
        log_life + prior.log_walk(jnp.where(was_alive, particle.places, 0), walked),
        jnp.where(was_alive, log_death, 0.0),
    ).sum()

    has_room = ~jnp.all(was_alive)
    is_born = has_room & (uniform[-2] < proposal.birth_prob)
    place = jnp.searchsorted(proposal.cumulative, uniform[-1], side="right")
    place = jnp.minimum(place, prior.n_sources - 1).astype(jnp.int32)
    is_new = is_born & (jnp.arange(n_slots) == jnp.argmin(survives))
    places = jnp.where(is_new, place, places)
    log_birth = jnp.log(proposal.birth_prob) + proposal.log_place[place]
    log_none = jnp.log1p(-proposal.birth_prob)
    log_proposed += jnp.where(has_room, jnp.where(is_born, log_birth, log_none), 0.0)

    log_prior = log_transition(prior, parameters, particle.places, places, is_new)
    mean, cov = moment_filter.predict(
        particle.mean, particle.cov, places >= 0, is_new, prior.persistence, moment_std
    )
    row = time % particle.past_places.shape[0]
    new = is_new[:, None]
    particle = particle._replace(
        places=places,
        is_new=is_new,
        birth=jnp.where(is_new, time, particle.birth),
        mean=mean,
        cov=cov,
        life=jnp.where(is_new, 0.0, particle.life) + log_prior,
        past_places=particle.past_places.at[row].set(places),
        past_new=particle.past_new.at[row].set(is_new),
        start_mean=jnp.where(new, particle.mean, particle.start_mean),
        start_cov=jnp.where(new[:, :, None], particle.cov, particle.start_cov),
    )
    return particle, log_prior - log_proposed


def weigh(particle, gram, projected, power, share):
    """Condition one particle on the likelihood of a sample to the power `share`.

    Returns
    -------
    Particles, log_weight
    """
    _, weights = scales_of(particle.parameters)
    mean, cov, log_factor = moment_filter.update(
        particle.mean,
        particle.cov,
        share * gram.matrix(particle.places, weights),
        share * gram.projection(projected, particle.places, weights),
    )
    particle = particle._replace(mean=mean, cov=cov, life=particle.life + log_factor)
    return particle, log_factor + share * gram.log_noise(power, weights)


def step(key, state, target, projected, power, options):
    """Take all particles over one sample.

    Parameters
    ----------
    key : PRNG key
    state : State
    target : Target
    projected : (n_rows, n_sources, n_groups, d)
        Samples; sample t in row t modulo n_rows, the last `n_past` of them at least.
    power : (n_groups,)
        Of this sample.
    options : Options

    Returns
    -------
    State
        Resampled and moved, if need be.
    Info
    Particles, log_weights
        Before that.
    """
    prior, gram, time = target.prior, target.gram, state.time
    n_particles = state.log_weights.shape[0]
    # One new place for a whole life is not what a walk would propose.
    n_moves = options.n_moves if prior.neighbours is None else 0
    now = projected[time % projected.shape[0]]
    key_survey, key_advance, key_stages, key_last = jax.random.split(key, 4)
    old = state.particles
    seen = systematic(key_survey, state.log_weights, options.n_surveyed)
    proposal = survey(
        *(part[seen] for part in (old.places, old.mean, old.cov, old.parameters)),
        prior,
        gram,
        now,
    )
    keys = jax.random.split(key_advance, n_particles)
    particles, log_ratio = jax.vmap(advance, in_axes=(0, 0, None, None, None))(
        keys, old, target, proposal, time
    )

    def renew(key, particles, log_weights, ancestors, reached):
        """Resample and move, at the power `reached` of this sample's likelihood."""
        key_resample, key_move = jax.random.split(key)
        chosen = systematic(key_resample, log_weights)
        particles = jax.tree.map(lambda leaf: leaf[chosen], particles)

        def once(i, carry):
            key = jax.random.fold_in(key_move, i)
            return _move_some(key, carry[0], target, proposal, projected, time, reached, options)

        acceptance = jnp.full((), jnp.nan, log_weights.dtype)
        if n_moves:
            particles, acceptance = jax.lax.fori_loop(0, n_moves, once, (particles, acceptance))
        if options.n_parameter_moves and any(prior.is_unknown):
            key_parameters = jax.random.fold_in(key_move, n_moves)
            last = min(particles.past_places.shape[1], options.longest_life)
            particles = jax.lax.cond(
                time < last,
                lambda: _move_parameters(
                    key_parameters, particles, target, projected, time, reached, options
                ),
                lambda: particles,
            )
        even = jnp.full_like(log_weights, -jnp.log(n_particles))
        return particles, even, ancestors[chosen], acceptance

    def stage(carry):
        """Raise the power as far as it leaves enough particles."""
        particles, log_weights, ancestors, reached, increment, n_stages, _ = carry
        key_stage = jax.random.fold_in(key_stages, n_stages)
        particles, log_weights, ancestors, acceptance = jax.lax.cond(
            n_stages > 0,
            renew,
            lambda key, *kept: (*kept[:3], jnp.full((), jnp.nan, log_weights.dtype)),
            key_stage,
            particles,
            log_weights,
            ancestors,
            reached,
        )

        def attempt(share):
            heavier, log_factor = jax.vmap(weigh, in_axes=(0, None, None, None, None))(
                particles, gram, now, power, share
            )
            total = log_weights + log_factor
            return heavier, total - jax.nn.logsumexp(total), jax.nn.logsumexp(total)

        def is_poor(tried):
            share, (_, tried_weights, _) = tried
            # Never below a thousandth: what is left then is told by the effective number.
            return (_ess(tried_weights) < options.least_share * n_particles) & (share > 1e-3)

        def halve(tried):
            return tried[0] / 2, attempt(tried[0] / 2)

        share = 1 - reached
        share, (particles, log_weights, total) = jax.lax.while_loop(
            is_poor, halve, (share, attempt(share))
        )
        reached = jnp.where(reached + share > 1 - 1e-6, 1.0, reached + share)
        return (
            particles,
            log_weights,
            ancestors,
            reached,
            increment + total,
            n_stages + 1,
            acceptance,
        )

    log_weights = state.log_weights + log_ratio
    increment = jax.nn.logsumexp(log_weights)
    zero = jnp.zeros((), log_weights.dtype)
    start = (
        particles,
        log_weights - increment,
        jnp.arange(n_particles, dtype=jnp.int32),
        zero,
        increment,
        jnp.zeros((), jnp.int32),
        zero + jnp.nan,
    )
    particles, log_weights, parents, _, increment, n_stages, acceptance = jax.lax.while_loop(
        lambda carry: carry[3] < 1, stage, start
    )
    chosen, even, ancestors, moved = jax.lax.cond(
        _ess(log_weights) < options.ess_threshold * n_particles,
        renew,
        lambda key, *kept: (*kept[:3], zero + jnp.nan),
        key_last,
        particles,
        log_weights,
        parents,
        zero + 1,
    )
    heirs = jnp.zeros(n_particles, log_weights.dtype).at[parents].add(jnp.exp(log_weights))
    info = Info(
        log_evidence_increment=increment,
        ess=1 / jnp.sum(heirs**2),
        n_stages=n_stages,
        n_dipoles_pmf=number_law(particles.places, log_weights),
        intensity=intensity(particles.places, log_weights, prior.n_sources),
        ancestors=ancestors,
        acceptance=jnp.where(jnp.isnan(moved), acceptance, moved),
    )
    state = State(chosen, even, time + 1, state.log_evidence + increment)
    return state, info, (particles, log_weights)


def run(key, target, n_particles, options, *, n_past=None, description="particle filter", **more):
    """Filter all samples of the target.

    Parameters
    ----------
    key : PRNG key
    target : Target
    n_particles : int
    options : Options
    n_past : int, optional
        Samples that a particle remembers; by default all.
    description : str
        Label of the progress bar.
    **more
        `keep`, `progress` of `weighted_particles.run`.

    Returns
    -------
    State
    Info
        Stacked over samples, NumPy.
    """
    key_init, key_steps = jax.random.split(key)
    n_past = target.gram.n_times + 1 if n_past is None else n_past
    state = init(key_init, target, n_particles, n_past)
    return weighted_particles.run(
        key_steps, _step, state, target, options, description=description, **more
    )


_step = jax.jit(step, static_argnames="options")


def _some(key, n_particles, options):
    """A random part of the particles; to move the whole is too dear."""
    stride = max(1, n_particles // options.n_moved)
    return jax.random.randint(key, (), 0, stride) + jnp.arange(n_particles // stride) * stride


def _move_parameters(key, particles, target, projected, time, reached, options):
    """Move the parameters of a random part of the particles."""

    def once(i, particles):
        key_some, key_move = jax.random.split(jax.random.fold_in(key, i))
        chosen = _some(key_some, particles.places.shape[0], options)
        spread = jnp.std(particles.parameters, axis=0)
        part, _ = jax.vmap(parameter_moves.move, in_axes=(0, 0, *(None,) * 5))(
            jax.random.split(key_move, chosen.shape[0]),
            jax.tree.map(lambda leaf: leaf[chosen], particles),
            target,
            spread,
            projected,
            time,
            reached,
        )
        return jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new), particles, part)

    return jax.lax.fori_loop(0, options.n_parameter_moves, once, particles)


def _move_some(key, particles, target, proposal, projected, time, reached, options):
    """Move dipoles of a random part of the particles."""
    key_offset, key_move = jax.random.split(key)
    chosen = _some(key_offset, particles.places.shape[0], options)
    part = jax.tree.map(lambda leaf: leaf[chosen], particles)
    keys = jax.random.split(key_move, chosen.shape[0])
    part, is_accepted = jax.vmap(move, in_axes=(0, 0, *(None,) * 7))(
        keys,
        part,
        target,
        proposal.log_place,
        proposal.cumulative,
        projected,
        time,
        reached,
        options.longest_life,
    )
    particles = jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new), particles, part)
    n_alive = jnp.sum(jnp.any(part.places >= 0, axis=1))
    return particles, jnp.sum(is_accepted) / jnp.maximum(n_alive, 1).astype(part.mean.dtype)


def _ess(log_weights):
    return jnp.exp(-jax.nn.logsumexp(2 * log_weights))
