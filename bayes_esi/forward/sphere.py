"""The head as a sphere: magnetic field and electric potential of a current dipole.

MEG (Sarvas). Outside a conductor whose conductivity depends on the radius alone, a dipole of
moment q at r' gives at r, with a = r - r',

    B = mu0 / (4 pi F^2) [ F q x r' - (q x r' . r) grad F ]
    F = a (r a + r^2 - r'.r)
    grad F = (a^2/r + a.r/a + 2 a + 2 r) r - (a + 2 r + a.r/a) r'

whatever the conductivities. Radial dipoles are silent.

EEG (de Munck). A series over Legendre orders for any number of concentric shells, each with
its own radial and tangential conductivity: see `_sphere_series.py`.

Lead fields are written as q . (r' x w) and as polynomials in scalar products: nothing is
singular at the centre or where source and sensor share an axis, and jit, vmap and derivatives
with respect to every argument that is an array pass through.

References: Sarvas 1987, doi:10.1088/0031-9155/32/1/004; de Munck, Peters 1993, IEEE Transactions
on Biomedical Engineering 40:1166.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from ..core.checks import check_array, check_count
from ._points import (
    cast,
    check_points,
    check_sources_within,
    common_dtype,
    is_known,
    radius_of,
)
from ._rows import map_rows
from ._sphere_series import potential_lead_field

__all__ = ["check_shells", "sphere_eeg", "sphere_meg"]

_MU0_OVER_4PI = 1e-7  # T m / A

# Depth up to which sources that are traced can be summed exactly, as a fraction of the
# innermost radius: how many terms a source needs cannot depend on a value not known yet.
_TRACED_ECCENTRICITY = 0.98
_MOST_TERMS = 20_000
# An electrode this far (as a fraction of the radius) outside lies on the surface up to rounding.
_ON_SURFACE = 1e-3
_SAME_PLACE = 1e-9  # m


def sphere_meg(source_pos, coil_pos, coil_normal):
    """Lead field of point magnetometers outside a spherical conductor.

    Parameters
    ----------
    source_pos : (n_sources, 3) or (3,) array
        Dipole positions from the centre of the sphere, m.
    coil_pos : (n_channels, 3) array
        Positions of the magnetometers from the centre of the sphere, m.
    coil_normal : (n_channels, 3) array
        Directions in which the field is measured, unit vectors.

    Returns
    -------
    (n_channels, n_sources, 3) or (n_channels, 3) array
        T per A·m.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a position looks like millimetres, or a
        source lies further out than the closest coil.

    Notes
    -----
    Cost O(n_channels n_sources), about fifty operations a pair.
    """
    source_pos = check_points("source_pos", source_pos, allow_single=True)
    coil_pos = check_points("coil_pos", coil_pos)
    coil_normal = check_points("coil_normal", coil_normal, in_metres=False)
    if np.shape(coil_normal) != np.shape(coil_pos):
        raise ValueError(
            f"coil_normal must have one row for each of the {len(coil_pos)} rows of coil_pos, "
            f"got shape {np.shape(coil_normal)}."
        )
    if is_known(coil_pos):
        closest = float(radius_of(coil_pos).min())
        check_sources_within(source_pos, closest, "the sphere that the closest coil touches")
    dtype = common_dtype(source_pos, coil_pos, coil_normal)
    source_pos, coil_pos, coil_normal = cast(dtype, source_pos, coil_pos, coil_normal)
    lead_field = _field(source_pos.reshape(-1, 3), coil_pos, coil_normal)
    return lead_field[:, 0] if source_pos.ndim == 1 else lead_field


def sphere_eeg(source_pos, electrode_pos, *, radii, sigma_radial, sigma_tangential, n_terms=None):
    """Lead field of electrodes on or in a sphere of concentric shells.

    Parameters
    ----------
    source_pos : (n_sources, 3) or (3,) array
        Dipole positions from the centre of the sphere, m; in any shell.
    electrode_pos : (n_channels, 3) array
        Electrodes from the centre of the sphere, m; on the outermost radius or within.
    radii : (n_shells,) array
        Outer radius of each shell, m, from the innermost out.
    sigma_radial, sigma_tangential : (n_shells,) array
        Conductivity of each shell along and across the radius, S/m.
    n_terms : int, optional
        Legendre orders to sum. By default as many as the closest of the given pairs needs for
        ten digits; where positions are traced, as many as eccentricity 0.98 of the innermost
        shell needs, and where conductivities are, as many as isotropic shells need.

    Returns
    -------
    (n_channels, n_sources, 3) or (n_channels, 3) array
        V per A·m, against the mean potential of the outermost sphere. The reference of a
        recording is for the caller to apply.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a position looks like millimetres, radii
        do not increase, a conductivity is not positive, a source or an electrode lies outside
        the sphere, a source lies on an electrode, or so close to the radius of one that the
        series converges too slowly.

    Notes
    -----
    Cost O(n_terms n_channels n_sources). The number of terms is log(1e-12) over the logarithm
    of the ratio of the radii (or of the mirror images, where source and electrode share an
    isotropic shell): about 200 for cortex and scalp. Memory of a reverse-mode derivative grows
    with n_terms n_channels n_sources; forward mode needs none.
    """
    source_pos = check_points("source_pos", source_pos, allow_single=True)
    electrode_pos = check_points("electrode_pos", electrode_pos)
    shells = check_shells(radii, sigma_radial, sigma_tangential)
    radii = shells[0]
    if is_known(radii):
        check_sources_within(source_pos, float(radii[-1]), "the outermost sphere")
        _check_electrodes_within(electrode_pos, float(radii[-1]))
    dtype = common_dtype(source_pos, electrode_pos)
    on_surface = is_known(electrode_pos, radii) and _are_on_surface(electrode_pos, radii[-1])
    if not on_surface:
        _check_apart(source_pos, electrode_pos)
    if n_terms is None:
        n_terms = _terms_needed(source_pos, electrode_pos, shells, on_surface, dtype)
    source_pos, *others = cast(dtype, source_pos, electrode_pos, *shells)
    lead_field = potential_lead_field(
        source_pos.reshape(-1, 3),
        *others,
        n_terms=check_count("n_terms", n_terms),
        on_surface=on_surface,
    )
    return lead_field[:, 0] if source_pos.ndim == 1 else lead_field


def check_shells(radii, sigma_radial, sigma_tangential):
    """Return radii (m) and conductivities (S/m) of shells, from the innermost out, checked.

    Raises
    ------
    ValueError
        If lengths differ, radii are not positive and increasing or look like millimetres, or a
        conductivity is not positive.
    """
    names = ("radii", "sigma_radial", "sigma_tangential")
    shells = (radii, sigma_radial, sigma_tangential)
    n_shells = np.size(radii)
    for name, value in zip(names, shells, strict=True):
        if np.ndim(value) != 1 or np.shape(value)[0] != n_shells:
            raise ValueError(
                f"{name} must have shape (n_shells,), one value for each of the {n_shells} "
                f"radii from the innermost shell out, got {np.shape(value)}."
            )
    shells = tuple(
        check_array(name, value, ndim=1) if is_known(value) else value
        for name, value in zip(names, shells, strict=True)
    )
    for name, value in zip(names, shells, strict=True):
        if is_known(value) and np.any(value <= 0):
            raise ValueError(f"{name} must be positive, got {value.tolist()}.")
    if is_known(shells[0]):
        if np.any(np.diff(shells[0]) <= 0):
            raise ValueError(
                "radii must increase: shells are given from the innermost out, got "
                f"{shells[0].tolist()}."
            )
        if shells[0][-1] > 1:
            raise ValueError(
                f"radii must be in metres, got {shells[0].tolist()}: that looks like "
                "millimetres; divide by 1000."
            )
    return shells


@jax.jit
def _field(source_pos, coil_pos, coil_normal):
    """Sarvas' formula, one coil after another, component by component over all sources."""
    source = source_pos.T

    def one_coil(coil, normal):
        radius = jnp.sqrt(_dot(coil, coil))
        apart = [r - s for r, s in zip(coil, source, strict=True)]
        distance2 = _dot(apart, apart)
        distance = jnp.sqrt(distance2)
        along = _dot(apart, coil)
        rest = radius * distance + along  # F without its factor a
        inverse = 1 / (distance * rest)  # the only division: 1/F, and 1/a times 1/rest
        cosine = along * rest * inverse
        slope_coil = distance2 * (1 / radius) + cosine + 2 * (distance + radius)
        slope_source = distance + 2 * radius + cosine
        slope = slope_coil * _dot(coil, normal) - slope_source * _dot(source, normal)
        first = _MU0_OVER_4PI * inverse
        second = first * slope * inverse
        w = [first * n - second * r for n, r in zip(normal, coil, strict=True)]
        return jnp.stack(_cross(source, w), axis=-1)

    return map_rows(one_coil, (coil_pos, coil_normal), source_pos.shape[0])


