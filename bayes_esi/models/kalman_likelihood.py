"""Exact log likelihood of all scalar channels, with its derivatives in closed form.

    log p(z) = -1/2 sum_{t,i} w_t [ log(2 pi S_ti) + e_ti^2 / S_ti ]

over innovations e and their variances S of the filters of `kalman_steps`. One pass back
through the samples gives the score in every argument (Koopman & Shephard 1992), here with r, N
the adjoints after sample t, hats and K as in `kalman_steps`, and E = r r' - N:

    noise_var     1/2 sum (u^2 - D),   u = precision e - K' r^,   D = precision + K' N^ K
    process_cov   1/2 sum_t E,         initial_cov   1/2 E before the first sample
    transition    sum_t r x_{t|t}' + E F P_{t|t}
    data          -u

Derivatives in the covariances are those along symmetric changes. `log_likelihood` carries this
rule, so that `jax.grad`, `value_and_grad`, forward mode and Hessians cost a pass or two and no
stored tape. Cost O(n_times m q^3).

Reference: Koopman, Shephard 1992, doi:10.1093/biomet/79.4.823 (the exact score).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ..core.types import Array, Bool, Float
from . import kalman_steps as steps
from .time_kernels import TimeKernel

__all__ = ["Channels", "channels", "log_density", "log_likelihood"]

# Steps of a scan fused into one iteration: a kernel launch costs as much as a sample.
UNROLL = 2


class Channels(NamedTuple):
    """Arguments of the scalar problems in one dtype, time first."""

    data: Float[Array, "n_times m"]  # zero where nothing was observed
    signal_var: Float[Array, " m"]
    noise_var: Float[Array, ""]
    kernel: TimeKernel
    is_observed: Float[Array, " n_times"]  # 1 or 0


def channels(data, signal_var, noise_var, kernel, observed) -> Channels:
    """Bring arguments into the dtype of the data and blank what was not observed."""
    dtype = data.dtype
    if observed is None:
        observed = np.ones(data.shape[1], bool)
    return Channels(
        data=jnp.where(observed[:, None], data.T, jnp.zeros((), dtype)),
        signal_var=jnp.asarray(signal_var).astype(dtype),
        noise_var=jnp.asarray(noise_var).astype(dtype),
        kernel=jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), kernel),
        is_observed=jnp.asarray(observed).astype(dtype),
    )


@jax.jit
def log_likelihood(
    data: Float[Array, "m n_times"],
    signal_var: Float[Array, " m"],
    noise_var: Float[Array, ""],
    kernel: TimeKernel,
    observed: Bool[Array, " n_times"] | None = None,
) -> Float[Array, ""]:
    """Log density of the observed samples of all channels.

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
        Samples to count; by default all.

    Returns
    -------
    () in nats
    """
    return _log_likelihood(channels(data, signal_var, noise_var, kernel, observed))


def log_density(innovation, spread, is_observed):
    """Sum of log N(innovation; 0, spread) over the samples observed."""
    each = innovation**2 / spread + jnp.log(spread) + np.log(2 * np.pi).astype(spread.dtype)
    return -jnp.sum(is_observed[..., None] * each) / 2


@jax.custom_jvp
def _log_likelihood(problem):
    innovation, spread, _ = _forward(problem)
    return log_density(innovation, spread, problem.is_observed)


@partial(_log_likelihood.defjvp, symbolic_zeros=True)
def _log_likelihood_jvp(primals, tangents):
    (problem,), (directions,) = primals, tangents
    innovation, spread, predicted = _forward(problem)
    scores = _scores(problem, predicted)
    tangent = jnp.zeros_like(problem.noise_var)
    for score, direction in zip(jax.tree.leaves(scores), jax.tree.leaves(directions), strict=True):
        if not isinstance(direction, SymbolicZero):
            tangent = tangent + jnp.vdot(score, direction)
    return log_density(innovation, spread, problem.is_observed), tangent


def _forward(problem):
    """Filter once; return innovations, their variances, and what was predicted of each sample."""
    kernel, signal_var = problem.kernel, problem.signal_var

    def advance(predicted, sample):
        mean, cov = predicted
        data, is_observed = sample
        innovation = data - mean[0]
        filtered_cov, gain = steps.update(cov, problem.noise_var, is_observed)
        after = steps.predict(mean + gain.gain * innovation, filtered_cov, signal_var, kernel)
        return after, (innovation, gain.spread, predicted)

    first = steps.start(signal_var, kernel)
    samples = (problem.data, problem.is_observed)
    return jax.lax.scan(advance, first, samples, unroll=UNROLL)[1]


def _scores(problem, predicted) -> Channels:
    """Pass back through the samples; derivatives with respect to every argument."""
    kernel, signal_var = problem.kernel, problem.signal_var

    def retreat(carry, sample):
        adjoint, information, of_noise, of_process, of_transition = carry
        data, is_observed, (mean, cov) = sample
        innovation = data - mean[0]
        filtered_cov, gain = steps.update(cov, problem.noise_var, is_observed)
        excess = adjoint[:, None] * adjoint - information
        reach = steps.push(kernel.transition, filtered_cov)
        smoothed = mean + gain.gain * innovation
        of_process = of_process + excess
        of_transition = of_transition + adjoint[:, None] * smoothed + steps.matmul(excess, reach)

        hat, hat_information = steps.unpredict(adjoint, information, kernel)
        error = gain.precision * innovation - steps.dot(gain.gain, hat)
        of_noise = of_noise + error**2 - gain.precision
        of_noise = of_noise - steps.dot(gain.gain, steps.matvec(hat_information, gain.gain))
        adjoint = steps.retract(hat, gain, innovation)
        information = steps.retract_information(hat_information, gain)
        return (adjoint, information, of_noise, of_process, of_transition), -error

    mean, cov = steps.start(signal_var, kernel)
    none = jnp.zeros_like(cov)
    last = (jnp.zeros_like(mean), none, none[0, 0], none, none)
    samples = (problem.data, problem.is_observed, predicted)
    carry, of_data = jax.lax.scan(retreat, last, samples, reverse=True, unroll=UNROLL)
    adjoint, information, of_noise, of_process, of_transition = carry
    of_initial = adjoint[:, None] * adjoint - information
    per_channel = jnp.sum(kernel.process_cov[:, :, None] * of_process, axis=(0, 1))
    per_channel += jnp.sum(kernel.initial_cov[:, :, None] * of_initial, axis=(0, 1))
    return Channels(
        data=of_data,
        signal_var=per_channel / 2,
        noise_var=jnp.sum(of_noise) / 2,
        kernel=TimeKernel(
            transition=jnp.sum(of_transition, axis=2),
            process_cov=jnp.sum(signal_var * of_process, axis=2) / 2,
            initial_cov=jnp.sum(signal_var * of_initial, axis=2) / 2,
        ),
        is_observed=jnp.zeros_like(problem.is_observed),
    )
