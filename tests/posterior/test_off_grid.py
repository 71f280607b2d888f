"""Posterior off the grid: what it answers from draws that are given."""

import dataclasses

import jax
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.inference.off_grid import Draws
from bayes_esi.inference.off_grid_operator import grid_operator
from bayes_esi.posterior.off_grid import OffGridPosterior

N_CHAINS, N_DRAWS, K, T = 3, 400, 2, 5


@pytest.fixture(scope="module")
def posterior():
    rng = np.random.default_rng(0)
    line = 0.01 * np.arange(4)
    pos = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    sensors = rng.uniform(-0.02, 0.05, (8, 3)) + [0, 0, 0.1]
    steps = sensors[:, None] - pos
    lead_field = steps / np.sum(steps**2, axis=2, keepdims=True) ** 1.5
    data = 2e-8 * np.einsum("csx,xt->ct", lead_field[:, [20]], rng.normal(size=(3, T)))
    level = 0.1 * np.abs(data).max()
    problem = be.Problem.from_arrays(
        data + level * rng.standard_normal(data.shape),
        lead_field,
        pos,
        noise_cov=level**2 * np.eye(8),
        noise_groups=["a"] * 4 + ["b"] * 4,
    )
    shape = (N_CHAINS, N_DRAWS)
    centres = np.array([[0.011, 0.012, 0.013], [0.02, 0.019, 0.017]])
    draws = Draws(
        pos=centres + 1e-3 * rng.standard_normal((*shape, K, 3)),
        moment_std=1e-8 * np.exp(0.1 * rng.standard_normal(shape)),
        noise_std=np.exp(0.1 * rng.standard_normal((*shape, 2))),
        log_likelihood=rng.standard_normal(shape),
        diverging=np.zeros(shape, bool),
        start=np.broadcast_to(centres, (N_CHAINS, K, 3)),
        operator=grid_operator(problem),
        sample_stats={"n_steps": np.full(shape, 7)},
    )
    return OffGridPosterior(problem, be.StaticDipoles(), draws)


def test_moments_are_the_ridge_solution_of_each_draw(posterior):
    moments = posterior.moments_of(np.array([5, N_DRAWS + 3]))
    problem, draws = posterior.problem, posterior.draws
    for row, (chain, draw) in enumerate([(0, 5), (1, 3)]):
        field = np.asarray(draws.operator(jax.numpy.asarray(draws.pos[chain, draw])))
        field = field.reshape(len(field), -1) / problem.moment_unit  # for each A·m
        noise = draws.noise_std[chain, draw][problem.noise_group] ** 2
        precision = (field.T / noise) @ field
        cov = np.linalg.inv(precision + np.eye(6) / draws.moment_std[chain, draw] ** 2)
        mean = cov @ (field.T / noise) @ problem.data
        # Rounding, of a system with condition 1e4.
        np.testing.assert_allclose(moments.mean[row].reshape(6, T), mean, rtol=1e-7)
        np.testing.assert_allclose(moments.std[row].ravel(), np.sqrt(np.diag(cov)), rtol=1e-7)


def test_dipoles_and_summary(posterior):
    dipoles = posterior.dipoles()
    power = [dipole.explained_power for dipole in dipoles]
    assert power == sorted(power, reverse=True)
    pooled = posterior.draws.pos.reshape(-1, K, 3)
    found = {tuple(np.round(dipole.pos, 12)) for dipole in dipoles}
    assert found == {tuple(np.round(pos, 12)) for pos in pooled.mean(axis=0)}
    # 1 mm along each axis; five standard errors of 1,200 draws.
    np.testing.assert_allclose(np.sqrt(np.diag(dipoles[0].pos_cov)), 1e-3, rtol=0.11)
    table = posterior.summary()
    assert list(table.index) == [1, 2]
    np.testing.assert_allclose(table[["x_mm", "y_mm", "z_mm"]].iloc[0], 1e3 * dipoles[0].pos)
    np.testing.assert_allclose(table["spread_mm"], np.sqrt(3), rtol=0.11)
    assert table.attrs["status"] == "OK" and table.attrs["n_divergences"] == 0
    assert "OK: 2 dipoles, 3 x 400 draws" in repr(posterior)


def test_status_says_what_is_wrong(posterior):
    def status(**changes):
        draws = dataclasses.replace(posterior.draws, **changes)
        return dataclasses.replace(posterior, draws=draws).status

    draws = posterior.draws
    assert posterior.status is be.Status.OK and posterior.r_hat < 1.01
    moved = draws.pos.copy()
    moved[1, :, 1, 2] += 5e-4  # half a deviation
    assert status(pos=moved) is be.Status.CHAINS_DISAGREE
    diverging = draws.diverging.copy()
    diverging[0, 0] = True
    assert status(diverging=diverging) is be.Status.OK  # one in 1,200
    diverging[0, 1] = True
    assert status(diverging=diverging) is be.Status.DIVERGENCES
    value = draws.log_likelihood.copy()
    value[0, 0] = np.nan
    assert status(log_likelihood=value) is be.Status.NOT_FINITE
    stuck = np.broadcast_to(draws.pos[:, :1], draws.pos.shape)
    assert status(pos=stuck) is be.Status.CHAINS_DISAGREE
    # Halves of a single chain; scales that are known do not vary.
    single = {
        field: getattr(draws, field).reshape(1, -1, *getattr(draws, field).shape[2:])
        for field in ("pos", "moment_std", "noise_std", "log_likelihood", "diverging")
    }
    single["moment_std"] = np.full_like(single["moment_std"], 1e-8)
    assert status(**single) is be.Status.OK
    drift = single["pos"] + 1e-3 * np.linspace(-1, 1, N_CHAINS * N_DRAWS)[None, :, None, None]
    assert status(**(single | {"pos": drift})) is be.Status.CHAINS_DISAGREE


def test_datatree_and_diagnostics(posterior):
    tree = posterior.to_datatree(n_draws=20)
    draws, problem = posterior.draws, posterior.problem
    assert set(tree) == {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "observed_data",
        "log_likelihood",
    }
    kept = tree["posterior"]["draw"].values
    assert len(kept) == 20 and kept[-1] == N_DRAWS - 1
    np.testing.assert_array_equal(tree["posterior"]["pos"], draws.pos[:, kept])
    observed = np.linalg.pinv(problem.whitener) @ problem.data
    np.testing.assert_allclose(tree["observed_data"]["data"], observed)
    assert tree["posterior_predictive"]["data"].shape == (N_CHAINS, 20, 8, T)
    # Samples are independent given place and scales: their densities add up to the whole.
    from bayes_esi.distributions import DipoleData

    fields = np.asarray(draws.operator(jax.numpy.asarray(draws.pos[2, kept[4]])))
    law = DipoleData.from_problem(
        problem, draws.moment_std[2, kept[4]], draws.noise_std[2, kept[4]], fields=fields
    )
    total = tree["log_likelihood"]["data"].values[2, 4].sum()
    np.testing.assert_allclose(total, law.log_prob(problem.data), rtol=1e-10)
    table = posterior.diagnostics()
    assert {"x_mm[1]", "z_mm[2]", "moment_std_nAm", "noise_std[b]"} <= set(table.index)
    assert np.all(table["r_hat"].astype(float) < 1.02)
