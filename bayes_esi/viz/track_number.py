"""How many dipoles are alive, over time."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from .common import new_axes
from .track_times import cell_edges, is_filtered

__all__ = ["plot_n_dipoles", "prior_number"]

_N_PRIOR_DRAWS = 200  # of unknown probabilities: the error is less than the width of a line


def plot_n_dipoles(posterior, *, ax=None):
    """Draw the probability of each number of dipoles at each sample, and the expected number.

    Parameters
    ----------
    posterior : TrackPosterior
    ax : Axes, optional

    Returns
    -------
    Axes
        Numbers against time in ms. Each column of colours sums to one. Lines: the expected
        number, that of each run, and that of the prior, which knows no data. Where a method
        filters, the probabilities at a sample are given the data up to it.
    """
    if ax is None:
        ax = new_axes(1, 1, (8.0, 3.2))[0]
    problem, pmf = posterior.problem, posterior.n_dipoles_pmf
    times, edges = 1e3 * problem.times, cell_edges(problem.times)
    n_numbers = pmf.shape[1]
    numbers = np.arange(n_numbers)
    mesh = ax.pcolormesh(edges, np.arange(n_numbers + 1) - 0.5, pmf.T, cmap="Reds", vmin=0, vmax=1)
    is_point = problem.n_times == 1
    marker = "o" if is_point else None
    if posterior.draws.n_dipoles_pmf is None and posterior.n_runs > 1:
        runs = np.mean(np.sum(posterior.draws.places >= 0, axis=3), axis=1)
        for run, label in zip(runs, ["each run"] + [None] * len(runs), strict=False):
            ax.plot(times, run, color="0.25", lw=0.7, alpha=0.7, marker=marker, ms=3, label=label)
    label = "expected, given the data so far" if is_filtered(posterior) else "expected"
    ax.plot(times, pmf @ numbers, color="0.1", lw=1.6, marker=marker, label=label)
    prior = prior_number(posterior.model, problem.n_times) @ numbers
    ax.plot(times, prior, color="0.1", lw=1, ls=":", marker="D" if is_point else None, mfc="none")
    ax.lines[-1].set_label("expected a priori")
    ax.set(xlabel="time (ms)", ylabel="number of dipoles")
    ax.set(xlim=(edges[0], edges[-1]), ylim=(-0.5, n_numbers - 0.5))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if is_point:
        ax.set_xticks(times)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.01)
    bar.set_label("probability")
    ax.legend(fontsize="small", loc="upper right", framealpha=0.85, edgecolor="none")
    return ax


def prior_number(model, n_times):
    """Probability of each number of dipoles at each sample before any data.

    Parameters
    ----------
    model : DynamicDipoles
    n_times : int

    Returns
    -------
    (n_times, max_dipoles + 1) array
        Averaged over draws of the probabilities that are unknown.

    Notes
    -----
    The number is a Markov chain: survivors are binomial, at most one is born at a sample, and
    none where `max_dipoles` were alive at the sample before. Cost O(n_times max_dipoles^2).
    """
    from scipy.stats import binom

    births, deaths = (_draws(value) for value in (model.birth_prob, model.death_prob))
    n_draws = max(len(births), len(deaths))
    numbers = np.arange(model.max_dipoles + 1)
    told = np.zeros((n_times, len(numbers)))
    for birth, death in zip(np.resize(births, n_draws), np.resize(deaths, n_draws), strict=True):
        step = binom.pmf(numbers, numbers[:, None], 1 - death)
        born = np.zeros_like(step)
        born[:, 1:] = step[:, :-1]
        step[:-1] = (1 - birth) * step[:-1] + birth * born[:-1]
        law = np.eye(len(numbers))[0]
        for t in range(n_times):
            law = law @ step
            told[t] += law / n_draws
    return told


def _draws(value):
    if not hasattr(value, "sample"):
        return np.array([float(value)])
    import jax

    return np.asarray(value.sample(jax.random.key(0), (_N_PRIOR_DRAWS,)), np.float64)
