"""Sarvas' field against its vector form, physics, MNE and finite differences."""

import jax
import jax.numpy as jnp
import mne
import numpy as np
import pytest

from bayes_esi.forward.sphere import sphere_meg


def directions(n, seed=0):
    points = np.random.default_rng(seed).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


COIL_POS = 0.12 * directions(20, 1)
COIL_NORMAL = directions(20, 2)
SOURCE_POS = directions(30, 3) * np.linspace(0.001, 0.088, 30)[:, None]


def sarvas(source_pos, coil_pos, coil_normal):
    """The formula as printed, one pair at a time, for unit moments."""
    lead_field = np.empty((len(coil_pos), len(source_pos), 3))
    for i, (r, n) in enumerate(zip(coil_pos, coil_normal, strict=True)):
        for j, r0 in enumerate(source_pos):
            a_vec, r_norm = r - r0, np.linalg.norm(r)
            a = np.linalg.norm(a_vec)
            F = a * (r_norm * a + r_norm**2 - r0 @ r)
            grad_F = (a**2 / r_norm + a_vec @ r / a + 2 * a + 2 * r_norm) * r
            grad_F = grad_F - (a + 2 * r_norm + a_vec @ r / a) * r0
            for k, q in enumerate(np.eye(3)):
                cross = np.cross(q, r0)
                lead_field[i, j, k] = 1e-7 / F**2 * n @ (F * cross - (cross @ r) * grad_F)
    return lead_field


def field(moment, source_pos, point):
    """Field vector (3,) at a point."""
    points = jnp.broadcast_to(point, (3, 3))
    return sphere_meg(source_pos, points, jnp.eye(3, dtype=points.dtype)) @ moment


def relative_error(lead_field, reference):
    """Largest difference relative to the norm over channels of each source."""
    norm = np.sqrt(np.sum(reference**2, axis=(0, 2), keepdims=True))
    return np.max(np.abs(np.asarray(lead_field) - reference) / norm)


# float64: a few dozen roundings; float32: the bound.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_it_is_the_formula_as_printed(dtype, tolerance):
    arrays = (x.astype(dtype) for x in (SOURCE_POS, COIL_POS, COIL_NORMAL))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        lead_field = sphere_meg(*arrays)
    assert lead_field.shape == (20, 30, 3)
    assert lead_field.dtype == dtype
    assert relative_error(lead_field, sarvas(SOURCE_POS, COIL_POS, COIL_NORMAL)) < tolerance


def test_many_sources_take_another_path_to_the_same_field():
    # 9,000 sources are beyond one cache-sized block, 1,000 fill it with eight coils each.
    source_pos = 0.08 * directions(9000, 5)
    together = sphere_meg(source_pos, COIL_POS, COIL_NORMAL)
    blocks = sphere_meg(source_pos[:1000], COIL_POS, COIL_NORMAL)
    np.testing.assert_allclose(together[:, :1000], blocks, rtol=1e-12, atol=1e-18)
    alone = sphere_meg(source_pos[17], COIL_POS, COIL_NORMAL)
    np.testing.assert_allclose(together[:, 17], alone, rtol=1e-12, atol=1e-18)


def test_radial_dipoles_and_the_centre_are_silent():
    lead_field = np.asarray(sphere_meg(SOURCE_POS, COIL_POS, COIL_NORMAL))
    radial = np.einsum(
        "csk,sk->cs", lead_field, SOURCE_POS / np.linalg.norm(SOURCE_POS, axis=1)[:, None]
    )
    assert np.abs(radial).max() < 1e-15 * np.abs(lead_field).max() * 10
    assert not np.any(sphere_meg(np.zeros((1, 3)), COIL_POS, COIL_NORMAL))


def test_the_radial_field_is_that_of_the_dipole_alone():
    """Volume currents do not contribute to B_r outside a sphere."""
    radial = COIL_POS / np.linalg.norm(COIL_POS, axis=1, keepdims=True)
    apart = COIL_POS[:, None] - SOURCE_POS
    # (q x a) . r = q . (a x r)
    primary = 1e-7 * np.cross(apart, radial[:, None])
    primary /= np.linalg.norm(apart, axis=-1, keepdims=True) ** 3
    assert relative_error(sphere_meg(SOURCE_POS, COIL_POS, radial), primary) < 1e-12


def test_divergence_and_curl_vanish_outside():
    moment, slope = jnp.asarray([1.0, -2.0, 0.5]), jax.jit(jax.jacfwd(field, argnums=2))
    for source_pos, point in zip(SOURCE_POS[::6], COIL_POS, strict=False):
        gradient = slope(moment, jnp.asarray(source_pos), jnp.asarray(point))
        size = np.abs(gradient).max()
        assert abs(np.trace(gradient)) < 1e-11 * size
        assert np.abs(gradient - gradient.T).max() < 1e-11 * size


