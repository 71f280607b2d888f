"""Beamformers and CLARA as a user asks for them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import bayes_esi as be

M, STEP = 30, 0.012


@pytest.fixture(scope="module")
def problem():
    """One source in noise, on a grid in an unbounded medium of electrodes around it."""
    rng = np.random.default_rng(0)
    axis = np.arange(-3, 4) * STEP
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[np.linalg.norm(grid, axis=1) < 0.037]
    electrodes = rng.standard_normal((M, 3))
    electrodes *= 0.09 / np.linalg.norm(electrodes, axis=1, keepdims=True)
    offset = electrodes[:, None] - grid[None]
    distance = np.linalg.norm(offset, axis=2, keepdims=True)
    lead_field = offset / (4 * np.pi * 0.3 * distance**3)
    source = int(np.argmin(np.linalg.norm(grid - [0.02, 0.01, 0.02], axis=1)))
    course = np.sin(np.arange(200) / 7)
    signal = np.outer(lead_field[:, source] @ [0.6, 0.0, 0.8], 40e-9 * course)
    data = signal + 1e-6 * rng.standard_normal((M, 200))
    normals = np.tile([0.6, 0.0, 0.8], (len(grid), 1))
    cov = 1e-12 * np.eye(M)
    found = be.Problem.from_arrays(data, lead_field, grid, cov, source_normals=normals)
    return found, source, course


def test_a_beamformer_finds_one_source(problem):
    problem, source, course = problem
    found = be.lcmv(problem, is_max_power=True)
    assert found.peak == source and found.unit == "" and found.values.shape[1] == 1
    assert abs(np.corrcoef(found.values[source, 0], course)[0, 1]) > 0.9
    moment = be.lcmv(problem, normalisation="unit_gain", loose=0)
    assert moment.unit == "A·m"
    # Unit gain, less what the noise of the same samples takes from the covariance.
    assert moment.values[source, 0] @ course / (course @ course) == pytest.approx(40e-9, rel=0.15)
    own = np.cov(np.linalg.pinv(problem.whitener) @ problem.data, bias=True)
    same = be.lcmv(problem, own, is_max_power=True)
    assert np.corrcoef(same.power, found.power)[0, 1] > 0.999


def test_clara_contracts_loreta(problem):
    problem, source, _ = problem
    found = be.clara(problem, n_steps=4, cut=0.1)
    pos = problem.source_pos
    assert np.linalg.norm(pos[found.peak] - pos[source]) < 1.5 * STEP
    support = np.count_nonzero(found.details.weights, axis=1)
    assert np.all(np.diff(support) <= 0) and support[-1] < support[0]
    assert found.values.shape == (problem.n_sources, 3, 200)


def test_maps_go_to_mne_and_are_drawn(problem):
    problem, _, _ = problem
    found = be.clara(problem)
    assert found.to_mne().data.shape == (problem.n_sources, 3, 200)
    assert found.to_mne("power").data.shape == (problem.n_sources, 1)
    assert len(found.plot()) == 3 and "CLARA" in repr(found)
    plt.close("all")


def test_bad_input(problem):
    problem, _, _ = problem
    with pytest.raises(ValueError, match="loose must be 0 or 1"):
        be.lcmv(problem, loose=0.2)
    with pytest.raises(ValueError, match="data_cov must have shape"):
        be.lcmv(problem, np.eye(3))
    with pytest.raises(ValueError, match="lambda2 must be positive"):
        be.clara(problem, 0)
    with pytest.raises(ValueError, match="'unit_gain'"):
        be.lcmv(problem, normalisation="nai")
    with pytest.raises(ValueError, match="'power'"):
        be.clara(problem).to_mne("mean")
