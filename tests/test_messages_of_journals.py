"""What is said about a wrong journal, entry or run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo
from radazo import replicas
from radazo.journal import file_format


def with_radazo(num_directions):
    estimator = radazo.sphere_estimator(num_directions=num_directions)
    return radazo.radazo(0.1, estimator, key=0)


OPTIMIZER = with_radazo(2)
PARAMS = {"w": jnp.ones(3)}
STATE = OPTIMIZER.init(PARAMS)
PRINT = int(replicas.short_fingerprint([PARAMS["w"]]))
ENTRIES = radazo.journal.JournalEntry(
    np.arange(2),
    np.array([PRINT, PRINT], np.uint16),  # As if the first step had left them there.
    np.ones((2, 2), np.float32),
    np.ones(2, np.float32),
)
OPEN, REPLAY, APPEND = "open_journal(path", "replay(path", "append(entry"
OWN = "Each run has a journal of its own: take the one of this run."
NEXT = (
    "Append what `radazo.journal.recorded_step` gives, once for each step and in order."
)
OTHER_FILE = "Give the path of a file that `open_journal` or `minimize` wrote."
THIS = "be the journal of this run, whose key is"
KINDS = "have 2 slopes and a value of a step, in float32, and a fingerprint in uint16"
COUNT = "It is the number of steps that the state has counted."


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A journal of two steps, in the folder in which one is."""
    monkeypatch.chdir(tmp_path)
    with radazo.journal.open_journal("run", PARAMS, STATE) as journal:
        journal.append(ENTRIES)
    return "run"


def opened(path="run", params=PARAMS, state=STATE, **options):
    def call():
        with radazo.journal.open_journal(path, params, state, **options):
            pass

    return call


def replayed(params=PARAMS, state=None, optimizer=OPTIMIZER, **options):
    return lambda: radazo.journal.replay("run", optimizer, params, state, **options)


def appended(change):
    """An entry of step 2 that is changed."""

    def call():
        state = STATE._replace(count=jnp.int32(2))
        ones = np.ones(2, np.float32)
        entry = radazo.journal.JournalEntry(2, np.uint16(7), ones, np.float32(1))
        with radazo.journal.open_journal("run", PARAMS, state) as journal:
            journal.append(change(entry))

    return call


def repeated():
    entries = ENTRIES._replace(value=np.array([1, 2], np.float32))
    with radazo.journal.open_journal("run", PARAMS, STATE) as journal:
        journal.append(entries)


def changed(part, to):
    def call():
        with Path("run").open("r+b") as file:
            file.seek(part)
            file.write(to)
        radazo.journal.read_journal("run")

    return call


def value_fn(params):
    return jnp.sum(params["w"] ** 2)


def step_of(optimizer, value_fn=value_fn):
    def call():
        step = radazo.journal.recorded_step(optimizer, value_fn)
        step(jax.tree.map(jnp.copy, PARAMS), optimizer.init(PARAMS))

    return call


def traced():
    step = radazo.journal.recorded_step(OPTIMIZER, value_fn)
    jax.eval_shape(step, PARAMS, STATE)


def with_rule(rule):
    return radazo.with_estimator(radazo.sphere_estimator(num_directions=2), rule, 0)


