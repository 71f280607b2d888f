"""Sequential Monte Carlo sampler over whole trajectories, tempered from the prior.

    target at temperature b:  law(tracks) prior(parameters) p(data | tracks, parameters)^b

A particle is a set of tracks over all samples with its own parameters, moments integrated out.
Particles start as draws of the prior; each step raises b (`tempering`), lets proposals learn from
the population, and takes every particle through reversible jump moves (`track_moves`) that leave
the tempered target invariant, until the population has forgotten where it was: rounds of moves go
on while the log likelihoods before and after correlate. (The slope of the log evidence along b is
their mean: what has not mixed there is an error that repeats in all runs.) The evidence is the
product of the mean incremental weights.

A filter meets the samples one by one, and where a single one holds tens of nats about a place that
was not known before, few particles outlive it. Here all samples speak at once and grow louder
together: a life that explains the whole of a response is found before any sample insists on
details, and unknown scales are settled on the way. Unlike chains, particles in a mode that matters
little are dropped for copies of those in one that matters.

At b = 1 moves go on and the population is kept several times.

Cost of a move: one likelihood, O(n_times (n_slots d)^3), for each particle; nothing grows with
the number of channels.

References: Del Moral, Doucet, Jasra 2006, doi:10.1111/j.1467-9868.2006.00553.x (SMC samplers);
Green 1995, doi:10.1093/biomet/82.4.711 (moves between dimensions).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from ..core.drive import progress_bar
from ..core.status import Status
from ..core.types import Array, Float
from . import bootstrap_filter, particle_gibbs
from .tempering import reweight
from .track_renewal import tracks_of

__all__ = ["Info", "State", "init", "run", "step"]


# Correlation of log likelihoods at which a population counts as moved.
_FORGOTTEN = 0.3
# Correlation after all rounds that says that it did not move.
_STUCK = 0.95


class State(NamedTuple):
    """A weighted population of trajectories at one inverse temperature."""

    chains: particle_gibbs.State  # the particles, and what they propose
    log_weights: Float[Array, " n_particles"]  # normalised
    inverse_temperature: Float[Array, ""]
    log_evidence: Float[Array, ""]  # so far, in whitened units


class Info(NamedTuple):
    """What one step did."""

    inverse_temperature: Float[np.ndarray, ""]
    population_ess: Float[np.ndarray, ""]
    tempering_increment: Float[np.ndarray, ""]  # of the log evidence
    acceptance: Float[np.ndarray, ""]
    correlation: Float[np.ndarray, ""]  # of log likelihoods before the moves and after
    n_rounds: Float[np.ndarray, ""]  # of moves


def init(key, target, options) -> State:
    """Draw the population from the prior, and scan the data for what moves propose.

    Parameters
    ----------
    key : PRNG key
    target : Target
        Its reference is the prior.
    options : dict
        `n_particles`, `n_tracks`.
    """
    key_draw, key_size, key_chains = jax.random.split(key, 3)
    n_particles, n_tracks = options["n_particles"], options["n_tracks"]
    places, is_new, parameters = map(np.asarray, _draw_prior(key_draw, target, n_particles))
    if n_tracks is None:
        n_tracks = particle_gibbs.most_tracks(target, key_size)
    n_tracks = max(n_tracks, int(is_new.sum(axis=(1, 2)).max()) + 1)
    start = tracks_of(places, is_new, parameters, n_tracks, target.prior.neighbours is not None)
    sizes = {"n_chains": n_particles, "n_tracks": n_tracks}
    dtype = target.gram.field.dtype
    return State(
        chains=particle_gibbs.init(key_chains, target, sizes, start),
        log_weights=jnp.full(n_particles, -np.log(n_particles), dtype),
        inverse_temperature=jnp.zeros((), dtype),
        log_evidence=jnp.zeros((), dtype),
    )


def step(key, state, target, options) -> tuple[State, Info]:
    """Raise the temperature once and move the population there."""
    key_resample, key_move = jax.random.split(key)
    told = _reweight(
        key_resample,
        state.log_weights,
        state.inverse_temperature,
        state.chains.tracks.log_likelihood,
        options["cess_target"],
        options["ess_threshold"],
    )
    tracks = jax.tree.map(lambda leaf: leaf[told.ancestors], state.chains.tracks)
    chains = state.chains._replace(tracks=tracks)
    before, correlation, n_rounds, accepted = tracks.log_likelihood, 1.0, 0, 0.0
    while n_rounds < options["max_rounds"] and correlation > _FORGOTTEN:
        key_round = jax.random.fold_in(key_move, n_rounds)
        chains, share = _move(
            key_round, chains, target, told.inverse_temperature, options["n_moves"]
        )
        correlation = _correlation(before, chains.tracks.log_likelihood)
        n_rounds, accepted = n_rounds + 1, accepted + float(share)
    state = State(
        chains,
        told.log_weights,
        told.inverse_temperature,
        state.log_evidence + told.log_evidence_increment,
    )
    info = (told.inverse_temperature, told.ess, told.log_evidence_increment)
    info = (*info, accepted / max(n_rounds, 1), correlation, n_rounds)
    return state, Info(*map(np.asarray, info))


def run(key, target, options, *, progress, description, checkpoint):
    """Temper from the prior to the posterior.

    Parameters
    ----------
    key : PRNG key
    target : Target
        Its reference is the prior.
    options : dict
        `n_particles`; `cess_target`, `ess_threshold`; `n_moves` of each particle in a round,
        at most `max_rounds` of them at each temperature; `n_kept` populations at the end, a
        round between them; `n_tracks`, the most tracks of a draw, None: as the prior suggests;
        `max_steps`.
    progress : bool
    description : str
        Label of the progress bar.
    checkpoint : Checkpoint

    Returns
    -------
    draws : Tracks
        Stacked (n_kept * n_particles, ...), equally weighted, NumPy.
    log_evidence : float
        In whitened units.
    trace : dict of (n_steps,) arrays
    status : Status
    """
    key_init, key_steps, key_final = jax.random.split(key, 3)
    state = init(key_init, target, options)
    told, n_steps, status = [], 0, Status.OK
    saved = checkpoint.load((state, Info(*[0] * len(Info._fields))))
    if saved is not None:
        n_steps, (state, stacked) = saved
        state = jax.tree.map(jnp.asarray, state)
        told = [Info(*row) for row in zip(*stacked, strict=True)]
    with progress_bar(progress, description) as update:
        while float(state.inverse_temperature) < 1:
            if not np.isfinite(float(jnp.max(state.chains.tracks.log_likelihood))):
                status = Status.NOT_FINITE
                break
            if n_steps >= options["max_steps"]:
                status = Status.TEMPERING_STALLED
                break
            state, info = step(jax.random.fold_in(key_steps, n_steps), state, target, options)
            told.append(info)
            n_steps += 1
            checkpoint.save(n_steps, (state, _stack(told)))
            update(
                # Early steps are small: show them. The last tenth is the populations kept.
                0.9 * float(info.inverse_temperature) ** 0.25,
                temperature=f"{float(info.inverse_temperature):.2g}",
                ESS=f"{float(info.population_ess):.0f}",
                acceptance=f"{float(info.acceptance):.0%}",
            )
        kept, chains = [], state.chains
        for turn in range(options["n_kept"]):
            key_turn = jax.random.fold_in(key_final, turn)
            if status is Status.OK:
                chains, _ = _move(
                    key_turn, chains, target, state.inverse_temperature, options["n_moves"]
                )
            kept.append(jax.tree.map(np.asarray, chains.tracks))
            update(0.9 + 0.1 * (turn + 1) / options["n_kept"])
    trace = _stack(told)._asdict()
    if status is Status.OK and np.any(trace["correlation"] > _STUCK):
        status = Status.NOT_MIXED
    draws = jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)
    return draws, float(state.log_evidence), trace, status


_reweight = jax.jit(reweight)


def _correlation(before, after):
    """Of two series of log likelihoods, by ranks: a few very poor particles would hide the rest."""
    before, after = np.asarray(before), np.asarray(after)
    if np.ptp(before) == 0 or np.ptp(after) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(before), rankdata(after))[0, 1])


def _move(key, chains, target, inverse_temperature, n_moves):
    """Let proposals learn from the population, and move all of it."""
    variance = jnp.var(chains.tracks.parameters, axis=0).astype(chains.spread.dtype)
    # Of this temperature alone: the spread of parameters shrinks by orders on the way.
    chains = particle_gibbs.adapt(
        chains._replace(spread=variance), jax.tree.map(lambda x: x[None], chains.tracks), target
    )
    temperatures = jnp.full(particle_gibbs.CHUNK, inverse_temperature, chains.spread.dtype)
    chains, record = particle_gibbs.advance(key, chains, target, temperatures, 1, n_moves)
    return chains, record.accepted.sum() / jnp.maximum(record.tried.sum(), 1)


@functools.partial(jax.jit, static_argnums=2)
def _draw_prior(key, target, n_particles):
    """Trajectories and parameters of the prior: the bootstrap filter without its weights."""
    key_init, key_steps = jax.random.split(key)
    gram, n_times = target.gram, target.gram.n_times
    particles = bootstrap_filter.init(key_init, target, n_particles, n_times).particles
    cumulative = jnp.cumsum(jnp.exp(target.prior.log_place))
    nothing = jnp.zeros_like(gram.projected_data[0]), jnp.zeros_like(gram.data_power[0])

    def live(particles, time):
        keys = jax.random.split(jax.random.fold_in(key_steps, time), n_particles)
        moved, _ = jax.vmap(
            lambda key, particle: bootstrap_filter.advance(
                key, particle, target, cumulative / cumulative[-1], *nothing, time
            )
        )(keys, particles)
        return moved, None

    particles, _ = jax.lax.scan(live, particles, jnp.arange(n_times))
    return particles.past_places, particles.past_new, particles.parameters


def _stack(told):
    if not told:
        return Info(*[np.zeros(0)] * len(Info._fields))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *told)
