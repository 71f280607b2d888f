"""Stiffness matrix and coil integrals: patch tests, symmetry, rotations, quadrature."""

import numpy as np
import pytest
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from bayes_esi.forward.fem_assembly import (
    conductivity_tensors,
    stiffness_matrix,
    volume_current_rows,
)
from bayes_esi.forward.mesh import Mesh
from bayes_esi.forward.mesh_voxels import hexahedra_from_volume

TENSOR = np.array([[0.5, 0.1, -0.05], [0.1, 0.3, 0.08], [-0.05, 0.08, 0.2]])
GRADIENT = np.array([1.0, -2.0, 0.5])
COIL_POS = np.array([[0.09, 0.02, 0.01], [0.0, 0.0, 0.1]])
COIL_NORMAL = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])


def tetrahedra():
    nodes = np.random.default_rng(0).uniform(-0.03, 0.03, (300, 3))
    nodes = np.vstack([nodes, 0.03 * (2 * np.indices((2, 2, 2)).reshape(3, -1).T - 1)])
    elements = Delaunay(nodes).simplices
    volumes = np.linalg.det(nodes[elements[:, 1:]] - nodes[elements[:, :1]])
    elements[volumes < 0] = elements[volumes < 0][:, [0, 2, 1, 3]]
    elements = elements[np.abs(volumes) > 1e-12]
    used, elements = np.unique(elements, return_inverse=True)
    nodes = nodes[used]
    labels = (nodes[elements.reshape(-1, 4)].mean(axis=1)[:, 0] > 0).astype(int)
    return Mesh(nodes, elements.reshape(-1, 4), labels)


def voxels():
    affine = np.array([[0.01, 0.001, 0, 0], [0, 0.012, 0.002, 0], [0, 0, 0.009, 0], [0, 0, 0, 1]])
    volume = np.ones((5, 4, 3), int)
    volume[3:] = 2
    with pytest.warns(UserWarning, match="fallback"):
        return hexahedra_from_volume(volume, affine)


@pytest.fixture(scope="module", params=[tetrahedra, voxels])
def mesh(request):
    return request.param()


def test_rows_sum_to_zero_and_the_matrix_is_symmetric(mesh):
    matrix = stiffness_matrix(mesh, conductivity_tensors(mesh, [0.3, TENSOR]))
    size = np.abs(matrix.data).max()
    assert np.abs(matrix.sum(axis=1)).max() < 1e-14 * size * 50  # rounding of a row's sum
    assert np.abs((matrix - matrix.T).data).max(initial=0) < 1e-15 * size
    values = np.linalg.eigvalsh(matrix.toarray())
    assert values[1] > 0 > -1e-12 * values[-1]


def test_a_linear_potential_is_exact(mesh):
    """Patch test: constant current has no divergence inside, and the energy g' sigma g V."""
    matrix = stiffness_matrix(mesh, conductivity_tensors(mesh, [TENSOR, TENSOR]))
    potential = mesh.nodes @ GRADIENT
    currents = matrix @ potential
    inner = np.setdiff1d(np.arange(mesh.n_nodes), mesh.boundary())
    assert inner.size
    np.testing.assert_allclose(currents[inner], 0, atol=1e-12 * np.abs(currents).max())
    energy = GRADIENT @ TENSOR @ GRADIENT * mesh.volumes().sum()
    assert potential @ currents == pytest.approx(energy, rel=1e-12)


def test_numbers_pairs_and_tensors_agree(mesh):
    expected = stiffness_matrix(mesh, conductivity_tensors(mesh, [0.3, 1.2])).toarray()
    normals = np.random.default_rng(1).standard_normal((mesh.n_elements, 3))
    for conductivity, options in [
        ([(0.3, 0.3), 1.2], {"centre": [0.5, 0, 0]}),
        ([(0.3, 0.3), (1.2, 1.2)], {"normals": normals}),
        ([0.3 * np.eye(3), 1.2 * np.eye(3)], {}),
        (np.where(mesh.labels == 0, 0.3, 1.2)[:, None, None] * np.eye(3), {}),
    ]:
        tensors = conductivity_tensors(mesh, conductivity, **options)
        matrix = stiffness_matrix(mesh, tensors).toarray()
        np.testing.assert_allclose(matrix, expected, atol=1e-13 * np.abs(expected).max())


