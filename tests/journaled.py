"""A run that has a journal, for the tests of journals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import as_a_user

import radazo

PARAMS = {"w": jnp.linspace(-1, 1, 7), "half": jnp.ones(5, jnp.bfloat16), "int": 3}


def value_fn(params, batch):
    """Not a number along some directions, and nowhere in some steps."""
    w, half = params["w"], params["half"].astype(jnp.float32)
    value = jnp.sum(jnp.cos(3 * w) + (w - 1) ** 2) + jnp.sum(half**2)
    return jnp.where(jnp.sin(1e5 * w[0] + batch) > 0.8, jnp.nan, value)


def of_step(step):
    return 1.7 * step.astype(jnp.float32)


@functools.cache  # So that it is compiled once.
def optimizer(key=0, learning_rate=0.02, num_directions=3):
    estimator = radazo.sphere_estimator(num_directions=num_directions)
    return radazo.radazo(learning_rate, estimator, key=key)


def bits(tree):
    arrays = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return [(str(x.dtype), x.shape, x.tobytes()) for x in arrays]


def minimized(path, num_steps=40, params=PARAMS, **options):
    options = {"optimizer": optimizer(), "batches": of_step, **options}
    with as_a_user():
        return radazo.minimize(
            value_fn, params, num_steps=num_steps, journal=path, **options
        )


def replayed(path, params=PARAMS, state=None, how=None, **options):
    with as_a_user():
        return radazo.journal.replay(path, how or optimizer(), params, state, **options)


def run_in(folder):
    """A run of 40 steps, its journal, and the bits after each step."""
    path, steps = folder / "run.journal", [None]

    def note(result):
        steps.append(bits((result.params, result.state)))

    return minimized(path, callback=note, callback_every=1), path, steps
