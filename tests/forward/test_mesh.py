"""Meshes: volumes, conformity, location, and what is refused."""

import sys

import numpy as np
import pytest

from bayes_esi.forward.mesh import Mesh
from bayes_esi.forward.mesh_layers import align_surfaces, layered_mesh
from bayes_esi.forward.mesh_surfaces import mesh_surfaces
from bayes_esi.forward.mesh_voxels import hexahedra_from_volume
from bayes_esi.forward.surfaces import enclosed_volume, icosphere, nearest_points

RADII = (0.078, 0.080, 0.086, 0.092)
SPHERE, FACES = icosphere(2)
CUBE = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)]) * 0.01
TETRAHEDRON = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]]) * 0.01
TWO_VOXELS = np.array([[[1]], [[2]]])
AFFINE = np.diag([0.002, 0.003, 0.004, 1.0])


def lumpy_head(order=3):
    """Nested surfaces that are star-shaped and no spheres, off the origin; and their icosphere."""
    sphere, faces = icosphere(order)
    x, y, z = sphere.T
    bumps = 1 + 0.12 * z + 0.08 * x * y - 0.1 * z**2 * y
    shape = sphere * bumps[:, None] * [0.95, 1.1, 1.0]
    surfaces = [0.01 + shape * r for r in (0.070, 0.076, 0.084)]
    return surfaces, faces, sphere


@pytest.fixture(scope="module")
def ball():
    return layered_mesh([r * SPHERE for r in RADII], FACES)


@pytest.fixture
def voxels():
    with pytest.warns(UserWarning, match="voxels of 3.0 mm are a fallback"):
        return hexahedra_from_volume(TWO_VOXELS, AFFINE)


def sorted_rows(faces):
    return np.unique(np.sort(faces, axis=1), axis=0)


def check_layers(mesh, surfaces, faces):
    enclosed = [enclosed_volume(s, faces) for s in surfaces]
    filled = np.bincount(mesh.labels, mesh.volumes())
    # The elements fill the polyhedra exactly, up to rounding.
    np.testing.assert_allclose(np.cumsum(filled), enclosed, rtol=1e-9)
    # A face inside that only one element has would be a gap: only the skin has such faces.
    triangles = mesh.boundary()
    assert len(triangles) == len(faces)
    np.testing.assert_allclose(enclosed_volume(mesh.nodes, triangles), enclosed[-1], rtol=1e-9)
    np.testing.assert_allclose(mesh.nodes[np.unique(triangles)], surfaces[-1], atol=1e-15)


def test_layers_fill_spheres_without_gaps(ball):
    check_layers(ball, [r * SPHERE for r in RADII], FACES)
    assert ball.n_labels == 4
    assert np.median(ball.quality()[ball.labels == 0]) > 0.7


def test_layers_fill_a_lumpy_head_in_any_order_of_surfaces():
    surfaces, faces, sphere = lumpy_head()
    mesh = layered_mesh(surfaces[::-1], faces, reference=sphere, n_layers=[1, 2])
    check_layers(mesh, surfaces, faces)
    assert np.percentile(mesh.quality(), 1) > 0.1
    # Two layers in the outer shell: three tetrahedra for each face and layer.
    assert np.count_nonzero(mesh.labels == 2) == 6 * len(faces)


def test_aligned_points_lie_on_the_surfaces_and_on_common_rays():
    (inner, _, outer), faces, _ = lumpy_head(3)
    fine, fine_faces = icosphere(4)
    vertices, triangles = [inner, 0.2 * fine + 0.01, outer], [faces, fine_faces, faces]
    surfaces, rays, centre = align_surfaces(vertices, triangles, order=2)
    directions, expected_faces = icosphere(2)
    np.testing.assert_array_equal(rays, expected_faces)
    for surface, v, f in zip(surfaces, vertices, triangles, strict=True):
        assert nearest_points(surface, v, f).distance.max() < 1e-12
        offset = surface - centre
        along = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        np.testing.assert_allclose(along, directions, atol=1e-12)
    mesh = layered_mesh(surfaces, rays, centre=centre, n_layers=[2, 2])
    check_layers(mesh, [surfaces[0], surfaces[2], surfaces[1]], rays)


