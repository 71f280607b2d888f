"""What there is to say of sparse sources, line by line."""

import numpy as np

from .source_text import residual_doubts, source_rows

__all__ = ["doubts", "facts", "method", "remarks", "table"]


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
    word = "Loud      " if posterior.is_sampled else "Active    "
    lines.append(f"{word}{len(posterior.support)} of {problem.n_sources} sources")
    certificate = dict(posterior.certificate)
    limit = certificate.pop("limit")
    ((name, value),) = certificate.items()
    lines.append(f"Proof     {_PROOFS[name]} {value:.3g}, asked for {limit:.3g}")
    return lines


def table(posterior):
    """The strongest active sources."""
    frame = posterior.summary()
    return ["No source is active."] if frame.empty else source_rows(frame)


def remarks(posterior):
    """How to read the table."""
    if posterior.is_sampled:
        return [
            "Listed are sources whose fields exceed the noise with a probability of a half or "
            "more. That does not make them needed: the law behind a mixed norm is not sparse, only "
            "its most probable point is, and fields of neighbours may cancel."
        ]
    what = (
        "The moments are those of the most probable sources, not an average over what is possible"
        if posterior.is_mode
        else "The moments are averages under the variances of largest evidence"
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
