"""Sensors: what a channel reads, as a weighted sum of a head model's answers at points.

    L[c] = sum_k w[c, k] B(r[c, k]) . n[c, k]            coils, in T or T/m for each A·m
    L[c] = V(r[c]) - V(reference of c)                   electrodes and contacts, in V for each A·m

A coil of finite size (`coils`) is integrated by points r with normals n; the weights w carry
the signs of a gradiometer and, for a planar one, the baseline, so that it reads T/m. A head model
knows points only: any object with `meg(source_pos, coil_pos, coil_normal)`, `eeg(source_pos,
electrode_pos)` or `seeg(source_pos, contact_pos)`, each (n_points, n_sources, 3).

A point that several channels share, such as a common reference electrode, is evaluated once. The
terms of each channel stand in a table of as many columns as the longest channel has terms: sums
are then as many gathers of whole rows, as fast as a scatter-add (3 ms for 3,264 points of 306
channels and 300 sources) and, unlike it, of the same bits on every run of a GPU.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import ConvexHull, QhullError

from ..core.checks import check_array, check_count
from ..core.struct import static, struct
from ..core.types import Array, Float, Int
from ._points import cast, check_points, is_known

__all__ = [
    "FAMILIES",
    "Pickup",
    "Sensors",
    "average_reference",
    "lead_field_of",
    "linked_reference",
    "make_sensors",
]

# Which method of a head model serves each kind of channel.
FAMILIES = {
    "mag": "meg",
    "grad": "meg",
    "eeg": "eeg",
    "seeg": "seeg",
    "ecog": "seeg",
    "dbs": "seeg",
}

# Points closer than this (m) are one point: far below any placement error, above rounding.
SAME_POINT = 1e-12


@struct
class Pickup:
    """Points that one method of a head model is asked at, and how channels add them up.

    Attributes
    ----------
    pos : (n_points, 3)
        In m, each once.
    normals : (n_points, 3) or None
        Unit vectors.
    index : (n_rows, n_terms) int
        Point of each term of a channel.
    weights : (n_rows, n_terms)
        Zero where a channel has fewer terms than the longest.
    """

    pos: Float[Array, "n_points 3"]
    normals: Float[Array, "n_points 3"] | None
    index: Int[Array, "n_rows n_terms"]
    weights: Float[Array, "n_rows n_terms"]


@struct
class Sensors:
    """The channels of a recording, in its order, in head coordinates.

    Make it with `make_sensors`, or from a recording with `bayes_esi.io.mne_forward.sensors_of`.

    Attributes
    ----------
    coils, electrodes, contacts : Pickup or None
        Points of MEG, scalp EEG and intracranial channels (SEEG, ECoG, DBS).
    order : (n_channels,) int
        Place of each channel among the rows of coils, electrodes and contacts, one after another.
    sensor_pos : (n_channels, 3)
        Where each channel is drawn, in m.
    ch_names, ch_types : tuple of str
        Types are keys of `FAMILIES`.
    bads : tuple of str
        Names of channels that are marked as bad. They are modelled all the same.
    """

    coils: Pickup | None
    electrodes: Pickup | None
    contacts: Pickup | None
    order: Int[Array, " n_channels"]
    sensor_pos: Float[Array, "n_channels 3"]
    ch_names: tuple = static()
    ch_types: tuple = static()
    bads: tuple = static(default=())

    @property
    def n_channels(self):
        """Number of channels."""
        return len(self.ch_names)

    @property
    def n_points(self):
        """Number of points at which a head model is evaluated."""
        pickups = (self.coils, self.electrodes, self.contacts)
        return sum(len(pickup.pos) for pickup in pickups if pickup is not None)

    def mixing(self):
        """Matrix (n_channels, n_points) from values at electrodes, coils, contacts to channels.

        Points stand in this order. Unitless, or 1/m for planar gradiometers.
        """
        pickups = [p for p in (self.electrodes, self.coils, self.contacts) if p is not None]
        starts = np.cumsum([0, *(len(pickup.pos) for pickup in pickups)])
        matrix = np.zeros((self.n_channels, starts[-1]))
        channels = np.argsort(self.order)  # of the rows of coils, electrodes, contacts
        first = 0
        for _, pickup in _parts(self):
            start = starts[[p is pickup for p in pickups].index(True)]
            rows = np.repeat(channels[first : first + len(pickup.index)], pickup.index.shape[1])
            np.add.at(matrix, (rows, start + pickup.index.ravel()), pickup.weights.ravel())
            first += len(pickup.index)
        return matrix

    def pick(self, ch_names):
        """Some channels, in the given order; `ValueError` names those that are unknown."""
        rows = rows_of(self.ch_names, ch_names)
        parts = [self.coils, self.electrodes, self.contacts]
        sizes = [0 if part is None else len(part.index) for part in parts]
        place = np.asarray(self.order)[rows]
        family = np.searchsorted(np.cumsum(sizes), place, side="right")
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        picked = [_pick_rows(part, (place - start[i])[family == i]) for i, part in enumerate(parts)]
        return Sensors(
            *picked,
            order=_inverse(np.argsort(family, kind="stable")),
            sensor_pos=np.asarray(self.sensor_pos)[rows],
            ch_names=tuple(ch_names),
            ch_types=tuple(self.ch_types[i] for i in rows),
            bads=tuple(name for name in self.bads if name in set(ch_names)),
        )

    def __repr__(self):
        """Count the channels by type."""
        counts = ", ".join(
            f"{self.ch_types.count(kind)} {kind}" for kind in dict.fromkeys(self.ch_types)
        )
        return f"Sensors({counts}; {self.n_points} points, {len(self.bads)} bad)"


def make_sensors(coils, ch_names, ch_types, *, sensor_pos=None, bads=()):
    """Put channels together.

    Parameters
    ----------
    coils : sequence of Coil
        One for each channel, placed in head coordinates.
    ch_names, ch_types : sequence of str
        Types are keys of `FAMILIES`.
    sensor_pos : (n_channels, 3) array, optional
        In m; by default the first point of each channel.
    bads : sequence of str
        Channels that are marked as bad.

    Returns
    -------
    Sensors

    Raises
    ------
    ValueError
        On no channels, numbers that do not match, names that repeat, unknown types, NaN, coils
        without normals, or positions that look like mm.
    """
    ch_names, ch_types = tuple(ch_names), tuple(ch_types)
    if not len(coils) == len(ch_names) == len(ch_types) or not ch_names:
        raise ValueError(
            f"coils, ch_names and ch_types must have one entry for each channel, got "
            f"{len(coils)}, {len(ch_names)} and {len(ch_types)}."
        )
    if len(set(ch_names)) < len(ch_names):
        twice = sorted({name for name in ch_names if ch_names.count(name) > 1})
        raise ValueError(f"ch_names must be unique; {', '.join(twice)} repeat.")
    unknown = sorted(set(ch_types) - set(FAMILIES))
    if unknown:
        raise ValueError(f"ch_types must be among {', '.join(FAMILIES)}; got {', '.join(unknown)}.")
    families = [FAMILIES[kind] for kind in ch_types]
    bare = [n for n, c, f in zip(ch_names, coils, families, strict=True)
            if f == "meg" and c.normals is None]  # fmt: skip
    if bare:
        raise ValueError(f"coils of MEG channels need normals; {', '.join(bare[:5])} have none.")
    check_points("coils", np.concatenate([coil.pos for coil in coils]))
    members = [[i for i, f in enumerate(families) if f == name] for name in ("meg", "eeg", "seeg")]
    if sensor_pos is None:
        sensor_pos = [coil.pos[0] for coil in coils]
    return Sensors(
        *(_pickup([coils[i] for i in group]) for group in members),
        order=_inverse(np.concatenate(members).astype(int)),
        sensor_pos=check_array("sensor_pos", sensor_pos, shape=(len(ch_names), 3)),
        ch_names=ch_names,
        ch_types=ch_types,
        bads=tuple(bads),
    )


def average_reference(sensors, kinds=("eeg",)):
    """Matrix that takes the mean over all good channels of some kinds from each of them.

    Parameters
    ----------
    sensors : Sensors or LeadField
        Anything with `ch_names`, `ch_types` and `bads`.
    kinds : sequence of str

    Returns
    -------
    (n_channels, n_channels) array
        Unitless; the identity on other channels. Its rank is one less. Bad channels get the
        reference of the others, but do not enter the mean.
    """
    bads = set(sensors.bads)
    names = [n for n, k in zip(sensors.ch_names, sensors.ch_types, strict=True)
             if k in kinds and n not in bads]  # fmt: skip
    return linked_reference(sensors, names, kinds)


def linked_reference(sensors, names, kinds=("eeg",)):
    """Matrix that takes the mean of some channels, such as both mastoids, from all of their kinds.

    Parameters
    ----------
    sensors : Sensors or LeadField
    names : sequence of str
        The reference: one channel, a linked pair, the contacts in white matter.
    kinds : sequence of str
        Kinds of channels that are read against it.

    Returns
    -------
    (n_channels, n_channels) array
        Unitless.

    Raises
    ------
    ValueError
        If a name is unknown or of another kind, or there is none.
    """
    rows = rows_of(sensors.ch_names, names)
    other = [name for name, i in zip(names, rows, strict=True) if sensors.ch_types[i] not in kinds]
    if other or not len(rows):
        text = f"{', '.join(other)} are not" if other else "there are none"
        raise ValueError(f"names must be channels of kind {', '.join(kinds)}; {text}.")
    matrix = np.eye(len(sensors.ch_names))
    members = np.array([kind in kinds for kind in sensors.ch_types])
    matrix[np.ix_(members, rows)] -= 1 / len(rows)
    return matrix


def lead_field_of(model, sensors, source_pos, *, memory_limit=2**29):
    """Evaluate a head model at the points of the sensors and add up by channel.

    Parameters
    ----------
    model : object
        With those of the methods `meg`, `eeg`, `seeg` that the channels call for. A model that
        solves for its sensors first may offer to add up before it solves, with
        `transfer(electrode_pos, coil_pos, coil_normal, contact_pos, *, mixing)`, a function of
        source positions, and `check_sources(source_pos)`: both are then used instead.
    sensors : Sensors
    source_pos : (n_sources, 3) or (3,) array
        In m, in head coordinates.
    memory_limit : int
        Bytes that the values at points may take; more sources go in batches of equal shape.

    Returns
    -------
    (n_channels, n_sources, 3) or (n_channels, 3) array
        In V, T or T/m for each A·m, in the order of the channels. Many concrete positions give a
        NumPy array; a single position, or one under jit, vmap or grad, a JAX array that is
        computed in one piece.

    Raises
    ------
    ValueError
        If the model lacks a method, the positions are not finite or look like mm, or sensors lie
        among the sources.

    Notes
    -----
    Cost: the model at `sensors.n_points` points, and O(n_channels n_terms n_sources) for the sums.
    """
    check_model(model, sensors)
    source_pos = check_points("source_pos", source_pos, allow_single=True)
    if not is_known(source_pos, *jax.tree.leaves(sensors)) or source_pos.ndim == 1:
        return _in_one_piece(model, sensors, jnp.asarray(source_pos))
    _check_outside(sensors, source_pos)
    lead_field = None
    # One family after another: a model may remember what it has solved for the last sensors.
    families = _families(model, sensors, source_pos)
    by_row = np.arange(sensors.n_channels) if len(families) == 1 else np.argsort(sensors.order)
    for evaluate, rows, n_points in families:
        channels = by_row[rows]
        batch = _batch_size(n_points + len(channels), source_pos, memory_limit)
        for start in range(0, len(source_pos), batch):
            # The last batch starts early enough to be whole, so that nothing compiles again.
            start = min(start, len(source_pos) - batch)
            part = slice(start, start + batch)
            values = np.asarray(evaluate(jnp.asarray(source_pos[part])))
            if lead_field is None:
                lead_field = np.empty((sensors.n_channels, len(source_pos), 3), values.dtype)
            lead_field[channels, part] = values
    return lead_field


def check_model(model, sensors):
    """Raise `ValueError` if a head model lacks a method that the channels call for."""
    for method, _ in _parts(sensors):
        if not callable(getattr(model, method, None)):
            kinds = sorted({kind for kind in sensors.ch_types if FAMILIES[kind] == method})
            raise ValueError(
                f"model {type(model).__name__} has no {method}(), which channels of kind "
                f"{', '.join(kinds)} need; pick other channels or use another model."
            )


def rows_of(ch_names, wanted):
    """Numbers of some channels; `ValueError` lists those that do not exist."""
    if isinstance(wanted, str):
        raise ValueError(f"ch_names must be a sequence of names, got the text {wanted!r}.")
    place = {name: i for i, name in enumerate(ch_names)}
    missing = [name for name in wanted if name not in place]
    if missing:
        listed = ", ".join(repr(name) for name in missing[:5])
        raise ValueError(
            f"{len(missing)} of {len(wanted)} channels do not exist, among them {listed}; there "
            f"are {', '.join(repr(name) for name in ch_names[:3])} and others."
        )
    return np.array([place[name] for name in wanted], int)


def _parts(sensors):
    """Methods of the head model with their points, in the order of the rows."""
    parts = (("meg", sensors.coils), ("eeg", sensors.electrodes), ("seeg", sensors.contacts))
    return [(method, pickup) for method, pickup in parts if pickup is not None]


def _families(model, sensors, source_pos):
    """Functions of source positions, each with the rows that it fills and its number of points."""
    if _solves_first(model) and is_known(*jax.tree.leaves(sensors)):
        if is_known(source_pos):
            model.check_sources(source_pos)
        # Sensors are known, so that it can be solved for them now, also while sources are traced.
        with jax.ensure_compile_time_eval():
            transfer = model.transfer(**_points(sensors), mixing=sensors.mixing())
        return [(transfer, slice(None), 0)]
    families, start = [], 0
    for method, pickup in _parts(sensors):
        evaluate = functools.partial(_evaluate, getattr(model, method), pickup)
        rows = slice(start, start + len(pickup.index))
        families.append((evaluate, rows, len(pickup.pos)))
        start = rows.stop
    return families


def _in_one_piece(model, sensors, source_pos):
    families = _families(model, sensors, source_pos)
    rows = [evaluate(source_pos) for evaluate, _, _ in families]
    # A single family, or a model that adds up itself, keeps the order of the channels.
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)[sensors.order]


def _evaluate(method, pickup, source_pos):
    """Channels of one family, by one method of the head model."""
    # On the host where they are known, so that the model can check them.
    known = [x for x in (pickup.pos, pickup.normals) if x is not None]
    values = method(source_pos, *cast(source_pos.dtype, *known))
    return _add_up(values, pickup.index, jnp.asarray(pickup.weights, values.dtype))


def _solves_first(model):
    transfer = getattr(model, "transfer", None)
    has_both = callable(transfer) and callable(getattr(model, "check_sources", None))
    return has_both and "mixing" in inspect.signature(transfer).parameters


def _points(sensors):
    """Points by the names that `transfer` has for them."""
    points = {}
    if sensors.electrodes is not None:
        points["electrode_pos"] = sensors.electrodes.pos
    if sensors.coils is not None:
        points |= {"coil_pos": sensors.coils.pos, "coil_normal": sensors.coils.normals}
    if sensors.contacts is not None:
        points["contact_pos"] = sensors.contacts.pos
    return points


def _batch_size(n_values, source_pos, memory_limit):
    """Sources for which values (at points, and summed) fit into some bytes."""
    memory_limit = check_count("memory_limit", memory_limit)
    itemsize = np.dtype(jax.dtypes.canonicalize_dtype(source_pos.dtype)).itemsize
    # Twice: a model needs as much again to form its values.
    return int(np.clip(memory_limit // (2 * 3 * itemsize * n_values), 1, len(source_pos)))


@jax.jit
def _add_up(values, index, weights):
    """Weighted sums of rows of values: out[c] = sum_k weights[c, k] values[index[c, k]]."""
    shape = (index.shape[0], *(1 for _ in values.shape[1:]))

    def add(total, term):
        points, weight = term
        return total + weight.reshape(shape) * values[points], None

    start = jnp.zeros((index.shape[0], *values.shape[1:]), values.dtype)
    return jax.lax.scan(add, start, (index.T, weights.T))[0]


def _check_outside(sensors, source_pos):
    """Refuse coils and electrodes within the hull of the sources: no head looks like that."""
    if len(source_pos) < 4:
        return
    try:
        hull = ConvexHull(source_pos)
    except QhullError:  # sources in one plane
        return
    for name, pickup in (("coils", sensors.coils), ("electrodes", sensors.electrodes)):
        if pickup is None:
            continue
        height = np.asarray(pickup.pos) @ hull.equations[:, :3].T + hull.equations[:, 3]
        n_inside = int(np.count_nonzero(np.all(height < 0, axis=1)))
        if n_inside:
            raise ValueError(
                f"sensors has {n_inside} of {len(pickup.pos)} points of {name} inside the head, "
                "among the sources; check that sensors and sources are in head coordinates "
                "(info['dev_head_t'], the MRI-to-head transform)."
            )


def _pickup(coils):
    """Unique points and the table of terms of some channels; None if there are none."""
    if not coils:
        return None
    n_terms = [len(coil.weights) for coil in coils]
    points = np.concatenate([coil.pos for coil in coils])
    if coils[0].normals is not None:
        points = np.concatenate([points, np.concatenate([c.normals for c in coils])], axis=1)
    points = check_array("coils", points)
    _, first, inverse = np.unique(
        np.round(points / SAME_POINT), axis=0, return_index=True, return_inverse=True
    )
    # Points stand in the order in which the channels come to them.
    order = np.argsort(first)
    number = _inverse(order)[inverse.ravel()]
    points = points[first[order]]
    row = np.repeat(np.arange(len(coils)), n_terms)
    column = np.concatenate([np.arange(n) for n in n_terms])
    # Unused columns point to the first term of their channel, with weight zero.
    index = np.repeat(number[np.cumsum([0, *n_terms[:-1]])][:, None], max(n_terms), axis=1)
    index, weights = index.astype(np.int32), np.zeros(index.shape)
    index[row, column] = number
    weights[row, column] = np.concatenate([coil.weights for coil in coils])
    return Pickup(points[:, :3], points[:, 3:] if points.shape[1] > 3 else None, index, weights)


def _pick_rows(pickup, rows):
    """Some channels of a family, without points that they do not need."""
    if pickup is None or not len(rows):
        return None
    weights = np.asarray(pickup.weights)[rows]
    index = np.asarray(pickup.index)[rows]
    n_terms = int(np.max(np.nonzero(np.any(weights != 0, axis=0)), initial=0)) + 1
    used, inverse = np.unique(index[:, :n_terms], return_inverse=True)
    return Pickup(
        np.asarray(pickup.pos)[used],
        None if pickup.normals is None else np.asarray(pickup.normals)[used],
        inverse.reshape(-1, n_terms).astype(np.int32),
        weights[:, :n_terms],
    )


def _inverse(order):
    inverse = np.empty(len(order), int)
    inverse[order] = np.arange(len(order))
    return inverse
