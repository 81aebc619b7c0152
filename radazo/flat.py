"""Which leaves of a pytree are perturbed, and where each lies in the flat direction.

A direction is one vector over all perturbed leaves jointly: one norm, one dimension d.
It is drawn flat and cut into leaves where they are used, because a model of a hundred
leaves then compiles in a fraction of the time that a hundred draws take; the values are
those of a leaf-by-leaf draw, since an element depends on its index in the flat vector
and not on the layout.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, validation

_MAX_DIM = 1 << 32  # What the places of a direction that is drawn as a whole can be.
_MAX_IN_PARTS = 1 << 37  # What `threefry.signs` can number.


class Layout(NamedTuple):
    """The perturbed leaves of `params`, in the order of its flattening.

    Attributes:
      active: For each leaf whether it is perturbed.
      sizes: For each leaf its number of elements, 0 if not perturbed.
      dim: d, the number of perturbed elements.
      dtype: Type of the direction: float64 if a perturbed leaf is, else float32.
    """

    active: tuple[bool, ...]
    sizes: tuple[int, ...]
    dim: int
    dtype: Any


def layout(
    api_name: str,
    params: core.Params,
    mask: core.Mask = None,
    *,
    in_parts: bool = False,
) -> Layout:
    """Read the layout of `params`, or say what in them cannot be perturbed.

    `in_parts`: a direction is not drawn as a whole, so that there may be more of it."""
    _no_masked_node(api_name, params)
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    chosen = [True] * len(paths) if mask is None else _chosen(api_name, params, mask)
    active = tuple(
        _is_floating(api_name, path, leaf) and choice
        for (path, leaf), choice in zip(paths, chosen, strict=True)
    )
    leaves = [leaf for _, leaf in paths]
    sizes = tuple(
        leaf.size if on else 0 for leaf, on in zip(leaves, active, strict=True)
    )
    if leaves and not any(active):
        validation.fail(
            api_name,
            "params",
            "have a floating-point leaf to perturb",
            "none" if mask is None else "none where the mask is True",
            "Integers, bools, keys and Python numbers pass through; convert what is to "
            "be optimized by `jnp.asarray(x, float)`, and let `mask` choose a leaf.",
        )
    dim = sum(sizes)
    if dim >= (_MAX_IN_PARTS if in_parts else _MAX_DIM):
        hint = "Freeze some leaves with `mask`"
        validation.fail(
            api_name,
            "params",
            f"have fewer than {'2³⁷' if in_parts else '2³²'} perturbed elements",
            dim,
            f"{hint}." if in_parts else f"{hint}, or take `radazo.in_place`.",
        )
    dtypes = [leaf.dtype for leaf, on in zip(leaves, active, strict=True) if on]
    return Layout(active, sizes, dim, core.wide(*dtypes))


def perturb(
    layout: Layout,
    params: core.Params,
    direction: jax.Array,
    step: jax.Array,
    turn: jax.Array,
) -> core.Params:
    """params + step · direction, rounded once to the type of each leaf; for `turn` see
    `unravel`."""

    def moved(leaf: jax.Array, part: jax.Array) -> jax.Array:
        wide = core.wide(leaf.dtype)
        return (leaf.astype(wide) + step.astype(wide) * part.astype(wide)).astype(
            leaf.dtype
        )

    leaves, treedef = jax.tree.flatten(params)
    parts = _cut(layout, leaves, direction, turn)
    return treedef.unflatten(
        leaf if part is None else moved(jnp.asarray(leaf), part)
        for leaf, part in zip(leaves, parts, strict=True)
    )


def ravel(layout: Layout, params: core.Params) -> jax.Array:
    """The perturbed leaves of `params` as one flat vector, (dim,)."""
    parts = [
        jnp.ravel(leaf).astype(layout.dtype)
        for leaf, on in zip(jax.tree.leaves(params), layout.active, strict=True)
        if on
    ]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, layout.dtype)


def unravel(
    layout: Layout, params: core.Params, flat: jax.Array, turn: jax.Array
) -> core.Params:
    """The flat vector as a pytree like `params`, zero where nothing is perturbed.

    `turn` is any uint32 that is not known when the program is compiled. Places of
    leaves are read by it from tables of equal entries, since with constant places no
    two leaves of a shape could share a compiled kernel: a step of a transformer of 100
    leaves compiles in half the time.
    """
    leaves, treedef = jax.tree.flatten(params)
    parts = _cut(layout, leaves, flat, turn)
    return treedef.unflatten(
        _zeros(leaf) if part is None else _saturate(part, leaf.dtype)
        for leaf, part in zip(leaves, parts, strict=True)
    )


def _saturate(part: jax.Array, dtype: Any) -> jax.Array:
    """`part` in `dtype`, the largest number where it would be infinite (float16)."""
    if part.dtype == dtype:
        return part
    largest = jnp.finfo(dtype).max.astype(part.dtype)
    return jnp.clip(part, -largest, largest).astype(dtype)


def _cut(
    layout: Layout, leaves: list[Any], flat: jax.Array, turn: jax.Array
) -> list[jax.Array | None]:
    ends = np.cumsum(layout.sizes)
    return [
        _part(flat, int(end) - size, size, turn).reshape(leaf.shape) if on else None
        for leaf, on, size, end in zip(
            leaves, layout.active, layout.sizes, ends, strict=True
        )
    ]


def _part(flat: jax.Array, start: int, size: int, turn: jax.Array) -> jax.Array:
    if size == flat.size:
        return flat
    # The third entry is never read; without it the table would be a constant too.
    table = jnp.asarray(np.array([start, start, _MAX_DIM - 1], np.uint32))
    place = lax.dynamic_slice(table, (turn & jnp.uint32(1),), (1,))
    return lax.dynamic_slice(flat, (place[0],), (size,))


def _zeros(leaf: Any) -> Any:
    """A gradient for a leaf that has none: zeros of its own type."""
    if not hasattr(leaf, "dtype"):
        return type(leaf)(0)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jnp.zeros(leaf.shape, jnp.uint32)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _is_floating(api_name: str, path: Any, leaf: Any) -> bool:
    """Whether `leaf` can be perturbed; an error if it has no place in parameters."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return False
    name = jax.tree_util.keystr(path) or "params itself"
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        validation.fail(
            api_name,
            "params",
            "have arrays for leaves",
            f"a {type(leaf).__name__} at {name}",
            "Keep the rest of the model apart, as by "
            "`equinox.partition(model, equinox.is_inexact_array)`.",
            TypeError,
        )
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        validation.fail(
            api_name,
            "params",
            "have real leaves",
            f"{leaf.dtype} at {name}",
            "Hold the real and the imaginary part as two leaves.",
            TypeError,
        )
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _no_masked_node(api_name: str, params: core.Params) -> None:
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        validation.fail(
            api_name,
            "params",
            "be the whole of the parameters",
            "parameters with an optax.MaskedNode in them",
            "`optax.masked` and `optax.partition` hide leaves that the function needs: "
            "put the estimator outside, `with_estimator(estimator, "
            "optax.masked(...), key)`, and choose what is perturbed by its `mask`.",
        )


