"""From source positions to lead fields once the sensors of a head are solved for.

    L(r0) = Z b(r0) + primary(r0)

with the rows Z of `bem_adjoint.py`, the source terms b of `source_terms.py`, and what reaches a
sensor through an unbounded medium, with a from source to sensor and the gains of `primary_gains`,

    coil     gain n.(q x a) / |a|^3
    electrode, contact     gain q.a / |a|^3

where |a| is at least the radius of a contact, 1 mm, as in `unbounded.py`. Everything is closed
form, so that jit, vmap and derivatives in the source position pass through.
"""

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
_CONTACT_RADIUS = 1e-3  # m


@struct
class BEMTransfer:
    """Solved sensors of a head: call it on source positions.

    Attributes
    ----------
    mesh : SurfaceMesh
        The innermost surface.
    weights : (n_channels, n_vertices) array
        Z, in V or T per unit of the source terms.
    electrode_pos, coil_pos, coil_normal, contact_pos : (3, n) arrays
        Sensors in this order, components first, in m.
    gain : (n_sensors,) array
        Of the primary field.
    mixing : (n_channels, n_sensors) array or None
        Combines sensors into channels; None: they are the channels.
    """

    mesh: SurfaceMesh
    weights: Float[Array, "n_channels n_vertices"]
    electrode_pos: Float[Array, "3 n_electrodes"]
    coil_pos: Float[Array, "3 n_coils"]
    coil_normal: Float[Array, "3 n_coils"]
    contact_pos: Float[Array, "3 n_contacts"]
    gain: Float[Array, " n_sensors"]
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
    if transfer.mixing is not None:
        primary = transfer.mixing @ primary.reshape(primary.shape[0], -1)
    return rows + primary.reshape(rows.shape)


def _primary(point, transfer):
    """What sensors see in an unbounded medium, (n_sensors, 3, ...)."""

    def over_points(array):
        return array.reshape(*array.shape, *(1,) * (point.ndim - 1))

    def seen_from(sensor_pos, radius=0.0):
        apart = over_points(sensor_pos) - point[:, None]
        squared = jnp.maximum(dot(apart, apart), radius**2)
        return apart, 1 / (squared * jnp.sqrt(squared))

    skin, skin_cube = seen_from(transfer.electrode_pos)
    coil, coil_cube = seen_from(transfer.coil_pos)
    contact, contact_cube = seen_from(transfer.contact_pos, _CONTACT_RADIUS)
    turned = cross(coil, over_points(transfer.coil_normal))
    components = [
        jnp.concatenate([skin[d] * skin_cube, turned[d] * coil_cube, contact[d] * contact_cube])
        for d in range(3)
    ]
    return jnp.stack(components, axis=1) * over_points(transfer.gain)[:, None]
