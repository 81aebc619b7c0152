"""The surrogate is a Gaussian process, and its gradient worth more than differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares
from test_gaussian_process import process

import radazo

NUM_SEEDS = 6


@functools.cache
def stepper(value_fn, **options):
    estimator = radazo.trajectory_estimator(**options)
    estimate = jax.jit(
        lambda key, x, state: radazo.estimate(estimator, key, value_fn, x, state)
    )
    return estimator.init, estimate


def wavy(x):
    return jnp.sum(jnp.sin(x)) + x[0] * x[1]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_a_step_is_the_process_of_all_points_looked_at(x64, chunk_size):
    init, estimate = stepper(
        wavy, num_directions=3, num_points=9, length_scale=0.7, chunk_size=chunk_size
    )
    draw = jax.jit(
        functools.partial(radazo.directions.sample_directions, num_directions=3)
    )
    looked_at, state = [], init(jnp.zeros(2))
    for key in range(3):
        x = jnp.array([0.1, -0.2]) * key
        value, gradient, state, info = estimate(key, x, state)
        x, u = np.asarray(x), np.asarray(draw(key, x))
        looked_at += [x, *(x + 0.1 * u)]
        points = np.stack(looked_at[-9:])
        values = np.sum(np.sin(points), axis=1) + points[:, 0] * points[:, 1]
        _, expected, _ = process("matern", points, values, x, 0.7, 1e-6)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
        np.testing.assert_allclose(value, wavy(x))
        np.testing.assert_allclose(
            info.slopes, (values[-3:] - values[-4]) / 0.1, rtol=1e-9
        )


def test_a_point_of_low_precision_is_held_as_it_was_evaluated():
    x = jnp.array([100.0, -3.0], jnp.bfloat16)  # Neighbours of 100 are 0.5 apart.
    init, estimate = stepper(half_sum_of_squares, num_directions=4, num_points=5)
    _, _, state, _ = estimate(0, x, init(x))
    points, values, *_ = state.buffer
    np.testing.assert_array_equal(points, points.astype(jnp.bfloat16))
    np.testing.assert_allclose(values, jnp.sum(points**2, axis=1) / 2, rtol=1e-6)


def cosines(estimator, value_fn, dim, num_steps):
    """The mean cosine to the gradient along a descent by Adam, of each seed."""
    rule = optax.adam(0.05)

    def run(key):
        start_key, key = jax.random.split(key)
        x = jax.random.uniform(start_key, (dim,), minval=-2.0, maxval=2.0)

        def step(carry, key):
            x, state, moments = carry
            _, gradient, state, _ = radazo.estimate(estimator, key, value_fn, x, state)
            exact = jax.grad(value_fn)(x)
            updates, moments = rule.update(gradient, moments)
            cosine = radazo.diagnostics.cosine_similarity(gradient, exact)
            ratio = jnp.linalg.norm(gradient) / jnp.linalg.norm(exact)
            return (x + updates, state, moments), (cosine, ratio)

        carry = x, estimator.init(x), rule.init(x)
        keys = jax.random.split(key, num_steps)
        _, (cosine, ratio) = jax.lax.scan(step, carry, keys)
        return jnp.mean(cosine), jnp.median(ratio)

    with jax.numpy_dtype_promotion("standard"):
        keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
        return jax.jit(jax.vmap(run))(keys)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.gate
def test_its_cosine_to_the_gradient_is_above_that_of_differences_at_equal_values():
    options = {"num_directions": 4}
    surrogate = radazo.trajectory_estimator(**options, num_points=40)
    mine, ratio = cosines(surrogate, rosenbrock, 10, 40)
    others = [radazo.sphere_estimator, radazo.orthogonal_estimator]
    for other in others:
        theirs, _ = cosines(other(**options), rosenbrock, 10, 40)
        ahead = np.asarray(mine - theirs, np.float64)
        error = ahead.std(ddof=1) / np.sqrt(ahead.size)
        assert ahead.mean() > 5 * error
        assert ahead.min() > 0
    # It is the gradient, and not a multiple of it.
    assert np.all(np.abs(ratio - 1) < 0.1)


def counting(value_fn):
    calls = []

    def on_the_host(value):
        calls.append(float(value))
        return value

    def counted(params):
        value = value_fn(params)
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(on_the_host, shape, value, vmap_method="sequential")

    return counted, calls


def bowl(x):
    return jnp.sum(jnp.arange(1, x.size + 1).astype(x.dtype) * x**2) / 2


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("eager", [False, True])
def test_a_virtual_step_takes_no_value(eager):
    counted, calls = counting(bowl)
    estimator = radazo.trajectory_estimator(
        num_directions=5, num_points=12, max_virtual_steps=2
    )

    def estimate(key, x, state):
        return radazo.estimate(estimator, key, counted, x, state)

    estimate = estimate if eager else jax.jit(estimate)
    x, state, seen = jnp.ones(3), estimator.init(jnp.ones(3)), []
    for key in range(5):
        value, gradient, state, info = estimate(key, x, state)
        jax.block_until_ready(gradient)
        jax.effects_barrier()
        seen.append(len(calls))
        assert int(info.num_values) == len(calls) - (seen[-2] if key else 0)
        assert np.all(info.kept)
        np.testing.assert_allclose(value, bowl(x), rtol=0.05)
        x = x - 0.02 * gradient
    # Two virtual steps in a row at most, and as many as that.
    assert seen == [6, 6, 6, 12, 12]


def test_a_step_far_from_all_points_is_not_virtual():
    init, estimate = stepper(
        bowl, num_directions=5, num_points=12, max_virtual_steps=2, length_scale=1.0
    )
    _, _, state, _ = estimate(0, jnp.ones(3), init(jnp.ones(3)))
    *_, near = estimate(1, jnp.ones(3) + 0.01, state)
    *_, far = estimate(1, jnp.ones(3) + 10.0, state)
    assert (near.num_values, far.num_values) == (0, 6)
    *_, nothing_known = estimate(1, jnp.ones(3), init(jnp.ones(3)))
    assert nothing_known.num_values == 6


def test_a_look_that_sees_nothing_gives_no_new_trust():
    value_fn = lambda x: jnp.where(x[0] > 5, jnp.nan, bowl(x))
    init, estimate = stepper(
        value_fn, num_directions=5, num_points=12, max_virtual_steps=2, length_scale=1.0
    )
    x = jnp.ones(3)
    _, _, state, _ = estimate(0, x, init(x))
    taken = []
    for key, at in enumerate((x, x, x + 10.0, x, x), start=1):
        _, _, state, info = estimate(key, at, state)
        taken.append(int(info.num_values))
    assert taken == [0, 0, 6, 6, 0]


def test_a_virtual_step_has_an_aux_of_the_same_form():
    estimator = radazo.trajectory_estimator(num_directions=5, max_virtual_steps=1)
    value_fn = lambda x: (bowl(x), {"first": x[0], "kept": x > 0})
    estimate = jax.jit(
        lambda key, state: radazo.estimate(
            estimator, key, value_fn, jnp.ones(3), state, has_aux=True
        )
    )
    _, _, state, looked = estimate(0, estimator.init(jnp.ones(3)))
    *_, virtual = estimate(1, state)
    assert looked.aux["first"] == 1
    assert virtual.aux["first"] == 0
    assert virtual.num_values == 0


def test_values_that_are_not_finite_do_not_enter_the_state():
    value_fn = lambda x: jnp.where(x[0] > 1, jnp.nan, jnp.sum(x**2))
    init, estimate = stepper(value_fn, num_directions=6, num_points=20)
    x = jnp.array([1.0, 1.0])
    _, gradient, state, info = estimate(0, x, init(x))
    assert 0 < np.sum(info.kept) < 6
    assert state.buffer.num_filled == 1 + np.sum(info.kept)
    assert np.all(gradient > 0)
    _, gradient, after, info = estimate(1, x + 1, state)
    assert not np.any(info.kept)
    np.testing.assert_array_equal(gradient, 0)
    jax.tree.map(np.testing.assert_array_equal, after.buffer, state.buffer)


TRAJECTORY = "trajectory_estimator"


def trajectory(**options):
    return lambda: radazo.trajectory_estimator(**options)


MISTAKES = {
    "no kernel": Mistake(
        trajectory(kernel="rbf"),
        TypeError,
        f"{TRAJECTORY}(kernel",
        "be a Kernel",
        "'rbf'.",
        "Pass a kernel, e.g. `radazo.estimators.matern`",
    ),
    "no direction": Mistake(
        trajectory(num_directions=0),
        ValueError,
        f"{TRAJECTORY}(num_directions",
        "be at least 1",
        "0.",
        "More directions give a better estimate",
    ),
    "fewer points than a step evaluates": Mistake(
        trajectory(num_points=10),
        ValueError,
        f"{TRAJECTORY}(num_points",
        "be at least 11",
        "10.",
        "The buffer holds the num_directions + 1 points",
    ),
    "no length": Mistake(
        trajectory(length_scale=0.0),
        ValueError,
        f"{TRAJECTORY}(length_scale",
        "be finite and greater than 0",
        "0.0.",
        "None finds one at each step.",
    ),
    "less than no noise": Mistake(
        trajectory(jitter=-1e-6),
        ValueError,
        f"{TRAJECTORY}(jitter",
        "be finite and at least 0",
        "-1e-06.",
        "It is the share of noise",
    ),
    "half a virtual step": Mistake(
        trajectory(max_virtual_steps=0.5),
        TypeError,
        f"{TRAJECTORY}(max_virtual_steps",
        "be an integer",
        "0.5.",
        "0 evaluates in every step",
    ),
    "no uncertainty": Mistake(
        trajectory(max_uncertainty=0),
        ValueError,
        f"{TRAJECTORY}(max_uncertainty",
        "be finite and greater than 0",
        "0.",
        "At 1 the gradient is unknown",
    ),
    "no chunk": Mistake(
        trajectory(chunk_size=0),
        ValueError,
        f"{TRAJECTORY}(chunk_size",
        "be at least 1",
        "0.",
        "1 evaluates one direction at a time",
    ),
    "no sampler": Mistake(
        trajectory(sampler=None),
        TypeError,
        f"{TRAJECTORY}(sampler",
        "be a DirectionSampler",
        "None.",
        "Pass a sampler, e.g. `radazo.directions.sphere`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_argument_is_explained(mistake):
    explained(mistake)
