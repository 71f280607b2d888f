"""What a posterior of tracks answers: draws made by hand, whose every law is known."""

import dataclasses

import numpy as np
import numpyro.distributions as dist
import pytest

import bayes_esi as be
from bayes_esi.core import ports
from bayes_esi.io import netcdf
from bayes_esi.io.mne import source_estimate, tracks_to_mne
from bayes_esi.models.dynamic_dipoles import DynamicDipoles
from bayes_esi.posterior.archive import to_archive
from bayes_esi.posterior.track_estimate import moments_of_life
from bayes_esi.posterior.track_moments import fitted_field
from bayes_esi.posterior.tracks import TrackDraws, TrackPosterior

N_TIMES, N_SLOTS, N_DRAWS = 20, 3, 100
TIMES = 0.05 + 0.01 * np.arange(N_TIMES)
SHARES = np.array([0.75, 0.25])  # of the evidence of two runs
# Three clusters of five places each, 1 mm apart within and more than 8 cm between.
POS = np.concatenate([c + np.linspace(0, 0.004, 5)[:, None] for c in np.eye(3) * 0.06])


def make_problem(rng, normals=None, n_times=N_TIMES):
    lead_field = rng.standard_normal((12, len(POS), 3))
    data = 2e-9 * lead_field[:, 1] @ rng.standard_normal((3, n_times))
    data = data + 1e-9 * rng.standard_normal(data.shape)
    return be.Problem.from_arrays(
        data,
        lead_field,
        POS,
        1e-18 * np.diag(rng.uniform(0.5, 2, 12)),
        source_normals=normals,
        times=TIMES[:n_times],
        source_volume=1e-9 * np.arange(1, len(POS) + 1),
        noise_groups=["meg"] * 6 + ["eeg"] * 6,
    )


def make_draws(rng, places, is_new, log_evidence, n_groups=2):
    shape = places.shape[:2]
    return TrackDraws(
        places=places,
        is_new=is_new,
        moment_std=2e-9 * rng.uniform(0.5, 2, shape),
        noise_std=rng.uniform(0.8, 1.2, (*shape, n_groups)),
        birth_prob=rng.uniform(0.01, 0.1, shape),
        death_prob=rng.uniform(0.01, 0.1, shape),
        log_likelihood=rng.standard_normal(shape),
        log_evidence=np.asarray(log_evidence, float),
        trace={"ess": rng.uniform(1, 50, (shape[0], N_TIMES)), "n_steps": np.arange(shape[0])},
    )


@pytest.fixture(scope="module")
def posterior():
    """One clear dipole in one of two runs, one of uncertain birth in all, one in a draw of ten."""
    rng = np.random.default_rng(0)
    places = np.full((2, N_DRAWS, N_TIMES, N_SLOTS), -1)
    is_new = np.zeros(places.shape, bool)
    for run in range(2):
        for i in range(N_DRAWS):
            slots = rng.permutation(N_SLOTS)
            lives = [(8 + i % 4, N_TIMES, 5 + (i % 10 > 6) + (i % 10 > 8))]
            lives += [(3, 13, 0)] if run == 0 else []
            lives += [(1, 4, 10)] if i % 10 == 3 else []
            for slot, (birth, death, place) in zip(slots, lives, strict=False):
                places[run, i, birth:death, slot] = place
                is_new[run, i, birth, slot] = True
    draws = make_draws(rng, places, is_new, np.log(SHARES) - 40)
    model = DynamicDipoles(max_dipoles=N_SLOTS)
    return TrackPosterior(make_problem(rng), model, "particle_smoother", draws, be.Status.OK)


