"""The bootstrap filter against every trajectory of two small problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import track_oracle

from bayes_esi.inference import bootstrap_filter
from bayes_esi.inference.track_inference import prepare

N_PARTICLES = 40_000


def test_free_places_follow_the_prior_without_those_held():
    weights = np.array([1.0, 2.0, 0.0, 3.0, 0.5, 1.5])
    cumulative = jnp.cumsum(jnp.asarray(weights / weights.sum()))
    # Walks that met hold one place together.
    survivors = jnp.array([3, -1, 0, 3], jnp.int32)
    uniform = (jnp.arange(5000) + 0.5) / 5000
    places = jax.vmap(bootstrap_filter._free_place, (0, None, None))(uniform, survivors, cumulative)
    wanted = np.where(np.isin(np.arange(6), [0, 3]), 0.0, weights)
    share = np.bincount(places, minlength=6) / 5000
    # A grid of 5,000 points meets each interval to within two of them.
    np.testing.assert_allclose(share, wanted / wanted.sum(), atol=4e-4)
    assert share[[0, 2, 3]].max() == 0


@pytest.mark.parametrize(
    "toy", [pytest.param(track_oracle.toy_two, marks=pytest.mark.slow), track_oracle.toy_walk]
)
def test_filtering_law_and_evidence_are_those_of_all_trajectories(toy):
    problem, model = toy(1)
    truth = track_oracle.exact(problem, model)
    target = prepare(model, problem, 2**30)
    choices = bootstrap_filter.Options(ess_threshold=0.7)
    state, info = bootstrap_filter.run(jax.random.key(1), target, N_PARTICLES, choices)
    apart = np.abs(info.n_dipoles_pmf - truth.filtering_n_dipoles_pmf).sum(axis=1) / 2
    # Standard deviation of a share among the effective number of particles, 3,000 at least: below
    # 0.01; of the log evidence, whose samples add up, about 0.02.
    assert info.ess.min() > 3_000 and np.any(info.ess < 0.7 * N_PARTICLES)
    assert apart.max() < 0.03
    np.testing.assert_allclose(info.intensity, truth.filtering_intensity, atol=0.03)
    told = np.cumsum(info.log_evidence_increment)
    jacobian = problem.log_jacobian / problem.n_times * np.arange(1, problem.n_times + 1)
    np.testing.assert_allclose(told + jacobian, truth.cumulative_log_evidence, atol=0.08)
    assert float(state.log_evidence) == pytest.approx(told[-1], abs=1e-9)


def test_last_moments_are_those_of_the_filtering_law():
    problem, model = track_oracle.toy_two(1)
    truth = track_oracle.exact(problem, model)
    target = prepare(model, problem, 2**30)
    kept = {}
    bootstrap_filter.run(
        jax.random.key(2),
        target,
        N_PARTICLES,
        bootstrap_filter.Options(ess_threshold=0.7),
        keep=lambda time, particles, log_weights, info: kept.update(
            {time: (particles, log_weights)}
        ),
    )
    particles, log_weights = kept[problem.n_times - 1]
    found = np.zeros(problem.n_sources)
    weighted = np.exp(log_weights)[:, None] * np.asarray(particles.moments)[:, :, 0]
    places = np.asarray(particles.places)
    assert np.all(weighted[places < 0] == 0)
    np.add.at(found, places, weighted)
    wanted = truth.filtering_moment[-1, :, 0] / problem.moment_unit
    scale = model.moment_std / problem.moment_unit
    # Moments have the size of `scale`: as for the shares above, with room for their product.
    np.testing.assert_allclose(found, wanted, atol=0.05 * scale)
    # The past of a particle is the trajectory of its ancestors, its present included.
    last = problem.n_times - 1
    np.testing.assert_array_equal(particles.past_places[:, last], places)
    past, new = np.asarray(particles.past_places), np.asarray(particles.past_new)
    goes_on = (past[:, 1 : last + 1] >= 0) & ~new[:, 1 : last + 1]
    assert np.all(past[:, :last][goes_on] == past[:, 1 : last + 1][goes_on])
