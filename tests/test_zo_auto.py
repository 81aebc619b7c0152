"""`zo_auto` finds the regime of the values, counts them, and comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import radazo

EXACT, BATCHES, NOISY = range(3)
DIM, NUM_DIRECTIONS = 8, 4


def optimizer():
    return radazo.zo_auto(key=0, num_directions=NUM_DIRECTIONS)


def sphere(x):
    return 1.5 * jnp.sum(x**2)


def counted(value_fn, *, has_noise=False):
    """`value_fn` that adds each call to a list, and normal noise to its value."""
    calls, rng = [], np.random.default_rng(0)

    def called(_):
        calls.append(None)
        return np.float32(0.1 * rng.normal() if has_noise else 0)

    def counting(x, *batch):
        value = value_fn(x, *batch)
        kind = jax.ShapeDtypeStruct((), jnp.float32)
        return value + jax.experimental.io_callback(called, kind, value)

    return counting, calls


@pytest.mark.parametrize("regime", [EXACT, BATCHES, NOISY])
def test_it_finds_the_regime_and_counts_each_value(regime):
    def of_batch(x, offset):
        return sphere(x - 0.1 * offset)

    options = {}
    if regime == BATCHES:
        options["batches"] = lambda i: jax.random.normal(jax.random.key(i), (DIM,))
    value_fn, calls = counted(
        of_batch if regime == BATCHES else sphere, has_noise=regime == NOISY
    )
    start = jnp.linspace(1, 2, DIM)
    result = radazo.minimize(value_fn, start, optimizer(), 120, **options)
    jax.effects_barrier()
    assert int(result.state.estimator.regime) == regime
    assert len(calls) == result.num_values[-1]
    assert sphere(result.params) < 0.1 * sphere(start)


def test_smoothing_balances_rounding_and_curvature():
    def value_fn(x):
        return jnp.sum(jnp.logspace(0, 2, DIM) * x**2)

    result = radazo.minimize(value_fn, jnp.linspace(1, 2, DIM), optimizer(), 30)
    state = result.state.estimator
    error = jnp.finfo(jnp.float32).eps * result.values[-1] / state.unit
    expected = 2 * np.sqrt(error * state.rate * DIM / NUM_DIRECTIONS)
    np.testing.assert_allclose(state.smoothing, expected, rtol=1e-5)


def test_the_rate_with_batches_is_at_the_minimum_of_the_parabola(x64):
    # With H = 3 I and orthogonal directions: ⟨∇f, g⟩ / gᵀHg = K / 3d.
    def value_fn(x, offset):
        return sphere(x) + offset

    options = {"batches": lambda i: jnp.sin(i.astype(float))}
    start = jnp.linspace(1, 2, DIM)
    result = radazo.minimize(value_fn, start, optimizer(), 110, **options)
    state = result.state.estimator
    assert int(state.regime) == BATCHES
    best = NUM_DIRECTIONS / (3 * DIM)
    np.testing.assert_allclose(state.rate / state.unit, best, rtol=0.01)


def test_a_local_minimum_is_left_for_a_lower_one():
    def rastrigin(x):
        return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))

    start = jnp.full(DIM, 1.99, jnp.float32)  # The local minimum is at 1.9899.
    result = radazo.minimize(rastrigin, start, optimizer(), 1500)
    assert int(result.state.estimator.search.num_searches) > 0
    assert result.best_value < 0.75 * rastrigin(start)
    np.testing.assert_allclose(
        rastrigin(result.best_params), result.best_value, rtol=1e-5
    )


@pytest.mark.parametrize("beyond", [jnp.inf, -jnp.inf, jnp.nan])
def test_it_comes_back_from_where_the_function_is_not_finite(beyond):
    def value_fn(x):
        return jnp.where(x[0] < 0.5, beyond, sphere(x))

    start = jnp.linspace(1, 2, DIM)
    result = radazo.minimize(value_fn, start, optimizer(), 150)
    lost = ~np.isfinite(result.values)
    assert lost.any()
    assert not lost[-20:].all()
    assert np.all(np.isfinite(result.params))
    assert result.best_value < 0.9 * sphere(start)
