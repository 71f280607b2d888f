"""The truth for dynamic dipoles agrees with itself: two derivations, and laws known beforehand."""

import dataclasses
import functools

import numpy as np
import pytest
import track_oracle

TOYS = [track_oracle.toy_one, track_oracle.toy_two, track_oracle.toy_walk]


@functools.cache
def solve(toy, n_orient):
    """Problem, model and truth of a toy."""
    problem, model = toy(n_orient)
    return problem, model, track_oracle.exact(problem, model)


def arrays(problem, model):
    field, data = np.asarray(problem.lead_field), np.asarray(problem.data)
    moment_std = model.moment_std / problem.moment_unit
    return field, data, moment_std, model.noise_std, model.moment_persistence


def entropy(probability):
    probability = probability[probability > 0]
    return -np.sum(probability * np.log(probability))


@pytest.mark.parametrize("toy", TOYS)
def test_probabilities_of_all_trajectories_sum_to_one(toy):
    _, _, truth = solve(toy, 1)
    # 80,000 terms of rounding 1e-16.
    assert np.exp(truth.trajectories.log_prior).sum() == pytest.approx(1, abs=1e-11)
    every = truth.trajectories
    together = zip(every.places, every.is_new, strict=True)
    assert len({(a.tobytes(), b.tobytes()) for a, b in together}) == len(every.places)
    np.testing.assert_allclose(truth.n_dipoles_pmf.sum(axis=1), 1, atol=1e-11)
    np.testing.assert_allclose(truth.filtering_n_dipoles_pmf.sum(axis=1), 1, atol=1e-11)


@pytest.mark.parametrize("n_orient", [1, 3])
@pytest.mark.parametrize("toy", TOYS)
def test_one_large_gaussian_equals_the_filter_on_the_tree(toy, n_orient):
    problem, model, truth = solve(toy, n_orient)
    every = truth.trajectories
    # Any, the first, and the most probable one.
    picked = np.random.default_rng(0).integers(len(every.places), size=25)
    picked = np.concatenate([picked, [0, np.argmax(truth.probability)]])
    alone = track_oracle.log_likelihoods(
        every.places[picked], every.is_new[picked], *arrays(problem, model)
    )
    for log_likelihood, i in zip(alone, picked, strict=True):
        wanted, _, _ = track_oracle.dense_law(
            every.places[i], every.is_new[i], *arrays(problem, model)
        )
        assert log_likelihood == pytest.approx(wanted, abs=1e-9)
        assert truth.log_likelihood[i] - problem.log_jacobian == pytest.approx(wanted, abs=1e-9)


def test_smoothed_moments_are_averages_of_those_of_one_large_gaussian():
    problem, model, truth = solve(track_oracle.toy_walk, 3)
    wanted = np.zeros_like(truth.mean_moment)
    every = zip(
        truth.trajectories.places, truth.trajectories.is_new, truth.probability, strict=True
    )
    for places, is_new, probability in every:
        _, mean, _ = track_oracle.dense_law(places, is_new, *arrays(problem, model))
        for t, slot in zip(*np.nonzero(places >= 0), strict=True):
            wanted[t, places[t, slot]] += probability * mean[t, slot] * problem.moment_unit
    np.testing.assert_allclose(truth.mean_moment, wanted, atol=1e-10 * model.moment_std)
    # The last sample is filtered and smoothed at once.
    np.testing.assert_allclose(
        truth.filtering_moment[-1], wanted[-1], atol=1e-10 * model.moment_std
    )


def test_laws_of_two_dipoles_count_what_trajectories_say():
    _, _, truth = solve(track_oracle.toy_two, 1)
    places, is_new = truth.trajectories.places, truth.trajectories.is_new
    alive = places >= 0
    births, deaths = np.zeros(5), np.zeros(5)
    joint = np.zeros((5, 5))
    for t in range(5):
        births[t] = truth.probability @ is_new[:, t].sum(axis=1)
        if t:
            gone = alive[:, t - 1] & (~alive[:, t] | is_new[:, t])
            deaths[t] = truth.probability @ gone.sum(axis=1)
        for place in range(5):
            # Born at t in a slot, and neither emptied nor newly held since.
            lives_on = is_new[:, t] & np.all(alive[:, t:], axis=1)
            lives_on &= ~np.any(is_new[:, t + 1 :], axis=1)
            joint[t, place] = truth.probability @ (lives_on & (places[:, -1] == place)).sum(axis=1)
    np.testing.assert_allclose(truth.birth_intensity, births, atol=1e-12)
    np.testing.assert_allclose(truth.death_intensity, deaths, atol=1e-12)
    np.testing.assert_allclose(truth.birth_and_place, joint, atol=1e-12)
    np.testing.assert_allclose(joint.sum(axis=0), truth.intensity[-1], atol=1e-12)
    mean_number = truth.n_dipoles_pmf @ np.arange(3)
    np.testing.assert_allclose(truth.intensity.sum(axis=1), mean_number, atol=1e-12)


def test_without_a_field_the_posterior_is_the_law_of_births_and_deaths():
    problem, model = track_oracle.toy_one(1)
    blind = dataclasses.replace(problem, lead_field=1e-12 * problem.lead_field)
    truth = track_oracle.exact(blind, model)
    # A chain of two states: somebody or nobody.
    alive, wanted = 0.0, []
    for _ in range(7):
        alive = alive * (1 - model.death_prob) + (1 - alive) * model.birth_prob
        wanted.append(alive)
    np.testing.assert_allclose(truth.n_dipoles_pmf[:, 1], wanted, atol=1e-10)
    np.testing.assert_allclose(truth.filtering_n_dipoles_pmf[:, 1], wanted, atol=1e-10)
    np.testing.assert_allclose(truth.intensity, np.outer(wanted, np.full(12, 1 / 12)), atol=1e-10)
    noise = -0.5 * (problem.data**2).sum(axis=0) - 4 * np.log(2 * np.pi)
    np.testing.assert_allclose(truth.cumulative_log_evidence, np.cumsum(noise), atol=1e-9)


@pytest.mark.parametrize("n_orient", [1, 3])
@pytest.mark.parametrize("toy", TOYS)
def test_toys_are_informative_but_not_decisive(toy, n_orient):
    _, _, truth = solve(toy, n_orient)
    numbers = [entropy(pmf) for pmf in truth.n_dipoles_pmf]
    places = [entropy(row / row.sum()) for row in truth.intensity]
    assert np.mean(numbers) > 0.45 and np.mean(places) > 1.0
    # Nats that the data tell of the trajectory.
    held = truth.probability > 0
    told = np.log(truth.probability[held]) - truth.trajectories.log_prior[held]
    assert truth.probability[held] @ told > 0.75
    # Later samples matter: filter and smoother must not be exchangeable in a test.
    apart = np.abs(truth.intensity - truth.filtering_intensity).sum(axis=1) / 2
    assert apart.max() > 0.05
