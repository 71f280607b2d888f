"""From a model and a problem to draws: set-up, independent runs, and the verdict on them.

What all methods for static dipoles share: the Gram blocks, the prior and its reference, the
options, the repeats with keys of their own, and the status of the whole.
"""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_count, check_fraction, check_positive
from ..core.drive import Checkpoint, fingerprint
from ..core.status import Status
from ..models.dipole_gram import build_gram, table_bytes
from ..models.orientation import orient
from ..models.static_dipoles import dipole_prior, reference_prior
from . import pursuit
from .dipole_target import Dipoles, Target
from .options import fill_options
from .tempering import stack_traces

__all__ = ["OPTIONS", "Result", "check_options", "prepare", "repeat", "run", "solve"]

# Options of every method: default, check. `memory_limit` is in bytes.
_COUNT, _FRACTION = check_count, check_fraction
_SHARED = {
    "n_runs": (4, _COUNT),
    "memory_limit": (4 * 2**30, check_positive),
    "n_candidates": (None, lambda name, value: check_count(name, value, minimum=0)),
    "n_surveyed": (10, _COUNT),
}
OPTIONS = {
    "smc": _SHARED
    | {
        "n_particles": (1000, _COUNT),
        "ess_threshold": (0.5, _FRACTION),
        "cess_target": (0.95, _FRACTION),
        "n_sweeps": (1, _COUNT),
        "max_sweeps": (4, _COUNT),
        "n_final_sweeps": (5, _COUNT),
        "max_steps": (1000, _COUNT),
    },
    "reversible_jump": _SHARED
    | {
        "n_particles": (200, _COUNT),
        "n_chains": (16, _COUNT),
        "n_samples": (1000, _COUNT),
        "n_burn_in": (100, _COUNT),
    },
    "enumerate": {
        "memory_limit": (4 * 2**30, check_positive),
        "n_draws": (1000, _COUNT),
        "max_sets": (2_000_000, _COUNT),
    },
}

# Up to this many places the exact conditional over the whole grid costs less than a survey.
_SMALL_GRID = 128
_N_CANDIDATES = 8

# Runs agree if none puts more than this share of probability on other numbers of dipoles than
# all together, and if their evidences tell the same story within this many nats.
_MAX_TOTAL_VARIATION = 0.2
_MAX_EVIDENCE_STD = 3.0
_MAX_TRUNCATED = 0.05


