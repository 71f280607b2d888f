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

import jax
import jax.numpy as jnp
import numpy as np

from ..models.autoregressive import kernel_of
from ..models.source_hyper import step_of
from . import kalman

__all__ = [
    "SeparableMoments",
    "condition",
    "course_moments",
    "multiply",
    "source_variance",
    "synthesis",
]

# Eigenvalues below this share of the largest carry no signal: their column of B is zero.
_RANK_TOLERANCE = 1e-13


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
    observed : (n_times,) bool array, optional

    Returns
    -------
    SeparableMoments
    """
    data = np.asarray(problem.data, np.float64)
    if observed is None:
        observed = np.ones(problem.n_times, bool)
    parts = []
    cached = {}
    for theta in thetas:
        level = theta["noise_std"][problem.noise_group]
        where = (float(theta["depth"]), float(theta["smoothness"]))
        if where not in cached:
            cached = {where: prior.gram(*where)}
        eigenvalues, basis = np.linalg.eigh(cached[where] / np.outer(level, level))
        analysis = basis.T / level
        scale = (float(theta["source_std"]) / problem.moment_unit) ** 2
        eigenvalues = np.maximum(eigenvalues, 0.0)
        mean, variance, noise_gain, growth = course_moments(
            model, problem, theta, analysis @ data, scale * eigenvalues, is_filter, observed
        )
        parts.append((analysis, eigenvalues, mean, variance, noise_gain, scale * growth))
    stacked = [np.stack(column) for column in zip(*parts, strict=True)]
    time_names = [name for name in thetas[0] if name in ("coefficient", "partial", "time_scale")]
    return SeparableMoments(
        *stacked,
        source_std=np.array([float(t["source_std"]) for t in thetas]),
        depth=np.array([float(t["depth"]) for t in thetas]),
        smoothness=np.array([float(t["smoothness"]) for t in thetas]),
        noise_std=np.array([t["noise_std"] for t in thetas]),
        time={name: np.array([t[name] for t in thetas]) for name in time_names},
    )


def course_moments(model, problem, theta, z, signal_var, is_filter, observed):
    """Moments of the signals behind coordinates z.

    Returns
    -------
    mean, variance, noise_gain : (rank, n_times)
    growth : (n_times,)
        k_t, the prior variance along time.
    """
    n_times = z.shape[1]
    if not hasattr(model, "kernel"):
        gain = (signal_var / (signal_var + 1))[:, None]
        seen = np.asarray(observed)[None, :]
        variance = np.where(seen, gain, signal_var[:, None])
        return gain * z * seen, variance, gain**2 * seen, np.ones(n_times)
    kernel = jax.tree.map(
        lambda x: jnp.asarray(x, z.dtype), kernel_of(model.kernel, theta, step_of(problem))
    )
    act = kalman.filter_moments if is_filter else kalman.smooth_moments
    moments = act(
        jnp.asarray(z),
        jnp.asarray(signal_var),
        jnp.ones((), z.dtype),
        kernel,
        jnp.asarray(observed),
    )
    arrays = (moments.mean, moments.variance, moments.noise_gain, kernel.variance(n_times))
    return tuple(np.asarray(a, np.float64) for a in arrays)


def synthesis(problem, prior, moments, component):
    """B: (n_sources, n_axes, rank), from signals to sources in `moment_unit`."""
    cross = prior.cross(float(moments.depth[component]), float(moments.smoothness[component]))
    eigenvalues = moments.eigenvalues[component]
    is_seen = eigenvalues > _RANK_TOLERANCE * eigenvalues.max()
    inverse = np.where(is_seen, 1 / np.where(is_seen, eigenvalues, 1.0), 0.0)
    right = moments.analysis[component].T * inverse
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
    told = growth * moments.eigenvalues[component][:, None] - moments.variance[component]
    return np.asarray(_variance(synthesis, prior_variance, growth, np.maximum(told, 0.0)))


@jax.jit
def multiply(left, right):
    """Product over the last axis of `left` on all cores, or on the accelerator."""
    return jnp.tensordot(left, right, axes=1)


@jax.jit
def _variance(synthesis, prior_variance, growth, told):
    return prior_variance[:, :, None] * growth - jnp.square(synthesis) @ told
