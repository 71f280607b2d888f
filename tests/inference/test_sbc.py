"""Simulation-based calibration of the samplers.

The protocols: `benchmarks/calibration.py` and `benchmarks/calibration_tracks.py`.
"""

import calibration
import calibration_tracks
import jax
import numpy as np
import pytest
import replications

jax.config.update("jax_enable_x64", True)

# The suite may fail by chance about once in a thousand changes of seed or random number
# generator, whatever the number of statistics: each p-value is multiplied by their number
# (Bonferroni; they are dependent, which it allows for). The seed is fixed, so a pass stays one.
FAILURE_RATE = 1e-3
# What runs this short may say of themselves: the prior often fills all places that a model has, a
# few draws of many chains cannot show that the chains agree, and a dipole far above the noise may
# leave one particle of a thousand.
STATUSES = ("OK", "TOO_MANY_DIPOLES", "RUNS_DISAGREE", "PARTICLES_COLLAPSED")


def calibrate(protocol, method, n_replications, n_draws, seed, belief=None, **changes):
    template, belief = protocol.geometry(), belief or protocol.model()
    settings = {**protocol.METHOD_OPTIONS[method], **changes}
    truths, draws, notes = zip(
        *(
            protocol.replicate(r, template, belief, method, settings, n_draws, seed=seed)
            for r in range(n_replications)
        ),
        strict=True,
    )
    return np.array(truths), np.array(draws), notes


def check(protocol, truths, draws, notes):
    # Dense covariance matrices agree with what the sampler kept through all its local updates:
    # rounding, amplified by condition numbers of at most 1e6.
    for name in set(notes[0]) - {"status"}:
        assert max(note[name] for note in notes) < 1e-8, name
    assert all(note["status"] in STATUSES for note in notes)
    found = replications.verdicts(protocol.STATISTICS, truths, draws)
    for name, test in found.items():
        p_value = min(1.0, test["p_value"] * len(found))
        assert p_value > FAILURE_RATE, (name, test)
    return found


@pytest.fixture(scope="module")
def few():
    return calibrate(calibration, "smc", 20, 15, seed=11, n_particles=100)


@pytest.mark.long
def test_a_few_replications_run(few):
    assert few[1].shape == (20, len(calibration.STATISTICS), 15)
    check(calibration, *few)


@pytest.mark.long
def test_wrong_draws_are_found(few):
    """Noise levels 30 % too low are seen after 20 replications: the protocol has power."""
    truths, draws, _ = few
    too_low = draws.copy()
    at = calibration.STATISTICS.index("noise_std")
    too_low[:, at] *= 0.7
    found = replications.verdicts(("noise_std",), truths[:, [at]], too_low[:, [at]])["noise_std"]
    assert found["p_value"] < FAILURE_RATE
    assert found["bias"] > 4


def test_equal_unknowns_have_equal_statistics():
    """The truth and draws at the same places must tie, in whatever slots."""
    template = calibration.geometry()
    places = np.array([[4, 9, 30], [30, 4, 9], [9, 30, 4]])
    active = np.ones((3, 3), bool)
    problem, _ = calibration.draw_problem(jax.random.key(0), calibration.model(), template)
    values = calibration.statistics(problem, places, active, np.full(3, 3e-9), np.ones(3))
    np.testing.assert_array_equal(values, np.broadcast_to(values[:, :1], values.shape))


@pytest.mark.long
@pytest.mark.parametrize(("method", "n_replications"), [("smc", 200), ("reversible_jump", 50)])
def test_posteriors_are_calibrated(method, n_replications):
    check(calibration, *calibrate(calibration, method, n_replications, 63, seed=5))


# ---------------------------------------------------------------- dipoles that come and go


@pytest.fixture(scope="module")
def tracks():
    """Problems of one prior, and what all of them were made of."""
    template, belief = calibration_tracks.geometry(), calibration_tracks.model()
    keys = jax.random.split(jax.random.key(3), 24)
    problems, truths = zip(
        *(calibration_tracks.draw_problem(key, belief, template) for key in keys), strict=True
    )
    return problems, belief, calibration_tracks.stack(truths)


