"""Reduce the variance of an estimator by a snapshot of the parameters.

Near the snapshot, the noise of estimates at the parameters and at the snapshot cancels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from radazo import core, differences, flat, random, validation
from radazo.estimators import build

# Folded into the key of a step: the estimates at x, at x₀, and of the full gradient.
_HERE, _THERE, _FULL = 0, 1, 2


class SvrgState(NamedTuple):
    """State of `svrg_estimator`.

    Attributes:
      count: int32 scalar, estimates so far.
      age: int32 scalar, estimates since the snapshot; negative before the first one.
      snapshot: Floating-point leaves of the parameters at the snapshot, None for other
        leaves.
      full_gradient: Gradient estimate of `full_value_fn` there, structured as
        `snapshot`.
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

    For objectives that are a mean over data: `value_fn` takes a different batch in each
    step, and `full_value_fn` all data. If the noise of the directions exceeds that of
    the batches, as with K much less than d, it gains nothing with `radazo` or `zo_sgd`
    for the cost of three estimates.

      every `num_inner_steps` steps:  x₀ ← x,  G ← estimate of `full_value_fn` at x₀
      g = estimate(x) − estimate(x₀) + G           both of `value_fn`, of this step

    The mean of g is that of an estimate of the whole objective at x. Batch noise
    vanishes as x approaches x₀. With independent directions, as in the paper, g has the
    direction noise of three estimates. With shared directions it has that of G near x₀.

    Args:
      estimator: Computes all three estimates; memoryless, e.g. `sphere_estimator(...)`
        with a constant `smoothing`.
      full_value_fn: `full_value_fn(params)`, the whole objective; without aux, and with
        terms if the estimator has `terms=True`.
      num_inner_steps: Steps between two snapshots, at least 1.
      share_directions: Whether the estimates at x and x₀ use the same directions.
    Returns:
      An `Estimator`, which is not memoryless. Its value, aux, and the slopes and `kept`
      of `info` are those of the estimate at x; `info.num_values` counts all three. If
      all directions are dropped at x, the gradient is zero. If all are dropped at x₀,
      or the last full estimate failed, it is the estimate at x alone. A failed full
      estimate leaves the snapshot unchanged and is repeated in the next step.
    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If `estimator` is not memoryless, or `num_inner_steps` < 1.
    Cost:
      Twice the function values of `estimator` per step, three times with a snapshot;
      one call of `full_value_fn` counts as one value. Two copies of the parameters in
      the state and two more during a step. Under `jax.vmap` each step computes a
      snapshot.
    Example:
      >>> data = jnp.arange(8.0)
      >>> fn = lambda x, batch: jnp.mean((x - batch) ** 2)
      >>> estimator = svrg_estimator(
      ...     radazo.rademacher_estimator(smoothing=0.5, difference=radazo.central),
      ...     lambda x: fn(x, data),
      ...     share_directions=True,
      ... )
      >>> optimizer = radazo.zo_sgd(0.25, estimator, key=0)
      >>> step = jax.jit(
      ...     lambda x, state, batch: optimizer.update(
      ...         None, state, x, value_fn=fn, batch=batch
      ...     )
      ... )
      >>> x, state = jnp.zeros(()), optimizer.init(jnp.zeros(()))
      >>> for batch in data.reshape(4, 2):  # No batch has the mean of all, 3.5.
      ...     updates, state = step(x, state, batch)
      ...     x = x + updates
      >>> print(x)  # The same as with all data in each step: 3.5 · (1 − 2⁻⁴)
      3.28125
    References:
      Liu et al., Zeroth-order stochastic variance reduction for nonconvex optimization,
      2018. arXiv:1805.10367, algorithm 2.
    """
    api_name = "svrg_estimator"
    _check(api_name, estimator, full_value_fn, num_inner_steps, share_directions)

    there = _HERE if share_directions else _THERE

    def due(state: SvrgState) -> jax.Array:
        return (state.age < 0) | (state.age >= num_inner_steps)

    part = functools.partial(_part, estimator)

    def parts(step: core.Step, state: SvrgState) -> list[tuple[core.Step, Any]]:
        """Return the steps at x, at x₀, and of the full gradient."""
        anchor = _anchor(step.params, state, due(state))
        points = (_HERE, step.params), (there, anchor), (_FULL, step.params)
        return [part(step, *point) for point in points]

    def queries(step: core.Step, state: SvrgState) -> core.Queries:
        three = [estimator.queries(*part) for part in parts(step, state)]
        return _joined(three, due(state), full_value_fn)

    def estimate(
        step: core.Step,
        state: SvrgState,
        queries: core.Queries,
        readings: core.Readings,
    ) -> core.Estimate:
        three = zip(parts(step, state), _split(queries.shared, readings), strict=True)
        at_x, at_x0, full = (estimator.estimate(*x, *y) for x, y in three)
        is_due = due(state)
        state, num_full = _renewed(is_due, step, lambda: full, state)
        # x₀ is x if a snapshot is due, so if it fails the old one is not used.
        failed = is_due & (state.age != 0)
        return _combined(step, state, at_x, at_x0, num_full, failed)

    def fused(
        function: core.Function, step: core.Step, state: SvrgState
    ) -> core.Estimate:
        full = differences.evaluation(
            api_name, full_value_fn, terms=step.terms, has_aux=False
        )
        loop = functools.partial(build.closed_loop, estimator)
        state, num_full = _renewed(
            due(state), step, lambda: loop(full, *part(step, _FULL, step.params)), state
        )
        never = jnp.asarray(False)
        anchor = _anchor(step.params, state, never)
        at_x = loop(function, *part(step, _HERE, step.params))
        at_x0 = loop(function, *part(step, there, anchor))
        return _combined(step, state, at_x, at_x0, num_full, never)

    return core.Estimator(
        api_name,
        functools.partial(_init, estimator),
        estimator.step,
        queries,
        estimate,
        fused=fused,
    )


def _init(estimator: core.Estimator, params: core.Params) -> SvrgState:
    estimator.init(params)  # It says what in them cannot be perturbed.
    snapshot = jax.tree.map(
        lambda x: jnp.array(x, copy=True) if core.is_floating(x) else None, params
    )
    return SvrgState(
        count=jnp.zeros((), jnp.int32),
        age=jnp.full((), -1, jnp.int32),
        snapshot=snapshot,
        full_gradient=jax.tree.map(jnp.zeros_like, snapshot),
    )


def _check(
    api_name: str,
    estimator: Any,
    full_value_fn: Any,
    num_inner_steps: Any,
    share_directions: Any,
) -> None:
    build.check_estimator(api_name, estimator)
    if not estimator.memoryless:
        validation.fail(
            api_name,
            "estimator",
            "be memoryless",
            "one whose `memoryless` is False (it uses past steps, or a `smoothing` "
            "schedule reads the step)",
            "Three estimates of a step share it: take `radazo.sphere_estimator()`, "
            "say, with a number for its `smoothing`.",
        )
    hint = "It takes the parameters alone and returns the whole objective."
    validation.function(api_name, "full_value_fn", full_value_fn, hint)
    hint = "It is the number of steps between two snapshots; 50 is a good start."
    validation.integer(api_name, "num_inner_steps", num_inner_steps, 1, hint)
    hint = "True draws the same directions at the parameters and at the snapshot."
    validation.instance(api_name, "share_directions", share_directions, bool, hint)


def _part(
    estimator: core.Estimator, outer: core.Step, number: int, params: core.Params
) -> tuple[core.Step, Any]:
    """Return the step of one of the three estimates, with its own key."""
    state = estimator.init(params)
    return estimator.step(random.fold_in(outer.key, number), params, state), state


def _anchor(params: core.Params, state: SvrgState, due: jax.Array) -> core.Params:
    """Return x₀: the parameters if a snapshot is due, else the snapshot."""
    return jax.tree.map(
        lambda now, then: now if then is None else jnp.where(due, now, then),
        params,
        state.snapshot,
    )


def _joined(
    three: list[core.Queries], due: jax.Array, full_value_fn: core.ValueFn
) -> core.Queries:
    """Concatenate the queries of the three estimates."""
    ends = np.cumsum([queries.num for queries in three]).tolist()

    def point(index: Any) -> core.Params:
        index = jnp.asarray(index).astype(jnp.uint32)
        which = sum((index >= end).astype(jnp.int32) for end in ends[:-1])
        first = jnp.asarray([0, *ends[:-1]], jnp.uint32)[which]
        return lax.switch(which, [queries.point for queries in three], index - first)

    def read(values: jax.Array, aux: Any) -> core.Readings:
        pieces = zip(three, jnp.split(values, ends[:-1]), strict=True)
        here, *others = (queries.read(values, aux) for queries, values in pieces)
        return here._replace(
            slopes=jnp.concatenate([here.slopes, *(x.slopes for x in others)]),
            valid=jnp.concatenate([here.valid, *(x.valid for x in others)]),
        )

    return core.Queries(
        num=ends[-1],
        point=point,
        read=read,
        num_readings=sum(queries.num_readings for queries in three),
        needed=lambda index: (index < ends[1]) | due,
        functions=(full_value_fn,),
        function_of=lambda index: (index >= ends[1]).astype(jnp.int32),
        evaluate=three[0].evaluate,
        shared=three,
    )


def _split(
    three: list[core.Queries], readings: core.Readings
) -> list[tuple[core.Queries, core.Readings]]:
    """Return the queries and the readings of each of the three estimates."""
    ends = np.cumsum([queries.num_readings for queries in three]).tolist()[:-1]
    slopes, valid = jnp.split(readings.slopes, ends), jnp.split(readings.valid, ends)
    return [
        (queries, readings._replace(slopes=slopes[i], valid=valid[i]))
        for i, queries in enumerate(three)
    ]


def _combined(
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
    found = at_x._replace(gradient=gradient, state=state, info=info)
    return build.next_count(found)


def _renewed(
    due: jax.Array,
    step: core.Step,
    full: Callable[[], core.Estimate],
    state: SvrgState,
) -> tuple[SvrgState, jax.Array]:
    """Take a snapshot if one is due; return the state and the number of values used."""

    def renew(state: SvrgState) -> tuple[SvrgState, jax.Array]:
        found = full()
        succeeded = jnp.any(found.info.kept)
        gradient = flat.unravel(
            step.layout, step.params, found.gradient, found.opaque_index
        )

        def chosen(new: Any, old: Any) -> Any:
            return None if old is None else jnp.where(succeeded, new, old)

        state = state._replace(
            age=chosen(jnp.zeros((), jnp.int32), state.age),
            snapshot=jax.tree.map(chosen, step.params, state.snapshot),
            full_gradient=jax.tree.map(chosen, gradient, state.full_gradient),
        )
        return state, jnp.asarray(found.info.num_values, jnp.int32)

    return _if(due, renew, lambda state: (state, jnp.zeros((), jnp.int32)), state)


def _if(
    condition: jax.Array,
    yes: Callable[[SvrgState], Any],
    no: Callable[[SvrgState], Any],
    state: SvrgState,
) -> Any:
    """Apply one of two functions to the state; untraced, the other is not called."""
    if isinstance(condition, Tracer):
        return lax.cond(condition, yes, no, state)
    return (yes if condition else no)(state)
