"""Sparse sources: the estimates are means of Gaussians, these are right, units and files too."""

import dataclasses

import jax
import matplotlib.pyplot as plt
import mne
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference import mixed_norm
from bayes_esi.report.text import describe

M, N, T, STD = 24, 30, 8, 2e-9
NORMS = ("mixed_norm", "irmxne", "minimum_current")
KEY = jax.random.key(0)


def make_problem(unit=1.0, n_orient=3, normals=True, seed=0, n_times=T):
    """Three active sources; `unit` multiplies what is measured."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)[:N]
    field = rng.standard_normal((M, N, n_orient)) / STD
    sources = np.zeros((N, n_orient, n_times))
    sources[[3, 11, 25]] = 2 * STD * rng.standard_normal((3, n_orient, n_times))
    data = np.tensordot(field, sources, axes=2) + rng.standard_normal((M, n_times))
    directions = rng.standard_normal((N, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    return be.Problem.from_arrays(
        unit * data, unit * field, 0.01 * grid, unit**2 * np.eye(M),
        source_normals=directions if normals else None, times=np.arange(n_times) / 100,
    )  # fmt: skip


def infer(model, problem, method=None, **options):
    return be.infer(model, problem, KEY, method, progress=False, **options)


@pytest.fixture(scope="module")
def problem():
    return make_problem()


@pytest.mark.parametrize(
    ("method", "loose"),
    [*((method, 1.0) for method in NORMS), ("mixed_norm", 0.3), ("mixed_norm", 0.0)],
)
def test_the_estimate_of_a_norm_is_the_mean_of_its_gaussian(problem, method, loose):
    model = be.GroupSparseSources(0.4, loose=loose)
    posterior = infer(model, problem, method, debias=False, tol=1e-10)
    given = dataclasses.replace(posterior, moments=posterior.moments._replace(estimate=None))
    assert 0 < len(posterior.support) < N
    # The estimate is exact to the root of its gap.
    np.testing.assert_allclose(given.mean, posterior.mean, atol=1e-4 * posterior.mean.max())
    assert posterior.status is Status.OK
    assert posterior.certificate["gap"] <= posterior.certificate["limit"]


@pytest.mark.parametrize("method", [*NORMS, "tf_mxne"])
def test_at_the_largest_alpha_nothing_is_active(problem, method):
    posterior = infer(be.GroupSparseSources(1.0), problem, method)
    assert posterior.support.size == 0 and not posterior.mean.any() and not posterior.std.any()
    assert posterior.summary().empty
    assert "No source is active." in describe(posterior)
    for kind in posterior.kinds:
        posterior.plot(kind)
    plt.close("all")
    less = infer(be.GroupSparseSources(0.95), problem, method)
    assert less.support.size > 0


def test_mixed_norm_is_that_of_arrays_with_weights_and_depth(problem):
    weights = np.linspace(0.5, 2, N)
    posterior = infer(be.GroupSparseSources(0.4, weights=weights), problem, debias=False)
    alpha = 0.4 * mixed_norm.alpha_max(problem.data, problem.lead_field, weights)
    found = mixed_norm.run(problem.data, problem.lead_field, alpha, weights)
    np.testing.assert_array_equal(posterior.support, found.support)
    expected = problem.moment_unit * found.sources
    np.testing.assert_allclose(posterior.mean[found.support], expected, rtol=1e-5)
    deep = infer(be.GroupSparseSources(0.4, depth=0.8), problem)
    assert not np.array_equal(deep.mean, infer(be.GroupSparseSources(0.4), problem).mean)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        pytest.param(be.GroupSparseSources, "mixed_norm", marks=pytest.mark.slow),
        (be.GroupSparseSources, "irmxne"),
        pytest.param(be.HierarchicalSources, "ias", marks=pytest.mark.slow),
        (be.HierarchicalSources, "maximum_entropy"),
    ],
)
def test_the_noise_level_is_found(kind, method):
    """Noise twice as strong as said: found, and all is as if it had been said."""
    problem = make_problem()
    louder = dataclasses.replace(problem, data=2 * problem.data)
    given = {"alpha": "sure"} if kind is be.GroupSparseSources else {}
    options = {"eta": 0.5, "max_steps": 5000} if method == "ias" else {}
    found = infer(kind(noise_std=None, **given), louder, method, **options)
    level = found.hyper["noise_std"][0]
    # 24 x 8 numbers, some lost to the sources.
    assert level == pytest.approx(2.0, rel=0.25)
    told = infer(kind(noise_std=float(level), **given), louder, method, **options)
    np.testing.assert_allclose(told.mean, found.mean, rtol=1e-6, atol=1e-9 * found.mean.max())
    np.testing.assert_array_equal(told.support, found.support)
    assert f"noise_std {level:.3g}" in describe(found) or f"level {level:.3g}" in describe(found)
    # Half the field and half the noise are the same recording.
    scaled = dataclasses.replace(
        louder, data=louder.data / level, lead_field=louder.lead_field / level
    )
    same = infer(kind(noise_std=1.0, **given), scaled, method, **options)
    np.testing.assert_allclose(same.mean, told.mean, rtol=1e-5, atol=1e-7 * found.mean.max())
    np.testing.assert_allclose(same.std, told.std, rtol=1e-5, atol=1e-7 * found.std.max())
    if np.isfinite(told.log_evidence):
        expected = same.log_evidence - louder.data.size * np.log(level)
        assert told.log_evidence == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("choice", ["sure", "cross_validation", "evidence"])
@pytest.mark.parametrize("method", ["mixed_norm", "irmxne"])
def test_alpha_is_chosen(problem, method, choice):
    posterior = infer(be.GroupSparseSources(choice), problem, method)
    trace = posterior.sample_stats
    best = np.argmin(trace["criterion"])
    alpha = float(posterior.hyper["alpha"])
    assert alpha == pytest.approx(trace["alphas"][best] / trace["alphas"][0])
    assert 0 < alpha < 1 and {3, 11, 25} <= set(posterior.support)
    assert f"chosen by {choice.replace('_', '-')}" in describe(posterior)


def test_debiasing_raises_amplitudes_and_lowers_the_misfit(problem):
    model = be.GroupSparseSources(0.4)
    shrunk, debiased = infer(model, problem, debias=False), infer(model, problem)
    ratio = debiased.mean[debiased.support] / shrunk.mean[shrunk.support]
    assert np.all(ratio >= 1 - 1e-9)
    residual = [np.sum((problem.data - p.fitted) ** 2) for p in (shrunk, debiased)]
    assert residual[1] < residual[0]


def dense(problem, posterior):
    """Mean and covariance of all components at one sample, by dense algebra, in A·m."""
    field = problem.lead_field.reshape(len(problem.data), -1) / problem.moment_unit
    variances = posterior.moments.source_var[0, 0] * problem.moment_unit**2
    prior = np.kron(np.diag(variances), np.eye(3)) if variances.ndim == 1 else None
    if prior is None:
        prior = np.zeros((3 * N, 3 * N))
        for j, block in enumerate(variances):
            prior[3 * j : 3 * j + 3, 3 * j : 3 * j + 3] = block
    sigma = field @ prior @ field.T + np.diag(posterior.moments.noise_var[0])
    gain = prior @ field.T @ np.linalg.inv(sigma)
    return gain @ problem.data, prior - gain @ field @ prior, sigma


@pytest.mark.parametrize("covariance", ["tied", "full"])
@pytest.mark.parametrize("noise_std", [1.0, None])
def test_sparse_bayes_is_the_dense_gaussian_at_its_variances(problem, covariance, noise_std):
    posterior = infer(
        be.HierarchicalSources(noise_std), problem, covariance=covariance, throw=False
    )
    mean, cov, sigma = dense(problem, posterior)
    scale = np.abs(mean).max()
    np.testing.assert_allclose(posterior.mean.reshape(3 * N, T), mean, atol=1e-9 * scale)
    std = np.sqrt(np.maximum(np.diag(cov), 0))
    found = posterior.std[:, :, 2].ravel()
    np.testing.assert_allclose(found, std, atol=1e-6 * std.max())
    log_det = np.linalg.slogdet(2 * np.pi * sigma)[1]
    quadratic = np.sum(problem.data * np.linalg.solve(sigma, problem.data))
    expected = -0.5 * (T * log_det + quadratic) + problem.log_jacobian
    assert posterior.log_evidence == pytest.approx(expected, rel=1e-9)
    assert posterior.source_variance.shape == (N,)
    np.testing.assert_array_equal(np.flatnonzero(posterior.source_variance), posterior.support)
    assert not posterior.is_mode


@pytest.mark.parametrize(
    ("model", "method", "options"),
    [
        (be.HierarchicalSources(loose=0.4), "sparse_bayes", {}),
        (be.HierarchicalSources(), "sparse_bayes", {"coefficient": 0.7}),
        (be.HierarchicalSources(), "ias", {"is_shared": False}),
        (be.HierarchicalSources(), "multiple_sparse_priors", {"n_patches": 12, "reach": 2}),
        (be.HierarchicalSources(), "maximum_entropy", {"parcel_steps": 1}),
        (be.GroupSparseSources(0.3), "mixed_norm", {}),
        (be.GroupSparseSources(0.3), "minimum_current", {}),
    ],
    ids=["loose", "memory", "ias", "patches", "entropy", "mixed norm", "current"],
)
def test_draws_have_the_moments(problem, model, method, options):
    posterior = infer(model, problem, method, throw=False, **options)
    n_draws = 600
    draws = posterior.sample(KEY, n_draws, sources=posterior.support)
    mean, std = posterior.mean[posterior.support], posterior.std[posterior.support]
    is_alive = std > 1e-6 * std.max()
    # Standard scores of means and of variances over 600 draws; the largest of some hundreds.
    score = (draws.mean(axis=0) - mean)[is_alive] / std[is_alive] * np.sqrt(n_draws)
    assert np.abs(score).max() < 4.5
    spread = (draws.var(axis=0)[is_alive] / std[is_alive] ** 2 - 1) * np.sqrt(n_draws / 2)
    assert np.abs(spread).max() < 5
    directions = np.tile(np.eye(3)[1], (len(posterior.support), 1))
    along = posterior.answers.along(posterior.support, directions)
    np.testing.assert_allclose(along[0], mean[:, 1], atol=1e-9 * np.abs(mean).max())
    np.testing.assert_allclose(along[1], std[:, 1], atol=1e-6 * std.max())


def test_each_row_may_have_a_noise_level_of_its_own():
    """Twice the noise in half of the rows, of another group: seen by their levels."""
    problem = make_problem(n_times=60)
    rng = np.random.default_rng(5)
    rows = np.arange(M) < M // 2
    louder = problem.data + np.sqrt(3) * rows[:, None] * rng.standard_normal(problem.data.shape)
    problem = dataclasses.replace(
        problem, data=louder, noise_group=np.where(rows, 0, 1), group_names=("eeg", "meg")
    )
    model = be.HierarchicalSources(None)
    posterior = infer(model, problem, noise="diagonal", throw=False)
    level = posterior.hyper["noise_std"]
    # 720 numbers a group, some of which the sources take.
    np.testing.assert_allclose(level, (2.0, 1.0), rtol=0.15)
    assert posterior.moments.noise_var.shape == (1, M)
    common = infer(model, problem, throw=False)
    assert len(set(common.hyper["noise_std"])) == 1
    assert posterior.log_evidence > common.log_evidence


def test_active_sources_on_surfaces_are_labels():
    surface = make_problem()
    block = (np.arange(N) >= N // 2).astype(int)
    surface = dataclasses.replace(
        surface, source_block=block, block_kinds=("lh", "rh"), source_vertices=3 * np.arange(N)
    )
    posterior = infer(be.GroupSparseSources(0.4), surface)
    labels = posterior.to_mne("labels")
    assert [label.hemi for label in labels] == ["lh", "rh"]
    vertices = np.concatenate([label.vertices for label in labels])
    np.testing.assert_array_equal(vertices, 3 * posterior.support)
    strength = np.linalg.norm(posterior.mean[posterior.support], axis=1).max(axis=1)
    np.testing.assert_allclose(np.concatenate([label.values for label in labels]), strength)
    assert surface.mask(labels[0]).sum() == np.sum(posterior.support < N // 2)
    with pytest.raises(ValueError, match="quantity='dipoles'"):
        infer(be.GroupSparseSources(0.4), make_problem()).to_mne("labels")


def test_patches_are_the_dense_gaussian_with_correlated_sources(problem):
    posterior = infer(
        be.HierarchicalSources(depth=0.5), problem, "multiple_sparse_priors", n_patches=20, reach=2
    )
    patterns = np.kron(posterior.moments.patterns.toarray(), np.eye(3))
    field = problem.lead_field.reshape(len(problem.data), -1) / problem.moment_unit
    variances = np.repeat(posterior.moments.source_var[0, 0], 3) * problem.moment_unit**2
    prior = (patterns * variances) @ patterns.T
    sigma = field @ prior @ field.T + np.eye(M)
    gain = prior @ field.T @ np.linalg.inv(sigma)
    mean, cov = gain @ problem.data, prior - gain @ field @ prior
    scale = np.abs(mean).max()
    np.testing.assert_allclose(posterior.mean.reshape(3 * N, T), mean, atol=1e-8 * scale)
    std = np.sqrt(np.maximum(np.diag(cov), 0))
    np.testing.assert_allclose(posterior.std[:, :, 0].ravel(), std, atol=1e-6 * std.max())
    np.testing.assert_allclose(
        posterior.source_variance, np.diag(prior)[::3], rtol=1e-9, atol=1e-30
    )
    assert np.isfinite(posterior.log_evidence)
    assert "last gain of the search in nats" in describe(posterior)


def test_maximum_entropy_is_the_gaussian_of_its_shares(problem):
    """Its mean is that under variances p_kt S_k; where all parcels are certain, minimum norm."""
    posterior = infer(be.HierarchicalSources(depth=0.3), problem, "maximum_entropy", parcel_steps=1)
    labels = posterior.sample_stats["parcel"]
    share = posterior.sample_stats["share"]
    assert share.shape == (labels.max() + 1, T) and np.all((share > 0) & (share < 1))
    patterns = posterior.moments.patterns.toarray()
    # Patterns stay inside their parcel.
    assert not np.any(patterns[labels[:, None] != labels])
    field = problem.lead_field.reshape(M, -1) / problem.moment_unit
    wide = np.kron(patterns, np.eye(3))
    for t in (0, 4):
        variances = posterior.moments.source_var[0, t] * problem.moment_unit**2
        prior = (wide * np.repeat(variances, 3)) @ wide.T
        gain = prior @ field.T @ np.linalg.inv(field @ prior @ field.T + np.eye(M))
        mean = gain @ problem.data[:, t]
        found = posterior.mean[:, :, t].ravel()
        # The dual is solved to 1e-8 of the data.
        np.testing.assert_allclose(found, mean, atol=1e-6 * np.abs(mean).max())
        std = np.sqrt(np.diag(prior - gain @ field @ prior))
        np.testing.assert_allclose(posterior.std[:, :, t].ravel(), std, rtol=1e-5)
    assert np.isnan(posterior.log_evidence) and not posterior.is_mode
    assert "law nearest to its reference" in repr(posterior)
    assert "averages under the law nearest to its reference" in describe(posterior)


def test_ias_is_the_gaussian_at_its_variances(problem):
    posterior = infer(be.HierarchicalSources(), problem, "ias")
    mean, cov, _ = dense(problem, posterior)
    scale = np.abs(mean).max()
    np.testing.assert_allclose(posterior.mean.reshape(3 * N, T), mean, atol=1e-9 * scale)
    np.testing.assert_allclose(
        posterior.std[:, :, 0].ravel(), np.sqrt(np.diag(cov)), rtol=1e-5, atol=1e-16
    )
    assert {3, 11, 25} <= set(posterior.peaks[:3]) and len(posterior.support) < N
    energy = posterior.sample_stats["energy"].ravel()
    assert np.all(np.diff(energy) <= 1e-9 * np.abs(energy[:-1]))
    assert np.isnan(posterior.log_evidence)


@pytest.mark.parametrize("method", ["mixed_norm", "sparse_bayes", "ias"])
def test_units_do_not_matter(problem, method):
    norm = method == "mixed_norm"
    model = be.GroupSparseSources(0.4) if norm else be.HierarchicalSources()
    one, other = (infer(model, p, method) for p in (problem, make_problem(1e-13)))
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-4, atol=1e-5 * one.mean.max())
    np.testing.assert_allclose(other.source_variance, one.source_variance, rtol=1e-3)
    if method != "ias":
        jacobian = problem.log_jacobian - make_problem(1e-13).log_jacobian
        assert other.log_evidence == pytest.approx(one.log_evidence - jacobian, abs=1e-3)


@pytest.mark.parametrize("method", ["mixed_norm", "multiple_sparse_priors", "ias"])
def test_files_tables_mne_and_figures(problem, method, tmp_path):
    norm = method == "mixed_norm"
    model = be.GroupSparseSources("sure") if norm else be.HierarchicalSources()
    posterior = infer(model, problem, method)
    posterior.save(tmp_path / "sparse.nc")
    again = be.load(tmp_path / "sparse.nc")
    np.testing.assert_array_equal(again.mean, posterior.mean)
    np.testing.assert_array_equal(again.std, posterior.std)
    assert repr(again) == repr(posterior) and again.certificate == posterior.certificate
    frame = posterior.summary()
    assert frame["source"].iloc[0] == posterior.peaks[0]
    assert frame.attrs["deviations"].startswith("given the active sources")
    assert frame.attrs["is_mode"] == (method != "multiple_sparse_priors")
    text = describe(posterior)
    assert "Deviations hold if these sources are the active ones" in text
    dipoles = posterior.to_mne("dipoles")
    assert all(isinstance(d, mne.Dipole) for d in dipoles)
    assert len(dipoles) == len(posterior.support)
    np.testing.assert_allclose(dipoles[0].pos[0], problem.source_pos[posterior.peaks[0]])
    estimate = posterior.to_mne("mean")
    assert estimate.data.shape == (N, 3, T)
    tree = posterior.to_datatree(n_draws=3)
    assert tree["posterior"]["moment"].shape[1] == 3
    for kind in posterior.kinds:
        figure = posterior.plot(kind)
        figure = figure if hasattr(figure, "savefig") else np.ravel(figure)[0].figure
        figure.savefig(tmp_path / f"{kind}.png")
    plt.close("all")


@pytest.mark.slow
def test_chains_have_the_moments_of_their_draws_and_probabilities(tmp_path):
    """The mixture against the sources that the same law draws: few samples, weak data."""
    problem = make_problem()
    problem = dataclasses.replace(problem, data=problem.data[:, :2], times=problem.times[:2])
    posterior = infer(
        be.GroupSparseSources(0.5), problem, "gibbs", n_samples=2000, n_components=400, throw=False
    )
    probability = posterior.exceedance_probability
    assert probability.shape == (N,) and np.all((probability >= 0) & (probability <= 1))
    np.testing.assert_array_equal(np.flatnonzero(probability >= 0.5), posterior.support)
    strengths = np.sqrt(np.sum(posterior.mean**2 + posterior.std**2, axis=(1, 2)))
    drawn = np.sqrt(np.mean(posterior.draws["strength"] ** 2, axis=(0, 1)))
    # 400 components and 8,000 correlated sweeps: a few per cent.
    np.testing.assert_allclose(drawn, strengths[posterior.support], rtol=0.1)
    frame = posterior.summary()
    assert list(frame["exceedance_probability"]) == list(probability[frame["source"]])
    assert np.isfinite(posterior.diagnostics()["r_hat"]).all()
    posterior.save(tmp_path / "chains.nc")
    again = be.load(tmp_path / "chains.nc")
    np.testing.assert_array_equal(again.exceedance_probability, probability)
    assert "the law that was drawn has no zeros" in describe(again)
    tree = again.to_datatree(n_draws=3)
    assert tree["posterior"]["strength"].shape[:2] == (4, 2000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [be.GroupSparseSources(noise_std=None), be.HierarchicalSources(None, depth=0.5)],
    ids=["group_laplace", "horseshoe"],
)
def test_no_u_turn_chains_tell_what_they_drew(problem, model, tmp_path):
    posterior = infer(model, problem, "nuts", n_chains=2, n_warmup=100, n_samples=100, throw=False)
    assert posterior.is_sampled and not posterior.is_mode and np.isnan(posterior.log_evidence)
    probability = posterior.exceedance_probability
    np.testing.assert_array_equal(np.flatnonzero(probability >= 0.5), posterior.support)
    assert set(posterior.support) >= {3, 11, 25}
    # The noise is 1; of 192 values a relative error of 5 %, and more for what sources share.
    assert posterior.hyper["noise_std"][0] == pytest.approx(1.0, abs=0.25)
    if isinstance(model, be.HierarchicalSources):
        assert posterior.draws["overall_std"].shape == posterior.draws["noise_std"].shape
        assert set(posterior.support) == {3, 11, 25}
    with pytest.raises(ValueError, match="method='gibbs'"):
        posterior.inclusion_probability  # noqa: B018
    assert "the law that was drawn has no zeros" in describe(posterior)
    posterior.save(tmp_path / "chains.nc")
    again = be.load(tmp_path / "chains.nc")
    np.testing.assert_array_equal(again.std, posterior.std)
    tree = again.to_datatree(n_draws=3)
    assert tree["posterior"]["strength"].shape[:2] == (2, 100)
    # The choice of alpha is no property of draws.
    expected = {"acceptance_rate", "diverging", "energy", "log_density", "n_steps"}
    assert set(tree["sample_stats"]) == expected
    assert np.isfinite(posterior.diagnostics()["r_hat"]).all()


@pytest.fixture(scope="module")
def drawn(problem):
    model = be.HierarchicalSources(None)
    return infer(model, problem, "gibbs", n_components=60, max_active=6)


def test_draws_of_active_sources_tell_how_probable_they_are(problem, drawn):
    assert drawn.status is Status.OK and drawn.is_sampled and not drawn.is_mode
    probability, active = drawn.inclusion_probability, drawn.moments.active
    assert active.shape == (1000, 6) and set(drawn.support) == {3, 11, 25}
    assert np.all(probability[[3, 11, 25]] > 0.95) and np.all(probability <= 1)
    pmf = drawn.n_active_pmf
    assert pmf.shape == (7,) and pmf.sum() == pytest.approx(1) and pmf[:3].sum() < 0.05
    assert pmf @ np.arange(7) == pytest.approx(probability.sum(), abs=0.1)
    counted = [(active == j).any(axis=1).mean() for j in range(N)]
    # 1,000 draws, whose neighbours are alike.
    np.testing.assert_allclose(counted, probability, atol=0.05)
    assert drawn.prob_in([3, 7]) == np.mean(np.isin(active, (3, 7)).any(axis=1))
    assert drawn.prob_in(np.zeros(N, bool)) == 0
    level = drawn.draws["noise_std"]
    assert level.shape == (4, 250)
    # M n_times values: a relative error of 1 / sqrt(2 x 192) and some of it lost to the sources.
    assert drawn.hyper["noise_std"][0] == pytest.approx(1.0, abs=0.2)
    frame = drawn.summary()
    assert list(frame["inclusion_probability"]) == list(probability[frame["source"]])
    assert np.all(frame["prob_within_10mm"] >= frame["inclusion_probability"] - 0.05)
    text = describe(drawn)
    assert "P(active)" in text and "Number    3 (" in text and "Deviations hold" not in text


def test_moments_of_draws_are_those_of_the_mixture(problem, drawn):
    means, covs = [], []
    for i in range(60):
        moments = drawn.moments._replace(
            source_var=drawn.moments.source_var[i : i + 1],
            noise_var=drawn.moments.noise_var[i : i + 1],
        )
        mean, cov, _ = dense(problem, dataclasses.replace(drawn, moments=moments))
        means.append(mean)
        covs.append(np.maximum(np.diag(cov), 0))
    mean = np.mean(means, axis=0)
    scale = np.abs(mean).max()
    np.testing.assert_allclose(drawn.mean.reshape(3 * N, T), mean, atol=1e-9 * scale)
    std = np.sqrt(np.mean(covs, axis=0)[:, None] + np.var(means, axis=0))
    np.testing.assert_allclose(drawn.std.reshape(3 * N, T), std, atol=1e-6 * std.max())


def test_files_of_draws(drawn, tmp_path):
    drawn.save(tmp_path / "drawn.nc")
    again = be.load(tmp_path / "drawn.nc")
    np.testing.assert_array_equal(again.inclusion_probability, drawn.inclusion_probability)
    np.testing.assert_array_equal(again.std, drawn.std)
    assert repr(again) == repr(drawn) and again.model.inclusion_prob is None
    tree = again.to_datatree(n_draws=3)
    assert tree["posterior"]["n_active"].shape == (4, 250)
    for kind in drawn.kinds:
        drawn.plot(kind)
    plt.close("all")
    axes = drawn.plot("map", quantity="inclusion")
    assert len(axes) == 3
    plt.close("all")
    with pytest.raises(ValueError, match="no sources that are silent"):
        infer(be.GaussianSources(1e-9), drawn.problem).plot("map", quantity="inclusion")
    assert len(drawn.to_mne("dipoles")) == 3


def test_too_many_and_wandering_sources_are_told(problem):
    with pytest.raises(be.InferenceError, match="TOO_MANY_DIPOLES"):
        infer(be.HierarchicalSources(), problem, "gibbs", n_samples=30, max_active=3)


def test_what_sparse_sources_do_not_have_is_refused(problem):
    norm = infer(be.GroupSparseSources(0.4), problem)
    for act in (norm.statistic, norm.resolution, norm.stream):
        with pytest.raises(ValueError, match="GroupSparseSources"):
            act()
    for name in ("exceedance_probability", "inclusion_probability", "n_active_pmf"):
        with pytest.raises(ValueError, match="method='gibbs'"):
            getattr(norm, name)
    ias = infer(be.HierarchicalSources(), problem, "ias")
    with pytest.raises(ValueError, match="ias.* computes none"):
        be.compare({"norm": norm, "ias": ias})
    fixed = make_problem(n_orient=1, normals=False)
    with pytest.raises(ValueError, match="source_normals"):
        infer(be.GroupSparseSources(0.4), fixed).to_mne("dipoles")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: be.GroupSparseSources(0), "alpha"),
        (lambda: be.GroupSparseSources("aic"), "alpha"),
        (lambda: be.GroupSparseSources(0.3, weights=np.zeros(N)), "weights must be positive"),
        (lambda: be.GroupSparseSources(0.3, depth=2), "depth"),
        (lambda: be.GroupSparseSources(0.3, loose=-1), "loose"),
        (lambda: be.HierarchicalSources(noise_std=-1), "noise_std"),
        (lambda: be.HierarchicalSources(depth=None), "depth"),
        (lambda: be.HierarchicalSources(inclusion_prob=1.5), "inclusion_prob"),
        (lambda: be.HierarchicalSources(source_std=(2e-9, 1e-9)), "source_std"),
    ],
)
def test_bad_models_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("model", "method", "options", "text"),
    [
        (be.GroupSparseSources(0.3, weights=np.ones(5)), None, {}, "weights must have shape"),
        (be.GroupSparseSources("sure"), "tf_mxne", {}, "give a fraction"),
        (be.GroupSparseSources(0.3), None, {"debias": "yes"}, "debias"),
        (be.GroupSparseSources(0.3), None, {"n_draws": 3}, "n_draws"),
        (be.HierarchicalSources(), "gibbs", {"n_chains": 1}, "n_chains"),
        (be.HierarchicalSources(), None, {"rule": "newton"}, "rule"),
        (be.HierarchicalSources(), None, {"coefficient": 1.0}, "coefficient"),
    ],
)
def test_bad_options_are_refused(problem, model, method, options, text):
    with pytest.raises(ValueError, match=text):
        infer(model, problem, method, **options)


def test_non_convergence_is_a_status(problem):
    with pytest.raises(be.InferenceError, match="NOT_CONVERGED"):
        infer(be.HierarchicalSources(), problem, "ias", max_steps=2)
