"""What every forward model asks of positions, and how it says what is wrong with them.

Values are checked where they are known: positions that a transformation traces (jit, vmap,
grad) have a shape and a type but no values yet, and pass.
"""

import jax
import numpy as np

from ..core.checks import check_array

__all__ = [
    "cast",
    "check_coils_outside",
    "check_points",
    "check_sources_within",
    "common_dtype",
    "is_known",
    "radius_of",
]

# Heads are smaller than this (m): a cloud of points further out was given in millimetres.
_LARGEST_HEAD = 1.0


def is_known(*values):
    """Whether the values of these arrays are known now, so not traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def cast(dtype, *values):
    """Return arrays in the type in which a kernel computes, on the host unless traced."""
    return [np.asarray(x, dtype) if is_known(x) else x.astype(dtype) for x in values]


def check_points(name, value, *, allow_single=False, in_metres=True):
    """Return points as an array (n, 3), or (3,) where a single one is allowed.

    Parameters
    ----------
    name : str
        The argument's name as the user knows it.
    value : array_like
        What came, in m.
    allow_single : bool
        Whether (3,) is a shape to accept.
    in_metres : bool
        Whether the values are lengths; directions are not.

    Raises
    ------
    ValueError
        If the shape is another, a value is not finite, or the unit looks like millimetres.
    """
    expected = "(n, 3) or (3,)" if allow_single else "(n, 3)"
    shape = np.shape(value) if is_known(value) else value.shape
    if not (len(shape) == 2 or (allow_single and len(shape) == 1)) or shape[-1] != 3:
        raise ValueError(f"{name} must have shape {expected}, got {shape}; one point a row.")
    if not is_known(value):
        return value
    points = check_array(name, value, ndim=len(shape))
    median = float(np.median(radius_of(points)))
    if in_metres and median > _LARGEST_HEAD:
        raise ValueError(
            f"{name} must be in metres, but lies {median:.3g} m from the origin (median): "
            "that looks like millimetres; divide by 1000."
        )
    return points


def check_sources_within(source_pos, radius, where):
    """Refuse sources further than `radius` (m) from the origin, with their number."""
    if not is_known(source_pos, radius):
        return
    distance = radius_of(source_pos)
    outside = np.flatnonzero(np.atleast_1d(distance > radius * (1 + 1e-6)))
    if outside.size:
        raise ValueError(
            f"source_pos has {outside.size} of {np.size(distance)} sources outside {where} "
            f"(radius {1e3 * radius:.4g} mm): the first is source {outside[0]} at "
            f"{1e3 * np.atleast_1d(distance)[outside[0]]:.4g} mm from the centre; "
            "remove them, or move the centre of the sphere."
        )


def check_coils_outside(coil_pos, radius, what):
    """Refuse coils closer than `radius` (m) to the origin, with their number."""
    if not is_known(coil_pos, radius):
        return
    distance = radius_of(coil_pos)
    inside = np.flatnonzero(distance <= radius)
    if inside.size:
        raise ValueError(
            f"coil_pos has {inside.size} of {distance.size} coils inside {what} (radius "
            f"{1e3 * radius:.4g} mm): the first is coil {inside[0]} at "
            f"{1e3 * distance[inside[0]]:.4g} mm from the centre; the field formula holds "
            "outside the head only. Check the coordinate frame (head-centred, in m)."
        )


def radius_of(points):
    """Distance of points (..., 3) from the origin, on the host."""
    points = np.asarray(points, np.float64)
    return np.sqrt(np.einsum("...i,...i->...", points, points))


def common_dtype(*arrays):
    """Return the floating-point type in which a kernel computes: the widest, as JAX allows it."""
    kinds = (np.dtype(array.dtype) for array in arrays)
    wide = np.result_type(*(kind if kind.kind == "f" else np.float64 for kind in kinds))
    return jax.dtypes.canonicalize_dtype(wide)
