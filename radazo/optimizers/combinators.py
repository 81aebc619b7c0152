"""Three forms of an estimator: a function, a link of a chain, and a wrapper."""

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
      num_values, num_dropped, num_skipped: int32 scalars, so far: function values,
        directions dropped for a non-finite value, steps without a valid direction.
      estimator, optimizer: States of the estimator and of the optimizer.
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
    `optax.lookahead`, `optax.contrib.sam`. Use a new key at each step.

      value, g = estimate(key, f, x)        in place of       value, g = f(x), ∇f(x)

    Args:
      value_fn: `value_fn(params, *args, **kwargs)`: a scalar, terms or `(value, aux)`.
      estimator: A memoryless `Estimator`, with a constant `smoothing`.
      has_aux: Whether `value_fn` returns `(value, aux)`.
    Returns:
      A function `(key, params, *args, **kwargs) -> (value, gradient)`, or
      `((value, aux), gradient)` with `has_aux`.
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
    validation.check(api_name, value_fn=value_fn)
    hint = "Use `with_estimator` or `estimate_gradient`, which carry its state, or "
    hint += "give `smoothing` as a number."
    build.check_memoryless(api_name, estimator, hint)

    def estimated_value_and_grad(
        key: core.Key, params: core.Params, *args: Any, **kwargs: Any
    ) -> tuple[Any, core.Params]:
        def bound(params: core.Params) -> Any:
            return value_fn(params, *args, **kwargs)

        state = estimator.init(params)
        value, gradient, _, info = build.estimate(
            estimator, key, bound, params, state, has_aux=has_aux
        )
        return ((value, info.aux) if has_aux else value), gradient

    return estimated_value_and_grad


