"""Scalar Gaussian processes in time as small linear state-space models.

    x_1 ~ N(0, initial_cov),   x_{t+1} = transition x_t + N(0, process_cov),   s_t = (x_t)_1

The path s is the time course that every source shares in law; its variance at the first
sample is 1, so that scales live elsewhere. q is the size of the state x: p for AR(p),
1, 2, 3 for a Matern process of order 1/2, 3/2, 5/2, and 1 for a random walk.

Every constructor is differentiable in its real parameters and may be called in traced code.
Cost O(q^3) each.

References: Durbin 1960, doi:10.2307/1401322 (from partial autocorrelations to coefficients);
Hartikainen, Sarkka 2010, doi:10.1109/MLSP.2010.5589113 (Matern processes in state-space form).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array
from ..core.struct import struct
from ..core.types import Array, Float

__all__ = [
    "TimeKernel",
    "autoregressive",
    "check_stationary",
    "coefficients_of",
    "from_partial_autocorrelations",
    "matern",
    "random_walk",
]

# Nodes for the process covariance of a Matern process over at most one time unit: the integrand,
# a polynomial of degree 4 times exp(-2 s), is then integrated to rounding error.
_N_NODES = 12
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(_N_NODES)


@struct
class TimeKernel:
    """A scalar process in time; what is observed is the first component of the state.

    Attributes
    ----------
    transition : (q, q)
    process_cov : (q, q)
        Positive semidefinite.
    initial_cov : (q, q)
        Covariance of the state at the first sample; its first entry is 1.
    """

    transition: Float[Array, "q q"]
    process_cov: Float[Array, "q q"]
    initial_cov: Float[Array, "q q"]

    @property
    def n_states(self):
        """Size q of the state."""
        return self.transition.shape[-1]

    def variance(self, n_times):
        """Prior variance of each sample: (n_times,), unitless."""
        return _state_covs(self, n_times)[:, 0, 0]

    def covariance(self, n_times):
        """Prior covariance between samples: (n_times, n_times), unitless."""
        return _covariance(self, n_times)


@partial(jax.jit, static_argnums=1)
def _state_covs(kernel, n_times):
    def advance(cov, _):
        return kernel.transition @ cov @ kernel.transition.T + kernel.process_cov, cov

    return jax.lax.scan(advance, kernel.initial_cov, length=n_times)[1]


@partial(jax.jit, static_argnums=1)
def _covariance(kernel, n_times):
    columns = _state_covs(kernel, n_times)[:, :, 0]

    def advance(row, _):
        return row @ kernel.transition, row

    first = jnp.eye(kernel.n_states, dtype=columns.dtype)[0]
    _, rows = jax.lax.scan(advance, first, length=n_times)
    by_lag = rows @ columns.T  # [lag, t] is the covariance of samples t + lag and t
    late, early = np.indices((n_times, n_times))
    lower = by_lag[np.maximum(late - early, 0), early]
    return jnp.where(late >= early, lower, lower.T)


@jax.jit
def autoregressive(coefficient: Float[Array, "*p"]) -> TimeKernel:
    """AR(p): s_t = sum_j coefficient_j s_{t-j} + noise, stationary with unit variance.

    Parameters
    ----------
    coefficient : () or (p,)
        Of a stationary process (`check_stationary`); zero is white noise.

    Notes
    -----
    The state holds the last p samples (companion form). Its stationary covariance, the
    solution of P = F P F' + Q with P_11 = 1, is the Toeplitz matrix of the autocorrelations,
    which solve the Yule-Walker equations rho_k = sum_j coefficient_j rho_|k-j|.
    """
    coefficient = jnp.atleast_1d(coefficient) * 1.0  # whole numbers become floating point
    p = coefficient.shape[0]
    if p == 1:
        a = coefficient[0]
        rho = jnp.ones_like(coefficient)
        variance = (1 - a) * (1 + a)
    else:
        # The unknowns are rho_1 ... rho_{p-1}; what multiplies rho_0 = 1 is the right-hand side.
        lag = np.abs(np.arange(1, p)[:, None] - np.arange(1, p + 1))
        is_lag = np.eye(p)[lag].astype(coefficient.dtype)  # (k, j, lag)
        weights = jnp.einsum("kjl,j->kl", is_lag, coefficient)
        system = jnp.eye(p - 1, dtype=coefficient.dtype) - weights[:, 1:]
        rho = jnp.linalg.solve(system, weights[:, 0])
        rho = jnp.concatenate([jnp.ones_like(rho[:1]), rho])
        next_rho = jnp.concatenate([rho[1:], jnp.sum(coefficient * rho[::-1])[None]])
        variance = 1 - jnp.sum(coefficient * next_rho)
    lags = np.abs(np.arange(p)[:, None] - np.arange(p))
    shift = jnp.eye(p, k=-1, dtype=coefficient.dtype)[1:]
    corner = np.zeros((p, p), dtype=coefficient.dtype)
    corner[0, 0] = 1
    return TimeKernel(
        transition=jnp.concatenate([coefficient[None], shift]),
        process_cov=variance * corner,
        initial_cov=rho[lags],
    )


def coefficients_of(partial_autocorrelation: Float[Array, " p"]) -> Float[Array, " p"]:
    """Coefficients (p,) of the AR(p) process with given partial autocorrelations in (-1, 1)."""
    partial_autocorrelation = jnp.atleast_1d(partial_autocorrelation)
    coefficient = partial_autocorrelation[:1]
    for k in range(1, partial_autocorrelation.shape[0]):
        last = partial_autocorrelation[k]
        coefficient = jnp.concatenate([coefficient - last * coefficient[::-1], last[None]])
    return coefficient


@jax.jit
def from_partial_autocorrelations(partial_autocorrelation: Float[Array, "*p"]) -> TimeKernel:
    """AR(p) from its partial autocorrelations; any values in (-1, 1) give a stationary process."""
    return autoregressive(coefficients_of(partial_autocorrelation))


@partial(jax.jit, static_argnums=0)
def matern(order, time_scale: Float[Array, ""], step: Float[Array, ""]) -> TimeKernel:
    """Matern process of order 1/2, 3/2 or 5/2 sampled at a regular step.

    Parameters
    ----------
    order : float
        0.5 (Ornstein-Uhlenbeck), 1.5 or 2.5.
    time_scale : ()
        In s: the length-scale l of exp(-d/l), (1 + r) exp(-r) with r = sqrt(3) d / l, or
        (1 + r + r^2 / 3) exp(-r) with r = sqrt(5) d / l, for the distance d.
    step : ()
        In s.

    Notes
    -----
    With time in units of l / sqrt(2 order), the state (s, s', ...) obeys dx = A x du + b dW
    with A = N - I, N nilpotent: exp(A u) = exp(-u) (I + N u + N^2 u^2 / 2). The process
    covariance is the integral of g g' with g = exp(A u) b. Up to one unit it is taken by Gauss
    quadrature, to rounding error; P - F P F' would leave nothing of its u^(2 order) there.
    """
    if order not in (0.5, 1.5, 2.5):
        raise ValueError(f"order must be 0.5, 1.5 or 2.5, got {order!r}.")
    u = float(np.sqrt(2 * order)) * (step / time_scale)
    dtype = u.dtype
    q = round(order + 0.5)
    companion, stationary, density = {
        1: ([[-1.0]], [[1.0]], 2.0),
        2: ([[0.0, 1.0], [-1.0, -2.0]], [[1.0, 0.0], [0.0, 1.0]], 4.0),
        3: (
            [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -3.0, -3.0]],
            [[1.0, 0.0, -1 / 3], [0.0, 1 / 3, 0.0], [-1 / 3, 0.0, 1.0]],
            16 / 3,
        ),
    }[q]
    stationary = jnp.asarray(stationary, dtype)
    nilpotent = np.asarray(companion) + np.eye(q)
    powers = np.stack([np.eye(q), nilpotent, nilpotent @ nilpotent / 2]).astype(dtype)

    def exponential(u):
        monomials = jnp.stack([jnp.ones_like(u), u, u**2])
        return jnp.exp(-u) * jnp.einsum("k,kij->ij", monomials, powers)

    transition = exponential(u)
    one = jnp.ones_like(u)
    span = jnp.minimum(u, one)
    nodes = jnp.asarray((_NODES + 1) / 2, dtype) * span
    weights = jnp.asarray(density * _NODE_WEIGHTS / 2, dtype) * span
    kicks = jax.vmap(exponential)(nodes)[:, :, -1]
    short = jnp.einsum("k,ki,kj->ij", weights, kicks, kicks)
    long = stationary - transition @ stationary @ transition.T
    return TimeKernel(
        transition=transition,
        process_cov=jnp.where(u < one, short, long),
        initial_cov=stationary,
    )


@jax.jit
def random_walk(time_scale: Float[Array, ""], step: Float[Array, ""]) -> TimeKernel:
    """Random walk: variance 1 at the first sample, more by 1 every `time_scale`. Both in s."""
    growth = jnp.asarray(step / time_scale)[None, None]
    one = jnp.ones_like(growth)
    return TimeKernel(transition=one, process_cov=growth, initial_cov=one)


def check_stationary(coefficient):
    """Return AR coefficients as a (p,) array, refusing a process without a stationary law.

    Raises
    ------
    ValueError
        If an eigenvalue of the companion matrix reaches the unit circle.
    """
    coefficient = check_array("coefficient", np.atleast_1d(coefficient), ndim=1)
    companion = np.eye(len(coefficient), k=-1)
    companion[0] = coefficient
    radius = float(np.abs(np.linalg.eigvals(companion)).max())
    if radius >= 1:
        raise ValueError(
            f"coefficient must give a stationary process, got {coefficient.tolist()}, whose "
            f"largest eigenvalue has modulus {radius:.6g}, not below 1; "
            "use the random walk for a process without a stationary law."
        )
    return coefficient
