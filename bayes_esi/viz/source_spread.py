"""Posterior spread of the field at the sensors: what a new recording of the response may show.

From factors (see `inference.separable`), with v the variances of the signals,

    cov(field_t) = A^-1 diag(v_t) A^-T

A mixture over hyper-parameters adds the variance of its means.
"""

import numpy as np

__all__ = ["source_field_law"]


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
