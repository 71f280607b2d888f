"""LCMV filters: their constraints, MNE's numbers, localisation, and the failure that is theirs."""

import numpy as np
import pytest

from bayes_esi.inference import beamformer
from bayes_esi.inference.beamformer import NORMALISATIONS, covariance_of

M, N = 20, 30


def scene(d=3, seed=0):
    """Lead field and the covariance of data with two uncorrelated sources, 3 and 17."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((M, N, d)) * np.exp(rng.uniform(-1, 1, N))[:, None]
    ori = rng.standard_normal((2, d))
    ori /= np.linalg.norm(ori, axis=1, keepdims=True)
    found = np.stack([field[:, j] @ o for j, o in zip((3, 17), ori, strict=True)], axis=1)
    return field, np.eye(M) + found @ found.T, ori


def test_unit_gain_passes_its_source_with_least_power():
    field, cov, _ = scene()
    result = beamformer.run(field, cov, normalisation="unit_gain", loading=0)
    weights = np.asarray(result.weights)
    gain = np.einsum("nam,mnb->nab", weights, field)
    np.testing.assert_allclose(gain, np.broadcast_to(np.eye(3), gain.shape), atol=1e-11)
    rng = np.random.default_rng(1)
    for j in range(0, N, 7):
        # Any other filter with the same gain: add what the field cannot see.
        blind = rng.standard_normal((3, M))
        blind -= blind @ field[:, j] @ np.linalg.pinv(field[:, j])
        other = weights[j] + 0.1 * blind
        assert np.trace(other @ cov @ other.T) > float(result.power[j])


def test_noise_gains():
    field, cov, _ = scene()
    result = beamformer.run(field, cov, normalisation="unit_noise_gain")
    np.testing.assert_allclose(np.linalg.norm(result.weights, axis=2), 1, rtol=1e-12)
    result = beamformer.run(field, cov)
    weights = np.asarray(result.weights)
    gram = weights @ weights.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    # White data: a flat map.
    flat = beamformer.run(field, np.eye(M))
    np.testing.assert_allclose(flat.power, 3, rtol=1e-12)
    np.testing.assert_allclose(flat.pseudo_z, 1, rtol=1e-12)
    index = beamformer.run(field, cov, normalisation="neural_activity_index")
    plain = beamformer.run(field, cov, normalisation="unit_noise_gain")
    np.testing.assert_allclose(index.power * index.noise_level, plain.power, rtol=1e-12)


def test_noise_level_is_the_larger_of_two():
    field, cov, _ = scene()
    for loading, level in ((0.0, np.linalg.eigvalsh(cov)[0]), (3.0, 3 * np.trace(cov) / M)):
        result = beamformer.run(field, cov, loading=loading)
        assert np.isclose(result.noise_level, level, rtol=1e-12)


def test_axes_do_not_matter():
    field, cov, _ = scene()
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    for name in ("unit_gain", "array_gain", "unit_noise_gain_invariant"):
        first = beamformer.run(field, cov, normalisation=name)
        second = beamformer.run(field @ turn, cov, normalisation=name)
        np.testing.assert_allclose(second.power, first.power, rtol=1e-11)
    for name in NORMALISATIONS:
        first = beamformer.run(field, cov, normalisation=name, is_max_power=True)
        second = beamformer.run(field @ turn, cov, normalisation=name, is_max_power=True)
        along = np.abs(np.sum(first.orientations * (second.orientations @ turn.T), axis=1))
        np.testing.assert_allclose(along, 1, rtol=1e-9)
        np.testing.assert_allclose(second.power, first.power, rtol=1e-9)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_max_power_is_a_maximum(name):
    field, cov, _ = scene()
    best = beamformer.run(field, cov, normalisation=name, is_max_power=True)
    assert best.weights.shape == (N, 1, M)
    rng = np.random.default_rng(0)
    for spread in (1.0, 0.03):
        for _ in range(5):
            ori = np.asarray(best.orientations) + spread * rng.standard_normal((N, 3))
            ori /= np.linalg.norm(ori, axis=1, keepdims=True)
            fixed = np.einsum("mnd,nd->mn", field, ori)[:, :, None]
            other = beamformer.run(fixed, cov, normalisation=name)
            # The loaded covariance decides; what is reported has no loading: hence loading 0.05.
            inverse = np.linalg.inv(cov + best.loading * np.eye(M))
            measured = [_loaded_power(w, inverse, name) for w in (best.weights, other.weights)]
            assert np.all(measured[0] >= measured[1] * (1 - 1e-9))


def _loaded_power(weights, inverse, name):
    weights = np.asarray(weights)[:, 0]
    power = np.einsum("nm,mk,nk->n", weights, np.linalg.inv(inverse), weights)
    return power


@pytest.mark.parametrize(
    "name", ["unit_noise_gain_invariant", "neural_activity_index", "array_gain"]
)
@pytest.mark.parametrize("strength", [0.5, 30.0])
def test_a_single_source_is_found_at_every_place(name, strength):
    field, _, _ = scene()
    rng = np.random.default_rng(2)
    for j in range(N):
        ori = rng.standard_normal(3)
        source = strength * field[:, j] @ (ori / np.linalg.norm(ori))
        cov = np.eye(M) + np.outer(source, source)
        result = beamformer.run(field, cov, normalisation=name, is_max_power=True, loading=0)
        assert np.argmax(result.power) == j
        along = np.abs(np.asarray(result.orientations)[j] @ ori) / np.linalg.norm(ori)
        np.testing.assert_allclose(along, 1, rtol=1e-6)


def test_correlated_sources_cancel():
    field, cov, ori = scene()
    pair = sum(field[:, j] @ o for j, o in zip((3, 17), ori, strict=True))
    synchronous = np.eye(M) + np.outer(pair, pair)

    def found(cov):
        power = np.asarray(beamformer.run(field, cov, is_max_power=True, loading=0).pseudo_z)
        return power[[3, 17]]

    assert np.all(found(synchronous) < 0.5 * found(cov))


def test_radial_blindness():
    """A direction without field gets no weight, and the rest is as if it were not there."""
    field, cov, _ = scene(2)
    frame = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0][:, :2]
    deficient = field @ frame.T
    for name in ("unit_gain", "unit_noise_gain_invariant", "array_gain"):
        for is_max_power in (False, True):
            options = dict(normalisation=name, is_max_power=is_max_power)
            whole = beamformer.run(field, cov, **options)
            result = beamformer.run(deficient, cov, **options)
            np.testing.assert_allclose(result.power, whole.power, rtol=1e-8)
            if not is_max_power:
                weights = frame @ np.asarray(whole.weights)
                np.testing.assert_allclose(result.weights, weights, atol=1e-9)
    silent = deficient.copy()
    silent[:, 5] = 0
    result = beamformer.run(silent, cov, is_max_power=True)
    assert np.isfinite(result.weights).all() and result.pseudo_z[5] == 0


def test_rank_and_loading():
    field, cov, _ = scene()
    result = beamformer.run(field, cov, rank=12, loading=0.1)
    values = np.linalg.eigvalsh(cov)[-12:]
    assert np.isclose(result.loading, 0.1 * values.mean())
    vectors = np.linalg.eigh(cov)[1][:, -12:]
    projected = np.einsum("mr,mnd->rnd", vectors, field)
    inside = beamformer.run(projected, np.diag(values), loading=0.1)
    weights = np.asarray(inside.weights) @ vectors.T
    np.testing.assert_allclose(result.weights, weights, atol=1e-11)
    data = np.random.default_rng(0).standard_normal((M, 7))
    np.testing.assert_allclose(covariance_of(data), data @ data.T / 7)
    # Fewer samples than rows: the loading keeps it regular.
    assert np.isfinite(beamformer.run(field, covariance_of(data)).weights).all()


def test_single_precision():
    field, cov, _ = scene()
    low = beamformer.run(field.astype(np.float32), cov.astype(np.float32), is_max_power=True)
    high = beamformer.run(field, cov, is_max_power=True)
    assert low.weights.dtype == np.float32
    np.testing.assert_allclose(low.power, high.power, rtol=1e-4)


@pytest.fixture(scope="module")
def recording(data_dir):
    """Every third sensor of the sample recording with its projectors, and 40 tangential places."""
    import mne

    folder = data_dir / "sample"
    with mne.use_log_level("ERROR"):
        evoked = mne.read_evokeds(
            folder / "sample_left-ave.fif.gz", condition=0, baseline=(None, 0)
        ).pick("mag")
        evoked.pick(evoked.ch_names[::2]).apply_proj()
        noise_cov = mne.read_cov(folder / "sample_audvis-cov.fif.gz").pick_channels(evoked.ch_names)
        rng = np.random.default_rng(0)
        unit = rng.standard_normal((40, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        source_pos = 0.05 * unit + [0, 0, 0.045]
        # A sphere off the centre of its sources: no direction is exactly silent.
        head = mne.make_sphere_model((0.0, 0.0, 0.04), 0.09, evoked.info)
        src = mne.setup_volume_source_space(pos=dict(rr=source_pos, nn=unit))
        forward = mne.make_forward_solution(evoked.info, None, src, head)
        # The silent radial direction of a sphere would be an error in MNE.
        noise = rng.standard_normal(forward["sol"]["data"].shape)
        forward["sol"]["data"] += 0.05 * np.std(forward["sol"]["data"]) * noise
        whitener, _ = mne.cov.compute_whitener(noise_cov, evoked.info, pca=True)
        full, _ = mne.cov.compute_whitener(noise_cov, evoked.info, pca=False)
    data_cov = noise_cov.copy()
    white = whitener @ evoked.data
    signal = white @ white.T / white.shape[1]
    color = np.linalg.pinv(whitener)
    data_cov["data"] = color @ (signal + np.eye(len(white))) @ color.T
    data_cov["diag"] = False
    return evoked, forward, noise_cov, data_cov, whitener, full


@pytest.mark.parametrize("is_max_power", [False, True])
@pytest.mark.parametrize(
    ("name", "weight_norm"),
    [
        ("unit_gain", None),
        ("unit_noise_gain", "unit-noise-gain"),
        ("unit_noise_gain_invariant", "unit-noise-gain-invariant"),
        ("neural_activity_index", "nai"),
    ],
)
def test_equals_mne(recording, name, weight_norm, is_max_power):
    import mne

    evoked, forward, noise_cov, data_cov, whitener, full = recording
    with mne.use_log_level("ERROR"):
        filters = mne.beamformer.make_lcmv(
            evoked.info,
            forward,
            data_cov,
            noise_cov=noise_cov,
            weight_norm=weight_norm,
            pick_ori="max-power" if is_max_power else "vector",
        )
    n_channels = len(evoked.ch_names)
    field = np.einsum("rc,cp->rp", whitener, forward["sol"]["data"]).reshape(len(whitener), -1, 3)
    cov = whitener @ data_cov["data"] @ whitener.T
    assert len(whitener) < n_channels
    ours = beamformer.run(
        field,
        cov,
        normalisation=name,
        is_max_power=is_max_power,
        # MNE's mean eigenvalue counts the channels, with the rank that projectors took.
        loading=0.05 * len(whitener) / n_channels,
    )
    # Filters for data whitened without reduction, as MNE keeps them.
    turn = full @ np.linalg.pinv(whitener)
    np.testing.assert_allclose(turn.T @ turn, np.eye(len(whitener)), atol=1e-9)
    weights = np.asarray(ours.weights) @ turn.T
    expected = filters["weights"].reshape(weights.shape)
    if is_max_power:
        sign = np.sign(np.sum(weights * expected, axis=(1, 2), keepdims=True))
        weights = sign * weights
        along = np.abs(np.sum(ours.orientations * filters["max_power_ori"], axis=1))
        np.testing.assert_allclose(along, 1, rtol=1e-9)
    np.testing.assert_allclose(weights, expected, atol=1e-6 * np.abs(expected).max())
    power = mne.beamformer.apply_lcmv_cov(data_cov, filters, verbose="ERROR").data[:, 0]
    np.testing.assert_allclose(ours.power, power, rtol=1e-6)


def test_fixed_orientation_equals_mne(recording):
    from mne.beamformer._compute_beamformer import _compute_beamformer

    _, forward, _, data_cov, whitener, _ = recording
    field = (whitener @ forward["sol"]["data"])[:, 2::3]
    cov = whitener @ data_cov["data"] @ whitener.T
    n = field.shape[1]
    for name, weight_norm in (
        ("unit_gain", None),
        ("unit_noise_gain_invariant", "unit-noise-gain"),
    ):
        # Volumes have no fixed orientation in `make_lcmv`; its own kernel has.
        expected, _ = _compute_beamformer(
            field,
            cov,
            0.05,
            1,
            weight_norm,
            None,
            False,
            len(cov),
            "matrix",
            np.tile([0.0, 0, 1], (n, 1)),
            np.ones(n),
            np.eye(len(cov)),
        )
        ours = beamformer.run(field[:, :, None], cov, normalisation=name)
        np.testing.assert_allclose(
            ours.weights[:, 0], expected, atol=1e-10 * np.abs(expected).max()
        )


def test_bad_input():
    field, cov, _ = scene()
    with pytest.raises(ValueError, match="normalisation must be one of"):
        beamformer.run(field, cov, normalisation="nai")
    with pytest.raises(ValueError, match="covariance must have shape"):
        beamformer.run(field, cov[1:, 1:])
    with pytest.raises(ValueError, match="positive semidefinite"):
        beamformer.run(field, cov - 5 * np.eye(M))
    with pytest.raises(ValueError, match="symmetric"):
        beamformer.run(field, np.triu(cov))
    with pytest.raises(ValueError, match="covariance is singular"):
        beamformer.run(field, np.diag(np.arange(M) % 2.0), loading=0)
    with pytest.raises(ValueError, match="rank must be at most"):
        beamformer.run(field, cov, rank=M + 1)
    with pytest.raises(ValueError, match="loading must not be negative"):
        beamformer.run(field, cov, loading=-1)
