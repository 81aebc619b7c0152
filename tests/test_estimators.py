"""estimators: right where it is easy to be wrong.

Smoothing is never 1, there is more than one direction and more than one leaf, and the
answer is known in closed form or in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import PRESETS
from optax import perturbations

import radazo

D = 11
SAMPLERS = {name: getattr(radazo.directions, name) for name in PRESETS}
DIFFERENCES = {"forward": radazo.forward, "central": radazo.central}
EPS = np.finfo(np.float32).eps
# Rounding of a slope in float64: values of order ten over a smoothing of a third, and
# a sum over the directions.
ROUNDING = 1e-12


def make_params(dtype=None):
    x = np.linspace(-1, 1.5, D)
    leaves = {"w": x[:6].reshape(2, 3), "b": (x[6:10], x[10])}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), leaves)


def ravel(params):
    """The flat vector of a pytree, in the order of its flattening."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])


def f(x):
    """A function of all coordinates jointly, of a NumPy or a JAX vector."""
    return (x**3 * np.linspace(0.5, 1, D).astype(x.dtype)).sum() + x.sum() ** 2


def f_of_params(params):
    return f(ravel(params))


def estimate(estimator, value_fn, params, key=3, **kwargs):
    """(value, flat gradient, info), compiled as one program."""

    def run(params):
        value, gradient, _, info = radazo.estimate(
            estimator, key, value_fn, params, estimator.init(params), **kwargs
        )
        return value, ravel(gradient), info

    return jax.jit(run)(params)


def directions(name, params, num_directions, key=3):
    """(K, d), as NumPy."""
    draw = jax.jit(
        lambda: jax.vmap(ravel)(
            radazo.directions.sample_directions(
                key, params, SAMPLERS[name], num_directions=num_directions
            )
        )
    )
    return np.asarray(draw())


def slopes_in_numpy(x, us, smoothing, difference):
    if difference == "forward":
        return np.array([(f(x + smoothing * u) - f(x)) / smoothing for u in us])
    pairs = [(f(x + smoothing * u), f(x - smoothing * u)) for u in us]
    return np.array([(plus - minus) / (2 * smoothing) for plus, minus in pairs])


@pytest.mark.parametrize(
    "difference", ["forward", pytest.param("central", marks=pytest.mark.gate)]
)
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.usefixtures("x64")
def test_an_estimate_is_the_mean_of_slope_times_direction(name, difference):
    params, num_directions, smoothing = make_params(), 4, 0.3
    estimator = PRESETS[name](
        num_directions=num_directions,
        smoothing=smoothing,
        difference=DIFFERENCES[difference],
    )
    _, gradient, info = estimate(estimator, f_of_params, params)
    us = directions(name, params, num_directions)
    slopes = slopes_in_numpy(np.asarray(ravel(params)), us, smoothing, difference)
    factor = 1 if name in ("gaussian", "rademacher") else D
    expected = factor / num_directions * slopes @ us
    scale = ROUNDING * factor * np.max(np.abs(slopes))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=scale)
    np.testing.assert_allclose(info.slopes, slopes, rtol=0, atol=scale)
    assert np.all(info.kept)


@pytest.mark.usefixtures("x64")
def test_the_value_of_a_forward_difference_is_that_of_the_parameters():
    params = make_params()
    estimator = radazo.rademacher_estimator(num_directions=3, smoothing=0.3)
    value, _, _ = estimate(estimator, f_of_params, params)
    np.testing.assert_allclose(value, f(np.asarray(ravel(params))), rtol=ROUNDING)


@pytest.mark.usefixtures("x64")
def test_the_value_of_a_central_difference_is_the_mean_of_the_compared_values():
    params = make_params()
    estimator = radazo.rademacher_estimator(
        num_directions=3, smoothing=0.3, difference=radazo.central
    )
    value, _, _ = estimate(estimator, f_of_params, params)
    x, us = np.asarray(ravel(params)), directions("rademacher", params, 3)
    expected = np.mean([f(x + s * 0.3 * u) for u in us for s in (1, -1)])
    np.testing.assert_allclose(value, expected, rtol=ROUNDING)