def tracks_by_cluster(posterior):
    return {int(np.argmax(t.place_pmf)) // 5: t for t in posterior.tracks()}


def test_evidence_and_weights_of_runs(posterior):
    assert posterior.n_runs == 2
    np.testing.assert_allclose(posterior.run_weights, SHARES)
    assert posterior.log_evidence == pytest.approx(-40 - np.log(2))
    assert posterior.log_evidence_std == pytest.approx(np.log(3) / 2)

    def with_evidence(values):
        draws = dataclasses.replace(posterior.draws, log_evidence=np.array(values))
        return dataclasses.replace(posterior, draws=draws)

    without = with_evidence([np.nan, np.nan])
    assert np.isnan(without.log_evidence) and np.isnan(without.log_evidence_std)
    np.testing.assert_array_equal(without.run_weights, 0.5)
    collapsed = with_evidence([-np.inf, -3.0])
    np.testing.assert_array_equal(collapsed.run_weights, [0, 1])
    assert np.isnan(collapsed.log_evidence_std)
    assert "particle_smoother, OK" in repr(posterior)


def test_numbers_over_time(posterior):
    clear = ((np.arange(N_TIMES) >= 3) & (np.arange(N_TIMES) < 13)) * 0.75
    late = np.clip((np.arange(N_TIMES) - 7) / 4, 0, 1)
    rare = ((np.arange(N_TIMES) >= 1) & (np.arange(N_TIMES) < 4)) * 0.1
    expected = np.zeros((N_TIMES, N_SLOTS + 1))
    for bits in range(8):
        is_there = [(bits >> k) & 1 for k in range(3)]
        laws = [
            p if there else 1 - p for p, there in zip((clear, late, rare), is_there, strict=True)
        ]
        # Independent at each sample: the clear one is of a run, the rare one in a tenth of either
        # run, and it is dead while the birth of the late one is uncertain.
        expected[:, sum(is_there)] += np.prod(laws, axis=0)
    np.testing.assert_allclose(posterior.n_dipoles_pmf, expected, atol=1e-12)


def test_intensity_births_and_deaths(posterior):
    expected = np.zeros((N_TIMES, len(POS)))
    expected[3:13, 0] = 0.75
    expected[1:4, 10] = 0.1
    births, deaths = np.zeros(N_TIMES), np.zeros(N_TIMES)
    for i in range(20):  # all remainders of 4 and of 10
        expected[8 + i % 4 :, 5 + (i % 10 > 6) + (i % 10 > 8)] += 1 / 20
    births[[1, 3]], births[8:12] = [0.1, 0.75], 0.25
    deaths[[4, 13]] = [0.1, 0.75]
    np.testing.assert_allclose(posterior.intensity, expected, atol=1e-12)
    np.testing.assert_allclose(posterior.birth_intensity, births, atol=1e-12)
    np.testing.assert_allclose(posterior.death_intensity, deaths, atol=1e-12)


@pytest.mark.slow
def test_a_rebirth_in_the_same_slot_is_a_death_and_a_birth(posterior):
    places = np.full((1, 1, N_TIMES, 1), 3)
    is_new = np.zeros(places.shape, bool)
    is_new[0, 0, [0, 6]] = True
    draws = make_draws(np.random.default_rng(0), places, is_new, [0.0])
    again = dataclasses.replace(posterior, draws=draws)
    np.testing.assert_array_equal(np.flatnonzero(again.birth_intensity), [0, 6])
    np.testing.assert_array_equal(np.flatnonzero(again.death_intensity), [6])
    assert [(t.birth, t.death) for t in again.tracks()].count((TIMES[0], TIMES[5])) == 1


def test_what_a_filter_knows_comes_first(posterior):
    rng = np.random.default_rng(0)
    pmf, intensity = rng.random((N_TIMES, N_SLOTS + 1)), rng.random((N_TIMES, len(POS)))
    draws = dataclasses.replace(posterior.draws, n_dipoles_pmf=pmf, intensity=intensity)
    filtered = dataclasses.replace(posterior, draws=draws, method="particle_filter")
    assert filtered.n_dipoles_pmf is pmf and filtered.intensity is intensity
    np.testing.assert_array_equal(filtered.birth_intensity, posterior.birth_intensity)


def test_lives_have_the_laws_they_were_drawn_from(posterior):
    tracks = tracks_by_cluster(posterior)
    assert sorted(tracks) == [0, 1, 2]
    clear, late, rare = (tracks[k] for k in range(3))
    np.testing.assert_allclose(
        [clear.probability, late.probability, rare.probability], [0.75, 1, 0.1]
    )
    for track, birth, last in ((clear, 3, 12), (rare, 1, 3)):
        np.testing.assert_allclose(track.birth_pmf, np.eye(N_TIMES)[birth], atol=1e-12)
        np.testing.assert_allclose(track.death_pmf, np.eye(N_TIMES + 1)[last + 1], atol=1e-12)
        assert track.birth == pytest.approx(TIMES[birth]) and track.death == pytest.approx(
            TIMES[last]
        )
        assert track.birth_interval == (TIMES[birth], TIMES[birth])
        assert track.death_interval == (TIMES[last], TIMES[last])
        alive = (np.arange(N_TIMES) >= birth) & (np.arange(N_TIMES) <= last)
        np.testing.assert_allclose(track.prob_alive, alive, atol=1e-12)
        assert np.all(np.isnan(track.moment_mean[:, ~alive]))
        assert np.all(np.isfinite(track.moment_mean[:, alive])) and np.all(
            track.moment_std[:, alive] > 0
        )
    np.testing.assert_allclose(late.birth_pmf[8:12], 0.25)
    assert late.birth == pytest.approx(TIMES[8:12].mean())
    assert late.birth_interval == (TIMES[8], TIMES[11])
    assert late.death_pmf[N_TIMES] == pytest.approx(1) and late.death == pytest.approx(TIMES[-1])
    np.testing.assert_allclose(late.prob_alive[8:12], [0.25, 0.5, 0.75, 1])


def test_places_have_the_laws_they_were_drawn_from(posterior):
    late = tracks_by_cluster(posterior)[1]
    law = np.zeros(len(POS))
    law[5:8] = [0.7, 0.2, 0.1]
    np.testing.assert_allclose(late.place_pmf, law, atol=1e-12)
    assert late.credible_set.tolist() == [5, 6, 7]
    assert late.credible_volume == pytest.approx((6 + 7 + 8) * 1e-3)
    np.testing.assert_allclose(late.pos, law @ POS)
    np.testing.assert_array_equal(late.path, np.tile(late.pos, (N_TIMES, 1)))
    between = np.cov(POS.T, aweights=law, bias=True)
    within = law @ posterior.problem.cell_variance * np.eye(3)
    np.testing.assert_allclose(late.pos_cov, between + within, atol=1e-15)


def test_volumes_and_regions(posterior):
    # At sample 12 the clear one counts 0.75 and the late one 0.7, 0.2, 0.1.
    volume = posterior.problem.source_volume * 1e6
    assert posterior.credible_volume(0.4, TIMES[12]) == pytest.approx(volume[0])
    assert posterior.credible_volume(0.8, TIMES[12]) == pytest.approx(volume[[0, 5]].sum())
    assert posterior.credible_volume(0.95) == pytest.approx(volume[[0, 5, 6, 7]].sum())
    everywhere = np.ones(len(POS), bool)
    assert posterior.prob_in(everywhere) == pytest.approx(1)
    assert posterior.prob_in(everywhere, TIMES[4], TIMES[7]) == pytest.approx(0.75)
    assert posterior.prob_in([5, 6], tmax=TIMES[8]) == pytest.approx(0.25)
    assert posterior.prob_in([6]) == pytest.approx(0.2)
    # At least one of two: a tenth of the draws has the rare one, run 0 has the clear one.
    assert posterior.prob_in([0, 10]) == pytest.approx(0.75 + 0.25 * 0.1)
    assert posterior.prob_in([0], tmin=TIMES[13]) == 0
    assert posterior.sample_at(0.0999) == 5


def test_names_are_free_of_slots_and_order(posterior):
    rng = np.random.default_rng(3)
    draws = posterior.draws
    order = rng.permutation(N_DRAWS)
    slots = np.array([[rng.permutation(N_SLOTS) for _ in order] for _ in range(2)])
    moved = {
        name: np.take_along_axis(getattr(draws, name)[:, order], slots[:, :, None], axis=3)
        for name in ("places", "is_new")
    }
    others = ("moment_std", "noise_std", "birth_prob", "death_prob", "log_likelihood")
    moved |= {name: getattr(draws, name)[:, order] for name in others}
    again = dataclasses.replace(posterior, draws=dataclasses.replace(draws, **moved))
    for one, other in zip(posterior.tracks(), again.tracks(), strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_allclose(
                getattr(other, field.name),
                getattr(one, field.name),
                rtol=1e-8,
                atol=1e-14,
                err_msg=field.name,
            )


def dense_moments(problem, field, frames, places, is_new, moment_std, noise_std, persistence):
    """Posterior of all moments at once: {(time, slot): (mean, cov)} along axes, in A·m."""
    cells = [tuple(c) for c in np.argwhere(places >= 0)]
    birth = {}
    for t, s in cells:
        birth[t, s] = t if is_new[t, s] else birth[t - 1, s]
    d, rank = field.shape[2], len(field)
    n = len(cells)
    prior, design = np.zeros((n * d, n * d)), np.zeros((rank * problem.n_times, n * d))
    for i, (t, s) in enumerate(cells):
        own = slice(i * d, (i + 1) * d)
        design[t * rank : (t + 1) * rank, own] = field[:, places[t, s]] / problem.moment_unit
        for j, (u, v) in enumerate(cells):
            if s == v and birth[t, s] == birth[u, v]:
                block = moment_std**2 * persistence ** abs(t - u) * np.eye(d)
                prior[own, j * d : (j + 1) * d] = block
    noise = np.tile(noise_std[problem.noise_group] ** 2, problem.n_times)
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + np.diag(noise))
    mean, cov = gain @ problem.data.T.ravel(), prior - gain @ design @ prior
    told = {}
    for i, (t, s) in enumerate(cells):
        own, frame = slice(i * d, (i + 1) * d), frames[places[t, s]]
        told[t, s] = frame @ mean[own], frame @ cov[own, own] @ frame.T
    return told, (design @ mean).reshape(problem.n_times, rank).T


@pytest.mark.parametrize(("loose", "motion"), [(1.0, 0.01), (0.3, "static"), (0.0, "static")])
def test_moments_are_the_dense_gaussian_conditional(loose, motion):
    rng = np.random.default_rng(4)
    normals = rng.standard_normal((len(POS), 3))
    n_times, n_draws = 7, 27  # more than are computed together
    problem = make_problem(rng, normals, n_times)
    places = np.full((1, n_draws, n_times, 4), -1)
    is_new = np.zeros(places.shape, bool)
    walk = [3, 4, 3, 2, 2, 1] if motion != "static" else 3
    for i in range(n_draws):
        # Overlaps, a rebirth without a gap, a slot that nobody uses, a dipole until the end.
        for slot, birth, death, place in ((0, 0, 3, i % 15), (0, 3, 5, 9), (2, 1, 7, walk)):
            places[0, i, birth:death, slot] = place
            is_new[0, i, birth, slot] = True
    draws = make_draws(rng, places, is_new, [0.0])
    model = DynamicDipoles(max_dipoles=4, moment_persistence=0.8, motion=motion, loose=loose)
    posterior = TrackPosterior(problem, model, "particle_gibbs", draws, be.Status.OK)
    moments = posterior.moments_of(np.arange(n_draws))
    design = posterior.design
    for i in (0, n_draws - 1):
        noise_std = draws.noise_std[0, i]
        told, fitted = dense_moments(
            problem,
            design.lead_field,
            design.frames,
            places[0, i],
            is_new[0, i],
            draws.moment_std[0, i],
            noise_std,
            0.8,
        )
        for t in range(n_times):
            for slot in range(4):
                mean, cov = told.get((t, slot), (np.zeros(3), np.zeros((3, 3))))
                scale = draws.moment_std[0, i]
                np.testing.assert_allclose(moments.mean[i, t, slot], mean, atol=1e-10 * scale)
                std = np.sqrt(np.diag(cov))
                np.testing.assert_allclose(moments.std[i, t, slot], std, atol=1e-7 * scale)
                own = problem.lead_field[:, places[0, i, t, slot]] @ mean / problem.moment_unit
                power = np.sum((own / noise_std[problem.noise_group]) ** 2)
                assert moments.power[i, t, slot] == pytest.approx(power, rel=1e-8, abs=1e-12)
        ours = fitted_field(problem, design, places[0, i], moments.components[i])
        np.testing.assert_allclose(ours, fitted, atol=1e-9)


def test_variance_is_within_and_between_draws():
    is_alive = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], bool)
    means = np.array([1.0, 3.0, 7.0])[:, None, None] * np.ones((3, 4, 1))
    stds = np.array([0.5, 1.0, 2.0])[:, None, None] * np.ones((3, 4, 1))
    powers = np.ones((3, 4))
    # The third draw counts only where it is alone.
    mean, std, power = moments_of_life(is_alive, np.array([0.6, 0.2, 0.0]), means, stds, powers)
    np.testing.assert_allclose(mean, [[1.0, 1.5, 7.0, np.nan]])
    within, between = 0.75 * 0.25 + 0.25 * 1.0, 0.75 * 0.5**2 + 0.25 * 1.5**2
    np.testing.assert_allclose(std, [[0.5, np.sqrt(within + between), 2.0, np.nan]])
    assert power == pytest.approx(0.75 * 2 + 0.25 * 1)
    assert moments_of_life(is_alive[2:], np.zeros(1), means[2:], stds[2:], powers[2:])[2] == 2


