"""From a Gaussian source model and a problem to moments and evidence: what its methods share.

`closed_form`, `kalman_smoother` and `kalman_filter` are one computation: the hyper-parameters of
largest evidence (or by another criterion), then the moments of independent scalar channels. `nuts`
draws the hyper-parameters, and mixes the moments over some draws.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from ..core.checks import check_choice, check_count
from ..core.drive import progress_bar
from ..core.status import Status
from ..models.source_likelihood import prepare
from . import evidence, nuts, regularisation, separable
from .options import fill_options, refuse_checkpoint

__all__ = ["OPTIONS", "SourceResult", "check_options", "run"]

CRITERIA = ("evidence", "gcv", "l_curve")
# Evidences tell the same story within this many nats.
_MOST_ERROR = 3.0
# Slope at the optimum, in nats for each posterior deviation.
_MOST_GRADIENT = 0.1


def _check_criterion(name, value):
    return check_choice(name, value, CRITERIA)


def _check_missing(name, value):
    value = np.asarray(value)
    if value.dtype != bool:
        raise ValueError(f"{name} must be a boolean array, True where a sample is missing.")
    return value


_FIXED = {
    "closed_form": {"regularisation": ("evidence", _check_criterion)},
    "kalman_smoother": {"missing": (None, _check_missing)},
    "kalman_filter": {"missing": (None, _check_missing)},
}
OPTIONS = _FIXED | {
    "nuts": {
        "n_chains": (4, check_count),
        "n_warmup": (500, check_count),
        "n_samples": (1000, check_count),
        "n_components": (50, check_count),
    },
}


class SourceResult(NamedTuple):
    """What a method for Gaussian sources returns; evidence in the units of the data."""

    moments: separable.SeparableMoments
    hyper: dict  # name -> value, at the optimum or the mean of the draws
    hyper_std: dict  # name -> posterior standard deviation; of scales, relative
    draws: dict  # name -> (n_chains, n_samples, ...), of nuts
    sample_stats: dict  # name -> (n_chains, n_samples), of nuts
    log_evidence: float
    log_evidence_std: float
    curve: object  # RegularisationCurve or None
    observed: np.ndarray  # (n_times,) bool
    status: Status


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Compute the posterior of distributed sources.

    Parameters
    ----------
    method : str
        A key of `OPTIONS`.
    key : PRNG key
    model : GaussianSources or AutoregressiveSources
    problem : Problem
    options : dict
        Checked.
    progress : bool
    checkpoint : None
        These methods have nothing to resume.

    Returns
    -------
    SourceResult

    Raises
    ------
    ValueError
        If the model does not fit the problem.
    """
    refuse_checkpoint(method, checkpoint)
    observed = _observed(options.get("missing"), problem)
    seen = observed if observed.ndim == 1 else observed.all(axis=0)
    prior, typical, hyper, likelihood = prepare(model, problem, seen)
    if method == "nuts":
        return _mix(key, model, problem, prior, hyper, likelihood, options, progress)
    curve = _curve(hyper, likelihood, options.get("regularisation"))
    criterion = options.get("regularisation", "evidence")
    if criterion != "evidence":
        hyper = _at(hyper, problem, typical, curve)
    with progress_bar(progress, method) as update:
        optimum = _optimum(likelihood, hyper, key, observed)
        update(0.5)
        moments = separable.condition(
            model,
            problem,
            prior,
            [optimum.hyper],
            is_filter=method == "kalman_filter",
            observed=observed,
        )
        update(1.0)
    status = Status.NO_CORNER if criterion == "l_curve" and not _has_corner(curve) else None
    log_evidence = moments.log_density
    if log_evidence is None:
        log_evidence = optimum.log_evidence + problem.log_jacobian * observed.mean()
    return SourceResult(
        moments,
        optimum.hyper,
        optimum.std,
        {},
        {},
        log_evidence,
        optimum.log_evidence_std,
        curve,
        observed,
        status or _verdict(log_evidence, optimum, moments),
    )


def _observed(missing, problem):
    """Mask of what is there: (n_times,), or (n_channels, n_times) if channels differ."""
    if missing is None:
        return np.ones(problem.n_times, bool)
    shapes = ((problem.n_times,), (problem.n_channels, problem.n_times))
    if missing.shape not in shapes:
        raise ValueError(
            f"missing must have shape {shapes[0]}, one for each sample, or {shapes[1]}, one for "
            f"each channel and sample; got {missing.shape}."
        )
    if missing.all():
        raise ValueError("missing marks every sample: there is nothing to learn from.")
    is_uniform = missing.ndim == 2 and np.all(missing == missing[:1])
    return ~missing[0] if is_uniform else ~missing


