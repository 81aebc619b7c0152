"""Slopes along a direction, from function values or by forward mode.

Differences are taken in at least float32, and term by term if the function returns
terms: the rounding of a long sum limits a difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, naming, validation

__all__ = ["Difference", "central", "forward", "forward_mode", "one_point"]


class Difference(NamedTuple):
    """A slope from values at given distances along a direction.

    Attributes:
      steps: The distances at which to evaluate, in units of `smoothing`, in order;
        empty for the derivative by forward mode.
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


_Pair = tuple[jax.Array, jax.Array]  # (slope, value)


def _forward_slope(base: jax.Array, along: jax.Array, smoothing: jax.Array) -> _Pair:
    return jnp.sum(along[0] - base) / smoothing.astype(base.dtype), jnp.sum(base)


def _central_slope(base: None, along: jax.Array, smoothing: jax.Array) -> _Pair:
    del base
    slope = jnp.sum(along[0] - along[1]) / (2 * smoothing.astype(along.dtype))
    return slope, jnp.sum((along[0] + along[1]) / 2)


def _one_point_slope(base: None, along: jax.Array, smoothing: jax.Array) -> _Pair:
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

        def summed(distance: jax.Array) -> tuple[jax.Array, Any]:
            terms, aux = function(line(distance))
            return jnp.sum(terms), aux

        zero = jnp.zeros_like(smoothing)
        value, slope, aux = derivative("forward_mode", summed, zero)
        return slope, value, aux
    distances = difference.distances(smoothing)
    if len(difference.steps) == 1:
        terms, aux = function(line(distances[0]))
        return *difference.slope(base, terms[None], smoothing), aux
    # The loop compiles the function once and holds one point at a time.
    terms, aux = lax.map(lambda distance: function(line(distance)), distances)
    aux = jax.tree.map(lambda x: x[0], aux)
    return *difference.slope(base, terms, smoothing), aux


def derivative(
    api_name: str, function: Any, point: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """Return value, derivative and aux of `function(number) -> (value, aux)`."""
    try:
        return jax.jvp(function, (point,), (jnp.ones_like(point),), has_aux=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        jax.eval_shape(function, point)  # Raises errors unrelated to the derivative.
        rule = "have a derivative in forward mode"
        got = f"one that has none ({str(error).splitlines()[0]})"
        hint = "Only functions written in JAX have one."
        return validation.fail(api_name, "value_fn", rule, got, hint, TypeError)


forward = Difference((1.0,), _forward_slope, at_params=True)
"""(f(x + smoothing · u) − f(x)) / smoothing: K + 1 values; all slopes share f(x)."""

central = Difference((1.0, -1.0), _central_slope)
"""(f(x + smoothing · u) − f(x − smoothing · u)) / (2 · smoothing): 2K values.

The antithetic form of natural evolution strategies (NES)."""

one_point = Difference((1.0,), _one_point_slope)
"""f(x + smoothing · u) / smoothing: K values, for functions that change at each call.

The bandit estimator (Flaxman et al., 2005, see `sphere_estimator`). Its mean is that of
`forward`, since E u = 0, but f(x)² / smoothing² adds to its variance."""

forward_mode = Difference((), _one_point_slope)
"""⟨∇f(x), u⟩ by forward mode: the reference, without discretization error.

It ignores `smoothing`. K values of a JAX function, each at the cost of two to three."""


def evaluation(
    api_name: str, value_fn: core.ValueFn, *, terms: bool, has_aux: bool
) -> core.Function:
    """Return `value_fn` as a checked function to (terms in at least float32, aux)."""

    def evaluate(params: core.Params) -> tuple[jax.Array, Any]:
        with validation.traceable(api_name):
            out = value_fn(params)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            rule = "return a pair (value, aux), since `has_aux=True`"
            hint, got = "Return the pair or leave `has_aux` out.", type(out).__name__
            validation.fail(api_name, "value_fn", rule, f"a {got}", hint, TypeError)
        value, aux = out if has_aux else (out, None)
        return _checked(api_name, value, terms), aux

    # `jit` traces the function once per step program.
    return jax.jit(evaluate)


def _checked(api_name: str, value: Any, terms: bool) -> jax.Array:
    others = jnp.complexfloating, jax.dtypes.extended
    try:
        value = jnp.asarray(value)
        numeric = not any(jnp.issubdtype(value.dtype, kind) for kind in others)
    except (TypeError, ValueError):
        numeric = False
    if not numeric:
        got = f"a {type(value).__name__} {value!r}"[:200]
        if isinstance(value, jax.Array):
            got = f"an array of type {value.dtype} and shape {value.shape}"
        rule = "return a real number"
        hint = "If it returns (value, aux), pass `has_aux=True`."
        validation.fail(api_name, "value_fn", rule, got, hint, TypeError)
    if value.ndim and not terms:
        rule, got = "return a scalar", f"shape {value.shape}"
        hint = "Return its sum or mean; or, if the objective is the sum of these "
        hint += "terms, give the estimator `terms=True`."
        validation.fail(api_name, "value_fn", rule, got, hint)
    return value.astype(core.wide(value.dtype))


_HINT = "Pass `radazo.forward` or `radazo.central`."
validation.declare(validation.instance, "difference", of=Difference, hint=_HINT)
