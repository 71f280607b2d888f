"""The main job on a real recording: the left auditory response of the MNE sample subject."""

import auditory_tracks
import jax
import numpy as np
import pytest

import bayes_esi as be

# A whole head and hundreds of particles: minutes, not seconds.
pytestmark = pytest.mark.slow

# Where one dipole in each auditory cortex is expected, head coordinates in m.
AUDITORY = np.array([[-0.067, -0.004, 0.060], [0.051, 0.012, 0.062]])
# About two spacings of the 7 mm grid: three trials leave the depth that uncertain.
TOLERANCE = 0.015


@pytest.fixture(scope="module")
def recording(data_dir):
    import mne

    folder = data_dir / "sample"
    with mne.use_log_level("ERROR"):
        evoked = mne.read_evokeds(
            folder / "sample_left-ave.fif.gz", condition=0, baseline=(None, 0)
        )
        noise_cov = mne.read_cov(folder / "sample_audvis-cov.fif.gz")
        inner_skull = folder / "sample-1280-bem.fif"
        bem = mne.make_bem_solution(folder / "sample-1280-1280-1280-bem.fif")
        sources = mne.setup_volume_source_space(
            None, pos=7.0, bem=inner_skull, mindist=5.0, add_interpolator=False
        )
        trans = folder / "sample-trans.fif"
        forward = mne.make_forward_solution(evoked.info, trans, sources, bem)
    return evoked, forward, noise_cov


def problem_of(recording, kinds):
    evoked, forward, noise_cov = recording
    return be.from_mne(evoked.copy().pick(kinds), forward, noise_cov, tmin=0.045, tmax=0.135)


def leading_pair(posterior):
    """Places of the two leading dipoles, left first."""
    pos = np.array([dipole.pos for dipole in posterior.dipoles()[:2]])
    return pos[np.argsort(pos[:, 0])]


def total_variation(first, second):
    return 0.5 * np.abs(first - second).sum()


def test_one_dipole_in_each_auditory_cortex(recording):
    problem = problem_of(recording, ["meg"])
    assert problem.data.shape == (302, 55) and problem.n_sources > 4000
    posterior = be.infer(be.StaticDipoles(), problem, n_particles=300, n_runs=2, progress=False)
    assert posterior.status is be.Status.OK
    assert np.all(np.linalg.norm(leading_pair(posterior) - AUDITORY, axis=1) < TOLERANCE)
    assert min(dipole.probability for dipole in posterior.dipoles()[:2]) > 0.9
    # Samples at 600 Hz of slow activity are alike, and the result says so.
    assert posterior.residual_autocorrelation > 0.3


def test_ten_seeds_agree(recording):
    problem = problem_of(recording, ["meg"])
    posteriors = [
        be.infer(
            be.StaticDipoles(),
            problem,
            key=jax.random.key(seed),
            n_runs=1,
            progress=False,
        )
        for seed in range(10)
    ]
    for posterior in posteriors:
        assert np.all(np.linalg.norm(leading_pair(posterior) - AUDITORY, axis=1) < TOLERANCE)
    for i, first in enumerate(posteriors):
        for second in posteriors[:i]:
            assert total_variation(first.n_dipoles_pmf, second.n_dipoles_pmf) < 0.1


@pytest.mark.parametrize("kinds", [["eeg"], ["meg", "eeg"]], ids=["EEG", "MEG and EEG"])
def test_other_sensors_run_too(recording, kinds):
    problem = problem_of(recording, kinds)
    assert problem.group_names == (("eeg",) if kinds == ["eeg"] else ("meg", "eeg"))
    posterior = be.infer(
        be.StaticDipoles(), problem, n_particles=200, n_runs=2, progress=False, throw=False
    )
    assert posterior.draws.noise_std.shape[2] == problem.n_groups
    assert np.isfinite(posterior.log_evidence)
    assert posterior.intensity.sum() == pytest.approx(
        posterior.n_dipoles_pmf @ np.arange(11), abs=1e-9
    )


def test_dipoles_are_born_in_both_auditory_cortices(data_dir):
    """Half the burn-in and chains of `benchmarks/auditory_tracks.py`, one of its seeds."""
    posterior = be.infer(
        auditory_tracks.model(),
        auditory_tracks.problem(data_dir),
        method="particle_gibbs",
        progress=False,
        throw=False,
        n_chains=4,
        n_burn_in=1000,
        n_samples=100,
    )
    # Above two dipoles the chains need not agree on the number.
    assert posterior.status in (be.Status.OK, be.Status.RUNS_DISAGREE)
    for side in ("left", "right"):
        found = auditory_tracks.n100m(posterior, side)
        assert found["probability"] > 0.5
        assert 70 <= found["peak_ms"] <= 120
