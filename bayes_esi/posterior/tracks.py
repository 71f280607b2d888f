"""The posterior of dipoles that are born, live and die."""

import dataclasses
import functools

import numpy as np
from scipy.special import logsumexp

from ..core.status import Status
from ..models.dynamic_dipoles import DynamicDipoles
from ..models.problem import Problem
from .credible import credible_set, to_millilitres

__all__ = ["TrackDraws", "TrackEstimate", "TrackPosterior"]

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class TrackDraws:
    """Trajectories drawn from the posterior, equally weighted within each run.

    Attributes
    ----------
    places : (n_runs, n_draws, n_times, n_slots) int
        Source numbers, -1 in empty slots.
    is_new : (n_runs, n_draws, n_times, n_slots) bool
        True where a dipole lives its first sample.
    moment_std : (n_runs, n_draws)
        In A·m.
    noise_std : (n_runs, n_draws, n_groups)
        Relative to the noise covariance.
    birth_prob, death_prob : (n_runs, n_draws)
        Probabilities a sample.
    log_likelihood : (n_runs, n_draws)
        In the units of the data, moments integrated out.
    log_evidence : (n_runs,)
        In the units of the data; NaN where the method has none.
    trace : dict of arrays (n_runs, ...)
        What the sampler tells of itself. Of particle methods, (n_runs, n_times) each: `ess`,
        `n_ancestors` (distinct ancestors at each sample of the particles at the end) and
        `log_evidence_increment`.
    n_dipoles_pmf, intensity : (n_times, max_dipoles + 1) and (n_times, n_sources) arrays or None
        What the method knows of each sample by itself, such as the marginals of a filter;
        otherwise they come from the trajectories.
    """

    places: np.ndarray
    is_new: np.ndarray
    moment_std: np.ndarray
    noise_std: np.ndarray
    birth_prob: np.ndarray
    death_prob: np.ndarray
    log_likelihood: np.ndarray
    log_evidence: np.ndarray
    trace: dict
    n_dipoles_pmf: np.ndarray | None = None
    intensity: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TrackEstimate:
    """One dipole's life, matched across draws. All but `probability` are given that it exists.

    Attributes
    ----------
    probability : float
        That it exists.
    birth_pmf : (n_times,)
        Probability of each sample to be its first.
    death_pmf : (n_times + 1,)
        Probability of each sample to be the first without it; the last entry: it is alive at the
        end of the data.
    birth, death : float
        Posterior mean times of its first and of its last sample, in s.
    birth_interval, death_interval : (float, float)
        Their 95 % equal-tailed intervals, in s.
    prob_alive : (n_times,)
        Probability that it is alive at each sample.
    pos : (3,)
        Posterior mean position, in m; of a walking dipole, over its life.
    pos_cov : (3, 3)
        Posterior covariance of the position, in m^2, over its life likewise. A source stands for
        a cell of the grid or of the cortex, within which the position is uniform
        (`Problem.cell_variance`).
    path : (n_times, 3)
        Mean position at each sample, in m: `pos` throughout, unless the dipole walks; then given
        that it is alive at that sample, and NaN where it never is.
    place_pmf : (n_sources,)
        Probability of each place; of a walking dipole, at a random sample of its life.
    credible_set : (n_places,) int
        Smallest set of sources with 95 % of it, most probable first.
    credible_volume : float
        Volume of that set, in mL.
    moment_mean, moment_std : (n_axes, n_times)
        In A·m, given that it is alive at that sample, NaN where it never is. Along the axes of
        space (three), or along the one orientation of a lead field that came without normals.
    explained_power : float
        Whitened power of its field, summed over channels and the samples of its life.
    """

    probability: float
    birth_pmf: np.ndarray
    death_pmf: np.ndarray
    birth: float
    death: float
    birth_interval: tuple
    death_interval: tuple
    prob_alive: np.ndarray
    pos: np.ndarray
    pos_cov: np.ndarray
    path: np.ndarray
    place_pmf: np.ndarray
    credible_set: np.ndarray
    credible_volume: float
    moment_mean: np.ndarray
    moment_std: np.ndarray
    explained_power: float


