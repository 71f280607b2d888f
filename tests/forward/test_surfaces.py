"""Surfaces: closedness, orientation, crossings, inside, projection, refinement."""

import numpy as np
import pytest

from bayes_esi.forward import surfaces

SPHERE = surfaces.icosphere(2)
HEAD = (0.08 * SPHERE[0], SPHERE[1])


def random_directions(n, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def as_sets(faces):
    return {tuple(np.roll(face, -np.argmin(face))) for face in faces}


@pytest.mark.parametrize("order", [0, 1, 3])
def test_icospheres_are_closed_spheres(order):
    vertices, faces = surfaces.icosphere(order)
    assert vertices.shape == (10 * 4**order + 2, 3) and faces.shape == (20 * 4**order, 3)
    surfaces.check_surface(vertices, faces)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(surfaces.vertex_normals(vertices, faces), vertices, atol=0.02)


def test_volume_and_area_of_a_tetrahedron():
    # Corner of a cube of side 0.1 m: volume 1e-3 / 6, area 3/2 + sqrt(3)/2 sides squared.
    vertices = 0.1 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    surfaces.check_surface(vertices, faces)
    areas, normals = surfaces.face_areas_and_normals(vertices, faces)
    assert surfaces.enclosed_volume(vertices, faces) == pytest.approx(1e-3 / 6, rel=1e-14)
    assert areas.sum() == pytest.approx(0.01 * (1.5 + np.sqrt(3) / 2), rel=1e-14)
    np.testing.assert_allclose(areas @ normals, 0, atol=1e-16)


def test_refining_nests_and_coarsening_undoes_it_in_any_order():
    coarse, fine = surfaces.icosphere(2), surfaces.icosphere(3)
    np.testing.assert_array_equal(fine[0][: len(coarse[0])], coarse[0])
    rng = np.random.default_rng(1)
    shuffled = np.stack([np.roll(face, rng.integers(3)) for face in rng.permutation(fine[1])])
    vertices, faces = surfaces.coarsen(fine[0], shuffled)
    np.testing.assert_array_equal(vertices, coarse[0])
    assert as_sets(faces) == as_sets(coarse[1])
    # The children of face f are 4 f to 4 f + 3: their centres surround the parent's.
    children = fine[0][fine[1]].reshape(-1, 4, 3, 3).mean(axis=(1, 2))
    parents = coarse[0][coarse[1]].mean(axis=1)
    assert np.linalg.norm(children - parents, axis=1).max() < 0.05


def test_coarsening_refuses_another_mesh():
    vertices, faces = surfaces.icosphere(1)
    with pytest.raises(ValueError, match="cut into four"):
        surfaces.coarsen(vertices, np.random.default_rng(0).permutation(len(vertices))[faces])


def test_winding_number_tells_inside_from_outside():
    # Between the sphere through the vertices and the one that touches the faces nothing is tested.
    inside, outside = 0.95 * random_directions(200), 1.001 * random_directions(100)
    np.testing.assert_allclose(surfaces.winding_number(inside, *SPHERE), 1, atol=1e-12)
    np.testing.assert_allclose(surfaces.winding_number(outside, *SPHERE), 0, atol=1e-12)
    centres = SPHERE[0][SPHERE[1]].mean(axis=1)
    assert surfaces.is_inside(0.999 * centres, *SPHERE).all()
    assert not surfaces.is_inside(1.001 * centres, *SPHERE).any()


def test_nearest_points_agree_with_brute_force():
    rng = np.random.default_rng(2)
    points = random_directions(40) * rng.uniform(0.2, 1.5, (40, 1))
    found = surfaces.nearest_points(points, *SPHERE)
    # Dense samples of every face, 3 % of an edge apart: never nearer, and nearly as near.
    steps = np.linspace(0, 1, 31)
    weights = np.array([(1 - a - b, a, b) for a in steps for b in steps if a + b <= 1 + 1e-12])
    samples = np.einsum("sc,fcd->fsd", weights, SPHERE[0][SPHERE[1]]).reshape(-1, 3)
    for point, distance in zip(points, found.distance, strict=True):
        nearest = np.linalg.norm(samples - point, axis=1).min()
        assert distance <= nearest + 1e-12 and nearest < distance + 2e-3
    rebuilt = np.einsum("nc,ncd->nd", found.barycentric, SPHERE[0][SPHERE[1][found.face]])
    np.testing.assert_allclose(rebuilt, found.pos, atol=1e-15)
    assert found.barycentric.min() >= 0
    np.testing.assert_allclose(found.barycentric.sum(axis=1), 1, rtol=1e-14)


def test_points_of_the_surface_are_their_own_projections():
    weights = np.random.default_rng(3).dirichlet(np.ones(3), len(SPHERE[1]))
    points = np.einsum("fc,fcd->fd", weights, SPHERE[0][SPHERE[1]])
    found = surfaces.nearest_points(points, *SPHERE)
    np.testing.assert_allclose(found.pos, points, atol=1e-15)
    np.testing.assert_array_equal(found.face, np.arange(len(points)))
    np.testing.assert_allclose(found.barycentric, weights, atol=1e-12)


def test_a_vertex_pushed_through_the_other_side_crosses():
    assert len(surfaces.crossing_faces(*HEAD)) == 0
    folded = HEAD[0].copy()
    folded[7] *= -1.2
    crossing = surfaces.crossing_faces(folded, HEAD[1])
    touched = np.flatnonzero((HEAD[1] == 7).any(axis=1))
    assert set(touched) <= set(crossing) and len(crossing) > len(touched)
    with pytest.raises(ValueError, match="the skull crosses itself"):
        surfaces.check_nested([(folded, HEAD[1])], ["the skull"])


def test_nesting():
    def at(radius, shift=0.0):
        return radius * SPHERE[0] + [shift, 0, 0], SPHERE[1]

    names = ["skin", "skull"]
    surfaces.check_nested([at(0.09), at(0.08)], names)
    with pytest.raises(ValueError, match="from the outermost in"):
        surfaces.check_nested([at(0.08), at(0.09)], names)
    with pytest.raises(ValueError, match="skull crosses skin"):
        surfaces.check_nested([at(0.09), at(0.08, 0.03)], names)
    with pytest.raises(ValueError, match="must be nested"):
        surfaces.check_nested([at(0.09), at(0.08, 0.3)], names)


def test_bad_surfaces_are_named():
    vertices, faces = HEAD
    two = np.concatenate([vertices, vertices + 0.5]), np.concatenate([faces, faces + len(vertices)])
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    flat = vertices.copy()
    flat[faces[0, 0]] = flat[faces[0, 1:]].mean(axis=0)
    # Two tetrahedra that share a corner: every edge is fine, the corner is not.
    tetra = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    corner = 0.1 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    touching = (
        np.concatenate([corner, -corner[1:]]),
        np.concatenate([tetra, np.where(tetra == 0, 0, tetra + 3)[:, ::-1]]),
    )
    cases = {
        "looks like millimetres": (1000 * vertices, faces),
        "is inside out": (vertices, faces[:, ::-1]),
        "is open: 3 edges": (vertices, faces[1:]),
        "oriented inconsistently": (vertices, flipped),
        "degenerate": (flat, faces),
        "in 2 pieces": two,
        "touches itself at 1": touching,
        "not a manifold": (vertices, np.concatenate([faces, faces[:1]])),
        "must index the 162": (vertices, faces + 1),
        "belong to no face": (np.concatenate([vertices, vertices[:1]]), faces),
        "must be integers": (vertices, faces.astype(float)),
    }
    for message, surface in cases.items():
        with pytest.raises(ValueError, match=f"skull.*{message}"):
            surfaces.check_surface(*surface, name="skull")
