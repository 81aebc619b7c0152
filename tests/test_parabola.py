"""`scale_by_parabola`: its rule in NumPy, and the best rate in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import raises

import radazo
from radazo import core

DIM, NUM_DIRECTIONS, NUM_STEPS = 12, 4, 60
rng = np.random.default_rng(0)
SCALES = 10.0 ** rng.uniform(-1, 1, DIM)


def wave(x):
    """A function that is not quadratic, and infinite behind a wall."""
    inside = jnp.sum(jnp.asarray(SCALES) * x**2) + jnp.sum(jnp.cos(3 * x))
    return jnp.where(x[0] < 0.2, jnp.inf, inside)


def transcribed(values_of, directions, x):
    """(x, rate, whether it went back) of each step, by the rule of the docstring."""
    mean_rate = mean_curvature = rate = last_value = squared_norm = 0.0
    num_steps, rows, step = 0, [], np.zeros_like(x)
    for u in directions:
        value, slopes = values_of(x, u)
        g = DIM * np.mean(slopes[:, None] * u, axis=0)
        if num_steps:
            rho = (last_value - value) / (rate * squared_norm)
        if num_steps and not rho >= -1:
            rate, x = rate / 4, x - 0.75 * step
            step = step / 4
            rows.append((x, rate, True))
            continue
        if num_steps == 0:
            eps = np.finfo(float).eps
            length = np.sqrt(eps) * max(np.linalg.norm(x), np.sqrt(DIM))
            rate = length / np.linalg.norm(g)
        else:
            sample = np.clip(2 * (1 - rho), 0.02, 8)
            mean_rate = 0.9 * mean_rate + 0.1 * rate
            mean_curvature = 0.9 * mean_curvature + 0.1 * sample
            growth = (10 if rho > 0.9 else 2) if num_steps <= 3 else 1.2
            growth = 2 if num_steps > 3 and rho > 0.9 else growth
            rate = np.clip(mean_rate / mean_curvature, rate / 2, rate * growth)
        last_value, squared_norm = value, DIM * np.mean(slopes**2)
        step, num_steps = -rate * g, num_steps + 1
        x = x + step
        rows.append((x, rate, False))
    return rows


def test_a_run_is_the_rule_transcribed(x64):
    rule = optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0))
    directions = rng.choice([-1.0, 1.0], (NUM_STEPS, NUM_DIRECTIONS, DIM))
    directions /= np.sqrt(DIM)
    start = rng.uniform(0.5, 2, DIM)

    def values_of(x, u):
        slopes = jnp.where(
            jnp.isfinite(wave(x)),
            jax.vmap(lambda u: jax.jvp(wave, (x,), (u,))[1])(u),
            0,
        )
        return wave(x), slopes

    @jax.jit
    def run(x):
        def step(carry, u):
            x, state = carry
            value, slopes = values_of(x, u)
            kept = jnp.ones(NUM_DIRECTIONS, bool)
            factor = jnp.asarray(float(DIM))
            info = core.EstimateInfo(slopes, kept, jnp.int32(5), None, factor)
            gradient = DIM * jnp.mean(slopes[:, None] * u, axis=0)
            updates, state = rule.update(
                gradient, state, x, value=value, estimate_info=info
            )
            x = optax.apply_updates(x, updates)
            return (x, state), (x, state[0].rate)

        return jax.lax.scan(step, (x, rule.init(x)), jnp.asarray(directions))[1]

    xs, rates = run(jnp.asarray(start))
    on_host = jax.jit(values_of)
    expected = transcribed(
        lambda x, u: [np.asarray(a) for a in on_host(x, u)], directions, start
    )
    assert rates[-1] > 100 * rates[0]
    np.testing.assert_allclose(rates, [rate for _, rate, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(xs, [x for x, _, _ in expected], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_directions", [2, 8])
def test_the_rate_is_the_best_one_on_a_sphere_in_closed_form(num_directions, x64):
    # With H = c · I and orthogonal directions, gᵀHg / ⟨∇f, g⟩ = c · d / K.
    dim, scale = 8, 3.0
    estimator = radazo.hadamard_estimator(num_directions=num_directions, smoothing=1e-9)
    rule = optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0))
    optimizer = radazo.with_estimator(estimator, rule, key=0)
    x = jnp.arange(1.0, 9.0)
    result = radazo.minimize(lambda x: scale / 2 * x @ x, x, optimizer, 26)
    rates = optax.tree.get(result.state, "rate")
    if num_directions < dim:
        best = num_directions / (scale * dim)
        np.testing.assert_allclose(rates, best, rtol=0.01)
    assert result.values[-1] < 1e-2 * result.values[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_it_keeps_types_and_leaves_and_skips_what_is_not_floating(dtype, of_users):
    params = {"x": jnp.full((3, 2), 2, dtype), "n": jnp.arange(2), "none": None}

    def value_fn(params):
        return jnp.sum(params["x"].astype(jnp.float32) ** 2)

    rule = optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0))
    optimizer = radazo.with_estimator(
        radazo.hadamard_estimator(smoothing=0.1), rule, key=0
    )
    result = radazo.minimize(value_fn, params, optimizer, 40)
    assert value_fn(result.params) < 0.02 * value_fn(params)
    assert result.params["x"].dtype == dtype
    np.testing.assert_array_equal(result.params["n"], params["n"])


def test_without_a_factor_the_rate_is_nan_and_nothing_moves():
    estimator = radazo.majority_vote_estimator(num_directions=3)
    rule = optax.chain(radazo.scale_by_parabola(), optax.scale(-1.0))
    optimizer = radazo.with_estimator(estimator, rule, key=0)
    result = radazo.minimize(lambda x: x @ x, jnp.ones(4), optimizer, 3)
    np.testing.assert_array_equal(result.params, jnp.ones(4))
    assert np.isnan(optax.tree.get(result.state, "rate"))


def test_without_an_estimator_it_says_what_it_needs():
    rule, x = radazo.scale_by_parabola(), jnp.ones(3)
    with raises(ValueError, "scale_by_parabola", "estimate_info", "with_estimator"):
        rule.update(x, rule.init(x), x)


def test_a_step_that_was_much_too_long_is_taken_back():
    rule, x = radazo.scale_by_parabola(), jnp.ones(4)
    gradient = jnp.arange(1.0, 5.0)
    info = core.EstimateInfo(
        jnp.ones(2), jnp.ones(2, bool), jnp.int32(3), None, jnp.float32(4)
    )

    @jax.jit
    def steps(state):
        first, before = rule.update(
            gradient, state, x, value=jnp.float32(1), estimate_info=info
        )
        second, after = rule.update(
            gradient, before, x - first, value=jnp.float32(9), estimate_info=info
        )
        return first, second, before.rate, after

    first, second, rate, after = steps(rule.init(x))
    np.testing.assert_allclose(second, -0.75 * first, rtol=1e-6)
    np.testing.assert_allclose(after.rate, rate / 4, rtol=1e-6)
    np.testing.assert_allclose(after.step, first / 4, rtol=1e-5)
    assert after.previous_value == 1
