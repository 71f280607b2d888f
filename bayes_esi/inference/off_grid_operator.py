"""Whitened lead fields at any position, as functions that NUTS can differentiate.

An operator turns positions (k, 3) in m into whitened lead fields (rank, k, 3) in units of
`problem.moment_unit`. It is a `jax.tree_util.Partial`: its arrays travel as arguments of compiled
code.

The whitener lives on the range of the noise covariance. Projectors and the average reference took
the rest out of both, so a lead field needs neither before it is whitened.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..forward.off_grid import interpolate, reach_of
from ..forward.sensors import lead_field_of

__all__ = ["check_operator", "evaluate", "grid_operator", "head_operator", "whitened_operator"]


def whitened_operator(problem, lead_field):
    """Operator from the lead field of a head model.

    Parameters
    ----------
    problem : Problem
    lead_field : callable
        Positions (k, 3) in m to lead fields (n_channels, k, 3) in V, T or T/m for each A·m: those
        of `problem.ch_names`, in that order, axes as those of `problem.source_pos`. It must be
        differentiable by JAX. A pytree that can be called (what `BEM.transfer` returns, or a
        `jax.tree_util.Partial`) has its arrays compiled as arguments; a plain function has them
        compiled in, and compiles anew whenever it is made anew.

    Returns
    -------
    jax.tree_util.Partial

    Raises
    ------
    ValueError
        If it returns another shape, or fields that differ from those of the problem at its own
        sources by more than a third: other units, other channels or another order.
    """
    if not callable(lead_field):
        raise ValueError(
            f"lead_field must be a function of positions, got {type(lead_field).__name__}."
        )
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    whitener = np.asarray(problem.whitener * problem.moment_unit, dtype)
    is_plain = jax.tree_util.all_leaves([lead_field])
    function = Partial(lead_field) if is_plain else Partial(_call, lead_field)
    probe = problem.source_pos[np.linspace(0, problem.n_sources - 1, 4).astype(int)]
    shape = jax.eval_shape(function, jnp.asarray(probe, dtype)).shape
    if shape != (problem.n_channels, 4, 3):
        raise ValueError(
            f"lead_field must return shape ({problem.n_channels}, k, 3) for k positions, one row "
            f"for each of problem.ch_names; got {shape} for 4."
        )
    operator = Partial(_whiten, whitener, function)
    check_operator(problem, operator)
    return operator


def head_operator(problem, head, sensors):
    """Operator from a head model of `bayes_esi.forward`.

    Parameters
    ----------
    problem : Problem
    head : Sphere, BEM, FEM or Unbounded
    sensors : Sensors
        With all channels of the problem, and possibly others.

    Returns
    -------
    jax.tree_util.Partial

    Raises
    ------
    ValueError
        If channels are missing, or as for `whitened_operator`.
    """
    sensors = sensors.pick(problem.ch_names)
    return whitened_operator(problem, functools.partial(lead_field_of, head, sensors))


def grid_operator(problem):
    """Operator from the lead field of the problem itself, by moving least squares.

    Between sources it is as good as the grid is fine against the distance to the sensors; see
    `bayes_esi.forward.off_grid`.

    Raises
    ------
    ValueError
        If orientations are fixed, or there are fewer than five sources.
    """
    if problem.n_orient != 3 or problem.n_sources < 5:
        raise ValueError(
            "positions off the grid need at least five sources with three orientations, since "
            f"normals jump from source to source; the problem has {problem.n_sources} sources "
            f"with {problem.n_orient}."
        )
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    parts = (problem.lead_field, problem.source_pos, reach_of(problem.source_pos))
    return Partial(interpolate, *(np.asarray(part, dtype) for part in parts))


def check_operator(problem, operator):
    """Refuse an operator that disagrees with the lead field of the problem at its sources.

    Raises
    ------
    ValueError
        If the median relative difference at four sources is above a third. A head model other
        than the one of the problem is welcome; another unit is not.
    """
    if problem.n_orient != 3:
        return
    places = np.linspace(0, problem.n_sources - 1, 4).astype(int)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    # Arrays of the operator are arguments: another problem of this shape compiles nothing.
    compiled = operator if isinstance(operator, Partial) else Partial(operator)
    got = np.asarray(evaluate(compiled, jnp.asarray(problem.source_pos[None, places], dtype))[0])
    known = problem.lead_field[:, places]
    axes = (0, 2)
    difference = np.sqrt(np.sum((got - known) ** 2, axis=axes) / np.sum(known**2, axis=axes))
    if not np.median(difference) < 1 / 3:
        raise ValueError(
            "the operator and the lead field of the problem differ by "
            f"{100 * np.median(difference):.0f} % at the problem's own sources; look at units "
            "(SI, for each A·m), at channels and their order (problem.ch_names), and at the frame."
        )


@jax.jit
def evaluate(operator, pos):
    """Whitened lead fields of many sets of positions: (n, k, 3) to (n, rank, k, 3)."""
    return jax.lax.map(operator, pos)


def _call(function, pos):
    return function(pos)


def _whiten(whitener, function, pos):
    return jnp.einsum("rc,ckx->rkx", whitener, function(pos))
