"""Simulation-based calibration: the truth must be a draw like any other.

Draw the truth from the prior, data from the truth, and L draws from the posterior of the data.
For any function f of unknowns and data, the rank

    r = #{l : f(draw_l, data) < f(truth, data)},     ties broken at random,

is uniform on 0, ..., L if the draws are independent draws of the posterior (Talts et al. 2018).
For functions of the unknowns alone the prior itself passes as a posterior: it takes functions of
the data too, such as the log likelihood, to see that data are ignored (Modrák et al. 2023).

Uniformity of n ranks is tested twice. With counts h_b in bins of expected size e_b,

    chi2 = sum_b (h_b - e_b)^2 / e_b,

which sees any shape, and with the empirical distribution function F against z = (i + 1) / (L + 1),

    gamma = min_i 2 min{ P(B_i <= n F_i), P(B_i >= n F_i) },     B_i ~ Binomial(n, z_i),

which sees bias and false confidence with few ranks (Säilynoja, Bürkner, Vehtari 2022). Both are
discrete, and their laws are simulated: no asymptotic approximation enters the p-values.

References: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv:1804.06788; Modrák et al.
2023, doi:10.1214/23-BA1404; Säilynoja, Bürkner, Vehtari 2022, doi:10.1007/s11222-022-10090-6.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import binom

from ..core.checks import check_array, check_count, check_fraction

__all__ = ["Coverage", "EcdfBand", "Uniformity", "coverage", "ecdf_band", "ranks", "uniformity"]

# Simulated data sets under uniformity: p-values down to 1e-4 are resolved, which leaves room for
# a correction for dozens of statistics.
_N_SIMULATIONS = 20_000
# Expected ranks in a bin. Fewer, larger bins find the smooth deviations that samplers make.
_PER_BIN = 10
_MOST_BINS = 16


class Uniformity(NamedTuple):
    """How well ranks agree with uniformity.

    `bias` and `dispersion` are standard scores: approximately normal, mean 0 and standard
    deviation 1, for uniform ranks. Bias above 0: the truth ranks high, the draws are too low.
    Dispersion above 0: a U-shaped histogram, the posterior is too sure; below 0: too wide.
    """

    p_value: float  # of both tests together
    p_chi_square: float
    p_ecdf: float
    bias: float
    dispersion: float
    histogram: np.ndarray  # (n_bins,) counts
    expected: np.ndarray  # (n_bins,) counts expected


class EcdfBand(NamedTuple):
    """Where the empirical distribution function of uniform ranks stays, everywhere at once."""

    grid: np.ndarray  # (n_draws + 1,) values of the uniform distribution function
    lower: np.ndarray  # (n_draws + 1,) share of ranks
    upper: np.ndarray


class Coverage(NamedTuple):
    """How often central intervals hold the truth."""

    level: np.ndarray  # (n_levels,) probability that the posterior gives them
    observed: np.ndarray  # (n_levels,) share of truths inside
    std: np.ndarray  # (n_levels,) standard error of that share if calibrated


def ranks(key, truth_values, draws):
    """Rank each truth among the draws of its posterior; ties are broken at random.

    Parameters
    ----------
    key : PRNG key
    truth_values : (n_replications,) array
        A function of the unknowns (and the data) at the truth.
    draws : (n_replications, n_draws) array
        The same function at nearly independent draws of the posterior.

    Returns
    -------
    (n_replications,) int array
        From 0 to n_draws.

    Raises
    ------
    ValueError
        On shapes that do not match, or values that are not finite.

    Notes
    -----
    A truth that equals m draws is put at any of the m + 1 places among them with equal
    probability: for calibrated draws the rank is then uniform also where f is discrete.
    Cost O(n_replications n_draws).
    """
    truth_values = check_array("truth_values", truth_values, ndim=1)
    draws = check_array(
        "draws",
        draws,
        shape=(truth_values.size, None),
        remedy="It has one row for each truth value.",
    )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    n_below = np.sum(draws < truth_values[:, None], axis=1)
    n_equal = np.sum(draws == truth_values[:, None], axis=1)
    return n_below + rng.integers(0, n_equal + 1)


def uniformity(ranks, n_draws, *, n_bins=None):
    """Test whether ranks are uniform on 0, ..., n_draws.

    Parameters
    ----------
    ranks : (n_replications,) int array
        As `ranks` returns them.
    n_draws : int
        Draws that each truth was ranked among.
    n_bins : int, optional
        Bins of the histogram and of the chi-square test, at most n_draws + 1. By default as many
        as leave ten ranks expected in each, between 2 and 16.

    Returns
    -------
    Uniformity
        `p_value` is twice the smaller of the two p-values (Bonferroni), at most 1.

    Raises
    ------
    ValueError
        On ranks out of range, or too many bins.

    Notes
    -----
    The p-values are (1 + simulations at least as extreme) / (1 + simulations): valid for any
    number of ranks, conservative by discreteness. The simulation has a fixed seed and does not
    depend on the data. Cost O(n_simulations n_draws), once for each size.
    """
    n_draws = check_count("n_draws", n_draws)
    counts = _count(ranks, n_draws)
    n_ranks = int(counts.sum())
    if n_bins is None:
        n_bins = min(max(n_ranks // _PER_BIN, 2), _MOST_BINS, n_draws + 1)
    n_bins = check_count("n_bins", n_bins, minimum=2)
    if n_bins > n_draws + 1:
        raise ValueError(f"n_bins must be at most n_draws + 1 = {n_draws + 1}, got {n_bins}.")

    chi_square, histogram, expected = _chi_square(counts[None], n_bins)
    gamma = _gamma(counts[None])
    null_chi_square, null_gamma = _null(n_ranks, n_draws, n_bins)
    # The slack keeps a value equal to a simulated one on the extreme side despite rounding.
    p_chi_square = _share(null_chi_square >= chi_square * (1 - 1e-9))
    p_ecdf = _share(null_gamma <= gamma * (1 + 1e-9))

    values = np.arange(n_draws + 1) - 0.5 * n_draws
    variance = np.mean(values**2)
    kurtosis = np.mean(values**4) - variance**2
    bias = counts @ values / np.sqrt(n_ranks * variance)
    dispersion = counts @ (values**2 - variance) / np.sqrt(n_ranks * kurtosis) if kurtosis else 0.0
    return Uniformity(
        p_value=min(1.0, 2 * min(p_chi_square, p_ecdf)),
        p_chi_square=p_chi_square,
        p_ecdf=p_ecdf,
        bias=float(bias),
        dispersion=float(dispersion),
        histogram=histogram[0],
        expected=expected,
    )


def ecdf_band(n_replications, n_draws, level=0.95):
    """Band that holds the whole distribution function of uniform ranks with a given probability.

    Parameters
    ----------
    n_replications : int
        Ranks.
    n_draws : int
        Each is among 0, ..., n_draws.
    level : float
        Probability that the whole function stays inside.

    Returns
    -------
    EcdfBand
    """
    n_replications = check_count("n_replications", n_replications)
    n_draws = check_count("n_draws", n_draws)
    level = check_fraction("level", level)
    _, null_gamma = _null(n_replications, n_draws, 2)
    gamma = np.quantile(null_gamma, 1 - level, method="lower")
    grid = np.arange(1, n_draws + 2) / (n_draws + 1)
    lower = binom.ppf(gamma / 2, n_replications, grid) / n_replications
    upper = binom.ppf(1 - gamma / 2, n_replications, grid) / n_replications
    return EcdfBand(grid, lower, upper)


def coverage(ranks, n_draws, levels=(0.5, 0.8, 0.9)):
    """Count how often the central posterior interval of a level holds the truth.

    Parameters
    ----------
    ranks : (n_replications,) int array
    n_draws : int
    levels : sequence of float
        Wanted levels. Intervals end between draws, so that each is replaced by the nearest of
        1 - 2 k / (n_draws + 1) with whole k.

    Returns
    -------
    Coverage
    """
    n_draws = check_count("n_draws", n_draws)
    counts = _count(ranks, n_draws)
    n_ranks = counts.sum()
    wanted = np.array([check_fraction("levels", level) for level in levels])
    n_outside = np.round((1 - wanted) * (n_draws + 1) / 2).astype(int)
    # At least one rank is left inside.
    n_outside = np.minimum(n_outside, n_draws // 2)
    observed = [counts[k : n_draws + 1 - k].sum() / n_ranks for k in n_outside]
    level = 1 - 2 * n_outside / (n_draws + 1)
    return Coverage(level, np.array(observed), np.sqrt(level * (1 - level) / n_ranks))


def _count(ranks, n_draws):
    """How often each rank occurs: (n_draws + 1,)."""
    ranks = np.asarray(ranks)
    if ranks.dtype.kind not in "iu" or ranks.ndim != 1 or not ranks.size:
        raise ValueError(
            f"ranks must be a non-empty row of integers, got {ranks.dtype} {ranks.shape}."
        )
    if ranks.min() < 0 or ranks.max() > n_draws:
        raise ValueError(
            f"ranks must lie between 0 and n_draws = {n_draws}, got {ranks.min()} to {ranks.max()}."
        )
    return np.bincount(ranks, minlength=n_draws + 1)


def _chi_square(counts, n_bins):
    """Statistic of rows of counts, their histograms, and the expected one."""
    n_values = counts.shape[1]
    edges = np.arange(n_bins + 1) * n_values // n_bins
    histogram = np.add.reduceat(counts, edges[:-1], axis=1)
    expected = counts[0].sum() * np.diff(edges) / n_values
    return np.sum((histogram - expected) ** 2 / expected, axis=1), histogram, expected


def _gamma(counts):
    """Smallest two-sided pointwise probability along each empirical distribution function."""
    n_values = counts.shape[1]
    n_ranks = int(counts[0].sum())
    # The last value of the distribution function is 1 for any ranks.
    cumulative = np.cumsum(counts, axis=1)[:, :-1]
    table = _pointwise(n_ranks, n_values)
    return np.min(table[np.arange(n_values - 1), cumulative], axis=1)


@functools.lru_cache(maxsize=16)
def _pointwise(n_ranks, n_values):
    """Two-sided probability of each height at each place: (n_values - 1, n_ranks + 1)."""
    grid = np.arange(1, n_values)[:, None] / n_values
    heights = np.arange(n_ranks + 1)
    below = binom.cdf(heights, n_ranks, grid)
    above = binom.sf(heights - 1, n_ranks, grid)
    return 2 * np.minimum(below, above)


@functools.lru_cache(maxsize=16)
def _null(n_ranks, n_draws, n_bins):
    """Both statistics of simulated uniform ranks: two arrays (n_simulations,)."""
    rng = np.random.default_rng(0)
    n_values = n_draws + 1
    counts = rng.multinomial(n_ranks, np.full(n_values, 1 / n_values), size=_N_SIMULATIONS)
    return _chi_square(counts, n_bins)[0], _gamma(counts)


def _share(is_extreme):
    return float((1 + np.count_nonzero(is_extreme)) / (1 + is_extreme.size))
