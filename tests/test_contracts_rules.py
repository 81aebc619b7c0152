"""Optimizers with other arguments than the rest keep the contracts of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import half_sum_of_squares
from test_contracts_optimizers import (
    assert_equal,
    assert_near,
    described,
    program,
    start,
    step_of,
)

import radazo

ESTIMATOR = radazo.coordinate_estimator(num_directions=4)
SET = radazo.projections.box(-3.0, 3.0)
# By name an optimizer of a key, and the function values of 40 steps.
RULES = {
    "pars": (lambda key: radazo.pars(1.0, key=key, num_directions=3), 40 * 4),
    "zo_adamu": (lambda key: radazo.zo_adamu(0.03, 40, key=key), 40 * 2),
    "zo_psgd": (lambda key: radazo.zo_psgd(0.03, SET, ESTIMATOR, key=key), 40 * 5),
    "projected_zo_adamm": (
        lambda key: radazo.projected_zo_adamm(0.03, SET, ESTIMATOR, key=key),
        40 * 5,
    ),
    "projected": (
        lambda key: radazo.projected(radazo.radazo(0.03, ESTIMATOR, key=key), SET),
        40 * 5,
    ),
    # Three directions, and values again in steps 0, 1, 2, 4, 8, 16 and 32.
    "zo_auto": (
        lambda key: radazo.zo_auto(key=key, num_directions=3),
        40 * 4 + 1 + 6 * 2,
    ),
    "sign_search": (lambda key: radazo.sign_search(-1.0, 1.2), 40 * 1),
    "roll_back": (
        lambda key: radazo.roll_back(radazo.radazo(0.03, ESTIMATOR, key=key)),
        40 * 5,
    ),
}
RANDOM = {name: rule for name, rule in RULES.items() if name != "sign_search"}


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request):
    return request.param


@functools.cache
def compiled_step(rule):
    return jax.jit(step_of(rule[0](2)))


def test_it_descends_in_minimize_and_counts_its_values(rule):
    make, num_values = rule
    result = radazo.minimize(half_sum_of_squares, start(), make(2), 40)
    assert half_sum_of_squares(result.params) < 0.8 * half_sum_of_squares(start())
    assert result.num_values[-1] == num_values


@pytest.mark.parametrize("rule", RANDOM.values(), ids=RANDOM.keys())
def test_a_key_is_a_run_and_another_key_another(rule):
    make, _ = rule
    step = compiled_step(rule)
    first, same, other = (
        step(start(), make(key).init(start())) for key in (2, jax.random.key(2), 3)
    )
    assert_equal(first, same)
    assert not np.array_equal(first[0]["a"], other[0]["a"])


def test_a_scan_is_a_loop_of_steps(rule):
    optimizer, step = rule[0](2), compiled_step(rule)
    params, state = start(), optimizer.init(start())
    for _ in range(5):
        params, state = step(params, state)
    assert step._cache_size() == 1

    @jax.jit
    def run(carry):
        inner = step_of(optimizer)
        return jax.lax.scan(lambda c, _: (inner(*c), None), carry, length=5)[0]

    found = run((start(), optimizer.init(start())))
    assert_near(found, (params, state))


@pytest.mark.fast_cases(3)
def test_runs_of_a_batch_are_the_runs(rule):
    make, _ = rule
    states = [make(key).init(start()) for key in (3, 4)]
    together = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    batched = jax.jit(jax.vmap(step_of(make(3)), (None, 0)))(start(), together)[0]
    step = compiled_step(rule)
    for i, state in enumerate(states):
        assert_near(jax.tree.map(lambda x, i=i: x[i], batched), step(start(), state)[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_state_is_arrays_whose_types_stay(rule, dtype):
    optimizer = rule[0](2)
    params = start(dtype)
    state = optimizer.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert_equal(optimizer.init(jax.eval_shape(lambda: params)), state)
    after = jax.eval_shape(step_of(optimizer), params, state)
    assert jax.tree.structure(after) == jax.tree.structure((params, state))
    assert described(after) == described((params, state))


def test_an_unexpected_keyword_changes_nothing(rule):
    optimizer = rule[0](2)
    assert program(optimizer) == program(optimizer, unexpected=start())


def test_nan_never_reaches_the_parameters(rule):
    optimizer = rule[0](2)

    def value_fn(params):
        return jnp.where(params["b"] < -1.999, jnp.nan, half_sum_of_squares(params))

    result = radazo.minimize(
        value_fn, start() | {"b": jnp.float32(-1.99905)}, optimizer, 30
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.params))
