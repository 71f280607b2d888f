"""Speed of the sparse source estimates: MNE, celer and skglm side by side, on one recording.

    OPENBLAS_NUM_THREADS=1 uv run --group oracle python benchmarks/sparse_sources.py \
        --data DIR --out FILE.json

DIR is the folder that holds `sample/`. The left auditory response, MEG, 4,157 free sources (7 mm),
302 whitened rows, 55 samples. Parts, each in a process of its own:

- `mixed_norm`: at 60, 40 and 20 percent of the largest alpha, gap at most 1e-6, against MNE's
  solver on the same arrays, asked for its default gap (2e-4 on our scale) and for ours, and
  against `mixed_norm` of MNE as users call it;
- `sure`: fifteen alphas and the choice among them, against MNE's `mixed_norm(alpha="sure")`;
- `sparse_bayes`: one variance a source and noise of known level, against MNE's `gamma_map`;
- `fixed`: one orientation a source, against celer (multi-task lasso) and skglm at the same gap;
- `minimum_current`: one problem a sample, against celer's group lasso, sample by sample;
- `irmxne`, `tf_mxne`: against MNE's solvers on the same arrays.

Both sides take turns. Compilation and steady times are apart: the first call less the median of
the others. `--no-peer` leaves the others out; `--parts` names some parts.
"""

import time
import warnings

import parts

WINDOW = (0.045, 0.135)
TOL = 1e-6
N_SAMPLES = 5  # of the minimum current estimate: neighbours in time, at the peak


def main():
    """Run the parts, print, write the JSON."""
    parser = parts.parser(__doc__, _RUNS, repeats=5)
    parts.add_peer_options(parser)
    options = parser.parse_args()
    if options.alone:
        warnings.simplefilter("ignore")
    parts.run(options, _RUNS)


def _in_turns(acts, repeats):
    """Time several functions in turns: seconds to compile, the median of later calls, results.

    A number of repeats in place of the function's own, (act, repeats), is for what takes minutes;
    0 repeats stand for one call, the first.
    """
    acts = {name: act if isinstance(act, tuple) else (act, repeats) for name, act in acts.items()}
    seconds, results = {name: [] for name in acts}, {}
    for i in range(max(n for _, n in acts.values()) + 1):
        for name, (act, n) in acts.items():
            if i <= n:
                start = time.perf_counter()
                results[name] = act()
                seconds[name].append(time.perf_counter() - start)
    timings = {}
    for name, taken in seconds.items():
        told = parts.labelled(name, parts.timing(taken))
        timings |= told if name.startswith("ours") else {f"{name}_s": told[f"{name}_s"]}
    return timings, results


# -------------------------------------------------------------------- the recording


def _recording(options):
    import mne
    import numpy as np
    from sesameeg_reference import sample_problem

    import bayes_esi as be

    mne.set_log_level("ERROR")
    evoked, forward, noise_cov = sample_problem(options.data, cache_dir=options.cache)
    problem = be.from_mne(evoked, forward, noise_cov, tmin=WINDOW[0], tmax=WINDOW[1])
    dtype = np.float32 if options.precision == 32 else np.float64
    data, field = np.asarray(problem.data, dtype), np.asarray(problem.lead_field, dtype)
    call = {
        "evoked": evoked.copy().crop(*WINDOW),
        "forward": forward,
        "noise_cov": noise_cov,
        "loose": 1,
        "depth": None,
        "rank": {"meg": len(data)},
        "debias": False,
        "return_as_dipoles": True,
    }
    return data, field, call


def _for_mne(data, field, alpha_max, is_compressed=True):
    """Arrays as MNE's outer function hands them to its solver: alpha_max is 100."""
    import numpy as np

    data, field = data.astype(float), field.astype(float)
    if is_compressed:
        left, singular, _ = np.linalg.svd(data, full_matrices=False)
        data = left * singular
    return data, field.reshape(len(field), -1) * 100 / alpha_max


