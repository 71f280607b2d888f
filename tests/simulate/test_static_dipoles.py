"""Problems drawn from the prior follow the prior, in the right units."""

import itertools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from bayes_esi.models.problem import Problem
from bayes_esi.models.static_dipoles import StaticDipoles
from bayes_esi.simulate.static_dipoles import draw_problem, random_geometry

jax.config.update("jax_enable_x64", True)

KNOWN = {"moment_std": 3e-9, "noise_std": 1.5}
# All comparisons of averages below allow for this many standard errors.
N_STD = 4.5


@pytest.fixture(scope="module")
def geometry():
    return random_geometry(jax.random.key(1), 12, 6, 4)


def draw_many(model, template, n):
    return [draw_problem(jax.random.key(i), model, template) for i in range(n)]


def test_number_is_truncated_poisson(geometry):
    model = StaticDipoles(n_dipoles=1.3, max_dipoles=3, **KNOWN)
    numbers = [len(truth.places) for _, truth in draw_many(model, geometry, 2000)]
    expected = np.array([1, 1.3, 1.3**2 / 2, 1.3**3 / 6])
    expected /= expected.sum()
    found = np.bincount(numbers, minlength=4) / 2000
    np.testing.assert_allclose(found, expected, atol=N_STD * np.sqrt(0.25 / 2000))


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2, 0, 4, 8])])
def test_sets_of_places_have_the_law_of_distinct_draws(weights):
    template = random_geometry(jax.random.key(2), 5, 4, 2)
    model = StaticDipoles(n_dipoles=5.0, max_dipoles=2, location_prior=weights, **KNOWN)
    n = 4000
    sets = [tuple(truth.places) for _, truth in draw_many(model, template, n)]
    pairs = [places for places in sets if len(places) == 2]
    p = np.ones(5) if weights is None else weights
    law = {pair: p[pair[0]] * p[pair[1]] for pair in itertools.combinations(range(5), 2)}
    total = sum(law.values())
    for pair, weight in law.items():
        share, expected = pairs.count(pair) / len(pairs), weight / total
        assert abs(share - expected) <= N_STD * np.sqrt(expected * (1 - expected) / len(pairs))


def test_no_more_dipoles_than_places_allow():
    template = random_geometry(jax.random.key(2), 5, 4, 2)
    weights = np.array([0.0, 1, 0, 2, 0])
    model = StaticDipoles(n_dipoles=20.0, max_dipoles=4, location_prior=weights, **KNOWN)
    for _, truth in draw_many(model, template, 50):
        assert len(truth.places) <= 2
        assert np.all(weights[truth.places] > 0)


def test_scales_follow_their_distributions(geometry):
    model = StaticDipoles(
        moment_std=dist.LogNormal(np.log(2e-9), 0.5), noise_std=dist.LogNormal(0.3, 0.2)
    )
    truths = [truth for _, truth in draw_many(model, geometry, 800)]
    moment = (np.log([truth.moment_std for truth in truths]) - np.log(2e-9)) / 0.5
    noise = (np.log([truth.noise_std[0] for truth in truths]) - 0.3) / 0.2
    for score in (moment, noise):
        assert abs(score.mean()) < N_STD / np.sqrt(800)
        assert abs(score.var() - 1) < N_STD * np.sqrt(2 / 800)
    assert abs(np.corrcoef(moment, noise)[0, 1]) < N_STD / np.sqrt(800)


@pytest.mark.parametrize("n_orient", [1, 3])
def test_data_are_field_of_the_moments_plus_noise_of_each_group(n_orient):
    groups = ("meg",) * 4 + ("eeg",) * 2
    template = random_geometry(jax.random.key(3), 10, 6, 5, n_orient=n_orient, noise_groups=groups)
    model = StaticDipoles(
        n_dipoles=2.0, max_dipoles=3, moment_std=5e-9, noise_std=dist.LogNormal(0.0, 0.8)
    )
    scores, moments = [], []
    for problem, truth in draw_many(model, template, 300):
        field = template.lead_field[:, truth.places] / template.moment_unit
        residual = problem.data - np.einsum("rnx,nxt->rt", field, truth.moments)
        scores.append(residual / truth.noise_std[template.noise_group][:, None])
        moments.append(truth.moments.ravel() / truth.moment_std)
        assert truth.noise_std.shape == (2,)
        assert truth.moments.shape == (len(truth.places), n_orient, 5)
    scores = np.array(scores)
    power = np.mean(scores**2, axis=(0, 2))
    np.testing.assert_allclose(power, 1, atol=N_STD * np.sqrt(2 / 1500))
    moments = np.concatenate(moments)
    assert abs(np.mean(moments**2) - 1) < N_STD * np.sqrt(2 / moments.size)


def test_moments_keep_to_the_orientation_law():
    rng = np.random.default_rng(0)
    pos, normals = rng.uniform(-0.05, 0.05, (9, 3)), rng.standard_normal((9, 3))
    template = Problem.from_arrays(
        np.zeros((6, 3)), rng.standard_normal((6, 9, 3)), pos, source_normals=normals
    )
    model = StaticDipoles(n_dipoles=3.0, loose=0.0, **KNOWN)
    _, truth = draw_problem(jax.random.key(1), model, template)
    assert len(truth.places)
    crossed = np.cross(truth.moments, template.source_normals[truth.places][:, :, None], axis=1)
    np.testing.assert_allclose(crossed, 0, atol=1e-20)


def test_only_the_data_change_and_the_key_decides(geometry):
    model = StaticDipoles(**KNOWN)
    problem, truth = draw_problem(jax.random.key(5), model, geometry)
    again, same = draw_problem(jax.random.key(5), model, geometry)
    other, _ = draw_problem(jax.random.key(6), model, geometry)
    np.testing.assert_array_equal(problem.data, again.data)
    np.testing.assert_array_equal(truth.places, same.places)
    assert not np.array_equal(problem.data, other.data)
    assert problem.lead_field is geometry.lead_field
    assert problem.data.dtype == geometry.data.dtype
    assert not np.any(geometry.data)


@pytest.mark.parametrize("name", ["moment_std", "noise_std"])
def test_refuses_a_prior_that_looks_at_the_data(geometry, name):
    with pytest.raises(ValueError, match=f"{name} must be a number or a numpyro distribution"):
        draw_problem(jax.random.key(0), StaticDipoles(**{**KNOWN, name: None}), geometry)


def test_lead_fields_of_near_places_resemble_each_other():
    problem = random_geometry(jax.random.key(7), 60, 200, 2, correlation_length=0.03)
    field = problem.lead_field.reshape(200, 60, 3)
    unit = field / np.linalg.norm(field, axis=0)
    found = np.einsum("rid,rjd->ij", unit, unit) / 3
    squared = np.sum((problem.source_pos[:, None] - problem.source_pos) ** 2, axis=2)
    # 600 products each: correlations have standard errors up to 0.04.
    np.testing.assert_allclose(found, np.exp(-squared / (2 * 0.03**2)), atol=0.2)
    assert problem.moment_unit < 1e-6


@pytest.mark.parametrize("change", [{"n_sources": 0}, {"n_times": 1.5}, {"correlation_length": 0}])
def test_geometry_refuses_nonsense(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        random_geometry(
            jax.random.key(0), **{"n_sources": 5, "n_channels": 4, "n_times": 2, **change}
        )
