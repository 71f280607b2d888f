"""Orthogonal matching pursuit of dipoles: a first guess of places and noise.

The place whose field explains most of the residual is added, moments are refitted by least
squares, and so on. It costs milliseconds and is right often enough to start a sampler
near the answer; nothing that the samplers report depends on it being right.

Reference: Pati, Rezaiifar, Krishnaprasad 1993, doi:10.1109/ACSSC.1993.342465.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Guess", "run"]


class Guess(NamedTuple):
    """What the pursuit found."""

    places: np.ndarray  # (n_found,)
    noise_std: np.ndarray  # (n_groups,) least residual level along the pursuit


def run(lead_field, data, row_group, n_groups, max_dipoles):
    """Add dipoles while the fit keeps half of its degrees of freedom.

    Parameters
    ----------
    lead_field : (rank, n_sources, d) array
        Whitened.
    data : (rank, n_times) array
        Whitened.
    row_group : (rank,) int array
    n_groups : int
    max_dipoles : int

    Returns
    -------
    Guess

    Notes
    -----
    Cost O(max_dipoles rank n_sources d n_times).
    """
    rank, n_sources, d = lead_field.shape
    lead_field = np.asarray(lead_field, np.float64)
    data = np.asarray(data, np.float64)
    gram = np.einsum("rsx,rsy->sxy", lead_field, lead_field)
    # Silent directions (radial sources of MEG) must not win by dividing by nothing.
    ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2).max() * np.eye(d)
    inverse = np.linalg.inv(gram + ridge)
    flat = lead_field.reshape(rank, n_sources * d)

    def levels(residual, n_found):
        left = 1 - n_found * d / rank
        return np.array(
            [np.sqrt(np.mean(residual[row_group == g] ** 2) / left) for g in range(n_groups)]
        )

    places, residual = [], data
    noise_std = levels(data, 0)
    for _ in range(min(max_dipoles, n_sources, max(1, rank // (2 * d)))):
        if (len(places) + 1) * d >= rank:
            break
        projected = (flat.T @ residual).reshape(n_sources, d, -1)
        explained = np.einsum("sxt,sxy,syt->s", projected, inverse, projected, optimize=True)
        explained[places] = -1.0
        places.append(int(np.argmax(explained)))
        field = lead_field[:, places].reshape(rank, -1)
        moments = np.linalg.lstsq(field, data, rcond=1e-6)[0]
        residual = data - field @ moments
        noise_std = np.minimum(noise_std, levels(residual, len(places)))
    return Guess(np.array(places, int), noise_std)
