"""Three forms of an estimator, for three kinds of training loop.

  value_and_grad      a function of a key, for loops that take a gradient
  with_estimator      wraps an optimizer, which also gets `value` and `value_fn`
  estimate_gradient   the first link of an `optax.chain`

`estimate_gradient` is `with_estimator` around the identity. In both, the key of a step
is fold_in(key, count).
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
    """State of `with_estimator` and `estimate_gradient`.

    Attributes:
      count: int32 scalar, steps so far.
      key_data: (2,) uint32, the constant key data of the run.
      last_value: Float scalar, the value that the last estimate returned.
      num_values: int32 scalar, function values so far.
      num_dropped: int32 scalar, directions dropped so far for a non-finite value.
      num_skipped: int32 scalar, steps so far without a valid direction.
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
    """Return a counterpart of `jax.value_and_grad` that takes a key first.

    It fits loops that compute a gradient and pass it on: flax `TrainState`, equinox,
    `optax.MultiSteps`, `optax.lookahead`, `optax.contrib.sam`. It is stateless:
    use a new key at each step.

      value, g = estimate(key, f, x)        in place of       value, g = f(x), ∇f(x)

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`, a real scalar (or terms, or a pair
        with `aux`). It need not be differentiable.
      estimator: A memoryless `Estimator`: no schedule for its `smoothing`.
      has_aux: Whether `value_fn` returns `(value, aux)`.
    Returns:
      A function `(key, params, *args, **kwargs) -> (value, gradient)`, or
      `((value, aux), gradient)` with `has_aux`. The gradient is a pytree like `params`.
    Raises:
      TypeError: If `value_fn` is not callable or `estimator` is not an `Estimator`.
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
    """Return the estimator as the first link of an `optax.chain`.

    `update(updates, state, params, *, value_fn, **extra)` ignores `updates`, which may
    be None, and so the links before it. Keywords that `value_fn` names go to it.

      updates ← estimate(fold_in(key, count), value_fn, params)

    If no direction of a step is valid, later links get a gradient of zero;
    `with_estimator` keeps their state unchanged instead.

    Args:
      estimator: An `Estimator`.
      key: Typed key or integer seed of the run.
    Returns:
      A `GradientTransformationExtraArgs` whose state is a `WithEstimatorState`.
    Raises:
      TypeError: If `key` is not a threefry key or a seed, or `estimator` is not an
        `Estimator`.
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
    """Estimate the gradient, then update with `optimizer`.

    Every optax optimizer and wrapper works inside this form, line searches,
    `polyak_sgd` and `reduce_on_plateau` included. If no direction of a step is valid,
    the updates are zero and the optimizer's state does not change.

      value, g = estimate(fold_in(key, count), value_fn, params)
      updates  = optimizer.update(
          g, ..., value=value, grad=g, value_fn=value_fn, estimate_info=info)

    Args:
      estimator: An `Estimator`.
      optimizer: Any `optax.GradientTransformation`.
      key: As in `estimate_gradient`.
    Returns:
      A `GradientTransformationExtraArgs`; its
      `update(updates, state, params, *, value_fn, **extra)` ignores `updates`, which
      may be None. Keywords that `value_fn` names go to it, others to the optimizer.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: In `update`, if `value_fn` or `params` is missing.
    Cost:
      That of the estimator and of the optimizer. `num_values` excludes evaluations by
      the optimizer (a line search). Outside `jax.jit` a step takes hundreds of
      milliseconds.
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
    """Leave an update at its first evaluation, with the inputs of the evaluator."""

    def __init__(self, *inputs: Any) -> None:
        super().__init__("an update has reached its evaluation")
        self.inputs = inputs


def first_evaluation(
    optimizer: Any, params: core.Params, state: Any, **extra: Any
) -> tuple[core.Function, core.Step, core.Queries]:
    """Return (function, step, queries) of the first evaluation of an update.

    It runs the update up to its first evaluation, through any wrappers.
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
    """Return `with_estimator` whose messages name `api_name`."""
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
            # Line searches forward unknown keywords.
            "value_fn": lambda p, estimate_info=None: jnp.sum(bound(p)),
            "estimate_info": info,
            **rest,
        }
        any_kept = jnp.any(info.kept)
        updates, optimizer_state = _updated(
            optimizer, gradient, state.optimizer, params, offered, any_kept
        )
        state = state._replace(estimator=estimator_state, optimizer=optimizer_state)
        return updates, update_counters(state, value, info, any_kept)

    return optax.GradientTransformationExtraArgs(init, update)


def init_state(words: jax.Array, estimator: Any, optimizer: Any) -> WithEstimatorState:
    """Return the state before the first step."""
    # Separate arrays and a copy of the key, so that donating the state does not delete
    # buffers that the next `init` needs.
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
    any_kept: jax.Array,
) -> tuple[Any, Any]:
    """Return the optimizer's update; zero and the old state unless `any_kept`."""
    updates, new = optimizer.update(
        updates, state, params, **_accepted(optimizer.update, offered)
    )

    def chosen(new: Any, old: Any) -> Any:
        return jnp.where(any_kept, new, old) if isinstance(new, jax.Array) else new

    updates = jax.tree.map(lambda u: chosen(u, jnp.zeros_like(u)), updates)
    if jax.tree.structure(new) != jax.tree.structure(state):
        return updates, new  # E.g. of `optax.monitor`, whose state grows once.
    return updates, jax.tree.map(chosen, new, state)


def update_counters(
    state: WithEstimatorState,
    value: jax.Array,
    info: core.EstimateInfo,
    any_kept: jax.Array,
) -> WithEstimatorState:
    """Return the state after a step with this value and info."""
    dropped = jnp.sum(~info.kept, dtype=jnp.int32)
    return state._replace(
        count=jnp.asarray(optax.safe_increment(state.count)),
        last_value=value.astype(state.last_value.dtype),
        num_values=safe_add(state.num_values, info.num_values),
        num_dropped=safe_add(state.num_dropped, dropped),
        num_skipped=safe_add(state.num_skipped, (~any_kept).astype(jnp.int32)),
    )


def _required(api_name: str, value_fn: Any, params: Any, evaluate: Any) -> core.ValueFn:
    """Return `value_fn`, or a function that fails if values come from elsewhere."""
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
    """Fail: the function is evaluated elsewhere, before the step."""
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
    """Return the parameters to evaluate at, the fast ones of `optax.lookahead`."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _split_by_name(
    value_fn: core.ValueFn, extra: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords that `value_fn` takes, and the others."""
    named = _accepted(value_fn, extra)
    return named, {name: x for name, x in extra.items() if name not in named}


def _accepted(fn: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return those of `keywords` that `fn` takes by name, or all if it takes any."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # Some builtins have no signature.
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
    """Return whether `node` is a `WithEstimatorState`."""
    return isinstance(node, WithEstimatorState)


def find_estimator_state(api_name: str, state: Any) -> WithEstimatorState:
    """Return the state of the estimator within that of an optimizer."""

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
    """Return total + more in int32, saturated at the largest int32."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(total > largest - more, jnp.int32(largest), total + more)
