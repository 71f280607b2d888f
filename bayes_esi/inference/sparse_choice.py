"""Choice of alpha for the mixed norm: predicted risk, predicted channels, evidence of the support.

Each criterion looks at the path of mixed-norm estimates of decreasing alpha.

*SURE*, Stein's unbiased estimate of the risk |G X - truth|^2 under noise of known deviation s:

    |Y - G X|^2 - m T s^2 + 2 s^2 df,     df = sum over entries of d(G X) / dY

df is exact here. On the support, of sources with norms n_j, directions u_j = X_j / n_j (Frobenius
norm 1) and g_j = n_j / w_j, the conditions of optimality G_j'(Y - G X) = alpha w_j u_j have the
differential

    (K x I + alpha diag(1/g_j) - alpha U U') dX = G' dY,     K = G'G,  U_j = g_j^(-1/2) u_j

a matrix of size k d T that is a Kronecker product less a term of rank k. With E the Gram matrix of
the rows of all u_j, fields scaled to B_j = g_j^(1/2) G_j and M = alpha I + B B', which has a size
of m only,

    df = T tr(H) + tr[(sums of H o E)^-1 (sums of F o E)],   H = B' M^-1 B,  F = alpha B' M^-2 B

with o the product by entries and sums over the (d, d) block of each pair of sources; the rows of
u_j have squares that sum to 1, hence the sums of I o E are I again.

*Cross-validation.* Whitened rows are independent; those of one fold are left out, predicted from
the sources found with the others, and compared. alpha shrinks with the number of rows.

*Evidence of the support*, by which penalised estimates that differ in shrinkage compare as sets:
y_t ~ N(0, I + sum_j v_j G_j G_j'), v_j those of largest evidence, integrated by Laplace's method
under a log-uniform prior (`SCALE_RANGE` around the deviation at which one source alone makes the
data), and a uniform prior over sets of the same size, 1 / (n choose k).

Cost: a path; n_folds paths; a path and O(m^2 k d) for each of some dozens of evaluations.

References: Stein 1981, doi:10.1214/aos/1176345632; Deledalle et al. 2014, doi:10.1137/140968045
(SURE of regularised estimates); Vaiter et al. 2012, arXiv:1205.1481 (degrees of freedom of the
group lasso); MacKay 1992, doi:10.1162/neco.1992.4.3.415 (evidence).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.linalg import lstsq, solve_triangular
from scipy.special import gammaln

from ..core.checks import check_array, check_count, check_positive
from . import mixed_norm

__all__ = [
    "SparseChoice",
    "cross_validation",
    "degrees_of_freedom",
    "evidence",
    "support_evidence",
    "sure",
]

# Range of source deviations, relative to the one at which a source alone makes the data.
SCALE_RANGE = (1e-3, 10.0)
# Fisher scoring in log variances: no step longer than this, until the evidence gains so little.
_SCORING_STEPS, _LONGEST, _LEAST_GAIN = 100, 3.0, 1e-6
_TINY = 1e-300
_N_THREADS = 4


class SparseChoice(NamedTuple):
    """A criterion along alpha, the best alpha and the estimate there."""

    name: str
    alpha: np.ndarray  # (k,) decreasing
    criterion: np.ndarray  # (k,) least is best
    best: float
    found: mixed_norm.MixedNorm  # at the best alpha
    n_active: np.ndarray  # (k,)


def sure(data, lead_field, alphas=None, weights=None, *, noise_std=1.0, tol=1e-6):
    """Choose alpha by Stein's unbiased estimate of the risk.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    lead_field : (m, n_sources, d) array
        Whitened.
    alphas : (k,) array, optional
        Decreasing. If left out, those of `mixed_norm.run_path`.
    weights : (n_sources,) array, optional
        Positive. Ones by default.
    noise_std : float
        Deviation of the noise in whitened data; the criterion believes it.
    tol : float
        Relative duality gap of the path.

    Returns
    -------
    SparseChoice
        The criterion is a squared error summed over rows and samples.

    Raises
    ------
    ValueError
        On arrays that are not finite or of other shapes, alphas that do not decrease, numbers
        that are not positive.
    """
    noise_std = check_positive("noise_std", noise_std)
    data, lead_field, weights = mixed_norm.check_problem(data, lead_field, weights)
    path = _path(data, lead_field, alphas, weights, tol)

    def risk(found):
        norms = np.sqrt(np.sum(found.sources.astype(float) ** 2, axis=(1, 2)))
        misfit = 2 * (found.objective - found.alpha * weights[found.support] @ norms)
        df = degrees_of_freedom(lead_field, found, weights)
        return misfit - noise_std**2 * (data.size - 2 * df)

    # LAPACK leaves the interpreter free; the largest supports first.
    with ThreadPoolExecutor(_N_THREADS) as pool:
        criterion = list(pool.map(risk, path[::-1]))[::-1]
    return _choice("sure", criterion, path)


def degrees_of_freedom(lead_field, found, weights=None):
    """Divergence of the fitted data with respect to the data, exactly.

    Parameters
    ----------
    lead_field : (m, n_sources, d) array
    found : MixedNorm
    weights : (n_sources,) array, optional

    Returns
    -------
    float
        Where sources of the support are copies of each other, that of one of the solutions, all
        of which fit the same data.

    Notes
    -----
    Cost O(m (k d) (m + k d) + (k d)^2 n_times + k^3).
    """
    k, d, n_times = found.sources.shape
    if k == 0:
        return 0.0
    weights = np.ones(np.shape(lead_field)[1]) if weights is None else np.asarray(weights, float)
    sources = found.sources.astype(float).reshape(k, -1)
    norms = np.sqrt(np.sum(sources**2, axis=1))
    direction = (sources / norms[:, None]).reshape(k * d, n_times)
    root = np.sqrt(np.repeat(norms / weights[found.support], d))
    field = np.asarray(lead_field, float)[:, found.support].reshape(-1, k * d) * root
    if k * d < len(field):
        field = np.linalg.qr(field, mode="r")
    chol = np.linalg.cholesky(field @ field.T + found.alpha * np.eye(len(field)))
    half = solve_triangular(chol, field, lower=True)
    whole = solve_triangular(chol, half, lower=True, trans=1)
    gram = direction @ direction.T

    def block_sums(matrix):
        return np.sum((matrix * gram).reshape(k, d, k, d), axis=(1, 3))

    # Copies among the sources make the first of these singular.
    turned, *_ = lstsq(
        block_sums(half.T @ half),
        found.alpha * block_sums(whole.T @ whole),
        cond=1e-12,
        lapack_driver="gelsy",
    )
    return float(n_times * np.sum(half**2) + np.trace(turned))


def cross_validation(data, lead_field, alphas=None, weights=None, *, folds=5, tol=1e-6):
    """Choose alpha by the prediction of rows that were left out.

    Parameters
    ----------
    data, lead_field, alphas, weights, tol
        As in `sure`.
    folds : int or (m,) int array
        Their number, rows being dealt out in turn, or the fold of each row.

    Returns
    -------
    SparseChoice
        The criterion is the mean square of what was predicted wrongly: 1, the noise, at best.

    Raises
    ------
    ValueError
        As `sure`, and on fewer than two folds.
    """
    data, lead_field, weights = mixed_norm.check_problem(data, lead_field, weights)
    m = len(data)
    if np.ndim(folds) == 0:
        folds = np.arange(m) % check_count("folds", folds, minimum=2)
    folds = np.asarray(folds)
    if folds.shape != (m,) or folds.dtype.kind not in "iu" or np.unique(folds).size < 2:
        raise ValueError(
            f"folds must be a number or one integer a row, shape ({m},), of two folds at least; "
            f"got shape {folds.shape} with {np.unique(folds).size} fold(s)."
        )
    whole = _path(data, lead_field, alphas, weights, tol)
    alphas = np.array([found.alpha for found in whole])
    error = np.zeros(len(alphas))
    for fold in np.unique(folds):
        # Rows of zeros are no rows, and one shape is one compilation.
        is_kept = folds != fold
        kept = is_kept.astype(lead_field.dtype)
        path = mixed_norm.run_path(
            data * kept[:, None],
            lead_field * kept[:, None, None],
            alphas * np.mean(is_kept),
            weights,
            tol=tol,
        )
        for i, found in enumerate(path):
            rest = lead_field[~is_kept]
            predicted = mixed_norm.predict(rest, found.support, found.sources)
            error[i] += np.sum((data[~is_kept] - predicted) ** 2)
    return _choice("cross_validation", error / data.size, whole)


def evidence(data, lead_field, alphas=None, weights=None, *, tol=1e-6):
    """Choose alpha by the evidence of its support.

    Parameters, errors and result are those of `sure`; the criterion is minus the log probability
    of data and support, in nats.
    """
    data, lead_field, weights = mixed_norm.check_problem(data, lead_field, weights)
    path = _path(data, lead_field, alphas, weights, tol)
    n = lead_field.shape[1]
    criterion, last = [], (None, 0.0)
    start = np.zeros(n)
    for found in path:
        k = found.support.size
        if last[0] is None or not np.array_equal(found.support, last[0]):
            norms = np.sum(found.sources.astype(float) ** 2, axis=(1, 2))
            mean = norms / (found.sources.shape[1] * data.shape[1])
            # A variance that fell to nothing would have no slope to rise again.
            value, variances = support_evidence(
                data, lead_field[:, found.support], np.maximum(start[found.support], mean)
            )
            start[found.support] = variances
            last = found.support, log_number_of_sets(n, k) - value
        criterion.append(last[1])
    return _choice("evidence", criterion, path)


def log_number_of_sets(n, k):
    """Logarithm of the number of sets of k among n sources."""
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def support_evidence(data, fields, start=None):
    """Log evidence of some sources whose variances are unknown.

    Parameters
    ----------
    data : (m, n_times) array
        Whitened.
    fields : (m, k, d) array
        Of these sources.
    start : (k,) array, optional
        Variances to start from.

    Returns
    -------
    log_evidence : float
        Of the whitened data, in nats; Laplace's method in the logarithms of the variances.
    variances : (k,) array
        Those of largest evidence.
    """
    data = np.asarray(data, float)
    m, k, d = fields.shape
    n_times = data.shape[1]
    energy = np.sum(data**2)
    if k == 0:
        return float(-0.5 * (data.size * np.log(2 * np.pi) + energy)), np.zeros(0)
    columns = np.asarray(fields, float).reshape(m, k * d)
    tail = 0.0
    if k * d < m:
        turn, columns = np.linalg.qr(columns)
        data = turn.T @ data
        tail = max(energy - np.sum(data**2), 0.0)
    gain = np.sum(columns**2, axis=0).reshape(k, d).sum(axis=1)
    alone = energy / n_times / np.maximum(gain, _TINY)
    low, high = (np.log(alone) + 2 * np.log(end) for end in SCALE_RANGE)
    constant = -0.5 * (m * n_times * np.log(2 * np.pi) + tail)

    def evaluate(x):
        cov = np.eye(len(columns)) + (columns * np.repeat(np.exp(x), d)) @ columns.T
        chol = np.linalg.cholesky(cov)
        half = solve_triangular(chol, data, lower=True)
        log_det = 2 * np.sum(np.log(np.diag(chol)))
        return 0.5 * (n_times * log_det + np.sum(half**2)), chol, half

    def derivatives(x, chol, half):
        solved = solve_triangular(chol, columns, lower=True)
        quadratic = solved.T @ solved
        slope = n_times * np.diag(quadratic) - np.sum((solved.T @ half) ** 2, axis=1)
        square = np.sum((quadratic**2).reshape(k, d, k, d), axis=(1, 3))
        variances = np.exp(x)
        slope = 0.5 * variances * slope.reshape(k, d).sum(axis=1)
        # A bound that touches the likelihood here has its maximum after this move.
        ratio = np.sum((solved.T @ half) ** 2, axis=1).reshape(k, d).sum(axis=1)
        ratio /= np.maximum(n_times * np.diag(quadratic).reshape(k, d).sum(axis=1), _TINY)
        sure_move = 0.5 * np.log(np.maximum(ratio, _TINY))
        return slope, 0.5 * n_times * np.outer(variances, variances) * square, sure_move

    x = 0.5 * (low + high) if start is None else np.log(np.maximum(start, _TINY))
    x = np.clip(x, low, high)
    value, *factors = evaluate(x)
    for _ in range(_SCORING_STEPS):
        slope, curvature, sure_move = derivatives(x, *factors)
        is_free = ~((x <= low) & (slope > 0)) & ~((x >= high) & (slope < 0))
        move = np.zeros(k)
        scale = np.sqrt(np.diag(curvature)) + _TINY
        scaled = (curvature / np.outer(scale, scale))[np.ix_(is_free, is_free)]
        scaled += 1e-9 * np.eye(len(scaled))
        move[is_free] = np.linalg.solve(scaled, -(slope / scale)[is_free]) / scale[is_free]
        move = np.clip(move, -_LONGEST, _LONGEST)
        for step in (move, 0.3 * move, 0.1 * move, sure_move):
            trial = np.clip(x + step, low, high)
            reached, *others = evaluate(trial)
            if reached <= value + 1e-4 * slope @ (trial - x):
                break
        else:
            break
        gain, x, value, factors = value - reached, trial, reached, others
        if gain < _LEAST_GAIN:
            break
    curvature, variances = derivatives(x, *factors)[1], np.exp(x)
    # Expected curvature of minus the log likelihood; no density is wider than its prior.
    width = high - low
    eigenvalues = np.linalg.eigvalsh(curvature + np.diag(2 * np.pi / width**2))
    log_volume = 0.5 * np.sum(np.log(2 * np.pi / eigenvalues)) - np.sum(np.log(width))
    return float(constant - value + log_volume), variances


def _path(data, lead_field, alphas, weights, tol):
    if alphas is not None:
        alphas = check_array("alphas", alphas, ndim=1).astype(float)
        if alphas.min() <= 0 or np.any(np.diff(alphas) >= 0):
            raise ValueError(
                "alphas must be positive and decrease: each starts from the one before."
            )
    return mixed_norm.run_path(data, lead_field, alphas, weights, tol=tol)


def _choice(name, criterion, path):
    criterion = np.array(criterion)
    best = path[int(np.argmin(criterion))]
    alphas = np.array([found.alpha for found in path])
    n_active = np.array([found.support.size for found in path])
    return SparseChoice(name, alphas, criterion, best.alpha, best, n_active)
