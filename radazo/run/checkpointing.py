"""Checkpoints: a run saved to disk, to resume it after any interruption.

orbax writes each checkpoint to a temporary folder and renames it when it is complete.
It stores the arrays; JSON stores the rest. Restoring executes nothing stored.
"""

import contextlib
import functools
import importlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from radazo import locks, random, validation
from radazo.run import serialization

_VERSIONS = {"format": 1, "key_contract": random.KEY_CONTRACT_VERSION}
# What orbax and tensorstore raise when they cannot read or write a file.
_FAILURES = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError)
_refuse = functools.partial(validation.fail, "open_checkpoints", "folder")


class Checkpoints(NamedTuple):
    """A folder of checkpoints, open for one run.

    Attributes:
      folder: The path of the folder.
      restore: `restore(tree) -> (step, tree)`: the latest checkpoint and its step, or 0
        and the given tree if there is none. Names, types and shapes of the leaves must
        match; a NumPy array of length 0, e.g. a history, matches any length.
      save: `save(step, tree, *, now=False)`: save the tree after `step` steps if
        the interval has passed, `now` is True, or a signal came. It returns when the
        arrays are copied and writes them in the background; after a signal it waits.
      interrupted: `interrupted() -> bool`: whether `save` was called after a signal.
    """

    folder: str
    restore: Callable[[Any], tuple[int, Any]]
    save: Callable[..., None]
    interrupted: Callable[[], bool]


@contextlib.contextmanager
def open_checkpoints(
    folder: str | os.PathLike[str],
    *,
    interval_seconds: float = 60.0,
    max_to_keep: int = 2,
) -> Iterator[Checkpoints]:
    """Open checkpoints for your own training loop; `minimize` has them built in.

    Within the `with` block the first SIGINT (Ctrl-C) and SIGTERM do not end the
    process: the next `save` saves the run, and `interrupted()` is true from then on. A
    second Ctrl-C raises KeyboardInterrupt at once. A killed run resumes from its last
    checkpoint bit for bit if a step depends only on the tree and the step number.

    Use one folder for each run. A tree of another run is refused; another function,
    other data or other constants of the optimizer go undetected. Leaves may be arrays,
    typed keys, numbers and strings; functions are taken from the given tree.

    Args:
      folder: Where to save; created if missing.
      interval_seconds: Least number of seconds between checkpoints; 0 saves each step.
      max_to_keep: Number of latest checkpoints to keep, at least 1.
    Returns:
      A context manager that yields `Checkpoints` and waits for writes at the end.
    Raises:
      TypeError, ValueError: If an argument or a leaf of a tree has the wrong type,
        orbax is missing, the folder or a checkpoint cannot be written or read, is open
        in another run, or holds another run or version, or if `step` decreases.
    Cost:
      No function values; one copy of the tree on the host while a checkpoint is
      written. Runs of several processes are not supported.
    Example:
      >>> import tempfile
      >>> def train(folder, num_steps):
      ...     with open_checkpoints(folder) as checkpoints:
      ...         start, x = checkpoints.restore(jnp.zeros(()))
      ...         for step in range(start, num_steps):
      ...             x = 0.5 * x + 1
      ...             checkpoints.save(step + 1, x, now=step + 1 == num_steps)
      ...             if checkpoints.interrupted():
      ...                 break
      ...     return start, float(x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     print(train(folder, 3), train(folder, 4))
      (0, 1.75) (3, 1.875)
    """
    api_name = "open_checkpoints"
    hint = "It is the time between two checkpoints; 0 saves each step."
    validation.non_negative(api_name, "interval_seconds", interval_seconds, hint)
    hint = "The latest checkpoints are kept."
    validation.integer(api_name, "max_to_keep", max_to_keep, 1, hint)
    orbax, signals = _orbax(), (signal.SIGINT, signal.SIGTERM)
    path = _make_folder(folder)
    with contextlib.ExitStack() as stack:
        _lock(path, stack)
        signalled = stack.enter_context(_defer_signals(*signals))
        store = _Store(orbax, path, interval_seconds, max_to_keep, signalled)
        try:
            methods = store.restore, store.save, lambda: store.interrupted
            yield Checkpoints(path, *methods)
            store.finish()
        finally:
            # An error while closing must not replace one of the block.
            with contextlib.suppress(*_FAILURES):
                store.manager.close()


@contextlib.contextmanager
def _defer_signals(*numbers: int) -> Iterator[Callable[[], bool]]:
    """Record signals without acting on them, but raise a second Ctrl-C at once."""
    received = []

    def record(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in received:
            signal.default_int_handler(number, frame)
        received.append(number)

    # Only the main thread handles signals.
    main = threading.current_thread() is threading.main_thread()
    with contextlib.ExitStack() as stack:
        for number in numbers if main else ():
            handler = signal.getsignal(number)
            # Ignored signals stay ignored, as Ctrl-C in a background job.
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, record)
                stack.callback(signal.signal, number, handler)
        yield lambda: bool(received)


@contextlib.contextmanager
def open_or_null(api_name: str, checkpoints: Any) -> Iterator[Checkpoints]:
    """Open a folder, or pass `Checkpoints` on; None saves nothing."""
    if checkpoints is None:
        with _defer_signals(signal.SIGINT) as signalled:
            yield Checkpoints(
                "", lambda tree: (0, tree), lambda *_, **__: None, signalled
            )
    elif isinstance(checkpoints, Checkpoints):
        yield checkpoints
    elif isinstance(checkpoints, str | os.PathLike):
        with open_checkpoints(checkpoints) as opened:
            yield opened
    else:
        rule, got = "be a folder or `Checkpoints`", repr(checkpoints)[:200]
        hint = "For another interval, pass `radazo.run.open_checkpoints(...)`."
        validation.fail(api_name, "checkpoints", rule, got, hint, TypeError)


