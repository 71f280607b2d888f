"""Beliefs about a probability are densities of its logit."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from bayes_esi.models.probability_prior import (
    KnownProbability,
    NumPyroProbability,
    check_probability,
    pin_probability,
    probability_prior,
)


# Bounds of the logit: the second law ends at a half.
@pytest.mark.parametrize(
    ("law", "low", "high"),
    [
        (dist.Beta(2.0, 20.0), -30, 10),
        (dist.Uniform(0.1, 0.5), np.log(1 / 9), 0.0),
        (dist.Kumaraswamy(0.8, 3.0), -40, 15),
    ],
)
def test_density_of_the_logit_integrates_to_one_and_has_the_mean_of_the_law(law, low, high):
    prior = probability_prior(law, np.float64)
    assert isinstance(prior, NumPyroProbability) and not prior.is_known
    density = jax.jit(lambda logit: np.e ** prior.log_density(logit))
    total, _ = quad(lambda x: float(density(x)), low, high, limit=200)
    assert total == pytest.approx(1, abs=1e-6)
    mean, _ = quad(lambda x: float(density(x)) / (1 + np.exp(-x)), low, high, limit=200)
    assert mean == pytest.approx(float(law.mean), abs=1e-6)


def test_outside_of_the_law_there_is_no_density():
    prior = probability_prior(dist.Uniform(0.1, 0.5), np.float64)
    density = jax.jit(jax.vmap(prior.log_density))
    logits = np.array([-800.0, -3.0, 0.1, 3.0, 40.0])
    np.testing.assert_array_equal(density(logits), -np.inf)


def test_draws_are_logits_of_draws_of_the_law():
    law = dist.Uniform(0.1, 0.5)
    draws = np.asarray(probability_prior(law, np.float64).sample(jax.random.key(1), 2000))
    assert draws.shape == (2000,)
    assert kstest(1 / (1 + np.exp(-draws)), "uniform", (0.1, 0.4)).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_known_probability_is_its_logit(dtype):
    prior = probability_prior(1 / 30, dtype)
    assert isinstance(prior, KnownProbability) and prior.is_known
    draws = prior.sample(jax.random.key(0), 3)
    assert draws.dtype == dtype and prior.logit.dtype == dtype
    np.testing.assert_allclose(draws, np.log(1 / 29), rtol=1e-6)
    np.testing.assert_array_equal(prior.log_density(draws), 0)


@pytest.mark.parametrize("logit", [-40.0, 40.0])
def test_densities_far_out_stay_finite(logit):
    # A probability of 1e-17 is none at its own scale, but the logit tells it apart from zero.
    value = float(probability_prior(dist.Kumaraswamy(1.0, 1.0), np.float64).log_density(logit))
    if logit < 0:
        assert value == pytest.approx(logit, abs=1e-6)
    else:
        assert not np.isnan(value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logit", [-800.0, -100.0, 0.0, 17.0, 100.0, 800.0])
def test_laws_that_are_infinite_at_the_ends_stay_finite(logit, dtype):
    # The density of the probability is infinite at 0 and 1, that of the logit falls to nought.
    law = dist.Beta(dtype(0.5), dtype(0.5))
    density = jax.jit(probability_prior(law, dtype).log_density)
    value = density(dtype(logit))
    assert value.dtype == dtype and np.isfinite(value)
    assert value <= density(dtype(0.0)) + 1e-6


def test_what_is_inside_the_unit_interval_is_accepted():
    for value in (0.5, 1e-12, np.float32(0.2), np.array(0.3), dist.Uniform(0.0, 1.0)):
        check_probability("birth_prob", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *[(v, "birth_prob must") for v in (0, 1, 1.0, -0.2, 3, np.nan, np.inf, True, "0.5", None)],
        (np.array([0.2, 0.3]), "birth_prob must be a positive number"),
        (dist.Normal(0.5, 1.0), "birth_prob has a distribution with mass outside"),
        (dist.LogNormal(0.0, 1.0), "birth_prob has a distribution with mass outside"),
        (dist.Uniform(np.zeros(3), 1.0), "birth_prob must be a scalar distribution"),
    ],
)
def test_what_is_not_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message):
        check_probability("birth_prob", value)


@pytest.mark.parametrize(
    ("law", "guess", "low", "high"),
    [
        (dist.Beta(2.0, 20.0), -3.0, -np.inf, np.inf),
        (dist.Uniform(0.1, 0.5), -1.0, np.log(1 / 9), 0.0),
        (dist.Uniform(0.1, 0.5), 5.0, np.log(1 / 9), 0.0),  # a guess outside of the law
    ],
)
def test_a_pinned_law_has_the_support_of_the_prior(law, guess, low, high):
    prior = probability_prior(law, np.float64)
    pinned = pin_probability(prior, guess, 0.3)
    draws = np.asarray(pinned.sample(jax.random.key(0), 2000))
    assert np.all((draws >= low) & (draws <= high))
    assert np.all(np.isfinite(jax.vmap(prior.log_density)(draws)))
    wanted = np.clip(guess, low + 0.3, high - 0.3)
    # Cut off at one deviation, a normal law's mean moves by less than another.
    assert abs(draws.mean() - wanted) < 0.3
    start, stop = max(low, wanted - 3), min(high, wanted + 3)
    mass, _ = quad(lambda x: np.exp(float(pinned.log_density(x))), start, stop)
    assert mass == pytest.approx(1, abs=1e-6)


def test_a_known_probability_stays():
    known = probability_prior(0.3, np.float64)
    assert pin_probability(known, -3.0, 0.3) is known