def test_tracks_average_the_moments_of_their_draws(posterior):
    # All 200 pooled draws have their moments computed here, each with its own weight.
    moments = posterior.moments_of(np.arange(2 * N_DRAWS))
    weights = np.repeat(SHARES / N_DRAWS, N_DRAWS)
    places = posterior.draws.places.reshape(-1, N_TIMES, N_SLOTS)
    here = (places[:, 10] >= 5) & (places[:, 10] < 10)
    draws, slots = np.nonzero(here)
    share = weights[draws] / weights[draws].sum()
    means, stds = moments.mean[draws, 10, slots], moments.std[draws, 10, slots]
    late = tracks_by_cluster(posterior)[1]
    np.testing.assert_allclose(late.moment_mean[:, 10], share @ means)
    second = share @ (means**2 + stds**2)
    np.testing.assert_allclose(late.moment_std[:, 10] ** 2, second - (share @ means) ** 2)
    powers = [t.probability * t.explained_power for t in posterior.tracks()]
    assert powers == sorted(powers, reverse=True)
    power = np.where(np.isin(places, [5, 6, 7]), moments.power, 0.0).sum(axis=(1, 2))
    assert late.explained_power == pytest.approx(weights @ power)


def test_members_are_the_lives_of_tracks(posterior):
    members, lives = posterior.members, posterior.lives
    assert members.shape == (2 * N_DRAWS, 3)
    weights = np.repeat(SHARES / N_DRAWS, N_DRAWS)
    for track, column in zip(posterior.tracks(), members.T, strict=True):
        has = column >= 0
        assert np.array_equal(lives.draw[column[has]], np.flatnonzero(has))
        assert weights[has].sum() == pytest.approx(track.probability)


