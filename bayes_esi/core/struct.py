"""Frozen dataclasses that JAX sees as pytrees.

Problems, models, priors and particle systems travel as *arguments* of
module-level jitted functions. Array fields are leaves; fields made with
`static` are part of the compilation key and must be hashable.
"""

import dataclasses

import jax

__all__ = ["static", "struct"]


def static(**kwargs):
    """Declare a field that belongs to the compilation key, not to the arrays."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def struct(cls):
    """Turn a class with annotated fields into a frozen dataclass and a pytree."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    static_names = [f.name for f in fields if f.metadata.get("static")]
    array_names = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, array_names, static_names)
