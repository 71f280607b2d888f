"""Mixed-norm estimate: few sources explain the data, whatever their orientation and course in time.

    min_X  P(X) = 1/2 |Y - G X|^2 + alpha sum_j w_j |X_j|,     Y (m, n_times), X_j (d, n_times)

with Frobenius norms: |X_j| takes all components and samples of a source together. Dual problem:

    max  1/2 |Y|^2 - 1/2 |Y - Z|^2   subject to  |G_j' Z| <= alpha w_j for all j

Z is the residual at the solution, hence a shortened residual bounds the minimum from below.

*Time.* P does not change when the samples are rotated. Y = U S V' is replaced by U S, whose columns
are as many as its rank; X is rotated back. Nothing is lost.

*Working sets.* The problem is solved on few sources (`group_scales.py`, Newton's method in one
number a source), others are surveyed, G'(Y - G X), and those nearest to their constraint, or
farthest beyond, join: least (1 - |G_j' Z| / alpha w_j) / (|G_j| / w_j). Sizes double, and each is
compiled once. This is done among some hundreds of candidates first, since a survey of all sources
costs more than Newton's steps.
Screening rules, which discard sources for good by the size of the gap, have nothing to do here:
each working set is solved to rounding in a few steps, so the gap leaps from where nothing can be
discarded to zero.

*Paths.* Along decreasing alpha, scales and |G_j' Z| move on as they moved last: Newton's method
starts from there, and the sources that are about to join are known before they do.

*Survey.* Of many sources, single precision gives upper bounds of |G_j' R|, its rounding error
included, (m + d r) u |G_j| |R|; where they are largest, double precision gives the values. The
largest value is exact, therefore, and all that is found holds in double precision.

*Certificate.* (P - D) / (1/2 |Y|^2) over all sources.

Cost: O(m n d r) a survey of all sources, 2 to 4 of them; r is the rank of the data.

References: Gramfort, Kowalski, Hämäläinen 2012, doi:10.1088/0031-9155/57/7/1937 (the estimate);
Ou, Hämäläinen, Golland 2009, doi:10.1016/j.neuroimage.2008.05.063; Massias, Gramfort, Salmon 2018,
arXiv:1802.07481 (working sets by distance to the constraint).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import nnls

from ..core.checks import check_array, check_count, check_positive
from ..core.types import Array, Float
from . import group_scales

__all__ = [
    "Ahead",
    "MixedNorm",
    "Problem",
    "State",
    "alpha_max",
    "certify",
    "check_problem",
    "choose",
    "debias",
    "init",
    "predict",
    "prepare",
    "run",
    "run_path",
    "scaled_dual",
    "solve",
    "step",
    "survey",
    "working_size",
]

# Sources of a working set: these numbers, doubled again and again, are what is compiled.
_SIZES = (32, 48)
_ROOM = 8  # at least, beside the active sources
# Candidates: sizes double from the first; up to the second, all that violate their constraint.
_CANDIDATES = (256, 1024)
_NEWTON_STEPS = 100
_N_ALPHAS, _LEAST_ALPHA = 15, 0.1  # of the default path, as a share of alpha_max
# Of a scale, that is left where the path seems to lead to zero.
_LEAST_SHARE = 0.1
# Gap on a working set, as a share of the gap that is asked for, and of the gap on all sources.
_INNER_SHARE, _OUTER_SHARE = 0.1, 0.01
_FLOAT32_TOL = 2e-5  # what single precision can certify


class MixedNorm(NamedTuple):
    """Active sources, and the certificate that no other answer is better by more than the gap."""

    support: np.ndarray  # (n_active,) int, increasing
    sources: np.ndarray  # (n_active, d, n_times), units of whitened data / lead field
    alpha: float
    objective: float  # P
    gap: float  # relative to 1/2 |Y|^2, over all sources
    n_steps: int  # Newton steps, all working sets together
    is_converged: bool


class Problem(NamedTuple):
    """What is computed once for all alpha."""

    field: Float[Array, "m n d"]
    single: object  # the field over `scale` in single precision; None where that does not pay
    scale: float
    data: Float[Array, "m r"]  # compressed
    weights: np.ndarray  # (n,)
    reach: np.ndarray  # (n,) |G_j| / w_j
    rotation: np.ndarray  # (r, n_times): data = compressed @ rotation
    energy: float  # 1/2 |Y|^2


class State(NamedTuple):
    """An estimate, and the survey of all sources at it."""

    scales: np.ndarray  # (n,) |X_j| / w_j of sources that have been in a working set
    chosen: np.ndarray  # (k,) the last working set, none at the start
    sources: Float[Array, "k d r"]
    residual: Float[Array, "m r"]
    ratio: np.ndarray  # (n,) |G_j' residual| / w_j, or upper bounds; the largest is exact
    misfit: float  # 1/2 |residual|^2
    inner: float  # <Y, residual>
    penalty: float  # sum_j w_j |X_j|
    n_steps: int


class Ahead(NamedTuple):
    """Where a path is heading, to start from."""

    scales: np.ndarray  # (n,)
    ratio: np.ndarray  # (n,)


def run(data, lead_field, alpha, weights=None, *, tol=1e-6, max_steps=100):
    """Solve for the mixed-norm estimate.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3. With one component a source, this is the multi-task lasso.
    alpha : float
        Weight of the penalty, in units of whitened data; from `alpha_max` on all sources are zero.
    weights : (n_sources,) array, optional
        Positive: sources of large weight are penalised more. Ones by default.
    tol : float
        Relative duality gap. Single precision certifies 2e-5 at best.
    max_steps : int
        Working sets.

    Returns
    -------
    MixedNorm

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, on numbers that are not positive.
    """
    return run_path(data, lead_field, [alpha], weights, tol=tol, max_steps=max_steps)[0]


def run_path(data, lead_field, alphas=None, weights=None, *, tol=1e-6, max_steps=100):
    """Solve for several alpha, each starting from the one before; decreasing alpha are fastest.

    Parameters and errors are those of `run`. Left out, `alphas` are fifteen from `alpha_max` to a
    tenth of it, evenly spaced in the logarithm.

    Returns
    -------
    list of MixedNorm
    """
    data, lead_field, weights = check_problem(data, lead_field, weights)
    tol = check_positive("tol", tol)
    max_steps = check_count("max_steps", max_steps)
    problem = prepare(data, lead_field, weights)
    state = init(problem)
    if alphas is None:
        alphas = state.ratio.max() * np.geomspace(1, _LEAST_ALPHA, _N_ALPHAS)
    alphas = [check_positive("alpha", a, remedy="See alpha_max.") for a in np.atleast_1d(alphas)]
    found, before = [], state
    for i, alpha in enumerate(alphas):
        ahead = None
        if i >= 2 and alphas[i - 1] != alphas[i - 2]:
            ahead = _ahead(before, state, *alphas[i - 2 : i + 1])
        before = state
        state, result = solve(problem, alpha, state, ahead, tol=tol, max_steps=max_steps)
        if problem.field.dtype == np.float32:
            objective, gap = certify(
                data, lead_field, alpha, result.support, result.sources, weights
            )
            is_converged = gap <= max(tol, _FLOAT32_TOL)
            result = result._replace(objective=objective, gap=gap, is_converged=is_converged)
        found.append(result)
    return found


def _ahead(before, last, alpha_before, alpha_last, alpha):
    """Scales and correlations move on as they moved from one alpha to the next.

    Sources may come close to zero, but whether they get there is found by the steps.
    """
    share = np.log(alpha / alpha_last) / np.log(alpha_last / alpha_before)
    moved = last.scales + share * (last.scales - before.scales)
    moved = np.clip(moved, _LEAST_SHARE * last.scales, last.scales / _LEAST_SHARE)
    is_old = (last.scales > 0) & (before.scales > 0)
    ratio = last.ratio / alpha_last
    ratio = alpha * (ratio + share * (ratio - before.ratio / alpha_before))
    return Ahead(np.where(is_old, moved, last.scales), ratio)


def alpha_max(data, lead_field, weights=None):
    """Least alpha at which all sources are zero: max_j |G_j' Y| / w_j.

    Parameters and errors are those of `run`.
    """
    return float(init(prepare(*check_problem(data, lead_field, weights))).ratio.max())


def check_problem(data, lead_field, weights):
    """Return data, lead field and weights as arrays that belong together."""
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n_sources, d = lead_field.shape
    if d > 3:
        raise ValueError(
            f"lead_field must have at most 3 components a source, got {d}: its shape is "
            "(n_channels, n_sources, n_orient)."
        )
    data = check_array("data", data, shape=(m, None), remedy="It has one row a channel.")
    if not np.any(data):
        raise ValueError("data are zero: there is nothing to explain.")
    if weights is None:
        return data, lead_field, np.ones(n_sources)
    weights = check_array("weights", weights, shape=(n_sources,)).astype(float)
    if weights.min() <= 0:
        raise ValueError(
            f"weights must be positive, got {weights.min():.3g}; leave out a source by its field."
        )
    return data, lead_field, weights


def prepare(data, lead_field, weights) -> Problem:
    """Compress the data to their rank and lay out the fields, source by source."""
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    left, singular, rotation = np.linalg.svd(np.asarray(data, np.float64), full_matrices=False)
    rank = max(1, int(np.sum(singular > singular[0] * max(data.shape) * np.finfo(float).eps)))
    # Few sizes, so that data of another rank need not compile again.
    size = singular.size
    while size // 2 >= rank:
        size //= 2
    field = jnp.asarray(lead_field, dtype)
    is_rough = dtype == np.float64 and field.shape[1] > 2 * _CANDIDATES[0]
    lengths = np.asarray(_lengths(field), float)
    scale = float(lengths.max()) or 1.0
    return Problem(
        field=field,
        single=_round(field, np.asarray(scale, dtype)) if is_rough else None,
        scale=scale,
        data=jnp.asarray((left * singular)[:, :size], dtype),
        weights=np.asarray(weights, float),
        reach=lengths / weights,
        rotation=rotation[:size],
        energy=0.5 * float(np.sum(singular**2)),
    )


def init(problem: Problem) -> State:
    """No sources, and what all of them make of the data."""
    _, n, d = problem.field.shape
    ratio, square, _ = survey(problem, problem.data)
    return State(
        scales=np.zeros(n),
        chosen=np.zeros(0, int),
        sources=jnp.zeros((0, d, problem.data.shape[1]), problem.field.dtype),
        residual=problem.data,
        ratio=ratio,
        misfit=0.5 * square,
        inner=square,
        penalty=0.0,
        n_steps=0,
    )


def solve(problem: Problem, alpha, start: State, ahead=None, *, tol=1e-6, max_steps=100):
    """Solve a prepared problem from an estimate, perhaps of another alpha, and an `Ahead` of it.

    Returns
    -------
    State, MixedNorm
    """
    if problem.field.dtype == np.float32:
        tol = max(tol, _FLOAT32_TOL)
    state, gap = _settle(problem, alpha, start._replace(n_steps=0), ahead, tol, max_steps)
    norms = np.asarray(jnp.sqrt(jnp.sum(state.sources**2, axis=(1, 2))))
    is_active = norms > 0
    order = np.argsort(state.chosen[is_active])
    active = np.asarray(state.sources)[is_active][order]
    result = MixedNorm(
        support=state.chosen[is_active][order],
        sources=(active @ problem.rotation.astype(active.dtype)),
        alpha=float(alpha),
        objective=float(state.misfit + alpha * state.penalty),
        gap=float(gap),
        n_steps=state.n_steps,
        is_converged=bool(gap <= tol),
    )
    return state, result


def _settle(problem, alpha, state, ahead, tol, max_steps):
    """Step until the gap is small, or nothing changes."""
    best, last = -np.inf, None
    for i in range(max_steps + 1):
        best = max(best, _dual_value(state, alpha))
        objective = state.misfit + alpha * state.penalty
        gap = max(objective - best, 0.0) / problem.energy
        # Where the objective stays, rounding is reached, and nothing else joined.
        if gap <= tol or last == (objective, state.chosen.size) or i == max_steps:
            break
        last = (objective, state.chosen.size)
        state = step(problem, alpha, state, ahead, gap, tol, max_steps)
        ahead = None
    return state, gap


def step(problem: Problem, alpha, state: State, ahead, gap, tol, max_steps) -> State:
    """Solve on a working set, or among candidates where there are many sources; survey them all."""
    start = Ahead(state.scales, state.ratio) if ahead is None else ahead
    ratio, n = start.ratio / alpha, start.ratio.size
    n_active = int(np.count_nonzero(state.scales))
    size, most = _CANDIDATES
    n_wanted = int(np.count_nonzero((ratio > 1) & (state.scales == 0)))
    if ahead is not None:
        n_wanted += _ROOM  # an expectation, no count
    working = working_size(n_active, n_wanted, n)
    wanted = max(2 * working, min(n_wanted, most))
    while size < wanted:
        size *= 2
    is_small = 2 * size >= n
    # To the end at once, unless many want to join who cannot yet.
    is_first = n_wanted > n_active + (working if is_small else size)
    tol = max(_INNER_SHARE * tol, _OUTER_SHARE * gap) if is_first else _INNER_SHARE * tol
    if is_small:
        chosen = choose(start.scales, ratio, problem.reach, working)
        found = _solve_chosen(problem, alpha, chosen, start.scales[chosen], tol)
        residual, sources = found.residual, found.sources
        n_steps = int(found.n_steps)
        penalty = (float(found.value) - 0.5 * float(jnp.sum(residual**2))) / float(alpha)
        active_scales = np.asarray(found.scales, float)
    else:
        some = choose(start.scales, ratio, problem.reach, size)
        few = Problem(
            field=_take(problem.field, some),
            single=None,
            scale=1.0,
            data=problem.data,
            weights=problem.weights[some],
            reach=problem.reach[some],
            rotation=problem.rotation,
            energy=problem.energy,
        )
        inner = state._replace(scales=state.scales[some], ratio=state.ratio[some], n_steps=0)
        own = None if ahead is None else Ahead(*(values[some] for values in ahead))
        inner, _ = _settle(few, alpha, inner, own, tol, max_steps)
        chosen, residual, sources = some[inner.chosen], inner.residual, inner.sources
        active_scales, n_steps, penalty = inner.scales[inner.chosen], inner.n_steps, inner.penalty
    ratio, square, inner_product = survey(problem, residual)
    scales = np.zeros(n)
    scales[chosen] = active_scales
    return State(
        scales=scales,
        chosen=chosen,
        sources=sources,
        residual=residual,
        ratio=ratio,
        misfit=0.5 * square,
        inner=inner_product,
        penalty=penalty,
        n_steps=state.n_steps + n_steps,
    )


def survey(problem: Problem, residual):
    """Correlations of all sources with a residual.

    Returns
    -------
    ratio : (n,) array
        |G_j' residual| / w_j of the largest, upper bounds of the others.
    square, inner : float
        |residual|^2 and <Y, residual>.
    """
    norms, square, inner = _linked_norms(
        problem.field if problem.single is None else problem.single, residual, problem.data
    )
    norms, square, inner = np.asarray(norms, float), float(square), float(inner)
    if problem.single is None:
        return norms / problem.weights, square, inner
    m, n, d = problem.field.shape
    unit = 0.5 * float(np.finfo(np.float32).eps)
    slack = (m + d * residual.shape[1] + 8) * unit
    ratio = problem.scale * norms / problem.weights
    ratio += slack * problem.reach * np.sqrt(square)
    # Room for all that are equally large: sources of the support.
    size, n_large = _CANDIDATES[0], np.count_nonzero(ratio > (1 - 1e-3) * ratio.max())
    while size < 2 * n_large:
        size *= 2
    if 2 * size < n:
        top = np.argpartition(-ratio, size)[:size]
        exact = _linked_norms(_take(problem.field, top), residual, problem.data)[0]
        ratio[top] = np.asarray(exact, float) / problem.weights[top]
        if np.delete(ratio, top).max() <= ratio[top].max():
            return ratio, square, inner
    exact = _linked_norms(problem.field, residual, problem.data)[0]
    return np.asarray(exact, float) / problem.weights, square, inner


def working_size(n_active, n_wanted, n_sources):
    """Size of the next working set: the active sources, and room for those that want to join."""
    room = min(max(n_wanted, _ROOM), max(_SIZES[0], n_active // 2))
    wanted = min(n_active + room, n_sources)
    size = next(k * 2**i for i in range(60) for k in _SIZES if k * 2**i >= wanted)
    return min(size, n_sources)


def choose(scales, ratio, reach, size):
    """Sources of the next working set: all that are not zero, then the nearest to their constraint.

    `ratio` is |G_j' Z| / alpha w_j, `reach` |G_j| / w_j.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(reach > 0, (1 - ratio) / reach, np.inf)
    distance[scales > 0] = -np.inf
    if size == scales.size:
        return np.arange(size)
    return np.argpartition(distance, size)[:size]


