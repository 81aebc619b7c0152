"""Average slope times direction, in chunks of directions.

  g = factor / |valid| · Σ_{k valid} slopeₖ · uₖ

The fused evaluator evaluates and adds in one pass over the directions. For values that
are evaluated elsewhere, `estimate_mean` takes another pass.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, differences, directions, flat, validation
from radazo.estimators import build
from radazo.evaluate import local

_Pair = tuple[jax.Array, jax.Array]
_Draw = Callable[[jax.Array], jax.Array]
# (slope, scale, drawn) -> (weight, vector): a direction adds weight · vector.
_Weigh = Callable[[jax.Array, jax.Array, jax.Array], _Pair]


class EstimatorState(NamedTuple):
    """State of an estimator that only counts its estimates.

    Attributes:
      count: int32 scalar, estimates so far; input of the `smoothing` schedule.
    """

    count: jax.Array


def _by_slope(slope: jax.Array, scale: jax.Array, drawn: jax.Array) -> _Pair:
    return slope.astype(drawn.dtype) * scale, drawn


class Options(NamedTuple):
    """Options of a mean over directions, as in `finite_difference_estimator`."""

    sampler: directions.DirectionSampler
    num_directions: int | None
    difference: differences.Difference
    chunk_size: int = 1
    weigh: _Weigh = _by_slope

    def resolve(self, layout: flat.Layout) -> int:
        """Return K for parameters of this layout."""
        return self.num_directions or max(layout.dim, 1)


def estimator(
    api_name: str, options: Options, settings: build.Settings
) -> core.Estimator:
    """Build the estimator whose gradient is the mean of slope times direction."""
    check(api_name, options, settings)
    if settings.sharding is not None:
        # The rounding of the sum must not depend on the chunk size.
        options = options._replace(chunk_size=1)
    return build.estimator(
        api_name,
        lambda layout: EstimatorState(jnp.zeros((), jnp.int32)),
        lambda step, state: queries(step, options),
        functools.partial(estimate_mean, options=options),
        settings,
        memoryless=True,
    )


def check(api_name: str, options: Options, settings: build.Settings) -> None:
    """Check the options, and that the points of a sharded step are known beforehand."""
    sampler, number, difference, *_ = options
    validation.check(api_name, sampler=sampler, difference=difference)
    if number is not None:
        validation.check(api_name, num_directions=number)
    if settings.sharding is not None:
        _check_steps(api_name, difference)


def _check_steps(api_name: str, difference: differences.Difference) -> None:
    if not difference.steps:
        rule, got = "take values at known points", repr(difference)
        hint = "Use `radazo.forward`, `radazo.central` or `radazo.one_point`."
        validation.fail(api_name, "difference", rule, got, hint)


def queries(
    step: core.Step, options: Options, draw: _Draw | None = None
) -> core.Queries:
    """Return the queries along K directions, `draw(k)` or those of the sampler."""
    layout, difference = step.layout, options.difference
    num_directions, draw = options.resolve(layout), draw or _drawer(step, options)
    fused = functools.partial(_evaluate_and_add, step, options, draw)
    if not difference.steps:

        def fail(*inputs: Any) -> Any:
            del inputs
            _check_steps("finite_difference_estimator", difference)

        found = core.Queries(num_directions, fail, fail, num_directions)
        return found._replace(evaluate=fused, shared=draw)
    num_base, num_steps = int(difference.at_params), len(difference.steps)

    def point(index: Any) -> core.Params:
        index = jnp.asarray(index).astype(jnp.uint32)
        k, which = jnp.divmod(jnp.maximum(index, num_base) - num_base, num_steps)
        drawn = draw(k)
        # Within the loop, the distances of a constant `smoothing` are constants to XLA.
        distances = difference.distances(step.smoothing)
        distance = distances[which] * _scale(options.sampler, drawn)
        perturbed = flat.perturb(layout, step.params, drawn, distance, index)
        at_params = index < num_base
        return core.select(at_params, step.params, perturbed) if num_base else perturbed

    def read(values: jax.Array, aux: Any) -> core.Readings:
        base = values[0] if num_base else None
        along = values[num_base:].reshape(-1, num_steps, *values.shape[1:])
        # One by one, as when fused: the layout of an array decides the order of a sum.
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
        fused=fused,
        shared=draw,
    )


def estimate_mean(
    step: core.Step,
    state: Any,
    queries: core.Queries,
    readings: core.Readings,
    options: Options,
) -> core.Estimate:
    """Compute the estimate from readings; redraw directions unless already summed."""
    layout, sampler = step.layout, options.sampler

    def one(drawn: jax.Array, k: jax.Array, opaque_index: jax.Array) -> Any:
        del opaque_index
        return options.weigh(readings.slopes[k], _scale(sampler, drawn), drawn), None

    fused = readings.fused
    if fused is None:
        fused, _ = _sum(queries.shared, one, layout, options)
    total, opaque_index = fused
    gradient = mean_scale(options, layout, readings.valid) * total
    info = make_info(layout, options, readings)
    return core.Estimate(readings.value, gradient, state, info, opaque_index)


def _evaluate_and_add(
    step: core.Step, options: Options, draw: _Draw, function: core.Function, *_: Any
) -> core.Readings:
    """Evaluate along each direction at `step.params` and add it, in one pass."""
    along, read = line_evaluator(step, options, function)

    def one(drawn: jax.Array, k: jax.Array, opaque_index: jax.Array) -> Any:
        del k
        scale, seen = along(drawn, opaque_index)
        return options.weigh(seen[0], scale, drawn), seen

    fused, seen = _sum(draw, one, step.layout, options)
    return read(*seen)._replace(fused=fused)


def line_evaluator(
    step: core.Step, options: Options, function: core.Function
) -> tuple[Callable[..., Any], Callable[..., core.Readings]]:
    """Evaluate f(x) if it is needed, and return how to evaluate and to read the rest.

    scale, seen = along(drawn, opaque_index)        along one direction
    readings = read(*seen)                          of all directions, stacked
    """
    layout, difference = step.layout, options.difference
    base, base_aux = function(step.params) if difference.at_params else (None, None)

    def along(drawn: jax.Array, opaque_index: jax.Array) -> tuple[jax.Array, Any]:
        scale = _scale(options.sampler, drawn)

        def line(distance: jax.Array) -> core.Params:
            distance = distance * scale
            return flat.perturb(layout, step.params, drawn, distance, opaque_index)

        slope, value, aux = differences.slope(
            difference, function, line, base, step.smoothing
        )
        slope, valid = valid_slope(slope, options, layout)
        # If f(x) is evaluated, its aux is that of the step; the others are discarded.
        return scale, (slope, valid, value, aux if base is None else None)

    def read(slopes: Any, valid: Any, values: Any, aux: Any) -> core.Readings:
        if base is not None:
            return core.Readings(jnp.sum(base), slopes, valid, base_aux)
        value = mean_of_valid(values, valid)
        return core.Readings(value, slopes, valid, jax.tree.map(lambda x: x[0], aux))

    return along, read


def make_info(
    layout: flat.Layout, options: Options, readings: core.Readings
) -> core.EstimateInfo:
    """Return the info of a step with these readings."""
    _, slopes, valid, aux, _ = readings
    num_values = jnp.asarray(options.difference.num_values(slopes.size), jnp.int32)
    factor, squared_norm = options.sampler.factor(layout.dim), math.nan
    if options.weigh is not _by_slope:
        factor = math.nan
    elif options.sampler.independent and layout.dim:
        squared_norm = layout.dim / factor
    constants = (jnp.asarray(x, slopes.dtype) for x in (factor, squared_norm))
    return core.EstimateInfo(slopes, valid, num_values, aux, *constants)


def _drawer(step: core.Step, options: Options) -> _Draw:
    """Return a function that draws one direction of the step."""
    sampler, size = options.sampler, (step.layout.dim, step.layout.dtype)
    prepared = sampler.prepare(step.key, options.resolve(step.layout), *size)
    return lambda k: sampler.draw(prepared, k, *size)


def _sum(
    draw: _Draw, one: Callable[..., Any], layout: flat.Layout, options: Options
) -> tuple[Any, Any]:
    """Return (sum of weight times vector, number of chunks), other outputs of `one`."""
    num_directions = options.resolve(layout)
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
            in_batch = jax.vmap(one, (0, 0, None))
            (weights, block), seen = in_batch(drawn, ks, opaque_index)
            total = total + jnp.dot(weights, block, precision=lax.Precision.HIGHEST)
        return (total, opaque_index + jnp.uint32(1)), seen

    ks = jnp.arange(num_directions, dtype=jnp.uint32)
    carry = jnp.zeros(layout.dim, layout.dtype), jnp.uint32(0)
    if jax.sharding.get_abstract_mesh().manual_axes:
        # The sum varies along the axes along which `add_chunk` does.
        (total, _), _ = jax.eval_shape(add_chunk, carry, ks[:chunk_size])
        carry = local.zeros_like(total), carry[1]
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
    return sampler.scale(drawn, drawn.size)


def valid_slope(slope: jax.Array, options: Options, layout: flat.Layout) -> _Pair:
    """Return (slope, valid): 0 and False where slope or gradient could overflow."""
    gain = options.resolve(layout) * max(options.sampler.factor(layout.dim), 1.0)
    valid = jnp.abs(slope) <= core.largest(slope.dtype, layout.dtype) / gain
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
