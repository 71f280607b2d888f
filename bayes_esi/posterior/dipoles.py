"""The posterior of a few dipoles at unknown, fixed places."""

import dataclasses
import functools

import numpy as np
from scipy.special import logsumexp

from ..core import ports
from ..core.checks import check_choice, check_count
from ..core.status import Status
from ..models.orientation import orient
from ..models.problem import Problem
from ..models.static_dipoles import StaticDipoles
from .credible import credible_set, to_millilitres
from .matching import match
from .moments import conditional_moments
from .residuals import autocorrelation

__all__ = ["DipoleDraws", "DipoleEstimate", "DipolePosterior"]

# Draws whose moments are computed: the standard error of a mean over 1,000 draws is 3 % of the
# posterior standard deviation.
_N_MOMENT_DRAWS = 1000
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class DipoleDraws:
    """Draws of the posterior, equally weighted within each run.

    Attributes
    ----------
    places : (n_runs, n_draws, n_slots) int
        Source numbers.
    active : (n_runs, n_draws, n_slots) bool
        Which slots hold a dipole.
    moment_std : (n_runs, n_draws)
        In A·m.
    noise_std : (n_runs, n_draws, n_groups)
        Relative to the noise covariance.
    log_likelihood : (n_runs, n_draws)
        In the units of the data, moments integrated out.
    log_evidence : (n_runs,)
        In the units of the data.
    trace : dict of arrays (n_runs, ...)
        What the sampler tells of itself, padded with NaN where runs differ in length.
    n_dipoles_pmf, intensity : arrays or None
        Exact values where the method has them; otherwise they come from the draws.
    """

    places: np.ndarray
    active: np.ndarray
    moment_std: np.ndarray
    noise_std: np.ndarray
    log_likelihood: np.ndarray
    log_evidence: np.ndarray
    trace: dict
    n_dipoles_pmf: np.ndarray | None = None
    intensity: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class DipoleEstimate:
    """One dipole, matched across draws. All but `probability` are given that it exists.

    Attributes
    ----------
    probability : float
        That it exists.
    pos : (3,)
        Posterior mean position, in m.
    pos_cov : (3, 3)
        Posterior covariance of the position, in m^2. A source stands for a cell of the grid or
        of the cortex, within which the position is uniform (`Problem.cell_variance`).
    place_pmf : (n_sources,)
        Probability of each place.
    credible_set : (n_places,) int
        Smallest set of sources with 95 % of it, most probable first.
    credible_volume : float
        Volume of that set, in mL.
    moment_mean, moment_std : (n_axes, n_times)
        In A·m, along the axes of space (three), or along the one orientation of a lead field that
        came without normals.
    explained_power : float
        Whitened power of its field, summed over channels and samples.
    """

    probability: float
    pos: np.ndarray
    pos_cov: np.ndarray
    place_pmf: np.ndarray
    credible_set: np.ndarray
    credible_volume: float
    moment_mean: np.ndarray
    moment_std: np.ndarray
    explained_power: float


