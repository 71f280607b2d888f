"""Every pair of a model and a method: compiled once, in both precisions, honest.

Static dipoles have theirs in `inference`.
"""

import dataclasses
import logging
import warnings

import jax
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference.registry import METHODS
from bayes_esi.posterior.tracks import TrackPosterior

M, T, STD = 8, 10, 2e-9
KEY = jax.random.key(0)


def make_problem(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    lead_field = np.random.default_rng(9).standard_normal((M, 8, 3)) / STD
    return be.Problem.from_arrays(
        4 * rng.standard_normal((M, T)), lead_field.astype(dtype), 0.01 * grid,
        times=np.arange(T) / 100,
    )  # fmt: skip


def model_of(kind, problem):
    if kind is be.CoupledSources:
        transition = be.neighbour_dynamics(problem, 0.5, 0.4)
        return be.CoupledSources(transition, STD**2 * 0.2)
    if kind is be.DynamicDipoles:
        return be.DynamicDipoles(0.2, 0.1, max_dipoles=2, moment_std=STD, noise_std=1.0)
    if kind is be.GroupSparseSources:
        return be.GroupSparseSources(0.3)
    is_plain = kind in (be.GaussianSources, be.HierarchicalSources)
    return kind() if is_plain else kind(coefficient=0.8)


PARTICLES = {"n_particles": 50, "n_runs": 2, "n_draws": 20}
OPTIONS = {
    "particle_filter": PARTICLES,
    "particle_smoother": PARTICLES | {"n_renewal_moves": 5},
    "particle_gibbs": {
        "n_chains": 4,
        "n_burn_in": 20,
        "n_samples": 10,
        "n_thin": 1,
        "n_tracks": 8,
    },
    "smc": {"n_particles": 20, "n_runs": 2, "n_moves": 2, "n_kept": 1},
    "nuts": {"n_chains": 2, "n_warmup": 30, "n_samples": 30, "n_components": 4},
    "em": {"max_steps": 2, "n_draws": 4},
    "gibbs": {"n_chains": 2, "n_warmup": 5, "n_samples": 10, "n_components": 4},
}
ALL = [
    (kind, method)
    for kind, methods in METHODS.items()
    if kind is not be.StaticDipoles
    for method in methods
]
# Chains, particles and simulated series compile for seconds.
COSTLY = ("nuts", "em", "particle_smoother", "particle_filter", "particle_gibbs", "smc", "gibbs")
NO_EVIDENCE = ("particle_gibbs", "gibbs", "minimum_current", "ias", "maximum_entropy")
SPARSE = (be.GroupSparseSources, be.HierarchicalSources)
PAIRS = [
    pytest.param(
        *pair,
        marks=[pytest.mark.slow] if pair[1] in COSTLY else [],
        id=f"{pair[0].__name__}-{pair[1]}",
    )
    for pair in ALL
]


def infer(kind, method, problem, **more):
    options = OPTIONS.get(method, {}) | more
    model = model_of(kind, problem)
    return be.infer(model, problem, KEY, method, progress=False, throw=False, **options)


def answers(posterior):
    """What a posterior says of every sample and source, and what it says of its errors."""
    if isinstance(posterior, TrackPosterior):
        return posterior.intensity, posterior.n_dipoles_pmf
    return posterior.mean, posterior.std


def shapes_of(kind):
    return ((T, 8), (T, 3)) if kind is be.DynamicDipoles else ((8, 3, T), (8, 3, T))


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_a_second_data_set_compiles_nothing(kind, method, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        first = infer(kind, method, make_problem())
        first_answers = answers(first)
        caplog.clear()
        second = answers(infer(kind, method, make_problem(seed=1)))
        for one, two, shape in zip(first_answers, second, shapes_of(kind), strict=True):
            assert one.shape == two.shape == shape
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert not compiled, compiled[:3]
    assert not np.array_equal(first_answers[0], second[0])
    is_without = method in NO_EVIDENCE or (method == "nuts" and kind in SPARSE)
    assert np.isfinite(first.log_evidence) or is_without
    assert np.all(first_answers[1] >= 0)
    again = answers(infer(kind, method, make_problem()))
    np.testing.assert_array_equal(again[0], first_answers[0])


@pytest.mark.parametrize(("kind", "method"), [pair for pair in ALL if pair[1] not in COSTLY])
def test_single_precision_tells_the_same(kind, method):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "computing in float32")
        single = infer(kind, method, make_problem(np.float32))
    double = infer(kind, method, make_problem())
    # Products of condition 1e2 or so in single precision; the simulation smoother's draws differ.
    scale = np.abs(double.mean).max()
    np.testing.assert_allclose(single.mean, double.mean, atol=1e-3 * scale)
    is_drawn = kind is be.CoupledSources and method == "kalman_smoother"
    np.testing.assert_allclose(single.std, double.std, rtol=0.5 if is_drawn else 1e-3)
    assert single.log_evidence == pytest.approx(double.log_evidence, abs=0.05, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[be.DynamicDipoles])
def test_single_precision_tells_the_same_of_tracks(method):
    """Draws differ, laws do not: within the Monte Carlo error of many particles or draws."""
    more = {"n_particles": 1000, "n_draws": 1000, "n_runs": 4, "n_renewal_moves": 20}
    if method == "particle_filter":
        del more["n_renewal_moves"]
    if method == "smc":
        more = {"n_particles": 200, "n_runs": 2, "n_moves": 20, "n_kept": 5}
    if method == "particle_gibbs":
        more = {"n_chains": 64, "n_samples": 60, "n_burn_in": 200, "n_thin": 5}
    told = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "computing in float32")
        for dtype in (np.float64, np.float32):
            # Weaker data than those of the other tests, so that the law is broad.
            problem = make_problem(dtype)
            problem = dataclasses.replace(problem, data=0.5 * problem.data)
            told.append(infer(be.DynamicDipoles, method, problem, **more))
    double, single = told
    assert single.draws.places.shape == double.draws.places.shape
    distance = 0.5 * np.abs(single.n_dipoles_pmf - double.n_dipoles_pmf).sum(axis=1)
    assert distance.max() < 0.1
    if method != "particle_gibbs":
        error = np.hypot(single.log_evidence_std, double.log_evidence_std)
        assert abs(single.log_evidence - double.log_evidence) < 0.1 + 6 * error


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_numbers_that_are_none_are_told(kind, method):
    problem = make_problem()
    broken = dataclasses.replace(problem, data=np.full_like(problem.data, np.nan))
    try:
        posterior = infer(kind, method, broken)
    except ValueError as error:
        assert "data" in str(error)
    else:
        assert posterior.status is Status.NOT_FINITE
