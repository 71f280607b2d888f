"""Metropolis moves of the unknown parameters of a particle, by the exact density of its past.

A particle's scales and probabilities are parameters of all samples. Resampling leaves fewer and
fewer values of them, down to a handful after a strong onset: the posterior of the parameters, and
of all that hangs on them, would be too sure. They are proposed anew by a normal step, the filter of
all moments is run again from the first sample with the dipoles as they were born and died, and the
ratio of

    p(parameters) prod_t p(dipoles_t | dipoles_<t, parameters) p(y_t | y_<t, dipoles, parameters)

accepts or refuses. Cost: twice all samples so far in steps of the moment filter.

References: Gilks, Berzuini 2001, doi:10.1111/1467-9868.00280 (resample-move); Chopin 2002,
doi:10.1093/biomet/89.3.539 (static parameters).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..models import moment_filter
from ..models.dynamic_dipoles import log_transition
from ..models.track_likelihood import scales_of

__all__ = ["move", "rerun"]


def move(key, particle, target, spread, projected, time, power):
    """Move the unknown parameters of one particle, or stay.

    Parameters
    ----------
    key : PRNG key
    particle : Particles
        After sample `time`; it remembers all samples.
    target : Target
        With the data of all samples.
    spread : (n_parameters,)
        Standard deviation of each parameter among particles.
    projected : (n_rows, n_sources, n_groups, d)
        Samples; sample t in row t modulo n_rows.
    time : int
    power : scalar in [0, 1]
        To which the likelihood of the last sample is taken.

    Returns
    -------
    Particles, is_accepted
    """
    prior = target.prior
    dtype = particle.mean.dtype
    n_unknown = max(sum(prior.is_unknown), 1)
    # 2.38 / sqrt(n) deviations: best for n normal parameters.
    scale = 2.38 / np.sqrt(n_unknown) * np.array(prior.is_unknown)
    key_step, key_accept = jax.random.split(key)
    step = jax.random.normal(key_step, spread.shape, dtype) * spread * jnp.asarray(scale, dtype)
    moved, density = rerun(particle, particle.parameters + step, target, projected, time, power)
    _, old_density = rerun(particle, particle.parameters, target, projected, time, power)
    uniform = jax.random.uniform(key_accept, (), dtype)
    is_accepted = jnp.log(uniform) < density - old_density
    particle = jax.tree.map(lambda new, old: jnp.where(is_accepted, new, old), moved, particle)
    return particle, is_accepted


def rerun(particle, parameters, target, projected, time, power):
    """Run a particle from the first sample with other parameters.

    Parameters as for `move`.

    Returns
    -------
    Particles
        As if it had always had these parameters.
    log_density : scalar
        Joint, of parameters, dipoles and data.
    """
    prior, gram = target.prior, target.gram
    n_past, n_rows = particle.past_places.shape[0], projected.shape[0]
    moment_std, weights = scales_of(parameters)

    def sample(t, carry):
        now, total = carry
        row = t % n_past
        held, new = now.past_places[row], now.past_new[row]
        before = jnp.where(t > 0, now.past_places[(t - 1) % n_past], -1)
        mean, cov = moment_filter.predict(
            now.mean, now.cov, held >= 0, new, prior.persistence, moment_std
        )
        share = jnp.where(t == time, power, 1.0)
        mean, cov, log_factor = moment_filter.update(
            mean,
            cov,
            share * gram.matrix(held, weights),
            share * gram.projection(projected[t % n_rows], held, weights),
        )
        told = log_transition(prior, parameters, before, held, new) + log_factor
        now = now._replace(
            mean=mean,
            cov=cov,
            life=jnp.where(new, 0.0, now.life) + told,
            start_mean=jnp.where(new[:, None], now.mean, now.start_mean),
            start_cov=jnp.where(new[:, None, None], now.cov, now.start_cov),
        )
        return now, total + told + share * gram.log_noise(gram.data_power[t], weights)

    n_slots = particle.places.shape[0]
    mean, cov = moment_filter.empty(n_slots, gram.n_orient, particle.mean.dtype)
    start = particle._replace(
        mean=mean, cov=cov, parameters=parameters, life=jnp.zeros_like(particle.life)
    )
    density = prior.log_density_of_parameters(parameters).astype(particle.mean.dtype)
    return jax.lax.fori_loop(0, time + 1, sample, (start, density))
