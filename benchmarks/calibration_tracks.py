"""Simulation-based calibration of the samplers for dipoles that are born and die.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/calibration_tracks.py [--method NAME]

Each replication draws scales, probabilities, births, deaths, places and moments from the prior of
`DynamicDipoles`, data from the likelihood, and the posterior of the data by `bayes_esi.infer`; then
it ranks functions of the truth among the same functions of nearly independent posterior draws.
Ranks are uniform if the sampler is right. One sample of the recording is drawn with each
replication; of the filter, which is for the present, it is the last. The functions:

    number           how many dipoles are alive at that sample
    births           how many were ever born
    birth_time       first sample of the oldest dipole alive at that sample, -1 if none is
    position         sum of the first coordinates of those alive at that sample
    moment           sum of the first components of their moments at that sample, drawn from its
                     Gaussian law given trajectory, scales and all data
    moment_std, noise_std, birth_prob, death_prob
    log_likelihood   of trajectory and scales given the data

Likelihoods and laws of moments come from a dense covariance matrix of all channels and samples: no
code in common with the samplers. With `--known` scales and probabilities are
given, and their ranks say nothing: what remains is the law of trajectories alone.

All replications share one geometry (40 places whose lead fields resemble their neighbours', 12
channels, 12 samples), so that nothing is compiled twice.

References: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv:1804.06788; Modrák et al.
2023, doi:10.1214/23-BA1404.
"""

import os
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import replications

import bayes_esi as be
from bayes_esi.models.orientation import orient
from bayes_esi.posterior.track_moments import track_moments
from bayes_esi.simulate.dynamic_dipoles import draw_problem, draw_tracks
from bayes_esi.simulate.static_dipoles import random_geometry

__all__ = [
    "METHOD_OPTIONS",
    "STATISTICS",
    "Unknowns",
    "dense_law",
    "draw_problem",
    "draw_tracks",
    "geometry",
    "model",
    "moment_error",
    "package_moments",
    "replicate",
    "stack",
    "statistics",
]

STATISTICS = (
    "number",
    "births",
    "birth_time",
    "position",
    "moment",
    "moment_std",
    "noise_std",
    "birth_prob",
    "death_prob",
    "log_likelihood",
)
GEOMETRY = {"n_sources": 40, "n_channels": 12, "n_times": 12, "correlation_length": 0.03}
# Medians of the scales: a moment of median size has about half the power of the noise, so that
# dipoles that are clear, doubtful and hidden occur.
MOMENT_MEDIAN, MOMENT_SPREAD = 2e-9, 0.7
NOISE_MEDIAN, NOISE_SPREAD = 1.0, 0.2
PERSISTENCE, MAX_DIPOLES = 0.8, 2
BIRTH, DEATH = (2.0, 10.0), (2.0, 10.0)  # Beta laws of the probabilities
# More moves of each draw than by default: ranks are uniform only among draws that are nearly
# independent, and what moves start from is common to many.
METHOD_OPTIONS = {
    "particle_smoother": {"n_particles": 500, "n_draws": 310, "n_runs": 1},
    "particle_filter": {
        "n_particles": 1000,
        "n_draws": 500,
        "n_runs": 1,
        "n_moved": 1000,
        "n_parameter_moves": 2,
    },
    "particle_gibbs": {"n_chains": 16, "n_burn_in": 100, "n_samples": 25, "n_thin": 20},
}


class Unknowns(NamedTuple):
    """Trajectories with their scales and probabilities, stacked."""

    places: np.ndarray  # (n, n_times, n_slots), -1 where empty
    is_new: np.ndarray  # (n, n_times, n_slots)
    moment_std: np.ndarray  # (n,), in A·m
    noise_std: np.ndarray  # (n,)
    birth_prob: np.ndarray  # (n,)
    death_prob: np.ndarray  # (n,)


def main():
    """Run the replications, print the verdicts, write the JSON."""
    parser = replications.parser(
        __doc__.splitlines()[0], METHOD_OPTIONS, "particle_smoother", 250, 31
    )
    parser.add_argument("--known", action="store_true", help="give scales and probabilities")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    settings = METHOD_OPTIONS[options.method] | dict(options.set)
    template, belief = geometry(), model(known=options.known)

    def one(number):
        return replicate(
            number, template, belief, options.method, settings, options.draws, seed=options.seed
        )

    name = f"calibration_dynamic_dipoles_{options.method}{'_known' * options.known}.json"
    described = {"method_options": settings, "model": _describe_model(options.known)}
    path = Path(__file__).parent / "results" / name
    replications.run(one, STATISTICS, options, described, path)


def geometry():
    """The lead field that all replications share."""
    return random_geometry(jax.random.key(2024), **GEOMETRY)


