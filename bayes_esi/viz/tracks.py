"""Figures of a `TrackPosterior`, by kind, and the whole on one page."""

import matplotlib.pyplot as plt
import numpy as np

from .common import write_heading
from .predictive import draw_predictive
from .track_brain import plot_cortex, plot_glass_brain
from .track_intensity import plot_intensity
from .track_moments import plot_moments
from .track_number import plot_n_dipoles
from .track_raster import plot_raster
from .track_spread import track_field_law
from .track_times import is_filtered, shown_tracks
from .track_trace import plot_trace

__all__ = [
    "plot_cortex",
    "plot_glass_brain",
    "plot_intensity",
    "plot_moments",
    "plot_n_dipoles",
    "plot_overview",
    "plot_predictive",
    "plot_raster",
    "plot_trace",
]

_N_MOMENTS = 4  # panels of the overview


def plot_predictive(posterior, *, n_times=3):
    """Draw data, posterior mean field and residual, one block for each channel type.

    Parameters
    ----------
    posterior : TrackPosterior
        Sensor positions in head coordinates.
    n_times : int
        Topographies in a row, at peaks of the whitened global field power.

    Returns
    -------
    matplotlib.figure.Figure
        As `bayes_esi.viz.predictive.plot_predictive`: the residual is in units of the predictive
        standard deviation (trajectories, scales, moments and noise).
    """
    return draw_predictive(posterior.problem, *track_field_law(posterior), n_times)


def plot_overview(posterior):
    """Draw the posterior on one page: lives, number, places, moments, and what it is worth.

    Parameters
    ----------
    posterior : TrackPosterior

    Returns
    -------
    matplotlib.figure.Figure
        A warning in red heads the page if the result cannot be trusted.
    """
    n_tracks = len(shown_tracks(posterior))
    n_rows, n_panels = max(n_tracks, 1), min(max(n_tracks, 2), _N_MOMENTS)
    height = 5.2 + min(0.3 * n_rows, 3.0)
    fig = plt.figure(figsize=(15, height + 3.8), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=(height, 3.3))
    left, right = top.subfigures(1, 2, width_ratios=(1.2, 1.0))
    lives, number = left.subplots(2, 1, sharex=True, height_ratios=(2.0 + 0.6 * n_rows, 2.6))
    plot_raster(posterior, ax=lives)
    plot_n_dipoles(posterior, ax=number)
    lives.set_xlabel("")
    # The axial view below the coronal one, with which it shares an axis.
    (sagittal, coronal), (empty, axial) = right.subplots(2, 2)
    empty.set_axis_off()
    plot_intensity(posterior, axes=[sagittal, coronal, axial], times="mean")
    plot_moments(posterior, axes=bottom.subplots(1, n_panels, sharey=True))
    write_heading(fig, _facts(posterior), posterior.status)
    return fig


def _facts(posterior):
    """Two lines of numbers on the whole posterior."""
    n_runs, error = posterior.n_runs, posterior.log_evidence_std
    evidence = "no evidence from this method"
    if np.isfinite(posterior.log_evidence):
        error = f"± {error:.1f} nats" if np.isfinite(error) else "nats (single run: error unknown)"
        evidence = f"log evidence {posterior.log_evidence:.1f} {error}"
    n_tracks = len(shown_tracks(posterior))
    run = [
        f"{posterior.method}, {n_runs} run{'' if n_runs == 1 else 's'}",
        f"status {posterior.status.name}",
        evidence,
    ]
    result = [
        f"{posterior.birth_intensity.sum():.1f} births expected",
        f"95 % credible volume {posterior.credible_volume():.1f} mL",
    ]
    if is_filtered(posterior):
        result.append("number and places given the data up to each sample")
    if n_tracks > _N_MOMENTS:
        result.append(f"moments of {_N_MOMENTS} of {n_tracks} tracks")
    return [" · ".join(run), " · ".join(result)]
