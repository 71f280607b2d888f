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

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_choice, check_count
from ..core.types import Array, Float

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
_HIGH = lax.Precision.HIGHEST


class Beamformer(NamedTuple):
    """Filters and the maps that follow from them."""

    weights: Float[Array, "n_sources n_filters m"]  # one filter, or one for each component
    orientations: Float[Array, "n_sources d"] | None  # of maximum power
    power: Float[Array, " n_sources"]
    pseudo_z: Float[Array, " n_sources"]  # power over that of whitened noise
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
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    weights, orientations, power, noise = _filters(
        jnp.asarray(lead_field, dtype),
        jnp.asarray(inverse, dtype),
        jnp.asarray(covariance, dtype),
        normalisation=normalisation,
        is_max_power=bool(is_max_power),
    )
    pseudo_z = jnp.where(noise > 0, power / jnp.where(noise > 0, noise, 1), 0)
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


@functools.partial(jax.jit, static_argnames=("normalisation", "is_max_power"))
def _filters(lead_field, inverse, covariance, *, normalisation, is_max_power):
    m, n, d = lead_field.shape
    if normalisation == "array_gain":
        norm = jnp.sqrt(jnp.sum(lead_field**2, axis=(0, 2)))
        lead_field = lead_field / jnp.where(norm > 0, norm, 1)[:, None]
    numerator = jnp.matmul(inverse, lead_field.reshape(m, -1), precision=_HIGH).reshape(m, n, d)
    denominator = _blocks(lead_field, numerator)  # G' C^-1 G
    noise = _blocks(numerator, numerator)  # G' C^-2 G
    silent = _silent(lead_field)
    orientations = None
    if is_max_power and d > 1:
        if normalisation == "unit_gain":
            wanted, against = (
                jnp.broadcast_to(jnp.eye(d, dtype=noise.dtype), noise.shape),
                denominator,
            )
        elif normalisation == "array_gain":
            wanted, against = _blocks(lead_field, lead_field), denominator
        else:
            wanted, against = denominator, noise
        orientations = _leading(wanted, against, silent)
        lead_field = jnp.einsum("msd,sd->ms", lead_field, orientations, precision=_HIGH)[:, :, None]
        numerator = jnp.einsum("msd,sd->ms", numerator, orientations, precision=_HIGH)[:, :, None]
        if normalisation == "array_gain":
            # The gain of this one direction.
            norm = jnp.sqrt(jnp.sum(lead_field**2, axis=(0, 2)))
            norm = jnp.where(norm > 0, norm, 1)[:, None]
            lead_field, numerator = lead_field / norm, numerator / norm
        denominator, noise = _blocks(lead_field, numerator), _blocks(numerator, numerator)
        silent = _silent(lead_field)
    elif is_max_power:
        orientations = jnp.ones((n, 1), noise.dtype)
    rows = numerator.transpose(1, 2, 0)
    if normalisation == "unit_noise_gain_invariant":
        weights = jnp.matmul(_power(noise, -0.5, silent), rows, precision=_HIGH)
    else:
        weights = jnp.matmul(_power(denominator, -1.0, silent), rows, precision=_HIGH)
    if normalisation in ("unit_noise_gain", "neural_activity_index"):
        norm = jnp.linalg.norm(weights, axis=2, keepdims=True)
        weights = weights / jnp.where(norm > 0, norm, 1)
    image = jnp.matmul(weights.reshape(-1, m), covariance, precision=_HIGH)
    power = jnp.sum(image.reshape(weights.shape) * weights, axis=(1, 2))
    return weights, orientations, power, jnp.sum(weights**2, axis=(1, 2))


def _blocks(left, right):
    return jnp.einsum("msd,mse->sde", left, right, precision=_HIGH)


def _silent(lead_field):
    """Projector on the directions of each source without field.

    The field decides, not the blocks with C: in these a strong source is a small eigenvalue.
    """
    gram = _blocks(lead_field, lead_field)
    values, vectors = jnp.linalg.eigh(gram)
    tolerance = max(_TOLERANCE, 100 * float(jnp.finfo(gram.dtype).eps))
    is_silent = (values <= tolerance * values[:, -1:]).astype(gram.dtype)
    return jnp.matmul(vectors * is_silent[:, None], vectors.swapaxes(1, 2), precision=_HIGH)


def _power(blocks, exponent, silent):
    """Power of symmetric blocks on what is not silent."""
    d = blocks.shape[1]
    mean = jnp.trace(blocks, axis1=1, axis2=2)[:, None, None] / d
    mean = jnp.where(mean > 0, mean, 1)
    # On blocks of one number `silent` is 0 or 1, and a silent source gets no weight at all.
    values, vectors = jnp.linalg.eigh((blocks + blocks.swapaxes(1, 2)) / 2 + mean * silent)
    values = jnp.maximum(values, jnp.finfo(blocks.dtype).eps * values[:, -1:])
    powers = jnp.matmul(
        vectors * (values**exponent)[:, None], vectors.swapaxes(1, 2), precision=_HIGH
    )
    audible = jnp.eye(d, dtype=blocks.dtype) - silent
    return jnp.matmul(jnp.matmul(audible, powers, precision=_HIGH), audible, precision=_HIGH)


def _leading(wanted, against, silent):
    """Unit vector o with the largest o' wanted o / o' against o among directions with a field."""
    root = _power(against, -0.5, silent)
    ratio = jnp.matmul(jnp.matmul(root, wanted, precision=_HIGH), root, precision=_HIGH)
    _, vectors = jnp.linalg.eigh((ratio + ratio.swapaxes(1, 2)) / 2)
    best = jnp.einsum("sde,se->sd", root, vectors[:, :, -1], precision=_HIGH)
    length = jnp.linalg.norm(best, axis=1, keepdims=True)
    best = best / jnp.where(length > 0, length, 1)
    largest = jnp.take_along_axis(best, jnp.argmax(jnp.abs(best), axis=1)[:, None], axis=1)
    return best * jnp.where(largest < 0, -1, 1)
