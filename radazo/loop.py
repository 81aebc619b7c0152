"""A whole run in one call: compiled steps, bounds, history, progress, Ctrl-C.

The steps run compiled, many to a call; between calls Python looks at the clock, the
callback and the keyboard. How many steps a call takes adapts to how long they last and
changes no number.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import base, checks, forms

_MAX_STEPS_PER_CALL = 1024
_SECONDS_PER_CALL = 0.2


class MinimizeResult(NamedTuple):
    """What a run reached.

    Attributes:
      params: The parameters reached, like those given.
      state: The optimizer's state; give it to `minimize` to go on.
      values: (num_steps,) NumPy array, the value that each step's estimate returned:
        for `forward` that of the parameters before the step.
      num_values: (num_steps,) NumPy array, function values taken up to each step.
      num_steps: Steps taken in this call.
      status: "finished", "stopped" (by `stop` or the callback), "exhausted" (no batch
        left) or "interrupted" (Ctrl-C).
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
) -> MinimizeResult:
    """Minimize a function by its values: the loop around `optimizer.update`.

      updates, state = optimizer.update(None, state, x, value_fn=value_fn)
      x ← clip(x + updates, lower, upper)

    Ctrl-C ends the run after the steps under way and returns what was reached; a second
    Ctrl-C is raised at once. The given `params` and `state` are left as they are.

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
        A dict is passed to `value_fn` as keywords, anything else as its second argument.
      bounds: `(lower, upper)`, each a number or a pytree like `params`: the box in which
        parameters are kept, from the start on. Points compared may lie outside of it,
        by `smoothing` times a direction.
      stop: `stop(value, params) -> bool`, compiled into the steps. Where it holds for a
        value and the parameters before the step, the run ends with those parameters.
      callback: Called with the result so far, about five times a second or every
        `callback_every` steps. The run ends if it returns True.
      callback_every: Steps between two calls of `callback`.
      progress: Whether to show a progress bar (needs tqdm); None shows it on a
        terminal where tqdm is installed.
    Returns:
      A `MinimizeResult`.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If `num_steps` is negative, or `bounds` do not fit `params` or are the
        wrong way round, or the optimizer has no estimator in it.
    Cost:
      That of the optimizer, times `num_steps`; one copy of the parameters.
    Example:
      >>> result = minimize(
      ...     lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(5), radazo.radazo(0.02, key=0), 300
      ... )
      >>> print(result.num_steps, result.num_values[-1], result.values[-1] < 0.01)
      300 3300 True
    """
    where = "minimize"
    _check(where, value_fn, optimizer, num_steps, batches, stop, callback)
    if callback_every is not None:
        way_out = "It is the number of steps between two calls of `callback`."
        checks.integer(where, "callback_every", callback_every, 1, way_out)
    split = _split(params)
    box = None if bounds is None else _box(where, params, bounds)
    arrays = [jnp.array(x, dtype=x.dtype) for x in split.arrays]
    arrays = arrays if box is None else box(arrays)
    state = optimizer.init(split.join(arrays)) if state is None else _copy(state)
    _counters(where, state)
    by_step = callable(batches)
    steps = _compiled_steps(
        value_fn, optimizer, split, batches if by_step else None, box, stop
    )
    run = _Run(split, arrays, state, num_steps)
    items = None if by_step or batches is None else iter(batches)
    with _deferred_interrupt() as interrupted, _bar(where, progress, num_steps) as bar:
        while run.done < num_steps and run.status == "finished":
            batch = None if items is None else next(items, _NO_BATCH)
            if batch is _NO_BATCH:
                run.status = "exhausted"
                break
            limit = num_steps - run.done if items is None else 1
            if callback_every is not None:
                limit = min(limit, callback_every - run.done % callback_every)
            bar(*run.advance(steps, limit, batch))
            if interrupted():
                run.status = "interrupted"
            due = callback_every is None or run.done % callback_every == 0
            if callback is not None and due and callback(run.result()) is True:
                run.status = "stopped"
    return run.result()


_NO_BATCH = object()