def values_of(problem, belief, unknowns, time):
    law = calibration_tracks.dense_law(problem, belief.moment_persistence, unknowns, time)
    values = calibration_tracks.statistics(problem, unknowns, time, law.mean, law.log_likelihood)
    return dict(zip(calibration_tracks.STATISTICS, values, strict=True)), law


def test_equal_trajectories_have_equal_statistics(tracks):
    """Whatever slots they are in."""
    (problem, *_), belief, unknowns = tracks
    swapped = unknowns._replace(
        places=unknowns.places[..., ::-1], is_new=unknowns.is_new[..., ::-1]
    )
    time = int(np.argmax(np.sum(np.all(unknowns.places >= 0, axis=2), axis=0)))
    assert np.any(np.all(unknowns.places[:, time] >= 0, axis=1))  # two dipoles at once
    values, others = (values_of(problem, belief, rows, time)[0] for rows in (unknowns, swapped))
    # Means of moments are not drawn, and equal up to rounding only.
    np.testing.assert_allclose(values.pop("moment"), others.pop("moment"), rtol=1e-9, atol=1e-18)
    for name, value in values.items():
        np.testing.assert_array_equal(value, others[name], name)


def test_statistics_say_what_they_mean(tracks):
    problem = tracks[0][0]
    places = np.full((1, 12, 2), -1)
    is_new = np.zeros((1, 12, 2), bool)
    places[0, 2:4, 0], places[0, 5:, 0], places[0, 3:9, 1] = 7, 8, 9  # the first slot twice
    is_new[0, [2, 5, 3], [0, 0, 1]] = True
    x = problem.source_pos[:, 0]
    unknowns = calibration_tracks.Unknowns(places, is_new, *np.ones((4, 1)))
    for time, number, birth, position in (
        (1, 0, -1, 0.0),
        (3, 2, 2, x[7] + x[9]),
        (6, 2, 3, x[8] + x[9]),
        (11, 1, 5, x[8]),
    ):
        told = calibration_tracks.statistics(problem, unknowns, time, np.zeros(1), np.zeros(1))
        told = dict(zip(calibration_tracks.STATISTICS, told[:, 0], strict=True))
        assert (told["number"], told["births"], told["birth_time"]) == (number, 3, birth)
        # Rounded so that sums tie.
        assert told["position"] == pytest.approx(position, abs=1e-9)


def test_dense_laws_are_those_of_the_package(tracks):
    """The likelihood and the smoothed moments, by two codes with nothing in common."""
    (problem, *_), belief, unknowns = tracks
    moments = calibration_tracks.package_moments(problem, belief, unknowns)
    for time in (0, 5, 11):
        _, law = values_of(problem, belief, unknowns, time)
        assert calibration_tracks.moment_error(moments, unknowns, time, law) < 1e-8  # rounding


def test_wrong_trajectories_are_found(tracks):
    """Draws that are late are seen; those that ignore the data, by the likelihood alone."""
    problems, belief, unknowns = tracks
    rows = [values_of(problem, belief, unknowns, 6)[0] for problem in problems]

    def test(name, shift=0.0):
        values = np.array([row[name] for row in rows])
        truths = np.diagonal(values)[:, None]
        # The truths of the other problems are draws of the prior.
        draws = [np.delete(value, i)[None] + shift for i, value in enumerate(values)]
        return replications.verdicts((name,), truths, np.array(draws))[name]

    for name in set(calibration_tracks.STATISTICS) - {"moment", "log_likelihood"}:
        assert test(name)["p_value"] > FAILURE_RATE, name
    assert test("log_likelihood")["p_value"] < FAILURE_RATE
    assert test("birth_time", 3)["p_value"] < FAILURE_RATE
    assert test("birth_time", 3)["bias"] < -3


@pytest.mark.long
@pytest.mark.parametrize("method", ["particle_smoother", "particle_filter", "particle_gibbs"])
def test_posteriors_of_tracks_are_calibrated(method):
    check(calibration_tracks, *calibrate(calibration_tracks, method, 40, 31, seed=5))


@pytest.mark.long
def test_backward_sampling_alone_is_calibrated():
    """Parameters given, no moves of its draws."""
    known = calibration_tracks.model(known=True)
    sizes = {"n_particles": 1000, "n_renewal_moves": 0}
    run = calibrate(calibration_tracks, "particle_smoother", 120, 31, seed=5, belief=known, **sizes)
    check(calibration_tracks, *run)
