"""Dipoles that are born, live and die.

Nobody is alive before the first sample. From one sample to the next

    every dipole alive dies with `death_prob`, independently;
    those that survive stay in place, or walk one step on the graph of sources;
    if fewer than `max_dipoles` were alive, one is born with `birth_prob`, at a source that no
    survivor occupies, in proportion to the location prior;
    a newborn's moment is N(0, moment_std^2 I); a survivor's follows the AR(1)
    q_t = a q_{t-1} + w,  w ~ N(0, (1 - a^2) moment_std^2 I),  which keeps that law;
    noise ~ N(0, noise_std^2 noise_cov), independent over samples.

A walk is Metropolis': neighbours are proposed in proportion to exp(-distance^2 / 2 step^2), the
own place counting as one at distance 0, and accepted so that the location prior stays invariant.
At any time a dipole's place has the same prior, and a walk reads alike in both directions.

Dipoles live in slots. Which slot is a matter of bookkeeping: a newborn takes the first that no
survivor holds. A trajectory is `places` (n_times, max_dipoles) with -1 for an empty slot, and
`is_new` of the same shape, true where a dipole lives its first sample.

References: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (static
places, AR moments, births and deaths); Somersalo, Voutilainen, Kaipio 2003,
doi:10.1088/0266-5611/19/5/304 (walking dipoles).
"""

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from ..core import ports
from ..core.checks import check_count, check_positive
from ..core.struct import static, struct
from ..core.types import Array, Bool, Float, Int
from .dipole_beliefs import place_weights, scale_priors
from .orientation import check_loose
from .probability_prior import check_probability, probability_prior
from .scale_prior import check_scale

__all__ = ["DynamicDipoles", "TrackPrior", "log_law", "log_transition", "track_prior"]


@dataclasses.dataclass(frozen=True, eq=False)
class DynamicDipoles:
    """Dipoles that are born and die at unknown times, with moments that are AR(1) in time.

    Parameters
    ----------
    birth_prob : float or numpyro distribution
        Probability that a dipole is born at a sample.
    death_prob : float or numpyro distribution
        Probability that a dipole alive dies by the next sample: mean life 1 / death_prob samples.
    max_dipoles : int
        Most dipoles alive at a time.
    moment_std : float or numpyro distribution, optional
        Stationary standard deviation of each moment component, in A·m. None: unknown,
        log-uniform over four decades around the moment that would explain the data's mean power.
    moment_persistence : float
        Correlation of a moment with itself a sample later, in [0, 1). 0: independent in time.
    noise_std : float or numpyro distribution, optional
        Noise level relative to the given noise covariance, one for each channel group. None:
        unknown, log-uniform from 0.1 to 10, widened where the power of the data lies outside.
    motion : "static" or float
        "static": a dipole stays in place for its life. A number: standard deviation of the steps
        of its walk, in m.
    location_prior : (n_sources,) array or mne.Label, optional
        Non-negative weights of the places (a label: its places only). Default uniform.
    loose : float
        Variance of tangential moments relative to normal ones, in [0, 1]: 1 free, 0 fixed to
        `source_normals`.

    Raises
    ------
    ValueError
        On probabilities outside (0, 1), scales or a step that are not positive, a persistence
        outside [0, 1), `max_dipoles` below 1, `loose` outside [0, 1].
    """

    birth_prob: object = 0.01
    death_prob: object = 1 / 30
    max_dipoles: int = 5
    moment_std: object = None
    moment_persistence: float = 0.9
    noise_std: object = None
    motion: object = "static"
    location_prior: object = None
    loose: float = 1.0

    def __post_init__(self):
        check_probability("birth_prob", self.birth_prob)
        check_probability("death_prob", self.death_prob)
        check_count("max_dipoles", self.max_dipoles)
        check_scale("moment_std", self.moment_std)
        check_scale("noise_std", self.noise_std)
        check_loose(self.loose)
        persistence = self.moment_persistence
        if not isinstance(persistence, numbers.Real) or not 0 <= persistence < 1:
            raise ValueError(
                f"moment_persistence must lie in [0, 1), got {persistence!r}: at 1 the moments "
                "have no stationary law."
            )
        if not isinstance(self.motion, str):
            check_positive("motion", self.motion, remedy="It is a step in m, or 'static'.")
        elif self.motion != "static":
            raise ValueError(f"motion must be 'static' or a step in m, got {self.motion!r}.")

    def stream(self, problem, **options):
        """Return a filter that takes one sample at a time, before anything was recorded.

        Unknown scales and probabilities are drawn from their priors; `TrackPosterior.stream` draws
        them from what a recording taught, which is far better.

        Parameters
        ----------
        problem : Problem
            Lead field, noise, geometry and time step.
        **options
            Of `posterior.track_stream.TrackFilter`, such as `n_particles`.

        Returns
        -------
        TrackFilter
            ``state = f.init(key)``, then ``state, now = f.step(state, sample)`` for each sample.
        """
        return ports.perform(self, "stream", problem, **options)


