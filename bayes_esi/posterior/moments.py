"""Moments of dipoles given their places and scales: exact Gaussian conditionals.

moment(t) | c, s, data ~ N(H^-1 B_t, H^-1)        (symbols as in `models.dipole_gram`)
"""

from typing import NamedTuple

import numpy as np

__all__ = ["ConditionalMoments", "conditional_moments"]


class ConditionalMoments(NamedTuple):
    """Gaussian conditionals of every slot of some draws, in A·m along `n_axes` axes."""

    mean: np.ndarray  # (n_draws, n_slots, n_axes, n_times); zero in empty slots
    std: np.ndarray  # (n_draws, n_slots, n_axes): the same at all times
    power: np.ndarray  # (n_draws, n_slots): whitened data power of each dipole's own field
    fitted: np.ndarray  # (n_draws, rank, n_times): whitened field of all dipoles together
    log_likelihood: np.ndarray  # (n_draws, n_times): log density of each whitened sample


def conditional_moments(problem, design, places, active, moment_std, noise_std):
    """Compute the moments of draws.

    Parameters
    ----------
    problem : Problem
    design : OrientedField
    places : (n_draws, n_slots) int array
    active : (n_draws, n_slots) bool array
    moment_std : (n_draws,) array
        In A·m.
    noise_std : (n_draws, n_groups) array
        Relative to the noise covariance.

    Returns
    -------
    ConditionalMoments

    Notes
    -----
    Cost O(n_draws (d n_slots)^2 (rank + n_times)).
    """
    lead_field = np.asarray(design.lead_field, np.float64)
    data = np.asarray(problem.data, np.float64)
    rank, n_times = data.shape
    n_draws, n_slots = places.shape
    n_axes, d = design.frames.shape[1:]
    mean = np.zeros((n_draws, n_slots, n_axes, n_times))
    std = np.zeros((n_draws, n_slots, n_axes))
    power = np.zeros((n_draws, n_slots))
    fitted = np.zeros((n_draws, rank, n_times))
    log_likelihood = np.zeros((n_draws, n_times))
    for i in range(n_draws):
        slots = np.flatnonzero(active[i])
        weights = noise_std[i][problem.noise_group] ** -2.0
        field = lead_field[:, places[i, slots]].reshape(rank, slots.size * d)
        precision = (problem.moment_unit / moment_std[i]) ** 2
        weighted = field * weights[:, None]
        gram = field.T @ weighted + precision * np.eye(slots.size * d)
        cov = np.linalg.inv(gram) if slots.size else gram
        projected = weighted.T @ data
        moments = cov @ projected
        fitted[i] = field @ moments
        log_det = np.linalg.slogdet(gram)[1] - slots.size * d * np.log(precision)
        log_likelihood[i] = -0.5 * (
            rank * np.log(2 * np.pi)
            - np.sum(np.log(weights))
            + log_det
            + weights @ data**2
            - np.sum(projected * moments, axis=0)
        )
        for s, slot in enumerate(slots):
            own = slice(s * d, (s + 1) * d)
            frame = design.frames[places[i, slot]] * problem.moment_unit
            mean[i, slot] = frame @ moments[own]
            std[i, slot] = np.sqrt(np.sum((frame @ cov[own, own]) * frame, axis=1))
            power[i, slot] = np.sum(weights[:, None] * (field[:, own] @ moments[own]) ** 2)
    return ConditionalMoments(mean, std, power, fitted, log_likelihood)
