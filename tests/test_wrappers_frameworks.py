"""The same steps in the training loops of flax, equinox, optimistix and jax itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from conftest import half_sum_of_squares
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import radazo

ESTIMATOR = radazo.coordinate_estimator(num_directions=8)
SEED = 7
X = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
Y = 0.5 * X - 0.25


def start():
    return {"a": jnp.array([3.0, -2.0]), "b": jnp.array([1.0])}


def complete(seed=SEED):
    return radazo.zo_sgd(0.1, ESTIMATOR, key=seed)


def scanned(optimizer, params, num_steps, value_fn=half_sum_of_squares):
    """The parameters and the state after `num_steps` steps."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), state), None

    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, length=num_steps)[0]


def apply(params, x):
    return x @ params["kernel"] + params["bias"][None]


def linear():
    return {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}


def mean_square(params, x, y):
    return jnp.mean((apply(params, x) - y) ** 2)


def test_a_flax_train_state_descends_with_the_plain_function():
    state = TrainState.create(apply_fn=apply, params=linear(), tx=optax.sgd(0.3))
    value_and_grad = radazo.value_and_grad(mean_square, ESTIMATOR)

    @jax.jit
    def run(state):
        def step(state, key):
            value, gradient = value_and_grad(key, state.params, X, Y)
            return state.apply_gradients(grads=gradient), value

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(SEED), 100))

    state, values = run(state)
    assert mean_square(state.params, X, Y) < 0.01 * values[0]


def test_a_flax_train_state_drops_the_value_fn_and_is_told_the_right_form():
    state = TrainState.create(apply_fn=apply, params=linear(), tx=complete())
    with pytest.raises(ValueError, match=r"(?s)value_fn.*TrainState.*value_and_grad"):
        state.apply_gradients(grads=linear(), value_fn=half_sum_of_squares)


def nnx_value_fn(graphdef):
    def value_fn(state, x, y):
        return jnp.mean((nnx.merge(graphdef, state)(x) - y) ** 2)

    return value_fn


def test_an_nnx_model_split_and_merged_descends_in_a_scan():
    graphdef, params = nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), nnx.Param)
    value_fn = nnx_value_fn(graphdef)

    def bound(state):
        return value_fn(state, X, Y)

    before = bound(params)
    run = jax.jit(lambda params: scanned(complete(), params, 200, bound))
    assert bound(run(params)[0]) < 0.05 * before


def test_an_nnx_optimizer_passes_value_fn_and_batch_on():
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    value_fn = nnx_value_fn(graphdef)
    transform = complete()
    expected, _ = transform.update(
        None, transform.init(params), params, value_fn=value_fn, x=X, y=Y
    )
    expected = nnx.to_pure_dict(optax.apply_updates(params, expected))
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    optimizer.update(model, params, value_fn=value_fn, x=X, y=Y)
    reached = nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), reached, expected
    )


def equinox_parts():
    model = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    return eqx.partition(model, eqx.is_inexact_array)


def equinox_value(params, static, x, y):
    return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)


def test_a_partitioned_equinox_model_descends_under_filter_jit():
    params, static = equinox_parts()
    optimizer = complete()
    traces = []

    def value_fn(params, x, y):
        traces.append(1)
        return equinox_value(params, static, x, y)

    @eqx.filter_jit
    def step(params, state, value_fn):
        updates, state = optimizer.update(
            None, state, params, value_fn=value_fn, x=X, y=Y
        )
        return eqx.apply_updates(params, updates), state

    before = equinox_value(params, static, X, Y)
    state = optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state, value_fn)
    assert equinox_value(params, static, X, Y) < 0.1 * before
    assert len(traces) == 1


def test_filter_jit_of_update_itself_takes_a_function_and_batches_without_recompiling():
    params, static = equinox_parts()
    traces = []

    def value_fn(params, x, y):
        traces.append(1)
        return equinox_value(params, static, x, y)

    optimizer = complete()
    update = eqx.filter_jit(optimizer.update)
    state = optimizer.init(params)
    for scale in (1.0, 2.0, 3.0):
        _, state = update(None, state, params, value_fn=value_fn, x=X, y=scale * Y)
    assert len(traces) == 1


def test_a_whole_equinox_model_is_told_to_be_partitioned():
    model = eqx.nn.MLP(1, 1, 2, 1, key=jax.random.key(0))
    with pytest.raises(
        TypeError, match=r"(?s)have arrays for leaves.*equinox.partition"
    ):
        complete().init(model)


def test_optimistix_minimises_a_differentiable_function_with_estimated_gradients():
    solver = optimistix.OptaxMinimiser(complete(), rtol=1e-3, atol=1e-4)
    with jax.numpy_dtype_promotion("standard"):
        solution = optimistix.minimise(
            lambda y, args: half_sum_of_squares(y), solver, start(), max_steps=500
        )
    assert half_sum_of_squares(solution.value) < 1e-4


def test_optimistix_asks_for_a_derivative_even_so():
    def host(y, args):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda y: np.float32(y @ y), shape, y)

    solver = optimistix.OptaxMinimiser(complete(), rtol=1e-3, atol=1e-4)
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ValueError, match="JVP"),
    ):
        optimistix.minimise(host, solver, jnp.ones(2), max_steps=3)


