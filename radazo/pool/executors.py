"""The executors of a pool: made on demand, reused, and abandoned.

With a function that makes executors, each simultaneous call has an executor of its own,
which can be abandoned or killed without harm to other calls. An executor given by the
user is shared by all calls and never shut down.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple

from radazo import validation

API_NAME = "evaluation_pool"
PROCESSES = "`partial(ProcessPoolExecutor, 1, mp_context=get_context('spawn'))`"
_HINT = f"Pass `ThreadPoolExecutor` or {PROCESSES}."


class Executors(NamedTuple):
    """The executor given by the user, or the function that makes executors."""

    shared: Executor | None
    make: Callable[[], Any]
    idle: list[Executor]  # Made and not in use.

    def acquire(self) -> Executor:
        """Return an executor for one call."""
        made = self.idle.pop() if self.idle else self.make()
        if not isinstance(made, Executor):
            rule, got = "make an Executor", repr(made)
            validation.fail(API_NAME, "executor", rule, got, _HINT, TypeError)
        return made

    def release(self, executor: Executor) -> None:
        """Take back an executor whose call has ended."""
        if self.shared is None:
            self.idle.append(executor)

    def abandon(self, executor: Executor, process: int = 0) -> None:
        """Drop an executor with its call; kill `process` if it is a child."""
        if self.shared is not None:
            return
        for child in multiprocessing.active_children():
            # On a cluster, `process` may be the id of a process on another machine.
            if is_local(executor) and child.pid == process:
                child.kill()
        executor.shutdown(wait=False)

    def close(self) -> None:
        """Shut down the idle executors."""
        while self.idle:
            self.idle.pop().shutdown()


def executors(executor: Any) -> Executors:
    """Return the `Executors` of an executor or of a function that makes executors."""
    if isinstance(executor, Executor):
        return Executors(executor, lambda: executor, [])
    validation.function(API_NAME, "executor", executor, _HINT)
    return Executors(None, executor, [])


def is_local(executor: Executor) -> bool:
    """Return whether all workers of `executor` can read the files of this machine."""
    return isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor)


def await_death(executor: Executor) -> None:
    """Wait until no process of a broken executor can begin another call."""
    if isinstance(executor, ProcessPoolExecutor):
        executor.shutdown()
