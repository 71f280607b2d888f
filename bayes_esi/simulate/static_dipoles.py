"""Problems drawn from the prior of `StaticDipoles`, for calibration.

    number, places, scales ~ prior
    moment_i(t) ~ N(0, moment_std^2 I)   in the coordinates of the model's orientation law
    data = sum_i lead_field[:, place_i] moment_i + noise,   noise ~ N(0, noise_std_g^2 I)

in whitened units, channel group by channel group. The laws are written anew here, not called
from the samplers, so that calibration compares two readings of the model. The lead field of
the simulation is that of the inversion: right for checking a sampler, too kind for
measuring localisation.

References: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import dataclasses

import jax
import numpy as np
from scipy.special import gammaln

from ..core.checks import check_count, check_positive
from ..models.orientation import orient
from ..models.problem import Problem
from ..models.static_dipoles import log_set_sums

__all__ = ["DipoleTruth", "draw_problem", "random_geometry"]

# An EEG of the order of nature: 10 nA·m give 3 µV, and the noise has 1 µV.
_GAIN = 300.0
_NOISE = 1e-6
_RADIUS = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class DipoleTruth:
    """What a problem was made of.

    Attributes
    ----------
    places : (n_dipoles,) int
        Source numbers, ascending.
    moments : (n_dipoles, n_axes, n_times)
        In A·m, along the axes of space (three), or along the one orientation of a lead field
        that came without normals.
    moment_std : float
        In A·m.
    noise_std : (n_groups,)
        Relative to the noise covariance.
    """

    places: np.ndarray
    moments: np.ndarray
    moment_std: float
    noise_std: np.ndarray


def draw_problem(key, model, template):
    """Draw the unknowns of a model from their prior, and data from the likelihood.

    Parameters
    ----------
    key : PRNG key
    model : StaticDipoles
        With `moment_std` and `noise_std` known, or NumPyro distributions.
    template : Problem
        Lead field, geometry and times. Its data are not looked at.

    Returns
    -------
    problem : Problem
        The template with other data.
    truth : DipoleTruth

    Raises
    ------
    ValueError
        If a scale of the model is None: that prior looks at the data, so that there is nothing
        to draw from before they exist.

    Notes
    -----
    Cost O(n_sources max_dipoles + rank n_times).
    """
    for name in ("moment_std", "noise_std"):
        if getattr(model, name) is None:
            raise ValueError(
                f"{name} must be a number or a numpyro distribution to draw from the prior, got "
                "None, whose prior looks at the data. Give the model an explicit one."
            )
    key_moment, key_noise, key_rest = jax.random.split(key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_rest)))
    moment_std = _draw_scales(key_moment, model.moment_std, 1)[0]
    noise_std = _draw_scales(key_noise, model.noise_std, template.n_groups)

    design = orient(template, model.loose)
    places = _draw_places(rng, model, template)
    n_axes, d = design.frames.shape[1:]
    components = moment_std * rng.standard_normal((len(places), d, template.n_times))
    moments = np.einsum("nxd,ndt->nxt", design.frames[places], components)

    field = np.asarray(design.lead_field, np.float64)[:, places]
    signal = np.einsum("rnd,ndt->rt", field, components / template.moment_unit)
    noise = rng.standard_normal(signal.shape) * noise_std[template.noise_group][:, None]
    problem = dataclasses.replace(template, data=(signal + noise).astype(template.data.dtype))
    return problem, DipoleTruth(
        places=places,
        moments=moments.reshape(len(places), n_axes, template.n_times),
        moment_std=float(moment_std),
        noise_std=noise_std,
    )


def random_geometry(
    key, n_sources, n_channels, n_times, *, n_orient=3, correlation_length=0.03, noise_groups=None
):
    """Make a small problem without data: random places, correlated lead field.

    Parameters
    ----------
    key : PRNG key
    n_sources, n_channels, n_times : int
    n_orient : {1, 3}
    correlation_length : float
        In m: lead fields of places this far apart have correlation exp(-1/2), as if they were
        draws of a Gaussian process over space. Places are uniform in a cube of 0.1 m.
    noise_groups : sequence of str, optional
        See `Problem.from_arrays`.

    Returns
    -------
    Problem
        With data of zeros, for `draw_problem` to replace. Lead field in V per A·m, noise of
        1 µV.

    Notes
    -----
    Cost O(n_sources^3).
    """
    for name, value in zip(
        ("n_sources", "n_channels", "n_times"), (n_sources, n_channels, n_times), strict=True
    ):
        check_count(name, value)
    check_positive("correlation_length", correlation_length)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    pos = rng.uniform(-_RADIUS, _RADIUS, (n_sources, 3))
    squared = np.sum((pos[:, None] - pos) ** 2, axis=2)
    kernel = np.exp(-squared / (2 * correlation_length**2)) + 1e-9 * np.eye(n_sources)
    white = rng.standard_normal((n_channels, n_sources, n_orient))
    field = _GAIN * np.einsum("ij,rjd->rid", np.linalg.cholesky(kernel), white)
    return Problem.from_arrays(
        np.zeros((n_channels, n_times)),
        field,
        pos,
        noise_cov=_NOISE**2 * np.eye(n_channels),
        noise_groups=noise_groups,
    )


def _draw_scales(key, law, size):
    """Scales in the user's unit: a known one repeated, or independent draws: (size,)."""
    if hasattr(law, "sample"):
        return np.asarray(law.sample(key, (size,)), np.float64)
    return np.full(size, float(law))


def _draw_places(rng, model, template):
    """Number from the truncated Poisson law, then a set of that many places."""
    weights = _weights(model.location_prior, template)
    log_place = np.log(weights[weights > 0] / weights.sum())
    free = np.flatnonzero(weights)
    # No more dipoles than places that may hold one.
    numbers = np.arange(min(model.max_dipoles, free.size) + 1)
    poisson = np.exp(numbers * np.log(model.n_dipoles) - gammaln(numbers + 1.0))
    left = rng.choice(numbers, p=poisson / poisson.sum())
    if np.ptp(log_place) == 0:
        return np.sort(rng.choice(free, size=left, replace=False))
    # Place j belongs to a set that still needs m members with probability
    # p_j e_{m-1}(later places) / e_m(j and later places).
    sums = log_set_sums(log_place, model.max_dipoles)
    chosen = []
    for j, place in enumerate(free):
        if not left:
            break
        log_take = log_place[j] + sums[j + 1, left - 1] - sums[j, left]
        if np.log(rng.random()) < log_take:
            chosen.append(place)
            left -= 1
    return np.array(chosen, int)


def _weights(location_prior, template):
    if location_prior is None:
        return np.ones(template.n_sources)
    if hasattr(location_prior, "vertices"):
        return template.mask(location_prior).astype(float)
    return np.asarray(location_prior, float)
