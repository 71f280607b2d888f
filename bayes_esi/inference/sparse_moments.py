"""What methods for sparse sources return: active sources, and the Gaussian under their variances.

Each method ends in variances g_j of the sources, under which the answer is Gaussian and in closed
form (`block_moments`):

    x_j ~ N(0, g_j I),    data = lead_field x + noise

Samplers end in many such sets of variances, and mix their Gaussians.
"""

from typing import NamedTuple

import numpy as np

from ..core.status import Status
from . import block_moments

__all__ = ["SparseMoments", "SparseResult", "carriers", "check_flag", "spread_out"]

# Share of the power of all fields that the active sources of a method without zeros carry.
_CARRIED = 0.99


class SparseMoments(NamedTuple):
    """Active sources and a Gaussian, in components that the prior treats alike.

    Units are `moment_unit` for sources. There are n_components of a mixture over draws of the
    variances, or one; n_laws is 1, or n_times where each sample has its own.
    """

    support: np.ndarray  # (k,) int, increasing: the active sources
    estimate: np.ndarray | None  # (k, d, n_times) where it is not the mean of the Gaussian
    source_var: np.ndarray  # (n_components, n_laws, n_sources), or (..., n_sources, d, d)
    noise_var: np.ndarray  # (n_components, rank), of whitened data
    coefficient: float  # of an AR(1) in time
    exceedance: np.ndarray | None = None  # (n_sources,) that the field exceeds noise, if drawn
    patterns: object = None  # sparse (n_sources, n_patterns): variances are those of patterns
    inclusion: np.ndarray | None = None  # (n_sources,) that the source is active, if drawn
    active: np.ndarray | None = None  # (n_draws, K) int: active sources of each draw, then -1


class SparseResult(NamedTuple):
    """What a method for sparse sources returns."""

    moments: SparseMoments
    hyper: dict  # noise_std (n_groups,), and alpha as a fraction
    draws: dict  # name -> (n_chains, n_samples, ...), of samplers
    trace: dict  # name -> array: what fell along the iteration, or the choice of alpha
    certificate: dict  # name -> float: gap, residual, gain or R-hat; what it must not exceed
    log_evidence: float  # units of the data; NaN where the method has none
    status: Status


def carriers(field, mean):
    """Sources whose fields make up 99 % of the power of all, the strongest first.

    Parameters
    ----------
    field : (rank, n_sources, d) array
    mean : (n_sources, d, n_times) array

    Returns
    -------
    (n_active,) int array, increasing
    """
    power = block_moments.field_power(field, mean)
    order = np.argsort(-power, kind="stable")
    total = np.cumsum(power[order])
    count = np.searchsorted(total, _CARRIED * total[-1]) + 1 if total[-1] > 0 else 0
    return np.sort(order[:count])


def spread_out(n_draws, n_components):
    """Numbers of some draws, as far from each other as may be: (n,) int array."""
    return np.linspace(0, n_draws - 1, min(n_components, n_draws)).astype(int)


def check_flag(name, value):
    """Check an option that is on or off."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)
