"""Distributed sources in words and in a folder."""

import csv
import dataclasses

import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.report import folder
from bayes_esi.report.text import describe


def make_problem(n_times=20, is_correlated=False):
    rng = np.random.default_rng(0)
    source_pos = 0.02 * rng.standard_normal((12, 3))
    lead_field = rng.standard_normal((8, 12, 3))
    data = rng.standard_normal((8, n_times))
    if is_correlated:
        data = np.cumsum(data, axis=1)
    return be.Problem.from_arrays(
        data,
        1e7 * lead_field,
        source_pos,
        np.eye(8),
        times=0.1 + 0.004 * np.arange(n_times),
        ch_types=["eeg"] * 8,
    )


def infer(model, problem, **options):
    return be.infer(model, problem, progress=False, throw=False, **options)


@pytest.fixture(scope="module")
def posterior():
    return infer(be.GaussianSources(depth=0.5), make_problem(is_correlated=True))


def line(text, name):
    (found,) = [row for row in text.splitlines() if row.startswith(name)]
    return found


def test_words_tell_data_method_scales_and_sources(posterior):
    text = describe(posterior)
    assert "8 channels (8 eeg) of rank 8, 20 samples from 100 to 176 ms, 12 places" in text
    assert "closed_form of GaussianSources: free orientation, covariance identity" in text
    assert line(text, "Status").startswith("Status    OK")
    assert f"{posterior.log_evidence:.2f}" in line(text, "Evidence")
    scale = 1e9 * float(posterior.hyper["source_std"])
    std = scale * float(posterior.hyper_std["source_std"])  # relative in the posterior
    assert line(text, "Sources") == f"Sources   std {scale:.4g} ± {std:.2g} nA·m"
    assert line(text, "Noise") == "Noise     level 1 (given) relative to noise_cov (all)"
    assert line(text, "Depth") == "Depth     0.5 (given)"
    ratio = f"SNR {posterior.lambda2**-0.5:.3g}, lambda2 {posterior.lambda2:.3g}"
    assert line(text, "Ratio") == f"Ratio     {ratio}, chosen by evidence"
    for row in posterior.summary().itertuples():
        assert f"{row.source:>6}  {row.x_mm:>5.1f}" in text
    assert text.endswith("Not a medical device: for research only.\n")
    assert "DO NOT TRUST" not in text


def test_a_static_model_of_correlated_samples_is_sent_to_one_with_memory(posterior):
    assert posterior.residual_autocorrelation > 0.3
    assert "use AutoregressiveSources" in describe(posterior)
    white = infer(be.GaussianSources(source_std=1e-9), make_problem())
    assert white.residual_autocorrelation < 0.3
    text = describe(white)
    assert "AutoregressiveSources" not in text and "std 1 (given) nA·m" in text


def test_doubts_come_from_the_result(posterior):
    untrusted = describe(dataclasses.replace(posterior, status=be.Status.SCALE_AT_BOUND))
    assert "DO NOT TRUST THIS RESULT. Remedy: check that the window" in untrusted
    ran = dataclasses.replace(
        posterior,
        hyper=posterior.hyper | {"depth": np.asarray(0.999)},
        hyper_std=posterior.hyper_std | {"depth": np.asarray(0.1)},
    )
    text = describe(ran)
    assert "depth ran into an end of its range (1.00)" in text
    assert line(text, "Depth") == "Depth     0.999 ± 0.1"


def test_bands_that_hold_zero_everywhere_are_told(posterior):
    told = "No single source is away from zero"
    frame = posterior.summary()
    assert np.all(frame["peak_nAm"] < 1.96 * frame["peak_std_nAm"]) and told in describe(posterior)
    rng = np.random.default_rng(1)
    lead_field = 1e9 * rng.standard_normal((8, 2, 3))  # two sources and strong signals: no blur
    data = np.tensordot(lead_field[:, 0], [1e-7, 0, 0], axes=1)[:, None] + 0.1
    strong = be.Problem.from_arrays(data, lead_field, np.eye(3)[:2])
    assert told not in describe(infer(be.GaussianSources(source_std=1e-7), strong))


def test_words_on_memory():
    problem = make_problem()
    missing = np.zeros(20, bool)
    missing[:3] = True
    found = infer(be.AutoregressiveSources(loose=1.0), problem, missing=missing)
    text = describe(found)
    assert "autoregressive in time, 3 samples left out" in text
    assert "coefficient 0." in line(text, "Time")
    long = dataclasses.replace(found, hyper=found.hyper | {"time_scale": np.asarray(9.0)})
    assert "longer than the window" in describe(long)
    assert "longer than the window" not in describe(
        dataclasses.replace(found, hyper=found.hyper | {"time_scale": np.asarray(0.01)})
    )
    given = infer(be.AutoregressiveSources(0.5, lambda2=0.2), problem)
    text = describe(given)
    assert line(text, "Time") == "Time      coefficient 0.5 (given)"
    assert line(text, "Ratio") == "Ratio     SNR 2.24, lambda2 0.2"


def test_folder_holds_table_words_and_pictures(posterior, tmp_path, monkeypatch):
    # All kinds are written by the test of the shell.
    monkeypatch.setattr(folder, "figures_of", lambda posterior: ("courses", "hyper"))
    written = folder.write_folder(posterior, tmp_path / "new", heading="Heading\n")
    names = {f"{kind}.png" for kind in ("courses", "hyper")}
    names |= {"posterior.nc", "sources.csv", "summary.txt"}
    assert {path.name for path in written} == names
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    with open(tmp_path / "new" / "sources.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["source"]) for row in rows] == list(posterior.summary()["source"])
    assert (tmp_path / "new" / "summary.txt").read_text(encoding="utf-8").startswith("Heading\n")
    again = be.load(tmp_path / "new" / "posterior.nc")
    # The same factors in arrays of another layout: products round differently.
    np.testing.assert_allclose(again.mean, posterior.mean, rtol=1e-9)


def test_a_mixture_has_no_resolution(posterior):
    moments = {
        field.name: np.concatenate([value, value])
        for field in dataclasses.fields(posterior.moments)
        if isinstance(value := getattr(posterior.moments, field.name), np.ndarray)
    }
    mixed = dataclasses.replace(
        posterior, moments=dataclasses.replace(posterior.moments, **moments)
    )
    assert set(folder.figures_of(posterior)) - set(folder.figures_of(mixed)) == {"resolution"}
