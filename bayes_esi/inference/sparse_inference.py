"""From group-sparse sources and a problem to an estimate and its Gaussian: all methods.

The estimate of a mixed norm is the mean of the Gaussian with g_j = |X_j| / (alpha w_j): its penalty
touches the quadratic one of that Gaussian there (`sparse_moments`). So is that of a reweighted
norm, with its last weights, and of minimum current at each sample; of a time-frequency norm the
same variances are used, and the estimate is its own.

What the Gaussian leaves out is the uncertainty of the variances: which sources are active. `gibbs`
and `nuts` draw the variances of the group-Laplace law (`scale_mixture`, `variance_chains`), and mix
Gaussians over some.

Reference: Bach, Jenatton, Mairal, Obozinski 2012, doi:10.1561/2200000015 (quadratic forms of
norms).
"""

import dataclasses

import numpy as np

from ..core.checks import check_count, check_fraction, check_positive
from ..core.drive import progress_bar
from ..core.status import Status
from ..models.group_sparse import penalty_weights
from ..models.orientation import orient
from . import (
    irmxne,
    loud_sources,
    minimum_current,
    mixed_norm,
    scale_mixture,
    sparse_choice,
    tf_mxne,
    time_frequency,
)
from .noise_level import at_unit_noise
from .options import chain_options, fill_options, refuse_checkpoint
from .sparse_moments import SparseMoments, SparseResult, check_flag

__all__ = ["OPTIONS", "check_options", "run"]


def _check_ratio(name, value):
    return 0.0 if value == 0 else check_fraction(name, value)


