"""Where the dipoles are: three projections of the intensity, with the dipoles on top."""

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.colors import PowerNorm
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from scipy.stats import chi2

from ..sources.adjacency import source_spacing
from .common import COLOURS, new_axes, write_key

__all__ = ["plot_intensity"]

_VIEWS = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}
_AXIS_LABELS = ("x, right (mm)", "y, front (mm)", "z, up (mm)")
_LEVEL = 0.95
_LINE = 20.0  # mm that a moment parallel to the plane is drawn long
_MARGIN = 25.0  # mm around the sources
# Intensity below this share of its peak is left out: it would only tint the grid.
_LEAST = 1e-3


def plot_intensity(posterior, *, axes=None, min_probability=0.05):
    """Draw the expected number of dipoles at each source, seen from the side, back and top.

    Where sources hide each other the one of highest intensity is on top. Each dipole has its
    number, an ellipse that holds its projected position with 95 % probability (Gaussian), and a
    line along its mean moment at the peak, which is short where the moment points at the viewer.

    Parameters
    ----------
    posterior : DipolePosterior
        Positions in head coordinates, in m.
    axes : sequence of three Axes, optional
    min_probability : float
        Dipoles less probable than this are not marked.

    Returns
    -------
    (3,) array of Axes
        Sagittal, coronal and axial view, in mm. The colour scale follows a square root, so that
        a dipole spread over many sources stays visible.
    """
    axes = new_axes(1, 3, (4.1, 3.9)) if axes is None else np.asarray(axes, dtype=object).ravel()
    if len(axes) != 3:
        raise ValueError(f"axes must be three Axes, one for each view, got {len(axes)}.")
    problem, intensity = posterior.problem, posterior.intensity
    pos = 1e3 * problem.source_pos
    diameter = np.clip(1e3 * source_spacing(problem.source_pos), 2.0, 10.0)
    dot = np.clip(2000 / len(pos), 0.8, 6.0)
    shown = np.flatnonzero(intensity > _LEAST * intensity.max())
    shown = shown[np.argsort(intensity[shown])]
    scale = PowerNorm(0.5, vmin=0, vmax=float(intensity.max()) or 1.0)
    marked = [
        (number, dipole)
        for number, dipole in enumerate(posterior.dipoles(), start=1)
        if dipole.probability >= min_probability
    ]
    middle = np.mean([1e3 * dipole.pos for _, dipole in marked], axis=0) if marked else None
    # One scale for all views. Sensors far outside are cut off: dipoles need the space.
    low, high = pos.min(axis=0), pos.max(axis=0)
    centre, half = (low + high) / 2, np.max(high - low) / 2 + _MARGIN
    for ax, (view, plane) in zip(axes, _VIEWS.items(), strict=True):
        plane = list(plane)
        _draw_sensors(ax, problem, plane)
        ax.scatter(*pos[:, plane].T, s=dot, color="0.87", linewidths=0)
        size = np.full(len(shown), diameter)
        discs = EllipseCollection(
            size,
            size,
            np.zeros(len(shown)),
            units="xy",
            offsets=pos[shown][:, plane],
            offset_transform=ax.transData,
            cmap="Reds",
            norm=scale,
            linewidths=0,
        )
        discs.set_array(intensity[shown])
        ax.add_collection(discs)
        for number, dipole in marked:
            _draw_dipole(ax, number, dipole, plane, middle)
        ax.set_aspect("equal")
        for axis, name in zip(plane, "xy", strict=True):
            limits = (centre[axis] - half, centre[axis] + half)
            ax.set(**{f"{name}lim": limits, f"{name}label": _AXIS_LABELS[axis]})
        ax.set_title(view)
    if marked:
        write_key(axes[0], "ellipse: 95 % of the position")
    bar = axes[-1].figure.colorbar(discs, ax=list(axes), shrink=0.7, pad=0.01)
    bar.set_label("expected number of dipoles")
    return axes


def _draw_sensors(ax, problem, plane):
    if problem.sensor_pos is None:
        return
    pos = np.unique(np.round(1e3 * problem.sensor_pos, 1), axis=0)  # one marker for a coil triplet
    ax.scatter(
        *pos[:, plane].T, s=9, marker="o", facecolors="none", edgecolors="0.75", linewidths=0.5
    )


def _draw_dipole(ax, number, dipole, plane, middle):
    colour = COLOURS[(number - 1) % len(COLOURS)]
    centre = 1e3 * dipole.pos[plane]
    values, vectors = np.linalg.eigh(1e6 * dipole.pos_cov[np.ix_(plane, plane)])
    width, height = 2 * np.sqrt(chi2.ppf(_LEVEL, 2) * np.maximum(values, 0.0))
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    style = {"color": colour, "alpha": 0.4 + 0.6 * dipole.probability}
    dash = "-" if dipole.probability >= 0.5 else "--"
    ax.add_patch(Ellipse(centre, width, height, angle=angle, fill=False, lw=1, ls=dash, **style))
    moment = dipole.moment_mean
    if len(moment) == 3:
        peak = moment[:, np.argmax(np.linalg.norm(moment, axis=0))]
        direction = peak / max(np.linalg.norm(peak), 1e-300)
        end = centre + _LINE * direction[plane]
        ax.plot(*np.stack([centre, end]).T, lw=1.5, solid_capstyle="round", **style)
    ax.plot(*centre, "o", ms=3, **style)
    # Numbers go away from the middle of all dipoles, so that neighbours' do not collide.
    away = centre - middle[plane]
    away = away / np.linalg.norm(away) if np.linalg.norm(away) > 1e-6 else np.array([0.0, 1.0])
    ax.annotate(
        str(number),
        centre,
        xytext=10 * away,
        textcoords="offset points",
        ha="center",
        va="center",
        color=colour,
        weight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
