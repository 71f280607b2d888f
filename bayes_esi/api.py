"""The few verbs of the package."""

import warnings

import jax
import numpy as np

from .core import ports
from .core.checks import check_choice
from .core.status import InferenceError
from .inference import registry
from .models.problem import Problem
from .models.source_likelihood import prepare
from .posterior.assemble import assemble
from .posterior.maps import clara, lcmv

__all__ = [
    "clara",
    "compare",
    "example_recording",
    "from_mne",
    "infer",
    "lcmv",
    "load",
    "methods",
    "template_head",
]


def from_mne(evoked, forward, noise_cov, tmin=None, tmax=None):
    """Build a `Problem` from MNE objects; see `bayes_esi.io.mne.from_mne`."""
    from .io.mne import from_mne

    return from_mne(evoked, forward, noise_cov, tmin=tmin, tmax=tmax)


def example_recording(seed=0):
    """Simulate an EEG response of two sources; see `bayes_esi.io.example`."""
    from .io.example import example_recording

    return example_recording(seed)


def template_head():
    """Average head with cortex, skulls and skin; see `bayes_esi.io.template_files`."""
    from .io.template_files import template_head

    return template_head()


def methods(model):
    """Names of the methods that serve a model, the default first."""
    return registry.methods(model)


def infer(
    model, problem, key=None, method=None, progress=True, *, throw=True, checkpoint=None, **options
):
    """Compute the posterior of a model given a problem.

    Parameters
    ----------
    model
        A model of this package: the keys of `bayes_esi.inference.registry.METHODS`.
    problem : Problem
    key : PRNG key, optional
        Of `jax.random`; by default ``jax.random.key(0)``. The same key gives the same result.
    method : str, optional
        One of ``methods(model)``; by default the first.
    progress : bool
        Whether to show a progress bar for what takes longer than two seconds.
    throw : bool
        Whether a result that cannot be trusted raises `InferenceError`. Its attribute
        `posterior` holds the result; with ``throw=False`` it is returned with its status.
    checkpoint : path-like, optional
        Stem of files that keep the state of the run, so that calling again after an interruption
        continues and gives the same bits. They are removed when the runs are complete.
    **options
        Of dipoles: `n_particles`, `n_runs` (independent repeats: chains, and the error of the
        evidence), `ess_threshold`, `memory_limit` (bytes for tabulated Gram blocks) and others; see
        `bayes_esi.inference.dipole_inference.OPTIONS`, of dynamic dipoles those of
        `bayes_esi.inference.track_inference.OPTIONS`. Of distributed sources: `regularisation`
        ("evidence", "gcv" or "l_curve"), `missing` (bool, by sample or channel and sample),
        `n_chains`, `n_warmup`, `n_samples`; see `bayes_esi.inference.source_inference.OPTIONS`. Of
        sparse sources: `debias`, `tol`, `max_steps` and others, see
        `bayes_esi.inference.sparse_inference.OPTIONS`, `hierarchical_inference.OPTIONS`.

    Returns
    -------
    SourcePosterior, SparsePosterior, DipolePosterior or TrackPosterior

    Raises
    ------
    ValueError
        On arguments that make no sense, before anything is compiled.
    InferenceError
        If the result cannot be trusted.
    """
    name, runner = registry.find(model, method)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"problem must be a Problem, got {type(problem).__name__}; build one with "
            "bayes_esi.from_mne or Problem.from_arrays."
        )
    key = _check_key(key)
    options = runner.check_options(name, options)
    _warn_of_single_precision(problem)
    result = runner.run(
        name, key, model, problem, options, progress=progress, checkpoint=checkpoint
    )
    posterior = assemble(model, problem, name, result)
    if throw and not posterior.status.is_trustworthy:
        raise InferenceError(posterior.status, posterior)
    return posterior


