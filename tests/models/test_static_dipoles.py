"""The prior as written: sums over all sets, densities of scales, orientation laws."""

import itertools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import kstest

import bayes_esi as be
from bayes_esi.models.orientation import orient
from bayes_esi.models.scale_prior import pin_scale, scale_prior
from bayes_esi.models.static_dipoles import dipole_prior, log_set_sums


def make_problem(n_sources=7, n_orient=3, **more):
    rng = np.random.default_rng(0)
    return be.Problem.from_arrays(
        rng.standard_normal((9, 4)),
        rng.standard_normal((9, n_sources, n_orient)),
        rng.uniform(-0.05, 0.05, (n_sources, 3)),
        source_normals=rng.standard_normal((n_sources, 3)),
        **more,
    )


@pytest.mark.parametrize("weights", [None, np.array([0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 3.0])])
def test_prior_of_sets_sums_to_a_truncated_poisson(weights):
    problem = make_problem()
    model = be.StaticDipoles(0.8, max_dipoles=6, location_prior=weights)
    prior = dipole_prior(model, problem, orient(problem, model.loose), np.float64)
    log_number, log_place = np.asarray(prior.log_number), np.asarray(prior.log_place)
    mass = np.zeros(7)
    for k in range(7):
        if np.isfinite(log_number[k]):
            sets = itertools.combinations(range(7), k)
            mass[k] = np.exp(log_number[k] + logsumexp([log_place[list(c)].sum() for c in sets]))
    n_places = 7 if weights is None else 5
    numbers = np.arange(7)
    poisson = np.where(numbers <= n_places, 0.8**numbers / np.cumprod([1, *numbers[1:]]), 0)
    np.testing.assert_allclose(mass, poisson / poisson.sum(), atol=1e-12)


def test_set_sums_are_elementary_symmetric_polynomials():
    weights = np.array([0.3, 2.0, 0.7, 1.1])
    sums = np.exp(log_set_sums(np.log(weights), 4))
    for start in range(5):
        for size in range(5):
            sets = itertools.combinations(weights[start:], size)
            assert sums[start, size] == pytest.approx(sum(np.prod(c) for c in sets))


@pytest.mark.parametrize(
    "value", [None, dist.HalfNormal(2.0), dist.LogNormal(0.1, 0.4), dist.Uniform(0.5, 2.0)]
)
@pytest.mark.parametrize("is_pinned", [False, True])
def test_scale_priors_are_densities_of_the_logarithm(value, is_pinned):
    prior = scale_prior(value, unit=0.5, default_range=(0.1, 10.0), dtype=np.float64)
    if is_pinned:
        prior = pin_scale(prior, 0.2, 0.3)

    def density(x):
        return float(np.exp(prior.log_density(np.asarray(x))))

    total = quad(density, -12, 6, points=[-1.7, -1, 0, 0.2, 1, 1.4, 3], limit=400)[0]
    assert total == pytest.approx(1, abs=2e-4)  # tails beyond, and the jumps of bounded laws
    draws = np.sort(np.asarray(prior.sample(jax.random.key(0), 2000)))
    nodes = np.linspace(draws[0] - 1e-6, draws[-1] + 1e-6, 3000)
    heights = np.exp(np.asarray(prior.log_density(nodes)))
    cdf = np.cumsum(heights) / heights.sum()
    assert kstest(draws, lambda x: np.interp(x, nodes, cdf)).pvalue > 1e-4


def test_orientation_laws():
    problem = make_problem()
    loose = orient(problem, 0.3)
    normal = problem.source_normals
    cov = loose.frames @ loose.frames.swapaxes(1, 2)
    outer = normal[:, :, None] * normal[:, None, :]
    np.testing.assert_allclose(cov, 0.3 * np.eye(3) + 0.7 * outer, atol=1e-12)
    fixed = orient(problem, 0.0)
    assert fixed.lead_field.shape[2] == 1
    np.testing.assert_allclose(
        fixed.lead_field[:, :, 0], np.einsum("rsx,sx->rs", problem.lead_field, normal), atol=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_dipoles": 0}, "n_dipoles"),
        ({"max_dipoles": 0}, "max_dipoles"),
        ({"max_dipoles": 2.5}, "max_dipoles"),
        ({"moment_std": -1e-9}, "moment_std"),
        ({"noise_std": float("nan")}, "noise_std"),
        ({"noise_std": "1"}, "noise_std"),
        ({"noise_std": dist.Normal(0, 1)}, "noise_std"),
        ({"loose": 2}, "loose"),
    ],
)
def test_beliefs_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        be.StaticDipoles(**arguments)


def test_location_prior_must_fit():
    for weights in (np.ones(3), np.zeros(7), -np.ones(7)):
        with pytest.raises(ValueError, match="location_prior"):
            model = be.StaticDipoles(location_prior=weights)
            be.infer(model, make_problem(), progress=False)
