"""From the average head to places: what its lead fields are worth in an inversion."""

import warnings

import jax
import mne
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.forward.surfaces import vertex_normals

BELIEVED, TRUE = (0.33, 0.0066, 0.33), (0.36, 0.0058, 0.31)
SNR = 10.0  # of the norm over channels, at each sample


@pytest.fixture(scope="module")
def recordings():
    """Evoked responses of single sources off the grid, in a head of other conductivities."""
    head = be.template_head()
    info, space = head.info("biosemi64", sfreq=250.0), head.source_space(order=3)
    electrodes = np.array([channel["loc"][:3] for channel in info["chs"]])
    bem = head.bem(BELIEVED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*closer to the innermost surface", UserWarning)
        lead_field = bem.lead_field(info, space)
    cortex = head.mid_thickness
    off_grid = np.setdiff1d(np.arange(len(cortex)), head.source_index)
    rng = np.random.default_rng(3)
    chosen = rng.choice(off_grid, 12, replace=False)
    pos, ori = cortex[chosen], vertex_normals(cortex, head.cortex_faces)[chosen]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*closer to the innermost surface", UserWarning)
        field = bem.with_conductivity(TRUE).eeg(pos, electrodes)
    field = np.einsum("csk,sk->sc", np.asarray(field), ori)
    field -= field.mean(axis=1, keepdims=True)
    evokeds = []
    for topography in field:
        noise_std = np.linalg.norm(topography) * 2e-8 / SNR / np.sqrt(len(topography))
        course = 2e-8 * np.sin(np.pi * np.arange(1, 6) / 6)
        data = topography[:, None] * course + noise_std * rng.standard_normal((len(topography), 5))
        evoked = mne.EvokedArray(data, info.copy(), tmin=0.0, nave=1, verbose="ERROR")
        evoked.set_eeg_reference(projection=True, verbose="ERROR")
        evokeds.append((evoked, noise_std))
    return lead_field, info, space, pos, evokeds


def covariance(info, std):
    n_channels = len(info["ch_names"])
    return mne.Covariance(
        std**2 * np.eye(n_channels), info["ch_names"], [], [], nfree=1000, verbose="ERROR"
    )


def test_lead_field_is_an_array_with_names(recordings):
    lead_field, info, *_ = recordings
    assert np.asarray(lead_field).shape == lead_field.shape == (64, 1284, 3)
    assert lead_field.ch_names == tuple(info["ch_names"])
    forward = lead_field.to_mne(info)
    again = be.forward.LeadField.from_mne(forward)
    np.testing.assert_array_equal(again.data, lead_field.data)


def test_lead_field_survives_its_file(recordings, tmp_path):
    lead_field, *_ = recordings
    lead_field.save(tmp_path / "lead_field.nc")
    again = be.load(tmp_path / "lead_field.nc")
    np.testing.assert_array_equal(again.data, lead_field.data)
    assert again.subject == "fsaverage"


def test_minimum_norm_of_mne_localises_with_it(recordings):
    lead_field, info, space, pos, evokeds = recordings
    forward = lead_field.to_mne(info, space)
    errors = []
    for place, (evoked, noise_std) in zip(pos, evokeds, strict=True):
        inverse = mne.minimum_norm.make_inverse_operator(
            evoked.info, forward, covariance(info, noise_std), loose=1.0, depth=0.8, verbose="ERROR"
        )
        estimate = mne.minimum_norm.apply_inverse(
            evoked, inverse, 1 / SNR**2, "sLORETA", verbose="ERROR"
        )
        peak = np.argmax(np.max(estimate.data, axis=1))
        errors.append(np.linalg.norm(lead_field.source_pos[peak] - place))
    # Places are 12 mm apart and conductivities are not those of the data; sources in the depth,
    # where fields of 64 electrodes are much alike, may be further off.
    assert np.median(errors) < 0.015 and np.quantile(errors, 0.75) < 0.02


@pytest.mark.slow
def test_dipoles_localise_with_it(recordings):
    lead_field, info, space, pos, evokeds = recordings
    forward = lead_field.to_mne(info, space)
    errors = []
    for place, (evoked, noise_std) in list(zip(pos, evokeds, strict=True))[:6]:
        problem = be.from_mne(evoked, forward, covariance(info, noise_std))
        posterior = be.infer(
            be.StaticDipoles(max_dipoles=3),
            problem,
            key=jax.random.key(0),
            n_particles=200,
            n_runs=2,
            progress=False,
            throw=False,
        )
        errors.append(np.linalg.norm(posterior.dipoles()[0].pos - place))
    assert np.median(errors) < 0.015 and np.max(errors) < 0.03


def test_figures_on_another_brain_are_refused():
    rng = np.random.default_rng(0)
    problem = be.Problem.from_arrays(
        rng.standard_normal((9, 4)),
        rng.standard_normal((9, 6, 3)),
        rng.uniform(-0.05, 0.05, (6, 3)),
    )
    posterior = be.infer(
        be.StaticDipoles(max_dipoles=1), problem, method="enumerate", progress=False, throw=False
    )
    for kind in ("cortex", "glass_brain"):
        with pytest.raises(ValueError, match="average head"):
            posterior.plot(kind)
