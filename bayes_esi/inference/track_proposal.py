"""Where and when new tracks are looked for: a fixed law that the data suggest.

A new life grows from an anchor, a time t and a place v,

    t ~ h,    v ~ m_w(t),    w(t) the window that t lies in,

to both sides by geometric lengths of a rate r drawn from a short list, cut off at the ends of the
data; a walking dipole walks from the anchor to both sides by its prior kernel. The anchor is
forgotten. Since walks read alike in both directions, with P(path) the prior probability
of a path and pi that of a place,

    q(b, d, path) = C(b, d) P(path) A(b, d, path)
    C = mean over r of r^([b > 0] + [d < n_times]) (1 - r)^(d - b - 1)
    A = sum_{b <= t < d} h(t) m_w(t)(path_t) / pi(path_t)

and a new path for a life that is given has P A / sum_{b <= t < d} h(t).

m mixes pi, a scan of the data by one dipole at a time, and where tracks were found during
burn-in. Moves that use it are exact whatever it is.
"""

import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float, Int
from ..models.track_likelihood import scales_of

__all__ = ["Proposal", "anchored", "build_proposal", "draw_anchor", "draw_life", "log_life", "scan"]

# Shares of the location prior and of the scan among new places, and of a flat law among times.
_PRIOR_SHARE = 0.2
_FLAT_SHARE = 0.5
# Length of a window in samples: a peak of an evoked response.
_WINDOW = 10
# Nats between the best place of a scan and the mean one: flatter than the likelihood of a strong
# dipole, which is sure of a place that another dipole may only have lent it.
_MAX_CONTRAST = 12.0
_N_ROUNDS = 3


@struct
class Proposal:
    """Anchors of new lives, rates of their growth, and steps of the parameters."""

    time_weight: Float[Array, " n_times"]  # h
    cumulative_time: Float[Array, " n_times+1"]
    window: Int[Array, " n_times"]
    relative: Float[Array, "n_windows n_sources"]  # m / pi
    cumulative_place: Float[Array, "n_windows n_sources"]  # of m
    rates: Float[Array, " n_rates"]
    parameter_steps: Float[Array, " n_parameters"]


def build_proposal(target, place_weight, time_weight, parameter_steps) -> Proposal:
    """Mix maps with their flat parts, and tabulate what draws and densities need.

    Parameters
    ----------
    target : Target
    place_weight : (n_windows, n_sources)
        Non-negative; a row without weight is the location prior. Windows share the samples out.
    time_weight : (n_times,)
        Non-negative.
    parameter_steps : (n_parameters,)
    """
    dtype = target.gram.field.dtype
    n_times = target.gram.n_times
    prior = np.exp(np.asarray(target.prior.log_place, np.float64))
    prior = prior / prior.sum()
    found = np.where(prior > 0, np.asarray(place_weight, np.float64), 0.0)
    total = found.sum(axis=1, keepdims=True)
    found = np.where(total > 0, found / np.where(total > 0, total, 1.0), prior)
    place = _PRIOR_SHARE * prior + (1 - _PRIOR_SHARE) * found
    cumulative = np.cumsum(place, axis=1)
    time = np.asarray(time_weight, np.float64)
    flat = np.full(n_times, 1 / n_times)
    time = time / time.sum() if time.sum() > 0 else flat
    time = _FLAT_SHARE * flat + (1 - _FLAT_SHARE) * time
    rates = 1 / np.minimum(2.0 * 4.0 ** np.arange(4), n_times + 1)
    return Proposal(
        time_weight=jnp.asarray(time, dtype),
        cumulative_time=jnp.asarray(np.concatenate([[0], np.cumsum(time)]), dtype),
        window=jnp.asarray(_windows(n_times, len(place)), jnp.int32),
        relative=jnp.asarray(place / np.where(prior > 0, prior, 1.0), dtype),
        cumulative_place=jnp.asarray(cumulative / cumulative[:, -1:], dtype),
        rates=jnp.asarray(rates, dtype),
        parameter_steps=jnp.asarray(parameter_steps, dtype),
    )


def draw_anchor(draws: Float[Array, " 2"], proposal: Proposal, birth, death):
    """Time and place of an anchor within a life [birth, death)."""
    low, high = proposal.cumulative_time[birth], proposal.cumulative_time[death]
    level = low + draws[0] * (high - low)
    time = jnp.sum(proposal.cumulative_time <= level) - 1
    time = jnp.clip(time, birth, death - 1).astype(jnp.int32)
    cumulative = proposal.cumulative_place[proposal.window[time]]
    place = jnp.sum(cumulative <= draws[1])
    return time, jnp.minimum(place, cumulative.shape[0] - 1).astype(jnp.int32)


