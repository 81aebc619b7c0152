"""Estimators that use past queries again: directions redrawn from their keys.

A direction is a pure function of its key, so that a step of the past is remembered as
one key and a few scalars: what each direction gave. An estimate is a sum over the last
N + 1 steps of weight times direction, in which every direction is drawn again.

history_reuse_estimator   values of the last steps, about their mean        (ZoAR)
history_mean_estimator    the mean of the last gradient estimates           (ZoHS)
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
    """State of an estimator that uses past steps: the last N + 1, the newest first.

    Attributes:
      count: int32 scalar, estimates so far; the schedule of `smoothing` reads it.
      step_keys: (N + 1, 2) uint32, the words of the keys of these steps.
      outcomes: (N + 1, K) what came of each direction: a function value or a slope; 0
        where it was dropped, and where there was no step yet.
      kept: (N + 1, K) bool, False in the same places.
      smoothings: (N + 1,) how far each step moved.
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
    """Values of this step and of the last N, each about the mean of all: ZoAR.

    There is no base value: the mean of the values stands in its place. Old values count
    as if they had been taken around the present parameters, which is less noise for an
    error that grows with the way gone in N steps: what f falls by in them counts as
    slopes, and is to be small beside smoothing · ‖∇f‖. Take a larger `smoothing` than
    elsewhere; it costs less here, since the mean takes away most of the curvature.

      yₖ = f(x + smoothing · uₖ)                                  K values in this step
      g  = factor(d) / (n − 1) · Σⱼ (yⱼ − mean y) / smoothingⱼ · uⱼ

    over the n values that are kept of the last N + 1 steps, each with its smoothing. It
    goes with any rule; the momentum of `radazo` averages once more. The paper divides
    by n, which makes the estimate short by (n − 1) / n; with n − 1 it is unbiased on a
    linear function while the parameters rest. There, along Gaussian directions, its
    total variance is (d + 1) ‖a‖² / (n − 1).

    Args:
      sampler: Law of the directions, which must be independent of each other.
      num_directions: K, at least 1; at least 2 where no past step is used.
      num_past: N, past steps that are used again, at least 0.
      smoothing: As in `finite_difference_estimator`, but ten times as large.
      chunk_size, mask, sharding: As in `finite_difference_estimator`.
      terms: If True, `value_fn` returns an array of terms whose sum is the objective.
        Terms are summed before they are compared, since those of the past are not
        kept: the digits that `terms` is worth elsewhere are not won here.
    Returns:
      An `Estimator`, which is not memoryless. Its value is the mean of the kept values
      of the step. `info` is of this step's K directions: `slopes` and `kept` are (K,),
      with slopes (yₖ − mean y) / smoothing. Where no value of a step is finite, or it
      is alone (n = 1), the gradient is zero and no direction is kept in `info`. With
      `has_aux`, `info.aux` is that of the first point.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; and if the directions of
        `sampler` depend on each other, or n could never be 2.
    Cost:
      K function values per step; directions are drawn (N + 2) · K times. The state is
      N + 1 keys and (N + 1) · K values, no copy of the parameters; beside the gradient
      a direction and a perturbed point for each of the `chunk_size` in work.
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
    """The mean of the gradient estimates of this step and of the last N: ZoHS.

    `history_reuse_estimator` with a base value in each step, in place of the mean; or a
    moving average over a window, without the copies of the parameters it would take.
    Behind `radazo` it is momentum before momentum, which gains nothing as a rule.

      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing          (forward)
      gₜ = factor(d) / |kept| · Σ_{k kept} slopeₖ · uₖ
      g  = mean of gₜ over those of the last N + 1 steps with a direction that is kept

    On a linear function ⟨a, x⟩ the total variance of g along Gaussian directions is
    (d + 1) ‖a‖² / ((N + 1) K).

    Args:
      sampler: Law of the directions, as `gaussian`; see `DirectionSampler`.
      num_directions, smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
      num_past: N, past estimates in the mean, at least 0.
    Returns:
      An `Estimator`, which is not memoryless. Its value and `info` are those that
      `finite_difference_estimator` has in this step: `slopes` and `kept` are (K,), of
      this step alone. Where no direction of a step is kept, the gradient is zero.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step; directions are drawn
      (N + 2) · K times. The state is N + 1 keys and (N + 1) · K slopes, no copy of the
      parameters; beside the gradient a direction and a perturbed point for each of the
      `chunk_size` in work.
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
      2025, arXiv:2506.14460, whose experiments compare with it.
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
    """The estimator that draws its last steps again, each direction at its weight."""
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

    # What is drawn first is evaluated alone, since its weight is not known yet.
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
    """The value in place of a slope; NaN where nothing is moved."""
    del base
    value = jnp.sum(along[0])
    return jnp.where(smoothing > 0, value, jnp.nan), value


