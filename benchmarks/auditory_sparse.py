"""What sparse methods make of a real recording: how far from the dipoles that SMC finds.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/auditory_sparse.py --data FOLDER --out FILE.json

The left auditory response of the MNE sample subject as in `auditory_tracks.py`: MEG, three trials,
low-passed at 40 Hz and decimated to 86 Hz, 45-135 ms; 4,157 places with free orientation. The
dipoles are those of `StaticDipoles` within 20 mm of where tests expect the auditory cortices. Of
each method, with the noise level found and with that of the given covariance: its status, the
number of active sources, its strongest source (that whose field has the most power) and the
distance from that to the nearest of these dipoles. `nuts`, which would take hours here, and the
draws of the law behind the mixed norm are left out.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import auditory_tracks
import jax
import numpy as np
from machine import describe_machine

import bayes_esi as be

WINDOW = (0.045, 0.135)
LIMIT_MM = 15.0
# Of the alpha that silences all, for the norms to which "sure" does not apply.
ALPHA = 0.3
METHODS = ("mixed_norm", "irmxne", "minimum_current", "tf_mxne", "sparse_bayes", "ias",
           "multiple_sparse_priors", "maximum_entropy", "gibbs")  # fmt: skip
NORMS = METHODS[:4]
# A frame of eight samples for a window of nine.
OPTIONS = {"tf_mxne": {"window": 8, "step": 2}}


def main():
    """Run the methods, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("BAYES_ESI_DATA", "../shared/data"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    problem = recording(options.data)
    dipoles = auditory_dipoles(problem)
    print(json.dumps(dipoles))
    rows = []
    for noise_std in (None, 1.0):
        for method in options.methods:
            if method in NORMS:
                alpha = "sure" if method in ("mixed_norm", "irmxne") else ALPHA
                model = be.GroupSparseSources(alpha, noise_std=noise_std)
            else:
                model = be.HierarchicalSources(noise_std)
            start = time.perf_counter()
            posterior = be.infer(
                model,
                problem,
                method=method,
                throw=False,
                progress=False,
                **OPTIONS.get(method, {}),
            )
            rows.append(describe(posterior, dipoles))
            rows[-1]["seconds"] = round(time.perf_counter() - start, 1)
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "n_sources": problem.n_sources,
        "n_times": problem.n_times,
        "dipoles": dipoles,
        "methods": rows,
        "machine": describe_machine(),
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def recording(data_dir):
    """The response around its peak."""
    return auditory_tracks.problem(data_dir, *WINDOW)


def auditory_dipoles(problem):
    """Dipoles of the SMC posterior in auditory cortex: side, probability, place in mm."""
    posterior = be.infer(be.StaticDipoles(), problem, method="smc", throw=False, progress=False)
    found = []
    for dipole in posterior.dipoles():
        for side, place in auditory_tracks.AUDITORY.items():
            if np.linalg.norm(dipole.pos - place) < auditory_tracks.TOLERANCE:
                found.append(
                    {
                        "side": side,
                        "probability": round(float(dipole.probability), 3),
                        "pos_mm": np.round(1e3 * dipole.pos, 1).tolist(),
                        "status": posterior.status.name,
                    }
                )
    return found


def describe(posterior, dipoles):
    """What a method says, and how far its strongest source is from a dipole."""
    strongest = 1e3 * posterior.problem.source_pos[posterior.peaks[0]]
    distance = min(np.linalg.norm(strongest - d["pos_mm"]) for d in dipoles)
    told = {
        "method": posterior.method,
        "noise": "found" if posterior.model.noise_std is None else "as given",
        "noise_std": round(float(posterior.hyper["noise_std"][0]), 2),
        "status": posterior.status.name,
        "n_active": len(posterior.support),
        "strongest_mm": np.round(strongest, 1).tolist(),
        "distance_mm": round(float(distance), 1),
        "is_within_limit": bool(distance <= LIMIT_MM),
    }
    if "alpha" in posterior.hyper:
        told["alpha"] = round(float(posterior.hyper["alpha"]), 4)
    if posterior.moments.inclusion is not None:
        pos = posterior.problem.source_pos
        for side, place in auditory_tracks.AUDITORY.items():
            near = np.linalg.norm(pos - place, axis=1) < 1e-3 * LIMIT_MM
            told[f"probability_{side}"] = round(posterior.prob_in(near), 3)
    return told


if __name__ == "__main__":
    main()
