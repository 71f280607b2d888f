"""Moves of drawn trajectories keep their law: exact draws before, exact draws after."""

import dataclasses
import functools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle

from bayes_esi.inference import track_inference, track_renewal

N_DRAWS = 4000


@functools.cache
def solve(name, n_orient):
    problem, model = getattr(track_oracle, f"toy_{name}")(n_orient)
    return problem, model, track_oracle.exact(problem, model)


def exact_draws(truth, n_draws=N_DRAWS, seed=0):
    """Trajectories from the sum over all: independent, of exactly the posterior."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(truth.probability), n_draws, p=truth.probability)
    every = truth.trajectories
    return every.places[chosen].astype(np.int32), every.is_new[chosen]


def renew(target, places, is_new, parameters, spread=None, n_moves=40, seed=0):
    spread = np.zeros(parameters.shape[1]) if spread is None else spread
    return track_renewal.run(
        jax.random.key(seed), target, places, is_new, parameters, spread, n_moves
    )


def assert_frequencies(places, is_new, truth, problem, model):
    """Compare with exact probabilities: frequencies of independent draws, five deviations."""
    numbers = (places >= 0).sum(axis=2)
    pairs = [
        (np.mean(numbers == k, axis=0), truth.n_dipoles_pmf[:, k])
        for k in range(model.max_dipoles + 1)
    ]
    sources = np.arange(problem.n_sources)
    # Walking dipoles may share a place: no more than one is alive in that toy.
    pairs.append((np.mean((places[..., None] == sources).sum(axis=2), axis=0), truth.intensity))
    pairs.append((np.mean(is_new.sum(axis=2), axis=0), truth.birth_intensity))
    for found, exact in pairs:
        error = np.sqrt(np.clip(exact * (1 - exact), 0, None) / len(places))
        assert np.all(np.abs(found - exact) < 5 * error + 1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "n_orient"), [("one", 1), ("two", 1), ("two", 3), ("walk", 1), ("walk", 3)]
)
def test_exact_draws_stay_exact(name, n_orient):
    problem, model, truth = solve(name, n_orient)
    target = track_inference.prepare(model, problem, 2**30)
    places, is_new = exact_draws(truth)
    assert_frequencies(places, is_new, truth, problem, model)
    parameters = np.asarray(target.prior.sample_parameters(jax.random.key(0), N_DRAWS))
    new_places, new_births, new_parameters, log_likelihood, acceptance = renew(
        target, places, is_new, parameters
    )
    assert_frequencies(new_places, new_births, truth, problem, model)
    # Most have become others, and each is one of the list with the likelihood that is told.
    changed = np.any(new_places != places, axis=(1, 2))
    assert changed.mean() > 0.5 and 0.02 < acceptance < 0.98
    np.testing.assert_array_equal(new_parameters, parameters)
    every = truth.trajectories
    number = {
        held.astype(np.int32).tobytes(): i for i, held in enumerate(every.places)
    }  # places alone name a trajectory but for rebirths in place
    rows = [number.get(held.astype(np.int32).tobytes(), -1) for held in new_places]
    assert min(rows) >= 0
    same = np.all(every.is_new[rows] == new_births, axis=(1, 2))
    assert same.mean() > 0.7
    np.testing.assert_allclose(
        log_likelihood[same],
        truth.log_likelihood[rows][same] - problem.log_jacobian,
        atol=1e-8,
    )


@pytest.mark.long
def test_no_move_changes_nothing():
    problem, model, truth = solve("two", 1)
    target = track_inference.prepare(model, problem, 2**30)
    places, is_new = exact_draws(truth, 50)
    parameters = np.asarray(target.prior.sample_parameters(jax.random.key(0), 50))
    new_places, new_births, new_parameters, log_likelihood, acceptance = renew(
        target, places, is_new, parameters, n_moves=0
    )
    assert acceptance == 0 and np.all(np.isfinite(log_likelihood))
    np.testing.assert_array_equal(new_parameters, parameters)
    # The order of slots is bookkeeping; the oracle's is the same.
    np.testing.assert_array_equal(new_places, places)
    np.testing.assert_array_equal(new_births, is_new)


@pytest.mark.long
def test_unknown_noise_keeps_the_law_of_a_grid():
    """From exact draws of trajectories and noise scale together; the parameters move, too."""
    problem, model, _ = solve("walk", 1)
    model = dataclasses.replace(model, motion="static", noise_std=dist.LogNormal(0.0, 0.5))
    target = track_inference.prepare(model, problem, 2**30)
    every = track_oracle.enumerate_trajectories(4, 4, 1, 0.4, 0.2, model.location_prior)
    z = np.linspace(-4, 4, 161)
    log_joint = np.stack(
        [
            every.log_prior
            - 0.5 * value**2
            + track_oracle.log_likelihoods(
                every.places,
                every.is_new,
                np.asarray(problem.lead_field),
                np.asarray(problem.data),
                1e-8 / problem.moment_unit,
                np.exp(0.5 * value),
                model.moment_persistence,
            )
            for value in z
        ]
    )
    weight = np.exp(log_joint - log_joint.max())
    weight /= weight.sum()
    rng = np.random.default_rng(0)
    chosen = rng.choice(weight.size, N_DRAWS, p=weight.ravel())
    grid, row = np.unravel_index(chosen, weight.shape)
    # Within a cell of the grid the law is flat to a few per cent: spread evenly.
    log_noise = 0.5 * (z[grid] + (z[1] - z[0]) * rng.uniform(-0.5, 0.5, N_DRAWS))
    parameters = np.array(target.prior.sample_parameters(jax.random.key(0), N_DRAWS))
    parameters[:, 1] = log_noise
    marginal = weight.sum(axis=1)
    mean = marginal @ (0.5 * z)
    std = np.sqrt(marginal @ (0.5 * z) ** 2 - mean**2)
    spread = np.array([0.0, std, 0.0, 0.0])
    places, is_new, moved, _, _ = renew(
        target, every.places[row].astype(np.int32), every.is_new[row], parameters, spread, 80
    )
    assert np.mean(moved[:, 1] != log_noise) > 0.8
    # A move that stays near keeps its start's luck: correlation would show it.
    assert abs(np.corrcoef(moved[:, 1], log_noise)[0, 1]) < 0.6
    found = moved[:, 1]
    assert abs(found.mean() - mean) < 5 * std / np.sqrt(N_DRAWS)
    assert found.std() == pytest.approx(std, rel=5 / np.sqrt(N_DRAWS))
    alive = weight.sum(axis=0) @ (every.places[:, :, 0] >= 0)
    error = np.sqrt(alive * (1 - alive) / N_DRAWS)
    assert np.all(np.abs(np.mean(places[:, :, 0] >= 0, axis=0) - alive) < 5 * error)
    births = weight.sum(axis=0) @ every.is_new[:, :, 0]
    error = np.sqrt(births * (1 - births) / N_DRAWS)
    assert np.all(np.abs(np.mean(is_new[:, :, 0], axis=0) - births) < 5 * error)
    # Number and noise go together: the noise of those alive at the last sample.
    is_alive = places[:, -1, 0] >= 0
    joint = weight @ (every.places[:, -1, 0] >= 0)
    wanted = joint @ (0.5 * z) / joint.sum()
    assert abs(found[is_alive].mean() - wanted) < 5 * std / np.sqrt(is_alive.sum())
    np.testing.assert_array_equal(moved[:, [0, 2, 3]], parameters[:, [0, 2, 3]])
