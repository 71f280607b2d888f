"""Time-frequency mixed norm: few sources, each with few windowed waves, so that they come and go.

    min_U  1/2 |Y - sum_j G_j U_j F'|^2 + alpha sum_j w_j [ (1 - rho) |U_j| + rho |U_j|_1 ]

U_j (d, n_atoms) are the coefficients of source j in a tight frame F (`time_frequency.py`); |U_j| is
the Frobenius norm, |U_j|_1 the sum over atoms of the magnitude over components, counted as the
frame says. With rho = 0 and the frame of single samples this is the mixed norm.

*Dual.* Z, a shortened residual, bounds the minimum if for each source the norm dual to the bracket
is at most alpha w_j: with magnitudes a_k of the coefficients G_j' Z F, that norm is the root t of

    |(a - t rho c)_+| = t (1 - rho),       c the counts

whose left side less the right one is convex and falls: Newton's method from below reaches the
root, monotonically. t <= |G_j' Z| / (1 - rho) needs no coefficients and settles most sources.

*Descent.* On working sets, blocks move in turn: U_j <- prox(U_j + G_j' R F / L_j), soft thresholds
of atoms, then of the block; every five sweeps Anderson's extrapolation is tried, and kept if it
lowers the objective.

Cost of a sweep: O(d n_times n_atoms + k d^2 n_times) for each source that moves; of a survey
O(m n d n_times). Time cannot be compressed here.

References: Gramfort et al. 2013, doi:10.1016/j.neuroimage.2012.12.051 (the estimate); Burdakov
1988; Ndiaye et al. 2016, arXiv:1602.06225 (dual norm of the two penalties); Bertrand, Massias 2021,
arXiv:2011.10065 (extrapolated descent).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_count, check_positive
from ..core.types import Array, Float, Int
from ..linalg.proximal import shrink
from . import time_frequency
from .mixed_norm import check_problem, choose, scaled_dual

__all__ = ["TimeFrequencyNorm", "alpha_max", "run"]

_SIZES = (16, 24)  # sources of a working set: these numbers, doubled again and again
_GROWTH = 1.5
_CHUNK = 64  # sources whose coefficients are computed at a time
_SWEEPS = 5  # between extrapolations and looks at the gap
_ROOT_STEPS = 60
_INNER_SHARE, _OUTER_SHARE = 0.3, 0.1
_FLOAT32_TOL = 1e-4  # what single precision can certify


class TimeFrequencyNorm(NamedTuple):
    """Active sources and their coefficients, and the certificate of both."""

    support: np.ndarray  # (n_active,) int, increasing
    sources: np.ndarray  # (n_active, d, n_times), units of whitened data / lead field
    coefficients: np.ndarray  # (n_active, d, n_atoms, c): U
    alpha: float
    objective: float
    gap: float  # relative to 1/2 |Y|^2, over all sources
    n_steps: int  # sweeps
    is_converged: bool


class _Descent(NamedTuple):
    coefficients: Float[Array, "k d n_atoms c"]
    sources: Float[Array, "k d n_times"]
    residual: Float[Array, "m n_times"]
    value: Float[Array, ""]
    gap: Float[Array, ""]
    n_steps: Int[Array, ""]


def alpha_max(data, lead_field, weights=None, *, l1_ratio=0.05, frame=None):
    """Least alpha at which all coefficients are zero.

    Parameters and errors are those of `run`.
    """
    data, lead_field, weights, frame, l1_ratio = _checked(
        data, lead_field, weights, frame, l1_ratio
    )
    problem = _Problem(data, lead_field, weights, frame, l1_ratio)
    linked = problem.linked(problem.data)
    return float(problem.dual_norms(linked, 1.0, stop=False).max())


def run(
    data,
    lead_field,
    alpha,
    weights=None,
    *,
    l1_ratio=0.05,
    frame=None,
    tol=1e-6,
    max_steps=100,
    max_sweeps=2000,
):
    """Solve for the time-frequency mixed-norm estimate.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3.
    alpha : float
        Weight of both penalties, in units of whitened data; see `alpha_max`.
    weights : (n_sources,) array, optional
        Positive. Ones by default.
    l1_ratio : float
        rho, at least 0 and below 1.
    frame : time_frequency.Frame, optional
        Windows of 64 samples in steps of 4 by default.
    tol : float
        Relative duality gap. Single precision certifies 1e-4 at best.
    max_steps : int
        Working sets.
    max_sweeps : int
        Sweeps over one working set.

    Returns
    -------
    TimeFrequencyNorm

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, numbers out of range, a frame of another
        length or one that is not tight.
    """
    data, lead_field, weights, frame, l1_ratio = _checked(
        data, lead_field, weights, frame, l1_ratio
    )
    alpha = check_positive("alpha", alpha, remedy="See alpha_max.")
    tol = check_positive("tol", tol)
    max_steps = check_count("max_steps", max_steps)
    max_sweeps = check_count("max_sweeps", max_sweeps)
    problem = _Problem(data, lead_field, weights, frame, l1_ratio)
    if problem.dtype == np.float32:
        tol = max(tol, _FLOAT32_TOL)
    _, n, d = lead_field.shape
    chosen, state, n_steps = np.zeros(0, int), problem.nothing(d), 0
    norms, best, last = np.zeros(0), -np.inf, None
    for i in range(max_steps + 1):
        linked = problem.linked(state.residual)
        ratio = problem.dual_norms(linked, alpha)
        square = float(jnp.sum(state.residual**2))
        inner = float(jnp.sum(state.residual * problem.data))
        best = max(best, scaled_dual(inner, square, alpha * ratio.max(), alpha))
        objective = float(state.value)
        gap = max(objective - best, 0.0) / problem.energy
        if gap <= tol or i == max_steps or last == (objective, chosen.size):
            break
        last = (objective, chosen.size)
        size_of = np.zeros(n)
        size_of[chosen] = norms
        wanted = _GROWTH * np.count_nonzero(size_of)
        size = next(k * 2**e for e in range(60) for k in _SIZES if k * 2**e >= wanted)
        before, chosen = chosen, choose(size_of, ratio, problem.reach, min(size, n))
        start = np.zeros((chosen.size, *state.coefficients.shape[1:]))
        _, here, there = np.intersect1d(chosen, before, return_indices=True)
        start[here] = np.asarray(state.coefficients)[there]
        state = problem.descend(
            chosen,
            start,
            alpha,
            problem.energy * max(_INNER_SHARE * tol, _OUTER_SHARE * gap),
            max_sweeps,
        )
        n_steps += int(state.n_steps)
        norms = np.sqrt(np.sum(np.asarray(state.coefficients, float) ** 2, axis=(1, 2, 3)))
    is_active = norms > 0
    order = np.argsort(chosen[is_active])
    return TimeFrequencyNorm(
        support=chosen[is_active][order],
        sources=np.asarray(state.sources)[is_active][order],
        coefficients=np.asarray(state.coefficients)[is_active][order],
        alpha=alpha,
        objective=objective,
        gap=float(gap),
        n_steps=n_steps,
        is_converged=bool(gap <= tol),
    )


class _Problem:
    """Arrays on the device, and what is asked of them."""

    def __init__(self, data, lead_field, weights, frame, l1_ratio):
        self.dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
        self.field = jnp.transpose(jnp.asarray(lead_field, self.dtype), (1, 2, 0))
        self.data = jnp.asarray(data, self.dtype)
        self.atoms = jnp.asarray(frame.atoms, self.dtype)
        self.count = jnp.asarray(frame.count, self.dtype)
        self.weights, self.l1_ratio = weights, l1_ratio
        self.reach = np.sqrt(np.sum(np.asarray(lead_field, float) ** 2, axis=(0, 2))) / weights
        self.energy = 0.5 * float(np.sum(np.asarray(data, float) ** 2))

    def nothing(self, d):
        shape = (0, d, *self.atoms.shape[1:])
        return _Descent(
            coefficients=np.zeros(shape, self.dtype),
            sources=np.zeros((0, d, len(self.atoms)), self.dtype),
            residual=self.data,
            value=np.asarray(self.energy),
            gap=np.inf,
            n_steps=0,
        )

    def linked(self, residual):
        """Correlations G'R of all sources (n, d, n_times), and their norms relative to w (n,)."""
        linked, norms = _correlate(self.field, residual)
        return linked, np.asarray(norms, float) / self.weights

    def dual_norms(self, linked, alpha, *, stop=True):
        """Dual norms relative to alpha w_j; upper bounds at most 1 where those will do.

        Without `stop`, upper bounds that are below the largest norm.
        """
        linked, norms = linked
        bound = norms / (alpha * (1 - self.l1_ratio))
        if self.l1_ratio == 0:
            return bound
        order = np.argsort(-bound)
        ratio, largest = bound.copy(), 1.0 if stop else 0.0
        for first in range(0, len(order), _CHUNK):
            some = np.resize(order[first : first + _CHUNK], _CHUNK)
            if bound[some[0]] <= largest:
                break
            exact = _dual_norms_of(
                linked, some, self.atoms, self.count, np.asarray(self.l1_ratio, self.dtype)
            )
            ratio[some] = np.asarray(exact, float) / (alpha * self.weights[some])
            if not stop:
                largest = max(largest, ratio[some].max())
        return ratio

    def descend(self, chosen, start, alpha, tol, max_sweeps):
        as_own = [
            np.asarray(a, self.dtype)
            for a in (start, self.weights[chosen], alpha, self.l1_ratio, tol)
        ]
        return _descend(
            self.field, chosen, self.data, self.atoms, self.count, *as_own, np.int32(max_sweeps)
        )


