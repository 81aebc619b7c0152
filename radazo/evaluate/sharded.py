"""Evaluate the queries of a step on the devices of a mesh.

Each query is evaluated by one group of devices; only values (or terms) are exchanged.
"""

import math
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
    spec, kinds = sharding.spec, sharding.mesh.axis_types
    if len(spec) != 1 or spec[0] is None:
        rule = "shard one axis, that of the directions"
        validation.fail(api_name, "sharding", rule, spec, hint)
    if any(kind != AxisType.Auto for kind in kinds):
        rule = "have a mesh whose axes are `AxisType.Auto`"
        hint = "Make it with `jax.sharding.Mesh(devices, names)`, or "
        hint += "`jax.make_mesh(..., axis_types=(AxisType.Auto,) * n)`."
        validation.fail(api_name, "sharding", rule, kinds, hint)


def sharded(sharding: NamedSharding, chunk_size: int = 1) -> core.Evaluate:
    """Return an evaluator in which each of n groups takes every n-th query."""
    axis = sharding.spec[0]
    names = axis if isinstance(axis, tuple) else (axis,)
    num_groups = math.prod(sharding.mesh.shape[name] for name in names)

    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        call, num = local.caller(function, step, queries), queries.num
        at_once = min(chunk_size, -(-num // num_groups))
        num_rounds = -(-num // (num_groups * at_once))

        def one_round(indices: jax.Array) -> tuple[jax.Array, Any]:
            if at_once == 1:
                needed = indices[0] < num
                if queries.needed is not None:
                    needed = needed & queries.needed(indices[0])
                result = local.evaluated(call, queries, indices[0], needed)
                return jax.tree.map(lambda x: x[None], result)
            # Points are computed in a loop: in a batch, XLA on CPU redraws fused ones.
            indices = jnp.minimum(indices, jnp.uint32(num - 1))
            return jax.vmap(call)(lax.map(queries.point, indices), indices)

        def on_one_group() -> Any:
            group = lax.axis_index(names).astype(jnp.uint32)
            indices = jnp.arange(num_rounds * at_once, dtype=jnp.uint32)
            indices = (indices * num_groups + group).reshape(num_rounds, at_once)
            arrays, aux = lax.map(one_round, indices)
            # Query 0 belongs to the first round of the first group.
            first = jax.tree.map(lambda x: lax.all_gather(x[0, 0], names)[0], aux)
            arrays = arrays.reshape(-1, *arrays.shape[2:])
            gathered = lax.all_gather(arrays, names, axis=1)
            return gathered.reshape(-1, *gathered.shape[2:])[:num], first

        # `check_vma` would require `value_fn` to declare the axes of its values.
        options = {"axis_names": set(names), "check_vma": False}
        specs = {"in_specs": (), "out_specs": jax.sharding.PartitionSpec()}
        gather = jax.shard_map(on_one_group, mesh=sharding.mesh, **specs, **options)
        return queries.read(*gather())

    return evaluate
