"""What sparse models say: which sources are active, and how strong, given that these are.

The estimate comes with the Gaussian around it under the variances that the method ended in
(`inference.sparse_inference`). Its deviations and draws do not know that other sources might be
active instead: inside the support they are too small, outside of it they are zero. They measure
how well the data fix the amplitudes of this support, not whether it is the right one. `gibbs` and
`nuts` draw the variances as well, and their deviations are those of the posterior; `gibbs` of
hierarchical sources draws which are active, and knows how probable that is of each.
"""

import dataclasses
import functools

import numpy as np

from ..core import ports
from ..core.checks import check_choice, check_count
from .sources import SourcePosterior
from .sparse_sources import SparseSources

__all__ = ["SparsePosterior"]

# Distance in m within which neighbours are told to share a probability.
NEARBY = 0.01
_CONDITION = "given the active sources and their variances"
# What methods end in that look for a most probable point, and what the others do.
_MODES = ("mixed_norm", "irmxne", "minimum_current", "tf_mxne", "ias")
ENDS = {
    "sparse_bayes": "variances of largest evidence",
    "multiple_sparse_priors": "variances of largest free energy",
    "maximum_entropy": "law nearest to its reference",
    "gibbs": "draws of variances",
    "nuts": "draws of variances",
}


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
        `minimum_current`, `ias`, `maximum_entropy`, `gibbs` and `nuts`, which have none.
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
        return self.method in _MODES

    @property
    def is_sampled(self):
        """Whether variances were drawn, so that deviations are those of the posterior."""
        return self.method in ("gibbs", "nuts")

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

        Of `ias`, `multiple_sparse_priors` and `maximum_entropy`, where sources are weak rather than
        zero: those whose fields carry 99 % of the power of all. Of samplers: those whose
        `exceedance_probability` is a half or more; of `gibbs` of hierarchical sources those of the
        most probable draw.
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
        """Probability that the field of each source exceeds the noise: (n_sources,).

        Of `gibbs` of GroupSparseSources, and of `nuts`. That is, |G_j X_j|^2 > rank(G_j) n_times
        in whitened units: more power than noise has in its directions. It is not the probability
        that a source is needed: these laws have no zeros, and fields of neighbours may cancel.
        """
        return self._drawn("exceedance", "GroupSparseSources")

    @property
    def inclusion_probability(self):
        """Posterior probability that each source is active: (n_sources,).

        Of `gibbs` of HierarchicalSources. Where fields of neighbours are alike it is shared among
        them; `prob_in` says how probable it is that any of them is active.
        """
        return self._drawn("inclusion", "HierarchicalSources")

    @property
    def n_active_pmf(self):
        """Posterior probability of each number of active sources: (max_active + 1,)."""
        active = self._drawn("active", "HierarchicalSources")
        number = np.sum(active >= 0, axis=1)
        return np.bincount(number, minlength=active.shape[1] + 1) / len(active)

    def prob_in(self, region):
        """Posterior probability that at least one source of a region is active.

        Parameters
        ----------
        region : (n_sources,) bool array, array of source numbers, or mne.Label
        """
        active = self._drawn("active", "HierarchicalSources")
        # Empty slots are -1: the source added here, which is in no region.
        inside = np.append(self.problem.mask(region), False)
        return float(np.mean(np.any(inside[active], axis=1)))

    def _prob_around(self, place):
        pos = self.problem.source_pos
        return self.prob_in(np.linalg.norm(pos - pos[place], axis=1) <= NEARBY)

    def _drawn(self, name, model):
        value = getattr(self.moments, name)
        if value is None:
            raise ValueError(
                f"{self.method} of {type(self.model).__name__} does not say how probable it is "
                f"that a source is active: infer {model} with method='gibbs', or StaticDipoles, "
                "whose `intensity` is the expected number of dipoles at each place."
            )
        return value

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
        places = frame["source"] if not frame.empty else []
        if self.moments.exceedance is not None:
            frame["exceedance_probability"] = self.moments.exceedance[places]
        if self.moments.inclusion is not None:
            frame["inclusion_probability"] = self.moments.inclusion[places]
            frame[f"prob_within_{1e3 * NEARBY:.0f}mm"] = [self._prob_around(p) for p in places]
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
            "mean", "std" as source estimates; "dipoles": an `mne.Dipole` for each active source;
            "labels": an `mne.Label` of the active sources of each hemisphere, whose values are
            largest moments in A·m.
        """
        check_choice("quantity", quantity, ("mean", "std", "dipoles", "labels"))
        return ports.perform(self, "to_mne", quantity)

    def __repr__(self):
        kind = "most probable sources" if self.is_mode else ENDS[self.method]
        condition = "" if self.is_sampled else f"; deviations {_CONDITION}"
        what = "active" if self.moments.exceedance is None else "above the noise"
        if self.moments.inclusion is not None:
            what = "active in the most probable draw"
        return (
            f"<SparsePosterior | {self.method}, {self.status.name}: {kind}, {len(self.support)} of "
            f"{self.problem.n_sources} {what}{condition}>"
        )
