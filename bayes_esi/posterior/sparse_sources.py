"""What variances of sources say: means, deviations and draws of the Gaussian given these.

Answers are in A·m along the axes in which amplitudes are told: (n_sources, n_axes, n_times).
A mixture over draws of the variances has the mean of its means, and as variance the mean of its
variances and the variance of its means.
"""

import functools

import jax
import numpy as np

from ..inference import block_moments
from ..models.orientation import orient
from ..sources.patches import pattern_fields

__all__ = ["SparseSources"]

# Draws that share one factorisation.
_TOGETHER = 16


class SparseSources:
    """Answers of `SparseMoments` on a problem.

    Parameters
    ----------
    problem : Problem
    model : GroupSparseSources or HierarchicalSources
    moments : SparseMoments
    """

    def __init__(self, problem, model, moments):
        self.problem, self.moments = problem, moments
        self.field = orient(problem, model.loose)

    @property
    def _n_times(self):
        return self.problem.n_times

    @property
    def unit(self):
        """A·m of one inside unit of moments."""
        return self.problem.moment_unit

    def mean(self):
        """The estimate: that of the method, or the mean of the Gaussian."""
        return self.unit * self._told(self._components)

    def std(self):
        """Standard deviation under the variances; zero for sources that have none."""
        frames = self.field.own_frames

        def variance(law):
            if self._is_plain:
                return block_moments.variance(law)
            covs = [block_moments.cov_at(law, t) for t in range(law.told.shape[1])]
            return np.stack([np.einsum("nad,nde,nae->na", frames, c, frames) for c in covs], -1)

        return self.unit * np.sqrt(self._spread(variance, self._told))

    def along(self, sources, directions):
        """Mean and standard deviation of moments along unit vectors: (n, n_times) each."""
        own = np.einsum("na,nad->nd", directions, self.field.own_frames[sources])

        def project(components):
            return np.einsum("nd,ndt->nt", own, components[sources])

        def variance(law):
            covs = [block_moments.cov_at(law, t)[sources] for t in range(law.told.shape[1])]
            return np.stack([np.einsum("nd,nde,ne->n", own, c, own) for c in covs], -1)

        deviation = np.sqrt(self._spread(variance, project))
        return self.unit * project(self._components), self.unit * deviation

    def fitted(self):
        """Whitened field of the estimate: (rank, n_times)."""
        return np.tensordot(np.asarray(self.field.lead_field, float), self._components, axes=2)

    def field_power(self, sources):
        """Power of the whitened fields of some sources, summed over samples: (n,)."""
        field = self.field.lead_field[:, sources]
        return block_moments.field_power(field, self._components[sources])

    def sample(self, key, n_draws, sources=None):
        """Draws of whole courses given the variances: (n_draws, n_chosen, n_axes, n_times).

        Draws of the prior, corrected by the posterior mean of what differs (Matheron's rule).
        """
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        sources = np.arange(self.problem.n_sources) if sources is None else np.asarray(sources)
        shift = self._components - self._gaussian_mean if self._is_shifted else 0.0
        components = np.sort(rng.integers(len(self.moments.source_var), size=n_draws))
        draws = np.zeros((n_draws, len(sources), *self.field.lead_field.shape[2:], self._n_times))
        for c in np.unique(components):
            own = np.flatnonzero(components == c)
            for some in np.split(own, np.arange(_TOGETHER, len(own), _TOGETHER)):
                draws[some] = (self._draw(rng, c, len(some)) + shift)[:, sources]
        draws = rng.permutation(draws)
        frames = self.field.own_frames[sources]
        return self.unit * np.einsum("nad,kndt->knat", frames, draws)

    # ---------------------------------------------------------------- components

    @property
    def _is_shifted(self):
        """Whether the estimate is another than the mean of the Gaussian."""
        return self.moments.estimate is not None

    @functools.cached_property
    def _gaussian_mean(self):
        n_components = len(self.moments.source_var)
        return sum(self._mean(c, self.problem.data) for c in range(n_components)) / n_components

    def _mean(self, component, data):
        parts = [block_moments.mean(law) for law in self._laws(component, data)]
        return np.concatenate(parts, axis=2)

    def _spread(self, variance, tell):
        """Variance of a mixture, from that of each law and from what is told of means."""
        n_components = len(self.moments.source_var)
        within, first, second = 0.0, 0.0, 0.0
        for c in range(n_components):
            laws = list(self._laws(c, self.problem.data))
            parts = [np.maximum(variance(law), 0.0) for law in laws]
            lengths = [law.weights.shape[1] for law in laws]
            parts = [
                np.broadcast_to(own, (*own.shape[:-1], n))
                for own, n in zip(parts, lengths, strict=True)
            ]
            within = within + np.concatenate(parts, axis=-1)
            if n_components > 1:
                mean = tell(np.concatenate([block_moments.mean(law) for law in laws], axis=2))
                first, second = first + mean, second + mean**2
        if n_components > 1:
            within = within + np.maximum(second - first**2 / n_components, 0.0)
        return within / n_components

    @functools.cached_property
    def _components(self):
        """The estimate in components of the prior: (n_sources, d, n_times)."""
        if not self._is_shifted:
            return self._gaussian_mean
        whole = np.zeros((self.problem.n_sources, *self.moments.estimate.shape[1:]))
        whole[self.moments.support] = self.moments.estimate
        return whole

    @property
    def _is_plain(self):
        """Whether components are along the axes in which amplitudes are told."""
        frames = self.field.own_frames
        return bool(np.all(frames == np.eye(frames.shape[1])))

    def _told(self, components):
        return np.einsum("nad,ndt->nat", self.field.own_frames, components)

    @functools.cached_property
    def _strength_field(self):
        """Field of what has a variance: of the sources, or of patterns of them."""
        if self.moments.patterns is None:
            return np.asarray(self.field.lead_field, float)
        return pattern_fields(self.field.lead_field, self.moments.patterns)

    def _laws(self, component, data):
        moments = self.moments
        laws = block_moments.condition_each(
            np.asarray(data, float),
            self._strength_field,
            moments.source_var[component],
            moments.noise_var[component],
            moments.coefficient,
        )
        if moments.patterns is None:
            return laws
        return (block_moments.over_patterns(law, moments.patterns) for law in laws)

    def _draw(self, rng, component, n_draws):
        """Draws under one set of variances: (n_draws, n_sources, d, n_times)."""
        moments, field = self.moments, self._strength_field
        laws = moments.source_var[component]
        white = rng.standard_normal((n_draws, *field.shape[1:], self._n_times))
        if moments.coefficient:
            lags = np.abs(np.subtract.outer(*[np.arange(self._n_times)] * 2))
            white = white @ np.linalg.cholesky(moments.coefficient**lags).T
        drawn = np.concatenate(
            [
                _scaled(own, white if len(laws) == 1 else white[..., t : t + 1])
                for t, own in enumerate(laws)
            ],
            axis=3,
        )
        noise = rng.standard_normal((len(field), n_draws, self._n_times))
        noise = np.sqrt(moments.noise_var[component])[:, None, None] * noise
        seen = np.einsum("mnd,kndt->mkt", field, drawn, optimize=True)
        rest = self.problem.data[:, None] - seen - noise  # (m, n_draws, n_times)
        if moments.patterns is not None:
            by_source = moments.patterns @ np.moveaxis(drawn, 0, 1).reshape(field.shape[1], -1)
            shape = (-1, n_draws, field.shape[2], self._n_times)
            drawn = np.moveaxis(by_source.reshape(shape), 1, 0)
        return drawn + self._correction(component, rest)

    def _correction(self, component, rest):
        """Means given other data (m, n_draws, n_times): (n_draws, n_sources, d, n_times)."""
        m, n_draws, n_times = rest.shape
        if self.moments.coefficient:
            return np.stack([self._mean(component, rest[:, i]) for i in range(n_draws)])
        if len(self.moments.source_var[component]) == 1:
            mean = self._mean(component, rest.reshape(m, -1))
            return np.moveaxis(mean.reshape(*mean.shape[:2], n_draws, n_times), 2, 0)
        # A law for each sample, which serves all draws of it.
        laws = self._laws(component, np.moveaxis(rest, 1, 2))
        return np.stack([np.moveaxis(block_moments.mean(law), 2, 0) for law in laws], axis=-1)


def _scaled(variances, white):
    """White numbers (..., n, d, n_times) with variances (n,) or covariances (n, d, d)."""
    if variances.ndim == 1:
        return np.sqrt(variances)[:, None, None] * white
    values, vectors = np.linalg.eigh(variances)
    return (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ white
