"""Kernels over (channel, source) pairs, a few channels at a time.

On a CPU a formula for all pairs at once writes each intermediate value to memory and reads it
back. One that runs over a row of sources and then turns to the next channel keeps them in the
cache: two and a half times as fast for Sarvas' formula. An accelerator wants all pairs at once.
"""

import jax

__all__ = ["map_rows"]

# Pairs whose intermediate values, some ten of them in float64, fit a second-level cache.
_PAIRS_AT_ONCE = 8192


def map_rows(function, rows, n_columns):
    """Apply a function of one row to all rows.

    Parameters
    ----------
    function : callable
        Takes one row of each array and computes with arrays of `n_columns`.
    rows : tuple of arrays
        With equal first axes.
    n_columns : int

    Returns
    -------
    array
        Results, stacked along a new first axis.
    """
    n_rows = rows[0].shape[0]
    at_once = n_rows if jax.default_backend() != "cpu" else max(1, _PAIRS_AT_ONCE // n_columns)
    if at_once >= n_rows:
        return jax.vmap(function)(*rows)
    batch_size = at_once if at_once > 1 else None
    return jax.lax.map(lambda row: function(*row), rows, batch_size=batch_size)
