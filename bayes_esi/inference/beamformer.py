"""Linearly constrained minimum variance (LCMV) beamformers on whitened data.

For each source alone, with whitened field G_j (m, d) and data covariance C,

    unit gain              W_j = (G_j' C^{-1} G_j)^{-1} G_j' C^{-1}: least tr W C W' at W_j G_j = I
    array gain             the same for the field divided by its norm, G_j / |G_j|
    unit noise gain        rows of the unit gain filter over their norms: W W' has diagonal 1
    ... , invariant        W_j = (G_j' C^{-2} G_j)^{-1/2} G_j' C^{-1}: W W' = I, whatever the axes
    neural activity index  unit noise gain over the root of the noise level

    power = tr W C W',     pseudo-Z = tr W C W' / tr W W'

*Loading.* C^{-1} stands for (C + loading tr(C) / rank I)^{-1} on the `rank` leading eigenvectors
of C. Whitened data have full rank by construction, so rank = m unless told otherwise.

*Maximum power.* One orientation o a source, with the most power the filter can have: the leading
eigenvector of (G'C^{-1}G)^{-1} for unit gain, of (G'C^{-2}G)^{-1} G'C^{-1}G where noise is
normalised (power over noise), of (G'C^{-1}G)^{-1} G'G for array gain. Its sign is arbitrary: the
largest component is positive.

Directions that a field cannot see get no weight. The noise level is the smallest kept eigenvalue
of C or the loading, whichever is larger.

*Not a posterior.* The filter of a source assumes that all else in C is uncorrelated with it: two
correlated sources cancel one another. With C = G R G' + I for a prior R of independent sources,
the powers 1 / (g' C^{-1} g) are a fixed point of evidence maximisation (sparse Bayesian learning).

*MNE-Python* (`make_lcmv`): weight_norm None, "unit-noise-gain", "unit-noise-gain-invariant" and
"nai" are the same filters; lead fields in SI units there, so that gains differ by the whitener. Its
loading is relative to tr(C) / n_channels also where the rank is lower; the sign of maximum power is
that of the normal; a third direction below 1e-6 of the first in amplitude is an error there, where
it is left out here.

Cost O(m^3 + m^2 n d).

References: Van Veen et al. 1997, doi:10.1109/10.623056; Sekihara, Nagarajan 2008,
doi:10.1007/978-3-540-79370-0 (chapter 4); Westner et al. 2022,
doi:10.1016/j.neuroimage.2021.118789.
"""

from typing import NamedTuple

import numpy as np

from ..core.checks import check_array, check_choice, check_count
from ..core.types import Float

__all__ = ["NORMALISATIONS", "Beamformer", "covariance_of", "run"]

NORMALISATIONS = (
    "unit_gain",
    "array_gain",
    "unit_noise_gain",
    "unit_noise_gain_invariant",
    "neural_activity_index",
)
# Directions below this fraction of a source's largest eigenvalue are not seen.
_TOLERANCE = 1e-10


class Beamformer(NamedTuple):
    """Filters and the maps that follow from them."""

    weights: Float[np.ndarray, "n_sources n_filters m"]  # one filter, or one for each component
    orientations: Float[np.ndarray, "n_sources d"] | None  # of maximum power
    power: Float[np.ndarray, " n_sources"]
    pseudo_z: Float[np.ndarray, " n_sources"]  # power over that of whitened noise
    noise_level: float
    loading: float  # added to the eigenvalues of the covariance


def covariance_of(data):
    """Second moments Y Y' / n_times of whitened data (m, n_times) about zero."""
    data = check_array("data", data, ndim=2)
    return data @ data.T / data.shape[1]


