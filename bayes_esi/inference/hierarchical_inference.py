"""From sources of unknown variances and a problem to variances and their Gaussian: all methods.

`sparse_bayes` and `ias` find one variance a source, `multiple_sparse_priors` those of smooth
patterns of sources. `maximum_entropy` finds the shares p_kt of the laws in which parcel k is active
at sample t; its estimate is the mean of the Gaussian whose variances are p_kt S_k. `gibbs` draws
which sources are active, and their variances (`spike_slab`); `nuts` draws the variances under a
horseshoe (`variance_chains`).

What the Gaussian leaves out is the uncertainty of the variances: which sources are active. Only
`gibbs` and `nuts` have it.
"""

import numpy as np
from scipy import sparse

from ..core.checks import check_choice, check_count, check_positive
from ..core.drive import progress_bar
from ..core.status import Status
from ..models.group_sparse import depth_scale
from ..models.orientation import orient
from ..sources.patches import evenly_spaced, grow_parcels, pattern_fields, smooth_patterns
from . import (
    block_moments,
    ias,
    loud_sources,
    maximum_entropy,
    multiple_sparse_priors,
    nuts,
    sparse_bayes,
    spike_slab,
)
from .noise_level import at_unit_noise
from .options import chain_options, fill_options, refuse_checkpoint
from .sparse_moments import SparseMoments, SparseResult, carriers, check_flag, spread_out
from .sparse_updates import RULES

__all__ = ["OPTIONS", "check_options", "run"]


def _check_number(name, value):
    if isinstance(value, bool | str) or not np.isfinite(value) or value == 0:
        raise ValueError(f"{name} must be a finite number other than 0, got {value!r}.")
    return float(value)


def _check_coefficient(name, value):
    if isinstance(value, bool | str) or not abs(value) < 1:
        raise ValueError(f"{name} must lie between -1 and 1, got {value!r}.")
    return float(value)


OPTIONS = {
    "sparse_bayes": {
        "covariance": ("tied", lambda name, value: check_choice(name, value, ("tied", "full"))),
        "rule": ("convex_bound", lambda name, value: check_choice(name, value, RULES)),
        "noise": (
            "scalar",
            lambda name, value: check_choice(name, value, ("scalar", "diagonal")),
        ),
        "coefficient": (0.0, _check_coefficient),
        "tol": (1e-3, check_positive),
        "max_steps": (500, check_count),
    },
    "ias": {
        "exponent": (1.0, _check_number),
        "hybrid_exponent": (None, _check_number),
        "eta": (0.01, check_positive),
        "snr": (None, check_positive),
        "n_active": (1.0, check_positive),
        "is_shared": (True, check_flag),
        "tol": (1e-3, check_positive),
        "max_steps": (1000, check_count),
    },
    "multiple_sparse_priors": {
        "n_patches": (256, check_count),
        "smoothness": (0.6, check_positive),
        "reach": (8, check_count),
        "tol": (1e-3, check_positive),
        "max_steps": (200, check_count),
    },
    "maximum_entropy": {
        "parcel_steps": (4, check_count),
        "smoothness": (0.6, check_positive),
        "reach": (8, lambda name, value: check_count(name, value, minimum=0)),
        "tol": (1e-8, check_positive),
        "max_steps": (100, check_count),
    },
    "gibbs": {"max_active": (10, check_count)}
    | chain_options(n_warmup=50, n_samples=250, n_components=200)
    | {"n_moves": (20, check_count)},
    "nuts": chain_options(n_warmup=500, n_samples=500, n_components=200),
}
# Share of draws at the largest number of sources above which the number is cut off.
_MOST_FULL = 0.05
# Difference of chains in the number of active sources around a place above which they disagree.
_MOST_SPREAD = 0.25


def check_options(method, options):
    """Fill in defaults and refuse what is unknown or out of range; see `options`."""
    return fill_options(OPTIONS, method, options)


