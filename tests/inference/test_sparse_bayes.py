"""Sparse Bayes: the cost by hand, certificates, all rules' fixed point, truth, reductions, MNE."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal

from bayes_esi.inference import block_moments, sparse_bayes, sparse_look, sparse_sweeps


def scene(m=12, n=30, d=1, n_times=20, n_true=3, seed=0, noise=1.0):
    """Fields, and data of a few sources of variance 4 in noise."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((m, n, d))
    places = rng.choice(n, n_true, replace=False)
    data = np.einsum("mkd,kdt->mt", field[:, places], 2 * rng.standard_normal((n_true, d, n_times)))
    return data + noise * rng.standard_normal((m, n_times)), field


def as_blocks(var, d):
    return var if var.ndim == 3 else var[:, None, None] * np.eye(d)


def total_of(field, var, noise):
    cov = as_blocks(np.asarray(var), field.shape[2])
    return np.einsum("mjd,jde,kje->mk", field, cov, field, optimize=True) + np.diag(noise)


def cost_of(data, field, var, noise):
    total = total_of(field, var, noise)
    second = data @ data.T / data.shape[1]
    return np.linalg.slogdet(total)[1] + np.trace(np.linalg.solve(total, second))


def slopes(data, field, var, noise):
    """Z_j and A_j."""
    inverse = np.linalg.inv(total_of(field, var, noise))
    image = inverse @ data / np.sqrt(data.shape[1])
    z = np.einsum("mjd,mk,kje->jde", field, inverse, field, optimize=True)
    seen = np.einsum("mjd,mt->jdt", field, image)
    return z, seen @ seen.swapaxes(1, 2)


def root(matrix, power):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0)[..., None, :] ** power) @ vectors.swapaxes(-1, -2)


def residual_of(data, field, var, noise, is_tied):
    """The certificate, from its definition."""
    z, a = slopes(data, field, var, noise)
    d = field.shape[2]
    cov = as_blocks(np.asarray(var), d)
    has_var = np.trace(cov, axis1=1, axis2=2) > 0
    if is_tied:
        excess = np.trace(a, axis1=1, axis2=2) / np.trace(z, axis1=1, axis2=2) - 1
        return max(np.abs(excess[has_var]).max(initial=0), excess.max())
    ratio = root(z, -0.5) @ a @ root(z, -0.5)
    own = root(z, 0.5) @ cov @ root(z, 0.5)
    wrong = root(own, 0.5) @ (ratio - np.eye(d)) @ root(own, 0.5)
    norms = np.linalg.norm(wrong, axis=(1, 2)), np.linalg.norm(own, axis=(1, 2))
    imbalance = (norms[0][has_var] / norms[1][has_var]).max(initial=0)
    return max(imbalance, np.linalg.eigvalsh(ratio).max() - 1)


@pytest.mark.parametrize("noise", ["known", "scalar", "diagonal"])
@pytest.mark.parametrize(("covariance", "d"), [("tied", 1), ("tied", 3), ("full", 2)])
def test_stationary_and_says_what_it_is(covariance, d, noise):
    # Unknown noise needs fields that cannot explain everything.
    m, n = (12, 30) if noise == "known" else (24, 6)
    data, field = scene(m=m, n=n, d=d, n_times=60)
    result = sparse_bayes.run(data, field, covariance=covariance, noise=noise, tol=1e-6)
    assert result.is_converged and not result.is_noise_at_floor
    var, noise_var = result.source_var, result.noise_var
    assert var.shape == ((n,) if covariance == "tied" else (n, d, d))
    is_tied = covariance == "tied"
    # The noise's own part of the certificate can only make it larger.
    assert residual_of(data, field, var, noise_var, is_tied) <= 1.01 * result.residual + 1e-9
    assert result.residual <= 1e-6
    cost = cost_of(data, field, var, noise_var)
    assert np.isclose(result.costs[-1], cost, rtol=1e-10)
    law = multivariate_normal(np.zeros(m), total_of(field, var, noise_var))
    assert np.isclose(result.log_evidence, law.logpdf(data.T).sum(), rtol=1e-10)
    # Sparse: that is what it is for. And nothing was lost that the evidence wants.
    n_kept = np.sum(as_blocks(var, d)[:, 0, 0] > 0)
    assert 3 <= n_kept <= 15
    assert np.all(np.diff(result.costs) <= 1e-9)
    if noise == "scalar":
        near = [cost_of(data, field, var, noise_var * f) for f in (0.99, 1.01)]
        assert min(near) > cost
    if noise == "diagonal":
        inverse = np.linalg.inv(total_of(field, var, noise_var))
        image = inverse @ data / np.sqrt(60)
        slope = np.diag(inverse) - np.sum(image**2, axis=1)
        np.testing.assert_allclose(slope, 0, atol=2e-6 * np.diag(inverse).max())


