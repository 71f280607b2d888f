"""Dipoles as nodal loads: their moments, their place, their derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.forward.fem_sources import build_source_mesh, locate, partial_integration, venant
from bayes_esi.forward.mesh_layers import layered_mesh
from bayes_esi.forward.mesh_voxels import hexahedra_from_volume
from bayes_esi.forward.surfaces import icosphere

RADIUS = 0.078


def ball():
    sphere, faces = icosphere(3)
    return layered_mesh([RADIUS * sphere, 0.09 * sphere], faces, n_layers=[1])


def voxels():
    grid = np.indices((20, 20, 20)) - 9.5
    distance = np.linalg.norm(grid, axis=0)
    affine = np.diag([0.009, 0.009, 0.009, 1.0])
    affine[:3, 3] = -9.5 * 0.009
    with pytest.warns(UserWarning, match="fallback"):
        return hexahedra_from_volume((distance < 10).astype(int) + (distance < 8.8), affine)


@pytest.fixture(scope="module", params=[ball, voxels], ids=["tetrahedra", "voxels"])
def prepared(request):
    mesh = request.param()
    if mesh.is_voxel:  # of labels 1 (shell) and 2 (brain), so 0 and 1 in the mesh
        return mesh, *build_source_mesh(mesh, 1)
    return mesh, *build_source_mesh(mesh, 0)


@pytest.fixture(scope="module")
def brain():
    return build_source_mesh(ball(), 0)[0]


def places(n=100, seed=0):
    rng = np.random.default_rng(seed)
    pos = rng.standard_normal((n, 3))
    pos /= np.linalg.norm(pos, axis=1, keepdims=True)
    return jnp.asarray(pos * 0.066 * np.cbrt(rng.uniform(0, 1, (n, 1))))


PLACES = places()
BATCHED = {model: jax.jit(jax.vmap(model, (None, 0))) for model in (venant, partial_integration)}


@pytest.mark.parametrize("model", [venant, partial_integration])
def test_loads_sum_to_zero_and_have_the_moment_of_the_dipole(prepared, model):
    _, source_mesh, _ = prepared
    nodes, loads = BATCHED[model](source_mesh, PLACES)
    np.testing.assert_allclose(loads.sum(axis=1), 0, atol=1e-10 * np.abs(loads).max())
    offset = source_mesh.nodes[nodes] - PLACES[:, None]
    moment = np.einsum("pkx,pky->pxy", offset, loads)
    np.testing.assert_allclose(moment, np.broadcast_to(np.eye(3), moment.shape), atol=1e-9)


def test_second_moments_of_st_venant_nearly_vanish(prepared):
    _, source_mesh, _ = prepared
    sizes = {}
    for model, batched in BATCHED.items():
        nodes, loads = batched(source_mesh, PLACES)
        offset = np.asarray(source_mesh.nodes[nodes] - PLACES[:, None])
        second = np.einsum("pkx,pky,pkz->pxyz", offset, offset, loads, optimize=True)
        sizes[model] = np.abs(second).max() / np.mean(source_mesh.edge)
    # In units of the edge; four or eight corners cannot do better than about one half.
    assert sizes[venant] < 0.02
    assert sizes[partial_integration] > 0.3


def test_monopoles_stay_in_the_source_compartment(prepared):
    mesh, source_mesh, numbers = prepared
    label = 1 if mesh.is_voxel else 0
    nodes, loads = BATCHED[venant](source_mesh, PLACES)
    used = np.unique(numbers[np.asarray(nodes)[np.any(np.asarray(loads) != 0, axis=2)]])
    brain = np.unique(mesh.elements[mesh.labels == label])
    assert np.all(np.isin(used, brain))


def test_the_walk_ends_in_the_element_that_the_tree_finds(prepared):
    mesh, source_mesh, _ = prepared
    points = np.concatenate([PLACES[:-2], [[0.0, 0.0, 0.1], [-0.3, 0.0, 0.0]]])
    depth, is_exposed = locate(source_mesh, points)
    element, _ = mesh.locate(points)
    label = 1 if mesh.is_voxel else 0
    is_brain = (element >= 0) & (mesh.labels[element] == label)
    np.testing.assert_array_equal(np.asarray(depth) >= -1e-9, is_brain)
    assert np.count_nonzero(is_brain) == len(points) - 2
    assert not np.any(is_exposed[:-2][np.linalg.norm(points[:-2], axis=1) < 0.05])


def potential_of(model, source_mesh, pos):
    """A smooth functional of the loads: the potential of monopoles at a distant point."""
    nodes, loads = model(source_mesh, pos)
    return jnp.sum(loads / jnp.linalg.norm(source_mesh.nodes[nodes] - 0.15, axis=1)[:, None], 0)


def test_st_venant_is_continuous_where_elements_meet(brain):
    path = jnp.linspace(jnp.asarray([-0.03, 0.01, 0.02]), jnp.asarray([0.03, -0.01, 0.01]), 1001)
    along = {
        model: np.asarray(jax.jit(jax.vmap(lambda p, m=model: potential_of(m, brain, p)))(path))
        for model in (venant, partial_integration)
    }
    steps = {
        m: np.abs(np.diff(v, axis=0)).max() / np.ptp(v, axis=0).max() for m, v in along.items()
    }
    # Steps of 60 micrometres: a continuous function moves by its slope, about 1 in 1,000.
    assert steps[venant] < 1e-2
    assert steps[partial_integration] > 2e-2  # jumps between elements


def test_the_derivative_is_that_of_finite_differences(brain):
    pos = jnp.asarray([0.0213, -0.0112, 0.0301])

    @jax.jit
    def both(p):
        def function(p):
            return potential_of(venant, brain, p)

        return jax.vmap(function)(p), jax.jacfwd(function)(p[0]), jax.jacrev(function)(p[0])

    step = 1e-6  # m: a tenth of a permille of an element, hardly ever across a face
    around = step * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    values, forward, reverse = both(pos + around)
    differences = (values[1:4] - values[4:]).T / (2 * step)
    np.testing.assert_allclose(forward, differences, atol=1e-6 * float(jnp.abs(forward).max()))
    np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-9)


def test_a_compartment_without_inner_nodes_is_refused(prepared):
    mesh, _, _ = prepared
    with pytest.raises(ValueError, match="without any node off its surface"):
        build_source_mesh(mesh, 0 if mesh.is_voxel else 1)
