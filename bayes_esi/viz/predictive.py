"""Data against what the posterior predicts, channel type by channel type."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from scipy.signal import find_peaks

from ..core.checks import check_count
from .common import SENSOR_UNITS
from .spread import field_law

__all__ = ["draw_predictive", "plot_predictive"]

# Channel types whose sensors lie around the head.
_SURFACE = ("mag", "grad", "eeg")
_ROWS = ("data", "posterior mean", "residual")
_HEAD_RADIUS = 0.095  # m, MNE's default circle
_MIN_TOPOMAP = 4  # channels that an interpolated map needs


def plot_predictive(posterior, *, n_times=3):
    """Draw data, posterior mean field and residual, one block for each channel type.

    Surface sensors of known position are drawn as topographies at the peaks of the whitened
    global field power; all other channels as images over time. The residual is in units of the
    predictive standard deviation (places, scales, moments and noise): most of it lies within
    ±2 where the model fits, and it is as smooth across sensors as the noise is. Planar
    gradiometers are drawn only without magnetometers, as the norm over the two of a pair.

    Parameters
    ----------
    posterior : DipolePosterior
        Sensor positions in head coordinates.
    n_times : int
        Topographies in a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    return draw_predictive(posterior.problem, *field_law(posterior), n_times)


def draw_predictive(problem, mean, std, n_times, observed=None):
    """Draw data, a predicted field and the residual; see `plot_predictive`.

    Parameters
    ----------
    problem : Problem
    mean, std : (n_channels, n_times) arrays
        Predictive law of the data, in their units.
    n_times : int
        Topographies in a row.
    observed : (n_times,) bool array, optional
        Which samples may have a topography; by default all.

    Returns
    -------
    matplotlib.figure.Figure
    """
    check_count("n_times", n_times)
    data = np.linalg.pinv(problem.whitener) @ problem.data
    # A channel outside the range of the noise covariance has neither data nor prediction.
    residual = np.divide(data - mean, std, out=np.zeros_like(data), where=std > 0)

    types = np.array(problem.ch_types)
    blocks = list(dict.fromkeys(problem.ch_types))
    if "mag" in blocks and "grad" in blocks:
        blocks.remove("grad")
    samples = _peaks(problem.data if observed is None else problem.data * observed, n_times)
    mapped = {kind: _has_map(problem, kind) for kind in blocks}
    width = 1.5 + 2 * len(samples)
    width = max(width, 3.5 if all(mapped.values()) else 6.0)
    fig = plt.figure(figsize=(width, 6 * len(blocks)), layout="constrained")
    parts = fig.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for part, kind in zip(parts, blocks, strict=True):
        own = types == kind
        factor, unit = SENSOR_UNITS.get(kind, (1.0, "units of the data"))
        values = [factor * data[own], factor * mean[own], residual[own]]
        if not mapped[kind]:
            _draw_images(part, values, problem.times, kind, unit)
            continue
        pos = problem.sensor_pos[own]
        if kind == "grad":
            pos, values = _pair_norms(pos, values)
        maps = [value[:, samples] for value in values]
        _draw_maps(part, maps, pos, problem.times[samples], kind, unit)
    return fig


def _has_map(problem, kind):
    n_channels = problem.ch_types.count(kind)
    return kind in _SURFACE and problem.sensor_pos is not None and n_channels >= _MIN_TOPOMAP