def test_a_walk_is_told_over_its_life(posterior):
    places = np.full((1, 2, N_TIMES, 1), -1)
    is_new = np.zeros(places.shape, bool)
    places[0, 0, 2:6, 0] = [0, 0, 1, 2]
    places[0, 1, 4:6, 0] = [1, 1]
    is_new[0, 0, 2, 0] = is_new[0, 1, 4, 0] = True
    draws = make_draws(np.random.default_rng(5), places, is_new, [np.nan])
    model = dataclasses.replace(posterior.model, motion=0.003)
    (track,) = TrackPosterior(
        posterior.problem, model, "particle_gibbs", draws, be.Status.OK
    ).tracks()
    # Half the draws spend 2, 1, 1 of 4 samples at places 0, 1, 2; half spend all at place 1.
    np.testing.assert_allclose(track.place_pmf[:3], [0.25, 0.125 + 0.5, 0.125])
    np.testing.assert_allclose(track.path[2:6], [POS[0], POS[0], POS[1], (POS[1] + POS[2]) / 2])
    assert np.all(np.isnan(track.path[[0, 1, 6, 19]]))
    np.testing.assert_allclose(track.prob_alive[1:7], [0, 0.5, 0.5, 1, 1, 0])


def test_summary_tells_every_track(posterior):
    table = posterior.summary()
    assert len(table) == 3 and table.index.name == "track"
    late = tracks_by_cluster(posterior)[1]
    row = table.iloc[[t is late for t in posterior.tracks()].index(True)]
    assert row["birth_low_s"] == TIMES[8] and row["birth_high_s"] == TIMES[11]
    assert row["x_mm"] == pytest.approx(1e3 * late.pos[0])
    assert np.all(np.isfinite(table.to_numpy()))
    weights = np.repeat(SHARES / N_DRAWS, N_DRAWS)
    assert table.attrs["birth_prob"] == pytest.approx(weights @ posterior.draws.birth_prob.ravel())
    assert -1 < table.attrs["residual_autocorrelation"] < 1


