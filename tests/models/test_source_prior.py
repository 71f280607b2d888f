"""The spatial prior against dense matrices: K, R G', the diagonal of R and its draws."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

import bayes_esi as be
from bayes_esi.models.source_covariance import correlation_of
from bayes_esi.models.source_prior import source_prior

N, M = 12, 7


def make_problem(n_orient=3, seed=0):
    rng = np.random.default_rng(seed)
    return be.Problem.from_arrays(
        rng.standard_normal((M, 3)),
        rng.standard_normal((M, N, n_orient)) * rng.uniform(0.2, 3, (N, 1)),
        rng.uniform(-0.05, 0.05, (N, 3)),
        source_normals=rng.standard_normal((N, 3)),
    )


def positive(rng, n):
    root = rng.standard_normal((n, n))
    return root @ root.T + 0.5 * np.eye(n)


def covariances():
    rng = np.random.default_rng(5)
    dense, factor = positive(rng, N), rng.standard_normal((N, 4))
    precision = sparse.random(N, N, 0.2, random_state=1)
    precision = precision @ precision.T + sparse.eye(N)
    return {
        "identity": ("identity", np.eye(N)),
        "dense": (dense, dense),
        "precision": (sparse.csr_array(precision), np.linalg.inv(precision.toarray())),
        "factor": (factor, factor @ factor.T),
    }


def dense_prior(model, problem, correlation, depth, smoothness):
    """R over the axes of the answers, written out in full."""
    prior = source_prior(model, problem)
    frames = prior.field.own_frames
    d = frames.shape[2]
    mixed = (1 - smoothness) * np.eye(len(correlation)) + smoothness * correlation
    full = np.kron(mixed, np.eye(d)) if len(mixed) == N else mixed
    field = np.einsum("rsd,sxd->rsx", problem.lead_field, frames) if d == 3 else prior.field
    field = field if d == 3 else prior.field.lead_field
    gram = np.einsum("rsd,rse->sde", problem.lead_field, problem.lead_field)
    relative = 1 / np.linalg.norm(gram, 2, axis=(1, 2))
    above = relative[relative > model.depth_limit**2 * relative.min()]
    cap = above.min() if above.size else relative.max()
    weights = np.minimum(relative / cap, 1) ** depth
    turn = np.zeros((N * frames.shape[1], N * d))
    for s in range(N):
        rows, columns = (slice(s * k, (s + 1) * k) for k in frames.shape[1:])
        turn[rows, columns] = np.sqrt(weights[s]) * frames[s]
    return turn @ full @ turn.T


@pytest.mark.parametrize("kind", ["identity", "dense", "precision", "factor"])
@pytest.mark.parametrize("loose", [1.0, 0.3, 0.0])
def test_actions_are_those_of_the_dense_prior(kind, loose):
    covariance, dense = covariances()[kind]
    problem = make_problem()
    model = be.GaussianSources(depth=0.7, covariance=covariance, loose=loose, smoothness=0.6)
    prior = source_prior(model, problem)
    full = dense_prior(model, problem, dense, 0.7, 0.6)
    n_axes = 1 if loose == 0 else 3
    field = prior.field.lead_field if loose == 0 else problem.lead_field
    flat = field.reshape(M, N * n_axes)
    scale = np.abs(flat @ full @ flat.T).max()
    np.testing.assert_allclose(prior.gram(0.7, 0.6), flat @ full @ flat.T, atol=1e-12 * scale)
    cross = prior.cross(0.7, 0.6).reshape(N * n_axes, M)
    np.testing.assert_allclose(cross, full @ flat.T, atol=1e-12 * scale)
    np.testing.assert_allclose(prior.variance(0.7, 0.6).ravel(), np.diag(full), rtol=1e-11)
    rng = np.random.default_rng(3)
    draws = prior.draw(rng, 0.7, 0.6, 40_000).reshape(N * n_axes, -1)
    # The error of a covariance over 40,000 draws is 0.7 % of the variances.
    tolerance = 0.04 * np.sqrt(np.outer(np.diag(full), np.diag(full)))
    assert np.all(np.abs(draws @ draws.T / 40_000 - full) < tolerance)


def test_covariance_over_components():
    rng = np.random.default_rng(7)
    dense = positive(rng, 3 * N)
    problem = make_problem()
    prior = source_prior(be.GaussianSources(covariance=dense), problem)
    flat = problem.lead_field.reshape(M, -1)
    np.testing.assert_allclose(prior.gram(0.0, 1.0), flat @ dense @ flat.T, rtol=1e-11)
    np.testing.assert_allclose(prior.variance(0.0, 1.0).ravel(), np.diag(dense), rtol=1e-12)
    with pytest.raises(ValueError, match="loose=1"):
        source_prior(be.GaussianSources(covariance=dense, loose=0.5), problem)


@pytest.mark.parametrize("limit", [10.0, None])
def test_the_series_in_depth_and_smoothness_is_exact(limit):
    covariance, _ = covariances()["dense"]
    problem = make_problem()
    prior = source_prior(be.GaussianSources(covariance=covariance, depth_limit=limit), problem)
    family = prior.family(None, None)
    for depth, smoothness in [(0.0, 0.0), (0.31, 0.5), (0.8, 1.0), (1.0, 0.2)]:
        wanted = prior.gram(depth, smoothness)
        found = family.at(jnp.asarray(depth), jnp.asarray(smoothness))
        # Chebyshev terms are below rounding; sums of 24 terms lose a digit or two.
        np.testing.assert_allclose(found, wanted, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.ones((N + 1, N + 1)), "12 rows"),
        (np.diag([1.0] * (N - 1) + [-1.0]), "not positive semidefinite"),
        (np.triu(np.ones((N, N))), "not symmetric"),
        (np.zeros((N, N)), "zero"),
        (sparse.diags([1.0] * (N - 1) + [-1.0]), "not positive definite"),
        (sparse.diags([1.0] * (N - 1) + [0.0]), "not positive definite"),
    ],
)
def test_covariances_that_are_none(covariance, message):
    with pytest.raises(ValueError, match=message):
        correlation_of(covariance, make_problem(), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lambda2": 0.0}, "lambda2 must be positive"),
        ({"lambda2": -1.0}, "lambda2 must be positive"),
        ({"lambda2": 1.0, "source_std": 1e-9}, "give one of them"),
        ({"source_std": -1e-9}, "source_std"),
        ({"depth": 1.5}, "depth must lie between 0 and 1"),
        ({"smoothness": -0.1}, "smoothness"),
        ({"loose": 2}, "loose"),
        ({"covariance": "smooth"}, "'laplacian'"),
        ({"depth_limit": 0}, "depth_limit"),
        ({"noise_std": 0}, "noise_std"),
    ],
)
def test_models_refuse_what_makes_no_sense(arguments, message):
    for model in (be.GaussianSources, be.AutoregressiveSources):
        with pytest.raises(ValueError, match=message):
            model(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coefficient": 1.0}, "random"),
        ({"coefficient": [1.2, 0.1]}, "stationary"),
        ({"coefficient": 0.5, "time_scale": 0.1}, "give one of them"),
        ({"coefficient": 0.5, "kernel": "matern32"}, "time_scale"),
        ({"kernel": "brownian"}, "random_walk"),
        ({"time_scale": -1.0, "kernel": "matern12"}, "time_scale"),
        ({"order": 0}, "order"),
        ({"coefficient": [0.5, 0.1], "order": 3}, "leave order out"),
    ],
)
def test_laws_in_time_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        be.AutoregressiveSources(**arguments)
