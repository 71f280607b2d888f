"""Proximal operators of sums of norms: what one step of a splitting method does to an array.

    prox_f(z) = arg min_x  1/2 |x - z|^2 + f(x)

Closed forms, O(size) each. References: Moreau 1965, doi:10.24033/bsmf.1625 (the operator); Jenatton
et al. 2011, JMLR 12:2297 (nested norms: the inner one first, then the outer one).
"""

import jax.numpy as jnp

__all__ = ["shrink", "shrink_groups"]


def shrink(array, threshold, axis=None):
    """Pull magnitudes towards zero by `threshold`: the operator of threshold * sum |z|.

    Parameters
    ----------
    array : array
        Real or complex.
    threshold : scalar or array
        Not negative; broadcasts against the magnitudes.
    axis : int or tuple of int, optional
        Axes whose entries share one magnitude, the root of their squares; they keep their
        length 1 in the broadcast. None: each entry has its own.

    Returns
    -------
    array
        Exactly zero where the magnitude does not exceed the threshold.
    """
    if axis is None:
        magnitude = jnp.abs(array)
    else:
        magnitude = jnp.sqrt(jnp.sum(jnp.abs(array) ** 2, axis=axis, keepdims=True))
    left = jnp.maximum(magnitude - threshold, 0)
    return array * (left / jnp.where(magnitude > 0, magnitude, 1))


def shrink_groups(array, threshold):
    """Shrink whole groups, the rows along the first axis: the operator of sum_j threshold_j |z_j|.

    Parameters
    ----------
    array : (n_groups, ...) array
    threshold : scalar or (n_groups,) array

    Returns
    -------
    array
    """
    threshold = jnp.reshape(threshold, jnp.shape(threshold) + (1,) * (array.ndim - 1))
    return shrink(array, threshold, axis=tuple(range(1, array.ndim)))
