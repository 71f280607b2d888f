"""The law of births, deaths, places and walks against a list of all that can happen."""

import dataclasses

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle

from bayes_esi.models.dynamic_dipoles import DynamicDipoles, log_law, track_prior
from bayes_esi.models.orientation import orient
from bayes_esi.models.problem import Problem

WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 1.5])
SCALES = {"moment_std": 1e-8, "noise_std": 1.0}
log_laws = jax.jit(jax.vmap(log_law, in_axes=(None, None, 0, 0)))


def make_problem(n_sources=5, seed=0, **more):
    """Places of an irregular graph: their numbers of neighbours differ."""
    rng = np.random.default_rng(seed)
    return Problem.from_arrays(
        rng.standard_normal((6, 3)),
        rng.standard_normal((6, n_sources, 3)),
        rng.uniform(-0.02, 0.02, (n_sources, 3)),
        **more,
    )


def write(model, problem, dtype=np.float64):
    prior = track_prior(model, problem, orient(problem, model.loose), dtype)
    return prior, prior.sample_parameters(jax.random.key(0), 1)[0]


# One dipole and up to three; static and walking, where survivors may meet before a third is born;
# a weight of zero.
@pytest.mark.parametrize(
    ("max_dipoles", "n_times", "motion", "weights"),
    [
        (1, 5, "static", None),
        (2, 4, "static", WEIGHTS),
        (3, 3, "static", WEIGHTS),
        (3, 3, 0.02, WEIGHTS),
    ],
)
def test_every_trajectory_has_the_probability_of_the_law(max_dipoles, n_times, motion, weights):
    problem = make_problem()
    model = DynamicDipoles(0.3, 0.15, max_dipoles, motion=motion, location_prior=weights, **SCALES)
    prior, parameters = write(model, problem)
    uniform = np.ones(5) if weights is None else weights
    walk = None if motion == "static" else track_oracle.walk_matrix(problem, uniform, motion)
    every = track_oracle.enumerate_trajectories(n_times, 5, max_dipoles, 0.3, 0.15, uniform, walk)
    assert len(every.log_prior) > 400
    found = np.asarray(log_laws(prior, parameters, every.places.astype(np.int32), every.is_new))
    # Sums of a few logarithms near -10: rounding.
    np.testing.assert_allclose(found, every.log_prior, atol=1e-12)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-11)


def test_slots_are_bookkeeping():
    problem, model = track_oracle.toy_two()
    prior, parameters = write(model, problem)
    every = track_oracle.enumerate_trajectories(3, 5, 2, 0.4, 0.2, model.location_prior)
    turned = log_laws(
        prior, parameters, every.places[:, :, ::-1].astype(np.int32), every.is_new[:, :, ::-1]
    )
    np.testing.assert_allclose(turned, every.log_prior, atol=1e-12)


IMPOSSIBLE = {
    "two are born at once": ([[0, 1]], [[1, 1]]),
    "born where all were alive": ([[0, -1], [0, 1], [0, 3]], [[1, 0], [0, 1], [0, 1]]),
    "born where a survivor is": ([[0, -1], [0, 0]], [[1, 0], [0, 1]]),
    "born at a place of weight zero": ([[2, -1]], [[1, 0]]),
    "alive before the first sample": ([[0, -1], [0, -1], [0, -1]], [[0, 0], [0, 0], [0, 0]]),
    "there without a birth": ([[-1, -1], [0, -1]], [[0, 0], [0, 0]]),
    "elsewhere without a walk": ([[0, -1], [1, -1]], [[1, 0], [0, 0]]),
    "from slot to slot": ([[0, -1], [-1, 0]], [[1, 0], [0, 0]]),
    "born in an empty slot": ([[-1, -1]], [[1, 0]]),
    "born in an empty slot beside a survivor": ([[0, -1], [0, -1]], [[1, 0], [0, 1]]),
}


def test_what_cannot_happen_has_no_probability():
    model = DynamicDipoles(0.3, 0.15, 2, location_prior=WEIGHTS, **SCALES)
    prior, parameters = write(model, make_problem())
    places = np.full((len(IMPOSSIBLE), 3, 2), -1, np.int32)
    is_new = np.zeros((len(IMPOSSIBLE), 3, 2), bool)
    for i, (held, new) in enumerate(IMPOSSIBLE.values()):
        # Nobody at the samples before.
        places[i, 3 - len(held) :], is_new[i, 3 - len(held) :] = held, new
    values = np.asarray(log_laws(prior, parameters, places, is_new))
    assert dict(zip(IMPOSSIBLE, values, strict=True)) == dict.fromkeys(IMPOSSIBLE, -np.inf)


