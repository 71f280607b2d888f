"""Spread that figures draw, against dense covariances; the residual that a right model leaves."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import bayes_esi as be
from bayes_esi.posterior.sources import SourcePosterior
from bayes_esi.viz.regularisation import evidence_curve
from bayes_esi.viz.source_fit import expected_residual
from bayes_esi.viz.source_spread import source_field_law

N_CHANNELS, N_SOURCES, N_TIMES = 7, 6, 4
SCALE = 1.5  # A·m: with lead fields of order one the numbers are of order one


def make_problem(seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((N_CHANNELS, N_CHANNELS))
    return be.Problem.from_arrays(
        3 * rng.standard_normal((N_CHANNELS, N_TIMES)),
        rng.standard_normal((N_CHANNELS, N_SOURCES, 3)),
        rng.standard_normal((N_SOURCES, 3)),
        root @ root.T + np.eye(N_CHANNELS),
        source_normals=rng.standard_normal((N_SOURCES, 3)),
    )


def covariance_over_components(seed=1):
    root = np.random.default_rng(seed).standard_normal((3 * N_SOURCES, 3 * N_SOURCES))
    return root @ root.T / (3 * N_SOURCES)


MODELS = {
    "loose": be.GaussianSources(source_std=SCALE, loose=0.3, depth=0.6),
    "fixed": be.GaussianSources(source_std=SCALE, loose=0.0, noise_std=1.3),
    "over components": be.GaussianSources(
        source_std=SCALE, covariance=covariance_over_components(), smoothness=0.7, depth=0.6
    ),
    "autoregressive": be.AutoregressiveSources(0.8, source_std=SCALE, loose=0.3),
}


def dense(posterior, model):
    """Mean and covariance of all sources, in A·m, by one large Gaussian: (n_axes rows) x times."""
    problem = posterior.problem
    prior = posterior.answers.prior
    field, frames = prior.field.lead_field, prior.field.own_frames
    n, d = field.shape[1:]
    spread = np.eye(n * d)
    if prior.correlation.size == n * d and d > 1:
        share = model.smoothness
        spread = share * np.asarray(model.covariance) + (1 - share) * np.eye(n * d)
    depth = model.depth
    weights = np.ones(n)
    if depth:
        from bayes_esi.sources.depth import depth_weights

        weights = depth_weights(np.asarray(problem.lead_field), depth, model.depth_limit)
    root = np.repeat(np.sqrt(weights), d)
    spread = root[:, None] * spread * root
    lag = np.abs(np.subtract.outer(np.arange(N_TIMES), np.arange(N_TIMES)))
    time = np.eye(N_TIMES) if not hasattr(model, "kernel") else model.coefficient**lag * 1.0
    scale = SCALE / problem.moment_unit
    prior_cov = scale**2 * np.kron(spread, time)
    gain = np.kron(np.asarray(field).reshape(len(field), -1), np.eye(N_TIMES))
    data_cov = gain @ prior_cov @ gain.T + model.noise_std**2 * np.eye(len(gain))
    solved = np.linalg.solve(data_cov, gain @ prior_cov).T
    mean = solved @ problem.data.ravel()
    cov = prior_cov - solved @ gain @ prior_cov
    turn = np.zeros((n * frames.shape[1], n * d))
    for j in range(n):
        turn[j * frames.shape[1] : (j + 1) * frames.shape[1], j * d : (j + 1) * d] = frames[j]
    turn = problem.moment_unit * np.kron(turn, np.eye(N_TIMES))
    return turn @ mean, turn @ cov @ turn.T, gain @ mean, gain @ cov @ gain.T


@pytest.mark.parametrize("name", MODELS)
def test_spread_along_a_direction_and_at_the_sensors(name):
    model, problem = MODELS[name], make_problem()
    posterior = be.infer(model, problem, progress=False)
    mean, cov, field, field_cov = dense(posterior, model)
    n_axes = posterior.mean.shape[1]
    rng = np.random.default_rng(2)
    sources = np.array([4, 1])
    directions = rng.standard_normal((2, n_axes))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found_mean, found_std = posterior.answers.along(sources, directions)
    mean = mean.reshape(N_SOURCES, n_axes, N_TIMES)
    cov = cov.reshape(N_SOURCES, n_axes, N_TIMES, N_SOURCES, n_axes, N_TIMES)
    for i, (source, direction) in enumerate(zip(sources, directions, strict=True)):
        block = np.einsum("atbt->tab", cov[source, :, :, source])
        std = np.sqrt(np.einsum("a,tab,b->t", direction, block, direction))
        # Rounding of solves with condition numbers of some thousands.
        np.testing.assert_allclose(found_mean[i], direction @ mean[source], rtol=1e-8)
        np.testing.assert_allclose(found_std[i], std, rtol=1e-8)

    colouring = np.linalg.pinv(problem.whitener)
    white = field_cov.reshape(N_CHANNELS, N_TIMES, N_CHANNELS, N_TIMES)
    white = np.einsum("ctdt->tcd", white) + model.noise_std**2 * np.eye(N_CHANNELS)
    variance = np.einsum("xc,tcd,xd->xt", colouring, white, colouring)
    found_field, found_deviation = source_field_law(posterior)
    expected = colouring @ field.reshape(N_CHANNELS, N_TIMES)
    np.testing.assert_allclose(found_field, expected, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found_deviation, np.sqrt(variance), rtol=1e-8)


def mixture(first, second):
    """A posterior that gives half of its mass to each of two."""
    joined = {}
    for field in dataclasses.fields(first.moments):
        pair = [getattr(p.moments, field.name) for p in (first, second)]
        is_one = field.name in ("time", "cov", "log_density")
        joined[field.name] = pair[0] if is_one else np.concatenate(pair)
    return dataclasses.replace(first, moments=dataclasses.replace(first.moments, **joined))


def test_a_mixture_adds_the_variance_of_its_means():
    problem = make_problem()
    parts = [
        be.infer(be.GaussianSources(source_std=s, loose=0.3), problem, progress=False)
        for s in (0.3, 3.0)
    ]
    both = mixture(*parts)
    assert isinstance(both, SourcePosterior)
    sources, directions = np.array([2]), np.array([[0.6, 0.0, 0.8]])
    means, stds = np.array([p.answers.along(sources, directions) for p in parts]).swapaxes(0, 1)
    mean, std = both.answers.along(sources, directions)
    # The same sums in another order.
    np.testing.assert_allclose(mean, means.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std**2, np.mean(stds**2, axis=0) + means.var(axis=0), rtol=1e-10)
    axes = np.eye(3)[None, 0]
    np.testing.assert_allclose(both.answers.along(sources, axes)[1], both.std[2, :1], rtol=1e-10)
    fields, levels = np.array([source_field_law(p) for p in parts]).swapaxes(0, 1)
    field, level = source_field_law(both)
    np.testing.assert_allclose(field, fields.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(level**2, np.mean(levels**2, axis=0) + fields.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize("name", ["loose", "autoregressive"])
def test_residual_of_a_right_model_is_as_expected(name):
    model, problem = MODELS[name], make_problem()
    posterior = be.infer(model, problem, progress=False)
    low, high = expected_residual(posterior)
    # The map from data to the fitted field, column by column, and data from the model itself.
    field = np.asarray(posterior.answers.prior.field.lead_field)
    weights = np.diag(
        [1.0] * N_SOURCES * 3
        if model.depth == 0
        else np.repeat(posterior.answers.prior._weights(model.depth), 3)
    )
    flat = field.reshape(len(field), -1)
    lag = np.abs(np.subtract.outer(np.arange(N_TIMES), np.arange(N_TIMES)))
    time = np.eye(N_TIMES) if name == "loose" else 0.8**lag
    signal = (SCALE / problem.moment_unit) ** 2 * np.kron(flat @ weights @ flat.T, time)
    cov = signal + np.eye(len(signal))
    rng = np.random.default_rng(3)
    n_draws = 4000
    drawn = np.linalg.cholesky(cov) @ rng.standard_normal((len(cov), n_draws))
    residual = np.linalg.solve(cov, drawn)  # (I - S C^-1) y with C = S + I
    rms = np.sqrt(np.mean(residual.reshape(N_CHANNELS, N_TIMES, n_draws) ** 2, axis=0))
    inside = np.mean((rms > low[:, None]) & (rms < high[:, None]), axis=1)
    # 4,000 draws: standard error 0.0035; the scaled chi-squared law is off by as much again.
    np.testing.assert_allclose(inside, 0.95, atol=0.02)


@pytest.mark.parametrize("name", ["loose", "autoregressive"])
def test_evidence_curve_is_the_evidence_of_each_regularisation(name):
    problem = make_problem()
    model = dataclasses.replace(MODELS[name], source_std=None, lambda2=0.2)
    posterior = be.infer(model, problem, progress=False)
    lambda2 = np.array([0.05, 0.2, 3.0])
    _, curve = evidence_curve(posterior, lambda2)
    for value, found in zip(lambda2, curve, strict=True):
        other = be.infer(dataclasses.replace(model, lambda2=value), problem, progress=False)
        assert found == pytest.approx(other.log_evidence, rel=1e-9)


def test_evidence_curve_of_channel_groups_with_levels_of_their_own():
    whole = make_problem()
    arrays = [np.linalg.pinv(whole.whitener) @ whole.data, None, whole.source_pos]
    arrays[1] = np.random.default_rng(5).standard_normal((N_CHANNELS, N_SOURCES, 3))
    problem = be.Problem.from_arrays(*arrays, noise_groups=["a"] * 3 + ["b"] * 4)
    posterior = be.infer(be.GaussianSources(source_std=SCALE), problem, progress=False)
    levels = np.array([0.5, 2.0])
    changed = dataclasses.replace(posterior, hyper=posterior.hyper | {"noise_std": levels})
    lambda2 = changed.lambda2 * np.array([0.25, 1.0])
    _, curve = evidence_curve(changed, lambda2)
    scale, group = SCALE / problem.moment_unit, problem.noise_group
    flat = np.asarray(problem.lead_field).reshape(N_CHANNELS, -1)
    for found, size in zip(curve, (2 * scale, scale), strict=True):
        cov = size**2 * flat @ flat.T + np.diag(levels[group] ** 2)
        law = multivariate_normal(np.zeros(N_CHANNELS), cov)
        expected = law.logpdf(problem.data.T).sum() + problem.log_jacobian
        assert found == pytest.approx(expected, rel=1e-9)
