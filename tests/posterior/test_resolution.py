"""Resolution from factors: against the dense matrix, MNE, and the theorems of linear estimates."""

import numpy as np
import pytest

from bayes_esi.forward import Sphere
from bayes_esi.posterior.resolution import Resolution
from bayes_esi.posterior.statistics import dspm_kernel, sloreta_kernel

HEAD = Sphere([0.080, 0.086, 0.092], [0.33, 0.0042, 0.33])


def sources(step=0.0172, radius=0.075):
    axis = np.arange(-radius, radius, step) + 0.003
    pos = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return pos[np.linalg.norm(pos, axis=1) < radius]


def electrodes(n, radius):
    """Points spread evenly over the upper part of a sphere."""
    z = 1 - 1.4 * (np.arange(n) + 0.5) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    ring = np.sqrt(1 - z**2)
    return radius * np.column_stack([ring * np.cos(angle), ring * np.sin(angle), z])


@pytest.fixture(scope="module")
def eeg():
    """Unit mean power: a noise variance of 1 is a signal-to-noise ratio of 1."""
    pos = sources()
    field = np.asarray(HEAD.eeg(pos, electrodes(40, 0.092), exact=False))
    return pos, field / np.sqrt(np.mean(np.sum(field**2, axis=(1, 2))))


@pytest.fixture(scope="module")
def meg():
    pos = sources()
    coils = electrodes(60, 0.11)
    field = np.asarray(HEAD.meg(pos, coils, coils / 0.11))
    return pos, field / np.sqrt(np.mean(np.sum(field**2, axis=(1, 2))))


def minimum_norm(field, variance=1.0):
    """Kernel (n, a, m) of the posterior mean; prior less posterior covariance of each source."""
    m, n, a = field.shape
    flat = field.reshape(m, -1)
    data_cov = variance * flat @ flat.T + np.eye(m)
    kernel = (variance * np.linalg.solve(data_cov, flat).T).reshape(n, a, m)
    return kernel, variance * np.einsum("nam,mnb->nab", kernel, field, optimize=True)


def by_hand(matrix, pos):
    """Measures of the columns of a matrix of magnitudes."""
    n = len(pos)
    distance = np.linalg.norm(pos[:, None] - pos, axis=2)
    total = matrix.sum(axis=0)
    gravity = (matrix.T @ pos) / total[:, None]
    deviation = np.sqrt((distance**2 * matrix**2).sum(axis=0) / (matrix**2).sum(axis=0))
    peak = matrix.max(axis=0)
    return np.column_stack(
        [
            1e3 * distance[matrix.argmax(axis=0), np.arange(n)],
            1e3 * np.linalg.norm(gravity - pos, axis=1),
            1e3 * deviation,
            peak / peak.max(),
            total / total.max(),
        ]
    )


@pytest.mark.parametrize("a", [1, 3])
def test_against_the_dense_matrix(eeg, a, monkeypatch):
    # Several blocks of columns, the last of which overlaps.
    monkeypatch.setattr("bayes_esi.posterior.resolution._BLOCK", 100_000)
    pos, field = eeg
    field = field[:, :, :a]
    n = len(pos)
    assert 300 < n < 500
    kernel, _ = minimum_norm(field)
    resolution = Resolution(kernel, field, pos)
    matrix = resolution.matrix()
    dense = np.einsum("iam,mjb->iajb", kernel, field, optimize=True)
    np.testing.assert_allclose(matrix, dense, atol=1e-14)
    assert np.isclose(resolution.trace(), np.einsum("iaia->", dense))

    size = np.linalg.norm(dense, axis=(1, 3))
    # Rounding of single numbers of order 0.1 m^2 * 1e-16 under a root of 1e-4.
    np.testing.assert_allclose(resolution.metrics(), by_hand(size, pos), rtol=1e-9, atol=1e-9)
    rows = resolution.metrics("cross_talk")
    np.testing.assert_allclose(rows, by_hand(size.T, pos), rtol=1e-9, atol=1e-9)

    signed = dense[:, 0, 7, 0] if a == 1 else size[:, 7]
    np.testing.assert_allclose(resolution.point_spread(7), signed, atol=1e-14)
    signed = dense[7, 0, :, 0] if a == 1 else size[7]
    np.testing.assert_allclose(resolution.cross_talk(7), signed, atol=1e-14)


