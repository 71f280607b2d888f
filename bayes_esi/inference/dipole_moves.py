"""Moves on sets of dipoles that leave the tempered posterior invariant.

Three kernels make a sweep; none of them ever rejects blindly.

`exchange`: birth, death and relocation at once. A base set is chosen: the present set, or the
present set less one dipole picked at random. Given the base, the next state is drawn from its
exact conditional over "nothing" and every place: a Gibbs step on the extended law
target(c) P(base | c), with P(base = c | c) = b(n) and P(base = c - i | c) = (1 - b(n)) / n.
On large grids the places are a sample of candidates from a proposal g that must hold the
present place; weighting by target / g keeps the step exact (iterated sampling importance
resampling).

`walk`: one dipole is redrawn within a neighbourhood: a centre z is drawn from the closed
neighbourhood of the present place u, then the new place from the target restricted to
the closed neighbourhood of z, weighted by 1 / |N[v]| = P(z | v). Adjacency is symmetric, so u
is among the candidates and the pair of draws is a Gibbs step.

`rescale`: Metropolis step on the log scales.

References: Andrieu, Lee, Vihola 2018, doi:10.3150/15-BEJ785 (iterated sampling importance
resampling); Green 1995, doi:10.1093/biomet/82.4.711 (moves between dimensions).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.struct import static, struct
from ..core.types import Array, Float, Int
from .dipole_target import assess, blend, condition, extended, log_likelihood, without

__all__ = ["MOVES", "Proposal", "survey", "sweep"]

MOVES = ("birth", "death", "relocation", "walk", "rescale")

# Share of births proposed from the prior: a place that the survey missed stays reachable.
_PRIOR_SHARE = 0.1


@struct
class Proposal:
    """Where new dipoles are looked for, and how far scales step.

    `n_candidates` 0 means the whole grid: the exact conditional.
    """

    log_place: Float[Array, " n_sources"]  # log density g of a candidate
    cumulative: Float[Array, " n_sources"]
    scale_steps: Float[Array, " n_scales"]
    neighbours: Int[Array, "n_sources max_degree"]
    n_candidates: int = static(default=0)


class Counts(NamedTuple):
    """How often each of `MOVES` was tried, and how often it changed the state."""

    tried: Float[Array, " n_moves"]
    changed: Float[Array, " n_moves"]


def sweep(key, state, target, inverse_temperature, proposal, n_walks):
    """Apply `exchange`, `n_walks` times `walk`, and `rescale` to one particle.

    Parameters
    ----------
    key : PRNG key
    state : Dipoles
    target : Target
    inverse_temperature : scalar in [0, 1]
    proposal : Proposal
    n_walks : int
        The dipoles take turns, from a random one on. The same for all particles, so that the
        loop stays one loop under vmap.

    Returns
    -------
    Dipoles, Counts
    """
    key_exchange, key_walk, key_scale = jax.random.split(key, 3)
    tempered = (target, inverse_temperature, proposal)
    state, matrices, counts = exchange(key_exchange, state, *tempered)
    start = jax.random.uniform(key_walk, (), state.log_likelihood.dtype)

    def step(turn, carry):
        moved, matrices, total = carry
        slot = _slot_in_turn(start, turn, moved.active)
        key_turn = jax.random.fold_in(key_walk, turn)
        moved, matrices, more = walk(key_turn, moved, matrices, slot, *tempered)
        return moved, matrices, jax.tree.map(jnp.add, total, more)

    state, _, counts = jax.lax.fori_loop(0, n_walks, step, (state, matrices, counts))
    if not all(prior.is_known for prior in target.prior.scales):
        state, more = rescale(key_scale, state, *tempered)
        counts = jax.tree.map(jnp.add, counts, more)
    return state, counts


def exchange(key, state, target, inverse_temperature, proposal):
    """Birth, death or relocation by a draw from the exact conditional of one dipole.

    Returns
    -------
    Dipoles, Base, Counts
        `Base` of the new state.
    """
    gram, prior = target.gram, target.prior
    dtype = state.log_likelihood.dtype
    draws = jax.random.uniform(key, (3 + proposal.n_candidates,), dtype)
    n_before = jnp.sum(state.active)
    is_adding = draws[0] < _birth_share(n_before, prior)
    slot = _pick_slot(draws[1], state.active, is_adding)
    # When adding, the slot is an empty one and the base is the state itself.
    base_active = state.active.at[slot].set(False)
    n_base = jnp.sum(base_active)
    base = condition(gram, state.places, base_active, state.log_scales)

    present = state.places[slot]
    if proposal.n_candidates:
        candidates = jnp.searchsorted(proposal.cumulative, draws[3:], side="right")
        candidates = jnp.minimum(candidates, gram.n_sources - 1)
        candidates = candidates.at[0].set(jnp.where(is_adding, candidates[0], present))
        log_proposal = proposal.log_place[candidates] + jnp.log(proposal.n_candidates)
    else:
        candidates, log_proposal = None, 0.0
    assessed = assess(gram, base, state.places, candidates)
    gain = assessed.gain
    if candidates is None:
        candidates = jnp.arange(gram.n_sources, dtype=state.places.dtype)

    log_number = blend(target.reference.log_number, prior.log_number, inverse_temperature)
    share_add = _birth_share(n_base, prior)
    share_remove = (1 - _birth_share(n_base + 1, prior)) / (n_base + 1).astype(dtype)
    log_none = log_number[n_base] + jnp.log(share_add)
    log_one = log_number[jnp.minimum(n_base + 1, prior.max_dipoles)] + jnp.log(share_remove)
    log_weights = log_one + prior.log_place[candidates] + inverse_temperature * gain - log_proposal
    log_weights = jnp.where(_is_taken(candidates, state.places, base_active), -jnp.inf, log_weights)
    chosen = _draw(draws[2], jnp.append(log_weights, log_none.astype(dtype)))
    is_none = chosen == candidates.shape[0]
    chosen = jnp.minimum(chosen, candidates.shape[0] - 1)
    place = candidates[chosen].astype(state.places.dtype)
    state = state._replace(
        places=state.places.at[slot].set(jnp.where(is_none, present, place)),
        active=base_active.at[slot].set(~is_none),
        log_likelihood=base.log_likelihood + jnp.where(is_none, 0, gain[chosen]),
    )
    matrices = jax.tree.map(
        lambda without, with_one: jnp.where(is_none, without, with_one),
        base,
        extended(base, slot, assessed, chosen),
    )
    tried = jnp.stack([is_adding, ~is_adding, ~is_adding])
    moved = jnp.stack([~is_none, is_none, ~is_none & (place != present)])
    return state, matrices, _count(tried, tried & moved, dtype, before=0)


def walk(key, state, matrices, slot, target, inverse_temperature, proposal):
    """Redraw the place of one dipole within a neighbourhood that holds it.

    `matrices` is the `Base` of the state; it is kept up to date.
    """
    gram, prior = target.gram, target.prior
    dtype = state.log_likelihood.dtype
    draws = jax.random.uniform(key, (2,), dtype)
    present, is_active = state.places[slot], state.active[slot]
    centre = _closed_neighbourhood(proposal, present)
    size = jnp.sum(centre >= 0)  # padding comes last
    centre = centre[jnp.minimum((draws[0] * size.astype(dtype)).astype(size.dtype), size - 1)]
    listed = _closed_neighbourhood(proposal, centre)
    candidates = jnp.maximum(listed, 0)
    degrees = jnp.sum(proposal.neighbours[candidates] >= 0, axis=1)

    base = without(matrices, slot, gram.n_orient)
    assessed = assess(gram, base, state.places, candidates)
    log_weights = (
        prior.log_place[candidates]
        + inverse_temperature * assessed.gain
        - jnp.log(degrees + 1).astype(dtype)
    )
    others = state.active.at[slot].set(False)
    is_out = (listed < 0) | _is_taken(candidates, state.places, others)
    chosen = _draw(draws[1], jnp.where(is_out, -jnp.inf, log_weights))
    place = candidates[chosen].astype(state.places.dtype)
    change = assessed.gain[chosen] - assessed.gain[jnp.argmax(listed == present)]
    has_moved = is_active & (place != present)
    state = state._replace(
        places=state.places.at[slot].set(jnp.where(has_moved, place, present)),
        log_likelihood=state.log_likelihood + jnp.where(has_moved, change, 0),
    )
    moved = extended(base, slot, assessed, chosen)
    matrices = jax.tree.map(lambda new, old: jnp.where(has_moved, new, old), moved, matrices)
    return state, matrices, _count(is_active[None], has_moved[None], dtype, before=3)


def rescale(key, state, target, inverse_temperature, proposal):
    """Random-walk Metropolis step on the logarithms of the unknown scales."""
    prior = target.prior
    dtype = state.log_likelihood.dtype
    key_step, key_accept = jax.random.split(key)
    step = jax.random.normal(key_step, state.log_scales.shape, dtype)
    draws = jax.random.uniform(key_accept, (2,), dtype)
    # Steps of several lengths: the population's spread may belong to several modes.
    log_scales = state.log_scales + step * proposal.scale_steps * jnp.exp(3 * draws[0] - 2)
    value = log_likelihood(target.gram, state.places, state.active, log_scales)

    def log_density(scales, likelihood):
        return blend(
            target.reference.log_density_of_scales(scales),
            prior.log_density_of_scales(scales) + likelihood,
            inverse_temperature,
        )

    log_ratio = log_density(log_scales, value) - log_density(state.log_scales, state.log_likelihood)
    is_accepted = jnp.log(draws[1]) < log_ratio
    state = state._replace(
        log_scales=jnp.where(is_accepted, log_scales, state.log_scales),
        log_likelihood=jnp.where(is_accepted, value, state.log_likelihood),
    )
    return state, _count(jnp.ones(1, bool), is_accepted[None], dtype, before=4)


def survey(key, states, target, inverse_temperature):
    """Average the exact conditional of one dipole over some particles.

    This is the marginal law of what `exchange` is after, hence its proposal on large grids.

    Parameters
    ----------
    key : PRNG key
    states : Dipoles
        Stacked, (n_surveyed, ...). Cost of a full scan of the grid each.
    target : Target
    inverse_temperature : (n_surveyed,)

    Returns
    -------
    log_place, cumulative : (n_sources,)
    """
    gram, prior = target.gram, target.prior

    def scan(args):
        draws, state, temperature = args
        is_adding = draws[0] < _birth_share(jnp.sum(state.active), prior)
        slot = _pick_slot(draws[1], state.active, is_adding)
        base_active = state.active.at[slot].set(False)
        base = condition(gram, state.places, base_active, state.log_scales)
        log_weights = prior.log_place + temperature * assess(gram, base, state.places).gain
        grid = jnp.arange(gram.n_sources, dtype=state.places.dtype)
        taken = _is_taken(grid, state.places, base_active)
        return jax.nn.softmax(jnp.where(taken, -jnp.inf, log_weights))

    draws = jax.random.uniform(key, (states.places.shape[0], 2), gram.own_blocks.dtype)
    density = jnp.mean(jax.lax.map(scan, (draws, states, inverse_temperature)), axis=0)
    density = (1 - _PRIOR_SHARE) * density + _PRIOR_SHARE * jnp.exp(prior.log_place)
    density = density / jnp.sum(density)
    return jnp.log(density), jnp.cumsum(density)


def _birth_share(n_dipoles, prior):
    """Probability that `exchange` adds rather than picks, given the number of dipoles."""
    share = jnp.where(n_dipoles == 0, 1.0, 0.5)
    return jnp.where(n_dipoles >= prior.max_dipoles, 0.0, share).astype(prior.log_place.dtype)


def _pick_slot(draw, active, is_adding):
    """A uniformly drawn active slot, or the first empty one when adding."""
    order = jnp.cumsum(active)
    rank = (draw * order[-1].astype(draw.dtype)).astype(order.dtype)
    rank = jnp.minimum(rank, order[-1] - 1)
    picked = jnp.argmax(active & (order == rank + 1))
    return jnp.where(is_adding, jnp.argmin(active), picked)


def _slot_in_turn(start, turn, active):
    """Slot of the dipole whose turn it is, counted from a random one; any slot if there is none."""
    order = jnp.cumsum(active)
    n_active = jnp.maximum(order[-1], 1)
    rank = (start * n_active.astype(start.dtype)).astype(order.dtype)
    rank = (rank + turn.astype(order.dtype)) % n_active
    return jnp.argmax(active & (order == rank + 1))


def _is_taken(candidates, places, active):
    return jnp.any((candidates[:, None] == places) & active, axis=1)


def _closed_neighbourhood(proposal, place):
    return jnp.concatenate([place[None], proposal.neighbours[place]])


def _draw(draw, log_weights):
    """Index drawn in proportion to exp(log_weights), from one uniform number."""
    cumulative = jnp.cumsum(jnp.exp(log_weights - jnp.max(log_weights)))
    index = jnp.sum(cumulative <= draw * cumulative[-1])
    return jnp.minimum(index, log_weights.shape[0] - 1)


def _count(tried, changed, dtype, *, before):
    """Place counts of consecutive moves among all of `MOVES`."""
    pad = (before, len(MOVES) - before - tried.shape[0])
    return Counts(jnp.pad(tried.astype(dtype), pad), jnp.pad(changed.astype(dtype), pad))
