"""Enumeration against dense Gaussian densities, place by place and scale by scale."""

import dataclasses
import itertools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayes_esi.inference import dipole_inference, enumerate
from bayes_esi.inference.dipole_target import log_likelihood
from bayes_esi.models.orientation import orient
from bayes_esi.models.problem import Problem
from bayes_esi.models.static_dipoles import StaticDipoles

jax.config.update("jax_enable_x64", True)

OPTIONS = {"n_draws": 2000, "max_sets": 100_000}


def make_problem(seed, n_sources=8, n_channels=12, n_times=4, n_orient=3, amplitude=0.7, groups=1):
    rng = np.random.default_rng(seed)
    pos = rng.uniform(-0.05, 0.05, size=(n_sources, 3))
    field = rng.normal(size=(n_channels, n_sources, n_orient))
    field[:, 1] = field[:, 0] + 0.3 * rng.normal(size=(n_channels, n_orient))
    moment = amplitude * rng.normal(size=(n_orient, n_times))
    data = field[:, 0] @ moment + rng.normal(size=(n_channels, n_times))
    return Problem.from_arrays(
        data,
        field,
        pos,
        source_normals=pos if n_orient == 1 else None,
        noise_groups=[f"group {i * groups // n_channels}" for i in range(n_channels)],
    )


def solve(problem, model, **options):
    target, _, _ = dipole_inference.prepare(model, problem, 2**30)
    result = enumerate.run(
        jax.random.key(1), target, {**OPTIONS, **options}, progress=False, description=""
    )
    return target, result


def all_sets(n_sources, model, weights=None):
    """Every set and the log of its prior probability, from the definition."""
    weights = np.ones(n_sources) if weights is None else np.asarray(weights, float)
    numbers = np.arange(model.max_dipoles + 1)
    log_poisson = numbers * np.log(model.n_dipoles) - np.cumsum(np.log(np.maximum(numbers, 1)))
    log_poisson -= logsumexp(log_poisson)
    sets, log_prior = [], []
    for k in numbers:
        of_size = list(itertools.combinations(range(n_sources), k))
        products = np.array([np.prod(weights[list(c)]) for c in of_size])
        sets += of_size
        with np.errstate(divide="ignore"):
            log_prior += list(log_poisson[k] + np.log(products / products.sum()))
    return sets, np.array(log_prior)


def fields_of(problem, model, places):
    lead_field = orient(problem, model.loose).lead_field
    return lead_field[:, list(places)].reshape(len(lead_field), -1)


def summarise(sets, log_joint, n_sources, max_dipoles):
    log_evidence = logsumexp(log_joint)
    pmf, intensity = np.zeros(max_dipoles + 1), np.zeros(n_sources)
    for places, probability in zip(sets, np.exp(log_joint - log_evidence), strict=True):
        pmf[len(places)] += probability
        intensity[list(places)] += probability
    return log_evidence, pmf, intensity


def compare(result, expected, tol):
    log_evidence, pmf, intensity = expected
    assert result.log_evidence == pytest.approx(log_evidence, abs=tol)
    np.testing.assert_allclose(result.n_dipoles_pmf, pmf, atol=tol)
    np.testing.assert_allclose(result.intensity, intensity, atol=tol)


