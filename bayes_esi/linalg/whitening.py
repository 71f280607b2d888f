"""Whitening on the range of a noise covariance.

    noise_cov = E D E',   whitener = D^{-1/2} E'   on the r non-zero eigenpairs

so that ``whitener @ noise`` has identity covariance of size r. A covariance
loses rank through projectors, signal-space separation and re-referencing; the
lost directions carry no noise model and are left out, never regularised.

Densities of whitened data become densities of the original data (with respect
to Lebesgue measure on the covariance's range) by adding ``log_pdet`` per sample.
Cost O(n_channels^3).
"""

import numpy as np

__all__ = ["RANK_TOLERANCE", "block_whitener", "whitener_of"]

# Eigenvalues below this fraction of the largest count as zero. Projectors applied in float64
# leave 1e-16; the weakest real noise direction of 306-channel recordings lies near 1e-6 once
# channel types are brought to a common scale.
RANK_TOLERANCE = 1e-10


def whitener_of(noise_cov, rank=None):
    """Whiten one covariance on its range.

    Parameters
    ----------
    noise_cov : (n_channels, n_channels) array
        Symmetric positive semidefinite, in squared data units.
    rank : int, optional
        Known rank, at most `n_channels`; by default the eigenvalues above
        `RANK_TOLERANCE` times the largest are kept.

    Returns
    -------
    whitener : (rank, n_channels) array
        In inverse data units.
    log_pdet : float
        Log pseudo-determinant of the whitener.

    Raises
    ------
    ValueError
        If the covariance is not symmetric, not positive semidefinite, or zero.
    """
    noise_cov = np.asarray(noise_cov, dtype=np.float64)
    # Channel types differ by many orders of magnitude (T, T/m, V): rank is judged after
    # bringing every channel to unit variance, and the result is scaled back.
    variances = np.diag(noise_cov)
    if np.any(variances < 0):
        raise ValueError(
            "noise_cov is not positive semidefinite: it has a negative variance; "
            "compute it again, for example with mne.compute_covariance."
        )
    largest = float(variances.max(initial=0.0))
    if largest <= 0:
        raise ValueError("noise_cov is zero; give the covariance of the sensor noise.")
    scale = np.sqrt(np.where(variances > 0, variances, largest))
    scaled = noise_cov / np.outer(scale, scale)
    if not np.allclose(scaled, scaled.T, rtol=0, atol=1e-6):
        raise ValueError("noise_cov is not symmetric; compute it again.")
    eigenvalues, eigenvectors = np.linalg.eigh(0.5 * (scaled + scaled.T))
    if eigenvalues[0] < -1e-6 * eigenvalues[-1]:
        raise ValueError(
            "noise_cov is not positive semidefinite: its smallest eigenvalue is "
            f"{eigenvalues[0]:.2g} relative to unit variances; compute it again, for example "
            "with mne.compute_covariance(..., method='auto')."
        )
    if rank is None:
        rank = int(np.count_nonzero(eigenvalues > RANK_TOLERANCE * eigenvalues[-1]))
    kept = slice(noise_cov.shape[0] - rank, None)
    # The scaling is a congruence, so ranks agree. The pairs of the unscaled matrix, whose range is
    # the one the data live in, come from a factor of it: singular values of the factor keep the
    # digits that eigenvalues of the product, squares of very different sizes, would lose.
    factor = scale[:, None] * eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])
    vectors, deviations, _ = np.linalg.svd(factor, full_matrices=False)
    return vectors.T / deviations[:, None], -float(np.sum(np.log(deviations)))


def block_whitener(noise_cov, group, ranks=None):
    """Whiten groups of channels that have separate noise scales.

    Covariance between groups is dropped: with one unknown noise scale per group the
    covariance is block diagonal by definition.

    Parameters
    ----------
    noise_cov : (n_channels, n_channels) array
        In squared data units.
    group : (n_channels,) int array
        Group of each channel, 0 to n_groups - 1.
    ranks : sequence of int, optional
        Known rank of each group.

    Returns
    -------
    whitener : (rank, n_channels) array
    row_group : (rank,) int array
        Group of each whitened row.
    log_pdet : float
        Sum over groups.
    """
    group = np.asarray(group)
    blocks, row_group, log_pdet = [], [], 0.0
    for g in range(int(group.max()) + 1):
        members = np.flatnonzero(group == g)
        block, block_log_pdet = whitener_of(
            np.asarray(noise_cov)[np.ix_(members, members)], None if ranks is None else ranks[g]
        )
        rows = np.zeros((block.shape[0], group.size))
        rows[:, members] = block
        blocks.append(rows)
        row_group.append(np.full(block.shape[0], g, dtype=np.int32))
        log_pdet += block_log_pdet
    return np.concatenate(blocks), np.concatenate(row_group), log_pdet
