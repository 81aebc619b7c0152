"""Split a pytree into arrays for orbax and other leaves for JSON, by leaf number."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import validation

_ARRAYS = jax.Array | np.ndarray | np.generic
_STORED = (np.number, np.bool_, jax.dtypes.prng_key)
_PLAIN = (bool, int, float, str)
_ALWAYS = {"none": np.array(0)}  # orbax refuses a tree without arrays.


class Leaf(NamedTuple):
    """The name, type and shape of a leaf; `shape` is None if it is not an array."""

    name: str
    kind: str
    shape: list[int] | None

    def __str__(self) -> str:
        return f"{self.kind}{'' if self.shape is None else self.shape} at {self.name}"


def describe(api_name: str, tree: Any) -> list[Leaf]:
    """Describe the leaves of a tree; refuse those that cannot be saved."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "the root"
        if isinstance(leaf, _ARRAYS) and any(
            jnp.issubdtype(leaf.dtype, kind) for kind in _STORED
        ):
            leaves.append(Leaf(name, str(leaf.dtype), list(leaf.shape)))
        elif type(leaf) in _PLAIN or callable(leaf):
            kind = type(leaf).__name__ if type(leaf) in _PLAIN else "function"
            leaves.append(Leaf(name, kind, None))
        else:
            rule = "contain only arrays, numbers, strings and functions"
            got = f"{leaf!r} at {name}"[:200]
            hint = "Remove the leaf or convert it to an array."
            validation.fail(api_name, "tree", rule, got, hint, TypeError)
    return leaves


def pack(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays for orbax and the plain leaves for JSON."""
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    arrays = {i: x for i, x in leaves.items() if isinstance(x, _ARRAYS) and x.size}
    plain = {i: x for i, x in leaves.items() if type(x) in _PLAIN}
    return _ALWAYS | jax.tree.map(_raw, arrays), plain


def templates(tree: Any, saved: list[Leaf]) -> dict[str, Any]:
    """Return the template that orbax needs for each saved array."""

    def template(leaf: Any, shape: list[int]) -> Any:
        raw = _raw(leaf)
        # An uncommitted array is restored on the host, so that it stays uncommitted.
        if isinstance(raw, jax.Array) and raw.committed:
            return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=raw.sharding)
        return np.empty(raw.shape if isinstance(raw, jax.Array) else shape, raw.dtype)

    pairs = enumerate(zip(jax.tree.leaves(tree), saved, strict=True))
    return _ALWAYS | {
        str(i): template(leaf, old.shape)
        for i, (leaf, old) in pairs
        if old.shape is not None and 0 not in old.shape
    }


def unpack(
    tree: Any, saved: list[Leaf], arrays: dict[str, Any], plain: dict[str, Any]
) -> Any:
    """Return the saved tree; functions and empty arrays are those of `tree`."""

    def restored(i: str, leaf: Any, shape: list[int] | None) -> Any:
        if type(leaf) in _PLAIN:
            return plain[i]
        if shape is None:
            return leaf
        if 0 in shape:
            return leaf if list(leaf.shape) == shape else np.zeros(shape, leaf.dtype)
        if not isinstance(leaf, jax.Array):
            return arrays[i] if isinstance(leaf, np.ndarray) else arrays[i][()]
        array = jnp.asarray(arrays[i])
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    leaves, treedef = jax.tree.flatten(tree)
    pairs = enumerate(zip(leaves, saved, strict=True))
    return treedef.unflatten(
        restored(str(i), leaf, old.shape) for i, (leaf, old) in pairs
    )


def check(path: str, saved: list[Leaf], tree: Any) -> None:
    """Check that the leaves of `tree` are like the saved ones."""
    leaves, given = jax.tree.leaves(tree), describe("restore", tree)
    for leaf, old, new in itertools.zip_longest(leaves, saved, given):
        wanted = old
        if isinstance(leaf, np.ndarray) and old is not None and old.shape:
            # An array of length 0 matches any length.
            wanted = old._replace(shape=[0, *old.shape[1:]])
        if new not in (old, wanted):
            rule = "match the saved tree"
            got = f"{new or 'nothing'} for {old or 'nothing'} in {path!r}"
            hint = "The folder holds another run: use another folder."
            validation.fail("restore", "tree", rule, got, hint)


def _raw(leaf: Any) -> Any:
    """Return the array that orbax stores for an array leaf."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
