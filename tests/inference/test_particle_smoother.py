"""Trajectories drawn backwards against sums over all of them."""

import dataclasses
import functools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle
from scipy.special import logsumexp

import bayes_esi as be
from bayes_esi.inference import particle_filter, particle_smoother, track_inference
from bayes_esi.models.dynamic_dipoles import DynamicDipoles, log_law

OPTIONS = particle_filter.Options(n_moves=0)


@functools.cache
def solve(name, n_orient):
    problem, model = getattr(track_oracle, f"toy_{name}")(n_orient)
    target = track_inference.prepare(model, problem, 2**30)
    return problem, model, target, track_oracle.exact(problem, model)


def run(target, seed=0, n_particles=2000, n_draws=500, n_tries=4, options=OPTIONS):
    parameters = target.prior.sample_parameters(jax.random.key(9), 1)[0]
    return particle_smoother.run(
        jax.random.key(seed), target, parameters, n_particles, n_draws, options, n_tries=n_tries
    )


def infer(model, problem, seed, **options):
    more = {"n_particles": 2000, "n_draws": 1000, "n_runs": 4} | options
    key = jax.random.key(seed)
    return be.infer(model, problem, key, "particle_smoother", progress=False, throw=False, **more)


def flat(draws):
    return (part.reshape(-1, *part.shape[2:]) for part in (draws.places, draws.is_new))


def laws(places, is_new, problem, model):
    """Number, intensity, births, and joint law of birth time and last place of those alive."""
    n_times, n_sources = problem.n_times, problem.n_sources
    held = places >= 0
    numbers = held.sum(axis=2)
    pmf = np.stack([np.mean(numbers == k, axis=0) for k in range(model.max_dipoles + 1)], axis=1)
    sources = np.arange(n_sources)
    intensity = np.mean(np.sum(places[..., None] == sources, axis=2), axis=0)
    births = np.mean(is_new.sum(axis=2), axis=0)
    last = n_times - 1 - np.argmax(is_new[:, ::-1], axis=1)
    draw, slot = np.nonzero(held[:, -1])
    joint = np.zeros((n_times, n_sources))
    np.add.at(joint, (last[draw, slot], places[draw, -1, slot]), 1 / len(places))
    return pmf, intensity, births, joint


def exact_laws(truth):
    return truth.n_dipoles_pmf, truth.intensity, truth.birth_intensity, truth.birth_and_place


def assert_same_in_mean(runs, exact, floor, largest_error):
    """Means of independent runs, within six of the standard errors that they tell themselves.

    `floor` is for what no run ever saw, and for the bias of a ratio of averages.
    """
    for found, wanted in zip(zip(*runs, strict=True), exact, strict=True):
        error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
        assert error.max() < largest_error
        assert np.all(np.abs(np.mean(found, axis=0) - wanted) < 6 * error + floor)


def assert_well_formed(places, is_new, target):
    """A dipole stays in one slot and, without walks, in one place; each draw can happen."""
    parameters = np.asarray(target.prior.sample_parameters(jax.random.key(0), 1)[0])
    law = jax.jit(jax.vmap(log_law, in_axes=(None, None, 0, 0)))
    assert np.all(np.isfinite(law(target.prior, parameters, places, is_new)))
    held = places >= 0
    assert not np.any(is_new & ~held)
    assert np.all(is_new.sum(axis=2) <= 1)
    continues = held[:, 1:] & ~is_new[:, 1:]
    assert np.all(held[:, :-1][continues])
    assert np.all(is_new[:, 0] == held[:, 0])
    if target.prior.neighbours is None:
        assert np.all((places[:, 1:] == places[:, :-1])[continues])


@pytest.mark.slow
def test_smoothing_laws_and_well_formed_draws():
    problem, model, target, truth = solve("two", 1)
    runs = []
    for seed in range(8):
        places, is_new, state, info, renewal = run(target, seed)
        assert places.shape == is_new.shape == (500, 5, 2)
        assert renewal.shape == (4,) and np.all((renewal >= 0) & (renewal <= 1))
        assert_well_formed(places, is_new, target)
        runs.append(laws(places, is_new, problem, model))
    assert renewal.max() > 0.2
    assert float(state.log_evidence) == pytest.approx(info.log_evidence_increment.sum())
    # 4,000 draws in all, from 16,000 particles.
    assert_same_in_mean(runs, exact_laws(truth), 2e-3, 0.025)
    # Filter and smoother differ by more than the error: the draws know the later samples.
    apart = 0.5 * np.abs(truth.intensity - truth.filtering_intensity).sum(axis=1)
    found = 0.5 * np.abs(np.mean([r[1] for r in runs], axis=0) - truth.intensity).sum(axis=1)
    assert found.max() < 0.04 < apart.max()


