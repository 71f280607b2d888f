"""Updates of all source variances at once, and how far they are from a stationary point.

With Z, A the slopes of `sparse_look` and, in each source's own metric,

    P = Z^{1/2} C Z^{1/2},     Q = Z^{-1/2} A Z^{-1/2},

a stationary point has P^{1/2} (Q - I) P^{1/2} = 0 and Q <= I. The updates of P:

    convex bound (P Q P)^{1/2}      log det under its tangent; the cost cannot rise
    EM           P + P (Q - I) P    the cost cannot rise; slow towards zero
    MacKay       P^{1/2} Q P^{1/2}  fast; no guarantee

Tied variances C = gamma I have P = gamma tr Z and Q = tr A / tr Z, EM divided by d.

References: Wipf, Nagarajan 2009, doi:10.1016/j.neuroimage.2008.02.059; MacKay 1992,
doi:10.1162/neco.1992.4.3.415; relaxation of bounds: Salakhutdinov, Roweis 2003, ICML.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Float
from ..linalg import blocks

__all__ = ["RULES", "Verdict", "judge", "update"]

RULES = ("convex_bound", "em", "mackay")


class Verdict(NamedTuple):
    """Of each source."""

    share: Float[Array, "n"]  # tr(C Z): degrees of freedom that the data determine, at most d
    imbalance: Float[Array, "n"]  # ||P^{1/2} (Q - I) P^{1/2}|| / ||P||; 0 where C is zero
    excess: Float[Array, "n"]  # largest eigenvalue of Q, less 1: what the support lacks


@functools.partial(jax.jit, static_argnames="is_tied")
def judge(cov, quadratic, power, *, is_tied) -> Verdict:
    """Compare variances with what their slopes ask for; blocks (d, d, n) throughout."""
    share = jnp.sum(cov * quadratic, axis=(0, 1))
    if is_tied:
        scale = blocks.trace(quadratic)
        excess = jnp.where(scale > 0, blocks.trace(power) / _one_if_zero(scale) - 1, -1)
        return Verdict(share, jnp.where(share > 0, jnp.abs(excess), 0), excess)
    own, ratio, _ = _metric(cov, quadratic, power)
    values, _ = blocks.eigen(ratio)
    half = _power(own, 0.5)
    wrong = blocks.product(blocks.product(half, ratio), half) - own
    size = jnp.sqrt(jnp.sum(own**2, axis=(0, 1)))
    imbalance = jnp.where(
        share > 0, jnp.sqrt(jnp.sum(wrong**2, axis=(0, 1))) / _one_if_zero(size), 0
    )
    return Verdict(share, imbalance, values.max(axis=0) - 1)


@functools.partial(jax.jit, static_argnames=("rule", "is_tied"))
def update(cov, quadratic, power, exponent, *, rule, is_tied):
    """Variances (d, d, n) by one of `RULES`.

    `exponent`: of tr(C A) / tr(C Z), by which the scale of each source moves with the convex
    bound, whose own is 1/2.
    """
    d = len(cov)
    if is_tied:
        gamma, scale, own = cov[0, 0], blocks.trace(quadratic), blocks.trace(power)
        ratio = jnp.where(scale > 0, own / _one_if_zero(scale), 0)
        if rule == "em":
            gamma = gamma + gamma**2 * (own - scale) / d
        else:
            gamma = gamma * ratio ** (1 if rule == "mackay" else exponent)
        return blocks.diagonal(gamma, cov)
    own, ratio, root = _metric(cov, quadratic, power)
    if rule == "em":
        moved = own + blocks.product(blocks.product(own, ratio), own) - blocks.product(own, own)
    elif rule == "mackay":
        half = _power(own, 0.5)
        moved = blocks.product(blocks.product(half, ratio), half)
    else:
        moved = _power(blocks.product(blocks.product(own, ratio), own), 0.5)
        # The bound moves the shape; only the scale goes further.
        gain = jnp.sum(cov * power, axis=(0, 1)) / _one_if_zero(jnp.sum(cov * quadratic, (0, 1)))
        moved = moved * gain ** (exponent - 0.5)
    moved = blocks.product(blocks.product(root, moved), root)
    return (moved + moved.swapaxes(0, 1)) / 2


def _metric(cov, quadratic, power):
    """P, Q and Z^{-1/2}; directions that a source's field cannot see have none."""
    values, vectors = blocks.eigen(quadratic)
    is_seen = values > 100 * jnp.finfo(values.dtype).eps * values.max(axis=0)
    safe = jnp.where(is_seen, values, 1)
    root = blocks.assemble(jnp.where(is_seen, jnp.sqrt(safe), 0), vectors)
    inverse = blocks.assemble(jnp.where(is_seen, 1 / jnp.sqrt(safe), 0), vectors)
    return blocks.project(cov, root), blocks.project(power, inverse), inverse


def _power(matrix, exponent):
    values, vectors = blocks.eigen(matrix)
    return blocks.assemble(jnp.maximum(values, 0) ** exponent, vectors)


def _one_if_zero(value):
    return jnp.where(value > 0, value, 1)
