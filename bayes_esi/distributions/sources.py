"""Whitened data of distributed Gaussian sources, the sources integrated out.

    y ~ N(0, s^2 K_time kron G R G' + I kron N)

The law of `GaussianSources` and `AutoregressiveSources`, whose log density is their evidence: see
`models.source_likelihood` for its computation. `source_law` prepares it once for a model and a
problem; what it returns builds distributions inside of programs, under whatever hierarchy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints

from ..core import ports
from ..core.checks import check_choice

__all__ = ["SourceData", "SourceLaw", "source_law"]


class SourceData(Distribution):
    """Law of the data of Gaussian sources, over whitened data (rank, n_times).

    Build it with a `SourceLaw`.

    Parameters
    ----------
    likelihood : SourceLikelihood
    hyper : dict of str to array
        Every hyper-parameter in its unit (see `models.source_hyper`).
    log_jacobian : scalar
        Added to the log density, in nats: that of whitening turns it into the density of the data
        in their own units.
    """

    support = constraints.real_matrix
    pytree_data_fields = ("likelihood", "hyper", "log_jacobian")

    def __init__(self, likelihood, hyper, log_jacobian=0.0, *, validate_args=None):
        self.likelihood, self.hyper, self.log_jacobian = likelihood, hyper, log_jacobian
        super().__init__((), likelihood.data.shape, validate_args=validate_args)

    def log_prob(self, value):
        """Log density of whitened data, in the units of the recording."""
        return self.likelihood.of(value).log_density(self.hyper) + self.log_jacobian

    def sample(self, key, sample_shape=()):
        """Draw whitened data: (*sample_shape, rank, n_times)."""
        keys = jax.random.split(key, int(np.prod(sample_shape)))
        draws = jax.lax.map(lambda k: self.likelihood.sample(k, self.hyper), keys)
        return draws.reshape(*sample_shape, *self.event_shape)


class SourceLaw:
    """Builds `SourceData` from values of the unknown hyper-parameters.

    Attributes
    ----------
    known : dict of str to array
    unknown : dict of str to numpyro distribution
        The model's own priors, which a program may replace by others.
    """

    def __init__(self, likelihood, hyper, log_jacobian, n_groups):
        self.likelihood, self.log_jacobian, self.n_groups = likelihood, log_jacobian, n_groups
        self.known, self.unknown = hyper.known, hyper.unknown

    def __call__(self, **values):
        """Return the law of the data.

        Parameters
        ----------
        **values
            One for each of `unknown`, in its unit: `source_std` in A·m, `time_scale` in s.

        Raises
        ------
        ValueError
            If one is missing or too many.
        """
        for name in values:
            check_choice("hyper-parameter", name, tuple(self.unknown))
        missing = [name for name in self.unknown if name not in values]
        if missing:
            raise ValueError(
                f"the law of the data needs {', '.join(missing)}, which the model leaves unknown."
            )
        dtype = self.likelihood.data.dtype
        hyper = {k: jnp.asarray(v, dtype) for k, v in (self.known | values).items()}
        hyper["noise_std"] = jnp.broadcast_to(hyper["noise_std"], (self.n_groups,))
        return SourceData(self.likelihood, hyper, self.log_jacobian)


def source_law(model, problem):
    """Prepare the law of the data of a model on a problem.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem

    Returns
    -------
    SourceLaw

    Raises
    ------
    ValueError
        If the model does not fit the problem.

    Notes
    -----
    Evaluated at `problem.data` it is the evidence at given hyper-parameters in the units of the
    recording. Cost of preparing: O(rank^2 n_sources n_orient).
    """
    prepared = ports.perform(model, "prepare", problem)
    log_jacobian = float(problem.log_jacobian)
    return SourceLaw(prepared.likelihood, prepared.hyper, log_jacobian, problem.n_groups)
