"""How the scale of distributed sources was chosen, and what another one would have been worth."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

from ..models.source_hyper import Hyper
from ..models.source_likelihood import source_likelihood
from .common import COLOURS, new_axes, write_key

__all__ = ["evidence_curve", "plot_regularisation"]

_MNE = 1 / 9  # SNR = 3, the default of MNE's scripts
_DECADES = 3.0  # shown to each side of the choice
_N_POINTS = 121
_N_FINE = 20_001
_LABELS = {"gcv": "generalised cross-validation", "l_curve": "curvature of the L-curve"}


def plot_regularisation(posterior, *, ax=None):
    """Draw a criterion against the regularisation lambda2, with the one in use and MNE's default.

    Parameters
    ----------
    posterior : SourcePosterior
    ax : Axes, optional

    Returns
    -------
    Axes
        The curve by which the scale was chosen; without one (it was given, or one of several
        unknowns) the log evidence in nats, all else as in the posterior. Of the evidence, the
        shaded range holds 95 % of the probability under equal prior odds of all decades.
    """
    if ax is None:
        ax = new_axes(1, 1, (5.2, 3.6))[0]
    curve = posterior.curve
    name = "evidence" if curve is None else curve.name
    chosen = posterior.lambda2
    if curve is None or name == "evidence":
        # Computed here for one range and resolution, whatever the search used.
        lambda2, criterion = evidence_curve(posterior, _range(chosen))
        criterion = criterion - criterion.max()
    else:
        lambda2, criterion = np.asarray(curve.lambda2), np.asarray(curve.criterion)
        keep = (lambda2 >= _range(chosen)[0]) & (lambda2 <= _range(chosen)[-1])
        lambda2, criterion = lambda2[keep], criterion[keep]
    ax.plot(lambda2, criterion, color=COLOURS[0], lw=1.5)
    is_evidence = name == "evidence"
    if is_evidence:
        ends = _interval(lambda2, criterion)
        ax.axvspan(*ends, color=COLOURS[0], alpha=0.2, lw=0, label="95 %, all else held")
        # The peak is some nats wide, and far from it thousands are lost: both must be seen.
        ax.set_yscale("symlog", linthresh=10.0)
        ax.set_ylim(None, 2.0)
    else:
        write_key(ax, "this criterion tells no uncertainty")
    for value, colour, marker, text in (
        (chosen, COLOURS[0], "o", _choice(posterior)),
        (_MNE, COLOURS[1], "D", "MNE's default"),
    ):
        height = np.interp(np.log(value), np.log(lambda2), criterion)
        text = f"{text}: SNR {value**-0.5:.2g}"
        text += f", {height:.0f} nats" if is_evidence and height < -0.5 else ""
        ax.plot(value, height, marker, color=colour, label=text)
    ax.set_ylabel("log evidence less its largest (nats)" if is_evidence else _LABELS[name])
    ax.set_xscale("log")
    ax.set_xlabel("regularisation $\\lambda^2$ = 1 / SNR$^2$")
    ax.legend(frameon=False, fontsize="small", loc="lower right" if is_evidence else "best")
    return ax


def evidence_curve(posterior, lambda2):
    """Log evidence of some regularisations, other hyper-parameters as in the posterior.

    Parameters
    ----------
    posterior : SourcePosterior
    lambda2 : (k,) array

    Returns
    -------
    lambda2, log_evidence : (k,) arrays
        In nats, units of the data.
    """
    problem, model = posterior.problem, posterior.model
    known = {name: np.asarray(value, np.float64) for name, value in posterior.hyper.items()}
    # Levels that differ between channel groups do not go with one fixed spectrum.
    fixed = {name: value for name, value in known.items() if name != "noise_std"}
    prior, observed = posterior.answers.prior, posterior.observed
    likelihood = source_likelihood(model, problem, prior, Hyper(fixed, {}), observed)
    dtype = likelihood.data.dtype
    # Proportional to the source's variance, by the definition of lambda2.
    scales = known["source_std"] * np.sqrt(posterior.lambda2 / lambda2)
    known = {name: jnp.asarray(value, dtype) for name, value in known.items()}
    values = _evidences(likelihood, known, jnp.asarray(scales, dtype))
    jacobian = problem.log_jacobian * posterior.observed.mean()
    return lambda2, np.asarray(values, np.float64) + jacobian


@jax.jit
def _evidences(likelihood, known, scales):
    return jax.lax.map(lambda s: likelihood.log_density(known | {"source_std": s}), scales)


def _range(chosen):
    """Points around a choice that hold it and MNE's default."""
    low, high = (np.log10(f(chosen, _MNE)) for f in (min, max))
    points = np.linspace(min(low - 1, np.log10(chosen) - _DECADES), high + _DECADES, _N_POINTS)
    return np.unique(np.concatenate([10**points, [chosen, _MNE]]))


def _interval(lambda2, log_evidence, level=0.95):
    """Range of lambda2 that holds a share of the probability, its logarithm being uniform."""
    # The log evidence is smooth on the scale of its points, its exponential need not be.
    smooth = CubicSpline(np.log(lambda2), log_evidence)
    x = np.linspace(np.log(lambda2[0]), np.log(lambda2[-1]), _N_FINE)
    mass = np.exp(smooth(x) - log_evidence.max())
    share = np.cumsum(mass) / mass.sum()
    return np.exp(np.interp([0.5 - level / 2, 0.5 + level / 2], share, x))


def _choice(posterior):
    model = posterior.model
    if posterior.draws:
        return "mean of the draws"
    if posterior.curve is not None:
        return "chosen"
    is_given = model.lambda2 is not None or "source_std" not in posterior.hyper_std
    return "given" if is_given else "largest evidence"
