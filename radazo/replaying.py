"""A run once more, from its journal: the function is not asked again."""

import os
from typing import Any

from radazo import base, checks, identity, projections, recording, records, trees

_COUNT = "It is the number of steps that the state has counted."


def replay(
    path: str | os.PathLike[str],
    optimizer: Any,
    params: base.Params,
    state: Any = None,
    *,
    count: int | None = None,
    bounds: tuple[Any, Any] | None = None,
) -> tuple[base.Params, Any]:
    """Parameters and state after any step of a journal, without the function.

    Each step is made again of its slopes, along directions that are drawn again: on the
    same kind of machine the same step, bit for bit. From there a run goes on, or
    branches off with other constants or another function and a journal of its own.

    Another key, start, model or box and an optimizer with another state are refused.
    Another learning rate does not show, unless it is in the state.

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
        not have the steps that are asked for.
    Cost:
      No function values; each step is one call, in which K directions are drawn. One
      copy of parameters and state.
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
    where = "replay"
    recording.check_optimizer(where, optimizer)
    journal = records.read(where, path)
    box = None if bounds is None else projections.clipping(where, params, bounds)
    arrays, rest = trees.split(params)
    arrays = trees.copied(arrays) if box is None else box(trees.copied(arrays))
    params = rest.join(arrays)
    state = trees.copied(optimizer.init(params) if state is None else state)
    run = identity.of(where, params, state, bounds)
    identity.check(where, os.fspath(path), journal, run)
    end = journal.end if count is None else count
    checks.integer(where, "count", end, run.count, _COUNT)
    if end > journal.end:
        rule = f"be at most {journal.end}, where the journal ends"
        checks.fail(where, "count", rule, repr(end), _COUNT)
    first = journal.header.first
    todo = [x[run.count - first : end - first] for x in journal.entries[1:]]
    for slopes, value, stopped in zip(*todo, strict=True):
        arrays, state = recording.advanced(
            optimizer, rest, box, arrays, state, slopes, value, stopped
        )
    return rest.join(arrays), state
