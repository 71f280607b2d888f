"""The level of the noise for methods that have no evidence to find it by."""

from typing import NamedTuple

import jax
import numpy as np

from ..core.status import Status
from ..models.gaussian import GaussianSources
from . import source_inference

__all__ = ["UnitNoise", "at_unit_noise", "noise_level"]


class UnitNoise(NamedTuple):
    """Whitened data and lead field, divided by the level of the noise."""

    data: np.ndarray  # (rank, n_times)
    field: np.ndarray  # (rank, n_sources, d)
    rows: np.ndarray  # (rank,): the level of each row
    levels: np.ndarray  # (n_groups,)
    status: Status  # of `noise_level`


def at_unit_noise(model, problem, field):
    """Divide data and lead field by the `noise_level`, so that the noise is white of level 1."""
    levels, status = noise_level(model, problem)
    rows = levels[problem.noise_group].astype(field.dtype)
    data, field = problem.data / rows[:, None], field / rows[:, None, None]
    return UnitNoise(data, field, rows, levels, status)


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