@jax.jit
def _correlate(field, residual):
    n, d, m = field.shape
    linked = (field.reshape(n * d, m) @ residual).reshape(n, d, -1)
    return linked, jnp.sqrt(jnp.sum(linked**2, axis=(1, 2)))


@jax.jit
def _dual_norms_of(linked, some, atoms, count, l1_ratio):
    coefficients = jnp.einsum("kdt,tac->kdac", linked[some], atoms)
    return _dual_norm(_magnitudes(coefficients), count, l1_ratio)


def _magnitudes(coefficients):
    return jnp.sqrt(jnp.sum(coefficients**2, axis=(1, 3)))


def _dual_norm(magnitudes, count, l1_ratio):
    """Root t of |(a - t rho c)_+| = t (1 - rho), of each row a of magnitudes."""
    threshold = l1_ratio * count

    def move(carry):
        i, t, _ = carry
        left = jnp.maximum(magnitudes - t[:, None] * threshold, 0)
        norm = jnp.sqrt(jnp.sum(left**2, axis=1))
        safe = jnp.where(norm > 0, norm, 1)
        slope = jnp.sum(left * threshold, axis=1) / safe + 1 - l1_ratio
        new = jnp.maximum(t + (norm - t * (1 - l1_ratio)) / slope, t)
        return i + 1, new, jnp.any(new > t * (1 + 4 * jnp.finfo(t.dtype).eps))

    start = jnp.zeros(len(magnitudes), magnitudes.dtype)
    return lax.while_loop(
        lambda carry: (carry[0] < _ROOT_STEPS) & carry[2], move, (0, start, jnp.asarray(True))
    )[1]