def test_jit_of_update_takes_a_partial_and_compiles_once_for_all_batches():
    traces = []

    def scaled(scale, params):
        traces.append(1)
        return scale * half_sum_of_squares(params)

    optimizer, params = complete(), start()
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    steps = []
    for scale in (1.0, 2.0):
        value_fn = jax.tree_util.Partial(scaled, jnp.float32(scale))
        steps.append(update(None, state, params, value_fn=value_fn)[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(2 * x, y, rtol=1e-6), *steps)
    assert len(traces) == 1
    assert update._cache_size() == 1


def test_a_gradient_goes_through_an_update():
    def after(scale, params):
        optimizer = complete()
        updates, _ = optimizer.update(
            None,
            optimizer.init(params),
            params,
            value_fn=lambda p: scale * half_sum_of_squares(p),
        )
        return half_sum_of_squares(optax.apply_updates(params, updates))

    slope = jax.jit(jax.grad(after))(1.0, start())
    difference = (after(1.01, start()) - after(0.99, start())) / 0.02
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_eval_shape_of_init_and_update_sees_what_they_return():
    optimizer, params = complete(), start()
    shapes = jax.eval_shape(lambda: params)
    state = jax.eval_shape(optimizer.init, shapes)
    update = jax.eval_shape(
        lambda s, p: optimizer.update(None, s, p, value_fn=half_sum_of_squares),
        state,
        shapes,
    )
    actual = optimizer.update(
        None, optimizer.init(params), params, value_fn=half_sum_of_squares
    )
    described = jax.tree.map(lambda x: (x.shape, x.dtype), update)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype), actual)


@pytest.mark.parametrize("rule", [optax.adam(0.1), radazo.scale_by_radazo()])
def test_init_on_abstract_parameters_gives_the_state_of_real_ones(rule):
    optimizer = radazo.with_estimator(ESTIMATOR, rule, SEED)
    shapes = jax.eval_shape(start)
    jax.tree.map(
        np.testing.assert_array_equal, optimizer.init(shapes), optimizer.init(start())
    )


def test_map_params_finds_the_moments_and_nothing_else():
    optimizer, params = radazo.radazo(0.1, ESTIMATOR, key=SEED), start()
    state = optimizer.init(params)
    marked = optax.tree.map_params(
        optimizer, lambda _: "moment", state, transform_non_params=lambda _: "other"
    )
    marks = jax.tree.leaves(marked)
    assert marks.count("moment") == 2 * len(jax.tree.leaves(params))
    assert set(jax.tree.leaves(optax.tree.get(marked, "mu"))) == {"moment"}


def test_a_host_function_is_called_once_a_value_in_a_jitted_scan():
    calls = []

    def on_host(p):
        calls.append(1)
        return np.float32(sum(np.sum(np.square(x)) for x in p.values()))

    def value_fn(params):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(on_host, shape, params, vmap_method="sequential")

    num_steps = 20
    run = jax.jit(lambda params: scanned(complete(), params, num_steps, value_fn))
    params, state = jax.block_until_ready(run(start()))
    assert len(calls) == num_steps * 9
    assert state.num_values == num_steps * 9
    assert half_sum_of_squares(params) < 0.1 * half_sum_of_squares(start())


def test_vmapped_smoothings_are_estimates_with_each_of_them():
    def gradient(smoothing):
        estimator = radazo.coordinate_estimator(smoothing=smoothing)
        return radazo.value_and_grad(half_sum_of_squares, estimator)(SEED, start())[1]

    smoothings = jnp.array([0.5, 2.0])
    together = jax.jit(jax.vmap(gradient))(smoothings)
    single = [jax.jit(gradient)(smoothing) for smoothing in smoothings]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *single)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), together, stacked
    )
    assert not np.array_equal(together["a"][0], together["a"][1])


def seeds_in(state, num_seeds):
    keys = jax.random.split(jax.random.key(SEED), num_seeds)
    state = jax.tree.map(lambda x: jnp.stack([x] * num_seeds), state)
    return state._replace(key_data=jax.random.key_data(keys))


def mesh():
    return Mesh(np.array(jax.devices()), ("devices",))


def step_of(optimizer):
    def step(state, params):
        updates, state = optimizer.update(
            None, state, params, value_fn=half_sum_of_squares
        )
        return optax.apply_updates(params, updates), state

    return step


def test_states_vmapped_over_seeds_and_sharded_over_devices_are_those_of_one_device():
    optimizer, params = complete(), start()
    states = seeds_in(optimizer.init(params), 8)
    step = jax.jit(jax.vmap(step_of(optimizer), in_axes=(0, None)))
    expected, _ = step(states, params)
    sharding = NamedSharding(mesh(), PartitionSpec("devices"))
    states = jax.device_put(states, sharding)
    reached, _ = step(
        states, jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))
    )
    assert len(reached["a"].sharding.device_set) == 8
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), reached, expected
    )


@pytest.mark.gate
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_seeds_is_vmap_over_seeds(check_vma):
    optimizer, params = complete(), start()
    states = seeds_in(optimizer.init(params), 8)
    steps = jax.vmap(step_of(optimizer), in_axes=(0, None))
    over = PartitionSpec("devices")
    sharded = jax.shard_map(
        steps,
        mesh=mesh(),
        in_specs=(over, PartitionSpec()),
        out_specs=over,
        check_vma=check_vma,
    )
    reached, _ = jax.jit(sharded)(states, params)
    expected, _ = steps(states, params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), reached, expected
    )


def test_data_parallel_batches_give_every_device_the_estimate_of_the_whole_batch():
    value_and_grad = radazo.value_and_grad(mean_square, ESTIMATOR)

    def parallel(params, x, y):
        def value_fn(params, x, y):
            return jax.lax.pmean(mean_square(params, x, y), "devices")

        return radazo.value_and_grad(value_fn, ESTIMATOR)(SEED, params, x, y)

    over = PartitionSpec("devices")
    sharded = jax.shard_map(
        parallel,
        mesh=mesh(),
        in_specs=(PartitionSpec(), over, over),
        out_specs=PartitionSpec(),
    )
    _, reached = jax.jit(sharded)(linear(), X, Y)
    _, expected = value_and_grad(SEED, linear(), X, Y)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
        reached,
        expected,
    )
