"""A saved run resumes bit for bit, and a tree is restored as it was."""

import functools
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import as_a_user

import radazo
from radazo.run import checkpointing

pytest.importorskip("orbax.checkpoint")

PARAMS = {
    "w": jnp.ones(3),
    "half": jnp.ones(4, jnp.bfloat16),
    "key": jax.random.key(7),
    "ints": jnp.arange(2),
    "int": 3,
    "none": None,
    "empty": jnp.zeros((0, 2)),
}
NUM_STEPS = 12


def optimizer(key=0):
    return radazo.radazo(0.05, radazo.rademacher_estimator(num_directions=1), key=key)


def value_fn(params, batch):
    wide = params["half"].astype(jnp.float32)
    return jnp.sum(jnp.square(params["w"] - batch)) + jnp.sum(jnp.square(wide))


def of_step(step):
    return jnp.sin(step.astype(jnp.float32))


def items():
    """An iterator over the same batches."""
    return (np.float32(np.sin(np.float32(i))) for i in range(NUM_STEPS))


BATCHES = {"a function": lambda: of_step, "an iterator": items}


def run(checkpoints=None, num_steps=NUM_STEPS, batches=items, params=PARAMS, **options):
    arguments = {"optimizer": optimizer(), "progress": False, **options}
    with as_a_user():  # optax scales integers by a float.
        return radazo.minimize(
            value_fn,
            params,
            num_steps=num_steps,
            batches=batches(),
            checkpoints=checkpoints,
            **arguments,
        )


@functools.cache
def whole(batches=items):
    """The uninterrupted run."""
    return run(batches=batches)


def bits(tree):
    """Return all bits and types of a tree as text."""

    def of(leaf):
        if not hasattr(leaf, "dtype"):
            return f"{type(leaf).__name__} {leaf!r}"
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        kind = "jax" if isinstance(leaf, jax.Array) else type(leaf).__name__
        return f"{kind} {leaf.dtype} {leaf.shape} {np.asarray(leaf).tobytes().hex()}"

    leaves, treedef = jax.tree.flatten(tree)
    return str(treedef), [of(leaf) for leaf in leaves]


def kept_steps(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir())


def ends_at(step):
    """Return a callback that sends a signal at a step."""

    def ask(number):
        return lambda result: (
            os.kill(os.getpid(), number) if result.num_steps == step else None
        )

    return ask


@pytest.fixture
def handlers():
    """Handlers of the caller, which must be restored and never called."""
    heard = []
    own = lambda number, frame: heard.append(number)
    before = {n: signal.signal(n, own) for n in (signal.SIGINT, signal.SIGTERM)}
    yield own, heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES.keys())
def test_a_run_in_parts_is_the_run_in_one(tmp_path, batches):
    first = run(tmp_path, num_steps=5, batches=batches)
    assert (first.num_steps, first.status) == (5, "finished")
    second = run(tmp_path, batches=batches)
    assert bits(second) == bits(whole(batches))
    assert kept_steps(tmp_path) == [5, NUM_STEPS]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_saved_at_a_signal_and_resumes(tmp_path, handlers, number):
    first = run(tmp_path, callback=ends_at(4)(number), callback_every=1)
    assert (first.num_steps, first.status) == (4, "interrupted")
    assert kept_steps(tmp_path) == [4]
    assert bits(run(tmp_path)) == bits(whole())
    own, heard = handlers
    assert signal.getsignal(number) is own
    assert heard == []


def test_without_checkpoints_sigterm_is_the_callers(handlers):
    result = run(callback=ends_at(4)(signal.SIGTERM), callback_every=1)
    assert (result.num_steps, result.status) == (NUM_STEPS, "finished")
    assert handlers[1] == [signal.SIGTERM]


def test_a_second_control_c_is_raised_and_the_run_resumes(tmp_path, handlers):
    def twice(result):
        if result.num_steps == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with (
        pytest.raises(KeyboardInterrupt),
        radazo.run.open_checkpoints(tmp_path, interval_seconds=0) as checkpoints,
    ):
        run(checkpoints, callback=twice, callback_every=1)
    assert kept_steps(tmp_path) == [4, 5]
    assert bits(run(tmp_path)) == bits(whole())


def test_a_run_that_has_ended_returns_its_result_at_once(tmp_path):
    ended = run(tmp_path)
    calls = []
    tell = lambda params, batch: calls.append(1) or value_fn(params, batch)
    again = radazo.minimize(
        tell, PARAMS, optimizer(), NUM_STEPS, batches=items(), checkpoints=tmp_path
    )
    assert bits(again) == bits(ended)
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [
        {"stop": lambda value, params: value < 5},
        {"callback": lambda result: result.num_steps == 6, "callback_every": 2},
        {"num_steps": NUM_STEPS + 5},
    ],
    ids=["stop", "callback", "exhausted"],
)
def test_a_run_that_ended_early_ends_there_again(tmp_path, options):
    ended = run(tmp_path, **options)
    assert ended.status in ("stopped", "exhausted")
    assert 1 < ended.num_steps <= NUM_STEPS
    assert kept_steps(tmp_path) == [ended.num_steps]
    options.pop("callback", None)
    assert bits(run(tmp_path, **options)) == bits(ended)


