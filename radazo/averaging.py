"""The mean of slope times direction: all at once, in chunks, or one at a time.

  g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ

`chunk_size` directions are drawn and evaluated at a time: with 1 a direction is drawn,
evaluated, added and forgotten (a step then needs one perturbed point and one
accumulator, whatever K), with `num_directions` all are evaluated in one batch. The
directions are the same; the estimate differs in its last places, since a chunk is
summed before it is added, and since a batched function may round differently.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import base, checks, differences, directions, leaves, steps

# weigh(slope, scale, drawn) -> (weight, vector): a direction adds weight · vector.
Weigh = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class EstimatorState(NamedTuple):
    """State of an estimator that remembers nothing but the time.

    Attributes:
      count: int32 scalar, estimates so far; the schedule of `smoothing` reads it.
    """

    count: jax.Array


def _slope_times_direction(
    slope: jax.Array, scale: jax.Array, drawn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What a direction adds to an estimate of the gradient."""
    return slope.astype(drawn.dtype) * scale, drawn


class Options(NamedTuple):
    """How a mean over directions is taken: arguments of most estimators.

    `num_directions` may be None for as many as there are dimensions.
    """

    distribution: directions.Distribution
    num_directions: int | None
    smoothing: Any
    difference: differences.Difference
    chunk_size: int
    terms: bool
    mask: base.Mask
    weigh: Weigh = _slope_times_direction


def estimator(where: str, options: Options) -> base.Estimator:
    """The estimator of these options, whose messages say `where`."""
    check(where, options)

    def fresh(layout: leaves.Layout, params: base.Params) -> EstimatorState:
        del layout, params
        return EstimatorState(jnp.zeros((), jnp.int32))

    def estimate(step: steps.Step, state: EstimatorState) -> steps.Estimated:
        value, gradient, turn, info = mean(step, options)
        return steps.Estimated(value, gradient, state, info, turn)

    settings = steps.Settings(options.smoothing, options.terms, options.mask)
    return steps.estimator(where, settings, fresh, estimate, memoryless=True)


def check(where: str, options: Options) -> None:
    """Say what is wrong with the options that `steps.estimator` does not know."""
    if options.num_directions is not None:
        checks.integer(
            where,
            "num_directions",
            options.num_directions,
            1,
            "The variance of the estimate falls as one over it; 10 is a good start.",
        )
    checks.instance(
        where,
        "difference",
        options.difference,
        differences.Difference,
        "Pass `radazo.forward` or `radazo.central`.",
    )
    checks.integer(
        where,
        "chunk_size",
        options.chunk_size,
        1,
        "1 takes one direction after the other, `num_directions` all at once.",
    )


def mean(
    step: steps.Step, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array, base.EstimateInfo]:
    """The value, the mean over kept directions, chunks done, and what was seen."""
    key, layout, evaluate, params, smoothing = step
    distribution, difference = options.distribution, options.difference
    num_directions = options.num_directions or max(layout.dim, 1)
    chunk_size = min(options.chunk_size, num_directions)
    start = difference.start(evaluate, params)
    prepared = distribution.prepare(key, num_directions, layout.dim, layout.dtype)

    def draw(k: jax.Array) -> jax.Array:
        return distribution.draw(prepared, k, layout.dim, layout.dtype)

    def one(drawn: jax.Array, turn: jax.Array) -> tuple[Any, Any]:
        scale = jnp.ones((), layout.dtype)
        if distribution.scale is not None:
            scale = distribution.scale(drawn)
        slope, value, aux = difference.slope(
            evaluate,
            lambda step: leaves.perturb(layout, params, drawn, step * scale, turn),
            start,
            smoothing,
        )
        slope, kept = kept_slope(slope, options, layout)
        return options.weigh(slope, scale, drawn), (slope, kept, value, aux)

    def add_chunk(carry: tuple[jax.Array, jax.Array], ks: jax.Array) -> tuple[Any, Any]:
        total, turn = carry
        if chunk_size == 1:
            (weight, vector), seen = one(draw(ks[0]), turn)
            total = total + weight * vector
            seen = jax.tree.map(lambda x: x[None], seen)
        else:
            # In a loop of two: XLA on CPU draws again what it fuses with a broadcast.
            drawn = lax.map(draw, ks, batch_size=-(-chunk_size // 2))
            (weights, block), seen = jax.vmap(one, in_axes=(0, None))(drawn, turn)
            total = total + jnp.dot(weights, block, precision=lax.Precision.HIGHEST)
        return (total, turn + jnp.uint32(1)), seen

    ks = jnp.arange(num_directions, dtype=jnp.uint32)
    carry = jnp.zeros(layout.dim, layout.dtype), jnp.uint32(0)
    if jax.sharding.get_abstract_mesh().manual_axes:
        carry = _varying(add_chunk, carry, ks[:chunk_size])
    whole = num_directions - num_directions % chunk_size
    carry, seen = lax.scan(add_chunk, carry, ks[:whole].reshape(-1, chunk_size))
    seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    if whole < num_directions:
        carry, rest = add_chunk(carry, ks[whole:])
        seen = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), seen, rest)

    value, info = told(options, layout, start, seen)
    total, turn = carry
    return value, share_of_each(options, layout, info) * total, turn, info


