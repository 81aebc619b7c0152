"""Swing up a pendulum with a small network: a control task of gymnax.

  f(x) = mean over 8 starts and 100 steps of  angle² + 0.1 speed² + 0.001 torque²

The network 3 - 8 - 1 maps cosine, sine and an eighth of the speed to a torque of at
most 2. Starts are fixed, so that f is a function: d = 41.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

NUM_STARTS, NUM_STEPS, HIDDEN = 8, 100, 8
DIM = 5 * HIDDEN + 1
SCALES = (1.0, 1.0, 1 / 8)  # The largest speed is 8.
MAX_TORQUE = 2.0


def start(key: jax.Array) -> jax.Array:
    """Return weights of variance 1 / inputs, and biases 0."""
    first, second = jax.random.split(key)
    hidden = jax.random.normal(first, (3 * HIDDEN,), jnp.float32) / 3**0.5
    out = jax.random.normal(second, (HIDDEN,), jnp.float32) / HIDDEN**0.5
    return jnp.concatenate([hidden, out, jnp.zeros(HIDDEN + 1, jnp.float32)])


def torque(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Return the torque (1,) of the network at (cosine, sine, speed)."""
    weight, out = x[: 3 * HIDDEN].reshape(HIDDEN, 3), x[3 * HIDDEN : 4 * HIDDEN]
    hidden = jnp.tanh(
        weight @ (seen * jnp.array(SCALES, x.dtype)) + x[-HIDDEN - 1 : -1]
    )
    return MAX_TORQUE * jnp.tanh(out @ hidden + x[-1:])


def cost() -> Callable[[jax.Array], jax.Array]:
    """Return `f(x)`; needs gymnax."""
    gymnax = importlib.import_module("gymnax")
    env, params = gymnax.make("Pendulum-v1")
    env = env.with_transition_gradients()  # Otherwise derivatives of f are wrong.
    keys = jax.random.split(jax.random.key(0), NUM_STARTS)
    starts = jax.vmap(env.reset_env, in_axes=(0, None))(keys, params)
    unused = jax.random.key(1)  # The pendulum has no noise.

    def of_one(x: jax.Array, start: Any) -> jax.Array:
        def step(carry: Any, _: None) -> Any:
            seen, state = carry
            action = torque(x, seen)
            seen, state, reward, _, _ = env.step_env(unused, state, action, params)
            return (seen, state), reward

        return -jnp.mean(lax.scan(step, start, length=NUM_STEPS)[1])

    def value_fn(x: jax.Array) -> jax.Array:
        # gymnax mixes dtypes and ranks, which JAX allows by default.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jnp.mean(jax.vmap(lambda start: of_one(x, start))(starts))

    return value_fn
