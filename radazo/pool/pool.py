"""Values of a function that JAX cannot trace, from workers that may fail.

`evaluation_pool` opens a pool; the loop that keeps it busy is in `dispatch`, the call
as a worker makes it in `calls`.
"""

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from radazo import core, partition, validation
from radazo.optimizers import combinators
from radazo.pool import executors, scheduler, stats
from radazo.run import ask_tell, loop, progress_bar, results

_WHERE = "evaluation_pool"
_RUN = "EvaluationPool.minimize"


class EvaluationPool(NamedTuple):
    """A pool that is open, as `evaluation_pool` gives it.

    Attributes:
      evaluate: `evaluate(queries) -> values`: from an iterable of (id, point) to an
        iterator of (id, value) in any order, NaN for a query that failed for good. At
        most `max_concurrent` points are held. It ends early where the budget does: the
        queries that are left have no value.
      minimize: `minimize(params, optimizer, num_steps, *, state=None, bounds=None,
        callback=None, checkpoints=None)`, a run like `radazo.minimize`: each step asks
        for its points, evaluates them, and tells their values. What failed for good
        drops its direction. The callback is called after each step, and ends the run by
        returning True. A step begins only if the budget has a call for each of its
        queries, and is given up as a whole if repetitions take them: then the status is
        "exhausted". With `checkpoints` the same call goes on after whatever ended it,
        and repeats the calls of one step at most; for the others, set how often it
        saves by `open_checkpoints`. The ledger and the budget are those of the pool. If
        no call gives a value from the start on, there is a ValueError.
      ledger: `ledger() -> PoolStats`, the counts so far.
    """

    evaluate: Callable[[Iterable[tuple[Any, core.Params]]], Iterator[tuple[Any, float]]]
    minimize: Callable[..., results.MinimizeResult]
    ledger: Callable[[], stats.PoolStats]


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
    """A pool of workers that evaluate a function of plain Python.

    The function is anything that takes a pytree of NumPy arrays and returns a number:

      lambda x: float(subprocess.check_output(["./simulate", *map(str, x)]))
      lambda x: requests.post(url, json=x.tolist(), timeout=9).json()["value"]

    A call without an answer (it raised, took too long, or its worker was killed) is
    repeated up to `max_retries` times, after `backoff`, 2 · `backoff`, 4 · `backoff`,
    ... seconds; an answer is final, and where it is no real number the value is NaN.

    Workers come from any executor. Given as a function that makes one, each of the
    `max_concurrent` calls under way has an executor of its own, which is replaced when
    its call hangs or its worker is killed: one worker in each is enough.

      ThreadPoolExecutor                          threads
      partial(ProcessPoolExecutor, 1, mp_context=context)                   processes
      dask.distributed.Client(...).get_executor   a cluster

    Given as an executor (with at least `max_concurrent` workers), it is used as it is,
    and stays open. A process pool of Python breaks as a whole when one worker is
    killed, and then there is an error.

    Processes must not be forked from one in which JAX has threads, or may hang: take
    `context = get_context("spawn")`, or "forkserver", where
    `context.set_forkserver_preload(["radazo"])` has a new one ready at once. What they
    call must be importable by name.

    A time-out of a process worker (made by the pool) kills it. A thread cannot be
    killed, and no more can a worker of a cluster: the call goes on, counts, and what it
    returns is ignored. An executor made by the pool is left behind with it; in an
    executor given as it is, the call keeps its place until it ends. Python waits for
    its threads before it ends, so have a function that may hang for ever time out by
    itself, as above, or run it in processes.

    Nothing is read but what the workers write to a temporary folder, and nothing
    listens on a network (but what an executor of a cluster does).

    Args:
      value_fn: `value_fn(point) -> number`.
      executor: A `concurrent.futures.Executor`, or a function that makes one.
      max_concurrent: Calls under way at once, and points held.
      timeout: Seconds that a call may take from its beginning, where that is seen: in
        threads and processes; else from when it is handed over. None for no limit.
      max_retries: How often a call without an answer is repeated.
      backoff: Seconds before the first repetition, doubled for each further one.
      budget: Calls that may be begun in all, repeated ones and failures included; None
        for no limit.
      cache: Whether queries of the same bytes share one call while it is under way, and
        its value later: True, or the number of values to keep. False for a function
        whose values are random.
      progress: Whether to show a bar of calls (needs tqdm); None shows it on a terminal
        where tqdm is installed.
    Returns:
      A context manager that gives an `EvaluationPool`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
      RuntimeError: From `evaluate`, if executors break before a call begins, or if one
        that was given as it is breaks or has a hanging call in each place. What came
        before is handed out, and the ledger is right.
    Cost:
      One call for each query, but for duplicates and repetitions.
    Example:
      >>> threads = futures.ThreadPoolExecutor
      >>> queries = [(i, np.full(2, i)) for i in (1, 2, 2)]
      >>> with evaluation_pool(np.sum, threads, max_concurrent=2) as pool:
      ...     values = dict(pool.evaluate(queries))
      >>> print(sorted(values.items()), pool.ledger().calls)
      [(1, 2.0), (2, 4.0)] 2
      >>> def value_fn(x):
      ...     return np.sum((x - 1) ** 2)
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> with evaluation_pool(value_fn, threads, max_concurrent=2) as pool:
      ...     result = pool.minimize(np.zeros(5, np.float32), optimizer, 300)
      >>> print(result.num_steps, result.values[-1] < 0.01, pool.ledger().calls)
      300 True 3300
    """
    options = scheduler.Options(
        max_concurrent, timeout, max_retries, backoff, budget, cache
    )
    _check(value_fn, options, progress)
    crew = executors.crew(_WHERE, executor)
    return _opened(value_fn, crew, options, progress)


