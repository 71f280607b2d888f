"""Dipoles that come and go: speed, and what the literature says of filters and smoothers.

    OPENBLAS_NUM_THREADS=1 uv run python benchmarks/dynamic_dipoles.py --out FILE.json

Nothing is downloaded. Parts, each in a process of its own:

- `speed`: 1,000 particles, 305 channels, 4,150 sources, 200 samples, known scales, at most five
  dipoles, a synthetic field: filter and smoother as `be.infer` runs them, set-up included;
  time for each sample against the number of particles, of samples and of channels; moves of eight
  chains of trajectories. `--small` makes all of it small, to try the script.
- `streaming`: the same sizes, one sample at a time, with the particles and moves of a stream.
- `literature`: simulated MEG (306 channels on the average head, 250 Hz), two dipoles that overlap
  in time, for each of `--seeds`. The truth has other conductivities than the inversion, a helmet
  put on a little differently, places off the grid of the inversion, smooth moment courses and not
  AR(1) ones, and noise of brain and sensors, averaged over trials. Compared, at equal numbers of
  particles: our filter; the bootstrap filter, with dipoles that stay and with dipoles that walk, as
  in the literature, and once with 20 times the particles; our smoother; static dipoles in
  consecutive windows.

Errors: `localisation` is the mean distance of the true places to the largest peaks of the
intensity, as many as there are dipoles in truth; OSPA (order 1, cut-off 30 mm) takes the most
probable number, and so pays for dipoles missed or invented. Standard errors are over seeds.

Claims: Sorrentino, Johansen, Aston, Nichols, Kendall 2013, doi:10.1214/12-AOAS611 (half the error
of the bootstrap filter); Vivaldi, Sorrentino 2016, doi:10.1088/0266-5611/32/4/045007 (poor at
onset for the filter, not for the smoother).
"""

import json
import statistics
import sys
import time

import parts

RATE = 250.0  # Hz
N_TIMES = 80
WINDOW = 16  # samples of a static analysis
LIVES = ((10, 55), (36, 71))  # first sample alive, first no longer
JITTER = 4  # samples, of each birth and death
MOMENT = 20e-9  # A·m at the height of a life
MOMENT_STD = 15e-9
N_ONSET, N_SETTLED = 5, 15  # samples of a life: the onset ends, the rest begins
LEAST_APART = 0.04  # m
CUTOFF = 0.03  # m
MORE = 20  # times the particles, for another bootstrap filter
STEP = 0.01  # m, of walking dipoles: about the distance of neighbours

# Skin, skull and brain in S/m: what the inversion believes, and what is true.
BELIEVED = (0.33, 0.0066, 0.33)
TRUE = (0.36, 0.0058, 0.31)
HELMET_SHIFT = (1.5e-3, -1.5e-3, 1e-3)  # m
HELMET_TURN = 0.02  # rad, about the left-right axis
N_CANDIDATES, N_BACKGROUND = 400, 400
N_TRIALS = 40
BACKGROUND_STD = 200e-15  # T, of single trials, average over magnetometers
SENSOR_STD = {"mag": 30e-15, "grad": 1.5e-12}  # T, T/m


def main():
    """Run the parts, print, write the JSON."""
    parser = parts.parser(__doc__, _RUNS, repeats=3)
    parser.add_argument("--small", action="store_true", help="sizes of a minute in part speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--particles", type=int, default=1000, help="in part literature")
    parts.run(parser.parse_args(), _RUNS)


def _timed(act, repeats):
    """Seconds to compile, and the median of the calls after; `act` takes the number of the call."""
    seconds = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        act(i)
        seconds.append(time.perf_counter() - start)
    return parts.timing(seconds)


# ------------------------------------------------------------------------- speed


