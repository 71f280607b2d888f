"""A result as a folder: posterior, table, words and figures, all of them or none."""

import os
import shutil
import tempfile
from pathlib import Path

from ..posterior.dipoles import DipolePosterior
from ..posterior.tracks import TrackPosterior
from .text import describe

__all__ = ["BRAIN_FIGURES", "DIPOLE_FIGURES", "TRACK_FIGURES", "figures_of", "write_folder"]

DIPOLE_FIGURES = ("overview", "n_dipoles", "intensity", "moments", "predictive", "trace")
TRACK_FIGURES = (
    "overview",
    "raster",
    "n_dipoles",
    "intensity",
    "moments",
    "predictive",
    "trace",
)
# Of sources on the cortex of the average head, too.
BRAIN_FIGURES = ("cortex", "glass_brain")


def write_folder(posterior, path, heading=""):
    """Write a posterior to a folder.

    Parameters
    ----------
    posterior : DipolePosterior, TrackPosterior or SourcePosterior
    path : path-like
        Created if need be. Files of the same names are replaced, once all new ones exist.
    heading : str
        Put on top of ``summary.txt``.

    Returns
    -------
    list of pathlib.Path
        The files: ``posterior.nc``, ``dipoles.csv``, ``tracks.csv`` or ``sources.csv``,
        ``summary.txt`` and a PNG for each figure.

    Raises
    ------
    ValueError
        If the folder cannot be made.
    """
    import matplotlib.pyplot as plt

    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path))
    except OSError as error:
        raise ValueError(f"folder {path} cannot be written: {error.strerror}.") from error
    try:
        posterior.save(part / "posterior.nc")
        posterior.summary().to_csv(part / f"{_parts_of(posterior)}.csv", float_format="%.6g")
        (part / "summary.txt").write_text(heading + describe(posterior), encoding="utf-8")
        for kind in figures_of(posterior):
            drawn = posterior.plot(kind)
            figure = _figure_of(drawn)
            figure.savefig(part / f"{kind}.png", dpi=150)
            plt.close(figure)
        written = []
        for file in sorted(part.iterdir()):
            os.replace(file, path / file.name)
            written.append(path / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def figures_of(posterior):
    """Kinds of figures that make sense for a posterior."""
    problem = posterior.problem
    own = {"dipoles": DIPOLE_FIGURES, "tracks": TRACK_FIGURES}
    figures = own.get(_parts_of(posterior)) or posterior.kinds
    is_average = problem.subject == "fsaverage" and set(problem.block_kinds) == {"lh", "rh"}
    return figures + (BRAIN_FIGURES if is_average else ())


def _parts_of(posterior):
    """What the rows of its summary are."""
    if isinstance(posterior, DipolePosterior):
        return "dipoles"
    return "tracks" if isinstance(posterior, TrackPosterior) else "sources"


def _figure_of(drawn):
    """The figure of what a plotting function returned: a figure, an axes or some."""
    if hasattr(drawn, "savefig"):
        return drawn
    return drawn.figure if hasattr(drawn, "figure") else drawn.flat[0].figure
