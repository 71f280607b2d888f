"""The inverse problem every model is put to: whitened data, whitened lead field, geometry.

    data = sum_j lead_field[:, j] @ moment_j + noise,     noise ~ N(0, noise_std^2 I)

in whitened units. Rows of different `noise_group` may have different `noise_std`.
Moments inside are in units of `moment_unit`, so that the columns of the lead field have
norms of order one (squared magnetic fields would underflow in single precision).
"""

import numpy as np

from ..core.checks import check_array
from ..core.struct import static, struct
from ..linalg.whitening import block_whitener
from ..sources.adjacency import neighbour_table, radius_adjacency, source_spacing

__all__ = ["Problem"]


@struct
class Problem:
    """Whitened data and lead field with the geometry they belong to.

    Build it with `from_arrays`, or from MNE objects with `bayes_esi.from_mne`.

    Attributes
    ----------
    data : (rank, n_times)
        Whitened data, unitless.
    lead_field : (rank, n_sources, n_orient)
        Whitened field of a dipole of one `moment_unit`. Three orientations are the axes of
        the coordinate system of `source_pos`; one is the direction of `source_normals`.
    source_pos : (n_sources, 3)
        Positions in m.
    source_normals : (n_sources, 3) or None
        Unit vectors.
    source_volume : (n_sources,)
        Volume that each source stands for, in m^3.
    neighbours : (n_sources, max_degree) int
        Adjacent sources, padded with -1.
    times : (n_times,)
        In s.
    noise_group : (rank,) int
        Which of `group_names` each whitened row belongs to.
    whitener : (rank, n_channels)
        In inverse data units.
    log_jacobian : float
        Added to a log density of `data` gives that of the data in their own units, in nats.
    moment_unit : float
        In A·m.
    sensor_pos : (n_channels, 3) or None
        In m.
    source_vertices, source_block : (n_sources,) int
        Vertex number of each source, and its block among `block_kinds`.
    ch_names, ch_types : tuple of str
    group_names : tuple of str
        Channel groups with a noise scale each.
    block_kinds : tuple of str
        Kind of each part of the source space: "lh", "rh", "vol" or "discrete".
    subject : str or None
    """

    data: np.ndarray
    lead_field: np.ndarray
    source_pos: np.ndarray
    source_normals: np.ndarray | None
    source_volume: np.ndarray
    neighbours: np.ndarray
    times: np.ndarray
    noise_group: np.ndarray
    whitener: np.ndarray
    log_jacobian: float
    moment_unit: float
    sensor_pos: np.ndarray | None
    source_vertices: np.ndarray
    source_block: np.ndarray
    ch_names: tuple = static()
    ch_types: tuple = static()
    group_names: tuple = static()
    block_kinds: tuple = static()
    subject: str | None = static()

    @property
    def n_times(self):
        """Number of samples."""
        return self.data.shape[1]

    @property
    def n_sources(self):
        """Number of places a dipole can take."""
        return self.lead_field.shape[1]

    @property
    def n_orient(self):
        """Orientations per source: 1 or 3."""
        return self.lead_field.shape[2]

    @property
    def n_channels(self):
        """Number of channels before whitening."""
        return self.whitener.shape[1]

    @property
    def n_groups(self):
        """Number of channel groups with a noise scale each."""
        return len(self.group_names)

    @property
    def cell_variance(self):
        """Variance along each axis within the cell that a source stands for: (n_sources,) in m^2.

        A position is uniform within its cell: with neighbours at distance h, a cube of a volume
        grid has h^2 / 12 along each axis, a square of a cortical surface the same along two.
        """
        steps = self.source_pos[np.maximum(self.neighbours, 0)] - self.source_pos[:, None]
        is_there = self.neighbours >= 0
        degree = is_there.sum(axis=1)
        squared = np.sum(np.where(is_there, np.sum(steps**2, axis=2), 0.0), axis=1)
        of_volume = self.source_volume ** (2 / 3)
        squared = np.where(degree > 0, squared / np.maximum(degree, 1), of_volume)
        is_surface = np.isin(np.array(self.block_kinds), ("lh", "rh"))[self.source_block]
        return squared / 12 * np.where(is_surface, 2 / 3, 1.0)

    @classmethod
    def from_arrays(
        cls,
        data,
        lead_field,
        source_pos,
        noise_cov=None,
        source_normals=None,
        adjacency=None,
        times=None,
        *,
        source_volume=None,
        ch_names=None,
        ch_types=None,
        noise_groups=None,
        noise_ranks=None,
        sensor_pos=None,
        source_vertices=None,
        source_block=None,
        block_kinds=("discrete",),
        subject=None,
    ):
        """Whiten plain arrays into a problem.

        Parameters
        ----------
        data : (n_channels, n_times) array
            In V, T or T/m, like the lead field.
        lead_field : (n_channels, n_sources, n_orient) array
            Data units per A·m; `n_orient` is 3, or 1 along `source_normals`.
            An array (n_channels, n_sources) is one orientation.
        source_pos : (n_sources, 3) array
            In m.
        noise_cov : (n_channels, n_channels) array, optional
            Covariance of the noise in `data`, in squared data units; may be rank
            deficient. By default the identity: `noise_std` is then in data units.
        source_normals : (n_sources, 3) array, optional
            Made unit length.
        adjacency : sparse or dense (n_sources, n_sources), optional
            Non-zero between neighbours. By default, sources within 1.2 spacings.
        times : (n_times,) array, optional
            In s; by default sample numbers.
        source_volume : float or (n_sources,) array, optional
            In m^3; by default the cube of the source spacing.
        ch_names, ch_types : sequence of str, optional
        noise_groups : sequence of str, optional
            Group of each channel; groups have noise scales of their own and are
            whitened separately. By default one group.
        noise_ranks : dict, optional
            Known rank of a group's noise covariance.
        sensor_pos : (n_channels, 3) array, optional
            In m, for topographies.
        source_vertices, source_block, block_kinds, subject : optional
            Where each source stands in an MNE source space.

        Returns
        -------
        Problem

        Raises
        ------
        ValueError
            On NaN or infinite values, shapes that do not match, an empty time axis, a
            covariance that is not positive semidefinite, or a lead field that is zero.

        Notes
        -----
        Cost O(n_channels^3 + n_channels^2 n_sources n_orient).
        """
        data = check_array("data", data, ndim=2)
        n_channels, n_times = data.shape
        lead_field = np.asarray(lead_field)
        if lead_field.ndim == 2:
            lead_field = lead_field[:, :, None]
        lead_field = check_array(
            "lead_field",
            lead_field,
            shape=(n_channels, None, None),
            remedy="It has one row for each channel of data: (n_channels, n_sources, n_orient).",
        )
        _, n_sources, n_orient = lead_field.shape
        if n_orient not in (1, 3):
            raise ValueError(
                f"lead_field must have 1 or 3 orientations in its last axis, got {n_orient}."
            )
        source_pos = check_array("source_pos", source_pos, shape=(n_sources, 3))
        if len(np.unique(source_pos, axis=0)) < n_sources:
            raise ValueError("source_pos holds the same position twice; remove the duplicates.")
        if times is None:
            times = np.arange(n_times, dtype=np.float64)
        times = check_array("times", times, shape=(n_times,))
        if source_normals is not None:
            source_normals = check_array("source_normals", source_normals, shape=(n_sources, 3))
            length = np.linalg.norm(source_normals, axis=1, keepdims=True)
            if np.any(length == 0):
                raise ValueError("source_normals must not contain zero vectors.")
            source_normals = source_normals / length
        if sensor_pos is not None:
            sensor_pos = check_array("sensor_pos", sensor_pos, shape=(n_channels, 3))

        names = tuple(dict.fromkeys(noise_groups)) if noise_groups is not None else ("all",)
        if noise_groups is not None and len(noise_groups) != n_channels:
            raise ValueError(
                f"noise_groups must name a group for each of {n_channels} channels, "
                f"got {len(noise_groups)}."
            )
        group = np.zeros(n_channels, int)
        if noise_groups is not None:
            group = np.array([names.index(g) for g in noise_groups])
        if noise_cov is None:
            noise_cov = np.eye(n_channels)
        noise_cov = check_array(
            "noise_cov",
            noise_cov,
            shape=(n_channels, n_channels),
            remedy="It has a row and a column for each channel of data.",
        )
        ranks = None if noise_ranks is None else [noise_ranks.get(name) for name in names]
        whitener, row_group, log_pdet = block_whitener(noise_cov, group, ranks)

        dtype = np.result_type(lead_field.dtype, np.float32)
        white_field = np.einsum("rc,csd->rsd", whitener, lead_field, optimize=True)
        moment_unit = 1.0 / _typical_norm(white_field)
        if adjacency is None:
            adjacency = radius_adjacency(source_pos)
        elif adjacency.shape != (n_sources, n_sources):
            raise ValueError(
                f"adjacency must have shape ({n_sources}, {n_sources}), got {adjacency.shape}."
            )
        if source_volume is None:
            source_volume = source_spacing(source_pos) ** 3
        block = np.zeros(n_sources, np.int32) if source_block is None else source_block
        vertices = np.arange(n_sources) if source_vertices is None else source_vertices
        return cls(
            data=(whitener @ data).astype(dtype),
            lead_field=_lent(white_field * moment_unit, dtype),
            source_pos=source_pos,
            source_normals=source_normals,
            source_volume=np.broadcast_to(np.asarray(source_volume, float), (n_sources,)).copy(),
            neighbours=neighbour_table(adjacency),
            times=times,
            noise_group=row_group,
            whitener=whitener,
            log_jacobian=n_times * log_pdet,
            moment_unit=moment_unit,
            sensor_pos=sensor_pos,
            source_vertices=np.asarray(vertices, np.int64),
            source_block=np.asarray(block, np.int32),
            ch_names=_names(ch_names, n_channels, "ch_names"),
            ch_types=tuple(ch_types) if ch_types is not None else ("misc",) * n_channels,
            group_names=names,
            block_kinds=tuple(block_kinds),
            subject=subject,
        )

    def __repr__(self):
        kinds = dict.fromkeys(self.ch_types)
        channels = ", ".join(f"{self.ch_types.count(kind)} {kind}" for kind in kinds)
        return (
            f"<Problem | {channels} of rank {self.data.shape[0]}, {self.n_times} samples from "
            f"{self.times[0]:g} to {self.times[-1]:g} s, {self.n_sources} sources of "
            f"{self.n_orient} orientation{'s' if self.n_orient > 1 else ''}>"
        )

    def mask(self, region):
        """Turn a region into a boolean mask over sources.

        Parameters
        ----------
        region : (n_sources,) bool array, int array of source numbers, or mne.Label
            A label is read through its `vertices` and `hemi`.

        Returns
        -------
        (n_sources,) bool array

        Raises
        ------
        ValueError
            If the region has another size, is out of range, or a label meets a source
            space without that hemisphere.
        """
        if hasattr(region, "vertices") and hasattr(region, "hemi"):
            if region.hemi not in self.block_kinds:
                raise ValueError(
                    f"the label lies in hemisphere {region.hemi!r}, but the source space has "
                    f"{', '.join(self.block_kinds)}; use a surface source space or a mask."
                )
            on_side = self.source_block == self.block_kinds.index(region.hemi)
            return on_side & np.isin(self.source_vertices, region.vertices)
        region = np.asarray(region)
        if region.dtype == bool:
            if region.shape != (self.n_sources,):
                raise ValueError(f"a mask must have shape ({self.n_sources},), got {region.shape}.")
            return region
        if region.dtype.kind not in "iu" or region.ndim != 1:
            raise ValueError("a region is a boolean mask, an array of source numbers or a label.")
        if region.size and not (region.min() >= 0 and region.max() < self.n_sources):
            raise ValueError(f"source numbers must lie between 0 and {self.n_sources - 1}.")
        mask = np.zeros(self.n_sources, bool)
        mask[region] = True
        return mask


def _lent(values, dtype):
    """A copy that compiled code on a CPU reads in place: by rows, from a multiple of 64 bytes."""
    n_bytes = values.size * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + 64, np.uint8)
    first = -room.ctypes.data % 64
    array = room[first : first + n_bytes].view(dtype).reshape(values.shape)
    array[...] = values
    return array


def _typical_norm(white_field):
    norm = np.sqrt(np.mean(np.sum(white_field**2, axis=0)))
    if not norm > 0:
        raise ValueError(
            "lead_field is zero on the range of noise_cov: no source can be seen. Check that the "
            "forward and the covariance belong to the same channels and projectors."
        )
    return float(norm)


def _names(names, n_channels, argument):
    if names is None:
        return tuple(f"channel {i}" for i in range(n_channels))
    if len(names) != n_channels:
        raise ValueError(f"{argument} must have {n_channels} entries, got {len(names)}.")
    return tuple(names)
