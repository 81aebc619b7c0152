"""Where the executors of a pool come from, and how they end.

Given a function that makes executors, each call under way has one of its own, which
can be left behind or killed without harm to another call. One that is given as it is
belongs to whoever made it: it is used, and never shut down while it works.
"""

import multiprocessing
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple, NoReturn

from radazo import validation

_LOCAL = futures.ThreadPoolExecutor | futures.ProcessPoolExecutor
_PROCESSES = "`partial(ProcessPoolExecutor, 1, mp_context=get_context('spawn'))`"


class Crew(NamedTuple):
    """Executors to choose from.

    Attributes:
      where: The function that messages are about.
      shared: The executor that was given as it is, or None.
      make: The function that makes one.
      idle: Those that it has made and that have nothing to do.
    """

    api_name: str
    shared: futures.Executor | None
    make: Callable[[], Any]
    idle: list[futures.Executor]

    def take(self) -> futures.Executor:
        """An executor for one call."""
        if self.shared is not None:
            return self.shared
        if self.idle:
            return self.idle.pop()
        made = self.make()
        if not isinstance(made, futures.Executor):
            rule, hint = "make an Executor", f"Pass {_PROCESSES}, say."
            validation.fail(
                self.api_name, "executor", rule, repr(made), hint, TypeError
            )
        return made

    def give_back(self, executor: futures.Executor) -> None:
        """Its call has ended."""
        if self.shared is None:
            self.idle.append(executor)

    def leave(self, executor: futures.Executor, process: int = 0) -> None:
        """Leave an executor behind with its call; kill `process` if it is a child."""
        if self.shared is not None:
            return
        for child in multiprocessing.active_children():
            # On a cluster, the number may be that of a process of another machine.
            if isinstance(executor, _LOCAL) and child.pid == process:
                child.kill()
        executor.shutdown(wait=False)

    def close(self) -> None:
        """Nothing is under way any more."""
        while self.idle:
            self.idle.pop().shutdown()


def crew(api_name: str, executor: Any) -> Crew:
    """Executors of a function that makes them, or the one that is given."""
    if isinstance(executor, futures.Executor):
        return Crew(api_name, executor, lambda: executor, [])
    hint = f"Pass `ThreadPoolExecutor` itself or {_PROCESSES}, say."
    validation.function(api_name, "executor", executor, hint)
    return Crew(api_name, None, executor, [])


def is_local(executor: futures.Executor) -> bool:
    """Whether all of its workers surely see the files of this machine."""
    return isinstance(executor, _LOCAL)


def await_death(executor: futures.Executor) -> None:
    """Wait until no process of a broken executor can begin a call any more."""
    if isinstance(executor, futures.ProcessPoolExecutor):
        executor.shutdown()


def fail_as_broken(api_name: str, cause: str) -> NoReturn:
    """Say that an executor that was given as it is has broken."""
    validation.fail(
        api_name,
        "executor",
        "be a function that makes executors where workers may be killed",
        f"an executor that has broken ({cause})",
        "Values that had come are handed out, and calls that had begun are counted as "
        f"lost. Ask the other queries again in a new pool, with {_PROCESSES}.",
        RuntimeError,
    )


def fail_as_stillborn(api_name: str, num: int) -> NoReturn:
    """Say that executors break before anything begins."""
    validation.fail(
        api_name,
        "executor",
        "make executors whose workers start",
        f"{num} in a row that broke before a call began",
        "Processes import `value_fn` and the main script: it needs "
        "`if __name__ == '__main__':` around what it does.",
        RuntimeError,
    )


def fail_as_stalled(api_name: str, num: int) -> NoReturn:
    """Say that hanging calls have taken all places of an executor."""
    validation.fail(
        api_name,
        "executor",
        "be a function that makes executors where calls may hang",
        f"an executor with {num} calls that have timed out and do not end",
        f"Pass {_PROCESSES}: it can be killed.",
        RuntimeError,
    )
