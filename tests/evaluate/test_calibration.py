"""The check of the checkers: calibrated draws pass, wrong ones fail in the way they are wrong."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

from bayes_esi.evaluate.calibration import coverage, ecdf_band, ranks, uniformity

N_REPLICATIONS, N_DRAWS = 400, 63
KEY = jax.random.key(3)
# Seeds are fixed, and calibrated draws fall below this once in a thousand changes of them.
LEVEL = 1e-3


def conjugate(seed, *, shift=0.0, factor=1.0):
    """Truths, data and draws of x ~ N(0, 1), y ~ N(x, 1): x | y ~ N(y / 2, 1 / 2)."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(N_REPLICATIONS)
    data = truth + rng.standard_normal(N_REPLICATIONS)
    noise = rng.standard_normal((N_REPLICATIONS, N_DRAWS))
    return truth, data, data[:, None] / 2 + np.sqrt(0.5) * (shift + factor * noise)


def verdict(truth, draws):
    return uniformity(ranks(KEY, truth, draws), draws.shape[1])


def test_exact_posterior_passes():
    truth, _, draws = conjugate(0)
    test = verdict(truth, draws)
    assert test.p_value > LEVEL
    assert abs(test.bias) < 3.5 and abs(test.dispersion) < 3.5
    assert test.histogram.sum() == N_REPLICATIONS
    np.testing.assert_allclose(test.expected.sum(), N_REPLICATIONS)


@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_bias_is_found_with_its_sign(shift):
    truth, _, draws = conjugate(1, shift=shift)
    test = verdict(truth, draws)
    assert test.p_value < LEVEL
    assert np.sign(test.bias) == -np.sign(shift)
    assert abs(test.bias) > 4


@pytest.mark.parametrize("factor", [0.75, 1.4])
def test_false_confidence_and_false_modesty_are_found(factor):
    truth, _, draws = conjugate(2, factor=factor)
    test = verdict(truth, draws)
    assert test.p_value < LEVEL
    assert test.dispersion * (1 - factor) > 0
    edges = test.histogram[[0, -1]].sum() / test.expected[[0, -1]].sum()
    assert (edges > 1) == (factor < 1)


def test_the_prior_passes_until_a_statistic_sees_the_data():
    truth, data, _ = conjugate(4)
    draws = np.random.default_rng(5).standard_normal((N_REPLICATIONS, N_DRAWS))
    assert verdict(truth, draws).p_value > LEVEL
    log_likelihood = norm.logpdf(data[:, None], loc=draws)
    assert verdict(norm.logpdf(data, loc=truth), log_likelihood).p_value < LEVEL


def discrete(seed, shift=0.0):
    """A number 0-3 seen with noise of standard deviation 1; exact posterior of `data + shift`."""
    rng = np.random.default_rng(seed)
    prior = np.array([0.4, 0.35, 0.2, 0.05])
    truth = rng.choice(4, size=N_REPLICATIONS, p=prior)
    data = truth + rng.standard_normal(N_REPLICATIONS)
    posterior = prior * norm.pdf(data[:, None] + shift, loc=np.arange(4))
    cumulative = np.cumsum(posterior / posterior.sum(axis=1, keepdims=True), axis=1)
    draws = np.sum(rng.random((N_REPLICATIONS, N_DRAWS, 1)) > cumulative[:, None, :3], axis=2)
    return truth, draws


def test_discrete_statistics_rank_uniformly():
    assert verdict(*discrete(6)).p_value > LEVEL
    assert verdict(*discrete(6, shift=0.6)).p_value < LEVEL


def test_ranks_count_draws_below():
    draws = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(ranks(KEY, np.array([0.5, 2.5, 9.0]), draws), [0, 2, 3])


