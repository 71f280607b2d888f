"""The verbs of the package in a shell: ``bayes-esi demo``, ``localize``, ``forward``, ``info``.

Exit code 0 means that the result can be trusted; 2, with one line that says why, that it cannot
or that there is none.
"""

import argparse
import os
import sys
import warnings

__all__ = ["main"]


def main(arguments=None):
    """Run the command line; return the exit code."""
    # One thread: on small matrices the threads of OpenBLAS cost more than they give.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    options = _parser().parse_args(arguments)
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("once", UserWarning)
            warnings.showwarning = _say
            return options.run(options)
    except KeyboardInterrupt:
        message = "interrupted; nothing was written"
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
    print(f"bayes-esi: {message}", file=sys.stderr)
    return 2


def _say(message, *_, **__):
    print(f"bayes-esi: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _demo(options):
    import jax

    from . import StaticDipoles, example_recording, from_mne, infer

    evoked, forward, noise_cov, truth = example_recording()
    problem = from_mne(evoked, forward, noise_cov, tmin=options.tmin, tmax=options.tmax)
    print(
        f"A simulated EEG response: {problem.n_channels} channels, {problem.n_times} samples, "
        f"{problem.n_sources} places, two true sources off that grid."
    )
    posterior = infer(
        StaticDipoles(),
        problem,
        key=jax.random.key(options.seed),
        progress=not options.quiet,
        throw=False,
        **_sampling(options),
    )
    code = _deliver(posterior, options.out, heading=_against(truth, posterior))
    return code


def _localize(options):
    import jax

    from . import StaticDipoles, from_mne, infer
    from .io.mne import read_problem_files

    evoked, forward, noise_cov = read_problem_files(
        options.evoked, options.forward, options.noise_cov, condition=options.condition
    )
    if options.baseline is not None:
        evoked.apply_baseline(tuple(options.baseline), verbose="ERROR")
    model = StaticDipoles(
        n_dipoles=options.n_dipoles,
        max_dipoles=options.max_dipoles,
        moment_std=options.moment_std,
        noise_std=options.noise_std,
    )
    problem = from_mne(evoked, forward, noise_cov, tmin=options.tmin, tmax=options.tmax)
    posterior = infer(
        model,
        problem,
        key=jax.random.key(options.seed),
        method=options.method,
        progress=not options.quiet,
        throw=False,
        **_sampling(options),
    )
    return _deliver(posterior, options.out)


def _forward(options):
    from .io.forward_files import check_out, forward_of_files, write_forward

    check_out(options.out)
    lead_field, info, src = forward_of_files(
        options.recording,
        bem_path=options.bem,
        trans_path=options.trans,
        src_path=options.src,
        spacing=options.spacing,
        conductivity=options.conductivity,
    )
    write_forward(lead_field, info, src, options.out)
    print(f"{lead_field!r}\nwritten to {options.out}")
    return 0


def _info(options):
    del options
    import platform
    from importlib.metadata import version

    import jax

    from . import __version__
    from .inference.registry import METHODS

    print(f"bayes_esi {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("jax", "jaxlib", "numpy", "scipy", "numpyro", "arviz", "mne"):
        print(f"  {package:<8} {version(package)}")
    print("devices: " + ", ".join(str(device) for device in jax.devices()))
    print("models and their methods, the default first:")
    for model, methods in METHODS.items():
        print(f"  {model.__name__}: {', '.join(methods)}")
    return 0


def _deliver(posterior, out, heading=""):
    from .report.folder import write_folder
    from .report.text import describe

    files = write_folder(posterior, out, heading)
    print(heading + describe(posterior))
    print(f"written to {out}: " + ", ".join(file.name for file in files))
    if posterior.status.is_trustworthy:
        return 0
    status = posterior.status
    print(f"bayes-esi: {status.name}: {status.cause}. Remedy: {status.remedy}.", file=sys.stderr)
    return 2


def _against(truth, posterior):
    """The truth of a simulation next to the dipoles nearest to it."""
    import numpy as np

    lines = ["Truth and the nearest dipole of the posterior (mm):"]
    dipoles = [d for d in posterior.dipoles() if d.probability > 0.5]
    for pos in truth.pos:
        line = "  true ({:6.1f}, {:6.1f}, {:6.1f})".format(*(1e3 * pos))
        if dipoles:
            nearest = min(dipoles, key=lambda d: np.linalg.norm(d.pos - pos))
            error = 1e3 * np.linalg.norm(nearest.pos - pos)
            spread = 1e3 * np.sqrt(np.trace(nearest.pos_cov))
            line += "   found ({:6.1f}, {:6.1f}, {:6.1f})".format(*(1e3 * nearest.pos))
            line += f"   {error:.1f} off, posterior spread {spread:.1f}"
        lines.append(line)
    return "\n".join(lines) + "\n\n"


def _sampling(options):
    given = {"n_particles": options.particles, "n_runs": options.runs}
    return {name: value for name, value in given.items() if value is not None}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command, as for any other bad input."""

    def error(self, message):
        self.exit(2, f"bayes-esi: {message}; see {self.prog} --help\n")


def _parser():
    parser = _Parser(
        prog="bayes-esi",
        description="From MEG/EEG recordings to a posterior over brain sources.",
        epilog="Not a medical device: for research only.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the main job on an embedded, simulated recording")
    demo.set_defaults(run=_demo)
    demo.add_argument("--out", default="bayes_esi_demo", help="folder to write (%(default)s)")
    _add_shared(demo, tmin=0.05, tmax=0.2)

    localize = commands.add_parser("localize", help="dipoles of an evoked response")
    localize.set_defaults(run=_localize)
    localize.add_argument("evoked", metavar="EVOKED.fif")
    localize.add_argument("--forward", required=True, metavar="FWD.fif")
    localize.add_argument("--noise-cov", required=True, metavar="COV.fif")
    localize.add_argument("--condition", help="name or number of the response in the file")
    localize.add_argument(
        "--baseline", nargs=2, type=float, metavar=("FROM", "TO"), help="subtract its mean; s"
    )
    localize.add_argument("--model", choices=["static-dipoles"], default="static-dipoles")
    localize.add_argument("--method", help="default: the first that `bayes-esi info` lists")
    localize.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    localize.add_argument("--n-dipoles", type=float, default=0.25, help="Poisson rate")
    localize.add_argument("--max-dipoles", type=int, default=10)
    localize.add_argument("--moment-std", type=float, help="A·m; default: inferred")
    localize.add_argument("--noise-std", type=float, help="relative; default: inferred")
    _add_shared(localize, tmin=None, tmax=None)

    forward = commands.add_parser(
        "forward",
        help="lead field of a recording's sensors",
        description="Lead field of a recording's sensors, from the surfaces of a head (--bem) or, "
        "without them, from the average head.",
    )
    forward.set_defaults(run=_forward)
    forward.add_argument("recording", metavar="RECORDING.fif", help="raw, epochs or evoked")
    forward.add_argument("--bem", metavar="BEM.fif", help="one or more nested surfaces")
    forward.add_argument("--trans", metavar="TRANS.fif", help="between head and MRI; with --bem")
    forward.add_argument("--src", metavar="SRC.fif", help="source space; default: a grid")
    forward.add_argument(
        "--spacing", type=float, help="of the grid, mm (default 7); of the average head: its cortex"
    )
    forward.add_argument(
        "--conductivity",
        type=float,
        nargs="+",
        metavar="S/m",
        help="inside each surface, from the outermost in (default 0.33 0.0066 0.33)",
    )
    forward.add_argument(
        "--out", required=True, metavar="OUT", help="-fwd.fif for MNE, or .nc for bayes_esi.load"
    )

    info = commands.add_parser("info", help="versions, devices, models and methods")
    info.set_defaults(run=_info)
    return parser


def _add_shared(parser, *, tmin, tmax):
    parser.add_argument("--tmin", type=float, default=tmin, help="start of the window, s")
    parser.add_argument("--tmax", type=float, default=tmax, help="end of the window, s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, help="particles of each run")
    parser.add_argument("--runs", type=int, help="independent runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


if __name__ == "__main__":
    sys.exit(main())
