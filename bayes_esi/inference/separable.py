"""Posterior of separable Gaussian sources, kept as factors: nothing here has n_sources x n_times.

In sensor coordinates z = A data (A = U' D^-1/2, see `models.source_likelihood`) the signals
A G x_t are independent scalar processes s_t with prior variance s^2 k_t lambda_i. Given any set of
samples, x is seen through s_t alone:

    E x_t = B E s_t,      Cov x_t = s^2 k_t R - B diag(s^2 k_t lambda - v_t) B'

where B = R G' A' / lambda and v_t are the variances of s_t. Diagonals cost
O(n_sources rank n_times). Draws come by Matheron's rule: draw sources and data from the prior,
and correct by the posterior mean of the difference.

Reference: methods for Kronecker Gaussian processes, Solin et al. 2016, arXiv:1604.04931.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ..models.autoregressive import kernel_of
from ..models.source_hyper import step_of
from . import kalman, missing_channels

__all__ = [
    "Course",
    "SeparableMoments",
    "condition",
    "course_moments",
    "multiply",
    "recondition",
    "source_variance",
    "synthesis",
]

# Eigenvalues below this share of the largest are rounding. They are raised to it, not cut: B s does
# not depend on them where they are small, and what they carry is of the order of their root.
_ROUNDING = 1e-16


@dataclasses.dataclass(frozen=True, eq=False)
class SeparableMoments:
    """Sensor-space moments at some sets of hyper-parameters (components of a mixture).

    Attributes
    ----------
    analysis : (n_components, rank, rank)
        A: coordinates of whitened data.
    eigenvalues : (n_components, rank)
        lambda, at unit source scale.
    mean, variance, noise_gain : (n_components, rank, n_times)
        Of s, in the inside unit of moments; `noise_gain` is the variance that noise alone
        gives to the mean.
    prior_variance : (n_components, n_times)
        k_t times the squared source scale, in squared `moment_unit`.
    source_std, depth, smoothness : (n_components,)
        In A·m, -, -.
    noise_std : (n_components, n_groups)
    time : dict of str to (n_components, ...) array
        Hyper-parameters of the law in time.
    cov : (n_times, rank, rank) or None
        Of s, where channels are missing at some samples; `noise_gain` is then unknown (NaN).
    log_density : float or None
        There, of the good channels' data in their own units.
    """

    analysis: np.ndarray
    eigenvalues: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    noise_gain: np.ndarray
    prior_variance: np.ndarray
    source_std: np.ndarray
    depth: np.ndarray
    smoothness: np.ndarray
    noise_std: np.ndarray
    time: dict
    cov: np.ndarray | None = None
    log_density: float | None = None

    @property
    def n_components(self):
        """Sets of hyper-parameters."""
        return len(self.eigenvalues)


def condition(model, problem, prior, thetas, *, is_filter=False, observed=None):
    """Condition the sources on the data at given hyper-parameters.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem
    prior : SourcePrior
    thetas : sequence of dict
        Every hyper-parameter by name.
    is_filter : bool
        Whether samples after t are left out of the moments at t.
    observed : (n_times,) or (n_channels, n_times) bool array, optional

    Returns
    -------
    SeparableMoments
    """
    data = np.asarray(problem.data, np.float64)
    if observed is None:
        observed = np.ones(problem.n_times, bool)
    parts = []
    for theta in thetas:
        level = theta["noise_std"][problem.noise_group]
        gram = prior.gram(float(theta["depth"]), float(theta["smoothness"]))
        eigenvalues, basis = np.linalg.eigh(gram / np.outer(level, level))
        analysis = basis.T / level
        scale = (float(theta["source_std"]) / problem.moment_unit) ** 2
        eigenvalues = np.maximum(eigenvalues, _ROUNDING * eigenvalues[-1])
        course = course_moments(
            model,
            problem,
            theta,
            analysis,
            analysis @ data,
            scale * eigenvalues,
            is_filter,
            observed,
        )
        parts.append((analysis, eigenvalues, *course[:3], scale * course.growth))
    stacked = [np.stack(column) for column in zip(*parts, strict=True)]
    time_names = [name for name in thetas[0] if name in ("coefficient", "partial", "time_scale")]
    return SeparableMoments(
        *stacked,
        source_std=np.array([float(t["source_std"]) for t in thetas]),
        depth=np.array([float(t["depth"]) for t in thetas]),
        smoothness=np.array([float(t["smoothness"]) for t in thetas]),
        noise_std=np.array([t["noise_std"] for t in thetas]),
        time={name: np.array([t[name] for t in thetas]) for name in time_names},
        cov=course.cov,
        log_density=course.log_density,
    )


class Course(NamedTuple):
    """Moments of the signals behind coordinates z."""

    mean: np.ndarray  # (rank, n_times)
    variance: np.ndarray  # (rank, n_times)
    noise_gain: np.ndarray  # (rank, n_times); NaN where channels are missing
    growth: np.ndarray  # (n_times,): prior variance along time
    cov: np.ndarray | None = None  # (n_times, rank, rank) where channels are missing
    log_density: float | None = None  # there, of the good channels' data in their own units


def recondition(model, problem, moments, thetas, *, is_filter, observed):
    """Condition on other data of the same lead field and noise, at the same hyper-parameters.

    Returns
    -------
    moments : SeparableMoments
    log_evidence : float
        Log density of the data, averaged over the components, in the units of the data.
    """
    data = np.asarray(problem.data, np.float64)
    courses, densities = [], []
    for c, theta in enumerate(thetas):
        analysis = moments.analysis[c]
        scale = (float(theta["source_std"]) / problem.moment_unit) ** 2
        args = (analysis @ data, scale * moments.eigenvalues[c])
        course = course_moments(model, problem, theta, analysis, *args, is_filter, observed)
        courses.append((course, scale * course.growth))
        density = course.log_density
        if density is None:
            log_det = np.linalg.slogdet(analysis)[1] * observed.sum()
            density = log_det + problem.log_jacobian * observed.mean()
            density += _log_density(model, problem, theta, *args, observed)
        densities.append(density)
    last = courses[-1][0]
    moments = dataclasses.replace(
        moments,
        mean=np.stack([c.mean for c, _ in courses]),
        variance=np.stack([c.variance for c, _ in courses]),
        noise_gain=np.stack([c.noise_gain for c, _ in courses]),
        prior_variance=np.stack([growth for _, growth in courses]),
        cov=last.cov,
        log_density=last.log_density,
    )
    return moments, float(logsumexp(densities) - np.log(len(densities)))


def _log_density(model, problem, theta, z, signal_var, observed):
    if not hasattr(model, "kernel"):
        total = (signal_var + 1)[:, None]
        return -0.5 * np.sum(np.log(2 * np.pi * total) + z**2 / total)
    kernel = kernel_of(model.kernel, theta, step_of(problem))
    arrays = (jnp.asarray(z), jnp.asarray(signal_var), jnp.ones((), z.dtype), kernel)
    return float(kalman.log_likelihood(*arrays, jnp.asarray(observed)))


def course_moments(model, problem, theta, analysis, z, signal_var, is_filter, observed):
    """Moments of the signals behind coordinates z = analysis @ whitened data.

    Returns
    -------
    Course
    """
    n_times = z.shape[1]
    if observed.ndim == 2:
        dense = missing_channels.run(
            model, problem, theta, analysis, z, signal_var, ~observed, is_filter
        )
        log_jacobian = problem.log_jacobian + n_times * np.linalg.slogdet(analysis)[1]
        log_density = dense.log_likelihood + log_jacobian + dense.log_jacobian_change
        variance = np.diagonal(dense.cov, axis1=1, axis2=2).T
        unknown = np.full_like(dense.mean, np.nan)
        return Course(dense.mean, variance, unknown, dense.growth, dense.cov, log_density)
    if not hasattr(model, "kernel"):
        gain = (signal_var / (signal_var + 1))[:, None]
        shape = np.ones_like(z)
        return Course(gain * z, gain * shape, gain**2 * shape, np.ones(n_times))
    kernel = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x, z.dtype)),
        kernel_of(model.kernel, theta, step_of(problem)),
    )
    act = kalman.filter_moments if is_filter else kalman.smooth_moments
    moments = act(
        jnp.asarray(z),
        jnp.asarray(signal_var),
        jnp.ones((), jax.dtypes.canonicalize_dtype(z.dtype)),
        kernel,
        jnp.asarray(observed),
    )
    arrays = (moments.mean, moments.variance, moments.noise_gain, kernel.variance(n_times))
    return Course(*(np.asarray(a, np.float64) for a in arrays))


def synthesis(problem, prior, moments, component):
    """B: (n_sources, n_axes, rank), from signals to sources in `moment_unit`."""
    cross = prior.cross(float(moments.depth[component]), float(moments.smoothness[component]))
    right = moments.analysis[component].T / moments.eigenvalues[component]
    return np.asarray(multiply(cross, right))


def source_variance(synthesis, prior_variance, moments, component):
    """Variances of the sources: (n_sources, n_axes, n_times), in squared `moment_unit`.

    Parameters
    ----------
    synthesis : (n_sources, n_axes, rank) array
        B.
    prior_variance : (n_sources, n_axes) array
        Diagonal of R.
    moments : SeparableMoments
    component : int
    """
    growth = moments.prior_variance[component]
    if moments.cov is not None:
        return _dense_variance(synthesis, prior_variance, moments)
    told = growth * moments.eigenvalues[component][:, None] - moments.variance[component]
    return np.asarray(_variance(synthesis, prior_variance, growth, np.maximum(told, 0.0)))


def _dense_variance(synthesis, prior_variance, moments):
    """One sample after another, each with a covariance of its own."""
    columns = []
    for growth, cov in zip(moments.prior_variance[0], moments.cov, strict=True):
        told = np.diag(growth * moments.eigenvalues[0]) - cov
        columns.append(growth * prior_variance - np.sum((synthesis @ told) * synthesis, axis=2))
    return np.stack(columns, axis=2)


@jax.jit
def multiply(left, right):
    """Product over the last axis of `left` on all cores, or on the accelerator."""
    return jnp.tensordot(left, right, axes=1)


@jax.jit
def _variance(synthesis, prior_variance, growth, told):
    return prior_variance[:, :, None] * growth - jnp.square(synthesis) @ told
