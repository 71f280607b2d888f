"""Mixed norms: certified, equal to plain descent, and the same from any view of the problem."""

import warnings

import jax
import numpy as np
import pytest

from bayes_esi.inference import group_scales, minimum_current, mixed_norm

M, N, D, T = 20, 60, 3, 7


def make(seed=0, *, m=M, n=N, d=D, n_times=T, noise=0.5):
    """Neighbouring sources with alike fields, three of them active."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((m, n, d))
    field[:, 1:] += 0.7 * field[:, :-1]
    data = noise * rng.standard_normal((m, n_times))
    for j in (5, 20, 21):
        data += field[:, j] @ (3 * rng.standard_normal((d, 1)) @ rng.standard_normal((1, n_times)))
    return data, field, rng.uniform(0.5, 2, n)


def expand(found, n=N):
    full = np.zeros((n, *found.sources.shape[1:]))
    full[found.support] = found.sources
    return full


def objective(data, field, alpha, weights, sources):
    """The definition."""
    residual = data - np.einsum("mnd,ndt->mt", field, sources)
    return 0.5 * np.sum(residual**2) + alpha * weights @ np.linalg.norm(sources, axis=(1, 2))


def plain_descent(data, field, alpha, weights, n_sweeps):
    """Proximal gradient steps, block after block, over all sources, nothing left out."""
    _, n, d = field.shape
    sources = np.zeros((n, d, data.shape[1]))
    residual = data.copy()
    lipschitz = np.linalg.norm(field, ord=2, axis=(0, 2)) ** 2
    for _ in range(n_sweeps):
        for j in range(n):
            z = sources[j] + field[:, j].T @ residual / lipschitz[j]
            size = np.linalg.norm(z)
            new = z * max(0, 1 - alpha * weights[j] / lipschitz[j] / size)
            residual -= field[:, j] @ (new - sources[j])
            sources[j] = new
    return sources


@pytest.fixture(scope="module")
def solved():
    data, field, weights = make()
    alpha = 0.2 * mixed_norm.alpha_max(data, field, weights)
    return data, field, weights, alpha, mixed_norm.run(data, field, alpha, weights, tol=1e-12)


def test_equals_plain_descent_over_all_sources(solved):
    data, field, weights, alpha, found = solved
    plain = plain_descent(data, field, alpha, weights, 3000)
    # Both have gaps below 1e-12 of the objective, hence errors of its square root at most; the
    # strongly convex directions do better.
    np.testing.assert_allclose(expand(found), plain, atol=1e-9 * np.abs(plain).max())
    np.testing.assert_array_equal(found.support, np.flatnonzero(np.abs(plain).max(axis=(1, 2))))
    assert 3 <= len(found.support) < N / 2
    reached = objective(data, field, alpha, weights, plain)
    assert found.objective == pytest.approx(reached, rel=1e-12)
    assert found.objective == pytest.approx(
        objective(data, field, alpha, weights, expand(found)), rel=1e-13
    )


def test_conditions_of_optimality(solved):
    data, field, weights, alpha, found = solved
    residual = data - mixed_norm.predict(field, found.support, found.sources)
    linked = np.einsum("mnd,mt->ndt", field, residual)
    size = np.linalg.norm(linked, axis=(1, 2)) / (alpha * weights)
    assert np.all(size <= 1 + 1e-6)
    norms = np.linalg.norm(found.sources, axis=(1, 2), keepdims=True)
    wanted = alpha * weights[found.support, None, None] * found.sources / norms
    # A gap of 1e-12 leaves the direction of a source uncertain by about its root.
    np.testing.assert_allclose(linked[found.support], wanted, atol=1e-6 * np.abs(wanted).max())


def test_gap_certifies():
    """Never negative, and the objective is that close to the minimum, at every tolerance."""
    data, field, weights = make(1)
    alpha = 0.1 * mixed_norm.alpha_max(data, field, weights)
    best = mixed_norm.run(data, field, alpha, weights, tol=1e-14).objective
    energy = 0.5 * np.sum(data**2)
    for tol in (1e-1, 1e-3, 1e-6, 1e-10):
        found = mixed_norm.run(data, field, alpha, weights, tol=tol)
        assert found.is_converged and 0 <= found.gap <= tol
        assert -1e-14 <= (found.objective - best) / energy <= found.gap + 1e-14
        value, gap = mixed_norm.certify(data, field, alpha, found.support, found.sources, weights)
        assert value == pytest.approx(found.objective, rel=1e-13)
        # The solver may remember a better bound than that of the last residual.
        assert found.gap - 1e-13 <= gap
    # Of estimates that are far from the solution, too.
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        wrong = size * rng.standard_normal((4, D, T))
        value, gap = mixed_norm.certify(data, field, alpha, np.arange(4), wrong, weights)
        assert gap > (value - best) / energy > 0


def test_out_of_steps_says_so():
    data, field, _ = make(1)
    alpha = 0.02 * mixed_norm.alpha_max(data, field)
    found = mixed_norm.run(data, field, alpha, tol=1e-10, max_steps=1)
    assert not found.is_converged and found.gap > 1e-10
    assert mixed_norm.run(data, field, alpha, tol=1e-10).is_converged


@pytest.mark.slow
def test_working_sets_change_nothing(monkeypatch):
    """Sets of 8 and more, of 4 and more among candidates, and all sources at once."""
    data, field, weights = make(2)
    alpha = 0.3 * mixed_norm.alpha_max(data, field, weights)
    results = []
    # The second has candidates of 16, and surveys in single precision.
    for sizes, candidates in (((8, 12), 256), ((4, 6), 8), ((N, 2 * N), 256)):
        monkeypatch.setattr(mixed_norm, "_SIZES", sizes)
        monkeypatch.setattr(mixed_norm, "_CANDIDATES", (candidates, 2 * candidates))
        results.append(mixed_norm.run(data, field, alpha, weights, tol=1e-13))
    for other in results[:2]:
        np.testing.assert_array_equal(other.support, results[2].support)
        scale = np.abs(results[2].sources).max()
        np.testing.assert_allclose(other.sources, results[2].sources, atol=1e-9 * scale)


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e25])
def test_surveys_in_single_precision_bound_and_their_largest_is_exact(unit, monkeypatch):
    data, field, weights = make(3)
    field = unit * field
    plain = mixed_norm.prepare(data, field, weights)
    monkeypatch.setattr(mixed_norm, "_CANDIDATES", (8, 16))
    rough = mixed_norm.prepare(data, field, weights)
    assert plain.single is None and rough.single.dtype == np.float32
    for residual in (plain.data, 1e-6 * plain.data[:, ::-1]):
        exact, square, inner = mixed_norm.survey(plain, residual)
        bounds, *same = mixed_norm.survey(rough, residual)
        # The same sums in double precision by two programs, which may add up in another order.
        assert same == pytest.approx([square, inner], rel=1e-14)
        assert np.all(bounds >= exact * (1 - 1e-14)) and np.all(bounds < exact * (1 + 1e-3))
        assert bounds.max() == pytest.approx(exact.max(), rel=1e-14)
        assert np.count_nonzero(bounds > exact * (1 + 1e-9)) >= N - 16


def test_zero_from_alpha_max_on():
    data, field, weights = make(3)
    most = mixed_norm.alpha_max(data, field, weights)
    linked = np.einsum("mnd,mt->ndt", field, data)
    assert most == pytest.approx(np.max(np.linalg.norm(linked, axis=(1, 2)) / weights), rel=1e-13)
    for alpha in (most * (1 + 1e-12), 2 * most):
        found = mixed_norm.run(data, field, alpha, weights)
        assert found.support.size == 0 and found.sources.shape == (0, D, T)
        assert found.gap < 1e-12 and found.is_converged
        assert found.objective == pytest.approx(0.5 * np.sum(data**2), rel=1e-13)
    below = mixed_norm.run(data, field, 0.999 * most, weights, tol=1e-12)
    assert below.support.size == 1


def test_one_source_in_closed_form():
    """Orthonormal columns: shrinkage of G'Y, whatever the size."""
    rng = np.random.default_rng(4)
    field = np.linalg.qr(rng.standard_normal((30, 24)))[0].reshape(30, 8, 3)
    data = 2 * rng.standard_normal((30, 5))
    linked = np.einsum("mnd,mt->ndt", field, data)
    norms = np.linalg.norm(linked, axis=(1, 2))
    alpha = np.median(norms)
    found = mixed_norm.run(data, field, alpha, tol=1e-14)
    wanted = np.maximum(1 - alpha / norms, 0)[:, None, None] * linked
    np.testing.assert_allclose(expand(found, 8), wanted, atol=1e-10)


