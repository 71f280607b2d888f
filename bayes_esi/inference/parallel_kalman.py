"""Smoother of the scalar channels in logarithmic time: prefix sums instead of recursions.

The filter is an associative product of elements (A, b, C, eta, J), the law of x_t given x_{t-1}
and the sample, and what the sample says of x_{t-1} (Sarkka & Garcia-Fernandez 2021):

    (1)(2):  W = (I + C_1 J_2)^-1,   A = A_2 W A_1,   b = A_2 W (b_1 + C_1 eta_2) + b_2,
             C = A_2 W C_1 A_2' + C_2,   eta = A_1' W'(eta_2 - J_2 b_1) + eta_1,
             J = A_1' W' J_2 A_1 + J_1

The way back is the affine recursion of `kalman_steps`, r <- Phi'r + g, N <- Phi'N Phi + G with
Phi = F M, whose steps compose by products alone: no covariance is inverted, as
the smoothing elements of the paper would ask for.

Same numbers as `kalman.smooth_moments`, with depth O(log n_times) where a recursion has
O(n_times): for a GPU, and q of a few. Prefixes are doubled in length log2(n_times) times (Hillis &
Steele 1986). That is more work than the tree of `jax.lax.associative_scan`, but one compiled
product where the tree has one for each level and direction, and took minutes to compile.
Cost O(n_times log(n_times) m q^3), memory O(n_times m q^2).

References: Sarkka, Garcia-Fernandez 2021, doi:10.1109/TAC.2020.2976316; Hillis, Steele 1986,
doi:10.1145/7902.7903 (prefix sums by doubling).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Array, Bool, Float
from ..models import kalman_steps as steps
from ..models.kalman_likelihood import Channels, channels, log_density
from ..models.time_kernels import TimeKernel
from .kalman import SensorMoments

__all__ = ["smooth_moments_parallel"]


class _Element(NamedTuple):
    """Filtering element of one sample or of a stretch; vectors are matrices of one column."""

    reach: Float[Array, "q q n_times m"]  # A
    shift: Float[Array, "q 1 n_times m"]  # b
    cov: Float[Array, "q q n_times m"]  # C
    linear: Float[Array, "q 1 n_times m"]  # eta
    precision: Float[Array, "q q n_times m"]  # J


class _Adjoint(NamedTuple):
    """One affine step back, or a stretch of them."""

    turn: Float[Array, "q q n_times m"]  # Phi
    shift: Float[Array, "q 1 n_times m"]  # g
    information: Float[Array, "q q n_times m"]  # G


@jax.jit
def smooth_moments_parallel(
    data: Float[Array, "m n_times"],
    signal_var: Float[Array, " m"],
    noise_var: Float[Array, ""],
    kernel: TimeKernel,
    observed: Bool[Array, " n_times"] | None = None,
) -> SensorMoments:
    """Moments of each sample given all data, with the arguments of `kalman.filter_moments`."""
    problem = channels(data, signal_var, noise_var, kernel, observed)

    def variance_of(noise_var):
        moments = _smooth(problem._replace(noise_var=noise_var))
        return moments.variance, moments

    noise_var, one = problem.noise_var, jnp.ones_like(problem.noise_var)
    _, slope, moments = jax.jvp(variance_of, (noise_var,), (one,), has_aux=True)
    return moments._replace(noise_gain=noise_var * slope)


def _smooth(problem: Channels) -> SensorMoments:
    transition = problem.kernel.transition
    weight = problem.is_observed[:, None]
    filtered = _prefix_products(_join, _elements(problem))
    mean, cov = filtered.shift[:, 0], filtered.cov
    start, first_cov = steps.start(problem.signal_var, problem.kernel)
    after = steps.push_both(transition, cov[:, :, :-1]) + _process_cov(problem)
    predicted_cov = jnp.concatenate([first_cov[:, :, None], after], axis=2)
    predicted = jnp.concatenate([start[:, None], steps.push(transition, mean[:, :-1])], axis=1)
    innovation = problem.data - predicted[0]
    filtered_cov, gain = steps.update(predicted_cov, problem.noise_var, weight)

    first_column = steps.push(transition, gain.kept)[:, None]
    rest = jnp.broadcast_to(
        transition[:, 1:, None, None], (len(start), len(start) - 1, *innovation.shape)
    )
    none = jnp.zeros_like(gain.gain)
    seen = none.at[0].set(gain.precision * innovation)[:, None]
    own = jnp.zeros_like(cov).at[0, 0].set(gain.precision)
    way = _Adjoint(jnp.concatenate([first_column, rest], axis=1), seen, own)
    before = _prefix_products(_join_back, way, reverse=True)
    # The adjoint after a sample is the one before the next; nothing comes after the last.
    adjoint, information = (
        jnp.concatenate([x[:, :, 1:], jnp.zeros_like(x[:, :, :1])], axis=2)
        for x in (before.shift, before.information)
    )
    hat = steps.push(transition.T, adjoint)[:, 0]
    hat_information = steps.push_both(transition.T, information)
    variance, to_now = steps.smooth_variance(filtered_cov[:, 0], hat_information, gain)
    reach = steps.push(transition, filtered_cov[:, 0])
    return SensorMoments(
        mean=(mean[0] + steps.dot(filtered_cov[:, 0], hat)).T,
        variance=variance.T,
        lag_one_cov=steps.dot(to_now[:, 1:], reach[:, :-1]).T,
        noise_gain=jnp.zeros_like(variance.T),
        log_likelihood=log_density(innovation, gain.spread, problem.is_observed),
    )


def _process_cov(problem):
    return problem.kernel.process_cov[:, :, None, None] * problem.signal_var


def _elements(problem: Channels) -> _Element:
    """Elements of single samples; the first starts from the prior and forgets what is before."""
    transition = problem.kernel.transition
    n_times = len(problem.data)
    _, first_cov = steps.start(problem.signal_var, problem.kernel)
    spread = jnp.broadcast_to(_process_cov(problem), (*first_cov.shape[:2], *problem.data.shape))
    spread = jnp.concatenate([first_cov[:, :, None], spread[:, :, 1:]], axis=2)
    cov, gain = steps.update(spread, problem.noise_var, problem.is_observed[:, None])
    has_past = (jnp.arange(n_times) > 0).astype(cov.dtype)[:, None]
    turned = transition[:, :, None, None]
    # M F, of which only the first row of F meets more than the identity in M.
    below = jnp.concatenate([jnp.zeros_like(gain.kept[:1]), gain.kept[1:]])
    reach = turned * jnp.ones_like(gain.precision)
    reach = reach.at[0].multiply(gain.kept[0]) + below[:, None] * turned[0]
    seen = turned[0] * gain.precision  # F'e_1 precision, (q, n_times, m)
    return _Element(
        reach=has_past * reach,
        shift=(gain.gain * problem.data)[:, None],
        cov=cov,
        linear=has_past * (seen * problem.data)[:, None],
        precision=has_past * seen[:, None] * turned[0],
    )


def _prefix_products(join, elements, reverse=False):
    """Products of all elements up to each sample, or from each sample on if reversed."""
    n_times = elements[0].shape[2]
    sample = np.arange(n_times)[::-1] if reverse else np.arange(n_times)

    def double(products, length):
        before = jax.tree.map(
            lambda x: jnp.roll(x, -length if reverse else length, axis=2), products
        )
        has_before = (sample >= length)[:, None]
        joined = join(before, products)
        return jax.tree.map(lambda j, p: jnp.where(has_before, j, p), joined, products), None

    lengths = 2 ** np.arange(int(np.ceil(np.log2(n_times))))
    return jax.lax.scan(double, elements, lengths)[0]


def _join(early: _Element, late: _Element) -> _Element:
    """Filtering element of a stretch followed by another."""
    multiply, turn = steps.matmul, _transposed
    eye = jnp.eye(len(early.cov), dtype=early.cov.dtype)[:, :, None, None]
    weight = _inverse(eye + multiply(early.cov, late.precision))
    ahead = multiply(late.reach, weight)
    back = multiply(turn(early.reach), turn(weight))
    shift = early.shift + multiply(early.cov, late.linear)
    linear = late.linear - multiply(late.precision, early.shift)
    return _Element(
        reach=multiply(ahead, early.reach),
        shift=multiply(ahead, shift) + late.shift,
        cov=multiply(multiply(ahead, early.cov), turn(late.reach)) + late.cov,
        linear=multiply(back, linear) + early.linear,
        precision=multiply(multiply(back, late.precision), early.reach) + early.precision,
    )


def _join_back(late: _Adjoint, early: _Adjoint) -> _Adjoint:
    """Affine way back through a stretch, then through the one before it."""
    multiply = steps.matmul
    turned = _transposed(early.turn)
    return _Adjoint(
        turn=multiply(late.turn, early.turn),
        shift=multiply(turned, late.shift) + early.shift,
        information=multiply(multiply(turned, late.information), early.turn) + early.information,
    )


def _transposed(stacked):
    return jnp.swapaxes(stacked, 0, 1)


def _inverse(stacked):
    """Inverse of each (q, q); eigenvalues are at least 1."""
    if len(stacked) == 1:
        return 1 / stacked
    return jnp.moveaxis(jnp.linalg.inv(jnp.moveaxis(stacked, (0, 1), (-2, -1))), (-2, -1), (0, 1))
