"""Sensors of a recording: coils of all systems as in MNE, order, bad input."""

import mne
import numpy as np
import pytest
from mne.forward._make_forward import _create_meg_coils, _read_coil_defs
from scipy.spatial.transform import Rotation

from bayes_esi.forward.coils import (
    axial_gradiometer,
    planar_gradiometer,
    point_magnetometer,
    round_magnetometer,
    square_magnetometer,
)
from bayes_esi.io._sensors import ACCURACIES, coil_definitions
from bayes_esi.io.mne_forward import sensors_of

mne.set_log_level("ERROR")
DEFINITIONS = {(int(c["coil_type"]), int(c["accuracy"])): c for c in _read_coil_defs()}


@pytest.fixture(scope="module")
def info():
    montage = mne.channels.make_standard_montage("biosemi32")
    info = mne.create_info(montage.ch_names, 100.0, "eeg")
    info.set_montage(montage)
    info["bads"] = ["Cz"]
    return info


@pytest.fixture(scope="module")
def sample(data_dir):
    path = data_dir / "sample" / "sample_left-ave.fif.gz"
    return mne.read_evokeds(path, condition=0, proj=False)


def points_of(sensors, i):
    """Positions, normals and weights of the channel i of MEG sensors."""
    index, weights = sensors.coils.index[i], sensors.coils.weights[i]
    used = weights != 0
    return sensors.coils.pos[index[used]], sensors.coils.normals[index[used]], weights[used]


def assert_same_coils(info, accuracy):
    sensors = sensors_of(info, accuracy=accuracy, kinds=("mag", "grad"))
    channels = [c for c in info["chs"] if c["ch_name"] in sensors.ch_names]
    expected = _create_meg_coils(channels, accuracy, info["dev_head_t"])
    for i, coil in enumerate(expected):
        pos, normals, weights = points_of(sensors, i)
        np.testing.assert_allclose(pos, coil["rmag"], atol=1e-15)
        np.testing.assert_allclose(normals, coil["cosmag"], atol=1e-15)
        np.testing.assert_array_equal(weights, coil["w"])
        np.testing.assert_allclose(sensors.sensor_pos[i], coil["r0"], atol=1e-15)


def test_coil_definitions_are_those_of_mne():
    ours = coil_definitions()
    assert set(ours) == set(DEFINITIONS) and len(ours) > 100
    for key, coil in ours.items():
        np.testing.assert_array_equal(coil.weights, DEFINITIONS[key]["w"])
        np.testing.assert_array_equal(coil.pos, DEFINITIONS[key]["rmag"])
        np.testing.assert_array_equal(coil.normals, DEFINITIONS[key]["cosmag"])


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_sample_coils_are_those_of_mne(sample, accuracy):
    assert_same_coils(sample.info, accuracy)
    sensors = sensors_of(sample.info, accuracy=accuracy)
    picks = mne.pick_types(sample.info, meg=True, eeg=True, exclude=[])
    assert sensors.ch_names == tuple(sample.ch_names[i] for i in picks)
    assert sensors.ch_types == tuple(sample.get_channel_types(picks=picks))
    # All electrodes share one reference electrode.
    assert len(sensors.electrodes.pos) == sensors.ch_types.count("eeg") + 1


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_coils_of_other_systems_are_those_of_mne(accuracy):
    """Point magnetometer, BTi, CTF, KIT, BabyMEG, QuSpin, FieldLine, Kernel, Neuromag-122."""
    kinds = [2000, 4001, 4002, 5001, 6001, 7001, 7002, 8001, 8002, 8101, 8201, 2]
    names = [f"M{kind}" for kind in kinds]
    info = mne.create_info(names, 100.0, "mag")
    rng = np.random.default_rng(4)
    for i, channel in enumerate(info["chs"]):
        channel["coil_type"] = kinds[i]
        axes = Rotation.random(random_state=i).as_matrix()
        channel["loc"][:] = np.concatenate([0.1 * rng.uniform(size=3), axes.T.ravel()])
    trans = mne.Transform("meg", "head")
    trans["trans"][:3, :3] = Rotation.random(random_state=50).as_matrix()
    trans["trans"][:3, 3] = [0.001, 0.002, 0.03]
    with info._unlock():
        info["dev_head_t"] = trans
    assert_same_coils(info, accuracy)


