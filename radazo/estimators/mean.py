"""Average slope times direction, in chunks of directions.

  g = factor / |valid| · Σ_{k valid} slopeₖ · uₖ

A chunk of `chunk_size` directions is drawn, evaluated and added in one batch. A chunk
of 1 needs one perturbed point and one accumulator for any K. The directions do not
depend on `chunk_size`; the estimate does in its last digits, since sums and batched
functions round differently.

`fused` evaluates and adds in one pass over the directions. `queries` and `estimated` do
the same in two passes, for values that are evaluated elsewhere.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, differences, directions, flat, validation
from radazo.estimators import build

# weigh(slope, scale, drawn) -> (weight, vector): a direction adds weight · vector.
Weigh = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class EstimatorState(NamedTuple):
    """State of an estimator that only counts its estimates.

    Attributes:
      count: int32 scalar, estimates so far; input of the `smoothing` schedule.
    """

    count: jax.Array


def _slope_times_direction(
    slope: jax.Array, scale: jax.Array, drawn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return slope.astype(drawn.dtype) * scale, drawn


class Options(NamedTuple):
    """Options of a mean over directions.

    Attributes:
      sampler: Sampler of the directions.
      num_directions: K, or None for the number of perturbed elements.
      difference: Finite difference that computes a slope.
      chunk_size: Directions drawn and added in one batch.
      weigh: Direction k adds weight · vector to the sum.
    """

    sampler: directions.DirectionSampler
    num_directions: int | None
    difference: differences.Difference
    chunk_size: int = 1
    weigh: Weigh = _slope_times_direction

    def resolved(self, layout: flat.Layout) -> int:
        """Return K for parameters of this layout."""
        return self.num_directions or max(layout.dim, 1)


def estimator(
    api_name: str, options: Options, settings: build.Settings
) -> core.Estimator:
    """Build the estimator whose gradient is the mean of slope times direction."""
    check(api_name, options, settings)
    # With sharding, the rounding of the sum must not depend on the chunk size.
    chunked = options if settings.sharding is None else options._replace(chunk_size=1)

    def init(layout: flat.Layout, params: core.Params) -> EstimatorState:
        del layout, params
        return EstimatorState(jnp.zeros((), jnp.int32))

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        return estimated(step, chunked, queries, readings)._replace(state=state)

    return build.estimator(
        api_name,
        init,
        lambda step, state: queries(step, options),
        estimate,
        settings,
        fused=lambda function, step, state: fused(function, step, options)._replace(
            state=state
        ),
        memoryless=True,
    )


def check(api_name: str, options: Options, settings: build.Settings) -> None:
    """Check the options, and that the points of a sharded step are known beforehand."""
    validation.check(
        api_name, num_directions=options.num_directions, difference=options.difference
    )
    if settings.sharding is not None:
        _check_steps(api_name, options.difference)


def _check_steps(api_name: str, difference: differences.Difference) -> None:
    if not difference.steps:
        validation.fail(
            api_name,
            "difference",
            "take values at known points",
            repr(difference),
            "Use `radazo.forward`, `radazo.central` or `radazo.one_point`.",
        )


def queries(
    step: core.Step,
    options: Options,
    draw: Callable[[jax.Array], jax.Array] | None = None,
) -> core.Queries:
    """Return the queries along K directions, `draw(k)` or those of the sampler."""
    layout, difference = step.layout, options.difference
    num_directions, sampler = options.resolved(layout), options.sampler
    prepared = None
    if draw is None:
        prepared = sampler.prepare(step.key, num_directions, layout.dim, layout.dtype)
        draw = _drawer(sampler, prepared, layout)
    if not difference.steps:
        return _derivatives(options, num_directions, prepared, draw)
    num_base, num_steps = int(difference.at_params), len(difference.steps)

    def point(index: Any) -> core.Params:
        index = jnp.asarray(index).astype(jnp.uint32)
        k, which = jnp.divmod(jnp.maximum(index, num_base) - num_base, num_steps)
        drawn = draw(k)
        # XLA knows the distances of a constant `smoothing` only within the loop.
        distances = difference.distances(step.smoothing)
        distance = distances[which] * _scale(sampler, drawn)
        moved = flat.perturb(layout, step.params, drawn, distance, index)
        if not num_base:
            return moved
        return jax.tree.map(
            lambda new, x: (
                jnp.where(index < num_base, x, new) if core.is_floating(x) else x
            ),
            moved,
            step.params,
        )

    def read(values: jax.Array, aux: Any) -> core.Readings:
        base = values[0] if num_base else None
        along = values[num_base:].reshape(-1, num_steps, *values.shape[1:])
        # Direction by direction, as in `fused`: the order of a sum of terms depends on
        # the layout of the array from which they are read.
        slopes, means = lax.map(
            lambda k: difference.slope(base, along[k], step.smoothing),
            jnp.arange(along.shape[0], dtype=jnp.uint32),
        )
        slopes, valid = valid_slope(slopes, options, layout)
        value = mean_of_valid(means, valid) if base is None else jnp.sum(base)
        return core.Readings(value, slopes, valid, aux)

    return core.Queries(
        num=difference.num_values(num_directions),
        point=point,
        read=read,
        num_readings=num_directions,
        base=step.params if num_base else None,
        shared=prepared,
    )


def _derivatives(
    options: Options,
    num_directions: int,
    prepared: Any,
    draw: Callable[[jax.Array], jax.Array],
) -> core.Queries:
    """Return queries for derivatives, which only their own `evaluate` can compute."""

    def unknown(*inputs: Any) -> Any:
        del inputs
        _check_steps("ask", options.difference)

    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        del queries

        def derivative(k: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
            drawn = draw(k)

            def line(distance: jax.Array) -> core.Params:
                distance = distance * _scale(options.sampler, drawn)
                return flat.perturb(step.layout, step.params, drawn, distance, k)

            return differences.slope(
                options.difference, function, line, None, step.smoothing
            )

        ks = jnp.arange(num_directions, dtype=jnp.uint32)
        slopes, values, aux = lax.map(derivative, ks)
        slopes, valid = valid_slope(slopes, options, step.layout)
        aux = jax.tree.map(lambda x: x[0], aux)
        return core.Readings(mean_of_valid(values, valid), slopes, valid, aux)

    return core.Queries(
        num=num_directions,
        point=unknown,
        read=unknown,
        num_readings=num_directions,
        evaluate=evaluate,
        shared=prepared,
    )


def estimated(
    step: core.Step, options: Options, queries: core.Queries, readings: core.Readings
) -> core.Estimate:
    """Compute the estimate from readings, redrawing the directions."""
    layout, sampler = step.layout, options.sampler
    slopes, valid = valid_slope(
        jnp.where(readings.valid, readings.slopes, jnp.nan), options, layout
    )

    def one(drawn: jax.Array, k: jax.Array, opaque_index: jax.Array) -> Any:
        del opaque_index
        return options.weigh(slopes[k], _scale(sampler, drawn), drawn), None

    draw = _drawer(sampler, queries.shared, layout)
    (total, opaque_index), _ = _summed(draw, one, layout, options)
    readings = readings._replace(slopes=slopes, valid=valid)
    return _finished(step, options, readings, total, opaque_index)


def fused(function: core.Function, step: core.Step, options: Options) -> core.Estimate:
    """Evaluate along each direction and add it, in one pass."""
    layout, sampler, difference = step.layout, options.sampler, options.difference
    prepared = sampler.prepare(
        step.key, options.resolved(layout), layout.dim, layout.dtype
    )
    base, base_aux = function(step.params) if difference.at_params else (None, None)

    def one(drawn: jax.Array, k: jax.Array, opaque_index: jax.Array) -> Any:
        del k
        scale = _scale(sampler, drawn)

        def line(distance: jax.Array) -> core.Params:
            return flat.perturb(
                layout, step.params, drawn, distance * scale, opaque_index
            )

        slope, value, aux = differences.slope(
            difference, function, line, base, step.smoothing
        )
        slope, valid = valid_slope(slope, options, layout)
        # The aux of f(x) is that of the step where f(x) is taken: no other is held.
        aux = aux if base is None else None
        return options.weigh(slope, scale, drawn), (slope, valid, value, aux)

    draw = _drawer(sampler, prepared, layout)
    (total, opaque_index), seen = _summed(draw, one, layout, options)
    slopes, valid, values, aux = seen
    if base is None:
        value, aux = mean_of_valid(values, valid), jax.tree.map(lambda x: x[0], aux)
    else:
        value, aux = jnp.sum(base), base_aux
    readings = core.Readings(value, slopes, valid, aux)
    return _finished(step, options, readings, total, opaque_index)


def _finished(
    step: core.Step,
    options: Options,
    readings: core.Readings,
    total: jax.Array,
    opaque_index: jax.Array,
) -> core.Estimate:
    """Compute the estimate from the sum of weight times vector."""
    gradient = mean_scale(options, step.layout, readings.valid) * total
    info = make_info(step.layout, options, readings)
    return core.Estimate(readings.value, gradient, None, info, opaque_index)


def make_info(
    layout: flat.Layout, options: Options, readings: core.Readings
) -> core.EstimateInfo:
    """Return the info of a step with these readings."""
    _, slopes, valid, aux = readings
    num_values = options.difference.num_values(slopes.size)
    factors = _constants(options.sampler, layout.dim, slopes.dtype)
    return core.EstimateInfo(
        slopes, valid, jnp.asarray(num_values, jnp.int32), aux, *factors
    )


def _drawer(
    sampler: directions.DirectionSampler, prepared: Any, layout: flat.Layout
) -> Callable[[jax.Array], jax.Array]:
    return lambda k: sampler.draw(prepared, k, layout.dim, layout.dtype)


def _summed(
    draw: Callable[[jax.Array], jax.Array],
    one: Callable[..., tuple[Any, Any]],
    layout: flat.Layout,
    options: Options,
) -> tuple[Any, Any]:
    """Return (sum of weight times vector, number of chunks), other outputs of `one`."""
    num_directions = options.resolved(layout)
    chunk_size = min(options.chunk_size, num_directions)

    def add_chunk(carry: tuple[jax.Array, jax.Array], ks: jax.Array) -> tuple[Any, Any]:
        total, opaque_index = carry
        if chunk_size == 1:
            (weight, vector), seen = one(draw(ks[0]), ks[0], opaque_index)
            total = total + weight * vector
            seen = jax.tree.map(lambda x: x[None], seen)
        else:
            # In two batches: XLA on CPU redraws directions fused with a broadcast.
            drawn = lax.map(draw, ks, batch_size=-(-chunk_size // 2))
            (weights, block), seen = jax.vmap(one, (0, 0, None))(
                drawn, ks, opaque_index
            )
            total = total + jnp.dot(weights, block, precision=lax.Precision.HIGHEST)
        return (total, opaque_index + jnp.uint32(1)), seen

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
    return carry, seen


def _scale(sampler: directions.DirectionSampler, drawn: jax.Array) -> jax.Array:
    """Return the factor from a drawn vector to a direction."""
    if sampler.scale is None:
        return jnp.ones((), drawn.dtype)
    return sampler.scale(drawn)


def valid_slope(
    slope: jax.Array, options: Options, layout: flat.Layout
) -> tuple[jax.Array, jax.Array]:
    """Return (slope, valid), with slope 0 where invalid.

    A slope is invalid if it is not finite, or so large that an element of the gradient
    could overflow.
    """
    # An element of u is below 16.
    factor = max(options.sampler.factor(layout.dim), 1.0)
    share = 16 * options.resolved(layout) * factor
    largest = min(float(jnp.finfo(x).max) for x in (slope.dtype, layout.dtype))
    valid = jnp.abs(slope) <= largest / share
    return jnp.where(valid, slope, jnp.zeros_like(slope)), valid


def mean_scale(options: Options, layout: flat.Layout, valid: jax.Array) -> jax.Array:
    """Return the factor of slope times direction in the mean over valid directions."""
    return options.sampler.factor(layout.dim) / num_valid(valid, layout.dtype)


def num_valid(valid: jax.Array, dtype: Any) -> jax.Array:
    """Return the number of valid directions, at least 1."""
    return jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1).astype(dtype)


def mean_of_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean value over valid directions; without any, the first value."""
    sum_valid = jnp.sum(jnp.where(valid, values, jnp.zeros_like(values)))
    mean_valid = sum_valid / num_valid(valid, values.dtype)
    return jnp.where(jnp.any(valid), mean_valid, values[0])


def _constants(sampler: directions.DirectionSampler, dim: int, dtype: Any) -> Any:
    """Return the factor of the sampler, and its mean of ‖u‖²."""
    factor = sampler.factor(dim)
    squared_norm = dim / factor if sampler.independent and dim else math.nan
    return jnp.asarray(factor, dtype), jnp.asarray(squared_norm, dtype)


def _varying(add_chunk: Any, carry: Any, ks: jax.Array) -> Any:
    """Return the carry with the varying mesh axes that `add_chunk` gives it."""
    (total, _), _ = jax.eval_shape(add_chunk, carry, ks)
    kind = getattr(total, "manual_axis_type", None)  # None if it is not checked.
    axes = getattr(total, "vma", None) if kind is None else kind.varying
    return (lax.pcast(carry[0], tuple(axes), to="varying"), carry[1]) if axes else carry
