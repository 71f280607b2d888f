"""Choice of alpha: exact degrees of freedom, unbiased risk, evidence against quadrature."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayes_esi.inference import mixed_norm, sparse_choice

M, N, D, T = 14, 40, 3, 5


def make(seed=0, *, m=M, n_times=T, d=D, noise=1.0):
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((m, N, d))
    data = noise * rng.standard_normal((m, n_times))
    for j in (5, 20):
        data += field[:, j] @ (3 * rng.standard_normal((d, 1)) @ rng.standard_normal((1, n_times)))
    return data, field, rng.uniform(0.7, 1.5, N)


@pytest.mark.parametrize(("d", "n_times"), [(3, 5), (1, 4), (3, 1), (1, 1), (2, 20)])
def test_degrees_of_freedom_are_the_divergence(d, n_times):
    """Central differences of the fit, entry by entry of the data."""
    data, field, weights = make(1, m=8, d=d, n_times=n_times)
    alpha = 0.3 * mixed_norm.alpha_max(data, field, weights)

    def fit(y):
        found = mixed_norm.run(y, field, alpha, weights, tol=1e-14)
        return mixed_norm.predict(field, found.support, found.sources), found

    _, found = fit(data)
    assert found.support.size > 1
    step, divergence = 1e-4, 0.0
    for i, t in np.ndindex(data.shape):
        move = np.zeros_like(data)
        move[i, t] = step
        divergence += (fit(data + move)[0] - fit(data - move)[0])[i, t] / (2 * step)
    exact = sparse_choice.degrees_of_freedom(field, found, weights)
    # Gaps of 1e-14 leave errors of 1e-7 in the fit, 1e-3 in a quotient; they are smaller.
    assert exact == pytest.approx(divergence, abs=1e-3)
    if (d, n_times) == (1, 1):
        assert exact == pytest.approx(found.support.size, abs=1e-6)  # the lasso's


def test_degrees_of_freedom_of_copies():
    data, field, _ = make(2)
    alpha = 0.3 * mixed_norm.alpha_max(data, field)
    one = mixed_norm.run(data, field, alpha, tol=1e-12)
    doubled = np.concatenate([field, field[:, one.support[:1]]], axis=1)
    half = one.sources.copy()
    half[0] /= 2
    both = one._replace(support=np.append(one.support, N), sources=np.concatenate([half, half[:1]]))
    wanted = sparse_choice.degrees_of_freedom(field, one)
    assert sparse_choice.degrees_of_freedom(doubled, both) == pytest.approx(wanted, rel=1e-6)
    nothing = mixed_norm.run(data, field, 10 * alpha)
    assert sparse_choice.degrees_of_freedom(field, nothing) == 0


def test_sure_is_unbiased():
    """Orthonormal fields, known truth: the mean of SURE is the mean of the squared error."""
    rng = np.random.default_rng(3)
    field = np.linalg.qr(rng.standard_normal((24, 18)))[0].reshape(24, 6, 3)
    truth = np.zeros((6, 3, 4))
    truth[:2] = 1.5 * rng.standard_normal((2, 3, 4))
    signal = np.einsum("mnd,ndt->mt", field, truth)
    std, alphas, differences = 0.8, np.array([4.0, 2.0, 1.0]), []
    for _ in range(60):
        data = signal + std * rng.standard_normal(signal.shape)
        chosen = sparse_choice.sure(data, field, alphas, noise_std=std, tol=1e-10)
        risk = [
            np.sum((mixed_norm.predict(field, f.support, f.sources) - signal) ** 2)
            for f in mixed_norm.run_path(data, field, alphas, tol=1e-10)
        ]
        differences.append(chosen.criterion - risk)
    error = np.std(differences, axis=0) / np.sqrt(len(differences))
    # Three means at four standard errors: one seed in 5,000 fails.
    assert np.all(np.abs(np.mean(differences, axis=0)) < 4 * error)
    # The errors are small enough to see degrees of freedom that are forgotten.
    assert np.all(4 * error < 2 * std**2 * 12)


def test_evidence_of_one_source_is_the_integral():
    data, field, _ = make(4, d=1)
    column = field[:, 5]
    value, variances = sparse_choice.support_evidence(data, column[:, None])
    alone = np.sum(data**2) / T / np.sum(column**2)
    ends = np.log(alone) + 2 * np.log(sparse_choice.SCALE_RANGE)
    nodes = np.linspace(*ends, 20_001)
    logs = np.array([log_density(data, column, v) for v in np.exp(nodes[::20])])
    integral = logsumexp(logs) + np.log(20 * (nodes[1] - nodes[0]) / (ends[1] - ends[0]))
    best = logs.max()
    # Laplace's method on a skewed density of five samples: a tenth of a nat.
    assert value == pytest.approx(integral, abs=0.15)
    assert log_density(data, column, variances[0]) >= best - 1e-6
    none, empty = sparse_choice.support_evidence(data, field[:, :0])
    assert empty.shape == (0,)
    assert none == pytest.approx(log_density(data, column, 0.0), rel=1e-12)


def log_density(data, column, variance):
    law = multivariate_normal(np.zeros(M), np.eye(M) + variance * column * column.T)
    return np.sum(law.logpdf(data.T))


def test_evidence_finds_the_variances_of_several_sources():
    """No variance can be moved to gain, whatever the start."""
    data, field, _ = make(5, n_times=30)
    fields = field[:, [5, 20, 21, 22, 30]]
    values = []
    for start in (None, np.full(5, 1e-2), np.full(5, 10.0)):
        value, variances = sparse_choice.support_evidence(data, fields, start)
        values.append(value)

    def log_likelihood(variances):
        cov = np.eye(M) + np.einsum("mnd,n,lnd->ml", fields, variances, fields)
        return np.sum(multivariate_normal(np.zeros(M), cov).logpdf(data.T))

    np.testing.assert_allclose(values, values[0], atol=0.1)
    top = log_likelihood(variances)
    for j in range(5):
        for factor in (0.98, 1.02):
            moved = variances.copy()
            moved[j] *= factor
            # Of a variance on its way to nothing, thousandths of a nat may be left.
            assert log_likelihood(moved) <= top + 1e-2
    # What the other sources do not need stays out of the way of those that they do.
    assert variances[[0, 1]].min() > 10 * variances[2:].max()


@pytest.mark.slow
def test_criteria_choose():
    """Two strong sources: the evidence takes exactly them, predictions come near the noise."""
    data, field, _ = make(6, m=30, n_times=20)
    by_evidence = sparse_choice.evidence(data, field)
    np.testing.assert_array_equal(by_evidence.found.support, [5, 20])
    assert by_evidence.best == by_evidence.found.alpha
    assert by_evidence.criterion.argmin() == list(by_evidence.alpha).index(by_evidence.best)
    alphas = mixed_norm.alpha_max(data, field) * np.geomspace(1, 0.02, 12)
    by_rows = sparse_choice.cross_validation(data, field, alphas)
    assert {5, 20} <= set(by_rows.found.support)
    # Shrunk sources predict worse than the noise alone would.
    assert 0.7 < by_rows.criterion.min() < 3 < by_rows.criterion[0]
    by_risk = sparse_choice.sure(data, field, alphas)
    assert {5, 20} <= set(by_risk.found.support)
    assert np.all(by_rows.n_active == by_risk.n_active) and by_rows.n_active[0] == 0


def test_folds_are_left_out():
    """Rows of a fold change nothing in what predicts them."""
    data, field, weights = make(7)
    alphas = mixed_norm.alpha_max(data, field, weights) * np.array([0.5, 0.2])
    folds = np.arange(M) % 2
    whole = sparse_choice.cross_validation(data, field, alphas, weights, folds=folds, tol=1e-12)
    error = np.zeros(2)
    for fold in (0, 1):
        kept, left = folds != fold, folds == fold
        for i, alpha in enumerate(alphas):
            found = mixed_norm.run(data[kept], field[kept], alpha / 2, weights, tol=1e-12)
            predicted = mixed_norm.predict(field[left], found.support, found.sources)
            error[i] += np.sum((data[left] - predicted) ** 2)
    np.testing.assert_allclose(whole.criterion, error / data.size, rtol=1e-6)


def test_bad_input():
    data, field, _ = make()
    with pytest.raises(ValueError, match="alphas must be positive and decrease"):
        sparse_choice.sure(data, field, [1.0, 2.0])
    with pytest.raises(ValueError, match="noise_std must be positive"):
        sparse_choice.sure(data, field, [1.0], noise_std=0)
    with pytest.raises(ValueError, match="folds must be"):
        sparse_choice.cross_validation(data, field, [1.0], folds=np.zeros(M, int))
    with pytest.raises(ValueError, match="folds must be an integer of at least 2"):
        sparse_choice.cross_validation(data, field, [1.0], folds=1)
    with pytest.raises(ValueError, match="data must have shape"):
        sparse_choice.evidence(data[1:], field)
