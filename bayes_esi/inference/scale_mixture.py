"""Gibbs sampler of group-Laplace sources: their variances and themselves in turn.

    y_t = sum_j G_j x_jt + e_t,  e ~ N(0, I),    p(X) ~ exp(-alpha sum_j w_j |X_j|)

|X_j| is the Frobenius norm over D = d n_times components and samples. The prior is a mixture of
Gaussians, and so

    X_j | tau_j ~ N(0, tau_j I),    tau_j ~ Gamma((D + 1) / 2, rate (alpha w_j)^2 / 2)
    1 / tau_j | X_j ~ inverse Gaussian(mean alpha w_j / |X_j|, shape (alpha w_j)^2)
    X | tau, Y: a draw of the prior, corrected by the posterior mean of what differs

Each is exact; the chain has no step length to choose.

*What to expect.* The mode of this law is sparse, the law is not: tau_j has a relative deviation of
sqrt(2 / (D + 1)), so that with many samples all sources have about the same variance before data
are seen. Nothing is ever zero, so no draw says which sources are active. A source is loud in a
draw if its field carries more power than noise does in its d directions, |G_j X_j|^2 > rank(G_j)
n_times; many loud sources may cancel each other.

Cost O(m^2 n d + m n d n_times) a sweep and chain.

References: Kyung, Gill, Ghosh, Casella 2010, doi:10.1214/10-BA607 (the sampler); Michael,
Schucany, Haas 1976, doi:10.1080/00031305.1976.10479147 (inverse Gaussian draws).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_count, check_positive
from ..core.drive import Checkpoint, fingerprint, run_in_chunks
from ..core.types import Array, Float, Key
from .mixed_norm import check_problem

__all__ = [
    "Draws",
    "Info",
    "State",
    "draw_sources",
    "gram_blocks",
    "init",
    "inverse_gaussian",
    "loudness",
    "norms",
    "run",
    "step",
]

# Sweeps of all chains between looks at the clock and the checkpoint.
_CHUNK = 20
_HIGH = lax.Precision.HIGHEST


class State(NamedTuple):
    """One chain."""

    key: Key[Array, ""]
    source_var: Float[Array, "n"]  # tau


class Info(NamedTuple):
    """What one sweep tells."""

    source_var: Float[Array, "n"]  # tau that the sources were drawn with
    norm: Float[Array, "n"]  # |X_j|
    field_power: Float[Array, "n"]  # |G_j X_j|^2
    log_density: Float[Array, ""]  # of data and sources, constants left out


class Draws(NamedTuple):
    """Kept sweeps of all chains."""

    source_var: np.ndarray  # (n_chains, n_samples, n_sources)
    norm: np.ndarray  # (n_chains, n_samples, n_sources)
    is_loud: np.ndarray  # (n_chains, n_samples, n_sources) bool
    log_density: np.ndarray  # (n_chains, n_samples)


class Given(NamedTuple):
    """Data and prior."""

    data: Float[Array, "m n_times"]
    lead_field: Float[Array, "m n d"]
    gram: Float[Array, "n d d"]  # G_j' G_j
    rate: Float[Array, "n"]  # alpha w_j


def run(
    key,
    data,
    lead_field,
    alpha,
    weights=None,
    *,
    n_chains=4,
    n_warmup=200,
    n_samples=500,
    checkpoint=None,
    progress=lambda done: None,
):
    """Draw variances and sources.

    Parameters
    ----------
    key : PRNG key
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened; d at most 3.
    alpha : float
        Strength of the prior, in units of whitened data.
    weights : (n_sources,) array, optional
        Positive. Ones by default.
    n_chains, n_warmup, n_samples : int
        Chains start at draws of the prior; their first `n_warmup` sweeps are forgotten.
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
        On arrays that are not finite or of other shapes, on numbers that are not positive.
    """
    data, lead_field, weights = check_problem(data, lead_field, weights)
    alpha = check_positive("alpha", alpha, remedy="See mixed_norm.alpha_max.")
    n_chains = check_count("n_chains", n_chains)
    n_warmup = check_count("n_warmup", n_warmup, minimum=0)
    n_samples = check_count("n_samples", n_samples)
    dtype = jax.dtypes.canonicalize_dtype(np.asarray(lead_field).dtype)
    field = jnp.asarray(lead_field, dtype)
    gram = gram_blocks(field)
    given = Given(jnp.asarray(data, dtype), field, gram, jnp.asarray(alpha * weights, dtype))
    states = jax.vmap(init, (0, None))(jax.random.split(key, n_chains), given)
    identity = fingerprint((key, given), (n_chains, n_warmup, n_samples))
    limits = np.asarray(loudness(gram, data.shape[1]))
    shape = (n_chains, n_samples, field.shape[1])
    kept = Draws(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool), np.zeros(shape[:2]))

    def advance(state, start, stop):
        states, kept = state
        states, info = _sweeps(states, given, stop - start)
        if start >= n_warmup:
            rows = slice(start - n_warmup, stop - n_warmup)
            kept.source_var[:, rows] = info.source_var
            kept.norm[:, rows] = info.norm
            kept.is_loud[:, rows] = np.asarray(info.field_power) > limits
            kept.log_density[:, rows] = info.log_density
        return states, kept

    _, kept = run_in_chunks(
        advance,
        (states, kept),
        n_warmup + n_samples,
        Checkpoint(checkpoint, identity),
        chunk=_CHUNK,
        n_warmup=n_warmup,
        progress=progress,
    )
    return kept


def init(key, given: Given) -> State:
    """Draw variances from the prior."""
    d, n_times = given.lead_field.shape[2], given.data.shape[1]
    key, own = jax.random.split(key)
    shape = 0.5 * (d * n_times + 1)
    drawn = jax.random.gamma(own, shape, given.rate.shape, given.rate.dtype)
    return State(key, drawn / (0.5 * given.rate**2))


def step(state: State, given: Given) -> tuple[State, Info]:
    """Draw the sources given their variances, then the variances given the sources."""
    data, field, gram, rate = given
    key, key_sources, key_var = jax.random.split(state.key, 3)
    tau = state.source_var
    sources = draw_sources(key_sources, tau, data, field)
    norm, power = norms(sources, gram)
    predicted = jnp.einsum("mnd,ndt->mt", field, sources, precision=_HIGH)
    log_density = -0.5 * jnp.sum((data - predicted) ** 2) - jnp.sum(rate * norm)
    tiny = jnp.finfo(norm.dtype).tiny
    drawn = inverse_gaussian(key_var, rate / jnp.maximum(norm, tiny), rate**2)
    return State(key, 1 / drawn), Info(tau, norm, power, log_density)


def draw_sources(key, source_var, data, field):
    """Draw the sources of whitened data given their variances: (n, d, n_times).

    A draw of prior and noise is corrected by the posterior mean of what it leaves.
    """
    m, n, d = field.shape
    dtype = field.dtype
    key_prior, key_noise = jax.random.split(key)
    flat, var = field.reshape(m, n * d), jnp.repeat(source_var, d)
    cov = jnp.matmul(flat * var, flat.T, precision=_HIGH) + jnp.eye(m, dtype=dtype)
    drawn = jax.random.normal(key_prior, (n * d, data.shape[1]), dtype) * jnp.sqrt(var)[:, None]
    noise = jax.random.normal(key_noise, data.shape, dtype)
    rest = data - jnp.matmul(flat, drawn, precision=_HIGH) - noise
    solved = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(cov), True), rest)
    change = jnp.matmul(flat.T, solved, precision=_HIGH) * var[:, None]
    return (drawn + change).reshape(n, d, -1)


def norms(sources, gram):
    """|X_j| and |G_j X_j|^2 of sources: (n,) each."""
    power = jnp.einsum("nde,ndt,net->n", gram, sources, sources, precision=_HIGH)
    return jnp.sqrt(jnp.sum(sources**2, axis=(1, 2))), power


def gram_blocks(field):
    """G_j' G_j: (n, d, d)."""
    return jnp.einsum("mnd,mne->nde", field, field, precision=_HIGH)


@functools.partial(jax.jit, static_argnums=1)
def loudness(gram, n_times):
    """Power of a field above which a source is loud, rank(G_j) n_times: (n,)."""
    values = jnp.linalg.eigvalsh(gram)
    limit = 100 * jnp.finfo(gram.dtype).eps * values.max(axis=1, keepdims=True)
    return n_times * jnp.sum(values > limit, axis=1)


def inverse_gaussian(key, mean, shape):
    """Draws of inverse Gaussian laws with these means and shapes."""
    key_normal, key_side = jax.random.split(key)
    square = jax.random.normal(key_normal, mean.shape, mean.dtype) ** 2
    t = mean * square / (2 * shape)
    # The smaller root, without the cancellation of 1 + t - sqrt(t (t + 2)).
    below = mean / (1 + t + jnp.sqrt(t * (t + 2)))
    is_below = jax.random.uniform(key_side, mean.shape, mean.dtype) <= mean / (mean + below)
    return jnp.where(is_below, below, mean * (mean / below))


@functools.partial(jax.jit, static_argnums=2)
def _sweeps(states, given, n_sweeps):
    def chain(state):
        return lax.scan(lambda s, _: step(s, given), state, length=n_sweeps)

    return lax.map(chain, states)
