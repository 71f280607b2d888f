"""A few dipoles at unknown places, fixed for the whole window, with free moments.

    n ~ Poisson(n_dipoles) truncated at max_dipoles
    places | n: n distinct sources, uniform or in proportion to `location_prior`
    moment_i(t) ~ N(0, moment_std^2 I), independent over dipoles and samples
    noise ~ N(0, noise_std^2 noise_cov)

Moments are integrated out (see `dipole_gram`). With informative weights p the law of a set c of
n places is prod p_c / e_n(p), where e_n is the n-th elementary symmetric polynomial of
the weights: the law of n independent draws from p given that they differ.

References: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010; Viani, Luria,
Bornfleth, Sorrentino 2021, arXiv:2006.04141 (unknown moment scale).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln, logsumexp

from ..core import ports
from ..core.checks import check_count, check_positive
from ..core.struct import struct
from ..core.types import Array, Float
from .dipole_beliefs import place_weights, scale_priors
from .orientation import check_loose
from .scale_prior import check_scale, pin_scale

__all__ = [
    "DipolePrior",
    "StaticDipoles",
    "dipole_prior",
    "log_set_sums",
    "reference_prior",
]

# Standard deviation of the log noise scales where sampling starts (see `reference_prior`).
NOISE_PIN = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class StaticDipoles:
    """Unknown number of dipoles at unknown, fixed places with free moments.

    Parameters
    ----------
    n_dipoles : float
        Rate of the Poisson law of the number of dipoles.
    max_dipoles : int
        Truncation of that law.
    moment_std : float or numpyro distribution, optional
        Standard deviation of each moment component, in A·m. None: unknown, log-uniform over
        four decades around the moment that would explain the mean power of the data.
    noise_std : float or numpyro distribution, optional
        Noise level relative to the given noise covariance; with several channel groups (MEG and
        EEG) the law of each group's own level. None: unknown, log-uniform from 0.1 to 10,
        widened where the power of the data lies outside.
    location_prior : (n_sources,) array or mne.Label, optional
        Non-negative weights of the places (a label: its places only). Default uniform.
    loose : float
        Variance of tangential moments relative to normal ones, in [0, 1]: 1 free, 0 fixed to
        `source_normals`.

    Raises
    ------
    ValueError
        On a rate or scale that is not positive, `max_dipoles` below 1, `loose` outside [0, 1].
    """

    n_dipoles: float = 0.25
    max_dipoles: int = 10
    moment_std: object = None
    noise_std: object = None
    location_prior: object = None
    loose: float = 1.0

    def __post_init__(self):
        check_positive("n_dipoles", self.n_dipoles, remedy="It is a Poisson rate.")
        check_count("max_dipoles", self.max_dipoles)
        check_scale("moment_std", self.moment_std)
        check_scale("noise_std", self.noise_std)
        check_loose(self.loose)

    def numpyro(self, problem, n_dipoles=1, operator=None):
        """Write the model with a given number of dipoles off the grid as a NumPyro program.

        Parameters
        ----------
        problem : Problem
        n_dipoles : int
        operator : callable, optional
            Whitened lead fields of positions; see `bayes_esi.inference.off_grid_operator`. By
            default the grid's lead field, interpolated.

        Returns
        -------
        callable
            Of no arguments; samples positions and scales and observes the whitened data.
        """
        return ports.perform(self, "numpyro", problem, n_dipoles, operator)


@struct
class DipolePrior:
    """The prior as arrays: what compiled code sees of a `StaticDipoles` and a problem."""

    # Log probability of a number of dipoles, less the log normaliser of its sets of places.
    log_number: Float[Array, " n_numbers"]  # 0 to max_dipoles
    log_place: Float[Array, " n_sources"]
    scales: tuple  # prior of the moment scale, then of the noise scale of each group

    @property
    def max_dipoles(self):
        """Largest number of dipoles."""
        return self.log_number.shape[0] - 1

    def log_density_of_scales(self, log_scales: Float[Array, " n_scales"]) -> Float[Array, ""]:
        """Log prior density of the logarithms of all scales."""
        return sum(prior.log_density(log_scales[..., i]) for i, prior in enumerate(self.scales))


def dipole_prior(model, problem, design, dtype):
    """Write the prior of `model` on `problem` as arrays.

    Returns
    -------
    DipolePrior

    Raises
    ------
    ValueError
        If the location prior does not fit the sources.
    """
    weights = place_weights(model.location_prior, problem)
    with np.errstate(divide="ignore"):
        log_place = np.log(weights / weights.sum())
    numbers = np.arange(model.max_dipoles + 1)
    log_sets = log_set_sums(log_place, model.max_dipoles)[0]
    log_poisson = numbers * np.log(model.n_dipoles) - gammaln(numbers + 1.0)
    possible = np.isfinite(log_sets)
    log_poisson = np.where(possible, log_poisson, -np.inf)
    log_number = log_poisson - logsumexp(log_poisson)
    log_number[possible] -= log_sets[possible]

    return DipolePrior(
        log_number=jnp.asarray(log_number, dtype),
        log_place=jnp.asarray(log_place, dtype),
        scales=scale_priors(model, problem, design, dtype),
    )


def log_set_sums(log_weights, max_size):
    """Log elementary symmetric polynomials of all suffixes of the weights.

    Parameters
    ----------
    log_weights : (n,) array
    max_size : int

    Returns
    -------
    (n + 1, max_size + 1) array
        Entry [j, m]: log of the sum over all sets of m among weights j, j+1, ... of the product
        of their weights. Row 0 has the polynomials of all weights. Cost O(n max_size).
    """
    n = len(log_weights)
    sums = np.full((n + 1, max_size + 1), -np.inf)
    sums[:, 0] = 0.0
    for j in range(n - 1, -1, -1):
        sums[j, 1:] = np.logaddexp(sums[j + 1, 1:], log_weights[j] + sums[j + 1, :-1])
    return sums


def reference_prior(prior, log_noise_std):
    """A law to start sampling from: the prior with unknown noise scales held near a guess.

    The moment scale keeps its prior: where data are weak its posterior is nearly as wide, and a
    narrow start would have to find the width again at the very end.

    Parameters
    ----------
    prior : DipolePrior
    log_noise_std : sequence of float
        Guess for each channel group.

    Returns
    -------
    DipolePrior
    """
    moment, *noise = prior.scales
    pinned = [
        pin_scale(scale, guess, NOISE_PIN)
        for scale, guess in zip(noise, log_noise_std, strict=True)
    ]
    return dataclasses.replace(prior, scales=(moment, *pinned))
