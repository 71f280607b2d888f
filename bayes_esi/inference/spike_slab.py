"""Sampler of sources that are silent or active; their amplitudes are integrated out.

    x_jt ~ N(0, g_j I) if j is active, else 0,     y_t = sum_j G_j x_jt + N(0, s^2 I)
    log g_j uniform over a range,    p(s^2) ~ 1 / s^2 if unknown

with the prior odds of `models.hierarchical.log_odds` for one source more or less.

The state is the set A of active sources with their variances. Given these the data are Gaussian,
and the evidence of one more source of variance g is, with C the covariance of the data under A,

    log w = -T log|I + g S_j| / 2 + g tr((I + g S_j)^-1 P_j) / 2 + log odds,
    S_j = G_j' C^-1 G_j,    P_j = G_j' C^-1 Y Y' C^-1 G_j.

One step computes w of all sources and variances at once, and then

- adds a source, drawn in proportion to w, with probability min(1, W / (|A| + 1)), W the sum; or
- takes one away with probability min(1, |A| / W), W being that without it; or
- takes one away and draws it anew in proportion to w.

Each leaves the posterior as it is: the chances of adding and taking away do not depend on which
source is drawn. Variances are on a grid, which is finer than the data can tell apart.

Inclusion probabilities are averages of P(j is active | all others) = w / (1 + w), summed over
variances, and not of zeros and ones: sources that are never drawn have one as well.

*What to expect.* Chains may stick where one source stands for two between which it lies; then they
disagree, which R-hat tells. They start at draws of the prior and warm up by temperature.

Cost O(n d^2 (m + K^2 d + K r) + n n_scales) a step, n sources, K slots, r the rank of the data;
memory O(n d (m + d K)).

References: Zanella 2020, doi:10.1080/01621459.2019.1585255 (proposals that are informed); Scott,
Berger 2010, doi:10.1214/10-AOS792 (unknown inclusion probability).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_count, check_positive
from ..core.drive import Checkpoint, fingerprint, run_in_chunks
from ..core.types import Array, Bool, Float, Int, Key
from ..models.hierarchical import log_odds

__all__ = [
    "Draws",
    "Given",
    "State",
    "init",
    "prepare",
    "run",
    "step",
    "variance_grid",
    "variance_range",
]

# Sweeps of all chains between looks at the clock and the checkpoint.
_CHUNK = 10
# Temperature of the first sweep of the warm-up.
_WARMEST = 0.1
# Ratio of signal to noise of the weakest sources, times the root of their amplitudes' number.
_VISIBLE = 4.0
# Steps of the grid of log variances in standard errors of a log variance.
_GRID_STEP = 1.5
_HIGH = lax.Precision.HIGHEST


class State(NamedTuple):
    """One chain: K slots, and what the lead field says of the sources in them."""

    key: Key[Array, ""]
    places: Int[Array, "K"]
    nodes: Int[Array, "K"]  # of the grid of variances
    is_on: Bool[Array, "K"]
    noise_var: Float[Array, ""]
    cross: Float[Array, "K d d n"]  # G_k' G_j


class Given(NamedTuple):
    """Data and prior."""

    field: Float[Array, "d n m"]
    projected: Float[Array, "r d n"]  # G_j' Y, compressed in time
    gram: Float[Array, "d d n"]  # G_j' G_j
    data_power: Float[Array, ""]  # |Y|^2
    n_times: Float[Array, ""]
    variances: Float[Array, "L"]
    log_odds: Float[Array, "K+1"]  # of one more, by the number of active sources


class Draws(NamedTuple):
    """Kept sweeps of all chains."""

    places: np.ndarray  # (n_chains, n_samples, K) int
    source_var: np.ndarray  # (n_chains, n_samples, K); 0 in empty slots
    noise_var: np.ndarray  # (n_chains, n_samples)
    log_density: np.ndarray  # (n_chains, n_samples): of data and sources, constants left out
    inclusion: np.ndarray  # (n_chains, n_sources)


def run(
    key,
    data,
    lead_field,
    *,
    bounds=None,
    probability=None,
    noise_var=1.0,
    max_active=10,
    n_chains=4,
    n_warmup=50,
    n_samples=250,
    n_moves=20,
    checkpoint=None,
    progress=lambda done: None,
):
    """Draw sets of active sources.

    Parameters
    ----------
    key : PRNG key
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3.
    bounds : (low, high), optional
        Of the variances of sources. By default as in `variance_grid`.
    probability : float, optional
        That a source is active; None: unknown, see `log_odds`.
    noise_var : float, optional
        None: unknown.
    max_active : int
    n_chains, n_warmup, n_samples : int
        A sweep is `n_moves` steps; the first `n_warmup` sweeps are forgotten.
    n_moves : int
    checkpoint : path-like, optional
        File to go on from, and to keep until the end.
    progress : callable
        Called with the share of the sweeps done.

    Returns
    -------
    Draws

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, on numbers out of range.
    """
    given = prepare(data, lead_field, bounds, probability, max_active)
    n_chains = check_count("n_chains", n_chains)
    n_warmup = check_count("n_warmup", n_warmup, minimum=0)
    n_samples, n_moves = check_count("n_samples", n_samples), check_count("n_moves", n_moves)
    is_noise_known = noise_var is not None
    noise_var = 1.0 if noise_var is None else check_positive("noise_var", noise_var)
    keys = jax.random.split(key, n_chains)
    identity = fingerprint((keys, given, noise_var), (n_warmup, n_samples, n_moves, is_noise_known))
    n_slots, n_sources = len(given.log_odds) - 1, given.gram.shape[-1]
    shape = (n_chains, n_samples)
    kept = Draws(
        np.zeros((*shape, n_slots), np.int32),
        np.zeros((*shape, n_slots)),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros((n_chains, n_sources)),
    )
    rise = np.linspace(_WARMEST, 1, n_warmup, endpoint=False)
    temperature = np.concatenate([rise, np.ones(n_samples)])

    def advance(state, start, stop):
        states, kept = state
        powers = jnp.asarray(temperature[start:stop], given.gram.dtype)
        states, told = _sweeps(states, given, powers, n_moves, is_noise_known)
        if start >= n_warmup:
            rows = slice(start - n_warmup, stop - n_warmup)
            for array, new in zip(kept[:4], told[:4], strict=True):
                array[:, rows] = new
            kept.inclusion[:] += np.asarray(told[4]) / n_samples
        return states, kept

    _, kept = run_in_chunks(
        advance,
        (_starts(keys, given, noise_var), kept),
        n_warmup + n_samples,
        Checkpoint(checkpoint, identity),
        chunk=_CHUNK,
        n_warmup=n_warmup,
        progress=progress,
    )
    return kept


def prepare(data, lead_field, bounds=None, probability=None, max_active=10) -> Given:
    """Check data and prior and compute what all steps share; see `run`."""
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n_sources, d = lead_field.shape
    data = check_array("data", data, shape=(m, "n_times"))
    max_active = min(check_count("max_active", max_active), n_sources)
    n_times = data.shape[1]
    grid = variance_grid(data, lead_field) if bounds is None else _grid(*bounds, d * n_times)
    odds = log_odds(n_sources, max_active, probability)
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    scores, values, _ = np.linalg.svd(np.asarray(data, np.float64), full_matrices=False)
    compressed = jnp.asarray(scores * values, dtype)
    field = jnp.asarray(np.moveaxis(lead_field, 0, 2).swapaxes(0, 1), dtype)
    return Given(
        field,
        jnp.einsum("dnm,mr->rdn", field, compressed, precision=_HIGH),
        jnp.einsum("dnm,enm->den", field, field, precision=_HIGH),
        jnp.asarray(np.sum(values**2), dtype),
        jnp.asarray(n_times, dtype),
        jnp.asarray(grid, dtype),
        jnp.asarray(odds, dtype),
    )


def variance_range(data, lead_field):
    """Variances that data can speak of, a source of middling lead field: least and largest.

    From the weakest that is told from noise of level 1, whose log likelihood ratio is four nats on
    average, to ten times the power of the data. Weaker ones would be active or not as the prior
    likes.
    """
    data = check_array("data", data, ndim=2)
    d, n_times = lead_field.shape[2], data.shape[1]
    gain = np.median(np.sum(np.square(lead_field, dtype=np.float64), axis=(0, 2))) / d
    power = np.sum(np.square(data, dtype=np.float64)) / (d * n_times)
    # At small ratios r of signal to noise it is d n_times r^2 / 4.
    low = _VISIBLE / np.sqrt(d * n_times)
    return low / gain, max(10 * power, 100 * low) / gain


def variance_grid(data, lead_field):
    """Variances over `variance_range` and some more: (n_scales,) array."""
    low, high = variance_range(data, lead_field)
    step = _grid_step(lead_field.shape[2] * data.shape[1])
    wanted = np.log(high / low) / step + 1
    # Few sizes, so that other data need not compile again.
    n_scales = next(k * 2**i for i in range(60) for k in (8, 12) if k * 2**i >= wanted)
    return low * np.exp(step * np.arange(n_scales))


def _grid_step(n_amplitudes):
    """Step of log variances: by the standard error of one from so many amplitudes."""
    return _GRID_STEP * np.sqrt(2 / n_amplitudes)


def _grid(low, high, n_amplitudes):
    low = check_positive("bounds", low)
    if not high >= low:
        raise ValueError(f"bounds must increase, got {low:g} and {high:g}.")
    return np.geomspace(low, high, int(np.ceil(np.log(high / low) / _grid_step(n_amplitudes))) + 1)


def init(key, given: Given, noise_var) -> State:
    """Draw a start: up to half of the slots filled at random."""
    n_slots, n_sources = len(given.log_odds) - 1, given.gram.shape[-1]
    key, *own = jax.random.split(key, 4)
    places = jax.random.choice(own[0], n_sources, (n_slots,), replace=False)
    nodes = jax.random.randint(own[1], (n_slots,), 0, len(given.variances))
    number = jax.random.randint(own[2], (), 0, n_slots // 2 + 1)
    is_on = jnp.arange(n_slots) < number
    noise_var = jnp.asarray(noise_var, given.gram.dtype)
    cross = lax.map(lambda place: _column(given, place), places)
    return State(key, places, nodes, is_on, noise_var, cross)


def step(state: State, given: Given, temperature, is_noise_known) -> State:
    """Add, take away or move one source; then draw the noise level if it is unknown."""
    key, *own = jax.random.split(state.key, 8)
    n_on = jnp.sum(state.is_on)
    kind = jax.random.randint(own[0], (), 0, 4)  # 0 adds, 1 takes away, 2 and 3 move
    is_add, is_move = kind == 0, kind >= 2
    turn = jnp.where(state.is_on, jax.random.uniform(own[1], state.is_on.shape), -1)
    slot = jnp.where(is_add, jnp.argmin(state.is_on), jnp.argmax(turn))
    is_possible = jnp.where(is_add, n_on < len(state.is_on), n_on > 0)
    rest = state.is_on & ((jnp.arange(len(state.is_on)) != slot) | is_add)
    gains = _gains(state, given, rest, temperature)
    odds = given.log_odds[jnp.sum(rest)] - jnp.log(1.0 * len(given.variances))
    log_total = jax.nn.logsumexp(gains) + odds
    chance = jnp.where(is_add, log_total - jnp.log(n_on + 1.0), jnp.log(1.0 * n_on) - log_total)
    is_accepted = is_move | (jnp.log(jax.random.uniform(own[2])) < chance)
    place = jax.random.categorical(own[3], jax.nn.logsumexp(gains, axis=0))
    node = jax.random.categorical(own[4], gains[:, place])
    is_new = is_possible & is_accepted & (kind != 1)
    is_gone = is_possible & is_accepted & (kind == 1)
    cross = lax.cond(
        is_new & (place != state.places[slot]),
        lambda cross: cross.at[slot].set(_column(given, place)),
        lambda cross: cross,
        state.cross,
    )
    state = State(
        key,
        state.places.at[slot].set(jnp.where(is_new, place, state.places[slot])),
        state.nodes.at[slot].set(jnp.where(is_new, node, state.nodes[slot])),
        state.is_on.at[slot].set((state.is_on[slot] | is_new) & ~is_gone),
        state.noise_var,
        cross,
    )
    if is_noise_known:
        return state
    return _draw_noise(state, given, temperature, own[5], own[6])


def log_evidence(state: State, given: Given, is_on, noise_var):
    """Log density of the data given the active sources, their variances and the noise."""
    _, heard, log_det = _factors(state, given, is_on, noise_var)
    n_values = given.n_times * given.field.shape[2]
    misfit = given.data_power / noise_var - jnp.sum(heard**2)
    return -0.5 * (n_values * jnp.log(noise_var) + given.n_times * log_det + misfit)


def _draw_noise(state, given, temperature, key_move, key_accept):
    n_values = given.n_times * given.field.shape[2]
    width = 2.4 * jnp.sqrt(2 / (n_values * temperature))
    other = state.noise_var * jnp.exp(width * jax.random.normal(key_move))
    old, new = (
        temperature * log_evidence(state, given, state.is_on, var)
        for var in (state.noise_var, other)
    )
    is_accepted = jnp.log(jax.random.uniform(key_accept)) < new - old
    return state._replace(noise_var=jnp.where(is_accepted, other, state.noise_var))


def _column(given, place):
    """G_k' G_j for one k and all j: (d, d, n)."""
    d, n, m = given.field.shape
    rows = given.field.reshape(d * n, m)
    column = jnp.matmul(rows, given.field[:, place].T, precision=_HIGH)
    return jnp.moveaxis(column.reshape(d, n, d), 2, 0)


