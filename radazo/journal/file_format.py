"""The bytes of a journal: a header, then one record a step, all of one size.

  header   magic, format, key contract, K, bytes of a float, key of the run, its first
           step, four digests, who wrote it, CRC
  record   step, fingerprint, K slopes, value, flags, CRC

Little-endian and packed: 15 bytes a record and 4 for each slope in float32. The slope
of a dropped direction is NaN. The fingerprint is 16 bits of a hash of the parameters
before the step. Each CRC-32 goes on from the one before it, so that a record is good
only where it was written, in the file it was written to.

What a machine leaves that stops in the middle of a write is ignored, and counted: a
part of a record, a bad one at the very end, zeros to the end. Anything else that is not
as it was written is refused.
"""

import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from radazo import random, validation

MAGIC = b"radazo-j"
FORMAT = 2
_STOPPED = 1  # The flag of a step that left the parameters where they were.
_HEADER = struct.Struct("<8sHHIIIII16s16s16s16s48s")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
MAX_DIRECTIONS = 2**24
_MAX_STEPS = 2**31 - 1  # A count is an int32.
_OTHER_FILE = "Give the path of a file that `open_journal` or `minimize` wrote."
_NO_STEP = "No step was written yet: the run begins the file with its first one."
_DAMAGED = "The file was damaged after it was written: take a copy of it."


class JournalEntry(NamedTuple):
    """What a step saw; or, with a further axis in front, what many did.

    Attributes:
      count: int32, steps before this one.
      fingerprint: uint16, a hash of the floating-point parameters before the step.
      slopes: (num_directions,) slopes; NaN where one was dropped.
      value: Scalar of the type of the slopes, the value of the step.
      stopped: bool, whether the parameters stayed since `stop` of `minimize` held.
    """

    count: Any
    fingerprint: Any
    slopes: Any
    value: Any
    stopped: Any = False


class JournalHeader(NamedTuple):
    """What a journal says of its run.

    Attributes:
      format: Version of the bytes.
      key_contract: `KEY_CONTRACT_VERSION` of the directions.
      num_directions: K.
      float_bytes: 4 or 8, of a slope and of a value.
      key_data: The two words of the key of the run.
      first: Steps before the first one of the journal.
      params: Digest of the names, shapes and types of the parameters.
      state: The same of the optimizer's state.
      start: Digest of parameters and state before the first step.
      bounds: Digest of the box that parameters are kept in; zeros for none.
      writer: With what the run was computed.
    """

    format: int
    key_contract: int
    num_directions: int
    float_bytes: int
    key_data: tuple[int, int]
    first: int
    params: bytes
    state: bytes
    start: bytes
    bounds: bytes
    writer: str


class JournalContents(NamedTuple):
    """What there is in a journal.

    Attributes:
      header: What it says of its run.
      entries: A `JournalEntry` of NumPy arrays, with an axis of steps in front.
      num_trailing_bytes: Bytes of an incomplete record at the end, which are ignored.
    """

    header: JournalHeader
    entries: JournalEntry
    num_trailing_bytes: int

    @property
    def end(self) -> int:
        """Steps after the last one."""
        return self.header.first + len(self.entries.count)


def read(api_name: str, path: Any) -> JournalContents:
    """The journal in a file; it is said what is wrong with it."""
    checked_path(api_name, path)
    try:
        # Before it is opened, which waits for ever at a pipe.
        regular = stat.S_ISREG(Path(path).stat().st_mode)
        data = Path(path).read_bytes() if regular else None
    except (OSError, ValueError) as error:
        got = f"{os.fspath(path)!r}, with {type(error).__name__}: {error}"
        _refuse(api_name, "be a file that can be read", got, _OTHER_FILE)
    if data is None:
        _refuse(api_name, "be a file", repr(os.fspath(path)), _OTHER_FILE)
    return parsed(api_name, os.fspath(path), data)


def checked_path(api_name: str, path: Any) -> None:
    """A path on this machine."""
    if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path):
        hint = "A journal is one file; a bucket has to be mounted."
        rule = "be a path on this machine"
        validation.fail(api_name, "path", rule, repr(path), hint, TypeError)


def parsed(api_name: str, path: str, data: bytes) -> JournalContents:
    """The journal in these bytes of `path`."""
    header = _header(api_name, path, data[:HEADER_BYTES])
    body, size = memoryview(data)[HEADER_BYTES:], _record(header).itemsize
    whole = len(body) // size
    rows = np.frombuffer(body, _record(header), whole)
    good = _num_good(header, body, rows)
    rest = body[good * size :]
    if len(rest) > size and any(rest):
        _refuse(
            api_name,
            "have good records",
            f"{path!r} with a bad one of step {header.first + good}, the record "
            f"{good + 1} of {whole}",
            _DAMAGED,
        )
    rows = rows[:good]
    entries = JournalEntry(
        rows["step"].astype(np.int64),
        rows["fingerprint"].copy(),
        rows["slopes"].copy(),
        rows["value"].copy(),
        rows["flags"] == _STOPPED,
    )
    return JournalContents(header, entries, len(rest))