_VALUES = differences.Difference((1.0,), _value)


def _remembered(
    state: HistoryState, step: core.Step, info: core.EstimateInfo
) -> HistoryState:
    """The state with this step as its first row, without the oldest."""
    smoothing = jnp.where(jnp.any(info.kept), step.smoothing, 1)
    new = step.key, info.slopes, info.kept, smoothing

    def shifted(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.concatenate([new.astype(old.dtype)[None], old[:-1]])

    return HistoryState(state.count, *map(shifted, new, state[1:]))


def _about_the_mean(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> tuple[jax.Array, core.EstimateInfo]:
    """Weights of values about the mean of all that are kept."""
    values, kept = state.outcomes, state.kept
    num_kept = mean.num_valid(kept, values.dtype)
    # Taken from the lowest, values that are close lose no digits in their sum, and
    # values that are large do not overflow in it.
    lowest = jnp.min(jnp.where(kept, values, jnp.finfo(values.dtype).max))
    above = jnp.where(kept, values - lowest, 0)
    slopes = (above - jnp.sum(above / num_kept)) / state.smoothings.astype(
        values.dtype
    )[:, None]
    informed = jnp.any(kept[0]) & (num_kept > 1)
    slopes = jnp.where(kept & informed, slopes, 0)
    per_direction = info.factor.astype(values.dtype) / jnp.maximum(num_kept - 1, 1)
    # A sum of these is finite: an element of u is below 16.
    largest = float(jnp.finfo(layout.dtype).max) / (16 * kept.size)
    weights = jnp.clip(slopes * per_direction, -largest, largest)
    return jnp.where(informed, weights, 0), info._replace(
        slopes=slopes[0], kept=kept[0] & informed, factor=per_direction * num_kept
    )


def _mean_of_estimates(
    state: HistoryState, info: core.EstimateInfo, layout: flat.Layout
) -> tuple[jax.Array, core.EstimateInfo]:
    """Weights of slopes in the mean of the estimates of their steps."""
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
    """Σ weight · direction over all steps, each direction drawn from its key again."""
    law, dim, dtype = options.sampler, layout.dim, layout.dtype
    num_steps, num_directions = weights.shape
    chunk_size = min(options.chunk_size, num_directions)
    weights = weights.astype(dtype)
    padded = jnp.pad(weights, ((0, 0), (0, -num_directions % chunk_size)))
    ks = jnp.arange(padded.shape[1], dtype=jnp.uint32)
    ks = jnp.minimum(ks, num_directions - 1).reshape(-1, chunk_size)

    def add_step(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> Any:
        key, weights = row
        prepared = law.prepare(key, num_directions, dim, dtype)

        def draw(k: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            drawn = law.draw(prepared, k, dim, dtype)
            return (weight if law.scale is None else weight * law.scale(drawn)), drawn

        def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> Any:
            if chunk_size == 1:
                weight, drawn = draw(*(x[0] for x in chunk))
                return total + weight * drawn, None
            scaled, block = jax.vmap(draw)(*chunk)
            return total + jnp.dot(scaled, block, precision=lax.Precision.HIGHEST), None

        return lax.scan(add_chunk, total, (ks, weights))

    # Zero, and within a `jax.shard_map` of the type that the sum has.
    total = jnp.full(dim, 0 * padded[0, 0])
    rows = padded.reshape(num_steps, -1, chunk_size)
    return lax.scan(add_step, total, (step_keys, rows))[0]
