"""Integrals over a flat triangle of linear functions against 1/R^2 kernels, in closed form.

A point r looks at a triangle with corners v_1, v_2, v_3 (counter-clockwise seen from outside),
outward unit normal n, area A; phi_i is 1 at corner i, linear, 0 at the other corners. With
y = r' - r, R = |y|, and for the edge e from v_e to v_e+1 its vector E_e and length L_e,

    solid angle   Omega = int n.y / R^3 dS
    edge integral ell_e = int_e 1/R dl = log (R_e + R_e+1 + L_e) / (R_e + R_e+1 - L_e)
    single layer  I     = int 1/R dS = sum_e s_e ell_e - h Omega
    double layer  Omega_i = int phi_i n.y / R^3 dS = phi_i(foot) Omega - h g_i . sum_e m_e ell_e
    field         F_i   = int phi_i y / R^3 dS = n Omega_i + g_i I - sum_e m_e int_e phi_i / R dl

where h = n.y is the height of the plane, `foot` the foot of the perpendicular from r, g_i the
surface gradient of phi_i, m_e = E_e x n / L_e the normal of an edge in the plane and s_e the
distance of the edge from the foot along it. The last two lines come from phi_i = phi_i(foot) +
g_i.(r' - foot), y / R^3 = -grad(1/R) within the plane, and the divergence theorem.

Everything is smooth unless r lies on the triangle. Long axes come last and components of vectors
first; points and triangles broadcast against each other. Per point and triangle an arc tangent
and a few multiplications are spent, per edge a logarithm, per vertex a square root: callers
compute `norm` and `edge_integral` once and hand them to all triangles that share them.

References: de Munck 1992, doi:10.1109/10.256433 (linear elements); van Oosterom & Strackee 1983,
doi:10.1109/TBME.1983.325207 (solid angle); Wilton et al. 1984, doi:10.1109/TAP.1984.1143304
(single layer).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = [
    "Triangles",
    "corner_solid_angles",
    "cross",
    "dot",
    "edge_integral",
    "edge_moment",
    "norm",
    "single_layer",
    "solid_angle",
    "triangles",
]


def dot(a, b):
    """Inner product over the leading axis of length 3."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a, b):
    """Vector product over the leading axis of length 3, as a list of components."""
    return [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]


def norm(a):
    """Length over the leading axis of length 3."""
    return jnp.sqrt(dot(a, a))


def solid_angle(corners, distances):
    """Solid angle of triangles, positive where the outer side faces away from the point.

    Parameters
    ----------
    corners : three arrays (3, ...)
        y_1, y_2, y_3 relative to the point, in m.
    distances : three arrays (...)
        Their lengths.
    """
    (y1, y2, y3), (r1, r2, r3) = corners, distances
    volume = dot(y1, cross(y2, y3))
    solid = r1 * r2 * r3 + r1 * dot(y2, y3) + r2 * dot(y1, y3) + r3 * dot(y1, y2)
    return 2 * jnp.arctan2(volume, solid)


def edge_integral(start_distance, end_distance, length):
    """Integral of 1/R along an edge, from the distances of its ends and its length."""
    total = start_distance + end_distance
    return jnp.log((total + length) / (total - length))


class Triangles(NamedTuple):
    """What the integrals need of triangles; components first, triangles last.

    Attributes
    ----------
    normal : (3, n_faces) array
        Outward unit normals n.
    gradient : (3, 3, n_faces) array
        g_i of corner i, in 1/m.
    edge_normal : (3, 3, n_faces) array
        m_e of the edge from corner e to e + 1, a unit vector.
    edge_length : (3, n_faces) array
        L_e in m.
    area : (n_faces,) array
        In m^2.
    """

    normal: np.ndarray
    gradient: np.ndarray
    edge_normal: np.ndarray
    edge_length: np.ndarray
    area: np.ndarray


def triangles(vertices, faces):
    """Geometry of the faces of a surface, in float64 on the host."""
    corners = np.moveaxis(np.asarray(vertices, np.float64)[faces], 0, 2)  # corner, xyz, face
    edges = np.roll(corners, -1, axis=0) - corners
    twice = np.cross(edges[0], -edges[2], axis=0)
    doubled = np.sqrt(np.sum(twice**2, axis=0))
    normal = twice / doubled
    length = np.sqrt(np.sum(edges**2, axis=1))
    edge_normal = np.cross(edges, np.broadcast_to(normal, edges.shape), axis=1) / length[:, None]
    # phi_i falls from 1 to 0 over the height doubled / length on the edge opposite to corner i.
    opposite = np.roll(edge_normal * length[:, None], -1, axis=0)
    return Triangles(normal, -opposite / doubled, edge_normal, length, 0.5 * doubled)


def corner_solid_angles(shape, corners, omega, edge_integrals):
    """Double layer Omega_i of the three linear functions of triangles, and the height h.

    Parameters
    ----------
    shape : Triangles
        Its arrays broadcast against those below.
    corners : three arrays (3, ...)
        Relative to the point, in m.
    omega : (...) array
        `solid_angle`.
    edge_integrals : three arrays (...)
        `edge_integral` of the edges from corner e to e + 1.

    Returns
    -------
    three arrays (...), array (...)
    """
    height = dot(shape.normal, corners[0])
    rim = [
        sum(m[d] * ell for m, ell in _pairs(shape.edge_normal, edge_integrals)) for d in range(3)
    ]
    first = -dot(shape.gradient[0], corners[1]) * omega - height * dot(shape.gradient[0], rim)
    second = -dot(shape.gradient[1], corners[2]) * omega - height * dot(shape.gradient[1], rim)
    return [first, second, omega - first - second], height


def single_layer(shape, corners, omega, edge_integrals, height):
    """Integral of 1/R over triangles; arguments as for `corner_solid_angles`."""
    rim = sum(
        dot(m, y) * ell
        for m, y, ell in zip(shape.edge_normal, corners, edge_integrals, strict=True)
    )
    return rim - height * omega


def edge_moment(start, direction, start_distance, end_distance, length, integral):
    """Integral of t / (L R) along an edge, t the length from its start; `start` is y_e."""
    return (end_distance - start_distance - dot(start, direction) * integral) / length


def _pairs(first, second):
    return zip(first, second, strict=True)
