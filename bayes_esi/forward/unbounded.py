"""Contacts inside the brain (SEEG, ECoG): the potential in an unbounded medium.

    V(r) = q . d / (4 pi sigma max(|d|, a)^3),       d = r - r'

for a dipole of moment q at r'. Up to the distance a, the contact's radius, this is the mean over a
ball of radius a of the potential of a point dipole inside that ball: as a harmonic
function its mean outside is the value at the centre, so one formula serves both and stays finite
when a source lies on a contact.

Intracranial recordings are referenced to a neighbour or to a contact in white matter. A reference
is a matrix H that acts on channels, on data and lead field alike: H @ lead_field.

References: Plonsey, Heppner 1967, doi:10.1007/BF02476917 (quasi-static potential); Arnulfo et al.
2015, doi:10.1016/j.neuroimage.2015.02.031 (closest white-matter contact).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_array, check_count, check_positive
from ._points import cast, check_points, common_dtype, is_known
from ._rows import map_rows

__all__ = ["bipolar_reference", "unbounded", "white_matter_reference"]


def unbounded(source_pos, contact_pos, *, conductivity, contact_radius=1e-3):
    """Lead field of contacts in an infinite homogeneous medium.

    Parameters
    ----------
    source_pos : (n_sources, 3) or (3,) array
        Dipole positions, m.
    contact_pos : (n_channels, 3) array
        Centres of the contacts, m, in the same frame.
    conductivity : float
        Of the medium, S/m; 0.33 is usual for brain.
    contact_radius : float
        Distance within which the potential is that of an extended contact, m.

    Returns
    -------
    (n_channels, n_sources, 3) or (n_channels, 3) array
        V per A·m, against infinity.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, a position looks like millimetres, or
        conductivity or radius is not positive.

    Notes
    -----
    Cost O(n_channels n_sources). Derivatives with respect to positions exist everywhere but on
    the sphere |d| = contact_radius, where they jump.
    """
    source_pos = check_points("source_pos", source_pos, allow_single=True)
    contact_pos = check_points("contact_pos", contact_pos)
    conductivity = _known_positive("conductivity", conductivity)
    contact_radius = _known_positive("contact_radius", contact_radius)
    dtype = common_dtype(source_pos, contact_pos)
    arrays = cast(dtype, source_pos, contact_pos, conductivity, contact_radius)
    lead_field = _lead_field(arrays[0].reshape(-1, 3), *arrays[1:])
    return lead_field[:, 0] if source_pos.ndim == 1 else lead_field


def bipolar_reference(pairs, n_contacts):
    """Matrix that takes differences of contacts.

    Parameters
    ----------
    pairs : (n_pairs, 2) int array
        Contacts of each difference: the first minus the second.
    n_contacts : int
        Number of contacts of the recording.

    Returns
    -------
    (n_pairs, n_contacts) array
        H: apply it to lead field and data alike, and as H C H' to the noise covariance.

    Raises
    ------
    ValueError
        If `pairs` does not hold pairs of two different contacts of the recording.
    """
    n_contacts = check_count("n_contacts", n_contacts, minimum=2)
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1:] != (2,) or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be an integer array of shape (n_pairs, 2), got shape {pairs.shape} of "
            f"{pairs.dtype}; give contacts by their numbers, from 0."
        )
    bad = np.any((pairs < 0) | (pairs >= n_contacts), axis=1) | (pairs[:, 0] == pairs[:, 1])
    if np.any(bad):
        raise ValueError(
            f"pairs must join two different contacts numbered 0 to {n_contacts - 1}, got "
            f"{pairs[bad][0].tolist()} in row {np.flatnonzero(bad)[0]}."
        )
    identity = np.eye(n_contacts)
    return identity[pairs[:, 0]] - identity[pairs[:, 1]]


def white_matter_reference(is_white_matter, contact_pos=None):
    """Matrix that refers each grey-matter contact to white matter.

    Parameters
    ----------
    is_white_matter : (n_contacts,) bool array
        Which contacts lie in white matter, where potentials vary little.
    contact_pos : (n_contacts, 3) array, optional
        Positions, m: each contact is referred to the closest one in white matter. Without them, to
        the mean of all contacts in white matter.

    Returns
    -------
    (n_grey, n_contacts) array
        H, one row for each contact that is not in white matter, in their order.

    Raises
    ------
    ValueError
        If shapes do not fit, or no contact or every contact lies in white matter.
    """
    is_white_matter = np.asarray(is_white_matter)
    if is_white_matter.ndim != 1 or is_white_matter.dtype.kind != "b":
        raise ValueError(
            "is_white_matter must be a boolean array of shape (n_contacts,), got shape "
            f"{is_white_matter.shape} of {is_white_matter.dtype}."
        )
    white, grey = np.flatnonzero(is_white_matter), np.flatnonzero(~is_white_matter)
    if not white.size or not grey.size:
        raise ValueError(
            f"is_white_matter marks {white.size} of {is_white_matter.size} contacts: a reference "
            "needs some in white matter and some in grey."
        )
    identity = np.eye(is_white_matter.size)
    if contact_pos is None:
        return identity[grey] - identity[white].mean(axis=0)
    contact_pos = check_array("contact_pos", contact_pos, shape=(is_white_matter.size, 3))
    apart = contact_pos[grey, None] - contact_pos[white]
    closest = white[np.argmin(np.sum(apart**2, axis=-1), axis=1)]
    return identity[grey] - identity[closest]


@jax.jit
def _lead_field(source_pos, contact_pos, conductivity, contact_radius):
    """Evaluate all pairs, one contact after another over all sources."""
    source = source_pos.T
    strength = 1 / (4 * jnp.pi * conductivity)

    def one_contact(contact):
        apart = [r - s for r, s in zip(contact, source, strict=True)]
        square = apart[0] ** 2 + apart[1] ** 2 + apart[2] ** 2
        square = jnp.maximum(square, contact_radius**2)
        scale = strength / (square * jnp.sqrt(square))
        return jnp.stack([scale * x for x in apart], axis=-1)

    return map_rows(one_contact, (contact_pos,), source_pos.shape[0])


def _known_positive(name, value):
    return check_positive(name, value) if is_known(value) else value