@pytest.mark.usefixtures("x64")
def test_the_aux_of_a_forward_difference_is_that_of_the_parameters():
    params = make_params()
    with_aux = lambda p: (f_of_params(p), {"flat": ravel(p), "two": 2})
    estimator = radazo.rademacher_estimator(
        num_directions=3, smoothing=0.3, chunk_size=2
    )
    value, gradient, info = estimate(estimator, with_aux, params, has_aux=True)
    np.testing.assert_array_equal(info.aux["flat"], ravel(params))
    assert info.aux["two"] == 2
    plain = estimate(estimator, f_of_params, params)
    np.testing.assert_allclose(value, plain[0], rtol=ROUNDING)
    np.testing.assert_allclose(gradient, plain[1], rtol=0, atol=100 * ROUNDING)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("chunk_size", [2, 1, 3])
@pytest.mark.usefixtures("x64")
def test_the_aux_of_a_central_difference_is_that_of_the_first_point(chunk_size):
    params = make_params()
    with_aux = lambda p: (f_of_params(p), ravel(p))
    estimator = radazo.rademacher_estimator(
        num_directions=3,
        smoothing=0.3,
        difference=radazo.central,
        chunk_size=chunk_size,
    )
    _, _, info = estimate(estimator, with_aux, params, has_aux=True)
    expected = ravel(params) + 0.3 * directions("rademacher", params, 3)[0]
    np.testing.assert_allclose(info.aux, expected, rtol=0, atol=ROUNDING)


# Where the answer is known without the directions.


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", PRESETS)
def test_a_central_estimate_of_a_linear_function_is_unbiased(name):
    a = np.linspace(-2, 3, D)
    estimator = PRESETS[name](
        num_directions=2, smoothing=0.5, difference=radazo.central
    )
    value_and_grad = radazo.value_and_grad(
        lambda p: jnp.sum(ravel(p) * jnp.asarray(a, jnp.float32)), estimator
    )
    params = make_params(jnp.float32)
    gradient = jax.jit(jax.vmap(lambda key: ravel(value_and_grad(key, params)[1])))
    samples = np.asarray(gradient(jax.random.split(jax.random.key(1), 10_000)), float)
    standard_error = np.std(samples, axis=0) / np.sqrt(len(samples))
    rounding = 8 * D * EPS * np.sum(np.abs(a)) / 0.5
    error = np.abs(np.mean(samples, axis=0) - a)
    assert np.all(error < 5 * standard_error + rounding)


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.usefixtures("x64")
def test_as_many_orthogonal_directions_as_dimensions_are_exact_if_linear(difference):
    a = jnp.linspace(-2, 3, D)
    estimator = radazo.orthogonal_estimator(
        num_directions=D, smoothing=0.3, difference=DIFFERENCES[difference]
    )
    linear = lambda p: jnp.sum(ravel(p) * a)
    _, gradient, _ = estimate(estimator, linear, make_params())
    np.testing.assert_allclose(gradient, a, rtol=0, atol=D * ROUNDING)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("smoothing", [0.01, 20.0])
@pytest.mark.parametrize("name", ["sphere", "rademacher"])
@pytest.mark.usefixtures("x64")
def test_a_central_slope_of_a_quadratic_is_exact_at_any_smoothing(name, smoothing):
    params = make_params()
    h = np.random.default_rng(0).normal(size=(D, D))
    h = h + h.T
    quadratic = lambda p: ravel(p) @ jnp.asarray(h) @ ravel(p) / 2
    estimator = PRESETS[name](
        num_directions=3, smoothing=smoothing, difference=radazo.central
    )
    _, _, info = estimate(estimator, quadratic, params)
    expected = directions(name, params, 3) @ h @ np.asarray(ravel(params))
    # The sum of d² products at a distance of smoothing · ‖u‖, over the smoothing.
    largest = np.sum(np.abs(h)) * (1 + smoothing * 5) ** 2
    atol = D * np.finfo(float).eps * largest / smoothing
    np.testing.assert_allclose(info.slopes, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("difference", "power"), [("forward", 1), ("central", 2)])
