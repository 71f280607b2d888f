"""MNE objects in and out: the linear map of a recording, ranks, densities, frames, errors."""

import dataclasses
import types

import mne
import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.stats import multivariate_normal

from bayes_esi.io.mne import (
    dipoles_to_mne,
    from_mne,
    read_problem_files,
    source_estimate,
    tracks_to_mne,
)
from bayes_esi.models.problem import Problem

mne.set_log_level("ERROR")
SFREQ, N_TIMES, TMIN = 100.0, 12, -0.02
LEFT, RIGHT = 101, 102


# --- synthetic objects ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def info():
    montage = mne.channels.make_standard_montage("biosemi32")
    info = mne.create_info(montage.ch_names, SFREQ, "eeg")
    return info.set_montage(montage)


@pytest.fixture(scope="module")
def sphere():
    return mne.make_sphere_model((0.0, 0.0, 0.04), 0.095)


def _forward(info, src, sphere):
    return mne.make_forward_solution(info, None, src, sphere, meg=False, mindist=0.0)


def _discrete_source_space(sphere, n=25, seed=1):
    rng = np.random.default_rng(seed)
    nn = rng.standard_normal((n, 3))
    nn /= np.linalg.norm(nn, axis=1, keepdims=True)
    rr = sphere["r0"] + 0.05 * nn + 0.004 * rng.standard_normal((n, 3))
    return mne.setup_volume_source_space(pos={"rr": rr, "nn": nn}, sphere=sphere, mindist=0.0)


def _sphere_points(n):
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=1)


def _surface_source_space(side, n=120, every=4, radius=0.025):
    """A round hemisphere, decimated to every fourth vertex, with the mesh of those."""
    nn = _sphere_points(n)
    centre = np.array([-0.032 if side == LEFT else 0.032, 0.0, 0.055])
    vertno = np.arange(0, n, every)
    tris = ConvexHull(nn).simplices
    use_tris = vertno[ConvexHull(nn[vertno]).simplices]
    inuse = np.zeros(n, int)
    inuse[vertno] = 1
    block = {
        "id": side, "type": "surf", "np": n, "ntri": len(tris), "coord_frame": 5,
        "rr": centre + radius * nn, "nn": nn, "tris": tris, "nuse": len(vertno), "inuse": inuse,
        "vertno": vertno, "nuse_tri": len(use_tris), "use_tris": use_tris, "nearest": None,
        "nearest_dist": None, "pinfo": None, "patch_inds": None, "dist": None,
        "dist_limit": None, "subject_his_id": "round",
    }  # fmt: skip
    return mne.SourceSpaces([block])


def _surfaces():
    return _surface_source_space(LEFT) + _surface_source_space(RIGHT)


def _grid(sphere, pos=30.0):
    return mne.setup_volume_source_space(pos=pos, sphere=sphere, mindist=10.0)


def _volume(sphere):
    """A grid of the type that mne.setup_volume_source_space gives with an MRI."""
    src = _grid(sphere)
    src[0]["type"] = "vol"
    return src


@pytest.fixture(scope="module")
def forward(info, sphere):
    return _forward(info, _discrete_source_space(sphere), sphere)


@pytest.fixture(scope="module")
def surface_forward(info, sphere):
    return _forward(info, _surfaces(), sphere)


@pytest.fixture(scope="module")
def evoked(info):
    rng = np.random.default_rng(2)
    data = 1e-6 * rng.standard_normal((len(info["ch_names"]), N_TIMES))
    evoked = mne.EvokedArray(data, info, tmin=TMIN, nave=4)
    return evoked.set_eeg_reference(projection=True)


@pytest.fixture(scope="module")
def noise_cov(info):
    rng = np.random.default_rng(3)
    n = len(info["ch_names"])
    factor = 2e-6 * rng.standard_normal((n, 2 * n)) / np.sqrt(2 * n)
    return mne.Covariance(factor @ factor.T, info["ch_names"], [], [], nfree=1000)


def _gram(array):
    flat = array.reshape(len(array), -1)
    return flat.T @ flat


def _assert_same_problem(a, b, rtol=1e-9):
    """Equal up to a rotation of the whitened rows."""
    for x, y in ((_gram(a.data), _gram(b.data)), (_gram(a.lead_field), _gram(b.lead_field))):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())
    np.testing.assert_allclose(a.log_jacobian, b.log_jacobian, rtol=1e-9)
    np.testing.assert_allclose(a.moment_unit, b.moment_unit, rtol=rtol)


