"""The average head: closed nested surfaces, cortex inside, landmarks, sensors on the skin."""

import dataclasses

import mne
import numpy as np
import pytest

from bayes_esi.forward.surfaces import (
    check_nested,
    check_surface,
    coarsen,
    crossing_faces,
    enclosed_volume,
    face_areas_and_normals,
    icosphere,
    is_inside,
    nearest_points,
    refine,
)
from bayes_esi.forward.template import build_template

NAMES = ["skin", "outer skull", "inner skull"]


def hemisphere(head, side):
    """Faces of one hemisphere, fine and coarse, by numbers of that hemisphere."""
    fine = np.split(head.cortex_faces, 2)[side] - side * (len(head.white) // 2)
    coarse = np.split(head.source_faces, 2)[side] - side * (head.n_sources // 2)
    return fine, coarse


def cortex_volume(head, pos):
    halves = np.split(pos, 2)
    return sum(enclosed_volume(halves[side], hemisphere(head, side)[0]) for side in range(2))


def test_sizes(head):
    assert head.n_sources == 5124
    assert head.skin_pos.shape == (2033, 3)
    assert head.inner_skull_pos.shape == head.outer_skull_pos.shape == (2562, 3)
    assert head.white.shape == head.pial.shape == head.inflated.shape == (20484, 3)
    assert head.source_pos.shape == head.source_normals.shape == (5124, 3)
    assert head.source_faces.shape == (10240, 3)
    assert np.array_equal(np.bincount(head.hemisphere), [2562, 2562])
    # The left hemisphere comes first and lies on the left.
    assert head.source_pos[head.hemisphere == 0, 0].mean() < -0.02
    assert head.source_pos[head.hemisphere == 1, 0].mean() > 0.02


def test_landmarks_span_head_coordinates(head):
    nasion, lpa, rpa = head.fiducials
    # The files hold float32: 4e-9 m.
    np.testing.assert_allclose(nasion[[0, 2]], 0, atol=1e-6)
    np.testing.assert_allclose([lpa[1:], rpa[1:]], 0, atol=1e-6)
    assert nasion[1] > 0.1 and lpa[0] < -0.07 and rpa[0] > 0.07
    mri = head.to_mri(head.fiducials)
    mri_head = mne.transforms.get_ras_to_neuromag_trans(*mri)
    np.testing.assert_allclose(mri_head @ head.head_mri_trans, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(head.from_mri(mri), head.fiducials, atol=1e-15)


@pytest.mark.parametrize("order", [3, 4])
def test_surfaces_are_closed_nested_and_free_of_crossings(head, order):
    vertices, faces = head.surfaces(order)
    assert [len(v) for v in vertices] == [2033, *[{3: 642, 4: 2562}[order]] * 2]
    surfaces = list(zip(vertices, faces, strict=True))
    for (pos, triangles), name in zip(surfaces, NAMES, strict=True):
        check_surface(pos, triangles, name)
        n_edges = 3 * len(triangles) // 2
        assert len(pos) - n_edges + len(triangles) == 2  # Euler: a sphere
    check_nested(surfaces, NAMES)
    # In cm3. Coarser meshes cut corners: 1 % from 2,562 to 642 vertices.
    volumes = [1e6 * enclosed_volume(*surface) for surface in surfaces]
    np.testing.assert_allclose(volumes, [5143, 2720, 2170], rtol=0.01)


@pytest.mark.parametrize("order", [3, 4])
def test_every_source_is_two_millimetres_inside_the_skull(head, order):
    vertices, faces = head.surfaces(order)
    skull = vertices[-1], faces[-1]
    assert np.all(is_inside(head.source_pos, *skull))
    assert nearest_points(head.source_pos, *skull).distance.min() > 2e-3


def test_skull_and_scalp_have_a_plausible_thickness(head):
    (skin, outer, inner), faces = head.surfaces(4)
    skull = nearest_points(outer, inner, faces[2]).distance
    scalp = nearest_points(outer, skin, faces[0]).distance
    # Below the set 4.5 mm only where the direction leans away from the normal, at the base.
    assert skull.min() > 3.5e-3 and skull.max() <= 7.5e-3
    assert 5.5e-3 < np.median(skull) < 6.5e-3
    assert scalp.min() > 1.5e-3 and 5e-3 < np.median(scalp) < 9e-3


def test_inner_skull_was_relaxed_at_the_base_only(head):
    folder = mne.__path__[0] + "/data/fsaverage/fsaverage-inner_skull-bem.fif"
    raw = mne.read_bem_surfaces(folder, verbose="ERROR")[0]
    pos, faces = coarsen(raw["rr"], raw["tris"])
    assert len(crossing_faces(pos, faces)) > 0
    moved = np.linalg.norm(head.to_mri(head.inner_skull_pos) - pos, axis=1)
    assert np.mean(moved > 1e-9) < 0.1 and moved.max() < 5e-3
    assert pos[moved > 1e-9, 2].max() < -0.02


@pytest.mark.parametrize("side", [0, 1])
def test_parent_faces_are_true_parents(head, side):
    """The four children of each face, found by their corners alone, are faces of the fine mesh."""
    fine, coarse = hemisphere(head, side)
    n_coarse = head.n_sources // 2
    pairs = np.stack([fine, np.roll(fine, -1, axis=1)], axis=2).reshape(-1, 2)
    ends = {}
    for old, new in pairs[(pairs[:, 0] < n_coarse) & (pairs[:, 1] >= n_coarse)]:
        ends.setdefault(int(new), set()).add(int(old))
    middle = {frozenset(pair): new for new, pair in ends.items()}
    assert len(middle) == 3 * len(coarse) // 2

    def turned(face):
        start = int(np.argmin(face))
        return tuple(int(v) for v in np.roll(face, -start))

    known = {turned(face) for face in fine}
    for a, b, c in coarse.tolist():
        ab, bc, ca = (middle[frozenset(pair)] for pair in ((a, b), (b, c), (c, a)))
        for child in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)):
            assert turned(child) in known


def test_normals_point_out_of_the_white_matter(head):
    np.testing.assert_allclose(np.linalg.norm(head.source_normals, axis=1), 1, atol=1e-12)
    through = (head.pial - head.white)[head.source_index]
    thick = np.linalg.norm(through, axis=1) > 1e-3
    assert np.mean(thick) > 0.9
    along = np.sum(through * head.source_normals, axis=1)[thick]
    # Normals of an average surface and the way from white to pial differ, but hardly ever by
    # a right angle.
    assert np.mean(along > 0) > 0.995


def test_areas_and_volumes_add_up(head):
    areas, _ = face_areas_and_normals(head.mid_thickness, head.cortex_faces)
    np.testing.assert_allclose(head.source_areas.sum(), areas.sum(), rtol=1e-12)
    grey = cortex_volume(head, head.pial) - cortex_volume(head, head.white)
    # Quadrilaterals between neighbouring prisms are cut along either diagonal: 0.03 %.
    np.testing.assert_allclose(head.source_volumes.sum(), grey, rtol=2e-3)
    assert head.source_areas.min() > 0 and head.source_volumes.min() >= 0


def test_refine_keeps_sources_and_halves_edges(head):
    values = head.source_pos[:, 1]
    fine = head.refine(values)
    assert fine.shape == (len(head.white),)
    np.testing.assert_array_equal(fine[head.source_index], values)
    np.testing.assert_allclose(head.refine(np.ones(head.n_sources)), 1)
    # Midpoints of a smooth coordinate: the mesh was cut on the sphere, edges are 6 mm.
    assert np.abs(fine - head.mid_thickness[:, 1]).max() < 6e-3


def test_mni_coordinates(head):
    pos = head.source_pos
    for space in ("MNI152", "MNI305"):
        back = head.from_mni(head.to_mni(pos, space=space), space=space)
        np.testing.assert_allclose(back, pos, atol=1e-15)
    np.testing.assert_allclose(head.to_mni(pos, space="MNI305"), head.to_mri(pos))
    assert head.to_mni(pos[0]).shape == (3,)
    # FreeSurfer's worked examples for its two matrices, printed with four digits: 3e-3 mm.
    mm = 1e-3 * np.array([10.0, -20.0, 35.0])
    to_152 = head.to_mni(head.from_mni(mm, space="MNI305"))
    np.testing.assert_allclose(1e3 * to_152, [10.695, -18.409, 36.137], atol=3e-3)
    to_305 = head.to_mni(head.from_mni(mm), space="MNI305")
    np.testing.assert_allclose(1e3 * to_305, [9.3131, -21.5849, 33.8345], atol=5e-3)
    with pytest.raises(ValueError, match="space must be one of"):
        head.to_mni(pos, space="Talairach")


def test_left_and_right_are_alike(head):
    extent = np.abs(head.to_mni(head.source_pos)[:, 0])
    left, right = (extent[head.hemisphere == side].max() for side in (0, 1))
    assert abs(left - right) < 3e-3


def test_electrodes_lie_inside_triangles_of_the_skin(head):
    rng = np.random.default_rng(0)
    pos = head.skin_pos[head.skin_pos[:, 2] > 0.02]
    pos = pos[rng.choice(len(pos), 60, replace=False)] * 1.05
    placed = head.place_montage(pos)
    near = nearest_points(placed, head.skin_pos, head.skin_faces)
    assert near.distance.max() < 1e-9
    assert near.barycentric.min() > 0.03 - 1e-9
    # Towards the middle of a triangle by at most a tenth of its edge, and the 5 % from before.
    assert np.linalg.norm(placed - pos, axis=1).max() < 0.05 * 0.15 + 2e-3


def test_a_montage_of_another_head_is_turned_and_stretched(head):
    """Its own size and frame cannot matter."""
    sphere, _ = icosphere(2)
    pos = 0.095 * sphere[sphere[:, 2] > 0.1]
    elevation = np.deg2rad(-25)
    marks = 0.095 * np.array([[0, 1, 0], [-1, 0, 0], [1, 0, 0]]) * np.cos(elevation)
    marks[:, 2] = 0.095 * np.sin(elevation)
    placed = head.place_montage(pos, marks)
    near = nearest_points(placed, head.skin_pos, head.skin_faces)
    assert near.distance.max() < 1e-9
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    turn = np.vstack([turn, [0, 0, 1]])[[1, 2, 0]]
    shift = np.array([0.02, -0.03, 0.1])
    again = head.place_montage(0.8 * pos @ turn.T + shift, 0.8 * marks @ turn.T + shift)
    np.testing.assert_allclose(again, placed, atol=1e-9)
    # The top of the sphere is near the top of the head, its front at the forehead.
    top = placed[np.argmax(pos[:, 2])]
    assert np.linalg.norm(top - head.skin_pos[np.argmax(head.skin_pos[:, 2])]) < 0.025
    assert placed[np.argmax(pos[:, 1]), 1] > 0.1


@pytest.mark.parametrize("distance", [0.0, 0.006, 0.025])
def test_even_sensors(head, distance):
    pos, normals = head.even_sensors(102, distance=distance)
    near = nearest_points(pos, head.skin_pos, head.skin_faces)
    assert near.distance.min() > distance * 0.999 - 1e-9
    assert near.distance.max() < 1.2 * distance + 1e-9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-12)
    assert np.all(np.sum(normals * (pos - [0, 0.01, 0.04]), axis=1) > 0)
    # About as dense everywhere: the nearest other sensor of each.
    gap = np.linalg.norm(pos[:, None] - pos, axis=2) + np.eye(102)
    assert gap.min() > 0.4 * np.median(gap.min(axis=1))
    with pytest.raises(ValueError, match="distance must be positive"):
        head.even_sensors(5, distance=-0.01)
    with pytest.raises(ValueError, match="n_sensors"):
        head.even_sensors(0)


