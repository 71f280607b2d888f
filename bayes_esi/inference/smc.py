"""Sequential Monte Carlo sampler with adaptive tempering for static dipoles.

    target at temperature b:  prior(c, s) * p(data | c, s)^b,        b from 0 to 1

Particles start from the prior. Each step raises b as far as the conditional effective sample
size (CESS) allows, reweights, resamples when the effective sample size is low, and moves every
particle with kernels that leave the tempered target invariant (`dipole_moves`). The evidence
is the product of the mean incremental weights (`tempering`).

At b = 1 the population goes on moving for a few sweeps and all of these states are kept: every
one is a draw of the posterior, and together they estimate it better than the last alone
(the idea of waste-free SMC).

Cost of one sweep of one particle O(n_dipoles (n_candidates + degree) (d n_dipoles)^2),
independent of channels and samples once the Gram blocks are tabulated.

References: Del Moral, Doucet, Jasra 2006, doi:10.1111/j.1467-9868.2006.00553.x (SMC samplers);
Dau, Chopin 2022, doi:10.1111/rssb.12475 (waste-free SMC); Sorrentino, Luria, Aramini 2014,
doi:10.1088/0266-5611/30/4/045010 (the model).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from ..core.status import Status
from ..core.types import Array, Float, Int
from .dipole_moves import MOVES
from .dipole_population import draw_reference, move, refresh_proposal
from .dipole_target import Dipoles, log_ratio
from .tempering import reweight

__all__ = ["Info", "State", "init", "run", "step"]


class State(NamedTuple):
    """A weighted population at one inverse temperature."""

    particles: Dipoles
    log_weights: Float[Array, " n_particles"]  # normalised
    inverse_temperature: Float[Array, ""]
    log_evidence: Float[Array, ""]  # so far, in whitened units
    acceptance: Float[Array, ""]  # share of moves that changed a particle, last step


class Info(NamedTuple):
    """What one step did."""

    inverse_temperature: Float[Array, ""]
    ess: Float[Array, ""]
    log_evidence_increment: Float[Array, ""]
    n_sweeps: Int[Array, ""]
    acceptance: Float[Array, " n_moves"]  # in the order of `dipole_moves.MOVES`


def init(key, target, n_particles) -> State:
    """Draw the population from the reference law."""
    particles = draw_reference(key, target, n_particles)
    dtype = particles.log_likelihood.dtype
    return State(
        particles=particles,
        log_weights=jnp.full(n_particles, -np.log(n_particles), dtype),
        inverse_temperature=jnp.zeros((), dtype),
        log_evidence=jnp.zeros((), dtype),
        acceptance=jnp.ones((), dtype),
    )


def step(key, state, target, neighbours, options) -> tuple[State, Info]:
    """Raise the temperature once and move the population there."""
    key_resample, key_survey, key_move = jax.random.split(key, 3)
    state, ess, increment = _reweight(
        key_resample, state, target, options["cess_target"], options["ess_threshold"]
    )
    n_particles = state.log_weights.shape[0]
    temperature = jnp.broadcast_to(state.inverse_temperature, (n_particles,))
    proposal = refresh_proposal(
        key_survey,
        state.particles,
        target,
        temperature,
        neighbours,
        n_surveyed=min(options["n_surveyed"], n_particles),
        n_candidates=options["n_candidates"],
    )
    n_sweeps = _sweeps_wanted(float(state.acceptance), options)
    particles, total = state.particles, None
    for sweep in range(n_sweeps):
        key_sweep = jax.random.fold_in(key_move, sweep)
        particles, counts = move(key_sweep, particles, target, temperature, proposal)
        total = counts if total is None else jax.tree.map(jnp.add, total, counts)
    rates = total.changed / jnp.maximum(total.tried, 1)
    # Births are rare wherever there is nothing left to explain: they say little of mixing.
    existing = slice(MOVES.index("death"), MOVES.index("walk") + 1)
    overall = jnp.sum(total.changed[existing]) / jnp.maximum(jnp.sum(total.tried[existing]), 1)
    state = state._replace(particles=particles, acceptance=overall)
    info = Info(state.inverse_temperature, ess, increment, jnp.asarray(n_sweeps), rates)
    return state, info


def run(key, target, neighbours, options, *, progress, description, checkpoint):
    """Temper from the prior to the posterior.

    Parameters
    ----------
    key : PRNG key
    target : Target
    neighbours : (n_sources, max_degree) int
    options : dict
        `n_particles`, `cess_target`, `ess_threshold`, `n_sweeps`, `max_sweeps`, `n_candidates`,
        `n_surveyed`, `n_final_sweeps`, `max_steps`.
    progress : bool
    description : str
        Label of the progress bar.
    checkpoint : Checkpoint

    Returns
    -------
    draws : Dipoles
        Stacked (n_final_sweeps * n_particles, ...), equally weighted.
    log_evidence : float
        In whitened units.
    trace : dict of (n_steps, ...) arrays
    status : Status
    """
    n_particles = options["n_particles"]
    key_init, key_steps, key_final = jax.random.split(key, 3)
    state = init(key_init, target, n_particles)
    trace, n_steps = [], 0
    saved = checkpoint.load((state, Info(*[0] * len(Info._fields))))
    if saved is not None:
        n_steps, (state, stacked) = saved
        state = jax.tree.map(jnp.asarray, state)
        trace = [Info(*row) for row in zip(*stacked, strict=True)]
    status = Status.OK
    with progress_bar(progress, description) as update:
        while float(state.inverse_temperature) < 1:
            if not np.isfinite(float(jnp.max(state.particles.log_likelihood))):
                status = Status.NOT_FINITE
                break
            if n_steps >= options["max_steps"]:
                status = Status.TEMPERING_STALLED
                break
            state, info = step(
                jax.random.fold_in(key_steps, n_steps), state, target, neighbours, options
            )
            trace.append(info)
            n_steps += 1
            checkpoint.save(n_steps, (state, _stack(trace)))
            update(
                float(info.inverse_temperature) ** 0.25,  # early steps are small: show them
                temperature=f"{float(info.inverse_temperature):.2g}",
                ESS=f"{float(info.ess):.0f}",
                acceptance=f"{float(state.acceptance):.0%}",
            )
        draws = _final_draws(key_final, state, target, neighbours, options)
    trace = {name: np.asarray(value) for name, value in _stack(trace)._asdict().items()}
    return draws, float(state.log_evidence), trace, status


@jax.jit
def _reweight(key, state, target, cess_target, ess_threshold):
    value = jax.vmap(log_ratio, in_axes=(None, 0))(target, state.particles)
    told = reweight(
        key, state.log_weights, state.inverse_temperature, value, cess_target, ess_threshold
    )
    state = state._replace(
        particles=jax.tree.map(lambda leaf: leaf[told.ancestors], state.particles),
        log_weights=told.log_weights,
        inverse_temperature=told.inverse_temperature,
        log_evidence=state.log_evidence + told.log_evidence_increment,
    )
    return state, told.ess, told.log_evidence_increment


def _sweeps_wanted(acceptance, options):
    """Sweeps after which four particles in five have changed, within the user's limits."""
    if acceptance >= 1:
        return options["n_sweeps"]
    wanted = np.ceil(np.log(0.2) / np.log1p(-max(acceptance, 1e-6)))
    return int(np.clip(wanted, options["n_sweeps"], options["max_sweeps"]))


