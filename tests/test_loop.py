"""A run by `minimize` is the loop that one would write, and keeps what it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo
from radazo.run import loop

START = {"w": jnp.array([2.0, -1.0, 0.5]), "b": jnp.array(3.0)}


def optimizer(rate=0.05, key=0, **options):
    return radazo.radazo(
        rate, radazo.sphere_estimator(num_directions=4, **options), key=key
    )


def by_hand(value_fn, params, optimizer, num_steps, batches=None):
    """The loop of the README, compiled as one step, and its history."""

    @jax.jit
    def step(params, state, *batch):
        updates, state = optimizer.update(
            None, state, params, value_fn=lambda p: value_fn(p, *batch)
        )
        return optax.apply_updates(params, updates), state

    state, history = optimizer.init(params), []
    for i in range(num_steps):
        params, state = step(params, state, *([] if batches is None else [batches[i]]))
        history.append((state.last_value, state.num_values))
    return params, state, history


def same(one, other):
    """Equal bit for bit, types and structure too."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(x, str):
            assert x == y
            continue
        assert (jnp.shape(x), jnp.result_type(x)) == (jnp.shape(y), jnp.result_type(y))
        np.testing.assert_array_equal(x, y)


def close(one, other, **tolerance):
    """Equal but for rounding: XLA fuses a loop of steps otherwise than a step."""
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), one, other)


@pytest.mark.fast_cases(1)
def test_a_run_is_the_loop_by_hand(make_optimizer):
    tried = make_optimizer(0.02, key=3)
    result = radazo.minimize(half_sum_of_squares, START, tried, 20)
    params, state, history = by_hand(half_sum_of_squares, START, tried, 20)
    close(result.params, params)
    assert (result.num_steps, result.status) == (20, "finished")
    assert int(result.state.count) == int(state.count) == 20
    close(result.values, np.array([value for value, _ in history]))
    assert result.num_values.tolist() == [int(num) for _, num in history]
    assert result.num_values.tolist() == [11 * (i + 1) for i in range(20)]


def test_no_steps_leave_everything_as_it_was():
    result = radazo.minimize(half_sum_of_squares, START, optimizer(), 0)
    same(result.params, START)
    same(result.state, optimizer().init(START))
    assert result.values.shape == result.num_values.shape == (0,)
    assert (result.num_steps, result.status) == (0, "finished")


def test_a_run_in_two_parts_is_the_run_in_one():
    tried = radazo.radazo(optax.linear_schedule(0.1, 0.0, 200), key=1)
    whole = radazo.minimize(half_sum_of_squares, START, tried, 200)
    first = radazo.minimize(half_sum_of_squares, START, tried, 100)
    second = radazo.minimize(
        half_sum_of_squares, first.params, tried, 100, state=first.state
    )
    same(second.params, whole.params)
    same(second.state, whole.state)
    same(np.concatenate([first.values, second.values]), whole.values)
    same(np.concatenate([first.num_values, second.num_values]), whole.num_values)


def test_a_state_can_be_gone_on_from_twice():
    first = radazo.minimize(half_sum_of_squares, START, optimizer(), 5)
    again = [
        radazo.minimize(
            half_sum_of_squares, first.params, optimizer(), 5, state=first.state
        )
        for _ in range(2)
    ]
    same(again[0], again[1])


def test_the_parameters_and_the_state_given_are_untouched():
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), START)
    tried = optimizer()
    state = tried.init(params)
    before = jax.tree.map(np.array, (params, state))
    radazo.minimize(half_sum_of_squares, params, tried, 3, state=state)
    same((params, state), jax.tree.map(jnp.asarray, before))  # And not deleted.


@pytest.mark.parametrize("steps_per_call", [1, 7, 1024])
def test_the_result_does_not_depend_on_how_many_steps_a_call_takes(
    monkeypatch, steps_per_call
):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", steps_per_call)
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 1e9)
    calls = []
    fast = radazo.minimize(
        half_sum_of_squares, START, optimizer(), 60, callback=calls.append
    )
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0.0)
    slow = radazo.minimize(half_sum_of_squares, START, optimizer(), 60)
    same(fast, slow)
    # Two calls to measure, then as many steps as may be, at most eight times more.
    assert (len(calls) == 60) == (steps_per_call == 1)


def test_a_function_is_traced_as_often_for_many_calls_as_for_one(monkeypatch):
    traces = []

    def value_fn(params, scale):
        traces.append(1)
        return scale * half_sum_of_squares(params)

    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0.0)  # One step a call.
    counts = []
    for num_steps in (1, 50):
        traces.clear()
        batches = (np.float32(i) for i in range(num_steps))
        radazo.minimize(value_fn, START, optimizer(), num_steps, batches=batches)
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 2  # At the parameters and on a line from them.


def shifted(params, batch):
    return jnp.sum(jnp.square(params - batch))


