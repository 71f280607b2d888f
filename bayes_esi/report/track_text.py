"""What there is to say of a posterior of dipoles that come and go, line by line."""

import numpy as np

__all__ = ["doubts", "facts", "method", "remarks", "table"]

# Residual samples this alike hold fewer independent values than the model counts.
_HIGH_AUTOCORRELATION = 0.3
_MAX_STRETCHES = 8  # of one most probable number that are listed
# Distinct ancestors below which a share has an error of more than a fifth.
_FEW_ANCESTORS = 25
_OPEN = 0.025  # probability of outliving the data that opens a 95 % interval


def method(posterior):
    """How it was computed."""
    n_runs = posterior.n_runs
    return f"{posterior.method}, {n_runs} independent run{'s' if n_runs > 1 else ''}"


def facts(posterior):
    """Number over time, births and deaths, scales."""
    draws, model = posterior.draws, posterior.model
    birth = _told(posterior, draws.birth_prob, model.birth_prob)
    death = _told(posterior, draws.death_prob, model.death_prob)
    moment = _told(posterior, 1e9 * draws.moment_std, model.moment_std)
    motion = "in place" if model.motion == "static" else f"walking, {1e3 * model.motion:.3g} mm"
    lines = [
        f"Number    {_number(posterior)}",
        f"Lives     {posterior.birth_intensity.sum():.2f} births expected; probabilities a sample: "
        f"birth {birth}, death {death}; {motion}",
        f"Moments   std {moment} nA·m, persistence {model.moment_persistence:g} a sample",
    ]
    for i, name in enumerate(posterior.problem.group_names):
        level = _told(posterior, draws.noise_std[..., i], model.noise_std)
        lines.append(f"Noise     {level} times the given level ({name})")
    return lines


def table(posterior):
    """The tracks."""
    frame = posterior.summary()
    if frame.empty:
        return ["No track holds enough probability."]
    header = (
        "track  probability    birth      (95 %)    death      (95 %)"
        "      x      y      z  spread   volume     peak    moment"
    )
    units = (
        "                         ms          ms       ms          ms"
        "     mm     mm     mm      mm       mL       ms      nA·m"
    )
    rows = []
    for i, (row, track) in enumerate(
        zip(frame.itertuples(), posterior.tracks(), strict=True), start=1
    ):
        born = f"{1e3 * row.birth_low_s:z.0f} to {1e3 * row.birth_high_s:z.0f}"
        is_open = track.death_pmf[-1] > _OPEN
        high = "end" if is_open else f"{1e3 * row.death_high_s:z.0f}"
        died = f"{1e3 * row.death_low_s:z.0f} to {high}"
        rows.append(
            f"{i:>5}  {row.probability:>11.3f}"
            f"  {1e3 * row.birth_s:>z7.1f}  {born:>10}  {1e3 * row.death_s:>z7.1f}  {died:>10}"
            f"  {row.x_mm:>z5.1f}  {row.y_mm:>z5.1f}  {row.z_mm:>z5.1f}  {row.spread_mm:>6.1f}"
            f"  {row.credible_volume_mL:>7.2f}  {1e3 * row.peak_time_s:>z7.1f}"
            f"  {row.peak_nAm:.3g} ± {row.peak_std_nAm:.2g}"
        )
    return [header, units, *rows]


def remarks(posterior):
    """How to read the table, and what the samples are told by."""
    lines = []
    tracks = posterior.tracks()
    if tracks:
        lines.append(
            "Births and deaths are the first and last samples of a life, posterior mean and 95 % "
            "interval; all but the probability is given that the track exists."
        )
    for i, track in enumerate(tracks, start=1):
        if track.death_pmf[-1] > _OPEN:
            lines.append(
                f"Track {i} is alive at the end of the data with probability "
                f"{track.death_pmf[-1]:.2f}, given that it exists: its death may lie beyond."
            )
    lines.append(
        f"95 % of the expected dipoles, over all samples, lie within "
        f"{posterior.credible_volume(0.95):.1f} mL."
    )
    if posterior.method == "particle_filter":
        lines.append(
            "A filter: numbers and intensity at a sample are given the data up to it, as they "
            "would be known at that time, so onsets come late and places are poor at first. Tracks "
            "are the ancestral lines of the last particles, given all data. For births, deaths and "
            "places after the fact use particle_smoother."
        )
    else:
        lines.append(
            "Numbers, places and tracks at every sample are given all data, those after it "
            "included; what could be known at that time is told by particle_filter."
        )
    return lines


def doubts(posterior):
    """What speaks against believing all of it."""
    lines = []
    if posterior.n_runs == 1:
        lines.append("A single run says nothing of its own error: use at least two.")
    rare = [i for i, t in enumerate(posterior.tracks(), start=1) if t.probability < 0.5]
    if rare:
        lines.append(
            f"More likely absent than not: track{'s' if len(rare) > 1 else ''} "
            f"{', '.join(map(str, rare))}."
        )
    lines += _doubts_of_lines(posterior)
    correlation = posterior.residual_autocorrelation
    if correlation > _HIGH_AUTOCORRELATION:
        lines.append(
            f"The residual is correlated in time (neighbouring samples: {correlation:.2f}), but "
            "the model takes the noise as independent: lives and places are surer here than the "
            "data allow. Decimating to twice the low-pass frequency mends most of it."
        )
    return lines


def _doubts_of_lines(posterior):
    """Of a filter: whether its final particles still hold several hypotheses of the past."""
    n_ancestors = posterior.draws.trace.get("n_ancestors")
    if posterior.method != "particle_filter" or n_ancestors is None:
        return []
    pooled = np.sum(n_ancestors, axis=0)
    is_told = posterior.birth_intensity > 0.01  # samples at which somebody may be born
    few = np.flatnonzero(is_told & (pooled < _FEW_ANCESTORS))
    if not few.size:
        return []
    last, fewest = 1e3 * posterior.problem.times[few[-1]], pooled[few].min()
    return [
        f"Births up to {last:z.0f} ms rest on few lines of particles ({fewest:.0f} distinct "
        "ancestors in all runs), so their intervals are too narrow; particle_smoother draws them "
        "afresh."
    ]


def _number(posterior):
    """The most probable number of dipoles, stretch by stretch, with its least probability."""
    pmf, times = posterior.n_dipoles_pmf, 1e3 * posterior.problem.times
    most = np.argmax(pmf, axis=1)
    starts = np.flatnonzero(np.diff(most, prepend=-1))
    expected = pmf @ np.arange(pmf.shape[1])
    peak = int(np.argmax(expected))
    told = f"at most {expected[peak]:.2f} expected, at {times[peak]:z.0f} ms"
    if len(starts) > _MAX_STRETCHES:
        return f"{told}; the most probable one changes {len(starts) - 1} times"
    stretches = []
    for start, stop in zip(starts, [*starts[1:], len(most)], strict=True):
        number = most[start]
        least = pmf[start:stop, number].min()
        stretches.append(f"{number} from {times[start]:z.0f} ms (p ≥ {least:.2f})")
    return f"{', '.join(stretches)}; {told}"


def _told(posterior, values, given):
    """A parameter: the number that was given, or mean and deviation over the draws."""
    weights = np.repeat(posterior.run_weights / values.shape[1], values.shape[1])
    mean = weights @ values.ravel()
    if given is not None and not hasattr(given, "log_prob"):
        return f"{mean:.3g} (given)"
    std = np.sqrt(weights @ (values.ravel() - mean) ** 2)
    return f"{mean:.3g} ± {std:.2g}"