@dataclasses.dataclass(frozen=True, eq=False)
class TrackPosterior:
    """What the data say about the number, places, lives and moments of dipoles over time.

    Attributes
    ----------
    problem : Problem
    model : DynamicDipoles
    method : str
    draws : TrackDraws
    status : Status
    """

    problem: Problem
    model: DynamicDipoles
    method: str
    draws: TrackDraws
    status: Status

    # ---------------------------------------------------------------- evidence and number

    @property
    def n_runs(self):
        """Independent repeats of the sampler."""
        return len(self.draws.log_evidence)

    @property
    def log_evidence(self):
        """Log probability density of the data under the model, in nats, units of the data.

        NaN where the method has none.
        """
        return float(logsumexp(self.draws.log_evidence) - np.log(self.n_runs))

    @property
    def log_evidence_std(self):
        """Standard error of `log_evidence` from independent runs; NaN for a single run."""
        if self.n_runs == 1 or not np.all(np.isfinite(self.draws.log_evidence)):
            return float("nan")
        return float(np.std(self.draws.log_evidence, ddof=1) / np.sqrt(self.n_runs))

    @functools.cached_property
    def n_dipoles_pmf(self):
        """Probability of each number of dipoles at each sample: (n_times, max_dipoles + 1).

        Of `particle_filter`, given the samples until then; otherwise given all samples.
        """
        if self.draws.n_dipoles_pmf is not None:
            return self.draws.n_dipoles_pmf
        numbers = np.sum(self._places >= 0, axis=2)
        is_number = numbers[:, :, None] == np.arange(self.model.max_dipoles + 1)
        return np.tensordot(self._weights, is_number, axes=1)

    @functools.cached_property
    def intensity(self):
        """Expected number of dipoles at each sample and source: (n_times, n_sources).

        Of `particle_filter`, given the samples until then; otherwise given all samples.
        """
        if self.draws.intensity is not None:
            return self.draws.intensity
        n_times, n_sources = self.problem.n_times, self.problem.n_sources
        rows, times, slots = np.nonzero(self._places >= 0)
        cells = times * n_sources + self._places[rows, times, slots]
        mass = np.bincount(cells, weights=self._weights[rows], minlength=n_times * n_sources)
        return mass.reshape(n_times, n_sources)

    @functools.cached_property
    def birth_intensity(self):
        """Expected number of dipoles whose first sample each is: (n_times,). Given all samples."""
        return self._weights @ np.sum(self._is_new & (self._places >= 0), axis=2)

    @functools.cached_property
    def death_intensity(self):
        """Expected number of deaths since the sample before, given all samples: (n_times,)."""
        is_alive = self._places >= 0
        gone = is_alive[:, :-1] & (~is_alive[:, 1:] | self._is_new[:, 1:])
        return np.concatenate([[0.0], self._weights @ np.sum(gone, axis=2)])

    # ---------------------------------------------------------------- places

    def credible_volume(self, level=_LEVEL, time=None):
        """Volume of the smallest set of sources with a share of the intensity, in mL.

        Parameters
        ----------
        level : float
            Share, between 0 and 1.
        time : float, optional
            In s: the intensity at the nearest sample. By default its sum over all samples.

        Raises
        ------
        ValueError
            If the level is no share, or the time lies outside of the data.
        """
        mass = self.intensity.sum(axis=0) if time is None else self.intensity[self.sample_at(time)]
        chosen = credible_set(mass, level)
        return to_millilitres(self.problem.source_volume[chosen].sum())

    def prob_in(self, region, tmin=None, tmax=None):
        """Probability that at least one dipole lies in a region at some time.

        Parameters
        ----------
        region : (n_sources,) bool array, array of source numbers, or mne.Label
        tmin, tmax : float, optional
            Window in s, both ends included; by default all samples.

        Returns
        -------
        float
            Given all samples, whatever the method.

        Raises
        ------
        ValueError
            If the region does not fit the sources, or no sample lies in the window.
        """
        window = self._window(tmin, tmax)
        places = self._places[:, window]
        inside = self.problem.mask(region)[places] & (places >= 0)
        return min(float(np.sum(self._weights[inside.any(axis=(1, 2))])), 1.0)

    def sample_at(self, time):
        """Number of the sample nearest to a time in s.

        Raises
        ------
        ValueError
            If the time lies outside of the data by more than half a sample.
        """
        times = self.problem.times
        slack = 0.5 * np.min(np.diff(times)) if len(times) > 1 else 0.0
        if not np.isfinite(time) or not times[0] - slack <= time <= times[-1] + slack:
            raise ValueError(
                f"time must lie between {times[0]:g} and {times[-1]:g} s, got {time!r}."
            )
        return int(np.argmin(np.abs(times - time)))

    def __repr__(self):
        most = int(np.max(np.argmax(self.n_dipoles_pmf, axis=1)))
        return (
            f"<TrackPosterior | {self.method}, {self.status.name}: "
            f"{self.birth_intensity.sum():.1f} births expected, most probably up to {most} "
            f"dipole{'' if most == 1 else 's'} at a time, "
            f"log evidence {self.log_evidence:.1f} ± {self.log_evidence_std:.1f}>"
        )

    # ---------------------------------------------------------------- what the answers share

    @functools.cached_property
    def run_weights(self):
        """Weight of each run in the pooled posterior: its share of the evidence.

        Equal where the method has no evidence.
        """
        total = logsumexp(self.draws.log_evidence)
        if not np.isfinite(total):
            return np.full(self.n_runs, 1 / self.n_runs)
        return np.exp(self.draws.log_evidence - total)

    @property
    def _weights(self):
        n_draws = self.draws.places.shape[1]
        return np.repeat(self.run_weights / n_draws, n_draws)

    @property
    def _places(self):
        return self.draws.places.reshape(-1, *self.draws.places.shape[2:])

    @property
    def _is_new(self):
        return self.draws.is_new.reshape(-1, *self.draws.is_new.shape[2:])

    def _window(self, tmin, tmax):
        times = self.problem.times
        tmin = times[0] if tmin is None else tmin
        tmax = times[-1] if tmax is None else tmax
        # Times that are written in decimals may miss their sample by a rounding error.
        slack = 1e-3 * np.min(np.diff(times)) if len(times) > 1 else 0.0
        window = (times >= tmin - slack) & (times <= tmax + slack)
        if not window.any():
            raise ValueError(
                f"no sample lies between tmin = {tmin!r} and tmax = {tmax!r} s; the data last from "
                f"{times[0]:g} to {times[-1]:g} s."
            )
        return window
