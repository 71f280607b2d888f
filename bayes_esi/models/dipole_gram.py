"""Gram blocks: all that the multi-dipole likelihood ever needs of data and lead field.

For places c with lead field G_c (rank x d k), noise precisions w_g = 1 / noise_std_g^2 of the
channel groups g and moment precision delta = 1 / moment_std^2,

    A = sum_g w_g G_g,c' G_g,c                H = A + delta I
    B = sum_g w_g G_g,c' Y_g                  M = B B'
    log p(Y | c) = log_p0 - T/2 (log|H| - d k log delta) + 1/2 tr(H^-1 M)
    log_p0 = -1/2 sum_g [ r_g T log(2 pi / w_g) + w_g tr(Y_g Y_g') ]

with the moments integrated out. A and M consist of d x d blocks that depend on two places
each, so they are tabulated once for the grid: a likelihood then costs O((d k)^3) whatever the
number of channels and samples. When the table exceeds the memory limit, blocks are formed
from the rows of G and G'Y when they are needed.

Reference: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float, Int

__all__ = ["DipoleGram", "build_gram", "table_bytes"]

# Rows of the table formed in one matrix product: large enough for full speed, small enough
# that building needs little memory beside the table itself.
_CHUNK = 32


@struct
class DipoleGram:
    """Gram blocks of every pair of places, as a table or as the factors that form them.

    `n_tables` counts the n_groups field blocks, then the n_groups (n_groups + 1) / 2 data
    blocks of the unordered pairs of groups. `n_columns` is the number of samples, or the rank
    of the data where that is less.
    """

    own_blocks: Float[Array, "n_sources n_tables d d"]
    pair_blocks: Float[Array, "n_sources n_sources n_tables d d"] | None
    field: Float[Array, "n_sources d rank"]
    row_group: Int[Array, " rank"]
    projected_data: Float[Array, "n_sources d n_groups n_columns"]  # G_g' Y_g
    data_power: Float[Array, " n_groups"]  # tr(Y_g Y_g')
    group_rank: Float[Array, " n_groups"]
    n_times: Float[Array, ""]

    @property
    def n_sources(self):
        """Number of places."""
        return self.own_blocks.shape[0]

    @property
    def n_orient(self):
        """Moment components of a dipole."""
        return self.own_blocks.shape[-1]

    @property
    def n_groups(self):
        """Number of noise scales."""
        return self.data_power.shape[0]

    def own(self, places, weights):
        """Field and data blocks of places with themselves: two arrays (..., d, d).

        `places` is an index array, or a slice for a range of the grid.
        """
        return _weigh(self.own_blocks[places], weights)

    def cross(self, rows: Int[Array, " n_rows"], columns, weights: Float[Array, " n_groups"]):
        """Field and data blocks between places.

        Parameters
        ----------
        rows : (n_rows,) int
        columns : (n_columns,) int, or None for the whole grid
        weights : (n_groups,)
            Noise precisions.

        Returns
        -------
        field, data : (n_rows, n_columns, d, d)
            Cost O(d^2) a pair from the table, O(d^2 (rank + n_times)) from factors.
        """
        if self.pair_blocks is not None:
            index = rows if columns is None else (rows[:, None], columns[None, :])
            return _weigh(self.pair_blocks[index], weights)
        columns = slice(None) if columns is None else columns
        weighted = self.field[rows] * weights[self.row_group]
        field = jnp.einsum("ixr,jyr->ijxy", weighted, self.field[columns])
        left, right = (
            jnp.einsum("ixgt,g->ixt", self.projected_data[places], weights)
            for places in (rows, columns)
        )
        return field, jnp.einsum("ixt,jyt->ijxy", left, right)

    def log_density_of_noise(self, weights: Float[Array, " n_groups"]) -> Float[Array, ""]:
        """Log density of the data without any dipole, in whitened units."""
        n_values = self.group_rank * self.n_times
        return 0.5 * jnp.sum(n_values * jnp.log(weights / (2 * np.pi)) - weights * self.data_power)


def table_bytes(n_sources, n_orient, n_groups, itemsize):
    """Memory of the table of pair blocks, in bytes."""
    n_tables = n_groups + n_groups * (n_groups + 1) // 2
    return n_sources**2 * n_orient**2 * n_tables * itemsize


def build_gram(lead_field, data, row_group, n_groups, *, tabulate=True):
    """Compute the Gram blocks of a problem.

    Parameters
    ----------
    lead_field : (rank, n_sources, n_orient) array
        Whitened.
    data : (rank, n_times) array
        Whitened.
    row_group : (rank,) int array
        Channel group of each row.
    n_groups : int
    tabulate : bool
        Whether to form the blocks of all pairs now.

    Returns
    -------
    DipoleGram

    Notes
    -----
    Time is compressed exactly: the likelihood sees the data only through Y Y', so Y may be
    replaced by Y V with V the right singular vectors. Cost of the table
    O(n_sources^2 n_orient^2 (rank + n_times)).
    """
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    data = np.asarray(data, np.float64)
    n_times = data.shape[1]
    if n_times > data.shape[0]:
        left, singular, _ = np.linalg.svd(data, full_matrices=False)
        data = left * singular
    membership = np.equal.outer(np.arange(n_groups), row_group)
    grouped = np.where(membership[:, :, None], data, 0.0)  # (n_groups, rank, n_columns)
    field = np.ascontiguousarray(np.moveaxis(lead_field, 0, 2), dtype=dtype)
    projected = np.einsum("sdr,grt->sdgt", field, grouped.astype(dtype), optimize=True)
    parts = (
        jnp.asarray(field),
        jnp.asarray(np.ascontiguousarray(projected, dtype=dtype)),
        jnp.asarray(membership, dtype=dtype),
    )
    return DipoleGram(
        own_blocks=_own_blocks(*parts),
        pair_blocks=_pair_blocks(*parts, min(_CHUNK, len(field))) if tabulate else None,
        field=parts[0],
        row_group=jnp.asarray(row_group, jnp.int32),
        projected_data=parts[1],
        data_power=jnp.asarray(np.sum(grouped**2, axis=(1, 2)), dtype),
        group_rank=jnp.asarray(membership.sum(axis=1), dtype),
        n_times=jnp.asarray(n_times, dtype),
    )


def _weigh(blocks, weights):
    """Sum tables (..., n_tables, d, d) into one field and one data block."""
    n_groups = weights.shape[0]
    pairs = zip(*np.triu_indices(n_groups), strict=True)
    # Sums of a few slices: a contraction over the tables would become tiny matrix products.
    field = sum(blocks[..., g, :, :] * weights[g] for g in range(n_groups))
    data = sum(
        blocks[..., n_groups + i, :, :] * (weights[g] * weights[h])
        for i, (g, h) in enumerate(pairs)
    )
    return field, data


def _tables(product, grid_field, grid_projected, field, projected, membership):
    """Stack the tables of d x d blocks between some places and the grid.

    `product(left, right)` multiplies (n, d, q) by (m, d, q) over q into blocks.
    """
    tables = [product(field * m, grid_field) for m in membership]
    for g, h in zip(*np.triu_indices(membership.shape[0]), strict=True):
        table = product(projected[:, :, g], grid_projected[:, :, h])
        if g != h:
            table = table + product(projected[:, :, h], grid_projected[:, :, g])
        tables.append(table)
    return jnp.stack(tables, axis=-3)


@jax.jit
def _own_blocks(field, projected, membership):
    def product(left, right):
        return jnp.einsum("ixq,iyq->ixy", left, right)

    return _tables(product, field, projected, field, projected, membership)


@jax.jit(static_argnums=3)
def _pair_blocks(field, projected, membership, chunk):
    n_sources, n_orient, _ = field.shape

    def product(left, right):
        # One plain matrix product: several times faster than the batched form on CPU.
        flat = left.reshape(-1, left.shape[-1]) @ right.reshape(-1, right.shape[-1]).T
        return flat.reshape(-1, n_orient, n_sources, n_orient).swapaxes(1, 2)

    def fill(step, table):
        # The last chunk starts early enough to be whole; rows written twice are equal.
        start = jnp.minimum(step * chunk, n_sources - chunk)
        rows = [jax.lax.dynamic_slice_in_dim(array, start, chunk) for array in (field, projected)]
        blocks = _tables(product, field, projected, *rows, membership)
        return jax.lax.dynamic_update_slice_in_dim(table, blocks, start, 0)

    n_tables = membership.shape[0] + len(np.triu_indices(membership.shape[0])[0])
    table = jnp.zeros((n_sources, n_sources, n_tables, n_orient, n_orient), field.dtype)
    return jax.lax.fori_loop(0, -(-n_sources // chunk), fill, table)
