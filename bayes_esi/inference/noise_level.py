"""The level of the noise for methods that have no evidence to find it by."""

import jax
import numpy as np

from ..core.status import Status
from ..models.gaussian import GaussianSources
from . import source_inference

__all__ = ["noise_level"]


def noise_level(model, problem):
    """Noise level of each whitened row: given, or found with Gaussian sources of one variance.

    Parameters
    ----------
    model : GroupSparseSources or HierarchicalSources
    problem : Problem

    Returns
    -------
    levels : (n_groups,) array
        Relative to the given noise covariance.
    status : Status
        SCALE_AT_BOUND where the evidence has no maximum inside of its range.

    Notes
    -----
    The Gaussian sources are those of `GaussianSources` with the same depth and orientation, and the
    level is that of largest evidence. It counts as noise what no sources explain: few strong ones
    or many weak ones make little difference to it.
    """
    if model.noise_std is not None:
        return np.full(problem.n_groups, float(model.noise_std)), Status.OK
    gaussian = GaussianSources(noise_std=None, depth=model.depth, loose=model.loose)
    options = source_inference.check_options("closed_form", {})
    found = source_inference.run("closed_form", jax.random.key(0), gaussian, problem, options)
    return np.broadcast_to(found.hyper["noise_std"], (problem.n_groups,)), found.status
