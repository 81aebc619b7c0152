"""Diagnostics against closed forms, NumPy, and estimates with a known noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained

import radazo

NUM = 4000
SLOPE = jnp.array([3.0, -1.0, 0.5, 2.0, 0.0, -2.0])
SAMPLERS = {
    "sphere": (radazo.directions.sphere, lambda d, k: (d - 1) / k),
    "gaussian": (radazo.directions.gaussian, lambda d, k: (d + 1) / k),
    "rademacher": (radazo.directions.rademacher, lambda d, k: (d - 1) / k),
    "coordinate": (radazo.directions.coordinate, lambda d, k: (d - 1) / k),
}


def linear(x):
    return SLOPE @ x


def noisy(scale):
    """A linear function whose values have noise that is a function of the point."""

    def value_fn(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        key = jax.random.key(jnp.sum(bits * jnp.arange(1, 7, dtype=jnp.uint32) ** 5))
        return linear(x) + scale * jax.random.normal(key)

    return value_fn


def statistics_of_many(sampler, value_fn, num_directions=5, smoothing=1.0):
    estimator = radazo.finite_difference_estimator(
        sampler, num_directions=num_directions, smoothing=smoothing
    )
    x = jnp.full(6, 0.25)

    def one(key):
        _, gradient, _, info = radazo.estimate(
            estimator, key, value_fn, x, estimator.init(x)
        )
        statistics = radazo.diagnostics.estimate_statistics(gradient, info)
        signal = jnp.sum(gradient**2) - statistics.variance
        return statistics.gradient_norm**2, statistics.variance, signal

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), NUM))
    return [np.asarray(x, np.float64) for x in found]


def assert_mean(found, expected, bias=0.0):
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - expected) < 4 * error + bias, (found.mean(), expected)
    return error


@pytest.mark.parametrize("name", SAMPLERS)
def test_statistics_are_unbiased_for_exact_values(name):
    sampler, variance_of = SAMPLERS[name]
    squared = float(SLOPE @ SLOPE)
    norms, variances, signals = statistics_of_many(sampler, linear)
    assert assert_mean(norms, squared) < 0.05 * squared
    # E‖u‖² in place of ‖u‖²: for Gaussian directions off by 2 ‖a‖² / (K − 1) in all.
    known = 2 * squared / 4 if name == "gaussian" else 0.0
    assert_mean(variances + known, variance_of(6, 5) * squared)
    assert_mean(signals - known, squared)


def test_noise_in_the_values_raises_the_norm_and_the_variance_but_not_the_signal():
    squared = float(SLOPE @ SLOPE)
    scale = 2.0
    # Of a slope: the noise of the moved point; that of the base is common to all.
    norms, variances, signals = statistics_of_many(
        radazo.directions.sphere, noisy(scale)
    )
    assert norms.mean() > squared + 6 * scale**2
    quiet = (6 - 1) / 5 * squared
    assert variances.mean() > quiet + 6**2 * scale**2 / 5 * 0.9
    # The common noise of the base is the same in all slopes: its direction is random.
    assert_mean(signals, squared)


def test_statistics_of_one_direction_and_of_orthogonal_ones_know_no_variance():
    for sampler, num_directions in (
        (radazo.directions.sphere, 1),
        (radazo.directions.orthogonal, 4),
    ):
        norms, variances, signals = statistics_of_many(sampler, linear, num_directions)
        assert_mean(norms, float(SLOPE @ SLOPE))
        assert np.isnan(variances).all()
        assert np.isnan(signals).all()


def test_dropped_directions_do_not_count():
    gradient = jnp.array([1.0, 2.0])
    both = radazo.estimators.EstimateInfo(
        jnp.array([1.0, 3.0]), jnp.ones(2, bool), jnp.int32(3), None, 2.0, 1.0
    )
    more = both._replace(
        slopes=jnp.array([1.0, 0.0, 3.0]), kept=jnp.array([True, False, True])
    )
    found = radazo.diagnostics.estimate_statistics(gradient, more)
    assert found == radazo.diagnostics.estimate_statistics(gradient, both)
    # c · mean slope² = 10; (4 · 5 − 5) / 1 = 15; (5 − 15) / 15.
    np.testing.assert_allclose(found, [np.sqrt(10), 15, -2 / 3], rtol=1e-6)


def run(optimizer, value_fn, steps):
    x = jnp.full(6, 0.5)
    state = optimizer.init(x)
    step = jax.jit(lambda s, x: optimizer.update(None, s, x, value_fn=value_fn))
    states = []
    for _ in range(steps):
        updates, state = step(state, x)
        x = optax.apply_updates(x, updates)
        states.append(state)
    return states


def test_monitor_keeps_the_statistics_of_the_last_step():
    estimator = radazo.sphere_estimator(num_directions=4)
    rule = optax.chain(radazo.diagnostics.monitor_estimate(decay=0.0), optax.sgd(0.1))
    optimizer = radazo.with_estimator(estimator, rule, key=3)
    (state,) = run(optimizer, linear, 1)
    key = jax.random.fold_in(jax.random.key(3), 0)
    x = jnp.full(6, 0.5)
    _, gradient, _, info = jax.jit(
        lambda: radazo.estimate(estimator, key, linear, x, estimator.init(x))
    )()
    expected = radazo.diagnostics.estimate_statistics(gradient, info)
    found = optax.tree.get(state, "statistics")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    signal = expected.signal_to_noise * expected.variance
    np.testing.assert_allclose(signal, jnp.sum(gradient**2) - expected.variance)


def test_monitor_averages_and_corrects_for_its_start():
    optimizers = [
        radazo.with_estimator(
            radazo.sphere_estimator(num_directions=4),
            optax.chain(radazo.diagnostics.monitor_estimate(decay), optax.sgd(0.1)),
            key=3,
        )
        for decay in (0.0, 0.75)
    ]
    single, mean = (run(optimizer, linear, 4) for optimizer in optimizers)
    each = [optax.tree.get(state, "averages") for state in single]
    weights = 0.25 * 0.75 ** np.arange(3, -1, -1) / (1 - 0.75**4)
    squared, variance, signal = np.tensordot(weights, np.array(each), 1)
    found = optax.tree.get(mean[-1], "statistics")
    expected = [np.sqrt(squared), variance, signal / variance]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_monitor_changes_no_update():
    plain = radazo.with_estimator(radazo.sphere_estimator(), optax.sgd(0.1), key=0)
    rule = optax.chain(radazo.diagnostics.monitor_estimate(), optax.sgd(0.1))
    watched = radazo.with_estimator(radazo.sphere_estimator(), rule, key=0)
    values = [
        radazo.minimize(lambda x: x @ x, jnp.ones(5), optimizer, 20).values
        for optimizer in (plain, watched)
    ]
    np.testing.assert_allclose(*values, rtol=1e-4)


def statistics_behind(*links):
    rule = optax.chain(*links, optax.sgd(0.1))
    optimizer = radazo.with_estimator(radazo.sphere_estimator(), rule, key=0)
    return optax.tree.get(run(optimizer, linear, 3)[-1], "statistics")


@pytest.mark.gate
def test_monitor_stands_anywhere_in_a_chain():
    monitor = radazo.diagnostics.monitor_estimate()
    first = statistics_behind(monitor)
    for links in (
        (optax.clip_by_global_norm(0.1), monitor),
        (optax.masked(monitor, jnp.array(True)),),
        (optax.inject_hyperparams(radazo.diagnostics.monitor_estimate)(decay=0.99),),
    ):
        np.testing.assert_allclose(statistics_behind(*links), first, rtol=1e-4)


def test_a_step_that_knows_no_variance_does_not_spoil_the_others():
    rule = radazo.diagnostics.monitor_estimate(decay=0.5)
    gradient = jnp.array([1.0, 2.0])
    whole = radazo.estimators.EstimateInfo(
        jnp.array([1.0, 3.0]), jnp.ones(2, bool), jnp.int32(3), None, 2.0, 1.0
    )
    part = whole._replace(slopes=jnp.array([3.0, 0.0]), kept=jnp.array([True, False]))
    state = rule.init(gradient)
    for info in (part, whole, part):
        _, state = rule.update(gradient, state, estimate_info=info)
    # c · mean slope² is 18, 10, 18 with weights 1/4, 1/2, 1 of 7/4.
    squared = (18 / 4 + 10 / 2 + 18) / (7 / 4)
    expected = [np.sqrt(squared), 15, -2 / 3]
    np.testing.assert_allclose(state.statistics, expected, rtol=1e-6)


def errors_of(value_fn, x, **options):
    return jax.jit(
        lambda: radazo.diagnostics.slope_errors(
            7, value_fn, x, num_directions=4, **options
        )
    )()


def test_bias_of_a_quadratic_and_of_a_cubic(x64):
    x = jnp.linspace(-1, 2, 9)
    u = radazo.directions.sample_directions(
        7, x, radazo.directions.gaussian, num_directions=4
    )
    options = {"sampler": radazo.directions.gaussian, "smoothing": 0.1}
    cube = errors_of(lambda x: jnp.sum(x**3), x, **options)
    np.testing.assert_allclose(cube.exact, u @ (3 * x**2), rtol=1e-12)
    bias = 0.1 * (u**2 @ (3 * x)) + 0.1**2 * jnp.sum(u**3, axis=1)
    np.testing.assert_allclose(cube.bias, bias, rtol=1e-10)
    np.testing.assert_allclose(cube.rounding, 0, atol=1e-12)
    np.testing.assert_allclose(cube.slopes, cube.exact + bias, rtol=1e-11)
    options["difference"] = radazo.central
    cube = errors_of(lambda x: jnp.sum(x**3), x, **options)
    np.testing.assert_allclose(cube.bias, 0.1**2 * jnp.sum(u**3, axis=1), rtol=1e-10)
    square = errors_of(lambda x: x @ x, x, **options)
    np.testing.assert_allclose(square.bias, 0, atol=1e-14)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slopes_in_low_precision_are_those_of_an_estimate(dtype):
    """What rounding takes from a slope is there, not only in theory."""
    x = jax.random.normal(jax.random.key(1), 500).astype(dtype)

    def value_fn(x):
        return jnp.sum(jnp.square(x.astype(jnp.float32)))

    estimator = radazo.sphere_estimator(num_directions=4, smoothing=0.05)
    _, _, _, info = jax.jit(
        lambda x: radazo.estimate(estimator, 7, value_fn, x, estimator.init(x))
    )(x)
    found = jax.jit(
        lambda x: radazo.diagnostics.slope_errors(
            7, value_fn, x, num_directions=4, smoothing=0.05
        )
    )(x)
    np.testing.assert_allclose(found.slopes, info.slopes, rtol=0.02, atol=0.01)
    u = radazo.directions.sample_directions(7, x.astype(jnp.float32), num_directions=4)
    exact = u @ (2 * x.astype(jnp.float32))
    np.testing.assert_allclose(found.exact, exact, rtol=1e-4, atol=1e-5)
    rounding = np.abs(info.slopes - exact - 0.05).max()
    np.testing.assert_allclose(np.abs(found.rounding).max(), rounding, rtol=0.3)
    assert (rounding > 0.3) == (dtype == "bfloat16")


@pytest.mark.parametrize("function", ["relu", "tanh"])
def test_bias_of_functions_that_are_no_polynomials(function, x64):
    """A kink leaves little in the rounding, and a large smoothing too."""
    x, scale = jax.random.normal(jax.random.key(1), 40), 2.0
    of = {"relu": jax.nn.relu, "tanh": jnp.tanh}[function]
    found = errors_of(lambda x: jnp.sum(of(scale * x)), x, smoothing=2.0)
    off = np.asarray(found.slopes - found.exact)
    np.testing.assert_allclose(found.bias + found.rounding, off, rtol=1e-12)
    assert np.abs(found.rounding).max() < 0.05 * np.abs(off).max()


@pytest.mark.parametrize("difference", [radazo.forward, radazo.central])
def test_slopes_are_those_of_an_estimate(difference, x64):
    params = {"a": jnp.arange(3.0), "b": jnp.ones(()), "n": jnp.int32(3)}
    mask = {"a": True, "b": False, "n": True}

    def value_fn(p):
        return jnp.sum(jnp.sin(p["a"])) * p["b"] + jnp.sum(p["a"] ** 2)

    options = {"num_directions": 4, "difference": difference, "mask": mask}
    estimator = radazo.sphere_estimator(**options)
    _, _, _, info = jax.jit(
        lambda: radazo.estimate(estimator, 7, value_fn, params, estimator.init(params))
    )()
    found = jax.jit(
        lambda: radazo.diagnostics.slope_errors(7, value_fn, params, **options)
    )()
    np.testing.assert_allclose(found.slopes, info.slopes, rtol=1e-9)


@pytest.mark.gate
def test_rounding_is_told_from_bias():
    """In float32 the remainder is what float64 says that rounding is."""
    x = jax.random.normal(jax.random.key(1), 3000)

    def value_fn(x):
        return jnp.sum(x**2) / 2

    small = errors_of(value_fn, x, smoothing=1e-3)
    large = errors_of(value_fn, x, smoothing=0.5)
    np.testing.assert_allclose(small.bias, 5e-4, rtol=1e-3)
    np.testing.assert_allclose(large.bias, 0.25, rtol=1e-3)
    wide = np.asarray(x, np.float64)
    u = np.asarray(
        radazo.directions.sample_directions(7, x, num_directions=4), np.float64
    )
    true = u @ wide + 5e-4 * (u**2).sum(axis=1)
    np.testing.assert_allclose(small.rounding, small.slopes - true, atol=1e-4)
    assert np.abs(small.rounding).max() > 20 * small.bias.max()
    assert np.abs(large.rounding).max() < large.bias.min() / 10
    terms = errors_of(lambda x: x**2 / 2, x, smoothing=1e-3, terms=True)
    assert np.std(terms.rounding) < np.std(small.rounding) / 5


def test_cosine_and_error_against_numpy():
    a = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.bfloat16(2), "n": jnp.int32(9)}
    b = {"w": jnp.ones((2, 3)), "b": jnp.bfloat16(-1), "n": jnp.int32(0)}
    flat_a, flat_b = np.array([2, *range(6)]), np.array([-1, *[1] * 6])
    cosine = flat_a @ flat_b / np.linalg.norm(flat_a) / np.linalg.norm(flat_b)
    np.testing.assert_allclose(
        radazo.diagnostics.cosine_similarity(a, b), cosine, rtol=1e-6
    )
    error = np.linalg.norm(flat_a - flat_b) / np.linalg.norm(flat_b)
    np.testing.assert_allclose(
        radazo.diagnostics.second_moment_error(a, b), error, rtol=1e-6
    )
    assert np.isnan(radazo.diagnostics.cosine_similarity(jnp.zeros(2), jnp.ones(2)))


def callback(x):
    return jax.pure_callback(lambda x: x.sum(), jnp.float32(0), x)


MONITOR = radazo.diagnostics.monitor_estimate()
MISTAKES = {
    "a decay of one": Mistake(
        lambda: radazo.diagnostics.monitor_estimate(1.0),
        ValueError,
        "monitor_estimate(decay",
        "be in [0, 1)",
        "1.0.",
        "It is the share of the past that a moment keeps",
    ),
    "a monitor without an estimator": Mistake(
        lambda: MONITOR.update(jnp.ones(2), MONITOR.init(jnp.ones(2))),
        TypeError,
        "monitor_estimate(...).update(estimate_info",
        "be an EstimateInfo",
        "None.",
        "`with_estimator(estimator, optax.chain(monitor_estimate(), ...), key)`",
    ),
    "statistics of a state": Mistake(
        lambda: radazo.diagnostics.estimate_statistics(jnp.ones(2), None),
        TypeError,
        "estimate_statistics(info",
        "be an EstimateInfo",
        "None.",
        "`radazo.estimate(...)` returns it as the last of four.",
    ),
    "trees of different structures": Mistake(
        lambda: radazo.diagnostics.cosine_similarity({"a": jnp.ones(2)}, jnp.ones(2)),
        ValueError,
        "cosine_similarity(reference",
        "have the structure and the shapes {'a': (2,)}",
        "(2,).",
        "Compare pytrees that belong to the same parameters.",
    ),
    "no smoothing": Mistake(
        lambda: radazo.diagnostics.slope_errors(0, linear, SLOPE, smoothing=0.0),
        ValueError,
        "slope_errors(smoothing",
        "be finite and greater than 0",
        "0.0.",
        "Pass that of your estimator.",
    ),
    "a function without a derivative": Mistake(
        lambda: radazo.diagnostics.slope_errors(0, callback, SLOPE),
        TypeError,
        "slope_errors(value_fn",
        "have a derivative in forward mode",
        "one that has none (Pure callbacks do not support JVP.",
        "Only functions written in JAX have one.",
    ),
    "no function": Mistake(
        lambda: radazo.diagnostics.slope_errors(0, None, SLOPE),
        TypeError,
        "slope_errors(value_fn",
        "be a function",
        "None.",
        "It takes the parameters first.",
    ),
    "arrays of different shapes": Mistake(
        lambda: radazo.diagnostics.second_moment_error(jnp.ones(3), jnp.ones(())),
        ValueError,
        "second_moment_error(reference",
        "have the structure and the shapes (3,)",
        "().",
        "Compare pytrees that belong to the same parameters.",
    ),
    "a difference of one's own": Mistake(
        lambda: radazo.diagnostics.slope_errors(
            0, linear, SLOPE, difference=radazo.forward._replace(slope=len)
        ),
        ValueError,
        "slope_errors(difference",
        "have a known interval",
        "Difference(",
        "Pass `radazo.forward` or `radazo.central`.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(name):
    explained(MISTAKES[name])
