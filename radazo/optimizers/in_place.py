"""Optimize a model that fits into memory only once, without copying it.

`lazy` evaluates along a direction without forming the perturbed point; the parameters
are updated part by part from redrawn directions.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, differences, directions, flat, random, validation
from radazo.estimators import build, mean
from radazo.evaluate import lazy, perturbed
from radazo.optimizers import combinators, stepping

_TRUNCATED = 0.01  # Largest share of a first moment that is dropped.
_UNROLLED = 4  # Directions drawn within one loop over the elements.
_ROUNDING = 1 << 31  # First rounding key; direction keys are smaller.


class PastSlopes(NamedTuple):
    """The weights of past directions, from which the first moment is redrawn.

    Attributes:
      counts: (num_steps,) int32, the step counts, latest first.
      weights: (num_steps, num_directions), the weights, 0 before the first step.
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
) -> stepping.InPlace:
    """Take zeroth-order steps in the memory that an evaluation of the function needs.

    Perturb the layers of a `jax.lax.scan` one at a time, tables only at the rows looked
    up, large matrices block by block, and any other leaf just before use.

      slopeₖ = (f(x + smoothing · uₖ) − f(x − smoothing · uₖ)) / (2 smoothing)
      g = factor / |kept| · Σ_{k kept} slopeₖ · uₖ
      mu = (1 − b1) · Σ_{age < num_steps} b1^age · g_age        g alone if b1 = 0
      x ← x + optimizer(mu)

    The optimizer gets one part at a time: a leaf; of a leaf with three or more axes, a
    slice along the first; of a matrix of more than 2²⁰ elements, a block of rows. So
    moments shared by `factored` or `per_leaf`, and norms, are per part. Updates of
    bfloat16 and float16 parameters are rounded stochastically.

    Memory of a step for a 12-layer, 512-wide float32 transformer and 2 sequences of 64
    tokens, in multiples of inference (`python -m benchmarks memory` for other shapes):

      optax.sgd(lr)                                                         1.01
      chain(scale_by_radazo(), scale(-lr))                                  2.87
      the same, moment_dtype=jnp.bfloat16                                   1.97
      the same with granularity=factored                                    1.48
      chain(scale_by_second_moment(granularity=factored), scale(-lr)), b1   1.01

    Args:
      optimizer: Any `optax.GradientTransformation`, its learning rate included.
      key: Typed key or integer seed of the run.
      sampler: `gaussian`, `sphere`, `rademacher` or `hadamard`, drawn in parts.
      num_directions: K, at least 1.
      smoothing: As in `finite_difference_estimator`; ‖u‖ is √d, but 1 for
        `sphere` and `hadamard`.
      difference: `forward`, `central`, `one_point` or `forward_mode`.
      b1: Decay rate of a first moment that is redrawn instead of stored, in [0, 1).
      num_steps: Steps in the first moment; None for the least with b1^num_steps ≤ 0.01.
      moment_dtype: Dtype of the elementwise optimizer state, rounded stochastically,
        e.g. `jnp.bfloat16`; None for at least float32.
      terms, mask: As in `finite_difference_estimator`.
    Returns:
      An `InPlace`. Donate parameters and state to `jax.jit`, as in the example. A step
      without a finite value changes neither.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
      UserWarning: If `value_fn` takes no slices of a large leaf with three axes.
    Cost:
      2K function values per step (`central`). Each direction is drawn once per value,
      `num_steps` times for updates, and for the norm of `sphere`. No parameter copies.
    Example:
      >>> optimizer, value_fn = in_place(optax.sgd(0.05), key=0), lambda x: x @ x
      >>> step = jax.jit(optimizer.step, static_argnums=0, donate_argnums=(1, 2))
      >>> params, state = jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2))
      >>> for _ in range(100):
      ...     params, state, info = step(value_fn, params, state)
      >>> print(state.last_value < 1e-3, state.num_values)
      True 200
    References:
      Malladi et al., 2023, Fine-tuning language models. arXiv:2305.17333.
    """
    api_name = "in_place"
    validation.transformation(api_name, optimizer)
    validation.check(api_name, sampler=sampler, smoothing=smoothing, terms=terms, b1=b1)
    validation.check(api_name, difference=difference, moment_dtype=moment_dtype)
    directions.check_parts(api_name, sampler)
    hint = "Each is drawn again for the update; 1 is a good start."
    validation.integer(api_name, "num_directions", num_directions, 1, hint)
    if num_steps is None:
        num_steps = math.ceil(math.log(_TRUNCATED) / math.log(b1)) if b1 > 0 else 1
    hint = "It is the number of steps remembered; None takes what `b1` needs."
    validation.integer(api_name, "num_steps", num_steps, 1, hint)
    options = mean.Options(sampler, num_directions, difference)
    rule = _Rule(optimizer, moment_dtype)
    words = random.key_data(api_name, key)

    def init(params: core.Params) -> combinators.WithEstimatorState:
        layout = flat.layout(api_name, params, mask, in_parts=True)
        weights = jnp.zeros((num_steps, num_directions), layout.dtype)
        past = PastSlopes(jnp.zeros(num_steps, jnp.int32), weights)
        # Compiled: wide copies, of which `init` uses only the shapes, are not made.
        states = jax.jit(lambda params: _init(rule, params, layout))(params)
        found = jax.tree.leaves(states, is_leaf=combinators.is_estimator_state)
        if any(map(combinators.is_estimator_state, found)):
            hint = "Pass the rule alone: `optax.sgd(1e-6)`."
            wanted, got = "take a gradient", "one with an estimator"
            validation.fail(api_name, "optimizer", wanted, got, hint)
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
        bound = functools.partial(value_fn or build.evaluated_elsewhere(call), **extra)
        layout = flat.layout(api_name, params, mask, in_parts=True)
        function = differences.evaluation(api_name, bound, terms=terms, has_aux=False)
        distance = build.smoothing_at(smoothing, state.count, layout)
        own = random.fold_in(state.key_data, state.count)
        here = core.Step(own, layout, params, distance, terms)
        keys = _own_keys(state.key_data, state.count[None], options, layout)
        if evaluate is None:
            readings, scales = _evaluate(function, here, options, keys)
        else:
            readings = evaluate(function, here, _queries(here, options, keys))
            scales = lax.map(lambda own: _scale(here, options, own), keys)
        past, info = _remember(state, options, here, readings, scales)
        any_kept = jnp.any(info.kept)
        moment = _mean(state.key_data, past, options, layout, b1)
        params, states = _move(rule, moment, here, state.optimizer, any_kept)
        state = state._replace(estimator=past, optimizer=states)
        state = combinators.update_counters(state, readings.value, info, any_kept)
        return params, state, info

    return stepping.InPlace(init, step)


