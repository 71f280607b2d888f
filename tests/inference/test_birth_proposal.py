"""Births that are proposed against the exact law of a birth and its place, from one Gaussian."""

import dataclasses

import jax
import numpy as np
import pytest
import track_oracle

from bayes_esi.inference import birth_proposal, track_inference
from bayes_esi.models import moment_filter, track_likelihood
from bayes_esi.models.dynamic_dipoles import DynamicDipoles

# The past of a particle: one dipole at place 1, born at the second sample, alive at the third.
PLACES = np.array([[-1, -1], [1, -1], [1, -1]], np.int32)
IS_NEW = np.array([[False, False], [True, False], [False, False]])
survey = jax.jit(birth_proposal.survey)


def make(n_orient, two_groups=True):
    problem, model = track_oracle.toy_two(n_orient)
    if two_groups:
        group = np.array([0, 0, 0, 1, 1, 1])
        problem = dataclasses.replace(problem, noise_group=group, group_names=("a", "b"))
    return problem, model, track_inference.prepare(model, problem, 2**30)


def parameters_of(problem, model, noise_std=(0.8, 1.3), birth_prob=0.4):
    """A particle's own parameters: not those of the model."""
    scales = np.log([1.2e-8 / problem.moment_unit, *noise_std])
    odds = [birth_prob / (1 - birth_prob), model.death_prob / (1 - model.death_prob)]
    return np.concatenate([scales, np.log(odds)])


filtered = jax.jit(track_likelihood._filter)


def particle(target, parameters, places, is_new):
    """Slots and filtered moments after a past: arguments of `survey`."""
    n_past = len(places)
    more = ((0, target.gram.n_times - n_past), (0, 0))
    whole = np.pad(places, more, constant_values=-1), np.pad(is_new, more)
    mean, cov, _ = filtered(target.gram, target.prior, parameters, *whole)
    return places[-1], np.asarray(mean)[n_past - 1], np.asarray(cov)[n_past - 1], parameters


def stack(*particles):
    return tuple(np.stack(part) for part in zip(*particles, strict=True))


def exact_law(problem, model, parameters, places, is_new, time):
    """Odds of a birth at `time`, and law of its place, if all who are alive survive.

    One large Gaussian for each trajectory: the past, and one more sample with a dipole more.
    """
    rows = np.asarray(problem.noise_group)
    scales = (
        np.exp(parameters[0]),
        np.exp(parameters[1:-2])[rows],
        model.moment_persistence,
    )
    field, data = np.asarray(problem.lead_field), np.asarray(problem.data)[:, : time + 1]
    stays = np.concatenate([places, places[-1:]])
    calm = np.concatenate([is_new, np.zeros_like(is_new[:1])])
    without, _, _ = track_oracle.dense_law(stays, calm, field, data, *scales)
    slot = int(np.flatnonzero(stays[-1] < 0)[0])
    ratio = np.empty(problem.n_sources)
    for place in range(problem.n_sources):
        held, new = stays.copy(), calm.copy()
        held[-1, slot], new[-1, slot] = place, True
        if place in stays[-1]:
            # Another dipole there, at the same place: the scan does not look who is there.
            held[-1, slot] = problem.n_sources
            twice = np.concatenate([field, field[:, place : place + 1]], axis=1)
            ratio[place] = track_oracle.dense_law(held, new, twice, data, *scales)[0]
        else:
            ratio[place] = track_oracle.dense_law(held, new, field, data, *scales)[0]
    weights = model.location_prior / model.location_prior.sum()
    joint = weights * np.exp(ratio - without)
    return np.exp(parameters[-2]) * joint.sum(), joint / joint.sum(), weights


def assert_is_a_law(proposal):
    density = np.exp(np.asarray(proposal.log_place))
    assert density.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(proposal.cumulative, np.cumsum(density), atol=1e-12)
    assert float(proposal.cumulative[-1]) == 1


def mixed(laws, weights):
    """The proposal's density of places: exact laws, flattened ones, and the location prior."""
    flat = [np.sqrt(weights * law) / np.sqrt(weights * law).sum() for law in laws]
    share_flat, share_prior = birth_proposal._FLAT_SHARE, birth_proposal._PRIOR_SHARE
    sharp = (1 - share_flat - share_prior) * np.mean(laws, axis=0)
    return sharp + share_flat * np.mean(flat, axis=0) + share_prior * weights