@dataclasses.dataclass(frozen=True, eq=False)
class DipolePosterior:
    """What the data say about the number, places and moments of dipoles.

    Attributes
    ----------
    problem : Problem
    model : StaticDipoles
    method : str
    draws : DipoleDraws
    status : Status
    """

    problem: Problem
    model: StaticDipoles
    method: str
    draws: DipoleDraws
    status: Status

    # ---------------------------------------------------------------- evidence and number

    @property
    def n_runs(self):
        """Independent repeats of the sampler."""
        return len(self.draws.log_evidence)

    @property
    def log_evidence(self):
        """Log probability density of the data under the model, in nats, units of the data."""
        return float(logsumexp(self.draws.log_evidence) - np.log(self.n_runs))

    @property
    def log_evidence_std(self):
        """Standard error of `log_evidence` from independent runs; NaN for a single run."""
        if self.method == "enumerate":
            return 0.0
        if self.n_runs == 1:
            return float("nan")
        return float(np.std(self.draws.log_evidence, ddof=1) / np.sqrt(self.n_runs))

    @functools.cached_property
    def n_dipoles_pmf(self):
        """Probability of each number of dipoles: (max_dipoles + 1,)."""
        if self.draws.n_dipoles_pmf is not None:
            return self.draws.n_dipoles_pmf
        numbers = self.draws.active.sum(axis=2).ravel()
        size = self.model.max_dipoles + 1
        return np.bincount(numbers, weights=self._weights, minlength=size)

    @functools.cached_property
    def intensity(self):
        """Expected number of dipoles at each source: (n_sources,)."""
        if self.draws.intensity is not None:
            return self.draws.intensity
        weights = np.broadcast_to(self._weights[:, None], self._active.shape)[self._active]
        return np.bincount(
            self._places[self._active], weights=weights, minlength=self.problem.n_sources
        )

    # ---------------------------------------------------------------- places

    def dipoles(self):
        """List the dipoles, the one that explains most of the data first.

        Returns
        -------
        list of DipoleEstimate
            Sorted by probability times explained power; empty if no draw has a dipole.
        """
        return list(self._dipoles)

    def credible_volume(self, level=_LEVEL):
        """Volume of the smallest set of sources with a share of the intensity, in mL."""
        chosen = credible_set(self.intensity, level)
        return to_millilitres(self.problem.source_volume[chosen].sum())

    def prob_in(self, region):
        """Probability that at least one dipole lies in a region.

        Parameters
        ----------
        region : (n_sources,) bool array, array of source numbers, or mne.Label
        """
        inside = self.problem.mask(region)[self._places] & self._active
        return float(np.sum(self._weights[inside.any(axis=1)]))

    def off_grid(self, key, n_dipoles=None, operator=None, **options):
        """Let a given number of dipoles move off the grid, by NUTS started here.

        Parameters
        ----------
        key : PRNG key
        n_dipoles : int, optional
            By default the most probable number.
        operator : callable, optional
            Whitened lead fields of positions, such as
            `bayes_esi.inference.off_grid_operator.head_operator`; by default the grid's lead field,
            interpolated.
        **options
            `n_warmup`, `n_samples`, `n_chains`, `target_acceptance`, `progress`.

        Returns
        -------
        OffGridPosterior
            With a `status` of its own.
        """
        from .off_grid import OffGridPosterior

        n_dipoles = int(np.argmax(self.n_dipoles_pmf)) if n_dipoles is None else n_dipoles
        options = {"n_dipoles": n_dipoles, **options}
        return OffGridPosterior.sample(key, self.model, self.problem, self, operator, **options)

    # ---------------------------------------------------------------- reports

    def summary(self):
        """Tabulate the dipoles: probability, position, its spread, credible volume, peak.

        Returns
        -------
        pandas.DataFrame
            One row for each dipole; positions and spreads in mm, volumes in mL, moments in
            nA·m, times in s. Run-wide figures are in ``.attrs``.
        """
        import pandas as pd

        rows = []
        for dipole in self.dipoles():
            amplitude = np.linalg.norm(dipole.moment_mean, axis=0)
            peak = int(np.argmax(amplitude))
            # Standard deviation along the direction of the moment at its peak.
            direction = dipole.moment_mean[:, peak] / max(amplitude[peak], 1e-300)
            rows.append(
                {
                    "probability": dipole.probability,
                    **dict(zip(("x_mm", "y_mm", "z_mm"), 1e3 * dipole.pos, strict=True)),
                    "spread_mm": 1e3 * np.sqrt(np.trace(dipole.pos_cov)),
                    "credible_volume_mL": dipole.credible_volume,
                    "peak_time_s": self.problem.times[peak],
                    "peak_nAm": 1e9 * amplitude[peak],
                    "peak_std_nAm": 1e9 * np.linalg.norm(direction * dipole.moment_std[:, peak]),
                }
            )
        frame = pd.DataFrame(rows)
        frame.index = pd.RangeIndex(1, len(frame) + 1, name="dipole")
        frame.attrs = {
            "status": self.status.name,
            "method": self.method,
            "log_evidence": self.log_evidence,
            "log_evidence_std": self.log_evidence_std,
            "n_dipoles_pmf": self.n_dipoles_pmf.tolist(),
            "residual_autocorrelation": self.residual_autocorrelation,
        }
        return frame

    @functools.cached_property
    def residual_autocorrelation(self):
        """Correlation of neighbouring samples of the residual; 0 for noise that is white in time.

        The model takes samples as independent. Where this is far from zero the data hold
        fewer independent samples than the model counts, and the posterior is too sure.
        """
        return autocorrelation(self.problem.data - self._moments.fitted.mean(axis=0))

    def to_datatree(self, n_draws=100):
        """Write the posterior as an ArviZ DataTree; independent runs are chains.

        Parameters
        ----------
        n_draws : int
            Draws kept of each run, evenly spaced.

        Returns
        -------
        xarray.DataTree
            Groups posterior, sample_stats, posterior_predictive, observed_data, log_likelihood.
        """
        from .diagnostics import to_datatree

        return to_datatree(self, check_count("n_draws", n_draws))

    def diagnostics(self):
        """ArviZ summary (R-hat, effective sample size) of number, scales and log likelihood."""
        from .diagnostics import diagnostics

        return diagnostics(self)

    def to_mne(self):
        """Give the dipoles and the intensity as MNE objects.

        Returns
        -------
        dipoles : list of mne.Dipole
        intensity : mne.SourceEstimate, VolSourceEstimate or MixedSourceEstimate
        """
        return ports.perform(self, "to_mne")

    def plot(self, kind="overview", **kwargs):
        """Draw the posterior.

        Parameters
        ----------
        kind : str
            "overview", "n_dipoles", "intensity", "moments", "predictive" or "trace"; of sources in
            the average head "cortex" and "glass_brain", too.
        **kwargs
            For the function of that name in `bayes_esi.viz`.

        Returns
        -------
        matplotlib.figure.Figure or Axes
        """
        kinds = ("overview", "n_dipoles", "intensity", "moments", "predictive", "trace")
        kinds += ("cortex", "glass_brain")
        return ports.perform(self, "plot", check_choice("kind", kind, kinds), **kwargs)

    def save(self, path):
        """Write everything to a NetCDF file that `bayes_esi.load` reads. Never pickle."""
        ports.perform(self, "save", path)

    def __repr__(self):
        best = int(np.argmax(self.n_dipoles_pmf))
        return (
            f"<DipolePosterior | {self.method}, {self.status.name}: {best} "
            f"dipole{'' if best == 1 else 's'} with probability {self.n_dipoles_pmf[best]:.2f}, "
            f"log evidence {self.log_evidence:.1f} ± {self.log_evidence_std:.1f}>"
        )

    # ---------------------------------------------------------------- what the answers share

    @functools.cached_property
    def run_weights(self):
        """Weight of each run in the pooled posterior: its share of the evidence."""
        log_weights = self.draws.log_evidence - logsumexp(self.draws.log_evidence)
        return np.exp(log_weights)

    @functools.cached_property
    def design(self):
        """The lead field in the coordinates of the model's moments."""
        return orient(self.problem, self.model.loose)

    @functools.cached_property
    def labels(self):
        """Slot of each of `dipoles()` in every pooled draw, -1 where absent."""
        score = self.draws.log_likelihood.ravel()
        slots = match(self._places, self._active, self._weights, self.problem.source_pos, score)
        if not slots.shape[1]:
            return slots
        power = np.array([self._label_power(column) for column in slots.T])
        return slots[:, np.argsort(-power, kind="stable")]

    @property
    def _weights(self):
        n_draws = self.draws.active.shape[1]
        return np.repeat(self.run_weights / n_draws, n_draws)

    @property
    def _places(self):
        return self.draws.places.reshape(-1, self.draws.places.shape[2])

    @property
    def _active(self):
        return self.draws.active.reshape(-1, self.draws.active.shape[2])

    @functools.cached_property
    def moment_draws(self):
        """Which pooled draws have their moments computed: evenly spaced over all runs."""
        n_pooled = len(self._active)
        return np.unique(np.linspace(0, n_pooled - 1, min(n_pooled, _N_MOMENT_DRAWS)).astype(int))

    @functools.cached_property
    def _moments(self):
        return self.moments_of(self.moment_draws)

    def moments_of(self, draws):
        """Conditional moments of some pooled draws (see `ConditionalMoments`)."""
        return conditional_moments(
            self.problem,
            self.design,
            self._places[draws],
            self._active[draws],
            self.draws.moment_std.ravel()[draws],
            self.draws.noise_std.reshape(len(self._active), -1)[draws],
        )

    def _label_power(self, column):
        """Expected whitened power of a label, zero where absent."""
        slots = column[self.moment_draws]
        rows = np.flatnonzero(slots >= 0)
        weights = self._weights[self.moment_draws]
        power = self._moments.power[rows, slots[rows]]
        return float(weights[rows] @ power / weights.sum())

    @functools.cached_property
    def _dipoles(self):
        return tuple(self._estimate(column) for column in self.labels.T)

    def _estimate(self, column):
        source_pos = self.problem.source_pos
        rows = np.flatnonzero(column >= 0)
        weights = self._weights[rows]
        probability = float(weights.sum())
        places = self._places[rows, column[rows]]
        pmf = np.bincount(places, weights=weights, minlength=len(source_pos)) / probability
        pos = pmf @ source_pos
        offset = source_pos - pos
        chosen = credible_set(pmf, _LEVEL)

        slots = column[self.moment_draws]
        rows = np.flatnonzero(slots >= 0)
        if not rows.size:  # so rare that no draw with moments has it
            rows = np.flatnonzero(column >= 0)[:_N_MOMENT_DRAWS]
            moments, slots = self.moments_of(rows), column[rows]
            weights, rows = self._weights[rows], np.arange(len(rows))
        else:
            moments, weights = self._moments, self._weights[self.moment_draws[rows]]
            slots = slots[rows]
        weights = weights / weights.sum()
        means = moments.mean[rows, slots]
        mean = np.tensordot(weights, means, axes=1)
        variance = np.tensordot(weights, (means - mean) ** 2, axes=1)
        variance += np.tensordot(weights, moments.std[rows, slots] ** 2, axes=1)[:, None]
        return DipoleEstimate(
            probability=min(probability, 1.0),
            pos=pos,
            pos_cov=(offset * pmf[:, None]).T @ offset
            + pmf @ self.problem.cell_variance * np.eye(3),
            place_pmf=pmf,
            credible_set=chosen,
            credible_volume=to_millilitres(self.problem.source_volume[chosen].sum()),
            moment_mean=mean,
            moment_std=np.sqrt(variance),
            explained_power=float(weights @ moments.power[rows, slots]),
        )
