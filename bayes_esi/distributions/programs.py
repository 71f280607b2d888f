"""Ready-made NumPyro programs of the package's models."""

from .sources import source_law

__all__ = ["source_program"]


def source_program(model, problem):
    """Write a Gaussian source model on a problem as a NumPyro program.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem

    Returns
    -------
    callable
        ``program(is_observed=True)`` samples the unknown hyper-parameters from their priors and the
        whitened data at the site "data": for NUTS, SVI, and (not observed) prior predictive draws.
    """
    import jax.numpy as jnp
    import numpyro

    law = source_law(model, problem)
    data = jnp.asarray(problem.data, law.likelihood.data.dtype)

    def program(is_observed=True):
        values = {
            name: numpyro.sample(name, prior.to_event(len(prior.batch_shape)))
            for name, prior in law.unknown.items()
        }
        numpyro.sample("data", law(**values), obs=data if is_observed else None)

    return program
