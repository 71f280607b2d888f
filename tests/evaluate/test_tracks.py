"""Distances of sets of places: identities of a metric, and cases computed by hand."""

import itertools

import numpy as np
import pytest

from bayes_esi.evaluate import tracks

NOBODY = np.zeros((0, 3))
A, B, C = np.array([[0.0, 0, 0], [0.01, 0, 0], [0, 0.02, 0]])


def random_set(rng):
    return 0.03 * rng.standard_normal((rng.integers(0, 4), 3))


@pytest.mark.parametrize("order", [1, 2])
def test_ospa_is_a_metric_bounded_by_its_cutoff(order):
    rng = np.random.default_rng(0)
    options = {"order": order, "cutoff": 0.05}
    for _ in range(200):
        x, y, z = (random_set(rng) for _ in range(3))
        xy, yz, xz = (tracks.ospa(a, b, **options) for a, b in ((x, y), (y, z), (x, z)))
        # Rounding of sums of a few terms.
        assert xz <= xy + yz + 1e-12 and 0 <= xy <= 0.05 + 1e-12
        assert tracks.ospa(y, x, **options) == pytest.approx(xy, abs=1e-12)
        assert tracks.ospa(rng.permutation(x), rng.permutation(y), **options) == pytest.approx(
            xy, abs=1e-12
        )
        assert tracks.ospa(x, rng.permutation(x), **options) == 0
        assert (xy == 0) == (len(x) == len(y) == 0)


def test_ospa_of_nothing_and_of_something_is_the_cutoff():
    assert tracks.ospa(NOBODY, NOBODY) == 0
    for order in (1, 3):
        for many in (A[None], np.stack([A, B, C])):
            assert tracks.ospa(NOBODY, many, order=order, cutoff=0.02) == pytest.approx(0.02)
            assert tracks.ospa(many, [], order=order, cutoff=0.02) == pytest.approx(0.02)


def test_ospa_of_small_sets_is_what_paper_and_pencil_give():
    # Best pairs: B-A at 10 mm; C-far at more than the cut-off of 30 mm.
    found, truth = np.stack([C, B]), np.stack([A, A + [0, 0, 1.0]])
    assert tracks.ospa(found, truth) == pytest.approx((0.01 + 0.03) / 2)
    assert tracks.ospa(found, truth, order=2) == pytest.approx(np.sqrt((1e-4 + 9e-4) / 2))
    # C against A costs 20 mm, the other one is too many.
    assert tracks.ospa(C[None], np.stack([A, A - [0.1, 0, 0]])) == pytest.approx(0.025)


def test_ospa_and_matched_distance_take_the_best_of_all_assignments():
    rng = np.random.default_rng(1)
    for _ in range(50):
        x, y = 0.02 * rng.standard_normal((2, 3)), 0.02 * rng.standard_normal((4, 3))
        pairs = [
            np.linalg.norm(x - y[list(p)], axis=1) for p in itertools.permutations(range(4), 2)
        ]
        wanted = min(np.minimum(d, 0.03).sum() for d in pairs)
        assert tracks.ospa(x, y) == pytest.approx((wanted + 2 * 0.03) / 4)
        assert tracks.matched_distance(x, y) == pytest.approx(min(d.mean() for d in pairs))
    assert np.isnan(tracks.matched_distance(NOBODY, y))


def test_over_time_is_sample_by_sample():
    found, truth = [NOBODY, A[None], np.stack([A, B])], [A[None], B[None], np.stack([A, B])]
    np.testing.assert_allclose(tracks.ospa_over_time(found, truth), [0.03, 0.01, 0], atol=1e-12)
    np.testing.assert_allclose(tracks.matched_distance_over_time(found, truth), [np.nan, 0.01, 0])
    with pytest.raises(ValueError, match=r"found has 2 samples, but truth has 3"):
        tracks.ospa_over_time(found[:2], truth)


def test_expected_ospa_is_the_mean_over_draws():
    rng = np.random.default_rng(2)
    source_pos = 0.02 * rng.standard_normal((6, 3))
    places = rng.integers(-1, 6, (40, 3, 2))
    truth = [NOBODY, source_pos[:1], source_pos[2:4]]
    every = [tracks.ospa_over_time(tracks.places_to_sets(p, source_pos), truth) for p in places]
    found = tracks.expected_ospa(places, source_pos, truth)
    np.testing.assert_allclose(found, np.mean(every, axis=0), atol=1e-15)
    with pytest.raises(ValueError, match="flatten runs"):
        tracks.expected_ospa(places[0], source_pos, truth)


def test_error_of_the_number_is_its_expected_absolute_value():
    pmf = [[0.5, 0.25, 0.25], [0, 1, 0], [0, 0.4, 0.6]]
    np.testing.assert_allclose(tracks.number_error(pmf, [0, 1, 2]), [0.75, 0, 0.4])
    with pytest.raises(ValueError, match="n_dipoles must have shape"):
        tracks.number_error(pmf, [0, 1])


def test_peaks_are_the_centres_of_mass_of_what_lies_together():
    line = 0.01 * np.arange(12)[:, None] * np.array([1.0, 0, 0])
    intensity = np.zeros((3, 12))
    # Two neighbours together outweigh the highest place.
    intensity[0, [2, 3, 9]] = 0.45, 0.45, 0.6
    intensity[2, 5] = 1.0
    found = tracks.intensity_peaks(intensity, [2, 1, 3], line, radius=0.0101)
    np.testing.assert_allclose(found[0][:, 0], [0.025, 0.09], atol=1e-12)
    assert found[1].shape == (0, 3)
    np.testing.assert_allclose(found[2], [[0.05, 0, 0]], atol=1e-12)
    alone = tracks.intensity_peaks(intensity[:1], [1], line, radius=0.0101)
    np.testing.assert_allclose(alone[0], found[0][:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"order": 0.5}, "order"), ({"cutoff": 0.0}, "cutoff"), ({"found": [A[:2]]}, "found")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tracks.ospa(**({"found": A[None], "truth": A[None]} | options))
