"""Minimum current estimate: the mixed norm of each sample by itself.

    min_x  1/2 |y_t - G x|^2 + alpha_t sum_j w_j |x_j|      for each sample t

|x_j| is the length of a source's moment, or each of its components has its own absolute value: then
the answer depends on the axes. Nothing ties neighbouring samples, so that supports may jump.

The samples share the survey of all sources, one matrix product; each has its working set, and
working sets of one size are solved in one compiled call.

Cost: O(m n d n_times) a survey. Up to m sources are active in general position.

References: Matsuura, Okabe 1995, doi:10.1109/10.391161; Uutela, Hämäläinen, Somersalo 1999,
doi:10.1006/nimg.1999.0454 (the estimate); `mixed_norm` and `group_scales` (the algorithm).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_count, check_positive
from . import group_scales
from .mixed_norm import check_problem, choose, scaled_dual, working_size

__all__ = ["MinimumCurrent", "alpha_max", "run"]

_NEWTON_STEPS = 200
# As in `mixed_norm`: gaps on a working set, relative to the one asked for and the one at hand.
_INNER_SHARE, _OUTER_SHARE = 0.1, 0.01
_FLOAT32_TOL = 2e-5


class MinimumCurrent(NamedTuple):
    """Sources active at some sample, and the certificate of each sample."""

    support: np.ndarray  # (n_active,) int, increasing
    sources: np.ndarray  # (n_active, d, n_times), zero where not active
    alpha: np.ndarray  # (n_times,)
    objective: np.ndarray  # (n_times,)
    gap: np.ndarray  # (n_times,) relative to 1/2 |y_t|^2
    n_steps: np.ndarray  # (n_times,) Newton steps
    is_converged: np.ndarray  # (n_times,) bool


def alpha_max(data, lead_field, weights=None, *, per_component=False):
    """Least alpha at which all sources are zero, for each sample: (n_times,).

    Parameters and errors are those of `run`.
    """
    data, lead_field, weights = check_problem(data, lead_field, weights)
    field, weights = _lay_out(lead_field, weights, per_component)
    return _survey(field, jnp.asarray(data, field.dtype), weights).max(axis=0)


def run(data, lead_field, alpha, weights=None, *, per_component=False, tol=1e-6, max_steps=100):
    """Solve for the minimum current estimate of each sample.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3.
    alpha : float or (n_times,) array
        Weight of the penalty, in units of whitened data.
    weights : (n_sources,) array, optional
        Positive. Ones by default.
    per_component : bool
        Penalise the absolute value of each component, not the length of each moment.
    tol : float
        Relative duality gap of each sample. Single precision certifies 2e-5 at best.
    max_steps : int
        Working sets a sample.

    Returns
    -------
    MinimumCurrent

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, on numbers that are not positive.
    """
    data, lead_field, weights = check_problem(data, lead_field, weights)
    n_times = data.shape[1]
    alpha = np.broadcast_to(alpha, (n_times,)) if np.ndim(alpha) == 0 else alpha
    alpha = check_array("alpha", alpha, shape=(n_times,)).astype(float)
    check_positive("alpha", float(alpha.min()), remedy="See alpha_max.")
    tol = check_positive("tol", tol)
    max_steps = check_count("max_steps", max_steps)
    _, n_sources, d = lead_field.shape
    field, weights = _lay_out(lead_field, weights, per_component)
    found = _solve(field, data, alpha, weights, tol, max_steps)
    if per_component:
        found = _regroup(found, n_sources, d)
    return found


def _solve(field, data, alpha, weights, tol, max_steps):
    n, d, _ = field.shape
    dtype = field.dtype
    n_times = data.shape[1]
    tol = max(tol, _FLOAT32_TOL) if dtype == np.float32 else tol
    columns = np.ascontiguousarray(data.T, dtype)
    energy = 0.5 * np.sum(data.astype(float) ** 2, axis=0)
    reach = np.asarray(jnp.sqrt(jnp.sum(field**2, axis=(1, 2))), float) / weights
    residual, penalty = columns.astype(float), np.zeros(n_times)
    objective, best = energy.copy(), np.full(n_times, -np.inf)
    gap, n_steps = np.full(n_times, np.inf), np.zeros(n_times, int)
    scales = [(np.zeros(0, int), np.zeros(0), np.zeros((0, d)))] * n_times
    is_open = np.ones(n_times, bool)
    for i_step in range(max_steps + 1):
        rows = np.flatnonzero(is_open)
        ratio = _survey(field, jnp.asarray(_fill(residual[rows]).T, dtype), weights)
        for i, t in enumerate(rows):
            inner, square = residual[t] @ columns[t], residual[t] @ residual[t]
            best[t] = max(best[t], scaled_dual(inner, square, ratio[:, i].max(), alpha[t]))
        value = 0.5 * np.sum(residual[rows] ** 2, axis=1) + alpha[rows] * penalty[rows]
        scale = np.where(energy[rows] > 0, energy[rows], 1)
        left = np.maximum(value - best[rows], 0) / scale
        is_stuck = (objective[rows] == value) & np.isfinite(gap[rows])
        objective[rows], gap[rows] = value, left
        is_open[rows] = (left > tol) & ~is_stuck
        is_left = is_open[rows]
        rows, ratio = rows[is_left], ratio[:, np.flatnonzero(is_left)]
        if rows.size == 0 or i_step == max_steps:
            break
        n_active = max(len(scales[t][0]) for t in rows)
        n_wanted = int(np.max(np.count_nonzero(ratio > alpha[rows], axis=0)))
        size = working_size(n_active, n_wanted, n)
        chosen = np.empty((rows.size, size), int)
        start = np.zeros((rows.size, size))
        for i, t in enumerate(rows):
            full = np.zeros(n)
            full[scales[t][0]] = scales[t][1]
            chosen[i] = choose(full, ratio[:, i] / alpha[t], reach, size)
            start[i] = full[chosen[i]]
        wanted = energy[rows] * np.maximum(_INNER_SHARE * tol, _OUTER_SHARE * gap[rows])
        args = (columns[rows], chosen, weights[chosen], alpha[rows], start, wanted)
        args = [_fill(a if a.dtype.kind == "i" else a.astype(dtype)) for a in args]
        result = jax.tree.map(
            lambda a, b=rows.size: np.asarray(a)[:b],
            _solve_each(field, np.int32(_NEWTON_STEPS), *args),
        )
        for i, t in enumerate(rows):
            active = np.flatnonzero(result.scales[i])
            moments = result.sources[i, active, :, 0].astype(float)
            scales[t] = chosen[i, active], result.scales[i, active].astype(float), moments
            residual[t] = result.residual[i, :, 0]
            penalty[t] = weights[chosen[i, active]] @ np.linalg.norm(moments, axis=1)
            n_steps[t] += result.n_steps[i]
    support = np.unique(np.concatenate([active for active, _, _ in scales]))
    sources = np.zeros((support.size, d, n_times), dtype)
    for t, (active, _, moments) in enumerate(scales):
        sources[np.searchsorted(support, active), :, t] = moments
    return MinimumCurrent(support, sources, alpha, objective, gap, n_steps, gap <= tol)


def _fill(rows):
    """Repeat the first row up to a power of two, so that few numbers of problems are compiled."""
    size = 1 << (len(rows) - 1).bit_length()
    return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


@jax.jit
def _solve_each(field, max_steps, *problems):
    def solve(problem):
        sample, chosen, weights, alpha, scales, tol = problem
        return group_scales.run(
            field[chosen], sample[:, None], weights, alpha, scales, tol, max_steps
        )

    return lax.map(solve, problems)


def _survey(field, residual, weights):
    return np.asarray(_linked_norms(field, residual), float) / weights[:, None]


@jax.jit
def _linked_norms(field, residual):
    n, d, m = field.shape
    linked = (field.reshape(n * d, m) @ residual).reshape(n, d, -1)
    return jnp.sqrt(jnp.sum(linked**2, axis=1))


def _lay_out(lead_field, weights, per_component):
    m, n, d = lead_field.shape
    field = jnp.asarray(lead_field, jax.dtypes.canonicalize_dtype(lead_field.dtype))
    field = jnp.transpose(field, (1, 2, 0))
    if per_component:
        return field.reshape(n * d, 1, m), np.repeat(weights, d)
    return field, weights


def _regroup(found, n_sources, d):
    """Sources again, out of components."""
    support = np.unique(found.support // d)
    sources = np.zeros((support.size, d, found.sources.shape[2]), found.sources.dtype)
    place = np.searchsorted(support, found.support // d)
    sources[place, found.support % d] = found.sources[:, 0]
    return found._replace(support=support, sources=sources)