def run(method, key, model, problem, options, *, progress=False, checkpoint=None):
    """Find or draw the variances of sources.

    Parameters
    ----------
    method : str
        A key of `OPTIONS`.
    key : PRNG key
        Of `gibbs` and `nuts`; the other methods draw nothing.
    model : HierarchicalSources
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
    field = orient(problem, model.loose).lead_field
    with progress_bar(progress, method) as update:
        if method == "gibbs":
            result = _gibbs(key, model, problem, field, options, checkpoint, update)
        elif method == "nuts":
            result = _nuts(key, model, problem, field, options, update)
        else:
            solve = {
                "sparse_bayes": _sparse_bayes,
                "ias": _ias,
                "multiple_sparse_priors": _multiple_sparse_priors,
                "maximum_entropy": _maximum_entropy,
            }[method]
            result = solve(model, problem, field, options)
        update(1.0)
    variances = result.moments.source_var, result.moments.noise_var
    is_finite = all(np.all(np.isfinite(own)) for own in variances)
    return result if is_finite else result._replace(status=Status.NOT_FINITE)


def _sparse_bayes(model, problem, field, options):
    scale = depth_scale(model, problem).astype(field.dtype)
    found = sparse_bayes.run(
        problem.data, field * scale[:, None], **options | _noise(model, options["noise"])
    )
    source_var = np.asarray(found.source_var, float)
    source_var = source_var * (scale**2).reshape(-1, *(1,) * (source_var.ndim - 1))
    support = np.flatnonzero(source_var if source_var.ndim == 1 else source_var.any(axis=(1, 2)))
    moments = SparseMoments(
        support, None, source_var[None, None], found.noise_var[None], options["coefficient"]
    )
    status = Status.OK if found.is_converged else Status.NOT_CONVERGED
    if found.is_noise_at_floor:
        status = Status.SCALE_AT_BOUND
    return SparseResult(
        moments,
        {"noise_std": _by_group(problem, found.noise_var)},
        {},
        {"cost": found.costs},
        {"residual": found.residual, "limit": options["tol"]},
        found.log_evidence + problem.log_jacobian,
        status,
    )


def _multiple_sparse_priors(model, problem, field, options):
    scale = depth_scale(model, problem).astype(field.dtype)
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
        carriers(field, mean),
        None,
        found.variances[None, None],
        noise_var[None],
        0.0,
        patterns=patterns,
    )
    return SparseResult(
        moments,
        _hyper(problem, np.sqrt(found.noise_var)),
        {},
        {"density": found.densities},
        {"gain": float(found.densities[-1] - found.densities[-2]), "limit": options["tol"]},
        found.free_energy + problem.log_jacobian,
        Status.OK if found.is_converged else Status.NOT_CONVERGED,
    )


def _ias(model, problem, field, options):
    unit = at_unit_noise(model, problem, field)
    scale = depth_scale(model, problem).astype(field.dtype)
    found = ias.run(unit.data, unit.field * scale[:, None], **options)
    source_var = np.asarray(found.source_var, float) * scale**2
    support = carriers(field, np.asarray(found.mean) * scale[:, None, None])
    moments = SparseMoments(support, None, source_var[None], unit.rows[None] ** 2, 0.0)
    energies = np.asarray(found.energies, float).reshape(len(source_var), -1)
    return SparseResult(
        moments,
        {"noise_std": unit.levels},
        {},
        {"energy": energies[:, ~np.all(np.isnan(energies), axis=0)]},
        {"residual": float(np.max(found.residual)), "limit": options["tol"]},
        np.nan,
        unit.status if np.all(found.is_converged) else Status.NOT_CONVERGED,
    )


def _maximum_entropy(model, problem, field, options):
    unit = at_unit_noise(model, problem, np.asarray(field, float))
    data, field = unit.data, unit.field
    scale = depth_scale(model, problem)
    score = maximum_entropy.score(data, field * scale[:, None])
    labels = grow_parcels(problem.neighbours, score, options["parcel_steps"])
    # Smooth inside parcels: no step leads from one to another.
    table = np.asarray(problem.neighbours)
    table = np.where(labels[table] == labels[:, None], table, -1)
    patterns = smooth_patterns(
        table, np.arange(len(labels)), options["smoothness"], options["reach"]
    )
    patterns = sparse.csc_array(sparse.diags_array(scale) @ patterns)
    fields = pattern_fields(field, patterns)
    probability, source_var = maximum_entropy.reference_law(data, fields, labels)
    found = maximum_entropy.run(
        data,
        fields,
        labels,
        probability=probability,
        source_var=source_var,
        tol=options["tol"],
        max_steps=options["max_steps"],
    )
    n_sources, d, n_times = found.mean.shape
    mean = patterns @ np.asarray(found.mean, float).reshape(n_sources, -1)
    share = np.asarray(found.active, float)  # (n_parcels, n_times)
    moments = SparseMoments(
        carriers(field, mean.reshape(n_sources, d, n_times)),
        None,
        (share[labels] * source_var[:, None]).T[None],
        unit.rows[None] ** 2,
        0.0,
        patterns=patterns,
    )
    return SparseResult(
        moments,
        {"noise_std": unit.levels},
        {},
        {"parcel": labels, "share": share, "dual": np.asarray(found.value, float)},
        {"residual": float(np.max(found.residual)), "limit": options["tol"]},
        np.nan,
        unit.status if np.all(found.is_converged) else Status.NOT_CONVERGED,
    )


def _gibbs(key, model, problem, field, options, checkpoint, update):
    own = dict(options)
    n_components = own.pop("n_components")
    scale = depth_scale(model, problem).astype(field.dtype)
    bounds = model.source_std
    if bounds is not None:
        bounds = np.square(np.asarray(bounds) / problem.moment_unit)
    drawn = spike_slab.run(
        key,
        problem.data,
        np.asarray(field) * scale[:, None],
        bounds=bounds,
        probability=model.inclusion_prob,
        noise_var=_known_noise_var(model),
        checkpoint=checkpoint,
        progress=update,
        **own,
    )
    is_on = drawn.source_var > 0
    n_active = is_on.sum(axis=2)
    active = np.where(is_on, drawn.places, -1).reshape(-1, is_on.shape[2])
    active = -np.sort(-active, axis=1)
    chosen = spread_out(len(active), n_components)
    places, variances = (
        a.reshape(len(active), -1)[chosen] for a in (drawn.places, drawn.source_var)
    )
    source_var = np.zeros((len(chosen), 1, problem.n_sources))
    for own_var, place, variance in zip(source_var[:, 0], places, variances, strict=True):
        own_var[place[variance > 0]] = (variance * scale[place] ** 2)[variance > 0]
    noise_var = drawn.noise_var.reshape(-1)[chosen]
    best = np.argmax(drawn.log_density)
    support = np.sort(active[best][active[best] >= 0])
    moments = SparseMoments(
        support,
        None,
        source_var,
        np.repeat(noise_var[:, None], len(problem.data), axis=1),
        0.0,
        inclusion=np.minimum(drawn.inclusion.mean(axis=0), 1.0),
        active=active,
    )
    draws = {"n_active": n_active}
    if model.noise_std is None:
        draws["noise_std"] = np.sqrt(drawn.noise_var)
    stats = [np.asarray(a, float)[:, :, None] for a in (drawn.log_density, *draws.values())]
    r_hat = max(float(np.max(nuts.split_r_hat(s), initial=1.0)) for s in stats)
    status = Status.OK
    if np.mean(n_active == is_on.shape[2]) > _MOST_FULL and is_on.shape[2] < problem.n_sources:
        status = Status.TOO_MANY_DIPOLES
    if r_hat > nuts.MOST_R_HAT or _spread(drawn.inclusion, problem.neighbours) > _MOST_SPREAD:
        status = Status.CHAINS_DISAGREE
    return SparseResult(
        moments,
        _hyper(problem, np.sqrt(drawn.noise_var.mean())),
        draws,
        {"log_density": drawn.log_density},
        {"r_hat": r_hat, "limit": nuts.MOST_R_HAT},
        np.nan,
        status,
    )


def _nuts(key, model, problem, field, options, update):
    from . import variance_chains  # NumPyro takes a second to import

    scale = depth_scale(model, problem).astype(field.dtype)
    own = np.asarray(field) * scale[:, None]
    low, high = np.sqrt(spike_slab.variance_range(problem.data, own))
    if model.source_std is not None:
        high = model.source_std[1] / problem.moment_unit
    prior = variance_chains.horseshoe(problem.n_sources, low, high, model.inclusion_prob, own.dtype)
    drawn = variance_chains.run(
        key,
        problem.data,
        own,
        prior,
        noise_var=_known_noise_var(model),
        n_chains=options["n_chains"],
        n_warmup=options["n_warmup"],
        n_samples=options["n_samples"],
        progress=update,
    )
    draws = {"overall_std": problem.moment_unit * drawn.overall_std}
    if model.noise_std is None:
        draws["noise_std"] = np.sqrt(drawn.noise_var)
    return loud_sources.mix(
        drawn._replace(source_var=drawn.source_var * scale**2, norm=drawn.norm * scale),
        problem,
        _hyper(problem, np.sqrt(drawn.noise_var.mean())),
        draws,
        n_components=options["n_components"],
        trace=drawn.sample_stats,
        noise_var=drawn.noise_var,
        status=drawn.status,
    )


def _known_noise_var(model):
    return None if model.noise_std is None else model.noise_std**2


def _spread(inclusion, neighbours):
    """Largest difference of chains in the number of active sources at a place and next to it."""
    neighbours = np.asarray(neighbours)
    around = np.where(neighbours >= 0, inclusion[:, neighbours], 0).sum(axis=2)
    return float(np.max(np.ptp(inclusion + around, axis=0), initial=0.0))


def _by_group(problem, noise_var):
    """Root mean square noise level of the rows of each group: (n_groups,)."""
    groups = np.arange(problem.n_groups)
    return np.array([np.sqrt(np.mean(noise_var[problem.noise_group == g])) for g in groups])


def _hyper(problem, level):
    return {"noise_std": np.full(problem.n_groups, level)}


def _noise(model, unknown="scalar"):
    """The noise as searches for variances take it."""
    if model.noise_std is None:
        return {"noise": unknown, "noise_std": 1.0}
    return {"noise": "known", "noise_std": model.noise_std}
