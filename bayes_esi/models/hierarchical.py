"""One unknown variance a source.

    x_j | gamma_j ~ N(0, gamma_j I),    data_t = lead_field x_t + N(0, noise_std^2 noise_cov)

The variances are found from the data: where the evidence is stationary (`sparse_bayes`), or
together with the sources under a law of their own (`ias`). Most of them end at or near zero. With
`multiple_sparse_priors` smooth patterns of sources have the variances, and free energy finds them;
with `maximum_entropy` parcels of sources are silent or not.

`gibbs` draws the variances under the law

    gamma_j = 0 with probability 1 - inclusion_prob, else log-uniform over source_std^2

so that it can say how probable it is that a source is active. `nuts` draws them under a horseshoe,
which shrinks most sources to nearly nothing and never to zero.

References: Wipf, Nagarajan 2009, doi:10.1016/j.neuroimage.2008.02.059 (the family); Calvetti,
Hakula, Pursiainen, Somersalo 2009, doi:10.1137/080723995 (laws of the variances); Scott, Berger
2010, doi:10.1214/10-AOS792 (unknown inclusion probability).
"""

import dataclasses

import numpy as np

from ..core.checks import check_fraction, check_positive
from .group_sparse import check_depth, check_noise
from .orientation import check_loose

__all__ = ["HierarchicalSources", "log_odds"]


@dataclasses.dataclass(frozen=True, eq=False)
class HierarchicalSources:
    """Gaussian sources, each with a variance of its own.

    Parameters
    ----------
    noise_std : float, optional
        Noise level relative to the given noise covariance. None: unknown, found or drawn with the
        variances, one level for all groups of channels (but see option `noise` of `sparse_bayes`);
        by `ias` and `maximum_entropy`, which cannot, before them, with Gaussian sources.
    depth : float
        Exponent of the depth weights in [0, 1]. Evidence has no preference for shallow sources,
        so that `sparse_bayes` ends in the same place without; `ias` weighs by signal-to-noise
        ratio itself, and more where this is not 0.
    loose : float
        Variance of tangential moments relative to normal ones: 1 free, 0 fixed to the normals.
    inclusion_prob : float, optional
        Of `gibbs`: probability that a source is active. None: unknown with a uniform law, so that
        all numbers of active sources are equally probable, and all sets of one size. Of `nuts`:
        guess of that share, p, which sets the scale of all deviations to p / (1 - p) times the one
        at which a source is told from noise; None: that scale is unknown, log-uniform from an
        n_sources-th of this deviation to all of it.
    source_std : (low, high), optional
        Of `gibbs`: range of the deviation of an active source, in A·m. By default from the
        weakest that is told from noise to ten times the power of the data. Of `nuts` no source is
        stronger than `high`, and `low` has no part.

    Raises
    ------
    ValueError
        On a noise level or deviations that are not positive, shares outside of [0, 1].
    """

    noise_std: float | None = 1.0
    depth: float = 0.0
    loose: float = 1.0
    inclusion_prob: float | None = None
    source_std: tuple | None = None

    def __post_init__(self):
        check_noise(self.noise_std)
        check_depth(self.depth)
        check_loose(self.loose)
        if self.inclusion_prob is not None:
            check_fraction("inclusion_prob", self.inclusion_prob)
        if self.source_std is not None:
            low, high = (check_positive("source_std", s) for s in self.source_std)
            if low > high:
                raise ValueError(f"source_std must be (low, high), got {self.source_std}.")


def log_odds(n_sources, max_active, probability=None):
    """Log prior odds of a set with one source more: (max_active + 1,) array.

    Parameters
    ----------
    n_sources, max_active : int
    probability : float, optional
        Each source is active with it, independently; None: it is unknown with a uniform law, and
        all numbers of active sources are equally probable, all sets of one size too.

    Returns
    -------
    array
        By the number of sources in the smaller set; -inf at `max_active`.
    """
    if probability is None:
        # The ratio of numbers of sets, (n choose k) / (n choose k + 1).
        number = np.arange(max_active)
        odds = np.log((number + 1) / (n_sources - number))
    else:
        probability = check_fraction("probability", probability)
        odds = np.full(max_active, np.log(probability) - np.log1p(-probability))
    return np.append(odds, -np.inf)
