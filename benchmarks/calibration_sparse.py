"""How often sparse source estimates are right when they say so: intervals and inclusion.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/calibration_sparse.py --out FILE.json

Each replication draws active sources and their courses from the prior of `HierarchicalSources` on
a sphere (places 13 mm apart, 60 electrodes, 10 samples) and data from the likelihood: once with
the head that the inference knows, and once with another, whose skull conducts half as much and
whose sources lie off the grid. Of each method's posterior:

- *intervals*: the rank of the truth among draws of one number, the sum of all moments within 20 mm
  of the method's strongest source, along the direction and at the sample where it is largest; from
  the ranks, how often central intervals hold the truth. What is asked is chosen by the estimate
  alone, so that a right posterior has nominal coverage on its own head;
- *inclusion* (`gibbs`): probabilities that a source is active, and that any within 20 mm is,
  against how often they are.
"""

import argparse
import dataclasses
import itertools
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
from machine import describe_machine

import bayes_esi as be
from bayes_esi.simulate.hierarchical import draw_problem

SPACING, RADIUS, DEPTH_RADIUS = 0.013, 0.02, 0.065  # m
N_CHANNELS, N_TIMES, MAX_ACTIVE = 60, 10, 6
NOISE = 0.5e-6  # V
N_DRAWS = 199
RADII = (0.078, 0.080, 0.086, 0.092)
SKULL = {"own": 0.010, "other": 0.005}  # S/m
LEVELS = np.round(np.arange(0.05, 1.0, 0.05), 2)
EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BELIEF = be.HierarchicalSources(source_std=(5e-9, 50e-9))
METHODS = {
    "gibbs": (
        BELIEF,
        {"max_active": MAX_ACTIVE, "n_chains": 2, "n_warmup": 40, "n_samples": 200, "n_moves": 6},
    ),
    "sparse_bayes": (BELIEF, {}),
    "ias": (BELIEF, {}),
    "multiple_sparse_priors": (BELIEF, {"n_patches": 100, "reach": 2}),
    "maximum_entropy": (BELIEF, {"parcel_steps": 2, "reach": 2}),
    "mixed_norm": (be.GroupSparseSources("sure"), {}),
    "irmxne": (be.GroupSparseSources("sure"), {}),
}


def main():
    """Run the replications, print, write the JSON now and then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=150)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    known = geometry(SKULL["own"], np.random.default_rng(0), is_jittered=False)
    heads = {head: _Tally(options.methods) for head in SKULL}
    start = time.perf_counter()
    for i in range(options.replications):
        for head, tally in heads.items():
            rng = np.random.default_rng((options.seed, i, len(head)))
            seen = geometry(SKULL[head], rng, is_jittered=head == "other")
            key = jax.random.fold_in(jax.random.key(options.seed), i)
            drawn, truth = draw_problem(key, BELIEF, seen, MAX_ACTIVE)
            problem = dataclasses.replace(known, data=drawn.data)
            for method in options.methods:
                tally.add(method, problem, truth, jax.random.fold_in(key, 1))
        if (i + 1) % 10 == 0 or i + 1 == options.replications:
            seconds = time.perf_counter() - start
            result = {
                "replications": i + 1,
                "seconds": round(seconds, 1),
                "n_sources": known.n_sources,
                "n_channels": len(known.data),
                "n_times": N_TIMES,
                "max_active": MAX_ACTIVE,
                "radius_mm": 1e3 * RADIUS,
                "heads": {head: tally.told() for head, tally in heads.items()},
                "machine": describe_machine(),
            }
            print(f"{i + 1} replications, {seconds:.0f} s", flush=True)
            if options.out:
                Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for head, told in result["heads"].items():
        for method, own in told["intervals"].items():
            print(head, method, {k: v for k, v in own.items() if k != "coverage"})
            print("  ", own["coverage"])
        print(head, json.dumps(told["inclusion"], indent=1))


def geometry(skull, rng, *, is_jittered):
    """A sphere's lead field in electrode contrasts; sources moved off the grid or not."""
    steps = np.arange(-DEPTH_RADIUS, DEPTH_RADIUS + SPACING / 2, SPACING)
    grid = np.stack(np.meshgrid(steps, steps, steps[4:]), -1).reshape(-1, 3)
    grid = grid[np.linalg.norm(grid, axis=1) <= DEPTH_RADIUS]
    golden = np.pi * (3 - np.sqrt(5)) * np.arange(N_CHANNELS)
    height = np.linspace(0.98, -0.2, N_CHANNELS)
    round_ = np.sqrt(1 - height**2)
    unit = np.stack([round_ * np.cos(golden), round_ * np.sin(golden), height], axis=1)
    places = grid
    if is_jittered:
        places = grid + rng.uniform(-SPACING / 2, SPACING / 2, grid.shape)
    sphere = be.forward.Sphere(RADII, (0.33, 1.79, skull, 0.33))
    field = np.asarray(sphere.eeg(places, RADII[-1] * unit))
    # All contrasts of electrodes: what a reference leaves.
    contrasts = np.linalg.svd(np.eye(N_CHANNELS) - 1 / N_CHANNELS)[0][:, :-1].T
    field = np.tensordot(contrasts, field, axes=1)
    return be.Problem.from_arrays(
        np.zeros((len(contrasts), N_TIMES)),
        field,
        grid,
        NOISE**2 * np.eye(len(contrasts)),
        times=np.arange(N_TIMES) / 100,
    )