# --- reference, projectors, rank -----------------------------------------------------------------


def test_average_reference_takes_one_rank(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov)
    assert isinstance(problem, Problem)
    assert problem.data.shape == (31, N_TIMES)
    assert problem.lead_field.shape == (31, 25, 3)
    assert problem.data.dtype == problem.lead_field.dtype == np.float64
    assert problem.ch_names == tuple(evoked.ch_names)
    assert problem.ch_types == ("eeg",) * 32
    assert problem.group_names == ("eeg",)
    scale = np.abs(problem.whitener).max()
    np.testing.assert_allclose(problem.whitener @ np.ones(32), 0, atol=1e-9 * scale)
    np.testing.assert_array_equal(problem.times, evoked.times)


def test_constant_and_other_reference_change_nothing(evoked, forward, noise_cov):
    base = from_mne(evoked, forward, noise_cov)
    shifted = evoked.copy()
    shifted.data += 1e-5 * np.sin(np.arange(N_TIMES))
    _assert_same_problem(from_mne(shifted, forward, noise_cov), base)

    raw = mne.EvokedArray(evoked.data, _without_projs(evoked.info), tmin=TMIN, nave=4)
    for reference in (["Cz"], ["T7", "T8"], "average"):
        other = raw.copy().set_eeg_reference(reference)
        assert other.info["custom_ref_applied"] and not other.info["projs"]
        _assert_same_problem(from_mne(other, forward, noise_cov), base)
    _assert_same_problem(from_mne(evoked.copy().apply_proj(), forward, noise_cov), base)


def test_reference_of_the_covariance_changes_nothing(evoked, forward, noise_cov):
    other = noise_cov.copy()
    against_first = np.eye(32)
    against_first[:, 0] -= 1
    other["data"] = against_first @ noise_cov["data"] @ against_first.T
    _assert_same_problem(
        from_mne(evoked, forward, other), from_mne(evoked, forward, noise_cov), rtol=1e-7
    )


def test_bads_of_all_three_are_left_out_and_the_reference_follows(evoked, forward, noise_cov):
    marked, marked_forward, marked_cov = evoked.copy(), forward.copy(), noise_cov.copy()
    marked.info["bads"] = ["Cz"]
    marked_forward["info"]["bads"] = ["Fz"]
    marked_cov["bads"] = ["Pz"]
    problem = from_mne(marked, marked_forward, marked_cov)
    assert set(evoked.ch_names) - set(problem.ch_names) == {"Cz", "Fz", "Pz"}
    assert problem.data.shape[0] == 28
    # The average over 32 channels has been subtracted before dropping three: it does not matter.
    active = marked.copy()
    active.info["bads"] = []
    active.apply_proj()
    active.info["bads"] = ["Cz"]
    _assert_same_problem(from_mne(active, marked_forward, marked_cov), problem)


def test_channel_order_changes_nothing(evoked, forward, noise_cov):
    base = from_mne(evoked, forward, noise_cov)
    order = list(np.random.default_rng(4).permutation(evoked.ch_names))
    shuffled = evoked.copy().reorder_channels(order)
    problem = from_mne(shuffled, forward, noise_cov)
    assert problem.ch_names == tuple(order)
    _assert_same_problem(problem, base)
    back = [order.index(name) for name in evoked.ch_names]
    np.testing.assert_allclose(problem.sensor_pos[back], base.sensor_pos)


def test_ssp_takes_its_rank(evoked, forward, noise_cov):
    vectors = np.linalg.qr(np.random.default_rng(5).standard_normal((32, 2)))[0].T
    projs = [
        mne.Projection(
            active=False,
            data={
                "col_names": evoked.ch_names, "row_names": None, "nrow": 2, "ncol": 32,
                "data": vectors,
            },
            desc="ssp",
            kind=1,
        )
    ]  # fmt: skip
    projected = evoked.copy().add_proj(projs)
    problem = from_mne(projected, forward, noise_cov)
    assert problem.data.shape[0] == 29
    contaminated = projected.copy()
    contaminated.data += 1e-4 * np.outer(vectors[0], np.arange(N_TIMES))
    _assert_same_problem(from_mne(contaminated, forward, noise_cov), problem, rtol=1e-8)
    _assert_same_problem(from_mne(projected.copy().apply_proj(), forward, noise_cov), problem)