def test_batches_of_the_step_go_on_where_the_state_is():
    seen = lambda step: 0.1 * step.astype(jnp.float32)
    whole = radazo.minimize(shifted, jnp.ones(3), optimizer(), 8, batches=seen)
    first = radazo.minimize(shifted, jnp.ones(3), optimizer(), 4, batches=seen)
    second = radazo.minimize(
        shifted, first.params, optimizer(), 4, batches=seen, state=first.state
    )
    same(second.params, whole.params)
    items = np.arange(8, dtype=np.float32) * np.float32(0.1)
    params, _, _ = by_hand(shifted, jnp.ones(3), optimizer(), 8, jnp.asarray(items))
    close(whole.params, params)


def test_batches_may_be_arrays_or_dicts_and_give_the_run_by_hand():
    items = np.linspace(-1, 1, 6, dtype=np.float32)
    params, _, history = by_hand(shifted, jnp.ones(3), optimizer(), 6, items)
    arrays = radazo.minimize(shifted, jnp.ones(3), optimizer(), 6, batches=items)
    dicts = radazo.minimize(
        lambda params, batch: shifted(params, batch["by"]),
        jnp.ones(3),
        optimizer(),
        6,
        batches=({"by": x} for x in items),
    )
    same(arrays, dicts)
    close(arrays.params, params)
    close(arrays.values, np.array([value for value, _ in history]))


def test_an_item_that_is_none_is_passed_on():
    def value_fn(params, batch):
        assert batch is None
        return half_sum_of_squares(params)

    result = radazo.minimize(value_fn, START, optimizer(), 2, batches=[None, None])
    assert result.num_steps == 2


def test_a_run_ends_when_no_batch_is_left():
    result = radazo.minimize(
        shifted, jnp.ones(3), optimizer(), 10, batches=[0.0, 1.0, 2.0]
    )
    assert (result.num_steps, result.status) == (3, "exhausted")
    assert result.values.shape == result.num_values.shape == (3,)
    assert int(result.state.count) == 3


def test_as_many_batches_as_steps_finish_and_no_more_are_taken():
    items = iter([0.0, 1.0, 2.0, 3.0])
    result = radazo.minimize(shifted, jnp.ones(3), optimizer(), 3, batches=items)
    assert (result.num_steps, result.status, next(items)) == (3, "finished", 3.0)


@pytest.mark.parametrize("steps_per_call", [1, 1024])
def test_a_run_stops_with_the_parameters_for_which_the_rule_holds(
    monkeypatch, steps_per_call
):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", steps_per_call)
    result = radazo.minimize(
        half_sum_of_squares,
        START,
        optimizer(),
        500,
        stop=lambda value, params: value < 1,
    )
    assert result.status == "stopped"
    assert 1 < result.num_steps < 500
    assert half_sum_of_squares(result.params) < 1
    assert np.all(result.values[:-1] >= 1)
    close(result.values[-1], half_sum_of_squares(result.params))
    before, _, _ = by_hand(
        half_sum_of_squares, START, optimizer(), result.num_steps - 1
    )
    close(result.params, before)


def test_a_rule_that_holds_from_the_start_changes_no_parameter():
    stop = lambda value, params: params["b"] > 0
    result = radazo.minimize(half_sum_of_squares, START, optimizer(), 9, stop=stop)
    same(result.params, START)
    assert (result.num_steps, result.status) == (1, "stopped")


LOW, UP = jnp.array([0.5, -jnp.inf, -0.25]), jnp.array([jnp.inf, -0.5, 0.25])


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("lower", "upper", "low", "up"),
    [
        (-0.5, 1, (-0.5, -0.5), (1, 1)),
        ({"w": LOW, "b": 0.25}, {"w": UP, "b": np.float32(1)}, (LOW, 0.25), (UP, 1)),
        ({"w": LOW, "b": 0}, np.inf, (LOW, 0), (np.inf, np.inf)),
        (-np.inf, jnp.float32(0.25), (-np.inf, -np.inf), (0.25, 0.25)),
    ],
)
def test_parameters_are_in_the_box_at_every_step(lower, upper, low, up):
    results = []
    final = radazo.minimize(
        half_sum_of_squares,
        START,
        optimizer(0.3),
        12,
        bounds=(lower, upper),
        callback=results.append,
        callback_every=1,
    )
    assert len(results) == 12
    for result in [*results, final]:
        for leaf, below, above in zip(("w", "b"), low, up, strict=True):
            assert np.all(result.params[leaf] >= np.asarray(below, np.float32))
            assert np.all(result.params[leaf] <= np.asarray(above, np.float32))


