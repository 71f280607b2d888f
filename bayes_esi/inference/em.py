"""Hyper-parameters of coupled sources by expectation maximisation (dMAP-EM).

    w_t ~ N(0, diag(theta)),   theta_g inverse gamma (alpha, b),   v_t ~ N(0, noise_var I)

The complete data are all disturbances, including those of the past that made the stationary start,
x_1 = sum_k F^k w_{-k}. Then each step is an exact EM step and the penalised likelihood cannot fall:

    E[w_t^2] = theta + theta^2 (r_t^2 - N_t)     r_t the smoothed disturbance, N_t = diag Var r_t
    theta  <- (sum E[w^2] / 2 + b) / (count / 2 + alpha + 1)
    E|v_t|^2 = noise_var^2 (|u_t|^2 - tr D_t) + m noise_var,   u_t the smoothed noise, D_t = Var u_t
    scale  <- mean of E[w' Q^-1 w] / n_states,       Q <- scale Q

N_t and D_t come from exact recursions where dense matrices are small, else from the simulation
smoother with the same random numbers at each step.

Cost of a step: gains and two passes of the smoother, times 1 + n_draws series.

References: Lamus, Hämäläinen, Temereanca, Brown, Purdon 2012,
doi:10.1016/j.neuroimage.2011.11.020 (the model and its M-step); Durbin, Koopman 2012,
doi:10.1093/acprof:oso/9780199641178.001.0001 (disturbances).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ..core.checks import check_choice, check_positive
from . import disturbance_smoother, simulation_smoother
from .coupled_kalman import prepare
from .disturbance_smoother import backward_step, turn
from .sparse_product import multiply
from .stationary_prior import apply_process_cov, count_terms

__all__ = ["EMResult", "run"]

_PARTS = ("process", "scale", "noise")
_DENSE_STATES = 300
# Older disturbances of the past leave less than this of their variance at the first sample.
# Counting more of them, of which the data say nothing, would only shorten the steps.
_PAST_TOL = 1e-6


class EMResult(NamedTuple):
    """Hyper-parameters at the end of EM."""

    process_cov: object  # (n_states,) variances, or sparse where only a scale was fitted
    noise_var: float
    log_posterior: np.ndarray  # (n_steps,) log likelihood + log prior before each M-step
    log_likelihood: np.ndarray  # (n_steps,) of the whitened data
    is_converged: bool


class _Moments(NamedTuple):
    """Sums over all disturbances and samples."""

    state: np.ndarray  # (n_states,) of r^2 or of N
    quadratic: float  # of r' Q r or tr(Q N)
    noise: float  # of |u|^2 or tr D


def run(
    data,
    lead_field,
    transition,
    process_cov,
    noise_var,
    *,
    update=("process",),
    groups=None,
    prior_shape=None,
    prior_scale=None,
    exact=None,
    n_draws=14,
    key=None,
    max_steps=50,
    tol=1e-5,
    memory_limit=6 * 2**30,
    progress=lambda done: None,
):
    """Fit the hyper-parameters.

    Parameters
    ----------
    data, lead_field, transition
        As in `coupled_kalman.run`.
    process_cov : (n_states,) variances, or sparse (n_states, n_states)
        Where to start; sparse only with update "scale".
    noise_var : float
        Noise variance, or where to start.
    update : sequence of "process", "scale", "noise"
        What is fitted: variances (of each group), one scale of process_cov, the noise.
    groups : (n_states,) int array, optional
        States with the same number share a variance, as the orientations of a source; by default
        each has its own.
    prior_shape, prior_scale : float, optional
        alpha and b of the inverse gamma prior of each variance; b in units of process_cov. By
        default flat: maximum likelihood.
    exact : bool, optional
        Variances by dense recursions; by default up to 300 states.
    n_draws : int
        Simulated series for the variances otherwise.
    key : PRNG key
        Needed unless `exact`.
    max_steps : int
    tol : float
        Stop once the log posterior changes by less than this, relative.
    memory_limit : float
        Bytes.
    progress : callable
        Called with the share of `max_steps` done.

    Returns
    -------
    EMResult

    Raises
    ------
    ValueError
        On an unknown part, both "process" and "scale", variances that are not positive, half
        a prior, or no key where draws are needed.
    """
    is_matrix, groups, prior = _check(
        process_cov, noise_var, update, groups, prior_shape, prior_scale
    )
    n_times = np.shape(data)[1]
    n_channels, n_states = np.shape(lead_field)
    exact = n_states <= _DENSE_STATES if exact is None else exact
    if not exact and key is None:
        raise ValueError("key is needed for the simulated variances: give jax.random.key(0).")
    samples = jnp.asarray(np.asarray(data).T, jnp.asarray(lead_field).dtype)
    posteriors, likelihoods, n_past, is_converged = [], [], None, False
    for step in range(max_steps):
        gains = prepare(
            lead_field,
            transition,
            process_cov,
            noise_var,
            n_times,
            with_var=False,
            memory_limit=memory_limit,
        )
        if n_past is None:
            n_past = count_terms(gains.model.dynamics, _PAST_TOL)
        filtered = disturbance_smoother.run_filter(gains, samples, keep_mean=False)
        likelihoods.append(filtered.log_likelihood)
        posteriors.append(filtered.log_likelihood + _log_prior(process_cov, groups, prior))
        if step > 0 and abs(posteriors[-1] - posteriors[-2]) < tol * abs(posteriors[-1]):
            is_converged = True
            break
        found = _of_data(gains, filtered.innovation, n_past)
        lost = (
            _exact(gains, n_past)
            if exact
            else _simulated(key, gains, n_draws, n_past, memory_limit / 2)
        )
        count = n_times - 1 + n_past
        if "process" in update:
            theta = np.asarray(process_cov)
            power = count * theta + theta**2 * (found.state - lost.state)
            process_cov = _new_variances(power, count, groups, prior)
        if "scale" in update:
            gain = (found.quadratic - lost.quadratic) / (count * n_states)
            process_cov = process_cov * (1 + gain)
        if "noise" in update:
            change = (found.noise - lost.noise) / (n_times * n_channels)
            noise_var = noise_var + noise_var**2 * change
        progress((step + 1) / max_steps)
    process_cov = process_cov if is_matrix else np.asarray(process_cov)
    return EMResult(
        process_cov, float(noise_var), np.array(posteriors), np.array(likelihoods), is_converged
    )


def _check(process_cov, noise_var, update, groups, prior_shape, prior_scale):
    for part in update:
        check_choice("update", part, _PARTS)
    if "process" in update and "scale" in update:
        raise ValueError('update has both "process" and "scale", but variances contain the scale.')
    check_positive("noise_var", noise_var)
    is_matrix = sparse.issparse(process_cov)
    if is_matrix and "process" in update:
        raise ValueError(
            'update="process" needs process_cov as variances; use "scale" for a matrix.'
        )
    if not is_matrix and np.any(np.asarray(process_cov) <= 0):
        raise ValueError("process_cov must start above zero: EM never leaves a variance of zero.")
    if (prior_shape is None) != (prior_scale is None):
        raise ValueError("prior_shape and prior_scale go together: give both or none.")
    prior = None
    if prior_shape is not None:
        prior = (
            check_positive("prior_shape", prior_shape),
            check_positive("prior_scale", prior_scale),
        )
    if is_matrix:
        return True, None, prior
    n_states = np.size(process_cov)
    groups = np.arange(n_states) if groups is None else np.asarray(groups)
    if groups.shape != (n_states,):
        raise ValueError(f"groups must have shape ({n_states},), got {groups.shape}.")
    return False, np.unique(groups, return_inverse=True)[1], prior


def _log_prior(process_cov, groups, prior):
    """Log density of the inverse gamma prior up to its constant, once for each group."""
    if prior is None or groups is None:
        return 0.0
    shape, scale = prior
    theta = np.asarray(process_cov)[np.unique(groups, return_index=True)[1]]
    return float(np.sum(-(shape + 1) * np.log(theta) - scale / theta))


def _new_variances(power, count, groups, prior):
    size = np.bincount(groups)
    total, number = np.bincount(groups, weights=power), count * size
    if prior is None:
        theta = total / number
    else:
        theta = (0.5 * total + prior[1]) / (0.5 * number + prior[0] + 1)
    # Monte Carlo variances may exceed the exact ones, never so far that a variance vanishes.
    return np.maximum(theta, np.finfo(np.float64).tiny)[groups]


def _of_data(gains, innovation, n_past):
    """Squares of the smoothed disturbances and noise."""
    system = gains.model.dynamics
    first, disturbance, noise = disturbance_smoother.backward(gains, innovation)
    state, quadratic = _squares(system, disturbance)
    past_state, past_quadratic = _past_squares(system, first[:, None], n_past)
    return _Moments(
        np.asarray(state + past_state),
        float(quadratic + past_quadratic),
        float(jnp.sum(noise**2)),
    )


def _simulated(key, gains, n_draws, n_past, memory_limit):
    """The variances as mean squares over simulated series."""
    state, firsts, noise, quadratic = simulation_smoother.disturbance_power(
        key, gains, n_draws, memory_limit
    )
    past_state, past_quadratic = _past_squares(gains.model.dynamics, firsts, n_past)
    return _Moments(np.asarray(state + past_state), quadratic + float(past_quadratic), noise)


def _exact(gains, n_past):
    """The variances by the dense recursion of N_t = Var r_t."""
    model = gains.model
    n_states = model.dynamics.process_var.shape[0]
    cov = jnp.zeros((n_states, n_states), model.lead_field.dtype)
    state, quadratic, noise = 0.0, 0.0, 0.0
    for gain, _, length in gains.reversed_blocks():
        cov, sums = _cov_block(model, gain, cov, length)
        state, quadratic, noise = state + sums[0], quadratic + sums[1], noise + sums[2]
    past_state, past_quadratic = _past_covs(model.dynamics, cov, n_past)
    return _Moments(np.asarray(state + past_state), float(quadratic + past_quadratic), float(noise))


@jax.jit
def _squares(system, disturbance):
    def body(total, r):
        state, quadratic = total
        return (state + r**2, quadratic + r @ apply_process_cov(system, r)), None

    zero = jnp.zeros_like(disturbance[0])
    return jax.lax.scan(body, (zero, jnp.sum(zero)), disturbance)[0]


@jax.jit
def _past_squares(system, first, n_past):
    """Sum over the past of r_{-k} = F'^k r_0, mean over series (n_states, n_series)."""

    def body(_, carry):
        r, state, quadratic = carry
        state = state + jnp.mean(r**2, axis=1)
        quadratic = quadratic + jnp.sum(r * apply_process_cov(system, r)) / r.shape[1]
        return multiply(system.transposed, r), state, quadratic

    zero = jnp.zeros_like(first[:, 0])
    return jax.lax.fori_loop(0, n_past, body, (first, zero, jnp.sum(zero)))[1:]


