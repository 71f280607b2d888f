"""What the data say about the hyper-parameters of distributed sources.

Draws are shown as they are. Otherwise the posterior is taken as Gaussian around the largest
evidence, scales in their logarithm, and cut at the ends of the prior.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from ..models.source_hyper import hyper_of, step_of
from .common import COLOURS, new_axes, write_note

__all__ = ["plot_hyper"]

SCALES = ("source_std", "noise_std", "time_scale")
_LABELS = {  # name: label, unit, factor from SI
    "source_std": ("source std", "nA·m", 1e9),
    "noise_std": ("noise level", "relative to noise_cov", 1.0),
    "depth": ("depth exponent", "", 1.0),
    "smoothness": ("share of correlated sources", "", 1.0),
    "coefficient": ("autoregressive coefficient", "", 1.0),
    "partial": ("partial autocorrelation", "", 1.0),
    "time_scale": ("time scale", "ms", 1e3),
}
_N_COLUMNS = 3
_N_POINTS = 400
_WIDTH = 4.0  # standard deviations shown to each side


class _Entry(NamedTuple):
    """One unknown number."""

    name: str
    label: str
    factor: float
    centre: float
    std: float  # relative for scales
    draws: object  # (n,) array or None
    prior: object  # value in SI -> density in SI


def plot_hyper(posterior, *, axes=None):
    """Draw the posterior of each unknown hyper-parameter, with its prior.

    Parameters
    ----------
    posterior : SourcePosterior
    axes : sequence of Axes, optional
        Panels for the first unknowns; those left over are switched off.

    Returns
    -------
    (n_panels,) array of Axes
        Densities. With drawn hyper-parameters a histogram of all chains, else the Gaussian
        approximation; the line is the value at the largest evidence or the mean of the draws,
        the bar holds 95 %.
    """
    entries = _entries(posterior)
    if axes is None:
        n_columns = min(max(len(entries), 1), _N_COLUMNS)
        axes = new_axes(max(-(-len(entries) // n_columns), 1), n_columns, (3.8, 3.0))
    axes = np.asarray(axes, dtype=object).ravel()
    for number, (ax, entry) in enumerate(zip(axes, entries, strict=False)):
        _draw(ax, entry, COLOURS[number % len(COLOURS)])
        if entry.name == "time_scale" and _is_first_order(posterior.model):
            coefficient = np.exp(-step_of(posterior.problem) / entry.centre)
            ax.set_title(f"coefficient a = {coefficient:.3f} per sample", fontsize="medium")
    for ax in axes[max(len(entries), 1) :]:
        ax.set_axis_off()
    if not entries:
        write_note(axes[0], "every hyper-parameter was given")
        return axes
    axes[0].legend(frameon=False, fontsize="x-small")
    return axes


def _is_first_order(model):
    return getattr(model, "kernel", None) == "autoregressive" and model.order == 1


def _entries(posterior):
    laws = _laws(posterior)
    entries = []
    for name, std in posterior.hyper_std.items():
        centres = np.ravel(posterior.hyper[name])
        draws = posterior.draws.get(name)
        draws = None if draws is None else np.reshape(draws, (-1, centres.size))
        label, unit, factor = _LABELS[name]
        for i, (centre, deviation) in enumerate(zip(centres, np.ravel(std), strict=True)):
            part = _part(name, i, centres.size, posterior.problem)
            text = " ".join(filter(None, (label, part, f"({unit})" if unit else "")))
            own = None if draws is None else draws[:, i]
            prior = _prior(laws.get(name), i)
            entries.append(_Entry(name, text, factor, centre, deviation, own, prior))
    return entries


def _part(name, i, n_entries, problem):
    if name == "noise_std":
        return problem.group_names[i] if problem.n_groups > 1 else ""
    return str(i + 1) if n_entries > 1 else ""


def _laws(posterior):
    model, prior = posterior.model, posterior.answers.prior
    typical = [
        0.5 if value is None or hasattr(value, "log_prob") else float(value)
        for value in (model.depth, model.smoothness)
    ]
    return hyper_of(model, posterior.problem, prior.gram(*typical)).unknown


def _prior(law, i):
    if law is None:
        return None

    def density(values):
        values = np.asarray(values)[:, None] * np.ones(law.shape() or (1,))
        values = values.reshape(-1, *law.shape()) if law.shape() else values[:, 0]
        inside = np.asarray(law.support(values))
        safe = np.where(inside, values, np.asarray(law.mean))
        found = np.where(inside, np.exp(np.asarray(law.log_prob(safe))), 0.0)
        return found.reshape(len(found), -1)[:, i]

    return density


def _draw(ax, entry, colour):
    is_scale = entry.name in SCALES
    if entry.draws is not None:
        ends = np.quantile(entry.draws, [0.025, 0.975])
        low, high = entry.draws.min(), entry.draws.max()
        shown = entry.factor * entry.draws
        ax.hist(shown, bins=40, density=True, color=colour, alpha=0.5, label="draws")
        values = np.linspace(low, high, _N_POINTS) if high > low else np.array([low])
    else:
        # In logarithms where it is a scale, so that nothing lies below zero.
        centre = np.log(entry.centre) if is_scale else entry.centre
        x = centre + entry.std * np.linspace(-_WIDTH, _WIDTH, _N_POINTS)
        ends = centre + norm.ppf(0.975) * entry.std * np.array([-1, 1])
        density = norm.pdf(x, centre, entry.std)
        values = np.exp(x) if is_scale else x
        density = density / values if is_scale else density
        ends = np.exp(ends) if is_scale else ends
        if entry.prior is not None:
            inside = entry.prior(values) > 0
            values, density = values[inside], density[inside]
            ends = np.clip(ends, values.min(), values.max())
        ax.fill_between(entry.factor * values, density / entry.factor, color=colour, alpha=0.35)
        ax.plot(
            entry.factor * values,
            density / entry.factor,
            color=colour,
            label="posterior (Gaussian)",
        )
    if entry.prior is not None:
        ax.plot(
            entry.factor * values,
            entry.prior(values) / entry.factor,
            color="0.4",
            ls="--",
            lw=1,
            label="prior",
        )
    ax.axvline(entry.factor * entry.centre, color=colour, lw=1)
    ax.set(xlabel=entry.label, ylabel="probability density")
    top = ax.get_ylim()[1]
    bar = {"color": colour, "lw": 5, "solid_capstyle": "butt", "label": "95 %"}
    ax.plot(entry.factor * ends, [-0.03 * top] * 2, **bar)
    ax.set_ylim(-0.06 * top, 1.25 * top)
