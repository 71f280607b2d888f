"""The posterior of whole trajectories as a law on sets of tracks.

A track is one dipole's life: its birth, its death, and the place it holds, or the path it walks,
in between. At most one dipole is born at a sample, so the births of a set of tracks differ and
put them in order: sets of tracks and trajectories in slots are one and the same, and the law of a
trajectory is that of its set, with no factorial between them.

    log target(tracks, parameters) = log law + b log likelihood + log density of parameters

at inverse temperature b; b = 1 is the posterior, b = 0 the prior. The order in which tracks are
written down means nothing.

Cost of an evaluation: O(n_times (n_slots d)^3) for the likelihood; the rest is integer work.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Bool, Float, Int
from ..models import track_likelihood
from ..models.dynamic_dipoles import TrackPrior, log_law
from ..models.track_gram import TrackGram

__all__ = [
    "FixedParameters",
    "Target",
    "Tracks",
    "empty",
    "evaluate",
    "from_trajectory",
    "is_alive",
    "log_posterior",
    "places_over_time",
    "to_trajectory",
]


@struct
class FixedParameters:
    """The law of parameters that are held at one value."""

    values: Float[Array, " n_parameters"]

    def log_density_of_parameters(self, parameters):
        """Constant."""
        return jnp.zeros(parameters.shape[:-1], parameters.dtype)

    def sample_parameters(self, key, n_draws):
        """The value, repeated."""
        del key
        return jnp.broadcast_to(self.values, (n_draws, *self.values.shape))


@struct
class Target:
    """What the samplers of trajectories see of a model and a problem."""

    gram: TrackGram
    prior: TrackPrior
    reference: TrackPrior | FixedParameters  # law of the first parameters of particles
    neighbours: Int[Array, "n_sources max_degree"]  # padded with -1

    def fixed(self, parameters):
        """Target whose particles all start with these parameters."""
        return dataclasses.replace(self, reference=FixedParameters(jnp.asarray(parameters)))


class Tracks(NamedTuple):
    """A set of tracks with its parameters: one state of a chain, or with leading axes many.

    Rows that hold no track are all zero, with place (and path) -1.
    """

    place: Int[Array, " n_tracks"]  # at birth
    birth: Int[Array, " n_tracks"]  # first sample alive
    death: Int[Array, " n_tracks"]  # first sample no longer alive; n_times: alive at the end
    is_used: Bool[Array, " n_tracks"]
    parameters: Float[Array, " n_parameters"]
    log_law: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    path: Int[Array, "n_tracks n_times"] | None = None  # of walking dipoles, -1 outside of life


def empty(target: Target, parameters: Float[Array, " n_parameters"], n_tracks) -> Tracks:
    """Nobody ever alive; `n_tracks` is the most that a state can hold."""
    nothing = jnp.zeros(n_tracks, jnp.int32)
    is_walking = target.prior.neighbours is not None
    path = jnp.full((n_tracks, target.gram.n_times), -1, jnp.int32) if is_walking else None
    zero = jnp.zeros((), target.gram.field.dtype)
    tracks = Tracks(nothing - 1, nothing, nothing, nothing > 0, parameters, zero, zero, path)
    return evaluate(target, tracks)


def is_alive(tracks: Tracks, n_times) -> Bool[Array, "n_tracks n_times"]:
    """Which tracks are alive at each sample."""
    time = jnp.arange(n_times)
    within = (time >= tracks.birth[:, None]) & (time < tracks.death[:, None])
    return within & tracks.is_used[:, None]


def places_over_time(tracks: Tracks, n_times) -> Int[Array, "n_tracks n_times"]:
    """Place of each track at each sample; outside of its life -1."""
    own = tracks.place[:, None] if tracks.path is None else tracks.path
    return jnp.where(is_alive(tracks, n_times), own, -1)


def to_trajectory(tracks: Tracks, n_times, n_slots):
    """Put tracks into slots: in order of birth, each into the first that is free.

    Returns
    -------
    places : (n_times, n_slots) int
    is_new : (n_times, n_slots) bool
    is_possible : bool
        False if two tracks are born at once, or more than `n_slots` are alive together.
    """
    last = jnp.iinfo(tracks.birth.dtype).max
    order = jnp.argsort(jnp.where(tracks.is_used, tracks.birth, last))

    def step(carry, row):
        free_at, latest, is_possible = carry
        birth, death, is_used = tracks.birth[row], tracks.death[row], tracks.is_used[row]
        is_free = free_at <= birth
        slot = jnp.argmax(is_free)
        is_possible &= ~is_used | (jnp.any(is_free) & (birth > latest))
        held = free_at.at[slot].set(death)
        carry = (
            jnp.where(is_used, held, free_at),
            jnp.where(is_used, birth, latest),
            is_possible,
        )
        return carry, slot

    start = (jnp.zeros(n_slots, tracks.birth.dtype), jnp.full((), -1, tracks.birth.dtype), True)
    (_, _, is_possible), slots = jax.lax.scan(step, start, order)
    slot = jnp.zeros_like(slots).at[order].set(slots)
    in_slot = slot[:, None] == jnp.arange(n_slots)
    own = places_over_time(tracks, n_times)
    places = jnp.max(jnp.where(in_slot[:, None, :], own[:, :, None], -1), axis=0)
    starts = tracks.is_used[:, None] & (tracks.birth[:, None] == jnp.arange(n_times))
    is_new = jnp.any(starts[:, :, None] & in_slot[:, None, :], axis=0)
    return places, is_new, is_possible


def from_trajectory(places, is_new, n_tracks, *, is_walking=False):
    """Read the tracks of a trajectory, in order of birth; on the host.

    Parameters
    ----------
    places : (n_times, n_slots) int
    is_new : (n_times, n_slots) bool
    n_tracks : int
    is_walking : bool
        Whether to give the paths as well.

    Returns
    -------
    place, birth, death : (n_tracks,) int32
    is_used : (n_tracks,) bool
    path : (n_tracks, n_times) int32, or None

    Raises
    ------
    ValueError
        If there are more than `n_tracks`.
    """
    places, is_new = np.asarray(places), np.asarray(is_new)
    n_times = len(places)
    births = np.argwhere(is_new)
    if len(births) > n_tracks:
        raise ValueError(f"the trajectory has {len(births)} tracks, n_tracks is {n_tracks}.")
    place = np.full(n_tracks, -1, np.int32)
    birth, death = np.zeros((2, n_tracks), np.int32)
    path = np.full((n_tracks, n_times), -1, np.int32)
    for row, (time, slot) in enumerate(births):
        later = np.arange(n_times) > time
        ends = np.flatnonzero(later & ((places[:, slot] < 0) | is_new[:, slot]))
        birth[row], death[row] = time, ends[0] if len(ends) else n_times
        place[row] = places[time, slot]
        path[row, time : death[row]] = places[time : death[row], slot]
    is_used = np.arange(n_tracks) < len(births)
    return place, birth, death, is_used, path if is_walking else None


def evaluate(target: Target, tracks: Tracks) -> Tracks:
    """Fill in the log law and the log likelihood of the tracks under their parameters."""
    gram, prior = target.gram, target.prior
    places, is_new, is_possible = to_trajectory(tracks, gram.n_times, prior.max_dipoles)
    law = log_law(prior, tracks.parameters, places, is_new)
    value = track_likelihood.log_likelihood(gram, prior, tracks.parameters, places, is_new)
    return tracks._replace(
        log_law=jnp.where(is_possible & ~jnp.isnan(law), law, -jnp.inf),
        # A factorisation that fails in single precision must lose, not spread NaN.
        log_likelihood=jnp.where(jnp.isnan(value), -jnp.inf, value),
    )


def log_posterior(target: Target, tracks: Tracks, inverse_temperature) -> Float[Array, ""]:
    """Log target density, unnormalised, from the values that the tracks carry."""
    density = target.prior.log_density_of_parameters(tracks.parameters)
    tempered = jnp.where(inverse_temperature > 0, inverse_temperature * tracks.log_likelihood, 0.0)
    return tracks.log_law + tempered + density
