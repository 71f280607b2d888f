"""Sweeps: the exact minimum over the variance of one source after the other.

Without source j its slopes are those of S_j = (Z_j^{-1} - C_j)^{-1} and
Q_j = (I - Z_j C_j)^{-1} A_j (I - C_j Z_j)^{-1}, and what it adds to the cost is

    f(C) = log det(I + C S) - tr(C (I + S C)^{-1} Q).

Blocks: in coordinates where S = I and C, Q are X, N, the minimum is the positive part of N - I.
Tied: f(gamma) = sum_k log(1 + gamma s_k) - gamma q_k / (1 + gamma s_k) along the axes of S, by
trial and bisection. Either may be zero: that is how sources leave and enter.

*Relaxation.* Fields of neighbours overlap, and a sweep corrects each too little: steps go further
by a half where f, which is at hand, does not rise. Neither way can the cost.

Each step changes M and the image of the data by rank d: O(m^2 d).

References: Tipping, Faul 2003, AISTATS (one coordinate at a time).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ..core.types import Array, Float

__all__ = ["sweep"]

# Of over-relaxation.
_FURTHER = 1.5
# Trial variances, in units of 1 / s, and steps of bisection.
_N_TRIED, _N_HALVED = 48, 40
_RANGE = 1e-5, 1e7
_HIGH = lax.Precision.HIGHEST


@functools.partial(jax.jit, static_argnames=("is_tied", "is_noise_learnt"))
def sweep(
    pieces: Float[Array, "n_pieces m d size"],
    cov: Float[Array, "d d n"],
    noise: Float[Array, "m"],
    precision: Float[Array, "m m"],
    image: Float[Array, "m r"],
    n_active,
    floor,
    *,
    is_tied,
    is_noise_learnt,
):
    """Minimise over the first `n_active` sources and, if learnt, each channel's noise.

    Returns
    -------
    cov, noise
    """
    size = pieces.shape[-1]
    best = _best_tied if is_tied else _best_block

    def source(s, state):
        cov, precision, image = state
        piece, column = s // size, s % size
        field = lax.dynamic_slice_in_dim(pieces[piece], column, 1, axis=2)[:, :, 0]
        found, precision, image = _visit(best, field, cov[:, :, s], precision, image)
        return cov.at[:, :, s].set(found), precision, image

    cov, precision, image = lax.fori_loop(0, n_active, source, (cov, precision, image))
    if not is_noise_learnt:
        return cov, noise

    def channel(i, state):
        noise, precision, image = state
        z, a, old = precision[i, i], jnp.sum(image[i] ** 2), noise[i]
        new = jnp.maximum(old + (a - z) / z**2, floor)
        change = (new - old) / (1 + (new - old) * z)
        column = precision[:, i]
        image = image - change * column[:, None] * image[i]
        precision = precision - change * column[:, None] * column
        return noise.at[i].set(new), precision, image

    noise, _, _ = lax.fori_loop(0, len(noise), channel, (noise, precision, image))
    return cov, noise


def _visit(best, field, cov, precision, image):
    cross = jnp.matmul(precision, field, precision=_HIGH)
    quadratic = jnp.matmul(field.T, cross, precision=_HIGH)
    seen = jnp.matmul(image.T, field, precision=_HIGH)
    found, gain = best(cov, quadratic, jnp.matmul(seen.T, seen, precision=_HIGH))
    right = jnp.matmul(cross, gain, precision=_HIGH)
    precision = precision - jnp.matmul(right, cross.T, precision=_HIGH)
    image = image - jnp.matmul(right, seen.T, precision=_HIGH)
    return found, precision, image


def _axes(quadratic):
    """Eigenvalues, zero in silent directions, and eigenvectors."""
    values, vectors = jnp.linalg.eigh((quadratic + quadratic.T) / 2)
    threshold = 100 * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.where(values > threshold, values, 0), vectors


def _best_tied(cov, quadratic, power):
    """New covariance, and D (I + Z D)^{-1} for its change D."""
    z, axes = _axes(quadratic)
    tiny = jnp.finfo(z.dtype).tiny
    old = cov[0, 0]
    left = jnp.maximum(1 - old * z, jnp.finfo(z.dtype).eps)
    s, q = z / left, jnp.sum(axes * (power @ axes), axis=0) * (z > 0) / left**2

    def cost(gamma):
        total = 1 + gamma[..., None] * s
        return jnp.sum(jnp.log(total) - gamma[..., None] * q / total, axis=-1)

    low, high = (jnp.log(jnp.asarray(end, z.dtype)) for end in _RANGE)
    tried = jnp.exp(jnp.linspace(low, high, _N_TRIED)) / jnp.maximum(jnp.max(s), tiny)
    tried = jnp.concatenate([jnp.zeros(1, z.dtype), tried])
    lowest = jnp.argmin(cost(tried))
    ends = tried[jnp.maximum(lowest - 1, 0)], tried[jnp.minimum(lowest + 1, _N_TRIED)]

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        total = 1 + middle * s
        is_low = jnp.sum(s / total) < jnp.sum(q / total**2)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    low, high = lax.fori_loop(0, _N_HALVED, halve, ends)
    # Bisection towards zero never gets there.
    is_out = (lowest == 0) & (jnp.sum(q) <= jnp.sum(s))
    new = jnp.where(is_out, 0, (low + high) / 2)
    further = jnp.maximum(old + _FURTHER * (new - old), 0)
    costs = cost(jnp.stack([old, further]))
    new = jnp.where(costs[1] <= costs[0], further, new)
    change = new - old
    gain = (axes * (change / (1 + change * z))) @ axes.T
    return new * jnp.eye(len(z), dtype=z.dtype), gain


def _best_block(cov, quadratic, power):
    """New covariance, and D (I + Z D)^{-1} for its change D."""
    z, axes = _axes(quadratic)
    identity = jnp.eye(len(z), dtype=z.dtype)
    safe = jnp.sqrt(jnp.where(z > 0, z, 1))
    root = (axes * jnp.where(z > 0, safe, 0)) @ axes.T
    inverse = (axes * jnp.where(z > 0, 1 / safe, 0)) @ axes.T
    own = root @ cov @ root
    left, turn = jnp.linalg.eigh(identity - (own + own.T) / 2)
    left = jnp.sqrt(jnp.maximum(left, jnp.finfo(z.dtype).eps))
    shrink, stretch = (turn * left) @ turn.T, (turn / left) @ turn.T
    old = stretch @ own @ stretch
    data = stretch @ (inverse @ power @ inverse) @ stretch

    def positive(matrix):
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        values = jnp.maximum(values, 0)
        cost = jnp.sum(jnp.log1p(values))
        share = (vectors * (values / (1 + values))) @ vectors.T
        return (vectors * values) @ vectors.T, cost - jnp.sum(share * data)

    seen = (axes * (z > 0)) @ axes.T
    new, _ = positive(data - seen)
    further, cost = positive(old + _FURTHER * (new - old))
    new = jnp.where(cost <= positive(old)[1], further, new)
    found = inverse @ shrink @ new @ shrink @ inverse
    found = (found + found.T) / 2
    change = found - cov
    return found, change @ jnp.linalg.inv(identity + quadratic @ change)
