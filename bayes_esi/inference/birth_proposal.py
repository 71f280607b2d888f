"""Where a dipole may be born next: what a new sample says, seen by a few particles.

For a particle whose survivors have filtered moments N(m, P) at sample t, one more dipole at v
changes the log density of that sample by the log of

    Z_v = |I + s^2 E_v|^(-1/2) exp( z_v' (s^-2 I + E_v)^-1 z_v / 2 )
    z_v = b_v - A_vc m          E_v = A_vv - A_vc P A_cv

with s the moment scale. The conditional law of a birth and its place, P_b p_v Z_v, is exact for
that particle. It is computed for a few particles drawn by their weights, at O(n_sources n d^2) each
(n: dimension of their moments), and mixed with a flattened copy and with the location prior: one
law for all particles, so that weights stay bounded where the survey misjudges.

Reference: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (births
proposed by a scan of the data).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.types import Array, Float
from ..linalg import small
from ..models import moment_filter
from ..models.track_likelihood import scales_of

__all__ = ["BirthProposal", "survey"]

# Shares of the location prior and of the flattened law in the proposal.
_PRIOR_SHARE, _FLAT_SHARE = 0.2, 0.3
# A birth is proposed at least this often, and at most every other time: weights then stay
# within a factor of 2 of the prior's where nothing is born.
_LEAST, _MOST = 0.05, 0.5


class BirthProposal(NamedTuple):
    """Law of the births that are proposed."""

    birth_prob: Float[Array, ""]
    log_place: Float[Array, " n_sources"]
    cumulative: Float[Array, " n_sources"]


def survey(places, mean, cov, parameters, prior, gram, projected):
    """Mix the exact laws of a birth that some particles have.

    Parameters
    ----------
    places : (n_surveyed, n_slots) int
        Before the sample.
    mean, cov : (n_surveyed, n), (n_surveyed, n, n)
        Of their moments before the sample.
    parameters : (n_surveyed, n_parameters)
    prior : TrackPrior
    gram : TrackGram
    projected : (n_sources, n_groups, d)
        The sample.

    Returns
    -------
    BirthProposal
    """

    def exact(particle):
        places, mean, cov, parameters = particle
        log_joint = prior.log_place + _log_ratio(
            places, mean, cov, parameters, prior, gram, projected
        )
        total = jax.nn.logsumexp(log_joint)
        log_odds = parameters[-2] + total
        flat = jax.nn.softmax(0.5 * (prior.log_place + log_joint))
        return jax.nn.sigmoid(log_odds), jnp.exp(log_joint - total), flat

    # One after the other: the cross blocks of several would not stay in the cache.
    laws = jax.lax.map(exact, (places, mean, cov, parameters))
    probability, sharp, flat = (jnp.mean(part, axis=0) for part in laws)
    by_prior = jnp.mean(jax.nn.sigmoid(parameters[:, -2]))
    birth_prob = jnp.clip(jnp.maximum(probability, by_prior), _LEAST, _MOST)
    mixed = (1 - _FLAT_SHARE - _PRIOR_SHARE) * sharp + _FLAT_SHARE * flat
    return _proposal(birth_prob, mixed + _PRIOR_SHARE * jnp.exp(prior.log_place))


def _proposal(birth_prob, density):
    cumulative = jnp.cumsum(density)
    density = density / cumulative[-1]
    return BirthProposal(birth_prob, jnp.log(density), cumulative / cumulative[-1])


def _log_ratio(places, mean, cov, parameters, prior, gram, projected):
    """Log Z of every place, for one particle whose dipoles all survive."""
    moment_std, weights = scales_of(parameters)
    n_slots, d = places.shape[0], gram.n_orient
    is_alive = places >= 0
    mean, cov = moment_filter.predict(
        mean, cov, is_alive, jnp.zeros_like(is_alive), prior.persistence, moment_std
    )
    mean, cov, _ = moment_filter.update(
        mean,
        cov,
        gram.matrix(places, weights),
        gram.projection(projected, places, weights),
    )
    cross = gram.blocks(jnp.where(is_alive, places, 0), None, weights)
    cross = jnp.where(is_alive[:, None, None, None], cross, 0.0)
    cross = cross.swapaxes(1, 2).reshape(n_slots * d, -1)  # A_cv of all v
    own = sum(gram.own_blocks[:, g] * weights[g] for g in range(gram.n_groups))
    data = sum(projected[:, g] * weights[g] for g in range(gram.n_groups))
    shift = data - (mean @ cross).reshape(-1, d)
    root = (jnp.linalg.cholesky(cov).T @ cross).reshape(n_slots * d, -1, d)
    precision = own - jnp.sum(root[:, :, :, None] * root[:, :, None, :], axis=0)
    floor = moment_std**-2
    log_det, quadratic = small.log_det_and_trace(
        precision + floor * jnp.eye(d, dtype=mean.dtype),
        shift[:, :, None] * shift[:, None, :],
        floor,
    )
    return 0.5 * quadratic - 0.5 * (log_det + 2 * d * jnp.log(moment_std))