def test_nave_divides_the_covariance(evoked, forward, noise_cov):
    base = from_mne(evoked, forward, noise_cov)
    more = evoked.copy()
    more.nave = 16
    problem = from_mne(more, forward, noise_cov)
    np.testing.assert_allclose(_gram(problem.data), 4 * _gram(base.data), rtol=1e-9)
    np.testing.assert_allclose(
        problem.log_jacobian - base.log_jacobian, N_TIMES * 31 * np.log(2), rtol=1e-9
    )


def test_log_jacobian_gives_the_density_on_the_range(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov)
    n = problem.data.size
    log_density = -0.5 * np.sum(problem.data**2) - 0.5 * n * np.log(2 * np.pi)
    log_density += problem.log_jacobian
    centred = np.eye(32) - 1 / 32
    # In uV, where scipy's tolerances fit; densities in V follow from the change of unit.
    cov = 1e12 * centred @ noise_cov["data"] @ centred / evoked.nave
    law = multivariate_normal(np.zeros(32), cov, allow_singular=True)
    direct = law.logpdf((1e6 * centred @ evoked.data).T).sum() + n * np.log(1e6)
    np.testing.assert_allclose(log_density, direct, rtol=1e-10)


def test_diagonal_covariance(evoked, forward, noise_cov):
    variances = np.diag(noise_cov["data"]).copy()
    diagonal = mne.Covariance(variances, evoked.ch_names, [], [], nfree=100)
    full = mne.Covariance(np.diag(variances), evoked.ch_names, [], [], nfree=100)
    assert diagonal["diag"]
    _assert_same_problem(from_mne(evoked, forward, diagonal), from_mne(evoked, forward, full))


def test_epochs_are_averaged(evoked, forward, noise_cov):
    rng = np.random.default_rng(6)
    data = 1e-6 * rng.standard_normal((5, 32, N_TIMES))
    epochs = mne.EpochsArray(data, _without_projs(evoked.info), tmin=TMIN)
    epochs.set_eeg_reference(projection=True)
    problem = from_mne(epochs, forward, noise_cov)
    average = mne.EvokedArray(data.mean(0), evoked.info, tmin=TMIN, nave=5)
    _assert_same_problem(problem, from_mne(average, forward, noise_cov))


def test_window(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov, tmin=0.0, tmax=0.05)
    np.testing.assert_allclose(problem.times, np.arange(6) / SFREQ, atol=1e-12)
    whole = from_mne(evoked, forward, noise_cov)
    np.testing.assert_allclose(problem.data, whole.data[:, 2:8])
    assert from_mne(evoked, forward, noise_cov, 0.01, 0.01).n_times == 1


# --- sources -------------------------------------------------------------------------------------


def test_discrete_source_space(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov)
    assert problem.block_kinds == ("discrete",)
    np.testing.assert_allclose(problem.source_pos, forward["source_rr"])
    np.testing.assert_allclose(problem.source_normals, forward["src"][0]["nn"], atol=1e-7)
    assert np.all(problem.source_volume > 0)


def test_lead_field_is_the_forward_solution(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov)
    field = forward["sol"]["data"].reshape(32, 25, 3)
    expected = np.einsum("rc,csd->rsd", problem.whitener, field) * problem.moment_unit
    np.testing.assert_allclose(problem.lead_field, expected, atol=1e-9)


def test_grid_has_volume_and_no_normals(evoked, info, sphere, noise_cov):
    for src in (_grid(sphere), _volume(sphere)):
        problem = from_mne(evoked, _forward(info, src, sphere), noise_cov)
        assert problem.block_kinds == ("vol",)
        assert problem.source_normals is None
        np.testing.assert_allclose(problem.source_volume, 0.03**3, rtol=1e-5)


def test_grid_from_a_file_has_no_normals(evoked, info, sphere, noise_cov, tmp_path):
    path = tmp_path / "grid-fwd.fif"
    mne.write_forward_solution(path, _forward(info, _grid(sphere), sphere))
    problem = from_mne(evoked, mne.read_forward_solution(path), noise_cov)
    assert problem.block_kinds == ("vol",) and problem.source_normals is None
    np.testing.assert_allclose(problem.source_volume, 0.03**3, rtol=1e-4)
    assert problem.lead_field.dtype == np.float64


