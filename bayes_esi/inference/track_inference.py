"""From a model of dynamic dipoles and a problem to trajectories: set-up, repeats, and the verdict.

Unknown scales and probabilities: short chains of whole trajectories find where they matter.
Each particle of the filter carries a set of its own, drawn from a law around that and weighted by
prior over it, so that the evidence stays unbiased. The smoother draws one set for each run, and
weighs the run instead: particles with sets of their own would be judged by the first samples, and
one that explains the later ones may be lost by then. Reversible jump moves of its
trajectories, which keep the joint law, renew the parameters, too.

Samplers of whole trajectories, `particle_gibbs` and `smc`, start from the prior and need no pilot.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from ..core.checks import check_choice, check_count, check_fraction, check_positive
from ..core.drive import Checkpoint, fingerprint
from ..core.status import Status
from ..models import track_likelihood
from ..models.dynamic_dipoles import track_prior
from ..models.orientation import orient
from ..models.probability_prior import pin_probability
from ..models.scale_prior import pin_scale
from ..models.track_gram import build_track_gram, track_table_bytes
from . import (
    bootstrap_filter,
    particle_filter,
    particle_gibbs,
    particle_smoother,
    track_renewal,
    track_smc,
)
from .options import fill_options, refuse_checkpoint
from .resampling import systematic
from .tempering import stack_traces
from .track_target import Target

__all__ = ["OPTIONS", "TrackResult", "check_options", "prepare", "run"]


def _check_proposal(name, value):
    return check_choice(name, value, ("survey", "bootstrap"))


def _check_amount(name, value):
    return check_count(name, value, minimum=0)


_SHARED = {"n_runs": (4, check_count), "memory_limit": (4 * 2**30, check_positive)}
_PARTICLES = _SHARED | {
    "n_particles": (1000, check_count),
    "ess_threshold": (0.5, check_fraction),
    "n_surveyed": (8, check_count),
    "n_draws": (250, check_count),
}
OPTIONS = {
    "particle_smoother": _PARTICLES
    | {"n_tries": (4, check_count), "n_renewal_moves": (100, _check_amount)},
    "particle_filter": _PARTICLES
    | {
        "n_moves": (1, _check_amount),
        "n_parameter_moves": (1, _check_amount),
        "n_moved": (250, check_count),
        "longest_life": (100, check_count),
        "proposal": ("survey", _check_proposal),
    },
    "particle_gibbs": {
        "n_chains": (8, check_count),
        "n_burn_in": (1000, check_count),
        "n_samples": (500, check_count),
        "n_thin": (10, check_count),
        "n_tracks": (None, check_count),
        "memory_limit": _SHARED["memory_limit"],
    },
    "smc": _SHARED
    | {
        "n_particles": (100, check_count),
        "ess_threshold": (0.5, check_fraction),
        "cess_target": (0.8, check_fraction),
        "n_moves": (40, check_count),
        "max_rounds": (5, check_count),
        "n_kept": (5, check_count),
        "n_tracks": (None, check_count),
        "max_steps": (1000, check_count),
    },
}

# The chains that look for unknown parameters.
_PILOT = {"n_chains": 8, "n_burn_in": 500, "n_samples": 100, "n_thin": 5, "n_tracks": None}
# How much wider than their posterior the law of the first parameters is, and how wide at least:
# importance weights are bounded if it is wider. Particles of the filter can be spread out, one set
# of a whole run cannot.
_WIDER = 1.5
_LEAST_STD = {"particle_filter": 0.05, "particle_smoother": 0.01}
_N_GUESSES = 256
# Runs agree if their laws of the number differ, on average over samples, by no more than this
# share of probability, and if their evidences tell the same story within this many nats.
_MAX_TOTAL_VARIATION = 0.2
_MAX_EVIDENCE_STD = 3.0
_MAX_TRUNCATED = 0.05
_LEAST_ESS = 2.0
# States kept of each chain of the smoother whose start is not a draw of its own.
_N_KEPT = 10


class TrackResult(NamedTuple):
    """Everything the runs returned, stacked; log densities in whitened units."""

    places: np.ndarray  # (n_runs, n_draws, n_times, n_slots)
    is_new: np.ndarray
    parameters: np.ndarray  # (n_runs, n_draws, n_parameters)
    log_likelihood: np.ndarray  # (n_runs, n_draws)
    log_evidence: np.ndarray  # (n_runs,)
    trace: dict  # of (n_runs, ...) arrays
    n_dipoles_pmf: np.ndarray | None  # (n_times, n_numbers), of filters
    intensity: np.ndarray | None  # (n_times, n_sources), of filters
    status: Status


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def prepare(model, problem, memory_limit):
    """Build what the samplers work on.

    Parameters
    ----------
    model : DynamicDipoles
    problem : Problem
    memory_limit : float
        Bytes that the table of Gram blocks may take; beyond it blocks are formed when needed.

    Returns
    -------
    Target
        Its reference is the prior.

    Raises
    ------
    ValueError
        If not even the lead field fits in the memory limit, or the model does not fit
        the problem.
    """
    design = orient(problem, model.loose)
    dtype = jax.dtypes.canonicalize_dtype(design.lead_field.dtype)
    rank, n_sources, d = design.lead_field.shape
    least = dtype.itemsize * n_sources * d * (rank + problem.n_groups * problem.n_times)
    if memory_limit < least:
        raise ValueError(
            f"memory_limit is {memory_limit / 2**20:.3g} MiB, but the lead field and its products "
            f"with the data alone take {least / 2**20:.3g} MiB; raise it to at least that."
        )
    table = track_table_bytes(n_sources, d, problem.n_groups, dtype.itemsize)
    prior = track_prior(model, problem, design, dtype)
    gram = build_track_gram(
        design.lead_field,
        problem.data,
        problem.noise_group,
        problem.n_groups,
        tabulate=table <= memory_limit,
    )
    return Target(gram, prior, prior, jnp.asarray(problem.neighbours))


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Run a method independently several times and judge the whole.

    Parameters
    ----------
    method : str
        A key of `OPTIONS`.
    key : PRNG key
    model : DynamicDipoles
    problem : Problem
    options : dict
        Checked.
    progress : bool
    checkpoint : path-like or None
        Stem of the files that let interrupted chains and populations go on. Filters and smoothers
        have none.

    Returns
    -------
    TrackResult

    Raises
    ------
    ValueError
        If the model does not fit the problem, or a particle method gets a checkpoint.
    """
    target = prepare(model, problem, options["memory_limit"])
    if method == "particle_gibbs":
        return _sample_chains(key, target, options, progress, checkpoint)
    if method == "smc":
        return _temper(key, target, options, progress, checkpoint)
    refuse_checkpoint(method, checkpoint)
    key_pilot, key_runs = jax.random.split(key)
    if any(target.prior.is_unknown):
        target = _pilot(key_pilot, target, method, progress)
    act = _smooth if method == "particle_smoother" else _filter
    outcomes = [
        act(
            jax.random.fold_in(key_runs, i),
            target,
            options,
            progress,
            f"{method} run {i + 1}/{options['n_runs']}",
        )
        for i in range(options["n_runs"])
    ]
    draws, log_evidence, traces, laws = zip(*outcomes, strict=True)
    log_evidence = np.array(log_evidence)
    places, is_new, parameters = (np.stack(part) for part in zip(*draws, strict=True))
    is_finite = np.all(np.isfinite(log_evidence))
    share = softmax(log_evidence) if is_finite else np.full(len(outcomes), 1 / len(outcomes))
    pmfs, intensities = (np.stack(part) for part in zip(*laws, strict=True))
    pmf = np.tensordot(share, pmfs, 1)
    is_filter = method == "particle_filter"
    trace = {name: np.stack([t[name] for t in traces]) for name in traces[0]}
    return TrackResult(
        places=places,
        is_new=is_new,
        parameters=parameters,
        log_likelihood=_log_likelihoods(target, parameters, places, is_new),
        log_evidence=log_evidence,
        trace=trace,
        n_dipoles_pmf=pmf if is_filter else None,
        intensity=np.tensordot(share, intensities, 1) if is_filter else None,
        status=_verdict(pmfs, log_evidence, trace["ess"], target),
    )


