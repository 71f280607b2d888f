"""Choice of lambda2: dense Gaussians, automatic derivatives, the truth, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayes_esi.inference.regularisation import evidence, gcv, l_curve, l_curve_points

M, T = 15, 6


def scene(lambda2=0.3, n_times=T, noise_std=1.0, seed=0):
    """Lead field and data drawn from the model, and what the functions see of them."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((M, 40)) * np.exp(-np.arange(M) / 4)[:, None]
    sources = rng.standard_normal((40, n_times)) / np.sqrt(lambda2)
    data = noise_std * (field @ sources + rng.standard_normal((M, n_times)))
    eigenvalues, vectors = np.linalg.eigh(field @ field.T)
    return field, data, eigenvalues, vectors.T @ data


def fit(field, data, lambda2):
    return field.T @ np.linalg.solve(field @ field.T + lambda2 * np.eye(M), data)


def test_evidence_is_the_gaussian_density():
    field, data, e, z = scene()
    grid = np.logspace(-3, 2, 7)
    curve = evidence(e, z, grid)
    for value, lambda2 in zip(curve.criterion, grid, strict=True):
        law = multivariate_normal(np.zeros(M), field @ field.T / lambda2 + np.eye(M))
        np.testing.assert_allclose(value, -2 * law.logpdf(data.T).sum(), rtol=1e-11)


def test_unknown_noise_is_profiled():
    field, data, e, z = scene(noise_std=7.0)
    grid = np.logspace(-3, 2, 7)
    curve = evidence(e, z, grid, is_noise_known=False)
    for value, lambda2 in zip(curve.criterion, grid, strict=True):
        cov = field @ field.T / lambda2 + np.eye(M)
        variance = np.sum(data * np.linalg.solve(cov, data)) / data.size
        law = multivariate_normal(np.zeros(M), variance * cov)
        np.testing.assert_allclose(value, -2 * law.logpdf(data.T).sum(), rtol=1e-11)
    # The units of the data do not matter then.
    best = evidence(e, z, is_noise_known=False).best
    np.testing.assert_allclose(evidence(e, 1e-3 * z, is_noise_known=False).best, best, rtol=1e-9)


def test_gcv_by_its_definition():
    field, data, e, z = scene()
    grid = np.logspace(-2, 1, 4)
    curve = gcv(e, z, grid)
    for value, lambda2 in zip(curve.criterion, grid, strict=True):
        influence = field @ fit(field, np.eye(M), lambda2)
        residual = data - influence @ data
        by_hand = np.sum(residual**2) / np.trace(np.eye(M) - influence) ** 2
        np.testing.assert_allclose(value, by_hand, rtol=1e-11)


def test_points_of_the_l_curve():
    field, data, e, z = scene()
    grid = np.logspace(-2, 1, 4)
    residual, solution = l_curve_points(e, z, grid)
    for i, lambda2 in enumerate(grid):
        x = fit(field, data, lambda2)
        np.testing.assert_allclose(residual[i], np.linalg.norm(data - field @ x), rtol=1e-11)
        np.testing.assert_allclose(solution[i], np.linalg.norm(x), rtol=1e-11)


def test_curvature_equals_automatic_differentiation():
    _, _, e, z = scene()
    power = jnp.sum(jnp.asarray(z) ** 2, axis=1)

    def curve(s):
        """Another parameter than the one of the derivation: lambda2 = s^3."""
        lambda2 = s**3
        residual = jnp.sum((lambda2 / (e + lambda2)) ** 2 * power)
        return jnp.stack([jnp.log(residual), jnp.log(jnp.sum(e * power / (e + lambda2) ** 2))]) / 2

    grid = np.logspace(-4, 3, 20)
    first = jax.vmap(jax.jacfwd(curve))(grid ** (1 / 3))
    second = jax.vmap(jax.jacfwd(jax.jacfwd(curve)))(grid ** (1 / 3))
    cross = first[:, 0] * second[:, 1] - second[:, 0] * first[:, 1]
    expected = cross / jnp.sum(first**2, axis=1) ** 1.5
    np.testing.assert_allclose(l_curve(e, z, grid).criterion, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("choose", "is_least"),
    [
        (evidence, True),
        (lambda e, z, g=None: evidence(e, z, g, is_noise_known=False), True),
        (gcv, True),
        (l_curve, False),
    ],
    ids=["evidence", "profiled", "gcv", "l_curve"],
)
def test_best_is_refined_and_invariant(choose, is_least):
    field, data, e, z = scene(n_times=50)
    curve = choose(e, z)
    near = choose(e, z, curve.best * np.array([0.999, 1.0, 1.001])).criterion
    assert (near[1] < min(near[0], near[2])) if is_least else (near[1] > max(near[0], near[2]))
    # Another grid finds the same; curvature is flat at its top: half the digits.
    other = choose(e, z, np.logspace(-6, 4, 83))
    np.testing.assert_allclose(other.best, curve.best, rtol=1e-8 if is_least else 1e-6)
    turn, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((M, M)))
    values, vectors = np.linalg.eigh(turn @ field @ field.T @ turn.T)
    turned = choose(values, vectors.T @ turn @ data)
    np.testing.assert_allclose(turned.best, curve.best, rtol=1e-6)
    # lambda2 is relative to the scale of the prior.
    scaled = choose(5 * e, z)
    np.testing.assert_allclose(scaled.best, 5 * curve.best, rtol=1e-6)


def test_evidence_finds_the_truth():
    _, _, e, z = scene(lambda2=0.3, n_times=20_000)
    # Fisher information of log lambda2: T / 2 sum (1 - r)^2, about 10 coordinates: 0.3 %.
    information = 20_000 / 2 * np.sum((e / (e + 0.3)) ** 2)
    for is_noise_known in (True, False):
        best = evidence(e, z, is_noise_known=is_noise_known).best
        assert abs(np.log(best / 0.3)) < 6 / np.sqrt(information)


def test_data_without_signal_prefer_the_end():
    _, _, e, _ = scene()
    z = 0.1 * np.random.default_rng(0).standard_normal((M, T))
    curve = evidence(e, z)
    assert curve.best == curve.lambda2[-1]


def test_bad_input():
    _, _, e, z = scene()
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="lambda2 must be positive"):
            evidence(e, z, [bad, 1.0, 2.0])
    with pytest.raises(ValueError, match="increasing grid"):
        gcv(e, z, [1.0, 2.0])
    with pytest.raises(ValueError, match="coordinates must have shape"):
        l_curve(e, z[1:])
    with pytest.raises(ValueError, match="eigenvalues must not be negative"):
        gcv(e - 10, z)
    with pytest.raises(ValueError, match="coordinates are zero"):
        gcv(e, 0 * z)