def model(*, known=False):
    """A prior that every unknown can be drawn from; or, known, its medians and means."""
    import numpyro.distributions as dist

    laws = {
        "moment_std": dist.LogNormal(np.log(MOMENT_MEDIAN), MOMENT_SPREAD),
        "noise_std": dist.LogNormal(np.log(NOISE_MEDIAN), NOISE_SPREAD),
        "birth_prob": dist.Beta(*BIRTH),
        "death_prob": dist.Beta(*DEATH),
    }
    if known:
        laws = {
            "moment_std": MOMENT_MEDIAN,
            "noise_std": NOISE_MEDIAN,
            "birth_prob": BIRTH[0] / sum(BIRTH),
            "death_prob": DEATH[0] / sum(DEATH),
        }
    return be.DynamicDipoles(max_dipoles=MAX_DIPOLES, moment_persistence=PERSISTENCE, **laws)


def replicate(number, template, belief, method, settings, n_draws, *, seed=0):
    """Draw a problem, infer, and evaluate the statistics at the truth and at some draws.

    Parameters
    ----------
    number : int
        Of the replication: with `seed`, all its randomness.
    template : Problem
    belief : DynamicDipoles
    method : str
    settings : dict
        Options of the method.
    n_draws : int
    seed : int

    Returns
    -------
    truth : (n_statistics,) array
    draws : (n_statistics, n_draws) array
    note : dict
        `status`, and the largest deviations of the package from the dense computation:
        `log_likelihood_error` in nats, `moment_error` in units of the moment scale.
    """
    key = jax.random.fold_in(jax.random.key(seed), number)
    key_problem, key_infer, key_pick, key_time, key_moment = jax.random.split(key, 5)
    problem, truth = draw_problem(key_problem, belief, template)
    posterior = be.infer(
        belief, problem, key_infer, method, progress=False, throw=False, **settings
    )
    time = problem.n_times - 1
    if method != "particle_filter":
        time = replications.generator(key_time).integers(problem.n_times)
    drawn, log_likelihood = _pick(key_pick, posterior, n_draws)
    true = stack([truth])
    # Together, so that equal unknowns have equal values.
    unknowns = Unknowns(*(np.concatenate(pair) for pair in zip(true, drawn, strict=True)))
    law = dense_law(problem, belief.moment_persistence, unknowns, time)
    fresh = replications.generator(key_moment).standard_normal(n_draws)
    moment = np.append(truth.moments[:, 0, time].sum(), law.mean[1:] + law.std[1:] * fresh)
    values = statistics(problem, unknowns, time, moment, law.log_likelihood)
    told = package_moments(problem, belief, drawn)
    note = {
        "status": posterior.status.name,
        "log_likelihood_error": float(np.abs(log_likelihood - law.log_likelihood[1:]).max()),
        "moment_error": moment_error(told, drawn, time, Law(*(part[1:] for part in law))),
    }
    return values[:, 0], values[:, 1:], note


def statistics(problem, unknowns, time, moment, log_likelihood):
    """Evaluate all statistics for rows of unknowns: (n_statistics, n_rows).

    Parameters
    ----------
    problem : Problem
    unknowns : Unknowns
    time : int
        The sample that some of them look at.
    moment, log_likelihood : (n_rows,) arrays
    """
    now = unknowns.places[:, time]
    is_alive = now >= 0
    samples = np.arange(problem.n_times)[:, None]
    births = np.maximum.accumulate(np.where(unknowns.is_new, samples, -1), axis=1)[:, time]
    oldest = np.min(np.where(is_alive, births, problem.n_times), axis=1)
    values = {
        "number": is_alive.sum(axis=1),
        "births": unknowns.is_new.sum(axis=(1, 2)),
        "birth_time": np.where(is_alive.any(axis=1), oldest, -1),
        "position": np.sum(np.where(is_alive, problem.source_pos[now, 0], 0.0), axis=1),
        "moment": moment,
        "moment_std": unknowns.moment_std,
        "noise_std": unknowns.noise_std,
        "birth_prob": unknowns.birth_prob,
        "death_prob": unknowns.death_prob,
        "log_likelihood": log_likelihood,
    }
    # Equal trajectories must tie whatever their slots and the order of terms; so must parameters
    # that are given, whatever transformations they went through.
    values["position"] = np.round(values["position"], 9)
    values["log_likelihood"] = np.round(values["log_likelihood"], 6)
    for name in ("moment_std", "noise_std", "birth_prob", "death_prob"):
        values[name] = np.float32(values[name])
    return np.array([values[name] for name in STATISTICS], float)


class Law(NamedTuple):
    """Of data and moments given everything else; all (n,)."""

    log_likelihood: np.ndarray  # of the whitened data, in nats
    mean: np.ndarray  # of the sum of the first components of the moments, given the data, in A·m
    std: np.ndarray


