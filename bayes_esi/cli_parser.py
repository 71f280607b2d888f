"""The words of the command line: which there are, what they mean, and which model takes which."""

import argparse

__all__ = ["MODELS", "build_parser", "method_options", "model_of"]

# Model on the command line: the options that belong to it, by their names in `argparse`.
_SOURCES = ("source_std", "lambda2", "snr", "depth", "covariance", "loose", "noise_std")
MODELS = {
    "static-dipoles": (
        "n_dipoles",
        "max_dipoles",
        "moment_std",
        "noise_std",
        "loose",
        "particles",
        "runs",
    ),
    "dynamic-dipoles": (
        "birth_prob",
        "death_prob",
        "max_dipoles",
        "moment_std",
        "moment_persistence",
        "motion",
        "noise_std",
        "loose",
        "particles",
        "runs",
    ),
    "gaussian": (*_SOURCES, "regularisation"),
    "autoregressive": (*_SOURCES, "coefficient", "kernel", "time_scale"),
    "group-sparse": ("alpha", "noise_std", "depth", "loose"),
    "hierarchical": ("noise_std", "depth", "loose", "inclusion_prob"),
}
# Options of the method rather than of the model: their names there.
_METHOD = {"particles": "n_particles", "runs": "n_runs", "regularisation": "regularisation"}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command, as for any other bad input."""

    def error(self, message):
        self.exit(2, f"bayes-esi: {message}; see {self.prog} --help\n")


def build_parser(verbs):
    """Build the parser.

    Parameters
    ----------
    verbs : dict of str to callable
        What runs each command; it becomes `run` of the parsed options.
    """
    parser = _Parser(
        prog="bayes-esi",
        description="From MEG/EEG recordings to a posterior over brain sources.",
        epilog="Not a medical device: for research only.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, about) in _COMMANDS.items():
        command = commands.add_parser(name, help=about[0], description=about[-1])
        command.set_defaults(run=verbs[name])
        add(command)
    return parser


def model_of(options):
    """Build the model that the options of `localize` ask for.

    Raises
    ------
    ValueError
        If an option does not belong to it, or has a value that it refuses.
    """
    from . import (
        AutoregressiveSources,
        DynamicDipoles,
        GaussianSources,
        GroupSparseSources,
        HierarchicalSources,
        StaticDipoles,
    )

    own = MODELS[options.model]
    for name in dict.fromkeys(name for names in MODELS.values() for name in names):
        if getattr(options, name) is not None and name not in own:
            listed = ", ".join(map(_flag, own))
            raise ValueError(
                f"{_flag(name)} does not belong to --model {options.model}, which takes {listed}."
            )
    given = {
        name: None if value == "infer" else value
        for name in own
        if name not in _METHOD and (value := getattr(options, name)) is not None
    }
    if "snr" in given:
        if "lambda2" in given:
            raise ValueError("--snr and --lambda2 say the same thing; give one of them.")
        snr = given.pop("snr")
        if not 0 < snr < float("inf"):
            raise ValueError(f"--snr must be positive and finite, got {snr:g}.")
        given["lambda2"] = snr**-2
    kinds = (
        StaticDipoles,
        DynamicDipoles,
        GaussianSources,
        AutoregressiveSources,
        GroupSparseSources,
        HierarchicalSources,
    )
    return dict(zip(MODELS, kinds, strict=True))[options.model](**given)


def method_options(options):
    """Options for `infer` among those that were given."""
    given = {name: getattr(options, option, None) for option, name in _METHOD.items()}
    if getattr(options, "method", None) == "particle_gibbs":
        given["n_chains"] = given.pop("n_runs")  # its chains are its independent runs
    return {name: value for name, value in given.items() if value is not None}


def _flag(name):
    return "--" + name.replace("_", "-")


def number(text):
    """Read a number, or the word that leaves it unknown."""
    return text if text == "infer" else float(text)


def strength(text):
    """Read a fraction, or how to choose it."""
    return text if text.isidentifier() else float(text)


def motion(text):
    """Read a step in m, or the word that keeps dipoles in place."""
    return text if text == "static" else float(text)


def _add_demo(demo):
    demo.add_argument("--out", default="bayes_esi_demo", help="folder to write (%(default)s)")
    _add_window(demo, tmin=0.05, tmax=0.2)
    _add_sampling(demo)


def _add_localize(localize):
    localize.add_argument("evoked", metavar="EVOKED.fif")
    localize.add_argument("--forward", required=True, metavar="FWD.fif")
    localize.add_argument("--noise-cov", required=True, metavar="COV.fif")
    localize.add_argument("--condition", help="name or number of the response in the file")
    localize.add_argument(
        "--baseline", nargs=2, type=float, metavar=("FROM", "TO"), help="subtract its mean; s"
    )
    localize.add_argument("--model", choices=list(MODELS), default="static-dipoles")
    localize.add_argument("--method", help="default: the first that `bayes-esi info` lists")
    localize.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    localize.add_argument(
        "--noise-std",
        type=number,
        help="relative to the covariance, or 'infer'; default: 1, of dipoles inferred",
    )
    localize.add_argument(
        "--loose", type=float, help="variance of tangential moments: 1 free (default), 0 fixed"
    )
    _add_window(localize, tmin=None, tmax=None)

    dipoles = localize.add_argument_group("dipoles (static-dipoles, dynamic-dipoles)")
    dipoles.add_argument("--n-dipoles", type=float, help="Poisson rate; static (default 0.25)")
    dipoles.add_argument("--max-dipoles", type=int, help="at a time (default 10, of dynamic 5)")
    dipoles.add_argument("--moment-std", type=number, help="A·m; default: inferred")
    dipoles.add_argument(
        "--birth-prob", type=float, help="that one is born at a sample; dynamic (default 0.01)"
    )
    dipoles.add_argument(
        "--death-prob",
        type=float,
        help="that one alive dies by the next sample; dynamic (default 1/30)",
    )
    dipoles.add_argument(
        "--moment-persistence",
        type=float,
        help="correlation of a moment with itself a sample later; dynamic (default 0.9)",
    )
    dipoles.add_argument(
        "--motion", type=motion, help="'static' (default), or the step of a walk, m; dynamic"
    )
    _add_sampling(dipoles)

    sources = localize.add_argument_group("distributed sources (gaussian, autoregressive)")
    sources.add_argument("--source-std", type=number, help="A·m; default: inferred")
    sources.add_argument("--snr", type=float, help="amplitude ratio that sets the source scale")
    sources.add_argument("--lambda2", type=float, help="the same as 1 / SNR^2")
    sources.add_argument(
        "--depth",
        type=number,
        help="exponent of depth weights, 0 to 1, or 'infer' (default 0); of sparse sources, too",
    )
    sources.add_argument("--covariance", choices=("identity", "laplacian", "laura"))
    sources.add_argument(
        "--regularisation",
        choices=("evidence", "gcv", "l_curve"),
        help="what sets the scale; gaussian",
    )
    sources.add_argument(
        "--coefficient",
        type=float,
        nargs="+",
        help="of the process in time; autoregressive; default: inferred",
    )
    sources.add_argument(
        "--kernel",
        choices=("autoregressive", "matern12", "matern32", "matern52", "random_walk"),
        help="law in time; autoregressive",
    )
    sources.add_argument(
        "--time-scale", type=number, help="of that law, s; autoregressive; default: inferred"
    )

    sparse = localize.add_argument_group("sparse sources (group-sparse, hierarchical)")
    sparse.add_argument(
        "--alpha",
        type=strength,
        help="share of the strength that silences all, or 'sure' (default), 'cross_validation', "
        "'evidence'; group-sparse",
    )
    sparse.add_argument(
        "--inclusion-prob",
        type=float,
        help="that a source is active; hierarchical with --method gibbs or nuts; default: inferred",
    )


def _add_forward(forward):
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


def _add_info(info):
    del info


def _add_window(parser, *, tmin, tmax):
    parser.add_argument("--tmin", type=float, default=tmin, help="start of the window, s")
    parser.add_argument("--tmax", type=float, default=tmax, help="end of the window, s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_sampling(parser):
    parser.add_argument("--particles", "--n-particles", type=int, help="particles of each run")
    parser.add_argument("--runs", type=int, help="independent runs, or chains")


_COMMANDS = {  # name: what adds its options, and one or two descriptions
    "demo": (_add_demo, ("the main job on an embedded, simulated recording",)),
    "localize": (_add_localize, ("sources of an evoked response",)),
    "forward": (
        _add_forward,
        (
            "lead field of a recording's sensors",
            "Lead field of a recording's sensors, from the surfaces of a head (--bem) or, without "
            "them, from the average head.",
        ),
    ),
    "info": (_add_info, ("versions, devices, models and methods",)),
}
