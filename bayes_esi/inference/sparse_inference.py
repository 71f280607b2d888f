"""From a sparse source model and a problem to an estimate and its Gaussian: what its methods share.

Each method ends in variances g_j of the sources, under which the answer is Gaussian and in closed
form (`block_moments`):

    x_j ~ N(0, g_j I),    data = lead_field x + noise

`sparse_bayes` and `ias` find the variances themselves, `multiple_sparse_priors` those of smooth
patterns of sources. The estimate of a mixed norm is the mean of the Gaussian with
g_j = |X_j| / (alpha w_j): its penalty touches the quadratic one of that Gaussian there. So is that
of a reweighted norm, with its last weights, and of minimum current at each sample; of a
time-frequency norm the same variances are used, and the estimate is its own.

What the Gaussian leaves out is the uncertainty of the variances: which sources are active. `gibbs`
draws the variances of the group-Laplace law (`scale_mixture`), and mixes Gaussians over some.

Reference: Bach, Jenatton, Mairal, Obozinski 2012, doi:10.1561/2200000015 (quadratic forms of
norms).
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from ..core.checks import check_choice, check_count, check_fraction, check_positive
from ..core.drive import progress_bar
from ..core.status import Status
from ..models.group_sparse import depth_scale, penalty_weights
from ..models.orientation import orient
from ..sources.patches import evenly_spaced, pattern_fields, smooth_patterns
from . import (
    block_moments,
    ias,
    irmxne,
    minimum_current,
    mixed_norm,
    multiple_sparse_priors,
    nuts,
    scale_mixture,
    sparse_bayes,
    sparse_choice,
    tf_mxne,
    time_frequency,
)
from .options import fill_options
from .sparse_updates import RULES

__all__ = ["OPTIONS", "SparseMoments", "SparseResult", "check_options", "run"]


def _check_bool(name, value):
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def _check_number(name, value):
    if isinstance(value, bool | str) or not np.isfinite(value) or value == 0:
        raise ValueError(f"{name} must be a finite number other than 0, got {value!r}.")
    return float(value)


def _check_coefficient(name, value):
    if isinstance(value, bool | str) or not abs(value) < 1:
        raise ValueError(f"{name} must lie between -1 and 1, got {value!r}.")
    return float(value)


def _check_ratio(name, value):
    return 0.0 if value == 0 else check_fraction(name, value)


_NORM = {
    "debias": (True, _check_bool),
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
    "gibbs": {
        "n_chains": (4, lambda name, value: check_count(name, value, minimum=2)),
        "n_warmup": (200, check_count),
        "n_samples": (500, lambda name, value: check_count(name, value, minimum=4)),
        "n_components": (50, check_count),
        "tol": (1e-6, check_positive),
    },
    "sparse_bayes": {
        "covariance": ("tied", lambda name, value: check_choice(name, value, ("tied", "full"))),
        "rule": ("convex_bound", lambda name, value: check_choice(name, value, RULES)),
        "coefficient": (0.0, _check_coefficient),
        "tol": (1e-3, check_positive),
        "max_steps": (500, check_count),
    },
    "multiple_sparse_priors": {
        "n_patches": (256, check_count),
        "smoothness": (0.6, check_positive),
        "reach": (8, check_count),
        "tol": (1e-3, check_positive),
        "max_steps": (200, check_count),
    },
    "ias": {
        "exponent": (1.0, _check_number),
        "hybrid_exponent": (None, _check_number),
        "eta": (0.01, check_positive),
        "snr": (None, check_positive),
        "n_active": (1.0, check_positive),
        "is_shared": (True, _check_bool),
        "tol": (1e-3, check_positive),
        "max_steps": (1000, check_count),
    },
}
# Share of the power of all fields that the active sources of a method without zeros carry.
_CARRIED = 0.99
# Probability of a field above the noise at which a source is listed.
_EXCEEDING = 0.5
# Methods that look for the most probable sources.
MODES = ("mixed_norm", "irmxne", "minimum_current", "tf_mxne", "ias")


class SparseMoments(NamedTuple):
    """Active sources and a Gaussian, in components that the prior treats alike.

    Units are `moment_unit` for sources. There are n_components of a mixture over draws of the
    variances, or one; n_laws is 1, or n_times where each sample has its own.
    """

    support: np.ndarray  # (k,) int, increasing: the active sources
    estimate: np.ndarray | None  # (k, d, n_times) where it is not the mean of the Gaussian
    source_var: np.ndarray  # (n_components, n_laws, n_sources), or (..., n_sources, d, d)
    noise_var: np.ndarray  # (rank,) of whitened data
    coefficient: float  # of an AR(1) in time
    exceedance: np.ndarray | None = None  # (n_sources,) that the field exceeds noise, if drawn
    patterns: object = None  # sparse (n_sources, n_patterns): variances are those of patterns


class SparseResult(NamedTuple):
    """What a method for sparse sources returns."""

    moments: SparseMoments
    hyper: dict  # noise_std (n_groups,), and alpha as a fraction
    draws: dict  # name -> (n_chains, n_samples, ...), of gibbs
    trace: dict  # name -> array: what fell along the iteration, or the choice of alpha
    certificate: dict  # name -> float: gap, residual, gain or R-hat; what it must not exceed
    log_evidence: float  # units of the data; NaN where the method has none
    status: Status


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
        Of `gibbs`; the other methods draw nothing.
    model : GroupSparseSources or HierarchicalSources
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
    if checkpoint is not None and method != "gibbs":
        raise ValueError(f"checkpoint: {method} has nothing to resume; leave it out.")
    field = orient(problem, model.loose).lead_field
    with progress_bar(progress, method) as update:
        if method == "sparse_bayes":
            result = _sparse_bayes(model, problem, field, options)
        elif method == "ias":
            result = _ias(model, problem, field, options)
        elif method == "multiple_sparse_priors":
            result = _multiple_sparse_priors(model, problem, field, options)
        elif method == "gibbs":
            result = _gibbs(key, model, problem, field, options, checkpoint, update)
        else:
            result = _norm(method, model, problem, field, options)
        update(1.0)
    is_finite = np.all(np.isfinite(result.moments.source_var))
    return result if is_finite else result._replace(status=Status.NOT_FINITE)


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
        np.ones(len(problem.data)),
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
        _hyper(problem, share),
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
    if method not in ("mixed_norm", "irmxne", "gibbs"):
        raise ValueError(
            f"alpha={model.alpha!r} is chosen for the mixed norm, whose alpha means another "
            f"strength to {method}; give a fraction, such as alpha=0.3."
        )
    alphas = sparse_choice.default_alphas(problem.data, field, weights)
    # Once more as far down where the best is at the end.
    further = alphas[-1] * alphas[1:] / alphas[0]
    parts = []
    for own in (alphas, further):
        choose = getattr(sparse_choice, model.alpha)
        parts.append(choose(problem.data, field, own, weights, tol=options["tol"]))
        if parts[-1].best != own[-1]:
            break
    trace = {
        "alphas": np.concatenate([part.alpha for part in parts]),
        "criterion": np.concatenate([part.criterion for part in parts]),
        "n_active": np.concatenate([part.n_active for part in parts]),
    }
    at = int(np.argmin(trace["criterion"]))
    alpha = float(trace["alphas"][at])
    return alpha, alpha / alphas[0], trace, at == len(trace["alphas"]) - 1


def _hyper(problem, share):
    return {"alpha": np.asarray(share, float), "noise_std": np.ones(problem.n_groups)}


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
    alpha, share, trace, is_at_end = _alpha("gibbs", model, problem, field, weights, options)
    drawn = scale_mixture.run(
        key,
        problem.data,
        field,
        alpha,
        weights,
        n_chains=options["n_chains"],
        n_warmup=options["n_warmup"],
        n_samples=options["n_samples"],
        checkpoint=checkpoint,
        progress=update,
    )
    exceedance = drawn.is_loud.mean(axis=(0, 1))
    support = np.flatnonzero(exceedance >= _EXCEEDING)
    pooled = drawn.source_var.reshape(-1, problem.n_sources)
    chosen = np.linspace(0, len(pooled) - 1, min(options["n_components"], len(pooled))).astype(int)
    moments = SparseMoments(
        support, None, pooled[chosen, None], np.ones(len(problem.data)), 0.0, exceedance
    )
    draws = {"strength": problem.moment_unit * drawn.norm[:, :, support]}
    stats = [drawn.log_density[:, :, None], *draws.values()]
    status = Status.SCALE_AT_BOUND if is_at_end else Status.OK
    r_hat = max(float(np.max(nuts.split_r_hat(s), initial=1.0)) for s in stats)
    return SparseResult(
        moments,
        _hyper(problem, share),
        draws,
        {"log_density": drawn.log_density} | trace,
        {"r_hat": r_hat, "limit": nuts.MOST_R_HAT},
        np.nan,
        status if r_hat <= nuts.MOST_R_HAT else Status.CHAINS_DISAGREE,
    )


# ------------------------------------------------------------------------ variances


def _sparse_bayes(model, problem, field, options):
    scale = depth_scale(model, problem)
    found = sparse_bayes.run(problem.data, field * scale[:, None], **_noise(model), **options)
    source_var = np.asarray(found.source_var, float)
    source_var = source_var * (scale**2).reshape(-1, *(1,) * (source_var.ndim - 1))
    support = np.flatnonzero(source_var if source_var.ndim == 1 else source_var.any(axis=(1, 2)))
    moments = SparseMoments(
        support, None, source_var[None, None], found.noise_var, options["coefficient"]
    )
    status = Status.OK if found.is_converged else Status.NOT_CONVERGED
    if found.is_noise_at_floor:
        status = Status.SCALE_AT_BOUND
    level = np.sqrt(found.noise_var[0])
    return SparseResult(
        moments,
        {"noise_std": np.full(problem.n_groups, level)},
        {},
        {"cost": found.costs},
        {"residual": found.residual, "limit": options["tol"]},
        found.log_evidence + problem.log_jacobian,
        status,
    )


def _multiple_sparse_priors(model, problem, field, options):
    scale = depth_scale(model, problem)
    centres = evenly_spaced(problem.source_pos, options["n_patches"])
    patterns = smooth_patterns(problem.neighbours, centres, options["smoothness"], options["reach"])
    patterns = sparse.csc_array(sparse.diags_array(scale) @ patterns)
    fields = pattern_fields(field, patterns)
    found = multiple_sparse_priors.run(
        problem.data,
        fields,
        **_noise(model),
        tol=options["tol"],
        max_steps=options["max_steps"],
    )
    noise_var = np.full(len(problem.data), found.noise_var)
    law = block_moments.condition(problem.data, fields, found.variances, noise_var)
    mean = block_moments.mean(block_moments.over_patterns(law, patterns))
    moments = SparseMoments(
        _carriers(field, mean),
        None,
        found.variances[None, None],
        noise_var,
        0.0,
        patterns=patterns,
    )
    return SparseResult(
        moments,
        {"noise_std": np.full(problem.n_groups, np.sqrt(found.noise_var))},
        {},
        {"density": found.densities},
        {"gain": float(found.densities[-1] - found.densities[-2]), "limit": options["tol"]},
        found.free_energy + problem.log_jacobian,
        Status.OK if found.is_converged else Status.NOT_CONVERGED,
    )


def _ias(model, problem, field, options):
    if model.noise_std is None:
        raise ValueError(
            "noise_std=None is found by evidence, which ias does not have; give a number, or infer "
            "with method='sparse_bayes'."
        )
    level = model.noise_std
    scale = depth_scale(model, problem)
    found = ias.run(problem.data / level, field * (scale[:, None] / level), **options)
    source_var = np.asarray(found.source_var, float) * scale**2
    noise_var = np.full(len(problem.data), level**2)
    support = _carriers(field, np.asarray(found.mean) * scale[:, None, None])
    moments = SparseMoments(support, None, source_var[None], noise_var, 0.0)
    energies = np.asarray(found.energies, float).reshape(len(source_var), -1)
    is_converged = bool(np.all(found.is_converged))
    return SparseResult(
        moments,
        {"noise_std": np.full(problem.n_groups, level)},
        {},
        {"energy": energies[:, ~np.all(np.isnan(energies), axis=0)]},
        {"residual": float(np.max(found.residual)), "limit": options["tol"]},
        np.nan,
        Status.OK if is_converged else Status.NOT_CONVERGED,
    )


def _noise(model):
    """The noise as searches for variances take it."""
    if model.noise_std is None:
        return {"noise": "scalar", "noise_std": 1.0}
    return {"noise": "known", "noise_std": model.noise_std}


def _carriers(field, mean):
    """Sources whose fields make up `_CARRIED` of the power of all, the strongest first."""
    power = block_moments.field_power(field, mean)
    order = np.argsort(-power, kind="stable")
    total = np.cumsum(power[order])
    count = np.searchsorted(total, _CARRIED * total[-1]) + 1 if total[-1] > 0 else 0
    return np.sort(order[:count])
