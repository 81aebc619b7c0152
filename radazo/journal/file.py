"""The journal of a run: its header, which identifies the run, and its file."""

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from radazo import core, locks, partition, projections, random, validation
from radazo.journal import file_format
from radazo.optimizers import combinators

_API = "open_journal"
_DIGEST_BYTES = 16
# A Python number becomes an array in the first step; both have the same digest.
_NUMBERS = jax.Array | np.ndarray | np.generic | bool | int | float | complex
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
    run, path = header_of(_API, params, state, bounds), os.fspath(path)
    with _explain_failures(path):
        handle = io.FileIO(path, "a+")
    with handle:
        file = _File(path, handle, run)
        yield Journal(path, file.append, file.sync)
        file.sync()


class _File:
    """An open journal and the position of the run in it."""

    def __init__(self, path: str, handle: Any, run: file_format.JournalHeader) -> None:
        self.path, self.handle, self.header, self.count = path, handle, run, run.first
        self.last = b""  # The record before the next one, or the header if written.
        self.ahead = memoryview(b"")  # Records in the file from the next one on.
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            rule, hint = "be a regular file", "Pass another path."
            validation.fail(_API, "path", rule, repr(path), hint)
        if locks.is_taken(handle):
            rule, hint = "be written by one run at a time", "Use another path."
            got = f"{path!r}, which another run is writing"
            validation.fail(_API, "path", rule, got, hint)
        with _explain_failures(path):
            handle.seek(0)
            data = handle.readall()
        magic, end = file_format.MAGIC, file_format.HEADER_BYTES
        if len(data) < end and magic.startswith(data[: len(magic)]):
            data = b""  # A process ended before it had written the header.
        else:
            journal = file_format.parse(_API, path, data)
            check_run(_API, path, journal, run)
            data = data[: len(data) - journal.num_trailing_bytes]
            self.header = journal.header
            size = file_format.record_dtype(self.header).itemsize
            end += (run.first - self.header.first) * size
            self.last, self.ahead = data[:end][-size:], memoryview(data[end:])
        with _explain_failures(path):
            handle.truncate(len(data))

    def append(self, entry: file_format.JournalEntry) -> None:
        """Write the records that the file does not have yet; compare the others."""
        validation.instance("append", "entry", entry, file_format.JournalEntry, _NEXT)
        entry = file_format.JournalEntry(*map(np.asarray, jax.device_get(entry)))
        if not entry.count.ndim:
            entry = file_format.JournalEntry(*(x[None] for x in entry))
        num, slopes, header = entry.count.size, entry.slopes, self.header
        if not num:
            return
        if not self.last:
            kind = {"num_readings": (1, *slopes.shape)[-1]}
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
            validation.fail("append", "entry", rule, "another", f"{hint}bits.")
        self.write(head + raw[common:])
        if head:
            self.sync()
        self.header, self.count = header, self.count + num
        self.last, self.ahead = raw[-size:], self.ahead[common:]

    def check(
        self, entry: file_format.JournalEntry, header: file_format.JournalHeader
    ) -> None:
        """Check that the entry fits the header and is of the next steps."""
        num, arrays = entry.count.size, entry._asdict().items()
        kinds = {name: f"{x.dtype}{[*x.shape]}" for name, x in arrays}
        if not file_format.is_plausible(header):
            rule = "have `slopes` of float32 or float64 for 1 to 2**24 directions"
            validation.fail("append", "entry", rule, kinds["slopes"], _NEXT)
        record = file_format.record_dtype(header)
        for name in ("slopes", "value", "fingerprint"):
            wanted = f"{record[name].base}{[num, *record[name].shape]}"
            if kinds[name] != wanted:
                rule = f"have `{name}` of {wanted}"
                validation.fail("append", "entry", rule, kinds[name], _NEXT)
        if not np.array_equal(entry.count, self.count + np.arange(num)):
            got = f"that of step {', '.join(map(str, entry.count.ravel()[:3]))}"
            rule = f"be that of step {self.count}"
            validation.fail("append", "entry", rule, got, _NEXT)

    def write(self, data: bytes) -> None:
        """Append all of `data` or nothing."""
        with _explain_failures(self.path), contextlib.ExitStack() as on_failure:
            start = self.handle.seek(0, os.SEEK_END)
            on_failure.callback(self.handle.truncate, start)
            while data:
                data = data[self.handle.write(data) :]
            on_failure.pop_all()

    def sync(self) -> None:
        with _explain_failures(self.path):
            os.fsync(self.handle.fileno())


