"""The finite element method against the exact sphere, itself refined, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_esi.forward.fem import FEM, Transfer
from bayes_esi.forward.mesh_layers import layered_mesh
from bayes_esi.forward.mesh_voxels import hexahedra_from_volume
from bayes_esi.forward.sphere import sphere_eeg, sphere_meg
from bayes_esi.forward.surfaces import icosphere

RADII = (0.078, 0.080, 0.086, 0.092)
SHELLS = {
    "radii": RADII,
    "sigma_radial": (0.33, 1.79, 0.01, 0.43),
    "sigma_tangential": (0.33, 1.79, 0.03, 0.43),
}
CONDUCTIVITY = [0.33, 1.79, (0.01, 0.03), 0.43]


def spiral(n, covered=0.65):
    """Points on the upper part of the unit sphere, evenly spaced."""
    k = np.arange(n) + 0.5
    z = 1 - 2 * covered * k / n
    angle = np.pi * (1 + 5**0.5) * k
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


def tilted_coils(n):
    rng = np.random.default_rng(1)
    normal = spiral(n)
    normal[::2] += 0.4 * rng.standard_normal((len(normal[::2]), 3))
    return 0.120 * spiral(n), normal / np.linalg.norm(normal, axis=1, keepdims=True)


ELECTRODES = 0.092 * spiral(64)
COIL_POS, COIL_NORMAL = tilted_coils(30)


def dipoles(eccentricity, n=20, seed=0):
    """Places, radial and tangential directions."""
    rng = np.random.default_rng(seed)
    radial = rng.standard_normal((n, 3))
    radial /= np.linalg.norm(radial, axis=1, keepdims=True)
    tangential = np.cross(radial, rng.standard_normal((n, 3)))
    tangential /= np.linalg.norm(tangential, axis=1, keepdims=True)
    return RADII[0] * eccentricity * radial, radial, tangential


def errors(lead_field, reference, moment):
    """Topography (RDM) and amplitude (MAG) errors of each dipole, in per cent."""
    a, b = (np.einsum("cnx,nx->cn", np.asarray(x), moment) for x in (lead_field, reference))
    size_a, size_b = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0)
    return 50 * np.linalg.norm(a / size_a - b / size_b, axis=0), 100 * (size_a / size_b - 1)


def exact_eeg(pos, **shells):
    # Enough Legendre terms for 0.95; one number of them, so that the series compiles once.
    return np.asarray(sphere_eeg(pos, ELECTRODES, n_terms=300, **(shells or SHELLS)))


def average_referenced(lead_field):
    return np.asarray(lead_field) - np.mean(lead_field, axis=0)


def four_shells(order, spacing=None, n_layers=(1, 4, 1)):
    sphere, faces = icosphere(order)
    mesh = layered_mesh([r * sphere for r in RADII], faces, spacing=spacing, n_layers=n_layers)
    return FEM(mesh, CONDUCTIVITY, centre=[0, 0, 0])


@pytest.fixture(scope="module")
def coarse():
    """5,000 nodes: edges of 12 mm."""
    return four_shells(3)


@pytest.fixture(scope="module")
def eeg(coarse):
    return coarse.transfer(ELECTRODES)


@pytest.fixture(scope="module")
def meg(coarse):
    return coarse.transfer(coil_pos=COIL_POS, coil_normal=COIL_NORMAL)


# Medians, in per cent, with about half as much again as measured on this coarse mesh.
@pytest.mark.parametrize(("eccentricity", "rdm", "mag"), [(0.3, 0.5, 1.0), (0.9, 2.0, 2.5)])
def test_eeg_is_that_of_the_sphere(eeg, eccentricity, rdm, mag):
    pos, *moments = dipoles(eccentricity)
    exact = average_referenced(exact_eeg(pos))
    lead_field = average_referenced(eeg.apply(pos))
    assert lead_field.shape == (64, 20, 3)
    for moment in moments:
        found_rdm, found_mag = errors(lead_field, exact, moment)
        assert np.median(found_rdm) < rdm
        assert np.median(np.abs(found_mag)) < mag


def test_eeg_is_against_the_mean_of_the_skin(eeg):
    """So is the sphere's series, up to the area of triangles below the sphere."""
    pos, *_ = dipoles(0.5)
    exact = exact_eeg(pos)
    difference = np.mean(eeg.apply(pos) - exact, axis=0)
    assert np.abs(difference).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize(("eccentricity", "rdm", "silence"), [(0.3, 0.8, 1.5), (0.9, 1.0, 2.5)])
def test_meg_is_sarvas_and_radial_dipoles_are_silent(meg, eccentricity, rdm, silence):
    pos, radial, tangential = dipoles(eccentricity)
    exact = sphere_meg(pos, COIL_POS, COIL_NORMAL)
    lead_field = meg.apply(pos)
    found_rdm, found_mag = errors(lead_field, exact, tangential)
    assert np.median(found_rdm) < rdm
    assert np.median(np.abs(found_mag)) < 0.5
    spurious = np.linalg.norm(np.einsum("cnx,nx->cn", lead_field, radial), axis=0)
    size = np.linalg.norm(np.einsum("cnx,nx->cn", exact, tangential), axis=0)
    assert np.median(100 * spurious / size) < silence


