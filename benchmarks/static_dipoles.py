"""Speed of the SMC sampler on a real auditory response, side by side with SESAMEEG 0.0.3.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/static_dipoles.py --data DIR

DIR is the folder that holds `sample/`. SESAMEEG runs on the same problem in the same run, in an
environment of its own (`sesameeg_reference.py` says what it needs); `--no-peer` leaves it out.
On a machine without MNE, such as a GPU node, give the arrays that `--save-problem FILE.npz`
wrote elsewhere: `--problem FILE.npz --no-peer`.

A *sweep* of one particle is one attempt at birth or death (here: one draw from the exact
conditional of a dipole over nothing and 8 places, which also relocates), one local move of each
of its dipoles, and one move of the scales: what SESAMEEG's iteration does once per particle.
Rates count sampling alone on both sides; the seconds of our runs hold the set-up, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from machine import describe_machine, peak_memory_mib

FOLDER = Path(__file__).parent
WINDOW = (0.045, 0.135)
ARRAYS = ("data", "lead_field", "source_pos")


def main():
    """Run both samplers, print the table, write the JSON."""
    options = _options()
    import jax

    jax.config.update("jax_enable_x64", options.precision == 64)
    problem = _problem(options)
    if options.save_problem:
        _save(problem, options.save_problem)
        return
    ours = [_run(problem, seed, options) for seed in [options.seeds[0], *options.seeds]]
    warm = ours[1:]
    compilation = ours[0]["seconds"] - statistics.median(run["seconds"] for run in warm)
    set_up = statistics.median(_set_up(problem) for _ in options.seeds)
    for run in warm:
        run["sweeps_per_s"] = run["n_sweeps"] * options.particles / (run["seconds"] - set_up)
    result = {
        "problem": {
            "rank": problem.data.shape[0],
            "n_times": problem.n_times,
            "n_sources": problem.n_sources,
        },
        "machine": describe_machine(),
        "precision": options.precision,
        "n_particles": options.particles,
        "compilation_s": compilation,
        "set_up_s": set_up,
        "seconds": statistics.median(run["seconds"] for run in warm),
        "sweeps_per_s": statistics.median(run["sweeps_per_s"] for run in warm),
        "peak_memory_mib": peak_memory_mib(),
        "runs": warm,
    }
    if not options.no_peer:
        peer = _run_peer(options)
        result["sesameeg"] = peer
        rate = statistics.median(run["particle_sweeps_per_second"] for run in peer)
        result["ratio_of_sweep_rates"] = result["sweeps_per_s"] / rate
    _print(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("BAYES_ESI_DATA", "../shared/data"))
    parser.add_argument("--problem", help="arrays written by --save-problem")
    parser.add_argument("--save-problem", help="write the arrays and stop")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", help="folder for the forward solution")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", help="JSON file to write")
    return parser.parse_args()


def _problem(options):
    import numpy as np

    import bayes_esi as be

    if options.problem:
        with np.load(options.problem) as file:
            return be.Problem.from_arrays(*(file[name].astype(float) for name in ARRAYS))
    from sesameeg_reference import sample_problem

    evoked, forward, noise_cov = sample_problem(options.data, cache_dir=options.cache)
    return be.from_mne(evoked, forward, noise_cov, tmin=WINDOW[0], tmax=WINDOW[1])


def _save(problem, path):
    import numpy as np

    # Single precision halves the file; the data are whitened, so nothing is lost that counts.
    np.savez_compressed(
        path, **{name: getattr(problem, name).astype(np.float32) for name in ARRAYS}
    )


def _run(problem, seed, options):
    import warnings

    import jax
    import numpy as np

    import bayes_esi as be

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "computing in float32")
        posterior = be.infer(
            be.StaticDipoles(),
            problem,
            key=jax.random.key(seed),
            n_particles=options.particles,
            n_runs=1,
            progress=False,
            throw=False,
        )
    seconds = time.perf_counter() - start
    n_final = posterior.draws.active.shape[1] // options.particles
    n_sweeps = int(np.nansum(posterior.draws.trace["n_sweeps"])) + n_final
    leading = posterior.dipoles()[:3]
    return {
        "seed": seed,
        "seconds": seconds,
        "n_temperatures": posterior.draws.trace["n_sweeps"].shape[1],
        "n_sweeps": n_sweeps,
        "log_evidence": posterior.log_evidence,
        "n_dipoles_pmf": np.round(posterior.n_dipoles_pmf, 4).tolist(),
        "leading_pos_mm": [np.round(1e3 * d.pos, 1).tolist() for d in leading],
    }


def _set_up(problem):
    """Seconds that a compiled run spends before it samples."""
    import jax

    import bayes_esi as be
    from bayes_esi.inference.dipole_inference import check_options, prepare

    start = time.perf_counter()
    limit = check_options("smc", {})["memory_limit"]
    jax.block_until_ready(prepare(be.StaticDipoles(), problem, limit)[0])
    return time.perf_counter() - start


def _run_peer(options):
    needs = ("sesameeg==0.0.3", "mne", "numpy", "scipy")
    command = ["uv", "run", "--isolated", "--no-project", "--python", "3.13"]
    command += [word for package in needs for word in ("--with", package)]
    command += [str(FOLDER / "sesameeg_reference.py"), "--data", options.data]
    command += ["--cache", options.cache] if options.cache else []
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


def _print(result):
    machine = result["machine"]
    print(f"{machine['device']}, {machine['cores']} cores, float{result['precision']}")
    print(f"compilation          {result['compilation_s']:10.1f} s")
    print(f"{result['n_particles']} particles       {result['seconds']:10.1f} s  (compiled)")
    print(f"set-up               {result['set_up_s']:10.1f} s")
    print(f"particle-sweeps      {result['sweeps_per_s']:10.0f} /s")
    print(f"peak memory          {result['peak_memory_mib']:10.0f} MiB")
    for run in result["runs"]:
        print(f"  seed {run['seed']}: {run['n_dipoles_pmf']} {run['leading_pos_mm']}")
    if "sesameeg" in result:
        for run in result["sesameeg"]:
            rate, seconds = run["particle_sweeps_per_second"], run["seconds"]
            print(f"SESAMEEG, {run['n_particles']} particles {seconds:8.1f} s, {rate:.0f} sweeps/s")
            print(f"  seed {run['seed']}: {run['n_dipoles_probs']} {run['pos_mm']}")
        print(f"ratio of sweep rates {result['ratio_of_sweep_rates']:10.0f}")


if __name__ == "__main__":
    main()
