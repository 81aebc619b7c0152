"""A pool of workers that evaluates a function that JAX cannot trace.

It runs in the caller's thread, one pass at a time: take queries while there is room,
start calls, wait, collect. A worker knows only the point of one query, so a worker that
dies loses only its call.
"""

import collections
import dataclasses
import functools
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from radazo import core, partition, validation
from radazo.optimizers import combinators
from radazo.pool import executors, worker
from radazo.run import ask_tell, limits, loop, progress_bar
from radazo.run.minimize import MinimizeResult, start_run

_API_NAME = executors.API_NAME
_EVALUATE = "EvaluationPool.evaluate"
_MINIMIZE = "EvaluationPool.minimize"
_POLL = 0.02  # Seconds between checks of whether a call has begun.
_MAX_FALSE_STARTS = 3
_END = object()
_UNANSWERED = "exceptions", "timeouts", "lost"

_Value = tuple[Any, float]  # The id of a query and its value.
_Future = futures.Future[worker.Outcome]


class PoolStats(NamedTuple):
    """Exact counts of a pool since it was opened.

      calls = values + invalid + exceptions + timeouts + lost + under_way

    Attributes:
      calls: Calls of the function that have begun, which a paid service would bill.
      values: Calls that returned a real number, including infinity.
      invalid: Calls that returned NaN or no real number.
      exceptions: Calls that raised.
      timeouts: Calls that took longer than `timeout`, even if they end later.
      lost: Calls that had begun when their worker was killed.
      under_way: Calls that have begun and not ended.
      retries: Calls that repeat an earlier one.
      queries: Queries taken.
      cached: Queries that share the call of another query with the same point.
      failed: Queries without an answer after the last repetition.
      last_failure: Why the last call without a value had none, or "".
    """

    calls: int
    values: int
    invalid: int
    exceptions: int
    timeouts: int
    lost: int
    under_way: int
    retries: int
    queries: int
    cached: int
    failed: int
    last_failure: str


class EvaluationPool(NamedTuple):
    """An open pool, made by `evaluation_pool`.

    Attributes:
      evaluate: `evaluate(queries) -> values` maps an iterable of (id, point) to an
        iterator of (id, value) in order of arrival. A query without an answer after all
        repetitions has the value NaN. The iterator ends when the budget is used up.
      minimize: `minimize(params, optimizer, num_steps, *, state=None, bounds=None,
        callback=None, checkpoints=None)` is `radazo.minimize` with values of the pool.
        A query that failed drops its direction. `callback` is called after each step. A
        step begins only if the budget allows a call for each query; if repetitions use
        up the budget, the step is discarded and the status is "exhausted". Raises
        ValueError if no call of the first step returns a value.
      stats: `stats() -> PoolStats` returns the counts so far.
    """

    evaluate: Callable[[Iterable[tuple[Any, core.Params]]], Iterator[tuple[Any, float]]]
    minimize: Callable[..., MinimizeResult]
    stats: Callable[[], PoolStats]


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
    which is replaced if the call hangs or its worker is killed. A given executor is
    shared by all calls, needs `max_concurrent` workers and stays open. A shared
    `ProcessPoolExecutor` breaks if one worker is killed, which raises an error.

    Do not fork a process in which JAX runs threads: the child may hang. Use
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
        returned first, and the stats stay exact.
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
    validation.check(_API_NAME, value_fn=value_fn, max_concurrent=max_concurrent)
    validation.check(_API_NAME, timeout=timeout, max_retries=max_retries)
    validation.check(_API_NAME, backoff=backoff, budget=budget, progress=progress)
    if not isinstance(cache, bool):
        hint = "True keeps all values, False none."
        validation.integer(_API_NAME, "cache", cache, 1, hint)
    return _Pool(
        value_fn,
        executors.executors(executor),
        max_concurrent,
        math.inf if timeout is None else timeout,
        max_retries,
        backoff,
        math.inf if budget is None else budget,
        math.inf if cache is True else cache,
    ).open(budget, progress)


