"""Every wrong call in `messages.txt` gets its message: place, rule, value and remedy.

`python tests/test_messages.py` writes the messages of all calls anew.
"""

import contextlib
import doctest
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMIZERS, as_a_user
from contracts import PRESETS

import radazo
from radazo import replicas, validation

FILE = Path(__file__).with_name("messages.txt")
FORM = r"(?s)`[\w.()]+\(\w+=\.\.\.\)` must .+; got .+\. .+[.)?]"

ONES = jnp.ones(3)
W = {"w": ONES}
SIMPLE = radazo.zo_sgd(0.1, key=0)
SIMPLE_RULE = optax.sgd(0.1)


def estimate(value_fn, *, has_aux=False, key=0, **options):
    estimator = radazo.sphere_estimator(**options)
    return radazo.value_and_grad(value_fn, estimator, has_aux=has_aux)(key, ONES)


def init(params, **options):
    return radazo.sphere_estimator(**options).init(params)


def update(*params, **extra):
    optimizer = radazo.radazo(0.1, key=0)
    return optimizer.update(None, optimizer.init(ONES), *params, **extra)


def run(value_fn=jnp.sum, params=ONES, num_steps=3, optimizer=None, **options):
    optimizer = optimizer or radazo.radazo(0.1, key=0)
    with as_a_user():  # optax scales integers by a float.
        return radazo.minimize(value_fn, params, optimizer, num_steps, **options)


def clients(**options):
    def value_fn(params, client):
        return jnp.sum(params * client)

    options = {"estimator": radazo.sphere_estimator(), "num_clients": 2} | options
    return radazo.federated.federated(value_fn, key=0, **options)


TREE = {
    "w": jnp.ones(3),
    "half": jnp.ones(4, jnp.bfloat16),
    "key": jax.random.key(7),
    "int": 3,
    "none": None,
    "empty": jnp.zeros((0, 2)),
}


def of_tree(params, *_):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["half"].astype(jnp.float32))


def checkpoints(folder="kept", tree=None, step=None, **options):
    """Open the folder; restore the tree, or save it at the step."""
    with radazo.run.open_checkpoints(folder, **options) as opened:
        if step is not None:
            opened.save(step, tree, now=True)
        elif tree is not None:
            opened.restore(tree)


def open_twice():
    with radazo.run.open_checkpoints("kept"):
        checkpoints()


def resume(num_steps=4, batches=lambda: iter(np.zeros(9, np.float32)), **options):
    """Continue a run of three steps, of which one argument differs."""
    fixed = {"params": TREE, "value_fn": of_tree, "checkpoints": "kept"}
    run(num_steps=3, batches=iter(np.zeros(3, np.float32)), **fixed)
    run(num_steps=num_steps, batches=batches(), **fixed | options)


JOURNALED = radazo.radazo(0.1, radazo.sphere_estimator(num_directions=2), key=0)
STATE = JOURNALED.init(W)
PRINT = int(replicas.short_fingerprint([ONES]))
ENTRIES = radazo.journal.JournalEntry(
    np.arange(2),
    np.array([PRINT, PRINT], np.uint16),  # As if the first step had left them there.
    np.ones((2, 2), np.float32),
    np.ones(2, np.float32),
)


def of_w(params):
    return jnp.sum(params["w"] ** 2)


@contextlib.contextmanager
def journal_of_two_steps(state=STATE):
    with radazo.journal.open_journal("run", W, STATE) as journal:
        journal.append(ENTRIES)
    with radazo.journal.open_journal("run", W, state) as journal:
        yield journal


def open_journal(path="run", params=W, state=STATE):
    with journal_of_two_steps():
        pass
    with radazo.journal.open_journal(path, params, state):
        pass


def replay(params=W, state=None, optimizer=JOURNALED, **options):
    with journal_of_two_steps():
        pass
    radazo.journal.replay("run", optimizer, params, state, **options)


def append(change):
    """Append an entry of step 2 that is changed."""
    ones = np.ones(2, np.float32)
    entry = radazo.journal.JournalEntry(2, np.uint16(7), ones, np.float32(1))
    with journal_of_two_steps(STATE._replace(count=jnp.int32(2))) as journal:
        journal.append(change(entry))


def append_another_run():
    with journal_of_two_steps() as journal:
        journal.append(ENTRIES._replace(value=np.array([1, 2], np.float32)))