@pytest.mark.usefixtures("x64")
def test_the_bias_falls_as_a_power_of_the_smoothing(difference, power):
    params = make_params()
    x, us = np.asarray(ravel(params)), directions("rademacher", params, 5)
    exact = 1 / 5 * (us @ np.exp(x)) @ us

    def error(smoothing):
        estimator = radazo.rademacher_estimator(
            num_directions=5, smoothing=smoothing, difference=DIFFERENCES[difference]
        )
        g = estimate(estimator, lambda p: jnp.sum(jnp.exp(ravel(p))), params)[1]
        return np.linalg.norm(g - exact)

    # The next term of the series is smaller by the smoothing, here 1e-3.
    np.testing.assert_allclose(error(1e-3) / error(5e-4), 2**power, rtol=2e-3)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("num_directions", [1, 4, 16, 64])
def test_the_squared_error_falls_as_one_over_the_number_of_directions(num_directions):
    a = np.linspace(-2, 3, D).astype(np.float32)
    estimator = radazo.rademacher_estimator(
        num_directions=num_directions, smoothing=0.5
    )
    value_and_grad = radazo.value_and_grad(lambda x: jnp.sum(a * x), estimator)
    gradient = jax.jit(jax.vmap(lambda key: value_and_grad(key, jnp.zeros(D))[1]))
    samples = gradient(jax.random.split(jax.random.key(num_directions), 2000))
    squares = num_directions * np.sum((np.asarray(samples, float) - a) ** 2, axis=1)
    standard_error = np.std(squares) / np.sqrt(2000)
    assert abs(np.mean(squares) - (D - 1) * np.sum(a**2)) < 5 * standard_error


@pytest.mark.usefixtures("x64")
def test_a_gaussian_estimate_is_that_of_optax_on_the_same_noise():
    num_samples, sigma, key = 5, 0.3, jax.random.key(8)
    x = jnp.asarray(np.linspace(-1, 1.5, D))
    perturbed = perturbations.make_perturbed_fun(
        f, num_samples, sigma, perturbations.Normal(), use_baseline=True
    )
    with jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        theirs = jax.grad(perturbed, argnums=1)(key, x)
        noise = jax.vmap(
            lambda key: optax.tree.random_like(key, x, sampler=jax.random.normal)
        )(jax.random.split(key, num_samples))
    given = radazo.directions.DirectionSampler(
        lambda key, num_directions, dim, dtype: noise,
        lambda rows, k, dim, dtype: rows[k],
        lambda dim: 1.0,
    )
    estimator = radazo.finite_difference_estimator(
        given, num_directions=num_samples, smoothing=sigma
    )
    _, ours, _ = estimate(estimator, f, x)
    scale = float(jnp.max(jnp.abs(theirs)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=100 * ROUNDING * scale)


# Term by term.


def losses(num_terms, dtype):
    """The squares of a regression: a function from x to its terms, NumPy or JAX."""
    rng = np.random.default_rng(0)
    # Numbers of float32 in either type, so that both are the same function.
    z = rng.normal(size=(num_terms, D)).astype(np.float32).astype(dtype)
    y = rng.normal(0, 3, num_terms).astype(np.float32).astype(dtype)
    return lambda x: (z @ x - y) ** 2


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.usefixtures("x64")
def test_an_estimate_of_terms_is_that_of_their_sum(difference):
    terms = losses(100, np.float64)
    options = {"num_directions": 3, "smoothing": 0.3, "chunk_size": 2}
    options["difference"] = DIFFERENCES[difference]
    x = jnp.linspace(-1, 1, D)
    separate = radazo.rademacher_estimator(**options, terms=True)
    value, gradient, _ = estimate(separate, terms, x)
    plain = radazo.rademacher_estimator(**options)
    expected = estimate(plain, lambda x: jnp.sum(terms(x)), x)
    np.testing.assert_allclose(value, expected[0], rtol=ROUNDING)
    scale = np.max(np.abs(expected[1]))
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=ROUNDING * scale)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_terms_are_five_times_as_accurate_as_their_sum_in_float32(difference):
    smoothing = 2.0**-10
    options = {"num_directions": 30, "smoothing": smoothing}
    options["difference"] = DIFFERENCES[difference]
    terms, exact = losses(10_000, np.float32), losses(10_000, np.float64)
    x = np.linspace(-1, 1, D).astype(np.float32)
    us = directions("sphere", jnp.asarray(x), 30).astype(np.float64)
    back = 0 if difference == "forward" else smoothing
    slopes = [
        np.sum(exact(x + smoothing * u) - exact(x - back * u)) / (smoothing + back)
        for u in us
    ]
    separate = radazo.sphere_estimator(**options, terms=True)
    summed = radazo.sphere_estimator(**options)

    def error(estimator, value_fn):
        ours = estimate(estimator, value_fn, jnp.asarray(x))[2].slopes
        return np.sqrt(np.mean((np.asarray(ours, float) - slopes) ** 2))

    of_sum = error(summed, lambda x: jnp.sum(terms(x)))
    assert error(separate, terms) < of_sum / 5


