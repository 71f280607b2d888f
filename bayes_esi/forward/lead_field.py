"""The lead field of a head and its sensors: container, and evaluation off the grid.

Between the sources the lead field is found by moving least squares: around a position p, with
u_i = (x_i - p) / h of the sources x_i that reach it, |x_i - p| < r_i, and h their mean reach,

    a(p) = argmin_a  sum_i w(|x_i - p| / r_i) (g_i - a' b(u_i))^2 + a' R a,      g(p) = a_1(p)
    b(u) = (1, u_x, u_y, u_z, all six products),   w(s) = (1 - s^2)^2 / (s^2 + SOFTENING)

r_i is the distance from source i to its 30th neighbour. The weights fall to zero, with zero slope,
where a source ceases to reach p, so that g has a continuous gradient everywhere; near a source
they grow, so that there g returns its own field to better than 1e-4. The ridge R is there for
sources on a surface, of which the neighbourhood has no depth: it holds the products back by
1e-6 and the linear terms by rounding only, so that fields linear in position come back exactly.
All channels and orientations share the weights of a position: g(p) = sum_i c_i(p) g_i.

Cost of one position: O(n_sources + n_channels n_orient MOST_SOURCES).

Reference: Lancaster, Salkauskas 1981, doi:10.1090/S0025-5718-1981-0616367-1 (moving least squares).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from ..core import ports
from ..core.checks import check_array
from ..core.struct import static, struct
from ..core.types import Array, Float, Int
from ._points import check_points, is_known
from .sensors import FAMILIES, lead_field_of, rows_of

__all__ = ["LeadField"]

# Neighbours within the reach of a source. The quadratic has ten coefficients; on a cubic grid the
# 27th to the 32nd neighbour are two steps away, and about 33 sources reach each position.
N_NEIGHBOURS = 30

# Sources that may reach one position; in places of very uneven density the last are left out.
MOST_SOURCES = 64

# Distance (in units of its reach, squared) below which a source no longer gains weight.
SOFTENING = 1e-4

# How far outside of the hull of its neighbours a position may lie, in distances between sources:
# a place on a curved surface lies off the chord between its vertices.
HULL_SLACK = 0.25

# Positions evaluated at once: their gathers take 64 times the size of what they return.
_BATCH = 64


@struct
class LeadField:
    """What every source does to every channel, and where both are.

    Make it with `LeadField.compute` from a head model, or from MNE objects with
    `bayes_esi.io.mne_forward.compute_forward` and `lead_field_from_mne`.

    Attributes
    ----------
    data : (n_channels, n_sources, n_orient)
        In V, T or T/m for each A·m. Three orientations are the axes of head coordinates, one is
        along `source_normals`. Potentials are against infinity, or against the reference
        electrode that the sensors name.
    source_pos : (n_sources, 3)
        In m, head coordinates.
    source_normals : (n_sources, 3) or None
        Unit vectors.
    source_volume : (n_sources,) or None
        Volume that each source stands for, in m^3.
    edges : (n_edges, 2) int or None
        Pairs of neighbouring sources.
    faces : (n_faces, 3) int or None
        Triangles between sources, of those on surfaces.
    reach : (n_sources,)
        Distance, in m, up to which a source has weight in values off the grid.
    source_vertices, source_block : (n_sources,) int
        Number of each source in its block of the source space, and which of `block_kinds` it is.
    sensor_pos : (n_channels, 3) or None
        In m.
    mri_to_head : (4, 4) or None
        Rigid transform, translation in m.
    ch_names, ch_types, bads : tuple of str
    block_kinds : tuple of str
        "lh", "rh", "vol" or "discrete".
    subject : str or None
    """

    data: Float[Array, "n_channels n_sources n_orient"]
    source_pos: Float[Array, "n_sources 3"]
    source_normals: Float[Array, "n_sources 3"] | None
    source_volume: Float[Array, " n_sources"] | None
    edges: Int[Array, "n_edges 2"] | None
    faces: Int[Array, "n_faces 3"] | None
    reach: Float[Array, " n_sources"]
    source_vertices: Int[Array, " n_sources"]
    source_block: Int[Array, " n_sources"]
    sensor_pos: Float[Array, "n_channels 3"] | None
    mri_to_head: Float[Array, "4 4"] | None
    ch_names: tuple = static()
    ch_types: tuple = static()
    bads: tuple = static(default=())
    block_kinds: tuple = static(default=("discrete",))
    subject: str | None = static(default=None)

    @property
    def n_channels(self):
        """Number of channels."""
        return self.data.shape[0]

    @property
    def n_sources(self):
        """Number of sources."""
        return self.data.shape[1]

    @property
    def n_orient(self):
        """Orientations of a source: 1 or 3."""
        return self.data.shape[2]

    @property
    def adjacency(self):
        """Which sources are neighbours: sparse, symmetric, (n_sources, n_sources), or None."""
        if self.edges is None:
            return None
        i, j = np.asarray(self.edges).T
        shape = (self.n_sources, self.n_sources)
        graph = sparse.coo_array((np.ones(len(i), bool), (i, j)), shape).tocsr()
        return graph + graph.T

    @classmethod
    def from_arrays(cls, data, source_pos, *, ch_names=None, ch_types=None, **others):
        """Check plain arrays and put them together.

        Parameters
        ----------
        data : (n_channels, n_sources, n_orient) array
            In V, T or T/m for each A·m; two axes mean one orientation.
        source_pos : (n_sources, 3) array
            In m.
        ch_names, ch_types : sequence of str, optional
            By default numbered EEG channels.
        **others
            Any other attribute of the class.

        Returns
        -------
        LeadField

        Raises
        ------
        ValueError
            On shapes that do not match, NaN or infinite values, positions that look like mm, one
            orientation without normals, repeated or unknown channels.
        """
        data = np.asarray(data)
        data = check_array("data", data[:, :, None] if data.ndim == 2 else data, ndim=3)
        n_channels, n_sources, n_orient = data.shape
        if n_orient not in (1, 3):
            raise ValueError(
                f"data must have 1 or 3 orientations in its last axis, got {n_orient}."
            )
        source_pos = check_points("source_pos", source_pos)
        source_pos = check_array("source_pos", source_pos, shape=(n_sources, 3))
        ch_names = [f"EEG {i + 1:03d}" for i in range(n_channels)] if ch_names is None else ch_names
        ch_types = ("eeg",) * n_channels if ch_types is None else tuple(ch_types)
        if not len(ch_names) == len(ch_types) == n_channels or len(set(ch_names)) < n_channels:
            raise ValueError(
                f"ch_names and ch_types must have {n_channels} entries, the names unique; got "
                f"{len(ch_names)} ({len(set(ch_names))} different) and {len(ch_types)}."
            )
        if not set(ch_types) <= set(FAMILIES):
            raise ValueError(f"ch_types must be among {', '.join(FAMILIES)}; got {ch_types[:5]}.")
        others = _defaults(n_sources) | others
        normals = others["source_normals"]
        if normals is not None:
            normals = check_array("source_normals", normals, shape=(n_sources, 3))
            length = np.linalg.norm(normals, axis=1, keepdims=True)
            if np.any(length == 0):
                raise ValueError("source_normals must not contain zero vectors.")
            # Leave what is a unit vector up to rounding as it is, so that files give it back.
            unit = np.abs(length - 1) < 4 * np.finfo(normals.dtype).eps
            others["source_normals"] = np.where(unit, normals, normals / length)
        elif n_orient == 1:
            raise ValueError("data has one orientation: give source_normals, along which it is.")
        others["reach"] = _reach(source_pos).astype(source_pos.dtype)
        for name in ("edges", "faces"):
            others[name] = _check_numbers(name, others[name], n_sources)
        return cls(
            data=data,
            source_pos=source_pos,
            ch_names=tuple(ch_names),
            ch_types=ch_types,
            **others,
        )

    @classmethod
    def compute(cls, model, sensors, source_pos, *, memory_limit=2**29, **others):
        """Evaluate a head model for sensors and sources.

        Parameters
        ----------
        model, sensors, source_pos, memory_limit
            As in `bayes_esi.forward.sensors.lead_field_of`.
        **others
            Attributes that describe the sources.

        Returns
        -------
        LeadField
            With three orientations.
        """
        data = lead_field_of(model, sensors, np.atleast_2d(source_pos), memory_limit=memory_limit)
        return cls.from_arrays(
            data,
            np.atleast_2d(source_pos),
            ch_names=sensors.ch_names,
            ch_types=sensors.ch_types,
            sensor_pos=np.asarray(sensors.sensor_pos),
            bads=sensors.bads,
            **others,
        )

    def for_problem(self):
        """Arguments of `Problem.from_arrays`, all but the data, their times and their covariance.

        Channels must be picked in the order of the data, without bad ones, before.
        """
        return {
            "lead_field": self.data,
            "source_pos": self.source_pos,
            "source_normals": self.source_normals,
            "adjacency": self.adjacency,
            "source_volume": self.source_volume,
            "ch_names": self.ch_names,
            "ch_types": self.ch_types,
            "sensor_pos": self.sensor_pos,
            "source_vertices": self.source_vertices,
            "source_block": self.source_block,
            "block_kinds": self.block_kinds,
            "subject": self.subject,
        }

    def pick(self, ch_names):
        """Some channels, in the given order; `ValueError` names those that do not exist."""
        rows = rows_of(self.ch_names, ch_names)
        return dataclasses.replace(
            self,
            data=self.data[rows],
            sensor_pos=None if self.sensor_pos is None else self.sensor_pos[rows],
            ch_names=tuple(ch_names),
            ch_types=tuple(self.ch_types[i] for i in rows),
            bads=tuple(name for name in self.bads if name in set(ch_names)),
        )

    def fixed(self):
        """Keep the orientation along the normals only: (n_channels, n_sources, 1)."""
        if self.n_orient == 1:
            return self
        if self.source_normals is None:
            raise ValueError("the sources have no normals; give source_normals, or stay free.")
        data = np.einsum("csk,sk->cs", self.data, self.source_normals)
        return dataclasses.replace(self, data=data[:, :, None])

    def referenced(self, matrix):
        """Apply a reference matrix (n_channels, n_channels), such as `average_reference(self)`."""
        matrix = check_array("matrix", matrix, shape=(self.n_channels, self.n_channels))
        return dataclasses.replace(self, data=np.tensordot(matrix, self.data, axes=1))

    def interpolate(self, pos):
        """Lead field at any positions between the sources.

        Parameters
        ----------
        pos : (n_pos, 3) or (3,) array
            In m. Under jit, vmap and grad nothing is checked.

        Returns
        -------
        (n_channels, n_pos, 3) or (n_channels, 3) array
            In V, T or T/m for each A·m. Many concrete positions give a NumPy array, others one
            of JAX.

        Raises
        ------
        ValueError
            If orientation is fixed, there are fewer than five sources, or positions lie outside
            of the hull of their neighbours, where nothing is known; they are counted.

        Notes
        -----
        Value and gradient are continuous in `pos`. Blocks of sources that come close to each other
        (hemispheres) serve each other: the field does not know of them. Positions that no source
        reaches, which only jit lets pass, get zero.
        """
        if self.n_orient != 3:
            raise ValueError(
                "interpolate needs three orientations, since normals jump from source to source; "
                "use the lead field before fixed()."
            )
        if self.n_sources < 5:
            raise ValueError(f"interpolate needs at least five sources, got {self.n_sources}.")
        pos = check_points("pos", pos, allow_single=True)
        if is_known(pos, *jax.tree.leaves(self)):
            _check_inside(np.asarray(self.source_pos), np.asarray(self.reach), np.atleast_2d(pos))
        arrays = [
            jnp.asarray(array, pos.dtype) for array in (self.data, self.source_pos, self.reach)
        ]
        if pos.ndim == 1:
            return _interpolate_one(*arrays, jnp.asarray(pos))
        if not is_known(pos, *jax.tree.leaves(self)):
            return _interpolate(*arrays, pos)
        # Full batches only, so that another number of positions compiles nothing.
        rows = np.resize(np.arange(len(pos)), (-(-len(pos) // _BATCH), _BATCH))
        parts = [np.asarray(_interpolate(*arrays, jnp.asarray(pos[row]))) for row in rows]
        return np.concatenate(parts, axis=1)[:, : len(pos)]

    def save(self, path):
        """Write a NetCDF file; the same object comes back from `bayes_esi.load`."""
        return ports.perform(self, "save", path)

    def to_mne(self, info=None, src=None):
        """Write as `mne.Forward`; see `bayes_esi.io.mne_forward.lead_field_to_mne`."""
        return ports.perform(self, "to_mne", info=info, src=src)

    def __repr__(self):
        """Count channels by type and sources by block."""
        channels = ", ".join(
            f"{self.ch_types.count(kind)} {kind}" for kind in dict.fromkeys(self.ch_types)
        )
        numbers = np.bincount(np.asarray(self.source_block), minlength=len(self.block_kinds))
        sources = ", ".join(f"{n} {k}" for n, k in zip(numbers, self.block_kinds, strict=True))
        return (
            f"LeadField({channels}; {sources}; {self.n_orient} orientation"
            f"{'s' if self.n_orient > 1 else ''}, {len(self.bads)} bad)"
        )


def _defaults(n_sources):
    return {
        "source_normals": None,
        "source_volume": None,
        "edges": None,
        "faces": None,
        "source_vertices": np.arange(n_sources),
        "source_block": np.zeros(n_sources, np.int32),
        "sensor_pos": None,
        "mri_to_head": None,
    }


def _check_numbers(name, numbers, n_sources):
    if numbers is None:
        return None
    numbers = np.asarray(numbers)
    width = {"edges": 2, "faces": 3}[name]
    fits = numbers.ndim == 2 and numbers.shape[1] == width and numbers.dtype.kind in "iu"
    if not fits or np.any(numbers < 0) or np.any(numbers >= n_sources):
        raise ValueError(
            f"{name} must be numbers of sources, 0 to {n_sources - 1}, of shape (any, {width}); "
            f"got shape {numbers.shape}."
        )
    return numbers.astype(np.int32)


def _reach(source_pos):
    """Distance of each source to its 30th neighbour; of few sources, beyond the last."""
    k = min(N_NEIGHBOURS + 1, len(source_pos))
    distance = cKDTree(source_pos).query(source_pos, k=k)[0].reshape(len(source_pos), k)[:, -1]
    return distance if k == N_NEIGHBOURS + 1 else 1.5 * distance


def _check_inside(source_pos, reach, pos):
    """Refuse positions that are no mean, with weights of at least zero, of sources around them."""
    tree = cKDTree(source_pos)
    k = min(MOST_SOURCES, len(source_pos))
    distance, nearest = tree.query(pos, k=k)
    spacing = np.median(tree.query(source_pos, k=2)[0][:, 1])
    n_outside = 0
    for place, far, near in zip(pos, distance, nearest, strict=True):
        if far[0] < HULL_SLACK * spacing:
            continue
        steps = (source_pos[near[far < reach[near]]] - place) / spacing
        if len(steps) < 5:
            n_outside += 1
            continue
        # A heavy last row makes the weights add up to one.
        system = np.vstack([steps.T, np.full(len(steps), 1e3)])
        weights, _ = nnls(system, np.array([0.0, 0.0, 0.0, 1e3]))
        n_outside += bool(np.linalg.norm(weights @ steps) > HULL_SLACK)
    if n_outside:
        raise ValueError(
            f"pos has {n_outside} of {len(pos)} positions outside of the sources, by more than "
            f"{1e3 * HULL_SLACK * spacing:.1f} mm; evaluate the head model there, or use a larger "
            "source space."
        )


@jax.jit
def _interpolate(data, source_pos, reach, pos):
    return jax.vmap(_interpolate_one, (None, None, None, 0), 1)(data, source_pos, reach, pos)


@jax.jit
def _interpolate_one(data, source_pos, reach, place):
    coefficients, nearest = _coefficients(source_pos, reach, place)
    return jnp.einsum("cnk,n->ck", data[:, nearest], coefficients)


def _coefficients(source_pos, reach, place):
    """Weights and numbers of the sources that reach one place."""
    dtype = source_pos.dtype
    eps = np.finfo(dtype).eps
    # The k-th source that reaches the place is where their running count comes to k: six times
    # faster than sorting distances. Beyond the last, indices are clamped and weights are zero.
    reaches = jnp.sum((source_pos - place) ** 2, axis=1) < reach**2
    count = jnp.cumsum(reaches)
    numbers = jnp.arange(1, min(MOST_SOURCES, len(source_pos)) + 1)
    nearest = jnp.minimum(jnp.searchsorted(count, numbers), len(source_pos) - 1)
    steps, reach = source_pos[nearest] - place, reach[nearest]
    s2 = jnp.sum(steps**2, axis=1) / reach**2
    weights = jnp.maximum(1 - s2, 0) ** 2 / (s2 + SOFTENING)
    weights = jnp.where(numbers <= count[-1], weights, 0)
    weights = weights / jnp.maximum(jnp.sum(weights), eps)
    x, y, z = (steps / jnp.maximum(weights @ reach, eps)).T
    basis = jnp.stack([jnp.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x])
    ridge = np.r_[eps**2, np.full(3, eps**0.75), np.full(6, 1e-6)].astype(dtype)
    weighted = basis * weights
    # a_1 = e_1' (B W B' + R)^-1 B W g
    first = jnp.zeros(10, dtype).at[0].set(1)
    solution = jax.scipy.linalg.solve(weighted @ basis.T + jnp.diag(ridge), first, assume_a="pos")
    return solution @ weighted, nearest
