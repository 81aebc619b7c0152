"""Every estimator keeps every contract; the three forms give the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares, quick_jit

import radazo

RESERVED = {"value", "grad", "mu", "nu", "learning_rate"}


def start(dtype=jnp.float32):
    return {
        "matrix": jnp.array([[1.0, -2.0, 0.5]], dtype),
        "scalar": jnp.asarray(3.0, dtype),
        "pair": (jnp.array([-1.5, 2.5], dtype), None),
        "empty": {},
        "nothing": jnp.zeros((0, 2), dtype),
        "step": jnp.array([4, 5], jnp.int32),
    }


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_near(first, second):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3),
        first,
        second,
    )


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@functools.cache
def eager(make_estimator):
    """The plain function, one a module, so that it compiles once for all tests."""
    return radazo.value_and_grad(half_sum_of_squares, make_estimator(num_directions=3))


@functools.cache
def jitted(make_estimator):
    return quick_jit(eager(make_estimator))


@pytest.fixture
def estimate(make_estimator):
    return jitted(make_estimator)


def test_the_same_key_gives_the_same_estimate(estimate):
    assert_equal(estimate(1, start()), estimate(1, start()))


def test_another_key_gives_another_estimate(estimate):
    _, first = estimate(1, start())
    _, second = estimate(2, start())
    assert not np.array_equal(first["matrix"], second["matrix"])


def test_a_seed_is_its_typed_key(estimate):
    assert_equal(estimate(1, start()), estimate(jax.random.key(1), start()))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_gradient_has_the_structure_the_shapes_and_the_types_of_params(
    estimate, dtype
):
    _, gradient = estimate(1, start(dtype))
    assert described(gradient) == described(start(dtype))


def test_float64_parameters_have_a_float64_value_and_gradient(x64, make_estimator):
    def value_fn(params):
        return jnp.sum(params["matrix"] ** 2) + params["scalar"]

    value_and_grad = radazo.value_and_grad(value_fn, make_estimator(num_directions=3))
    value, gradient = quick_jit(value_and_grad)(1, start(jnp.float64))
    assert described(gradient) == described(start(jnp.float64))
    assert value.dtype == jnp.float64


def test_the_value_is_that_of_the_parameters(estimate):
    value, _ = estimate(1, start())
    np.testing.assert_allclose(value, half_sum_of_squares(start()), rtol=1e-6)


def test_an_estimate_under_jit_is_the_estimate(make_estimator):
    expected = eager(make_estimator)(1, start())
    assert_near(jitted(make_estimator)(1, start()), expected)


def test_a_hundred_seeds_in_one_program_are_a_hundred_runs(make_estimator, estimate):
    keys = jax.random.split(jax.random.key(0), 100)
    together = quick_jit(jax.vmap(eager(make_estimator), (0, None)))(keys, start())
    single = [estimate(key, start()) for key in keys]
    assert_near(together, jax.tree.map(lambda *xs: np.stack(xs), *single))


def test_estimates_in_a_scan_are_those_of_a_loop(make_estimator, estimate):
    keys = jax.random.split(jax.random.key(0), 3)
    value_and_grad = eager(make_estimator)

    def step(params, key):
        return params, value_and_grad(key, params)

    _, scanned = quick_jit(lambda params: jax.lax.scan(step, params, keys))(start())
    looped = [estimate(key, start()) for key in keys]
    assert_near(scanned, jax.tree.map(lambda *xs: np.stack(xs), *looped))


def test_eval_shape_describes_the_estimate(estimate):
    shapes = jax.eval_shape(estimate, jax.random.key(0), start())
    assert described(shapes) == described(estimate(0, start()))


def test_the_state_is_arrays_of_the_same_types_in_and_out(make_estimator):
    estimator = make_estimator(num_directions=3)
    state = estimator.init(start())
    step = lambda: estimator.estimate(1, half_sum_of_squares, start(), state)
    _, _, after, _ = jax.eval_shape(step)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert described(after) == described(state)


def test_no_field_of_a_state_has_a_name_that_tree_get_finds_elsewhere(make_estimator):
    state = radazo.estimate_gradient(make_estimator(), 0).init(start())
    assert RESERVED.isdisjoint(state._fields)
    assert RESERVED.isdisjoint(state.estimator._fields)


def test_outside_of_jit_the_function_is_called_each_time_and_reads_what_is_there(
    make_estimator,
):
    calls, scale = [], {"by": 1.0}

    def value_fn(params):
        calls.append(1)
        return scale["by"] * half_sum_of_squares(params)

    value_and_grad = radazo.value_and_grad(value_fn, make_estimator(num_directions=3))
    first, gradient = value_and_grad(1, start())
    scale["by"] = 2.0
    second, twice = value_and_grad(1, start())
    assert len(calls) == 2 * (3 + 1)
    assert second == 2 * first
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(2 * x, y), gradient, twice)


def test_an_update_that_closes_over_a_tracer_leaks_none(make_estimator):
    optimizer = radazo.with_estimator(
        make_estimator(num_directions=2), optax.sgd(0.1), key=0
    )
    state = optimizer.init(jnp.ones(3))

    @jax.jit
    def step(params, state, batch):
        return optimizer.update(
            None, state, params, value_fn=lambda x: jnp.sum(batch * x)
        )

    with jax.checking_leaks():
        for size in (1, 3):
            updates, _ = step(jnp.ones(3), state, jnp.ones(size))
            assert np.all(np.isfinite(updates))


def test_jitted_steps_with_changing_batches_and_keys_compile_once(make_estimator):
    traces = []

    def value_fn(params, batch):
        traces.append(1)
        return jnp.sum(batch) * half_sum_of_squares(params)

    estimator = make_estimator(num_directions=3)
    value_and_grad = quick_jit(radazo.value_and_grad(value_fn, estimator))
    for seed in range(10):
        batch = jnp.full(2, seed, jnp.float32)
        value_and_grad(jax.random.key(seed), start(), batch=batch)
    assert len(traces) == 1
    assert value_and_grad._cache_size() == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_thousand_steps_of_learning_rate_zero_leave_every_bit(make_estimator, dtype):
    params = {"a": jnp.array([0.1, -3.0, 7e-3], dtype), "b": jnp.asarray(1 / 3, dtype)}
    optimizer = radazo.zo_sgd(0.0, make_estimator(num_directions=2), key=0)

    @quick_jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                None, state, params, value_fn=half_sum_of_squares
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=1000)[0]

    reached, state = run(params)
    assert state.count == 1000
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), reached, params
    )


def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)


def three_forms(make_estimator, key):
    """Two steps of each form with the same learning rate: values and parameters."""
    first = {name: x for name, x in start().items() if name != "step"}
    estimator = make_estimator(num_directions=3)
    rate = optax.scale_by_learning_rate(0.1)

    def of_transform(optimizer):
        params, steps = first, []
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(
                None, state, params, value_fn=half_sum_of_squares
            )
            params = optax.apply_updates(params, updates)
            steps.append((optax.tree.get(state, "last_value"), params))
        return steps

    def of_plain_function():
        value_and_grad = radazo.value_and_grad(half_sum_of_squares, estimator)
        params, state, steps = first, rate.init(first), []
        for count in range(2):
            value, gradient = value_and_grad(jax.random.fold_in(key, count), params)
            updates, state = rate.update(gradient, state)
            params = optax.apply_updates(params, updates)
            steps.append((value, params))
        return steps

    link = optax.chain(radazo.estimate_gradient(estimator, key), rate)
    around = radazo.with_estimator(estimator, rate, key)
    return of_plain_function(), of_transform(link), of_transform(around)


def test_link_and_combinator_are_the_plain_function_at_fold_in_key_count(
    make_estimator,
):
    plain, link, around = three_forms(make_estimator, jax.random.key(11))
    assert_equal(link, plain)
    assert_equal(around, plain)


def test_a_function_without_a_finite_value_gives_a_gradient_of_zero(make_estimator):
    value_and_grad = radazo.value_and_grad(
        lambda params: jnp.nan * half_sum_of_squares(params),
        make_estimator(num_directions=3),
    )
    _, gradient = quick_jit(value_and_grad)(0, start())
    assert_equal(gradient, jax.tree.map(jnp.zeros_like, start()))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_value_among_others_leaves_the_gradient_finite(
    make_estimator, bad
):
    def value_fn(x):
        return jnp.where(x[0] > 0, jnp.float32(bad), jnp.sum(x * x))

    estimator = make_estimator(num_directions=3)
    estimate = quick_jit(
        jax.vmap(radazo.value_and_grad(value_fn, estimator), (0, None))
    )
    keys = jax.random.split(jax.random.key(0), 8)
    _, gradients = estimate(keys, jnp.array([-1e-6, 1.0, 1.0]))
    assert np.all(np.isfinite(gradients))
    assert np.any(gradients)


def test_slopes_whose_sum_overflows_leave_the_gradient_without_nan(make_estimator):
    def value_fn(x):
        return 8e35 * jnp.sign(x[0])

    estimator = make_estimator(num_directions=16)
    estimate = quick_jit(radazo.value_and_grad(value_fn, estimator))
    _, gradient = estimate(0, jnp.full(16, 1e-6))
    assert not np.any(np.isnan(gradient))
