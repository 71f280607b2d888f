"""Identities of Gaussian source models: dense Gaussians, one Kalman update, limits of the law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference import evidence
from bayes_esi.models.autoregressive import kernel_of
from bayes_esi.models.orientation import orient
from bayes_esi.models.source_hyper import hyper_of
from bayes_esi.models.source_likelihood import source_likelihood
from bayes_esi.models.source_prior import source_prior
from bayes_esi.sources import laplacian

M, N, T, STEP = 8, 12, 6, 1 / 250
STD = 2e-9  # A·m, with lead fields such that signals are some times the noise


def make_problem(seed=0, n_times=T, n_groups=1, n_orient=3, m=M):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((m, m))
    return be.Problem.from_arrays(
        rng.standard_normal((m, n_times)) * 4,
        rng.standard_normal((m, N, n_orient)) / STD,
        rng.uniform(-0.05, 0.05, (N, 3)),
        root @ root.T + np.eye(m),
        source_normals=rng.standard_normal((N, 3)),
        times=np.arange(n_times) * STEP,
        noise_groups=None if n_groups == 1 else ["meg"] * (m // 2) + ["eeg"] * (m - m // 2),
    )


def correlation(seed=4):
    root = np.random.default_rng(seed).standard_normal((N, N))
    return root @ root.T / N + 0.2 * np.eye(N)


def dense(problem, spatial_law, law, *, source_std=STD, noise_std=1.0, loose=1.0, n_seen=None):
    """Posterior mean, deviation and log evidence by the joint Gaussian of everything."""
    field = orient(problem, loose)
    frames = field.own_frames
    lead_field = problem.lead_field if frames.shape[1] == 3 else field.lead_field
    d = frames.shape[1]
    flat = lead_field.reshape(len(problem.data), -1) / problem.moment_unit
    turn = np.zeros((N * d, N * d))
    for s in range(N):
        turn[s * d : (s + 1) * d, s * d : (s + 1) * d] = frames[s]
    spatial = source_std**2 * turn @ np.kron(spatial_law, np.eye(d)) @ turn.T
    n_times = problem.n_times if n_seen is None else n_seen
    gain, cov = np.kron(np.eye(n_times), flat), np.kron(law[:n_times, :n_times], spatial)
    noise = np.broadcast_to(noise_std, problem.n_groups)[problem.noise_group] ** 2
    marginal = gain @ cov @ gain.T + np.kron(np.eye(n_times), np.diag(noise))
    marginal = 0.5 * (marginal + marginal.T)
    y = problem.data[:, :n_times].T.ravel()
    weights = np.linalg.solve(marginal, gain @ cov)
    mean, variance = weights.T @ y, np.diag(cov) - np.sum((gain @ cov) * weights, axis=0)
    log_evidence = multivariate_normal(cov=marginal).logpdf(y) + problem.log_jacobian
    arrange = lambda x: x.reshape(n_times, N, d).transpose(1, 2, 0)  # noqa: E731
    return arrange(mean), np.sqrt(arrange(variance)), log_evidence


KERNELS = {
    "static": (be.GaussianSources, {}, None),
    "white": (be.AutoregressiveSources, {"coefficient": 0.0}, None),
    "ar1": (be.AutoregressiveSources, {"coefficient": 0.8}, None),
    "ar2": (be.AutoregressiveSources, {"coefficient": [0.9, -0.3]}, None),
    "matern12": (be.AutoregressiveSources, {"kernel": "matern12", "time_scale": 0.01}, None),
    "matern32": (be.AutoregressiveSources, {"kernel": "matern32", "time_scale": 0.01}, None),
    "matern52": (be.AutoregressiveSources, {"kernel": "matern52", "time_scale": 0.01}, None),
    "walk": (be.AutoregressiveSources, {"kernel": "random_walk", "time_scale": 0.02}, None),
}


def law_of(model):
    if not hasattr(model, "kernel"):
        return np.eye(T)
    name = "time_scale" if model.coefficient is None else "coefficient"
    values = {name: jnp.asarray(getattr(model, name))}
    return np.asarray(kernel_of(model.kernel, values, STEP).covariance(T))


@pytest.mark.parametrize(
    ("kind", "loose"),
    [(kind, 1.0) for kind in KERNELS] + [(k, s) for k in ("static", "ar1") for s in (0.4, 0.0)],
)
def test_moments_and_evidence_are_those_of_the_dense_gaussian(kind, loose):
    make, arguments, _ = KERNELS[kind]
    problem, spatial = make_problem(n_groups=2), correlation()
    model = make(source_std=STD, covariance=spatial, loose=loose, noise_std=1.3, **arguments)
    posterior = be.infer(model, problem, progress=False)
    mean, std, log_evidence = dense(problem, spatial, law_of(model), noise_std=1.3, loose=loose)
    # Rounding of a few thousand operations on numbers of order one.
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-10 * np.abs(mean).max())
    np.testing.assert_allclose(posterior.std, std, rtol=1e-9)
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=1e-9)
    assert posterior.status is Status.OK and posterior.log_evidence_std == 0


@pytest.mark.parametrize("kind", ["ar1", "ar2", "matern32", "walk"])
def test_the_filter_is_the_smoother_of_what_came_before(kind):
    make, arguments, _ = KERNELS[kind]
    problem, spatial = make_problem(), correlation()
    model = make(source_std=STD, covariance=spatial, **arguments)
    filtered = be.infer(model, problem, method="kalman_filter", progress=False)
    for n_seen in (1, 3, T):
        mean, std, _ = dense(problem, spatial, law_of(model), n_seen=n_seen)
        last = n_seen - 1
        scale = np.abs(mean).max()
        np.testing.assert_allclose(filtered.mean[..., last], mean[..., -1], atol=1e-10 * scale)
        np.testing.assert_allclose(filtered.std[..., last], std[..., -1], rtol=1e-9)
    smoothed = be.infer(model, problem, progress=False)
    assert filtered.log_evidence == pytest.approx(smoothed.log_evidence, abs=1e-9)


def test_both_forms_of_tikhonov_and_one_kalman_update():
    problem = make_problem(n_times=2)
    posterior = be.infer(be.GaussianSources(lambda2=1 / 9), problem, progress=False)
    flat = problem.lead_field.reshape(M, -1)
    scale = M / np.trace(flat @ flat.T)  # the prior's scale in units of 1 / lambda2
    primal = np.linalg.solve(
        flat.T @ flat + np.eye(3 * N) / (9 * scale), flat.T @ problem.data
    ).reshape(N, 3, 2)
    # Kalman: from N(0, P) by one update with gain P G' (G P G' + I)^-1.
    prior_cov = 9 * scale * np.eye(3 * N)
    gain = prior_cov @ flat.T @ np.linalg.inv(flat @ prior_cov @ flat.T + np.eye(M))
    cov = (np.eye(3 * N) - gain @ flat) @ prior_cov
    tolerance = 1e-10 * np.abs(primal).max() * problem.moment_unit
    mean = posterior.mean
    np.testing.assert_allclose(mean, primal * problem.moment_unit, atol=tolerance)
    update = (gain @ problem.data).reshape(N, 3, 2)
    np.testing.assert_allclose(mean, update * problem.moment_unit, atol=tolerance)
    std = np.sqrt(np.diag(cov)).reshape(N, 3) * problem.moment_unit
    np.testing.assert_allclose(posterior.std, np.repeat(std[..., None], 2, axis=2), rtol=1e-10)
    assert posterior.lambda2 == pytest.approx(1 / 9, rel=1e-12)


@pytest.mark.slow
def test_posterior_mean_is_that_of_nuts_over_the_sources_themselves():
    import numpyro
    from numpyro.infer import MCMC, NUTS

    problem = make_problem(n_times=1, n_orient=1)
    model = be.GaussianSources(source_std=STD)
    posterior = be.infer(model, problem, progress=False)
    field = problem.lead_field[:, :, 0] * (STD / problem.moment_unit)

    def program():
        x = numpyro.sample("x", dist.Normal().expand((N,)).to_event(1))
        numpyro.sample("y", dist.Normal(field @ x, 1.0).to_event(1), obs=problem.data[:, 0])

    chains = MCMC(
        NUTS(program), num_warmup=300, num_samples=1500, num_chains=2, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    chains.run(jax.random.key(0))
    draws = STD * np.asarray(chains.get_samples()["x"])
    # Some 2,000 effective draws: an error of 2 % of the deviation, five of them allowed.
    np.testing.assert_array_less(
        np.abs(draws.mean(axis=0) - posterior.mean[:, 0, 0]), 0.12 * posterior.std[:, 0, 0]
    )
    np.testing.assert_allclose(draws.std(axis=0), posterior.std[:, 0, 0], rtol=0.1)


def test_limits_of_the_law_in_time():
    problem = make_problem()
    static = be.infer(be.GaussianSources(source_std=STD), problem, progress=False)
    white = be.infer(
        be.AutoregressiveSources(coefficient=0.0, source_std=STD), problem, progress=False
    )
    tolerance = 1e-12 * np.abs(static.mean).max()
    np.testing.assert_allclose(white.mean, static.mean, atol=tolerance)
    np.testing.assert_allclose(white.std, static.std, rtol=1e-10)
    assert white.log_evidence == pytest.approx(static.log_evidence, abs=1e-10)
    single = make_problem(n_times=1)
    static = be.infer(be.GaussianSources(source_std=STD), single, progress=False)
    moving = be.AutoregressiveSources(coefficient=0.9, source_std=STD)
    np.testing.assert_allclose(
        be.infer(moving, single, progress=False).mean, static.mean, atol=tolerance
    )
    # A walk that takes for ever to move is one source vector seen T times.
    frozen = be.AutoregressiveSources(kernel="random_walk", time_scale=1e9, source_std=STD)
    frozen = be.infer(frozen, problem, progress=False)
    average = dataclasses.replace(
        problem,
        data=problem.data.mean(axis=1, keepdims=True) * np.sqrt(T),
        lead_field=problem.lead_field * np.sqrt(T),
        times=problem.times[:1],
    )
    average = be.infer(be.GaussianSources(source_std=STD), average, progress=False)
    for t in range(T):  # to the share of variance that the walk gains, T step / time_scale
        np.testing.assert_allclose(
            frozen.mean[..., t], average.mean[..., 0], atol=1e-7 * np.abs(average.mean).max()
        )


def test_scaling_the_data_scales_a_linear_estimate():
    problem = make_problem()
    louder = dataclasses.replace(problem, data=3 * problem.data)
    model = be.AutoregressiveSources(coefficient=0.7, source_std=STD)
    quiet, loud = (be.infer(model, p, progress=False) for p in (problem, louder))
    np.testing.assert_allclose(loud.mean, 3 * quiet.mean, rtol=1e-9, atol=1e-20)
    np.testing.assert_array_equal(loud.std, quiet.std)


def test_missing_samples_carry_nothing():
    problem, spatial = make_problem(), correlation()
    missing = np.array([False, True, False, False, True, False])
    model = be.AutoregressiveSources(coefficient=0.8, source_std=STD, covariance=spatial)
    posterior = be.infer(model, problem, missing=missing, progress=False)
    seen = np.flatnonzero(~missing)
    flat = problem.lead_field.reshape(M, -1) / problem.moment_unit
    law, cov = law_of(model), STD**2 * np.kron(spatial, np.eye(3))
    gram = flat @ cov @ flat.T
    marginal = np.kron(law[np.ix_(seen, seen)], gram) + np.eye(M * len(seen))
    y = problem.data[:, seen].T.ravel()
    weights = np.linalg.solve(marginal, y).reshape(len(seen), M)
    mean = (cov @ flat.T @ (law[:, seen] @ weights).T).reshape(N, 3, T)
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-10 * np.abs(mean).max())
    jacobian = problem.log_jacobian * len(seen) / T
    wanted = multivariate_normal(cov=marginal).logpdf(y) + jacobian
    assert posterior.log_evidence == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kind", ["ar1", "matern32"])
@pytest.mark.parametrize("method", ["kalman_smoother", "kalman_filter"])
def test_channels_that_go_bad_for_a_time(kind, method):
    """Against the joint Gaussian of sources and of the good channels in their own units."""
    _, arguments, _ = KERNELS[kind]
    spatial = correlation()
    rng = np.random.default_rng(11)
    root = rng.standard_normal((M, M))
    noise_cov = root @ root.T + np.eye(M)
    data, lead_field = 4 * rng.standard_normal((M, T)), rng.standard_normal((M, N, 3)) / STD
    pos, times = rng.uniform(-0.05, 0.05, (N, 3)), np.arange(T) * STEP
    problem = be.Problem.from_arrays(data, lead_field, pos, noise_cov, times=times)
    missing = rng.random((M, T)) < 0.3
    missing[:, 2] = True
    model = be.AutoregressiveSources(source_std=STD, covariance=spatial, noise_std=1.2, **arguments)
    posterior = be.infer(model, problem, missing=missing, method=method, progress=False)

    flat = lead_field.reshape(M, -1)
    cov = np.kron(law_of(model), STD**2 * np.kron(spatial, np.eye(3)))
    field = np.kron(np.eye(T), flat)
    total = field @ cov @ field.T + np.kron(np.eye(T), 1.44 * noise_cov)
    for t in range(T) if method == "kalman_filter" else [T - 1]:
        seen = ~missing.T
        seen[t + 1 :] = False
        seen = seen.ravel()
        marginal, cross = total[np.ix_(seen, seen)], (field @ cov)[seen]
        weights = np.linalg.solve(marginal, cross)
        mean = (weights.T @ data.T.ravel()[seen]).reshape(T, N, 3)
        std = np.sqrt(np.diag(cov) - np.sum(cross * weights, axis=0)).reshape(T, N, 3)
        for at in range(T) if method == "kalman_smoother" else [t]:
            scale = np.abs(mean).max()
            np.testing.assert_allclose(posterior.mean[..., at], mean[at], atol=1e-9 * scale)
            np.testing.assert_allclose(posterior.std[..., at], std[at], rtol=1e-8)
    wanted = multivariate_normal(cov=marginal).logpdf(data.T.ravel()[seen])
    assert posterior.log_evidence == pytest.approx(wanted, abs=1e-8)
    with pytest.raises(ValueError, match="channels are missing"):
        posterior.statistic("dSPM")
    unknown = be.AutoregressiveSources(covariance=spatial)
    with pytest.raises(ValueError, match="missing channels need known"):
        be.infer(unknown, problem, missing=missing, progress=False)


@pytest.mark.parametrize("criterion", ["evidence", "gcv", "l_curve"])
def test_each_criterion_sets_the_scale_and_keeps_its_curve(criterion):
    problem = make_problem(m=20, n_times=40)
    posterior = be.infer(
        be.GaussianSources(), problem, regularisation=criterion, progress=False, throw=False
    )
    # These data are noise without a law: their L-curve does not bend, and that is told.
    assert posterior.status is (Status.NO_CORNER if criterion == "l_curve" else Status.OK)
    curve = posterior.curve
    assert (
        curve.name.replace("-", "_").startswith(criterion) or criterion in str(curve.name).lower()
    )
    # The optimum in the coordinate of the search, log source_std, is that of the curve.
    assert posterior.lambda2 == pytest.approx(float(curve.best), rel=1e-5)
    given = be.infer(be.GaussianSources(lambda2=float(curve.best)), problem, progress=False)
    np.testing.assert_allclose(given.mean, posterior.mean, rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("kind", ["laplacian", "laura"])
def test_smooth_priors_solve_their_penalty(kind):
    """min |data - G x|^2 + l |B Omega x|^2, Omega the norms of the fields (LORETA, LAURA)."""
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    problem = be.Problem.from_arrays(
        rng.standard_normal((M, 3)), rng.standard_normal((M, 27, 1)), 0.01 * grid
    )
    model = be.GaussianSources(covariance=kind, depth=1.0, depth_limit=None, lambda2=0.3)
    posterior = be.infer(model, problem, progress=False)
    make = laplacian.loreta_operator if kind == "laplacian" else laplacian.laura_operator
    operator = make(problem.neighbours, *([problem.source_pos] if kind == "laura" else []))
    field = problem.lead_field[:, :, 0]
    omega = np.diag(np.linalg.norm(field, axis=0))
    penalty = (operator.toarray() @ omega).T @ (operator.toarray() @ omega)
    scale = M / np.trace(field @ np.linalg.solve(penalty, field.T))
    x = np.linalg.solve(field.T @ field + 0.3 / scale * penalty, field.T @ problem.data)
    tolerance = 1e-9 * np.abs(x).max()
    np.testing.assert_allclose(posterior.mean[:, 0] / problem.moment_unit, x, atol=tolerance)


@pytest.mark.parametrize("loose", [1.0, 0.0])
@pytest.mark.parametrize("name", ["sLORETA", pytest.param("eLORETA", marks=pytest.mark.slow)])
def test_a_single_source_without_noise_is_found_wherever_it_is(name, loose):
    problem = make_problem()
    rng = np.random.default_rng(8)
    posterior = be.infer(be.GaussianSources(lambda2=0.5, loose=loose), problem, progress=False)
    field = orient(problem, loose).lead_field
    for source in range(N):
        data = field[:, source] @ rng.standard_normal((field.shape[2], T))
        statistic = posterior.apply(dataclasses.replace(problem, data=data)).statistic(name)
        assert np.all(np.abs(statistic).argmax(axis=0) == source)


# -------------------------------------------------------------------- unknown hyper-parameters


def simulate(model, seed, m=20, n_times=40, source_std=STD):
    """A problem whose data follow the model."""
    problem = make_problem(seed=seed, m=m, n_times=n_times)
    prior = source_prior(model, problem)
    theta = {
        "source_std": jnp.asarray(source_std),
        "noise_std": jnp.ones(1),
        "depth": jnp.asarray(0.0),
        "smoothness": jnp.asarray(1.0),
        "time_scale": jnp.asarray(0.04),
    }
    hyper = hyper_of(model, problem, prior.gram(0.0, 1.0))
    likelihood = source_likelihood(model, problem, prior, hyper)
    data = np.asarray(likelihood.sample(jax.random.key(seed), theta))
    return dataclasses.replace(problem, data=data)


def log_posterior_on_grid(model, problem, names, points):
    """Log posterior in the coordinates of the quadrature at points (n, dim)."""
    prior = source_prior(model, problem)
    hyper = hyper_of(model, problem, prior.gram(0.5 if "depth" in names else 0.0, 1.0))
    assert sorted(hyper.unknown) == list(names)
    likelihood = source_likelihood(model, problem, prior, hyper)
    known = {k: jnp.asarray(v) for k, v in hyper.known.items()}
    laws = {k: hyper.unknown[k] for k in names}
    return evidence._values((likelihood, laws, known), points)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_evidence_is_integrated_over_what_is_unknown(kind):
    model = be.GaussianSources() if kind == "static" else be.AutoregressiveSources()
    problem = simulate(model, seed=1)
    posterior = be.infer(model, problem, progress=False)
    names = sorted(posterior.hyper_std)
    best = np.log([float(posterior.hyper[n]) for n in names])
    width = 8 * np.array([float(posterior.hyper_std[n]) for n in names])
    axes = [np.linspace(b - w, b + w, 61) for b, w in zip(best, width, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(names))
    values = log_posterior_on_grid(model, problem, names, points)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    weights = np.exp(values - values.max())
    brute = values.max() + np.log(weights.sum() * cell) + problem.log_jacobian
    # The trapezoid over eight deviations is exact to 1e-6; the rule says its own error.
    assert posterior.log_evidence == pytest.approx(brute, abs=1e-3)
    assert abs(posterior.log_evidence - brute) <= 3 * posterior.log_evidence_std + 1e-5
    # The optimum is the peak of the grid, and the deviation is the curvature's.
    weights /= weights.sum()
    spread = np.sqrt(weights @ (points - weights @ points) ** 2)
    np.testing.assert_allclose([posterior.hyper_std[n] for n in names], spread, rtol=0.1)
    assert np.all(np.abs(best - points[np.argmax(values)]) <= [a[1] - a[0] for a in axes])


def test_every_search_arrives_at_the_same_place():
    """Partial autocorrelations near one: line searches that start far off meet no number."""
    rng = np.random.default_rng(0)
    problem = make_problem(m=10, n_times=80)
    x = np.zeros((N * 3, 80))
    for t in range(2, 80):
        x[:, t] = 1.9 * x[:, t - 1] - 0.92 * x[:, t - 2] + rng.standard_normal(N * 3)
    flat = problem.lead_field.reshape(10, -1) / problem.moment_unit
    data = flat @ (STD * x / x.std()) + rng.standard_normal((10, 80))
    problem = dataclasses.replace(problem, data=data)
    found = [
        be.infer(be.AutoregressiveSources(order=2), problem, jax.random.key(k), progress=False)
        for k in range(4)
    ]
    evidences = [p.log_evidence for p in found]
    assert np.ptp(evidences) < 0.01
    partial = found[0].hyper["partial"]
    assert np.all(np.abs(partial - [0.99, -0.92]) < 0.05)


def test_evidence_with_a_share_at_its_end():
    problem = make_problem(seed=3, m=10, n_times=30)
    model = be.GaussianSources(depth=None, source_std=STD)
    posterior = be.infer(model, problem, progress=False)
    points = ((np.arange(2000) + 0.5) / 2000)[:, None]
    values = log_posterior_on_grid(model, problem, ["depth"], points)
    brute = np.log(np.mean(np.exp(values - values.max()))) + values.max() + problem.log_jacobian
    assert posterior.log_evidence == pytest.approx(brute, abs=1e-4)


def test_a_given_distribution_is_the_prior():
    problem = simulate(be.GaussianSources(), seed=2)
    model = be.GaussianSources(source_std=dist.LogNormal(np.log(STD), 0.05), noise_std=None)
    posterior = be.infer(model, problem, progress=False)
    assert set(posterior.hyper_std) == {"source_std", "noise_std"}
    assert abs(np.log(posterior.hyper["source_std"] / STD)) < 0.15
    assert posterior.hyper["noise_std"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_scales_are_recovered_as_data_grow():
    problem = simulate(be.AutoregressiveSources(), seed=5, n_times=1500)
    posterior = be.infer(be.AutoregressiveSources(noise_std=None), problem, progress=False)
    truth = {"source_std": STD, "noise_std": 1.0, "time_scale": 0.04}
    for name, value in truth.items():
        error = np.log(posterior.hyper[name] / value)
        assert np.all(np.abs(error) < 4 * posterior.hyper_std[name]), name
        assert np.all(posterior.hyper_std[name] < 0.1)


@pytest.mark.parametrize("method", ["closed_form", "kalman_smoother"])
def test_intervals_cover_what_they_say(method):
    model = be.GaussianSources if method == "closed_form" else be.AutoregressiveSources
    more = {} if method == "closed_form" else {"coefficient": 0.9}
    hits, total = 0, 0
    rng = np.random.default_rng(0)
    for seed in range(20):
        problem = make_problem(seed=seed, n_times=30)
        law = np.eye(30) if not more else 0.9 ** np.abs(np.subtract.outer(range(30), range(30)))
        x = STD * rng.standard_normal((N * 3, 30)) @ np.linalg.cholesky(law).T
        flat = problem.lead_field.reshape(M, -1) / problem.moment_unit
        data = flat @ x + rng.standard_normal((M, 30))
        problem = dataclasses.replace(problem, data=data)
        posterior = be.infer(model(source_std=STD, **more), problem, progress=False)
        error = np.abs(posterior.mean - x.reshape(N, 3, 30)) / posterior.std
        hits += np.sum(error < 1.6449)
        total += error.size
    # 20 problems of some 36 x 6 independent errors: 0.5 % deviation, four of them allowed.
    assert hits / total == pytest.approx(0.9, abs=0.02)


def test_a_scale_that_the_data_do_not_set_is_not_trusted():
    problem = make_problem(m=20, n_times=200)
    silent = dataclasses.replace(problem, data=0.3 * problem.data / np.std(problem.data))
    with pytest.raises(be.InferenceError, match="SCALE_AT_BOUND"):
        be.infer(be.GaussianSources(), silent, progress=False)
    kept = be.infer(be.GaussianSources(), silent, progress=False, throw=False)
    assert kept.status is Status.SCALE_AT_BOUND and np.all(np.isfinite(kept.mean))


@pytest.mark.slow
def test_nuts_recovers_the_posterior_of_the_grid():
    model = be.AutoregressiveSources()
    problem = simulate(model, seed=7, m=10, n_times=60)
    fixed = be.infer(model, problem, progress=False)
    drawn = be.infer(model, problem, method="nuts", progress=False, n_samples=600)
    names = sorted(fixed.hyper_std)
    for name in names:
        draws = np.log(drawn.draws[name].ravel())
        spread = float(fixed.hyper_std[name])
        # 1,000 effective draws or so: 3 % of a deviation; modes and means of a mildly skewed
        # posterior are some tenths of a deviation apart.
        assert abs(draws.mean() - np.log(float(fixed.hyper[name]))) < 0.35 * spread
        assert draws.std() == pytest.approx(spread, rel=0.2)
    assert drawn.diagnostics()["r_hat"].astype(float).max() < 1.02
    assert drawn.log_evidence == pytest.approx(fixed.log_evidence, abs=1e-2)
    # The mixture is a little wider than the plug-in, and centred alike.
    assert np.mean(drawn.std) > 0.98 * np.mean(fixed.std)
    assert np.corrcoef(drawn.mean.ravel(), fixed.mean.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (be.GaussianSources(), {"regularisation": "snr"}, "'gcv'"),
        (be.GaussianSources(noise_std=None), {"regularisation": "gcv"}, "source scale alone"),
        (be.GaussianSources(lambda2=1.0, depth=None), {}, "lambda2 needs depth"),
        (be.GaussianSources(lambda2=1.0), {"method": "nuts"}, "this model has none"),
        (be.AutoregressiveSources(), {"missing": np.zeros(3, bool)}, "missing must have shape"),
        (be.AutoregressiveSources(), {"missing": np.ones(T, bool)}, "nothing to learn"),
        (be.AutoregressiveSources(), {"missing": np.zeros(T)}, "boolean"),
        (be.AutoregressiveSources(), {"n_particles": 5}, "option of kalman_smoother"),
        (be.GaussianSources(), {"checkpoint": "x"}, "nothing to resume"),
        (be.GaussianSources(covariance=np.eye(3)), {}, "12 rows"),
    ],
)
def test_bad_input(model, options, message):
    with pytest.raises(ValueError, match=message):
        be.infer(model, make_problem(), progress=False, **options)


def test_uneven_times_are_refused_where_time_matters():
    problem = make_problem()
    uneven = dataclasses.replace(problem, times=problem.times**2)
    be.infer(be.GaussianSources(source_std=STD), uneven, progress=False)
    with pytest.raises(ValueError, match="evenly spaced"):
        be.infer(be.AutoregressiveSources(coefficient=0.5), uneven, progress=False)
