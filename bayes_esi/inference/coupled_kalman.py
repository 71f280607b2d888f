"""Exact filter and smoother for coupled sources, without a covariance matrix of the states.

    x_{t+1} = F x_t + w_t,   w ~ N(0, Q),   x_1 stationary;     y_t = G x_t + v_t,   v ~ N(0, R)

The pieces: the stationary law by sparse products (`stationary_prior`), Kalman gains by the
Chandrasekhar recursion (`chandrasekhar`, `gain_sequence`), filtered means (`disturbance_smoother`),
and by the simulation smoother smoothed means, smoothed variances and draws in one pass
(`simulation_smoother`). Log evidence, means, predicted and filtered variances are exact; smoothed
variances carry a Monte Carlo error, which is returned.

Cost, with K terms of the stationary series, m channels, n states: 2 K sparse products with m
vectors and K with n, then O(n m^2) for each sample until the gains are steady, then O(n m) a sample
and series. Memory: a few n x m matrices, `memory_limit` for stored gains and draws, and the output.

References: see the pieces; Galka et al. 2004, doi:10.1016/j.neuroimage.2004.02.022 and Lamus
et al. 2012, doi:10.1016/j.neuroimage.2011.11.020 for the models.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from . import disturbance_smoother, simulation_smoother
from .chandrasekhar import Model
from .gain_sequence import solve_gains
from .stationary_prior import dynamics

__all__ = ["CoupledMoments", "make_model", "prepare", "run", "sample"]


class CoupledMoments(NamedTuple):
    """Posterior moments of coupled sources."""

    mean: np.ndarray  # (n_states, n_times), smoothed or filtered
    std: np.ndarray  # (n_states, n_times)
    std_error: np.ndarray  # (n_states, n_times), relative Monte Carlo standard error of std
    log_likelihood: float  # of the whitened data, in nats
    n_transient: int  # samples before the gain is steady
    dare_residual: float  # relative residual of the Riccati equation at the last gain


def make_model(lead_field, transition, process_cov, noise_var):
    """Store the model for compiled code.

    Parameters
    ----------
    lead_field : (n_channels, n_states) array
        Whitened; its dtype is that of all computation.
    transition : sparse (n_states, n_states)
    process_cov : (n_states,) variances, or sparse (n_states, n_states)
    noise_var : float

    Returns
    -------
    Model
    """
    lead_field = jnp.asarray(lead_field)
    dtype = lead_field.dtype
    system = dynamics(sparse.csr_array(transition), process_cov, dtype)
    return Model(system, lead_field, jnp.asarray(noise_var, dtype))


def prepare(
    lead_field,
    transition,
    process_cov,
    noise_var,
    n_times,
    *,
    tol=None,
    with_var=True,
    memory_limit=6 * 2**30,
    progress=lambda done: None,
):
    """Compute everything that does not depend on the data: see `make_model` and `solve_gains`.

    Returns
    -------
    GainSequence
        Serves `run` and `sample` for any data of this model and length.
    """
    model = make_model(lead_field, transition, process_cov, noise_var)
    return solve_gains(
        model,
        n_times,
        tol=tol,
        memory_limit=0.6 * memory_limit,
        with_var=with_var,
        progress=progress,
    )


def run(
    data,
    lead_field,
    transition,
    process_cov,
    noise_var,
    *,
    smooth=True,
    n_draws=14,
    key=None,
    tol=None,
    memory_limit=6 * 2**30,
    progress=lambda done: None,
    gains=None,
):
    """Filter or smooth.

    Parameters
    ----------
    data : (n_channels, n_times) array
        Whitened.
    lead_field, transition, process_cov, noise_var
        As in `make_model`; states run over sources and, fastest, orientations.
    smooth : bool
        Smoothed moments; otherwise filtered ones.
    n_draws : int
        Draws for the smoothed variances, at least 4.
    key : PRNG key
        For the draws; needed if `smooth`.
    tol : float, optional
        Relative accuracy of gains and exact variances; see `solve_gains`.
    memory_limit : float
        Bytes for stored gains, series and draws together, beside the output.
    progress : callable
        Called with the share of the work done, 0 to 1.
    gains : GainSequence, optional
        From `prepare` for the same model and number of samples.

    Returns
    -------
    CoupledMoments

    Raises
    ------
    ValueError
        If smoothing comes without a key or with fewer than 4 draws.
    """
    if smooth and key is None:
        raise ValueError("key is needed for the smoothed variances: give jax.random.key(0).")
    if smooth and n_draws < 4:
        raise ValueError(f"n_draws must be at least 4 to know its own error, got {n_draws}.")
    n_times = np.shape(data)[1]
    if gains is None:
        gains = prepare(
            lead_field,
            transition,
            process_cov,
            noise_var,
            n_times,
            tol=tol,
            memory_limit=memory_limit,
            progress=lambda done: progress(0.5 * done),
        )
    samples = jnp.asarray(np.asarray(data).T, gains.model.lead_field.dtype)
    if smooth:
        mean, variance, error, log_likelihood = simulation_smoother.moments(
            key,
            gains,
            samples,
            n_draws,
            0.3 * memory_limit,
            lambda done: progress(0.5 + 0.5 * done),
        )
        std = np.sqrt(variance, out=variance)
        tiny = np.finfo(std.dtype).tiny
        std_error = error / np.maximum(2 * std**2, tiny)
    else:
        mean, _, log_likelihood = disturbance_smoother.run_filter(gains, samples, keep_mean=True)
        rows = np.minimum(np.arange(n_times), gains.n_transient)
        std = np.sqrt(np.maximum(gains.filtered_var, 0.0))[rows]
        std_error = np.broadcast_to(np.zeros((), std.dtype), std.shape)
        progress(1.0)
    return CoupledMoments(
        mean.T,
        std.T,
        std_error.T,
        log_likelihood,
        gains.n_transient,
        gains.dare_residual,
    )


def sample(key, n_draws, data, gains, *, memory_limit=6 * 2**30):
    """Draw whole time courses from the posterior.

    Parameters
    ----------
    key : PRNG key
    n_draws : int
    data : (n_channels, n_times) array
        Whitened.
    gains : GainSequence
        From `prepare`.
    memory_limit : float
        Bytes, beside the output.

    Returns
    -------
    (n_draws, n_states, n_times) array
    """
    samples = jnp.asarray(np.asarray(data).T, gains.model.lead_field.dtype)
    draws = simulation_smoother.draw(key, gains, samples, n_draws, 0.3 * memory_limit)
    return np.moveaxis(draws, 1, 2)