def certify(data, lead_field, alpha, support, sources, weights=None):
    """Objective and relative duality gap of any estimate, in plain double precision.

    Parameters
    ----------
    data, lead_field, alpha, weights
        As in `run`.
    support : (n_active,) int array
    sources : (n_active, d, n_times) array

    Returns
    -------
    objective, gap : float
    """
    data = np.asarray(data, np.float64)
    field = np.asarray(lead_field, np.float64)
    m, n, d = field.shape
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    sources = np.asarray(sources, np.float64)
    residual = data - predict(field, support, sources)
    norms = np.sqrt(np.sum(sources**2, axis=(1, 2)))
    objective = 0.5 * np.sum(residual**2) + alpha * np.sum(weights[support] * norms)
    linked = (field.reshape(m, n * d).T @ residual).reshape(n, -1)
    largest = np.max(np.sqrt(np.sum(linked**2, axis=1)) / weights)
    dual = scaled_dual(np.sum(data * residual), np.sum(residual**2), largest, alpha)
    energy = 0.5 * np.sum(data**2)
    return float(objective), float(max(objective - dual, 0.0) / energy)


def predict(lead_field, support, sources):
    """Data that the sources produce: (m, n_times)."""
    field = np.asarray(lead_field)[:, support]
    return field.reshape(len(field), -1) @ np.reshape(sources, (-1, np.shape(sources)[-1]))


