"""Chains of trajectories against sums over all of them, and what makes a run repeatable."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle
from scipy.stats import kstest

from bayes_esi.core.drive import Checkpoint
from bayes_esi.core.status import Status
from bayes_esi.inference import particle_gibbs, track_moves, track_proposal, track_target
from bayes_esi.models.dynamic_dipoles import DynamicDipoles, track_prior
from bayes_esi.models.orientation import orient
from bayes_esi.models.problem import Problem
from bayes_esi.models.track_gram import build_track_gram

# Many chains cost little more than a few on toys.
OPTIONS = {"n_chains": 128, "n_samples": 100, "n_burn_in": 40, "n_thin": 10, "n_tracks": 4}


def target_of(problem, model, dtype=jnp.float64):
    design = orient(problem, model.loose)
    field, data = design.lead_field.astype(dtype), problem.data.astype(dtype)
    gram = build_track_gram(field, data, problem.noise_group, problem.n_groups)
    prior = track_prior(model, problem, design, dtype)
    return track_target.Target(gram, prior, prior, jnp.asarray(problem.neighbours))


def run(target, seed=0, path=None, start=None, **changes):
    return particle_gibbs.run(
        jax.random.key(seed),
        target,
        {**OPTIONS, **changes},
        progress=False,
        description="",
        checkpoint=Checkpoint(path, "test"),
        start=start,
    )


def laws(draws, problem, max_dipoles):
    """Law of the number, intensity and birth intensity, from all draws."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), draws)
    time = np.arange(problem.n_times)
    alive = (flat.birth[..., None] <= time) & (time < flat.death[..., None])
    alive &= flat.is_used[..., None]
    numbers = alive.sum(axis=1)
    pmf = np.stack([np.mean(numbers == k, axis=0) for k in range(max_dipoles + 1)], axis=-1)
    own = flat.place[..., None] if flat.path is None else flat.path
    sources = np.arange(problem.n_sources)[:, None, None, None]
    intensity = np.mean(np.sum((own == sources) & alive, axis=2), axis=1).T
    births = np.mean(np.sum(flat.is_used[..., None] & (flat.birth[..., None] == time), 1), axis=0)
    return pmf, intensity, births


def distance(found, exact):
    """Largest total variation over samples."""
    return 0.5 * np.abs(found - exact).sum(axis=-1).max()


@functools.cache
def unknown_scales():
    """Four places on a line, four samples, one dipole, both scales unknown."""
    problem, model = track_oracle.toy_walk()
    model = dataclasses.replace(
        model,
        motion="static",
        moment_std=dist.LogNormal(np.log(1e-8), 0.7),
        noise_std=dist.LogNormal(0.0, 0.5),
    )
    return problem, model, target_of(problem, model)


def grid_law(problem, model, n_points=15):
    """Means and deviations of the log scales, and the law of the number, over a fine grid."""
    every = track_oracle.enumerate_trajectories(
        problem.n_times, 4, 1, model.birth_prob, model.death_prob, model.location_prior
    )
    z = np.linspace(-4, 4, n_points)
    moment, noise = 0.7 * z, 0.5 * z
    log_weight = np.empty((n_points, n_points, len(every.log_prior)))
    for i, j in np.ndindex(n_points, n_points):
        value = track_oracle.log_likelihoods(
            every.places,
            every.is_new,
            np.asarray(problem.lead_field),
            np.asarray(problem.data),
            1e-8 / problem.moment_unit * np.exp(moment[i]),
            np.exp(noise[j]),
            model.moment_persistence,
        )
        log_weight[i, j] = every.log_prior + value - 0.5 * (z[i] ** 2 + z[j] ** 2)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    means, stds = [], []
    for axis, value in ((0, moment), (1, noise)):
        marginal = weight.sum(axis=tuple({0, 1, 2} - {axis}))
        means.append(marginal @ value)
        stds.append(np.sqrt(marginal @ value**2 - means[-1] ** 2))
    alive = weight.sum(axis=(0, 1)) @ (every.places[:, :, 0] >= 0)
    return np.array(means), np.array(stds), np.stack([1 - alive, alive], axis=-1)