def _factors(state, given, is_on, noise_var):
    """What the active sources take from others, for noise scaled to one.

    Returns
    -------
    whitener : (K d, K d) array
        L^-1 g^1/2 with L L' = I + g^1/2 G'G g^1/2.
    heard : (K d, r) array
        whitener G'Y.
    log_det : of L L'
    """
    n_slots, d = state.cross.shape[:2]
    size = n_slots * d
    scale = jnp.where(is_on, jnp.sqrt(given.variances[state.nodes] / noise_var), 0)
    scale = jnp.repeat(scale, d)
    blocks = state.cross[..., state.places].swapaxes(2, 3).reshape(size, size)
    gram = scale[:, None] * (blocks + blocks.T) / 2 * scale
    chol = jnp.linalg.cholesky(gram + jnp.eye(size, dtype=gram.dtype))
    whitener = lax.linalg.triangular_solve(chol, jnp.diag(scale), left_side=True, lower=True)
    own = given.projected[..., state.places]  # (r, d, K)
    own = jnp.moveaxis(own, 2, 0).swapaxes(1, 2).reshape(size, -1) / jnp.sqrt(noise_var)
    heard = jnp.matmul(whitener, own, precision=_HIGH)
    return whitener, heard, 2 * jnp.sum(jnp.log(jnp.diag(chol)))


