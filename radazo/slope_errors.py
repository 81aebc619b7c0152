"""Errors of slopes by differences, against exact directional derivatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, differences, directions, flat, random, validation

# Quadrature along a line, exact for polynomials up to degree 15.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


class SlopeErrors(NamedTuple):
    """Slopes and their errors, (num_directions,) each.

    Attributes:
      slopes: Slopes by differences, as the estimator computes them.
      exact: Directional derivatives, by forward mode.
      bias: Error of a difference without rounding, due to `smoothing` > 0.
      rounding: Rest of slopes − exact: digits lost in the difference.
    """

    slopes: jax.Array
    exact: jax.Array
    bias: jax.Array
    rounding: jax.Array


def slope_errors(
    key: core.Key,
    value_fn: core.ValueFn,
    params: core.Params,
    sampler: directions.DirectionSampler = directions.sphere,
    *,
    num_directions: int = 10,
    smoothing: float = 5e-3,
    difference: differences.Difference = differences.forward,
    terms: bool = False,
    mask: core.Mask = None,
) -> SlopeErrors:
    """Compare slopes with exact directional derivatives, to choose `smoothing`.

    With φ(s) = f(x + s · u) along a direction:

      exact    = φ'(0)
      bias     = mean φ' over [0, smoothing] − φ'(0)                  forward
                 mean φ' over [−smoothing, smoothing] − φ'(0)         central
      rounding = slope − exact − bias

    Derivatives are taken by forward mode and means by Gauss-Legendre quadrature with 8
    points, on parameters in at least float32. If bias is much larger than rounding,
    decrease `smoothing` or use `central`; if it is much smaller, increase `smoothing`
    or use `terms`. A kink adds 1 % of its jump to `rounding`, a step its full height.

    Args:
      key: Step key, typed or an integer seed; the directions are those of an estimate.
      value_fn: `value_fn(params)`, a real scalar or terms, written in JAX.
      params: Pytree whose floating-point leaves are perturbed.
      sampler, num_directions, smoothing, difference, terms, mask: As in
        `finite_difference_estimator`, but `smoothing` is a number.
    Returns:
      `SlopeErrors`, at least float32.
    Raises:
      TypeError: If `value_fn` has no forward-mode derivative.
      TypeError, ValueError: As `finite_difference_estimator`, and if `difference` is
        neither `forward` nor `central`.
    Cost:
      K + 1 or 2K function values and 9K derivatives along a line, about two values
      each, one direction at a time. Wrap it in `jax.jit`.
    Example:
      >>> for smoothing in (1e-3, 1.0):
      ...     errors = slope_errors(
      ...         0, lambda x: x @ x, jnp.ones(1000), smoothing=smoothing
      ...     )
      ...     print(jnp.all(jnp.abs(errors.rounding) < jnp.abs(errors.bias)))
      False
      True
    """
    api_name = "slope_errors"
    validation.check(api_name, value_fn=value_fn, terms=terms, sampler=sampler)
    hint = "Take at least one direction."
    validation.integer(api_name, "num_directions", num_directions, 1, hint)
    hint = "Pass that of your estimator."
    validation.positive(api_name, "smoothing", smoothing, hint)
    if difference not in (differences.forward, differences.central):
        rule, hint = (
            "have a known interval",
            "Pass `radazo.forward` or `radazo.central`.",
        )
        validation.fail(api_name, "difference", rule, repr(difference), hint)
    layout = flat.layout(api_name, params, mask)
    evaluate = differences.evaluation(api_name, value_fn, terms=terms, has_aux=False)
    step = jnp.asarray(smoothing, layout.dtype)
    base = evaluate(params)[0] if difference.at_params else None
    wide = jax.tree.map(
        lambda x: x.astype(layout.dtype) if core.is_floating(x) else x, params
    )
    least = 0.0 if difference is differences.forward else -1.0
    points = step * jnp.asarray(least + (1 - least) * (_NODES + 1) / 2, layout.dtype)
    weights = jnp.asarray(_WEIGHTS / 2, layout.dtype)
    prepared = sampler.prepare(
        random.key_data(api_name, key), num_directions, layout.dim, layout.dtype
    )

    def errors(k: jax.Array) -> SlopeErrors:
        u = directions.direction(sampler, prepared, k, layout.dim, layout.dtype)

        def moved(params: core.Params, s: jax.Array) -> core.Params:
            return flat.perturb(layout, params, u, s, jnp.uint32(0))

        def value(s: jax.Array) -> tuple[jax.Array, None]:
            return jnp.sum(evaluate(moved(wide, s))[0]), None

        slope, _, _ = differences.slope(
            difference, evaluate, lambda s: moved(params, s), base, step
        )

        def derivative(s: jax.Array) -> jax.Array:
            return differences.derivative(api_name, value, s)[1]

        exact = derivative(jnp.zeros_like(step))
        mean = weights @ lax.map(derivative, points)
        return SlopeErrors(slope, exact, mean - exact, slope - mean)

    return lax.map(errors, jnp.arange(num_directions, dtype=jnp.uint32))
