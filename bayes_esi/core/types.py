"""Array types used in signatures: jaxtyping names the dimensions once for all files."""

from jaxtyping import Array, Bool, Float, Int, Key, Shaped

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Shaped"]
