"""What the README shows is what the code says."""

import json
from pathlib import Path

from bayes_esi.inference.registry import table

ROOT = Path(__file__).parents[1]


def test_table_of_methods_is_the_one_of_the_code():
    assert table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_measured_figures_are_those_of_the_kept_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/static_dipoles_cpu_float64.json").read_text())
    assert f"{result['ratio_of_sweep_rates']:.0f} times" in readme
    assert f"{result['seconds']:.1f} s" in readme


def test_head_models_are_those_of_the_kept_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "benchmarks/results/forward_cpu_float64.json").read_text())
    for n_vertices, peer in (("642", "mne"), ("642", "openmeeg"), ("2562", "mne")):
        for rows in (result["bem"][n_vertices], result["bem"][n_vertices][peer]):
            eeg = [rows["eeg"][kind] for kind in ("radial", "tangential")]
            shown = [
                " / ".join(f"{pair['rdm_median']:.2g}" for pair in pairs)
                for pairs in zip(*eeg, strict=True)
                if pairs[0]["eccentricity"] in (0.3, 0.8, 0.95, 0.98)
            ]
            assert " | ".join(shown) in readme
            assert f"{rows['preparation_s']:.1f} s" in readme
    assert f"{result['sphere']['ratio_to_mne']['meg']:.0f} times" in readme
    assert f"{result['fem']['n_nodes']:,} nodes" in readme


def test_distributed_sources_are_those_of_the_kept_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks/results/gaussian_sources_cpu_float64.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    beside, eloreta = result["minimum_norm"], result["eloreta"]
    assert f"minimum norm {beside['MNE_ratio']:.1f} times" in readme
    assert f"dSPM {beside['dSPM_ratio']:.1f} times" in readme
    times = f"{eloreta['eloreta_s']:.2f} s against {eloreta['mne_s']:.1f} s"
    assert f"{times}, {eloreta['ratio']:.1f} times" in readme
    assert (
        f"residual\nof {eloreta['residual']:.1e} where MNE's stops at {eloreta['mne_residual']:.1e}"
        in readme
    )
    whole = result["smoother"]
    both = [f"{whole[f'kalman_{kind}_known_s']:.1f} s" for kind in ("filter", "smoother")]
    assert " / ".join(both) in readme
    assert f"{whole['memory_without_output_mib']:,.0f} MiB" in readme
    assert f"{result['evidence']['value_and_gradient_ms']:.1f} ms" in readme
    assert f"included | {result['coupled']['seconds_with_compilation']:.0f} s" in readme


def test_dipoles_in_time_are_those_of_the_kept_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks/results"
    tracks = json.loads((results / "auditory_tracks_particle_gibbs.json").read_text("utf-8"))
    assert tracks["all_within_70_to_120_ms"] and len(tracks["seeds"]) == 10
    both = [row[side] for row in tracks["seeds"] for side in ("left", "right")]
    probabilities = [found["probability"] for found in both]
    assert f"probability {min(probabilities):.2f} to {max(probabilities):.2f}" in readme
    peaks = (
        {round(found["peak_ms"]) for found in both[::2]},
        {round(f["peak_ms"]) for f in both[1::2]},
    )
    assert peaks == ({93, 105}, {93}) and "93-105 ms\n(left) and 93 ms (right)" in readme
    result = json.loads((results / "dynamic_dipoles_cpu_float64.json").read_text("utf-8"))
    speed, claims = result["speed"], result["literature"]["claims"]
    summary = result["literature"]["summary"]
    assert f"off by {summary['filter']['localisation_mm'][0]:.1f} mm" in readme
    # Every figure is a mean and its standard error over seeds.
    for name, text in (
        ("localisation_mm_filter_over_bootstrap", "{:.2f} times as far as the bootstrap"),
        ("localisation_mm_filter_over_bootstrap_walking_20x", "{:.2f} times as far\nas that"),
        ("onset_localisation_mm_filter_less_smoother", "{:.0f} mm further off"),
        ("settled_localisation_mm_filter_less_smoother", "later {:.1f} mm"),
        ("ospa_mm_smoother_over_static_windows", "OSPA is {:.2f} times"),
    ):
        assert text.format(claims[name][0]) in readme
    both = f"filter {speed['filter_s']:.1f} s, smoother {speed['smoother_s']:.0f} s"
    steps = [f"{result['streaming'][f'step_ms{end}']:.0f} ms" for end in ("", "_95")]
    stream = f"200 particles {steps[0]} (median), {steps[1]} (95th percentile)"
    assert both in readme and stream in readme.replace("\n", " ")
    for method in ("particle_gibbs", "particle_filter", "particle_smoother"):
        path = results / f"calibration_dynamic_dipoles_{method}.json"
        result = json.loads(path.read_text("utf-8"))
        lowest = min(test["p_value"] for test in result["statistics"].values())
        assert f"{lowest:.2g} for" in readme.replace("\n", " ")
        assert f"`{method}` ({result['replications']}" in readme


