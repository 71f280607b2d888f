"""Sparse Bayesian learning: a variance of its own for every source, most of them zero.

    y_t = sum_j G_j x_jt + e_t,     x_jt ~ N(0, C_j),     e_t ~ N(0, R)
    L = log det Sigma + tr(C_y Sigma^{-1}),     Sigma = R + sum_j G_j C_j G_j'

C_y: mean of y_t y_t' over samples. C_j = gamma_j I (tied, the default) or any positive (d, d) block
(full); R known, or one unknown variance, or one a channel. -n_times (m log 2 pi + L) / 2 is the
log evidence, in nats, in units of the noise.

*Search.* Updates of all sources at once (`sparse_updates`) from equal variances: symmetric among
neighbours, and quick to tell most sources apart. The convex bound is relaxed as far as the cost
allows; a step that would raise it is taken back. What is left is brought to its end by exact
minimisation over one source after the other (`sparse_sweeps`), some fifty times quicker there. A
common variance of the noise is minimised over in every step. With an AR(1) in time, M differs from
one part of the data to the next: the updates go on alone.

*Pruning* is provisional: all sources are looked at again before the end, and return if the
evidence wants them.

*Certificate.* The largest of: imbalance ||P^{1/2} (Q - I) P^{1/2}|| / ||P|| of sources with a
variance (|A_j / D_j - 1| if tied), excess of any source (A_j / D_j - 1, or that of the largest
eigenvalue), and the same of unknown variances of the noise. L has many local minima: it does not
tell which this is.

*Degenerate noise.* With fewer samples than channels, and sources that can explain them all, L falls
without bound as an unknown noise goes to zero. Hence a floor, and a flag at it.

Cost O(m^2 n d + m^3) an update, O(m^2 d) a source and sweep. Nothing is n x n.

References: Wipf, Nagarajan 2009, doi:10.1016/j.neuroimage.2008.02.059; Hashemi et al. 2021,
doi:10.1016/j.neuroimage.2021.118309; Tipping 2001, JMLR 1:211.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array, check_choice, check_count, check_positive
from .sparse_look import Look, gather, look, observe
from .sparse_sweeps import sweep
from .sparse_updates import RULES, judge, update

__all__ = ["SparseBayes", "run"]

# Sources in a piece of the lead field.
_PIECE = 128
# Updates of all sources before sweeps take over.
_N_UPDATES = 14
# Growth of the exponent of the convex bound from step to step, and its end.
_FASTER, _FASTEST = 1.2, 20.0
# Share of a source, in degrees of freedom, below which it may go if the evidence agrees.
_NEGLIGIBLE = 1e-4
# Share of the largest excess below which imbalance can wait. Updates never give a variance to a
# direction that has none: it has to be returned.
_LACKING = 0.1
# Sweeps between looks at all sources.
_N_SWEEPS = 8
# Share of the places in use that must be needed.
_NEEDED = 0.8


class SparseBayes(NamedTuple):
    """Variances at a stationary point of the evidence."""

    source_var: np.ndarray  # gamma (n_sources,), or C (n_sources, d, d)
    noise_var: np.ndarray  # (m,)
    log_evidence: float  # of the whitened data at these variances
    costs: np.ndarray  # L at each accepted step
    n_steps: int  # updates and sweeps
    residual: float
    is_converged: bool
    is_noise_at_floor: bool


def run(
    data,
    lead_field,
    *,
    covariance="tied",
    noise="known",
    noise_std=1.0,
    noise_floor=0.03,
    coefficient=0.0,
    rule="convex_bound",
    is_accelerated=True,
    tol=1e-3,
    max_steps=500,
):
    """Find variances of sources where the evidence is stationary.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened, d at most 3.
    covariance : {"tied", "full"}
        gamma_j I, or any covariance over the d components of a source.
    noise : {"known", "scalar", "diagonal"}
        Noise variances: `noise_std` squared, one unknown, or one unknown a channel.
    noise_std : float
        Known, or where the search starts, relative to the noise covariance of the whitening.
    noise_floor : float
        Least standard deviation of unknown noise, relative to the root mean square of the data.
    coefficient : float
        Of an AR(1) of the sources in time, 0 for sources independent in time. Noise is then
        known or scalar.
    rule : {"convex_bound", "em", "mackay"}
        Update of all sources at once.
    is_accelerated : bool
        Without it the rule goes on alone and unrelaxed.
    tol : float
        Residual at which to stop. Single precision stops at 1e-3 at best.
    max_steps : int

    Returns
    -------
    SparseBayes

    Raises
    ------
    ValueError
        On arguments of another shape or range.
    """
    field = check_array("lead_field", lead_field, ndim=3)
    m, n_sources, d = field.shape
    if d > 3:
        raise ValueError(
            f"lead_field must have at most 3 orientations in its last axis, got {field.shape}."
        )
    dtype = jax.dtypes.canonicalize_dtype(field.dtype)
    data = check_array("data", data, shape=(m, "n_times")).astype(np.float64)
    check_choice("covariance", covariance, ("tied", "full"))
    check_choice("noise", noise, ("known", "scalar", "diagonal"))
    check_choice("rule", rule, RULES)
    noise_std = check_positive("noise_std", noise_std)
    noise_floor = check_positive("noise_floor", noise_floor)
    if not abs(coefficient) < 1:
        raise ValueError(f"coefficient must lie between -1 and 1, got {coefficient!r}.")
    if coefficient and noise == "diagonal":
        raise ValueError(
            "noise='diagonal' needs sources that are independent in time: with a coefficient other "
            "than 0 give noise='known' or 'scalar'."
        )
    tol = max(check_positive("tol", tol), 1e4 * float(np.finfo(dtype).eps))
    max_steps = check_count("max_steps", max_steps)
    power = np.mean(data**2)
    floor = noise_floor**2 * power if power > 0 else noise_std**2
    task = _Task(
        lead_field=jnp.asarray(field, dtype),
        observed=observe(data, coefficient, dtype),
        floor=floor,
        is_tied=covariance == "tied",
        noise=noise,
        rule=rule,
        is_relaxed=is_accelerated and rule == "convex_bound",
        tol=tol,
    )
    gamma = m * power / np.sum(np.square(field, dtype=np.float64))
    start_std = noise_std if noise == "known" else max(noise_std, floor**0.5)
    point = _Point(
        np.multiply.outer(np.eye(d), np.full(n_sources, gamma)), np.full(m, start_std**2)
    )
    is_swept = is_accelerated and coefficient == 0
    end = _update_all(task, point, min(max_steps, _N_UPDATES) if is_swept else max_steps)
    if is_swept and not end.is_converged:
        end = _sweep_all(task, end, max_steps)
    cov, noise_var = map(np.asarray, end.point)
    is_at_floor = noise != "known" and bool(np.any(noise_var <= floor * (1 + 1e-6)))
    n_times = data.shape[1]
    return SparseBayes(
        source_var=cov[0, 0] if task.is_tied else cov.transpose(2, 0, 1),
        noise_var=noise_var,
        log_evidence=float(-0.5 * n_times * (m * np.log(2 * np.pi) + end.costs[-1])),
        costs=np.array(end.costs),
        n_steps=end.n_steps,
        residual=float(end.residual),
        is_converged=bool(end.is_converged),
        is_noise_at_floor=is_at_floor,
    )


class _Task(NamedTuple):
    """What does not change along the search."""

    lead_field: jax.Array
    observed: tuple
    floor: float
    is_tied: bool
    noise: str
    rule: str
    is_relaxed: bool
    tol: float


class _Point(NamedTuple):
    cov: np.ndarray  # (d, d, n_sources)
    noise: np.ndarray  # (m,)


class _Layout(NamedTuple):
    """Some of the sources, in pieces that lie together."""

    pieces: jax.Array
    places: np.ndarray  # (n_places,): source, or -1
    n_used: int  # pieces
    sources: np.ndarray


class _View(NamedTuple):
    """A point and the slopes there; sources that were left out ask for nothing."""

    point: _Point
    seen: Look
    share: np.ndarray  # (n_sources,)
    excess: np.ndarray  # (n_sources,)
    imbalance: float  # of sources with a variance, and the noise
    residual: float


class _End(NamedTuple):
    point: _Point
    costs: list
    n_steps: int
    residual: float
    is_converged: bool


def _update_all(task, point, n_steps):
    """Updates of all sources that have a variance."""
    everyone = np.arange(point.cov.shape[2])
    layout = _arrange(task, everyone)
    slack = 1e3 * float(np.finfo(task.lead_field.dtype).eps) * len(point.noise)
    costs, kept, exponent, part = [], None, 0.5, 1.0
    is_guarded = False
    for step in range(n_steps):
        view = _view(task, layout, point)
        if is_guarded and not view.seen.cost <= costs[-1] + slack:
            # Back to the step that the bound vouches for.
            exponent, part, is_guarded = 0.5, part / 4, False
            point = _updated(task, kept, exponent)
            continue
        costs.append(float(view.seen.cost))
        if view.imbalance <= _settled(task, view) and len(layout.sources) < len(everyone):
            layout = _arrange(task, everyone)
            view = _view(task, layout, view.point)
        kept = view
        if view.residual <= task.tol:
            return _End(view.point, costs, step + 1, view.residual, True)
        has_var = _has_var(view.point)
        is_guarded = task.rule != "mackay"
        if view.imbalance <= _settled(task, view):
            point = _returned(task, view, part)
            has_var |= _has_var(point)
        else:
            point = _updated(task, view, exponent)
            point.cov[:, :, (view.excess < 0) & (view.share < _NEGLIGIBLE)] = 0
            exponent = min(exponent * _FASTER, _FASTEST) if task.is_relaxed else exponent
        if np.sum(has_var) < _NEEDED * len(layout.sources):
            layout = _arrange(task, np.flatnonzero(has_var))
    return _End(kept.point, costs, n_steps, kept.residual, False)


def _settled(task, view):
    """Imbalance below which what is missing matters more than what is there."""
    return max(task.tol, _LACKING * float(view.excess.max()))


def _sweep_all(task, end, max_steps):
    """Sweeps over the sources that have a variance, and those that the evidence wants."""
    everyone = _arrange(task, np.arange(end.point.cov.shape[2]))
    point, costs, residual = end.point, end.costs, end.residual
    layout = _arrange(task, np.flatnonzero(_has_var(point)))
    view = _view(task, layout, point)
    for step in range(end.n_steps, max_steps):
        cov, noise = sweep(
            layout.pieces,
            _to_places(point.cov, layout, task),
            view.seen.noise,
            view.seen.precision,
            view.seen.image,
            np.int32(len(layout.sources)),
            np.asarray(task.floor, task.lead_field.dtype),
            is_tied=task.is_tied,
            is_noise_learnt=task.noise == "diagonal",
        )
        view = _view(task, layout, _Point(_to_sources(cov, layout, point), np.asarray(noise)))
        point = view.point
        costs.append(float(view.seen.cost))
        if view.residual <= task.tol or (step - end.n_steps) % _N_SWEEPS == _N_SWEEPS - 1:
            view = _view(task, everyone, point)
            residual = view.residual
            if residual <= task.tol:
                return _End(point, costs, step + 1, residual, True)
            wanted = _has_var(point) | (view.excess > 0)
            layout = _arrange(task, np.flatnonzero(wanted))
        elif np.sum(_has_var(point)) < _NEEDED * len(layout.sources):
            layout = _arrange(task, np.flatnonzero(_has_var(point)))
    return _End(point, costs, max_steps, _view(task, everyone, point).residual, False)


def _has_var(point):
    return np.trace(point.cov) > 0


def _arrange(task, sources):
    """Gather sources in pieces; all layouts have the shape of the whole lead field."""
    n_sources = task.lead_field.shape[1]
    size = min(_PIECE, n_sources)
    places = np.full(-(-n_sources // size) * size, -1, np.int32)
    places[: len(sources)] = sources
    pieces = gather(task.lead_field, places.reshape(-1, size))
    return _Layout(pieces, places, np.int32(-(-len(sources) // size)), sources)


def _to_places(cov, layout, task):
    placed = np.where(layout.places >= 0, cov[:, :, layout.places], 0)
    return placed.astype(task.lead_field.dtype)


def _to_sources(placed, layout, point):
    cov = np.zeros_like(point.cov)
    cov[:, :, layout.sources] = np.asarray(placed)[:, :, : len(layout.sources)]
    return cov


def _view(task, layout, point):
    """Look at a point, and judge it."""
    dtype = task.lead_field.dtype
    cov = _to_places(point.cov, layout, task)
    seen = look(
        layout.pieces,
        cov,
        point.noise.astype(dtype),
        task.observed,
        layout.n_used,
        np.asarray(task.floor, dtype),
        is_learnt=task.noise == "scalar",
    )
    verdict = judge(cov, seen.quadratic, seen.power, is_tied=task.is_tied)
    n_sources = point.cov.shape[2]
    share, excess = np.zeros(n_sources), np.full(n_sources, -1.0)
    n = len(layout.sources)
    # As NumPy's: a slice of a compiled array is one program more for each length.
    share[layout.sources] = np.asarray(verdict.share)[:n]
    excess[layout.sources] = np.asarray(verdict.excess)[:n]
    noise = np.asarray(seen.noise, np.float64)
    imbalance = max(float(np.max(verdict.imbalance)), _noise_residual(task, seen, noise))
    quadratic, power = (
        _to_sources(a, layout, point).astype(dtype) for a in (seen.quadratic, seen.power)
    )
    return _View(
        _Point(point.cov, noise),
        seen._replace(quadratic=quadratic, power=power),
        share,
        excess,
        imbalance,
        max(imbalance, float(excess.max())),
    )


def _noise_residual(task, seen, noise):
    if task.noise == "known":
        return 0.0
    own, scale = np.asarray(seen.noise_power), np.asarray(seen.noise_quadratic)
    if task.noise == "scalar":
        own, scale, noise = np.sum(own), np.sum(scale), noise[0]
    excess = own / scale - 1
    # At the floor it may ask for less.
    is_at_floor = noise <= task.floor * (1 + 1e-6)
    return float(np.max(np.where(is_at_floor, excess, np.abs(excess)), initial=0))


def _updated(task, view, exponent):
    """The next point by the rule."""
    dtype = task.lead_field.dtype
    seen = view.seen
    cov = update(
        view.point.cov.astype(dtype),
        seen.quadratic,
        seen.power,
        np.asarray(exponent, dtype),
        rule=task.rule,
        is_tied=task.is_tied,
    )
    noise = view.point.noise
    if task.noise == "diagonal":
        own, scale = np.asarray(seen.noise_power), np.asarray(seen.noise_quadratic)
        if task.rule == "em":
            noise = noise + noise**2 * (own - scale)
        else:
            noise = noise * (own / scale) ** (1 if task.rule == "mackay" else exponent)
        noise = np.maximum(noise, task.floor)
    return _Point(np.array(cov, np.float64), noise)


def _returned(task, view, part):
    """Give sources that the evidence wants a part of the variance it wants for each alone."""
    cov = view.point.cov.copy()
    lacking = np.flatnonzero(view.excess > task.tol)
    z = view.seen.quadratic[:, :, lacking].transpose(2, 0, 1)
    a = view.seen.power[:, :, lacking].transpose(2, 0, 1)
    part = part / len(lacking)
    if task.is_tied:
        z, a = (np.trace(b, axis1=1, axis2=2) for b in (z, a))
        cov[:, :, lacking] += part * np.multiply.outer(np.eye(len(cov)), (a - z) / z**2)
        return _Point(cov, view.point.noise)
    values, vectors = np.linalg.eigh(z)
    is_seen = values > 1e-10 * values[:, -1:]
    inverse = np.where(is_seen, 1 / np.sqrt(np.where(is_seen, values, 1)), 0)
    root = (vectors * inverse[:, None]) @ vectors.swapaxes(1, 2)
    values, vectors = np.linalg.eigh(root @ a @ root)
    wanted = root @ (vectors * np.maximum(values - 1, 0)[:, None]) @ vectors.swapaxes(1, 2) @ root
    cov[:, :, lacking] += part * wanted.transpose(1, 2, 0)
    return _Point(cov, view.point.noise)
