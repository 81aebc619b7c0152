"""Update parameters in place, part by part, from redrawn directions.

No gradient or update of the size of the parameters is formed:

  for each part x, with its optimizer state
    g = Σⱼ weightⱼ · uⱼ                            the elements of this part alone
    update, state ← optimizer.update(g, state, x)
    x ← x + update

A part is a leaf; of a leaf with three or more axes a slice along the first, such as one
of stacked layers; of a matrix of more than 2²⁰ elements a block of rows.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, directions, flat, offsets, random
from radazo.evaluate import lazy
from radazo.optimizers import stochastic_rounding

_UNROLLED = 4  # Directions drawn within one loop over the elements.
_ROUNDING = 1 << 31  # First rounding key; direction keys are smaller.


class WeightedSum(NamedTuple):
    """A weighted sum of directions of one or more steps.

    Attributes:
      sampler: The sampler of the directions; it has a `part`.
      keys: (num_directions, 2) uint32, the key data of each direction.
      weights: (num_directions,).
    """

    sampler: directions.DirectionSampler
    keys: jax.Array
    weights: jax.Array

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
    """The update rule of a part.

    Attributes:
      optimizer: An `optax.GradientTransformation`, applied to one part at a time.
      moment_dtype: Dtype in which elementwise state is stored; None for its own.
    """

    optimizer: Any
    moment_dtype: Any

    def is_narrow(self, array: Any, x: Any) -> bool:
        """Return whether a state array of part x is stored in `moment_dtype`."""
        if self.moment_dtype is None or not core.is_floating(array):
            return False
        return array.ndim > 0 and array.shape == x.shape


def _shape_of_part(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of parts of a leaf of this shape, and the shape of one."""
    if len(shape) > 2 and math.prod(shape):
        return shape[0], shape[1:]
    if len(shape) != 2 or math.prod(shape) <= lazy.BLOCK:
        return 1, shape
    # Equal blocks; their number is the divisor of the rows nearest to the wanted one.
    rows, columns = shape
    wanted = math.prod(shape) / lazy.BLOCK
    divisors = [num for num in range(1, rows + 1) if rows % num == 0]
    num = min(divisors, key=lambda num: abs(math.log(num / wanted)))
    return num, (rows // num, columns)


def init(rule: Rule, params: core.Params, layout: flat.Layout) -> tuple[Any, ...]:
    """Return the optimizer states of the parts of each perturbed leaf, stacked."""

    def of_part(x: jax.Array) -> Any:
        return jax.tree.map(
            lambda a: a.astype(rule.moment_dtype) if rule.is_narrow(a, x) else a,
            rule.optimizer.init(x.astype(core.wide(x.dtype))),
        )

    def start(leaf: Any) -> Any:
        num, shape = _shape_of_part(leaf.shape)
        return jax.vmap(of_part)(jnp.asarray(leaf).reshape(num, *shape))

    chosen = zip(jax.tree.leaves(params), layout.active, strict=True)
    return tuple(start(leaf) for leaf, on in chosen if on)


def move(
    rule: Rule,
    gradient: WeightedSum,
    key: jax.Array,
    params: core.Params,
    states: tuple[Any, ...],
    layout: flat.Layout,
    any_kept: jax.Array,
) -> tuple[core.Params, tuple[Any, ...]]:
    """Return parameters and states after a step; unchanged unless `any_kept`."""

    def step(x: jax.Array, state: Any, offset: Any) -> tuple[jax.Array, Any]:
        # A branch reads all of its inputs before its outputs are written. If XLA fused
        # a read of one array into the write of another, it would copy the first.
        return lax.cond(
            any_kept,
            lambda x, state: _moved(rule, gradient, keys, x, state, offset),
            lambda x, state: (x, state),
            x,
            state,
        )

    # One key for each state array of a part, and one for the part itself.
    num_keys = 1 + max((len(jax.tree.leaves(state)) for state in states), default=0)
    numbers = jnp.arange(num_keys, dtype=jnp.uint32) + jnp.uint32(_ROUNDING)
    keys = jax.vmap(lambda number: random.fold_in(key, number))(numbers)
    arrays, treedef = jax.tree.flatten(params)
    starts = np.cumsum([0, *layout.sizes]).tolist()
    rest = iter(states)
    new = []
    for i, on in enumerate(layout.active):
        if on:
            arrays[i], state = _in_parts(step, arrays[i], next(rest), starts[i])
            new.append(state)
    return treedef.unflatten(arrays), tuple(new)


def _in_parts(
    step: Callable[..., tuple[jax.Array, Any]], leaf: Any, state: Any, start: int
) -> tuple[jax.Array, Any]:
    num, shape = _shape_of_part(leaf.shape)
    lazy.check_size(shape)
    size = math.prod(shape)

    def body(i: Any, whole: Any) -> Any:
        part = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), whole
        )
        offset = offsets.moved(start, i, size, num * size)
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0),
            whole,
            step(*part, offset),
        )

    whole = jnp.asarray(leaf).reshape(num, *shape), state
    moved, state = body(0, whole) if num == 1 else lax.fori_loop(0, num, body, whole)
    return moved.reshape(leaf.shape), state


def _moved(
    rule: Rule,
    gradient: WeightedSum,
    keys: jax.Array,
    x: jax.Array,
    state: Any,
    offset: Any,
) -> tuple[jax.Array, Any]:
    """Return a part and its state after a step."""
    wide = core.wide(x.dtype)
    kept = jax.tree.map(lambda a: a.astype(wide) if rule.is_narrow(a, x) else a, state)
    g = gradient.part(offset, x.size).reshape(x.shape).astype(wide)
    updates, new = rule.optimizer.update(g, kept, x.astype(wide))
    moved = x.astype(wide) + updates.astype(wide)
    arrays, treedef = jax.tree.flatten((moved, new))
    stored = [
        _stored(keys[i], a, old.dtype, offset)
        for i, (a, old) in enumerate(
            zip(arrays, jax.tree.leaves((x, state)), strict=True)
        )
    ]
    return treedef.unflatten(stored)


def _stored(key: jax.Array, array: jax.Array, dtype: Any, offset: Any) -> jax.Array:
    if array.dtype == dtype:
        return array
    return stochastic_rounding.stochastic(key, array, dtype, offset)
