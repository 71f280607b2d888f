"""Which life is which across draws: labels against lives whose identity is known."""

import time

import numpy as np
import pytest

from bayes_esi.posterior.track_matching import list_lives, match_lives, mean_places

N_TIMES = 40
POS = np.concatenate([c + np.linspace(0, 0.004, 5)[:, None] for c in np.eye(3) * 0.06])


def trajectories(draws, n_slots=4, n_times=N_TIMES):
    """Arrays of draws, each a list of (slot, birth, death, place or places)."""
    places = np.full((len(draws), n_times, n_slots), -1)
    is_new = np.zeros(places.shape, bool)
    for i, lives in enumerate(draws):
        for slot, birth, death, place in lives:
            assert np.all(places[i, birth:death, slot] < 0)
            places[i, birth:death, slot] = place
            is_new[i, birth, slot] = True
    return places, is_new


def labels_of(draws, score=None, **sizes):
    """For each draw, {label: (birth, death, first place)}."""
    places, is_new = trajectories(draws, **sizes)
    lives = list_lives(places, is_new)
    weights = np.full(len(draws), 1 / len(draws))
    score = np.zeros(len(draws)) if score is None else score
    members = match_lives(lives, places, weights, POS, score)
    found = []
    for row in members:
        named = {}
        for label, k in enumerate(row):
            if k >= 0:
                birth, death = int(lives.birth[k]), int(lives.death[k])
                place = int(places[lives.draw[k], birth, lives.slot[k]])
                named[label] = (birth, death, place)
        found.append(named)
    return found, members.shape[1]


def test_lives_are_listed():
    draws = [
        [(0, 0, 3, 1), (0, 3, 5, 2), (2, 39, 40, 4)],  # reborn in the same slot without a gap
        [],
        [(1, 0, 40, 3), (0, 7, 8, 0)],
    ]
    places, is_new = trajectories(draws)
    lives = list_lives(places, is_new)
    rows = list(zip(*(part.tolist() for part in lives), strict=True))
    expected = [(i, *life[:3]) for i, draw in enumerate(draws) for life in draw]
    assert sorted(rows) == sorted(expected)
    assert lives.draw.tolist() == sorted(lives.draw)


def test_a_life_without_birth_is_refused():
    places, is_new = trajectories([[(0, 0, 3, 1)], [(1, 5, 9, 1)]])
    is_new[1, 5, 1] = False
    with pytest.raises(ValueError, match="in draw 1, a dipole appears in slot 1 at sample 5"):
        list_lives(places, is_new)


