"""Every estimator keeps every contract: what goes in and comes out, in any program.

Two programs of each kind carry most tests, a step and a batch of scans of it: keys,
parameters, and what makes a value non-finite are arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import half_sum_of_squares
from contracts import ESTIMATORS

import radazo

NUM_DIRECTIONS = 3
NUM_STEPS = 5
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


def start(dtype=jnp.float32, first=1.0):
    return {
        "matrix": jnp.array([[first, -2.0, 0.5]], dtype),
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


def assert_finite(tree):
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


class Terms(NamedTuple):
    """factor * f(x) + offset, or `above` where the first element exceeds `limit`."""

    factor: jax.Array
    offset: jax.Array
    limit: jax.Array
    above: jax.Array

    def value(self, params):
        value = half_sum_of_squares(params)
        factor, offset, limit, above = (x.astype(value.dtype) for x in self)
        first = params["matrix"][0, 0].astype(value.dtype)
        return jnp.where(first > limit, above, factor * value + offset)


def terms(factor=1.0, offset=0.0, limit=np.inf, above=0.0):
    return Terms(*(np.float32(x) for x in (factor, offset, limit, above)))


class Program(NamedTuple):
    """A step (key, params, state, terms) -> (value, gradient, state, info)."""

    run: Callable
    state: Any
    plain: Callable
    traces: list


def program(row, **options):
    estimator, traces = row.make(num_directions=NUM_DIRECTIONS, **options), []

    def step(key, params, state, terms):
        def value_fn(params):
            traces.append(1)
            return terms.value(params)

        return radazo.estimate(estimator, key, value_fn, params, state)

    return Program(jax.jit(step), estimator.init(start()), step, traces)


jitted = functools.cache(program)


def first_step(row, seed, params=None, given=None):
    step = jitted(row)
    params, given = params or start(), given or terms()
    return step.run(jax.random.key(seed), params, step.state, given)


def moved(params, gradient):
    return jax.tree.map(
        lambda x, g: (
            x - jnp.asarray(0.01, x.dtype) * g
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        params,
        gradient,
    )


def test_a_key_is_an_estimate_and_another_key_another(row):
    first, same, other = (first_step(row, seed) for seed in (1, 1, 2))
    assert_equal(first, same)
    differ = not np.array_equal(first[1]["matrix"], other[1]["matrix"])
    assert differ == row.random
    rtol = 1e-6 if row.at_params else 0.05
    np.testing.assert_allclose(first[0], half_sum_of_squares(start()), rtol=rtol)


@pytest.mark.fast_cases(1)
def test_a_seed_is_its_typed_key(row):
    step = jitted(row)
    seeded = jax.jit(lambda: step.plain(1, start(), step.state, terms()))()
    assert_equal(seeded, first_step(row, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_estimate_has_the_structure_the_shapes_and_the_types_of_params(kind, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        value_fn = lambda params: jnp.sum(params["matrix"].astype(wide) ** 2)
        estimator, params = kind.make(num_directions=NUM_DIRECTIONS), start(dtype)
        state = estimator.init(params)
        call = jax.random.key(1), value_fn, params, state
        value, gradient, after, _ = jax.eval_shape(
            lambda: radazo.estimate(estimator, *call)
        )
        assert described(gradient) == described(params)
        assert described(after) == described(state)
        assert value.dtype == wide


def test_eval_shape_describes_the_estimate(row):
    step = jitted(row)
    before = len(step.traces)
    again = lambda key: step.plain(key, start(), step.state, terms())
    shapes = jax.eval_shape(again, jax.random.key(0))
    assert len(step.traces) == before + 1
    assert described(shapes) == described(first_step(row, 0))


GOOD = [1.0] * NUM_STEPS
BAD = [1.0, np.nan, np.inf, 1.0, 1.0]


@pytest.mark.fast_cases(1)
def test_a_batch_of_scans_is_as_many_loops_of_one_program(kind):
    """Also where values are not finite: such a step leaves the next ones finite."""
    step = jitted(kind)
    first_step(kind, 0)
    traced = len(step.traces)
    keys = jax.random.split(jax.random.key(0), (4, NUM_STEPS))
    factors = np.array([GOOD, GOOD, BAD, BAD], np.float32)
    given = [[terms(factor) for factor in row] for row in factors]

    def looped(keys, given):
        params, state, seen = start(), step.state, []
        for key, terms_of_step in zip(keys, given, strict=True):
            value, gradient, state, info = step.run(key, params, state, terms_of_step)
            params = moved(params, gradient)
            assert_finite((gradient, state))
            seen.append((value, gradient, info.num_values))
        assert np.any(gradient["matrix"])
        return (params, state), jax.tree.map(lambda *xs: np.stack(xs), *seen)

    single = [looped(*run) for run in zip(keys, given, strict=True)]
    assert step.run._cache_size() == 1
    assert len(step.traces) == traced

    def body(carry, given):
        key, factor = given
        value, gradient, state, info = step.plain(
            key, *carry, terms()._replace(factor=factor)
        )
        carry = moved(carry[0], gradient), state
        return carry, (value, gradient, info.num_values)

    def scanned(keys, factors):
        return jax.lax.scan(body, (start(), step.state), (keys, factors))

    with jax.debug_key_reuse(True):
        together = jax.jit(jax.vmap(scanned))(keys, factors)
    assert_near(together, jax.tree.map(lambda *xs: np.stack(xs), *single))


@pytest.mark.fast_cases(2)
def test_the_size_of_a_chunk_changes_rounding_alone(kind):
    """In one batch; `test_estimators.py` has batches that do not divide K."""
    if not kind.chunks:
        pytest.skip("it takes its values one after the other")
    chunked = program(kind, chunk_size=NUM_DIRECTIONS)
    found = chunked.run(jax.random.key(1), start(), chunked.state, terms())
    assert_near(found, first_step(kind, 1))


def test_an_estimator_says_whether_it_remembers(row):
    estimator = row.make(num_directions=NUM_DIRECTIONS)
    assert estimator.memoryless == row.memoryless
    call = lambda: radazo.value_and_grad(half_sum_of_squares, estimator)
    if row.memoryless:
        value, gradient = jax.eval_shape(call(), jax.random.key(1), start())
        assert described((value, gradient)) == described(first_step(row, 1)[:2])
    else:
        with pytest.raises(ValueError, match="be memoryless"):
            call()


@pytest.mark.fast_cases(1)
def test_a_function_of_value_and_gradient_is_a_first_step(row):
    if not row.memoryless:
        pytest.skip("it carries a state")
    estimator = row.make(num_directions=NUM_DIRECTIONS)
    found = jax.jit(radazo.value_and_grad(half_sum_of_squares, estimator))(1, start())
    assert_near(found, first_step(row, 1)[:2])


@pytest.mark.fast_cases(1)
def test_outside_of_jit_the_estimate_is_the_same(kind):
    """And the function is called each time and reads what is there."""
    expected = first_step(kind, 1)
    assert_finite(expected[:3])
    assert np.any(expected[1]["matrix"]) or np.any(expected[1]["pair"][0])
    calls, scale = [], {"by": 1.0}

    def value_fn(params):
        calls.append(1)
        return scale["by"] * half_sum_of_squares(params)

    estimator = kind.make(num_directions=NUM_DIRECTIONS)
    outside = lambda: radazo.estimate(
        estimator, 1, value_fn, start(), estimator.init(start())
    )
    found = outside()
    assert_near(found, expected)
    if not kind.alone:
        return  # Another function does not change with it.
    scale["by"] = 2.0
    second, twice, *_ = outside()
    assert len(calls) == 2 * kind.num_values(NUM_DIRECTIONS)
    np.testing.assert_allclose(second, 2 * found[0], rtol=1e-6)
    factor = 2 if kind.linear else 1
    assert_near(jax.tree.map(lambda x: factor * x, found[1]), twice)


def test_twice_the_function_has_twice_the_gradient(kind):
    if not kind.alone:
        pytest.skip("another function does not change with it")
    value, gradient, *_ = first_step(kind, 1)
    second, twice, *_ = first_step(kind, 1, given=terms(2.0))
    assert np.any(gradient["matrix"]) or np.any(gradient["pair"][0])
    np.testing.assert_allclose(second, 2 * value, rtol=1e-6)
    factor = 2 if kind.linear else 1
    assert_near(jax.tree.map(lambda x: factor * x, gradient), twice)


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.gate), jnp.bfloat16]
)
def test_parameters_that_are_masked_stay_as_they_are(kind, dtype):
    """The function sees no other value of them, and their gradient is zero."""
    first = {"moved": jnp.array([1.0, -2.0, 0.5], dtype), "kept": jnp.ones(2, dtype)}

    def value_fn(params):
        seen = jnp.all(params["kept"] == first["kept"])
        return jnp.where(seen, half_sum_of_squares(params["moved"]), jnp.nan)

    mask = {"moved": True, "kept": False}
    estimator = kind.make(num_directions=NUM_DIRECTIONS, mask=mask, smoothing=0.25)
    estimate = jax.jit(
        lambda: radazo.estimate(estimator, 1, value_fn, first, estimator.init(first))
    )
    _, gradient, _, info = estimate()
    assert np.all(info.kept)
    assert np.any(gradient["moved"])
    np.testing.assert_array_equal(gradient["kept"], jnp.zeros(2, dtype))


def test_a_function_without_a_finite_value_gives_a_gradient_of_zero(kind):
    _, gradient, state, _ = first_step(kind, 0, given=terms(np.nan))
    assert_equal(gradient, jax.tree.map(jnp.zeros_like, start()))
    assert_finite(state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_value_among_others_leaves_the_gradient_finite(kind, bad):
    params, given = start(first=-2e-3), terms(limit=0.0, above=bad)
    found = [first_step(kind, seed, params, given) for seed in range(8)]
    gradients = [gradient for _, gradient, _, _ in found]
    kept = np.concatenate([info.kept for *_, info in found])
    assert np.any(kept)
    assert np.all(kept) != kind.moves
    assert_finite(gradients)
    assert any(np.any(gradient["matrix"]) for gradient in gradients)


def test_slopes_whose_sum_overflows_leave_the_gradient_without_nan(kind):
    params, given = start(first=1e-6), terms(0.0, -8e35, limit=0.0, above=8e35)
    for seed in range(8):
        _, gradient, *_ = first_step(kind, seed, params, given)
        assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves(gradient))


def test_the_table_has_every_estimator_that_is_public():
    public = {name for name in dir(radazo) if name.endswith("_estimator")}
    tools = {"with_estimator", "finite_difference_estimator"}
    assert public - tools <= {row.make.__name__ for row in ESTIMATORS.values()}
