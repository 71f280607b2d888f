"""The spatial prior of distributed sources, and what the sensors see of it.

    x_j = sqrt(w_j) frame_j u_j,      u ~ N(0, s^2 (C kron I_d)),      x ~ N(0, s^2 R)

with depth weights w_j = (relative gain)^(-2 depth), orientation frames and a correlation
C = (1 - smoothness) I + smoothness C_1. Sensors see K = G R G' (rank x rank), sources are seen from
sensors through R G' (n_sources, n_axes, rank), and neither needs R.

K depends on (depth, smoothness) smoothly: it is linear in smoothness, and in depth a sum of
exponentials w_j^depth whose logarithms span a few units, so that a Chebyshev series of
`N_NODES` terms is exact to rounding. A hyper-parameter search then costs O(rank^2) for K.

Reference: Lin et al. 2006, doi:10.1016/j.neuroimage.2005.11.054 (depth weights).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float
from ..sources.depth import depth_weights
from .orientation import OrientedField, orient
from .source_covariance import Correlation, correlation_of

__all__ = ["N_NODES", "GramFamily", "SourcePrior", "source_prior"]

# Chebyshev terms in depth: (range / 4)^N / N! falls below 1e-15 for weights over four decades.
N_NODES = 24


@struct
class GramFamily:
    """K as a function of depth and smoothness, for compiled code.

    `series` are Chebyshev coefficients over depth in [0, 1]; a single one is a constant. Two
    parts are the uncorrelated and the correlated one, mixed by smoothness.
    """

    series: Float[Array, "n_parts n_terms rank rank"]

    def at(self, depth, smoothness):
        """K at a depth and a smoothness: (rank, rank)."""
        n_parts, n_terms = self.series.shape[:2]
        x = 2 * jnp.asarray(depth, self.series.dtype) - 1
        terms = [jnp.ones_like(x), x]
        while len(terms) < n_terms:
            terms.append(2 * x * terms[-1] - terms[-2])
        parts = jnp.einsum("k,pkij->pij", jnp.stack(terms[:n_terms]), self.series)
        if n_parts == 1:
            return parts[0]
        return (1 - smoothness) * parts[0] + smoothness * parts[1]


@dataclasses.dataclass(frozen=True, eq=False)
class SourcePrior:
    """The spatial prior of a model on a problem, with unit `source_std`.

    Attributes
    ----------
    field : OrientedField
    correlation : Correlation
    free_field : (rank, n_sources, n_orient)
        Before orientations are restricted: depth is a matter of the place.
    depth_limit : float or None
    """

    field: OrientedField
    correlation: Correlation
    free_field: np.ndarray
    depth_limit: float | None

    def gram(self, depth, smoothness):
        """K = G R G': (rank, rank). The last one asked for is kept."""
        where = (depth, smoothness)
        if where not in self._kept:
            parts = [self._part(c, depth) for c in self._parts(smoothness)]
            self._kept.clear()
            self._kept[where] = self._mix(parts, smoothness)
        return self._kept[where]

    def family(self, depth, smoothness):
        """K as a function of what is None among depth and smoothness.

        Parameters
        ----------
        depth, smoothness : float or None

        Returns
        -------
        GramFamily
        """
        if depth is not None and smoothness is not None:
            return GramFamily(self.gram(float(depth), float(smoothness))[None, None])
        parts = self._parts(smoothness)
        if depth is not None:
            grams = np.array([[self._part(c, depth)] for c in parts])
        else:
            angles = np.pi * (np.arange(N_NODES) + 0.5) / N_NODES
            nodes = 0.5 * (1 + np.cos(angles))
            values = np.array([[self._part(c, node) for node in nodes] for c in parts])
            to_series = 2 / N_NODES * np.cos(np.outer(np.arange(N_NODES), angles))
            to_series[0] /= 2
            grams = np.einsum("kn,pnij->pkij", to_series, values)
        if smoothness is not None:
            grams = self._mix(grams, smoothness)[None]
        return GramFamily(grams)

    def cross(self, depth, smoothness):
        """R G': (n_sources, n_axes, rank), along the axes in which amplitudes are told."""
        weighted = self._weighted(depth)
        root = np.sqrt(self._weights(depth))[:, None, None]
        parts = [self._apply(c, weighted) for c in self._parts(smoothness)]
        frames = self.field.own_frames
        mixed = root * self._mix(parts, smoothness)
        return mixed if frames.shape[2] == 1 else np.einsum("sxd,sdr->sxr", frames, mixed)

    def variance(self, depth, smoothness):
        """Diagonal of R: (n_sources, n_axes)."""
        n_sources, d = self.field.lead_field.shape[1:]
        parts = [
            np.broadcast_to(c.diagonal.reshape(n_sources, -1), (n_sources, d))
            for c in self._parts(smoothness)
        ]
        components = self._weights(depth)[:, None] * self._mix(parts, smoothness)
        return np.einsum("sxd,sd->sx", self.field.own_frames**2, components)

    def variance_along(self, depth, smoothness, sources, directions):
        """Variance along unit vectors (n, n_axes) at some sources, d' R d: (n,)."""
        variance = self.variance(depth, smoothness)[sources]
        if directions.shape[1] == 1:
            return variance[:, 0] * directions[:, 0] ** 2
        n_sources, d = self.field.lead_field.shape[1:]
        frames = self.field.own_frames[sources]
        if self.correlation.size == n_sources:
            # The components of a source are alike and independent: R_jj is a multiple of F F'.
            share = variance.sum(axis=1) / np.sum(frames**2, axis=(1, 2))
            return share * np.sum(np.einsum("na,nad->nd", directions, frames) ** 2, axis=1)
        weights = self._weights(depth)[sources]
        total = np.empty(len(sources))
        for i, (source, direction) in enumerate(zip(sources, directions, strict=True)):
            rows = slice(source * d, (source + 1) * d)
            unit = np.zeros((self.correlation.size, d))
            unit[rows] = np.eye(d)
            block = smoothness * self.correlation.apply(unit)[rows] + (1 - smoothness) * np.eye(d)
            total[i] = weights[i] * direction @ block @ direction
        return total

    def draw(self, rng, depth, smoothness, n_draws):
        """Draws of x: (n_sources, n_axes, n_draws)."""
        n_sources, d = self.field.lead_field.shape[1:]
        total = 0.0
        parts = self._parts(smoothness)
        for c, share in zip(parts, self._shares(smoothness), strict=True):
            shape = (c.n_white, (n_sources * d // c.size) * n_draws)
            drawn = c.root(rng.standard_normal(shape))
            total = total + np.sqrt(share) * drawn.reshape(n_sources, d, n_draws)
        total = total * np.sqrt(self._weights(depth))[:, None, None]
        return np.einsum("sxd,sdk->sxk", self.field.own_frames, total)

    # ---------------------------------------------------------------- parts

    @functools.cached_property
    def _kept(self):
        return {}

    @functools.cached_property
    def _identity(self):
        n = self.field.lead_field.shape[1]
        return Correlation(n, lambda v: v, lambda: np.ones(n), lambda w: w)

    def _parts(self, smoothness):
        return [self.correlation] if smoothness == 1 else [self._identity, self.correlation]

    @staticmethod
    def _shares(smoothness):
        return [1.0] if smoothness == 1 else [1 - smoothness, smoothness]

    def _mix(self, parts, smoothness):
        return sum(s * part for s, part in zip(self._shares(smoothness), parts, strict=True))

    def _weights(self, depth):
        if depth == 0:
            return np.ones(self.field.lead_field.shape[1])
        return depth_weights(np.asarray(self.free_field, np.float64), depth, self.depth_limit)

    @functools.cached_property
    def _field64(self):
        return np.asarray(self.field.lead_field, np.float64)

    def _weighted(self, depth):
        """(n_sources, d, rank): the transposed field times the square root of the weights."""
        field = np.ascontiguousarray(self._field64.transpose(1, 2, 0))
        return field * np.sqrt(self._weights(depth))[:, None, None]

    @staticmethod
    def _apply(correlation, values):
        shape = values.shape
        return correlation.apply(values.reshape(correlation.size, -1)).reshape(shape)

    def _part(self, correlation, depth):
        weighted = self._weighted(depth)
        rank = weighted.shape[2]
        gram = weighted.reshape(-1, rank).T @ self._apply(correlation, weighted).reshape(-1, rank)
        return 0.5 * (gram + gram.T)


def source_prior(model, problem):
    """Build the spatial prior of a Gaussian source model on a problem.

    Raises
    ------
    ValueError
        If the orientation law needs normals, or a covariance has another size.
    """
    field = orient(problem, model.loose)
    d = field.lead_field.shape[2]
    correlation = correlation_of(model.covariance, problem, d)
    if correlation.size != problem.n_sources and 0 < model.loose < 1 and d > 1:
        raise ValueError(
            "covariance over all components needs loose=1 (axes of space) or loose=0 (normals); "
            f"with loose={model.loose} give one over sources."
        )
    return SourcePrior(field, correlation, problem.lead_field, model.depth_limit)
