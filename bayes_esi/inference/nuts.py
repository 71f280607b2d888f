"""Hyper-parameters of Gaussian source models by the No-U-Turn sampler of NumPyro.

Sources are integrated out, so that the sampler moves in a handful of dimensions, and starts at the
largest evidence. Scales move as logarithms.

Reference: Hoffman, Gelman 2014, jmlr.org/papers/v15/hoffman14a.html.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..core.status import Status

__all__ = ["Draws", "gelman_rubin", "program", "run"]

MOST_R_HAT = 1.01
MOST_DIVERGENT = 0.01


class Draws(NamedTuple):
    """What the chains returned."""

    draws: dict  # name -> (n_chains, n_samples, ...)
    sample_stats: dict  # name -> (n_chains, n_samples)
    status: Status


def program(likelihood, hyper):
    """Write the hyper-parameters' posterior as a NumPyro program without arguments."""
    import numpyro

    def hierarchy():
        theta = dict(hyper.known)
        for name, law in hyper.unknown.items():
            theta[name] = numpyro.sample(name, law.to_event(len(law.batch_shape)))
        theta = {k: jnp.asarray(v, likelihood.data.dtype) for k, v in theta.items()}
        numpyro.factor("data", likelihood.log_density(theta))

    return hierarchy


def run(key, likelihood, hyper, start, *, n_chains, n_warmup, n_samples, progress):
    """Draw the hyper-parameters.

    Parameters
    ----------
    key : PRNG key
    likelihood : SourceLikelihood
    hyper : Hyper
    start : dict
        Values where the chains start.
    n_chains, n_warmup, n_samples : int
    progress : bool

    Returns
    -------
    Draws
    """
    from numpyro.infer import MCMC, NUTS, init_to_value

    values = {name: jnp.asarray(start[name]) for name in hyper.unknown}
    kernel = NUTS(program(likelihood, hyper), init_strategy=init_to_value(values=values))
    mcmc = MCMC(
        kernel,
        num_warmup=n_warmup,
        num_samples=n_samples,
        num_chains=n_chains,
        chain_method="vectorized",
        progress_bar=progress,
    )
    mcmc.run(key, extra_fields=("diverging", "potential_energy", "num_steps"))
    draws = {k: np.asarray(v, np.float64) for k, v in mcmc.get_samples(True).items()}
    fields = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(True).items()}
    stats = {
        "diverging": fields["diverging"],
        "lp": -fields["potential_energy"],
        "n_steps": fields["num_steps"],
    }
    worst = max(float(np.max(gelman_rubin(v))) for v in draws.values()) if n_chains > 1 else 1.0
    status = Status.OK
    if not all(np.all(np.isfinite(v)) for v in draws.values()):
        status = Status.NOT_FINITE
    elif worst > MOST_R_HAT or stats["diverging"].mean() > MOST_DIVERGENT:
        status = Status.CHAINS_DISAGREE
    return Draws(draws, stats, status)


def gelman_rubin(draws):
    """Split R-hat of (n_chains, n_samples, ...) draws."""
    n = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :n], draws[:, n : 2 * n]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = n * halves.mean(axis=1).var(axis=0, ddof=1)
    return np.sqrt(((n - 1) / n * within + between / n) / within)
