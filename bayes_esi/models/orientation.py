"""Orientation laws: free, loose or fixed moments, in coordinates where all components are alike.

    moment_j = frame_j u_j,     u_j ~ N(0, s^2 I_d),     frame_j = n n' + sqrt(loose) (I - n n')

with the unit normal n of source j. Then ``lead_field @ frame`` acts on u. The frame is the
symmetric root of the orientation covariance: it picks no tangents, so that a prior which is smooth
over sources is smooth in space whatever coordinates one writes it in. loose = 1 is free (frame I);
loose = 0 leaves one component, along n.

Reference: Lin, Belliveau, Dale, Hämäläinen 2006, doi:10.1002/hbm.20155 (loose orientations).
"""

import dataclasses

import numpy as np

__all__ = ["OrientedField", "check_loose", "orient"]


@dataclasses.dataclass(frozen=True, eq=False)
class OrientedField:
    """The lead field in coordinates where every moment component has the same prior.

    Attributes
    ----------
    lead_field : (rank, n_sources, d)
        Whitened; ``problem.lead_field`` times the frames.
    frames : (n_sources, n_axes, d)
        Turns d components into the moment: along the three axes of space, or along the one
        orientation of a lead field that came without normals.
    """

    lead_field: np.ndarray
    frames: np.ndarray

    @property
    def own_frames(self):
        """Frames to the axes in which amplitudes are told: a single component is its own axis."""
        d = self.frames.shape[2]
        return self.frames if d > 1 else np.ones((len(self.frames), 1, 1))


def check_loose(loose):
    """Refuse a `loose` outside of [0, 1]."""
    if not 0 <= loose <= 1:
        raise ValueError(f"loose must lie between 0 and 1, got {loose!r}.")


def orient(problem, loose):
    """Apply an orientation law to the lead field of a problem.

    Parameters
    ----------
    problem : Problem
    loose : float
        Variance of tangential moments relative to normal ones, in [0, 1]. A lead field of one
        orientation is fixed whatever it says.

    Returns
    -------
    OrientedField

    Raises
    ------
    ValueError
        If `loose` < 1 needs normals that the problem lacks.
    """
    normal = problem.source_normals
    if problem.n_orient == 1:
        frames = np.ones((problem.n_sources, 1, 1)) if normal is None else normal[:, :, None]
        return OrientedField(problem.lead_field, frames)
    if loose == 1:
        frames = np.broadcast_to(np.eye(3), (problem.n_sources, 3, 3))
        return OrientedField(problem.lead_field, frames)
    if normal is None:
        raise ValueError(
            f"loose={loose} needs source_normals, which this problem lacks; use loose=1, or "
            "a surface source space."
        )
    frames = normal[:, :, None]
    if loose > 0:
        along = frames * normal[:, None, :]
        frames = along + np.sqrt(loose) * (np.eye(3) - along)
    field = np.einsum("rsx,sxd->rsd", problem.lead_field, frames, optimize=True)
    return OrientedField(field.astype(problem.lead_field.dtype), frames)
