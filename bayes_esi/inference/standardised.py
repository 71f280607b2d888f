"""Standardised Kalman filter: filtered means over the standard deviation of what they learnt.

    z_t = x_t|t / diag(P_t G' S_t^-1 G P_t)^(exponent / 2)

The denominator is the standard deviation of the update at sample t: deep sources, of which the data
say little, get small numbers in both. With a transition of zero it is sLORETA's (to a constant,
for equal variances); it is a statistic for localisation, not a posterior.

Cost: the filter's, and O(n_states n_channels^2) a sample until the gains are steady.

References: Pascual-Marqui 2002 (sLORETA); Lahtinen, Ronni, Subramaniyam, Koulouri,
Wolters, Pursiainen 2024, doi:10.1016/j.clinph.2024.09.021 (standardised Kalman filter).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import disturbance_smoother
from .coupled_kalman import prepare

__all__ = ["Standardised", "run", "update_variance"]


class Standardised(NamedTuple):
    """A statistic of the filtered means."""

    statistic: np.ndarray  # (n_states, n_times), unitless for exponent 1
    log_likelihood: float  # of the whitened data, in nats


@jax.jit
def update_variance(gain):
    """Variance of the update at one sample, diag(P G' S^-1 G P): (n_states,) array."""
    identity = jnp.eye(gain.innovation_chol.shape[0], dtype=gain.innovation_chol.dtype)
    inverse = jax.scipy.linalg.solve_triangular(gain.innovation_chol, identity, lower=True)
    return jnp.sum((gain.predicted_cov @ inverse.T) ** 2, axis=1)


def run(
    data,
    lead_field,
    transition,
    process_cov,
    noise_var,
    *,
    exponent=1.0,
    memory_limit=6 * 2**30,
    gains=None,
):
    """Filter and standardise.

    Parameters
    ----------
    data : (n_channels, n_times) array
        Whitened.
    lead_field, transition, process_cov, noise_var
        As in `coupled_kalman.make_model`.
    exponent : float
        Power of the standard deviation; 1 standardises, more favours deep sources.
    memory_limit : float
        Bytes.
    gains : GainSequence, optional
        From `coupled_kalman.prepare`, also without variances.

    Returns
    -------
    Standardised

    Raises
    ------
    ValueError
        If the exponent is not a number of at least 0.
    """
    if not exponent >= 0:
        raise ValueError(f"exponent must be at least 0, got {exponent!r}; 1 standardises.")
    n_times = np.shape(data)[1]
    if gains is None:
        gains = prepare(
            lead_field,
            transition,
            process_cov,
            noise_var,
            n_times,
            with_var=False,
            memory_limit=memory_limit,
        )
    samples = jnp.asarray(np.asarray(data).T, gains.model.lead_field.dtype)
    filtered = disturbance_smoother.run_filter(gains, samples, keep_mean=True)
    statistic = filtered.mean
    for gain, start, length in gains.blocks():
        scale = np.asarray(update_variance(gain)) ** (0.5 * exponent)
        # A source that no channel sees has a mean of zero as well.
        statistic[start : start + length] /= np.where(scale > 0, scale, 1)
    return Standardised(statistic.T, filtered.log_likelihood)