def _gains(state, given, is_on, temperature):
    """Log evidence of one source more than those that are on: (L, n); -inf for these."""
    gain = _gain(*_seen(state, given, is_on), given, state.noise_var)
    taken = jnp.zeros(gain.shape[1], bool).at[state.places].max(is_on)
    return jnp.where(taken, -jnp.inf, temperature * gain)


def _seen(state, given, is_on, rows=None):
    """S_j and P_j of all sources, or of some: (d, d, n) each, for noise scaled to one."""
    n_slots, d = state.cross.shape[:2]
    whitener, heard, _ = _factors(state, given, is_on, state.noise_var)
    cross, gram, projected = (
        a if rows is None else a[..., rows] for a in (state.cross, given.gram, given.projected)
    )
    n = gram.shape[-1]
    half = jnp.matmul(whitener, cross.reshape(n_slots * d, d * n), precision=_HIGH)
    # S_j = G_j'G_j - h'h and G_j' C^-1 Y = G_j'Y - h' heard, h the whitened cross products.
    told = jnp.matmul(heard.T, half, precision=_HIGH).reshape(-1, d, n)
    told = projected / jnp.sqrt(state.noise_var) - told
    half = half.reshape(-1, d, n)
    seen = gram - _products(half)
    return seen, _products(told)