def debias(data, lead_field, support, sources):
    """Undo the shrinkage: one amplitude a source, at least 1, by least squares.

    min_a |Y - sum_j a_j G_j X_j|^2, a_j >= 1: directions and courses stay as they are.

    Parameters
    ----------
    data, lead_field
        As in `run`.
    support : (n_active,) int array
    sources : (n_active, d, n_times) array

    Returns
    -------
    (n_active, d, n_times) array

    Notes
    -----
    Cost O(m n_active d n_times + n_active^3). Reference: Gramfort et al. 2013,
    doi:10.1016/j.neuroimage.2012.12.051.
    """
    if len(support) == 0:
        return np.asarray(sources)
    field = np.moveaxis(np.asarray(lead_field, float)[:, support], 1, 0)
    images = field @ np.asarray(sources, float)  # (n_active, m, n_times)
    flat = images.reshape(len(support), -1)
    left, rest = flat @ flat.T, flat @ (np.asarray(data, float) - images.sum(axis=0)).ravel()
    # The normal equations as least squares again, for the part above 1.
    values, vectors = np.linalg.eigh(left)
    is_seen = values > 1e-12 * values[-1]
    root = np.sqrt(values[is_seen])
    vectors = vectors[:, is_seen].T
    above = nnls(root[:, None] * vectors, (vectors @ rest) / root)[0]
    return np.asarray(sources) * (1 + above).astype(np.asarray(sources).dtype)[:, None, None]


