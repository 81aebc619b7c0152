"""One slope along one direction: from function values, or by forward mode.

A `Difference` is what is evaluated once a step and what for each direction.
Differences are taken in float32 at least, whatever the type of the parameters, and term
by term where the function returns terms: rounding of a sum of many terms is what limits
a difference in float32, and terms that a small step hardly moves cancel exactly.
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

# A point that moves along a direction: step -> params + step · direction.
Line = Callable[[jax.Array], core.Params]
# params -> (terms, aux)
Evaluate = Callable[[core.Params], tuple[jax.Array, Any]]


class Difference(NamedTuple):
    """A way to take a slope.

    Attributes:
      start: `start(evaluate, params)`, what is evaluated once a step and shared: the
        (terms, aux) of `params`, which give the value of the step; or None.
      slope: `slope(evaluate, line, start, smoothing) -> (slope, value, aux)`.
      num_values: `num_values(num_directions) -> int`, the function values of a step.
      steps: Where along a direction it takes values, in units of `smoothing` and in
        their order; empty where they cannot be taken elsewhere and told.
    """

    start: Callable[[Evaluate, core.Params], Any]
    slope: Callable[..., tuple[jax.Array, jax.Array, Any]]
    num_values: Callable[[int], int]
    steps: tuple[float, ...] = ()

    __repr__ = naming.constant_repr


def _forward_slope(
    evaluate: Evaluate, line: Line, start: Any, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    terms, _ = start
    moved, _ = evaluate(line(smoothing))
    slope = jnp.sum(moved - terms) / smoothing.astype(terms.dtype)
    return slope, jnp.sum(terms), None


def _central_slope(
    evaluate: Evaluate, line: Line, start: Any, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    del start
    steps = jnp.stack([smoothing, -smoothing])
    # A loop over the two points: the function is compiled once, and one point lives.
    terms, aux = lax.map(lambda step: evaluate(line(step)), steps)
    slope = jnp.sum(terms[0] - terms[1]) / (2 * smoothing.astype(terms.dtype))
    return slope, jnp.sum((terms[0] + terms[1]) / 2), jax.tree.map(lambda x: x[0], aux)


def _one_point_slope(
    evaluate: Evaluate, line: Line, start: Any, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    del start
    terms, aux = evaluate(line(smoothing))
    value = jnp.sum(terms)
    return value / smoothing.astype(value.dtype), value, aux


def _forward_mode_slope(
    evaluate: Evaluate, line: Line, start: Any, smoothing: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    del start

    def summed(step: jax.Array) -> tuple[jax.Array, Any]:
        terms, aux = evaluate(line(step))
        return jnp.sum(terms), aux

    value, slope, aux = derivative("forward_mode", summed, jnp.zeros_like(smoothing))
    return slope, value, aux


def derivative(
    api_name: str, function: Any, point: jax.Array
) -> tuple[jax.Array, jax.Array, Any]:
    """Value, derivative and aux of `function(number) -> (value, aux)` at a number."""
    try:
        return jax.jvp(function, (point,), (jnp.ones_like(point),), has_aux=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        jax.eval_shape(function, point)  # An error that has to do with no derivative.
        got = f"one that has none ({str(error).splitlines()[0]})"
        rule = "have a derivative in forward mode"
        hint = "Only functions written in JAX have one."
        return validation.fail(api_name, "value_fn", rule, got, hint, TypeError)


forward = Difference(
    lambda evaluate, params: evaluate(params), _forward_slope, lambda k: k + 1, (1.0,)
)
"""(f(x + smoothing · u) − f(x)) / smoothing: K + 1 values, f(x) shared by all."""

central = Difference(
    lambda evaluate, params: None, _central_slope, lambda k: 2 * k, (1.0, -1.0)
)
"""(f(x + smoothing · u) − f(x − smoothing · u)) / (2 · smoothing): 2K values.

The antithetic form of natural evolution strategies (NES)."""

one_point = Difference(
    lambda evaluate, params: None, _one_point_slope, lambda k: k, (1.0,)
)
"""f(x + smoothing · u) / smoothing: K values, where none can be asked for twice.

The estimator of bandits (Flaxman et al., Online convex optimization in the bandit
setting, 2005). In the mean it is `forward`, since E u = 0; but the value
itself goes into the slope, f(x)² / smoothing² into its variance, and no number of
directions that one can pay for averages that out: take another where there is one."""

forward_mode = Difference(
    lambda evaluate, params: None, _forward_mode_slope, lambda k: k
)
"""⟨∇f(x), u⟩ by forward mode: the reference, without an error of the difference.

`smoothing` is not used. K values, each with its derivative along u, which together cost
as much as two to three values. The function must be written in JAX; the derivative is
taken in the types of the parameters."""


def evaluation(
    api_name: str, value_fn: core.ValueFn, *, terms: bool, has_aux: bool
) -> Evaluate:
    """`value_fn` as a function to (terms in float32 or wider, aux), checked."""

    def evaluate(params: core.Params) -> tuple[jax.Array, Any]:
        with validation.traceable(api_name):
            out = value_fn(params)
        value, aux = _with_aux(api_name, out) if has_aux else (out, None)
        return _checked(api_name, value, terms), aux

    # Traced once however often it stands in the program of a step.
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
