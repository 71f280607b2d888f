"""What a posterior answers: identities, exact moments, files."""

import dataclasses

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import bayes_esi as be
from bayes_esi.posterior.credible import credible_set
from bayes_esi.posterior.matching import match

# One number of particles for all runs of this file: they compile once.
OPTIONS = {"n_particles": 150, "n_runs": 2, "progress": False, "throw": False}


@pytest.fixture(scope="module")
def posterior():
    rng = np.random.default_rng(1)
    pos = rng.uniform(-0.05, 0.05, (30, 3))
    distance = np.linalg.norm(pos[:, None] - pos, axis=2)
    smooth = np.linalg.cholesky(np.exp(-0.5 * (distance / 0.03) ** 2) + 1e-9 * np.eye(30))
    lead_field = np.einsum("ij,rjd->rid", smooth, rng.standard_normal((12, 30, 3)))
    data = lead_field[:, 3] @ rng.standard_normal((3, 5)) + rng.standard_normal((12, 5))
    groups = ["meg"] * 6 + ["eeg"] * 6
    problem = be.Problem.from_arrays(data, lead_field, pos, noise_groups=groups)
    model = be.StaticDipoles(1.0, 3, moment_std=dist.HalfNormal(2.0))
    return be.infer(model, problem, **OPTIONS)


def test_pmf_intensity_and_regions_agree(posterior):
    pmf, intensity = posterior.n_dipoles_pmf, posterior.intensity
    assert pmf.sum() == pytest.approx(1)
    assert intensity.sum() == pytest.approx(pmf @ np.arange(4))
    assert posterior.prob_in(np.ones(30, bool)) == pytest.approx(1 - pmf[0])
    assert posterior.prob_in(np.zeros(30, bool)) == 0
    volumes = [posterior.credible_volume(level) for level in (0.5, 0.9, 0.99)]
    assert volumes == sorted(volumes)


def test_each_draw_has_each_dipole_once(posterior):
    labels = posterior.labels
    for row in labels:
        used = row[row >= 0]
        assert len(set(used)) == len(used)
    total = sum(dipole.probability for dipole in posterior.dipoles())
    assert total <= posterior.intensity.sum() + 1e-9
    for dipole in posterior.dipoles():
        assert dipole.place_pmf.sum() == pytest.approx(1)
        assert dipole.place_pmf[dipole.credible_set].sum() >= 0.95 - 1e-9
        assert dipole.moment_mean.shape == dipole.moment_std.shape == (3, 5)
        assert np.all(np.linalg.eigvalsh(dipole.pos_cov) > 0)