def dense_law(problem, persistence, unknowns, time):
    """Compute the likelihood of trajectories, and the law of moments at a sample given all data.

    From the joint covariance of all channels and samples. With the life l of a dipole,

        cov(y_t, y_u) = sum_l moment_std^2 persistence^|t-u| G_l(t) G_l(u)' + [t = u] noise_std^2 I

    over the lives that hold both samples, and the moment at one sample by conditioning.

    Parameters
    ----------
    problem : Problem
        With moments along the axes of space.
    persistence : float
    unknowns : Unknowns
        n rows.
    time : int

    Returns
    -------
    Law
        Cost O(n (rank n_times)^3).
    """
    rank, n_times = problem.data.shape
    n = len(unknowns.places)
    is_held = unknowns.places >= 0
    life = np.cumsum(unknowns.is_new, axis=1)
    is_same = is_held[:, :, None] & is_held[:, None] & (life[:, :, None] == life[:, None])
    lag = np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))
    cov = unknowns.moment_std[:, None, None, None] ** 2 * is_same
    cov = cov * (persistence**lag)[:, :, None]  # of moments: (n, n_times, n_times, n_slots)
    field = np.moveaxis(problem.lead_field, 1, 0) / problem.moment_unit
    field = np.where(is_held[..., None, None], field[unknowns.places], 0.0)
    whole = np.einsum("ntsrx,ntus,nusqx->ntruq", field, cov, field, optimize=True)
    whole = whole.reshape(n, n_times * rank, n_times * rank)
    whole += unknowns.noise_std[:, None, None] ** 2 * np.eye(n_times * rank)
    cross = np.einsum("nus,nusq->nuq", cov[:, time], field[..., 0]).reshape(n, -1)
    data = np.broadcast_to(problem.data.T.ravel(), cross.shape)
    from_data, from_cross = np.moveaxis(np.linalg.solve(whole, np.stack([data, cross], -1)), -1, 0)
    log_det = np.linalg.slogdet(whole)[1] + data.shape[1] * np.log(2 * np.pi)
    variance = cov[:, time, time].sum(axis=1) - np.sum(cross * from_cross, axis=1)
    return Law(
        log_likelihood=-0.5 * (np.sum(data * from_data, axis=1) + log_det),
        mean=np.sum(cross * from_data, axis=1),
        std=np.sqrt(np.maximum(variance, 0.0)),
    )


def stack(truths):
    """Unknowns of a list of `TrackTruth`."""
    names = ("places", "is_new", "moment_std", "birth_prob", "death_prob")
    own = {name: np.stack([getattr(truth, name) for truth in truths]) for name in names}
    return Unknowns(noise_std=np.stack([truth.noise_std[0] for truth in truths]), **own)


def package_moments(problem, belief, unknowns):
    """Laws of moments as posteriors tell them."""
    return track_moments(
        problem,
        belief,
        orient(problem, belief.loose),
        unknowns.places,
        unknowns.is_new,
        unknowns.moment_std,
        unknowns.noise_std[:, None],
    )


def moment_error(told, unknowns, time, law):
    """Largest deviation of `package_moments` from the dense law, in units of the moment scale."""
    mean = told.mean[:, time, :, 0].sum(axis=1) - law.mean
    # Covariances between dipoles are not told.
    is_one = np.sum(unknowns.places[:, time] >= 0, axis=1) == 1
    std = np.where(is_one, told.std[:, time, :, 0].sum(axis=1) - law.std, 0.0)
    return float(np.max(np.abs([mean, std]) / unknowns.moment_std))


def _pick(key, posterior, n_draws):
    """Nearly independent draws of all runs by their weights, with their whitened likelihoods."""
    rng = replications.generator(key)
    drawn = posterior.draws
    runs = np.sort(rng.choice(posterior.n_runs, n_draws, p=posterior.run_weights))
    orders = rng.permuted(np.tile(np.arange(drawn.places.shape[1]), (posterior.n_runs, 1)), axis=1)
    # The first, second, ... draw that is taken from a run; none twice.
    turn = np.arange(n_draws) - np.searchsorted(runs, runs)
    rows = orders[runs, turn]
    unknowns = Unknowns(
        drawn.places[runs, rows],
        drawn.is_new[runs, rows],
        drawn.moment_std[runs, rows],
        drawn.noise_std[runs, rows, 0],
        drawn.birth_prob[runs, rows],
        drawn.death_prob[runs, rows],
    )
    return unknowns, drawn.log_likelihood[runs, rows] - posterior.problem.log_jacobian


def _describe_model(known):
    said = {
        **GEOMETRY,
        "max_dipoles": MAX_DIPOLES,
        "moment_persistence": PERSISTENCE,
        "motion": "static",
    }
    if known:
        belief = model(known=True)
        names = ("moment_std", "noise_std", "birth_prob", "death_prob")
        return said | {name: getattr(belief, name) for name in names}
    return said | {
        "moment_std": f"LogNormal(log {MOMENT_MEDIAN}, {MOMENT_SPREAD}) A·m",
        "noise_std": f"LogNormal(log {NOISE_MEDIAN}, {NOISE_SPREAD})",
        "birth_prob": "Beta({:g}, {:g})".format(*BIRTH),
        "death_prob": "Beta({:g}, {:g})".format(*DEATH),
    }


if __name__ == "__main__":
    main()
