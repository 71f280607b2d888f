r"""SESAMEEG 0.0.3 on a real auditory response: the reference half of the static-dipole benchmark.

SESAMEEG is the published sampler for a few static dipoles with Poisson prior number, uniform
places and free moments. It is a yardstick here, never a dependency: it runs in an environment
of its own, and this file imports nothing of `bayes_esi`.

    OPENBLAS_NUM_THREADS=1 uv run --isolated --no-project --python 3.13 \
        --with sesameeg==0.0.3 --with mne --with numpy --with scipy \
        benchmarks/sesameeg_reference.py --data DIR

DIR is the folder that holds `sample/`.

References: Sorrentino, Luria, Aramini 2014, doi:10.1088/0266-5611/30/4/045010 (the sampler);
Viani, Luria, Bornfleth, Sorrentino 2021, arXiv:2006.04141 (unknown moment scale).
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
from machine import peak_memory_mib

__all__ = ["run_sesameeg", "sample_problem"]


def sample_problem(data_dir, spacing=7.0, kinds=("meg",), cache_dir=None, *, baseline=(None, 0.0)):
    """Read the left auditory response and compute a volume forward solution for it.

    Parameters
    ----------
    data_dir : path-like
        Folder that holds `sample/`.
    spacing : float
        Distance of neighbouring sources of the cubic grid, in mm.
    kinds : tuple of str
        Sensors to keep: `("meg",)`, `("eeg",)` or `("meg", "eeg")`.
    cache_dir : path-like or None
        Folder where the forward solution is kept between runs, one file for each spacing (all
        sensors); None is the system's folder for temporary files. A cached file is trusted, so
        delete it when the recording or the head model changes.
    baseline : tuple
        Interval whose mean is subtracted, in s; the file itself is not corrected.

    Returns
    -------
    evoked : mne.Evoked
        The chosen sensors without channels that are bad in the recording or in `noise_cov`;
        projectors applied.
    forward : mne.Forward
        Three-layer BEM, free orientation, head coordinates, all sensors.
    noise_cov : mne.Covariance
        Noise of a single trial, all sensors.

    Raises
    ------
    ValueError
        If `kinds` is empty or names anything but "meg" and "eeg".
    """
    import mne

    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds or not set(kinds) <= {"meg", "eeg"}:
        raise ValueError(f"kinds: expected a choice of 'meg' and 'eeg', got {kinds!r}")
    folder = Path(data_dir) / "sample"
    with mne.use_log_level("ERROR"):
        evoked = mne.read_evokeds(folder / "sample_left-ave.fif.gz", condition="Left Auditory")
        evoked.apply_baseline(baseline)
        evoked.apply_proj()
        noise_cov = mne.read_cov(folder / "sample_audvis-cov.fif.gz")
        forward = _cached_forward(evoked.info, folder, spacing, cache_dir)
        evoked.info["bads"] = sorted(
            set(evoked.info["bads"]) | set(noise_cov["bads"]) & set(evoked.ch_names)
        )
        evoked.pick(list(kinds), exclude="bads")
    return evoked, forward, noise_cov


def _cached_forward(info, folder, spacing, cache_dir):
    """Read the forward solution of this spacing, or compute it and write it to the cache."""
    import mne

    cache_dir = Path(tempfile.gettempdir() if cache_dir is None else cache_dir)
    path = cache_dir / f"sample-{spacing:g}mm-fwd.fif"
    if path.exists():
        return mne.read_forward_solution(path)
    source_space = mne.setup_volume_source_space(
        None,
        pos=spacing,
        bem=folder / "sample-1280-bem.fif",
        mindist=5.0,
        add_interpolator=False,
    )
    surfaces = mne.read_bem_surfaces(folder / "sample-1280-1280-1280-bem.fif")
    forward = mne.make_forward_solution(
        info, folder / "sample-trans.fif", source_space, mne.make_bem_solution(surfaces)
    )
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Written aside and moved into place: runs that share the folder never read half a file.
    with tempfile.TemporaryDirectory(dir=cache_dir) as aside:
        mne.write_forward_solution(Path(aside) / path.name, forward)
        os.replace(Path(aside) / path.name, path)
    return forward


def _import_prepare_sesame():
    """Import SESAMEEG's high-level entry point after mending what keeps it from importing.

    A plain installation of version 0.0.3 does not run, for two reasons:

    - its neighbour search calls `numpy.in1d`, which NumPy 2.4 removed;
    - its package imports its own plotting module, and that imports pyvista, pyvistaqt and
      nilearn at module level, none of which it declares. No figure is drawn here, so the
      plotting module itself is replaced by an empty one, which spares stubs of three libraries
      that others, MNE among them, look for.
    """
    if not hasattr(np, "in1d"):
        np.in1d = np.isin  # noqa: NPY201 - the same on the one-dimensional arrays that SESAMEEG passes
    plotting = types.ModuleType("sesameeg.viz")
    for name in (
        "plot_n_sources",
        "plot_amplitudes",
        "plot_stc",
        "plot_vol_stc",
        "plot_cloud_sources",
    ):
        setattr(plotting, name, None)
    sys.modules.setdefault("sesameeg.viz", plotting)
    from sesameeg.mne import prepare_sesame

    return prepare_sesame


def run_sesameeg(
    evoked,
    forward,
    noise_cov,
    tmin=0.045,
    tmax=0.135,
    n_particles=100,
    seed=0,
    *,
    noise_std=None,
):
    """Run SESAMEEG with its recommended options and report time, work and estimates.

    Options are the defaults of `sesameeg.mne.prepare_sesame`: whitening by the covariance and
    the number of averaged trials, unknown moment scale (`hyper_q=True`), Poisson mean 0.25, at
    most 10 dipoles, neighbours within 1 cm, free orientation. Its default noise level is 0.2
    times the largest absolute (whitened) datum; `noise_std=1.0` is the level that whitening
    implies. Only `apply_sesame` is timed: whitening, the neighbour lists and the draw
    from the prior come before it.

    Parameters
    ----------
    evoked : mne.Evoked
        Good channels of the wanted kinds only: SESAMEEG does not drop channels from the data.
    forward : mne.Forward
        Free orientation; positions are returned in its coordinates (head).
    noise_cov : mne.Covariance
        Noise of a single trial.
    tmin, tmax : float
        First and last sample of the window, in s.
    n_particles : int
        Size of the population.
    seed : int
        SESAMEEG draws from NumPy's global generator, which is seeded with this.
    noise_std : float or None
        Noise level after whitening (no unit); None leaves it to SESAMEEG.

    Returns
    -------
    dict
        - n_particles, seed, noise_std : the settings; `noise_std` as used
        - n_channels, n_times : size of the whitened data
        - seconds : wall-clock time of `apply_sesame`, in s
        - n_steps : sweeps over all particles, one at each inverse temperature from 0 to 1
        - particle_sweeps_per_second : n_particles n_steps / seconds
        - n_dipoles : most probable number of dipoles
        - n_dipoles_probs : P(number of dipoles) for 0, 1, ..., 10
        - pos_mm : (n_dipoles, 3) estimated positions, in mm
        - peak_rss_mib : largest memory of the process so far, in MiB, forward solution included

    Notes
    -----
    A *step* visits every particle once, and the sweep of one particle is, in this order:

    1. one Metropolis attempt on the moment scale (gamma proposal of shape 3);
    2. one reversible-jump attempt on the number: a birth is proposed with probability 1/3, a
       death with probability 1/20, and nothing happens otherwise (0.62; more at 0 or 10
       dipoles), hence at most one likelihood;
    3. one local Metropolis move of each dipole in turn, to a point drawn among the grid points
       within 1 cm with Gaussian weights of 0.5 cm. The point itself is among them (at 7 mm
       spacing about one proposal in five stays where it is and still costs a likelihood).

    So a particle with n dipoles costs 1 + n likelihoods and up to one more, each of
    O(n_channels^2 n_times + n_channels^3) for the determinant and the dense inverse covariance.

    The steps count the first sweep, which moves draws from the prior at inverse temperature 0,
    and the last at 1. SESAMEEG itself prints this number plus two. Increments are chosen by
    bisection so that the effective sample size keeps 0.90 to 0.99 of its value, within 1e-5 and
    0.1, hence no fewer than 11 steps; below half of n_particles it resamples (systematic).
    Every step also sleeps 0.01 s, which is left in the time.
    """
    prepare_sesame = _import_prepare_sesame()
    np.random.seed(seed)  # noqa: NPY002 - the only seed that SESAMEEG takes
    with contextlib.redirect_stdout(sys.stderr):
        sampler = prepare_sesame(
            forward,
            evoked,
            n_parts=n_particles,
            top_min=float(tmin),
            top_max=float(tmax),
            noise_cov=noise_cov,
            noise_std=noise_std,
        )
        start = time.perf_counter()
        sampler.apply_sesame()
        seconds = time.perf_counter() - start
    # The exponents start as (0, 0), gain one after each sweep and end with a sentinel above 1.
    n_steps = len(sampler.posterior.exponents) - 2
    n_dipoles = int(sampler.est_n_dips[-1])
    places = np.asarray(sampler.est_locs[-1], dtype=int)
    n_channels, n_times = sampler.r_data.shape
    return {
        "n_particles": n_particles,
        "seed": seed,
        "noise_std": float(sampler.noise_std),
        "n_channels": n_channels,
        "n_times": n_times,
        "seconds": round(seconds, 3),
        "n_steps": n_steps,
        "particle_sweeps_per_second": round(n_particles * n_steps / seconds, 2),
        "n_dipoles": n_dipoles,
        "n_dipoles_probs": np.round(sampler.model_sel[-1], 4).tolist(),
        "pos_mm": np.round(1e3 * sampler.source_space[places], 1).tolist(),
        "peak_rss_mib": round(peak_memory_mib(), 1),
    }


def main(argv=None):
    """Run the benchmark for each seed and print a JSON list to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that holds sample/")
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", choices=["meg", "eeg"], default=["meg"])
    parser.add_argument("--noise-std", type=float, help="after whitening; default: SESAMEEG's")
    parser.add_argument("--cache", help="folder for the forward solution; default: temporary")
    args = parser.parse_args(argv)
    problem = sample_problem(args.data, kinds=tuple(args.kinds), cache_dir=args.cache)
    results = [
        run_sesameeg(*problem, n_particles=args.particles, seed=seed, noise_std=args.noise_std)
        for seed in args.seeds
    ]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