def read_damaged():
    with journal_of_two_steps():
        pass
    with Path("run").open("r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    radazo.journal.read_journal("run")


def recorded_step(optimizer=JOURNALED, value_fn=of_w):
    step = radazo.journal.recorded_step(optimizer, value_fn)
    step(jax.tree.map(jnp.copy, W), optimizer.init(W))


def open_pool(value_fn=np.sum, executor=ThreadPoolExecutor, **options):
    options = {"max_concurrent": 2} | options
    return radazo.pool.evaluation_pool(value_fn, executor, **options)


def evaluate(queries, **options):
    with open_pool(**options) as pool:
        list(pool.evaluate(queries))


def pool_run(optimizer, num_steps=1, value_fn=np.sum, **options):
    with open_pool(value_fn) as pool:
        pool.minimize(np.zeros(2, np.float32), optimizer, num_steps, **options)


def broken(point):
    raise NameError("x")


NAMES = vars(radazo) | globals() | {"NAN": float("nan"), "INF": float("inf")}
NAMES["radazo"] = radazo.radazo
PARTS = doctest.DocTestParser().parse(FILE.read_text(encoding="utf-8"))
CALLS = [part for part in PARTS if isinstance(part, doctest.Example)]


def message(call, folder):
    """Make the call in the folder; return its error without what differs by machine."""
    with contextlib.chdir(folder), pytest.raises((TypeError, ValueError)) as caught:
        eval(call, NAMES)
    text = str(caught.value)
    assert re.fullmatch(FORM, text), text
    for pattern, replacement in (
        (re.escape(str(folder)), "FOLDER"),
        (re.escape(f"jax {jax.__version__}"), "jax VERSION"),
        (r"\b((Estimator|Gradient\w+|DirectionSampler|\w+State)\().*?\. ", r"\1…). "),
        (r"0x[0-9a-f]+", "0x…"),
        (r"fingerprint \d+ instead of \d+", "fingerprint … instead of …"),
    ):
        text = re.sub(pattern, replacement, text)
    return f"{caught.type.__name__}: {text}\n"


@pytest.mark.parametrize("example", CALLS, ids=[part.source.strip() for part in CALLS])
def test_a_wrong_call_gets_its_message(example, tmp_path):
    assert message(example.source, tmp_path) == example.want


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("smoothing", ["0.0", "-1", "NAN", "INF"])
def test_every_estimator_needs_a_smoothing_above_zero(name, smoothing, tmp_path):
    call = f"sphere_estimator(smoothing={smoothing})"
    wanted = message(call, tmp_path).replace("sphere", name)
    assert message(call.replace("sphere", name), tmp_path) == wanted.replace(
        f"radazo.{name}", "radazo.sphere"
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "arguments", ["-0.1, key=0", "NAN, key=0", "'0.1', key=0", "1, sphere_estimator"]
)
def test_every_optimizer_checks_alike(name, arguments, tmp_path):
    if "key" not in arguments:
        arguments += ", key=0"
    wanted = message(f"radazo({arguments})", tmp_path)
    wanted = wanted.replace("`radazo(", f"`{name}(")
    assert message(f"{name}({arguments})", tmp_path) == wanted


def test_every_optimizer_needs_a_key(make_optimizer):
    with pytest.raises(TypeError, match="'key'"):
        make_optimizer(0.1)


@pytest.mark.parametrize("one", [np.int64(1), np.int32(1)])
def test_numbers_of_numpy_are_numbers(one):
    radazo.sphere_estimator(num_directions=one, smoothing=np.float32(1e-3))
    radazo.radazo(jnp.float32(0.1), key=one, b1=np.float64(0.5))


def test_a_name_has_one_rule():
    hint = "It takes the parameters first."
    validation.declare(validation.function, "value_fn", hint=hint)  # The same again.
    others = ((validation.function, {}), (validation.positive, {"hint": hint}))
    for rule, options in others:
        with pytest.raises(ValueError, match="must have one rule each; got 'value_fn'"):
            validation.declare(rule, "value_fn", **options)


def test_a_class_that_is_made_again_replaces_the_one_of_its_rule(monkeypatch):
    monkeypatch.setattr(validation, "_RULES", {})
    for _ in range(2):  # As `importlib.reload` does.
        kind = type("Sampler", (), {})
        validation.declare(validation.instance, "sampler", of=kind, hint="Pass one.")
        validation.check("f", sampler=kind())
    other = {"of": type("Other", (), {}), "hint": "Pass one."}
    with pytest.raises(ValueError, match="must have one rule each; got 'sampler'"):
        validation.declare(validation.instance, "sampler", **other)


def test_a_progress_bar_needs_tqdm(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert message("open_pool(progress=True).__enter__()", tmp_path) == (
        "ValueError: `evaluation_pool(progress=...)` must be None or False without "
        "tqdm; got True. Install tqdm: `pip install tqdm`.\n"
    )


def test_any_point_can_be_evaluated_without_a_cache():
    point = np.array([object()])
    with open_pool(len, max_concurrent=1, cache=False) as pool:
        assert list(pool.evaluate([("a", point)])) == [("a", 1.0)]


def written_anew():
    """Return the text of the file with the message that each call gets now."""
    for part in PARTS:
        if isinstance(part, str):
            yield part
            continue
        with tempfile.TemporaryDirectory() as folder:
            want = message(part.source, os.path.realpath(folder))
        yield ">>> " + part.source.strip().replace("\n", "\n... ") + "\n" + want


if __name__ == "__main__":
    FILE.write_text("".join(written_anew()), encoding="utf-8")
