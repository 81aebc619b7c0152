"""A whole run in one call: bounds, history, progress, Ctrl-C, checkpoints.

The steps run compiled, many to a call; between calls Python looks at the clock, the
callback, the keyboard and the checkpoints. How many steps a call takes adapts to how
long they last and changes no number.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import (
    base,
    checkpointing,
    checks,
    compiled,
    console,
    forms,
    journaling,
    projections,
    replicas,
    trees,
)

_SECONDS_PER_CALL = 0.2


class MinimizeResult(NamedTuple):
    """What a run reached.

    Attributes:
      params: The parameters reached, like those given.
      state: The optimizer's state; give it to `minimize` to go on.
      values: (num_steps,) NumPy array, the value that each step's estimate returned:
        for `forward` that of the parameters before the step.
      num_values: (num_steps,) NumPy array, function values taken up to each step.
      num_steps: Steps taken in this call; with `checkpoints` those of the calls that
        it went on from, too, as are `values` and `num_values`.
      status: "finished", "stopped" (by `stop` or the callback), "exhausted" (no batch
        left) or "interrupted" (Ctrl-C, and SIGTERM with `checkpoints`).
    """

    params: base.Params
    state: Any
    values: np.ndarray
    num_values: np.ndarray
    num_steps: int
    status: str


def minimize(
    value_fn: base.ValueFn,
    params: base.Params,
    optimizer: optax.GradientTransformationExtraArgs,
    num_steps: int,
    *,
    state: Any = None,
    batches: Callable[[jax.Array], Any] | Iterable[Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    stop: Callable[[jax.Array, base.Params], Any] | None = None,
    callback: Callable[[MinimizeResult], Any] | None = None,
    callback_every: int | None = None,
    progress: bool | None = None,
    checkpoints: str | os.PathLike[str] | checkpointing.Checkpoints | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> MinimizeResult:
    """Minimize a function by its values: the loop around `optimizer.update`.

    It runs on the host, not inside of `jit` or `vmap`: for many seeds map a `lax.scan`
    of `optimizer.update`. What it returns is the last point, not the best.

      updates, state = optimizer.update(None, state, x, value_fn=value_fn)
      x ← clip(x + updates, lower, upper)

    Ctrl-C ends the run after the steps under way and returns what was reached; a second
    Ctrl-C is raised at once. The given `params` and `state` are left as they are.

    With `checkpoints` the same call, made again after whatever ended it, goes on from
    the last checkpoint and ends bit for bit as if nothing had happened; that of a run
    that has ended returns at once. SIGTERM then ends it as Ctrl-C does, with what was
    reached on disk: a script that has more to do looks at `status`. `num_steps` is the
    total, and may be larger than it was. Another key, start, structure or type is
    refused; another function, other batches or another learning rate cannot be seen:
    take another folder for another run.

    Args:
      value_fn: `value_fn(params)`, or `value_fn(params, batch)` with `batches`;
        traceable by JAX (wrap others in `jax.pure_callback`).
      params: Pytree to start from.
      optimizer: A complete ZO optimizer, as `radazo`, or any `optax` optimizer with an
        estimator in it.
      num_steps: Steps to take, at least 0.
      state: State to go on from, of an earlier result; None starts anew.
      batches: A function of the step (counted by the optimizer's state, so that a run
        goes on where it was), compiled into the steps; or an iterable, one item a step.
        A batch is a pytree and the second argument of `value_fn`.
      bounds: `(lower, upper)`, each a number or a pytree like `params`: the box in
        which parameters are kept, from the start on. Points compared may lie outside
        of it, by `smoothing` times a direction.
      stop: `stop(value, params) -> bool`, compiled into the steps. Where it holds for a
        value and the parameters before the step, the run ends with those parameters.
      callback: Called with the result so far: every `callback_every` steps, else after
        each compiled call, which is a fraction of a second of steps, or one step of an
        iterable of batches. It gets copies. The run ends if it returns True.
      callback_every: Steps between two calls of `callback`.
      progress: Whether to show a progress bar (needs tqdm); None shows it on a
        terminal where tqdm is installed.
      checkpoints: A folder to keep the run in and to go on from (needs orbax), or an
        open `Checkpoints` of `open_checkpoints`, which sets how often and how many. It
        holds parameters, state, history and position: an iterable of batches is given
        anew, from its first item, and advanced past those that were used.
      journal: A file for the slopes of each step, from which `replay` makes the run
        again without `value_fn`; see `open_journal`. A run goes on with its own, and
        steps that are there already are compared. A step is then two programs, draws
        its directions once more, and may differ in last bits from one without.
    Returns:
      A `MinimizeResult`.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If `num_steps` is negative, or `bounds` do not fit `params` or are the
        wrong way round, or the optimizer has no estimator in it, or `state` is not
        one of this optimizer for these parameters, or `checkpoints` or `journal`
        cannot be written or read, or are of another run, or checkpoints of more steps
        than `num_steps`, or the estimator has no slopes to keep.
    Cost:
      That of the optimizer, times `num_steps`; one copy of the parameters. While a
      checkpoint is written, parameters and state once more on the host.
    Example:
      >>> def value_fn(x):
      ...     return jnp.sum((x - 1) ** 2)
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> result = minimize(value_fn, jnp.zeros(5), optimizer, 300)
      >>> print(result.num_steps, result.num_values[-1], result.values[-1] < 0.01)
      300 3300 True
    """
    where = "minimize"
    _check(where, value_fn, optimizer, num_steps, batches, stop, callback)
    if callback_every is not None:
        way_out = "It is the number of steps between two calls of `callback`."
        checks.integer(where, "callback_every", callback_every, 1, way_out)
    if progress is not None:
        way_out = "None shows a bar on a terminal where tqdm is installed."
        checks.instance(where, "progress", progress, bool, way_out)
    box = None if bounds is None else projections.clipping(where, params, bounds)
    arrays, rest = trees.split(params)
    arrays = trees.copied(arrays) if box is None else box(trees.copied(arrays))
    state = _state(where, optimizer, rest.join(arrays), state)
    make = compiled.compiled_steps if journal is None else compiled.recorded_steps
    steps = make(value_fn, optimizer, rest, batches, box, stop)
    run = _Run(rest, arrays, state, num_steps)
    with checkpointing.opened(where, checkpoints) as kept:
        run.resume(where, kept)
        with (
            journaling.opened(journal, *run.here(), bounds) as run.journal,
            console.progress_bar(where, progress, num_steps) as bar,
        ):
            items = _items(where, batches, run.done)
            if run.done:
                bar(run.done, float(run.history.values[run.done - 1]))
            while run.done < num_steps and run.status == "finished":
                batch = None if items is None else next(items, _NO_BATCH)
                if batch is _NO_BATCH:
                    run.status = "exhausted"
                    break
                limit = num_steps - run.done if items is None else 1
                if callback_every is not None:
                    limit = min(limit, callback_every - run.done % callback_every)
                bar(*run.advance(steps, limit, batch))
                due = callback_every is None or run.done % callback_every == 0
                if callback is not None and due and is_true(callback(run.result())):
                    run.status = "stopped"
                kept.save(run.done, run.tree())
                run.agree(interrupted=kept.interrupted())
        kept.save(run.done, run.tree(), now=True)
    return run.result()


_NO_BATCH = object()


def is_true(answer: Any) -> bool:
    """Whether a callback said True; what it returns besides means nothing."""
    return isinstance(answer, bool | np.bool_ | jax.Array) and bool(answer)


def _items(where: str, batches: Any, done: int) -> Iterator[Any] | None:
    """The batches after those of the steps that were taken."""
    if batches is None or callable(batches):
        return None
    items = iter(batches)
    passed = sum(1 for _ in itertools.islice(items, done))
    if passed < done:
        checks.fail(
            where,
            "batches",
            f"be those of the run from the first on, {done} of which were used",
            f"{passed}",
            "Give a fresh iterable, not an iterator that was used before, or a "
            "function of the step.",
        )
    return items


class _Run:
    """The mutable part of a run: where it stands between two calls."""

    def __init__(
        self, rest: trees.Static, arrays: list[jax.Array], state: Any, num_steps: int
    ) -> None:
        self.rest, self.arrays, self.state = rest, arrays, state
        self.history = compiled.Record(
            values=np.zeros(num_steps, np.dtype(jnp.result_type(float))),
            num_values=np.zeros(num_steps, np.int64),
        )
        self.done, self.status = 0, "finished"
        self.pace, self.compiled = 1, False
        self.journal: journaling.Journal | None = None

    def advance(self, steps: Any, limit: int, batch: Any) -> tuple[int, float]:
        """One call: the steps taken in it and the last value seen."""
        num = min(limit, self.pace)
        started = time.perf_counter()
        self.arrays, self.state, *seen = steps(self.arrays, self.state, num, batch)
        records, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - started
        if self.compiled:  # The first call compiles: its time says nothing.
            fitting = int(num * _SECONDS_PER_CALL / max(seconds, 1e-6))
            self.pace = max(1, min(fitting, 8 * num, compiled.MAX_STEPS_PER_CALL))
        self.compiled = True
        records = jax.tree.map(lambda x: x[:taken], records)
        for all_steps, new in zip(self.history[:2], records[:2], strict=True):
            all_steps[self.done : self.done + int(taken)] = new
        if self.journal is not None:
            # On disk before a checkpoint is, which goes on where the journal ends.
            self.journal.append(records.entry)
            self.journal.sync()
        self.done += int(taken)
        if stopped:
            self.status = "stopped"
        return int(taken), float(self.history.values[self.done - 1])

    def agree(self, *, interrupted: bool) -> None:
        """Processes that share a run must take equally many steps in a call."""
        known = replicas.of_all_processes(self.pace, interrupted)
        self.pace = int(np.min(known[:, 0]))
        if np.any(known[:, 1]) and self.status == "finished":
            self.status = "interrupted"

    def here(self) -> tuple[base.Params, Any]:
        return self.rest.join(self.arrays), self.state

    def result(self) -> MinimizeResult:
        # Copies: the next call takes the buffers of this one.
        return MinimizeResult(
            self.rest.join(trees.copied(self.arrays)),
            trees.copied(self.state),
            self.history.values[: self.done].copy(),
            self.history.num_values[: self.done].copy(),
            self.done,
            self.status,
        )

    def tree(self) -> dict[str, Any]:
        """What a checkpoint keeps; how many steps it has is the number of it."""
        return {
            "params": self.rest.join(self.arrays),
            "state": self.state,
            "history": jax.tree.map(lambda x: x[: self.done], self.history),
            "stopped": self.status == "stopped",
        }

    def resume(self, where: str, kept: checkpointing.Checkpoints) -> None:
        """Stand where the latest checkpoint is, if there is one."""
        done, tree = kept.restore(self.tree())
        if done > self.history.values.size:
            checks.fail(
                where,
                "num_steps",
                f"be at least {done}, the steps that the run has taken",
                f"{self.history.values.size} for the run in {kept.folder!r}",
                "It is the total, and what was before is no longer kept: ask for more, "
                "or start in another folder.",
            )
        start, now = (_of_the_run(state) for state in (self.state, tree["state"]))
        if (start.key, start.count + done) != (now.key, now.count):
            checks.fail(
                where,
                "checkpoints",
                "hold this run",
                f"{kept.folder!r}, where the key is {now.key} and the state has "
                f"{now.count} steps after {done}; this run starts with {start.key} and "
                f"{start.count}",
                "Start in another folder.",
            )
        self.arrays, self.state = trees.split(tree["params"])[0], tree["state"]
        for all_steps, before in zip(
            self.history[:2], tree["history"][:2], strict=True
        ):
            all_steps[:done] = before
        self.done, self.status = done, "stopped" if tree["stopped"] else "finished"


class _Identity(NamedTuple):
    """What tells a run from another with the same shapes."""

    key: list[int]
    count: int


def _of_the_run(state: Any) -> _Identity:
    counters = forms.counters("minimize", state)
    return _Identity(np.asarray(counters.key_data).tolist(), int(counters.count))


def _state(
    where: str, optimizer: optax.GradientTransformation, params: base.Params, state: Any
) -> Any:
    """The state to start from: a new one, or a copy of the one given."""
    if state is None:
        state = optimizer.init(params)
        forms.counters(where, state)
        return trees.copied(state)
    fresh = jax.eval_shape(lambda: optimizer.init(params))
    forms.counters(where, fresh)

    def kinds(tree: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        return treedef, [
            [getattr(x, a, None) for a in ("shape", "dtype")] for x in leaves
        ]

    if kinds(state) != kinds(fresh):
        checks.fail(
            where,
            "state",
            "be a state of `optimizer` for these `params`",
            f"one of another structure or other shapes, {state!r}"[:200],
            "Give the `state` of a result with the same optimizer, or None.",
        )
    return trees.copied(state)


def _check(
    where: str,
    value_fn: Any,
    optimizer: Any,
    num_steps: Any,
    batches: Any,
    stop: Any,
    callback: Any,
) -> None:
    checks.function(where, "value_fn", value_fn, "It takes the parameters first.")
    way_out = "Pass `radazo.radazo(0.01, key=0)`, say."
    kind = optax.GradientTransformation
    checks.instance(where, "optimizer", optimizer, kind, way_out)
    check_steps(where, num_steps, callback)
    iterable = isinstance(batches, Iterable) and not isinstance(batches, dict)
    if not (batches is None or callable(batches) or iterable):
        checks.fail(
            where,
            "batches",
            "be a function of the step or an iterable",
            repr(batches)[:200],
            "It gives what `value_fn` takes beside the parameters, step by step; for "
            "one fixed batch pass `lambda step: batch`.",
            TypeError,
        )
    if stop is not None:
        way_out = "It is called as `stop(value, params)` in the compiled steps."
        checks.function(where, "stop", stop, way_out)


def check_steps(where: str, num_steps: Any, callback: Any) -> None:
    """What every run is told: how many steps, and whom to call between them."""
    checks.integer(where, "num_steps", num_steps, 0, "It is the number of steps.")
    if callback is not None:
        way_out = "It is called with the `MinimizeResult` so far."
        checks.function(where, "callback", callback, way_out)
