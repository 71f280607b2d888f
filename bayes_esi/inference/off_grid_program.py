"""The law of dipoles off the grid as a NumPyro program.

    x_j ~ sum_i w_i N(s_i, b_i^2 I),    b_i = 0.6 h_i        positions of k dipoles
    moment_std, noise_std: the priors of the model
    data | x, scales: `DipoleData`, the moments integrated out

The law of positions is the law of the grid, blurred: w_i is the prior probability of source i
at s_i, and h_i the median distance to its six nearest. On a cubic grid that adds up to a density
which is constant to 0.5 % within, and falls off smoothly over half a spacing at the rim: nothing
that a sampler could hit. A uniform law with walls would make every trajectory that meets one
diverge, and divergences could no longer tell of anything else. On a surface it is a layer
around it.

Positions are sampled in mm and scales on the line that NumPyro maps to their support, so that all
are of order one. Dipoles have no names: the density is that of a list, the same in any order.

Cost of a gradient: the operator and O(rank d k (d k + n_times) + k n_sources).

Reference: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the model).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.spatial import cKDTree

from ..core.checks import check_count
from ..core.struct import static, struct
from ..models.orientation import orient
from ..models.scale_prior import KnownScale, LogUniformScale
from ..models.static_dipoles import dipole_prior
from .off_grid_operator import check_operator, grid_operator

__all__ = ["MM", "Design", "data_law", "numpyro_program", "prepare", "program"]

# Standard deviation of the blur in distances between neighbours. Ripples of the density on a
# cubic grid are 2 exp(-2 pi^2 0.6^2) = 0.16 % along each axis.
_BLUR = 0.6
_N_NEIGHBOURS = 6
# Positions are sampled in mm.
MM = 1e3


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
    n_dipoles : int
    """

    data: jax.Array
    noise_group: jax.Array
    operator: Partial
    places: object
    moment_std: object
    noise_std: object
    moment_unit: jax.Array
    n_dipoles: int = static()


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
    prior = dipole_prior(model, problem, orient(problem, model.loose), dtype)
    moment_std, noise_std = _scale_laws(prior.scales, problem.moment_unit)
    return Design(
        data=jnp.asarray(problem.data, dtype),
        noise_group=jnp.asarray(problem.noise_group, jnp.int32),
        operator=operator if isinstance(operator, Partial) else Partial(operator),
        places=_place_law(problem.source_pos, np.asarray(prior.log_place), dtype),
        moment_std=moment_std,
        noise_std=noise_std,
        moment_unit=jnp.asarray(problem.moment_unit, dtype),
        n_dipoles=n_dipoles,
    )


def program(design, *, moment_std=None, noise_std=None, observed=True):
    """NumPyro program of the dipoles of a `Design`.

    Sites: `pos_mm` (n_dipoles, 3) and, if unknown, `moment_std` in A·m and `noise_std` (n_groups,);
    deterministic `pos` in m; and `data`, observed, whitened. For densities in the units of the
    recording add `numpyro.factor("log_jacobian", problem.log_jacobian)`.

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

    pos_mm = numpyro.sample("pos_mm", design.places.expand([design.n_dipoles]).to_event(1))
    pos = numpyro.deterministic("pos", pos_mm / MM)
    if moment_std is None:
        moment_std = _draw("moment_std", design.moment_std)
    if noise_std is None:
        noise_std = _draw("noise_std", design.noise_std)
    law = data_law(design, pos, moment_std, noise_std)
    numpyro.sample("data", law, obs=design.data if observed else None)


def data_law(design, pos, moment_std, noise_std):
    """Law of the whitened data given positions (k, 3) in m and scales; a `DipoleData`.

    Without the Jacobian of whitening: a constant of thousands of nats would take the digits of
    the energy in single precision, and a sampler has no use for it.
    """
    from ..distributions import DipoleData

    return DipoleData(
        design.operator(pos),
        moment_std / design.moment_unit,
        noise_std,
        design.noise_group,
        design.data.shape[1],
    )


def numpyro_program(model, problem, n_dipoles=1, operator=None):
    """Program of a model and a problem, ready to run.

    Parameters
    ----------
    model, problem, n_dipoles, operator
        As in `prepare`.

    Returns
    -------
    jax.tree_util.Partial
        `program` with its design; takes the keyword arguments of `program`.
    """
    return Partial(program, prepare(model, problem, n_dipoles, operator))


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
    # The median is that of the cells, at the rim of a grid, too.
    blur = _BLUR * np.median(distance, axis=1, keepdims=True)
    possible = np.isfinite(log_place)
    centres, widths = (jnp.asarray(MM * array[possible], dtype) for array in (source_pos, blur))
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
