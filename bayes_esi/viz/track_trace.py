"""What the sampler of trajectories tells of itself."""

from itertools import cycle

import numpy as np
from matplotlib.ticker import MaxNLocator

from .common import COLOURS, take_axes, write_note

__all__ = ["plot_trace"]

# Of tempered populations: against the number of the temperature.
_TEMPERING = {
    "inverse_temperature": "inverse temperature",
    "population_ess": "effective sample size (trajectories)",
    "correlation": "correlation of log likelihoods\nbefore and after the moves",
}
# Of filters and smoothers: names in the trace, of which the first that is there is drawn.
_SERIES = (("ess",), ("renewal", "n_ancestors"), ("log_evidence_increment",))
_LABELS = {
    "ess": "effective sample size (particles)",
    "renewal": "share of pasts drawn afresh",
    "n_ancestors": "distinct ancestors",
    "log_evidence_increment": "log evidence increment (nats)",
}


def plot_trace(posterior, *, axes=None):
    """Draw what the sampler tells of itself, one line for each run.

    Parameters
    ----------
    posterior : TrackPosterior
    axes : sequence of three Axes, optional

    Returns
    -------
    (3,) array of Axes
        Of filters and smoothers over time in ms: effective sample size; how many trajectories there
        are; log evidence that a sample adds. A filter's draws are the lines of its final particles:
        where these have few distinct ancestors, the draws are copies of few trajectories. A
        smoother draws the past of a trajectory afresh, the more often the better. Of tempered
        populations over temperatures: the inverse temperature, effective sample size, and what the
        moves left of the correlation with the population before them. Of other methods over
        draws: log likelihood, number of tracks, scale of the moments.
    """
    axes = take_axes(axes, 3, 3, (3.9, 3.2), "one for each quantity")
    trace = {name: np.asarray(value, float) for name, value in posterior.draws.trace.items()}
    series = [[n for n in names if _is_series(trace.get(n), posterior)] for names in _SERIES]
    if "inverse_temperature" in trace:
        steps = np.arange(1, trace["inverse_temperature"].shape[1] + 1)
        for ax, (name, label) in zip(axes, _TEMPERING.items(), strict=True):
            _draw_runs(ax, steps, trace[name])
            ax.set(xlabel="temperature", ylabel=label)
        axes[0].set_yscale("log")
        axes[1].set_ylim(bottom=0)
        return axes
    if not any(series):
        _draw_chains(axes, posterior)
        return axes
    times = 1e3 * posterior.problem.times
    for ax, found, names in zip(axes, series, _SERIES, strict=True):
        name = (found or names)[0]
        ax.set(xlabel="time (ms)", ylabel=_LABELS[name])
        if not found:
            write_note(ax, f"{posterior.method} does not trace this")
            continue
        _draw_runs(ax, times, trace[name])
        if name == "ess":
            ax.set_ylim(bottom=0)
        elif name == "renewal":
            ax.set_ylim(-0.03, 1.03)
        elif name == "n_ancestors":
            ax.set_yscale("log")
            ax.set_ylim(bottom=0.8)
    return axes


def _is_series(values, posterior):
    """Whether there is a number for each run and sample."""
    shape = (posterior.n_runs, posterior.problem.n_times)
    return values is not None and values.shape == shape and np.isfinite(values).any()


def _draw_chains(axes, posterior):
    draws = posterior.draws
    chains = {
        "log likelihood (nats)": draws.log_likelihood,
        "number of tracks": draws.is_new.sum(axis=(2, 3)),
        "moment std (nA·m)": 1e9 * draws.moment_std,
    }
    steps = np.arange(1, draws.places.shape[1] + 1)
    for ax, (label, values) in zip(axes, chains.items(), strict=True):
        _draw_runs(ax, steps, np.asarray(values, float))
        ax.set(xlabel="draw", ylabel=label)
    axes[1].yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_runs(ax, x, values):
    marker = "." if len(x) < 10 else None
    for run, (series, colour) in enumerate(zip(values, cycle(COLOURS), strict=False), start=1):
        ax.plot(x, series, color=colour, lw=1.0, alpha=0.85, marker=marker, label=f"run {run}")
    ax.legend(frameon=False, fontsize="small", ncols=2)
