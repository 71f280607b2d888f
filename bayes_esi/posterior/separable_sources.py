"""What factors of a separable posterior say of the sources: means, deviations, draws, kernels.

All answers are in A·m along the axes in which amplitudes are told: (n_sources, n_axes, n_times).
A mixture over hyper-parameters has the mean of its means, and as variance the mean of its
variances and the variance of its means.
"""

import functools

import jax
import numpy as np

from ..inference import kalman, separable
from ..models.autoregressive import kernel_of
from ..models.source_hyper import step_of
from ..models.source_prior import source_prior

__all__ = ["SeparableSources"]


class SeparableSources:
    """Answers of `SeparableMoments` on a problem.

    Parameters
    ----------
    problem : Problem
    model : GaussianSources or AutoregressiveSources
    moments : SeparableMoments
    is_filter : bool
        Whether each sample is conditioned on the past alone.
    observed : (n_times,) or (n_channels, n_times) bool array
    """

    def __init__(self, problem, model, moments, is_filter, observed, prior=None):
        self.problem, self.model, self.moments = problem, model, moments
        self.is_filter, self.observed = is_filter, observed
        self.prior = source_prior(model, problem) if prior is None else prior
        self._synthesis = (None, None)
        self._noise = (None, None)
        self._time_root = (None, None)

    def of(self, problem, moments):
        """The same answers of other data, with everything that does not depend on data kept."""
        other = object.__new__(SeparableSources)
        other.__dict__.update(self.__dict__)
        other.problem, other.moments = problem, moments
        return other

    @property
    def unit(self):
        """A·m of one inside unit of moments."""
        return self.problem.moment_unit

    @property
    def amplitude_field(self):
        """Lead field along the axes in which amplitudes are told: (rank, n_sources, n_axes)."""
        oriented = self.prior.field.lead_field
        field = self.problem.lead_field if oriented.shape[2] > 1 else oriented
        return np.asarray(field, np.float64)

    def synthesis(self, component=0):
        """B of a component: (n_sources, n_axes, rank). The last one asked for is kept."""
        if self._synthesis[0] != component:
            matrix = separable.synthesis(self.problem, self.prior, self.moments, component)
            self._synthesis = (component, matrix)
        return self._synthesis[1]

    def prior_variance(self, component=0):
        """Diagonal of R: (n_sources, n_axes)."""
        moments = self.moments
        return self.prior.variance(
            float(moments.depth[component]), float(moments.smoothness[component])
        )

    def mean(self):
        """Posterior mean."""
        total = sum(self._mean(c) for c in range(self.moments.n_components))
        return total * (self.unit / self.moments.n_components)

    def std(self):
        """Posterior standard deviation of each component at each sample."""
        first, second, variance = 0.0, 0.0, 0.0
        n = self.moments.n_components
        for c in range(n):
            variance = variance + separable.source_variance(
                self.synthesis(c), self.prior_variance(c), self.moments, c
            )
            if n > 1:
                mean = self._mean(c)
                first, second = first + mean, second + mean**2
        variance = variance / n
        if n > 1:
            variance = variance + np.maximum(second / n - (first / n) ** 2, 0.0)
        return self.unit * np.sqrt(np.maximum(variance, 0.0))

    def _mean(self, component):
        return np.asarray(
            separable.multiply(self.synthesis(component), self.moments.mean[component])
        )

    def lag_one_cov(self):
        """Posterior covariance of each component with itself one sample later.

        Returns
        -------
        (n_sources, n_axes, n_times - 1)
            In (A·m)^2; zero for a model without a law in time.
        """
        moments, theta = self.moments, self.theta(0)
        shape = (*self.prior_variance().shape, self.problem.n_times - 1)
        if not self._is_dynamic:
            return np.zeros(shape)
        kernel = kernel_of(self.model.kernel, theta, step_of(self.problem))
        scale = (float(theta["source_std"]) / self.unit) ** 2
        signal_var = scale * moments.eigenvalues[0]
        z = moments.analysis[0] @ np.asarray(self.problem.data, np.float64)
        one = np.ones((), z.dtype)
        smoothed = kalman.smooth_moments(z, signal_var, one, kernel, self.observed)
        lagged = np.diagonal(np.asarray(_covariance(kernel, self.problem.n_times)), 1)
        told = lagged * signal_var[:, None] - np.asarray(smoothed.lag_one_cov, np.float64)
        prior = scale * self.prior_variance()[:, :, None] * lagged
        return self.unit**2 * (prior - np.asarray(separable.multiply(self.synthesis() ** 2, told)))

    def along(self, sources, directions):
        """Mean and standard deviation of moments along fixed directions.

        Parameters
        ----------
        sources : (n,) int array
        directions : (n, n_axes) array
            Unit vectors.

        Returns
        -------
        mean, std : (n, n_times) arrays
            In A·m.
        """
        moments, means, variance = self.moments, [], 0.0
        for c in range(moments.n_components):
            growth = moments.prior_variance[c]
            synthesis = np.einsum("na,nar->nr", directions, self.synthesis(c)[sources])
            prior = self.prior.variance_along(
                float(moments.depth[c]), float(moments.smoothness[c]), sources, directions
            )
            if moments.cov is None:
                told = growth * moments.eigenvalues[c][:, None] - moments.variance[c]
                reduction = synthesis**2 @ np.maximum(told, 0.0)
            else:
                told = growth[:, None, None] * np.diag(moments.eigenvalues[c]) - moments.cov
                reduction = np.einsum("nr,trq,nq->nt", synthesis, told, synthesis, optimize=True)
            means.append(synthesis @ moments.mean[c])
            variance = variance + prior[:, None] * growth - reduction
        variance = np.maximum(variance / moments.n_components, 0.0) + np.var(means, axis=0)
        return self.unit * np.mean(means, axis=0), self.unit * np.sqrt(variance)

    def fitted(self):
        """Whitened field of the posterior mean: (rank, n_times)."""
        pairs = zip(self.moments.analysis, self.moments.mean, strict=True)
        return np.mean([np.linalg.solve(a, m) for a, m in pairs], axis=0)

    # ---------------------------------------------------------------- draws

    def sample(self, key, n_draws, sources=None):
        """Draws of whole courses: (n_draws, n_chosen, n_axes, n_times).

        Draws of the prior, corrected by the posterior mean of what differs (Matheron's rule). Of a
        filter, each sample has its own posterior but samples do not make one course.
        """
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        sources = np.arange(self.problem.n_sources) if sources is None else np.asarray(sources)
        components = np.sort(rng.integers(self.moments.n_components, size=n_draws))
        draws = np.array([self._draw(rng, int(c), sources) for c in components])
        return self.unit * draws[rng.permutation(n_draws)]

    def _draw(self, rng, component, sources):
        moments = self.moments
        depth, smoothness = float(moments.depth[component]), float(moments.smoothness[component])
        theta = self.theta(component)
        n_times = self.problem.n_times
        white = self.prior.draw(rng, depth, smoothness, n_times)
        scale = float(moments.source_std[component]) / self.unit
        path = scale * (white if not self._is_dynamic else white @ self._root(component).T)
        signal = np.tensordot(self.amplitude_field, path, axes=2)
        analysis = moments.analysis[component]
        noise = rng.standard_normal(signal.shape)
        z = analysis @ signal + noise
        target = analysis @ np.asarray(self.problem.data, np.float64)
        mean = separable.course_moments(
            self.model,
            self.problem,
            theta,
            analysis,
            target - z,
            scale**2 * moments.eigenvalues[component],
            self.is_filter,
            self.observed,
        ).mean
        return path[sources] + self.synthesis(component)[sources] @ mean

    @property
    def _is_dynamic(self):
        return hasattr(self.model, "kernel")

    def theta(self, component):
        """Hyper-parameters of a component by name."""
        moments = self.moments
        theta = {
            name: getattr(moments, name)[component]
            for name in ("source_std", "noise_std", "depth", "smoothness")
        }
        return theta | {name: values[component] for name, values in moments.time.items()}

    def _root(self, component):
        """Square root of the prior covariance in time: (n_times, n_times). The last is kept."""
        if self._time_root[0] != component:
            kernel = kernel_of(self.model.kernel, self.theta(component), step_of(self.problem))
            covariance = np.asarray(_covariance(kernel, self.problem.n_times), np.float64)
            eigenvalues, vectors = np.linalg.eigh(covariance)
            root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
            self._time_root = (component, root)
        return self._time_root[1]

    # ---------------------------------------------------------------- the linear map

    def noise_variance(self):
        """Variance that noise alone gives to the estimate: (n_sources, n_axes, n_times or 1)."""
        gain = self._short(self.moments.noise_gain[0])
        if self._noise[0] is None or not np.array_equal(self._noise[0], gain):
            variance = np.asarray(separable.multiply(self.synthesis() ** 2, gain))
            self._noise = (gain, self.unit**2 * variance)
        return self._noise[1]

    def estimate_cov(self):
        """Covariance of the estimate under the model, prior less posterior, by source.

        Returns
        -------
        (n_sources, n_axes, n_axes, n_times or 1)
        """
        moments = self.moments
        told = moments.prior_variance[0] * moments.eigenvalues[0][:, None] - moments.variance[0]
        told = self._short(np.maximum(told, 0.0))
        synthesis = self.synthesis()
        pairs = synthesis[:, :, None, :] * synthesis[:, None, :, :]
        return self.unit**2 * np.asarray(separable.multiply(pairs, told))

    def _short(self, values):
        """A single column where all samples are alike."""
        is_constant = np.allclose(values, values[:, :1], rtol=1e-12, atol=0)
        return values[:, :1] if is_constant else values

    def kernel(self, course="sustained"):
        """The estimator as one matrix from whitened data: (n_sources, n_axes, rank), in A·m.

        Parameters
        ----------
        course : str
            "sustained": the answer in the middle of the window to a field that lasts throughout
            it; "impulse": to a field of that one sample. The same for static models.
        """
        theta, moments = self.theta(0), self.moments
        n_times = self.problem.n_times
        middle = n_times // 2
        shape = np.ones(n_times) if course == "sustained" else np.eye(n_times)[middle]
        scale = float(moments.source_std[0]) / self.unit
        unit_course = np.tile(shape, (len(moments.eigenvalues[0]), 1))
        signal_var = scale**2 * moments.eigenvalues[0]
        gain = separable.course_moments(
            self.model,
            self.problem,
            theta,
            moments.analysis[0],
            unit_course,
            signal_var,
            self.is_filter,
            np.ones(n_times, bool),
        ).mean[:, middle]
        return self.unit * ((self.synthesis() * gain) @ moments.analysis[0])


@functools.partial(jax.jit, static_argnums=1)
def _covariance(kernel, n_times):
    return kernel.covariance(n_times)
