"""Closed forms over triangles against quadrature, and source terms built from them."""

import jax
import numpy as np
import pytest

from bayes_esi.forward import source_terms as st
from bayes_esi.forward import triangle_integrals as ti
from bayes_esi.forward.source_terms import potential_terms, surface_mesh
from bayes_esi.forward.surfaces import icosphere

VERTICES, FACES = icosphere(0)
MESH = surface_mesh(VERTICES, FACES)
source_terms = jax.jit(st.source_terms)
derivative = jax.jit(jax.jacfwd(st.source_terms))
# Inside and outside, off every symmetry.
POINTS = np.array([[0.3, 0.2, -0.1], [1.3, -0.6, 0.9]])


def midpoint_rule(n=100):
    """Barycentric centres of n^2 equal parts of a triangle."""
    up = [(i + 1 / 3, j + 1 / 3) for i in range(n) for j in range(n - i)]
    down = [(i + 2 / 3, j + 2 / 3) for i in range(n - 1) for j in range(n - 1 - i)]
    a, b = np.array(up + down).T / n
    return np.stack([1 - a - b, a, b], axis=1)


def vertex_sums(point):
    """int phi_i y / R^3 dS (n_vertices, 3) by quadrature, and its parts along and across n."""
    rule, shape = midpoint_rule(), ti.triangles(VERTICES, FACES)
    field, solid, turned = (np.zeros((len(VERTICES), d)) for d in (3, 1, 3))
    for face, n, area in zip(FACES, shape.normal.T, shape.area, strict=True):
        y = rule @ VERTICES[face] - point
        kernel = y / np.linalg.norm(y, axis=1, keepdims=True) ** 3 * area / len(rule)
        field[face] += rule.T @ kernel
        solid[face] += (rule.T @ kernel @ n)[:, None]
        turned[face] += np.cross(n, rule.T @ kernel)
    return field, solid[:, 0], turned


@pytest.mark.parametrize("point", POINTS)
def test_vertex_integrals_agree_with_quadrature(point):
    field, solid, turned = vertex_sums(point)
    # The midpoint rule errs by (size / distance)^2 / n^2 / 24, about 2e-5 here.
    np.testing.assert_allclose(4 * np.pi * source_terms(point, MESH), field, atol=4e-5)
    found = potential_terms(point[:, None], MESH, np.array([-1]))
    np.testing.assert_allclose(found[0][:, 0], solid, atol=4e-5)
    np.testing.assert_allclose(found[1][..., 0], turned, atol=4e-5)


def test_solid_angles_close_and_a_point_does_not_see_its_own_face():
    mesh = surface_mesh(*icosphere(2))
    weights = np.array([0.5, 0.3, 0.2])
    on_face = weights @ np.asarray(mesh.vertices).T[np.asarray(mesh.faces)[:, 11]]
    points = np.stack([0.5 * on_face, on_face, 2 * on_face], axis=1)
    solid, _ = potential_terms(points, mesh, np.array([-1, 11, -1]))
    np.testing.assert_allclose(solid.sum(axis=0), [4 * np.pi, 2 * np.pi, 0], atol=1e-12)


def test_a_cube_face_is_a_sixth_of_the_sphere():
    corners = np.array([[1, -1, -1], [1, 1, -1], [1, 1, 1], [1, -1, 1.0]])
    angles = [
        ti.solid_angle(corners[list(c)], np.linalg.norm(corners[list(c)], axis=1))
        for c in ((0, 1, 2), (0, 2, 3))
    ]
    assert float(sum(angles)) == pytest.approx(4 * np.pi / 6, rel=1e-14)


def test_batches_of_sources_equal_single_ones_and_linear_dipoles_are_divergence_free():
    points = 0.6 * np.random.default_rng(0).uniform(-1, 1, (5, 3))
    batch = source_terms(points.T, MESH)
    for n, point in enumerate(points):
        np.testing.assert_allclose(batch[..., n], source_terms(point, MESH), atol=1e-13)
    # b is a gradient in r0 of a harmonic function: its curl and divergence vanish inside.
    gradient = derivative(points[0], MESH)
    np.testing.assert_allclose(np.trace(gradient, axis1=1, axis2=2), 0, atol=1e-12)
    np.testing.assert_allclose(gradient, np.swapaxes(gradient, 1, 2), atol=1e-12)


def test_source_terms_differentiate_far_and_near():
    step = 1e-5
    for point in (np.array([0.1, -0.2, 0.3]), 0.9 * VERTICES[3] + 0.02):
        forward = derivative(point, MESH)
        moved = point + step * np.concatenate([np.eye(3), -np.eye(3)])
        values = source_terms(moved.T, MESH)
        difference = (values[..., :3] - values[..., 3:]) / (2 * step)
        # Truncation: step^2 times third derivatives, some hundred close to the surface.
        np.testing.assert_allclose(forward, difference, atol=1e-6 * np.abs(forward).max())
