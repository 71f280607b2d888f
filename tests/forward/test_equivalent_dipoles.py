"""Equivalent dipoles against the exact series, their reductions, and MNE's three dipoles."""

import jax
import mne
import numpy as np
import pytest

from bayes_esi.forward.equivalent_dipoles import fit_equivalent_dipoles
from bayes_esi.forward.sphere import sphere_eeg

THREE_SHELLS = ([0.080, 0.086, 0.092], [0.33, 0.33 / 80, 0.33], [0.33, 0.33 / 80, 0.33])
FOUR_SHELLS = ([0.078, 0.080, 0.086, 0.092], [0.33, 1.79, 0.01, 0.33], [0.33, 1.79, 0.03, 0.33])
# The shells of mne.make_sphere_model, a skull thinner than it conducts badly, a child's head.
MNE_SHELLS = ([0.081, 0.0828, 0.0873, 0.09], [0.33, 1.0, 0.004, 0.33], [0.33, 1.0, 0.004, 0.33])
THIN_SHELLS = ([0.088, 0.089, 0.090], [0.33, 0.01, 0.33], [0.33, 0.01, 0.33])
CHILD = ([0.050, 0.053, 0.056], [0.33, 0.04, 0.33], [0.33, 0.04, 0.33])
# A cerebrospinal fluid that hides the skull: poles of the fit are complex at first.
LIQUOR = ([0.080, 0.086, 0.092], [0.33, 0.66, 0.2], [0.33, 0.66, 0.2])


def directions(n, seed=0):
    points = np.random.default_rng(seed).standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def upper_electrodes(radius, n=64):
    """Evenly over the upper two thirds of the sphere."""
    height = 1 - 1.3 * (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - height**2)
    points = np.stack([across * np.cos(angle), across * np.sin(angle), height], axis=1)
    return radius * points


