"""Laws of the data of Gaussian sources: evidence, draws, users' own hierarchies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import chi2, kstest

import bayes_esi as be
from bayes_esi.distributions import SourceData, source_law

M, N, STD = 9, 14, 2e-9


def make_problem(seed=0, n_times=20, n_groups=1):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((M, M))
    return be.Problem.from_arrays(
        rng.standard_normal((M, n_times)) * 4,
        rng.standard_normal((M, N, 3)) / STD,
        rng.uniform(-0.05, 0.05, (N, 3)),
        root @ root.T + np.eye(M),
        times=np.arange(n_times) / 100,
        noise_groups=None if n_groups == 1 else ["meg"] * 4 + ["eeg"] * 5,
    )


MODELS = {
    "static": (be.GaussianSources, {}),
    "dynamic": (be.AutoregressiveSources, {"coefficient": 0.8}),
    "matern": (be.AutoregressiveSources, {"kernel": "matern32", "time_scale": 0.05}),
}


def known_of(values):
    """What a model is given for these values of the unknown."""
    return {k: float(np.atleast_1d(v)[0]) for k, v in values.items()}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("is_dense", [False, True])
def test_log_density_is_the_evidence(kind, is_dense):
    make, more = MODELS[kind]
    unknown = {"noise_std": None, "depth": None} if is_dense else {"noise_std": None}
    problem = make_problem(n_groups=2 if is_dense else 1)
    law = source_law(make(**unknown, **more), problem)
    values = {"source_std": STD, "noise_std": 1.3} | ({"depth": 0.6} if is_dense else {})
    data = law(**values)
    known = make(**values, **more)
    wanted = be.infer(known, problem, progress=False).log_evidence
    assert float(data.log_prob(problem.data)) == pytest.approx(wanted, abs=1e-10 * abs(wanted))
    # Of other data, too: the value is not that of the problem.
    other = dataclasses.replace(problem, data=problem.data[::-1])
    wanted = be.infer(known, other, progress=False).log_evidence
    assert float(data.log_prob(other.data)) == pytest.approx(wanted, abs=1e-10 * abs(wanted))


@pytest.mark.parametrize("kind", MODELS)
def test_draws_follow_the_law(kind):
    make, more = MODELS[kind]
    problem = make_problem(n_times=6)
    law = source_law(make(noise_std=None, **more), problem)(source_std=STD, noise_std=1.3)
    assert isinstance(law, SourceData) and law.event_shape == (M, 6)
    draws = law.sample(jax.random.key(0), (3, 500))
    assert draws.shape == (3, 500, M, 6)
    flat = draws.reshape(-1, M * 6)
    # -2 log density less its value at zero is chi squared for a Gaussian law.
    at_zero = law.log_prob(jnp.zeros((M, 6)))
    quadratic = -2 * (jax.lax.map(law.log_prob, draws.reshape(-1, M, 6)) - at_zero)
    assert kstest(np.asarray(quadratic), chi2(M * 6).cdf).pvalue > 1e-4
    assert np.all(np.abs(np.mean(flat, axis=0)) < 5 * np.std(flat, axis=0) / np.sqrt(1500))


def test_gradients_of_the_dense_path_are_right():
    problem = make_problem(n_groups=2)
    law = source_law(be.AutoregressiveSources(noise_std=None, depth=None), problem)

    def density(x):
        values = {
            "source_std": STD * jnp.exp(x[0]),
            "noise_std": jnp.exp(x[1:3]),
            "depth": x[3],
            "time_scale": jnp.exp(x[4]),
        }
        return law(**values).log_prob(problem.data)

    x = jnp.array([0.1, 0.2, -0.1, 0.4, -3.0])
    found = jax.grad(density)(x)
    for i, step in enumerate(1e-5 * np.eye(5)):
        slope = (density(x + step) - density(x - step)) / 2e-5
        # Differences of values near 1e3 err by 1e-7 of their step.
        assert float(found[i]) == pytest.approx(float(slope), rel=1e-5, abs=1e-4)


def test_two_subjects_share_a_scale():
    problems = []
    for seed in range(2):
        problem = make_problem(seed=seed, n_times=60)
        law = source_law(be.GaussianSources(), problem)
        data = law(source_std=STD).sample(jax.random.key(seed))
        problems.append(dataclasses.replace(problem, data=np.asarray(data)))
    laws = [source_law(be.GaussianSources(), p) for p in problems]

    def together():
        source_std = numpyro.sample("source_std", dist.LogUniform(1e-11, 1e-7))
        for i, (law, problem) in enumerate(zip(laws, problems, strict=True)):
            numpyro.sample(f"data {i}", law(source_std=source_std), obs=problem.data)

    start = numpyro.infer.init_to_value(values={"source_std": STD})
    chains = MCMC(
        NUTS(together, init_strategy=start),
        num_warmup=200,
        num_samples=600,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    chains.run(jax.random.key(1))
    draws = np.log(np.asarray(chains.get_samples()["source_std"]))
    grid = np.log(STD) + np.linspace(-0.5, 0.5, 401)
    total = sum(
        np.array([float(law(source_std=np.exp(x)).log_prob(p.data)) for x in grid])
        for law, p in zip(laws, problems, strict=True)
    )
    weights = np.exp(total - total.max())
    weights /= weights.sum()
    mean = weights @ grid
    std = np.sqrt(weights @ (grid - mean) ** 2)
    # Some 500 effective draws: 4.5 % of a deviation, four of them allowed.
    assert abs(draws.mean() - mean) < 0.2 * std
    assert draws.std() == pytest.approx(std, rel=0.15)


@pytest.mark.slow
def test_programs_serve_predictive_and_svi():
    problem = make_problem()
    program = be.AutoregressiveSources(coefficient=0.5).numpyro(problem)
    prior = Predictive(program, num_samples=4)(jax.random.key(0), is_observed=False)
    assert prior["data"].shape == (4, M, 20) and prior["source_std"].shape == (4,)
    svi = SVI(program, AutoNormal(program), numpyro.optim.Adam(0.1), Trace_ELBO())
    result = svi.run(jax.random.key(1), 50, progress_bar=False)
    assert np.all(np.isfinite(result.losses)) and result.losses[-1] < result.losses[0]


def test_what_a_law_needs():
    law = source_law(be.GaussianSources(), make_problem())
    assert set(law.unknown) == {"source_std"}
    with pytest.raises(ValueError, match="needs source_std"):
        law()
    with pytest.raises(ValueError, match="hyper-parameter"):
        law(source_std=STD, time_scale=0.1)