def _own_keys(
    key: jax.Array, counts: jax.Array, options: mean.Options, layout: flat.Layout
) -> jax.Array:
    """Return the own key of each direction of the steps with these counts, as rows."""
    sampler, num_directions = options.sampler, options.resolve(layout)
    num_steps = sampler.num_steps(num_directions, layout.dim)

    def own_key(count: jax.Array, k: jax.Array) -> jax.Array:
        place = count % num_steps
        step_key = random.fold_in(key, count - place)
        k = k + place.astype(jnp.uint32) * jnp.uint32(num_directions)
        return sampler.own_key(step_key, k, layout.dim)

    ks = jnp.tile(jnp.arange(num_directions, dtype=jnp.uint32), counts.size)
    return jax.vmap(own_key)(jnp.repeat(counts, num_directions), ks)


def _scale(step: core.Step, options: mean.Options, own: jax.Array) -> jax.Array:
    return perturbed.scale_of(options.sampler, own, step.layout)


def _evaluate(
    function: core.Function, step: core.Step, options: mean.Options, keys: jax.Array
) -> tuple[core.Readings, jax.Array]:
    """Evaluate in place; return the readings and the scale of each direction."""
    sampler, layout, params = options.sampler, step.layout, step.params
    difference = options.difference
    base = function(params)[0] if difference.at_params else None

    def one(own: jax.Array) -> tuple[Any, jax.Array]:
        scale = _scale(step, options, own)
        warn = functools.partial(_warn_of_a_whole_leaf, params)

        def along(distance: jax.Array) -> tuple[jax.Array, Any]:
            noise = perturbed.noise_along(sampler, own, layout, distance)
            return lazy.evaluate(function, params, layout, noise._replace(record=warn))

        slope, value, _ = differences.slope(
            difference, along, lambda distance: distance * scale, base, step.smoothing
        )
        slope, valid = mean.valid_slope(slope, options, layout)
        return (slope, valid, value), scale

    (slopes, valid, values), scales = lax.map(one, keys)
    value = mean.mean_of_valid(values, valid) if base is None else jnp.sum(base)
    return core.Readings(value, slopes, valid), scales


