"""The model x method table: which method serves which model, the default first."""

import importlib

from ..core.checks import check_choice
from ..models.autoregressive import AutoregressiveSources
from ..models.coupled import CoupledSources
from ..models.dynamic_dipoles import DynamicDipoles
from ..models.gaussian import GaussianSources
from ..models.group_sparse import GroupSparseSources
from ..models.hierarchical import HierarchicalSources
from ..models.static_dipoles import StaticDipoles

__all__ = ["METHODS", "find", "methods", "table"]

METHODS = {
    GaussianSources: ("closed_form", "nuts"),
    AutoregressiveSources: ("kalman_smoother", "kalman_filter", "nuts"),
    CoupledSources: ("kalman_smoother", "kalman_filter", "em", "block_diagonal"),
    GroupSparseSources: ("mixed_norm", "irmxne", "minimum_current", "tf_mxne", "gibbs", "nuts"),
    HierarchicalSources: (
        "sparse_bayes",
        "ias",
        "multiple_sparse_priors",
        "maximum_entropy",
        "gibbs",
        "nuts",
    ),
    StaticDipoles: ("smc", "reversible_jump", "enumerate"),
    DynamicDipoles: ("particle_smoother", "particle_filter", "particle_gibbs", "smc"),
}

# The module that runs the methods of a model: `check_options` and `run` by the method's name.
_RUNNERS = {
    GaussianSources: "source_inference",
    AutoregressiveSources: "source_inference",
    CoupledSources: "coupled_inference",
    GroupSparseSources: "sparse_inference",
    HierarchicalSources: "hierarchical_inference",
    StaticDipoles: "dipole_inference",
    DynamicDipoles: "track_inference",
}


def methods(model):
    """Names of the methods that serve a model (an instance or a class), the default first.

    Raises
    ------
    ValueError
        If it is not a model of this package.
    """
    kind = model if isinstance(model, type) else type(model)
    if kind not in METHODS:
        known = ", ".join(k.__name__ for k in METHODS)
        raise ValueError(f"model must be one of {known}; got {model!r}.")
    return list(METHODS[kind])


def find(model, method):
    """Return the name of a method for a model, None meaning the default, and what runs it."""
    available = methods(model)
    name = check_choice("method", available[0] if method is None else method, available)
    return name, importlib.import_module(f".{_RUNNERS[type(model)]}", __package__)


def table():
    """Write the model x method table in Markdown."""
    rows = [
        f"| `{model.__name__}` | {', '.join(f'`{name}`' for name in names)} |"
        for model, names in METHODS.items()
    ]
    return "\n".join(["| model | methods (default first) |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