_NORM = {
    "debias": (True, check_flag),
    "tol": (1e-6, check_positive),
    "max_steps": (100, check_count),
}
OPTIONS = {
    "mixed_norm": _NORM,
    "irmxne": _NORM | {"max_reweightings": (30, check_count)},
    "minimum_current": _NORM,
    "tf_mxne": _NORM
    | {
        "l1_ratio": (0.05, _check_ratio),
        "window": (64, check_count),
        "step": (4, check_count),
        "max_sweeps": (2000, check_count),
    },
    "gibbs": chain_options(n_warmup=200, n_samples=500, n_components=50)
    | {"tol": (1e-6, check_positive)},
    "nuts": chain_options(n_warmup=500, n_samples=500, n_components=50)
    | {"tol": (1e-6, check_positive)},
}


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Find the estimate of sparse sources.

    Parameters
    ----------
    method : str
        A key of `OPTIONS`.
    key : PRNG key
        Of `gibbs` and `nuts`; the other methods draw nothing.
    model : GroupSparseSources
    problem : Problem
    options : dict
        Checked.
    progress : bool
    checkpoint : path-like, optional
        Of `gibbs`; the other methods have nothing to resume.

    Returns
    -------
    SparseResult

    Raises
    ------
    ValueError
        If the model does not fit the problem or the method.
    """
    if method != "gibbs":
        refuse_checkpoint(method, checkpoint)
    unit = at_unit_noise(model, problem, orient(problem, model.loose).lead_field)
    scaled, field = dataclasses.replace(problem, data=unit.data), unit.field
    with progress_bar(progress, method) as update:
        if method == "gibbs":
            result = _gibbs(key, model, scaled, field, options, checkpoint, update)
        elif method == "nuts":
            result = _nuts(key, model, scaled, field, options, update)
        else:
            result = _norm(method, model, scaled, field, options)
        update(1.0)
    moments = result.moments
    status = unit.status if result.status is Status.OK else result.status
    is_finite = np.all(np.isfinite(moments.source_var))
    return result._replace(
        moments=moments._replace(noise_var=np.tile(unit.rows**2, (len(moments.source_var), 1))),
        hyper=result.hyper | {"noise_std": unit.levels},
        log_evidence=result.log_evidence - problem.n_times * np.sum(np.log(unit.rows)),
        status=status if is_finite else Status.NOT_FINITE,
    )


# ------------------------------------------------------------------------ norms


def _norm(method, model, problem, field, options):
    weights = penalty_weights(model, problem)
    alpha, share, trace, is_at_end = _alpha(method, model, problem, field, weights, options)
    solve = {
        "mixed_norm": _mixed_norm,
        "irmxne": _irmxne,
        "minimum_current": _minimum_current,
        "tf_mxne": _tf_mxne,
    }[method]
    found, variances, objective = solve(problem, field, alpha, weights, options)
    sources = np.asarray(found.sources, np.float64)
    if options["debias"]:
        sources = mixed_norm.debias(problem.data, field, found.support, sources)
    moments = SparseMoments(
        np.asarray(found.support),
        sources,
        _spread(variances, found.support, problem.n_sources)[None],
        None,
        0.0,
    )
    log_evidence = np.nan
    if method != "minimum_current":
        log_evidence = _support_evidence(problem, field, found.support) + problem.log_jacobian
    status = Status.SCALE_AT_BOUND if is_at_end else Status.OK
    if not np.all(found.is_converged):
        status = Status.NOT_CONVERGED
    return SparseResult(
        moments,
        {"alpha": np.asarray(share, float)},
        {},
        trace | {"objective": np.atleast_1d(objective)},
        {"gap": float(np.max(found.gap)), "limit": options["tol"]},
        log_evidence,
        status,
    )


def _alpha(method, model, problem, field, weights, options):
    """Strength of the penalty, its share, how it was chosen, and whether less was not to be had."""
    if not isinstance(model.alpha, str):
        largest = _alpha_max(method, problem, field, weights, options)
        return model.alpha * largest, model.alpha, {}, False
    if method not in ("mixed_norm", "irmxne", "gibbs", "nuts"):
        raise ValueError(
            f"alpha={model.alpha!r} is chosen for the mixed norm, whose alpha means another "
            f"strength to {method}; give a fraction, such as alpha=0.3."
        )
    choose = getattr(sparse_choice, model.alpha)
    parts = [choose(problem.data, field, None, weights, tol=options["tol"])]
    alphas = parts[0].alpha
    # Once more as far down where the best is at the end.
    if parts[0].best == alphas[-1]:
        further = alphas[-1] * alphas[1:] / alphas[0]
        parts.append(choose(problem.data, field, further, weights, tol=options["tol"]))
    trace = {
        "alphas": np.concatenate([part.alpha for part in parts]),
        "criterion": np.concatenate([part.criterion for part in parts]),
        "n_active": np.concatenate([part.n_active for part in parts]),
    }
    at = int(np.argmin(trace["criterion"]))
    alpha = float(trace["alphas"][at])
    return alpha, alpha / alphas[0], trace, at == len(trace["alphas"]) - 1


def _alpha_max(method, problem, field, weights, options):
    if method == "minimum_current":
        return minimum_current.alpha_max(problem.data, field, weights).max()
    if method == "tf_mxne":
        frame = time_frequency.waves(problem.n_times, options["window"], options["step"])
        return tf_mxne.alpha_max(
            problem.data, field, weights, l1_ratio=options["l1_ratio"], frame=frame
        )
    return mixed_norm.alpha_max(problem.data, field, weights)


def _mixed_norm(problem, field, alpha, weights, options):
    found = mixed_norm.run(
        problem.data, field, alpha, weights, tol=options["tol"], max_steps=options["max_steps"]
    )
    return found, _lengths(found) / (alpha * weights[found.support]), found.objective


def _irmxne(problem, field, alpha, weights, options):
    found = irmxne.run(
        problem.data,
        field,
        alpha,
        weights,
        tol=options["tol"],
        max_steps=options["max_steps"],
        max_reweightings=options["max_reweightings"],
    )
    lengths = _lengths(found)
    # The last weights are w_j / 2 sqrt(|X_j|).
    variances = 2 * lengths**1.5 / (alpha * weights[found.support])
    return found, variances, found.objective


def _minimum_current(problem, field, alpha, weights, options):
    found = minimum_current.run(
        problem.data, field, alpha, weights, tol=options["tol"], max_steps=options["max_steps"]
    )
    lengths = np.linalg.norm(np.asarray(found.sources, float), axis=1)  # (k, n_times)
    return found, lengths.T / (alpha * weights[found.support]), found.objective


def _tf_mxne(problem, field, alpha, weights, options):
    found = tf_mxne.run(
        problem.data,
        field,
        alpha,
        weights,
        l1_ratio=options["l1_ratio"],
        frame=time_frequency.waves(problem.n_times, options["window"], options["step"]),
        tol=options["tol"],
        max_steps=options["max_steps"],
        max_sweeps=options["max_sweeps"],
    )
    return found, _lengths(found) / (alpha * weights[found.support]), found.objective


def _lengths(found):
    return np.sqrt(np.sum(np.asarray(found.sources, float) ** 2, axis=(1, 2)))


def _spread(variances, support, n_sources):
    whole = np.zeros((len(np.atleast_2d(variances)), n_sources))
    whole[:, support] = variances
    return whole


def _support_evidence(problem, field, support):
    """Log probability of whitened data and active sources, whose sets of one size are alike."""
    log_sets = sparse_choice.log_number_of_sets(problem.n_sources, len(support))
    value = sparse_choice.support_evidence(problem.data, np.asarray(field)[:, support])[0]
    return value - log_sets


def _gibbs(key, model, problem, field, options, checkpoint, update):
    weights = penalty_weights(model, problem)
    alpha, *chosen = _alpha("gibbs", model, problem, field, weights, options)
    drawn = scale_mixture.run(
        key,
        problem.data,
        field,
        alpha,
        weights,
        checkpoint=checkpoint,
        progress=update,
        **_chains(options),
    )
    return _mixed(drawn, problem, options, chosen)


def _nuts(key, model, problem, field, options, update):
    # First of all: what was compiled before NumPyro is there would be compiled again.
    from . import variance_chains

    weights = penalty_weights(model, problem)
    alpha, *chosen = _alpha("nuts", model, problem, field, weights, options)
    n_values = field.shape[2] * problem.n_times
    prior = variance_chains.group_laplace(alpha, weights, n_values, field.dtype)
    chains = _chains(options)
    drawn = variance_chains.run(key, problem.data, field, prior, progress=update, **chains)
    return _mixed(drawn, problem, options, chosen, stats=drawn.sample_stats, status=drawn.status)


def _chains(options):
    return {name: options[name] for name in ("n_chains", "n_warmup", "n_samples")}


def _mixed(drawn, problem, options, chosen, *, stats=None, status=Status.OK):
    share, trace, is_at_end = chosen
    if status is Status.OK and is_at_end:
        status = Status.SCALE_AT_BOUND
    return loud_sources.mix(
        drawn,
        problem,
        {"alpha": np.asarray(share, float)},
        {},
        n_components=options["n_components"],
        trace=trace | (stats or {}),
        status=status,
    )
