"""Channels that go bad for a time: the sensors' signals as one state, filtered densely.

With channels missing at some samples the eigen-coordinates z are no longer independent, but
sources are still seen through the signals s of `separable` alone. These are the first entries of
a state S of rank q numbers (q that of the law in time), and a sample is what the good channels
tell of z:

    S_{t+1} = (F kron I) S_t + N(0, Q kron diag(signal_var)),    O_t z_t = O_t (s_t + noise_t)

See `dense_kalman` for the filter and for O_t. Cost O(n_times (rank q)^3).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..models.autoregressive import kernel_of
from ..models.source_hyper import step_of
from . import dense_kalman

__all__ = ["DenseSignals", "run"]


class DenseSignals(NamedTuple):
    """Moments of the signals with their covariances between channels."""

    mean: np.ndarray  # (rank, n_times)
    cov: np.ndarray  # (n_times, rank, rank)
    growth: np.ndarray  # (n_times,): prior variance along time
    log_likelihood: float  # of what was observed, in coordinates z
    log_jacobian_change: float  # from all whitened data to the good channels in data units


def run(model, problem, theta, analysis, z, signal_var, is_missing, is_filter):
    """Condition the signals on the channels that are good.

    Parameters
    ----------
    model : AutoregressiveSources
    problem : Problem
    theta : dict
        Hyper-parameters.
    analysis : (rank, rank) array
        From whitened data to z.
    z : (rank, n_times) array
    signal_var : (rank,) array
        Prior variances at the first sample.
    is_missing : (n_channels, n_times) bool array
    is_filter : bool

    Returns
    -------
    DenseSignals
    """
    kernel = kernel_of(model.kernel, theta, step_of(problem))
    transition, process, initial = (
        np.asarray(a, np.float64)
        for a in (kernel.transition, kernel.process_cov, kernel.initial_cov)
    )
    rank, q = len(signal_var), len(transition)
    observation, change = dense_kalman.observation_patterns(analysis @ problem.whitener, is_missing)
    roots = np.diag(np.sqrt(signal_var))
    found = dense_kalman.run(
        jnp.asarray(z),
        jnp.asarray(np.eye(rank, q * rank)),
        np.kron(transition, np.eye(rank)),
        np.kron(dense_kalman.factor_of(process), roots),
        np.kron(dense_kalman.factor_of(initial), roots),
        1.0,
        observation,
    )
    mean, factor = found.smoothed_mean, found.smoothed_factor
    if is_filter:
        mean, factor = found.filtered_mean, found.filtered_factor
    factor = np.asarray(factor[:, :rank], np.float64)
    return DenseSignals(
        mean=np.asarray(mean[:rank], np.float64),
        cov=factor @ factor.transpose(0, 2, 1),
        growth=np.asarray(kernel.variance(problem.n_times), np.float64),
        log_likelihood=float(found.log_likelihood),
        log_jacobian_change=change,
    )
