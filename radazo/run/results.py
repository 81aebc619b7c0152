"""The loop of `minimize` and of pools, its state and its result."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file, record, run_id
from radazo.optimizers import combinators
from radazo.run import checkpointing, loop, progress_bar

_SECONDS_PER_CALL = 0.2
_NO_BATCH = object()


class MinimizeResult(NamedTuple):
    """The result of a run.

    Attributes:
      params: The last parameters, a pytree like those given.
      state: The optimizer's state; pass it to `minimize` to continue.
      values: (num_steps,) NumPy array, the value of the estimate of each step: with
        `forward` that of the parameters before the step.
      num_values: (num_steps,) NumPy array, function values up to each step.
      num_steps: Steps taken. With `checkpoints` this, `values` and `num_values` include
        the earlier calls.
      status: "finished", "stopped" (by `stop` or the callback), "exhausted" (no batch,
        or no budget of a pool, is left) or "interrupted" (Ctrl-C, and SIGTERM with
        `checkpoints`).
    """

    params: core.Params
    state: Any
    values: np.ndarray
    num_values: np.ndarray
    num_steps: int
    status: str


def start_run(
    api_name: str,
    params: core.Params,
    optimizer: Any,
    num_steps: int,
    state: Any,
    bounds: Any,
    callback: Callable[[MinimizeResult], Any] | None,
) -> "_Run":
    """Check the arguments of a run and return it before its first step."""
    hint = "It is the number of steps."
    validation.integer(api_name, "num_steps", num_steps, 0, hint)
    if callback is not None:
        hint = "It is called with the `MinimizeResult` so far."
        validation.function(api_name, "callback", callback, hint)
    box = projections.clipping(api_name, params, bounds)
    arrays, rest = partition.split(params)
    arrays = box(partition.copy(arrays))
    state = _state(api_name, optimizer, rest.join(arrays), state)
    values = np.zeros(num_steps, np.dtype(jnp.result_type(float)))
    history = loop.Record(values, np.zeros(num_steps, np.int64))
    return _Run(api_name, rest, box, bounds, callback, arrays, state, history)


@dataclasses.dataclass(eq=False)
class _Run:
    """A run and its loop."""

    api_name: str
    rest: partition.Static
    box: record.Box
    bounds: Any
    callback: Callable[[MinimizeResult], Any] | None
    arrays: list[jax.Array]
    state: Any
    history: loop.Record  # Of all steps; zeros for those to come.
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    journal: file.Journal | None = None
    done: int = 0
    status: str = "finished"
    pace: int = 1  # Maximum number of steps in the next call.
    is_compiled: bool = False

    def take_steps(
        self,
        steps: Callable[..., Any],
        checkpoints: Any,
        *,
        batches: Any = None,
        callback_every: int | None = None,
        progress: bool | None = False,
        journal: Any = None,
    ) -> MinimizeResult:
        """Call `steps`, as made by `loop.compiled_steps`, until the run ends."""
        num_steps = self.history.values.size
        with checkpointing.open_or_null(self.api_name, checkpoints) as kept:
            self.resume(kept)
            with (
                file.open_or_null(journal, *self.here(), self.bounds) as self.journal,
                progress_bar.progress_bar(self.api_name, progress, num_steps) as bar,
            ):
                items = _remaining(self.api_name, batches, self.done)
                if self.done:
                    bar(self.done, self.history.values[self.done - 1])
                while self.done < num_steps and self.status == "finished":
                    batch = None if items is None else next(items, _NO_BATCH)
                    limit = num_steps - self.done if items is None else 1
                    if callback_every is not None:
                        limit = min(limit, callback_every - self.done % callback_every)
                    ended = batch is _NO_BATCH
                    taken = 0 if ended else self.advance(steps, limit, batch)
                    if not taken:
                        self.status = "exhausted"
                        break
                    bar(taken, self.history.values[self.done - 1])
                    if callback_every is None or self.done % callback_every == 0:
                        self.call_back()
                    self.keep(kept)
            kept.save(self.done, self.tree(), now=True)
        return self.result()

    def advance(self, steps: Callable[..., Any], limit: int, batch: Any) -> int:
        """Make one call and return the number of steps taken."""
        num = min(limit, self.pace)
        begun = time.perf_counter()
        self.arrays, self.state, *seen = steps(self.arrays, self.state, num, batch)
        records, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - begun
        if self.is_compiled:  # The first call includes compilation.
            fitting = int(num * _SECONDS_PER_CALL / max(seconds, 1e-6))
            self.pace = max(1, min(fitting, 8 * num, loop.MAX_STEPS_PER_CALL))
        self.is_compiled = True
        records = jax.tree.map(lambda x: x[:taken], records)
        self.note(self.done, records)
        if self.journal is not None:
            # Sync before any checkpoint, which must not be ahead of the journal.
            self.journal.append(records.entry)
            self.journal.sync()
        self.done += int(taken)
        if stopped:
            self.status = "stopped"
        return int(taken)

    def note(self, start: int, records: loop.Record) -> None:
        """Write the records of the steps from `start` on to the history."""
        for all_steps, new in zip(self.history[:2], records[:2], strict=True):
            all_steps[start : start + len(new)] = new

    def call_back(self) -> None:
        """Call the callback; only a returned True has an effect."""
        answer = None if self.callback is None else self.callback(self.result())
        if isinstance(answer, bool | np.bool_ | jax.Array) and answer:
            self.status = "stopped"

    def keep(self, kept: checkpointing.Checkpoints) -> None:
        """Save a checkpoint if one is due, and handle Ctrl-C.

        Processes that share a run must take the same number of steps in a call.
        """
        kept.save(self.done, self.tree())
        known = replicas.of_all_processes(self.pace, kept.interrupted())
        self.pace = int(np.min(known[:, 0]))
        if np.any(known[:, 1]) and self.status == "finished":
            self.status = "interrupted"

    def here(self) -> tuple[core.Params, Any]:
        return self.rest.join(self.arrays), self.state

    def result(self) -> MinimizeResult:
        # Copies, since the next call donates these buffers.
        values, num_values = (x[: self.done].copy() for x in self.history[:2])
        params = self.rest.join(partition.copy(self.arrays))
        state = partition.copy(self.state)
        return MinimizeResult(params, state, values, num_values, self.done, self.status)

    def tree(self) -> dict[str, Any]:
        """Return the tree to save; the checkpoint is numbered by its steps."""
        return {
            "params": self.rest.join(self.arrays),
            "state": self.state,
            "history": jax.tree.map(lambda x: x[: self.done], self.history),
            "stopped": self.status == "stopped",
            "run": self.identity,
        }

    def resume(self, kept: checkpointing.Checkpoints) -> None:
        """Restore the latest checkpoint, if any."""
        if kept.folder:
            run = run_id.of(self.api_name, *self.here(), self.bounds)
            self.identity = {
                "key": str(run.key_data),
                "optimizer": run.state.hex(),
                "start": f"{run.first} {run.start.hex()}",
                "bounds": run.bounds.hex(),
            }
        done, tree = kept.restore(self.tree())
        if done > self.history.values.size:
            rule = f"be at least {done}, the steps that the run has taken"
            got = f"{self.history.values.size} for the run in {kept.folder!r}"
            hint = "It is the total, including steps of earlier calls: ask for more, "
            hint += "or start in another folder."
            validation.fail(self.api_name, "num_steps", rule, got, hint)
        other = [name for name, x in self.identity.items() if tree["run"][name] != x]
        if other:
            got = f"{kept.folder!r}, a run that differs in {' and '.join(other)}"
            hint = "Start in another folder."
            validation.fail(self.api_name, "checkpoints", "hold this run", got, hint)
        self.arrays, self.state = partition.split(tree["params"])[0], tree["state"]
        self.note(0, tree["history"])
        self.done, self.status = done, "stopped" if tree["stopped"] else "finished"


def _remaining(api_name: str, batches: Any, done: int) -> Iterator[Any] | None:
    """Return an iterator over the batches after those of the first `done` steps."""
    if batches is None or callable(batches):
        return None
    items = iter(batches)
    num_used = sum(1 for _ in itertools.islice(items, done))
    if num_used < done:
        rule = f"include the first {done} batches, which the run has used"
        hint = "Give a fresh iterable, not an iterator that was used before, or a "
        hint += "function of the step."
        validation.fail(api_name, "batches", rule, str(num_used), hint)
    return items


def _state(
    api_name: str,
    optimizer: optax.GradientTransformation,
    params: core.Params,
    state: Any,
) -> Any:
    """Return a new state, or a copy of the one given."""
    if state is None:
        state = optimizer.init(params)
        combinators.find_estimator_state(api_name, state)
        return partition.copy(state)
    fresh = jax.eval_shape(lambda: optimizer.init(params))
    combinators.find_estimator_state(api_name, fresh)

    def kinds(tree: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        names = "shape", "dtype"
        return treedef, [[getattr(x, name, None) for name in names] for x in leaves]

    if kinds(state) != kinds(fresh):
        rule = "be a state of `optimizer` for these `params`"
        got = f"one of another structure or other shapes, {state!r}"[:200]
        hint = "Give the `state` of a result with the same optimizer, or None."
        validation.fail(api_name, "state", rule, got, hint)
    return partition.copy(state)
