"""Likelihoods against dense Gaussians, and rank-d changes against starting over."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayes_esi.inference.dipole_target import (
    Base,
    Dipoles,
    Target,
    assess,
    blend,
    condition,
    extended,
    log_likelihood,
    log_prior,
    log_ratio,
    without,
)
from bayes_esi.models.dipole_gram import build_gram
from bayes_esi.models.orientation import orient
from bayes_esi.models.problem import Problem
from bayes_esi.models.static_dipoles import StaticDipoles, dipole_prior

N_SOURCES, N_TIMES, RANK = 8, 12, 10  # more samples than channels: time is compressed
KINDS = [(d, g, t) for d in (1, 3) for g in (1, 2) for t in (True, False)]
# Four slots, of which the second is empty and the third is in use; place 0 fills empty slots.
PLACES, ACTIVE = np.array([5, 0, 2, 6], np.int32), np.array([True, False, True, True])


def make(d, n_groups, tabulate):
    """Arrays, their Gram blocks, and log scales of moments and noise groups."""
    rng = np.random.default_rng(d + 10 * n_groups)
    lead_field = rng.standard_normal((RANK, N_SOURCES, d))
    lead_field[:, 1] = lead_field[:, 5] + 0.1 * rng.standard_normal((RANK, d))  # nearly the same
    data = lead_field[:, 5] @ rng.standard_normal((d, N_TIMES))
    data = data + rng.standard_normal((RANK, N_TIMES))
    row_group = np.arange(RANK) % n_groups
    gram = build_gram(lead_field, data, row_group, n_groups, tabulate=tabulate)
    return lead_field, data, row_group, gram, np.log([0.6, 1.3, 0.5])[: 1 + n_groups]


def dense(lead_field, data, row_group, places, log_scales):
    """Log density of the data, moments integrated out, from the covariance of the channels."""
    field = lead_field[:, list(places)].reshape(RANK, -1)
    noise = np.exp(2 * log_scales[1:])[row_group]
    cov = np.exp(2 * log_scales[0]) * field @ field.T + np.diag(noise)
    return multivariate_normal(cov=cov).logpdf(data.T).sum()


def same_base(found, wanted):
    """Matrices agree to rounding (condition numbers are below 1e4); likelihoods apart."""
    for name in Base._fields[1:]:
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=1e-8, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize(("d", "n_groups", "tabulate"), KINDS)
def test_likelihood_is_the_dense_gaussian(d, n_groups, tabulate):
    *arrays, gram, log_scales = make(d, n_groups, tabulate)
    value = jax.jit(log_likelihood)
    for size in range(4):
        # The last slots are in use: an empty slot may stand anywhere.
        for chosen in itertools.islice(itertools.combinations(range(N_SOURCES), size), 0, 56, 9):
            places = np.array((7,) * (3 - size) + chosen, np.int32)
            active = np.arange(3) >= 3 - size
            found = value(gram, places, active, log_scales)
            assert float(found) == pytest.approx(dense(*arrays, chosen, log_scales), abs=1e-8)


@pytest.mark.parametrize(("d", "n_groups", "tabulate"), KINDS)
def test_one_more_dipole_gains_what_the_dense_gaussian_gains(d, n_groups, tabulate):
    *arrays, gram, log_scales = make(d, n_groups, tabulate)
    base = condition(gram, PLACES, ACTIVE, log_scales)
    present = PLACES[ACTIVE].tolist()
    before = dense(*arrays, present, log_scales)
    # Also for a place that is taken: two dipoles at one place are a Gaussian as well.
    wanted = [dense(*arrays, [*present, j], log_scales) - before for j in range(N_SOURCES)]
    np.testing.assert_allclose(assess(gram, base, PLACES).gain, wanted, atol=1e-8)
    few = np.array([4, 1, 1], np.int32)
    found = assess(gram, base, PLACES, few).gain
    np.testing.assert_allclose(found, np.array(wanted)[few], atol=1e-8)


@pytest.mark.parametrize(("d", "n_groups", "tabulate"), KINDS)
def test_putting_in_and_taking_out_equal_starting_over(d, n_groups, tabulate):
    *_, gram, log_scales = make(d, n_groups, tabulate)
    base = condition(gram, PLACES, ACTIVE, log_scales)
    candidates = np.array([4, 1, 3], np.int32)
    assessed = assess(gram, base, PLACES, candidates)
    for chosen, place in enumerate(candidates):
        more = PLACES.copy()
        more[1] = place
        larger = condition(gram, more, np.ones(4, bool), log_scales)
        found = extended(base, 1, assessed, chosen)
        same_base(found, larger)
        assert float(base.log_likelihood + assessed.gain[chosen]) == pytest.approx(
            float(larger.log_likelihood), abs=1e-8
        )
        same_base(without(larger, 1, d), base)
    for slot in np.flatnonzero(ACTIVE):
        left = ACTIVE.copy()
        left[slot] = False
        same_base(without(base, slot, d), condition(gram, PLACES, left, log_scales))
    same_base(without(base, 1, d), base)  # an empty slot has nothing to take out


def test_the_order_of_slots_does_not_matter():
    *_, gram, log_scales = make(3, 2, True)
    one = log_likelihood(gram, PLACES, ACTIVE, log_scales)
    order = np.array([3, 2, 0, 1])
    other = log_likelihood(gram, PLACES[order], ACTIVE[order], log_scales)
    # Sums in another order, of terms near 100.
    assert float(one) == pytest.approx(float(other), abs=1e-9)


def test_tiny_moments_explain_nothing_and_do_no_harm():
    *arrays, gram, log_scales = make(3, 1, True)
    log_scales = np.array([-30.0, log_scales[1]])
    nothing = dense(*arrays, [], log_scales)
    assert float(log_likelihood(gram, PLACES, ACTIVE, log_scales)) == pytest.approx(nothing)
    base = condition(gram, PLACES, ACTIVE, log_scales)
    np.testing.assert_allclose(assess(gram, base, PLACES).gain, 0, atol=1e-8)


def test_a_factorisation_that_fails_loses():
    lead_field, data, row_group, _, log_scales = make(3, 1, True)
    gram = build_gram(np.full_like(lead_field, np.nan), data, row_group, 1)
    assert float(log_likelihood(gram, PLACES, ACTIVE, log_scales)) == -np.inf


def test_prior_of_a_state_is_poisson_times_places_times_scales():
    rng = np.random.default_rng(0)
    weights = np.arange(1.0, N_SOURCES + 1)
    problem = Problem.from_arrays(
        rng.standard_normal((RANK, 4)),
        rng.standard_normal((RANK, N_SOURCES, 1)),
        rng.standard_normal((N_SOURCES, 3)),
    )
    model = StaticDipoles(0.8, 3, location_prior=weights)
    design = orient(problem, model.loose)
    prior = dipole_prior(model, problem, design, np.float64)
    gram = build_gram(design.lead_field, problem.data, problem.noise_group, 1)
    moment, noise = prior.scales
    log_scales = jnp.array([moment.log_low + 1, noise.log_high - 1])
    state = Dipoles(jnp.array([4, 0, 6]), jnp.array([True, False, True]), log_scales, jnp.zeros(()))
    poisson = 0.8 ** np.arange(4) / np.array([1, 1, 2, 6])
    pairs = itertools.combinations(weights, 2)
    wanted = np.log(poisson[2] / poisson.sum() * 5 * 7 / sum(a * b for a, b in pairs))
    ranges = [float(scale.log_high - scale.log_low) for scale in prior.scales]
    assert float(log_prior(prior, state)) == pytest.approx(wanted - np.log(ranges).sum())
    outside = state._replace(log_scales=log_scales.at[1].add(2.0))
    assert float(log_prior(prior, outside)) == -np.inf
    # With the prior as reference, tempering weighs by the likelihood alone.
    ratio = log_ratio(Target(gram, prior, prior), state._replace(log_likelihood=jnp.array(-3.0)))
    assert float(ratio) == pytest.approx(-3.0)


def test_the_path_between_two_laws():
    first, second = jnp.array([-1.0, -jnp.inf, -2.0]), jnp.array([-3.0, -1.0, -jnp.inf])
    np.testing.assert_allclose(blend(first, second, 0.25), [-1.5, -np.inf, -np.inf])
    # At either end too, what one law excludes stays excluded: no NaN from 0 times infinity.
    np.testing.assert_array_equal(blend(first, second, 0.0), [-1.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(blend(first, second, 1.0), [-3.0, -np.inf, -np.inf])
