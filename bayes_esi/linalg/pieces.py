"""Products of a lead field cut into pieces of sources that stay in the cache.

A piece (m, d, size) holds all rows of some sources; with 300 rows in single precision it takes
0.75 megabytes. What a product needs between its two factors is never larger. Symmetric products
leave out most of what mirrors the rest: little more than half of the operations is left.
Per-source blocks (d, d, n) lie in the order of the pieces, whose last repeats some sources as
silent ones: n counts these, and `in_order` leaves them out.
"""

import itertools

import jax.numpy as jnp
from jax import lax

from ..core.types import Array, Float

__all__ = [
    "combined",
    "data_cov",
    "in_order",
    "joined",
    "map_used",
    "over_pieces",
    "quadratic",
    "sum_of_products",
]

# Sources in a piece, at most and a multiple of.
_PIECE, _GRAIN = 208, 16
# Rows at most in a strip of a symmetric product, which leaves out what mirrors an earlier one.
# Smaller strips leave out more, and multiply more slowly.
_STRIP = 152
# Rows of the lead field taken at a time in sums over rows.
_N_ROWS = 8
_HIGH = lax.Precision.HIGHEST


def combined(turn: Float[Array, "k m"], piece: Float[Array, "m d size"]):
    """Linear combinations of the rows of a piece, in the precision of the piece.

    Weak combinations are small differences of large numbers: partial sums over strips of rows
    lose 2 units of rounding where one long sum lost 5.
    """
    flat = piece.reshape(len(piece), -1)
    parts = [
        lax.optimization_barrier(jnp.matmul(turn[:, low:high], flat[low:high], precision=_HIGH))
        for low, high in _strips(len(flat))
    ]
    return sum(parts).reshape(-1, *piece.shape[1:])


def data_cov(
    pieces: Float[Array, "n_pieces m d size"], cov: Float[Array, "d d n"], n_rows, n_used=None
) -> Float[Array, "n_rows n_rows"]:
    """sum_j G_j C_j G_j' over the first rows, in the precision of the pieces.

    `n_used`: how many pieces count, known at run time only; all without it.
    """
    _, _, d, size = pieces.shape
    bounds = list(_strips(n_rows))

    def add(i, strips):
        piece, cov = pieces[i], split[i]
        piece = lax.optimization_barrier(piece[:n_rows])
        # Written out over orientations: half the time of an einsum, which becomes a dot.
        weighted = [sum(piece[:, e] * cov[e, f] for e in range(d)) for f in range(d)]
        weighted = jnp.stack(weighted, axis=1).reshape(n_rows, -1)
        flat = piece.reshape(n_rows, -1)
        products = [
            jnp.matmul(weighted[low:high], flat[low:].T, precision=_HIGH) for low, high in bounds
        ]
        return [strip + product for strip, product in zip(strips, products, strict=True)]

    split = cov.astype(pieces.dtype).reshape(d, d, -1, size).transpose(2, 0, 1, 3)
    nothing = [jnp.zeros((high - low, n_rows - low), pieces.dtype) for low, high in bounds]
    strips = lax.fori_loop(0, len(pieces) if n_used is None else n_used, add, nothing)
    upper = jnp.concatenate(
        [jnp.pad(strip, ((0, 0), (n_rows - strip.shape[1], 0))) for strip in strips]
    )
    return (jnp.triu(upper) + jnp.triu(upper, 1).T).astype(cov.dtype)


