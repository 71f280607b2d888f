"""What there is to say of a posterior of dipoles, line by line."""

import numpy as np

__all__ = ["doubts", "facts", "method", "remarks", "table"]

# Residual samples this alike hold fewer independent values than the model counts.
_HIGH_AUTOCORRELATION = 0.3


def method(posterior):
    """How it was computed."""
    n_runs = posterior.n_runs
    return f"{posterior.method}, {n_runs} independent run{'s' if n_runs > 1 else ''}"


def facts(posterior):
    """Number and noise levels."""
    pmf, noise = posterior.n_dipoles_pmf, posterior.draws.noise_std
    listed = ", ".join(f"{n}: {p:.3f}" for n, p in enumerate(pmf) if p >= 5e-4)
    return [f"Number    {listed}"] + [
        f"Noise     {np.mean(noise[..., i]):.3f} ± {np.std(noise[..., i]):.3f} times the "
        f"given level ({name})"
        for i, name in enumerate(posterior.problem.group_names)
    ]


def table(posterior):
    """The dipoles."""
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


def remarks(posterior):
    """How far the places are spread."""
    volume = posterior.credible_volume(0.95)
    return [f"95 % of the expected dipoles lie within {volume:.1f} mL."]


def doubts(posterior):
    """What speaks against believing all of it."""
    lines = []
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