@contextlib.contextmanager
def _explain_failures(path: str) -> Iterator[None]:
    """Turn a failure of the file system into a message of radazo."""
    try:
        yield
    except (OSError, ValueError) as error:
        got = f"{path!r}, with {type(error).__name__}: {error}"
        hint = "Records already written are intact: free space or fix permissions."
        if isinstance(error, FileNotFoundError):
            hint = "The file is created, but not its folder: create the folder first."
        validation.fail(_API, "path", "be a writable file", got, hint)


def header_of(
    api_name: str, params: core.Params, state: Any, bounds: Any
) -> file_format.JournalHeader:
    """Return the header of a journal that begins at `state`, with 0 readings."""
    counters = combinators.find_estimator_state(api_name, state)
    high, low = np.asarray(counters.key_data).tolist()
    return file_format.JournalHeader(
        file_format.FORMAT,
        random.KEY_CONTRACT_VERSION,
        num_readings=0,
        float_bytes=0,
        key_data=(high, low),
        first=int(counters.count),
        params=_digest(params),
        state=_digest(state, _node_types(jax.tree.structure(state))),
        start=_digest((params, state), contents=True),
        bounds=_bounds_digest(api_name, params, bounds),
        writer=f"jax {jax.__version__} on {jax.devices()[0].device_kind}"[:48],
    )


def check_run(
    api_name: str,
    path: str,
    journal: file_format.JournalContents,
    run: file_format.JournalHeader,
) -> None:
    """Check that the journal belongs to the run and contains its position."""
    header, first = journal.header, journal.header.first
    differences = {
        "key_data": f"the key {header.key_data}",
        "params": "parameters of other names, shapes or dtypes",
        "state": "a state of other names, shapes or dtypes",
        "bounds": "other `bounds`",
        "start": f"other values of parameters or state before step {first}",
    }
    if run.first != first:
        del differences["start"]
    for name, difference in differences.items():
        if getattr(header, name) != getattr(run, name):
            rule = f"be the journal of this run, whose key is {run.key_data}"
            got = f"{path!r}, of a run with {difference}"
            hint = "Use one journal for each run."
            validation.fail(api_name, "path", rule, got, hint)
    if not first <= run.first <= journal.end:
        rule = f"be of a step from {first} to {journal.end}, the range of {path!r}"
        hint = "Start from an earlier checkpoint or from `optimizer.init`."
        validation.fail(api_name, "state", rule, f"one of step {run.first}", hint)


def _bounds_digest(api_name: str, params: core.Params, bounds: Any) -> bytes:
    """Return a digest that is equal for bounds that restrict each array alike."""
    if bounds is None:
        return bytes(_DIGEST_BYTES)

    def box(x: Any, lower: Any, upper: Any) -> list[np.ndarray] | None:
        if not (core.is_floating(x) and x.size):
            return None
        sides = projections.within(lower, upper, jnp.result_type(x))
        # A constant array restricts as a scalar does.
        return [x.ravel()[0] if (x == x.ravel()[0]).all() else x for x in sides]

    pairs = projections.sides(api_name, params, bounds)
    arrays = partition.split(params)[0]
    boxes = [box(x, *pair) for x, pair in zip(arrays, pairs, strict=True)]
    return _digest(boxes, contents=True)


def _node_types(treedef: Any) -> str:
    """Return the types of the nodes, which tell apart states with equal leaves."""
    node = treedef.node_data()
    inner = ",".join(map(_node_types, treedef.children()))
    return f"{node[0].__name__}({inner})" if node else ""


def _digest(tree: Any, node_types: str = "", *, contents: bool = False) -> bytes:
    """Return a digest of the names, shapes, dtypes, and `contents` of the leaves."""
    digest = hashlib.blake2b(node_types.encode(), digest_size=_DIGEST_BYTES)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, _NUMBERS):
            digest.update(f"{name} {type(leaf).__name__}\n".encode())
            continue
        array: Any = leaf
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        kind: Any = jnp.result_type(array)
        digest.update(f"{name} {kind} {np.shape(array)}\n".encode())
        if contents:
            digest.update(np.asarray(array).astype(kind).tobytes())
    return digest.digest()
