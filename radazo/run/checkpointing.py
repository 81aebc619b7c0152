"""A run kept on disk, to go on from after whatever ended it.

orbax writes a checkpoint beside those that are there and renames it when it is whole,
so that one is never half there: a run that is killed while it writes goes on from the
checkpoint before. Arrays are kept by orbax, everything else as JSON: nothing that is
read back is run.
"""

import contextlib
import importlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from radazo import locks, random, validation
from radazo.run import progress_bar, serialization

_FORMAT = 1
# What orbax and tensorstore raise where a file cannot be read or written.
_FAILURES = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError)
_READABLE = "have checkpoints that can be read"
_REMOVE = (
    "Those before it are as they were: remove this one, and the run goes on from the "
    "last of them."
)
_WRITABLE = "be a folder that can be written"
_MAKE_ROOM = (
    "What is kept there is as it was: make room, or see to the rights, and start the "
    "run again; it goes on from the last checkpoint."
)


class Checkpoints(NamedTuple):
    """A folder of checkpoints, open for one run.

    Attributes:
      folder: Where they are.
      restore: `restore(tree) -> (step, tree)`: the latest one and the step of it; 0 and
        the tree given if there is none. `tree` is what the run starts from: what is
        kept must have the same leaves, by name, type and shape. A NumPy array with a
        first axis of length 0 stands for one of any length, a history.
      save: `save(step, tree, *, now=False)`: keep the tree after this many steps, if it
        is time to, or `now`, or a signal has come. It returns as soon as the arrays are
        copied, and writes them while the run goes on; after a signal it waits.
      interrupted: `interrupted() -> bool`: whether a signal has come and `save` has
        been called since, so that the run can end.
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
    """Checkpoints for a training loop of your own; `minimize` has them built in.

    Within the `with` block the first Ctrl-C, and SIGTERM, which is what a machine gets
    before it is taken away, end nothing: the next `save` keeps where the run is and
    `interrupted()` is true from then on. A second Ctrl-C is raised at once. A run that
    is killed goes on from its last checkpoint bit for bit, if a step depends on nothing
    but the tree and the number of the step.

    One folder is for one run. What of another run shows in the tree is refused; another
    function, other data and other constants of the optimizer do not show. Leaves are
    arrays, typed keys, numbers and strings; functions are taken from the tree given.

    Args:
      folder: Where to keep them; made if it is missing.
      interval_seconds: Seconds between two checkpoints, at least; 0 keeps each.
      max_to_keep: Checkpoints to keep, the latest ones, at least 1.
    Returns:
      A context manager that gives `Checkpoints`. It ends when all is written.
    Raises:
      TypeError: If an argument, or a leaf of a tree, is of the wrong kind.
      ValueError: If orbax is missing, the folder or a checkpoint cannot be written or
        read, or is open in another run, what is kept is of another run or another
        version, or `step` goes back.
    Cost:
      No function values; while a checkpoint is written, one copy of the tree on the
      host. A run of several processes cannot be kept yet.
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
    hint = "It is the time between two checkpoints; 0 keeps each."
    validation.non_negative(api_name, "interval_seconds", interval_seconds, hint)
    hint = "The latest ones are kept."
    validation.integer(api_name, "max_to_keep", max_to_keep, 1, hint)
    orbax = _orbax(api_name)
    path = _made(api_name, folder)
    with (
        _locked(api_name, path),
        progress_bar.deferred_signals(signal.SIGINT, signal.SIGTERM) as signalled,
    ):
        store = _Store(orbax, path, interval_seconds, max_to_keep)
        store.signalled = signalled
        try:
            yield Checkpoints(
                store.folder, store.restore, store.save, lambda: store.interrupted
            )
            store.finish()
        finally:
            # What failed has been said, and is not to hide what ended the block.
            with contextlib.suppress(*_FAILURES):
                store.manager.close()


@contextlib.contextmanager
def _no_checkpoints() -> Iterator[Checkpoints]:
    """Nothing is kept; Ctrl-C is noted all the same."""
    with progress_bar.deferred_signals(signal.SIGINT) as signalled:
        yield Checkpoints("", lambda tree: (0, tree), lambda *_, **__: None, signalled)


def opened(
    api_name: str, checkpoints: Any
) -> contextlib.AbstractContextManager[Checkpoints]:
    """The checkpoints of the run: none, the caller's, or those of a folder."""
    if checkpoints is None:
        return _no_checkpoints()
    if isinstance(checkpoints, Checkpoints):
        return contextlib.nullcontext(checkpoints)
    if not isinstance(checkpoints, str | os.PathLike):
        validation.fail(
            api_name,
            "checkpoints",
            "be a folder or `Checkpoints`",
            repr(checkpoints)[:200],
            "For another interval, pass `radazo.run.open_checkpoints(...)`.",
            TypeError,
        )
    return open_checkpoints(checkpoints)


