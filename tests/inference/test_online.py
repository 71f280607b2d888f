import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.inference import online
from bayes_esi.inference.kalman import filter_moments
from bayes_esi.models import time_kernels as tk

M, N_TIMES = 4, 9
SIGNAL_VAR = np.array([0.0, 0.3, 2.0, 50.0])
NOISE_VAR = np.array(0.7)
RNG = np.random.default_rng(4)
DATA = RNG.normal(size=(M, N_TIMES))
OBSERVED = RNG.random(N_TIMES) > 0.3
KERNELS = {"ar1": tk.autoregressive(0.8), "matern": tk.matern(1.5, 0.1, 0.05)}


@pytest.mark.parametrize("name", KERNELS)
def test_a_stream_is_the_filter(name):
    kernel = KERNELS[name]
    online.step.clear_cache()
    data = np.where(OBSERVED, DATA, np.nan)
    moments = filter_moments(data, SIGNAL_VAR, NOISE_VAR, kernel, OBSERVED)
    state = online.init(SIGNAL_VAR, NOISE_VAR, kernel)
    total = 0.0
    for t in range(N_TIMES):
        state, info = online.step(state, data[:, t], OBSERVED[t])
        # The same operations; the compiler may fuse them differently.
        np.testing.assert_allclose(info.mean, moments.mean[:, t], rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(info.variance, moments.variance[:, t], rtol=1e-14)
        assert OBSERVED[t] or info.log_evidence_increment == 0
        total += info.log_evidence_increment
    np.testing.assert_allclose(total, moments.log_likelihood, rtol=1e-13)
    assert online.step._cache_size() == 1


def test_a_sample_counts_unless_told_otherwise():
    state = online.init(SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
    one = online.step(state, DATA[:, 0])
    other = online.step(state, DATA[:, 0], np.array(True))
    np.testing.assert_array_equal(one[1].mean, other[1].mean)
    np.testing.assert_allclose(one[1].mean, SIGNAL_VAR / (SIGNAL_VAR + NOISE_VAR) * DATA[:, 0])


def test_float32():
    state = online.init(jnp.asarray(SIGNAL_VAR, jnp.float32), NOISE_VAR, KERNELS["matern"])
    state, info = online.step(state, DATA[:, 0])
    state, info = online.step(state, DATA[:, 1])
    assert {leaf.dtype for leaf in (*info, state.mean, state.cov)} == {np.dtype(np.float32)}
    want = filter_moments(DATA[:, :2], SIGNAL_VAR, NOISE_VAR, KERNELS["matern"])
    np.testing.assert_allclose(info.mean, want.mean[:, 1], rtol=1e-5)  # single precision
