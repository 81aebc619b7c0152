"""Optimize a model that fits into memory only once, without copying it.

An `optax` gradient or update has the size of the parameters. Here `lazy` evaluates
along a direction without forming the perturbed point, and `partwise` redraws the
directions and updates the parameters in place.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from radazo import core, differences, directions, flat, random, validation
from radazo.estimators import build, mean
from radazo.evaluate import lazy, perturbed
from radazo.optimizers import combinators, partwise

_MISSING = 0.01  # Share of a first moment that is truncated.


class InPlace(NamedTuple):
    """An optimizer that updates parameters in place.

    Attributes:
      init: `init(params) -> state`, a `WithEstimatorState`.
      step: `step(value_fn, params, state, **extra) -> (params, state, info)`. Keywords
        go to `value_fn`; `info` is an `EstimateInfo`.
    """

    init: Callable[[core.Params], combinators.WithEstimatorState]
    step: Callable[..., tuple[core.Params, combinators.WithEstimatorState, Any]]


class PastSlopes(NamedTuple):
    """The weights of past directions, from which the first moment is redrawn.

    Attributes:
      counts: (num_steps,) int32, the step counts, latest first.
      weights: (num_steps, num_directions), the weight of each direction in the estimate
        of its step; 0 before the first.
    """

    counts: jax.Array
    weights: jax.Array


def in_place(
    optimizer: optax.GradientTransformation,
    *,
    key: core.Key,
    sampler: directions.DirectionSampler = directions.gaussian,
    num_directions: int = 1,
    smoothing: core.Schedule | float = 1e-3,
    difference: differences.Difference = differences.central,
    b1: float = 0.0,
    num_steps: int | None = None,
    moment_dtype: Any = None,
    terms: bool = False,
    mask: core.Mask = None,
) -> InPlace:
    """Take zeroth-order steps in the memory that an evaluation of the function needs.

    An interpreter runs the program of `value_fn`, unmodified. It perturbs the layers of
    a `jax.lax.scan` one at a time, only the looked-up rows of a table, large matrices
    in blocks of a product, and any other leaf just before its use. Noise is not kept:
    each part of the parameters is then updated from redrawn directions.

      slopeₖ = (f(x + smoothing · uₖ) − f(x − smoothing · uₖ)) / (2 smoothing)
      g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ
      mu = (1 − b1) · Σ_{age < num_steps} b1^age · g_age        g alone if b1 = 0
      x ← x + optimizer(mu)

    The optimizer gets one part at a time: a leaf; of a leaf with three or more axes, a
    slice along the first; of a matrix of more than 2²⁰ elements, a block of rows
    if divisible. Moments shared by `factored` or `per_leaf`, and norms, are per part.

    Directions, slopes and keys are those of `with_estimator` with the same key. Updates
    of bfloat16 or float16 parameters are rounded stochastically, so that the mean keeps
    updates far below their precision; a zero update leaves them unchanged.

    Memory of a step for a 12-layer, 512-wide float32 transformer and 2 sequences of 64
    tokens, in multiples of inference (`python -m benchmarks memory` for other shapes):

      optax.sgd(lr)                                                         1.01
      chain(scale_by_radazo(), scale(-lr))                                  2.87
      the same, moment_dtype=jnp.bfloat16                                   1.97
      the same with granularity=factored                                    1.48
      chain(scale_by_second_moment(granularity=factored), scale(-lr)), b1   1.01

    Args:
      optimizer: Any `optax.GradientTransformation` that takes a gradient, its learning
        rate included.
      key: Typed key or integer seed of the run.
      sampler: `gaussian`, `sphere` or `rademacher`, which can be drawn in parts.
      num_directions: K, at least 1.
      smoothing: Distance moved along a direction, greater than 0, or a schedule of the
        number of steps so far; in units of ‖u‖, which is √d except for `sphere`.
      difference: `forward`, `central`, `one_point` or `forward_mode`.
      b1: Decay rate of a first moment that is redrawn instead of stored, in [0, 1).
      num_steps: Steps in the first moment; None for the least with b1^num_steps ≤ 0.01,
        44 for 0.9. Older steps count as 0.
      moment_dtype: Dtype of the elementwise optimizer state, rounded stochastically,
        e.g. `jnp.bfloat16`; None for at least float32.
      terms, mask: As in `finite_difference_estimator`.
    Returns:
      An `InPlace`. Wrap `step` in `jax.jit` and donate parameters and state, as in the
      example, to keep them in place. A step without a finite value changes neither.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
      UserWarning: If a large leaf with three axes is perturbed as a whole, because
        `value_fn` takes no slice of it.
    Cost:
      2K function values per step (`central`). Each direction is drawn once per value,
      again for the update (`num_steps` times in all with b1) and again for the norm of
      `sphere`. No copy of the parameters beside the optimizer state.
    Example:
      >>> optimizer = in_place(optax.sgd(0.05), key=0)
      >>> def step(params, state):
      ...     return optimizer.step(lambda x: jnp.sum(x**2), params, state)
      >>> step = jax.jit(step, donate_argnums=(0, 1))
      >>> params, state = jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2))
      >>> for _ in range(100):
      ...     params, state, info = step(params, state)
      >>> print(state.last_value < 1e-3, state.num_values)
      True 200
    References:
      Malladi et al., Fine-tuning language models with just forward passes, 2023.
      arXiv:2305.17333 (the same, its parameters moved there and back).
    """
    api_name = "in_place"
    num_steps = _checked(api_name, optimizer, b1, num_steps, moment_dtype)
    options = mean.Options(sampler, num_directions, difference)
    settings = build.Settings(smoothing, terms, mask)
    _check_options(api_name, options, settings)
    rule = partwise.Rule(optimizer, moment_dtype)
    words = random.key_data(api_name, key)

    def init(params: core.Params) -> combinators.WithEstimatorState:
        layout = flat.layout(api_name, params, mask, in_parts=True)
        weights = jnp.zeros((num_steps, num_directions), layout.dtype)
        past = PastSlopes(jnp.zeros(num_steps, jnp.int32), weights)
        # Compiled, since `init` uses only the shape of a wide copy of a part.
        states = jax.jit(lambda params: partwise.init(rule, params, layout))(params)
        _check_takes_a_gradient(api_name, states)
        return combinators.init_state(words, past, states)

    def step(
        value_fn: core.ValueFn | None,
        params: core.Params,
        state: combinators.WithEstimatorState,
        *,
        evaluate: core.Evaluate | None = None,
        **extra: Any,
    ) -> tuple[core.Params, combinators.WithEstimatorState, core.EstimateInfo]:
        call = f"{api_name}(...).step"
        if evaluate is None or value_fn is not None:
            validation.check(call, value_fn=value_fn)
        bound = functools.partial(value_fn or _unknown, **extra)
        layout = flat.layout(api_name, params, mask, in_parts=True)
        function = differences.evaluation(api_name, bound, terms=terms, has_aux=False)
        distance = build.smoothing_at(smoothing, state.count, layout)
        own = random.fold_in(state.key_data, state.count)
        here = core.Step(own, layout, params, distance, terms)
        if evaluate is None:
            readings, scales = _evaluated(function, here, options)
        else:
            readings = evaluate(function, here, _queries(here, options))
            scales = lax.map(lambda k: _scale(here, options, k), _ks(options))
        value, weights, info = _weights(options, layout, readings, scales)
        any_kept = jnp.any(info.kept)
        past = _remembered(state.estimator, state.count, weights, any_kept)
        moment = _mean(state.key_data, past, sampler, b1)
        params, states = partwise.move(
            rule, moment, own, params, state.optimizer, layout, any_kept
        )
        state = state._replace(estimator=past, optimizer=states)
        return params, combinators.update_counters(state, value, info, any_kept), info

    return InPlace(init, step)


def _unknown(params: core.Params) -> Any:
    """Fail: the function is evaluated elsewhere."""
    del params
    hint = "Use `forward`, `central` or `one_point`, whose points are known."
    validation.fail("in_place(...).step", "value_fn", "be a function", "None", hint)


def _checked(
    api_name: str, optimizer: Any, b1: Any, num_steps: Any, moment_dtype: Any
) -> int:
    """Check the arguments; return the number of remembered steps."""
    hint = "Pass `optax.sgd(1e-6)`, say, or a chain with `radazo.scale_by_radazo()`."
    validation.transformation(api_name, optimizer, hint)
    validation.decay(api_name, "b1", b1)
    validation.floating(api_name, "moment_dtype", moment_dtype)
    if num_steps is None:
        return math.ceil(math.log(_MISSING) / math.log(b1)) if b1 > 0 else 1
    hint = "It says how many steps are remembered; None takes what `b1` needs."
    validation.integer(api_name, "num_steps", num_steps, 1, hint)
    return num_steps


def _check_takes_a_gradient(api_name: str, states: Any) -> None:
    found = jax.tree.leaves(states, is_leaf=combinators.is_estimator_state)
    if any(combinators.is_estimator_state(x) for x in found):
        validation.fail(
            api_name,
            "optimizer",
            "take a gradient",
            "one with an estimator in it",
            "Pass the rule alone: `optax.chain(radazo.scale_by_radazo(), "
            "optax.scale(-1e-6))`, say.",
        )


def _check_options(
    api_name: str, options: mean.Options, settings: build.Settings
) -> None:
    validation.check(
        api_name,
        sampler=options.sampler,
        smoothing=settings.smoothing,
        terms=settings.terms,
    )
    directions.check_parts(api_name, options.sampler)
    hint = "Each is drawn again for the update; 1 is a good start."
    validation.integer(api_name, "num_directions", options.num_directions, 1, hint)
    mean.check(api_name, options, settings)


def _ks(options: mean.Options) -> jax.Array:
    return jnp.arange(options.num_directions, dtype=jnp.uint32)


def _scale(step: core.Step, options: mean.Options, k: jax.Array) -> jax.Array:
    own = random.fold_in(step.key, k)
    return perturbed.scale_of(options.sampler, own, step.layout)


def _evaluated(
    function: core.Function, step: core.Step, options: mean.Options
) -> tuple[core.Readings, jax.Array]:
    """Evaluate in place; return the readings and the scale of each direction."""
    sampler, layout, params = options.sampler, step.layout, step.params
    difference = options.difference
    base = function(params)[0] if difference.at_params else None

    def one(k: jax.Array) -> tuple[Any, jax.Array]:
        own, scale = random.fold_in(step.key, k), _scale(step, options, k)

        def along(distance: jax.Array) -> tuple[jax.Array, Any]:
            noise = perturbed.noise_along(sampler, own, layout, distance)
            noise = noise._replace(
                seen=functools.partial(_warn_of_a_whole_leaf, params)
            )
            return lazy.evaluate(function, params, layout, noise)

        slope, value, _ = differences.slope(
            difference, along, lambda distance: distance * scale, base, step.smoothing
        )
        slope, valid = mean.valid_slope(slope, options, layout)
        return (slope, valid, value), scale

    (slopes, valid, values), scales = lax.map(one, _ks(options))
    value = mean.mean_of_valid(values, valid) if base is None else jnp.sum(base)
    return core.Readings(value, slopes, valid), scales


def _queries(step: core.Step, options: mean.Options) -> core.Queries:
    """Return the queries of a step, for values that are evaluated elsewhere."""
    sampler, layout = options.sampler, step.layout
    whole = sampler._replace(
        prepare=lambda key, *_: key,
        draw=lambda key, k, dim, dtype: sampler.part(
            random.fold_in(key, k), dim, dtype, 0
        ),
        scale=None,
    )

    def draw(k: jax.Array) -> jax.Array:
        drawn = whole.draw(step.key, k, layout.dim, layout.dtype)
        return drawn * _scale(step, options, k)

    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        del queries
        return _evaluated(function, step, options)[0]

    dense = mean.queries(step, options._replace(sampler=whole), draw)
    return dense._replace(evaluate=evaluate)


def _weights(
    options: mean.Options,
    layout: flat.Layout,
    readings: core.Readings,
    scales: jax.Array,
) -> tuple[jax.Array, jax.Array, core.EstimateInfo]:
    """Return the value, the weight of each direction in the gradient, and the info."""
    slopes, valid = mean.valid_slope(
        jnp.where(readings.valid, readings.slopes, jnp.nan), options, layout
    )
    readings = readings._replace(slopes=slopes, valid=valid)
    info = mean.make_info(layout, options, readings)
    share = mean.mean_scale(options, layout, valid)
    return readings.value, share * (slopes.astype(layout.dtype) * scales), info


def _warn_of_a_whole_leaf(params: core.Params, index: int, size: int) -> None:
    """Warn if a large leaf that could be sliced is perturbed as a whole."""
    path, leaf = jax.tree_util.tree_flatten_with_path(params)[0][index]
    stacked = leaf.ndim > 2 and leaf.shape[0] > 1
    if stacked and size == leaf.size > lazy.BLOCK:
        name = jax.tree_util.keystr(path)
        warnings.warn(
            f"`in_place(...).step` perturbs the leaf {name} of shape {leaf.shape} "
            "as a whole, since `value_fn` takes no slices of it: run over its "
            "first axis by `jax.lax.scan`, and one slice is perturbed at a time.",
            stacklevel=2,
        )


def _remembered(
    past: PastSlopes, count: jax.Array, weights: jax.Array, any_kept: jax.Array
) -> PastSlopes:
    """Return the past with this step in front; unchanged unless `any_kept`."""
    new = PastSlopes(
        jnp.roll(past.counts, 1).at[0].set(count),
        jnp.roll(past.weights, 1, axis=0).at[0].set(weights),
    )
    return jax.tree.map(lambda new, old: jnp.where(any_kept, new, old), new, past)


def _mean(
    key: jax.Array, past: PastSlopes, sampler: directions.DirectionSampler, b1: Any
) -> partwise.WeightedSum:
    """Return the first moment of the remembered estimates as a `WeightedSum`."""
    ages = jnp.arange(past.counts.size, dtype=past.weights.dtype)
    decays = (1 - b1) * jnp.asarray(b1, past.weights.dtype) ** ages
    num_steps, num_directions = past.weights.shape
    counts = jnp.repeat(past.counts, num_directions)
    ks = jnp.tile(jnp.arange(num_directions, dtype=jnp.uint32), num_steps)
    keys = jax.vmap(lambda count, k: random.fold_in(random.fold_in(key, count), k))
    return partwise.WeightedSum(
        sampler, keys(counts, ks), (decays[:, None] * past.weights).ravel()
    )
