"""Return to the last good parameters when a run diverges."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.optimizers import combinators

_ENOUGH = 10  # Recent values needed before a rise can be detected.


class RollBackState(NamedTuple):
    """State of `roll_back`.

    Attributes:
      num_rolled_back: int32 scalar, number of times the parameters were restored.
      num_bad: int32 scalar, number of consecutive bad values.
      age: int32 scalar, steps since the copy was taken; negative before the first copy.
      recent, num_recent: (window,) last good values, newest first; their number.
      kept_params: Copy of the floating-point leaves of the parameters, None for others.
      kept_state: Copy of the optimizer's state without the counters of the run, in
        unnamed tuples, so that `optax.tree.get` finds each name once.
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
    """Restore the last good parameters when the values of a run diverge.

    With m the median of the last `window` good values and s the median of their
    |value − m|, the value of a step is bad if

      value is not finite,  or  value > m + factor · s

    The second test needs 10 good values (or `window`, if smaller) and s > 0. A step
    with a good value first copies parameters and state if `every` steps have passed
    since the last copy or restore. At the `patience`-th consecutive bad value, and when
    a step would make a parameter non-finite,

      updates = kept parameters − parameters,   state = kept state

    for the states of the rule (with its schedules) and of the estimator. Counters and
    keys continue, so the run then takes another path. The first copy is taken at the
    start. x + (kept − x) equals kept up to rounding, 2 ε · max(|x|, |kept|).

    Rises slower than `window` steps go undetected. If the learning rate is too large,
    or the objective itself shifts upward, the run rolls back forever.

    Args:
      optimizer: A complete optimizer with one estimator, e.g. `radazo.radazo(...)`.
      every: Steps between copies, at least 1. A recent copy may be bad already.
      patience: Consecutive bad values that trigger a restore, at least 1.
      window: Number of good values to compare with, at least 2.
      factor: Greater than 0. For normal noise, s is 2/3 of the standard deviation.
    Returns:
      A `GradientTransformationExtraArgs`, used like `optimizer`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
      ValueError: Without exactly one estimator; in `update`, if `params` is missing.
    Cost:
      No function values. One copy of the parameters and one of the optimizer's state,
      for `radazo` three copies of the parameters in all.
    Example:
      >>> def value_fn(x, step):  # An outlier in step 50; no values far away.
      ...     value = jnp.sum(x**2) * jnp.where(step == 50, 1e6, 1.0)
      ...     return jnp.where(value < 1e9, value, jnp.nan)
      >>> x, optimizer = jnp.ones(3), roll_back(radazo.zo_sgd(0.05, key=0))
      >>> result = radazo.minimize(value_fn, x, optimizer, 200, batches=lambda i: i)
      >>> print(result.state.num_rolled_back, result.values[-1] < 1e-3)
      1 True
    """
    api_name = "roll_back"
    validation.transformation(api_name, optimizer, complete=True)
    hint = "It is the number of steps between copies."
    validation.integer(api_name, "every", every, 1, hint)
    hint = "It is the number of consecutive bad values that trigger a restore."
    validation.integer(api_name, "patience", patience, 1, hint)
    hint = "It is the number of good values that a new one is compared with."
    validation.integer(api_name, "window", window, 2, hint)
    hint = "A value is bad if it exceeds the median by that many spreads."
    validation.positive(api_name, "factor", factor, hint)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: core.Params) -> RollBackState:
        state = inner.init(params)
        combinators.find_estimator_state(api_name, state)
        return RollBackState(
            num_rolled_back=jnp.zeros((), jnp.int32),
            num_bad=jnp.zeros((), jnp.int32),
            age=jnp.full((), -1, jnp.int32),
            num_recent=jnp.zeros((), jnp.int32),
            recent=jnp.zeros(window, jnp.result_type(float)),
            kept_params=optax.tree.zeros_like(_floating(params)),
            kept_state=jax.tree.map(lambda x: jnp.array(x, copy=True), _memory(state)),
            inner_state=state,
        )

    def update(
        updates: Any, state: Any, params: core.Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        validation.current_params(api_name, params)
        updates, new = inner.update(updates, state.inner_state, params, **extra)
        value = combinators.find_estimator_state(api_name, new).last_value
        good = jnp.isfinite(value) & ~_risen(value, state, factor)
        due = (state.age < 0) | (good & (state.age >= every))
        kept_params = optax.tree.where(due, _floating(params), state.kept_params)
        kept_state = optax.tree.where(due, _memory(state.inner_state), state.kept_state)
        num_bad = jnp.where(good, 0, state.num_bad + 1)
        back = (num_bad >= patience) | ~_all_finite(core.apply_updates(updates, params))

        def towards_kept(leaf: Any, update: Any, kept: Any) -> Any:
            if kept is None:
                return update
            return jnp.where(back, (kept - leaf).astype(update.dtype), update)

        updates = jax.tree.map(towards_kept, params, updates, kept_params)
        new = _with_memory(new, optax.tree.where(back, kept_state, _memory(new)))
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


def _risen(value: jax.Array, state: RollBackState, factor: Any) -> jax.Array:
    """Return whether the value exceeds the recent ones by more than their spread."""
    recent, num_recent = state.recent, state.num_recent

    def lower_median(values: jax.Array) -> jax.Array:
        filled = jnp.arange(values.size) < num_recent
        ordered = jnp.sort(jnp.where(filled, values, jnp.inf))
        return ordered[jnp.maximum(num_recent - 1, 0) // 2]

    median = lower_median(recent)
    spread = lower_median(jnp.abs(recent - median))
    known = (num_recent >= min(_ENOUGH, recent.size)) & (spread > 0)
    return known & (value > median + jnp.asarray(factor, recent.dtype) * spread)


def _memory(state: Any) -> Any:
    """Return the state without the counters of the run, in unnamed tuples."""
    if combinators.is_estimator_state(state):
        return _memory((state.estimator, state.optimizer))
    if isinstance(state, tuple):
        return tuple(_memory(part) for part in state)
    if isinstance(state, dict):
        return {name: _memory(part) for name, part in state.items()}
    return state


def _with_memory(state: Any, memory: Any) -> Any:
    """Return the state with the leaves of `memory`; keep its counters."""
    leaves = iter(jax.tree.leaves(memory))

    def fill(node: Any) -> Any:
        if not combinators.is_estimator_state(node):
            return next(leaves)
        parts = node.estimator, node.optimizer
        estimator, optimizer = jax.tree.map(lambda _: next(leaves), parts)
        return node._replace(estimator=estimator, optimizer=optimizer)

    return jax.tree.map(fill, state, is_leaf=combinators.is_estimator_state)


def _floating(params: core.Params) -> core.Params:
    """Return the parameters with None for leaves that are not floating point."""
    return jax.tree.map(lambda x: x if core.is_floating(x) else None, params)


def _all_finite(params: core.Params) -> jax.Array:
    leaves = filter(core.is_floating, jax.tree.leaves(params))
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return jnp.all(jnp.stack([jnp.asarray(True), *finite]))
