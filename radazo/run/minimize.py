"""Run an optimizer with bounds, history, progress, Ctrl-C handling and checkpoints.

Each call runs many compiled steps; callbacks, interrupts and checkpoints are handled
between calls. The number of steps per call does not affect the results.
"""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import core, partition, projections, replicas, validation
from radazo.journal import file, replaying
from radazo.optimizers import combinators, stepping
from radazo.run import checkpointing, loop, progress_bar

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


def minimize(
    value_fn: core.ValueFn,
    params: core.Params,
    optimizer: optax.GradientTransformation | stepping.InPlace,
    num_steps: int,
    *,
    state: Any = None,
    batches: Callable[[jax.Array], Any] | Iterable[Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    stop: Callable[[jax.Array, core.Params], Any] | None = None,
    callback: Callable[[MinimizeResult], Any] | None = None,
    callback_every: int | None = None,
    progress: bool | None = None,
    checkpoints: str | os.PathLike[str] | checkpointing.Checkpoints | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> MinimizeResult:
    """Minimize a function by its values: the loop around `optimizer.update`.

      updates, state = optimizer.update(None, state, x, value_fn=value_fn)
      x ← clip(x + updates, lower, upper)

    It runs on the host, not within `jit` or `vmap`, and returns the last point, not the
    best. Ctrl-C ends the run and returns the result so far; a second one is raised.

    With `checkpoints` the run is saved once a minute. Repeating the call resumes from
    the last checkpoint, bit for bit as without the interruption; a finished run returns
    at once. SIGTERM then ends the run as Ctrl-C does, with a last checkpoint.
    `num_steps` is the total and may be raised. A checkpoint of another run is refused;
    another function, other batches or another constant learning rate go undetected.

    Args:
      value_fn: `value_fn(params)`, or `value_fn(params, batch)` with `batches`;
        traceable by JAX (wrap others in `jax.pure_callback`).
      params: The initial parameters, a pytree.
      optimizer: A complete ZO optimizer, e.g. `radazo`, or any with an estimator in it.
      num_steps: Number of steps, at least 0.
      state: State of an earlier result to continue from; None for a new one.
      batches: A function of the step count, compiled into the steps, or an iterable
        with one pytree per step; to resume, pass it from its first item on.
      bounds: `(lower, upper)`, each a number or a pytree like `params`: the box that
        parameters are clipped to, including the start. Evaluations may lie outside it.
      stop: `stop(value, params) -> bool`, compiled into the steps. If it holds for a
        value and the parameters before the step, the run ends with those parameters.
      callback: Called with a copy of the result so far, every `callback_every` steps,
        by default after each compiled call. The run ends if it returns True.
      callback_every: Steps between two calls of `callback`.
      progress: Whether to show a progress bar (needs tqdm); None shows it on a
        terminal where tqdm is installed.
      checkpoints: A folder to save the run in and resume from (needs orbax), or an open
        `Checkpoints` of `open_checkpoints`, which sets how often and how many.
      journal: A file for the readings of each step, from which `replay` repeats the run
        without `value_fn`; see `open_journal`. Each step is then two programs, redraws
        its directions, and may differ in the last bits from one without a journal.
    Returns:
      A `MinimizeResult`. `params` and `state` are not modified.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range,
        `optimizer` has no estimator, `state` does not fit, or `checkpoints` or
        `journal` cannot be read or written, or belong to another or a longer run.
    Cost:
      That of the optimizer, times `num_steps`; one copy of the parameters.
    Example:
      >>> value_fn = lambda x: jnp.sum((x - 1) ** 2)
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> result = minimize(value_fn, jnp.zeros(5), optimizer, 300)
      >>> print(result.num_steps, result.num_values[-1], result.values[-1] < 0.01)
      300 3300 True
    """
    api_name = "minimize"
    stepping.check_optimizer(api_name, optimizer)
    validation.check(api_name, value_fn=value_fn, stop=stop)
    validation.check(api_name, callback_every=callback_every, progress=progress)
    iterable = isinstance(batches, Iterable) and not isinstance(batches, dict)
    if not (batches is None or callable(batches) or iterable):
        rule, got = "be a function of the step or an iterable", repr(batches)[:200]
        hint = "It gives what `value_fn` takes besides the parameters, step by step; "
        hint += "for one fixed batch pass `lambda step: batch`."
        validation.fail(api_name, "batches", rule, got, hint, TypeError)
    run = start_run(api_name, params, optimizer, num_steps, state, bounds, callback)

    def value_of(params: core.Params, batch: Any) -> Any:
        return value_fn(params) if batches is None else value_fn(params, batch)

    setup = loop.Setup(value_of, optimizer, run.rest, run.box, batches, stop)
    compiled = loop.compiled_steps if journal is None else loop.recorded_steps
    return run.take_steps(
        compiled(setup), checkpoints, batches, callback_every, progress, journal
    )


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
    validation.integer(api_name, "num_steps", num_steps, 0, "0 takes no step.")
    validation.check(api_name, callback=callback)
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
    box: replaying.Box
    bounds: Any
    callback: Callable[[MinimizeResult], Any] | None
    arrays: list[jax.Array]
    state: Any
    history: loop.Record  # Of all steps; zeros for those to come.
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    journal: file.Journal | None = None
    done: int = 0
    status: str = "finished"
    max_steps: int = 1  # In the next call.
    is_compiled: bool = False

    def take_steps(
        self,
        steps: Callable[..., Any],
        checkpoints: Any,
        batches: Any = None,
        callback_every: int | None = None,
        progress: bool | None = False,
        journal: Any = None,
    ) -> MinimizeResult:
        """Call `steps`, as made by `loop.compiled_steps`, until the run ends."""
        num_steps = self.history.values.size
        with checkpointing.open_or_null(self.api_name, checkpoints) as opened:
            self.resume(opened)
            journals = contextlib.nullcontext()
            if journal is not None:
                journals = file.open_journal(
                    journal, *self.position(), bounds=self.bounds
                )
            with (
                journals as self.journal,
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
                        self.run_callback()
                    self.save_if_due(opened)
            opened.save(self.done, self.tree(), now=True)
        return self.result()

    def advance(self, steps: Callable[..., Any], limit: int, batch: Any) -> int:
        """Make one call and return the number of steps taken."""
        num = min(limit, self.max_steps)
        begun = time.perf_counter()
        self.arrays, self.state, *seen = steps(self.arrays, self.state, num, batch)
        records, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - begun
        if self.is_compiled:  # The first call includes compilation.
            fitting = int(num * loop.SECONDS_PER_CALL / max(seconds, 1e-6))
            self.max_steps = max(1, min(fitting, 8 * num, loop.MAX_STEPS_PER_CALL))
        self.is_compiled = True
        records = jax.tree.map(lambda x: x[:taken], records)
        self.write_history(self.done, records)
        if self.journal is not None:
            # Sync before any checkpoint, which must not be ahead of the journal.
            self.journal.append(records.entry)
            self.journal.sync()
        self.done += int(taken)
        if stopped:
            self.status = "stopped"
        return int(taken)

    def write_history(self, start: int, records: loop.Record) -> None:
        """Write the records of the steps from `start` on to the history."""
        end = start + len(records.values)
        self.history.values[start:end] = records.values
        self.history.num_values[start:end] = records.num_values

    def run_callback(self) -> None:
        """Call the callback; only a returned True has an effect."""
        answer = None if self.callback is None else self.callback(self.result())
        if isinstance(answer, bool | np.bool_ | jax.Array) and answer:
            self.status = "stopped"

    def save_if_due(self, opened: checkpointing.Checkpoints) -> None:
        """Save a checkpoint if one is due, and handle Ctrl-C.

        Processes that share a run must take the same number of steps in a call.
        """
        opened.save(self.done, self.tree())
        inputs = self.max_steps, opened.interrupted()
        limits, interrupted = replicas.of_all_processes(*inputs).T
        self.max_steps = int(np.min(limits))
        if np.any(interrupted) and self.status == "finished":
            self.status = "interrupted"

    def position(self) -> tuple[core.Params, Any]:
        return self.rest.join(self.arrays), self.state

    def result(self) -> MinimizeResult:
        # Copies, since the next call donates these buffers.
        params = self.rest.join(partition.copy(self.arrays))
        state = partition.copy(self.state)
        history = jax.tree.map(lambda x: x[: self.done].copy(), self.history)
        numbers = history.values, history.num_values
        return MinimizeResult(params, state, *numbers, self.done, self.status)

    def tree(self) -> dict[str, Any]:
        """Return the tree to save; the checkpoint is numbered by its steps."""
        return {
            "params": self.rest.join(self.arrays),
            "state": self.state,
            "history": jax.tree.map(lambda x: x[: self.done], self.history),
            "stopped": self.status == "stopped",
            "run": self.identity,
        }

    def resume(self, opened: checkpointing.Checkpoints) -> None:
        """Restore the latest checkpoint, if any."""
        if opened.folder:
            run = file.header_of(self.api_name, *self.position(), self.bounds)
            self.identity = {
                "key": str(run.key_data),
                "optimizer": run.state.hex(),
                "start": f"{run.first} {run.start.hex()}",
                "bounds": run.bounds.hex(),
            }
        done, tree = opened.restore(self.tree())
        if done > self.history.values.size:
            rule = f"be at least {done}, the steps that the run has taken"
            got = f"{self.history.values.size} for the run in {opened.folder!r}"
            hint = "It is the total, including steps of earlier calls: ask for more, "
            hint += "or start in another folder."
            validation.fail(self.api_name, "num_steps", rule, got, hint)
        other = [name for name, x in self.identity.items() if tree["run"][name] != x]
        if other:
            got = f"{opened.folder!r}, a run that differs in {' and '.join(other)}"
            hint = "Start in another folder."
            validation.fail(self.api_name, "checkpoints", "hold this run", got, hint)
        self.arrays, self.state = partition.split(tree["params"])[0], tree["state"]
        self.write_history(0, tree["history"])
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


_CALLBACK = "It is called with the `MinimizeResult` so far."
validation.declare(validation.function, "callback", optional=True, hint=_CALLBACK)
_STOP = "It is called as `stop(value, params)` in the compiled steps."
_EVERY = "It is the number of steps between two calls of `callback`."
validation.declare(validation.function, "stop", optional=True, hint=_STOP)
validation.declare(
    validation.integer, "callback_every", optional=True, minimum=1, hint=_EVERY
)
