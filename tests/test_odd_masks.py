"""Masks that are models, and what weight decay leaves alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import half_sum_of_squares

import radazo


def test_a_mask_that_is_an_equinox_model_of_bools_is_a_tree():
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    mask = eqx.tree_at(
        lambda m: m.bias, jax.tree.map(lambda _: True, model), replace=False
    )
    optimizer = radazo.zo_sgd(0.1, radazo.sphere_estimator(mask=mask), key=0)
    state = optimizer.init(model)
    updates, _ = optimizer.update(None, state, model, value_fn=half_sum_of_squares)
    assert np.any(updates.weight)
    assert not np.any(updates.bias)


@pytest.mark.gate
def test_weight_decay_leaves_integers_alone():
    params = {"w": jnp.ones(3), "n": jnp.array([100, 200])}
    optimizer = radazo.radazo(0.1, key=0, weight_decay=0.5)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(None, state, params, value_fn=half_sum_of_squares)
    np.testing.assert_array_equal(updates["n"], [0, 0])
    plain = radazo.radazo(0.1, key=0)
    with jax.numpy_dtype_promotion("standard"):
        other, _ = plain.update(
            None, plain.init(params), params, value_fn=half_sum_of_squares
        )
    np.testing.assert_allclose(updates["w"], other["w"] - 0.05, rtol=1e-5)
