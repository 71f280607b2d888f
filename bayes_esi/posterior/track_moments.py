"""Moments of dipoles given their trajectory and scales: exact Gaussian conditionals.

Given places, births, deaths and scales, the moments of all samples are jointly Gaussian; a Kalman
smoother gives each sample's law (`bayes_esi.models.track_likelihood.smoothed_moments`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..models import track_likelihood
from ..models.dynamic_dipoles import TrackPrior
from ..models.track_gram import build_track_gram, track_table_bytes

__all__ = ["TrackMoments", "fitted_field", "track_moments"]

# Draws that are computed together: many enough to keep a step of the smoother busy, few enough
# that their covariances stay small. All calls share one compiled kernel of this size.
_N_TOGETHER = 25
_LEAST_PLACES = 16
_TABLE_BYTES = 2**26  # a table of Gram blocks up to here is quicker than the lead field, and small


class TrackMoments(NamedTuple):
    """Gaussian conditionals of every sample and slot of some draws; zero in empty slots."""

    mean: np.ndarray  # (n_draws, n_times, n_slots, n_axes), in A·m
    std: np.ndarray  # (n_draws, n_times, n_slots, n_axes), in A·m
    power: np.ndarray  # (n_draws, n_times, n_slots): whitened power of each mean's own field
    components: np.ndarray  # (n_draws, n_times, n_slots, d): whitened means, as `design` has them


def track_moments(problem, model, design, places, is_new, moment_std, noise_std):
    """Compute the moments of draws.

    Parameters
    ----------
    problem : Problem
    model : DynamicDipoles
    design : OrientedField
    places : (n_draws, n_times, n_slots) int array
        -1 where a slot is empty.
    is_new : (n_draws, n_times, n_slots) bool array
    moment_std : (n_draws,) array
        In A·m.
    noise_std : (n_draws, n_groups) array
        Relative to the noise covariance.

    Returns
    -------
    TrackMoments

    Notes
    -----
    Cost O(n_draws n_times (d n_slots)^3), with the slots that are ever held.
    """
    n_draws, n_times, n_slots = places.shape
    n_axes, d = design.frames.shape[1:]
    shape = (n_draws, n_times, n_slots)
    moments = TrackMoments(
        mean=np.zeros((*shape, n_axes)),
        std=np.zeros((*shape, n_axes)),
        power=np.zeros(shape),
        components=np.zeros((*shape, d)),
    )
    used = np.flatnonzero(np.any(places >= 0, axis=(0, 1)))
    if not used.size:
        return moments
    held, is_new = places[:, :, used], is_new[:, :, used]
    gram, index = _gram_of_visited(problem, design, held)
    # Places, births, deaths and scales are given: all else that is believed of moments is how
    # they persist.
    prior = TrackPrior(
        log_place=jnp.zeros(1, gram.field.dtype),
        neighbours=None,
        log_step=None,
        persistence=jnp.asarray(model.moment_persistence, gram.field.dtype),
        scales=(),
        probabilities=(),
    )
    parameters = np.column_stack(
        [np.log(moment_std / problem.moment_unit), np.log(noise_std), np.zeros((n_draws, 2))]
    ).astype(gram.field.dtype)
    for begin in range(0, n_draws, _N_TOGETHER):
        # The last draw fills up the last batch.
        rows = np.minimum(np.arange(begin, begin + _N_TOGETHER), n_draws - 1)
        own = rows[rows >= begin][: n_draws - begin]
        components, cov, power = (
            np.asarray(value, np.float64)[: len(own)]
            for value in _smooth(gram, prior, parameters[rows], index[rows], is_new[rows])
        )
        there = held[own] >= 0
        frames = problem.moment_unit * design.frames[np.where(there, held[own], 0)]
        at = np.ix_(own, np.arange(n_times), used)
        mean = np.einsum("ntsad,ntsd->ntsa", frames, components)
        variance = np.einsum("ntsad,ntsde,ntsae->ntsa", frames, cov, frames, optimize=True)
        moments.mean[at] = np.where(there[..., None], mean, 0.0)
        moments.std[at] = np.where(there[..., None], np.sqrt(np.maximum(variance, 0.0)), 0.0)
        moments.power[at] = np.where(there, power, 0.0)
        moments.components[at] = np.where(there[..., None], components, 0.0)
    return moments


def fitted_field(problem, design, places, components):
    """Whitened field of all dipoles of one draw: (rank, n_times).

    Parameters
    ----------
    problem : Problem
    design : OrientedField
    places : (n_times, n_slots) int array
    components : (n_times, n_slots, d) array
        One draw of `TrackMoments.components`.
    """
    times, slots = np.nonzero(places >= 0)
    visited, index = np.unique(places[times, slots], return_inverse=True)
    courses = np.zeros((len(visited), components.shape[2], problem.n_times))
    np.add.at(courses, (index, slice(None), times), components[times, slots])
    field = np.asarray(design.lead_field[:, visited], np.float64)
    return np.tensordot(field, courses, axes=2)


def _gram_of_visited(problem, design, places):
    """Gram blocks of the places that occur, and the trajectories as their numbers."""
    there = places >= 0
    visited, inverse = np.unique(places[there], return_inverse=True)
    index = np.full(places.shape, -1, np.int32)
    index[there] = inverse
    # Powers of two, so that posteriors with about as many places share one compiled kernel.
    n_padded = max(_LEAST_PLACES, 1 << int(np.ceil(np.log2(len(visited)))))
    padded = np.concatenate([visited, np.full(n_padded - len(visited), visited[0])])
    field = design.lead_field[:, padded]
    n_bytes = track_table_bytes(n_padded, field.shape[2], problem.n_groups, field.dtype.itemsize)
    gram = build_track_gram(
        field, problem.data, problem.noise_group, problem.n_groups, tabulate=n_bytes <= _TABLE_BYTES
    )
    return gram, index


@jax.jit
def _smooth(gram, prior, parameters, places, is_new):
    def smooth(parameters, places, is_new):
        mean, cov = track_likelihood.smoothed_moments(gram, prior, parameters, places, is_new)
        slots = jnp.arange(places.shape[1])
        _, weights = track_likelihood.scales_of(parameters)
        own = jnp.einsum("ngde,g->nde", gram.own_blocks, weights)[jnp.maximum(places, 0)]
        power = jnp.einsum("tsd,tsde,tse->ts", mean, own, mean)
        # Without what moments of different dipoles have in common: only their own law is told.
        return mean, cov[:, slots, :, slots].swapaxes(0, 1), power

    return jax.vmap(smooth)(parameters, places, is_new)
