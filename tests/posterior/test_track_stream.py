"""Dipoles of a stream: the filter of a whole recording, fed one sample at a time."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
import track_oracle

import bayes_esi as be
from bayes_esi.inference import particle_filter
from bayes_esi.inference.track_inference import prepare
from bayes_esi.posterior import track_stream
from bayes_esi.posterior.track_sample import Alive, TrackSample
from bayes_esi.posterior.track_stream import TrackFilter
from bayes_esi.posterior.tracks import TrackDraws, TrackPosterior

N_TIMES, N_PARTICLES = 40, 60
OPTIONS = {"n_particles": N_PARTICLES, "n_moved": 20, "longest_life": 6}
# Three clusters of five places each, 1 mm apart within and more than 8 cm between.
POS = np.concatenate([c + np.linspace(0, 0.004, 5)[:, None] for c in np.eye(3) * 0.06])
MODEL = be.DynamicDipoles(
    birth_prob=0.1,
    death_prob=0.05,
    max_dipoles=2,
    moment_std=3e-9,
    noise_std=None,
    loose=0.4,
)


def make_recording():
    """Two dipoles that overlap in time, in data units, and the problem of it."""
    rng = np.random.default_rng(4)
    m = 8
    lead_field = 1e3 * rng.standard_normal((m, len(POS), 3))
    normals = rng.standard_normal(POS.shape)
    root = rng.standard_normal((m, m)) + 2 * np.eye(m)
    group = np.arange(m) // 4
    noise_cov = 1e-12 * (root @ root.T) * (group[:, None] == group)
    recorded = np.linalg.cholesky(noise_cov) @ rng.standard_normal((m, N_TIMES))
    for place, birth, death in ((2, 5, 30), (8, 15, 36)):
        recorded[:, birth:death] += 4e-9 * lead_field[:, place] @ rng.standard_normal((3, 1))
    problem = be.Problem.from_arrays(
        recorded,
        lead_field,
        POS,
        noise_cov,
        source_normals=normals,
        times=0.3 + 0.004 * np.arange(N_TIMES),
        source_volume=1e-9 * np.arange(1, len(POS) + 1),
        noise_groups=["meg"] * 4 + ["eeg"] * 4,
    )
    return recorded, problem


def test_a_model_streams_before_anything_was_recorded():
    _, problem = make_recording()
    stream = MODEL.stream(problem, **OPTIONS)
    assert isinstance(stream, TrackFilter) and stream.n_particles == N_PARTICLES
    with pytest.raises(ValueError, match="got 'n_particle'"):
        MODEL.stream(problem, n_particle=3)


@pytest.fixture(scope="module")
def streamed():
    """A stream of forty samples, its states after 20 and after all, and what it said."""
    recorded, problem = make_recording()
    stream = TrackFilter(MODEL, problem, **OPTIONS)
    states, told = [stream.init(jax.random.key(1))], []
    for sample in recorded.T:
        state, now = stream.step(states[-1], sample)
        states.append(state)
        told.append(now)
    return recorded, problem, stream, (states[0], states[20], states[-1]), told


@pytest.fixture(scope="module")
def whole():
    """The filter of the recording, which remembers all samples."""
    _, problem = make_recording()
    target = prepare(MODEL, problem, 2**30)
    choices = particle_filter.Options(n_surveyed=2, n_moves=1, n_moved=20, longest_life=6)
    return particle_filter.run(jax.random.key(1), target, N_PARTICLES, choices)


def leaves(state):
    return [
        np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(state)
    ]


def test_the_ring_holds_the_last_samples(streamed):
    recorded, problem, stream, (*_, last), told = streamed
    whitened = problem.whitener @ recorded
    assert len(last.ring) == 7
    for t in range(N_TIMES - 7, N_TIMES):
        field = stream.design.lead_field
        wanted = np.stack(
            [
                np.einsum("rsd,r->sd", field, whitened[:, t] * (problem.noise_group == g))
                for g in range(2)
            ],
            axis=1,
        )
        np.testing.assert_allclose(last.ring[t % 7], wanted, atol=1e-12)
    total = sum(now.log_evidence_increment for now in told)
    assert total == pytest.approx(
        float(last.filtered.log_evidence) + problem.log_jacobian, abs=1e-9
    )


def test_moments_of_the_young_are_those_given_their_lives(streamed):
    """After moves through a ring that went round five times: Kalman in covariance form."""
    _, problem, stream, (*_, last), _ = streamed
    particles = jax.tree.map(np.asarray, last.filtered.particles)
    field, a, n_checked = stream.design.lead_field, MODEL.moment_persistence, 0
    for i, slot in np.argwhere((particles.places >= 0) & (particles.birth > N_TIMES - 7)):
        moment_std, noise_std = np.exp(particles.parameters[i, 0]), particles.parameters[i, 1:3]
        noise_std = np.exp(noise_std)[problem.noise_group]
        mean, cov = particles.start_mean[i, slot], particles.start_cov[i, slot]
        for t in range(particles.birth[i, slot], N_TIMES):
            held, new = (x[i, t % 7] for x in (particles.past_places, particles.past_new))
            keep = np.repeat(np.where(new | (held < 0), 0.0, a), 3)
            added = np.where(np.repeat(held >= 0, 3), moment_std**2 * (1 - keep**2), 1.0)
            mean, cov = keep * mean, keep[:, None] * cov * keep + np.diag(added)
            sees = np.where(held[None, :, None] >= 0, field[:, np.maximum(held, 0)], 0.0)
            sees = sees.reshape(len(field), -1)
            gain = np.linalg.solve(sees @ cov @ sees.T + np.diag(noise_std**2), sees @ cov).T
            mean = mean + gain @ (problem.data[:, t] - sees @ mean)
            cov = cov - gain @ sees @ cov
        np.testing.assert_allclose(particles.mean[i], mean, atol=1e-9)
        np.testing.assert_allclose(particles.cov[i], cov, atol=1e-9)
        n_checked += 1
    assert n_checked > 5


@pytest.mark.slow
def test_the_stream_is_the_filter_of_the_recording(streamed, whole):
    _, problem, _, (*_, last), told = streamed
    state, info = whole
    # The ring has 7 rows and went round five times; whoever remembers all does the same. Samples
    # are projected one at a time or together: sums in another order, 1e-16 a step.
    assert np.nansum(info.acceptance) > 0.2  # some moves went through the ring
    for name in ("n_dipoles_pmf", "intensity", "ess"):
        got = np.stack([getattr(now, name) for now in told])
        np.testing.assert_allclose(got, getattr(info, name), atol=1e-8, rtol=1e-8)
    increments = np.array([now.log_evidence_increment for now in told])
    constant = problem.log_jacobian / N_TIMES
    np.testing.assert_allclose(increments - constant, info.log_evidence_increment, atol=1e-8)
    assert increments.sum() == pytest.approx(
        float(state.log_evidence) + problem.log_jacobian, abs=1e-7
    )
    for name in ("places", "birth", "is_new", "parameters"):
        got, wanted = (getattr(s.particles, name) for s in (last.filtered, state))
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_moments_of_particles_are_those_given_their_history(streamed, whole):
    """A ring that gave a move the wrong sample would leave moments of another history."""
    _, problem, stream, (*_, last), _ = streamed
    lines = whole[0].particles
    lead_field, d = stream.design.lead_field, 3
    particles = last.filtered.particles
    for i in range(0, N_PARTICLES, 6):
        parameters = np.asarray(particles.parameters[i])
        history = (np.asarray(x[i, :N_TIMES]) for x in (lines.past_places, lines.past_new))
        _, mean, cov = track_oracle.dense_law(
            *history,
            lead_field,
            problem.data,
            np.exp(parameters[0]),
            np.exp(parameters[1:-2])[problem.noise_group],
            MODEL.moment_persistence,
        )
        held = np.asarray(particles.places[i]) >= 0
        got = np.asarray(particles.mean[i]).reshape(2, d)
        np.testing.assert_allclose(got[held], mean[-1][held], atol=1e-8)
        got = np.asarray(particles.cov[i]).reshape(2, d, 2, d)[held][:, :, held]
        np.testing.assert_allclose(got, cov[-1, :, :, -1][held][:, :, held], atol=1e-8)


def test_a_saved_state_goes_on_to_the_same_bits(streamed, tmp_path):
    recorded, problem, stream, (_, middle, last), told = streamed
    path = tmp_path / "state"
    stream.save(middle, path)
    other = TrackFilter(MODEL, problem, **OPTIONS)
    state = other.load(path)
    size = track_stream._take._cache_size()
    for t in range(20, N_TIMES):
        state, now = other.step(state, recorded[:, t])
        assert now.log_evidence_increment == told[t].log_evidence_increment
    for got, wanted in zip(leaves(state), leaves(last), strict=True):
        np.testing.assert_array_equal(got, wanted)
    # Neither another filter of the same sizes nor a state from a file compiles anything again.
    assert track_stream._take._cache_size() == size

    louder = dataclasses.replace(problem, whitener=problem.whitener * 2)
    strangers = (
        TrackFilter(dataclasses.replace(MODEL, birth_prob=0.2), problem, **OPTIONS),
        TrackFilter(MODEL, louder, **OPTIONS),
        TrackFilter(MODEL, problem, **OPTIONS | {"longest_life": 7}),
    )
    for stranger in strangers:
        with pytest.raises(ValueError, match="belongs to another run"):
            stranger.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        stream.load(path)
    with pytest.raises(ValueError, match="there is no"):
        stream.load(tmp_path / "nowhere")


def test_nothing_grows(streamed):
    recorded, _, stream, (first, *_), _ = streamed
    state, held = first, []
    for t in range(300):
        state, _ = stream.step(state, recorded[:, t % N_TIMES])
        if t in (99, 299):
            gc.collect()
            held.append(sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted()))
    assert held[0] == held[1]
    assert [x.shape for x in leaves(state)] == [x.shape for x in leaves(first)]


def test_samples_that_are_none(streamed):
    recorded, _, stream, (first, *_), told = streamed
    with pytest.raises(ValueError, match=r"sample must have shape \(8\)"):
        stream.step(first, np.zeros(7))
    with pytest.raises(ValueError, match="1 NaN"):
        stream.step(first, np.r_[np.zeros(7), np.nan])
    with pytest.raises(ValueError, match="sample must be a real numeric array"):
        stream.step(first, None)
    with pytest.raises(ValueError, match="sample is impossible"):
        stream.step(first, 1e200 * np.ones(8))
    # What was refused left the state as it was.
    _, now = stream.step(first, recorded[:, 0])
    assert now.log_evidence_increment == told[0].log_evidence_increment


def test_arguments_that_do_not_fit():
    _, problem = make_recording()
    with pytest.raises(ValueError, match="option of a stream must be one of 'n_particles'"):
        TrackFilter(MODEL, problem, n_draws=3)
    with pytest.raises(ValueError, match="longest_life must be an integer"):
        TrackFilter(MODEL, problem, longest_life=0)
    with pytest.raises(ValueError, match="model must be DynamicDipoles, got StaticDipoles"):
        TrackFilter(be.StaticDipoles(), problem)


def test_dipoles_are_sums_over_particles():
    """One dipole nearly sure, one in a third of the weight, one in too little."""
    rng = np.random.default_rng(7)
    _, problem = make_recording()
    stream = TrackFilter(MODEL, problem, **OPTIONS)
    n, n_slots, d = 50, 3, 3
    weights = rng.uniform(0.2, 1, n)
    weights[[3, 4]] *= 1e-3
    weights /= weights.sum()
    places = np.full((n, n_slots), -1)
    for i in range(n):
        clusters = ([0] if i != 7 else []) + ([1] if i % 3 == 0 else [])
        clusters += [2] if i in (3, 4) else []
        slots = rng.permutation(n_slots)[: len(clusters)]
        places[i, slots] = 5 * np.array(clusters, int) + rng.integers(5, size=len(clusters))
    birth = rng.integers(0, 30, (n, n_slots))
    mean = rng.standard_normal((n, n_slots, d))
    root = rng.standard_normal((n, n_slots, d, d))
    cov = root @ root.swapaxes(2, 3)
    alive = Alive(places, birth, mean, cov, np.log(weights))
    sample = TrackSample(stream, alive, 29, 0.0, np.zeros(4), np.zeros(15), 1.0)

    found = {int(x.credible_set[0]) // 5: x for x in sample.dipoles()}
    assert list(found) == [0, 1]
    for cluster, dipole in found.items():
        total, pmf, age, moment = 0.0, np.zeros(15), 0.0, np.zeros(3)
        square, age_square = np.zeros(3), 0.0
        for i, slot in zip(*np.nonzero((places >= 0) & (places // 5 == cluster)), strict=True):
            w, frame = weights[i], problem.moment_unit * stream.design.frames[places[i, slot]]
            total += w
            pmf[places[i, slot]] += w
            age += w * 0.004 * (29 - birth[i, slot])
            age_square += w * (0.004 * (29 - birth[i, slot])) ** 2
            moment += w * frame @ mean[i, slot]
            second = frame @ (cov[i, slot] + np.outer(mean[i, slot], mean[i, slot])) @ frame.T
            square += w * np.diag(second)
        pmf, age, moment = pmf / total, age / total, moment / total
        assert dipole.probability == pytest.approx(total)
        np.testing.assert_allclose(dipole.place_pmf, pmf)
        np.testing.assert_allclose(dipole.pos, pmf @ POS)
        spread = (POS - pmf @ POS).T @ ((POS - pmf @ POS) * pmf[:, None])
        cell = pmf @ problem.cell_variance
        np.testing.assert_allclose(dipole.pos_cov, spread + cell * np.eye(3), atol=1e-18)
        assert dipole.credible_volume == pytest.approx(
            1e6 * problem.source_volume[dipole.credible_set].sum()
        )
        np.testing.assert_allclose(dipole.moment_mean, moment)
        np.testing.assert_allclose(dipole.moment_std, np.sqrt(square / total - moment**2))
        assert dipole.age == pytest.approx(age)
        assert dipole.age_std == pytest.approx(np.sqrt(age_square / total - age**2))


def test_nobody_alive():
    stream = TrackFilter(MODEL, make_recording()[1], **OPTIONS)
    alive = Alive(
        np.full((4, 2), -1),
        np.zeros((4, 2)),
        np.zeros((4, 2, 3)),
        np.zeros((4, 2, 3, 3)),
        np.log(np.full(4, 0.25)),
    )
    now = TrackSample(stream, alive, 0, 0.0, np.array([1.0, 0, 0]), np.zeros(15), 4.0)
    assert now.dipoles() == []
    assert repr(now) == (
        "<TrackSample | sample 0: 0 dipoles (probability 1.00), 4 effective particles>"
    )


def test_particles_draw_their_parameters_from_a_posterior():
    _, problem = make_recording()
    n_draws = 100
    rng = np.random.default_rng(2)
    shape = (2, n_draws)
    moment_std = np.stack([np.full(n_draws, 3e-9), 5e-9 * rng.uniform(1, 2, n_draws)])
    posterior = TrackPosterior(
        problem,
        MODEL,
        "particle_smoother",
        TrackDraws(
            places=np.full((*shape, N_TIMES, 2), -1),
            is_new=np.zeros((*shape, N_TIMES, 2), bool),
            moment_std=moment_std,
            noise_std=np.broadcast_to([0.9, 1.2], (*shape, 2)),
            birth_prob=np.full(shape, 0.03),
            death_prob=np.full(shape, 0.06),
            log_likelihood=np.zeros(shape),
            log_evidence=np.log([0.75, 0.25]) - 300,
            trace={},
        ),
        be.Status.OK,
    )
    stream = posterior.stream(n_particles=N_PARTICLES)
    start = stream.init(jax.random.key(5)).filtered
    got = np.exp(np.asarray(start.particles.parameters[:, 0])) * problem.moment_unit
    # Systematic draws: three quarters of sixty, rounded up or down.
    nearest = np.abs(np.log(got[:, None] / moment_std.ravel())).argmin(axis=1)
    np.testing.assert_allclose(got, moment_std.ravel()[nearest], rtol=1e-12)
    assert abs(np.sum(nearest < n_draws) - 45) <= 1
    others = np.r_[np.log([0.9, 1.2]), np.log([0.03 / 0.97, 0.06 / 0.94])]
    np.testing.assert_allclose(start.particles.parameters[:, 1:], np.tile(others, (60, 1)))
    np.testing.assert_allclose(start.log_weights, -np.log(N_PARTICLES))
    assert float(start.log_evidence) == 0
    single = dataclasses.replace(problem, group_names=("all",))
    with pytest.raises(ValueError, match="noise scales of 2 channel groups, but problem has 1"):
        TrackFilter(MODEL, single, posterior)


@pytest.mark.slow
@pytest.mark.parametrize("toy", [track_oracle.toy_one, track_oracle.toy_two, track_oracle.toy_walk])
def test_the_law_is_that_of_all_trajectories(toy):
    problem, model = toy()
    truth = track_oracle.exact(problem, model)
    stream = TrackFilter(model, problem, n_particles=5000, n_moved=500)
    recorded = np.linalg.pinv(problem.whitener) @ problem.data
    state, total = stream.init(jax.random.key(3)), 0.0
    # Dipoles that walk are not moved: they need no past.
    assert len(state.ring) == (1 if model.motion != "static" else 51)
    for t in range(problem.n_times):
        state, now = stream.step(state, recorded[:, t])
        total += now.log_evidence_increment
        # Monte Carlo error of 5,000 particles: the bound of the filter's own tests.
        number = 0.5 * np.abs(now.n_dipoles_pmf - truth.filtering_n_dipoles_pmf[t]).sum()
        place = 0.5 * np.abs(now.intensity - truth.filtering_intensity[t]).sum()
        assert number < 0.03
        assert place < 0.05
        assert total == pytest.approx(truth.cumulative_log_evidence[t], abs=0.1)
