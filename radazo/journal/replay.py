"""Repeat a run from its journal without evaluating the function."""

import os
from typing import Any, NoReturn

import jax
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
    same kind of machine. The run can then go on or branch off.

    A different key, start, model, box or optimizer state is refused before the first
    step. Fingerprints of the parameters before each step detect e.g. another learning
    rate or sampler, or a machine that rounds otherwise. Differences in the last step,
    and hash collisions (1 in 65,536), go undetected.

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
      ValueError: If the journal cannot be read, is damaged or belongs to another run,
        does not reach `count`, or does not reproduce its fingerprints.
    Cost:
      No function values. Each step is two calls, which read the parameters once and
      draw K directions. One copy of parameters and state.
    Example:
      >>> import tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = folder.name + "/run.journal"
      >>> optimizer, start = radazo.radazo(0.02, key=0), jnp.ones(5)
      >>> result = radazo.minimize(jnp.sum, start, optimizer, 50, journal=path)
      >>> half, state = replay(path, optimizer, start, count=25)
      >>> end, state = replay(path, optimizer, half, state)
      >>> print(state.count, jnp.all(end == result.params))
      50 True
      >>> folder.cleanup()
    """
    api_name = "replay"
    stepping.check_optimizer(api_name, optimizer)
    journal = file_format.read(api_name, path)
    box = None if bounds is None else projections.clipping(api_name, params, bounds)
    arrays, rest = partition.split(params)
    arrays = partition.copied(arrays) if box is None else box(partition.copied(arrays))
    params = rest.join(arrays)
    state = partition.copied(optimizer.init(params) if state is None else state)
    run = run_id.of(api_name, params, state, bounds)
    run_id.check(api_name, os.fspath(path), journal, run)
    end = journal.end if count is None else count
    validation.integer(api_name, "count", end, run.count, _COUNT)
    if end > journal.end:
        rule = f"be at most {journal.end}, where the journal ends"
        validation.fail(api_name, "count", rule, repr(end), _COUNT)
    _check_directions(journal.header.num_directions, optimizer, params, state)
    todo = [x[run.count - journal.header.first :] for x in journal.entries[1:]]
    compared = _Compared(todo[0], run.count, journal.header.writer)
    steps = zip(*(x[: end - run.count] for x in todo[1:]), strict=True)
    for slopes, value, stopped in steps:
        compared.add(arrays)
        arrays, state = record.advanced(
            optimizer, rest, box, arrays, state, slopes, value, stopped
        )
    if end < journal.end:
        compared.add(arrays)
    compared.compare()
    return rest.join(arrays), state


def _check_directions(wanted: int, optimizer: Any, params: Any, state: Any) -> None:
    """Check that the optimizer uses as many readings as the journal has."""
    found = record.num_readings(optimizer, params, state)
    if found != wanted:
        validation.fail(
            "replay",
            "optimizer",
            f"look along {wanted} directions in a step, as the journal has slopes",
            f"one that looks along {found}",
            f"Give the optimizer of the run: `num_directions={wanted}` of its "
            "estimator.",
        )


class _Compared:
    """Compare the fingerprints of a replay with those of the run, in blocks.

    Reading the device at each step would stall it. Blocks grow, so that a mismatch at
    the start is reported early.
    """

    def __init__(self, wanted: np.ndarray, start: int, writer: str) -> None:
        self.wanted, self.start, self.writer = wanted, start, writer
        self.found: list[jax.Array] = []
        self.done, self.block = 0, 1

    def add(self, arrays: list[jax.Array]) -> None:
        """Add the parameters before the next step, or after the last."""
        self.found.append(replicas.short_fingerprint(arrays))
        if len(self.found) == self.block:
            self.compare()
            self.block = min(2 * self.block, _MAX_BLOCK)

    def compare(self) -> None:
        """Compare the fingerprints added since the last comparison."""
        found = np.array(jax.device_get(self.found), np.uint16)
        wanted = self.wanted[self.done : self.done + found.size]
        other = np.flatnonzero(found != wanted)
        if other.size:
            first = int(other[0])
            self.fail(self.done + first, found[first], wanted[first])
        self.done, self.found = self.done + found.size, []

    def fail(self, done: int, found: int, wanted: int) -> NoReturn:
        step = self.start + done
        got = f"others, with the fingerprint {found} in the place of {wanted}"
        if not done:
            rule = f"be those of the run before step {step}"
            hint = "Give those of a checkpoint of this run, with their state."
            validation.fail("replay", "params", rule, got, hint)
        validation.fail(
            "replay",
            "optimizer",
            f"make the parameters that the run had before step {step}",
            got,
            "Give the optimizer of the run, with its learning rate, estimator and law, "
            "and the state of the same checkpoint as the parameters. It may be the "
            f"machine, too: the run was made with {self.writer}, and another backend "
            "rounds otherwise.",
        )