@pytest.mark.parametrize("n_times", [1, 7, 50])
def test_samples_are_compressed_without_loss(n_times):
    """More samples than channels, data of low rank, one sample: the problem as it was stated."""
    data, field, weights = make(5, n_times=n_times)
    if n_times == 50:
        data = data @ np.random.default_rng(1).standard_normal((n_times, n_times))
    low = np.outer(data[:, 0], np.cos(np.arange(n_times)))
    for y in (data, low):
        alpha = 0.3 * mixed_norm.alpha_max(y, field, weights)
        found = mixed_norm.run(y, field, alpha, weights, tol=1e-12)
        value, gap = mixed_norm.certify(y, field, alpha, found.support, found.sources, weights)
        assert gap < 1e-11 and value == pytest.approx(found.objective, rel=1e-12)


def test_views_of_the_same_problem(solved):
    data, field, weights, alpha, found = solved
    rng = np.random.default_rng(6)
    order = rng.permutation(N)
    turns = np.linalg.qr(rng.standard_normal((N, D, D)))[0]
    time_turn = np.linalg.qr(rng.standard_normal((T, T)))[0]
    rows = np.linalg.qr(rng.standard_normal((M, M)))[0]
    other = mixed_norm.run(
        rows @ data @ time_turn,
        np.einsum("lm,mnd,nde->lne", rows, field, turns)[:, order],
        alpha,
        weights[order],
        tol=1e-12,
    )
    back = np.zeros((N, D, T))
    back[order] = expand(other)
    back = turns @ back @ time_turn.T
    full = expand(found)
    # Two solutions, each with a gap of 1e-12.
    np.testing.assert_allclose(back, full, atol=1e-6 * np.abs(full).max())
    assert other.objective == pytest.approx(found.objective, rel=1e-12)
    # Units of data and fields, and weights taken into the field.
    scaled = mixed_norm.run(1e3 * data, 1e-2 * field, 10 * alpha, weights, tol=1e-12)
    np.testing.assert_allclose(expand(scaled), 1e5 * full, atol=1e-1 * np.abs(full).max())
    weighed = mixed_norm.run(data, field / weights[:, None], alpha, tol=1e-12)
    np.testing.assert_allclose(
        expand(weighed) / weights[:, None, None], full, atol=1e-6 * np.abs(full).max()
    )


