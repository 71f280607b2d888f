"""Law of the data of dipoles: against dense normals and the package's own likelihood."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy import stats
from scipy.stats import multivariate_normal

from bayes_esi.distributions import DipoleData
from bayes_esi.inference.dipole_target import log_likelihood
from bayes_esi.models.dipole_gram import build_gram
from bayes_esi.models.problem import Problem

M, K, D, T = 12, 2, 3, 5

# Compiled as a whole: operation by operation takes ten times as long.
log_prob = jax.jit(lambda law, value: law.log_prob(value))
sample = jax.jit(lambda law, key, shape=(): law.sample(key, shape), static_argnums=2)


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    return {
        "fields": rng.normal(size=(M, K, D)),
        "moment_std": 0.7,
        "noise_std": np.array([0.6, 1.7]),
        "noise_group": np.repeat([0, 1], [5, 7]),
        "n_times": T,
    }


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    n_channels, n_sources = 14, 9
    root = rng.normal(size=(n_channels, n_channels))
    return Problem.from_arrays(
        1e-6 * rng.normal(size=(n_channels, T)),
        20.0 * rng.normal(size=(n_channels, n_sources, 3)),
        1e-2 * rng.normal(size=(n_sources, 3)),
        noise_cov=1e-12 * (root @ root.T / n_channels + np.eye(n_channels)),
        noise_groups=["a"] * 6 + ["b"] * 8,
    )


def covariance(parts):
    columns = parts["fields"].reshape(M, -1)
    noise = np.diag(parts["noise_std"][parts["noise_group"]] ** 2)
    return parts["moment_std"] ** 2 * columns @ columns.T + noise


def test_log_prob_is_that_of_a_dense_normal(parts):
    law = DipoleData(**parts, log_jacobian=3.0)
    assert law.batch_shape == () and law.event_shape == (M, T)
    value = np.random.default_rng(2).normal(size=(4, M, T))
    normal = multivariate_normal(np.zeros(M), covariance(parts))
    expected = [np.sum(normal.logpdf(y.T)) + 3.0 for y in value]
    np.testing.assert_allclose(log_prob(law, value), expected, rtol=1e-12)  # rounding
    assert law.log_prob(value[0]).shape == ()


def test_log_prob_is_the_likelihood_of_the_samplers(problem):
    places = np.array([2, 7, 3])
    gram = build_gram(problem.lead_field, problem.data, problem.noise_group, problem.n_groups)
    for moment, noise in [(1.3, (1.0, 0.4)), (40.0, (2.0, 3.0))]:
        log_scales = jnp.log(jnp.array([moment, *noise]))
        own = log_likelihood(gram, places, jnp.ones(3, bool), log_scales) + problem.log_jacobian
        law = DipoleData.from_problem(
            problem, moment * problem.moment_unit, np.array(noise), places=places
        )
        # Relative to the log density: rounding.
        np.testing.assert_allclose(log_prob(law, problem.data), own, rtol=1e-12, atol=1e-10)
        fields = problem.lead_field[:, places]
        same = DipoleData.from_problem(
            problem, moment * problem.moment_unit, np.array(noise), fields=fields
        )
        assert log_prob(same, problem.data) == log_prob(law, problem.data)


def test_density_of_the_recording_in_its_own_units(problem):
    """Against a normal over the recording: whitening and the unit of moments drop out."""
    colouring = np.linalg.inv(problem.whitener)
    moment_std, noise_std = 2e-8, np.array([0.8, 1.5])
    field = colouring @ (problem.lead_field[:, [4]] / problem.moment_unit).reshape(14, 3)
    noise = colouring @ np.diag(noise_std[problem.noise_group] ** 2) @ colouring.T
    cov = moment_std**2 * field @ field.T + noise
    recording = colouring @ problem.data
    # In units of 1e-6, where the dense normal does not take the covariance for singular.
    expected = np.sum(multivariate_normal(np.zeros(14), 1e12 * cov).logpdf(1e6 * recording.T))
    expected += recording.size * np.log(1e6)
    law = DipoleData.from_problem(problem, moment_std, noise_std, places=[4])
    np.testing.assert_allclose(log_prob(law, problem.data), expected, rtol=1e-10)  # rounding


def test_single_precision_does_not_cancel(parts):
    """Sources a thousand times above the noise, and two with fields one percent apart."""
    apart = parts["fields"]
    alike = apart.copy()
    alike[:, 1] = alike[:, 0] + 1e-2 * alike[:, 1]
    # tr(Z'Z) - tr(Z'F H^-1 F'Z) in place of the sum of squares is off by 4.2 and 1.0 here.
    for fields, moment_std, atol in [(apart, 1e3, 0.01), (alike, 1e2, 0.1)]:
        exact = DipoleData(fields, moment_std, parts["noise_std"], parts["noise_group"], T)
        value = np.asarray(sample(exact, jax.random.key(0)))
        single = [np.asarray(x, np.float32) for x in (fields, moment_std, parts["noise_std"])]
        low = DipoleData(*single, parts["noise_group"], T).log_prob(value.astype(np.float32))
        assert low.dtype == np.float32
        np.testing.assert_allclose(low, log_prob(exact, value), atol=atol)


def test_gradients_are_those_of_the_dense_normal(parts):
    value = np.random.default_rng(4).normal(size=(M, T))

    def of_law(fields, moment_std, noise_std):
        return DipoleData(fields, moment_std, noise_std, parts["noise_group"], T).log_prob(value)

    def dense(fields, moment_std, noise_std):
        columns = fields.reshape(M, -1)
        cov = moment_std**2 * columns @ columns.T
        cov = cov + jnp.diag(noise_std[parts["noise_group"]] ** 2)
        return jnp.sum(dist.MultivariateNormal(jnp.zeros(M), cov).log_prob(value.T))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(f, *arguments):
        curvature = jax.grad(jax.grad(lambda s: f(arguments[0], s, arguments[2])))(arguments[1])
        return *jax.grad(f, argnums=(0, 1, 2))(*arguments), curvature

    arguments = (parts["fields"], parts["moment_std"], parts["noise_std"])
    for got, wanted in zip(*(derivatives(f, *arguments) for f in (of_law, dense)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10)  # rounding of a solve


def test_no_dipole_is_noise_and_one_level_serves_all_groups(parts):
    value = np.random.default_rng(5).normal(size=(M, T))
    law = DipoleData(np.zeros((M, 0, D)), 1.0, 0.5, parts["noise_group"], T)
    np.testing.assert_allclose(
        log_prob(law, value), np.sum(stats.norm(0, 0.5).logpdf(value)), rtol=1e-12
    )
    one = DipoleData(parts["fields"], 0.7, 1.3, parts["noise_group"], T)
    two = DipoleData(parts["fields"], 0.7, np.array([1.3, 1.3]), parts["noise_group"], T)
    np.testing.assert_allclose(log_prob(one, value), log_prob(two, value), rtol=1e-14)


def test_samples_have_the_law(parts):
    """Goodness of fit: Mahalanobis distances are chi-squared, projections normal."""
    n = 2000
    law = DipoleData(**parts)
    value = np.asarray(sample(law, jax.random.key(6), (n,)))
    assert value.shape == (n, M, T)
    chol = np.linalg.cholesky(covariance(parts))
    white = np.linalg.solve(chol, value)
    pvalues = [stats.kstest(np.sum(white**2, axis=(1, 2)), stats.chi2(M * T).cdf).pvalue]
    # Correlation of rows and of samples, and each row and sample on its own.
    for mixed in (white.mean(axis=1) * np.sqrt(M), white.mean(axis=2) * np.sqrt(T)):
        pvalues += [stats.kstest(column, "norm").pvalue for column in mixed.T]
    assert min(pvalues) > 1e-3 / len(pvalues)
    np.testing.assert_allclose(law.variance[:, 0], np.diag(covariance(parts)), rtol=1e-12)
    assert not np.any(law.mean)


def test_batches_broadcast_and_vmap_gives_the_same(parts):
    rng = np.random.default_rng(7)

    def build(fields, scale):
        return DipoleData(fields, scale, parts["noise_std"], parts["noise_group"], T)

    fields, scales = rng.normal(size=(3, M, K, D)), np.array([[0.5], [2.0]])
    law = DipoleData(fields, scales, parts["noise_std"], parts["noise_group"], T)
    assert law.batch_shape == (2, 3)
    value = rng.normal(size=(M, T))
    one = jax.jit(lambda f, s: build(f, s).log_prob(value))
    table = np.array([[one(f, s) for f in fields] for s in scales[:, 0]])
    np.testing.assert_allclose(log_prob(law, value), table, rtol=1e-12)
    assert sample(law, jax.random.key(0), (4,)).shape == (4, 2, 3, M, T)
    assert log_prob(law.expand((5, 2, 3)), value).shape == (5, 2, 3)

    laws = jax.vmap(jax.vmap(build, (0, None)), (None, 0))(fields, scales[:, 0])
    per_law = jax.vmap(jax.vmap(lambda law: log_prob(law, value)))(laws)
    np.testing.assert_allclose(per_law, table, rtol=1e-12)
    # A vmapped law of a batched law stands on its own, too.
    wide = jax.vmap(lambda s: build(fields, s))(scales[:, 0])
    wide = promote_batch_shape(wide)
    assert wide.batch_shape == (2, 3)
    np.testing.assert_allclose(log_prob(wide, value), table, rtol=1e-12)


def test_it_is_a_pytree_that_jit_takes_and_returns(parts):
    law = DipoleData(**parts, log_jacobian=1.5)
    value = np.random.default_rng(8).normal(size=(M, T))
    leaves, structure = jax.tree.flatten(law)
    again = jax.tree.unflatten(structure, leaves)
    assert again.n_times == T
    assert log_prob(again, value) == log_prob(law, value)
    got = jax.jit(lambda law: law)(law)
    assert got.event_shape == law.event_shape
    np.testing.assert_allclose(
        jax.jit(lambda x, y: x.log_prob(y))(got, value), log_prob(law, value)
    )
    assert sample(got, jax.random.key(0)).shape == (M, T)


def test_bad_arguments_are_refused(parts, problem):
    with pytest.raises(ValueError, match="fields must have shape"):
        DipoleData(**parts | {"fields": np.ones((M, K))})
    with pytest.raises(ValueError, match="noise_group must name a group for each of 12"):
        DipoleData(**parts | {"noise_group": np.zeros(3, int)})
    with pytest.raises(ValueError, match="a value for each of 3 groups"):
        DipoleData(**parts | {"noise_group": np.repeat([0, 1, 2], 4)})
    with pytest.raises(ValueError, match="moment_std"):
        DipoleData(**parts | {"moment_std": -1.0}, validate_args=True)
    for wrong in ({}, {"places": [1], "fields": problem.lead_field[:, [1]]}):
        with pytest.raises(ValueError, match="either places"):
            DipoleData.from_problem(problem, 1e-8, **wrong)
    for places in ([9], [-1], 3, [0.5]):
        with pytest.raises(ValueError, match="places must be a list of source numbers, 0 to 8"):
            DipoleData.from_problem(problem, 1e-8, places=places)
    with pytest.raises(ValueError, match=r"fields must have shape \(..., 14, k, d\)"):
        DipoleData.from_problem(problem, 1e-8, fields=np.ones((13, 1, 3)))
    with pytest.raises(ValueError, match="each of 2 channel groups"):
        DipoleData.from_problem(problem, 1e-8, np.ones(3), places=[0])


def two_subjects(n_times=20):
    rng = np.random.default_rng(9)
    fields = [rng.normal(size=(10, k, 3)) for k in (1, 2)]
    laws = [DipoleData(f, 1.5, 1.0, n_times=n_times) for f in fields]
    keys = jax.random.split(jax.random.key(10))
    return fields, [np.asarray(law.sample(k)) for law, k in zip(laws, keys, strict=True)]


def shared_scale(fields, data=(None, None), n_times=20):
    moment_std = numpyro.sample("moment_std", dist.LogNormal(0.0, 1.0))
    for i, (field, values) in enumerate(zip(fields, data, strict=True)):
        numpyro.sample(f"data_{i}", DipoleData(field, moment_std, 1.0, n_times=n_times), obs=values)


def exact_scale(fields, data):
    """Mean and deviation of the logarithm of the scale, on a grid."""
    log_scale = np.linspace(-1.5, 1.5, 2001)
    log_density = dist.Normal(0.0, 1.0).log_prob(log_scale)
    for field, values in zip(fields, data, strict=True):
        log_density += DipoleData(field, np.exp(log_scale), 1.0, n_times=20).log_prob(values)
    density = np.exp(log_density - np.max(log_density))
    density /= density.sum()
    mean = density @ log_scale
    std = np.sqrt(density @ (log_scale - mean) ** 2)
    return mean, std


@pytest.mark.slow
def test_two_subjects_that_share_a_scale():
    """NUTS against the posterior on a grid of the one scale."""
    fields, data = two_subjects()
    mean, std = exact_scale(fields, data)
    mcmc = MCMC(NUTS(shared_scale), num_warmup=200, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(11), fields, data)
    draws = np.log(mcmc.get_samples()["moment_std"])
    # 2,000 draws of one parameter are worth about 800: 3.5 % of a deviation; four of these.
    assert abs(draws.mean() - mean) < 0.15 * std
    assert abs(draws.std() / std - 1) < 0.12


@pytest.mark.slow
def test_other_engines_take_the_same_program():
    """SVI against the grid, and replicates of the data."""
    fields, data = two_subjects()
    mean, std = exact_scale(fields, data)
    guide = AutoNormal(shared_scale)
    svi = SVI(shared_scale, guide, numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(12), 400, fields, data, progress_bar=False)
    fitted = guide.median(result.params)["moment_std"]
    # The guide is normal in the logarithm, as the posterior is to a good approximation.
    assert abs(np.log(fitted) - mean) < 0.5 * std

    draws = mean + std * np.random.default_rng(13).standard_normal(2000)
    predictive = Predictive(shared_scale, {"moment_std": np.exp(draws)})
    replicates = predictive(jax.random.key(13), fields)
    assert replicates["data_1"].shape == (2000, 10, 20)
    expected = np.mean(
        [DipoleData(fields[1], s, 1.0).variance[:, 0] for s in np.exp(draws[::20])], 0
    )
    # 40,000 correlated values a row: 2 %; six of these over ten rows.
    np.testing.assert_allclose(replicates["data_1"].var(axis=(0, 2)), expected, rtol=0.12)
