"""Dipoles off the grid: against brute force, the grid, and the truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive

import bayes_esi as be
from bayes_esi.distributions import DipoleData
from bayes_esi.forward import Sphere
from bayes_esi.forward.coils import electrode
from bayes_esi.forward.sensors import lead_field_of, make_sensors
from bayes_esi.inference import hamiltonian, off_grid, off_grid_start
from bayes_esi.inference.off_grid_operator import grid_operator, head_operator, whitened_operator
from bayes_esi.posterior.off_grid import OffGridPosterior

HEAD = Sphere(radii=[0.08, 0.086, 0.092], sigma_radial=[0.33, 0.0125, 0.33])
STEP, FINEST = 0.01, 0.007  # m
TRUTH = np.array([[0.0331, 0.0124, 0.0437], [-0.0412, -0.0168, 0.0279]])
MOMENTS = 2e-8 * np.array([[0.2, 1.0, -0.3], [0.5, 0.2, 1.0]])


def cap(n, radius):
    """Points on the upper part of a sphere."""
    index = np.arange(n) + 0.5
    z, angle = 1 - 1.2 * index / n, np.pi * (1 + 5**0.5) * index
    across = np.sqrt(1 - z**2)
    return radius * np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


COILS = cap(40, 0.11)


def meg(pos):
    return HEAD.meg(pos, COILS, COILS / 0.11)


def half_ball(step):
    line = np.arange(-0.07, 0.0701, step)
    pos = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    return pos[(np.linalg.norm(pos, axis=1) < 0.068) & (pos[:, 2] > 0.005)]


def make_problem(n_dipoles, *, seed=0, step=STEP, n_times=8, lead_field=meg, snr=8.0):
    rng = np.random.default_rng(seed)
    course = np.stack([np.sin(np.linspace(0.3, 3, n_times)), np.cos(np.linspace(0, 2, n_times))])
    fields = np.asarray(lead_field(TRUTH[:n_dipoles]))
    clean = np.einsum("ckx,kx,kt->ct", fields, MOMENTS[:n_dipoles], course[:n_dipoles])
    level = np.abs(clean).max() / snr
    data = clean + level * rng.standard_normal(clean.shape)
    grid = half_ball(step)
    return be.Problem.from_arrays(
        data, np.asarray(lead_field(grid)), grid, noise_cov=level**2 * np.eye(len(data))
    )


@pytest.fixture(scope="module")
def problem():
    return make_problem(1)


@pytest.fixture(scope="module")
def operator(problem):
    return whitened_operator(problem, meg)


@pytest.fixture(scope="module")
def grid(problem):
    """The exact posterior on the grid: known noise, one unknown scale."""
    model = be.StaticDipoles(max_dipoles=1, noise_std=1.0)
    return be.infer(model, problem, method="enumerate", progress=False)


@pytest.fixture(scope="module")
def posterior(problem, operator, grid):
    return OffGridPosterior.sample(
        jax.random.key(1), grid.model, problem, grid, operator, n_warmup=250, n_samples=1000
    )


@pytest.mark.slow
def test_one_dipole_equals_integration_on_a_fine_mesh(problem, operator, posterior):
    """Mean and deviation of place and scale by brute force over 25^3 x 31 points."""
    draws = posterior.draws
    design = off_grid.prepare(posterior.model, problem, 1, operator)
    pos, log_scale = draws.pos.reshape(-1, 3), np.log(draws.moment_std.ravel())
    line = np.linspace(-6, 6, 25)  # standard deviations about the mean, along principal axes
    mesh = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    mesh = pos.mean(axis=0) + mesh @ np.linalg.cholesky(np.cov(pos.T)).T
    scales = log_scale.mean() + log_scale.std() * np.linspace(-6, 6, 31)

    @jax.jit
    def log_density(mesh):
        fields = operator(mesh).swapaxes(0, 1)[:, :, None]

        def at(log_scale):
            law = DipoleData.from_problem(problem, jnp.exp(log_scale), 1.0, fields=fields)
            return law.log_prob(problem.data)

        return jax.lax.map(at, scales) + design.places.log_prob(1e3 * mesh)

    table = np.asarray(log_density(mesh))  # the prior is flat in the logarithm
    weights = np.exp(table - table.max())
    weights /= weights.sum()
    # Some 4,000 draws, as good as independent: 1.6 % of a deviation for means, 1.1 % and more in
    # tails for deviations; five of these.
    for marginal, points, got in ((weights.sum(0), mesh, pos), (weights.sum(1), scales, log_scale)):
        mean = marginal @ points
        std = np.sqrt(marginal @ (points - mean) ** 2)
        assert np.all(np.abs(got.mean(axis=0) - mean) < 0.08 * std)
        np.testing.assert_allclose(got.std(axis=0), std, rtol=0.07)
    # The likelihood of a draw, in the units of the data.
    fields = np.asarray(jax.jit(operator)(jnp.asarray(draws.pos[2, 7])))
    law = DipoleData.from_problem(problem, draws.moment_std[2, 7], fields=fields)
    np.testing.assert_allclose(draws.log_likelihood[2, 7], law.log_prob(problem.data), rtol=1e-12)
    assert np.all(draws.noise_std == 1)


@pytest.mark.slow
def test_one_dipole_agrees_with_the_exact_posterior_on_the_grid(posterior, grid):
    """Started from the grid: place within the grid step, R-hat, the truth."""
    assert posterior.status is be.Status.OK
    assert posterior.r_hat < 1.01
    assert not posterior.draws.diverging.any()
    (dipole,), (on_grid,) = posterior.dipoles(), grid.dipoles()
    assert np.linalg.norm(dipole.pos - on_grid.pos) < STEP
    error = dipole.pos - TRUTH[0]
    # 99.9 % of a chi-squared law with three degrees of freedom.
    assert error @ np.linalg.solve(dipole.pos_cov, error) < 16.3
    # Half a step in depth changes the field of a source 45 mm from the coils by a fifth.
    got, wanted = (np.log(p.draws.moment_std).ravel() for p in (posterior, grid))
    assert abs(got.mean() - wanted.mean()) < 0.25
    assert 0.8 < got.std() / wanted.std() < 1.25


@pytest.mark.slow
def test_a_second_problem_of_the_same_shape_compiles_nothing(posterior):
    size = hamiltonian._advance._cache_size()
    other = make_problem(1, seed=1)
    draws = off_grid.run(
        jax.random.key(2),
        posterior.model,
        other,
        TRUTH[:1],
        whitened_operator(other, meg),
        n_warmup=250,  # as above
        n_samples=25,
    )
    assert draws.pos.shape == (4, 25, 1, 3)
    assert hamiltonian._advance._cache_size() == size


@pytest.fixture(scope="module")
def two_dipoles():
    """EEG with average reference of two dipoles, its sensors, and SMC on the finest grid."""
    names = [f"E{i}" for i in range(40)]
    sensors = make_sensors([electrode(pos) for pos in cap(40, 0.092)], names, ["eeg"] * 40)
    reference = np.eye(40) - 1 / 40

    def absolute(pos):
        return lead_field_of(HEAD, sensors, pos)

    def referenced(pos):
        return np.einsum("cd,dsx->csx", reference, np.asarray(absolute(pos)))

    plain = make_problem(2, step=FINEST, lead_field=absolute, snr=10.0)
    colouring = np.linalg.pinv(plain.whitener)
    problem = be.Problem.from_arrays(
        reference @ colouring @ plain.data,
        referenced(plain.source_pos),
        plain.source_pos,
        noise_cov=reference @ colouring @ colouring.T @ reference,
        ch_names=names,
    )
    assert len(problem.data) == 39
    model = be.StaticDipoles(max_dipoles=4)
    return problem, sensors, be.infer(model, problem, n_particles=300, n_runs=2, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "grid"])
def test_two_dipoles_agree_with_smc_on_the_finest_grid(kind, two_dipoles):
    """Both kinds of operators."""
    problem, sensors, grid = two_dipoles
    operator = head_operator(problem, HEAD, sensors) if kind == "head" else None
    posterior = OffGridPosterior.sample(jax.random.key(3), grid.model, problem, grid, operator)
    assert posterior.n_dipoles == 2
    assert posterior.status is be.Status.OK
    assert posterior.r_hat < 1.01
    assert posterior.draws.diverging.sum() <= 4  # of 4,000
    for ours, theirs in zip(posterior.dipoles(), grid.dipoles(), strict=True):
        assert np.linalg.norm(ours.pos - theirs.pos) < FINEST
        error = min((ours.pos - place for place in TRUTH), key=np.linalg.norm)
        assert error @ np.linalg.solve(ours.pos_cov, error) < 16.3  # 99.9 %


@pytest.mark.slow
def test_single_precision_gives_the_same_posterior(problem, posterior):
    jax.config.update("jax_enable_x64", False)
    try:
        single = OffGridPosterior.sample(
            jax.random.key(1),
            posterior.model,
            problem,
            TRUTH[:1],
            whitened_operator(problem, meg),
            n_warmup=250,
        )
    finally:
        jax.config.update("jax_enable_x64", True)
    assert single.draws.operator.args[0].dtype == np.float32
    assert single.status is be.Status.OK
    (low,), (high,) = single.dipoles(), posterior.dipoles()
    std = np.sqrt(np.diag(high.pos_cov))
    # Two runs of 4,000 draws, as good as independent: 2.3 % of a deviation; five of these.
    assert np.all(np.abs(low.pos - high.pos) < 0.12 * std)
    means = [p.draws.log_likelihood.mean() for p in (single, posterior)]
    # Deviations of 1.4 nats over 4,000 draws; the Jacobian alone is 9,000 nats.
    assert abs(means[0] - means[1]) < 0.15


def test_the_prior_of_places_is_flat_inside_and_integrates_to_one(problem):
    model = be.StaticDipoles()
    law = off_grid.prepare(model, problem, 1).places
    rng = np.random.default_rng(0)
    inside = np.array([0, 0, 0.033]) + 0.011 * rng.uniform(-1, 1, (500, 3))
    uniform = -np.log(problem.n_sources * (1e3 * STEP) ** 3)
    # 0.16 % along each of three axes.
    log_prob = jax.jit(lambda law, value: law.log_prob(value))
    np.testing.assert_allclose(log_prob(law, 1e3 * inside), uniform, atol=6e-3)
    box = rng.uniform([-0.1, -0.1, -0.03], [0.1, 0.1, 0.1], (20_000, 3))
    mass = np.mean(np.exp(log_prob(law, 1e3 * box))) * 200 * 200 * 130
    assert abs(mass - 1) < 0.05  # 1.3 % by Monte Carlo
    weights = np.zeros(problem.n_sources)
    weights[[3, 200]] = 1, 3
    law = off_grid.prepare(dataclasses.replace(model, location_prior=weights), problem, 1).places
    drawn = np.asarray(jax.jit(lambda key: law.sample(key, (4000,)))(jax.random.key(0)))
    near = np.linalg.norm(drawn[:, None] - 1e3 * problem.source_pos[[3, 200]], axis=2).argmin(1)
    assert abs(near.mean() - 0.75) < 0.035  # five standard errors
    slope = jax.jit(jax.grad(law.log_prob))(jnp.array([1e3, 0.0, 0.0]))
    assert np.all(np.isfinite(slope)) and slope[0] < 0  # back to the sources, from far outside


def test_the_program_is_the_users_to_run(problem, operator):
    model = be.StaticDipoles(noise_std=dist.LogNormal(0.0, 0.2))
    program = off_grid.numpyro_program(model, problem, 2, operator)
    sites = Predictive(program, num_samples=6)(jax.random.key(0), observed=False)
    assert sites["pos"].shape == (6, 2, 3)
    assert sites["noise_std"].shape == (6, 1)
    assert sites["data"].shape == (6, *problem.data.shape)
    np.testing.assert_allclose(sites["pos_mm"], 1e3 * sites["pos"], rtol=1e-12)
    # Log-uniform over four decades about the model's reference.
    support = program.args[0].moment_std.support
    np.testing.assert_allclose(support.upper_bound / support.lower_bound, 1e4, rtol=1e-9)
    assert np.all((sites["moment_std"] > support.lower_bound) & support(sites["moment_std"]))


@pytest.mark.slow
def test_two_subjects_share_a_scale(operator):
    """Places of their own, one moment scale: the joint density is the sum of its parts."""
    model = be.StaticDipoles(noise_std=1.0)
    problems = {name: make_problem(1, seed=i) for i, name in enumerate("ab")}
    designs = {
        name: off_grid.prepare(model, p, 1, whitened_operator(p, meg))
        for name, p in problems.items()
    }
    belief = dist.LogNormal(np.log(2e-8), 1.0)

    def shared():
        moment_std = numpyro.sample("moment_std", belief)
        for name, design in designs.items():
            with numpyro.handlers.scope(prefix=name):
                off_grid.program(design, moment_std=moment_std)

    values = {"moment_std": jnp.asarray(1.7e-8)}
    values |= {f"{name}/pos_mm": 1e3 * jnp.asarray(TRUTH[:1]) for name in designs}
    total, trace = numpyro.infer.util.log_density(shared, (), {}, values)
    parts = belief.log_prob(1.7e-8)
    for name, p in problems.items():
        fields = operator(jnp.asarray(TRUTH[:1])) * _ratio(p, operator)
        parts += designs[name].places.log_prob(1e3 * TRUTH[0])
        law = DipoleData.from_problem(p, 1.7e-8, fields=fields)
        parts += law.log_prob(p.data) - p.log_jacobian  # the program is about whitened data
    np.testing.assert_allclose(total, parts, rtol=1e-10)  # rounding
    assert {"a/data", "b/data", "moment_std"} <= set(trace)


def _ratio(problem, operator):
    """Problems of other noise levels differ by one factor, of whitener and unit."""
    return (problem.whitener[0, 0] * problem.moment_unit) / operator.args[0][0, 0]


def test_operators_give_the_lead_field_of_the_problem(problem, operator):
    places = np.array([5, 100, 300])
    pos = jnp.asarray(problem.source_pos[places])
    known = problem.lead_field[:, places]
    np.testing.assert_allclose(operator(pos), known, rtol=1e-9, atol=1e-12)
    callable_tree = jax.tree_util.Partial(lambda coils, p: HEAD.meg(p, coils, coils / 0.11), COILS)
    np.testing.assert_allclose(whitened_operator(problem, callable_tree)(pos), operator(pos))
    between = grid_operator(problem)
    scale = np.abs(known).max()
    np.testing.assert_allclose(between(pos), known, atol=1e-4 * scale)  # as off_grid.py states
    pos = jnp.asarray(TRUTH)
    # A grid of 10 mm, 40 mm from the sensors: the cubic terms are below 1 %.
    np.testing.assert_allclose(between(pos), operator(pos), atol=0.01 * scale)
    slope = jax.jacfwd(operator)(pos)
    assert np.all(np.isfinite(slope)) and np.any(slope != 0)


def test_starts_are_named_alike_and_chosen_by_number():
    rng = np.random.default_rng(0)
    truth = 0.1 * rng.standard_normal((3, 3))
    order = np.stack([rng.permutation(3) for _ in range(50)])
    pos = (truth + 1e-3 * rng.standard_normal((50, 3, 3)))[np.arange(50)[:, None], order]
    found = off_grid_start.matching_order(pos, truth)
    np.testing.assert_array_equal(
        np.take_along_axis(order, found, axis=1), np.tile([0, 1, 2], (50, 1))
    )

    problem = make_problem(1)
    places = np.array([[[4, 9, 30], [30, 4, 0], [7, 7, 7], [31, 5, 2]]])
    active = np.array([[[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]], bool)
    draws = be.posterior.dipoles.DipoleDraws(
        places=places,
        active=active,
        moment_std=np.array([[1e-8, 2e-8, 3e-8, 4e-8]]),
        noise_std=np.ones((1, 4, 1)),
        log_likelihood=np.arange(4.0)[None],
        log_evidence=np.zeros(1),
        trace={},
    )
    model = be.StaticDipoles(max_dipoles=3)
    posterior = be.posterior.dipoles.DipolePosterior(problem, model, "smc", draws, be.Status.OK)
    sets = off_grid_start.from_posterior(posterior)
    np.testing.assert_array_equal(sets.moment_std, [1e-8, 2e-8])
    np.testing.assert_array_equal(sets.pos[1], problem.source_pos[[30, 4]])
    apart = np.linalg.norm(sets.pos[0] - sets.pos[1], axis=1)
    assert apart.sum() <= np.linalg.norm(sets.pos[0] - sets.pos[1][::-1], axis=1).sum()
    assert off_grid_start.from_posterior(posterior, 3).pos.shape == (1, 3, 3)
    with pytest.raises(ValueError, match="has 4 dipoles, they have 1, 2, 3"):
        off_grid_start.from_posterior(posterior, 4)


def test_bad_arguments_are_refused(problem, operator):
    model, key = be.StaticDipoles(), jax.random.key(0)

    def run(model=model, problem=problem, start=TRUTH, operator=operator, **options):
        off_grid.run(key, model, problem, start, operator, **options)

    for options in ({"n_samples": 0}, {"n_chains": 1.5}, {"target_acceptance": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            run(**options)
    with pytest.raises(ValueError, match=r"start must have shape \(3, 3\), got \(2, 3\)"):
        run(n_dipoles=3)
    with pytest.raises(ValueError, match="start has 3 NaN"):
        run(start=np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="mm from the sources, which are 10 mm apart"):
        run(start=1e3 * TRUTH)
    with pytest.raises(ValueError, match="operator must be a function"):
        run(operator=problem.lead_field)
    with pytest.raises(ValueError, match="free moments"):
        run(model=be.StaticDipoles(loose=0.2))
    with pytest.raises(ValueError, match="differ by"):
        run(operator=lambda pos: 1e3 * operator(pos))
    with pytest.raises(ValueError, match="must be a function of positions"):
        whitened_operator(problem, problem.lead_field)
    with pytest.raises(ValueError, match=r"shape \(40, k, 3\)"):
        whitened_operator(problem, lambda pos: meg(pos)[:39])
    for wrong in (lambda pos: 1e9 * meg(pos), lambda pos: meg(pos)[::-1]):
        with pytest.raises(ValueError, match="differ by"):
            whitened_operator(problem, wrong)
    fixed = dataclasses.replace(problem, lead_field=problem.lead_field[..., :1])
    with pytest.raises(ValueError, match="three orientations"):
        grid_operator(fixed)
