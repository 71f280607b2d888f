"""The likelihood of a trajectory and its moments against dense algebra, and against neighbours."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import track_oracle

from bayes_esi.inference.dipole_target import condition
from bayes_esi.models.dipole_gram import build_gram
from bayes_esi.models.dynamic_dipoles import DynamicDipoles, track_prior
from bayes_esi.models.orientation import orient
from bayes_esi.models.problem import Problem
from bayes_esi.models.track_gram import build_track_gram
from bayes_esi.models.track_likelihood import log_likelihood, scales_of, smoothed_moments

N_CHANNELS, N_SOURCES, N_TIMES = 7, 8, 6
NOISE_STD = np.array([0.6, 1.7])  # of the two channel groups
MOMENT_STD = 1.3e-8
N_TRAJECTORIES, N_SLOTS = 30, 3


def make_problem(n_orient=3, n_times=N_TIMES, mixing=None, seed=0):
    """Two channel groups, noise that is correlated within them; `mixing` acts on the channels."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((N_CHANNELS, n_times))
    field = 1e8 * rng.standard_normal((N_CHANNELS, N_SOURCES, n_orient))
    pos = rng.uniform(-0.05, 0.05, (N_SOURCES, 3))
    root = np.zeros((N_CHANNELS, N_CHANNELS))
    root[:4, :4], root[4:, 4:] = np.eye(4) + 0.3, 0.5 * np.eye(3) + 0.2
    mixing = np.eye(N_CHANNELS) if mixing is None else mixing
    return Problem.from_arrays(
        mixing @ data,
        np.einsum("rc,csd->rsd", mixing, field),
        pos,
        noise_cov=mixing @ root @ root.T @ mixing.T,
        noise_groups=["meg"] * 4 + ["eeg"] * 3,
    )


def write(problem, persistence=0.8, dtype=np.float64, tabulate=True):
    """Gram, prior, and parameters with a noise level for each group."""
    model = DynamicDipoles(
        max_dipoles=2, moment_std=MOMENT_STD, noise_std=1.0, moment_persistence=persistence
    )
    design = orient(problem, 1.0)
    prior = track_prior(model, problem, design, dtype)
    gram = build_track_gram(
        design.lead_field.astype(dtype), problem.data, problem.noise_group, 2, tabulate=tabulate
    )
    parameters = np.array(prior.sample_parameters(jax.random.key(0), 1)[0])
    parameters[1:3] = np.log(NOISE_STD)
    return gram, prior, parameters


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0))
def _solve(*arguments):
    return log_likelihood(*arguments), *smoothed_moments(*arguments)


def solve(gram, prior, parameters, places, is_new):
    """Log likelihoods, smoothed means and covariances of some trajectories.

    Padded to one shape, so that few programs are compiled.
    """
    n, _, n_slots = places.shape
    width = ((0, N_TRAJECTORIES - n), (0, 0), (0, N_SLOTS - n_slots))
    places = np.pad(np.asarray(places, np.int32), width, constant_values=-1)
    told = _solve(gram, prior, parameters, places, np.pad(is_new, width))
    found, mean, cov = (np.asarray(array)[:n] for array in told)
    return found, mean[:, :, :n_slots], cov[:, :, :n_slots, :, :n_slots]


