"""A pytree as arrays, which are traced, and the rest, which is static."""

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
        """Those of `leaves` that stand where this tree has its arrays."""
        return [x for x, own in zip(leaves, self.leaves, strict=True) if own is _ARRAY]

    def join(self, arrays: list[Any]) -> Any:
        """The pytree with these arrays in their places."""
        rest = iter(arrays)
        return self.treedef.unflatten(
            next(rest) if own is _ARRAY else own for own in self.leaves
        )


def split(tree: Any) -> tuple[list[Any], Static]:
    """The arrays of `tree` (of NumPy and its scalars too), and the rest."""
    leaves, treedef = jax.tree.flatten(tree)
    static = tuple(
        _ARRAY if isinstance(x, jax.Array | np.ndarray | np.generic) else x
        for x in leaves
    )
    rest = Static(treedef, static)
    return rest.pick(leaves), rest


def copied(tree: Any) -> Any:
    """Arrays of their own, which a compiled call may take, and no weak types."""

    def copy(leaf: Any) -> jax.Array:
        leaf = jnp.array(leaf, copy=True)
        return lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(copy, tree)
