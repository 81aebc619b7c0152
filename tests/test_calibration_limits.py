"""Calibration where little is to be seen: optima, noise alone, numbers of all kinds."""

import math
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained

import radazo
from benchmarks.problems.synthetic import PROBLEMS
from radazo.calibration import line_probes

START = np.asarray(jax.random.normal(jax.random.key(1), (100,), jnp.float32))


@jax.jit
def around_one(x):
    return jnp.sum(jnp.square(x - 1))


def of_numpy(x):
    return float(np.sum(np.square(np.asarray(x, np.float64))))


def at_one(distance, dtype, dim=50):
    return jnp.asarray(1 + distance * np.random.default_rng(0).normal(size=dim), dtype)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("distance", "dtype"), [(1e-4, "float32"), (1e-4, "float64"), (1e-8, "float64")]
)
def test_close_to_an_optimum_it_leads_closer(distance, dtype, x64):
    params = at_one(distance, dtype)
    found = radazo.calibrate(0, around_one, params, num_steps=300)
    np.testing.assert_allclose(found.curvature, 2, rtol=0.02)
    np.testing.assert_allclose(found.reach, distance, rtol=0.5)
    estimator = radazo.sphere_estimator(smoothing=found.smoothing)
    optimizer = radazo.radazo(found.learning_rate, estimator, key=0)
    reached = radazo.minimize(around_one, params, optimizer, 300, progress=False)
    assert around_one(reached.params) < 0.02 * around_one(params)


def at_places(value_fn):
    """`value_at` of a function of one variable, in float64."""
    return lambda k, distance: np.float64(value_fn(distance))


def test_the_value_is_that_of_polynomials_of_degree_five():
    value_fn = np.polynomial.Polynomial([3.0, 1, -40, 7, 500, 20])
    value, noise = line_probes.value_and_noise("test", at_places(value_fn), 0.1)
    np.testing.assert_allclose(value, 3, rtol=1e-12)
    assert value_fn(np.linspace(-0.3, 0.3, 7)).mean() < 2.9
    # Even where the noise is taken for large.
    value, noise = line_probes.value_and_noise("test", at_places(abs), 0.1)
    assert value < 0.7 * noise


@pytest.mark.gate
def test_the_variance_of_the_value_is_the_one_that_is_taken_off():
    draws = np.random.default_rng(0)
    value_at = at_places(lambda t: draws.normal())
    found = [line_probes.value_and_noise("test", value_at, 1.0)[0] for _ in range(4000)]
    np.testing.assert_allclose(np.var(found), 131 / 231, rtol=0.1)
    excess = []
    for _ in range(10_000):
        value = draws.normal() * math.sqrt(131 / 231)
        pairs = {1.0: 5 + draws.normal(size=(6, 2))}
        excess.append(line_probes.summarize(pairs, 7, value, 1.0).bend[0] - 10**2)
    assert abs(np.mean(excess)) < 4 * np.std(excess) / math.sqrt(len(excess))


@pytest.mark.parametrize(
    ("value_fn", "distance", "dtype"),
    [
        (lambda x: 100 + around_one(x), 1e-4, "float32"),  # Noise is far more.
        (around_one, 0, "float64"),  # It is 5 times as much, and slopes have changed.
        (jax.jit(PROBLEMS["rosenbrock"].value_fn), 1e-8, "float64"),  # It is little.
        (around_one, 0, "float32"),
    ],
)
def test_what_noise_or_curvature_drowns_is_refused(value_fn, distance, dtype, x64):
    call = lambda: radazo.calibrate(0, value_fn, at_one(distance, dtype))
    rule = "have slopes that are significant before they change"
    hint = "The point may be optimal already; otherwise average several values."
    got = "slopes of "
    explained(Mistake(call, ValueError, "calibrate(value_fn", rule, got, hint))


def refused_as_level(value_fn, params, key=0):
    rule, got = "have slopes that are significant", "values near "
    hint = "Start where f is not level, or average several values."
    call = lambda: radazo.calibrate(key, value_fn, params)
    explained(Mistake(call, ValueError, "calibrate(value_fn", rule, got, hint))


@pytest.mark.parametrize("key", range(12))
def test_noise_alone_has_no_slopes(key):
    draws = np.random.default_rng(key)
    refused_as_level(lambda x: draws.normal(), jnp.ones(7), key)


@pytest.mark.gate
def test_noise_alone_is_taken_for_slopes_in_one_of_a_hundred_cases():
    draws, seen = np.random.default_rng(0), []
    for _ in range(3000):
        noise = line_probes.noise_of(draws.normal(size=line_probes.STENCIL))
        pairs = {t: draws.normal(size=(6, 2)) for t in (1.0, 3.0, 9.0, 144.0, 2304.0)}
        seen.append(line_probes.summarize(pairs, 7, 0.0, noise).significant)
    assert 0.004 < np.mean(seen) < 0.016


