"""A whole run in one call: bounds, history, progress, Ctrl-C, checkpoints.

The steps run compiled, many to a call; between calls Python looks at the clock, the
callback, the keyboard and the checkpoints. How many steps a call takes adapts to how
long they last and changes no number.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import optax

from radazo import core, validation
from radazo.journal import file
from radazo.optimizers import stepping
from radazo.optimizers.in_place import InPlace
from radazo.run import checkpointing, loop, progress_bar, results


def minimize(
    value_fn: core.ValueFn,
    params: core.Params,
    optimizer: optax.GradientTransformation | InPlace,
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

    It runs on the host, not inside of `jit` or `vmap`: for many seeds map a `lax.scan`
    of `optimizer.update`. What it returns is the last point, not the best.

      updates, state = optimizer.update(None, state, x, value_fn=value_fn)
      x ← clip(x + updates, lower, upper)

    Ctrl-C ends the run after the steps under way and returns what was reached; a second
    Ctrl-C is raised at once. The given `params` and `state` are left as they are.

    With `checkpoints` the same call, made again after whatever ended it, goes on from
    the last checkpoint, of which there is one a minute, and ends bit for bit as if
    nothing had happened; that of a run that has ended returns at once. SIGTERM then
    ends it as Ctrl-C does, with what was reached on disk: a script that has more to do
    looks at `status`. `num_steps` is the total, and may be larger than it was. Another
    key, start, structure, type, rule or box is refused, and so is a folder in which
    another process keeps a run; another function, other batches or another learning
    rate cannot be seen (unless it is in the state): take another folder for another
    run.

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
    api_name = "minimize"
    _check(api_name, value_fn, optimizer, num_steps, batches, stop, callback)
    if callback_every is not None:
        hint = "It is the number of steps between two calls of `callback`."
        validation.integer(api_name, "callback_every", callback_every, 1, hint)
    if progress is not None:
        hint = "None shows a bar on a terminal where tqdm is installed."
        validation.instance(api_name, "progress", progress, bool, hint)
    run, box = results.started(api_name, params, optimizer, num_steps, state, bounds)
    make = loop.compiled_steps if journal is None else loop.recorded_steps
    steps = make(value_fn, optimizer, run.rest, batches, box, stop)
    with (
        run.kept_in(api_name, checkpoints) as kept,
        file.opened(journal, *run.here(), bounds) as run.journal,
        progress_bar.progress_bar(api_name, progress, num_steps) as bar,
    ):
        items = _items(api_name, batches, run.done)
        if run.done:
            bar(run.done, run.last_value())
        while run.goes_on():
            batch = None if items is None else next(items, _NO_BATCH)
            if batch is _NO_BATCH:
                run.status = "exhausted"
                break
            limit = num_steps - run.done if items is None else 1
            if callback_every is not None:
                limit = min(limit, callback_every - run.done % callback_every)
            bar(run.advance(steps, limit, batch), run.last_value())
            if callback_every is None or run.done % callback_every == 0:
                run.call_back(callback)
            run.keep(kept)
    return run.result()


_NO_BATCH = object()


def _items(api_name: str, batches: Any, done: int) -> Iterator[Any] | None:
    """The batches after those of the steps that were taken."""
    if batches is None or callable(batches):
        return None
    items = iter(batches)
    passed = sum(1 for _ in itertools.islice(items, done))
    if passed < done:
        validation.fail(
            api_name,
            "batches",
            f"be those of the run from the first on, {done} of which were used",
            f"{passed}",
            "Give a fresh iterable, not an iterator that was used before, or a "
            "function of the step.",
        )
    return items


def _check(
    api_name: str,
    value_fn: Any,
    optimizer: Any,
    num_steps: Any,
    batches: Any,
    stop: Any,
    callback: Any,
) -> None:
    validation.function(
        api_name, "value_fn", value_fn, "It takes the parameters first."
    )
    stepping.check_optimizer(api_name, optimizer)
    results.check_steps(api_name, num_steps, callback)
    iterable = isinstance(batches, Iterable) and not isinstance(batches, dict)
    if not (batches is None or callable(batches) or iterable):
        validation.fail(
            api_name,
            "batches",
            "be a function of the step or an iterable",
            repr(batches)[:200],
            "It gives what `value_fn` takes beside the parameters, step by step; for "
            "one fixed batch pass `lambda step: batch`.",
            TypeError,
        )
    if stop is not None:
        hint = "It is called as `stop(value, params)` in the compiled steps."
        validation.function(api_name, "stop", stop, hint)
