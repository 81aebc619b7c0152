"""Strict flags, the helper that reads messages, and the tables that contracts run over."""

import re
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

import radazo

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

ESTIMATORS = {
    "sphere": radazo.sphere_estimator,
    "gaussian": radazo.gaussian_estimator,
    "rademacher": radazo.rademacher_estimator,
    "coordinate": radazo.coordinate_estimator,
    "orthogonal": radazo.orthogonal_estimator,
}
OPTIMIZERS = {
    "radazo": radazo.radazo,
    "zo_adamm": radazo.zo_adamm,
    "zo_rmsprop": radazo.zo_rmsprop,
    "zo_sgd": radazo.zo_sgd,
    "zo_signsgd": radazo.zo_signsgd,
}


@pytest.fixture(params=ESTIMATORS.values(), ids=ESTIMATORS.keys())
def make_estimator(request):
    """Each estimator's factory in turn."""
    return request.param


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def make_optimizer(request):
    """Each complete optimizer's factory in turn."""
    return request.param


@pytest.fixture(params=[radazo.forward, radazo.central], ids=["forward", "central"])
def difference(request):
    return request.param


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@contextmanager
def raises(kind, *parts):
    """`kind` is raised and its message has the four parts: each of `parts` in order."""
    assert kind in (TypeError, ValueError)
    pattern = ".*".join(re.escape(part) for part in parts)
    with pytest.raises(kind, match=f"(?s){pattern}") as caught:
        yield caught


def half_sum_of_squares(params):
    """A smooth function of any pytree, in float32 at least; its gradient is params."""
    leaves = [
        x
        for x in jax.tree.leaves(params)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    ]
    wide = [x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32) for x in leaves]
    return sum((jnp.sum(x * x) for x in wide), start=jnp.float32(0)) / 2
