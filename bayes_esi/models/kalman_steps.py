"""One step of the scalar channels' Kalman filter and of its adjoint, for all channels at once.

Channel i holds s_t = (x_t)_1 of a state-space kernel scaled by its signal variance:

    x_{t+1} = F x_t + N(0, signal_var_i Q),   z_t = (x_t)_1 + N(0, noise_var),   w_t = 1 or 0

where w_t says whether z_t was observed. The channel is the last axis: means (q, m),
covariances (q, q, m), so that a step is a few vector operations over channels whatever q.
All but `start` and `predict` take (q, n_times, m) and (q, q, n_times, m) as well.

Forward, with P the predicted covariance and S = P_11 + noise_var:

    precision = w / S,   gain K = P e_1 w / S,   x <- x + K e,   P <- M P,   M = I - K e_1'

Backward (Bryson & Frazier; de Jong 1989), from r = 0, N = 0 after the last sample, with hats
for F'r and F'NF:

    r <- M' r^ + e_1 precision e,        N <- M' N^ M + e_1 e_1' precision
    x_{t|T} = x_{t|t} + P_{t|t} r^,      P_{t|T} = P_{t|t} - P_{t|t} N^ P_{t|t}

No covariance is inverted, so channels without signal and singular kernels need no care. Of M
only the first column differs from the identity; its first entry 1 - K_1 = noise_var / S is
computed as that ratio, because the difference loses all digits in channels of high signal.

Cost of a step O(m q^3).

References: Bryson, Frazier 1963, Proc. Optimum System Synthesis Conf., 353-364; de Jong 1989,
J. Am. Stat. Assoc. 84:1085 (the backward recursions).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.types import Array, Float

__all__ = [
    "Gain",
    "complete",
    "dot",
    "matmul",
    "matvec",
    "predict",
    "push",
    "push_both",
    "retract",
    "retract_information",
    "smooth_variance",
    "start",
    "unpredict",
    "update",
]


class Gain(NamedTuple):
    """What a variance update leaves for the means and for the way back."""

    gain: Float[Array, "q m"]
    kept: Float[Array, "q m"]  # first column of M
    precision: Float[Array, " m"]
    spread: Float[Array, " m"]  # S, also where nothing was observed


def start(signal_var, kernel):
    """Return the mean (q, m) and covariance (q, q, m) of the state at the first sample."""
    cov = kernel.initial_cov[:, :, None] * signal_var
    return jnp.zeros_like(cov[0]), cov


def update(cov, noise_var, is_observed):
    """Condition covariances on one sample; `is_observed` is 1 or 0.

    Returns
    -------
    filtered_cov : (q, q, m)
    gain : Gain
    """
    spread = cov[0, 0] + noise_var
    gain = complete(cov[:, 0] * (is_observed / spread), spread, noise_var, is_observed)
    first_row, first_column = np.indices(cov.shape[:2]) == 0
    touches_first = np.expand_dims(first_row | first_column, tuple(range(2, cov.ndim)))
    filtered = jnp.where(touches_first, cov * gain.kept[0], cov - gain.gain[:, None] * cov[0])
    return filtered, gain


def complete(gain, spread, noise_var, is_observed) -> Gain:
    """Recover all of a `Gain` from what is worth storing of it: K and S."""
    precision = is_observed / spread
    share = (1 - is_observed) + noise_var * precision
    return Gain(gain, jnp.concatenate([share[None], -gain[1:]]), precision, spread)


def predict(mean, cov, signal_var, kernel):
    """Take means (q, m) and covariances (q, q, m) to the next sample."""
    spread = push_both(kernel.transition, cov) + kernel.process_cov[:, :, None] * signal_var
    return push(kernel.transition, mean), spread


def unpredict(adjoint, information, kernel):
    """Take r (q, m) and N (q, q, m) back through a prediction: F'r and F'NF."""
    turned = kernel.transition.T
    return push(turned, adjoint), push_both(turned, information)


def smooth_variance(column, hat_information, gain):
    """Smoothed variance of the signal, and what its lag-one covariances are made of.

    `column` (q, m) is the first of the filtered covariance.
    Cov(x_{t+1}, x_t) = (I - P N^)_{t+1} M_{t+1} F P_{t|t}, from (I - P_{t+1|t} N_t) F P_{t|t}
    with N_t written out, so that channels of high signal lose no digits.

    Returns
    -------
    variance : (m,)
        Of (x_t)_1 given all data.
    to_now : (q, m)
        First row of (I - P N^) M: its product with F P_{t-1|t-1} e_1 is Cov(s_t, s_{t-1}).
    """
    seen = matvec(hat_information, column)
    variance = column[0] - dot(column, seen)
    is_first = np.expand_dims(np.arange(len(column)) == 0, tuple(range(1, column.ndim)))
    to_now = retract(is_first.astype(column.dtype) - seen, gain, jnp.zeros_like(variance))
    return variance, to_now


def push(matrix, stacked):
    """Apply a (q, q) matrix to the first axis: (q, ..., m)."""
    lift = (slice(None),) + (None,) * (stacked.ndim - 1)
    return sum(matrix[:, k][lift] * stacked[k] for k in range(matrix.shape[0]))


def push_both(matrix, stacked):
    """Congruence A X A' of X (q, q, m) by a (q, q) matrix A."""
    half = jnp.swapaxes(push(matrix, stacked), 0, 1)  # (A X)'
    return jnp.swapaxes(push(matrix, half), 0, 1)


def dot(left, right):
    """Inner product over the state: (q, m) and (q, m) to (m,)."""
    return sum(left[k] * right[k] for k in range(left.shape[0]))


def matvec(stacked, vector):
    """Apply each channel's matrix (q, q, m) to its vector (q, m)."""
    return sum(stacked[:, k] * vector[k] for k in range(vector.shape[0]))


def matmul(left, right):
    """Multiply each channel's matrices (q, q, m)."""
    return sum(left[:, k, None] * right[k] for k in range(right.shape[0]))


def retract(adjoint, gain, innovation):
    """Take r^ (q, m) through an update: M' r^ + e_1 precision e."""
    first = dot(gain.kept, adjoint) + gain.precision * innovation
    return jnp.concatenate([first[None], adjoint[1:]])


def retract_information(information, gain):
    """Take N^ (q, q, m) through an update: M' N^ M + e_1 e_1' precision."""
    column = matvec(information, gain.kept)
    corner = dot(gain.kept, column) + gain.precision
    if information.shape[0] == 1:
        return corner[None, None]
    top = jnp.concatenate([corner[None], column[1:]])
    below = jnp.concatenate([column[1:, None], information[1:, 1:]], axis=1)
    return jnp.concatenate([top[None], below])
