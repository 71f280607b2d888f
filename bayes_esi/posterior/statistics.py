"""Statistics of linear estimates: dSPM and sLORETA as functions of moments.

    x = K y,  y = G s + e,  e ~ N(0, I)     estimate x_j (a components) of source j
    dSPM_j = |x_j| / sqrt(tr N_jj),         N = K K'        law of the estimate without sources
    sLORETA_j^2 = x_j' S_jj^{-1} x_j,       S = K C_y K'    law of the estimate under the model

with C_y = G R G' + I for a prior covariance R of the sources. For the posterior mean,
K = R G' C_y^{-1}, S is prior minus posterior covariance, R G' C_y^{-1} G R. One component keeps
its sign.

*Zero error.* Let y = G_j q without noise, and R block diagonal. Then sLORETA_i^2 is the squared
length of the projection of C_y^{-1/2} G_j q on the span of C_y^{-1/2} G_i, largest at i = j: for
every source, every direction q and any noise variance in C_y.

*MNE-Python* has the same dSPM, and the same sLORETA for one component. For three it divides
|x_j| by sqrt(tr S_jj), one number for all directions of a source; the blocks of S are not multiples
of I, and the theorem does not hold there. It writes lambda2 for the noise variance at a prior
R; here noise has variance 1 and the prior is R / lambda2, which leaves x, N and both statistics as
they are.

Blocks without full rank (radial directions of MEG in a sphere) are inverted on their range.

References: Dale et al. 2000, doi:10.1016/S0896-6273(00)81138-1 (dSPM); Pascual-Marqui 2002, Methods
Find. Exp. Clin. Pharmacol. 24 Suppl. D:5 (sLORETA); Pascual-Marqui 2007, arXiv:0710.3341 (zero
error).
"""

import numpy as np

from ..core.checks import check_array

__all__ = ["dspm", "dspm_kernel", "sloreta", "sloreta_kernel"]

# Eigenvalues of a block below this fraction of its largest count as zero; weak directions of real
# MEG lie above 1e-8 of the power.
RANK_TOLERANCE = 1e-10


def dspm(mean, noise_variance):
    """Estimates in units of their standard deviation due to noise alone.

    Parameters
    ----------
    mean : (n_sources, a, n_times) array
        Estimate, A·m.
    noise_variance : (n_sources, a) or (n_sources, a, n_times) array
        Diagonal of K K', (A·m)^2.

    Returns
    -------
    (n_sources, n_times) array
        Signed for a = 1; else the norm of the estimate over the root of the summed variances. Under
        noise alone, one component has variance 1. Sources that cannot be seen get 0.
    """
    mean = check_array("mean", mean, ndim=3)
    wanted = mean.shape if np.ndim(noise_variance) == 3 else mean.shape[:2]
    noise_variance = check_array("noise_variance", noise_variance, shape=wanted)
    _check_variances("noise_variance", noise_variance)
    total = noise_variance.sum(axis=1)
    total = total[:, None] if total.ndim == 1 else total
    return _length(mean) * _safe_inverse(np.sqrt(total))


def sloreta(mean, block_cov):
    """Estimates standardised by their law under the model, with the full block of each source.

    Parameters
    ----------
    mean : (n_sources, a, n_times) array
        Estimate, A·m.
    block_cov : (n_sources, a, a) array
        S_jj, prior minus posterior covariance, (A·m)^2.

    Returns
    -------
    (n_sources, n_times) array
        Signed for a = 1, else (x' S^{-1} x)^{1/2}: under the model its square is chi-squared with
        as many degrees of freedom as the block has rank.
    """
    mean = check_array("mean", mean, ndim=3)
    root = _inverse_root(_checked_blocks(block_cov, mean.shape[:2]))
    return _length(root @ mean)


def dspm_kernel(kernel):
    """Divide a kernel (n_sources, a, m) by the noise of each source: its output is dSPM."""
    kernel = check_array("kernel", kernel, ndim=3)
    total = np.sqrt(np.sum(kernel**2, axis=(1, 2), keepdims=True))
    return kernel * _safe_inverse(total)


def sloreta_kernel(kernel, block_cov):
    """Multiply a kernel (n_sources, a, m) by S_jj^{-1/2}: the norm of its output is sLORETA."""
    kernel = check_array("kernel", kernel, ndim=3)
    return _inverse_root(_checked_blocks(block_cov, kernel.shape[:2])) @ kernel


def _length(components):
    return components[:, 0] if components.shape[1] == 1 else np.linalg.norm(components, axis=1)


def _inverse_root(blocks):
    values, vectors = np.linalg.eigh(blocks)
    largest = values[:, -1:]
    tolerance = max(RANK_TOLERANCE, 100 * np.finfo(values.dtype).eps)
    values = np.where(values > tolerance * largest, values, 0)
    return (vectors * _safe_inverse(np.sqrt(values))[:, None]) @ vectors.swapaxes(1, 2)


def _safe_inverse(values):
    is_there = values > 0
    return np.where(is_there, 1 / np.where(is_there, values, 1), 0)


def _checked_blocks(block_cov, leading):
    n, a = leading
    block_cov = check_array("block_cov", block_cov, shape=(n, a, a))
    size = np.abs(block_cov).max()
    if not np.allclose(block_cov, block_cov.swapaxes(1, 2), rtol=0, atol=1e-6 * size):
        raise ValueError("block_cov must hold symmetric blocks.")
    _check_variances("block_cov", np.diagonal(block_cov, axis1=1, axis2=2))
    return block_cov


def _check_variances(name, variances):
    if variances.min() < -1e-9 * np.abs(variances).max():
        raise ValueError(f"{name} has a negative variance, {variances.min():.3g}.")
