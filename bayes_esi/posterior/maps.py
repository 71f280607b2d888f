"""Source maps that are no posterior: beamformers and CLARA, as a user asks for them.

They have no likelihood, hence no evidence and no uncertainty; their values rank sources, and the
class says so by having nothing else.
"""

import dataclasses

import numpy as np

from ..core import ports
from ..core.checks import check_array, check_positive
from ..inference import beamformer
from ..inference import clara as clara_solver
from ..models.orientation import orient
from ..models.problem import Problem
from ..models.source_covariance import smooth_factor
from ..sources.depth import depth_weights

__all__ = ["SourceMap", "clara", "lcmv"]


@dataclasses.dataclass(frozen=True, eq=False)
class SourceMap:
    """One estimate for each source and sample, without uncertainty.

    Attributes
    ----------
    problem : Problem
    name : str
        What made it.
    values : (n_sources, n_axes, n_times) array
        In `unit`; along the axes of space, or one signed direction for each source.
    power : (n_sources,) array
        One number for each source: pseudo-Z of a beamformer, size of an image.
    unit : str
        "A·m", or "" for what is relative to the noise.
    details : NamedTuple
        What the solver returned: weights, orientations, steps.
    """

    problem: Problem
    name: str
    values: np.ndarray
    power: np.ndarray
    unit: str
    details: object

    @property
    def peak(self):
        """Number of the source of largest power."""
        return int(np.argmax(self.power))

    def to_mne(self, quantity="values"):
        """Give "values" or "power" as an MNE source estimate."""
        return ports.perform(self, "to_mne", quantity)

    def plot(self, **kwargs):
        """Draw the power in three projections; see `bayes_esi.viz.source_map.plot_power`."""
        return ports.perform(self, "plot", **kwargs)

    def __repr__(self):
        place = 1e3 * self.problem.source_pos[self.peak]
        where = ", ".join(f"{x:.0f}" for x in place)
        return f"<SourceMap | {self.name}: {self.problem.n_sources} sources, peak at ({where}) mm>"


def lcmv(
    problem,
    data_cov=None,
    *,
    normalisation="unit_noise_gain_invariant",
    is_max_power=False,
    loading=0.05,
    loose=1.0,
):
    """Linearly constrained minimum variance beamformer.

    Parameters
    ----------
    problem : Problem
    data_cov : (n_channels, n_channels) array or mne.Covariance, optional
        Of the data, in squared data units; by default that of the problem's samples, without
        subtracting their mean.
    normalisation : str
        "unit_gain" (moments in A·m), "array_gain", "unit_noise_gain",
        "unit_noise_gain_invariant" (any axes give the same), or "neural_activity_index".
    is_max_power : bool
        One direction for each source, that of most power.
    loading : float
        Added to the diagonal of the covariance, relative to its mean eigenvalue.
    loose : float
        1 free orientation, 0 fixed to the normals.

    Returns
    -------
    SourceMap

    Raises
    ------
    ValueError
        If the covariance does not fit, or `loose` is neither 0 nor 1.

    Notes
    -----
    Correlated sources cancel: two that are perfectly correlated vanish from the map.

    References
    ----------
    Van Veen et al. 1997, doi:10.1109/10.623056.
    """
    if loose not in (0, 1):
        raise ValueError(f"loose must be 0 or 1 for a beamformer, got {loose!r}.")
    field = np.asarray(orient(problem, loose).lead_field, np.float64)
    data = np.asarray(problem.data, np.float64)
    if data_cov is None:
        covariance = beamformer.covariance_of(data)
    else:
        if hasattr(data_cov, "ch_names"):
            data_cov = ports.perform(problem, "data_cov", data_cov)
        n = problem.n_channels
        data_cov = check_array("data_cov", data_cov, shape=(n, n))
        covariance = problem.whitener @ data_cov @ problem.whitener.T
    found = beamformer.run(
        field,
        covariance,
        normalisation=normalisation,
        is_max_power=is_max_power,
        loading=loading,
    )
    is_moment = normalisation == "unit_gain"
    values = found.weights @ data * (problem.moment_unit if is_moment else 1.0)
    name = f"LCMV, {normalisation.replace('_', ' ')}"
    return SourceMap(problem, name, values, found.pseudo_z, "A·m" if is_moment else "", found)


def clara(problem, lambda2=1 / 9, *, depth=1.0, loose=1.0, n_steps=3, cut=0.01):
    """CLARA: LORETA again and again, each weighted by the smoothed image before.

    Parameters
    ----------
    problem : Problem
    lambda2 : float
        1 / SNR^2, as in `GaussianSources`.
    depth : float
        Exponent of the depth weights.
    loose : float
        As in `GaussianSources`.
    n_steps : int
        Images; the first is LORETA's.
    cut : float
        Share of the maximum below which sources are left out.

    Returns
    -------
    SourceMap

    Raises
    ------
    ValueError
        On `lambda2` or `cut` out of range.

    Notes
    -----
    A heuristic: images contract whether or not the source is small. It is here for comparison, and
    to read reports that use it.
    """
    check_positive("lambda2", lambda2, remedy="It is 1 / SNR^2, such as 1 / 9.")
    oriented = orient(problem, loose)
    field = np.asarray(oriented.lead_field, np.float64)
    found = clara_solver.run(
        field,
        smooth_factor("laplacian", problem),
        np.asarray(problem.data, np.float64),
        lambda2,
        problem.neighbours,
        depth=np.sqrt(depth_weights(np.asarray(problem.lead_field, np.float64), depth)),
        n_steps=n_steps,
        cut=cut,
    )
    values = np.einsum("sxd,sdt->sxt", oriented.own_frames, found.estimate)
    return SourceMap(
        problem,
        f"CLARA, {n_steps} steps",
        values * problem.moment_unit,
        found.maps[-1],
        "A·m",
        found,
    )