def test_silent_and_doubled_sources():
    """A source without a field stays at zero; two alike share what one would have."""
    data, field, weights = make(7)
    weights[21] = weights[20]
    field[:, 21] = field[:, 20]
    field[:, 3] = 0
    field[:, 30, 2] = field[:, 30, 0]  # a field that does not see one direction
    alpha = 0.1 * mixed_norm.alpha_max(data, field, weights)
    found = mixed_norm.run(data, field, alpha, weights, tol=1e-10)
    assert found.is_converged and 3 not in found.support
    without = np.delete(np.arange(N), 21)
    one = mixed_norm.run(data, field[:, without], alpha, weights[without], tol=1e-10)
    assert one.objective == pytest.approx(found.objective, rel=1e-9)


def test_path_equals_single_runs():
    data, field, weights = make(8)
    alphas = mixed_norm.alpha_max(data, field, weights) * np.array([1.1, 0.6, 0.2, 0.4])
    path = mixed_norm.run_path(data, field, alphas, weights, tol=1e-12)
    assert [p.alpha for p in path] == list(alphas)
    for alpha, found in zip(alphas, path, strict=True):
        alone = mixed_norm.run(data, field, alpha, weights, tol=1e-12)
        np.testing.assert_array_equal(found.support, alone.support)
        np.testing.assert_allclose(found.sources, alone.sources, atol=1e-7)
    assert len(path[0].support) == 0 and len(path[1].support) < len(path[2].support)


@pytest.mark.slow
def test_one_component_is_the_multi_task_lasso():
    from sklearn.linear_model import Lasso, MultiTaskLasso

    for n_times, peer in ((7, MultiTaskLasso), (1, Lasso)):
        data, field, _ = make(9, d=1, n_times=n_times)
        alpha = 0.2 * mixed_norm.alpha_max(data, field)
        # Theirs divides the misfit by the number of rows.
        peer = peer(alpha / M, fit_intercept=False, tol=1e-12, max_iter=100_000)
        wanted = peer.fit(field[:, :, 0], data).coef_.reshape(n_times, N)
        found = mixed_norm.run(data, field, alpha, tol=1e-13)
        np.testing.assert_allclose(expand(found)[:, 0].T, wanted, atol=1e-6)
        if n_times == 1:
            assert len(found.support) <= M


