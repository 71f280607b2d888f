"""Distributed Gaussian sources that remember: one scalar law in time for all of them.

    x ~ N(0, source_std^2 K kron R),      K the covariance of a scalar process in time, K_11 = 1

For an autoregressive process of first order x_{t+1} = a x_t + w_t with w_t ~ N(0, (1 - a^2)
source_std^2 R) and a stationary start. Time and space separate, so that the sensors see independent
scalar processes (see `source_likelihood`), whatever R is.

References: Long et al. 2011, doi:10.1214/11-AOAS483 (random walk on sources); Särkkä, Solin 2019,
doi:10.1017/9781108186735 (Matérn processes as state-space models).
"""

import dataclasses

import numpy as np

from ..core import ports
from ..core.checks import check_array, check_choice, check_count
from .gaussian import check_source_model
from .scale_prior import check_scale
from .time_kernels import (
    autoregressive,
    check_stationary,
    from_partial_autocorrelations,
    matern,
    random_walk,
)

__all__ = ["KERNELS", "AutoregressiveSources", "kernel_of"]

KERNELS = ("autoregressive", "matern12", "matern32", "matern52", "random_walk")


@dataclasses.dataclass(frozen=True, eq=False)
class AutoregressiveSources:
    """Gaussian sources with a scalar state-space law in time.

    Parameters
    ----------
    coefficient : float, sequence of float or numpyro distribution, optional
        For ``kernel="autoregressive"``: a in x_{t+1} = a x_t + w, or the coefficients of a process
        of higher order. A distribution on (-1, 1) is an unknown a. None: unknown; of `order` one
        through a log-uniform correlation time -step / log a, from a tenth of a sample to a
        hundred windows; of higher order through partial autocorrelations, uniform in (-1, 1).
    source_std, lambda2, depth, covariance, loose, noise_std, smoothness, depth_limit
        As in `GaussianSources`; `source_std` is that of the stationary law (of the random walk:
        of its first sample).
    kernel : str
        "autoregressive", "matern12", "matern32", "matern52", or "random_walk".
    time_scale : float or numpyro distribution, optional
        In s, for the other kernels: the length scale of a Matérn process; the time in which the
        variance of the random walk grows by source_std^2. None: unknown, log-uniform.
    order : int
        Of an autoregressive process whose coefficients are unknown.

    Raises
    ------
    ValueError
        On coefficients that are not stationary, and as in `GaussianSources`.
    """

    coefficient: object = None
    source_std: object = None
    lambda2: float | None = None
    depth: object = 0.0
    covariance: object = "identity"
    loose: float = 1.0
    noise_std: object = 1.0
    smoothness: object = 1.0
    depth_limit: float | None = 10.0
    kernel: str = "autoregressive"
    time_scale: object = None
    order: int = 1

    def __post_init__(self):
        check_source_model(self)
        check_choice("kernel", self.kernel, KERNELS)
        check_scale("time_scale", self.time_scale)
        check_count("order", self.order)
        if self.kernel != "autoregressive":
            if self.coefficient is not None:
                raise ValueError(
                    f"coefficient belongs to kernel='autoregressive', not to {self.kernel!r}; give "
                    "time_scale."
                )
        elif self.time_scale is not None and self.coefficient is not None:
            raise ValueError(
                "coefficient and time_scale both set the memory of the process; give one of them."
            )
        given = self.coefficient
        if given is not None and not hasattr(given, "log_prob"):
            coefficients = check_array("coefficient", np.atleast_1d(given), ndim=1)
            check_stationary(coefficients)
            if self.order not in (1, coefficients.size):
                raise ValueError(
                    f"order is {self.order}, but coefficient has {coefficients.size} entries; "
                    "leave order out."
                )

    def numpyro(self, problem):
        """Write the model on a problem as a NumPyro program; see `GaussianSources.numpyro`."""
        return ports.perform(self, "numpyro", problem)


def kernel_of(kernel, values, step):
    """Build the law in time of some hyper-parameters.

    Parameters
    ----------
    kernel : str
        One of `KERNELS`.
    values : dict
        With "coefficient", "partial" (partial autocorrelations), or "time_scale" in s.
    step : float
        Between samples, in s.

    Returns
    -------
    TimeKernel
    """
    if kernel == "autoregressive":
        if "coefficient" in values:
            return autoregressive(values["coefficient"])
        if "partial" in values:
            return from_partial_autocorrelations(values["partial"])
        kernel = "matern12"  # exp(-step / time_scale) is the coefficient
    if kernel == "random_walk":
        return random_walk(values["time_scale"], step)
    order = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}[kernel]
    return matern(order, values["time_scale"], step)
