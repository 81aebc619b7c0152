"""The bytes of a journal: any change to them is detected."""

import os

import numpy as np
import pytest
from conftest import raises

import radazo
from radazo.journal import file_format

HEADER = file_format.JournalHeader(
    file_format.FORMAT,
    radazo.random.KEY_CONTRACT_VERSION,
    num_readings=2,
    float_bytes=4,
    key_data=(7, 2**32 - 1),
    first=5,
    params=bytes(range(16)),
    state=bytes(range(1, 17)),
    start=bytes(range(2, 18)),
    bounds=bytes(16),
    writer="jax 0 on a test",
)
NUM = 4
RECORD_BYTES = 15 + 4 * HEADER.num_readings


def entries(num=NUM, header=HEADER, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.dtype(f"f{header.float_bytes}")
    slopes = rng.normal(size=(num, header.num_readings)).astype(kind)
    slopes[rng.uniform(size=slopes.shape) < 0.2] = np.nan
    return file_format.JournalEntry(
        header.first + np.arange(num),
        rng.integers(2**16, size=num, dtype=np.uint16),
        slopes,
        rng.normal(size=num).astype(kind),
        rng.uniform(size=num) < 0.5,
    )


def written(header=HEADER, given=None):
    head = file_format.encode_header(header)
    given = entries(header=header) if given is None else given
    return head + file_format.encode(header, given, head)


def parsed(data):
    return file_format.parse("read_journal", "a file", data)


def same(found, wanted):
    return all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(found, wanted, strict=True)
    )


def first(num, given):
    return file_format.JournalEntry(*(x[:num] for x in given))


@pytest.mark.parametrize("float_bytes", [4, 8])
@pytest.mark.parametrize("num_readings", [1, 3, 1000])
def test_what_is_written_is_read_back_bit_for_bit(num_readings, float_bytes):
    header = HEADER._replace(num_readings=num_readings, float_bytes=float_bytes)
    wanted = entries(header=header)
    found = parsed(written(header, wanted))
    assert found.header == header
    assert same(found.entries, wanted)
    assert (found.num_trailing_bytes, found.end) == (0, 9)


def test_a_step_along_one_direction_takes_19_bytes():
    header = HEADER._replace(num_readings=1)
    size = len(written(header, entries(1000, header)))
    assert size - file_format.HEADER_BYTES == 19_000
    assert file_format.HEADER_BYTES <= 200


def test_each_flipped_bit_is_detected():
    """An invalid last record counts as an incomplete write."""
    data, wanted = written(), entries()
    begin = len(data) - RECORD_BYTES
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            if place < begin:
                with pytest.raises(
                    ValueError, match=r"^`read_journal\(path=\.\.\.\)` "
                ):
                    parsed(bytes(flipped))
            else:
                found = parsed(bytes(flipped))
                assert found.num_trailing_bytes == RECORD_BYTES
                assert same(found.entries, first(NUM - 1, wanted))


def test_a_truncated_journal_has_its_whole_records_or_is_refused():
    data, wanted = written(), entries()
    for size in range(len(data)):
        if size < file_format.HEADER_BYTES:
            with raises(ValueError, "`read_journal(path=...)` must"):
                parsed(data[:size])
            continue
        found = parsed(data[:size])
        whole, part = divmod(size - file_format.HEADER_BYTES, RECORD_BYTES)
        assert found.num_trailing_bytes == part
        assert same(found.entries, first(whole, wanted))


def test_no_damage_changes_what_is_read():
    """Random changes, deletions, repetitions, reversals and insertions of bytes."""
    rng, data, wanted = np.random.default_rng(1), written(), entries()
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            i, j = sorted(rng.integers(0, len(damaged) + 1, 2))
            part, noise = damaged[i:j], rng.bytes(int(rng.integers(1, 40)))
            damaged[i:j] = [b"", part + part, part[::-1], noise][rng.integers(4)]
        try:
            found = parsed(bytes(damaged))
        except ValueError as error:
            refused += str(error).startswith("`read_journal(path=...)` must ")
            continue
        num = len(found.entries.count)
        assert same(found.entries, first(num, wanted))
        assert (
            num * RECORD_BYTES + found.num_trailing_bytes
            == len(damaged) - file_format.HEADER_BYTES
        )
    assert refused > 1000


