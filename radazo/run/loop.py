"""Many steps of a run in one compiled call, and what each of them noted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, partition, validation
from radazo.journal import record
from radazo.optimizers import combinators

MAX_STEPS_PER_CALL = 1024
_MAX_SLOPES_PER_CALL = 2**22  # 16 MB of float32.


class Record(NamedTuple):
    """What a step notes, by name; in a call, an array of it for each step.

    Attributes:
      values: The value that the step's estimate returned.
      num_values: Function values taken up to the step.
      entry: What a journal keeps of the step; None without one.
    """

    values: Any
    num_values: Any
    entry: Any = None


def compiled_steps(
    value_fn: core.ValueFn,
    optimizer: Any,
    rest: partition.Static,
    batches: Any,
    box: Callable[[list[jax.Array]], list[jax.Array]] | None,
    stop: Callable[[jax.Array, core.Params], Any] | None,
) -> Callable[..., Any]:
    """`steps(arrays, state, num, batch)`, compiled once.

    It returns `(arrays, state, records, taken, stopped)`: a `Record` of arrays, of
    which the first `taken` elements are meant.
    """

    value_of = _of_batches(value_fn, batches)

    def moved(arrays: list[jax.Array], updates: core.Params, ended: Any) -> list[Any]:
        changes = rest.pick(rest.treedef.flatten_up_to(updates))
        changed = core.moved(changes, arrays)
        return [
            jnp.where(ended, x, new) if core.is_floating(x) else x
            for x, new in zip(
                arrays, changed if box is None else box(changed), strict=True
            )
        ]

    @jax.jit(donate_argnums=(0, 1))
    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        def step(carry: Any) -> Any:
            arrays, state, records, i, _ = carry
            params = rest.join(arrays)
            count = combinators.counters("minimize", state).count
            now = batches(count) if callable(batches) else batch
            updates, state = optimizer.update(
                None, state, params, value_fn=value_of, batch=now
            )
            seen = combinators.counters("minimize", state)
            ended = jnp.asarray(False)
            if stop is not None:
                ended = _answer(stop(seen.last_value, params))
            arrays = moved(arrays, updates, ended)
            record = Record(seen.last_value, seen.num_values)
            records = jax.tree.map(lambda x, new: x.at[i].set(new), records, record)
            return arrays, state, records, i + 1, ended

        records = Record(
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.result_type(float)),
            jnp.zeros(MAX_STEPS_PER_CALL, jnp.int32),
        )
        start = (arrays, state, records, jnp.int32(0), jnp.asarray(False))
        return lax.while_loop(lambda carry: (carry[3] < num) & ~carry[4], step, start)

    return steps


def recorded_steps(
    value_fn: core.ValueFn,
    optimizer: Any,
    rest: partition.Static,
    batches: Any,
    box: Callable[[list[jax.Array]], list[jax.Array]] | None,
    stop: Callable[[jax.Array, core.Params], Any] | None,
) -> Callable[..., Any]:
    """`compiled_steps` of which each can be made again: two programs a step."""

    value_of = _of_batches(value_fn, batches)

    @jax.jit
    def look(arrays: list[jax.Array], state: Any, batch: Any) -> Record:
        params = rest.join(arrays)
        now = (
            batches(combinators.counters("minimize", state).count)
            if callable(batches)
            else batch
        )
        entry, seen = record.seen(optimizer, value_of, params, state, batch=now)
        if stop is not None:
            ended = _answer(stop(seen.last_value, params))
            entry = entry._replace(stopped=ended)
        return Record(seen.last_value, seen.num_values, entry)

    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        records = []
        while len(records) < num:
            seen = look(arrays, state, batch)
            arrays, state = record.advanced(
                optimizer, rest, box, arrays, state, *seen.entry[2:]
            )
            records.append(seen)
            size = len(records) * seen.entry.slopes.size
            if size > _MAX_SLOPES_PER_CALL or (stop and seen.entry.stopped):
                break
        last = records[-1].entry.stopped
        records = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(records))
        return arrays, state, records, len(records.values), last

    return steps


def _of_batches(value_fn: core.ValueFn, batches: Any) -> Callable[..., Any]:
    """The function of the parameters and a batch, which is None without any."""
    return lambda params, batch: (
        value_fn(params) if batches is None else value_fn(params, batch)
    )


def _answer(answer: Any) -> jax.Array:
    if jnp.shape(answer) != () or jnp.result_type(answer) != jnp.bool_:
        validation.fail(
            "minimize",
            "stop",
            "return one bool",
            f"shape {jnp.shape(answer)} of type {jnp.result_type(answer)}",
            "Take `jnp.all` or `jnp.any` of an array.",
            TypeError,
        )
    return jnp.asarray(answer)