@struct
class TrackPrior:
    """The prior as arrays: what compiled code sees of a `DynamicDipoles` and a problem.

    Unknown scales and probabilities are one vector of `parameters`: the log of the moment scale
    and of each group's noise scale (whitened units), then the logits of birth and death.
    """

    log_place: Float[Array, " n_sources"]
    neighbours: Int[Array, "n_sources n_steps"] | None  # None: dipoles stay in place
    log_step: Float[Array, "n_sources n_steps"] | None
    persistence: Float[Array, ""]
    scales: tuple
    probabilities: tuple  # of birth and of death
    max_dipoles: int = static(default=1)

    @property
    def n_sources(self):
        """Number of places."""
        return self.log_place.shape[0]

    @property
    def is_unknown(self):
        """Which parameters are unknown: a tuple of bool."""
        return tuple(not prior.is_known for prior in (*self.scales, *self.probabilities))

    def log_density_of_parameters(self, parameters: Float[Array, " n_parameters"]):
        """Log prior density of the parameters."""
        priors = (*self.scales, *self.probabilities)
        return sum(prior.log_density(parameters[..., i]) for i, prior in enumerate(priors))

    def sample_parameters(self, key, n_draws):
        """Draw parameters from their prior: (n_draws, n_parameters)."""
        priors = (*self.scales, *self.probabilities)
        keys = jax.random.split(key, len(priors))
        draws = [prior.sample(k, n_draws) for prior, k in zip(priors, keys, strict=True)]
        return jnp.stack(draws, axis=-1).astype(self.log_place.dtype)

    def log_walk(self, place: Int[Array, "*n"], new_place: Int[Array, "*n"]):
        """Log probability that a survivor at `place` is at `new_place` a sample later."""
        if self.neighbours is None:
            return jnp.where(place == new_place, 0.0, -jnp.inf).astype(self.log_place.dtype)
        is_hit = self.neighbours[place] == new_place[..., None]
        return jax.nn.logsumexp(jnp.where(is_hit, self.log_step[place], -jnp.inf), axis=-1)

    def walk(self, key, places: Int[Array, " n"]):
        """Places of survivors a sample later, drawn from the law of their walks."""
        if self.neighbours is None:
            return places
        rank = jax.random.categorical(key, self.log_step[places], axis=-1)
        return jnp.take_along_axis(self.neighbours[places], rank[:, None], axis=1)[:, 0]


def track_prior(model, problem, design, dtype):
    """Write the prior of `model` on `problem` as arrays.

    Returns
    -------
    TrackPrior

    Raises
    ------
    ValueError
        If the location prior does not fit the sources, or has no more places than dipoles.
    """
    weights = place_weights(model.location_prior, problem)
    if np.count_nonzero(weights) <= model.max_dipoles:
        raise ValueError(
            f"max_dipoles is {model.max_dipoles}, but only {np.count_nonzero(weights)} sources "
            "can hold a dipole; lower it, or give more sources."
        )
    with np.errstate(divide="ignore"):
        log_place = np.log(weights / weights.sum())
    neighbours = log_step = None
    if model.motion != "static":
        neighbours, step = _walk(problem, weights, model.motion)
        with np.errstate(divide="ignore"):
            log_step = jnp.asarray(np.log(step), dtype)
        neighbours = jnp.asarray(neighbours)
    return TrackPrior(
        log_place=jnp.asarray(log_place, dtype),
        neighbours=neighbours,
        log_step=log_step,
        persistence=jnp.asarray(model.moment_persistence, dtype),
        scales=scale_priors(model, problem, design, dtype),
        probabilities=tuple(
            probability_prior(value, dtype) for value in (model.birth_prob, model.death_prob)
        ),
        max_dipoles=model.max_dipoles,
    )


