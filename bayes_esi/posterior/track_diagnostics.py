"""ArviZ for trajectories: draws as a DataTree, and convergence across independent runs."""

import numpy as np

from .diagnostics import predictive_groups
from .track_moments import fitted_field

__all__ = ["diagnostics", "to_datatree"]

# Series of the sampler that have one value for each sample.
_ALONG_TIME = ("ess", "n_ancestors", "log_evidence_increment")
_N_SAMPLES = 5  # evenly spaced samples whose number of dipoles is followed


def to_datatree(posterior, n_draws):
    """Write a posterior of tracks as ArviZ groups.

    Independent runs are chains. Places are source numbers, -1 in empty slots, where positions are
    not written: they are ``source_pos`` of the group constant_data. Predictive data, like the
    observed data, are in the units of the recording, on the range of the noise covariance.

    Parameters
    ----------
    posterior : TrackPosterior
    n_draws : int
        Kept of each run.

    Returns
    -------
    xarray.DataTree
    """
    import xarray as xr

    draws, problem = posterior.draws, posterior.problem
    n_runs, n_available, n_times, n_slots = draws.places.shape
    kept = np.unique(np.linspace(0, n_available - 1, min(n_draws, n_available)).astype(int))
    pooled = (np.arange(n_runs)[:, None] * n_available + kept).ravel()
    run, coords = ["chain", "draw"], {"chain": np.arange(n_runs), "draw": kept}
    time = {"time": problem.times}

    places = draws.places[:, kept]
    sampled = xr.Dataset(
        {
            "n_dipoles": ([*run, "time"], np.sum(places >= 0, axis=3)),
            "place": ([*run, "time", "slot"], places),
            "is_new": ([*run, "time", "slot"], draws.is_new[:, kept]),
            "moment_std": (run, draws.moment_std[:, kept]),
            "noise_std": ([*run, "group"], draws.noise_std[:, kept]),
            "birth_prob": (run, draws.birth_prob[:, kept]),
            "death_prob": (run, draws.death_prob[:, kept]),
        },
        coords={
            **coords,
            **time,
            "slot": np.arange(n_slots),
            "group": list(problem.group_names),
        },
    )
    stats = xr.Dataset(
        {"log_likelihood": (run, draws.log_likelihood[:, kept])}, coords=coords | time
    )
    for name, values in draws.trace.items():
        is_along = name in _ALONG_TIME and values.shape[1:] == (n_times,)
        names = ["chain", "time" if is_along else f"{name}_index", f"{name}_entry"]
        stats[name] = (names[: values.ndim], values)

    components = posterior.moments_of(pooled).components
    trajectories = places.reshape(-1, n_times, n_slots)
    fitted = np.stack(
        [
            fitted_field(problem, posterior.design, *draw)
            for draw in zip(trajectories, components, strict=True)
        ]
    )
    return xr.DataTree.from_dict(
        {
            "posterior": sampled,
            "sample_stats": stats,
            **predictive_groups(problem, fitted, draws.noise_std[:, kept], coords),
            "constant_data": xr.Dataset({"source_pos": (["source", "axis"], problem.source_pos)}),
        }
    )


def diagnostics(posterior):
    """Summarise convergence across runs.

    Returns
    -------
    pandas.DataFrame
        ArviZ summary of the number of dipoles at a few samples, parameters and log likelihood;
        R-hat compares independent runs. It is NaN for a single run, and for what is the same in
        all draws.
    """
    import arviz as az
    import xarray as xr

    draws, problem = posterior.draws, posterior.problem
    samples = np.unique(np.linspace(0, problem.n_times - 1, _N_SAMPLES + 2).astype(int)[1:-1])
    numbers = np.sum(draws.places[:, :, samples] >= 0, axis=3).astype(float)
    variables = {
        f"n_dipoles[{problem.times[sample]:g} s]": numbers[:, :, i]
        for i, sample in enumerate(samples)
    }
    variables |= {
        "n_births": np.sum(draws.is_new & (draws.places >= 0), axis=(2, 3)).astype(float),
        "log_likelihood": draws.log_likelihood,
        "moment_std_nAm": 1e9 * draws.moment_std,
        "birth_prob": draws.birth_prob,
        "death_prob": draws.death_prob,
    }
    for i, name in enumerate(problem.group_names):
        variables[f"noise_std[{name}]"] = draws.noise_std[:, :, i]
    dataset = xr.Dataset({k: (["chain", "draw"], v) for k, v in variables.items()})
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing varies in a constant
        return az.summary(xr.DataTree.from_dict({"posterior": dataset}))
