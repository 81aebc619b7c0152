"""Reduce the variance of an estimator by a snapshot of the parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from radazo import core, differences, flat, random, validation
from radazo.estimators import build

# Folded into the step key for the estimates at x, at x₀ and of the full gradient.
_HERE, _THERE, _FULL = 0, 1, 2


class SvrgState(NamedTuple):
    """State of `svrg_estimator`.

    Attributes:
      count: int32 scalar, estimates so far.
      age: int32 scalar, estimates since the snapshot; negative before the first one.
      snapshot: Copy of the floating-point leaves of the parameters; None for others.
      full_gradient: Gradient estimate of `full_value_fn` there.
    """

    count: jax.Array
    age: jax.Array
    snapshot: core.Params
    full_gradient: core.Params


def svrg_estimator(
    estimator: core.Estimator,
    full_value_fn: core.ValueFn,
    *,
    num_inner_steps: int = 50,
    share_directions: bool = False,
) -> core.Estimator:
    """Reduce the mini-batch noise of an estimator by a snapshot, as ZO-SVRG does.

    It suits a mean over data: `value_fn` takes a different batch in each step,
    `full_value_fn` takes all data.

      every `num_inner_steps` steps:  x₀ ← x,  G ← estimate of `full_value_fn` at x₀
      g = estimate(x) − estimate(x₀) + G           both of `value_fn`, of this step

    Batch noise vanishes as x approaches x₀; the noise of the directions, larger for K
    much less than d, is that of three estimates, or of G with shared directions.

    If all directions are dropped at x, g is zero. If all are dropped at x₀, or the last
    full estimate failed, g is the estimate at x. A failed full estimate leaves the
    snapshot unchanged and is repeated in the next step.

    Args:
      estimator: A memoryless `Estimator`, with a constant `smoothing`.
      full_value_fn: `full_value_fn(params)`, the whole objective or its terms; no aux.
      num_inner_steps: Steps between two snapshots, at least 1.
      share_directions: Whether the estimates at x and x₀ use the same directions.
    Returns:
      An `Estimator`, which is not memoryless. Its value and `info` are those of the
      estimate at x, but `info.num_values` counts all three.
    Raises:
      TypeError, ValueError: If an argument is invalid or `estimator` not memoryless.
    Cost:
      Twice the function values of `estimator` per step, three times with a snapshot and
      under `jax.vmap`; a call of `full_value_fn` counts as one value. Two copies of the
      parameters in the state and two more during a step.
    Example:
      >>> data = jnp.arange(8.0)
      >>> fn = lambda x, batch: jnp.mean((x - batch) ** 2)
      >>> inner = radazo.rademacher_estimator(smoothing=0.5, difference=radazo.central)
      >>> svrg = svrg_estimator(inner, lambda x: fn(x, data), share_directions=True)
      >>> optimizer = radazo.zo_sgd(0.25, svrg, key=0)
      >>> batches = lambda step: data.reshape(4, 2)[step]  # None has the mean of all.
      >>> result = radazo.minimize(fn, jnp.zeros(()), optimizer, 4, batches=batches)
      >>> print(result.params)  # As with all data in each step: 3.5 · (1 − 2⁻⁴)
      3.28125
    References:
      Liu et al., Zeroth-order stochastic variance reduction for nonconvex optimization,
      2018. arXiv:1805.10367, algorithm 2.
    """
    api_name = "svrg_estimator"
    hint = "Each step makes three estimates with it: give `smoothing` as a number."
    build.check_memoryless(api_name, estimator, hint)
    hint = "It takes the parameters alone and returns the whole objective."
    validation.function(api_name, "full_value_fn", full_value_fn, hint)
    hint = "It is the number of steps between two snapshots; 50 is a good start."
    validation.integer(api_name, "num_inner_steps", num_inner_steps, 1, hint)
    hint = "True draws the same directions at the parameters and at the snapshot."
    validation.instance(api_name, "share_directions", share_directions, bool, hint)
    there = _HERE if share_directions else _THERE

    def due(state: SvrgState) -> jax.Array:
        return (state.age < 0) | (state.age >= num_inner_steps)

    def part(outer: core.Step, number: int, params: core.Params) -> Any:
        """Return the step of one of the three estimates, and its state."""
        key, state = random.fold_in(outer.key, number), estimator.init(params)
        return estimator.step(key, params, state), state

    def parts(step: core.Step, state: SvrgState) -> list[Any]:
        x, anchor = step.params, _anchor(step.params, state, due(state))
        return [part(step, *at) for at in ((_HERE, x), (there, anchor), (_FULL, x))]

    def queries(step: core.Step, state: SvrgState) -> core.Queries:
        three = [estimator.queries(*part) for part in parts(step, state)]
        in_one_pass = functools.partial(evaluate_in_turn, state)
        return _concat(three, due(state), full_value_fn)._replace(fused=in_one_pass)

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        if readings.fused is not None:
            return _combine(step, *readings.fused)
        three = zip(parts(step, state), queries.shared, _split(readings), strict=True)
        at_x, at_x0, full = (estimator.estimate(*x, *seen) for x, *seen in three)
        is_due = due(state)
        state, num_full = _renew_if_due(is_due, step, lambda: full, state)
        # x₀ is x if a snapshot is due: if that fails, the old snapshot is not used.
        failed = is_due & (state.age != 0)
        return _combine(step, state, at_x, at_x0, num_full, failed)

    def evaluate_in_turn(
        state: SvrgState, function: core.Function, step: core.Step, *_: Any
    ) -> core.Readings:
        options = {"terms": step.terms, "has_aux": False}
        full_function = differences.evaluation(api_name, full_value_fn, **options)

        def estimate_at(function: core.Function, *where: Any) -> core.Estimate:
            return build.closed_loop(estimator, function, *part(step, *where))

        full = functools.partial(estimate_at, full_function, _FULL, step.params)
        renewed, num_full = _renew_if_due(due(state), step, full, state)
        never = jnp.asarray(False)
        at_x = estimate_at(function, _HERE, step.params)
        at_x0 = estimate_at(function, there, _anchor(step.params, renewed, never))
        info, found = at_x.info, (renewed, at_x, at_x0, num_full, never)
        return core.Readings(at_x.value, info.slopes, info.kept, info.aux, found)

    init = functools.partial(_init, estimator)
    return core.Estimator(api_name, init, estimator.step, queries, estimate)


def _init(estimator: core.Estimator, params: core.Params) -> SvrgState:
    estimator.init(params)  # It checks the parameters.
    snapshot = jax.tree.map(
        lambda x: jnp.array(x, copy=True) if core.is_floating(x) else None, params
    )
    zero, before = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
    return SvrgState(zero, before, snapshot, jax.tree.map(jnp.zeros_like, snapshot))


def _anchor(params: core.Params, state: SvrgState, due: jax.Array) -> core.Params:
    """Return x₀: the parameters if a snapshot is due, else the snapshot."""
    return jax.tree.map(
        lambda now, then: now if then is None else jnp.where(due, now, then),
        params,
        state.snapshot,
    )


def _concat(
    three: list[core.Queries], due: jax.Array, full_value_fn: core.ValueFn
) -> core.Queries:
    """Concatenate the queries of the three estimates, which are equally many."""
    here, num = three[0], int(three[0].num)

    def point(index: Any) -> core.Params:
        which, index = jnp.divmod(jnp.asarray(index).astype(jnp.uint32), num)
        return lax.switch(which.astype(jnp.int32), [x.point for x in three], index)

    def read(values: jax.Array, aux: Any) -> core.Readings:
        pieces = zip(three, jnp.split(values, 3), strict=True)
        readings = [queries.read(values, aux) for queries, values in pieces]
        slopes = jnp.concatenate([x.slopes for x in readings])
        valid = jnp.concatenate([x.valid for x in readings])
        return readings[0]._replace(slopes=slopes, valid=valid)

    def evaluate(function: core.Function, *inputs: Any) -> core.Readings:
        jax.eval_shape(here.point, jnp.uint32(0))  # Fails unless points are known.
        return here.evaluate(function, *inputs)

    return core.Queries(
        num=3 * num,
        point=point,
        read=read,
        num_readings=3 * here.num_readings,
        needed=lambda index: (index < 2 * num) | due,
        functions=(full_value_fn,),
        function_of=lambda index: (index >= 2 * num).astype(jnp.int32),
        evaluate=evaluate,
        shared=three,
    )


def _split(readings: core.Readings) -> list[core.Readings]:
    """Return the readings of each of the three estimates."""
    slopes, valid = jnp.split(readings.slopes, 3), jnp.split(readings.valid, 3)
    pieces = zip(slopes, valid, strict=True)
    return [readings._replace(slopes=x, valid=y) for x, y in pieces]


def _combine(
    step: core.Step,
    state: SvrgState,
    at_x: core.Estimate,
    at_x0: core.Estimate,
    num_full: jax.Array,
    failed: jax.Array,
) -> core.Estimate:
    """Combine the three estimates; without a valid anchor, return that at x."""
    anchored = jnp.any(at_x.info.kept) & jnp.any(at_x0.info.kept)
    anchored = anchored & (state.age >= 0) & ~failed
    full_gradient = jax.tree.map(
        lambda x, g: x if g is None else g, step.params, state.full_gradient
    )
    gradient = at_x.gradient - at_x0.gradient + flat.ravel(step.layout, full_gradient)
    largest = jnp.finfo(gradient.dtype).max
    gradient = jnp.where(anchored, jnp.clip(gradient, -largest, largest), at_x.gradient)
    older = jnp.asarray(optax.safe_increment(state.age))
    state = state._replace(age=jnp.where(state.age < 0, state.age, older))
    info = at_x.info._replace(
        num_values=at_x.info.num_values + at_x0.info.num_values + num_full,
        squared_norm=jnp.full_like(at_x.info.squared_norm, jnp.nan),
    )
    return build.next_count(at_x._replace(gradient=gradient, state=state, info=info))


def _renew_if_due(
    due: jax.Array, step: core.Step, full: Callable[[], core.Estimate], state: SvrgState
) -> tuple[SvrgState, jax.Array]:
    """Take a snapshot if one is due; return the state and the number of values used."""

    def renew(state: SvrgState) -> tuple[SvrgState, jax.Array]:
        found = full()
        succeeded = jnp.any(found.info.kept)
        layout, params = step.layout, step.params
        gradient = flat.unravel(layout, params, found.gradient, found.opaque_index)

        def choose(new: Any, old: Any) -> Any:
            return None if old is None else jnp.where(succeeded, new, old)

        state = state._replace(
            age=choose(jnp.zeros((), jnp.int32), state.age),
            snapshot=jax.tree.map(choose, params, state.snapshot),
            full_gradient=jax.tree.map(choose, gradient, state.full_gradient),
        )
        return state, jnp.asarray(found.info.num_values, jnp.int32)

    def keep(state: SvrgState) -> tuple[SvrgState, jax.Array]:
        return state, jnp.zeros((), jnp.int32)

    if isinstance(due, Tracer):
        return lax.cond(due, renew, keep, state)
    return (renew if due else keep)(state)  # Evaluates nothing unless it is due.
