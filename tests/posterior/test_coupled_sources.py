"""Coupled sources through the verbs of the package."""

import jax
import numpy as np
import pytest
from scipy import sparse

import bayes_esi as be
from bayes_esi.core.status import Status

M, T, STD = 8, 12, 1e-9


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    root = rng.standard_normal((M, M))
    return be.Problem.from_arrays(
        rng.standard_normal((M, T)) * 4e-6,
        rng.standard_normal((M, 27, 3)) * 1e3,
        0.01 * grid,
        (root @ root.T + np.eye(M)) * 1e-12,
        times=np.arange(T) / 100,
    )


def model_of(problem, **changes):
    arguments = {
        "transition": be.neighbour_dynamics(problem, 0.5, 0.4),
        "process_cov": STD**2 * (1 - 0.81),
        "noise_std": 1.1,
    }
    return be.CoupledSources(**arguments | changes)


def dense(problem, model):
    """Joint Gaussian of all states at all samples: mean, deviation, evidence."""
    f = np.kron(model.transition.toarray(), np.eye(3))
    n = len(f)
    q = model.process_cov * np.eye(n)
    start = np.linalg.solve(np.eye(n * n) - np.kron(f, f), q.ravel()).reshape(n, n)
    covs = [[None] * T for _ in range(T)]
    for t in range(T):
        block = start
        for s in range(t, T):
            covs[s][t], covs[t][s] = block, block.T
            block = f @ block
    cov = np.block(covs)
    flat = problem.lead_field.reshape(M, n) / problem.moment_unit
    gain = np.kron(np.eye(T), flat)
    marginal = gain @ cov @ gain.T + model.noise_std**2 * np.eye(M * T)
    y = problem.data.T.ravel()
    weights = np.linalg.solve(marginal, gain @ cov)
    mean = (weights.T @ y).reshape(T, 27, 3).transpose(1, 2, 0)
    variance = np.diag(cov) - np.sum((gain @ cov) * weights, axis=0)
    _, log_det = np.linalg.slogdet(2 * np.pi * marginal)
    log_evidence = -0.5 * (log_det + y @ np.linalg.solve(marginal, y)) + problem.log_jacobian
    return mean, np.sqrt(variance).reshape(T, 27, 3).transpose(1, 2, 0), log_evidence


@pytest.fixture(scope="module")
def posterior(problem):
    return be.infer(model_of(problem), problem, progress=False, n_draws=64)


def test_moments_are_those_of_the_dense_gaussian(problem, posterior):
    mean, std, log_evidence = dense(problem, posterior.model)
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-8 * np.abs(mean).max())
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=1e-7)
    error = posterior.moments.std_error.reshape(27, 3, T) * posterior.std
    # Errors of 1,000 deviations in units of what they say of themselves.
    assert np.mean(np.abs(posterior.std - std) < 3 * error + 1e-3 * std) > 0.97
    filtered = be.infer(model_of(problem), problem, method="kalman_filter", progress=False)
    np.testing.assert_allclose(filtered.mean[..., -1], mean[..., -1], atol=1e-8 * mean.max())
    np.testing.assert_allclose(filtered.std[..., -1], std[..., -1], rtol=1e-7)
    assert filtered.log_evidence == pytest.approx(log_evidence, abs=1e-7)


def test_uncoupled_sources_are_autoregressive_ones(problem):
    coupled = be.CoupledSources(0.9 * sparse.eye_array(27), STD**2 * 0.19)
    alone = be.AutoregressiveSources(coefficient=0.9, source_std=STD)
    coupled, alone = (be.infer(m, problem, progress=False) for m in (coupled, alone))
    scale = np.abs(alone.mean).max()
    np.testing.assert_allclose(coupled.mean, alone.mean, atol=1e-8 * scale)
    assert coupled.log_evidence == pytest.approx(alone.log_evidence, abs=1e-7)
    frame = be.compare({"coupled": coupled, "alone": alone})
    assert frame["probability"].to_numpy() == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.slow
def test_a_stream_converges_to_the_filter(problem, posterior):
    filtered = be.infer(model_of(problem), problem, method="kalman_filter", progress=False)
    stream = posterior.stream()
    assert stream.dare_residual < 1e-8
    recorded = np.linalg.pinv(problem.whitener) @ problem.data
    state = stream.init()
    for t in range(T):
        state, now = stream.step(state, recorded[:, t])
    # The first samples had another gain; the memory of it is 0.9^12 of a few per cent.
    np.testing.assert_allclose(now.std, filtered.std[..., -1], rtol=0.02)
    error = np.abs(now.mean - filtered.mean[..., -1]).max()
    assert error < 0.1 * np.abs(filtered.mean[..., -1]).max()


@pytest.mark.slow
def test_em_raises_the_evidence(problem):
    model = model_of(problem, process_cov=STD**2 * 0.02)
    before = be.infer(model, problem, progress=False)
    after = be.infer(
        model, problem, method="em", progress=False, throw=False, update=("scale",), max_steps=8
    )
    assert after.log_evidence > before.log_evidence + 1
    trace = after.sample_stats["log_posterior"]
    assert np.all(np.diff(trace) > -1e-8)
    assert after.hyper["process_cov"].shape == (81,)


def test_the_approximation_says_so(problem, posterior):
    with pytest.raises(be.InferenceError, match="APPROXIMATE"):
        be.infer(model_of(problem), problem, method="block_diagonal", progress=False)
    found = be.infer(
        model_of(problem), problem, method="block_diagonal", progress=False, throw=False
    )
    assert found.status is Status.APPROXIMATE
    assert abs(found.log_evidence - posterior.log_evidence) > 0.1


def test_answers_and_files(problem, posterior, tmp_path):
    draws = posterior.sample(jax.random.key(0), 200, sources=[3, 5])
    assert draws.shape == (200, 2, 3, T)
    error = np.abs(draws.mean(axis=0) - posterior.mean[[3, 5]]) / posterior.std[[3, 5]]
    assert error.max() * np.sqrt(200) < 4.5
    assert posterior.statistic("standardised").shape == (27, T)
    assert posterior.to_mne("standardised").data.shape == (27, T)
    assert len(posterior.summary()) > 0
    posterior.save(tmp_path / "posterior.nc")
    again = be.load(tmp_path / "posterior.nc")
    np.testing.assert_allclose(again.mean, posterior.mean, rtol=1e-12)
    assert abs(again.model.transition - posterior.model.transition).max() == 0
    for call in (
        lambda: posterior.statistic("dSPM"),
        lambda: posterior.resolution(),
        lambda: posterior.lambda2,
        lambda: posterior.plot("hyper"),
        lambda: posterior.apply(problem),
    ):
        with pytest.raises(ValueError, match="standardised|separate|overview"):
            call()


def test_what_is_drawn(posterior):
    import matplotlib.pyplot as plt

    for kind in posterior.kinds:
        posterior.plot(kind)
    plt.close("all")


def test_bad_input(problem):
    with pytest.raises(ValueError, match="spectral radius"):
        model_of(problem, transition=1.01 * sparse.eye_array(27))
    with pytest.raises(ValueError, match="transition has shape"):
        be.infer(be.CoupledSources(0.5 * np.eye(5), 1.0), problem, progress=False)
    with pytest.raises(ValueError, match="positive semidefinite"):
        model_of(problem, process_cov=np.diag(np.r_[-1.0, np.ones(26)]))
    with pytest.raises(ValueError, match="option of kalman_smoother"):
        be.infer(model_of(problem), problem, missing=None, progress=False)