def test_the_volume_currents_matter(meg):
    """The dipole's own field alone is far from Sarvas for tilted coils."""
    pos, _, tangential = dipoles(0.7)
    alone = Transfer(**{**vars(meg), "rows": 0 * meg.rows})
    rdm, _ = errors(alone.apply(pos), sphere_meg(pos, COIL_POS, COIL_NORMAL), tangential)
    assert np.median(rdm) > 5


def test_errors_fall_with_the_square_of_the_edge(coarse, eeg):
    """Against half as many vertices and layers along every direction."""
    pos, radial, _ = dipoles(0.4)
    exact = average_referenced(exact_eeg(pos))
    coarser = four_shells(2, n_layers=(1, 2, 1)).transfer(ELECTRODES)
    large, small = (
        np.median(np.abs(errors(average_referenced(t.apply(pos)), exact, radial)), axis=1)
        for t in (coarser, eeg)
    )
    # Factors of 4 in the limit; two shells keep their single layer here.
    assert np.all(large > 2.5 * small)


def test_transfer_and_direct_solution_agree(coarse, eeg):
    """Reciprocity: a row of the transfer matrix answers what a solve for the source would."""
    from bayes_esi.forward.conjugate_gradients import solve
    from bayes_esi.forward.fem_sources import venant

    pos = np.array([0.02, -0.01, 0.05])
    nodes, loads = jax.jit(venant)(coarse.source_mesh, jnp.asarray(pos))
    right_side = np.zeros((coarse.mesh.n_nodes, 3))
    np.add.at(right_side, coarse.source_nodes[np.asarray(nodes)], np.asarray(loads))
    potential = solve(coarse.stiffness, right_side, tol=1e-10).solution
    direct = coarse._electrode_rows(ELECTRODES).T @ potential
    # Both systems are solved to the same tolerance, here 1e-6 for the transfer.
    np.testing.assert_allclose(eeg.apply(pos), direct, atol=1e-5 * np.abs(direct).max())


def test_partial_integration_is_right_but_coarser(coarse, eeg):
    pos, radial, _ = dipoles(0.7)
    exact = average_referenced(exact_eeg(pos))
    partial = Transfer(**{**vars(eeg), "source_model": "partial_integration"})
    rdm, _ = errors(average_referenced(partial.apply(pos)), exact, radial)
    best, _ = errors(average_referenced(eeg.apply(pos)), exact, radial)
    assert 2 * np.median(best) < np.median(rdm) < 10


def test_transformations_pass_through(eeg, meg):
    pos = jnp.asarray(dipoles(0.6)[0])
    expected = eeg.apply(pos)

    @jax.jit
    def transformed(transfer, p):
        return jax.vmap(transfer.apply)(p), transfer.apply(p[1])

    mapped, single = transformed(eeg, pos)
    np.testing.assert_allclose(np.moveaxis(mapped, 0, 1), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(single, expected[:, 1], rtol=1e-11, atol=1e-11)
    jacobian = jax.jit(jax.jacfwd(lambda p: meg.apply(p)[3, 0]))(pos[0])
    step = 1e-7
    around = np.tile(pos[0], (20, 1))
    around[:6] += step * np.concatenate([np.eye(3), -np.eye(3)])
    up, down = np.split(meg.apply(around)[3, :6, 0], 2)
    # Differences of a field of 1e-6 lose seven of sixteen digits.
    np.testing.assert_allclose(
        jacobian, (up - down) / (2 * step), atol=1e-6 * float(jnp.abs(jacobian).max())
    )


def test_the_head_model_keeps_its_last_transfer(coarse, monkeypatch):
    pos = dipoles(0.5)[0]
    first = coarse.eeg(pos, ELECTRODES)
    monkeypatch.setattr(FEM, "transfer", None)  # a second solve would fail
    np.testing.assert_array_equal(coarse.eeg(pos, ELECTRODES), first)
    assert first.shape == (64, 20, 3)
    assert coarse.eeg(pos[0], ELECTRODES).shape == (64, 3)


def test_certificates_are_below_the_tolerance(eeg, meg):
    for transfer in (eeg, meg):
        assert transfer.residual.shape == (transfer.n_channels,)
        assert np.all(transfer.residual <= 1e-6)


def test_saved_transfers_come_back(eeg, meg, tmp_path):
    pos = dipoles(0.5)[0]
    for transfer in (eeg, meg):
        transfer.save(tmp_path / "head.npz")
        again = Transfer.load(tmp_path / "head.npz")
        np.testing.assert_array_equal(again.apply(pos), transfer.apply(pos))
    (tmp_path / "other.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="no transfer matrix"):
        Transfer.load(tmp_path / "other.npz")


def test_single_precision_is_close(eeg):
    pos = dipoles(0.8)[0]
    expected = np.asarray(eeg.apply(pos))
    jax.config.update("jax_enable_x64", False)
    try:
        single = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32) if x.dtype.kind == "f" else x, eeg
        )
        with jax.numpy_dtype_promotion("strict"):
            found = single.apply(pos.astype(np.float32))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert found.dtype == np.float32
    # Monopoles cancel to a percent of their size: two digits of float32's seven are lost.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_coils_are_solved_for_in_single_precision(coarse):
    pos = dipoles(0.8)[0]
    expected = np.asarray(coarse.meg(pos, COIL_POS, COIL_NORMAL))
    jax.config.update("jax_enable_x64", False)
    try:
        single = FEM(coarse.mesh, coarse.conductivity, centre=coarse.centre)
        found = np.asarray(single.meg(pos, COIL_POS, COIL_NORMAL))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_voxels_work_with_their_known_error():
    spacing = 0.012
    grid = (np.indices((16, 16, 16)) - 7.5) * spacing
    distance = np.linalg.norm(grid, axis=0)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -7.5 * spacing
    with pytest.warns(UserWarning, match="voxels of 12.0 mm are a fallback"):
        mesh = hexahedra_from_volume((distance < 0.092).astype(int), affine)
    fem = FEM(mesh, [0.33])
    pos, radial, _ = dipoles(0.4)
    shell = {"radii": [0.092], "sigma_radial": [0.33], "sigma_tangential": [0.33]}
    exact = average_referenced(exact_eeg(pos, **shell))
    rdm, mag = errors(average_referenced(fem.eeg(pos, ELECTRODES)), exact, radial)
    # Without a skull nothing leaks: what is left are the stairs of the surface.
    assert np.median(rdm) < 5
    assert np.median(np.abs(mag)) < 15


