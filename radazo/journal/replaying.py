"""Take the steps of a journaled run, which are two programs, and replay them.

The first evaluates the function; the second applies the readings, and a replay runs it
alone. A step compiled together with the function could differ in the last bits.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file, file_format
from radazo.optimizers import combinators, stepping

_COUNT = "It is the number of steps that the state has counted."
_MAX_BLOCK = 1024  # Steps between two reads from the device.

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
        arrays, state = apply_entry(optimizer, rest, list, arrays, state, entry)
        return rest.join(arrays), state, entry

    return step


def read_entry(
    optimizer: Any,
    value_fn: core.ValueFn,
    params: core.Params,
    state: Any,
    **extra: Any,
) -> file_format.JournalEntry:
    """Evaluate the function and return the journal entry: the first program."""
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
def apply_entry(
    optimizer: Any,
    rest: partition.Static,
    box: Box,
    arrays: list[jax.Array],
    state: Any,
    entry: file_format.JournalEntry,
) -> tuple[list[jax.Array], Any]:
    """Take the step with the readings of a journal entry: the second program."""
    # A weak type would make the first step compile separately.
    arrays, state = jax.tree.map(
        lambda x: lax.convert_element_type(x, x.dtype), (arrays, state)
    )

    def evaluate(*_: Any) -> core.Readings:
        valid = ~jnp.isnan(entry.slopes)
        return core.Readings(entry.value, jnp.where(valid, entry.slopes, 0), valid)

    params, state = stepping.take_step(
        optimizer, None, rest.join(arrays), state, evaluate=evaluate
    )
    moved = box(rest.pick(rest.treedef.flatten_up_to(params)))
    return core.select(entry.stopped, arrays, moved), state


def replay(
    path: str | os.PathLike[str],
    optimizer: Any,
    params: core.Params,
    state: Any = None,
    *,
    count: int | None = None,
    bounds: tuple[Any, Any] | None = None,
) -> tuple[core.Params, Any]:
    """Return the parameters and the state after any step of a journal.

    Each step is repeated from its readings along redrawn directions, bit for bit on the
    same kind of machine. A different key, start, model, box or optimizer state is
    refused before the first step. Fingerprints of the parameters before each step
    detect e.g. another learning rate or sampler, or a machine that rounds differently.
    Differences in the last step, and hash collisions (1 in 65,536), go undetected.

    Args:
      path: The journal.
      optimizer: The optimizer of the run.
      params: The parameters at the start of the run or at a checkpoint.
      state: The state at that checkpoint; None for `optimizer.init(params)`.
      count: The step count at which to end; None for the end of the journal.
      bounds: The bounds of the run.
    Returns:
      (params, state) after that step. The arguments are not modified.
    Raises:
      TypeError: If an argument is of the wrong kind, or a step of the optimizer needs
        more than its readings.
      ValueError: If the journal cannot be read, is damaged, belongs to another run,
        ends before `count`, or does not reproduce its fingerprints.
    Cost:
      No function values. Each step reads the parameters once and draws K directions.
      One copy of parameters and state.
    Example:
      >>> import tempfile
      >>> optimizer, start = radazo.radazo(0.02, key=0), jnp.ones(5)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = folder + "/run.journal"
      ...     result = radazo.minimize(jnp.sum, start, optimizer, 50, journal=path)
      ...     half, state = replay(path, optimizer, start, count=25)
      ...     end, state = replay(path, optimizer, half, state)
      >>> print(state.count, jnp.all(end == result.params))
      50 True
    """
    api_name = "replay"
    stepping.check_optimizer(api_name, optimizer)
    journal = file_format.read(api_name, path)
    box = projections.clipping(api_name, params, bounds)
    arrays, rest = partition.split(params)
    arrays = box(partition.copy(arrays))
    params = rest.join(arrays)
    state = partition.copy(optimizer.init(params) if state is None else state)
    run = file.header_of(api_name, params, state, bounds)
    file.check_run(api_name, os.fspath(path), journal, run)
    end = journal.end if count is None else count
    validation.integer(api_name, "count", end, run.first, _COUNT)
    if end > journal.end:
        rule = f"be at most {journal.end}, where the journal ends"
        validation.fail(api_name, "count", rule, repr(end), _COUNT)
    _check_readings(journal.header.num_readings, optimizer, rest, arrays, state)
    entries = journal.between(run.first, journal.end)
    pending: list[jax.Array] = []
    num, fingerprints = end - run.first, entries.fingerprint
    for i in range(num):
        pending.append(replicas.short_fingerprint(arrays))
        if len(pending) > min(i // 2, _MAX_BLOCK):  # Often at the start, then rarely.
            _compare(pending, fingerprints[: i + 1], run.first, journal.header.writer)
        entry = file_format.JournalEntry(*(x[i] for x in entries))
        arrays, state = apply_entry(optimizer, rest, box, arrays, state, entry)
    if end < journal.end:
        pending.append(replicas.short_fingerprint(arrays))
    _compare(pending, fingerprints[: num + 1], run.first, journal.header.writer)
    return rest.join(arrays), state


def _check_readings(
    wanted: int, optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> None:
    """Check that the optimizer uses as many readings as the journal has."""

    def readings(arrays: Any, state: Any) -> jax.Array:
        *_, queries = stepping.first_evaluation(optimizer, rest.join(arrays), state)
        return jnp.zeros(queries.num_readings, jnp.bool_)

    found = jax.eval_shape(readings, arrays, state).size
    if found != wanted:
        rule = f"use {wanted} readings per step, as in the journal"
        hint = "Give the optimizer of the run: the estimator and its `num_directions` "
        hint += "determine the number of readings."
        validation.fail("replay", "optimizer", rule, f"one that uses {found}", hint)


def _compare(
    pending: list[jax.Array], wanted: np.ndarray, first: int, writer: str
) -> None:
    """Compare fingerprints with the last of `wanted`, which begins at step `first`."""
    found = np.array(jax.device_get(pending), np.uint16)
    pending.clear()
    start = wanted.size - found.size
    other = np.flatnonzero(found != wanted[start:])
    if not other.size:
        return
    i = int(other[0])
    step = first + start + i
    got = f"others, with the fingerprint {found[i]} instead of {wanted[start + i]}"
    if step == first:
        rule = f"be those of the run before step {step}"
        hint = "Give those of a checkpoint of this run, with their state."
        validation.fail("replay", "params", rule, got, hint)
    rule = f"reproduce the parameters that the run had before step {step}"
    hint = "Give the optimizer of the run, with its learning rate, estimator and "
    hint += "sampler, and the state of the same checkpoint as the parameters. The "
    hint += f"machine may differ, too: the run was made with {writer}, and another "
    hint += "backend rounds differently."
    validation.fail("replay", "optimizer", rule, got, hint)
