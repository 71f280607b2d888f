"""bayes_esi: from MEG/EEG recordings to a posterior over brain sources."""

import importlib

from .api import compare, example_recording, from_mne, infer, load, methods, template_head
from .core.status import InferenceError, Status
from .models.problem import Problem
from .models.static_dipoles import StaticDipoles

__version__ = "0.1.0"

__all__ = [
    "InferenceError",
    "Problem",
    "StaticDipoles",
    "Status",
    "compare",
    "example_recording",
    "forward",
    "from_mne",
    "infer",
    "load",
    "methods",
    "template_head",
]


def __getattr__(name):
    """Import the head models when they are first asked for."""
    if name == "forward":
        return importlib.import_module(".forward", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
