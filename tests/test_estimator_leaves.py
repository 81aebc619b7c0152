"""What is dropped, what passes through, and in which type it comes back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import radazo

K, D = 8, 5
A = np.array([1.0, -2.0, 0.5, 3.0, -1.0])
BAD = np.array([np.nan, np.inf, -np.inf], np.float32)


def estimate(estimator, value_fn, params, key=3):
    """(value, gradient, info), compiled as one program."""

    def run(params):
        state = estimator.init(params)
        value, gradient, _, info = radazo.estimate(
            estimator, key, value_fn, params, state
        )
        return value, gradient, info

    return jax.jit(run)(params)


def for_each_bad(estimator, value_fn, params):
    """As `estimate` of `value_fn(bad)` for each bad value, by one program."""
    run = jax.jit(lambda bad: estimate(estimator, value_fn(bad), params))
    return [run(bad) for bad in BAD]


def gaussian_directions(params, num_directions=K, key=3):
    draw = jax.jit(
        lambda: radazo.directions.sample_directions(
            key, params, radazo.directions.gaussian, num_directions=num_directions
        )
    )
    return jax.tree.map(np.asarray, draw())


# Values that are not finite.


def linear_but(bad, bound):
    """⟨A, x⟩, and `bad` where the first coordinate is further than `bound` from 0."""

    def f(x):
        value = jnp.sum(x * jnp.asarray(A, x.dtype))
        return jnp.where(jnp.abs(x[0]) > bound, jnp.asarray(bad, x.dtype), value)

    return f


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.usefixtures("x64")
def test_the_mean_is_over_the_directions_whose_values_are_finite(
    difference, chunk_size
):
    smoothing = 0.25
    estimator = radazo.gaussian_estimator(
        num_directions=K,
        smoothing=smoothing,
        difference=difference,
        chunk_size=chunk_size,
    )
    us = gaussian_directions(jnp.zeros(D))
    kept = np.abs(us[:, 0]) < 0.8
    assert 2 < np.sum(kept) < K - 1
    expected = np.mean((us[kept] @ A)[:, None] * us[kept], axis=0)
    f = lambda bad: linear_but(bad, bound=0.8 * smoothing)
    for value, gradient, info in for_each_bad(estimator, f, jnp.zeros(D)):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(info.kept, kept)
        np.testing.assert_array_equal(np.asarray(info.slopes)[~kept], 0)
        np.testing.assert_allclose(value, 0, atol=1e-12)  # Central: of the kept alone.
        num_values = K + 1 if difference is radazo.forward else 2 * K
        assert int(info.num_values) == num_values


def test_the_gradient_is_zero_if_no_direction_is_left(difference):
    estimator = radazo.rademacher_estimator(num_directions=3, difference=difference)
    f = lambda bad: lambda x: jnp.where(jnp.all(x == 1), jnp.float32(2), bad)
    for _, gradient, info in for_each_bad(estimator, f, jnp.ones(D)):
        np.testing.assert_array_equal(gradient, np.zeros(D))
        assert not np.any(info.kept)


def test_a_base_value_that_is_not_finite_drops_every_forward_direction():
    estimator = radazo.rademacher_estimator(num_directions=3)
    f = lambda bad: lambda x: jnp.where(jnp.all(x == 1), bad, jnp.sum(x))
    found = for_each_bad(estimator, f, jnp.ones(D))
    for (value, gradient, info), bad in zip(found, BAD, strict=True):
        np.testing.assert_array_equal(value, bad)
        np.testing.assert_array_equal(gradient, np.zeros(D))
        assert not np.any(info.kept)


def test_one_term_that_is_not_finite_drops_its_direction():
    estimator = radazo.gaussian_estimator(num_directions=K, smoothing=0.25, terms=True)
    us = gaussian_directions(jnp.zeros(D))
    f = lambda x: jnp.where(x > 0.25, jnp.float32(np.inf), x)
    _, _, info = estimate(estimator, f, jnp.zeros(D))
    np.testing.assert_array_equal(info.kept, np.all(us <= 1, axis=1))
    assert 0 < np.sum(info.kept) < K


def test_a_step_counts_what_it_dropped_and_skips_if_nothing_is_left():
    estimator = radazo.gaussian_estimator(num_directions=K, smoothing=0.25)
    optimizer = radazo.radazo(0.1, estimator, key=0)
    update = jax.jit(optimizer.update, static_argnames="value_fn")
    x = jnp.zeros(D)
    first = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 0))
    us = gaussian_directions(x, key=jax.random.wrap_key_data(first))
    dropped = np.sum(np.abs(us[:, 0]) > 0.8)
    _, some = update(None, optimizer.init(x), x, value_fn=linear_but(np.nan, 0.2))
    assert (int(some.num_dropped), int(some.num_skipped)) == (dropped, 0)
    nothing = lambda x: jnp.float32(np.nan) * jnp.sum(x)
    updates, none = update(None, some, x, value_fn=nothing)
    assert (int(none.num_dropped), int(none.num_skipped)) == (dropped + K, 1)
    np.testing.assert_array_equal(updates, np.zeros(D))
    for new, old in zip(
        *map(jax.tree.leaves, (none.optimizer, some.optimizer)), strict=True
    ):
        np.testing.assert_array_equal(new, old)


# Masks.

TREE = {"a": {"x": jnp.zeros(2), "y": jnp.zeros(3)}, "b": jnp.zeros(4)}
MASKS = {
    "pytree": {"a": {"x": True, "y": False}, "b": False},
    "prefix": {"a": True, "b": False},
    "callable": lambda params: jax.tree.map(lambda p: p.size == 4, params),
    "callable_prefix": lambda params: {"a": False, "b": True},
}
CHOSEN = {
    "pytree": (True, False, False),
    "prefix": (True, True, False),
    "callable": (False, False, True),
    "callable_prefix": (False, False, True),
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_says_which_leaves_are_perturbed(name):
    moved = []

    def f(params):
        leaves = jax.tree.leaves(params)
        jax.debug.callback(
            lambda *xs: moved.append([bool(np.any(x != 0)) for x in xs]), *leaves
        )
        return sum((jnp.sum(x) for x in leaves), start=jnp.float32(0))

    estimator = radazo.rademacher_estimator(
        num_directions=2, difference=radazo.central, mask=MASKS[name]
    )
    _, gradient, _ = estimate(estimator, f, TREE)
    jax.effects_barrier()
    assert [tuple(x) for x in moved] == 4 * [CHOSEN[name]]
    nonzero = tuple(bool(np.any(x != 0)) for x in jax.tree.leaves(gradient))
    assert nonzero == CHOSEN[name]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.usefixtures("x64")
def test_a_mask_makes_the_dimension_that_of_the_perturbed_leaves(name):
    num = sum(
        x.size for x, on in zip(jax.tree.leaves(TREE), CHOSEN[name], strict=True) if on
    )
    estimator = radazo.orthogonal_estimator(
        num_directions=num, smoothing=0.5, mask=MASKS[name]
    )
    f = lambda p: sum((jnp.sum(x) for x in jax.tree.leaves(p)), start=jnp.float64(0))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), TREE)
    _, gradient, _ = estimate(estimator, f, params)  # K = d is exact if d is right.
    for x, on in zip(jax.tree.leaves(gradient), CHOSEN[name], strict=True):
        np.testing.assert_allclose(x, np.full(x.shape, float(on)), atol=1e-12)


# Leaves that are not perturbed, and types.


def odd_leaves():
    return {
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "int": jnp.arange(3),
        "key": jax.random.key_data(jax.random.key(7)),
        "none": None,
        "python": 2.5,
        "scalar": jnp.float32(1),
        "typed": jax.random.key(7),
        "x": jnp.ones(2),
    }


def test_leaves_that_are_not_floating_arrays_reach_the_function_as_they_are():
    params, seen = odd_leaves(), []

    def f(params):
        assert params["none"] is None
        kept = {
            name: params[name] for name in ("bool", "empty", "int", "key", "python")
        }
        kept["typed"] = jax.random.key_data(params["typed"])
        jax.debug.callback(seen.append, kept)
        return jnp.sum(params["x"]) + params["scalar"] * params["python"]

    estimator = radazo.rademacher_estimator(num_directions=2)
    out = radazo.estimate(estimator, 3, f, params, estimator.init(params))
    jax.block_until_ready(out)
    jax.effects_barrier()
    expected = params | {"typed": jax.random.key_data(params["typed"])}
    assert len(seen) == 3
    for kept in seen:
        for name, value in kept.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_leaves_that_are_not_floating_arrays_have_a_gradient_of_zero():
    estimator = radazo.rademacher_estimator(num_directions=2)
    f = lambda p: jnp.sum(p["x"]) + p["scalar"] * p["python"]
    params = odd_leaves()
    gradient = radazo.estimate(estimator, 3, f, params, estimator.init(params))[1]
    for name in ("bool", "empty", "int", "key", "python"):
        np.testing.assert_array_equal(gradient[name], np.zeros_like(params[name]))
        assert np.shape(gradient[name]) == np.shape(params[name])
    for name in ("bool", "int", "key"):
        assert gradient[name].dtype == params[name].dtype
    assert gradient["none"] is None
    assert gradient["scalar"] != 0


def test_a_python_number_has_a_gradient_that_is_a_python_number():
    estimator = radazo.rademacher_estimator(num_directions=2)
    params = {"x": jnp.ones(2), "float": 2.5, "int": 3}
    state = estimator.init(params)
    f = lambda p: jnp.sum(p["x"])
    gradient = radazo.estimate(estimator, 3, f, params, state)[1]
    assert type(gradient["float"]) is float
    assert type(gradient["int"]) is int


DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.usefixtures("x64")
def test_a_gradient_has_the_type_of_its_leaf_and_the_function_sees_it(
    dtype, difference
):
    def f(x):
        assert x.dtype == dtype
        return jnp.sum(x)

    estimator = radazo.rademacher_estimator(num_directions=2, difference=difference)
    value, gradient, info = estimate(estimator, f, jnp.ones(4, dtype))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert gradient.dtype == dtype
    assert (value.dtype, info.slopes.dtype) == (wide, wide)


@pytest.mark.usefixtures("x64")
def test_leaves_of_mixed_types_keep_each_its_own():
    params = {t.__name__: jnp.ones(3, t) for t in DTYPES}

    def f(params):
        assert {name: str(x.dtype) for name, x in params.items()} == {
            name: name for name in params
        }
        wide = [x.astype(jnp.float64) for x in params.values()]
        return sum((jnp.sum(x) for x in wide), start=jnp.float64(0))

    _, gradient, _ = estimate(radazo.sphere_estimator(num_directions=3), f, params)
    assert {name: str(x.dtype) for name, x in gradient.items()} == {
        name: name for name in params
    }
    assert all(np.any(x != 0) for x in gradient.values())


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda t: t.__name__)
def test_a_low_precision_point_is_rounded_once(dtype):
    x = jnp.linspace(-1, 1, D).astype(dtype)
    points = []

    def f(x):
        jax.debug.callback(points.append, x)
        return jnp.sum(x.astype(jnp.float32))

    estimator = radazo.gaussian_estimator(num_directions=1, smoothing=0.3)
    jax.block_until_ready(estimate(estimator, f, x)[0])
    jax.effects_barrier()
    u = gaussian_directions(jnp.zeros(D), num_directions=1)[0].astype(np.float64)
    exact = np.asarray(x, np.float64) + np.float32(0.3) * u
    moved = [point for point in points if np.any(np.asarray(point) != np.asarray(x))]
    assert len(moved) == 1
    expected = jnp.asarray(exact, jnp.float32).astype(dtype)
    np.testing.assert_array_equal(np.asarray(moved[0]), np.asarray(expected))


def test_a_difference_of_low_precision_values_is_taken_in_float32():
    # 1000 and 1000.25 are one number in float16; as float32 values they are not.
    estimator = radazo.rademacher_estimator(num_directions=1, smoothing=0.25)
    f = lambda x: 1000 + x[0].astype(jnp.float32)
    _, gradient, _ = estimate(estimator, f, jnp.zeros(1, jnp.float16))
    assert float(gradient[0]) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_float16_gradient_saturates_instead_of_overflowing(sign):
    estimator = radazo.orthogonal_estimator(num_directions=2, smoothing=0.5)
    f = lambda x: sign * 1e6 * jnp.sum(x.astype(jnp.float32))
    _, gradient, _ = estimate(estimator, f, jnp.zeros(2, jnp.float16))
    np.testing.assert_array_equal(gradient, np.full(2, sign * 65504, np.float16))


def test_a_batch_of_parameters_is_estimated_as_each_alone():
    fn = radazo.value_and_grad(
        lambda x: jnp.sum(x**3), radazo.rademacher_estimator(num_directions=3)
    )
    keys, xs = jax.random.split(jax.random.key(0), 4), jnp.arange(8.0).reshape(4, 2)
    values, gradients = jax.jit(jax.vmap(fn))(keys, xs)
    alone = [jax.jit(fn)(key, x) for key, x in zip(keys, xs, strict=True)]
    # Cubes of at most 7, rounded and divided by the smoothing of 5e-3.
    rounding = 16 * np.finfo(np.float32).eps * 2 * 7.0**3 / 5e-3
    np.testing.assert_allclose(values, [v for v, _ in alone], rtol=1e-6)
    np.testing.assert_allclose(gradients, [g for _, g in alone], atol=rounding)


def test_updates_of_odd_leaves_leave_them_as_they_are():
    optimizer = radazo.zo_sgd(0.1, radazo.rademacher_estimator(), key=0)
    params = {"int": jnp.arange(3), "none": None, "x": jnp.ones(2)}
    update = jax.jit(
        functools.partial(optimizer.update, value_fn=lambda p: jnp.sum(p["x"]))
    )
    with jax.numpy_dtype_promotion("standard"):  # optax scales integers too.
        updates, _ = update(None, optimizer.init(params), params)
        moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["int"], params["int"])
    assert moved["int"].dtype == params["int"].dtype
    assert moved["none"] is None
    assert np.all(moved["x"] != params["x"])


def test_a_short_step_on_the_sphere_moves_few_of_a_million_bfloat16_weights():
    weights = 0.02 * jax.random.normal(jax.random.key(1), (10**6,))
    weights = weights.astype(jnp.bfloat16)
    seen = []

    def value_fn(params):
        moved = jnp.mean((params != weights).astype(jnp.float32))
        jax.debug.callback(lambda share: seen.append(float(share)), moved)
        return moved

    for smoothing in (1e-3, 1.0):
        estimator = radazo.sphere_estimator(num_directions=1, smoothing=smoothing)
        jax.block_until_ready(estimate(estimator, value_fn, weights))
        jax.effects_barrier()
    short, long = sorted(seen)[-2:]
    error = 5 * np.sqrt(short * (1 - short) / weights.size)
    assert abs(short - 0.012) < 5e-4 + error  # As the docstring says, to its digits.
    assert long > 0.95
