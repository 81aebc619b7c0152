"""One step by every evaluator: local, chunks, a mesh, `ask` and `tell`, a replay."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import ESTIMATORS
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

PARAMS = {"a": jnp.linspace(0.0, 1.0, 4), "b": jnp.ones(2)}
NUM_STEPS = 3
# A Gaussian process, or the inverse of a Gram matrix, amplifies a last digit.
AMPLIFIED = {"trajectory": 2e-2, "interpolation": 1e-4}
ROWS = [
    pytest.param(
        name, marks=() if name in ("sphere", "trajectory") else [pytest.mark.gate]
    )
    for name in ESTIMATORS
]


def value_fn(params):
    """A smooth function; its last digit depends on the program that evaluates it."""
    return jnp.sum((params["a"] - 1) ** 2) + jnp.sum(jnp.cos(params["b"]))


def make(name, **options):
    row = ESTIMATORS[name]
    estimator = row.make(num_directions=6 if "coordinate" in name else 2, **options)
    return radazo.with_estimator(estimator, optax.sgd(0.05), key=3)


def local(optimizer):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    run = PARAMS, optimizer.init(PARAMS)
    for _ in range(NUM_STEPS):
        run = step(*run)
    return run


def by_ask_and_tell(optimizer):
    run = PARAMS, optimizer.init(PARAMS)
    for _ in range(NUM_STEPS):
        queries = radazo.ask(optimizer, *run)
        values = {
            id_: (queries.function(id_) or value_fn)(queries.point(id_))
            for id_ in reversed(queries.ids)
        }
        run = radazo.tell(optimizer, *run, values)
    return run


def assert_close(one, other, rtol):
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    jax.tree.map(close, one[0], other[0])
    for name in ("count", "num_values", "num_dropped", "num_skipped"):
        assert getattr(one[1], name) == getattr(other[1], name), name


def on_devices(number):
    devices = np.array(jax.devices()[:number])
    mesh = Mesh(devices, ("directions",))
    return NamedSharding(mesh, PartitionSpec("directions"))


@pytest.mark.parametrize("name", ROWS)
def test_a_step_does_not_depend_on_who_evaluates_it(name, tmp_path):
    # A difference amplifies the rounding of a value by 1 / smoothing.
    rtol = AMPLIFIED.get(name, 1e-4)
    run = local(make(name))
    assert np.any(np.asarray(run[0]["a"]) != np.asarray(PARAMS["a"]))
    if ESTIMATORS[name].chunks:
        assert_close(local(make(name, chunk_size=2)), run, rtol)
    optimizer = make(name)
    path = tmp_path / "run.journal"
    kept = radazo.minimize(value_fn, PARAMS, optimizer, NUM_STEPS, journal=path)
    assert_close((kept.params, kept.state), run, rtol)
    again = radazo.journal.replay(path, optimizer, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, again, (kept.params, kept.state))
    if name == "forward mode":
        return  # A derivative along a direction is no value at a point.
    assert_close(by_ask_and_tell(optimizer), run, rtol)
    meshes = [local(make(name, sharding=on_devices(n))) for n in (1, 8)]
    for other in meshes:
        assert_close(other, run, rtol)


@pytest.mark.parametrize("name", sorted({*ESTIMATORS} - {"forward mode"}))
def test_the_table_says_how_many_queries_there_are(name):
    row = ESTIMATORS[name]
    optimizer = radazo.radazo(0.1, row.make(num_directions=2), key=0)
    params = {"x": jnp.zeros(6)}
    queries = radazo.ask(optimizer, params, optimizer.init(params))
    assert len(queries.ids) == row.num_values(2)


def third_order(base, along, smoothing):
    """A slope whose error is of third order, from two points and f(x)."""
    near = jnp.sum(along[1] - base) / (smoothing / 3)
    far = jnp.sum(along[0] - base) / smoothing
    return (3 * near - far) / 2, jnp.sum(base)


def test_a_difference_of_ones_own_finds_its_values_by_their_index():
    difference = radazo.differences.Difference(
        (1.0, 1 / 3), third_order, at_params=True
    )
    found = []
    for sharding in (None, on_devices(8)):
        estimator = radazo.sphere_estimator(
            difference=difference, num_directions=3, sharding=sharding
        )
        optimizer = radazo.with_estimator(estimator, optax.sgd(0.05), key=0)
        found += [local(optimizer), by_ask_and_tell(optimizer)]
    for other in found[1:]:
        assert_close(other, found[0], 1e-3)
    assert found[0][1].num_values == NUM_STEPS * 7
    assert np.any(np.asarray(found[0][0]["a"]) != np.asarray(PARAMS["a"]))


@pytest.mark.gate
def test_optimizers_with_an_estimator_of_their_own_work_by_ask_and_tell_and_replay(
    tmp_path,
):
    optimizers = {
        "zo_adamu": radazo.zo_adamu(0.02, 5, key=3, boundaries=(1, 3)),
        "pars": radazo.pars(20.0, key=3, num_directions=3),
        "sign_search": radazo.sign_search(-1.0, {"a": 2.0, "b": jnp.ones(2)}),
        "in_place": radazo.in_place(optax.sgd(0.02), key=3, num_directions=2),
        "zo_auto": radazo.zo_auto(key=3, num_directions=3),
    }
    for name, optimizer in optimizers.items():
        plain = radazo.minimize(value_fn, PARAMS, optimizer, NUM_STEPS)
        run = plain.params, plain.state
        assert_close(by_ask_and_tell(optimizer), run, 2e-4)
        path = tmp_path / name
        kept = radazo.minimize(value_fn, PARAMS, optimizer, NUM_STEPS, journal=path)
        assert_close((kept.params, kept.state), run, 2e-4)
        again = radazo.journal.replay(path, optimizer, PARAMS)
        jax.tree.map(np.testing.assert_array_equal, again, (kept.params, kept.state))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["trajectory", "snapshot", "interpolation"])
def test_a_pool_evaluates_every_estimator(name):
    optimizer = make(name)
    with radazo.pool.evaluation_pool(
        value_fn, ThreadPoolExecutor, max_concurrent=2
    ) as pool:
        result = pool.minimize(PARAMS, optimizer, NUM_STEPS)
    assert_close((result.params, result.state), by_ask_and_tell(optimizer), 1e-6)


def test_in_place_goes_on_from_its_checkpoint(tmp_path):
    optimizer = radazo.in_place(optax.sgd(0.02), key=3, num_directions=2)
    whole = radazo.minimize(value_fn, PARAMS, optimizer, 6)
    for num_steps in (3, 6):
        halves = radazo.minimize(
            value_fn, PARAMS, optimizer, num_steps, checkpoints=tmp_path
        )
    jax.tree.map(np.testing.assert_array_equal, halves.params, whole.params)
