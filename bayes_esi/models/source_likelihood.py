"""The marginal likelihood of distributed Gaussian sources, sources integrated out.

In whitened units, with noise levels D = diag(noise_std per row), K = G R G' and
D^-1/2 K D^-1/2 = U diag(lambda) U', the coordinates z = U' D^-1/2 data are independent:

    z_i ~ N(0, s^2 lambda_i K_time + I),      s = source_std

Static sources have K_time = I; with a state-space law in time each z_i is a scalar state-space
model (`kalman_likelihood`). Either way a likelihood costs O(rank n_times). If the spectrum
depends on what is unknown (depth, smoothness, several noise levels), each likelihood needs an
eigen-decomposition, or static a Cholesky factor, of rank^3.

Reference: Solin et al. 2016, arXiv:1604.04931 (separable Gaussian processes of MEG).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import static, struct
from ..core.types import Array, Float, Int
from ..linalg.eigen import eigh
from .autoregressive import kernel_of
from .kalman_likelihood import log_likelihood
from .source_hyper import Hyper, hyper_of, step_of
from .source_prior import GramFamily, SourcePrior, source_prior

__all__ = ["Prepared", "SourceLikelihood", "prepare", "source_likelihood"]


@struct
class SourceLikelihood:
    """log p(whitened data | hyper-parameters), for compiled code.

    Attributes
    ----------
    data : (rank, n_times)
        Coordinates z at unit noise levels if the spectrum is fixed, else whitened data.
    eigenvalues : (rank,) or None
        At unit scales, if the spectrum is fixed.
    basis : (rank, rank) or None
        U of a fixed spectrum.
    family : GramFamily or None
        If it is not.
    noise_group : (rank,) int
    observed : (n_times,) bool
    moment_unit, step : scalars
    kernel : str
        Law in time; "static" for none.
    """

    data: Float[Array, "rank n_times"]
    eigenvalues: Float[Array, " rank"] | None
    basis: Float[Array, "rank rank"] | None
    family: GramFamily | None
    noise_group: Int[Array, " rank"]
    observed: Array
    moment_unit: Float[Array, ""]
    step: Float[Array, ""]
    kernel: str = static()

    def of(self, white):
        """The same likelihood of other whitened data (rank, n_times)."""
        data = white if self.basis is None else self.basis.T @ white
        return dataclasses.replace(self, data=data)

    def sample(self, key, hyper):
        """Draw whitened data (rank, n_times)."""
        level = hyper["noise_std"][self.noise_group][:, None]
        eigenvalues, basis = self.eigenvalues, self.basis
        if self.family is not None:
            gram = self.family.at(hyper["depth"], hyper["smoothness"])
            eigenvalues, basis = eigh(gram)
        scale = hyper["source_std"] / self.moment_unit
        key_signal, key_noise = jax.random.split(key)
        signal = jax.random.normal(key_signal, self.data.shape, self.data.dtype)
        if self.kernel != "static":
            n_times = self.data.shape[1]
            law = kernel_of(self.kernel, hyper, self.step).covariance(n_times)
            values, vectors = eigh(law)
            signal = signal @ (vectors * jnp.sqrt(jnp.maximum(values, 0))).T
        signal = basis @ (scale * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None] * signal)
        return signal + level * jax.random.normal(key_noise, signal.shape, signal.dtype)

    def log_density(self, hyper):
        """Log density of the whitened data.

        Parameters
        ----------
        hyper : dict of str to array
            Every name of `source_hyper`, in its unit.
        """
        signal_var = (hyper["source_std"] / self.moment_unit) ** 2
        level = hyper["noise_std"][self.noise_group]
        n_observed = jnp.sum(self.observed)
        log_level = jnp.sum(jnp.log(level)) * n_observed
        if self.family is None:
            z, variances = self.data / level[:, None], self.eigenvalues * signal_var / level**2
            return self._of_channels(z, variances, hyper) - log_level
        scaled = self.family.at(hyper["depth"], hyper["smoothness"]) * signal_var
        scaled = scaled / (level[:, None] * level[None, :])
        white = self.data / level[:, None]
        if self.kernel == "static":
            return _dense(white * self.observed, scaled, n_observed) - log_level
        eigenvalues, basis = eigh(scaled)
        return self._of_channels(basis.T @ white, jnp.maximum(eigenvalues, 0), hyper) - log_level

    def _of_channels(self, z, signal_var, hyper):
        if self.kernel == "static":
            total = signal_var + 1
            power = jnp.sum(jnp.where(self.observed, z**2, 0), axis=1)
            n_observed = jnp.sum(self.observed)
            return -0.5 * jnp.sum(n_observed * jnp.log(2 * np.pi * total) + power / total)
        kernel = kernel_of(self.kernel, hyper, self.step)
        one = jnp.ones((), z.dtype)
        return log_likelihood(z, signal_var, one, kernel, self.observed)


def source_likelihood(model, problem, prior, hyper, observed=None):
    """Prepare the likelihood of a model on a problem.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem
    prior : SourcePrior
    hyper : Hyper
    observed : (n_times,) bool array, optional
        Which samples count; by default all.

    Returns
    -------
    SourceLikelihood
    """
    depth, smoothness = (hyper.known.get(name) for name in ("depth", "smoothness"))
    family = prior.family(depth, smoothness)
    data, eigenvalues, basis = np.asarray(problem.data, np.float64), None, None
    is_fixed = depth is not None and smoothness is not None
    levels = hyper.known.get("noise_std")
    if is_fixed and (problem.n_groups == 1 or (levels is not None and np.ptp(levels) == 0)):
        eigenvalues, basis = np.linalg.eigh(np.asarray(family.series[0, 0]))
        data, eigenvalues, family = basis.T @ data, np.maximum(eigenvalues, 0.0), None
    dtype = jax.dtypes.canonicalize_dtype(problem.lead_field.dtype)
    as_array = lambda x: jnp.asarray(x, dtype)  # noqa: E731
    is_dynamic = hasattr(model, "kernel")
    return SourceLikelihood(
        data=as_array(data),
        eigenvalues=jax.tree.map(as_array, eigenvalues),
        basis=jax.tree.map(as_array, basis),
        family=jax.tree.map(as_array, family),
        noise_group=jnp.asarray(problem.noise_group),
        observed=jnp.ones(problem.n_times, bool) if observed is None else jnp.asarray(observed),
        moment_unit=as_array(problem.moment_unit),
        step=as_array(step_of(problem) if is_dynamic else 1.0),
        kernel=model.kernel if is_dynamic else "static",
    )


class Prepared(NamedTuple):
    """A model on a problem, ready for methods."""

    prior: SourcePrior
    gram: np.ndarray  # G R G' at known depth and smoothness, or half way
    hyper: Hyper
    likelihood: SourceLikelihood


def prepare(model, problem, observed=None):
    """Build everything that methods for a model on a problem start from.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem
    observed : (n_times,) bool array, optional
        Which samples count; by default all.

    Returns
    -------
    Prepared

    Raises
    ------
    ValueError
        If the model does not fit the problem.
    """
    prior = source_prior(model, problem)
    depth, smoothness = (
        0.5 if value is None or hasattr(value, "log_prob") else float(value)
        for value in (model.depth, model.smoothness)
    )
    gram = prior.gram(depth, smoothness)
    hyper = hyper_of(model, problem, gram)
    return Prepared(prior, gram, hyper, source_likelihood(model, problem, prior, hyper, observed))


def _dense(white, cov, n_times):
    """Log density of independent samples N(0, cov + I), by a Cholesky factor."""
    rank = len(cov)
    chol = jnp.linalg.cholesky(cov + jnp.eye(rank, dtype=cov.dtype))
    solved = jax.scipy.linalg.solve_triangular(chol, white, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol)))
    return -0.5 * (n_times * (rank * np.log(2 * np.pi) + log_det) + jnp.sum(solved**2))
