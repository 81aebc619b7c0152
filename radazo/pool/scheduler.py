"""The loop of a pool: which query is called when, by whom, and what it has cost.

It runs in the thread of its caller, one pass at a time: take queries while there is
room, start calls while there are places, wait, collect. Workers know nothing of a query
but its point, so one that dies takes nothing with it but its call.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

from radazo import validation
from radazo.pool import executors, stats, worker

_POLL_SECONDS = 0.02  # How often to look whether a call has begun.
_MAX_FALSE_STARTS = 3
_END = object()
_ANSWERS = "values", "invalid"
_NO_ANSWERS = "exceptions", "timeouts", "lost"

_Value = tuple[Any, float]  # The id of a query, and its value.


class Options(NamedTuple):
    """The arguments of a pool that its loop reads."""

    max_concurrent: int
    timeout: float | None
    max_retries: int
    backoff: float
    budget: int | None
    cache: bool | int


class Dispatch(NamedTuple):
    """A loop, as the functions that its pool calls."""

    run: Callable[[Iterator[Any]], Iterator[_Value]]
    counts: Callable[[], stats.PoolStats]
    num_left: Callable[[], int | None]
    close: Callable[[], None]


def dispatch(
    value_fn: Callable[[Any], Any],
    crew: executors.Crew,
    options: Options,
    path: str,
    advance: Callable[[int, float], None],
) -> Dispatch:
    """A loop whose calls leave their marks in `path`; `advance` hears of each."""
    loop = _Loop(value_fn, crew, options, path, advance)
    return Dispatch(loop.run, loop.ledger, loop.num_left, loop.close)


@dataclasses.dataclass(eq=False)
class _Job:
    """A point, and the queries that wait for its value."""

    ids: list[Any]
    point: Any
    digest: bytes | None
    tries: int = 0  # Calls without an answer.
    ready_at: float = 0.0  # It is not called before.


@dataclasses.dataclass(eq=False)
class _Call:
    """A call under way."""

    job: _Job
    number: int
    executor: futures.Executor
    began_at: float | None  # None before it is seen to have begun.


class _Loop:
    """All that changes while a pool is open."""

    def __init__(
        self,
        value_fn: Any,
        crew: executors.Crew,
        options: Options,
        path: str,
        advance: Callable[[int, float], None],
    ) -> None:
        self.value_fn, self.crew, self.options = value_fn, crew, options
        self.path, self.advance = path, advance
        self.timeout = math.inf if options.timeout is None else options.timeout
        self.waiting: collections.deque[_Job] = collections.deque()
        self.under_way: dict[futures.Future[worker.Answer], _Call] = {}
        self.held: dict[futures.Future[worker.Answer], float] = {}  # Timed out, and on.
        self.of_point: dict[bytes, _Job] = {}
        self.known: dict[bytes, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.last_failure = ""
        self.next_number = self.false_starts = 0
        self.state = "free"  # Or "busy", or "closed".
        self.trouble: Callable[[], object] | None = None

    # -- A pass over the queries --

    def run(self, source: Iterator[tuple[Any, Any]]) -> Iterator[_Value]:
        if self.state != "free":
            hint = "Open another pool, or finish the iterator that you have."
            rule = "be evaluated by an open pool, one iterator at a time"
            got = f"a pool that is {self.state}"
            validation.fail(
                "EvaluationPool.evaluate", "queries", rule, got, hint, RuntimeError
            )
        self.state, more = "busy", True
        # Each run waits for them anew.
        self.held = dict.fromkeys(self.held, time.monotonic())
        try:
            while True:
                for _ in range(self.options.max_concurrent):
                    query = next(source, _END) if more and self._has_room() else None
                    more = more and query is not _END
                    if query is not None and query is not _END:
                        yield from self._take(query)
                self._start()
                more_now = more and self._has_room()
                if not more_now and not self._is_waited_for():
                    break
                self._wait(at_once=more_now)
                yield from self._collect()
            if self.trouble is not None:
                self.trouble()
        finally:
            self._give_up()

    def _take(self, query: Any) -> list[_Value]:
        """The value of a query if it is known; else a job for it."""
        if not (isinstance(query, tuple | list) and len(query) == 2):
            hint = "The id is anything, and comes back with the value."
            rule = "be an iterable of (id, point)"
            validation.fail(
                "EvaluationPool.evaluate", "queries", rule, repr(query)[:200], hint
            )
        name, point = query[0], worker.plain(query[1])
        digest = worker.digest(point) if self.options.cache else None
        self.counts["queries"] += 1
        if digest in self.known:
            self.counts["cached"] += 1
            self._remember(digest, self.known.pop(digest))
            return [(name, self.known[digest])]
        if digest in self.of_point:
            self.counts["cached"] += 1
            self.of_point[digest].ids.append(name)
            return []
        job = _Job([name], point, digest)
        if digest is not None:
            self.of_point[digest] = job
        self.waiting.append(job)
        return []

    def _has_room(self) -> bool:
        jobs = len(self.waiting) + len(self.under_way)
        has_place, num_left = jobs < self.options.max_concurrent, self.num_left()
        is_paid = num_left is None or num_left > len(self.waiting)
        return self._is_on() and has_place and is_paid

    def _is_on(self) -> bool:
        return self.state == "busy" and self.trouble is None

    def _is_waited_for(self) -> bool:
        if any(call.job.ids for call in self.under_way.values()):
            return True
        can_be_paid = bool(self.under_way) or not self._is_spent()
        return self._is_on() and bool(self.waiting) and can_be_paid

    def _give_up(self) -> None:
        """Queries without a value are forgotten; calls under way go on."""
        self.state = "free" if self.state == "busy" else self.state
        self.trouble = None
        self.waiting.clear()
        for call in self.under_way.values():
            call.job.ids.clear()
        going_on = {call.job for call in self.under_way.values()}
        self.of_point = {x: job for x, job in self.of_point.items() if job in going_on}

    # -- Calls --

    def num_left(self) -> int | None:
        """Calls that may still be begun; None for any number."""
        if self.options.budget is None:
            return None
        past = sum(self.counts[kind] for kind in (*_ANSWERS, *_NO_ANSWERS))
        return self.options.budget - past - len(self.under_way)

    def _is_spent(self) -> bool:
        return self.num_left() == 0

    def _can_start(self) -> bool:
        busy = len(self.under_way) + len(self.held)
        has_place = busy < self.options.max_concurrent
        return self._is_on() and has_place and not self._is_spent()

    def _start(self) -> None:
        now = time.monotonic()
        for job in [job for job in self.waiting if job.ready_at <= now]:
            if not self._can_start():
                break
            executor, number = self.crew.take(), self.next_number
            try:
                future = executor.submit(
                    worker.answer, self.path, number, self.value_fn, job.point
                )
            except futures.BrokenExecutor as error:  # While it was idle.
                self.crew.leave(executor)
                self._break(error)
                continue
            self.waiting.remove(job)
            self.next_number += 1
            self.counts["retries"] += job.tries > 0
            began_at = None if executors.is_local(executor) else now
            self.under_way[future] = _Call(job, number, executor, began_at)

    def _wait(self, *, at_once: bool) -> None:
        """Until a call ends, is to be ended, or is to be repeated."""
        now, end = time.monotonic(), math.inf
        if self._can_start():
            end = min([end, *(job.ready_at for job in self.waiting)])
        if self.timeout < math.inf:
            for began in [call.began_at for call in self.under_way.values()]:
                look_at = now + _POLL_SECONDS if began is None else began + self.timeout
                end = min(end, look_at)
        if self._is_full_of_held():
            end = min(end, max(self.held.values()) + self.timeout)
        seconds = 0.0 if at_once else max(0.0, end - now)
        watched = [*self.under_way, *self.held]
        if watched:
            limit = None if math.isinf(seconds) else seconds
            futures.wait(watched, limit, futures.FIRST_COMPLETED)
        elif math.isfinite(seconds):
            time.sleep(seconds)

    def _collect(self) -> list[_Value]:
        values = []
        for future in [future for future in self.under_way if future.done()]:
            values += self._settle(self.under_way.pop(future), future)
        now = time.monotonic()
        for future in list(self.under_way) if self.timeout < math.inf else []:
            call = self.under_way[future]
            if call.began_at is None:
                call.began_at = now if self._begun_by(call) else None
            elif now >= call.began_at + self.timeout and not future.done():
                values += self._time_out(self.under_way.pop(future), future)
        self.held = {future: x for future, x in self.held.items() if not future.done()}
        if self._is_full_of_held() and now >= max(self.held.values()) + self.timeout:
            fail, api_name = executors.fail_as_stalled, self.crew.api_name
            self.trouble = functools.partial(fail, api_name, len(self.held))
        return values

    def _is_full_of_held(self) -> bool:
        """Whether nothing can be called before calls end that have timed out."""
        return bool(self.waiting) and len(self.held) >= self.options.max_concurrent

    # -- What becomes of a call --

    def _begun_by(self, call: _Call) -> int:
        return worker.begun_by(self.path, call.number)

    def _settle(
        self, call: _Call, future: futures.Future[worker.Answer]
    ) -> list[_Value]:
        """What a call brought that has ended, one way or another."""
        error = _error_of(future)
        if error is None or isinstance(error, KeyboardInterrupt):
            self.crew.give_back(call.executor)
            raised = worker.Answer("exceptions", math.nan, repr(error))
            return self._note(call.job, future.result() if error is None else raised)
        is_broken = isinstance(error, futures.BrokenExecutor)
        if is_broken:
            executors.await_death(call.executor)
        if executors.is_local(call.executor) and not self._begun_by(call):
            self.waiting.appendleft(call.job)
            if is_broken or future.cancelled():
                self._false_start(call.executor, error)
            else:  # It cannot be sent to a worker, and never will.
                self.crew.give_back(call.executor)
                self.trouble = functools.partial(_raise, future, error)
            return []
        self.crew.leave(call.executor)
        if is_broken:
            self._break(error)
        text = f"{type(error).__name__}: {error}"
        return self._note(call.job, worker.Answer("lost", math.nan, text))

    def _time_out(
        self, call: _Call, future: futures.Future[worker.Answer]
    ) -> list[_Value]:
        process = self._begun_by(call)
        if not process:
            future.cancel()  # It may not have begun, and had better not.
        if self.crew.shared is not None:
            self.held[future] = time.monotonic()
        self.crew.leave(call.executor, process)
        text = f"took longer than {self.timeout} s"
        return self._note(call.job, worker.Answer("timeouts", math.nan, text))

    def _false_start(self, executor: futures.Executor, error: BaseException) -> None:
        """An executor broke before its call began."""
        self.crew.leave(executor)
        self.false_starts += 1
        self._break(error)
        if self.trouble is None and self.false_starts >= _MAX_FALSE_STARTS:
            fail, api_name = executors.fail_as_stillborn, self.crew.api_name
            self.trouble = functools.partial(fail, api_name, self.false_starts)

    def _break(self, error: BaseException) -> None:
        """An executor broke: if it was the only one, that is the end."""
        if self.crew.shared is not None:
            fail, cause = executors.fail_as_broken, type(error).__name__
            self.trouble = functools.partial(fail, self.crew.api_name, cause)

    def _note(self, job: _Job, answer: worker.Answer) -> list[_Value]:
        """Count a call that had begun; its value goes to all that wait for it."""
        self.false_starts = 0
        self.counts[answer.kind] += 1
        self.last_failure = answer.text or self.last_failure
        self.advance(1, answer.value)
        if answer.kind in _ANSWERS:
            if answer.kind == "values":
                self._remember(job.digest, answer.value)
            return self._serve(job, answer.value)
        job.tries += 1
        if self.trouble is not None or not job.ids:
            self._serve(job, math.nan)
            return []
        if job.tries > self.options.max_retries:
            self.counts["failed"] += 1
            return self._serve(job, math.nan)
        pause = self.options.backoff * 2.0 ** min(job.tries - 1, 60)
        job.ready_at = time.monotonic() + pause
        self.waiting.append(job)
        return []

    def _serve(self, job: _Job, value: float) -> list[_Value]:
        if job.digest is not None:
            self.of_point.pop(job.digest, None)
        return [(name, value) for name in job.ids]

    def _remember(self, digest: bytes | None, value: float) -> None:
        """Keep a value, in the place of the one that was used longest ago."""
        if digest is not None:
            self.known[digest] = value
            size = self.options.cache
            if size is not True and len(self.known) > size:
                del self.known[next(iter(self.known))]

    # -- The end --

    def ledger(self) -> stats.PoolStats:
        kinds = {kind: self.counts[kind] for kind in (*_ANSWERS, *_NO_ANSWERS)}
        going_on = list(self.under_way.values())
        begun = [call for call in going_on if self._begun_by(call)]
        return stats.PoolStats(
            calls=sum(kinds.values()) + len(begun),
            under_way=len(begun),
            retries=self.counts["retries"],
            queries=self.counts["queries"],
            cached=self.counts["cached"],
            failed=self.counts["failed"],
            last_failure=self.last_failure,
            **kinds,
        )

    def close(self) -> None:
        """Wait for what is under way, or leave it behind at Ctrl-C."""
        self.state = "closed"
        self._give_up()
        try:
            while self.under_way:
                self._wait(at_once=False)
                self._collect()
        finally:
            for call in self.under_way.values():
                self.crew.leave(call.executor, self._begun_by(call))
            self.crew.close()


def _error_of(future: futures.Future[worker.Answer]) -> BaseException | None:
    return futures.CancelledError() if future.cancelled() else future.exception()


def _raise(future: futures.Future[worker.Answer], error: BaseException) -> None:
    """Raise what kept a call from being sent."""
    error.add_note(
        "A call could not be sent to a worker: `value_fn` and the points are pickled "
        "for it, so `value_fn` must be importable by name, and no lambda."
    )
    future.result()
