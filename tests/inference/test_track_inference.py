"""Options, verdicts and files of dynamic dipoles, reached by real problems."""

import dataclasses

import jax
import numpy as np
import pytest
import track_oracle

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference import track_inference

QUICK = {
    "particle_filter": {"n_particles": 100, "n_runs": 2, "n_draws": 20},
    "particle_smoother": {"n_particles": 100, "n_runs": 2, "n_draws": 20, "n_renewal_moves": 5},
    "particle_gibbs": {
        "n_chains": 2,
        "n_burn_in": 20,
        "n_samples": 10,
        "n_thin": 1,
        "n_tracks": 5,
    },
    "smc": {"n_particles": 20, "n_runs": 2, "n_moves": 10, "n_kept": 1, "n_tracks": 5},
}
METHODS = [pytest.param(name, marks=pytest.mark.slow) for name in QUICK]


def infer(model, problem, method="particle_filter", *, throw=False, **options):
    options = QUICK[method] | options
    return be.infer(model, problem, method=method, progress=False, throw=throw, **options)


@pytest.fixture(scope="module")
def toy():
    return track_oracle.toy_two(1)


# One run of each method, for all tests that only look at it.
@pytest.fixture(scope="module")
def posterior_of(toy):
    problem, model = toy
    known = {}

    def get(method):
        if method not in known:
            known[method] = infer(model, problem, method)
        return known[method]

    return get


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("particle_filter", {"n_particle": 10}, "option of particle_filter.*n_particle"),
        ("particle_smoother", {"n_moves": 1}, "option of particle_smoother.*n_moves"),
        ("particle_gibbs", {"n_particles": 10}, "option of particle_gibbs.*n_particles"),
        *[("particle_filter", {"n_particles": n}, "n_particles") for n in (0, -1, 2.5, "many")],
        ("particle_filter", {"proposal": "x"}, "proposal.*survey.*bootstrap"),
        ("particle_filter", {"ess_threshold": 0.0}, "ess_threshold"),
        ("particle_filter", {"n_moves": -1}, "n_moves"),
        ("particle_smoother", {"n_runs": 0}, "n_runs"),
        ("particle_smoother", {"n_renewal_moves": -1}, "n_renewal_moves"),
        ("particle_smoother", {"n_draws": 0}, "n_draws"),
        ("particle_gibbs", {"n_chains": 0}, "n_chains"),
        ("particle_filter", {"memory_limit": 0}, "memory_limit"),
        ("particle_filter", {"memory_limit": 100}, "memory_limit is .* raise it"),
        ("particle_gibbs", {"memory_limit": 100}, "memory_limit is .* raise it"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(toy, method, options, message):
    problem, model = toy
    with pytest.raises(ValueError, match=message):
        be.infer(model, problem, method=method, progress=False, **options)


@pytest.mark.parametrize("method", ["particle_filter", "particle_smoother"])
def test_particle_methods_have_nothing_to_resume(toy, method, tmp_path):
    problem, model = toy
    with pytest.raises(ValueError, match=f"checkpoint: {method} has nothing to resume"):
        be.infer(model, problem, method=method, progress=False, checkpoint=tmp_path / "run")


def test_no_moves_and_no_renewal_are_options():
    assert track_inference.check_options("particle_filter", {"n_moves": 0})["n_moves"] == 0
    checked = track_inference.check_options("particle_smoother", {"n_renewal_moves": 0})
    assert checked["n_renewal_moves"] == 0
    assert checked["n_particles"] == 1000


def test_a_table_that_does_not_fit_is_not_formed():
    problem, model = track_oracle.toy_two(3)
    # Lead field and products take 1,320 bytes, the table 1,800.
    large = track_inference.prepare(model, problem, 1800.0)
    small = track_inference.prepare(model, problem, 1799.0)
    assert large.gram.pair_blocks is not None and small.gram.pair_blocks is None
    with pytest.raises(ValueError, match="memory_limit"):
        track_inference.prepare(model, problem, 1319.0)


# ---------------------------------------------------------------- posteriors


@pytest.mark.parametrize("method", METHODS)
def test_a_posterior_keeps_what_the_runs_returned(toy, posterior_of, method):
    problem, model = toy
    draws = posterior_of(method).draws
    n_runs, n_draws = (2, 10) if method == "particle_gibbs" else (2, 20)
    assert draws.places.shape == draws.is_new.shape == (n_runs, n_draws, 5, 2)
    np.testing.assert_allclose(draws.moment_std, model.moment_std, rtol=1e-12)
    np.testing.assert_allclose(draws.noise_std, 1.0, rtol=1e-12)
    np.testing.assert_allclose(draws.birth_prob, 0.4, rtol=1e-12)
    np.testing.assert_allclose(draws.death_prob, 0.2, rtol=1e-12)
    wanted = track_oracle.log_likelihoods(
        draws.places.reshape(-1, 5, 2),
        draws.is_new.reshape(-1, 5, 2),
        np.asarray(problem.lead_field),
        np.asarray(problem.data),
        model.moment_std / problem.moment_unit,
        1.0,
        model.moment_persistence,
    )
    np.testing.assert_allclose(
        draws.log_likelihood.ravel(), wanted + problem.log_jacobian, atol=1e-8
    )
    if method == "particle_gibbs":
        assert np.all(np.isnan(draws.log_evidence))
        return
    # A hundred particles: some tenths of a nat.
    exact = track_oracle.exact(problem, model).log_evidence
    np.testing.assert_allclose(draws.log_evidence, exact, atol=2)
    if method == "smc":
        total = np.nansum(draws.trace["tempering_increment"], axis=1) + problem.log_jacobian
        np.testing.assert_allclose(draws.log_evidence, total, rtol=1e-10)
        return
    for name in ("ess", "n_ancestors", "log_evidence_increment"):
        assert draws.trace[name].shape == (2, 5)
    total = draws.trace["log_evidence_increment"].sum(axis=1) + problem.log_jacobian
    np.testing.assert_allclose(draws.log_evidence, total, rtol=1e-10)
    assert np.all((draws.trace["n_ancestors"] >= 1) & (draws.trace["n_ancestors"] <= 100))
    assert (draws.n_dipoles_pmf is None) == (method == "particle_smoother")


@pytest.mark.parametrize("method", METHODS)
def test_a_file_holds_the_whole_posterior(posterior_of, method, tmp_path):
    posterior = posterior_of(method)
    path = tmp_path / "tracks.nc"
    posterior.save(path)
    again = be.load(path)
    assert again.method == method and again.status is posterior.status
    for field in dataclasses.fields(posterior.draws):
        one, two = getattr(posterior.draws, field.name), getattr(again.draws, field.name)
        if field.name == "trace":
            assert set(one) == set(two)
            for name in one:
                np.testing.assert_array_equal(one[name], two[name])
        elif one is None:
            assert two is None
        else:
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(again.n_dipoles_pmf, posterior.n_dipoles_pmf)
    np.testing.assert_array_equal(again.problem.data, posterior.problem.data)
    assert again.model.birth_prob == posterior.model.birth_prob


# ---------------------------------------------------------------- verdicts


@pytest.mark.slow
def test_dipoles_that_fill_all_slots_are_told(posterior_of):
    posterior = posterior_of("particle_filter")
    assert posterior.status is Status.TOO_MANY_DIPOLES
    assert posterior.n_dipoles_pmf[:, -1].max() > 0.05


@pytest.mark.slow
def test_runs_that_differ_are_told(toy):
    """Data far beyond the moments of the model: each run is caught by its own early births."""
    problem, model = toy
    loud = dataclasses.replace(problem, data=20 * problem.data)
    with pytest.raises(be.InferenceError, match="RUNS_DISAGREE.*raise n_particles") as told:
        infer(model, loud, throw=True, n_runs=8)
    posterior = told.value.posterior
    assert told.value.status is posterior.status is Status.RUNS_DISAGREE
    assert np.std(posterior.draws.log_evidence) > 3


def test_a_lead_field_that_is_no_number_is_told(toy):
    problem, model = toy
    lead_field = problem.lead_field.copy()
    lead_field[0, 2] = np.nan
    broken = dataclasses.replace(problem, lead_field=lead_field)
    with pytest.raises(be.InferenceError, match="NOT_FINITE") as told:
        infer(model, broken, throw=True)
    assert told.value.status is told.value.posterior.status is Status.NOT_FINITE


@pytest.mark.slow
def test_collapse_is_told():
    """Two particles are less than two effective ones whenever their weights differ."""
    problem, model = track_oracle.toy_two(1)
    with pytest.raises(be.InferenceError, match="PARTICLES_COLLAPSED.*raise n_particles") as told:
        infer(model, problem, throw=True, n_particles=2, n_runs=4)
    posterior = told.value.posterior
    assert told.value.status is posterior.status is Status.PARTICLES_COLLAPSED
    assert posterior.draws.trace["ess"].min() < 2


@pytest.mark.slow
def test_one_dipole_at_most_is_no_truncation():
    """With max_dipoles=1 the model says that there is one: all slots held is an answer."""
    problem, model = track_oracle.toy_one(1)
    posterior = infer(model, problem, n_particles=500)
    assert posterior.n_dipoles_pmf[:, -1].max() > 0.05
    assert posterior.status is Status.OK


@pytest.mark.slow
def test_a_key_decides():
    problem, model = track_oracle.toy_two(1)
    told = [
        be.infer(
            model, problem, jax.random.key(seed), "particle_smoother", progress=False, throw=False,
            **QUICK["particle_smoother"],
        )
        for seed in (0, 0, 1)
    ]  # fmt: skip
    places = [posterior.draws.places for posterior in told]
    np.testing.assert_array_equal(places[0], places[1])
    assert not np.array_equal(places[0], places[2])
