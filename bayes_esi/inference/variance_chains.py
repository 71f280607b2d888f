"""No-U-turn chains of the variances of sources, whose amplitudes are integrated out.

    y_t ~ N(0, s^2 I + sum_j g_j G_j G_j')

The unknown are either the variances themselves, `source_var`, under the gamma law that makes
sources group-Laplace, or those of a horseshoe,

    g_j = c^2 v_j / (c^2 + v_j),  v_j = (s overall_std local_std_j)^2,  local_std_j ~ C+(0, 1)

which shrinks most sources hard and strong ones hardly; none is stronger than c. The noise may be
unknown, p(s^2) ~ 1 / s^2; deviations in units of s keep the posterior proper where sources could
explain all data. A gradient needs S = s^2 I + sum_j g_j G_j G_j' only, and its Cholesky factor:
tr(G_j' dL/dS G_j) has all derivatives.

The sources are drawn afterwards, given each draw of the variances, to tell which are loud (see
`scale_mixture`). Neither law has zeros, so that no draw says which sources are active.

*What to expect.* Trajectories of a dozen gradients for the first law, of hundreds for the second;
a sweep of `scale_mixture` costs about one gradient. Chains of a horseshoe may stick where one
source stands for its neighbour, which R-hat tells.

Cost: 2 m^2 n d a gradient and chain, n sources of d components, m channels; memory O(m n d) a
chain.

References: Carvalho, Polson, Scott 2010, doi:10.1093/biomet/asq017 (horseshoe); Piironen, Vehtari
2017, doi:10.1214/17-EJS1337SI (c, and the law of the overall scale); van der Pas, Szabó, van der
Vaart 2016, arXiv:1607.01892 (its range where nothing is known).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import polygamma

from ..core.checks import check_count, check_positive
from ..core.status import Status
from ..core.types import Array, Float
from . import hamiltonian, scale_mixture
from .mixed_norm import check_problem
from .nuts import MOST_DIVERGENT

__all__ = [
    "Draws",
    "Given",
    "Prior",
    "group_laplace",
    "horseshoe",
    "log_likelihood",
    "program",
    "run",
]

_TARGET_ACCEPTANCE = 0.9
# Variance of the logarithm of a half-Cauchy variable, and of the log odds of a uniform one.
_HALF_CAUCHY, _LOGISTIC = np.pi**2 / 4, np.pi**2 / 3
# Chains do not start farther out in the tails of half-Cauchy laws, where nothing fits the data.
_FARTHEST = np.e
# Deviation of the logarithm of the noise variances that they start with.
_APART = 0.3
_HIGH = lax.Precision.HIGHEST


class Given(NamedTuple):
    """Data and what is known."""

    data: Float[Array, "m r"]  # Y Y' is theirs
    n_times: Float[Array, ""]
    field: Float[Array, "m n d"]
    noise_var: Float[Array, ""] | None  # None: unknown
    largest: Float[Array, ""] | None  # c^2, of the horseshoe


class Prior(NamedTuple):
    """Laws of what is unknown but the noise."""

    laws: dict  # site -> NumPyro law
    spreads: dict  # site -> variance of the coordinate without constraints
    largest: float | None  # c^2, of the horseshoe


class Draws(NamedTuple):
    """Kept draws of all chains."""

    source_var: np.ndarray  # (n_chains, n_samples, n_sources)
    noise_var: np.ndarray  # (n_chains, n_samples)
    overall_std: np.ndarray | None  # (n_chains, n_samples): s overall_std, of the horseshoe
    norm: np.ndarray  # (n_chains, n_samples, n_sources): |X_j| of a draw of the sources
    is_loud: np.ndarray  # (n_chains, n_samples, n_sources) bool
    log_density: np.ndarray  # (n_chains, n_samples): of coordinates without constraints
    sample_stats: dict  # name -> (n_chains, n_samples)
    status: Status  # DIVERGENCES, or OK of what is not told by comparing chains


def group_laplace(alpha, weights, n_values, dtype) -> Prior:
    """Law of variances whose sources are group-Laplace.

    Parameters
    ----------
    alpha : float
        Strength of the prior in units of whitened data.
    weights : (n_sources,) array
    n_values : int
        Components times samples of a source.
    dtype : dtype
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    shape = jnp.asarray(0.5 * (n_values + 1), dtype)
    rate = jnp.asarray(0.5 * (alpha * np.asarray(weights)) ** 2, dtype)
    law = dist.Gamma(shape, rate)
    return Prior({"source_var": law}, {"source_var": polygamma(1, shape)}, None)