def test_an_invalid_record_in_the_middle_is_named():
    data = bytearray(written())
    data[file_format.HEADER_BYTES + RECORD_BYTES + 5] ^= 1
    with raises(
        ValueError, "valid records", "record 2 of 4, of step 6, is invalid", "a copy"
    ):
        parsed(bytes(data))


def test_trailing_zeros_are_an_incomplete_write():
    """Some file systems leave them after a power failure."""
    found = parsed(written() + bytes(3 * RECORD_BYTES + 1))
    assert found.num_trailing_bytes == 3 * RECORD_BYTES + 1
    assert same(found.entries, entries())


def test_records_are_valid_only_where_they_were_written():
    data, other = written(), written(HEADER._replace(key_data=(0, 0)))
    begin = file_format.HEADER_BYTES
    at = [begin + i * RECORD_BYTES for i in range(NUM + 1)]
    spliced = {
        "of another journal": data[:begin] + other[begin:],
        "once more": data[: at[2]] + data[at[1] :],
        "one left out": data[: at[1]] + data[at[2] :],
        "exchanged": data[: at[1]] + data[at[2] : at[3]] + data[at[1] : at[2]],
    }
    for text in spliced.values():
        with raises(ValueError, "have valid records", "is invalid"):
            parsed(text)


MADE_UP = {
    "no direction": {"num_readings": 0},
    "too many directions": {"num_readings": 2**32 - 1},
    "halves": {"float_bytes": 2},
    "a step that no state can count": {"first": 2**32 - 1},
    "a writer that is no text": {"writer": "\x07"},
}


@pytest.mark.parametrize("change", MADE_UP.values(), ids=MADE_UP)
def test_a_header_with_a_valid_crc_is_checked_too(change):
    head = file_format.encode_header(HEADER._replace(**change))
    with raises(ValueError, "have a plausible header", "Pass the path of a journal"):
        parsed(head + bytes(100))


def test_a_header_with_many_directions_takes_no_memory():
    header = HEADER._replace(num_readings=2**24, float_bytes=8)
    found = parsed(file_format.encode_header(header) + b"few")
    assert (len(found.entries.count), found.num_trailing_bytes) == (0, 3)


FALSE = {
    "another step": {"count": np.array([6])},
    "an infinite slope": {"slopes": np.full((1, 2), np.inf, np.float32)},
}


@pytest.mark.parametrize("change", FALSE.values(), ids=FALSE)
def test_a_record_with_a_valid_crc_is_checked_too(change):
    made_up = first(1, entries())._replace(**change)
    data = written(given=made_up)
    assert parsed(data).num_trailing_bytes == RECORD_BYTES
    more = file_format.encode(HEADER, made_up, data)
    with raises(ValueError, "have valid records", "record 1 of 2, of step 5"):
        parsed(data + more)


@pytest.mark.parametrize("change", [{"format": 1}, {"key_contract": 99}], ids=str)
def test_another_version_is_refused_by_its_number(change):
    data = written(HEADER._replace(**change))
    rule = f"be of format 2 and key contract {radazo.random.KEY_CONTRACT_VERSION}"
    number = next(iter(change.values()))
    with raises(
        ValueError, rule, str(number), "Use the version of radazo that wrote it."
    ):
        parsed(data)


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a poem, and a long one at that" * 20)
    for name, rule in {
        "": "be a regular file",
        "pipe": "be a regular file",
        "missing": "be a readable file",
        "empty": "contain a step",
        "text": f"be a journal, with a header of {file_format.HEADER_BYTES} bytes",
        "\0": "be a readable file",
    }.items():
        path = f"{tmp_path}/{name}"
        hint = "A run writes the header" if name == "empty" else "Pass the path"
        with raises(ValueError, f"`read_journal(path=...)` must {rule}; got", hint):
            radazo.journal.read_journal(path)