def _queries(step: core.Step, options: mean.Options, keys: jax.Array) -> core.Queries:
    """Return the queries of a step, for values that are evaluated elsewhere."""
    sampler, layout = options.sampler, step.layout

    def draw(k: jax.Array) -> jax.Array:
        drawn = sampler.part(keys[k], layout.dim, layout.dtype, 0)
        return drawn * _scale(step, options, keys[k])

    scaled = options._replace(sampler=sampler._replace(scale=None))
    return mean.queries(step, scaled, draw)._replace(
        evaluate=lambda function, step, _: _evaluate(function, step, options, keys)[0],
        fused=None,
    )


def _warn_of_a_whole_leaf(params: core.Params, index: int, size: int) -> None:
    """Warn if a large leaf that could be sliced is perturbed as a whole."""
    path, leaf = jax.tree_util.tree_flatten_with_path(params)[0][index]
    if leaf.ndim > 2 and leaf.shape[0] > 1 and size == leaf.size > lazy.BLOCK:
        name = jax.tree_util.keystr(path)
        message = (
            f"`in_place(...).step` perturbs the leaf {name} of shape {leaf.shape} as a "
            "whole, since `value_fn` takes no slices of it: run over its first axis by "
            "`jax.lax.scan`, and one slice is perturbed at a time."
        )
        warnings.warn(message, stacklevel=2)


def _remember(
    state: combinators.WithEstimatorState,
    options: mean.Options,
    step: core.Step,
    readings: core.Readings,
    scales: jax.Array,
) -> tuple[PastSlopes, core.EstimateInfo]:
    """Return the past with this step in front if a slope is valid, and the info."""
    layout, past = step.layout, state.estimator
    info = mean.make_info(layout, options, readings)
    share = mean.mean_scale(options, layout, readings.valid)
    weights = share * (readings.slopes.astype(layout.dtype) * scales)
    new = PastSlopes(
        jnp.roll(past.counts, 1).at[0].set(state.count),
        jnp.roll(past.weights, 1, axis=0).at[0].set(weights),
    )
    return optax.tree.where(jnp.any(info.kept), new, past), info


class _WeightedSum(NamedTuple):
    """A weighted sum of directions of one or more steps."""

    sampler: directions.DirectionSampler  # It has a `part`.
    keys: jax.Array  # The own key of each direction, as rows.
    weights: jax.Array  # (num_directions,)

    def part(self, offset: Any, size: int) -> jax.Array:
        """Return `size` elements of the sum from `offset` on."""
        dtype = self.weights.dtype

        def add(i: Any, total: jax.Array) -> jax.Array:
            drawn = self.sampler.part(self.keys[i], size, dtype, offset)
            return total + self.weights[i] * drawn

        total = jnp.zeros(size, dtype)
        if self.weights.size > _UNROLLED:
            return lax.fori_loop(0, self.weights.size, add, total)
        for i in range(self.weights.size):
            total = add(i, total)
        return total


def _mean(
    key: jax.Array,
    past: PastSlopes,
    options: mean.Options,
    layout: flat.Layout,
    b1: Any,
) -> _WeightedSum:
    """Return the first moment of the remembered estimates as a `_WeightedSum`."""
    ages = jnp.arange(past.counts.size, dtype=past.weights.dtype)
    decays = (1 - b1) * jnp.asarray(b1, past.weights.dtype) ** ages
    weights = (decays[:, None] * past.weights).ravel()
    keys = _own_keys(key, past.counts, options, layout)
    return _WeightedSum(options.sampler, keys, weights)


class _Rule(NamedTuple):
    """The update rule of a part."""

    optimizer: Any  # An `optax.GradientTransformation`, applied to one part at a time.
    moment_dtype: Any  # Of the stored elementwise state; None for its own.

    def cast(self, state: Any, x: jax.Array, dtype: Any) -> Any:
        """Cast the arrays in the state of part x that `moment_dtype` applies to."""

        def cast(array: Any) -> Any:
            elementwise = core.is_floating(array) and array.shape == x.shape != ()
            return array.astype(dtype) if elementwise else array

        return state if self.moment_dtype is None else jax.tree.map(cast, state)


