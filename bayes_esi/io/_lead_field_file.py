"""A lead field as a DataTree for a NetCDF file, and back, bit by bit."""

import dataclasses
import json

import numpy as np

from ..forward.lead_field import LeadField

__all__ = ["lead_field_from_tree", "lead_field_to_tree"]

# What is not derived from the rest.
_ARRAYS = tuple(
    f.name
    for f in dataclasses.fields(LeadField)
    if not f.metadata.get("static") and f.name != "reach"
)
_TEXTS = tuple(f.name for f in dataclasses.fields(LeadField) if f.metadata.get("static"))

# Dimensions of each array, for anyone who reads the file with xarray.
_DIMENSIONS = {
    "data": ("channel", "source", "orient"),
    "source_pos": ("source", "xyz"),
    "source_normals": ("source", "xyz"),
    "source_volume": ("source",),
    "edges": ("edge", "end"),
    "faces": ("face", "corner"),
    "source_vertices": ("source",),
    "source_block": ("source",),
    "sensor_pos": ("channel", "xyz"),
    "mri_to_head": ("row", "column"),
}


def lead_field_to_tree(lead_field):
    """Write a lead field as an xarray.DataTree. The inverse of `lead_field_from_tree`."""
    import xarray as xr

    arrays = {
        name: (_DIMENSIONS[name], np.asarray(getattr(lead_field, name)))
        for name in _ARRAYS
        if getattr(lead_field, name) is not None
    }
    coordinates = {"channel": list(lead_field.ch_names)}
    texts = {name: getattr(lead_field, name) for name in _TEXTS}
    tree = xr.DataTree(xr.Dataset(arrays, coordinates))
    tree.attrs = {"lead_field": json.dumps(texts)}
    return tree


def lead_field_from_tree(tree):
    """Rebuild a lead field from `lead_field_to_tree`.

    Raises
    ------
    ValueError
        If parts are missing: the file was damaged or changed.
    """
    try:
        texts = json.loads(tree.attrs["lead_field"])
        texts = {k: tuple(v) if isinstance(v, list) else v for k, v in texts.items()}
        arrays = {name: tree[name].values if name in tree else None for name in _ARRAYS}
        return LeadField.from_arrays(
            arrays.pop("data"), arrays.pop("source_pos"), **arrays, **texts
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the file is incomplete: {error}. It was damaged, or written by another version."
        ) from error