def compare(posteriors):
    """Compare models by their evidence for the same data.

    Parameters
    ----------
    posteriors : dict of str to posterior
        At least two, of the same data.

    Returns
    -------
    pandas.DataFrame
        Best first: `log_evidence` and `log_evidence_std` in nats, `log_bayes_factor` against
        the best and its standard error, and `probability` under equal prior probabilities.

    Raises
    ------
    ValueError
        If the posteriors belong to different data, or one has no evidence.
    """
    import pandas as pd

    if not isinstance(posteriors, dict) or len(posteriors) < 2:
        raise ValueError("posteriors must be a dict of at least two posteriors by name.")
    first, *others = [p.problem for p in posteriors.values()]
    for problem in others:
        difference = _difference_of_data(first, problem)
        if difference:
            raise ValueError(
                f"posteriors must belong to the same data: their {difference}, so their evidences "
                "cannot be compared."
            )
    without = [name for name, p in posteriors.items() if np.isnan(p.log_evidence)]
    if without:
        raise ValueError(
            f"posteriors must have evidences, but the method of {without[0]!r} "
            f"({posteriors[without[0]].method}) computes none; leave it out."
        )
    frame = pd.DataFrame(
        {
            name: {
                "log_evidence": p.log_evidence,
                "log_evidence_std": p.log_evidence_std,
                "status": p.status.name,
            }
            for name, p in posteriors.items()
        }
    ).T.astype({"log_evidence": float, "log_evidence_std": float})
    frame = frame.sort_values("log_evidence", ascending=False)
    best = frame.iloc[0]
    frame["log_bayes_factor"] = frame["log_evidence"] - best["log_evidence"]
    errors = np.hypot(frame["log_evidence_std"], best["log_evidence_std"])
    errors.iloc[0] = 0.0
    frame["log_bayes_factor_std"] = errors
    odds = np.exp(frame["log_bayes_factor"])
    frame["probability"] = odds / odds.sum()
    frame.index.name = "model"
    return frame


def load(path):
    """Read what the `save` of a posterior or of a lead field wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    SourcePosterior, DipolePosterior, TrackPosterior or LeadField

    Raises
    ------
    ValueError
        If the file is missing, damaged, or was not written by this package.
    """
    from .io import netcdf

    tree = netcdf.read(path, kind=None)
    if netcdf.kind_of(tree) == "lead_field":
        from .io._lead_field_file import lead_field_from_tree

        return lead_field_from_tree(tree)
    from .posterior.archive import from_datatree

    return from_datatree(tree)


def _difference_of_data(problem, other):
    """What two problems do not share of the recording that they explain, in words; else ""."""
    if problem.ch_names != other.ch_names or not np.array_equal(problem.times, other.times):
        return "channels or times differ"
    if len(problem.data) != len(other.data):
        return "projectors or ranks differ"
    recorded, recorded_other = (np.linalg.pinv(p.whitener) @ p.data for p in (problem, other))
    # Whitened and coloured again, in single precision if the lead field came in it.
    close = np.abs(recorded - recorded_other) <= 1e-4 * np.abs(recorded).max(axis=1, keepdims=True)
    return "" if np.all(close) else "samples differ"


def _check_key(key):
    if key is None:
        return jax.random.key(0)
    if not (hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"key must be a typed PRNG key such as jax.random.key(0), got {type(key).__name__}."
        )
    if key.shape != ():
        raise ValueError(f"key must be a single key, got shape {key.shape}.")
    return key


def _warn_of_single_precision(problem):
    if jax.dtypes.canonicalize_dtype(problem.lead_field.dtype) == np.float32:
        warnings.warn(
            "computing in float32: log evidences lose digits on long recordings; call "
            "jax.config.update('jax_enable_x64', True) first.",
            stacklevel=3,
        )


def _save(posterior, path):
    from .io import netcdf
    from .posterior.archive import to_archive

    netcdf.write(to_archive(posterior), path)


def _dipoles_to_mne(posterior):
    from .io.mne import dipoles_to_mne, source_estimate

    problem = posterior.problem
    dipoles = dipoles_to_mne(problem, posterior.dipoles())
    return dipoles, source_estimate(problem, posterior.intensity)


def _tracks_to_mne(posterior):
    from .io.mne import source_estimate, tracks_to_mne

    problem = posterior.problem
    tracks = tracks_to_mne(problem, posterior.tracks())
    return tracks, source_estimate(problem, posterior.intensity.T)


def _sources_to_mne(posterior, quantity):
    from .io.mne import source_estimate

    is_moment = quantity in ("mean", "std")
    values = getattr(posterior, quantity) if is_moment else posterior.statistic(quantity)
    return source_estimate(posterior.problem, values)


def _sparse_to_mne(posterior, quantity):
    from .io._mne_dipoles import sources_to_dipoles
    from .io._mne_labels import sources_to_labels

    active = posterior.peaks
    if quantity == "dipoles":
        return sources_to_dipoles(posterior.problem, active, posterior.mean[active])
    if quantity == "labels":
        strength = np.linalg.norm(posterior.mean[active], axis=1).max(axis=1)
        return sources_to_labels(posterior.problem, active, strength, "active")
    return _sources_to_mne(posterior, quantity)