def test_a_surface_that_hides_from_the_centre_is_refused():
    with pytest.raises(ValueError, match="surface 1 is not star-shaped: .* hidden from"):
        align_surfaces([0.12 * SPHERE, 0.08 * SPHERE], [FACES, FACES], centre=[0.09, 0, 0])


def test_a_real_head_needs_no_mesher(data_dir):
    """Its surfaces are no icospheres, its vertices not aligned; volumes agree to the sampling."""
    import mne

    file = data_dir / "sample" / "sample-1280-1280-1280-bem.fif"
    surfaces = mne.read_bem_surfaces(file, verbose="ERROR")
    vertices, faces = zip(*((s["rr"], s["tris"]) for s in surfaces), strict=True)
    aligned, rays, centre = align_surfaces(vertices, faces, order=3)
    mesh = layered_mesh(aligned, rays, centre=centre)
    filled = np.cumsum(np.bincount(mesh.labels, mesh.volumes()))
    enclosed = sorted(enclosed_volume(v, f) for v, f in zip(vertices, faces, strict=True))
    # 642 rays between 642 vertices cut corners.
    np.testing.assert_allclose(filled, enclosed, rtol=0.02)
    assert np.percentile(mesh.quality(), 1) > 0.05


def test_interfaces_are_the_surfaces(ball):
    across = ball.neighbours()
    element, face = np.nonzero(across >= 0)
    np.testing.assert_array_equal(
        np.sort(across[across[element, face]] == element[:, None], axis=1)[:, -1], True
    )
    for label in range(3):
        low = ball.labels[element] == label
        high = ball.labels[across[element, face]] == label + 1
        assert np.count_nonzero(low & high) == len(FACES)


def test_points_are_found_where_they_are(ball):
    rng = np.random.default_rng(0)
    inside = ball.nodes.min(0) + np.ptp(ball.nodes, axis=0) * rng.uniform(0.25, 0.75, (200, 3))
    element, local = ball.locate(inside)
    assert np.all(element >= 0)
    origin = ball.nodes[ball.elements[element, 0]]
    again = origin + np.einsum("nij,nj->ni", ball.jacobian()[element], local)
    np.testing.assert_allclose(again, inside, atol=1e-14)
    assert local.min() > -1e-9
    assert local.sum(axis=1).max() < 1 + 1e-9
    np.testing.assert_array_equal(ball.locate([[0.095, 0, 0], [0, 0, -1]])[0], -1)
    middles = ball.centroids()
    np.testing.assert_array_equal(ball.locate(middles)[0], np.arange(ball.n_elements))


def test_quality_is_one_for_the_regular_and_small_for_the_flat():
    labels = np.zeros(1, int)
    assert Mesh(TETRAHEDRON, [[0, 1, 2, 3]], labels).quality() == pytest.approx([1], abs=1e-14)
    flat = TETRAHEDRON * [1, 1, 1e-3]
    assert Mesh(flat, [[0, 1, 2, 3]], labels).quality()[0] < 3e-3


def test_voxels_keep_their_place_and_volume(voxels):
    assert voxels.is_voxel
    np.testing.assert_allclose(voxels.volumes(), 24e-9, rtol=1e-12)
    np.testing.assert_allclose(voxels.centroids(), [[0, 0, 0], [0.002, 0, 0]], atol=1e-15)
    np.testing.assert_array_equal(voxels.labels, [0, 1])
    np.testing.assert_array_equal(voxels.quality(), [0.5, 0.5])
    assert enclosed_volume(voxels.nodes, voxels.boundary()) == pytest.approx(48e-9)
    element, local = voxels.locate([[0.0025, 0.0005, -0.001]])
    assert element == [1]
    np.testing.assert_allclose(local, [[0.75, 0.5 + 1 / 6, 0.25]])


def test_left_handed_images_give_the_same_voxels():
    mirror = np.diag([-0.002, 0.003, 0.004, 1.0])
    with pytest.warns(UserWarning, match="fallback"):
        mesh = hexahedra_from_volume(TWO_VOXELS, mirror)
    np.testing.assert_allclose(mesh.centroids(), [[0, 0, 0], [-0.002, 0, 0]], atol=1e-15)


