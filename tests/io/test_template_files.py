"""The average head out of installed packages: cache, no network, and objects MNE works with."""

import dataclasses
import socket

import mne
import numpy as np
import pytest

from bayes_esi.forward.surfaces import is_inside, nearest_points
from bayes_esi.forward.template import TemplateHead
from bayes_esi.io import template_files
from bayes_esi.io._source_space import sources_of
from bayes_esi.io.template_files import (
    MEG_SYSTEMS,
    build_template_head,
    info_of,
    source_space_of,
    template_head,
)

FIELDS = [field.name for field in dataclasses.fields(TemplateHead)]
# Not optodes of near-infrared systems.
MONTAGES = [
    name
    for name in mne.channels.get_builtin_montages()
    if not name.startswith(("artinis", "stand"))
]


def electrode_pos(info):
    return np.array([info["chs"][i]["loc"][:3] for i in mne.pick_types(info, eeg=True)])


def distance(head, pos):
    return nearest_points(pos, head.skin_pos, head.skin_faces).distance


def places(head, montage):
    info = info_of(head, montage)
    return dict(zip(info["ch_names"], electrode_pos(info), strict=True))


def assert_same(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# --- cache ----------------------------------------------------------------------------------


@pytest.fixture
def cache(head, tmp_path, monkeypatch):
    """An empty cache folder, and the head in place of building one; counts the builds."""
    builds = []
    monkeypatch.setenv("BAYES_ESI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(template_files, "build_template_head", lambda: builds.append(1) or head)
    return tmp_path / "cache" / "template_head.npz", builds


def read_head():
    """`template_head` without its memory."""
    return template_head.__wrapped__()


@pytest.mark.slow
def test_building_needs_no_network_and_the_cache_changes_nothing(head, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert_same(build_template_head(), head)


def test_cache_round_trip(head, cache):
    path, builds = cache
    assert read_head() is head and builds == [1]
    again = read_head()
    assert builds == [1] and again is not head
    assert_same(again, head)
    assert not again.skin_pos.flags.writeable
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"not an archive",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100_000] + bytes(1000) + raw[101_000:],
    ],
)
def test_a_damaged_cache_is_built_again(head, cache, spoil):
    path, builds = cache
    read_head()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert_same(read_head(), head)
    assert builds == [1, 1]
    assert_same(read_head(), head)
    assert builds == [1, 1]


def test_a_foreign_cache_is_built_again(head, cache, monkeypatch):
    path, builds = cache
    path.parent.mkdir()
    np.savez(path, identity=template_files._identity(), skin_pos=np.zeros((3, 3)))
    read_head()
    assert builds == [1]
    monkeypatch.setattr(template_files.importlib.metadata, "version", lambda name: "0.1")
    assert_same(read_head(), head)
    assert builds == [1, 1]