@contextmanager
def _opened(
    value_fn: Any,
    crew: executors.Crew,
    options: scheduler.Options,
    progress: bool | None,
) -> Iterator[EvaluationPool]:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        progress_bar.progress_bar(_WHERE, progress, options.budget) as bar,
    ):
        path = Path(folder) / "marks"
        path.touch()
        work = scheduler.dispatch(value_fn, crew, options, str(path), bar)
        pool = EvaluationPool(
            functools.partial(_evaluate, work),
            functools.partial(_minimize, work),
            work.counts,
        )
        try:
            yield pool
        finally:
            work.close()


def _evaluate(
    work: scheduler.Dispatch, queries: Iterable[tuple[Any, core.Params]]
) -> Iterator[tuple[Any, float]]:
    hint = "Pass a list, or a generator that makes one point at a time."
    validation.instance("EvaluationPool.evaluate", "queries", queries, Iterable, hint)
    return work.run(iter(queries))


def _minimize(
    work: scheduler.Dispatch,
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
    validation.transformation(
        _RUN, optimizer, "Pass `radazo.radazo(0.01, key=0)`, say."
    )
    results.check_steps(_RUN, num_steps, callback)
    run, box = results.started(_RUN, params, optimizer, num_steps, state, bounds)
    step = functools.partial(_step, work, optimizer, run.rest, box)
    with run.kept_in(_RUN, checkpoints) as kept:
        while run.goes_on():
            if not run.advance(step, 1, None):
                run.status = "exhausted"
                break
            run.call_back(callback)
            run.keep(kept)
    return run.result()


def _step(
    work: scheduler.Dispatch,
    optimizer: optax.GradientTransformation,
    rest: partition.Static,
    box: Callable[[list[Any]], list[Any]] | None,
    arrays: list[Any],
    state: Any,
    num: int,
    batch: Any,
) -> Any:
    """One of `compiled.compiled_steps` with values of the pool; none without them."""
    del num, batch
    params = rest.join(arrays)
    ids, point = ask_tell.ask(optimizer, params, state)
    num_left = work.num_left()
    can_end = num_left is None or num_left >= len(ids)
    values = dict(work.run((id_, point(id_)) for id_ in ids)) if can_end else {}
    if len(values) < len(ids):
        nothing = loop.Record(np.zeros(0), np.zeros(0))
        return arrays, state, nothing, 0, False
    told = np.array([values[id_] for id_ in ids])
    ledger = work.counts()
    if not ledger.values:
        validation.fail(
            _RUN,
            "value_fn",
            "give a value in the first step",
            f"none in {ledger.calls} calls; the last: {ledger.last_failure}"[:400],
            "Call it once yourself with the parameters.",
        )
    params, state = ask_tell.tell(optimizer, params, state, told)
    arrays = partition.split(params)[0]
    seen = combinators.counters(_RUN, state)
    record = loop.Record(seen.last_value[None], seen.num_values[None])
    return arrays if box is None else box(arrays), state, record, 1, False


def _check(value_fn: Any, options: scheduler.Options, progress: Any) -> None:
    hint = "It takes a point, a pytree of NumPy arrays, and returns a number."
    validation.function(_WHERE, "value_fn", value_fn, hint)
    hint = "It is the number of calls under way at once: one for each worker."
    validation.integer(_WHERE, "max_concurrent", options.max_concurrent, 1, hint)
    if options.timeout is not None:
        hint = "It is the seconds that a call may take, or None for no limit."
        validation.positive(_WHERE, "timeout", options.timeout, hint)
    hint = "It is how often a call without an answer is repeated."
    validation.integer(_WHERE, "max_retries", options.max_retries, 0, hint)
    hint = "It is the seconds before a call is repeated, doubled each time."
    validation.non_negative(_WHERE, "backoff", options.backoff, hint)
    if options.budget is not None:
        hint = "It is the number of calls that may be begun, or None for no limit."
        validation.integer(_WHERE, "budget", options.budget, 0, hint)
    if not isinstance(options.cache, bool):
        hint = "True keeps all values, False none, a number as many as it says."
        validation.integer(_WHERE, "cache", options.cache, 1, hint)
    if progress is not None:
        hint = "None shows a bar on a terminal where tqdm is installed."
        validation.instance(_WHERE, "progress", progress, bool, hint)
