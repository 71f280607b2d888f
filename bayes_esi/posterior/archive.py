"""A posterior as a DataTree that holds everything, and back.

The ArviZ groups come first, for anyone who reads the file with ArviZ or xarray; the group
`archive` has the arrays of all fields, one folder a field, and the attributes say in JSON how they
make up the object: dataclasses by name, dictionaries, tuples, distributions, sparse arrays, labels.
"""

import dataclasses
import json

import jax
import numpy as np
from scipy import sparse

from ..core.status import Status
from ..inference.coupled_kalman import CoupledMoments
from ..inference.regularisation import RegularisationCurve
from ..inference.separable import SeparableMoments
from ..inference.sparse_moments import SparseMoments
from ..models.autoregressive import AutoregressiveSources
from ..models.coupled import CoupledSources
from ..models.dynamic_dipoles import DynamicDipoles
from ..models.gaussian import GaussianSources
from ..models.group_sparse import GroupSparseSources
from ..models.hierarchical import HierarchicalSources
from ..models.problem import Problem
from ..models.static_dipoles import StaticDipoles
from .dipoles import DipoleDraws, DipolePosterior
from .sources import SourcePosterior
from .sparse import SparsePosterior
from .tracks import TrackDraws, TrackPosterior

__all__ = ["from_datatree", "to_archive"]

_CLASSES = {
    kind.__name__: kind
    for kind in (
        AutoregressiveSources,
        CoupledMoments,
        CoupledSources,
        DipoleDraws,
        DipolePosterior,
        DynamicDipoles,
        GaussianSources,
        GroupSparseSources,
        HierarchicalSources,
        Problem,
        RegularisationCurve,
        SeparableMoments,
        SourcePosterior,
        SparseMoments,
        SparsePosterior,
        StaticDipoles,
        TrackDraws,
        TrackPosterior,
    )
}


def to_archive(posterior):
    """Write a posterior as a DataTree. The inverse of `from_datatree`."""
    tree = posterior.to_datatree()
    tree.attrs = {"kind": type(posterior).__name__, "status": posterior.status.name}
    for field in dataclasses.fields(posterior):
        value = getattr(posterior, field.name)
        if isinstance(value, Status):
            continue
        tree.attrs[field.name] = json.dumps(_write(tree, field.name, value))
    return tree


def from_datatree(tree):
    """Rebuild a posterior from `to_archive`.

    Raises
    ------
    ValueError
        If parts are missing: the file was damaged or changed.
    """
    try:
        kind = _CLASSES[str(tree.attrs["kind"])]
        values = {
            field.name: _read(tree, field.name, json.loads(tree.attrs[field.name]))
            for field in dataclasses.fields(kind)
            if field.name != "status"
        }
        return kind(**values, status=Status[tree.attrs["status"]])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the file is incomplete: {error}. It was damaged, or written by another version."
        ) from error


def _write(tree, path, value):
    """Put arrays into the group `path` of a tree; return what else is needed, as JSON takes it."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": _write(tree, path, fields)}
    if hasattr(value, "_asdict"):
        return {"class": type(value).__name__, "fields": _write(tree, path, value._asdict())}
    if isinstance(value, dict):
        return {"dict": {key: _write(tree, f"{path}/{key}", v) for key, v in value.items()}}
    if sparse.issparse(value):
        entries = sparse.coo_array(value)
        parts = {"row": entries.coords[0], "column": entries.coords[1], "value": entries.data}
        return {"sparse": list(value.shape), "parts": _write(tree, path, parts)}
    if isinstance(value, np.ndarray | jax.Array):
        group, _, name = path.rpartition("/")
        _put(tree, group or path, name, np.asarray(value))
        return {"array": True}
    if hasattr(value, "log_prob"):
        parameters = {k: np.asarray(v).tolist() for k, v in value.get_args().items()}
        return {"distribution": type(value).__name__, "parameters": parameters}
    if hasattr(value, "vertices"):
        return {"hemi": value.hemi, "vertices": value.vertices.tolist()}
    if isinstance(value, tuple):
        return {"tuple": [_write(tree, f"{path}/{i}", v) for i, v in enumerate(value)]}
    return value.item() if isinstance(value, np.generic) else value


def _read(tree, path, text):
    if not isinstance(text, dict):
        return text
    if "class" in text:
        return _CLASSES[text["class"]](**_read(tree, path, text["fields"]))
    if "dict" in text:
        return {key: _read(tree, f"{path}/{key}", v) for key, v in text["dict"].items()}
    if "sparse" in text:
        parts = _read(tree, path, text["parts"])
        entries = (parts["value"], (parts["row"], parts["column"]))
        return sparse.csr_array(sparse.coo_array(entries, shape=tuple(text["sparse"])))
    if "array" in text:
        group, _, name = path.rpartition("/")
        return tree[f"archive/{group or path}"][name].values
    if "tuple" in text:
        return tuple(_read(tree, f"{path}/{i}", v) for i, v in enumerate(text["tuple"]))
    if "vertices" in text:
        return _Label(text["hemi"], np.array(text["vertices"]))
    import numpyro.distributions as dist

    parameters = {k: np.asarray(v) for k, v in text["parameters"].items()}
    return getattr(dist, text["distribution"])(**parameters)


def _put(tree, group, name, array):
    import xarray as xr

    address = f"archive/{group}"
    if address not in tree.groups and f"/{address}" not in tree.groups:
        tree[address] = xr.DataTree(xr.Dataset())
    dims = [f"{name}_{i}" for i in range(array.ndim)]
    tree[address].dataset = tree[address].to_dataset().assign({name: (dims, array)})


@dataclasses.dataclass(frozen=True)
class _Label:
    """What a model needs of an `mne.Label`."""

    hemi: str
    vertices: np.ndarray
