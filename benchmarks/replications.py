"""What the calibrations share: the loop over replications, the verdicts, and the JSON of both.

A calibration is a function of the number of a replication that returns the statistics at the truth
(n_statistics,), those at nearly independent draws of the posterior (n_statistics, n_draws), and a
note: the `status` of the posterior, and deviations of the package from a second computation, whose
largest of all replications is kept.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from machine import describe_machine

from bayes_esi.evaluate.calibration import coverage, ranks, uniformity

__all__ = ["generator", "parser", "run", "verdicts"]

# Replications between partial results.
_STEP = 50


def parser(description, methods, default, n_replications, n_draws):
    """Options that every calibration has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--replications", type=int, default=n_replications)
    options.add_argument("--method", choices=tuple(methods), default=default)
    options.add_argument("--draws", type=int, default=n_draws)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--set",
        nargs="+",
        default=[],
        type=_setting,
        metavar="NAME=NUMBER",
        help="options of the method other than those of the protocol",
    )
    options.add_argument("--out", help="JSON file to write")
    return options


def run(replicate, names, options, described, path):
    """Run the replications, write results now and then, print the verdicts.

    Parameters
    ----------
    replicate : callable
        From the number of a replication to statistics at the truth and at draws, and a note.
    names : sequence of str
        Of the statistics.
    options : argparse.Namespace
        Of `parser`.
    described : dict
        What the JSON says of model and method.
    path : path-like
        Of the JSON, unless the options name another.
    """
    truths, draws, notes = [], [], []
    start = time.perf_counter()
    for number in range(options.replications):
        truth, drawn, note = replicate(number)
        truths.append(truth)
        draws.append(drawn)
        notes.append(note)
        n_done = number + 1
        if n_done % _STEP and n_done < options.replications:
            continue
        result = {
            "method": options.method,
            "replications": n_done,
            "replications_wanted": options.replications,
            "draws": options.draws,
            "seed": options.seed,
            "seconds": round(time.perf_counter() - start, 1),
            **_summary(notes),
            "statistics": verdicts(names, np.array(truths), np.array(draws), seed=options.seed),
            **described,
            "machine": describe_machine(),
        }
        _write(result, Path(options.out or path))
    _print(result)


def verdicts(names, truths, draws, *, seed=0):
    """Rank, and test each statistic.

    Parameters
    ----------
    names : sequence of str
    truths : (n_replications, n_statistics)
    draws : (n_replications, n_statistics, n_draws)

    Returns
    -------
    dict of dict
    """
    n_draws = draws.shape[2]
    found = {}
    for i, name in enumerate(names):
        key = jax.random.fold_in(jax.random.key(seed + 1), i)
        ranked = ranks(key, truths[:, i], draws[:, i])
        test = uniformity(ranked, n_draws)
        cover = coverage(ranked, n_draws)
        found[name] = {
            "p_value": test.p_value,
            "p_chi_square": test.p_chi_square,
            "p_ecdf": test.p_ecdf,
            "bias": round(test.bias, 3),
            "dispersion": round(test.dispersion, 3),
            "histogram": test.histogram.tolist(),
            "rank_counts": np.bincount(ranked, minlength=n_draws + 1).tolist(),
            "coverage": {
                f"{level:.4f}": round(float(share), 4)
                for level, share in zip(cover.level, cover.observed, strict=True)
            },
        }
    return found


def generator(key):
    """NumPy's generator from a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _setting(text):
    name, _, number = text.partition("=")
    return name, int(number)


def _summary(notes):
    """How often each status came, and the largest of each deviation."""
    statuses = [note["status"] for note in notes]
    deviations = [name for name in notes[0] if name != "status"]
    return {
        **{f"max_{name}": max(note[name] for note in notes) for name in deviations},
        "statuses": {name: statuses.count(name) for name in sorted(set(statuses))},
    }


def _write(result, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    rate = result["seconds"] / result["replications"]
    lowest = min(s["p_value"] for s in result["statistics"].values())
    print(
        f"{result['replications']} replications, {rate:.2f} s each, lowest p-value {lowest:.4f}",
        file=sys.stderr,
        flush=True,
    )


def _print(result):
    print(f"{result['method']}: {result['replications']} replications, {result['statuses']}")
    for name, test in result["statistics"].items():
        print(
            f"  {name:15} p {test['p_value']:.4f}  bias {test['bias']:+.1f}  dispersion "
            f"{test['dispersion']:+.1f}  {test['histogram']}"
        )