def test_a_run_from_a_state_resumes_from_its_own_checkpoint(tmp_path):
    first = run(num_steps=5, batches=lambda: of_step)
    rest = {"params": first.params, "state": first.state, "batches": lambda: of_step}
    in_one = run(num_steps=7, **rest)
    run(tmp_path, num_steps=3, **rest)
    assert bits(run(tmp_path, num_steps=7, **rest)) == bits(in_one)


def test_arrays_stay_where_they_were_put(tmp_path):
    one, other = jax.devices()[:2]
    tree = {"here": jax.device_put(jnp.ones(2), other), "free": jnp.ones(2)}
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree["parts"] = jax.device_put(jnp.arange(4), parts)
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, now=True)
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        _, restored = checkpoints.restore(tree)
    assert bits(restored) == bits(tree)
    assert restored["here"].devices() == {other}
    assert restored["parts"].sharding == parts
    assert restored["free"].devices() == {one}
    assert not restored["free"].committed


LEAVES = {
    "python": [True, 3, -2.5, "text", float("inf"), 10**30],
    "nan": np.array([np.nan, -0.0]),
    "numpy": [np.float64(1 / 3), np.arange(4, dtype=np.int8), np.array(False)],
    "kinds": [jnp.float16(0.1), jnp.bfloat16(0.1), jnp.uint32(7), jnp.array(True)],
    "complex": jnp.array([1 + 2j]),
    "keys": [jax.random.split(jax.random.key(1), 3), jax.random.key(2, impl="rbg")],
    "nothing": [None, (), {}, np.zeros((0, 3)), jnp.zeros((2, 0))],
}


def test_every_kind_of_leaf_is_restored_as_it_was(tmp_path):
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(LEAVES) == (0, LEAVES)
        checkpoints.save(3, LEAVES, now=True)
    python = [False, 0, 0.0, "", 0.0, 0]
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        step, restored = checkpoints.restore({**LEAVES, "python": python})
    assert step == 3
    assert bits(restored) == bits(LEAVES)


def test_a_checkpoint_being_written_can_be_restored(tmp_path):
    with radazo.run.open_checkpoints(tmp_path, interval_seconds=0) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(step, jnp.full(1000, float(step)))
            reached, restored = checkpoints.restore(jnp.zeros(1000))
            assert (reached, float(restored[-1])) == (step, step)


def test_a_tree_without_arrays_can_be_saved(tmp_path):
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"best": 2.5}, now=True)
        checkpoints.save(2, {"best": 1.5}, now=True)
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"best": 0.0}) == (2, {"best": 1.5})


def test_a_history_may_grow_and_functions_are_those_given(tmp_path):
    grown = {"values": np.arange(5.0), "fn": jnp.sin}
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, grown, now=True)
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        given = {"values": np.zeros(0), "fn": jnp.cos}
        _, restored = checkpoints.restore(given)
    assert restored["values"].tolist() == [0, 1, 2, 3, 4]
    assert restored["fn"] is jnp.cos


def test_arrays_are_copied_before_save_returns(tmp_path):
    spoil = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        on_device, on_host = jnp.full(2**20, 7.0), np.full(2**20, 7.0)
        checkpoints.save(1, (on_device, on_host), now=True)
        on_host[:] = -1
        spoil(spoil(on_device)).block_until_ready()
    with radazo.run.open_checkpoints(tmp_path) as checkpoints:
        _, restored = checkpoints.restore((jnp.zeros(2**20), on_host))
    assert all(np.all(np.asarray(x) == 7) for x in restored)


def test_checkpoints_are_saved_at_intervals_and_the_latest_kept(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: clock[0])
    with radazo.run.open_checkpoints(
        tmp_path, interval_seconds=10, max_to_keep=3
    ) as checkpoints:
        seen = []
        for step in range(1, 51):
            clock[0] += 1
            checkpoints.save(step, {"x": float(step)})
            seen = kept_steps(tmp_path) if step == 9 else seen
    assert seen == []
    assert kept_steps(tmp_path) == [30, 40, 50]


def test_the_next_save_after_a_signal_writes(tmp_path, handlers):
    with radazo.run.open_checkpoints(tmp_path, interval_seconds=1e9) as checkpoints:
        for step in range(1, 10):
            checkpoints.save(step, {"x": step})
            if step == 4:  # After the save, so that the next one acts on it.
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                assert not checkpoints.interrupted()
            if checkpoints.interrupted():
                break
        assert step == 5
        assert kept_steps(tmp_path) == [5]  # Already on disk.
    assert handlers[1] == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    for name in ("1", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine", encoding="utf-8")
    with radazo.run.open_checkpoints(
        tmp_path, interval_seconds=0, max_to_keep=1
    ) as checkpoints:
        assert checkpoints.restore(1.0) == (0, 1.0)
        for step in (5, 6):
            checkpoints.save(step, 2.0)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "notes", "step_6"}
    assert (tmp_path / "1" / "file").read_text(encoding="utf-8") == "mine"


def test_a_relative_path_starts_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("runs") / "first", num_steps=2)
    assert kept_steps(tmp_path / "runs" / "first") == [2]