@dataclasses.dataclass(eq=False)
class _Job:
    """A call to make, and the ids of the queries that wait for its value."""

    ids: list[Any]
    value_fn: Callable[[Any], Any]
    point: Any
    digest: bytes | None  # None if the value is not cached.
    tries: int = 0  # Calls without an answer.
    ready_at: float = 0.0  # The earliest time of the next call.


@dataclasses.dataclass(eq=False)
class _Call:
    """A call under way."""

    job: _Job
    mark: worker.Mark
    executor: futures.Executor
    began_at: float | None  # None until the call is known to have begun.


@dataclasses.dataclass(eq=False)
class _Pool:
    """The arguments of `evaluation_pool` and the mutable state of an open pool."""

    value_fn: Callable[[Any], Any]
    workers: executors.Executors
    max_concurrent: int
    timeout: float  # Infinity for no limit, like `num_left` and `cache_size`.
    max_retries: int
    backoff: float
    num_left: float  # Calls that the budget still allows.
    cache_size: float

    def __post_init__(self) -> None:
        self.path = ""  # The file of marks.
        self.advance: Callable[[int, float], None] = lambda *_: None
        self.waiting: collections.deque[_Job] = collections.deque()
        self.under_way: dict[_Future, _Call] = {}
        self.hanging: dict[_Future, float] = {}  # When calls timed out in `shared`.
        self.arrived: collections.deque[_Value] = collections.deque()
        self.cache: dict[bytes, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.numbers = itertools.count()  # Of calls, in the file of marks.
        self.last_failure, self.false_starts = "", 0
        self.state = "free"  # Or "busy" or "closed".
        self.raise_error: Callable[[], object] | None = None

    @contextmanager
    def open(
        self, budget: int | None, progress: bool | None
    ) -> Iterator[EvaluationPool]:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            progress_bar.progress_bar(_API_NAME, progress, budget) as self.advance,
        ):
            path = Path(folder) / "marks"
            path.touch()
            self.path = str(path)
            try:
                yield EvaluationPool(self.evaluate, self.minimize, self.stats)
            finally:
                self.close()

    def evaluate(self, queries: Iterable[tuple[Any, core.Params]]) -> Iterator[_Value]:
        """Implement `EvaluationPool.evaluate`."""
        hint = "Pass a list, or a generator that makes one point at a time."
        validation.instance(_EVALUATE, "queries", queries, Iterable, hint)
        return self._run(iter(queries))

    def minimize(
        self,
        params: core.Params,
        optimizer: optax.GradientTransformationExtraArgs,
        num_steps: int,
        *,
        state: Any = None,
        bounds: tuple[Any, Any] | None = None,
        callback: Callable[[MinimizeResult], Any] | None = None,
        checkpoints: Any = None,
    ) -> MinimizeResult:
        """Implement `EvaluationPool.minimize`."""
        validation.transformation(_MINIMIZE, optimizer, complete=True)
        validation.integer(_MINIMIZE, "num_steps", num_steps, 0, "0 takes no step.")
        given = limits.Limits(num_steps)
        run = start_run(_MINIMIZE, params, optimizer, given, state, bounds, callback)

        def step(position: loop.Position, *_: Any) -> Any:
            """Take a step of `loop.compiled_steps` with values of the pool, or none."""
            params, state = run.rest.join(position.arrays), position.state
            queries = ask_tell.ask(optimizer, params, state)
            num, values = len(queries.ids), {}
            if self.num_left >= num:
                points = ((id_, queries.point(id_)) for id_ in queries.ids)
                values = dict(self._run(points, queries.function))
            if len(values) < num:
                return position, loop.Record(np.zeros(0), np.zeros(0)), 0, False
            stats = self.stats()
            if not stats.values:
                rule = "return a value in the first step"
                got = f"none in {stats.calls} calls; the last: {stats.last_failure}"
                hint = "Call it once with the parameters to see why."
                validation.fail(_MINIMIZE, "value_fn", rule, got[:400], hint)
            params, state = ask_tell.tell(optimizer, params, state, values)
            counters = combinators.find_estimator_state(_MINIMIZE, state)
            new = loop.Record(counters.last_value[None], counters.num_values[None])
            moved = run.box(partition.split(params)[0])
            return loop.Position(moved, state), new, 1, False

        return run.take_steps(step, checkpoints)

    def _run(
        self,
        source: Iterator[tuple[Any, Any]],
        function_of: Callable[[Any], Any] = lambda id_: None,
    ) -> Iterator[_Value]:
        """Yield the values of queries, by `value_fn` or the function of their id."""
        if self.state != "free":
            rule = "be evaluated by an open pool, one iterator at a time"
            got = f"a pool that is {self.state}"
            hint = "Open another pool, or finish the current iterator."
            validation.fail(_EVALUATE, "queries", rule, got, hint, RuntimeError)
        self.state, more = "busy", True
        # Wait one more time-out for hanging calls to end.
        self.hanging = dict.fromkeys(self.hanging, time.monotonic())
        try:
            while True:
                for _ in range(self.max_concurrent):
                    if not (more and self._has_room()):
                        break
                    query = next(source, _END)
                    more = query is not _END
                    if more:
                        self._take(query, function_of)
                    yield from self._pop_arrived()
                self._start()
                can_take = more and self._has_room()
                if not can_take and not self._has_work():
                    break
                self._wait(at_once=can_take)
                self._collect()
                yield from self._pop_arrived()
            if self.raise_error is not None:
                self.raise_error()
        finally:
            self._drop_queries()

    def _pop_arrived(self) -> Iterator[_Value]:
        while self.arrived:
            yield self.arrived.popleft()

    def _take(self, query: Any, function_of: Callable[[Any], Any]) -> None:
        """Answer a query from the cache, or add it to a job."""
        if not (isinstance(query, tuple | list) and len(query) == 2):
            rule = "be an iterable of (id, point)"
            hint = "An id is any object; it is returned with the value."
            validation.fail(_EVALUATE, "queries", rule, repr(query)[:200], hint)
        id_, point = query[0], worker.to_numpy(query[1])
        function = function_of(id_)
        # A value of another function is not cached, since it is needed only once.
        is_cached = self.cache_size and function is None
        digest = worker.digest(point) if is_cached else None
        calls = self.under_way.values()
        jobs = [*self.waiting, *(call.job for call in calls)] if digest else []
        shared = next((job for job in jobs if job.digest == digest), None)
        self.counts["queries"] += 1
        self.counts["cached"] += digest in self.cache or shared is not None
        if digest in self.cache:
            self._remember(digest, self.cache.pop(digest))
            self.arrived.append((id_, self.cache[digest]))
        elif shared is not None:
            shared.ids.append(id_)
        else:
            self.waiting.append(_Job([id_], function or self.value_fn, point, digest))

    def _is_running(self) -> bool:
        return self.state == "busy" and self.raise_error is None

    def _has_room(self) -> bool:
        num_waiting, num_busy = len(self.waiting), len(self.under_way)
        has_place = num_waiting + num_busy < self.max_concurrent
        return self._is_running() and has_place and self.num_left > num_waiting

    def _has_work(self) -> bool:
        if any(call.job.ids for call in self.under_way.values()):
            return True
        can_call = bool(self.under_way) or self.num_left != 0
        return self._is_running() and bool(self.waiting) and can_call

    def _can_start(self) -> bool:
        num_busy = len(self.under_way) + len(self.hanging)
        has_place = num_busy < self.max_concurrent
        return self._is_running() and has_place and self.num_left != 0

    def _is_blocked(self) -> bool:
        """Return whether hanging calls occupy all places of a shared executor."""
        return bool(self.waiting) and len(self.hanging) >= self.max_concurrent

    def _drop_queries(self) -> None:
        """Drop the queries without a value; calls under way continue."""
        self.state = "free" if self.state == "busy" else self.state
        self.raise_error = None
        self.waiting.clear()
        self.arrived.clear()
        for call in self.under_way.values():
            call.job.ids.clear()

    def _start(self) -> None:
        now = time.monotonic()
        for job in [job for job in self.waiting if job.ready_at <= now]:
            if not self._can_start():
                break
            executor = self.workers.acquire()
            mark = worker.Mark(self.path, next(self.numbers))
            try:
                future = executor.submit(worker.call, mark, job.value_fn, job.point)
            except futures.BrokenExecutor as error:  # It broke while idle.
                self.workers.abandon(executor)
                self._note_broken(error)
                continue
            self.waiting.remove(job)
            self.num_left -= 1
            self.counts["retries"] += job.tries > 0
            began_at = None if executors.is_local(executor) else now
            self.under_way[future] = _Call(job, mark, executor, began_at)

    def _wait(self, *, at_once: bool) -> None:
        """Wait until a call ends, times out, or is due to be repeated."""
        now, times = time.monotonic(), [math.inf]
        if self._can_start():
            times += [job.ready_at for job in self.waiting]
        for call in self.under_way.values() if self.timeout < math.inf else ():
            due = now + _POLL if call.began_at is None else call.began_at + self.timeout
            times.append(due)
        if self._is_blocked():
            times.append(max(self.hanging.values()) + self.timeout)
        seconds = 0.0 if at_once else max(0.0, min(times) - now)
        watched = [*self.under_way, *self.hanging]
        if watched:
            limit = None if math.isinf(seconds) else seconds
            futures.wait(watched, limit, futures.FIRST_COMPLETED)
        elif seconds < math.inf:
            time.sleep(seconds)

    def _collect(self) -> None:
        """Handle the calls that have ended or timed out."""
        for future in [future for future in self.under_way if future.done()]:
            self._end(self.under_way.pop(future), future)
        now = time.monotonic()
        for future in list(self.under_way) if self.timeout < math.inf else []:
            call = self.under_way[future]
            if call.began_at is None:
                call.began_at = now if call.mark.process() else None
            elif now >= call.began_at + self.timeout and not future.done():
                self._time_out(self.under_way.pop(future), future)
        self.hanging = {x: since for x, since in self.hanging.items() if not x.done()}
        if self._is_blocked() and now >= max(self.hanging.values()) + self.timeout:
            rule = "be a function that makes executors if calls may hang"
            num = len(self.hanging)
            got = f"an executor with {num} calls that have timed out and do not end"
            hint = f"Pass {executors.PROCESSES}, which can be killed."
            self._fail(rule, got, hint)

    def _end(self, call: _Call, future: _Future) -> None:
        """Handle a call whose future is done."""
        cancelled = futures.CancelledError() if future.cancelled() else None
        error = cancelled or future.exception()
        if error is None or isinstance(error, KeyboardInterrupt):
            self.workers.release(call.executor)
            raised = worker.Outcome("exceptions", failure=repr(error))
            self._record(call.job, future.result() if error is None else raised)
            return
        is_broken = isinstance(error, futures.BrokenExecutor)
        if is_broken:
            executors.await_death(call.executor)
        if executors.is_local(call.executor) and not call.mark.process():
            self.num_left += 1
            self.waiting.appendleft(call.job)
            if is_broken or cancelled:
                self.workers.abandon(call.executor)
                self._note_false_start(error)
            else:
                self.workers.release(call.executor)
                error.add_note(
                    "The call could not be sent to a worker. Its function and point "
                    "are pickled: `value_fn` must be importable by name, not a lambda."
                )
                self.raise_error = future.result
            return
        self.workers.abandon(call.executor)
        if is_broken:
            self._note_broken(error)
        failure = f"{type(error).__name__}: {error}"
        self._record(call.job, worker.Outcome("lost", failure=failure))

    def _time_out(self, call: _Call, future: _Future) -> None:
        process = call.mark.process()
        if not process:
            future.cancel()  # It may not have begun.
        if self.workers.shared is not None:
            self.hanging[future] = time.monotonic()
        self.workers.abandon(call.executor, process)
        failure = f"took longer than {self.timeout} s"
        self._record(call.job, worker.Outcome("timeouts", failure=failure))

    def _note_false_start(self, error: BaseException) -> None:
        """Count a call whose executor broke before it began; fail after several."""
        self.false_starts += 1
        self._note_broken(error)
        if self.raise_error is None and self.false_starts >= _MAX_FALSE_STARTS:
            rule = "make executors whose workers start"
            got = f"{self.false_starts} in a row that broke before a call began"
            hint = "Processes import `value_fn` and the main script: put the script's "
            hint += "code under `if __name__ == '__main__':`."
            self._fail(rule, got, hint)

    def _note_broken(self, error: BaseException) -> None:
        """Fail if the broken executor is the shared one."""
        if self.workers.shared is not None:
            rule = "be a function that makes executors if workers may be killed"
            got = f"an executor that has broken ({type(error).__name__})"
            hint = "Values that had arrived are returned, and calls that had begun are "
            hint += "counted as lost. Evaluate the other queries in a new pool, with "
            self._fail(rule, got, f"{hint}{executors.PROCESSES}.")

    def _fail(self, rule: str, got: str, hint: str) -> None:
        """Raise this error when the calls under way have ended."""
        arguments = _API_NAME, "executor", rule, got, hint, RuntimeError
        self.raise_error = functools.partial(validation.fail, *arguments)

    def _record(self, job: _Job, outcome: worker.Outcome) -> None:
        """Count a call that had begun; answer its queries, or repeat it."""
        self.false_starts = 0
        self.counts[outcome.kind] += 1
        self.last_failure = outcome.failure or self.last_failure
        self.advance(1, outcome.value)
        if outcome.kind == "values" and job.digest is not None:
            self._remember(job.digest, outcome.value)
        if outcome.kind in _UNANSWERED:
            if self.raise_error is not None or not job.ids:
                return
            if job.tries < self.max_retries:
                pause = self.backoff * 2.0 ** min(job.tries, 60)
                job.ready_at = time.monotonic() + pause
                job.tries += 1
                self.waiting.append(job)
                return
            self.counts["failed"] += 1
        self.arrived += [(id_, outcome.value) for id_ in job.ids]

    def _remember(self, digest: bytes, value: float) -> None:
        """Cache a value; evict the least recently used one if the cache is full."""
        self.cache[digest] = value
        if len(self.cache) > self.cache_size:
            del self.cache[next(iter(self.cache))]

    def stats(self) -> PoolStats:
        counts, calls = self.counts.copy(), [*self.under_way.values()]
        counts["under_way"] = sum(call.mark.process() > 0 for call in calls)
        kinds = ("values", "invalid", *_UNANSWERED, "under_way")
        counts["calls"] = sum(counts[kind] for kind in kinds)
        numbers = {name: counts[name] for name in PoolStats._fields[:-1]}
        return PoolStats(**numbers, last_failure=self.last_failure)

    def close(self) -> None:
        """Wait for the calls under way; abandon them if interrupted."""
        self.state = "closed"
        self._drop_queries()
        try:
            while self.under_way:
                self._wait(at_once=False)
                self._collect()
        finally:
            for call in self.under_way.values():
                self.workers.abandon(call.executor, call.mark.process())
            self.workers.close()


_CALLS = "It is the number of simultaneous calls: at most one for each worker."
_BUDGET = "None sets no limit on the number of calls."
_SECONDS = "It is in seconds; None sets no limit."
_REPEAT = "0 repeats no call."
_PAUSE = "It is the first pause in seconds."
validation.declare(validation.integer, "max_concurrent", minimum=1, hint=_CALLS)
validation.declare(validation.positive, "timeout", optional=True, hint=_SECONDS)
validation.declare(validation.integer, "max_retries", minimum=0, hint=_REPEAT)
validation.declare(validation.non_negative, "backoff", hint=_PAUSE)
validation.declare(validation.integer, "budget", optional=True, minimum=0, hint=_BUDGET)
