"""A step in two programs: read the function, then apply the step.

A replay runs the same second program, because a step that is compiled together with a
function can differ in the last bits.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from radazo import core, partition, replicas, validation
from radazo.journal import file_format
from radazo.optimizers import combinators, stepping

Box = Callable[[list[jax.Array]], list[jax.Array]]


def recorded_step(
    optimizer: Any, value_fn: core.ValueFn
) -> Callable[..., tuple[core.Params, Any, file_format.JournalEntry]]:
    """Make a step function for your own loop that keeps a journal for `replay`.

      entry = (hash of params, readings, value), at the key fold_in(key, count)
      params, state ← the step of the optimizer from these readings

    Args:
      optimizer: A complete ZO optimizer, e.g. `radazo`, or an `in_place`.
      value_fn: The function to minimize.
    Returns:
      `step(params, state, **extra) -> (params, state, entry)`. Keywords go to
      `value_fn`; `entry` is a `JournalEntry` to append. A step is two programs and
      donates `params` and `state`: do not call it within `jax.jit`.
    Raises:
      TypeError: If an argument is of the wrong kind; in `step`, if it is traced or the
        optimizer evaluates further points, as a line search does.
    Cost:
      The function values of a step. The second program redraws the K directions and
      reads the parameters once more.
    Example:
      >>> optimizer = radazo.radazo(0.1, key=0)
      >>> params = jnp.ones(3)
      >>> step = recorded_step(optimizer, jnp.sum)
      >>> params, state, entry = step(params, optimizer.init(params))
      >>> print(state.num_values, entry.count, entry.slopes.shape, entry.value)
      11 0 (10,) 3.0
    """
    stepping.check_optimizer("recorded_step", optimizer)
    validation.check("recorded_step", value_fn=value_fn)

    @functools.partial(jax.jit, static_argnums=0)
    def read(rest: partition.Static, arrays: Any, state: Any, extra: Any) -> Any:
        return read_entry(optimizer, value_fn, rest.join(arrays), state, **extra)

    def step(
        params: core.Params, state: Any, **extra: Any
    ) -> tuple[core.Params, Any, file_format.JournalEntry]:
        arrays, rest = partition.split(params)
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((arrays, state))):
            name, rule = "recorded_step(...)", "be arrays, since a step is two programs"
            hint = "Call it in a Python loop, outside of `jax.jit` and `lax.scan`."
            validation.fail(name, "params", rule, "traced ones", hint, TypeError)
        entry = read(rest, arrays, state, extra)
        arrays, state = apply_readings(optimizer, rest, list, arrays, state, entry[2:])
        return rest.join(arrays), state, entry

    return step


def read_entry(
    optimizer: Any,
    value_fn: core.ValueFn,
    params: core.Params,
    state: Any,
    **extra: Any,
) -> file_format.JournalEntry:
    """First program: evaluate the function and return the journal entry."""
    function, step, queries = stepping.first_evaluation(
        optimizer, params, state, value_fn=value_fn, **extra
    )
    readings = queries.evaluate(function, step, queries)
    return file_format.JournalEntry(
        combinators.find_estimator_state("recorded_step", state).count,
        replicas.short_fingerprint(partition.split(params)[0]),
        jnp.where(readings.valid, readings.slopes, jnp.nan),
        readings.value.astype(readings.slopes.dtype),
        jnp.zeros((), jnp.bool_),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def apply_readings(
    optimizer: Any,
    rest: partition.Static,
    box: Box,
    arrays: list[jax.Array],
    state: Any,
    readings: Any,
) -> tuple[list[jax.Array], Any]:
    """Second program: take the step with these `slopes`, `value` and `stopped`."""
    slopes, value, stopped = readings
    # A weak type would make the first step compile separately.
    arrays, state = jax.tree.map(
        lambda x: lax.convert_element_type(x, x.dtype), (arrays, state)
    )

    def evaluate(*_: Any) -> core.Readings:
        valid = ~jnp.isnan(slopes)
        return core.Readings(value, jnp.where(valid, slopes, 0), valid)

    params, state = stepping.take_step(
        optimizer, None, rest.join(arrays), state, evaluate=evaluate
    )
    return unless(stopped, arrays, rest, box, params), state


def unless(
    stopped: jax.Array,
    arrays: list[jax.Array],
    rest: partition.Static,
    box: Box,
    params: core.Params,
) -> list[jax.Array]:
    """Return the arrays of `params` in the box, or the old ones if `stopped`."""
    new = box(rest.pick(rest.treedef.flatten_up_to(params)))
    return core.select(stopped, arrays, new)
