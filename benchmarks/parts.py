"""What benchmarks of several parts share: options, a process for each part, timings and the JSON.

A part is a function from the options to a dict of numbers. It runs in a process of its own, so that
its peak memory is its own; that process prints the dict, as its last line, and the first process
collects. What a part says on the way goes to standard error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

# Before NumPy is imported: on a busy machine several threads wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from machine import describe_machine, peak_memory_mib

__all__ = ["add_peer_options", "labelled", "parser", "quiet", "run", "timing"]


def parser(description, names, *, repeats):
    """Options that every benchmark of parts has.

    Parameters
    ----------
    description : str
        Its first line is told.
    names : iterable of str
        Of the parts; all run by default.
    repeats : int
        Default of `--repeats`.

    Returns
    -------
    argparse.ArgumentParser
    """
    names = tuple(names)
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--precision", type=int, choices=(32, 64), default=64)
    options.add_argument("--parts", nargs="+", choices=names, default=names)
    options.add_argument(
        "--repeats", type=int, default=repeats, help="of each timing, after the first"
    )
    options.add_argument("--out", help="JSON file to write")
    options.add_argument("--alone", choices=names, help=argparse.SUPPRESS)
    return options


def add_peer_options(options):
    """Add those of benchmarks that analyse the recording, with other packages beside."""
    options.add_argument("--data", default=os.environ.get("BAYES_ESI_DATA", "../shared/data"))
    options.add_argument("--cache", help="folder for the forward solution")
    options.add_argument("--no-peer", action="store_true")


def run(options, parts):
    """Run the parts, print, write the JSON after each; in a process of `--alone`, just that part.

    Parameters
    ----------
    options : argparse.Namespace
        Of `parser`.
    parts : dict of callables
        From the options to a dict for JSON, by name.
    """
    import jax

    jax.config.update("jax_enable_x64", options.precision == 64)
    if options.alone:
        print(json.dumps({**parts[options.alone](options), "peak_memory_mib": peak_memory_mib()}))
        return
    result = {"machine": describe_machine(), "precision": options.precision}
    for part in options.parts:
        result[part] = _apart(part)
        print(f"{part}\n" + "\n".join(f"  {k:<38}{_text(v)}" for k, v in result[part].items()))
        if options.out:
            Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timing(seconds):
    """From seconds of calls: those to compile (first less others), and the median of the others.

    A single call stands for itself.
    """
    steady = statistics.median(seconds[1:] or seconds)
    return {"seconds": steady, "compilation_s": max(seconds[0] - steady, 0.0)}


def labelled(name, timing):
    """A `timing` for the JSON."""
    return {f"{name}_s": timing["seconds"], f"{name}_compilation_s": timing["compilation_s"]}


def quiet(act, *args, **kwargs):
    """Call without the warning that evidence is computed in float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "computing in float32")
        return act(*args, **kwargs)


def _apart(part):
    """Run the same command for one part in another process."""
    command = [sys.executable, *sys.argv, "--alone", part]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def _text(value):
    if isinstance(value, dict):
        return "\n" + "\n".join(f"    {k:<44}{_text(v)}" for k, v in value.items())
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]:.4g} +- {value[1]:.2g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
