"""Iterative alternating sequential algorithm: sources and their variances, one after the other.

    y = sum_j G_j x_j + e,  e ~ N(0, I),    x_j | theta_j ~ N(0, theta_j I_d)
    p(theta_j) ~ theta_j^(r beta - 1) exp(-(theta_j / s_j)^r)        (generalised gamma)

The joint maximum over x and theta is the minimum of

    E = ||y - G x||^2 / 2 + sum_j u_j / t_j - eta log t_j + t_j^r,
    t = theta / s,   u_j = ||x_j||^2 / (2 s_j),   eta = r beta - (d + 2) / 2.

Steps: x given theta is a minimum norm; t given x is the one root of r t^r - eta - u / t: closed
for r = 1 and r = -1, bracketed closely and found by Newton's method else. Both are exact minima,
but theta moves on by 0.8 of its step (in logarithms) where its own terms do not rise: E falls at
every half step, and half as many are needed.

*Convexity.* r = 1 with eta > 0 is convex: one minimum, and for eta -> 0 that of the penalty
sqrt(2 / s_j) ||x_j||. r = -1 is a Student-t penalty. Other r are sparser and have many minima: the
hybrid starts them where r = 1 ends.

One theta for each sample, or one for all, when d counts the components at all samples.
Covariances of orientation C_j: put G_j C_j^{1/2} in the place of G_j.

*Scales* s_j = C / ||G_j||_F^2 make the expected signal the same wherever the active sources are;
C follows from SNR and their number. It is depth weighting that nobody had to choose.

*Certificate.* With x at its minimum, the largest |r t^r - eta - u / t| / (|r t^r| + |eta| + u / t):
the gradient of E in log theta against its own terms.

Cost O(m^2 n d + m^3) an iteration and theta; linear convergence.

References: Calvetti, Hakula, Pursiainen, Somersalo 2009, doi:10.1137/080723995; Calvetti et al.
2015, doi:10.1088/0266-5611/31/12/125005.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import brentq
from scipy.special import gammaln

from ..core.checks import check_array, check_count, check_positive
from ..core.types import Array, Bool, Float, Int
from ..linalg import pieces as cut

__all__ = ["IasSources", "run", "scales", "step_scale"]

# Steps of the safeguarded Newton iteration for t.
_N_NEWTON = 40
# Of over-relaxation in log theta.
_FURTHER = 1.8
_HIGH = lax.Precision.HIGHEST


class IasSources(NamedTuple):
    """A minimum of the energy; the first axis is over samples, or of length one if shared."""

    mean: Float[Array, "n_sources d n_times"]  # x
    source_var: Float[Array, "n_laws n_sources"]  # theta
    energies: Float[Array, "n_laws max_steps 2"]  # after each half step; NaN beyond the last
    residual: Float[Array, "n_laws"]
    n_steps: Int[Array, "n_laws"]
    is_converged: Bool[Array, "n_laws"]


class State(NamedTuple):
    """One law's iteration."""

    theta: Float[Array, "n"]  # in the order of the pieces
    energies: Float[Array, "max_steps 2"]
    residual: Float[Array, ""]
    n_steps: Int[Array, ""]


