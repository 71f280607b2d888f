"""Sensors on a head of which only the skin is known: electrodes, caps and helmets.

Three ways lead to the skin: the nearest point, for electrodes that are almost there; a ray from the
centre of the head, for caps of other heads, of which directions are all that can be kept; and
lowering a rigid helmet until a coil is as near as the wall between allows.

All positions are in m. The head is in head coordinates: x to the right through the preauricular
points, y to the front through the nasion, z up; its centre is that of the sphere nearest to the
upper part, |x|^2 = 2 c.x + const in least squares.

Costs: a ray tries all faces, O(n_rays n_faces); the rest asks k-d trees.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from ..core.checks import check_count, check_positive
from ._points import check_points
from .surfaces import face_areas_and_normals, nearest_points

__all__ = ["apply_trans", "even_sensors", "head_frame", "place_helmet", "place_montage"]

# Weight of the centre that an electrode keeps off the edges of its triangle: potentials of
# linear elements are least accurate at vertices.
_INWARD = 0.1
# The part of a head, from the preauricular points to the top, that is much like a sphere.
_UPPER = 0.25
# Sine of the elevation down to which sensors are spread: the height of a cap's lowest row.
_LOWEST = -0.25
_RAY_STEPS = 20
_FAR = 1.0  # m, worse than any helmet over the head


def apply_trans(trans, pos):
    """Take positions (..., 3) through a transform (4, 4)."""
    return np.asarray(pos, np.float64) @ trans[:3, :3].T + trans[:3, 3]


def head_frame(fiducials):
    """Transform (4, 4) to the head coordinates that nasion, left and right ear (3, 3) define."""
    nasion, lpa, rpa = fiducials
    right = rpa - lpa
    length = np.linalg.norm(right)
    x_axis = right / max(length, 1e-12)
    origin = lpa + (nasion - lpa) @ x_axis * x_axis
    front = nasion - origin
    if length < 1e-6 or np.linalg.norm(front) < 1e-6 * length:
        raise ValueError(
            "fiducials must be nasion, left and right preauricular point, which lie on a line."
        )
    y_axis = front / np.linalg.norm(front)
    rotation = np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)])
    trans = np.eye(4)
    trans[:3, :3], trans[:3, 3] = rotation, -rotation @ origin
    return trans


def place_montage(pos, skin_pos, skin_faces, fiducials=None):
    """Put electrodes on the skin.

    Parameters
    ----------
    pos : (n_electrodes, 3) array
        In head coordinates if `fiducials` is None: each electrode goes to the nearest point of the
        skin. Otherwise in any frame.
    skin_pos, skin_faces
        The skin, in head coordinates.
    fiducials : (3, 3) array, optional
        Nasion, left and right preauricular point in the frame of `pos`. The montage is turned to
        these landmarks and seen from the centre of its upper part; on this head, electrodes
        lie in the same directions from the centre. Good to about a centimetre.

    Returns
    -------
    (n_electrodes, 3) array
        On the skin, inside triangles, in head coordinates.

    Raises
    ------
    ValueError
        If positions look like mm or the landmarks lie on a line.
    """
    pos = check_points("pos", pos)
    if fiducials is not None:
        frame = head_frame(check_points("fiducials", fiducials))
        pos = apply_trans(frame, pos)
        pos = _project_rays(_centre(skin_pos), pos - _centre(pos), skin_pos, skin_faces)
    near = nearest_points(pos, skin_pos, skin_faces)
    weights = (1 - _INWARD) * near.barycentric + _INWARD / 3
    return np.einsum("nc,ncd->nd", weights, skin_pos[skin_faces[near.face]])


def even_sensors(n_sensors, skin_pos, skin_faces, *, distance=0.0):
    """Spread sensors evenly over the upper head, without any montage.

    Parameters
    ----------
    n_sensors : int
    skin_pos, skin_faces
        The skin, in head coordinates.
    distance : float
        From the skin: 0 for electrodes, some 6 mm for optically pumped magnetometers, 20 mm and
        more for coils in a dewar.

    Returns
    -------
    pos : (n_sensors, 3) array
        In head coordinates.
    normals : (n_sensors, 3) array
        Outward unit vectors: of the skin for electrodes, away from its nearest point otherwise.

    Raises
    ------
    ValueError
        If the number or the distance is not positive.
    """
    check_count("n_sensors", n_sensors)
    directions = _spiral(n_sensors)
    pos = _project_rays(_centre(skin_pos), directions, skin_pos, skin_faces)
    if distance == 0:
        pos = place_montage(pos, skin_pos, skin_faces)
        face = nearest_points(pos, skin_pos, skin_faces).face
        return pos, face_areas_and_normals(skin_pos, skin_faces)[1][face]
    distance = check_positive("distance", distance)
    pos = pos + distance * directions
    # Over slanted skin the ray must go on a little to gain the distance.
    for _ in range(_RAY_STEPS):
        near = nearest_points(pos, skin_pos, skin_faces)
        pos = pos + np.maximum(distance - near.distance, 0.0)[:, None] * directions
    near = nearest_points(pos, skin_pos, skin_faces)
    return pos, (pos - near.pos) / near.distance[:, None]


def place_helmet(coil_pos, skin_pos, skin_faces, *, gap=0.017):
    """Put a helmet on the head: as close as its shape allows, symmetric, tilted as fits best.

    Parameters
    ----------
    coil_pos : (n_coils, 3) array
        In the coordinates of the device: x to the right, y to the front, z up.
    skin_pos, skin_faces
        The skin, in head coordinates.
    gap : float
        Least distance from a coil to the skin. 17 mm is about the wall of a helium dewar.

    Returns
    -------
    (4, 4) array
        Takes device to head coordinates.

    Raises
    ------
    ValueError
        If positions look like mm, no coil is above the head, or the gap is not positive.

    Notes
    -----
    The helmet turns about the x axis, shifts along y, and comes down until the first coil is
    `gap` away from the skin; turn and shift minimise the root mean square distance of the coils.
    """
    gap = check_positive("gap", gap)
    coil_pos = np.unique(check_points("coil_pos", coil_pos), axis=0)
    # Points 3 to 4 mm apart stand for the skin: distances are right to a fraction of a mm.
    grid = np.array([(i, j, 3 - i - j) for i in range(4) for j in range(4 - i)]) / 3
    skin = np.einsum("gc,fcd->gfd", grid, skin_pos[skin_faces]).reshape(-1, 3)
    skin = np.unique(skin, axis=0)
    columns, nearest = cKDTree(skin[:, :2]), cKDTree(skin)

    def lowered(tilt, shift):
        trans = _tilted(tilt, shift)
        placed = apply_trans(trans, coil_pos)
        # A coil that comes down beside a point of the skin, rho away from it, stops when it is
        # sqrt(gap^2 - rho^2) above it.
        lists = columns.query_ball_point(placed[:, :2], gap)
        if not any(lists):
            return trans, _FAR
        coil = placed[np.repeat(np.arange(len(placed)), [len(near) for near in lists])]
        offset = skin[np.concatenate(lists).astype(int)] - coil
        rise = np.sqrt(np.maximum(gap**2 - np.sum(offset[:, :2] ** 2, axis=1), 0.0))
        trans[2, 3] = np.max(offset[:, 2] + rise)
        distance = nearest.query(placed + [0.0, 0.0, trans[2, 3]])[0]
        return trans, np.sqrt(np.mean(distance**2))

    best = minimize(
        lambda x: lowered(*x)[1],
        [0.0, 0.0],
        method="Nelder-Mead",
        options={"initial_simplex": [[0, 0], [0.2, 0], [0, 0.02]], "xatol": 1e-3, "fatol": 1e-5},
    )
    if best.fun == _FAR:
        raise ValueError(
            "coil_pos must surround the head around the origin of the device, but no coil comes "
            "down above the skin; shift them."
        )
    return lowered(*best.x)[0]


def _tilted(tilt, shift):
    trans = np.eye(4)
    trans[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    trans[1, 3] = shift
    return trans


def _centre(pos):
    """Centre (3,) of the sphere nearest to the upper part of a head or montage."""
    upper = pos[pos[:, 2] > _UPPER * np.max(pos[:, 2])]
    design = np.column_stack([2 * upper, np.ones(len(upper))])
    return np.linalg.lstsq(design, np.sum(upper**2, axis=1))[0][:3]


def _spiral(n_points):
    """Even directions (n_points, 3) from the top down: a spiral that turns by the golden angle."""
    height = 1 - (1 - _LOWEST) * (np.arange(n_points) + 0.5) / n_points
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n_points)
    radius = np.sqrt(1 - height**2)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), height])


def _project_rays(centre, directions, skin_pos, skin_faces):
    """Outermost crossings (n, 3) of rays from a point with the skin."""
    # A ray hits the triangle whose corners, seen from the centre, combine to its direction with
    # weights that are not negative; one over their sum is the length of the ray.
    cones = np.linalg.inv(np.swapaxes(skin_pos[skin_faces] - centre, 1, 2))
    weights = np.einsum("fij,nj->nfi", cones, directions)
    hits = np.all(weights >= -1e-12, axis=2)
    reach = np.max(np.where(hits, 1 / np.abs(weights.sum(axis=2)), 0.0), axis=1)
    return centre + reach[:, None] * directions
