"""Verbs that an object offers and a higher or a neighbouring floor performs.

Files, MNE objects and figures live elsewhere in the house; `bayes_esi.api` connects them.
"""

__all__ = ["connect", "perform"]

_verbs = {}


def connect(kind, verb, function):
    """Let `function(instance, ...)` perform `verb` for instances of a class."""
    _verbs[kind, verb] = function


def perform(instance, verb, *args, **kwargs):
    """Call what was connected for the class of `instance`."""
    return _verbs[type(instance), verb](instance, *args, **kwargs)
