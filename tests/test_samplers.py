"""Each coordinate once, and samplers of users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Mistake, explained

import radazo

SLOPE = np.array([1.0, -2.0, 0.5, 3.0])
START = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([[0.3, -0.7]]), "c": None}


def value_fn(params):
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    return jnp.sum(jnp.sin(flat)) * flat[0] + flat[1] ** 2 * flat[4]


def start():
    return jax.tree.map(jnp.asarray, START)


def estimated(estimator, params, fn=value_fn, key=0):
    estimate = jax.jit(
        lambda params: radazo.estimate(
            estimator, key, fn, params, estimator.init(params)
        )
    )
    return estimate(params)


# Each coordinate once.


@pytest.mark.usefixtures("x64")
def test_each_coordinate_once_is_the_gradient_by_differences(difference):
    estimator = radazo.coordinate_estimator(
        num_directions=None, smoothing=1e-3, difference=difference, chunk_size=2
    )
    _, gradient, _, info = estimated(estimator, start())
    flat = np.concatenate([START["a"], START["b"].ravel()])

    def at(x):
        return float(value_fn(jnp.asarray(x)))

    def slope(e):
        ahead, behind = at(flat + 1e-3 * e), at(flat - 1e-3 * e)
        central = (ahead - behind) / 2e-3
        return (ahead - at(flat)) / 1e-3 if difference is radazo.forward else central

    slopes = np.array([slope(e) for e in np.eye(5)])
    np.testing.assert_allclose(info.slopes, slopes, rtol=1e-9, atol=1e-9)
    ours = np.concatenate([gradient["a"], gradient["b"].ravel()])
    np.testing.assert_allclose(ours, slopes, rtol=1e-9, atol=1e-9)
    assert int(info.num_values) == (6 if difference is radazo.forward else 10)
    assert info.factor == 5
    assert np.isnan(info.squared_norm)


@pytest.mark.usefixtures("x64")
def test_with_exact_slopes_it_is_the_gradient():
    estimator = radazo.coordinate_estimator(
        num_directions=None, difference=radazo.forward_mode
    )
    _, gradient, _, _ = estimated(estimator, start())
    true = jax.grad(value_fn)(start())
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-14), gradient, true
    )


def test_each_coordinate_once_has_no_noise():
    estimator = radazo.coordinate_estimator(num_directions=None)
    first, second = (estimated(estimator, start(), key=key) for key in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first[:2], second[:2])


def test_each_coordinate_that_the_mask_chooses():
    estimator = radazo.coordinate_estimator(
        num_directions=None, mask={"a": False, "b": True, "c": True}
    )
    _, gradient, _, info = estimated(estimator, start())
    assert info.slopes.shape == (2,)
    assert not np.any(gradient["a"])
    assert np.all(gradient["b"])


def test_a_dropped_coordinate_is_zero_and_the_others_make_up_for_it():
    def wild(x):
        return jnp.where(x[1] > 0, jnp.nan, jnp.dot(SLOPE.astype(np.float32), x))

    estimator = radazo.coordinate_estimator(num_directions=None)
    _, gradient, _, info = estimated(estimator, jnp.zeros(4), wild)
    np.testing.assert_array_equal(info.kept, [True, False, True, True])
    expected = SLOPE * 4 / 3 * [1, 0, 1, 1]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_parameters_without_elements_have_an_estimate():
    estimator = radazo.coordinate_estimator(num_directions=None)
    _, gradient, _, _ = estimated(estimator, jnp.zeros(0), jnp.sum)
    assert gradient.shape == (0,)


@pytest.mark.parametrize("num_directions", [3, 5])
def test_of_the_basis_there_are_d(num_directions):
    estimator = radazo.finite_difference_estimator(
        radazo.directions.basis, num_directions=num_directions
    )
    explained(
        Mistake(
            lambda: estimated(estimator, jnp.zeros(4), jnp.sum),
            ValueError,
            "basis(num_directions",
            "be the number of perturbed elements, 4",
            f"{num_directions}.",
            "None takes each coordinate once",
        )
    )


# Samplers of users.


def uniform(key, dim):
    """Mean square 1/3."""
    return jax.random.uniform(key, (dim,), minval=-1, maxval=1)


def unit(key, dim):
    direction = jax.random.normal(key, (dim,))
    return direction / jnp.linalg.norm(direction)


def signs(key, dim):
    return jax.random.rademacher(key, (dim,))


OWN = {
    "uniform": (uniform, 3.0),
    "a factor by dimension": (unit, float),
    "integers": (signs, 1),
}


@pytest.mark.parametrize(("draw", "factor"), OWN.values(), ids=OWN)
def test_directions_are_those_that_were_drawn(draw, factor):
    sampler = radazo.directions.sampler_from(draw, factor=factor)
    us = radazo.directions.sample_directions(3, jnp.zeros(4), sampler, num_directions=2)
    for k in range(2):
        expected = draw(jax.random.fold_in(jax.random.key(3), k), 4)
        np.testing.assert_array_equal(us[k], expected.astype(jnp.float32))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize(("draw", "factor"), OWN.values(), ids=OWN)
def test_an_estimate_has_no_bias(draw, factor, chunk_size):
    sampler = radazo.directions.sampler_from(draw, factor=factor)
    estimator = radazo.finite_difference_estimator(
        sampler, num_directions=20_000, chunk_size=2_000 * chunk_size
    )
    slope = SLOPE.astype(np.float32)
    _, gradient, _, info = estimated(
        estimator, jnp.zeros(4), lambda x: jnp.dot(slope, x)
    )
    # The mean square of factor · slope · uᵢ is at most 3 ‖a‖² in all three samplers.
    error = np.sqrt(3 * SLOPE @ SLOPE / 20_000)
    assert np.all(np.abs(np.asarray(gradient) - SLOPE) < 4 * error)
    number = factor(4) if callable(factor) else factor
    assert info.factor == number
    np.testing.assert_allclose(info.squared_norm, 4 / number)


def test_the_sphere_of_one_s_own_is_the_sphere():
    sampler = radazo.directions.sampler_from(unit, factor=float)
    own = radazo.finite_difference_estimator(sampler, num_directions=3)
    theirs = radazo.sphere_estimator(num_directions=3)
    ours, theirs = (estimated(x, start())[1] for x in (own, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), ours, theirs)


def test_elements_that_are_not_finite_are_zero():
    def broken(key, dim):
        return jnp.array([1.0, jnp.nan, -jnp.inf, -1.0])

    sampler = radazo.directions.sampler_from(broken)
    us = radazo.directions.sample_directions(0, jnp.zeros(4), sampler, num_directions=1)
    np.testing.assert_array_equal(us, [[1, 0, 0, -1]])


@pytest.mark.usefixtures("x64")
def test_directions_have_the_type_of_the_parameters():
    sampler = radazo.directions.sampler_from(
        lambda key, dim: jnp.ones(dim, jnp.float32)
    )
    us = radazo.directions.sample_directions(0, jnp.zeros(4), sampler, num_directions=1)
    assert us.dtype == jnp.float64


def drawing(draw):
    sampler = radazo.directions.sampler_from(draw)
    return lambda: radazo.directions.sample_directions(
        0, jnp.zeros(4), sampler, num_directions=1
    )


DRAW, FACTOR = "sampler_from(draw", "sampler_from(factor"
REAL, NORMAL = "return a real array of shape (4,)", "`jax.random.normal(key, (dim,))`"
INVERSE = "It is the inverse of the mean square of an element"
MISTAKES = {
    "no function": Mistake(
        lambda: radazo.directions.sampler_from(jnp.ones(3)),
        TypeError,
        DRAW,
        "be a function",
        "Array",
        "It takes a key and a dimension.",
    ),
    "a factor of zero": Mistake(
        lambda: radazo.directions.sampler_from(uniform, factor=0.0),
        ValueError,
        FACTOR,
        "be finite and greater than 0",
        "0.0.",
        INVERSE,
    ),
    "a factor by name": Mistake(
        lambda: radazo.directions.sampler_from(uniform, factor="d"),
        TypeError,
        FACTOR,
        "be a number",
        "'d'.",
        INVERSE,
    ),
    "a function to a factor below zero": Mistake(
        lambda: estimated(
            radazo.finite_difference_estimator(
                radazo.directions.sampler_from(uniform, factor=lambda dim: -dim)
            ),
            jnp.zeros(4),
            jnp.sum,
        ),
        ValueError,
        FACTOR,
        "be finite and greater than 0",
        "-4.",
        INVERSE,
    ),
    "one element too many": Mistake(
        drawing(lambda key, dim: jnp.ones(dim + 1)),
        TypeError,
        DRAW,
        REAL,
        "an array of type float32 and shape (5,).",
        NORMAL,
    ),
    "complex numbers": Mistake(
        drawing(lambda key, dim: jnp.ones(dim, jnp.complex64)),
        TypeError,
        DRAW,
        REAL,
        "an array of type complex64 and shape (4,).",
        NORMAL,
    ),
    "a list": Mistake(
        drawing(lambda key, dim: [1.0] * dim), TypeError, DRAW, REAL, "a list.", NORMAL
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained(mistake):
    explained(mistake)