def test_a_place_that_holds_nearly_all_prior_leaves_finite_laws_in_single_precision():
    weights = np.array([1.0, 1e-9, 1e-9, 1e-9, 1e-9])
    model = DynamicDipoles(0.3, 0.15, 2, location_prior=weights, **SCALES)
    prior, parameters = write(model, make_problem(), np.float32)
    places = np.array([[[0, -1], [0, 1]], [[1, -1], [1, 0]]], np.int32)
    is_new = np.array([[[True, False], [False, True]]] * 2)
    second, first = log_laws(prior, parameters, places, is_new)
    # Born in the place that is left when one of nearly all prior is held: with a quarter of a
    # probability of 4e-9, of which single precision knows that it is less than 1.2e-7.
    common = 2 * np.log(0.3) + np.log(0.85)
    assert common + np.log(1e-9 / 1.2e-7) - 1e-2 < second < common
    assert first == pytest.approx(common + np.log(1e-9), abs=1e-4)


def test_a_step_to_no_neighbour_cannot_happen():
    problem, model = track_oracle.toy_walk()
    prior, parameters = write(model, problem)
    places = np.array([[[0], [1]], [[0], [2]]], np.int32)
    is_new = np.array([[[True], [False]]] * 2)
    near, far = log_laws(prior, parameters, places, is_new)
    assert np.isfinite(near) and far == -np.inf


@pytest.mark.parametrize("step", [0.002, 0.01, 0.5])
def test_walks_keep_the_location_prior_and_read_alike_in_both_directions(step):
    n = 9
    problem = make_problem(n, seed=4)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, n)
    weights[3] = 0.0
    model = DynamicDipoles(motion=step, max_dipoles=2, location_prior=weights, **SCALES)
    prior, _ = write(model, problem)
    every = np.arange(n, dtype=np.int32)
    kernel = np.exp(jax.jit(prior.log_walk)(every[:, None], every[None, :]))
    np.testing.assert_allclose(kernel.sum(axis=1), 1, atol=1e-14)
    flow = np.exp(prior.log_place)[:, None] * kernel
    np.testing.assert_allclose(flow, flow.T, atol=1e-15)
    assert np.all(kernel[np.arange(n) != 3, 3] == 0)
    np.testing.assert_allclose(kernel, track_oracle.walk_matrix(problem, weights, step), atol=1e-14)
    # Neighbours are reached, and nothing else.
    joined = np.eye(n, dtype=bool)
    for source, row in enumerate(problem.neighbours):
        joined[source, row[row >= 0]] = True
    reached = kernel > 0
    assert not np.any(reached & ~joined)
    # The shortest step may underflow to nought; exp(-d^2 / 2 step^2) of longer ones does not.
    allowed = joined & (weights > 0)
    if step > 0.005:
        assert np.all(reached[weights > 0] == allowed[weights > 0])


def test_parameters_are_logarithms_and_logits_in_whitened_units():
    problem = make_problem(noise_groups=["meg"] * 4 + ["eeg"] * 2)
    model = DynamicDipoles(0.3, 0.15, 2, moment_std=4e-9, noise_std=1.5)
    prior, parameters = write(model, problem)
    wanted = [np.log(4e-9 / problem.moment_unit), np.log(1.5), np.log(1.5)]
    wanted += [np.log(0.3 / 0.7), np.log(0.15 / 0.85)]
    np.testing.assert_allclose(parameters, wanted, rtol=1e-12)
    assert prior.is_unknown == (False,) * 5 and prior.n_sources == 5
    assert float(prior.persistence) == 0.9
    np.testing.assert_array_equal(prior.log_density_of_parameters(parameters), 0)


