"""Projected optimizers: their pseudocode, and parameters that stay inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares
from scipy import optimize

import radazo

K, SMOOTHING, D = 4, 1e-3, 6
SETS = {
    "box": radazo.projections.box(-0.3, 0.4),
    "l2_ball": radazo.projections.l2_ball(0.8),
    "l1_ball": radazo.projections.l1_ball(1.0),
    "simplex": radazo.projections.simplex(1.0),
}
TARGET = np.array([1.0, -1.0, 0.5, 0.2, -0.1, 2.0])


def value_fn(x):
    scales = jnp.asarray(np.arange(1.0, D + 1), x.dtype)
    return jnp.sum(scales * jnp.square(x - jnp.asarray(TARGET, x.dtype)))


def estimator():
    return radazo.sphere_estimator(num_directions=K, smoothing=SMOOTHING)


def on_simplex(x, h, scale):
    """max(x − θ / h, 0), with θ found by trying every support in turn."""
    order = np.argsort(-h * x)
    for size in range(1, len(x) + 1):
        support = order[:size]
        theta = (x[support].sum() - scale) / (1 / h[support]).sum()
        y = np.maximum(x - theta / h, 0)
        if np.isclose(y.sum(), scale, rtol=1e-12):
            return y
    raise AssertionError


def on_l2_ball(x, h, scale):
    if np.linalg.norm(x) <= scale:
        return x
    y = lambda m: h * x / (h + m)
    top = h.max() * np.linalg.norm(x) / scale
    excess = lambda m: np.linalg.norm(y(m)) - scale
    return y(optimize.brentq(excess, 0, top, xtol=1e-15, rtol=1e-14))


def on_l1_ball(x, h, scale):
    if np.abs(x).sum() <= scale:
        return x
    return np.sign(x) * on_simplex(np.abs(x), h, scale)


REFERENCES = {
    "box": lambda x, h: np.clip(x, -0.3, 0.4),
    "l2_ball": lambda x, h: on_l2_ball(x, h, 0.8),
    "l1_ball": lambda x, h: on_l1_ball(x, h, 1.0),
    "simplex": lambda x, h: on_simplex(x, h, 1.0),
}
_value = jax.jit(value_fn)


def gradient_at(key, x):
    """The forward estimate along directions of the sphere."""
    u = radazo.directions.sample_directions(
        key, jnp.asarray(x), radazo.directions.sphere, num_directions=K
    )
    f = lambda y: float(_value(jnp.asarray(y)))
    slopes = [(f(x + SMOOTHING * row) - f(x)) / SMOOTHING for row in np.asarray(u)]
    return D / K * np.asarray(slopes) @ np.asarray(u)


def a_start(name):
    return np.full(D, 1 / D) if name == "simplex" else np.linspace(-0.2, 0.2, D)


def trajectory(optimizer, x, num_steps):
    state = optimizer.init(jnp.asarray(x))
    step = jax.jit(lambda x, state: optimizer.update(None, state, x, value_fn=value_fn))
    x, reached = jnp.asarray(x), []
    for _ in range(num_steps):
        updates, state = step(x, state)
        x = optax.apply_updates(x, updates)
        reached.append(np.asarray(x))
    return np.array(reached), state


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", SETS)
def test_zo_psgd_is_its_pseudocode(x64, name):
    key, rate, x = jax.random.key(3), 0.02, a_start(name)
    optimizer = radazo.zo_psgd(rate, SETS[name], estimator(), key=key)
    reached, _ = trajectory(optimizer, x, 10)
    expected, touched = [], 0
    for t in range(10):
        free = x - rate * gradient_at(jax.random.fold_in(key, t), x)
        x = REFERENCES[name](free, np.ones(D))
        touched += not np.allclose(x, free)
        expected.append(x)
    np.testing.assert_allclose(reached, expected, atol=1e-8)
    assert touched


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", SETS)
def test_projected_zo_adamm_is_the_algorithm_of_2019(x64, name):
    key, rate, b1, b2, zeta = jax.random.key(5), 0.3, 0.9, 0.5, 1e-8
    x = a_start(name)
    optimizer = radazo.projected_zo_adamm(
        rate, SETS[name], estimator(), key=key, b1=b1, b2=b2
    )
    reached, state = trajectory(optimizer, x, 10)
    m, v, v_max = np.zeros(D), np.zeros(D), np.zeros(D)
    expected, euclidean = [], []
    for t in range(10):
        g = gradient_at(jax.random.fold_in(key, t), x)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        h = np.sqrt(v_max + zeta)
        free = x - rate * m / h
        euclidean.append(REFERENCES[name](free, np.ones(D)))
        x = REFERENCES[name](free, h)
        expected.append(x)
    np.testing.assert_allclose(reached, expected, atol=1e-7)
    # The metric is what makes the difference, but in a box.
    same = np.allclose(expected, euclidean, atol=1e-4)
    assert same == (name == "box")
    assert isinstance(state, radazo.optimizers.WithEstimatorState)
    np.testing.assert_allclose(state.optimizer[0].nu_max, v_max, rtol=1e-6)


def widened(x):
    return value_fn(x.astype(jnp.float32))


def inside(name, x, slack):
    x = np.asarray(x, np.float64)
    if name == "box":
        return np.all((x >= -0.3) & (x <= 0.4))
    if name == "simplex":
        sums = np.abs(x.sum(axis=-1) - 1)
        return np.all(x >= 0) and np.all(sums <= D * slack)
    order, scale = {"l2_ball": (2, 0.8), "l1_ball": (1, 1.0)}[name]
    return np.all(np.linalg.norm(x, order, axis=-1) <= scale * (1 + slack))


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    ("make", "dtype"),
    [(radazo.zo_psgd, jnp.float32), (radazo.projected_zo_adamm, jnp.bfloat16)],
)
@pytest.mark.parametrize("name", SETS)
def test_every_step_stays_inside(name, make, dtype):
    """Steps of up to many times the size of the set, from inside."""
    rate = optax.exponential_decay(3.0, 1, 0.9)
    wide_enough = radazo.sphere_estimator(num_directions=K, smoothing=0.1)
    optimizer = make(rate, SETS[name], wide_enough, key=0)
    first = SETS[name](jnp.asarray(a_start(name), dtype))

    def run(key_data):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(None, state, x, value_fn=widened)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        state = optimizer.init(first)._replace(key_data=key_data)
        return jax.lax.scan(step, (first, state), length=50)[1]

    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4))
    reached = jax.jit(jax.vmap(run))(keys)
    assert reached.dtype == dtype
    assert reached.shape == (4, 50, D)
    assert inside(name, reached, float(jnp.finfo(dtype).eps))
    assert len(np.unique(np.asarray(reached, np.float32).reshape(-1, D), axis=0)) > 3


def test_from_outside_of_a_box_a_step_goes_to_its_edge():
    optimizer = radazo.zo_psgd(0.0, radazo.projections.box(-1.0, 1.0), key=0)
    x = {"a": jnp.array([1000.1, -3.3]), "b": jnp.asarray(0.2, jnp.bfloat16)}
    state = optimizer.init(x)
    update = jax.jit(functools.partial(optimizer.update, value_fn=half_sum_of_squares))
    for _ in range(2):
        updates, state = update(None, state, x)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(
            jnp.result_type, x
        )
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x["a"], [1, -1], rtol=1e-6)
    assert x["b"] == jnp.bfloat16(0.2)


BOX = radazo.projections.box(-0.25, 0.25)


def reached_by(optimizer, start=None, **extra):
    """The parameters after each of 4 steps."""
    x = jnp.zeros(D) if start is None else start
    state, steps = optimizer.init(x), []
    update = jax.jit(functools.partial(optimizer.update, value_fn=value_fn, **extra))
    for _ in range(4):
        updates, state = update(None, state, x)
        x = optax.apply_updates(x, updates)
        steps.append(x)
    return steps


def test_within_and_around_an_estimator_it_is_the_same():
    rule = optax.sgd(0.02, momentum=0.9)
    around = radazo.projected(radazo.with_estimator(estimator(), rule, 0), BOX)
    within = radazo.with_estimator(estimator(), radazo.projected(rule, BOX), 0)
    link = optax.chain(
        radazo.estimate_gradient(estimator(), 0), radazo.projected(rule, BOX)
    )
    expected = reached_by(around)
    np.testing.assert_array_equal(reached_by(within), expected)
    np.testing.assert_array_equal(reached_by(link), expected)
    assert np.max(np.abs(expected[-1])) == 0.25


def test_the_state_is_that_of_the_optimizer():
    inner = radazo.zo_adamm(0.1, key=0)
    states = [o.init(jnp.zeros(3)) for o in (radazo.projected(inner, BOX), inner)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_it_works_beside_the_wrappers_of_optax():
    rule = optax.sgd(0.05)
    multi = radazo.projected(optax.MultiSteps(rule, 2), BOX)
    with jax.numpy_dtype_promotion("standard"):
        first, second, *_ = reached_by(radazo.with_estimator(estimator(), multi, 0))
    np.testing.assert_array_equal(first, np.zeros(D))
    assert np.max(np.abs(second)) == 0.25
    finite = optax.apply_if_finite(radazo.projected(rule, BOX), 3)
    masked = optax.masked(radazo.projected(rule, BOX), True)
    injected = optax.inject_hyperparams(
        lambda learning_rate: radazo.projected(optax.sgd(learning_rate), BOX)
    )(learning_rate=0.05)
    plain = radazo.projected(rule, BOX)
    expected = reached_by(radazo.with_estimator(estimator(), plain, 0))
    for wrapped in (finite, masked, injected):
        got = reached_by(radazo.with_estimator(estimator(), wrapped, 0))
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_mask_projects_a_part_of_the_parameters():
    mask = {"a": True, "b": False}
    rule = optax.chain(
        optax.sgd(1.0), optax.masked(radazo.projected(optax.identity(), BOX), mask)
    )
    optimizer = radazo.with_estimator(estimator(), rule, 0)
    x = {"a": jnp.full(2, 0.2), "b": jnp.full(2, 0.2)}
    fn = lambda x: -9 * jnp.sum(x["a"]) - 9 * jnp.sum(x["b"])
    state = optimizer.init(x)
    update = jax.jit(functools.partial(optimizer.update, value_fn=fn))
    for _ in range(3):
        updates, state = update(None, state, x)
        x = optax.apply_updates(x, updates)
    assert np.all(np.abs(x["a"]) <= 0.25)
    assert np.all(x["b"] > 0.25)


def test_projections_of_optax_and_keywords_of_the_function():
    optimizer = radazo.zo_psgd(
        0.1, optax.projections.projection_non_negative, estimator(), key=0
    )
    x = jnp.zeros(3)
    updates, state = optimizer.update(
        None,
        optimizer.init(x),
        x,
        value_fn=lambda x, batch: jnp.sum(batch * x),
        batch=jnp.array([1.0, 1.0, -1.0]),
    )
    assert np.all(updates >= 0)
    assert state.num_values == K + 1


def test_minimize_runs_a_projected_optimizer():
    optimizer = radazo.projected(
        radazo.radazo(0.05, key=0), radazo.projections.simplex()
    )
    result = radazo.minimize(value_fn, jnp.full(D, 1 / D), optimizer, 30)
    assert result.values[-1] < result.values[0]
    np.testing.assert_allclose(jnp.sum(result.params), 1, rtol=1e-6)


def test_nothing_seen_moves_nothing():
    for make in (radazo.zo_psgd, radazo.projected_zo_adamm):
        optimizer = make(0.1, radazo.projections.l2_ball(1.0), key=0)
        x = jnp.array([0.5, 0.5])
        fn = lambda x: jnp.nan * jnp.sum(x)
        update = jax.jit(functools.partial(optimizer.update, value_fn=fn))
        updates, _ = update(None, optimizer.init(x), x)
        np.testing.assert_array_equal(updates, np.zeros(2))


V, T = ValueError, TypeError
A_SET = "Pass a projection, e.g. `radazo.projections.box(-1.0, 1.0)`."
STEP = "It is the size of a step or a schedule of it"
sgd, make = optax.sgd(0.1), radazo.projected
MISTAKES = {
    "a number for an optimizer": Mistake(
        lambda: make(0.1, BOX),
        T,
        "projected(optimizer",
        "be an optax.GradientTransformation",
        "0.1.",
        "Pass a rule, e.g. `optax.sgd(learning_rate)`",
    ),
    "bounds for a projection": Mistake(
        lambda: make(sgd, (0, 1)),
        T,
        "projected(projection",
        "be a function",
        "(0, 1).",
        A_SET,
    ),
    "weights for a metric": Mistake(
        lambda: make(sgd, BOX, 2.0),
        T,
        "projected(metric",
        "be a function",
        "2.0.",
        "It takes the optimizer's state",
    ),
    "no parameters": Mistake(
        lambda: make(sgd, BOX).update(jnp.ones(2), sgd.init(jnp.ones(2))),
        V,
        "projected(...).update(params",
        "be the current parameters",
        "None.",
        "The step starts there",
    ),
    "a rate below zero": Mistake(
        lambda: radazo.zo_psgd(-1.0, BOX, key=0),
        V,
        "zo_psgd(learning_rate",
        "be finite and at least 0",
        "-1.0.",
        STEP,
    ),
    "no set": Mistake(
        lambda: radazo.projected_zo_adamm(0.1, None, key=0),
        T,
        "projected_zo_adamm(projection",
        "be a function",
        "None.",
        A_SET,
    ),
    "a moment that never forgets": Mistake(
        lambda: radazo.projected_zo_adamm(0.1, BOX, key=0, b2=1.0),
        V,
        "projected_zo_adamm(b2",
        "be in [0, 1)",
        "1.0.",
        "It is the share of the past",
    ),
    "an estimator not called": Mistake(
        lambda: radazo.zo_psgd(0.1, BOX, radazo.sphere_estimator, key=0),
        T,
        "zo_psgd(estimator",
        "be an Estimator",
        "<function sphere_estimator",
        "Pass an estimator, e.g. `radazo.sphere_estimator()`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_explained(mistake):
    explained(mistake)