def _sample_chains(key, target, options, progress, checkpoint):
    """Markov chains of whole trajectories: each chain counts as a run."""
    file = _file(checkpoint, "", key, target, options)
    tracks, trace, status = particle_gibbs.run(
        key,
        target,
        options,
        progress=progress,
        description="particle_gibbs",
        checkpoint=file,
    )
    file.clear()
    places, is_new = _trajectories(tracks, target)
    return TrackResult(
        places=places,
        is_new=is_new,
        parameters=np.asarray(tracks.parameters),
        log_likelihood=np.asarray(tracks.log_likelihood, np.float64),
        log_evidence=np.full(len(places), np.nan),
        trace=trace,
        n_dipoles_pmf=None,
        intensity=None,
        status=status,
    )


def _temper(key, target, options, progress, checkpoint):
    """Populations of whole trajectories, each tempered from the prior by itself."""
    outcomes, files = [], []
    for i in range(options["n_runs"]):
        settings = {k: v for k, v in options.items() if k != "n_runs"}
        files.append(_file(checkpoint, f".run{i}", key, target, settings))
        outcomes.append(
            track_smc.run(
                jax.random.fold_in(key, i),
                target,
                options,
                progress=progress,
                description=f"smc run {i + 1}/{options['n_runs']}",
                checkpoint=files[-1],
            )
        )
    for file in files:
        file.clear()
    draws, log_evidence, traces, statuses = zip(*outcomes, strict=True)
    log_evidence = np.array(log_evidence)
    # Runs may have room for different numbers of tracks: in slots they are of one shape.
    places, is_new = (
        np.concatenate(part)
        for part in zip(
            *[_trajectories(jax.tree.map(lambda x: x[None], d), target) for d in draws], strict=True
        )
    )
    status = next((s for s in statuses if s is not Status.OK), Status.OK)
    if status is Status.OK:
        pmfs = np.stack([_laws(p, target.prior.max_dipoles) for p in places])
        status = _agreement(pmfs, log_evidence, target)
    return TrackResult(
        places=places,
        is_new=is_new,
        parameters=np.stack([d.parameters for d in draws]),
        log_likelihood=np.stack([d.log_likelihood for d in draws]).astype(np.float64),
        log_evidence=log_evidence,
        trace=stack_traces(traces),
        n_dipoles_pmf=None,
        intensity=None,
        status=status,
    )


