"""Run an optimizer with bounds, history, progress, Ctrl-C handling and checkpoints.

Each call runs many compiled steps; callbacks, interrupts and checkpoints are handled
between calls. The number of steps per call does not affect the results.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from radazo import core, validation
from radazo.optimizers import stepping
from radazo.run import checkpointing, loop, results


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
    callback: Callable[[results.MinimizeResult], Any] | None = None,
    callback_every: int | None = None,
    progress: bool | None = None,
    checkpoints: str | os.PathLike[str] | checkpointing.Checkpoints | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> results.MinimizeResult:
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
      params: Pytree to start from.
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
    _check(api_name, value_fn, optimizer, batches, stop)
    if callback_every is not None:
        hint = "It is the number of steps between two calls of `callback`."
        validation.integer(api_name, "callback_every", callback_every, 1, hint)
    if progress is not None:
        hint = "None shows a bar on a terminal where tqdm is installed."
        validation.instance(api_name, "progress", progress, bool, hint)
    run = results.start_run(
        api_name, params, optimizer, num_steps, state, bounds, callback
    )

    def value_of(params: core.Params, batch: Any) -> Any:
        return value_fn(params) if batches is None else value_fn(params, batch)

    setup = loop.Setup(value_of, optimizer, run.rest, run.box, batches, stop)
    compiled = loop.compiled_steps if journal is None else loop.recorded_steps
    return run.take_steps(
        compiled(setup),
        checkpoints,
        batches=batches,
        callback_every=callback_every,
        progress=progress,
        journal=journal,
    )


def _check(
    api_name: str, value_fn: Any, optimizer: Any, batches: Any, stop: Any
) -> None:
    validation.check(api_name, value_fn=value_fn)
    stepping.check_optimizer(api_name, optimizer)
    iterable = isinstance(batches, Iterable) and not isinstance(batches, dict)
    if not (batches is None or callable(batches) or iterable):
        rule = "be a function of the step or an iterable"
        hint = "It gives what `value_fn` takes besides the parameters, step by step; "
        hint += "for one fixed batch pass `lambda step: batch`."
        got = repr(batches)[:200]
        validation.fail(api_name, "batches", rule, got, hint, TypeError)
    if stop is not None:
        hint = "It is called as `stop(value, params)` in the compiled steps."
        validation.function(api_name, "stop", stop, hint)