@functools.partial(jax.jit, static_argnums=3)
def _cov_block(model, gain, cov, length):
    """Sums of diag N_t, tr(Q N_t), tr D_t over a block, and N before it."""
    system = model.dynamics
    n_states, n_channels = gain.predicted_cov.shape
    identity = jnp.eye(n_channels, dtype=cov.dtype)
    precision = jax.scipy.linalg.cho_solve((gain.innovation_chol, True), identity)
    zeros = jnp.zeros((n_channels, n_states), cov.dtype)
    turned = turn(model, gain, length)

    def body(carry, _):
        cov, state, quadratic, noise = carry
        state = state + jnp.diagonal(cov)
        quadratic = quadratic + jnp.trace(apply_process_cov(system, cov))
        # r_{t-1} = Phi' r_t + G' S^-1 e_t with independent e_t ~ N(0, S).
        shifted = multiply(system.transposed, multiply(system.transposed, cov).T)
        lowered = gain.predicted_cov.T @ shifted @ gain.predicted_cov
        noise = noise + jnp.trace(precision + precision @ lowered @ precision)
        half, _ = backward_step(model, gain, turned, cov, zeros)
        cov, _ = backward_step(model, gain, turned, half.T, zeros)
        cov = cov + model.lead_field.T @ precision @ model.lead_field
        return (0.5 * (cov + cov.T), state, quadratic, noise), None

    zero = jnp.zeros((), cov.dtype)
    start = (cov, jnp.zeros_like(cov[0]), zero, zero)
    (cov, *sums), _ = jax.lax.scan(body, start, length=length)
    return cov, sums


@jax.jit
def _past_covs(system, cov, n_past):
    def body(_, carry):
        cov, state, quadratic = carry
        state = state + jnp.diagonal(cov)
        quadratic = quadratic + jnp.trace(apply_process_cov(system, cov))
        half = multiply(system.transposed, cov)
        return multiply(system.transposed, half.T), state, quadratic

    zero = jnp.zeros_like(cov[0])
    return jax.lax.fori_loop(0, n_past, body, (cov, zero, jnp.sum(zero)))[1:]
