"""Sweeps of signs, against the rows of Hadamard's matrix as scipy makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import radazo
from radazo import core, flat, random
from radazo.estimators import hadamard


def steps_of(dim, num_directions, num_steps, seed=5):
    """The (K, d) directions, up to their length, and the keys of consecutive steps."""
    params = jnp.zeros(dim)
    layout = flat.layout("hadamard", params)

    @jax.jit
    def drawn(state, count):
        words = jnp.stack([jnp.uint32(seed), count.astype(jnp.uint32)])
        step = core.Step(words, layout, params, jnp.float32(0.1))
        sweep = hadamard.sweep_of(step, state, num_directions)
        ks = jnp.arange(num_directions, dtype=jnp.uint32)
        state = hadamard.HadamardState(count + 1, sweep.key)
        weights = jnp.cos(1 + ks.astype(jnp.float32))
        return state, (jax.vmap(sweep.draw)(ks), sweep.key, sweep.weighted_sum(weights))

    counts = jnp.arange(num_steps, dtype=jnp.int32)
    state = hadamard.HadamardState(jnp.int32(0), jnp.zeros(2, jnp.uint32))
    return jax.device_get(jax.lax.scan(drawn, state, counts)[1])


def gram(us):
    rows = us.reshape(-1, us.shape[-1]) / np.sqrt(us.shape[-1])
    return rows @ rows.T


@pytest.mark.parametrize(("dim", "num_directions"), [(16, 4), (13, 4), (100, 5)])
def test_a_sweep_is_a_signed_part_of_the_matrix_of_hadamard(dim, num_directions):
    size = scipy.linalg.hadamard(1 << (dim - 1).bit_length())
    per_sweep = len(size) // num_directions
    us, keys, _ = steps_of(dim, num_directions, 2 * per_sweep)
    assert {*np.unique(us)} == {-1, 1}
    for sweep in range(2):
        steps = slice(sweep * per_sweep, (sweep + 1) * per_sweep)
        assert len(np.unique(keys[steps], axis=0)) == 1
        own = random.fold_in(jnp.asarray(keys[steps][0]), 0)
        signs = np.asarray(random.signs(own, dim, jnp.float32, 64))
        rows = {tuple(row) for row in us[steps].reshape(-1, dim) * signs}
        assert rows <= {tuple(row) for row in size[:, :dim].astype(float)}
        assert len(rows) == per_sweep * num_directions
        off = gram(us[steps]) - np.eye(per_sweep * num_directions)
        if dim == len(size):
            assert not off.any()
    assert not np.array_equal(us[0], us[per_sweep])


def test_inner_products_have_the_mean_square_that_is_documented():
    dim, num_directions = 13, 4
    us, _, _ = steps_of(dim, num_directions, 4)
    off = gram(us) - np.eye(16)
    expected = (16 - dim) / (dim * (16 - 1))
    np.testing.assert_allclose(np.sum(off**2) / (16 * 15), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dim", "num_directions"),
    # Words of signs are drawn in parts, which d fills in different ways.
    [(6, 10), (100, 7), (1, 3), *((32 * n - 16, 2) for n in range(311, 315))],
)
def test_the_matrix_product_is_the_sum_over_directions(dim, num_directions):
    us, _, sums = steps_of(dim, num_directions, 3)
    weights = np.cos(1.0 + np.arange(num_directions))
    expected = weights @ us / np.sqrt(dim)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)


def test_directions_are_unbiased():
    """E[u uᵀ] = I / d, within five standard errors over 4,000 sweeps of one step."""
    num, dim = 4000, 5
    us, _, _ = steps_of(dim, 8, num)
    products = np.einsum("tki,tkj->tij", us, us) / 8
    error = np.sqrt(np.maximum(products.var(axis=0), 1e-12) / num)
    assert np.all(np.abs(products.mean(axis=0) - np.eye(dim)) <= 5 * error + 1e-6)


@pytest.mark.parametrize("dim", [13, 16])
def test_the_mean_over_a_sweep_is_exact_on_a_linear_function(dim):
    slope = jnp.arange(1.0, dim + 1.0)
    estimator = radazo.hadamard_estimator(num_directions=4, smoothing=10.0)
    optimizer = radazo.with_estimator(estimator, optax.sgd(1.0), key=3)
    run = radazo.minimize(lambda x: x @ slope, jnp.zeros(dim), optimizer, 8)
    np.testing.assert_allclose(run.params, -8 * slope, rtol=1e-3)


def test_in_place_continues_a_sweep_as_the_estimator_does():
    """P = 16 and K = 3: sweeps of five steps, of which 12 steps take parts of three."""
    f = lambda x: jnp.sum((x - 1) ** 4)
    options = {"num_directions": 3, "difference": radazo.central, "smoothing": 0.1}
    rule, start = optax.sgd(0.01), jnp.linspace(0, 2, 11)
    estimator = radazo.hadamard_estimator(**options)
    dense = radazo.with_estimator(estimator, rule, key=4)
    sampler = radazo.directions.hadamard
    lazy = radazo.in_place(rule, key=4, sampler=sampler, **options)
    runs = [radazo.minimize(f, start, optimizer, 12) for optimizer in (dense, lazy)]
    np.testing.assert_allclose(runs[0].params, runs[1].params, rtol=1e-5)
    assert float(jnp.max(jnp.abs(runs[0].params - start))) > 0.1


def test_a_sweep_that_was_interrupted_goes_on():
    f = lambda x: jnp.sum((x - 1) ** 2)
    estimator = radazo.hadamard_estimator(num_directions=3)
    optimizer = radazo.radazo(0.05, estimator, key=0)
    whole = radazo.minimize(f, jnp.zeros(20), optimizer, 13)
    half = radazo.minimize(f, jnp.zeros(20), optimizer, 6)
    rest = radazo.minimize(f, half.params, optimizer, 7, state=half.state)
    np.testing.assert_array_equal(rest.params, whole.params)


def test_a_sweep_goes_on_from_a_checkpoint(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    f = lambda x: jnp.sum((x - 1) ** 2)
    estimator = radazo.hadamard_estimator(num_directions=3)
    optimizer = radazo.zo_sgd(0.05, estimator, key=0)
    whole = radazo.minimize(f, jnp.zeros(20), optimizer, 13)
    options = {"checkpoints": tmp_path}
    radazo.minimize(f, jnp.zeros(20), optimizer, 6, **options)
    rest = radazo.minimize(f, jnp.zeros(20), optimizer, 13, **options)
    np.testing.assert_array_equal(rest.params, whole.params)


def quadratic(x):
    return jnp.sum(x**2) / 2


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("f", [quadratic, rosenbrock])
def test_a_step_holds_at_most_two_copies_of_the_parameters(f):
    # XLA of later versions was seen to hold 2.4 and 3.4.
    dim, copies = 100_000, 2 if jax.__version_info__ < (0, 11) else 4
    estimator = radazo.hadamard_estimator(num_directions=50)
    optimizer = radazo.zo_sgd(0.1, estimator, key=0)

    def step(x, state):
        updates, state = optimizer.update(None, state, x, value_fn=f)
        return x + updates, state

    x = jax.ShapeDtypeStruct((dim,), jnp.float32)
    state = jax.eval_shape(optimizer.init, x)
    memory = jax.jit(step).lower(x, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= copies * 4 * dim


def test_a_quadratic_falls_further_in_a_sweep_than_along_independent_signs():
    start = jax.random.normal(jax.random.key(1), (64,))
    ends = {}
    for make in (radazo.hadamard_estimator, radazo.rademacher_estimator):
        optimizer = radazo.zo_sgd(4 / 64, make(num_directions=4), key=2)
        run = radazo.minimize(lambda x: x @ x / 2, start, optimizer, 32)
        ends[make] = run.values[-1] / run.values[0]
    assert ends[radazo.hadamard_estimator] < 0.05 * ends[radazo.rademacher_estimator]
