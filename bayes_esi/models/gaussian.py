"""Distributed sources with a Gaussian prior, independent in time.

    x_t ~ N(0, source_std^2 R),    data_t = lead_field x_t + N(0, noise_std^2 noise_cov)

Its posterior mean is the minimum-norm (Tikhonov) estimate; R holds depth weights, orientations
and correlation (see `source_prior`). Regularisation is one of the unknowns of the model.

References: Hämäläinen, Ilmoniemi 1994, doi:10.1007/BF02512476 (minimum norm); Lin et al. 2006,
doi:10.1016/j.neuroimage.2005.11.054 (depth weighting).
"""

import dataclasses

from ..core import ports
from ..core.checks import check_positive
from .orientation import check_loose
from .scale_prior import check_scale
from .source_covariance import check_covariance

__all__ = ["GaussianSources", "check_source_model"]


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianSources:
    """Gaussian sources, independent from sample to sample.

    Parameters
    ----------
    source_std : float or numpyro distribution, optional
        Standard deviation of a source component of unit weight, in A·m. None (and `lambda2`
        None): unknown, log-uniform over four decades around what would explain the data's power.
    lambda2 : float, optional
        Tikhonov parameter in MNE's scaling: R is scaled to trace(G R G') = rank in whitened
        units, then lambda2 = 1 / SNR^2. Give it or `source_std`, not both.
    depth : float or numpyro distribution, optional
        Exponent of the depth weights in [0, 1]: 0 none, 0.8 as MNE's default. None: unknown,
        uniform. Weights are those of the whitened lead field.
    covariance : str or array
        Correlation of sources: "identity", "laplacian" (LORETA), "laura", a dense covariance
        (n_sources, n_sources), a scipy.sparse precision, or a dense factor (n_sources, k).
    loose : float
        Variance of tangential moments relative to normal ones: 1 free, 0 fixed to the normals.
    noise_std : float or numpyro distribution, optional
        Noise level relative to the given noise covariance, of each channel group. None: unknown,
        log-uniform from 0.1 to 10.
    smoothness : float or numpyro distribution, optional
        Share of the correlated part of the covariance, the rest being uncorrelated, in [0, 1].
        None: unknown, uniform.
    depth_limit : float, optional
        Largest ratio of standard deviations that depth weights may cause at depth=1; None: any.

    Raises
    ------
    ValueError
        On `lambda2` that is not positive or comes with `source_std`, scales that are not
        positive, exponents or shares outside of [0, 1], a covariance of an unknown kind.
    """

    source_std: object = None
    lambda2: float | None = None
    depth: object = 0.0
    covariance: object = "identity"
    loose: float = 1.0
    noise_std: object = 1.0
    smoothness: object = 1.0
    depth_limit: float | None = 10.0

    def __post_init__(self):
        check_source_model(self)

    def numpyro(self, problem):
        """Write the model on a problem as a NumPyro program: a function of no arguments.

        Returns
        -------
        callable
            Samples the unknowns and observes the whitened data; see `bayes_esi.distributions`.
        """
        return ports.perform(self, "numpyro", problem)


def check_source_model(model):
    """Check the fields that Gaussian source models share.

    Raises
    ------
    ValueError
        Naming the field, what came, and what to do.
    """
    check_scale("source_std", model.source_std)
    check_scale("noise_std", model.noise_std)
    if model.lambda2 is not None:
        check_positive("lambda2", model.lambda2, remedy="It is 1 / SNR^2, such as 1 / 9.")
        if model.source_std is not None:
            raise ValueError(
                "lambda2 and source_std both set the scale of the sources; give one of them."
            )
    _check_share("depth", model.depth)
    _check_share("smoothness", model.smoothness)
    if model.depth_limit is not None:
        check_positive("depth_limit", model.depth_limit, remedy="None stands for no limit.")
    check_loose(model.loose)
    check_covariance(model.covariance)


def _check_share(name, value):
    if value is None or hasattr(value, "log_prob"):
        return
    if isinstance(value, bool | str) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} must lie between 0 and 1, be a numpyro distribution there, or None "
            f"(unknown); got {value!r}."
        )