@pytest.mark.parametrize("rule", ["convex_bound", "em"])
@pytest.mark.parametrize(("covariance", "d"), [("tied", 2), ("full", 2)])
def test_cost_never_rises(rule, covariance, d):
    data, field = scene(d=d)
    for noise in ("known", "scalar", "diagonal"):
        result = sparse_bayes.run(
            data,
            field,
            covariance=covariance,
            noise=noise,
            rule=rule,
            is_accelerated=False,
            max_steps=60,
        )
        assert len(result.costs) > 30
        assert np.all(np.diff(result.costs) <= 1e-10)
        assert result.costs[-1] < result.costs[0] - 1


@pytest.mark.parametrize(
    ("covariance", "d"),
    [
        ("tied", 1),
        pytest.param("tied", 3, marks=pytest.mark.slow),
        pytest.param("full", 3, marks=pytest.mark.slow),
    ],
)
def test_all_ways_reach_one_point(covariance, d):
    """Well-posed: two sources among five, many samples. MacKay, EM and the bound agree."""
    data, field = scene(m=15, n=5, d=d, n_times=400, n_true=2, seed=3)
    base = sparse_bayes.run(data, field, covariance=covariance, tol=1e-8)
    for rule in ("convex_bound", "mackay"):
        other = sparse_bayes.run(
            data,
            field,
            covariance=covariance,
            rule=rule,
            is_accelerated=False,
            tol=1e-6,
            max_steps=2000,
        )
        # Sources and directions on the brink of being wanted converge like one over the number of
        # steps, which is why sweeps take over.
        np.testing.assert_allclose(other.source_var, base.source_var, atol=3e-3)
        assert base.costs[-1] - 1e-10 <= other.costs[-1] <= base.costs[-1] + 2e-4
    # EM goes to zero as one over the number of steps.
    slow = sparse_bayes.run(
        data, field, covariance=covariance, rule="em", is_accelerated=False, max_steps=1500
    )
    np.testing.assert_allclose(slow.source_var, base.source_var, atol=0.01)
    assert slow.costs[-1] >= base.costs[-1] - 1e-10


def test_many_samples_recover_the_truth():
    """Variances 4 and 1 in known noise: errors are 4 sqrt(2 / n_times) and little more."""
    rng = np.random.default_rng(1)
    field = rng.standard_normal((20, 50, 1))
    moments = np.array([[2.0], [1.0]]) * rng.standard_normal((2, 20000))
    data = field[:, [7, 31], 0] @ moments + rng.standard_normal((20, 20000))
    result = sparse_bayes.run(data, field, tol=1e-6)
    np.testing.assert_allclose(result.source_var[7], 4, atol=5 * 4 * 0.0105)
    np.testing.assert_allclose(result.source_var[31], 1, atol=5 * 1 * 0.0115)
    assert np.delete(result.source_var, [7, 31]).max() < 0.01
    free = rng.standard_normal((20, 5, 3))
    truth = np.array([[4.0, 1.5, 0], [1.5, 1, 0], [0, 0, 0]])
    moments = np.linalg.cholesky(truth + 1e-12 * np.eye(3)) @ rng.standard_normal((3, 20000))
    data = free[:, 2] @ moments + rng.standard_normal((20, 20000))
    result = sparse_bayes.run(data, free, covariance="full", noise="scalar", tol=1e-6)
    np.testing.assert_allclose(result.source_var[2], truth, atol=0.2)
    np.testing.assert_allclose(result.noise_var, 1, atol=0.02)


def test_columns_axes_and_rows():
    data, field = scene(d=3, n_times=40)
    base = sparse_bayes.run(data, field, tol=1e-7)
    factor = np.exp(np.random.default_rng(0).standard_normal(30))
    # Scaled fields start from other variances: the same point is found here, by its cost.
    scaled = sparse_bayes.run(data, field * factor[:, None], tol=1e-7)
    np.testing.assert_allclose(scaled.costs[-1], base.costs[-1], rtol=1e-8)
    np.testing.assert_allclose(
        scaled.source_var * factor**2, base.source_var, atol=1e-5 * base.source_var.max()
    )
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((30, 3, 3)))[0]
    turned = np.einsum("msd,sde->mse", field, turn)
    other = sparse_bayes.run(data, turned, tol=1e-7)
    np.testing.assert_allclose(other.source_var, base.source_var, atol=1e-6)
    full = sparse_bayes.run(data, field, covariance="full", tol=1e-7).source_var
    other = sparse_bayes.run(data, turned, covariance="full", tol=1e-7).source_var
    np.testing.assert_allclose(turn @ other @ turn.swapaxes(1, 2), full, atol=1e-5)
    rows = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    other = sparse_bayes.run(rows @ data, np.tensordot(rows, field, 1), tol=1e-7)
    np.testing.assert_allclose(other.source_var, base.source_var, atol=1e-6)
    # Any rotation of the time axis leaves independent samples alone, and so does their compression.
    times = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    other = sparse_bayes.run(data @ times, field, tol=1e-7)
    np.testing.assert_allclose(other.source_var, base.source_var, atol=1e-6)