MISTAKES = {
    "a number for the path": Mistake(
        opened(3), TypeError, OPEN, "be a path on this machine", "3.", "one file"
    ),
    "a bucket": Mistake(
        lambda: radazo.journal.read_journal("gs://bucket/run"),
        TypeError,
        "read_journal(path",
        "be a path on this machine",
        "'gs://bucket/run'.",
        "a bucket has to be mounted",
    ),
    "a folder that is missing": Mistake(
        opened("missing/run"),
        ValueError,
        OPEN,
        "be a file that can be written",
        "'missing/run', with FileNotFoundError",
        "The file is made, but not the folder that it is to be in: make it first.",
    ),
    "a folder": Mistake(
        opened("."),
        ValueError,
        OPEN,
        "be a file that can be written",
        "'.', with IsADirectoryError",
        "What was written is as it was",
    ),
    "a device": Mistake(
        opened("/dev/null"),
        ValueError,
        OPEN,
        "be a file",
        "'/dev/null'.",
        "A journal is read again.",
    ),
    "an empty file": Mistake(
        lambda: file_format.parsed("replay", "run", b""),
        ValueError,
        REPLAY,
        "have a step in it",
        "'run', which is empty.",
        "No step was written yet: the run begins the file with its first one.",
    ),
    "a header cut short": Mistake(
        lambda: file_format.parsed("replay", "run", file_format.MAGIC + b"12"),
        ValueError,
        REPLAY,
        f"have a header of {file_format.HEADER_BYTES} bytes",
        "'run' of 10 bytes.",
        OTHER_FILE,
    ),
    "a damaged header": Mistake(
        changed(20, b"\xff"),
        ValueError,
        "read_journal(path",
        "have a good header",
        "'run' with a bad CRC.",
        "The file was damaged after it was written: take a copy of it.",
    ),
    "another key": Mistake(
        opened(state=STATE._replace(key_data=jnp.array([0, 9], jnp.uint32))),
        ValueError,
        OPEN,
        f"{THIS} (0, 9)",
        "'run', of the key (0, 0).",
        OWN,
    ),
    "another model": Mistake(
        replayed({"w": jnp.ones(4)}),
        ValueError,
        REPLAY,
        f"{THIS} (0, 0)",
        "'run', of parameters with other names, shapes or types.",
        OWN,
    ),
    "another optimizer": Mistake(
        replayed(optimizer=radazo.zo_adamm(0.1, key=0)),
        ValueError,
        REPLAY,
        f"{THIS} (0, 0)",
        "'run', of an optimizer's state with other names, shapes or types.",
        OWN,
    ),
    "other bounds": Mistake(
        replayed(bounds=(0, 2)),
        ValueError,
        REPLAY,
        f"{THIS} (0, 0)",
        "'run', of other `bounds`.",
        OWN,
    ),
    "another start": Mistake(
        replayed({"w": jnp.zeros(3)}),
        ValueError,
        REPLAY,
        f"{THIS} (0, 0)",
        "'run', of parameters or a state with other values before step 0.",
        OWN,
    ),
    "other parameters than those of a checkpoint": Mistake(
        replayed({"w": jnp.zeros(3)}, STATE._replace(count=jnp.int32(1))),
        ValueError,
        "replay(params",
        "be those of the run before step 1",
        "others, with the fingerprint ",
        f"in the place of {PRINT}. Give those of a checkpoint of this run, with their "
        "state.",
    ),
    "another learning rate": Mistake(
        replayed(),
        ValueError,
        "replay(optimizer",
        "make the parameters that the run had before step 1",
        "others, with the fingerprint ",
        "the optimizer of the run, with its learning rate, estimator and law, and the "
        "state of the same checkpoint as the parameters. It may be the machine, too: "
        f"the run was made with jax {jax.__version__} on cpu, and another backend",
    ),
    "a state beyond the end": Mistake(
        opened(state=STATE._replace(count=jnp.int32(3))),
        ValueError,
        "open_journal(state",
        "be of step 0 to 2, which the journal 'run' has",
        "one of step 3.",
        "Start from an earlier checkpoint, or with `optimizer.init`.",
    ),
    "a state without an estimator": Mistake(
        opened(state=optax.EmptyState()),
        ValueError,
        "open_journal(optimizer",
        "have one estimator in it",
        "one whose state has 0.",
        "Take `radazo.radazo(...)`",
    ),
    "a count before the state": Mistake(
        replayed(count=-1), ValueError, "replay(count", "be at least 0", "-1.", COUNT
    ),
    "a count behind the end": Mistake(
        replayed(count=3),
        ValueError,
        "replay(count",
        "be at most 2, where the journal ends",
        "3.",
        COUNT,
    ),
    "a count that is no integer": Mistake(
        replayed(count=1.0), TypeError, "replay(count", "be an integer", "1.0.", COUNT
    ),
    "no optimizer": Mistake(
        replayed(optimizer="sgd"),
        TypeError,
        "replay(optimizer",
        "be an optax.GradientTransformation",
        "'sgd'.",
        "Pass `radazo.radazo(0.01, key=0)`, say, or `radazo.in_place(...)`.",
    ),
    "another number of directions": Mistake(
        replayed(
            optimizer=radazo.radazo(
                0.1, radazo.sphere_estimator(num_directions=3), key=0
            )
        ),
        ValueError,
        "replay(optimizer",
        "look along 2 directions in a step, as the journal has slopes",
        "one that looks along 3.",
        "Give the optimizer of the run: `num_directions=2` of its estimator.",
    ),
    "no entry": Mistake(
        appended(lambda entry: entry.value),
        TypeError,
        APPEND,
        "be a JournalEntry",
        "",
        "",
    ),
    "slopes of another type": Mistake(
        appended(lambda entry: entry._replace(slopes=entry.slopes.astype(np.float64))),
        ValueError,
        APPEND,
        KINDS,
        "slopes, value and fingerprint of float64[2], float32[], uint16[].",
        NEXT,
    ),
    "too many slopes": Mistake(
        appended(lambda entry: entry._replace(slopes=np.ones(3, np.float32))),
        ValueError,
        APPEND,
        KINDS,
        "slopes, value and fingerprint of float32[3], float32[], uint16[].",
        NEXT,
    ),
    "no fingerprint": Mistake(
        appended(lambda entry: entry._replace(fingerprint=0)),
        ValueError,
        APPEND,
        KINDS,
        "slopes, value and fingerprint of float32[2], float32[], int64[].",
        NEXT,
    ),
    "a step left out": Mistake(
        appended(lambda entry: entry._replace(count=4)),
        ValueError,
        APPEND,
        "be that of step 2",
        "that of step 4.",
        NEXT,
    ),
    "another run of the same start": Mistake(
        repeated,
        ValueError,
        APPEND,
        "be what 'run' has of step 1",
        "another.",
        "The run does not repeat itself",
    ),
    "no optimizer for a step": Mistake(
        step_of("sgd"),
        TypeError,
        "recorded_step(optimizer",
        "be an optax.GradientTransformation",
        "'sgd'.",
        "Pass `radazo.radazo(0.01, key=0)`, say",
    ),
    "no function for a step": Mistake(
        step_of(OPTIMIZER, 3.0),
        TypeError,
        "recorded_step(value_fn",
        "be a function",
        "3.0.",
        "It takes the parameters first.",
    ),
    "a step within a compiled function": Mistake(
        traced,
        TypeError,
        "recorded_step(...)(params",
        "be arrays, since a step is two programs",
        "traced ones.",
        "Call it in a loop of Python, outside of `jax.jit` and `lax.scan`.",
    ),
    "an estimator without directions": Mistake(
        step_of(
            radazo.with_estimator(radazo.interpolation_estimator(), optax.sgd(0.1), 0)
        ),
        TypeError,
        "recorded_step(optimizer",
        "have an estimator that takes one mean of slope times direction in a step",
        "one that takes 0.",
        "Take `radazo.sphere_estimator()`, say.",
    ),
    "a line search": Mistake(
        step_of(with_rule(optax.scale_by_backtracking_linesearch(3))),
        TypeError,
        "estimate(value_fn",
        "be a function here",
        "a `Replayed`.",
        "or the optimizer behind it, evaluates points that are not known before",
    ),
}


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_message_says_where_the_rule_what_came_and_the_way_out(mistake):
    explained(mistake)