def draw_life(draws: Float[Array, " 3"], proposal: Proposal, time):
    """Birth and death of a life that grows from an anchor's time."""
    n_times, n_rates = proposal.time_weight.shape[0], proposal.rates.shape[0]
    index = (draws[0] * n_rates).astype(jnp.int32)
    rate = proposal.rates[jnp.minimum(index, n_rates - 1)]
    length = jnp.floor(jnp.log(draws[1:]) / jnp.log1p(-rate))
    room = jnp.stack([time, n_times - 1 - time]).astype(length.dtype)
    back, forth = jnp.minimum(length, room).astype(jnp.int32)
    return time - back, time + forth + 1


def log_life(proposal: Proposal, birth, death):
    """Log C of a life (see module)."""
    n_times, n_rates = proposal.time_weight.shape[0], proposal.rates.shape[0]
    dtype = proposal.rates.dtype
    n_inner = ((birth > 0).astype(dtype) + (death < n_times)).astype(dtype)
    grown = (death - birth - 1).astype(dtype)
    terms = n_inner * jnp.log(proposal.rates) + grown * jnp.log1p(-proposal.rates)
    top = jnp.max(terms)
    return top + jnp.log(jnp.sum(jnp.exp(terms - top)) / n_rates)


def anchored(proposal: Proposal, places, birth, death):
    """A of a life (see module); `places` is (n_times,), or a scalar that holds for all times."""
    n_times = proposal.time_weight.shape[0]
    time = jnp.arange(n_times)
    relative = proposal.relative[proposal.window, jnp.maximum(places, 0)]
    within = (time >= birth) & (time < death)
    return jnp.sum(jnp.where(within, proposal.time_weight * relative, 0.0))


def scan(target, parameters):
    """Scan the data by one dipole, and what it leaves by another.

    In each window every place is judged by the log likelihood ratio of one dipole there,
    its moments independent over the samples but counted as often as the persistence leaves
    them independent; the scan is repeated on what the best place leaves.

    Parameters
    ----------
    target : Target
    parameters : (n_parameters,)
        Scales to judge by.

    Returns
    -------
    place_weight : (n_windows, n_sources)
    time_weight : (n_times,)
        NumPy. Cost O(n_times n_sources d^2).
    """
    gram = target.gram
    moment_std, weights = scales_of(jnp.asarray(parameters, gram.field.dtype))
    power, weights = float(moment_std) ** -2, np.asarray(weights, np.float64)
    persistence = float(target.prior.persistence)
    share = (1 - persistence) / (1 + persistence)
    own = np.einsum("sgij,g->sij", np.asarray(gram.own_blocks, np.float64), weights)
    loaded = own + power * np.eye(own.shape[-1])
    log_det = np.linalg.slogdet(loaded)[1] - own.shape[-1] * np.log(power)
    inverse = np.linalg.inv(loaded)
    projected = np.einsum("tsgd,g->tsd", np.asarray(gram.projected_data, np.float64), weights)
    n_windows = -(-gram.n_times // _WINDOW)
    window = _windows(gram.n_times, n_windows)
    place_weight = np.zeros((n_windows, gram.n_sources))
    excess = np.zeros(n_windows)
    is_there = np.isfinite(np.asarray(target.prior.log_place))
    for w in range(n_windows):
        left = projected[window == w]
        n_counted = max(1.0, share * len(left))
        for turn in range(min(_N_ROUNDS, target.prior.max_dipoles)):
            fit = 0.5 * np.einsum("tsi,sij,tsj->s", left, inverse, left)
            score = np.where(is_there, fit - 0.5 * n_counted * log_det, -np.inf)
            best = int(np.argmax(score))
            contrast = score[best] - np.mean(score[is_there])
            density = np.exp((score - score[best]) * min(1.0, _MAX_CONTRAST / (contrast + 1e-9)))
            place_weight[w] += density / density.sum() * 0.5**turn
            if turn == 0:
                excess[w] = max(score[best], 0.0)
            moment = left[:, best] @ inverse[best]
            cross = gram.blocks(jnp.asarray([best]), None, jnp.asarray(weights, gram.field.dtype))
            left = left - np.einsum("sij,ti->tsj", np.asarray(cross, np.float64)[0], moment)
    return place_weight, np.sqrt(excess)[window]


def _windows(n_times, n_windows):
    return np.arange(n_times) * n_windows // n_times
