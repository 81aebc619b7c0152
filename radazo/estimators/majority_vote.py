"""Estimate the sign of the gradient by a majority vote over the directions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from radazo import core, differences, directions, validation
from radazo.estimators import build, mean


def majority_vote_estimator(
    sampler: directions.DirectionSampler = directions.sphere,
    *,
    num_directions: int | None = 10,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the sign of each element of the gradient by a vote of the directions.

    With `zo_signsgd` this is ZO-M-signSGD, sign descent by majority vote. Each
    direction has one vote regardless of its slope, so outliers have bounded influence.
    With `radazo`, which also bounds its steps, it was slower than `sphere_estimator`.

      g = 1 / |kept| · Σ_{k kept} sign(slopeₖ) · sign(uₖ)

    g is the margin of the vote, in [−1, 1], not an estimate of the gradient. Its mean
    for `sphere` and `gaussian` on a linear function ⟨a, x⟩ is 2/π · arcsin(aᵢ / ‖a‖).
    In high dimension this is proportional to a, and K < d votes are mostly noise.

    Args:
      sampler, num_directions, smoothing, difference, chunk_size, terms, mask, sharding:
        As in `finite_difference_estimator`.
    Returns:
      An `Estimator`. `info.factor` and `info.squared_norm` are NaN, since slope
      statistics do not describe votes.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      As `finite_difference_estimator`.
    Example:
      >>> optimizer = radazo.zo_signsgd(0.5, majority_vote_estimator(), key=0)
      >>> params = jnp.array([3.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(updates)  # in one dimension the vote is unanimous
      [-0.5]
    References:
      Liu et al., signSGD via zeroth-order oracle, 2019.
    """
    api_name = "majority_vote_estimator"
    validation.check(api_name, sampler=sampler)
    options = mean.Options(
        sampler._replace(factor=lambda dim: 1.0),
        num_directions,
        difference,
        chunk_size,
        _vote,
    )
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    inner = mean.estimator(api_name, options, settings)

    def without_statistics(estimate: core.Estimate) -> core.Estimate:
        unknown = jnp.full_like(estimate.info.factor, math.nan)
        info = estimate.info._replace(factor=unknown, squared_norm=unknown)
        return estimate._replace(info=info)

    fused = inner.fused
    return inner._replace(
        estimate=lambda *inputs: without_statistics(inner.estimate(*inputs)),
        fused=fused and (lambda *inputs: without_statistics(fused(*inputs))),
    )


def _vote(slope: jax.Array, scale: jax.Array, drawn: jax.Array) -> Any:
    return jnp.sign(slope).astype(drawn.dtype) * jnp.sign(scale), jnp.sign(drawn)