def _file(checkpoint, suffix, key, target, options):
    """Where an interrupted run is kept; nowhere if `checkpoint` is None."""
    if checkpoint is None:
        return Checkpoint(None, "")
    settings = np.array(str(sorted(options.items())), "S")
    return Checkpoint(f"{checkpoint}{suffix}.npz", fingerprint(key, target, settings))


def _trajectories(tracks, target):
    """Put tracks (n_runs, n_draws, ...) into slots: places and is_new, NumPy."""
    n_times, n_slots = target.gram.n_times, target.prior.max_dipoles
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tracks)
    shape = (*tracks.log_likelihood.shape, n_times, n_slots)
    return tuple(
        np.asarray(part).reshape(shape)
        for part in track_renewal.trajectories(flat, n_times, n_slots)
    )


def _filter(key, target, options, progress, description):
    """One run of the filter: its laws at each sample, and the ancestral lines of its particles."""
    key_run, key_draw = jax.random.split(key)
    module, choices = bootstrap_filter, bootstrap_filter.Options(options["ess_threshold"])
    if options["proposal"] == "survey":
        module = particle_filter
        choices = particle_filter.Options(
            ess_threshold=options["ess_threshold"],
            n_surveyed=options["n_surveyed"],
            n_moves=options["n_moves"],
            n_moved=options["n_moved"],
            longest_life=options["longest_life"],
            n_parameter_moves=options["n_parameter_moves"],
        )
    state, info = module.run(
        key_run,
        target,
        options["n_particles"],
        choices,
        progress=progress,
        description=description,
    )
    draws = _lines(key_draw, state, options["n_draws"], target.gram.n_times)
    laws = (info.n_dipoles_pmf, info.intensity)
    return draws, float(state.log_evidence), _trace(info), laws


