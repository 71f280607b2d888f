"""Conjugate gradients for many right-hand sides at once, with a certificate.

For a symmetric positive semidefinite K with positive diagonal D, and zero-sum columns b, solves

    K x = b     as     (D^-1/2 K D^-1/2) y = D^-1/2 b,     x = D^-1/2 y,

which is the Jacobi-preconditioned method without a preconditioner to apply: a step is one
sparse product, three updates and two sums a column. All columns share the matrix that is read
from memory, which is what makes the batch fast. The matrix is a table of neighbours, every row
padded to the longest (ELL), its nodes in reverse Cuthill-McKee order so that gathers stay in
cache; plain gathers run on every device.

A null space of constants needs no care: the residual stays orthogonal to it.

The compiled iteration runs in float32, which halves the memory that it reads. Around it stands
*iterative refinement* on the host: the residual of the sum so far is formed in float64, and the
next round solves for what is left. Each round gains four digits, on any device, and what is
returned as certificate,

    ||D^-1/2 (b - K x)|| / ||D^-1/2 b||     for every column,

is measured, not assumed from the recursion.

Cost: one step reads K and five (n_nodes, n_columns) arrays; about 330 steps to 1e-6 for a head
of 100,000 nodes whose conductivities span a factor of 180.

References: Hestenes, Stiefel 1952, doi:10.6028/jres.049.044; Cuthill, McKee 1969,
doi:10.1145/800195.805928 (ordering); Lew, Wolters, Dierkes, Röer, MacLeod 2009,
doi:10.1016/j.apnum.2009.02.006 (solvers for this problem).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.csgraph import reverse_cuthill_mckee

from ..core.struct import struct
from ..core.types import Array, Float, Int

__all__ = ["Solution", "solve"]

# Columns iterated together: more gain no speed and cost memory.
_BATCH = 64
# How far one round reduces a residual: float32's rounding stops it soon after.
_REACH = 1e-4
_MAX_ROUNDS = 10


class Solution(NamedTuple):
    """What `solve` returns."""

    solution: np.ndarray  # (n_nodes, n_columns) float64
    residual: np.ndarray  # (n_columns,) relative residuals of the solution, measured in float64
    n_steps: int  # conjugate-gradient steps, summed over batches and rounds


@struct
class _Table:
    """A sparse matrix: row i holds values[:, i] in columns[:, i], padded with zeros."""

    columns: Int[Array, "width n_nodes"]
    values: Float[Array, "width n_nodes"]


def solve(matrix, right_sides, *, tol=1e-7, max_steps=5000):
    """Solve K x = b for every column of `right_sides`.

    Parameters
    ----------
    matrix : (n_nodes, n_nodes) sparse array
        K, symmetric, positive definite or with constants as its null space.
    right_sides : (n_nodes, n_columns) array
        b; columns sum to zero where K has a null space.
    tol : float
        Largest relative residual of a column.
    max_steps : int
        Steps of one round on one batch of columns.

    Returns
    -------
    Solution

    Raises
    ------
    RuntimeError
        If a column misses the tolerance: no solution that cannot be trusted is handed out.
    """
    matrix = matrix.tocsr()
    scale = 1 / np.sqrt(matrix.diagonal())
    order = reverse_cuthill_mckee(matrix, symmetric_mode=True)
    table = _tabulate(matrix, scale, order)
    n_columns = right_sides.shape[1]
    n_batches = -(-n_columns // _BATCH)
    width = -(-n_columns // n_batches)  # equal batches: one compilation
    solution = np.zeros(right_sides.shape)
    residual, n_steps = np.zeros(n_columns), 0
    for start in range(0, n_columns, width):
        batch = slice(start, start + width)
        solution[:, batch], residual[batch], steps = _refine(
            matrix, table, scale, order, right_sides[:, batch], width, tol, max_steps
        )
        n_steps += steps
    n_bad = int(np.count_nonzero(~(residual <= tol)))
    if n_bad:
        raise RuntimeError(
            f"conjugate gradients left {n_bad} of {n_columns} columns above the tolerance {tol:g} "
            f"(worst {residual.max():.2g}): look for flat elements (Mesh.quality) and extreme "
            "conductivities, or raise max_steps or tol."
        )
    return Solution(solution, residual, n_steps)


def _tabulate(matrix, scale, order):
    scaled = matrix[order][:, order].tocsr()
    scale = scale[order]
    lengths = np.diff(scaled.indptr)
    row = np.repeat(np.arange(len(scale)), lengths)
    place = np.arange(scaled.nnz) - scaled.indptr[row]
    columns = np.zeros((lengths.max(), len(scale)), np.int32)
    values = np.zeros(columns.shape)
    columns[place, row] = scaled.indices
    values[place, row] = scaled.data * scale[row] * scale[scaled.indices]
    return _Table(jnp.asarray(columns), jnp.asarray(values, jnp.float32))


def _refine(matrix, table, scale, order, right_sides, width, tol, max_steps):
    """One batch: rounds of compiled iterations on the residual until the tolerance holds."""
    n_columns = right_sides.shape[1]
    target = np.linalg.norm(scale[:, None] * right_sides, axis=0)
    target = np.where(target > 0, target, 1.0)
    solution, left, n_steps, before = np.zeros(right_sides.shape), right_sides, 0, np.inf
    for _ in range(_MAX_ROUNDS):
        scaled = np.zeros((len(scale), width))
        scaled[:, :n_columns] = (scale[:, None] * left / target)[order]
        size = np.linalg.norm(scaled, axis=0)
        residual = size[:n_columns]
        # A round that hardly helped, as where columns do not sum to zero, is the last.
        if np.all(residual <= tol) or residual.max() > 0.5 * before:
            break
        before = residual.max()
        # Of order one on the device, whatever the units; half the tolerance leaves room for
        # the difference between the recursion's residual and the true one.
        size = np.where(size > 0, size, 1.0)
        goal = np.maximum(0.5 * tol / size, _REACH)
        update, steps = _iterate(
            table,
            jnp.asarray(scaled / size, jnp.float32),
            jnp.asarray(goal, jnp.float32),
            jnp.asarray(max_steps, jnp.int32),
        )
        correction = np.empty_like(solution)
        correction[order] = np.asarray(update, np.float64)[:, :n_columns] * size[:n_columns]
        solution += correction * scale[:, None] * target
        left = right_sides - matrix @ solution
        n_steps += int(steps)
    else:
        residual = np.linalg.norm(scale[:, None] * left / target, axis=0)
    return solution, residual, n_steps


@jax.jit
def _iterate(table, right_sides, goal, max_steps):
    """Conjugate gradients from zero until every column's residual norm is below its goal."""

    def is_running(state):
        step, power = state[0], state[-1]
        return (step < max_steps) & jnp.any(power > goal**2)

    def advance(state):
        step, solution, residual, direction, power = state
        image = _multiply(table, direction)
        curvature = jnp.sum(direction * image, axis=0)
        # A converged or empty column stands still instead of dividing zero by zero.
        length = jnp.where(power > 0, power / jnp.where(curvature > 0, curvature, 1), 0)
        solution = solution + length * direction
        residual = residual - length * image
        new_power = jnp.sum(residual**2, axis=0)
        direction = residual + (new_power / jnp.where(power > 0, power, 1)) * direction
        return step + 1, solution, residual, direction, new_power

    power = jnp.sum(right_sides**2, axis=0)
    state = (
        jnp.asarray(0, jnp.int32),
        jnp.zeros_like(right_sides),
        right_sides,
        right_sides,
        power,
    )
    state = jax.lax.while_loop(is_running, advance, state)
    return state[1], state[0]


def _multiply(table, vectors):
    # A Python loop over the padded row: XLA fuses all gathers into one pass, 30 times faster on
    # a CPU than a batched product of the gathered rows.
    rows = range(table.values.shape[0])
    return sum(table.values[k][:, None] * vectors[table.columns[k]] for k in rows)
