"""A first guess: right where the answer is plain, harmless where it is not."""

import numpy as np
import pytest

from bayes_esi.inference import pursuit


def make_arrays(places, amplitude=5.0, noise=1.0, d=3, n_sources=40, rank=20, n_times=30, seed=0):
    rng = np.random.default_rng(seed)
    lead_field = rng.standard_normal((rank, n_sources, d))
    field = lead_field[:, places].reshape(rank, -1)
    data = amplitude * field @ rng.standard_normal((field.shape[1], n_times))
    return lead_field, data + noise * rng.standard_normal((rank, n_times))


@pytest.mark.parametrize("d", [1, 3])
def test_loud_dipoles_are_found_and_the_noise_with_them(d):
    lead_field, data = make_arrays([7, 31], d=d, noise=0.5)
    guess = pursuit.run(lead_field, data, np.zeros(20, int), 1, 3)
    assert set(guess.places[:2]) == {7, 31}
    # 420 residual degrees of freedom: 3.5 % standard error, and the least of a few levels.
    assert guess.noise_std == pytest.approx([0.5], rel=0.15)


def test_without_noise_the_residual_vanishes():
    lead_field, data = make_arrays([7, 31], noise=0.0)
    guess = pursuit.run(lead_field, data, np.zeros(20, int), 1, 2)
    assert guess.places.tolist() in ([7, 31], [31, 7])
    assert guess.noise_std[0] < 1e-8 * np.sqrt(np.mean(data**2))


def test_each_group_has_its_own_level():
    group = np.repeat([0, 1], 10)
    lead_field, data = make_arrays([7], noise=0.0)
    std = np.where(group == 0, 0.5, 1.0)[:, None]
    data += std * np.random.default_rng(1).standard_normal(data.shape)
    guess = pursuit.run(lead_field, data, group, 2, 2)
    assert guess.places[0] == 7
    # A fit without weights carries some noise of the loud group into the quiet one.
    assert guess.noise_std == pytest.approx([0.5, 1.0], rel=0.3)


def test_the_guess_follows_the_scale_of_the_data_and_not_that_of_the_field():
    lead_field, data = make_arrays([7, 31])
    one = pursuit.run(lead_field, data, np.zeros(20, int), 1, 3)
    other = pursuit.run(1e3 * lead_field, 10 * data, np.zeros(20, int), 1, 3)
    np.testing.assert_array_equal(one.places, other.places)
    np.testing.assert_allclose(other.noise_std, 10 * one.noise_std, rtol=1e-9)


@pytest.mark.parametrize(("n_sources", "rank", "d"), [(2, 20, 3), (40, 4, 3), (40, 1, 1)])
def test_no_more_dipoles_than_sources_or_degrees_of_freedom(n_sources, rank, d):
    lead_field, data = make_arrays([0], d=d, n_sources=n_sources, rank=rank)
    guess = pursuit.run(lead_field, data, np.zeros(rank, int), 1, 10)
    assert len(set(guess.places)) == len(guess.places) <= min(n_sources, max(1, rank // (2 * d)))
    assert len(guess.places) * d < rank or not len(guess.places)
    assert np.all(np.isfinite(guess.noise_std)) and np.all(guess.noise_std > 0)


def test_a_silent_direction_does_not_win():
    lead_field, data = make_arrays([7])
    lead_field[:, 3, 2] = 0.0  # a radial moment of MEG
    lead_field[:, 4] = 0.0
    guess = pursuit.run(lead_field, data, np.zeros(20, int), 1, 1)
    assert guess.places.tolist() == [7]
