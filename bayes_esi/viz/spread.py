"""Posterior spread of what the figures draw: a moment along a direction, the field at the sensors.

Both need the full conditional covariance of the moments. Their standard deviations along the
three axes are not enough: in MEG the radial part of a moment is hardly seen, so the axes share
a large error that is absent along the direction that the data do see.
"""

import numpy as np

__all__ = ["field_law", "moment_std_along"]

# Draws that a figure averages: the standard error of a mean over 200 draws is 7 % of the
# posterior standard deviation, less than the width of a line.
_N_DRAWS = 200


def field_law(posterior):
    """Mean and standard deviation of a new recording of the same response.

    Parameters
    ----------
    posterior : DipolePosterior

    Returns
    -------
    mean, std : (n_channels, n_times) arrays
        Posterior mean of the field, and the predictive standard deviation around it (places,
        scales, moments and noise), in data units on the range of the noise covariance.

    Notes
    -----
    With F the field of the dipoles of a draw, H^-1 the covariance of their moments and S the noise
    covariance of the draw, the variance is that of F E[moment] over draws plus the mean over draws
    of diag(F H^-1 F' + S). Cost O(n_draws n_channels rank (d n_dipoles + n_times)).
    """
    problem = posterior.problem
    colouring = np.linalg.pinv(problem.whitener)
    draws = _spaced(len(posterior.labels))
    weights = _weights(posterior, draws)
    fitted = posterior.moments_of(draws).fitted
    mean = np.tensordot(weights, fitted, axes=1)
    variance = np.zeros((problem.n_channels, problem.n_times))
    for draw, weight, field in zip(draws, weights, fitted, strict=True):
        columns, cov = _conditional_cov(posterior, draw)
        seen = colouring @ columns
        own = np.sum((seen @ cov) * seen, axis=1) + colouring**2 @ _noise_variance(posterior, draw)
        variance += weight * (own[:, None] + (colouring @ (field - mean)) ** 2)
    return colouring @ mean, np.sqrt(variance)


def moment_std_along(posterior, label, direction):
    """Posterior standard deviation of a dipole's moment along a fixed direction.

    Parameters
    ----------
    posterior : DipolePosterior
    label : int
        Number in ``posterior.dipoles()``, from 0.
    direction : (n_axes,) array
        Unit vector.

    Returns
    -------
    (n_times,) array
        In A·m, given that the dipole exists.
    """
    problem, design = posterior.problem, posterior.design
    column = posterior.labels[:, label]
    present = np.flatnonzero(column >= 0)
    draws = present[_spaced(len(present))]
    weights = _weights(posterior, draws)
    means = posterior.moments_of(draws).mean[np.arange(len(draws)), column[draws]]
    courses = np.einsum("a,dat->dt", direction, means)
    variance = weights @ (courses - weights @ courses) ** 2
    d = design.frames.shape[2]
    for draw, weight in zip(draws, weights, strict=True):
        places, slots = _occupied(posterior, draw)
        index = int(np.flatnonzero(slots == column[draw])[0])
        own = slice(index * d, (index + 1) * d)
        _, cov = _conditional_cov(posterior, draw)
        along = direction @ design.frames[places[index]] * problem.moment_unit
        variance += weight * (along @ cov[own, own] @ along)
    return np.sqrt(variance)


def _spaced(n_available):
    kept = np.linspace(0, n_available - 1, min(n_available, _N_DRAWS))
    return np.unique(kept.astype(int))


def _weights(posterior, draws):
    weights = posterior.run_weights[draws // posterior.draws.active.shape[1]]
    return weights / weights.sum()


def _flat(array, draw):
    """Row of an array (n_runs, n_draws, ...) at a pooled draw."""
    return array[divmod(draw, array.shape[1])]


def _occupied(posterior, draw):
    slots = np.flatnonzero(_flat(posterior.draws.active, draw))
    return _flat(posterior.draws.places, draw)[slots], slots


def _noise_variance(posterior, draw):
    return _flat(posterior.draws.noise_std, draw)[posterior.problem.noise_group] ** 2


def _conditional_cov(posterior, draw):
    """Whitened field of all moment components of a draw, and their covariance given the data."""
    problem = posterior.problem
    places, _ = _occupied(posterior, draw)
    lead_field = np.asarray(posterior.design.lead_field[:, places], np.float64)
    columns = lead_field.reshape(len(lead_field), -1)
    weighted = columns / _noise_variance(posterior, draw)[:, None]
    precision = (problem.moment_unit / _flat(posterior.draws.moment_std, draw)) ** 2
    gram = columns.T @ weighted + precision * np.eye(columns.shape[1])
    return columns, np.linalg.inv(gram)