def run(
    lead_field,
    covariance,
    *,
    normalisation="unit_noise_gain_invariant",
    is_max_power=False,
    loading=0.05,
    rank=None,
):
    """Build filters for all sources.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
        Whitened, d from 1 to 3.
    covariance : (m, m) array
        Of whitened data; see `covariance_of`.
    normalisation : str
        One of `NORMALISATIONS`.
    is_max_power : bool
        One filter a source along the orientation of most power in place of d filters.
    loading : float
        Added to the diagonal, relative to the mean eigenvalue.
    rank : int, optional
        Leading eigenvectors of the covariance to use; by default all m.

    Returns
    -------
    Beamformer
        Estimates are ``weights @ data``.

    Raises
    ------
    ValueError
        On shapes that do not match, a covariance that is not positive semidefinite or, without
        loading, singular.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, _, d = lead_field.shape
    if d > 3:
        raise ValueError(f"lead_field must have at most 3 orientations, got {lead_field.shape}.")
    check_choice("normalisation", normalisation, NORMALISATIONS)
    inverse, covariance, noise_level, added = _loaded_inverse(covariance, m, loading, rank)
    dtype = lead_field.dtype
    weights, orientations, power, noise = _filters(
        lead_field.transpose(1, 2, 0),
        inverse.astype(dtype),
        covariance.astype(dtype),
        normalisation,
        is_max_power,
    )
    pseudo_z = np.where(noise > 0, power / np.where(noise > 0, noise, 1), 0)
    if normalisation == "neural_activity_index":
        weights, power = weights / dtype.type(np.sqrt(noise_level)), power / dtype.type(noise_level)
    return Beamformer(weights, orientations, power, pseudo_z, noise_level, added)


def _loaded_inverse(covariance, m, loading, rank):
    covariance = check_array(
        "covariance", covariance, shape=(m, m), remedy="It has a row for each row of lead_field."
    ).astype(float)
    size = np.abs(covariance).max()
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-6 * size):
        raise ValueError("covariance must be symmetric.")
    covariance = (covariance + covariance.T) / 2
    values, vectors = np.linalg.eigh(covariance)
    if not values[-1] > 0 or values[0] < -1e-6 * values[-1]:
        raise ValueError(
            "covariance must be positive semidefinite and not zero; its eigenvalues lie between "
            f"{values[0]:.3g} and {values[-1]:.3g}."
        )
    loading = float(loading)
    if not (np.isfinite(loading) and loading >= 0):
        raise ValueError(f"loading must not be negative, got {loading!r}.")
    rank = m if rank is None else check_count("rank", rank)
    if rank > m:
        raise ValueError(f"rank must be at most {m}, the number of rows, got {rank}.")
    values, vectors = np.maximum(values[m - rank :], 0), vectors[:, m - rank :]
    added = loading * values.sum() / rank
    if values[0] + added <= 1e-12 * values[-1]:
        raise ValueError(
            "covariance is singular: raise loading, give the rank of the data, or use more samples."
        )
    inverse = (vectors / (values + added)) @ vectors.T
    return inverse, covariance, float(max(values[0], added)), float(added)


def _filters(field, inverse, covariance, normalisation, is_max_power):
    """Weights, orientations, power and noise power for fields (n, d, m)."""
    d = field.shape[1]
    if normalisation == "array_gain":
        field = _normed(field)
    image = field @ inverse
    orientations = None
    if is_max_power:
        silent, gain, noise = _silent(field), _blocks(field, image), _blocks(image, image)
        wanted, against = {
            "unit_gain": (np.eye(d, dtype=field.dtype), gain),
            "array_gain": (_blocks(field, field), gain),
        }.get(normalisation, (gain, noise))
        orientations = _leading(wanted, against, silent)
        field = orientations[:, None] @ field
        # The gain is now that of one direction.
        field = _normed(field) if normalisation == "array_gain" else field
        image = field @ inverse
    silent = _silent(field)
    if normalisation == "unit_noise_gain_invariant":
        weights = _power(_blocks(image, image), -0.5, silent) @ image
    else:
        weights = _power(_blocks(field, image), -1.0, silent) @ image
    if normalisation in ("unit_noise_gain", "neural_activity_index"):
        norm = np.linalg.norm(weights, axis=2, keepdims=True)
        weights = weights / np.where(norm > 0, norm, 1)
    power = np.sum((weights @ covariance) * weights, axis=(1, 2))
    return weights, orientations, power, np.sum(weights**2, axis=(1, 2))


def _blocks(left, right):
    return left @ right.swapaxes(1, 2)


def _normed(field):
    norm = np.linalg.norm(field, axis=(1, 2), keepdims=True)
    return field / np.where(norm > 0, norm, 1)


def _silent(field):
    """Projector on the directions of each source without field.

    The field decides, not the blocks with C: in these a strong source is a small eigenvalue.
    """
    gram = _blocks(field, field)
    values, vectors = np.linalg.eigh(gram)
    tolerance = max(_TOLERANCE, 100 * float(np.finfo(gram.dtype).eps))
    is_silent = (values <= tolerance * values[:, -1:]).astype(gram.dtype)
    return (vectors * is_silent[:, None]) @ vectors.swapaxes(1, 2)


def _power(blocks, exponent, silent):
    """Power of symmetric blocks on what is not silent."""
    d = blocks.shape[1]
    mean = np.trace(blocks, axis1=1, axis2=2)[:, None, None] / d
    mean = np.where(mean > 0, mean, 1)
    values, vectors = np.linalg.eigh((blocks + blocks.swapaxes(1, 2)) / 2 + mean * silent)
    values = np.maximum(values, np.finfo(blocks.dtype).eps * values[:, -1:])
    powers = (vectors * (values**exponent)[:, None]) @ vectors.swapaxes(1, 2)
    audible = np.eye(d, dtype=blocks.dtype) - silent
    return audible @ powers @ audible


def _leading(wanted, against, silent):
    """Unit vector o with the largest o' wanted o / o' against o among directions with a field."""
    root = _power(against, -0.5, silent)
    ratio = root @ wanted @ root
    _, vectors = np.linalg.eigh((ratio + ratio.swapaxes(1, 2)) / 2)
    best = (root @ vectors[:, :, -1:])[:, :, 0]
    length = np.linalg.norm(best, axis=1, keepdims=True)
    best = best / np.where(length > 0, length, 1)
    largest = np.take_along_axis(best, np.argmax(np.abs(best), axis=1)[:, None], axis=1)
    return np.where(largest < 0, -best, best)
