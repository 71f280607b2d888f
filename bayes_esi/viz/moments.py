"""How strong the dipoles are, over time."""

import numpy as np

from .common import COLOURS, draw_band, main_direction, new_axes, write_key, write_note
from .spread import moment_std_along

__all__ = ["plot_moments"]

_N_COLUMNS = 4


def plot_moments(posterior, *, axes=None, min_probability=0.05):
    """Draw the moment of each dipole along its main direction, with 50 % and 95 % bands.

    The direction is the first left singular vector of the mean moment, signed so that its peak
    is positive. The bands are given that the dipole exists.

    Parameters
    ----------
    posterior : DipolePosterior
    axes : sequence of Axes, optional
        Panels for the first dipoles; those left over are switched off.
    min_probability : float
        Dipoles less probable than this have no panel.

    Returns
    -------
    (n_panels,) array of Axes
        Moments in nA·m against time in ms.
    """
    dipoles = [
        (label, dipole)
        for label, dipole in enumerate(posterior.dipoles())
        if dipole.probability >= min_probability
    ]
    if axes is None:
        n_panels = max(len(dipoles), 1)
        n_columns = min(n_panels, _N_COLUMNS)
        axes = new_axes(-(-n_panels // n_columns), n_columns, (3.2, 2.9), sharey=True)
    axes = np.asarray(axes, dtype=object).ravel()
    if not dipoles:
        write_note(axes[0], f"no dipole with probability of at least {min_probability:g}")
    times = 1e3 * posterior.problem.times
    for ax, (label, dipole) in zip(axes, dipoles, strict=False):
        direction = main_direction(dipole.moment_mean)
        std = moment_std_along(posterior, label, direction)
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)
        colour = COLOURS[label % len(COLOURS)]
        draw_band(ax, times, 1e9 * (direction @ dipole.moment_mean), 1e9 * std, colour)
        x, y, z = 1e3 * dipole.pos
        ax.set_title(
            f"dipole {label + 1}, p = {dipole.probability:.2f}\n({x:.0f}, {y:.0f}, {z:.0f}) mm",
            fontsize="medium",
        )
        ax.set_xlabel("time (ms)")
    for ax in axes[::_N_COLUMNS]:
        ax.set(xlabel="time (ms)", ylabel="moment (nA·m)")
    if dipoles:
        write_key(axes[0], "bands: 50 % and 95 %")
    for ax in axes[max(len(dipoles), 1) :]:
        ax.set_axis_off()
    return axes