def _speed(options):
    import jax

    import bayes_esi as be
    from bayes_esi.inference import particle_filter
    from bayes_esi.inference.track_inference import prepare

    small, repeats = options.small, options.repeats
    n_sources, n_times, n_particles = (300, 30, 100) if small else (4150, 200, 1000)
    model, problem = _track_model(), _synthetic(n_sources, 305, n_times)
    result = {
        "n_sources": n_sources,
        "n_channels": 305,
        "n_times": n_times,
        "n_particles": n_particles,
    }

    def infer(i, method, **sizes):
        return parts.quiet(
            be.infer, model, problem, key=jax.random.key(i), method=method, progress=False,
            throw=False, **sizes,
        )  # fmt: skip

    # A floor for the filter and the smoother below, which prepare anew on every call.
    set_up = _timed(lambda i: jax.block_until_ready(prepare(model, problem, 2**32)), 1)
    result |= parts.labelled("set_up", set_up)
    sizes = {"n_runs": 1, "n_particles": n_particles}
    result |= parts.labelled(
        "filter", _timed(lambda i: infer(i, "particle_filter", **sizes), repeats)
    )
    _log(result)
    result |= parts.labelled(
        "smoother", _timed(lambda i: infer(i, "particle_smoother", **sizes), repeats)
    )
    _log(result)
    target = prepare(model, problem, 2**32)

    def sample_ms(target, n_particles):
        def act(i):
            particle_filter.run(jax.random.key(i), target, n_particles, particle_filter.Options())

        return 1e3 * _timed(act, repeats)["seconds"] / target.gram.n_times

    result["ms_a_sample"] = {
        f"{n} particles": sample_ms(target, n) for n in (n_particles // 2, 2 * n_particles)
    }
    result["ms_a_sample"][f"{n_particles} particles"] = sample_ms(target, n_particles)
    _log(result)
    del target
    for n in (n_times // 4, n_times // 2):
        part = prepare(model, _synthetic(n_sources, 305, n), 2**32)
        result["ms_a_sample"][f"{n} samples"] = sample_ms(part, n_particles)
        del part
    part = prepare(model, _synthetic(n_sources, 60, n_times), 2**32)
    result["ms_a_sample"]["60 channels"] = sample_ms(part, n_particles)
    del part
    _log(result)

    n_moves = 50 if small else 200
    chains = {"n_chains": 8, "n_burn_in": n_moves, "n_samples": n_moves // 10, "n_thin": 10}
    timing = _timed(lambda i: infer(i, "particle_gibbs", **chains), repeats)
    moves = 8 * 2 * n_moves / (timing["seconds"] - set_up["seconds"])
    return result | parts.labelled("particle_gibbs", timing) | {"moves_per_s": moves}


def _streaming(options):
    """One sample in, the posterior out, as `DynamicDipoles.stream` does it; twice over the data."""
    import jax
    import numpy as np

    model, problem = _track_model(), _synthetic(300 if options.small else 4150, 305, 200)
    stream = model.stream(problem)
    samples = (np.linalg.pinv(problem.whitener) @ problem.data).T
    seconds = []
    for round_ in range(2):
        state = stream.init(jax.random.key(round_))
        for sample in samples:
            start = time.perf_counter()
            state, _ = stream.step(state, sample)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
    steady = sorted(seconds[len(samples) :])
    return {
        "n_sources": problem.n_sources,
        "n_channels": problem.n_channels,
        "n_particles": stream.n_particles,
        "step_ms": 1e3 * statistics.median(steady),
        "step_ms_95": 1e3 * steady[int(0.95 * len(steady))],
        "step_ms_max": 1e3 * steady[-1],
        "compilation_s": seconds[0],
    }


def _track_model():
    import bayes_esi as be

    return be.DynamicDipoles(max_dipoles=5, moment_std=1.0, noise_std=1.0)


def _synthetic(n_sources, n_channels, n_times):
    """Two dipoles among sources of a cubic grid, in a smooth field; whitened units."""
    import numpy as np

    import bayes_esi as be

    rng = np.random.default_rng(0)
    side = int(np.ceil(n_sources ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    pos = 0.01 * grid[:n_sources]
    sensors = rng.standard_normal((n_channels, 3))
    sensors *= 0.01 * side / np.linalg.norm(sensors, axis=1, keepdims=True)
    offset = sensors[:, None] + pos.mean(axis=0) - pos
    field = offset / np.linalg.norm(offset, axis=-1, keepdims=True) ** 3
    # The same information whatever the number of channels.
    field *= np.sqrt(305 / n_channels) / np.sqrt(np.mean(field**2))
    data = rng.standard_normal((n_channels, n_times))
    for place, birth, death in ((n_sources // 3, 0.2, 0.6), (2 * n_sources // 3, 0.4, 0.8)):
        moment = rng.standard_normal(3)
        for t in range(int(birth * n_times), int(death * n_times)):
            moment = 0.9 * moment + np.sqrt(1 - 0.9**2) * rng.standard_normal(3)
            data[:, t] += field[:, place] @ moment
    return be.Problem.from_arrays(data, field, pos, times=np.arange(n_times) / 500)


# -------------------------------------------------------------------- literature


def _literature(options):
    import numpy as np

    import bayes_esi as be

    head = _head()
    rows = []
    for seed in options.seeds:
        start = time.perf_counter()
        problem, truth = _simulate(head, seed)
        found = _analyse(be, problem, truth, seed, options.particles)
        rows.append(found)
        brief = {
            name: {k: round(float(np.nanmean(v)), 2) for k, v in one.items()}
            for name, one in found.items()
        }
        _log({"seed": seed, "seconds": round(time.perf_counter() - start)} | brief)
    methods = list(rows[0])
    over_time = {
        name: {
            error: _mean([row[name][error] for row in rows])
            for error in rows[0][name]
            if np.ndim(rows[0][name][error])
        }
        for name in methods
    }
    summary = {
        name: {error: _mean_and_error([np.nanmean(row[name][error]) for row in rows])
               for error in rows[0][name]}
        for name in methods
    }  # fmt: skip
    return {
        "n_seeds": len(rows),
        "n_particles": options.particles,
        "n_sources": int(problem.n_sources),
        "rank": int(problem.data.shape[0]),
        "n_times": N_TIMES,
        "claims": _claims(rows),
        "summary": summary,
        "over_time": over_time,
    }


def _claims(rows):
    """What the literature says, as ratios and differences with their standard errors."""
    import numpy as np

    def told(name, error):
        return np.array([np.nanmean(row[name][error]) for row in rows])

    def ratio(name, other, error):
        return _ratio_and_error(told(name, error), told(other, error))

    claims = {
        f"{error}_filter_over_{other}": ratio("filter", other, error)
        for error in ("localisation_mm", "ospa_mm")
        for other in ("bootstrap", "bootstrap_walking", f"bootstrap_walking_{MORE}x")
    }
    best = [claims[f"localisation_mm_filter_over_{o}"] for o in ("bootstrap", "bootstrap_walking")]
    claims["at_most_half_of_bootstrap"] = bool(max(pair[0] for pair in best) <= 0.5)
    for error in ("localisation_mm", "ospa_mm"):
        for when in ("onset", "settled"):
            difference = told("filter", f"{when}_{error}") - told("smoother", f"{when}_{error}")
            claims[f"{when}_{error}_filter_less_smoother"] = _mean_and_error(difference)
    for name in ("filter", "smoother"):
        claims[f"{name}_onset_over_settled"] = _ratio_and_error(
            told(name, "onset_localisation_mm"), told(name, "settled_localisation_mm")
        )
    for error in ("localisation_mm", "ospa_mm", "number_error"):
        claims[f"{error}_smoother_over_static_windows"] = ratio("smoother", "static_windows", error)
    return claims


def _analyse(be, problem, truth, seed, n_particles):
    """Errors of every method on one problem: {method: {error: over time or at one phase}}."""
    import dataclasses

    import jax
    import numpy as np

    from bayes_esi.evaluate import tracks
    from bayes_esi.inference import bootstrap_filter
    from bayes_esi.inference.track_inference import prepare

    model = be.DynamicDipoles(max_dipoles=3, moment_std=MOMENT_STD, noise_std=1.0)
    sizes = {"n_runs": 1, "progress": False, "throw": False, "n_particles": n_particles}
    key = jax.random.key(seed)
    found = {}
    for name in ("filter", "smoother"):
        posterior = parts.quiet(
            be.infer, model, problem, key=key, method=f"particle_{name}", **sizes
        )
        found[name] = _errors(truth, problem, posterior.intensity, posterior.n_dipoles_pmf)
        if name == "smoother":
            places = posterior.draws.places[0]
            expected = tracks.expected_ospa(places, problem.source_pos, truth.sets, cutoff=CUTOFF)
            found[name]["expected_ospa_mm"] = 1e3 * expected
    bootstraps = {
        "bootstrap": ("static", n_particles),
        "bootstrap_walking": (STEP, n_particles),
        f"bootstrap_walking_{MORE}x": (STEP, MORE * n_particles),
    }
    for name, (motion, n) in bootstraps.items():
        target = prepare(dataclasses.replace(model, motion=motion), problem, 2**32)
        _, info = bootstrap_filter.run(key, target, n, bootstrap_filter.Options(), n_past=1)
        found[name] = _errors(truth, problem, info.intensity, info.n_dipoles_pmf)
        found[name]["log_evidence"] = float(np.sum(info.log_evidence_increment))

    static = be.StaticDipoles(max_dipoles=3, moment_std=MOMENT_STD, noise_std=1.0)
    intensity, pmf = [], []
    for first in range(0, N_TIMES, WINDOW):
        window = dataclasses.replace(
            problem,
            data=problem.data[:, first : first + WINDOW],
            times=problem.times[first : first + WINDOW],
        )
        posterior = parts.quiet(be.infer, static, window, key=key, **sizes | {"n_particles": 200})
        intensity += [posterior.intensity] * WINDOW
        pmf += [posterior.n_dipoles_pmf] * WINDOW
    found["static_windows"] = _errors(truth, problem, np.array(intensity), np.array(pmf))
    return found


def _errors(truth, problem, intensity, n_dipoles_pmf):
    """Distances in mm, and of the number."""
    import numpy as np

    from bayes_esi.evaluate import tracks

    intensity, pmf = np.asarray(intensity, float), np.asarray(n_dipoles_pmf, float)
    n_true = np.array([len(there) for there in truth.sets])
    told = tracks.intensity_peaks(intensity, n_true, problem.source_pos)
    localisation = 1e3 * tracks.matched_distance_over_time(told, truth.sets)
    guessed = tracks.intensity_peaks(intensity, pmf.argmax(axis=1), problem.source_pos)
    ospa = 1e3 * tracks.ospa_over_time(guessed, truth.sets, cutoff=CUTOFF)
    errors = {
        "localisation_mm": localisation,
        "ospa_mm": ospa,
        "number_error": tracks.number_error(pmf, n_true),
        # Where there are fewer peaks than dipoles, the distance is that of the peaks there are.
        "share_found": np.mean([len(told[t]) == n for t, n in enumerate(n_true) if n]),
    }
    for when, first, last in (("onset", 0, N_ONSET), ("settled", N_SETTLED, N_TIMES)):
        near = [_own_distance(told, truth, life, first, last) for life in range(len(truth.lives))]
        errors[f"{when}_localisation_mm"] = 1e3 * float(np.nanmean(np.concatenate(near)))
        samples = [np.arange(b, d)[first:last] for b, d in truth.lives]
        errors[f"{when}_ospa_mm"] = float(np.mean(ospa[np.concatenate(samples)]))
    return errors


def _own_distance(told, truth, life, first, last):
    """Distance of one dipole to the peak that is its own in the best assignment, over samples."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    birth, death = truth.lives[life]
    distances = []
    for t in range(birth, death)[first:last]:
        alive = [i for i, (b, d) in enumerate(truth.lives) if b <= t < d]
        cost = np.linalg.norm(told[t][:, None] - truth.sets[t], axis=2)
        rows, columns = linear_sum_assignment(cost)
        own = columns == alive.index(life)
        distances += cost[rows, columns][own].tolist() or [np.nan]
    return np.array(distances)


def _head():
    """Everything that the seeds share: fields of the inversion and of the truth."""
    import types
    import warnings

    import numpy as np

    from bayes_esi.forward.surfaces import vertex_normals
    from bayes_esi.io.template_files import template_head

    rng = np.random.default_rng(2026)
    template = template_head()
    info = template.info(None, meg="neuromag", sfreq=RATE)
    with warnings.catch_warnings():
        # Shallow sources: errors of some per cent, less than those of the conductivities.
        warnings.filterwarnings("ignore", ".*closer to the innermost surface.*", UserWarning)
        bem = template.bem(BELIEVED, order=3)
        believed = bem.lead_field(info, template.source_space(order=3))
        moved = info.copy()
        turn, angle = np.eye(4), HELMET_TURN
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn[:3, 3] = HELMET_SHIFT
        moved["dev_head_t"]["trans"] = turn @ info["dev_head_t"]["trans"]
        off_grid = np.setdiff1d(np.arange(len(template.mid_thickness)), template.source_index)
        chosen = rng.choice(off_grid, N_CANDIDATES + N_BACKGROUND, replace=False)
        pos = template.mid_thickness[chosen]
        true = np.asarray(bem.with_conductivity(TRUE).lead_field(moved, pos).data, float)
    normals = vertex_normals(template.mid_thickness, template.cortex_faces)[chosen]
    field = np.einsum("mnd,nd->mn", true, normals)
    kinds = np.array(info.get_channel_types())
    noise = field[:, N_CANDIDATES:] * rng.standard_normal(N_BACKGROUND)
    noise *= BACKGROUND_STD / np.sqrt(np.mean(np.sum(noise[kinds == "mag"] ** 2, axis=1)))
    sensor = np.diag([SENSOR_STD[kind] for kind in kinds])
    mixing = np.concatenate([noise, sensor], axis=1) / np.sqrt(N_TRIALS)
    field, pos = field[:, :N_CANDIDATES], pos[:N_CANDIDATES]
    noise_cov = mixing @ mixing.T
    # Dipoles that MEG sees: signal to noise of a unit moment above that of half the candidates.
    power = np.sum(field * np.linalg.solve(noise_cov, field), axis=0)
    _log({"median_peak_snr": float(MOMENT * np.sqrt(np.median(power[power > np.median(power)])))})
    return types.SimpleNamespace(
        lead_field=np.asarray(believed.data, float),
        source_pos=np.asarray(believed.source_pos, float),
        field=field,
        pos=pos,
        visible=np.flatnonzero(power > np.median(power)),
        mixing=mixing,
        noise_cov=noise_cov,
    )


def _simulate(head, seed):
    """Draw two lives and noise: a problem of the inversion, and the truth."""
    import types

    import numpy as np

    import bayes_esi as be

    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.choice(head.visible, len(LIVES), replace=False)
        if np.linalg.norm(np.diff(head.pos[chosen], axis=0)) > LEAST_APART:
            break
    lives = [tuple(int(x + rng.integers(-JITTER, JITTER + 1)) for x in life) for life in LIVES]
    data = head.mixing @ rng.standard_normal((head.mixing.shape[1], N_TIMES))
    for source, (birth, death) in zip(chosen, lives, strict=True):
        phase = (np.arange(birth, death) - birth + 0.5) / (death - birth)
        data[:, birth:death] += head.field[:, source, None] * MOMENT * np.sin(np.pi * phase)
    problem = be.Problem.from_arrays(
        data,
        head.lead_field,
        head.source_pos,
        noise_cov=head.noise_cov,
        times=np.arange(N_TIMES) / RATE,
    )
    sets = [
        head.pos[[s for s, (b, d) in zip(chosen, lives, strict=True) if b <= t < d]]
        for t in range(N_TIMES)
    ]
    return problem, types.SimpleNamespace(lives=lives, sets=sets)


# ----------------------------------------------------------------------- numbers


def _mean(rows):
    """Mean over seeds for JSON, null where no seed has a value."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        mean = np.nanmean(rows, axis=0)
    return [round(float(value), 3) if np.isfinite(value) else None for value in mean]


def _mean_and_error(values):
    """Mean over seeds and its standard error."""
    import numpy as np

    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return [float(np.mean(values)), float(spread)]


def _ratio_and_error(values, others):
    """Ratio of means over seeds and its standard error, by linear approximation."""
    import numpy as np

    is_known = np.isfinite(values) & np.isfinite(others)
    values, others = values[is_known], others[is_known]
    ratio = np.mean(values) / np.mean(others)
    residual = (values - ratio * others) / np.mean(others)
    return [float(ratio), float(np.std(residual, ddof=1) / np.sqrt(len(values)))]


def _log(value):
    """Progress of a part: its last line on standard output is its result."""
    print(json.dumps(value), file=sys.stderr, flush=True)


_RUNS = {"speed": _speed, "streaming": _streaming, "literature": _literature}

if __name__ == "__main__":
    main()