@pytest.mark.long
def test_unknown_scales_have_the_law_of_a_grid():
    problem, model, target = unknown_scales()
    draws, trace, status = run(target)
    assert status is Status.OK
    mean, std, pmf = grid_law(problem, model)
    found = draws.parameters[..., :2] - [np.log(1e-8 / problem.moment_unit), 0.0]
    chains = found.mean(axis=1)
    error = chains.std(axis=0, ddof=1) / np.sqrt(len(chains))
    assert np.all(error < 0.05 * std)
    assert np.all(np.abs(chains.mean(axis=0) - mean) < 4 * error)
    np.testing.assert_allclose(found.std(axis=(0, 1)), std, rtol=0.06)
    # 12,800 draws, some thousands of them independent.
    assert distance(laws(draws, problem, 1)[0], pmf) < 0.03
    # Known probabilities stay what they are.
    assert np.ptp(draws.parameters[..., 2:], axis=(0, 1)).max() == 0
    assert trace["log_posterior"].shape == draws.log_law.shape == (128, 100)
    is_used = np.isfinite(trace["acceptance"]).all(axis=0)
    assert set(np.array(track_moves.MOVES)[~is_used]) == {"path"}
    assert np.all((trace["acceptance"][:, is_used] >= 0) & (trace["acceptance"][:, is_used] <= 1))


