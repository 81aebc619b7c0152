"""Build an estimator from its two pure functions, and estimate with it.

To add an estimator, write one public function `x_estimator(..., smoothing, terms, mask,
sharding)` that checks its own arguments and returns `estimator(api_name, init, queries,
estimate, settings)`:

  init(layout) -> state                             a NamedTuple with a field `count`
  queries(step, state) -> Queries                   where to evaluate
  estimate(step, state, queries, readings) -> Estimate

For slopes along custom directions use `mean.queries(step, options, draw)`. Then add a
row to `tests/contracts.py`, and one to `benchmarks/estimators_rows.py` to compare it.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from radazo import core, differences, flat, random, validation
from radazo.evaluate import local, sharded


class Settings(NamedTuple):
    """The arguments that all estimators share, as in `finite_difference_estimator`."""

    smoothing: core.Schedule | float
    terms: bool = False
    mask: core.Mask = None
    chunk_size: int = 1
    sharding: NamedSharding | None = None


def estimator(
    api_name: str,
    init: Callable[[flat.Layout], Any],
    queries: Callable[[core.Step, Any], core.Queries],
    estimate: Callable[[core.Step, Any, core.Queries, core.Readings], core.Estimate],
    settings: Settings,
    *,
    memoryless: bool = False,
) -> core.Estimator:
    """Build an estimator whose error messages name `api_name`."""
    smoothing, terms, mask, chunk_size, sharding = settings
    validation.check(api_name, smoothing=smoothing, terms=terms, chunk_size=chunk_size)
    sharded.check(api_name, sharding)
    evaluate = local.local(chunk_size)
    if sharding is not None:
        evaluate = sharded.sharded(sharding, chunk_size)

    def step(key_data: jax.Array, params: core.Params, state: Any) -> core.Step:
        layout = flat.layout(api_name, params, mask)
        distance = smoothing_at(smoothing, state.count, layout)
        return core.Step(key_data, layout, params, distance, terms)

    def with_evaluate(step: core.Step, state: Any) -> core.Queries:
        found = queries(step, state)
        fused = found.fused if sharding is None else None
        return found._replace(evaluate=found.evaluate or evaluate, fused=fused)

    return core.Estimator(
        api_name,
        init=lambda params: init(flat.layout(api_name, params, mask)),
        step=step,
        queries=with_evaluate,
        estimate=lambda *inputs: next_count(estimate(*inputs)),
        memoryless=memoryless and not callable(smoothing),
    )


def next_count(estimate: core.Estimate) -> core.Estimate:
    """Increment the count in the state of an estimate."""
    count = jnp.asarray(optax.safe_increment(estimate.state.count))
    return estimate._replace(state=estimate.state._replace(count=count))


def smoothing_at(
    smoothing: core.Schedule | float, count: jax.Array, layout: flat.Layout
) -> jax.Array:
    """Return the smoothing after `count` steps."""
    now = smoothing(count) if callable(smoothing) else smoothing
    return jnp.asarray(now, layout.dtype)


def closed_loop(
    estimator: core.Estimator,
    function: core.Function,
    step: core.Step,
    state: Any,
    evaluate: core.Evaluate | None = None,
) -> core.Estimate:
    """Evaluate the function and estimate, with `fused` if no evaluator is given."""
    queries = estimator.queries(step, state)
    chosen: core.Evaluate = evaluate or queries.fused or queries.evaluate
    return estimator.estimate(step, state, queries, chosen(function, step, queries))


def estimate(
    estimator: core.Estimator,
    key: core.Key,
    value_fn: core.ValueFn | None,
    params: core.Params,
    state: Any,
    *,
    has_aux: bool = False,
    evaluate: core.Evaluate | None = None,
) -> tuple[jax.Array, core.Params, Any, core.EstimateInfo]:
    """Estimate the gradient of a function at `params`.

      value, gradient, state, info = estimate(estimator, key, value_fn, params, state)

    Args:
      estimator: An `Estimator`.
      key: Typed key or integer seed of the step.
      value_fn: `value_fn(params)`, a real scalar (or terms), or None if not called.
      params: Pytree whose floating-point leaves are perturbed.
      state: `estimator.init(params)`, or that of the last estimate.
      has_aux: Whether `value_fn` returns `(value, aux)`; `aux` is then in `info.aux`.
      evaluate: `evaluate(function, step, queries) -> Readings`; None for the default.
    Returns:
      (value, gradient, state, info): a gradient like `params`, and an `EstimateInfo`.
    Raises:
      TypeError: If `estimator` is not an `Estimator`. Its docstring lists others.
    Cost:
      That of the estimator.
    Example:
      >>> estimator = radazo.coordinate_estimator(num_directions=None)
      >>> x = jnp.ones(3)
      >>> value, gradient, state, info = estimate(
      ...     estimator, 0, lambda x: 2 * x.sum(), x, estimator.init(x)
      ... )
      >>> print(value, jnp.round(gradient, 2), info.num_values)
      6.0 [2. 2. 2.] 4
    """
    validation.check("estimate", estimator=estimator)
    api_name = estimator.api_name
    words = random.key_data(api_name, key)
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((words, params, state)))
    config: Any = jax.config  # Flags are missing from its type.
    outside = config.jax_disable_jit
    if value_fn is None:
        value_fn = evaluated_elsewhere(api_name)

    def call(params: core.Params) -> Any:
        with jax.disable_jit(outside):
            return value_fn(params)

    # Outside of jit, loops run in Python: compiling them in each call would take
    # longer, and compiling them once would freeze the variables `value_fn` reads.
    with contextlib.nullcontext() if traced else jax.disable_jit():
        step = estimator.step(words, params, state)
        options = {"terms": step.terms, "has_aux": has_aux}
        function = differences.evaluation(api_name, call, **options)
        found = closed_loop(estimator, function, step, state, evaluate)
        gradient = flat.unravel(step.layout, params, found.gradient, found.opaque_index)
    return found.value, gradient, found.state, found.info


def check_memoryless(api_name: str, estimator: Any, hint: str) -> None:
    """Check that `estimator` is a memoryless `Estimator`."""
    validation.check(api_name, estimator=estimator)
    if not estimator.memoryless:
        why = "it uses past steps, or its `smoothing` is a schedule"
        got = f"one whose `memoryless` is False ({why})"
        validation.fail(api_name, "estimator", "be memoryless", got, hint)


def evaluated_elsewhere(api_name: str) -> core.ValueFn:
    """Return a stand-in, which fails, for a `value_fn` that is evaluated elsewhere."""

    def value_fn(params: core.Params, **keywords: Any) -> Any:
        del params, keywords
        rule = "be evaluated at points that are known before the step"
        hint = "A line search and `forward_mode` evaluate further points: use an "
        hint += "optimizer without, and `forward`, `central` or `one_point`."
        validation.fail(api_name, "value_fn", rule, "other points", hint, TypeError)

    return value_fn


_HINT = "Did you forget the parentheses? Pass an estimator, e.g. "
_HINT += "`radazo.sphere_estimator()`."
validation.declare(validation.instance, "estimator", of=core.Estimator, hint=_HINT)
