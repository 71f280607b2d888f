"""`bayes-esi forward`: from files to a lead field, and what it refuses before it computes."""

import mne
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.cli import main


@pytest.mark.slow
def test_forward_on_the_average_head(tmp_path, capsys):
    info = be.template_head().info(["Fz", "Cz", "Pz", "Oz", "C3", "C4"], sfreq=100.0)
    evoked = mne.EvokedArray(np.zeros((6, 3)), info, verbose="ERROR")
    evoked.save(tmp_path / "x-ave.fif", verbose="ERROR")
    out = tmp_path / "x-fwd.fif"
    assert main(["forward", str(tmp_path / "x-ave.fif"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "LeadField(6 eeg" in printed.out
    # Some places of the cortex are close to the skull: one line says so.
    assert printed.err.startswith("bayes-esi: warning: ") and printed.err.count("\n") == 1
    forward = mne.read_forward_solution(out, verbose="ERROR")
    assert forward["nsource"] == 5124 and forward["sol"]["row_names"] == info["ch_names"]
    assert list(tmp_path.glob(".*")) == []


def test_forward_of_a_recording_and_its_surfaces(data_dir, tmp_path):
    sample = data_dir / "sample"
    evoked = mne.read_evokeds(sample / "sample_left-ave.fif.gz", 0, verbose="ERROR")
    evoked.pick(["MEG 0111", "MEG 0112", "EEG 001", "EEG 030", "EEG 060"])
    evoked.save(tmp_path / "x-ave.fif", verbose="ERROR")
    # The inner skull alone: enough for this test, and quick.
    arguments = ["forward", str(tmp_path / "x-ave.fif"), "--spacing", "20"]
    arguments += ["--trans", str(sample / "sample-trans.fif"), "--out", str(tmp_path / "x.nc")]
    surface = str(sample / "sample-1280-bem.fif")
    # Electrodes are 15 mm and more off the inner skull.
    assert main([*arguments, "--bem", surface]) == 2
    evoked.pick("meg").save(tmp_path / "x-ave.fif", overwrite=True, verbose="ERROR")
    assert main([*arguments, "--bem", surface]) == 0
    lead_field = be.load(tmp_path / "x.nc")
    assert lead_field.ch_names == ("MEG 0111", "MEG 0112")
    assert 100 < lead_field.n_sources < 250
    assert np.all(np.isfinite(lead_field.data))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--out", "x.txt"), "out must end in"),
        (("--out", "nowhere/x-fwd.fif"), "does not exist"),
        (("--out", "x.nc"), "recording file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, named):
    monkeypatch.chdir(tmp_path)
    assert main(["forward", "none-ave.fif", *options]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
