"""The mean of slope times direction: all at once, in chunks, or one at a time.

  g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ

`chunk_size` directions are drawn and evaluated at a time: with 1 a direction is drawn,
evaluated, added and forgotten (a step then needs one perturbed point and one
accumulator, whatever K), with `num_directions` all are evaluated in one batch. The
directions are the same; the estimate differs in its last places, since a chunk is
summed before it is added, and since a batched function may round differently.
"""

import contextlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from radazo import base, checks, differences, directions, leaves, threefry

_SMOOTHING_WAY_OUT = (
    "It is the distance moved along a direction, or a schedule of it: "
    "for float32 and a function of order one, 1e-3 is a good start."
)


class EstimatorState(NamedTuple):
    """State of an estimator that remembers nothing but the time.

    Attributes:
      count: int32 scalar, estimates so far; the schedule of `smoothing` reads it.
    """

    count: jax.Array


class Options(NamedTuple):
    """The arguments of `finite_difference_estimator`."""

    distribution: directions.Distribution
    num_directions: int
    smoothing: Any
    difference: differences.Difference
    chunk_size: int
    terms: bool
    mask: base.Mask


def estimator(where: str, options: Options) -> base.Estimator:
    """The estimator of these options, whose messages say `where`."""
    _check(where, options)

    def init(params: base.Params) -> EstimatorState:
        leaves.layout(where, params, options.mask)
        return EstimatorState(jnp.zeros((), jnp.int32))

    def estimate(
        key: base.Key,
        value_fn: base.ValueFn,
        params: base.Params,
        state: EstimatorState,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, base.Params, EstimatorState, base.EstimateInfo]:
        layout = leaves.layout(where, params, options.mask)
        words = threefry.key_data(where, key)
        inputs = jax.tree.leaves((words, params, state))
        traced = any(isinstance(x, Tracer) for x in inputs)
        config: Any = jax.config  # Its flags are not in its type.
        outside = config.jax_disable_jit
        schedule = options.smoothing
        smoothing = schedule(state.count) if callable(schedule) else schedule

        def called(params: base.Params) -> Any:
            with jax.disable_jit(outside):
                return value_fn(params)

        # Outside of any jit the loops run in Python: compiled anew for each call they
        # would take longer, and compiled once they would freeze what `value_fn` reads.
        with contextlib.nullcontext() if traced else jax.disable_jit():
            value, total, turn, info = _sum_over_directions(
                options,
                layout,
                words,
                differences.evaluation(
                    where, called, terms=options.terms, has_aux=has_aux
                ),
                params,
                jnp.asarray(smoothing, layout.dtype),
            )
            num_kept = jnp.maximum(jnp.sum(info.kept, dtype=jnp.int32), 1)
            factor = options.distribution.factor(layout.dim)
            scale = factor / num_kept.astype(layout.dtype)
            gradient = leaves.unravel(layout, params, scale * total, turn)
        state = EstimatorState(jnp.asarray(optax.safe_increment(state.count)))
        return value, gradient, state, info

    return base.Estimator(init, estimate, memoryless=not callable(options.smoothing))


def _check(where: str, options: Options) -> None:
    checks.integer(
        where,
        "num_directions",
        options.num_directions,
        1,
        "The variance of the estimate falls as one over it; 10 is a good start.",
    )
    checks.positive(
        where, "smoothing", options.smoothing, _SMOOTHING_WAY_OUT, schedule=True
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
    checks.instance(
        where,
        "terms",
        options.terms,
        bool,
        "True says that `value_fn` returns terms whose sum is the objective.",
    )


def _sum_over_directions(
    options: Options,
    layout: leaves.Layout,
    key: jax.Array,
    evaluate: differences.Evaluate,
    params: base.Params,
    smoothing: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, base.EstimateInfo]:
    """The value, Σₖ slopeₖ · uₖ over kept directions, chunks done, what was seen."""
    distribution, difference = options.distribution, options.difference
    num_directions = options.num_directions
    chunk_size = min(options.chunk_size, num_directions)
    # Slopes beyond the largest number over this would make the gradient infinite; an
    # element of u is below 16.
    share = 16 * num_directions * max(distribution.factor(layout.dim), 1.0)
    start = difference.start(evaluate, params)
    prepared = distribution.prepare(key, num_directions, layout.dim, layout.dtype)

    def one(k: jax.Array, turn: jax.Array) -> tuple[Any, Any]:
        drawn = distribution.draw(prepared, k, layout.dim, layout.dtype)
        scale = jnp.ones((), layout.dtype)
        if distribution.scale is not None:
            scale = distribution.scale(drawn)
        slope, value, aux = difference.slope(
            evaluate,
            lambda step: leaves.perturb(layout, params, drawn, step * scale, turn),
            start,
            smoothing,
        )
        types = (slope.dtype, layout.dtype)
        largest = min(float(jnp.finfo(dtype).max) for dtype in types) / share
        kept = jnp.abs(slope) <= largest
        slope = jnp.where(kept, slope, jnp.zeros_like(slope))
        weight = slope.astype(layout.dtype) * scale
        return (weight, drawn), (slope, kept, value, aux)

    def add_chunk(carry: tuple[jax.Array, jax.Array], ks: jax.Array) -> tuple[Any, Any]:
        total, turn = carry
        if chunk_size == 1:
            (weight, drawn), seen = one(ks[0], turn)
            total = total + weight * drawn
            seen = jax.tree.map(lambda x: x[None], seen)
        else:
            (weights, block), seen = jax.vmap(one, in_axes=(0, None))(ks, turn)
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

    slopes, kept, values, auxs = seen
    num_values = jnp.asarray(difference.num_values(num_directions), jnp.int32)
    if start is None:
        value, aux = _mean_of_kept(values, kept), jax.tree.map(lambda x: x[0], auxs)
    else:
        value, aux = jnp.sum(start[0]), start[1]
    constants = _constants(distribution, layout.dim, slopes.dtype)
    return value, *carry, base.EstimateInfo(slopes, kept, num_values, aux, *constants)


def _mean_of_kept(values: jax.Array, kept: jax.Array) -> jax.Array:
    """The mean value over kept directions; where there is none, the first value."""
    num_kept = jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
    sum_kept = jnp.sum(jnp.where(kept, values, jnp.zeros_like(values)))
    return jnp.where(jnp.any(kept), sum_kept / num_kept.astype(values.dtype), values[0])


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
