"""Every complete optimizer keeps every contract of an optax transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares

import radazo

ESTIMATOR = radazo.coordinate_estimator(num_directions=4)
SEED = 2


def start(dtype=jnp.float32):
    return {"a": jnp.array([2.0, -1.5, 1.0], dtype), "b": jnp.asarray(-2.0, dtype)}


def make(make_optimizer, learning_rate=0.03, key=SEED, **options):
    return make_optimizer(learning_rate, ESTIMATOR, key=key, **options)


def step_of(optimizer, value_fn=half_sum_of_squares):
    def step(params, state):
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return step


def scanned(optimizer, params, num_steps, value_fn=half_sum_of_squares):
    """The parameters and the state after `num_steps` steps, a number or an argument."""
    step = step_of(optimizer, value_fn)
    carry = params, optimizer.init(params)
    return jax.lax.fori_loop(0, num_steps, lambda _, carry: step(*carry), carry)


def with_limit(limit, bad):
    """`half_sum_of_squares`, but `bad` where the leaf `b` is below the limit."""

    def value_fn(params):
        return jnp.where(params["b"] < limit, bad, half_sum_of_squares(params))

    return value_fn


@functools.cache
def compiled_run(make_optimizer):
    """(params, number of steps, limit, bad value) -> (params, state), once compiled."""
    optimizer = make(make_optimizer)
    return jax.jit(
        lambda params, num_steps, *limit: scanned(
            optimizer, params, num_steps, with_limit(*limit)
        )
    )


NO_LIMIT = np.float32(-np.inf), np.float32(0)


@functools.cache
def plain_run(make_optimizer):
    return compiled_run(make_optimizer)(start(), 5, *NO_LIMIT)


@functools.cache
def compiled_step(make_optimizer):
    """(params, state, limit, bad value) -> (params, state), compiled once."""
    optimizer = make(make_optimizer)
    return jax.jit(
        lambda params, state, *limit: step_of(optimizer, with_limit(*limit))(
            params, state
        )
    )


def plain_step(make_optimizer):
    return lambda *carry: compiled_step(make_optimizer)(*carry, *NO_LIMIT)


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_near(first, second):
    """Equal up to rounding of values, which a difference divides by `smoothing`."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        first,
        second,
    )


def program(optimizer, updates=None, **extra):
    """An update as text."""

    def update(params, state):
        return optimizer.update(
            updates, state, params, value_fn=half_sum_of_squares, **extra
        )

    return str(jax.make_jaxpr(update)(start(), optimizer.init(start())))


def moments(state):
    """The leaves of the optimizer's state but for counts."""
    return [x for x in jax.tree.leaves(state.optimizer) if x.dtype != jnp.int32]


def test_it_descends_a_parabola_to_a_hundredth(make_optimizer):
    reached, state = compiled_run(make_optimizer)(start(), 500, *NO_LIMIT)
    assert half_sum_of_squares(reached) < 0.01 * half_sum_of_squares(start())
    assert state.num_values == 500 * 5


def test_a_scan_is_a_loop_of_steps(make_optimizer):
    params, state = start(), make(make_optimizer).init(start())
    for _ in range(5):
        params, state = plain_step(make_optimizer)(params, state)
    assert_near((params, state), plain_run(make_optimizer))


@pytest.mark.fast_cases(2)
def test_donated_parameters_and_state_leave_the_optimizer_whole(make_optimizer):
    optimizer = make(make_optimizer, key=jax.random.key(SEED))
    step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))
    first = step(start(), optimizer.init(start()))
    second = step(start(), optimizer.init(start()))
    assert_equal(first, second)


def test_a_second_init_is_the_first(make_optimizer):
    optimizer = make(make_optimizer)
    assert_equal(optimizer.init(start()), optimizer.init(start()))


def test_init_on_shapes_is_init_on_parameters(make_optimizer):
    optimizer = make(make_optimizer)
    assert_equal(optimizer.init(jax.eval_shape(start)), optimizer.init(start()))