def test_a_folder_that_cannot_be_written_is_done_without(head, cache):
    path, builds = cache
    path.parent.write_text("a file where the folder should be")
    assert read_head() is head and read_head() is head
    assert builds == [1, 1]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("BAYES_ESI_CACHE", str(tmp_path / "own"))
    assert template_files._cache_path().parent == tmp_path / "own"
    monkeypatch.delenv("BAYES_ESI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert template_files._cache_path().parent == tmp_path / "bayes_esi"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert template_files._cache_path().parent == tmp_path / ".cache" / "bayes_esi"


# --- electrodes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MONTAGES)
def test_every_montage_lies_on_the_skin(head, name):
    info = info_of(head, name)
    montage = mne.channels.make_standard_montage(name)
    assert info["ch_names"] == montage.ch_names
    pos = electrode_pos(info)
    assert distance(head, pos).max() < 1e-9
    # No two electrodes fall together that did not before, such as T3 and T7.
    own = np.array(list(montage.get_positions()["ch_pos"].values()))
    apart = np.linalg.norm(own[:, None] - own, axis=2) > 5e-3
    assert np.linalg.norm(pos[:, None] - pos, axis=2)[apart].min() > 1e-3


def test_named_electrodes_go_to_their_measured_places(head):
    raw = mne.channels.make_standard_montage("fsaverage_1005").get_positions()["ch_pos"]
    for montage in ("biosemi64", "easycap-M1", "fsaverage_1010", "spherical_1005"):
        for name, pos in places(head, montage).items():
            if name in raw:
                # 7 mm at most from the measured place to the coarse skin, and to its triangles.
                assert np.linalg.norm(pos - head.from_mri(raw[name])) < 9e-3


def test_old_montages_keep_the_places_measured_on_another_head(head):
    raw = mne.channels.make_standard_montage("colin27_1020").get_positions()["ch_pos"]
    found = places(head, "standard_1020")
    assert set(found) == set(raw)
    shift = [np.linalg.norm(pos - head.from_mri(raw[name])) for name, pos in found.items()]
    assert np.median(shift) < 4e-3


def test_lists_of_names_in_any_case_and_by_old_names(head):
    found = places(head, ["Fp1", "CZ", "T3", "m1"])
    plain = places(head, ["Fp1", "Cz", "T7", "M1"])
    np.testing.assert_array_equal(list(found.values()), list(plain.values()))
    assert list(found) == ["Fp1", "CZ", "T3", "m1"]
    middle = places(head, ["Fpz", "Cz", "Oz", "T7", "T8"])
    assert np.abs([middle[name][0] for name in ("Fpz", "Cz", "Oz")]).max() < 6e-3
    assert middle["Fpz"][1] > 0.1 and middle["Oz"][1] < -0.08 and middle["Cz"][2] > 0.13
    assert middle["T7"][0] < -0.07 and middle["T8"][0] > 0.07


def test_montages_without_names_are_fitted_by_their_landmarks(head):
    """The equidistant caps against their own names: a centimetre."""
    named = places(head, "biosemi64")
    montage = mne.channels.make_standard_montage("biosemi64")
    numbered = montage.copy().rename_channels({name: f"E{name}" for name in named})
    found = places(head, numbered)
    error = [np.linalg.norm(found[f"E{name}"] - pos) for name, pos in named.items()]
    assert np.median(error) < 7e-3 and np.max(error) < 15e-3
    # A1 of a cap of 128 is its top, not an ear.
    assert places(head, "biosemi128")["A1"][2] > 0.12


def test_bad_montages(head):
    with pytest.raises(ValueError, match="got Nowhere"):
        info_of(head, ["Cz", "Nowhere"])
    with pytest.raises(ValueError, match="got none"):
        info_of(head, [])
    with pytest.raises(ValueError, match="both None"):
        info_of(head, None)
    bare = mne.channels.make_dig_montage({"E1": [0, 0, 0.1], "E2": [0, 0.1, 0]})
    with pytest.raises(ValueError, match="no nasion, LPA and RPA"):
        info_of(head, bare)
    with pytest.raises(ValueError, match="no electrodes"):
        info_of(head, mne.channels.make_dig_montage(nasion=[0, 0.1, 0]))
    with pytest.raises(ValueError, match="meg must be one of"):
        info_of(head, meg="squid")


def test_info_carries_landmarks_and_electrodes(head):
    info = info_of(head, "biosemi64", sfreq=250.0)
    assert info["sfreq"] == 250.0
    assert len(info["dig"]) == 3 + 64
    assert all(point["coord_frame"] == 4 for point in info["dig"])  # head coordinates
    by_name = {point["ident"]: point["r"] for point in info["dig"][:3]}
    np.testing.assert_allclose([by_name[i] for i in (2, 1, 3)], head.fiducials, atol=1e-7)


# --- MEG --------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", MEG_SYSTEMS)
def test_helmets_fit(head, system, tmp_path):
    info = info_of(head, None, meg=system)
    assert len(info["chs"]) == {"neuromag": 306, "ctf151": 151, "ctf275": 274}[system]
    trans = info["dev_head_t"]["trans"]
    loc = np.array([channel["loc"] for channel in info["chs"]])
    pos = loc[:, :3] @ trans[:3, :3].T + trans[:3, 3]
    assert not is_inside(pos, head.skin_pos, head.skin_faces).any()
    gap = distance(head, pos)
    np.testing.assert_allclose(gap.min(), 0.017, atol=3e-4)
    assert np.median(gap) < 0.026 and gap.max() < 0.045
    normal = loc[:, 9:] @ trans[:3, :3].T
    assert np.all(np.sum(normal * (pos - [0, 0.01, 0.04]), axis=1) > 0)
    mne.io.write_info(tmp_path / "raw-info.fif", info)
    back = mne.io.read_info(tmp_path / "raw-info.fif", verbose="ERROR")
    assert back["ch_names"] == info["ch_names"]


def test_both_kinds_of_sensors(head):
    info = info_of(head, ["Fz", "Cz", "Pz"], meg="neuromag")
    kinds = info.get_channel_types()
    assert [kinds.count(kind) for kind in ("grad", "mag", "eeg")] == [204, 102, 3]


# --- sources ----------------------------------------------------------------------------------


def test_forward_solution_of_mne(head, tmp_path):
    src = source_space_of(head)
    info = info_of(head, "biosemi16")
    # A sphere around all sources, so that none is left out.
    sphere = mne.make_sphere_model((0.0, 0.012, 0.04), 0.11, verbose="ERROR")
    forward = mne.make_forward_solution(info, None, src, sphere, mindist=0.0, verbose="ERROR")
    assert forward["nsource"] == head.n_sources
    sources = sources_of(forward)
    np.testing.assert_allclose(sources.pos, head.source_pos, atol=1e-9)
    np.testing.assert_allclose(sources.normals, head.source_normals, atol=1e-9)
    assert sources.block_kinds == ("lh", "rh") and sources.subject == "fsaverage"
    np.testing.assert_array_equal(sources.vertices, head.vertices)
    # Six neighbours, five at the 12 corners of each icosahedron.
    degree = sources.adjacency.sum(axis=1)
    assert np.array_equal(np.unique(degree, return_counts=True), [[5, 6], [24, 5100]])
    fixed = mne.convert_forward_solution(forward, force_fixed=True, verbose="ERROR")
    assert fixed["sol"]["data"].shape == (16, head.n_sources)
    src.save(tmp_path / "template-src.fif", verbose="ERROR")
    back = mne.read_source_spaces(tmp_path / "template-src.fif", verbose="ERROR")
    np.testing.assert_array_equal(back[1]["use_tris"], src[1]["use_tris"])


def test_source_estimate(head):
    src = source_space_of(head)
    data = np.zeros((head.n_sources, 2))
    vertices = [block["vertno"] for block in src]
    stc = mne.SourceEstimate(data, vertices, 0.0, 0.01, subject="fsaverage")
    assert stc.shape == (5124, 2)
    adjacency = mne.spatial_src_adjacency(src, verbose="ERROR")
    assert adjacency.shape == (5124, 5124)
