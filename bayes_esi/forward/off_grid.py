"""Values of a lead field between its sources.

Moving least squares around a position p. The sources x_i that reach it are those with
|x_i - p| < r_i; h is their mean reach r and u_i = (x_i - p) / h:

    a(p) = argmin_a  sum_i w(|x_i - p| / r_i) (g_i - a' b(u_i))^2 + a' R a,      g(p) = a_1(p)
    b(u) = (1, u_x, u_y, u_z, all six products),   w(s) = (1 - s^2)^2 / (s^2 + SOFTENING)

r_i is the distance from source i to its 30th neighbour. The weights fall to zero, with zero slope,
where a source ceases to reach p, so that g has a continuous gradient everywhere; near a source
they grow, so that there g returns its own field to better than 1e-4. The ridge R is there for
sources on a surface, of which the neighbourhood has no depth: it holds the products back by
1e-6 and the linear terms by rounding only, so that fields linear in position come back exactly.
All channels and orientations share the weights of a position: g(p) = sum_i c_i(p) g_i.

Cost of one position: O(n_sources + n_channels n_orient MOST_SOURCES).

Reference: Lancaster, Salkauskas 1981, doi:10.1090/S0025-5718-1981-0616367-1 (moving least squares).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from ..core.types import Array, Float
from ._points import is_known

__all__ = ["check_inside", "interpolate", "reach_of"]

# Neighbours within the reach of a source. The quadratic has ten coefficients; on a cubic grid the
# 27th to the 32nd neighbour are two steps away, and about 33 sources reach each position.
N_NEIGHBOURS = 30

# Sources that may reach one position; in places of very uneven density the last are left out.
MOST_SOURCES = 64

# Distance (in units of its reach, squared) below which a source no longer gains weight.
SOFTENING = 1e-4

# How far outside of the hull of its neighbours a position may lie, in distances between sources:
# a place on a curved surface lies off the chord between its vertices.
HULL_SLACK = 0.25

# Positions evaluated at once: their gathers take 64 times the size of what they return.
_BATCH = 64


def reach_of(source_pos):
    """Distance of each source to its 30th neighbour; of few sources, beyond the last."""
    k = min(N_NEIGHBOURS + 1, len(source_pos))
    distance = cKDTree(source_pos).query(source_pos, k=k)[0].reshape(len(source_pos), k)[:, -1]
    return distance if k == N_NEIGHBOURS + 1 else 1.5 * distance


def check_inside(source_pos, reach, pos):
    """Refuse positions that are no mean, with weights of at least zero, of sources around them.

    Raises
    ------
    ValueError
        With the number of positions further than `HULL_SLACK` spacings from the hull of the
        sources that reach them. Cost: a small least-squares problem a position, 0.1 ms.
    """
    tree = cKDTree(source_pos)
    k = min(MOST_SOURCES, len(source_pos))
    distance, nearest = tree.query(pos, k=k)
    spacing = np.median(tree.query(source_pos, k=2)[0][:, 1])
    n_outside = 0
    for place, far, near in zip(pos, distance, nearest, strict=True):
        if far[0] < HULL_SLACK * spacing:
            continue
        steps = (source_pos[near[far < reach[near]]] - place) / spacing
        if len(steps) < 5:
            n_outside += 1
            continue
        # A heavy last row makes the weights add up to one.
        system = np.vstack([steps.T, np.full(len(steps), 1e3)])
        weights, _ = nnls(system, np.array([0.0, 0.0, 0.0, 1e3]))
        n_outside += bool(np.linalg.norm(weights @ steps) > HULL_SLACK)
    if n_outside:
        raise ValueError(
            f"pos has {n_outside} of {len(pos)} positions outside of the sources, by more than "
            f"{1e3 * HULL_SLACK * spacing:.1f} mm; evaluate the head model there, or use a larger "
            "source space."
        )


def interpolate(
    data: Float[Array, "n_channels n_sources n_orient"],
    source_pos: Float[Array, "n_sources 3"],
    reach: Float[Array, " n_sources"],
    pos,
):
    """Values at some positions.

    Parameters
    ----------
    data : (n_channels, n_sources, n_orient) array
        In any unit.
    source_pos : (n_sources, 3) array
        In m.
    reach : (n_sources,) array
        In m, from `reach_of`.
    pos : (n_pos, 3) or (3,) array
        In m; decides on the precision.

    Returns
    -------
    (n_channels, n_pos, n_orient) or (n_channels, n_orient) array
        Of NumPy where many positions are known, else of JAX. Positions that no source reaches
        get zero.
    """
    dtype = jax.dtypes.canonicalize_dtype(pos.dtype)
    arrays = [jnp.asarray(array, dtype) for array in (data, source_pos, reach)]
    if pos.ndim == 1:
        return _at(*arrays, jnp.asarray(pos))
    if not is_known(pos, *arrays):
        return _at_many(*arrays, pos)
    # Full batches only, so that another number of positions compiles nothing.
    rows = np.resize(np.arange(len(pos)), (-(-len(pos) // _BATCH), _BATCH))
    parts = [np.asarray(_at_many(*arrays, jnp.asarray(pos[row]))) for row in rows]
    return np.concatenate(parts, axis=1)[:, : len(pos)]


@jax.jit
def _at(data, source_pos, reach, place):
    coefficients, nearest = _coefficients(source_pos, reach, place)
    return jnp.einsum("cnk,n->ck", data[:, nearest], coefficients)


@jax.jit
def _at_many(data, source_pos, reach, pos):
    return jax.vmap(_at, (None, None, None, 0), 1)(data, source_pos, reach, pos)


def _coefficients(source_pos, reach, place):
    """Weights and numbers of the sources that reach one place."""
    dtype = source_pos.dtype
    eps = np.finfo(dtype).eps
    # The k-th source that reaches the place is where their running count comes to k: six times
    # faster than sorting distances. Beyond the last, indices are clamped and weights are zero.
    reaches = jnp.sum((source_pos - place) ** 2, axis=1) < reach**2
    count = jnp.cumsum(reaches)
    numbers = jnp.arange(1, min(MOST_SOURCES, len(source_pos)) + 1)
    nearest = jnp.minimum(jnp.searchsorted(count, numbers), len(source_pos) - 1)
    steps, reach = source_pos[nearest] - place, reach[nearest]
    s2 = jnp.sum(steps**2, axis=1) / reach**2
    weights = jnp.maximum(1 - s2, 0) ** 2 / (s2 + SOFTENING)
    weights = jnp.where(numbers <= count[-1], weights, 0)
    weights = weights / jnp.maximum(jnp.sum(weights), eps)
    x, y, z = (steps / jnp.maximum(weights @ reach, eps)).T
    basis = jnp.stack([jnp.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, z * x])
    ridge = np.r_[eps**2, np.full(3, eps**0.75), np.full(6, 1e-6)].astype(dtype)
    weighted = basis * weights
    # a_1 = e_1' (B W B' + R)^-1 B W g
    first = jnp.zeros(10, dtype).at[0].set(1)
    solution = jax.scipy.linalg.solve(weighted @ basis.T + jnp.diag(ridge), first, assume_a="pos")
    return solution @ weighted, nearest
