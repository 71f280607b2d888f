"""The level of the noise for sparse methods, and data divided by it."""

import jax
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference.noise_level import at_unit_noise


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    field = rng.standard_normal((8, 6, 3)).astype(np.float32)
    data = 3 * rng.standard_normal((8, 40))
    return be.Problem.from_arrays(
        data, field, rng.standard_normal((6, 3)), times=np.arange(40) / 100
    )


def test_a_given_level_divides_in_the_precision_of_the_field(problem):
    field = problem.lead_field
    unit = at_unit_noise(be.GroupSparseSources(0.3, noise_std=2.0), problem, field)
    assert unit.field.dtype == unit.rows.dtype == np.float32
    np.testing.assert_allclose(2 * unit.data, problem.data, rtol=1e-6)
    np.testing.assert_allclose(2 * unit.field, field, rtol=1e-6)
    assert list(unit.levels) == [2.0] and unit.status is Status.OK


@pytest.mark.filterwarnings("ignore:computing in float32")
def test_an_unknown_level_is_that_of_gaussian_sources(problem):
    model = be.HierarchicalSources(noise_std=None, depth=0.5)
    unit = at_unit_noise(model, problem, problem.lead_field)
    gaussian = be.GaussianSources(noise_std=None, depth=0.5)
    expected = be.infer(gaussian, problem, jax.random.key(0), progress=False, throw=False)
    assert unit.levels == pytest.approx(expected.hyper["noise_std"])
    # 320 values, of which most have nothing to do with sources.
    assert unit.levels[0] == pytest.approx(3, rel=0.2) and unit.status is expected.status
