"""What there is to say of sparse sources, line by line."""

import numpy as np

from ..posterior.sparse import ENDS, NEARBY
from .source_text import residual_doubts, source_rows

__all__ = ["doubts", "facts", "method", "remarks", "table"]


# Probability below which a number of sources is not worth a word.
_RARE = 0.005
_PROOFS = {
    "gap": "duality gap",
    "gain": "last gain of the search in nats",
    "residual": "residual of stationarity",
    "r_hat": "R-hat",
}


def method(posterior):
    """Model and how it was computed."""
    loose = posterior.model.loose
    if posterior.mean.shape[1] == 1:
        orientation = "fixed orientation"
    else:
        orientation = "free orientation" if loose == 1 else f"loose orientation ({loose:g})"
    return f"{posterior.method} of {type(posterior.model).__name__}: {orientation}"


def facts(posterior):
    """Strength of the prior or level of the noise, number of active sources, certificate."""
    hyper, problem = posterior.hyper, posterior.problem
    lines = []
    if "alpha" in hyper:
        chosen = posterior.model.alpha
        how = f"chosen by {chosen.replace('_', '-')}" if isinstance(chosen, str) else "given"
        lines.append(f"Strength  {float(hyper['alpha']):.3g} of the one that silences all ({how})")
    if hasattr(posterior.model, "noise_std"):
        how = "given" if posterior.model.noise_std is not None else "found"
        lines += [
            f"Noise     level {level:.3g} relative to noise_cov ({name}, {how})"
            for level, name in zip(hyper["noise_std"], problem.group_names, strict=True)
        ]
    count = f"{len(posterior.support)} of {problem.n_sources} sources"
    if posterior.moments.exceedance is not None:
        lines.append(f"Loud      {count}")
    elif posterior.moments.inclusion is not None:
        pmf = posterior.n_active_pmf
        likely = ", ".join(f"{k} ({pmf[k]:.2f})" for k in np.argsort(-pmf)[:3] if pmf[k] >= _RARE)
        lines += [f"Active    {count} in the most probable draw", f"Number    {likely}"]
    else:
        lines.append(f"Active    {count}")
    certificate = dict(posterior.certificate)
    limit = certificate.pop("limit")
    ((name, value),) = certificate.items()
    lines.append(f"Proof     {_PROOFS[name]} {value:.3g}, asked for {limit:.3g}")
    return lines


def table(posterior):
    """The strongest active sources."""
    frame = posterior.summary()
    if frame.empty:
        return ["No source is active."]
    header, units, *rows = source_rows(frame)
    if posterior.moments.inclusion is None:
        return [header, units, *rows]
    width = max(len(row) for row in rows)
    near = f"prob_within_{1e3 * NEARBY:.0f}mm"
    header = f"{header:<{width}}  P(active)  P(one near)"
    pairs = zip(frame["inclusion_probability"], frame[near], strict=True)
    rows = [
        f"{row:<{width}}  {own:>9.2f}  {around:>11.2f}"
        for row, (own, around) in zip(rows, pairs, strict=True)
    ]
    return [header, units, *rows]


def remarks(posterior):
    """How to read the table."""
    if posterior.moments.inclusion is not None:
        return [
            f"Listed are the sources of the most probable draw. A column says how probable it is "
            f"that each is active, another that any source within {1e3 * NEARBY:.0f} mm is: read "
            "the second where neighbours share one response. Moments and deviations are averages "
            "over all draws, those where the source is silent among them."
        ]
    if posterior.is_sampled:
        return [
            "Listed are sources whose fields exceed the noise with a probability of a half or "
            "more. That does not make them needed: the law that was drawn has no zeros, and fields "
            "of neighbours may cancel."
        ]
    what = (
        "The moments are those of the most probable sources, not an average over what is possible"
        if posterior.is_mode
        else f"The moments are averages under the {ENDS[posterior.method]}"
    )
    return [
        f"{what}. Deviations hold if these sources are the active ones: whether they are is not in "
        "them, so do not read them as the uncertainty of a place."
    ]


def doubts(posterior):
    """What speaks against believing all of it."""
    lines = residual_doubts(posterior, is_dynamic=bool(posterior.moments.coefficient))
    if np.isfinite(posterior.log_evidence) and "alpha" in posterior.hyper:
        lines.append(
            "The evidence is that of data and active sources together, a lower bound of that of "
            "the data."
        )
    elif np.isfinite(posterior.log_evidence) and posterior.method == "sparse_bayes":
        lines.append(
            "The evidence is that at the best variances, an upper bound: do not compare it with "
            "integrated ones."
        )
    return lines