def _sizes(data, field):
    return {"n_sources": field.shape[1], "rank": len(data), "n_times": data.shape[1]}


def _mixed_norm(options):
    import mne
    import numpy as np
    from mne.inverse_sparse.mxne_optim import mixed_norm_solver

    from bayes_esi.inference import mixed_norm

    data, field, call = _recording(options)
    most = mixed_norm.alpha_max(data, field)
    square = float(np.sum(data.astype(float) ** 2))
    m, gain = _for_mne(data, field, most)
    result = _sizes(data, field)
    for percent in (60, 40, 20):
        alpha = percent / 100 * most

        def solver(tol, percent=percent):
            return mixed_norm_solver(
                m, gain, percent, maxit=10_000, tol=tol, n_orient=3, debias=False
            )

        acts = {"ours": lambda alpha=alpha: mixed_norm.run(data, field, alpha, tol=TOL)}
        if not options.no_peer:
            acts |= {
                "mne_solver_default_tol": (lambda: solver(1e-4 * square), 1),
                "mne_solver": (lambda: solver(TOL * square / 2), 1),
                "mne": (
                    lambda percent=percent: mne.inverse_sparse.mixed_norm(alpha=percent, **call),
                    1,
                ),
            }
        timings, found = _in_turns(acts, options.repeats)
        ours = found["ours"]
        result |= {f"{percent}_{name}": value for name, value in timings.items()}
        result |= {f"{percent}_n_active": ours.support.size, f"{percent}_gap": ours.gap}
        if not options.no_peer:
            for name in ("mne_solver_default_tol", "mne_solver", "mne"):
                result[f"{percent}_{name}_ratio"] = timings[f"{name}_s"] / timings["ours_s"]
            excess = found["mne_solver"][2][-1] - ours.objective
            result[f"{percent}_mne_excess"] = float(excess) / (0.5 * square)
    return result


def _sure(options):
    import mne
    import numpy as np

    from bayes_esi.inference import sparse_choice

    data, field, call = _recording(options)
    # MNE whitens with the noise of one trial: on our data, of the average, that is sqrt(nave).
    noise_std = float(np.sqrt(call["evoked"].nave))
    acts = {"ours": lambda: sparse_choice.sure(data, field, noise_std=noise_std)}
    if not options.no_peer:
        acts["mne"] = lambda: mne.inverse_sparse.mixed_norm(alpha="sure", random_state=0, **call), 0
    timings, found = _in_turns(acts, options.repeats)
    result = _sizes(data, field) | {"n_alphas": 15} | timings
    result["best_percent"] = 100 * found["ours"].best / found["ours"].alpha[0]
    result["n_active"] = found["ours"].found.support.size
    if not options.no_peer:
        result["mne_n_active"] = len(found["mne"])
        result["ratio"] = timings["mne_s"] / timings["ours_s"]
    return result


def _sparse_bayes(options):
    import mne

    from bayes_esi.inference import sparse_bayes

    data, field, call = _recording(options)
    acts = {"ours": lambda: sparse_bayes.run(data, field)}
    if not options.no_peer:
        own = {name: value for name, value in call.items() if name != "debias"}
        # The variance of the noise, in units of the noise of one trial.
        level = 1 / call["evoked"].nave
        acts["mne"] = lambda: mne.inverse_sparse.gamma_map(alpha=level, **own), 0
    timings, found = _in_turns(acts, options.repeats)
    ours = found["ours"]
    result = _sizes(data, field) | timings
    result |= {"n_active": int((ours.source_var > 0).sum()), "residual": ours.residual}
    result |= {"log_evidence": ours.log_evidence, "is_converged": bool(ours.is_converged)}
    if not options.no_peer:
        result |= {"mne_n_active": len(found["mne"])}
        result["ratio"] = timings["mne_s"] / timings["ours_s"]
    return result


