"""What the verbs promise: which run a checkpoint belongs to, how runs are judged and compared."""

import os
import subprocess
import sys
import types

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp

import bayes_esi as be
from bayes_esi.core.status import Status
from bayes_esi.inference import dipole_inference, smc
from bayes_esi.inference.dipole_inference import _verdict, check_options, repeat
from bayes_esi.inference.dipole_target import Dipoles


def make_problem(seed=0, **changes):
    rng = np.random.default_rng(seed)
    arrays = {
        "data": rng.standard_normal((9, 4)),
        "lead_field": rng.standard_normal((9, 6, 3)),
        "source_pos": rng.uniform(-0.05, 0.05, (6, 3)),
        "source_normals": rng.standard_normal((6, 3)),
    }
    return be.Problem.from_arrays(**arrays | changes)


class Stop(Exception):
    pass


def identity_of(monkeypatch, model, problem, key=0, **options):
    """Identity that a run would give its checkpoint; nothing is run."""
    seen = []

    def refuse(path, identity):
        seen.append(identity)
        raise Stop

    monkeypatch.setattr(dipole_inference, "Checkpoint", refuse)
    options = check_options("smc", options)
    with pytest.raises(Stop):
        key = jax.random.key(key)
        repeat(smc, key, model, problem, options, progress=False, checkpoint="run")
    return seen[0]


def test_whatever_changes_the_run_changes_the_identity_of_its_checkpoint(monkeypatch):
    problem = make_problem()
    known = {"moment_std": 1e-8, "noise_std": 1.0}
    runs = [
        (be.StaticDipoles(**known), problem, {}),
        (be.StaticDipoles(**known | {"noise_std": 1.1}), problem, {}),
        (be.StaticDipoles(**known | {"noise_std": None}), problem, {}),
        (be.StaticDipoles(**known | {"noise_std": dist.HalfNormal(1.0)}), problem, {}),
        (be.StaticDipoles(**known | {"noise_std": dist.HalfNormal(1.1)}), problem, {}),
        (be.StaticDipoles(**known | {"noise_std": dist.Exponential(1.0)}), problem, {}),
        (be.StaticDipoles(**known, loose=0.2), problem, {}),
        (be.StaticDipoles(0.5, **known), problem, {}),
        (be.StaticDipoles(max_dipoles=3, **known), problem, {}),
        (be.StaticDipoles(location_prior=np.arange(6.0), **known), problem, {}),
        (be.StaticDipoles(**known), make_problem(seed=1), {}),
        (be.StaticDipoles(**known), make_problem(times=np.arange(4) / 100), {}),
        (be.StaticDipoles(**known), make_problem(adjacency=np.eye(6)), {}),
        (be.StaticDipoles(**known), problem, {"n_particles": 7}),
        (be.StaticDipoles(**known), problem, {"key": 1}),
    ]
    found = [identity_of(monkeypatch, model, data, **more) for model, data, more in runs]
    assert len(set(found)) == len(runs)
    # More runs of the same kind may be added later.
    assert identity_of(monkeypatch, *runs[0][:2], n_runs=9) == found[0]


# As a user would resume after a crash: in another process, where sets of strings (NumPyro keeps
# the parameters of a law in one) have another order.
SCRIPT = """
import jax, numpy as np, numpyro.distributions as dist, bayes_esi as be
from bayes_esi.inference import dipole_inference, smc
def tell(path, identity):
    print(identity)
    raise SystemExit
dipole_inference.Checkpoint = tell
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
problem = be.Problem.from_arrays(
    rng.standard_normal((6, 2)), rng.standard_normal((6, 4)), rng.standard_normal((4, 3))
)
model = be.StaticDipoles(moment_std=dist.LogNormal(-18.0, 1.0), noise_std=dist.Uniform(0.5, 2.0))
options = dipole_inference.check_options("smc", {})
key = jax.random.key(0)
dipole_inference.repeat(smc, key, model, problem, options, progress=False, checkpoint="run")
"""


