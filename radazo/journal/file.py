"""A run as a file of its slopes, of which each step can be made again.

A direction is a function of its key, and the key of a step is one of that of the run:
beside the start, what the steps saw along their directions is all there is to know.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from radazo import core, locks, validation
from radazo.journal import file_format, run_id

_WHERE = "open_journal"
_BINARY = getattr(os, "O_BINARY", 0)
_MAKE_ROOM = "What was written is as it was: make room, or see to the rights."
_NO_FOLDER = "The file is made, but not the folder that it is to be in: make it first."
_NEXT = (
    "Append what `radazo.journal.recorded_step` gives, once for each step and in order."
)


class Journal(NamedTuple):
    """A journal that is open for one run.

    Attributes:
      path: Where it is.
      append: `append(entry)`: write the `JournalEntry` of the next step, or of many. A
        process that is killed afterwards loses nothing of it.
      sync: `sync()`: wait until all is on disk, where it outlives the machine.
    """

    path: str
    append: Callable[[file_format.JournalEntry], None]
    sync: Callable[[], None]


def read_journal(path: str | os.PathLike[str]) -> file_format.JournalContents:
    """The slopes and values of a run, as arrays.

    Args:
      path: A file that `open_journal` or `minimize` wrote.
    Returns:
      `JournalContents`.
    Raises:
      TypeError: If `path` is none.
      ValueError: If it cannot be read, is no journal or one of another version, or was
        damaged.
    Cost:
      No function values.
    Example:
      >>> import tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = folder.name + "/run.journal"
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> result = radazo.minimize(jnp.sum, jnp.ones(5), optimizer, 50, journal=path)
      >>> entries = read_journal(path).entries
      >>> print(entries.slopes.shape, (entries.value == result.values).all())
      (50, 10) True
      >>> folder.cleanup()
    """
    api_name = "read_journal"
    file_format.checked_path(api_name, path)
    return file_format.read(api_name, path)


@contextlib.contextmanager
def open_journal(
    path: str | os.PathLike[str],
    params: core.Params,
    state: Any,
    *,
    bounds: tuple[Any, Any] | None = None,
) -> Iterator[Journal]:
    """A journal for a training loop of your own; `minimize` has one built in.

    A record is 15 bytes and 4 for each direction: a fine-tune of 20,000 steps along one
    direction is 380 kB. `replay` makes parameters and state after any step of it, and
    `python -m radazo.journal` shows it and compares two.

    A file that is there is gone on with. Steps that it has already, since the run goes
    on from a checkpoint before its end, are compared with what is appended, and nothing
    is written twice or over: a run that does not repeat itself is refused. Only what a
    process left that died while it wrote is cut off. Processes that share a run have a
    file each.

    Args:
      path: The file.
      params: The parameters before the next step.
      state: The state before it: of `optimizer.init`, a checkpoint, or `replay`.
      bounds: The box in which the loop keeps parameters, as in `minimize`.
    Returns:
      A context manager that gives a `Journal`. It ends when all is on disk.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If the file is no journal, or one of another run or version, damaged,
        in use by another process, or cannot be written; in `append`, if an entry is not
        that of the next step, or not what the file has of it.
    Cost:
      No function values. Parameters and state are read once, and `append` waits for the
      step.
    Example:
      >>> import tempfile
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = folder.name + "/run.journal"
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> value_fn = lambda x: jnp.sum((x - 1) ** 2)
      >>> step = radazo.journal.recorded_step(optimizer, value_fn)
      >>> x, state = jnp.zeros(5), optimizer.init(jnp.zeros(5))
      >>> with open_journal(path, x, state) as journal:
      ...     for _ in range(100):
      ...         x, state, entry = step(x, state)
      ...         journal.append(entry)
      >>> again, state = radazo.journal.replay(path, optimizer, jnp.zeros(5))
      >>> print(jnp.all(again == x), state.num_values)
      True 1100
      >>> folder.cleanup()
    """
    api_name = _WHERE
    file_format.checked_path(api_name, path)
    run = run_id.of(api_name, params, state, bounds)
    with contextlib.closing(_File(os.fspath(path), run)) as file:
        yield Journal(file.path, file.append, file.sync)
        file.sync()


def opened(
    path: Any, params: core.Params, state: Any, bounds: Any
) -> contextlib.AbstractContextManager[Journal | None]:
    """The journal of a run that may have none."""
    if path is None:
        return contextlib.nullcontext()
    return open_journal(path, params, state, bounds=bounds)


class _File:
    """The mutable part: an open file, and where the run stands in it."""

    def __init__(self, path: str, run: run_id.Run) -> None:
        self.path, self.run = path, run
        self.header: file_format.JournalHeader | None = None
        self.count, self.crc = run.count, 0
        self.ahead = memoryview(b"")  # What the file has of the steps to come.
        with _explained(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        self.handle = os.fdopen(handle, "r+b", buffering=0)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.resume()
            on_failure.pop_all()

    def resume(self) -> None:
        """Stand where the run stands, in what the file has."""
        if not stat.S_ISREG(os.fstat(self.handle.fileno()).st_mode):
            _refuse("be a file", repr(self.path), "A journal is read again.")
        self.lock()
        with _explained(self.path):
            data = self.handle.readall()
        if _is_unfinished(data):
            self.cut(0)
            return
        journal = file_format.parsed(_WHERE, self.path, data)
        run_id.check(_WHERE, self.path, journal, self.run)
        self.cut(len(data) - journal.num_trailing_bytes)
        self.header, position = journal.header, self.run.count - journal.header.first
        before, ahead = (
            file_format.JournalEntry(*(x[part] for x in journal.entries))
            for part in (slice(position), slice(position, None))
        )
        _, self.crc = file_format.sealed_header(self.header)
        _, self.crc = file_format.sealed(self.header, before, self.crc)
        self.ahead = memoryview(file_format.sealed(self.header, ahead, self.crc)[0])

    def lock(self) -> None:
        """Nobody else writes: records of two runs would alternate."""
        if locks.is_taken(self.handle):
            got = f"{self.path!r}, which another run is writing"
            _refuse("be a file of this run alone", got, "Take another path.")

    def append(self, entry: file_format.JournalEntry) -> None:
        """Write what is not there yet."""
        entry = self.checked(entry)
        num = len(entry.count)
        if not num:
            return
        head, header, crc = b"", self.header, self.crc
        if header is None:
            header = self.run.header(entry.slopes.shape[1], entry.slopes.itemsize)
            head, crc = file_format.sealed_header(header)
        raw, crc = file_format.sealed(header, entry, crc)
        common = min(len(raw), len(self.ahead))
        if raw[:common] != self.ahead[:common]:
            self.fail_to_repeat(raw, len(raw) // num)
        self.write(head + raw[common:])
        self.ahead = self.ahead[common:]
        self.header, self.crc, self.count = header, crc, self.count + num
        if head:
            self.sync()

    def checked(self, entry: file_format.JournalEntry) -> file_format.JournalEntry:
        """The entry as arrays with an axis of steps: those of the next steps."""
        validation.instance("append", "entry", entry, file_format.JournalEntry, _NEXT)
        count, fingerprint, slopes, value, stopped = (
            np.asarray(x) for x in jax.device_get(entry)
        )
        kinds = [np.float32, np.float64]
        if self.header is not None:
            kinds = [np.dtype(f"f{self.header.float_bytes}")]
            num_directions = self.header.num_directions
        else:
            num_directions = slopes.shape[-1] if slopes.ndim else 1
        shapes = count.shape, (*count.shape, num_directions), count.shape
        if (
            count.ndim > 1
            or (count.shape, slopes.shape, value.shape) != shapes
            or not 1 <= num_directions <= file_format.MAX_DIRECTIONS
            or slopes.dtype not in kinds
            or value.dtype != slopes.dtype
            or (fingerprint.shape, fingerprint.dtype) != (count.shape, np.uint16)
        ):
            names = " or ".join(np.dtype(kind).name for kind in kinds)
            kinds = [f"{x.dtype}{list(x.shape)}" for x in (slopes, value, fingerprint)]
            got = f"slopes, value and fingerprint of {', '.join(kinds)}"
            rule = f"have {num_directions} slopes and a value of a step, in {names}"
            rule = f"{rule}, and a fingerprint in uint16"
            _refuse(rule, got, _NEXT, "append", "entry")
        counts = count.reshape(-1)
        if not np.array_equal(counts, self.count + np.arange(counts.size)):
            got = f"that of step {', '.join(str(x) for x in counts[:3])}"
            _refuse(f"be that of step {self.count}", got, _NEXT, "append", "entry")
        return file_format.JournalEntry(
            counts,
            fingerprint.reshape(-1),
            slopes.reshape(counts.size, num_directions),
            value.reshape(-1),
            np.broadcast_to(stopped, count.shape).reshape(-1),
        )

    def fail_to_repeat(self, raw: bytes, size: int) -> NoReturn:
        starts = range(0, len(raw), size)
        same = (raw[i : i + size] == self.ahead[i : i + size] for i in starts)
        step = self.count + list(same).index(False)
        _refuse(
            f"be what {self.path!r} has of step {step}",
            "another",
            "The run does not repeat itself: with another function, batch or constant "
            "it is another run, for another path; and so it is where a backend does "
            "not give the same bits twice.",
            "append",
            "entry",
        )

    def write(self, data: bytes) -> None:
        """All of it, or nothing."""
        with _explained(self.path):
            start = self.handle.seek(0, os.SEEK_END)
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(self.handle.truncate, start)
                while data:
                    data = data[self.handle.write(data) :]
                on_failure.pop_all()

    def cut(self, size: int) -> None:
        with _explained(self.path):
            self.handle.truncate(size)

    def sync(self) -> None:
        with _explained(self.path):
            os.fsync(self.handle.fileno())

    def close(self) -> None:
        self.handle.close()


def _is_unfinished(data: bytes) -> bool:
    """Whether a process died before the header was there."""
    magic = file_format.MAGIC
    return (
        len(data) < file_format.HEADER_BYTES
        and data[: len(magic)] == magic[: len(data)]
    )


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Say what a failure of the file means for the run."""
    try:
        yield
    except (OSError, ValueError) as error:
        got = f"{path!r}, with {type(error).__name__}: {error}"
        missing = isinstance(error, FileNotFoundError)
        hint = _NO_FOLDER if missing else _MAKE_ROOM
        _refuse("be a file that can be written", got, hint)


def _refuse(
    rule: str, got: str, hint: str, api_name: str = _WHERE, argument: str = "path"
) -> NoReturn:
    validation.fail(api_name, argument, rule, got, hint)
