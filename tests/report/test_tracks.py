"""Dipoles that come and go in words and in a folder."""

import csv
import dataclasses

import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.posterior.tracks import TrackDraws, TrackPosterior
from bayes_esi.report import folder
from bayes_esi.report.text import describe

N_TIMES, N_DRAWS = 30, 40
EARLY, LATE = (3, 10, 20), (25, 15, 30)  # place, first sample, first sample without it


def make_posterior(method="particle_smoother", n_runs=2):
    """Draws of an early dipole that is certain and a late one in every fourth draw.

    Births are a sample early in every second draw; the late one is alive at the end.
    """
    rng = np.random.default_rng(0)
    lead_field = 1e8 * rng.standard_normal((10, 30, 3))
    source_pos = 0.05 * rng.standard_normal((30, 3))
    course = np.zeros(N_TIMES)
    course[10:20] = 3e-8 * np.sin(np.pi * (np.arange(10) + 0.5) / 10)
    clean = np.outer(lead_field[:, 3, 0], course)
    problem = be.Problem.from_arrays(
        clean + rng.standard_normal(clean.shape),
        lead_field,
        source_pos,
        np.eye(10),
        times=0.1 + 0.004 * np.arange(N_TIMES),
        ch_types=["eeg"] * 10,
    )
    places = np.full((n_runs, N_DRAWS, N_TIMES, 2), -1)
    is_new = np.zeros(places.shape, bool)
    for draw in range(N_DRAWS):
        for slot, (place, birth, death) in enumerate((EARLY, LATE)):
            if slot == 0 or draw % 4 == 0:
                birth -= draw % 2
                places[:, draw, birth:death, slot] = place
                is_new[:, draw, birth, slot] = True
    shape = (n_runs, N_DRAWS)
    draws = TrackDraws(
        places=places,
        is_new=is_new,
        moment_std=np.full(shape, 2e-8) + 1e-9 * (np.arange(N_DRAWS) % 2),
        noise_std=np.ones((*shape, 1)),
        birth_prob=np.full(shape, 0.01),
        death_prob=np.full(shape, 0.05),
        log_likelihood=rng.standard_normal(shape) - 400,
        log_evidence=np.full(n_runs, -410.5),
        trace={"n_ancestors": np.full((n_runs, N_TIMES), 400.0)},
    )
    model = be.DynamicDipoles(0.01, 0.05, max_dipoles=2, noise_std=1.0)
    return TrackPosterior(problem, model, method, draws, be.Status.OK)


@pytest.fixture(scope="module")
def posterior():
    return make_posterior()


def with_draws(posterior, **changes):
    kept = {k: changes.pop(k) for k in ("method", "status", "model") if k in changes}
    return dataclasses.replace(
        posterior, draws=dataclasses.replace(posterior.draws, **changes), **kept
    )


def line(text, name):
    (found,) = [row for row in text.splitlines() if row.startswith(f"{name} ")]
    return found


def test_words_tell_data_method_number_and_scales(posterior):
    text = describe(posterior)
    assert "10 channels (10 eeg) of rank 10, 30 samples from 100 to 216 ms, 30 places" in text
    assert line(text, "Method") == "Method    particle_smoother, 2 independent runs"
    assert line(text, "Evidence") == "Evidence  -410.50 ± 0.00 nats"
    # Half of the draws have the early dipole at sample 9 already (136 ms), all until 19 (176 ms).
    assert line(text, "Number") == (
        "Number    0 from 100 ms (p ≥ 0.50), 1 from 140 ms (p ≥ 0.75), 0 from 180 ms (p ≥ 0.75); "
        "at most 1.25 expected, at 160 ms"
    )
    assert line(text, "Lives") == (
        "Lives     1.25 births expected; probabilities a sample: birth 0.01 (given), "
        "death 0.05 (given); in place"
    )
    assert line(text, "Moments") == "Moments   std 20.5 ± 0.5 nA·m, persistence 0.9 a sample"
    assert line(text, "Noise") == "Noise     1 (given) times the given level (all)"
    assert text.endswith("Not a medical device: for research only.\n")
    assert "DO NOT TRUST" not in text


def test_table_tells_lives_with_their_intervals(posterior):
    text = describe(posterior)
    rows = {int(row.split()[0]): row for row in text.splitlines() if row[:5].strip().isdigit()}
    assert len(rows) == len(posterior.tracks()) == 2
    early, late = rows[1], rows[2]
    # Births at 136 and 140 ms with equal probability; the last sample alive is at 176 ms.
    assert early.split()[1:9] == ["1.000", "138.0", "136", "to", "140", "176.0", "176", "to"]
    assert late.split()[1] == "0.250" and "160 to 160" in late
    assert "216.0  216 to end" in late
    place = 1e3 * posterior.problem.source_pos[3]
    assert "  ".join(f"{x:>z5.1f}" for x in place) in early
    frame = posterior.summary()
    peak = frame.iloc[0]
    assert f"{peak.peak_nAm:.3g} ± {peak.peak_std_nAm:.2g}" in early
    # The moment of the data peaks at 27 to 30 nA·m between samples 14 and 15.
    assert peak.peak_nAm == pytest.approx(30, abs=5)


