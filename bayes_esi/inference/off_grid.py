"""A fixed number of dipoles at continuous positions: No-U-Turn sampling off the grid.

    x_j ~ sum_i w_i N(s_i, b_i^2 I),    b_i = 0.6 h_i        positions of k dipoles
    moment_std, noise_std: the priors of the model
    data | x, scales: `DipoleData`, the moments integrated out

The law of positions is the law of the grid, blurred: w_i is the prior probability of source i
at s_i, and h_i the distance to its neighbours. On a cubic grid that adds up to a density which is
constant to 0.5 % within, and falls off smoothly over half a spacing at the rim: nothing that
the sampler could hit. A uniform law with walls would make every trajectory that meets one
diverge, and divergences could no longer tell of anything else. On a surface it is a layer
around it.

Positions are sampled in mm and scales on the line that NumPyro maps to their support, so that all
are of order one. Chains start at draws of a sampler on the grid, which has found the modes;
NUTS does not find them, it explores one. Dipoles have no names in the model: chains start with the
same names, and at the end draws are matched to where the first chain started.

Cost of a gradient: the operator and O(rank d k (d k + n_times) + k n_sources).

References: Hoffman, Gelman 2014, Journal of Machine Learning Research 15:1593 (NUTS);
Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.spatial import cKDTree

from ..core.checks import check_array, check_count, check_fraction
from ..core.struct import static, struct
from ..models.scale_prior import KnownScale, LogUniformScale
from ..models.static_dipoles import dipole_design, dipole_prior
from . import hamiltonian, off_grid_start
from .off_grid_operator import check_operator, grid_operator

__all__ = ["Design", "Draws", "prepare", "program", "run"]

# Standard deviation of the blur in distances between neighbours. Ripples of the density on a
# cubic grid are 2 exp(-2 pi^2 0.6^2) = 0.16 % along each axis.
_BLUR = 0.6
_N_NEIGHBOURS = 6
_MM = 1e3


@struct
class Design:
    """What the program needs of a model and a problem.

    Attributes
    ----------
    data : (rank, n_times)
        Whitened.
    noise_group : (rank,) int
    operator : jax.tree_util.Partial
        Positions (k, 3) in m to whitened lead fields (rank, k, 3).
    places : numpyro.distributions.Distribution
        Law of one position, (3,) in mm.
    moment_std : scalar or numpyro.distributions.Distribution
        In A·m; a number is known.
    noise_std : (n_groups,) array or numpyro.distributions.Distribution over such
    moment_unit : scalar
        In A·m.
    log_jacobian : scalar
        In nats.
    n_dipoles : int
    """

    data: jax.Array
    noise_group: jax.Array
    operator: Partial
    places: object
    moment_std: object
    noise_std: object
    moment_unit: jax.Array
    log_jacobian: jax.Array
    n_dipoles: int = static()


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


def prepare(model, problem, n_dipoles, operator=None):
    """Write a model and a problem as a `Design`.

    Parameters
    ----------
    model : StaticDipoles
        With free orientation.
    problem : Problem
    n_dipoles : int
    operator : callable, optional
        Positions (k, 3) in m to whitened lead fields (rank, k, 3), such as those of
        `off_grid_operator`; by default values between the sources of the problem.

    Returns
    -------
    Design

    Raises
    ------
    ValueError
        If orientations are not free, or the operator does not fit the problem.
    """
    n_dipoles = check_count("n_dipoles", n_dipoles)
    if model.loose != 1 or problem.n_orient != 3:
        raise ValueError(
            "dipoles off the grid have free moments, since there are no normals between sources: "
            f"use loose=1 and three orientations; got loose={model.loose} and "
            f"{problem.n_orient} orientation(s)."
        )
    if operator is None:
        operator = grid_operator(problem)
    elif not callable(operator):
        raise ValueError(
            "operator must be a function of positions, such as whitened_operator(problem, "
            f"lead_field); got {type(operator).__name__}."
        )
    else:
        check_operator(problem, operator)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    prior = dipole_prior(model, problem, dipole_design(model, problem), dtype)
    moment_std, noise_std = _scale_laws(prior.scales, problem.moment_unit)
    return Design(
        data=jnp.asarray(problem.data, dtype),
        noise_group=jnp.asarray(problem.noise_group, jnp.int32),
        operator=operator if isinstance(operator, Partial) else Partial(operator),
        places=_place_law(problem.source_pos, np.asarray(prior.log_place), dtype),
        moment_std=moment_std,
        noise_std=noise_std,
        moment_unit=jnp.asarray(problem.moment_unit, dtype),
        log_jacobian=jnp.asarray(problem.log_jacobian, dtype),
        n_dipoles=n_dipoles,
    )


def program(design, *, moment_std=None, noise_std=None, observed=True):
    """NumPyro program of the dipoles of a `Design`.

    Sites: `pos_mm` (n_dipoles, 3) and, if unknown, `moment_std` in A·m and `noise_std` (n_groups,);
    deterministic `pos` in m; and `data`, observed.

    Parameters
    ----------
    design : Design
    moment_std : scalar, optional
        In A·m, such as one that several subjects share; by default the design's own law.
    noise_std : scalar or (n_groups,) array, optional
        Likewise.
    observed : bool
        Whether the data are given; otherwise they are drawn.

    Examples
    --------
    Two subjects that share a scale, each with a dipole at a place of its own::

        def shared(designs):
            moment_std = numpyro.sample("moment_std", dist.LogNormal(np.log(2e-8), 1.0))
            for name, design in designs.items():
                with numpyro.handlers.scope(prefix=name):
                    program(design, moment_std=moment_std)
    """
    import numpyro

    from ..distributions import DipoleData

    pos_mm = numpyro.sample("pos_mm", design.places.expand([design.n_dipoles]).to_event(1))
    pos = numpyro.deterministic("pos", pos_mm / _MM)
    if moment_std is None:
        moment_std = _draw("moment_std", design.moment_std)
    if noise_std is None:
        noise_std = _draw("noise_std", design.noise_std)
    law = DipoleData(
        design.operator(pos),
        moment_std / design.moment_unit,
        noise_std,
        design.noise_group,
        design.data.shape[1],
        design.log_jacobian,
    )
    numpyro.sample("data", law, obs=design.data if observed else None)


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

    info = hamiltonian.run(
        key_run,
        program,
        (design,),
        state.coordinates,
        state.variances,
        n_warmup=n_warmup,
        n_samples=n_samples,
        target_acceptance=target_acceptance,
        progress=progress,
        description="off the grid",
    )
    return _collect(design, info, sets.pos[chosen])


def _init(seed, design, sets, n_chains):
    """Choose a set for each chain and write it in coordinates without constraints."""
    rng = np.random.default_rng(seed)
    n_sets = len(sets.pos)
    if n_sets == n_chains and sets.moment_std is None:
        chosen = np.arange(n_chains)
    else:
        chosen = rng.choice(n_sets, n_chains, p=sets.weights, replace=n_sets < n_chains)
    # Sources of a grid are few: chains start apart within the cells that they stand for.
    jitter = np.sqrt(sets.cell_variance)[..., None] * rng.standard_normal(sets.pos.shape)
    values = {"pos_mm": _MM * sets.pos}
    moved = {"pos_mm": values["pos_mm"] + _MM * jitter}
    support = {}
    for name in ("moment_std", "noise_std"):
        law, given = getattr(design, name), getattr(sets, name)
        if not hasattr(law, "log_prob"):
            continue
        if given is None:
            # The middle of the law: samples are ordered, the scales of a group alike.
            given = np.median(law.sample(jax.random.key(seed), (1001,)), axis=0)
            given = np.broadcast_to(given, (n_sets, *given.shape))
        support[name], values[name], moved[name] = law.support, given, given
    dtype = design.data.dtype
    unbound = {
        name: _unconstrain(support.get(name), np.asarray(value)) for name, value in moved.items()
    }
    least = {"pos_mm": _MM**2 * np.mean(sets.cell_variance, axis=0)[:, None] * np.ones(3)}
    variances = {
        name: jnp.asarray(
            np.var(np.asarray(unbound[name]), axis=0)
            + least.get(name, off_grid_start.LEAST_SCALE_VARIANCE),
            dtype,
        )
        for name in unbound
    }
    coordinates = {name: jnp.asarray(value, dtype)[chosen] for name, value in unbound.items()}
    return chosen, State(coordinates, variances)


def _unconstrain(support, value):
    return value if support is None else _bijection(support).inv(value)


def _bijection(support):
    from numpyro.distributions import biject_to

    return biject_to(support)


def _collect(design, info, start):
    """Give the draws their units and names."""
    pos = np.asarray(info.coordinates["pos_mm"], np.float64) / _MM
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
        log_likelihood=np.asarray(value, np.float64),
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
    from ..distributions import DipoleData

    def one(args):
        pos, scales = args
        law = DipoleData(
            design.operator(pos),
            scales["moment_std"] / design.moment_unit,
            scales["noise_std"],
            design.noise_group,
            design.data.shape[1],
            design.log_jacobian,
        )
        return law.log_prob(design.data)

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (pos, scales))
    return jax.lax.map(one, flat).reshape(pos.shape[:2])


def _draw(name, law):
    import numpyro

    return numpyro.sample(name, law) if hasattr(law, "log_prob") else law


def _place_law(source_pos, log_place, dtype):
    """Mixture of normals around the sources, in mm."""
    import numpyro.distributions as dist

    n_neighbours = min(_N_NEIGHBOURS, len(source_pos) - 1)
    if n_neighbours < 1:
        raise ValueError("the prior of positions needs at least two sources.")
    distance = cKDTree(source_pos).query(source_pos, k=n_neighbours + 1)[0][:, 1:]
    blur = _BLUR * np.sqrt(np.mean(distance**2, axis=1, keepdims=True))
    possible = np.isfinite(log_place)
    centres, widths = (jnp.asarray(_MM * array[possible], dtype) for array in (source_pos, blur))
    return dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.asarray(log_place[possible], dtype)),
        dist.Normal(centres, widths).to_event(1),
    )


def _scale_laws(scales, moment_unit):
    """Priors of log scales inside as laws of scales in the user's units."""
    import numpyro.distributions as dist

    moment, *noise = scales
    if isinstance(moment, KnownScale):
        moment_std = moment_unit * jnp.exp(moment.log_value)
    elif isinstance(moment, LogUniformScale):
        bounds = (moment_unit * jnp.exp(b) for b in (moment.log_low, moment.log_high))
        moment_std = dist.LogUniform(*bounds)
    else:
        moment_std = moment.distribution
    if isinstance(noise[0], KnownScale):
        noise_std = jnp.exp(jnp.stack([scale.log_value for scale in noise]))
    elif isinstance(noise[0], LogUniformScale):
        low, high = (
            jnp.exp(jnp.stack([getattr(scale, name) for scale in noise]))
            for name in ("log_low", "log_high")
        )
        noise_std = dist.LogUniform(low, high).to_event(1)
    else:
        noise_std = noise[0].distribution.expand([len(noise)]).to_event(1)
    return moment_std, noise_std
