"""Reversible-jump MCMC with parallel tempering for static dipoles.

    target at temperature b:  reference(c, s)^(1-b) [prior(c, s) p(data | c, s)]^b

Chains run side by side at a ladder of inverse temperatures 0 = b_0 < ... < b_L = 1. One
step of a ladder is a sweep of every replica with kernels that leave its target
invariant and change the number of dipoles (`dipole_moves`), then an exchange of the states x
and x' of neighbouring temperatures b < b', even and odd pairs in turn, accepted with probability

    min(1, exp{(b' - b) (r(x) - r(x'))}),     r = log posterior - log reference, unnormalised.

At b_0 the state is a fresh, independent draw of the reference: every ladder forgets its past,
whatever the modes of the posterior. The ladder comes from a small SMC run, whose
temperatures are equally spaced in the sense that matters for exchanges, and so do the first
states. Proposals adapt during burn-in only; from then on every kernel is fixed and the draws,
the states at b = 1, follow the posterior. Ladders do not talk to one another: they are
separate chains for convergence diagnostics.

The evidence is a product over neighbouring temperatures, each factor Z_{l+1} / Z_l = exp(C)
estimated from both sides by Bennett's acceptance ratio, the root C of

    sum_{x at b_l} f(C - u(x)) = sum_{x at b_{l+1}} f(u(x) - C),
    u = (b_{l+1} - b_l) r,  f(z) = 1 / (1 + exp z).

Cost of a step: one sweep (see `dipole_moves`) for each of n_temperatures * n_chains replicas.

References: Green 1995, doi:10.1093/biomet/82.4.711 (moves between dimensions); Earl, Deem
2005, doi:10.1039/b509983h (parallel tempering); Bennett 1976,
doi:10.1016/0021-9991(76)90078-4 (acceptance ratio).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from ..core.drive import progress_bar
from ..core.status import Status
from ..core.types import Array, Bool, Float, Int
from . import smc
from .dipole_moves import MOVES, Counts, Proposal
from .dipole_population import draw_reference, fit_slots, move, refresh_proposal
from .dipole_target import Dipoles, log_ratio

__all__ = ["Info", "State", "init", "run", "step"]

# The pilot's steps are short enough to move particles, and several make one of the ladder.
_PILOT_CESS = 0.9
_PILOT_SWEEPS = 2
_MAX_PILOT_STEPS = 2000
# Standard deviation of u between neighbours: exchanges are then accepted about half the time.
_SPACING = 1.0
# Steps between looks at the clock, the proposal and the checkpoint.
_CHUNK = 20


class State(NamedTuple):
    """Ladders of replicas: temperature by temperature, `n_chains` replicas each, without b_0."""

    replicas: Dipoles
    ladder: Float[Array, " n_temperatures"]  # from 0 to 1
    n_steps: Int[Array, ""]
    log_place: Float[Array, " n_sources"]  # of the proposal, as are the next two
    cumulative: Float[Array, " n_sources"]
    scale_steps: Float[Array, " n_scales"]


class Info(NamedTuple):
    """What one step did."""

    log_ratio: Float[np.ndarray, "n_temperatures n_chains"]  # r of the new states
    is_swapped: Bool[np.ndarray, "n_temperatures-1 n_chains"]
    counts: Counts  # moves of all replicas


class Record(NamedTuple):
    """What a run keeps of its steps."""

    draws: Dipoles
    log_ratio: Float[np.ndarray, "n_steps n_temperatures n_chains"]
    swap_rate: Float[np.ndarray, "n_steps n_temperatures-1"]
    tried: Float[np.ndarray, "n_steps n_moves"]
    changed: Float[np.ndarray, "n_steps n_moves"]


def init(key, target, neighbours, options) -> State | None:
    """Find a ladder and a state for each of its rungs with a small SMC run.

    Returns
    -------
    State, or None if the pilot did not arrive at b = 1.
    """
    key_pilot, key_steps, key_pick, key_survey = jax.random.split(key, 4)
    pilot_options = {
        "cess_target": _PILOT_CESS,
        "ess_threshold": 0.5,
        "n_sweeps": _PILOT_SWEEPS,
        "max_sweeps": _PILOT_SWEEPS,
        "n_candidates": options["n_candidates"],
        "n_surveyed": options["n_surveyed"],
    }
    pilot = smc.init(key_pilot, target, options["n_particles"])
    path = []
    while float(pilot.inverse_temperature) < 1:
        if len(path) >= _MAX_PILOT_STEPS:
            return None
        key_step = jax.random.fold_in(key_steps, len(path))
        pilot, _ = smc.step(key_step, pilot, target, neighbours, pilot_options)
        path.append(jax.tree.map(np.asarray, pilot))

    # One step of the pilot changes the log weights by this standard deviation.
    stride = max(1, round(_SPACING / np.sqrt(1 / _PILOT_CESS - 1)))
    rungs = path[::-1][::stride][::-1]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_pick)))
    chosen = []
    for rung in rungs:
        weights = np.exp(rung.log_weights.astype(np.float64))
        n = len(weights)
        picked = rng.choice(n, size=options["n_chains"], p=weights / weights.sum())
        chosen.append(jax.tree.map(lambda leaf, picked=picked: leaf[picked], rung.particles))
    state = State(
        replicas=jax.tree.map(jnp.asarray, smc.stack_draws(chosen, target.prior.max_dipoles)),
        ladder=jnp.asarray(
            [0.0, *[rung.inverse_temperature for rung in rungs]], pilot.log_weights.dtype
        ),
        n_steps=jnp.zeros((), jnp.int32),
        log_place=target.prior.log_place,
        cumulative=jnp.cumsum(jnp.exp(target.prior.log_place)),
        scale_steps=jnp.ones_like(pilot.particles.log_scales[0]),
    )
    return _adapt(key_survey, state, target, neighbours, options)


def step(key, state, target, neighbours, fresh, n_candidates) -> tuple[State, Info]:
    """Sweep every replica, then exchange states between neighbouring temperatures.

    Parameters
    ----------
    key : PRNG key
    state : State
    target : Target
    neighbours : (n_sources, max_degree) int
    fresh : Dipoles
        Draws of the reference, stacked (n_chains, ...): the states at b = 0.
    n_candidates : int
        0 for the exact conditional over the grid.
    """
    key_move, key_swap = jax.random.split(key)
    ladder = np.asarray(state.ladder)
    n_chains = fresh.places.shape[0]
    proposal = Proposal(
        state.log_place, state.cumulative, state.scale_steps, neighbours, n_candidates
    )
    replicas, counts = move(key_move, state.replicas, target, _temperatures(state), proposal)
    max_dipoles = target.prior.max_dipoles
    # From here on b = 0 comes first.
    everyone = smc.stack_draws(
        [jax.tree.map(np.asarray, part) for part in (fresh, replicas)], max_dipoles
    )
    value = np.asarray(_log_ratios(target, everyone)).reshape(len(ladder), n_chains)
    shape = (len(ladder) - 1, n_chains)
    draws = np.asarray(jax.random.uniform(key_swap, shape, value.dtype))
    # Even and odd pairs in turn: states travel straight on instead of diffusing.
    is_turn = np.arange(len(ladder) - 1) % 2 == int(state.n_steps) % 2
    with np.errstate(invalid="ignore", divide="ignore"):
        log_accept = np.diff(ladder)[:, None] * (value[:-1] - value[1:])
        is_swapped = is_turn[:, None] & (np.log(draws) < log_accept)
    source = np.arange(value.size).reshape(value.shape)
    lower, upper = source[:-1].copy(), source[1:].copy()
    source[:-1] = np.where(is_swapped, upper, source[:-1])
    source[1:] = np.where(is_swapped, lower, source[1:])
    replicas = jax.tree.map(lambda leaf: jnp.asarray(leaf[source[1:].ravel()]), everyone)
    state = state._replace(replicas=replicas, n_steps=state.n_steps + 1)
    return state, Info(value.ravel()[source], is_swapped, jax.tree.map(np.asarray, counts))


def run(key, target, neighbours, options, *, progress, description, checkpoint):
    """Run the ladders.

    Parameters
    ----------
    key : PRNG key
    target : Target
    neighbours : (n_sources, max_degree) int
    options : dict
        `n_samples` and `n_burn_in` (steps), `n_chains` (independent ladders), `n_particles` (of
        the pilot), `n_candidates`, `n_surveyed`.
    progress : bool
    description : str
        Label of the progress bar.
    checkpoint : Checkpoint

    Returns
    -------
    draws : Dipoles
        Stacked (n_samples * n_chains, ...), equally weighted; the chain varies fastest.
    log_evidence : float
        In whitened units.
    trace : dict
        `inverse_temperature` (n_temperatures,), `swap_rate` and `log_evidence_increment`
        (n_temperatures - 1,), `acceptance` (n_moves,) in the order of `dipole_moves.MOVES`, all
        after burn-in.
    status : Status
    """
    key_init, key_steps, key_fresh, key_survey = jax.random.split(key, 4)
    n_chains, n_burn_in = options["n_chains"], options["n_burn_in"]
    n_total = n_burn_in + options["n_samples"]
    saved = checkpoint.load(_like())
    if saved is None:
        state, record = init(key_init, target, neighbours, options), None
        if state is None:
            return _stalled(key_init, target, options)
    else:
        _, (state, record) = saved
        state = jax.tree.map(jnp.asarray, state)
        record = record if len(record.log_ratio) else None
    status = Status.OK

    def top(leaf):
        return np.asarray(leaf[-n_chains:])

    with progress_bar(progress, description) as update:
        while (first := int(state.n_steps)) < n_total:
            # A chunk ends where burn-in does, so that a record is all burn-in or none of it.
            last = min(first + _CHUNK, n_total if first >= n_burn_in else n_burn_in)
            key_chunk = jax.random.fold_in(key_fresh, first)
            pool = draw_reference(key_chunk, target, n_chains * (last - first))
            pool = jax.tree.map(np.asarray, pool)
            states, infos = [], []
            for n in range(first, last):
                rows = slice((n - first) * n_chains, (n - first + 1) * n_chains)
                state, info = step(
                    jax.random.fold_in(key_steps, n),
                    state,
                    target,
                    neighbours,
                    jax.tree.map(lambda leaf, rows=rows: leaf[rows], pool),
                    options["n_candidates"],
                )
                states.append(jax.tree.map(top, state.replicas))
                infos.append(info)
            if not np.all(np.isfinite(infos[-1].log_ratio[-1])):
                status = Status.NOT_FINITE
                break
            if last <= n_burn_in:
                key_chunk = jax.random.fold_in(key_survey, first)
                state = _adapt(key_chunk, state, target, neighbours, options)
            else:
                record = _append(record, states, infos, target.prior.max_dipoles)
            checkpoint.save(last, (state, _no_record() if record is None else record))
            update(
                last / n_total,
                temperatures=len(state.ladder),
                swaps=f"{2 * np.mean([info.is_swapped for info in infos]):.0%}",
            )
    if record is None:
        record = _append(None, states, infos, target.prior.max_dipoles)
    increments = _bennett(np.asarray(state.ladder, np.float64), record.log_ratio)
    trace = {
        "inverse_temperature": np.asarray(state.ladder),
        # Every pair has its turn at every other step.
        "swap_rate": 2 * np.mean(record.swap_rate, axis=0),
        "log_evidence_increment": increments,
        "acceptance": record.changed.sum(axis=0) / np.maximum(record.tried.sum(axis=0), 1),
    }
    # A run that broke off returns as many draws as any other: the last ones over again.
    rows = np.arange(options["n_samples"] * n_chains) % len(record.draws.log_likelihood)
    draws = jax.tree.map(lambda leaf: leaf[rows], record.draws)
    return draws, float(np.sum(increments)), trace, status


def _temperatures(state):
    n_chains = state.replicas.places.shape[0] // (state.ladder.shape[0] - 1)
    return jnp.repeat(state.ladder[1:], n_chains)


@jax.jit
def _log_ratios(target, dipoles):
    return jax.vmap(log_ratio, in_axes=(None, 0))(target, dipoles)


def _adapt(key, state, target, neighbours, options):
    """Fit the proposal to the replicas of all temperatures."""
    replicas = fit_slots(state.replicas, target.prior.max_dipoles)
    proposal = refresh_proposal(
        key,
        replicas,
        target,
        _temperatures(state),
        neighbours,
        n_surveyed=min(options["n_surveyed"], replicas.places.shape[0]),
        n_candidates=options["n_candidates"],
    )
    # Steps are to match the spread at one temperature, not the drift from one to the next.
    log_scales = np.asarray(replicas.log_scales)
    within = log_scales.reshape(len(state.ladder) - 1, -1, log_scales.shape[1])
    within = np.sqrt(np.mean(np.var(within, axis=1), axis=0))
    total = np.std(log_scales, axis=0)
    share = np.where(total > 0, within / np.maximum(total, 1e-12), 1).astype(log_scales.dtype)
    return state._replace(
        log_place=proposal.log_place,
        cumulative=proposal.cumulative,
        scale_steps=proposal.scale_steps * share,
    )


def _bennett(ladder, log_ratio):
    """Log ratios of the evidences of neighbouring temperatures, from samples of both.

    Parameters
    ----------
    ladder : (n_temperatures,)
    log_ratio : (n_steps, n_temperatures, n_chains)

    Returns
    -------
    (n_temperatures - 1,)
    """
    log_ratio = np.moveaxis(log_ratio.astype(np.float64), 1, 0).reshape(len(ladder), -1)
    increments = np.empty(len(ladder) - 1)
    for rung, gap in enumerate(np.diff(ladder)):
        lower, upper = gap * log_ratio[rung], gap * log_ratio[rung + 1]

        def balance(shift, lower=lower, upper=upper):
            return np.sum(expit(lower - shift)) - np.sum(expit(shift - upper))

        both = np.concatenate([lower, upper])
        both = both[np.isfinite(both)]
        if not both.size:
            increments[rung] = -np.inf
            continue
        # Beyond the samples by what it takes to balance any number of them.
        increments[rung] = brentq(balance, both.min() - 50, both.max() + 50, xtol=1e-10)
    return increments


def _append(record, states, infos, max_dipoles):
    """Add the states at b = 1 of some steps to the record, and what the steps told."""
    chunk = Record(
        draws=smc.stack_draws(states, max_dipoles),
        log_ratio=np.stack([info.log_ratio for info in infos]),
        swap_rate=np.stack([np.mean(info.is_swapped, axis=1) for info in infos]),
        tried=np.stack([info.counts.tried for info in infos]),
        changed=np.stack([info.counts.changed for info in infos]),
    )
    if record is None:
        return chunk
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), record, chunk)


def _like():
    """The structure of a checkpoint."""
    dipoles = Dipoles(*[0] * len(Dipoles._fields))
    state = State(dipoles, *[0] * (len(State._fields) - 1))
    return state, _no_record()


def _no_record():
    empty = np.zeros(0)
    return Record(Dipoles(*[empty] * len(Dipoles._fields)), *[empty] * (len(Record._fields) - 1))


def _stalled(key, target, options):
    """What there is to return when the pilot did not find a way: draws of the reference."""
    n_draws = options["n_samples"] * options["n_chains"]
    draws = jax.tree.map(np.asarray, draw_reference(key, target, n_draws))
    trace = {
        "inverse_temperature": np.zeros(1),
        "swap_rate": np.zeros(0),
        "log_evidence_increment": np.zeros(0),
        "acceptance": np.zeros(len(MOVES)),
    }
    draws = smc.stack_draws([draws], target.prior.max_dipoles)
    return draws, -np.inf, trace, Status.TEMPERING_STALLED
