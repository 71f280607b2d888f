"""Verbs that an object offers and a higher or a neighbouring floor performs.

Files, MNE objects and figures live elsewhere in the house; `bayes_esi.api` connects them. Classes
go by their names, so that connecting a verb imports neither side.
"""

__all__ = ["connect", "perform"]

_verbs = {}


def connect(class_name, verb, function):
    """Let `function(instance, ...)` perform `verb` for instances of a class of this package."""
    _verbs[class_name, verb] = function


def perform(instance, verb, *args, **kwargs):
    """Call what was connected for the class of `instance`, or for `instance` if it is a class."""
    kind = instance if isinstance(instance, type) else type(instance)
    return _verbs[kind.__name__, verb](instance, *args, **kwargs)
