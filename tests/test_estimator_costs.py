"""Costs of an estimate: function values, traces, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import counting

import radazo

PARAMS = {
    "one leaf": jnp.ones(12),
    "five leaves": [
        jnp.ones(3),
        jnp.ones((2, 2)),
        jnp.ones(()),
        (jnp.ones(3), jnp.ones(1)),
    ],
}


def total(params):
    return sum((jnp.sum(x**2) for x in jax.tree.leaves(params)), start=jnp.float32(0))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS.keys())
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_a_step_takes_as_many_function_values_as_it_says(
    difference, chunk_size, params
):
    num_directions = 5
    counted, calls = counting(total)
    estimator = radazo.rademacher_estimator(
        num_directions=num_directions, difference=difference, chunk_size=chunk_size
    )
    run = jax.jit(
        lambda key: radazo.estimate(
            estimator, key, counted, params, estimator.init(params)
        )
    )
    _, _, _, info = jax.block_until_ready(run(0))
    jax.effects_barrier()
    expected = {radazo.forward: num_directions + 1, radazo.central: 2 * num_directions}
    assert len(calls) == expected[difference]
    assert int(info.num_values) == expected[difference]


@pytest.mark.fast_cases(2)
def test_an_optimizer_takes_no_values_beside_those_of_its_estimator(make_optimizer):
    counted, calls = counting(total)
    estimator = radazo.rademacher_estimator(num_directions=3)
    optimizer = make_optimizer(0.1, estimator, key=0)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(None, state, x, value_fn=counted)
        return (x + updates, state), None

    x = PARAMS["one leaf"]
    (_, state), _ = jax.lax.scan(step, (x, optimizer.init(x)), length=4)
    jax.block_until_ready(state)
    assert len(calls) == 4 * (3 + 1)
    assert int(state.num_values) == 4 * (3 + 1)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_the_function_is_traced_once_a_program(difference, chunk_size):
    traces = []

    def traced(params):
        traces.append(1)
        return total(params)

    estimator = radazo.rademacher_estimator(
        num_directions=5, difference=difference, chunk_size=chunk_size
    )
    params = PARAMS["five leaves"]
    jax.jit(
        lambda key: radazo.estimate(
            estimator, key, traced, params, estimator.init(params)
        )
    ).lower(0)
    assert len(traces) == 1


def test_steps_under_jit_trace_the_function_once_whatever_the_schedule():
    traces = []

    def traced(params):
        traces.append(1)
        return total(params)

    estimator = radazo.rademacher_estimator(
        num_directions=3, smoothing=lambda t: 0.1 / (t.astype(float) + 1)
    )
    params = PARAMS["five leaves"]
    state = estimator.init(params)

    @jax.jit
    def step(key, params, state):
        _, gradient, state, _ = radazo.estimate(estimator, key, traced, params, state)
        return jax.tree.map(lambda x, g: x - 0.01 * g, params, gradient), state

    for key in range(3):
        params, state = step(key, params, state)
    assert len(traces) == 1


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "name", ["sphere", "gaussian", "rademacher", "hadamard", "coordinate"]
)
def test_one_direction_at_a_time_holds_no_copies_of_all(name, difference):
    dim = 100_000
    make = getattr(radazo, f"{name}_estimator")
    estimator = make(num_directions=50, difference=difference, chunk_size=1)

    def run(key, x):
        return radazo.estimate(
            estimator, key, lambda x: jnp.sum(x**2), x, estimator.init(x)
        )

    x = jax.ShapeDtypeStruct((dim,), jnp.float32)
    memory = jax.jit(run).lower(0, x).compile().memory_analysis()
    # The sum, a direction and a point; and less than a tenth for all that is small.
    assert memory.temp_size_in_bytes <= 3.1 * 4 * dim


def test_parameters_are_as_they_were_after_any_number_of_estimates(difference):
    params = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.bfloat16)
    before = np.array(params)
    estimator = radazo.rademacher_estimator(num_directions=3, difference=difference)
    optimizer = radazo.zo_sgd(0.0, estimator, key=0)
    state = optimizer.init(params)
    update = jax.jit(functools.partial(optimizer.update, value_fn=total_wide))
    for _ in range(3):
        updates, state = update(None, state, params)
        params = params + updates
    np.testing.assert_array_equal(params, before)


def total_wide(x):
    return jnp.sum(x.astype(jnp.float32) ** 2)
