"""A dipole posterior as a DataTree that holds everything, and back.

The ArviZ groups come first, for anyone who reads the file with ArviZ or xarray; the
groups `problem`, `model` and `draws` hold what is needed to have the object again.
"""

import dataclasses
import json

import numpy as np

from ..core.status import Status
from ..models.problem import Problem
from ..models.static_dipoles import StaticDipoles
from .dipoles import DipoleDraws, DipolePosterior

__all__ = ["from_datatree", "to_archive"]


def to_archive(posterior):
    """Write a posterior as a DataTree. The inverse of `from_datatree`."""
    import xarray as xr

    tree = posterior.to_datatree()
    problem, texts = _pack(posterior.problem)
    model, beliefs = _pack(posterior.model)
    draws, _ = _pack(posterior.draws)
    trace = {f"trace_{name}": values for name, values in posterior.draws.trace.items()}
    groups = {"problem": problem, "model": model, "draws": draws | trace}
    for name, arrays in groups.items():
        variables = {
            key: ([f"{key}_{i}" for i in range(np.ndim(value))], value)
            for key, value in arrays.items()
        }
        tree[name] = xr.DataTree(xr.Dataset(variables))
    tree.attrs = {
        "method": posterior.method,
        "status": posterior.status.name,
        "problem": json.dumps(texts),
        "model": json.dumps(beliefs),
    }
    return tree


def from_datatree(tree):
    """Rebuild a posterior from `to_archive`.

    Raises
    ------
    ValueError
        If parts are missing: the file was damaged or changed.
    """
    try:
        problem = _unpack(Problem, tree["problem"], json.loads(tree.attrs["problem"]))
        model = _unpack(StaticDipoles, tree["model"], json.loads(tree.attrs["model"]))
        fields = {str(k): v.values for k, v in tree["draws"].data_vars.items()}
        trace = {
            key.removeprefix("trace_"): fields.pop(key)
            for key in list(fields)
            if key.startswith("trace_")
        }
        draws = DipoleDraws(**fields, trace=trace)
        status = Status[tree.attrs["status"]]
        return DipolePosterior(problem, model, str(tree.attrs["method"]), draws, status)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the file is incomplete: {error}. It was damaged, or written by another version."
        ) from error


def _pack(instance):
    """Split the fields of a dataclass into arrays and texts."""
    arrays, texts = {}, {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif hasattr(value, "log_prob"):
            parameters = {k: float(v) for k, v in value.get_args().items()}
            texts[field.name] = {"distribution": type(value).__name__, "parameters": parameters}
        elif hasattr(value, "vertices"):
            texts[field.name] = {"hemi": value.hemi, "vertices": value.vertices.tolist()}
        elif not isinstance(value, dict) and value is not None:
            texts[field.name] = value.item() if isinstance(value, np.generic) else value
    return arrays, texts


def _unpack(kind, group, texts):
    values = {str(name): array.values for name, array in group.data_vars.items()}
    for name, text in texts.items():
        values[name] = _revive(text)
    missing = {f.name: None for f in dataclasses.fields(kind) if f.name not in values}
    return kind(**values, **missing)


def _revive(text):
    if isinstance(text, list):
        return tuple(text)
    if isinstance(text, dict) and "distribution" in text:
        import numpyro.distributions as dist

        return getattr(dist, text["distribution"])(**text["parameters"])
    if isinstance(text, dict) and "vertices" in text:
        return _Label(text["hemi"], np.array(text["vertices"]))
    return text


@dataclasses.dataclass(frozen=True)
class _Label:
    """What a model needs of an `mne.Label`."""

    hemi: str
    vertices: np.ndarray
