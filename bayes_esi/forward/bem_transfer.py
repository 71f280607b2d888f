"""From source positions to lead fields once the sensors of a head are solved for.

    L(r0) = Z b(r0) + primary(r0)

with the rows Z of `bem_adjoint.py`, the source terms b of `source_terms.py`, and what reaches a
sensor through an unbounded medium: nothing at electrodes (it is in the surface potential),

    coil     mu_0 / (4 pi) n.(q x a) / a^3          contact     q.a / (4 pi s a^3)

with a from source to sensor and s the conductivity there. Everything is closed form, so that
jit, vmap and derivatives in the source position pass through.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..core.struct import struct
from ..core.types import Array, Float
from .source_terms import SurfaceMesh, source_terms
from .triangle_integrals import cross, dot

__all__ = ["BEMTransfer", "lead_field"]

# Sources at a time: on a CPU the intermediates should stay in the cache, a GPU wants many.
_CPU_BATCH, _GPU_BATCH = 16, 4096


@struct
class BEMTransfer:
    """Solved sensors of a head: call it on source positions.

    Attributes
    ----------
    mesh : SurfaceMesh
        The innermost surface.
    weights : (n_channels, n_vertices) array
        Z, in V or T per unit of the source terms.
    coil_pos, coil_normal, contact_pos : (3, n) arrays
        Sensors that the primary current reaches, components first, in m.
    coil_gain, contact_gain : scalar arrays
        mu_0 / (4 pi) and 1 / (4 pi s).
    mixing : (n_channels, n_coils + n_contacts) array or None
        Combines those sensors; None: they are the last channels.
    """

    mesh: SurfaceMesh
    weights: Float[Array, "n_channels n_vertices"]
    coil_pos: Float[Array, "3 n_coils"]
    coil_normal: Float[Array, "3 n_coils"]
    contact_pos: Float[Array, "3 n_contacts"]
    coil_gain: Float[Array, ""]
    contact_gain: Float[Array, ""]
    mixing: Float[Array, "n_channels n_sensors"] | None

    def __call__(self, source_pos, *, memory_limit=2**28):
        """Lead field at source positions.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            In the innermost compartment, in m; not checked.
        memory_limit : int
            Bytes for the temporary arrays of a batch of sources.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            In V or T per A·m, in the precision of `weights`.
        """
        return lead_field(self, source_pos, memory_limit)

    def astype(self, dtype):
        """Return the same transfer in another precision; single precision costs some 1e-5."""
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, self
        )

    def with_rows(self, weights):
        """Return a transfer with other rows and no primary field."""
        nowhere = jnp.zeros((3, 0), self.weights.dtype)
        return dataclasses.replace(
            self,
            weights=jnp.asarray(weights, self.weights.dtype),
            coil_pos=nowhere,
            coil_normal=nowhere,
            contact_pos=nowhere,
            mixing=None,
        )


def lead_field(transfer, source_pos, memory_limit=2**28):
    """Lead field (n_channels, n_sources, 3) or (n_channels, 3) of a transfer: see `BEMTransfer`."""
    source_pos = jnp.asarray(source_pos, transfer.weights.dtype)
    return _lead_field(transfer, source_pos, _batch_size(transfer.mesh, memory_limit))


def _batch_size(mesh, memory_limit):
    # About fifty arrays over vertices are alive at a time.
    per_source = 50 * mesh.vertices.shape[1] * mesh.vertices.dtype.itemsize
    most = _CPU_BATCH if jax.default_backend() == "cpu" else _GPU_BATCH
    return int(np.clip(memory_limit // per_source, 1, most))


@jax.jit(static_argnums=2)
def _lead_field(transfer, source_pos, batch):
    if source_pos.ndim == 1:
        return _evaluate(source_pos, transfer)
    n_sources = source_pos.shape[0]
    n_batches = -(-n_sources // batch)
    if n_batches == 1:
        return jnp.moveaxis(_evaluate(source_pos.T, transfer), 2, 1)
    fill = n_batches * batch - n_sources
    padded = jnp.concatenate([source_pos, jnp.repeat(source_pos[:1], fill, axis=0)])
    batches = padded.reshape(n_batches, batch, 3).swapaxes(1, 2)
    rows = jax.lax.map(lambda points: _evaluate(points, transfer), batches)
    rows = rows.transpose(1, 0, 3, 2)  # channel, batch, source, component
    return rows.reshape(rows.shape[0], n_batches * batch, 3)[:, :n_sources]


def _evaluate(point, transfer):
    """Lead field (n_channels, 3) at a point (3,), or (n_channels, 3, n) at points (3, n)."""
    terms = source_terms(point, transfer.mesh)
    rows = transfer.weights @ terms.reshape(terms.shape[0], -1)
    rows = rows.reshape(-1, *terms.shape[1:])
    primary = _primary(point, transfer)
    n_primary = primary.shape[0]
    if n_primary == 0:
        return rows
    if transfer.mixing is not None:
        mixed = transfer.mixing @ primary.reshape(n_primary, -1)
        return rows + mixed.reshape(rows.shape)
    return rows.at[rows.shape[0] - n_primary :].add(primary)


def _primary(point, transfer):
    """What coils and contacts see in an unbounded medium, (n_coils + n_contacts, 3, ...)."""

    def over_points(array):
        return array.reshape(*array.shape, *(1,) * (point.ndim - 1))

    def seen_from(sensor_pos):
        apart = over_points(sensor_pos) - point[:, None]
        squared = dot(apart, apart)
        return apart, 1 / (squared * jnp.sqrt(squared))

    apart, cube = seen_from(transfer.coil_pos)
    field = [transfer.coil_gain * cube * c for c in cross(apart, over_points(transfer.coil_normal))]
    apart, cube = seen_from(transfer.contact_pos)
    potential = [transfer.contact_gain * cube * c for c in apart]
    return jnp.concatenate([jnp.stack(field, axis=1), jnp.stack(potential, axis=1)])