def test_eval_shape_describes_a_step(make_optimizer):
    optimizer = make(make_optimizer)
    state = optimizer.init(start())
    shapes = jax.eval_shape(step_of(optimizer), start(), state)
    assert described(shapes) == described(plain_step(make_optimizer)(start(), state))


INJECTED = {
    "radazo": {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-4},
    "zo_adamm": {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-4},
    "zo_rmsprop": {"b2": 0.9, "eps": 1e-3, "eps_root": 1e-4},
    "zo_sgd": {"momentum": 0.8},
    "zo_signsgd": {},
    "meazo": {"b2": 0.9, "eps": 1e-3, "eps_root": 1e-4},
}


@pytest.mark.fast_cases(3)
def test_injected_hyperparameters_give_the_run_of_the_plain_ones(make_optimizer):
    """And a changed one changes the next step without compiling again."""
    given = INJECTED[make_optimizer.__name__] | {
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "key": 4,
    }
    factory = functools.partial(make_optimizer, estimator=ESTIMATOR)
    injected = optax.inject_hyperparams(factory, static_args=("estimator",))(**given)
    step, plain = jax.jit(step_of(injected)), jax.jit(step_of(factory(**given)))
    found, expected = (
        (start(), optimizer.init(start())) for optimizer in (injected, factory(**given))
    )
    assert set(given) == set(found[1].hyperparams)
    for _ in range(3):
        found, expected = step(*found), plain(*expected)
    assert_near(found[0], expected[0])
    params, state = found
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    assert_equal(step(params, state)[0], params)
    assert step._cache_size() == 1


def test_an_injected_smoothing_in_the_type_of_half_parameters_descends():
    def factory(smoothing):
        estimator = radazo.coordinate_estimator(num_directions=4, smoothing=smoothing)
        return radazo.zo_sgd(0.05, estimator, key=SEED)

    injected = optax.inject_hyperparams(factory)(smoothing=0.5)
    run = jax.jit(lambda p: scanned(injected, p, 100))
    reached, state = run(start(jnp.bfloat16))
    assert state.hyperparams["smoothing"].dtype == jnp.bfloat16
    assert half_sum_of_squares(reached) < 0.2 * half_sum_of_squares(start())


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float64], ids=lambda d: d.__name__
)
def test_types_of_parameters_and_state_stay_in_a_scan_and_in_a_cond(
    make_optimizer, dtype
):
    with jax.enable_x64(dtype == jnp.float64):
        optimizer = make(make_optimizer, learning_rate=0.5)
        params = start(dtype)
        state = optimizer.init(params)

        def value_fn(params):
            return jnp.sum(params["a"].astype(jnp.float32)) ** 2

        step = step_of(optimizer, value_fn)

        @jax.jit
        def run(params, state):
            def body(carry, _):
                stay = lambda *carry: carry
                return jax.lax.cond(carry[1].count < 2, step, stay, *carry), None

            return jax.lax.scan(body, (params, state), length=3)[0]

        after = jax.eval_shape(run, params, state)
        assert described(after) == described((params, state))
        if dtype == jnp.bfloat16:  # The others are the same program in other types.
            after = run(params, state)
            assert after[1].count == 2
            assert not np.array_equal(after[0]["a"], params["a"])


@pytest.mark.fast_cases(2)
def test_ten_steps_with_changing_batches_trace_the_function_once(make_optimizer):
    traces = []

    def value_fn(params, batch):
        traces.append(1)
        return jnp.sum(batch) * half_sum_of_squares(params)

    optimizer = make(make_optimizer)

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(
            None, state, params, value_fn=value_fn, batch=batch
        )
        return optax.apply_updates(params, updates), state

    params, state = start(), optimizer.init(start())
    for seed in range(10):
        params, state = step(params, state, jnp.full(2, seed, jnp.float32))
    assert len(traces) == 1
    assert step._cache_size() == 1


def test_incoming_updates_and_unexpected_keywords_change_nothing(make_optimizer):
    optimizer = make(make_optimizer)
    plain = program(optimizer)
    assert program(optimizer, start()) == plain
    assert program(optimizer, unexpected=start()) == plain


