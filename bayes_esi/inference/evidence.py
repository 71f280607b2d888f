"""Hyper-parameters of Gaussian source models: the largest evidence, and the evidence itself.

    theta* = argmax log p(data | theta) + log p(x),    p(data) = int p(data | theta) p(x) dx

in coordinates x that suit each unknown: logarithms of scales, atanh of coefficients, shares as
they are.
The search is L-BFGS-B with compiled gradients, from the best of some draws of the prior. The
integral is adaptive quadrature around the optimum; its error is told by a smaller rule.

Cost: some dozens of likelihoods with gradients, and up to twice `MOST_NODES` likelihoods.
References: MacKay 1992, doi:10.1162/neco.1992.4.3.415 (evidence); Byrd et al. 1995,
doi:10.1137/0916069 (L-BFGS-B); Liu, Pierce 1994, doi:10.1093/biomet/81.3.624 (quadrature).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

__all__ = ["Optimum", "maximise"]

SCALES = ("source_std", "noise_std", "time_scale")
COEFFICIENTS = ("coefficient", "partial")
_LARGEST_ATANH = 8.0  # a coefficient within 2e-7 of one
# Likelihoods that the quadrature may take: a fixed spectrum makes them cheap.
MOST_NODES, MOST_NODES_DENSE = 1500, 400
N_PROBED, N_STARTS = 64, 3
_RESTARTS = 5
MAX_STEPS = 200
_BATCH = 64  # points a compiled call takes: one shape, one compilation
_FINITE_STEP = 1e-4  # of x, for differences of gradients; error 1e-8 relative either way
_NEAR_BOUND = 0.01  # share of the range of x
_INSET = 1e-7  # share of a range that the search keeps from its ends
_NO_VALUE = 1e30  # loss where the likelihood is no number: line searches step back from it
_FAR = 6.0  # standard deviations beyond which a Gaussian has no mass to speak of (1e-9)


class Optimum(NamedTuple):
    """The largest evidence and what surrounds it."""

    hyper: dict  # every hyper-parameter at the optimum, known ones included
    std: dict  # posterior standard deviations of the unknown; of scales, relative
    log_likelihood: float  # of the whitened data at the optimum
    log_evidence: float  # integrated over the unknown
    log_evidence_std: float
    at_bound: tuple  # names of scales that ran into the end of their prior
    gradient: float  # largest of the gradient in x, times deviations: nats left to climb, or so


def maximise(likelihood, hyper, key):
    """Find the hyper-parameters of largest evidence, and integrate over them.

    Parameters
    ----------
    likelihood : SourceLikelihood
    hyper : Hyper
    key : PRNG key
        Draws where the search starts.

    Returns
    -------
    Optimum
    """
    known = {name: jnp.asarray(v, likelihood.data.dtype) for name, v in hyper.known.items()}
    if not hyper.unknown:
        value = float(_log_density(likelihood, known))
        return Optimum(hyper.known, {}, value, value, 0.0, (), 0.0)
    laws = {name: hyper.unknown[name] for name in sorted(hyper.unknown)}
    bounds = _bounds(laws)
    low, high = (np.concatenate([b[i].ravel() for b in bounds.values()]) for i in (0, 1))
    starts = _starts(key, laws, low, high)
    args = (likelihood, laws, known)
    best = starts[np.argsort(-_values(args, starts), kind="stable")[:N_STARTS]]
    ends = [_search(args, start, low, high) for start in best]
    x = max(ends, key=lambda end: end[1])[0]
    gradient, hessian = _derivatives(args, x, low, high)
    cov = _covariance(hessian, low, high)
    log_evidence, error = _integrate(args, x, gradient, cov, low, high)
    found = _name(laws, x)
    std = _name_plain(laws, np.sqrt(np.diag(cov)))
    for name in COEFFICIENTS:
        if name in std:
            std[name] = std[name] * (1 - found[name] ** 2)
    width = np.where(np.isfinite(high - low), high - low, np.inf)
    near = (np.minimum(x - low, high - x) < _NEAR_BOUND * width) & np.isfinite(width)
    at_end = np.minimum(x - low, high - x) <= 2 * _INSET * width
    at_bound = tuple(name for name, hit in _name_plain(laws, near).items() if np.any(hit))
    theta = {**hyper.known, **{name: np.asarray(v, np.float64) for name, v in found.items()}}
    return Optimum(
        hyper=theta,
        std=std,
        log_likelihood=float(_log_density(likelihood, jax.tree.map(jnp.asarray, theta))),
        log_evidence=log_evidence,
        log_evidence_std=error,
        at_bound=at_bound,
        gradient=float(np.max(np.abs(gradient * np.sqrt(np.diag(cov))), where=~at_end, initial=0)),
    )


@jax.jit
def _log_density(likelihood, theta):
    return likelihood.log_density(theta)


def _log_posterior(likelihood, laws, known, x):
    """Log likelihood plus log prior density with respect to x."""
    theta = _name(laws, x)
    log_prior = 0.0
    for name, law in laws.items():
        log_prior = log_prior + jnp.sum(law.log_prob(theta[name]))
        if name in SCALES:
            log_prior = log_prior + jnp.sum(jnp.log(theta[name]))
        if name in COEFFICIENTS:
            log_prior = log_prior + jnp.sum(jnp.log1p(-(theta[name] ** 2)))
    return likelihood.log_density({**known, **theta}) + log_prior


@jax.jit
def _batch_of_values(likelihood, laws, known, points):
    return jax.lax.map(lambda x: _log_posterior(likelihood, laws, known, x), points)


@jax.jit
def _value_and_gradient(likelihood, laws, known, x):
    return jax.value_and_grad(lambda x: _log_posterior(likelihood, laws, known, x))(x)


def _values(args, points):
    """Log posterior at some points: (n_points,), minus infinity where it is not finite."""
    padded = np.resize(points, (-(-len(points) // _BATCH) * _BATCH, points.shape[1]))
    batches = padded.reshape(-1, _BATCH, points.shape[1])
    dtype = args[0].data.dtype
    values = [np.asarray(_batch_of_values(*args, jnp.asarray(b, dtype))) for b in batches]
    values = np.concatenate(values)[: len(points)].astype(np.float64)
    return np.where(np.isfinite(values), values, -np.inf)


def _gradient_at(args, x):
    value, gradient = _value_and_gradient(*args, jnp.asarray(x, args[0].data.dtype))
    return float(value), np.asarray(gradient, np.float64)


def _search(args, start, low, high):
    """Climb from a start: the place reached and its value."""

    def loss(x):
        value, gradient = _gradient_at(args, x)
        is_number = np.isfinite(value) and np.all(np.isfinite(gradient))
        return (-value, -gradient) if is_number else (_NO_VALUE, np.zeros_like(x))

    inset = _INSET * np.where(np.isfinite(high - low), high - low, 0.0)
    ends = zip(low + inset, high - inset, strict=True)
    bounds = [tuple(b if np.isfinite(b) else None for b in pair) for pair in ends]
    value = np.inf
    for _ in range(_RESTARTS):
        # A line search that met no number leaves a poor picture of the curvature: start afresh.
        found = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": MAX_STEPS, "ftol": 1e-14, "gtol": 1e-8},
        )
        gain, start, value = value - found.fun, found.x, found.fun
        if gain < 1e-6:
            break
    return start, -value


def _derivatives(args, x, low, high):
    """Gradient and Hessian in x, by central differences of gradients inside the bounds."""
    step = _FINITE_STEP * np.minimum(1.0, high - low)
    inside = np.clip(x, low + 1.01 * step, high - 1.01 * step)
    rows = [
        (_gradient_at(args, inside + h)[1] - _gradient_at(args, inside - h)[1]) / (2 * h.sum())
        for h in np.diag(step)
    ]
    hessian = np.array(rows)
    return _gradient_at(args, x)[1], 0.5 * (hessian + hessian.T)


def _covariance(hessian, low, high):
    """Inverse of minus the Hessian, no wider than the prior's range (a quarter, uniform)."""
    width = np.where(np.isfinite(high - low), high - low, 40.0)
    precision = -hessian + np.diag((4 / width) ** 2)
    eigenvalues, vectors = np.linalg.eigh(precision)
    eigenvalues = np.maximum(eigenvalues, np.min((4 / width) ** 2))
    return (vectors / eigenvalues) @ vectors.T


