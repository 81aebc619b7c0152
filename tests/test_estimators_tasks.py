"""The tasks on which estimators are compared: their objectives against NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

import radazo
from benchmarks import estimators_tasks
from benchmarks.estimators_rows import ROWS, Batches
from benchmarks.estimators_tasks import TASKS
from benchmarks.problems import digits, learning, pendulum

pytestmark = pytest.mark.gate


def test_all_estimators_move_the_same_distance():
    for task in TASKS.values():
        setting = task.setting
        assert math.isclose(setting.each * math.sqrt(task.dim), task.smoothing)
    moves = []

    def value_fn(x):
        jax.debug.callback(lambda x: moves.append(np.linalg.norm(x)), x)
        return jnp.sum(x)

    for row in ROWS.values():
        if row.needs_batches or row.is_reference:
            continue
        estimator = row.make(TASKS["rosenbrock"].setting, **row.options)
        moves.clear()
        x = jnp.zeros(100)
        estimate = lambda x, state, e=estimator: radazo.estimate(
            e, 0, value_fn, x, state
        )
        jax.block_until_ready(jax.jit(estimate)(x, estimator.init(x)))
        jax.effects_barrier()
        far = [x for x in moves if x > 0]
        expected = 1e-3 * row.options.get("times", 1.0)
        np.testing.assert_allclose(np.mean(far), expected, 0.2, err_msg=row.label)


@pytest.mark.parametrize("name", ["rosenbrock", "levy", "logistic", "f1"])
def test_a_task_is_as_large_as_it_says(name):
    task = TASKS[name]
    problem = task.build()
    x, data = problem.start(456)
    assert (x.shape, x.dtype) == ((task.dim,), jnp.float32)
    assert np.isfinite(problem.value_fn(x, **data))
    assert not np.array_equal(x, problem.start(457)[0])


def random_weights(dim):
    return np.random.default_rng(0).normal(size=dim).astype(np.float32)


def test_values_of_batches_cost_their_share():
    setting = TASKS["logistic"].setting
    seen = []

    def value_fn(x, key):
        jax.debug.callback(
            lambda k: seen.append(tuple(np.asarray(k).tolist())),
            jax.random.key_data(key),
        )
        return jnp.sum(x)

    batches = Batches(value_fn, None, 0.1)
    estimator = ROWS["batches"].make(setting._replace(batches=batches, chunk_size=1))
    x = jnp.zeros(setting.dim)
    estimate = jax.jit(
        lambda key: (
            radazo.estimate(estimator, key, None, x, estimator.init(x))[3].num_values
        )
    )
    assert [int(estimate(jax.random.key(i))) for i in (0, 1)] == [2, 2], "of 11"
    jax.effects_barrier()
    assert len(seen) == 22
    assert len(set(seen)) == 2, "one batch a step"


def test_batches_are_of_the_data():
    problem = TASKS["logistic"].build()
    x, data = problem.start(456)
    whole = problem.value_fn(x, **data)
    batches = problem.batches
    np.testing.assert_allclose(batches.full_value_fn(x), whole, rtol=1e-5)
    of_batch = jax.jit(batches.value_fn)
    keys = jax.random.split(jax.random.key(0), 200)
    values = np.array([of_batch(x, key) for key in keys])
    error = values.std() / math.sqrt(200)
    assert error > 0
    assert abs(values.mean() - whole) < 5 * error


def test_cross_entropy_is_that_of_scikit_learn():
    data, x = learning.samples(), random_weights(learning.DIM_LINEAR)
    scores = data["images"].astype(float) @ x[:640].reshape(10, 64).T + x[640:]
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = log_loss(data["labels"], probs) + 0.5e-3 * np.sum(x.astype(float) ** 2)
    found = learning.cross_entropy(jnp.asarray(x), **jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_f1_is_that_of_scikit_learn():
    data, x = learning.samples(), random_weights(learning.DIM_NETWORK)
    weight, out = x[:512].reshape(8, 64), x[512:592].reshape(10, 8)
    hidden = np.tanh(data["images"].astype(float) @ weight.T + x[592:600])
    found = np.argmax(hidden @ out.T + x[600:], axis=1)
    expected = 1 - f1_score(data["labels"], found, average="macro", zero_division=0)
    value = learning.one_minus_f1(jnp.asarray(x), **jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 0.5 < expected < 1


def test_the_attack_asks_the_classifier(monkeypatch):
    weights = digits.init(jax.random.key(0))
    monkeypatch.setattr(estimators_tasks, "trained", lambda *_: weights)
    problem = TASKS["attack"].build()
    x, data = problem.start(456)
    assert x.shape == (TASKS["attack"].dim,)
    assert problem.value_fn(jnp.zeros(64), **data) > 0, "it is right on the image"
    other = problem.start(457)[1]
    assert not np.array_equal(other["image"], data["image"])
    shown = np.clip(np.ravel(data["image"]) + np.clip(x, -0.3, 0.3), 0, 1)
    for name in ("hidden", "out"):
        weight, bias = weights[name]
        shown = np.asarray(weight) @ shown + np.asarray(bias)
        if name == "hidden":
            shown = np.maximum(shown, 0)
    target = int(data["target"])
    expected = np.max(np.delete(shown, target)) - shown[target]
    np.testing.assert_allclose(problem.value_fn(x, **data), expected, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_pendulum_is_that_of_the_equations():
    pytest.importorskip("gymnax")
    x = random_weights(pendulum.DIM)
    keys = jax.random.split(jax.random.key(0), pendulum.NUM_STARTS)
    high = jnp.array([jnp.pi, 1.0])
    uniform = functools.partial(jax.random.uniform, minval=-high, maxval=high)
    angle, speed = np.array(jax.vmap(lambda k: uniform(k, (2,)))(keys), float).T
    weight, out = x[:24].reshape(8, 3).astype(float), x[24:32]
    total = 0.0
    for _ in range(pendulum.NUM_STEPS):
        seen = np.stack([np.cos(angle), np.sin(angle), speed / 8])
        hidden = np.tanh(weight @ seen + x[32:40, None])
        torque = 2 * np.tanh(out @ hidden + x[40])
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        total += wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = np.clip(speed + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
        angle = angle + 0.05 * speed
    value_fn = pendulum.cost()
    found = jax.jit(value_fn)(jnp.asarray(x))
    np.testing.assert_allclose(found, total.mean() / pendulum.NUM_STEPS, rtol=1e-3)
    # Forward mode is a row: the environment must not stop it.
    step = 1e-3
    along = jnp.zeros_like(x).at[0].set(1)
    slope = jax.jvp(value_fn, (jnp.asarray(x),), (along,))[1]
    near = (value_fn(x + step * along) - value_fn(x - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, near, rtol=0.05)
