"""Posterior of sources with independent priors N(0, C_j), kept as factors of the sensors' size.

In coordinates z = A y where the noise is white and sum_j G_j C_j G_j' is diagonal, l_i,

    x_t = B w_t,     Cov x_t = C - B diag(told_t) B',     B_j = C_j G_j' A'

with w_t = z_t / (l + 1) and told_t = 1 / (l + 1) for sources independent in time. A stationary
law in time with covariance E diag(kappa) E' gives w = sum_s E_ts kappa_s z~_s / (kappa_s l + 1),
z~ = z E, and told_t = sum_s E_ts^2 kappa_s^2 / (kappa_s l + 1).

Cost O(m^2 k d + m^3) for k sources with a variance; moments of these O(m k d n_times).
"""

from typing import NamedTuple

import numpy as np

from ..core.checks import check_array

__all__ = [
    "BlockMoments",
    "condition",
    "condition_each",
    "cov_at",
    "field_power",
    "mean",
    "over_patterns",
    "variance",
]


class BlockMoments(NamedTuple):
    """Factors of a posterior; sources without a variance are left out."""

    places: np.ndarray  # (k,): which sources
    prior_cov: np.ndarray  # (k, d, d)
    synthesis: np.ndarray  # (k, d, m): B
    weights: np.ndarray  # (m, n_times): w_t
    told: np.ndarray  # (m, n_times), or (m, 1) where all samples have the same
    n_sources: int


def condition(data, lead_field, source_var, noise_var, coefficient=0.0):
    """Condition on whitened data.

    Parameters
    ----------
    data : (m, n_times) array
    lead_field : (m, n_sources, d) array
    source_var : (n_sources,) or (n_sources, d, d) array
        gamma_j of gamma_j I, or C_j.
    noise_var : (m,) array
    coefficient : float
        Of an AR(1) of the sources in time.

    Returns
    -------
    BlockMoments
    """
    lead_field = check_array("lead_field", lead_field, ndim=3).astype(np.float64, copy=False)
    m, n_sources, d = lead_field.shape
    data = check_array("data", data, shape=(m, "n_times")).astype(np.float64, copy=False)
    noise_var = check_array("noise_var", noise_var, shape=(m,))
    cov = np.asarray(source_var, np.float64)
    if cov.ndim == 1:
        cov = cov[:, None, None] * np.eye(d)
    cov = check_array("source_var", cov, shape=(n_sources, d, d))
    places = np.flatnonzero(np.trace(cov, axis1=1, axis2=2) > 0)
    cov, field = cov[places], lead_field[:, places]
    level = np.sqrt(noise_var)
    cross = np.einsum("mkd,kde->kem", field, cov)
    gram = np.tensordot(field, cross, ((1, 2), (0, 1)))
    values, basis = np.linalg.eigh(gram / np.outer(level, level))
    values = np.maximum(values, 0)[:, None]
    analysis = basis.T / level
    z = analysis @ data
    if coefficient == 0:
        weights, told = z / (values + 1), 1 / (values + 1)
    else:
        lags = np.abs(np.subtract.outer(*[np.arange(data.shape[1])] * 2))
        kappa, turn = np.linalg.eigh(float(coefficient) ** lags)
        kappa = np.maximum(kappa, 0)
        shrink = kappa / (kappa * values + 1)
        weights, told = (shrink * (z @ turn)) @ turn.T, (shrink * kappa) @ (turn**2).T
    return BlockMoments(places, cov, cross @ analysis.T, weights, told, n_sources)


def condition_each(data, lead_field, source_var, noise_var, coefficient=0.0):
    """Condition on whitened data, under one law for all samples or one for each.

    Parameters
    ----------
    data : (m, n_times) or (m, n_times, n_sets) array
        Whitened; of several sets of data the law of each sample is that of all.
    source_var : (1 or n_times, n_sources) or (1 or n_times, n_sources, d, d) array
    lead_field, noise_var, coefficient
        As in `condition`.

    Yields
    ------
    BlockMoments
        Of all samples, or of one sample after the other.
    """
    if len(source_var) == 1:
        yield condition(data, lead_field, source_var[0], noise_var, coefficient)
        return
    for t, own in enumerate(source_var):
        yield condition(data[:, t].reshape(len(data), -1), lead_field, own, noise_var)


def over_patterns(moments, patterns):
    """Moments of sources x = Q u from those of the strengths u of patterns.

    Parameters
    ----------
    moments : BlockMoments
        Of u.
    patterns : sparse (n_sources, n_patterns)
        Q.

    Returns
    -------
    BlockMoments
        B of a source is sum_i q_i B_i, its prior covariance sum_i q_i^2 C_i.
    """
    own = patterns.tocsc()[:, moments.places].tocsr()
    places = np.flatnonzero(np.diff(own.indptr))
    own = own[places]
    k, d, m = moments.synthesis.shape
    synthesis = (own @ moments.synthesis.reshape(k, d * m)).reshape(-1, d, m)
    prior = (own.multiply(own) @ moments.prior_cov.reshape(k, d * d)).reshape(-1, d, d)
    return moments._replace(
        places=places, prior_cov=prior, synthesis=synthesis, n_sources=patterns.shape[0]
    )


def field_power(lead_field, sources):
    """Power of the field of each source, summed over samples: (n_sources,).

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
    sources : (n_sources, d, n_times) array
    """
    field = np.asarray(lead_field, np.float64)
    gram = np.einsum("mnd,mne->nde", field, field)
    return np.einsum("nde,ndt,net->n", gram, sources, sources, optimize=True)


def mean(moments):
    """Posterior means: (n_sources, d, n_times)."""
    own = moments.synthesis @ moments.weights
    whole = np.zeros((moments.n_sources, *own.shape[1:]))
    whole[moments.places] = own
    return whole


def cov_at(moments, sample=0):
    """Posterior covariance of each source at one sample: (n_sources, d, d)."""
    told = moments.told[:, sample if moments.told.shape[1] > 1 else 0]
    scaled = moments.synthesis * told
    own = moments.prior_cov - scaled @ moments.synthesis.swapaxes(1, 2)
    whole = np.zeros((moments.n_sources, *own.shape[1:]))
    whole[moments.places] = own
    return whole


def variance(moments):
    """Posterior variances: (n_sources, d, n_times), or (n_sources, d, 1) where all are the same."""
    own = np.diagonal(moments.prior_cov, axis1=1, axis2=2)[:, :, None]
    own = own - moments.synthesis**2 @ moments.told
    whole = np.zeros((moments.n_sources, *own.shape[1:]))
    whole[moments.places] = np.maximum(own, 0)
    return whole