def test_bad_montages(head):
    pos = head.skin_pos[:5]
    with pytest.raises(ValueError, match="millimetres"):
        head.place_montage(1e3 * pos)
    with pytest.raises(ValueError, match="on a line"):
        head.place_montage(pos, np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]]))
    with pytest.raises(ValueError, match="shape"):
        head.place_montage(pos[:, :2])
    with pytest.raises(ValueError, match="order must be one of 3, 4"):
        head.surfaces(5)


def test_a_helmet_stops_at_the_gap(head):
    rng = np.random.default_rng(1)
    sphere = rng.standard_normal((80, 3))
    sphere[:, 2] = np.abs(sphere[:, 2])
    coils = 0.13 * sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    trans = head.place_helmet(coils, gap=0.02)
    np.testing.assert_allclose(trans[:3, :3] @ trans[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(trans[0], [1, 0, 0, 0])
    placed = coils @ trans[:3, :3].T + trans[:3, 3]
    assert not is_inside(placed, head.skin_pos, head.skin_faces).any()
    # The skin is sampled every 3 to 4 mm: less than 0.2 mm at a distance of 20 mm.
    gap = nearest_points(placed, head.skin_pos, head.skin_faces).distance.min()
    np.testing.assert_allclose(gap, 0.02, atol=2e-4)
    with pytest.raises(ValueError, match="no coil comes down"):
        head.place_helmet(coils + [0.6, 0, 0])
    with pytest.raises(ValueError, match="gap must be positive"):
        head.place_helmet(coils, gap=0.0)


def test_arrays_are_read_only(head):
    with pytest.raises(ValueError, match="read-only"):
        head.skin_pos[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.skin_pos = None


def sphere_head(**changes):
    """A head of concentric spheres, 85 and 100 mm, with two round hemispheres."""
    fine, fine_faces = icosphere(4)
    skin, skin_faces = icosphere(3)
    small, small_faces = refine(*icosphere(1))

    def pair(radius, at=0.035):
        return [(radius * small + [x, 0, 0], small_faces) for x in (-at, at)]

    parts = {
        "skin": (0.1 * skin, skin_faces),
        "inner_skull": (0.085 * fine, fine_faces),
        "white": pair(0.03),
        "pial": pair(0.033),
        "inflated": pair(0.03),
        "sulcal_depth": [np.zeros(len(small))] * 2,
        "fiducials": np.array([[0.0, 0.1, 0.0], [-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]]),
        "trans": np.eye(4),
    }
    return parts | changes


def test_spheres_become_spheres():
    head = build_template(**sphere_head())
    np.testing.assert_allclose(np.linalg.norm(head.inner_skull_pos, axis=1), 0.085)
    # 0.48 of 15 mm; the skin is a polyhedron, up to 0.4 mm inside its sphere.
    thickness = np.linalg.norm(head.outer_skull_pos, axis=1) - 0.085
    np.testing.assert_allclose(thickness, 0.0072, atol=2e-4)
    centre = np.where(head.hemisphere[:, None] == 0, [[-0.035, 0, 0]], [[0.035, 0, 0]])
    outward = (head.source_pos - centre) / np.linalg.norm(head.source_pos - centre, axis=1)[:, None]
    np.testing.assert_allclose(np.sum(outward * head.source_normals, axis=1), 1, atol=1e-3)


def test_a_surface_that_crosses_itself_is_relaxed():
    fine, faces = icosphere(4)
    tangled = 0.085 * fine
    # A vertex dives below its neighbour and comes out beyond it.
    first, second, _ = coarsen(tangled, faces)[1][0]
    tangled[first] = 0.97 * (tangled[first] + 2.5 * (tangled[second] - tangled[first]))
    assert len(crossing_faces(*coarsen(tangled, faces)))
    head = build_template(**sphere_head(inner_skull=(tangled, faces)))
    assert len(crossing_faces(head.inner_skull_pos, head.skull_faces)) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trans": np.diag([1.0, -1.0, -1.0, 1.0])}, "trans does not agree with fiducials"),
        ({"skin": (0.08 * icosphere(3)[0], icosphere(3)[1])}, "outer skull does not lie inside"),
        ({"inner_skull": (0.067 * icosphere(4)[0], icosphere(4)[1])}, "enclose the cortex by 2 mm"),
    ],
)
def test_a_head_that_no_model_could_use_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_template(**sphere_head(**changes))