class _Store:
    """The mutable part: orbax's manager, and when it was last asked to save."""

    def __init__(
        self, orbax: Any, folder: str, interval_seconds: float, max_to_keep: int
    ) -> None:
        self.orbax, self.folder, self.interval = orbax, folder, interval_seconds
        options = orbax.CheckpointManagerOptions(
            step_prefix="step",  # A folder named `3` of somebody else's is none.
            preservation_policy=orbax.checkpoint_managers.LatestN(max_to_keep),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # A spoiled file is met in `restore`.
        )
        with _explained(folder, _WRITABLE, _MAKE_ROOM):
            self.manager = orbax.CheckpointManager(folder, options=options)
        self.signalled: Callable[[], bool] = bool
        self.latest: int | None = self.manager.latest_step()
        self.interrupted, self.saved_at = False, time.monotonic()

    def restore(self, tree: Any) -> tuple[int, Any]:
        self.finish()
        step, args = self.latest, self.orbax.args
        if step is None:
            return 0, tree
        path = str(Path(self.folder) / f"step_{step}")
        with _explained(path, _READABLE, _REMOVE):
            wanted = args.Composite(about=args.JsonRestore())
            about = self.manager.restore(step, args=wanted).about
            versions = (about["format"], about["key_contract"])
        _check_versions(path, versions)
        with _explained(path, _READABLE, _REMOVE):
            kept = [serialization.Leaf(*entry) for entry in about["leaves"]]
        serialization.check(path, kept, tree)
        with _explained(path, _READABLE, _REMOVE):
            templates = serialization.templates(tree, kept)
            wanted = args.Composite(arrays=args.StandardRestore(templates))
            arrays = self.manager.restore(step, args=wanted).arrays
            return step, serialization.unpacked(tree, kept, arrays, about["plain"])

    def save(self, step: int, tree: Any, *, now: bool = False) -> None:
        hint = "It is the number of steps that the run has taken."
        validation.integer("save", "step", step, 0, hint)
        signalled = self.signalled()
        due = time.monotonic() - self.saved_at >= self.interval
        if due or now or signalled:
            self._write(step, tree)
            self.saved_at = time.monotonic()
        if signalled:
            self.finish()
            self.interrupted = True

    def _write(self, step: int, tree: Any) -> None:
        if step == self.latest:
            return
        if self.latest is not None and step < self.latest:
            validation.fail(
                "save",
                "step",
                f"be at least {self.latest}, the step of the latest checkpoint",
                repr(step),
                "Start from what `restore` gives, or in a folder of its own: "
                f"{self.folder!r} has a run in it.",
            )
        leaves = serialization.described("save", tree)
        arrays, plain = serialization.packed(tree)
        about = {
            "format": _FORMAT,
            "key_contract": random.KEY_CONTRACT_VERSION,
            "leaves": leaves,
            "plain": plain,
        }
        args = self.orbax.args
        wanted = args.Composite(
            arrays=args.StandardSave(arrays), about=args.JsonSave(about)
        )
        with _explained(self.folder, _WRITABLE, _MAKE_ROOM):
            self.manager.save(int(step), args=wanted)
        self.latest = int(step)

    def finish(self) -> None:
        """All is written, or it is said why not."""
        with _explained(self.folder, _WRITABLE, _MAKE_ROOM):
            self.manager.wait_until_finished()


def _check_versions(path: str, versions: tuple[Any, Any]) -> None:
    """Another format could not be read; other keys would draw other directions."""
    known = (_FORMAT, random.KEY_CONTRACT_VERSION)
    if versions != known:
        validation.fail(
            "open_checkpoints",
            "folder",
            f"have checkpoints of format {known[0]} and key contract {known[1]}",
            f"{path!r} of format {versions[0]!r} and key contract {versions[1]!r}",
            "Go on with the version of radazo that wrote it, or start in a new folder.",
        )


@contextlib.contextmanager
def _explained(got: str, rule: str, hint: str) -> Iterator[None]:
    """Say what a failure of orbax means for the run."""
    try:
        yield
    except _FAILURES as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        text = reason[0] if len(reason[0]) <= 160 else "..." + reason[0][-160:]
        got = f"{got!r}, with {type(error).__name__}: {text}"
        validation.fail("open_checkpoints", "folder", rule, got, hint)


def _made(api_name: str, folder: Any) -> str:
    """The folder's full path; it is there and can be written."""
    if not isinstance(folder, str | os.PathLike) or "://" in os.fspath(folder):
        hint = "It is made where it is missing; a bucket has to be mounted."
        rule = "be a path on this machine"
        validation.fail(api_name, "folder", rule, repr(folder), hint, TypeError)
    if jax.process_count() > 1:
        validation.fail(
            api_name,
            "folder",
            "be given in a run of one process",
            f"{jax.process_count()} processes",
            "They would have to agree on when to save.",
        )
    path = Path(folder).resolve()
    with _explained(str(path), _WRITABLE, _MAKE_ROOM):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return str(path)


@contextlib.contextmanager
def _locked(api_name: str, path: str) -> Iterator[None]:
    """Two runs would delete each other's checkpoints."""
    with contextlib.ExitStack() as held:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # Windows opens no folder.
            yield
            return
        held.callback(os.close, handle)
        if locks.is_taken(handle):
            validation.fail(
                api_name,
                "folder",
                "be written by one run at a time",
                f"{path!r}, in which another is open",
                "Wait until it has ended, or take another folder.",
            )
        yield


def _orbax(api_name: str) -> Any:
    """orbax, which only those need who keep checkpoints."""
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        validation.fail(
            api_name,
            "folder",
            "be None or absent without orbax",
            f"{type(error).__name__}: {error}",
            "Install it: `pip install 'radazo[checkpoints]'`.",
        )