@pytest.mark.oracle
def test_celer_and_skglm_find_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own imports and compilers
        from celer.homotopy import mtl_path
        from skglm.datafits import QuadraticGroup
        from skglm.penalties import WeightedGroupL2
        from skglm.solvers import GroupBCD
        from skglm.utils.data import grp_converter

        data, field, _ = make(9, d=1)
        alpha = 0.1 * mixed_norm.alpha_max(data, field)
        columns = np.asfortranarray(field[:, :, 0])
        theirs = mtl_path(columns, np.asfortranarray(data), alphas=[alpha / M], tol=1e-12)
        found = mixed_norm.run(data, field, alpha, tol=1e-12)
        np.testing.assert_allclose(expand(found)[:, 0].T, theirs[1][..., 0], atol=1e-5)

        data, field, weights = make(10, n_times=1)
        alpha = 0.1 * mixed_norm.alpha_max(data, field, weights)
        groups = grp_converter(D, N * D)[::-1]  # where groups start, then their columns
        penalty = WeightedGroupL2(alpha / M, weights, *groups)
        solver = GroupBCD(tol=1e-12, fit_intercept=False, max_iter=500)
        wanted, _, _ = solver.solve(
            np.asfortranarray(field.reshape(M, N * D)), data[:, 0], QuadraticGroup(*groups), penalty
        )
        found = mixed_norm.run(data, field, alpha, weights, tol=1e-12)
    np.testing.assert_allclose(expand(found)[..., 0], wanted.reshape(N, D), atol=1e-5)


@pytest.mark.slow
def test_objective_is_not_above_that_of_mne(data_dir):
    """The auditory response of the sample subject, all sources free."""
    import mne
    from sesameeg_reference import sample_problem

    import bayes_esi as be

    evoked, forward, noise_cov = sample_problem(data_dir, spacing=15.0)
    problem = be.from_mne(evoked, forward, noise_cov, tmin=0.045, tmax=0.135)
    data, field = problem.data, problem.lead_field
    most = mixed_norm.alpha_max(data, field)
    none = np.ones(field.shape[1])
    for percent in (60, 30):
        theirs = mne.inverse_sparse.mixed_norm(
            evoked.copy().crop(0.045, 0.135), forward, noise_cov, percent, loose=1, depth=None,
            rank={"meg": len(data)}, pick_ori="vector", debias=False, tol=1e-6, verbose="error",
        )  # fmt: skip
        places = np.searchsorted(forward["src"][0]["vertno"], theirs.vertices[0])
        found = mixed_norm.run(data, field, percent / 100 * most)
        value, gap = mixed_norm.certify(
            data, field, percent / 100 * most, places, theirs.data / problem.moment_unit, none
        )
        assert found.is_converged and found.objective <= value
        # Theirs is certified to 1e-6 of |Y|^2, ours to 1e-6 of half of it.
        assert value - found.objective < 3e-6 * 0.5 * np.sum(data**2)
        assert gap < 1e-5
        assert len(set(found.support) ^ set(places)) <= 2  # of 20 to 50: zeros up to the gap


def test_amplitudes_without_shrinkage():
    data, field, weights = make(10, noise=0.1)
    alpha = 0.3 * mixed_norm.alpha_max(data, field, weights)
    found = mixed_norm.run(data, field, alpha, weights)
    larger = mixed_norm.debias(data, field, found.support, found.sources)
    ratio = np.linalg.norm(larger, axis=(1, 2)) / np.linalg.norm(found.sources, axis=(1, 2))
    np.testing.assert_allclose(larger, ratio[:, None, None] * found.sources, atol=1e-12)
    assert np.all(ratio >= 1) and ratio.max() > 1.05

    def images(sources):
        return np.stack([field[:, j] @ x for j, x in zip(found.support, sources, strict=True)])

    slope = np.sum(images(found.sources) * (data - images(larger).sum(axis=0)), axis=(1, 2))
    scale = np.sum(images(larger) ** 2)
    # Nothing pulls an amplitude up, and nothing pulls one that is above 1 at all.
    assert np.all(slope < 1e-9 * scale)
    assert np.all(np.abs(slope[ratio > 1 + 1e-9]) < 1e-9 * scale)
    assert mixed_norm.debias(data, field, [], np.zeros((0, D, T))).shape == (0, D, T)


def test_minimum_current_is_the_mixed_norm_of_each_sample():
    data, field, weights = make(11)
    data[:, 3] = 0
    alphas = minimum_current.alpha_max(data, field, weights)
    alpha = np.where(alphas > 0, np.linspace(0.05, 1.5, T) * alphas, 1.0)
    found = minimum_current.run(data, field, alpha, weights, tol=1e-12)
    full = expand(found)
    assert np.all(found.is_converged) and np.all(found.gap >= 0)
    for t in range(T):
        if t == 3:
            assert not full[..., t].any() and found.gap[t] == 0
            continue
        one = mixed_norm.run(data[:, t : t + 1], field, alpha[t], weights, tol=1e-12)
        np.testing.assert_allclose(full[..., t], expand(one)[..., 0], atol=1e-6)
        assert found.objective[t] == pytest.approx(one.objective, rel=1e-11)
    assert not full[..., -1].any()


