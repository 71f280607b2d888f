"""From draws of variances under laws without zeros to a mixture: sources are listed if loud.

Group-Laplace and horseshoe laws have no zeros, so that draws do not say which sources are active.
They do say how probable it is that the field of a source exceeds the noise.
"""

import numpy as np

from ..core.status import Status
from . import nuts
from .sparse_moments import SparseMoments, SparseResult, spread_out

__all__ = ["mix"]

# Probability of a field above the noise at which a source is listed.
_EXCEEDING = 0.5


def mix(drawn, problem, hyper, draws, *, n_components, trace, noise_var=None, status=Status.OK):
    """Mix Gaussians over some of the draws.

    Parameters
    ----------
    drawn : scale_mixture.Draws or variance_chains.Draws
    problem : Problem
    hyper : dict
        Averages of what is not a source.
    draws : dict of str to (n_chains, n_samples) array
        Of what is not a source.
    n_components : int
    trace : dict of str to array
    noise_var : (n_chains, n_samples) array, optional
        Of whitened data; 1 if left out.
    status : Status
        Unless the chains disagree.

    Returns
    -------
    SparseResult
        Its draws also have the strength |X_j| of the sources that are listed, in A·m.
    """
    of_chains = drawn.is_loud.mean(axis=1)
    exceedance = of_chains.mean(axis=0)
    support = np.flatnonzero(exceedance >= _EXCEEDING)
    pooled = drawn.source_var.reshape(-1, problem.n_sources)
    chosen = spread_out(len(pooled), n_components)
    noise_var = np.ones(len(pooled)) if noise_var is None else np.ravel(noise_var)
    moments = SparseMoments(
        support,
        None,
        pooled[chosen][:, None],
        np.repeat(noise_var[chosen][:, None], len(problem.data), axis=1),
        0.0,
        exceedance,
    )
    # Chains that have stuck at different sources agree on none of them.
    of_any = np.any(of_chains >= _EXCEEDING, axis=0)
    watched = [drawn.log_density, *draws.values(), drawn.norm[:, :, of_any]]
    r_hat = max(float(np.max(nuts.split_r_hat(w), initial=1.0)) for w in watched)
    return SparseResult(
        moments,
        hyper,
        draws | {"strength": problem.moment_unit * drawn.norm[:, :, support]},
        {"log_density": drawn.log_density} | trace,
        {"r_hat": r_hat, "limit": nuts.MOST_R_HAT},
        np.nan,
        status if r_hat <= nuts.MOST_R_HAT else Status.CHAINS_DISAGREE,
    )
