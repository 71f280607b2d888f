"""Beliefs about a positive scale: known, log-uniform, or any NumPyro distribution.

Inside the samplers a scale is its logarithm, so a prior here has three answers: its log
density *with respect to the logarithm*, its draws as logarithms, and whether there is
anything to sample at all. `unit` relates the scale a user speaks of to the whitened one:
``scale = unit * exp(log_scale)``.
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from ..core.checks import check_positive
from ..core.struct import static, struct
from ..core.types import Array, Float

__all__ = [
    "KnownScale",
    "LogUniformScale",
    "NumPyroScale",
    "TruncatedNormalScale",
    "check_scale",
    "pin_scale",
    "scale_prior",
]


@struct
class KnownScale:
    """A scale that is given."""

    log_value: Float[Array, ""]
    is_known: bool = static(default=True)

    def log_density(self, log_scale):
        """Constant: nothing is left to believe."""
        return jnp.zeros_like(log_scale)

    def sample(self, key, n_draws):
        """The value, repeated."""
        del key
        return jnp.full((n_draws,), self.log_value)


@struct
class LogUniformScale:
    """Every order of magnitude between two bounds is equally likely."""

    log_low: Float[Array, ""]
    log_high: Float[Array, ""]
    is_known: bool = static(default=False)

    def log_density(self, log_scale):
        """Constant between the bounds, minus infinity outside."""
        inside = (log_scale >= self.log_low) & (log_scale <= self.log_high)
        return jnp.where(inside, -jnp.log(self.log_high - self.log_low), -jnp.inf)

    def sample(self, key, n_draws):
        """Uniform logarithms."""
        unit = jax.random.uniform(key, (n_draws,), self.log_low.dtype)
        return self.log_low + unit * (self.log_high - self.log_low)


@struct
class TruncatedNormalScale:
    """A logarithm that is normal between two bounds (infinite ones allowed)."""

    mean: Float[Array, ""]
    std: Float[Array, ""]
    log_low: Float[Array, ""]
    log_high: Float[Array, ""]
    is_known: bool = static(default=False)

    def _bounds(self):
        return ndtr((self.log_low - self.mean) / self.std), ndtr(
            (self.log_high - self.mean) / self.std
        )

    def log_density(self, log_scale):
        """Normal density over the mass between the bounds."""
        low, high = self._bounds()
        inside = (log_scale >= self.log_low) & (log_scale <= self.log_high)
        quadratic = -0.5 * ((log_scale - self.mean) / self.std) ** 2
        normaliser = jnp.log(self.std * np.sqrt(2 * np.pi) * (high - low))
        return jnp.where(inside, quadratic - normaliser, -jnp.inf)

    def sample(self, key, n_draws):
        """Draws by inversion."""
        low, high = self._bounds()
        unit = jax.random.uniform(key, (n_draws,), self.mean.dtype)
        draws = self.mean + self.std * ndtri(low + unit * (high - low))
        return jnp.clip(draws, self.log_low, self.log_high)


@struct
class NumPyroScale:
    """A scale with the law of a `numpyro.distributions` object."""

    distribution: object
    log_unit: Float[Array, ""]
    is_known: bool = static(default=False)

    def log_density(self, log_scale):
        """Density of the scale times the scale: the change of variables to the logarithm."""
        log_value = log_scale + self.log_unit
        value = jnp.exp(log_value)
        inside = self.distribution.support(value)
        # Distributions do not check their support unless asked; outside it they may answer
        # anything, so the question is put with a value that is inside.
        safe = jnp.where(inside, value, self.distribution.mean)
        return jnp.where(inside, self.distribution.log_prob(safe) + log_value, -jnp.inf)

    def sample(self, key, n_draws):
        """Draws of the distribution, as logarithms."""
        return jnp.log(self.distribution.sample(key, (n_draws,))) - self.log_unit


def check_scale(name, value):
    """Refuse a scale that is neither unknown, nor positive, nor a scalar distribution.

    Raises
    ------
    ValueError
        Naming the argument and the three forms it may take.
    """
    if value is None:
        return
    if hasattr(value, "log_prob") and hasattr(value, "sample"):
        if value.batch_shape or value.event_shape:
            raise ValueError(f"{name} must be a scalar distribution, got shape {value.shape()}.")
        probe = np.asarray(value.sample(jax.random.key(0), (256,)))
        if not np.all(probe > 0):
            raise ValueError(
                f"{name} has a distribution with mass at or below zero; use one on the positive "
                "half-line, such as numpyro.distributions.HalfNormal or LogNormal."
            )
        return
    remedy = "Give a number (known), a numpyro distribution (unknown) or None (log-uniform)."
    if not isinstance(value, numbers.Real | np.ndarray | jax.Array):
        raise ValueError(f"{name} must be a positive scale, got {value!r}. {remedy}")
    check_positive(name, value, remedy=remedy)


def scale_prior(value, *, unit, default_range, dtype):
    """Turn what a user says of a scale into a prior on its logarithm.

    Parameters
    ----------
    value : None, float or numpyro distribution
        In the user's unit.
    unit : float
        The user's scale that has logarithm zero inside.
    default_range : (float, float)
        Bounds, in the user's unit, of the log-uniform prior that stands for None.
    dtype : dtype

    Returns
    -------
    KnownScale, LogUniformScale or NumPyroScale
    """
    if value is None:
        low, high = (jnp.asarray(np.log(bound / unit), dtype) for bound in default_range)
        return LogUniformScale(low, high)
    if hasattr(value, "log_prob"):
        return NumPyroScale(value, jnp.asarray(np.log(unit), dtype))
    return KnownScale(jnp.asarray(np.log(float(value) / unit), dtype))


def pin_scale(prior, guess, std):
    """A narrow law around a guess with the support of a prior, where that is simple.

    Parameters
    ----------
    prior : scale prior
    guess : float
        Logarithm, inside units.
    std : float
        Of the logarithm.

    Returns
    -------
    TruncatedNormalScale, or `prior` itself if it is known or its support has other bounds.
    """
    if isinstance(prior, LogUniformScale):
        low, high = prior.log_low, prior.log_high
    elif isinstance(prior, NumPyroScale) and _is_positive_half_line(prior.distribution):
        high = jnp.asarray(jnp.inf, prior.log_unit.dtype)
        low = -high
    else:
        return prior
    # Within a deviation of the bounds, so that the mass between them cannot underflow.
    mean = np.clip(guess, float(low) + std, float(high) - std)
    return TruncatedNormalScale(
        jnp.asarray(mean, low.dtype), jnp.asarray(std, low.dtype), low, high
    )


def _is_positive_half_line(distribution):
    from numpyro.distributions import constraints

    half_lines = (constraints.positive, constraints.nonnegative)
    return any(distribution.support is half_line for half_line in half_lines)
