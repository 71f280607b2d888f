"""Free energy of patches: slopes, quadrature for one patch, sparse Bayes for flat priors."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from bayes_esi.inference import multiple_sparse_priors, sparse_bayes


def make(k=6, d=2, m=10, n_times=30, seed=0, active=(1, 4)):
    rng = np.random.default_rng(seed)
    fields = rng.standard_normal((m, k, d))
    courses = np.zeros((k, d, n_times))
    courses[list(active)] = 2 * rng.standard_normal((len(active), d, n_times))
    return np.tensordot(fields, courses, axes=2) + rng.standard_normal((m, n_times)), fields


def log_likelihood(data, fields, variances, noise_var):
    m = len(data)
    weighted = fields.reshape(m, -1) * np.repeat(variances, fields.shape[2])
    cov = noise_var * np.eye(m) + weighted @ fields.reshape(m, -1).T
    return multivariate_normal(np.zeros(m), cov).logpdf(data.T).sum()


@pytest.mark.parametrize("noise", ["known", "scalar"])
def test_the_search_ends_where_the_slope_is_zero_and_never_falls(noise):
    data, fields = make()
    found = multiple_sparse_priors.run(data, fields, noise=noise, tol=1e-8, max_steps=500)
    assert found.is_converged and found.gradient < 1e-2
    assert np.all(np.diff(found.densities) >= 0)
    # Of a variance of 4; noise may lend a silent patch a little.
    assert set(np.flatnonzero(found.variances > 0.3)) == {1, 4}
    if noise == "scalar":
        assert abs(found.noise_var - 1) < 0.3


def test_slope_is_the_derivative():
    data, fields = make()
    task = multiple_sparse_priors.Task(data, fields, True, -32.0, 256.0)
    rng = np.random.default_rng(1)
    h = rng.uniform(-2, 1, 7)
    state = multiple_sparse_priors._look(task, h)
    for i in range(7):
        ends = [multiple_sparse_priors._look(task, h + s * 1e-5 * np.eye(7)[i]) for s in (1, -1)]
        numerical = (ends[0].density - ends[1].density) / 2e-5
        assert state.slope[i] == pytest.approx(numerical, rel=1e-5, abs=1e-5)
    variances = np.exp(h[1:])
    own = -0.5 * np.sum((h + 32) ** 2) / 256 - 3.5 * np.log(2 * np.pi * 256)
    expected = log_likelihood(data, fields, variances, np.exp(h[0])) + own
    assert state.density == pytest.approx(expected)


def test_free_energy_of_one_patch_is_its_evidence():
    """Against quadrature over its log variance; Laplace's error with 60 numbers a variance."""
    data, fields = make(k=1, d=3, n_times=20, active=(0,))
    found = multiple_sparse_priors.run(data, fields, tol=1e-10)
    power = np.mean(data**2)
    gain = np.sum(fields**2) / len(data)

    def integrand(h):
        value = log_likelihood(data, fields, [power * np.exp(h) / gain], 1.0)
        prior = -0.5 * (h + 32) ** 2 / 256 - 0.5 * np.log(2 * np.pi * 256)
        return np.exp(value + prior - found.free_energy)

    peak = np.log(found.variances[0] * gain / power)
    total = quad(integrand, -60, 10, points=[peak - 1, peak, peak + 1], limit=400)[0]
    assert abs(np.log(total)) < 0.05


def test_free_energy_of_silent_patches_is_nothing():
    data, fields = make(k=2, active=(0, 1))
    extra = np.concatenate([fields, np.zeros_like(fields)], axis=1)
    few = multiple_sparse_priors.run(data, fields, tol=1e-10)
    many = multiple_sparse_priors.run(data, extra, tol=1e-10)
    assert many.free_energy == pytest.approx(few.free_energy, abs=1e-3)
    assert not many.variances[2:].any()


def test_with_flat_priors_it_is_sparse_bayes():
    data, fields = make(k=12, d=1, m=14, n_times=50, active=(2, 7, 9))
    found = multiple_sparse_priors.run(
        data, fields, prior_mean=-8.0, prior_var=1e8, tol=1e-10, max_steps=500
    )
    other = sparse_bayes.run(data, fields, tol=1e-6)
    large = other.source_var > 1e-2
    np.testing.assert_allclose(found.variances[large], other.source_var[large], rtol=1e-3)
    assert np.all(found.variances[~large] < 1e-2)
    best = log_likelihood(data, fields, found.variances, 1.0)
    assert best == pytest.approx(other.log_evidence, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": np.zeros((10, 5))}, "data are zero"),
        ({"noise": "diagonal"}, "noise"),
        ({"prior_var": -1}, "prior_var"),
        ({"tol": 0}, "tol"),
    ],
)
def test_bad_input(change, text):
    data, fields = make()
    given = {"data": data, "fields": fields} | change
    with pytest.raises(ValueError, match=text):
        multiple_sparse_priors.run(given.pop("data"), given.pop("fields"), **given)
