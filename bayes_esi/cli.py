"""The verbs of the package in a shell: ``bayes-esi demo``, ``localize``, ``forward``, ``info``.

Exit code 0 means that the result can be trusted; 2, with one line that says why, that it cannot
or that there is none.
"""

import os
import sys
import warnings

from .cli_parser import build_parser, method_options, model_of

__all__ = ["main"]


def main(arguments=None):
    """Run the command line; return the exit code."""
    # One thread: on small matrices the threads of OpenBLAS cost more than they give.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    options = build_parser(_VERBS).parse_args(arguments)
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
        **method_options(options),
    )
    code = _deliver(posterior, options.out, heading=_against(truth, posterior))
    return code


def _localize(options):
    import jax

    from . import from_mne, infer
    from .io.mne import read_problem_files

    model = model_of(options)
    evoked, forward, noise_cov = read_problem_files(
        options.evoked, options.forward, options.noise_cov, condition=options.condition
    )
    if options.baseline is not None:
        evoked.apply_baseline(tuple(options.baseline), verbose="ERROR")
    problem = from_mne(evoked, forward, noise_cov, tmin=options.tmin, tmax=options.tmax)
    posterior = infer(
        model,
        problem,
        key=jax.random.key(options.seed),
        method=options.method,
        progress=not options.quiet,
        throw=False,
        **method_options(options),
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


_VERBS = {"demo": _demo, "localize": _localize, "forward": _forward, "info": _info}
