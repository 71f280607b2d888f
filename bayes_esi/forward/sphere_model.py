"""A spherical head of shells about a centre: real sensors in, lead fields out.

Electrodes of a real head do not lie on a sphere: they are moved to it along the radius through
the centre, which keeps the direction in which each looks at the brain. Coils stay where they are.
"""

import functools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from ..core import ports
from ..core.checks import check_array
from ..core.struct import struct
from ..core.types import Array, Float
from ._points import check_coils_outside, check_points, check_sources_within, is_known, radius_of
from .equivalent_dipoles import fit_equivalent_dipoles
from .sphere import check_shells, sphere_eeg, sphere_meg

__all__ = ["Sphere"]

# An electrode further than this (m) from the sphere does not belong to this head.
_FURTHEST_PROJECTION = 0.015


@struct
class Sphere:
    """Concentric shells with their own conductivities.

    Parameters
    ----------
    radii : (n_shells,) array
        Outer radius of each shell, m, from the innermost (brain) out to the scalp.
    sigma_radial : (n_shells,) array
        Conductivity along the radius, S/m.
    sigma_tangential : (n_shells,) array, optional
        Conductivity across the radius, S/m; by default equal to `sigma_radial`.
    centre : (3,) array
        Centre of the sphere in the frame of sources and sensors, m.

    Raises
    ------
    ValueError
        If lengths differ, radii do not increase or look like millimetres, or a conductivity is
        not positive.
    """

    radii: Float[Array, " n_shells"]
    sigma_radial: Float[Array, " n_shells"]
    sigma_tangential: Float[Array, " n_shells"] | None = None
    centre: Float[Array, " 3"] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        if self.sigma_tangential is None:
            object.__setattr__(self, "sigma_tangential", self.sigma_radial)
        # Transformations rebuild the object around what stands in for its arrays.
        if not all(map(_is_number, jax.tree.leaves(self))):
            return
        shells = check_shells(self.radii, self.sigma_radial, self.sigma_tangential)
        centre = check_array("centre", self.centre, shape=(3,))
        names = ("radii", "sigma_radial", "sigma_tangential", "centre")
        for name, value in zip(names, (*shells, centre), strict=True):
            object.__setattr__(self, name, value)

    def eeg(self, source_pos, electrode_pos, *, exact=True):
        """Lead field of scalp electrodes.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            Dipole positions, m; in the innermost shell.
        electrode_pos : (n_channels, 3) array
            Electrodes, m; projected along the radius on the outermost sphere.
        exact : bool
            Sum the series (see `sphere_eeg`); otherwise equivalent dipoles, fitted at the first
            call, some thirty times as fast and good to 1e-8 for usual heads (see
            `fit_equivalent_dipoles`).

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            V per A·m, against the mean potential of the outermost sphere.

        Raises
        ------
        ValueError
            If sources lie outside the innermost shell or electrodes more than 15 mm off the
            sphere, with their number.
        """
        source_pos = self._centred_sources(source_pos)
        electrode_pos = self._projected(electrode_pos)
        if exact:
            return sphere_eeg(
                source_pos,
                electrode_pos,
                radii=self.radii,
                sigma_radial=self.sigma_radial,
                sigma_tangential=self.sigma_tangential,
            )
        return self.equivalent_dipoles().eeg(source_pos, electrode_pos)

    def meg(self, source_pos, coil_pos, coil_normal):
        """Lead field of point magnetometers; see `sphere_meg`.

        Parameters
        ----------
        source_pos : (n_sources, 3) or (3,) array
            Dipole positions, m; in the innermost shell.
        coil_pos : (n_channels, 3) array
            Magnetometers, m; outside the outermost sphere.
        coil_normal : (n_channels, 3) array
            Directions in which the field is measured, unit vectors.

        Returns
        -------
        (n_channels, n_sources, 3) or (n_channels, 3) array
            T per A·m.

        Raises
        ------
        ValueError
            If sources lie outside the innermost shell or coils inside the head, with their number.
        """
        source_pos = self._centred_sources(source_pos)
        coil_pos = _shift(check_points("coil_pos", coil_pos), self.centre)
        if is_known(self.radii):
            check_coils_outside(coil_pos, float(self.radii[-1]), "the head")
        return sphere_meg(source_pos, coil_pos, coil_normal)

    def lead_field(self, info, source_pos, **options):
        """Lead field of the sensors of an `mne.Info`; see `BEM.lead_field`."""
        return ports.perform(self, "lead_field", info, source_pos, **options)

    def equivalent_dipoles(self, n_dipoles=8):
        """Equivalent dipoles of these shells (see `fit_equivalent_dipoles`), fitted once."""
        shells = (self.radii, self.sigma_radial, self.sigma_tangential)
        if not is_known(*shells):
            return fit_equivalent_dipoles(*shells, n_dipoles)
        return _fit_once(*(tuple(np.asarray(x).tolist()) for x in shells), n_dipoles)

    def _centred_sources(self, source_pos):
        source_pos = check_points("source_pos", source_pos, allow_single=True)
        source_pos = _shift(source_pos, self.centre)
        if is_known(self.radii):
            check_sources_within(source_pos, float(self.radii[0]), "the innermost shell")
        return source_pos

    def _projected(self, electrode_pos):
        electrode_pos = _shift(check_points("electrode_pos", electrode_pos), self.centre)
        if not is_known(electrode_pos, self.radii):
            distance = jnp.linalg.norm(electrode_pos, axis=1, keepdims=True)
            return electrode_pos * (self.radii[-1] / distance)
        distance = radius_of(electrode_pos)
        off = np.abs(distance - self.radii[-1])
        is_off = off > _FURTHEST_PROJECTION
        if np.any(is_off):
            raise ValueError(
                f"electrode_pos has {np.count_nonzero(is_off)} of {off.size} electrodes more than "
                f"{1e3 * _FURTHEST_PROJECTION:.0f} mm off the sphere of radius "
                f"{1e3 * self.radii[-1]:.4g} mm, the furthest (electrode {np.argmax(off)}) by "
                f"{1e3 * off.max():.3g} mm; fit centre and radii to this head, or leave them out."
            )
        return electrode_pos * (self.radii[-1] / distance)[:, None].astype(electrode_pos.dtype)


@functools.lru_cache(maxsize=32)
def _fit_once(radii, sigma_radial, sigma_tangential, n_dipoles):
    return fit_equivalent_dipoles(radii, sigma_radial, sigma_tangential, n_dipoles)


def _shift(points, centre):
    """Positions from the centre, in their own precision and on the host where they are known."""
    if is_known(points, centre):
        return points - np.asarray(centre, points.dtype)
    return points - jnp.broadcast_to(jnp.asarray(centre, points.dtype), points.shape)


def _is_number(leaf):
    if isinstance(leaf, jax.core.Tracer):
        return False
    return isinstance(leaf, (numbers.Real, np.ndarray, jax.Array))