def sources(inner_radius, n=40):
    eccentricity = np.repeat([0.05, 0.5, 0.8, 0.9, 0.98], n // 5)
    return inner_radius * eccentricity[:, None] * directions(n, 1)


def rdm_and_mag(lead_field, reference):
    """Largest RDM and |MAG| in per cent over radial and tangential moments."""
    a, b = (np.asarray(x) - np.mean(x, axis=0) for x in (lead_field, reference))
    size_a, size_b = (np.linalg.norm(x, axis=0) for x in (a, b))
    rdm = 50 * np.linalg.norm(a / size_a - b / size_b, axis=0)
    return rdm.max(), 100 * np.abs(size_a / size_b - 1).max()


def exact(shells, source_pos, electrode_pos):
    """Exact series; outermost shells are split until there are four: one compilation for all."""
    radii, radial, tangential = shells
    if len(radii) == 3:
        radii = [*radii[:2], 0.5 * (radii[1] + radii[2]), radii[2]]
        radial, tangential = ([*x, x[2]] for x in (radial, tangential))
    return sphere_eeg(
        source_pos,
        electrode_pos,
        radii=radii,
        sigma_radial=radial,
        sigma_tangential=tangential,
        n_terms=1000,  # enough for the thinnest: (0.98 * 88 / 90)^1000 = 3e-19
    )


@pytest.mark.parametrize(
    "shells", [THREE_SHELLS, FOUR_SHELLS, MNE_SHELLS, THIN_SHELLS, CHILD, LIQUOR]
)
def test_eight_dipoles_are_as_good_as_the_series(shells):
    # Fewer than 64 electrodes for speed; the extreme directions are among them.
    electrode_pos = upper_electrodes(shells[0][-1], 32)
    source_pos = sources(shells[0][0], 20)
    dipoles = fit_equivalent_dipoles(*shells)
    rdm, mag = rdm_and_mag(
        dipoles.eeg(source_pos, electrode_pos), exact(shells, source_pos, electrode_pos)
    )
    assert rdm < 0.01  # the bound; measured 1e-6 to 1e-3
    assert mag < 0.02
    # Electrodes far from a source just under the skull see a smaller potential: relative to that
    # the error was up to thirty times that over the sphere.
    assert rdm < 50 * 100 * dipoles.error


def test_more_dipoles_fit_better_and_the_error_says_how_well():
    electrode_pos, source_pos = upper_electrodes(0.092, 32), sources(0.08, 20)
    reference = exact(THREE_SHELLS, source_pos, electrode_pos)
    # Twice what a throw-away fit reached on the same head.
    for n_dipoles, bound in [(3, 1.3), (4, 0.2), (6, 0.013), (8, 1e-4)]:
        dipoles = fit_equivalent_dipoles(*THREE_SHELLS, n_dipoles)
        assert dipoles.n_dipoles <= n_dipoles
        rdm, _ = rdm_and_mag(dipoles.eeg(source_pos, electrode_pos), reference)
        assert rdm < bound
        assert 50 * dipoles.error < bound


def test_a_homogeneous_sphere_is_one_dipole():
    dipoles = fit_equivalent_dipoles([0.06, 0.09], [0.33, 0.33], [0.33, 0.33])
    assert dipoles.n_dipoles == 1
    np.testing.assert_allclose([dipoles.weight[0], dipoles.factor[0]], 1.0, rtol=1e-12)


def test_mne_and_its_three_dipoles_are_within_two_per_cent():
    """MNE's EEG sphere is itself a fit: up to 1.9 % RDM and MAG on its own default head."""
    electrode_pos, source_pos = upper_electrodes(0.09, 32), sources(0.081, 20)[4:]
    montage = mne.channels.make_dig_montage(
        {f"E{i:02d}": pos for i, pos in enumerate(electrode_pos)}, coord_frame="head"
    )
    info = mne.create_info(montage.ch_names, 1000.0, "eeg").set_montage(montage)
    normals = np.tile([0.0, 0, 1], (len(source_pos), 1))
    forward = mne.make_forward_solution(
        info,
        mne.Transform("head", "mri", np.eye(4)),
        mne.setup_volume_source_space(pos={"rr": source_pos, "nn": normals}, verbose="error"),
        mne.make_sphere_model((0.0, 0.0, 0.0), 0.09, verbose="error"),
        meg=False,
        mindist=0.0,
        verbose="error",
    )
    theirs = forward["sol"]["data"].reshape(len(electrode_pos), -1, 3)
    assert theirs.shape[1] == len(source_pos)
    ours = fit_equivalent_dipoles(*MNE_SHELLS).eeg(source_pos, electrode_pos)
    rdm, mag = rdm_and_mag(theirs, ours)
    assert 1e-3 < rdm < 2.0
    assert mag < 2.0


@pytest.mark.parametrize("place", ["centre", "axis", "off the axis"])
def test_values_and_derivatives_are_finite_and_right(place):
    dipoles, electrode_pos = fit_equivalent_dipoles(*FOUR_SHELLS), upper_electrodes(0.092, 32)
    pos = {
        "centre": np.zeros(3),
        "axis": 0.7 * electrode_pos[2],
        "off the axis": np.array([0.01, 0.03, 0.06]),
    }[place]

    def lead_field(pos):
        return dipoles.eeg(pos, electrode_pos)

    gradient = jax.jacrev(lead_field)(pos)
    step = 1e-5  # m: centred difference good to (step / 30 mm)^2 = 1e-7
    shifts = step * np.eye(3)
    difference = (lead_field(pos + shifts) - lead_field(pos - shifts)) / (2 * step)
    difference = np.moveaxis(difference, 1, 2)
    size = np.abs(difference).max()
    np.testing.assert_allclose(gradient, difference, atol=1e-6 * size, rtol=0)


@pytest.mark.parametrize("shells", [FOUR_SHELLS, MNE_SHELLS])
def test_single_precision(shells):
    electrode_pos, source_pos = upper_electrodes(shells[0][-1], 32), sources(shells[0][0], 20)
    dipoles = fit_equivalent_dipoles(*shells)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        single = dipoles.eeg(source_pos.astype(np.float32), electrode_pos.astype(np.float32))
    assert single.dtype == np.float32
    rdm, mag = rdm_and_mag(single, dipoles.eeg(source_pos, electrode_pos))
    # 1e-5 relative: weights of one sign or nearly so leave float32 its digits.
    assert rdm < 50 * 1e-5
    assert mag < 100 * 1e-5


def test_the_fit_is_an_argument_of_compiled_code():
    @jax.jit
    def lead_field(dipoles, source_pos):
        return jax.vmap(dipoles.eeg, (0, None), 1)(source_pos, electrode_pos)

    electrode_pos, source_pos = upper_electrodes(0.092, 32), sources(0.078, 20)
    dipoles = fit_equivalent_dipoles(*FOUR_SHELLS)
    plain = np.asarray(dipoles.eeg(source_pos, electrode_pos))
    np.testing.assert_allclose(lead_field(dipoles, source_pos), plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_tangential": [0.4, 0.33, 0.33]}, "innermost shell must be isotropic"),
        ({"radii": [0.086, 0.080, 0.092]}, "radii must increase"),
        ({"n_dipoles": 0}, "n_dipoles must be an integer of at least 1"),
    ],
)
def test_shells_that_cannot_be_fitted_are_refused(change, message):
    names = ("radii", "sigma_radial", "sigma_tangential")
    with pytest.raises(ValueError, match=message):
        fit_equivalent_dipoles(**(dict(zip(names, THREE_SHELLS, strict=True)) | change))


@pytest.mark.parametrize(
    ("source_pos", "electrode_pos", "message"),
    [
        (np.array([[0, 0, 0.083]]), upper_electrodes(0.092, 4), "1 of 1 sources outside the inner"),
        (np.zeros((1, 3)), upper_electrodes(0.090, 4), "4 of 4 electrodes off the outermost"),
        (np.zeros((1, 3)), upper_electrodes(92.0, 4), "electrode_pos .*millimetres"),
    ],
)
def test_bad_positions_are_named(source_pos, electrode_pos, message):
    dipoles = fit_equivalent_dipoles(*THREE_SHELLS, 3)
    with pytest.raises(ValueError, match=message):
        dipoles.eeg(source_pos, electrode_pos)
