"""What estimators remember, what they cost, and the forms that carry their state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import counting, half_sum_of_squares

import radazo

RESERVED = {"value", "grad", "mu", "nu", "learning_rate"}
DIM = 2000


def start():
    return {
        "a": jnp.array([2.0, -1.5, 1.0], jnp.float32),
        "b": (jnp.ones((1, 2)), jnp.asarray(0.5)),
    }


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def fast(smoothing):
    return lambda count: smoothing * 0.9 ** count.astype(jnp.float32)


# Arguments that all estimators have, and of which no type of a state depends.
FLAGS = {
    "terms": {"terms": True},
    "schedule": {"smoothing": fast(0.01)},
    "mask": {"mask": True},
}


def test_the_state_is_arrays_of_the_same_types_in_and_out(row):
    estimator = row.make(num_directions=3)
    state = estimator.init(start())
    step = lambda: radazo.estimate(estimator, 1, half_sum_of_squares, start(), state)
    _, _, after, _ = jax.eval_shape(step)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert described(after) == described(state)


@pytest.mark.parametrize("options", FLAGS.values(), ids=FLAGS)
def test_the_type_of_a_state_depends_on_no_flag(row, options):
    if not row.alone and "smoothing" in options:
        pytest.skip("what it wraps is memoryless")
    plain, flagged = (
        row.make(num_directions=3, **more).init(start()) for more in ({}, options)
    )
    assert described(plain) == described(flagged)


def test_no_field_of_a_state_has_a_name_that_tree_get_finds_elsewhere(row):
    state = radazo.estimate_gradient(row.make(), 0).init(start())
    assert RESERVED.isdisjoint(state._fields)
    assert RESERVED.isdisjoint(state.estimator._fields)


@pytest.mark.parametrize("num_directions", [3, 5])
def test_the_state_holds_as_many_copies_of_the_parameters_as_it_says(
    row, num_directions
):
    state = row.make(num_directions=num_directions).init(jnp.ones(DIM))
    copies = sum(x.nbytes for x in jax.tree.leaves(state)) / (4 * DIM)
    promised = row.copies(num_directions)
    # What does not grow with the parameters is little beside them.
    assert promised <= copies < promised + 0.25


def test_a_fresh_state_shares_no_memory_with_the_parameters(row):
    estimator, params = row.make(num_directions=3), start()
    state = estimator.init(params)
    jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)(state)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(params))


@pytest.mark.fast_cases(3)
def test_every_function_value_is_counted(kind):
    num_directions = 4
    counted, calls = counting(half_sum_of_squares)
    estimator = kind.make(num_directions=num_directions)

    @jax.jit
    def step(key, params, state):
        _, gradient, state, info = radazo.estimate(
            estimator, key, counted, params, state
        )
        params = jax.tree.map(lambda x, g: x - 0.01 * g, params, gradient)
        return params, state, info.num_values

    params, state, taken = start(), estimator.init(start()), []
    for key in range(4):
        before = len(calls)
        params, state, num_values = step(key, params, state)
        jax.block_until_ready((params, state))
        jax.effects_barrier()
        elsewhere = 0 if kind.alone or key else num_directions + 1
        assert int(num_values) == len(calls) - before + elsewhere
        taken.append(int(num_values))
    assert taken[0] == kind.num_values(num_directions)


@pytest.mark.fast_cases(6)
def test_an_update_that_closes_over_a_tracer_leaks_none(kind):
    optimizer = radazo.with_estimator(
        kind.make(num_directions=2), optax.sgd(0.1), key=0
    )
    state = optimizer.init(jnp.ones(3))

    @jax.jit
    def step(params, state, batch):
        return optimizer.update(
            None, state, params, value_fn=lambda x: jnp.sum(batch * x)
        )

    with jax.checking_leaks():
        for size in (1, 3):
            updates, _ = jax.eval_shape(step, jnp.ones(3), state, jnp.ones(size))
            assert updates.shape == (3,)


@pytest.mark.fast_cases(5)
def test_hundreds_of_steps_of_learning_rate_zero_leave_every_bit(kind):
    params = {
        "a": jnp.array([0.1, -3.0, 7e-3], jnp.bfloat16),
        "b": jnp.asarray(1 / 3, jnp.bfloat16),
        "c": jnp.array([0.1, -3.0, 7e-3]),
    }
    optimizer = radazo.zo_sgd(0.0, kind.make(num_directions=2), key=0)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(
            None, state, params, value_fn=half_sum_of_squares
        )
        return optax.apply_updates(params, updates), state

    reached, state = params, optimizer.init(params)
    for _ in range(300):
        reached, state = step(reached, state)
    assert state.count == state.estimator.count == 300
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), reached, params
    )


def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)


@pytest.mark.fast_cases(1)
def test_the_combinator_is_a_loop_at_fold_in_key_count(kind):
    estimator, key = kind.make(num_directions=3), jax.random.key(11)
    rate = optax.scale_by_learning_rate(0.1)
    around = radazo.with_estimator(estimator, rate, key)

    @jax.jit
    def update(state, params):
        return around.update(None, state, params, value_fn=half_sum_of_squares)

    @jax.jit
    def estimate(key, params, memory):
        return radazo.estimate(estimator, key, half_sum_of_squares, params, memory)[:3]

    params = mine = start()
    state, memory = around.init(params), estimator.init(params)
    for count in range(3):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        value, gradient, memory = estimate(jax.random.fold_in(key, count), mine, memory)
        mine = optax.apply_updates(mine, rate.update(gradient, rate.init(mine))[0])
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            (state.last_value, params),
            (value, mine),
        )


@pytest.mark.fast_cases(6)
def test_the_link_is_the_combinator_around_nothing(kind):
    """The same program, from the same state: the key is in that."""
    estimator, key = kind.make(num_directions=3), jax.random.key(11)
    link = radazo.estimate_gradient(estimator, key)
    around = radazo.with_estimator(estimator, optax.identity(), key)
    states = [optimizer.init(start()) for optimizer in (link, around)]
    jax.tree.map(np.testing.assert_array_equal, *states)

    def program(optimizer, state):
        update = lambda state, params: optimizer.update(
            None, state, params, value_fn=half_sum_of_squares
        )
        return str(jax.make_jaxpr(update)(state, start()))

    assert program(link, states[0]) == program(around, states[1])
