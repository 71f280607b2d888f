"""Few active sources: a prior on the strength of each source as a whole.

    p(X) ~ exp(-alpha sum_j w_j |X_j|),    data = lead_field X + N(0, noise_std^2 noise_cov)

|X_j| is the Frobenius norm over the components and samples of source j. Most sources of the most
probable X are zero. The prior is a mixture of Gaussians, X_j | tau_j ~ N(0, tau_j I) with
tau_j ~ Gamma((D + 1) / 2, rate (alpha w_j)^2 / 2) for D components and samples; `gibbs` and `nuts`
draw from what the data leave of it.

References: Gramfort, Kowalski, Hämäläinen 2012, doi:10.1088/0031-9155/57/7/1937; Ou, Hämäläinen,
Golland 2009, doi:10.1016/j.neuroimage.2008.05.063.
"""

import dataclasses

import numpy as np

from ..core.checks import check_array, check_choice, check_positive
from ..sources.depth import depth_weights
from .orientation import check_loose

__all__ = [
    "CHOICES",
    "GroupSparseSources",
    "check_depth",
    "check_noise",
    "depth_scale",
    "penalty_weights",
]

CHOICES = ("sure", "cross_validation", "evidence")


@dataclasses.dataclass(frozen=True, eq=False)
class GroupSparseSources:
    """Sources of which few are active.

    Parameters
    ----------
    alpha : float or str
        Strength of the prior as a fraction of the least one at which no source is active, which
        is 1. Or how to choose it: "sure" (unbiased estimate of the risk), "cross_validation" over
        channels, "evidence" of the active sources.
    weights : (n_sources,) array, optional
        Of the penalties, positive; ones by default.
    depth : float
        Exponent of the depth weights in [0, 1], those of the whitened lead field: 0 none, 0.8 as
        MNE's default. They multiply `weights`.
    loose : float
        Variance of tangential moments relative to normal ones: 1 free, 0 fixed to the normals.
    noise_std : float, optional
        Noise level relative to the given noise covariance: what "sure" and "evidence" and all
        deviations believe. None: found with Gaussian sources.

    Raises
    ------
    ValueError
        On an alpha that is neither positive nor a known choice, weights that are not positive,
        shares outside of [0, 1].
    """

    alpha: float | str = "sure"
    weights: object = None
    depth: float = 0.0
    loose: float = 1.0
    noise_std: float | None = 1.0

    def __post_init__(self):
        if isinstance(self.alpha, str):
            check_choice("alpha", self.alpha, CHOICES)
        else:
            check_positive(
                "alpha", self.alpha, remedy="It is a fraction of the alpha that silences all."
            )
        if self.weights is not None:
            weights = check_array("weights", self.weights, ndim=1)
            if not np.all(weights > 0):
                raise ValueError("weights must be positive, got one that is not; leave out sources "
                                 "that must be silent.")  # fmt: skip
            object.__setattr__(self, "weights", weights)
        check_depth(self.depth)
        check_loose(self.loose)
        check_noise(self.noise_std)


def check_noise(noise_std):
    """Refuse a noise level that is not positive; None is unknown."""
    if noise_std is not None:
        check_positive("noise_std", noise_std, remedy="None stands for unknown.")


def check_depth(depth):
    """Refuse an exponent outside of [0, 1]."""
    if isinstance(depth, bool | str) or depth is None or not 0 <= depth <= 1:
        raise ValueError(f"depth must lie between 0 and 1, got {depth!r}.")


def penalty_weights(model, problem):
    """Weights of the penalties on a problem: (n_sources,).

    Raises
    ------
    ValueError
        If the model has weights of another number of sources.
    """
    n_sources = problem.n_sources
    weights = np.ones(n_sources)
    if model.weights is not None:
        weights = check_array("weights", model.weights, shape=(n_sources,)).astype(float)
    # A source of twice the prior deviation pays half as much for its strength.
    return weights / depth_scale(model, problem)


def depth_scale(model, problem):
    """Prior deviations that grow with depth, of a sparse model on a problem: (n_sources,)."""
    if model.depth == 0:
        return np.ones(problem.n_sources)
    return np.sqrt(depth_weights(np.asarray(problem.lead_field, float), model.depth))
