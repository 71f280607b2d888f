"""Systematic resampling: ancestors in proportion to weights, with one uniform number.

Reference: Kitagawa 1996, doi:10.1080/10618600.1996.10474692.
"""

import jax
import jax.numpy as jnp

__all__ = ["systematic"]


def systematic(key, log_weights, n_draws=None):
    """Ancestor of each draw.

    Parameters
    ----------
    key : PRNG key
    log_weights : (n_particles,) array
    n_draws : int, optional
        By default as many as there are particles.

    Returns
    -------
    (n_draws,) int32
        Sorted; a particle of weight w appears n_draws w times, rounded up or down.
    """
    n_particles = log_weights.shape[0]
    n_draws = n_particles if n_draws is None else n_draws
    cumulative = jnp.cumsum(jnp.exp(log_weights))
    offset = jax.random.uniform(key, (), log_weights.dtype)
    points = (jnp.arange(n_draws, dtype=offset.dtype) + offset) / n_draws * cumulative[-1]
    ancestors = jnp.searchsorted(cumulative, points, side="right")
    return jnp.minimum(ancestors, n_particles - 1).astype(jnp.int32)
