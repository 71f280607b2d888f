"""Samplers against enumeration, and what makes a reversible-jump run repeatable."""

import functools

import jax
import numpy as np
import pytest

from bayes_esi.core.drive import Checkpoint
from bayes_esi.core.status import Status
from bayes_esi.inference import dipole_inference, enumerate, reversible_jump, smc
from bayes_esi.models.problem import Problem
from bayes_esi.models.static_dipoles import StaticDipoles

jax.config.update("jax_enable_x64", True)

SAMPLERS = {
    "smc": (
        smc,
        {
            "n_particles": 2000,
            "cess_target": 0.95,
            "ess_threshold": 0.5,
            "n_sweeps": 1,
            "max_sweeps": 4,
            "n_surveyed": 16,
            "n_final_sweeps": 4,
            "max_steps": 500,
        },
    ),
    "reversible_jump": (
        reversible_jump,
        {
            "n_particles": 200,
            "n_chains": 16,
            "n_samples": 1000,
            "n_burn_in": 100,
            "n_surveyed": 16,
        },
    ),
}
# Sources, seed, correlation length of the lead field in m, amplitude of the moments, scales.
PROBLEMS = {
    "correlated, known scales": (40, 1, 0.03, 0.6, {"moment_std": 0.6, "noise_std": 1.0}),
    "correlated, unknown scales": (40, 1, 0.03, 0.6, {}),
    "ambiguous, unknown scales": (40, 2, 0.0, 0.6, {}),
    "ambiguous, known scales": (60, 4, 0.05, 0.35, {"moment_std": 0.35, "noise_std": 1.0}),
}


def make_problem(n_sources, seed, correlation, amplitude, n_channels=15, n_times=4):
    """Two dipoles; lead fields of places that are close to each other resemble each other."""
    rng = np.random.default_rng(seed)
    pos = rng.uniform(-0.05, 0.05, size=(n_sources, 3))
    if correlation:
        distance = np.linalg.norm(pos[:, None] - pos, axis=2)
        kernel = np.exp(-(distance**2) / (2 * correlation**2)) + 1e-9 * np.eye(n_sources)
        white = rng.normal(size=(n_channels, n_sources, 3))
        field = np.einsum("ij,rjd->rid", np.linalg.cholesky(kernel), white)
    else:
        field = rng.normal(size=(n_channels, n_sources, 3))
    data = sum(field[:, j] @ (amplitude * rng.normal(size=(3, n_times))) for j in (3, 20))
    return Problem.from_arrays(data + rng.normal(size=data.shape), field, pos)


@functools.cache
def exact(name):
    *shape, scales = PROBLEMS[name]
    problem, model = make_problem(*shape), StaticDipoles(max_dipoles=3, **scales)
    target, neighbours, _ = dipole_inference.prepare(model, problem, 2**30)
    options = {"n_draws": 1000, "max_sets": 100_000}
    result = enumerate.run(jax.random.key(0), target, options, progress=False, description="")
    return target, neighbours, result


def sample(name, sampler, n_candidates, seed, checkpoint=None, **changes):
    target, neighbours, _ = exact(name)
    module, options = SAMPLERS[sampler]
    return module.run(
        jax.random.key(seed),
        target,
        neighbours,
        {**options, "n_candidates": n_candidates, **changes},
        progress=False,
        description="",
        checkpoint=checkpoint or Checkpoint(None, ""),
    )


def check(name, sampler, n_candidates, seed, **changes):
    draws, log_evidence, _, status = sample(name, sampler, n_candidates, seed, **changes)
    target, _, truth = exact(name)
    numbers = draws.active.sum(axis=1)
    pmf = np.bincount(numbers, minlength=4) / len(numbers)
    intensity = np.zeros(target.gram.n_sources)
    np.add.at(intensity, draws.places[draws.active], 1 / len(numbers))
    assert status is Status.OK
    assert 0.5 * np.abs(pmf - truth.n_dipoles_pmf).sum() < 0.03
    assert np.abs(intensity - truth.intensity).max() < 0.05
    assert abs(log_evidence - truth.log_evidence) < 0.2
    for i, scale in zip(range(2), target.prior.scales, strict=True):
        if not scale.is_known:
            spread = truth.draws.log_scales[:, i].std()
            shift = draws.log_scales[:, i].mean() - truth.draws.log_scales[:, i].mean()
            assert abs(shift) < 0.25 * spread


