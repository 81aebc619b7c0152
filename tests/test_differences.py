"""Slopes from one point, and exact ones: both are what their equations say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo

D, K, SMOOTHING = 5, 3, 0.1
START = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([[0.3, -0.7]])}
SLOPE = np.array([1.0, -2.0, 0.5, 3.0, 0.0])
NEW = {"one_point": radazo.one_point, "exact": radazo.forward_mode}


@pytest.fixture(params=NEW.values(), ids=NEW.keys())
def new(request):
    return request.param


def sphere(difference, **options):
    options = {"num_directions": K, "smoothing": SMOOTHING} | options
    return radazo.sphere_estimator(difference=difference, **options)


def value_fn(params):
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    return jnp.sum(jnp.sin(flat)) * flat[0] + flat[1] ** 2 * flat[4]


def flat_of(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def estimated(estimator, params, fn=value_fn, key=4, **options):
    estimate = jax.jit(
        lambda params: radazo.estimate(
            estimator, key, fn, params, estimator.init(params), **options
        )
    )
    return estimate(params)


def start(dtype=None):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), START)


def directions(key=4, num_directions=K):
    u = radazo.directions.sample_directions(
        key, jnp.zeros(D), num_directions=num_directions
    )
    return np.asarray(u)


@pytest.mark.usefixtures("x64")
def test_one_point_is_its_equation():
    value, gradient, _, info = estimated(sphere(radazo.one_point), start())
    us = directions()
    values = [float(value_fn(jnp.asarray(flat_of(START) + SMOOTHING * u))) for u in us]
    slopes = np.array(values) / SMOOTHING
    np.testing.assert_allclose(info.slopes, slopes, rtol=1e-12)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-12)
    np.testing.assert_allclose(flat_of(gradient), D / K * slopes @ us, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_exact_is_the_gradient_projected_on_the_directions():
    value, gradient, _, info = estimated(sphere(radazo.forward_mode), start())
    us, true = directions(), flat_of(jax.grad(value_fn)(start()))
    np.testing.assert_allclose(info.slopes, us @ true, rtol=1e-12)
    np.testing.assert_allclose(value, value_fn(start()), rtol=1e-14)
    np.testing.assert_allclose(flat_of(gradient), D / K * true @ us.T @ us, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_exact_slopes_are_where_central_ones_go_and_know_no_smoothing():
    one = [sphere(radazo.forward_mode, smoothing=s) for s in (1e-3, 1.0)]
    fine = sphere(radazo.central, smoothing=1e-4)
    first, second, limit = (estimated(x, start())[3].slopes for x in (*one, fine))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(limit, first, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_variance_of_one_point_is_its_closed_form():
    # f(x) = 2 + ⟨a, x⟩ at 0: E‖g‖² = d² f(x)² / smoothing² + d ‖a‖² for K = 1.
    estimator = sphere(radazo.one_point, smoothing=2.0)
    fn = radazo.value_and_grad(lambda x: 2 + jnp.dot(SLOPE, x), estimator)
    keys = jax.random.split(jax.random.key(0), 4000)
    _, g = jax.jit(jax.vmap(fn, (0, None)))(keys, jnp.zeros(D))
    squares = np.sum((np.asarray(g) - SLOPE) ** 2, axis=1)
    expected = (D**2 * 2**2 / 2.0**2 + (D - 1) * SLOPE @ SLOPE) / K
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - expected) < 4 * error
    assert error < 0.03 * expected
    mean_error = np.std(g, axis=0) / np.sqrt(len(squares))
    assert np.all(np.abs(np.mean(g, axis=0) - SLOPE) < 4 * mean_error)


@pytest.mark.usefixtures("x64")
def test_the_chunk_size_changes_rounding_alone(new):
    one = estimated(sphere(new, chunk_size=1), start())
    two = estimated(sphere(new, chunk_size=2), start())
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_terms_are_summed_and_the_first_aux_is_kept(new):
    def terms(params):
        return jnp.stack([value_fn(params), jnp.float32(1)]), params["a"][0]

    def total(params):
        return value_fn(params) + 1, params["a"][0]

    ours = estimated(sphere(new, terms=True), start(), terms, has_aux=True)
    theirs = estimated(sphere(new), start(), total, has_aux=True)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    moved = START["a"][0] + SMOOTHING * directions()[0][0] * (new is radazo.one_point)
    np.testing.assert_allclose(ours[3].aux, moved, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_keeps_its_types(new, dtype):
    params = start(dtype) | {"c": jnp.arange(2), "d": None}
    value, gradient, _, info = estimated(sphere(new), params, half_sum_of_squares)
    assert value.dtype == info.slopes.dtype == jnp.float32
    assert jax.tree.map(jnp.result_type, gradient) == jax.tree.map(
        jnp.result_type, params
    )
    assert np.all(info.kept)


def test_a_slope_that_is_not_finite_is_dropped(new):
    def wild(params):
        x = params["a"][0]
        return jnp.where(x > 0, jnp.nan, x) if new is radazo.one_point else jnp.sqrt(x)

    params = {"a": jnp.zeros(3)}
    _, gradient, _, info = estimated(sphere(new, num_directions=8), params, wild)
    assert np.all(np.isfinite(gradient["a"]))
    assert not np.all(info.kept)
    assert np.any(info.kept) == (new is radazo.one_point)


@pytest.mark.parametrize("jitted", [False, True])
def test_k_values_are_taken(new, jitted):
    calls = []

    def on_the_host(x):
        calls.append(1)
        return np.float32(np.sum(x))

    @jax.custom_jvp
    def counted(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(on_the_host, shape, x, vmap_method="sequential")

    counted.defjvp(lambda xs, ts: (counted(xs[0]), jnp.sum(ts[0])))
    estimator = sphere(new, num_directions=4)
    run = jax.jit(functools.partial(radazo.estimate, estimator), static_argnums=1)
    estimate = run if jitted else functools.partial(radazo.estimate, estimator)
    x = jnp.ones(D)
    out = estimate(0, counted, x, estimator.init(x))
    jax.block_until_ready(out)
    assert len(calls) == int(out[3].num_values) == 4


def test_the_function_is_traced_once_a_program(new):
    traces = []

    def traced(params):
        traces.append(1)
        return value_fn(params)

    estimated(sphere(new, chunk_size=2), start(), traced)
    assert len(traces) == 1


def exact_slope(fn):
    params = jnp.ones(3)
    estimator = sphere(radazo.forward_mode)
    return lambda: radazo.estimate(estimator, 0, fn, params, estimator.init(params))


def callback(x):
    return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), jnp.float32), x)


@jax.custom_vjp
def backward_only(x):
    return jnp.sum(x)


backward_only.defvjp(lambda x: (jnp.sum(x), None), lambda _, t: (t * jnp.ones(3),))

MISTAKES = {
    "a callback": (callback, "one that has none (Pure callbacks do not support JVP."),
    "reverse mode alone": (backward_only, "one that has none (can't apply"),
}


@pytest.mark.parametrize(("fn", "got"), MISTAKES.values(), ids=MISTAKES)
def test_a_function_without_a_derivative_is_told_so(fn, got):
    explained(
        Mistake(
            exact_slope(fn),
            TypeError,
            "forward_mode(value_fn",
            "have a derivative in forward mode",
            got,
            "Only functions written in JAX have one.",
        )
    )


def test_what_is_wrong_beside_the_derivative_is_told_instead():
    explained(
        Mistake(
            exact_slope(lambda x: x),
            ValueError,
            "sphere_estimator(value_fn",
            "return a scalar",
            "shape (3,)",
            "`terms=True`",
        )
    )
