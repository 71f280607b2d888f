"""What a linear estimate makes of the sources: point spread, cross-talk and their measures.

    x = K y,  y = G s:   x_i = sum_j R_ij s_j,   R_ij = K_i G_j     (a x a blocks)

Column j of R is the point spread of source j: the map that it alone produces. Row i is the
cross-talk of estimate i: what each source contributes to it. R (n a x n a) has rank m at most
and stays factored: columns and rows are products, measures are taken over a few columns at a time.

With r_ij = |R_ij| (Frobenius norm, or the norm along a given orientation), p_i the positions and f
one column or row,

    peak error          |p_argmax f - p_j|
    gravity error       |sum_i f_i p_i / sum_i f_i - p_j|
    spatial deviation   sqrt(sum_i |p_i - p_j|^2 f_i^2 / sum_i f_i^2)
    relative peak, total    max f, sum f over their largest among all sources

which are MNE's peak_err, cog_err, sd_ext, peak_amp, sum_amp for one orientation.

For the posterior mean under a prior of covariance c I: R is symmetric, its eigenvalues lie in
[0, 1), its trace is the number of degrees of freedom of the fit, sum e / (e + 1) over eigenvalues e
of c G G', and the posterior covariance is (I - R) c.

Cost O(m n^2 a^2) for measures of all sources.

References: Hauk, Stenroos, Treder 2022, doi:10.1016/j.neuroimage.2022.119177; Molins et al. 2008,
doi:10.1016/j.neuroimage.2008.05.064 (spatial deviation).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_choice, check_positive

__all__ = ["Resolution"]

# Numbers in one block of columns: about 64 MB in double precision.
_BLOCK = 8_000_000


class Resolution:
    """Resolution of a linear estimate, from factors.

    Parameters
    ----------
    kernel : (n_sources, a, m) array
        K, or its left factor B where K = B diag(weights).
    lead_field : (m, n_sources, a) array
        G in the coordinates of the kernel's last axis (whitened, rotated).
    source_pos : (n_sources, 3) array
        In m.
    weights : (m,) array, optional
        Diagonal between both factors.

    Raises
    ------
    ValueError
        If shapes do not match.
    """

    def __init__(self, kernel, lead_field, source_pos, weights=None):
        kernel = check_array("kernel", kernel, ndim=3)
        n, a, m = kernel.shape
        self.lead_field = check_array(
            "lead_field", lead_field, shape=(m, n, a), remedy="It must match the kernel."
        )
        self.source_pos = check_array("source_pos", source_pos, shape=(n, 3))
        if weights is not None:
            kernel = kernel * check_array("weights", weights, shape=(m,))
        self.kernel = kernel

    @property
    def n_sources(self):
        """Number of sources."""
        return self.kernel.shape[0]

    @property
    def n_orient(self):
        """Components per source."""
        return self.kernel.shape[1]

    def point_spread(self, source, orientation=None):
        """Map of one active source.

        Parameters
        ----------
        source : int
        orientation : (a,) array, optional
            Direction of the source, made unit length.

        Returns
        -------
        (n_sources,) array, or (n_sources, a) with an orientation
            R_ij: with one component or an orientation, signed estimates for a unit source; else
            the root of their sum of squares over all components.
        """
        field = self.lead_field[:, self._index(source)]
        if orientation is not None:
            return self.kernel @ (field @ self._unit(orientation))
        return _magnitude(self.kernel @ field)

    def cross_talk(self, source, orientation=None):
        """What every source contributes to one estimate.

        Parameters
        ----------
        source : int
        orientation : (a,) array, optional
            Direction along which the estimate is read, made unit length.

        Returns
        -------
        (n_sources,) array, or (n_sources, a) with an orientation
            As `point_spread`.
        """
        row = self.kernel[self._index(source)]
        if orientation is not None:
            return np.tensordot(self._unit(orientation) @ row, self.lead_field, 1)
        return _magnitude(np.einsum("am,mnb->nab", row, self.lead_field, optimize=True))

    def trace(self):
        """Trace of R: degrees of freedom of the fit of a posterior mean. Cost O(m n_sources a)."""
        return float(np.einsum("nam,mna->", self.kernel, self.lead_field))

    def metrics(self, kind="point_spread", orientations=None):
        """Measures of every source's point spread or cross-talk.

        Parameters
        ----------
        kind : "point_spread" or "cross_talk"
        orientations : (n_sources, a) array, optional
            Direction of each source (of each estimate, for cross-talk). By default all
            directions: the Frobenius norm of each block.

        Returns
        -------
        pandas.DataFrame
            One row a source: `peak_error_mm`, `gravity_error_mm`, `spatial_deviation_mm`,
            `relative_peak`, `relative_total` (unitless). A source that reaches no sensor has zero
            amplitudes and NaN distances.
        """
        import pandas as pd

        check_choice("kind", kind, ("point_spread", "cross_talk"))
        n, a, m = self.kernel.shape
        # Both are sums over `many` of what each of `one` gives: columns of many @ one.
        many = self.kernel
        one = self.lead_field.transpose(1, 2, 0)
        if kind == "cross_talk":
            many, one = one, many
        if orientations is not None:
            orientations = check_array("orientations", orientations, shape=(n, a))
            length = np.linalg.norm(orientations, axis=1, keepdims=True)
            if not length.min() > 0:
                raise ValueError("orientations must not contain zero vectors.")
            one = np.einsum("nam,na->nm", one, orientations / length)[:, None]
        dtype = jax.dtypes.canonicalize_dtype(np.result_type(many, one))
        # Squared distances are differences of squares: smaller about the centre.
        pos = jnp.asarray(self.source_pos - self.source_pos.mean(axis=0), dtype)
        many = jnp.asarray(many.reshape(n * a, m), dtype)
        n_one = one.shape[1]
        size = min(n, max(1, _BLOCK // (n * a * n_one)))
        parts = []
        for start in range(0, n, size):
            # The last block overlaps the one before, so that all have one shape.
            first = min(start, n - size)
            block = jnp.asarray(one[first : first + size], dtype)
            measures = _measures(many, block, pos, pos[first : first + size], n_orient=a)
            parts.append(np.asarray(measures)[:, start - first :])
        peak_error, gravity, deviation, peak, total = np.concatenate(parts, axis=1)
        return pd.DataFrame(
            {
                "peak_error_mm": 1e3 * peak_error,
                "gravity_error_mm": 1e3 * gravity,
                "spatial_deviation_mm": 1e3 * deviation,
                "relative_peak": peak / peak.max(),
                "relative_total": total / total.max(),
            },
            index=pd.RangeIndex(n, name="source"),
        )

    def matrix(self, memory_limit=2e9):
        """R itself.

        Parameters
        ----------
        memory_limit : float
            Bytes that the matrix may take.

        Returns
        -------
        (n_sources, a, n_sources, a) array
            Estimate first, source second.

        Raises
        ------
        ValueError
            If it is larger than `memory_limit`.
        """
        n, a, m = self.kernel.shape
        n_bytes = (n * a) ** 2 * np.result_type(self.kernel, self.lead_field).itemsize
        if n_bytes > check_positive("memory_limit", memory_limit):
            raise ValueError(
                f"the matrix takes {n_bytes / 1e9:.2g} GB, more than memory_limit "
                f"({memory_limit / 1e9:.2g} GB): use point_spread, cross_talk or metrics."
            )
        flat = self.kernel.reshape(n * a, m) @ self.lead_field.reshape(m, n * a)
        return flat.reshape(n, a, n, a)

    def _index(self, source):
        if not -self.n_sources <= source < self.n_sources:
            raise ValueError(f"source must lie below {self.n_sources}, got {source}.")
        return source

    def _unit(self, orientation):
        orientation = check_array("orientation", orientation, shape=(self.n_orient,))
        length = np.linalg.norm(orientation)
        if not length > 0:
            raise ValueError("orientation must not be zero.")
        return orientation / length


@functools.partial(jax.jit, static_argnames="n_orient")
def _measures(many, one, pos, own_pos, *, n_orient):
    """Measures of the columns `one` (c, b, m) of a matrix with rows `many` (n a, m): (5, c)."""
    n = pos.shape[0]
    product = jnp.tensordot(many, one, ((1,), (2,)), precision=lax.Precision.HIGHEST)
    power = jnp.sum(product.reshape(n, n_orient, *one.shape[:2]) ** 2, axis=(1, 3))
    size = jnp.sqrt(power)
    peak_error = jnp.linalg.norm(pos[jnp.argmax(power, axis=0)] - own_pos, axis=1)
    total = jnp.sum(size, axis=0)
    gravity = jnp.matmul(size.T, pos, precision=lax.Precision.HIGHEST) / total[:, None]
    total_power = jnp.sum(power, axis=0)
    radius = jnp.sum(pos**2, axis=1)
    squares = jnp.matmul(power.T, jnp.column_stack([radius, pos]), precision=lax.Precision.HIGHEST)
    squares = squares / total_power[:, None]
    spread = squares[:, 0] - 2 * jnp.sum(squares[:, 1:] * own_pos, axis=1)
    spread = jnp.maximum(spread + jnp.sum(own_pos**2, axis=1), 0)
    return jnp.stack(
        [
            jnp.where(total > 0, peak_error, jnp.nan).astype(size.dtype),
            jnp.linalg.norm(gravity - own_pos, axis=1),
            jnp.sqrt(spread),
            jnp.max(size, axis=0),
            total,
        ]
    )


def _magnitude(blocks):
    return blocks[:, 0, 0] if blocks.shape[1:] == (1, 1) else np.linalg.norm(blocks, axis=(1, 2))