def test_along_orientations(eeg):
    pos, field = eeg
    kernel, _ = minimum_norm(field)
    resolution = Resolution(kernel, field, pos)
    dense = resolution.matrix()
    ori = np.random.default_rng(0).standard_normal((len(pos), 3))
    unit = ori / np.linalg.norm(ori, axis=1, keepdims=True)
    columns = np.einsum("iajb,jb->iaj", dense, unit)
    rows = np.einsum("iajb,ia->ijb", dense, unit)
    np.testing.assert_allclose(resolution.point_spread(5, ori[5]), columns[:, :, 5], atol=1e-14)
    np.testing.assert_allclose(resolution.cross_talk(5, ori[5]), rows[5], atol=1e-14)
    measures = resolution.metrics("point_spread", ori)
    expected = by_hand(np.linalg.norm(columns, axis=1), pos)
    np.testing.assert_allclose(measures, expected, rtol=1e-9, atol=1e-9)
    measures = resolution.metrics("cross_talk", ori)
    expected = by_hand(np.linalg.norm(rows, axis=2).T, pos)
    np.testing.assert_allclose(measures, expected, rtol=1e-9, atol=1e-9)


def test_identities_of_the_posterior_mean(eeg):
    pos, field = eeg
    variance = 3.0
    kernel, explained = minimum_norm(field, variance)
    m, n, a = field.shape
    resolution = Resolution(kernel, field, pos)
    flat = resolution.matrix().reshape(n * a, n * a)
    np.testing.assert_allclose(flat, flat.T, atol=1e-13)
    eigenvalues = np.linalg.eigvalsh(flat)
    assert eigenvalues.min() > -1e-12 and eigenvalues.max() < 1
    power = np.linalg.eigvalsh(variance * field.reshape(m, -1) @ field.reshape(m, -1).T)
    assert np.isclose(resolution.trace(), np.sum(power / (power + 1)), rtol=1e-12)
    whole = np.linalg.inv(np.eye(n * a) / variance + field.reshape(m, -1).T @ field.reshape(m, -1))
    np.testing.assert_allclose((np.eye(n * a) - flat) * variance, whole, atol=1e-11)
    own = np.stack([whole.reshape(n, a, n, a)[j, :, j] for j in range(n)])
    np.testing.assert_allclose(variance * np.eye(a) - explained, own, atol=1e-11)

    # Less noise, a better resolution.
    sharp = Resolution(minimum_norm(field, 1e3)[0], field, pos)
    assert sharp.trace() > resolution.trace()
    assert (
        sharp.metrics()["spatial_deviation_mm"].mean()
        < resolution.metrics()["spatial_deviation_mm"].mean()
    )


def test_factors_with_weights(eeg):
    pos, field = eeg
    kernel, _ = minimum_norm(field)
    m = len(field)
    power, vectors = np.linalg.eigh(field.reshape(m, -1) @ field.reshape(m, -1).T)
    rotated = np.einsum("mk,mna->kna", vectors, field, optimize=True)
    left = rotated.transpose(1, 2, 0)
    factored = Resolution(left, rotated, pos, weights=1 / (power + 1))
    np.testing.assert_allclose(
        factored.matrix(), Resolution(kernel, field, pos).matrix(), atol=1e-13
    )