def test_a_function_whose_slopes_vanish_is_not_said_to_be_constant():
    refused_as_level(jax.jit(lambda x: jnp.sum(jnp.square(x))), jnp.zeros(50))


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_noise_is_no_less_than_rounding(offset):
    value_fn = jax.jit(lambda x: offset + 0.01 * jnp.sum(jnp.square(x)))
    for key in range(8):
        found = radazo.calibrate(key, value_fn, START)
        assert found.noise >= np.spacing(np.float32(offset)) / math.sqrt(12)


@pytest.mark.parametrize(
    ("returned", "unit"),
    [
        (np.float64, np.spacing(100.0)),
        (float, np.spacing(100.0)),
        (Fraction, np.spacing(100.0)),
        (np.float32, 2**-17),
        (jnp.bfloat16, 2**-1),
        (int, 1),
        (jnp.int16, 1),
        (lambda x: int(x) * 10**30, np.spacing(1e32)),
    ],
)
def test_rounding_is_that_of_the_type_that_is_returned(returned, unit):
    """Of a function that is linear where it is called, and exact in all types."""
    value_at = line_probes.value_along(
        "test",
        lambda x: returned(100 + 8 * np.rint(float(x[0]) - 5)),
        jnp.array([5.0]),
        radazo.flat.layout("test", jnp.array([5.0]), None),
        jnp.zeros(2, jnp.uint32),
    )
    value, noise = line_probes.value_and_noise("test", value_at, 1e-3)
    assert value in (100, 1e32)
    np.testing.assert_allclose(noise, unit / math.sqrt(12), 1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e38])
def test_elements_whose_squares_are_no_numbers(scale):
    one = radazo.calibrate(0, of_numpy, 0.1 * START)
    wide = lambda x: of_numpy(np.asarray(x, np.float64) / scale)
    found = radazo.calibrate(0, wide, jnp.asarray(0.1 * scale * START))
    np.testing.assert_allclose(found.distance, scale * one.distance, 1e-3)
    np.testing.assert_allclose(found.reach, scale * one.reach, 1e-3)
    assert found.num_values == one.num_values


@pytest.mark.parametrize("element", [1e-37, 1.0, 2e38])
def test_the_size_of_elements_is_a_number(element):
    params = {"a": np.full(4, element, np.float32), "b": np.zeros(0, np.float32)}
    layout = radazo.flat.layout("test", params, None)
    size, _ = line_probes.size_and_eps(layout, params)
    assert 0.9 * element < size < 1.1 * element


@pytest.mark.parametrize(
    "returned",
    [
        Fraction,
        np.longdouble,
        np.array,
        jnp.float32,
        lambda x: round(x * 10**20) * 10**10,
        lambda x: 10**400 if x > 400 else -(10**400) if x == 0 else x,
    ],
)
def test_real_numbers_of_all_kinds_are_taken(returned):
    one = radazo.calibrate(0, of_numpy, START)
    found = radazo.calibrate(0, lambda x: returned(of_numpy(x)), START)
    np.testing.assert_allclose(found.reach, one.reach, 0.2)
    assert math.isfinite(found.learning_rate)


@pytest.mark.parametrize(
    "value", [True, np.True_, jnp.array(True), Decimal(3), "3", None]
)
def test_what_is_no_real_number_is_refused(value):
    """A bool is none: it is what a comparison returns, and has no slopes."""
    call = lambda: radazo.calibrate(0, lambda x: value, START)
    got, hint = f"a {type(value).__name__}: {value!r}", "Return a scalar, without"
    rule = "return a real number"
    explained(Mistake(call, TypeError, "calibrate(value_fn", rule, got, hint))


def test_a_penalty_without_a_square_is_as_good_as_infinity():
    def penalized(penalty):
        inside = lambda x: np.max(np.abs(x)) < 4
        value_fn = lambda x: of_numpy(x) if inside(x) else penalty
        return radazo.calibrate(0, value_fn, jnp.ones(100))

    assert penalized(1.7e308) == penalized(math.inf)


def test_44_to_83_values():
    large = jax.jit(lambda x: 1e7 + jnp.sum(jnp.square(x)))
    assert radazo.calibrate(0, large, 0.3 * jnp.asarray(START)).num_values == 44
    assert radazo.calibrate(0, around_one, at_one(1e-4, "float32")).num_values == 80
    assert "44 to 83 function values, most often 56" in radazo.calibrate.__doc__
