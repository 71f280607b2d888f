"""From `CoupledSources` and a problem to moments and evidence: what its methods share.

`kalman_smoother` and `kalman_filter` are exact (`coupled_kalman`), `em` first fits the
process variances (`em`), `block_diagonal` is a published approximation kept for comparison.
"""

from typing import NamedTuple

import jax
import numpy as np

from ..core.checks import check_choice, check_count, check_positive
from ..core.drive import progress_bar
from ..core.status import Status
from ..models.coupled import coupled_system
from . import block_diagonal, coupled_kalman, em
from .options import fill_options, refuse_checkpoint

__all__ = ["OPTIONS", "CoupledResult", "check_options", "run"]

# Riccati residuals above this say that the gains are not those of the model.
_TOLERANCE = 1e-6


def _check_parts(name, value):
    for part in value:
        check_choice(name, part, ("process", "scale", "noise"))
    return tuple(value)


_MEMORY = {"memory_limit": (6 * 2**30, check_positive)}
_SMOOTH = _MEMORY | {
    # With the data 15 series at once: matrix products of 17 columns take twice the time of 16.
    "n_draws": (14, lambda name, value: check_count(name, value, minimum=4)),
}
OPTIONS = {
    "kalman_smoother": _SMOOTH,
    "kalman_filter": _MEMORY,
    "em": _SMOOTH
    | {
        "update": (("process",), _check_parts),
        "prior_shape": (None, check_positive),
        "prior_scale": (None, check_positive),
        "max_steps": (50, check_count),
        "tol": (1e-5, check_positive),
    },
    "block_diagonal": {},
}


class CoupledResult(NamedTuple):
    """What a method for coupled sources returns."""

    moments: coupled_kalman.CoupledMoments  # in `moment_unit`
    hyper: dict  # noise_std (n_groups,); of `em` also process_cov in (A·m)^2
    trace: np.ndarray  # log posterior at each step of `em`, else empty
    log_evidence: float  # in the units of the data
    status: Status


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Compute the posterior of coupled sources.

    Parameters
    ----------
    method : str
        A key of `OPTIONS`.
    key : PRNG key
    model : CoupledSources
    problem : Problem
    options : dict
        Checked.
    progress : bool
    checkpoint : None
        These methods have nothing to resume.

    Returns
    -------
    CoupledResult

    Raises
    ------
    ValueError
        If the model does not fit the problem.
    """
    refuse_checkpoint(method, checkpoint)
    system = coupled_system(model, problem)
    data = np.asarray(problem.data)
    key_fit, key_smooth = jax.random.split(key)
    status, trace, fitted = Status.OK, np.zeros(0), {}
    with progress_bar(progress, method) as update:
        if method == "em":
            system, trace, fitted, status = _fit(key_fit, data, problem, system, options, update)
        if method == "block_diagonal":
            found = block_diagonal.run(data, *system, n_orient=problem.n_orient)
            zeros = np.zeros_like(found.std)
            moments = coupled_kalman.CoupledMoments(
                found.mean, found.std, zeros, found.log_likelihood, problem.n_times, np.nan
            )
            status = Status.APPROXIMATE
        else:
            start = 0.5 if method == "em" else 0.0
            moments = coupled_kalman.run(
                data,
                *system,
                smooth=method != "kalman_filter",
                n_draws=options.get("n_draws", 0),
                key=key_smooth,
                memory_limit=options["memory_limit"],
                progress=lambda done: update(start + (1 - start) * done),
            )
            if not moments.dare_residual < _TOLERANCE and moments.n_transient < problem.n_times - 1:
                status = Status.NOT_CONVERGED
    if not np.isfinite(moments.log_likelihood):
        status = Status.NOT_FINITE
    noise_std = np.full(problem.n_groups, np.sqrt(system.noise_var))
    log_evidence = float(moments.log_likelihood) + problem.log_jacobian
    return CoupledResult(moments, {"noise_std": noise_std, **fitted}, trace, log_evidence, status)


def _fit(key, data, problem, system, options, update):
    """Hyper-parameters by EM; the system that they make."""
    unit = problem.moment_unit**2
    scale = options["prior_scale"]
    found = em.run(
        data,
        *system,
        update=options["update"],
        groups=np.repeat(np.arange(problem.n_sources), problem.n_orient),
        prior_shape=options["prior_shape"],
        prior_scale=None if scale is None else scale / unit,
        n_draws=options["n_draws"],
        key=key,
        max_steps=options["max_steps"],
        tol=options["tol"],
        memory_limit=options["memory_limit"],
        progress=lambda done: update(0.5 * done),
    )
    system = system._replace(process_cov=found.process_cov, noise_var=found.noise_var)
    status = Status.OK if found.is_converged else Status.NOT_CONVERGED
    fitted = {"process_cov": found.process_cov * unit}
    return system, np.asarray(found.log_posterior), fitted, status
