"""A pool of workers that evaluates a function that JAX cannot trace.

`scheduler` starts and repeats the calls; `worker` makes one call in a worker.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from radazo import core, partition, validation
from radazo.journal import record
from radazo.optimizers import combinators
from radazo.pool import executors, scheduler, worker
from radazo.run import ask_tell, loop, progress_bar, results

_API_NAME = executors.API_NAME
_MINIMIZE = "EvaluationPool.minimize"


class EvaluationPool(NamedTuple):
    """An open pool, made by `evaluation_pool`.

    Attributes:
      evaluate: `evaluate(queries) -> values` maps an iterable of (id, point) to an
        iterator of (id, value) in order of arrival. A query without an answer after all
        repetitions has the value NaN. If the budget ends, so does the iterator.
      minimize: `minimize(params, optimizer, num_steps, *, state=None, bounds=None,
        callback=None, checkpoints=None)` is `radazo.minimize` with values of the pool.
        A query that failed drops its direction. `callback` is called after each step. A
        step begins only if the budget allows a call for each query; if repetitions use
        up the budget, the step is discarded and the status is "exhausted". Raises
        ValueError if no call of the first step returns a value.
      stats: `stats() -> PoolStats` returns the counts so far.
    """

    evaluate: Callable[[Iterable[tuple[Any, core.Params]]], Iterator[tuple[Any, float]]]
    minimize: Callable[..., results.MinimizeResult]
    stats: Callable[[], scheduler.PoolStats]


def evaluation_pool(
    value_fn: Callable[[core.Params], Any],
    executor: futures.Executor | Callable[[], futures.Executor],
    *,
    max_concurrent: int,
    timeout: float | None = None,
    max_retries: int = 2,
    backoff: float = 0.1,
    budget: int | None = None,
    cache: bool | int = True,
    progress: bool | None = None,
) -> AbstractContextManager[EvaluationPool]:
    """Open a pool of workers that evaluate a function of plain Python.

    `value_fn` takes a pytree of NumPy arrays and returns a number, e.g.

      lambda x: float(subprocess.check_output(["./simulate", *map(str, x)]))
      lambda x: requests.post(url, json=x.tolist(), timeout=9).json()["value"]

    A call without an answer (it raised, timed out, or its worker was killed) is
    repeated up to `max_retries` times, after `backoff`, 2 · `backoff`, 4 · `backoff`,
    ... seconds. An answer is final; if it is not a real number, the value is NaN.

    `executor` is any `concurrent.futures.Executor`, or a function that makes one:

      ThreadPoolExecutor                                    threads
      partial(ProcessPoolExecutor, 1, mp_context=context)   processes
      dask.distributed.Client(...).get_executor             a cluster

    With a function, each simultaneous call has its own executor (one worker is enough),
    which is replaced if the call hangs or its worker is killed. An executor is shared
    by all calls, needs `max_concurrent` workers and stays open; a `ProcessPoolExecutor`
    breaks as a whole if one worker is killed, which raises an error.

    Do not fork processes from one in which JAX runs threads; they may hang. Use
    `context = get_context("spawn")`, or "forkserver" with
    `context.set_forkserver_preload(["radazo"])`, which starts faster. Functions that
    are sent to processes must be importable by name.

    A time-out kills a process made by the pool. Threads and workers of a cluster cannot
    be killed: the call continues, is counted, and its result is ignored. It occupies
    its place in a shared executor until it ends. Python waits for threads at exit:
    give a function that may hang forever a time-out of its own, or use processes.

    Args:
      value_fn: `value_fn(point) -> number`.
      executor: An executor, or a function that makes one.
      max_concurrent: Maximum number of simultaneous calls, and of points held.
      timeout: Maximum duration of a call in seconds, measured from its start in threads
        and processes, from its submission elsewhere; None for no limit.
      max_retries: Maximum number of repetitions of a call without an answer.
      backoff: Seconds before the first repetition, doubled for each further one.
      budget: Maximum number of calls, including repetitions; None for no limit.
      cache: Whether points with equal bytes share a call and its value: True, or the
        number of values to keep. False for random functions.
      progress: Whether to show a bar of calls, as in `radazo.minimize`.
    Returns:
      A context manager that gives an `EvaluationPool`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
      RuntimeError: From `evaluate`, if executors break before a call begins, or if a
        shared executor breaks or is full of hanging calls. Values that have arrived are
        returned before, and the stats stay exact.
    Cost:
      One call for each query, except duplicates, and one for each repetition.
    Example:
      >>> threads = futures.ThreadPoolExecutor
      >>> queries = [(i, np.full(2, i)) for i in (1, 2, 2)]
      >>> with evaluation_pool(np.sum, threads, max_concurrent=2) as pool:
      ...     values = dict(pool.evaluate(queries))
      >>> print(sorted(values.items()), pool.stats().calls)
      [(1, 2.0), (2, 4.0)] 2
      >>> value_fn = lambda x: np.sum((x - 1) ** 2)
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> with evaluation_pool(value_fn, threads, max_concurrent=2) as pool:
      ...     result = pool.minimize(np.zeros(5, np.float32), optimizer, 300)
      >>> print(result.num_steps, result.values[-1] < 0.01, pool.stats().calls)
      300 True 3300
    """
    validation.check(_API_NAME, value_fn=value_fn)
    hint = "It is the number of simultaneous calls: at most one for each worker."
    validation.integer(_API_NAME, "max_concurrent", max_concurrent, 1, hint)
    if timeout is not None:
        hint = "It is in seconds; None sets no limit."
        validation.positive(_API_NAME, "timeout", timeout, hint)
    validation.integer(_API_NAME, "max_retries", max_retries, 0, "0 repeats no call.")
    hint = "It is the first pause in seconds."
    validation.non_negative(_API_NAME, "backoff", backoff, hint)
    if budget is not None:
        hint = "None sets no limit to the calls."
        validation.integer(_API_NAME, "budget", budget, 0, hint)
    if not isinstance(cache, bool):
        hint = "True keeps all values, False none."
        validation.integer(_API_NAME, "cache", cache, 1, hint)
    if progress is not None:
        hint = "None shows a bar on a terminal if tqdm is installed."
        validation.instance(_API_NAME, "progress", progress, bool, hint)
    options = scheduler.Options(
        value_fn,
        executors.executors(executor),
        max_concurrent,
        math.inf if timeout is None else timeout,
        max_retries,
        backoff,
        math.inf if budget is None else budget,
        cache,
    )
    return _open(options, budget, progress)


@contextmanager
def _open(
    options: scheduler.Options, budget: int | None, progress: bool | None
) -> Iterator[EvaluationPool]:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        progress_bar.progress_bar(_API_NAME, progress, budget) as bar,
    ):
        path = Path(folder) / "marks"
        path.touch()
        calls = scheduler.scheduler(options, str(path), bar)
        try:
            yield EvaluationPool(
                functools.partial(_evaluate, calls),
                functools.partial(_minimize, calls),
                calls.stats,
            )
        finally:
            calls.close()


def _evaluate(
    calls: scheduler.Scheduler, queries: Iterable[tuple[Any, core.Params]]
) -> Iterator[tuple[Any, float]]:
    hint = "Pass a list, or a generator that makes one point at a time."
    validation.instance("EvaluationPool.evaluate", "queries", queries, Iterable, hint)
    return calls.run(iter(queries))


def _minimize(
    calls: scheduler.Scheduler,
    params: core.Params,
    optimizer: optax.GradientTransformationExtraArgs,
    num_steps: int,
    *,
    state: Any = None,
    bounds: tuple[Any, Any] | None = None,
    callback: Callable[[results.MinimizeResult], Any] | None = None,
    checkpoints: Any = None,
) -> results.MinimizeResult:
    """`EvaluationPool.minimize`."""
    hint = "Pass an optimizer, e.g. `radazo.radazo(0.01, key=0)`."
    validation.transformation(_MINIMIZE, optimizer, hint)
    run = results.start_run(
        _MINIMIZE, params, optimizer, num_steps, state, bounds, callback
    )
    steps = functools.partial(_step, calls, optimizer, run.rest, run.box)
    return run.take_steps(steps, checkpoints)


def _step(
    calls: scheduler.Scheduler,
    optimizer: optax.GradientTransformation,
    rest: partition.Static,
    box: record.Box,
    arrays: list[Any],
    state: Any,
    *_: Any,
) -> Any:
    """Take a step of `loop.compiled_steps` with values of the pool, or no step."""
    params = rest.join(arrays)
    queries = ask_tell.ask(optimizer, params, state)
    is_paid = calls.num_left() >= len(queries.ids)
    points = ((id_, _point(queries, id_)) for id_ in queries.ids)
    values = dict(calls.run(points)) if is_paid else {}
    if len(values) < len(queries.ids):
        return arrays, state, loop.Record(np.zeros(0), np.zeros(0)), 0, False
    stats = calls.stats()
    if not stats.values:
        rule = "return a value in the first step"
        got = f"none in {stats.calls} calls; the last: {stats.last_failure}"[:400]
        hint = "Call it once with the parameters to see why."
        validation.fail(_MINIMIZE, "value_fn", rule, got, hint)
    params, state = ask_tell.tell(optimizer, params, state, values)
    counters = combinators.find_estimator_state(_MINIMIZE, state)
    new = loop.Record(counters.last_value[None], counters.num_values[None])
    return box(partition.split(params)[0]), state, new, 1, False


def _point(queries: ask_tell.Queries, id_: tuple[int, int]) -> Any:
    """Return the point of a query, with its function if that is not the pool's."""
    function, point = queries.function(id_), queries.point(id_)
    return point if function is None else worker.OtherFunction(function, point)
