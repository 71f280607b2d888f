"""EEG of a layered sphere in closed form: a few dipoles in a homogeneous one.

Outside the innermost shell a dipole's Legendre coefficients in a layered sphere are those in a
homogeneous sphere of the same size times numbers rho_n that depend on the shells alone. If

    rho_n = sum_i weight_i factor_i^n                                               (n >= 1)

the layered potential of a dipole at r' is the weighted sum of homogeneous potentials of dipoles
at factor_i r'. In units of the outer radius R, with e the electrode's direction and s = e - u,

    V(u) = 1/(4 pi sigma R) [ 2/|s| + log(2 / (1 - e.u + |s|)) ]
    dV/du = 1/(4 pi sigma R) [ e (2/|s|^3 + (1 + 1/|s|)/E) - u (2/|s|^3 + 1/(|s| E)) ]

with E = 1 - e.u + |s|: two divisions and a square root, smooth at the centre and on the axis.

Factors are the poles of the sequence rho_n, found by the shift invariance of its Hankel matrix
(ESPRIT) and, where some are complex, improved as real ones by least squares in which the
weights are eliminated; weights follow by linear least squares. Orders count as much as they do
for the deepest eccentricity asked for, by scaling with its power of n.

References: Berg, Scherg 1994, doi:10.1016/0013-4694(94)90113-9 (the idea, three dipoles); Zhang
1995, doi:10.1088/0031-9155/40/3/001; Roy, Kailath 1989, doi:10.1109/29.32276 (ESPRIT).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from ..core.checks import check_count
from ..core.struct import struct
from ..core.types import Array, Float
from ._points import cast, check_points, check_sources_within, common_dtype, is_known, radius_of
from ._rows import map_rows
from .sphere import check_shells

__all__ = ["EquivalentDipoles", "fit_equivalent_dipoles"]

# The fit covers sources up to this fraction of the innermost radius.
_ECCENTRICITY = 0.98
# Poles whose singular value is below this fraction of the largest are rounding.
_RANK_TOLERANCE = 1e-13
# No more dipoles are added once the fit is this good: homogeneous spheres need one.
_GOOD_ENOUGH = 1e-10
# Rounding of float32. Weights that nearly cancel would lose there what they gain in the fit, so
# they are charged for it.
_RIDGE = 6e-8


@struct
class EquivalentDipoles:
    """A layered sphere as weighted, shifted dipoles in a homogeneous one.

    `error` bounds the fit: the largest relative error of the potential over the whole sphere,
    for radial and tangential dipoles up to eccentricity 0.98 of the innermost radius.
    """

    weight: Float[Array, " n_dipoles"]
    factor: Float[Array, " n_dipoles"]  # of eccentricity
    radius: Float[Array, ""]  # of the outermost shell, m
    inner_radius: Float[Array, ""]  # of the innermost shell, m
    conductivity: Float[Array, ""]  # of the innermost shell, S/m
    error: Float[Array, ""]

    @property
    def n_dipoles(self):
        """Number of equivalent dipoles."""
        return self.weight.shape[0]

    def eeg(self, source_pos, electrode_pos):
        """Lead field of electrodes on the outermost sphere.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            Dipole positions from the centre of the sphere, m; in the innermost shell.
        electrode_pos : (n_channels, 3) array
            Electrodes from the centre of the sphere, m; on the outermost radius.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m, against the mean potential of the outermost sphere.

        Raises
        ------
        ValueError
            If shapes do not fit, values are not finite, a position looks like millimetres, a
            source lies outside the innermost shell, or an electrode off the outermost sphere.

        Notes
        -----
        Cost O(n_dipoles n_channels n_sources), twenty operations each.
        """
        source_pos = check_points("source_pos", source_pos, allow_single=True)
        electrode_pos = check_points("electrode_pos", electrode_pos)
        if is_known(self.radius, self.inner_radius):
            check_sources_within(source_pos, float(self.inner_radius), "the innermost shell")
            _check_on_sphere(electrode_pos, float(self.radius))
        dtype = common_dtype(source_pos, electrode_pos)
        parameters = (self.weight, self.factor, self.radius, self.conductivity)
        source_pos, *others = cast(dtype, source_pos, electrode_pos, *parameters)
        lead_field = _lead_field(source_pos.reshape(-1, 3), *others)
        return lead_field[:, 0] if source_pos.ndim == 1 else lead_field


def fit_equivalent_dipoles(radii, sigma_radial, sigma_tangential, n_dipoles=8):
    """Fit equivalent dipoles to a layered sphere.

    Parameters
    ----------
    radii : (n_shells,) array
        Outer radius of each shell, m, from the innermost out.
    sigma_radial, sigma_tangential : (n_shells,) array
        Conductivity of each shell along and across the radius, S/m. The innermost shell must be
        isotropic.
    n_dipoles : int
        Largest number of dipoles; fewer where fewer are exact.

    Returns
    -------
    EquivalentDipoles
        See its `error` for how good the fit is: with 8 dipoles 1e-8 for usual heads.

    Raises
    ------
    ValueError
        If the shells are not valid, or the innermost is anisotropic.

    Notes
    -----
    Takes some 10 to 500 ms on the host, in NumPy.
    """
    shells = (radii, sigma_radial, sigma_tangential)
    if not is_known(*shells):
        raise ValueError(
            "equivalent dipoles are fitted on the host and need radii and conductivities that are "
            "known; within a transformation use sphere_eeg."
        )
    radii, sigma_radial, sigma_tangential = (
        np.asarray(x, np.float64) for x in check_shells(*shells)
    )
    if not np.isclose(sigma_radial[0], sigma_tangential[0], rtol=1e-9):
        raise ValueError(
            "the innermost shell must be isotropic, got sigma_radial[0] = "
            f"{sigma_radial[0]:g} and sigma_tangential[0] = {sigma_tangential[0]:g} S/m; "
            "sphere_eeg takes any shells."
        )
    depth = _ECCENTRICITY * radii[0] / radii[-1]
    n_terms = int(np.clip(np.log(1e-13) / np.log(depth), 20, 1500))
    orders = np.arange(1, n_terms + 1)
    ratio = _ratio_to_homogeneous(orders, radii, sigma_radial, sigma_tangential)
    best = None
    basis, rank = _signal_space(ratio * depth**orders)
    for count in range(1, min(check_count("n_dipoles", n_dipoles), rank) + 1):
        candidate = _fit(basis[:, :count], orders, ratio, depth)
        if best is None or candidate[0] < best[0]:
            best = candidate
        if best[0] < _GOOD_ENOUGH:
            break
    _, factor, weight = best
    residual = factor ** orders[:, None] @ weight - ratio
    return EquivalentDipoles(
        weight=weight,
        factor=factor,
        radius=radii[-1],
        inner_radius=radii[0],
        conductivity=sigma_radial[0],
        error=_worst_error(residual, ratio, orders, depth),
    )


@jax.jit
def _lead_field(source_pos, electrode_pos, weight, factor, radius, conductivity):
    """Sum the dipoles of all pairs, one electrode after another over all sources."""
    source = source_pos.T / radius
    square = source[0] ** 2 + source[1] ** 2 + source[2] ** 2
    toward = electrode_pos / jnp.linalg.norm(electrode_pos, axis=1, keepdims=True)
    scale = weight * factor / (4 * jnp.pi * conductivity * radius**2)

    def one_electrode(electrode):
        cosine = electrode[0] * source[0] + electrode[1] * source[1] + electrode[2] * source[2]

        def add(sums, dipole):
            scale, factor = dipole
            # |e - u|^2 with u = factor r'/R and |e| = 1
            distance = jnp.sqrt(1 - factor * (2 * cosine - factor * square))
            rest = 1 - factor * cosine + distance
            both = 1 / (distance * rest)  # the only division, undone by a product each
            inverse = both * rest
            cube = 2 * inverse * inverse * inverse + both
            along_electrode = sums[0] + scale * (cube + both * distance)
            along_source = sums[1] + scale * factor * cube
            return (along_electrode, along_source), None

        # A loop, not eight unrolled dipoles: the compiler's fusion of those is three times slower.
        zero = jnp.zeros_like(cosine)
        (outer, inner), _ = jax.lax.scan(add, (zero, zero), (scale, factor))
        lead = [outer * e - inner * s for e, s in zip(electrode, source, strict=True)]
        return jnp.stack(lead, axis=-1)

    return map_rows(one_electrode, (toward,), source_pos.shape[0])


def _check_on_sphere(electrode_pos, radius):
    if not is_known(electrode_pos):
        return
    off = np.abs(radius_of(electrode_pos) / radius - 1)
    if np.any(off > 1e-3):
        raise ValueError(
            f"electrode_pos has {np.count_nonzero(off > 1e-3)} of {off.size} electrodes off the "
            f"outermost sphere (radius {1e3 * radius:.4g} mm), the furthest by "
            f"{1e3 * radius * off.max():.3g} mm; Sphere(...).eeg projects electrodes of a real "
            "head onto it, sphere_eeg takes electrodes within."
        )


def _ratio_to_homogeneous(orders, radii, sigma_radial, sigma_tangential):
    """Legendre coefficients over those of a homogeneous sphere: rho_n, outwards over the shells.

    Same recursion as in `_sphere_series.py`, here in NumPy and for sources in the innermost
    shell: `current` is s r f'/f and `log_f` the logarithm of f(r)/r^n, less its value inside.
    """
    product = orders * (orders + 1.0)
    current, log_f = sigma_radial[0] * orders, np.zeros(orders.size)
    for shell in range(1, len(radii)):
        s, k2 = sigma_radial[shell], sigma_tangential[shell] / sigma_radial[shell]
        excess = (k2 - 1) * product / (np.sqrt(0.25 + k2 * product) + orders + 0.5)
        power = orders + excess
        thickness = np.log(radii[shell] / radii[shell - 1])
        inner = (s * power - current) / (s * (power + 1) + current)
        outer = inner * np.exp(-(2 * power + 1) * thickness)
        current = s * (power - (power + 1) * outer) / (1 + outer)
        log_f = log_f + excess * thickness + np.log1p(outer) - np.log1p(inner)
    return np.exp(-log_f) * sigma_radial[0] * orders / current


def _signal_space(sequence):
    """Left singular vectors of the Hankel matrix of a sequence, and its numerical rank."""
    half = sequence.size // 2
    hankel = sequence[np.add.outer(np.arange(half), np.arange(sequence.size - half))]
    basis, singular, _ = np.linalg.svd(hankel, full_matrices=False)
    rank = int(np.count_nonzero(singular > _RANK_TOLERANCE * singular[0]))
    return basis, min(rank, half - 1)


def _fit(basis, orders, ratio, depth):
    """Objective, factors and weights for as many dipoles as `basis` has columns."""
    poles = np.linalg.eigvals(np.linalg.lstsq(basis[:-1], basis[1:])[0])
    n_dipoles = poles.size
    importance = np.sqrt(2 * orders + 1.0) * depth**orders
    importance /= np.linalg.norm(importance * ratio)
    target = np.append(importance * ratio, np.zeros(n_dipoles))

    def solve(poles):
        factor = poles / depth
        design = np.vstack(
            [importance[:, None] * factor ** orders[:, None], _RIDGE * np.eye(n_dipoles)]
        )
        weight = np.linalg.lstsq(design, target)[0]
        return design @ weight - target, factor, weight

    start = np.sort(poles.real + poles.imag)  # a complex pair parts into two real poles
    if np.any(poles.imag):
        # Poles stay where the potential of a source at the largest depth exists.
        start = np.clip(start, -0.999, 0.999)
        solution = least_squares(
            lambda x: solve(x)[0], start, bounds=(-1, 1), x_scale=0.1, xtol=1e-10, max_nfev=200
        )
        start = solution.x
    residual, factor, weight = solve(start)
    # A dipole outside the sphere would put a singularity where there is none.
    objective = np.linalg.norm(residual) if np.all(np.abs(factor * depth) < 1) else np.inf
    return objective, factor, weight


def _worst_error(residual, ratio, orders, depth):
    """Largest relative error over eccentricities, in the norm over the sphere.

    Order n of a radial dipole has norm (2n + 1)^(1/2), of a tangential one that times
    ((n + 1)/n)^(1/2).
    """
    worst = 0.0
    for radial in (True, False):
        norm2 = (2 * orders + 1.0) * (1 if radial else (orders + 1) / orders)
        for fraction in np.append(np.linspace(0.01, 1, 100), 0):
            square = norm2 * (fraction * depth) ** (2.0 * (orders - 1))
            worst = max(worst, np.sum(square * residual**2) / np.sum(square * ratio**2))
    return np.sqrt(worst)
