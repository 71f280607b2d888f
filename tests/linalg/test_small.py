"""Small matrices by element, against NumPy."""

import numpy as np
import pytest

from bayes_esi.linalg.small import inverse, log_det_and_trace


@pytest.mark.parametrize("d", [1, 2, 3])
def test_log_det_trace_and_inverse(d):
    rng = np.random.default_rng(d)
    factor = rng.standard_normal((5, 7, d, d))
    matrix = factor @ factor.swapaxes(-1, -2) + 0.1 * np.eye(d)
    other = rng.standard_normal((5, 7, d, d))
    other = other + other.swapaxes(-1, -2)
    log_det, trace = log_det_and_trace(matrix, other, 0.1)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], atol=1e-10)
    wanted = np.trace(np.linalg.solve(matrix, other), axis1=-2, axis2=-1)
    np.testing.assert_allclose(trace, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(inverse(matrix, 0.1), np.linalg.inv(matrix), rtol=1e-8, atol=1e-9)
