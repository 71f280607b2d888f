"""Eager validation at the public boundary.

Every failure is a `ValueError` that names the argument, what was expected,
what came and, where it is not obvious, what to do. Nothing here is traced.
"""

import numbers

import numpy as np

__all__ = [
    "check_array",
    "check_choice",
    "check_count",
    "check_fraction",
    "check_positive",
]


def check_array(name, value, *, ndim=None, shape=None, remedy=""):
    """Return `value` as a finite floating-point NumPy array of the wanted shape.

    Parameters
    ----------
    name : str
        The argument's name as the user knows it.
    value : array_like
        What came.
    ndim : int, optional
        Wanted number of dimensions.
    shape : tuple of (int, str or None), optional
        Wanted shape; a string names a free dimension in the message.
    remedy : str, optional
        What to do, appended to the message.

    Raises
    ------
    ValueError
        If the array is not numeric, empty, of another shape, or not finite.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a real numeric array, got {type(value).__name__}. {remedy}".strip()
        ) from None
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    wanted = shape if shape is not None else (None,) * (array.ndim if ndim is None else ndim)
    fits = array.ndim == len(wanted) and all(
        not isinstance(w, numbers.Integral) or w == n
        for w, n in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        text = ", ".join("any" if w is None else str(w) for w in wanted)
        raise ValueError(f"{name} must have shape ({text}), got {array.shape}. {remedy}".strip())
    if array.size == 0:
        raise ValueError(f"{name} is empty: its shape is {array.shape}. {remedy}".strip())
    n_bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if n_bad:
        raise ValueError(
            f"{name} has {n_bad} NaN or infinite value{'s' if n_bad > 1 else ''}; "
            f"remove or interpolate them. {remedy}".strip()
        )
    return array


def check_positive(name, value, *, remedy=""):
    """Return `value` as a float, refusing anything that is not finite and above zero."""
    is_scalar = getattr(value, "ndim", 1) == 0 and getattr(value.dtype, "kind", "") in "fiu"
    is_number = isinstance(value, numbers.Real) or is_scalar
    if not is_number or isinstance(value, bool):
        raise ValueError(f"{name} must be a positive number, got {value!r}. {remedy}".strip())
    value = float(value)
    if not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {value!r}. {remedy}".strip())
    return value


def check_fraction(name, value, *, remedy=""):
    """Return `value` as a float in the open interval (0, 1)."""
    value = check_positive(name, value, remedy=remedy)
    if value >= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}. {remedy}".strip())
    return value


def check_count(name, value, *, minimum=1, remedy=""):
    """Return `value` as an int of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"{name} must be an integer of at least {minimum}, got {value!r}. {remedy}".strip()
        )
    return int(value)


def check_choice(name, value, choices):
    """Return `value` if it is one of `choices`, else list them."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
    return value