@jax.jit
def _descend(
    all_fields, chosen, data, atoms, count, start, weights, alpha, l1_ratio, tol, max_sweeps
):
    field = all_fields[chosen]
    k, d, m = field.shape
    n_times, n_atoms, c = atoms.shape
    flat_atoms = atoms.reshape(n_times, n_atoms * c)
    columns = field.reshape(k * d, m).T
    blocks = (columns.T @ columns).reshape(k, d, k, d).transpose(2, 0, 1, 3)
    own = jnp.arange(k)
    curvature = jnp.linalg.eigvalsh(blocks[own, own])[:, -1]
    curvature = jnp.maximum(curvature, jnp.finfo(data.dtype).tiny)
    whole, single = alpha * (1 - l1_ratio) * weights, alpha * l1_ratio * weights

    def evaluate(coefficients, n_steps):
        sources = (coefficients.reshape(k * d, -1) @ flat_atoms.T).reshape(k, d, n_times)
        residual = data - columns @ sources.reshape(k * d, n_times)
        magnitudes = _magnitudes(coefficients)
        penalty = jnp.sum(whole * jnp.sqrt(jnp.sum(magnitudes**2, axis=1)))
        penalty = penalty + jnp.sum(single * (magnitudes @ count))
        value = 0.5 * jnp.sum(residual**2) + penalty
        infinite = jnp.full_like(value, jnp.inf)
        return _Descent(coefficients, sources, residual, value, infinite, n_steps)

    def measure(state):
        linked = (columns.T @ state.residual).reshape(k, d, n_times)
        coefficients = jnp.einsum("kdt,tac->kdac", linked, atoms)
        largest = jnp.max(_dual_norm(_magnitudes(coefficients), count, l1_ratio) / weights)
        square = jnp.sum(state.residual**2)
        inner = jnp.sum(state.residual * data)
        feasible = alpha / jnp.maximum(largest, jnp.finfo(square.dtype).tiny)
        share = jnp.minimum(inner / jnp.where(square > 0, square, 1), feasible)
        share = jnp.maximum(share, 0)
        return state._replace(gap=state.value - share * inner + 0.5 * share**2 * square)

    def update(i, carry):
        coefficients, linked = carry
        i = i % k
        old = coefficients[i]
        is_silent = jnp.all(old == 0) & (jnp.sum(linked[i] ** 2) <= whole[i] ** 2)

        def act():
            step = 1 / curvature[i]
            new = old + step * (linked[i] @ flat_atoms).reshape(d, n_atoms, c)
            new = shrink(new, step * single[i] * count[:, None], (0, 2))
            new = shrink(new, step * whole[i], (0, 1, 2))
            change = (new - old).reshape(d, -1) @ flat_atoms.T
            moved = linked - jnp.einsum("kde,et->kdt", blocks[i], change)
            return coefficients.at[i].set(new), moved

        return lax.cond(is_silent, lambda: carry, act)

    def sweep(carry, _):
        carry = lax.fori_loop(0, k, update, carry)
        return carry, carry[0].ravel()

    def improve(carry):
        state, _ = carry
        linked = (columns.T @ state.residual).reshape(k, d, n_times)
        (last, _), path = lax.scan(sweep, (state.coefficients, linked), None, length=_SWEEPS)
        n_steps = state.n_steps + _SWEEPS
        swept = evaluate(last, n_steps)
        path = jnp.concatenate([state.coefficients.reshape(1, -1), path])
        moves = jnp.diff(path, axis=0)
        gram = moves @ moves.T
        ridge = 1e-10 * jnp.trace(gram) + jnp.finfo(gram.dtype).tiny
        mix = jnp.linalg.solve(
            gram + ridge * jnp.eye(_SWEEPS, dtype=gram.dtype), jnp.ones(_SWEEPS, gram.dtype)
        )
        mixed = ((mix / jnp.sum(mix)) @ path[1:]).reshape(last.shape)
        extrapolated = evaluate(mixed, n_steps)
        is_better = extrapolated.value < swept.value
        new = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), extrapolated, swept)
        new = measure(new)
        return new, jnp.any(moves != 0)

    first = evaluate(start, jnp.zeros((), jnp.int32))
    return lax.while_loop(
        lambda carry: (carry[0].gap > tol) & (carry[0].n_steps < max_sweeps) & carry[1],
        improve,
        (first, jnp.asarray(True)),
    )[0]


def _checked(data, lead_field, weights, frame, l1_ratio):
    data, lead_field, weights = check_problem(data, lead_field, weights)
    n_times = data.shape[1]
    l1_ratio = float(check_array("l1_ratio", l1_ratio, ndim=0))
    if not 0 <= l1_ratio < 1:
        raise ValueError(f"l1_ratio must be at least 0 and below 1, got {l1_ratio!r}.")
    if frame is None:
        frame = time_frequency.waves(n_times)
    atoms = check_array("frame.atoms", frame.atoms, shape=(n_times, None, None))
    flat = atoms.reshape(n_times, -1)
    if not np.allclose(flat @ flat.T, np.eye(n_times), atol=1e-6):
        raise ValueError("frame must be tight, F F' = I; `time_frequency.waves` makes such frames.")
    return data, lead_field, weights, frame, l1_ratio
