"""Reading a journal, and appending to the journal of a run."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from radazo import core, locks, validation
from radazo.journal import file_format, run_id

_API = "open_journal"
_BINARY = getattr(os, "O_BINARY", 0)  # Windows.
_NEXT = "Append each entry of `radazo.journal.recorded_step` once, in order."


class Journal(NamedTuple):
    """A journal open for one run.

    Attributes:
      path: The path of the file.
      append: `append(entry)`: write the `JournalEntry` of the next step or steps. They
        survive if the process is killed afterwards.
      sync: `sync()`: flush to disk, so that all entries survive a power failure.
    """

    path: str
    append: Callable[[file_format.JournalEntry], None]
    sync: Callable[[], None]


def read_journal(path: str | os.PathLike[str]) -> file_format.JournalContents:
    """Return the slopes and values of a run as arrays.

    Args:
      path: A file that `open_journal` or `minimize` wrote.
    Returns:
      `JournalContents`.
    Raises:
      TypeError: If `path` is not a local path.
      ValueError: If the file cannot be read, is damaged, or is not a journal of this
        version.
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
    return file_format.read("read_journal", path)


@contextlib.contextmanager
def open_journal(
    path: str | os.PathLike[str],
    params: core.Params,
    state: Any,
    *,
    bounds: tuple[Any, Any] | None = None,
) -> Iterator[Journal]:
    """Open a journal for your own training loop; `minimize` has one built in.

    A record takes 15 + 4K bytes for K directions: 20,000 steps along one direction are
    380 kB. `replay` reconstructs parameters and state after any step.
    `python -m radazo.journal` shows a journal or compares two.

    An existing journal is appended to. If the run resumes from a checkpoint before its
    end, the steps already in the file are compared with the new ones: a run that does
    not repeat itself is refused. Only an incomplete trailing record is truncated. In a
    run of several processes each needs its own file.

    Args:
      path: The file.
      params: The parameters before the next step.
      state: The state before it, from `optimizer.init`, a checkpoint, or `replay`.
      bounds: The bounds on the parameters, as in `minimize`.
    Returns:
      A context manager that yields a `Journal` and flushes it to disk at the end.
    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If the file cannot be written, is damaged, in use by another process,
        or is not a journal of this run and version; in `append`, if an entry is not
        that of the next step or differs from the one in the file.
    Cost:
      No function values. It reads parameters and state once; `append` waits for the
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
    file_format.check_path(_API, path)
    run = run_id.of(_API, params, state, bounds)
    with contextlib.closing(_File(os.fspath(path), run)) as file:
        yield Journal(file.path, file.append, file.sync)
        file.sync()


def opened(
    path: Any, params: core.Params, state: Any, bounds: Any
) -> contextlib.AbstractContextManager[Journal | None]:
    """Open the journal at `path`, or none if it is None."""
    if path is None:
        return contextlib.nullcontext()
    return open_journal(path, params, state, bounds=bounds)


class _File:
    """An open journal and the position of the run in it."""

    def __init__(self, path: str, run: run_id.Run) -> None:
        self.path, self.run, self.count = path, run, run.count
        self.header: file_format.JournalHeader | None = None
        self.last = b""  # The record before the next one, or the header.
        self.ahead = memoryview(b"")  # Records in the file from the next one on.
        with self.explained():
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        self.handle = os.fdopen(handle, "r+b", buffering=0)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.resume()
            on_failure.pop_all()

    def resume(self) -> None:
        """Read the file, truncate an incomplete record, and find the position."""
        if not stat.S_ISREG(os.fstat(self.handle.fileno()).st_mode):
            _refuse("path", "be a regular file", repr(self.path), "Pass another path.")
        if locks.is_taken(self.handle):
            got = f"{self.path!r}, which another run is writing"
            _refuse("path", "be written by one run at a time", got, "Use another path.")
        with self.explained():
            data = self.handle.readall()
        end = file_format.HEADER_BYTES
        if len(data) < end and file_format.MAGIC.startswith(data[:8]):
            self.truncate(0)  # A process ended before it had written the header.
            return
        journal = file_format.parse(_API, self.path, data)
        run_id.check(_API, self.path, journal, self.run)
        data = data[: len(data) - journal.num_trailing_bytes]
        self.truncate(len(data))
        self.header = journal.header
        size = file_format.record_dtype(self.header).itemsize
        end += (self.count - self.header.first) * size
        self.last, self.ahead = data[:end][-size:], memoryview(data[end:])

    def append(self, entry: file_format.JournalEntry) -> None:
        """Write the records that the file does not have yet; compare the others."""
        entry = self.normalize(entry)
        num = len(entry.count)
        if not num:
            return
        head, header = b"", self.header
        if header is None:
            header = self.run.header(entry.slopes.shape[1], entry.slopes.itemsize)
            head = file_format.encode_header(header)
        raw = file_format.encode(header, entry, head or self.last)
        size, common = len(raw) // num, min(len(raw), len(self.ahead))
        if raw[:common] != self.ahead[:common]:
            starts = range(0, common, size)
            same = [raw[i : i + size] == self.ahead[i : i + size] for i in starts]
            _refuse(
                "entry",
                f"repeat step {self.count + same.index(False)} of {self.path!r}",
                "another",
                "The run does not repeat itself: use another path if the function, the "
                "batches or a constant changed. Some backends do not reproduce bits.",
                "append",
            )
        self.write(head + raw[common:])
        self.header, self.count = header, self.count + num
        self.last, self.ahead = raw[-size:], self.ahead[common:]
        if head:
            self.sync()

    def normalize(self, entry: file_format.JournalEntry) -> file_format.JournalEntry:
        """Return the next entry as arrays with a leading axis of steps; check it."""
        validation.instance("append", "entry", entry, file_format.JournalEntry, _NEXT)
        arrays = [np.asarray(x) for x in jax.device_get(entry)]
        if not arrays[0].ndim:
            arrays = [x[None] for x in arrays]
        entry = file_format.JournalEntry(*arrays)
        num, shape, kind = entry.count.size, entry.slopes.shape, entry.slopes.dtype
        num_directions = np.clip((1, *shape)[-1], 1, file_format.MAX_DIRECTIONS)
        if self.header is not None:
            num_directions = self.header.num_directions
            kind = np.dtype(f"f{self.header.float_bytes}")
        elif kind not in (np.float32, np.float64):
            kind = np.dtype(np.float32)
        wanted = [
            f"{kind}[{num}, {num_directions}]",
            f"{kind}[{num}]",
            f"uint16[{num}]",
        ]
        given = (entry.slopes, entry.value, entry.fingerprint)
        given = [f"{x.dtype}{[*x.shape]}" for x in given]
        if given != wanted:
            rule = f"have slopes, value and fingerprint of {', '.join(wanted)}"
            _refuse("entry", rule, ", ".join(given), _NEXT, "append")
        if not np.array_equal(entry.count, self.count + np.arange(num)):
            got = f"that of step {', '.join(map(str, entry.count.ravel()[:3]))}"
            _refuse("entry", f"be that of step {self.count}", got, _NEXT, "append")
        return entry

    def write(self, data: bytes) -> None:
        """Append all of `data` or nothing."""
        with self.explained(), contextlib.ExitStack() as on_failure:
            start = self.handle.seek(0, os.SEEK_END)
            on_failure.callback(self.handle.truncate, start)
            while data:
                data = data[self.handle.write(data) :]
            on_failure.pop_all()

    def truncate(self, size: int) -> None:
        with self.explained():
            self.handle.truncate(size)

    def sync(self) -> None:
        with self.explained():
            os.fsync(self.handle.fileno())

    def close(self) -> None:
        self.handle.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a failure of the file system into a message of radazo."""
        try:
            yield
        except (OSError, ValueError) as error:
            got = f"{self.path!r}, with {type(error).__name__}: {error}"
            hint = "Records already written are intact: free space or fix permissions."
            if isinstance(error, FileNotFoundError):
                hint = "The file is created, but not its folder: create it first."
            _refuse("path", "be a writable file", got, hint)


def _refuse(
    argument: str, rule: str, got: str, hint: str, api_name: str = _API
) -> NoReturn:
    validation.fail(api_name, argument, rule, got, hint)