def test_tied_to_one_variance_is_the_gaussian_model():
    """One source with all fields as its components: the evidence over one scale."""
    data, field = scene(d=3, n=1, n_true=1, seed=5)

    def minus_evidence(log_var):
        law = multivariate_normal(np.zeros(12), total_of(field, np.exp([log_var]), np.ones(12)))
        return -law.logpdf(data.T).sum()

    best = minimize_scalar(minus_evidence, bracket=(0, 2), tol=1e-10)
    result = sparse_bayes.run(data, field, tol=1e-8)
    assert np.isclose(np.log(result.source_var[0]), best.x, atol=1e-6)
    assert np.isclose(result.log_evidence, -best.fun, rtol=1e-12)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_sweep_minimises_over_each_source(is_tied, monkeypatch):
    data, field = scene(d=2, n=4, n_times=15)
    rng = np.random.default_rng(0)
    cov = np.multiply.outer(np.eye(2), rng.uniform(0.5, 3, 4))
    pieces = field.transpose(0, 2, 1)[None]
    noise = np.ones(12)
    observed = sparse_look.observe(data, 0.0, np.float64)
    seen = sparse_look.look(pieces, cov, noise, observed, 1, 1e-3, is_learnt=False)
    monkeypatch.setattr(sparse_sweeps, "_FURTHER", 1.0)
    # One source alone moves; whatever moves it otherwise costs more.
    swept, _ = sparse_sweeps.sweep(
        pieces,
        cov,
        noise,
        seen.precision,
        seen.image,
        1,
        1e-3,
        is_tied=is_tied,
        is_noise_learnt=False,
    )
    swept = np.asarray(swept).transpose(2, 0, 1)
    np.testing.assert_array_equal(swept[1:], cov.transpose(2, 0, 1)[1:])
    least = cost_of(data, field, swept, noise)
    assert least < cost_of(data, field, cov.transpose(2, 0, 1), noise)
    for _ in range(20):
        other = swept.copy()
        move = np.eye(2) * rng.standard_normal() if is_tied else rng.standard_normal((2, 2))
        half = np.eye(2) + 0.05 * move
        other[0] = half @ other[0] @ half.T
        assert cost_of(data, field, other, noise) >= least - 1e-12


def test_noise_at_its_floor():
    """Two samples, and sources that explain them: unknown noise goes to zero, and it says so."""
    data, field = scene(m=6, n=40, n_times=2, noise=0.01)
    result = sparse_bayes.run(data, field, noise="scalar", tol=1e-4)
    assert result.is_noise_at_floor
    np.testing.assert_allclose(result.noise_var, 0.03**2 * np.mean(data**2), rtol=1e-6)


