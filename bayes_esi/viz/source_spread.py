"""Posterior spread of what the figures draw: a course along a direction, the field at the sensors.

Both need covariances that standard deviations along the axes of space do not tell. From factors
(see `inference.separable`), with B from signals to sources and v the variances of the signals,

    var(d' x_t) = s^2 k_t d' R d - (d' B)^2 (s^2 k_t lambda - v_t)
    cov(field_t) = A^-1 diag(v_t) A^-T

A mixture over hyper-parameters adds the variance of its means.
"""

import numpy as np

__all__ = ["courses_along", "source_field_law"]


def courses_along(posterior, sources, directions):
    """Mean and standard deviation of moments along fixed directions.

    Parameters
    ----------
    posterior : SourcePosterior
    sources : (n,) int array
    directions : (n, n_axes) array
        Unit vectors.

    Returns
    -------
    mean, std : (n, n_times) arrays
        In A·m.
    """
    answers, moments = posterior.answers, posterior.moments
    if not posterior.is_separable:
        # Of coupled sources deviations are known along the axes alone: this is their bound.
        mean = np.einsum("na,nat->nt", directions, posterior.mean[sources])
        return mean, np.einsum("na,nat->nt", np.abs(directions), posterior.std[sources])
    means, variance = [], 0.0
    for c in range(moments.n_components):
        growth = moments.prior_variance[c]
        along = np.einsum("na,nar->nr", directions, answers.synthesis(c)[sources])
        told = np.maximum(growth * moments.eigenvalues[c][:, None] - moments.variance[c], 0.0)
        prior = _prior_variance(answers, c, sources, directions)
        means.append(along @ moments.mean[c])
        variance = variance + prior[:, None] * growth - along**2 @ told
    variance = np.maximum(variance / moments.n_components, 0.0) + np.var(means, axis=0)
    return answers.unit * np.mean(means, axis=0), answers.unit * np.sqrt(variance)


def source_field_law(posterior):
    """Mean and standard deviation of a new recording of the same response.

    Parameters
    ----------
    posterior : SourcePosterior

    Returns
    -------
    mean, std : (n_channels, n_times) arrays
        In data units, on the range of the noise covariance.
    """
    problem, moments = posterior.problem, posterior.moments
    colouring = np.linalg.pinv(problem.whitener)
    fitted = np.asarray(posterior.fitted, np.float64)
    variance = np.zeros((problem.n_channels, problem.n_times))
    for c in range(moments.n_components):
        back = np.linalg.inv(moments.analysis[c])
        level = moments.noise_std[c][problem.noise_group]
        variance += (colouring @ back) ** 2 @ moments.variance[c]
        variance += (colouring**2 @ level**2)[:, None]
        variance += (colouring @ (back @ moments.mean[c] - fitted)) ** 2
    return colouring @ fitted, np.sqrt(variance / moments.n_components)


def _prior_variance(answers, component, sources, directions):
    """Prior variance along the directions, d' R d: (n,)."""
    prior = answers.prior
    variance = answers.prior_variance(component)[sources]
    if directions.shape[1] == 1:
        return variance[:, 0] * directions[:, 0] ** 2
    correlation = prior.correlation
    frames = prior.field.own_frames[sources]
    if correlation.size == len(prior.field.own_frames):
        # The components of a source are alike and independent: R_jj is a multiple of F F'.
        share = variance.sum(axis=1) / np.sum(frames**2, axis=(1, 2))
        return share * np.sum(np.einsum("na,nad->nd", directions, frames) ** 2, axis=1)
    d = directions.shape[1]
    smoothness = float(answers.moments.smoothness[component])
    total = np.empty(len(sources))
    for i, (source, direction) in enumerate(zip(sources, directions, strict=True)):
        rows = slice(source * d, (source + 1) * d)
        unit = np.zeros((correlation.size, d))
        unit[rows] = np.eye(d)
        block = smoothness * correlation.apply(unit)[rows] + (1 - smoothness) * np.eye(d)
        # Depth weights are the ratio of the variances to those of the correlation.
        total[i] = direction @ block @ direction * variance[i, 0] / block[0, 0]
    return total
