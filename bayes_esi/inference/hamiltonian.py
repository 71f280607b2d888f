"""No-U-turn chains of a NumPyro program, compiled once for all data of a shape.

The kernel is NumPyro's, with its adaptation of step size and mass matrix. What is here is the loop
around it: the arguments of the program are arguments of the compiled code, chains advance side by
side under vmap, and chunks of steps are driven from the host, which hears of the progress.
NumPyro's own loop compiles the arguments in as constants and first searches for a place to
start, which we have.

Cost of a step: at most 2^max_tree_depth gradients; chains wait for the longest of theirs.

References: Hoffman, Gelman 2014, Journal of Machine Learning Research 15:1593 (NUTS); Phan,
Pradhan, Jankowiak 2019, arXiv:1912.11554 (NumPyro, and its iterative form of the algorithm).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Info", "init", "run", "step"]

# Steps compiled into one call: a bar that moves, and no waiting for the host.
_CHUNK = 25
# Coordinates up to which the mass matrix is dense, diagonal beyond.
_MOST_DENSE = 100


class Info(NamedTuple):
    """What one step of a chain leaves."""

    coordinates: dict  # of arrays by site, without constraints
    diverging: jax.Array
    n_steps: jax.Array  # gradients taken
    acceptance_rate: jax.Array  # mean over the trajectory
    step_size: jax.Array
    energy: jax.Array
    potential_energy: jax.Array  # minus the log density of the coordinates

    def statistics(self):
        """What ArviZ expects of each draw: name -> array."""
        names = ("diverging", "n_steps", "acceptance_rate", "energy")
        return {name: getattr(self, name) for name in names}


def init(key, program, arguments, coordinates, variances, n_warmup, target_acceptance):
    """Start one chain.

    Parameters
    ----------
    key : PRNG key
    program : callable
        NumPyro program of `arguments`; all its unobserved sites are continuous.
    arguments : tuple
    coordinates : dict of arrays
        Where to start, by site, in coordinates without constraints.
    variances : dict of arrays
        Guess of the variance of each coordinate: the mass matrix starts there.
    n_warmup : int
    target_acceptance : float

    Returns
    -------
    numpyro.infer.hmc.HMCState
    """
    start, _ = _kernel(program)
    return _init(start, key, arguments, coordinates, variances, n_warmup, target_acceptance)


def step(state, program, arguments, variances, n_warmup, target_acceptance):
    """Advance one chain, adapting it during the first `n_warmup` steps."""
    start, advance = _kernel(program)
    # The kernel learns its options when a chain starts; the chain itself is not used, so it
    # costs nothing in compiled code.
    _init(start, state.rng_key, arguments, state.z, variances, n_warmup, target_acceptance)
    state = advance(state, arguments)
    info = Info(
        state.z,
        state.diverging,
        state.num_steps,
        state.accept_prob,
        state.adapt_state.step_size,
        state.energy,
        state.potential_energy,
    )
    return state, info


def run(
    key,
    program,
    arguments,
    coordinates,
    variances,
    *,
    n_warmup,
    n_samples,
    target_acceptance,
    progress,
):
    """Run chains side by side.

    Parameters
    ----------
    key : PRNG key
    program, arguments, variances
        As in `init`.
    coordinates : dict of (n_chains, ...) arrays
    n_warmup, n_samples : int
    target_acceptance : float
    progress : callable
        Called with the share of the steps done and what there is to tell.

    Returns
    -------
    Info
        Of arrays (n_chains, n_samples, ...), without the warm-up.
    """
    n_chains = len(next(iter(coordinates.values())))
    options = (program, n_warmup, target_acceptance)
    keys = jax.random.split(key, n_chains)
    state = _start(keys, arguments, coordinates, variances, options)
    n_total, kept = n_warmup + n_samples, []
    for done in range(0, n_total, _CHUNK):
        state, info = _advance(state, arguments, variances, options)
        info = jax.tree.map(np.asarray, info)
        if done + _CHUNK > n_warmup:
            kept.append(info)
        progress(
            min(done + _CHUNK, n_total) / n_total,
            phase="warm-up" if done + _CHUNK <= n_warmup else "sampling",
            step_size=f"{info.step_size[:, -1].mean():.2g}",
            divergences=sum(int(part.diverging.sum()) for part in kept),
        )
    first = n_warmup % _CHUNK
    return jax.tree.map(
        lambda *parts: np.concatenate(parts, axis=1)[:, first : first + n_samples], *kept
    )


@functools.partial(jax.jit, static_argnums=4)
def _start(keys, arguments, coordinates, variances, options):
    program, *others = options

    def one(key, coordinates):
        return init(key, program, arguments, coordinates, variances, *others)

    return jax.vmap(one)(keys, coordinates)


@functools.partial(jax.jit, static_argnums=3)
def _advance(state, arguments, variances, options):
    program, *others = options

    def one(state, _):
        return step(state, program, arguments, variances, *others)

    return jax.vmap(lambda state: jax.lax.scan(one, state, length=_CHUNK))(state)


def _kernel(program):
    from numpyro.infer.hmc import hmc
    from numpyro.infer.util import potential_energy

    def potential_of(*arguments):
        return lambda coordinates: potential_energy(program, arguments, {}, coordinates)

    start, advance = hmc(potential_fn_gen=potential_of, algo="NUTS")
    return start, advance


def _init(start, key, arguments, coordinates, variances, n_warmup, target_acceptance):
    names = tuple(sorted(variances))
    diagonal = jnp.concatenate([jnp.ravel(variances[name]) for name in names])
    is_dense = diagonal.size <= _MOST_DENSE
    return start(
        coordinates,
        num_warmup=n_warmup,
        inverse_mass_matrix={names: jnp.diag(diagonal) if is_dense else diagonal},
        dense_mass=[names] if is_dense else [],
        target_accept_prob=target_acceptance,
        model_args=arguments,
        rng_key=key,
    )