@pytest.mark.long
@pytest.mark.parametrize("n_tries", [0, 1, 8])
def test_any_number_of_tries_gives_the_same_law(n_tries):
    """Also none at all, where every draw is the ancestral line of its last particle."""
    problem, model, target, truth = solve("two", 3)
    runs, renewals = [], []
    for seed in range(16):
        places, is_new, _, _, renewal = run(target, seed, 2000, 500, n_tries)
        assert_well_formed(places, is_new, target)
        runs.append(laws(places, is_new, problem, model))
        renewals.append(renewal)
    assert_same_in_mean(runs, exact_laws(truth), 2e-3, 0.02)
    assert np.all(np.array(renewals) == 0) == (n_tries == 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["one", "walk"])
def test_joint_law_of_birth_and_place(name):
    problem, model, target, truth = solve(name, 3)
    runs = []
    for seed in range(16):
        places, is_new, *_ = run(target, seed, 2000, 500)
        assert_well_formed(places, is_new, target)
        runs.append(laws(places, is_new, problem, model))
    assert_same_in_mean(runs, exact_laws(truth), 2e-3, 0.02)


@pytest.mark.long
@pytest.mark.parametrize("options", [{"ess_threshold": 0.99}, {"n_surveyed": 1}])
def test_law_does_not_depend_on_resampling_or_survey(options):
    problem, model, target, truth = solve("two", 1)
    runs = []
    for seed in range(16):
        places, is_new, *_ = run(target, seed, 2000, 500, options=OPTIONS._replace(**options))
        runs.append(laws(places, is_new, problem, model))
    assert_same_in_mean(runs, exact_laws(truth), 2e-3, 0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "n_orient", "seed", "n_renewal_moves"),
    [("one", 3, 0, 0), ("two", 1, 0, 40), ("two", 1, 1, 40), ("walk", 3, 0, 40)],
)
def test_infer_gives_the_exact_smoothing_law(name, n_orient, seed, n_renewal_moves):
    problem, model, target, truth = solve(name, n_orient)
    posterior = infer(
        model, problem, seed, n_particles=5000, n_runs=4, n_renewal_moves=n_renewal_moves
    )
    draws = posterior.draws
    for places, is_new in zip(draws.places, draws.is_new, strict=True):
        assert_well_formed(places, is_new, target)

    # 4,000 draws: half the summed standard deviations of the twelve places is 0.02 at most.
    def distance(found, exact):
        return 0.5 * np.abs(found - exact).sum(axis=-1).max()

    assert distance(posterior.n_dipoles_pmf, truth.n_dipoles_pmf) < 0.03
    assert distance(posterior.intensity, truth.intensity) < 0.03
    assert distance(posterior.birth_intensity, truth.birth_intensity) < 0.03
    assert distance(posterior.death_intensity, truth.death_intensity) < 0.03
    assert posterior.log_evidence == pytest.approx(truth.log_evidence, abs=0.1)
    weights = np.repeat(posterior.run_weights / 1000, 1000)
    moments = posterior.moments_of(np.arange(4000))
    mean = np.zeros_like(truth.mean_moment)
    places = draws.places.reshape(4000, problem.n_times, -1)
    for draw, t, slot in np.argwhere(places >= 0):
        own = moments.mean[draw, t, slot]
        if n_orient == 1:
            own = moments.components[draw, t, slot] * problem.moment_unit
        mean[t, places[draw, t, slot]] += weights[draw] * own
    # Standard deviation of a draw's moment at a place is that of the prior or less.
    assert np.abs(mean - truth.mean_moment).max() < 5 * model.moment_std / np.sqrt(4000)


@pytest.mark.long
@pytest.mark.parametrize(("name", "n_orient"), [("two", 1), ("walk", 3)])
def test_lines_of_the_filter_give_the_same_law(name, n_orient, monkeypatch):
    """The way that is taken where backward sampling has too few particles to choose from."""
    problem, model, target, truth = solve(name, n_orient)
    monkeypatch.setattr(track_inference, "_least_backward_ess", lambda n_particles: np.inf)
    runs = []
    for seed in range(6):
        posterior = infer(model, problem, seed, n_draws=500, n_runs=2, n_renewal_moves=4)
        draws = posterior.draws
        assert np.all(np.isnan(draws.trace["renewal"]))
        for places, is_new in zip(draws.places, draws.is_new, strict=True):
            assert_well_formed(places, is_new, target)
        runs.append(laws(*flat(draws), problem, model))
        assert posterior.log_evidence == pytest.approx(truth.log_evidence, abs=0.2)
    # States of one chain resemble one another: six times 2 x 50 chains.
    assert_same_in_mean(runs, exact_laws(truth), 2e-3, 0.04)


