"""Markov chains of whole trajectories: the reference posterior of dynamic dipoles.

The state of a chain is a set of tracks and the unknown parameters; moments are integrated out
exactly. Moves change whole lives, their births, deaths, places and numbers (`track_moves`), and
the parameters in between, so that the draws follow the joint posterior.

Particle Gibbs in its usual form draws a trajectory by conditional SMC with ancestor sampling. Where
places change at every sample it mixes well. Here a place is a parameter of a whole life:
ancestor sampling joins a new past to an old future only where both hold the same places,
so that a place is renewed where a life is born anew and almost nowhere else. Moves on lives need no
particles, evaluate the likelihood once each, and reach what an ancestor cannot.

Chains do not talk to one another after burn-in: they are there to be compared. They start empty
with parameters from the prior. During the first half of burn-in the inverse temperature rises
from near 0 to 1, so that chains settle in different modes if there are any; during the
second half proposals learn from all chains, then stay as they are.

Cost of a move: one likelihood, O(n_times (n_slots d)^3), for each of n_chains.

References: Green 1995, doi:10.1093/biomet/82.4.711 (moves between dimensions); Andrieu, Doucet,
Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x (particle Gibbs); Lindsten, Jordan, Schön
2014, Journal of Machine Learning Research 15:2145-2184 (ancestor sampling).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from ..core.status import Status
from ..core.types import Array, Float, Int
from .track_moves import MOVES, Counts
from .track_moves import step as move
from .track_proposal import Proposal, build_proposal, scan
from .track_target import Tracks, empty, evaluate, is_alive, log_posterior, places_over_time

__all__ = ["CHUNK", "Info", "State", "adapt", "advance", "init", "most_tracks", "run", "step"]

# Draws between looks at the clock, the proposal and the checkpoint.
CHUNK = 20
# Inverse temperature that burn-in starts from: thousands of nats become a few.
_FIRST_TEMPERATURE = 1e-3
# Weight of what earlier chunks of burn-in saw against the last one.
_MEMORY = 0.8
# Share of the occupancy that its neighbours get: a chain may not have been everywhere yet.
_SPREAD = 0.3
_SCAN_SHARE = 0.3
# Chains agree if they give at no sample, on average, this share of probability to numbers of
# dipoles other than all together do. (The largest of many chains would be off by chance.)
_MAX_TOTAL_VARIATION = 0.2
_MAX_FULL = 0.05


class State(NamedTuple):
    """Chains and what they propose."""

    tracks: Tracks  # (n_chains, ...)
    proposal: Proposal
    occupancy: Float[Array, "n_windows n_sources"]  # where chains were, a fading sum
    scanned: Float[Array, "n_windows n_sources"]  # what `scan` found
    time_weight: Float[Array, " n_times"]
    spread: Float[Array, " n_parameters"]  # variance of the parameters, a fading mean
    n_steps: Int[Array, ""]  # draws so far


class Info(NamedTuple):
    """What one step did, for each chain."""

    counts: Counts  # (n_chains, n_moves)
    log_posterior: Float[Array, " n_chains"]


class Record(NamedTuple):
    """What a run keeps of its steps."""

    draws: Tracks  # (n_steps, n_chains, ...)
    log_posterior: Float[np.ndarray, "n_steps n_chains"]
    tried: Float[np.ndarray, "n_chunks n_chains n_moves"]
    accepted: Float[np.ndarray, "n_chunks n_chains n_moves"]


def most_tracks(target, key):
    """Number of tracks that the prior exceeds once in ten thousand draws, and then some."""
    parameters = np.asarray(target.prior.sample_parameters(key, 256), np.float64)
    n_times = target.gram.n_times
    rate = n_times * np.max(1 / (1 + np.exp(-parameters[:, -2])))
    most = np.ceil(rate + 4 * np.sqrt(rate)) + 2 * target.prior.max_dipoles
    return int(min(n_times, most))


def init(key, target, options, start=None) -> State:
    """Scan the data and place the chains.

    Parameters
    ----------
    key : PRNG key
    target : Target
    options : dict
        `n_chains`, `n_tracks`.
    start : Tracks, optional
        First states (n_chains, ...). None: nobody ever alive.

    Raises
    ------
    ValueError
        If `start` holds other numbers of chains or tracks.
    """
    n_chains, n_tracks = options["n_chains"], options["n_tracks"]
    draws = target.prior.sample_parameters(key, max(n_chains, 256))
    guess = np.median(np.asarray(draws), axis=0)
    place_weight, time_weight = scan(target, guess)
    if start is None:
        tracks = _empty(target, draws[:n_chains], n_tracks)
    else:
        shape = (n_chains, n_tracks)
        if start.place.shape != shape:
            raise ValueError(
                f"start has shape {start.place.shape}, but n_chains and n_tracks are {shape}; "
                "give one state for each chain, with as many rows as n_tracks."
            )
        tracks = _evaluate(target, jax.tree.map(jnp.asarray, start))
    spread = np.where(target.prior.is_unknown, np.minimum(np.var(np.asarray(draws), axis=0), 1), 0)
    dtype = target.gram.field.dtype
    return State(
        tracks=tracks,
        proposal=build_proposal(target, place_weight, time_weight, np.sqrt(spread)),
        occupancy=jnp.zeros(place_weight.shape, dtype),
        scanned=jnp.asarray(place_weight, dtype),
        time_weight=jnp.asarray(time_weight, dtype),
        spread=jnp.asarray(spread, dtype),
        n_steps=jnp.zeros((), jnp.int32),
    )


def step(key, state, target, inverse_temperature) -> tuple[State, Info]:
    """Move every chain once.

    Parameters
    ----------
    key : PRNG key
    state : State
    target : Target
    inverse_temperature : scalar in [0, 1]
    """
    tracks, counts = _move(key, state.tracks, target, inverse_temperature, state.proposal)
    value = jax.vmap(log_posterior, in_axes=(None, 0, None))(target, tracks, inverse_temperature)
    return state._replace(tracks=tracks), Info(counts, value)


def run(key, target, options, *, progress, description, checkpoint, start=None):
    """Run the chains.

    Parameters
    ----------
    key : PRNG key
    target : Target
    options : dict
        `n_samples` draws of each chain after `n_burn_in`, `n_thin` moves from one to the next;
        `n_chains`; `n_tracks`, the most tracks of a draw, None: as the prior suggests.
    progress : bool
    description : str
        Label of the progress bar.
    checkpoint : Checkpoint
    start : Tracks, optional
        First states (n_chains, n_tracks...), say of draws by another method. They are heated in
        burn-in all the same.

    Returns
    -------
    draws : Tracks
        Stacked (n_chains, n_samples, ...), equally weighted, NumPy.
    trace : dict
        `acceptance` (n_chains, n_moves) in the order of `track_moves.MOVES`, NaN for moves that
        the model has no use for; `log_posterior` (n_chains, n_samples); `is_full` (n_chains,), the
        share of draws that use all `n_tracks`. After burn-in.
    status : Status
    """
    key_init, key_steps, key_size = jax.random.split(key, 3)
    if options["n_tracks"] is None:
        options = {**options, "n_tracks": most_tracks(target, key_size)}
    n_chains, n_burn_in = options["n_chains"], options["n_burn_in"]
    n_total = n_burn_in + options["n_samples"]
    state = init(key_init, target, options, start)
    record, status = None, Status.OK
    saved = checkpoint.load((state, _no_record(state)))
    if saved is not None:
        _, (state, record) = saved
        state = jax.tree.map(jnp.asarray, state)
        record = record if len(record.log_posterior) else None
    with progress_bar(progress, description) as update:
        while (first := int(state.n_steps)) < n_total:
            # A chunk ends where burn-in does, so that it is all burn-in or none of it.
            is_burning = first < n_burn_in
            last = min(first + CHUNK, n_burn_in if is_burning else n_total)
            temperatures = _temperatures(first + np.arange(CHUNK), n_burn_in)
            state, chunk = advance(
                key_steps,
                state,
                target,
                jnp.asarray(temperatures, target.gram.field.dtype),
                last - first,
                options["n_thin"],
            )
            chunk = jax.tree.map(np.asarray, chunk)
            chunk = Record(
                *jax.tree.map(lambda leaf, n=last - first: leaf[:n], tuple(chunk[:2])), *chunk[2:]
            )
            if not np.all(np.isfinite(chunk.log_posterior[-1])):
                status = Status.NOT_FINITE
                record = chunk if record is None else record
                break
            if not is_burning:
                record = chunk if record is None else _append(record, chunk)
            elif temperatures[last - first - 1] >= 1:
                state = adapt(state, chunk.draws, target)
            checkpoint.save(last, (state, _no_record(state) if record is None else record))
            moved = chunk.accepted.sum() / chunk.tried.sum()
            update(last / n_total, accepted=f"{moved:.0%}", tracks=_mean_number(chunk.draws))
    rows = np.arange(options["n_samples"]) % len(record.log_posterior)
    draws, values = jax.tree.map(
        # A run that broke off returns as many draws as any other: the last ones over again.
        lambda leaf: np.moveaxis(leaf[rows], 0, 1),
        (record.draws, record.log_posterior),
    )
    tried = record.tried.sum(axis=0)
    is_full = np.mean(np.all(draws.is_used, axis=2), axis=1)
    with np.errstate(invalid="ignore"):
        trace = {
            "acceptance": record.accepted.sum(axis=0) / np.where(tried > 0, tried, np.nan),
            "log_posterior": values,
            "is_full": is_full,
        }
    if status is Status.OK:
        status = _verdict(draws, is_full, target, n_chains)
    return draws, trace, status


@jax.jit(static_argnums=2)
def _empty(target, parameters, n_tracks):
    return jax.vmap(empty, in_axes=(None, 0, None))(target, parameters, n_tracks)


@jax.jit
def _evaluate(target, tracks):
    return jax.vmap(evaluate, in_axes=(None, 0))(target, tracks)


def _move(key, tracks, target, inverse_temperature, proposal):
    keys = jax.random.split(key, tracks.birth.shape[0])
    return jax.vmap(move, in_axes=(0, 0, None, None, None))(
        keys, tracks, target, inverse_temperature, proposal
    )


@jax.jit
def advance(key, state, target, temperatures, n_steps, n_thin):
    """Make `n_steps` draws, `n_thin` moves apart, each at its temperature.

    Numbers of steps are traced: one compilation serves all.
    """
    first = state.n_steps
    dtype = target.gram.field.dtype
    n_chains = state.tracks.birth.shape[0]

    def one(index, carry):
        state, counts = carry
        key_move = jax.random.fold_in(jax.random.fold_in(key, first + index[0]), index[1])
        state, info = step(key_move, state, target, temperatures[index[0]])
        return state, jax.tree.map(jnp.add, counts, info.counts), info.log_posterior

    def draw(number, carry):
        state, record = carry
        counts = Counts(record.tried[0], record.accepted[0])
        values = record.log_posterior[number]

        def inner(turn, carry):
            state, counts, _ = carry
            return one((number, turn), (state, counts))

        state, counts, values = jax.lax.fori_loop(0, n_thin, inner, (state, counts, values))
        draws = jax.tree.map(lambda all_, new: all_.at[number].set(new), record.draws, state.tracks)
        record = Record(
            draws,
            record.log_posterior.at[number].set(values),
            counts.tried[None],
            counts.accepted[None],
        )
        return state._replace(n_steps=state.n_steps + 1), record

    def room(leaf):
        return jnp.zeros((CHUNK, *leaf.shape), leaf.dtype)

    record = Record(
        jax.tree.map(room, state.tracks),
        jnp.zeros((CHUNK, n_chains), dtype),
        *[jnp.zeros((1, n_chains, len(MOVES)), dtype)] * 2,
    )
    return jax.lax.fori_loop(0, n_steps, draw, (state, record))


def _temperatures(steps, n_burn_in):
    """Inverse temperature of each step: geometric through the first half of burn-in, then 1."""
    progress = np.minimum((steps + 1) / max(n_burn_in // 2, 1), 1.0)
    return np.where(steps < n_burn_in, _FIRST_TEMPERATURE ** (1 - progress), 1.0)


def adapt(state, draws, target):
    """Let the proposal learn from the draws of a chunk, (n_steps, n_chains, ...)."""
    draws = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), draws)
    dtype = target.gram.field.dtype
    n_times = target.gram.n_times
    places = np.asarray(_places(draws, n_times))  # (n_draws, n_tracks, n_times)
    window = np.broadcast_to(np.asarray(state.proposal.window), places.shape)
    is_held = places >= 0
    seen = np.zeros(state.occupancy.shape)
    np.add.at(seen, (window[is_held], places[is_held]), 1.0 / len(places))
    occupancy = _MEMORY * np.asarray(state.occupancy, np.float64) + seen
    neighbours = np.asarray(target.neighbours)
    is_there = neighbours >= 0
    degree = np.maximum(is_there.sum(axis=1), 1)
    shared = np.where(is_there, (occupancy / degree)[:, neighbours], 0.0).sum(axis=2)
    learnt = (1 - _SPREAD) * occupancy + _SPREAD * shared
    total = learnt.sum(axis=1, keepdims=True)
    scanned = np.asarray(state.scanned, np.float64)
    scanned = scanned / scanned.sum(axis=1, keepdims=True)
    learnt = np.where(total > 0, learnt / np.where(total > 0, total, 1.0), scanned)
    mixed = _SCAN_SHARE * scanned + (1 - _SCAN_SHARE) * learnt

    variance = np.var(np.asarray(draws.parameters, np.float64), axis=0)
    spread = _MEMORY * np.asarray(state.spread, np.float64) + (1 - _MEMORY) * variance
    # 2.4 standard deviations is the best step for one normal parameter.
    steps = 2.4 * np.sqrt(spread)
    return state._replace(
        proposal=build_proposal(target, mixed, np.asarray(state.time_weight), steps),
        occupancy=jnp.asarray(occupancy, dtype),
        spread=jnp.asarray(spread, dtype),
    )


@jax.jit(static_argnums=1)
def _places(draws, n_times):
    return jax.vmap(places_over_time, in_axes=(0, None))(draws, n_times)


@jax.jit(static_argnums=1)
def _numbers(draws, n_times):
    """Dipoles alive at each sample of each draw: (n_chains, n_samples, n_times)."""
    alive = jax.vmap(jax.vmap(is_alive, in_axes=(0, None)), in_axes=(0, None))(draws, n_times)
    return jnp.sum(alive, axis=2)


def _verdict(draws, is_full, target, n_chains):
    if np.mean(is_full) > _MAX_FULL:
        return Status.TOO_MANY_DIPOLES
    numbers = np.asarray(_numbers(draws, target.gram.n_times))
    counts = np.stack(
        [np.mean(numbers == k, axis=1) for k in range(target.prior.max_dipoles + 1)], axis=-1
    )
    pooled = counts.mean(axis=0)
    distance = 0.5 * np.abs(counts - pooled).sum(axis=2).mean(axis=0)
    if n_chains > 1 and distance.max() > _MAX_TOTAL_VARIATION:
        return Status.RUNS_DISAGREE
    is_hit = target.prior.max_dipoles > 1 and pooled[:, -1].max() > _MAX_FULL
    return Status.TOO_MANY_DIPOLES if is_hit else Status.OK


def _mean_number(draws):
    return f"{draws.is_used.sum(axis=-1).mean():.1f}"


def _append(record, chunk):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), record, chunk)


def _no_record(state):
    """A record of no steps, with the structure of one."""
    nothing = np.zeros(0)
    return Record(jax.tree.map(lambda leaf: nothing, state.tracks), *[nothing] * 3)
