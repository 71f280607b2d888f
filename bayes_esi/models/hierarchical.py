"""One unknown variance a source.

    x_j | gamma_j ~ N(0, gamma_j I),    data_t = lead_field x_t + N(0, noise_std^2 noise_cov)

The variances are found from the data: where the evidence is stationary (`sparse_bayes`), or
together with the sources under a law of their own (`ias`). Most of them end at or near zero. With
`multiple_sparse_priors` smooth patterns of sources have the variances, and free energy finds them.

References: Wipf, Nagarajan 2009, doi:10.1016/j.neuroimage.2008.02.059 (the family); Calvetti,
Hakula, Pursiainen, Somersalo 2009, doi:10.1137/080723995 (laws of the variances).
"""

import dataclasses

from ..core.checks import check_positive
from .group_sparse import check_depth
from .orientation import check_loose

__all__ = ["HierarchicalSources"]


@dataclasses.dataclass(frozen=True, eq=False)
class HierarchicalSources:
    """Gaussian sources, each with a variance of its own.

    Parameters
    ----------
    noise_std : float, optional
        Noise level relative to the given noise covariance. None: unknown, found with the
        variances (`sparse_bayes`).
    depth : float
        Exponent of the depth weights in [0, 1]. Evidence has no preference for shallow sources,
        so that `sparse_bayes` ends in the same place without; `ias` weighs by signal-to-noise
        ratio itself, and more where this is not 0.
    loose : float
        Variance of tangential moments relative to normal ones: 1 free, 0 fixed to the normals.

    Raises
    ------
    ValueError
        On a noise level that is not positive, shares outside of [0, 1].
    """

    noise_std: float | None = 1.0
    depth: float = 0.0
    loose: float = 1.0

    def __post_init__(self):
        if self.noise_std is not None:
            check_positive("noise_std", self.noise_std, remedy="None stands for unknown.")
        check_depth(self.depth)
        check_loose(self.loose)
