"""The stationary law of x_{t+1} = F x_t + w, applied without forming its covariance.

    Pi = sum_k F^k Q F'^k

    Pi X:      A_k = F'^k X,   H_k = Q A_k + F H_{k+1},   Pi X = H_0        (Horner, two-sided)
    diag Pi:   sum_k (F'^k e_i)' Q (F'^k e_i)                               (one-sided)

Horner runs backwards over A_k. A segment of them is kept; A at the starts of the segments is kept
too and the segment computed again, so memory does not grow with the number of terms.

The number of terms K follows from random probes v ~ N(0, I): E |F^k v|^2 is the squared Frobenius
norm of F^k, and what is left out is F^K Pi F'^K, at most |F^K|^2 of Pi.

Cost: 2 K sparse products for Pi X (3 K beyond one segment), K sparse products with n vectors for
diag Pi (n / d vectors where F acts on d orientations alike and Q is diagonal).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ..core.struct import struct
from ..core.types import Array, Float
from ..models.sparse_cov import sparse_factor
from .sparse_product import SparseMatrix, multiply, sparse_matrix

__all__ = [
    "Dynamics",
    "apply_process_cov",
    "apply_stationary_cov",
    "count_terms",
    "draw_process",
    "dynamics",
    "stationary_variance",
]

_N_PROBES = 16
_BLOCK = 32  # steps between looks at the norm; the number of terms is a multiple of it
_MAX_TERMS = 50_000
_VECTORS = 24  # vectors of a block: small enough for the cache, wide enough for vector units


@struct
class Dynamics:
    """F and Q as compiled code sees them."""

    transition: SparseMatrix
    transposed: SparseMatrix
    process_var: Float[Array, " n_states"]  # diagonal of Q
    process_cov: SparseMatrix | None  # Q where it is not diagonal
    process_root: SparseMatrix | None  # B with B B' = Q where it is not diagonal


def dynamics(transition, process_cov, dtype):
    """Store F and Q.

    Parameters
    ----------
    transition : sparse (n_states, n_states)
    process_cov : (n_states,) variances or sparse (n_states, n_states)
    dtype : dtype of the compiled arrays

    Returns
    -------
    Dynamics
    """
    is_matrix = sparse.issparse(process_cov)
    root = sparse_factor("process_cov", process_cov) if is_matrix else None
    variance = process_cov.diagonal() if is_matrix else process_cov
    return Dynamics(
        transition=sparse_matrix(transition, dtype),
        transposed=sparse_matrix(sparse.csr_array(transition.T), dtype),
        process_var=jnp.asarray(variance, dtype),
        process_cov=sparse_matrix(process_cov, dtype) if is_matrix else None,
        process_root=sparse_matrix(root, dtype) if is_matrix else None,
    )


def apply_process_cov(system: Dynamics, x):
    """Q X for X of shape (n_states,) or (n_states, n_vectors)."""
    if system.process_cov is not None:
        return multiply(system.process_cov, x)
    return system.process_var.reshape(-1, *(1,) * (x.ndim - 1)) * x


def draw_process(key, system: Dynamics, n_draws):
    """Draw w ~ N(0, Q): (n_states, n_draws) array.

    Normal numbers are drawn in single precision, at less than half the cost of double.
    """
    dtype = system.process_var.dtype
    normal = jax.random.normal(key, (system.process_var.shape[0], n_draws), jnp.float32)
    if system.process_root is not None:
        return multiply(system.process_root, normal.astype(dtype))
    return jnp.sqrt(system.process_var)[:, None] * normal.astype(dtype)


def count_terms(system: Dynamics, tol):
    """Smallest K, up to a multiple of 32, with squared Frobenius norm of F^K at most `tol`.

    Raises
    ------
    ValueError
        If 50,000 terms are not enough.
    """
    n_states = system.process_var.shape[0]
    probes = np.random.default_rng(0).standard_normal((n_states, _N_PROBES))
    probes = jnp.asarray(probes, system.process_var.dtype)
    for n_terms in range(_BLOCK, _MAX_TERMS + 1, _BLOCK):
        probes = _power(system.transition, probes, _BLOCK)
        if float(jnp.sum(probes**2)) <= tol * _N_PROBES:
            return n_terms
    raise ValueError(
        f"transition forgets its start too slowly: {_MAX_TERMS} steps leave more than {tol:.1e} of "
        "it. Its spectral radius is too close to 1; scale it down (0.999 is enough)."
    )


def apply_stationary_cov(system: Dynamics, x, n_terms, memory_limit):
    """Pi X.

    Parameters
    ----------
    system : Dynamics
    x : (n_states, n_vectors) array
    n_terms : int
        From `count_terms`.
    memory_limit : float
        Bytes for the vectors kept on the way.

    Returns
    -------
    (n_states, n_vectors) array
    """
    n_states, n_vectors = x.shape
    of_vector = n_states * x.dtype.itemsize
    width = int(np.clip(memory_limit / (of_vector * n_terms), 1, min(_VECTORS, n_vectors)))
    room = max(memory_limit / (of_vector * width), 2.0)
    length = n_terms
    if n_terms > room:  # two levels: the starts of the segments, and one segment
        length = int(max(np.ceil(n_terms / (room / 2)), min(room / 2, np.sqrt(n_terms)), 1))
    n_segments = -(-n_terms // length)
    blocks, powers = [], jnp.zeros((length, n_states, width), x.dtype)
    for first in range(0, n_vectors, width):
        block = x[:, first : first + width]
        missing = width - block.shape[1]
        power = jnp.pad(block, ((0, 0), (0, missing)))
        starts = [power]
        for _ in range(n_segments - 1):
            starts.append(_power(system.transposed, starts[-1], length))
        total = jnp.zeros_like(power)
        while starts:
            total, powers = _horner(system, starts.pop(), total, powers)
        blocks.append(total[:, : width - missing])
    return jnp.concatenate(blocks, axis=1)


def stationary_variance(system: Dynamics, n_terms, tol, memory_limit):
    """Diagonal of Pi: (n_states,) array.

    A column stops once what it leaves out, (F'^k e_i)' Pi (F'^k e_i), is at most `tol` of its sum,
    by the largest eigenvalue of Pi.
    """
    n_states = system.process_var.shape[0]
    n_copies = system.transition.n_copies if system.process_cov is None else 1
    n_blocks = n_states // n_copies
    width = min(2 * _VECTORS, n_blocks)
    largest = _largest_eigenvalue(system, n_terms, memory_limit)
    variances = []
    for first in range(0, n_blocks, width):
        first = min(first, n_blocks - width)  # the last block overlaps: one shape compiles once
        block = _variance_of_columns(system, first, n_terms, largest, tol, width, n_copies)
        variances.append((first, block))
    variance = np.zeros((n_blocks, n_copies))
    for first, block in variances:
        variance[first : first + width] = np.asarray(block)
    return jnp.asarray(variance.ravel(), system.process_var.dtype)


def _largest_eigenvalue(system, n_terms, memory_limit):
    """An upper guess of the largest eigenvalue of Pi, by power iteration."""
    n_states = system.process_var.shape[0]
    x = jnp.asarray(
        np.random.default_rng(0).standard_normal((n_states, 1)), system.process_var.dtype
    )
    for _ in range(6):
        x = apply_stationary_cov(system, x / jnp.linalg.norm(x), n_terms, memory_limit)
    return 2 * jnp.linalg.norm(x)


@functools.partial(jax.jit, static_argnums=2)
def _power(matrix, x, n_steps):
    return jax.lax.fori_loop(0, n_steps, lambda _, y: multiply(matrix, y), x)


@functools.partial(jax.jit, donate_argnums=(2, 3))
def _horner(system, start, total, powers):
    """Add the terms of one segment: sum_k F^k Q F'^k start, k < length, + F^length total.

    `powers` (length, ...) is scratch memory, handed on so that its pages are touched only once.
    """
    length = powers.shape[0]

    def forward(k, carry):
        power, powers = carry
        return multiply(system.transposed, power), powers.at[k].set(power)

    def backward(k, total):
        power = powers[length - 1 - k]
        return apply_process_cov(system, power) + multiply(system.transition, total)

    _, powers = jax.lax.fori_loop(0, length, forward, (start, powers))
    return jax.lax.fori_loop(0, length, backward, total), powers


@functools.partial(jax.jit, static_argnums=(5, 6))
def _variance_of_columns(system, first, n_terms, largest, tol, width, n_copies):
    n_states = system.process_var.shape[0]
    n_blocks = n_states // n_copies
    dtype = system.process_var.dtype
    rows = jnp.arange(n_blocks, dtype=jnp.int32)
    start = (rows[:, None] == first + jnp.arange(width, dtype=jnp.int32)).astype(dtype)
    is_diagonal = system.process_cov is None
    matrix = (
        dataclasses.replace(system.transposed, n_copies=1) if is_diagonal else system.transposed
    )

    def add(_, carry):
        power, total = carry
        other = power if is_diagonal else apply_process_cov(system, power)
        return multiply(matrix, power), total + power * other

    def is_short(carry):
        n_done, power, total = carry
        left_out = largest * jnp.sum(power**2, axis=0)
        return (n_done < n_terms) & jnp.any(left_out > tol * jnp.sum(total, axis=0))

    def extend(carry):
        n_done, power, total = carry
        return n_done + _BLOCK, *jax.lax.fori_loop(0, _BLOCK, add, (power, total))

    total = jnp.zeros_like(start)
    total = jax.lax.while_loop(is_short, extend, (0, start, total))[2]
    if is_diagonal:  # one orientation stands for all: they differ in the variances only
        return total.T @ system.process_var.reshape(n_blocks, n_copies)
    return jnp.sum(total, axis=0)[:, None]
