"""Every pair of a Gaussian source model and a method: compiled once, in both precisions, honest."""

import dataclasses
import logging
import warnings

import jax
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference.registry import METHODS

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
    return kind() if kind is be.GaussianSources else kind(coefficient=0.8)


OPTIONS = {
    "nuts": {"n_chains": 2, "n_warmup": 30, "n_samples": 30, "n_components": 4},
    "em": {"max_steps": 2, "n_draws": 4},
}
ALL = [
    (kind, method)
    for kind, methods in METHODS.items()
    if kind is not be.StaticDipoles
    for method in methods
]
# Chains and simulated series compile for seconds.
COSTLY = ("nuts", "em")
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


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_a_second_data_set_compiles_nothing(kind, method, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        first = infer(kind, method, make_problem())
        shapes = first.mean.shape, first.std.shape
        caplog.clear()
        second = infer(kind, method, make_problem(seed=1))
        assert (second.mean.shape, second.std.shape) == shapes == ((8, 3, T), (8, 3, T))
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert not compiled, compiled[:3]
    assert not np.array_equal(first.mean, second.mean)
    assert np.isfinite(first.log_evidence) and np.all(first.std >= 0)
    again = infer(kind, method, make_problem())
    np.testing.assert_array_equal(again.mean, first.mean)


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
    assert single.log_evidence == pytest.approx(double.log_evidence, abs=0.05)


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
