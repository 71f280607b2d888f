"""Speed of the Gaussian source models: MNE side by side, and the whole brain in time.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/gaussian_sources.py --data DIR --out FILE.json

DIR is the folder that holds `sample/`. Parts, each in this one run:

- `minimum_norm`, `eloreta`: the left auditory response, MEG, 4,157 free sources, against
  MNE-Python's prepared `apply_inverse`, and against its eLORETA: ours asked to stop below the
  residual of the fixed point at which MNE's stops, and with its default;
- `smoother`: 10,000 free sources (30,000 states), 300 channels, 500 samples, random lead field:
  filter and smoother, means and deviations, and the peak memory of that process;
- `evidence`: value and gradient of the evidence in source_std, noise_std and coefficient;
- `coupled`: nearest-neighbour dynamics, same size, smoother with deviations;
- `dense`: a plain Kalman filter with its n x n covariance, against the same by separation. 30,000
  states on an accelerator, 3,000 on a CPU; `--dense N` says otherwise, 0 leaves it out.

`--no-peer` leaves MNE out (a machine without it); `--parts` names some parts. Compilation and
steady times are apart: the first call less the median of the others.
"""

import time

import parts
from machine import peak_memory_mib

N_SOURCES, N_CHANNELS, N_TIMES = 10_000, 300, 500
WINDOW = (0.045, 0.135)
LAMBDA2 = 1 / 9


def main():
    """Run the parts, print, write the JSON."""
    parser = parts.parser(__doc__, _RUNS, repeats=5)
    parts.add_peer_options(parser)
    parser.add_argument("--dense", type=int, help="states of the dense filter")
    options = parser.parse_args()
    left_out = ("minimum_norm", "eloreta") if options.no_peer else ()
    left_out += ("dense",) if options.dense == 0 else ()
    options.parts = [part for part in options.parts if part not in left_out]
    parts.run(options, _RUNS)


def _timed(act, repeats):
    """Seconds to compile, and the median of the calls after."""
    return _alternated([act], repeats)[0]


