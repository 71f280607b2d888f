"""Smoother of whole trajectories: backward sampling from the clouds of the particle filter.

The filter leaves, at each sample t, weighted particles: who is alive, and the Gaussian law of the
moments given y_1..t. A trajectory is drawn from the last sample to the first. Given all that was
drawn for t+1..T, particle i of sample t is its past with probability in proportion to

    w_i  f(dipoles at t+1 | dipoles of i)  int N(q; m_i, P_i) p(y_{t+1..T} | q, dipoles) dq

f is zero unless the survivors of t+1 are among the dipoles of i, which may be any particle that
holds them, born at any sample: so births, deaths and the alternatives at each time are drawn
afresh, where ancestral lines have long become one. The integral is that of a Gaussian against
exp(b'q - q'Aq/2), which a backward information filter carries along the trajectory.

The sum over all particles is avoided: from the particle's true ancestor, which always fits, a few
Metropolis steps are taken with proposals from the weights times f, accepted by the ratio of the
integrals. Any number of them leaves the law of the trajectories invariant.

The filter that feeds it makes no moves of places: a place that was chosen after the fact would be
missing from the clouds before. Where the data tell so much that this filter is left with few
particles, there is nothing to sample from; the run stops, and `track_inference` takes another way.
Slots are matched by place (walking dipoles: by slot).

Cost O(n_draws n_times (n_particles n_slots^2 + n_tries (n_slots d)^3)).

References: Godsill, Doucet, West 2004, doi:10.1198/016214504000000151 (backward sampling); Bunch,
Godsill 2013, doi:10.1109/TSP.2012.2226451 (Metropolis-Hastings within it); Lindsten, Bunch,
Särkkä, Schön, Godsill 2016, doi:10.1109/JSTSP.2015.2506543 (with moments integrated out).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from ..core.types import Array, Bool, Float, Int
from ..models import moment_filter
from ..models.dynamic_dipoles import log_transition
from ..models.track_likelihood import scales_of
from . import particle_filter
from .resampling import systematic

__all__ = ["Cloud", "State", "init", "run", "step"]


class Cloud(NamedTuple):
    """Weighted particles of the filter after a sample, before resampling."""

    places: Int[Array, "n_particles n_slots"]
    is_new: Bool[Array, "n_particles n_slots"]
    mean: Float[Array, "n_particles n"]
    cov: Float[Array, "n_particles n n"]
    log_weights: Float[Array, " n_particles"]


class State(NamedTuple):
    """Trajectories drawn back to a sample; a leading axis of draws."""

    index: Int[Array, ""]  # of the particle
    places: Int[Array, " n_slots"]
    is_new: Bool[Array, " n_slots"]
    precision: Float[Array, "n n"]  # what the later samples say of the moments
    shift: Float[Array, " n"]


def init(key, cloud, n_draws):
    """Draw particles of the last sample."""
    index = systematic(key, cloud.log_weights, n_draws)
    n = cloud.mean.shape[1]
    return State(
        index=index,
        places=cloud.places[index],
        is_new=cloud.is_new[index],
        precision=jnp.zeros((n_draws, n, n), cloud.mean.dtype),
        shift=jnp.zeros((n_draws, n), cloud.mean.dtype),
    )


def step(key, state, cloud, ancestors, target, parameters, projected, n_tries):
    """Take one trajectory one sample back.

    Parameters
    ----------
    key : PRNG key
    state : State
        At sample t + 1.
    cloud : Cloud
        Of sample t.
    ancestors : (n_particles,) int
        Particle of `cloud` from which each particle of sample t + 1 came.
    target : Target
    parameters : (n_parameters,)
    projected : (n_sources, n_groups, d)
        Sample t + 1.
    n_tries : int

    Returns
    -------
    State
        At sample t.
    (n_slots,) int
        Slot at t + 1 of the dipole in each slot at t; -1 where it dies.
    is_renewed : bool
        Whether the past is another than the particle's own.
    """
    prior, gram = target.prior, target.gram
    n_slots = state.places.shape[0]
    moment_std, weights = scales_of(parameters)
    precision, shift = moment_filter.look_back(
        state.precision + gram.matrix(state.places, weights),
        state.shift + gram.projection(projected, state.places, weights),
        state.places >= 0,
        state.is_new,
        prior.persistence,
        moment_std,
    )
    log_change = jax.vmap(_log_change, in_axes=(None, None, None, 0))(
        prior, parameters, state, cloud.places
    )
    key_try, key_accept = jax.random.split(key)
    log_share = cloud.log_weights + log_change
    cumulative = jnp.cumsum(jnp.exp(log_share - jnp.max(log_share)))
    uniform = jax.random.uniform(key_try, (n_tries,), cumulative.dtype) * cumulative[-1]
    tries = jnp.searchsorted(cumulative, uniform, side="right")
    tries = jnp.minimum(tries, log_share.shape[0] - 1)
    candidates = jnp.concatenate([ancestors[state.index][None], tries]).astype(jnp.int32)
    later = jax.vmap(_later_slots, in_axes=(None, None, 0))(prior, state, cloud.places[candidates])

    def fit(candidate, slots):
        own = _reorder(precision, shift, slots, n_slots)
        return moment_filter.update(cloud.mean[candidate], cloud.cov[candidate], *own)[2]

    log_fit = jax.vmap(fit)(candidates, later)
    log_uniform = jnp.log(jax.random.uniform(key_accept, (n_tries,), log_fit.dtype))
    chosen = jnp.zeros((), jnp.int32)
    for i in range(n_tries):
        is_better = log_uniform[i] < log_fit[i + 1] - log_fit[chosen]
        chosen = jnp.where(is_better, i + 1, chosen)
    index = candidates[chosen]
    precision, shift = _reorder(precision, shift, later[chosen], n_slots)
    new = State(index, cloud.places[index], cloud.is_new[index], precision, shift)
    return new, later[chosen], index != candidates[0]


_init = jax.jit(init, static_argnums=2)


@jax.jit(static_argnames="n_tries")
def _step(key, states, cloud, ancestors, target, parameters, projected, n_tries):
    keys = jax.random.split(key, states.index.shape[0])
    return jax.vmap(step, in_axes=(0, 0, *(None,) * 6))(
        keys, states, cloud, ancestors, target, parameters, projected, n_tries
    )


def run(
    key,
    target,
    parameters,
    n_particles,
    n_draws,
    options,
    *,
    n_tries=4,
    least_ess=0.0,
    progress=False,
    description="particle smoother",
):
    """Filter with known parameters, then draw trajectories.

    Parameters
    ----------
    key : PRNG key
    target : Target
    parameters : (n_parameters,) array
        Held fixed.
    n_particles, n_draws : int
    options : particle_filter.Options
        Used without moves and stages.
    n_tries : int
        Metropolis steps a sample and trajectory.
    least_ess : float
        Effective particles below which the filter is given up.
    progress : bool
    description : str

    Returns
    -------
    tuple or None
        None where the filter was given up; otherwise

        places, is_new : (n_draws, n_times, n_slots)
        state : weighted_particles.State
        info : weighted_particles.Info
        renewal : (n_times - 1,)
            Share of trajectories whose past was drawn afresh at each sample.
    """
    gram, n_slots = target.gram, target.prior.max_dipoles
    key_filter, key_init, key_steps = jax.random.split(key, 3)
    clouds = []

    def keep(time, particles, log_weights, info):
        if info.ess < least_ess:
            return True
        # Slots that nobody holds need no memory.
        held = np.flatnonzero(np.any(np.asarray(particles.places) >= 0, axis=0))
        used = int(held.max(initial=0)) + 1
        n = used * gram.n_orient
        clouds.append(
            (
                np.asarray(particles.places[:, :used]),
                np.asarray(particles.is_new[:, :used]),
                np.asarray(particles.mean[:, :n]),
                np.asarray(particles.cov[:, :n, :n]),
                np.asarray(log_weights),
            )
        )
        return False

    fixed = target.fixed(parameters)
    options = options._replace(n_moves=0, least_share=0.0)
    state, info = particle_filter.run(
        key_filter,
        fixed,
        n_particles,
        options,
        keep=keep,
        progress=progress,
        description=f"{description}, forward",
    )
    n_times = gram.n_times
    if len(clouds) < n_times:
        return None
    places = np.empty((n_draws, n_times, n_slots), np.int32)
    is_new = np.empty((n_draws, n_times, n_slots), bool)
    later = np.full((n_draws, n_times, n_slots), -1, np.int32)
    renewal = np.zeros(n_times - 1)
    draws = _init(key_init, _unpack(clouds.pop(), n_slots, gram.n_orient), n_draws)
    places[:, -1], is_new[:, -1] = draws.places, draws.is_new
    with progress_bar(progress, f"{description}, backward") as show:
        for t in range(n_times - 2, -1, -1):
            draws, slots, is_renewed = _step(
                jax.random.fold_in(key_steps, t),
                draws,
                _unpack(clouds.pop(), n_slots, gram.n_orient),
                info.ancestors[t],
                target,
                parameters,
                gram.projected_data[t + 1],
                n_tries,
            )
            places[:, t], is_new[:, t], later[:, t] = draws.places, draws.is_new, slots
            renewal[t] = np.mean(is_renewed)
            show(1 - t / n_times)
    return *_in_one_slot(places, is_new, later), state, info, renewal


def _log_change(prior, parameters, state, places):
    """Log f of the later dipoles given those of a particle, up to what all particles share."""
    if prior.neighbours is not None:
        return log_transition(prior, parameters, places, state.places, state.is_new)
    continues = (state.places >= 0) & ~state.is_new
    is_among = jnp.any(state.places[:, None] == places[None, :], axis=1)
    n_before, n_survivors = jnp.sum(places >= 0), jnp.sum(continues)
    log_prob = (n_before - n_survivors) * jax.nn.log_sigmoid(parameters[-1])
    is_birth = jnp.any(state.is_new)
    log_none = jax.nn.log_sigmoid(-parameters[-2])
    log_birth = jax.nn.log_sigmoid(parameters[-2])
    room = jnp.where(is_birth, log_birth, log_none)
    full = jnp.where(is_birth, -jnp.inf, 0.0)
    log_prob += jnp.where(n_before < places.shape[0], room, full)
    return jnp.where(jnp.all(is_among | ~continues), log_prob, -jnp.inf)


def _later_slots(prior, state, places):
    """Slot at t + 1 of the dipole in each slot at t, -1 where it dies."""
    continues = (state.places >= 0) & ~state.is_new
    if prior.neighbours is not None:
        return jnp.where(continues & (places >= 0), jnp.arange(places.shape[0]), -1)
    same = (places[:, None] == state.places[None, :]) & continues[None, :]
    return jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), -1)


def _reorder(precision, shift, slots, n_slots):
    """Information in the order of the slots at t; nothing on slots whose dipole dies."""
    d = shift.shape[0] // n_slots
    rows = (jnp.where(slots >= 0, slots, 0)[:, None] * d + jnp.arange(d)).reshape(-1)
    told = jnp.repeat(slots >= 0, d)
    precision = jnp.where(told[:, None] & told, precision[rows][:, rows], 0.0)
    return precision, jnp.where(told, shift[rows], 0.0)


def _unpack(cloud, n_slots, d):
    """Give the arrays of a cloud all slots again; empty ones as `moment_filter` wants them."""
    places, is_new, mean, cov, log_weights = cloud
    n_left = n_slots - places.shape[1]
    more = ((0, 0), (0, n_left))
    n = mean.shape[1]
    whole = np.broadcast_to(np.eye(n_slots * d, dtype=cov.dtype), (len(cov), *(n_slots * d,) * 2))
    whole = whole.copy()
    whole[:, :n, :n] = cov
    return Cloud(
        np.pad(places, more, constant_values=-1),
        np.pad(is_new, more),
        np.pad(mean, ((0, 0), (0, n_left * d))),
        whole,
        log_weights,
    )


def _in_one_slot(places, is_new, later):
    """Let each dipole stay in one slot for its life: a newborn takes the first free one."""
    n_draws, n_times, n_slots = places.shape
    rows = np.arange(n_draws)
    own = np.full((n_draws, n_slots), -1)  # slot that the dipole of each raw slot was given
    told_places, told_new = np.full_like(places, -1), np.zeros_like(is_new)
    for t in range(n_times):
        if t:
            moved = np.full_like(own, -1)
            for slot in range(n_slots):
                goes = later[:, t - 1, slot]
                lives = (goes >= 0) & (own[:, slot] >= 0)
                moved[rows[lives], goes[lives]] = own[lives, slot]
            own = moved
        for slot in range(n_slots):
            born = is_new[:, t, slot]
            is_taken = np.any(own[:, :, None] == np.arange(n_slots), axis=1)
            own[born, slot] = np.argmin(is_taken[born], axis=1)
        for slot in range(n_slots):
            held = places[:, t, slot] >= 0
            told_places[rows[held], t, own[held, slot]] = places[held, t, slot]
            told_new[rows[held], t, own[held, slot]] = is_new[held, t, slot]
    return told_places, told_new
