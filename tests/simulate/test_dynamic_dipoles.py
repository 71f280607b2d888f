"""Dipoles that are drawn follow the law, dipoles that are told do as told; both in SI units."""

import dataclasses

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle
from scipy.stats import chisquare

from bayes_esi.models.dynamic_dipoles import DynamicDipoles
from bayes_esi.models.problem import Problem
from bayes_esi.simulate.dynamic_dipoles import Track, draw_problem, draw_tracks, simulate_tracks
from bayes_esi.simulate.static_dipoles import random_geometry

SCALES = {"moment_std": 3e-9, "noise_std": 1.5}
WEIGHTS = np.array([1.0, 2.0, 0.0, 4.0, 1.5, 0.5])
# All comparisons of averages below allow for this many standard errors.
N_STD = 4.5


@pytest.fixture(scope="module")
def geometry():
    return random_geometry(jax.random.key(1), 6, 5, 3)


def lengthen(template, n_times):
    """The same geometry with another number of samples."""
    return dataclasses.replace(
        template,
        data=np.zeros((template.data.shape[0], n_times)),
        times=np.arange(n_times) * 0.01,
    )


@pytest.fixture(scope="module")
def long_life(geometry):
    """One long trajectory of three slots: what happens at a sample is new given those before."""
    model = DynamicDipoles(0.3, 0.15, 3, location_prior=WEIGHTS, moment_persistence=0.8, **SCALES)
    return model, draw_tracks(jax.random.key(2), model, lengthen(geometry, 5000))


# Static dipoles in two slots; walking ones, who may meet.
@pytest.mark.parametrize("motion", ["static", 0.05])
def test_whole_trajectories_have_the_frequencies_of_the_law(geometry, motion):
    template = lengthen(geometry, 2 if motion != "static" else 3)
    model = DynamicDipoles(0.6, 0.3, 2, location_prior=WEIGHTS, motion=motion, **SCALES)
    walk = None
    if motion != "static":
        walk = track_oracle.walk_matrix(template, WEIGHTS, motion)
    every = track_oracle.enumerate_trajectories(template.n_times, 6, 2, 0.6, 0.3, WEIGHTS, walk)
    number = {
        (places.tobytes(), is_new.tobytes()): i
        for i, (places, is_new) in enumerate(zip(every.places, every.is_new, strict=True))
    }
    n = 800
    found = np.zeros(len(number))
    for i in range(n):
        truth = draw_tracks(jax.random.key(i), model, template)
        found[number[truth.places.tobytes(), truth.is_new.tobytes()]] += 1
    expected = n * np.exp(every.log_prior)
    # Rare ones together, so that chi-square has its law.
    rare = expected < 5
    found, expected = (np.append(x[~rare], x[rare].sum()) for x in (found, expected))
    assert len(expected) > 20
    assert chisquare(found, expected).pvalue > 1e-4


def test_births_and_deaths_have_their_frequencies(long_life):
    model, truth = long_life
    alive = truth.places >= 0
    survives = alive[1:] & ~truth.is_new[1:]
    # Each is a coin thrown anew whatever came before: binomial errors.
    n_before = alive[:-1].sum()
    died = n_before - survives.sum()
    assert abs(died - n_before * 0.15) < N_STD * np.sqrt(n_before * 0.15 * 0.85)
    has_room = np.concatenate([[True], alive[:-1].sum(axis=1) < model.max_dipoles])
    born = truth.is_new.sum(axis=1)
    n_room = has_room.sum()
    assert abs(born.sum() - n_room * 0.3) < N_STD * np.sqrt(n_room * 0.3 * 0.7)
    assert 200 < np.sum(~has_room) < n_room
    assert np.all(born[~has_room] == 0) and born.max() == 1
    assert not np.any(truth.is_new & ~alive)


def test_newborns_take_the_first_slot_and_a_free_place_in_proportion_to_its_weight(long_life):
    _, truth = long_life
    share, spread, found = np.zeros(6), np.zeros(6), np.zeros(6)
    for t, slot in zip(*np.nonzero(truth.is_new), strict=True):
        others = np.where(np.arange(3) == slot, -1, truth.places[t])
        assert np.all(others[:slot] >= 0)
        free = WEIGHTS.copy()
        free[others[others >= 0]] = 0.0
        free /= free.sum()
        assert free[truth.places[t, slot]] > 0
        share, spread = share + free, spread + free * (1 - free)
        found[truth.places[t, slot]] += 1
    # Draws are independent given those before, with known probabilities.
    assert np.all(np.abs(found - share) <= N_STD * np.sqrt(spread))
    assert found.sum() > 1000


