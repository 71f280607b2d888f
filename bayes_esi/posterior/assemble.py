"""From what a method returned to the posterior a user holds: units, evidence constants, status."""

import numpy as np

from ..inference.coupled_inference import CoupledResult
from ..inference.dipole_inference import Result
from ..inference.sparse_moments import SparseResult
from ..inference.track_inference import TrackResult
from .dipoles import DipoleDraws, DipolePosterior
from .sources import SourcePosterior
from .sparse import SparsePosterior
from .tracks import TrackDraws, TrackPosterior

__all__ = ["assemble"]


def assemble(model, problem, method, result):
    """Build the posterior of a result.

    Parameters
    ----------
    model, problem
    method : str
    result : Result, TrackResult, SourceResult, CoupledResult or SparseResult

    Returns
    -------
    DipolePosterior, TrackPosterior, SourcePosterior or SparsePosterior
    """
    if isinstance(result, Result):
        return _dipoles(model, problem, method, result)
    if isinstance(result, TrackResult):
        return _tracks(model, problem, method, result)
    if isinstance(result, SparseResult):
        own = {"draws": result.draws, "sample_stats": result.trace}
        own["certificate"] = result.certificate
        return _sources(SparsePosterior, model, problem, method, result, own)
    if isinstance(result, CoupledResult):
        own = {"sample_stats": {"log_posterior": result.trace} if result.trace.size else {}}
        return _sources(SourcePosterior, model, problem, method, result, own)
    names = ("hyper_std", "draws", "sample_stats", "log_evidence_std", "curve", "observed")
    own = {name: getattr(result, name) for name in names}
    return _sources(SourcePosterior, model, problem, method, result, own)


def _sources(kind, model, problem, method, result, own):
    """A posterior of `kind` with what is its own; hyper-parameters were known and all was seen."""
    shared = {
        "hyper_std": {},
        "draws": {},
        "log_evidence_std": 0.0,
        "curve": None,
        "observed": np.ones(problem.n_times, bool),
    }
    return kind(
        problem=problem,
        model=model,
        method=method,
        moments=result.moments,
        hyper=result.hyper,
        log_evidence=result.log_evidence,
        status=result.status,
        **shared | own,
    )


def _dipoles(model, problem, method, result):
    scales = np.exp(np.asarray(result.draws.log_scales, np.float64))
    exact = {}
    if result.exact is not None:
        exact = {
            "n_dipoles_pmf": np.asarray(result.exact.n_dipoles_pmf),
            "intensity": np.asarray(result.exact.intensity),
        }
    draws = DipoleDraws(
        places=np.asarray(result.draws.places),
        active=np.asarray(result.draws.active),
        moment_std=scales[..., 0] * problem.moment_unit,
        noise_std=scales[..., 1:],
        log_likelihood=np.asarray(result.draws.log_likelihood, np.float64) + problem.log_jacobian,
        log_evidence=np.asarray(result.log_evidence, np.float64) + problem.log_jacobian,
        trace=result.trace,
        **exact,
    )
    return DipolePosterior(problem, model, method, draws, result.status)


def _tracks(model, problem, method, result):
    parameters = np.asarray(result.parameters, np.float64)
    scales, odds = np.exp(parameters[..., :-2]), np.exp(-parameters[..., -2:])
    draws = TrackDraws(
        places=result.places,
        is_new=result.is_new,
        moment_std=scales[..., 0] * problem.moment_unit,
        noise_std=scales[..., 1:],
        birth_prob=1 / (1 + odds[..., 0]),
        death_prob=1 / (1 + odds[..., 1]),
        log_likelihood=result.log_likelihood + problem.log_jacobian,
        log_evidence=result.log_evidence + problem.log_jacobian,
        trace=result.trace,
        n_dipoles_pmf=result.n_dipoles_pmf,
        intensity=result.intensity,
    )
    return TrackPosterior(problem, model, method, draws, result.status)
