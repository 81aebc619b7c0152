"""Evaluate the queries of a step on the devices of a mesh.

Each query is evaluated by one group of devices and its value is gathered by all. One
number (or one array of terms) per query crosses the interconnect. Values do not depend
on the device, since a point depends only on its index.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding

from radazo import core, validation
from radazo.evaluate import local


def check(api_name: str, sharding: Any) -> None:
    """Check that `sharding` is None or names the axes of a mesh for the directions."""
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


def sharded(sharding: NamedSharding, chunk_size: int = 1) -> core.Evaluate:
    """Return an evaluator that distributes the queries over the devices of a mesh.

    Each group of devices evaluates every n-th query, `chunk_size` of them in a batch.
    """

    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        call = local.caller(function, step, queries)
        return queries.read(*_gathered(sharding, call, queries, chunk_size))

    return evaluate


def _gathered(
    sharding: Any,
    call: Callable[..., tuple[jax.Array, Any]],
    queries: core.Queries,
    chunk_size: int,
) -> tuple[jax.Array, Any]:
    """Return the values of all queries, stacked, and the aux of query 0."""
    names = sharding.spec[0]
    names = names if isinstance(names, tuple) else (names,)
    num = queries.num
    num_groups = math.prod(sharding.mesh.shape[name] for name in names)
    chunk_size = min(chunk_size, -(-num // num_groups))
    num_rounds = -(-num // (num_groups * chunk_size))

    def take(index: jax.Array) -> tuple[jax.Array, Any]:
        return call(queries.point(index), index)

    def one_round(indices: jax.Array) -> tuple[jax.Array, Any]:
        if chunk_size == 1:
            needed = indices[0] < num
            if queries.needed is not None:
                needed = needed & queries.needed(indices[0])
            taken = local.if_needed(needed, take, indices[0])
            return jax.tree.map(lambda x: x[None], taken)
        # Points are computed in a loop: in a batch, XLA on CPU redraws fused ones.
        indices = jnp.minimum(indices, jnp.uint32(num - 1))
        points = lax.map(queries.point, indices)
        return jax.vmap(call)(points, indices)

    def on_one_group() -> Any:
        group = lax.axis_index(names).astype(jnp.uint32)
        indices = jnp.arange(num_rounds * chunk_size, dtype=jnp.uint32)
        indices = (indices * num_groups + group).reshape(num_rounds, chunk_size)
        arrays, aux = lax.map(one_round, indices)
        # Query 0 belongs to the first round of the first group.
        first = jax.tree.map(lambda x: lax.all_gather(x[0, 0], names)[0], aux)
        arrays = arrays.reshape(-1, *arrays.shape[2:])
        gathered = lax.all_gather(arrays, names, axis=1)
        return gathered.reshape(-1, *arrays.shape[1:])[:num], first

    # `check_vma` would require `value_fn` to declare over which axes its values vary.
    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(
        on_one_group,
        mesh=sharding.mesh,
        in_specs=(),
        out_specs=everywhere,
        axis_names=set(names),
        check_vma=False,
    )()
