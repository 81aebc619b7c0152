"""Pytrees split into arrays, which are traced, and static leaves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ARRAY = object()


class Static(NamedTuple):
    """A pytree without its arrays."""

    treedef: Any
    leaves: tuple[Any, ...]

    def pick(self, leaves: list[Any]) -> list[Any]:
        """Return those of `leaves` at the positions of arrays."""
        return [x for x, own in zip(leaves, self.leaves, strict=True) if own is _ARRAY]

    def join(self, arrays: list[Any]) -> Any:
        """Return the pytree with these arrays."""
        rest = iter(arrays)
        return self.treedef.unflatten(
            next(rest) if own is _ARRAY else own for own in self.leaves
        )


def split(tree: Any) -> tuple[list[Any], Static]:
    """Return the arrays of `tree`, including NumPy arrays and scalars, and the rest."""
    leaves, treedef = jax.tree.flatten(tree)
    kinds = jax.Array | np.ndarray | np.generic
    rest = Static(treedef, tuple(_ARRAY if isinstance(x, kinds) else x for x in leaves))
    return rest.pick(leaves), rest


def copy(tree: Any) -> Any:
    """Copy arrays, so that they can be donated, and make their types strong."""

    def copy_leaf(leaf: Any) -> jax.Array:
        leaf = jnp.array(leaf, copy=True)
        return lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(copy_leaf, tree)