def test_static_dipoles_stay_where_they_are(long_life):
    _, truth = long_life
    survives = (truth.places[1:] >= 0) & ~truth.is_new[1:]
    assert np.all((truth.places[1:] == truth.places[:-1])[survives])


def test_moments_are_stationary_with_the_correlation_of_the_law(long_life):
    model, truth = long_life
    score = np.moveaxis(truth.moments, 2, 0) / model.moment_std  # (n_times, n_slots, 3)
    assert np.all(score[truth.places < 0] == 0)
    survives = (truth.places[1:] >= 0) & ~truth.is_new[1:]
    before, after = score[:-1][survives].ravel(), score[1:][survives].ravel()
    newborn = score[truth.is_new].ravel()
    innovation = (after - 0.8 * before) / np.sqrt(1 - 0.8**2)
    # Newborns and innovations are independent standard normal numbers.
    for sample in (newborn, innovation):
        assert abs(sample.mean()) < N_STD / np.sqrt(sample.size)
        assert abs(np.mean(sample**2) - 1) < N_STD * np.sqrt(2 / sample.size)
    # Given the moment before, the product with the innovation has its square as variance.
    assert abs(np.sum(innovation * before)) < N_STD * np.sqrt(np.sum(before**2))
    # Old ones have the law of newborns. Values of one life are correlated, so the error is
    # that of the average of lives.
    lives = truth.lives()
    per_life = np.array([score[last, slot] for slot, first, last in lives if last > first + 4])
    assert abs(np.mean(per_life**2) - 1) < N_STD * np.sqrt(2 / per_life.size)


def test_lives_are_read_from_slots():
    places = np.array([[3, -1], [3, 1], [2, 1], [2, 4], [-1, 4]])
    is_new = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0]], bool)
    _, model = track_oracle.toy_two()
    truth = draw_tracks(jax.random.key(0), model, random_geometry(jax.random.key(0), 5, 4, 2))
    truth = dataclasses.replace(truth, places=places, is_new=is_new)
    assert truth.lives() == [(0, 0, 1), (1, 1, 2), (0, 2, 3), (1, 3, 4)]
    np.testing.assert_array_equal(truth.n_dipoles, [1, 2, 2, 2, 1])


def test_walks_leave_the_location_prior_as_it_is(geometry):
    model = DynamicDipoles(0.5, 0.02, 1, location_prior=WEIGHTS, motion=0.05, **SCALES)
    truth = draw_tracks(jax.random.key(5), model, lengthen(geometry, 4000))
    assert np.mean(truth.places[1:] != truth.places[:-1]) > 0.2
    # Lives of one dipole at a time are independent, and each sample has the location prior:
    # errors from the spread over lives, which are a hundred or so.
    wanted = WEIGHTS / WEIGHTS.sum()
    counts = np.zeros((len(truth.lives()), 6))
    for i, (slot, first, last) in enumerate(truth.lives()):
        counts[i] = np.bincount(truth.places[first : last + 1, slot], minlength=6)
    excess = counts - wanted * counts.sum(axis=1, keepdims=True)
    error = np.sqrt(len(counts)) * excess.std(axis=0)
    assert len(counts) > 50
    assert np.all(np.abs(excess.sum(axis=0)) <= N_STD * error)
    assert np.all(counts[:, 2] == 0)


@pytest.mark.parametrize("n_orient", [1, 3])
def test_data_are_field_of_the_moments_plus_noise_of_each_group(n_orient):
    groups = ("meg",) * 4 + ("eeg",) * 2
    template = random_geometry(jax.random.key(3), 10, 6, 40, n_orient=n_orient, noise_groups=groups)
    model = DynamicDipoles(0.3, 0.1, 3, moment_std=5e-9, noise_std=1.7, motion=0.03)
    scores = []
    for i in range(10):
        problem, truth = draw_problem(jax.random.key(i), model, template)
        assert truth.moments.shape == (3, n_orient, 40) and truth.noise_std.shape == (2,)
        residual = np.array(problem.data)
        for t, slot in zip(*np.nonzero(truth.places >= 0), strict=True):
            field = template.lead_field[:, truth.places[t, slot]] / template.moment_unit
            residual[:, t] -= field @ truth.moments[slot, :, t]
        scores.append(residual / truth.noise_std[template.noise_group][:, None])
    power = np.mean(np.array(scores) ** 2, axis=(0, 2))
    np.testing.assert_allclose(power, 1, atol=N_STD * np.sqrt(2 / 400))


