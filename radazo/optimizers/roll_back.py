"""Back to the last good parameters where a run goes wrong.

A wrapper around a complete optimizer, which reads the value of each step in its state.
What it keeps goes back together: parameters, moments and what the estimator remembers.
The counters of the run go on, the key of the next step with them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.optimizers import combinators

_ENOUGH = 10  # Recent values without which none is said to have risen.


class RollBackState(NamedTuple):
    """State of `roll_back`.

    Attributes:
      num_rolled_back: int32 scalar, how often the parameters were set back so far.
      num_bad: int32 scalar, bad values in a row.
      age: int32 scalar, steps since the copy was taken; negative before the first one.
      num_recent: int32 scalar, how many of `recent` there are.
      recent: (window,) the last good values, the newest first.
      kept_params: The floating-point leaves of the parameters at the time of the copy,
        None where the parameters have others.
      kept_state: The optimizer's state at that time but for the counters of the run,
        which go on; tuples without names, so that `optax.tree.get` finds what is.
      inner_state: State of the optimizer.
    """

    num_rolled_back: jax.Array
    num_bad: jax.Array
    age: jax.Array
    num_recent: jax.Array
    recent: jax.Array
    kept_params: core.Params
    kept_state: Any
    inner_state: Any


def roll_back(
    optimizer: optax.GradientTransformation,
    *,
    every: int = 20,
    patience: int = 3,
    window: int = 50,
    factor: float = 20.0,
) -> optax.GradientTransformationExtraArgs:
    """Around a complete optimizer: back to the last good parameters where values fail.

    For runs that diverge, or that step where the function has no finite value: there
    each step is skipped and none leads out. With m the median of the last `window` good
    values, and s that of their |value − m|, the value of a step is bad where

      value is not finite,  or  value > m + factor · s

    and good otherwise. A step whose value is good, `every` steps after the last copy or
    return, takes a copy of the parameters and of the state, both as they are before the
    step. With the `patience`-th bad value in a row, and where a step would leave a
    parameter that is not finite,

      updates = kept parameters − parameters,   state = kept state

    in which the state is that of the rule and that of the estimator. The counters go
    on: so does the key of a step, and the way taken from there is another. The first
    copy is of the start. Before 10 good values (or `window`, if that is less) and where
    s is 0, no value is said to have risen.

    x + (kept − x) is rounded: it is `kept` bit for bit wherever the two are within a
    factor of two of each other, and elsewhere within 2 ε · max(|x|, |kept|), ε that of
    their type.

    A rise that is slower than `window` steps is none, and a learning rate that is too
    large stays too large: a count that grows and grows says so. Where values rise for
    good, since the function changes, it never gives in: it is for functions that do
    not. A value out of line for once is no reason to go back (`patience`), but a step
    taken by it may be long: for that see `skip_outliers`. Schedules of the learning
    rate and of `smoothing` go back with the state.

    Args:
      optimizer: A complete optimizer, with one estimator in it, as `radazo`.
      every: Steps from one copy to the next, at least 1. Fewer lose less; a copy that
        is too fresh may go wrong again.
      patience: Bad values in a row with which it goes back, at least 1.
      window: Recent good values that are remembered, at least 2.
      factor: How far above the median is bad, in units of s; greater than 0. For
        normal noise, s is two thirds of its standard deviation.
    Returns:
      A `GradientTransformationExtraArgs`, used as `optimizer` is. How often it went
      back: `optax.tree.get(state, "num_rolled_back")`, of a state or of `minimize`'s
      `result.state`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
      ValueError: In `init`, if the optimizer has no estimator in it, or several; in
        `update`, if `params` is missing.
    Cost:
      No function values. One copy of the parameters and one of the optimizer's state,
      which for `radazo` is three copies of the parameters in all.
    Example:
      >>> def value_fn(x, step):  # An absurd batch in step 50, and no values far off.
      ...     value = jnp.sum(x**2) * jnp.where(step == 50, 1e6, 1.0)
      ...     return jnp.where(value < 1e9, value, jnp.nan)
      >>> optimizer = roll_back(radazo.zo_sgd(0.05, key=0))
      >>> result = radazo.minimize(
      ...     value_fn, jnp.ones(3), optimizer, 200, batches=lambda step: step
      ... )
      >>> print(optax.tree.get(result.state, "num_rolled_back"))
      1
      >>> print(value_fn(result.params, 200) < 1e-3)
      True
    """
    api_name = "roll_back"
    _check(api_name, optimizer, every, patience, window, factor)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: core.Params) -> RollBackState:
        state = inner.init(params)
        combinators.counters(api_name, state)
        return RollBackState(
            num_rolled_back=jnp.zeros((), jnp.int32),
            num_bad=jnp.zeros((), jnp.int32),
            age=jnp.full((), -1, jnp.int32),
            num_recent=jnp.zeros((), jnp.int32),
            recent=jnp.zeros(window, jnp.result_type(float)),
            kept_params=jax.tree.map(
                lambda x: jnp.zeros_like(x) if core.is_floating(x) else None, params
            ),
            kept_state=jax.tree.map(lambda x: jnp.array(x, copy=True), _memory(state)),
            inner_state=state,
        )

    def update(
        updates: Any, state: Any, params: core.Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        validation.current_params(
            f"{api_name}(...).update",
            params,
            "They are what is kept and set back: call "
            "`optimizer.update(None, state, params, value_fn=f)`.",
        )
        updates, new = inner.update(updates, state.inner_state, params, **extra)
        value = combinators.counters(api_name, new).last_value.astype(
            state.recent.dtype
        )
        good = jnp.isfinite(value) & ~_risen(value, state, factor)
        due = (state.age < 0) | (good & (state.age >= every))
        kept_params = _either(due, params, state.kept_params)
        kept_state = _either(due, _memory(state.inner_state), state.kept_state)
        num_bad = jnp.where(good, 0, state.num_bad + 1)
        back = (num_bad >= patience) | ~_all_finite(core.moved(updates, params))
        updates = jax.tree.map(
            functools.partial(_towards, back), params, updates, kept_params
        )
        new = _with_memory(new, _either(back, kept_state, _memory(new)))
        recent = jnp.concatenate([value[None], state.recent[:-1]])
        count = jnp.asarray(optax.safe_increment(state.num_rolled_back))
        return updates, RollBackState(
            num_rolled_back=jnp.where(back, count, state.num_rolled_back),
            num_bad=jnp.where(back, 0, num_bad),
            age=jnp.where(back, 0, jnp.where(due, 1, state.age + 1)),
            num_recent=jnp.minimum(state.num_recent + good.astype(jnp.int32), window),
            recent=jnp.where(good, recent, state.recent),
            kept_params=kept_params,
            kept_state=kept_state,
            inner_state=new,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    api_name: str, optimizer: Any, every: Any, patience: Any, window: Any, factor: Any
) -> None:
    hint = "Pass `radazo.radazo(0.1, key=0)`, say."
    validation.transformation(api_name, optimizer, hint)
    hint = "It is the number of steps from one copy to the next."
    validation.integer(api_name, "every", every, 1, hint)
    hint = "It is the number of bad values in a row with which it goes back."
    validation.integer(api_name, "patience", patience, 1, hint)
    hint = "It is the number of good values that a new one is compared with."
    validation.integer(api_name, "window", window, 2, hint)
    hint = "It is how many spreads above the median a value is bad."
    validation.positive(api_name, "factor", factor, hint)


def _risen(value: jax.Array, state: RollBackState, factor: Any) -> jax.Array:
    """Whether the value is above the recent ones by more than their spread explains."""
    recent, num_recent = state.recent, state.num_recent
    median = _median(recent, num_recent)
    spread = _median(jnp.abs(recent - median), num_recent)
    known = (num_recent >= min(_ENOUGH, recent.size)) & (spread > 0)
    return known & (value > median + jnp.asarray(factor, recent.dtype) * spread)


def _median(recent: jax.Array, num_recent: jax.Array) -> jax.Array:
    """The (lower) median of the first `num_recent`."""
    there = jnp.arange(recent.size) < num_recent
    in_order = jnp.sort(jnp.where(there, recent, jnp.asarray(jnp.inf, recent.dtype)))
    return in_order[jnp.maximum(num_recent - 1, 0) // 2]


def _memory(state: Any) -> Any:
    """The state but for the counters of the run, in tuples without names."""
    if combinators.is_counters(state):
        return _memory((state.estimator, state.optimizer))
    if isinstance(state, tuple):
        return tuple(_memory(part) for part in state)
    if isinstance(state, dict):
        return {name: _memory(part) for name, part in state.items()}
    return state


def _with_memory(state: Any, memory: Any) -> Any:
    """The state with these leaves in place of its own, but for the counters."""
    leaves = iter(jax.tree.leaves(memory))

    def filled(node: Any) -> Any:
        if not combinators.is_counters(node):
            return next(leaves)
        parts = node.estimator, node.optimizer
        estimator, optimizer = jax.tree.map(lambda _: next(leaves), parts)
        return node._replace(estimator=estimator, optimizer=optimizer)

    return jax.tree.map(filled, state, is_leaf=combinators.is_counters)


def _either(first: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `first` holds, else `old`; None where `old` is None."""

    def chosen(old: Any, new: Any) -> Any:
        return None if old is None else jnp.where(first, new, old)

    return jax.tree.map(chosen, old, new, is_leaf=lambda leaf: leaf is None)


def _all_finite(params: core.Params) -> jax.Array:
    found = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(params)
        if core.is_floating(leaf)
    ]
    return jnp.all(jnp.stack([jnp.asarray(True), *found]))


def _towards(back: jax.Array, leaf: Any, update: Any, kept: Any) -> Any:
    """The update, or the one that leads back to what was kept."""
    if kept is None:
        return update
    return jnp.where(back, (kept - leaf).astype(update.dtype), update)
