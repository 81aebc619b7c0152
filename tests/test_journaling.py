"""An existing journal is appended to and keeps its records."""

import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises
from journaled import PARAMS, bits, minimized, of_step, optimizer, replayed, run_in

import radazo


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.journal"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("run"))


def test_20_000_steps_along_one_direction_fit_into_400_kilobytes(path):
    num, params = 20_000, {"w": jnp.ones(3)}
    ones = np.ones(num, np.float32)
    prints = np.zeros(num, np.uint16)
    entries = radazo.journal.JournalEntry(np.arange(num), prints, ones[:, None], ones)
    with radazo.journal.open_journal(path, params, optimizer().init(params)) as journal:
        journal.append(entries)
    assert path.stat().st_size <= 400_000
    assert radazo.journal.read_journal(path).entries.count.size == num


def test_a_journal_that_was_cut_goes_on_and_ends_as_if_it_had_not_been(run, path):
    """Killed in the middle of a record, of the first record, or of the header."""
    _, whole, _ = run
    data, entries = whole.read_bytes(), radazo.journal.read_journal(whole).entries
    state = optimizer().init(PARAMS)
    for size in (len(data) - 1, len(data) - 130, len(data) - 1070, 50, 3, 0):
        path.write_bytes(data[:size])
        with radazo.journal.open_journal(path, PARAMS, state) as journal:
            assert len(path.read_bytes()) <= size
            journal.append(entries)
        assert path.read_bytes() == data


def test_a_run_that_goes_on_from_a_checkpoint_writes_no_step_twice(run, path):
    result, whole, _ = run
    path.write_bytes(whole.read_bytes())
    params, state = replayed(path, count=25)
    again = minimized(path, 15, params=params, state=state)
    assert path.read_bytes() == whole.read_bytes()
    assert bits(again.params) == bits(result.params)
    more = minimized(path, 5, params=again.params, state=again.state)
    assert bits(replayed(path)) == bits((more.params, more.state))
    assert radazo.journal.read_journal(path).entries.count.tolist() == [*range(45)]


def test_a_run_that_does_not_repeat_itself_overwrites_nothing(run, path):
    _, whole, _ = run
    path.write_bytes(whole.read_bytes())
    # Where the other batch is first seen is a question of rounding.
    parts = "repeat step ", " of", "; got another", "another path"
    with raises(ValueError, *parts) as caught:
        minimized(path, batches=lambda step: of_step(step) + (step >= 3))
    assert 3 <= int(re.search(r"repeat step (\d+) of", str(caught.value))[1]) < 10
    assert path.read_bytes() == whole.read_bytes()


def test_a_run_that_goes_on_from_other_parameters_writes_nothing(run, path):
    """The journal already has the steps after the checkpoint."""
    _, whole, _ = run
    path.write_bytes(whole.read_bytes())
    params, state = replayed(path, count=25)
    other = params | {"w": params["w"].at[0].add(1e-6)}
    with raises(ValueError, "repeat step 25 of", "; got another"):
        minimized(path, 15, params=other, state=state)
    assert path.read_bytes() == whole.read_bytes()


def test_a_damaged_journal_is_neither_appended_to_nor_changed(run, path):
    _, whole, _ = run
    rng, data = np.random.default_rng(2), whole.read_bytes()
    params, state = PARAMS, optimizer().init(PARAMS)
    for _ in range(30):
        damaged = bytearray(data)
        damaged[rng.integers(len(data) - 40)] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with (
            raises(ValueError, "`open_journal(path=...)` must"),
            radazo.journal.open_journal(path, params, state),
        ):
            pytest.fail("It was opened.")
        assert path.read_bytes() == damaged


def test_two_runs_do_not_write_one_file(path):
    pytest.importorskip("fcntl")
    params = {"w": jnp.ones(2)}
    arguments = path, params, optimizer().init(params)
    with (
        radazo.journal.open_journal(*arguments),
        raises(ValueError, "by one run at a time", "which another run is writing"),
        radazo.journal.open_journal(*arguments),
    ):
        pytest.fail("It was opened.")
    with radazo.journal.open_journal(*arguments):
        pass


def test_a_full_disk_leaves_what_was_written(run, path, monkeypatch):
    """The system writes a part and fails at the next write."""
    _, whole, _ = run
    entries = radazo.journal.read_journal(whole).entries
    parts = [
        radazo.journal.JournalEntry(*(x[part] for x in entries))
        for part in (slice(10), slice(10, None))
    ]

    class Full(io.FileIO):
        left = 600

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            num = super().write(data[: self.left])
            self.left -= num
            return num

    arguments = path, PARAMS, optimizer().init(PARAMS)
    with monkeypatch.context() as patched:
        patched.setattr(io, "FileIO", Full)
        with radazo.journal.open_journal(*arguments) as journal:
            journal.append(parts[0])
            before = path.read_bytes()
            with raises(ValueError, "be a writable file", "No space left"):
                journal.append(parts[1])
            assert path.read_bytes() == before
    with radazo.journal.open_journal(*arguments) as journal:
        journal.append(entries)
    assert path.read_bytes() == whole.read_bytes()
