"""Mixtures of draws under laws without zeros: what is listed, and what chains must agree on."""

import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference import loud_sources, scale_mixture

N, CHAINS, SAMPLES = 4, 4, 50


def mix(is_loud, norm):
    problem = be.Problem.from_arrays(
        np.ones((3, 2)), np.ones((3, N, 1)), np.eye(4, 3), times=np.arange(2)
    )
    rng = np.random.default_rng(0)
    shape = (CHAINS, SAMPLES)
    drawn = scale_mixture.Draws(np.ones((*shape, N)), norm, is_loud, rng.standard_normal(shape))
    return loud_sources.mix(drawn, problem, {}, {}, n_components=7, trace={})


def test_sources_are_listed_that_are_loud_in_half_of_the_draws():
    rng = np.random.default_rng(1)
    is_loud = rng.random((CHAINS, SAMPLES, N)) < [0.9, 0.1, 0.7, 0.0]
    result = mix(is_loud, rng.random((CHAINS, SAMPLES, N)))
    assert list(result.moments.support) == [0, 2]
    assert result.moments.source_var.shape == (7, 1, N)
    assert result.draws["strength"].shape == (CHAINS, SAMPLES, 2)
    np.testing.assert_allclose(result.moments.exceedance, is_loud.mean(axis=(0, 1)))


def test_chains_that_have_stuck_at_different_sources_disagree():
    """Each chain has a source of its own, so that none is loud in half of all draws."""
    rng = np.random.default_rng(2)
    is_loud = np.broadcast_to(np.eye(4, dtype=bool)[:, None], (CHAINS, SAMPLES, N))
    result = mix(is_loud, 10 * is_loud + rng.random((CHAINS, SAMPLES, N)))
    assert result.moments.support.size == 0
    assert result.status is Status.CHAINS_DISAGREE
    together = np.broadcast_to(np.eye(4, dtype=bool)[0], (CHAINS, SAMPLES, N))
    result = mix(together, 10 * together + rng.random((CHAINS, SAMPLES, N)))
    assert list(result.moments.support) == [0]
    assert result.certificate["r_hat"] == pytest.approx(1.0, abs=0.1)
