"""Symmetric blocks of 1 x 1 to 3 x 3, one for each source, the sources along the last axis.

Written out over components: an operation on all blocks is a few passes over vectors of the
length of the batch.
"""

import jax.numpy as jnp
from jax import lax

from ..core.types import Array, Float

__all__ = ["assemble", "diagonal", "eigen", "largest_ratio", "product", "project", "trace"]


def eigen(matrix: Float[Array, "d d n"]):
    """Eigenvalues (d, n), in no order, and eigenvectors (d, d, n) by Jacobi's rotations.

    Five sweeps reach rounding error at d = 3.
    """
    d = matrix.shape[0]
    n_sweeps = (0, 1, 5)[d - 1]
    identity = jnp.broadcast_to(jnp.eye(d, dtype=matrix.dtype)[:, :, None], matrix.shape)

    def sweep(_, pair):
        own, vectors = pair
        for p, q in ((0, 1), (0, 2), (1, 2))[: d * (d - 1) // 2]:
            off = own[p, q]
            gap = own[q, q] - own[p, p]
            is_small = jnp.abs(off) <= jnp.finfo(off.dtype).tiny
            # tan of the smaller angle that annuls the element.
            tangent = 2 * off / (gap + jnp.where(gap < 0, -1, 1) * jnp.hypot(gap, 2 * off))
            tangent = jnp.where(is_small, 0, tangent).astype(off.dtype)
            c = 1 / jnp.sqrt(1 + tangent**2)
            s = c * tangent
            left = [row for row in own]
            left[p], left[q] = c * own[p] - s * own[q], s * own[p] + c * own[q]
            half = jnp.stack(left)
            cols = [half[:, k] for k in range(d)]
            cols[p], cols[q] = c * half[:, p] - s * half[:, q], s * half[:, p] + c * half[:, q]
            own = jnp.stack(cols, axis=1)
            turned = [vectors[:, k] for k in range(d)]
            turned[p] = c * vectors[:, p] - s * vectors[:, q]
            turned[q] = s * vectors[:, p] + c * vectors[:, q]
            vectors = jnp.stack(turned, axis=1)
        return own, vectors

    own, vectors = lax.fori_loop(0, n_sweeps, sweep, (matrix, identity))
    return jnp.stack([own[k, k] for k in range(d)]), vectors


def assemble(values: Float[Array, "d n"], vectors: Float[Array, "d d n"]):
    """V diag(values) V' of each block."""
    d = vectors.shape[0]
    scaled = vectors * values
    lower = {
        (e, f): jnp.sum(scaled[e] * vectors[f], axis=0) for e in range(d) for f in range(e + 1)
    }
    return jnp.stack([jnp.stack([lower[max(e, f), min(e, f)] for f in range(d)]) for e in range(d)])


def diagonal(value, like: Float[Array, "d d n"]):
    """`value`, one or one a block, times the identity."""
    return value * jnp.eye(like.shape[0], dtype=like.dtype)[:, :, None]


def product(left: Float[Array, "d d n"], right: Float[Array, "d d n"]):
    """Left times right, block by block."""
    d = left.shape[0]
    return jnp.stack(
        [
            jnp.stack([sum(left[e, k] * right[k, f] for k in range(d)) for f in range(d)])
            for e in range(d)
        ]
    )


def project(matrix: Float[Array, "d d n"], projector: Float[Array, "d d n"]):
    """P A P of each block."""
    return product(product(projector, matrix), projector)


def trace(matrix: Float[Array, "d d n"]):
    """Trace of each block, (n,)."""
    return sum(matrix[k, k] for k in range(matrix.shape[0]))


def largest_ratio(difference: Float[Array, "d d n"], whole: Float[Array, "d d n"]):
    """Largest relative Frobenius norm over the blocks; those that are zero count for nothing."""
    size = jnp.sum(whole**2, axis=(0, 1))
    error = jnp.sum(difference**2, axis=(0, 1))
    return jnp.sqrt(jnp.max(jnp.where(size > 0, error / jnp.where(size > 0, size, 1), 0)))