def quadratic(
    pieces: Float[Array, "n_pieces m d size"], matrix: Float[Array, "k k"], n_used=None
) -> Float[Array, "d d n"]:
    """G_j' M G_j of a symmetric M of the first rows, in the precision of the pieces.

    M = U + U' with U the upper triangle and half of the diagonal.
    `n_used`: how many pieces count, known at run time only; the others get zero.
    """
    n_rows = len(matrix)
    upper = (jnp.triu(matrix) + jnp.triu(matrix, 1)).astype(pieces.dtype) / 2
    strips = [upper[low:high, low:] for low, high in _strips(n_rows)]

    def form(piece):
        piece = lax.optimization_barrier(piece[:n_rows])
        flat = piece.reshape(n_rows, -1)
        image = [
            jnp.matmul(strip, flat[n_rows - strip.shape[1] :], precision=_HIGH) for strip in strips
        ]
        half = sum_of_products(piece, jnp.concatenate(image).reshape(piece.shape))
        return half + half.swapaxes(0, 1)

    return joined(map_used(form, pieces, n_used)).astype(matrix.dtype)


def map_used(form, pieces: Float[Array, "n_pieces m d size"], n_used=None):
    """Blocks (n_pieces, d, d, size) of the first pieces by `form`, zero in the others."""
    if n_used is None:
        return lax.map(form, pieces)
    _, _, d, size = pieces.shape
    nothing = jnp.zeros((len(pieces), d, d, size), pieces.dtype)
    return lax.fori_loop(0, n_used, lambda i, out: out.at[i].set(form(pieces[i])), nothing)


def _strips(n_rows):
    """First and last row of each strip."""
    n_strips = -(-n_rows // _STRIP)
    return itertools.pairwise([i * n_rows // n_strips for i in range(n_strips + 1)])


def sum_of_products(
    left: Float[Array, "m d size"], right: Float[Array, "m d size"]
) -> Float[Array, "d d size"]:
    """Sum over rows of left_e right_f, source by source, last rows first.

    Running over rows keeps the sums in the cache: a reduction over the slow axis that leaves
    every source to itself took seven times as long. Where the first rows are the largest, most
    additions round off nothing that counts.
    """
    m, d, n = left.shape
    n_each = min(_N_ROWS, m)
    n_rest = m % n_each

    def products(first, n_rows):
        a = lax.dynamic_slice_in_dim(left, first, n_rows)
        b = lax.dynamic_slice_in_dim(right, first, n_rows)
        return sum(a[r, :, None] * b[r] for r in reversed(range(n_rows)))

    sums = lax.fori_loop(
        0,
        m // n_each,
        lambda i, sums: sums + products(m - (i + 1) * n_each, n_each),
        jnp.zeros((d, d, n), left.dtype),
    )
    return sums + products(0, n_rest) if n_rest else sums


def over_pieces(act, lead_field: Float[Array, "m n_sources d"], unit):
    """Apply `act` to each piece (m, d, size) of the lead field in its unit, and stack.

    The last piece is moved back to end with the sources; those it repeats are silent in it.
    """
    n_sources = lead_field.shape[1]
    size = _size(n_sources)

    def one(i):
        first = jnp.minimum(i * size, n_sources - size)
        piece = lax.dynamic_slice_in_dim(lead_field, first, size, axis=1)
        is_new = first + jnp.arange(size) >= i * size
        return act(jnp.where(is_new, piece.swapaxes(1, 2) / unit, 0).astype(piece.dtype))

    return lax.map(one, jnp.arange(-(-n_sources // size)))


def _size(n_sources):
    """Sources in each piece: as few pieces as there can be, nearly equal ones."""
    n_each = -(-n_sources // -(-n_sources // _PIECE))
    return min(-(-n_each // _GRAIN) * _GRAIN, n_sources)


def joined(split: Float[Array, "n_pieces d d size"]) -> Float[Array, "d d n"]:
    """Blocks of all pieces, one after the other."""
    return split.transpose(1, 2, 0, 3).reshape(*split.shape[1:3], -1)


def in_order(joined: Float[Array, "d d n"], n_sources):
    """Leave out the sources that the last piece repeats."""
    n_repeated = joined.shape[-1] - n_sources
    last = joined.shape[-1] - _size(n_sources)
    return jnp.concatenate([joined[..., :last], joined[..., last + n_repeated :]], axis=-1)