def _integrate(args, x, gradient, cov, low, high):
    """Adaptive quadrature, and how far a smaller rule is from it.

    Coordinates far from the ends of their prior take Gauss-Hermite rules, given the others, which
    take Gauss-Legendre rules between the ends and where the density has fallen to nothing.
    """
    std = np.sqrt(np.diag(cov))
    near = np.minimum(x - low, high - x) < _FAR * std
    most = MOST_NODES if args[0].family is None else MOST_NODES_DENSE
    order = next((k for k in range(21, 1, -2) if k**x.size <= most), 1)
    results = []
    for k in dict.fromkeys((order, max(order - 2, 1))):
        points, log_weights = _nodes(k, x, gradient, cov, near, low, high)
        is_inside = np.all((points >= low) & (points <= high), axis=1)
        values = _values(args, np.where(is_inside[:, None], points, x))
        results.append(logsumexp(np.where(is_inside, values + log_weights, -np.inf)))
    error = abs(results[0] - results[-1]) if len(results) > 1 else float("nan")
    return float(results[0]), float(error)


def _nodes(order, x, gradient, cov, near, low, high):
    """Nodes (n, dim) and log weights (n,) of an integral over x."""
    std = np.sqrt(np.diag(cov))
    legendre, hermite = (
        rule(order) for rule in (np.polynomial.legendre.leggauss, np.polynomial.hermite.hermgauss)
    )
    axes, log_weights = [], []
    for i in range(x.size):
        if near[i]:
            # At an end the density falls with its slope, too: g d + d^2 / (2 std^2) = _FAR^2 / 2.
            reach = [
                std[i] ** 2 * (np.hypot(slope, _FAR / std[i]) - slope)
                for slope in (max(gradient[i], 0.0), max(-gradient[i], 0.0))
            ]
            start, stop = max(low[i], x[i] - reach[0]), min(high[i], x[i] + reach[1])
            axes.append(0.5 * (start + stop + (stop - start) * legendre[0]) - x[i])
            log_weights.append(np.log(legendre[1] * (stop - start) / 2))
        else:
            axes.append(np.sqrt(2) * hermite[0])
            log_weights.append(np.log(hermite[1]) + hermite[0] ** 2 + 0.5 * np.log(2))
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    total = sum(np.meshgrid(*log_weights, indexing="ij")).ravel()
    slope = np.linalg.solve(cov[np.ix_(near, near)], cov[np.ix_(near, ~near)])
    chol = np.linalg.cholesky(cov[np.ix_(~near, ~near)] - cov[np.ix_(~near, near)] @ slope)
    points = np.empty_like(grid)
    points[:, near] = x[near] + grid[:, near]
    points[:, ~near] = x[~near] + grid[:, near] @ slope + grid[:, ~near] @ chol.T
    return points, total + np.sum(np.log(np.diag(chol)))