@pytest.mark.slow
def test_a_run_is_repeatable_resumes_to_the_bit_and_compiles_once(tmp_path):
    problem, model, target = unknown_scales()
    short = {"n_samples": 30, "n_burn_in": 30, "n_thin": 2}
    draws, trace, _ = run(target, **short)
    n_compiled = particle_gibbs.advance._cache_size()
    other = dataclasses.replace(problem, data=problem.data[:, ::-1])
    again, _, _ = run(target_of(other, model), **short)
    assert particle_gibbs.advance._cache_size() == n_compiled
    assert not np.array_equal(again.parameters, draws.parameters)

    for stop in (1, 3):  # in burn-in, and after it
        path = tmp_path / f"{stop}.npz"
        with pytest.MonkeyPatch.context() as patch:
            calls = iter(range(100))

            def interrupted(*args, calls=calls, stop=stop, call=particle_gibbs.advance):
                if next(calls) == stop:
                    raise KeyboardInterrupt
                return call(*args)

            patch.setattr(particle_gibbs, "advance", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(target, path=path, **short)
        assert path.exists()
        resumed, trace_of_resumed, _ = run(target, path=path, **short)
        for one, two in zip(jax.tree.leaves(draws), jax.tree.leaves(resumed), strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(trace["acceptance"], trace_of_resumed["acceptance"])


def test_start_must_fit_the_options():
    _, _, target = unknown_scales()
    parameters = jnp.zeros((3, 4))
    start = particle_gibbs._empty(target, parameters, 4)
    with pytest.raises(ValueError, match=r"start has shape \(3, 4\)"):
        run(target, start=start)


@pytest.mark.long
@pytest.mark.parametrize("name, n_orient", [("one", 3), ("two", 1), ("walk", 1), ("walk", 3)])
def test_smoothing_law_is_that_of_all_trajectories(name, n_orient):
    problem, model = getattr(track_oracle, f"toy_{name}")(n_orient)
    truth = track_oracle.exact(problem, model)
    draws, _, _ = run(target_of(problem, model), n_tracks=problem.n_times, n_samples=400)
    pmf, intensity, births = laws(draws, problem, model.max_dipoles)
    assert distance(pmf, truth.n_dipoles_pmf) < 0.03
    assert distance(intensity, truth.intensity) < 0.03
    assert distance(births, truth.birth_intensity) < 0.03


@pytest.mark.long
def test_single_precision_follows_the_same_law():
    problem, model = track_oracle.toy_two(3)
    truth = track_oracle.exact(problem, model)
    draws, trace, _ = run(target_of(problem, model, jnp.float32), n_tracks=5, n_samples=400)
    assert draws.parameters.dtype == draws.log_likelihood.dtype == np.float32
    assert trace["log_posterior"].dtype == np.float32
    assert distance(laws(draws, problem, 2)[0], truth.n_dipoles_pmf) < 0.03


@pytest.mark.long
def test_start_does_not_matter():
    problem, model = track_oracle.toy_two()
    target = target_of(problem, model)
    truth = track_oracle.exact(problem, model)
    first, _, _ = run(target, n_tracks=5, n_samples=400)
    start = jax.tree.map(lambda leaf: leaf[:, -1], first)
    for other in (start, jax.tree.map(lambda leaf: np.repeat(leaf[:1], 128, 0), start)):
        draws, _, _ = run(target, seed=1, start=other, n_tracks=5, n_samples=400)
        assert distance(laws(draws, problem, 2)[1], truth.intensity) < 0.03


@pytest.mark.long
def test_without_data_unknown_probabilities_and_tracks_keep_their_prior():
    """From exact draws of the joint prior, many moves at inverse temperature 0."""
    rng = np.random.default_rng(0)
    n_times, n_sources, n_draws = 6, 5, 20_000
    problem = Problem.from_arrays(
        rng.normal(size=(3, n_times)),
        rng.normal(size=(3, n_sources, 1)),
        0.01 * rng.normal(size=(n_sources, 3)),
    )
    births, deaths = dist.Beta(2.0, 3.0), dist.Beta(2.0, 4.0)
    model = DynamicDipoles(births, deaths, max_dipoles=2, moment_std=1.0, noise_std=1.0)
    target = target_of(problem, model)
    parameters = np.asarray(target.prior.sample_parameters(jax.random.key(1), n_draws))
    birth_prob, death_prob = 1 / (1 + np.exp(-parameters[:, -2:].T))
    place, birth, death = (np.full((n_draws, n_times), fill, np.int32) for fill in (-1, 0, 0))
    for i in range(n_draws):
        alive, n = {}, 0
        for t in range(n_times):
            has_room = len(alive) < 2
            for row in list(alive):
                if rng.random() < death_prob[i]:
                    death[i, row] = t
                    del alive[row]
            if has_room and rng.random() < birth_prob[i]:
                place[i, n] = rng.choice(sorted(set(range(n_sources)) - set(alive.values())))
                birth[i, n], death[i, n], alive[n] = t, n_times, place[i, n]
                n += 1
    zero = np.zeros(n_draws)
    start = track_target.Tracks(place, birth, death, place >= 0, parameters, zero, zero, None)
    start = particle_gibbs._evaluate(target, start)
    proposal = track_proposal.build_proposal(
        target, rng.uniform(size=(2, n_sources)), rng.uniform(size=n_times), [0, 0, 1.0, 1.0]
    )

    @jax.jit
    def many(key, tracks):
        def one(turn, tracks):
            key_turn = jax.random.fold_in(key, turn)
            return particle_gibbs._move(key_turn, tracks, target, 0.0, proposal)[0]

        return jax.lax.fori_loop(0, 100, one, tracks)

    end = many(jax.random.key(2), start)

    def summaries(tracks):
        length = np.sum(tracks.death - tracks.birth, axis=1)
        n = np.sum(tracks.is_used, axis=1)
        first = np.where(tracks.is_used, tracks.birth, n_times).min(axis=1)
        p = 1 / (1 + np.exp(-np.asarray(tracks.parameters[:, -2:])))
        same = np.sum(np.asarray(tracks.place) == 2, axis=1)
        return np.stack(
            [n, n**2, length, length**2, first, first**2, same, p[:, 0] * n, p[:, 1] * length]
        )

    # Most draws have changed; the draws before and after are nearly independent.
    assert np.mean(np.any(start.parameters != end.parameters, axis=1)) > 0.9
    before, after = summaries(start), summaries(end)
    error = np.sqrt((before.var(axis=1) + after.var(axis=1)) / n_draws)
    assert np.all(np.abs(before.mean(axis=1) - after.mean(axis=1)) < 4.5 * error)
    p = 1 / (1 + np.exp(-np.asarray(end.parameters[:, -2:])))
    from scipy.stats import beta

    assert kstest(p[:, 0], beta(2, 3).cdf).pvalue > 1e-4
    assert kstest(p[:, 1], beta(2, 4).cdf).pvalue > 1e-4
