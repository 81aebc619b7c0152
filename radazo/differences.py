"""Slopes along a direction, from function values or by forward mode.

Differences are taken in at least float32, and term by term if the function returns
terms: the rounding of a long sum limits a difference in float32, and terms that a small
step barely changes cancel exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, naming, validation

__all__ = [
    "Difference",
    "central",
    "forward",
    "forward_mode",
    "one_point",
]


class Difference(NamedTuple):
    """A slope from values at given distances along a direction.

    Attributes:
      steps: The distances at which to evaluate, in units of `smoothing`, in order.
        Empty for the derivative by forward mode.
      slope: `slope(base, along, smoothing) -> (slope, value)`. `base` holds the terms
        of f(x), or is None; `along[i]` those at `steps[i]`. `value` replaces f(x) where
        f(x) is not evaluated.
      at_params: Whether f(x) is evaluated too, once a step for all directions.
    """

    steps: tuple[float, ...]
    slope: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    at_params: bool = False
    __repr__ = naming.constant_repr

    def num_values(self, num_directions: int) -> int:
        """Return the number of function values of a step."""
        return self.at_params + num_directions * max(len(self.steps), 1)

    def distances(self, smoothing: jax.Array) -> jax.Array:
        """Return the (len(steps),) distances at which to evaluate."""
        return smoothing * jnp.asarray(self.steps, smoothing.dtype)


def _forward_slope(
    base: jax.Array, along: jax.Array, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(along[0] - base) / smoothing.astype(base.dtype), jnp.sum(base)


def _central_slope(
    base: None, along: jax.Array, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del base
    slope = jnp.sum(along[0] - along[1]) / (2 * smoothing.astype(along.dtype))
    return slope, jnp.sum((along[0] + along[1]) / 2)


def _one_point_slope(
    base: None, along: jax.Array, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del base
    value = jnp.sum(along[0])
    return value / smoothing.astype(value.dtype), value


def slope(
    difference: Difference,
    function: Callable[[Any], tuple[jax.Array, Any]],
    line: Callable[[jax.Array], Any],
    base: jax.Array | None,
    smoothing: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Return (slope, value, aux) along a direction; `line(distance)` is a point."""
    if not difference.steps:
        return _forward_mode_slope(function, line, smoothing)
    distances = difference.distances(smoothing)
    if len(difference.steps) == 1:
        terms, aux = function(line(distances[0]))
        return *difference.slope(base, terms[None], smoothing), aux
    # The loop compiles the function once and holds one point at a time.
    terms, aux = lax.map(lambda distance: function(line(distance)), distances)
    aux = jax.tree.map(lambda x: x[0], aux)
    return *difference.slope(base, terms, smoothing), aux


def _forward_mode_slope(
    function: Any, line: Any, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    def summed(distance: jax.Array) -> tuple[jax.Array, Any]:
        terms, aux = function(line(distance))
        return jnp.sum(terms), aux

    value, slope, aux = derivative("forward_mode", summed, jnp.zeros_like(smoothing))
    return slope, value, aux


def derivative(
    api_name: str, function: Any, point: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """Return value, derivative and aux of `function(number) -> (value, aux)`."""
    try:
        return jax.jvp(function, (point,), (jnp.ones_like(point),), has_aux=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        jax.eval_shape(function, point)  # Raises errors unrelated to the derivative.
        got = f"one that has none ({str(error).splitlines()[0]})"
        rule = "have a derivative in forward mode"
        hint = "Only functions written in JAX have one."
        return validation.fail(api_name, "value_fn", rule, got, hint, TypeError)


forward = Difference((1.0,), _forward_slope, at_params=True)
"""(f(x + smoothing · u) − f(x)) / smoothing: K + 1 values; all slopes share f(x)."""

central = Difference((1.0, -1.0), _central_slope)
"""(f(x + smoothing · u) − f(x − smoothing · u)) / (2 · smoothing): 2K values.

The antithetic form of natural evolution strategies (NES)."""

one_point = Difference((1.0,), _one_point_slope)
"""f(x + smoothing · u) / smoothing: K values, for functions that change at each call.

The bandit estimator (Flaxman et al., Online convex optimization in the bandit setting,
2005). It has the mean of `forward`, since E u = 0, but f(x)² / smoothing² adds to its
variance: prefer any other difference."""

forward_mode = Difference((), _one_point_slope)
"""⟨∇f(x), u⟩ by forward mode: the reference, without discretization error.

It ignores `smoothing`. K values, each with its derivative along u, which together cost
two to three values. The function must be written in JAX; the derivative has the dtypes
of the parameters."""


def evaluation(
    api_name: str, value_fn: core.ValueFn, *, terms: bool, has_aux: bool
) -> core.Function:
    """Return `value_fn` as a checked function to (terms in at least float32, aux)."""

    def evaluate(params: core.Params) -> tuple[jax.Array, Any]:
        with validation.traceable(api_name):
            out = value_fn(params)
        value, aux = _with_aux(api_name, out) if has_aux else (out, None)
        return _checked(api_name, value, terms), aux

    # `jit` traces the function once per step program.
    return jax.jit(evaluate)


def _with_aux(api_name: str, out: Any) -> tuple[Any, Any]:
    if not (isinstance(out, tuple) and len(out) == 2):
        validation.fail(
            api_name,
            "value_fn",
            "return a pair (value, aux), since `has_aux=True`",
            f"a {type(out).__name__}",
            "Return the pair or leave `has_aux` out.",
            TypeError,
        )
    return out[0], out[1]


def _named(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"an array of type {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__} {value!r}"[:200]


def _checked(api_name: str, value: Any, terms: bool) -> jax.Array:
    try:
        value = jnp.asarray(value)
        real = not jnp.issubdtype(value.dtype, jnp.complexfloating)
        numeric = real and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
    except (TypeError, ValueError):
        numeric = False
    if not numeric:
        validation.fail(
            api_name,
            "value_fn",
            "return a real number",
            _named(value),
            "If it returns (value, aux), say `has_aux=True` where there is one.",
            TypeError,
        )
    if value.ndim and not terms:
        validation.fail(
            api_name,
            "value_fn",
            "return a scalar",
            f"shape {value.shape}",
            "Return its sum or mean; or, if the objective is the sum of these terms, "
            "give the estimator `terms=True`.",
        )
    return value.astype(core.wide(value.dtype))


validation.declare(
    validation.instance,
    "difference",
    of=Difference,
    hint="Pass `radazo.forward` or `radazo.central`.",
)
