"""The lead field of a head and its sensors: between head models, files, MNE and problems."""

import dataclasses

import jax
import numpy as np
from scipy import sparse

from ..core import ports
from ..core.checks import check_array
from ..core.struct import static, struct
from ..core.types import Array, Float, Int
from ._points import check_points, is_known
from .off_grid import check_inside, interpolate, reach_of
from .sensors import FAMILIES, lead_field_of, rows_of

__all__ = ["LeadField"]


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

    def __array__(self, dtype=None, copy=None):
        """The numbers alone: (n_channels, n_sources, n_orient)."""
        return np.array(self.data, dtype, copy=copy)

    @property
    def shape(self):
        """(n_channels, n_sources, n_orient)."""
        return self.data.shape

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
        others["reach"] = reach_of(source_pos).astype(source_pos.dtype)
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
        """Keep the orientation along the normals only: (n_channels, n_sources, 1).

        Normals are those of the vertices unless the lead field was read from a forward solution
        in local frames, of which MNE averages them over patches of the surface.
        """
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
        """Lead field at any positions between the sources; see `bayes_esi.forward.off_grid`.

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
            check_inside(np.asarray(self.source_pos), np.asarray(self.reach), np.atleast_2d(pos))
        return interpolate(self.data, self.source_pos, self.reach, pos)

    def save(self, path):
        """Write a NetCDF file; the same object comes back from `bayes_esi.load`."""
        return ports.perform(self, "save", path)

    @classmethod
    def from_mne(cls, forward):
        """Read an `mne.Forward`; see `bayes_esi.io.mne_forward.lead_field_from_mne`."""
        return ports.perform(cls, "from_mne", forward)

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