def test_moments_keep_to_the_orientation_law():
    rng = np.random.default_rng(0)
    template = Problem.from_arrays(
        np.zeros((6, 30)),
        rng.standard_normal((6, 9, 3)),
        rng.uniform(-0.05, 0.05, (9, 3)),
        source_normals=rng.standard_normal((9, 3)),
    )
    model = DynamicDipoles(0.5, 0.1, 2, loose=0.0, motion=0.05, **SCALES)
    truth = draw_tracks(jax.random.key(1), model, template)
    t, slot = np.nonzero(truth.places >= 0)
    assert len(t) > 20
    normals = template.source_normals[truth.places[t, slot]]
    crossed = np.cross(truth.moments[slot, :, t], normals, axis=1)
    np.testing.assert_allclose(crossed, 0, atol=1e-20)


def test_unknowns_follow_their_distributions(geometry):
    model = DynamicDipoles(
        birth_prob=dist.Uniform(0.1, 0.3),
        death_prob=dist.Uniform(0.2, 0.6),
        max_dipoles=2,
        moment_std=dist.LogNormal(np.log(2e-9), 0.5),
        noise_std=dist.LogNormal(0.3, 0.2),
    )
    n = 250
    truths = [draw_tracks(jax.random.key(i), model, geometry) for i in range(n)]
    scores = [
        (np.array([truth.birth_prob for truth in truths]) - 0.2) * np.sqrt(12) / 0.2,
        (np.array([truth.death_prob for truth in truths]) - 0.4) * np.sqrt(12) / 0.4,
        (np.log([truth.moment_std for truth in truths]) - np.log(2e-9)) / 0.5,
        (np.log([truth.noise_std[0] for truth in truths]) - 0.3) / 0.2,
    ]
    for score in scores:
        assert abs(score.mean()) < N_STD / np.sqrt(n)
        # The square of a standard normal has variance 2; of a uniform, less.
        assert abs(score.var() - 1) < N_STD * np.sqrt(2 / n)
    pairs = np.corrcoef(scores)[np.triu_indices(4, 1)]
    assert np.all(np.abs(pairs) < N_STD / np.sqrt(n))


def test_only_the_data_change_and_the_key_decides(geometry):
    model = DynamicDipoles(0.5, 0.1, 2, **SCALES)
    problem, truth = draw_problem(jax.random.key(5), model, geometry)
    again, same = draw_problem(jax.random.key(5), model, geometry)
    other, _ = draw_problem(jax.random.key(6), model, geometry)
    np.testing.assert_array_equal(problem.data, again.data)
    np.testing.assert_array_equal(truth.places, same.places)
    np.testing.assert_array_equal(truth.moments, same.moments)
    assert not np.array_equal(problem.data, other.data)
    assert problem.lead_field is geometry.lead_field
    assert problem.data.dtype == geometry.data.dtype
    assert not np.any(geometry.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moment_std": None}, "moment_std must be a number or a numpyro distribution"),
        ({"noise_std": None}, "noise_std must be a number or a numpyro distribution"),
        ({"max_dipoles": 6}, "max_dipoles is 6, but only 6 sources"),
        ({"location_prior": np.ones(4)}, "location_prior must have shape"),
    ],
)
def test_refuses_what_cannot_be_drawn(geometry, change, message):
    model = DynamicDipoles(**{"max_dipoles": 2, **SCALES, **change})
    for draw in (draw_problem, draw_tracks):
        with pytest.raises(ValueError, match=message):
            draw(jax.random.key(0), model, geometry)


TIMES = 0.1 + 0.01 * np.arange(8)
FIELD = 1e3 * np.random.default_rng(1).standard_normal((4, 6, 3))


def told(**change):
    return Track(**{"places": 2, "birth": 0.12, "death": 0.15, "moment": np.ones((3, 4)), **change})