def test_minimum_current_of_components():
    """Each component is a source of its own."""
    data, field, weights = make(12, n_times=3)
    alpha = 0.2 * minimum_current.alpha_max(data, field, weights, per_component=True).min()
    found = minimum_current.run(data, field, alpha, weights, per_component=True, tol=1e-12)
    split = field.reshape(M, N * D, 1)
    other = minimum_current.run(data, split, alpha, np.repeat(weights, D), tol=1e-12)
    wanted = np.zeros((N * D, 1, 3))
    wanted[other.support] = other.sources
    np.testing.assert_allclose(expand(found), wanted.reshape(N, D, 3), atol=1e-12)
    # Most components of an active source are zero: the axes matter.
    assert np.mean(found.sources == 0) > 0.3


@pytest.mark.slow
def test_single_precision():
    data, field, weights = make(13)
    alpha = 0.2 * mixed_norm.alpha_max(data, field, weights)
    single = mixed_norm.run(data, field.astype(np.float32), alpha, weights)
    double = mixed_norm.run(data, field, alpha, weights)
    assert single.sources.dtype == np.float32 and single.is_converged
    assert 0 <= single.gap <= 2e-5
    np.testing.assert_allclose(expand(single), expand(double), atol=1e-2)
    each = minimum_current.run(data, field.astype(np.float32), alpha / 3, weights)
    assert each.sources.dtype == np.float32 and np.all(each.is_converged)


def test_one_compilation_for_all_data_of_a_shape():
    data, field, weights = make(14)
    alpha = 0.2 * mixed_norm.alpha_max(data, field, weights)
    mixed_norm.run(data, field, alpha, weights)
    minimum_current.run(data, field, alpha / 3, weights)
    kernels = (
        mixed_norm._gather,
        mixed_norm._linked_norms,
        minimum_current._solve_each,
        group_scales.run,
    )
    traces = [kernel._cache_size() for kernel in kernels]
    data, field, weights = make(15)
    mixed_norm.run(data, field, 0.9 * alpha, weights)
    minimum_current.run(data, field, alpha / 3, weights)
    assert [kernel._cache_size() for kernel in kernels] == traces


def test_scales_never_raise_the_objective():
    """Steps of the inner solver, one by one, from nothing and from a bad start."""
    data, field, weights = make(16, n_times=1)
    columns = field.transpose(0, 1, 2).reshape(M, -1)
    alpha = 0.02 * mixed_norm.alpha_max(data, field, weights)
    fixed = group_scales._Fixed(columns, data, weights, np.float64(alpha))
    fixed = jax.tree.map(jax.numpy.asarray, fixed)
    step = jax.jit(group_scales.step)
    rng = np.random.default_rng(0)
    for scales in (np.zeros(N), 1e3 * rng.exponential(size=N)):
        state = group_scales.init(jax.numpy.asarray(scales), fixed)
        values = [float(state.value)]
        for _ in range(40):
            state = step(state, fixed)
            values.append(float(state.value))
            assert np.all(state.scales >= 0) and state.gap > -1e-12 * values[0]
        # Steps at the minimum may move within rounding.
        assert np.all(np.diff(values) <= 1e-14 * values[0])
        assert state.gap < 1e-10 * values[0]


def test_bad_input():
    data, field, weights = make()
    with pytest.raises(ValueError, match="data must have shape"):
        mixed_norm.run(data[1:], field, 1.0)
    with pytest.raises(ValueError, match="lead_field must have shape"):
        mixed_norm.run(data, field[..., 0], 1.0)
    with pytest.raises(ValueError, match="at most 3 components"):
        mixed_norm.run(data, field.reshape(M, N // 2, 6), 1.0)
    with pytest.raises(ValueError, match="alpha must be positive"):
        mixed_norm.run(data, field, 0.0)
    with pytest.raises(ValueError, match="weights must be positive"):
        mixed_norm.run(data, field, 1.0, weights - 5)
    with pytest.raises(ValueError, match="weights must have shape"):
        mixed_norm.run(data, field, 1.0, weights[1:])
    with pytest.raises(ValueError, match="data are zero"):
        mixed_norm.run(0 * data, field, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        mixed_norm.alpha_max(data * np.nan, field)
    with pytest.raises(ValueError, match="max_steps must be an integer"):
        mixed_norm.run(data, field, 1.0, max_steps=0)
    with pytest.raises(ValueError, match="alpha must have shape"):
        minimum_current.run(data, field, np.ones(T + 1))
    with pytest.raises(ValueError, match="alpha must be positive"):
        minimum_current.run(data, field, -1.0)
