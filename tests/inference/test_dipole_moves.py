"""Each kernel on its own leaves its target invariant; `test_kernels` has them all together.

Particles start as exact draws of the target and must still be exact draws after many steps of
one kernel, at every temperature: against closed forms at 0, against enumeration of all sets (or
of a fine grid of scales) above.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import bayes_esi as be
from bayes_esi.inference import dipole_population
from bayes_esi.inference.dipole_inference import prepare
from bayes_esi.inference.dipole_moves import MOVES, Proposal, exchange, rescale, survey, walk
from bayes_esi.inference.dipole_target import Dipoles, Target, condition, log_likelihood

# Some twenty p-values in this file share a failure rate of two in a thousand, for fixed seeds.
P_VALUE = 1e-4
N_PARTICLES, N_STEPS = 4000, 30
N_SOURCES, MAX_DIPOLES = 8, 2
SETS = [c for k in range(3) for c in itertools.combinations(range(N_SOURCES), k)]
# exchange with the exact scan, and with a few candidates of a proposal that is far from right.
KERNELS = ["exchange", "exchange of 4 candidates", "walk"]


def make_target(*, is_weighted, **scales):
    rng = np.random.default_rng(3)
    # On a line, places have one or two neighbours: degrees differ.
    pos = np.linspace(0, 0.07, N_SOURCES)[:, None] * np.array([1.0, 0, 0])
    lead_field = rng.standard_normal((10, N_SOURCES, 3))
    data = lead_field[:, 0] @ rng.standard_normal((3, 4)) * 0.4 + rng.standard_normal((10, 4))
    adjacency = np.abs(np.subtract.outer(range(N_SOURCES), range(N_SOURCES))) == 1
    problem = be.Problem.from_arrays(data, lead_field, pos, adjacency=adjacency)
    weights = np.linspace(0.3, 2, N_SOURCES) if is_weighted else None
    model = be.StaticDipoles(0.9, MAX_DIPOLES, location_prior=weights, **scales)
    target, neighbours, _ = prepare(model, problem, 2**30)
    return Target(target.gram, target.prior, target.prior), neighbours


def make_proposal(neighbours, n_candidates=0, scale_steps=(0.0, 0.0)):
    density = np.linspace(2, 0.5, N_SOURCES) / np.linspace(2, 0.5, N_SOURCES).sum()
    return Proposal(
        jnp.log(density),
        jnp.cumsum(density),
        jnp.asarray(scale_steps),
        neighbours,
        n_candidates,
    )


@functools.partial(jax.jit, static_argnames="name")
def run_kernel(name, keys, state, target, temperature, neighbours):
    """Take N_STEPS steps of one kernel with every particle: compiled once a kernel."""
    n_candidates = 4 if "candidates" in name else 0
    # The step of a known scale is zero: it stays where it is.
    scale_steps = (0.8, 0.0) if name == "rescale" else (0.8, 0.4)
    proposal = make_proposal(neighbours, n_candidates, scale_steps)

    def step(state, key):
        if name == "rescale":
            return rescale(key, state, target, temperature, proposal)
        if name == "walk":
            key_slot, key = jax.random.split(key)
            slot = jax.random.randint(key_slot, (), 0, MAX_DIPOLES)
            matrices = condition(target.gram, state.places, state.active, state.log_scales)
            state, _, counts = walk(key, state, matrices, slot, target, temperature, proposal)
        else:
            state, _, counts = exchange(key, state, target, temperature, proposal)
        return state, counts

    def run(key, state):
        return jax.lax.scan(step, state, jax.random.split(key, N_STEPS))

    return jax.vmap(run)(keys, state)


def apply_kernel(name, state, target, temperature, neighbours):
    keys = jax.random.split(jax.random.key(6), N_PARTICLES)
    state, counts = run_kernel(name, keys, state, target, jnp.asarray(temperature), neighbours)
    changed = np.asarray(counts.changed).sum(axis=(0, 1))
    assert np.all(changed <= np.asarray(counts.tried).sum(axis=(0, 1)))
    return state, dict(zip(MOVES, changed, strict=True))


def exact_sets(target, temperature, scales):
    """Probability and log likelihood of every set of places."""
    places = np.array([c + (0,) * (2 - len(c)) for c in SETS], np.int32)
    active = np.array([[i < len(c) for i in range(2)] for c in SETS])
    one = jax.vmap(log_likelihood, in_axes=(None, 0, 0, None))
    values = np.asarray(one(target.gram, places, active, scales))
    log_mass = temperature * values + np.asarray(target.prior.log_number)[active.sum(axis=1)]
    log_mass += np.where(active, np.asarray(target.prior.log_place)[places], 0).sum(axis=1)
    return places, active, values, np.exp(log_mass - logsumexp(log_mass))


def frequencies(state):
    found = [
        SETS.index(tuple(sorted(p[a].tolist())))
        for p, a in zip(np.asarray(state.places), np.asarray(state.active), strict=True)
    ]
    return np.bincount(found, minlength=len(SETS)), np.array(found)


def chi_square(observed, expected):
    """P-value of counts; outcomes expected less than ten times are put together."""
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_at_temperature_0_the_prior_stays(name, is_weighted):
    target, neighbours = make_target(is_weighted=is_weighted)
    start = dipole_population.draw_reference(jax.random.key(1), target, N_PARTICLES)
    state, changed = apply_kernel(name, start, target, 0.0, neighbours)
    moves = ["walk"] if name == "walk" else ["birth", "death", "relocation"]
    assert all(changed[move] > N_PARTICLES / 2 for move in moves)
    # Poisson numbers, and sets of places in proportion to the product of their weights.
    weights = np.linspace(0.3, 2, N_SOURCES) if is_weighted else np.ones(N_SOURCES)
    products = np.array([np.prod(weights[list(c)]) for c in SETS])
    sizes = np.array([len(c) for c in SETS])
    poisson = np.array([1, 0.9, 0.405])
    totals = np.bincount(sizes, weights=products)
    mass = (poisson / poisson.sum())[sizes] * products / totals[sizes]
    for particles in (start, state):  # the start too: otherwise the test proves nothing
        assert chi_square(frequencies(particles)[0], N_PARTICLES * mass) > P_VALUE
    np.testing.assert_array_equal(state.log_scales, start.log_scales)


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize("name", KERNELS)
def test_above_0_the_enumerated_posterior_stays(name, temperature):
    target, neighbours = make_target(is_weighted=True, moment_std=0.25, noise_std=1.0)
    scales = jnp.array([prior.log_value for prior in target.prior.scales])
    places, active, values, mass = exact_sets(target, temperature, scales)
    drawn = np.random.default_rng(0).choice(len(SETS), N_PARTICLES, p=mass)
    # Slots in either order, so that an empty slot comes before a full one as well.
    flip = np.random.default_rng(1).random(N_PARTICLES) < 0.5
    order = np.where(flip[:, None], [1, 0], [0, 1])
    start = Dipoles(
        jnp.asarray(np.take_along_axis(places[drawn], order, axis=1)),
        jnp.asarray(np.take_along_axis(active[drawn], order, axis=1)),
        jnp.tile(scales, (N_PARTICLES, 1)),
        jnp.asarray(values[drawn]),
    )
    state, changed = apply_kernel(name, start, target, temperature, neighbours)
    moves = ["walk"] if name == "walk" else ["birth", "death", "relocation"]
    assert all(changed[move] > N_PARTICLES / 20 for move in moves)
    counts, found = frequencies(state)
    assert chi_square(counts, N_PARTICLES * mass) > P_VALUE
    # The likelihood that was carried along thirty steps is that of the state.
    np.testing.assert_allclose(state.log_likelihood, values[found], atol=1e-8)


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_scales_keep_their_law(temperature):
    target, neighbours = make_target(is_weighted=False, noise_std=1.0)
    moment, noise = target.prior.scales
    # One dipole at the place of the true one; the law of its scale on a fine grid.
    low, high = float(moment.log_low), float(moment.log_high)
    nodes = np.linspace(low, high, 4001)
    grid = jnp.stack([nodes, jnp.full_like(nodes, noise.log_value)], axis=1)
    places, active = jnp.array([0, 0], jnp.int32), jnp.array([True, False])

    def value(scales):
        return log_likelihood(target.gram, places, active, scales)

    log_mass = temperature * np.asarray(jax.vmap(value)(grid))
    density = np.exp(log_mass - log_mass.max())
    cdf = np.append(0, np.cumsum(0.5 * (density[1:] + density[:-1])))
    cdf /= cdf[-1]
    unit = np.random.default_rng(0).random(N_PARTICLES)
    log_scales = jnp.stack([np.interp(unit, cdf, nodes), jnp.full(N_PARTICLES, 0.0)], axis=1)
    start = Dipoles(
        jnp.tile(places, (N_PARTICLES, 1)),
        jnp.tile(active, (N_PARTICLES, 1)),
        log_scales,
        jax.vmap(value)(log_scales),
    )
    state, changed = apply_kernel("rescale", start, target, temperature, neighbours)
    assert changed["rescale"] > 0.1 * N_PARTICLES * N_STEPS
    found = np.asarray(state.log_scales)
    assert stats.kstest(found[:, 0], lambda x: np.interp(x, nodes, cdf)).pvalue > P_VALUE
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_allclose(state.log_likelihood, jax.vmap(value)(found), atol=1e-8)


def test_a_survey_is_a_density_that_covers_the_prior():
    target, _ = make_target(is_weighted=True, moment_std=0.25, noise_std=1.0)
    states = dipole_population.draw_reference(jax.random.key(1), target, 5)
    log_place, cumulative = survey(jax.random.key(2), states, target, jnp.ones(5))
    density = np.exp(np.asarray(log_place))
    np.testing.assert_allclose(np.cumsum(density), cumulative)
    assert density.sum() == pytest.approx(1)
    # A tenth of the prior everywhere: no place is out of reach.
    assert np.all(density >= 0.1 * np.exp(np.asarray(target.prior.log_place)) - 1e-12)


def test_a_walk_stays_in_reach_and_a_lone_place_stays_put():
    target, neighbours = make_target(is_weighted=False, moment_std=0.25, noise_std=1.0)
    start = dipole_population.draw_reference(jax.random.key(1), target, N_PARTICLES)
    proposal = make_proposal(neighbours)
    cut_off = make_proposal(jnp.full_like(neighbours, -1))

    def step(key, state, proposal):
        matrices = condition(target.gram, state.places, state.active, state.log_scales)
        return walk(key, state, matrices, 0, target, 1.0, proposal)[0]

    keys = jax.random.split(jax.random.key(6), N_PARTICLES)
    moved = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    distance = np.abs(np.asarray(moved(keys, start, proposal).places - start.places))
    # A neighbour of a neighbour at most, and only the slot that was asked for.
    assert distance[:, 0].max() == 2 and distance[:, 1].max() == 0
    np.testing.assert_array_equal(moved(keys, start, cut_off).places, start.places)