def test_told_tracks_are_there_when_and_where_they_were_told():
    moment = 1e-8 * np.random.default_rng(2).standard_normal((3, 4))
    walk = np.array([4, 4, 5])
    tracks = [
        told(moment=moment),
        told(places=walk, birth=0.14, death=0.16, moment=lambda t: 1e-8 * np.stack([t, -t, 0 * t])),
        told(places=0, birth=-1.0, death=0.11, moment=2e-8 * np.ones((3, 2))),
    ]
    data, truth = simulate_tracks(jax.random.key(0), tracks, FIELD, TIMES)
    wanted = np.zeros((4, 8))
    for k in range(4):
        wanted[:, 2 + k] += FIELD[:, 2] @ moment[:, k]
    for k in range(3):
        t = TIMES[4 + k]
        wanted[:, 4 + k] += FIELD[:, walk[k]] @ (1e-8 * np.array([t, -t, 0]))
    for k in range(2):
        wanted[:, k] += FIELD[:, 0] @ (2e-8 * np.ones(3))
    np.testing.assert_allclose(data, wanted, rtol=1e-12, atol=1e-18)
    # The third dies before the first is born, and leaves it its slot.
    np.testing.assert_array_equal(
        truth.places,
        np.array([[0, 0, 2, 2, 2, 2, -1, -1], [-1, -1, -1, -1, 4, 4, 5, -1]]).T,
    )
    assert truth.lives() == [(0, 0, 1), (0, 2, 5), (1, 4, 6)]
    np.testing.assert_array_equal(truth.moments[0][:, 2:6], moment)
    assert not np.any(truth.moments[:, :, 7])
    assert truth.moment_std is truth.noise_std is truth.birth_prob is truth.death_prob is None


def test_noise_of_told_tracks_has_its_covariance_whatever_its_rank():
    rng = np.random.default_rng(4)
    # Two units, and a projected direction.
    root = np.diag([1e-13, 1e-13, 1e-6, 1e-6]) @ rng.standard_normal((4, 3))
    times, n = np.arange(20_000) * 1e-3, 20_000
    data, truth = simulate_tracks(jax.random.key(3), [], FIELD, times, root @ root.T)
    assert truth.places.shape == (n, 0) and truth.lives() == []
    score = np.linalg.pinv(root / [[1e-13], [1e-13], [1e-6], [1e-6]]) @ (
        data / [[1e-13], [1e-13], [1e-6], [1e-6]]
    )
    cov = score @ score.T / n
    np.testing.assert_allclose(cov, np.eye(3), atol=N_STD * np.sqrt(2 / n))
    lagged = score[:, 1:] @ score[:, :-1].T / n
    np.testing.assert_allclose(lagged, 0, atol=N_STD / np.sqrt(n))
    # What the covariance does not span, the noise does not reach.
    explained = root / [[1e-13], [1e-13], [1e-6], [1e-6]] @ score
    np.testing.assert_allclose(explained, data / [[1e-13], [1e-13], [1e-6], [1e-6]], atol=1e-6)


def test_one_orientation_takes_a_plain_course():
    track = told(moment=np.arange(4.0))
    data, truth = simulate_tracks(jax.random.key(0), [track], FIELD[:, :, :1], TIMES)
    np.testing.assert_allclose(data[:, 2:6], np.outer(FIELD[:, 2, 0], np.arange(4.0)))
    assert truth.moments.shape == (1, 1, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"birth": 0.5, "death": 0.6}, r"tracks\[0\] lives from 0.5 to 0.6 s, without a sample"),
        ({"birth": 0.121, "death": 0.129}, "without a sample"),
        ({"birth": 0.14, "death": 0.12}, "without a sample"),
        ({"places": 6}, r"tracks\[0\].places must lie between 0 and 5"),
        ({"places": -1}, r"tracks\[0\].places must lie between 0 and 5"),
        ({"places": [1, 2]}, "one for each of its 4 samples"),
        ({"places": 1.5}, "must be a source number"),
        ({"moment": np.ones((3, 5))}, r"tracks\[0\].moment must have shape \(3, 4\)"),
        ({"moment": np.ones(4)}, r"tracks\[0\].moment must have shape \(3, 4\)"),
        ({"moment": np.full((3, 4), np.nan)}, r"tracks\[0\].moment has 12 NaN"),
        ({"moment": lambda t: t[:2]}, r"tracks\[0\].moment must have shape"),
    ],
)
def test_refuses_tracks_that_contradict_themselves(change, message):
    with pytest.raises(ValueError, match=message):
        simulate_tracks(jax.random.key(0), [told(**change)], FIELD, TIMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lead_field": FIELD[:, :, 0]}, "lead_field must have shape"),
        ({"times": TIMES[::-1]}, "times must ascend"),
        ({"noise_cov": np.eye(3)}, r"noise_cov must have shape \(4, 4\)"),
        ({"noise_cov": np.diag([1.0, 1, 1, -1])}, "noise_cov must be symmetric"),
        ({"noise_cov": 1e-26 * np.triu(np.ones((4, 4)))}, "noise_cov must be symmetric"),
    ],
)
def test_refuses_scenarios_that_do_not_fit(change, message):
    arguments = {"lead_field": FIELD, "times": TIMES, "noise_cov": np.eye(4), **change}
    with pytest.raises(ValueError, match=message):
        simulate_tracks(jax.random.key(0), [], **arguments)
