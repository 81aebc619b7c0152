"""Repeat a run from its journal without evaluating the function."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file_format, record, run_id
from radazo.optimizers import stepping

_COUNT = "It is the number of steps that the state has counted."
_MAX_BLOCK = 1024  # Steps between two reads from the device.


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
    run = run_id.of(api_name, params, state, bounds)
    run_id.check(api_name, os.fspath(path), journal, run)
    end = journal.end if count is None else count
    validation.integer(api_name, "count", end, run.first, _COUNT)
    if end > journal.end:
        rule = f"be at most {journal.end}, where the journal ends"
        validation.fail(api_name, "count", rule, repr(end), _COUNT)
    _check_directions(journal.header.num_directions, optimizer, rest, arrays, state)
    start = run.first - journal.header.first
    wanted, *readings = (x[start:] for x in journal.entries[1:])
    pending: list[jax.Array] = []
    num = end - run.first
    for i in range(num):
        pending.append(replicas.short_fingerprint(arrays))
        if len(pending) > min(i // 2, _MAX_BLOCK):  # Often at the start, then rarely.
            _compare(pending, wanted[: i + 1], run.first, journal.header.writer)
        reading = tuple(x[i] for x in readings)
        arrays, state = record.apply_readings(
            optimizer, rest, box, arrays, state, reading
        )
    if end < journal.end:
        pending.append(replicas.short_fingerprint(arrays))
    _compare(pending, wanted[: num + 1], run.first, journal.header.writer)
    return rest.join(arrays), state


def _check_directions(
    wanted: int, optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> None:
    """Check that the optimizer uses as many readings as the journal has."""

    def readings(arrays: Any, state: Any) -> jax.Array:
        *_, queries = stepping.first_evaluation(optimizer, rest.join(arrays), state)
        return jnp.zeros(queries.num_readings, jnp.bool_)

    found = jax.eval_shape(readings, arrays, state).size
    if found != wanted:
        rule = f"use {wanted} directions per step, as in the journal"
        hint = "Give the optimizer of the run: "
        hint += f"`num_directions={wanted}` of its estimator."
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
    validation.fail(
        "replay",
        "optimizer",
        f"reproduce the parameters that the run had before step {step}",
        got,
        "Give the optimizer of the run, with its learning rate, estimator and sampler, "
        "and the state of the same checkpoint as the parameters. The machine may "
        f"differ, too: the run was made with {writer}, and another backend rounds "
        "differently.",
    )
