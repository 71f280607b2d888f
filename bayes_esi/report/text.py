"""A result in words: what was found, how sure, and what to doubt."""

import numpy as np

__all__ = ["describe"]

# Residual samples this alike hold fewer independent values than the model counts.
_HIGH_AUTOCORRELATION = 0.3


def describe(posterior):
    """Describe a dipole posterior in plain text.

    Parameters
    ----------
    posterior : DipolePosterior

    Returns
    -------
    str
    """
    problem, pmf = posterior.problem, posterior.n_dipoles_pmf
    kinds = ", ".join(
        f"{problem.ch_types.count(kind)} {kind}" for kind in dict.fromkeys(problem.ch_types)
    )
    listed = ", ".join(f"{n}: {p:.3f}" for n, p in enumerate(pmf) if p >= 5e-4)
    lines = [
        f"Data      {problem.n_channels} channels ({kinds}) of rank {problem.data.shape[0]}, "
        f"{problem.n_times} samples from {1e3 * problem.times[0]:.0f} to "
        f"{1e3 * problem.times[-1]:.0f} ms, {problem.n_sources} places",
        f"Method    {posterior.method}, {posterior.n_runs} independent "
        f"run{'s' if posterior.n_runs > 1 else ''}",
        f"Status    {posterior.status.name}: {posterior.status.cause}",
        f"Evidence  {posterior.log_evidence:.2f} ± {posterior.log_evidence_std:.2f} nats",
        f"Number    {listed}",
    ]
    noise = posterior.draws.noise_std
    for i, name in enumerate(problem.group_names):
        lines.append(
            f"Noise     {np.mean(noise[..., i]):.3f} ± {np.std(noise[..., i]):.3f} times the "
            f"given level ({name})"
        )
    lines += ["", *_table(posterior), ""]
    volume = posterior.credible_volume(0.95)
    lines.append(f"95 % of the expected dipoles lie within {volume:.1f} mL.")
    lines += _doubts(posterior)
    lines.append("Not a medical device: for research only.")
    return "\n".join(lines) + "\n"


def _table(posterior):
    frame = posterior.summary()
    if frame.empty:
        return ["No draw of the posterior holds a dipole."]
    header = "dipole  probability      x      y      z  spread   volume     peak    moment"
    units = "                           mm     mm     mm      mm       mL       ms      nA·m"
    rows = [
        f"{i:>6}  {row.probability:>11.3f}  {row.x_mm:>5.1f}  {row.y_mm:>5.1f}  {row.z_mm:>5.1f}"
        f"  {row.spread_mm:>6.1f}  {row.credible_volume_mL:>7.2f}  {1e3 * row.peak_time_s:>7.1f}"
        f"  {row.peak_nAm:.3g} ± {row.peak_std_nAm:.2g}"
        for i, row in enumerate(frame.itertuples(), start=1)
    ]
    return [header, units, *rows]


def _doubts(posterior):
    lines = []
    if not posterior.status.is_trustworthy:
        lines.append(f"DO NOT TRUST THIS RESULT. Remedy: {posterior.status.remedy}.")
    if posterior.n_runs == 1 and posterior.method != "enumerate":
        lines.append("A single run says nothing of its own error: use at least two.")
    correlation = posterior.residual_autocorrelation
    if correlation > _HIGH_AUTOCORRELATION:
        lines.append(
            f"The residual is correlated in time (neighbouring samples: {correlation:.2f}), but "
            "the model takes samples as independent: number and places are surer here than the "
            "data allow. Decimating to twice the low-pass frequency mends most of it."
        )
    return lines
