"""history: what is drawn again is what a version that stores its directions has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo

D, K, N, STEPS, RATE = 6, 3, 2, 9, 0.05
SAMPLERS = {"gaussian": radazo.directions.gaussian, "sphere": radazo.directions.sphere}
FACTORS = {"gaussian": 1, "sphere": D}
MAKERS = {
    "reuse": radazo.history_reuse_estimator,
    "mean": radazo.history_mean_estimator,
}
# A sum of N · K slopes of order ten over a smoothing of a tenth, in float64.
ROUNDING = 1e-11


@pytest.fixture(params=MAKERS.values(), ids=MAKERS.keys())
def make(request):
    return request.param


def f(x):
    """A function of all coordinates of a NumPy or JAX vector jointly, of order one."""
    c = np.linspace(0.5, 1.5, D).astype(x.dtype)
    return ((x - 1) ** 2 * c).sum() / 2 + x.sum() ** 3 / 50 + x[0] * x[5]


def ravel(params):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)])


def start():
    leaves = [np.array([1.0, -2.0, 0.5]), (np.array([[0.3, -0.7]]), np.array(2.0))]
    return jax.tree.map(jnp.asarray, leaves)


def smoothing_of(count):
    """A schedule, of an array, and for NumPy of a number."""
    return 0.1 + 0.02 * (count if isinstance(count, int) else count.astype(float))


def run(estimator, params, num_steps=STEPS, value_fn=lambda p, t: f(ravel(p))):
    """(T, d) estimates, and the states and infos, of steps down the gradient."""

    def step(carry, t):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(5), t)
        value, gradient, state, info = radazo.estimate(
            estimator, key, lambda p: value_fn(p, t), params, state
        )
        params = jax.tree.map(lambda x, g: x - RATE * g, params, gradient)
        return (params, state), (value, ravel(gradient), state, info)

    carry = params, estimator.init(params)
    ts = jnp.arange(num_steps, dtype=jnp.uint32)
    return jax.jit(lambda: jax.lax.scan(step, carry, ts)[1])()


def directions(sampler, num_steps=STEPS, num_directions=K):
    """(T, K, d): the directions of the steps of `run`."""

    def of_step(t):
        key = jax.random.fold_in(jax.random.key(5), t)
        drawn = radazo.directions.sample_directions(
            key, start(), sampler, num_directions=num_directions
        )
        return jax.vmap(ravel)(drawn)

    ts = jnp.arange(num_steps, dtype=jnp.uint32)
    return np.asarray(jax.jit(jax.vmap(of_step))(ts))


# The methods in their letters, with stored directions.


def zoar(us, factor, num_past):
    x, stored, gradients = np.asarray(ravel(start())), [], []
    for t, row in enumerate(us):
        mu = smoothing_of(t)
        stored = [*stored, [(f(x + mu * u), mu, u) for u in row]][-num_past - 1 :]
        flat = [triple for step in stored for triple in step]
        y, mus, z = (np.array(column) for column in zip(*flat, strict=True))
        g = factor / (len(y) - 1) * (((y - y.mean()) / mus) @ z)
        gradients.append(g)
        x = x - RATE * g
    return np.array(gradients)


def zohs(us, factor, num_past, central):
    x, stored, gradients = np.asarray(ravel(start())), [], []
    for t, row in enumerate(us):
        mu = smoothing_of(t)
        slopes = [
            (f(x + mu * u) - f(x - mu * u)) / (2 * mu)
            if central
            else (f(x + mu * u) - f(x)) / mu
            for u in row
        ]
        stored = [*stored, factor / K * (np.array(slopes) @ row)][-num_past - 1 :]
        g = np.mean(stored, axis=0)
        gradients.append(g)
        x = x - RATE * g
    return np.array(gradients)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("sampler", "num_past", "chunk_size"),
    [("gaussian", N, 1), ("sphere", N, 2), ("gaussian", 20, 5)],
)
@pytest.mark.usefixtures("x64")
def test_values_used_again_are_those_of_stored_directions(
    sampler, num_past, chunk_size
):
    estimator = radazo.history_reuse_estimator(
        sampler=SAMPLERS[sampler],
        num_directions=K,
        num_past=num_past,
        smoothing=smoothing_of,
        chunk_size=chunk_size,
    )
    _, gradients, _, _ = run(estimator, start())
    expected = zoar(directions(SAMPLERS[sampler]), FACTORS[sampler], num_past)
    np.testing.assert_allclose(gradients, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("sampler", "chunk_size"), [("gaussian", 1), ("sphere", 2)])
@pytest.mark.usefixtures("x64")
def test_the_mean_of_estimates_is_that_of_stored_ones(sampler, chunk_size):
    difference = {1: radazo.forward, 2: radazo.central}[chunk_size]
    estimator = radazo.history_mean_estimator(
        sampler=SAMPLERS[sampler],
        num_directions=K,
        num_past=N,
        smoothing=smoothing_of,
        difference=difference,
        chunk_size=chunk_size,
    )
    _, gradients, _, _ = run(estimator, start())
    central = difference is radazo.central
    expected = zohs(directions(SAMPLERS[sampler]), FACTORS[sampler], N, central)
    np.testing.assert_allclose(gradients, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.usefixtures("x64")
def test_without_a_past_each_value_is_compared_with_the_mean_of_the_others():
    estimator = radazo.history_reuse_estimator(
        num_directions=4, num_past=0, smoothing=0.3
    )
    value, gradient, _, info = run(estimator, start(), num_steps=1)
    x, us = np.asarray(ravel(start())), directions(radazo.directions.gaussian, 1, 4)[0]
    y = np.array([f(x + 0.3 * u) for u in us])
    others = np.array([np.delete(y, k).mean() for k in range(4)])
    np.testing.assert_allclose(gradient[0], ((y - others) / 0.3) @ us / 4, rtol=1e-12)
    np.testing.assert_allclose(info.slopes[0], (y - y.mean()) / 0.3, rtol=1e-12)
    np.testing.assert_allclose(value[0], y.mean(), rtol=1e-12)


def test_without_a_past_the_mean_of_estimates_is_the_estimate():
    sampler = radazo.directions.orthogonal
    options = {"num_directions": 3, "smoothing": 0.2}
    history = radazo.history_mean_estimator(sampler=sampler, num_past=0, **options)
    plain = radazo.finite_difference_estimator(sampler, **options)
    value, gradient, _, info = run(history, start(), num_steps=3)
    expected = run(plain, start(), num_steps=3)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(info.slopes, expected[3].slopes, rtol=1e-4, atol=1e-5)


def estimates_of_a_linear_function(estimator, num_steps, num_runs=10_000):
    """(slope, (runs, d) estimates of the last of `num_steps` at one place)."""
    a = jnp.linspace(-1, 2, D)

    def last(key):
        state, gradient = estimator.init(a), a
        for t in range(num_steps):
            _, gradient, state, _ = radazo.estimate(
                estimator, jax.random.fold_in(key, t), lambda x: 7 + a @ x, a, state
            )
        return gradient

    keys = jax.random.split(jax.random.key(0), num_runs)
    return np.asarray(a), np.asarray(jax.jit(jax.vmap(last))(keys), np.float64)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("name", "num_past", "expected"),
    [("reuse", 1, 1 / 5), ("mean", 1, 1 / 6)],
)
def test_on_a_linear_function_the_mean_and_the_variance_are_known(
    name, num_past, expected
):
    estimator = MAKERS[name](num_directions=3, num_past=num_past, smoothing=1.0)
    a, gradients = estimates_of_a_linear_function(estimator, num_past + 1)
    spread = gradients.std(axis=0) / np.sqrt(len(gradients))
    np.testing.assert_array_less(np.abs(gradients.mean(axis=0) - a), 4 * spread)
    squares = np.sum((gradients - a) ** 2, axis=1)
    error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - (D + 1) * (a @ a) * expected) < 4 * error
    # The tolerances tell the estimate from one that is divided by n.
    assert np.max(np.abs(a) / 6 / spread) > 8
    assert error < 0.05 * squares.mean()


def test_one_value_a_step_is_enough_from_the_second_step_on():
    estimator = radazo.history_reuse_estimator(
        num_directions=1, num_past=1, smoothing=0.3
    )
    optimizer = radazo.with_estimator(estimator, optax.sgd(RATE), key=5)
    params = start()
    state = optimizer.init(params)
    step = jax.jit(
        lambda params, state: optimizer.update(
            None, state, params, value_fn=lambda p: f(ravel(p))
        )
    )
    updates, state = step(params, state)
    assert not np.any(ravel(updates))
    assert (state.num_skipped, state.num_values) == (1, 1)
    updates, state = step(params, state)
    x, us = (
        np.asarray(ravel(params)),
        directions(radazo.directions.gaussian, 2, 1)[:, 0],
    )
    y = [f(x + np.float32(0.3) * u) for u in us]
    expected = (y[1] - y[0]) / 2 / 0.3 * (us[1] - us[0])
    np.testing.assert_allclose(ravel(updates), -RATE * expected, rtol=1e-3, atol=1e-5)
    assert state.num_skipped == 1


def failing(params, t):
    """Nothing is finite at step 2, and half of all beyond 0 at step 4."""
    value = f(ravel(params))
    bad = (t == 2) | ((t == 4) & (params[0][0] > 0.9))
    return jnp.where(bad, jnp.where(params[0][1] > -2, jnp.nan, jnp.inf), value)


@pytest.mark.fast_cases(1)
@pytest.mark.usefixtures("x64")
def test_what_is_not_finite_is_not_remembered(make):
    estimator = make(num_directions=K, num_past=1, smoothing=0.1)
    _, gradients, states, infos = run(estimator, start(), 6, failing)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((gradients, states)))
    kept = np.asarray(infos.kept)
    assert not np.any(kept[2])
    assert not np.any(gradients[2])
    assert np.all(kept[[0, 1, 3, 5]])
    assert np.array_equal(states.kept[3], [[True] * K, [False] * K])


@pytest.mark.usefixtures("x64")
def test_dropped_values_are_left_out_of_the_mean():
    estimator = radazo.history_reuse_estimator(
        num_directions=6, num_past=1, smoothing=0.5
    )
    _, gradients, _, infos = run(
        estimator,
        start(),
        2,
        lambda p, t: jnp.where(p[0][0] > 1, jnp.nan, f(ravel(p))),
    )
    us, x = directions(radazo.directions.gaussian, 2, 6), np.asarray(ravel(start()))
    stored = []
    for row, gradient in zip(us, gradients, strict=True):
        points = x + 0.5 * row
        below = points[:, 0] <= 1
        stored += [(f(p), u) for p, u in zip(points[below], row[below], strict=True)]
        y, z = (np.array(column) for column in zip(*stored, strict=True))
        expected = ((y - y.mean()) / 0.5) @ z / (len(y) - 1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-11)
        x = x - RATE * expected
    assert 0 < np.sum(infos.kept) < 12


@pytest.mark.fast_cases(1)
def test_values_near_the_largest_number_give_a_finite_gradient(make):
    estimator = make(num_directions=8, num_past=3, smoothing=1e-3)
    value_fn = lambda p, t: 1e36 * jnp.sign(p[0][0] - 1 + 0.0 * t.astype(jnp.float32))
    _, gradients, states, _ = run(estimator, start(), 3, value_fn)
    assert np.all(np.isfinite(gradients))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(states))


def test_values_far_from_zero_lose_no_digits_in_their_mean():
    num_directions = 1000
    estimator = radazo.history_reuse_estimator(
        num_directions=num_directions, num_past=0, smoothing=1.0, chunk_size=1000
    )
    value_fn = lambda p, t: 2.0**20 + jnp.round(jnp.sum(p[0]))
    _, _, states, infos = run(estimator, start(), 1, value_fn)
    y = np.asarray(states.outcomes[0, 0], np.float64)
    assert np.all(y == np.round(y))
    # The sum of the values themselves has no digit left behind the point.
    np.testing.assert_allclose(infos.slopes[0], y - y.mean(), atol=1e-4)


def counting():
    calls = []

    def value_fn(params):
        value = half_sum_of_squares(params)
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        on_the_host = lambda value: calls.append(1) or value
        return jax.pure_callback(on_the_host, shape, value, vmap_method="sequential")

    return value_fn, calls


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("reuse", {}, 5),
        ("mean", {}, 6),
        ("mean", {"difference": radazo.central}, 10),
    ],
)
def test_a_step_takes_as_many_function_values_as_it_says(name, options, expected):
    value_fn, calls = counting()
    estimator = MAKERS[name](num_directions=5, num_past=2, chunk_size=2, **options)
    params = start()
    step = jax.jit(lambda key, s: radazo.estimate(estimator, key, value_fn, params, s))
    state = estimator.init(params)
    for key in range(3):
        _, _, state, info = jax.block_until_ready(step(key, state))
    jax.effects_barrier()
    assert int(info.num_values) == expected
    assert len(calls) == 3 * expected


@pytest.mark.fast_cases(1)
def test_the_memory_is_scalars_and_no_copy_of_the_parameters(make):
    dim = 100_000
    estimator = make(num_directions=10, num_past=5)
    x = jnp.zeros(dim)
    state = estimator.init(x)
    assert sum(leaf.nbytes for leaf in state) == 4 + 6 * (8 + 10 * (4 + 1) + 4)
    step = jax.jit(
        lambda key, x, s: radazo.estimate(estimator, key, half_sum_of_squares, x, s)
    )
    memory = step.lower(0, x, state).compile().memory_analysis()
    # A direction and a point; and less than a tenth for all that is small.
    assert memory.temp_size_in_bytes <= 2.1 * 4 * dim


def test_the_state_carries_on_at_the_largest_count(make):
    estimator = make(num_directions=2, num_past=1)
    state = estimator.init(jnp.ones(2))._replace(count=jnp.int32(2**31 - 2))
    step = jax.jit(
        lambda key, s: radazo.estimate(
            estimator, key, half_sum_of_squares, jnp.ones(2), s
        )[2]
    )
    for key in range(3):
        state = step(key, state)
    assert state.count == 2**31 - 1
    np.testing.assert_array_equal(state.step_keys, [[0, 2], [0, 1]])