class _Run:
    """The mutable part of a run: where it stands between two calls."""

    def __init__(
        self, split: "_Split", arrays: list[jax.Array], state: Any, num_steps: int
    ) -> None:
        self.split, self.arrays, self.state = split, arrays, state
        self.values = np.zeros(num_steps, np.dtype(jnp.result_type(float)))
        self.num_values = np.zeros(num_steps, np.int64)
        self.done, self.status = 0, "finished"
        self.pace, self.compiled = 1, False

    def advance(self, steps: Any, limit: int, batch: Any) -> tuple[int, float]:
        """One call: the steps taken in it and the last value seen."""
        num = min(limit, self.pace)
        started = time.perf_counter()
        self.arrays, self.state, seen = steps(self.arrays, self.state, num, batch)
        values, num_values, taken, stopped = jax.device_get(seen)
        seconds = time.perf_counter() - started
        if self.compiled:  # The first call compiles: its time says nothing.
            fitting = int(num * _SECONDS_PER_CALL / max(seconds, 1e-6))
            self.pace = max(1, min(fitting, 8 * num, _MAX_STEPS_PER_CALL))
        self.compiled = True
        span = slice(self.done, self.done + int(taken))
        self.values[span] = values[:taken]
        self.num_values[span] = num_values[:taken]
        self.done += int(taken)
        if stopped:
            self.status = "stopped"
        return int(taken), float(self.values[self.done - 1])

    def result(self) -> MinimizeResult:
        # Copies: the next call takes the buffers of this one.
        return MinimizeResult(
            self.split.join(_copy(self.arrays)),
            _copy(self.state),
            self.values[: self.done].copy(),
            self.num_values[: self.done].copy(),
            self.done,
            self.status,
        )


class _Split(NamedTuple):
    """Parameters as arrays, which are compiled in, and Python numbers, which stay."""

    treedef: Any
    is_array: list[bool]
    leaves: list[Any]

    @property
    def arrays(self) -> list[Any]:
        return self.pick(self.leaves)

    def pick(self, leaves: list[Any]) -> list[Any]:
        return [x for x, array in zip(leaves, self.is_array, strict=True) if array]

    def join(self, arrays: list[Any]) -> base.Params:
        rest = iter(arrays)
        both = zip(self.leaves, self.is_array, strict=True)
        return self.treedef.unflatten(next(rest) if array else x for x, array in both)


def _split(params: base.Params) -> _Split:
    leaves, treedef = jax.tree.flatten(params)
    is_array = [isinstance(x, jax.Array | np.ndarray | np.generic) for x in leaves]
    return _Split(treedef, is_array, leaves)


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _counters(where: str, state: Any) -> forms.WithEstimatorState:
    """The state of the estimator within the optimizer's."""

    def found(node: Any) -> bool:
        return isinstance(node, forms.WithEstimatorState)

    nodes = [node for node in jax.tree.leaves(state, is_leaf=found) if found(node)]
    if len(nodes) != 1:
        checks.fail(
            where,
            "optimizer",
            "have one estimator in it",
            f"one whose state has {len(nodes)}",
            "Take `radazo.radazo(...)`, or "
            "`radazo.with_estimator(estimator, optimizer, key)`.",
        )
    return nodes[0]