class _Tally:
    """What was said and what was true, over replications."""

    def __init__(self, methods):
        self.ranks = {method: [] for method in methods}
        self.status = {method: {} for method in methods}
        self.n_silent = dict.fromkeys(methods, 0)
        self.said = {"source": [], "region": []}
        self.came = {"source": [], "region": []}

    def add(self, method, problem, truth, key):
        """Infer, and compare with the truth."""
        model, options = METHODS[method]
        posterior = be.infer(model, problem, key, method, progress=False, throw=False, **options)
        name = posterior.status.name
        self.status[method][name] = self.status[method].get(name, 0) + 1
        pos = problem.source_pos
        if method == "gibbs":
            self._add_inclusion(posterior, truth, pos)
        if len(posterior.peaks) == 0:
            self.n_silent[method] += 1
            return
        near = np.linalg.norm(pos - pos[posterior.peaks[0]], axis=1) <= RADIUS
        mean = posterior.mean[near].sum(axis=0)
        at = int(np.argmax(np.sum(mean**2, axis=0)))
        along = mean[:, at] / np.linalg.norm(mean[:, at])
        draws = posterior.sample(key, N_DRAWS, sources=np.flatnonzero(near))
        told = draws.sum(axis=1)[:, :, at] @ along
        true = truth.moments[near[truth.places]].sum(axis=0)[:, at] @ along
        self.ranks[method].append(int(np.sum(told < true)))

    def _add_inclusion(self, posterior, truth, pos):
        is_active = np.isin(np.arange(len(pos)), truth.places)
        regions = np.linalg.norm(pos[:, None] - pos, axis=2) <= RADIUS
        active = posterior.moments.active
        member = np.zeros((len(active), len(pos) + 1), bool)
        member[np.arange(len(active))[:, None], active] = True
        around = (member[:, :-1].astype(float) @ regions > 0).mean(axis=0)
        self.said["source"].append(posterior.inclusion_probability)
        self.came["source"].append(is_active)
        self.said["region"].append(around)
        self.came["region"].append(regions[:, is_active].any(axis=1))

    def told(self):
        """Coverage of intervals and frequencies of what was called probable."""
        intervals = {}
        for method, ranks in self.ranks.items():
            # Central intervals of nominal level p hold ranks whose distance from the middle is
            # below p / 2 of all.
            share = np.abs((np.array(ranks) + 0.5) / (N_DRAWS + 1) - 0.5) * 2
            coverage = {str(p): round(float(np.mean(share <= p)), 3) for p in LEVELS}
            intervals[method] = {
                "n": len(ranks),
                "n_silent": self.n_silent[method],
                "status": self.status[method],
                "coverage": coverage,
            }
        inclusion = {}
        for kind in self.said if self.said["source"] else ():
            said, came = np.concatenate(self.said[kind]), np.concatenate(self.came[kind])
            rows = []
            for low, high in itertools.pairwise(EDGES):
                own = (said >= low) & ((said < high) | (high == 1.0))
                if own.any():
                    rows.append(
                        {
                            "said": round(float(said[own].mean()), 4),
                            "came": round(float(came[own].mean()), 4),
                            "n": int(own.sum()),
                        }
                    )
            inclusion[kind] = rows
        return {"intervals": intervals, "inclusion": inclusion}


if __name__ == "__main__":
    main()