def _dual_value(state, alpha):
    return scaled_dual(state.inner, 2 * state.misfit, state.ratio.max(), alpha)


def scaled_dual(inner, square, largest, alpha):
    """Dual objective at the best multiple of the residual that is feasible."""
    if square == 0:
        return 0.0
    share = min(max(inner / square, 0.0), alpha / largest if largest > 0 else np.inf)
    return share * inner - 0.5 * share**2 * square


@jax.jit
def _linked_norms(field, residual, data):
    m, n, d = field.shape
    square = jnp.sum(residual**2)
    # Numbers of order one: squares in single precision stay in its range.
    length = jnp.where(square > 0, jnp.sqrt(square), 1)
    own = (residual / length).astype(field.dtype)
    linked = jnp.matmul(own.T, field.reshape(m, n * d), precision=lax.Precision.HIGHEST)
    norms = jnp.sqrt(jnp.sum(linked.reshape(-1, n, d) ** 2, axis=(0, 2)))
    return norms.astype(square.dtype) * length, square, jnp.sum(data * residual)


def _solve_chosen(problem, alpha, chosen, scales, tol):
    dtype = problem.field.dtype
    return group_scales.run(
        _gather(problem.field, chosen),
        problem.data,
        problem.weights[chosen].astype(dtype),
        np.asarray(alpha, dtype),
        scales.astype(dtype),
        np.asarray(tol * problem.energy, dtype),
        np.int32(_NEWTON_STEPS),
    )


@jax.jit
def _gather(field, chosen):
    return jnp.transpose(field[:, chosen], (1, 2, 0))


@jax.jit
def _take(field, chosen):
    return field[:, chosen]


@jax.jit
def _round(field, scale):
    return (field / scale).astype(jnp.float32)


@jax.jit
def _lengths(field):
    return jnp.sqrt(jnp.sum(field**2, axis=(0, 2)))
