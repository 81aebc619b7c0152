"""svrg: ZO-SVRG letter by letter, and that its variance goes where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares, raises

import radazo

D, K, M, STEPS, RATE, SMOOTHING = 4, 2, 3, 8, 0.05, 0.1
CENTERS = np.linspace(-2, 3, 10 * D).reshape(10, D)
SCALES = np.linspace(0.5, 2, 10)
START = np.array([1.0, -2.0, 0.5, 0.3])
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["fresh", "shared"])
# Slopes of order ten over a smoothing of a tenth, in float64.
ROUNDING = 1e-11


def f(x, batch):
    """The mean over a batch of components, of NumPy or JAX."""
    centers, scales = batch
    squares = ((x[None, :] - centers) ** 2).sum(axis=1)
    return (scales * squares).mean() / 2 + x[0] * x[1] ** 2


def whole(x):
    return f(x, (CENTERS.astype(x.dtype), SCALES.astype(x.dtype)))


def batch(t):
    return CENTERS[[t % 10, (3 * t + 1) % 10]], SCALES[[t % 10, (3 * t + 1) % 10]]


def svrg(shared, full_value_fn=whole, **options):
    options = {"num_directions": K, "smoothing": SMOOTHING} | options
    return radazo.svrg_estimator(
        radazo.sphere_estimator(**options),
        full_value_fn,
        num_inner_steps=M,
        share_directions=shared,
    )


def batches():
    rows = [batch(t) for t in range(STEPS)]
    return tuple(jnp.asarray(np.stack(column)) for column in zip(*rows, strict=True))


def keys():
    return jax.vmap(lambda t: jax.random.fold_in(jax.random.key(7), t))(
        jnp.arange(STEPS, dtype=jnp.uint32)
    )


def directions(part):
    """(T, K, d): the directions of one of the three estimates of each step."""

    def of_step(key):
        key = jax.random.fold_in(key, part)
        return radazo.directions.sample_directions(
            key, jnp.asarray(START), num_directions=K
        )

    return np.asarray(jax.jit(jax.vmap(of_step))(keys()))


def estimate_in_numpy(value_fn, x, us):
    slopes = [(value_fn(x + SMOOTHING * u) - value_fn(x)) / SMOOTHING for u in us]
    return D / K * np.array(slopes) @ us


@pytest.mark.fast_cases(1)
@SHARED
@pytest.mark.usefixtures("x64")
def test_a_run_is_that_of_the_algorithm_in_its_letters(shared):
    estimator = svrg(shared)

    def step(carry, inputs):
        x, state = carry
        key, batch = inputs
        value, gradient, state, info = radazo.estimate(
            estimator, key, lambda x: f(x, batch), x, state
        )
        return (x - RATE * gradient, state), (value, gradient, info)

    carry = jnp.asarray(START), estimator.init(jnp.asarray(START))
    inputs = keys(), batches()
    _, (values, gradients, infos) = jax.jit(jax.lax.scan, static_argnums=0)(
        step, carry, inputs
    )

    at_x, at_snapshot, in_full = (directions(part) for part in range(3))
    x = START
    for t in range(STEPS):
        value_fn = lambda x, t=t: f(x, batch(t))
        if t % M == 0:
            snapshot, full = x, estimate_in_numpy(whole, x, in_full[t])
        there = at_x[t] if shared else at_snapshot[t]
        v = (
            estimate_in_numpy(value_fn, x, at_x[t])
            - estimate_in_numpy(value_fn, snapshot, there)
            + full
        )
        np.testing.assert_allclose(gradients[t], v, rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(values[t], value_fn(x), rtol=ROUNDING)
        x = x - RATE * v
    expected = [3 * (K + 1) if t % M == 0 else 2 * (K + 1) for t in range(STEPS)]
    np.testing.assert_array_equal(infos.num_values, expected)
    assert infos.slopes.shape == infos.kept.shape == (STEPS, K)


def sampler(estimator, state):
    """A function of x: (runs, d) estimates there by many keys, of two components."""

    def one(key, x):
        return radazo.estimate(estimator, key, lambda x: quadratic(x, 2), x, state)[1]

    run = jax.jit(jax.vmap(one, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(1), 4000)
    return lambda x: np.asarray(run(keys, x))


def quadratic(x, num_components=10):
    """Of its components, or of the first of them: central differences are exact."""
    centers, scales = CENTERS[:num_components], SCALES[:num_components]
    squares = jnp.sum((x[None, :] - centers.astype(x.dtype)) ** 2, axis=1)
    return jnp.mean(scales.astype(x.dtype) * squares) / 2


def slope_of(x, num_components=10):
    centers, scales = CENTERS[:num_components], SCALES[:num_components]
    return np.mean(scales[:, None] * (x - centers), axis=0)


def state_at(estimator, x):
    """A state of a run that has its snapshot and the exact slope at `x`."""
    return estimator.init(x)._replace(
        age=jnp.int32(1), full_gradient=jnp.asarray(slope_of(np.asarray(x)), x.dtype)
    )


@pytest.mark.usefixtures("x64")
def test_with_shared_directions_the_variance_vanishes_at_the_snapshot():
    snapshot, away = jnp.asarray(START), np.array([1.0, 2.0, -1.0, 0.5])
    estimator = svrg(True, quadratic, difference=radazo.central)
    state = state_at(estimator, snapshot)
    sample = sampler(estimator, state)

    def variance(distance):
        return sample(snapshot + distance * away).var(axis=0).sum()

    # On a quadratic the two estimates differ by the curvature along the way alone.
    curvature = np.mean(SCALES[:2])
    expected = (D - 1) * np.sum((curvature * away) ** 2) / K
    np.testing.assert_allclose(variance(1.0), expected, rtol=0.1)
    np.testing.assert_allclose(variance(0.1), variance(1.0) / 100, rtol=1e-6)
    np.testing.assert_array_equal(sample(snapshot), [state.full_gradient] * 4000)


@pytest.mark.usefixtures("x64")
def test_with_fresh_directions_the_variance_at_the_snapshot_is_that_of_two_estimates():
    snapshot = jnp.asarray(START)
    estimator = svrg(False, quadratic, difference=radazo.central)
    sample = sampler(estimator, state_at(estimator, snapshot))
    squares = np.sum((sample(snapshot) - slope_of(START)) ** 2, axis=1)
    expected = 2 * (D - 1) * np.sum(slope_of(START, 2) ** 2) / K
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(len(squares))
    far = sample(snapshot + 3).var(axis=0).sum()
    assert far > 1.5 * expected


@pytest.mark.gate
def test_over_directions_and_batches_the_mean_is_the_slope_of_the_whole():
    """Two steps: a snapshot, and an estimate at another place of a random batch."""
    estimator = svrg(True, quadratic, difference=radazo.central)
    x = jnp.asarray(START, jnp.float32)
    centers, scales = (jnp.asarray(z, jnp.float32) for z in (CENTERS, SCALES))

    def one(key):
        state, gradient = estimator.init(x), x
        for t, point in enumerate((x, x + 0.5)):
            chosen = jax.random.randint(jax.random.fold_in(key, t), (), 0, 10)
            center, scale = centers[chosen], scales[chosen]
            value_fn = lambda x, c=center, s=scale: s * jnp.sum((x - c) ** 2) / 2
            _, gradient, state, _ = radazo.estimate(
                estimator, jax.random.fold_in(key, 2 + t), value_fn, point, state
            )
        return gradient

    keys = jax.random.split(jax.random.key(0), 20_000)
    gradients = np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)
    error = gradients.std(axis=0) / np.sqrt(len(gradients))
    expected = slope_of(START + 0.5)
    np.testing.assert_array_less(np.abs(gradients.mean(axis=0) - expected), 4 * error)
    # The tolerance tells it from the slope at the snapshot.
    assert np.max(np.abs(expected - slope_of(START)) / error) > 10


def plain_estimate(key, value_fn, x):
    """The estimate at the parameters alone, by the same key."""
    estimator = radazo.sphere_estimator(num_directions=K, smoothing=SMOOTHING)
    key = jax.random.fold_in(key, 0)
    return radazo.estimate(estimator, key, value_fn, x, estimator.init(x))[1]


def test_a_full_estimate_that_fails_is_made_again_in_the_next_step():
    x = jnp.asarray(START, jnp.float32)

    @jax.jit
    def step(key, x, state, scale):
        estimator = svrg(True, lambda x: scale * whole(x))
        out = radazo.estimate(estimator, key, half_sum_of_squares, x, state)
        return out, plain_estimate(key, half_sum_of_squares, x)

    state = svrg(True).init(x)
    ages, values = [], []
    for t, scale in enumerate((jnp.nan, 1.0, 1.0, 1.0, jnp.inf, 1.0)):
        before = state
        key = jax.random.fold_in(jax.random.key(3), t)
        (_, gradient, state, info), plain = step(key, x, state, scale)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
        if t == 0:
            np.testing.assert_array_equal(gradient, plain)
        else:
            assert not np.allclose(gradient, plain)
        if t == 4:
            np.testing.assert_array_equal(state.snapshot, before.snapshot)
            np.testing.assert_array_equal(state.full_gradient, before.full_gradient)
        if t == 5:
            np.testing.assert_array_equal(state.snapshot, x)
        ages.append(int(state.age))
        values.append(int(info.num_values))
        x = x - jnp.float32(0.1) * gradient
    assert ages == [-1, 1, 2, 3, 4, 1]
    assert values == [9, 9, 6, 6, 9, 9]


def test_without_a_finite_value_at_the_snapshot_the_estimate_is_that_at_x():
    estimator = svrg(True)
    x = jnp.asarray(START, jnp.float32)
    state = estimator.init(x)._replace(
        age=jnp.int32(1), snapshot=x - 10, full_gradient=jnp.full(D, 100.0)
    )
    value_fn = lambda x: jnp.where(x[0] < -5, jnp.nan, half_sum_of_squares(x))
    key = jax.random.key(3)
    estimate = jax.jit(lambda x: radazo.estimate(estimator, key, value_fn, x, state))
    _, gradient, _, info = estimate(x)
    expected = jax.jit(lambda: plain_estimate(key, value_fn, x))()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert np.all(info.kept)
    _, gradient, _, info = estimate(x - 10)
    np.testing.assert_array_equal(gradient, np.zeros(D))
    assert not np.any(info.kept)


def counting(value_fn):
    calls = []

    def counted(params):
        value = value_fn(params)
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        on_the_host = lambda value: calls.append(1) or value
        return jax.pure_callback(on_the_host, shape, value, vmap_method="sequential")

    return counted, calls


def test_the_whole_objective_is_evaluated_when_it_is_due_and_not_before():
    counted, calls = counting(half_sum_of_squares)
    full, full_calls = counting(half_sum_of_squares)
    traces = []

    def traced(params):
        traces.append(1)
        return counted(params)

    estimator = svrg(False, full)
    x = jnp.ones(3)
    step = jax.jit(lambda key, s: radazo.estimate(estimator, key, traced, x, s))
    state, taken = estimator.init(x), 0
    for key in range(STEPS):
        _, _, state, info = jax.block_until_ready(step(key, state))
        taken += int(info.num_values)
    jax.effects_barrier()
    assert len(calls) == STEPS * 2 * (K + 1)
    assert len(full_calls) == 3 * (K + 1)
    assert taken == len(calls) + len(full_calls)
    assert len(traces) == 1


@pytest.mark.gate
def test_outside_of_jit_the_functions_are_called_when_they_are_needed():
    calls, full_calls = [], []
    estimator = radazo.svrg_estimator(
        radazo.rademacher_estimator(num_directions=1),
        lambda x: full_calls.append(1) or jnp.sum(x),
        num_inner_steps=2,
    )
    x = jnp.ones(2)
    state = estimator.init(x)
    for key in range(2):
        _, _, state, _ = radazo.estimate(
            estimator, key, lambda x: calls.append(1) or jnp.sum(x), x, state
        )
    assert (len(calls), len(full_calls)) == (2 * 4, 2)


def mixed():
    return {
        "half": jnp.array([1.0, -2.0], jnp.bfloat16),
        "single": (jnp.ones((2, 1)), None),
        "steps": jnp.array([4, 5], jnp.int32),
        "number": 2.0,
    }


def test_leaves_of_all_kinds_pass_and_the_state_is_two_copies_of_those_that_move():
    estimator = svrg(True, half_sum_of_squares)
    params = mixed()
    state = estimator.init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == 2 * (2 * 2 + 2 * 4) + 8
    step = jax.jit(
        lambda key, state: radazo.estimate(
            estimator, key, half_sum_of_squares, mixed(), state
        )
    )
    for key in range(2):
        _, gradient, after, _ = step(key, state)
        kinds = [jax.tree.map(lambda x: x.dtype, s) for s in (state, after)]
        assert kinds[0] == kinds[1]
        state = after
    assert gradient["half"].dtype == jnp.bfloat16
    assert np.array_equal(gradient["steps"], [0, 0])
    assert np.all(np.isfinite(np.asarray(gradient["half"], np.float32)))


def test_a_state_that_is_donated_takes_no_parameter_with_it():
    estimator = svrg(True)
    x = jnp.asarray(START, jnp.float32)
    step = jax.jit(
        lambda x, state: radazo.estimate(estimator, 0, half_sum_of_squares, x, state)[
            2
        ],
        donate_argnums=1,
    )
    state = estimator.init(x)
    for _ in range(2):
        state = step(x, state)
    np.testing.assert_array_equal(x, START.astype(np.float32))
    np.testing.assert_array_equal(state.snapshot, x)


@pytest.mark.gate
def test_the_memory_of_a_step_is_a_few_copies_of_the_parameters():
    dim = 100_000
    x = jnp.zeros(dim)
    estimator = radazo.svrg_estimator(
        radazo.sphere_estimator(), half_sum_of_squares, num_inner_steps=5
    )
    step = jax.jit(
        lambda key, x, state: radazo.estimate(
            estimator, key, half_sum_of_squares, x, state
        )
    )
    memory = step.lower(0, x, estimator.init(x)).compile().memory_analysis()
    # A copy for an estimate, and two of them held; a tenth for all that is small.
    assert memory.temp_size_in_bytes <= 3.1 * 4 * dim


def test_derivatives_are_not_evaluated_apart_from_the_step(tmp_path):
    """A journal keeps the readings of all three estimates, at known points."""
    estimator = svrg(False, half_sum_of_squares, difference=radazo.forward_mode)
    optimizer = radazo.with_estimator(estimator, optax.sgd(RATE), key=0)
    with raises(ValueError, "(difference", "known points"):
        radazo.minimize(
            half_sum_of_squares,
            jnp.asarray(START),
            optimizer,
            3,
            journal=tmp_path / "run",
        )
