"""What is left over: whether residuals look like the noise that a model takes them for."""

import numpy as np

__all__ = ["autocorrelation"]


def autocorrelation(residual):
    """Correlation of neighbouring samples of a residual (rank, n_times).

    Zero for noise that is white in time; NaN for fewer than three samples.
    """
    if residual.shape[1] < 3:
        return float("nan")
    lagged = np.sum(residual[:, 1:] * residual[:, :-1])
    ends = np.sum(residual[:, 1:] ** 2) * np.sum(residual[:, :-1] ** 2)
    return float(lagged / np.sqrt(ends))
