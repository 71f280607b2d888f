"""Figures of a `SourcePosterior`, by kind, and the whole on one page."""

import matplotlib.pyplot as plt
import numpy as np

from .common import write_heading
from .predictive import draw_predictive
from .regularisation import plot_regularisation
from .resolution import plot_resolution
from .source_brain import plot_cortex, plot_glass_brain
from .source_courses import plot_courses
from .source_fit import draw_fit
from .source_hyper import plot_hyper
from .source_map import plot_map
from .source_spread import source_field_law

__all__ = [
    "plot_cortex",
    "plot_courses",
    "plot_glass_brain",
    "plot_hyper",
    "plot_map",
    "plot_overview",
    "plot_predictive",
    "plot_regularisation",
    "plot_resolution",
]

_N_COURSES = 4


def plot_predictive(posterior, *, n_times=3):
    """Draw data, posterior mean field and residual, one block for each channel type.

    Parameters
    ----------
    posterior : SourcePosterior
        Sensor positions in head coordinates.
    n_times : int
        Topographies in a row, at peaks of the whitened global field power.

    Returns
    -------
    matplotlib.figure.Figure
        As `bayes_esi.viz.predictive.plot_predictive`: the residual is in units of the predictive
        standard deviation (sources and noise).
    """
    law = source_field_law(posterior)
    return draw_predictive(posterior.problem, *law, n_times, posterior.observed)


def plot_overview(posterior):
    """Draw the posterior on one page: places and their uncertainty, scales, fit, courses.

    Parameters
    ----------
    posterior : SourcePosterior

    Returns
    -------
    matplotlib.figure.Figure
        A warning in red heads the page if the result cannot be trusted.
    """
    fig = plt.figure(figsize=(15, 11), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=(2.3, 1.0))
    if posterior.is_separable:
        axes = top.subplots(2, 4, width_ratios=(1, 1, 1, 1.1))
        plot_regularisation(posterior, ax=axes[0, 3])
        draw_fit(axes[1, 3], posterior)
    else:
        axes = top.subplots(2, 3)
    plot_map(posterior, axes=axes[:, :3])
    plot_courses(posterior, axes=bottom.subplots(1, _N_COURSES, sharey=True))
    write_heading(fig, _facts(posterior), posterior.status)
    return fig


def _facts(posterior):
    """Two lines of numbers on the whole posterior."""
    problem = posterior.problem
    correlation = posterior.residual_autocorrelation
    residual = f"{correlation:.2f}" if np.isfinite(correlation) else "unknown: under 3 samples"
    error = posterior.log_evidence_std
    run = [
        f"{type(posterior.model).__name__}, {posterior.method}",
        f"{problem.n_sources} sources, {problem.n_times} sample{'s' * (problem.n_times > 1)}",
        f"status {posterior.status.name}",
        f"log evidence {posterior.log_evidence:.1f}"
        + (f" ± {error:.1f} nats" if np.isfinite(error) else " nats"),
    ]
    result = [f"residual autocorrelation {residual}"]
    if posterior.is_separable:
        scale = 1e9 * float(posterior.hyper["source_std"])
        result = [f"SNR {posterior.lambda2**-0.5:.2g}", f"source std {scale:.3g} nA·m", *result]
    return [" · ".join(run), " · ".join(result)]