def test_fitted_is_the_mean_over_draws(posterior):
    moments = posterior.moments_of(np.arange(2 * N_DRAWS))
    weights = np.repeat(SHARES / N_DRAWS, N_DRAWS)
    places = posterior.draws.places.reshape(-1, N_TIMES, N_SLOTS)
    expected = np.zeros_like(posterior.problem.data)
    for draw, time, slot in np.argwhere(places >= 0):
        own = posterior.problem.lead_field[:, places[draw, time, slot]]
        moment = moments.mean[draw, time, slot] / posterior.problem.moment_unit
        expected[:, time] += weights[draw] * own @ moment
    np.testing.assert_allclose(posterior.fitted, expected, atol=1e-10)


def test_many_draws_have_their_moments_where_the_evidence_is(posterior):
    draws = posterior.draws
    times = 12  # 2 x 1,200 draws
    tiled = {
        f.name: np.tile(
            getattr(draws, f.name), (1, times) + (1,) * (getattr(draws, f.name).ndim - 2)
        )
        for f in dataclasses.fields(draws)
        if f.name not in ("log_evidence", "trace", "n_dipoles_pmf", "intensity")
    }
    tiled["log_evidence"] = np.array([0.0, -100.0])
    many = dataclasses.replace(posterior, draws=dataclasses.replace(draws, **tiled))
    chosen, shares = many._moment_draws
    assert shares.sum() == pytest.approx(1) and np.all(chosen[shares > 0] < times * N_DRAWS)
    assert 200 <= len(chosen) <= 210
    for one, other in zip(many.tracks(), posterior.tracks(), strict=True):
        alive = one.prob_alive > 0
        assert np.array_equal(alive, other.prob_alive > 0)
        assert np.all(np.isfinite(one.moment_mean[:, alive]))


