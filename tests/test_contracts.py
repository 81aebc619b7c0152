"""Every estimator keeps every contract: what goes in and comes out, in any program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import half_sum_of_squares, quick_jit
from contracts import ESTIMATORS

import radazo

NUM_DIRECTIONS = 3
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]


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


def first_estimate(estimator, value_fn=half_sum_of_squares):
    """(key, params) -> (value, gradient, state, info) of the first step."""

    def estimate(key, params):
        return estimator.estimate(key, value_fn, params, estimator.init(params))

    return estimate


@functools.cache
def jitted(row):
    """One a module, so that it compiles once for all tests."""
    return quick_jit(first_estimate(row.make(num_directions=NUM_DIRECTIONS)))


@pytest.fixture
def estimate(row):
    return jitted(row)


def test_the_same_key_gives_the_same_estimate(estimate):
    assert_equal(estimate(1, start()), estimate(1, start()))


def test_another_key_gives_another_estimate(row, estimate):
    first, second = (estimate(key, start())[1]["matrix"] for key in (1, 2))
    assert np.array_equal(first, second) != row.random


def test_a_seed_is_its_typed_key(estimate):
    assert_equal(estimate(1, start()), estimate(jax.random.key(1), start()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_structure_the_shapes_and_the_types_of_params(kind, dtype):
    _, gradient, *_ = jitted(kind)(1, start(dtype))
    assert described(gradient) == described(start(dtype))


def test_float64_parameters_have_a_float64_value_and_gradient(x64, kind):
    def value_fn(params):
        return jnp.sum(params["matrix"] ** 2) + params["scalar"]

    estimator = kind.make(num_directions=NUM_DIRECTIONS)
    estimate = quick_jit(first_estimate(estimator, value_fn))
    value, gradient, *_ = estimate(1, start(jnp.float64))
    assert described(gradient) == described(start(jnp.float64))
    assert value.dtype == jnp.float64


def test_the_value_is_that_of_the_parameters(row, estimate):
    value, *_ = estimate(1, start())
    rtol = 1e-6 if row.at_params else 0.05
    np.testing.assert_allclose(value, half_sum_of_squares(start()), rtol=rtol)


def test_a_dozen_seeds_in_one_program_are_a_dozen_runs(kind):
    estimate = jitted(kind)
    keys = jax.random.split(jax.random.key(0), 12)
    one = first_estimate(kind.make(num_directions=NUM_DIRECTIONS))
    together = quick_jit(jax.vmap(one, (0, None)))(keys, start())
    single = [estimate(key, start()) for key in keys]
    assert_near(together, jax.tree.map(lambda *xs: np.stack(xs), *single))


def test_steps_in_a_scan_are_those_of_a_loop(kind):
    estimator = kind.make(num_directions=NUM_DIRECTIONS)
    keys = jax.random.split(jax.random.key(0), 5)

    def step(carry, key):
        params, state = carry
        value, gradient, state, info = estimator.estimate(
            key, half_sum_of_squares, params, state
        )
        moved = jax.tree.map(
            lambda x, g: (
                x - jnp.asarray(0.01, x.dtype) * g
                if jnp.issubdtype(x.dtype, jnp.floating)
                else x
            ),
            params,
            gradient,
        )
        return (moved, state), (value, gradient, info.num_values)

    carry = start(), estimator.init(start())
    with jax.debug_key_reuse(True):
        scanned = quick_jit(lambda carry: jax.lax.scan(step, carry, keys))(carry)
    one, looped = quick_jit(step), []
    for key in keys:
        carry, seen = one(carry, key)
        looped.append(seen)
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *looped)
    assert_near(scanned, (carry, stacked))


@pytest.mark.parametrize("chunk_size", [2, 3])
def test_the_size_of_a_chunk_changes_rounding_alone(kind, chunk_size):
    if not kind.chunks:
        pytest.skip("it takes its values one after the other")
    estimator = kind.make(num_directions=NUM_DIRECTIONS, chunk_size=chunk_size)
    chunked = quick_jit(first_estimate(estimator))(1, start())
    assert_near(chunked, jitted(kind)(1, start()))


def test_eval_shape_describes_the_estimate(estimate):
    shapes = jax.eval_shape(estimate, jax.random.key(0), start())
    assert described(shapes) == described(estimate(0, start()))


def test_an_estimator_says_whether_it_remembers(row):
    estimator = row.make(num_directions=NUM_DIRECTIONS)
    assert estimator.memoryless == row.memoryless
    call = lambda: radazo.value_and_grad(half_sum_of_squares, estimator)
    if row.memoryless:
        value, gradient = quick_jit(call())(1, start())
        assert_near((value, gradient), jitted(row)(1, start())[:2])
    else:
        with pytest.raises(ValueError, match="be memoryless"):
            call()


def test_outside_of_jit_the_estimate_is_the_same(kind):
    """And the function is called each time and reads what is there."""
    expected = jitted(kind)(1, start())
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(expected[:3]))
    assert np.any(expected[1]["matrix"]) or np.any(expected[1]["pair"][0])
    calls, scale = [], {"by": 1.0}

    def value_fn(params):
        calls.append(1)
        return scale["by"] * half_sum_of_squares(params)

    outside = first_estimate(kind.make(num_directions=NUM_DIRECTIONS), value_fn)
    found = outside(1, start())
    assert_near(found, expected)
    if not kind.alone:
        return  # Another function does not change with it.
    scale["by"] = 2.0
    second, twice, *_ = outside(1, start())
    assert len(calls) == 2 * kind.num_values(NUM_DIRECTIONS)
    np.testing.assert_allclose(second, 2 * found[0], rtol=1e-6)
    factor = 2 if kind.linear else 1
    assert_near(jax.tree.map(lambda x: factor * x, found[1]), twice)


def test_jitted_steps_with_changing_batches_and_keys_compile_once(kind):
    traces = []
    estimator = kind.make(num_directions=NUM_DIRECTIONS)

    @quick_jit
    def step(key, params, state, batch):
        def value_fn(params):
            traces.append(1)
            return jnp.sum(batch) * half_sum_of_squares(params)

        return estimator.estimate(key, value_fn, params, state)[1:3]

    state = estimator.init(start())
    for seed in range(4):
        batch = jnp.full(2, seed, jnp.float32)
        _, state = step(jax.random.key(seed), start(), state, batch)
    assert len(traces) == 1
    assert step._cache_size() == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_parameters_that_are_masked_stay_as_they_are(kind, dtype):
    """The function sees no other value of them, and their gradient is zero."""
    first = {"moved": jnp.array([1.0, -2.0, 0.5], dtype), "kept": jnp.ones(2, dtype)}

    def value_fn(params):
        seen = jnp.all(params["kept"] == first["kept"])
        return jnp.where(seen, half_sum_of_squares(params["moved"]), jnp.nan)

    mask = {"moved": True, "kept": False}
    estimator = kind.make(num_directions=NUM_DIRECTIONS, mask=mask, smoothing=0.25)
    estimate = quick_jit(
        lambda: estimator.estimate(1, value_fn, first, estimator.init(first))
    )
    _, gradient, _, info = estimate()
    assert np.all(info.kept)
    assert np.any(gradient["moved"])
    np.testing.assert_array_equal(gradient["kept"], jnp.zeros(2, dtype))


def test_a_function_without_a_finite_value_gives_a_gradient_of_zero(kind):
    estimator = kind.make(num_directions=NUM_DIRECTIONS)
    bad = lambda params: jnp.nan * half_sum_of_squares(params)
    _, gradient, state, _ = quick_jit(first_estimate(estimator, bad))(0, start())
    assert_equal(gradient, jax.tree.map(jnp.zeros_like, start()))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_a_step_without_a_finite_value_leaves_the_next_ones_finite(kind):
    estimator = kind.make(num_directions=NUM_DIRECTIONS)

    @quick_jit
    def step(key, params, state, factor):
        value_fn = lambda params: factor * half_sum_of_squares(params)
        return estimator.estimate(key, value_fn, params, state)[1:3]

    params, state = start(), estimator.init(start())
    for key, factor in enumerate((1.0, jnp.nan, jnp.inf, 1.0, 1.0)):
        gradient, state = step(key, params, state, jnp.float32(factor))
        for leaf in jax.tree.leaves((gradient, state)):
            assert np.all(np.isfinite(leaf))
    assert np.any(gradient["matrix"])


def test_a_non_finite_value_among_others_leaves_the_gradient_finite(kind):
    estimator = kind.make(num_directions=NUM_DIRECTIONS)

    @quick_jit
    def estimates(bad):
        def value_fn(x):
            return jnp.where(x[0] > 0, bad, jnp.sum(x * x))

        estimate = jax.vmap(first_estimate(estimator, value_fn), (0, None))
        return estimate(keys, jnp.array([-4e-3, 1.0, 1.0]))

    keys = jax.random.split(jax.random.key(0), 8)
    for bad in (jnp.nan, jnp.inf):
        _, gradients, _, info = estimates(jnp.float32(bad))
        assert np.any(info.kept)
        assert np.all(info.kept) != kind.moves
        assert np.all(np.isfinite(gradients))
        assert np.any(gradients)


def test_slopes_whose_sum_overflows_leave_the_gradient_without_nan(kind):
    def value_fn(x):
        return 8e35 * jnp.sign(x[0])

    estimate = first_estimate(kind.make(num_directions=16), value_fn)
    _, gradient, *_ = quick_jit(estimate)(0, jnp.full(16, 1e-6))
    assert not np.any(np.isnan(gradient))


def test_the_table_has_every_estimator_that_is_public():
    public = {name for name in dir(radazo) if name.endswith("_estimator")}
    tools = {"with_estimator", "finite_difference_estimator"}
    assert public - tools <= {row.make.__name__ for row in ESTIMATORS.values()}
