"""Maximum entropy on the mean: parcels that are silent or Gaussian, and the law nearest to that.

Reference law of parcel k: (1 - a_k) delta_0 + a_k N(mu_k, S_k). Among the laws whose mean explains
the data up to noise N(0, noise_var I), the one of least relative entropy has the mean

    x_k = p_k (mu_k + S_k G_k' xi),     p_k = a_k / (a_k + (1 - a_k) exp(-F_k)),
    F_k = xi' B_k xi / 2 + xi' m_k,     B_k = G_k S_k G_k',  m_k = G_k mu_k,

at the maximum over xi, of the length of the sensors, of the concave dual

    D = xi' y - noise_var |xi|^2 / 2 - sum_k log(1 - a_k + a_k exp F_k).

Newton's method: the curvature is noise_var I + sum_k p_k B_k + p_k (1 - p_k) g_k g_k' with
g_k = B_k xi + m_k. Along a step F_k is a parabola, so that D at many lengths of it costs next to
nothing and the best is taken. With all a_k = 1 and mu = 0 it is the minimum norm with prior S, in
one step. Else x is not homogeneous in the data, and not the posterior mean under the reference law
as a prior, nor p_k a posterior probability.

*Certificate.* |grad D| / |y|. D is short of its maximum by |grad D|^2 / (2 noise_var) at most.

Cost O(n_parcels m^2 + m^3) a step and sample; memory n_parcels m^2.

References: Amblard, Lapalme, Lina 2004, doi:10.1109/TBME.2003.820999; Chowdhury et al. 2013,
doi:10.1371/journal.pone.0055969.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.checks import check_array, check_count, check_positive
from ..core.types import Array, Bool, Float, Int

__all__ = ["MaximumEntropy", "dual", "reference_law", "run", "score"]

# Samples that are solved side by side, and halvings of a step that are tried.
_BATCH = 32
_N_HALVED = 14
# Twice the gain that Newton's step promises below which it is taken whole.
_NEAR = 1e-6
# Shares of parcels by default: none is certain or impossible.
_LEAST, _MOST = 0.01, 0.99
_HIGH = lax.Precision.HIGHEST


class MaximumEntropy(NamedTuple):
    """Mean of the law nearest to the reference that explains the data."""

    mean: Float[Array, "n_sources d n_times"]
    active: Float[Array, "n_parcels n_times"]  # p_k
    dual: Float[Array, "m n_times"]  # xi
    value: Float[Array, "n_times"]  # D
    residual: Float[Array, "n_times"]
    n_steps: Int[Array, "n_times"]
    is_converged: Bool[Array, "n_times"]


class Parcels(NamedTuple):
    """The reference law as the sensors see it."""

    gram: Float[Array, "n_parcels m m"]  # B
    offset: Float[Array, "n_parcels m"]  # m
    log_on: Float[Array, "n_parcels"]  # log a
    log_off: Float[Array, "n_parcels"]


def run(
    data,
    lead_field,
    labels,
    *,
    probability=None,
    source_var=None,
    source_mean=None,
    noise_var=1.0,
    tol=1e-8,
    max_steps=100,
):
    """Maximise the dual for each sample.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened. Smoothness within parcels: put G_k W_k in the place of G_k.
    labels : (n_sources,) int array
        Parcel of each source, from 0 on; sources at -1 are silent.
    probability : (n_parcels,) array, optional
        a_k in [0, 1]. By default as in `reference_law`.
    source_var : (n_sources,) array, optional
        Diagonal of S, the same for the components of a source. By default as in `reference_law`.
    source_mean : (n_sources, d) array, optional
        mu; zero by default.
    noise_var : float
    tol : float
        Residual at which to stop. Single precision stops at 1e-5 at best.
    max_steps : int

    Returns
    -------
    MaximumEntropy

    Raises
    ------
    ValueError
        On arguments of another shape or range.
    """
    lead_field = check_array("lead_field", lead_field, ndim=3)
    m, n_sources, d = lead_field.shape
    data = check_array("data", data, shape=(m, "n_times"))
    labels, n_parcels = _check_labels(labels, n_sources)
    noise_var = check_positive("noise_var", noise_var)
    tol, max_steps = check_positive("tol", tol), check_count("max_steps", max_steps)
    if probability is None or source_var is None:
        law = reference_law(data, lead_field, labels, noise_var)
        probability = law[0] if probability is None else probability
        source_var = law[1] if source_var is None else source_var
    probability = check_array("probability", probability, shape=(n_parcels,))
    if np.any((probability < 0) | (probability > 1)):
        raise ValueError("probability must lie between 0 and 1.")
    source_var = check_array("source_var", source_var, shape=(n_sources,))
    if np.any(source_var < 0):
        raise ValueError("source_var must not be negative.")
    if source_mean is None:
        source_mean = np.zeros((n_sources, d))
    source_mean = check_array("source_mean", source_mean, shape=(n_sources, d))
    gram, offset = np.zeros((n_parcels, m, m)), np.zeros((n_parcels, m))
    for k in range(n_parcels):
        own = labels == k
        flat = np.asarray(lead_field[:, own], np.float64).reshape(m, -1)
        gram[k] = (flat * np.repeat(source_var[own], d)) @ flat.T
        offset[k] = flat @ source_mean[own].ravel()
    with np.errstate(divide="ignore"):
        parcels = Parcels(gram, offset, np.log(probability), np.log1p(-probability))
    dtype = jax.dtypes.canonicalize_dtype(lead_field.dtype)
    tol = max(tol, 100 * float(np.finfo(dtype).eps))
    solved = _run(
        data.astype(dtype),
        Parcels(*(a.astype(dtype) for a in parcels)),
        np.asarray(noise_var, dtype),
        np.asarray(tol, dtype),
        np.int32(max_steps),
    )
    xi, active, value, residual, n_steps = solved
    share = jnp.where((labels >= 0)[:, None], active.T[labels], 0)
    mean = _mean(
        lead_field.astype(dtype),
        xi,
        share,
        source_var.astype(dtype),
        source_mean.astype(dtype),
    )
    return MaximumEntropy(mean, active.T, xi.T, value, residual, n_steps, residual <= tol)


def reference_law(data, lead_field, labels, noise_var=1.0):
    """Probabilities and variances of parcels from a minimum norm of the same data.

    Parcels are likely in proportion to the median size, at the sensors, of the estimate at their
    sources; variances to its mean square there, and such that the expected power of the reference
    law and the noise is that of the data.

    Parameters
    ----------
    data : (m, n_times) array
    lead_field : (m, n_sources, d) array
    labels : (n_sources,) int array
    noise_var : float

    Returns
    -------
    probability : (n_parcels,) array
    source_var : (n_sources,) array
    """
    labels, n_parcels = _check_labels(labels, lead_field.shape[1])
    n_sources = len(labels)
    estimate, _, signal = _minimum_norm(data, lead_field, noise_var)
    size = np.sqrt(np.mean(estimate**2, axis=(1, 2)))
    seen = size * np.linalg.norm(lead_field, axis=(0, 2))
    probability, source_var = np.zeros(n_parcels), np.zeros(n_sources)
    for k in range(n_parcels):
        own = labels == k
        probability[k] = np.median(seen[own])
        source_var[own] = np.mean(size[own] ** 2)
    largest = probability.max()
    probability = np.clip(probability / (largest if largest > 0 else 1), _LEAST, _MOST)
    expected = np.where(labels >= 0, probability[labels], 0) * source_var
    expected = np.sum(expected * np.sum(np.square(lead_field, dtype=np.float64), axis=(0, 2)))
    return probability, source_var * (signal / expected if expected > 0 else 1)


def score(data, lead_field, noise_var=1.0):
    """Size of the standardised minimum norm of each source, from which parcels grow.

    Parameters
    ----------
    data : (m, n_times) array
    lead_field : (m, n_sources, d) array
    noise_var : float

    Returns
    -------
    (n_sources,) array
        sLORETA: a single source without noise has the highest.
    """
    data = check_array("data", data, shape=(len(lead_field), "n_times"))
    estimate, resolution, _ = _minimum_norm(data, lead_field, noise_var)
    floor = np.finfo(float).eps * np.trace(resolution, axis1=1, axis2=2)
    resolution = resolution + floor[:, None, None] * np.eye(resolution.shape[1])
    standard = np.linalg.solve(resolution, estimate)
    return np.sqrt(np.mean(np.sum(estimate * standard, axis=1), axis=1))


def _minimum_norm(data, lead_field, noise_var):
    """Estimate, blocks of its resolution, and power of the signal, by the power of the data."""
    m, n_sources, d = lead_field.shape
    flat = np.asarray(lead_field, np.float64).reshape(m, -1)
    gram = flat @ flat.T
    power = np.mean(np.sum(np.square(data, dtype=np.float64), axis=0))
    signal = max(power - m * noise_var, 0.1 * m * noise_var)
    cov = gram * (signal / np.trace(gram)) + noise_var * np.eye(m)
    estimate = (flat.T @ np.linalg.solve(cov, data)).reshape(n_sources, d, -1)
    white = np.linalg.solve(np.linalg.cholesky(cov), flat).reshape(m, n_sources, d)
    return estimate, np.einsum("mnd,mne->nde", white, white), signal


def dual(xi: Float[Array, "m"], data: Float[Array, "m"], parcels: Parcels, noise_var):
    """D at one xi."""
    image = jnp.matmul(parcels.gram, xi, precision=_HIGH)
    exponents = image @ xi / 2 + parcels.offset @ xi
    logs = jnp.logaddexp(parcels.log_off, parcels.log_on + exponents)
    return xi @ data - noise_var * (xi @ xi) / 2 - jnp.sum(logs)


@jax.jit
def _run(data, parcels, noise_var, tol, max_steps):
    """For each sample: xi (n_times, m), p (n_times, n_parcels), D, residual, steps."""
    gram, offset, log_on, log_off = parcels
    m = gram.shape[1]
    steps = jnp.concatenate([jnp.zeros(1), 2.0 ** -jnp.arange(_N_HALVED)]).astype(gram.dtype)

    def one(data):
        length = jnp.linalg.norm(data)
        length = jnp.where(length > 0, length, 1)

        def state(xi, image, n_steps):
            pull = image + offset
            exponents = image @ xi / 2 + offset @ xi
            logs = jnp.logaddexp(log_off, log_on + exponents)
            active = jnp.exp(log_on + exponents - logs)
            gradient = data - noise_var * xi - active @ pull
            return xi, image, active, gradient, jnp.linalg.norm(gradient) / length, n_steps

        def step(given):
            xi, image, active, gradient, _, n_steps = given
            pull = image + offset
            weighted = (active * (1 - active))[:, None] * pull
            curvature = jnp.tensordot(active, gram, 1, precision=_HIGH)
            curvature = curvature + jnp.matmul(weighted.T, pull, precision=_HIGH)
            curvature = curvature + noise_var * jnp.eye(m, dtype=xi.dtype)
            chol = jnp.linalg.cholesky(curvature)
            move = jax.scipy.linalg.cho_solve((chol, True), gradient)
            turn = jnp.matmul(gram, move, precision=_HIGH)
            # F along the step, from where it is; logs against where they are, so that nothing
            # large cancels.
            slope, bend = pull @ move, turn @ move
            change = steps[:, None] * slope + steps[:, None] ** 2 * bend / 2
            here = image @ xi / 2 + offset @ xi
            logs = jnp.logaddexp(log_off, log_on + here + change)
            gain = steps * (move @ data - noise_var * (move @ xi))
            gain = gain - noise_var * steps**2 * (move @ move) / 2
            gain = gain - jnp.sum(logs - logs[0], axis=1)
            # Near the maximum gains are rounding, and the full step is right.
            size = steps[jnp.where(gradient @ move <= _NEAR, 1, jnp.argmax(gain))]
            return state(xi + size * move, image + size * turn, n_steps + 1)

        nothing = jnp.zeros_like(data)
        start = state(nothing, jnp.zeros_like(offset), jnp.zeros((), jnp.int32))
        end = lax.while_loop(lambda s: (s[4] > tol) & (s[5] < max_steps), step, start)
        xi, _, active, _, residual, n_steps = end
        return xi, active, dual(xi, data, parcels, noise_var), residual, n_steps

    return lax.map(one, data.T, batch_size=_BATCH)


@jax.jit
def _mean(lead_field, xi, share, source_var, source_mean):
    seen = jnp.tensordot(lead_field, xi, ((0,), (1,)), precision=_HIGH)
    return share[:, None] * (source_mean[:, :, None] + source_var[:, None, None] * seen)


def _check_labels(labels, n_sources):
    labels = np.asarray(labels)
    if labels.shape != (n_sources,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape ({n_sources},), got {labels.dtype} {labels.shape}."
        )
    present = np.unique(labels[labels >= 0])
    if present.size == 0 or present.size != present[-1] + 1 or labels.min() < -1:
        raise ValueError(
            "labels must be 0, 1, ... without gaps, and -1 for sources in no parcel; got "
            f"{np.unique(labels)[:10]}."
        )
    return labels.astype(np.int32), int(present.size)