# -------------------------------------------------------------------- coordinates


def _shapes(laws):
    return {name: law.shape() for name, law in laws.items()}


def _name_plain(laws, x):
    """Cut a flat array into named pieces."""
    pieces, start = {}, 0
    for name, shape in _shapes(laws).items():
        size = int(np.prod(shape))
        pieces[name] = x[..., start : start + size].reshape(shape)
        start += size
    return pieces


def _name(laws, x):
    """Named values of coordinates x."""
    own = jnp if isinstance(x, jax.Array) else np
    values = {}
    for name, piece in _name_plain(laws, x).items():
        act = own.exp if name in SCALES else own.tanh if name in COEFFICIENTS else own.asarray
        values[name] = act(piece)
    return values


def _bounds(laws):
    """Ends of x for each unknown, infinite where there are none."""
    ends = {}
    for name, law in laws.items():
        low, high = (
            np.broadcast_to(np.asarray(end, np.float64), law.shape()) for end in _support(law)
        )
        if name in SCALES:
            with np.errstate(divide="ignore"):
                low, high = np.log(np.maximum(low, 0.0)), np.log(high)
        if name in COEFFICIENTS:
            most = np.tanh(_LARGEST_ATANH)
            low, high = (np.arctanh(np.clip(end, -most, most)) for end in (low, high))
        ends[name] = (np.asarray(low), np.asarray(high))
    return ends


def _support(law):
    from numpyro.distributions import constraints

    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support in (constraints.positive, constraints.nonnegative):
        return 0.0, np.inf
    if support is constraints.unit_interval:
        return 0.0, 1.0
    return getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)


def _starts(key, laws, low, high):
    """Draws of the prior as coordinates x, a little inside the bounds."""
    pieces = []
    for i, (name, law) in enumerate(laws.items()):
        drawn = np.asarray(law.sample(jax.random.fold_in(key, i), (N_PROBED,)), np.float64)
        drawn = drawn.reshape(N_PROBED, -1)
        if name in SCALES:
            drawn = np.log(drawn)
        pieces.append(np.arctanh(drawn) if name in COEFFICIENTS else drawn)
    starts = np.concatenate(pieces, axis=1)
    margin = 1e-3 * np.where(np.isfinite(high - low), high - low, 0.0)
    return np.clip(starts, low + margin, high - margin)