@pytest.mark.parametrize("n_orient", [1, 3])
def test_one_particle_has_the_exact_law_of_a_birth(n_orient):
    problem, model, target = make(n_orient)
    parameters = parameters_of(problem, model, birth_prob=0.1)
    for n_past in (1, 3):
        past = PLACES[:n_past], IS_NEW[:n_past]
        law = particle(target, parameters, *past)
        projected = target.gram.projected_data[n_past]
        proposal = survey(*stack(law), target.prior, target.gram, projected)
        assert_is_a_law(proposal)
        odds, places, weights = exact_law(problem, model, parameters, *past, n_past)
        # Exponentials of differences of log densities near 100: rounding.
        np.testing.assert_allclose(np.exp(proposal.log_place), mixed([places], weights), rtol=1e-10)
        probability = np.clip(max(odds / (1 + odds), 0.1), 0.05, 0.5)
        assert float(proposal.birth_prob) == pytest.approx(probability, rel=1e-10)


@pytest.mark.slow
def test_some_particles_propose_the_mean_of_their_laws():
    problem, model, target = make(3)
    pasts = [(PLACES, IS_NEW), (np.full_like(PLACES, -1), np.zeros_like(IS_NEW))]
    sets = [
        parameters_of(problem, model, (0.8, 1.3), 0.02),
        parameters_of(problem, model, (1.1, 0.9), 0.03),
    ]
    each = [particle(target, p, *past) for p, past in zip(sets, pasts, strict=True)]
    proposal = survey(*stack(*each), target.prior, target.gram, target.gram.projected_data[3])
    exact = [exact_law(problem, model, p, *past, 3) for p, past in zip(sets, pasts, strict=True)]
    odds, laws, weights = zip(*exact, strict=True)
    np.testing.assert_allclose(np.exp(proposal.log_place), mixed(laws, weights[0]), rtol=1e-10)
    probability = np.mean([o / (1 + o) for o in odds])
    wanted = np.clip(max(probability, 0.025), 0.05, 0.5)
    assert float(proposal.birth_prob) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "birth_prob"), [(0.0, 0.001), (30.0, 0.4)])
def test_births_are_proposed_neither_never_nor_always(gain, birth_prob):
    """However little or much a sample says."""
    problem, model, _ = make(3)
    loud = dataclasses.replace(problem, data=gain * problem.data + 1e-9)
    target = track_inference.prepare(model, loud, 2**30)
    parameters = parameters_of(problem, model, birth_prob=birth_prob)
    law = particle(target, parameters, PLACES[:1], IS_NEW[:1])
    proposal = survey(*stack(law), target.prior, target.gram, target.gram.projected_data[1])
    assert_is_a_law(proposal)
    assert float(proposal.birth_prob) == {0.0: 0.05, 30.0: 0.5}[gain]
    # No place has less than a fifth of what the prior gives it.
    prior = np.exp(np.asarray(target.prior.log_place))
    assert np.all(np.exp(proposal.log_place) > 0.199 * prior)


@pytest.mark.slow
def test_places_of_no_prior_are_never_proposed_and_single_precision_agrees():
    problem, _, _ = make(3)
    weights = np.array([1.0, 2.0, 0.0, 0.5, 1.5])
    model = DynamicDipoles(
        0.1, 0.2, 2, moment_std=1e-8, noise_std=1.0, location_prior=weights, moment_persistence=0.7
    )
    told = []
    for dtype in (np.float64, np.float32):
        cast = dataclasses.replace(
            problem, lead_field=problem.lead_field.astype(dtype), data=problem.data.astype(dtype)
        )
        target = track_inference.prepare(model, cast, 2**30)
        mean, cov = moment_filter.empty(2, 3, dtype)
        parameters = np.asarray(target.prior.sample_parameters(jax.random.key(0), 1))[0]
        law = (PLACES[0], np.asarray(mean), np.asarray(cov), parameters)
        told.append(survey(*stack(law), target.prior, target.gram, target.gram.projected_data[2]))
    double, single = told
    assert single.log_place.dtype == single.birth_prob.dtype == np.float32
    assert double.log_place[2] == single.log_place[2] == -np.inf
    density = np.exp(np.asarray(double.log_place))
    np.testing.assert_allclose(np.exp(single.log_place), density, atol=1e-4)
    assert float(single.birth_prob) == pytest.approx(float(double.birth_prob), abs=1e-4)