def test_sparse_sources_are_those_of_the_kept_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    results = ROOT / "benchmarks/results"
    speed = json.loads((results / "sparse_sources_cpu_float64.json").read_text("utf-8"))
    norm, sure, bayes = speed["mixed_norm"], speed["sure"], speed["sparse_bayes"]
    first, second, third = (f"{norm[f'{p}_mne_ratio']:.1f}" for p in (60, 40, 20))
    assert f"the mixed norm {first}, {second} and {third} times as fast" in readme
    assert max(norm[f"{p}_gap"] for p in (60, 40, 20)) < 1e-8
    assert f"({norm['20_ours_s']:.2f} s at 20 %)" in readme
    times = f"{sure['ours_s']:.2f} s against {sure['mne_s']:.1f} s, {sure['ratio']:.0f} times"
    assert f"SURE {times}" in readme
    times = f"{bayes['ours_s']:.1f} s against {bayes['mne_s']:.0f} s, {bayes['ratio']:.0f} times"
    assert f"Bayes {times}" in readme
    assert f"irMxNE {speed['irmxne']['ratio']:.0f} times" in readme
    both = [f"{speed['tf_mxne'][f'{p}_ratio']:.1f}" for p in (40, 20)]
    assert f"TF-MxNE {both[0]} and {both[1]} times" in readme
    for name in ("celer", "skglm"):
        ratios = sorted(speed["fixed"][f"{p}_{name}_ratio"] for p in (60, 40, 20))
        assert f"{ratios[0]:.1f} to {ratios[-1]:.1f} times" in readme
    single = json.loads((results / "sparse_sources_cpu_float32.json").read_text("utf-8"))
    assert f"at 20 % takes {single['mixed_norm']['20_ours_s']:.2f} s" in readme
    assert f"sparse Bayes {single['sparse_bayes']['ours_s']:.1f} s, SURE " in readme
    assert f"SURE {single['sure']['ours_s']:.2f} s." in readme

    found = json.loads((results / "auditory_sparse.json").read_text("utf-8"))["methods"]
    own = {row["method"]: row for row in found if row["noise"] == "found"}
    assert own["mixed_norm"]["distance_mm"] == own["irmxne"]["distance_mm"] == 1.3
    for method, name in (
        ("irmxne", "alpha by SURE"),
        ("sparse_bayes", "sparse Bayes"),
        ("multiple_sparse_priors", "multiple sparse priors"),
        ("maximum_entropy", "maximum entropy"),
        ("ias", "IAS"),
    ):
        assert f"{name} {own[method]['distance_mm']:.1f} mm" in readme
        assert own[method]["is_within_limit"] == (method != "ias")
    both = [f"{own['gibbs'][f'probability_{side}']:.2f}" for side in ("left", "right")]
    assert f"with probability {both[0]} and {both[1]}" in readme and own["gibbs"]["n_active"] == 3
    given = {row["method"]: row["distance_mm"] for row in found if row["noise"] == "as given"}
    far = [given[m] for m in ("mixed_norm", "irmxne", "ias", "multiple_sparse_priors")]
    far.append(given["maximum_entropy"])
    assert f"{min(far):.0f} to {max(far):.0f} mm away" in readme

    heads = json.loads((results / "calibration_sparse.json").read_text("utf-8"))["heads"]
    held = {
        head: {m: told["coverage"] for m, told in both["intervals"].items()}
        for head, both in heads.items()
    }
    shares = [f"{100 * held['own']['gibbs'][level]:.0f} %" for level in ("0.5", "0.9")]
    assert f"in {shares[0]} and {shares[1]}" in readme
    for method, text in (
        ("sparse_bayes", "{} for sparse Bayes"),
        ("maximum_entropy", "{} for maximum entropy"),
        ("ias", "{} for IAS"),
        ("irmxne", "{} for irMxNE"),
        ("multiple_sparse_priors", "{} for multiple sparse priors"),
        ("mixed_norm", "{} for the mixed norm"),
    ):
        share = f"{100 * held['own'][method]['0.9']:.0f} %"
        assert text.format(share) in readme
    certain = [heads[head]["inclusion"]["region"][-1]["came"] for head in ("own", "other")]
    assert f"active in {100 * certain[0]:.1f} %" in readme
    assert f"`gibbs` {100 * held['other']['gibbs']['0.9']:.0f} %" in readme
    assert f"are active in {100 * certain[1]:.0f} %" in readme
