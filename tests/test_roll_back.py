"""Going back: when, to what, how exactly, and what it is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo

SPHERE = radazo.sphere_estimator(num_directions=3)


def start():
    return {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.asarray(1.5)}


def run_of(optimizer, params, batches, value_fn=half_sum_of_squares):
    """(parameters before, state after) of each step."""

    @jax.jit
    def run(params, batches):
        def step(carry, batch):
            params, state = carry
            updates, state = optimizer.update(
                None, state, params, value_fn=value_fn, batch=batch
            )
            after = optax.apply_updates(params, updates)
            return (after, state), (params, state)

        carry = params, optimizer.init(params)
        end, seen = jax.lax.scan(step, carry, batches)
        return end, seen

    return run(params, jnp.asarray(batches))


def key_data(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return x


def at(tree, i):
    return jax.tree.map(lambda x: np.asarray(key_data(x))[i], tree)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


# When it goes back.


def by_hand(values, every, patience, window, factor):
    """After each step how often it has gone back and how old the copy is, by the
    equations of the docstring."""
    recent, age, in_a_row, counts, ages = [], None, 0, [0], []
    for value in values:
        risen = False
        if len(recent) >= min(10, window):
            middle = (len(recent) - 1) // 2
            median = sorted(recent)[middle]
            spread = sorted(abs(x - median) for x in recent)[middle]
            risen = spread > 0 and value > median + factor * spread
        good = bool(np.isfinite(value)) and not risen
        if age is None or (good and age >= every):
            age = 0
        age += 1
        in_a_row = 0 if good else in_a_row + 1
        counts.append(counts[-1] + (in_a_row == patience))
        if in_a_row == patience:
            in_a_row = age = 0
        recent = [value, *recent][:window] if good else recent
        ages.append(age)
    return counts[1:], ages


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "setting", [(20, 3, 50, 20.0), (4, 1, 50, 6.0), (7, 2, 5, 3.0), (1, 1, 2, 1.0)]
)
def test_it_goes_back_when_the_equations_say_so(setting):
    every, patience, window, factor = setting
    rng = np.random.default_rng(3)
    values = rng.normal(size=200).astype(np.float32)
    values[60:64] = 100
    values[rng.integers(0, 200, 25)] = 40
    values[[30, 31, 32, 110, 160]] = np.nan, np.inf, np.nan, np.nan, -np.inf
    counts, ages = by_hand(values, *setting)
    optimizer = radazo.roll_back(
        radazo.zo_sgd(1e-3, SPHERE, key=0),
        every=every,
        patience=patience,
        window=window,
        factor=factor,
    )
    # Slopes of zero: the value is the one given.
    value_fn = lambda x, batch: batch + 0 * jnp.sum(x["a"])
    _, (_, states) = run_of(optimizer, start(), values, value_fn)
    assert 1 < counts[-1] < 120
    np.testing.assert_array_equal(states.num_rolled_back, counts)
    np.testing.assert_array_equal(states.age, ages)


def test_values_that_are_all_equal_tell_nothing_of_a_spread():
    values = np.r_[np.ones(40), 7 * np.ones(10)]
    value_fn = lambda x, batch: batch + 0 * jnp.sum(x["a"])
    optimizer = radazo.roll_back(radazo.zo_sgd(1e-3, SPHERE, key=0))
    _, (_, states) = run_of(optimizer, start(), values, value_fn)
    assert states.num_rolled_back[-1] == 0


# To what it goes back.

# What is absurd at step 25 throws the parameters off, and the values rise.
BATCHES = np.where(np.arange(60) == 25, 1e4, 1.0).astype(np.float32)


def scaled(x, batch):
    return batch * half_sum_of_squares(x)


RULES = {
    "zo_sgd": lambda estimator: radazo.zo_sgd(0.05, estimator, key=0),
    "radazo": lambda estimator: radazo.radazo(0.05, estimator, key=0),
    "zo_sgd with momentum": lambda estimator: radazo.zo_sgd(
        0.01, estimator, key=0, momentum=0.9
    ),
    "several steps": lambda estimator: radazo.with_estimator(
        estimator, optax.MultiSteps(optax.sgd(0.05), 2), key=0
    ),
    "noise from a typed key": lambda estimator: radazo.with_estimator(
        estimator,
        optax.chain(optax.sgd(0.02), optax.add_noise(1e-3, 0.5, jax.random.key(1))),
        key=0,
    ),
}
ESTIMATORS = {
    "none": SPHERE,
    "past": radazo.history_mean_estimator(num_directions=3, num_past=2),
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("rule", "memory"), [("zo_sgd", "past"), *((rule, "none") for rule in RULES)]
)
def test_parameters_and_memories_go_back_together_and_counters_go_on(rule, memory):
    optimizer = radazo.roll_back(RULES[rule](ESTIMATORS[memory]), every=6, patience=2)
    with jax.numpy_dtype_promotion("standard"):
        end, (params, states) = run_of(optimizer, start(), BATCHES, scaled)
    backs = np.diff(np.asarray(states.num_rolled_back), prepend=0)
    i = int(np.flatnonzero(backs)[0])
    assert 25 < i < 32
    copy = 24  # 0, 6, 12, 18 and 24.
    assert np.flatnonzero(states.age[:i] == 1).tolist() == [0, 6, 12, 18, 24]
    assert_equal(at(states.kept_params, i), at(params, copy))
    then, now = at(states.inner_state, copy - 1), at(states.inner_state, i)
    assert_equal(now.estimator, then.estimator)
    assert_equal(now.optimizer, then.optimizer)
    assert now.count == i + 1
    assert now.num_values == (i + 1) * 4
    np.testing.assert_array_equal(now.key_data, then.key_data)
    assert_near_kept(at(params, i + 1), at(params, i), at(params, copy))
    # The way from there is another.
    assert not np.array_equal(at(params, i + 2)["a"], at(params, copy + 1)["a"])
    assert half_sum_of_squares(end[0]) < 4 * half_sum_of_squares(at(params, copy))


def assert_near_kept(reached, left, kept):
    def near(reached, left, kept):
        largest = np.maximum(np.abs(left), np.abs(kept))
        bound = 2 * float(jnp.finfo(kept.dtype).eps) * largest.astype(np.float64)
        off = np.abs(reached.astype(np.float64) - kept.astype(np.float64))
        assert np.all(off <= bound)

    jax.tree.map(near, reached, left, kept)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_way_back_is_exact_within_a_factor_of_two_and_else_a_rounding_off(dtype):
    rng = np.random.default_rng(0)
    kept = rng.normal(size=3000)
    near = kept * rng.uniform(0.51, 1.99, size=3000)
    far = kept * rng.choice([-1, 1], size=3000) * 10.0 ** rng.uniform(-4, 3, size=3000)
    kept, near, far = (jnp.asarray(x, dtype) for x in (kept, near, far))
    optimizer = radazo.roll_back(radazo.zo_sgd(0.0, SPHERE, key=0), patience=1)

    @jax.jit
    def reached(left):
        _, state = optimizer.update(
            None, optimizer.init(kept), kept, value_fn=half_sum_of_squares
        )
        updates, state = optimizer.update(
            None, state, left, value_fn=lambda x: jnp.nan * jnp.sum(x)
        )
        return updates, state.num_rolled_back

    for left in (near, far):
        updates, num_rolled_back = reached(left)
        assert updates.dtype == dtype
        assert num_rolled_back == 1
        found = optax.apply_updates(left, updates)
        assert_near_kept(np.asarray(found), np.asarray(left), np.asarray(kept))
        if left is near:
            np.testing.assert_array_equal(found, kept)
        else:
            assert not np.array_equal(found, kept)


def test_a_step_that_would_overflow_is_not_taken():
    optimizer = radazo.roll_back(radazo.zo_sgd(1e38, SPHERE, key=0))
    value_fn = lambda x, batch: batch * half_sum_of_squares(x)
    batches = np.where(np.arange(8) == 5, 1.0, 0.0).astype(np.float32)
    large = jax.tree.map(lambda x: 100 * x, start())
    (params, state), _ = run_of(optimizer, large, batches, value_fn)
    assert state.num_rolled_back == 1
    assert_equal(params, large)
    bare = radazo.zo_sgd(1e38, SPHERE, key=0)
    (params, _), _ = run_of(bare, large, batches, value_fn)
    assert not np.all(np.isfinite(params["a"]))


def test_leaves_that_are_not_floating_point_are_neither_kept_nor_moved():
    params = {"x": jnp.ones(2), "n": jnp.arange(3), "none": None, "python": 2.5}
    rule = optax.stateless_with_tree_map(lambda g, _: jnp.negative(g))
    optimizer = radazo.roll_back(radazo.with_estimator(SPHERE, rule, 0), patience=1)
    state = optimizer.init(params)
    assert state.kept_params["n"] is None

    @jax.jit
    def step(state, x, n, scale):
        return optimizer.update(
            None,
            state,
            params | {"x": x, "n": n},
            value_fn=lambda p: scale * half_sum_of_squares(p),
        )

    for scale in (1.0, jnp.nan):
        updates, state = step(state, params["x"], params["n"], scale)
        assert not np.any(updates["n"])
        assert updates["n"].dtype == jnp.int32
    np.testing.assert_array_equal(updates["x"], np.zeros(2))
    assert state.num_rolled_back == 1


# What it costs, and what sees it.


@pytest.mark.parametrize(
    ("rule", "copies"), [("zo_sgd", 1), ("zo_sgd with momentum", 1 + 2), ("radazo", 5)]
)
def test_it_holds_a_copy_of_the_parameters_and_of_the_optimizers_state(rule, copies):
    params = jnp.ones(2000)
    state = radazo.roll_back(RULES[rule](SPHERE)).init(params)
    total = sum(x.nbytes for x in jax.tree.leaves(state)) / params.nbytes
    assert copies <= total < copies + 0.1


def test_a_run_in_which_nothing_goes_wrong_is_the_run_without_it():
    bare = radazo.radazo(0.02, SPHERE, key=0)
    batches = np.ones(150, np.float32)
    (params, state), _ = run_of(bare, start(), batches, scaled)
    (mine, guarded), _ = run_of(radazo.roll_back(bare), start(), batches, scaled)
    assert guarded.num_rolled_back == 0
    assert half_sum_of_squares(params) < 1e-3
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6),
        (mine, guarded.inner_state),
        (params, state),
    )


def test_names_in_the_state_are_found_once():
    inner = radazo.radazo(0.1, radazo.skip_outliers(SPHERE), key=0)
    state = radazo.roll_back(inner).init(start())
    for name in ("num_rolled_back", "num_outliers", "num_values", "mu", "nu"):
        assert optax.tree.get(state, name) is not None
    injected = optax.inject_hyperparams(
        lambda learning_rate: radazo.roll_back(
            radazo.radazo(learning_rate, SPHERE, key=0)
        )
    )(learning_rate=0.1)
    assert optax.tree.get(injected.init(start()), "learning_rate") == np.float32(0.1)


def test_map_params_finds_what_is_like_the_parameters():
    optimizer = radazo.roll_back(radazo.radazo(0.1, SPHERE, key=0))
    state = optimizer.init(start())
    named = optax.tree.map_params(
        optimizer, lambda x: "like", state, transform_non_params=lambda x: "other"
    )
    # Parameters kept, two moments, and two moments kept: of two leaves each.
    assert jax.tree.leaves(named).count("like") == 5 * 2


def test_a_donated_state_takes_nothing_with_it():
    optimizer = radazo.roll_back(radazo.radazo(0.1, SPHERE, key=0))
    params = start()
    step = jax.jit(
        lambda state, params: optimizer.update(
            None, state, params, value_fn=half_sum_of_squares
        ),
        donate_argnums=0,
    )
    first = step(optimizer.init(params), params)
    assert_equal(first, step(optimizer.init(params), params))


# What it is worth.


def cliff(x, batch):
    """No values outside of a ball; in batch 40 a slope that throws out of it."""
    value = half_sum_of_squares(x)
    return jnp.where(value < 1e4, value * jnp.where(batch == 40, 1e6, 1.0), jnp.nan)


def minimized(optimizer, params, num_steps, state=None):
    return radazo.minimize(
        cliff, params, optimizer, num_steps, state=state, batches=lambda step: step
    )


@pytest.mark.gate
def test_it_leads_out_of_where_the_function_has_no_value():
    bare = RULES["zo_sgd with momentum"](SPHERE)
    stuck = minimized(bare, start(), 300)
    assert stuck.state.num_skipped == 300 - 41
    optimizer = radazo.roll_back(bare)
    result = minimized(optimizer, start(), 300)
    assert optax.tree.get(result.state, "num_rolled_back") == 1
    assert optax.tree.get(result.state, "num_skipped") == 2
    assert half_sum_of_squares(result.params) < 1e-3
    first = minimized(optimizer, start(), 42)
    assert first.state.num_bad == 2
    rest = minimized(optimizer, first.params, 300 - 42, first.state)
    assert_equal((rest.params, rest.state), (result.params, result.state))


def test_moments_that_an_absurd_batch_has_blown_up_go_back_too():
    """Values that are noisy, at a steady size: what is lost is time."""
    optimizer = radazo.radazo(0.01, SPHERE, key=0)

    def value_fn(x, batch):
        return half_sum_of_squares(x) * jnp.where(batch == 60, 1e4, 1.0)

    far = {"a": jnp.full(3, 3.0), "b": jnp.asarray(3.0)}
    batches = np.arange(400)
    ends = [
        run_of(wrap(optimizer), far, batches, value_fn)[0]
        for wrap in (lambda x: x, lambda x: radazo.roll_back(x, patience=1))
    ]
    bare, guarded = (half_sum_of_squares(params) for params, _ in ends)
    assert ends[1][1].num_rolled_back == 1
    assert guarded < bare / 100


def test_a_learning_rate_that_is_too_large_stays_so_and_the_count_tells():
    def walled(x, batch):
        return jnp.where(x["b"] < 1.6, half_sum_of_squares(x), jnp.nan)

    optimizer = radazo.roll_back(radazo.radazo(1.0, SPHERE, key=0))
    (_, state), _ = run_of(optimizer, start(), np.arange(300), walled)
    assert state.num_rolled_back > 20
