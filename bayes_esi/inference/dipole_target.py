"""The tempered posterior of a set of dipoles, and its conditional for one of them.

    log target(c, s) = (1 - b) log reference(c, s) + b [log prior(c, s) + log p(data | c, s)]

for a set c of places, log scales s and inverse temperature b. The reference is the prior, or
a law that is easier to start from: with an unknown noise level, "no dipoles and loud noise"
explains the data so comfortably at intermediate temperatures that dipoles which are needed
together appear too late; a reference that holds the scales near a guess opens the
path, whatever the guess, and the end of the path is the posterior in any case.

All moves of the samplers rest on one computation: with
the other dipoles fixed, the likelihood of *every* place of one more dipole follows from d x d
Schur complements. With P = H^-1 and M of the others (symbols as in `models.dipole_gram`) and
X = P A_cj,

    S_j = A_jj + delta I - A_jc X
    R_j = M_jj - X'M_cj - M_jc X + X'M X
    log p(data | c + j) - log p(data | c) = -T/2 (log|S_j| - d log delta) + 1/2 tr(S_j^-1 R_j)

at cost O(d^3 k^2) a place, after O((d k)^3) once. Taking a dipole out of P and putting another
in are rank-d changes, O(d (d k)^2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.struct import struct
from ..core.types import Array, Bool, Float, Int
from ..linalg.small import inverse, log_det_and_trace
from ..models.dipole_gram import DipoleGram
from ..models.static_dipoles import DipolePrior

__all__ = [
    "Base",
    "Candidates",
    "Dipoles",
    "Target",
    "assess",
    "blend",
    "condition",
    "extended",
    "log_likelihood",
    "log_prior",
    "log_ratio",
    "without",
]


class Dipoles(NamedTuple):
    """A set of dipoles with its scales: one particle, or with leading axes many."""

    places: Int[Array, " n_slots"]
    active: Bool[Array, " n_slots"]  # which slots hold a dipole
    log_scales: Float[Array, " n_scales"]  # log of moment_std, then of each group's noise_std
    log_likelihood: Float[Array, ""]  # in whitened units


@struct
class Target:
    """What a sampler aims at, apart from the temperature."""

    gram: DipoleGram
    prior: DipolePrior
    reference: DipolePrior


class Base(NamedTuple):
    """The Gram matrices of a set of dipoles, inverted; rows of empty slots are zero."""

    log_likelihood: Float[Array, ""]
    precision: Float[Array, "m m"]  # P
    data: Float[Array, "m m"]  # M
    weights: Float[Array, " n_groups"]  # noise precisions
    moment_precision: Float[Array, ""]  # delta


class Candidates(NamedTuple):
    """What is known of putting one more dipole at each of some places."""

    gain: Float[Array, " n"]  # log likelihood gained
    schur: Float[Array, "n d d"]  # S
    solved: Float[Array, "m n d"]  # X
    data: Float[Array, "m n d"]  # M_cj
    own_data: Float[Array, "n d d"]  # M_jj


def condition(gram, places, active, log_scales) -> Base:
    """Invert the Gram matrix of the active dipoles. Cost O((d n_slots)^3)."""
    d, n_slots = gram.n_orient, places.shape[0]
    weights = jnp.exp(-2 * log_scales[1:])
    delta = jnp.exp(-2 * log_scales[0])
    used = jnp.repeat(active.astype(weights.dtype), d)
    both = used[:, None] * used
    field, data = (
        both * blocks.swapaxes(1, 2).reshape(n_slots * d, n_slots * d)
        for blocks in gram.cross(places, places, weights)
    )
    # Empty slots become unit vectors apart from the rest: the determinant ignores them.
    chol = jnp.linalg.cholesky(field + jnp.diag(jnp.where(used > 0, delta, 1)))
    identity = jnp.diag(used)
    half = jax.lax.linalg.triangular_solve(chol, identity, left_side=True, lower=True)
    precision = half.T @ half
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol))) - jnp.sum(used) * jnp.log(delta)
    value = gram.log_density_of_noise(weights) + 0.5 * (
        jnp.sum(precision * data) - gram.n_times * log_det
    )
    # A factorisation that fails in single precision must lose, not spread NaN.
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    return Base(value, precision, data, weights, delta)


def assess(gram, base, places, candidates=None) -> Candidates:
    """Compute what one more dipole would gain at each candidate place.

    Parameters
    ----------
    gram : DipoleGram
    base : Base
        Of the dipoles at `places`.
    places : (n_slots,) int
    candidates : (n_candidates,) int, optional
        By default every place of the grid.
    """
    d, m = gram.n_orient, base.precision.shape[0]
    field, data = (
        blocks.swapaxes(1, 2).reshape(m, -1)
        for blocks in gram.cross(places, candidates, base.weights)
    )
    own_field, own_data = gram.own(slice(None) if candidates is None else candidates, base.weights)
    solved = base.precision @ field
    # X'M_cj + M_jc X - X'M X = X'W + W'X with W = M_cj - M X / 2
    remainder = data - 0.5 * (base.data @ solved)
    field, data, solved, remainder = (
        matrix.reshape(m, -1, d) for matrix in (field, data, solved, remainder)
    )
    shrunk = jnp.sum(field[..., :, None] * solved[..., None, :], axis=0)
    mixed = jnp.sum(solved[..., :, None] * remainder[..., None, :], axis=0)
    schur = own_field + base.moment_precision * jnp.eye(d, dtype=field.dtype) - shrunk
    residual = own_data - mixed - mixed.swapaxes(1, 2)
    log_det, trace = log_det_and_trace(schur, residual, base.moment_precision)
    log_det = log_det - d * jnp.log(base.moment_precision)
    gain = 0.5 * (trace - gram.n_times * log_det)
    return Candidates(gain, schur, solved, data, own_data)


def without(base, slot, d) -> Base:
    """Take the dipole of a slot out of the matrices (`log_likelihood` is left as it was)."""
    start = slot * d
    columns = jax.lax.dynamic_slice_in_dim(base.precision, start, d, axis=1)
    corner = jax.lax.dynamic_slice_in_dim(columns, start, d, axis=0)
    kept = ~_rows_of(slot, base, d)
    both = (kept[:, None] & kept).astype(columns.dtype)
    # An empty slot has a zero corner, and nothing to take out.
    corner = jnp.where(jnp.trace(corner) > 0, corner, jnp.eye(d, dtype=columns.dtype))
    precision = base.precision - columns @ inverse(corner, 0.0) @ columns.T
    return base._replace(precision=both * precision, data=both * base.data)


def extended(base, slot, candidates, chosen) -> Base:
    """Put a dipole at the chosen candidate into an empty slot of the matrices."""
    d = candidates.schur.shape[-1]
    in_slot = _rows_of(slot, base, d)
    pick = jnp.where(in_slot[:, None], jnp.tile(jnp.eye(d), (base.data.shape[0] // d, 1)), 0)
    pick = pick.astype(base.data.dtype)
    step = pick - candidates.solved[:, chosen]
    inverted = inverse(candidates.schur[chosen], base.moment_precision)
    # Half of the own block on each side of the sum below.
    is_other = (jnp.diagonal(base.precision) > 0) & ~in_slot
    column = jnp.where(is_other[:, None], candidates.data[:, chosen], 0)
    column = column + 0.5 * pick @ candidates.own_data[chosen]
    return base._replace(
        precision=base.precision + step @ inverted @ step.T,
        data=base.data + column @ pick.T + pick @ column.T,
    )


def _rows_of(slot, base, d):
    return jnp.arange(base.data.shape[0]) // d == slot


def log_likelihood(gram, places, active, log_scales) -> Float[Array, ""]:
    """Log density of the whitened data, moments integrated out."""
    return condition(gram, places, active, log_scales).log_likelihood


def log_prior(prior, state) -> Float[Array, ""]:
    """Log prior of a set of places (as a set) and of the log scales."""
    n_dipoles = jnp.sum(state.active)
    places = jnp.sum(jnp.where(state.active, prior.log_place[state.places], 0))
    return prior.log_number[n_dipoles] + places + prior.log_density_of_scales(state.log_scales)


def log_ratio(target, state) -> Float[Array, ""]:
    """Log of posterior over reference, unnormalised: what tempering weighs particles by."""
    return (
        log_prior(target.prior, state) - log_prior(target.reference, state) + state.log_likelihood
    )


def blend(reference, prior, inverse_temperature):
    """Geometric path between two values of a log density; minus infinity in both stays so."""
    mixed = (1 - inverse_temperature) * reference + inverse_temperature * prior
    return jnp.where(jnp.isneginf(reference) | jnp.isneginf(prior), -jnp.inf, mixed)
