"""Head models and MNE: coils, sensors, surfaces, forward solutions there and back, bad input."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import mne
import numpy as np
import pytest
from mne.forward._make_forward import _read_coil_defs
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from bayes_esi.forward.lead_field import LeadField
from bayes_esi.forward.sensors import average_reference
from bayes_esi.forward.sphere import sphere_meg
from bayes_esi.forward.sphere_model import Sphere
from bayes_esi.io.mne import from_mne
from bayes_esi.io.mne_forward import (
    bem_surfaces_of,
    compute_forward,
    lead_field_from_mne,
    lead_field_to_mne,
    sensors_of,
)
from bayes_esi.models.problem import Problem

mne.set_log_level("ERROR")
ONE_FRAME = mne.Transform("mri", "head")
DEFINITIONS = {(int(c["coil_type"]), int(c["accuracy"])): c for c in _read_coil_defs()}
KINDS = ("surface", "volume", "discrete", "mixed")


class Ball:
    """A sphere for MEG; for electrodes and contacts an unbounded medium of 0.3 S/m."""

    def __init__(self, centre):
        self.centre = np.asarray(centre)

    def meg(self, source_pos, coil_pos, coil_normal):
        return sphere_meg(source_pos - self.centre, coil_pos - self.centre, coil_normal)

    def eeg(self, source_pos, electrode_pos):
        return potential(source_pos, electrode_pos)

    seeg = eeg


@jax.jit
def potential(source_pos, electrode_pos):
    step = electrode_pos[:, None] - source_pos
    return step / (4 * jnp.pi * 0.3 * jnp.linalg.norm(step, axis=-1, keepdims=True) ** 3)


CENTRE = np.array([0.0, 0.0, 0.04])
BALL = Ball(CENTRE)


@pytest.fixture(scope="module")
def info():
    montage = mne.channels.make_standard_montage("biosemi32")
    info = mne.create_info(montage.ch_names, 100.0, "eeg")
    info.set_montage(montage)
    info["bads"] = ["Cz"]
    return info


@pytest.fixture(scope="module")
def evoked(info):
    data = 1e-6 * np.random.default_rng(2).standard_normal((32, 10))
    evoked = mne.EvokedArray(data, info, nave=4)
    return evoked.set_eeg_reference(projection=True)


@pytest.fixture(scope="module")
def noise_cov(info):
    factor = 2e-6 * np.random.default_rng(3).standard_normal((32, 64)) / 8
    return mne.Covariance(factor @ factor.T, info["ch_names"], [], [], nfree=1000)


@pytest.fixture(scope="module")
def sphere():
    return mne.make_sphere_model(CENTRE, 0.095)


@pytest.fixture(scope="module")
def sample(data_dir):
    path = data_dir / "sample" / "sample_left-ave.fif.gz"
    return mne.read_evokeds(path, condition=0, proj=False)


def hemisphere(side, n=80, every=4):
    """A round hemisphere in MRI coordinates, decimated to every fourth vertex."""
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    nn = np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)
    vertno = np.arange(0, n, every)
    tris, use_tris = ConvexHull(nn).simplices, vertno[ConvexHull(nn[vertno]).simplices]
    inuse = np.zeros(n, int)
    inuse[vertno] = 1
    centre = np.array([-0.032 if side == 101 else 0.032, 0.0, 0.055])
    return {
        "id": side, "type": "surf", "np": n, "ntri": len(tris), "coord_frame": 5,
        "rr": centre + 0.025 * nn, "nn": nn, "tris": tris, "nuse": len(vertno), "inuse": inuse,
        "vertno": vertno, "nuse_tri": len(use_tris), "use_tris": use_tris, "nearest": None,
        "nearest_dist": None, "pinfo": None, "patch_inds": None, "dist": None,
        "dist_limit": None, "subject_his_id": "round",
    }  # fmt: skip


def source_space(kind, sphere):
    surfaces = mne.SourceSpaces([hemisphere(101), hemisphere(102)])
    if kind == "surface":
        return surfaces
    if kind == "discrete":
        nn = np.random.default_rng(1).standard_normal((25, 3))
        nn /= np.linalg.norm(nn, axis=1, keepdims=True)
        pos = {"rr": CENTRE + 0.05 * nn * np.linspace(0.5, 1, 25)[:, None], "nn": nn}
        return mne.setup_volume_source_space(pos=pos, sphere=sphere, mindist=0.0)
    grid = mne.setup_volume_source_space(pos=30.0, sphere=sphere, mindist=10.0)
    grid[0]["type"] = "vol"
    return grid if kind == "volume" else surfaces + grid


@pytest.fixture(scope="module", params=KINDS)
def forward(request, info, sphere):
    src = source_space(request.param, sphere)
    return mne.make_forward_solution(info, None, src, sphere, meg=False)


# --- lead fields against MNE ---------------------------------------------------------------------


def test_sphere_on_the_sample_recording_equals_mne(sample):
    sphere = mne.make_sphere_model("auto", "auto", sample.info)
    src = mne.setup_volume_source_space(pos=25.0, sphere=sphere, mindist=10.0)
    theirs = lead_field_from_mne(
        mne.make_forward_solution(sample.info, None, src, sphere, eeg=False)
    )
    head = shells_of(sphere)
    ours = compute_forward(head, sample.info, src, trans=ONE_FRAME, kinds=("mag", "grad"))
    assert ours.ch_names == theirs.ch_names and ours.ch_types == theirs.ch_types
    np.testing.assert_array_equal(ours.source_pos, theirs.source_pos)
    np.testing.assert_allclose(ours.sensor_pos, theirs.sensor_pos, atol=1e-15)
    for kind in ("mag", "grad"):
        rows = [t == kind for t in ours.ch_types]
        expected = theirs.data[rows]
        np.testing.assert_allclose(ours.data[rows], expected, atol=1e-10 * np.abs(expected).max())
    # The reference electrode, on the nose, lies 37 mm off this sphere; without it EEG works.
    few = mne.pick_info(sample.info, mne.pick_types(sample.info, eeg=True, exclude=[]))
    with pytest.raises(ValueError, match="1 of 61 electrodes more than 15 mm off the sphere"):
        compute_forward(head, few, [sphere["r0"]])
    alone = compute_forward(head, few, [sphere["r0"]], eeg_reference="none")
    assert alone.data.shape == (60, 1, 3)


def shells_of(sphere):
    """The head of an MNE sphere."""
    shells = [[layer[name] for layer in sphere["layers"]] for name in ("rad", "sigma")]
    return Sphere(*(np.array(values) for values in shells), centre=sphere["r0"])


def test_sphere_for_electrodes_agrees_with_mne(info):
    sphere = mne.make_sphere_model(CENTRE, 0.095)
    src = source_space("discrete", sphere)

    def round_off(info):
        for channel in info["chs"]:
            step = channel["loc"][:3] - CENTRE
            channel["loc"][:3] = CENTRE + 0.095 * step / np.linalg.norm(step)
            channel["loc"][3:6] = 0

    info = altered(info, round_off)
    theirs = lead_field_from_mne(mne.make_forward_solution(info, None, src, sphere, meg=False))
    ours = compute_forward(shells_of(sphere), info, src, trans=ONE_FRAME)
    a, b = (x.data - x.data.mean(axis=0) for x in (ours, theirs))
    a, b = (x / np.linalg.norm(x, axis=0) for x in (a, b))
    error = 50 * np.linalg.norm(a - b, axis=0)
    # MNE's is an approximation by three equivalent dipoles, good to 1 % at these depths.
    assert np.median(error) < 0.1 and error.max() < 1.0


def test_intracranial_channels():
    info = mne.create_info(["a", "b", "c", "d"], 100.0, ["seeg", "ecog", "dbs", "eog"])
    places = np.array([[0.01, 0.02, 0.03], [0.02, 0.02, 0.09], [0.0, 0.0, 0.04]])
    for channel, pos in zip(info["chs"], places, strict=False):
        channel["loc"][:3] = pos
    sensors = sensors_of(info)
    assert sensors.ch_names == ("a", "b", "c") and sensors.coils is sensors.electrodes is None
    np.testing.assert_array_equal(sensors.contacts.pos, places)
    pos = np.array([[0.02, 0.0, 0.05]])
    lead_field = compute_forward(BALL, info, pos)
    np.testing.assert_allclose(lead_field.data, potential(pos, places), rtol=1e-15)


def test_reference_of_the_recording(sample):
    """Channels of the sample recording are read against its reference electrode."""
    lead_field = compute_forward(BALL, sample.info, [[0.02, 0.01, 0.05]], kinds=("eeg",))
    channels = [sample.info["chs"][i] for i in mne.pick_types(sample.info, eeg=True, exclude=[])]
    own, reference = (
        np.asarray(potential(lead_field.source_pos, np.array([c["loc"][part] for c in channels])))
        for part in (slice(0, 3), slice(3, 6))
    )
    np.testing.assert_allclose(lead_field.data, own - reference, atol=1e-12 * np.abs(own).max())


# --- there and back ------------------------------------------------------------------------------


def assert_same_lead_field(a, b, skip=()):
    for field in dataclasses.fields(LeadField):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in skip:
            continue
        if field.name == "source_normals" and x is not None:
            # Made unit length once more, which may move the last bit.
            np.testing.assert_allclose(x, y, atol=3e-16)
        elif isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=field.name)
        else:
            assert x == y, field.name


def test_free_orientation_there_and_back(forward, tmp_path):
    lead_field = lead_field_from_mne(forward)
    assert lead_field.n_orient == 3 and lead_field.bads == ("Cz",)
    again = lead_field_to_mne(lead_field, forward["info"], forward["src"])
    assert isinstance(again, mne.Forward) and set(again) == set(forward)
    for key in ("data", "row_names", "nrow", "ncol"):
        np.testing.assert_array_equal(again["sol"][key], forward["sol"][key])
    for key in ("source_rr", "source_nn", "source_ori", "surf_ori", "coord_frame", "nsource",
                "nchan", "_orig_sol", "_orig_source_ori"):  # fmt: skip
        np.testing.assert_array_equal(again[key], forward[key])
    assert repr(again) == repr(forward)
    assert_same_lead_field(lead_field_from_mne(again), lead_field)
    if any(block["type"] == "vol" for block in forward["src"]):
        return  # a grid without an MRI cannot be written by MNE
    path = tmp_path / "x-fwd.fif"
    mne.write_forward_solution(path, again)
    read = lead_field_from_mne(path)
    # FIF keeps single precision.
    np.testing.assert_allclose(read.data, lead_field.data, rtol=1e-6, atol=1e-6 * 40)
    assert read.ch_names == lead_field.ch_names and read.bads == lead_field.bads


def test_local_and_fixed_orientation_there_and_back(forward):
    lead_field = lead_field_from_mne(forward)
    local = mne.convert_forward_solution(forward, surf_ori=True)
    turned = lead_field_from_mne(local)
    np.testing.assert_allclose(turned.data, lead_field.data, atol=1e-12)
    if lead_field.source_normals is None:
        with pytest.raises(ValueError, match="no normals"):
            lead_field.fixed()
        return
    fixed = mne.convert_forward_solution(forward, force_fixed=True)
    ours = lead_field_from_mne(fixed)
    assert ours.n_orient == 1
    # MNE makes fixed orientation in single precision.
    np.testing.assert_allclose(ours.data, lead_field.fixed().data, rtol=1e-5, atol=1e-3)
    again = lead_field_to_mne(ours, forward["info"], forward["src"])
    np.testing.assert_array_equal(again["sol"]["data"], fixed["sol"]["data"])
    np.testing.assert_array_equal(again["source_nn"], fixed["source_nn"])
    assert again["source_ori"] == fixed["source_ori"] and again["surf_ori"]
    assert_same_lead_field(lead_field_from_mne(again), ours)
    # Ours in free orientation is made fixed by MNE.
    made = mne.convert_forward_solution(lead_field_to_mne(lead_field), force_fixed=True)
    np.testing.assert_allclose(made["sol"]["data"], fixed["sol"]["data"], rtol=1e-5, atol=1e-3)


def test_without_info_and_source_space(forward, tmp_path):
    lead_field = lead_field_from_mne(forward)
    if len(set(lead_field.block_kinds)) > 2:
        with pytest.raises(ValueError, match="src is needed: a source space of surfaces"):
            lead_field_to_mne(lead_field)
        return
    again = lead_field_from_mne(lead_field_to_mne(lead_field))
    # The area of the full surface and the pitch of a grid are not known to a lead field.
    assert_same_lead_field(again, lead_field, skip=("source_volume",))
    path = tmp_path / "x-fwd.fif"
    mne.write_forward_solution(path, lead_field_to_mne(lead_field))
    read = mne.read_forward_solution(path)
    np.testing.assert_allclose(read["source_rr"], lead_field.source_pos, atol=1e-7)


def test_rows_of_meg_stand_first(sample):
    last = mne.pick_types(sample.info, meg=True)[:3]
    first = mne.pick_types(sample.info, meg=False, eeg=True)[:2]
    info = mne.pick_info(sample.info, [first[0], *last, first[1]])
    lead_field = compute_forward(BALL, info, [[0.02, 0.01, 0.05], [0.0, 0.0, 0.06]])
    forward = lead_field_to_mne(lead_field, info)
    names = forward["sol"]["row_names"]
    assert names == [info.ch_names[i] for i in (1, 2, 3, 0, 4)] == forward["info"]["ch_names"]
    again = lead_field_from_mne(forward).pick(lead_field.ch_names)
    np.testing.assert_array_equal(again.data, lead_field.data)


def test_source_space_in_mri_coordinates(info, sphere):
    trans = mne.Transform("head", "mri")
    trans["trans"][:3, :3] = Rotation.from_euler("x", 4, degrees=True).as_matrix()
    trans["trans"][:3, 3] = [0.002, -0.004, 0.003]
    src = source_space("surface", sphere)
    theirs = mne.make_forward_solution(info, trans, src, sphere, meg=False)
    for way in (trans, mne.transforms.invert_transform(trans)):
        ours = compute_forward(BALL, info, src, trans=way)
        np.testing.assert_allclose(ours.source_pos, theirs["source_rr"], atol=1e-15)
        expected = lead_field_from_mne(theirs)
        assert_same = ("data", "source_pos", "source_normals", "mri_to_head", "reach")
        assert_same_lead_field(ours, expected, skip=(*assert_same, "sensor_pos", "source_volume"))
        for name in assert_same[1:]:
            np.testing.assert_allclose(
                getattr(ours, name), getattr(expected, name), atol=1e-14, err_msg=name
            )
    forward = lead_field_to_mne(ours, info, src)
    assert forward["src"][0]["coord_frame"] == 4
    np.testing.assert_allclose(forward["source_rr"], theirs["source_rr"], atol=1e-15)


def test_part_of_a_source_space(info, sphere):
    src = source_space("surface", sphere)
    keep = np.arange(40) % 3 > 0
    whole = compute_forward(BALL, info, src, trans=ONE_FRAME)
    part = compute_forward(BALL, info, src, trans=ONE_FRAME, keep=keep)
    np.testing.assert_array_equal(part.data, whole.data[:, keep])
    assert np.all(part.faces < part.n_sources)
    forward = lead_field_to_mne(part, info, src)
    assert forward["nsource"] == keep.sum() == sum(b["nuse"] for b in forward["src"])
    np.testing.assert_array_equal(lead_field_from_mne(forward).data, part.data)
    with pytest.raises(ValueError, match="keep must be a mask of 40 sources"):
        compute_forward(BALL, info, src, trans=ONE_FRAME, keep=keep[1:])
    with pytest.raises(ValueError, match="src, with 40 sources, is not the source space"):
        lead_field_to_mne(compute_forward(BALL, info, part.source_pos + 1e-3), info, src)


def test_inverse_operators_of_mne_take_ours(evoked, noise_cov, sphere):
    src = source_space("surface", sphere)
    lead_field = compute_forward(BALL, evoked.info, src, trans=ONE_FRAME)
    for forward in (lead_field_to_mne(lead_field, evoked.info, src),
                    lead_field_to_mne(lead_field)):  # fmt: skip
        operator = mne.minimum_norm.make_inverse_operator(
            evoked.info, forward, noise_cov, loose=0.2, depth=0.8
        )
        estimate = mne.minimum_norm.apply_inverse(evoked, operator, method="dSPM")
        assert estimate.data.shape == (40, 10) and np.all(np.isfinite(estimate.data))
    fixed = lead_field_to_mne(lead_field.fixed(), evoked.info, src)
    operator = mne.minimum_norm.make_inverse_operator(
        evoked.info, fixed, noise_cov, loose=0.0, depth=None, fixed=True
    )
    made = mne.minimum_norm.apply_inverse(evoked, operator, method="MNE")
    # The same by hand: minimum norm of the whitened problem.
    good = [name for name in evoked.ch_names if name != "Cz"]
    whitener, names = mne.cov.compute_whitener(noise_cov, evoked.info, picks=good)
    gain = whitener @ lead_field.fixed().pick(names).referenced(np.eye(31) - 1 / 31).data[:, :, 0]
    scale = np.sum(gain**2) / 30
    data = whitener @ evoked.copy().pick(names).apply_proj().data * np.sqrt(evoked.nave)
    gram = gain @ gain.T / scale + np.eye(31) / 9
    # Written with lambda2 = 1/9 and the trace of the whitened gain set to its rank.
    expected = gain.T @ np.linalg.solve(gram, data) / scale / np.sqrt(evoked.nave)
    np.testing.assert_allclose(made.data, expected, atol=1e-6 * np.abs(expected).max())


def test_from_mne_equals_from_arrays(evoked, noise_cov, sphere):
    src = source_space("surface", sphere)
    lead_field = compute_forward(BALL, evoked.info, src, trans=ONE_FRAME)
    a = from_mne(evoked, lead_field_to_mne(lead_field, evoked.info, src), noise_cov)
    good = [name for name in evoked.ch_names if name != "Cz"]
    picked = lead_field.pick(good)
    reference = average_reference(picked)
    rows = [evoked.ch_names.index(name) for name in good]
    cov = reference @ noise_cov.data[np.ix_(rows, rows)] @ reference.T / evoked.nave
    arrays = picked.referenced(reference).for_problem()
    b = Problem.from_arrays(reference @ evoked.data[rows], noise_cov=cov, **arrays)
    for x, y in ((a.data, b.data), (a.lead_field, b.lead_field)):
        gram_a, gram_b = (z.reshape(len(z), -1).T @ z.reshape(len(z), -1) for z in (x, y))
        np.testing.assert_allclose(gram_a, gram_b, atol=1e-9 * np.abs(gram_b).max())
    np.testing.assert_allclose(a.moment_unit, b.moment_unit)
    np.testing.assert_array_equal(a.neighbours, b.neighbours)
    for name in ("source_pos", "source_normals", "source_volume", "sensor_pos"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12)
    for name in ("ch_names", "ch_types", "block_kinds", "subject"):
        assert getattr(a, name) == getattr(b, name)


# --- surfaces ------------------------------------------------------------------------------------


def test_surfaces_of_a_bem(data_dir):
    folder = data_dir / "sample"
    bem, trans = folder / "sample-1280-1280-1280-bem.fif", folder / "sample-trans.fif"
    vertices, faces = bem_surfaces_of(bem, trans)
    assert [v.shape for v in vertices] == [(642, 3)] * 3
    surfaces = mne.read_bem_surfaces(bem)
    mri_to_head = mne.read_trans(trans)
    if mri_to_head.from_str != "MRI (surface RAS)":
        mri_to_head = mne.transforms.invert_transform(mri_to_head)
    for found, tris, kind in zip(vertices, faces, (4, 3, 1), strict=True):
        surface = next(s for s in surfaces if s["id"] == kind)
        expected = mne.transforms.apply_trans(mri_to_head, surface["rr"])
        np.testing.assert_allclose(found, expected, atol=1e-15)
        # Volume by the divergence theorem: positive if the faces look outwards.
        a, b, c = np.moveaxis(found[tris], 1, 0)
        assert 1e-3 < np.sum(a * np.cross(b, c)) / 6 < 8e-3
    again = bem_surfaces_of(surfaces[::-1], mri_to_head)
    np.testing.assert_array_equal(again[0], vertices)
    model = mne.bem.ConductorModel(is_sphere=False, surfs=surfaces[:1])
    np.testing.assert_array_equal(bem_surfaces_of(model, trans)[0], vertices[:1])
    with pytest.raises(ValueError, match="bem is in MRI coordinates: give trans"):
        bem_surfaces_of(bem)
    in_head = [mne.transform_surface_to(s, "head", mri_to_head, copy=True) for s in surfaces]
    np.testing.assert_array_equal(bem_surfaces_of(in_head)[0], vertices)
    in_mm = [{**s, "rr": 1e3 * s["rr"]} for s in in_head]
    with pytest.raises(ValueError, match="bem must be in metres"):
        bem_surfaces_of(in_mm)


def test_bad_surfaces(sphere, tmp_path):
    with pytest.raises(ValueError, match="bem is a sphere"):
        bem_surfaces_of(sphere)
    with pytest.raises(ValueError, match="the bem file .* does not exist"):
        bem_surfaces_of(tmp_path / "none-bem.fif")
    with pytest.raises(ValueError, match="bem must be a BEM of MNE"):
        bem_surfaces_of([])
    surface = {"rr": np.eye(3), "tris": np.array([[0, 1, 2]]), "coord_frame": 1}
    with pytest.raises(ValueError, match="coordinate frame 1, neither MRI nor head"):
        bem_surfaces_of(surface)
    surface["coord_frame"] = 5
    with pytest.raises(ValueError, match="trans must be an mne.Transform"):
        bem_surfaces_of(surface, np.eye(4))
    with pytest.raises(ValueError, match="trans must lead between MRI and head"):
        bem_surfaces_of(surface, mne.Transform("meg", "head"))
    vertices, _ = bem_surfaces_of({**surface, "rr": 0.1 * surface["rr"]}, "fsaverage")
    assert vertices[0].shape == (3, 3)


# --- bad input -----------------------------------------------------------------------------------


def altered(info, change):
    info = info.copy()
    with info._unlock():
        change(info)
    return info


def test_sensors_in_another_frame_lie_inside_the_head(sample):
    rng = np.random.default_rng(7)
    pos = rng.uniform(-0.06, 0.06, (200, 3)) + [0.0, 0.0, 0.04]
    lost = altered(sample.info, lambda i: i["dev_head_t"]["trans"][:3, 3].__iadd__([0, 0, -0.12]))
    with pytest.raises(ValueError, match="points of coils inside the head, among the sources"):
        compute_forward(BALL, lost, pos, kinds=("mag", "grad"))


def test_bad_sources_and_models(info, sphere, tmp_path):
    src = source_space("surface", sphere)
    with pytest.raises(ValueError, match="src is in MRI coordinates: give trans"):
        compute_forward(BALL, info, src)
    with pytest.raises(ValueError, match="src must be in metres"):
        compute_forward(BALL, info, 1e3 * np.eye(3))
    with pytest.raises(ValueError, match=r"src must have shape \(n, 3\)"):
        compute_forward(BALL, info, np.eye(4))
    with pytest.raises(ValueError, match="the src file .* does not exist"):
        compute_forward(BALL, info, tmp_path / "none-src.fif")
    with pytest.raises(ValueError, match=r"has no eeg\(\), which channels of kind eeg need"):
        compute_forward(types.SimpleNamespace(meg=BALL.meg), info, 0.01 * np.eye(3))
    with pytest.raises(ValueError, match="forward must be an mne.Forward, got dict"):
        lead_field_from_mne({})
    lead_field = compute_forward(BALL, info, 0.01 * np.eye(3))
    with pytest.raises(ValueError, match="32 of 32 channels do not exist"):
        lead_field_to_mne(lead_field, mne.create_info(["a"], 1.0, "eeg"))
    with pytest.raises(ValueError, match="info must be an mne.Info, got str"):
        lead_field_to_mne(lead_field, "info")
