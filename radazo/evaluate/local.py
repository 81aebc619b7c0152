"""Evaluate the queries of a step in order, in the program of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from radazo import core, differences


def local(chunk_size: int = 1) -> core.Evaluate:
    """Return an evaluator that evaluates `chunk_size` queries in one batch."""

    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        call, needed = caller(function, step, queries), queries.needed
        if needed is not None and not isinstance(needed(0), Tracer):
            return queries.read(*_in_python(call, needed, queries))

        def take(i: Any) -> tuple[jax.Array, Any]:
            def evaluated(i: Any) -> tuple[jax.Array, Any]:
                return call(queries.point(i), i)

            return (
                evaluated(i) if needed is None else if_needed(needed(i), evaluated, i)
            )

        first = queries.base is not None
        base = call(queries.base, 0) if first else None
        at_once = min(chunk_size, max(queries.num - first, 1))
        values, aux = lax.map(
            take,
            jnp.arange(first, queries.num, dtype=jnp.uint32),
            batch_size=at_once if at_once > 1 else None,
        )
        if base is None:
            return queries.read(values, jax.tree.map(lambda x: x[0], aux))
        return queries.read(jnp.concatenate([base[0][None], values]), base[1])

    return evaluate


def caller(
    function: core.Function, step: core.Step, queries: core.Queries
) -> Callable[[core.Params, Any], tuple[jax.Array, Any]]:
    """Return `call(point, index)`, the function of that query at a point."""
    function_of = queries.function_of
    if function_of is None:
        return lambda point, index: function(point)
    further = [
        differences.evaluation("estimate", x, terms=step.terms, has_aux=False)
        for x in queries.functions
    ]
    functions = [function, *further]

    def call(point: core.Params, index: Any) -> tuple[jax.Array, Any]:
        # With more than one function, none has aux.
        return lax.switch(function_of(index), functions, point)

    return call


def if_needed(
    needed: Any, take: Callable[[Any], tuple[jax.Array, Any]], index: Any
) -> tuple[jax.Array, Any]:
    """Return `take(index)`, or zeros of its shape if it is not needed."""
    kind = jax.eval_shape(take, index)

    def zeros(index: Any) -> Any:
        del index
        return jax.tree.map(_zeros, kind)

    return lax.cond(needed, take, zeros, index)


def _zeros(kind: Any) -> jax.Array:
    """Return zeros of a type, with its varying axes in a `jax.shard_map`."""
    zeros = jnp.zeros(kind.shape, kind.dtype)
    varying = getattr(kind, "manual_axis_type", None)  # None if it is not checked.
    axes = (getattr(kind, "vma", None) if varying is None else varying.varying) or ()
    return lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def _in_python(
    call: Callable[..., Any], needed: Callable[[Any], Any], queries: core.Queries
) -> tuple[jax.Array, Any]:
    """Evaluate the needed queries outside of any traced program."""
    indices = [jnp.uint32(i) for i in range(queries.num)]
    results = [call(queries.point(i), i) if needed(i) else None for i in indices]
    known = [values for values, _ in filter(None, results)]
    missing = jnp.zeros_like(known[0]) if known else jnp.zeros(())
    values = jnp.stack([missing if x is None else x[0] for x in results])
    return values, None if results[0] is None else results[0][1]
