"""Values of many points, each taken by one group of devices, known to all of them.

What goes over the wire is one number (or one array of terms) a point. Which device
takes which point changes no value: a point is named by its number alone.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding

from radazo import validation


def check(api_name: str, sharding: Any) -> None:
    """`sharding` is None, or says over which axes of a mesh directions are shared."""
    hint = "Pass `NamedSharding(mesh, PartitionSpec('directions'))`, or None."
    if sharding is None:
        return
    validation.instance(api_name, "sharding", sharding, NamedSharding, hint)
    if len(sharding.spec) != 1 or sharding.spec[0] is None:
        validation.fail(
            api_name,
            "sharding",
            "shard one axis, that of the directions",
            sharding.spec,
            hint,
        )
    if any(kind != AxisType.Auto for kind in sharding.mesh.axis_types):
        validation.fail(
            api_name,
            "sharding",
            "have a mesh whose axes are `AxisType.Auto`",
            sharding.mesh.axis_types,
            "Make it by `jax.sharding.Mesh(devices, names)`, or by `jax.make_mesh(..., "
            "axis_types=(AxisType.Auto,) * n)`.",
        )


def values(
    sharding: Any,
    point: Callable[[jax.Array], Any],
    evaluate: Callable[[Any], tuple[jax.Array, Any]],
    num: int,
    chunk_size: int,
) -> Any:
    """`evaluate(point(i))` for i < num, stacked, with the aux of the first.

    `evaluate(params) -> (array, aux)`. Each group of devices takes every n-th point,
    `chunk_size` of them in a batch, so that none takes more than one turn more than
    another; a group that has none left in the last turn waits.
    """
    names = sharding.spec[0]
    names = names if isinstance(names, tuple) else (names,)
    num_groups = math.prod(sharding.mesh.shape[name] for name in names)
    chunk_size = min(chunk_size, -(-num // num_groups))
    num_turns = -(-num // (num_groups * chunk_size))

    def turn(numbers: jax.Array) -> tuple[jax.Array, Any]:
        if chunk_size == 1:
            taken = _if_there(lambda i: evaluate(point(i)), numbers[0], num)
            return jax.tree.map(lambda x: x[None], taken)
        # Drawn one after the other: in a batch XLA on CPU draws what it fuses again.
        points = lax.map(point, jnp.minimum(numbers, jnp.uint32(num - 1)))
        return jax.vmap(evaluate)(points)

    def local() -> Any:
        mine = lax.axis_index(names).astype(jnp.uint32)
        numbers = jnp.arange(num_turns * chunk_size, dtype=jnp.uint32)
        numbers = (numbers * num_groups + mine).reshape(num_turns, chunk_size)
        arrays, aux = lax.map(turn, numbers)
        # The first turn of the first group has the first point.
        first = jax.tree.map(lambda x: lax.all_gather(x[0, 0], names)[0], aux)
        arrays = arrays.reshape(-1, *arrays.shape[2:])
        gathered = lax.all_gather(arrays, names, axis=1)
        return gathered.reshape(-1, *arrays.shape[1:])[:num], first

    # Types that say over which axes a value varies would be asked of `evaluate` too.
    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(),
        out_specs=everywhere,
        axis_names=set(names),
        check_vma=False,
    )()


def _if_there(
    take: Callable[[jax.Array], tuple[jax.Array, Any]], i: jax.Array, num: int
) -> tuple[jax.Array, Any]:
    """`take(i)`, or zeros, and no value taken, beyond the last point."""
    kind = jax.eval_shape(take, i)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kind)
    return lax.cond(i < num, take, lambda _: nothing, i)
