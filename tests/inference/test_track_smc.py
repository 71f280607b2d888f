"""Tempered populations of trajectories against sums over all of them."""

import dataclasses

import jax
import numpy as np
import pytest
import track_oracle
from scipy.special import logsumexp

import bayes_esi as be
from bayes_esi.core.drive import Checkpoint
from bayes_esi.core.status import Status
from bayes_esi.inference import particle_gibbs, track_inference, track_smc
from bayes_esi.viz import track_trace

OPTIONS = track_inference.check_options("smc", {"n_moves": 10})


def target_of(name, n_orient=1):
    problem, model = getattr(track_oracle, f"toy_{name}")(n_orient)
    return problem, model, track_inference.prepare(model, problem, 2**32)


def run(target, seed=0, path=None, **changes):
    return track_smc.run(
        jax.random.key(seed),
        target,
        {**OPTIONS, **changes},
        progress=False,
        description="",
        checkpoint=Checkpoint(path, "test"),
    )


def distance(found, exact):
    """Largest total variation over samples."""
    return 0.5 * np.abs(found - exact).sum(axis=-1).max()


def test_the_first_population_is_the_prior():
    problem, model, target = target_of("two")
    places, is_new, parameters = track_smc._draw_prior(jax.random.key(0), target, 20_000)
    every = track_oracle.enumerate_trajectories(
        problem.n_times, problem.n_sources, 2, model.birth_prob, model.death_prob,
        model.location_prior,
    )  # fmt: skip
    prior = np.exp(every.log_prior)
    for found, values in ((places, every.places), (is_new, every.is_new)):
        held = np.sum(np.asarray(found) >= (1 if found is is_new else 0), axis=2)
        wanted = np.sum(values >= (1 if found is is_new else 0), axis=2)
        for number in range(3):
            # 20,000 draws: a standard error of at most 0.0036.
            np.testing.assert_allclose(
                np.mean(held == number, axis=0), prior @ (wanted == number), atol=0.015
            )
    np.testing.assert_allclose(parameters, np.broadcast_to(parameters[:1], parameters.shape))


@pytest.mark.long
@pytest.mark.parametrize("name, n_orient", [("one", 3), ("two", 1), ("walk", 1)])
def test_laws_and_evidence_are_those_of_all_trajectories(name, n_orient):
    problem, model, _ = target_of(name, n_orient)
    truth = track_oracle.exact(problem, model)
    posterior = be.infer(
        model, problem, jax.random.key(0), "smc",
        n_particles=500, n_moves=20, n_tracks=problem.n_times, progress=False, throw=False,
    )  # fmt: skip
    # Toys with two dipoles reach their bound, as they should.
    assert posterior.status in (Status.OK, Status.TOO_MANY_DIPOLES)
    # 10,000 draws of 2,000 particles: some thousands of them independent.
    assert distance(posterior.n_dipoles_pmf, truth.n_dipoles_pmf) < 0.03
    assert distance(posterior.intensity, truth.intensity) < 0.03
    births = np.mean(posterior.draws.is_new, axis=(0, 1)).sum(axis=-1)
    assert distance(births, truth.birth_intensity) < 0.03
    error = posterior.log_evidence - truth.log_evidence
    assert abs(error) < max(4 * posterior.log_evidence_std, 0.05)


@pytest.mark.long
def test_evidence_with_an_unknown_scale_is_that_of_a_grid():
    import numpyro.distributions as dist

    problem, model, _ = target_of("two")
    model = dataclasses.replace(model, noise_std=dist.LogNormal(0.3, 0.4))
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    values = [
        track_oracle.exact(
            problem, dataclasses.replace(model, noise_std=float(np.exp(0.3 + 0.4 * z)))
        ).log_evidence
        for z in nodes
    ]
    exact = logsumexp(values, b=weights / weights.sum())
    posterior = be.infer(
        model, problem, jax.random.key(3), "smc", n_moves=20, progress=False, throw=False
    )
    # 100 particles a run: some hundredths of a nat.
    assert abs(posterior.log_evidence - exact) < max(4 * posterior.log_evidence_std, 0.1)


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(tmp_path, monkeypatch):
    *_, target = target_of("two")
    short = {"n_particles": 20, "n_moves": 3, "max_rounds": 1, "n_kept": 2}
    draws, log_evidence, trace, status = run(target, **short)
    assert status is Status.OK and trace["inverse_temperature"][-1] == 1
    assert draws.birth.shape[0] == 40
    calls = iter(range(100))

    def interrupted(*args, call=particle_gibbs.advance):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return call(*args)

    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        patch.setattr(particle_gibbs, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(target, path=path, **short)
    assert path.exists()
    resumed = run(target, path=path, **short)
    for one, two in zip(jax.tree.leaves(draws), jax.tree.leaves(resumed[0]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert resumed[1] == log_evidence


def test_a_population_that_does_not_move_is_told(monkeypatch):
    *_, target = target_of("two")
    monkeypatch.setattr(track_smc, "_move", lambda key, chains, *args: (chains, 0.0))
    *_, trace, status = run(target, n_particles=50, n_kept=1, max_rounds=2)
    assert status is Status.NOT_MIXED
    assert np.all(trace["n_rounds"] == 2) and np.allclose(trace["correlation"], 1)


def test_its_figure_is_of_temperatures():
    problem, model, _ = target_of("two")
    posterior = be.infer(
        model, problem, jax.random.key(0), "smc",
        n_particles=20, n_runs=2, n_moves=3, n_kept=1, progress=False, throw=False,
    )  # fmt: skip
    axes = track_trace.plot_trace(posterior)
    assert [ax.get_xlabel() for ax in axes] == ["temperature"] * 3
    drawn = [line.get_ydata() for line in axes[0].lines]
    np.testing.assert_array_equal(drawn, posterior.draws.trace["inverse_temperature"])
    groups = posterior.to_datatree()["sample_stats"]
    assert groups["population_ess"].dims == ("chain", "population_ess_index")


def test_steps_that_run_out_are_told():
    *_, target = target_of("two")
    draws, *_, status = run(target, n_particles=20, n_moves=2, n_kept=1, max_steps=1)
    assert status is Status.TEMPERING_STALLED
    assert draws.birth.shape[0] == 20
