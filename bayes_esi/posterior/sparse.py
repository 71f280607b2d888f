"""What sparse models say: which sources are active, and how strong, given that these are.

The estimate comes with the Gaussian around it under the variances that the method ended in
(`inference.sparse_inference`). Its deviations and draws do not know that other sources might be
active instead: inside the support they are too small, outside of it they are zero. They measure
how well the data fix the amplitudes of this support, not whether it is the right one. `gibbs` draws
the variances as well, and its deviations are those of the posterior.
"""

import dataclasses
import functools

import numpy as np

from ..core import ports
from ..core.checks import check_choice, check_count
from ..inference.sparse_inference import MODES
from .sources import SourcePosterior
from .sparse_sources import SparseSources

__all__ = ["SparsePosterior"]

_CONDITION = "given the active sources and their variances"


@dataclasses.dataclass(frozen=True, eq=False)
class SparsePosterior(SourcePosterior):
    """Sparse sources: an estimate, and what is known of it given the active sources.

    `mean`, `std`, `sample`, `to_mne`, `save` are those of `SourcePosterior`; of `mixed_norm`,
    `irmxne`, `minimum_current`, `tf_mxne` and `ias`, `mean` is a most probable point (debiased if
    asked for), not an average over a posterior.

    Attributes
    ----------
    moments : SparseMoments
    sample_stats : dict of str to array
        What fell along the iteration (objective, cost, energy), and the choice of alpha.
    log_evidence : float
        Log probability density of the data in nats, units of the data. Of norms: of data and active
        sources, by Laplace's method in their variances; a lower bound of the evidence. Of
        `sparse_bayes`: at the variances of largest evidence, an upper one. Of
        `multiple_sparse_priors`: the free energy, integrated over variances by Laplace. NaN of
        `minimum_current`, `ias` and `gibbs`, which have none.
    certificate : dict of str to float
        Relative duality gap, residual of the stationarity conditions, last gain of the search in
        nats or R-hat, and its limit.
    """

    certificate: dict

    @functools.cached_property
    def answers(self):
        """The object that computes from the moments."""
        return SparseSources(self.problem, self.model, self.moments)

    @property
    def is_separable(self):
        """False: no statistics, resolution or filter for streams."""
        return False

    @property
    def is_mode(self):
        """Whether `mean` is a most probable point and not an average."""
        return self.method in MODES

    @property
    def is_sampled(self):
        """Whether variances were drawn, so that deviations are those of the posterior."""
        return self.moments.exceedance is not None

    @property
    def names(self):
        """What `mean` and `std` are, in words."""
        if self.is_sampled:
            return super().names
        if self.is_mode:
            return {"mean": "most probable moment", "std": "std given active sources"}
        return {"mean": "mean given variances", "std": "std given variances"}

    @property
    def kinds(self):
        """Figures that this posterior has."""
        return ("overview", "courses", "map")

    @property
    def support(self):
        """Numbers of the active sources, increasing: (n_active,).

        Of `ias` and `multiple_sparse_priors`, where sources are weak rather than zero: those whose
        fields carry 99 % of the power of all. Of `gibbs`:
        those whose `exceedance_probability` is a half or more.
        """
        return self.moments.support

    @functools.cached_property
    def source_variance(self):
        """Prior variance of a component of each source that the method ended in: (n_sources,).

        In (A·m)^2; the mean over components of a full covariance, and over samples where each has
        its own.
        """
        variances, patterns = self.moments.source_var, self.moments.patterns
        if variances.ndim == 5:
            variances = np.trace(variances, axis1=3, axis2=4) / variances.shape[3]
        variances = variances.mean(axis=(0, 1))
        if patterns is not None:
            variances = patterns.multiply(patterns) @ variances
        return self.problem.moment_unit**2 * variances

    @property
    def exceedance_probability(self):
        """Probability that the field of each source exceeds the noise: (n_sources,). Of `gibbs`.

        That is, |G_j X_j|^2 > rank(G_j) n_times in whitened units: more power than noise has in
        its directions. It is not the probability that a source is needed: the law behind a mixed
        norm has no zeros, and fields of neighbours may cancel.
        """
        if not self.is_sampled:
            raise ValueError(
                f"{self.method} ends in one set of active sources and does not say how probable it "
                "is; infer GroupSparseSources with method='gibbs', or StaticDipoles, whose "
                "`intensity` is the expected number of dipoles at each place."
            )
        return self.moments.exceedance

    @functools.cached_property
    def peaks(self):
        """Active sources, that of the most powerful field first: (n_active,) int array.

        By the field and not the moment, which is large in depth for want of a field.
        """
        power = self.answers.field_power(self.support)
        return self.support[np.argsort(-power, kind="stable")]

    def statistic(self, name="dSPM"):
        """Refused: statistics of linear estimates do not apply to sparse ones."""
        self._check_separable(f"statistic({name!r})")

    def stream(self):
        """Refused: which sources are active is found from all samples."""
        self._check_separable("An online filter")

    def summary(self, n_peaks=5):
        """Tabulate active sources, strongest fields first, each at its strongest sample.

        Returns
        -------
        pandas.DataFrame
            As of `SourcePosterior`; ``.attrs`` also has what the deviations are conditional on,
            the number of active sources and the certificate.
        """
        frame = super().summary(check_count("n_peaks", n_peaks))
        if self.is_sampled and not frame.empty:
            frame["exceedance_probability"] = self.moments.exceedance[frame["source"]]
        frame.attrs |= {
            "deviations": "of the posterior" if self.is_sampled else _CONDITION,
            "is_mode": self.is_mode,
            "n_active": len(self.support),
            "certificate": dict(self.certificate),
        }
        return frame

    def to_mne(self, quantity="mean"):
        """Give a quantity as MNE objects.

        Parameters
        ----------
        quantity : str
            "mean", "std" as source estimates, or "dipoles": an `mne.Dipole` for each active source.
        """
        check_choice("quantity", quantity, ("mean", "std", "dipoles"))
        return ports.perform(self, "to_mne", quantity)

    def __repr__(self):
        kind = "most probable sources" if self.is_mode else "variances of largest evidence"
        condition = f"; deviations {_CONDITION}"
        if self.is_sampled:
            kind, condition = "draws of variances", ""
        what = "above the noise" if self.is_sampled else "active"
        return (
            f"<SparsePosterior | {self.method}, {self.status.name}: {kind}, {len(self.support)} of "
            f"{self.problem.n_sources} {what}{condition}>"
        )
