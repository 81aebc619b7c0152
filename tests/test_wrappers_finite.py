"""Wrappers and links against NaN and outliers do within the combinator what they say.

An estimate of radazo is finite whatever the values are: a step without a finite value
is skipped before the rule sees it. The wrappers of optax guard rules against estimators
of one's own, and a large gradient is theirs to clip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import estimator_of, half_sum_of_squares
from test_wrappers import ESTIMATOR, ROWS, SEED, start

import radazo

# Steps without a finite value, and in what way.
BAD = {3: np.nan, 4: np.inf, 9: -np.inf, 11: np.nan}
FACTORS = np.array([BAD.get(i, 1.0) for i in range(16)], np.float32)
GUARDED = {
    "zero_nans": optax.chain(optax.zero_nans(), optax.adam(0.1)),
    "clip": optax.chain(optax.clip(0.5), optax.adam(0.1)),
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "adaptive_grad_clip": optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
    "skip_large_updates": optax.MultiSteps(
        optax.sgd(0.1),
        2,
        should_skip_update_fn=functools.partial(
            optax.skip_large_updates, max_squared_norm=1e4
        ),
    ),
} | {
    name: ROWS[name].rule
    for name in (
        "MultiSteps",
        "skip_not_finite",
        "apply_if_finite",
        "mechanize",
        "reduce_on_plateau",
    )
}


def value_fn(params, factor):
    return factor * half_sum_of_squares(params)


def around(rule, params, factors=FACTORS):
    """(parameters, state) after each step of the combinator, some of them bad."""
    optimizer = radazo.with_estimator(ESTIMATOR, rule, SEED)

    def step(carry, factor):
        params, state = carry
        updates, state = optimizer.update(
            None, state, params, value_fn=value_fn, factor=factor
        )
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    return jax.lax.scan(step, (params, optimizer.init(params)), factors)[1]


def without_the_bad(rule, params, takes_value):
    """The same in a loop by hand that leaves the bad steps out."""
    estimate = radazo.value_and_grad(value_fn, ESTIMATOR)

    def step(carry, count):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(SEED), count)
        value, gradient = estimate(key, params, factor=1.0)
        extra = {"value": value} if takes_value else {}
        updates, state = rule.update(gradient, state, params, **extra)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    counts = np.flatnonzero(np.isfinite(FACTORS))
    return jax.lax.scan(step, (params, rule.init(params)), counts)[1]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", GUARDED)
def test_a_step_without_a_finite_value_is_for_the_rule_no_step(name):
    rule = GUARDED[name]

    @jax.jit
    def both(params):
        return around(rule, params), without_the_bad(
            rule, params, name == "reduce_on_plateau"
        )

    with jax.numpy_dtype_promotion("standard"):
        (params, state), (expected, inner) = both(start())
    good = np.isfinite(FACTORS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[good], y, rtol=2e-3, atol=2e-3),
        (params, state.optimizer),
        (expected, inner),
    )
    for bad in BAD:
        jax.tree.map(
            lambda x, bad=bad: np.testing.assert_array_equal(x[bad], x[bad - 1]),
            (params, state.optimizer),
        )
    assert state.num_skipped[-1] == len(BAD)
    assert not np.array_equal(params["w"][-1], params["w"][0])


def of_ones_own(bad):
    """An estimator that knows of no NaN: a derivative, NaN in the `bad` steps."""

    def estimate(value_fn, params, state):
        value, gradient = jax.value_and_grad(value_fn)(params)
        factor = jnp.where(jnp.isin(state, jnp.asarray(bad)), jnp.nan, 1.0)
        gradient = jax.tree.map(lambda g: factor * g, gradient)
        ones = jnp.ones(1)
        info = radazo.estimators.EstimateInfo(ones, ones > 0, jnp.int32(1))
        return value, gradient, state + 1, info

    return estimator_of(lambda params: jnp.zeros((), jnp.int32), estimate)


def run_of_ones_own(rule, bad, num_steps=12):
    optimizer = radazo.with_estimator(of_ones_own(bad), rule, SEED)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(
                None, state, params, value_fn=half_sum_of_squares
            )
            carry = optax.apply_updates(params, updates), state
            return carry, carry

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=num_steps)[1]

    with jax.numpy_dtype_promotion("standard"):
        params, state = run(start())
    return np.asarray(params["w"]), state.optimizer


def test_apply_if_finite_guards_a_rule_from_an_estimator_of_ones_own():
    params, state = run_of_ones_own(optax.apply_if_finite(optax.adam(0.1), 3), [4, 5])
    np.testing.assert_array_equal(params[5], params[3])
    assert np.all(np.isfinite(params))
    assert np.all(np.any(np.diff(params[5:], axis=0), axis=(1, 2)))
    assert state.total_notfinite[-1] == 2
    assert state.notfinite_count.tolist() == [0] * 4 + [1, 2] + [0] * 6
    assert state.inner_state[0].count[-1] == 12 - 2


def test_apply_if_finite_gives_up_after_as_many_as_it_was_told():
    rule = optax.apply_if_finite(optax.sgd(0.1), 2)
    params, state = run_of_ones_own(rule, [4, 5, 6])
    np.testing.assert_array_equal(params[5], params[3])
    assert np.all(np.isnan(params[6]))
    assert state.notfinite_count[6] == 3


def test_zero_nans_guards_a_rule_and_tells():
    rule = optax.chain(optax.zero_nans(), optax.sgd(0.1))
    params, state = run_of_ones_own(rule, [4])
    np.testing.assert_array_equal(params[4], params[3])
    assert np.all(np.isfinite(params))
    assert np.flatnonzero(state[0].found_nan["w"]).tolist() == [4]


def test_skip_not_finite_leaves_an_estimate_out_of_the_mean_and_tells():
    rule = optax.MultiSteps(
        optax.sgd(0.1), 2, should_skip_update_fn=optax.skip_not_finite
    )
    params, state = run_of_ones_own(rule, [4])
    assert np.all(np.isfinite(params))
    assert state.gradient_step[-1] == (12 - 1) // 2
    skipped = np.flatnonzero(state.skip_state["should_skip"])
    assert skipped.tolist() == [4]


def test_without_a_guard_the_nan_of_an_estimator_of_ones_own_stays():
    params, _ = run_of_ones_own(optax.sgd(0.1), [4])
    assert np.all(np.isnan(params[4:]))


def test_the_wrappers_see_no_nan_of_an_estimator_of_radazo():
    rule = optax.chain(
        optax.zero_nans(), optax.apply_if_finite(optax.identity(), 1), optax.sgd(0.1)
    )
    with jax.numpy_dtype_promotion("standard"):
        _, state = jax.jit(functools.partial(around, rule))(start())
    assert not np.any(state.optimizer[0].found_nan["w"])
    assert state.optimizer[1].total_notfinite[-1] == 0
    assert state.num_skipped[-1] == len(BAD)
    assert state.num_dropped[-1] == len(BAD) * 16


def test_skip_large_updates_leaves_an_absurd_estimate_out_and_tells():
    factors = jnp.ones(12).at[5].set(1e6)
    rule = GUARDED["skip_large_updates"]
    with jax.numpy_dtype_promotion("standard"):
        params, state = jax.jit(functools.partial(around, rule))(start(), factors)
    skipped = state.optimizer.skip_state["should_skip"]
    assert np.flatnonzero(skipped).tolist() == [5]
    assert state.optimizer.gradient_step[-1] == (12 - 1) // 2
    assert np.all(np.abs(params["w"]) < 5)


CLIPPED = {
    "clip": (optax.clip(0.5), lambda g: optax.tree.norm(g, ord=np.inf), 0.5),
    "clip_by_global_norm": (optax.clip_by_global_norm(2.0), optax.tree.norm, 2.0),
    "clip_by_block_rms": (
        optax.clip_by_block_rms(0.3),
        lambda g: jnp.sqrt(jnp.mean(g["w"] ** 2)),
        0.3,
    ),
    "normalize": (optax.contrib.normalize(), optax.tree.norm, 1.0),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_link_that_clips_bounds_the_step_of_an_absurd_value(name):
    link, norm, bound = CLIPPED[name]
    optimizer = radazo.with_estimator(ESTIMATOR, link, SEED)

    @jax.jit
    def update(factor):
        updates, _ = optimizer.update(
            None, optimizer.init(start()), start(), value_fn=value_fn, factor=factor
        )
        return norm(updates)

    np.testing.assert_allclose(update(jnp.float32(1e6)), bound, rtol=1e-4)
    if name != "normalize":
        assert update(jnp.float32(1e-3)) < bound / 10
