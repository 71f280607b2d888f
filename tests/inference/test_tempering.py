"""Steps of the inverse temperature against formulas, and what unequal runs tell."""

import jax
import jax.numpy as jnp
import numpy as np

from bayes_esi.inference.tempering import reweight, stack_traces

KEY = jax.random.key(0)


def test_a_step_is_as_long_as_the_population_allows():
    value = jnp.asarray(np.random.default_rng(0).normal(-50, 30, 500))
    even = jnp.full(500, -np.log(500.0))
    told = reweight(KEY, even, jnp.asarray(0.0), value, 0.8, 0.5)
    increment = np.exp(float(told.inverse_temperature) * np.asarray(value))
    cess = increment.sum() ** 2 / (500 * np.sum(increment**2))
    np.testing.assert_allclose(cess, 0.8, rtol=1e-9)
    np.testing.assert_allclose(told.log_evidence_increment, np.log(increment.mean()), rtol=1e-12)
    np.testing.assert_allclose(told.ess, 0.8 * 500, rtol=1e-9)
    # More than the threshold is left: nobody is resampled, and weights are those of the step.
    np.testing.assert_array_equal(told.ancestors, np.arange(500))
    np.testing.assert_allclose(np.exp(told.log_weights), increment / increment.sum(), rtol=1e-9)

    low = reweight(KEY, even, jnp.asarray(0.0), value, 0.8, 0.9)
    np.testing.assert_allclose(np.exp(low.log_weights), 1 / 500)
    copies = np.bincount(low.ancestors, minlength=500)
    assert np.all(np.abs(copies - 500 * increment / increment.sum()) < 1)


def test_the_last_step_ends_at_one_and_resamples():
    value = jnp.asarray([0.0, 0.01, -0.01])
    told = reweight(KEY, jnp.full(3, -np.log(3.0)), jnp.asarray(0.9), value, 0.8, 0.5)
    assert told.inverse_temperature == 1
    np.testing.assert_allclose(told.log_weights, -np.log(3))


def test_a_population_that_cannot_agree_moves_on_all_the_same():
    value = jnp.asarray([0.0, -np.inf, -1e300])
    start = jnp.asarray(0.3)
    told = reweight(KEY, jnp.full(3, -np.log(3.0)), start, value, 0.8, 0.5)
    assert told.inverse_temperature > start and told.ancestors.tolist() == [0, 0, 0]


def test_traces_of_different_lengths_end_in_nan():
    traces = [
        {"ess": np.arange(3), "rate": np.ones((3, 2)), "n_sets": 5},
        {"ess": np.arange(2), "rate": np.ones((2, 2)), "n_sets": 6},
    ]
    stacked = stack_traces(traces)
    np.testing.assert_array_equal(stacked["ess"], [[0, 1, 2], [0, 1, np.nan]])
    assert stacked["rate"].shape == (2, 3, 2) and np.isnan(stacked["rate"][1, 2]).all()
    np.testing.assert_array_equal(stacked["n_sets"], [5, 6])