def test_arviz_groups(posterior):
    tree = posterior.to_datatree(n_draws=10)
    groups = [
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    ]
    assert [name.strip("/") for name in tree.groups[1:]] == groups
    sampled = tree["posterior"]
    assert sampled.sizes["chain"] == 2 and sampled.sizes["draw"] == 10
    assert np.array_equal((sampled["place"] >= 0).sum("slot").values, sampled["n_dipoles"].values)
    assert tree["sample_stats"]["ess"].dims == ("chain", "time")
    assert tree["sample_stats"]["n_steps"].dims == ("chain",)
    assert tree["posterior_predictive"]["data"].dims == ("chain", "draw", "channel", "time")
    # Fresh noise of the level drawn around the fitted field: the whitened residual has its power.
    whitened = np.einsum(
        "rc,ndct->ndrt", posterior.problem.whitener, tree["posterior_predictive"]["data"].values
    )
    kept = sampled["draw"].values
    pooled = (np.arange(2)[:, None] * N_DRAWS + kept).ravel()
    components = posterior.moments_of(pooled).components
    residual = []
    for noise, draw, own in zip(whitened.reshape(20, 12, N_TIMES), pooled, components, strict=True):
        places = posterior.draws.places.reshape(-1, N_TIMES, N_SLOTS)[draw]
        level = posterior.draws.noise_std.reshape(-1, 2)[draw][posterior.problem.noise_group]
        field = fitted_field(posterior.problem, posterior.design, places, own)
        residual.append((noise - field) / level[:, None])
    # 4,800 standard normal numbers: four standard errors.
    assert np.mean(np.square(residual)) == pytest.approx(1, abs=4 * np.sqrt(2 / 4800))
    observed = posterior.problem.whitener @ tree["observed_data"]["data"].values
    np.testing.assert_allclose(observed, posterior.problem.data)


def test_mne_objects(posterior, monkeypatch):
    def to_mne(posterior):
        dipoles = tracks_to_mne(posterior.problem, posterior.tracks())
        return dipoles, source_estimate(posterior.problem, posterior.intensity.T)

    monkeypatch.setitem(ports._verbs, ("TrackPosterior", "to_mne"), to_mne)
    dipoles, movie = posterior.to_mne()
    np.testing.assert_array_equal(movie.data, posterior.intensity.T)
    np.testing.assert_allclose(movie.times, TIMES)
    for dipole, track in zip(dipoles, posterior.tracks(), strict=True):
        # The late one counts from the sample at which half the draws have it.
        first = np.flatnonzero(track.prob_alive >= 0.5)[0]
        assert dipole.times[0] == TIMES[first] and dipole.times[-1] == pytest.approx(track.death)
        np.testing.assert_allclose(dipole.pos, np.tile(track.pos, (len(dipole.times), 1)))
        moment = dipole.amplitude * dipole.ori.T
        own = track.moment_mean[:, first : first + len(dipole.times)]
        np.testing.assert_allclose(moment, own, rtol=1e-10)


