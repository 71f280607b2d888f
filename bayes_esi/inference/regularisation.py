"""Choice of the regularisation lambda2 in the coordinates where data and prior are diagonal.

    y = G x + e,   x ~ N(0, R / lambda2),   e ~ N(0, I)  per sample
    G R G' = U diag(e) U',   z = U' y  (m, T),   r_i = lambda2 / (e_i + lambda2)

r_i is the share of coordinate i that the fit leaves in the residual. With t = log lambda2 all
criteria and their derivatives cost O(m) a value.

evidence     -2 log p = T sum log 2 pi / r_i + sum r_i z_i^2                          (least)
             noise unknown, s^2 = sum r_i z_i^2 / m T, prior s^2 R / lambda2:
             -2 log p = m T (log 2 pi s^2 + 1) - T sum log r_i
GCV          sum r_i^2 z_i^2 / (sum r_i)^2                                             (least)
L-curve      curvature of (log |y - G x|, log |R^{-1/2} x|)                            (largest)

*L-curve.* With rho = sum r_i^2 z_i^2, eta = sum e_i z_i^2 / (e_i + lambda2)^2 (squared norms) the
estimate minimises rho + lambda2 eta, hence rho' = -lambda2 eta'. In a = log rho / 2 and
b = log eta / 2, with derivatives along log lambda2, the second derivatives cancel from the
curvature (a' b'' - a'' b') / (a'^2 + b'^2)^{3/2}, which is

    a' b' (2 a' - 2 b' - 1) / (a'^2 + b'^2)^{3/2}

It is positive at the corner and does not depend on the parameter.

The best value is refined between its neighbours on the grid: by a root of the derivative (evidence,
GCV), by Brent's parabolas (curvature). A best value at an end of the grid stays there: data
without signal prefer lambda2 = infinity, data without noise 0.

References: Golub, Heath, Wahba 1979, doi:10.1080/00401706.1979.10489751 (GCV); Hansen, O'Leary
1993, doi:10.1137/0914086 (L-curve); MacKay 1992, doi:10.1162/neco.1992.4.3.415 (evidence).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from ..core.checks import check_array

__all__ = ["RegularisationCurve", "evidence", "gcv", "l_curve", "l_curve_points"]

# Grid relative to the largest eigenvalue: signal-to-noise ratios of coordinates from 1e8 to 1e-3.
_GRID = np.logspace(-8, 3, 111)


class RegularisationCurve(NamedTuple):
    """A criterion along lambda2 and its best value."""

    name: str
    lambda2: np.ndarray  # (k,)
    criterion: np.ndarray  # (k,)
    best: float  # lambda2, between the points of the grid


def evidence(eigenvalues, coordinates, lambda2=None, *, is_noise_known=True):
    """Marginal likelihood of lambda2: -2 log p of the whitened data, in nats.

    Parameters
    ----------
    eigenvalues : (m,) array
        Of G R G', not negative.
    coordinates : (m, n_times) array
        U' y, whitened data.
    lambda2 : (k,) array, optional
        Increasing grid of positive values, at least 3. By default 11 decades around the
        eigenvalues.
    is_noise_known : bool
        False: the noise variance is unknown, and the one that fits best at each lambda2.

    Returns
    -------
    RegularisationCurve
        Least is best.

    Raises
    ------
    ValueError
        On lambda2 that is not positive or not increasing, negative eigenvalues, or shapes that
        do not match.
    """
    e, power, n_times, grid = _checked(eigenvalues, coordinates, lambda2)
    n = e.size * n_times

    def criterion(lambda2):
        r = _residual_share(e, lambda2)
        misfit = r @ power
        log_det = -n_times * np.sum(np.log(r), axis=-1)
        if is_noise_known:
            return n * np.log(2 * np.pi) + log_det + misfit
        return n * (np.log(2 * np.pi * misfit / n) + 1) + log_det

    def slope(t):
        r = _residual_share(e, np.exp(t))
        gain = (r * (1 - r)) @ power
        if not is_noise_known:
            gain = gain * n / (r @ power)
        return gain - n_times * np.sum(1 - r)

    return _by_root("evidence", grid, criterion(grid), slope)


def gcv(eigenvalues, coordinates, lambda2=None):
    """Generalised cross-validation: mean square of predicted residuals, up to a factor m / n_times.

    Parameters and errors are those of `evidence`.

    Returns
    -------
    RegularisationCurve
        Least is best.
    """
    e, power, _, grid = _checked(eigenvalues, coordinates, lambda2)

    def criterion(lambda2):
        r = _residual_share(e, lambda2)
        return (r**2 @ power) / np.sum(r, axis=-1) ** 2

    def slope(t):
        r = _residual_share(e, np.exp(t))
        rise = r * (1 - r)
        return 2 * (rise * r) @ power / (r**2 @ power) - 2 * np.sum(rise) / np.sum(r)

    return _by_root("gcv", grid, criterion(grid), slope)


def l_curve(eigenvalues, coordinates, lambda2=None):
    """Corner of the L-curve: the point of largest curvature.

    Parameters and errors are those of `evidence`.

    Returns
    -------
    RegularisationCurve
        Largest is best: the criterion is the curvature, unitless. See `l_curve_points` for the
        curve itself.
    """
    e, power, _, grid = _checked(eigenvalues, coordinates, lambda2)

    def curvature(lambda2):
        lambda2 = np.asarray(lambda2, float)
        r = _residual_share(e, lambda2)
        below = 1 / (e + lambda2[..., None])
        eta = below**2 @ (e * power)
        slope = -2 * lambda2 * (below**3 @ (e * power))
        a, b = -lambda2 * slope / (2 * (r**2 @ power)), slope / (2 * eta)
        return a * b * (2 * a - 2 * b - 1) / (a**2 + b**2) ** 1.5

    criterion = curvature(grid)
    i = int(np.argmax(criterion))
    best = grid[i]
    if 0 < i < grid.size - 1:
        refined = minimize_scalar(
            lambda t: -curvature(np.exp(t)),
            bounds=np.log(grid[[i - 1, i + 1]]),
            method="bounded",
            options={"xatol": 1e-9},
        )
        best = np.exp(refined.x)
    return RegularisationCurve("l_curve", grid, criterion, float(best))


def l_curve_points(eigenvalues, coordinates, lambda2):
    """Norms whose logarithms are the L-curve.

    Returns
    -------
    residual : (k,) array
        |y - G x|, whitened.
    solution : (k,) array
        |R^{-1/2} x|.
    """
    e, power, _, grid = _checked(eigenvalues, coordinates, lambda2)
    r = _residual_share(e, grid)
    return np.sqrt(r**2 @ power), np.sqrt((1 / (e + grid[:, None])) ** 2 @ (e * power))


def _by_root(name, grid, criterion, slope):
    i = int(np.argmin(criterion))
    best = grid[i]
    if 0 < i < grid.size - 1:
        low, high = np.log(grid[i - 1]), np.log(grid[i + 1])
        # The slope may not change its sign on a grid too coarse to hold one valley a step.
        if slope(low) < 0 < slope(high):
            best = np.exp(brentq(slope, low, high, xtol=1e-12))
    return RegularisationCurve(name, grid, criterion, float(best))


def _residual_share(eigenvalues, lambda2):
    lambda2 = np.asarray(lambda2, float)[..., None]
    return lambda2 / (eigenvalues + lambda2)


def _checked(eigenvalues, coordinates, lambda2):
    eigenvalues = check_array("eigenvalues", eigenvalues, ndim=1).astype(float)
    largest = eigenvalues.max()
    if not largest > 0 or eigenvalues.min() < -1e-9 * largest:
        raise ValueError(
            "eigenvalues must not be negative, and not all zero: they belong to a covariance."
        )
    coordinates = check_array("coordinates", coordinates, shape=(eigenvalues.size, None))
    power = np.sum(coordinates.astype(float) ** 2, axis=1)
    if not power.max() > 0:
        raise ValueError("coordinates are zero: there are no data to choose lambda2 from.")
    if lambda2 is None:
        lambda2 = largest * _GRID
    grid = check_array("lambda2", np.atleast_1d(lambda2), ndim=1).astype(float)
    if grid.min() <= 0:
        raise ValueError(f"lambda2 must be positive, got {grid.min():.3g}; it is 1 / SNR^2.")
    if grid.size < 3 or np.any(np.diff(grid) <= 0):
        raise ValueError("lambda2 must be an increasing grid of at least 3 values.")
    return np.maximum(eigenvalues, 0), power, coordinates.shape[1], grid
