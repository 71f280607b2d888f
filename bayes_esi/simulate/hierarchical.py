"""Draw sources that are silent or active from their prior, and data from the likelihood."""

import dataclasses

import jax
import numpy as np

from ..core.checks import check_count
from ..models.group_sparse import depth_scale
from ..models.hierarchical import log_odds
from ..models.orientation import orient

__all__ = ["SparseTruth", "draw_problem"]


@dataclasses.dataclass(frozen=True, eq=False)
class SparseTruth:
    """What was drawn.

    Attributes
    ----------
    places : (n_active,) int array
        Increasing.
    moments : (n_active, n_axes, n_times) array
        In A·m, along the axes in which amplitudes are told.
    source_std : (n_active,) array
        In A·m.
    """

    places: np.ndarray
    moments: np.ndarray
    source_std: np.ndarray


def draw_problem(key, model, template, max_active=10):
    """Draw the unknowns of `HierarchicalSources` as `gibbs` believes them, and data.

    Parameters
    ----------
    key : PRNG key
    model : HierarchicalSources
        With known `noise_std` and `source_std`.
    template : Problem
        Lead field, geometry and times. Its data are not looked at.
    max_active : int

    Returns
    -------
    problem : Problem
        The template with other data.
    truth : SparseTruth

    Raises
    ------
    ValueError
        If the noise level is unknown, or the range of deviations looks at the data.
    """
    for name in ("noise_std", "source_std"):
        if getattr(model, name) is None:
            raise ValueError(f"{name} must be given to draw from the prior, got None.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    n_sources = template.n_sources
    max_active = min(check_count("max_active", max_active), n_sources)
    odds = log_odds(n_sources, max_active, model.inclusion_prob)[:-1]
    number = np.arange(1, max_active + 1)
    log_pmf = np.append(0, np.cumsum(odds + np.log((n_sources - number + 1) / number)))
    pmf = np.exp(log_pmf - log_pmf.max())
    n_active = rng.choice(max_active + 1, p=pmf / pmf.sum())
    places = np.sort(rng.choice(n_sources, n_active, replace=False))
    std = np.exp(rng.uniform(*np.log(model.source_std), n_active))
    std = std * depth_scale(model, template)[places]
    design = orient(template, model.loose)
    d, n_times = design.lead_field.shape[2], template.n_times
    components = std[:, None, None] * rng.standard_normal((n_active, d, n_times))
    field = np.asarray(design.lead_field, float)[:, places]
    signal = np.tensordot(field, components / template.moment_unit, axes=2)
    data = signal + model.noise_std * rng.standard_normal(signal.shape)
    moments = np.einsum("nad,ndt->nat", design.own_frames[places], components)
    problem = dataclasses.replace(template, data=data.astype(template.data.dtype))
    return problem, SparseTruth(places, moments, std)