def _alternated(acts, repeats):
    """The same of several that take turns: a machine that changes its speed does so for all."""
    import jax

    seconds = [[] for _ in acts]
    for _ in range(repeats + 1):
        for act, own in zip(acts, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(act())
            own.append(time.perf_counter() - start)
    return [parts.timing(own) for own in seconds]


# -------------------------------------------------------------------- beside MNE


def _recording(options):
    import mne
    from sesameeg_reference import sample_problem

    import bayes_esi as be

    mne.set_log_level("ERROR")
    evoked, forward, noise_cov = sample_problem(options.data, cache_dir=options.cache)
    problem = be.from_mne(evoked, forward, noise_cov, tmin=WINDOW[0], tmax=WINDOW[1])
    evoked = evoked.copy().crop(*WINDOW)
    rank = {"meg": int(problem.data.shape[0])}
    operator = mne.minimum_norm.make_inverse_operator(
        evoked.info, forward, noise_cov, loose=1, depth=None, rank=rank
    )
    return problem, evoked, operator


def _minimum_norm(options):
    """Both sides have their operator; the estimate of new data is what is timed."""
    import dataclasses

    import mne
    import numpy as np

    import bayes_esi as be

    problem, evoked, operator = _recording(options)
    prepared = mne.minimum_norm.prepare_inverse_operator(operator, evoked.nave, LAMBDA2, "dSPM")
    posterior = parts.quiet(be.infer, be.GaussianSources(lambda2=LAMBDA2), problem, progress=False)
    posterior.statistic("dSPM")
    other = dataclasses.replace(problem, data=problem.data[:, ::-1].copy())

    def ours(method):
        applied = posterior.apply(other)
        return applied.mean if method == "MNE" else applied.statistic("dSPM")

    def theirs(method):
        return mne.minimum_norm.apply_inverse(
            evoked, prepared, LAMBDA2, method, pick_ori="vector" if method == "MNE" else None,
            prepared=True,
        ).data  # fmt: skip

    result = {"rank": len(problem.data), "n_sources": problem.n_sources, "n_times": problem.n_times}
    for method in ("MNE", "dSPM"):
        us, them = (_timed(lambda f=f, m=method: f(m), options.repeats) for f in (ours, theirs))
        result |= parts.labelled(method, us) | {f"{method}_mne_s": them["seconds"]}
        result[f"{method}_ratio"] = them["seconds"] / us["seconds"]
    same = posterior.apply(problem).statistic("dSPM")
    result["dSPM_difference"] = float(np.abs(same - theirs("dSPM")).max() / same.max())
    whole = _timed(
        lambda: parts.quiet(be.infer, be.GaussianSources(), problem, progress=False).std,
        options.repeats,
    )
    return result | parts.labelled("evidence_mean_and_std", whole)


def _eloreta(options):
    import mne
    import numpy as np

    import bayes_esi as be
    from bayes_esi.inference import eloreta

    problem, evoked, operator = _recording(options)
    field = np.asarray(problem.lead_field)

    def ours(tol):
        return eloreta.run(field, LAMBDA2, is_normalised=True, tol=tol).inverse_weights

    def theirs(method="eLORETA"):
        return mne.minimum_norm.prepare_inverse_operator(
            operator, evoked.nave, LAMBDA2, method, copy=True
        )

    us, default, them = _alternated(
        [lambda: ours(1.5e-6), lambda: ours(1e-8), theirs], options.repeats
    )
    their_residual = _residual(*_mne_weights(theirs("MNE"), theirs()), LAMBDA2)
    posterior = parts.quiet(be.infer, be.GaussianSources(lambda2=LAMBDA2), problem, progress=False)
    mine = posterior.statistic("eLORETA")
    other = mne.minimum_norm.apply_inverse(evoked, operator, LAMBDA2, "eLORETA").data
    return {
        "n_sources": problem.n_sources,
        "rank": len(problem.data),
        **parts.labelled("eloreta", us),
        "residual": _residual(field, np.asarray(ours(1.5e-6)), LAMBDA2),
        "default_tol_s": default["seconds"],
        "default_tol_residual": _residual(field, np.asarray(ours(1e-8)), LAMBDA2),
        "mne_s": them["seconds"],
        "mne_residual": their_residual,
        "ratio": them["seconds"] / us["seconds"],
        "default_tol_ratio": them["seconds"] / default["seconds"],
        "mne_distance": float(np.abs(mine - other).max() / mine.max()),
    }


def _mne_weights(plain, prepared):
    """Lead field (m, n, 3) and prior covariances (n, 3, 3) of MNE's eLORETA.

    What it keeps are the singular vectors of G R^(1/2) = U s V', and R^(1/2) V: their product
    R^(1/2) V s U' = R G' is solved for the blocks of R.
    """
    import numpy as np

    fields, leads = plain["eigen_fields"]["data"], plain["eigen_leads"]["data"]
    lead_field = (fields.T * plain["sing"]) @ leads.T / np.sqrt(plain["source_cov"]["data"])
    fields, leads = prepared["eigen_fields"]["data"], prepared["eigen_leads"]["data"]
    product = ((leads * prepared["sing"]) @ fields).reshape(plain["nsource"], 3, -1)
    lead_field = lead_field.reshape(len(lead_field), -1, 3)
    by_source = lead_field.swapaxes(0, 1)
    gram = by_source.swapaxes(1, 2) @ by_source
    return lead_field, np.linalg.solve(gram, (product @ by_source).swapaxes(1, 2))


def _residual(lead_field, cov, lambda2):
    """Largest relative distance of C_j^-2 from a multiple of G_j' M G_j, in plain NumPy.

    The multiple is the one that the normalisation trace(sum G_j C_j G_j') = rank stands for.
    """
    import numpy as np

    by_source = lead_field.swapaxes(0, 1)
    gram = by_source.swapaxes(1, 2) @ by_source
    data_cov = np.tensordot(by_source @ cov, by_source, ((0, 2), (0, 2)))
    m = np.linalg.matrix_rank(data_cov, hermitian=True)
    inverse = np.linalg.inv(data_cov + lambda2 * np.eye(len(data_cov)))
    quadratic = by_source.swapaxes(1, 2) @ (inverse @ by_source)
    values, vectors = np.linalg.eigh(quadratic)
    called = (vectors / np.sqrt(values)[:, None]) @ vectors.swapaxes(1, 2)
    square = np.linalg.inv(cov @ cov)
    error = square - quadratic * (np.sum(called * gram) / m) ** 2
    size = np.linalg.norm(square, axis=(1, 2))
    return float(np.max(np.linalg.norm(error, axis=(1, 2)) / size))


# -------------------------------------------------------------------- the whole brain in time


def _large(n_sources=N_SOURCES, n_times=N_TIMES):
    """A problem of the promised size: random fields, sources on a cubic grid."""
    import numpy as np

    import bayes_esi as be

    rng = np.random.default_rng(0)
    side = int(np.ceil(n_sources ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return be.Problem.from_arrays(
        30 * rng.standard_normal((N_CHANNELS, n_times)),
        rng.standard_normal((N_CHANNELS, n_sources, 3)),
        0.007 * grid[:n_sources],
        times=np.arange(n_times) / 500,
    )


def _smoother(options):
    import gc

    import bayes_esi as be

    problem = _large()
    baseline = peak_memory_mib()
    result = {"n_states": 3 * N_SOURCES, "n_channels": N_CHANNELS, "n_times": N_TIMES}
    models = {
        "known": be.AutoregressiveSources(coefficient=0.95, source_std=1.0),
        "learnt": be.AutoregressiveSources(),
    }
    for name, model in models.items():
        for method in ("kalman_smoother", "kalman_filter"):

            def act(model=model, method=method):
                posterior = parts.quiet(
                    be.infer, model, problem, method=method, progress=False, throw=False
                )
                return posterior.mean, posterior.std

            result |= parts.labelled(f"{method}_{name}", _timed(act, options.repeats))
            gc.collect()
    both = result["kalman_smoother_known_s"] + result["kalman_filter_known_s"]
    output = 2 * 8 * 3 * N_SOURCES * N_TIMES / 2**20
    return result | {
        "filter_and_smoother_s": both,
        "output_mib": output,
        "memory_without_output_mib": peak_memory_mib() - output,
        "memory_of_problem_mib": baseline,
    }


def _evidence(options):
    import jax
    import jax.numpy as jnp

    import bayes_esi as be
    from bayes_esi.models.source_likelihood import prepare

    problem = _large(n_sources=1000)
    model = be.AutoregressiveSources(noise_std=None)
    likelihood = prepare(model, problem).likelihood
    dtype = likelihood.data.dtype
    known = {"depth": jnp.zeros((), dtype), "smoothness": jnp.ones((), dtype)}

    @jax.jit
    def value_and_gradient(likelihood, x):
        def density(x):
            hyper = {
                "source_std": jnp.exp(x[0]),
                "noise_std": jnp.exp(x[1])[None],
                "coefficient": jnp.tanh(x[2]),
            }
            return likelihood.log_density(known | hyper)

        return jax.value_and_grad(density)(x)

    x = jnp.asarray([0.0, 0.0, 1.5], dtype)
    timing = _timed(lambda: value_and_gradient(likelihood, x), 20 * options.repeats)
    return {"n_channels": N_CHANNELS, "n_times": N_TIMES} | {
        "value_and_gradient_ms": 1e3 * timing["seconds"],
        "compilation_s": timing["compilation_s"],
    }


def _coupled(options):
    import bayes_esi as be

    problem = _large()
    transition = be.neighbour_dynamics(problem, 0.5, 0.45)
    model = be.CoupledSources(transition, 0.1)
    start = time.perf_counter()
    posterior = parts.quiet(be.infer, model, problem, progress=False, throw=False)
    seconds = time.perf_counter() - start
    return {
        "n_states": 3 * N_SOURCES,
        "non_zeros_per_row": transition.nnz / transition.shape[0],
        "seconds_with_compilation": seconds,
        "n_transient": int(posterior.moments.n_transient),
        "dare_residual": float(posterior.moments.dare_residual),
        "largest_std_error": float(posterior.moments.std_error.max()),
        "status": posterior.status.name,
    }


def _dense(options):
    """A filter as it is written in textbooks, beside the separable one, on the same data."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import bayes_esi as be

    is_cpu = jax.devices()[0].platform == "cpu"
    n_states = options.dense or (3_000 if is_cpu else 30_000)
    n_times = 5
    problem = _large(n_states // 3, n_times)
    coefficient = 0.95
    field = jnp.asarray(problem.lead_field.reshape(N_CHANNELS, -1) / problem.moment_unit)

    @jax.jit
    def step(mean, cov, sample):
        mean = coefficient * mean
        cov = coefficient**2 * cov
        cov = cov.at[jnp.diag_indices(len(mean))].add(1 - coefficient**2)
        reach = cov @ field.T
        spread = field @ reach + jnp.eye(N_CHANNELS, dtype=field.dtype)
        gain = jnp.linalg.solve(spread, reach.T).T
        mean = mean + gain @ (sample - field @ mean)
        return mean, cov - gain @ reach.T

    def textbook():
        mean = jnp.zeros(3 * problem.n_sources, field.dtype)
        cov = jnp.eye(3 * problem.n_sources, dtype=field.dtype)
        for t in range(n_times):
            mean, cov = step(mean, cov, jnp.asarray(problem.data[:, t]))
        return mean, jnp.sqrt(jnp.diagonal(cov))

    model = be.AutoregressiveSources(coefficient=coefficient, source_std=1.0)

    def separable():
        posterior = parts.quiet(be.infer, model, problem, method="kalman_filter", progress=False)
        return posterior.mean, posterior.std

    them, us = (_timed(act, 2) for act in (textbook, separable))
    dense, ours = textbook(), separable()
    scale = float(np.abs(ours[0]).max())
    difference = np.abs(np.asarray(dense[0]) - ours[0][..., -1].ravel()).max() / scale
    return {
        "n_states": 3 * problem.n_sources,
        "n_times": n_times,
        "dense_s_per_sample": them["seconds"] / n_times,
        "separable_s_per_sample": us["seconds"] / n_times,
        "ratio": them["seconds"] / us["seconds"],
        "difference_of_means": float(difference),
        "difference_of_std": float(np.abs(np.asarray(dense[1]) - ours[1][..., -1].ravel()).max()),
    }


_RUNS = {
    "minimum_norm": _minimum_norm,
    "eloreta": _eloreta,
    "smoother": _smoother,
    "evidence": _evidence,
    "coupled": _coupled,
    "dense": _dense,
}

if __name__ == "__main__":
    main()
