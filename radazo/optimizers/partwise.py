"""Update parameters in place, part by part, from redrawn directions.

A part is a slice along the first axis of a leaf with three or more axes, e.g. one of
stacked layers; a block of rows of a matrix of more than 2²⁰ elements; or else a leaf.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, directions, flat, random
from radazo.evaluate import lazy

_UNROLLED = 4  # Directions drawn within one loop over the elements.
_ROUNDING = 1 << 31  # First rounding key; direction keys are smaller.


class WeightedSum(NamedTuple):
    """A weighted sum of directions of one or more steps."""

    sampler: directions.DirectionSampler  # It has a `part`.
    keys: jax.Array  # (num_directions, 2) uint32, the key data of each direction.
    weights: jax.Array  # (num_directions,)

    def part(self, offset: Any, size: int) -> jax.Array:
        """Return `size` elements of the sum from `offset` on."""
        dtype = self.weights.dtype

        def add(i: Any, total: jax.Array) -> jax.Array:
            drawn = self.sampler.part(self.keys[i], size, dtype, offset)
            return total + self.weights[i] * drawn

        total = jnp.zeros(size, dtype)
        if self.weights.size > _UNROLLED:
            return lax.fori_loop(0, self.weights.size, add, total)
        for i in range(self.weights.size):
            total = add(i, total)
        return total


class Rule(NamedTuple):
    """The update rule of a part."""

    optimizer: Any  # An `optax.GradientTransformation`, applied to one part at a time.
    moment_dtype: Any  # Of the stored elementwise state; None for its own.

    def cast(self, state: Any, x: jax.Array, dtype: Any) -> Any:
        """Cast the arrays in the state of part x that `moment_dtype` applies to."""

        def cast(array: Any) -> Any:
            elementwise = core.is_floating(array) and array.shape == x.shape != ()
            return array.astype(dtype) if elementwise else array

        return state if self.moment_dtype is None else jax.tree.map(cast, state)


def _shape_of_part(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of parts of a leaf of this shape, and the shape of one."""
    if len(shape) > 2 and math.prod(shape):
        return shape[0], shape[1:]
    if len(shape) != 2 or math.prod(shape) <= lazy.BLOCK:
        return 1, shape
    # Equal blocks, whose number divides the rows and is nearest to the wanted one.
    rows, columns = shape
    wanted = math.prod(shape) / lazy.BLOCK
    divisors = [num for num in range(1, rows + 1) if rows % num == 0]
    num = min(divisors, key=lambda num: abs(math.log(num / wanted)))
    return num, (rows // num, columns)


def init(rule: Rule, params: core.Params, layout: flat.Layout) -> tuple[Any, ...]:
    """Return the optimizer states of the parts of each perturbed leaf, stacked."""

    def of_part(x: jax.Array) -> Any:
        state = rule.optimizer.init(x.astype(core.wide(x.dtype)))
        return rule.cast(state, x, rule.moment_dtype)

    def start(leaf: Any) -> Any:
        num, shape = _shape_of_part(leaf.shape)
        return jax.vmap(of_part)(jnp.asarray(leaf).reshape(num, *shape))

    chosen = zip(jax.tree.leaves(params), layout.active, strict=True)
    return tuple(start(leaf) for leaf, on in chosen if on)


def move(
    rule: Rule, gradient: WeightedSum, step: core.Step, states: Any, any_kept: jax.Array
) -> tuple[core.Params, tuple[Any, ...]]:
    """Return parameters and states after a step; unchanged unless `any_kept`."""
    # One key for each state array of a part, and one for the part itself.
    num_keys = 1 + max((len(jax.tree.leaves(state)) for state in states), default=0)
    numbers = jnp.arange(num_keys, dtype=jnp.uint32) + jnp.uint32(_ROUNDING)
    keys = jax.vmap(lambda number: random.fold_in(step.key, number))(numbers)

    def updated(x: jax.Array, state: Any, offset: Any) -> tuple[jax.Array, Any]:
        wide = core.wide(x.dtype)
        kept = rule.cast(state, x, wide)
        g = gradient.part(offset, x.size).reshape(x.shape).astype(wide)
        updates, new = rule.optimizer.update(g, kept, x.astype(wide))
        arrays, treedef = jax.tree.flatten((x.astype(wide) + updates.astype(wide), new))
        for i, old in enumerate(jax.tree.leaves((x, state))):
            if arrays[i].dtype != old.dtype:
                arrays[i] = _rounded(keys[i], arrays[i], old.dtype, offset)
        return treedef.unflatten(arrays)

    def update(x: jax.Array, state: Any, offset: Any) -> tuple[jax.Array, Any]:
        # A branch reads all of its inputs before its outputs are written. If XLA fused
        # a read of one array into the write of another, it would copy the first.
        return lax.cond(
            any_kept, lambda x, s: updated(x, s, offset), lambda *old: old, x, state
        )

    arrays, treedef = jax.tree.flatten(step.params)
    starts = np.cumsum([0, *step.layout.sizes]).tolist()
    active, new = np.flatnonzero(step.layout.active).tolist(), []
    for i, state in zip(active, states, strict=True):
        arrays[i], after = _in_parts(update, arrays[i], state, starts[i])
        new.append(after)
    return treedef.unflatten(arrays), tuple(new)


def _in_parts(
    update: Callable[..., Any], leaf: Any, state: Any, start: int
) -> tuple[jax.Array, Any]:
    num, shape = _shape_of_part(leaf.shape)
    lazy.check_size(shape)
    size = math.prod(shape)

    def body(i: Any, whole: Any) -> Any:
        take, put = lax.dynamic_index_in_dim, lax.dynamic_update_index_in_dim
        part = jax.tree.map(lambda a: take(a, i, keepdims=False), whole)
        new = update(*part, random.advance(start, i, size, num * size))
        return jax.tree.map(lambda a, b: put(a, b, i, 0), whole, new)

    whole = jnp.asarray(leaf).reshape(num, *shape), state
    new, state = body(0, whole) if num == 1 else lax.fori_loop(0, num, body, whole)
    return new.reshape(leaf.shape), state


def _rounded(key: jax.Array, x: jax.Array, dtype: Any, offset: Any = 0) -> jax.Array:
    """Round x stochastically to bfloat16 or float16, so that E[rounded] = x.

      rounded = ulp · ⌊x / ulp + v⌋,  v uniform on [0, 1), of bits offset + i of `key`

    Values that `dtype` can represent, infinities and NaN are unchanged; finite values
    are clipped to the largest number. x is read as float32.
    """
    if jnp.dtype(dtype).itemsize >= x.dtype.itemsize:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    info = jnp.finfo(dtype)
    words = lax.bitcast_convert_type(x, jnp.uint32)
    exponent = lax.bitcast_convert_type(words & jnp.uint32(0x7F800000), jnp.float32)
    # 2⁻¹⁰⁰ keeps the ulp a normal number of float32.
    smallest = max(float(info.tiny), 2.0**-100)
    ulp = jnp.maximum(exponent, smallest) * float(info.eps)
    # x / ulp takes nmant + 1 of 24 bits; with `num_bits` more, x / ulp + v is exact.
    num_bits = 22 - info.nmant
    chance = random.bits(key, x.size, offset).reshape(x.shape) >> (32 - num_bits)
    rounded = jnp.floor(x / ulp + chance.astype(jnp.float32) * 2.0**-num_bits) * ulp
    largest = float(info.max)
    rounded = jnp.clip(rounded, -largest, largest)
    # Below 2⁻¹⁰⁰ this ulp is too coarse for values that can be stored.
    is_stored = x.astype(dtype).astype(jnp.float32) == x
    return jnp.where(is_stored | ~jnp.isfinite(x), x, rounded).astype(dtype)