@pytest.mark.slow
def test_a_checkpoint_is_recognised_by_another_process():
    printed = set()
    # Two seeds that order the names of a law's parameters differently.
    for seed in "12":
        printed.add(
            subprocess.run(
                [sys.executable, "-c", SCRIPT],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert len(printed) == 1 and printed.pop().endswith("run 0\n")


def draws_with(numbers, max_dipoles):
    """Draws (n_runs, n_draws) with given numbers of dipoles."""
    active = np.arange(max_dipoles) < np.asarray(numbers)[..., None]
    return Dipoles(None, active, None, None)


@pytest.mark.parametrize(
    ("numbers", "log_evidence", "max_dipoles", "status"),
    [
        ([[1] * 100] * 2, [0.0, 0.5], 3, Status.OK),
        # One run alone has nothing to disagree with.
        ([[0] * 50 + [2] * 50], [0.0], 3, Status.OK),
        # 60 % against 10 % with one dipole: a quarter of each run lies elsewhere than the pool.
        ([[1] * 60 + [0] * 40, [1] * 10 + [0] * 90], [0.0, 0.0], 3, Status.RUNS_DISAGREE),
        ([[1] * 40 + [0] * 60, [1] * 10 + [0] * 90], [0.0, 0.0], 3, Status.OK),
        ([[1] * 100] * 2, [0.0, 9.0], 3, Status.RUNS_DISAGREE),
        ([[1] * 96 + [3] * 4] * 2, [0.0, 0.0], 3, Status.OK),
        ([[1] * 94 + [3] * 6] * 2, [0.0, 0.0], 3, Status.TOO_MANY_DIPOLES),
        # Whether there is one dipole or none is a question, not a truncation.
        ([[1] * 100] * 2, [0.0, 0.0], 1, Status.OK),
        # Runs that disagree are the worse news.
        ([[3] * 100, [1] * 100], [0.0, 0.0], 3, Status.RUNS_DISAGREE),
    ],
)
def test_runs_are_judged(numbers, log_evidence, max_dipoles, status):
    draws = draws_with(numbers, max_dipoles)
    assert _verdict(draws, np.array(log_evidence), max_dipoles) is status


def test_every_status_has_a_cause_and_a_remedy():
    for status in Status:
        error = be.InferenceError(status, posterior="kept")
        assert error.status is status and error.posterior == "kept"
        assert status.name in str(error)
        assert status.cause in str(error) and status.remedy in str(error)
        assert status.is_trustworthy == (status is Status.OK)


def belief(log_evidence, std, status=Status.OK, problem=None):
    problem = problem or make_problem()
    return types.SimpleNamespace(
        log_evidence=log_evidence, log_evidence_std=std, status=status, problem=problem
    )


def test_models_compare_by_their_evidence():
    evidences = {"a": -103.0, "b": -100.0, "c": -1e4}
    table = be.compare({name: belief(value, 0.3) for name, value in evidences.items()})
    assert table.index.tolist() == ["b", "a", "c"]
    wanted = np.array([-100.0, -103.0, -1e4])
    np.testing.assert_allclose(table["probability"], np.exp(wanted - logsumexp(wanted)))
    np.testing.assert_allclose(table["log_bayes_factor"], wanted + 100)
    # Independent errors add in squares; the best against itself has none.
    np.testing.assert_allclose(table["log_bayes_factor_std"], [0, *[np.hypot(0.3, 0.3)] * 2])
    assert table["status"].tolist() == ["OK"] * 3


def test_what_cannot_be_compared_is_refused():
    one = belief(0.0, 0.1)
    for wrong in ({"one": one}, [one, one], {}):
        with pytest.raises(ValueError, match="posteriors must be a dict of at least two"):
            be.compare(wrong)
    others = [
        make_problem(times=np.arange(4) + 0.5),
        make_problem(ch_names=list("abcdefghi")),
        make_problem(data=one.problem.data + 1e-3),
        make_problem(noise_cov=np.diag([0.0, *[1.0] * 8])),
    ]
    for other in others:
        with pytest.raises(ValueError, match="same data"):
            be.compare({"one": one, "other": belief(0.0, 0.1, problem=other)})
    # Another noise covariance is another model of the same data.
    louder = belief(0.0, 0.1, problem=make_problem(noise_cov=np.diag(np.arange(1.0, 10.0))))
    assert len(be.compare({"one": one, "louder": louder})) == 2


@pytest.mark.parametrize("method", ["smc", "reversible_jump", "enumerate"])
def test_options_are_filled_in_and_checked(method):
    defaults = check_options(method, {})
    assert set(defaults) == set(dipole_inference.OPTIONS[method])
    assert check_options(method, defaults) == defaults
    for name in defaults:
        with pytest.raises(ValueError, match=name):
            check_options(method, {name: "many"})
        with pytest.raises(ValueError, match=name):
            check_options(method, {name: -1})
    with pytest.raises(ValueError, match=rf"option of {method} must be one of .*memory_limit"):
        check_options(method, {"memory": 1})


def test_keys_are_typed_and_single():
    problem, model = make_problem(), be.StaticDipoles()
    for key in (jax.random.PRNGKey(0), 7, np.zeros(2, np.uint32)):
        with pytest.raises(ValueError, match="key must be a typed PRNG key"):
            be.infer(model, problem, key)
    with pytest.raises(ValueError, match=r"key must be a single key, got shape \(2,\)"):
        be.infer(model, problem, jax.random.split(jax.random.key(0)))


def test_a_memory_limit_too_small_says_how_much_is_needed():
    with pytest.raises(ValueError, match="memory_limit is .*raise it to at least"):
        be.infer(be.StaticDipoles(), make_problem(), memory_limit=100, progress=False)


def test_models_name_their_methods():
    assert be.methods(be.StaticDipoles)[0] == be.methods(be.StaticDipoles())[0] == "smc"
    with pytest.raises(ValueError, match=r"model must be one of .*StaticDipoles"):
        be.methods("dipoles")
