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

from radazo import checks


def check(where: str, sharding: Any) -> None:
    """`sharding` is None, or says over which axes of a mesh directions are shared."""
    way_out = "Pass `NamedSharding(mesh, PartitionSpec('directions'))`, or None."
    if sharding is None:
        return
    checks.instance(where, "sharding", sharding, NamedSharding, way_out)
    if len(sharding.spec) != 1 or sharding.spec[0] is None:
        checks.fail(
            where,
            "sharding",
            "shard one axis, that of the directions",
            sharding.spec,
            way_out,
        )
    if any(kind != AxisType.Auto for kind in sharding.mesh.axis_types):
        checks.fail(
            where,
            "sharding",
            "have a mesh whose axes are `AxisType.Auto`",
            sharding.mesh.axis_types,
            "Make it by `jax.sharding.Mesh(devices, names)`, or by `jax.make_mesh(..., "
            "axis_types=(AxisType.Auto,) * n)`.",
        )


def values(
    sharding: Any,
    take: Callable[[jax.Array], Any],
    num: int,
    chunk_size: int,
) -> Any:
    """`take(i)` for i < num, stacked, and the aux of the first.

    `take(i) -> (array, aux)`. Each device takes every n-th point, so that all have
    equally many but for one; those that have none left in the last turn wait.
    """
    names = sharding.spec[0]
    names = names if isinstance(names, tuple) else (names,)
    num_groups = math.prod(sharding.mesh.shape[name] for name in names)
    num_turns = -(-num // num_groups)

    def local() -> Any:
        mine = lax.axis_index(names).astype(jnp.uint32)
        points = jnp.arange(num_turns, dtype=jnp.uint32) * num_groups + mine
        if chunk_size > 1:
            last = jnp.uint32(num - 1)
            taken = lax.map(take, jnp.minimum(points, last), batch_size=chunk_size)
        else:
            taken = lax.map(lambda i: _if_there(take, i, num), points)
        arrays, aux = taken
        # The first turn of the first group has the first point.
        first = jax.tree.map(lambda x: lax.all_gather(x[0], names)[0], aux)
        gathered = lax.all_gather(arrays, names, axis=1, tiled=False)
        return gathered.reshape(-1, *arrays.shape[1:])[:num], first

    # Types that say over which axes a value varies would be asked of `value_fn` too.
    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(),
        out_specs=everywhere,
        axis_names=set(names),
        check_vma=False,
    )()


def _if_there(take: Callable[[jax.Array], Any], i: jax.Array, num: int) -> Any:
    """`take(i)`, or zeros, and no value taken, beyond the last point."""
    kind = jax.eval_shape(take, i)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kind)
    return lax.cond(i < num, take, lambda _: nothing, i)
