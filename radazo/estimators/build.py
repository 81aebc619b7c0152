"""What every estimator does around its own idea: read a step, wrap it, count it.

`estimator` makes an `Estimator` of two functions that differ from one to the next:

  fresh(layout, params) -> state            a NamedTuple with a field `count`
  estimate(step, state) -> Estimated        within a program that JAX traces

and does for all of them what does not differ: the key is read, `value_fn` is checked
and evaluated in float32 at least, `smoothing` follows its schedule, the flat gradient
is cut into leaves, and `count` grows by one.

To add an estimator:

  1  Its state: a NamedTuple of arrays with `count`, an int32 scalar, and `fresh`.
  2  Its step: `estimate`, from `step.evaluate(step.moved(vector, turn))`. Slopes that
     are not finite are not kept and count as 0; `info.num_values` is what it took.
  3  Its name: a public `x_estimator(..., smoothing, terms, mask)` in a module of floor
     4 that checks its own arguments and returns `estimator(...)`; exported, with the
     docstring that the others have. A mean of slope times direction is one call of
     `averaging.estimator`, and a law of directions no estimator at all.
  4  Its rows: in `tests/contracts.py`, and every contract runs on it; in
     `benchmarks/estimators_rows.py`, and it is compared with all others. A test of its
     own says that it is the method of its source.

`tests/test_recipe.py` follows this.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from radazo import core, differences, flat, random, validation
from radazo.evaluate import answers


class Step(NamedTuple):
    """What there is to work with in one step.

    Attributes:
      key: (2,) uint32, the words of the key of the step.
      layout: Which leaves are perturbed; directions are flat vectors of (layout.dim,).
      evaluate: `evaluate(params) -> (terms in float32 at least, aux)`.
      params: The parameters, as they came.
      smoothing: Scalar of type layout.dtype.
      given: What stands in the place of a function, or None.
    """

    key: jax.Array
    layout: flat.Layout
    evaluate: differences.Evaluate
    params: core.Params
    smoothing: jax.Array
    given: answers.Given | None = None

    def moved(self, vector: jax.Array, turn: jax.Array) -> core.Params:
        """params + vector, (dim,)."""
        one = jnp.ones((), self.layout.dtype)
        return flat.perturb(self.layout, self.params, vector, one, turn)


class Estimated(NamedTuple):
    """What comes out of one step.

    Attributes:
      value: Scalar, the value of the step.
      gradient: (dim,) the gradient estimate.
      state: The state, whose `count` is not yet that of the next step.
      info: What was seen.
      turn: uint32 that is not known when the program is compiled; see `leaves.unravel`.
    """

    value: jax.Array
    gradient: jax.Array
    state: Any
    info: core.EstimateInfo
    turn: jax.Array


class Settings(NamedTuple):
    """The arguments that all estimators have."""

    smoothing: core.Schedule | float
    terms: bool = False
    mask: core.Mask = None


def check(api_name: str, settings: Settings) -> None:
    """Say what is wrong with the arguments that all estimators have."""
    validation.check(api_name, smoothing=settings.smoothing, terms=settings.terms)


def check_estimator(api_name: str, estimator: Any) -> None:
    """`estimator` is an `Estimator`, and not the function that makes one."""
    hint = "Pass `radazo.sphere_estimator()`, say: a call, not the function."
    validation.instance(api_name, "estimator", estimator, core.Estimator, hint)


def smoothing_at(
    smoothing: core.Schedule | float, count: jax.Array, layout: flat.Layout
) -> jax.Array:
    """What `smoothing` is after `count` steps."""
    now = smoothing(count) if callable(smoothing) else smoothing
    return jnp.asarray(now, layout.dtype)


def estimator(
    api_name: str,
    settings: Settings,
    fresh: Callable[[flat.Layout, core.Params], Any],
    estimate: Callable[[Step, Any], Estimated],
    *,
    memoryless: bool = False,
) -> core.Estimator:
    """The estimator made of `fresh` and `estimate`, whose messages say `where`."""
    check(api_name, settings)

    def init(params: core.Params) -> Any:
        return fresh(flat.layout(api_name, params, settings.mask), params)

    def whole_estimate(
        key: core.Key,
        value_fn: core.ValueFn,
        params: core.Params,
        state: Any,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, core.Params, Any, core.EstimateInfo]:
        layout = flat.layout(api_name, params, settings.mask)
        words = random.key_data(api_name, key)
        inputs = jax.tree.leaves((words, params, state))
        traced = any(isinstance(x, Tracer) for x in inputs)
        config: Any = jax.config  # Its flags are not in its type.
        outside = config.jax_disable_jit
        smoothing = smoothing_at(settings.smoothing, state.count, layout)

        def called(params: core.Params) -> Any:
            with jax.disable_jit(outside):
                return value_fn(params)

        # Outside of any jit the loops run in Python: compiled anew for each call they
        # would take longer, and compiled once they would freeze what `value_fn` reads.
        with contextlib.nullcontext() if traced else jax.disable_jit():
            evaluate = differences.evaluation(
                api_name, called, terms=settings.terms, has_aux=has_aux
            )
            given = answers.of(value_fn)
            step = Step(words, layout, evaluate, params, smoothing, given)
            value, vector, new, info, turn = estimate(step, state)
            gradient = flat.unravel(layout, params, vector, turn)
        count = jnp.asarray(optax.safe_increment(state.count))
        return value, gradient, new._replace(count=count), info

    memoryless = memoryless and not callable(settings.smoothing)
    return core.Estimator(init, whole_estimate, memoryless=memoryless)
