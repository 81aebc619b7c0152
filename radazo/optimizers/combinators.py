"""Three forms of one estimator: where the values enter a training loop.

  value_and_grad      a plain function of a key: for loops that take a gradient
  with_estimator      around an optimizer, which then also gets `value` and `value_fn`
  estimate_gradient   a link, the first of an `optax.chain`

The link is the second form around an optimizer that does nothing. Keys are made the
same way in both: the key of a step is fold_in(key, count).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, random, validation
from radazo.estimators import build


class WithEstimatorState(NamedTuple):
    """State of `with_estimator` and of `estimate_gradient`.

    Attributes:
      count: int32 scalar, steps so far.
      key_data: (2,) uint32, the words of the key of the run. It never changes.
      last_value: Float scalar, the value that the last estimate returned.
      num_values: int32 scalar, function values so far.
      num_dropped: int32 scalar, directions dropped so far for a non-finite value.
      num_skipped: int32 scalar, steps so far in which no direction was left.
      estimator: State of the estimator.
      optimizer: State of the optimizer.
    """

    count: jax.Array
    key_data: jax.Array
    last_value: jax.Array
    num_values: jax.Array
    num_dropped: jax.Array
    num_skipped: jax.Array
    estimator: Any
    optimizer: Any


def value_and_grad(
    value_fn: core.ValueFn, estimator: core.Estimator, *, has_aux: bool = False
) -> Callable[..., tuple[Any, core.Params]]:
    """Use an estimator as `jax.value_and_grad` is used, with a key in front.

    For every loop that computes a gradient and hands it on: flax `TrainState`, equinox,
    `optax.MultiSteps`, `optax.lookahead`, `optax.contrib.sam`. Nothing is remembered
    between calls, so take another key at each step.

      value, g = estimate(key, f, x)        in place of       value, g = f(x), ∇f(x)

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`, a real scalar (or terms, or a pair
        with `aux`). It need not be differentiable.
      estimator: An `Estimator` that is memoryless: no schedule for its `smoothing`.
      has_aux: Whether `value_fn` returns `(value, aux)`.
    Returns:
      A function `(key, params, *args, **kwargs) -> (value, gradient)`, or
      `((value, aux), gradient)` with `has_aux`. The gradient is a pytree like `params`.
    Raises:
      TypeError: If `value_fn` cannot be called or `estimator` is not an `Estimator`.
      ValueError: If the estimator is not memoryless.
    Cost:
      That of the estimator.
    Example:
      >>> estimator = radazo.sphere_estimator(num_directions=4)
      >>> fn = value_and_grad(lambda x, scale: scale * jnp.sum(x**2), estimator)
      >>> value, gradient = fn(jax.random.key(0), jnp.ones(3), scale=2.0)
      >>> print(value, gradient.shape)
      6.0 (3,)
    """
    api_name = "value_and_grad"
    validation.function(
        api_name, "value_fn", value_fn, "It takes the parameters first."
    )
    build.check_estimator(api_name, estimator)
    if not estimator.memoryless:
        validation.fail(
            api_name,
            "estimator",
            "be memoryless",
            "one whose `memoryless` is False (a `smoothing` schedule reads the step)",
            "Use `with_estimator` or `estimate_gradient`, which carry its state, or "
            "give `smoothing` as a number.",
        )

    def estimated_value_and_grad(
        key: core.Key, params: core.Params, *args: Any, **kwargs: Any
    ) -> tuple[Any, core.Params]:
        value, gradient, _, info = build.estimate(
            estimator,
            key,
            lambda p: value_fn(p, *args, **kwargs),
            params,
            estimator.init(params),
            has_aux=has_aux,
        )
        return ((value, info.aux) if has_aux else value), gradient

    return estimated_value_and_grad


def estimate_gradient(
    estimator: core.Estimator, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """The estimator as the first link of an `optax.chain`.

    `update(updates, state, params, *, value_fn, **extra)` ignores `updates`, which may
    be None: whatever stands before it in a chain is lost. Keywords that `value_fn`
    names are passed to it.

      updates ← estimate(fold_in(key, count), value_fn, params)

    Where no direction of a step has a finite value, the updates are zero and links
    behind see a gradient of zero; `with_estimator` leaves their state alone instead.

    Args:
      estimator: An `Estimator`.
      key: Typed key or integer seed of the run.
    Returns:
      A `GradientTransformationExtraArgs` whose state is a `WithEstimatorState`.
    Raises:
      TypeError: If `key` is not a threefry key or a seed, or `estimator` is none.
      ValueError: In `update`, if `value_fn` or `params` is missing.
    Cost:
      That of the estimator; the state is a few scalars.
    Example:
      >>> optimizer = optax.chain(
      ...     estimate_gradient(radazo.sphere_estimator(), key=0),
      ...     radazo.scale_by_radazo(),
      ...     optax.scale_by_learning_rate(0.01),
      ... )
      >>> params = jnp.array([3.0, -4.0])
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(
      ...     None, state, params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(updates, 3))  # learning_rate / √(1 − b2), against the slope
      [-0.1  0.1]
    """
    return attached("estimate_gradient", estimator, optax.identity(), key)


def with_estimator(
    estimator: core.Estimator,
    optimizer: optax.GradientTransformation,
    key: core.Key,
) -> optax.GradientTransformationExtraArgs:
    """Estimate the gradient, then let `optimizer` update with it.

    The form inside which every optax optimizer and wrapper works: the estimator is
    outside, so `MultiSteps`, `apply_if_finite`, `mechanize`, `masked`, `partition`,
    `lookahead` and `sam` see a true gradient, and line searches, `polyak_sgd` and
    `reduce_on_plateau` get the `value`, `grad` and `value_fn` that they ask for. Where
    no direction of a step has a finite value, the updates are zero and the optimizer's
    state stays as it was.

      value, g = estimate(fold_in(key, count), value_fn, params)
      updates  = optimizer.update(
          g, ..., value=value, grad=g, value_fn=value_fn, estimate_info=info)

    Args:
      estimator: An `Estimator`.
      optimizer: Any `optax.GradientTransformation`.
      key: Typed key or integer seed of the run.
    Returns:
      A `GradientTransformationExtraArgs`; its
      `update(updates, state, params, *, value_fn, **extra)` ignores `updates`, which
      may be None. Keywords that `value_fn` names go to it, others to the optimizer.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: In `update`, if `value_fn` or `params` is missing.
    Cost:
      That of the estimator and of the optimizer. Values that the optimizer takes itself
      (a line search) are not in `num_values`. Outside of `jax.jit` a step runs
      operation by operation, some hundred milliseconds: put `jax.jit` around it.
    Example:
      >>> optimizer = with_estimator(
      ...     radazo.sphere_estimator(), optax.MultiSteps(optax.sgd(0.1), 2), key=0
      ... )
      >>> params = jnp.ones(3)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(None, state, params, value_fn=jnp.sum)
      >>> print(updates, state.num_values)  # the first of two estimates is held back
      [0. 0. 0.] 11
    """
    return attached("with_estimator", estimator, optimizer, key)


class _ReachedError(Exception):
    """Leaves an update at its first evaluation, with what is to be evaluated."""

    def __init__(self, *inputs: Any) -> None:
        super().__init__("an update has reached its evaluation")
        self.inputs = inputs


def first_evaluation(
    optimizer: Any, params: core.Params, state: Any, **extra: Any
) -> tuple[core.Function, core.Step, core.Queries]:
    """Return (function, step, queries) of the first evaluation of an update.

    Whatever wraps the estimator, the update runs up to there and no further.
    """

    def leave(*inputs: Any) -> Any:
        raise _ReachedError(*inputs)

    take_step = getattr(optimizer, "step", None)
    try:
        if take_step is None:
            optimizer.update(None, state, params, evaluate=leave, **extra)
        else:
            take_step(
                extra.pop("value_fn", None), params, state, evaluate=leave, **extra
            )
    except _ReachedError as reached:
        return reached.inputs
    return validation.fail(
        "ask",
        "optimizer",
        "have an estimator in it",
        repr(optimizer)[:200],
        "Use `radazo.radazo(...)`, or "
        "`radazo.with_estimator(estimator, optimizer, key)`.",
    )


def attached(
    api_name: str, estimator: core.Estimator, optimizer: Any, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """`with_estimator`, whose messages name `api_name`."""
    build.check_estimator(api_name, estimator)
    hint = (
        "Pass an optimizer, e.g. `optax.sgd(0.1)`, or a chain with "
        "`radazo.scale_by_radazo()`."
    )
    validation.transformation(api_name, optimizer, hint)
    words = random.key_data(api_name, key)

    def init(params: core.Params) -> WithEstimatorState:
        return init_state(words, estimator.init(_fast(params)), optimizer.init(params))

    def update(
        updates: Any,
        state: Any,
        params: core.Params | None = None,
        *,
        value_fn: core.ValueFn | None = None,
        evaluate: core.Evaluate | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del updates
        value_fn = _required(api_name, value_fn, params, evaluate)
        named, rest = _split_by_name(value_fn, extra)
        bound = functools.partial(value_fn, **named)
        key = random.typed(random.fold_in(state.key_data, state.count))
        value, gradient, estimator_state, info = build.estimate(
            estimator, key, bound, _fast(params), state.estimator, evaluate=evaluate
        )
        offered = {
            "value": value,
            "grad": gradient,
            # Line searches pass on keywords that they do not know.
            "value_fn": lambda p, estimate_info=None: jnp.sum(bound(p)),
            "estimate_info": info,
            **rest,
        }
        seen = jnp.any(info.kept)
        updates, optimizer_state = _updated(
            optimizer, gradient, state.optimizer, params, offered, seen
        )
        state = state._replace(estimator=estimator_state, optimizer=optimizer_state)
        return updates, update_counters(state, value, info, seen)

    return optax.GradientTransformationExtraArgs(init, update)


def init_state(words: jax.Array, estimator: Any, optimizer: Any) -> WithEstimatorState:
    """The state before the first step."""
    # A number each and a copy of the key, so that a donated state takes nothing with it
    # that the next `init` needs.
    return WithEstimatorState(
        count=jnp.zeros((), jnp.int32),
        key_data=jnp.array(words, copy=True),
        last_value=jnp.zeros((), jnp.result_type(float)),
        num_values=jnp.zeros((), jnp.int32),
        num_dropped=jnp.zeros((), jnp.int32),
        num_skipped=jnp.zeros((), jnp.int32),
        estimator=estimator,
        optimizer=optimizer,
    )


def _updated(
    optimizer: Any,
    updates: core.Params,
    state: Any,
    params: Any,
    offered: dict[str, Any],
    seen: jax.Array,
) -> tuple[Any, Any]:
    """The optimizer's update; zero, and the state as it was, where nothing was seen."""
    updates, new = optimizer.update(
        updates, state, params, **_accepted(optimizer.update, offered)
    )

    def chosen(new: Any, old: Any) -> Any:
        return jnp.where(seen, new, old) if isinstance(new, jax.Array) else new

    updates = jax.tree.map(lambda u: chosen(u, jnp.zeros_like(u)), updates)
    if jax.tree.structure(new) != jax.tree.structure(state):
        return updates, new  # As of `optax.monitor`, whose state grows in one step.
    return updates, jax.tree.map(chosen, new, state)


def update_counters(
    state: WithEstimatorState,
    value: jax.Array,
    info: core.EstimateInfo,
    seen: jax.Array,
) -> WithEstimatorState:
    """The state after a step that had this value and this info."""
    dropped = jnp.sum(~info.kept, dtype=jnp.int32)
    return state._replace(
        count=jnp.asarray(optax.safe_increment(state.count)),
        last_value=value.astype(state.last_value.dtype),
        num_values=safe_add(state.num_values, info.num_values),
        num_dropped=safe_add(state.num_dropped, dropped),
        num_skipped=safe_add(state.num_skipped, (~seen).astype(jnp.int32)),
    )


def _required(api_name: str, value_fn: Any, params: Any, evaluate: Any) -> core.ValueFn:
    """`value_fn`, or a function that fails where values come from elsewhere."""
    call = f"{api_name}(...).update"
    if value_fn is None and evaluate is None:
        validation.fail(
            call,
            "value_fn",
            "be the function to minimize",
            "None",
            "Call `optimizer.update(None, state, params, value_fn=f)`. If you did, a "
            "wrapper around the estimator dropped it, as `optax.lookahead` and "
            "`optax.contrib.sam` do, and flax `TrainState.apply_gradients`: put the "
            "wrapper inside, `with_estimator(estimator, wrapper, key)`, or use "
            "`value_and_grad`.",
        )
    hint = (
        "The function is evaluated around them: call "
        "`optimizer.update(None, state, params, value_fn=f)`."
    )
    validation.current_params(call, params, hint)
    if value_fn is None:
        return functools.partial(_not_known_before, api_name)
    validation.check(call, value_fn=value_fn)
    return value_fn


def _not_known_before(api_name: str, params: core.Params, **keywords: Any) -> Any:
    """Stands for a function that is evaluated elsewhere, before the step."""
    del params, keywords
    validation.fail(
        api_name,
        "value_fn",
        "be evaluated at points that are known before the step",
        "other points",
        "A line search and `forward_mode` evaluate further points: use an optimizer "
        "without, and `forward`, `central` or `one_point`.",
        TypeError,
    )


def _fast(params: Any) -> Any:
    """The parameters to evaluate at: `optax.lookahead` takes pairs of them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _split_by_name(
    value_fn: core.ValueFn, extra: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that `value_fn` takes, and the others."""
    named = _accepted(value_fn, extra)
    return named, {name: x for name, x in extra.items() if name not in named}


def _accepted(fn: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of `keywords` that `fn` takes by name, or all if it takes any."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # Some builtins have no signature to read.
        return keywords
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keywords
    by_name = {
        p.name
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    return {name: x for name, x in keywords.items() if name in by_name}


def is_estimator_state(node: Any) -> bool:
    """Whether `node` is the state of an estimator within that of an optimizer."""
    return isinstance(node, WithEstimatorState)


def find_estimator_state(api_name: str, state: Any) -> WithEstimatorState:
    """The state of the estimator within that of an optimizer."""

    nodes = [
        x
        for x in jax.tree.leaves(state, is_leaf=is_estimator_state)
        if is_estimator_state(x)
    ]
    if len(nodes) != 1:
        validation.fail(
            api_name,
            "optimizer",
            "have one estimator in it",
            f"one whose state has {len(nodes)}",
            "Take `radazo.radazo(...)`, or "
            "`radazo.with_estimator(estimator, optimizer, key)`.",
        )
    return nodes[0]


def safe_add(total: jax.Array, more: jax.Array) -> jax.Array:
    """total + more in int32, and the largest int32 where that would not fit."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(total > largest - more, jnp.int32(largest), total + more)