def _dot(left, right):
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def _cross(left, right):
    return [
        left[1] * right[2] - left[2] * right[1],
        left[2] * right[0] - left[0] * right[2],
        left[0] * right[1] - left[1] * right[0],
    ]


def _check_electrodes_within(electrode_pos, radius):
    if not is_known(electrode_pos):
        return
    distance = radius_of(electrode_pos)
    outside = np.flatnonzero(distance > radius * (1 + _ON_SURFACE))
    if outside.size:
        raise ValueError(
            f"electrode_pos has {outside.size} of {distance.size} electrodes outside the outermost "
            f"sphere (radius {1e3 * radius:.4g} mm): the first is electrode {outside[0]} at "
            f"{1e3 * distance[outside[0]]:.4g} mm from the centre; Sphere(...).eeg projects "
            "electrodes of a real head onto it."
        )


def _are_on_surface(electrode_pos, radius):
    """Whether all electrodes lie on the outermost sphere up to rounding (or just outside)."""
    rounding = 16 * np.finfo(common_dtype(electrode_pos)).eps
    return bool(np.all(radius_of(electrode_pos) >= radius * (1 - rounding)))


def _check_apart(source_pos, electrode_pos):
    """Refuse electrodes within the head where a source is."""
    if not is_known(source_pos, electrode_pos):
        return
    apart = cdist(np.reshape(electrode_pos, (-1, 3)), np.reshape(source_pos, (-1, 3)))
    n_touching = np.count_nonzero(apart < _SAME_PLACE)
    if n_touching:
        raise ValueError(
            f"source_pos and electrode_pos coincide in {n_touching} pairs, where the potential of "
            "a point dipole is infinite; move them apart, or use unbounded, whose contacts have a "
            "radius."
        )