def _final_draws(key, state, target, neighbours, options):
    """Keep moving at the last temperature and collect every state."""
    n_particles = state.log_weights.shape[0]
    temperature = jnp.broadcast_to(state.inverse_temperature, (n_particles,))
    key_survey, key_move = jax.random.split(key)
    particles, collected = state.particles, []
    proposal = refresh_proposal(
        key_survey,
        particles,
        target,
        temperature,
        neighbours,
        n_surveyed=min(options["n_surveyed"], n_particles),
        n_candidates=options["n_candidates"],
    )
    for sweep in range(options["n_final_sweeps"]):
        key_sweep = jax.random.fold_in(key_move, sweep)
        particles, _ = move(key_sweep, particles, target, temperature, proposal)
        collected.append(jax.tree.map(np.asarray, particles))
    return stack_draws(collected, target.prior.max_dipoles)


def stack_draws(collected, max_dipoles):
    """Join populations of different slot sizes into one with `max_dipoles` slots."""

    def pad(array):
        return np.pad(array, ((0, 0), (0, max_dipoles - array.shape[1])))

    widened = [
        state._replace(places=pad(state.places), active=pad(state.active)) for state in collected
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *widened)


def _stack(trace):
    if not trace:
        empty = np.zeros(0)
        return Info(empty, empty, empty, empty, np.zeros((0, len(MOVES))))
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trace)
