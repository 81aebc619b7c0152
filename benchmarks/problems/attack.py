"""The targeted black-box attack of the paper's table 1, as plain functions.

  δ = clip(θ, −bound, bound)          what is added to the image, θ unconstrained
  f(θ) = max_{j ≠ target} log pⱼ − log p_target   of   clip(image + δ, 0, 1)

The attack has succeeded where f(θ) < 0: the classifier says `target`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# log_probs(weights, image) -> (classes,), of one image with pixels in [0, 1]
LogProbs = Callable[[Any, jax.Array], jax.Array]


def attacked(theta: jax.Array, image: jax.Array, bound: float) -> jax.Array:
    """What the classifier is shown."""
    return jnp.clip(image + jnp.clip(theta, -bound, bound), 0, 1)


def margin(log_probs: jax.Array, target: jax.Array) -> jax.Array:
    """By how much the likeliest other class beats `target`; negative if none does."""
    is_target = jnp.arange(log_probs.size) == target
    return jnp.max(jnp.where(is_target, -jnp.inf, log_probs)) - log_probs[target]


def objective(log_probs: LogProbs, bound: float) -> Callable[..., jax.Array]:
    """`f(theta, *, weights, image, target)`, to be minimized below 0."""

    def value_fn(
        theta: jax.Array, *, weights: Any, image: jax.Array, target: jax.Array
    ) -> jax.Array:
        return margin(log_probs(weights, attacked(theta, image, bound)), target)

    return value_fn