@pytest.mark.long
def test_tempering_agrees_with_enumeration():
    check("correlated, unknown scales", "smc", 8, seed=1)


# Each sampler meets both ways to propose places on half of the problems: a case takes half a
# minute, most of it compilation.
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "n_candidates", "sampler"),
    [
        (name, n_candidates, sampler)
        for names, order in ((list(PROBLEMS)[::2], (0, 8)), (list(PROBLEMS)[1::2], (8, 0)))
        for name in names
        for sampler, n_candidates in zip(SAMPLERS, order, strict=True)
    ],
)
def test_samplers_agree_with_enumeration_on_every_problem(name, n_candidates, sampler):
    # Half of the ambiguous posterior is a plateau of the moment scale that takes time to cross.
    changes = {"n_samples": 3000} if sampler == "reversible_jump" else {}
    check(name, sampler, n_candidates, seed=2, **changes)


class Killed(Exception):
    pass


class FragileCheckpoint(Checkpoint):
    """Dies after saving so many times."""

    def __init__(self, path, identity, n_saves):
        super().__init__(path, identity)
        self.n_saves = n_saves

    def save(self, step, state):
        super().save(step, state)
        self.n_saves -= 1
        if not self.n_saves:
            raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("n_saves", [1, 3])
def test_a_killed_run_resumes_with_the_same_bits(tmp_path, n_saves):
    name, short = "correlated, known scales", {"n_samples": 50, "n_burn_in": 30}
    whole = sample(name, "reversible_jump", 0, 1, **short)
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        fragile = FragileCheckpoint(path, "me", n_saves)
        sample(name, "reversible_jump", 0, 1, checkpoint=fragile, **short)
    resumed = sample(name, "reversible_jump", 0, 1, checkpoint=Checkpoint(path, "me"), **short)
    jax.tree.map(np.testing.assert_array_equal, whole[:3], resumed[:3])
    assert len(whole[0].places) == 50 * 16


@pytest.mark.slow
def test_the_ladder_reaches_from_reference_to_posterior():
    name, short = "correlated, known scales", {"n_samples": 50, "n_burn_in": 30}
    _, log_evidence, trace, _ = sample(name, "reversible_jump", 0, 1, **short)
    ladder = trace["inverse_temperature"]
    assert ladder[0] == 0 and ladder[-1] == 1 and np.all(np.diff(ladder) > 0)
    assert trace["swap_rate"].shape == (len(ladder) - 1,) and trace["swap_rate"].min() > 0.2
    assert log_evidence == pytest.approx(trace["log_evidence_increment"].sum())


def test_acceptance_ratio_is_exact_for_gaussians():
    # r ~ N(m, 1) at b = 0 tilts to N(m + b, 1) at b: log Z(b) = m b + b^2 / 2.
    rng = np.random.default_rng(0)
    ladder = np.array([0.0, 0.3, 1.0])
    log_ratio = 2.0 + ladder[:, None] + rng.normal(size=(4000, 3, 5))
    increments = reversible_jump._bennett(ladder, log_ratio)
    np.testing.assert_allclose(increments, np.diff(2 * ladder + ladder**2 / 2), atol=0.02)
    # States that the posterior rules out count for nothing.
    ruled_out = log_ratio.copy()
    ruled_out[::2, 0] = -np.inf
    increments = reversible_jump._bennett(ladder, ruled_out)
    assert increments[0] == pytest.approx(0.645 + np.log(0.5), abs=0.03)
