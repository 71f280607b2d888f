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

*Precision.* With C_0, M_0 and what follows from them known in full precision, single precision
is enough for the changes,

    sum G_j C_j G_j' = S_0 + sum G_j (C_j - C_0j) G_j',     G_j' M G_j = A_0j + G_j' (M - M_0) G_j,

whose rounding errors shrink with the changes. Full precision is used once or twice a run. Rows
are first combined so that M = I at the start: no direction is then amplified, and all keep their
digits.

*Certificate.* max_j ||W_j^2 - G_j' M G_j|| / ||W_j^2|| (Frobenius), plus an estimate of the
rounding error of the increments.

Cost O(m^2 n d + m^3) a step; 7 steps to 1e-6, about 10 to 1e-8.

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

__all__ = ["EloretaWeights", "State", "init", "kernel", "run", "step"]

# Past steps that Anderson mixing combines; more gain nothing at a condition of 2.
_MEMORY = 5
# What a mixture leaves unexplained is overdone by 1 / (1 - J), J half way between 0 and 1/2.
_RELAXATION = 4 / 3
# Rows of the lead field taken at a time in sums over rows.
_N_ROWS = 8
# Rounding error of a quadratic form G_j' M G_j in single precision: largest relative error of
# thousands of blocks, over the largest S_ii M_ii, found between 0.8 and 2.2 units of rounding.
_NOISE = 3 * float(np.finfo(np.float32).eps)
# Increments start anew from full precision once their error reaches this share of the residual,
# unless half of the residual asked for leaves room for it.
_SHARE = 0.01
# Steps without a gain of a tenth: then full precision is tried, then the iteration is at its end.
_PATIENCE, _END = 4, 10
_HIGH = lax.Precision.HIGHEST


class EloretaWeights(NamedTuple):
    """Prior covariances of eLORETA and how well they satisfy their equation."""

    inverse_weights: Float[Array, "n_sources d d"]  # C_j, in units of x squared
    residual: Float[Array, ""]
    n_steps: Int[Array, ""]


class Reference(NamedTuple):
    """A point at which all products are known in full precision, or nothing is known: zeros."""

    cov: Float[Array, "d d n_sources"]
    data_cov: Float[Array, "m m"]  # without noise
    precision: Float[Array, "m m"]  # M
    quadratic: Float[Array, "d d n_sources"]  # G' M G


class State(NamedTuple):
    """Where the next step looks, and what it remembers."""

    log_cov: Float[Array, "d d n_sources"]  # to look at next
    best: Float[Array, "d d n_sources"]  # log covariances of least residual so far
    residual: Float[Array, ""]  # of `best`
    reference: Reference
    last: Float[Array, "2 d_d_n"]  # log covariances looked at, and the change they called for
    moves: Float[Array, "memory d_d_n"]  # differences of the first
    turns: Float[Array, "memory d_d_n"]  # differences of the second
    last_residual: Float[Array, ""]
    is_exact: Bool[Array, ""]  # the next step uses full precision
    n_stalled: Int[Array, ""]
    n_steps: Int[Array, ""]


class Field(NamedTuple):
    """The lead field in the coordinates and the layout of the products, in two precisions."""

    full: Float[Array, "m d n_sources"]  # rows as they came
    turn: Float[Array, "m m"]  # combines them
    single: Float[Array, "m d n_sources"]  # combined rows
    noise: Float[Array, "m m"]  # covariance of the combined rows
    gram: Float[Array, "d d n_sources"]  # of the field as it came
    audible: Float[Array, "d d n_sources"]  # projector on the directions that G_j can see


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
        jnp.asarray(lead_field, dtype),
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


