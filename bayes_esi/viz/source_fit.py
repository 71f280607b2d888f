"""Whether the model fits: the field of the data, of the posterior mean, and what is left over.

With signals s_t of variance v_t given the data, in coordinates where the noise is white, the
residual z_t - E s_t of a model that is right has variance 1 - v_t in each coordinate. The root mean
square over channels is told by a scaled chi-squared law of the same mean and variance.

Reference: Satterthwaite 1946, doi:10.2307/3002019 (chi-squared laws for sums of them).
"""

import numpy as np
from scipy.stats import chi2

from .common import COLOURS
from .source_courses import draw_missing

__all__ = ["draw_fit", "expected_residual"]


def expected_residual(posterior, level=0.95):
    """Range of the root mean square of the whitened residual if the model is right.

    Parameters
    ----------
    posterior : SourcePosterior
    level : float

    Returns
    -------
    low, high : (n_times,) arrays
        Not a number where no sample was used.
    """
    moments, problem = posterior.moments, posterior.problem
    weights = np.zeros(moments.variance.shape[1:])
    for c in range(moments.n_components):
        size = np.sum(np.linalg.inv(moments.analysis[c]) ** 2, axis=0)
        weights += size[:, None] * np.maximum(1 - moments.variance[c], 0.0)
    weights /= moments.n_components * len(problem.data)
    mean = weights.sum(axis=0)
    squared = np.maximum(np.sum(weights**2, axis=0), np.finfo(float).tiny)
    dof = mean**2 / squared
    ends = (chi2.ppf(p, dof) / dof for p in (0.5 - level / 2, 0.5 + level / 2))
    return tuple(np.where(posterior.observed, np.sqrt(mean * end), np.nan) for end in ends)


def draw_fit(ax, posterior):
    """Draw the root mean square over whitened channels of data, posterior mean and residual."""
    problem = posterior.problem
    times = 1e3 * problem.times
    low, high = expected_residual(posterior)
    residual = problem.data - posterior.fitted
    label = "residual expected (95 %)"
    if len(times) == 1:
        ax.plot(times.repeat(2), [low[0], high[0]], color="0.8", lw=6, label=label)
    else:
        ax.fill_between(times, low, high, color="0.8", lw=0, label=label)
    draw_missing(ax, times, posterior.observed)
    marker = "o" if len(times) == 1 else None
    for values, colour, name in (
        (problem.data, "0.1", "data"),
        (posterior.fitted, COLOURS[0], "posterior mean"),
        (residual, COLOURS[1], "residual"),
    ):
        power = np.sqrt(np.mean(np.asarray(values) ** 2, axis=0))
        ax.plot(times, power, color=colour, lw=1.3, marker=marker, label=name)
    ax.set(xlabel="time (ms)", ylabel="field (whitened, rms)")
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend
    ax.legend(frameon=False, fontsize="x-small", ncols=2, loc="upper right")
    ax.set_title("fit", fontsize="medium")
