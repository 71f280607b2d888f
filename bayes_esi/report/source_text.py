"""What there is to say of a posterior of distributed sources, line by line."""

import numpy as np

from ..models.source_hyper import step_of

__all__ = [
    "doubts",
    "facts",
    "method",
    "remarks",
    "residual_doubts",
    "source_rows",
    "table",
]

# Residual samples this alike hold fewer independent values than the model counts.
_HIGH_AUTOCORRELATION = 0.3
# Shares this close to an end of their range have run into it.
_NEAR_END = 0.01
_SHARES = {"depth": "Depth", "smoothness": "Smooth"}


def method(posterior):
    """Model and how it was computed."""
    model, problem = posterior.model, posterior.problem
    if not posterior.is_separable:
        links = model.transition.nnz / model.transition.shape[0]
        return f"{posterior.method} of CoupledSources: {links:.1f} links to each state"
    if posterior.mean.shape[1] == 1:
        orientation = "fixed orientation"
    else:
        is_free = model.loose == 1
        orientation = "free orientation" if is_free else f"loose orientation ({model.loose:g})"
    covariance = model.covariance if isinstance(model.covariance, str) else "given"
    law = f", {model.kernel} in time" if hasattr(model, "kernel") else ""
    left_out = problem.n_times - np.count_nonzero(posterior.observed)
    missing = f", {left_out} sample{'s' if left_out > 1 else ''} left out" if left_out else ""
    return (
        f"{posterior.method} of {type(model).__name__}: {orientation}, covariance {covariance}"
        f"{law}{missing}"
    )


def facts(posterior):
    """Hyper-parameters, each known or with its deviation, and the regularisation."""
    hyper, problem = posterior.hyper, posterior.problem
    if not posterior.is_separable:
        return [
            f"Noise     level {level:.3g} relative to noise_cov ({name})"
            for level, name in zip(hyper["noise_std"], problem.group_names, strict=True)
        ]
    lines = [f"Sources   std {_told(posterior, 'source_std', 1e9, is_relative=True)[0]} nA·m"]
    levels = _told(posterior, "noise_std", is_relative=True)
    lines += [
        f"Noise     level {level} relative to noise_cov ({name})"
        for level, name in zip(levels, problem.group_names, strict=True)
    ]
    for name, label in _SHARES.items():
        is_whole = name == "smoothness" and float(hyper[name]) == 1 and name not in _free(posterior)
        if not is_whole:
            lines.append(f"{label:<10}{_told(posterior, name)[0]}")
    if "time_scale" in hyper:
        text = _told(posterior, "time_scale", 1e3, is_relative=True)[0]
        lines.append(f"Time      scale {text} ms{_coefficient(posterior)}")
    for name, label in (("coefficient", "coefficient"), ("partial", "partial autocorrelation")):
        if name in hyper:
            lines.append(f"Time      {label} {', '.join(_told(posterior, name))}")
    how = ""
    if posterior.curve is not None:
        how = f", chosen by {posterior.curve.name.replace('_', '-')}"
    lambda2 = posterior.lambda2
    lines.append(f"Ratio     SNR {lambda2**-0.5:.3g}, lambda2 {lambda2:.3g}{how}")
    return lines


def table(posterior):
    """The sources that stand out most."""
    frame = posterior.summary()
    return ["No source stands out."] if frame.empty else source_rows(frame)


def source_rows(frame):
    """Lines of a table of sources."""
    header = "source      x      y      z     peak    moment"
    units = "           mm     mm     mm       ms      nA·m"
    rows = [
        f"{row.source:>6}  {row.x_mm:>5.1f}  {row.y_mm:>5.1f}  {row.z_mm:>5.1f}"
        f"  {1e3 * row.peak_time_s:>7.1f}  {row.peak_nAm:.3g} ± {row.peak_std_nAm:.2g}"
        for row in frame.itertuples()
    ]
    return [header, units, *rows]


def remarks(posterior):
    """How to read the table."""
    frame = posterior.summary()
    lines = [
        "Listed are the sources whose mean stands out most from its deviation among their "
        "neighbours: distributed estimates are blurred, so a place is that of a blur."
    ]
    if not frame.empty and np.all(frame["peak_nAm"] < 1.96 * frame["peak_std_nAm"]):
        lines.append(
            "No single source is away from zero with 95 % probability: the data speak of sums over "
            "many sources."
        )
    return lines


def doubts(posterior):
    """What speaks against believing all of it."""
    is_dynamic = hasattr(posterior.model, "kernel") or not posterior.is_separable
    lines = residual_doubts(posterior, is_dynamic=is_dynamic)
    for name in _free(posterior):
        value = np.ravel(posterior.hyper[name])
        if name in _SHARES and np.any(np.minimum(value, 1 - value) < _NEAR_END):
            lines.append(
                f"{name} ran into an end of its range ({value[0]:.2f}): the range and not the data "
                "set it."
            )
    lines += _doubts_of_memory(posterior) if "time_scale" in _free(posterior) else []
    return lines


def residual_doubts(posterior, *, is_dynamic):
    """Whether the residual is the white noise that the model takes it for."""
    correlation = posterior.residual_autocorrelation
    if not correlation > _HIGH_AUTOCORRELATION:
        return []
    told = f"The residual is correlated in time (neighbouring samples: {correlation:.2f}), but "
    if is_dynamic:
        return [
            f"{told}the model takes the noise as independent: bands are narrower here than the "
            "data allow. Decimating to twice the low-pass frequency mends most of it."
        ]
    return [
        f"{told}the model takes samples as independent: use AutoregressiveSources, which "
        "gives the sources a memory, and compare the evidences."
    ]


def _doubts_of_memory(posterior):
    scale, step = float(posterior.hyper["time_scale"]), step_of(posterior.problem)
    if scale > step * posterior.problem.n_times:
        return [
            "The time scale is longer than the window: the data do not tell sources with a long "
            "memory from constant ones."
        ]
    if scale < step / 2:
        return [
            "The time scale is shorter than half a sample: the sources have no memory, and "
            "GaussianSources says the same."
        ]
    return []


def _free(posterior):
    return tuple(posterior.hyper_std)


def _told(posterior, name, factor=1.0, is_relative=False):
    """Each entry of a hyper-parameter with its deviation, or as given."""
    values = np.ravel(np.asarray(posterior.hyper[name], np.float64))
    if name not in posterior.hyper_std:
        # Of a curve's choice the value is neither given nor has it a deviation.
        is_chosen = name == "source_std" and posterior.curve is not None
        how = "chosen" if is_chosen else "given"
        return [f"{factor * value:.4g} ({how})" for value in values]
    stds = np.ravel(posterior.hyper_std[name])
    # Relative, as the deviation of a logarithm, unless drawn.
    stds = stds * values if is_relative and not posterior.draws else stds
    return [f"{factor * v:.4g} ± {factor * s:.2g}" for v, s in zip(values, stds, strict=True)]


def _coefficient(posterior):
    model = posterior.model
    if model.kernel != "autoregressive" or model.order > 1:
        return ""
    value = np.exp(-step_of(posterior.problem) / float(posterior.hyper["time_scale"]))
    return f", coefficient {value:.3f}"