@pytest.mark.parametrize("variance", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", ["fixed", "free", "meg"])
def test_sloreta_has_no_localisation_error(eeg, meg, name, variance):
    pos, field = meg if name == "meg" else eeg
    field = field[:, :, :1] if name == "fixed" else field
    kernel, explained = minimum_norm(field, variance)
    resolution = Resolution(sloreta_kernel(kernel, explained), field, pos)
    orientations = (
        [None]
        if name == "fixed"
        else [None, *np.random.default_rng(0).standard_normal((2, len(pos), 3))]
    )
    for orientation in orientations:
        measures = resolution.metrics("point_spread", orientation)
        assert np.all(measures["peak_error_mm"] == 0)
    if name == "free" and variance == 1.0:
        # Neither the estimate nor dSPM has this property: the test can fail.
        for other in (kernel, dspm_kernel(kernel)):
            assert Resolution(other, field, pos).metrics()["peak_error_mm"].mean() > 3


def test_one_number_a_source_is_not_exact(eeg):
    """MNE's scalar standardisation of free orientations misplaces some sources."""
    pos, field = eeg
    kernel, explained = minimum_norm(field)
    scalar = kernel / np.sqrt(np.trace(explained, axis1=1, axis2=2))[:, None, None]
    directions = np.random.default_rng(0).standard_normal((len(pos), 3))
    errors = Resolution(scalar, field, pos).metrics("point_spread", directions)["peak_error_mm"]
    assert np.any(errors > 0)


def test_equals_mne(data_dir):
    import mne
    from mne.minimum_norm import (
        make_inverse_operator,
        make_inverse_resolution_matrix,
        resolution_metrics,
    )

    folder = data_dir / "sample"
    with mne.use_log_level("ERROR"):
        evoked = mne.read_evokeds(folder / "sample_left-ave.fif.gz", condition=0).pick("grad")
        info = mne.pick_info(evoked.info, np.arange(0, len(evoked.ch_names), 4))
        info["bads"] = []
        head = mne.make_sphere_model((0.0, 0.0, 0.04), 0.09, info)
        rng = np.random.default_rng(0)
        halves = []
        for side, hemi in ((-1, 101), (1, 102)):
            unit = rng.standard_normal((60, 3))
            unit[:, 0] = side * (np.abs(unit[:, 0]) + 0.1)
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            place = 0.06 * unit + [0, 0, 0.045]
            tangent = np.cross(unit, [0.3, 0.4, 0.5])
            tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
            halves.append(mne.setup_volume_source_space(pos=dict(rr=place, nn=tangent))[0])
            # As surfaces, the only kind of which MNE takes measures.
            halves[-1].update(
                type="surf",
                id=hemi,
                tris=np.zeros((0, 3), int),
                use_tris=np.zeros((0, 3), int),
                ntri=0,
                nuse_tri=0,
                patch_inds=None,
                nearest=None,
                dist=None,
            )
        src = mne.SourceSpaces(halves)
        forward = mne.make_forward_solution(info, None, src, head)
        forward = mne.convert_forward_solution(forward, force_fixed=True, use_cps=False)
        noise_cov = mne.make_ad_hoc_cov(info)
        operator = make_inverse_operator(info, forward, noise_cov, fixed=True, depth=None)
        dense = make_inverse_resolution_matrix(forward, operator, "MNE", lambda2=1 / 9)

    whitener, _ = mne.cov.compute_whitener(noise_cov, info, verbose="ERROR")
    field = (whitener @ forward["sol"]["data"])[:, :, None]
    # MNE's scale of the prior: trace(G R G') is the number of channels.
    kernel, _ = minimum_norm(field, 9 * len(field) / np.sum(field**2))
    pos = np.vstack([half["rr"] for half in forward["src"]])
    resolution = Resolution(kernel, field, pos)
    ours = resolution.matrix()[:, 0, :, 0]
    # MNE keeps its operator in single precision.
    np.testing.assert_allclose(ours, dense, atol=1e-5 * np.abs(dense).max())
    for kind, function in (("point_spread", "psf"), ("cross_talk", "ctf")):
        measures = resolution.metrics(kind)
        for name, metric, unit in (
            ("peak_error_mm", "peak_err", 10),
            ("gravity_error_mm", "cog_err", 10),
            ("spatial_deviation_mm", "sd_ext", 10),
            ("relative_peak", "peak_amp", 1),
            ("relative_total", "sum_amp", 1),
        ):
            expected = resolution_metrics(ours, forward["src"], function, metric, verbose="ERROR")
            np.testing.assert_allclose(
                measures[name], unit * expected.data[:, 0], rtol=1e-7, atol=1e-9
            )


def test_silent_sources_and_single_precision(eeg):
    pos, field = eeg
    kernel, _ = minimum_norm(field)
    kernel, field = kernel.astype(np.float32), field.astype(np.float32)
    low = Resolution(kernel, field, pos.astype(np.float32)).metrics()
    high = Resolution(kernel.astype(float), field.astype(float), pos).metrics()
    # Cancellation of squared distances of 1e-2 m^2 in seven digits.
    np.testing.assert_allclose(low, high, rtol=1e-3, atol=1e-2)
    field = field.copy()
    field[:, 4] = 0
    measures = Resolution(kernel, field, pos).metrics()
    assert measures.loc[4].isna().sum() == 3 and measures.loc[4, "relative_peak"] == 0
    assert not measures.drop(index=4).isna().any().any()


def test_bad_input(eeg):
    pos, field = eeg
    kernel, _ = minimum_norm(field)
    resolution = Resolution(kernel, field, pos)
    with pytest.raises(ValueError, match="lead_field must have shape"):
        Resolution(kernel, field[:, 1:], pos)
    with pytest.raises(ValueError, match="memory_limit"):
        resolution.matrix(memory_limit=1e6)
    with pytest.raises(ValueError, match="kind must be one of"):
        resolution.metrics("psf")
    with pytest.raises(ValueError, match="source must lie below"):
        resolution.point_spread(len(pos))
    with pytest.raises(ValueError, match="must not be zero"):
        resolution.cross_talk(0, np.zeros(3))
