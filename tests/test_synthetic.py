"""The synthetic benchmark at toy sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

import radazo
from benchmarks import methods, sweep
from benchmarks.methods import METHODS
from benchmarks.problems.synthetic import PROBLEMS

ESTIMATOR = radazo.sphere_estimator(num_directions=3)


def swept(rates, **changes):
    plan = sweep.Plan(
        PROBLEMS["levy"].value_fn, ESTIMATOR, 6, "float64", rates, [456, 9], 40
    )
    with tqdm(disable=True) as bar:
        return sweep.run(plan._replace(**changes), bar).values


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_is_the_complete_optimizer(name, cosine, x64):
    values = swept({name: np.array([1e-3, 2e-3])}, cosine=cosine)[name]
    assert values.shape == (2, 2, 41)
    decay = optax.cosine_decay_schedule(2e-3, 40)
    rate = (lambda count: decay(count.astype(float))) if cosine else 2e-3
    start_key, run_key = jax.random.split(jax.random.key(9))
    x = jax.random.normal(start_key, 6, jnp.float32).astype(jnp.float64)
    optimizer = methods.optimizer(METHODS[name], rate, ESTIMATOR, run_key)
    result = radazo.minimize(PROBLEMS["levy"].value_fn, x, optimizer, 40)
    np.testing.assert_allclose(values[1, 1, :-1], result.values[:40], rtol=1e-9)
    end = PROBLEMS["levy"].value_fn(result.params)
    np.testing.assert_allclose(values[1, 1, -1], end, rtol=1e-9)


def test_methods_of_a_sweep_are_not_mixed_up(x64):
    """Each as if it were alone, in whatever order they are named."""
    rates = {name: np.array([1e-3]) for name in METHODS}
    together = swept(rates)
    for name in reversed(METHODS):
        alone = swept({name: rates[name]})[name]
        np.testing.assert_allclose(together[name], alone, rtol=1e-9)


def test_terms_and_value_are_one_function(x64):
    rates = {"radazo": np.array([1e-2])}
    terms = radazo.sphere_estimator(num_directions=3, terms=True)
    by_terms = swept(rates, value_fn=PROBLEMS["levy"].terms_fn, estimator=terms)
    np.testing.assert_allclose(by_terms["radazo"], swept(rates)["radazo"], rtol=1e-6)


def test_meazo_is_one_scalar_second_moment(x64):
    rule = methods.scale_by_scalar_second_moment(0.9, 1e-8)
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(0.0)}
    state = rule.init(gradient)
    nu = 0.0
    for _ in range(3):
        updates, state = rule.update(gradient, state)
        nu = 0.9 * nu + 0.1 * 25 / 3
    np.testing.assert_allclose(state.nu, nu, rtol=1e-14)
    np.testing.assert_allclose(updates["a"], gradient["a"] / math.sqrt(nu + 1e-8))