# Chunks.


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("chunk_size", [2, 3, 7, 100])
def test_an_estimate_does_not_depend_on_the_size_of_a_chunk(difference, chunk_size):
    params, smoothing, num = make_params(jnp.float32), 0.3, 7
    options = {"num_directions": num, "smoothing": smoothing}
    options["difference"] = DIFFERENCES[difference]
    one = estimate(radazo.rademacher_estimator(**options), f_of_params, params)
    many = estimate(
        radazo.rademacher_estimator(**options, chunk_size=chunk_size),
        f_of_params,
        params,
    )
    us = directions("rademacher", params, num)
    x = np.asarray(ravel(params))
    # A slope may differ by the rounding of the sums in f, over the smoothing; the
    # estimate by that of each product and of each of the K additions.
    largest = np.sum((np.abs(x) + smoothing) ** 3) + np.sum(np.abs(x) + smoothing) ** 2
    of_slope = 2 * D * EPS * largest / smoothing
    summed = 1 / num * np.abs(us).T @ (of_slope + num * EPS * np.abs(one[2].slopes))
    assert np.all(np.abs(many[1] - one[1]) <= summed)
    assert np.all(np.abs(many[2].slopes - one[2].slopes) <= of_slope)
    assert np.array_equal(many[2].kept, one[2].kept)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("chunk_size", [3, 7])
@pytest.mark.parametrize("name", ["gaussian", "sphere", "rademacher", "orthogonal"])
def test_directions_do_not_depend_on_the_size_of_a_chunk(name, chunk_size):
    # From 0 by a half, the slope of a coordinate is that of the direction, bit by bit
    # but for the norm of the sphere: XLA chooses the order of a sum.
    params = jax.tree.map(jnp.zeros_like, make_params(jnp.float32))

    def coordinates(size):
        estimator = PRESETS[name](num_directions=7, smoothing=0.5, chunk_size=size)

        def of(i):
            pick = lambda p: jnp.sum(
                ravel(p) * (jnp.arange(D) == i).astype(jnp.float32)
            )
            state = estimator.init(params)
            return radazo.estimate(estimator, 3, pick, params, state)[3].slopes

        return jax.jit(lambda: jax.lax.map(of, jnp.arange(D)))()

    rtol = 2 * float(jnp.finfo(jnp.float32).eps) if name == "sphere" else 0
    np.testing.assert_allclose(coordinates(1), coordinates(chunk_size), rtol, 0)


@pytest.mark.gate
@pytest.mark.usefixtures("x64")
def test_mezo_drawn_again_is_mezo_with_stored_directions():
    """Two points along one Gaussian direction a step, which is nowhere kept."""
    steps, smoothing, rate, key = 6, 1e-2, 0.02, jax.random.key(4)
    estimator = radazo.gaussian_estimator(
        num_directions=1, smoothing=smoothing, difference=radazo.central
    )
    optimizer = radazo.zo_sgd(rate, estimator, key=key)
    params = make_params()
    state = optimizer.init(params)
    x = np.asarray(ravel(params))
    for t in range(steps):
        us = directions("gaussian", params, 1, jax.random.fold_in(key, t))
        slope = slopes_in_numpy(x, us, smoothing, "central")
        x = x - rate * slope[0] * us[0]
        updates, state = optimizer.update(None, state, params, value_fn=f_of_params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(ravel(params), x, rtol=0, atol=1e-10)
