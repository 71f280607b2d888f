"""The shell verbs: what they leave behind, and how they refuse."""

import csv

import mne
import numpy as np
import pytest

import bayes_esi as be
from bayes_esi.cli import main
from bayes_esi.posterior.sources import KINDS
from bayes_esi.report import folder
from bayes_esi.report.folder import BRAIN_FIGURES, DIPOLE_FIGURES, TRACK_FIGURES

FILES = {
    "posterior.nc",
    "dipoles.csv",
    "summary.txt",
    *(f"{n}.png" for n in (*DIPOLE_FIGURES, *BRAIN_FIGURES)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    evoked, forward, noise_cov, _ = be.example_recording()
    paths = [folder / name for name in ("x-ave.fif", "x-fwd.fif", "x-cov.fif")]
    for instance, path in zip((evoked, forward, noise_cov), paths, strict=True):
        instance.save(path, verbose="ERROR")
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """EEG of 20 electrodes over a sphere with 30 places, without a head."""
    rng = np.random.default_rng(0)
    names = [f"E{i}" for i in range(20)]
    place = rng.standard_normal((20, 3))
    place[:, 2] = np.abs(place[:, 2])
    place *= 0.09 / np.linalg.norm(place, axis=1, keepdims=True)
    place[:, 2] += 0.04
    info = mne.create_info(names, 200.0, "eeg")
    montage = mne.channels.make_dig_montage(
        dict(zip(names, place, strict=True)), coord_frame="head"
    )
    info.set_montage(montage, verbose="ERROR")
    pos = 0.04 * rng.standard_normal((30, 3))
    pos *= np.minimum(1, 0.06 / np.linalg.norm(pos, axis=1, keepdims=True))
    pos[:, 2] += 0.04
    normals = np.tile([0.0, 0.0, 1.0], (30, 1))
    space = mne.setup_volume_source_space(pos={"rr": pos, "nn": normals}, verbose="ERROR")
    sphere = mne.make_sphere_model((0, 0, 0.04), 0.09, verbose="ERROR")
    forward = mne.make_forward_solution(info, None, space, sphere, verbose="ERROR")
    field = forward["sol"]["data"]
    clean = np.outer(field[:, 5], 5e-8 * np.sin(np.linspace(0, np.pi, 15)))
    std = 0.2 * np.abs(clean).max()
    data = clean + std * rng.standard_normal(clean.shape)
    evoked = mne.EvokedArray(data, info, tmin=0.0, nave=1, verbose="ERROR")
    evoked.set_eeg_reference(projection=True, verbose="ERROR")
    noise_cov = mne.Covariance(
        std**2 * np.eye(len(names)), names, [], evoked.info["projs"], nfree=1000, verbose="ERROR"
    )
    base = tmp_path_factory.mktemp("tiny")
    paths = [base / name for name in ("x-ave.fif", "x-fwd.fif", "x-cov.fif")]
    evoked.save(paths[0], verbose="ERROR")
    mne.write_forward_solution(paths[1], forward, verbose="ERROR")
    noise_cov.save(paths[2], verbose="ERROR")
    return [str(path) for path in paths]


def localize_sources(files, out, model, *more):
    evoked, forward, noise_cov = files
    shared = ["--forward", forward, "--noise-cov", noise_cov, "--out", str(out), "--quiet"]
    return main(["localize", evoked, *shared, "--model", model, *more])


def localize(files, out, *more):
    evoked, forward, noise_cov = files
    shared = ["--forward", forward, "--noise-cov", noise_cov, "--out", str(out), "--quiet"]
    return main(["localize", evoked, *shared, *more])


@pytest.mark.slow
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


# Two tests run with as many particles and places for dipoles: the second compiles nothing.
SIZES = ("--particles", "60", "--max-dipoles", "3")


@pytest.mark.slow
def test_localize_writes_what_it_found(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "deeper" / "folder"
    window = ("--tmin", "0.08", "--tmax", "0.12")
    assert localize(files, out, *window, *SIZES, "--runs", "2", "--noise-std", "1") == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert "Evidence" in capsys.readouterr().out

    # The demonstration delivers what the package's inference finds; here, what was found above.
    found, asked = be.load(out / "posterior.nc"), []

    def find(model, problem, **options):
        asked.append((model, problem, options))
        return found

    monkeypatch.setattr(be, "infer", find)
    monkeypatch.setattr(folder, "write_folder", lambda *_, **__: [])
    assert (
        main(["demo", "--out", str(tmp_path), "--quiet", "--particles", "50", "--seed", "1"]) == 0
    )
    printed = capsys.readouterr().out
    assert "true (" in printed and "Number" in printed
    ((model, problem, options),) = asked
    assert isinstance(model, be.StaticDipoles) and problem.n_sources == found.problem.n_sources
    assert options["n_particles"] == 50 and not options["progress"]


def test_an_untrusted_result_is_written_and_exits_with_2(tiny_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folder, "figures_of", lambda _: ())  # the figures are tested above
    # Noise that is said to be a fifth of what it is: the number of dipoles hits its ceiling.
    options = ("--runs", "1", "--noise-std", "0.2")
    assert localize(tiny_files, tmp_path, *SIZES, *options) == 2
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
def test_bad_input_is_one_line_and_exit_code_2(tiny_files, tmp_path, capsys, options, named):
    assert localize(tiny_files, tmp_path / "out", *options) == 2
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


def test_missing_and_foreign_files(tiny_files, tmp_path, capsys):
    evoked, forward, noise_cov = tiny_files
    for wrong in ([str(tmp_path / "none-ave.fif"), forward, noise_cov], [forward, evoked, evoked]):
        assert localize(wrong, tmp_path / "out") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_interruption_leaves_nothing(tiny_files, tmp_path, capsys, monkeypatch):
    from bayes_esi.inference import smc

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smc, "step", interrupt)
    assert localize(tiny_files, tmp_path / "out", "--runs", "1") == 2
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_lists_models(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "StaticDipoles: smc, reversible_jump, enumerate" in printed and "jax" in printed
    assert "DynamicDipoles: particle_smoother" in printed


def test_localize_distributed_sources(tiny_files, tmp_path, capsys):
    assert localize_sources(tiny_files, tmp_path, "gaussian", "--depth", "0.5") == 0
    names = {f"{kind}.png" for kind in KINDS}
    written = {path.name for path in tmp_path.iterdir()}
    assert written == names | {"posterior.nc", "sources.csv", "summary.txt"}
    printed = capsys.readouterr().out
    assert "closed_form of GaussianSources" in printed and "Depth     0.5 (given)" in printed
    found = be.load(tmp_path / "posterior.nc")
    assert float(found.hyper["depth"]) == 0.5 and "source_std" in found.hyper_std


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("group-sparse", ("--alpha", "0.4"), "mixed_norm of GroupSparseSources"),
        pytest.param(
            "group-sparse",
            ("--alpha", "evidence", "--method", "irmxne"),
            "chosen by evidence",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "hierarchical",
            ("--depth", "0.5"),
            "sparse_bayes of HierarchicalSources",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_localize_sparse_sources(tiny_files, tmp_path, capsys, model, options, told):
    assert localize_sources(tiny_files, tmp_path, model, *options) == 0
    written = {path.name for path in tmp_path.iterdir()}
    figures = {f"{kind}.png" for kind in ("overview", "courses", "map")}
    assert written == figures | {"posterior.nc", "sources.csv", "summary.txt"}
    printed = capsys.readouterr().out
    assert told in printed and "Deviations hold if these sources are the active ones" in printed


@pytest.mark.parametrize(
    ("model", "options", "method", "hyper"),
    [
        (
            "autoregressive",
            "--kernel matern32 --time-scale 0.02 --snr 2 --noise-std 1.5 --method kalman_filter",
            "kalman_filter",
            {"time_scale": 0.02, "noise_std": [1.5]},
        ),
        (
            "autoregressive",
            "--coefficient 0.5 -0.2 --lambda2 0.25 --depth 0.8 --loose 1",
            "kalman_smoother",
            {"coefficient": [0.5, -0.2], "depth": 0.8},
        ),
        ("gaussian", "--noise-std infer --snr 2", "closed_form", "lambda2 needs"),
        ("gaussian", "--noise-std infer --source-std 2e-9", "closed_form", {"source_std": 2e-9}),
        ("gaussian", "--regularisation gcv --seed 3", "closed_form", {}),
    ],
)
def test_options_reach_the_model(
    tiny_files, tmp_path, capsys, monkeypatch, model, options, method, hyper
):
    kept = []

    def keep(posterior, path, heading):  # the folder itself is tested above
        kept.append(posterior)
        return []

    monkeypatch.setattr(folder, "write_folder", keep)
    code = localize_sources(tiny_files, tmp_path, model, *options.split())
    printed = capsys.readouterr()
    if isinstance(hyper, str):
        assert code == 2 and not kept and hyper in printed.err
        return
    (found,) = kept
    assert code == (0 if found.status is be.Status.OK else 2)
    assert found.method == method and f"{method} of {type(found.model).__name__}" in printed.out
    for name, value in hyper.items():
        np.testing.assert_allclose(found.hyper[name], value)
    if "snr" in options or "lambda2" in options:
        assert found.lambda2 == pytest.approx(0.25)
    assert ("noise_std" in found.hyper_std) == ("infer" in options)
    assert (found.curve is not None) == ("gcv" in options)


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ("gaussian", ("--max-dipoles", "3"), "--max-dipoles does not belong to --model gaussian"),
        ("gaussian", ("--coefficient", "0.5"), "--coefficient does not belong"),
        ("static-dipoles", ("--snr", "3"), "--snr does not belong to --model static-dipoles"),
        ("gaussian", ("--snr", "3", "--lambda2", "0.1"), "give one"),
        ("gaussian", ("--snr", "-3"), "--snr must be positive"),
        ("gaussian", ("--lambda2", "0.1", "--source-std", "1e-9"), "lambda2 and source_std"),
        ("gaussian", ("--alpha", "0.3"), "--alpha does not belong"),
        ("group-sparse", ("--alpha", "aic"), "alpha must be one of"),
        ("group-sparse", ("--inclusion-prob", "0.1"), "--inclusion-prob does not belong"),
        ("hierarchical", ("--depth", "infer"), "depth must lie between 0 and 1"),
        ("autoregressive", ("--coefficient", "1.5"), "stationary"),
        ("autoregressive", ("--method", "smc"), "kalman_smoother"),
    ],
)
def test_options_of_another_model_and_bad_ones_are_refused(
    tiny_files, tmp_path, capsys, model, options, named
):
    assert localize_sources(tiny_files, tmp_path / "out", model, *options) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and error.startswith("bayes-esi: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["particle_smoother", "particle_filter"])
def test_localize_dipoles_that_come_and_go(tiny_files, tmp_path, capsys, method):
    options = "--max-dipoles 2 --noise-std 1 --moment-std 3e-8 --particles 300 --runs 2"
    model = ("dynamic-dipoles", "--method", method)
    code = localize_sources(tiny_files, tmp_path, *model, *options.split())
    printed = capsys.readouterr()
    found = be.load(tmp_path / "posterior.nc")
    assert code == 0 and found.status is be.Status.OK
    names = {f"{kind}.png" for kind in TRACK_FIGURES}
    written = {path.name for path in tmp_path.iterdir()}
    assert written == names | {"posterior.nc", "tracks.csv", "summary.txt"}
    assert f"{method}, 2 independent runs" in printed.out and "births expected" in printed.out
    with open(tmp_path / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.tracks()) >= 1
    # One source is in the data for all 15 samples, and peaks in their middle.
    assert float(rows[0]["probability"]) > 0.9
    assert abs(float(rows[0]["peak_time_s"]) - 0.035) < 0.02


def test_options_reach_dynamic_dipoles(tiny_files, tmp_path, capsys, monkeypatch):
    kept = []

    def keep(model, problem, **options):  # the inference itself is tested above
        kept.append((model, options))
        raise ValueError("enough seen")

    monkeypatch.setattr(be, "infer", keep)
    options = (
        "--birth-prob 0.02 --death-prob 0.05 --max-dipoles 3 --moment-std 2e-8 --noise-std infer "
        "--moment-persistence 0.8 --motion 0.007 --loose 0.5 --method particle_filter "
        "--n-particles 50 --runs 3"
    )
    localize_sources(tiny_files, tmp_path / "out", "dynamic-dipoles", *options.split())
    localize_sources(tiny_files, tmp_path / "out", "dynamic-dipoles", "--motion", "static")
    chains = ("--method", "particle_gibbs", "--runs", "5")
    localize_sources(tiny_files, tmp_path / "out", "dynamic-dipoles", *chains)
    assert capsys.readouterr().err == "bayes-esi: enough seen\n" * 3
    (model, given), (default, nothing), (_, of_chains) = kept
    assert of_chains["n_chains"] == 5 and "n_runs" not in of_chains
    assert isinstance(model, be.DynamicDipoles)
    assert (model.birth_prob, model.death_prob, model.max_dipoles) == (0.02, 0.05, 3)
    assert (model.moment_std, model.noise_std, model.loose) == (2e-8, None, 0.5)
    assert (model.moment_persistence, model.motion) == (0.8, 0.007)
    assert given["method"] == "particle_filter"
    assert (given["n_particles"], given["n_runs"]) == (50, 3)
    assert (default.birth_prob, default.motion, default.max_dipoles) == (0.01, "static", 5)
    assert nothing["method"] is None and "n_particles" not in nothing


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ("dynamic-dipoles", ("--birth-prob", "2"), "birth_prob must lie between 0 and 1"),
        ("dynamic-dipoles", ("--death-prob", "0"), "death_prob must be positive"),
        ("dynamic-dipoles", ("--moment-persistence", "1"), "moment_persistence must lie in [0, 1)"),
        ("dynamic-dipoles", ("--motion", "-0.01"), "motion must be positive"),
        ("dynamic-dipoles", ("--max-dipoles", "0"), "max_dipoles"),
        ("dynamic-dipoles", ("--max-dipoles", "30"), "only 30 sources can hold a dipole"),
        ("dynamic-dipoles", ("--method", "enumerate"), "particle_smoother"),
        ("dynamic-dipoles", ("--n-dipoles", "1"), "--n-dipoles does not belong to --model dynamic"),
        ("static-dipoles", ("--birth-prob", "0.1"), "--birth-prob does not belong"),
        ("gaussian", ("--motion", "0.01"), "--motion does not belong to --model gaussian"),
    ],
)
def test_dynamic_dipoles_refuse_bad_options(tiny_files, tmp_path, capsys, model, options, named):
    assert localize_sources(tiny_files, tmp_path / "out", model, *options) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and error.startswith("bayes-esi: ")
    assert not (tmp_path / "out").exists()


def test_a_step_that_is_no_number_is_one_line(tiny_files, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        localize_sources(tiny_files, tmp_path / "out", "dynamic-dipoles", "--motion", "far")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--motion" in error and error.count("\n") == 1
