"""What several figures share: colours, units, notes, the 50 % and 95 % bands."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

__all__ = [
    "COLOURS",
    "SENSOR_UNITS",
    "draw_band",
    "main_direction",
    "new_axes",
    "take_axes",
    "write_heading",
    "write_key",
    "write_note",
]

# Okabe and Ito's colours for every eye, without the reds: those show intensity.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#5D3A9B", "#8C6D31", "#444444")

# Channel type: factor from SI, unit shown.
SENSOR_UNITS = {
    "mag": (1e15, "fT"),
    "grad": (1e13, "fT/cm"),
    "eeg": (1e6, "µV"),
    "seeg": (1e6, "µV"),
    "ecog": (1e6, "µV"),
    "dbs": (1e6, "µV"),
}

_WARNING = "#B00020"

_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 6: "six", 8: "eight"}

_BANDS = ((0.95, 0.2), (0.5, 0.35))  # level, opacity


def draw_band(ax, times, mean, std, colour):
    """Draw a course with its 50 % and 95 % bands, taken as Gaussian.

    A single sample becomes a point with bars.
    """
    for level, opacity in _BANDS:
        width = norm.ppf(0.5 + level / 2) * std
        if len(times) == 1:
            ax.errorbar(times, mean, width, color=colour, lw=2 if level > 0.9 else 5, fmt="o")
        else:
            ax.fill_between(times, mean - width, mean + width, color=colour, alpha=opacity, lw=0)
    if len(times) > 1:
        ax.plot(times, mean, color=colour, lw=1.5)


def main_direction(moment):
    """Direction that holds most of a moment course, signed so that its peak is positive.

    Parameters
    ----------
    moment : (n_axes, n_times) array

    Returns
    -------
    (n_axes,) array
        Unit vector: the first left singular vector.
    """
    direction = np.linalg.svd(moment, full_matrices=False)[0][:, 0]
    course = direction @ moment
    return direction if course[np.argmax(np.abs(course))] >= 0 else -direction


def new_axes(n_rows, n_columns, size, **options):
    """Open a figure with axes of a size in inches: an array of Axes, row by row."""
    width, height = size
    _, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(width * n_columns, height * n_rows),
        layout="constrained",
        squeeze=False,
        **options,
    )
    return axes.ravel()


def take_axes(axes, n_axes, n_columns, size, what):
    """Open axes, row by row, or check those that a caller gave: (n_axes,) array of Axes.

    Parameters
    ----------
    axes : sequence of Axes or None
    n_axes, n_columns : int
    size : (float, float)
        Of a new axes, in inches.
    what : str
        What each is for.

    Raises
    ------
    ValueError
        If their number is not `n_axes`.
    """
    if axes is None:
        return new_axes(n_axes // n_columns, n_columns, size)
    axes = np.asarray(axes, dtype=object).ravel()
    if len(axes) != n_axes:
        number = _NUMBERS.get(n_axes, n_axes)
        raise ValueError(f"axes must be {number} Axes, {what}, got {len(axes)}.")
    return axes


def write_heading(figure, lines, status):
    """Head a page with facts, and with a warning in red if they cannot be trusted."""
    if status.is_trustworthy:
        figure.suptitle("\n".join(lines), fontsize="medium")
        return
    warning = f"DO NOT TRUST THIS RESULT ({status.name}): {status.cause}. Remedy: {status.remedy}."
    figure.suptitle(
        "\n".join([*textwrap.wrap(warning, 150), *lines]),
        fontsize="medium",
        color=_WARNING,
        bbox={"facecolor": "#FDECEA", "edgecolor": _WARNING, "boxstyle": "round"},
    )


def write_note(ax, text):
    """Say in an axes why it shows nothing."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set(xticks=[], yticks=[])


def write_key(ax, text):
    """Say in the corner of an axes how to read it."""
    ax.text(0.02, 0.02, text, transform=ax.transAxes, fontsize="x-small", color="0.4")
