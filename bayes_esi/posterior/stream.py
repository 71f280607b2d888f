"""The online filter of a fitted model: one sample in, the posterior of all sources out."""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array
from ..inference import online
from ..models.autoregressive import kernel_of
from ..models.source_hyper import step_of
from ..models.time_kernels import autoregressive

__all__ = ["OnlineFilter", "SourceSample"]


@dataclasses.dataclass(frozen=True, eq=False)
class SourceSample:
    """The posterior at one sample, given all samples so far.

    Attributes
    ----------
    log_evidence_increment : float
        Log density of the sample given those before, in nats, units of the data.
    """

    _filter: object
    _signal_mean: np.ndarray
    _signal_variance: np.ndarray
    _growth: float
    log_evidence_increment: float

    @functools.cached_property
    def mean(self):
        """Posterior mean: (n_sources, n_orient), in A·m. Cost O(n_sources n_orient rank)."""
        return self._filter.unit * (self._filter.synthesis @ self._signal_mean)

    @functools.cached_property
    def std(self):
        """Posterior standard deviation: (n_sources, n_orient), in A·m."""
        own = self._filter
        told = np.maximum(self._growth * own.eigenvalues - self._signal_variance, 0.0)
        variance = self._growth * own.prior_variance - own.squared @ told
        return own.unit * np.sqrt(np.maximum(variance, 0.0))


class _State(NamedTuple):
    """Where a stream stands."""

    kalman: online.State
    state_cov: np.ndarray  # prior covariance of the scalar law, for sources the sensors miss


class OnlineFilter:
    """Filters a stream with the hyper-parameters of a posterior.

    Parameters
    ----------
    posterior : SourcePosterior
        Of `GaussianSources` or `AutoregressiveSources`, at one set of hyper-parameters.

    Notes
    -----
    The filter continues neither the posterior's window nor its times: `init` starts before any
    sample, and samples come at the step of the problem's times.
    """

    def __init__(self, posterior):
        answers, moments = posterior.answers, posterior.moments
        problem = posterior.problem
        self.unit = answers.unit
        self.synthesis = answers.synthesis()
        self.eigenvalues = moments.eigenvalues[0]
        self.prior_variance = answers.prior_variance()
        self._analysis = moments.analysis[0] @ problem.whitener
        level = np.asarray(posterior.hyper["noise_std"])[problem.noise_group]
        self._log_jacobian = problem.log_jacobian / problem.n_times - np.sum(np.log(level))
        self._scale = (float(posterior.hyper["source_std"]) / self.unit) ** 2
        if hasattr(posterior.model, "kernel"):
            theta = answers.theta(0)
            self._kernel = kernel_of(posterior.model.kernel, theta, step_of(problem))
        else:
            self._kernel = autoregressive(0.0)

    @functools.cached_property
    def squared(self):
        """Squared entries of the map from signals to sources."""
        return self.synthesis**2

    def init(self):
        """State before the first sample."""
        state = online.init(self._scale * self.eigenvalues, 1.0, self._kernel)
        return _State(state, np.asarray(self._kernel.initial_cov, np.float64))

    def step(self, state, sample=None):
        """Take in one sample.

        Parameters
        ----------
        state : state of `init` or of the step before
        sample : (n_channels,) array, optional
            In data units, with the projectors of the problem or without: they are in its whitener.
            None for a sample that did not come.

        Returns
        -------
        state
        SourceSample

        Raises
        ------
        ValueError
            If the sample has another length or is not finite.
        """
        is_there = sample is not None
        n_channels = self._analysis.shape[1]
        if is_there:
            sample = check_array("sample", sample, shape=(n_channels,))
        z = self._analysis @ sample if is_there else np.zeros(len(self._analysis))
        kalman, info = online.step(state.kalman, jnp.asarray(z), np.array(is_there))
        transition, process = (
            np.asarray(a, np.float64) for a in (self._kernel.transition, self._kernel.process_cov)
        )
        found = SourceSample(
            self,
            np.asarray(info.mean, np.float64),
            np.asarray(info.variance, np.float64),
            self._scale * float(state.state_cov[0, 0]),
            float(info.log_evidence_increment) + self._log_jacobian * is_there,
        )
        return _State(kalman, transition @ state.state_cov @ transition.T + process), found
