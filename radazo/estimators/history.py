"""Estimators that reuse past queries.

The state stores only the key of each past step and one scalar per direction. An
estimate is a weighted sum over the redrawn directions of the last N + 1 steps.
"""

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
      outcomes: (N + 1, K) function value or slope of each direction; 0 if it was
        dropped or the step does not exist yet.
      kept: (N + 1, K) bool, False in the same places.
      smoothings: (N + 1,) smoothing of each step.
    """

    count: jax.Array
    step_keys: jax.Array
    outcomes: jax.Array
    kept: jax.Array
    smoothings: jax.Array


# weigh(state, info, layout) -> ((N + 1, K) weights of the directions, info)
_Weigh = Callable[
    [HistoryState, core.EstimateInfo, flat.Layout],
    tuple[jax.Array, core.EstimateInfo],
]


def history_reuse_estimator(
    *,
    sampler: directions.DirectionSampler = directions.gaussian,
    num_directions: int = 10,
    num_past: int = 5,
    smoothing: core.Schedule | float = 5e-2,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient from values of this and the last N steps, as ZoAR does.

    The mean of all values replaces the value f(x). Old values are treated as if they
    had been evaluated around the current parameters. This reduces the variance but adds
    a bias: the decrease of f over N steps must be small relative to smoothing · ‖∇f‖. A
    larger `smoothing` helps, since subtracting the mean cancels most of the curvature.

      yₖ = f(x + smoothing · uₖ)                                  K values in this step
      g  = factor(d) / (n − 1) · Σⱼ (yⱼ − mean y) / smoothingⱼ · uⱼ

    The sum is over the n valid values of the last N + 1 steps, each with its own
    smoothing. The paper divides by n, which shrinks the estimate by (n − 1) / n. With
    n − 1 it is unbiased on a linear function ⟨a, x⟩ at constant parameters, with a
    total variance of (d + 1) ‖a‖² / (n − 1) along Gaussian directions.

    Args:
      sampler: Sampler of the directions, which must be independent of each other.
      num_directions: K, at least 1; at least 2 if `num_past` is 0.
      num_past: N, past steps that are reused, at least 0.
      smoothing, chunk_size, mask, sharding: As in `finite_difference_estimator`, with a
        ten times larger default of `smoothing`.
      terms: If True, `value_fn` returns an array of terms whose sum is the objective.
        The terms are summed before they are compared, so this gains no precision.
    Returns:
      An `Estimator`, which is not memoryless. Its value is the mean of the valid values
      of the step, its aux that of the first point; `info.slopes` are (yₖ − mean
      y) / smoothing. If no value of the step is valid, or n = 1, the gradient is zero
      and all directions of `info` are dropped.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; and if the directions of
        `sampler` depend on each other, or n could never be 2.
    Cost:
      K function values per step, and (N + 2) · K draws of a direction. The state is
      N + 1 keys and (N + 1) · K values, no copy of the parameters.
    Example:
      >>> estimator = history_reuse_estimator(num_directions=500, num_past=1)
      >>> estimate = jax.jit(
      ...     lambda key, x, state: radazo.estimate(
      ...         estimator, key, lambda x: x[0] - 2 * x[1] + 7, x, state
      ...     )
      ... )
      >>> params = jnp.zeros(2)
      >>> _, _, state, _ = estimate(0, params, estimator.init(params))
      >>> value, gradient, _, info = estimate(1, params, state)
      >>> print(jnp.round(value), jnp.round(gradient), info.num_values)
      7.0 [ 1. -2.] 500
    References:
      Qiu et al., Zeroth-order optimization is secretly single-step policy optimization,
      2025. arXiv:2506.14460.
    """
    api_name = "history_reuse_estimator"
    validation.integer(
        api_name, "num_past", num_past, 0, "0 uses the present step alone."
    )
    validation.integer(
        api_name,
        "num_directions",
        num_directions,
        1 if num_past else 2,
        "A value is compared with the mean of all: with `num_past=0` take 2 or more.",
    )
    validation.check(api_name, sampler=sampler)
    if not sampler.independent:
        validation.fail(
            api_name,
            "sampler",
            "have directions that are independent of each other",
            repr(sampler),
            "The mean of the values is no base value for others: take "
            "`radazo.directions.gaussian`, or `history_mean_estimator`.",
        )
    options = mean.Options(sampler, num_directions, _VALUES, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    return _estimator(api_name, options, settings, num_past, _about_the_mean)


def history_mean_estimator(
    *,
    sampler: directions.DirectionSampler = directions.gaussian,
    num_directions: int = 10,
    num_past: int = 5,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Average the gradient estimates of this and the last N steps, as ZoHS does.

    The state holds no copies of the parameters. With `radazo`, which has its own
    momentum, the average usually gains nothing.

      gₜ = the g of `finite_difference_estimator` in step t
      g  = mean of gₜ over those of the last N + 1 steps with a valid direction

    The total variance of g on a linear function ⟨a, x⟩ along Gaussian directions is
    (d + 1) ‖a‖² / ((N + 1) K).

    Args:
      sampler, num_directions, smoothing, difference, chunk_size, terms, mask, sharding:
        As in `finite_difference_estimator`.
      num_past: N, past estimates in the mean, at least 0.
    Returns:
      An `Estimator`, which is not memoryless. Its value and `info` are those of
      `finite_difference_estimator` in this step. If all directions of the step are
      dropped, the gradient is zero.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      Function values as `finite_difference_estimator`, and (N + 2) · K draws of a
      direction. The state is N + 1 keys and (N + 1) · K slopes, no copy of the
      parameters.
    Example:
      >>> estimator = history_mean_estimator(num_directions=500, num_past=1)
      >>> estimate = jax.jit(
      ...     lambda key, x, state: radazo.estimate(
      ...         estimator, key, lambda x: x[0] - 2 * x[1], x, state
      ...     )
      ... )
      >>> params = jnp.zeros(2)
      >>> _, _, state, _ = estimate(0, params, estimator.init(params))
      >>> _, gradient, _, info = estimate(1, params, state)
      >>> print(jnp.round(gradient), info.num_values)
      [ 1. -2.] 501
    References:
      Qiu et al., Zeroth-order optimization is secretly single-step policy optimization,
      2025, arXiv:2506.14460, where it is a baseline.
    """
    api_name = "history_mean_estimator"
    validation.integer(
        api_name, "num_past", num_past, 0, "0 uses the present step alone."
    )
    validation.integer(api_name, "num_directions", num_directions, 1, "One or more.")
    validation.check(api_name, sampler=sampler)
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
    mean.check(api_name, options, settings)

    def init(layout: flat.Layout, params: core.Params) -> HistoryState:
        del params
        num_steps = num_past + 1
        shape = num_steps, options.num_directions
        return HistoryState(
            count=jnp.zeros((), jnp.int32),
            step_keys=jnp.zeros((num_steps, 2), jnp.uint32),
            outcomes=jnp.zeros(shape, jnp.result_type(float)),
            kept=jnp.zeros(shape, bool),
            smoothings=jnp.ones(num_steps, layout.dtype),
        )

    # The first pass only evaluates, since the weights are not known yet.
    unweighted = options._replace(
        weigh=lambda slope, scale, drawn: (jnp.zeros_like(scale), drawn)
    )

    def fused(
        function: core.Function, step: core.Step, state: HistoryState
    ) -> core.Estimate:
        value, _, _, info, _ = mean.fused(function, step, unweighted)
        readings = core.Readings(value, info.slopes, info.kept, info.aux)
        return finished(step, state, readings)

    def finished(
        step: core.Step, state: HistoryState, readings: core.Readings
    ) -> core.Estimate:
        info = mean.make_info(step.layout, options, readings)
        state = _remembered(state, step, info)
        weights, info = weigh(state, info, step.layout)
        info = info._replace(squared_norm=jnp.full_like(info.factor, math.nan))
        gradient = _redrawn(step.layout, options, state.step_keys, weights)
        return core.Estimate(readings.value, gradient, state, info, step.key[0])

    return build.estimator(
        api_name,
        init,
        lambda step, state: mean.queries(step, options),
        lambda step, state, queries, readings: finished(step, state, readings),
        settings,
        fused=fused,
    )


def _value(
    base: None, along: jax.Array, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the value in place of a slope; NaN if smoothing is 0."""
    del base
    value = jnp.sum(along[0])
    return jnp.where(smoothing > 0, value, jnp.nan), value


_VALUES = differences.Difference((1.0,), _value)


def _remembered(
    state: HistoryState, step: core.Step, info: core.EstimateInfo
) -> HistoryState:
    """Add this step as the first row and drop the oldest."""
    smoothing = jnp.where(jnp.any(info.kept), step.smoothing, 1)
    new = step.key, info.slopes, info.kept, smoothing

    def shifted(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.concatenate([new.astype(old.dtype)[None], old[:-1]])

    return HistoryState(state.count, *map(shifted, new, state[1:]))


def _about_the_mean(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> tuple[jax.Array, core.EstimateInfo]:
    """Return the weights of values relative to the mean of all valid values."""
    values, kept = state.outcomes, state.kept
    num_kept = mean.num_valid(kept, values.dtype)
    # Relative to the lowest, close values keep their digits in the sum, and large
    # values do not overflow.
    lowest = jnp.min(jnp.where(kept, values, jnp.finfo(values.dtype).max))
    above = jnp.where(kept, values - lowest, 0)
    slopes = (above - jnp.sum(above / num_kept)) / state.smoothings.astype(
        values.dtype
    )[:, None]
    informed = jnp.any(kept[0]) & (num_kept > 1)
    slopes = jnp.where(kept & informed, slopes, 0)
    per_direction = info.factor.astype(values.dtype) / jnp.maximum(num_kept - 1, 1)
    # Keep their sum finite: an element of u is below 16.
    largest = float(jnp.finfo(layout.dtype).max) / (16 * kept.size)
    weights = jnp.clip(slopes * per_direction, -largest, largest)
    return jnp.where(informed, weights, 0), info._replace(
        slopes=slopes[0], kept=kept[0] & informed, factor=per_direction * num_kept
    )


def _mean_of_estimates(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> tuple[jax.Array, core.EstimateInfo]:
    """Return the weights of slopes in the mean of the estimates of their steps."""
    del layout
    slopes = state.outcomes
    in_step = jnp.sum(state.kept, axis=1, keepdims=True, dtype=jnp.int32)
    num_steps = mean.num_valid(in_step > 0, slopes.dtype)
    shares = jnp.maximum(in_step, 1).astype(slopes.dtype) * num_steps
    weights = info.factor.astype(slopes.dtype) * slopes / shares
    return jnp.where(jnp.any(state.kept[0]), weights, 0), info


def _redrawn(
    layout: flat.Layout,
    options: mean.Options,
    step_keys: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Return Σ weight · direction over all steps, redrawing each direction."""
    sampler, dim, dtype = options.sampler, layout.dim, layout.dtype
    num_steps, num_directions = weights.shape
    chunk_size = min(options.chunk_size, num_directions)
    weights = weights.astype(dtype)
    padded = jnp.pad(weights, ((0, 0), (0, -num_directions % chunk_size)))
    ks = jnp.arange(padded.shape[1], dtype=jnp.uint32)
    ks = jnp.minimum(ks, num_directions - 1).reshape(-1, chunk_size)

    def add_step(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> Any:
        key, weights = row
        prepared = sampler.prepare(key, num_directions, dim, dtype)

        def draw(k: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            drawn = sampler.draw(prepared, k, dim, dtype)
            return (
                weight if sampler.scale is None else weight * sampler.scale(drawn)
            ), drawn

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