@pytest.mark.slow
def test_unknown_parameters_have_the_law_that_was_given():
    problem = make_problem()
    model = DynamicDipoles(
        birth_prob=dist.Uniform(0.1, 0.3),
        death_prob=0.15,
        max_dipoles=2,
        moment_std=dist.LogNormal(np.log(4e-9), 0.5),
    )
    prior, _ = write(model, problem)
    assert prior.is_unknown == (True, True, True, False)
    sample = jax.jit(prior.sample_parameters, static_argnums=1)
    draws = np.asarray(sample(jax.random.key(3), 4000))
    assert draws.shape == (4000, 4)
    assert np.unique(draws[:, 3]).size == 1
    # Densities multiply: the joint is the sum of what each value has by itself, in logarithms.
    births = 1 / (1 + np.exp(-draws[:5, 2]))
    moment = np.exp(draws[:5, 0]) * problem.moment_unit
    low, high = float(prior.scales[1].log_low), float(prior.scales[1].log_high)
    wanted = (
        np.log(births * (1 - births) / 0.2)
        + dist.LogNormal(np.log(4e-9), 0.5).log_prob(moment)
        + np.log(moment)
        - np.log(high - low)
    )
    log_density = jax.jit(jax.vmap(prior.log_density_of_parameters))
    found = log_density(draws[:5])
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    # Averages of 4,000 draws within four and a half standard errors.
    births = 1 / (1 + np.exp(-draws[:, 2]))
    error = 4.5 / np.sqrt(4000)
    assert abs(births.mean() - 0.2) < error * 0.2 / np.sqrt(12)
    score = (draws[:, 0] - np.log(4e-9 / problem.moment_unit)) / 0.5
    assert abs(score.mean()) < error
    assert np.all((draws[:, 1] >= low) & (draws[:, 1] <= high))
    outside = draws[:5].copy()
    outside[:, 1] = high + 0.1
    assert np.all(log_density(outside) == -np.inf)


def test_single_precision_tells_the_same_law():
    problem = make_problem()
    model = DynamicDipoles(0.3, 0.15, 2, motion=0.01, location_prior=WEIGHTS, **SCALES)
    every = track_oracle.enumerate_trajectories(
        2, 5, 2, 0.3, 0.15, WEIGHTS, track_oracle.walk_matrix(problem, WEIGHTS, 0.01)
    )
    prior, parameters = write(model, problem, np.float32)
    assert parameters.dtype == prior.log_step.dtype == np.float32
    found = log_laws(prior, parameters, every.places.astype(np.int32), every.is_new)
    assert found.dtype == np.float32
    # A handful of logarithms, each with 1e-7 of its size; small steps lose a digit more.
    np.testing.assert_allclose(found, every.log_prior, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("birth_prob", value) for value in (0, 1, 1.5, -0.1, "often", None, np.nan, True)],
        ("birth_prob", dist.Normal(0.5, 1.0)),
        ("birth_prob", dist.Uniform(np.zeros(2), 1.0)),
        *[("death_prob", value) for value in (0.0, 1.0, "never", np.inf)],
        ("death_prob", dist.HalfNormal(2.0)),
        *[("max_dipoles", value) for value in (0, -1, 1.5, True, None)],
        *[("moment_std", value) for value in (0, -1e-9, np.nan, "large")],
        ("moment_std", dist.Normal(0.0, 1.0)),
        *[("noise_std", value) for value in (0, -1, np.inf, [1.0, 2.0])],
        *[("moment_persistence", value) for value in (1, 1.0, -0.1, np.nan, None, "high")],
        *[("motion", value) for value in ("walk", 0, -0.01, np.nan, None)],
        *[("loose", value) for value in (-0.1, 1.5, np.nan)],
    ],
)
def test_the_model_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=name):
        DynamicDipoles(**{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location_prior": np.ones(4)}, r"location_prior must have shape \(5\)"),
        ({"location_prior": np.array([1, 1, 1, 1, -1.0])}, "negative weights"),
        ({"location_prior": np.zeros(5)}, "location_prior has no places"),
        ({"location_prior": np.array([1, 1, 1, 1, np.nan])}, "location_prior has 1 NaN"),
        ({"max_dipoles": 5}, "max_dipoles is 5, but only 5 sources"),
        ({"location_prior": WEIGHTS, "max_dipoles": 4}, "max_dipoles is 4, but only 4 sources"),
        ({"loose": 0.3}, "needs source_normals"),
    ],
)
def test_a_prior_that_does_not_fit_the_sources_is_refused(change, message):
    model = DynamicDipoles(**{"max_dipoles": 2, **SCALES, **change})
    with pytest.raises(ValueError, match=message):
        write(model, make_problem())


def test_data_of_zeros_are_refused():
    problem = make_problem()
    blank = dataclasses.replace(problem, data=np.zeros_like(problem.data))
    with pytest.raises(ValueError, match="data are zero"):
        write(DynamicDipoles(max_dipoles=2), blank)
