"""What a stream of dipoles says at one sample: numbers, intensity, and the dipoles alive."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

from ..core.types import Array, Float, Int
from .credible import credible_set, to_millilitres
from .track_matching import list_lives, match_lives

__all__ = ["Alive", "AliveDipole", "TrackSample"]

_LEVEL = 0.95


class Alive(NamedTuple):
    """What is kept of weighted particles to answer questions about a sample."""

    places: Int[Array, "n_particles n_slots"]
    birth: Int[Array, "n_particles n_slots"]
    mean: Float[Array, "n_particles n_slots d"]
    cov: Float[Array, "n_particles n_slots d d"]
    log_weights: Float[Array, " n_particles"]


@dataclasses.dataclass(frozen=True, eq=False)
class AliveDipole:
    """One dipole alive at a sample. All but `probability` are given that it is.

    Attributes
    ----------
    probability : float
        That it is alive.
    pos : (3,)
        Posterior mean position, in m.
    pos_cov : (3, 3)
        Posterior covariance of the position, in m^2; uniform within the cell of a source.
    place_pmf : (n_sources,)
        Probability of each place.
    credible_set : (n_places,) int
        Smallest set of sources with 95 % of it, most probable first.
    credible_volume : float
        Volume of that set, in mL.
    moment_mean, moment_std : (n_axes,)
        In A·m. Along the axes of space (three), or along the one orientation of a lead field that
        came without normals.
    age, age_std : float
        Posterior mean and standard deviation of the time since its first sample, in s.
    """

    probability: float
    pos: np.ndarray
    pos_cov: np.ndarray
    place_pmf: np.ndarray
    credible_set: np.ndarray
    credible_volume: float
    moment_mean: np.ndarray
    moment_std: np.ndarray
    age: float
    age_std: float


@dataclasses.dataclass(frozen=True, eq=False)
class TrackSample:
    """The posterior at one sample, given all samples so far.

    Attributes
    ----------
    log_evidence_increment : float
        Log density of the sample given those before, in nats, units of the data.
    n_dipoles_pmf : (max_dipoles + 1,)
        Probability of each number of dipoles.
    intensity : (n_sources,)
        Expected number of dipoles at each source.
    ess : float
        Effective number of particles that carry all this. Next to 1, nothing here can be trusted:
        take more particles.
    """

    _filter: object
    _alive: Alive
    _time: int
    log_evidence_increment: float
    n_dipoles_pmf: np.ndarray
    intensity: np.ndarray
    ess: float

    def __repr__(self):
        number = int(np.argmax(self.n_dipoles_pmf))
        return (
            f"<TrackSample | sample {self._time}: {number} dipole{'' if number == 1 else 's'} "
            f"(probability {self.n_dipoles_pmf[number]:.2f}), {self.ess:.0f} effective particles>"
        )

    def dipoles(self):
        """List the dipoles alive, the most probable first.

        Dipoles of particles are matched by their places, as tracks are (see `track_matching`):
        never two of the same particle.

        Returns
        -------
        list of AliveDipole
            Dipoles in which fewer than one in twenty believes are left out.
        """
        return sorted(
            (self._estimate(rows, slots) for rows, slots in self._members),
            key=lambda dipole: -dipole.probability,
        )

    @functools.cached_property
    def _particles(self):
        alive = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self._alive)
        weights = np.exp(alive.log_weights)
        integers = {name: getattr(alive, name).astype(int) for name in ("places", "birth")}
        return alive._replace(**integers), weights / weights.sum()

    @functools.cached_property
    def _members(self):
        """Rows and slots of the particles that have each dipole."""
        alive, weights = self._particles
        places = alive.places[:, None]
        lives = list_lives(places, places >= 0)
        members = match_lives(
            lives, places, weights, self._filter.problem.source_pos, alive.log_weights
        )
        has = [(column, np.flatnonzero(column >= 0)) for column in members.T]
        return [(rows, lives.slot[column[rows]]) for column, rows in has]

    def _estimate(self, rows, slots):
        own, problem = self._filter, self._filter.problem
        alive, weights = self._particles
        probability = float(weights[rows].sum())
        weights = weights[rows] / probability
        place = alive.places[rows, slots]
        pmf = np.bincount(place, weights=weights, minlength=problem.n_sources)
        pos = pmf @ problem.source_pos
        offset = problem.source_pos - pos
        chosen = credible_set(pmf, _LEVEL)
        frames = problem.moment_unit * own.design.frames[place]
        means = np.einsum("nad,nd->na", frames, alive.mean[rows, slots])
        variances = np.einsum("nad,nde,nae->na", frames, alive.cov[rows, slots], frames)
        mean = weights @ means
        variance = weights @ (variances + (means - mean) ** 2)
        ages = own.time_step * (self._time - alive.birth[rows, slots])
        age = float(weights @ ages)
        return AliveDipole(
            probability=min(probability, 1.0),
            pos=pos,
            pos_cov=(offset * pmf[:, None]).T @ offset + pmf @ own.cell_variance * np.eye(3),
            place_pmf=pmf,
            credible_set=chosen,
            credible_volume=to_millilitres(problem.source_volume[chosen].sum()),
            moment_mean=mean,
            moment_std=np.sqrt(np.maximum(variance, 0.0)),
            age=age,
            age_std=float(np.sqrt(weights @ (ages - age) ** 2)),
        )