def test_place_of_a_walk_is_its_mean():
    places, is_new = trajectories([[(0, 2, 5, [0, 5, 10]), (1, 0, 40, 7)]])
    lives = list_lives(places, is_new)
    pos = mean_places(lives, places, POS)
    np.testing.assert_allclose(pos[0], POS[[0, 5, 10]].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(pos[1], POS[7], rtol=1e-14)


def test_one_place_at_two_times_is_two_dipoles():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(100):
        early = (int(rng.integers(2)), 2 + int(rng.integers(3)), 12, int(rng.integers(5)))
        late = (int(rng.integers(2)), 20, 30 + int(rng.integers(5)), int(rng.integers(5)))
        draws.append([early, late])
    found, n_labels = labels_of(draws)
    assert n_labels == 2
    is_early = np.array([[named[label][0] < 15 for label in range(2)] for named in found])
    assert np.all(is_early == is_early[0]) and is_early[0].sum() == 1


def test_a_life_of_uncertain_birth_is_one_dipole():
    # Born anywhere in the first three quarters of its longest life.
    draws = [[(0, int(birth), 38, 2)] for birth in np.linspace(0, 28, 100)]
    found, n_labels = labels_of(draws, score=-np.arange(100.0))
    assert n_labels == 1 and all(len(named) == 1 for named in found)


def test_names_do_not_depend_on_slots_or_order():
    rng = np.random.default_rng(1)
    draws = []
    for i in range(200):
        lives = [(c, 5 * c, 25 + 5 * c, 5 * c + int(rng.integers(5))) for c in range(3)]
        lives = lives[: 2 if i % 4 == 0 else 3]
        slots = rng.permutation(4)
        draws.append([(int(slots[c]), *rest) for c, *rest in lives])
    found, n_labels = labels_of(draws, score=rng.standard_normal(200))
    assert n_labels == 3
    for label in range(3):
        clusters = {named[label][2] // 5 for named in found if label in named}
        assert len(clusters) == 1
    assert sum(len(named) for named in found) == sum(len(draw) for draw in draws)


def test_rare_lives_are_named_down_to_one_draw_in_twenty():
    common = (0, 0, 40, 0)
    draws = [[common, (1, 10, 20, 5)] if i < 12 else [common] for i in range(200)]
    draws = [[*draw, (2, 30, 35, 10)] if i < 8 else draw for i, draw in enumerate(draws)]
    found, n_labels = labels_of(draws)
    assert n_labels == 2  # 6 % is named, 4 % is not
    assert sum((10, 20, 5) in named.values() for named in found) == 12
    assert not any((30, 35, 10) in named.values() for named in found)


def test_a_poor_reference_is_given_up():
    # The draw of highest score holds a dipole nobody else has, and lacks one that all others have.
    draws = [[(0, 0, 40, 0), (1, 5, 9, 5)]] + [[(0, 0, 40, 1), (1, 5, 20, 10)]] * 99
    found, n_labels = labels_of(draws, score=np.r_[1.0, np.zeros(99)])
    assert n_labels == 2
    assert len(found[0]) == 1 and all(len(named) == 2 for named in found[1:])


def test_far_places_are_not_one_dipole():
    # Never both in one draw, at the same time, 8 cm apart.
    draws = [[(0, 3, 30, 0 if i % 2 else 5)] for i in range(40)]
    found, n_labels = labels_of(draws)
    assert n_labels == 2
    for label in range(2):
        assert len({named[label][2] for named in found if label in named}) == 1


def test_nobody_and_nothing_in_common():
    assert labels_of([[], []])[1] == 0
    # Each life unlike any other, in a hundred draws: no group holds one draw in twenty.
    places = np.full((100, 200, 1), -1)
    is_new = np.zeros(places.shape, bool)
    for i in range(100):
        places[i, 2 * i : 2 * i + 2, 0] = 0
        is_new[i, 2 * i, 0] = True
    lives = list_lives(places, is_new)
    assert match_lives(lives, places, np.full(100, 0.01), POS, np.zeros(100)).shape == (100, 0)


def test_a_thousand_draws_of_ten_tracks_take_less_than_two_seconds():
    rng = np.random.default_rng(2)
    n_draws, n_times, n_slots = 1000, 200, 10
    pos = rng.uniform(-0.07, 0.07, (4000, 3))
    nearest = [np.argsort(np.linalg.norm(pos - c, axis=1))[:15] for c in pos[:n_slots]]
    first, length = rng.integers(5, 120, n_slots), rng.integers(30, 70, n_slots)
    places = np.full((n_draws, n_times, n_slots), -1)
    is_new = np.zeros(places.shape, bool)
    for i in range(n_draws):
        for k, slot in enumerate(rng.permutation(n_slots)):
            begin = first[k] + rng.integers(-5, 6)
            places[i, begin : begin + length[k], slot] = rng.choice(nearest[k])
            is_new[i, begin, slot] = True
    start = time.process_time()  # of this process: whatever else the machine does
    lives = list_lives(places, is_new)
    members = match_lives(lives, places, np.full(n_draws, 1e-3), pos, rng.standard_normal(n_draws))
    assert time.process_time() - start < 2.0
    assert members.shape == (n_draws, n_slots) and np.all(members >= 0)