def test_surfaces(evoked, surface_forward, noise_cov):
    problem = from_mne(evoked, surface_forward, noise_cov)
    assert problem.block_kinds == ("lh", "rh")
    assert problem.subject == "round"
    vertno = np.arange(0, 120, 4)
    np.testing.assert_array_equal(problem.source_vertices, np.tile(vertno, 2))
    np.testing.assert_array_equal(problem.source_block, np.repeat([0, 1], 30))
    np.testing.assert_allclose(problem.source_normals, np.tile(_sphere_points(120)[::4], (2, 1)))
    thickness = problem.source_volume.sum() / (2 * 4 * np.pi * 0.025**2)
    np.testing.assert_allclose(thickness, 2.5e-3, rtol=0.05)
    # A closed mesh of V vertices has 3 V - 6 edges.
    assert np.count_nonzero(problem.neighbours >= 0) == 2 * 2 * (3 * 30 - 6)
    for i, row in enumerate(problem.neighbours):
        assert np.all(problem.source_block[row[row >= 0]] == problem.source_block[i])


def test_local_frames_are_turned_back(evoked, surface_forward, noise_cov):
    local = mne.convert_forward_solution(surface_forward, surf_ori=True)
    base = from_mne(evoked, surface_forward, noise_cov)
    problem = from_mne(evoked, local, noise_cov)
    assert not np.allclose(local["sol"]["data"], surface_forward["sol"]["data"])
    scale = np.abs(base.lead_field).max()
    np.testing.assert_allclose(problem.lead_field, base.lead_field, atol=1e-9 * scale)
    np.testing.assert_allclose(problem.source_normals, base.source_normals, atol=1e-9)


def test_fixed_orientation_is_along_the_normals(evoked, surface_forward, noise_cov):
    fixed = mne.convert_forward_solution(surface_forward, force_fixed=True)
    free = from_mne(evoked, surface_forward, noise_cov)
    problem = from_mne(evoked, fixed, noise_cov)
    assert problem.n_orient == 1
    np.testing.assert_allclose(problem.source_normals, free.source_normals, atol=1e-7)
    along = np.einsum("rsd,sd->rs", free.lead_field, free.source_normals) / free.moment_unit
    field = problem.lead_field[:, :, 0] / problem.moment_unit
    np.testing.assert_allclose(field, along, atol=1e-5 * np.abs(along).max())


def test_mixed_source_space(evoked, info, sphere, noise_cov):
    problem = from_mne(evoked, _forward(info, _surfaces() + _volume(sphere), sphere), noise_cov)
    assert problem.block_kinds == ("lh", "rh", "vol")
    assert problem.source_normals is None
    assert np.all(np.diff(problem.source_block) >= 0)
    for i, row in enumerate(problem.neighbours):
        assert np.all(problem.source_block[row[row >= 0]] == problem.source_block[i])
    values = np.arange(problem.n_sources, dtype=float)
    stc = source_estimate(problem, values)
    assert isinstance(stc, mne.MixedSourceEstimate)
    assert [len(v) for v in stc.vertices] == list(np.bincount(problem.source_block))
    np.testing.assert_array_equal(stc.data[:, 0], values)


def test_mesh_with_holes_and_single_sources(evoked, info, sphere, noise_cov):
    src = _surfaces()
    for block, keep in zip(src, ([0, 60], [8]), strict=True):
        block["vertno"], block["nuse"] = np.array(keep), len(keep)
        block["inuse"] = np.isin(np.arange(120), keep).astype(int)
    problem = from_mne(evoked, _forward(info, src, sphere), noise_cov)
    assert problem.n_sources == 3
    np.testing.assert_array_equal(problem.neighbours, [[1], [0], [-1]])
    # Each keeps the area of one vertex of the full mesh.
    np.testing.assert_allclose(problem.source_volume, 4 * np.pi * 0.025**2 / 30 * 2.5e-3, rtol=0.05)


def test_surface_without_decimated_mesh(evoked, info, sphere, noise_cov):
    src = _surfaces()
    for block in src:
        block["use_tris"], block["nuse_tri"] = None, 0
    problem = from_mne(evoked, _forward(info, src, sphere), noise_cov)
    assert np.all(problem.neighbours[:, 0] >= 0)
    assert np.all(problem.source_volume > 0)


# --- errors --------------------------------------------------------------------------------------


def _without_projs(info):
    info = info.copy()
    with info._unlock():
        info["projs"] = []
    return info


