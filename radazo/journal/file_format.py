"""The bytes of a journal: a header, then one fixed-size record for each step.

  header   magic, format, key contract, K, bytes of a float, key of the run, first step,
           four digests, writer, CRC
  record   step, fingerprint, K slopes, value, flags, CRC

Fields are little-endian and packed. Each CRC-32 continues the previous one, so that a
record is valid only at its own position in its own file. Reading skips what an
interrupted write leaves: a partial record, an invalid last record, or zeros up to the
end. It refuses any other damage.
"""

import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from radazo import random, validation

MAGIC = b"radazo-j"
FORMAT = 2
_STOPPED = 1  # Flag of a step that left the parameters unchanged.
_HEADER = struct.Struct("<8sHHIIIII16s16s16s16s48s")
_CRC_BYTES = 4
HEADER_BYTES = _HEADER.size + _CRC_BYTES
_MAX_DIRECTIONS = 2**24
_MAX_STEPS = 2**31 - 1  # The step count is an int32.
_OTHER_FILE = "Pass the path of a journal written by `open_journal` or `minimize`."
_DAMAGED = "The file was damaged after it was written: restore a copy of it."


class JournalEntry(NamedTuple):
    """The record of one step, or of several with a leading axis of steps.

    Attributes:
      count: int32, steps before this one.
      fingerprint: uint16, hash of the floating-point parameters before the step.
      slopes: (num_readings,) slopes, of most estimators; NaN where one was dropped.
      value: Scalar of the dtype of `slopes`, the value of the step.
      stopped: bool, whether `stop` of `minimize` held and the parameters were kept.
    """

    count: Any
    fingerprint: Any
    slopes: Any
    value: Any
    stopped: Any = False


class JournalHeader(NamedTuple):
    """The description of a run at the start of its journal.

    Attributes:
      format: Version of the file format.
      key_contract: `KEY_CONTRACT_VERSION` of the directions.
      num_readings: Readings of a step, one of each direction for most estimators.
      float_bytes: 4 or 8, the size of a slope and of a value.
      key_data: The two words of the run's key.
      first: Steps before the first one in the journal.
      params: Digest of the names, shapes and dtypes of the parameters.
      state: The same for the optimizer state, including the types of its nodes.
      start: Digest of parameters and state before the first step.
      bounds: Digest of the bounds on the parameters; zeros for none.
      writer: JAX version and device that computed the run.
    """

    format: int
    key_contract: int
    num_readings: int
    float_bytes: int
    key_data: tuple[int, int]
    first: int
    params: bytes
    state: bytes
    start: bytes
    bounds: bytes
    writer: str


class JournalContents(NamedTuple):
    """The contents of a journal.

    Attributes:
      header: The description of the run.
      entries: A `JournalEntry` of NumPy arrays with a leading axis of steps.
      num_trailing_bytes: Bytes of an incomplete record at the end, which are ignored.
    """

    header: JournalHeader
    entries: JournalEntry
    num_trailing_bytes: int

    @property
    def end(self) -> int:
        """Steps up to and including the last one in the journal."""
        return self.header.first + len(self.entries.count)

    def between(self, first: int, end: int) -> JournalEntry:
        """Return the entries of the steps from `first` to `end`, exclusive."""
        steps = slice(first - self.header.first, end - self.header.first)
        return JournalEntry(*(x[steps] for x in self.entries))


def read(api_name: str, path: Any) -> JournalContents:
    """Read the journal at `path`."""
    check_path(api_name, path)
    path = os.fspath(path)
    try:
        # Opening a pipe would block.
        regular = stat.S_ISREG(Path(path).stat().st_mode)
        data = Path(path).read_bytes() if regular else b""
    except (OSError, ValueError) as error:
        got = f"{path!r}, with {type(error).__name__}: {error}"
        validation.fail(api_name, "path", "be a readable file", got, _OTHER_FILE)
    if not regular:
        validation.fail(api_name, "path", "be a regular file", repr(path), _OTHER_FILE)
    return parse(api_name, path, data)


def check_path(api_name: str, path: Any) -> None:
    """Check that `path` is a path on this machine."""
    if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path):
        rule = "be a local path"
        hint = "A journal is one local file; mount a bucket to write to it."
        validation.fail(api_name, "path", rule, repr(path), hint, TypeError)


