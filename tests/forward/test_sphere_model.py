"""A sphere about a centre: frames, projection of electrodes, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.forward.sphere import sphere_eeg, sphere_meg
from bayes_esi.forward.sphere_model import Sphere


def directions(n, seed=0):
    points = np.random.default_rng(seed).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


RADII, SIGMA = [0.080, 0.086, 0.092], [0.33, 0.004, 0.33]
CENTRE = np.array([0.005, -0.01, 0.04])
HEAD = Sphere(RADII, SIGMA, centre=CENTRE)
SOURCE_POS = CENTRE + 0.06 * directions(3, 1)
ELECTRODE_POS = CENTRE + 0.092 * directions(8, 2)
COIL_POS, COIL_NORMAL = CENTRE + 0.12 * directions(8, 3), directions(8, 4)
SHELLS = {"radii": RADII, "sigma_radial": SIGMA, "sigma_tangential": SIGMA}


def test_it_is_the_centred_sphere_shifted():
    reference = sphere_eeg(SOURCE_POS - CENTRE, ELECTRODE_POS - CENTRE, **SHELLS)
    np.testing.assert_allclose(HEAD.eeg(SOURCE_POS, ELECTRODE_POS), reference, rtol=1e-9)
    reference = sphere_meg(SOURCE_POS - CENTRE, COIL_POS - CENTRE, COIL_NORMAL)
    np.testing.assert_array_equal(HEAD.meg(SOURCE_POS, COIL_POS, COIL_NORMAL), reference)


def test_equivalent_dipoles_are_fitted_once_and_agree():
    fast = HEAD.eeg(SOURCE_POS, ELECTRODE_POS, exact=False)
    exact = np.asarray(HEAD.eeg(SOURCE_POS, ELECTRODE_POS))
    np.testing.assert_allclose(fast, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
    assert HEAD.equivalent_dipoles() is Sphere(RADII, SIGMA).equivalent_dipoles()


def test_electrodes_are_projected_along_their_radius():
    off = CENTRE + (ELECTRODE_POS - CENTRE) * np.linspace(0.9, 1.1, 8)[:, None]
    projected = HEAD.eeg(SOURCE_POS, off)
    np.testing.assert_allclose(projected, HEAD.eeg(SOURCE_POS, ELECTRODE_POS), rtol=1e-9)


def test_the_magnetic_field_does_not_know_conductivities():
    other = Sphere(RADII, [1.0, 2.0, 3.0], [3.0, 0.1, 2.0], CENTRE)
    arguments = (SOURCE_POS, COIL_POS, COIL_NORMAL)
    np.testing.assert_array_equal(other.meg(*arguments), HEAD.meg(*arguments))


def test_it_passes_through_transformations():
    exact = np.asarray(HEAD.eeg(SOURCE_POS, ELECTRODE_POS))
    compiled = jax.jit(lambda head, pos: head.meg(pos, COIL_POS, COIL_NORMAL))(HEAD, SOURCE_POS)
    plain = np.asarray(HEAD.meg(SOURCE_POS, COIL_POS, COIL_NORMAL))
    np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-12 * np.abs(plain).max())

    def with_skull(skull):
        sigma = jnp.asarray(SIGMA).at[1].set(skull)
        return Sphere(jnp.asarray(RADII), sigma, centre=CENTRE).eeg(SOURCE_POS, ELECTRODE_POS)

    skulls = jnp.asarray([0.004, 0.04])
    both = np.asarray(jax.vmap(with_skull)(skulls))
    np.testing.assert_allclose(both[0], exact, rtol=0, atol=1e-9 * np.abs(exact).max())
    # Ten times the conductivity of the skull: a different potential, and a larger one.
    assert np.linalg.norm(both[1]) > 1.5 * np.linalg.norm(both[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([80, 86, 92], SIGMA), "radii .*millimetres"),
        ((RADII, SIGMA[:2]), "sigma_radial must have shape"),
        ((RADII, [0.33, -0.004, 0.33]), "sigma_radial must be positive"),
        ((RADII, SIGMA, [0.33, 0.004]), "sigma_tangential must have shape"),
        ((RADII[::-1], SIGMA), "radii must increase"),
        ((RADII, SIGMA, SIGMA, (0, 0)), "centre must have shape"),
    ],
)
def test_what_is_no_head_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sphere(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: HEAD.eeg(CENTRE + 0.085 * directions(4), ELECTRODE_POS),
            "4 of 4 sources outside the innermost shell",
        ),
        (
            lambda: HEAD.eeg(SOURCE_POS, CENTRE + 0.11 * directions(4)),
            "4 of 4 electrodes more than 15 mm off",
        ),
        (lambda: HEAD.eeg(SOURCE_POS, 1e3 * ELECTRODE_POS), "electrode_pos .*millimetres"),
        (
            lambda: HEAD.meg(SOURCE_POS, CENTRE + 0.09 * directions(8), COIL_NORMAL),
            "coil_pos has 8 of 8 coils inside the head",
        ),
        (
            lambda: HEAD.meg(CENTRE + 0.085 * directions(4), COIL_POS, COIL_NORMAL),
            "4 of 4 sources outside the innermost shell",
        ),
    ],
)
def test_bad_positions_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