def test_errors_about_the_recording(evoked, forward, noise_cov, info):
    for wrong in ("left-ave.fif", [evoked], None):
        with pytest.raises(ValueError, match="evoked must be an mne.Evoked"):
            from_mne(wrong, forward, noise_cov)
    bare = mne.EvokedArray(evoked.data, _without_projs(info))
    with pytest.raises(ValueError, match=r"EEG without reference.*set_eeg_reference"):
        from_mne(bare, forward, noise_cov)
    for bad in (np.nan, np.inf):
        broken = evoked.copy()
        broken.data[3, 5] = bad
        with pytest.raises(ValueError, match="evoked has 1 NaN or infinite value"):
            from_mne(broken, forward, noise_cov)
    assert from_mne(broken, forward, noise_cov, tmin=0.05).n_times == 5
    broken = evoked.copy()
    broken.nave = 0
    with pytest.raises(ValueError, match="evoked.nave"):
        from_mne(broken, forward, noise_cov)
    broken = evoked.copy()
    broken.kind = "standard_error"
    with pytest.raises(ValueError, match="evoked must be an average"):
        from_mne(broken, forward, noise_cov)
    single = evoked.copy()
    single.info["bads"] = single.ch_names[1:]
    with pytest.raises(ValueError, match="single good eeg channel"):
        from_mne(single, forward, noise_cov)
    single.info["bads"] = single.ch_names
    with pytest.raises(ValueError, match="evoked has no good channels"):
        from_mne(single, forward, noise_cov)
    epochs = mne.EpochsArray(np.zeros((1, 32, N_TIMES)), info)[[]]
    with pytest.raises(ValueError, match="without good epochs"):
        from_mne(epochs, forward, noise_cov)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((0.05, 0.01), "tmin must not exceed tmax"),
        ((-1.0, 0.05), "tmin = -1 s lies outside"),
        ((0.0, 3.0), "tmax = 3 s lies outside"),
        ((np.nan, 0.05), "tmin must be a finite time"),
        (("0", 0.05), "tmin must be a finite time"),
        ((0.012, 0.018), "is empty"),
    ],
)
def test_errors_about_the_window(evoked, forward, noise_cov, window, message):
    with pytest.raises(ValueError, match=message):
        from_mne(evoked, forward, noise_cov, *window)


def test_errors_about_the_forward(evoked, forward, noise_cov):
    with pytest.raises(ValueError, match="forward must be an mne.Forward"):
        from_mne(evoked, "x-fwd.fif", noise_cov)
    wrong = forward.copy()
    wrong["coord_frame"] = 5
    with pytest.raises(ValueError, match="forward is in coordinate frame 5"):
        from_mne(evoked, wrong, noise_cov)
    wrong = forward.copy()
    wrong["nsource"] = 0
    with pytest.raises(ValueError, match="forward has no sources"):
        from_mne(evoked, wrong, noise_cov)
    wrong = forward.copy()
    wrong["nsource"] = 24
    with pytest.raises(ValueError, match="forward is inconsistent"):
        from_mne(evoked, wrong, noise_cov)
    wrong = forward.copy()
    wrong["sol"]["data"] = wrong["sol"]["data"][:, :-3]
    with pytest.raises(ValueError, match="forward has 72 columns"):
        from_mne(evoked, wrong, noise_cov)
    wrong = forward.copy()
    wrong["sol"]["data"] = np.where(np.eye(32, 75) > 0, np.nan, wrong["sol"]["data"])
    with pytest.raises(ValueError, match="forward has 32 NaN"):
        from_mne(evoked, wrong, noise_cov)
    renamed = evoked.copy().rename_channels({name: f"x{name}" for name in evoked.ch_names})
    with pytest.raises(ValueError, match="forward has none of the good channels"):
        from_mne(renamed, forward, noise_cov)


