"""Kalman filter of the moments of the dipoles in some slots, in information form.

    q_t = a q_{t-1} + w  on slots that continue;   q_t ~ N(0, s^2 I)  on newborn ones
    y_t | q_t:  log density = log_noise + b' q - q' A q / 2       (A, b: see `track_gram`)

An empty slot has mean 0, variance 1, no correlation, and zero rows in A and b: it is carried along
and changes nothing. A dipole that dies is marginalised by leaving its rows out.

Everything is for one set of slots, of dimension n = n_slots * d, and meant to be vmapped.
Cost O(n^3) a step, whatever the number of channels.

References: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (moments
marginalised in a particle filter); Lindsten, Bunch, Särkkä, Schön, Godsill 2016,
doi:10.1109/JSTSP.2015.2506543 (backward information filter).
"""

import jax
import jax.numpy as jnp

from ..core.types import Array, Bool, Float

__all__ = ["empty", "look_back", "predict", "update"]


def empty(n_slots, n_orient, dtype):
    """Moments of slots that are all empty: mean (n,), covariance (n, n)."""
    n = n_slots * n_orient
    return jnp.zeros(n, dtype), jnp.eye(n, dtype=dtype)


def predict(
    mean: Float[Array, " n"],
    cov: Float[Array, "n n"],
    is_alive: Bool[Array, " n_slots"],
    is_new: Bool[Array, " n_slots"],
    persistence: Float[Array, ""],
    moment_std: Float[Array, ""],
):
    """Moments a sample later, before its data.

    Parameters
    ----------
    mean, cov : (n,), (n, n)
        Of the sample before.
    is_alive, is_new : (n_slots,) bool
        Slots held at this sample, and those whose dipole is born at it.

    Returns
    -------
    mean, cov
    """
    d = mean.shape[0] // is_alive.shape[0]
    alive, new = jnp.repeat(is_alive, d), jnp.repeat(is_new, d)
    keep = (alive & ~new) * persistence
    added = jnp.where(alive, moment_std**2 * (1 - keep**2), 1.0)
    return keep * mean, keep[:, None] * cov * keep + jnp.diag(added)


def update(
    mean: Float[Array, " n"],
    cov: Float[Array, "n n"],
    gram: Float[Array, "n n"],
    projection: Float[Array, " n"],
):
    """Condition on the factor exp(b' q - q' A q / 2).

    Returns
    -------
    mean, cov
        Of the conditioned law.
    log_factor : scalar
        Log of the mean of the factor under N(mean, cov): with A and b of a sample, its log
        density relative to noise alone.
    """
    n = mean.shape[0]
    chol = jnp.linalg.cholesky(cov)
    inner = jnp.linalg.cholesky(jnp.eye(n, dtype=cov.dtype) + chol.T @ gram @ chol)
    root = jax.scipy.linalg.solve_triangular(inner, chol.T, lower=True)  # new cov = root' root
    residual = projection - gram @ mean
    image = root @ residual
    log_factor = 0.5 * jnp.sum(image**2) - jnp.sum(jnp.log(jnp.diagonal(inner)))
    log_factor += 0.5 * mean @ (projection + residual)
    return mean + root.T @ image, root.T @ root, log_factor


def look_back(
    precision: Float[Array, "n n"],
    shift: Float[Array, " n"],
    is_alive: Bool[Array, " n_slots"],
    is_new: Bool[Array, " n_slots"],
    persistence: Float[Array, ""],
    moment_std: Float[Array, ""],
):
    """What a factor exp(b' q_t - q_t' A q_t / 2) of later moments says of those a sample before.

    Parameters
    ----------
    precision, shift : (n, n), (n,)
        A and b of the later moments: sample t and all that follow.
    is_alive, is_new : (n_slots,) bool
        Of the later sample.

    Returns
    -------
    precision, shift
        Of the moments a sample before, up to a factor that does not depend on them.
    """
    d = shift.shape[0] // is_alive.shape[0]
    alive, new = jnp.repeat(is_alive, d), jnp.repeat(is_new, d)
    keep = (alive & ~new) * persistence
    noise = jnp.where(alive, moment_std * jnp.sqrt(1 - keep**2), 0.0)
    scaled = noise[:, None] * precision * noise
    chol = jnp.linalg.cholesky(jnp.eye(shift.shape[0], dtype=shift.dtype) + scaled)
    # A - A N (I + N A N)^-1 N A, and the same on b.
    gain = jax.scipy.linalg.solve_triangular(chol, noise[:, None] * precision, lower=True)
    told = jax.scipy.linalg.solve_triangular(chol, noise * shift, lower=True)
    later = precision - gain.T @ gain
    return keep[:, None] * later * keep, keep * (shift - gain.T @ told)