def _optimum(likelihood, hyper, key, observed):
    """Hyper-parameters and evidence; channels that come and go take known hyper-parameters."""
    if observed.ndim == 2:
        if hyper.unknown:
            raise ValueError(
                f"missing channels need known {', '.join(hyper.unknown)}: infer with missing "
                "marking all samples that lack a channel, and give what that finds."
            )
        return evidence.Optimum(hyper.known, {}, np.nan, np.nan, 0.0, (), 0.0)
    return evidence.maximise(likelihood, hyper, key)


def _verdict(log_evidence, optimum, moments):
    if not np.isfinite(log_evidence) or not np.all(np.isfinite(moments.mean)):
        return Status.NOT_FINITE
    if optimum.gradient > _MOST_GRADIENT:
        return Status.NOT_CONVERGED
    if {"source_std", "noise_std"} & set(optimum.at_bound):
        return Status.SCALE_AT_BOUND
    if optimum.log_evidence_std > _MOST_ERROR:
        return Status.EVIDENCE_UNCERTAIN
    return Status.OK


def _scaled_spectrum(hyper, likelihood):
    """Eigenvalues of G R G' in MNE's scaling (trace = rank) and coordinates, at unit noise."""
    level = hyper.known["noise_std"][0]
    eigenvalues = np.asarray(likelihood.eigenvalues, np.float64)
    z = np.asarray(likelihood.data, np.float64) / level
    return eigenvalues * (eigenvalues.size / eigenvalues.sum()), z


def _curve(hyper, likelihood, criterion):
    """The regularisation curve where there is one scale to choose, and nothing else."""
    is_possible = (
        criterion is not None
        and set(hyper.unknown) == {"source_std"}
        and likelihood.family is None
        and likelihood.kernel == "static"
    )
    if not is_possible:
        if criterion in ("gcv", "l_curve"):
            raise ValueError(
                f"regularisation={criterion!r} chooses the source scale alone: leave source_std "
                "and lambda2 at None, and give noise_std, depth and smoothness as numbers."
            )
        return None
    eigenvalues, z = _scaled_spectrum(hyper, likelihood)
    return getattr(regularisation, criterion)(eigenvalues, z)


def _has_corner(curve):
    """Whether an L-curve bends the right way somewhere within its grid."""
    at = int(np.argmax(curve.criterion))
    return curve.criterion[at] > 0 and 0 < at < len(curve.criterion) - 1


def _at(hyper, problem, gram, curve):
    """Hyper-parameters with the source scale that a curve chose."""
    level = hyper.known["noise_std"][0]
    rank = len(gram)
    scale = problem.moment_unit * level * np.sqrt(rank / np.trace(gram) / curve.best)
    known = hyper.known | {"source_std": np.asarray(scale)}
    return dataclasses.replace(hyper, known=known, unknown={})


def _mix(key, model, problem, prior, hyper, likelihood, options, progress):
    """Moments mixed over posterior draws of the hyper-parameters."""
    if not hyper.unknown:
        raise ValueError(
            "method 'nuts' draws unknown scales, but this model has none; use its first method, or "
            "leave source_std, noise_std, depth, smoothness or the law in time at None."
        )
    key_search, key_draw = jax.random.split(key)
    optimum = evidence.maximise(likelihood, hyper, key_search)
    drawn = nuts.run(
        key_draw,
        likelihood,
        hyper,
        optimum,
        n_chains=options["n_chains"],
        n_warmup=options["n_warmup"],
        n_samples=options["n_samples"],
        progress=progress,
    )
    pooled = {k: v.reshape(-1, *v.shape[2:]) for k, v in drawn.draws.items()}
    total = options["n_chains"] * options["n_samples"]
    chosen = np.linspace(0, total - 1, min(options["n_components"], total)).astype(int)
    thetas = [hyper.known | {k: v[i] for k, v in pooled.items()} for i in chosen]
    moments = separable.condition(model, problem, prior, thetas)
    status = (
        drawn.status
        if drawn.status is not Status.OK
        else _verdict(optimum.log_evidence, optimum, moments)
    )
    means = {k: v.mean(axis=0) for k, v in pooled.items()}
    return SourceResult(
        moments,
        hyper.known | means,
        {k: v.std(axis=0) for k, v in pooled.items()},
        drawn.draws,
        drawn.sample_stats,
        optimum.log_evidence + problem.log_jacobian,
        optimum.log_evidence_std,
        None,
        np.ones(problem.n_times, bool),
        status,
    )