def _products(rows):
    """Sums over the first axis of the products of all pairs along the second: (d, d, n)."""
    d = rows.shape[1]
    pairs = [[jnp.sum(rows[:, a] * rows[:, b], axis=0) for b in range(a + 1)] for a in range(d)]
    return jnp.stack([jnp.stack([pairs[max(a, b)][min(a, b)] for b in range(d)]) for a in range(d)])


def _gain(seen, heard, given, noise_var):
    """Log evidence of each source at each variance of the grid: (L, n).

    |I + g S| is a polynomial in g, and so is that times the trace of (I + g S)^-1 P; the formulas
    for three components hold for fewer.
    """
    trace, power = jnp.trace(seen), jnp.trace(heard)
    square = jnp.sum(seen**2, axis=(0, 1))
    minors = 0.5 * (trace**2 - square)
    linked = jnp.sum(seen * heard, axis=(0, 1))
    twice = jnp.einsum("abn,bcn->acn", seen, seen)
    cube = jnp.sum(twice * seen, axis=(0, 1))
    det = (trace**3 - 3 * trace * square + 2 * cube) / 6
    last = jnp.sum(twice * heard, axis=(0, 1)) - trace * linked + minors * power
    g = (given.variances / noise_var)[:, None]
    volume = 1 + g * (trace + g * (jnp.maximum(minors, 0) + g * jnp.maximum(det, 0)))
    top = g * (power + g * (trace * power - linked + g * last))
    return 0.5 * (top / volume - given.n_times * jnp.log(volume))


