"""Simulation-based calibration of the samplers for static dipoles.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/calibration.py [--method reversible_jump]

Each replication draws number, places, scales and moments from the prior, data from the
likelihood, and the posterior of the data by `bayes_esi.infer`; then it ranks functions of the truth
among the same functions of nearly independent posterior draws. Ranks are uniform if the sampler
is right. The functions:

    number           how many dipoles
    position         sum of their first coordinates
    scan             sum over them of what one dipole alone would gain at their places, at fixed
                     scales: a function of places and data
    moment_std, noise_std
    log_likelihood   of number, places and scales given the data, from dense covariance matrices:
                     no code in common with the samplers

All replications share one geometry (40 places whose lead fields resemble their neighbours', 12
channels, 5 samples), so that nothing is compiled twice. Results go to
`results/calibration_static_dipoles.json`, other methods beside it, another seed where `--out` says.

References: Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv:1804.06788; Modrák et al.
2023, doi:10.1214/23-BA1404.
"""

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import replications

import bayes_esi as be
from bayes_esi.simulate.static_dipoles import draw_problem, random_geometry

__all__ = ["METHOD_OPTIONS", "STATISTICS", "geometry", "model", "replicate", "statistics"]

STATISTICS = ("number", "position", "scan", "moment_std", "noise_std", "log_likelihood")
GEOMETRY = {"n_sources": 40, "n_channels": 12, "n_times": 5, "correlation_length": 0.03}
# Medians of the scales: a dipole of median moment has the power of the noise, so that numbers
# from "clearly none" to "clearly two" and everything doubtful between occur.
MOMENT_MEDIAN, MOMENT_SPREAD = 3e-9, 0.7
NOISE_MEDIAN, NOISE_SPREAD = 1.0, 0.2
N_DIPOLES, MAX_DIPOLES = 1.0, 3
METHOD_OPTIONS = {
    "smc": {"n_particles": 200, "n_sweeps": 2, "max_sweeps": 4, "n_final_sweeps": 4},
    "reversible_jump": {"n_chains": 8, "n_samples": 200, "n_burn_in": 100},
    "enumerate": {"n_draws": 200},
}


def main():
    """Run the replications, print the verdicts, write the JSON."""
    parser = replications.parser(__doc__.splitlines()[0], METHOD_OPTIONS, "smc", 1000, 63)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    settings = METHOD_OPTIONS[options.method] | dict(options.set)
    template, belief = geometry(), model()

    def one(number):
        return replicate(
            number, template, belief, options.method, settings, options.draws, seed=options.seed
        )

    suffix = "" if options.method == "smc" else f"_{options.method}"
    path = Path(__file__).parent / "results" / f"calibration_static_dipoles{suffix}.json"
    described = {"method_options": settings, "model": _describe_model()}
    replications.run(one, STATISTICS, options, described, path)


def geometry():
    """The lead field that all replications share."""
    return random_geometry(jax.random.key(2024), **GEOMETRY)


def model():
    """A prior that every unknown can be drawn from."""
    import numpyro.distributions as dist

    return be.StaticDipoles(
        n_dipoles=N_DIPOLES,
        max_dipoles=MAX_DIPOLES,
        moment_std=dist.LogNormal(np.log(MOMENT_MEDIAN), MOMENT_SPREAD),
        noise_std=dist.LogNormal(np.log(NOISE_MEDIAN), NOISE_SPREAD),
    )


