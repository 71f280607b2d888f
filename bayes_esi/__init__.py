"""bayes_esi: from MEG/EEG recordings to a posterior over brain sources."""

import importlib

from .api import (
    clara,
    compare,
    example_recording,
    from_mne,
    infer,
    lcmv,
    load,
    methods,
    template_head,
)
from .core.status import InferenceError, Status
from .models.autoregressive import AutoregressiveSources
from .models.coupled import CoupledSources, neighbour_dynamics
from .models.dynamic_dipoles import DynamicDipoles
from .models.gaussian import GaussianSources
from .models.group_sparse import GroupSparseSources
from .models.hierarchical import HierarchicalSources
from .models.problem import Problem
from .models.static_dipoles import StaticDipoles

__version__ = "0.1.0"

__all__ = [
    "AutoregressiveSources",
    "CoupledSources",
    "DynamicDipoles",
    "GaussianSources",
    "GroupSparseSources",
    "HierarchicalSources",
    "InferenceError",
    "Problem",
    "StaticDipoles",
    "Status",
    "clara",
    "compare",
    "distributions",
    "example_recording",
    "forward",
    "from_mne",
    "infer",
    "lcmv",
    "load",
    "methods",
    "neighbour_dynamics",
    "template_head",
]


def __getattr__(name):
    """Import head models and NumPyro distributions when they are first asked for."""
    if name in ("distributions", "forward"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