@pytest.mark.slow
def test_diagnostics_compare_runs(posterior):
    table = posterior.diagnostics()
    rows = [name for name in table.index if name.startswith("n_dipoles[")]
    assert len(rows) == 5
    # Only one run has the clear dipole: at samples where it lives, runs disagree.
    assert float(table.loc["n_births", "r_hat"]) > 1.5
    for name in ("log_likelihood", "moment_std_nAm", "noise_std[meg]", "birth_prob"):
        assert float(table.loc[name, "r_hat"]) < 1.1


@pytest.mark.slow
def test_file_round_trip(posterior, tmp_path):
    changes = {"birth_prob": dist.Beta(1.0, 20.0), "motion": 0.004, "noise_std": 1.0}
    for change in ({}, changes):
        model = dataclasses.replace(posterior.model, **change)
        before = dataclasses.replace(posterior, model=model, status=be.Status.RUNS_DISAGREE)
        netcdf.write(to_archive(before), tmp_path / "tracks.nc")
        after = be.load(tmp_path / "tracks.nc")
        assert isinstance(after, TrackPosterior) and after.status is be.Status.RUNS_DISAGREE
        assert after.method == before.method and after.model.motion == model.motion
        assert after.model.moment_std is None and after.model.noise_std == model.noise_std
        assert after.draws.intensity is None and after.draws.n_dipoles_pmf is None
        for field in ("places", "is_new", "log_evidence", "noise_std", "death_prob"):
            stored, own = getattr(after.draws, field), getattr(before.draws, field)
            assert stored.dtype == own.dtype
            np.testing.assert_array_equal(stored, own)
        for name, values in before.draws.trace.items():
            np.testing.assert_array_equal(after.draws.trace[name], values)
        for one, other in zip(after.tracks(), before.tracks(), strict=True):
            np.testing.assert_array_equal(one.moment_mean, other.moment_mean)
            assert one.death_interval == other.death_interval
    assert after.model.birth_prob.concentration0 == 20.0


def test_nobody_at_all(posterior, tmp_path):
    draws = dataclasses.replace(
        posterior.draws,
        places=np.full_like(posterior.draws.places, -1),
        is_new=np.zeros_like(posterior.draws.is_new),
        log_evidence=np.full(2, np.nan),
    )
    empty = dataclasses.replace(posterior, draws=draws, method="particle_gibbs")
    assert empty.tracks() == [] and len(empty.summary()) == 0
    assert empty.members.shape == (2 * N_DRAWS, 0)
    np.testing.assert_allclose(empty.n_dipoles_pmf[:, 0], 1)
    assert not empty.intensity.any() and not empty.birth_intensity.any()
    assert empty.credible_volume() == 0 and empty.prob_in([0, 1]) == 0
    assert not empty.fitted.any()
    assert "0.0 births expected, most probably up to 0 dipoles" in repr(empty)
    netcdf.write(to_archive(empty), tmp_path / "empty.nc")
    again = be.load(tmp_path / "empty.nc")
    assert np.all(np.isnan(again.draws.log_evidence)) and again.tracks() == []


def test_arguments_that_make_no_sense(posterior):
    for call, message in [
        (lambda: posterior.credible_volume(1.5), "level"),
        (lambda: posterior.credible_volume(0.9, 1.0), r"time must lie between 0.05 and 0.24 s"),
        (lambda: posterior.credible_volume(0.9, np.nan), "time has 1 NaN"),
        (lambda: posterior.credible_volume(0.9, "now"), "time must"),
        (lambda: posterior.prob_in([0], 0.2, 0.1), "no sample lies between tmin = 0.2"),
        (lambda: posterior.prob_in([0], 0.3), "no sample lies between"),
        (lambda: posterior.prob_in([0], "now"), "tmin must"),
        (lambda: posterior.prob_in([99]), "source numbers"),
        (lambda: posterior.to_datatree(0), "n_draws"),
        (lambda: posterior.plot("movie"), "kind must be one of 'overview'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    is_new = np.zeros_like(posterior.draws.is_new)
    unborn = dataclasses.replace(
        posterior, draws=dataclasses.replace(posterior.draws, is_new=is_new)
    )
    with pytest.raises(ValueError, match="is_new must be true at the first sample"):
        unborn.tracks()
