"""Run an optimizer with bounds, history, progress, Ctrl-C handling and checkpoints.

Each call runs many compiled steps; callbacks, interrupts and checkpoints are handled
between calls. The number of steps per call does not affect the results.
"""

import contextlib
import dataclasses
import itertools
import math
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
from radazo.optimizers.zo_auto import EXACT, WIDE, ZoAutoState, zo_auto
from radazo.run import checkpointing, limits, loop, progress_bar

_NO_BATCH = object()
_GOING_ON = ("running", "finished")


class MinimizeResult(NamedTuple):
    """The result of a run.

    Attributes:
      params: The last parameters, a pytree like those given. A run of `zo_auto` may
        end in a wide search, far from the best ones: take `best_params`.
      state: The optimizer's state; pass it to `minimize` to continue.
      values: (num_steps,) NumPy array, the value of the estimate of each step: with
        `forward` that of the parameters before the step.
      num_values: (num_steps,) NumPy array, function values up to each step.
      num_steps: Steps taken. With `checkpoints` this, `values` and `num_values` include
        the earlier calls.
      status: Why the run ended, by name: "finished" (all of `num_steps`), "target",
        "max_values", "max_seconds", "converged" (values no longer fall), "stopped" (by
        `stop` or the callback), "exhausted" (no batch, or no budget of a pool, is left)
        or "interrupted" (Ctrl-C, and SIGTERM with `checkpoints`). It is "diverged" in
        place of "finished", "max_values", "max_seconds" and "converged" if the last
        value is not finite or all of the last quarter are above the first (with
        `batches` if there are eight of them).
      message: Why the run ended, in a sentence.
      best_value: The lowest finite value; NaN if there is none.
      best_params: The parameters of that value, or None without `keep_best`. If values
        have noise, it is the luckiest of them; `params` is then the better choice.
    """

    params: core.Params
    state: Any
    values: np.ndarray
    num_values: np.ndarray
    num_steps: int
    status: str
    message: str = ""
    best_value: float = math.nan
    best_params: core.Params = None