def kept_slope(
    slope: jax.Array, options: Options, layout: leaves.Layout
) -> tuple[jax.Array, jax.Array]:
    """The slope, 0 if it is dropped, and whether it is kept: if it is finite, and
    leaves each element of the gradient finite."""
    num_directions = options.num_directions or max(layout.dim, 1)
    # An element of u is below 16.
    share = 16 * num_directions * max(options.distribution.factor(layout.dim), 1.0)
    largest = min(float(jnp.finfo(x).max) for x in (slope.dtype, layout.dtype))
    kept = jnp.abs(slope) <= largest / share
    return jnp.where(kept, slope, jnp.zeros_like(slope)), kept


def told(
    options: Options, layout: leaves.Layout, start: Any, seen: Any
) -> tuple[jax.Array, base.EstimateInfo]:
    """The value of the step and its info, from what was seen along all directions:
    (slopes, kept, values, auxs)."""
    slopes, kept, values, auxs = seen
    num_values = options.difference.num_values(slopes.size)
    value, aux = _value(start, values, kept, auxs)
    law = _constants(options.distribution, layout.dim, slopes.dtype)
    num_values = jnp.asarray(num_values, jnp.int32)
    return value, base.EstimateInfo(slopes, kept, num_values, aux, *law)


def share_of_each(
    options: Options, layout: leaves.Layout, info: base.EstimateInfo
) -> jax.Array:
    """What multiplies slope times direction in the mean over those that are kept."""
    factor = options.distribution.factor(layout.dim)
    return factor / num_kept(info.kept, layout.dtype)


def num_kept(kept: jax.Array, dtype: Any) -> jax.Array:
    """By how many to divide a sum over kept directions: 1 where there is none."""
    return jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1).astype(dtype)


def _value(start: Any, values: jax.Array, kept: jax.Array, auxs: Any) -> Any:
    """The value of the step and its aux: at the parameters, where that was taken."""
    if start is None:
        return _mean_of_kept(values, kept), jax.tree.map(lambda x: x[0], auxs)
    return jnp.sum(start[0]), start[1]


def _mean_of_kept(values: jax.Array, kept: jax.Array) -> jax.Array:
    """The mean value over kept directions; where there is none, the first value."""
    sum_kept = jnp.sum(jnp.where(kept, values, jnp.zeros_like(values)))
    mean_kept = sum_kept / num_kept(kept, values.dtype)
    return jnp.where(jnp.any(kept), mean_kept, values[0])


def _constants(law: directions.Distribution, dim: int, dtype: Any) -> Any:
    """The factor of the law, and its mean of ‖u‖²."""
    factor = law.factor(dim)
    squared_norm = dim / factor if law.independent and dim else math.nan
    return jnp.asarray(factor, dtype), jnp.asarray(squared_norm, dtype)


def _varying(add_chunk: Any, carry: Any, ks: jax.Array) -> Any:
    """The carry as it comes out of a chunk: within a `jax.shard_map` a type also says
    over which axes of the mesh a value varies."""
    (total, _), _ = jax.eval_shape(add_chunk, carry, ks)
    kind = getattr(total, "manual_axis_type", None)  # None where it is not checked.
    axes = getattr(total, "vma", None) if kind is None else kind.varying
    return (lax.pcast(carry[0], tuple(axes), to="varying"), carry[1]) if axes else carry
