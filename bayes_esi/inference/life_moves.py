"""Metropolis moves of one dipole of a particle, by the exact likelihood of its whole life.

The place of a dipole is a parameter of all its samples. It is proposed anew, at a neighbour or
anywhere by the law of births, and the filter of all moments is run again from the sample
before the birth: with the other dipoles as they were born and died since, the ratio of the new to
the old density of everything since then accepts or refuses. Cost: the life of the dipole in
steps of the moment filter.
"""

import jax
import jax.numpy as jnp

from ..models import moment_filter
from ..models.dynamic_dipoles import log_transition
from ..models.track_likelihood import scales_of

__all__ = ["move"]


def move(key, particle, target, log_anywhere, cumulative, projected, time, power, longest_life):
    """Move one dipole of one particle, or stay.

    Parameters
    ----------
    key : PRNG key
    particle : Particles
        After sample `time`.
    target : Target
    log_anywhere, cumulative : (n_sources,)
        Law of the proposals that ignore the present place.
    projected : (n_rows, n_sources, n_groups, d)
        Samples; sample t in row t modulo n_rows.
    time : int
    power : scalar in [0, 1]
        To which the likelihood of the last sample is taken.
    longest_life : int
        In samples; who has lived longer stays.

    Returns
    -------
    Particles, is_accepted
    """
    n_past, n_slots = particle.past_places.shape
    key_slot, key_place, key_accept = jax.random.split(key, 3)
    # The row before the birth is needed, too.
    life = time - particle.birth + 1
    is_movable = (particle.places >= 0) & (life <= min(longest_life, n_past - 1))
    score = jnp.where(is_movable, jax.random.uniform(key_slot, (n_slots,)), -1.0)
    slot = jnp.argmax(score)
    place = jnp.where(is_movable[slot], particle.places[slot], 0)
    new_place, log_ratio = _propose(key_place, place, target, log_anywhere, cumulative)

    first = jnp.where(is_movable[slot], particle.birth[slot], time + 1)
    again = _live_again(particle, target, slot, new_place, first, projected, time, power)
    log_ratio += again.life[slot] - particle.life[slot]
    uniform = jax.random.uniform(key_accept, (), particle.mean.dtype)
    is_accepted = is_movable[slot] & (jnp.log(uniform) < log_ratio)
    particle = jax.tree.map(lambda new, old: jnp.where(is_accepted, new, old), again, particle)
    return particle, is_accepted


def _propose(key, place, target, log_anywhere, cumulative):
    """Propose a place, with the log ratio of the reverse to the forward proposal."""
    uniform = jax.random.uniform(key, (3,), log_anywhere.dtype)
    table = target.neighbours
    degree = jnp.sum(table >= 0, axis=1)
    rank = jnp.minimum((uniform[1] * degree[place]).astype(jnp.int32), degree[place] - 1)
    near = jnp.where(degree[place] > 0, table[place, rank], place)
    log_near = jnp.log(degree[place]) - jnp.log(degree[near])
    far = jnp.searchsorted(cumulative, uniform[2], side="right")
    far = jnp.minimum(far, table.shape[0] - 1).astype(jnp.int32)
    log_far = log_anywhere[place] - log_anywhere[far]
    is_near = (uniform[0] < 0.5) & (degree[place] > 0)
    return jnp.where(is_near, near, far), jnp.where(is_near, log_near, log_far)


def _live_again(particle, target, slot, new_place, first, projected, time, power):
    """Run the particle from sample `first` with another place in `slot`."""
    prior, gram = target.prior, target.gram
    n_past, n_slots = particle.past_places.shape
    n_rows = projected.shape[0]
    moment_std, weights = scales_of(particle.parameters)
    is_own = jnp.arange(n_slots) == slot
    old_life = particle.life[slot]

    def sample(t, now):
        row = t % n_past
        held = jnp.where(is_own, new_place, now.past_places[row])
        new = now.past_new[row]
        before = now.past_places[(t - 1) % n_past]  # already with the new place
        starts = new & ~is_own  # births of others: the moments before them are other ones now
        mean, cov = moment_filter.predict(
            now.mean, now.cov, held >= 0, new, prior.persistence, moment_std
        )
        share = jnp.where(t == time, power, 1.0)
        mean, cov, log_factor = moment_filter.update(
            mean,
            cov,
            share * gram.matrix(held, weights),
            share * gram.projection(projected[t % n_rows], held, weights),
        )
        log_prior = log_transition(prior, particle.parameters, before, held, new)
        return now._replace(
            mean=mean,
            cov=cov,
            life=jnp.where(new, 0.0, now.life) + log_factor + log_prior,
            past_places=now.past_places.at[row].set(held),
            start_mean=jnp.where(starts[:, None], now.mean, now.start_mean),
            start_cov=jnp.where(starts[:, None, None], now.cov, now.start_cov),
        )

    # The lives of those born before change by what this one's life changes: it is taken off now
    # and added again as the samples pass.
    start = particle._replace(
        places=jnp.where(is_own, new_place, particle.places),
        mean=particle.start_mean[slot],
        cov=particle.start_cov[slot],
        life=particle.life - old_life,
    )
    return jax.lax.fori_loop(first, time + 1, sample, start)
