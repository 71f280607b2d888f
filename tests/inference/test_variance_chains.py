"""No-U-turn chains of variances against quadrature, the Gibbs sampler, densities and priors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayes_esi.core.status import Status
from bayes_esi.inference import scale_mixture, variance_chains

KEY = jax.random.key(0)
CHAINS = {"n_chains": 8, "n_warmup": 300, "n_samples": 500}


def error(draws):
    """Standard error of the mean of (n_chains, n_samples) draws, from the spread of chains."""
    means = draws.mean(axis=1)
    return means.std(ddof=1) / np.sqrt(len(means))


def assert_mean(draws, expected):
    # Eight chains estimate their own error: t with seven degrees of freedom, p < 1e-4.
    assert abs(draws.mean() - expected) < 7 * error(draws), (draws.mean(), expected, error(draws))


def test_the_likelihood_is_that_of_the_gaussian():
    rng = np.random.default_rng(0)
    field, data = rng.standard_normal((5, 3, 2)), rng.standard_normal((5, 4))
    given = variance_chains.Given(*map(jnp.asarray, (data, 4.0, field)), None, None)
    source_var, noise_var = np.array([0.5, 0.0, 2.0]), 1.7
    cov = np.einsum("mnd,n,knd->mk", field, source_var, field) + noise_var * np.eye(5)
    expected = stats.multivariate_normal(cov=cov).logpdf(data.T).sum()
    found = variance_chains.log_likelihood(jnp.asarray(source_var), noise_var, given)
    constant = 0.5 * data.size * np.log(2 * np.pi)
    assert float(found) == pytest.approx(expected + constant, rel=1e-12)


@pytest.mark.slow
def test_group_laplace_draws_agree_with_gibbs():
    """Two samplers of one law; the second is checked against quadrature in its own tests."""
    rng = np.random.default_rng(1)
    n, d, n_times, alpha = 5, 2, 3, 1.2
    weights = np.linspace(0.7, 1.5, n)
    field = rng.standard_normal((6, n, d))
    data = 2 * rng.standard_normal((6, n_times))
    prior = variance_chains.group_laplace(alpha, weights, d * n_times, field.dtype)
    drawn = variance_chains.run(KEY, data, field, prior, **CHAINS)
    other = scale_mixture.run(
        KEY, data, field, alpha, weights, n_chains=20, n_warmup=100, n_samples=2000
    )
    assert drawn.status is Status.OK
    for of in (
        lambda draws, j: np.log(draws.source_var[:, :, j]),
        lambda draws, j: draws.norm[:, :, j],
        lambda draws, j: draws.norm[:, :, j] ** 2,
        lambda draws, j: draws.is_loud[:, :, j].astype(float),
    ):
        for j in range(n):
            one, two = of(drawn, j), of(other, j)
            limit = 6 * np.hypot(error(one), error(two))
            assert abs(one.mean() - two.mean()) < limit


def half_cauchy(log_value):
    """Density of the logarithm, up to a constant."""
    return -np.log(2 * np.cosh(log_value))


@pytest.mark.slow
@pytest.mark.parametrize("probability", [None, 0.3])
def test_two_sources_of_a_horseshoe_follow_their_law(probability):
    """Overall and local deviations on a grid."""
    rng = np.random.default_rng(2)
    field = rng.standard_normal((4, 2, 1)) + 0.5
    data = 3 * field[:, 0] @ np.ones((1, 2)) + rng.standard_normal((4, 2))
    visible, largest = 0.8, 20.0**0.5
    prior = variance_chains.horseshoe(2, visible, largest, probability, field.dtype)
    drawn = variance_chains.run(KEY, data, field, prior, **CHAINS)

    local = np.linspace(-14, 14, 281)
    if probability is None:
        overall = np.linspace(np.log(visible / 2), np.log(visible), 21)
        log_prior = np.zeros(21)
    else:
        overall = np.linspace(-14, 10, 121)
        log_prior = half_cauchy(overall - np.log(visible * 0.3 / 0.7))
    one, two, both = np.meshgrid(local, local, overall, indexing="ij", sparse=True)
    log_density = half_cauchy(one) + half_cauchy(two) + log_prior
    v = [np.exp(2 * (a + both)) for a in (one, two)]
    v = [a / (1 + a / largest**2) for a in v]
    gram = np.einsum("mi,mj->ij", field[:, :, 0], field[:, :, 0])
    cross = field[:, :, 0].T @ data
    # |I + V K| and data' (I + G V G')^-1 data by the two sources' own inner products.
    a, b = 1 + v[0] * gram[0, 0], 1 + v[1] * gram[1, 1]
    det = a * b - v[0] * v[1] * gram[0, 1] ** 2
    fit = sum(
        v[0] * c[0] ** 2 * b + v[1] * c[1] ** 2 * a - 2 * v[0] * v[1] * gram[0, 1] * c[0] * c[1]
        for c in cross.T
    )
    log_density = log_density - 0.5 * (2 * np.log(det) - fit / det)
    density = np.exp(log_density - log_density.max())
    if probability is None:
        density[..., [0, -1]] *= 0.5  # trapezes, since the density does not end at zero
    density /= density.sum()
    for j in range(2):
        found = drawn.source_var[:, :, j]
        for of in (np.sqrt, lambda var: var / (1 + var)):
            assert_mean(of(found), np.sum(density * of(v[j])))
    assert_mean(np.log(drawn.overall_std), np.sum(density * both))


@pytest.mark.slow
def test_unknown_noise_follows_its_law():
    """One source, its deviation, the overall one and the noise on a grid."""
    rng = np.random.default_rng(3)
    field = rng.standard_normal((6, 1, 1))
    data = 2 * field[:, 0] + 1.5 * rng.standard_normal((6, 3))
    visible, largest = 0.5, 10.0**0.5
    prior = variance_chains.horseshoe(1, visible, largest, 0.5, field.dtype)
    drawn = variance_chains.run(KEY, data, field, prior, noise_var=None, **CHAINS)
    local = np.linspace(-12, 12, 241)[:, None, None]
    overall = np.linspace(-12, 10, 221)[:, None]
    noise = np.linspace(-3, 4, 141)
    s = np.exp(noise)
    v = s * np.exp(2 * (local + overall))
    v = v / (1 + v / largest**2)
    power = np.sum(field**2)
    explained = np.sum((field[:, 0].T @ data) ** 2)
    log_det = 5 * noise + np.log(s + v * power)
    misfit = (np.sum(data**2) - v * explained / (s + v * power)) / s
    log_density = half_cauchy(local) + half_cauchy(overall - np.log(visible))
    log_density = log_density - 0.5 * (3 * log_det + misfit)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    assert_mean(np.log(drawn.noise_var), np.sum(density * noise))
    assert_mean(np.sqrt(drawn.source_var[:, :, 0]), np.sum(density * np.sqrt(v)))


@pytest.mark.slow
def test_without_data_the_prior_is_drawn_by_a_diagonal_mass_matrix_too():
    """More sources than the mass matrix is dense for."""
    n, n_times = 120, 3
    field = 1e-8 * np.random.default_rng(0).standard_normal((4, n, 2))
    data = np.full((4, n_times), 1e-6)
    prior = variance_chains.group_laplace(2.0, np.ones(n), 2 * n_times, field.dtype)
    drawn = variance_chains.run(KEY, data, field, prior, **CHAINS)
    law = stats.gamma(0.5 * (2 * n_times + 1), scale=2 / 2.0**2)
    # 480,000 draws of 120 independent variances, chains mix within some steps.
    found = drawn.source_var
    assert found.mean() == pytest.approx(law.mean(), rel=0.01)
    assert found.var() == pytest.approx(law.var(), rel=0.03)
    norm = stats.gamma(2 * n_times, scale=1 / 2.0)
    assert drawn.norm.mean() == pytest.approx(norm.mean(), rel=0.01)
    assert not drawn.is_loud.any()


@pytest.mark.slow
def test_unknown_noise_scales_with_the_data_and_does_not_vanish():
    """More sources than channels, one sample: they could explain all data without any noise."""
    rng = np.random.default_rng(4)
    field = rng.standard_normal((5, 12, 1))
    data = rng.standard_normal((5, 1))
    prior = variance_chains.horseshoe(12, 1.0, 10.0, None, field.dtype)
    one = variance_chains.run(KEY, data, field, prior, noise_var=None, **CHAINS)
    prior = variance_chains.horseshoe(12, 1.0, 1e4, None, field.dtype)
    key = jax.random.key(1)
    two = variance_chains.run(key, 1e3 * data, field, prior, noise_var=None, **CHAINS)
    level, other = np.log(one.noise_var), np.log(two.noise_var) - 2 * np.log(1e3)
    limit = 7 * np.hypot(error(level), error(other))
    assert limit < 1.5 and abs(level.mean() - other.mean()) < limit
    assert level.min() > -20
    assert abs(one.is_loud.mean() - two.is_loud.mean()) < 0.05


def test_a_single_source_has_a_range_of_deviations():
    prior = variance_chains.horseshoe(1, 2.0, 5.0, None, np.float64)
    law = prior.laws["log_overall_std"]
    assert float(law.high - law.low) == pytest.approx(np.log(2))


def test_bad_input_is_named():
    prior = variance_chains.group_laplace(1.0, np.ones(2), 3, np.float64)
    field, data = np.ones((3, 2, 1)), np.ones((3, 3))
    for bad in ({"n_chains": 0}, {"noise_var": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            variance_chains.run(KEY, data, field, prior, **bad)