def test_silence_and_strange_arguments():
    data, field = scene(d=3)
    result = sparse_bayes.run(np.zeros_like(data), field)
    assert result.is_converged and not np.any(result.source_var)
    field = field.copy()
    field[:, 3] = 0
    field[:, :, 2] = field[:, :, 1]  # a direction that nobody sees
    for kind in ("tied", "full"):
        result = sparse_bayes.run(data, field, covariance=kind, tol=1e-6)
        assert result.is_converged and not np.any(result.source_var[3])
        assert np.all(np.isfinite(result.source_var))
    for bad in (
        {"covariance": "loose"},
        {"noise": "none"},
        {"rule": "newton"},
        {"coefficient": 1.0},
        {"coefficient": 0.5, "noise": "diagonal"},
        {"tol": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            sparse_bayes.run(data, field, **bad)
    with pytest.raises(ValueError, match="lead_field"):
        sparse_bayes.run(data, np.zeros((12, 3, 4)))


def test_single_precision_and_one_compilation():
    data, field = scene(d=3, n_times=40)
    low = sparse_bayes.run(data, field.astype(np.float32), tol=1e-3)
    high = sparse_bayes.run(data, field, tol=1e-6)
    assert low.is_converged
    np.testing.assert_allclose(low.source_var, high.source_var, atol=0.02 * high.source_var.max())
    traced = [f._cache_size() for f in (sparse_look.look, sparse_sweeps.sweep, sparse_look.gather)]
    other = scene(d=3, n_times=40, seed=9)
    sparse_bayes.run(*other, tol=1e-6)
    again = [f._cache_size() for f in (sparse_look.look, sparse_sweeps.sweep, sparse_look.gather)]
    assert traced == again


@pytest.mark.parametrize("noise", ["known", "scalar"])
def test_law_in_time(noise):
    """AR(1): monotone, stationary for the dense evidence of all samples at once."""
    rng = np.random.default_rng(4)
    m, n, n_times, a = 5, 8, 14, 0.8
    field = rng.standard_normal((m, n, 1))
    lags = np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))
    time_cov = a**lags
    courses = np.linalg.cholesky(time_cov) @ rng.standard_normal((n_times, 2))
    data = 2 * field[:, [1, 6], 0] @ courses.T + rng.standard_normal((m, n_times))
    result = sparse_bayes.run(data, field, coefficient=a, noise=noise, tol=1e-5, max_steps=5000)
    assert result.is_converged
    assert np.all(np.diff(result.costs) <= 1e-10)

    def log_evidence(var, noise_var):
        signal = np.einsum("mj,j,kj->mk", field[:, :, 0], var, field[:, :, 0])
        total = np.kron(time_cov, signal) + np.kron(np.eye(n_times), np.diag(noise_var))
        return multivariate_normal(np.zeros(m * n_times), total).logpdf(data.T.ravel())

    best = log_evidence(result.source_var, result.noise_var)
    assert np.isclose(result.log_evidence, best, rtol=1e-11)
    kept = np.flatnonzero(result.source_var)
    assert 0 < kept.size < n
    for j in range(n):
        other = result.source_var.copy()
        for step in (0.02, -0.02) if j in kept else (0.01,):
            other[j] = result.source_var[j] * (1 + step) if j in kept else step
            assert log_evidence(other, result.noise_var) < best
    # And the moments of the sources, against dense conditioning.
    signal = np.kron(time_cov, np.diag(result.source_var))
    forward = np.kron(np.eye(n_times), field[:, :, 0])
    total = forward @ signal @ forward.T + np.kron(np.eye(n_times), np.diag(result.noise_var))
    gain = signal @ forward.T @ np.linalg.inv(total)
    found = block_moments.condition(data, field, result.source_var, result.noise_var, a)
    mean = (gain @ data.T.ravel()).reshape(n_times, n).T
    np.testing.assert_allclose(block_moments.mean(found)[:, 0], mean, atol=1e-10)
    var = np.diag(signal - gain @ forward @ signal).reshape(n_times, n).T
    np.testing.assert_allclose(block_moments.variance(found)[:, 0], var, atol=1e-10)
    np.testing.assert_allclose(block_moments.cov_at(found, 3)[:, 0, 0], var[:, 3], atol=1e-10)


def test_moments_are_those_of_dense_conditioning():
    data, field = scene(d=2, n=9, n_times=7)
    var = sparse_bayes.run(data, field, covariance="full", noise="diagonal").source_var
    noise = np.linspace(0.5, 2, 12)
    flat = field.reshape(12, -1)
    prior = np.zeros((9, 2, 9, 2))
    prior[np.arange(9), :, np.arange(9)] = var
    prior = prior.reshape(18, 18)
    gain = prior @ flat.T @ np.linalg.inv(flat @ prior @ flat.T + np.diag(noise))
    found = block_moments.condition(data, field, var, noise)
    np.testing.assert_allclose(
        block_moments.mean(found), (gain @ data).reshape(9, 2, 7), atol=1e-11
    )
    cov = (prior - gain @ flat @ prior).reshape(9, 2, 9, 2)[np.arange(9), :, np.arange(9)]
    np.testing.assert_allclose(block_moments.cov_at(found), cov, atol=1e-11)
    diagonal = np.diagonal(cov, axis1=1, axis2=2)[:, :, None]
    np.testing.assert_allclose(block_moments.variance(found), diagonal, atol=1e-11)


@pytest.mark.oracle
def test_mne_gamma_map_in_fixed_orientation():
    """With groups of one its rules are MacKay's and the bound: the same estimate."""
    from mne.inverse_sparse._gamma_map import _gamma_map_opt

    data, field = scene(m=20, n=60, n_times=200, n_true=2)
    gain = field[:, :, 0]
    result = sparse_bayes.run(data, field, tol=1e-6)
    for mode in (1, 2):
        estimate, active = _gamma_map_opt(
            data, gain, alpha=1.0, tol=1e-9, maxit=5000, update_mode=mode, verbose=False
        )
        kept = np.flatnonzero(result.source_var > 1e-3)
        assert set(kept) <= set(np.atleast_1d(active))
        found = block_moments.condition(data, field, result.source_var, result.noise_var)
        ours = block_moments.mean(found)[kept, 0]
        theirs = estimate[np.searchsorted(active, kept)]
        np.testing.assert_allclose(theirs, ours, atol=0.01 * np.abs(ours).max())