def init(scaled: Float[Array, "m d n_sources"], lambda2, is_normalised):
    """Take the plain step from C_j = s (G_j' G_j)^{-1/2}, and the coordinates it offers.

    Without normalisation s is the one that solves the equation for s alone.

    Returns
    -------
    Field, State
    """
    m, d, n = scaled.shape
    dtype = scaled.dtype
    gram = _block_products(scaled, scaled)
    values, vectors = _eigen(gram)
    is_seen = values > 100 * jnp.finfo(dtype).eps * values.max(axis=0)
    audible = _assemble(is_seen.astype(dtype), vectors)
    values, vectors = _eigen(_fill(gram, audible))
    cov = _assemble(1 / jnp.sqrt(values), vectors)
    low = lax.optimization_barrier(scaled.astype(jnp.float32))
    data_cov = _data_cov(low, cov)
    weight = _trace(_project(_assemble(jnp.sqrt(values), vectors), audible))
    scale = lax.cond(
        is_normalised,
        lambda: m / jnp.sum(cov * gram),
        lambda: _initial_scale(jnp.linalg.eigvalsh(data_cov), weight, lambda2),
    )
    # In coordinates where M = I, G_j' M G_j is a Gram matrix.
    identity = jnp.eye(m, dtype=dtype)
    chol = jnp.linalg.cholesky(scale * data_cov + lambda2 * identity)
    turn = jax.scipy.linalg.solve_triangular(chol, identity, lower=True)
    single = jnp.matmul(turn.astype(jnp.float32), low.reshape(m, -1), precision=_HIGH)
    single = single.reshape(m, d, n)
    field = Field(
        full=scaled,
        turn=turn,
        single=single,
        noise=lambda2 * jnp.matmul(turn, turn.T, precision=_HIGH),
        gram=gram,
        audible=audible,
    )
    values, vectors = _eigen(_fill(_block_products(single, single).astype(dtype), audible))
    log_cov = _assemble(-0.5 * jnp.log(values), vectors)
    nothing = jnp.zeros((d, d, n), dtype)
    return field, State(
        log_cov=log_cov,
        best=log_cov,
        residual=jnp.full((), jnp.inf, dtype),
        reference=Reference(nothing, jnp.zeros((m, m), dtype), jnp.zeros((m, m), dtype), nothing),
        last=jnp.zeros((2, d * d * n), dtype),
        moves=jnp.zeros((_MEMORY, d * d * n), dtype),
        turns=jnp.zeros((_MEMORY, d * d * n), dtype),
        last_residual=jnp.full((), jnp.inf, dtype),
        is_exact=jnp.asarray(dtype == jnp.float32),
        n_stalled=jnp.zeros((), jnp.int32),
        n_steps=jnp.zeros((), jnp.int32),
    )


def step(state: State, field: Field, is_normalised, tol) -> State:
    """Look at one point, judge it, and mix the next one.

    `tol`: residual that will do, in units of which the precision of the next step is chosen.
    """
    m, d, n = field.full.shape
    dtype = field.full.dtype
    values, vectors = _eigen(state.log_cov)
    cov = _assemble(jnp.exp(values), vectors)
    log_cov = state.log_cov
    identity = jnp.eye(d, dtype=dtype)[:, :, None]
    scale = jnp.where(is_normalised, m / jnp.sum(cov * field.gram), 1).astype(dtype)
    cov, values = cov * scale, values + jnp.log(scale)
    log_cov = log_cov + jnp.log(scale) * identity
    reference = lax.cond(
        state.is_exact,
        lambda: _evaluate(field, cov),
        lambda: _increment(field.single, field.noise, cov, state.reference),
    )
    # `changed` is 0 at a reference point: its products carry no error of single precision.
    changed = jnp.where(
        state.is_exact,
        0.0,
        jnp.maximum(
            _ratio(cov - state.reference.cov, cov),
            _ratio(reference.quadratic - state.reference.quadratic, reference.quadratic),
        ),
    ).astype(dtype)
    quadratic = reference.quadratic
    kept = jax.tree.map(
        lambda new, old: jnp.where(state.is_exact, new, old), reference, state.reference
    )

    called, called_vectors = _eigen(_fill(quadratic, field.audible))
    target = _assemble(-0.5 * jnp.log(called), called_vectors)
    called_cov = _assemble(1 / jnp.sqrt(called), called_vectors)
    norm = jnp.where(is_normalised, m / jnp.sum(called_cov * field.gram), 1).astype(dtype)
    target = target + jnp.log(norm) * identity
    quadratic = quadratic / norm**2
    square = _project(_assemble(jnp.exp(-2 * values), vectors), field.audible)
    inflation = jnp.max(jnp.diag(reference.data_cov) * jnp.diag(reference.precision))
    doubt = _NOISE * jnp.maximum(inflation, 1) * changed
    residual = _ratio(square - quadratic, square) + doubt

    is_best = residual < state.residual
    n_stalled = jnp.where(residual < 0.9 * state.residual, 0, state.n_stalled + 1)
    is_exact = ((doubt > jnp.maximum(_SHARE * residual, tol / 2)) & ~state.is_exact) | (
        n_stalled == _PATIENCE
    )
    mixed, memory = _mix(state, log_cov.reshape(-1), (target - log_cov).reshape(-1), residual)
    return State(
        log_cov=mixed.reshape(d, d, n),
        best=jnp.where(is_best, log_cov, state.best),
        residual=jnp.minimum(residual, state.residual),
        reference=kept,
        **memory,
        last_residual=residual,
        is_exact=is_exact | jnp.asarray(dtype == jnp.float32),
        n_stalled=n_stalled.astype(jnp.int32),
        n_steps=state.n_steps + 1,
    )