def test_rotating_everything_rotates_the_moments():
    rotation = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    rotated = sphere_meg(SOURCE_POS @ rotation, COIL_POS @ rotation, COIL_NORMAL @ rotation)
    # A reflection turns the sign: the field is a pseudovector.
    rotated = np.linalg.det(rotation) * np.asarray(rotated) @ rotation.T
    assert (
        relative_error(rotated, np.asarray(sphere_meg(SOURCE_POS, COIL_POS, COIL_NORMAL))) < 1e-12
    )


@pytest.mark.parametrize("place", ["centre", "axis", "off the axis"])
def test_values_and_derivatives_are_finite_and_right(place):
    pos = {"centre": np.zeros(3), "axis": 0.5 * COIL_POS[0], "off the axis": SOURCE_POS[20]}[place]
    gradient = jax.jacrev(sphere_meg)(pos, COIL_POS, COIL_NORMAL)
    step = 1e-5  # m: error of the centred difference (step / 0.03)^2 = 1e-7
    shifts = step * np.eye(3)
    difference = (
        sphere_meg(pos + shifts, COIL_POS, COIL_NORMAL)
        - sphere_meg(pos - shifts, COIL_POS, COIL_NORMAL)
    ) / (2 * step)
    difference = np.moveaxis(difference, 1, 2)  # (channel, moment, position)
    size = np.abs(difference).max()
    np.testing.assert_allclose(gradient, difference, atol=1e-6 * size, rtol=0)


def test_transformations_agree_with_the_plain_call():
    plain = sphere_meg(SOURCE_POS, COIL_POS, COIL_NORMAL)
    mapped = jax.jit(jax.vmap(sphere_meg, in_axes=(0, None, None), out_axes=1))(
        SOURCE_POS, COIL_POS, COIL_NORMAL
    )
    np.testing.assert_allclose(mapped, plain, rtol=1e-10, atol=1e-20)


def mne_info(coil_pos, coil_normal):
    """Point magnetometers whose z axis is the normal."""
    info = mne.create_info([f"M{i}" for i in range(len(coil_pos))], 1000.0, "mag")
    for channel, pos, normal in zip(info["chs"], coil_pos, coil_normal, strict=True):
        other = np.linalg.svd(normal[None])[2][1]
        axes = np.stack([other, np.cross(normal, other), normal])
        channel["loc"] = np.concatenate([pos, axes.ravel()])
        channel["coil_type"] = 2000  # FIFFV_COIL_POINT_MAGNETOMETER
    with info._unlock():
        info["dev_head_t"] = mne.Transform("meg", "head", np.eye(4))
    return info


def test_it_agrees_with_mne():
    source_pos = SOURCE_POS[10:26]  # within the sphere of 90 mm, and not where MNE drops sources
    info = mne_info(COIL_POS, COIL_NORMAL)
    src = mne.setup_volume_source_space(
        pos={"rr": source_pos, "nn": np.tile([0.0, 0, 1], (len(source_pos), 1))},
        verbose="error",
    )
    sphere = mne.make_sphere_model((0.0, 0.0, 0.0), 0.095, verbose="error")
    forward = mne.make_forward_solution(
        info,
        mne.Transform("head", "mri", np.eye(4)),
        src,
        sphere,
        eeg=False,
        mindist=0.0,
        verbose="error",
    )
    theirs = forward["sol"]["data"].reshape(len(COIL_POS), -1, 3)
    assert theirs.shape[1] == len(source_pos)
    # As many digits as MNE keeps of mu0 / (4 pi) and of positions.
    assert relative_error(sphere_meg(source_pos, COIL_POS, COIL_NORMAL), theirs) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_pos": SOURCE_POS[:, :2]}, "source_pos must have shape .n, 3. or .3,."),
        ({"source_pos": 1e3 * SOURCE_POS}, "source_pos .*millimetres"),
        ({"coil_pos": 1e3 * COIL_POS}, "coil_pos .*millimetres"),
        ({"coil_pos": np.full((20, 3), np.nan)}, "coil_pos has 60 NaN"),
        ({"coil_normal": COIL_NORMAL[:5]}, "coil_normal must have one row for each of the 20"),
        ({"source_pos": 2 * SOURCE_POS}, "source_pos has [0-9]+ of 30 sources outside"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"source_pos": SOURCE_POS, "coil_pos": COIL_POS, "coil_normal": COIL_NORMAL}
    with pytest.raises(ValueError, match=message):
        sphere_meg(**(arguments | change))