def estimate_gradient(
    estimator: core.Estimator, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """Return the estimator as the first link of an `optax.chain`.

      updates ← estimate(fold_in(key, count), value_fn, params)

    This is `with_estimator` around the identity: links before it have no effect, and if
    no direction of a step is valid, later links get a gradient of zero.

    Args:
      estimator, key: As in `with_estimator`.
    Returns, Raises:
      As `with_estimator`.
    Cost:
      That of the estimator; the state is a few scalars.
    Example:
      >>> optimizer = optax.chain(
      ...     estimate_gradient(radazo.sphere_estimator(), key=0),
      ...     radazo.scale_by_radazo(),
      ...     optax.scale_by_learning_rate(0.01),
      ... )
      >>> f, x = lambda x: jnp.sum(x**2), jnp.array([3.0, -4.0])
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(updates, 3))  # learning_rate / √(1 − b2), against the slope
      [-0.1  0.1]
    """
    return attach("estimate_gradient", estimator, optax.identity(), key)


def with_estimator(
    estimator: core.Estimator, optimizer: optax.GradientTransformation, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """Estimate the gradient, then update with `optimizer`.

    Any optax optimizer or wrapper can be inside, including line searches, `polyak_sgd`
    and `reduce_on_plateau`. If no direction of a step is valid, the updates are
    zero and the optimizer's state does not change.

      value, g = estimate(fold_in(key, count), value_fn, params)
      updates  = optimizer.update(
          g, ..., value=value, grad=g, value_fn=value_fn, estimate_info=info)

    Args:
      estimator, optimizer: An `Estimator`, and any `optax.GradientTransformation`.
      key: Typed key or integer seed of the run.
    Returns:
      A `GradientTransformationExtraArgs` with a `WithEstimatorState`; its
      `update(updates, state, params, *, value_fn, **extra)` ignores `updates`, which
      may be None. Keywords that `value_fn` names go to it, others to the optimizer.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: In `update`, if `value_fn` or `params` is missing.
    Cost:
      That of the estimator and the optimizer. Evaluations by a line search are not in
      `num_values`. Outside `jax.jit` a step takes hundreds of milliseconds.
    Example:
      >>> f, x, rule = jnp.sum, jnp.ones(3), optax.MultiSteps(optax.sgd(0.1), 2)
      >>> optimizer = with_estimator(radazo.sphere_estimator(), rule, key=0)
      >>> updates, state = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.abs(updates), state.num_values)  # the first of two is held back
      [0. 0. 0.] 11
    """
    return attach("with_estimator", estimator, optimizer, key)


def attach(
    api_name: str, estimator: core.Estimator, optimizer: Any, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """Return `with_estimator` whose messages name `api_name`."""
    validation.check(api_name, estimator=estimator)
    validation.transformation(api_name, optimizer)
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
        value_fn = _value_fn(api_name, value_fn, params, evaluate)
        named = _select(value_fn, extra)
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
            **{name: x for name, x in extra.items() if name not in named},
        }
        any_kept, old = jnp.any(info.kept), state.optimizer

        def chosen(new: Any, old: Any) -> Any:
            return jnp.where(any_kept, new, old) if isinstance(new, jax.Array) else new

        keywords = _select(optimizer.update, offered)
        updates, new = optimizer.update(gradient, old, params, **keywords)
        updates = jax.tree.map(lambda u: chosen(u, jnp.zeros_like(u)), updates)
        # The state of some optimizers grows once, e.g. that of `optax.monitor`.
        if jax.tree.structure(new) == jax.tree.structure(old):
            new = jax.tree.map(chosen, new, old)
        state = state._replace(estimator=estimator_state, optimizer=new)
        return updates, update_counters(state, value, info, any_kept)

    return optax.GradientTransformationExtraArgs(init, update)


def attach_search(
    api_name: str, estimator: core.Estimator, key: core.Key
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose `estimator` returns negated moves of the parameters."""
    # A link that also accepts integers and keeps their dtype.
    negate = optax.stateless_with_tree_map(lambda gradient, _: jnp.negative(gradient))
    return attach(api_name, estimator, negate, key)


def init_state(words: jax.Array, estimator: Any, optimizer: Any) -> WithEstimatorState:
    """Return the state before the first step."""
    # Separate arrays and a copy of the key, so that donating the state does not delete
    # buffers that the next `init` needs.
    count, values, dropped, skipped = (jnp.zeros((), jnp.int32) for _ in range(4))
    key_data, value = jnp.array(words, copy=True), jnp.zeros((), jnp.result_type(float))
    counters = count, key_data, value, values, dropped, skipped
    return WithEstimatorState(*counters, estimator, optimizer)


def update_counters(
    old: WithEstimatorState, value: jax.Array, info: core.EstimateInfo, kept: jax.Array
) -> WithEstimatorState:
    """Return the state after a step; `kept` is False if no direction was valid."""
    dropped = jnp.sum(~info.kept, dtype=jnp.int32)
    return old._replace(
        count=jnp.asarray(optax.safe_increment(old.count)),
        last_value=value.astype(old.last_value.dtype),
        num_values=safe_add(old.num_values, info.num_values),
        num_dropped=safe_add(old.num_dropped, dropped),
        num_skipped=safe_add(old.num_skipped, (~kept).astype(jnp.int32)),
    )


def _value_fn(api_name: str, value_fn: Any, params: Any, evaluate: Any) -> core.ValueFn:
    """Return `value_fn`, or a stand-in that fails if values are evaluated elsewhere."""
    call = f"{api_name}(...).update"
    if value_fn is None and evaluate is None:
        hint = (
            "Call `optimizer.update(None, state, params, value_fn=f)`. If you did, a "
            "wrapper around the estimator dropped it, as `optax.lookahead` and "
            "`optax.contrib.sam` do, and flax `TrainState.apply_gradients`: put the "
            "wrapper inside, `with_estimator(estimator, wrapper, key)`, or use "
            "`value_and_grad`."
        )
        rule = "be the function to minimize"
        validation.fail(call, "value_fn", rule, "None", hint)
    validation.current_params(api_name, params)
    if value_fn is None:
        return build.evaluated_elsewhere(api_name)
    validation.check(call, value_fn=value_fn)
    return value_fn


def _fast(params: Any) -> Any:
    """Return the parameters to evaluate at: for `optax.lookahead`, the fast ones."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _select(fn: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return those of `keywords` that `fn` takes by name, or all if it takes any."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # Some builtins have no signature.
        return keywords
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keywords
    kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    by_name = {p.name for p in parameters if p.kind in kinds}
    return {name: x for name, x in keywords.items() if name in by_name}


def is_estimator_state(node: Any) -> bool:
    """Return whether `node` is a `WithEstimatorState`."""
    return isinstance(node, WithEstimatorState)


def find_estimator_state(api_name: str, state: Any) -> WithEstimatorState:
    """Return the state of the estimator within that of an optimizer."""
    leaves = jax.tree.leaves(state, is_leaf=is_estimator_state)
    nodes = [x for x in leaves if is_estimator_state(x)]
    if len(nodes) != 1:
        got = f"one whose state has {len(nodes)}"
        hint = "`radazo.with_estimator(estimator, optimizer, key)`."
        hint = f"Take `radazo.radazo(...)`, or {hint}"
        validation.fail(api_name, "optimizer", "have one estimator in it", got, hint)
    return nodes[0]


def safe_add(total: jax.Array, more: jax.Array) -> jax.Array:
    """Return total + more in int32, saturated at the largest int32."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(total > largest - more, jnp.int32(largest), total + more)
