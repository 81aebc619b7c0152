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
from jax.sharding import NamedSharding

from radazo import core, differences, directions, flat, validation
from radazo.estimators import build
from radazo.evaluate import answers, sharded

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

    sampler: directions.DirectionSampler
    num_directions: int | None
    smoothing: Any
    difference: differences.Difference
    chunk_size: int
    terms: bool
    mask: core.Mask
    weigh: Weigh = _slope_times_direction
    sharding: NamedSharding | None = None


def estimator(api_name: str, options: Options) -> core.Estimator:
    """The estimator of these options, whose messages say `where`."""
    check(api_name, options)

    def fresh(layout: flat.Layout, params: core.Params) -> EstimatorState:
        del layout, params
        return EstimatorState(jnp.zeros((), jnp.int32))

    def estimate(step: build.Step, state: EstimatorState) -> build.Estimated:
        value, gradient, turn, info = mean(step, options)
        return build.Estimated(value, gradient, state, info, turn)

    settings = build.Settings(options.smoothing, options.terms, options.mask)
    return build.estimator(api_name, settings, fresh, estimate, memoryless=True)


def check(api_name: str, options: Options) -> None:
    """Say what is wrong with the options that `steps.estimator` does not know."""
    validation.check(
        api_name,
        num_directions=options.num_directions,
        difference=options.difference,
        chunk_size=options.chunk_size,
    )
    sharded.check(api_name, options.sharding)
    if options.sharding is not None:
        _check_steps(api_name, options.difference)


def _check_steps(api_name: str, difference: differences.Difference) -> None:
    """The points of this difference are known before the step."""
    if not difference.steps:
        validation.fail(
            api_name,
            "difference",
            "say in its `steps` where along a direction it takes values",
            "one that does not, as `radazo.forward_mode`",
            "Take `radazo.forward`, `radazo.central` or `radazo.one_point`.",
        )


def mean(
    step: build.Step, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array, core.EstimateInfo]:
    """The value, the mean over kept directions, chunks done, and what was seen."""
    layout, params = step.layout, step.params
    sampler = options.sampler
    num_directions = options.num_directions or max(layout.dim, 1)
    prepared = sampler.prepare(step.key, num_directions, layout.dim, layout.dtype)

    def draw(k: jax.Array) -> jax.Array:
        return sampler.draw(prepared, k, layout.dim, layout.dtype)

    chunk_size = options.chunk_size
    if options.sharding is not None:
        chunk_size = 1  # The sum is the same whatever is evaluated at a time.
    if isinstance(step.given, answers.Asked):
        _check_steps("ask", options.difference)
        point = _point(step, options, draw, step.given.index)
        step.given.found.append((point, options.difference.num_values(num_directions)))
    if options.sharding is None or isinstance(step.given, answers.INSTEAD):
        of = source(step, options, num_directions)
    else:
        of = _over_the_mesh(step, options, draw, num_directions)

    def one(drawn: jax.Array, k: jax.Array, turn: jax.Array) -> tuple[Any, Any]:
        scale = _scale(sampler, drawn)
        slope, value, aux = of.slope(
            k,
            step.evaluate,
            lambda far: flat.perturb(layout, params, drawn, far * scale, turn),
        )
        slope, kept = kept_slope(slope, options, layout)
        return options.weigh(slope, scale, drawn), (slope, kept, value, aux)

    (total, turn), seen = _summed(draw, one, layout, num_directions, chunk_size)
    value, info = told(options, layout, of.start, seen)
    value = noted(step.given, value, info)
    return value, share_of_each(options, layout, info) * total, turn, info


