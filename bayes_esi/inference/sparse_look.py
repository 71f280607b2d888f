"""Evidence of sources with variances of their own, and all that updates of variances need.

    Sigma_t = kappa_t S + R,     S = sum_j G_j C_j G_j',     R = diag(noise)
    L = sum_t w_t log det Sigma_t + sum_t y_t' Sigma_t^{-1} y_t

Data without memory: kappa = 1 once, sum_t y_t y_t' = C, the mean over samples. A law in time with
covariance E diag(kappa) E': y_t are the columns of data E / sqrt(n_times), w_t = 1 / n_times.
One symmetric eigenproblem of S in units of the noise serves all t.

The slopes of L in C_j are Z_j - A_j, those in a noise variance n_i - a_i:

    Z_j = G_j' M G_j,   M = sum_t w_t kappa_t Sigma_t^{-1},     A_j = sum_t kappa_t b_t b_t',
    b_t = G_j' Sigma_t^{-1} y_t.

Cost O(m^2 n d + m^3).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.types import Array, Float
from ..linalg import pieces as cut

__all__ = ["Look", "Observed", "gather", "look", "observe"]

# Variances of the noise tried, and halvings of the interval around the best.
_N_TRIED, _N_HALVED = 16, 50
_HIGH = lax.Precision.HIGHEST


class Observed(NamedTuple):
    """Data in the form that the evidence sees."""

    root: Float[Array, "m r"]  # y_t
    kappa: Float[Array, "n_laws"]  # one for all columns without memory
    weight: Float[Array, "n_laws"]


class Look(NamedTuple):
    """The evidence at some variances."""

    cost: Float[Array, ""]  # L
    noise: Float[Array, "m"]  # as it came, or its best multiple
    precision: Float[Array, "m m"]  # M
    image: Float[Array, "m r"]  # sqrt(kappa_t) Sigma_t^{-1} y_t
    quadratic: Float[Array, "d d n"]  # Z_j
    power: Float[Array, "d d n"]  # A_j
    noise_quadratic: Float[Array, "m"]
    noise_power: Float[Array, "m"]


def observe(data, coefficient, dtype):
    """Compress whitened data (m, n_times); `coefficient` of an AR(1) in time, 0 without memory."""
    m, n_times = data.shape
    root = data / np.sqrt(n_times)
    if coefficient != 0:
        lags = np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))
        kappa, basis = np.linalg.eigh(float(coefficient) ** lags)
        kappa = np.maximum(kappa, 0)
        weight = np.full(n_times, 1 / n_times)
        return Observed(*(a.astype(dtype) for a in (root @ basis, kappa, weight)))
    if n_times > m:
        values, vectors = np.linalg.eigh(root @ root.T)
        root = vectors * np.sqrt(np.maximum(values, 0))
    return Observed(root.astype(dtype), np.ones(1, dtype), np.ones(1, dtype))


@jax.jit
def gather(lead_field: Float[Array, "m n_sources d"], places):
    """Pieces (n_pieces, m, d, size) of the sources at `places` (n_pieces, size); silent at -1."""

    def one(places):
        piece = jnp.where((places >= 0)[:, None], lead_field[:, places], 0)
        return piece.swapaxes(1, 2)

    return lax.map(one, places)


@functools.partial(jax.jit, static_argnames="is_learnt")
def look(pieces, cov: Float[Array, "d d n"], noise, observed, n_used, floor, *, is_learnt) -> Look:
    """Evaluate L and its slopes.

    Parameters
    ----------
    pieces : (n_pieces, m, d, size) array
    cov : (d, d, n) array
        Of each source, in the order of the pieces.
    noise : (m,) array
        Variances; equal ones where `is_learnt`.
    observed : Observed
    n_used : int
        Pieces that count.
    floor : scalar
        Least variance of the noise.
    is_learnt : bool
        Minimise L over the common variance of the noise first.
    """
    root, kappa, weight = observed
    m = len(noise)
    level = jnp.sqrt(noise)
    shares, basis = jnp.linalg.eigh(cut.data_cov(pieces, cov, m, n_used) / (level[:, None] * level))
    signal = jnp.maximum(shares, 0)[:, None] * kappa
    turn = basis / level[:, None]
    z = jnp.matmul(turn.T, root, precision=_HIGH)
    square = jnp.sum(z**2, axis=1, keepdims=True) if len(kappa) == 1 else z**2
    factor = _best_noise(signal, square, weight, floor / noise[0]) if is_learnt else 1
    total = signal + jnp.asarray(factor, signal.dtype)
    cost = jnp.sum(weight * jnp.log(total)) + jnp.sum(square / total) + jnp.sum(jnp.log(noise))
    precision = jnp.matmul(turn * (weight * kappa / total).sum(1), turn.T, precision=_HIGH)
    image = jnp.matmul(turn, jnp.sqrt(kappa) * z / total, precision=_HIGH)

    def power(piece):
        seen = jnp.matmul(image.T, piece.reshape(m, -1), precision=_HIGH)
        seen = seen.reshape(-1, *piece.shape[1:])
        return cut.sum_of_products(seen, seen)

    return Look(
        cost=cost,
        noise=noise * factor,
        precision=precision,
        image=image,
        quadratic=cut.quadratic(pieces, precision, n_used),
        power=cut.joined(cut.map_used(power, pieces, n_used)),
        noise_quadratic=jnp.sum(turn**2 * (weight / total).sum(1), axis=1),
        noise_power=jnp.sum(jnp.matmul(turn, z / total, precision=_HIGH) ** 2, axis=1),
    )


def _best_noise(signal, square, weight, floor):
    """Minimise sum w log(signal + v) + square / (signal + v) over v >= floor.

    Above the sum of squares the slope is positive.
    """
    top = jnp.maximum(jnp.sum(square), 2 * floor)
    tried = jnp.exp(jnp.linspace(jnp.log(floor), jnp.log(top), _N_TRIED))
    costs = lax.map(
        lambda v: jnp.sum(weight * jnp.log(signal + v)) + jnp.sum(square / (signal + v)), tried
    )
    best = jnp.argmin(costs)
    ends = tried[jnp.maximum(best - 1, 0)], tried[jnp.minimum(best + 1, _N_TRIED - 1)]

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)
        total = signal + middle
        is_low = jnp.sum(weight / total) < jnp.sum(square / total**2)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    low, high = lax.fori_loop(0, _N_HALVED, halve, ends)
    return jnp.sqrt(low * high)
