"""Verbs that a posterior offers and a higher or a neighbouring floor performs.

Files, MNE objects and figures live elsewhere in the house; `bayes_esi.api` connects them.
"""

__all__ = ["connect", "perform"]

_verbs = {}


def connect(kind, verb, function):
    """Let `function(posterior, ...)` perform `verb` for posteriors of a class."""
    _verbs[kind, verb] = function


def perform(posterior, verb, *args, **kwargs):
    """Call what was connected for the class of `posterior`."""
    return _verbs[type(posterior), verb](posterior, *args, **kwargs)
