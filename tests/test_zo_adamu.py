"""ZO-AdaMU is its algorithm over all three phases, and an optimizer like the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Mistake, explained, half_sum_of_squares

import radazo

D, ETA, SMOOTHING, SEED = 6, 0.01, 0.05, 3
T1, T2, NUM_STEPS = 4, 10, 14
PARAMS = {
    "a": np.array([1.0, -2.0, 0.5]),
    "b": (np.array([[0.3, -0.7]]), np.array(2.0)),
}


def f(x):
    """A function of all coordinates of a NumPy or JAX vector jointly."""
    c = np.linspace(0.5, 1.5, D)
    return ((x - 1) ** 2 * c).sum() / 2 + x.sum() ** 4 / 50 + x[0] * x[5]


def flat_of(params):
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])


def zo_adamu(**options):
    options = {"smoothing": SMOOTHING, "boundaries": (T1, T2), "key": SEED} | options
    return radazo.zo_adamu(ETA, NUM_STEPS, **options)


def run(optimizer, params, value_fn=lambda p: f(flat_of(p)), num_steps=NUM_STEPS):
    """Where it leads, and the iterates and states on the way."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    carry = params, optimizer.init(params)
    return jax.jit(lambda c: jax.lax.scan(step, c, length=num_steps))(carry)


def start(dtype=None):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)


def normals():
    """(T, 2, d): the two draws of each step."""

    def of_step(t):
        key = jax.random.fold_in(jax.random.key(SEED), t)
        return radazo.directions.sample_directions(
            key, jnp.zeros(D), radazo.directions.gaussian, num_directions=2
        )

    return np.asarray(jax.vmap(of_step)(jnp.arange(NUM_STEPS, dtype=jnp.uint32)))


def share(t, last):
    if t < T1:
        return 1.0
    if t >= T2:
        return last
    return last + (1 - last) * (1 + np.cos(np.pi * (t - T1) / (T2 - T1))) / 2


def algorithm_1(last, eps_root, weight_decay):
    """Iterates, values and momenta, in the letters of the paper."""
    theta = np.asarray(flat_of(PARAMS))
    m, thetas, values, ms = np.zeros(D), [], [], []
    for t, (n, n_hat) in enumerate(normals()):
        alpha, beta1, beta2 = (share(t, x) for x in last)
        z_dot = np.sqrt(alpha) * n
        z_hat = m + np.sqrt(1 - alpha) * n_hat
        z = beta1 * z_dot + (1 - beta1) * z_hat
        plus, minus = f(theta + SMOOTHING * z), f(theta - SMOOTHING * z)
        c = (plus - minus) / (2 * SMOOTHING)
        v = beta2 * z_dot**2 + (1 - beta2) * z_hat**2
        theta = theta - ETA * (c * z / np.sqrt(v + eps_root) + weight_decay * theta)
        m = np.sign(c) * z
        thetas.append(theta)
        values.append((plus + minus) / 2)
        ms.append(m)
    return np.array(thetas), np.array(values), np.array(ms)


CASES = {
    "defaults": ((0.5, 0.9, 0.01), 1e-8, 0.0),
    "others": ((0.2, 0.4, 0.7), 0.3, 0.1),
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("last", "eps_root", "weight_decay"), CASES.values(), ids=CASES
)
@pytest.mark.usefixtures("x64")
def test_it_is_algorithm_1_in_all_phases(last, eps_root, weight_decay):
    options = dict(zip(("new_variance", "b1", "b2"), last, strict=True))
    if eps_root == 1e-8:
        options = {}
    else:
        options |= {"eps_root": eps_root, "weight_decay": weight_decay}
    _, (params, states) = run(zo_adamu(**options), start())
    thetas, values, ms = algorithm_1(last, eps_root, weight_decay)
    ours = jax.vmap(flat_of)(params)
    assert np.max(np.abs(thetas[-1] - thetas[0])) > 10 * ETA
    np.testing.assert_allclose(ours, thetas, rtol=0, atol=1e-11)
    np.testing.assert_allclose(states.last_value, values, rtol=1e-11)
    np.testing.assert_allclose(states.estimator.momentum, ms, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(states.num_values, 2 * np.arange(1, NUM_STEPS + 1))


@pytest.mark.usefixtures("x64")
def test_the_boundaries_follow_the_number_of_steps():
    def last(**options):
        return run(radazo.zo_adamu(ETA, 14, key=0, **options), start())[0][0]

    jax.tree.map(np.testing.assert_array_equal, last(), last(boundaries=(2, 11)))


@pytest.mark.gate
def test_a_run_of_one_step_has_boundaries():
    optimizer = radazo.zo_adamu(ETA, 1, key=0)
    (params, _), _ = run(optimizer, start(), num_steps=1)
    assert np.all(np.isfinite(flat_of(params)))


def test_it_descends():
    optimizer = radazo.zo_adamu(0.03, 300, key=0)
    (params, _), _ = run(optimizer, start(), half_sum_of_squares, 300)
    assert half_sum_of_squares(params) < 1e-3 * half_sum_of_squares(start())


def test_the_state_is_one_copy_of_the_parameters():
    params = {"a": jnp.zeros((100, 20)), "b": jnp.zeros(10, jnp.bfloat16)}
    state = zo_adamu().init(params)
    momentum = state.estimator.momentum
    assert momentum.shape == (2010,)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) - momentum.nbytes < 100


