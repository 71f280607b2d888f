"""A result in words: what was found, how sure, and what to doubt."""

import numpy as np

from ..posterior.dipoles import DipolePosterior
from ..posterior.sparse import SparsePosterior
from ..posterior.tracks import TrackPosterior
from . import dipole_text, source_text, sparse_text, track_text

__all__ = ["describe"]

_WORDS = {
    DipolePosterior: dipole_text,
    SparsePosterior: sparse_text,
    TrackPosterior: track_text,
}


def describe(posterior):
    """Describe a posterior in plain text.

    Parameters
    ----------
    posterior : DipolePosterior, TrackPosterior, SourcePosterior or SparsePosterior

    Returns
    -------
    str
    """
    own = _WORDS.get(type(posterior), source_text)
    problem, status = posterior.problem, posterior.status
    kinds = ", ".join(
        f"{problem.ch_types.count(kind)} {kind}" for kind in dict.fromkeys(problem.ch_types)
    )
    start, stop = 1e3 * problem.times[0], 1e3 * problem.times[-1]
    lines = [
        f"Data      {problem.n_channels} channels ({kinds}) of rank {problem.data.shape[0]}, "
        f"{problem.n_times} samples from {start:z.0f} to {stop:z.0f} ms, "
        f"{problem.n_sources} places",
        f"Method    {own.method(posterior)}",
        f"Status    {status.name}: {status.cause}",
        f"Evidence  {_evidence(posterior)}",
        *own.facts(posterior),
        "",
        *own.table(posterior),
        "",
        *own.remarks(posterior),
    ]
    if not status.is_trustworthy:
        lines.append(f"DO NOT TRUST THIS RESULT. Remedy: {status.remedy}.")
    lines += own.doubts(posterior)
    lines.append("Not a medical device: for research only.")
    return "\n".join(lines) + "\n"


def _evidence(posterior):
    if not np.isfinite(posterior.log_evidence):
        return f"none: {posterior.method} does not compute it"
    return f"{posterior.log_evidence:.2f} ± {posterior.log_evidence_std:.2f} nats"
