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
