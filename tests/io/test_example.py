"""The embedded recording: deterministic, quick, honest noise, sources between the grid's places."""

import dataclasses
import time

import mne
import numpy as np
import pytest

from bayes_esi.io.example import example_recording
from bayes_esi.io.mne import from_mne


@pytest.fixture(scope="module")
def recording():
    return example_recording()


def test_objects(recording):
    evoked, forward, noise_cov, truth = recording
    assert isinstance(evoked, mne.Evoked) and isinstance(forward, mne.Forward)
    assert isinstance(noise_cov, mne.Covariance)
    assert evoked.nave == 40
    assert [p["desc"] for p in evoked.info["projs"]] == ["Average EEG reference"]
    assert evoked.data.shape == (64, 101)
    assert (evoked.tmin, evoked.tmax) == (-0.1, 0.3)
    assert 1000 <= forward["nsource"] <= 2000
    assert truth.pos.shape == truth.ori.shape == (2, 3)
    assert truth.moment.shape == (2, 3, 101)
    np.testing.assert_allclose(truth.times, evoked.times, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(truth.ori, axis=1), 1)
    assert np.all(np.linalg.norm(truth.moment, axis=1).max(axis=1) > 20e-9)
    assert {block["subject_his_id"] for block in forward["src"]} == {"fsaverage"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        truth.pos = 0


def test_seed(recording):
    start = time.perf_counter()
    again = example_recording(seed=0)
    assert time.perf_counter() - start < 5
    np.testing.assert_array_equal(again[0].data, recording[0].data)
    np.testing.assert_array_equal(again[2]["data"], recording[2]["data"])
    other = example_recording(seed=1)
    assert not np.allclose(other[0].data, recording[0].data)
    np.testing.assert_array_equal(other[3].moment, recording[3].moment)


def test_sources_are_off_the_grid(recording):
    _, forward, _, truth = recording
    for pos in truth.pos:
        distance = np.linalg.norm(forward["source_rr"] - pos, axis=1).min()
        assert 2e-3 < distance < 9e-3


def test_noise_is_of_order_one():
    powers = []
    for seed in range(4):
        evoked, forward, noise_cov, _ = example_recording(seed)
        problem = from_mne(evoked, forward, noise_cov, tmax=0.0)
        assert problem.data.shape[0] == 63
        powers.append(np.mean(problem.data**2))
    # 4 x 63 x 26 squares: standard error 0.017; the estimated covariance adds 63 / 4000.
    np.testing.assert_allclose(np.mean(powers), 1.0 + 63 / 4000, atol=0.07)


def test_two_sources_explain_the_response(recording):
    """The places nearest to the truth explain far more than noise, each in addition to the other.

    The norm of noise in the span of three columns over n samples is 3 n on average.
    """
    evoked, forward, noise_cov, truth = recording
    problem = from_mne(evoked, forward, noise_cov, tmin=0.05, tmax=0.2)
    near = [np.linalg.norm(problem.source_pos - pos, axis=1).argmin() for pos in truth.pos]

    def explained(places):
        basis, _ = np.linalg.qr(problem.lead_field[:, places].reshape(len(problem.data), -1))
        return np.sum((basis.T @ problem.data) ** 2)

    expected = 3 * problem.n_times
    both = explained(near)
    for one in near:
        assert both - explained([one]) > 1.7 * expected
    # The recording is not explained away by the model's own error.
    rest = np.sum(problem.data**2) - both
    assert 0.85 < rest / (57 * problem.n_times) < 1.25