def _shape_of_part(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of parts of a leaf of this shape, and the shape of one."""
    if len(shape) > 2 and math.prod(shape):
        return shape[0], shape[1:]
    if len(shape) != 2 or math.prod(shape) <= lazy.BLOCK:
        return 1, shape
    # Equal blocks, whose number divides the rows and is nearest to the wanted one.
    rows, columns = shape
    wanted = math.prod(shape) / lazy.BLOCK
    divisors = [num for num in range(1, rows + 1) if rows % num == 0]
    num = min(divisors, key=lambda num: abs(math.log(num / wanted)))
    return num, (rows // num, columns)


def _init(rule: _Rule, params: core.Params, layout: flat.Layout) -> tuple[Any, ...]:
    """Return the optimizer states of the parts of each perturbed leaf, stacked."""

    def of_part(x: jax.Array) -> Any:
        state = rule.optimizer.init(x.astype(core.wide(x.dtype)))
        return rule.cast(state, x, rule.moment_dtype)

    def start(leaf: Any) -> Any:
        num, shape = _shape_of_part(leaf.shape)
        return jax.vmap(of_part)(jnp.asarray(leaf).reshape(num, *shape))

    chosen = zip(jax.tree.leaves(params), layout.active, strict=True)
    return tuple(start(leaf) for leaf, on in chosen if on)


def _move(
    rule: _Rule,
    gradient: _WeightedSum,
    step: core.Step,
    states: Any,
    any_kept: jax.Array,
) -> tuple[core.Params, tuple[Any, ...]]:
    """Return parameters and states after a step; unchanged unless `any_kept`."""

    def apply_rule(x: jax.Array, state: Any, offset: Any) -> tuple[jax.Array, Any]:
        wide = core.wide(x.dtype)
        kept = rule.cast(state, x, wide)
        g = gradient.part(offset, x.size).reshape(x.shape).astype(wide)
        updates, new = rule.optimizer.update(g, kept, x.astype(wide))
        arrays, treedef = jax.tree.flatten((x.astype(wide) + updates.astype(wide), new))
        for i, old in enumerate(jax.tree.leaves((x, state))):
            if arrays[i].dtype != old.dtype:
                key = random.fold_in(step.key, jnp.uint32(_ROUNDING + i))
                own = arrays[i], old.dtype, offset
                arrays[i] = random.round_stochastically(key, *own)
        return treedef.unflatten(arrays)

    def update(x: jax.Array, state: Any, offset: Any) -> tuple[jax.Array, Any]:
        # A branch reads all of its inputs before its outputs are written. If XLA fused
        # a read of one array into the write of another, it would copy the first.
        return lax.cond(
            any_kept, lambda x, s: apply_rule(x, s, offset), lambda *old: old, x, state
        )

    arrays, treedef = jax.tree.flatten(step.params)
    starts = np.cumsum([0, *step.layout.sizes]).tolist()
    active, new = np.flatnonzero(step.layout.active).tolist(), []
    for i, state in zip(active, states, strict=True):
        arrays[i], after = _in_parts(update, arrays[i], state, starts[i])
        new.append(after)
    return treedef.unflatten(arrays), tuple(new)


def _in_parts(
    update: Callable[..., Any], leaf: Any, state: Any, start: int
) -> tuple[jax.Array, Any]:
    num, shape = _shape_of_part(leaf.shape)
    lazy.check_size(shape)
    size = math.prod(shape)

    def body(i: Any, whole: Any) -> Any:
        take, put = lax.dynamic_index_in_dim, lax.dynamic_update_index_in_dim
        part = jax.tree.map(lambda a: take(a, i, keepdims=False), whole)
        new = update(*part, random.advance(start, i, size, num * size))
        return jax.tree.map(lambda a, b: put(a, b, i, 0), whole, new)

    whole = jnp.asarray(leaf).reshape(num, *shape), state
    new, state = body(0, whole) if num == 1 else lax.fori_loop(0, num, body, whole)
    return new.reshape(leaf.shape), state