def test_errors_about_the_covariance(evoked, forward, noise_cov):
    names = evoked.ch_names
    with pytest.raises(ValueError, match="noise_cov must be an mne.Covariance"):
        from_mne(evoked, forward, noise_cov["data"])
    other = mne.Covariance(noise_cov["data"], [f"x{n}" for n in names], [], [], nfree=1)
    with pytest.raises(ValueError, match="noise_cov has none of the good channels"):
        from_mne(evoked, forward, other)
    wrong = noise_cov.copy()
    wrong["data"][0, 0] = np.nan
    with pytest.raises(ValueError, match="noise_cov has 1 NaN"):
        from_mne(evoked, forward, wrong)
    wrong = noise_cov.copy()
    wrong["data"] -= 1e-11 * np.outer(np.arange(32) - 15.5, np.arange(32) - 15.5)
    with pytest.raises(ValueError, match="noise_cov is not positive semidefinite"):
        from_mne(evoked, forward, wrong)
    wrong["data"] = np.zeros((32, 32))
    with pytest.raises(ValueError, match="noise_cov is zero"):
        from_mne(evoked, forward, wrong)


# --- writing -------------------------------------------------------------------------------------


def test_dipoles(evoked, forward, noise_cov, tmp_path):
    problem = from_mne(evoked, forward, noise_cov)
    rng = np.random.default_rng(7)
    moment = 1e-8 * rng.standard_normal((3, N_TIMES))
    moment[:, 0] = 0
    one = types.SimpleNamespace(pos=np.array([0.01, 0.0, 0.05]), moment_mean=moment, probability=1)
    two = types.SimpleNamespace(
        pos=np.zeros(3), moment_mean=0 * moment, probability=0.51, gof=np.full(N_TIMES, 70.0)
    )
    dipoles = dipoles_to_mne(problem, [one, two])
    assert [d.name for d in dipoles] == ["dipole 1 (p=1.00)", "dipole 2 (p=0.51)"]
    first, second = dipoles
    np.testing.assert_allclose(first.times, problem.times)
    np.testing.assert_allclose(first.pos, np.tile(one.pos, (N_TIMES, 1)))
    np.testing.assert_allclose(first.amplitude[:, None] * first.ori, moment.T, atol=1e-22)
    np.testing.assert_allclose(np.linalg.norm(first.ori, axis=1), 1)
    np.testing.assert_array_equal(first.gof, 0)
    np.testing.assert_array_equal(second.gof, 70)
    np.testing.assert_allclose(np.linalg.norm(second.ori, axis=1), 1)
    first.save(tmp_path / "one.dip")
    np.testing.assert_allclose(mne.read_dipole(tmp_path / "one.dip").pos, first.pos, atol=1e-4)
    one.moment_mean = moment[:1]
    with pytest.raises(ValueError, match="moment_mean must have shape"):
        dipoles_to_mne(problem, [one])


def test_tracks(evoked, forward, noise_cov, tmp_path):
    problem = from_mne(evoked, forward, noise_cov)
    rng = np.random.default_rng(10)
    alive = np.zeros(N_TIMES)
    alive[2:9] = [0.1, 0.4, 0.8, 0.8, 0.0, 0.5, 0.2]
    pos = np.array([0.01, 0.0, 0.05])
    path = np.where(alive[:, None] > 0, pos + 1e-3 * np.arange(N_TIMES)[:, None], np.nan)
    moment = np.where(alive > 0, 1e-8 * rng.standard_normal((3, N_TIMES)), np.nan)
    walking = types.SimpleNamespace(
        probability=0.7, prob_alive=alive, pos=pos, path=path, moment_mean=moment
    )
    brief = types.SimpleNamespace(
        probability=1.0,
        prob_alive=np.eye(N_TIMES)[4],
        pos=pos,
        path=np.tile(pos, (N_TIMES, 1)),
        moment_mean=np.where(np.arange(N_TIMES) == 4, [[0.0], [3e-8], [4e-8]], np.nan),
    )
    one, two = tracks_to_mne(problem, [walking, brief])
    assert [one.name, two.name] == ["track 1 (p=0.70)", "track 2 (p=1.00)"]
    # Half of 0.8 and more, from end to end; nobody is alive in between at sample 6.
    np.testing.assert_allclose(one.times, problem.times[3:8])
    np.testing.assert_allclose(one.pos[[0, 1, 2, 4]], path[[3, 4, 5, 7]])
    np.testing.assert_array_equal(one.pos[3], pos)
    told = np.nan_to_num(moment[:, 3:8])
    np.testing.assert_allclose(one.amplitude[:, None] * one.ori, told.T, atol=1e-22)
    np.testing.assert_allclose(two.times, problem.times[[4]])
    np.testing.assert_allclose(two.amplitude, [5e-8])
    np.testing.assert_allclose(two.ori, [[0, 0.6, 0.8]])
    one.save(tmp_path / "one.dip")
    np.testing.assert_allclose(mne.read_dipole(tmp_path / "one.dip").pos, one.pos, atol=1e-4)
    walking.moment_mean = moment[:1]
    with pytest.raises(ValueError, match="moment_mean must have shape"):
        tracks_to_mne(problem, [walking])
    assert tracks_to_mne(problem, []) == []