@jax.jit
def _run(lead_field, lambda2, tol, max_steps, is_normalised):
    # Scaled to mean power 1, so that single precision is safe in any units.
    scale = jnp.sqrt(jnp.mean(jnp.sum(lead_field**2, axis=(1, 2))))
    scaled = lax.optimization_barrier(lead_field.swapaxes(1, 2) / scale)
    lambda2 = jnp.where(is_normalised, lambda2, lambda2 / scale**2)
    field, state = init(scaled, lambda2, is_normalised)

    def goes_on(state):
        is_open = (state.residual > tol) & (state.n_stalled < _END)
        return is_open & (state.n_steps < max_steps)

    state = lax.while_loop(goes_on, lambda state: step(state, field, is_normalised, tol), state)
    values, vectors = _eigen(state.best)
    cov = _project(_assemble(jnp.exp(values), vectors), field.audible)
    cov = jnp.where(is_normalised, cov / scale**2, cov)
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


def _mix(state, point, change, residual):
    """Anderson mixing: the combination of past steps that leaves least change, in least squares."""
    is_first = state.n_steps == 0
    # A step that made things worse is forgotten with all before it; the plain step contracts.
    is_lost = is_first | (residual > 2 * state.last_residual)
    move = jnp.where(is_lost, 0.0, point - state.last[0]).astype(point.dtype)
    turn = jnp.where(is_lost, 0.0, change - state.last[1]).astype(point.dtype)
    moves = jnp.where(is_lost, 0.0, state.moves).astype(point.dtype)
    turns = jnp.where(is_lost, 0.0, state.turns).astype(point.dtype)
    slot = state.n_steps % _MEMORY
    moves, turns = moves.at[slot].set(move), turns.at[slot].set(turn)
    # Differences shrink by orders of magnitude from step to step: they are brought to unit length
    # before the small ridge, which is what empty slots are left with.
    length = jnp.linalg.norm(turns, axis=1)
    length = jnp.where(length > 0, length, 1.0).astype(point.dtype)
    correlation = jnp.matmul(turns, turns.T, precision=_HIGH) / (length[:, None] * length)
    ridge = 100 * jnp.finfo(point.dtype).eps
    system = correlation + ridge * jnp.eye(_MEMORY, dtype=point.dtype)
    share = jnp.linalg.solve(system, jnp.matmul(turns, change, precision=_HIGH) / length) / length
    mixed = point + _RELAXATION * change
    mixed = mixed - jnp.matmul(share, moves + _RELAXATION * turns, precision=_HIGH)
    return mixed, {"last": jnp.stack([point, change]), "moves": moves, "turns": turns}


def _evaluate(field, cov):
    turn = field.turn
    data_cov = _sandwich(turn, _data_cov(field.full, cov))
    precision = _inverse(data_cov, field.noise)
    return Reference(cov, data_cov, precision, _quadratic(field.full, _sandwich(turn.T, precision)))


def _increment(field, noise, cov, reference):
    data_cov = reference.data_cov + _data_cov(field, cov - reference.cov)
    precision = _inverse(data_cov, noise)
    quadratic = reference.quadratic + _quadratic(field, precision - reference.precision)
    return Reference(cov, data_cov, precision, quadratic)


def _data_cov(field, cov):
    """sum_j G_j C_j G_j', in the precision of the field."""
    m, d, _ = field.shape
    low = lax.optimization_barrier(cov.astype(field.dtype))
    weighted = sum(field[:, e, None] * low[e] for e in range(d))
    product = jnp.matmul(weighted.reshape(m, -1), field.reshape(m, -1).T, precision=_HIGH)
    return _mirrored(product.astype(cov.dtype))


def _quadratic(field, matrix):
    """G_j' M G_j of a symmetric M, in the precision of the field."""
    image = jnp.matmul(
        matrix.astype(field.dtype), field.reshape(field.shape[0], -1), precision=_HIGH
    )
    return _block_products(field, image.reshape(field.shape)).astype(matrix.dtype)


def _block_products(left, right):
    """Sum over rows of left_e right_f, e >= f, mirrored.

    Running over rows keeps the sums in the cache: a reduction over the slow axis that leaves
    every source to itself took seven times as long.
    """
    m, d, n = left.shape
    pairs = [(e, f) for e in range(d) for f in range(e + 1)]

    def products(first, n_rows):
        a = lax.dynamic_slice_in_dim(left, first, n_rows)
        b = lax.dynamic_slice_in_dim(right, first, n_rows)
        return jnp.stack([sum(a[r, e] * b[r, f] for r in range(n_rows)) for e, f in pairs])

    n_full = m // _N_ROWS
    sums = lax.fori_loop(
        0,
        n_full,
        lambda i, sums: sums + products(i * _N_ROWS, _N_ROWS),
        jnp.zeros((len(pairs), n), left.dtype),
    )
    if m % _N_ROWS:
        sums = sums + products(n_full * _N_ROWS, m % _N_ROWS)
    return _symmetric(dict(zip(pairs, sums, strict=True)), d)