def test_words_on_what_is_sure_and_what_is_not(posterior):
    text = describe(posterior)
    assert "Track 2 is alive at the end of the data with probability 1.00" in text
    assert "Track 1 is alive" not in text
    assert "More likely absent than not: track 2." in text
    assert "given all data, those after it included" in text
    assert "A filter" not in text
    single = describe(make_posterior(n_runs=1))
    assert "1 independent run\n" in single and "A single run says nothing" in single
    assert "A single run" not in text


def test_a_filter_is_told_from_a_smoother(posterior):
    filtered = make_posterior("particle_filter")
    text = describe(filtered)
    assert "given the data up to it" in text and "use particle_smoother" in text
    assert "rest on few lines" not in text
    ancestors = np.full((2, N_TIMES), 400.0)
    ancestors[:, :13] = 3.0
    few = describe(with_draws(filtered, trace={"n_ancestors": ancestors}))
    assert "Births up to 140 ms rest on few lines of particles (6 distinct ancestors" in few
    # A smoother draws the past afresh: how many lines its filter kept says nothing of it.
    assert "rest on few" not in describe(with_draws(posterior, trace={"n_ancestors": ancestors}))


def test_warnings_come_with_a_remedy(posterior):
    bad = with_draws(posterior, status=be.Status.RUNS_DISAGREE)
    assert "DO NOT TRUST THIS RESULT. Remedy: raise n_particles" in describe(bad)
    silent = with_draws(posterior, log_evidence=np.full(2, np.nan), method="particle_gibbs")
    assert (
        line(describe(silent), "Evidence") == "Evidence  none: particle_gibbs does not compute it"
    )
    walking = with_draws(posterior, model=dataclasses.replace(posterior.model, motion=0.007))
    assert line(describe(walking), "Lives").endswith("; walking, 7 mm")


def test_residuals_that_are_alike_are_told(posterior):
    told = "The residual is correlated in time"
    assert posterior.residual_autocorrelation < 0.3 and told not in describe(posterior)
    drift = np.cumsum(np.random.default_rng(1).standard_normal((10, N_TIMES)), axis=1)
    problem = dataclasses.replace(posterior.problem, data=posterior.problem.data + drift)
    correlated = dataclasses.replace(posterior, problem=problem)
    assert told in describe(correlated)


def test_nobody_is_told(posterior):
    empty = with_draws(
        posterior,
        places=np.full_like(posterior.draws.places, -1),
        is_new=np.zeros_like(posterior.draws.is_new),
    )
    text = describe(empty)
    assert "No track holds enough probability." in text
    assert line(text, "Number").startswith("Number    0 from 100 ms (p ≥ 1.00); at most 0.00")
    assert "alive at the end" not in text


def test_a_number_that_keeps_changing_is_told_in_short(posterior):
    pmf = np.zeros((N_TIMES, 3))
    pmf[np.arange(N_TIMES), np.arange(N_TIMES) % 2] = 1.0
    text = describe(with_draws(posterior, n_dipoles_pmf=pmf))
    assert line(text, "Number") == (
        "Number    at most 1.00 expected, at 104 ms; the most probable one changes 29 times"
    )


@pytest.mark.slow
def test_folder_holds_table_words_and_pictures(posterior, tmp_path, monkeypatch):
    # All kinds are written by the test of the shell.
    assert folder.figures_of(posterior) == folder.TRACK_FIGURES
    monkeypatch.setattr(folder, "figures_of", lambda posterior: ("raster", "n_dipoles"))
    written = folder.write_folder(posterior, tmp_path / "new", heading="Heading\n")
    names = {"raster.png", "n_dipoles.png", "posterior.nc", "tracks.csv", "summary.txt"}
    assert {path.name for path in written} == names
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    with open(tmp_path / "new" / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["track"]) for row in rows] == [1, 2]
    assert float(rows[0]["birth_s"]) == pytest.approx(0.138)
    assert float(rows[1]["probability"]) == pytest.approx(0.25)
    assert (tmp_path / "new" / "summary.txt").read_text(encoding="utf-8").startswith("Heading\n")
    again = be.load(tmp_path / "new" / "posterior.nc")
    np.testing.assert_allclose(again.n_dipoles_pmf, posterior.n_dipoles_pmf)