def test_shapes_of_coils_are_those_of_the_file():
    def assert_same(coil, kind, accuracy):
        other = coil_definitions()[kind, ACCURACIES[accuracy]]
        a, b = (np.column_stack([c.weights, c.pos, c.normals]) for c in (coil, other))
        a, b = (x[np.lexsort(np.round(x, 5).T)] for x in (a, b))
        # The file keeps four digits of lengths and of weights.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=6e-7)

    assert_same(point_magnetometer(), 2000, "normal")
    assert_same(square_magnetometer(0.0258, 2, 3e-4), 3022, "normal")
    assert_same(square_magnetometer(0.0258, 4, 3e-4), 3022, "accurate")
    assert_same(square_magnetometer(0.021, 4, 3e-4), 3024, "accurate")
    loop = (0.0098, 4 * 6.713e-3)
    assert_same(planar_gradiometer(0.0168, loop, height=3e-4), 3012, "normal")
    assert_same(axial_gradiometer(0.018, 0.05), 5001, "accurate")
    assert_same(axial_gradiometer(0.0155, 0.05), 6001, "accurate")
    assert_same(round_magnetometer(0.023), 4001, "accurate")


def test_order_of_channels_and_bads(sample, info):
    picks = mne.pick_types(sample.info, meg=True, eeg=True, exclude=[])
    order = np.random.default_rng(6).permutation(len(picks))
    shuffled = mne.pick_info(sample.info, picks[order])
    shuffled["bads"] = [sample.ch_names[5]]
    sensors, base = sensors_of(shuffled), sensors_of(sample.info)
    assert sensors.bads == (sample.ch_names[5],) and sensors.ch_names == tuple(shuffled.ch_names)
    np.testing.assert_array_equal(sensors.sensor_pos, base.sensor_pos[order])
    again = sensors.pick(base.ch_names)
    np.testing.assert_array_equal(again.coils.weights, base.coils.weights)
    np.testing.assert_array_equal(
        again.coils.pos[again.coils.index], base.coils.pos[base.coils.index]
    )
    assert sensors_of(info).bads == ("Cz",)


def altered(info, change):
    info = info.copy()
    with info._unlock():
        change(info)
    return info


def test_bad_sensors(info, sample):
    def lose(info):
        info["chs"][3]["loc"][:] = np.nan
        info["chs"][7]["loc"][:3] = 0

    names = ", ".join(info.ch_names[i] for i in (3, 7))
    with pytest.raises(ValueError, match=f"2 of 32 channels without position: {names}; set them"):
        sensors_of(altered(info, lose))
    with pytest.raises(ValueError, match="dev_head_t'] is missing"):
        sensors_of(altered(sample.info, lambda i: i.__setitem__("dev_head_t", None)))

    def compensate(info):
        info["chs"][0]["coil_type"] = int(info["chs"][0]["coil_type"]) + (3 << 16)

    with pytest.raises(ValueError, match=r"compensation grade 0, 3.*gradient_compensation\(0\)"):
        sensors_of(altered(sample.info, compensate))
    with pytest.raises(ValueError, match=f"channel {sample.ch_names[0]} with coil type 777"):
        sensors_of(altered(sample.info, lambda i: i["chs"][0].update(coil_type=777)))
    with pytest.raises(ValueError, match="coils must be in metres"):
        sensors_of(altered(info, lambda i: [c["loc"].__imul__(1e3) for c in i["chs"]]))
    with pytest.raises(ValueError, match=r"channels in MRI \(5\)"):
        sensors_of(altered(info, lambda i: i["chs"][0].update(coord_frame=5)))
    with pytest.raises(ValueError, match="no channels of kind mag; its kinds are eeg"):
        sensors_of(info, kinds=("mag",))
    with pytest.raises(ValueError, match="info must be an mne.Info, got dict"):
        sensors_of({})
    with pytest.raises(ValueError, match="eeg_reference must be one of 'recorded', 'none'"):
        sensors_of(info, eeg_reference="average")
    with pytest.raises(ValueError, match="accuracy must be one of 'point', 'normal', 'accurate'"):
        sensors_of(info, accuracy="best")


def test_bad_coil_definitions(tmp_path):
    bad = tmp_path / "coil_def.dat"
    bad.write_text('1 2000 0 2 0 0 "cut off"\n1 0 0 0 0 0 1\n')
    with pytest.raises(ValueError, match="is not a coil definition file: it breaks"):
        coil_definitions(bad)