def test_ties_are_broken_evenly():
    n = 8000
    found = ranks(KEY, np.zeros(n), np.tile([-1.0, 0.0, 0.0, 0.0, 1.0], (n, 1)))
    counts = np.bincount(found, minlength=6)
    assert counts[0] == counts[5] == 0
    # Four binomial counts of probability 1/4: five standard deviations.
    np.testing.assert_allclose(counts[1:5] / n, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / n))
    np.testing.assert_array_equal(
        found, ranks(KEY, np.zeros(n), np.tile([-1.0, 0, 0, 0, 1], (n, 1)))
    )


@pytest.mark.parametrize(("n_ranks", "n_draws"), [(25, 3), (60, 15), (300, 63)])
def test_p_values_are_valid_for_few_and_discrete_ranks(n_ranks, n_draws):
    rng = np.random.default_rng(7)
    n = 2000
    tests = [uniformity(rng.integers(0, n_draws + 1, n_ranks), n_draws) for _ in range(n)]
    for name in ("p_value", "p_chi_square", "p_ecdf"):
        p_values = np.array([getattr(test, name) for test in tests])
        for level in (0.01, 0.1, 0.5):
            slack = 4 * np.sqrt(level * (1 - level) / n)
            assert np.mean(p_values <= level) <= level + slack
    # Not so conservative that nothing would ever be found.
    assert np.mean(np.array([test.p_chi_square for test in tests]) <= 0.1) > 0.03
    scores = np.array([(test.bias, test.dispersion) for test in tests])
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=0.1)


def test_one_draw_and_all_ranks_equal():
    test = uniformity(np.zeros(40, int), 1)
    assert test.p_value < LEVEL and test.dispersion == 0
    assert uniformity(np.array([0, 1] * 20), 1).p_value == 1


def test_band_holds_the_whole_function():
    rng = np.random.default_rng(8)
    n_ranks, n_draws, n = 150, 31, 4000
    band = ecdf_band(n_ranks, n_draws, 0.9)
    counts = rng.multinomial(n_ranks, np.full(n_draws + 1, 1 / (n_draws + 1)), size=n)
    share = np.cumsum(counts, axis=1) / n_ranks
    inside = np.mean(np.all((share >= band.lower) & (share <= band.upper), axis=1))
    # Discrete: at least the level, and not much more.
    assert 0.9 - 4 * np.sqrt(0.09 / n) < inside < 0.95
    assert band.grid[-1] == band.lower[-1] == band.upper[-1] == 1


def test_coverage_of_an_exact_and_an_overconfident_posterior():
    truth, _, draws = conjugate(9)
    cover = coverage(ranks(KEY, truth, draws), N_DRAWS)
    np.testing.assert_allclose(cover.level, [0.5, 0.8, 0.9], atol=1 / (N_DRAWS + 1))
    assert np.all(np.abs(cover.observed - cover.level) < 4 * cover.std)
    truth, _, draws = conjugate(9, factor=0.6)
    cover = coverage(ranks(KEY, truth, draws), N_DRAWS)
    assert np.all(cover.observed < cover.level - 4 * cover.std)


def test_coverage_counts():
    cover = coverage(np.arange(8), 7, levels=(0.5, 0.75, 0.99))
    np.testing.assert_allclose(cover.level, [0.5, 0.75, 1.0])
    np.testing.assert_allclose(cover.observed, [0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks(KEY, np.zeros(3), np.zeros((2, 5))), "draws must have shape"),
        (lambda: ranks(KEY, np.zeros(3), np.full((3, 5), np.nan)), "NaN"),
        (lambda: uniformity(np.array([0, 9]), 8), "between 0 and n_draws = 8"),
        (lambda: uniformity(np.array([0.5]), 8), "row of integers"),
        (lambda: uniformity(np.array([], int), 8), "row of integers"),
        (lambda: uniformity(np.array([1]), 3, n_bins=9), "at most n_draws"),
        (lambda: uniformity(np.array([1]), 0), "n_draws"),
        (lambda: coverage(np.array([1]), 3, levels=(1.0,)), "levels"),
        (lambda: ecdf_band(10, 3, level=2.0), "level"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
