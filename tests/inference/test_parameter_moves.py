"""Moves of the parameters of particles: they retrace the past, and find the posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import track_oracle

from bayes_esi.inference import parameter_moves, particle_filter
from bayes_esi.inference.track_inference import prepare
from bayes_esi.models import track_likelihood
from bayes_esi.models.dynamic_dipoles import log_law

N_PARTICLES = 200


@pytest.fixture(scope="module")
def unknown():
    """A small problem whose moment scale and birth probability are unknown."""
    problem, model = track_oracle.toy_two(1)
    model = dataclasses.replace(
        model, moment_std=dist.LogNormal(np.log(1e-8), 0.5), birth_prob=dist.Beta(2.0, 3.0)
    )
    return problem, model, prepare(model, problem, 2**30)


@pytest.fixture(scope="module")
def filtered(unknown):
    target = unknown[2]
    options = particle_filter.Options(n_parameter_moves=1, n_moved=N_PARTICLES)
    kept = []
    state, _ = particle_filter.run(
        jax.random.key(1),
        target,
        N_PARTICLES,
        options,
        keep=lambda time, *weighted: kept.append(weighted),
    )
    return state, kept[-1][0]


@jax.jit
def _rerun(particles, parameters, target):
    time = target.gram.n_times - 1
    return jax.vmap(parameter_moves.rerun, in_axes=(0, 0, None, None, None, None))(
        particles, parameters, target, target.gram.projected_data, time, 1.0
    )


def test_a_particle_run_again_is_itself(unknown, filtered):
    """With its own parameters it has the moments that the filter gave it, through all moves."""
    _, particles = filtered
    again, _ = _rerun(particles, particles.parameters, unknown[2])
    alive = np.asarray(particles.places) >= 0
    d = particles.mean.shape[1] // alive.shape[1]
    seen = np.repeat(alive, d, axis=1)
    assert seen.any()
    # Rounding of ten Kalman steps.
    np.testing.assert_allclose(again.mean[seen], particles.mean[seen], atol=1e-9)
    np.testing.assert_allclose(again.life[alive], particles.life[alive], atol=1e-9)
    for name in ("start_mean", "start_cov"):
        ours, theirs = (np.asarray(getattr(p, name))[alive] for p in (again, particles))
        np.testing.assert_allclose(ours, theirs, atol=1e-9, err_msg=name)


def test_the_density_is_the_joint_one(unknown, filtered):
    """By the likelihood of whole trajectories: another code for the same sum."""
    _, _, target = unknown
    _, particles = filtered
    n_times = target.gram.n_times
    parameters = particles.parameters + 0.1 * jnp.asarray(target.prior.is_unknown)
    _, density = _rerun(particles, parameters, target)
    places, is_new = particles.past_places[:, :n_times], particles.past_new[:, :n_times]

    def joint(*trajectory):
        return (
            target.prior.log_density_of_parameters(trajectory[0])
            + log_law(target.prior, *trajectory)
            + track_likelihood.log_likelihood(target.gram, target.prior, *trajectory)
        )

    np.testing.assert_allclose(density, jax.vmap(joint)(parameters, places, is_new), atol=1e-9)


def test_parameters_stay_many(filtered):
    """Resampling alone would leave a few."""
    state, _ = filtered
    # Each move renews about a third of the values; the last was made at the last resampling.
    assert len(np.unique(np.asarray(state.particles.parameters), axis=0)) > N_PARTICLES / 4
