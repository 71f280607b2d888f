"""Multiple sparse priors: an unknown variance for each of many patches; their free energy.

    y_t = sum_i F_i u_it + e_t,    u_it ~ N(0, e^{h_i} I_d),  e_t ~ N(0, e^{h_0} I)
    h ~ N(prior_mean, prior_var I),    x_j = sum_i q_ji u_i,    F_i = sum_j q_ji G_j

q_i is the pattern of patch i over sources. Scales are relative: h_i = 0 is a patch that explains
all of the data's power, h_0 = 0 noise that does.

    J(h) = log N(Y; 0, Sigma) + log N(h),    Sigma = e^{h_0} I + sum_i e^{h_i} F_i F_i'
    free energy = J(h) + 1/2 log |2 pi H^{-1}|,    H_ij = T/2 e^{h_i + h_j} |F_i' S F_j|^2 + Pi

at the h of largest J, S = Sigma^{-1}: Laplace's method in h with expected curvatures, the number to
compare sets of patches with.

*Search.* Fisher scoring, with steps halved until J rises. The wide prior, N(-32, 256), costs a
patch that the data want next to nothing, and takes the others to where their variance no longer
matters (automatic relevance determination): they neither add to the free energy nor take from it,
and count as silent below e^{-16}.

Cost O(m (m + k d)^2 + k^3) a step for k patches, m sensors.

References: Friston et al. 2008, doi:10.1016/j.neuroimage.2007.09.048; Wipf, Nagarajan 2009,
doi:10.1016/j.neuroimage.2008.02.059 (its place among sparse Bayesian methods).
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from ..core.checks import check_array, check_choice, check_count, check_positive

__all__ = ["MultiplePriors", "State", "init", "run", "step"]

# Log variances, relative to the data, below which a patch is silent, and above which none goes.
_SILENT, _LARGEST = -16.0, 4.0
# Longest step in a log variance, and the halvings that are tried.
_LONGEST, _HALVINGS = 4.0, 12


class MultiplePriors(NamedTuple):
    """Variances of patches at a maximum of their posterior density."""

    variances: np.ndarray  # (k,), of unit weight of each patch; zero for silent ones
    noise_var: float
    free_energy: float  # of the whitened data, in nats
    densities: np.ndarray  # J after each step: never falling
    gradient: float  # largest slope of J in h at the end
    n_steps: int
    is_converged: bool


class State(NamedTuple):
    """Where the search stands."""

    h: np.ndarray  # (1 + k,): of the noise, then of the patches
    density: float  # J
    slope: np.ndarray  # (1 + k,)
    curvature: np.ndarray  # (1 + k, 1 + k): H


class Task(NamedTuple):
    """Data of unit power, and fields of patches that would explain it alone."""

    data: np.ndarray  # (m, n_times)
    fields: np.ndarray  # (m, k, d)
    is_learnt: bool  # whether the noise is unknown
    prior_mean: float
    prior_var: float


def run(
    data,
    fields,
    *,
    noise="known",
    noise_std=1.0,
    prior_mean=-32.0,
    prior_var=256.0,
    tol=1e-3,
    max_steps=128,
):
    """Find the variances of patches.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    fields : (m, k, d) array
        F_i, whitened, of any number of components.
    noise : {"known", "scalar"}
        `noise_std` squared, or unknown.
    noise_std : float
        Known, or where the search starts.
    prior_mean, prior_var : float
        Of the log variances, relative to those of patches that explain all of the data.
    tol : float
        Gain in nats of a step at which to stop.
    max_steps : int

    Returns
    -------
    MultiplePriors

    Raises
    ------
    ValueError
        On arguments of another shape or range.
    """
    fields = check_array("fields", fields, ndim=3).astype(np.float64)
    m = len(fields)
    data = check_array("data", data, shape=(m, "n_times")).astype(np.float64)
    check_choice("noise", noise, ("known", "scalar"))
    noise_std = check_positive("noise_std", noise_std)
    prior_var = check_positive("prior_var", prior_var)
    tol, max_steps = check_positive("tol", tol), check_count("max_steps", max_steps)
    power = np.mean(data**2)
    if not power > 0:
        raise ValueError("data are zero: there is nothing to explain.")
    gain = np.sum(fields**2, axis=(0, 2)) / m
    # A patch that no sensor sees stays at its prior.
    scale = np.sqrt(np.where(gain > 1e-20 * gain.max(), gain, np.inf))
    task = Task(
        data / np.sqrt(power),
        fields / scale[:, None],
        noise == "scalar",
        float(prior_mean),
        prior_var,
    )
    state = init(task, 2 * np.log(noise_std) - np.log(power))
    densities, is_converged = [state.density], False
    while len(densities) <= max_steps and not is_converged:
        new = step(state, task)
        is_converged = new.density - state.density < tol
        state = new
        densities.append(state.density)
    rows = _free(task)
    log_det = np.linalg.slogdet(state.curvature[rows, rows] / (2 * np.pi))[1]
    is_active = state.h[1:] > _SILENT
    constant = 0.5 * data.size * np.log(power)
    return MultiplePriors(
        np.where(is_active, power * np.exp(state.h[1:]), 0.0) / scale**2,
        float(power * np.exp(state.h[0])),
        float(state.density - 0.5 * log_det - constant),
        np.array(densities) - constant,
        float(np.abs(state.slope[rows]).max(initial=0.0)),
        len(densities) - 1,
        bool(is_converged),
    )


def init(task, log_noise) -> State:
    """All patches share what the data hold."""
    k = task.fields.shape[1]
    h = np.full(1 + k, -np.log(k))
    h[0] = min(log_noise, -1.0) if task.is_learnt else log_noise
    return _look(task, h)


def step(state, task) -> State:
    """One step of Fisher scoring."""
    rows = _free(task)
    move = np.zeros_like(state.h)
    # H is scaled to a unit diagonal: curvatures differ by many orders of magnitude.
    root = np.sqrt(np.diag(state.curvature)[rows])
    system = state.curvature[rows, rows] / np.outer(root, root)
    move[rows] = np.linalg.solve(system, state.slope[rows] / root) / root
    move = np.clip(move, -_LONGEST, _LONGEST)
    for halving in range(_HALVINGS):
        new = _look(task, np.minimum(state.h + move / 2**halving, _LARGEST))
        if new.density >= state.density:
            return new
    return state


def _look(task, h):
    """J, its slope and its expected curvature."""
    data, fields, is_learnt, mean, var = task
    m, n_times = data.shape
    k, d = fields.shape[1:]
    columns = fields.reshape(m, k * d) * np.repeat(np.exp(0.5 * h[1:]), d)
    cov = np.exp(h[0]) * np.eye(m) + columns @ columns.T
    chol = np.linalg.cholesky(cov)
    whole = np.concatenate([np.exp(0.5 * h[0]) * np.eye(m), columns], axis=1)
    whole = solve_triangular(chol, whole, lower=True)
    half = solve_triangular(chol, data, lower=True)
    log_det = 2 * np.sum(np.log(np.diag(chol)))
    log_likelihood = -0.5 * (n_times * (log_det + m * np.log(2 * np.pi)) + np.sum(half**2))
    own = h[_free(task)] - mean
    log_prior = -0.5 * (np.sum(own**2) / var + own.size * np.log(2 * np.pi * var))

    starts = np.r_[0, m + d * np.arange(k)]
    seen = np.add.reduceat(np.sum((whole.T @ half) ** 2, axis=1), starts)
    sizes = np.add.reduceat(np.sum(whole**2, axis=0), starts)
    squares = (whole.T @ whole) ** 2
    curvature = np.add.reduceat(np.add.reduceat(squares, starts, axis=0), starts, axis=1)
    is_free = np.r_[float(is_learnt), np.ones(k)]
    return State(
        h,
        float(log_likelihood + log_prior),
        0.5 * (seen - n_times * sizes) - is_free * (h - mean) / var,
        0.5 * n_times * curvature + np.diag(is_free) / var,
    )


def _free(task):
    """Unknown log variances: those of patches, and of the noise where it is learnt."""
    return slice(0 if task.is_learnt else 1, None)
