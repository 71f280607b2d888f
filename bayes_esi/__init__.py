"""bayes_esi: from MEG/EEG recordings to a posterior over brain sources."""

from .api import compare, example_recording, from_mne, infer, load, methods
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
    "from_mne",
    "infer",
    "load",
    "methods",
]