def test_the_start_is_moved_into_the_box():
    result = radazo.minimize(
        half_sum_of_squares, START, optimizer(), 0, bounds=(-0.5, 1.0)
    )
    same(result.params, {"w": jnp.array([1.0, -0.5, 0.5]), "b": jnp.array(1.0)})
    run = radazo.minimize(half_sum_of_squares, START, optimizer(), 1, bounds=(-0.5, 1))
    np.testing.assert_allclose(run.values[0], (1 + 0.25 + 0.25 + 1) / 2, rtol=1e-6)


def test_infinite_bounds_change_nothing():
    bounds = (-np.inf, np.inf)
    free = radazo.minimize(half_sum_of_squares, START, optimizer(), 20)
    boxed = radazo.minimize(half_sum_of_squares, START, optimizer(), 20, bounds=bounds)
    same(free.params, boxed.params)


def test_leaves_that_are_no_floats_stay():
    given = {
        "w": jnp.ones(3),
        "float": 2.0,
        "int": 3,
        "none": None,
        "ints": jnp.arange(2),
        "bools": jnp.array([True, False]),
        "key": jax.random.key(7),
    }
    value_fn = lambda p: p["float"] * p["int"] * jnp.sum(jnp.square(p["w"]))
    with jax.numpy_dtype_promotion("standard"):  # optax scales integers by a float.
        result = radazo.minimize(value_fn, given, optimizer(), 3, bounds=(-5, 5))
    reached = result.params
    assert (reached["float"], reached["int"], reached["none"]) == (2.0, 3, None)
    assert type(reached["float"]) is float
    assert type(reached["int"]) is int
    same((reached["ints"], reached["bools"]), (given["ints"], given["bools"]))
    assert jnp.all(
        jax.random.key_data(reached["key"]) == jax.random.key_data(given["key"])
    )
    assert jnp.any(reached["w"] != given["w"])


def test_parameters_of_numpy_are_arrays_like_others():
    run = lambda params: radazo.minimize(half_sum_of_squares, params, optimizer(), 3)
    same(run(np.ones(3)).params, run(jnp.ones(3)).params)


def test_float64_is_kept(x64):
    params = jnp.array([1.0, 2.0], jnp.float64)
    value_fn, tried = lambda x: jnp.sum(x * x), optimizer(smoothing=1e-6)
    result = radazo.minimize(value_fn, params, tried, 10)
    assert result.params.dtype == result.values.dtype == np.float64
    by_step, _, history = by_hand(value_fn, params, tried, 10)
    # A difference of values near 1 over 1e-6 keeps 1e-10 of them.
    close(result.params, by_step, rtol=1e-8)
    close(result.values, np.array([value for value, _ in history]), rtol=1e-8)


def test_bfloat16_is_kept():
    params = jnp.array([1.0, 2.0, -1.0], jnp.bfloat16)
    result = radazo.minimize(
        half_sum_of_squares, params, optimizer(smoothing=0.1), 100, bounds=(-2, 2)
    )
    assert result.params.dtype == jnp.bfloat16
    assert result.values.dtype == np.float32
    assert result.values[-1] < 0.1 * result.values[0]


def test_a_function_of_the_host_can_be_minimized():
    def value_fn(params):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        host = lambda x: np.float32(np.sum(np.square(np.asarray(x))))
        return jax.pure_callback(host, shape, params, vmap_method="sequential")

    result = radazo.minimize(value_fn, jnp.ones(3), optimizer(), 150)
    assert result.values[-1] < 0.1 * result.values[0]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "inner", [optax.sgd(0.1), optax.adam(0.1), optax.MultiSteps(optax.sgd(0.2), 2)]
)
def test_any_optimizer_with_an_estimator_in_it_is_run(inner):
    tried = radazo.with_estimator(
        radazo.orthogonal_estimator(num_directions=3), inner, 0
    )
    with jax.numpy_dtype_promotion("standard"):  # As optax needs.
        result = radazo.minimize(half_sum_of_squares, jnp.ones(3), tried, 60)
        params, _, _ = by_hand(half_sum_of_squares, jnp.ones(3), tried, 60)
    assert result.values[-1] < 0.1 * result.values[0]
    close(result.params, params, atol=1e-3)


@pytest.mark.gate
def test_a_state_that_holds_one_array_twice_can_be_run():
    tried = radazo.with_estimator(
        radazo.orthogonal_estimator(num_directions=3, smoothing=1e-2), optax.lbfgs(), 0
    )
    result = radazo.minimize(half_sum_of_squares, jnp.ones(3), tried, 5)
    assert result.values[-1] < 0.1 * result.values[0]


def test_a_chain_is_run():
    tried = optax.chain(
        radazo.estimate_gradient(radazo.sphere_estimator(num_directions=4), 0),
        radazo.scale_by_radazo(),
        optax.scale_by_learning_rate(0.05),
    )
    run = radazo.minimize(half_sum_of_squares, START, tried, 10)
    close(
        run.params, radazo.minimize(half_sum_of_squares, START, optimizer(), 10).params
    )