def minimize(
    value_fn: core.ValueFn,
    params: core.Params,
    optimizer: optax.GradientTransformation | stepping.InPlace | None = None,
    num_steps: int | None = None,
    *,
    max_values: int | None = None,
    max_seconds: float | None = None,
    target: float | None = None,
    keep_best: bool | None = None,
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

    `minimize(value_fn, params)` needs no more: `best_params` of the result is the
    answer. The default optimizer, `zo_auto`, has nothing to tune.

      updates, state = optimizer.update(None, state, x, value_fn=value_fn)
      x ← clip(x + updates, lower, upper)

    It runs on the host, not within `jit` or `vmap`. Ctrl-C ends the run and returns the
    result so far; a second one is raised.

    The run ends at whichever limit comes first: `num_steps`, `max_values`,
    `max_seconds` or `target`. Without `num_steps` it also ends by itself: after 200,
    250, 312, ... steps (each time a quarter more), and at least 4 function values per
    element of `params`, it compares the last quarter of the values with the quarter
    before. It has converged if the median is not lower, no value is the lowest of the
    run so far, and both held at the previous check, too. If values fall towards 0, that
    is only where they underflow: set a `target`. A run of `zo_auto` with exact values
    has converged if, at a check, two wide searches in a row and the local searches
    after them have each lowered f by at most 1 % of the decrease before.

    With `checkpoints` the run is saved once a minute. Repeating the call resumes from
    the last checkpoint, bit for bit as without the interruption; a finished run returns
    at once. SIGTERM then ends the run as Ctrl-C does, with a last checkpoint.
    Limits are those of the whole run and may be raised, except that `max_seconds` is
    the time of one call. A checkpoint of another run is refused; another function,
    other batches or another constant learning rate go undetected.

    Args:
      value_fn: `value_fn(params)`, or `value_fn(params, batch)` with `batches`;
        traceable by JAX (wrap others in `jax.pure_callback`).
      params: The initial parameters, a pytree.
      optimizer: A complete ZO optimizer, e.g. `radazo`, or any with an estimator in it.
        None is `zo_auto(key=0)`.
      num_steps: Number of steps, at least 0; None for no limit.
      max_values: Number of function values, without those counted in `state`. A step
        that would exceed it is not taken. It has to allow the first step. Values of a
        line search do not count.
      max_seconds: Wall-clock time in seconds, with compilation. It is checked about
        five times a second, but not during a step; one step is always taken.
      target: End at the first value of a step that is at most `target`, with the
        parameters before that step.
      keep_best: Whether to keep the parameters with the lowest value. None keeps them
        with `zo_auto`, and if `num_steps` is None, except for an `in_place` optimizer.
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
      That of the optimizer, times the steps; one copy of the parameters, a second one
      with `keep_best`; 16 bytes a step of history (up to 32 while it grows).
    Example:
      >>> value_fn = lambda x: jnp.sum((x - 1) ** 2)
      >>> result = minimize(value_fn, jnp.zeros(5))
      >>> print(result.status, jnp.round(result.best_params, 3))
      converged [1. 1. 1. 1. 1.]
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> result = minimize(value_fn, jnp.zeros(5), optimizer, 300)
      >>> print(result.num_steps, result.num_values[-1], result.values[-1] < 0.01)
      300 3300 True
      >>> result = minimize(value_fn, jnp.zeros(5), optimizer, target=0.01)
      >>> print(result.status, result.best_value <= 0.01)
      target True
    """
    api_name = "minimize"
    optimizer = zo_auto(key=0) if optimizer is None else optimizer
    stepping.check_optimizer(api_name, optimizer)
    validation.check(api_name, value_fn=value_fn, stop=stop, keep_best=keep_best)
    validation.check(api_name, callback_every=callback_every, progress=progress)
    iterable = isinstance(batches, Iterable) and not isinstance(batches, dict)
    if not (batches is None or callable(batches) or iterable):
        rule, got = "be a function of the step or an iterable", repr(batches)[:200]
        hint = "It gives what `value_fn` takes besides the parameters, step by step; "
        hint += "for one fixed batch pass `lambda step: batch`."
        validation.fail(api_name, "batches", rule, got, hint, TypeError)
    given = limits.Limits(num_steps, max_values, max_seconds, target)
    run = start_run(
        api_name, params, optimizer, given, state, bounds, callback, keep_best
    )

    def value_of(params: core.Params, batch: Any) -> Any:
        return value_fn(params) if batches is None else value_fn(params, batch)

    count = run.last_count
    setup = loop.Setup(
        value_of, optimizer, run.rest, run.box, batches, stop, target, count
    )
    if count is not None:
        run.check_first_step(setup)
    compiled = loop.compiled_steps if journal is None else loop.recorded_steps
    return run.take_steps(
        compiled(setup), checkpoints, batches, callback_every, progress, journal
    )


def start_run(
    api_name: str,
    params: core.Params,
    optimizer: Any,
    given: limits.Limits,
    state: Any,
    bounds: Any,
    callback: Callable[[MinimizeResult], Any] | None,
    keep_best: bool | None = False,
) -> "_Run":
    """Check the arguments of a run and return it before its first step."""
    begun = time.perf_counter()
    given.check(api_name)
    validation.check(api_name, callback=callback)
    box = projections.clipping(api_name, params, bounds)
    arrays, rest = partition.split(params)
    arrays = box(partition.copy(arrays))
    state = _state(api_name, optimizer, rest.join(arrays), state)
    used = int(combinators.find_estimator_state(api_name, state).num_values)
    best = None
    if keep_best is None:
        is_open = given.num_steps is None and not isinstance(
            optimizer, stepping.InPlace
        )
        keep_best = is_open or _auto_state(state) is not None
    if keep_best:
        best = loop.Best(jnp.full((), jnp.inf, float), partition.copy(arrays))
    size = 0 if given.num_steps is None else given.num_steps
    values = np.zeros(size, np.dtype(jnp.result_type(float)))
    history = loop.Record(values, np.zeros(size, np.int64))
    position = loop.Position(arrays, state, best)
    last_count = given.last_count(api_name, used)
    return _Run(
        *(api_name, rest, box, bounds, callback, given, used, last_count),
        *(position, history),
        *("running" if given.num_steps is None else "finished", begun),
    )


@dataclasses.dataclass(eq=False)
class _Run:
    """A run and its loop."""

    api_name: str
    rest: partition.Static
    box: replaying.Box
    bounds: Any
    callback: Callable[[MinimizeResult], Any] | None
    limits: limits.Limits
    used: int  # Function values before the run, by the counter of the state.
    last_count: int | None  # Value of that counter which no step may exceed.
    position: loop.Position
    history: loop.Record  # With room for steps to come.
    status: str  # "running", or "finished" with `num_steps`, until the run ends.
    begun: float  # By `time.perf_counter`.
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    journal: file.Journal | None = None
    has_room: Callable[..., Any] | None = None  # With `max_values`.
    with_batches: bool = False
    done: int = 0
    max_steps: int = 1  # In the next call.
    is_compiled: bool = False

    def check_first_step(self, setup: loop.Setup) -> None:
        """Check that `max_values` allows the first step."""
        arrays, state, _ = self.position
        needed = int(jax.jit(setup.num_needed)(arrays, state))
        if needed > (self.limits.max_values or 0):
            rule = f"be at least {needed}, the function values of the first step"
            hint = "Allow more, or pass an estimator with fewer directions."
            got = repr(self.limits.max_values)
            validation.fail(self.api_name, "max_values", rule, got, hint)
        self.has_room = jax.jit(setup.has_room)

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
        num_steps = self.limits.num_steps
        self.with_batches = batches is not None
        with checkpointing.open_or_null(self.api_name, checkpoints) as opened:
            self.resume(opened)
            journals = contextlib.nullcontext()
            if journal is not None:
                journals = file.open_journal(journal, *self.point(), bounds=self.bounds)
            with (
                journals as self.journal,
                progress_bar.progress_bar(self.api_name, progress, num_steps) as bar,
            ):
                items = _remaining(self.api_name, batches, self.done)
                if self.done:
                    bar(self.done, self.history.values[self.done - 1])
                while self.goes_on():
                    batch = None if items is None else next(items, _NO_BATCH)
                    limit = 1 if items is not None else self.num_allowed(callback_every)
                    ended = batch is _NO_BATCH
                    taken = 0 if ended else self.advance(steps, limit, batch)
                    if not taken:
                        self.status = "exhausted"
                        break
                    bar(taken, self.history.values[self.done - 1])
                    self.end_by_itself()
                    if callback_every is None or self.done % callback_every == 0:
                        self.run_callback()
                    self.save_if_due(opened)
            opened.save(self.done, self.tree(), now=True)
        return self.result(ended=True)

    def goes_on(self) -> bool:
        """Return whether to take another step."""
        num_steps = self.limits.num_steps
        if self.status not in _GOING_ON or (
            num_steps is not None and self.done >= num_steps
        ):
            return False
        if self.has_room is not None and not self.has_room(*self.position[:2]):
            self.status = "max_values"
        return self.status in _GOING_ON

    def num_allowed(self, callback_every: int | None) -> int:
        """Return how many steps may be taken until something else is due."""
        limit = self.limits.next_check(self.done) - self.done
        if self.limits.num_steps is not None:
            limit = self.limits.num_steps - self.done
        if callback_every is not None:
            limit = min(limit, callback_every - self.done % callback_every)
        return int(limit)

    def advance(self, steps: Callable[..., Any], limit: int, batch: Any) -> int:
        """Make one call and return the number of steps taken."""
        num = min(limit, self.max_steps)
        begun = time.perf_counter()
        self.position, *seen = steps(self.position, num, batch)
        records, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - begun
        if self.is_compiled:  # The first call includes compilation.
            wanted = min(loop.SECONDS_PER_CALL, max(self.seconds_left(), 0.0))
            fitting = int(num * wanted / max(seconds, 1e-6))
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
            self.status = self.stopped_status()
        return int(taken)

    def seconds_left(self) -> float:
        """Return the time left, infinity without `max_seconds`."""
        if self.limits.max_seconds is None:
            return math.inf
        return self.limits.max_seconds - (time.perf_counter() - self.begun)

    def stopped_status(self) -> str:
        """Return the status of a run that its last value ended."""
        target, value = self.limits.target, self.history.values[self.done - 1]
        return "stopped" if target is None or not value <= target else "target"

    def end_by_itself(self) -> None:
        """End a run without `num_steps` whose values no longer fall."""
        if self.status != "running":
            return
        values, auto = self.history.values[: self.done], self.restarts()
        size = limits.num_elements(self.position.arrays)
        if (
            limits.has_converged(values, self.num_used(), size)
            if auto is None
            else limits.is_check(self.done) and auto.search.num_idle >= limits.IDLE
        ):
            self.status = "converged"

    def restarts(self) -> ZoAutoState | None:
        """Return the state of a `zo_auto` whose values are exact, else None.

        It goes far up in a wide search, but only in search of lower values.
        """
        auto = _auto_state(self.position.state)
        if auto is None or auto.noise.within or np.isinf(auto.search.best_value):
            return None
        return auto if int(auto.regime) in (EXACT, WIDE) else None

    def num_used(self) -> int:
        """Return the function values of this run."""
        return (
            int(self.history.num_values[self.done - 1]) - self.used if self.done else 0
        )

    def write_history(self, start: int, records: loop.Record) -> None:
        """Write the records of the steps from `start` on to the history."""
        end = start + len(records.values)
        if end > self.history.values.size:
            # Twice the size, so that the copies cost no more than the history.
            self.history = jax.tree.map(
                lambda x: np.append(x[:start], np.zeros(2 * end - start, x.dtype)),
                self.history,
            )
        self.history.values[start:end] = records.values
        self.history.num_values[start:end] = records.num_values

    def run_callback(self) -> None:
        """Call the callback; only a returned True has an effect."""
        answer = None if self.callback is None else self.callback(self.result())
        if isinstance(answer, bool | np.bool_ | jax.Array) and answer:
            self.status = "stopped"

    def save_if_due(self, opened: checkpointing.Checkpoints) -> None:
        """Save a checkpoint if one is due; handle Ctrl-C and the end of the time.

        Processes that share a run must take the same number of steps in a call.
        """
        opened.save(self.done, self.tree())
        inputs = self.max_steps, opened.interrupted(), self.seconds_left() <= 0
        numbers, interrupted, late = replicas.of_all_processes(*inputs).T
        self.max_steps = int(np.min(numbers))
        if np.any(interrupted) and self.status in _GOING_ON:
            self.status = "interrupted"
        all_taken = self.done == self.limits.num_steps
        if np.any(late) and self.status in _GOING_ON and not all_taken:
            self.status = "max_seconds"

    def point(self) -> tuple[core.Params, Any]:
        return self.rest.join(self.position.arrays), self.position.state

    def result(self, *, ended: bool = False) -> MinimizeResult:
        # Copies, since the next call donates these buffers.
        arrays, state, best = partition.copy(self.position)
        history = jax.tree.map(lambda x: x[: self.done].copy(), self.history)
        values, num_values = history.values, history.num_values
        status, used = self.status if ended else "running", self.num_used()
        with_restarts = self.restarts() is not None
        judged = np.fmin.accumulate(values) if with_restarts else values
        diverged = ended and limits.has_diverged(judged, self.with_batches)
        message = limits.describe(
            *(self.limits, status, values, used),
            diverged=diverged,
            restarts=with_restarts,
            is_tuned=_auto_state(state) is None,
        )
        status = self.status
        if diverged and status in limits.DIVERGED_IF:
            status = "diverged"
        finite = values[np.isfinite(values)]
        lowest = float(np.min(finite)) if finite.size else math.nan
        return MinimizeResult(
            *(self.rest.join(arrays), state, values, num_values, self.done),
            *(status, message, lowest),
            best_params=None if best is None else self.rest.join(best.arrays),
        )

    def tree(self) -> dict[str, Any]:
        """Return the tree to save; the checkpoint is numbered by its steps."""
        arrays, state, best = self.position
        tree = {
            "params": self.rest.join(arrays),
            "state": state,
            "history": jax.tree.map(lambda x: x[: self.done], self.history),
            "stopped": self.status in ("stopped", "target"),
            "run": self.identity,
        }
        return tree if best is None else tree | {"best": best}

    def resume(self, opened: checkpointing.Checkpoints) -> None:
        """Restore the latest checkpoint, if any."""
        if opened.folder:
            run = file.header_of(self.api_name, *self.point(), self.bounds)
            self.identity = {
                "key": str(run.key_data),
                "optimizer": run.state.hex(),
                "start": f"{run.first} {run.start.hex()}",
                "bounds": run.bounds.hex(),
            }
        done, tree = opened.restore(self.tree())
        num_steps = self.limits.num_steps
        if num_steps is not None and done > num_steps:
            rule = f"be at least {done}, the steps that the run has taken"
            got = f"{num_steps} for the run in {opened.folder!r}"
            hint = "It is the total, including steps of earlier calls: ask for more, "
            hint += "or start in another folder."
            validation.fail(self.api_name, "num_steps", rule, got, hint)
        other = [name for name, x in self.identity.items() if tree["run"][name] != x]
        if other:
            got = f"{opened.folder!r}, a run that differs in {' and '.join(other)}"
            hint = "Start in another folder."
            validation.fail(self.api_name, "checkpoints", "hold this run", got, hint)
        arrays = partition.split(tree["params"])[0]
        self.position = loop.Position(arrays, tree["state"], tree.get("best"))
        self.write_history(0, tree["history"])
        self.done = done
        if tree["stopped"]:
            self.status = self.stopped_status()
        self.end_by_itself()


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


def _auto_state(state: Any) -> ZoAutoState | None:
    """Return the state of a `zo_auto`, or None for another optimizer."""
    found = combinators.find_estimator_state("minimize", state).estimator
    return found if isinstance(found, ZoAutoState) else None


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
_BEST = "It keeps the parameters with the lowest value; None decides by the optimizer "
_BEST += "and `num_steps`."
validation.declare(validation.instance, "keep_best", optional=True, of=bool, hint=_BEST)
validation.declare(
    validation.integer, "callback_every", optional=True, minimum=1, hint=_EVERY
)
