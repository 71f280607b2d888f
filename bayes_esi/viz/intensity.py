"""Where the dipoles are: three projections of the intensity, with the dipoles on top."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.patches import Ellipse
from scipy.stats import chi2

from .common import COLOURS, write_key
from .views import VIEWS, draw_views, take_views, write_number

__all__ = ["draw_dipole", "plot_intensity"]

_LEVEL = 0.95
_LINE = 20.0  # mm that a moment parallel to the plane is drawn long


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
    axes = take_views(axes)[0]
    problem, intensity = posterior.problem, posterior.intensity
    scale = PowerNorm(0.5, vmin=0, vmax=float(intensity.max()) or 1.0)
    draw_views(axes, problem, intensity, scale, "expected number of dipoles")
    marked = [
        (number, dipole)
        for number, dipole in enumerate(posterior.dipoles(), start=1)
        if dipole.probability >= min_probability
    ]
    if not marked:
        return axes
    middle = np.mean([1e3 * dipole.pos for _, dipole in marked], axis=0)
    for ax, plane in zip(axes, VIEWS.values(), strict=True):
        for number, dipole in marked:
            draw_dipole(ax, number, dipole, list(plane), middle)
    write_key(axes[0], "ellipse: 95 % of the position")
    return axes


def draw_dipole(ax, number, dipole, plane, middle):
    """Mark a dipole in a view: its ellipse, its moment at the peak and its number.

    Parameters
    ----------
    ax : Axes
    number : int
        From 1.
    dipole : DipoleEstimate
    plane : list of two int
        Axes of space that the view shows.
    middle : (3,) array
        Numbers go away from here, in mm.
    """
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
    write_number(ax, number, centre, centre - middle[plane], colour)
