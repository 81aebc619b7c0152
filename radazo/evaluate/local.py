"""Evaluate the queries of a step in order, in the program of the step."""

from collections.abc import Callable
from functools import partial
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
            return evaluated(call, queries, i, None if needed is None else needed(i))

        first = queries.base is not None
        base = call(queries.base, 0) if first else None
        at_once = min(chunk_size, max(queries.num - first, 1))
        batch_size = at_once if at_once > 1 else None
        indices = jnp.arange(first, queries.num, dtype=jnp.uint32)
        values, aux = lax.map(take, indices, batch_size=batch_size)
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
    evaluation = partial(differences.evaluation, terms=step.terms, has_aux=False)
    functions = [function, *(evaluation("estimate", x) for x in queries.functions)]

    def call(point: core.Params, index: Any) -> tuple[jax.Array, Any]:
        # With more than one function, none has aux.
        return lax.switch(function_of(index), functions, point)

    return call


def evaluated(
    call: Callable[..., Any], queries: core.Queries, index: Any, needed: Any = None
) -> tuple[jax.Array, Any]:
    """Evaluate a query, or return zeros of its type if it is not needed."""

    def take(index: Any) -> tuple[jax.Array, Any]:
        return call(queries.point(index), index)

    if needed is None:
        return take(index)
    kinds = jax.eval_shape(take, index)
    return lax.cond(needed, take, lambda _: jax.tree.map(zeros_like, kinds), index)


def zeros_like(kind: Any) -> jax.Array:
    """Return zeros of a type, with its varying axes in a `jax.shard_map`."""
    zeros = jnp.zeros(kind.shape, kind.dtype)
    varying = getattr(kind, "manual_axis_type", None)  # None if it is not checked.
    axes = (getattr(kind, "vma", None) if varying is None else varying.varying) or ()
    return lax.pcast(zeros, tuple(axes), to="varying") if axes else zeros


def _in_python(
    call: Callable[..., Any], needed: Callable[[Any], Any], queries: core.Queries
) -> tuple[jax.Array, Any]:
    """Evaluate the needed queries outside of any program."""
    indices = [jnp.uint32(i) for i in range(queries.num)]
    results = [call(queries.point(i), i) if needed(i) else None for i in indices]
    known = [values for values, _ in filter(None, results)]
    missing = jnp.zeros_like(known[0]) if known else jnp.zeros(())
    values = jnp.stack([missing if x is None else x[0] for x in results])
    return values, None if results[0] is None else results[0][1]
