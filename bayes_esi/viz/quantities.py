"""What a figure of distributed sources may show at one sample: a number for each source."""

import numpy as np
from matplotlib.colors import CenteredNorm, Normalize

from ..core.checks import check_array, check_choice
from ..posterior.sources import STATISTICS

__all__ = ["QUANTITIES", "at_sample", "lower_end", "norm_of", "rows_of", "sample_of"]

QUANTITIES = ("mean", "std", "ratio", "inclusion", *STATISTICS)
_NAMES = {
    "mean": ("{mean}", "nA·m"),
    "std": ("{std}", "nA·m"),
    "ratio": ("{mean} / std", ""),
    "dSPM": ("dSPM", ""),
    "sLORETA": ("sLORETA", ""),
    "eLORETA": ("eLORETA", "nA·m"),
}


def rows_of(quantity):
    """Quantities that a figure of one shows: moments come with their deviation.

    The others are relative to a deviation already, or have none.
    """
    check_choice("quantity", quantity, QUANTITIES)
    return ("mean", "std") if quantity == "mean" else (quantity,)


def sample_of(posterior, time=None):
    """Number of the sample at a time in s; by default the peak of the source that stands out most.

    Raises
    ------
    ValueError
        If the time is not a number within the window.
    """
    times = posterior.problem.times
    if time is None:
        # Without data that speak of any source there is no peak, and every sample is as good.
        place = next(iter(posterior.peaks), 0)
        return int(np.argmax(np.linalg.norm(posterior.mean[place], axis=0)))
    value = float(check_array("time", time, shape=(), remedy="It is in s."))
    nearest = int(np.argmin(np.abs(times - value)))
    step = np.diff(times).mean() if len(times) > 1 else np.inf
    if np.abs(times[nearest] - value) > step:
        raise ValueError(
            f"time must lie between {times[0]:g} and {times[-1]:g} s, got {value:g}; it is in s."
        )
    return nearest


def at_sample(posterior, quantity, sample):
    """A quantity at one sample, and what to write beside its colours.

    Parameters
    ----------
    posterior : SourcePosterior
    quantity : str
        One of `QUANTITIES`; over three axes means are magnitudes and deviations add their squares.
    sample : int

    Returns
    -------
    (n_sources,) array
        Moments in nA·m. Signed for one orientation, but for deviations.
    label : str
    """
    if quantity == "inclusion":
        if not hasattr(posterior, "inclusion_probability"):
            raise ValueError(
                f"quantity='inclusion' is of sparse sources; {posterior.method} of "
                f"{type(posterior.model).__name__} has no sources that are silent."
            )
        return posterior.inclusion_probability, "probability of being active"
    if quantity in STATISTICS:
        values = posterior.statistic(quantity)[:, sample]
        values = 1e9 * values if quantity == "eLORETA" else values
    elif quantity == "std":
        values = 1e9 * np.linalg.norm(posterior.std[:, :, sample], axis=1)
    else:
        values = 1e9 * _signed(posterior.mean[:, :, sample])
        if quantity == "ratio":
            std = 1e9 * np.linalg.norm(posterior.std[:, :, sample], axis=1)
            values = np.divide(values, std, out=np.zeros_like(values), where=std > 0)
    name, unit = _NAMES[quantity]
    label = f"{name.format(**posterior.names)}\nat {1e3 * posterior.problem.times[sample]:z.0f} ms"
    return values, f"{label} ({unit})" if unit else label


def lower_end(quantity, values):
    """Where the colours of magnitudes begin.

    Deviations hardly differ where sources are many and sensors few: their colours begin at the
    smallest, so that what the data tell best can be seen.
    """
    least, most = values.min(), values.max()
    return float(least) if quantity == "std" and most > (1 + 1e-6) * least else 0.0


def norm_of(quantity, values):
    """Colours for values: (norm, colour map), centred at zero if there are signs."""
    top = float(np.abs(values).max()) or 1.0
    if values.min() < 0:
        return CenteredNorm(0.0, top), "RdBu_r"
    return Normalize(lower_end(quantity, values), top), "Reds"


def _signed(moments):
    return moments[:, 0] if moments.shape[1] == 1 else np.linalg.norm(moments, axis=1)