def _inclusion(state, given):
    """P(j is active | all others) for each source: (n,)."""
    log_grid = jnp.log(1.0 * len(given.variances))
    n_on = jnp.sum(state.is_on)
    absent = jax.nn.logsumexp(_gains(state, given, state.is_on, 1.0), axis=0)
    log_w = absent - log_grid + given.log_odds[n_on]

    def own(slot):
        rest = state.is_on & (jnp.arange(len(state.is_on)) != slot)
        place = state.places[slot][None]
        gain = _gain(*_seen(state, given, rest, place), given, state.noise_var)
        return jax.nn.logsumexp(gain) - log_grid + given.log_odds[jnp.sum(rest)]

    present = lax.map(own, jnp.arange(len(state.is_on)))
    places = jnp.where(state.is_on, state.places, len(log_w))
    return jax.nn.sigmoid(log_w.at[places].set(present, mode="drop"))


@jax.jit
def _starts(keys, given, noise_var):
    return jax.vmap(init, (0, None, None))(keys, given, noise_var)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sweeps(states, given, temperature, n_moves, is_noise_known):
    """States after some sweeps, and what was seen at the end of each."""
    log_grid = jnp.log(1.0 * len(given.variances))
    prior = jnp.concatenate([jnp.zeros(1), jnp.cumsum(given.log_odds[:-1] - log_grid)])

    def chain(state):
        def sweep(carry, power):
            state, total = carry
            state = lax.fori_loop(
                0, n_moves, lambda _, s: step(s, given, power, is_noise_known), state
            )
            density = log_evidence(state, given, state.is_on, state.noise_var)
            density = density + prior[jnp.sum(state.is_on)]
            variance = jnp.where(state.is_on, given.variances[state.nodes], 0)
            told = (state.places, variance, state.noise_var, density)
            return (state, total + _inclusion(state, given)), told

        start = (state, jnp.zeros(given.gram.shape[-1], given.gram.dtype))
        (state, total), told = lax.scan(sweep, start, temperature)
        return state, (*told, total)

    return lax.map(chain, states)