def test_volume_estimate(evoked, forward, noise_cov):
    problem = from_mne(evoked, forward, noise_cov, tmin=0.0)
    values = np.random.default_rng(8).standard_normal((25, problem.n_times))
    stc = source_estimate(problem, values)
    assert isinstance(stc, mne.VolSourceEstimate)
    np.testing.assert_array_equal(stc.data, values)
    np.testing.assert_allclose(stc.times, problem.times, atol=1e-9)
    stc = source_estimate(problem, values[:, 0])
    assert stc.shape == (25, 1) and stc.tmin == 0.0
    for wrong in (values[:-1], values[:, :3], values[None]):
        with pytest.raises(ValueError, match="values must have"):
            source_estimate(problem, wrong)


def test_estimate_of_plain_arrays():
    rng = np.random.default_rng(9)
    problem = Problem.from_arrays(
        rng.standard_normal((6, 1)), rng.standard_normal((6, 8, 3)), rng.standard_normal((8, 3))
    )
    stc = source_estimate(problem, np.arange(8.0))
    assert isinstance(stc, mne.VolSourceEstimate)
    np.testing.assert_array_equal(stc.vertices[0], np.arange(8))
    swapped = dataclasses.replace(problem, source_vertices=np.arange(8)[::-1].copy())
    stc = source_estimate(swapped, np.arange(8.0))
    np.testing.assert_array_equal(stc.data[:, 0], np.arange(8.0)[::-1])


def test_surface_estimate(evoked, info, sphere, surface_forward, noise_cov):
    problem = from_mne(evoked, surface_forward, noise_cov)
    stc = source_estimate(problem, np.arange(60.0))
    assert isinstance(stc, mne.SourceEstimate) and stc.subject == "round"
    np.testing.assert_array_equal(stc.lh_data[:, 0], np.arange(30.0))
    np.testing.assert_array_equal(stc.rh_data[:, 0], np.arange(30.0, 60.0))
    movie = np.random.default_rng(11).standard_normal((60, N_TIMES))
    stc = source_estimate(problem, movie)
    np.testing.assert_array_equal(stc.data, movie)
    np.testing.assert_allclose(stc.times, problem.times, atol=1e-9)
    right = _forward(info, _surface_source_space(RIGHT), sphere)
    stc = source_estimate(from_mne(evoked, right, noise_cov), np.arange(30.0))
    assert isinstance(stc, mne.SourceEstimate)
    assert [len(v) for v in stc.vertices] == [0, 30]


# --- files ---------------------------------------------------------------------------------------


def test_files(evoked, forward, noise_cov, tmp_path):
    paths = [tmp_path / name for name in ("x-ave.fif", "x-fwd.fif", "x-cov.fif")]
    one, two = evoked.copy(), evoked.copy()
    one.comment, two.comment = "one", "two"
    mne.write_evokeds(paths[0], [one, two])
    mne.write_forward_solution(paths[1], forward)
    mne.write_cov(paths[2], noise_cov)
    base = from_mne(evoked, forward, noise_cov)
    for condition, name in ((None, "one"), (1, "two"), ("two", "two"), ("1", "two")):
        read = read_problem_files(*paths, condition=condition)
        assert read[0].comment == name
        assert not any(p["active"] for p in read[0].info["projs"])
        _assert_same_problem(from_mne(*read), base, rtol=1e-5)
    with pytest.raises(ValueError, match="condition must be one of 0: 'one', 1: 'two'; got 'a'"):
        read_problem_files(*paths, condition="a")
    for i, argument in enumerate(("evoked", "forward", "noise_cov")):
        wrong = list(paths)
        wrong[i] = tmp_path / "none.fif"
        with pytest.raises(ValueError, match=f"the {argument} file .* does not exist"):
            read_problem_files(*wrong)
        wrong[i] = tmp_path / "damaged.fif"
        wrong[i].write_bytes(b"no fif at all")
        with pytest.raises(ValueError, match=f"the {argument} file .* cannot be read") as error:
            read_problem_files(*wrong)
        assert "\n" not in str(error.value)
