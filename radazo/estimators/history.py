"""Estimate by a weighted sum over the redrawn directions of the last N + 1 steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from radazo import core, differences, directions, flat, validation
from radazo.estimators import build, mean


class HistoryState(NamedTuple):
    """State of an estimator that uses the last N + 1 steps, newest first.

    Attributes:
      count: int32 scalar, estimates so far; input of the `smoothing` schedule.
      step_keys: (N + 1, 2) uint32, key data of the steps.
      outcomes: (N + 1, K) function value or slope of each direction; 0 if not kept.
      kept: (N + 1, K) bool, False if the direction was dropped or not yet drawn.
      smoothings: (N + 1,) smoothing of each step.
    """

    count: jax.Array
    step_keys: jax.Array
    outcomes: jax.Array
    kept: jax.Array
    smoothings: jax.Array


_Weighted = tuple[jax.Array, core.EstimateInfo]  # (N + 1, K) weights of directions
_Weigh = Callable[[HistoryState, core.EstimateInfo, flat.Layout], _Weighted]


def history_reuse_estimator(
    *,
    sampler: directions.DirectionSampler = directions.gaussian,
    num_directions: int = core.NUM_DIRECTIONS,
    num_past: int = 5,
    smoothing: core.Schedule | float = 5e-2,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient from values of this and the last N steps, as ZoAR does.

      yₖ = f(x + smoothing · uₖ)                                  K values in this step
      g  = factor(d) / (n − 1) · Σⱼ (yⱼ − mean y) / smoothingⱼ · uⱼ

    The sum is over the n valid values of the last N + 1 steps, as if all were around
    the current parameters. It is biased unless f changes over N steps by much less than
    smoothing · ‖∇f‖; a larger `smoothing` helps. At constant parameters g is unbiased
    on a linear function ⟨a, x⟩ (the paper divides by n, not n − 1); its total variance
    along Gaussian directions is (d + 1) ‖a‖² / (n − 1).

    Args:
      sampler: Sampler of independent directions.
      num_directions: K, at least 1; at least 2 if `num_past` is 0.
      num_past: N, past steps that are reused, at least 0.
      smoothing, chunk_size, terms, mask, sharding: As in `finite_difference_estimator`;
        but terms are summed before they are compared, so `terms` gains no precision.
    Returns:
      An `Estimator`, which is not memoryless. Its value is the mean valid value of the
      step; `info.slopes` are (yₖ − mean y) / smoothing. If no value of the step is
      valid, or n = 1, the gradient is zero and `info` drops all directions.
    Raises:
      As `finite_difference_estimator`.
    Cost:
      K function values per step, and (N + 2) · K draws of a direction. The state is
      N + 1 keys and (N + 1) · K values, no copy of the parameters.
    Example:
      >>> estimator = history_reuse_estimator(num_directions=500, num_past=1)
      >>> estimate = jax.jit(radazo.estimate, static_argnums=(0, 2))
      >>> fn, x = lambda x: x[0] - 2 * x[1], jnp.zeros(2)
      >>> state = estimator.init(x)
      >>> for key in range(2):
      ...     _, gradient, state, info = estimate(estimator, key, fn, x, state)
      >>> print(jnp.round(gradient), info.num_values)
      [ 1. -2.] 500
    References:
      Qiu et al., Zeroth-order optimization is secretly single-step policy optimization,
      2025. arXiv:2506.14460.
    """
    api_name = "history_reuse_estimator"
    minimum = 1 if num_past else 2
    hint = "Values are compared with their mean: with `num_past=0`, use 2 or more."
    validation.integer(api_name, "num_directions", num_directions, minimum, hint)
    validation.check(api_name, sampler=sampler)
    if not sampler.independent:
        rule = "have directions that are independent of each other"
        hint = "Subtracting the mean of dependent values biases the estimate: use "
        hint += "`radazo.directions.gaussian`, or `history_mean_estimator`."
        validation.fail(api_name, "sampler", rule, repr(sampler), hint)
    options = mean.Options(sampler, num_directions, _VALUES, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return _estimator(api_name, options, settings, num_past, _about_the_mean)


def history_mean_estimator(
    *,
    sampler: directions.DirectionSampler = directions.gaussian,
    num_directions: int = core.NUM_DIRECTIONS,
    num_past: int = 5,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Average the gradient estimates of this and the last N steps, as ZoHS does.

      gₜ = the g of `finite_difference_estimator` in step t
      g  = mean of gₜ over those of the last N + 1 steps with a valid direction

    The total variance of g on a linear function ⟨a, x⟩ along Gaussian directions is
    (d + 1) ‖a‖² / ((N + 1) K). If this step drops all directions, g is zero. `radazo`
    has its own momentum, and usually gains nothing.

    Args:
      sampler, num_directions, smoothing, difference, chunk_size, terms, mask, sharding:
        As in `finite_difference_estimator`, but `num_directions` is a number.
      num_past: N, past estimates in the mean, at least 0.
    Returns:
      An `Estimator`, which is not memoryless. Its value and `info` are those of
      `finite_difference_estimator` in this step.
    Raises:
      As `finite_difference_estimator`.
    Cost:
      Function values as `finite_difference_estimator`; otherwise as
      `history_reuse_estimator`.
    Example:
      >>> estimator = history_mean_estimator(num_directions=2, num_past=1)
      >>> print(estimator.init(jnp.zeros(9)).outcomes.shape)  # (N + 1, K) slopes
      (2, 2)
    References:
      Qiu et al., 2025, arXiv:2506.14460, where it is a baseline.
    """
    api_name = "history_mean_estimator"
    validation.check(api_name, num_directions=num_directions)
    options = mean.Options(sampler, num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return _estimator(api_name, options, settings, num_past, _mean_of_estimates)


def _estimator(
    api_name: str,
    options: mean.Options,
    settings: build.Settings,
    num_past: int,
    weigh: _Weigh,
) -> core.Estimator:
    """Build the estimator that redraws the last steps and weights each direction."""
    hint = "0 uses the present step alone."
    validation.integer(api_name, "num_past", num_past, 0, hint)
    mean.check(api_name, options, settings)

    def init(layout: flat.Layout) -> HistoryState:
        num_steps = num_past + 1
        shape = num_steps, options.num_directions
        return HistoryState(
            count=jnp.zeros((), jnp.int32),
            step_keys=jnp.zeros((num_steps, 2), jnp.uint32),
            outcomes=jnp.zeros(shape, jnp.result_type(float)),
            kept=jnp.zeros(shape, bool),
            smoothings=jnp.ones(num_steps, layout.dtype),
        )

    def shift(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.concatenate([new.astype(old.dtype)[None], old[:-1]])

    def estimate(
        step: core.Step, state: HistoryState, queries: Any, readings: core.Readings
    ) -> core.Estimate:
        del queries
        info = mean.make_info(step.layout, options, readings)
        smoothing = jnp.where(jnp.any(info.kept), step.smoothing, 1)
        new = step.key, info.slopes, info.kept, smoothing
        state = HistoryState(state.count, *map(shift, new, state[1:]))
        weights, info = weigh(state, info, step.layout)
        info = info._replace(squared_norm=jnp.full_like(info.factor, math.nan))
        gradient = _weighted_sum(step.layout, options, state.step_keys, weights)
        return core.Estimate(readings.value, gradient, state, info, step.key[0])

    return build.estimator(
        api_name,
        init,
        lambda step, state: mean.queries(step, options),
        estimate,
        settings,
    )


def _value(base: None, along: jax.Array, smoothing: jax.Array) -> Any:
    """Return the value in place of a slope; NaN if smoothing is 0."""
    del base
    value = jnp.sum(along[0])
    return jnp.where(smoothing > 0, value, jnp.nan), value


_VALUES = differences.Difference((1.0,), _value)


def _about_the_mean(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> _Weighted:
    """Return the weights of values relative to the mean of all valid values."""
    values, kept = state.outcomes, state.kept
    num_kept = mean.num_valid(kept, values.dtype)
    # Relative to the lowest, close values keep their digits, and large do not overflow.
    lowest = jnp.min(jnp.where(kept, values, jnp.finfo(values.dtype).max))
    above = jnp.where(kept, values - lowest, 0)
    smoothings = state.smoothings.astype(values.dtype)[:, None]
    slopes = (above - jnp.sum(above / num_kept)) / smoothings
    informed = jnp.any(kept[0]) & (num_kept > 1)
    slopes = jnp.where(kept & informed, slopes, 0)
    per_direction = info.factor.astype(values.dtype) / jnp.maximum(num_kept - 1, 1)
    largest = core.largest(layout.dtype) / kept.size  # Keep their sum finite.
    weights = jnp.clip(slopes * per_direction, -largest, largest)
    kept, factor = kept[0] & informed, per_direction * num_kept
    info = info._replace(slopes=slopes[0], kept=kept, factor=factor)
    return jnp.where(informed, weights, 0), info


def _mean_of_estimates(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> _Weighted:
    """Return the weights of slopes in the mean of the estimates of their steps."""
    del layout
    slopes = state.outcomes
    in_step = jnp.sum(state.kept, axis=1, keepdims=True, dtype=jnp.int32)
    num_steps = mean.num_valid(in_step > 0, slopes.dtype)
    shares = jnp.maximum(in_step, 1).astype(slopes.dtype) * num_steps
    weights = info.factor.astype(slopes.dtype) * slopes / shares
    return jnp.where(jnp.any(state.kept[0]), weights, 0), info


def _weighted_sum(
    layout: flat.Layout, options: mean.Options, step_keys: jax.Array, weights: jax.Array
) -> jax.Array:
    """Return Σ weight · direction over all steps, redrawing each direction."""
    sampler, dim, dtype = options.sampler, layout.dim, layout.dtype
    num_steps, num_directions = weights.shape
    chunk_size = min(options.chunk_size, num_directions)
    padding = (0, 0), (0, -num_directions % chunk_size)
    padded = jnp.pad(weights.astype(dtype), padding)
    ks = jnp.arange(padded.shape[1], dtype=jnp.uint32)
    ks = jnp.minimum(ks, num_directions - 1).reshape(-1, chunk_size)

    def add_step(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> Any:
        key, weights = row
        prepared = sampler.prepare(key, num_directions, dim, dtype)

        def draw(k: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            drawn, scale = sampler.draw(prepared, k, dim, dtype), sampler.scale
            return (weight if scale is None else weight * scale(drawn, dim)), drawn

        def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> Any:
            if chunk_size == 1:
                weight, drawn = draw(*(x[0] for x in chunk))
                return total + weight * drawn, None
            scaled, block = jax.vmap(draw)(*chunk)
            return total + jnp.dot(scaled, block, precision=lax.Precision.HIGHEST), None

        return lax.scan(add_chunk, total, (ks, weights))

    # Zero; in a `jax.shard_map`, with the varying axes of the sum.
    total = jnp.full(dim, 0 * padded[0, 0])
    rows = padded.reshape(num_steps, -1, chunk_size)
    return lax.scan(add_step, total, (step_keys, rows))[0]
