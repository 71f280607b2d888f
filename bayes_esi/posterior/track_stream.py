"""The stream of dipoles that are born, live and die: one sample in, the current posterior out.

A particle filter (`inference.particle_filter`) that is fed from outside. It keeps the last samples,
projected on all sources, in a ring, because a move of a young dipole goes through its whole life
again. Nothing grows: a sample costs the same time and memory after a minute as after a day.

Cost of a sample O(n_sources d rank) for its projection, then that of the filter.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array, check_count, check_fraction, check_positive
from ..core.drive import Checkpoint, fingerprint
from ..core.types import Array, Float
from ..inference import particle_filter
from ..inference.options import fill_options
from ..inference.resampling import systematic
from ..inference.track_inference import prepare
from ..inference.weighted_particles import State
from ..models.dynamic_dipoles import DynamicDipoles
from ..models.orientation import orient
from ..models.source_hyper import step_of
from ..models.track_gram import project
from .track_sample import Alive, TrackSample

__all__ = ["TrackFilter"]


def _check_amount(name, value):
    return check_count(name, value, minimum=0)


# A survey costs as much as all else of a sample together, and a move the life it goes through: what
# a recording can take its time for must be rationed in a stream.
_OPTIONS = {
    "a stream": {
        "n_particles": (200, check_count),
        "ess_threshold": (0.5, check_fraction),
        "n_surveyed": (2, check_count),
        "n_moves": (1, _check_amount),
        "n_moved": (10, check_count),
        "longest_life": (50, check_count),
        "memory_limit": (4 * 2**30, check_positive),
    }
}


class _State(NamedTuple):
    """Where a stream stands."""

    filtered: State
    ring: Float[Array, "n_past n_sources n_groups d"]  # sample t in row t modulo n_past
    key: jax.Array


class TrackFilter:
    """Filters a stream of samples.

    Parameters
    ----------
    model : DynamicDipoles
    problem : Problem
        Lead field, noise and geometry. Its data serve for nothing but default priors of scales.
    posterior : TrackPosterior, optional
        Learnt from a recording of the same kind: each particle draws scales and probabilities
        from it. By default what the model gives as known is known, and each particle draws what is
        unknown from the prior.
    **options
        n_particles (200); ess_threshold (0.5), a share; n_surveyed (2): particles that say where
        a dipole may be born; n_moves (1): dipoles moved after resampling of each of n_moved (10)
        particles, none that walks; longest_life (50): in samples, of those that are still moved;
        memory_limit (4 GiB), in bytes.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, the model or the posterior does not fit the
        problem, or its times are not evenly spaced.

    Notes
    -----
    `init` starts before any sample, with nobody alive. Samples come at the step of the problem's
    times. A particle keeps its scales and probabilities for life: resampling narrows them to a few
    values over long streams, all the sooner the less was known. Give them, or learn them first.

    The time of a sample is bounded by n_surveyed, and by n_moved times longest_life.
    """

    def __init__(self, model, problem, posterior=None, **options):
        if not isinstance(model, DynamicDipoles):
            raise ValueError(
                f"model must be DynamicDipoles, got {type(model).__name__}; of other models, "
                "use the stream of their posterior."
            )
        options = fill_options(_OPTIONS, "a stream", options)
        self.problem, self.time_step = problem, step_of(problem)
        self._target = _without_data(prepare(model, problem, options.pop("memory_limit")))
        self._draws = None if posterior is None else _parameters_of(posterior, problem)
        self.n_particles = options.pop("n_particles")
        is_walking = model.motion != "static"
        self._options = particle_filter.Options(**options)._replace(
            # A move gives a dipole one place for its whole life.
            n_moves=0 if is_walking else options["n_moves"],
            n_moved=min(options["n_moved"], self.n_particles),
        )
        # A move starts from the sample before the birth.
        self._n_past = self._options.longest_life + 1 if self._options.n_moves else 1
        self.design = orient(problem, model.loose)

    @functools.cached_property
    def cell_variance(self):
        """See `Problem.cell_variance`."""
        return self.problem.cell_variance

    def init(self, key):
        """State before the first sample.

        Parameters
        ----------
        key : PRNG key
            All randomness of the stream.

        Returns
        -------
        state
            A pytree of arrays whose sizes never change.
        """
        target, n_particles = self._target, self.n_particles
        key_init, key_steps = jax.random.split(key)
        if self._draws is None:
            filtered = particle_filter.init(key_init, target, n_particles, self._n_past)
        else:
            log_weights, parameters = self._draws
            filtered = particle_filter.init(
                key_init, target.fixed(parameters[0]), n_particles, self._n_past
            )
            # Draws of the posterior are equally good, whatever the prior said of them.
            chosen = systematic(key_init, log_weights, n_particles)
            filtered = filtered._replace(
                particles=filtered.particles._replace(parameters=parameters[chosen]),
                log_weights=jnp.full_like(filtered.log_weights, -np.log(n_particles)),
                log_evidence=jnp.zeros_like(filtered.log_evidence),
            )
        gram = target.gram
        shape = (self._n_past, gram.n_sources, gram.n_groups, gram.n_orient)
        return _State(filtered, jnp.zeros(shape, gram.field.dtype), key_steps)

    def step(self, state, sample):
        """Take in one sample.

        Parameters
        ----------
        state : state of `init` or of the step before
            It stays as it is.
        sample : (n_channels,) array
            In data units, with the projectors of the problem or without: they are in its whitener.

        Returns
        -------
        state
        TrackSample

        Raises
        ------
        ValueError
            If the sample has another length, is not finite, or is so far from anything that the
            model can produce that its density is zero in floating point.
        """
        problem = self.problem
        sample = check_array("sample", sample, shape=(problem.n_channels,))
        whitened = (problem.whitener @ sample).astype(self._target.gram.field.dtype)
        state, info, alive = _take(state, self._target, whitened, self._options)
        increment = float(info.log_evidence_increment)
        if not np.isfinite(increment):
            raise ValueError(
                "sample is impossible under the model: no particle gives it any density. Check its "
                "units, or leave this sample out and go on from the state before."
            )
        return state, TrackSample(
            self,
            alive,
            int(state.filtered.time) - 1,
            increment + problem.log_jacobian / problem.n_times,
            np.asarray(info.n_dipoles_pmf, np.float64),
            np.asarray(info.intensity, np.float64),
            float(info.ess),
        )

    def save(self, state, path):
        """Write a state to a file, NumPy's ``.npz`` without pickle, whole or not at all.

        Parameters
        ----------
        state : state of `init` or `step`
        path : path-like
        """
        Checkpoint(path, self._identity).save(int(state.filtered.time), state)

    def load(self, path):
        """Read a state, which goes on to the same bits.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        state

        Raises
        ------
        ValueError
            If there is no such file, it is not a state, or one of another model, problem,
            posterior or other options.
        """
        if not Path(path).exists():
            raise ValueError(f"path must name a file that `save` wrote; there is no {path}.")
        like = jax.eval_shape(self.init, jax.random.key(0))
        _, state = Checkpoint(path, self._identity).load(like)
        return jax.tree.map(jnp.asarray, state)

    @functools.cached_property
    def _identity(self):
        """Fingerprint of all that a state depends on."""
        target, problem = self._target, self.problem
        return fingerprint(
            (target.gram.field, target.gram.row_group, target.prior, target.neighbours),
            (problem.whitener, problem.log_jacobian / problem.n_times, problem.moment_unit),
            (self.time_step, self._draws),
            np.array(f"{self.n_particles} {self._options}", "S"),
        )


@functools.partial(jax.jit, static_argnames="options")
def _take(state, target, whitened, options):
    """One sample of the filter, with its place in the ring."""
    filtered, ring, key = state
    projected, power = project(target.gram, whitened[:, None])
    ring = ring.at[filtered.time % ring.shape[0]].set(projected[0])
    filtered, info, (particles, log_weights) = particle_filter.step(
        jax.random.fold_in(key, filtered.time), filtered, target, ring, power[0], options
    )
    n_particles, n_slots = particles.places.shape
    slots = jnp.arange(n_slots)
    cov = particles.cov.reshape(n_particles, n_slots, -1, n_slots, target.gram.n_orient)
    alive = Alive(
        places=particles.places,
        birth=particles.birth,
        mean=particles.mean.reshape(n_particles, n_slots, -1),
        # Advanced indices apart come first.
        cov=cov[:, slots, :, slots].swapaxes(0, 1),
        log_weights=log_weights,
    )
    return _State(filtered, ring, key), info, alive


def _without_data(target):
    """A target that holds no samples: those of the problem have done their service."""
    gram = target.gram
    gram = dataclasses.replace(
        gram, projected_data=gram.projected_data[:0], data_power=gram.data_power[:0]
    )
    return dataclasses.replace(target, gram=gram)


def _parameters_of(posterior, problem):
    """Log weights and parameters (whitened units) of the pooled draws of a posterior."""
    draws = posterior.draws
    n_draws, n_groups = draws.noise_std.shape[1:]
    if n_groups != problem.n_groups:
        raise ValueError(
            f"posterior has noise scales of {n_groups} channel groups, but problem has "
            f"{problem.n_groups}; take the posterior of a recording with the same groups."
        )
    parameters = np.concatenate(
        [
            np.log(draws.moment_std / problem.moment_unit)[..., None],
            np.log(draws.noise_std),
            *(
                (np.log(value) - np.log1p(-value))[..., None]
                for value in (draws.birth_prob, draws.death_prob)
            ),
        ],
        axis=-1,
    )
    dtype = jax.dtypes.canonicalize_dtype(problem.lead_field.dtype)
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.repeat(posterior.run_weights / n_draws, n_draws))
    flat = parameters.reshape(-1, parameters.shape[-1])
    return jnp.asarray(log_weights, dtype), jnp.asarray(flat, dtype)
