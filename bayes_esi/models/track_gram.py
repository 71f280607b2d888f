"""Gram blocks for dipoles that come and go: the lead field against itself and each sample.

With the noise precisions w_g of the channel groups g, a sample y_t sees places c only through

    A = sum_g w_g G_g,c' G_g,c          b_t = sum_g w_g G_g,c' y_g,t

so that after set-up the cost does not depend on the number of channels. Unlike the static model,
whose likelihood adds up over samples (see `dipole_gram`), time cannot be compressed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float, Int

__all__ = ["TrackGram", "build_track_gram", "project", "track_table_bytes"]


@struct
class TrackGram:
    """Blocks of every pair of places, or the factors that form them, and projected samples."""

    own_blocks: Float[Array, "n_sources n_groups d d"]
    pair_blocks: Float[Array, "n_sources n_sources n_groups d d"] | None
    field: Float[Array, "n_sources d rank"]
    row_group: Int[Array, " rank"]
    projected_data: Float[Array, "n_times n_sources n_groups d"]  # G_g' y_g
    data_power: Float[Array, "n_times n_groups"]
    group_rank: Float[Array, " n_groups"]

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
        return self.group_rank.shape[0]

    @property
    def n_times(self):
        """Number of samples."""
        return self.data_power.shape[0]

    def blocks(self, rows, columns, weights: Float[Array, " n_groups"]):
        """G_row' G_column, weighted by the noise precisions.

        Parameters
        ----------
        rows : (n,) int
        columns : (m,) int, or None for the whole grid
        weights : (n_groups,)

        Returns
        -------
        (n, m, d, d)
            Cost O(d^2) a pair from the table, O(d^2 rank) from factors.
        """
        if self.pair_blocks is not None:
            index = rows if columns is None else (rows[:, None], columns[None, :])
            blocks = self.pair_blocks[index]
            return sum(blocks[..., g, :, :] * weights[g] for g in range(self.n_groups))
        columns = slice(None) if columns is None else columns
        weighted = self.field[rows] * weights[self.row_group]
        return jnp.einsum("ixr,jyr->ijxy", weighted, self.field[columns])

    def matrix(self, places, weights):
        """A of slots: (n_slots d, n_slots d); rows and columns of empty slots (-1) are zero."""
        n_slots, d = places.shape[0], self.n_orient
        is_held = places >= 0
        safe = jnp.where(is_held, places, 0)
        blocks = self.blocks(safe, safe, weights)
        mask = is_held[:, None] & is_held[None, :]
        blocks = jnp.where(mask[:, :, None, None], blocks, 0.0)
        return blocks.swapaxes(1, 2).reshape(n_slots * d, n_slots * d)

    def projection(self, projected: Float[Array, "n_sources n_groups d"], places, weights):
        """Projected sample of slots, from one time: (n_slots d,), zero where a slot is empty."""
        own = projected[jnp.where(places >= 0, places, 0)]
        own = sum(own[:, g] * weights[g] for g in range(self.n_groups))
        return jnp.where(places[:, None] >= 0, own, 0.0).reshape(-1)

    def log_noise(self, power: Float[Array, " n_groups"], weights):
        """Log density of a sample without any dipole, in whitened units."""
        return 0.5 * jnp.sum(self.group_rank * jnp.log(weights / (2 * np.pi)) - weights * power)


def track_table_bytes(n_sources, n_orient, n_groups, itemsize):
    """Memory of the table of pair blocks, in bytes."""
    return n_sources**2 * n_orient**2 * n_groups * itemsize


def project(gram, data):
    """Projections and powers of whitened samples.

    Parameters
    ----------
    gram : TrackGram
    data : (rank, n_times) array

    Returns
    -------
    projected : (n_times, n_sources, n_groups, d)
    power : (n_times, n_groups)
        Cost O(n_times n_sources d rank).
    """
    return _project(gram.field, gram.row_group, gram.n_groups, jnp.asarray(data, gram.field.dtype))


def build_track_gram(lead_field, data, row_group, n_groups, *, tabulate=True):
    """Compute the Gram blocks of a problem.

    Parameters
    ----------
    lead_field : (rank, n_sources, d) array
        Whitened.
    data : (rank, n_times) array
        Whitened.
    row_group : (rank,) int array
        Channel group of each row.
    n_groups : int
    tabulate : bool
        Whether to form the blocks of all pairs now, O(n_sources^2 d^2 rank).

    Returns
    -------
    TrackGram
    """
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    field = jnp.asarray(np.ascontiguousarray(np.moveaxis(lead_field, 0, 2), dtype=dtype))
    row_group = jnp.asarray(row_group, jnp.int32)
    projected, power = _project(field, row_group, n_groups, jnp.asarray(data, dtype))
    return TrackGram(
        own_blocks=_own(field, row_group, n_groups),
        pair_blocks=_pairs(field, row_group, n_groups) if tabulate else None,
        field=field,
        row_group=row_group,
        projected_data=projected,
        data_power=power,
        group_rank=jnp.asarray(np.bincount(row_group, minlength=n_groups), dtype),
    )


def _members(field, row_group, n_groups):
    return (jnp.arange(n_groups)[:, None] == row_group).astype(field.dtype)


@jax.jit(static_argnums=2)
def _project(field, row_group, n_groups, data):
    members = _members(field, row_group, n_groups)
    grouped = members[:, :, None] * data
    projected = jnp.stack([field @ part for part in grouped])  # (n_groups, n_sources, d, n_times)
    return projected.transpose(3, 1, 0, 2), jnp.sum(grouped**2, axis=1).T


@jax.jit(static_argnums=2)
def _own(field, row_group, n_groups):
    members = _members(field, row_group, n_groups)
    return jnp.stack([jnp.einsum("nxr,nyr->nxy", field * m, field) for m in members], axis=1)


@jax.jit(static_argnums=2)
def _pairs(field, row_group, n_groups):
    n_sources, d, rank = field.shape
    members = _members(field, row_group, n_groups)
    flat = field.reshape(-1, rank)

    def rows(own):
        tables = [(own * m) @ flat.T for m in members]
        return jnp.stack([t.reshape(d, n_sources, d).swapaxes(0, 1) for t in tables], axis=1)

    # A few rows at a time: no second table of this size is ever held.
    return jax.lax.map(rows, field, batch_size=32)