def random_trajectories(seed=1):
    """Any births, deaths and steps, also several at a time: the likelihood is not the law."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, N_SOURCES, (N_TRAJECTORIES, N_TIMES, N_SLOTS))
    alive = rng.random(places.shape) < 0.6
    is_new = alive & (rng.random(alive.shape) < 0.3)
    is_new[:, 0] = alive[:, 0]
    is_new[:, 1:] |= alive[:, 1:] & ~alive[:, :-1]
    # Half of the survivors stay.
    for t in range(1, N_TIMES):
        stays = alive[:, t] & ~is_new[:, t] & (rng.random(alive[:, t].shape) < 0.5)
        places[:, t] = np.where(stays, places[:, t - 1], places[:, t])
    return np.where(alive, places, -1).astype(np.int32), is_new


def dense(problem, places, is_new, persistence=0.8):
    return track_oracle.dense_law(
        places,
        is_new,
        problem.lead_field,
        problem.data,
        MOMENT_STD / problem.moment_unit,
        NOISE_STD[problem.noise_group],
        persistence,
    )


@pytest.mark.parametrize(
    ("n_orient", "persistence", "tabulate"),
    [(3, 0.5, True), pytest.param(1, 0.8, False, marks=pytest.mark.slow)],
)
def test_random_trajectories_have_the_likelihood_and_moments_of_one_gaussian(
    n_orient, persistence, tabulate
):
    problem = make_problem(n_orient)
    parts = write(problem, persistence, tabulate=tabulate)
    places, is_new = random_trajectories()
    found, means, covs = solve(*parts, places, is_new)
    for i in range(N_TRAJECTORIES):
        wanted, mean, cov = dense(problem, places[i], is_new[i], persistence)
        # Gaussians of 42 values and condition numbers near 100: 13 digits are left.
        assert found[i] == pytest.approx(wanted, abs=1e-10)
        np.testing.assert_allclose(means[i], mean, atol=1e-11)
        held = places[i] >= 0
        for t in range(N_TIMES):
            own = covs[i, t][held[t]][:, :, held[t]]
            wanted = cov[t, :, :, t][held[t]][:, :, held[t]]
            np.testing.assert_allclose(own, wanted, atol=1e-11)


def test_dipoles_at_known_places_that_never_die_are_a_kalman_filter_and_smoother():
    problem = make_problem(3)
    parts = write(problem)
    places = np.broadcast_to(np.array([2, 5], np.int32), (N_TIMES, 2))
    is_new = np.zeros((N_TIMES, 2), bool)
    is_new[0] = True

    # Textbook: x_t = a x_{t-1} + w, y_t = G x_t + v, stationary start.
    variance, a = (MOMENT_STD / problem.moment_unit) ** 2, 0.8
    field = problem.lead_field[:, [2, 5]].reshape(-1, 6)
    noise_cov = np.diag(NOISE_STD[problem.noise_group] ** 2)
    mean, cov = np.zeros(6), variance * np.eye(6)
    total, predicted, filtered = 0.0, [], []
    for t in range(N_TIMES):
        if t:
            mean, cov = a * mean, a**2 * cov + (1 - a**2) * variance * np.eye(6)
        predicted.append((mean, cov))
        innovation = problem.data[:, t] - field @ mean
        innovation_cov = field @ cov @ field.T + noise_cov
        gain = cov @ field.T @ np.linalg.inv(innovation_cov)
        total -= 0.5 * innovation @ np.linalg.solve(innovation_cov, innovation)
        total -= 0.5 * np.linalg.slogdet(2 * np.pi * innovation_cov)[1]
        mean, cov = mean + gain @ innovation, cov - gain @ field @ cov
        filtered.append((mean, cov))
    smoothed = [(mean, cov)]
    for t in range(N_TIMES - 2, -1, -1):
        gain = a * filtered[t][1] @ np.linalg.inv(predicted[t + 1][1])
        mean = filtered[t][0] + gain @ (smoothed[0][0] - predicted[t + 1][0])
        cov = filtered[t][1] + gain @ (smoothed[0][1] - predicted[t + 1][1]) @ gain.T
        smoothed.insert(0, (mean, cov))

    found, means, covs = (array[0] for array in solve(*parts, places[None], is_new[None]))
    assert found == pytest.approx(total, abs=1e-10)
    for t, (mean, cov) in enumerate(smoothed):
        np.testing.assert_allclose(means[t].reshape(-1), mean, atol=1e-11)
        np.testing.assert_allclose(covs[t].reshape(6, 6), cov, atol=1e-11)


def test_without_persistence_it_is_the_likelihood_of_static_dipoles():
    problem = make_problem(3)
    parts = write(problem, persistence=0.0)
    static = build_gram(problem.lead_field, problem.data, problem.noise_group, 2)
    for held in ([2, 5], [4, -1], [-1, -1]):
        held = np.array(held)
        base = jax.jit(condition)(static, np.maximum(held, 0), held >= 0, parts[2][:3])
        places = np.broadcast_to(held, (2, N_TIMES, 2))
        # Independent samples do not know when a life began.
        is_new = places >= 0
        is_new[0, 1:] = False
        found, _, _ = solve(*parts, places, is_new)
        np.testing.assert_allclose(found, float(base.log_likelihood), atol=1e-10)


def test_samples_without_anybody_are_noise():
    problem = make_problem(3)
    nobody = np.full((1, N_TIMES, 3), -1)
    found, means, _ = solve(*write(problem), nobody, np.zeros(nobody.shape, bool))
    assert not np.any(means)
    scaled = problem.data / NOISE_STD[problem.noise_group][:, None]
    wanted = -0.5 * np.sum(scaled**2) - N_TIMES * np.sum(np.log(NOISE_STD[problem.noise_group]))
    wanted -= 0.5 * problem.data.size * np.log(2 * np.pi)
    assert found[0] == pytest.approx(wanted, abs=1e-10)


def test_invertible_mixing_of_the_channels_of_a_group_changes_nothing_after_whitening():
    rng = np.random.default_rng(3)
    mixing = np.zeros((N_CHANNELS, N_CHANNELS))
    mixing[:4, :4], mixing[4:, 4:] = rng.standard_normal((4, 4)), rng.standard_normal((3, 3))
    trajectories = random_trajectories()
    plain, mixed = make_problem(3), make_problem(3, mixing=mixing)
    (found, told, _), (found_mixed, told_mixed, _) = (
        solve(*write(problem), *trajectories) for problem in (plain, mixed)
    )
    # The mixing has condition number 30, the whitener its square in the covariance.
    np.testing.assert_allclose(found, found_mixed, atol=1e-8)
    np.testing.assert_allclose(
        told * plain.moment_unit, told_mixed * mixed.moment_unit, atol=1e-8 * MOMENT_STD
    )
    # Densities of the data themselves differ by the determinant of the mixing.
    jacobian = -N_TIMES * np.linalg.slogdet(mixing)[1]
    assert mixed.log_jacobian - plain.log_jacobian == pytest.approx(jacobian, abs=1e-9)


def test_slots_may_be_numbered_in_any_order():
    parts = write(make_problem(3))
    places, is_new = random_trajectories()
    turn = np.array([2, 0, 1])
    found, means, _ = solve(*parts, places, is_new)
    turned, means_turned, _ = solve(*parts, places[:, :, turn], is_new[:, :, turn])
    np.testing.assert_allclose(found, turned, atol=1e-11)
    np.testing.assert_allclose(means[:, :, turn], means_turned, atol=1e-11)


def test_units_of_the_scales():
    parameters = np.array([[0.3, -0.2, 0.5, 1.0, 2.0], [0.1, 0.0, 0.2, 0.0, 0.0]])
    moment_std, weights = scales_of(parameters)
    np.testing.assert_allclose(moment_std, np.exp([0.3, 0.1]), rtol=1e-15)
    np.testing.assert_allclose(weights, np.exp(-2 * parameters[:, 1:3]), rtol=1e-15)


@pytest.mark.slow
def test_single_precision_keeps_what_matters():
    problem = make_problem(3)
    single = dataclasses.replace(
        problem,
        data=problem.data.astype(np.float32),
        lead_field=problem.lead_field.astype(np.float32),
    )
    trajectories = random_trajectories()
    wanted, wanted_means, _ = solve(*write(problem), *trajectories)
    parts = write(single, dtype=np.float32)
    assert parts[2].dtype == np.float32
    found, means, covs = solve(*parts, *trajectories)
    assert found.dtype == means.dtype == covs.dtype == np.float32
    # Values near -70 with seven digits, from sums of a few hundred terms.
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    np.testing.assert_allclose(means, wanted_means, atol=1e-4)
