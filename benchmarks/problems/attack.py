"""The targeted black-box attack of table 1 of the paper, as plain functions.

  δ = clip(θ, −bound, bound)          added to the image, with θ unconstrained
  f(θ) = max_{j ≠ target} log pⱼ − log p_target   of   clip(image + δ, 0, 1)

The attack succeeds where f(θ) < 0: the classifier returns `target`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# log_probs(weights, image) -> (classes,), of one image with pixels in [0, 1]
LogProbs = Callable[[Any, jax.Array], jax.Array]


def attacked(theta: jax.Array, image: jax.Array, bound: float) -> jax.Array:
    """Return the input of the classifier."""
    return jnp.clip(image + jnp.clip(theta, -bound, bound), 0, 1)


def margin(log_probs: jax.Array, target: jax.Array) -> jax.Array:
    """Return the largest other log-probability minus that of `target`."""
    is_target = jnp.arange(log_probs.size) == target
    return jnp.max(jnp.where(is_target, -jnp.inf, log_probs)) - log_probs[target]


def objective(log_probs: LogProbs, bound: float) -> Callable[..., jax.Array]:
    """Return `f(theta, *, weights, image, target)`, to be minimized below 0."""

    def value_fn(
        theta: jax.Array, *, weights: Any, image: jax.Array, target: jax.Array
    ) -> jax.Array:
        return margin(log_probs(weights, attacked(theta, image, bound)), target)

    return value_fn
