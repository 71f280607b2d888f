import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.inference.kalman import smooth_moments
from bayes_esi.inference.parallel_kalman import smooth_moments_parallel
from bayes_esi.models import time_kernels as tk

M, N_TIMES = 4, 13
SIGNAL_VAR = np.array([0.0, 0.3, 2.0, 1e4])
NOISE_VAR = np.array(0.7)
RNG = np.random.default_rng(4)
DATA = RNG.normal(size=(M, N_TIMES))
OBSERVED = RNG.random(N_TIMES) > 0.3
KERNELS = {
    "ar1": tk.autoregressive(0.95),
    "ar2": tk.from_partial_autocorrelations(np.array([0.7, -0.4])),  # singular process_cov
    "walk": tk.random_walk(0.1, 0.02),
}


@pytest.mark.parametrize("name", ["ar1", "walk", pytest.param("ar2", marks=pytest.mark.slow)])
def test_prefix_sums_are_the_recursions(name):
    data = np.where(OBSERVED, DATA, np.nan)
    arguments = (data, SIGNAL_VAR, NOISE_VAR, KERNELS[name], OBSERVED)
    got, want = smooth_moments_parallel(*arguments), smooth_moments(*arguments)
    for field, left, right in zip(want._fields, got, want, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-10, err_msg=field)


def test_one_sample():
    arguments = (DATA[:, :1], SIGNAL_VAR, NOISE_VAR, KERNELS["ar1"])
    got, want = smooth_moments_parallel(*arguments), smooth_moments(*arguments)
    for left, right in zip(got, want, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-13)


def test_float32():
    arguments = (DATA, SIGNAL_VAR[:3], NOISE_VAR, KERNELS["ar1"], OBSERVED)
    arguments = (DATA[:3], *arguments[1:])
    single = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == bool else jnp.asarray(leaf, jnp.float32), arguments
    )
    for got, want in zip(smooth_moments_parallel(*single), smooth_moments(*arguments), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)  # single precision
