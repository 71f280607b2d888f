"""Coupled sources as the user writes them: shapes, stability, covariances, neighbour dynamics."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from bayes_esi.models import coupled
from bayes_esi.models.coupled import (
    CoupledSources,
    coupled_system,
    neighbour_dynamics,
    spectral_radius,
)
from bayes_esi.models.problem import Problem
from bayes_esi.models.sparse_cov import sparse_factor


def make_problem(n_orient=3, shape=(3, 3, 3)):
    rng = np.random.default_rng(0)
    pos = 0.01 * np.argwhere(np.ones(shape)) * [1.0, 1.1, 0.9]
    lead_field = 1e-6 * rng.normal(size=(6, len(pos), n_orient))
    normals = np.tile([0, 0, 1.0], (len(pos), 1)) if n_orient == 1 else None
    return Problem.from_arrays(rng.normal(size=(6, 5)), lead_field, pos, source_normals=normals)


def test_one_row_a_source_acts_on_each_orientation_alike():
    problem = make_problem()
    n = problem.n_sources
    F = neighbour_dynamics(problem, 0.5, 0.4)
    q = np.linspace(1, 2, n) * 1e-18
    system = coupled_system(CoupledSources(F, q, noise_std=1.5), problem)
    assert system.noise_var == 2.25
    np.testing.assert_allclose(system.transition.toarray(), np.kron(F.toarray(), np.eye(3)))
    np.testing.assert_allclose(system.process_cov, np.repeat(q, 3) / problem.moment_unit**2)
    # States run over sources and, fastest, orientations.
    np.testing.assert_array_equal(system.lead_field[:, 4], problem.lead_field[:, 1, 1])
    full = sparse.csr_array(sparse.kron(F, sparse.eye_array(3)))
    root = sparse.diags_array([1e-9, 2e-10], offsets=[0, 1], shape=(n, n))
    cov = root @ root.T
    for transition in (F, full):
        for process in (cov, cov.toarray(), sparse.kron(cov, sparse.eye_array(3))):
            found = coupled_system(CoupledSources(transition, process), problem)
            np.testing.assert_array_equal(found.transition.toarray(), full.toarray())
            wanted = np.kron(cov.toarray(), np.eye(3)) / problem.moment_unit**2
            np.testing.assert_allclose(found.process_cov.toarray(), wanted)
    scalar = coupled_system(CoupledSources(full, 4e-18), problem)
    np.testing.assert_allclose(scalar.process_cov, 4e-18 / problem.moment_unit**2)


def test_neighbour_dynamics_of_lamus_and_of_galka():
    problem = make_problem()
    phi, a = 0.95, 0.51
    F = neighbour_dynamics(problem, phi * a, phi * (1 - a)).toarray()
    np.testing.assert_allclose(F.sum(axis=1), phi)
    np.testing.assert_allclose(np.diag(F), phi * a)
    for j in range(problem.n_sources):
        near = problem.neighbours[j][problem.neighbours[j] >= 0]
        inverse = 1 / np.linalg.norm(problem.source_pos[near] - problem.source_pos[j], axis=1)
        np.testing.assert_allclose(F[j, near], phi * (1 - a) * inverse / inverse.sum())
        assert np.count_nonzero(F[j]) == len(near) + 1
    F = neighbour_dynamics(problem, 0.6, 0.3, weights="equal", n_neighbours=6).toarray()
    degree = np.sum(problem.neighbours >= 0, axis=1)
    np.testing.assert_allclose(F.sum(axis=1), 0.6 + 0.05 * degree)
    assert degree.min() < 6  # the rim loses activity
    F = neighbour_dynamics(problem, 0.6, 0.3, weights="equal").toarray()
    np.testing.assert_allclose(F.sum(axis=1), 0.9)


def test_a_source_without_neighbours_keeps_to_itself():
    alone = dataclasses.replace(make_problem(), neighbours=np.full((27, 1), -1))
    np.testing.assert_array_equal(neighbour_dynamics(alone, 0.5, 0.4).toarray(), 0.5 * np.eye(27))


@pytest.mark.parametrize("size", [30, 900])
def test_spectral_radius_of_matrices_that_no_norm_settles(size):
    """Similar to a diagonal matrix, and a cycle, whose eigenvalues all have one modulus."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-0.9, 0.9, size)
    values[0] = -0.97
    pairs = sparse.kron(sparse.eye_array(size // 2), [[1, 5.0], [0, 1]])
    back = sparse.kron(sparse.eye_array(size // 2), [[1, -5.0], [0, 1]])
    F = sparse.csr_array(pairs @ sparse.diags_array(values) @ back)
    assert abs(spectral_radius(F) - 0.97) < 1e-6
    cycle = sparse.coo_array((np.ones(size), (np.arange(size), np.roll(np.arange(size), 1))))
    scale = np.exp(rng.normal(size=size))
    cycle = sparse.diags_array(scale) @ (0.98 * cycle) @ sparse.diags_array(1 / scale)
    # A power iteration forgets its start like one over the number of steps.
    assert abs(spectral_radius(sparse.csr_array(cycle)) - 0.98) < 1e-3
    growth = coupled._mean_growth(sparse.csr_array(cycle), rng.normal(size=size))
    assert abs(growth - 0.98) < 1e-3


def test_factor_of_a_sparse_covariance():
    rng = np.random.default_rng(0)
    root = sparse.random_array((40, 40), density=0.1, rng=rng)
    for cov in (root @ root.T, 1e-18 * (root @ root.T + sparse.eye_array(40))):
        factor = sparse_factor("cov", cov)
        gap = np.abs((factor @ factor.T - cov).toarray()).max()
        assert gap < 2e-10 * np.abs(cov.toarray()).max()  # the shift of 1e-10


def test_what_is_refused():
    F = 0.5 * np.eye(4)
    for arguments, message in (
        ((np.eye(4), 1.0), "spectral radius below 1, got 1"),
        ((1.2 * np.eye(4)[[1, 0, 2, 3]], 1.0), "spectral radius below 1, got 1.2"),
        ((np.ones((3, 4)), 1.0), r"transition must be square, got shape \(3, 4\)"),
        ((np.ones(4), 1.0), "transition must have shape"),
        ((np.full((2, 2), np.nan), 1.0), "transition has 4 NaN"),
        ((F, 0.0), "process_cov must be positive"),
        ((F, -np.ones(4)), "process_cov has variances below zero"),
        ((F, np.zeros(4)), "process_cov has variances below zero or all zero"),
        ((F, np.ones(5)), r"process_cov of shape \(5,\) does not go with .* \(4, 4\)"),
        ((F, np.ones((4, 3))), "process_cov must be square"),
        ((F, np.eye(4) + np.eye(4, k=1)), "process_cov must be symmetric"),
        ((F, np.eye(4) - 2 * np.eye(4)[::-1]), "process_cov is not positive semidefinite"),
        ((F, np.diag([1.0, 1, 1, -1e-6])), "process_cov is not positive semidefinite"),
        ((F, np.zeros((4, 4))), "process_cov is zero"),
        ((F, 1.0, 0.0), "noise_std must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            CoupledSources(*arguments)
    CoupledSources(F, np.diag([1.0, 1, 1, 0]))  # singular is fine
    problem = make_problem()
    with pytest.raises(ValueError, match=r"transition has shape \(4, 4\).* 27 sources.* 27 or 81"):
        coupled_system(CoupledSources(F, 1.0), problem)
    with pytest.raises(ValueError, match="weights must be one of"):
        neighbour_dynamics(problem, 0.5, 0.4, weights="all")
    with pytest.raises(ValueError, match="n_neighbours goes with"):
        neighbour_dynamics(problem, 0.5, 0.4, n_neighbours=6)
