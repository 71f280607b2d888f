"""ArviZ: the posterior as a DataTree, and convergence across independent runs."""

import numpy as np

__all__ = ["diagnostics", "predictive_groups", "to_datatree"]


def to_datatree(posterior, n_draws):
    """Write a dipole posterior as ArviZ groups.

    Independent runs are chains. Places are source numbers, -1 in empty slots; positions are NaN
    there. Predictive data, like the observed data, are in the units of the recording, on the
    range of the noise covariance. `log_likelihood` has one value for each sample.

    Parameters
    ----------
    posterior : DipolePosterior
    n_draws : int

    Returns
    -------
    xarray.DataTree
    """
    import xarray as xr

    draws, problem = posterior.draws, posterior.problem
    n_runs, n_available, n_slots = draws.places.shape
    kept = np.unique(np.linspace(0, n_available - 1, min(n_draws, n_available)).astype(int))
    pooled = (np.arange(n_runs)[:, None] * n_available + kept).ravel()
    moments = posterior.moments_of(pooled)
    shape = (n_runs, len(kept))
    run, draw = ["chain", "draw"], {"chain": np.arange(n_runs), "draw": kept}

    active = draws.active[:, kept]
    places = np.where(active, draws.places[:, kept], -1)
    pos = np.where(active[..., None], problem.source_pos[places], np.nan)
    mean = moments.mean.reshape(*shape, *moments.mean.shape[1:])
    std = moments.std.reshape(*shape, *moments.std.shape[1:])
    axes = ["x", "y", "z"] if mean.shape[3] == 3 else ["normal"]
    time = {"time": problem.times}
    sampled = xr.Dataset(
        {
            "n_dipoles": (run, active.sum(axis=2)),
            "place": ([*run, "slot"], places),
            "pos": ([*run, "slot", "axis"], pos),
            "moment_mean": ([*run, "slot", "moment_axis", "time"], mean),
            "moment_std_given_place": ([*run, "slot", "moment_axis"], std),
            "moment_std": (run, draws.moment_std[:, kept]),
            "noise_std": ([*run, "group"], draws.noise_std[:, kept]),
        },
        coords={
            **draw,
            **time,
            "slot": np.arange(n_slots),
            "axis": ["x", "y", "z"],
            "moment_axis": axes,
            "group": list(problem.group_names),
        },
    )
    stats = xr.Dataset({"log_likelihood": (run, draws.log_likelihood[:, kept])}, coords=draw)
    n_steps = draws.trace.get("inverse_temperature", np.zeros((1, 0))).shape[1]
    for name, values in draws.trace.items():
        # Temperatures are steps of the sampler; other series have an axis of their own.
        is_step = values.ndim > 1 and values.shape[1] == n_steps
        names = ["chain", "step" if is_step else f"{name}_index", f"{name}_entry"]
        stats[name] = (names[: values.ndim], values)

    per_sample = moments.log_likelihood + problem.log_jacobian / problem.n_times
    pointwise = xr.Dataset(
        {"data": ([*run, "time"], per_sample.reshape(*shape, -1))}, coords={**draw, **time}
    )
    return xr.DataTree.from_dict(
        {
            "posterior": sampled,
            "sample_stats": stats,
            **predictive_groups(problem, moments.fitted, draws.noise_std[:, kept], draw),
            "log_likelihood": pointwise,
        }
    )


def predictive_groups(problem, fitted, noise_std, coords):
    """Draw a new recording of the same response for each draw, beside the one that was made.

    Parameters
    ----------
    problem : Problem
    fitted : (n_chains * n_draws, rank, n_times) array
        Whitened field of all sources.
    noise_std : (n_chains, n_draws, n_groups) array
        Relative to the noise covariance.
    coords : dict
        Of chains and draws.

    Returns
    -------
    dict of xarray.Dataset
        "posterior_predictive" and "observed_data", in the units of the recording, on the range of
        the noise covariance.
    """
    import xarray as xr

    shape = noise_std.shape[:2]
    rng = np.random.default_rng(0)
    noise = noise_std.reshape(len(fitted), -1)[:, problem.noise_group]
    # A new recording of the same response: the fitted field plus fresh noise.
    replicate = fitted + noise[:, :, None] * rng.standard_normal(fitted.shape)
    colouring = np.linalg.pinv(problem.whitener)
    channel = {"channel": list(problem.ch_names), "time": problem.times}
    predicted = np.einsum("cr,drt->dct", colouring, replicate, optimize=True)
    predicted = predicted.reshape(*shape, *predicted.shape[1:]).astype(np.float32)
    return {
        "posterior_predictive": xr.Dataset(
            {"data": (["chain", "draw", "channel", "time"], predicted)}, coords=coords | channel
        ),
        "observed_data": xr.Dataset(
            {"data": (["channel", "time"], colouring @ problem.data)}, coords=channel
        ),
    }


def diagnostics(posterior):
    """Summarise convergence across runs.

    Returns
    -------
    pandas.DataFrame
        ArviZ summary of the number of dipoles, scales and log likelihood; R-hat compares
        independent runs. It is NaN for a single run, and for what is the same in all draws.
    """
    import arviz as az
    import xarray as xr

    draws = posterior.draws
    variables = {
        "n_dipoles": draws.active.sum(axis=2).astype(float),
        "log_likelihood": draws.log_likelihood,
        "moment_std_nAm": 1e9 * draws.moment_std,
    }
    for i, name in enumerate(posterior.problem.group_names):
        variables[f"noise_std[{name}]"] = draws.noise_std[:, :, i]
    dataset = xr.Dataset({k: (["chain", "draw"], v) for k, v in variables.items()})
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing varies in a constant
        return az.summary(xr.DataTree.from_dict({"posterior": dataset}))
