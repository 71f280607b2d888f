"""A simulated EEG recording of two sources with known truth, made without any download.

The sources lie on the fine cortex of the average head, between the places of the forward solution
that is handed out, and their field comes from other conductivities and electrodes a few mm away,
so that the inversion cannot profit from the errors of its own forward model. The noise is brain
activity (many weak random patches of cortex) and sensor noise; its covariance is estimated from
simulated baselines, as for a real recording.
"""

import contextlib
import dataclasses
import functools
import warnings

import numpy as np

from ..forward.surfaces import vertex_normals
from .template_files import template_head

__all__ = ["ExampleTruth", "example_recording"]

SFREQ = 250.0
TMIN, TMAX = -0.1, 0.3
N_TRIALS = 40
MONTAGE = "biosemi64"

# Two auditory sources: the vertex of the fine cortex that is nearest to a place in Heschl's gyrus
# (MNI152, m) among those that face upwards; its moment is along the normal.
PLACES = np.array([[-0.048, -0.022, 0.008], [0.050, -0.016, 0.008]])
LEAST_UPWARDS = 0.7
PEAKS = ((0.092, 0.018, 50e-9), (0.128, 0.026, 45e-9))  # time and width in s, moment in A·m
REBOUNDS = ((0.175, 0.032, -22e-9), (0.225, 0.036, -16e-9))

# Skin, skull and brain in S/m: what the inversion believes, and what is true.
BELIEVED = (0.33, 0.0066, 0.33)
TRUE = (0.36, 0.0058, 0.31)
ELECTRODE_STD = 2e-3  # m, along each axis

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
        1,284 places on the cortex of the average head, free orientation.
    noise_cov : mne.Covariance
        Of single trials, from 4,000 samples of baseline.
    truth : ExampleTruth

    Notes
    -----
    Noise is independent between samples, which is what static models assume. The head is
    prepared at the first call, some ten seconds of computation.
    """
    import mne

    rng = np.random.default_rng(seed)
    info, forward, pos, ori, source_field, mixing = _prepare()
    times = np.arange(round(TMIN * SFREQ), round(TMAX * SFREQ) + 1) / SFREQ
    truth = _truth(times, pos, ori)
    response = np.einsum("mdk,dkt->mt", source_field, truth.moment)
    average = mixing @ rng.standard_normal((mixing.shape[1], times.size)) / np.sqrt(N_TRIALS)
    n_baseline = N_TRIALS * 100
    baseline = mixing @ rng.standard_normal((mixing.shape[1], n_baseline))
    evoked = mne.EvokedArray(
        response + average,
        info.copy(),
        tmin=times[0],
        nave=N_TRIALS,
        comment="example",
        verbose="ERROR",
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
    return evoked, forward.copy(), noise_cov, truth


@functools.cache
def _prepare():
    """What does not depend on the seed: sensors, forward solution, true fields."""
    head = template_head()
    info = head.info(MONTAGE, sfreq=SFREQ)
    space = head.source_space(order=3)
    bem = head.bem(BELIEVED, order=3)
    with _near_the_skull():
        forward = bem.lead_field(info, space).to_mne(info, space)

    rng = np.random.default_rng(2026)
    electrodes = np.array([channel["loc"][:3] for channel in info["chs"]])
    moved = electrodes + ELECTRODE_STD * rng.standard_normal(electrodes.shape)
    pos, ori = _sources(head)
    background = rng.choice(head.n_sources, N_BACKGROUND, replace=False)
    everywhere = np.concatenate([pos, head.source_pos[background]])
    with _near_the_skull():
        field = bem.with_conductivity(TRUE).eeg(everywhere, head.place_montage(moved))
    field = np.asarray(field, np.float64)
    noise = np.einsum("mdk,dk->md", field[:, len(pos) :], head.source_normals[background])
    noise *= rng.standard_normal(N_BACKGROUND)
    noise *= BACKGROUND_STD / np.sqrt(np.mean(np.sum(noise**2, axis=1)))
    mixing = np.concatenate([noise, SENSOR_STD * np.eye(len(noise))], axis=1)
    return info, forward, pos, ori, field[:, : len(pos)], mixing


@contextlib.contextmanager
def _near_the_skull():
    """Some sources are so close to it that their fields may be wrong by some per cent.

    That is less than the difference between the head that is true and the one that is believed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*closer to the innermost surface.*", UserWarning)
        yield


def _sources(head):
    """Places and directions of the two true sources."""
    cortex = head.mid_thickness
    normals = vertex_normals(cortex, head.cortex_faces)
    upwards = np.flatnonzero(normals[:, 2] > LEAST_UPWARDS)
    upwards = np.setdiff1d(upwards, head.source_index)  # off every grid that is handed out
    distance = np.linalg.norm(cortex[upwards] - head.from_mni(PLACES)[:, None], axis=2)
    chosen = upwards[np.argmin(distance, axis=1)]
    return cortex[chosen], normals[chosen]


def _truth(times, pos, ori):
    course = np.array(
        [
            sum(size * np.exp(-0.5 * ((times - at) / width) ** 2) for at, width, size in pair)
            for pair in zip(PEAKS, REBOUNDS, strict=True)
        ]
    )
    return ExampleTruth(pos.copy(), ori.copy(), ori[:, :, None] * course[:, None, :], times.copy())
