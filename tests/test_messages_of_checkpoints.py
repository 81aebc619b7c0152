"""What cannot be kept or gone on from is refused, and nothing is lost by it."""

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
    """Open the folder; restore the tree, or save it at the step."""
    with radazo.run.open_checkpoints(folder, **options) as checkpoints:
        if step is not None:
            checkpoints.save(step, tree, now=True)
        elif tree is not None:
            return checkpoints.restore(tree)
    return None


def in_use(folder, call):
    with radazo.run.open_checkpoints(folder):
        return call()


ANOTHER = "'FOLDER', a run with another"
W = "['params']['w']"
V, T = ValueError, TypeError
MISTAKES = {
    "no path": (
        T,
        "open_checkpoints(folder",
        "be a path on this machine",
        "3.",
        "It is made where it is missing",
        lambda folder: opened(3),
    ),
    "a bucket": (
        T,
        "open_checkpoints(folder",
        "be a path on this machine",
        "'gs://bucket/run'.",
        "a bucket has to be mounted.",
        lambda folder: opened("gs://bucket/run"),
    ),
    "time that goes back": (
        V,
        "open_checkpoints(interval_seconds",
        "be finite and at least 0",
        "-1.",
        "It is the time between two checkpoints; 0 keeps each.",
        lambda folder: opened(folder, interval_seconds=-1),
    ),
    "none to keep": (
        V,
        "open_checkpoints(max_to_keep",
        "be at least 1",
        "0.",
        "The latest ones are kept.",
        lambda folder: opened(folder, max_to_keep=0),
    ),
    "a step that is none": (
        T,
        "save(step",
        "be an integer",
        "2.5.",
        "the number of steps that the run has taken.",
        lambda folder: opened(folder, 1.0, 2.5),
    ),
    "an object": (
        T,
        "save(tree",
        "have leaves that are arrays, numbers, strings or functions",
        "b'bytes' at ['x'].",
        "Leave it out, or make it an array.",
        lambda folder: opened(folder, {"x": b"bytes"}, 1),
    ),
    "an array of objects": (
        T,
        "restore(tree",
        "have leaves that are arrays, numbers, strings or functions",
        "array([None], dtype=object) at [0].",
        "Leave it out, or make it an array.",
        lambda folder: opened(folder, 1.0, 1) or opened(folder, [np.array([None])]),
    ),
    "a step back": (
        V,
        "save(step",
        "be at least 9, the step of the latest checkpoint",
        "3.",
        "Start from what `restore` gives, or in a folder of its own:",
        lambda folder: opened(folder, 1.0, 9) or opened(folder, 1.0, 3),
    ),
    "a leaf more": (
        V,
        "restore(tree",
        "be like the one that is kept",
        "int at [1] for nothing in 'FOLDER/step_1'.",
        "That is another run's: start in a folder of its own.",
        lambda folder: opened(folder, [1.0], 1) or opened(folder, [1.0, 2]),
    ),
    "a number for a history": (
        V,
        "restore(tree",
        "be like the one that is kept",
        "float64[0] at the root for float64[] at the root in 'FOLDER/step_1'.",
        "That is another run's: start in a folder of its own.",
        lambda folder: opened(folder, np.array(1.0), 1) or opened(folder, np.zeros(0)),
    ),
    "no folder": (
        T,
        "minimize(checkpoints",
        "be a folder or `Checkpoints`",
        "5.",
        "`radazo.run.open_checkpoints(...)`.",
        lambda folder: run(5),
    ),
    "fewer steps": (
        V,
        "minimize(num_steps",
        "be at least 3, the steps that the run has taken",
        "2 for the run in 'FOLDER'.",
        "It is the total, and what was before is no longer kept",
        lambda folder: run(folder, num_steps=3) and run(folder, num_steps=2),
    ),
    "another key": (
        V,
        "minimize(checkpoints",
        "hold this run",
        f"{ANOTHER} key and another start.",
        "Start in another folder.",
        lambda folder: run(folder, num_steps=3) and run(folder, optimizer=optimizer(1)),
    ),
    "another start": (
        V,
        "minimize(checkpoints",
        "hold this run",
        f"{ANOTHER} start.",
        "Start in another folder.",
        lambda folder: (
            run(folder, num_steps=3)
            and run(folder, params=PARAMS | {"w": PARAMS["w"] + 1})
        ),
    ),
    "another state at the start": (
        V,
        "minimize(checkpoints",
        "hold this run",
        f"{ANOTHER} start.",
        "Start in another folder.",
        lambda folder: run(folder, state=run(folder, num_steps=3).state),
    ),
    "another rule with such a state": (
        V,
        "minimize(checkpoints",
        "hold this run",
        f"{ANOTHER} optimizer.",
        "Start in another folder.",
        lambda folder: (
            run(folder, num_steps=3)
            and run(folder, optimizer=radazo.zo_adamm(0.1, key=0))
        ),
    ),
    "another box": (
        V,
        "minimize(checkpoints",
        "hold this run",
        f"{ANOTHER} bounds.",
        "Start in another folder.",
        lambda folder: run(folder, num_steps=3) and run(folder, bounds=(-9, 9)),
    ),
    "a folder that is in use": (
        V,
        "open_checkpoints(folder",
        "be written by one run at a time",
        "'FOLDER', in which another is open.",
        "Wait until it has ended, or take another folder.",
        lambda folder: in_use(folder, lambda: run(folder)),
    ),
    "batches used up": (
        V,
        "minimize(batches",
        "be those of the run from the first on, 3 of which were used",
        "1.",
        "Give a fresh iterable, not an iterator that was used before",
        lambda folder: (
            run(folder, num_steps=3) and run(folder, batches=lambda: iter([0.0]))
        ),
    ),
    "another shape": (
        V,
        "restore(tree",
        "be like the one that is kept",
        f"float32[2] at {W} for float32[3] at {W} in 'FOLDER/step_3'.",
        "That is another run's: start in a folder of its own.",
        lambda folder: (
            run(folder, num_steps=3) and run(folder, params=PARAMS | {"w": jnp.ones(2)})
        ),
    ),
    "another type": (
        V,
        "restore(tree",
        "be like the one that is kept",
        f"bfloat16[3] at {W} for float32[3] at {W} in 'FOLDER/step_3'.",
        "That is another run's: start in a folder of its own.",
        lambda folder: (
            run(folder, num_steps=3)
            and run(folder, params=PARAMS | {"w": jnp.ones(3, jnp.bfloat16)})
        ),
    ),
    "another optimizer": (
        V,
        "restore(tree",
        "be like the one that is kept",
        "bool at ['stopped'] for int32[] at ['state'].optimizer[0].count in ",
        "That is another run's: start in a folder of its own.",
        lambda folder: (
            run(folder, num_steps=3)
            and run(folder, optimizer=radazo.zo_sgd(0.1, key=0))
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained(tmp_path, mistake):
    kind, api_name, rule, got, hint, call = mistake
    got = got.replace("FOLDER", str(tmp_path))
    explained(Mistake(lambda: call(tmp_path), kind, api_name, rule, got, hint))


def refused(rule, got, hint, call):
    """The folder is refused, with this message."""
    explained(Mistake(call, V, "open_checkpoints(folder", rule, got, hint))


WRITE, ROOM = "be a folder that can be written", "What is kept there is as it was:"
READ, REMOVE = "have checkpoints that can be read", "remove this one, and the run"


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_the_way_is_said_before_anything_is_computed(tmp_path, below):
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
    """A file that would be larger cannot be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = np.random.default_rng(0).normal(size=2**18)


@pytest.mark.parametrize("size", [2**18, 2**10, 64])
def test_a_disk_that_is_full_is_said_and_what_was_kept_is_gone_on_from(tmp_path, size):
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
    assert step in (1, 2)  # The second was on its way when the disk was full.
    np.testing.assert_array_equal(restored["x"], step * BIG)


def test_what_fails_behind_an_error_does_not_hide_it(tmp_path):
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
SPOILED = {
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


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_file_is_refused_or_was_not_needed(tmp_path, kept, spoil):
    names = [p.relative_to(kept) for p in (kept / "step_2").rglob("*") if p.is_file()]
    num_refused = 0
    for i, name in enumerate(sorted(names)):
        folder = tmp_path / str(i)
        shutil.copytree(kept, folder)
        spoil(folder / name)
        again = functools.partial(opened, folder, TREE)
        try:
            step, restored = again()
        except ValueError:
            num_refused += 1
            refused(READ, f"'{folder / 'step_2'}', with ", REMOVE, again)
            shutil.rmtree(folder / "step_2")  # The way out.
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
        "Go on with the version of radazo that wrote it, or start in a new folder.",
        lambda: opened(folder, TREE),
    )


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rule, hint = "be given in a run of one process", "agree on when to save."
    refused(rule, "2 processes.", hint, lambda: opened(tmp_path))


def test_orbax_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
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
        message = "a pickle"
        raise AssertionError(message)

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, banned)
    run(tmp_path, num_steps=2)
    run(tmp_path, num_steps=3)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")
