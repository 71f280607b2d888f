"""A number at each source, drawn on the cortex of the average head.

Own orthographic rendering: triangles that face the viewer are painted from back to front, with
colours and light interpolated from their corners. Matplotlib's three-dimensional axes would
sort and light whole triangles, and take longer.
"""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import TriMesh
from matplotlib.colors import CenteredNorm, Normalize, PowerNorm
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from ..core.checks import check_array, check_choice
from ..forward.surfaces import face_areas_and_normals, vertex_normals
from .common import new_axes

__all__ = ["plot_cortex"]

# Title: hemisphere, and the side from which it is seen along the x axis.
_VIEWS = {
    "left, lateral": (0, -1.0),
    "left, medial": (0, 1.0),
    "right, medial": (1, -1.0),
    "right, lateral": (1, 1.0),
}
_SURFACES = ("inflated", "pial", "white")
_GYRUS, _SULCUS = 0.88, 0.72  # grey
_AMBIENT = 0.45  # light that comes from everywhere
_LIGHT_UP = 0.5  # tangent of the height of the lamp above the viewer
# Share of the colour scale over which colour covers the grey.
_FADE = 0.25
# Values below this share of the peak are left out: they would only tint the cortex.
_LEAST = 1e-3


def plot_cortex(
    values,
    head,
    *,
    axes=None,
    surface="inflated",
    label="expected number of dipoles",
    vmax=None,
    vmin=None,
):
    """Draw a value at each source on both hemispheres, seen from the side and from the middle.

    Parameters
    ----------
    values : (n_sources,) array
        Magnitudes are drawn in reds that follow a square root, so that what is spread over many
        sources stays visible; values with a sign in blue and red around zero.
    head : TemplateHead
    axes : sequence of four Axes, optional
    surface : "inflated", "pial" or "white"
        Inflated shows the sulci too.
    label : str
        What the values are, with their unit, for the colour bar.
    vmax : float, optional
        Upper end of the colour scale; the largest value if None.
    vmin : float, optional
        Lower end of a linear scale for magnitudes.

    Returns
    -------
    (4,) array of Axes
        Left hemisphere from the side and from the middle, right hemisphere from the middle and
        from the side. Sulci are darker. Between sources values are interpolated; each is widened
        by 3 mm, so that a single source is a spot of 15 mm and not a dot.

    Raises
    ------
    ValueError
        If there is not one finite value for each source, or not four axes.
    """
    values = check_array(
        "values", values, shape=(head.n_sources,), remedy="One for each source of the head."
    )
    check_choice("surface", surface, _SURFACES)
    axes = new_axes(1, 4, (2.9, 2.3)) if axes is None else np.asarray(axes, dtype=object).ravel()
    if len(axes) != 4:
        raise ValueError(f"axes must be four Axes, one for each view, got {len(axes)}.")
    scale = colour_scale(values, vmax, vmin)
    colours = _vertex_colours(head, values, scale)
    pos = np.asarray(getattr(head, surface))
    if surface != "inflated":
        pos = head.to_mri(pos)
    for ax, (title, (side, sight)) in zip(axes, _VIEWS.items(), strict=True):
        half = len(pos) // 2
        own = slice(side * half, (side + 1) * half)
        faces = np.split(head.cortex_faces, 2)[side] - side * half
        ax.add_collection(_painted(pos[own], faces, colours[own], sight))
        ax.set_title(title, fontsize="medium")
        ax.set_aspect("equal")
        ax.autoscale_view()
        ax.set_axis_off()
    draw_scale(list(axes), scale, label)
    return axes


def draw_scale(axes, scale, label):
    """Draw the colour bar of one or several axes."""
    axes = axes if isinstance(axes, list) else [axes]
    bar = axes[0].figure.colorbar(scale, ax=axes, shrink=0.7, pad=0.01, ticks=MaxNLocator(4))
    bar.set_label(label)


def colour_scale(values, vmax=None, vmin=None):
    """Colours for magnitudes (reds, square root) or, where there are negative values, for signs.

    With a lower end `vmin` magnitudes are on a linear scale.
    """
    top = float(np.max(np.abs(values))) if vmax is None else float(vmax)
    top = top or 1.0
    if np.min(values) < 0:
        return ScalarMappable(CenteredNorm(0.0, top), "RdBu_r")
    norm = PowerNorm(0.5, 0.0, top, clip=True) if vmin is None else Normalize(vmin, top, clip=True)
    return ScalarMappable(norm, "Reds")


def opacity(values, scale):
    """How much each value (n,) covers what lies below: not at all near zero, fully further on.

    All do where the scale begins above zero.
    """
    if scale.norm.vmin > 0:
        return np.ones(len(values))
    power = getattr(scale.norm, "gamma", 1.0)
    size, least = (np.abs(values) / scale.norm.vmax) ** power, _LEAST**power
    return np.clip((size - least) / _FADE, 0.0, 1.0)


def _vertex_colours(head, values, scale):
    """Colours (n_vertices, 3): the values, fading into the grey of gyri and sulci."""
    fine = _widened(head.refine(values), head.cortex_faces)
    # Sulcal depth changes its sign within a fraction of a mm: soften the border.
    in_sulcus = 0.5 + 0.5 * np.tanh(4 * head.sulcal_depth)
    grey = _GYRUS + (_SULCUS - _GYRUS) * in_sulcus
    cover = opacity(fine, scale)[:, None]
    return cover * scale.to_rgba(fine)[:, :3] + (1 - cover) * grey[:, None]


def _widened(values, faces):
    """Let each vertex show the largest magnitude among itself and its neighbours."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    is_larger = np.abs(values[start]) > np.abs(values[end])
    start, end = start[is_larger], end[is_larger]
    order = np.argsort(np.abs(values[start]))
    widened = values.copy()
    widened[end[order]] = values[start[order]]  # the last, largest, one stays
    return widened


def _painted(pos, faces, colours, sight):
    """One hemisphere seen along the x axis from x = `sight` times infinity, in mm."""
    _, face_normals = face_areas_and_normals(pos, faces)
    lamp = np.array([sight, 0.0, _LIGHT_UP]) / np.hypot(1.0, _LIGHT_UP)
    brightness = np.clip(vertex_normals(pos, faces) @ lamp, 0.0, None)
    light = _AMBIENT + (1 - _AMBIENT) * brightness
    faces = faces[sight * face_normals[:, 0] > 0]
    faces = faces[np.argsort(sight * pos[faces, 0].mean(axis=1))]
    # The front is to the right where the viewer stands on the right.
    flat = Triangulation(1e3 * sight * pos[:, 1], 1e3 * pos[:, 2], faces)
    lit = np.clip(colours * light[:, None], 0.0, 1.0)
    return TriMesh(flat, facecolors=np.column_stack([lit, np.ones(len(lit))]), rasterized=True)