def _strongest(field):
    """The orientation of each source that the sensors see best."""
    import numpy as np

    gram = np.einsum("mnd,mne->nde", field, field)
    fixed = np.einsum("mnd,nd->mn", field, np.linalg.eigh(gram)[1][:, :, -1])
    return np.asfortranarray(fixed)


def _fixed(options):
    import numpy as np

    from bayes_esi.inference import mixed_norm

    data, field, _ = _recording(options)
    columns = _strongest(field)
    columns = np.asfortranarray(columns / np.sqrt(np.mean(np.sum(columns**2, axis=0))))
    own = columns[:, :, None]
    most, rows = mixed_norm.alpha_max(data, own), len(data)
    energy = 0.5 * float(np.sum(data.astype(float) ** 2))
    # The others compute in double precision.
    columns, targets = (np.asfortranarray(a, dtype=float) for a in (columns, data))
    result = _sizes(data, field)
    for percent in (60, 40, 20):
        alpha = percent / 100 * most
        acts = {"ours": lambda alpha=alpha: mixed_norm.run(data, own, alpha, tol=TOL)}
        if not options.no_peer:
            from celer.homotopy import mtl_path
            from skglm import datafits, penalties, solvers

            def celer(alpha=alpha):
                # Its gap is of the misfit over rows; the tolerance is relative as ours.
                return mtl_path(columns, targets, alphas=[alpha / rows], tol=TOL, max_iter=500)[1][
                    ..., 0
                ].T

            def skglm(alpha=alpha):
                # It stops by the distance to optimality, here of the misfit over rows.
                solver = solvers.MultiTaskBCD(tol=1e-3 * alpha / rows, fit_intercept=False)
                penalty = penalties.L2_1(alpha / rows)
                return solver.solve(columns, targets, datafits.QuadraticMultiTask(), penalty)[0]

            acts |= {"celer": celer, "skglm": skglm}
        timings, found = _in_turns(acts, options.repeats)
        result |= {f"{percent}_{name}": value for name, value in timings.items()}
        result[f"{percent}_n_active"] = found["ours"].support.size
        result[f"{percent}_gap"] = found["ours"].gap
        for name in set(found) - {"ours"}:
            theirs = found[name][: columns.shape[1]]
            active = np.flatnonzero(np.any(theirs, axis=1))
            value, _ = mixed_norm.certify(data, own, alpha, active, theirs[active][:, None])
            result[f"{percent}_{name}_excess"] = (value - found["ours"].objective) / energy
            result[f"{percent}_{name}_ratio"] = timings[f"{name}_s"] / timings["ours_s"]
    return result


