"""A state that was written and read again goes on bit for bit."""

import io

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from conftest import half_sum_of_squares

import radazo

ESTIMATOR = radazo.coordinate_estimator(
    num_directions=3, smoothing=optax.linear_schedule(1e-2, 1e-3, 10)
)
SEED = 9


def start():
    return {"a": jnp.array([2.0, -1.5], jnp.bfloat16), "b": jnp.array([[1.0]])}


@pytest.fixture(scope="module")
def run():
    """A step, and where three steps and where six lead."""
    optimizer = radazo.radazo(0.03, ESTIMATOR, key=SEED)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            None, state, params, value_fn=half_sum_of_squares
        )
        return optax.apply_updates(params, updates), state

    def go_on(params, state):
        for _ in range(3):
            params, state = step(params, state)
        return params, state

    fresh = start(), optimizer.init(start())
    middle = go_on(*fresh)
    return go_on, fresh, middle, go_on(*middle)


def by_flax(tree, like, path):
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(tree))


def by_equinox(tree, like, path):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like)


def by_orbax(tree, like, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", like)


def by_savez(tree, like, path):
    leaves, treedef = jax.tree.flatten(tree)
    # NumPy writes bfloat16 as bytes without a name: their type is that of `like`.
    np.savez(path / "state.npz", *[np.asarray(x) for x in leaves])
    with np.load(path / "state.npz") as file:
        read = [file[name] for name in file.files]
    types = [x.dtype for x in jax.tree.leaves(like)]
    typed = [x.view(t).reshape(x.shape) for x, t in zip(read, types, strict=True)]
    return treedef.unflatten(jnp.asarray(x) for x in typed)


def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), first, second
    )


@pytest.mark.parametrize("round_trip", [by_flax, by_equinox, by_orbax, by_savez])
def test_a_run_resumed_from_a_file_is_the_run_without_a_stop(run, tmp_path, round_trip):
    go_on, fresh, middle, end = run
    assert_same_bits(go_on(*round_trip(middle, fresh, tmp_path)), end)


def test_a_run_resumed_from_a_fresh_state_is_another_run(run):
    go_on, fresh, middle, end = run
    params, _ = go_on(middle[0], fresh[1])
    assert not np.array_equal(params["b"], end[0]["b"])


def test_a_state_becomes_numpy_arrays(run):
    _, _, (_, state), _ = run
    assert all(np.asarray(x).dtype == x.dtype for x in jax.tree.leaves(state))


def test_a_state_can_be_cast_and_its_key_stays(run):
    _, _, (_, state), _ = run
    cast = optax.tree.cast(state, jnp.bfloat16)
    np.testing.assert_array_equal(cast.key_data, state.key_data)


def test_the_key_of_a_run_never_changes(run):
    _, fresh, _, end = run
    np.testing.assert_array_equal(end[1].key_data, fresh[1].key_data)


def test_the_key_in_the_state_is_a_copy_of_the_one_given():
    key = jax.random.key(SEED)
    state = radazo.zo_sgd(0.1, key=key).init(jnp.ones(2))
    jax.jit(lambda x: x + 1, donate_argnums=0)(state.key_data)
    np.testing.assert_array_equal(
        jax.random.key_data(key), jax.random.key_data(jax.random.key(SEED))
    )
