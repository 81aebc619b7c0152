"""Guards against outliers: the bound, what a step leaves, and what they are worth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo

GUARDS = [radazo.skip_outliers, radazo.clip_outliers]
# In one dimension the slope of scale · x is the scale, along either direction.
LINE = radazo.rademacher_estimator(num_directions=2, smoothing=0.5)
NAN = math.nan


def scaled(x, scale):
    return scale * x


@pytest.fixture(params=GUARDS, ids=[guard.__name__ for guard in GUARDS])
def guard(request):
    return request.param


def seen_along(estimator, scales):
    """What each step gives, slope after slope: (gradient, state, info) stacked."""

    @jax.jit
    def run(scales):
        def step(state, scale):
            _, gradient, state, info = radazo.estimate(
                estimator, 0, lambda x: scale * x, jnp.zeros(()), state
            )
            return state, (gradient, state, info)

        return jax.lax.scan(step, estimator.init(jnp.zeros(())), scales)[1]

    return run(jnp.asarray(scales, jnp.float32))


def by_hand(scales, quantile, window, factor):
    """Which steps stand out, and the bounds, by the equations of the docstring."""
    recent, outliers, bounds = [], [], []
    for scale in np.abs(np.float32(scales)):
        bound = np.inf
        if len(recent) >= min(5, window):
            place = max(math.ceil(quantile * len(recent)), 1)
            bound = factor * sorted(recent)[place - 1]
        outliers.append(bool(scale > bound))
        bounds.append(bound)
        if scale > 0:  # Neither zero nor NaN.
            recent = [scale, *recent][:window]
    return np.array(outliers), np.array(bounds)


SETTINGS = [(0.5, 50, 10.0), (0.75, 8, 2.0), (1.0, 3, 1.5), (0.0, 6, 4.0), (0.3, 1, 2)]


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("setting", SETTINGS)
def test_outliers_are_those_of_the_equations(guard, setting):
    quantile, window, factor = setting
    rng = np.random.default_rng(0)
    scales = rng.standard_t(1.0, size=150).astype(np.float32)
    scales[::7], scales[5::31] = 0, NAN
    estimator = guard(LINE, quantile=quantile, window=window, factor=factor)
    gradients, states, info = seen_along(estimator, scales)
    outliers, bounds = by_hand(scales, *setting)
    assert 3 < np.sum(outliers) < 100
    np.testing.assert_array_equal(states.num_outliers, np.cumsum(outliers))
    np.testing.assert_array_equal(states.count, np.arange(1, 151))
    finite = np.isfinite(scales)
    inside = np.where(finite, scales, 0)
    if guard is radazo.skip_outliers:
        expected = np.where(outliers, 0, inside)
        kept = finite & ~outliers
    else:
        limits = np.where(outliers, bounds, np.inf)
        expected, kept = np.clip(inside, -limits, limits), finite
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_array_equal(info.kept, np.stack([kept, kept], 1))


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_a_change_of_scale_is_skipped_for_as_long_as_is_said_and_then_taken(quantile):
    window = 20
    estimator = radazo.skip_outliers(LINE, quantile=quantile, window=window)
    _, states, info = seen_along(estimator, [1.0] * 30 + [1e4] * 30)
    skipped = window - math.ceil(quantile * window) + 1
    assert states.num_outliers[-1] == skipped
    assert not np.any(info.kept[30 : 30 + skipped])
    assert np.all(info.kept[30 + skipped :])


@pytest.mark.parametrize(("share", "holds"), [(0.4, True), (0.6, False)])
def test_it_holds_while_outliers_are_fewer_than_one_minus_the_quantile(share, holds):
    """Past that share they are what is usual: this guard says so and sees nothing."""
    absurd = np.random.default_rng(1).permutation(np.arange(400) < 400 * share)
    absurd[:10] = False
    scales = np.where(absurd, 1e4, 1.0)
    *_, info = seen_along(radazo.skip_outliers(LINE, window=100), scales)
    skipped = ~np.asarray(info.kept[:, 0])
    late = slice(200, None)
    assert np.array_equal(skipped[late], absurd[late]) == holds
    assert np.all(absurd[skipped])


def test_the_first_steps_are_not_judged_and_a_plateau_says_nothing_of_scale(guard):
    _, states, _ = seen_along(guard(LINE), [1.0, 1e6, 1.0, 1e6] + [0.0] * 60 + [1.0])
    assert states.num_outliers[-1] == 0
    np.testing.assert_allclose(states.recent[-1][:5], [1, 1e6, 1, 1e6, 1], rtol=1e-6)
    assert not np.any(states.recent[-1][5:])


def test_one_slope_of_many_is_enough(guard):
    """And all slopes of the step go the same way: their mean is the gradient."""
    estimator = guard(radazo.coordinate_estimator(num_directions=8), factor=3.0)
    params = jnp.zeros(4)

    @jax.jit
    def step(state, slope):
        return radazo.estimate(estimator, 1, lambda x: slope @ x, params, state)[1:]

    state = estimator.init(params)
    for _ in range(6):
        first, state, _ = step(state, jnp.ones(4))
    assert state.num_outliers == 0
    slope = jnp.array([1.0, 1.0, 1.0, 12.0])
    gradient, state, info = step(state, slope)
    assert state.num_outliers == 1
    if guard is radazo.skip_outliers:
        assert not np.any(gradient)
        assert not np.any(info.slopes)
        assert not np.any(info.kept)
        return
    share = 3.0 / 12.0
    np.testing.assert_allclose(gradient, share * first * slope, rtol=1e-2)
    assert np.all(info.kept)
    found = np.sort(np.abs(info.slopes))
    np.testing.assert_allclose(found[[0, -1]], [share, 3.0], rtol=1e-2)


# What a skipped step leaves.

ABSURD = jnp.array([1.0] * 8 + [1e5] + [1.0] * 3)


def run_of(optimizer, params, scales=ABSURD):
    """(updates, state) of each step of scale · half the sum of squares."""

    @jax.jit
    def run(params):
        def step(carry, scale):
            params, state = carry
            updates, state = optimizer.update(
                None,
                state,
                params,
                value_fn=lambda x, scale: scale * half_sum_of_squares(x),
                scale=scale,
            )
            params = optax.apply_updates(params, updates)
            return (params, state), (updates, params, state)

        return jax.lax.scan(step, (params, optimizer.init(params)), scales)[1]

    return run(params)


def at(tree, i):
    return jax.tree.map(lambda x: np.asarray(x)[i], tree)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def start():
    return {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.asarray(0.5)}


MEMORIES = {
    "a mean of past estimates": radazo.history_mean_estimator,
    "values of past steps": radazo.history_reuse_estimator,
    "a prior": radazo.prior_guided_estimator,
    "none": radazo.sphere_estimator,
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", MEMORIES)
def test_a_skipped_step_leaves_parameters_rule_and_estimator_as_they_were(name):
    estimator = radazo.skip_outliers(MEMORIES[name](num_directions=4))
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale(-0.01))
    optimizer = radazo.with_estimator(estimator, rule, key=0)
    updates, params, states = run_of(optimizer, start())
    before, after = at(states, 7), at(states, 8)
    assert_equal(at(updates, 8), jax.tree.map(np.zeros_like, at(updates, 8)))
    assert_equal(at(params, 8), at(params, 7))
    assert_equal(after.optimizer, before.optimizer)
    assert_equal(after.estimator.inner_state, before.estimator.inner_state)
    assert after.count == after.estimator.count == 9
    assert (before.num_skipped, after.num_skipped) == (0, 1)
    assert after.num_dropped == 4
    assert after.num_values > before.num_values
    assert np.any(at(updates, 9)["a"])
    assert at(states, 11).num_skipped == at(states, 11).estimator.num_outliers == 1


def test_behind_the_link_a_skipped_step_is_a_gradient_of_zero():
    estimator = radazo.skip_outliers(radazo.sphere_estimator(num_directions=3))
    optimizer = radazo.estimate_gradient(estimator, key=0)
    updates, _, states = run_of(
        optax.chain(optimizer, optax.scale(-0.01)), start()["a"]
    )
    assert not np.any(updates[8])
    assert np.all(np.any(np.delete(updates, 8, 0), axis=1))
    assert optax.tree.get(states, "num_outliers")[-1] == 1


def test_a_run_in_which_nothing_stands_out_is_the_run_without_a_guard(guard):
    def reached(wrap):
        estimator = wrap(radazo.sphere_estimator(num_directions=10))
        optimizer = radazo.radazo(0.01, estimator, key=0)
        return run_of(optimizer, start()["a"], jnp.ones(200))

    (_, bare, _), (_, guarded, states) = reached(lambda x: x), reached(guard)
    np.testing.assert_array_equal(guarded, bare)
    assert optax.tree.get(states, "num_outliers")[-1] == 0


def test_a_guard_goes_around_a_guard_and_passes_what_it_was_given():
    estimator = radazo.clip_outliers(radazo.skip_outliers(LINE), factor=2.0)
    _, states, info = seen_along(estimator, [1.0] * 10 + [5.0, 1e4, 1.0])
    assert states.num_outliers[-1] == 1
    assert states.inner_state.num_outliers[-1] == 1
    np.testing.assert_allclose(np.abs(info.slopes[10:, 0]), [2, 0, 1], rtol=1e-5)
    value, _, _, info = radazo.estimate(
        LINE,
        0,
        lambda x: (3 * x, "aux"),
        jnp.ones(()),
        LINE.init(jnp.ones(())),
        has_aux=True,
    )
    outer = radazo.skip_outliers(LINE)
    mine, _, _, guarded = radazo.estimate(
        outer,
        0,
        lambda x: (3 * x, "aux"),
        jnp.ones(()),
        outer.init(jnp.ones(())),
        has_aux=True,
    )
    assert (mine, guarded.aux, guarded.num_values) == (value, "aux", info.num_values)


# What it is worth.

NUM_STEPS = 400


@functools.cache
def ends(rule, guard_name):
    """Where six runs end if one batch in fifty is absurd: values, and steps counted."""
    learning_rate = {"zo_sgd": 0.03, "radazo": 0.01, "zo_signsgd": 0.01}[rule]
    estimator = radazo.sphere_estimator(num_directions=10, smoothing=0.01)
    if guard_name != "bare":
        estimator = getattr(radazo, guard_name)(estimator)
    optimizer = getattr(radazo, rule)(learning_rate, estimator, key=0)

    def value_fn(x, step):
        absurd = jax.random.bernoulli(
            jax.random.fold_in(jax.random.key(1), step), 0.02
        ) & (step >= 20)
        return half_sum_of_squares(x) * jnp.where(absurd, 1e5, 1.0)

    @jax.jit
    @jax.vmap
    def run(seed):
        state = optimizer.init(jnp.ones(20))
        state = state._replace(key_data=jnp.stack([jnp.uint32(7), seed]))

        def step(carry, i):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=value_fn, step=i)
            return (x + updates, state), None

        carry = jnp.ones(20), state
        (x, state), _ = jax.lax.scan(step, carry, jnp.arange(NUM_STEPS))
        return half_sum_of_squares(x), state.num_skipped

    values, skipped = run(jnp.arange(6, dtype=jnp.uint32))
    return np.asarray(values), np.asarray(skipped)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["skip_outliers", "clip_outliers"])
@pytest.mark.parametrize("rule", ["zo_sgd", "radazo"])
def test_with_a_guard_runs_survive_absurd_batches_that_others_do_not(rule, name):
    """Behind `radazo` the bare run is only held up, behind `zo_sgd` it is lost."""
    bare, _ = ends(rule, "bare")
    guarded, skipped = ends(rule, name)
    assert np.all(guarded < 0.05)  # From 10 at the start.
    if rule == "zo_sgd":
        assert not np.any(bare < 1e6)
    else:
        assert np.median(bare) > 10 * np.median(guarded)
        assert np.all(bare < 10)
    assert np.all(skipped == skipped[0])
    assert (skipped[0] > 0) == (name == "skip_outliers")


@pytest.mark.gate
def test_a_guard_is_worth_nothing_to_steps_of_one_length():
    (bare, _), (guarded, skipped) = (
        ends("zo_signsgd", name) for name in ("bare", "skip_outliers")
    )
    assert skipped[0] > 0
    np.testing.assert_allclose(np.mean(guarded), np.mean(bare), rtol=0.5)


def test_counts_are_read_from_the_result_of_a_run_in_one_line():
    optimizer = radazo.zo_sgd(0.1, radazo.skip_outliers(LINE), key=0)
    result = radazo.minimize(
        scaled, jnp.zeros(()), optimizer, 12, batches=lambda step: ABSURD[step]
    )
    assert optax.tree.get(result.state, "num_outliers") == 1
    assert optax.tree.get(result.state, "num_skipped") == 1
    goes_on = radazo.minimize(
        scaled, result.params, optimizer, 4, state=result.state, batches=lambda i: 1.0
    )
    assert optax.tree.get(goes_on.state, "num_outliers") == 1
