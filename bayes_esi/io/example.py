"""A simulated EEG recording of two sources with known truth, made in a second without any file.

The sources lie between the places of the forward solution that is handed out, and their field
comes from a head of slightly other size and conductivities, so that the inversion cannot profit
from the errors of its own forward model. The noise is brain activity (many weak random dipoles)
and sensor noise; its covariance is estimated from simulated baselines, as for a real recording.
"""

import dataclasses

import numpy as np

__all__ = ["ExampleTruth", "example_recording"]

SFREQ = 250.0
TMIN, TMAX = -0.1, 0.3
N_TRIALS = 40
GRID_SPACING = 10.0  # mm

# Two auditory-like sources, left and right: head coordinates in m, the moment mostly upwards.
POS = np.array([[-0.0512, -0.0073, 0.0568], [0.0483, 0.0046, 0.0604]])
ORI = np.array([[0.25, 0.45, 0.86], [-0.30, 0.35, 0.89]])
PEAKS = ((0.092, 0.018, 32e-9), (0.128, 0.026, 26e-9))  # time and width in s, moment in A·m
REBOUNDS = ((0.175, 0.032, -14e-9), (0.225, 0.036, -9e-9))

# Standard deviations of a single trial at each sample.
N_BACKGROUND = 400
BACKGROUND_STD = 8e-6  # V, average over channels
SENSOR_STD = 1.5e-6  # V


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleTruth:
    """The sources behind `example_recording`.

    Attributes
    ----------
    pos : (2, 3) array
        In m, in head coordinates.
    ori : (2, 3) array
        Unit vectors.
    moment : (2, 3, n_times) array
        In A·m.
    times : (n_times,) array
        In s.
    """

    pos: np.ndarray
    ori: np.ndarray
    moment: np.ndarray
    times: np.ndarray


def example_recording(seed=0):
    """Simulate the average of 40 EEG trials with two sources, and what is needed to find them.

    Parameters
    ----------
    seed : int
        Of the noise; the sources are always the same. The same seed gives the same numbers.

    Returns
    -------
    evoked : mne.Evoked
        64 channels, 250 Hz, -100 to 300 ms, with an average reference projector.
    forward : mne.Forward
        About 1,900 sources on a grid of 10 mm in a sphere of four shells, free orientation.
    noise_cov : mne.Covariance
        Of single trials, from 4,000 samples of baseline.
    truth : ExampleTruth

    Notes
    -----
    Noise is independent between samples, which is what static models assume.
    """
    import mne

    rng = np.random.default_rng(seed)
    montage = mne.channels.make_standard_montage("biosemi64")
    info = mne.create_info(montage.ch_names, SFREQ, "eeg", verbose="ERROR")
    info.set_montage(montage, verbose="ERROR")
    head = mne.make_sphere_model("auto", "auto", info, verbose="ERROR")
    src = mne.setup_volume_source_space(
        pos=GRID_SPACING,
        sphere=head,
        mindist=8.0,
        add_interpolator=False,
        verbose="ERROR",
    )
    forward = mne.make_forward_solution(info, None, src, head, meg=False, verbose="ERROR")

    times = np.arange(round(TMIN * SFREQ), round(TMAX * SFREQ) + 1) / SFREQ
    truth = _truth(times)
    true_head = mne.make_sphere_model(
        head["r0"],
        1.01 * head.radius,
        sigmas=(0.33, 1.0, 0.0042, 0.36),
        verbose="ERROR",
    )
    response = np.einsum("mdk,dkt->mt", _field(info, true_head, truth.pos), truth.moment)

    mixing = _noise_mixing(rng, info, true_head)
    average = mixing @ rng.standard_normal((mixing.shape[1], times.size)) / np.sqrt(N_TRIALS)
    n_baseline = N_TRIALS * 100
    baseline = mixing @ rng.standard_normal((mixing.shape[1], n_baseline))
    evoked = mne.EvokedArray(
        response + average, info, tmin=times[0], nave=N_TRIALS, comment="example", verbose="ERROR"
    )
    evoked.set_eeg_reference(projection=True, verbose="ERROR")
    noise_cov = mne.Covariance(
        np.cov(baseline),
        info["ch_names"],
        [],
        evoked.info["projs"],
        nfree=n_baseline - 1,
        verbose="ERROR",
    )
    return evoked, forward, noise_cov, truth


def _truth(times):
    ori = ORI / np.linalg.norm(ORI, axis=1, keepdims=True)
    course = np.array(
        [
            sum(size * np.exp(-0.5 * ((times - at) / width) ** 2) for at, width, size in pair)
            for pair in zip(PEAKS, REBOUNDS, strict=True)
        ]
    )
    return ExampleTruth(POS.copy(), ori, ori[:, :, None] * course[:, None, :], times.copy())


def _field(info, head, pos):
    """Lead field (n_channels, n_sources, 3) at any places, in V per A·m."""
    import mne

    normals = np.tile([0.0, 0.0, 1.0], (len(pos), 1))
    src = mne.setup_volume_source_space(
        pos={"rr": pos, "nn": normals}, sphere=head, mindist=0.0, verbose="ERROR"
    )
    forward = mne.make_forward_solution(
        info, None, src, head, meg=False, mindist=0.0, verbose="ERROR"
    )
    return forward["sol"]["data"].reshape(len(info["ch_names"]), len(pos), 3)


def _noise_mixing(rng, info, head):
    """Square root (n_channels, n_background + n_channels) of the trial noise covariance, in V."""
    direction = rng.standard_normal((N_BACKGROUND, 3))
    direction[:, 2] = np.abs(direction[:, 2])  # the neck has no cortex
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    depth = rng.uniform(0.5, 0.8, N_BACKGROUND) * head.radius
    orientation = rng.standard_normal((N_BACKGROUND, 3))
    orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
    field = _field(info, head, head["r0"] + depth[:, None] * direction)
    background = np.einsum("mdk,dk->md", field, orientation)
    background *= BACKGROUND_STD / np.sqrt(np.mean(np.sum(background**2, axis=1)))
    return np.concatenate([background, SENSOR_STD * np.eye(len(background))], axis=1)
