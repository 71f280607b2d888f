"""Voxels of a labelled volume as finite elements: the fallback when there are no surfaces.

Every voxel with a tissue is one trilinear element; the nodes are the corners of voxels. No
mesher, no geometry that could fail, and two errors that refinement removes slowly: surfaces
become stairs, and current *leaks* through the skull where its voxels touch only at an edge or
corner, because nodes there belong to both its sides.

Measured on the four-layer sphere (see `fem`) with St Venant sources, median (largest) relative
difference measure in per cent up to eccentricity 0.98: 3 mm voxels, 130,000 nodes, from 1.9 in
the middle to 11 (33) at the surface, amplitudes 11 to 30 % too large; 2 mm, 428,000 nodes, 1.1
to 5.8 (12), amplitudes 11 to 17 % too large. Tetrahedra between surfaces stay below 1 % with a
quarter of the nodes.

Reference: Wolters, Anwander, Berti, Hartmann 2007, doi:10.1109/TBME.2007.890736 (moving nodes
to soften the stairs); Sonntag, Vorwerk, Wolters, Grasedyck, Haueisen, Maess 2013,
doi:10.3414/ME11-02-0044 (leakage).
"""

import warnings

import numpy as np
from scipy.ndimage import label as connected_parts

from ..core.checks import check_array
from .mesh import Mesh

__all__ = ["hexahedra_from_volume"]

# Offsets of a voxel's corners in the binary order of `mesh`.
_CORNERS = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])


def hexahedra_from_volume(volume, affine):
    """Turn the labelled voxels of a volume into a mesh.

    Parameters
    ----------
    volume : (nx, ny, nz) int array
        Tissue of each voxel: 1 becomes label 0 (the brain, for `FEM`), 2 label 1, and so on;
        0 is air. Voxels that no face joins to the largest part are left out.
    affine : (4, 4) array
        From voxel indices to m, as images store it: indices (i, j, k) are a voxel's centre.

    Returns
    -------
    Mesh
        With voxels as elements.

    Raises
    ------
    ValueError
        If the volume is not labelled by integers or empty, or the affine is singular or looks
        like millimetres.

    Warns
    -----
    UserWarning
        Always, with the accuracy that voxels of this size reached: this is a fallback.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or volume.dtype.kind not in "iu" or volume.size == 0 or volume.min() < 0:
        raise ValueError(
            "volume must hold non-negative integer labels in three dimensions (0 is air), got "
            f"{volume.dtype} {volume.shape}."
        )
    affine = check_array("affine", affine, shape=(4, 4))
    frame = affine[:3, :3]
    edges = np.linalg.norm(frame, axis=0)
    if abs(np.linalg.det(frame)) <= 1e-6 * np.prod(edges) or not edges.all():
        raise ValueError("affine must map voxels to a volume; its 3 x 3 part is singular.")
    if edges.max() > 0.1:
        raise ValueError(
            f"affine must be in m, but its voxels are {edges.max():.3g} long: these look like "
            "mm; multiply its first three rows by 1e-3."
        )
    parts, n_parts = connected_parts(volume > 0)
    if not n_parts:
        raise ValueError("volume holds no tissue: all its labels are 0.")
    largest = 1 + np.argmax(np.bincount(parts.ravel())[1:])
    voxels = np.argwhere(parts == largest)
    labels = volume[tuple(voxels.T)] - 1
    if np.linalg.det(frame) < 0:  # a left-handed image: swap two axes, keep the voxels
        frame, voxels = frame[:, [1, 0, 2]], voxels[:, [1, 0, 2]]
        volume = volume.transpose(1, 0, 2)
    shape = np.array(volume.shape) + 1
    corners = voxels[:, None] + _CORNERS
    keys, elements = np.unique(
        np.ravel_multi_index(corners.reshape(-1, 3).T, shape), return_inverse=True
    )
    grid = np.stack(np.unravel_index(keys, shape), axis=1) - 0.5
    _warn(1e3 * np.mean(edges))
    return Mesh(grid @ frame.T + affine[:3, 3], elements.reshape(-1, 8), labels)


def _warn(size):
    warnings.warn(
        f"voxels of {size:.1f} mm are a fallback: current leaks through a thin skull. On a sphere "
        "with a skull of 6 mm, 2 mm voxels made amplitudes 11 to 17 % and topographies 1 to 6 % "
        "wrong (median), 3 mm voxels 11 to 30 % and 2 to 11 %; layered_mesh and mesh_surfaces "
        "stay below 1 %.",
        UserWarning,
        stacklevel=3,
    )
