"""Figures of a `DipolePosterior`: number, the sampler's trace, and the whole on one page."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.stats import poisson

from ..inference.dipole_moves import MOVES
from .common import COLOURS, new_axes, take_axes, write_heading, write_note
from .intensity import plot_intensity
from .moments import plot_moments
from .predictive import plot_predictive

__all__ = [
    "plot_intensity",
    "plot_moments",
    "plot_n_dipoles",
    "plot_overview",
    "plot_predictive",
    "plot_trace",
]

_N_MOMENTS = 4  # panels of the overview
_LEAST_PROBABILITY = 0.05  # of a dipole that is marked


def plot_n_dipoles(posterior, *, ax=None):
    """Draw the probability of each number of dipoles, with its prior and every run's answer.

    Parameters
    ----------
    posterior : DipolePosterior
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    if ax is None:
        ax = new_axes(1, 1, (4.5, 3.2))[0]
    numbers = np.arange(posterior.model.max_dipoles + 1)
    is_exact = posterior.draws.n_dipoles_pmf is not None
    label = "posterior (exact)" if is_exact else "posterior"
    ax.bar(numbers, posterior.n_dipoles_pmf, color="#9ECAE1", label=label)
    if not is_exact:
        counts = posterior.draws.active.sum(axis=2)
        runs = np.array([np.bincount(row, minlength=len(numbers)) for row in counts])
        ax.plot(
            np.tile(numbers, len(runs)),
            (runs / counts.shape[1]).ravel(),
            "_",
            color="0.15",
            ms=9,
            label="each run" if len(runs) > 1 else "single run: error unknown",
        )
    prior = _number_prior(posterior.model, posterior.problem)
    ax.plot(numbers, prior, "D", mfc="none", mec=COLOURS[1], ms=5, label="prior")
    ax.set(xlabel="number of dipoles", ylabel="probability", ylim=(0, 1.05))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    ax.legend(frameon=False, fontsize="small")
    return ax


def _number_prior(model, problem):
    """Poisson law truncated at `max_dipoles` and at the number of places."""
    if model.location_prior is None:
        n_places = problem.n_sources
    elif hasattr(model.location_prior, "vertices"):
        n_places = np.count_nonzero(problem.mask(model.location_prior))
    else:
        n_places = np.count_nonzero(model.location_prior)
    numbers = np.arange(model.max_dipoles + 1)
    mass = np.where(numbers <= n_places, poisson.pmf(numbers, model.n_dipoles), 0.0)
    return mass / mass.sum()


def plot_trace(posterior, *, axes=None):
    """Draw what the sampler tells of itself, by run: temperatures, particles, moves.

    Parameters
    ----------
    posterior : DipolePosterior
    axes : sequence of three Axes, optional

    Returns
    -------
    (3,) array of Axes
        Inverse temperature, effective sample size (of a method with a ladder of temperatures:
        share of swaps) and share of moves accepted, by step or over the whole run. A panel
        says so if the method does not trace its quantity.
    """
    axes = take_axes(axes, 3, 3, (3.7, 3.2), "one for each quantity")
    trace = {name: np.asarray(value, float) for name, value in posterior.draws.trace.items()}
    temperature, acceptance = trace.get("inverse_temperature"), trace.get("acceptance")
    has_ladder = "swap_rate" in trace
    if temperature is not None:
        # A logarithmic axis, because early steps are small, has no room for the prior itself.
        temperature = np.where(temperature > 0, temperature, np.nan)
        axes[0].set_yscale("log")
    _draw_runs(axes[0], temperature, posterior.method)
    axes[0].set(xlabel="rung" if has_ladder else "step", ylabel="inverse temperature")
    _draw_runs(axes[1], trace.get("swap_rate" if has_ladder else "ess"), posterior.method)
    if has_ladder:
        axes[1].set(xlabel="pair of rungs", ylabel="share of swaps accepted")
    else:
        axes[1].set(xlabel="step", ylabel="effective sample size (particles)")
    axes[2].set(xlabel="step", ylabel="share of moves accepted")
    if acceptance is not None and acceptance.ndim == 2 and acceptance.shape[1] == len(MOVES):
        axes[2].plot(MOVES, acceptance.T, "o", color=COLOURS[0], mfc="none")
        axes[2].tick_params(axis="x", rotation=30)
        axes[2].set_xlabel("move")
    else:
        _draw_runs(axes[2], acceptance, posterior.method)
    for ax in axes[1:]:
        ax.set_ylim(bottom=0)
    return axes


def _draw_runs(ax, values, method):
    """One line for each run, and one colour for each move where there are several."""
    if values is None or values.ndim < 2 or not np.isfinite(values).any():
        write_note(ax, f"{method} does not trace this")
        return
    n_runs, n_steps = values.shape[:2]
    values = values.reshape(n_runs, n_steps, -1)
    n_lines = values.shape[2]
    steps = np.arange(1, n_steps + 1)
    marker = "." if n_steps < 10 else None
    if n_lines == 1:
        for run, colour in zip(range(n_runs), cycle(COLOURS), strict=False):
            ax.plot(steps, values[run, :, 0], color=colour, lw=1.2, marker=marker)
            ax.lines[-1].set_label(f"run {run + 1}")
    else:
        names = MOVES if n_lines == len(MOVES) else [f"move {i + 1}" for i in range(n_lines)]
        for line, (name, colour) in enumerate(zip(names, cycle(COLOURS), strict=False)):
            ax.plot(steps, values[:, :, line].T, color=colour, lw=0.9, alpha=0.8, marker=marker)
            ax.lines[-1].set_label(name)
    ax.legend(frameon=False, fontsize="small")


def plot_overview(posterior):
    """Draw the posterior on one page: number, places, moments, and what it is worth.

    Parameters
    ----------
    posterior : DipolePosterior

    Returns
    -------
    matplotlib.figure.Figure
        A warning in red heads the page if the result cannot be trusted.
    """
    fig = plt.figure(figsize=(14, 8), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.25, 1.0))
    axes = top.subplots(1, 4, width_ratios=(1.1, 1, 1, 1))
    plot_n_dipoles(posterior, ax=axes[0])
    plot_intensity(posterior, axes=axes[1:], min_probability=_LEAST_PROBABILITY)
    axes = bottom.subplots(1, _N_MOMENTS, sharey=True)
    plot_moments(posterior, axes=axes, min_probability=_LEAST_PROBABILITY)
    write_heading(fig, _facts(posterior), posterior.status)
    return fig


def _facts(posterior):
    """Two lines of numbers on the whole posterior."""
    n_runs = posterior.n_runs
    error = posterior.log_evidence_std
    error = f"± {error:.1f} nats" if np.isfinite(error) else "nats (single run: error unknown)"
    n_dipoles = sum(dipole.probability >= _LEAST_PROBABILITY for dipole in posterior.dipoles())
    correlation = posterior.residual_autocorrelation
    is_known = np.isfinite(correlation)
    residual = f"{correlation:.2f} (white noise: 0)" if is_known else "unknown: under 3 samples"
    run = [
        f"{posterior.method}, {n_runs} run{'' if n_runs == 1 else 's'}",
        f"status {posterior.status.name}",
        f"log evidence {posterior.log_evidence:.1f} {error}",
    ]
    result = [
        f"95 % credible volume {posterior.credible_volume():.1f} mL",
        f"residual autocorrelation {residual}",
    ]
    if n_dipoles > _N_MOMENTS:
        result.append(f"moments of {_N_MOMENTS} of {n_dipoles} dipoles")
    return [" · ".join(run), " · ".join(result)]