def log_transition(prior, parameters, before, after, is_new):
    """Log probability of the places at a sample given those at the sample before.

    Parameters
    ----------
    prior : TrackPrior
    parameters : (n_parameters,) array
    before, after : (max_dipoles,) int
        Source of each slot, -1 where it is empty.
    is_new : (max_dipoles,) bool
        Slots whose dipole is born at this sample.

    Returns
    -------
    scalar
        -inf for what cannot happen. Cost O(max_dipoles^2).
    """
    was_alive, is_alive = before >= 0, after >= 0
    continues = is_alive & ~is_new
    n_before, n_survivors = jnp.sum(was_alive), jnp.sum(continues)
    log_birth, log_none = jax.nn.log_sigmoid(parameters[-2]), jax.nn.log_sigmoid(-parameters[-2])
    log_death, log_life = jax.nn.log_sigmoid(parameters[-1]), jax.nn.log_sigmoid(-parameters[-1])

    walk = prior.log_walk(jnp.where(was_alive, before, 0), after)
    log_prob = jnp.sum(jnp.where(continues, jnp.where(was_alive, walk, -jnp.inf), 0.0))
    log_prob += (n_before - n_survivors) * log_death + n_survivors * log_life

    # A place held twice (walks may meet) is occupied once.
    same = (after[:, None] == after[None, :]) & continues[:, None] & continues[None, :]
    is_first = continues & ~jnp.any(jnp.tril(same, -1), axis=1)
    occupied = jnp.sum(jnp.where(is_first, jnp.exp(prior.log_place[after]), 0.0))
    # Where survivors hold nearly all of the location prior, rounding may leave nothing free.
    occupied = jnp.minimum(occupied, 1 - jnp.finfo(occupied.dtype).eps)
    is_taken = jnp.any((after[:, None] == after[None, :]) & continues[None, :], axis=1)
    born = prior.log_place[after] - jnp.log1p(-occupied)
    born = jnp.sum(jnp.where(is_new, jnp.where(is_taken | ~is_alive, -jnp.inf, born), 0.0))
    n_born = jnp.sum(is_new)
    birth = jnp.where(n_born == 1, log_birth + born, jnp.where(n_born == 0, log_none, -jnp.inf))
    no_room = jnp.where(n_born == 0, 0.0, -jnp.inf)
    return log_prob + jnp.where(n_before < before.shape[0], birth, no_room)


def log_law(
    prior: TrackPrior,
    parameters: Float[Array, " n_parameters"],
    places: Int[Array, "n_times n_slots"],
    is_new: Bool[Array, "n_times n_slots"],
) -> Float[Array, ""]:
    """Log probability of a trajectory under births, deaths, places and walks."""
    before = jnp.concatenate([jnp.full_like(places[:1], -1), places[:-1]])
    return jnp.sum(
        jax.vmap(log_transition, in_axes=(None, None, 0, 0, 0))(
            prior, parameters, before, places, is_new
        )
    )


def _walk(problem, weights, step):
    """Neighbours of each source, itself first, and probabilities of Metropolis' step to them."""
    n_sources = problem.n_sources
    own = np.arange(n_sources, dtype=np.int32)[:, None]
    table = np.concatenate([own, problem.neighbours], axis=1).astype(np.int32)
    is_there = table >= 0
    table = np.where(is_there, table, own)
    distance2 = np.sum((problem.source_pos[table] - problem.source_pos[:, None]) ** 2, axis=-1)
    kernel = np.where(is_there, np.exp(-0.5 * distance2 / step**2), 0.0)
    total = kernel.sum(axis=1)
    # q(u, v) = k(u, v) / total(u) with k symmetric: the ratio of proposals is one of totals.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = weights[table] * total[:, None] / (weights[:, None] * total[table])
    ratio = np.where(weights[:, None] > 0, np.minimum(ratio, 1.0), 1.0)
    step = kernel / total[:, None] * ratio
    step[:, 0] = 0.0
    step[:, 0] = 1.0 - step.sum(axis=1)
    return table, step
