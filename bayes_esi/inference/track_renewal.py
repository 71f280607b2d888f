"""Reversible jump moves of drawn trajectories: what a particle method left alike is made different.

Each trajectory becomes a chain of `particle_gibbs` and takes some moves at inverse temperature 1.
They keep the joint posterior of trajectories and unknown parameters whatever the trajectories are,
so that draws from it stay draws from it, and places, births, deaths and parameters that all draws
share, because they descend from few particles, spread to their law.

Cost O(n_chains n_moves n_times (n_slots d)^3).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from . import particle_gibbs
from .track_target import Tracks, from_trajectory, to_trajectory

__all__ = ["run", "tracks_of", "trajectories"]

_LEAST_ROUNDS = 10


def run(
    key,
    target,
    places,
    is_new,
    parameters,
    parameter_std,
    n_moves,
    *,
    n_kept=1,
    progress=False,
    description="renewal",
):
    """Move trajectories.

    Parameters
    ----------
    key : PRNG key
    target : Target
    places, is_new : (n_chains, n_times, n_slots)
    parameters : (n_chains, n_parameters)
    parameter_std : (n_parameters,)
        Expected posterior deviation of each parameter: the scale of its steps.
    n_moves : int
        Of each trajectory, at least.
    n_kept : int
        States of each chain that are returned: the last, and others of the second half of its
        moves, evenly spread.
    progress : bool
    description : str

    Returns
    -------
    places, is_new, parameters, log_likelihood
        Leading axis of n_kept * n_chains; NumPy.
    acceptance : float
    """
    n_chains, n_times, n_slots = places.shape
    key_size, key_init, key_steps = jax.random.split(key, 3)
    n_found = int(is_new.sum(axis=(1, 2)).max())
    n_tracks = max(particle_gibbs.most_tracks(target, key_size), n_found + 1)
    start = tracks_of(places, is_new, parameters, n_tracks, target.prior.neighbours is not None)
    options = {"n_chains": n_chains, "n_tracks": n_tracks}
    state = particle_gibbs.init(key_init, target, options, start)
    # So that the mean of old and new is this variance.
    spread = jnp.asarray(parameter_std, state.spread.dtype) ** 2
    state = particle_gibbs.adapt(
        state._replace(spread=spread), jax.tree.map(lambda x: x[None], state.tracks), target
    )
    tried = accepted = 0.0
    kept = []
    n_rounds = max(2 * n_kept, _LEAST_ROUNDS)
    temperatures = jnp.ones(particle_gibbs.CHUNK, state.spread.dtype)
    with progress_bar(progress, description) as show:
        for turn in range(n_rounds):
            state, record = particle_gibbs.advance(
                key_steps, state, target, temperatures, 1, -(-n_moves // n_rounds)
            )
            tried += float(record.tried.sum())
            accepted += float(record.accepted.sum())
            if turn >= n_rounds - n_kept:
                tracks = state.tracks
                told = (tracks.parameters, tracks.log_likelihood)
                told = (*trajectories(tracks, n_times, n_slots), *told)
                kept.append([np.asarray(part) for part in told])
            acceptance = accepted / max(tried, 1.0)
            show((turn + 1) / n_rounds, accepted=f"{acceptance:.0%}")
    return *(np.concatenate(part) for part in zip(*kept, strict=True)), acceptance


def tracks_of(places, is_new, parameters, n_tracks, is_walking):
    """Read trajectories, (n_draws, n_times, n_slots), as stacked sets of tracks, not evaluated."""
    rows = [
        from_trajectory(p, n, n_tracks, is_walking=is_walking)
        for p, n in zip(places, is_new, strict=True)
    ]
    place, birth, death, is_used, path = zip(*rows, strict=True)
    zero = np.zeros(len(rows), parameters.dtype)
    path = np.stack(path) if is_walking else None
    own = (np.stack(part) for part in (place, birth, death, is_used))
    return Tracks(*own, parameters, zero, zero, path)


@functools.partial(jax.jit, static_argnums=(1, 2))
def trajectories(tracks, n_times, n_slots):
    """Put stacked sets of tracks into slots: places and is_new, (n_draws, n_times, n_slots)."""
    places, is_new, _ = jax.vmap(to_trajectory, in_axes=(0, None, None))(tracks, n_times, n_slots)
    return places, is_new
