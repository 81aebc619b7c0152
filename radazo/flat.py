"""Layout of the perturbed leaves of a pytree in one flat direction.

A direction is drawn as one vector and cut into leaves where they are used, because a
model with a hundred leaves then compiles much faster than with a hundred draws.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, validation

_MAX_DIM = 1 << 32  # Number of uint32 indices into a flat direction.
_MAX_IN_PARTS = 1 << 37  # Number of signs that `random.signs` can index.


class Layout(NamedTuple):
    """Perturbed leaves of `params`, in flattening order.

    Attributes:
      active: Whether each leaf is perturbed.
      sizes: Number of elements of each leaf, 0 if it is not perturbed.
      dim: Number d of perturbed elements.
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
    """Return the layout of `params`; fail if they cannot be perturbed.

    Directions that are drawn `in_parts` may have up to 2³⁷ elements.
    """
    _no_masked_node(api_name, params)
    chosen = _chosen(api_name, params, mask)
    leaves = jax.tree.leaves(params)
    floating = (_is_floating(api_name, *x) for x in jax.tree.leaves_with_path(params))
    active = tuple(a and b for a, b in zip(floating, chosen, strict=True))
    sizes = tuple(x.size if on else 0 for x, on in zip(leaves, active, strict=True))
    if leaves and not any(active):
        rule = "have a floating-point leaf to perturb"
        got = "none" if mask is None else "none where the mask is True"
        hint = "Integers, bools, keys and Python numbers are not perturbed: convert "
        hint += "them by `jnp.asarray(x, float)`, and select at least one leaf with "
        hint += "`mask`."
        validation.fail(api_name, "params", rule, got, hint)
    dim, limit, power = sum(sizes), _MAX_DIM, "2³²"
    hint = "Freeze some leaves with `mask`, or take `radazo.in_place`."
    if in_parts:
        limit, power, hint = _MAX_IN_PARTS, "2³⁷", "Freeze some leaves with `mask`."
    if dim >= limit:
        rule = f"have fewer than {power} perturbed elements"
        validation.fail(api_name, "params", rule, dim, hint)
    dtypes = (x.dtype for x, on in zip(leaves, active, strict=True) if on)
    return Layout(active, sizes, dim, core.wide(*dtypes))


def perturb(
    layout: Layout,
    params: core.Params,
    direction: jax.Array,
    step: jax.Array,
    opaque_index: jax.Array,
) -> core.Params:
    """Return params + step · direction, rounded once to the type of each leaf."""

    def add(leaf: Any, part: jax.Array | None) -> Any:
        if part is None:
            return leaf
        leaf = jnp.asarray(leaf)
        wide = core.wide(leaf.dtype)
        end = leaf.astype(wide) + step.astype(wide) * part.astype(wide)
        return end.astype(leaf.dtype)

    return _map_parts(add, layout, params, direction, opaque_index)


def replace(
    layout: Layout, params: core.Params, flat: jax.Array, opaque_index: jax.Array
) -> core.Params:
    """Return `params` with the perturbed leaves of a flat vector, as of `ravel`."""

    def take(leaf: Any, part: jax.Array | None) -> Any:
        return leaf if part is None else part.astype(leaf.dtype)

    return _map_parts(take, layout, params, flat, opaque_index)


def ravel(layout: Layout, params: core.Params) -> jax.Array:
    """Return the perturbed leaves of `params` as one flat vector, (dim,)."""
    parts = [
        jnp.ravel(leaf).astype(layout.dtype)
        for leaf, on in zip(jax.tree.leaves(params), layout.active, strict=True)
        if on
    ]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, layout.dtype)


