"""Plain arrays into a problem: units, evidence constant, and what is refused."""

import types

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import bayes_esi as be


def arrays(n_channels=6, n_sources=8, n_times=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "data": rng.standard_normal((n_channels, n_times)),
        "lead_field": rng.standard_normal((n_channels, n_sources, 3)),
        "source_pos": rng.uniform(-0.05, 0.05, (n_sources, 3)),
    }


def test_evidence_constant_restores_the_units_of_the_data():
    given = arrays()
    factor = np.random.default_rng(1).standard_normal((6, 6))
    noise_cov = 1e-26 * (factor @ factor.T + np.eye(6))
    given["data"] = given["data"] * 1e-13
    problem = be.Problem.from_arrays(**given, noise_cov=noise_cov)
    inside = multivariate_normal(np.zeros(6), np.eye(6)).logpdf(problem.data.T).sum()
    wanted = multivariate_normal(np.zeros(6), noise_cov).logpdf(given["data"].T).sum()
    assert inside + problem.log_jacobian == pytest.approx(wanted, rel=1e-9)
    # The lead field keeps its meaning: moment_unit of moment gives lead_field.
    np.testing.assert_allclose(
        problem.lead_field,
        np.einsum("rc,csd->rsd", problem.whitener, given["lead_field"]) * problem.moment_unit,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.full((6, 3), np.nan)}, "data has 18 NaN"),
        ({"data": np.full((6, 3), np.inf)}, "data has 18 NaN or infinite"),
        ({"data": np.zeros((6, 0))}, "data is empty"),
        ({"data": np.zeros((5, 3))}, "lead_field must have shape"),
        ({"data": np.zeros(6)}, "data must have shape"),
        ({"lead_field": np.ones((6, 8, 2))}, "1 or 3 orientations"),
        ({"lead_field": np.zeros((6, 8, 3))}, "lead_field is zero"),
        ({"lead_field": "x"}, "lead_field must be"),
        ({"source_pos": np.zeros((7, 3))}, "source_pos must have shape"),
        ({"source_pos": np.zeros((8, 3))}, "same position twice"),
        ({"noise_cov": np.eye(5)}, "noise_cov must have shape"),
        ({"noise_cov": -np.eye(6)}, "noise_cov is not positive"),
        ({"noise_cov": np.full((6, 6), np.nan)}, "noise_cov has 36 NaN"),
        ({"source_normals": np.zeros((8, 3))}, "source_normals"),
        ({"adjacency": np.eye(7)}, "adjacency must have shape"),
        ({"times": np.arange(4.0)}, "times must have shape"),
        ({"ch_names": ["a"]}, "ch_names must have 6"),
        ({"noise_groups": ["a"]}, "noise_groups must name"),
    ],
)
def test_bad_arrays_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        be.Problem.from_arrays(**arrays() | changes)


def test_regions():
    problem = be.Problem.from_arrays(
        **arrays(), source_block=np.repeat([0, 1], 4), block_kinds=("lh", "rh")
    )
    assert problem.mask(np.array([1, 3])).nonzero()[0].tolist() == [1, 3]
    label = types.SimpleNamespace(hemi="rh", vertices=np.array([5, 6, 70]))
    assert problem.mask(label).nonzero()[0].tolist() == [5, 6]
    with pytest.raises(ValueError, match="between 0 and 7"):
        problem.mask(np.array([8]))
    with pytest.raises(ValueError, match="mask must have shape"):
        problem.mask(np.ones(3, bool))


@pytest.mark.parametrize(
    ("shape", "kind", "dimensions"), [((3, 3, 3), "vol", 3), ((5, 5, 1), "lh", 2)]
)
def test_a_position_is_uniform_within_its_cell(shape, kind, dimensions):
    step = 0.007
    pos = step * np.stack(np.meshgrid(*map(np.arange, shape)), axis=-1).reshape(-1, 3)
    problem = be.Problem.from_arrays(
        np.ones((4, 2)), np.ones((4, len(pos), 3)), pos + 0.01, block_kinds=(kind,)
    )
    middle = problem.cell_variance[len(pos) // 2]
    # The mean square distance from the centre of a cube, or of a square: h^2 / 12 an axis.
    assert 3 * middle == pytest.approx(dimensions * step**2 / 12)