def run(
    data,
    lead_field,
    *,
    exponent=1.0,
    shape=None,
    eta=0.01,
    scale=None,
    snr=None,
    n_active=1.0,
    is_shared=False,
    hybrid_exponent=None,
    tol=1e-4,
    max_steps=300,
):
    """Minimise the energy.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened, d at most 3.
    exponent : float
        r, not zero. 1 is the gamma law, -1 the inverse gamma.
    shape : float, optional
        beta. Without it from `eta`.
    eta : float
        Small and positive promotes sparsity. With r = 1 it fixes beta; with another r, beta is the
        one that keeps the variance of silent sources at the same share of the expected one.
    scale : (n_sources,) array, optional
        s, in units of x squared. Without it by `scales` from `snr` and `n_active`.
    snr : float, optional
        Expected power of the data over that of the noise, above 1. Without it, as found in the
        data, but at least 1.1.
    n_active : float
        Expected number of active sources.
    is_shared : bool
        One variance a source for all samples.
    hybrid_exponent : float, optional
        Go on with this exponent where the first one ends, with the same expected variances, and
        the same variances of silent sources.
    tol : float
        Residual at which to stop. Single precision stops at 1e-3 at best.
    max_steps : int
        Of each stage.

    Returns
    -------
    IasSources
        Of the last stage.

    Raises
    ------
    ValueError
        On arguments of another shape or range.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n_sources, d = lead_field.shape
    if d > 3:
        raise ValueError(
            f"lead_field must have at most 3 orientations in its last axis, got {lead_field.shape}."
        )
    data = check_array("data", data, shape=(m, "n_times"))
    tol, max_steps = check_positive("tol", tol), check_count("max_steps", max_steps)
    eta = check_positive("eta", eta)
    n_components = d * (data.shape[1] if is_shared else 1)
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    tol = max(tol, 1e4 * float(np.finfo(dtype).eps))
    if snr is None:
        snr = max(float(np.mean(np.square(data, dtype=np.float64))), 1.1)
    stages = [(exponent, _shape(exponent, shape, eta, n_components))]
    if hybrid_exponent is not None:
        stages.append((hybrid_exponent, _shape(hybrid_exponent, None, eta, n_components)))
    if scale is None:
        own = scales(lead_field, snr, n_active, *stages[0])
    else:
        own = check_array("scale", scale, shape=(n_sources,))
        if np.any(own <= 0):
            raise ValueError("scale must be positive everywhere.")
    expected = own * np.exp(_log_expected(*stages[0]))
    start = own[None]
    for r, beta in stages:
        own = expected * np.exp(-_log_expected(r, beta))
        numbers = (r, r * beta - (n_components + 2) / 2, tol)
        result = _run(
            data.astype(dtype),
            lead_field.astype(dtype),
            own.astype(dtype),
            start.astype(dtype),
            *(np.asarray(a, dtype) for a in numbers),
            max_steps=max_steps,
            is_shared=is_shared,
        )
        start = result.source_var
    return result


def scales(lead_field, snr, n_active, exponent, shape):
    """s_j for which any `n_active` sources have the expected power (snr - 1) m at the sensors.

    E theta_j = s_j Gamma(beta + 1 / r) / Gamma(beta). Sources without a field get the scale of
    the weakest that has one: they stay where their prior has them.
    """
    snr = check_positive("snr", snr)
    if snr <= 1:
        raise ValueError(f"snr must be above 1, got {snr}: it counts the noise itself.")
    n_active = check_positive("n_active", n_active)
    power = np.sum(np.square(lead_field, dtype=np.float64), axis=(0, 2))
    power = np.where(power > 0, power, np.min(power, where=power > 0, initial=np.inf))
    mean = np.exp(_log_expected(exponent, shape))
    return (snr - 1) * len(lead_field) / (n_active * mean * power)


def step_scale(u, eta, exponent):
    """Minimise u / t - eta log t + t^r over t > 0: the theta step.

    Parameters
    ----------
    u : array
        Not negative.
    eta, exponent : scalars
        eta has the sign of r, or any where r > 0 and u is positive.

    Returns
    -------
    array of the shape of u
    """
    r = exponent
    tiny = jnp.finfo(u.dtype).tiny
    size = jnp.abs(r)

    def gamma():
        root = jnp.sqrt(eta**2 + 4 * u)
        # Each form where it does not cancel.
        return jnp.where(eta >= 0, (eta + root) / 2, 2 * u / jnp.maximum(root - eta, tiny))

    def inverse_gamma():
        return (u + 1) / -eta

    def general():
        low, high = _bracket(jnp.maximum(u, tiny), eta, r)

        def newton(_, state):
            point, low, high = state  # logarithms
            first, last = r * jnp.exp(r * point), u * jnp.exp(-point)
            value = first - eta - last
            low, high = jnp.where(value < 0, point, low), jnp.where(value < 0, high, point)
            moved = point - value / jnp.maximum(r * first + last, tiny)
            is_inside = (moved > low) & (moved < high)
            return jnp.where(is_inside, moved, (low + high) / 2), low, high

        low, high = jnp.log(low), jnp.log(high)
        return jnp.exp(lax.fori_loop(0, _N_NEWTON, newton, ((low + high) / 2, low, high))[0])

    is_closed = size == 1
    t = lax.cond(is_closed, lambda: jnp.where(r > 0, gamma(), inverse_gamma()), general)
    return jnp.maximum(t, tiny)


def _bracket(u, eta, r):
    """Where r t^r - eta - u / t, which rises with t, is negative, and where positive."""
    q, e = jnp.abs(r), jnp.maximum(jnp.abs(eta), jnp.finfo(u.dtype).tiny)
    # r > 0, eta >= 0: the positive term against either other, and against twice both.
    low_1 = jnp.maximum((e / q) ** (1 / q), (u / q) ** (1 / (1 + q)))
    high_1 = jnp.maximum((2 * e / q) ** (1 / q), (2 * u / q) ** (1 / (1 + q)))
    # r > 0, eta < 0: the negative term against the others.
    low_2 = jnp.minimum((u / (2 * q)) ** (1 / (1 + q)), u / (2 * e))
    high_2 = jnp.minimum((u / q) ** (1 / (1 + q)), u / e)
    # r < 0, eta < 0.
    low_3 = jnp.maximum((q / e) ** (1 / q), u / e)
    high_3 = jnp.maximum((2 * q / e) ** (1 / q), 2 * u / e)
    low = jnp.where(r < 0, low_3, jnp.where(eta >= 0, low_1, low_2))
    high = jnp.where(r < 0, high_3, jnp.where(eta >= 0, high_1, high_2))
    return low, high


@functools.partial(jax.jit, static_argnames=("max_steps", "is_shared"))
def _run(data, lead_field, scale, start, exponent, eta, tol, *, max_steps, is_shared):
    """Start (n_laws or 1, n_sources)."""
    _, n_sources, d = lead_field.shape
    pieces = cut.over_pieces(lambda piece: piece, lead_field, jnp.ones((), lead_field.dtype))
    n_padded = pieces.shape[0] * pieces.shape[-1]
    n_repeated = n_padded - n_sources
    last = n_padded - pieces.shape[-1]

    def padded(values, fill):
        gap = jnp.full(n_repeated, fill, values.dtype)
        return jnp.concatenate([values[:last], gap, values[last:]])

    args = (pieces, padded(scale, 1), exponent, eta)

    def one(given):
        data, start = given
        state = State(
            theta=padded(start, 0),
            energies=jnp.full((max_steps, 2), jnp.nan, data.dtype),
            residual=jnp.full((), jnp.inf, data.dtype),
            n_steps=jnp.zeros((), jnp.int32),
        )
        state = lax.while_loop(
            lambda s: (s.residual > tol) & (s.n_steps < max_steps),
            lambda s: _step(s, data, *args),
            state,
        )
        # x and the residual belong to the last theta.
        weights, power, _ = _sources(pieces, state.theta, data)
        residual = _gap(state.theta, power, *args[1:])
        sources = lax.map(lambda piece: jnp.tensordot(weights, piece, ((0,), (0,))), pieces)
        sources = sources.transpose(0, 3, 2, 1).reshape(n_padded, d, -1)
        sources = sources * state.theta[:, None, None]
        keep = jnp.concatenate([jnp.arange(last), jnp.arange(last + n_repeated, n_padded)])
        return sources[keep], state.theta[keep], state.energies, residual, state.n_steps

    laws = data[None] if is_shared else data.T[:, :, None]
    starts = jnp.broadcast_to(start, (len(laws), n_sources))
    sources, theta, energies, residual, n_steps = lax.map(one, (laws, starts))
    mean = sources[0] if is_shared else sources[..., 0].transpose(1, 2, 0)
    return IasSources(mean, theta, energies, residual, n_steps, residual <= tol)


def _step(state, data, pieces, scale, exponent, eta):
    _, power, fit = _sources(pieces, state.theta, data)
    is_real = state.theta > 0
    u = power / (2 * scale)
    tiny = jnp.sqrt(jnp.finfo(u.dtype).tiny)

    def terms(t):
        return jnp.where(is_real, u / t - eta * jnp.log(t) + t**exponent, 0)

    old = jnp.where(is_real, state.theta / scale, 1)
    best = jnp.where(is_real, step_scale(u, eta, exponent), 1)
    further = jnp.clip(best * (best / old) ** (_FURTHER - 1), tiny, 1 / tiny)
    before, after = terms(old), terms(further)
    is_safe = after <= before
    moved = jnp.where(is_safe, further, best)
    energies = fit + jnp.stack([jnp.sum(before), jnp.sum(jnp.where(is_safe, after, terms(best)))])
    return State(
        theta=jnp.where(is_real, moved * scale, 0),
        energies=state.energies.at[state.n_steps].set(energies),
        residual=_gap(state.theta, power, scale, exponent, eta),
        n_steps=state.n_steps + 1,
    )


def _gap(theta, power, scale, exponent, eta):
    """Largest slope of the energy in log theta, against its own terms; fillers have none."""
    is_real = theta > 0
    t = jnp.where(is_real, theta / scale, 1)
    rise, pull = exponent * t**exponent, power / (2 * scale * t)
    gap = jnp.abs(rise - eta - pull) / (jnp.abs(rise) + jnp.abs(eta) + pull)
    return jnp.max(jnp.where(is_real, gap, 0))


def _sources(pieces, theta, data):
    """Weights w of x = theta G' w, the squared norms of x, and half the squared misfit."""
    m, d = pieces.shape[1:3]
    cov = theta * jnp.eye(d, dtype=theta.dtype)[:, :, None]
    total = cut.data_cov(pieces, cov, m) + jnp.eye(m, dtype=theta.dtype)
    weights = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(total), True), data)

    def power(piece):
        seen = jnp.matmul(weights.T, piece.reshape(m, -1), precision=_HIGH)
        return jnp.sum(seen.reshape(-1, *piece.shape[1:]) ** 2, axis=(0, 1))

    power = lax.map(power, pieces).reshape(-1) * theta**2
    # The residual of the data is w itself.
    return weights, power, jnp.sum(weights**2) / 2


def _shape(exponent, shape, eta, n_components):
    """beta, as given or as `eta` would have it for r = 1."""
    if not np.isfinite(exponent) or exponent == 0:
        raise ValueError(f"exponent must be a number other than 0, got {exponent!r}.")
    least = max(0.0, -1 / exponent)
    if shape is not None:
        shape = check_positive("shape", shape)
        if shape <= least:
            raise ValueError(
                f"shape must be above {least:g} for this exponent, or the variance has no mean; "
                f"got {shape:g}."
            )
        return shape
    half = (n_components + 2) / 2
    if exponent == 1:
        return eta + half
    wanted = np.log(eta) - np.log(eta + half)
    least = max(least, half / exponent)

    def gap(log_above):
        beta = least + np.exp(log_above)
        baseline = np.log((exponent * beta - half) / exponent) / exponent
        return baseline - _log_expected(exponent, beta) - wanted

    return least + float(np.exp(brentq(gap, -25.0, 25.0, xtol=1e-12)))


def _log_expected(exponent, shape):
    """Log of E theta / s."""
    return gammaln(shape + 1 / exponent) - gammaln(shape)
