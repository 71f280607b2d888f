"""Iteratively reweighted mixed norm: a penalty that shrinks strong sources less, and drops more.

    min_X  1/2 |Y - G X|^2 + alpha sum_j w_j (u |X_j|)^(1/2),      u the unit of the sources

|X_j|^(1/2) is concave in |X_j| and lies below its tangent, so that each mixed-norm problem with

    w_j' = w_j/2 (u / |X_j|)^(1/2)        at the X before

lowers the objective. What is zero has an infinite weight and stays zero: the support only shrinks,
and after the first problem, the mixed norm with weights w_j, all others live on its support alone
(`group_scales.run`, started at the X before).

The problem is not convex; the answer is a stationary point, the one that the mixed norm leads to.
Its certificate: the duality gap of the last mixed-norm problem on the support, and the objective
whose decrease has stopped. Sources above u/4 are penalised less than by the mixed norm of the same
alpha, sources below more. u = 1 is the penalty of the literature, whose answer depends on the units
of the lead field.

Cost: that of the mixed norm, and a few Newton steps on the support for each reweighting.

Reference: Strohmeier et al. 2016, doi:10.1109/TMI.2016.2553445.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.checks import check_count, check_positive
from . import group_scales, mixed_norm

__all__ = ["ReweightedNorm", "run"]

_NEWTON_STEPS = 100


class ReweightedNorm(NamedTuple):
    """Active sources, and how the objective fell."""

    support: np.ndarray  # (n_active,) int, increasing
    sources: np.ndarray  # (n_active, d, n_times)
    alpha: float
    objective: np.ndarray  # (n_reweightings + 1,) with square roots, never rising
    n_active: np.ndarray  # (n_reweightings + 1,) sizes of the supports, each within the one before
    gap: float  # of the last mixed-norm problem on its support, relative to 1/2 |Y|^2
    n_steps: int  # Newton steps in all
    is_converged: bool


def run(
    data,
    lead_field,
    alpha,
    weights=None,
    *,
    unit=1.0,
    max_reweightings=30,
    tol=1e-6,
    max_steps=100,
):
    """Solve for the reweighted mixed-norm estimate.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3.
    alpha : float
        Weight of the penalty. The first problem is the mixed norm with this alpha; from
        `mixed_norm.alpha_max` on all sources are zero.
    weights : (n_sources,) array, optional
        Positive. Ones by default.
    unit : float
        u, in units of whitened data over lead field; norms are over components and samples.
    max_reweightings : int
        Problems after the first. Supports rarely change after the tenth.
    tol : float
        Relative duality gap of each problem, and the decrease of the objective, relative to
        1/2 |Y|^2, at which to stop.
    max_steps : int
        Working sets of the first problem.

    Returns
    -------
    ReweightedNorm

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, on numbers that are not positive.
    """
    data, lead_field, weights = mixed_norm.check_problem(data, lead_field, weights)
    alpha = check_positive("alpha", alpha, remedy="See mixed_norm.alpha_max.")
    root = np.sqrt(check_positive("unit", unit))
    tol = check_positive("tol", tol)
    max_reweightings = check_count("max_reweightings", max_reweightings)
    max_steps = check_count("max_steps", max_steps)
    problem = mixed_norm.prepare(data, lead_field, weights)
    state, first = mixed_norm.solve(
        problem, alpha, mixed_norm.init(problem), tol=tol, max_steps=max_steps
    )
    dtype = problem.field.dtype
    limit = 100 * float(np.finfo(dtype).eps)
    norms = np.asarray(jnp.sqrt(jnp.sum(state.sources**2, axis=(1, 2))), float)
    places = state.chosen[norms > 0]
    sources, norms = np.asarray(state.sources)[norms > 0], norms[norms > 0]
    objective = [_objective(state.misfit, root * alpha, weights[places], norms)]
    n_active, n_steps, gap = [places.size], state.n_steps, first.gap
    # One size for all reweightings: they compile once.
    size = mixed_norm.working_size(places.size, 0, problem.weights.size)
    is_settled = places.size == 0
    for _ in range(max_reweightings):
        if is_settled:
            break
        own = 0.5 * root * weights[places] / np.sqrt(norms)
        chosen = np.resize(places, size)
        is_filler = np.arange(size) >= places.size
        field = np.moveaxis(lead_field[:, chosen], 0, 2).astype(dtype)
        field[is_filler] = 0
        found = group_scales.run(
            field,
            problem.data,
            np.where(is_filler, 1, np.resize(own, size)).astype(dtype),
            np.asarray(alpha, dtype),
            np.where(is_filler, 0, np.resize(norms / own, size)).astype(dtype),
            np.asarray(problem.energy * max(0.1 * tol, limit), dtype),
            np.int32(_NEWTON_STEPS),
        )
        new = np.asarray(found.sources)
        lengths = np.sqrt(np.sum(new.astype(float) ** 2, axis=(1, 2)))
        is_active = (lengths > 0) & ~is_filler
        misfit = 0.5 * float(jnp.sum(found.residual**2))
        value = _objective(misfit, root * alpha, weights[chosen[is_active]], lengths[is_active])
        if value > objective[-1]:
            is_settled = True  # by less than the gap allows: nothing is left to gain
            break
        is_settled = objective[-1] - value <= tol * problem.energy
        is_settled &= np.count_nonzero(is_active) == places.size
        places, sources, norms = chosen[is_active], new[is_active], lengths[is_active]
        objective.append(value)
        n_active.append(places.size)
        n_steps += int(found.n_steps)
        gap = max(float(found.gap), 0.0) / problem.energy
        is_settled |= places.size == 0
    order = np.argsort(places)
    return ReweightedNorm(
        support=places[order],
        sources=sources[order] @ problem.rotation.astype(dtype),
        alpha=alpha,
        objective=np.array(objective),
        n_active=np.array(n_active),
        gap=gap,
        n_steps=n_steps,
        is_converged=bool(first.is_converged and is_settled and gap <= max(tol, limit)),
    )


def _objective(misfit, alpha, weights, norms):
    return float(misfit + alpha * np.sum(weights * np.sqrt(norms)))
