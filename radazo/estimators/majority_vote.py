"""Estimate the sign of the gradient by a majority vote over the directions."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from radazo import core, differences, directions, validation
from radazo.estimators import build, mean


def majority_vote_estimator(
    sampler: directions.DirectionSampler = directions.sphere,
    *,
    num_directions: int | None = core.NUM_DIRECTIONS,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the sign of each element of the gradient by a vote of the directions.

    With `zo_signsgd` this is ZO-M-signSGD. Each direction has one vote regardless of
    its slope, so outliers have bounded influence. With `radazo`, which also bounds its
    steps, it was slower than `sphere_estimator`.

      g = 1 / |kept| · Σ_{k kept} sign(slopeₖ) · sign(uₖ)

    g is the margin of the vote, in [−1, 1], not an estimate of the gradient. Its mean
    for `sphere` and `gaussian` on a linear function ⟨a, x⟩ is 2/π · arcsin(aᵢ / ‖a‖).
    In high dimension this is proportional to a, and K < d votes are mostly noise.

    Args:
      sampler, num_directions, smoothing, difference, chunk_size, terms, mask, sharding:
        As in `finite_difference_estimator`.
    Returns:
      An `Estimator`. `info.factor` and `info.squared_norm` are NaN.
    Raises, Cost:
      As `finite_difference_estimator`.
    Example:
      >>> fn, estimator = lambda x: x[0] ** 2, majority_vote_estimator()
      >>> value_and_grad = jax.jit(radazo.value_and_grad(fn, estimator))
      >>> print(value_and_grad(0, jnp.array([3.0]))[1])  # In one dimension all agree.
      [1.]
    References:
      Liu et al., signSGD via zeroth-order oracle, 2019.
    """
    api_name = "majority_vote_estimator"
    validation.check(api_name, sampler=sampler)
    sampler = sampler._replace(factor=lambda dim: 1.0)
    options = mean.Options(sampler, num_directions, difference, chunk_size, _vote)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return mean.estimator(api_name, options, settings)


def _vote(slope: jax.Array, scale: jax.Array, drawn: jax.Array) -> Any:
    return jnp.sign(slope).astype(drawn.dtype) * jnp.sign(scale), jnp.sign(drawn)