def _compiled_steps(
    value_fn: base.ValueFn,
    optimizer: optax.GradientTransformationExtraArgs,
    split: _Split,
    batch_of_step: Callable[[jax.Array], Any] | None,
    box: Callable[[list[jax.Array]], list[jax.Array]] | None,
    stop: Callable[[jax.Array, base.Params], Any] | None,
) -> Callable[..., Any]:
    """`steps(arrays, state, num, batch) -> (arrays, state, seen)`, compiled once."""

    def value_of(params: base.Params, batch: Any) -> Any:
        if batch is None:
            return value_fn(params)
        return value_fn(params, **batch) if isinstance(batch, dict) else value_fn(params, batch)

    def moved(arrays: list[jax.Array], updates: base.Params) -> list[jax.Array]:
        changes = split.pick(split.treedef.flatten_up_to(updates))
        arrays = optax.apply_updates(arrays, changes)
        return arrays if box is None else box(arrays)

    @jax.jit(donate_argnums=(0, 1))
    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        def step(carry: Any) -> Any:
            arrays, state, values, num_values, i, _ = carry
            params = split.join(arrays)
            count = _counters("minimize", state).count
            now = batch if batch_of_step is None else batch_of_step(count)
            updates, state = optimizer.update(
                None, state, params, value_fn=value_of, batch=now
            )
            counters = _counters("minimize", state)
            ended = jnp.asarray(False)
            if stop is not None:
                ended = jnp.asarray(stop(counters.last_value, params), bool)
            arrays = [
                jnp.where(ended, old, new)
                for old, new in zip(arrays, moved(arrays, updates), strict=True)
            ]
            values = values.at[i].set(counters.last_value)
            num_values = num_values.at[i].set(counters.num_values)
            return arrays, state, values, num_values, i + 1, ended

        zeros = jnp.zeros(_MAX_STEPS_PER_CALL, jnp.result_type(float))
        counts = jnp.zeros(_MAX_STEPS_PER_CALL, jnp.int32)
        start = (arrays, state, zeros, counts, jnp.int32(0), jnp.asarray(False))
        arrays, state, *seen = lax.while_loop(
            lambda carry: (carry[4] < num) & ~carry[5], step, start
        )
        return arrays, state, seen

    return steps


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
    if not isinstance(optimizer, optax.GradientTransformation):
        checks.fail(
            where,
            "optimizer",
            "be an optax.GradientTransformation",
            repr(optimizer),
            "Pass `radazo.radazo(0.01, key=0)`, say.",
            TypeError,
        )
    checks.integer(where, "num_steps", num_steps, 0, "It is the number of steps.")
    if not (batches is None or callable(batches) or isinstance(batches, Iterable)):
        checks.fail(
            where,
            "batches",
            "be a function of the step or an iterable",
            repr(batches),
            "It gives what `value_fn` takes beside the parameters, step by step.",
            TypeError,
        )
    if stop is not None:
        way_out = "It is called as `stop(value, params)` in the compiled steps."
        checks.function(where, "stop", stop, way_out)
    if callback is not None:
        way_out = "It is called with the `MinimizeResult` so far."
        checks.function(where, "callback", callback, way_out)


def _box(
    where: str, params: base.Params, bounds: Any
) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """The projection of a list of arrays on the box, checked against `params`."""
    split = _split(params)
    if not (isinstance(bounds, tuple) and len(bounds) == 2):
        checks.fail(
            where,
            "bounds",
            "be a pair (lower, upper)",
            repr(bounds),
            "Either may be a number or a pytree like `params`; use inf for no bound.",
            TypeError,
        )

    def side(bound: Any) -> list[np.ndarray]:
        if isinstance(bound, int | float):
            return [np.full((), bound)] * len(split.arrays)
        leaves, treedef = jax.tree.flatten(bound)
        full = [np.asarray(x, np.float64) for x in leaves]
        fits = treedef == split.treedef and all(
            b.shape in ((), np.shape(x)) for b, x in zip(full, split.leaves, strict=True)
        )
        if not fits:
            checks.fail(
                where,
                "bounds",
                "have the structure and the shapes of `params`, or be numbers",
                f"{treedef} for {split.treedef}",
                "A leaf of a bound may also be a scalar.",
            )
        return split.pick(full)

    lower, upper = side(bounds[0]), side(bounds[1])
    if not all(np.all(low <= up) for low, up in zip(lower, upper, strict=True)):
        checks.fail(
            where,
            "bounds",
            "have lower ≤ upper everywhere",
            f"{bounds!r}"[:200],
            "Give them as (lower, upper), without NaN.",
        )

    def clip(x: jax.Array, low: np.ndarray, up: np.ndarray) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return optax.projections.projection_box(
            x, jnp.asarray(low, x.dtype), jnp.asarray(up, x.dtype)
        )

    return lambda arrays: [
        clip(x, low, up) for x, low, up in zip(arrays, lower, upper, strict=True)
    ]


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C and let the steps under way end; raise the second."""
    seen = []

    def note(number: int, frame: Any) -> None:
        if seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Only the main thread is interrupted.
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(
    where: str, progress: bool | None, num_steps: int
) -> Iterator[Callable[[int, float], None]]:
    """A progress bar as `bar(steps, value)`; without tqdm only if not asked for."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        tqdm = None
    if progress and tqdm is None:
        checks.fail(
            where,
            "progress",
            "be None or False without tqdm",
            "True",
            "Install tqdm: `pip install tqdm`.",
        )
    if progress is False or tqdm is None:
        yield lambda steps, value: None
        return
    # disable=None hides the bar where the output is no terminal.
    with tqdm(total=num_steps, disable=None if progress is None else False) as bar:

        def advance(steps: int, value: float) -> None:
            bar.set_postfix_str(f"value {value:.6g}", refresh=False)
            bar.update(steps)

        yield advance