class _Store:
    """orbax's manager, and the step and time of the latest checkpoint."""

    def __init__(
        self,
        orbax: Any,
        folder: str,
        interval_seconds: float,
        max_to_keep: int,
        signalled: Callable[[], bool],
    ) -> None:
        self.args, self.folder, self.interval = orbax.args, folder, interval_seconds
        self.signalled, self.interrupted = signalled, False
        options = orbax.CheckpointManagerOptions(
            step_prefix="step",  # Unrelated folders such as `3` are left alone.
            preservation_policy=orbax.checkpoint_managers.LatestN(max_to_keep),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # `restore` reports damaged files.
        )
        with _explain_failures(folder):
            self.manager = orbax.CheckpointManager(folder, options=options)
        self.latest: int | None = self.manager.latest_step()
        self.saved_at = time.monotonic()

    def restore(self, tree: Any) -> tuple[int, Any]:
        self.finish()
        step, args = self.latest, self.args
        if step is None:
            return 0, tree
        path = str(Path(self.folder) / f"step_{step}")
        with _explain_failures(path, reading=True):
            wanted = args.Composite(about=args.JsonRestore())
            about = self.manager.restore(step, args=wanted).about
            versions = {name: about[name] for name in _VERSIONS}
            leaves = about["leaves"] if versions == _VERSIONS else []
            saved = [serialization.Leaf(*leaf) for leaf in leaves]
        if versions != _VERSIONS:
            text = "of format {format} and key contract {key_contract}"
            rule = f"have checkpoints {text.format(**_VERSIONS)}"
            hint = "Use the version of radazo that wrote it, or a new folder."
            _refuse(rule, f"{path!r} {text.format(**versions)}", hint)
        serialization.check(path, saved, tree)
        with _explain_failures(path, reading=True):
            templates = serialization.templates(tree, saved)
            wanted = args.Composite(arrays=args.StandardRestore(templates))
            arrays = self.manager.restore(step, args=wanted).arrays
            return step, serialization.unpack(tree, saved, arrays, about["plain"])

    def save(self, step: int, tree: Any, *, now: bool = False) -> None:
        hint = "It is the number of steps that the run has taken."
        validation.integer("save", "step", step, 0, hint)
        signalled = self.signalled()
        due = time.monotonic() - self.saved_at >= self.interval
        if due or now or signalled:
            self.write(int(step), tree)
            self.saved_at = time.monotonic()
        if signalled:
            self.finish()
            self.interrupted = True

    def write(self, step: int, tree: Any) -> None:
        if step == self.latest:
            return
        if self.latest is not None and step < self.latest:
            rule = f"be at least {self.latest}, the step of the latest checkpoint"
            hint = f"Start from `restore` or in another folder than {self.folder!r}."
            validation.fail("save", "step", rule, repr(step), hint)
        leaves = serialization.describe("save", tree)
        arrays, plain = serialization.pack(tree)
        about = _VERSIONS | {"leaves": leaves, "plain": plain}
        wanted = self.args.Composite(
            arrays=self.args.StandardSave(arrays), about=self.args.JsonSave(about)
        )
        with _explain_failures(self.folder):
            self.manager.save(step, args=wanted)
        self.latest = step

    def finish(self) -> None:
        """Wait for writes in the background."""
        with _explain_failures(self.folder):
            self.manager.wait_until_finished()


@contextlib.contextmanager
def _explain_failures(path: str, *, reading: bool = False) -> Iterator[None]:
    """Turn a failure of orbax into a message of radazo."""
    try:
        yield
    except _FAILURES as error:
        rule = "have readable checkpoints" if reading else "be a writable folder"
        remedy = "free space or fix permissions, and start again."
        hint = f"Earlier checkpoints are intact: {remedy}"
        if reading:
            hint = "Remove this checkpoint to resume from the one before it."
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = lines[-1] if len(lines[-1]) <= 160 else "..." + lines[-1][-160:]
        _refuse(rule, f"{path!r}, with {type(error).__name__}: {text}", hint)


def _orbax() -> Any:
    """Import orbax, an optional dependency."""
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        got = f"{type(error).__name__}: {error}"
        hint = "Install it: `pip install 'radazo[checkpoints]'`."
        _refuse("be None or absent without orbax", got, hint)


def _make_folder(folder: Any) -> str:
    """Create the folder if necessary, check that it is writable; return its path."""
    if not isinstance(folder, str | os.PathLike) or "://" in os.fspath(folder):
        hint = "Checkpoints are local files; mount a bucket to write to it."
        _refuse("be a local path", repr(folder), hint, TypeError)
    if jax.process_count() > 1:
        got = f"{jax.process_count()} processes"
        hint = "Several processes cannot save one run yet."
        _refuse("be used in a run of one process", got, hint)
    path = Path(folder).resolve()
    with _explain_failures(str(path)):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return str(path)


def _lock(path: str, stack: contextlib.ExitStack) -> None:
    """Keep other runs, which would delete checkpoints of this one, out of a folder."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder.
        handle = os.open(path, os.O_RDONLY)
        stack.callback(os.close, handle)
        if locks.is_taken(handle):
            got = f"{path!r}, which is open in another run"
            hint = "Wait until that run has ended, or use another folder."
            _refuse("be written by one run at a time", got, hint)
