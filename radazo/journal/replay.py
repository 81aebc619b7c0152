"""A run once more, from its journal: the function is not asked again."""

import os
from typing import Any, NoReturn

import jax
import numpy as np

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file_format, record, run_id
from radazo.optimizers import stepping

_COUNT = "It is the number of steps that the state has counted."
_MAX_BLOCK = 1024  # Steps between two looks at the device.


def replay(
    path: str | os.PathLike[str],
    optimizer: Any,
    params: core.Params,
    state: Any = None,
    *,
    count: int | None = None,
    bounds: tuple[Any, Any] | None = None,
) -> tuple[core.Params, Any]:
    """Parameters and state after any step of a journal, without the function.

    Each step is made again of its slopes, along directions that are drawn again: on the
    same kind of machine the same step, bit for bit. From there a run goes on, or
    branches off with other constants or another function and a journal of its own.

    Another key, start, model or box and an optimizer with another state are refused
    before the first step. Of each step the journal has a fingerprint of the parameters
    before it: other parameters in the middle, another learning rate or law, or a
    machine that rounds otherwise are refused with the first step at which they differ.
    What only the last step of the journal does otherwise does not show, nor does one
    difference in 65,536.

    Args:
      path: The journal.
      optimizer: The optimizer of the run.
      params: The parameters from which the run started, or those of a checkpoint.
      state: The state of that checkpoint; None for `optimizer.init(params)`.
      count: The count of the state at which to end; None is the end of the journal.
      bounds: Those of the run.
    Returns:
      (params, state) after that step. What is given is left as it is.
    Raises:
      TypeError: If an argument is of the wrong kind, or the optimizer needs more than
        slopes for a step.
      ValueError: If the journal cannot be read, is damaged or another run's, or does
        not have the steps that are asked for, or they do not give its parameters.
    Cost:
      No function values; each step is two calls, in which the parameters are read once
      and K directions are drawn. One copy of parameters and state.
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
    """What the optimizer makes a step of is what the journal has of it."""
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
    """The fingerprints of a replay, compared with those of the run in blocks.

    To look at the device at each step would make it wait. Blocks grow, so that what is
    wrong from the start is said at the start.
    """

    def __init__(self, wanted: np.ndarray, start: int, writer: str) -> None:
        self.wanted, self.start, self.writer = wanted, start, writer
        self.found: list[jax.Array] = []
        self.done, self.block = 0, 1

    def add(self, arrays: list[jax.Array]) -> None:
        """The parameters before the next step, or after the last."""
        self.found.append(replicas.short_fingerprint(arrays))
        if len(self.found) == self.block:
            self.compare()
            self.block = min(2 * self.block, _MAX_BLOCK)

    def compare(self) -> None:
        """Look at those that were added."""
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
