"""Weights of eLORETA: the block-diagonal prior under which a linear map has no localisation error.

    y = sum_j G_j x_j + e,     x_j ~ N(0, C_j),     e ~ N(0, lambda2 I)
    C_j = (G_j' M G_j)^{-1/2},     M = (sum_j G_j C_j G_j' + lambda2 I)^{-1}

G_j (m, d): whitened field of source j; W_j = C_j^{-1}: its weight (d, d). The posterior mean
C_j G_j' M y is eLORETA's estimate.

*One solution.* C <= e^t D and D <= e^t C (Loewner order) carry over to M with the same t, and the
inverse square root halves it: the map contracts Thompson's metric by one half. The fixed point
exists, is unique, and is the minimum of log det(sum G_j C_j G_j' + lambda2 I) + sum tr C_j^{-1}.

*Acceleration.* In the coordinates log C_j the derivative of the map at the fixed point has its
eigenvalues in [0, 1/2]: a linear system of condition 2: Anderson mixing gains a factor of
6 to 10 a step where plain iteration gains 2 (cost: a few vectors). Logarithms keep any mixture
positive definite and the path independent of the axes chosen at each source.

*Drafts.* Rows are first combined so that S = sum G_j C_j G_j' is diagonal at the start, largest
first, and M = I. Fields decay fast along these rows. A draft lets C change S in the leading rows L
alone, from the last full step (S_0, M_0, A_0j = G_j' M_0 G_j) on:

    M_L = (M_0L^{-1} + sum G_Lj (C_j - C_0j) G_Lj')^{-1},     A_j = A_0j + G_Lj' (M_L - M_0L) G_Lj,

the equation again, with the other rows as part of the noise. Two or three drafts, of half the cost
each, come between full steps; the next full step finds the true residual, some 1 % of the
last one's. Drafts certify nothing. Where the rows left out matter too much (few sensors, little
noise, or fields without an order) the first full step shows it, and full steps go on alone.

*Precision.* With C_0, M_0 and what follows from them known in full precision, single precision
is enough for the changes, S - S_0 and G_j' (M - M_0) G_j, whose rounding errors shrink with them.
Full precision is used once or twice a run, or not at all for residuals above 1e-6. M = I at the
start amplifies no direction: all keep their digits.

*Certificate.* max_j ||W_j^2 - G_j' M G_j|| / ||W_j^2|| (Frobenius) over all rows, plus an estimate
of the rounding error of the increments.

*Products.* Both are symmetric, so little more than half of each is computed, and they run over
sources in pieces that stay in the cache.

Cost O(m^2 n d + m^3) a full step. For 302 magnetic sensors 3 of them and 5 drafts to 1e-6, 4 full
ones to 1e-8; where drafts are of no use, 9 to 11 and 11 to 14.

References: Pascual-Marqui 2007, arXiv:0710.3341; Pascual-Marqui et al. 2011,
doi:10.1098/rsta.2011.0081; Anderson 1965, doi:10.1145/321296.321305 (mixing).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_count, check_positive
from ..core.types import Array, Bool, Float, Int
from ..linalg import blocks
from ..linalg import pieces as cut

__all__ = ["EloretaWeights", "State", "init", "kernel", "run", "step"]

# Past steps that Anderson mixing combines; more gain nothing at a condition of 2.
_MEMORY = 5
# What a mixture leaves unexplained is overdone by 1 / (1 - J), J half way between 0 and 1/2.
_RELAXATION = 4 / 3
# Least gain expected of mixing.
_GAIN = 5
# Share of the rows that drafts see. With less the third full step may miss a residual of 1e-6.
_LEADING = 0.6
# After so many drafts, or once they have gained this, their error is what is left.
_MAX_DRAFTS, _DRAFTED = 3, 0.1
# Gain from one full step to the next at which drafts go on; without any it is 0.1 to 0.2.
_WORTH = 0.05
# Rounding error of a quadratic form G_j' M G_j in single precision: largest relative error of
# thousands of blocks, over the largest S_ii M_ii, found between 1.6 and 5.7 units of rounding.
_NOISE = 6 * float(np.finfo(np.float32).eps)
# Increments start anew from full precision once their error reaches this share of the residual,
# unless half of the residual asked for leaves room for it.
_SHARE = 0.01
# Full steps without a gain of a tenth: then full precision is tried, then the iteration ends.
_PATIENCE, _END = 4, 10
_HIGH = lax.Precision.HIGHEST


class EloretaWeights(NamedTuple):
    """Prior covariances of eLORETA and how well they satisfy their equation."""

    inverse_weights: Float[Array, "n_sources d d"]  # C_j, in units of x squared
    residual: Float[Array, ""]
    n_steps: Int[Array, ""]  # full ones


class Reference(NamedTuple):
    """A point from which increments start, or zeros: then they start from nothing."""

    cov: Float[Array, "d d n"]
    data_cov: Float[Array, "k k"]
    precision: Float[Array, "k k"]
    quadratic: Float[Array, "d d n"]  # G' M G


class Look(NamedTuple):
    """A point that was looked at."""

    point: Float[Array, "d_d_n"]  # log covariances
    change: Float[Array, "d_d_n"]  # that the map calls for
    residual: Float[Array, ""]


class State(NamedTuple):
    """Where the next step looks, and what it remembers."""

    log_cov: Float[Array, "d d n"]  # to look at next
    best: Float[Array, "d d n"]  # log covariances of least residual so far
    residual: Float[Array, ""]  # of `best`
    reference: Reference  # of full steps: in full precision, or zeros; data_cov without noise
    draft: Reference  # of drafts: the last full step in the leading rows, others being noise
    last: Look
    last_full: Look
    moves: Float[Array, "memory d_d_n"]  # differences of points
    turns: Float[Array, "memory d_d_n"]  # differences of changes
    is_known: Bool[Array, "memory"]
    is_draft: Bool[Array, ""]  # the next step
    is_exact: Bool[Array, ""]  # the next step that is not a draft: in full precision
    n_stalled: Int[Array, ""]
    n_drafts: Int[Array, ""]  # since the last full step
    n_looks: Int[Array, ""]
    n_steps: Int[Array, ""]


class Field(NamedTuple):
    """The lead field, as it came and in the coordinates and the layout of the products."""

    lead_field: Float[Array, "m n_sources d"]
    unit: Float[Array, ""]
    turn: Float[Array, "m m"]  # combines rows
    pieces: Float[Array, "n_pieces m d piece"]  # combined rows in single precision
    noise: Float[Array, "m m"]  # covariance of the combined rows
    gram: Float[Array, "d d n"]  # of the field as it came, in the unit
    audible: Float[Array, "d d n"]  # projector on the directions that G_j can see
    is_normalised: Bool[Array, ""]


def run(lead_field, lambda2=1 / 9, *, is_normalised=False, tol=1e-8, max_steps=200):
    """Solve for the weights of eLORETA.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
        Whitened, d at most 3.
    lambda2 : float
        Noise variance of the whitened data. The same value belongs in the estimate.
    is_normalised : bool
        Rescale the covariances at each step so that trace(sum_j G_j C_j G_j') = m. Then
        lambda2 = 1 / SNR^2, as in MNE, and C_j is proportional to (G_j' M G_j)^{-1/2}: the solution
        of the unscaled equation for another lambda2, times a constant.
    tol : float
        Residual at which to stop. Single precision stops at 1e-5 at best.
    max_steps : int
        Of full steps; the drafts between them are not counted.

    Returns
    -------
    EloretaWeights
        Directions that a source's field cannot see (radial ones of MEG in a sphere) have zero
        variance. In the normalised problem the residual is that of W_j^2 against the multiple of
        G_j' M G_j that the rescaling stands for.

    Raises
    ------
    ValueError
        On a lead field of another shape, or scalars that are not positive.
    """
    lead_field = _check_lead_field(lead_field)
    lambda2 = check_positive("lambda2", lambda2, remedy="It is a noise variance: 1 / SNR^2.")
    tol = check_positive("tol", tol)
    max_steps = check_count("max_steps", max_steps)
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    tol = max(tol, 100 * float(np.finfo(dtype).eps))
    as_scalar = functools.partial(np.asarray, dtype=dtype)
    return _run(
        lead_field.astype(dtype, copy=False),
        as_scalar(lambda2),
        as_scalar(tol),
        np.int32(max_steps),
        np.bool_(is_normalised),
    )


def kernel(lead_field, inverse_weights, lambda2):
    """Linear map of the posterior mean, C_j G_j' M.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
        Whitened.
    inverse_weights : (n_sources, d, d) array
        Prior covariance of each source; of eLORETA or any other.
    lambda2 : float
        Noise variance.

    Returns
    -------
    (n_sources, d, m) array
    """
    lead_field = _check_lead_field(lead_field)
    _, n_sources, d = lead_field.shape
    inverse_weights = check_array("inverse_weights", inverse_weights, shape=(n_sources, d, d))
    lambda2 = check_positive("lambda2", lambda2)
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    return _kernel(
        jnp.asarray(lead_field, dtype),
        jnp.asarray(inverse_weights, dtype),
        np.asarray(lambda2, dtype),
    )


def init(lead_field: Float[Array, "m n_sources d"], lambda2, is_normalised):
    """Look at C_j = s (G_j' G_j)^{-1/2}, and prepare the coordinates that it offers.

    Without normalisation s is the one that solves the equation for s alone. `lambda2` is in the
    units of the lead field.

    Returns
    -------
    Field, State
    """
    m = lead_field.shape[0]
    dtype = lead_field.dtype
    # Scaled to mean power 1, so that single precision is safe in any units.
    unit = jnp.sqrt(jnp.mean(jnp.sum(lead_field**2, axis=(1, 2))))
    lambda2 = jnp.where(is_normalised, lambda2, lambda2 / unit**2)

    def low_and_gram(piece):
        return piece.astype(jnp.float32), cut.sum_of_products(piece, piece)

    low, gram = cut.over_pieces(low_and_gram, lead_field, unit)
    gram = cut.joined(gram)
    values, vectors = blocks.eigen(gram)
    is_seen = values > 100 * jnp.finfo(dtype).eps * values.max(axis=0)
    audible = blocks.assemble(is_seen.astype(dtype), vectors)
    values, vectors = blocks.eigen(_fill(gram, audible))
    cov = blocks.assemble(1 / jnp.sqrt(values), vectors)
    powers, modes = jnp.linalg.eigh(cut.data_cov(low, cov, m))
    powers, modes = jnp.maximum(powers[::-1], 0), modes[:, ::-1]
    weight = blocks.trace(blocks.project(blocks.assemble(jnp.sqrt(values), vectors), audible))
    scale = lax.cond(
        is_normalised,
        lambda: m / jnp.sum(cov * gram),
        lambda: _initial_scale(powers, jnp.sum(weight), lambda2),
    )
    cov, log_cov = cov * scale, blocks.assemble(jnp.log(scale) - 0.5 * jnp.log(values), vectors)
    # In coordinates where M = I, G_j' M G_j is a Gram matrix.
    turn = modes.T / jnp.sqrt(scale * powers + lambda2)[:, None]

    low_turn = turn.astype(low.dtype)

    def turned_and_gram(i, given):
        pieces, grams = given
        turned = cut.combined(low_turn, pieces[i])
        return pieces.at[i].set(turned), grams.at[i].set(cut.sum_of_products(turned, turned))

    # In place: memory touched for the first time costs as much as the sums.
    nothing = jnp.zeros((len(low), *gram.shape[:2], low.shape[-1]), low.dtype)
    pieces, quadratic = lax.fori_loop(0, len(low), turned_and_gram, (low, nothing))
    quadratic = cut.joined(quadratic).astype(dtype)
    noise = lambda2 * jnp.matmul(turn, turn.T, precision=_HIGH)
    field = Field(lead_field, unit, turn, pieces, noise, gram, audible, is_normalised)

    identity = jnp.eye(m, dtype=dtype)
    start = Reference(cov, identity - noise, identity, quadratic)
    change = _target(field, quadratic)[0] - log_cov
    look = Look(log_cov.ravel(), change.ravel(), jnp.ones((), dtype))
    log_cov = log_cov + _RELAXATION * change
    is_single = dtype == jnp.float32
    count = jnp.zeros((), jnp.int32)
    return field, State(
        log_cov=log_cov,
        best=log_cov,
        residual=jnp.full((), jnp.inf, dtype),
        reference=jax.tree.map(jnp.zeros_like, start),
        draft=_leading(start),
        last=look,
        last_full=look,
        moves=jnp.zeros((_MEMORY, log_cov.size), dtype),
        turns=jnp.zeros((_MEMORY, log_cov.size), dtype),
        is_known=jnp.zeros(_MEMORY, bool),
        is_draft=jnp.asarray(not is_single),
        is_exact=jnp.asarray(is_single),
        n_stalled=count,
        n_drafts=count,
        n_looks=count,
        n_steps=count,
    )


def step(state: State, field: Field, tol) -> State:
    """Look at one point, judge it, and mix the next one.

    `tol`: residual that will do, in units of which the kind of the next step is chosen.
    """
    dtype = state.log_cov.dtype
    values, vectors = blocks.eigen(state.log_cov)
    cov = blocks.assemble(jnp.exp(values), vectors)
    scale = _norm(field, cov)
    cov, values = cov * scale, values + jnp.log(scale)
    log_cov = state.log_cov + blocks.diagonal(jnp.log(scale), cov)
    is_full = ~state.is_draft
    quadratic, rounding, reference, draft = lax.switch(
        jnp.where(state.is_draft, 0, 1 + state.is_exact),
        (_look_at_draft, _look_in_full, _look_exactly),
        state,
        field,
        cov,
    )
    target, quadratic = _target(field, quadratic)
    square = blocks.project(blocks.assemble(jnp.exp(-2 * values), vectors), field.audible)
    residual = blocks.largest_ratio(square - quadratic, square) + rounding
    look = Look(log_cov.ravel(), (target - log_cov).ravel(), residual)
    mixed, memory = _mix(state, look, is_full)

    is_best = is_full & (residual < state.residual)
    is_gain = ~is_full | (residual < 0.9 * state.residual)
    n_stalled = jnp.where(is_gain, state.n_stalled * ~is_full, state.n_stalled + 1)
    n_drafts = jnp.where(is_full, 0, state.n_drafts + 1)
    is_enough = residual < jnp.maximum(_DRAFTED * state.last_full.residual, _GAIN * tol)
    is_worth = residual < _WORTH * state.last_full.residual
    is_draft = jnp.where(is_full, is_worth, (n_drafts < _MAX_DRAFTS) & ~is_enough)
    # The next full step will have about the square of the gain of a draft.
    coming = jnp.maximum(_SHARE * _DRAFTED**2 * residual, tol / 2)
    is_exact = jnp.where(is_full, (rounding > coming) | (n_stalled == _PATIENCE), state.is_exact)
    is_single = dtype == jnp.float32
    return State(
        log_cov=mixed.reshape(log_cov.shape),
        best=jnp.where(is_best, log_cov, state.best),
        residual=jnp.where(is_best, residual, state.residual),
        reference=reference,
        draft=draft,
        last=look,
        last_full=jax.tree.map(functools.partial(jnp.where, is_full), look, state.last_full),
        **memory,
        is_draft=is_draft & (not is_single),
        is_exact=is_exact | is_single,
        n_stalled=n_stalled.astype(jnp.int32),
        n_drafts=n_drafts.astype(jnp.int32),
        n_looks=state.n_looks + 1,
        n_steps=state.n_steps + is_full,
    )


@jax.jit
def _run(lead_field, lambda2, tol, max_steps, is_normalised):
    field, state = init(lead_field, lambda2, is_normalised)

    def goes_on(state):
        is_open = (state.residual > tol) & (state.n_stalled < _END)
        return is_open & (state.n_steps < max_steps)

    state = lax.while_loop(goes_on, lambda state: step(state, field, tol), state)
    values, vectors = blocks.eigen(state.best)
    cov = blocks.project(blocks.assemble(jnp.exp(values), vectors), field.audible)
    cov = jnp.where(is_normalised, cov / field.unit**2, cov)
    cov = cut.in_order(cov, lead_field.shape[1])
    return EloretaWeights(cov.transpose(2, 0, 1), state.residual, state.n_steps)


@jax.jit
def _kernel(lead_field, inverse_weights, lambda2):
    m = lead_field.shape[0]
    weighted = jnp.einsum("msd,sde->mse", lead_field, inverse_weights, precision=_HIGH)
    data_cov = jnp.tensordot(weighted, lead_field, ((1, 2), (1, 2)), precision=_HIGH)
    inverse = _inverse(data_cov, lambda2 * jnp.eye(m, dtype=data_cov.dtype))
    flat = jnp.matmul(weighted.reshape(m, -1).T, inverse, precision=_HIGH)
    return flat.reshape(*lead_field.shape[1:], m)


def _initial_scale(powers, weight, lambda2):
    """Minimise log det(s K + lambda2 I) + tr(C^{-1}) / s for K with these eigenvalues.

    The derivative vanishes where s dof(s) = tr(C^{-1}), dof(s) = sum s k / (s k + lambda2). From
    dof(s) <= m, and >= sum k / 2 max(k, lambda2 / s), come the bounds of the bisection.
    """
    powers = jnp.maximum(powers, 0)
    total = jnp.sum(powers)
    low = jnp.log(weight / powers.shape[0])
    high = jnp.log(
        jnp.maximum(2 * weight * powers.max() / total, jnp.sqrt(2 * weight * lambda2 / total))
    )

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        s = jnp.exp(middle)
        is_low = s * jnp.sum(s * powers / (s * powers + lambda2)) < weight
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    low, high = lax.fori_loop(0, 30, halve, (low, high))
    return jnp.exp((low + high) / 2)


def _look_at_draft(state, field, cov):
    """G' M G with M changed in the leading rows only, and no claim about its error."""
    found = _increment(field.pieces, jnp.zeros_like(state.draft.data_cov), cov, state.draft)
    return found.quadratic, jnp.zeros((), cov.dtype), state.reference, state.draft


def _look_in_full(state, field, cov):
    """G' M G, the part of the residual that single precision may account for, the references."""
    found = _increment(field.pieces, field.noise, cov, state.reference)
    changed = jnp.maximum(
        blocks.largest_ratio(cov - state.reference.cov, cov),
        blocks.largest_ratio(found.quadratic - state.reference.quadratic, found.quadratic),
    )
    inflation = jnp.max(jnp.diag(found.data_cov) * jnp.diag(found.precision))
    rounding = _NOISE * jnp.maximum(inflation, 1) * changed
    return found.quadratic, rounding.astype(cov.dtype), state.reference, _leading(found)


def _look_exactly(state, field, cov):
    found = _evaluate(field, cov)
    return found.quadratic, jnp.zeros((), cov.dtype), found, _leading(found)


def _leading(reference):
    """The reference of drafts: M in the leading rows, and what it inverts."""
    k = max(1, round(_LEADING * len(reference.precision)))
    precision = reference.precision[:k, :k]
    seen = _inverse(precision, jnp.zeros_like(precision))
    return Reference(reference.cov, seen, precision, reference.quadratic)


def _norm(field, cov):
    """Factor that normalises covariances, or 1."""
    m = field.lead_field.shape[0]
    return jnp.where(field.is_normalised, m / jnp.sum(cov * field.gram), 1).astype(cov.dtype)


def _target(field, quadratic):
    """Log covariances that G' M G calls for, and the multiple of it that they stand for."""
    values, vectors = blocks.eigen(_fill(quadratic, field.audible))
    norm = _norm(field, blocks.assemble(1 / jnp.sqrt(values), vectors))
    log_cov = blocks.assemble(jnp.log(norm) - 0.5 * jnp.log(values), vectors)
    return log_cov, quadratic / norm**2


def _mix(state, look, is_full):
    """Anderson mixing: the combination of past steps that leaves least change, in least squares.

    Differences are taken between steps of one equation: a draft's from the step before, which it
    continues, a full step's from the full one before.
    """
    point, change, residual = look
    dtype = point.dtype
    last = jax.tree.map(functools.partial(jnp.where, is_full), state.last_full, state.last)
    # A step that made things worse is forgotten with all before it; the plain step contracts.
    is_lost = residual > 2 * last.residual
    slot = state.n_looks % _MEMORY
    moves = state.moves.at[slot].set(point - last.point)
    turns = state.turns.at[slot].set(change - last.change)
    is_known = (state.is_known & ~is_lost).at[slot].set(~is_lost)
    # Differences shrink by orders of magnitude from step to step: they are brought to unit length
    # before the small ridge, which is what empty slots are left with.
    length = jnp.linalg.norm(turns, axis=1)
    length = jnp.where(length > 0, length, 1.0).astype(dtype)
    length = jnp.where(is_known, length, jnp.inf)
    correlation = jnp.matmul(turns, turns.T, precision=_HIGH) / (length[:, None] * length)
    ridge = 100 * jnp.finfo(dtype).eps
    system = correlation + ridge * jnp.eye(_MEMORY, dtype=dtype)
    share = jnp.linalg.solve(system, jnp.matmul(turns, change, precision=_HIGH) / length) / length
    mixed = point + _RELAXATION * change
    mixed = mixed - jnp.matmul(share, moves + _RELAXATION * turns, precision=_HIGH)
    return mixed, {"moves": moves, "turns": turns, "is_known": is_known}


def _evaluate(field, cov):
    turn = field.turn
    full = cut.over_pieces(lambda piece: piece, field.lead_field, field.unit)
    data_cov = _sandwich(turn, cut.data_cov(full, cov, len(turn)))
    precision = _inverse(data_cov, field.noise)
    return Reference(cov, data_cov, precision, cut.quadratic(full, _sandwich(turn.T, precision)))


def _increment(pieces, noise, cov, reference):
    n_rows = len(reference.data_cov)
    data_cov = reference.data_cov + cut.data_cov(pieces, cov - reference.cov, n_rows)
    precision = _inverse(data_cov, noise)
    quadratic = reference.quadratic + cut.quadratic(pieces, precision - reference.precision)
    return Reference(cov, data_cov, precision, quadratic)


def _sandwich(left, matrix):
    product = jnp.matmul(jnp.matmul(left, matrix, precision=_HIGH), left.T, precision=_HIGH)
    return (product + product.T) / 2


def _inverse(data_cov, noise):
    identity = jnp.eye(data_cov.shape[0], dtype=data_cov.dtype)
    chol = jnp.linalg.cholesky(data_cov + noise)
    return jax.scipy.linalg.cho_solve((chol, True), identity)


def _fill(matrix, audible):
    """Give silent directions the mean of the others, so that logarithms exist."""
    mean = blocks.trace(matrix) / matrix.shape[0]
    mean = jnp.where(mean > 0, mean, 1).astype(matrix.dtype)
    return matrix + blocks.diagonal(mean, matrix) - mean * audible


def _check_lead_field(lead_field):
    lead_field = check_array("lead_field", lead_field, ndim=3)
    if lead_field.shape[2] > 3:
        raise ValueError(
            f"lead_field must have at most 3 orientations in its last axis, got {lead_field.shape}."
        )
    if not any(np.any(row) for row in lead_field):
        raise ValueError("lead_field is zero: no source can be seen.")
    return lead_field