def test_map_params_finds_the_moments_and_leaves_the_rest(make_optimizer):
    optimizer = make(make_optimizer)
    state = optimizer.init(start())
    doubled = optax.tree.map_params(optimizer, lambda x: x + 1, state)
    # A second moment that all elements share is not like the parameters.
    more = 0 if make_optimizer is radazo.meazo else 1
    expected = [x + more for x in moments(state)]
    assert_equal(moments(doubled), expected)
    assert_equal(doubled._replace(optimizer=None), state._replace(optimizer=None))


@pytest.mark.fast_cases(2)
def test_a_constant_schedule_is_its_number(make_optimizer):
    schedule = optax.constant_schedule(0.03)
    optimizer = make(make_optimizer, learning_rate=schedule)
    reached, _ = jax.jit(lambda p, num: scanned(optimizer, p, num))(start(), 5)
    assert_near(reached, plain_run(make_optimizer)[0])


def test_the_state_is_arrays_of_the_same_structure_and_types_in_and_out(make_optimizer):
    state = make(make_optimizer).init(start())
    _, after = plain_step(make_optimizer)(start(), state)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert described(after) == described(state)


MOMENTS = {
    "radazo": ("mu", "nu"),
    "zo_adamm": ("mu", "nu"),
    "zo_rmsprop": ("nu",),
    "zo_sgd": (),
    "zo_signsgd": (),
    "meazo": (),
}


@pytest.mark.parametrize("name", ["mu", "nu"])
def test_tree_get_finds_one_moment_where_there_is_one(make_optimizer, name):
    state = make(make_optimizer).init(start())
    found = optax.tree.get(state, name)
    if make_optimizer is radazo.meazo and name == "nu":
        assert found.shape == ()
    elif name in MOMENTS[make_optimizer.__name__]:
        assert jax.tree.structure(found) == jax.tree.structure(start())
    else:
        assert found is None


def test_a_step_without_a_finite_value_leaves_parameters_and_moments(make_optimizer):
    params, state = plain_step(make_optimizer)(
        start(), make(make_optimizer).init(start())
    )
    inf = np.float32(np.inf)
    after, after_state = compiled_step(make_optimizer)(params, state, inf, inf)
    assert_equal(after, params)
    assert_equal(after_state.optimizer, state.optimizer)
    assert after_state.num_skipped == 1
    assert after_state.num_dropped == 4


def test_nan_never_reaches_parameters_or_moments(make_optimizer):
    params = start() | {"b": jnp.float32(-1.99905)}
    limit = np.float32(-1.999), np.float32(np.nan)
    reached, state = compiled_run(make_optimizer)(params, 50, *limit)
    assert state.num_dropped > 0
    assert np.all(np.isfinite(jax.flatten_util.ravel_pytree(reached)[0]))
    assert all(np.all(np.isfinite(x)) for x in moments(state))


@pytest.mark.fast_cases(2)
def test_states_vmapped_over_keys_are_the_runs_of_these_keys(make_optimizer):
    keys = [3, 4, 5]
    states = [make(make_optimizer, key=key).init(start()) for key in keys]
    together = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    step = step_of(make(make_optimizer))
    params, _ = jax.jit(jax.vmap(step, (None, 0)))(start(), together)
    single = [plain_step(make_optimizer)(start(), state)[0] for state in states]
    assert_near(params, jax.tree.map(lambda *xs: np.stack(xs), *single))
    assert len({x.tobytes() for x in np.asarray(params["a"])}) > 1


@pytest.mark.fast_cases(3)
def test_weight_decay_shrinks_what_its_mask_names_and_nothing_else(make_optimizer):
    optimizer = make(
        make_optimizer,
        learning_rate=0.5,
        weight_decay=0.1,
        weight_decay_mask={"a": True, "b": False},
    )
    step = jax.jit(step_of(optimizer, lambda params: 0 * params["b"]))
    reached, _ = step(start(), optimizer.init(start()))
    assert_near(reached, {"a": 0.95 * start()["a"], "b": start()["b"]})