def _minimum_current(options):
    import numpy as np

    from bayes_esi.inference import minimum_current

    data, field, _ = _recording(options)
    m, n, d = field.shape
    field = field / np.sqrt(np.mean(np.sum(field**2, axis=(0, 2))))
    middle = int(np.argmax(np.sum(data**2, axis=0)))
    few = np.ascontiguousarray(data[:, middle - N_SAMPLES // 2 :][:, :N_SAMPLES])
    alpha = 0.3 * minimum_current.alpha_max(few, field)
    acts = {
        "ours": lambda: minimum_current.run(few, field, alpha, tol=TOL),
        "ours_all_samples": (
            lambda: minimum_current.run(data, field, float(alpha.mean()), tol=TOL),
            1,
        ),
    }
    if not options.no_peer:
        from celer.homotopy import celer_path

        columns = np.asfortranarray(field.reshape(m, n * d), dtype=float)
        targets = few.astype(float)

        def celer():
            return [
                celer_path(
                    columns, targets[:, t].copy(), "grouplasso", groups=3,
                    weights=np.ones(n), alphas=[alpha[t] / m], tol=TOL,
                )[1][:, 0]
                for t in range(N_SAMPLES)
            ]  # fmt: skip

        acts["celer"] = celer
    timings, found = _in_turns(acts, options.repeats)
    ours = found["ours"]
    result = _sizes(few, field) | timings
    result |= {"n_active": ours.support.size, "largest_gap": float(ours.gap.max())}
    result["all_samples_largest_gap"] = float(found["ours_all_samples"].gap.max())
    if not options.no_peer:
        result["celer_ratio"] = timings["celer_s"] / timings["ours_s"]
        excess = [
            0.5 * np.sum((few[:, t] - columns @ x) ** 2)
            + alpha[t] * np.sum(np.linalg.norm(x.reshape(n, d), axis=1))
            - ours.objective[t]
            for t, x in enumerate(found["celer"])
        ]
        result["celer_excess"] = float(np.max(excess / (0.5 * np.sum(few**2, axis=0))))
    return result


def _irmxne(options):
    import numpy as np
    from mne.inverse_sparse.mxne_optim import iterative_mixed_norm_solver

    from bayes_esi.inference import irmxne, mixed_norm

    data, field, _ = _recording(options)
    most = mixed_norm.alpha_max(data, field)
    # MNE's units, in which alpha_max is 100: the penalty has units of its own.
    own = (field * 100 / most).astype(field.dtype)
    square = float(np.sum(data.astype(float) ** 2))
    m, gain = _for_mne(data, field, most)
    acts = {"ours": lambda: irmxne.run(data, own, 40.0, max_reweightings=9, tol=TOL)}
    if not options.no_peer:
        acts["mne"] = (
            lambda: iterative_mixed_norm_solver(
                m, gain, 40, 10, maxit=10_000, tol=TOL * square / 2, n_orient=3, debias=False
            ),
            1,
        )
    timings, found = _in_turns(acts, options.repeats)
    result = _sizes(data, field) | timings
    result |= {"n_active": found["ours"].support.size, "objective": found["ours"].objective[-1]}
    if not options.no_peer:
        result |= {"mne_objective": float(found["mne"][2][-1])}
        result |= {"mne_n_active": int(found["mne"][1].sum() // 3)}
        result["ratio"] = timings["mne_s"] / timings["ours_s"]
    return result


def _tf_mxne(options):
    import numpy as np
    from mne.inverse_sparse.mxne_optim import tf_mixed_norm_solver

    from bayes_esi.inference import tf_mxne

    data, field, _ = _recording(options)
    most = tf_mxne.alpha_max(data, field, l1_ratio=0.05)
    square = float(np.sum(data.astype(float) ** 2))
    m, gain = _for_mne(data, field, most, is_compressed=False)
    result = _sizes(data, field)
    for percent in (40, 20):
        alpha = percent / 100 * most
        acts = {"ours": lambda alpha=alpha: tf_mxne.run(data, field, alpha, tol=TOL)}
        if not options.no_peer:
            acts["mne"] = (
                lambda percent=percent: tf_mixed_norm_solver(
                    m, gain, 0.95 * percent, 0.05 * percent, wsize=64, tstep=4, n_orient=3,
                    maxit=10_000, tol=TOL * square / 2, debias=False,
                ),
                1,
            )  # fmt: skip
        timings, found = _in_turns(acts, options.repeats)
        ours = found["ours"]
        result |= {f"{percent}_{name}": value for name, value in timings.items()}
        result |= {f"{percent}_n_active": ours.support.size, f"{percent}_gap": ours.gap}
        if not options.no_peer:
            excess = float(found["mne"][2][-1]) - ours.objective
            result[f"{percent}_mne_excess"] = excess / (0.5 * square)
            result[f"{percent}_ratio"] = timings["mne_s"] / timings["ours_s"]
    return result


_RUNS = {
    "mixed_norm": _mixed_norm,
    "sure": _sure,
    "sparse_bayes": _sparse_bayes,
    "fixed": _fixed,
    "minimum_current": _minimum_current,
    "irmxne": _irmxne,
    "tf_mxne": _tf_mxne,
}

if __name__ == "__main__":
    main()
