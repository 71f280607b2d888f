"""What models of a few dipoles believe in common: where dipoles lie, and how large things are."""

import numpy as np

from ..core.checks import check_array
from .scale_prior import scale_prior

__all__ = ["MOMENT_RANGE", "NOISE_RANGE", "place_weights", "scale_priors"]

# A scale left unknown is log-uniform over this many times its reference, below and above.
# The reference moment explains the mean power of the data by one source of mean gain; real
# gains vary tenfold over depth, and one source may carry a hundredth of the power.
MOMENT_RANGE = 100.0
NOISE_RANGE = 10.0


def place_weights(location_prior, problem):
    """Weights of the places, (n_sources,), from what a user says of them.

    Raises
    ------
    ValueError
        If they do not fit the sources, are negative, or all zero.
    """
    if location_prior is None:
        return np.ones(problem.n_sources)
    if hasattr(location_prior, "vertices"):
        weights = problem.mask(location_prior).astype(float)
        remedy = "The label shares no vertex with the source space."
    else:
        weights = check_array("location_prior", location_prior, shape=(problem.n_sources,))
        remedy = "Give non-negative weights, at least one above zero."
    if np.any(weights < 0) or not weights.sum() > 0:
        raise ValueError(f"location_prior has no places or negative weights. {remedy}")
    return weights


def scale_priors(model, problem, design, dtype):
    """Priors of the moment scale, then of the noise scale of each channel group.

    Parameters
    ----------
    model : StaticDipoles or DynamicDipoles
    problem : Problem
    design : OrientedField
    dtype : dtype

    Returns
    -------
    tuple of scale priors

    Raises
    ------
    ValueError
        If the data are zero.
    """
    data = np.asarray(problem.data, np.float64)
    gain = np.sum(np.asarray(design.lead_field, np.float64) ** 2) / problem.n_sources
    power = np.sum(data**2) / problem.n_times
    if not power > 0:
        raise ValueError("data are zero on the range of noise_cov: there is nothing to explain.")
    reference = problem.moment_unit * np.sqrt(power / gain)
    moment = scale_prior(
        model.moment_std,
        unit=problem.moment_unit,
        default_range=(reference / MOMENT_RANGE, reference * MOMENT_RANGE),
        dtype=dtype,
    )
    noise = []
    for group in range(problem.n_groups):
        level = np.sqrt(np.mean(data[problem.noise_group == group] ** 2))
        bounds = (min(1.0, level) / NOISE_RANGE, max(1.0, level) * NOISE_RANGE)
        noise.append(scale_prior(model.noise_std, unit=1.0, default_range=bounds, dtype=dtype))
    return (moment, *noise)
