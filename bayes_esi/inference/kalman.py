"""Exact Kalman filter and smoother of the scalar channels of a separable Gaussian model.

In whitened eigen-coordinates channel i is a problem of its own (the path s_i is a Gaussian
process with covariance signal_var_i times that of the kernel):

    z_{t,i} = s_{t,i} + N(0, noise_var),     s_t = (x_t)_1,   x_{t+1} = F x_t + N(0, signal_var_i Q)

`filter_moments` conditions each sample on the samples up to it, `smooth_moments` on all of
them, `sample_paths` draws from the latter. The recursions are in `kalman_steps`. Variances do
not depend on the data: they are one pass, the means another.

An estimate is linear in the data, s^ = A z, with posterior variances V. Because A is
V / noise_var for the whole path, dV/dnoise_var = A A' on the diagonal, and so it is for every
filtered sample: sensor noise alone gives s^ the variance `noise_gain` = noise_var dV/dnoise_var,
one forward-mode derivative of the variance pass. It is what dSPM-like statistics divide by.

Draws (Durbin & Koopman 2002): simulate a path and its data, smooth the difference between the
real and the simulated data, add the path.

Cost O(n_times m q^3), memory O(n_times m q^2).

References: Kalman 1960, doi:10.1115/1.3662552; Rauch, Tung, Striebel 1965, doi:10.2514/3.3166;
de Jong 1989, J. Am. Stat. Assoc. 84:1085 (the smoother without inverses);
Durbin, Koopman 2002, doi:10.1093/biomet/89.3.603 (draws).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Bool, Float
from ..models import kalman_steps as steps
from ..models.kalman_likelihood import UNROLL, Channels, channels, log_density, log_likelihood
from ..models.time_kernels import TimeKernel

__all__ = [
    "SensorMoments",
    "filter_moments",
    "log_likelihood",
    "sample_paths",
    "smooth_moments",
    "steady_gain",
]


class SensorMoments(NamedTuple):
    """Posterior moments of the signals s, in whitened units."""

    mean: Float[Array, "m n_times"]
    variance: Float[Array, "m n_times"]
    lag_one_cov: Float[Array, "m n_times-1"] | None  # of s_{t+1} and s_t; None from the filter
    noise_gain: Float[Array, "m n_times"]  # variance that sensor noise alone gives the mean
    log_likelihood: Float[Array, ""]  # of the observed samples, in nats


class _Variances(NamedTuple):
    """What the variance pass forward leaves; of the filtered covariance only what is used."""

    column: Float[Array, "n_times q m"]  # first of the filtered covariance
    gain: Float[Array, "n_times q m"]
    spread: Float[Array, "n_times m"]


@jax.jit
def filter_moments(
    data: Float[Array, "m n_times"],
    signal_var: Float[Array, " m"],
    noise_var: Float[Array, ""],
    kernel: TimeKernel,
    observed: Bool[Array, " n_times"] | None = None,
) -> SensorMoments:
    """Moments of each sample given the data up to it.

    Parameters
    ----------
    data : (m, n_times)
        Channels in whitened eigen-coordinates, unitless.
    signal_var : (m,)
        Prior variance of each channel's signal at the first sample; may be zero.
    noise_var : ()
        Positive.
    kernel : TimeKernel
    observed : (n_times,) bool, optional
        Samples to use; by default all. The others may hold NaN.
    """
    problem = channels(data, signal_var, noise_var, kernel, observed)

    def variance_of(noise_var):
        passed = _filter_variances(problem._replace(noise_var=noise_var))
        return passed.column[:, 0], passed

    variance, slope, passed = _with_slope(variance_of, problem.noise_var)
    mean, innovation = _filter_means(problem, passed)
    return SensorMoments(
        mean=mean[:, 0].T,
        variance=variance.T,
        lag_one_cov=None,
        noise_gain=problem.noise_var * slope.T,
        log_likelihood=log_density(innovation, passed.spread, problem.is_observed),
    )


@jax.jit
def smooth_moments(
    data: Float[Array, "m n_times"],
    signal_var: Float[Array, " m"],
    noise_var: Float[Array, ""],
    kernel: TimeKernel,
    observed: Bool[Array, " n_times"] | None = None,
) -> SensorMoments:
    """Moments of each sample given all data, with the arguments of `filter_moments`."""
    problem = channels(data, signal_var, noise_var, kernel, observed)

    def variance_of(noise_var):
        changed = problem._replace(noise_var=noise_var)
        passed = _filter_variances(changed)
        variance, lag_one_cov = _smooth_variances(changed, passed)
        return variance, (passed, lag_one_cov)

    variance, slope, (passed, lag_one_cov) = _with_slope(variance_of, problem.noise_var)
    filtered, innovation = _filter_means(problem, passed)
    mean = _smooth_means(problem, passed, filtered, innovation)
    return SensorMoments(
        mean=mean.T,
        variance=variance.T,
        lag_one_cov=lag_one_cov.T,
        noise_gain=problem.noise_var * slope.T,
        log_likelihood=log_density(innovation, passed.spread, problem.is_observed),
    )


@partial(jax.jit, static_argnames="n_draws")
def sample_paths(
    key,
    data: Float[Array, "m n_times"],
    signal_var: Float[Array, " m"],
    noise_var: Float[Array, ""],
    kernel: TimeKernel,
    observed: Bool[Array, " n_times"] | None = None,
    *,
    n_draws: int,
) -> Float[Array, "n_draws m n_times"]:
    """Independent draws of the signals given all data, with the arguments of `filter_moments`.

    One draw is made at a time; the variance pass is shared.
    """
    problem = channels(data, signal_var, noise_var, kernel, observed)
    passed = _filter_variances(problem)

    def draw(index):
        path, simulated = _simulate(jax.random.fold_in(key, index), problem)
        difference = problem._replace(data=problem.data - simulated)
        filtered, innovation = _filter_means(difference, passed)
        return (path + _smooth_means(difference, passed, filtered, innovation)).T

    return jax.lax.map(draw, jnp.arange(n_draws))


@jax.jit
def steady_gain(
    signal_var: Float[Array, " m"], noise_var: Float[Array, ""], coefficient: Float[Array, ""]
) -> Float[Array, " m"]:
    """Kalman gain (m,) that the filter of a stationary AR(1) signal tends to.

    The predicted variance p solves p = a^2 p noise_var / (p + noise_var) + (1 - a^2) signal_var,
    a quadratic whose positive root is taken in the form that does not cancel.
    """
    innovation_var = (1 - coefficient) * (1 + coefficient) * signal_var
    linear = innovation_var - (1 - coefficient) * (1 + coefficient) * noise_var
    root = jnp.sqrt(linear**2 + 4 * innovation_var * noise_var)
    total = root + jnp.abs(linear)
    safe = jnp.where(total > 0, total, jnp.ones_like(total))
    predicted = jnp.where(linear > 0, total / 2, 2 * innovation_var * noise_var / safe)
    return predicted / (predicted + noise_var)


def _with_slope(variance_of, noise_var):
    """Value, derivative with respect to the noise variance, and what else was computed."""
    return jax.jvp(variance_of, (noise_var,), (jnp.ones_like(noise_var),), has_aux=True)


def _filter_variances(problem: Channels) -> _Variances:
    kernel, signal_var = problem.kernel, problem.signal_var
    mean, first = steps.start(signal_var, kernel)

    def advance(cov, is_observed):
        filtered_cov, gain = steps.update(cov, problem.noise_var, is_observed)
        _, after = steps.predict(mean, filtered_cov, signal_var, kernel)
        return after, _Variances(filtered_cov[:, 0], gain.gain, gain.spread)

    return jax.lax.scan(advance, first, problem.is_observed, unroll=UNROLL)[1]


def _filter_means(problem: Channels, passed: _Variances):
    """Filtered means (n_times, q, m) and innovations (n_times, m)."""

    def advance(mean, sample):
        data, gain = sample
        innovation = data - mean[0]
        filtered = mean + gain * innovation
        return steps.push(problem.kernel.transition, filtered), (filtered, innovation)

    first = jnp.zeros_like(passed.gain[0])
    return jax.lax.scan(advance, first, (problem.data, passed.gain), unroll=UNROLL)[1]


def _smooth_means(problem: Channels, passed: _Variances, filtered, innovation):
    """Smoothed signals (n_times, m)."""

    def retreat(adjoint, sample):
        filtered, innovation, passed, is_observed = sample
        hat = steps.push(problem.kernel.transition.T, adjoint)
        gain = steps.complete(passed.gain, passed.spread, problem.noise_var, is_observed)
        signal = filtered[0] + steps.dot(passed.column, hat)
        return steps.retract(hat, gain, innovation), signal

    last = jnp.zeros_like(passed.gain[0])
    samples = (filtered, innovation, passed, problem.is_observed)
    return jax.lax.scan(retreat, last, samples, reverse=True, unroll=UNROLL)[1]


def _smooth_variances(problem: Channels, passed: _Variances):
    """Smoothed variances (n_times, m) and lag-one covariances (n_times - 1, m) of the signals."""
    kernel = problem.kernel

    def retreat(information, sample):
        passed, is_observed = sample
        gain = steps.complete(passed.gain, passed.spread, problem.noise_var, is_observed)
        hat = steps.push_both(kernel.transition.T, information)
        variance, to_now = steps.smooth_variance(passed.column, hat, gain)
        return steps.retract_information(hat, gain), (variance, to_now)

    last = jnp.zeros_like(steps.start(problem.signal_var, kernel)[1])
    samples = (passed, problem.is_observed)
    _, (variance, to_now) = jax.lax.scan(retreat, last, samples, reverse=True, unroll=UNROLL)
    reach = steps.push(kernel.transition, jnp.swapaxes(passed.column[:-1], 0, 1))
    return variance, steps.dot(jnp.swapaxes(to_now[1:], 0, 1), reach)


def _simulate(key, problem: Channels):
    """Draw the signals of all channels from the prior, and their data: (n_times, m) each."""
    kernel, data = problem.kernel, problem.data
    n_times, m = data.shape
    q = kernel.n_states
    key_state, key_noise = jax.random.split(key)
    normals = jax.random.normal(key_state, (n_times, q, m), data.dtype)
    scale = jnp.sqrt(problem.signal_var)
    root = _root(kernel.process_cov)

    def advance(state, normal):
        return steps.push(kernel.transition, state) + steps.push(root, normal) * scale, state[0]

    first = steps.push(_root(kernel.initial_cov), normals[0]) * scale
    following = jnp.concatenate([normals[1:], jnp.zeros_like(normals[:1])])
    _, path = jax.lax.scan(advance, first, following)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)
    return path, path + jnp.sqrt(problem.noise_var) * noise


def _root(cov):
    """Square root of a small positive semidefinite matrix, singular ones included."""
    if cov.shape[0] == 1:
        return jnp.sqrt(cov)
    eigenvalues, vectors = jnp.linalg.eigh(cov)
    return vectors * jnp.sqrt(jnp.maximum(eigenvalues, jnp.zeros_like(eigenvalues)))
