"""Coils and electrodes: the points whose weighted sum one channel reads.

A coil stands in its own frame, with the axis along z, until it is placed. Its loops are
integrated by the midpoint rule on squares, and on discs by the rule

    mean of f over a disc of radius R  ~  f(0) / 4 + sum_{k=0}^{5} f(sqrt(2/3) R e_k) / 8

with six directions e_k, 60 degrees apart, exact for polynomials of degree 5 (Abramowitz and
Stegun 1964, 25.4.61). The mean field of a source at distance D is wrong by a fraction of order
(size / D)^2 / n_side^2 with the midpoint rule, and (size / D)^6 on discs.
"""

from typing import NamedTuple

import numpy as np

from ..core.checks import check_array, check_positive

__all__ = [
    "Coil",
    "axial_gradiometer",
    "electrode",
    "planar_gradiometer",
    "point_magnetometer",
    "round_magnetometer",
    "square_magnetometer",
]


class Coil(NamedTuple):
    """The points whose weighted sum one channel reads.

    Attributes
    ----------
    pos : (n_points, 3) array
        In m: of a coil, in its own frame with the axis along z until it is `placed`.
    normals : (n_points, 3) array or None
        Unit vectors; None for electrodes and contacts.
    weights : (n_points,) array
        Unitless, or 1/m for a planar gradiometer.
    """

    pos: np.ndarray
    normals: np.ndarray | None
    weights: np.ndarray

    def placed(self, trans):
        """Move the coil by a rigid (4, 4) transform, whose translation is in m."""
        trans = check_array("trans", trans, shape=(4, 4))
        normals = None if self.normals is None else self.normals @ trans[:3, :3].T
        return Coil(self.pos @ trans[:3, :3].T + trans[:3, 3], normals, self.weights)


def point_magnetometer():
    """A magnetometer without extent: one point, in T."""
    return _upward(np.zeros((1, 3)), np.ones(1))


def square_magnetometer(size, n_side=2, height=0.0):
    """A square loop by the midpoint rule.

    Parameters
    ----------
    size : float
        Side of the loop, in m.
    n_side : int
        Points along a side: 2 (error of fourth order in `size` over distance is small already
        for SQUID magnetometers), 4 where sources come close.
    height : float
        Of the loop over the origin of the coil frame, in m.

    Returns
    -------
    Coil
        Reads T, the mean flux density over the loop.
    """
    pos = _rectangle(check_positive("size", size), size, n_side, n_side)
    pos[:, 2] = height
    return _upward(pos, np.full(len(pos), 1 / len(pos)))


def round_magnetometer(diameter, height=0.0):
    """A round loop by the 7-point rule of degree 5; reads T. Lengths in m."""
    pos, weights = _disc(check_positive("diameter", diameter))
    pos[:, 2] = height
    return _upward(pos, weights)


def planar_gradiometer(baseline, loop, *, shape=(1, 2), height=0.0):
    """Two rectangular loops side by side along x, of opposite sign.

    Parameters
    ----------
    baseline : float
        Distance between the centres of the loops, in m.
    loop : (float, float)
        Sides of a loop along x and y, in m.
    shape : (int, int)
        Points along the sides of a loop.
    height : float
        In m.

    Returns
    -------
    Coil
        Reads T/m, d B_z / d x.
    """
    baseline = check_positive("baseline", baseline)
    side = [check_positive("loop", length) for length in loop]
    pos = _rectangle(*side, *shape)
    pos[:, 2] = height
    half = np.array([0.5 * baseline, 0.0, 0.0])
    weights = np.full(len(pos), 1 / (len(pos) * baseline))
    return _upward(np.concatenate([pos + half, pos - half]), np.concatenate([weights, -weights]))


def axial_gradiometer(diameter, baseline):
    """Two round loops on one axis: the near one less the far one, `baseline` (m) above it.

    Reads T, as these channels are kept: the far loop is there to cancel distant sources.
    """
    pos, weights = _disc(check_positive("diameter", diameter))
    far = pos + np.array([0.0, 0.0, check_positive("baseline", baseline)])
    return _upward(np.concatenate([pos, far]), np.concatenate([weights, -weights]))


def electrode(pos, reference=None):
    """An electrode or contact at `pos` (3,) in m, read against one at `reference` or infinity."""
    pos = check_array("pos", pos, shape=(3,))
    if reference is None:
        return Coil(pos[None], None, np.ones(1))
    reference = check_array("reference", reference, shape=(3,))
    return Coil(np.stack([pos, reference]), None, np.array([1.0, -1.0]))


def _upward(pos, weights):
    return Coil(pos, np.tile([0.0, 0.0, 1.0], (len(pos), 1)), weights)


def _rectangle(width, length, n_x, n_y):
    """Midpoints of n_x x n_y equal cells."""
    x = width * ((np.arange(n_x) + 0.5) / n_x - 0.5)
    y = length * ((np.arange(n_y) + 0.5) / n_y - 0.5)
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([grid, np.zeros((len(grid), 1))], axis=1)


def _disc(diameter):
    """Centre and six points at sqrt(2/3) of the radius, exact for polynomials of degree 5."""
    angle = np.arange(6) * np.pi / 3
    ring = 0.5 * diameter * np.sqrt(2 / 3) * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    return np.concatenate([np.zeros((1, 3)), ring]), np.r_[0.25, np.full(6, 0.125)]