def test_exposed_sources_are_counted(eeg):
    source_mesh = eeg.source_mesh
    bare = Transfer(
        **{
            **vars(eeg),
            "source_mesh": type(source_mesh)(
                **{**vars(source_mesh), "is_centre": jnp.zeros_like(source_mesh.is_centre)}
            ),
        }
    )
    with pytest.warns(UserWarning, match="20 of 20 sources lie in elements with all corners"):
        bare.apply(dipoles(0.5)[0])


@pytest.mark.parametrize(
    ("source_pos", "message"),
    [
        ([[0.0, 0.0, 40.0]], "looks like millimetres"),
        ([[0.0, 0.0, 0.04], [0.0, 0.0, 0.079]], r"1 of 2 sources lie outside .*numbers 1"),
        ([[0.0, 0.0]], "source_pos must have shape"),
        ([[0.0, np.nan, 0.0]], "NaN"),
    ],
)
def test_bad_sources_are_refused(eeg, source_pos, message):
    with pytest.raises(ValueError, match=message):
        eeg.apply(np.array(source_pos))


@pytest.mark.parametrize(
    ("sensors", "message"),
    [
        ({}, "either electrode_pos, or coil_pos"),
        ({"electrode_pos": 1.3 * ELECTRODES[:3]}, "3 of 3 electrodes are further than 15 mm"),
        ({"electrode_pos": 1e3 * ELECTRODES}, "looks like millimetres"),
        ({"electrode_pos": ELECTRODES, "coil_pos": COIL_POS}, "either electrode_pos, or coil_pos"),
        ({"coil_pos": COIL_POS, "coil_normal": 2 * COIL_NORMAL}, "unit vectors"),
        ({"coil_pos": COIL_POS, "coil_normal": COIL_NORMAL[:3]}, "coil_normal must have shape"),
        ({"coil_pos": 0.5 * COIL_POS, "coil_normal": COIL_NORMAL}, "30 of 30 coils lie inside"),
    ],
)
def test_bad_sensors_are_refused(coarse, sensors, message):
    with pytest.raises(ValueError, match=message):
        coarse.transfer(**sensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_model": "subtraction"}, "source_model must be one of"),
        ({"source_label": 4}, "source_label must be a label of the mesh, 0 to 3"),
        ({"source_label": 1}, "without any node off its surface"),
    ],
)
def test_bad_options_are_refused(coarse, options, message):
    with pytest.raises(ValueError, match=message):
        FEM(coarse.mesh, CONDUCTIVITY, centre=[0, 0, 0], **options)


@pytest.mark.slow
def test_accuracy_with_a_hundred_thousand_nodes():
    """The figures the package promises: four shells, anisotropic skull, St Venant."""
    fem = four_shells(5, 0.0041)
    assert 95_000 < fem.mesh.n_nodes < 110_000
    transfer = fem.transfer(ELECTRODES)
    for eccentricity in (0.3, 0.7, 0.9, 0.95, 0.98):
        pos, *moments = dipoles(eccentricity, n=50)
        exact = average_referenced(sphere_eeg(pos, ELECTRODES, **SHELLS))
        lead_field = average_referenced(transfer.apply(pos))
        for moment in moments:
            rdm, mag = errors(lead_field, exact, moment)
            assert np.median(rdm) < 0.5
            assert rdm.max() < 1.5
            assert np.median(np.abs(mag)) < 0.5