def _peaks(whitened, n_times):
    """Find the samples of the largest peaks of global field power, in order of time."""
    power = np.sqrt(np.mean(whitened**2, axis=0))
    # Ends may be peaks too; peaks closer than a share of the window show the same field.
    distance = max(len(power) // (2 * n_times), 1)
    peaks, _ = find_peaks(np.pad(power, 1, constant_values=-1.0), distance=distance)
    peaks = peaks - 1
    if not peaks.size:  # constant power
        peaks = np.array([len(power) // 2])
    return np.sort(peaks[np.argsort(-power[peaks], kind="stable")[:n_times]])


def _pair_norms(pos, values):
    """Root sum of squares over gradiometers at one place; for the residual root mean square."""
    _, first, pair = np.unique(np.round(pos, 3), axis=0, return_index=True, return_inverse=True)
    pair = np.ravel(pair)
    data, mean, residual = (
        np.stack([np.bincount(pair, weights=column) for column in (value**2).T], axis=1)
        for value in values
    )
    count = np.bincount(pair)[:, None]
    return pos[first], [np.sqrt(data), np.sqrt(mean), np.sqrt(residual / count)]


def _flatten(pos):
    """Azimuthal equidistant projection seen from the top; the equator is the head circle."""
    x, y, z = pos.T
    flat = np.hypot(x, y)
    radius = _HEAD_RADIUS * np.arctan2(flat, z) / (np.pi / 2)
    return np.stack([x, y], axis=1) * (radius / np.maximum(flat, 1e-12))[:, None]


def _scales(values, kind):
    """Colour maps and limits of the three rows; data and mean share theirs."""
    largest = max(float(np.abs(value).max()) for value in values[:2]) or 1.0
    residual = max(float(np.abs(values[2]).max()), 3.0)
    if kind == "grad":
        field, score = ("Reds", (0.0, largest)), ("Reds", (0.0, residual))
    else:
        field, score = ("RdBu_r", (-largest, largest)), ("RdBu_r", (-residual, residual))
    return field, field, score


def _draw_maps(part, maps, pos, times, kind, unit):
    from mne.viz import plot_topomap

    axes = part.subplots(3, len(times), squeeze=False)
    scales = _scales(maps, kind)
    part.suptitle("grad: norm over pairs" if kind == "grad" else kind)
    for row, values, (cmap, limits) in zip(axes, maps, scales, strict=True):
        for ax, value in zip(row, values.T, strict=True):
            plot_topomap(
                value,
                _flatten(pos),
                axes=ax,
                show=False,
                cmap=cmap,
                vlim=limits,
                sphere=_HEAD_RADIUS,
                sensors="k.",
            )
            for line in ax.lines:
                if line.get_marker() == ".":
                    line.set_markersize(1.5)
    for ax, time in zip(axes[0], times, strict=True):
        ax.set_title(f"{1e3 * time:.0f} ms")
    for ax, name in zip(axes[:, 0], _ROWS, strict=True):
        ax.set_axis_on()  # an axis that is off has no label
        ax.set_frame_on(False)
        ax.set(xticks=[], yticks=[], ylabel=name)
    _draw_bars(part, axes, scales, unit)


def _draw_images(part, values, times, kind, unit):
    axes = part.subplots(3, 1, sharex=True)[:, None]
    scales = _scales(values, kind)
    part.suptitle(kind)
    step = 1e3 * (times[-1] - times[0]) / max(len(times) - 1, 1) or 1.0
    extent = (1e3 * times[0] - step / 2, 1e3 * times[-1] + step / 2, len(values[0]) - 0.5, -0.5)
    for ax, value, (cmap, limits), name in zip(axes[:, 0], values, scales, _ROWS, strict=True):
        ax.imshow(
            value,
            cmap=cmap,
            vmin=limits[0],
            vmax=limits[1],
            aspect="auto",
            extent=extent,
            interpolation="nearest",
        )
        ax.set(title=name, ylabel="channel")
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[-1, 0].set_xlabel("time (ms)")
    if len(times) == 1:
        axes[-1, 0].set_xticks(1e3 * times)
    _draw_bars(part, axes, scales, unit)


def _draw_bars(part, axes, scales, unit):
    for rows, (cmap, limits), label in (
        (axes[:2], scales[0], f"field ({unit})"),
        (axes[2:], scales[2], "predictive std"),
    ):
        mappable = ScalarMappable(Normalize(*limits), cmap)
        part.colorbar(mappable, ax=list(rows.ravel()), label=label, shrink=0.8)
