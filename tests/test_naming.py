"""Signatures print the names of constants made of functions."""

import copy
import inspect
import re

import jax.numpy as jnp
import pytest

import radazo

CONSTANTS = {
    "directions": [
        "sphere",
        "gaussian",
        "rademacher",
        "hadamard",
        "coordinate",
        "basis",
    ],
    "differences": ["forward", "central", "one_point", "forward_mode"],
    "optimizers": ["per_coordinate", "factored", "per_leaf", "scalar"],
    "estimators": ["matern", "rbf", "last_estimate", "last_step"],
}


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in CONSTANTS.items() for name in names],
)
def test_a_constant_prints_its_public_name(module, name):
    constant = getattr(getattr(radazo, module), name)
    assert repr(constant) == f"radazo.{module}.{name}"
    assert repr(copy.deepcopy(constant)) == repr(constant)


def test_a_constant_of_a_user_prints_the_names_of_its_functions():
    sampler = radazo.directions.sampler_from(lambda key, dim: jnp.zeros(dim))
    assert repr(sampler).startswith("DirectionSampler(prepare=_step_key, draw=")
    assert "scale=None, independent=True" in repr(sampler)


def test_no_public_signature_prints_an_address():
    for module in (radazo, radazo.estimators, radazo.optimizers, radazo.diagnostics):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function):
                text = str(inspect.signature(function))
                assert not re.search(r" at 0x[0-9a-f]+", text), name