def _sandwich(left, matrix):
    return _mirrored(jnp.matmul(jnp.matmul(left, matrix, precision=_HIGH), left.T, precision=_HIGH))


def _mirrored(matrix):
    return (matrix + matrix.T) / 2


def _inverse(data_cov, noise):
    identity = jnp.eye(data_cov.shape[0], dtype=data_cov.dtype)
    chol = jnp.linalg.cholesky(data_cov + noise)
    return jax.scipy.linalg.cho_solve((chol, True), identity)


def _eigen(matrix):
    """Eigenvalues (d, n) and eigenvectors (d, d, n) of symmetric blocks by Jacobi's rotations.

    Written out over components, so that a batch is a few vector operations; five sweeps reach
    rounding error at d = 3.
    """
    d = matrix.shape[0]
    n_sweeps = (0, 1, 5)[d - 1]
    identity = jnp.broadcast_to(jnp.eye(d, dtype=matrix.dtype)[:, :, None], matrix.shape)

    def sweep(_, pair):
        own, vectors = pair
        for p, q in ((0, 1), (0, 2), (1, 2))[: d * (d - 1) // 2]:
            off = own[p, q]
            gap = own[q, q] - own[p, p]
            is_small = jnp.abs(off) <= jnp.finfo(off.dtype).tiny
            # tan of the smaller angle that annuls the element.
            tangent = 2 * off / (gap + jnp.where(gap < 0, -1, 1) * jnp.hypot(gap, 2 * off))
            tangent = jnp.where(is_small, 0, tangent).astype(off.dtype)
            c = 1 / jnp.sqrt(1 + tangent**2)
            s = c * tangent
            left = [row for row in own]
            left[p], left[q] = c * own[p] - s * own[q], s * own[p] + c * own[q]
            half = jnp.stack(left)
            cols = [half[:, k] for k in range(d)]
            cols[p], cols[q] = c * half[:, p] - s * half[:, q], s * half[:, p] + c * half[:, q]
            own = jnp.stack(cols, axis=1)
            turned = [vectors[:, k] for k in range(d)]
            turned[p] = c * vectors[:, p] - s * vectors[:, q]
            turned[q] = s * vectors[:, p] + c * vectors[:, q]
            vectors = jnp.stack(turned, axis=1)
        return own, vectors

    own, vectors = lax.fori_loop(0, n_sweeps, sweep, (matrix, identity))
    return jnp.stack([own[k, k] for k in range(d)]), vectors


def _assemble(values, vectors):
    """V diag(values) V' of each block."""
    d = vectors.shape[0]
    scaled = vectors * values
    return _symmetric(
        {(e, f): jnp.sum(scaled[e] * vectors[f], axis=0) for e in range(d) for f in range(e + 1)},
        d,
    )


def _symmetric(lower, d):
    return jnp.stack([jnp.stack([lower[max(e, f), min(e, f)] for f in range(d)]) for e in range(d)])


def _product(left, right):
    d = left.shape[0]
    return jnp.stack(
        [
            jnp.stack([sum(left[e, k] * right[k, f] for k in range(d)) for f in range(d)])
            for e in range(d)
        ]
    )


def _project(matrix, projector):
    return _product(_product(projector, matrix), projector)


def _fill(matrix, audible):
    """Give silent directions the mean of the others, so that logarithms exist."""
    d = matrix.shape[0]
    mean = jnp.sum(jnp.stack([matrix[k, k] for k in range(d)]), axis=0) / d
    mean = jnp.where(mean > 0, mean, 1).astype(matrix.dtype)
    return matrix + mean * (jnp.eye(d, dtype=matrix.dtype)[:, :, None] - audible)


def _trace(matrix):
    return sum(jnp.sum(matrix[k, k]) for k in range(matrix.shape[0]))


def _ratio(difference, whole):
    """Largest relative Frobenius norm of the blocks; silent sources count for nothing."""
    size = jnp.sum(whole**2, axis=(0, 1))
    error = jnp.sum(difference**2, axis=(0, 1))
    return jnp.sqrt(jnp.max(jnp.where(size > 0, error / jnp.where(size > 0, size, 1), 0)))


def _check_lead_field(lead_field):
    lead_field = check_array("lead_field", lead_field, ndim=3)
    if lead_field.shape[2] > 3:
        raise ValueError(
            f"lead_field must have at most 3 orientations in its last axis, got {lead_field.shape}."
        )
    if not np.any(lead_field):
        raise ValueError("lead_field is zero: no source can be seen.")
    return lead_field