def _summed(
    draw: Callable[[jax.Array], jax.Array],
    one: Callable[..., tuple[Any, Any]],
    layout: flat.Layout,
    num_directions: int,
    chunk_size: int,
) -> tuple[Any, Any]:
    """The sum over directions with the chunks done, and what was seen along each."""
    chunk_size = min(chunk_size, num_directions)

    def add_chunk(carry: tuple[jax.Array, jax.Array], ks: jax.Array) -> tuple[Any, Any]:
        total, turn = carry
        if chunk_size == 1:
            (weight, vector), seen = one(draw(ks[0]), ks[0], turn)
            total = total + weight * vector
            seen = jax.tree.map(lambda x: x[None], seen)
        else:
            # In a loop of two: XLA on CPU draws again what it fuses with a broadcast.
            drawn = lax.map(draw, ks, batch_size=-(-chunk_size // 2))
            (weights, block), seen = jax.vmap(one, (0, 0, None))(drawn, ks, turn)
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
    return carry, seen


class Source(NamedTuple):
    """Where the slopes of a step come from.

    Attributes:
      start: What they share, as of `Difference.start`.
      slope: `slope(k, evaluate, line) -> (slope, value, aux)` along direction k.
    """

    start: Any
    slope: Callable[..., tuple[jax.Array, Any, Any]]


def source(step: build.Step, options: Options, num_directions: int) -> Source:
    """Slopes of values that are taken here, or were taken elsewhere."""
    difference, given = options.difference, step.given
    if isinstance(given, answers.Told):
        _check_steps("Told", difference)
        num_queries = difference.num_values(num_directions)
        values = answers.values(given, num_queries, terms=options.terms)
        return _of_values(step, options, values, None)
    if isinstance(given, answers.Replayed):
        return _of_slopes(answers.slopes(given, num_directions))
    if isinstance(given, answers.Counted):
        given.found.append(num_directions)
    if isinstance(given, answers.Asked | answers.Counted):
        return _of_slopes(jnp.full(num_directions, jnp.nan, step.layout.dtype))
    start = difference.start(step.evaluate, step.params)

    def slope(k: jax.Array, evaluate: Any, line: differences.Line) -> Any:
        del k
        return difference.slope(evaluate, line, start, step.smoothing)

    return Source(start, slope)


def _of_slopes(slopes: jax.Array) -> Source:
    nowhere = jnp.zeros((), slopes.dtype)
    return Source(None, lambda k, evaluate, line: (slopes[k], nowhere, None))


def _of_values(
    step: build.Step, options: Options, values: jax.Array, aux: Any
) -> Source:
    """Slopes of the values of all queries, with the aux of the first."""
    difference, smoothing = options.difference, step.smoothing
    start = difference.start(lambda _: (values[0], aux), step.params)
    distances = smoothing * jnp.asarray(difference.steps, smoothing.dtype)
    shape = -1, len(difference.steps), *values.shape[1:]
    along = values[difference.num_values(0) :].reshape(shape)

    def slope(k: jax.Array, evaluate: Any, line: differences.Line) -> Any:
        del evaluate, line

        def told(distance: jax.Array) -> tuple[jax.Array, Any]:
            return along[k, jnp.argmax(distances == distance)], aux

        return difference.slope(told, lambda distance: distance, start, smoothing)

    return Source(start, slope)


def _over_the_mesh(
    step: build.Step,
    options: Options,
    draw: Callable[[jax.Array], jax.Array],
    num_directions: int,
) -> Source:
    """Slopes of values that all devices of a mesh take together."""
    values, aux = sharded.values(
        options.sharding,
        lambda i: _point(step, options, draw, i),
        step.evaluate,
        options.difference.num_values(num_directions),
        options.chunk_size,
    )
    return _of_values(step, options, values, aux)


def _point(
    step: build.Step,
    options: Options,
    draw: Callable[[jax.Array], jax.Array],
    index: jax.Array,
) -> core.Params:
    """The point of a query: the parameters first, where their value is taken."""
    difference, layout = options.difference, step.layout
    num_shared, num_steps = difference.num_values(0), len(difference.steps)
    index = jnp.asarray(index).astype(jnp.uint32)
    k, which = jnp.divmod(jnp.maximum(index, num_shared) - num_shared, num_steps)
    distances = step.smoothing * jnp.asarray(difference.steps, layout.dtype)
    drawn = draw(k)
    moved = flat.perturb(
        layout,
        step.params,
        drawn,
        distances[which] * _scale(options.sampler, drawn),
        index,
    )
    if not num_shared:
        return moved
    return jax.tree.map(
        lambda new, x: (
            jnp.where(index < num_shared, x, new) if core.is_floating(x) else x
        ),
        moved,
        step.params,
    )


def noted(
    given: answers.Given | None, value: jax.Array, info: core.EstimateInfo
) -> jax.Array:
    """The value of the step, once who watches has been told what was seen."""
    if isinstance(given, answers.Watched):
        given.infos.append(info)
    return jnp.asarray(given.value) if isinstance(given, answers.Replayed) else value


def _scale(law: directions.DirectionSampler, drawn: jax.Array) -> jax.Array:
    """What multiplies what was drawn."""
    return jnp.ones((), drawn.dtype) if law.scale is None else law.scale(drawn)


def kept_slope(
    slope: jax.Array, options: Options, layout: flat.Layout
) -> tuple[jax.Array, jax.Array]:
    """The slope, 0 if it is dropped, and whether it is kept: if it is finite, and
    leaves each element of the gradient finite."""
    num_directions = options.num_directions or max(layout.dim, 1)
    # An element of u is below 16.
    share = 16 * num_directions * max(options.sampler.factor(layout.dim), 1.0)
    largest = min(float(jnp.finfo(x).max) for x in (slope.dtype, layout.dtype))
    kept = jnp.abs(slope) <= largest / share
    return jnp.where(kept, slope, jnp.zeros_like(slope)), kept


def told(
    options: Options, layout: flat.Layout, start: Any, seen: Any
) -> tuple[jax.Array, core.EstimateInfo]:
    """The value of the step and its info, from what was seen along all directions:
    (slopes, kept, values, auxs)."""
    slopes, kept, values, auxs = seen
    num_values = options.difference.num_values(slopes.size)
    value, aux = _value(start, values, kept, auxs)
    law = _constants(options.sampler, layout.dim, slopes.dtype)
    num_values = jnp.asarray(num_values, jnp.int32)
    return value, core.EstimateInfo(slopes, kept, num_values, aux, *law)


def share_of_each(
    options: Options, layout: flat.Layout, info: core.EstimateInfo
) -> jax.Array:
    """What multiplies slope times direction in the mean over those that are kept."""
    factor = options.sampler.factor(layout.dim)
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


def _constants(law: directions.DirectionSampler, dim: int, dtype: Any) -> Any:
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
