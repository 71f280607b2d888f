"""Kernels leave what they should invariant: the prior at 0, the enumerated posterior at 1."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import bayes_esi as be
from bayes_esi.core.drive import Checkpoint
from bayes_esi.inference import dipole_population, smc
from bayes_esi.inference.dipole_inference import prepare
from bayes_esi.inference.dipole_target import Target, log_likelihood

# A dozen tests share a failure rate of one in a thousand.
P_VALUE = 1e-4
N_PARTICLES = 4000


def make_problem(n_sources, *, seed=0, n_channels=10, n_times=4, amplitude=1.0):
    rng = np.random.default_rng(seed)
    pos = rng.uniform(-0.05, 0.05, (n_sources, 3))
    lead_field = rng.standard_normal((n_channels, n_sources, 3))
    signal = lead_field[:, 0] @ rng.standard_normal((3, n_times)) * amplitude
    return be.Problem.from_arrays(
        signal + rng.standard_normal((n_channels, n_times)), lead_field, pos
    )


def sweeps(target, neighbours, state, temperature, n_candidates, n_sweeps=20):
    """Move particles with a proposal that is as good as a survey makes it."""
    temperatures = jnp.full(N_PARTICLES, temperature)
    proposal = dipole_population.refresh_proposal(
        jax.random.key(5),
        state,
        target,
        temperatures,
        neighbours,
        n_surveyed=16,
        n_candidates=n_candidates,
    )
    total = None
    for i in range(n_sweeps):
        key = jax.random.fold_in(jax.random.key(6), i)
        state, counts = dipole_population.move(key, state, target, temperatures, proposal)
        total = counts if total is None else jax.tree.map(jnp.add, total, counts)
    return state, total


def chi_square(observed, expected):
    """P-value of counts, with rare outcomes put together."""
    order = np.argsort(expected)
    rare = np.cumsum(expected[order]) < 5
    keep = order[~rare]
    pooled = order[rare]
    observed = np.append(observed[keep], observed[pooled].sum())
    expected = np.append(expected[keep], expected[pooled].sum())
    used = expected > 0
    assert observed[~used].sum() == 0
    return stats.chisquare(observed[used], expected[used]).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("n_candidates", [0, 6])
@pytest.mark.parametrize("has_weights", [False, True])
def test_sweeps_leave_the_prior_invariant(n_candidates, has_weights):
    n_sources, rate, max_dipoles = 12, 1.3, 4
    weights = np.linspace(0.2, 2, n_sources) if has_weights else np.ones(n_sources)
    problem = make_problem(n_sources)
    model = be.StaticDipoles(rate, max_dipoles, location_prior=weights)
    target, neighbours, _ = prepare(model, problem, 2**30)
    target = Target(target.gram, target.prior, target.prior)
    start = dipole_population.draw_reference(jax.random.key(1), target, N_PARTICLES)
    state, counts = sweeps(target, neighbours, start, 0.0, n_candidates)
    assert np.all(np.asarray(counts.changed) > 0)

    numbers = np.asarray(state.active).sum(axis=1)
    poisson = stats.poisson.pmf(np.arange(max_dipoles + 1), rate)
    expected = N_PARTICLES * poisson / poisson.sum()
    observed = np.bincount(numbers, minlength=max_dipoles + 1)
    assert chi_square(observed, expected) > P_VALUE

    # Pairs of places: the law of two different draws from the weights.
    pairs = list(itertools.combinations(range(n_sources), 2))
    mass = np.array([weights[i] * weights[j] for i, j in pairs])
    chosen = np.flatnonzero(numbers == 2)
    places, active = np.asarray(state.places)[chosen], np.asarray(state.active)[chosen]
    found = [tuple(sorted(p[a].tolist())) for p, a in zip(places, active, strict=True)]
    observed = np.array([found.count(pair) for pair in pairs])
    assert chi_square(observed, len(found) * mass / mass.sum()) > P_VALUE

    for prior, values in zip(target.prior.scales, np.asarray(state.log_scales).T, strict=True):
        low, high = float(prior.log_low), float(prior.log_high)
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > P_VALUE


@pytest.mark.slow
@pytest.mark.parametrize("n_candidates", [0, 4])
def test_sweeps_leave_the_posterior_invariant(n_candidates):
    n_sources, max_dipoles = 8, 2
    problem = make_problem(n_sources, seed=3, amplitude=0.5)
    model = be.StaticDipoles(0.7, max_dipoles, moment_std=0.7, noise_std=1.0)
    target, neighbours, _ = prepare(model, problem, 2**30)
    sets = [c for k in range(3) for c in itertools.combinations(range(n_sources), k)]
    places = np.array([c + (0,) * (2 - len(c)) for c in sets], np.int32)
    active = np.array([[i < len(c) for i in range(2)] for c in sets])
    scales = jnp.array([p.log_value for p in target.prior.scales])
    values = np.array(
        [
            log_likelihood(target.gram, jnp.asarray(p), jnp.asarray(a), scales)
            for p, a in zip(places, active, strict=True)
        ]
    )
    log_mass = values + np.asarray(target.prior.log_number)[active.sum(axis=1)]
    log_mass += np.where(active, np.asarray(target.prior.log_place)[places], 0).sum(axis=1)
    mass = np.exp(log_mass - logsumexp(log_mass))

    drawn = np.random.default_rng(0).choice(len(sets), N_PARTICLES, p=mass)
    state = dipole_population.draw_reference(jax.random.key(1), target, N_PARTICLES)._replace(
        places=jnp.asarray(places[drawn]),
        active=jnp.asarray(active[drawn]),
        log_likelihood=jnp.asarray(values[drawn]),
    )
    state, counts = sweeps(target, neighbours, state, 1.0, n_candidates)
    assert np.all(np.asarray(counts.changed)[:4] > 0)
    found = [
        tuple(sorted(p[a].tolist()))
        for p, a in zip(np.asarray(state.places), np.asarray(state.active), strict=True)
    ]
    observed = np.array([found.count(c) for c in sets])
    assert chi_square(observed, N_PARTICLES * mass) > P_VALUE
    # The likelihood that was carried along is that of the state.
    again = np.array([values[sets.index(c)] for c in found])
    np.testing.assert_allclose(state.log_likelihood, again, rtol=0, atol=1e-9)


# Whole runs share one shape, so that they compile once.
MODEL = be.StaticDipoles(max_dipoles=3, moment_std=1.0)
RUN = {"n_particles": 400, "n_runs": 2, "progress": False, "throw": False}


@pytest.mark.slow
def test_a_second_data_set_compiles_nothing():
    problem = make_problem(20, seed=1)
    for seed in range(2):
        data = np.random.default_rng(seed).standard_normal(problem.data.shape)
        again = dataclasses.replace(problem, data=data)
        be.infer(MODEL, again, **RUN | {"n_runs": 1})
        sizes = [f._cache_size() for f in (dipole_population._sweep_all, smc._reweight)]
        if seed == 0:
            first = sizes
    assert sizes == first


@pytest.mark.slow
def test_an_interrupted_run_resumes_with_the_same_bits(tmp_path, monkeypatch):
    problem = make_problem(20, seed=1)
    run = {**RUN, "key": jax.random.key(2)}
    whole = be.infer(MODEL, problem, **run)
    save, n_saved = Checkpoint.save, 0

    def save_and_die(self, step, state):
        nonlocal n_saved
        save(self, step, state)
        n_saved += 1
        if n_saved == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    stem = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        be.infer(MODEL, problem, checkpoint=stem, **run)
    assert [path.name for path in tmp_path.iterdir()] == ["run.run0.npz"]
    resumed = be.infer(MODEL, problem, checkpoint=stem, **run)
    assert list(tmp_path.iterdir()) == []
    for name in ("places", "active", "moment_std", "noise_std", "log_likelihood", "log_evidence"):
        np.testing.assert_array_equal(getattr(whole.draws, name), getattr(resumed.draws, name))
    n_saved = 0
    with pytest.raises(KeyboardInterrupt):
        be.infer(MODEL, problem, checkpoint=stem, **run)
    with pytest.raises(ValueError, match="another run"):
        be.infer(MODEL, problem, checkpoint=stem, **run | {"n_particles": 401})


@pytest.mark.long
def test_table_and_factors_give_the_same_posterior():
    problem, model = make_problem(30, seed=4), be.StaticDipoles(max_dipoles=3)
    options = {"n_particles": 100, "n_runs": 1, "progress": False, "throw": False}
    table = be.infer(model, problem, **options)
    # 30^2 places, 9 numbers a block, 2 tables of 8 bytes: 130 kB do not fit in 100 kB.
    factors = be.infer(model, problem, memory_limit=100_000, **options)
    assert prepare(model, problem, 100_000)[0].gram.pair_blocks is None
    np.testing.assert_allclose(table.log_evidence, factors.log_evidence, atol=1e-6)
    with pytest.raises(ValueError, match="memory_limit"):
        be.infer(model, problem, memory_limit=1000, **options)


@pytest.mark.long
def test_single_precision_runs_and_agrees():
    problem = make_problem(20, seed=1)
    double = be.infer(MODEL, problem, **RUN)
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.warns(UserWarning, match="float32"):
            single = be.infer(MODEL, problem, **RUN)
    finally:
        jax.config.update("jax_enable_x64", True)
    # Other random numbers: only what Monte Carlo leaves equal is equal.
    assert abs(single.log_evidence - double.log_evidence) < 0.5
    assert 0.5 * np.abs(single.n_dipoles_pmf - double.n_dipoles_pmf).sum() < 0.1
