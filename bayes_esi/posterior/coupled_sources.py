"""What the moments of coupled sources say: means, deviations, draws, the online filter.

Answers are in A·m along the axes of the lead field: (n_sources, n_orient, n_times).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from ..core.checks import check_array
from ..inference import coupled_kalman, standardised, stationary_gain
from ..models.coupled import coupled_system

__all__ = ["CoupledAnswers", "CoupledSample", "SteadyFilter"]


class CoupledAnswers:
    """Answers of `CoupledMoments` on a problem.

    Parameters
    ----------
    problem : Problem
    model : CoupledSources
    moments : CoupledMoments
    hyper : dict
        Noise level, and process covariance where it was fitted.
    is_filter : bool
    """

    def __init__(self, problem, model, moments, hyper, is_filter):
        self.problem, self.moments, self.is_filter = problem, moments, is_filter
        system = coupled_system(model, problem)
        system = system._replace(noise_var=float(np.asarray(hyper["noise_std"])[0]) ** 2)
        if "process_cov" in hyper:
            cov = hyper["process_cov"] / problem.moment_unit**2
            system = system._replace(
                process_cov=sparse.csr_array(cov) if sparse.issparse(cov) else np.asarray(cov)
            )
        self.system = system

    @property
    def unit(self):
        """A·m of one inside unit of moments."""
        return self.problem.moment_unit

    def _arrange(self, states):
        shape = (*states.shape[:-2], self.problem.n_sources, self.problem.n_orient, -1)
        return self.unit * states.reshape(shape)

    def mean(self):
        """Posterior mean."""
        return self._arrange(self.moments.mean)

    def std(self):
        """Posterior standard deviation; its own relative error is in `moments.std_error`."""
        return self._arrange(self.moments.std)

    def along(self, sources, directions):
        """Mean of moments along fixed directions, and a bound of the standard deviation.

        Deviations are known along the axes alone: whatever the correlation between these, that
        along a direction is at most the sum of the axes' shares. See `SeparableSources.along`.
        """
        mean = np.einsum("na,nat->nt", directions, self.mean()[sources])
        return mean, np.einsum("na,nat->nt", np.abs(directions), self.std()[sources])

    def fitted(self):
        """Whitened field of the posterior mean: (rank, n_times)."""
        return np.asarray(self.system.lead_field @ self.moments.mean, np.float64)

    def sample(self, key, n_draws, sources=None):
        """Draws of whole courses: (n_draws, n_chosen, n_orient, n_times)."""
        if self.is_filter:
            raise ValueError(
                "a filter has no draws of whole courses; infer with method='kalman_smoother'."
            )
        gains = coupled_kalman.prepare(*self.system, self.problem.n_times, with_var=False)
        draws = self._arrange(
            coupled_kalman.sample(key, n_draws, np.asarray(self.problem.data), gains)
        )
        return draws if sources is None else draws[:, np.asarray(sources)]

    def standardised(self):
        """Standardised Kalman statistic of the filtered mean: (n_sources, n_times)."""
        found = standardised.run(np.asarray(self.problem.data), *self.system)
        values = found.statistic.reshape(self.problem.n_sources, self.problem.n_orient, -1)
        return values[:, 0] if values.shape[1] == 1 else np.linalg.norm(values, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class CoupledSample:
    """The posterior at one sample under the steady gain, given all samples so far.

    Attributes
    ----------
    mean, std : (n_sources, n_orient)
        In A·m.
    log_evidence_increment : float
        Log density of the sample given those before, in nats, units of the data.
    """

    mean: np.ndarray
    std: np.ndarray
    log_evidence_increment: float


class SteadyFilter:
    """Filters a stream of coupled sources with the steady gain.

    Parameters
    ----------
    posterior : SourcePosterior
        Of `CoupledSources`.

    Attributes
    ----------
    dare_residual : float
        Relative residual of the Riccati equation at the gain.

    Raises
    ------
    ValueError
        If the gain does not become steady.
    """

    def __init__(self, posterior):
        problem = posterior.problem
        self._answers = posterior.answers
        self._whitener = problem.whitener
        self._log_jacobian = problem.log_jacobian / problem.n_times
        self._solved = stationary_gain.solve(*self._answers.system)
        self.dare_residual = float(self._solved.dare_residual)

    @functools.cached_property
    def std(self):
        """Steady posterior standard deviation: (n_sources, n_orient), in A·m."""
        return self._shape(self._solved.filtered_std)

    def init(self):
        """State before the first sample."""
        return stationary_gain.init(self._solved)

    def step(self, state, sample):
        """Take in one sample.

        Parameters
        ----------
        state : state of `init` or of the step before
        sample : (n_channels,) array
            In data units.

        Returns
        -------
        state
        CoupledSample
        """
        sample = check_array("sample", sample, shape=(self._whitener.shape[1],))
        dtype = self._solved.model.lead_field.dtype
        white = jnp.asarray(self._whitener @ sample, dtype)
        state, info = stationary_gain.step(self._solved, state, white)
        increment = float(info.log_evidence_increment) + self._log_jacobian
        return state, CoupledSample(self._shape(info.mean), self.std, increment)

    def _shape(self, states):
        problem = self._answers.problem
        values = np.asarray(states, np.float64).reshape(problem.n_sources, problem.n_orient)
        return problem.moment_unit * values
