"""NetCDF files: one DataTree a file, written whole or not at all, never pickle."""

from pathlib import Path

from ..core.drive import write_atomically

__all__ = ["FORMAT", "read", "write"]

FORMAT = "bayes_esi posterior 1"


def write(tree, path):
    """Write a DataTree; an interruption leaves the old file or none.

    Parameters
    ----------
    tree : xarray.DataTree
    path : path-like
        Ending in ``.nc``.

    Raises
    ------
    ValueError
        If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path {path} lies in a folder that does not exist; create it first.")
    tree = tree.copy()
    tree.attrs["format"] = FORMAT
    with write_atomically(path) as name:
        tree.to_netcdf(name, engine="h5netcdf")


def read(path):
    """Read a DataTree that `write` wrote, into memory.

    Raises
    ------
    ValueError
        If the file is missing, damaged, or was not written by this package.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path {path} is not a file.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            written_as = tree.attrs.get("format")
            loaded = tree.load() if written_as == FORMAT else None
    except Exception as error:  # h5py raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as NetCDF; it may be damaged.") from error
    if loaded is None:
        raise ValueError(
            f"{path} was not written by this version of bayes_esi (its format is "
            f"{written_as!r}, expected {FORMAT!r})."
        )
    return loaded