def test_islands_of_a_volume_are_left_out():
    volume = np.zeros((5, 2, 2), int)
    volume[:2], volume[4] = 1, 3
    with pytest.warns(UserWarning, match="fallback"):
        mesh = hexahedra_from_volume(volume, AFFINE)
    assert mesh.n_elements == 8
    assert mesh.n_labels == 1


@pytest.mark.parametrize(
    ("nodes", "elements", "labels", "message"),
    [
        (TETRAHEDRON * 1e4, [[0, 1, 2, 3]], [0], "looks like millimetres"),
        (TETRAHEDRON, [[0, 2, 1, 3]], [0], "1 of 1 are flat or inside out"),
        (TETRAHEDRON, [[0, 2, 1, 4]], [0], "must index the 4 nodes"),
        (TETRAHEDRON, [[0, 2, 1]], [0], "must have shape"),
        (TETRAHEDRON, [[0, 1, 2, 3]], [-1], "non-negative integers"),
        (TETRAHEDRON, [[0, 1, 2, 3]], [0, 0], r"shape \(1,\)"),
        (TETRAHEDRON, [[0.0, 2, 1, 3]], [0], "integer array"),
        (np.vstack([TETRAHEDRON, [[0, 0, 0]]]), [[0, 1, 2, 3]], [0], "2 pieces"),
        (CUBE + 1e-3 * (CUBE[:, :1] * CUBE[:, 1:2] > 0), [range(8)], [0], "parallelepipeds"),
    ],
)
def test_bad_meshes_are_refused(nodes, elements, labels, message):
    with pytest.raises(ValueError, match=message):
        Mesh(nodes, np.array(elements), np.array(labels))


@pytest.mark.parametrize(
    ("scales", "faces", "options", "message"),
    [
        ([0.08, 0.09], FACES[:, ::-1], {}, "ordered outward"),
        ([80, 90], FACES, {}, "looks like millimetres"),
        ([0.08, 0.09], FACES, {"n_layers": [1, 1]}, "each of the 1 shells"),
        ([0.08, 0.09], FACES, {"n_layers": [0]}, "at least 1"),
        ([0.08, 0.09], FACES, {"spacing": -1.0}, "spacing must be positive"),
        ([0.08, 0.09], FACES, {"reference": SPHERE[::-1]}, "not the convex hull"),
        ([], FACES, {}, "one or more vertex arrays"),
    ],
)
def test_bad_layers_are_refused(scales, faces, options, message):
    with pytest.raises(ValueError, match=message):
        layered_mesh([s * SPHERE for s in scales], faces, **options)


def test_crossing_surfaces_are_refused():
    with pytest.raises(ValueError, match="elements of compartment 1 are inside out"):
        layered_mesh([0.08 * SPHERE, 0.081 * SPHERE + [0.005, 0, 0]], FACES)


@pytest.mark.parametrize(
    ("volume", "affine", "message"),
    [
        (TWO_VOXELS * 1.0, AFFINE, "integer labels"),
        (0 * TWO_VOXELS, AFFINE, "no tissue"),
        (TWO_VOXELS, np.diag([2.0, 2, 2, 1]), "look like mm"),
        (TWO_VOXELS, np.diag([0.002, 0, 0.002, 1]), "singular"),
    ],
)
def test_bad_volumes_are_refused(volume, affine, message):
    with pytest.raises(ValueError, match=message):
        hexahedra_from_volume(volume, affine)


def test_a_missing_mesher_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gmsh", None)
    with pytest.raises(ImportError, match="pip install gmsh"):
        mesh_surfaces([0.08 * SPHERE], [FACES])


@pytest.mark.oracle
def test_gmsh_fills_surfaces_with_faces_of_their_own():
    pytest.importorskip("gmsh")
    fine, fine_faces = icosphere(3)
    surfaces, faces = [0.09 * SPHERE, 0.08 * fine], [FACES, fine_faces]
    mesh = mesh_surfaces(surfaces, faces)
    filled = np.cumsum(np.bincount(mesh.labels, mesh.volumes()))
    enclosed = [enclosed_volume(0.08 * fine, fine_faces), enclosed_volume(0.09 * SPHERE, FACES)]
    np.testing.assert_allclose(filled, enclosed, rtol=1e-9)
    assert len(mesh.boundary()) == len(FACES)
