"""The posterior of dipoles that are born, live and die."""

import dataclasses
import functools

import numpy as np
from scipy.special import logsumexp

from ..core import ports
from ..core.checks import check_array, check_choice, check_count
from ..core.status import Status
from ..models.dynamic_dipoles import DynamicDipoles
from ..models.orientation import orient
from ..models.problem import Problem
from .credible import credible_set, to_millilitres
from .residuals import autocorrelation
from .track_estimate import TrackEstimate, estimate_track, moments_of_life
from .track_matching import list_lives, match_lives
from .track_moments import fitted_field, track_moments

__all__ = ["TrackDraws", "TrackEstimate", "TrackPosterior"]

# Draws whose moments are computed: the standard error of a mean over 200 draws is 7 % of the
# posterior standard deviation, at a smoother's cost for each of them.
_N_MOMENT_DRAWS = 200
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

    # ---------------------------------------------------------------- tracks and places

    def tracks(self):
        """List the dipoles, each with its life, the one that explains most of the data first.

        Returns
        -------
        list of TrackEstimate
            Sorted by probability times explained power. Dipoles that fewer than one draw in twenty
            has are left out; empty if no draw has a dipole.
        """
        return [estimate for _, estimate in self._tracks]

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
        time = float(check_array("time", time, shape=(), remedy="It is in s."))
        if not times[0] - slack <= time <= times[-1] + slack:
            raise ValueError(
                f"time must lie between {times[0]:g} and {times[-1]:g} s, got {time:g}."
            )
        return int(np.argmin(np.abs(times - time)))

    # ---------------------------------------------------------------- reports

    def summary(self):
        """Tabulate the tracks: probability, life, position, its spread, credible volume, peak.

        Returns
        -------
        pandas.DataFrame
            One row for each track; times in s, positions and spreads in mm, volumes in mL, moments
            in nA·m. Births and deaths are posterior means with 95 % intervals, a death being the
            last sample of a life. The peak is that of the moment, each sample weighted with the
            probability to be alive. Run-wide figures are in ``.attrs``.
        """
        import pandas as pd

        rows = []
        for track in self.tracks():
            amplitude = np.linalg.norm(track.moment_mean, axis=0)
            peak = int(np.nanargmax(amplitude * track.prob_alive))
            # Standard deviation along the direction of the moment at its peak.
            direction = track.moment_mean[:, peak] / max(amplitude[peak], 1e-300)
            birth_low, birth_high = track.birth_interval
            death_low, death_high = track.death_interval
            rows.append(
                {
                    "probability": track.probability,
                    "birth_s": track.birth,
                    "birth_low_s": birth_low,
                    "birth_high_s": birth_high,
                    "death_s": track.death,
                    "death_low_s": death_low,
                    "death_high_s": death_high,
                    **dict(zip(("x_mm", "y_mm", "z_mm"), 1e3 * track.pos, strict=True)),
                    "spread_mm": 1e3 * np.sqrt(np.trace(track.pos_cov)),
                    "credible_volume_mL": track.credible_volume,
                    "peak_time_s": self.problem.times[peak],
                    "peak_nAm": 1e9 * amplitude[peak],
                    "peak_std_nAm": 1e9 * np.linalg.norm(direction * track.moment_std[:, peak]),
                }
            )
        frame = pd.DataFrame(rows)
        frame.index = pd.RangeIndex(1, len(frame) + 1, name="track")
        frame.attrs = {
            "status": self.status.name,
            "method": self.method,
            "log_evidence": self.log_evidence,
            "log_evidence_std": self.log_evidence_std,
            "birth_prob": float(self._weights @ self.draws.birth_prob.ravel()),
            "death_prob": float(self._weights @ self.draws.death_prob.ravel()),
            "residual_autocorrelation": self.residual_autocorrelation,
        }
        return frame

    @functools.cached_property
    def residual_autocorrelation(self):
        """Correlation of neighbouring samples of the residual; 0 for noise that is white in time.

        The model takes noise as independent over samples. Where this is far from zero the data
        hold fewer independent samples than the model counts, and the posterior is too sure.
        """
        return autocorrelation(self.problem.data - self.fitted)

    def to_datatree(self, n_draws=25):
        """Write the posterior as an ArviZ DataTree; independent runs are chains.

        Parameters
        ----------
        n_draws : int
            Trajectories kept of each run, evenly spaced, each with a recording drawn for it: a few,
            because each recording is as large as the data.

        Returns
        -------
        xarray.DataTree
            Groups posterior, sample_stats, posterior_predictive, observed_data.
        """
        from .track_diagnostics import to_datatree

        return to_datatree(self, check_count("n_draws", n_draws))

    def diagnostics(self):
        """ArviZ summary (R-hat, effective sample size) of numbers, parameters, log likelihood."""
        from .track_diagnostics import diagnostics

        return diagnostics(self)

    def to_mne(self):
        """Give the tracks and the intensity as MNE objects.

        Returns
        -------
        dipoles : list of mne.Dipole
            One for each of `tracks()`, at the samples of its probable life.
        intensity : mne.SourceEstimate, VolSourceEstimate or MixedSourceEstimate
            Of all samples.
        """
        return ports.perform(self, "to_mne")

    def plot(self, kind="overview", **kwargs):
        """Draw the posterior.

        Parameters
        ----------
        kind : str
            "overview", "raster", "n_dipoles", "intensity", "moments", "predictive" or "trace"; of
            sources in the average head "cortex" and "glass_brain", too.
        **kwargs
            For the function of that name in `bayes_esi.viz`.

        Returns
        -------
        matplotlib.figure.Figure or Axes
        """
        kinds = ("overview", "raster", "n_dipoles", "intensity", "moments", "predictive", "trace")
        kinds += ("cortex", "glass_brain")
        return ports.perform(self, "plot", check_choice("kind", kind, kinds), **kwargs)

    def stream(self, **options):
        """Return the filter of a stream whose particles draw their parameters from this posterior.

        Parameters
        ----------
        **options
            Of `TrackFilter`, such as `n_particles`.

        Returns
        -------
        TrackFilter
            ``state = f.init(key)``, then ``state, now = f.step(state, sample)`` for each sample.
        """
        from .track_stream import TrackFilter

        return TrackFilter(self.model, self.problem, self, **options)

    def save(self, path):
        """Write everything to a NetCDF file that `bayes_esi.load` reads. Never pickle."""
        ports.perform(self, "save", path)

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

    @functools.cached_property
    def design(self):
        """The lead field in the coordinates of the model's moments."""
        return orient(self.problem, self.model.loose)

    @functools.cached_property
    def lives(self):
        """Every life in the pooled draws (see `Lives`)."""
        return list_lives(self._places, self._is_new)

    @property
    def members(self):
        """Which of `lives` is each of `tracks()` in every pooled draw, -1 where absent."""
        columns = [column for column, _ in self._tracks]
        return np.array(columns, int).reshape(-1, len(self._places)).T

    @functools.cached_property
    def fitted(self):
        """Posterior mean of the whitened field of all dipoles: (rank, n_times)."""
        draws, shares = self._moment_draws
        return sum(
            share * fitted_field(self.problem, self.design, self._places[draw], components)
            for draw, share, components in zip(draws, shares, self._moments.components, strict=True)
        )

    @functools.cached_property
    def _moment_draws(self):
        """Pooled draws whose moments are computed, and the share of each in the posterior.

        Evenly spaced in probability, so that a run with all the evidence has all of them. Draws of
        share zero come on top where no other has a sample of a dipole's life.
        """
        weights, shares = self._weights, self._weights
        if len(weights) > _N_MOMENT_DRAWS:
            steps = (np.arange(_N_MOMENT_DRAWS) + 0.5) / _N_MOMENT_DRAWS
            cumulative = np.cumsum(weights)
            rows = np.searchsorted(cumulative, steps * cumulative[-1])
            shares = np.bincount(rows, minlength=len(weights)) / _N_MOMENT_DRAWS
        chosen = shares > 0
        for column in self._members.T:
            has = np.flatnonzero((column >= 0) & (weights > 0))
            is_alive = self._is_alive(column[has])
            missing = is_alive.any(axis=0) & ~is_alive[chosen[has]].any(axis=0)
            while missing.any():
                best = int(np.argmax(is_alive[:, missing].sum(axis=1)))
                chosen[has[best]] = True
                missing &= ~is_alive[best]
        return np.flatnonzero(chosen), shares[chosen]

    @functools.cached_property
    def _moments(self):
        return self.moments_of(self._moment_draws[0])

    def moments_of(self, draws):
        """Conditional moments of some pooled draws (see `TrackMoments`)."""
        return track_moments(
            self.problem,
            self.model,
            self.design,
            self._places[draws],
            self._is_new[draws],
            self.draws.moment_std.ravel()[draws],
            self.draws.noise_std.reshape(len(self._places), -1)[draws],
        )

    @functools.cached_property
    def _members(self):
        score = self.draws.log_likelihood.ravel()
        return match_lives(self.lives, self._places, self._weights, self.problem.source_pos, score)

    @functools.cached_property
    def _tracks(self):
        """Members and estimate of each track, in order."""
        found = [(column, self._estimate(column)) for column in self._members.T]
        return sorted(found, key=lambda pair: -pair[1].probability * pair[1].explained_power)

    def _estimate(self, column):
        rows = np.flatnonzero((column >= 0) & (self._weights > 0))
        draws, shares = self._moment_draws
        own = np.flatnonzero(column[draws] >= 0)
        slots = self.lives.slot[column[draws[own]]]
        moments = moments_of_life(
            self._is_alive(column[draws[own]]),
            shares[own],
            *(values[own, :, slots] for values in self._moments[:3]),
        )
        members = column[rows]
        return estimate_track(
            self.problem,
            self._weights[rows],
            self._is_alive(members),
            self._places[rows, :, self.lives.slot[members]],
            moments,
            is_walking=self.model.motion != "static",
        )

    def _is_alive(self, members):
        """Whether each of some lives goes on at each sample: (n_members, n_times)."""
        samples = np.arange(self.problem.n_times)
        birth, death = self.lives.birth[members, None], self.lives.death[members, None]
        return (birth <= samples) & (samples < death)

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
        limits = {"tmin": times[0] if tmin is None else tmin}
        limits["tmax"] = times[-1] if tmax is None else tmax
        tmin, tmax = (
            float(check_array(name, value, shape=(), remedy="It is in s."))
            for name, value in limits.items()
        )
        # Times that are written in decimals may miss their sample by a rounding error.
        slack = 1e-3 * np.min(np.diff(times)) if len(times) > 1 else 0.0
        window = (times >= tmin - slack) & (times <= tmax + slack)
        if not window.any():
            raise ValueError(
                f"no sample lies between tmin = {tmin:g} and tmax = {tmax:g} s; the data last from "
                f"{times[0]:g} to {times[-1]:g} s."
            )
        return window
