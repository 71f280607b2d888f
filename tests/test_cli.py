"""The shell verbs: what they leave behind, and how they refuse."""

import csv

import pytest

import bayes_esi as be
from bayes_esi.cli import main
from bayes_esi.report.folder import BRAIN_FIGURES, FIGURES

FILES = {
    "posterior.nc",
    "dipoles.csv",
    "summary.txt",
    *(f"{n}.png" for n in (*FIGURES, *BRAIN_FIGURES)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    evoked, forward, noise_cov, _ = be.example_recording()
    paths = [folder / name for name in ("x-ave.fif", "x-fwd.fif", "x-cov.fif")]
    for instance, path in zip((evoked, forward, noise_cov), paths, strict=True):
        instance.save(path, verbose="ERROR")
    return [str(path) for path in paths]


def localize(files, out, *more):
    evoked, forward, noise_cov = files
    shared = ["--forward", forward, "--noise-cov", noise_cov, "--out", str(out), "--quiet"]
    return main(["localize", evoked, *shared, "--tmin", "0.08", "--tmax", "0.12", *more])


def test_demo_leaves_everything(tmp_path, capsys):
    # Few particles: what is tested here is what is written, not how well it is estimated.
    code = main(["demo", "--out", str(tmp_path), "--quiet", "--particles", "100", "--runs", "2"])
    printed = capsys.readouterr().out
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "true (" in printed and "Number" in printed
    with open(tmp_path / "dipoles.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) >= 2
    assert be.load(tmp_path / "posterior.nc").status is be.Status.OK


def test_localize_writes_what_it_found(files, tmp_path, capsys):
    out = tmp_path / "deeper" / "folder"
    code = localize(files, out, "--particles", "100", "--runs", "2", "--noise-std", "1")
    assert code == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert "Evidence" in capsys.readouterr().out


def test_an_untrusted_result_is_written_and_exits_with_2(files, tmp_path, capsys):
    # Noise that is said to be a fifth of what it is: the number of dipoles hits its ceiling.
    options = ("--particles", "50", "--runs", "1", "--max-dipoles", "2", "--noise-std", "0.2")
    assert localize(files, tmp_path, *options) == 2
    assert "TOO_MANY_DIPOLES" in capsys.readouterr().err
    assert "DO NOT TRUST" in (tmp_path / "summary.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--tmin", "0.5", "--tmax", "0.6"), "tm"),
        (("--max-dipoles", "0"), "max_dipoles"),
        (("--noise-std", "-1"), "noise_std"),
        (("--method", "guess"), "method"),
        (("--condition", "no such"), "no such"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, tmp_path, capsys, options, named):
    assert localize(files, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [[], ["guess"], ["localize", "x-ave.fif"], ["demo", "--seed", "x"]]
)
def test_a_malformed_command_is_one_line_and_exit_code_2(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("bayes-esi: ") and error.count("\n") == 1


def test_missing_and_foreign_files(files, tmp_path, capsys):
    evoked, forward, noise_cov = files
    for wrong in ([str(tmp_path / "none-ave.fif"), forward, noise_cov], [forward, evoked, evoked]):
        assert localize(wrong, tmp_path / "out") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_interruption_leaves_nothing(files, tmp_path, capsys, monkeypatch):
    from bayes_esi.inference import smc

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smc, "step", interrupt)
    assert localize(files, tmp_path / "out", "--runs", "1") == 2
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_lists_models(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "StaticDipoles: smc, reversible_jump, enumerate" in printed and "jax" in printed
