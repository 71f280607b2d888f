"""The posterior of distributed sources: moments, draws, statistics of the same solution."""

import dataclasses
import functools

import numpy as np

from ..core import ports
from ..core.checks import check_choice, check_count
from ..core.status import Status
from ..inference import separable
from ..models.problem import Problem
from ..sources.adjacency import source_spacing
from . import statistics
from .coupled_sources import CoupledAnswers, SteadyFilter
from .residuals import autocorrelation
from .separable_sources import SeparableSources

__all__ = ["KINDS", "QUANTITIES", "STATISTICS", "SourcePosterior"]

STATISTICS = ("dSPM", "sLORETA", "eLORETA")
QUANTITIES = ("mean", "std", *STATISTICS)
KINDS = ("overview", "courses", "map", "hyper", "regularisation", "resolution", "predictive")
_N_PEAKS = 5
_PEAK_DISTANCE = 3.0  # source spacings


@dataclasses.dataclass(frozen=True, eq=False)
class SourcePosterior:
    """What the data say about the moment of every source at every sample.

    Attributes
    ----------
    problem : Problem
    model : GaussianSources, AutoregressiveSources or CoupledSources
    method : str
    moments : SeparableMoments or CoupledMoments
        Factors that the answers come from.
    hyper : dict of str to array
        Hyper-parameters: known, at the largest evidence, or means of draws.
    hyper_std : dict of str to array
        Posterior standard deviations of the unknown ones; relative for scales, unless drawn.
    draws, sample_stats : dict of str to (n_chains, n_samples, ...) array
        Of the hyper-parameters, where they were drawn.
    log_evidence : float
        Log probability density of the data under the model, in nats, units of the data; integrated
        over unknown hyper-parameters.
    log_evidence_std : float
        Its numerical error.
    curve : RegularisationCurve or None
        How the scale was chosen, where it was the only unknown.
    observed : (n_times,) or (n_channels, n_times) bool array
        Which samples were used, of all or of each channel.
    status : Status
    """

    problem: Problem
    model: object
    method: str
    moments: object
    hyper: dict
    hyper_std: dict
    draws: dict
    sample_stats: dict
    log_evidence: float
    log_evidence_std: float
    curve: object
    observed: np.ndarray
    status: Status

    # ---------------------------------------------------------------- sources

    @functools.cached_property
    def answers(self):
        """The object that computes from the factors."""
        is_filter = self.method in ("kalman_filter", "block_diagonal")
        if not self.is_separable:
            return CoupledAnswers(self.problem, self.model, self.moments, self.hyper, is_filter)
        return SeparableSources(self.problem, self.model, self.moments, is_filter, self.observed)

    @property
    def is_separable(self):
        """Whether time and space separate: true of all models but `CoupledSources`."""
        return isinstance(self.moments, separable.SeparableMoments)

    @property
    def names(self):
        """What `mean` and `std` are, in words."""
        return {"mean": "posterior mean", "std": "posterior std"}

    @functools.cached_property
    def mean(self):
        """Posterior mean: (n_sources, n_orient, n_times), in A·m.

        Along the axes of space for free and loose orientations, along the normals (or the one
        orientation of the lead field) for fixed ones.
        """
        return self.answers.mean()

    @functools.cached_property
    def std(self):
        """Posterior standard deviation: (n_sources, n_orient, n_times), in A·m."""
        return self.answers.std()

    @functools.cached_property
    def lag_one_cov(self):
        """Posterior covariance of each component with itself one sample later, in (A·m)^2.

        (n_sources, n_orient, n_times - 1), of a smoother at one set of scales: what an EM step or
        a test of dynamics needs beside `mean` and `std`.
        """
        self._check_separable("lag_one_cov")
        self._check_single("lag_one_cov")
        if self.method == "kalman_filter" or self.moments.cov is not None:
            raise ValueError(
                "lag_one_cov belongs to a smoother that knows missing samples at most; infer with "
                "method='kalman_smoother'."
            )
        return self.answers.lag_one_cov()

    @property
    def lambda2(self):
        """The Tikhonov parameter 1 / SNR^2 in MNE's scaling that the scales amount to."""
        self._check_separable("lambda2")
        eigenvalues = self.moments.eigenvalues[0]
        scale = float(self.hyper["source_std"]) / self.problem.moment_unit
        return float(eigenvalues.size / eigenvalues.sum() / scale**2)

    def sample(self, key, n_draws=1, *, sources=None):
        """Draw whole courses from the posterior.

        Parameters
        ----------
        key : PRNG key
        n_draws : int
        sources : int array, optional
            Which sources to return; by default all.

        Returns
        -------
        (n_draws, n_sources, n_orient, n_times) array
            In A·m. Of a filter, samples are right one by one, not as courses.
        """
        return self.answers.sample(key, check_count("n_draws", n_draws), sources)

    def statistic(self, name="dSPM"):
        """A statistic of the same solution.

        Parameters
        ----------
        name : str
            "dSPM": the estimate over the standard deviation that noise alone gives to it.
            "sLORETA": over its standard deviation under the model, with the full block of each
            source. "eLORETA": the estimate (in A·m) under weights that locate single sources
            without error, at the same `lambda2`, noise level and law in time. Of `CoupledSources`:
            "standardised", the filtered mean over the deviation of its update.

        Returns
        -------
        (n_sources, n_times) array
            Signed for one orientation, else magnitudes.

        Notes
        -----
        For a model with dynamics all three refer to its linear map from all samples to the estimate
        at one; for static models they are the published statistics.

        References
        ----------
        Dale et al. 2000, doi:10.1016/S0896-6273(00)81138-1 (dSPM); Pascual-Marqui 2002, Methods
        Find Exp Clin Pharmacol 24D:5-12 (sLORETA); Pascual-Marqui 2007, arXiv:0710.3341 (eLORETA).
        """
        if not self.is_separable:
            check_choice("name", name, ("standardised",))
            return self.answers.standardised()
        check_choice("name", name, STATISTICS)
        self._check_single(name)
        if self.moments.cov is not None:
            raise ValueError(
                f"{name} is not defined where channels are missing at some samples; leave those "
                "samples or channels out."
            )
        if name == "dSPM":
            variance = self.answers.noise_variance()
            return statistics.dspm(
                self.mean, variance[..., 0] if variance.shape[2] == 1 else variance
            )
        if name == "sLORETA":
            return self._standardised(self.answers.estimate_cov())
        mean = self._eloreta.mean()
        return mean[:, 0] if mean.shape[1] == 1 else np.linalg.norm(mean, axis=1)

    def _standardised(self, cov):
        """Standardise by blocks (n_sources, n_axes, n_axes, n_times or 1)."""
        if cov.shape[3] == 1:
            return statistics.sloreta(self.mean, cov[..., 0])
        columns = [
            statistics.sloreta(self.mean[..., t : t + 1], cov[..., t])
            for t in range(self.problem.n_times)
        ]
        return np.concatenate(columns, axis=1)

    @functools.cached_property
    def _eloreta(self):
        from .eloreta_sources import eloreta_sources

        return eloreta_sources(self)

    def apply(self, problem):
        """Condition on other data of the same sensors and sources, at the same hyper-parameters.

        What does not depend on data is shared: for single trials, or conditions, this is the
        inverse operator of the minimum-norm family.

        Parameters
        ----------
        problem : Problem
            With the lead field and whitener of this one; as many samples.

        Returns
        -------
        SourcePosterior
            Its `log_evidence` is that of the data at these hyper-parameters.

        Raises
        ------
        ValueError
            If the problem has another lead field, noise, or number of samples.
        """
        self._check_separable("An inverse operator for other data")
        own = self.problem
        is_same = problem.data.shape == own.data.shape and all(
            a is b or np.array_equal(a, b)
            for a, b in (
                (problem.lead_field, own.lead_field),
                (problem.whitener, own.whitener),
                (problem.moment_unit, own.moment_unit),
            )
        )
        if not is_same:
            raise ValueError(
                "problem must have the lead field, the whitener and the number of samples of the "
                "posterior's own; infer anew for another."
            )
        answers = self.answers
        thetas = [answers.theta(c) for c in range(self.moments.n_components)]
        moments, log_evidence = separable.recondition(
            self.model,
            problem,
            self.moments,
            thetas,
            is_filter=answers.is_filter,
            observed=self.observed,
        )
        other = dataclasses.replace(
            self,
            problem=problem,
            moments=moments,
            log_evidence=log_evidence,
            log_evidence_std=0.0,
            curve=None,
        )
        other.__dict__["answers"] = answers.of(problem, moments)
        return other

    def stream(self):
        """Return the online filter at the hyper-parameters of this posterior.

        Returns
        -------
        OnlineFilter or SteadyFilter
            ``state = f.init()``, then ``state, now = f.step(state, sample)`` for each sample. Of
            `CoupledSources` with the steady gain.
        """
        from .stream import OnlineFilter

        if not self.is_separable:
            return SteadyFilter(self)
        self._check_single("An online filter")
        return OnlineFilter(self)

    def _check_separable(self, what):
        if not self.is_separable:
            raise ValueError(
                f"{what} belongs to models whose time and space separate, such as "
                f"AutoregressiveSources; this posterior is of {type(self.model).__name__}."
            )

    def _check_single(self, what):
        if self.moments.n_components > 1:
            raise ValueError(
                f"{what} needs one set of scales, and this posterior mixes many; infer with "
                f"{'kalman_smoother' if hasattr(self.model, 'kernel') else 'closed_form'} instead."
            )

    def resolution(self, course="sustained"):
        """Point-spread and cross-talk functions of the estimate, from factors.

        Parameters
        ----------
        course : str
            For models with dynamics: the answer in the middle of the window to a source that is
            active throughout it ("sustained") or for that one sample ("impulse").

        Returns
        -------
        Resolution
        """
        from .resolution import Resolution

        check_choice("course", course, ("sustained", "impulse"))
        self._check_separable("A resolution matrix")
        self._check_single("A resolution matrix")
        kernel = self.answers.kernel(course) / self.problem.moment_unit
        return Resolution(kernel, self.answers.amplitude_field, self.problem.source_pos)

    # ---------------------------------------------------------------- reports

    @functools.cached_property
    def fitted(self):
        """Whitened field of the posterior mean: (rank, n_times)."""
        return self.answers.fitted()

    @functools.cached_property
    def residual_autocorrelation(self):
        """Correlation of neighbouring samples of the residual; 0 for noise white in time."""
        return autocorrelation(self.problem.data - self.fitted)

    @functools.cached_property
    def peaks(self):
        """Sources whose mean stands out most from its deviation in their surroundings, best first.

        Peaks are three source spacings apart at least: neighbours tell of one blur.

        Returns
        -------
        (n_peaks,) int array
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.sqrt(np.sum(self.mean**2, axis=1) / np.sum(self.std**2, axis=1))
        score = np.nan_to_num(score).max(axis=1)
        neighbours, pos = self.problem.neighbours, self.problem.source_pos
        around = np.where(neighbours >= 0, score[np.maximum(neighbours, 0)], -np.inf).max(axis=1)
        places = np.flatnonzero(score >= around)
        places = places[np.argsort(-score[places], kind="stable")]
        apart, kept = _PEAK_DISTANCE * source_spacing(pos), []
        for place in places:
            if all(np.linalg.norm(pos[place] - pos[other]) > apart for other in kept):
                kept.append(place)
        return np.array(kept, dtype=int)

    def summary(self, n_peaks=_N_PEAKS):
        """Tabulate the sources that stand out most, each at its strongest sample.

        Returns
        -------
        pandas.DataFrame
            Positions in mm, times in s, moments in nA·m; ``.attrs`` has status, evidence and
            hyper-parameters.
        """
        import pandas as pd

        chosen = self.peaks[: check_count("n_peaks", n_peaks)]
        amplitude = np.linalg.norm(self.mean[chosen], axis=1)
        samples = amplitude.argmax(axis=1)
        top = amplitude.max(axis=1)
        directions = np.array([self.mean[p, :, t] for p, t in zip(chosen, samples, strict=True)])
        directions = directions.reshape(len(chosen), self.mean.shape[1])
        directions = directions / np.maximum(top, 1e-300)[:, None]
        stds = self.answers.along(chosen, directions)[1]
        rows = []
        for i, (place, at) in enumerate(zip(chosen, samples, strict=True)):
            rows.append(
                {
                    "source": int(place),
                    **dict(
                        zip(
                            ("x_mm", "y_mm", "z_mm"),
                            1e3 * self.problem.source_pos[place],
                            strict=True,
                        )
                    ),
                    "peak_time_s": self.problem.times[at],
                    "peak_nAm": 1e9 * top[i],
                    "peak_std_nAm": 1e9 * stds[i, at],
                }
            )
        frame = pd.DataFrame(rows)
        frame.index = pd.RangeIndex(1, len(frame) + 1, name="peak")
        frame.attrs = {
            "status": self.status.name,
            "method": self.method,
            "log_evidence": self.log_evidence,
            "log_evidence_std": self.log_evidence_std,
            "hyper": {name: np.asarray(v).tolist() for name, v in self.hyper.items()},
            "residual_autocorrelation": self.residual_autocorrelation,
        }
        return frame

    def to_datatree(self, n_draws=100, *, sources=None, key=None):
        """Write the posterior as an ArviZ DataTree.

        Parameters
        ----------
        n_draws : int
            Draws of the sources.
        sources : int array, optional
            Whose draws to keep; by default the peaks of `summary`.
        key : PRNG key, optional

        Returns
        -------
        xarray.DataTree
            Groups posterior, posterior_predictive, observed_data, constant_data. Where
            hyper-parameters were drawn they are the posterior, with sample_stats, and courses
            have a group of that name; else posterior holds the courses.
        """
        from .source_diagnostics import to_datatree

        return to_datatree(self, check_count("n_draws", n_draws), sources, key)

    def diagnostics(self):
        """ArviZ summary (R-hat, effective sample size) of drawn hyper-parameters."""
        from .source_diagnostics import diagnostics

        return diagnostics(self)

    def to_mne(self, quantity="mean"):
        """Give a quantity as an MNE source estimate.

        Parameters
        ----------
        quantity : str
            "mean" or "std" (vector estimates if orientations are free), or a statistic.

        Returns
        -------
        mne.SourceEstimate, VolSourceEstimate, MixedSourceEstimate or their vector kinds
        """
        quantities = QUANTITIES if self.is_separable else ("mean", "std", "standardised")
        return ports.perform(self, "to_mne", check_choice("quantity", quantity, quantities))

    def plot(self, kind="overview", **kwargs):
        """Draw the posterior.

        Parameters
        ----------
        kind : str
            "overview", "courses", "map", "hyper", "regularisation", "resolution", "predictive"; of
            sources in the average head "cortex" and "glass_brain", too.
        **kwargs
            For the function of that name in `bayes_esi.viz`.

        Returns
        -------
        matplotlib.figure.Figure or Axes
        """
        kinds = (*self.kinds, "cortex", "glass_brain")
        return ports.perform(self, "plot", check_choice("kind", kind, kinds), **kwargs)

    @property
    def kinds(self):
        """Figures that this posterior has, of `KINDS`."""
        if not self.is_separable:
            return ("overview", "courses", "map")
        is_one_map = self.moments.n_components == 1 and self.moments.cov is None
        return tuple(kind for kind in KINDS if kind != "resolution" or is_one_map)

    def save(self, path):
        """Write everything to a NetCDF file that `bayes_esi.load` reads. Never pickle."""
        ports.perform(self, "save", path)

    def __repr__(self):
        learnt = "".join(f"{_told(name, self.hyper[name])}, " for name in self.hyper_std)
        return (
            f"<SourcePosterior | {self.method}, {self.status.name}: {self.problem.n_sources} "
            f"sources, {self.problem.n_times} samples, {learnt}log evidence "
            f"{self.log_evidence:.1f} ± {self.log_evidence_std:.1f}>"
        )


def _told(name, value):
    """A hyper-parameter in the unit that its users speak."""
    factor, unit = {"source_std": (1e9, " nA·m"), "time_scale": (1e3, " ms")}.get(name, (1.0, ""))
    values = " ".join(f"{factor * v:.3g}" for v in np.ravel(value))
    return f"{name} {values}{unit}"