def is_tree_like(mask: core.Mask, params: core.Params) -> bool:
    """Whether `mask` is a pytree with the structure of `params`, and not a leaf."""
    structure = jax.tree.structure(mask)
    leaf = jax.tree.structure(0)
    return structure == jax.tree.structure(params) and structure != leaf


def _chosen(api_name: str, params: core.Params, mask: core.Mask) -> list[bool]:
    """One bool a leaf, from a mask that is a function, a pytree or a prefix of one."""
    # A model may be a function and a pytree, and so may a mask made from it.
    if callable(mask) and not is_tree_like(mask, params):
        mask = mask(params)
    try:
        full = jax.tree.map(
            lambda choice, sub: jax.tree.map(lambda _: choice, sub), mask, params
        )
    except (ValueError, TypeError):
        validation.fail(
            api_name,
            "mask",
            "be a pytree of bools like `params` or a prefix of it",
            f"{jax.tree.structure(mask)} for parameters {jax.tree.structure(params)}",
            "Make it by `jax.tree.map(lambda p: ..., params)`.",
        )
    chosen = jax.tree.leaves(full)
    for choice in chosen:
        if not isinstance(choice, bool | np.bool_):
            validation.fail(
                api_name,
                "mask",
                "have bools for leaves",
                repr(choice),
                "It decides what is compiled, so it cannot be traced or be numbers.",
                TypeError,
            )
    return [bool(choice) for choice in chosen]