@functools.cache
def tally():
    """A step on a function that is not finite for x₀ > 0, and its calls."""
    calls = []

    def on_the_host(x):
        calls.append(1)
        return np.float32(np.sum(x))

    def value_fn(x, scale):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return scale * jax.pure_callback(on_the_host, shape, x)

    optimizer = zo_adamu()

    @jax.jit
    def step(params, state, scale):
        return optimizer.update(None, state, params, value_fn=value_fn, scale=scale)

    return optimizer, step, calls


def test_two_values_are_taken_and_keywords_reach_the_function():
    optimizer, step, calls = tally()
    calls.clear()
    x = jnp.ones(4)
    once, state = step(x, optimizer.init(x), jnp.float32(1))
    jax.block_until_ready(state)
    assert len(calls) == int(state.num_values) == 2
    twice, _ = step(x, optimizer.init(x), jnp.float32(2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 3e38])
def test_where_a_value_is_not_finite_nothing_moves(bad):
    optimizer, step, _ = tally()
    x = jnp.ones(4)
    _, before = step(x, optimizer.init(x), jnp.float32(1))
    updates, after = step(x, before, jnp.float32(bad))
    assert not np.any(updates)
    np.testing.assert_array_equal(after.estimator.momentum, before.estimator.momentum)
    counts = after.num_skipped, after.num_dropped, after.count, after.estimator.count
    assert [int(x) for x in counts] == [1, 1, 2, 2]


def test_a_flat_function_moves_nothing_and_the_momentum_goes_on():
    optimizer, step, _ = tally()
    updates, state = step(jnp.ones(4), optimizer.init(jnp.ones(4)), jnp.float32(0))
    assert not np.any(updates)
    assert np.all(state.estimator.momentum)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_and_a_mask(dtype):
    params = start(dtype) | {"none": None}
    mask = {"a": True, "b": False, "none": True}
    optimizer = zo_adamu(mask=mask)
    (reached, state), _ = run(optimizer, params, half_sum_of_squares, 3)
    assert jax.tree.map(jnp.result_type, reached) == jax.tree.map(
        jnp.result_type, params
    )
    assert np.any(reached["a"] != params["a"])
    jax.tree.map(np.testing.assert_array_equal, reached["b"], params["b"])
    assert state.estimator.momentum.shape == (3,)
    assert state.estimator.momentum.dtype == jnp.float32


@pytest.mark.gate
def test_outside_of_jit_a_step_is_the_step():
    optimizer, params = zo_adamu(), jnp.ones(3)
    update = lambda p, s: optimizer.update(None, s, p, value_fn=half_sum_of_squares)
    state = optimizer.init(params)
    plain, jitted = update(params, state), jax.jit(update)(params, state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-3), plain, jitted)


def adamu(*args, **options):
    args = args or (100,)
    return lambda: radazo.zo_adamu(0.1, *args, key=0, **options)


RANGE, NEW = "be in [0, 1]", "It is the share of the new part in the last phase."
PAIR = "Pass None, or e.g. (1024, 16000) for 20000 steps."
MISTAKES = {
    "no steps": ((0,), {}, ValueError, "num_steps", "be at least 1", "0."),
    "half a step": ((0.5,), {}, TypeError, "num_steps", "be an integer", "0.5."),
    "a share": ((), {"new_variance": 1.5}, ValueError, "new_variance", RANGE, "1.5."),
    "b1": ((), {"b1": -0.1}, ValueError, "b1", RANGE, "-0.1."),
    "b2": ((), {"b2": "0.1"}, TypeError, "b2", "be a number", "'0.1'."),
    "eps_root": (
        (),
        {"eps_root": 0.0},
        ValueError,
        "eps_root",
        "be finite and greater than 0",
        "0.0.",
    ),
    "one boundary": (
        (),
        {"boundaries": (3,)},
        TypeError,
        "boundaries",
        "be two numbers of steps",
        "(3,).",
    ),
    "boundaries that fall": (
        (),
        {"boundaries": (3, 3)},
        ValueError,
        "boundaries",
        "be at least 4",
        "3.",
    ),
    "a boundary below zero": (
        (),
        {"boundaries": (-1, 3)},
        ValueError,
        "boundaries",
        "be at least 0",
        "-1.",
    ),
    "smoothing": (
        (),
        {"smoothing": 0.0},
        ValueError,
        "smoothing",
        "be finite and greater than 0",
        "0.0.",
    ),
    "weight_decay": (
        (),
        {"weight_decay": -1.0},
        ValueError,
        "weight_decay",
        "be finite and at least 0",
        "-1.0.",
    ),
}
WAYS_OUT = {
    "num_steps": "The schedule ends with it.",
    "new_variance": NEW,
    "b1": NEW,
    "b2": NEW,
    "eps_root": "It keeps the division from overflowing.",
    "boundaries": PAIR,
    "smoothing": "It is the distance moved along a direction",
    "weight_decay": "It pulls the parameters towards 0.",
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained(case):
    args, options, kind, argument, rule, got = case
    api_name = f"zo_adamu({argument}"
    call = adamu(*args, **options)
    explained(Mistake(call, kind, api_name, rule, got, WAYS_OUT[argument]))
