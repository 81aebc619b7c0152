"""Full disks, damaged files and other versions are refused without loss of data."""

import contextlib
import functools
import json
import pickle
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained
from test_checkpointing import PARAMS, bits, items, kept_steps, optimizer, run

import radazo

pytest.importorskip("orbax.checkpoint")
pytestmark = [
    # Where a file cannot be written, orbax leaves a task whose loop is closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def opened(folder, tree=None, step=None, **options):
    """Open the folder, and save the tree at the step or restore it."""
    with radazo.run.open_checkpoints(folder, **options) as checkpoints:
        if step is not None:
            checkpoints.save(step, tree, now=True)
        elif tree is not None:
            return checkpoints.restore(tree)
    return None


def refused(rule, got, hint, call):
    """Assert that the call refuses the folder with this message."""
    explained(Mistake(call, ValueError, "open_checkpoints(folder", rule, got, hint))


WRITE, ROOM = "be a writable folder", "Earlier checkpoints are intact:"
READ, REMOVE = "have readable checkpoints", "Remove this checkpoint to resume"


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_place_of_the_folder_is_refused_before_tracing(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    untouched = lambda params, batch: pytest.fail("It was traced.")
    call = lambda: radazo.minimize(
        untouched, PARAMS, optimizer(), 3, batches=items(), checkpoints=f"{file}{below}"
    )
    refused(WRITE, f"'{file}{below}', with ", ROOM, call)
    assert file.read_text(encoding="utf-8") == "mine"


@contextlib.contextmanager
def files_of_at_most(size):
    """Limit the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = np.random.default_rng(0).normal(size=2**18)


@pytest.mark.parametrize("size", [2**18, 2**10, 64])
def test_a_run_resumes_from_its_last_checkpoint_after_a_full_disk(tmp_path, size):
    opened(tmp_path, {"x": BIG}, 1)
    with files_of_at_most(size):
        call = lambda: opened(tmp_path, {"x": BIG + 1}, 2)
        refused(WRITE, f"'{tmp_path}', with ", ROOM, call)
    step, restored = opened(tmp_path, {"x": BIG})
    assert step == 1
    np.testing.assert_array_equal(restored["x"], BIG)
    opened(tmp_path, {"x": BIG}, 2)
    assert kept_steps(tmp_path) == [1, 2]


def test_a_disk_that_fills_up_ends_the_run_at_its_next_save(tmp_path):
    steps = []

    def fill():
        with radazo.run.open_checkpoints(tmp_path, interval_seconds=0) as checkpoints:
            checkpoints.save(1, {"x": BIG})
            checkpoints.save(2, {"x": 2 * BIG})
            with files_of_at_most(2**10):
                for step in range(3, 9):
                    steps.append(step)
                    checkpoints.save(step, {"x": step * BIG})

    refused(WRITE, f"'{tmp_path}', with ", ROOM, fill)
    assert steps in ([3], [3, 4])
    step, restored = opened(tmp_path, {"x": BIG})
    assert step in (1, 2)  # The second was being written when the disk filled up.
    np.testing.assert_array_equal(restored["x"], step * BIG)


def test_an_error_while_closing_does_not_hide_the_first(tmp_path):
    def fail():
        with (
            files_of_at_most(2**10),
            radazo.run.open_checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.save(1, {"x": BIG}, now=True)
            message = "of the caller"
            raise LookupError(message)

    with pytest.raises(LookupError, match="of the caller"):
        fail()


TREE = {"x": jnp.arange(100.0), "values": np.arange(3.0), "best": 2.5}
DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "another": lambda path: path.write_bytes(b'["no", {"such": 1}]'),
    "null": lambda path: path.write_bytes(b"null"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    opened(folder, jax.tree.map(lambda x: 2 * x, TREE), 1)
    opened(folder, TREE, 2)
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused_or_not_needed(tmp_path, kept, damage):
    names = [p.relative_to(kept) for p in (kept / "step_2").rglob("*") if p.is_file()]
    num_refused = 0
    for i, name in enumerate(sorted(names)):
        folder = tmp_path / str(i)
        shutil.copytree(kept, folder)
        damage(folder / name)
        again = functools.partial(opened, folder, TREE)
        try:
            step, restored = again()
        except ValueError:
            num_refused += 1
            refused(READ, f"'{folder / 'step_2'}', with ", REMOVE, again)
            shutil.rmtree(folder / "step_2")  # As the message says.
            step, restored = again()
        wanted = {1: jax.tree.map(lambda x: 2 * x, TREE), 2: TREE}[step]
        assert bits(restored) == bits(wanted), name
    assert num_refused >= 3


@pytest.mark.parametrize("name", ["format", "key_contract"])
def test_another_version_is_refused(tmp_path, kept, name):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    path = folder / "step_2" / "about" / "metadata"
    about = json.loads(path.read_text(encoding="utf-8"))
    assert about["key_contract"] == radazo.random.KEY_CONTRACT_VERSION
    about[name] = 99
    path.write_text(json.dumps(about), encoding="utf-8")
    versions = [99 if x == name else 1 for x in ("format", "key_contract")]
    refused(
        "have checkpoints of format 1 and key contract 1",
        f"'{folder}/step_2' of format {versions[0]} and key contract {versions[1]}.",
        "Use the version of radazo that wrote it, or a new folder.",
        lambda: opened(folder, TREE),
    )


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rule, hint = "be used in a run of one process", "cannot save one run yet."
    refused(rule, "2 processes.", hint, lambda: opened(tmp_path))


def test_a_missing_orbax_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    refused(
        "be None or absent without orbax",
        "ModuleNotFoundError",
        "Install it: `pip install 'radazo[checkpoints]'`.",
        lambda: run(tmp_path),
    )
    assert run().status == "finished"


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    def banned(*_, **__):
        message = "a pickle was used"
        raise AssertionError(message)

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, banned)
    run(tmp_path, num_steps=2)
    run(tmp_path, num_steps=3)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")
