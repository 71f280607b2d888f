"""Real recordings: agreement with MNE's whitening, ranks, head positions, intracranial contacts."""

import os
from pathlib import Path

import mne
import numpy as np
import pytest

from bayes_esi.io.mne import from_mne

mne.set_log_level("ERROR")
DATA = Path(os.environ.get("BAYES_ESI_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
HAS_SAMPLE = (DATA / "sample" / "sample_left-ave.fif.gz").is_file()
HAS_ECOG = (DATA / "ecog" / "sample_ecog_ieeg.fif").is_file()
needs_sample = pytest.mark.skipif(not HAS_SAMPLE, reason="sample recording not found")
needs_ecog = pytest.mark.skipif(not HAS_ECOG, reason="ECoG recording not found")


def _gram(array):
    flat = array.reshape(len(array), -1)
    return flat.T @ flat


@pytest.fixture(scope="module")
def sample():
    folder = DATA / "sample"
    evoked = mne.read_evokeds(folder / "sample_left-ave.fif.gz", condition=0, proj=False)
    evoked.apply_baseline((None, 0))
    noise_cov = mne.read_cov(folder / "sample_audvis-cov.fif.gz")
    sphere = mne.make_sphere_model("auto", "auto", evoked.info)
    src = mne.setup_volume_source_space(pos=25.0, sphere=sphere, mindist=10.0)
    return evoked, mne.make_forward_solution(evoked.info, None, src, sphere), noise_cov


@needs_sample
@pytest.mark.parametrize("kinds", [("meg",), ("eeg",), ("meg", "eeg")])
def test_sample_whitens_as_in_mne(sample, kinds):
    evoked, forward, noise_cov = sample
    picked = evoked.copy().pick(list(kinds))
    problem = from_mne(picked, forward, noise_cov, tmin=0.045, tmax=0.135)
    assert problem.group_names == kinds
    assert "MEG 2443" not in problem.ch_names and "EEG 053" not in problem.ch_names
    ranks = np.bincount(problem.noise_group)
    np.testing.assert_array_equal(ranks, [{"meg": 302, "eeg": 58}[kind] for kind in kinds])
    picked.pick(list(problem.ch_names)).crop(problem.times[0], problem.times[-1])
    scaled = noise_cov.copy()
    scaled["data"] = noise_cov["data"] / evoked.nave
    whitener, names = mne.cov.compute_whitener(scaled, picked.info, pca=True)
    assert names == list(problem.ch_names)
    gram = _gram(whitener @ picked.apply_proj().data)
    np.testing.assert_allclose(_gram(problem.data), gram, atol=1e-9 * np.abs(gram).max())
    picks = [forward["sol"]["row_names"].index(name) for name in names]
    gram = _gram(whitener @ forward["sol"]["data"][picks])
    ours = _gram(problem.lead_field) / problem.moment_unit**2
    np.testing.assert_allclose(ours, gram, atol=1e-6 * np.abs(gram).max())


@needs_sample
def test_sample_noise_is_of_order_one(sample):
    baseline = from_mne(*sample, tmin=-0.2, tmax=0.0)
    for group in range(2):
        assert 0.5 < np.mean(baseline.data[baseline.noise_group == group] ** 2) < 10
    assert np.linalg.norm(baseline.sensor_pos, axis=1).max() < 0.2
    magnetometers = np.array(baseline.ch_types) == "mag"
    assert np.count_nonzero(magnetometers) == 102
    # In head coordinates the helmet surrounds the electrodes.
    radius = np.linalg.norm(baseline.sensor_pos - [0, 0, 0.04], axis=1)
    electrodes = np.array(baseline.ch_types) == "eeg"
    assert radius[magnetometers].mean() > radius[electrodes].mean() + 0.01


@needs_sample
def test_sample_head_position_and_compensation(sample):
    evoked, forward, noise_cov = sample
    moved = evoked.copy()
    with moved.info._unlock():
        moved.info["dev_head_t"] = mne.transforms.Transform(
            "meg", "head", moved.info["dev_head_t"]["trans"].copy()
        )
    moved.info["dev_head_t"]["trans"][0, 3] += 5e-4
    from_mne(moved, forward, noise_cov)
    moved.info["dev_head_t"]["trans"][0, 3] += 5e-3
    with pytest.raises(ValueError, match="another head position"):
        from_mne(moved, forward, noise_cov)
    from_mne(moved.copy().pick("eeg"), forward, noise_cov)
    compensated = evoked.copy()
    for channel in compensated.info["chs"][:306]:
        channel["coil_type"] = int(channel["coil_type"]) + (3 << 16)
    with pytest.raises(ValueError, match="compensation grade 0, but evoked has 3"):
        from_mne(compensated, forward, noise_cov)


@needs_sample
def test_sample_after_maxwell_filtering(sample):
    evoked, forward, noise_cov = sample
    separated = evoked.copy().pick("meg")
    components = np.ones(95)
    components[:10] = 0
    empty, record = {}, {"max_info": {"sss_info": {"in_order": 8, "components": components}}}
    with separated.info._unlock():
        separated.info["proc_history"] = [empty, record]
    problem = from_mne(separated, forward, noise_cov)
    assert problem.data.shape[0] == 80 - 10 - 3  # three projectors
    assert from_mne(separated.pick("grad"), forward, noise_cov).data.shape[0] == 70


@needs_ecog
def test_intracranial_recording():
    sphere = mne.make_sphere_model((0.0, 0.0, 0.04), 0.095)
    raw = mne.io.read_raw_fif(DATA / "ecog" / "sample_ecog_ieeg.fif", preload=True)
    evoked = mne.EvokedArray(raw.get_data(), raw.info, nave=1)
    # An unbounded medium: V = q . d / (4 pi sigma |d|^3).
    contacts = np.array([channel["loc"][:3] for channel in raw.info["chs"]])
    as_eeg = mne.create_info(raw.ch_names, 160.0, "eeg")
    for channel, pos in zip(as_eeg["chs"], contacts, strict=True):
        channel["loc"][:3] = pos
    src = mne.setup_volume_source_space(pos=30.0, sphere=sphere, mindist=10.0)
    forward = mne.make_forward_solution(as_eeg, None, src, sphere, meg=False)
    step = contacts[:, None] - forward["source_rr"]
    distance = np.maximum(np.linalg.norm(step, axis=2, keepdims=True), 2e-3)
    forward["sol"]["data"] = (step / (4 * np.pi * 0.3 * distance**3)).reshape(394, -1)
    rng = np.random.default_rng(10)
    factor = 1e-5 * rng.standard_normal((394, 800)) / np.sqrt(800)
    noise_cov = mne.Covariance(factor @ factor.T, raw.ch_names, [], [], nfree=800)

    problem = from_mne(evoked, forward, noise_cov)
    assert set(problem.group_names) == {"ecog", "seeg"}
    assert problem.data.shape[0] == 394
    np.testing.assert_allclose(problem.sensor_pos, contacts)

    # Common references of either kind of contact leave the same problem.
    with evoked.info._unlock():
        evoked.info["custom_ref_applied"] = mne.io.constants.FIFF.FIFFV_MNE_CUSTOM_REF_ON
    base = from_mne(evoked, forward, noise_cov)
    assert base.data.shape[0] == 392
    referenced = evoked.copy()
    referenced.data -= referenced.data[:1]
    problem = from_mne(referenced, forward, noise_cov)
    gram = _gram(base.data)
    np.testing.assert_allclose(_gram(problem.data), gram, atol=1e-9 * np.abs(gram).max())
    np.testing.assert_allclose(problem.log_jacobian, base.log_jacobian)
