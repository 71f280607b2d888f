"""A fixed number of dipoles at continuous positions: No-U-Turn sampling off the grid.

    p(x, scales | data)  for the positions x of k dipoles; the law: `off_grid_program`

Chains start at draws of a sampler on the grid, which has found the modes: NUTS does not find them,
it explores one. Dipoles have no names in the model. Chains start with the same names, and at the
end the dipoles of each draw are matched to where the first chain started.

Cost O(2^depth) gradients of the program for each draw, usually 3 to 7.

References: Hoffman, Gelman 2014, Journal of Machine Learning Research 15:1593 (NUTS);
Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..core.checks import check_array, check_count, check_fraction
from ..core.drive import progress_bar
from . import hamiltonian, off_grid_start
from .off_grid_program import MM, Design, data_law, numpyro_program, prepare, program

__all__ = ["Design", "Draws", "numpyro_program", "prepare", "program", "run"]


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Draws of all chains; `bayes_esi.posterior.off_grid` makes a posterior of them.

    Attributes
    ----------
    pos : (n_chains, n_draws, n_dipoles, 3)
        In m; dipoles keep their place in the list.
    moment_std : (n_chains, n_draws)
        In A·m.
    noise_std : (n_chains, n_draws, n_groups)
        Relative to the noise covariance.
    log_likelihood : (n_chains, n_draws)
        In the units of the data, moments integrated out.
    diverging : (n_chains, n_draws) bool
    start : (n_chains, n_dipoles, 3)
        Where the chains started, in m.
    operator : jax.tree_util.Partial
    sample_stats : dict of (n_chains, n_draws) arrays
        `n_steps`, `acceptance_rate`, `step_size` and `energy` of the trajectories.
    """

    pos: np.ndarray
    moment_std: np.ndarray
    noise_std: np.ndarray
    log_likelihood: np.ndarray
    diverging: np.ndarray
    start: np.ndarray
    operator: Partial
    sample_stats: dict


class State(NamedTuple):
    """Where chains start, in coordinates without constraints, and how far they reach."""

    coordinates: dict  # of (n_chains, ...) arrays by site
    variances: dict  # of the same shapes without chains


def run(
    key,
    model,
    problem,
    start,
    operator=None,
    *,
    n_dipoles=None,
    n_warmup=500,
    n_samples=1000,
    n_chains=4,
    target_acceptance=0.9,
    progress=False,
):
    """Sample positions and scales by NUTS.

    Parameters
    ----------
    key : PRNG key
    model : StaticDipoles
        Its law of the number of dipoles has no part.
    problem : Problem
    start : DipolePosterior or (n_chains, n_dipoles, 3) array
        Draws on the grid with `n_dipoles` dipoles, of which each chain takes one; or positions in
        m. One set (n_dipoles, 3) serves all chains.
    operator : callable, optional
        As in `prepare`.
    n_dipoles : int, optional
        By default the number of `start`: of a posterior, the most probable one above zero.
    n_warmup, n_samples, n_chains : int
        Steps to adapt, draws of each chain, and chains, which run side by side.
    target_acceptance : float
        Larger values take smaller steps.
    progress : bool

    Returns
    -------
    Draws

    Raises
    ------
    ValueError
        If the start has no set of that many dipoles, or positions are of another shape.
    """
    counts = {"n_warmup": n_warmup, "n_samples": n_samples, "n_chains": n_chains}
    n_warmup, n_samples, n_chains = (check_count(*item) for item in counts.items())
    target_acceptance = check_fraction("target_acceptance", target_acceptance)
    key_start, key_run = jax.random.split(key)
    seed = int(jax.random.randint(key_start, (), 0, 2**31 - 1))
    if hasattr(start, "draws"):
        sets = off_grid_start.from_posterior(start, n_dipoles)
    else:
        shape = (None, n_dipoles, 3) if np.ndim(start) == 3 else (n_dipoles, 3)
        sets = off_grid_start.from_positions(check_array("start", start, shape=shape), problem)
    n_dipoles = sets.pos.shape[1]
    design = prepare(model, problem, n_dipoles, operator)
    chosen, state = _init(seed, design, sets, n_chains)
    with progress_bar(progress, "off the grid") as update:
        info = hamiltonian.run(
            key_run,
            program,
            (design,),
            state.coordinates,
            state.variances,
            n_warmup=n_warmup,
            n_samples=n_samples,
            target_acceptance=target_acceptance,
            progress=update,
        )
    return _collect(design, info, sets.pos[chosen], problem.log_jacobian)


