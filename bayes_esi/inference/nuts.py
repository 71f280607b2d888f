"""Hyper-parameters of Gaussian source models by the No-U-Turn sampler of NumPyro.

Sources are integrated out, so that the sampler moves in a handful of dimensions. Chains start at
draws around the largest evidence, with its curvature as their first mass matrix; see `hamiltonian`
for the chains themselves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.drive import progress_bar
from ..core.status import Status
from . import hamiltonian
from .evidence import SCALES

__all__ = ["Draws", "program", "run", "split_r_hat"]

MOST_R_HAT = 1.01  # Vehtari et al. 2021, doi:10.1214/20-BA1221
MOST_DIVERGENT = 0.01
_TARGET_ACCEPTANCE = 0.9
# A share or coefficient at the end of its range has no coordinate: start a little inside.
_MARGIN = 1e-3


class Draws(NamedTuple):
    """What the chains returned."""

    draws: dict  # name -> (n_chains, n_samples, ...)
    sample_stats: dict  # name -> (n_chains, n_samples)
    status: Status


def program(likelihood, known, laws):
    """NumPyro program of the hyper-parameters, the sources integrated out.

    Parameters
    ----------
    likelihood : SourceLikelihood
    known : dict of str to array
    laws : dict of str to numpyro distribution
        Of the unknown.
    """
    import numpyro

    theta = {
        name: numpyro.sample(name, law.to_event(len(law.batch_shape))) for name, law in laws.items()
    }
    numpyro.factor("data", likelihood.log_density(known | theta))


def run(key, likelihood, hyper, optimum, *, n_chains, n_warmup, n_samples, progress):
    """Draw the hyper-parameters.

    Parameters
    ----------
    key : PRNG key
    likelihood : SourceLikelihood
    hyper : Hyper
    optimum : Optimum
        Where to start.
    n_chains, n_warmup, n_samples : int
    progress : bool

    Returns
    -------
    Draws
    """
    from numpyro.distributions import biject_to

    dtype = likelihood.data.dtype
    laws = {name: hyper.unknown[name] for name in sorted(hyper.unknown)}
    known = {name: jnp.asarray(v, dtype) for name, v in hyper.known.items()}
    transforms = {name: biject_to(law.support) for name, law in laws.items()}
    key_start, key_run = jax.random.split(key)
    coordinates, variances = {}, {}
    for i, name in enumerate(laws):
        centre, std = _coordinates(name, laws[name], transforms[name], optimum)
        shape = (n_chains, *centre.shape)
        noise = jax.random.normal(jax.random.fold_in(key_start, i), shape, dtype)
        coordinates[name] = jnp.asarray(centre, dtype) + jnp.asarray(std, dtype) * noise
        variances[name] = jnp.asarray(std**2, dtype)
    with progress_bar(progress, "nuts") as update:
        info = hamiltonian.run(
            key_run,
            program,
            (likelihood, known, laws),
            coordinates,
            variances,
            n_warmup=n_warmup,
            n_samples=n_samples,
            target_acceptance=_TARGET_ACCEPTANCE,
            progress=update,
        )
    draws = {
        name: np.asarray(transforms[name](values), np.float64)
        for name, values in info.coordinates.items()
    }
    return Draws(draws, info.statistics(), _verdict(draws, info.diverging))


def split_r_hat(draws):
    """Split R-hat of (n_chains, n_samples, ...) draws; of those that never move, 1 or infinite."""
    n = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :n], draws[:, n : 2 * n]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    is_still = within == 0
    ratio = between / np.where(is_still, 1.0, within)
    still = np.where(between > 0, np.inf, 1.0)
    return np.where(is_still, still, np.sqrt((n - 1) / n + ratio))


def _coordinates(name, law, transform, optimum):
    """Optimum and deviation of an unknown in coordinates without constraints."""
    value, std = np.asarray(optimum.hyper[name]), np.asarray(optimum.std[name])
    ends = [value * np.exp(s * std) if name in SCALES else value + s * std for s in (-0.5, 0, 0.5)]
    low, high = (
        np.asarray(getattr(law.support, end, default), np.float64)
        for end, default in (("lower_bound", -np.inf), ("upper_bound", np.inf))
    )
    width = np.where(np.isfinite(high - low), high - low, 0.0)
    inside = [np.clip(end, low + _MARGIN * width, high - _MARGIN * width) for end in ends]
    below, centre, above = (np.asarray(transform.inv(end), np.float64) for end in inside)
    return centre, np.maximum(above - below, 1e-6)


def _verdict(draws, diverging):
    if not all(np.all(np.isfinite(values)) for values in draws.values()):
        return Status.NOT_FINITE
    worst = max(float(np.max(split_r_hat(values))) for values in draws.values())
    if worst > MOST_R_HAT:
        return Status.CHAINS_DISAGREE
    return Status.DIVERGENCES if np.mean(diverging) > MOST_DIVERGENT else Status.OK