def test_radial_and_tangential_are_eigenvalues_along_the_radius(mesh):
    centre = np.array([0.01, -0.2, 0.0])
    tensors = conductivity_tensors(mesh, [(0.01, 0.03), 1.0], centre=centre)
    skull = mesh.labels == 0
    radius = mesh.centroids()[skull] - centre
    radius /= np.linalg.norm(radius, axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.einsum("nij,nj->ni", tensors[skull], radius), 0.01 * radius, atol=1e-16
    )
    np.testing.assert_allclose(np.trace(tensors[skull], axis1=1, axis2=2), 0.07)


def test_rotating_head_and_tensors_changes_nothing(mesh):
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()
    rotated = Mesh(mesh.nodes @ rotation.T, mesh.elements, mesh.labels)
    tensors = conductivity_tensors(mesh, [TENSOR, 0.2])
    turned = rotation @ tensors @ rotation.T
    np.testing.assert_allclose(
        stiffness_matrix(rotated, turned).toarray(),
        stiffness_matrix(mesh, tensors).toarray(),
        atol=1e-13,
    )
    rows = volume_current_rows(rotated, turned, COIL_POS @ rotation.T, COIL_NORMAL @ rotation.T)
    np.testing.assert_allclose(
        rows, volume_current_rows(mesh, tensors, COIL_POS, COIL_NORMAL), atol=1e-20
    )


def test_the_field_of_volume_currents_is_their_integral(mesh):
    """Against Gauss quadrature of high order, for a constant gradient of the potential."""
    tensors = conductivity_tensors(mesh, [TENSOR, 2 * TENSOR])
    rows = volume_current_rows(mesh, tensors, COIL_POS, COIL_NORMAL)
    np.testing.assert_allclose(rows.sum(axis=0), 0, atol=1e-12 * np.abs(rows).max())
    current = -tensors @ GRADIENT
    point, mass = np.polynomial.legendre.leggauss(5)
    local = np.stack(np.meshgrid(*[(point + 1) / 2] * 3), axis=-1).reshape(-1, 3)
    weight = np.prod(np.meshgrid(*[mass / 2] * 3), axis=0).ravel()
    if not mesh.is_voxel:  # fold the cube onto the tetrahedron: x, (1 - x) y, (1 - x)(1 - y) z
        x, y, z = local.T
        weight = weight * (1 - x) ** 2 * (1 - y)
        local = np.stack([x, (1 - x) * y, (1 - x) * (1 - y) * z], axis=1)
    jacobian = mesh.jacobian()
    weight = weight * np.linalg.det(jacobian)[:, None]
    places = mesh.nodes[mesh.elements[:, 0], None] + np.einsum("nij,pj->npi", jacobian, local)
    for coil in range(2):
        offset = COIL_POS[coil] - places
        cube = np.linalg.norm(offset, axis=2) ** 3
        field = np.cross(current[:, None], offset) @ COIL_NORMAL[coil] / cube
        expected = 1e-7 * np.sum(weight * field)
        # The elements' own rule is exact to second order; they are a fifth of the distance long.
        assert rows[:, coil] @ (mesh.nodes @ GRADIENT) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("conductivity", "options", "message"),
    [
        ([0.3], {}, "each of the 2 labels"),
        (0.3, {}, "each of the 2 labels"),
        ([0.3, -1.0], {}, r"conductivity\[1\] must be positive"),
        ([0.3, (0.01, 0.0)], {"centre": [0, 0, 0]}, r"conductivity\[1\] must be positive"),
        ([0.3, np.nan], {}, "NaN"),
        ([0.3, (0.01, 0.03)], {}, "needs its radial direction"),
        ([0.3, (0.01, 0.03)], {"normals": np.ones((2, 3))}, "normals must have shape"),
        ([0.3, TENSOR + np.triu(TENSOR, 1)], {}, "must be symmetric; 1 of 1"),
        ([0.3, TENSOR - 2 * np.eye(3)], {}, "positive"),
        ([0.3, np.ones(4)], {}, "a number, a pair"),
    ],
)
def test_bad_conductivities_are_refused(conductivity, options, message):
    mesh = tetrahedra()
    with pytest.raises(ValueError, match=message):
        conductivity_tensors(mesh, conductivity, **options)


def test_bad_tensor_fields_are_counted():
    mesh = tetrahedra()
    tensors = np.tile(TENSOR, (mesh.n_elements, 1, 1))
    tensors[:3, 0, 1] *= 2
    with pytest.raises(ValueError, match=f"symmetric; 3 of {mesh.n_elements}"):
        conductivity_tensors(mesh, tensors)
