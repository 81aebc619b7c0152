"""A whole run in one call: compiled steps, bounds, history, progress, Ctrl-C.

The steps run compiled, many to a call; between calls Python looks at the clock, the
callback and the keyboard. How many steps a call takes adapts to how long they last and
changes no number.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import base, checks, console, forms, projections, trees

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

    It runs on the host, not inside of `jit` or `vmap`: for many seeds map a `lax.scan`
    of `optimizer.update`. What it returns is the last point, not the best.

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
    Returns:
      A `MinimizeResult`.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If `num_steps` is negative, or `bounds` do not fit `params` or are the
        wrong way round, or the optimizer has no estimator in it, or `state` is not
        one of this optimizer for these parameters.
    Cost:
      That of the optimizer, times `num_steps`; one copy of the parameters.
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
    arrays = _copy(arrays) if box is None else box(_copy(arrays))
    state = _state(where, optimizer, rest.join(arrays), state)
    steps = _compiled_steps(value_fn, optimizer, rest, batches, box, stop)
    run = _Run(rest, arrays, state, num_steps)
    items = None if callable(batches) or batches is None else iter(batches)
    with (
        console.deferred_interrupt() as interrupted,
        console.progress_bar(where, progress, num_steps) as bar,
    ):
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
            if callback is not None and due and _is_true(callback(run.result())):
                run.status = "stopped"
            if interrupted():
                run.status = "interrupted"
    return run.result()


_NO_BATCH = object()


def _is_true(answer: Any) -> bool:
    """Whether a callback said True; what it returns besides means nothing."""
    return isinstance(answer, bool | np.bool_ | jax.Array) and bool(answer)


class _Run:
    """The mutable part of a run: where it stands between two calls."""

    def __init__(
        self, rest: trees.Static, arrays: list[jax.Array], state: Any, num_steps: int
    ) -> None:
        self.rest, self.arrays, self.state = rest, arrays, state
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
            self.rest.join(_copy(self.arrays)),
            _copy(self.state),
            self.values[: self.done].copy(),
            self.num_values[: self.done].copy(),
            self.done,
            self.status,
        )


def _copy(tree: Any) -> Any:
    """Arrays of their own, which a compiled call may take, and no weak types."""

    def copy(leaf: Any) -> jax.Array:
        leaf = jnp.array(leaf, copy=True)
        return lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(copy, tree)


def _state(
    where: str, optimizer: optax.GradientTransformation, params: base.Params, state: Any
) -> Any:
    """The state to start from: a new one, or a copy of the one given."""
    if state is None:
        state = optimizer.init(params)
        _counters(where, state)
        return _copy(state)
    fresh = jax.eval_shape(lambda: optimizer.init(params))
    _counters(where, fresh)

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
    return _copy(state)


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
    optimizer: Any,
    rest: trees.Static,
    batches: Any,
    box: Callable[[list[jax.Array]], list[jax.Array]] | None,
    stop: Callable[[jax.Array, base.Params], Any] | None,
) -> Callable[..., Any]:
    """`steps(arrays, state, num, batch) -> (arrays, state, seen)`, compiled once."""

    def value_of(params: base.Params, batch: Any) -> Any:
        if batches is None:
            return value_fn(params)
        return value_fn(params, batch)

    def moved(arrays: list[jax.Array], updates: base.Params, ended: Any) -> list[Any]:
        changes = rest.pick(rest.treedef.flatten_up_to(updates))
        changed = base.moved(changes, arrays)
        return [
            jnp.where(ended, x, new) if base.is_floating(x) else x
            for x, new in zip(
                arrays, changed if box is None else box(changed), strict=True
            )
        ]

    @jax.jit(donate_argnums=(0, 1))
    def steps(arrays: list[jax.Array], state: Any, num: int, batch: Any) -> Any:
        def step(carry: Any) -> Any:
            arrays, state, values, num_values, i, _ = carry
            params = rest.join(arrays)
            count = _counters("minimize", state).count
            now = batches(count) if callable(batches) else batch
            updates, state = optimizer.update(
                None, state, params, value_fn=value_of, batch=now
            )
            counters = _counters("minimize", state)
            ended = jnp.asarray(False)
            if stop is not None:
                ended = _answer(stop(counters.last_value, params))
            arrays = moved(arrays, updates, ended)
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


def _answer(answer: Any) -> jax.Array:
    if jnp.shape(answer) != () or jnp.result_type(answer) != jnp.bool_:
        checks.fail(
            "minimize",
            "stop",
            "return one bool",
            f"shape {jnp.shape(answer)} of type {jnp.result_type(answer)}",
            "Take `jnp.all` or `jnp.any` of an array.",
            TypeError,
        )
    return jnp.asarray(answer)


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
    checks.instance(
        where,
        "optimizer",
        optimizer,
        optax.GradientTransformation,
        "Pass `radazo.radazo(0.01, key=0)`, say.",
    )
    checks.integer(where, "num_steps", num_steps, 0, "It is the number of steps.")
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
    if callback is not None:
        way_out = "It is called with the `MinimizeResult` so far."
        checks.function(where, "callback", callback, way_out)