def _map_to_mne(source_map, quantity):
    from .io.mne import source_estimate

    quantity = check_choice("quantity", quantity, ("values", "power"))
    return source_estimate(source_map.problem, getattr(source_map, quantity))


def _plot_power(source_map, **kwargs):
    from .viz.source_map import plot_power

    return plot_power(source_map, **kwargs)


def _data_cov(problem, data_cov):
    from .io._channels import covariance_of

    return covariance_of(data_cov, problem.ch_names)


def _plot_dipoles(posterior, kind, **kwargs):
    if kind in ("cortex", "glass_brain"):
        from .viz import brain as drawings

        kwargs["head"] = template_head()
    else:
        from .viz import dipoles as drawings
    return getattr(drawings, f"plot_{kind}")(posterior, **kwargs)


def _plot_tracks(posterior, kind, **kwargs):
    from .viz import tracks

    if kind in ("cortex", "glass_brain"):
        kwargs["head"] = template_head()
    return getattr(tracks, f"plot_{kind}")(posterior, **kwargs)


def _plot_sources(posterior, kind, **kwargs):
    from .viz import sources

    if kind in ("cortex", "glass_brain"):
        kwargs["head"] = template_head()
    return getattr(sources, f"plot_{kind}")(posterior, **kwargs)


def _moving_to_mne(posterior):
    from .io.mne import dipoles_to_mne

    return dipoles_to_mne(posterior.problem, posterior.dipoles())


def _dipole_program(model, problem, n_dipoles, operator):
    from .inference.off_grid import numpyro_program

    return numpyro_program(model, problem, n_dipoles, operator)


def _program(model, problem):
    from .distributions.programs import source_program

    return source_program(model, problem)


def _lead_field(model, info, source_pos, **options):
    from .io.mne_forward import compute_forward

    return compute_forward(model, info, source_pos, **options)


def _bem_from_mne(kind, bem, conductivity, trans):
    from .io.mne_forward import bem_surfaces_of

    return kind(*bem_surfaces_of(bem, trans), conductivity)


def _lead_field_to_mne(lead_field, **parts):
    from .io.mne_forward import lead_field_to_mne

    return lead_field_to_mne(lead_field, **parts)


def _lead_field_from_mne(kind, forward):
    del kind
    from .io.mne_forward import lead_field_from_mne

    return lead_field_from_mne(forward)


def _save_lead_field(lead_field, path):
    from .io.mne_forward import save_lead_field

    save_lead_field(lead_field, path)


def _info(head, *args, **kwargs):
    from .io.template_files import info_of

    return info_of(head, *args, **kwargs)


def _source_space(head, order):
    from .io.template_files import source_space_of

    return source_space_of(head, order)


def _track_filter(model, problem, **options):
    from .posterior.track_stream import TrackFilter

    return TrackFilter(model, problem, **options)


for class_name, verbs in {
    "DipolePosterior": {"save": _save, "to_mne": _dipoles_to_mne, "plot": _plot_dipoles},
    "SourcePosterior": {"save": _save, "to_mne": _sources_to_mne, "plot": _plot_sources},
    "SparsePosterior": {"save": _save, "to_mne": _sparse_to_mne, "plot": _plot_sources},
    "TrackPosterior": {"save": _save, "to_mne": _tracks_to_mne, "plot": _plot_tracks},
    "SourceMap": {"to_mne": _map_to_mne, "plot": _plot_power},
    "Problem": {"data_cov": _data_cov},
    "OffGridPosterior": {"to_mne": _moving_to_mne},
    "StaticDipoles": {"numpyro": _dipole_program},
    "DynamicDipoles": {"stream": _track_filter},
    "GaussianSources": {"numpyro": _program, "prepare": prepare},
    "AutoregressiveSources": {"numpyro": _program, "prepare": prepare},
    "Sphere": {"lead_field": _lead_field},
    "BEM": {"lead_field": _lead_field, "from_mne": _bem_from_mne},
    "FEM": {"lead_field": _lead_field},
    "LeadField": {
        "save": _save_lead_field,
        "to_mne": _lead_field_to_mne,
        "from_mne": _lead_field_from_mne,
    },
    "TemplateHead": {"info": _info, "source_space": _source_space},
}.items():
    for verb, function in verbs.items():
        ports.connect(class_name, verb, function)