class Result(NamedTuple):
    """Everything the runs returned, stacked; log densities in whitened units."""

    draws: Dipoles  # (n_runs, n_draws, ...)
    log_evidence: np.ndarray  # (n_runs,)
    trace: dict  # of (n_runs, ...) arrays
    status: Status
    exact: object  # the result of `enumerate`, or None


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Run a method by its name. Arguments as in `repeat`; returns a Result."""
    module = importlib.import_module(f".{method}", __package__)
    act = solve if method == "enumerate" else repeat
    return act(module, key, model, problem, options, progress=progress, checkpoint=checkpoint)


def prepare(model, problem, memory_limit, n_candidates=None):
    """Build what the samplers work on.

    Parameters
    ----------
    model : StaticDipoles
    problem : Problem
    memory_limit : float
        Bytes that the table of Gram blocks may take; beyond it blocks are formed when needed.
    n_candidates : int, optional
        See `dipole_moves.Proposal`; by default chosen by the size of the grid.

    Returns
    -------
    Target, neighbours, n_candidates

    Raises
    ------
    ValueError
        If not even the lead field fits in the memory limit, or the model does not fit
        the problem.
    """
    design = orient(problem, model.loose)
    itemsize = jax.dtypes.canonicalize_dtype(design.lead_field.dtype).itemsize
    rank, n_sources, d = design.lead_field.shape
    least = itemsize * n_sources * d * (rank + problem.n_groups * min(rank, problem.n_times))
    if memory_limit < least:
        raise ValueError(
            f"memory_limit is {memory_limit / 2**20:.3g} MiB, but the lead field and its products "
            f"with the data alone take {least / 2**20:.3g} MiB; raise it to at least that."
        )
    table = table_bytes(n_sources, d, problem.n_groups, itemsize)
    prior = dipole_prior(model, problem, design, jax.dtypes.canonicalize_dtype(np.float64))
    noise_std = pursuit.run(
        design.lead_field, problem.data, problem.noise_group, problem.n_groups, model.max_dipoles
    ).noise_std
    reference = reference_prior(prior, np.log(np.maximum(noise_std, 1e-12)))
    gram = build_gram(
        design.lead_field,
        problem.data,
        problem.noise_group,
        problem.n_groups,
        tabulate=table <= memory_limit,
    )
    dtype = gram.own_blocks.dtype
    prior, reference = jax.tree.map(
        lambda x: x.astype(dtype) if hasattr(x, "astype") else x, (prior, reference)
    )
    if n_candidates is None:
        n_candidates = 0 if n_sources <= _SMALL_GRID else _N_CANDIDATES
    return Target(gram, prior, reference), jnp.asarray(problem.neighbours), n_candidates


def repeat(module, key, model, problem, options, *, progress, checkpoint):
    """Run a method independently several times and judge the whole.

    Parameters
    ----------
    module : module
        `smc` or `reversible_jump`.
    key : PRNG key
    model, problem
    options : dict
        Checked.
    progress : bool
    checkpoint : path-like or None
        Stem of the files that make an interrupted run resume where it stopped.

    Returns
    -------
    Result
    """
    target, neighbours, n_candidates = prepare(
        model, problem, options["memory_limit"], options["n_candidates"]
    )
    options = {**options, "n_candidates": n_candidates}
    n_runs = options["n_runs"]
    name = module.__name__.rpartition(".")[2]
    identity = None
    if checkpoint is not None:
        settings = sorted((k, v) for k, v in options.items() if k != "n_runs")
        prior = target.prior
        # NumPyro orders the parameters of a law differently in each process: draws name it.
        scales = [np.asarray(scale.sample(jax.random.key(0), 16)) for scale in prior.scales]
        places = (prior.log_number, prior.log_place)
        text = np.array(str((name, model.loose, settings)), "S")
        identity = fingerprint(key, problem, places, scales, text)
    outcomes, files = [], []
    for run in range(n_runs):
        path = None if checkpoint is None else f"{checkpoint}.run{run}.npz"
        file = Checkpoint(path, f"{identity} run {run}")
        outcomes.append(
            module.run(
                jax.random.fold_in(key, run),
                target,
                neighbours,
                options,
                progress=progress,
                description=f"{name} run {run + 1}/{n_runs}",
                checkpoint=file,
            )
        )
        files.append(file)
    for file in files:
        file.clear()
    draws, log_evidence, traces, statuses = zip(*outcomes, strict=True)
    draws = jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
    log_evidence = np.array(log_evidence)
    status = next((s for s in statuses if s is not Status.OK), Status.OK)
    if status is Status.OK:
        status = _verdict(draws, log_evidence, model.max_dipoles)
    return Result(draws, log_evidence, stack_traces(traces), status, None)


def solve(module, key, model, problem, options, *, progress, checkpoint):
    """Run the exact method: one run, nothing to judge. Arguments as in `repeat`."""
    del checkpoint  # it has nothing to resume
    target, _, _ = prepare(model, problem, options["memory_limit"])
    exact = module.run(key, target, options, progress=progress, description="enumerate")
    draws = jax.tree.map(lambda leaf: np.asarray(leaf)[None], exact.draws)
    trace = stack_traces([exact.trace])
    status = exact.status
    if status is Status.OK:
        status = _truncation(exact.n_dipoles_pmf)
    return Result(draws, np.array([exact.log_evidence]), trace, status, exact)


def _verdict(draws, log_evidence, max_dipoles):
    numbers = draws.active.sum(axis=2)
    pmfs = np.array([np.bincount(row, minlength=max_dipoles + 1) for row in numbers])
    pmfs = pmfs / numbers.shape[1]
    pooled = pmfs.mean(axis=0)
    distance = 0.5 * np.abs(pmfs - pooled).sum(axis=1).max()
    spread = np.std(log_evidence, ddof=1) if len(log_evidence) > 1 else 0.0
    if distance > _MAX_TOTAL_VARIATION or spread > _MAX_EVIDENCE_STD:
        return Status.RUNS_DISAGREE
    return _truncation(pooled)


def _truncation(n_dipoles_pmf):
    """Whether the largest allowed number is too probable; one at most is a question, no bound."""
    is_hit = len(n_dipoles_pmf) > 2 and n_dipoles_pmf[-1] > _MAX_TRUNCATED
    return Status.TOO_MANY_DIPOLES if is_hit else Status.OK
