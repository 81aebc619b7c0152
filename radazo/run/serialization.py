"""A pytree as arrays for orbax and the rest for JSON, and what is compared of it."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import validation

_ARRAYS = jax.Array | np.ndarray | np.generic
_PLAIN = (bool, int, float, str)
_ALWAYS = {"none": np.array(0)}  # orbax takes no tree without arrays.


class Leaf(NamedTuple):
    """What a leaf is; the shape is None if it is no array."""

    name: str
    kind: str
    shape: list[int] | None

    def __str__(self) -> str:
        return f"{self.kind}{'' if self.shape is None else self.shape} at {self.name}"


def described(api_name: str, tree: Any) -> list[Leaf]:
    """What is compared of a tree."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "the root"
        if isinstance(leaf, _ARRAYS) and _is_kept(leaf.dtype):
            leaves.append(Leaf(name, str(leaf.dtype), list(leaf.shape)))
        elif type(leaf) in _PLAIN:
            leaves.append(Leaf(name, type(leaf).__name__, None))
        elif callable(leaf):
            leaves.append(Leaf(name, "function", None))
        else:
            validation.fail(
                api_name,
                "tree",
                "have leaves that are arrays, numbers, strings or functions",
                f"{leaf!r} at {name}"[:200],
                "Leave it out, or make it an array.",
                TypeError,
            )
    return leaves


def _is_kept(dtype: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def packed(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays for orbax and the rest for JSON, each by the number of its leaf."""
    arrays: dict[str, Any] = dict(_ALWAYS)
    plain = {}
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if type(leaf) in _PLAIN:
            plain[str(i)] = leaf
        elif isinstance(leaf, jax.Array) and leaf.size:
            arrays[str(i)] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        elif isinstance(leaf, _ARRAYS) and leaf.size:
            arrays[str(i)] = np.asarray(leaf)
    return arrays, plain


def templates(tree: Any, kept: list[Leaf]) -> dict[str, Any]:
    """What orbax is to make of each array that it has."""

    def template(leaf: Any, shape: list[int]) -> Any:
        if not isinstance(leaf, jax.Array):
            return np.empty(shape, leaf.dtype)
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if not leaf.committed:  # It stays free to go where it is needed.
            return np.empty(leaf.shape, leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    arrays: dict[str, Any] = dict(_ALWAYS)
    for i, (leaf, old) in enumerate(zip(jax.tree.leaves(tree), kept, strict=True)):
        if old.shape is not None and 0 not in old.shape:
            arrays[str(i)] = template(leaf, old.shape)
    return arrays


def unpacked(
    tree: Any, kept: list[Leaf], arrays: dict[str, Any], plain: dict[str, Any]
) -> Any:
    """The tree that was kept; functions are those of `tree`."""

    def unpack(i: str, leaf: Any, shape: list[int] | None) -> Any:
        if type(leaf) in _PLAIN:
            return plain[i]
        if shape is None:
            return leaf
        if 0 in shape:
            return leaf if list(leaf.shape) == shape else np.zeros(shape, leaf.dtype)
        if not isinstance(leaf, jax.Array):
            return arrays[i] if isinstance(leaf, np.ndarray) else arrays[i][()]
        array = jnp.asarray(arrays[i])
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    leaves, treedef = jax.tree.flatten(tree)
    pairs = enumerate(zip(leaves, kept, strict=True))
    return treedef.unflatten(
        unpack(str(i), leaf, old.shape) for i, (leaf, old) in pairs
    )


def check(path: str, kept: list[Leaf], tree: Any) -> None:
    """The tree given has the leaves of the one that was kept."""

    def grows(leaf: Any, old: Leaf | None, new: Leaf | None) -> bool:
        if not isinstance(leaf, np.ndarray) or old is None or not old.shape:
            return False
        return old._replace(shape=[0, *old.shape[1:]]) == new

    given, leaves = described("restore", tree), [*jax.tree.leaves(tree), None]
    for leaf, old, new in itertools.zip_longest(leaves, kept, given):
        if old != new and not grows(leaf, old, new):
            validation.fail(
                "restore",
                "tree",
                "be like the one that is kept",
                f"{new or 'nothing'} for {old or 'nothing'} in {path!r}",
                "That is another run's: start in a folder of its own.",
            )
