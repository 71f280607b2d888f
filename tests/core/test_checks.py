"""Every refusal names the argument, says what came, and tells what to do."""

import numpy as np
import pytest

from bayes_esi.core.checks import (
    check_array,
    check_choice,
    check_count,
    check_fraction,
    check_positive,
)


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        ("text", {}, "weights must be a real numeric array, got str"),
        ([1j], {}, "weights must be a real numeric array, got list"),
        ([[1], [1, 2]], {}, "weights must be a real numeric array"),
        (None, {}, "weights must be a real numeric array"),
        (np.ones(3), {"ndim": 2}, r"weights must have shape \(any, any\), got \(3,\)"),
        (np.ones((2, 3)), {"shape": (2, 4)}, r"weights must have shape \(2, 4\), got \(2, 3\)"),
        (np.ones((2, 3)), {"shape": (4, "n_times")}, r"shape \(4, n_times\)"),
        (np.ones((2, 0)), {"ndim": 2}, r"weights is empty: its shape is \(2, 0\)"),
        ([1.0, np.nan], {}, "weights has 1 NaN or infinite value;"),
        ([-np.inf, np.nan], {"remedy": "Try again."}, "weights has 2 .* values; .*Try again."),
    ],
)
def test_arrays_that_do_not_fit_are_refused(value, wanted, message):
    with pytest.raises(ValueError, match=message):
        check_array("weights", value, **wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_that_fit_keep_their_precision(dtype):
    given = np.ones((2, 3), dtype)
    assert check_array("weights", given, shape=(2, "n_times")) is given


@pytest.mark.parametrize("given", [[1, 2], [True, False], np.arange(2, dtype=np.uint8)])
def test_whole_numbers_become_float64(given):
    array = check_array("weights", given)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, given)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "1", None, True, 1j, np.ones(2), [1.0]])
def test_only_finite_numbers_above_zero_are_positive(value):
    with pytest.raises(ValueError, match="noise_std must be .*positive.*Read on."):
        check_positive("noise_std", value, remedy="Read on.")


@pytest.mark.parametrize("value", [3, 2.5, np.float32(1.5), np.array(0.5), 1e-300])
def test_positive_numbers_become_floats(value):
    checked = check_positive("noise_std", value)
    assert type(checked) is float and checked == value


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, np.nan])
def test_fractions_lie_inside_the_open_interval(value):
    with pytest.raises(ValueError, match="level must"):
        check_fraction("level", value)
    assert check_fraction("level", 0.5) == 0.5


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "2", None, np.nan])
def test_counts_are_integers_from_a_minimum_on(value):
    with pytest.raises(ValueError, match="n_runs must be an integer of at least 1, got"):
        check_count("n_runs", value)


def test_counts_of_numpy_become_integers():
    assert type(check_count("n_runs", np.int64(3))) is int
    assert check_count("n_candidates", 0, minimum=0) == 0


def test_a_choice_that_does_not_exist_lists_those_that_do():
    assert check_choice("kind", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="kind must be one of 'a', 'b'; got 'c'"):
        check_choice("kind", "c", ("a", "b"))