@pytest.mark.long
@pytest.mark.parametrize("least_ess", [0.0, np.inf])
def test_unknown_scales_are_integrated_out(least_ess, monkeypatch):
    """Against Gauss-Hermite sums over the moment scale of exact laws: lines and backward draws."""
    problem, model, _, _ = solve("two", 1)
    spread = 0.5
    nodes, shares = np.polynomial.hermite_e.hermegauss(9)
    shares = shares / shares.sum()
    exacts = [
        track_oracle.exact(
            problem, dataclasses.replace(model, moment_std=model.moment_std * np.exp(spread * node))
        )
        for node in nodes
    ]
    log_evidence = logsumexp([e.log_evidence for e in exacts], b=shares)
    weights = shares * np.exp([e.log_evidence - log_evidence for e in exacts])
    prior = dist.LogNormal(np.log(model.moment_std), spread)
    unknown = dataclasses.replace(model, moment_std=prior)
    monkeypatch.setattr(track_inference, "_least_backward_ess", lambda n_particles: least_ess)
    posterior = infer(unknown, problem, 0, n_draws=250, n_runs=24, n_renewal_moves=10)
    # Runs differ by their draw of the scale: the error that they tell is that of their mean.
    error = posterior.log_evidence_std
    assert error < 0.2
    assert abs(posterior.log_evidence - log_evidence) < 4 * error
    run_weights = posterior.run_weights[:, None, None]

    def distance(found, name):
        exact = sum(w * getattr(e, name) for w, e in zip(weights, exacts, strict=True))
        return 0.5 * np.abs(found - exact).sum(axis=-1).max()

    assert posterior.run_weights.max() < 0.2
    assert distance(posterior.n_dipoles_pmf, "n_dipoles_pmf") < 0.03
    assert distance(posterior.intensity, "intensity") < 0.03
    mean = np.sum(weights * spread * nodes)
    found = np.log(posterior.draws.moment_std / model.moment_std)
    found = np.sum(run_weights[:, :, 0] * found) / found.shape[1]
    # Deviation of the posterior below that of the prior, 24 draws and their moves.
    assert found == pytest.approx(mean, abs=4 * spread / np.sqrt(24))


@pytest.mark.long
def test_with_known_place_and_life_moments_are_those_of_one_large_gaussian():
    problem, _ = track_oracle.toy_two(3)
    weights = np.full(5, 1e-12)
    weights[1] = 1.0
    model = DynamicDipoles(
        birth_prob=1 - 1e-6,
        death_prob=1e-6,
        max_dipoles=1,
        moment_std=1e-8,
        moment_persistence=0.7,
        noise_std=1.0,
        location_prior=weights,
    )
    for n_renewal_moves in (0, 20):
        posterior = be.infer(
            model,
            problem,
            method="particle_smoother",
            progress=False,
            throw=False,
            n_particles=200,
            n_draws=50,
            n_runs=2,
            n_renewal_moves=n_renewal_moves,
        )
        # Another trajectory has a probability of 1e-5.
        np.testing.assert_array_equal(posterior.draws.places, 1)
        value, mean, cov = track_oracle.dense_law(
            np.ones((5, 1), int),
            np.arange(5)[:, None] == 0,
            np.asarray(problem.lead_field),
            np.asarray(problem.data),
            1e-8 / problem.moment_unit,
            1.0,
            0.7,
        )
        (track,) = posterior.tracks()
        variance = np.stack([np.diag(cov[t, 0, :, t, 0]) for t in range(5)])
        unit = problem.moment_unit
        np.testing.assert_allclose(track.moment_mean, unit * mean[:, 0].T, atol=1e-6 * 1e-8)
        np.testing.assert_allclose(track.moment_std, unit * np.sqrt(variance.T), rtol=1e-6)
        assert posterior.log_evidence == pytest.approx(value + problem.log_jacobian, abs=0.1)


@pytest.mark.long
def test_single_precision_follows_the_same_law():
    problem, model, _, truth = solve("two", 3)
    cast = dataclasses.replace(
        problem,
        lead_field=problem.lead_field.astype(np.float32),
        data=problem.data.astype(np.float32),
    )
    target = track_inference.prepare(model, cast, 2**30)
    runs = []
    for seed in range(8):
        places, is_new, state, *_ = run(target, seed, 2000, 500)
        assert state.log_weights.dtype == np.float32
        assert_well_formed(places, is_new, target)
        runs.append(laws(places, is_new, problem, model))
    assert_same_in_mean(runs, exact_laws(truth), 3e-3, 0.02)