@pytest.mark.parametrize("n_orient", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("prior", ["uniform", "informative"])
def test_known_scales_equal_the_dense_gaussian(n_orient, groups, prior):
    problem = make_problem(0, n_orient=n_orient, groups=groups)
    weights = None if prior == "uniform" else np.arange(problem.n_sources) % 4
    model = StaticDipoles(
        n_dipoles=0.6, max_dipoles=3, moment_std=0.5, noise_std=1.1, location_prior=weights
    )
    _, result = solve(problem, model)
    sets, log_joint = all_sets(problem.n_sources, model, weights)
    std = 0.5 / problem.moment_unit
    for i, places in zip(range(len(sets)), sets, strict=True):
        field = fields_of(problem, model, places)
        cov = std**2 * field @ field.T + 1.1**2 * np.eye(len(field))
        log_joint[i] += multivariate_normal(cov=cov).logpdf(problem.data.T).sum()
    expected = summarise(sets, log_joint, problem.n_sources, 3)
    compare(result, expected, 1e-9)
    assert result.trace["n_sets"] == np.isfinite(log_joint).sum()


def dense_over_two_scales(problem, model, prior, n_nodes=400):
    """Trapezoid over moment and noise scale, from the eigenvalues of the data covariance."""
    ends = [enumerate._support(scale) for scale in prior.scales]
    moment, noise = (np.linspace(*end, n_nodes + 1) for end in ends)
    weights = []
    for nodes, scale in zip((moment, noise), prior.scales, strict=True):
        rule = np.full(n_nodes + 1, nodes[1] - nodes[0])
        rule[[0, -1]] /= 2
        # The ends are in the support up to rounding; their density is that just inside.
        inside = np.clip(nodes, nodes[0] + 1e-9, nodes[-1] - 1e-9)
        weights.append(np.log(rule) + np.asarray(scale.log_density(inside)))
    sets, log_joint = all_sets(problem.n_sources, model)
    for i, places in zip(range(len(sets)), sets, strict=True):
        field = fields_of(problem, model, places)
        eigenvalues, vectors = np.linalg.eigh(field @ field.T)
        power = np.sum((vectors.T @ problem.data) ** 2, axis=1)
        log_density = np.zeros((n_nodes + 1, n_nodes + 1))
        for value, part in zip(np.maximum(eigenvalues, 0), power, strict=True):
            variance = np.exp(2 * moment)[:, None] * value + np.exp(2 * noise)
            log_density -= 0.5 * problem.n_times * np.log(2 * np.pi * variance)
            log_density -= 0.5 * part / variance
        log_joint[i] += logsumexp(log_density + weights[0][:, None] + weights[1])
    return summarise(sets, log_joint, problem.n_sources, model.max_dipoles)


@pytest.mark.parametrize(
    "scales",
    [
        {},
        {"moment_std": dist.LogNormal(0.0, 0.7), "noise_std": dist.Uniform(0.6, 1.3)},
        pytest.param(
            {"moment_std": dist.HalfNormal(1.0), "noise_std": dist.Gamma(3.0, 3.0)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["log-uniform", "bounded", "half-normal"],
)
@pytest.mark.parametrize("amplitude", [0.15, pytest.param(0.7, marks=pytest.mark.slow)])
def test_unknown_scales_equal_a_dense_grid(scales, amplitude):
    problem = make_problem(3, amplitude=amplitude)
    model = StaticDipoles(max_dipoles=2, **scales)
    target, result = solve(problem, model)
    compare(result, dense_over_two_scales(problem, model, target.prior), 1e-5)


@pytest.mark.parametrize("known", [0, 1], ids=["moment known", "noise known"])
def test_one_unknown_scale_is_the_limit_of_two(known):
    problem = make_problem(3)
    names = ["moment_std", "noise_std"]
    narrow = {names[known]: dist.LogNormal(np.log(0.8), 1e-3)}
    _, given = solve(problem, StaticDipoles(max_dipoles=2, **{names[known]: 0.8}))
    _, near = solve(problem, StaticDipoles(max_dipoles=2, **narrow))
    compare(near, (given.log_evidence, given.n_dipoles_pmf, given.intensity), 1e-3)


def test_two_noise_groups_equal_a_dense_grid():
    problem = make_problem(5, n_sources=5, groups=2)
    model = StaticDipoles(max_dipoles=1)
    target, result = solve(problem, model)
    n_nodes = 70
    ends = [enumerate._support(scale) for scale in target.prior.scales]
    moment, first, second = (np.linspace(*end, n_nodes) for end in ends)
    log_rule = np.zeros(n_nodes)
    log_rule[[0, -1]] = np.log(0.5)
    log_rule -= np.log(n_nodes - 1)  # the log-uniform density takes the range out again
    sets, log_joint = all_sets(problem.n_sources, model)
    pairs = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    pair_rule = (log_rule[:, None] + log_rule).ravel()
    std = np.exp(pairs[:, problem.noise_group])
    data = problem.data / std[:, :, None]
    for i, places in zip(range(len(sets)), sets, strict=True):
        field = fields_of(problem, model, places) / std[:, :, None]
        eigenvalues, vectors = np.linalg.eigh(field @ field.swapaxes(1, 2))
        power = np.sum((vectors.swapaxes(1, 2) @ data) ** 2, axis=2)
        variance = 1 + np.exp(2 * moment)[:, None, None] * np.maximum(eigenvalues, 0)
        values = np.sum(problem.n_times * np.log(2 * np.pi * variance) + power / variance, axis=2)
        values = -0.5 * values - problem.n_times * np.log(std).sum(axis=1)
        log_joint[i] += logsumexp(values + log_rule[:, None] + pair_rule)
    compare(result, summarise(sets, log_joint, problem.n_sources, 1), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_draws_follow_the_posterior(groups):
    problem = make_problem(7, n_sources=6, amplitude=0.25, groups=groups)
    model = StaticDipoles(n_dipoles=1.0, max_dipoles=2 if groups == 1 else 1)
    target, result = solve(problem, model, n_draws=5_000)
    draws = result.draws
    numbers = draws.active.sum(axis=1)
    assert np.all(np.sort(~draws.active, axis=1) == ~draws.active)
    frequency = np.bincount(numbers, minlength=model.max_dipoles + 1) / len(numbers)
    error = 4 * np.sqrt(result.n_dipoles_pmf * (1 - result.n_dipoles_pmf) / len(numbers))
    np.testing.assert_array_less(np.abs(frequency - result.n_dipoles_pmf), error + 1e-12)
    value = jax.vmap(log_likelihood, in_axes=(None, 0, 0, 0))(
        target.gram, draws.places, draws.active, draws.log_scales
    )
    np.testing.assert_allclose(draws.log_likelihood, value, rtol=1e-9)
    # Moving the data to other units of noise moves the law of the noise scale: a score test.
    # E[d log posterior / d log scale] vanishes up to what the density leaves at the bounds.
    noise = draws.log_scales[:, 1:]
    low, high = enumerate._support(target.prior.scales[1])
    assert noise.min() > low and noise.max() < high

    def log_density(log_scales, places, active):
        return log_likelihood(target.gram, places, active, log_scales)

    score = jax.vmap(jax.grad(log_density))(draws.log_scales, draws.places, draws.active)[:, 1:]
    z = np.asarray(score.mean(axis=0) / score.std(axis=0)) * np.sqrt(len(numbers))
    assert np.all(np.abs(z) < 4)
    # ... and E[s score] = -1: the spread is right too.
    spread = np.asarray(score) * (noise - noise.mean(axis=0))
    z = (spread.mean(axis=0) + 1) / spread.std(axis=0) * np.sqrt(len(numbers))
    assert np.all(np.abs(z) < 4)


def test_long_recordings_need_narrow_boxes():
    problem = make_problem(9, n_times=3000)
    model = StaticDipoles(max_dipoles=2)
    _, result = solve(problem, model, n_draws=200)
    assert result.n_dipoles_pmf[1] > 0.9
    truth = np.mean(result.draws.log_scales[:, 1])
    assert abs(truth) < 0.05 and np.std(result.draws.log_scales[:, 1]) < 0.01


def test_only_the_draws_depend_on_the_key():
    problem = make_problem(3)
    target, first = solve(problem, StaticDipoles(max_dipoles=1))
    again = enumerate.run(jax.random.key(1), target, OPTIONS, progress=False, description="")
    other = enumerate.run(jax.random.key(2), target, OPTIONS, progress=False, description="")
    np.testing.assert_array_equal(first.draws.log_scales, again.draws.log_scales)
    assert not np.array_equal(first.draws.log_scales, other.draws.log_scales)
    assert first.log_evidence == other.log_evidence


def test_single_precision_factors_are_enough():
    problem = make_problem(3)
    target, exact = solve(problem, StaticDipoles(max_dipoles=2))
    gram = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, target.gram)
    target = dataclasses.replace(target, gram=gram)
    coarse = enumerate.run(jax.random.key(1), target, OPTIONS, progress=False, description="")
    assert coarse.log_evidence == pytest.approx(exact.log_evidence, abs=1e-3)
    assert coarse.draws.log_scales.dtype == np.float32


def test_too_many_sets_are_refused():
    problem = make_problem(3, n_sources=30)
    with pytest.raises(ValueError, match=r"method='enumerate'.*4,526.*method='smc'"):
        solve(problem, StaticDipoles(max_dipoles=3), max_sets=1000)