def replicate(number, template, belief, method, settings, n_draws, *, seed=0):
    """Draw a problem, infer, and evaluate the statistics at the truth and at some draws.

    Parameters
    ----------
    number : int
        Of the replication: with `seed`, all its randomness.
    template : Problem
    belief : StaticDipoles
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
        `status`, and `log_likelihood_error`: largest deviation of the sampler's log likelihoods,
        in nats.
    """
    key = jax.random.fold_in(jax.random.key(seed), number)
    key_problem, key_infer, key_pick = jax.random.split(key, 3)
    problem, truth = draw_problem(key_problem, belief, template)
    if method != "enumerate":
        settings = {"n_runs": 1, **settings}
    posterior = be.infer(
        belief, problem, key_infer, method, progress=False, throw=False, **settings
    )
    rows = _pick(key_pick, posterior, settings.get("n_particles"), n_draws)
    drawn = posterior.draws
    places = np.zeros((n_draws + 1, belief.max_dipoles), int)
    active = np.zeros(places.shape, bool)
    places[1:], active[1:] = drawn.places[0, rows], drawn.active[0, rows]
    places[0, : len(truth.places)] = truth.places
    active[0, : len(truth.places)] = True
    moment_std = np.append(truth.moment_std, drawn.moment_std[0, rows])
    noise_std = np.append(truth.noise_std[0], drawn.noise_std[0, rows, 0])
    values = statistics(problem, places, active, moment_std, noise_std)
    error = np.abs(
        values[STATISTICS.index("log_likelihood"), 1:]
        - (drawn.log_likelihood[0, rows] - problem.log_jacobian)
    )
    note = {"status": posterior.status.name, "log_likelihood_error": float(error.max())}
    return values[:, 0], values[:, 1:], note


def statistics(problem, places, active, moment_std, noise_std):
    """Evaluate all statistics for rows of unknowns: (n_statistics, n_rows).

    Truth and draws are rows of one call, so that equal unknowns have equal values.
    """
    member = np.zeros((len(places), problem.n_sources))
    row, slot = np.nonzero(active)
    member[row, places[row, slot]] = 1.0
    values = {
        "number": active.sum(axis=1),
        "position": member @ problem.source_pos[:, 0],
        "scan": member @ _scan(problem),
        "moment_std": moment_std,
        "noise_std": noise_std,
        "log_likelihood": _log_likelihood(problem, member, moment_std, noise_std),
    }
    # Sums over the same places must tie whatever the order of the terms.
    for name in ("position", "scan"):
        values[name] = np.round(values[name], 9)
    return np.array([values[name] for name in STATISTICS], float)


def _pick(key, posterior, n_particles, n_draws):
    """Rows of nearly independent draws.

    Of SMC, only the population after its last sweep: what it collected before is the same
    particles, a sweep earlier.
    """
    n_all = posterior.draws.active.shape[1]
    first = n_all - n_particles if posterior.method == "smc" else 0
    rng = replications.generator(key)
    return first + rng.choice(n_all - first, size=n_draws, replace=False)


def _scan(problem):
    """Log likelihood ratio of one dipole at each place to none, at the median scales."""
    field = np.moveaxis(problem.lead_field, 1, 0) / NOISE_MEDIAN
    delta = (problem.moment_unit / MOMENT_MEDIAN) ** 2
    d = field.shape[2]
    precision = field.swapaxes(1, 2) @ field + delta * np.eye(d)
    matched = field.swapaxes(1, 2) @ (problem.data / NOISE_MEDIAN)
    explained = np.sum(matched * np.linalg.solve(precision, matched), axis=(1, 2))
    log_det = np.linalg.slogdet(precision)[1] - d * np.log(delta)
    return 0.5 * (explained - problem.n_times * log_det)


def _log_likelihood(problem, member, moment_std, noise_std):
    """Log density of the whitened data, N(0, noise_std^2 I + moment_std^2 G G') each sample."""
    rank = len(problem.data)
    field = np.moveaxis(problem.lead_field, 1, 0) / problem.moment_unit
    gram = np.einsum("nc,crs->nrs", member, field @ field.swapaxes(1, 2))
    cov = noise_std[:, None, None] ** 2 * np.eye(rank) + moment_std[:, None, None] ** 2 * gram
    solved = np.linalg.solve(cov, np.broadcast_to(problem.data, (len(cov), *problem.data.shape)))
    quadratic = np.sum(solved * problem.data, axis=(1, 2))
    log_det = np.linalg.slogdet(cov)[1] + rank * np.log(2 * np.pi)
    return -0.5 * (quadratic + problem.n_times * log_det)


def _describe_model():
    return {
        **GEOMETRY,
        "n_dipoles": N_DIPOLES,
        "max_dipoles": MAX_DIPOLES,
        "moment_std": f"LogNormal(log {MOMENT_MEDIAN}, {MOMENT_SPREAD}) A·m",
        "noise_std": f"LogNormal(log {NOISE_MEDIAN}, {NOISE_SPREAD})",
    }


if __name__ == "__main__":
    main()
