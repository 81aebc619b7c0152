"""The core types: an estimator is two pure functions with an evaluator between them.

  queries  = estimator.queries(step, state)              the points of one step
  readings = evaluate(function, step, queries)
  estimate = estimator.estimate(step, state, queries, readings)

Evaluators are interchangeable: the program of the step itself, the devices of a mesh,
the workers of a pool, `ask` and `tell`, a journal, or a model evaluated in place. A
direction is a pure function of its key; the same key gives the same estimate. An update
rule is an ordinary `optax.GradientTransformation`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

Key = chex.PRNGKey | int
Params = Any  # A pytree of arrays.
ValueFn = Callable[..., Any]
Schedule = Callable[[Any], Any]
Mask = Any  # A pytree of bools, a prefix of one, or a function from params to either.
Function = Callable[[Params], tuple[jax.Array, Any]]  # params -> (terms, aux)

NUM_DIRECTIONS, SMOOTHING = 10, 5e-3  # Defaults of all estimators.


class Step(NamedTuple):
    """The inputs of one step.

    Attributes:
      key: (2,) uint32, the key data of the step.
      layout: The perturbed leaves; directions are flat vectors of (layout.dim,).
      params: The parameters.
      smoothing: Scalar of type layout.dtype.
      terms: Whether the function returns terms whose sum is the objective.
    """

    key: jax.Array
    layout: Any
    params: Params
    smoothing: jax.Array
    terms: bool = False


class Readings(NamedTuple):
    """The numbers that an estimator reads from the values of one step.

    Attributes:
      value: Scalar, the value of the step.
      slopes: (num_readings,) slope of each direction, or the values used instead.
      valid: (num_readings,) bool, False where a reading is dropped.
      aux: Auxiliary output of the function at query 0, or None.
      fused: Result of `Queries.fused` for the estimate, e.g. the weighted sum, or None.
    """

    value: jax.Array
    slopes: jax.Array
    valid: jax.Array
    aux: Any = None
    fused: Any = None


class Queries(NamedTuple):
    """The points at which one step evaluates. Nothing is evaluated or stored yet.

    Attributes:
      num: Number of queries.
      point: `point(index) -> params`, the point of a query; `index` may be traced.
      read: `read(values, aux) -> Readings` of the (num, ...) values or terms of all
        queries, in order, and the aux of query 0.
      num_readings: Length of `Readings.slopes`.
      base: The point of query 0 if it needs no direction and is always evaluated.
      needed: `needed(index) -> bool`, whether a query must be evaluated; None for all.
      functions: Further functions of the parameters beside `value_fn`.
      function_of: `function_of(index)`, 0 for `value_fn`, i + 1 for `functions[i]`.
      evaluate: The evaluator of the estimator, or None.
      fused: An evaluator that computes part of the estimate in the same pass, used if
        no other evaluator is given; or None.
      shared: Used by both `point` and the estimate, e.g. a function that draws.
    """

    num: int
    point: Callable[[Any], Params]
    read: Callable[[jax.Array, Any], Readings]
    num_readings: int
    base: Params = None
    needed: Callable[[Any], Any] | None = None
    functions: tuple[ValueFn, ...] = ()
    function_of: Callable[[Any], Any] | None = None
    evaluate: Any = None
    fused: Any = None
    shared: Any = None

    def num_needed(self) -> Any:
        """Return how many queries are evaluated; an int if all are."""
        if self.needed is None:
            return self.num
        indices = jnp.arange(self.num, dtype=jnp.uint32)
        return jnp.sum(jax.vmap(self.needed)(indices), dtype=jnp.int32)


# An evaluator: (function, step, queries) -> readings.
Evaluate = Callable[[Function, Step, Queries], Readings]


class EstimateInfo(NamedTuple):
    """Diagnostics of an estimate. They cost no further function values.

    Attributes:
      slopes: (num_directions,) directional slopes; 0 where one was dropped.
      kept: (num_directions,) bool, False where a slope was too large or not finite.
      num_values: int32 scalar, number of function values.
      aux: Auxiliary output of `value_fn`, or None.
      factor: Scalar c if the gradient is c · mean of slope · direction, else NaN.
      squared_norm: Scalar, the mean of ‖u‖²; NaN if the directions are dependent.
    """

    slopes: jax.Array
    kept: jax.Array
    num_values: jax.Array
    aux: Any = None
    factor: Any = math.nan
    squared_norm: Any = math.nan


class Estimate(NamedTuple):
    """The estimate of one step.

    Attributes:
      value: Scalar, the value of the step.
      gradient: (dim,) the gradient estimate.
      state: The state after the step.
      info: An `EstimateInfo`.
      opaque_index: A uint32 unknown at compile time; see `flat.unravel`.
    """

    value: jax.Array
    gradient: jax.Array
    state: Any
    info: EstimateInfo
    opaque_index: jax.Array


class Estimator(NamedTuple):
    """A gradient estimator: function values in, gradient estimate out.

    Attributes:
      api_name: Name of the function that made the estimator, for error messages.
      init: `init(params) -> state`, arrays only. It evaluates nothing.
      step: `step(key_data, params, state) -> Step`.
      queries: `queries(step, state) -> Queries`.
      estimate: `estimate(step, state, queries, readings) -> Estimate`.
      memoryless: Whether an estimate from a fresh state is as good as any.
    """

    api_name: str
    init: Callable[[Params], Any]
    step: Callable[[jax.Array, Params, Any], Step]
    queries: Callable[[Step, Any], Queries]
    estimate: Callable[[Step, Any, Queries, Readings], Estimate]
    memoryless: bool = False


def apply_updates(updates: Params, params: Params) -> Params:
    """Return params + updates; leaves that are not floating point stay unchanged."""
    return jax.tree.map(
        lambda x, u: optax.apply_updates(x, u) if is_floating(x) else x, params, updates
    )


def select(condition: jax.Array, params: Params, others: Params) -> Params:
    """Return the floating-point leaves of `params` if `condition`, else of `others`."""
    return jax.tree.map(
        lambda x, y: jnp.where(condition, x, y) if is_floating(x) else x, params, others
    )


def is_floating(leaf: Any) -> bool:
    """Return whether `leaf` is a floating-point array."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def largest(*dtypes: Any) -> float:
    """Return the largest factor of a direction, whose elements are below 16."""
    return min(float(jnp.finfo(x).max) for x in dtypes) / 16


def wide(*dtypes: Any) -> Any:
    """Return the dtype of computations: float64 if one has 64 bits, else float32."""
    double = any(jnp.dtype(dtype).itemsize == 8 for dtype in dtypes)
    # Without `jax_enable_x64`, tracing converts float64 NumPy arrays to float32.
    return jnp.dtype(jnp.result_type(float) if double else jnp.float32)
