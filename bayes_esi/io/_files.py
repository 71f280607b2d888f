"""Files of MNE, read with errors that name the argument."""

from pathlib import Path

__all__ = ["read_file"]


def read_file(argument, path, reader, **options):
    """Read a file with a function of MNE; `ValueError` names the argument and the cause."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the {argument} file {path} does not exist.")
    try:
        return reader(path, verbose="ERROR", **options)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the {argument} file {path} cannot be read: {lines[0].rstrip('.')}."
        ) from error