def sealed(header: JournalHeader, entries: JournalEntry, crc: int) -> tuple[bytes, int]:
    """The bytes of entries behind a record with this CRC, and the CRC of the last."""
    rows = np.zeros(len(entries.count), _record(header))
    rows["step"], rows["fingerprint"], rows["slopes"], rows["value"] = entries[:4]
    rows["flags"] = np.where(entries.stopped, _STOPPED, 0)
    raw, size = bytearray(rows.tobytes()), rows.dtype.itemsize
    for end in range(size, len(raw) + 1, size):
        crc = zlib.crc32(memoryview(raw)[end - size : end - _CRC.size], crc)
        _CRC.pack_into(raw, end - _CRC.size, crc)
    return bytes(raw), crc


def sealed_header(header: JournalHeader) -> tuple[bytes, int]:
    """The bytes of a header, and its CRC: that of the first record goes on from it."""
    version, contract, num_directions, float_bytes, key, first, *digests, _ = header
    writer = header.writer.encode("ascii", "replace")
    numbers = version, contract, num_directions, float_bytes, *key, first
    body = _HEADER.pack(MAGIC, *numbers, *digests, writer)
    crc = zlib.crc32(body)
    return body + _CRC.pack(crc), crc


def _record(header: JournalHeader) -> np.dtype[Any]:
    number = f"<f{header.float_bytes}"
    fields = [
        ("step", "<u4"),
        ("fingerprint", "<u2"),
        ("slopes", number, (header.num_directions,)),
        ("value", number),
        ("flags", "u1"),
        ("crc", "<u4"),
    ]
    return np.dtype(fields)


def _num_good(header: JournalHeader, body: memoryview, rows: np.ndarray) -> int:
    """Records up to the first that is not as it was written."""
    size, (_, crc) = rows.dtype.itemsize, sealed_header(header)
    for i, written in enumerate(rows["crc"].tolist()):
        crc = zlib.crc32(body[i * size : (i + 1) * size - _CRC.size], crc)
        if crc != written:
            rows = rows[:i]
            break
    steps = header.first + np.arange(len(rows))
    sound = (
        (rows["step"] == steps)
        & (steps < _MAX_STEPS)
        & (rows["flags"] <= _STOPPED)
        & ~np.isinf(rows["slopes"]).any(axis=1)
    )
    return len(rows) if sound.all() else int(np.argmin(sound))


def _header(api_name: str, path: str, data: bytes) -> JournalHeader:
    if not data:
        _refuse(api_name, "have a step in it", f"{path!r}, which is empty", _NO_STEP)
    magic = data[: len(MAGIC)]
    if magic != MAGIC:
        got = f"{path!r}, which begins with {magic!r}"
        _refuse(api_name, "be a journal", got, _OTHER_FILE)
    if len(data) < HEADER_BYTES:
        got = f"{path!r} of {len(data)} bytes"
        _refuse(api_name, f"have a header of {HEADER_BYTES} bytes", got, _OTHER_FILE)
    _, *numbers = _HEADER.unpack_from(data)
    version, contract, num_directions, float_bytes, high, low, first = numbers[:7]
    # Versions first: a later one may have its CRC elsewhere.
    known = (FORMAT, random.KEY_CONTRACT_VERSION)
    if (version, contract) != known:
        _refuse(
            api_name,
            f"be of format {known[0]} and key contract {known[1]}",
            f"{path!r} of format {version} and key contract {contract}",
            "Use the version of radazo that wrote it.",
        )
    if zlib.crc32(data[: _HEADER.size]) != _CRC.unpack_from(data, _HEADER.size)[0]:
        _refuse(api_name, "have a good header", f"{path!r} with a bad CRC", _DAMAGED)
    name = numbers[11].rstrip(b"\0").decode("ascii", "replace")
    if not (
        1 <= num_directions <= MAX_DIRECTIONS
        and float_bytes in (4, 8)
        and first < _MAX_STEPS
        and name.isprintable()
    ):
        got = f"{path!r} with {num_directions} directions of {float_bytes} bytes"
        got = f"{got}, from step {first} on, by {name!r}"
        _refuse(api_name, "have a header that makes sense", got, _OTHER_FILE)
    key, digests = (high, low), numbers[7:11]
    return JournalHeader._make([*numbers[:4], key, first, *digests, name])


def _refuse(api_name: str, rule: str, got: str, hint: str) -> NoReturn:
    validation.fail(api_name, "path", rule, got, hint)