def unravel(
    layout: Layout, params: core.Params, flat: jax.Array, opaque_index: jax.Array
) -> core.Params:
    """Return the flat vector as a pytree like `params`, zero for unperturbed leaves.

    `opaque_index` is any uint32 unknown at compile time. It selects the offsets of
    leaves from tables with equal entries, because constant offsets would keep leaves of
    one shape from sharing a compiled kernel and double the compile time.
    """

    def saturate(leaf: Any, part: jax.Array | None) -> Any:
        """Cast `part` to the type of `leaf`, clipped to its largest finite number."""
        if part is None and not hasattr(leaf, "dtype"):
            return type(leaf)(0)
        if part is None:
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
            return jnp.zeros(leaf.shape, jnp.uint32 if is_key else leaf.dtype)
        if part.dtype == leaf.dtype:
            return part
        largest = jnp.finfo(leaf.dtype).max.astype(part.dtype)
        return jnp.clip(part, -largest, largest).astype(leaf.dtype)

    return _map_parts(saturate, layout, params, flat, opaque_index)


def _map_parts(
    function: Any, layout: Layout, params: Any, flat: jax.Array, opaque_index: jax.Array
) -> Any:
    """Return `params` with function(leaf, its part of `flat` or None) for each leaf."""
    leaves, treedef = jax.tree.flatten(params)
    parts, start = [], 0
    for leaf, on, size in zip(leaves, layout.active, layout.sizes, strict=True):
        part = flat
        if on and size != flat.size:
            # The third entry is never read; it keeps the table from being folded.
            table = jnp.asarray(np.array([start, start, _MAX_DIM - 1], np.uint32))
            place = lax.dynamic_slice(table, (opaque_index & jnp.uint32(1),), (1,))
            part = lax.dynamic_slice(flat, (place[0],), (size,))
        parts.append(part.reshape(leaf.shape) if on else None)
        start += size
    return treedef.unflatten(map(function, leaves, parts))


def _is_floating(api_name: str, path: Any, leaf: Any) -> bool:
    """Return whether `leaf` can be perturbed; fail on leaves that are not allowed."""
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        return False
    name = jax.tree_util.keystr(path) or "params itself"
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        rule, got = "have arrays for leaves", f"a {type(leaf).__name__} at {name}"
        hint = "Separate the arrays from the rest of the model, e.g. by "
        hint += "`equinox.partition(model, equinox.is_inexact_array)`."
        validation.fail(api_name, "params", rule, got, hint, TypeError)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        rule, got = "have real leaves", f"{leaf.dtype} at {name}"
        hint = "Store the real and the imaginary part as two leaves."
        validation.fail(api_name, "params", rule, got, hint, TypeError)
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _no_masked_node(api_name: str, params: core.Params) -> None:
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        got = "parameters that contain an optax.MaskedNode"
        hint = "`optax.masked` and `optax.partition` hide leaves that the function "
        hint += "needs: put the estimator outside, `with_estimator(estimator, "
        hint += "optax.masked(...), key)`, and select the perturbed leaves with its "
        hint += "`mask`."
        validation.fail(api_name, "params", "be all of the parameters", got, hint)


def resolve_mask(mask: core.Mask, params: core.Params) -> Any:
    """Return `mask` as a pytree or a prefix of one: call it if it is a function."""
    # A model may be both a function and a pytree, and so may a mask made from it.
    structure = jax.tree.structure(mask)
    is_tree = structure == jax.tree.structure(params) != jax.tree.structure(0)
    if callable(mask) and not is_tree:
        mask = mask(params)
    return True if mask is None else mask


def _chosen(api_name: str, params: core.Params, mask: core.Mask) -> list[bool]:
    """Return one bool per leaf."""
    mask = resolve_mask(mask, params)
    try:
        chosen = jax.tree.leaves(jax.tree.broadcast(mask, params))
    except (ValueError, TypeError):
        rule = "be a pytree of bools like `params` or a prefix of it"
        got, own = jax.tree.structure(mask), jax.tree.structure(params)
        hint = "Make it by `jax.tree.map(lambda p: ..., params)`."
        validation.fail(api_name, "mask", rule, f"{got} for parameters {own}", hint)
    for choice in chosen:
        if not isinstance(choice, bool | np.bool_):
            rule, got = "have bools for leaves", repr(choice)
            hint = "The mask decides what is compiled: pass bools, not traced values."
            validation.fail(api_name, "mask", rule, got, hint, TypeError)
    return [bool(choice) for choice in chosen]
