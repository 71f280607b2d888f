"""ArviZ for distributed sources: draws of hyper-parameters and courses, convergence of chains."""

import jax
import numpy as np

__all__ = ["diagnostics", "to_datatree"]

_N_SOURCES = 10


def to_datatree(posterior, n_draws, sources=None, key=None):
    """Write a posterior of distributed sources as ArviZ groups.

    Parameters
    ----------
    posterior : SourcePosterior
    n_draws : int
        Draws of courses and of predictive data.
    sources : int array, optional
        Whose courses; by default the ten that stand out most.
    key : PRNG key, optional

    Returns
    -------
    xarray.DataTree
        Predictive and observed data are in the units of the recording, on the range of the noise
        covariance.
    """
    import xarray as xr

    problem = posterior.problem
    key = jax.random.key(0) if key is None else key
    sources = posterior.peaks[:_N_SOURCES] if sources is None else np.asarray(sources)
    courses = posterior.sample(key, n_draws, sources=sources)
    axes = ["x", "y", "z"] if courses.shape[2] == 3 else ["normal"]
    single, time = ["chain", "draw"], {"time": problem.times}
    coords = {"chain": [0], "draw": np.arange(n_draws), "source": sources, "moment_axis": axes}
    drawn = xr.Dataset(
        {"moment": ([*single, "source", "moment_axis", "time"], courses[None])},
        coords=coords | time,
    )
    sampled = {"posterior": drawn}
    if posterior.draws:
        # Chains of the hyper-parameters have another length: courses get a group of their own.
        sampled = {
            "posterior": _named(posterior.draws),
            "sample_stats": _named(_by_draw(posterior)),
            "courses": drawn,
        }

    rng = np.random.default_rng(0)
    colouring = np.linalg.pinv(problem.whitener)
    level = np.asarray(posterior.hyper["noise_std"])[problem.noise_group]
    noise = level[:, None] * rng.standard_normal((n_draws, *problem.data.shape))
    replicate = (colouring @ (posterior.fitted + noise)).astype(np.float32)
    channel = {"channel": list(problem.ch_names)}
    trees = {
        **sampled,
        "posterior_predictive": xr.Dataset(
            {"data": ([*single, "channel", "time"], replicate[None])},
            coords={"chain": [0], "draw": np.arange(n_draws)} | channel | time,
        ),
        "observed_data": xr.Dataset(
            {"data": (["channel", "time"], colouring @ problem.data)}, coords=channel | time
        ),
        "constant_data": xr.Dataset(
            {
                "source_pos": (["source_number", "axis"], problem.source_pos),
                **{
                    name: (["group"] if np.ndim(v) else [], np.asarray(v))
                    for name, v in posterior.hyper.items()
                    if name in ("source_std", "noise_std", "depth", "smoothness")
                },
            }
        ),
    }
    return xr.DataTree.from_dict(trees)


def diagnostics(posterior):
    """Summarise convergence of the chains of hyper-parameters.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ValueError
        If hyper-parameters were not drawn.
    """
    import arviz as az
    import xarray as xr

    if not posterior.draws:
        raise ValueError(
            f"{posterior.method} draws no hyper-parameters, so there are no chains to diagnose; "
            "infer with method='nuts'."
        )
    return az.summary(xr.DataTree.from_dict({"posterior": _named(posterior.draws)}))


def _by_draw(posterior):
    """What was told of each draw, and not of a choice before them."""
    shape = next(iter(posterior.draws.values())).shape[:2]
    stats = posterior.sample_stats.items()
    return {name: values for name, values in stats if values.shape[:2] == shape}


def _named(arrays):
    import xarray as xr

    variables = {}
    for name, values in arrays.items():
        extra = [f"{name}_entry", f"{name}_column"][: values.ndim - 2]
        variables[name] = (["chain", "draw", *extra], values)
    return xr.Dataset(variables)
