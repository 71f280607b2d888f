"""NetCDF files: one DataTree a file, written whole or not at all, never pickle."""

from pathlib import Path

from ..core.drive import write_atomically

__all__ = ["FORMATS", "kind_of", "read", "write"]

# What a file can hold, and the mark by which it says so.
FORMATS = {
    "posterior": "bayes_esi posterior 1",
    "lead_field": "bayes_esi lead field 1",
}


def write(tree, path, kind="posterior"):
    """Write a DataTree; an interruption leaves the old file or none.

    Parameters
    ----------
    tree : xarray.DataTree
    path : path-like
        Ending in ``.nc``.
    kind : str
        A key of `FORMATS`.

    Raises
    ------
    ValueError
        If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path {path} lies in a folder that does not exist; create it first.")
    tree = tree.copy()
    tree.attrs["format"] = FORMATS[kind]
    with write_atomically(path) as name:
        tree.to_netcdf(name, engine="h5netcdf")


def read(path, kind="posterior"):
    """Read a DataTree that `write` wrote, into memory.

    Parameters
    ----------
    path : path-like
    kind : str or None
        What the file must hold, a key of `FORMATS`; None takes any of them.

    Returns
    -------
    xarray.DataTree

    Raises
    ------
    ValueError
        If the file is missing, damaged, was not written by this package, or holds another kind.
    """
    import xarray as xr

    path = Path(path)
    wanted = list(FORMATS.values()) if kind is None else [FORMATS[kind]]
    if not path.is_file():
        raise ValueError(f"path {path} is not a file.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            written_as = tree.attrs.get("format")
            loaded = _in_memory(tree) if written_as in wanted else None
    except Exception as error:  # h5py raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as NetCDF; it may be damaged.") from error
    if loaded is None:
        raise ValueError(
            f"{path} was not written by this version of bayes_esi (its format is "
            f"{written_as!r}, expected {' or '.join(repr(mark) for mark in wanted)})."
        )
    return loaded


def _in_memory(tree):
    """Load every group, so that the file can be closed."""
    import xarray as xr

    groups = {node.path: node.to_dataset(inherit=False).load() for node in tree.subtree}
    return xr.DataTree.from_dict(groups)


def kind_of(tree):
    """Key of `FORMATS` of a tree that `read` gave."""
    return next(kind for kind, mark in FORMATS.items() if mark == tree.attrs["format"])
