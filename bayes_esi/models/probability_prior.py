"""Beliefs about a probability: known, or any NumPyro distribution on the unit interval.

Inside the samplers a probability is its logit, so a prior here answers with the log density *with
respect to the logit*, and with draws as logits. See `scale_prior`, its sibling for scales.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_fraction
from ..core.struct import static, struct
from ..core.types import Array, Float
from .scale_prior import TruncatedNormalScale

__all__ = [
    "KnownProbability",
    "NumPyroProbability",
    "check_probability",
    "pin_probability",
    "probability_prior",
]


@struct
class KnownProbability:
    """A probability that is given."""

    logit: Float[Array, ""]
    is_known: bool = static(default=True)

    def log_density(self, logit):
        """Constant: nothing is left to believe."""
        return jnp.zeros_like(logit)

    def sample(self, key, n_draws):
        """The value, repeated."""
        del key
        return jnp.full((n_draws,), self.logit)


@struct
class NumPyroProbability:
    """A probability with the law of a `numpyro.distributions` object."""

    distribution: object
    is_known: bool = static(default=False)

    def log_density(self, logit):
        """Density of the probability times p (1 - p): the change of variables to the logit."""
        # A probability that rounds to 0 or 1 would have an infinite density under some laws.
        limits = jnp.finfo(jnp.result_type(logit))
        value = jnp.clip(jax.nn.sigmoid(logit), limits.tiny, 1 - limits.epsneg)
        jacobian = jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit)
        return self.distribution.log_prob(value) + jacobian

    def sample(self, key, n_draws):
        """Draws of the distribution, as logits."""
        value = self.distribution.sample(key, (n_draws,))
        return jnp.log(value) - jnp.log1p(-value)


def check_probability(name, value):
    """Refuse what is neither a probability inside (0, 1) nor a scalar distribution on it.

    Raises
    ------
    ValueError
    """
    if hasattr(value, "log_prob") and hasattr(value, "sample"):
        if value.batch_shape or value.event_shape:
            raise ValueError(f"{name} must be a scalar distribution, got shape {value.shape()}.")
        probe = np.asarray(value.sample(jax.random.key(0), (256,)))
        if not np.all((probe > 0) & (probe < 1)):
            raise ValueError(
                f"{name} has a distribution with mass outside of (0, 1); use one on the unit "
                "interval, such as numpyro.distributions.Beta."
            )
        return
    check_fraction(
        name, value, remedy="Give a probability (known) or a numpyro distribution (unknown)."
    )


def probability_prior(value, dtype):
    """Turn what a user says of a probability into a prior on its logit.

    Returns
    -------
    KnownProbability or NumPyroProbability
    """
    if hasattr(value, "log_prob"):
        return NumPyroProbability(value)
    return KnownProbability(jnp.asarray(np.log(value) - np.log1p(-value), dtype))


def pin_probability(prior, guess, std):
    """A narrow law of the logit around a guess with the support of a prior.

    Parameters
    ----------
    prior : probability prior
    guess, std : float
        Of the logit.

    Returns
    -------
    TruncatedNormalScale
        Of the logit; `prior` itself if it is known or its support is no interval.
    """
    support = None if prior.is_known else prior.distribution.support
    if not hasattr(support, "lower_bound") or not hasattr(support, "upper_bound"):
        return prior
    bounds = np.clip([support.lower_bound, support.upper_bound], 0.0, 1.0).astype(float)
    with np.errstate(divide="ignore"):
        low, high = np.log(bounds) - np.log1p(-bounds)
    # Within a deviation of the bounds, so that the mass between them cannot underflow.
    values = np.clip(guess, low + std, high - std), std, low, high
    dtype = jnp.result_type(float)
    return TruncatedNormalScale(*(jnp.asarray(value, dtype) for value in values))