def _init(seed, design, sets, n_chains):
    """Choose a set for each chain and write it in coordinates without constraints."""
    rng = np.random.default_rng(seed)
    n_sets = len(sets.pos)
    if n_sets == n_chains and sets.moment_std is None:
        chosen = np.arange(n_chains)
    else:
        chosen = rng.choice(n_sets, n_chains, p=sets.weights, replace=n_sets < n_chains)
    dtype = design.data.dtype
    # Sources of a grid are few: chains start apart within the cells that they stand for.
    std = np.sqrt(sets.cell_variance[chosen])[..., None]
    pos = sets.pos[chosen] + std * rng.standard_normal((*std.shape[:2], 3))
    coordinates = {"pos_mm": jnp.asarray(MM * pos, dtype)}
    variance = sets.pos.var(axis=0) + sets.cell_variance.mean(axis=0)[:, None]
    variances = {"pos_mm": jnp.asarray(MM**2 * variance, dtype)}
    for name in ("moment_std", "noise_std"):
        law, given = getattr(design, name), getattr(sets, name)
        if not hasattr(law, "log_prob"):
            continue
        to_line = _bijection(law.support).inv
        value = np.asarray(to_line(jnp.median(law.sample(jax.random.key(seed), (1001,)), axis=0)))
        if given is None:
            value = np.broadcast_to(value, (n_sets, *value.shape))
        else:
            # Scales of another model may lie outside of the law of this one.
            scales = np.asarray(to_line(jnp.asarray(given, dtype)))
            value = np.where(np.isfinite(scales), scales, value)
        coordinates[name] = jnp.asarray(value[chosen], dtype)
        variance = value.var(axis=0) + off_grid_start.LEAST_SCALE_VARIANCE
        variances[name] = jnp.asarray(variance, dtype)
    return chosen, State(coordinates, variances)


def _bijection(support):
    from numpyro.distributions import biject_to

    return biject_to(support)


def _collect(design, info, start, log_jacobian):
    """Give the draws their units and names."""
    pos = np.asarray(info.coordinates["pos_mm"], np.float64) / MM
    n_chains, n_draws, n_dipoles = pos.shape[:3]
    order = off_grid_start.matching_order(pos.reshape(-1, n_dipoles, 3), start[0])
    pos = np.take_along_axis(pos, order.reshape(n_chains, n_draws, n_dipoles, 1), axis=2)
    scales = {}
    for name in ("moment_std", "noise_std"):
        law = getattr(design, name)
        if name in info.coordinates:
            scales[name] = _bijection(law.support)(info.coordinates[name])
        else:
            scales[name] = jnp.broadcast_to(law, (n_chains, n_draws, *jnp.shape(law)))
    value = _log_likelihoods(design, jnp.asarray(pos, design.data.dtype), scales)
    return Draws(
        pos=pos,
        moment_std=np.asarray(scales["moment_std"], np.float64),
        noise_std=np.asarray(scales["noise_std"], np.float64),
        log_likelihood=np.asarray(value, np.float64) + log_jacobian,
        diverging=info.diverging,
        start=start,
        operator=design.operator,
        sample_stats={
            name: getattr(info, name)
            for name in ("n_steps", "acceptance_rate", "step_size", "energy")
        },
    )


@jax.jit
def _log_likelihoods(design, pos, scales):
    def one(args):
        pos, scales = args
        return data_law(design, pos, **scales).log_prob(design.data)

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (pos, scales))
    return jax.lax.map(one, flat).reshape(pos.shape[:2])
