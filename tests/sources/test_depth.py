"""Depth weights: MNE's numbers, equal fields at exponent 1, and the cap."""

import numpy as np
import pytest

from bayes_esi.sources.depth import depth_weights, field_power


@pytest.fixture
def lead_field():
    rng = np.random.default_rng(1)
    depth = np.exp(rng.uniform(-4, 0, 200))
    return rng.standard_normal((20, 200, 3)) * depth[:, None]


def test_power_is_the_spectral_norm(lead_field):
    power = field_power(lead_field)
    by_hand = [np.linalg.norm(lead_field[:, j], ord=2) ** 2 for j in range(200)]
    np.testing.assert_allclose(power, by_hand, rtol=1e-12)


def test_exponents(lead_field):
    assert np.all(depth_weights(lead_field, 0.0) == 1)
    full = depth_weights(lead_field, 1.0, limit=None)
    powers = field_power(lead_field * np.sqrt(full)[:, None])
    np.testing.assert_allclose(powers, powers[0], rtol=1e-12)
    half = depth_weights(lead_field, 0.5, limit=None)
    np.testing.assert_allclose(half, np.sqrt(full), rtol=1e-12)


def test_the_cap_binds_the_deep(lead_field):
    limit = 5.0
    weights = depth_weights(lead_field, 1.0, limit)
    assert weights.max() == 1 and np.sum(weights == 1) > 10
    # The cap is the first value above limit^2, hence slightly more than it.
    assert limit**2 <= 1 / weights.min() < 1.2 * limit**2
    order = np.argsort(field_power(lead_field))
    assert np.all(np.diff(weights[order]) <= 0)


def test_units_do_not_matter(lead_field):
    np.testing.assert_allclose(
        depth_weights(1e-9 * lead_field), depth_weights(lead_field), rtol=1e-12
    )


@pytest.mark.parametrize("n_orient", [1, 2])
def test_fewer_orientations_and_silent_sources(lead_field, n_orient):
    lead_field = lead_field[:, :, :n_orient].copy()
    lead_field[:, 3] = 0
    weights = depth_weights(lead_field, limit=None)
    assert np.isfinite(weights).all() and weights[3] == weights.max() == 1


@pytest.mark.parametrize("limit", [10.0, 2.0, None])
def test_equals_mne(limit):
    import mne
    from mne.forward import Forward

    rng = np.random.default_rng(0)
    n = 50
    field = rng.standard_normal((30, n, 3)) * np.exp(rng.uniform(-3, 0, n))[:, None]
    info = mne.create_info([f"EEG{i:03}" for i in range(30)], 100.0, "eeg")
    # What the function reads of a forward solution: a stand-in without files.
    forward = Forward(
        sol=dict(data=field.reshape(30, -1), row_names=info.ch_names),
        source_ori=2,
        info=info,
        nsource=n,
    )
    with mne.use_log_level("ERROR"):
        expected = mne.forward.compute_depth_prior(
            forward, info, exp=0.8, limit=limit, limit_depth_chs=True
        )
    ours = depth_weights(field, 0.8, limit)
    # MNE leaves the scale open where there is no limit.
    np.testing.assert_allclose(ours / ours.max(), expected[::3] / expected.max(), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(exponent=1.5), "exponent must lie"),
        (dict(limit=0.5), "at least 1"),
        (dict(lead_field=np.zeros((3, 4, 1))), "lead_field is zero"),
        (dict(lead_field=np.ones((3, 4))), "must have shape"),
    ],
)
def test_bad_input(lead_field, change, message):
    with pytest.raises(ValueError, match=message):
        depth_weights(**dict(lead_field=lead_field) | change)
