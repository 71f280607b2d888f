"""Double-layer matrices: solid angles, brute force, independence of the split in near and far."""

import numpy as np
import pytest

from bayes_esi.forward import galerkin
from bayes_esi.forward.surfaces import face_areas_and_normals, icosphere

SPHERE = icosphere(1)
N = len(SPHERE[0])
HEAD = [(radius * SPHERE[0], SPHERE[1]) for radius in (0.092, 0.086, 0.08)]


@pytest.fixture(scope="module")
def matrix():
    return galerkin.double_layer(HEAD)


def test_rows_are_the_solid_angles_of_closed_surfaces(matrix):
    sums = matrix.reshape(3 * N, 3, N).sum(axis=2).reshape(3, N, 3)
    for k, surface in enumerate(HEAD):
        turns = np.array([4 if k > m else 2 if k == m else 0 for m in range(3)])
        areas = galerkin.vertex_areas(*surface)
        wanted = np.pi * turns * areas[:, None]
        np.testing.assert_allclose(sums[k], wanted, atol=1e-12 * areas.max())


def test_what_the_rules_miss_of_the_solid_angles_is_small():
    parts = [galerkin._Parts(*surface) for surface in HEAD]
    areas = galerkin.vertex_areas(*HEAD[1])
    for inner, turns in ((parts[0], 4), (parts[1], 2), (parts[2], 0)):
        block = galerkin._far(parts[1], inner)
        block += galerkin._near_correction(parts[1], inner, 4.0, inner is parts[1])
        # On this coarse mesh nearly all pairs are near; the outer rule of degree 5 remains.
        np.testing.assert_allclose(block.sum(axis=1) / areas / np.pi, turns, atol=2e-3)


def test_mass_matrices_integrate_products_of_linear_functions():
    vertices, faces = HEAD[0]
    mass = galerkin.mass_matrix(vertices, faces)
    np.testing.assert_allclose(mass.sum(axis=1), galerkin.vertex_areas(vertices, faces), rtol=1e-13)
    # int x^2 over a triangle, exact: A / 6 (x1^2 + x2^2 + x3^2 + x1 x2 + x2 x3 + x3 x1).
    area, x = face_areas_and_normals(vertices, faces)[0], vertices[faces][:, :, 0]
    exact = np.sum(area / 12 * (np.sum(x**2, axis=1) + np.sum(x, axis=1) ** 2))
    assert vertices[:, 0] @ (mass @ vertices[:, 0]) == pytest.approx(exact, rel=1e-13)


def test_blocks_agree_with_dense_quadrature():
    # Icosahedra of 20 faces, which the chunks do not divide; 8 x 8 parts of each face.
    vertices, faces = icosphere(0)
    outer, inner = (0.1 * vertices, faces), (0.03 * vertices, faces)
    weights = np.array([(i, j) for i in range(8) for j in range(8 - i)]) + 1 / 3
    down = np.array([(i, j) for i in range(7) for j in range(7 - i)]) + 2 / 3
    a, b = np.concatenate([weights, down]).T / 8
    rule = np.stack([1 - a - b, a, b], axis=1)

    def points(surface):
        areas, normals = face_areas_and_normals(*surface)
        at = np.einsum("pc,fcd->fpd", rule, surface[0][surface[1]]).reshape(-1, 3)
        hats = np.zeros((len(at), len(surface[0])))
        rows = np.arange(len(at)).reshape(len(surface[1]), -1)
        for c in range(3):
            hats[rows, surface[1][:, c, None]] = rule[:, c]
        repeat = len(rule)
        return at, np.repeat(areas / repeat, repeat), np.repeat(normals, repeat, axis=0), hats

    (p, p_area, _, p_hats), (q, q_area, q_normal, q_hats) = points(outer), points(inner)
    between = q - p[:, None]
    kernel = np.sum(between * q_normal, axis=2) / np.linalg.norm(between, axis=2) ** 3
    exact = (p_hats * p_area[:, None]).T @ kernel @ (q_hats * q_area[:, None])
    # A near radius of 20 edges treats all pairs in closed form; both rules err by about 1e-3.
    found = galerkin.double_layer([outer, inner], near=20.0)[:12, 12:]
    np.testing.assert_allclose(found, exact, atol=3e-3 * np.abs(exact).max())


def test_the_split_hardly_matters(matrix):
    everything_near = galerkin.double_layer(HEAD, near=50.0)
    scale = galerkin.vertex_areas(*HEAD[0]).max()
    # Pairs over 4 edges apart: 3 x 3 points err by 1e-4 of their small solid angles.
    np.testing.assert_allclose(matrix, everything_near, atol=2e-4 * scale)


def test_matrices_scale_with_area_and_do_not_rotate(matrix):
    bigger = galerkin.double_layer([(2 * vertices, faces) for vertices, faces in HEAD])
    np.testing.assert_allclose(bigger, 4 * matrix, atol=1e-12 * np.abs(matrix).max())
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned = galerkin.double_layer([(v @ rotation.T + 0.01, faces) for v, faces in HEAD])
    np.testing.assert_allclose(turned, matrix, atol=1e-11 * np.abs(matrix).max())
