"""The online filter of a posterior against the filter of a whole recording."""

import dataclasses

import numpy as np
import pytest

import bayes_esi as be


def make_problem(n_times=7, m=9, n=20):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((m, m))
    return be.Problem.from_arrays(
        rng.standard_normal((m, n_times)) * 4e-6,
        rng.standard_normal((m, n, 3)) * 1e3,
        rng.uniform(-0.05, 0.05, (n, 3)),
        (root @ root.T + np.eye(m)) * 1e-12,
        times=np.arange(n_times) / 100,
    )


MODELS = [
    be.AutoregressiveSources(coefficient=0.8, source_std=1e-9, noise_std=1.2),
    be.AutoregressiveSources(kernel="matern32", time_scale=0.03, source_std=1e-9),
    be.AutoregressiveSources(kernel="random_walk", time_scale=0.05, source_std=1e-9),
    be.GaussianSources(source_std=1e-9),
]


@pytest.mark.parametrize("model", MODELS)
def test_one_sample_after_another_is_the_filter(model):
    problem = make_problem()
    missing = np.zeros(7, bool)
    is_dynamic = hasattr(model, "kernel")
    if is_dynamic:
        missing[3] = True
        wanted = be.infer(model, problem, method="kalman_filter", missing=missing, progress=False)
    else:
        wanted = be.infer(model, problem, progress=False)
    stream = wanted.stream()
    recorded = np.linalg.pinv(problem.whitener) @ problem.data
    state, total = stream.init(), 0.0
    for t in range(problem.n_times):
        state, now = stream.step(state, None if missing[t] else recorded[:, t])
        total += now.log_evidence_increment
        scale = np.abs(wanted.mean).max()
        np.testing.assert_allclose(now.mean, wanted.mean[..., t], atol=1e-12 * scale)
        np.testing.assert_allclose(now.std, wanted.std[..., t], rtol=1e-9)
    assert total == pytest.approx(wanted.log_evidence, abs=1e-9)


def test_samples_that_are_none():
    stream = be.infer(MODELS[0], make_problem(), progress=False).stream()
    with pytest.raises(ValueError, match=r"sample must have shape \(9\)"):
        stream.step(stream.init(), np.zeros(8))
    with pytest.raises(ValueError, match="1 NaN"):
        stream.step(stream.init(), np.r_[np.zeros(8), np.nan])


def test_a_mixture_has_no_stream():
    problem = make_problem()
    posterior = be.infer(MODELS[0], problem, progress=False)
    moments = dataclasses.replace(
        posterior.moments, eigenvalues=np.repeat(posterior.moments.eigenvalues, 2, axis=0)
    )
    with pytest.raises(ValueError, match="kalman_smoother"):
        dataclasses.replace(posterior, moments=moments).stream()
