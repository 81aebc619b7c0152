"""Whoever calls `in_place` wrongly is told where, what and how."""

import jax.numpy as jnp
import optax
import pytest
from conftest import raises

import radazo


def test_what_cannot_be_drawn_in_parts_is_refused():
    with raises(ValueError, "in_place(sampler", "a `part` and an `at`", "sphere"):
        radazo.in_place(optax.sgd(0.1), key=0, sampler=radazo.directions.orthogonal)


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({"optimizer": 3}, TypeError, ("in_place(optimizer", "GradientTransform")),
        ({"sampler": 3}, TypeError, ("in_place(sampler", "DirectionSampler")),
        ({"num_directions": 0}, ValueError, ("num_directions", "at least 1")),
        ({"num_directions": None}, TypeError, ("num_directions", "an integer")),
        ({"smoothing": 0}, ValueError, ("in_place(smoothing", "greater than 0")),
        ({"difference": 1}, TypeError, ("in_place(difference", "a Difference")),
        ({"b1": 1.0}, ValueError, ("in_place(b1", "in [0, 1)")),
        ({"num_steps": 0}, ValueError, ("in_place(num_steps", "remembered")),
        ({"moment_dtype": int}, TypeError, ("moment_dtype", "floating-point type")),
        ({"terms": 1}, TypeError, ("in_place(terms", "a bool")),
        ({"key": "a"}, TypeError, ("in_place(key", "a key or an integer seed")),
    ],
)
def test_wrong_arguments_are_explained(options, kind, parts):
    with raises(kind, *parts):
        radazo.in_place(**{"optimizer": optax.sgd(0.1), "key": 0} | options)


def test_an_optimizer_with_an_estimator_of_its_own_is_refused():
    optimizer = radazo.in_place(radazo.radazo(0.1, key=0), key=0)
    with raises(ValueError, "in_place(optimizer", "take a gradient", "the rule alone"):
        optimizer.init(jnp.ones(3))


def test_a_step_needs_a_function():
    optimizer = radazo.in_place(optax.sgd(0.1), key=0)
    state = optimizer.init(jnp.ones(3))
    with raises(TypeError, "in_place(...).step(value_fn", "be a function", "3"):
        optimizer.step(3, jnp.ones(3), state)
