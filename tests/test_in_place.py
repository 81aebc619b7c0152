"""Steps in place are the steps of the optimizer that holds its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import half_sum_of_squares
from jax import lax

import radazo
from radazo.evaluate import lazy
from radazo.optimizers.in_place import _shape_of_part

RATE = 0.01


def make_params(dtype=jnp.float32):
    return {
        "layers": jnp.linspace(0.5, 2.0, 24).reshape(2, 3, 4).astype(dtype),
        "matrix": jnp.linspace(1.0, -2.0, 12).reshape(3, 4).astype(dtype),
        "steps": jnp.array([1, 2]),
    }


def scanned(params):
    def turn(total, layer):
        return total + half_sum_of_squares(layer), None

    rest = {name: x for name, x in params.items() if name != "layers"}
    return lax.scan(turn, half_sum_of_squares(rest), params["layers"])[0]


def run(optimizer, num_steps, params, value_fn=scanned):
    """The parameters after some steps, the last state, and the values."""

    @jax.jit
    def all_steps(params, state):
        def turn(carry, _):
            params, state, info = optimizer.step(value_fn, *carry)
            return (params, state), (state.last_value, info)

        return lax.scan(turn, (params, state), None, num_steps)

    (params, state), (values, info) = all_steps(params, optimizer.init(params))
    return params, state, values, info


def reference(optimizer, num_steps, params, value_fn=scanned):
    """As `run`, with updates that are as large as the parameters."""

    @jax.jit
    def all_steps(params, state):
        def turn(carry, _):
            params, state = carry
            updates, state = optimizer.update(None, state, params, value_fn=value_fn)
            return (moved(params, updates), state), state.last_value

        return lax.scan(turn, (params, state), None, num_steps)

    with jax.numpy_dtype_promotion("standard"):  # Of optax with integers.
        return all_steps(params, optimizer.init(params))


def moved(params, updates):
    return jax.tree.map(
        lambda x, u: x + u if jnp.issubdtype(x.dtype, jnp.floating) else x,
        params,
        updates,
    )


def assert_near(found, expected, rtol=1e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6),
        found,
        expected,
    )


RULES = {
    "R-AdaZO": optax.chain(radazo.scale_by_radazo(), optax.scale(-RATE)),
    "sgd": optax.sgd(RATE),
    "ZO-AdaMM": optax.chain(radazo.scale_by_zo_adamm(amsgrad=True), optax.scale(-RATE)),
    "factored": optax.chain(
        radazo.scale_by_radazo(granularity=radazo.optimizers.factored),
        optax.scale(-RATE),
    ),
    "decayed": optax.chain(
        radazo.scale_by_radazo(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(optax.linear_schedule(RATE, 0.0, 10)),
    ),
}
SAMPLERS = {
    "gaussian": (radazo.directions.gaussian, radazo.gaussian_estimator),
    "sphere": (radazo.directions.sphere, radazo.sphere_estimator),
    "rademacher": (radazo.directions.rademacher, radazo.rademacher_estimator),
    "hadamard": (radazo.directions.hadamard, radazo.hadamard_estimator),
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_steps_are_those_of_an_estimator_around_the_same_rule(rule):
    params = make_params()
    options = {"num_directions": 2, "smoothing": 0.1, "difference": radazo.central}
    estimator = radazo.gaussian_estimator(**options)
    (expected, state), values = reference(
        radazo.with_estimator(estimator, rule, key=3), 6, params
    )
    found, own, own_values, _ = run(radazo.in_place(rule, key=3, **options), 6, params)
    np.testing.assert_allclose(own_values, values, rtol=1e-5)
    assert_near(found, expected)
    assert own.num_values == state.num_values == 24
    assert own.count == 6
    assert np.any(found["layers"] != params["layers"])


def half_of_the_time_a_number(params):
    """Not where the matrix has moved up at its first place."""
    is_bad = params["matrix"][0, 0] > make_params()["matrix"][0, 0]
    return jnp.where(is_bad, jnp.nan, scanned(params))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sampler", ["sphere", "rademacher", "hadamard"])
def test_directions_of_any_sampler_that_are_dropped_leave_the_mean_of_the_others(
    sampler,
):
    sampler, make = SAMPLERS[sampler]
    params, rule = make_params(), optax.sgd(RATE)
    options = {"num_directions": 16, "smoothing": 0.01, "difference": radazo.forward}
    (expected, state), _ = reference(
        radazo.with_estimator(make(**options), rule, key=3),
        1,
        params,
        half_of_the_time_a_number,
    )
    optimizer = radazo.in_place(rule, key=3, sampler=sampler, **options)
    found, own, _, info = run(optimizer, 1, params, half_of_the_time_a_number)
    assert 0 < int(own.num_dropped) == int(state.num_dropped) < 16
    assert np.sum(~info.kept) == own.num_dropped
    assert np.any(found["layers"] != params["layers"])
    # The difference of two values of 40, in float32, over 0.01.
    assert_near(found, expected, rtol=1e-3)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("sampler", "difference"),
    [
        ("gaussian", radazo.forward),
        ("gaussian", radazo.central),
        ("gaussian", radazo.forward_mode),
        ("gaussian", radazo.one_point),
        ("sphere", radazo.central),
        ("rademacher", radazo.central),
        ("hadamard", radazo.central),
        ("hadamard", radazo.forward),
    ],
)
def test_slopes_are_those_of_the_estimator(sampler, difference):
    sampler, make = SAMPLERS[sampler]
    params = make_params()
    options = {"num_directions": 6, "smoothing": 0.01, "difference": difference}
    estimator = make(**options)
    key = jax.random.fold_in(jax.random.key(3), 0)
    value, _, _, expected = jax.jit(
        lambda params: radazo.estimate(
            estimator, key, scanned, params, estimator.init(params)
        )
    )(params)
    optimizer = radazo.in_place(optax.sgd(RATE), key=3, sampler=sampler, **options)
    _, _, values, info = run(optimizer, 1, params)
    scale = 1e-4 if difference in (radazo.forward, radazo.central) else 1e-5
    np.testing.assert_allclose(info.slopes[0], expected.slopes, rtol=1e-3, atol=scale)
    np.testing.assert_allclose(values[0], value, rtol=1e-6)
    assert_near(
        jax.tree.map(lambda x: x[0], info)._replace(slopes=None),
        expected._replace(slopes=None),
    )


def test_large_matrices_are_updated_in_blocks_of_rows(monkeypatch):
    params = make_params()
    expected, *_ = run(radazo.in_place(RULES["R-AdaZO"], key=3), 4, params)
    monkeypatch.setattr(lazy, "BLOCK", 5)
    assert _shape_of_part((3, 4)) == (3, (1, 4))
    found, *_ = run(radazo.in_place(RULES["R-AdaZO"], key=3), 4, params)
    assert_near(found, expected)


@pytest.mark.parametrize(
    ("shape", "num", "part"),
    [
        ((), 1, ()),
        ((1 << 22,), 1, (1 << 22,)),
        ((4, 5), 1, (4, 5)),
        ((3, 4, 5), 3, (4, 5)),
        ((2, 3, 4, 5), 2, (3, 4, 5)),
        ((50272, 2048), 32, (1571, 2048)),
        ((1 << 14, 512), 8, (1 << 11, 512)),
        ((1000003, 8), 1, (1000003, 8)),  # A prime has no blocks.
    ],
)
def test_how_a_leaf_is_cut_into_parts(shape, num, part):
    assert _shape_of_part(shape) == (num, part)


@pytest.mark.gate
def test_a_momentum_that_is_drawn_again_is_the_momentum():
    params = make_params()
    rule = optax.chain(
        radazo.first_moment(0.8), radazo.scale_by_second_moment(), optax.scale(-RATE)
    )
    options = {"key": 3, "smoothing": 0.1, "num_directions": 2}
    expected, *_ = run(radazo.in_place(rule, **options), 12, params)
    rest = optax.chain(radazo.scale_by_second_moment(), optax.scale(-RATE))
    found, state, *_ = run(
        radazo.in_place(rest, b1=0.8, num_steps=12, **options), 12, params
    )
    assert_near(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(state.estimator.counts, np.arange(11, -1, -1))
    floats = [x for x in jax.tree.leaves(state.optimizer) if x.ndim > 1]
    sizes = sum(x.size for x in floats)
    assert sizes == 24 + 12  # The second moment alone.
    cut, *_ = run(radazo.in_place(rest, b1=0.8, num_steps=2, **options), 12, params)
    assert np.any(np.abs(cut["layers"] - expected["layers"]) > 1e-3)


@pytest.mark.parametrize(("b1", "num_steps"), [(0.0, 1), (0.5, 7), (0.9, 44)])
def test_so_many_steps_are_remembered_that_a_hundredth_is_missing(b1, num_steps):
    state = radazo.in_place(optax.sgd(RATE), key=0, b1=b1).init(make_params())
    assert state.estimator.counts.shape == (num_steps,)
    assert b1**num_steps <= 0.01 < b1 ** (num_steps - 1)


def test_a_step_without_a_finite_value_changes_nothing():
    params = make_params()
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale(-RATE))
    optimizer = radazo.in_place(rule, key=0, b1=0.5, num_steps=3)
    step = jax.jit(
        lambda factor, params, state: optimizer.step(
            lambda p: factor * scanned(p), params, state
        )
    )
    state = optimizer.init(params)
    for _ in range(3):
        params, state, _ = step(1.0, params, state)
    after, new, info = step(jnp.nan, params, state)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    jax.tree.map(np.testing.assert_array_equal, new.optimizer, state.optimizer)
    jax.tree.map(np.testing.assert_array_equal, new.estimator, state.estimator)
    assert not np.any(info.kept)
    assert (new.count, new.num_skipped, new.num_dropped) == (4, 1, 1)


def test_leaves_that_are_masked_or_no_numbers_stay_as_they_are():
    params = make_params()
    mask = {name: name == "matrix" for name in params}
    optimizer = radazo.in_place(RULES["R-AdaZO"], key=0, mask=mask)
    found, state, *_ = run(optimizer, 3, params)
    for name in params:
        same = np.array_equal(found[name], params[name])
        assert same == (name != "matrix")
    assert len(state.optimizer) == 1


def test_keywords_go_to_the_function():
    optimizer = radazo.in_place(optax.sgd(0.1), key=0)
    params = jnp.ones(3)
    step = jax.jit(
        lambda params, state, batch: optimizer.step(
            lambda p, batch: jnp.sum(p * batch), params, state, batch=batch
        )
    )
    _, state, _ = step(params, optimizer.init(params), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(state.last_value, 6.0, rtol=1e-3)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_thousand_steps_with_a_rate_of_zero_change_no_bit(dtype):
    params = make_params(dtype) | {"small": jnp.array([0.0, 1e-7], dtype)}
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale(0.0))
    optimizer = radazo.in_place(rule, key=0, moment_dtype=jnp.bfloat16)
    found, state, *_ = run(optimizer, 1000, params)
    for name, x in params.items():
        assert found[name].dtype == x.dtype
        assert np.asarray(found[name]).tobytes() == np.asarray(x).tobytes()
    assert state.count == 1000


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_updates_too_small_for_a_narrow_type_are_kept_in_the_mean(dtype):
    size, steps = 4000, 50
    update = float(jnp.finfo(dtype).eps) / 64  # An update of 1 rounds to none.
    rule = optax.GradientTransformation(
        lambda params: (),
        lambda updates, state, params: (jnp.full_like(updates, update), state),
    )
    params = jnp.ones(size, dtype)
    found, *_ = run(
        radazo.in_place(rule, key=0), steps, params, lambda x: jnp.sum(x * x)
    )
    total = np.asarray(found, np.float64) - 1
    eps = float(jnp.finfo(dtype).eps)
    error = np.sqrt(steps / 64 * (1 - 1 / 64) / size)
    assert abs(total.mean() / eps - steps / 64) < 4 * error
    assert {*np.unique(total / eps)} <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    assert (params + jnp.asarray(update, dtype) == params).all()


@pytest.mark.gate
def test_moments_in_bfloat16_stay_near_those_in_float32():
    def value_fn(params):
        return half_sum_of_squares(params)

    params = {"w": jax.random.normal(jax.random.key(0), (4, 32, 16))}
    rule = optax.chain(radazo.scale_by_radazo(), optax.scale(-0.002))
    options = {"key": 1, "num_directions": 4}
    _, wide, values, _ = run(radazo.in_place(rule, **options), 300, params, value_fn)
    optimizer = radazo.in_place(rule, moment_dtype=jnp.bfloat16, **options)
    _, narrow, found, _ = run(optimizer, 300, params, value_fn)
    moments = [x for x in jax.tree.leaves(narrow.optimizer) if x.ndim == 3]
    assert [x.dtype for x in moments] == [jnp.bfloat16, jnp.bfloat16]
    assert values[-1] < 0.9 * values[0]
    np.testing.assert_allclose(found, values, rtol=0.02)
    for x, y in zip(moments, jax.tree.leaves(wide.optimizer)[1:], strict=True):
        error = np.linalg.norm(np.asarray(x, np.float32) - y) / np.linalg.norm(y)
        assert error < 0.1


def test_the_same_run_in_two_pieces_is_the_run():
    params = make_params(jnp.bfloat16)
    optimizer = radazo.in_place(
        RULES["R-AdaZO"], key=0, moment_dtype=jnp.bfloat16, b1=0.5
    )
    step = jax.jit(lambda params, state: optimizer.step(scanned, params, state)[:2])
    state = optimizer.init(params)
    for _ in range(6):
        params, state = step(params, state)
    again, other = make_params(jnp.bfloat16), optimizer.init(make_params(jnp.bfloat16))
    for _ in range(6):
        again, other = step(again, other)
        again, other = jax.tree.map(lambda x: jnp.array(np.asarray(x)), (again, other))
    jax.tree.map(np.testing.assert_array_equal, (again, other), (params, state))


@pytest.mark.gate
def test_several_runs_in_one_program_are_those_runs():
    optimizer = radazo.in_place(RULES["R-AdaZO"], key=0)
    params = {"w": jax.random.normal(jax.random.key(0), (3, 2, 4))}

    def two_steps(params):
        state = optimizer.init(params)
        for _ in range(2):
            params, state, _ = optimizer.step(half_sum_of_squares, params, state)
        return params

    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    together = jax.jit(jax.vmap(two_steps))(stacked)
    for i in range(2):
        alone = jax.jit(two_steps)(jax.tree.map(lambda x, i=i: x[i], stacked))
        assert_near(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_a_stacked_leaf_that_is_used_as_a_whole_is_warned_of(monkeypatch):
    monkeypatch.setattr(lazy, "BLOCK", 10)
    params = make_params()
    optimizer = radazo.in_place(optax.sgd(RATE), key=0)

    def step(value_fn):
        state = optimizer.init(params)
        return jax.eval_shape(
            lambda params: optimizer.step(value_fn, params, state), params
        )

    text = r"leaf \['layers'\] of shape \(2, 3, 4\) as a whole.*`jax.lax.scan`"
    with pytest.warns(UserWarning, match=text):
        step(half_sum_of_squares)
    step(scanned)  # Warnings are errors here.


def test_an_empty_leaf_stays_empty():
    params = {"none": jnp.zeros((0, 3, 4)), "some": jnp.ones(2)}
    optimizer = radazo.in_place(radazo.scale_by_radazo(), key=0)
    found, *_ = run(optimizer, 2, params, half_sum_of_squares)
    assert found["none"].shape == (0, 3, 4)
    assert np.all(found["some"] != 1)
