"""What a posterior of distributed sources answers: draws, statistics, files, MNE objects."""

import dataclasses

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import sparse

import bayes_esi as be

M, N, T, STD = 9, 14, 7, 1e-9


def make_problem(n_orient=3, block_kinds=("vol",), n_groups=1, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((M, M))
    return be.Problem.from_arrays(
        rng.standard_normal((M, T)) * 4e-6,
        rng.standard_normal((M, N, n_orient)) * 1e3,
        rng.uniform(-0.05, 0.05, (N, 3)),
        (root @ root.T + np.eye(M)) * 1e-12,
        source_normals=rng.standard_normal((N, 3)),
        times=0.1 + np.arange(T) / 100,
        noise_groups=None if n_groups == 1 else ["meg"] * 4 + ["eeg"] * 5,
        source_block=np.arange(N) % len(block_kinds),
        block_kinds=block_kinds,
    )


MODELS = {
    "static": be.GaussianSources(source_std=STD, noise_std=1.2, depth=0.5),
    "dynamic": be.AutoregressiveSources(coefficient=0.8, source_std=STD, noise_std=1.2),
    "matern": be.AutoregressiveSources(kernel="matern32", time_scale=0.03, source_std=STD),
    "loose": be.AutoregressiveSources(coefficient=0.8, source_std=STD, loose=0.3),
    "fixed": be.GaussianSources(source_std=STD, loose=0.0),
}


@pytest.mark.parametrize(
    "kind",
    ["static", "dynamic", *(pytest.param(k, marks=pytest.mark.slow) for k in ("matern", "loose"))],
)
def test_draws_have_the_moments(kind):
    posterior = be.infer(MODELS[kind], make_problem(n_groups=2), progress=False)
    n = 3000
    draws = posterior.sample(jax.random.key(0), n)
    assert draws.shape == (n, *posterior.mean.shape)
    error = (draws.mean(axis=0) - posterior.mean) / posterior.std * np.sqrt(n)
    assert np.abs(error).max() < 5  # the largest of 300 normal numbers: 5 once in 6,000
    # A deviation over 3,000 draws errs by 1.3 %.
    np.testing.assert_allclose(draws.std(axis=0), posterior.std, rtol=0.07)
    some = posterior.sample(jax.random.key(0), 4, sources=[3, 1])
    np.testing.assert_array_equal(some, posterior.sample(jax.random.key(0), 4)[:, [3, 1]])


def test_draws_of_one_course_have_its_correlation():
    problem = make_problem()
    posterior = be.infer(MODELS["dynamic"], problem, progress=False)
    draws = posterior.sample(jax.random.key(1), 4000, sources=[2])[:, 0, 0]
    lag_one = np.mean((draws - draws.mean(0))[:, 1:] * (draws - draws.mean(0))[:, :-1], axis=0)
    flat = problem.lead_field.reshape(M, -1) / problem.moment_unit
    law = 0.8 ** np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    cov = STD**2 * np.kron(law, np.eye(3 * N))
    gain = np.kron(np.eye(T), flat)
    marginal = gain @ cov @ gain.T + 1.44 * np.eye(M * T)
    full = cov - cov @ gain.T @ np.linalg.solve(marginal, gain @ cov)
    at = np.arange(T) * 3 * N + 6
    wanted = np.array([full[at[t + 1], at[t]] for t in range(T - 1)])
    np.testing.assert_allclose(posterior.lag_one_cov[2, 0], wanted, rtol=1e-9)
    np.testing.assert_allclose(lag_one, wanted, atol=0.1 * posterior.std.max() ** 2)


@pytest.mark.parametrize("kind", MODELS)
def test_statistics_standardise_the_linear_map(kind):
    """The map from all data to the estimate, column by column: noise and model covariance."""
    problem = make_problem()
    model = MODELS[kind]
    posterior = be.infer(model, problem, progress=False)
    n_axes = posterior.mean.shape[1]
    columns = []
    for row in range(M):
        for t in range(T):
            unit = np.zeros((M, T))
            unit[row, t] = 1
            impulse = dataclasses.replace(problem, data=unit)
            columns.append(be.infer(model, impulse, progress=False).mean)
    kernel = np.stack(columns, axis=-1)  # (N, n_axes, T, M T)
    np.testing.assert_allclose(
        kernel @ problem.data.ravel(), posterior.mean, atol=1e-10 * np.abs(posterior.mean).max()
    )
    noise = np.sum(kernel**2, axis=-1) * np.asarray(posterior.hyper["noise_std"])[0] ** 2
    mean = posterior.mean
    z = mean[:, 0] / np.sqrt(noise[:, 0])
    if n_axes == 3:
        z = np.sqrt(np.sum(mean**2, axis=1) / np.sum(noise, axis=1))
    np.testing.assert_allclose(posterior.statistic("dSPM"), z, rtol=1e-8)

    # Under the model the estimate has the covariance prior less posterior.
    prior = posterior.answers.prior.variance(float(posterior.hyper["depth"]), 1.0)
    growth = posterior.moments.prior_variance[0] * problem.moment_unit**2
    told = prior[..., None] * growth - posterior.std**2
    cov = posterior.answers.estimate_cov()
    diagonal = np.broadcast_to(np.einsum("saat->sat", cov), told.shape)
    np.testing.assert_allclose(diagonal, told, rtol=1e-6)
    if n_axes == 1:
        wanted = mean[:, 0] / np.sqrt(told[:, 0])
    else:
        cov = np.broadcast_to(cov, (*cov.shape[:3], T))
        solved = np.linalg.solve(np.moveaxis(cov, 3, 1), np.moveaxis(mean, 2, 1)[..., None])
        wanted = np.sqrt(np.einsum("sat,sta->st", mean, solved[..., 0]))
    np.testing.assert_allclose(posterior.statistic("sLORETA"), wanted, rtol=1e-8)


@pytest.mark.parametrize("kind", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_eloreta_is_a_fixed_point(kind):
    problem = make_problem()
    posterior = be.infer(MODELS[kind], problem, progress=False)
    prior = posterior._eloreta.prior
    field = problem.lead_field / 1.2
    data_cov = np.einsum("rsd,sde,qse->rq", field, prior.blocks, field)
    assert np.trace(data_cov) == pytest.approx(M, rel=1e-6)
    m = np.linalg.inv(data_cov + posterior.lambda2 * np.eye(M))
    quadratic = np.einsum("rsd,rq,qse->sde", field, m, field)
    inverse = np.linalg.inv(prior.blocks)
    square = inverse @ inverse
    # The weights are defined up to the scale that trace = rank sets.
    scale = np.median(np.trace(square, axis1=1, axis2=2) / np.trace(quadratic, axis1=1, axis2=2))
    np.testing.assert_allclose(square, scale * quadratic, rtol=1e-5, atol=1e-6 * square.max())
    assert posterior.statistic("eLORETA").shape == (N, T)


def test_lag_one_covariances_belong_to_a_smoother():
    problem = make_problem()
    static = be.infer(MODELS["static"], problem, progress=False)
    assert static.lag_one_cov.shape == (N, 3, T - 1) and not np.any(static.lag_one_cov)
    filtered = be.infer(MODELS["dynamic"], problem, method="kalman_filter", progress=False)
    with pytest.raises(ValueError, match="kalman_smoother"):
        _ = filtered.lag_one_cov


def test_a_statistic_by_another_name():
    posterior = be.infer(MODELS["static"], make_problem(), progress=False)
    with pytest.raises(ValueError, match="'sLORETA'"):
        posterior.statistic("zSCORE")
    with pytest.raises(ValueError, match="'std'"):
        posterior.to_mne("variance")


ARCHIVED = {
    **MODELS,
    "unknown": be.GaussianSources(source_std=dist.LogNormal(-20.0, 2.0), noise_std=None),
    "curve": be.GaussianSources(),
    "precision": be.GaussianSources(
        source_std=STD, covariance=sparse.csr_array(sparse.diags(np.arange(1.0, N + 1)))
    ),
    "order": be.AutoregressiveSources(coefficient=[0.9, -0.3], source_std=STD),
}


@pytest.mark.parametrize("kind", ARCHIVED)
def test_a_file_gives_the_posterior_back(kind, tmp_path):
    posterior = be.infer(ARCHIVED[kind], make_problem(), progress=False, throw=False)
    posterior.save(tmp_path / "posterior.nc")
    again = be.load(tmp_path / "posterior.nc")
    assert type(again) is type(posterior) and again.status is posterior.status
    assert again.log_evidence == posterior.log_evidence
    # Products are summed in another order when arrays lie otherwise in memory.
    close = {"rtol": 1e-9, "atol": 1e-12 * np.abs(posterior.mean).max()}
    np.testing.assert_allclose(again.mean, posterior.mean, **close)
    np.testing.assert_allclose(again.std, posterior.std, **close)
    assert again.hyper.keys() == posterior.hyper.keys()
    key = jax.random.key(2)
    np.testing.assert_allclose(again.sample(key, 2), posterior.sample(key, 2), **close)
    if posterior.curve is not None:
        np.testing.assert_array_equal(again.curve.criterion, posterior.curve.criterion)


@pytest.mark.slow
def test_what_was_drawn_comes_back_and_speaks_arviz(tmp_path):
    problem = make_problem()
    posterior = be.infer(
        be.GaussianSources(),
        problem,
        method="nuts",
        progress=False,
        throw=False,
        n_samples=50,
        n_warmup=50,
        n_chains=2,
        n_components=5,
    )
    posterior.save(tmp_path / "posterior.nc")
    again = be.load(tmp_path / "posterior.nc")
    np.testing.assert_allclose(again.mean, posterior.mean, rtol=1e-6, atol=1e-18)
    tree = again.to_datatree(7)
    assert tree["posterior"]["source_std"].shape == (2, 50)
    assert tree["courses"]["moment"].shape[:2] == (1, 7)
    assert {"diverging", "energy"} <= set(tree["sample_stats"].data_vars)
    assert "source_std" in again.diagnostics().index
    with pytest.raises(ValueError, match="one set of scales"):
        again.statistic("dSPM")


def test_groups_for_arviz():
    problem = make_problem()
    posterior = be.infer(MODELS["dynamic"], problem, progress=False)
    tree = posterior.to_datatree(11, sources=[4, 2])
    moment = tree["posterior"]["moment"]
    assert moment.sizes == {"chain": 1, "draw": 11, "source": 2, "moment_axis": 3, "time": T}
    np.testing.assert_array_equal(moment["source"], [4, 2])
    observed = tree["observed_data"]["data"].values
    np.testing.assert_allclose(problem.whitener @ observed, problem.data, atol=1e-9)
    assert tree["posterior_predictive"]["data"].shape == (1, 11, M, T)
    with pytest.raises(ValueError, match="method='nuts'"):
        posterior.diagnostics()


@pytest.mark.parametrize(
    ("block_kinds", "kind"),
    [(("vol",), "Vol"), (("lh", "rh"), ""), (("lh", "rh", "vol"), "Mixed")],
)
def test_estimates_for_mne(block_kinds, kind):
    problem = make_problem(block_kinds=block_kinds)
    free = be.infer(MODELS["dynamic"], problem, progress=False)
    fixed = be.infer(MODELS["fixed"], problem, progress=False)
    order = np.argsort(problem.source_block, kind="stable")
    vector = free.to_mne()
    assert type(vector).__name__ == f"{kind}VectorSourceEstimate"
    np.testing.assert_array_equal(vector.data, free.mean[order])
    assert vector.tmin == pytest.approx(0.1) and vector.tstep == pytest.approx(0.01)
    np.testing.assert_array_equal(free.to_mne("std").data, free.std[order])
    scalar = free.to_mne("dSPM")
    assert type(scalar).__name__ == f"{kind}SourceEstimate"
    np.testing.assert_array_equal(scalar.data, free.statistic("dSPM")[order])
    np.testing.assert_array_equal(fixed.to_mne().data, fixed.mean[order, 0])


def test_a_summary_tells_the_peaks():
    posterior = be.infer(MODELS["dynamic"], make_problem(), progress=False)
    frame = posterior.summary(3)
    assert 1 <= len(frame) <= 3 and frame.index.name == "peak"
    place = int(frame.iloc[0]["source"])
    amplitude = np.linalg.norm(posterior.mean[place], axis=0)
    assert frame.iloc[0]["peak_nAm"] == pytest.approx(1e9 * amplitude.max())
    assert frame.attrs["status"] == "OK" and "source_std" in frame.attrs["hyper"]
    assert "SourcePosterior" in repr(posterior)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_an_inverse_operator_is_applied_to_other_data(kind):
    problem = make_problem(n_groups=2)
    other = dataclasses.replace(problem, data=problem.data[::-1].copy())
    posterior = be.infer(MODELS[kind], problem, progress=False)
    posterior.statistic("dSPM")
    applied = posterior.apply(other)
    wanted = be.infer(MODELS[kind], other, progress=False)
    np.testing.assert_allclose(applied.mean, wanted.mean, atol=1e-12 * np.abs(wanted.mean).max())
    np.testing.assert_allclose(applied.std, wanted.std, rtol=1e-10)
    np.testing.assert_allclose(applied.statistic("dSPM"), wanted.statistic("dSPM"), rtol=1e-9)
    assert applied.log_evidence == pytest.approx(wanted.log_evidence, abs=1e-9)
    assert applied.answers.synthesis() is posterior.answers.synthesis()
    with pytest.raises(ValueError, match="infer anew"):
        posterior.apply(make_problem(seed=1))