def _smooth(key, target, options, progress, description):
    """One run of the smoother, with one set of parameters from the reference law.

    Weighted by prior over reference, runs are an importance sample of the parameters, and the
    mean of their evidences is unbiased. Where backward sampling is given up, trajectories are the
    ancestral lines of the filter with moves and stages. Moves of whole trajectories follow.
    """
    key_draw, key_run, key_filter, key_lines, key_renewal = jax.random.split(key, 5)
    choices = particle_filter.Options(options["ess_threshold"], options["n_surveyed"])
    n_particles, n_draws, n_times = options["n_particles"], options["n_draws"], target.gram.n_times
    prior, reference = target.prior, target.reference
    guesses = reference.sample_parameters(key_draw, _N_GUESSES)
    parameters = guesses[0]
    target = target.fixed(parameters)
    smoothed = particle_smoother.run(
        key_run,
        target,
        parameters,
        n_particles,
        n_draws,
        choices,
        n_tries=options["n_tries"],
        least_ess=_least_backward_ess(n_particles),
        progress=progress,
        description=description,
    )
    # Draws that share ancestors or parameters: fewer of them, moved more often and kept more than
    # once, tell more at the same cost.
    is_alike = smoothed is None or any(prior.is_unknown)
    n_kept = _N_KEPT if is_alike and options["n_renewal_moves"] and n_draws % _N_KEPT == 0 else 1
    renewal = np.full(n_times, np.nan)
    if smoothed is None:
        state, info = particle_filter.run(
            key_filter,
            target,
            n_particles,
            choices,
            progress=progress,
            description=f"{description}, with moves",
        )
        places, is_new, parameters = _lines(key_lines, state, n_draws // n_kept, n_times)
    else:
        places, is_new, state, info, renewal[:-1] = smoothed
        places, is_new = places[::n_kept], is_new[::n_kept]
        parameters = np.broadcast_to(np.asarray(parameters), (len(places), len(parameters)))
    trace = _trace(info) | {"renewal": renewal, "renewal_acceptance": np.nan}
    if options["n_renewal_moves"]:
        places, is_new, parameters, _, trace["renewal_acceptance"] = track_renewal.run(
            key_renewal,
            target,
            places,
            is_new,
            parameters,
            np.std(np.asarray(guesses), axis=0) / _WIDER,
            n_kept * options["n_renewal_moves"],
            n_kept=n_kept,
            progress=progress,
            description=f"{description}, moves",
        )
    laws = _laws(places, prior.max_dipoles)
    # With fixed parameters the filter's evidence holds their prior density.
    log_evidence = float(state.log_evidence - reference.log_density_of_parameters(guesses[0]))
    return (places, is_new, parameters), log_evidence, trace, (laws, np.zeros(0))


def _least_backward_ess(n_particles):
    """Effective particles below which there is too little to sample backward from."""
    return min(10.0, 0.02 * n_particles)


def _lines(key, state, n_draws, n_times):
    """Draw particles at the end, with all their past: places, is_new, parameters."""
    chosen = np.asarray(systematic(key, state.log_weights, n_draws))
    lines = state.particles
    return (
        np.asarray(lines.past_places)[chosen, :n_times],
        np.asarray(lines.past_new)[chosen, :n_times],
        np.asarray(lines.parameters)[chosen],
    )


def _pilot(key, target, method, progress):
    """Narrow the law of the first parameters to where short chains find them."""
    prior = target.prior
    draws, _, _ = particle_gibbs.run(
        key,
        target,
        _PILOT,
        progress=progress,
        description="unknown parameters",
        checkpoint=Checkpoint(None, ""),
    )
    values = np.asarray(draws.parameters, np.float64).reshape(-1, len(prior.is_unknown))
    mean = values.mean(axis=0)
    std = np.maximum(_WIDER * values.std(axis=0), _LEAST_STD[method])
    n_scales = len(prior.scales)
    scales = map(pin_scale, prior.scales, mean[:n_scales], std[:n_scales])
    chances = map(pin_probability, prior.probabilities, mean[n_scales:], std[n_scales:])
    reference = dataclasses.replace(prior, scales=tuple(scales), probabilities=tuple(chances))
    return dataclasses.replace(target, reference=reference)


def _trace(info):
    """What a filter tells of itself: (n_times,) arrays."""
    n_ancestors = np.empty(len(info.ess))
    line = np.arange(info.ancestors.shape[1])
    for t in range(len(n_ancestors) - 1, -1, -1):
        line = info.ancestors[t][line]
        n_ancestors[t] = len(np.unique(line))
    return {
        "ess": np.asarray(info.ess, np.float64),
        "n_ancestors": n_ancestors,
        "log_evidence_increment": np.asarray(info.log_evidence_increment, np.float64),
        "acceptance": np.asarray(info.acceptance, np.float64),
        "n_stages": np.asarray(info.n_stages, np.float64),
    }


def _laws(places, max_dipoles):
    """Share of trajectories with each number of dipoles, at each sample."""
    numbers = np.sum(places >= 0, axis=2)
    return np.stack([np.mean(numbers == k, axis=0) for k in range(max_dipoles + 1)], axis=1)


@jax.jit
def _log_likelihood(gram, prior, parameters, places, is_new):
    return jax.lax.map(
        lambda draw: track_likelihood.log_likelihood(gram, prior, *draw),
        (parameters, places, is_new),
        batch_size=64,
    )


def _log_likelihoods(target, parameters, places, is_new):
    shape = places.shape[:2]
    flat = [part.reshape(-1, *part.shape[2:]) for part in (parameters, places, is_new)]
    values = _log_likelihood(target.gram, target.prior, *flat)
    return np.asarray(values, np.float64).reshape(shape)


def _verdict(pmfs, log_evidence, ess, target):
    if not np.all(np.isfinite(log_evidence)):
        return Status.NOT_FINITE
    if np.mean(ess.min(axis=1) < _LEAST_ESS) > 0.5:
        return Status.PARTICLES_COLLAPSED
    return _agreement(pmfs, log_evidence, target)


def _agreement(pmfs, log_evidence, target):
    """Whether runs tell the same story, and whether max_dipoles leaves it room."""
    pooled = pmfs.mean(axis=0)
    distance = 0.5 * np.abs(pmfs - pooled).sum(axis=2).mean(axis=1).max()
    spread = np.std(log_evidence, ddof=1) if len(log_evidence) > 1 else 0.0
    if distance > _MAX_TOTAL_VARIATION or spread > _MAX_EVIDENCE_STD:
        return Status.RUNS_DISAGREE
    is_truncated = target.prior.max_dipoles > 1 and pooled[:, -1].max() > _MAX_TRUNCATED
    return Status.TOO_MANY_DIPOLES if is_truncated else Status.OK
