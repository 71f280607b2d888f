"""Contacts in an unbounded medium: Laplace's equation, an extended contact, references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.forward.unbounded import bipolar_reference, unbounded, white_matter_reference


def points(n, seed):
    return 0.03 * np.random.default_rng(seed).standard_normal((n, 3))


SOURCE_POS, CONTACT_POS = points(7, 0), points(5, 1) + 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_it_is_the_dipole_potential(dtype, tolerance):
    apart = CONTACT_POS[:, None] - SOURCE_POS
    distance = np.linalg.norm(apart, axis=-1, keepdims=True)
    reference = apart / (4 * np.pi * 0.33 * distance**3)
    lead_field = unbounded(SOURCE_POS.astype(dtype), CONTACT_POS.astype(dtype), conductivity=0.33)
    assert lead_field.dtype == dtype
    # Differences of coordinates keep their digits: contacts are centimetres away.
    np.testing.assert_allclose(
        lead_field, reference, rtol=0, atol=tolerance * np.abs(reference).max()
    )


def test_laplace_equation_outside_the_source():
    def potential(contact_pos):
        lead_field = unbounded(SOURCE_POS[0], contact_pos[None], conductivity=0.33)
        return lead_field[0] @ jnp.asarray([1.0, -2.0, 0.5])

    for hessian in jax.jit(jax.vmap(jax.hessian(potential)))(CONTACT_POS):
        assert abs(np.trace(hessian)) < 1e-12 * np.abs(hessian).max()


def test_a_close_contact_averages_over_its_ball():
    """Mean over a ball of the potential of a dipole, inside and outside of it."""
    radius, moment = 1e-3, np.array([0.3, -1.0, 0.7])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    depth = 0.5 * radius * (nodes + 1)
    angle = 2 * np.pi * np.arange(40) / 40
    sine = np.sqrt(1 - nodes**2)[:, None]
    sphere = np.stack([sine * np.cos(angle), sine * np.sin(angle), nodes[:, None] + 0 * angle], -1)
    for distance, tolerance in [(3e-3, 1e-12), (0.5e-3, 1e-3)]:
        source_pos = distance * np.array([0.6, 0.0, 0.8])
        # By Newton's theorem only the ball within the source's distance counts; the quadrature
        # over shells that pass by the source converges slowly, hence the wider tolerance.
        apart = depth[:, None, None, None] * sphere - source_pos
        value = apart @ moment / np.linalg.norm(apart, axis=-1) ** 3 / (4 * np.pi * 0.33)
        shell = np.einsum("j,ijk->i", weights, value) / 80
        if distance < radius:
            shell = np.where(depth < distance, shell, 0.0)
            smooth = -(moment @ source_pos) / distance**3 / (4 * np.pi * 0.33)
            mean = smooth * (distance / radius) ** 3
            np.testing.assert_allclose(shell[depth < 0.8 * distance], smooth, rtol=1e-3)
        else:
            mean = 1.5 / radius**2 * np.sum(weights * depth**2 * shell)
        lead_field = unbounded(source_pos, np.zeros((1, 3)), conductivity=0.33)
        assert lead_field[0] @ moment == pytest.approx(mean, rel=tolerance)


@pytest.mark.parametrize("distance", [0.0, 0.3e-3, 5e-3])
def test_values_and_derivatives_are_finite_and_right(distance):
    contact_pos = np.array([[0.01, 0.02, 0.03]])
    pos = contact_pos[0] + distance * np.array([0.48, 0.6, 0.64])

    def lead_field(pos):
        return unbounded(pos, contact_pos, conductivity=0.33)

    gradient = jax.jacrev(lead_field)(pos)
    shifts = 1e-6 * np.eye(3)  # m: centred difference good to (1e-6 / 5e-3)^2 = 4e-8
    difference = (lead_field(pos + shifts) - lead_field(pos - shifts)) / 2e-6
    difference = np.moveaxis(difference, 1, 2)
    size = np.abs(difference).max()
    np.testing.assert_allclose(gradient, difference, atol=1e-6 * size, rtol=0)


def test_transformations_and_conductivity():
    plain = np.asarray(unbounded(SOURCE_POS, CONTACT_POS, conductivity=0.33))
    mapped = jax.vmap(lambda pos: unbounded(pos, CONTACT_POS, conductivity=0.33), out_axes=1)
    np.testing.assert_allclose(mapped(SOURCE_POS), plain, rtol=1e-12)
    slope = jax.jacfwd(lambda s: unbounded(SOURCE_POS, CONTACT_POS, conductivity=s))(0.33)
    np.testing.assert_allclose(slope, -plain / 0.33, rtol=1e-12)


def test_bipolar_reference_takes_differences():
    lead_field = np.asarray(unbounded(SOURCE_POS, CONTACT_POS, conductivity=0.33))
    H = bipolar_reference([(0, 1), (1, 2), (4, 3)], 5)
    referenced = np.einsum("pc,csk->psk", H, lead_field)
    np.testing.assert_array_equal(referenced[2], lead_field[4] - lead_field[3])
    assert not np.any(H @ np.ones(5))  # a common potential leaves no trace


def test_white_matter_reference():
    is_white_matter = np.array([False, True, False, True, False])
    contact_pos = 1e-3 * np.arange(5)[:, None] * np.ones(3) * np.array([1, 1, 1.5])
    contact_pos[3] += 1e-3
    H = white_matter_reference(is_white_matter, contact_pos)
    np.testing.assert_array_equal(H, [[1, -1, 0, 0, 0], [0, -1, 1, 0, 0], [0, 0, 0, -1, 1]])
    mean = white_matter_reference(is_white_matter)
    np.testing.assert_array_equal(mean[1], [0, -0.5, 1, -0.5, 0])
    assert not np.any(mean @ np.ones(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unbounded(1e3 * SOURCE_POS + 40, CONTACT_POS, conductivity=0.3), "millimetres"),
        (lambda: unbounded(SOURCE_POS, CONTACT_POS, conductivity=-0.3), "conductivity must be pos"),
        (
            lambda: unbounded(SOURCE_POS, CONTACT_POS, conductivity=0.3, contact_radius=0.0),
            "contact_radius must be positive",
        ),
        (lambda: unbounded(SOURCE_POS, CONTACT_POS[0], conductivity=0.3), "contact_pos must have"),
        (lambda: bipolar_reference([(0, 1), (2, 2)], 5), "two different contacts .*row 1"),
        (lambda: bipolar_reference([(0, 5)], 5), "numbered 0 to 4"),
        (lambda: bipolar_reference([0, 1], 5), "pairs must be an integer array"),
        (lambda: white_matter_reference(np.zeros(5, bool)), "marks 0 of 5 contacts"),
        (lambda: white_matter_reference([0, 1]), "is_white_matter must be a boolean array"),
        (
            lambda: white_matter_reference(np.array([True, False]), np.zeros((3, 3))),
            "contact_pos must have shape .2, 3.",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
