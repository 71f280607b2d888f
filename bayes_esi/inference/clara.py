"""CLARA: LORETA repeated under a prior that contracts to where the last image was large.

    x_k = arg min |y - G x|^2 + c_k lambda2 |B D_k^{-1} x|^2,   prior covariance D_k (B'B)^{-1} D_k
    D_1 = diag(depth),   D_{k+1} = diag(depth) diag(s_k / max s_k),   s_k = A |x_k|

with |x_k| the root of the squares of a source summed over components and samples, A the mean over
a source and its neighbours, and s_k / max s_k set to 0 below `cut`. What was removed stays removed:
the support shrinks. c_k rescales the prior to trace(G D (B'B)^{-1} D G') = m at every step, so that
lambda2 = 1 / SNR^2 keeps its meaning.

The first image is LORETA's. All others are a heuristic: the same data make the prior and the
estimate, the iteration minimises nothing, and there is no posterior. Two or three steps are usual.
The method is proprietary; its public description leaves A and the rescaling open, and these
are choices made here.

Cost of a step: solves with B for m d right-hand sides, and O(m^2 n d).

References: Pascual-Marqui, Michel, Lehmann 1994, doi:10.1016/0167-8760(84)90014-X (LORETA); BESA
Research documentation, "Source Analysis 3D Imaging" (CLARA).
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from ..core.checks import check_array, check_count, check_fraction, check_positive
from ..core.types import Float
from ..sources.laplacian import SparseFactor

__all__ = ["Clara", "loreta", "run"]


class Clara(NamedTuple):
    """The last image and how the iteration came to it."""

    estimate: Float[np.ndarray, "n_sources d n_times"]  # x_K
    maps: Float[np.ndarray, "n_steps n_sources"]  # |x_k|, the first of them LORETA's
    weights: Float[np.ndarray, "n_steps n_sources"]  # s_k / max s_k in D_k; ones at the first


def loreta(lead_field, factor, data, lambda2, weights):
    """Solve for one image under the prior covariance D (B'B)^{-1} D, rescaled.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
        Whitened.
    factor : SparseFactor
        B, of the sources; the same for all components.
    data : (m, n_times) array
        Whitened.
    lambda2 : float
        1 / SNR^2, for a prior of trace(G R G') = m.
    weights : (n_sources,) array
        Diagonal of D, not negative.

    Returns
    -------
    (n_sources, d, n_times) array
        In units of `data` over those of `lead_field`.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n, d = lead_field.shape
    data = check_array("data", data, shape=(m, None))
    weights = check_array("weights", weights, shape=(n,))
    lambda2 = check_positive("lambda2", lambda2, remedy="It is 1 / SNR^2.")
    # Whitened by the prior: H = G D B^{-1}, sources by rows.
    weighted = lead_field.transpose(1, 2, 0) * weights[:, None, None]
    white = factor.solve_transposed(weighted.reshape(n, d * m)).reshape(n * d, m)
    data_cov = white.T @ white
    scale = np.trace(data_cov) / m
    if not scale > 0:
        raise ValueError("weights leave no source that the lead field can see.")
    dual = np.linalg.solve(data_cov / scale + lambda2 * np.eye(m), data) / scale
    noise = (white @ dual).reshape(n, -1)
    return (factor.solve(noise) * weights[:, None]).reshape(n, d, -1)


def run(lead_field, factor, data, lambda2, neighbours, *, depth=None, n_steps=3, cut=0.01):
    """Contract LORETA's image.

    Parameters
    ----------
    lead_field, factor, data, lambda2
        As in `loreta`. In place of a `SparseFactor` a function of `weights` (n_sources,) that
        returns an image (n_sources, d, n_times): any other linear estimate.
    neighbours : (n_sources, max_degree) int array
        Padded with -1; images are smoothed over them.
    depth : (n_sources,) array, optional
        Prior standard deviations relative to one another (roots of `depth_weights`).
    n_steps : int
        Images, the first of which is LORETA's.
    cut : float
        Sources below this share of the largest are removed.

    Returns
    -------
    Clara

    Raises
    ------
    ValueError
        On shapes that do not match, or data that are zero.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n, _ = lead_field.shape
    data = check_array("data", data, shape=(m, None))
    n_steps = check_count("n_steps", n_steps)
    cut = check_fraction("cut", cut)
    depth = np.ones(n) if depth is None else check_array("depth", depth, shape=(n,))
    if depth.min() < 0:
        raise ValueError("depth holds standard deviations, which must not be negative.")
    smoother = _smoother(neighbours, n)
    if not np.any(data):
        raise ValueError("data are zero: there is nothing to image.")

    weights = np.ones(n)
    all_weights, maps = [], []
    for _ in range(n_steps):
        if isinstance(factor, SparseFactor):
            estimate = loreta(lead_field, factor, data, lambda2, depth * weights)
        else:
            estimate = np.asarray(factor(depth * weights))
        size = np.sqrt(np.sum(estimate**2, axis=(1, 2)))
        all_weights.append(weights)
        maps.append(size)
        smooth = smoother @ size
        smooth = np.where(weights > 0, smooth, 0)
        smooth = smooth / smooth.max()
        weights = np.where(smooth >= cut, smooth, 0)
    return Clara(estimate, np.stack(maps), np.stack(all_weights))


def _smoother(neighbours, n):
    neighbours = np.asarray(neighbours)
    if neighbours.ndim != 2 or neighbours.shape[0] != n or neighbours.dtype.kind != "i":
        raise ValueError(
            f"neighbours must be an integer table with {n} rows, padded with -1; got shape "
            f"{neighbours.shape}."
        )
    row, column = np.nonzero(neighbours >= 0)
    pairs = (np.append(row, np.arange(n)), np.append(neighbours[row, column], np.arange(n)))
    adjacency = sparse.csr_array((np.ones(pairs[0].size), pairs), (n, n))
    return sparse.diags_array(1 / adjacency.sum(axis=1)) @ adjacency