def _terms_needed(source_pos, electrode_pos, shells, on_surface, dtype):
    """Legendre orders that the slowest of all pairs needs, rounded up to a coarse scale.

    Terms fall as n^(3/2) exp(-decay n). The scale is coarse so that few different numbers, hence
    few compilations, occur.
    """
    radii, *conductivities = shells
    if not is_known(radii):
        raise ValueError("n_terms must be given where radii are traced.")
    radii = np.asarray(radii, np.float64)
    stretch = np.ones(radii.size)  # conductivities that are traced count as isotropic
    if is_known(*conductivities):
        stretch = np.sqrt(np.divide(conductivities[1], conductivities[0], dtype=np.float64))
    source_radius, electrode_radius = _TRACED_ECCENTRICITY * radii[:1], radii[-1:]
    if is_known(source_pos):
        source_radius = radius_of(source_pos).ravel()
    if is_known(electrode_pos) and not on_surface:
        electrode_radius = radius_of(electrode_pos)
    decay = _decay(source_radius, electrode_radius[:, None], radii, stretch)
    digits = -np.log(max(float(np.finfo(dtype).eps), 1e-12))
    least = (digits + 1.5 * np.log(_MOST_TERMS)) / _MOST_TERMS
    n_slow = np.count_nonzero(decay < least)
    if n_slow:
        raise ValueError(
            f"{n_slow} pairs of source_pos and electrode_pos converge too slowly: they share a "
            f"radius up to {1e3 * least * radii[-1]:.2g} mm, or both touch an interface. Move "
            "these sources, or give n_terms."
        )
    n_terms = 16.0
    for _ in range(8):  # a fixed point: n appears in its own logarithm
        n_terms = max(16.0, (digits + 1.5 * np.log(n_terms)) / float(np.min(decay)))
    return int(np.ceil(2 ** (np.ceil(4 * np.log2(n_terms)) / 4)))


def _decay(source_radius, electrode_radius, radii, stretch):
    """Logarithm by which a term of the series falls from one order to the next, for each pair.

    It is the distance of the two radii on a logarithmic scale, each shell stretched by the square
    root of its tangential over its radial conductivity. Within one isotropic shell only mirror
    images are summed, whose distance leads over an interface.
    """
    edges = np.concatenate([[1e-300], radii])
    thickness = stretch * np.diff(np.log(edges))
    beyond = np.append(np.cumsum(thickness[::-1])[::-1][1:], 0.0)  # from each outer radius out

    def locate(radius):
        radius = np.clip(radius, 1e-12 * radii[0], radii[-1])
        shell = np.searchsorted(radii[:-1], radius * (1 - 1e-12))
        to_outer = stretch[shell] * np.log(radii[shell] / radius)
        return shell, to_outer, thickness[shell] - to_outer, beyond[shell] + to_outer

    shell_s, outer_s, inner_s, depth_s = locate(source_radius)
    shell_e, outer_e, inner_e, depth_e = locate(electrode_radius)
    images = np.minimum(outer_s + outer_e, inner_s + inner_e)
    has_closed_form = (shell_s == shell_e) & (stretch[shell_s] == 1)
    return np.where(has_closed_form, images, np.abs(depth_s - depth_e))