def parse(api_name: str, path: str, data: bytes) -> JournalContents:
    """Parse `data`, the bytes of the journal at `path`."""
    header = _parse_header(api_name, path, data[:HEADER_BYTES])
    dtype, body = record_dtype(header), memoryview(data)[HEADER_BYTES:]
    rows = np.frombuffer(body, dtype, len(body) // dtype.itemsize)
    valid = (
        (rows["crc"] == _crcs(data[:HEADER_BYTES], rows))
        & (rows["step"] == header.first + np.arange(len(rows)))
        & (rows["step"] < _MAX_STEPS)
        & (rows["flags"] <= _STOPPED)
        & ~np.isinf(rows["slopes"]).any(axis=1)
    )
    num = int(np.argmin([*valid, False]))  # Records before the first invalid one.
    rest = body[num * dtype.itemsize :]
    if len(rest) > dtype.itemsize and any(rest):
        place = f"record {num + 1} of {len(rows)}, of step {header.first + num}"
        got = f"{path!r}, whose {place}, is invalid"
        validation.fail(api_name, "path", "have valid records", got, _DAMAGED)
    rows = rows[:num]
    arrays = [rows[name].copy() for name in ("fingerprint", "slopes", "value")]
    count, stopped = rows["step"].astype(np.int64), rows["flags"] == _STOPPED
    entries = JournalEntry._make([count, *arrays, stopped])
    return JournalContents(header, entries, len(rest))


def encode(header: JournalHeader, entries: JournalEntry, previous: bytes) -> bytes:
    """Encode entries; `previous` ends with the CRC that the first one continues."""
    rows = np.zeros(len(entries.count), record_dtype(header))
    count, rows["fingerprint"], rows["slopes"], rows["value"], stopped = entries
    rows["step"], rows["flags"] = count, np.where(stopped, _STOPPED, 0)
    rows["crc"] = _crcs(previous, rows)
    return rows.tobytes()


def encode_header(header: JournalHeader) -> bytes:
    """Encode a header, which ends with its CRC."""
    version, contract, num, size, key, *start, writer = header
    fields = version, contract, num, size, *key, *start
    body = _HEADER.pack(MAGIC, *fields, writer.encode("ascii", "replace"))
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


def is_plausible(header: JournalHeader) -> bool:
    """Return whether the numbers of a header are in range."""
    return (
        1 <= header.num_readings <= _MAX_DIRECTIONS
        and header.float_bytes in (4, 8)
        and header.first < _MAX_STEPS
    )


def record_dtype(header: JournalHeader) -> np.dtype[Any]:
    """Return the NumPy dtype of a record."""
    kind = f"<f{header.float_bytes}"
    fields = [("step", "<u4"), ("fingerprint", "<u2")]
    fields += [("slopes", kind, (header.num_readings,)), ("value", kind)]
    return np.dtype([*fields, ("flags", "u1"), ("crc", "<u4")])


def _crcs(previous: bytes, rows: np.ndarray) -> np.ndarray:
    """Return the CRC of each record; the first continues that of `previous`."""
    crcs = [_last_crc(previous)]
    for record in rows.view(np.uint8).reshape(-1, rows.dtype.itemsize):
        crcs.append(zlib.crc32(record[:-_CRC_BYTES].data, crcs[-1]))
    return np.array(crcs[1:], np.uint32)


def _last_crc(data: bytes) -> int:
    return int.from_bytes(data[-_CRC_BYTES:], "little")


def _parse_header(api_name: str, path: str, data: bytes) -> JournalHeader:
    if not data:
        rule, got = "contain a step", f"{path!r}, which is empty"
        hint = "A run writes the header with its first step."
        validation.fail(api_name, "path", rule, got, hint)
    magic = data[: len(MAGIC)]
    if magic != MAGIC or len(data) < HEADER_BYTES:
        rule = f"be a journal, with a header of {HEADER_BYTES} bytes"
        got = f"{path!r}, {len(data)} bytes that begin with {magic!r}"
        validation.fail(api_name, "path", rule, got, _OTHER_FILE)
    fields = _HEADER.unpack_from(data)
    _, version, contract, num, size, high, low, *start, writer = fields
    writer = writer.rstrip(b"\0").decode("ascii", "replace")
    fields = version, contract, num, size, (high, low), *start, writer
    header = JournalHeader._make(fields)
    # Versions first: another format may keep its CRC elsewhere.
    versions = "of format {} and key contract {}"
    known, found = (FORMAT, random.KEY_CONTRACT_VERSION), (version, contract)
    if found != known:
        got = f"{path!r} {versions.format(*found)}"
        hint = "Use the version of radazo that wrote it."
        validation.fail(api_name, "path", f"be {versions.format(*known)}", got, hint)
    if zlib.crc32(data[: _HEADER.size]) != _last_crc(data):
        got = f"{path!r}, whose header has a wrong CRC"
        validation.fail(api_name, "path", "have a valid header", got, _DAMAGED)
    if not (is_plausible(header) and writer.isprintable()):
        got = f"{path!r} with {header}"
        validation.fail(api_name, "path", "have a plausible header", got, _OTHER_FILE)
    return header
