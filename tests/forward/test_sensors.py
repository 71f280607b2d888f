"""Sensors: integration points, sums by channel, references, batches, derivatives, bad input."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bayes_esi.core.struct import struct
from bayes_esi.forward.coils import (
    Coil,
    axial_gradiometer,
    electrode,
    planar_gradiometer,
    point_magnetometer,
    round_magnetometer,
    square_magnetometer,
)
from bayes_esi.forward.sensors import (
    average_reference,
    lead_field_of,
    linked_reference,
    make_sensors,
)

RNG = np.random.default_rng(5)


@jax.jit
def potential(scale, source_pos, pos):
    """Unbounded medium of unit conductivity: V = q . d / (4 pi |d|^3)."""
    step = pos.reshape(-1, *(1,) * (source_pos.ndim - 1), 3) - source_pos
    return scale * step / (4 * jnp.pi * jnp.sum(step**2, axis=-1, keepdims=True) ** 1.5)


@jax.jit
def flux(scale, source_pos, pos, normals):
    """Biot and Savart: B . n = 1e-7 (q x d) . n / |d|^3 = 1e-7 q . (d x n) / |d|^3."""
    shape = (-1, *(1,) * (source_pos.ndim - 1), 3)
    step = pos.reshape(shape) - source_pos
    distance = jnp.sum(step**2, axis=-1, keepdims=True) ** 0.5
    return scale * 1e-7 * jnp.cross(step, normals.reshape(shape)) / distance**3


@struct
class Head:
    """An unbounded medium."""

    scale: np.ndarray

    def meg(self, source_pos, coil_pos, coil_normal):
        return flux(self.scale, source_pos, coil_pos, coil_normal)

    def eeg(self, source_pos, electrode_pos):
        return potential(self.scale, source_pos, electrode_pos)

    seeg = eeg


HEAD = Head(np.array(1.0))


def on_sphere(n, radius, seed=0):
    direction = np.random.default_rng(seed).standard_normal((n, 3))
    direction[:, 2] = np.abs(direction[:, 2])
    return radius * direction / np.linalg.norm(direction, axis=1, keepdims=True)


def placed_at(coil, pos, seed=0):
    trans = np.eye(4)
    trans[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    trans[:3, 3] = pos
    return coil.placed(trans)


@pytest.fixture(scope="module")
def mixed():
    """Electrodes with a common reference, coils of three kinds and a contact, in mixed order."""
    pos = on_sphere(13, 0.11)
    reference = on_sphere(1, 0.1, seed=1)[0]
    shapes = [planar_gradiometer(0.0168, (0.01, 0.02)), square_magnetometer(0.0258, 4)]
    shapes += [axial_gradiometer(0.018, 0.05)]
    coils, kinds = [], []
    for i in range(12):
        if i % 2:
            coils.append(electrode(pos[i], reference))
            kinds.append("eeg")
        else:
            coils.append(placed_at(shapes[i % 3], pos[i], seed=i))
            kinds.append("grad" if i % 3 == 0 else "mag")
    coils.append(electrode(0.3 * pos[12]))
    kinds.append("seeg")
    return make_sensors(coils, [f"c{i}" for i in range(13)], kinds, bads=["c3"])


SOURCES = RNG.uniform(-0.04, 0.04, (50, 3))


# --- coils ---------------------------------------------------------------------------------------


def fields_of(degree):
    """Monomials x^i y^j of some total degree, with their mean over the unit disc and square."""
    for i in range(degree + 1):
        j = degree - i
        yield lambda x, y, i=i, j=j: x**i * y**j


@pytest.mark.parametrize("degree", range(6))
def test_round_coil_is_exact_to_degree_five(degree):
    coil = round_magnetometer(2.0)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    radius, angle = 0.5 * (nodes + 1), np.arange(24) * np.pi / 12
    x, y = (radius[:, None] * f(angle) for f in (np.cos, np.sin))
    for field in fields_of(degree):
        exact = np.sum(weights[:, None] * radius[:, None] * field(x, y)) / 24
        got = coil.weights @ field(coil.pos[:, 0], coil.pos[:, 1])
        np.testing.assert_allclose(got, exact, atol=1e-14)


@pytest.mark.parametrize("n_side", [2, 4])
def test_square_coil_by_the_midpoint_rule(n_side):
    coil = square_magnetometer(0.02, n_side, height=3e-4)
    assert len(coil.pos) == n_side**2
    np.testing.assert_allclose(coil.weights.sum(), 1)
    np.testing.assert_allclose(coil.pos[:, 2], 3e-4)
    # The mean of x^2 over the square, less the midpoint rule's error.
    exact = 0.02**2 / 12 * (1 - 1 / n_side**2)
    np.testing.assert_allclose(coil.weights @ coil.pos[:, 0] ** 2, exact)


def test_planar_gradiometer_reads_the_slope():
    coil = planar_gradiometer(0.0168, (0.01, 0.02), shape=(2, 2))
    field = 3.0 + 7.0 * coil.pos[:, 0] + 5.0 * coil.pos[:, 1]
    np.testing.assert_allclose(coil.weights @ field, 7.0)  # T/m


def test_axial_gradiometer_reads_the_difference():
    coil = axial_gradiometer(0.018, 0.05)
    assert len(coil.pos) == 14
    np.testing.assert_allclose(coil.weights @ (3.0 + 7.0 * coil.pos[:, 2]), -7.0 * 0.05)


def test_a_small_coil_reads_as_a_point():
    pos = on_sphere(1, 0.12)[0]
    coils = [placed_at(c, pos) for c in (point_magnetometer(), square_magnetometer(1e-4),
                                         round_magnetometer(1e-4))]  # fmt: skip
    sensors = make_sensors(coils, list("abc"), ["mag"] * 3)
    point, square, disc = lead_field_of(HEAD, sensors, SOURCES)
    # Second order in size over distance, (1e-4 / 0.08)^2.
    np.testing.assert_allclose(square, point, atol=1e-5 * np.abs(point).max())
    np.testing.assert_allclose(disc, point, atol=1e-5 * np.abs(point).max())


# --- sums by channel -----------------------------------------------------------------------------


def by_hand(sensors_of_channel, kind, source_pos):
    """Loop over the points of a channel."""
    pos, normals, weights = sensors_of_channel
    total = 0.0
    for i, weight in enumerate(weights):
        step = pos[i] - source_pos
        distance = np.linalg.norm(step, axis=1, keepdims=True)
        value = step / (4 * np.pi * distance**3)
        if kind in ("mag", "grad"):
            value = 1e-7 * np.cross(step, normals[i]) / distance**3
        total = total + weight * value
    return total


def test_each_channel_is_the_sum_over_its_points():
    shapes = [planar_gradiometer(0.0168, (0.01, 0.02)), square_magnetometer(0.0258, 4)]
    places = on_sphere(4, 0.11, seed=2)
    coils = [placed_at(shapes[0], places[0]), electrode(places[1], places[3])]
    coils += [placed_at(shapes[1], places[2]), electrode(places[3])]
    kinds = ["grad", "eeg", "mag", "eeg"]
    lead_field = lead_field_of(HEAD, make_sensors(coils, list("abcd"), kinds), SOURCES)
    assert lead_field.shape == (4, 50, 3)
    for row, coil, kind in zip(lead_field, coils, kinds, strict=True):
        expected = by_hand(coil, kind, SOURCES)
        np.testing.assert_allclose(row, expected, atol=1e-13 * np.abs(expected).max())


def test_a_shared_reference_is_evaluated_once(mixed):
    assert len(mixed.electrodes.pos) == 6 + 1
    assert mixed.n_points == len(mixed.coils.pos) + 7 + 1
    assert "7 mag" not in repr(mixed) and "6 eeg" in repr(mixed) and "1 bad" in repr(mixed)


def test_order_of_channels_and_points_changes_nothing(mixed):
    lead_field = lead_field_of(HEAD, mixed, SOURCES)
    order = RNG.permutation(13)
    names = [mixed.ch_names[i] for i in order]
    shuffled = mixed.pick(names)
    assert shuffled.ch_names == tuple(names)
    assert shuffled.ch_types == tuple(mixed.ch_types[i] for i in order)
    np.testing.assert_array_equal(shuffled.sensor_pos, mixed.sensor_pos[order])
    np.testing.assert_array_equal(lead_field_of(HEAD, shuffled, SOURCES), lead_field[order])
    alone = mixed.pick(["c5", "c1"])
    assert alone.coils is None and alone.contacts is None and alone.bads == ()
    assert len(alone.electrodes.pos) == 3
    np.testing.assert_array_equal(lead_field_of(HEAD, alone, SOURCES), lead_field[[5, 1]])
    points = RNG.permutation(16)
    coil = placed_at(square_magnetometer(0.02, 4), [0.0, 0.03, 0.1])
    pair = [coil, Coil(*(array[points] for array in coil))]
    a, b = lead_field_of(HEAD, make_sensors(pair, "ab", ["mag"] * 2), SOURCES)
    np.testing.assert_allclose(a, b, atol=1e-14 * np.abs(a).max())


def test_a_rigid_motion_of_head_and_sensors_rotates_the_orientations():
    trans = np.eye(4)
    trans[:3, :3] = Rotation.random(random_state=3).as_matrix()
    coils = [placed_at(square_magnetometer(0.02), p, seed=i)
             for i, p in enumerate(on_sphere(3, 0.11))]  # fmt: skip
    moved = [coil.placed(trans) for coil in coils]
    a, b = (lead_field_of(HEAD, make_sensors(c, "abc", ["mag"] * 3), s)
            for c, s in ((coils, SOURCES), (moved, SOURCES @ trans[:3, :3].T)))  # fmt: skip
    np.testing.assert_allclose(b @ trans[:3, :3], a, atol=1e-13 * np.abs(a).max())


# --- batches, transformations, precision ---------------------------------------------------------


@pytest.mark.parametrize("memory_limit", [1, 50_000, 2**30])
def test_batches_equal_one_shot(mixed, memory_limit):
    whole = lead_field_of(HEAD, mixed, SOURCES)
    parts = lead_field_of(HEAD, mixed, SOURCES, memory_limit=memory_limit)
    assert isinstance(parts, np.ndarray)
    # Another size of batch may vectorise, and round, in another way.
    np.testing.assert_allclose(parts, whole, atol=1e-15 * np.abs(whole).max(), rtol=1e-12)


def test_memory_stays_within_its_limit():
    coils = [placed_at(square_magnetometer(0.02, 4), p) for p in on_sphere(50, 0.12)]
    sensors = make_sensors(coils, [f"c{i}" for i in range(50)], ["mag"] * 50)
    source_pos = RNG.uniform(-0.04, 0.04, (4000, 3))
    tracemalloc.start()
    lead_field = lead_field_of(HEAD, sensors, source_pos, memory_limit=2**22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < lead_field.nbytes + 2**23
    assert lead_field.shape == (50, 4000, 3)


def test_jit_vmap_and_single_positions_agree(mixed):
    whole = lead_field_of(HEAD, mixed, SOURCES[:4])
    kwargs = {"rtol": 1e-11, "atol": 1e-14 * np.abs(whole).max()}
    single = lead_field_of(HEAD, mixed, SOURCES[1])
    assert single.shape == (13, 3)
    np.testing.assert_allclose(single, whole[:, 1], **kwargs)
    np.testing.assert_allclose(jax.jit(lead_field_of)(HEAD, mixed, SOURCES[:4]), whole, **kwargs)
    each = jax.jit(jax.vmap(lead_field_of, (None, None, 0), 1))(HEAD, mixed, SOURCES[:4])
    np.testing.assert_allclose(each, whole, **kwargs)


def test_gradient_equals_finite_differences(mixed):
    place, step = SOURCES[2], 1e-6

    def of(pos):
        return lead_field_of(HEAD, mixed, pos)

    slopes = jax.jit(jax.jacfwd(of))(place)
    assert slopes.shape == (13, 3, 3)
    for axis in range(3):
        shift = step * np.eye(3)[axis]
        expected = (of(place + shift) - of(place - shift)) / (2 * step)
        # Central differences: truncation 1e-10, rounding 1e-16 / step = 1e-10.
        scale = np.abs(expected).max(axis=1, keepdims=True)
        np.testing.assert_allclose(slopes[:, :, axis] / scale, expected / scale, atol=1e-6)


def test_the_model_is_differentiable_through_the_sensors(mixed):
    def power(scale):
        return jnp.sum(lead_field_of(Head(scale), mixed, SOURCES[0]) ** 2)

    np.testing.assert_allclose(
        jax.jit(jax.grad(power))(jnp.array(2.0)), power(jnp.array(2.0)), rtol=1e-12
    )


def test_single_precision_follows_the_sources(mixed):
    low = lead_field_of(HEAD, mixed, SOURCES.astype(np.float32))
    high = lead_field_of(HEAD, mixed, SOURCES)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        strict = lead_field_of(Plain(), mixed.pick(["c0", "c2"]), SOURCES.astype(np.float32))
    assert strict.dtype == np.float32
    with jax.enable_x64(False):
        assert lead_field_of(HEAD, mixed, SOURCES).dtype == np.float32
    scale = np.abs(high).max(axis=(1, 2), keepdims=True)
    # Differences of a gradiometer lose a digit of seven.
    np.testing.assert_allclose(low / scale, high / scale, atol=2e-5)


class Plain:
    """A model in the precision of what it is given."""

    def meg(self, source_pos, coil_pos, coil_normal):
        return jnp.einsum("pi,si,pj->psj", coil_pos, source_pos, coil_normal)


@jax.jit
def twice(x):
    return 2 * x


class Solving(Head):
    """A model that adds up by channel before it solves."""

    def check_sources(self, source_pos):
        if np.linalg.norm(source_pos, axis=-1).max() > 0.08:
            raise ValueError("source_pos has sources outside of the brain")

    def transfer(self, electrode_pos, coil_pos, coil_normal, contact_pos, *, mixing):
        # A solution on the host, with a compiled kernel in it.
        coil_pos = np.asarray(twice(0.5 * coil_pos))

        def evaluate(source_pos):
            values = [
                self.eeg(source_pos, electrode_pos),
                self.meg(source_pos, coil_pos, coil_normal),
                self.seeg(source_pos, contact_pos),
            ]
            return jnp.tensordot(mixing, jnp.concatenate(values), 1)

        return evaluate


def test_models_that_solve_first_add_up_themselves(mixed):
    plain = lead_field_of(HEAD, mixed, SOURCES)
    solving = Solving(np.array(1.0))
    mixing = mixed.mixing()
    assert mixing.shape == (13, mixed.n_points)
    assert np.count_nonzero(mixing) == 6 * 2 + np.count_nonzero(mixed.coils.weights) + 1
    scale = np.abs(plain).max(axis=(1, 2), keepdims=True)
    got = lead_field_of(solving, mixed, SOURCES, memory_limit=50_000)
    np.testing.assert_allclose(got / scale, plain / scale, atol=1e-13)
    single = lead_field_of(solving, mixed, SOURCES[0])
    np.testing.assert_allclose(single / scale[:, 0], plain[:, 0] / scale[:, 0], atol=1e-13)
    traced = jax.jit(lambda pos: lead_field_of(solving, mixed, pos))(SOURCES[0])
    np.testing.assert_allclose(traced, single, rtol=1e-11, atol=1e-14 * np.abs(plain).max())
    with pytest.raises(ValueError, match="outside of the brain"):
        lead_field_of(solving, mixed, 2.5 * SOURCES[:3])


# --- references ----------------------------------------------------------------------------------


def test_average_reference(mixed):
    matrix = average_reference(mixed)
    electrodes = np.array([kind == "eeg" for kind in mixed.ch_types])
    good = electrodes & np.array([name != "c3" for name in mixed.ch_names])
    data = RNG.standard_normal((13, 4))
    expected = data - np.where(electrodes[:, None], data[good].mean(axis=0), 0)
    np.testing.assert_allclose(matrix @ data, expected, atol=1e-15)
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-15)
    assert np.linalg.matrix_rank(matrix) == 12
    # The reference electrode of the recording drops out.
    lead_field = lead_field_of(HEAD, mixed, SOURCES)
    at_infinity = HEAD.eeg(SOURCES, mixed.sensor_pos[electrodes])
    both = [np.tensordot(matrix[np.ix_(electrodes, electrodes)], g, 1)
            for g in (lead_field[electrodes], at_infinity)]  # fmt: skip
    np.testing.assert_allclose(*both, atol=1e-13 * np.abs(both[1]).max())


def test_linked_reference(mixed):
    matrix = linked_reference(mixed, ["c1", "c11"])
    data = RNG.standard_normal((13, 4))
    out = matrix @ data
    np.testing.assert_allclose(out[1] + out[11], 0, atol=1e-15)
    np.testing.assert_allclose(out[5], data[5] - (data[1] + data[11]) / 2)
    np.testing.assert_array_equal(out[0], data[0])
    # One reference after another is the last one alone.
    np.testing.assert_allclose(matrix @ average_reference(mixed), matrix, atol=1e-15)
    with pytest.raises(ValueError, match="of kind eeg; c0, c2 are not"):
        linked_reference(mixed, ["c0", "c1", "c2"])
    with pytest.raises(ValueError, match="there are none"):
        linked_reference(mixed, [])
    with pytest.raises(ValueError, match="1 of 1 channels do not exist, among them 'A1'"):
        linked_reference(mixed, ["A1"])


# --- bad input -----------------------------------------------------------------------------------


def test_bad_sensors():
    coil = placed_at(point_magnetometer(), [0.0, 0.0, 0.12])
    with pytest.raises(ValueError, match="one entry for each channel, got 1, 2 and 1"):
        make_sensors([coil], ["a", "b"], ["mag"])
    with pytest.raises(ValueError, match="must be unique; a repeat"):
        make_sensors([coil] * 2, ["a", "a"], ["mag"] * 2)
    with pytest.raises(ValueError, match=r"among mag, grad, eeg, seeg, ecog, dbs; got eog"):
        make_sensors([coil], ["a"], ["eog"])
    with pytest.raises(ValueError, match="need normals; b have none"):
        make_sensors([coil, electrode([0, 0, 0.1])], ["a", "b"], ["mag"] * 2)
    with pytest.raises(ValueError, match=r"coils must be in metres.*millimetres"):
        make_sensors([electrode([0.0, 0.0, 90.0])], ["a"], ["eeg"])
    with pytest.raises(ValueError, match="NaN"):
        electrode([0.0, np.nan, 0.1])
    with pytest.raises(ValueError, match="size must be positive"):
        square_magnetometer(0.0)
    with pytest.raises(ValueError, match="baseline must be positive"):
        planar_gradiometer(-0.01, (0.01, 0.01))


def test_bad_sources_and_models(mixed):
    with pytest.raises(ValueError, match="source_pos must be in metres"):
        lead_field_of(HEAD, mixed, 1e3 * SOURCES)
    with pytest.raises(ValueError, match="source_pos must have shape"):
        lead_field_of(HEAD, mixed, SOURCES[:, :2])
    with pytest.raises(ValueError, match=r"Plain has no eeg\(\), which channels of kind eeg need"):
        lead_field_of(Plain(), mixed, SOURCES)
    with pytest.raises(ValueError, match="memory_limit must be an integer"):
        lead_field_of(HEAD, mixed, SOURCES, memory_limit=0)
    sunk = dataclasses.replace(
        mixed, electrodes=dataclasses.replace(mixed.electrodes, pos=0.2 * mixed.electrodes.pos)
    )
    with pytest.raises(ValueError, match="7 of 7 points of electrodes inside the head"):
        lead_field_of(HEAD, sunk, 2 * SOURCES)