def horseshoe(n_sources, visible, largest, probability, dtype) -> Prior:
    """Laws of local and overall deviations.

    Parameters
    ----------
    n_sources : int
    visible : float
        Deviation at which a source is told from noise of level 1.
    largest : float
        c, on the scale of the data.
    probability : float, optional
        Guess of the share of sources that are active, p: the overall deviation is half-Cauchy with
        scale `visible` p / (1 - p). None: log-uniform from `visible` / n_sources to `visible`.
    dtype : dtype
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    local = dist.HalfCauchy(jnp.ones(n_sources, dtype))
    if probability is None:
        # Of a single source too the deviation has a range.
        ends = np.log([visible / max(n_sources, 2), visible])
        name, overall, spread = (
            "log_overall_std",
            dist.Uniform(*jnp.asarray(ends, dtype)),
            _LOGISTIC,
        )
    else:
        scale = jnp.asarray(visible * probability / (1 - probability), dtype)
        name, overall, spread = "overall_std", dist.HalfCauchy(scale), _HALF_CAUCHY
    return Prior(
        {"local_std": local, name: overall}, {"local_std": _HALF_CAUCHY, name: spread}, largest**2
    )


def run(
    key,
    data,
    lead_field,
    prior,
    *,
    noise_var=1.0,
    n_chains=4,
    n_warmup=500,
    n_samples=500,
    progress=lambda done, **facts: None,
):
    """Draw variances, and sources given these.

    Parameters
    ----------
    key : PRNG key
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened.
    prior : Prior
        Of `group_laplace` or `horseshoe`.
    noise_var : float, optional
        None: unknown.
    n_chains, n_warmup, n_samples : int
        Steps of the warm-up adapt step size and mass matrix and are forgotten.
    progress : callable
        Called with the share of the steps done.

    Returns
    -------
    Draws

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, on numbers that are not positive.
    """
    data, lead_field, _ = check_problem(data, lead_field, None)
    counts = {"n_chains": n_chains, "n_warmup": n_warmup, "n_samples": n_samples}
    n_chains, n_warmup, n_samples = (check_count(*item) for item in counts.items())
    dtype = jax.dtypes.canonicalize_dtype(np.asarray(lead_field).dtype)
    if noise_var is not None:
        noise_var = jnp.asarray(check_positive("noise_var", noise_var), dtype)
    scores, values, _ = np.linalg.svd(np.asarray(data, np.float64), full_matrices=False)
    given = Given(
        jnp.asarray(scores * values, dtype),
        jnp.asarray(data.shape[1], dtype),
        jnp.asarray(lead_field, dtype),
        noise_var,
        None if prior.largest is None else jnp.asarray(prior.largest, dtype),
    )
    key_start, key_run, key_sources = jax.random.split(key, 3)
    info = hamiltonian.run(
        key_run,
        program,
        (given, prior.laws),
        *_starts(key_start, prior, given, n_chains),
        n_warmup=n_warmup,
        n_samples=n_samples,
        target_acceptance=_TARGET_ACCEPTANCE,
        progress=progress,
    )
    drawn = {
        name: np.asarray(dist.biject_to(law.support)(info.coordinates[name]))
        for name, law in prior.laws.items()
    }
    if noise_var is None:
        noise_var = np.exp(info.coordinates["log_noise_var"])
    noise_var = np.broadcast_to(noise_var, (n_chains, n_samples))
    source_var = np.asarray(_source_var(drawn, noise_var, given))
    keys = jax.random.split(key_sources, (n_chains, n_samples))
    norm, is_loud = _sources(keys, source_var, noise_var, jnp.asarray(data, dtype), given.field)
    overall = _overall_std(drawn)
    return Draws(
        source_var.astype(np.float64),
        noise_var.astype(np.float64),
        None if overall is None else np.sqrt(noise_var) * overall,
        np.asarray(norm, np.float64),
        np.asarray(is_loud),
        -np.asarray(info.potential_energy, np.float64),
        info.statistics(),
        Status.DIVERGENCES if np.mean(info.diverging) > MOST_DIVERGENT else Status.OK,
    )


def program(given: Given, laws):
    """NumPyro program of variances, the sources integrated out.

    Parameters
    ----------
    given : Given
    laws : dict of str to NumPyro law
    """
    drawn = {
        name: numpyro.sample(name, law.to_event(len(law.batch_shape))) for name, law in laws.items()
    }
    noise_var = given.noise_var
    if noise_var is None:
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        noise_var = jnp.exp(numpyro.sample("log_noise_var", flat))
    source_var = _source_var(drawn, noise_var, given)
    numpyro.factor("data", log_likelihood(source_var, noise_var, given))


def log_likelihood(source_var, noise_var, given: Given):
    """Log density of the data given variances, without its constant."""
    m, n, d = given.field.shape
    flat = given.field.reshape(m, n * d)
    scaled = flat * jnp.repeat(source_var, d)
    cov = jnp.matmul(scaled, flat.T, precision=_HIGH) + noise_var * jnp.eye(m, dtype=flat.dtype)
    chol = jnp.linalg.cholesky(cov)
    half = jax.scipy.linalg.solve_triangular(chol, given.data, lower=True)
    return -given.n_times * jnp.sum(jnp.log(jnp.diagonal(chol))) - 0.5 * jnp.sum(half**2)


def _source_var(drawn, noise_var, given):
    """Variances of sources from what was drawn: (..., n_sources)."""
    if "source_var" in drawn:
        return drawn["source_var"]
    square = noise_var * _overall_std(drawn) ** 2
    square = square[..., None] * drawn["local_std"] ** 2
    return given.largest * square / (given.largest + square)


def _overall_std(drawn):
    """In units of the noise level; None of a law that has none."""
    if "log_overall_std" in drawn:
        return jnp.exp(drawn["log_overall_std"])
    return drawn.get("overall_std")


def _starts(key, prior, given, n_chains):
    """Coordinates without constraints, drawn from the prior, and guesses of their variances."""
    dtype = given.field.dtype
    coordinates, variances = {}, {}
    for i, (name, law) in enumerate(prior.laws.items()):
        drawn = law.sample(jax.random.fold_in(key, i), (n_chains,))
        if isinstance(law, dist.HalfCauchy):
            drawn = jnp.clip(drawn, law.scale / _FARTHEST, law.scale * _FARTHEST)
        coordinates[name] = dist.biject_to(law.support).inv(drawn)
        variances[name] = jnp.full(law.batch_shape, prior.spreads[name], dtype)
    if given.noise_var is None:
        # As if all data were noise.
        n_values = len(given.data) * given.n_times
        level = jnp.log(jnp.sum(given.data**2) / n_values)
        noise = jax.random.normal(jax.random.fold_in(key, len(prior.laws)), (n_chains,), dtype)
        coordinates["log_noise_var"] = level + _APART * noise
        variances["log_noise_var"] = 2 / n_values
    return coordinates, variances


@jax.jit
def _sources(keys, source_var, noise_var, data, field):
    """|X_j| of one draw of the sources for each of the variances, and which of them are loud."""
    gram = scale_mixture.gram_blocks(field)
    limits = scale_mixture.loudness(gram, data.shape[1])

    def one(args):
        key, source_var, noise_var = args
        level = jnp.sqrt(noise_var)
        drawn = scale_mixture.draw_sources(key, source_var / noise_var, data / level, field)
        norm, power = scale_mixture.norms(drawn, gram)
        return level * norm, power > limits

    return lax.map(functools.partial(lax.map, one), (keys, source_var, noise_var))
