"""Reading a journal, and appending to the journal of a run."""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from radazo import core, locks, validation
from radazo.journal import file_format, run_id

_API = "open_journal"
_ARRAYS = ("slopes", "value", "fingerprint")
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
      TypeError, ValueError: If `path` is not a local path, or the file cannot be read,
        is damaged, or is not a journal of this version.
    Cost:
      No function values.
    Example:
      >>> import tempfile
      >>> start, optimizer = jnp.ones(5), radazo.radazo(0.02, key=0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = folder + "/run.journal"
      ...     result = radazo.minimize(jnp.sum, start, optimizer, 50, journal=path)
      ...     entries = read_journal(path).entries
      >>> print(entries.slopes.shape, (entries.value == result.values).all())
      (50, 10) True
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

    A record of K float32 slopes has 15 + 4K bytes. `replay` reconstructs parameters and
    state after any step. `python -m radazo.journal` shows a journal or compares two.

    An existing journal is appended to. If the run resumes from a checkpoint before its
    end, the steps already in the file are compared with the new ones: a run that does
    not repeat itself is refused. Only an incomplete trailing record is truncated.

    Args:
      path: The file. In a run of several processes each needs its own.
      params: The parameters before the next step.
      state: The state before it, from `optimizer.init`, a checkpoint, or `replay`.
      bounds: The bounds on the parameters, as in `minimize`.
    Returns:
      A context manager that yields a `Journal` and flushes it to disk at the end.
    Raises:
      TypeError, ValueError: If an argument has the wrong type, or the file cannot be
        written, is damaged, in use by another process, or is not a journal of this run
        and version; in `append`, if an entry is not that of the next step or differs
        from the one in the file.
    Cost:
      No function values. It reads parameters and state once.
    Example:
      >>> import tempfile
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> step = radazo.journal.recorded_step(optimizer, lambda x: jnp.sum(x**2))
      >>> x, state = jnp.ones(5), optimizer.init(jnp.ones(5))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = folder + "/run.journal"
      ...     with open_journal(path, x, state) as journal:
      ...         for _ in range(100):
      ...             x, state, entry = step(x, state)
      ...             journal.append(entry)
      ...     again, state = radazo.journal.replay(path, optimizer, jnp.ones(5))
      >>> print(jnp.all(again == x), state.num_values)
      True 1100
    """
    file_format.check_path(_API, path)
    run, path = run_id.of(_API, params, state, bounds), os.fspath(path)
    with _explained(path):
        handle = io.FileIO(path, "a+")
    with handle:
        file = _File(path, handle, run)
        yield Journal(path, file.append, file.sync)
        file.sync()


def open_or_null(
    path: Any, params: core.Params, state: Any, bounds: Any
) -> contextlib.AbstractContextManager[Journal | None]:
    """Open the journal at `path`, or none if it is None."""
    if path is None:
        return contextlib.nullcontext()
    return open_journal(path, params, state, bounds=bounds)


class _File:
    """An open journal and the position of the run in it."""

    def __init__(self, path: str, handle: Any, run: file_format.JournalHeader) -> None:
        self.path, self.handle, self.header, self.count = path, handle, run, run.first
        self.last = b""  # The record before the next one, or the header if written.
        self.ahead = memoryview(b"")  # Records in the file from the next one on.
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            _refuse("path", "be a regular file", repr(path), "Pass another path.")
        if locks.is_taken(handle):
            got = f"{path!r}, which another run is writing"
            _refuse("path", "be written by one run at a time", got, "Use another path.")
        with _explained(path):
            handle.seek(0)
            data = handle.readall()
        magic, end = file_format.MAGIC, file_format.HEADER_BYTES
        if len(data) < end and magic.startswith(data[: len(magic)]):
            self.truncate(0)  # A process ended before it had written the header.
            return
        journal = file_format.parse(_API, path, data)
        run_id.check(_API, path, journal, run)
        data = data[: len(data) - journal.num_trailing_bytes]
        self.truncate(len(data))
        self.header = journal.header
        size = file_format.record_dtype(self.header).itemsize
        end += (run.first - self.header.first) * size
        self.last, self.ahead = data[:end][-size:], memoryview(data[end:])

    def append(self, entry: file_format.JournalEntry) -> None:
        """Write the records that the file does not have yet; compare the others."""
        validation.instance("append", "entry", entry, file_format.JournalEntry, _NEXT)
        arrays = [np.asarray(x) for x in jax.device_get(entry)]
        if not arrays[0].ndim:
            arrays = [x[None] for x in arrays]
        entry = file_format.JournalEntry(*arrays)
        num, slopes, header = entry.count.size, entry.slopes, self.header
        if not num:
            return
        if not self.last:
            kind = {"num_directions": (1, *slopes.shape)[-1]}
            header = header._replace(**kind, float_bytes=slopes.itemsize)
        self.check(entry, header)
        head = b"" if self.last else file_format.encode_header(header)
        raw = file_format.encode(header, entry, self.last or head)
        size, common = len(raw) // num, min(len(raw), len(self.ahead))
        if raw[:common] != self.ahead[:common]:
            starts = range(0, common, size)
            same = [raw[i : i + size] == self.ahead[i : i + size] for i in starts]
            rule = f"repeat step {self.count + same.index(False)} of {self.path!r}"
            hint = "The run does not repeat itself: use another path if the function, "
            hint += "the batches or a constant changed. Some backends do not reproduce "
            _refuse("entry", rule, "another", f"{hint}bits.", "append")
        self.write(head + raw[common:])
        if head:
            self.sync()
        self.header, self.count = header, self.count + num
        self.last, self.ahead = raw[-size:], self.ahead[common:]

    def check(
        self, entry: file_format.JournalEntry, header: file_format.JournalHeader
    ) -> None:
        """Check that the entry fits the header and is of the next steps."""
        num, kinds = entry.count.size, {x: getattr(entry, x) for x in _ARRAYS}
        kinds = {name: f"{x.dtype}{[*x.shape]}" for name, x in kinds.items()}
        if not file_format.is_plausible(header):
            rule = "have `slopes` of float32 or float64 for 1 to 2**24 directions"
            _refuse("entry", rule, kinds["slopes"], _NEXT, "append")
        record = file_format.record_dtype(header)
        for name, kind in kinds.items():
            wanted = f"{record[name].base}{[num, *record[name].shape]}"
            if kind != wanted:
                _refuse("entry", f"have `{name}` of {wanted}", kind, _NEXT, "append")
        if not np.array_equal(entry.count, self.count + np.arange(num)):
            got = f"that of step {', '.join(map(str, entry.count.ravel()[:3]))}"
            _refuse("entry", f"be that of step {self.count}", got, _NEXT, "append")

    def write(self, data: bytes) -> None:
        """Append all of `data` or nothing."""
        with _explained(self.path), contextlib.ExitStack() as on_failure:
            start = self.handle.seek(0, os.SEEK_END)
            on_failure.callback(self.handle.truncate, start)
            while data:
                data = data[self.handle.write(data) :]
            on_failure.pop_all()

    def truncate(self, size: int) -> None:
        with _explained(self.path):
            self.handle.truncate(size)

    def sync(self) -> None:
        with _explained(self.path):
            os.fsync(self.handle.fileno())


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn a failure of the file system into a message of radazo."""
    try:
        yield
    except (OSError, ValueError) as error:
        got = f"{path!r}, with {type(error).__name__}: {error}"
        hint = "Records already written are intact: free space or fix permissions."
        if isinstance(error, FileNotFoundError):
            hint = "The file is created, but not its folder: create the folder first."
        _refuse("path", "be a writable file", got, hint)


def _refuse(
    argument: str, rule: str, got: str, hint: str, api_name: str = _API
) -> NoReturn:
    validation.fail(api_name, argument, rule, got, hint)
