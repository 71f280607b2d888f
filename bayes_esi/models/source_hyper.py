"""Hyper-parameters of Gaussian source models: what is known, and the law of what is not.

| name | unit | where it lives |
|---|---|---|
| `source_std` | A·m | above zero |
| `noise_std` (n_groups,) | relative | above zero |
| `depth`, `smoothness` | - | [0, 1] |
| `coefficient`, or `partial` (order,) | - | (-1, 1) |
| `time_scale` | s | above zero |

Laws are NumPyro distributions in these units, so that a NumPyro program, a search for the largest
evidence and a quadrature read the same thing.
"""

import dataclasses

import numpy as np

from .dipole_beliefs import MOMENT_RANGE, NOISE_RANGE

__all__ = ["Hyper", "hyper_of"]

# Correlation times left unknown: from a tenth of a sample (white) to so many windows (constant).
_SHORTEST, _LONGEST = 0.1, 100.0


@dataclasses.dataclass(frozen=True, eq=False)
class Hyper:
    """Known values and laws of the unknown, by name.

    Attributes
    ----------
    known : dict of str to float or array
    unknown : dict of str to numpyro distribution
    """

    known: dict
    unknown: dict


def hyper_of(model, problem, gram):
    """Collect the hyper-parameters of a model on a problem.

    Parameters
    ----------
    model : GaussianSources or AutoregressiveSources
    problem : Problem
    gram : (rank, rank) array
        G R G' at known depth and smoothness, or at typical ones.

    Returns
    -------
    Hyper

    Raises
    ------
    ValueError
        If the data are zero, or `lambda2` comes with an unknown depth or smoothness.
    """
    data = np.asarray(problem.data, np.float64)
    power = np.sum(data**2) / problem.n_times
    gain = np.trace(gram)
    if not power > 0:
        raise ValueError("data are zero on the range of noise_cov: there is nothing to explain.")
    known, unknown = {}, {}

    def sort(name, value, default):
        if value is None:
            unknown[name] = default()
        elif hasattr(value, "log_prob"):
            unknown[name] = value
        else:
            known[name] = np.asarray(value, np.float64)

    sort("depth", model.depth, _share)
    smoothness = 1.0 if _is_named(model.covariance, "identity") else model.smoothness
    sort("smoothness", smoothness, _share)
    _sort_noise(model, problem, data, known, unknown)
    reference = problem.moment_unit * np.sqrt(power / gain)
    source_std = model.source_std
    if model.lambda2 is not None:
        if unknown.keys() & {"depth", "smoothness", "noise_std"}:
            raise ValueError(
                "lambda2 needs depth, smoothness and noise_std that are known: its scaling "
                "depends on them. Leave lambda2 out to learn the scale, too."
            )
        level = known["noise_std"][problem.noise_group]
        scaled = np.trace(gram / np.outer(level, level))
        source_std = problem.moment_unit * np.sqrt(len(data) / scaled / model.lambda2)
    sort("source_std", source_std, lambda: _log_uniform(reference, MOMENT_RANGE, MOMENT_RANGE))
    if hasattr(model, "kernel"):
        _sort_time(model, problem, sort, unknown)
    return Hyper(known, unknown)


def step_of(problem):
    """Time between samples in s.

    Raises
    ------
    ValueError
        If samples are not evenly spaced.
    """
    if problem.n_times == 1:
        return 1.0
    steps = np.diff(problem.times)
    if not np.allclose(steps, steps.mean(), rtol=1e-3, atol=0) or steps.mean() <= 0:
        raise ValueError(
            "times must be evenly spaced for a model with dynamics; mark missing samples instead "
            "of leaving them out."
        )
    return float(steps.mean())


def _sort_noise(model, problem, data, known, unknown):
    import numpyro.distributions as dist

    value, n_groups = model.noise_std, problem.n_groups
    if value is None:
        levels = np.array(
            [np.sqrt(np.mean(data[problem.noise_group == g] ** 2)) for g in range(n_groups)]
        )
        low, high = np.minimum(1.0, levels) / NOISE_RANGE, np.maximum(1.0, levels) * NOISE_RANGE
        unknown["noise_std"] = dist.LogUniform(low, high)
    elif hasattr(value, "log_prob"):
        unknown["noise_std"] = value.expand((n_groups,))
    else:
        known["noise_std"] = np.full(n_groups, float(value))


def _sort_time(model, problem, sort, unknown):
    import numpyro.distributions as dist

    step = step_of(problem)
    if model.kernel == "autoregressive" and model.coefficient is not None:
        value = model.coefficient
        sort("coefficient", value, None)
    elif model.kernel == "autoregressive" and model.order > 1:
        unknown["partial"] = dist.Uniform(-1.0, 1.0).expand((model.order,))
    else:
        longest = _LONGEST * step * problem.n_times
        sort("time_scale", model.time_scale, lambda: dist.LogUniform(_SHORTEST * step, longest))


def _log_uniform(reference, below, above):
    import numpyro.distributions as dist

    return dist.LogUniform(reference / below, reference * above)


def _share():
    import numpyro.distributions as dist

    return dist.Uniform(0.0, 1.0)


def _is_named(covariance, name):
    return isinstance(covariance, str) and covariance == name