def test_moments_are_the_dense_gaussian_conditional(posterior):
    problem = posterior.problem
    draw = int(np.argmax(posterior.draws.active.sum(axis=2).ravel()))
    moments = posterior.moments_of(np.array([draw]))
    places = posterior.draws.places.reshape(-1, 3)[draw]
    active = posterior.draws.active.reshape(-1, 3)[draw]
    variance = posterior.draws.moment_std.ravel()[draw] ** 2
    noise = posterior.draws.noise_std.reshape(-1, 2)[draw][problem.noise_group] ** 2
    field = problem.lead_field[:, places[active]].reshape(len(noise), -1) / problem.moment_unit
    marginal = variance * field @ field.T + np.diag(noise)
    gain = variance * field.T @ np.linalg.inv(marginal)
    mean = (gain @ problem.data).reshape(active.sum(), 3, -1)
    cov = variance * (np.eye(field.shape[1]) - gain @ field)
    np.testing.assert_allclose(moments.mean[0, active], mean, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(moments.std[0, active].ravel(), np.sqrt(np.diag(cov)), rtol=1e-7)
    # And the marginal likelihood of the sampler is that of this Gaussian, sample by sample.
    whole = moments.log_likelihood.sum() + problem.log_jacobian
    assert whole == pytest.approx(posterior.draws.log_likelihood.ravel()[draw], abs=1e-8)


def test_arviz_groups(posterior):
    tree = posterior.to_datatree(n_draws=20)
    groups = [
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "observed_data",
        "log_likelihood",
    ]
    assert [name.strip("/") for name in tree.groups[1:]] == groups
    assert tree["posterior"].sizes["chain"] == 2 and tree["posterior"].sizes["draw"] == 20
    sampled = tree["posterior"]["n_dipoles"].values
    assert np.array_equal((tree["posterior"]["place"].values >= 0).sum(axis=2), sampled)
    totals = tree["log_likelihood"]["data"].sum("time").values
    np.testing.assert_allclose(totals, tree["sample_stats"]["log_likelihood"].values, atol=1e-6)
    assert tree["posterior_predictive"]["data"].dims == ("chain", "draw", "channel", "time")
    assert posterior.diagnostics().loc["n_dipoles", "r_hat"] is not None


def test_diagnostics_of_a_number_that_never_varies(posterior):
    active = np.zeros_like(posterior.draws.active)
    active[..., 0] = True
    draws = dataclasses.replace(posterior.draws, active=active)
    table = dataclasses.replace(posterior, draws=draws).diagnostics()
    assert np.isnan(float(table.loc["n_dipoles", "r_hat"]))


def test_file_round_trip_and_damage(posterior, tmp_path):
    path = tmp_path / "posterior.nc"
    posterior.save(path)
    again = be.load(path)
    assert again.log_evidence == posterior.log_evidence and again.status is posterior.status
    assert np.array_equal(again.intensity, posterior.intensity)
    assert again.model.moment_std.scale == 2.0
    for one, other in zip(again.dipoles(), posterior.dipoles(), strict=True):
        assert np.array_equal(one.moment_mean, other.moment_mean)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        be.load(path)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(ValueError, match="damaged"):
        be.load(path)
    import xarray as xr

    foreign = tmp_path / "foreign.nc"
    xr.Dataset({"x": ("n", np.arange(3))}).to_netcdf(foreign, engine="h5netcdf")
    with pytest.raises(ValueError, match="was not written by"):
        be.load(foreign)
    with pytest.raises(ValueError, match="not a file"):
        be.load(tmp_path / "none.nc")
    with pytest.raises(ValueError, match="folder"):
        posterior.save(tmp_path / "none" / "x.nc")


def test_a_posterior_without_dipoles_answers_too(posterior):
    draws = dataclasses.replace(posterior.draws, active=np.zeros_like(posterior.draws.active))
    empty = dataclasses.replace(posterior, draws=draws)
    assert empty.dipoles() == [] and len(empty.summary()) == 0
    assert empty.n_dipoles_pmf[0] == pytest.approx(1) and empty.credible_volume(0.9) == 0


def test_matching_names_dipoles_across_orders_of_slots():
    rng = np.random.default_rng(0)
    pos = np.concatenate([c + 0.002 * rng.standard_normal((5, 3)) for c in np.eye(3) * 0.05])
    places = np.array(
        [rng.permutation([rng.integers(5) + 5 * c for c in range(3)]) for _ in range(200)]
    )
    active = np.ones_like(places, bool)
    active[:20, 2] = False
    slots = match(places, active, np.full(200, 1 / 200), pos, np.zeros(200))
    assert slots.shape == (200, 3)
    for label in range(3):
        has = slots[:, label] >= 0
        clusters = places[has, slots[has, label]] // 5
        assert len(set(clusters)) == 1


def test_credible_sets_are_smallest():
    mass = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
    assert credible_set(mass, 0.7).tolist() == [1, 3]
    assert credible_set(mass, 0.71).tolist() == [1, 3, 4]
    assert credible_set(np.zeros(4), 0.9).size == 0
    with pytest.raises(ValueError, match="level"):
        credible_set(mass, 1.5)


def test_arguments_are_checked_before_anything_is_computed(posterior):
    problem, model = posterior.problem, be.StaticDipoles()
    for arguments, message in [
        ({"method": "guess"}, "method must be one of"),
        ({"key": 0}, "key must be a typed PRNG key"),
        ({"n_partcles": 5}, "option of smc"),
        ({"n_particles": 0}, "n_particles"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
        ({"memory_limit": -1}, "memory_limit"),
    ]:
        with pytest.raises(ValueError, match=message):
            be.infer(model, problem, progress=False, **arguments)
    with pytest.raises(ValueError, match="problem must be a Problem"):
        be.infer(model, "problem")
    with pytest.raises(ValueError, match="model must be one of"):
        be.infer("model", problem)
    assert be.methods(model) == ["smc", "reversible_jump", "enumerate"]


@pytest.mark.slow
def test_the_same_key_gives_the_same_bits_and_evidence_compares(posterior):
    one, two = (
        be.infer(posterior.model, posterior.problem, key=jax.random.key(7), **OPTIONS)
        for _ in range(2)
    )
    assert np.array_equal(one.draws.log_likelihood, two.draws.log_likelihood)
    table = be.compare({"one": one, "two": two})
    assert table["probability"].tolist() == [0.5, 0.5]
    other = dataclasses.replace(one, problem=dataclasses.replace(one.problem, ch_names=("x",) * 12))
    with pytest.raises(ValueError, match="same data"):
        be.compare({"one": one, "other": other})


def test_a_result_that_cannot_be_trusted_says_so(posterior):
    model = be.StaticDipoles(5.0, 2, moment_std=1.0, noise_std=0.3)
    options = {"n_particles": 64, "n_runs": 2, "progress": False}
    with pytest.raises(be.InferenceError, match="TOO_MANY_DIPOLES.*raise max_dipoles") as caught:
        be.infer(model, posterior.problem, **options)
    assert caught.value.posterior.status is be.Status.TOO_MANY_DIPOLES
    stalled = be.infer(posterior.model, posterior.problem, max_steps=2, **OPTIONS)
    assert stalled.status is be.Status.TEMPERING_STALLED
