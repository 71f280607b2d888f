"""Populations of dipole sets: first draws, compiled sweeps, room for births.

The samplers hold their particles in stacked arrays with a fixed number of slots. Slots are
compiled sizes, and work grows with them, so a population is kept in the smallest of a few
sizes that leaves each particle an empty slot: a birth is never refused for want of room.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..models.static_dipoles import log_set_sums
from .dipole_moves import Proposal, survey, sweep
from .dipole_target import Dipoles, log_likelihood

__all__ = ["draw_reference", "fit_slots", "move", "refresh_proposal"]

# Sizes of the slot axis; the last one in use is always max_dipoles.
_SLOT_SIZES = (5, 8, 12, 18, 27, 40)


def draw_reference(key, target, n_particles):
    """Draw particles from the reference law, exactly. Cost O(n_sources n_particles) on the host.

    Returns
    -------
    Dipoles
        Stacked (n_particles, ...), with their log likelihoods.
    """
    prior = target.reference
    key_places, *key_scales = jax.random.split(key, 1 + len(prior.scales))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_places)))
    log_place = np.asarray(prior.log_place, np.float64)
    max_dipoles = prior.max_dipoles
    sums = log_set_sums(log_place, max_dipoles)
    with np.errstate(invalid="ignore"):
        log_number = np.asarray(prior.log_number, np.float64) + sums[0]
    probability = np.exp(np.where(np.isnan(log_number), -np.inf, log_number))
    left = rng.choice(max_dipoles + 1, size=n_particles, p=probability / probability.sum())
    places = np.zeros((n_particles, max_dipoles), np.int32)
    n_found = np.zeros(n_particles, int)
    # One pass over the sources: source j belongs to a set that still needs m members with
    # probability p_j e_{m-1}(later sources) / e_m(j and later sources).
    for j in range(len(log_place)):
        needy = np.flatnonzero(left)
        if not needy.size:
            break
        m = left[needy]
        log_take = log_place[j] + sums[j + 1, m - 1] - sums[j, m]
        taken = needy[np.log(rng.random(needy.size)) < log_take]
        places[taken, n_found[taken]] = j
        n_found[taken] += 1
        left[taken] -= 1
    scales = [
        scale.sample(k, n_particles) for scale, k in zip(prior.scales, key_scales, strict=True)
    ]
    dtype = target.gram.own_blocks.dtype
    state = Dipoles(
        places=jnp.asarray(places),
        active=jnp.asarray(np.arange(max_dipoles) < n_found[:, None]),
        log_scales=jnp.stack(scales, axis=1).astype(dtype),
        log_likelihood=jnp.zeros(n_particles, dtype),
    )
    state = fit_slots(state, max_dipoles)
    return state._replace(log_likelihood=_log_likelihoods(state, target))


def fit_slots(state, max_dipoles):
    """Put active slots first and choose the slot size of the next sweep."""
    active = np.asarray(state.active)
    n_needed = min(int(active.sum(axis=1).max()) + 1, max_dipoles)
    n_slots = next((min(s, max_dipoles) for s in _SLOT_SIZES if s >= n_needed), max_dipoles)
    order = np.argsort(~active, axis=1, kind="stable")[:, :n_slots]
    places = np.take_along_axis(np.asarray(state.places), order, axis=1)
    active = np.take_along_axis(active, order, axis=1)
    room = ((0, 0), (0, n_slots - places.shape[1]))
    return state._replace(
        places=jnp.asarray(np.pad(places, room)), active=jnp.asarray(np.pad(active, room))
    )


@jax.jit(static_argnames="n_together")
def _sweep_all(key, state, target, inverse_temperature, proposal, n_walks, *, n_together):
    def one(particle):
        own_key, own_state, own_temperature = particle
        return sweep(own_key, own_state, target, own_temperature, proposal, n_walks)

    keys = jax.random.split(key, state.places.shape[0])
    particles = (keys, state, inverse_temperature)
    state, counts = jax.lax.map(one, particles, batch_size=n_together)
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), counts)


def _particles_together(n_particles):
    """How many particles to sweep in one vectorised batch.

    On CPU the intermediate results of some 250 particles stay in cache and in memory that the
    allocator keeps; a batch that does not divide the population would be compiled twice.
    """
    if jax.default_backend() != "cpu":
        return n_particles
    fitting = [n for n in range(64, 257) if n_particles % n == 0]
    return max(fitting, default=n_particles)


def move(key, state, target, inverse_temperature, proposal):
    """Sweep every particle once.

    Parameters
    ----------
    key : PRNG key
    state : Dipoles
        Stacked.
    target : Target
    inverse_temperature : (n_particles,)
    proposal : Proposal

    Returns
    -------
    Dipoles, Counts
        Counts summed over particles.
    """
    state = fit_slots(state, target.prior.max_dipoles)
    # On average over the population, every dipole walks once.
    n_walks = max(1, math.ceil(np.asarray(state.active).sum() / len(state.places)))
    return _sweep_all(
        key,
        state,
        target,
        inverse_temperature,
        proposal,
        n_walks,
        n_together=_particles_together(len(state.places)),
    )


@jax.jit(static_argnames=("n_surveyed", "n_candidates"))
def refresh_proposal(
    key, state, target, inverse_temperature, neighbours, *, n_surveyed, n_candidates
):
    """Adapt the proposal to a population: where dipoles are, how far scales spread.

    Parameters
    ----------
    key : PRNG key
    state : Dipoles
        Stacked, equally weighted.
    target : Target
    inverse_temperature : (n_particles,)
    neighbours : (n_sources, max_degree) int
    n_surveyed : int
        Particles that scan the whole grid.
    n_candidates : int
        0 for the exact conditional over the grid, which needs no survey.
    """
    scales = target.prior.scales
    is_unknown = jnp.array([not prior.is_known for prior in scales])
    dtype = state.log_scales.dtype
    reach = 2.4 / np.sqrt(max(1, sum(not prior.is_known for prior in scales)))
    steps = jnp.where(is_unknown, reach * jnp.std(state.log_scales, axis=0), 0).astype(dtype)
    if n_candidates:
        key_pick, key_scan = jax.random.split(key)
        picked = jax.random.choice(key_pick, state.places.shape[0], (n_surveyed,), replace=False)
        surveyed = jax.tree.map(lambda leaf: leaf[picked], state)
        log_place, cumulative = survey(key_scan, surveyed, target, inverse_temperature[picked])
    else:
        log_place = target.prior.log_place
        cumulative = jnp.cumsum(jnp.exp(log_place))
    return Proposal(log_place, cumulative, steps, neighbours, n_candidates)


@jax.jit
def _log_likelihoods(state, target):
    def one(particle):
        return log_likelihood(target.gram, particle.places, particle.active, particle.log_scales)

    return jax.vmap(one)(state)
