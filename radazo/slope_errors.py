"""Slopes by differences against exact directional derivatives, by forward mode."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from radazo import core, differences, directions, flat, random, validation

# Of the quadrature along a line: exact for polynomials up to degree 15.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_SAMPLER_HINT = "Pass a sampler, e.g. `radazo.directions.sphere`."


class SlopeErrors(NamedTuple):
    """Slopes beside exact directional derivatives, (num_directions,) each.

    Attributes:
      slopes: As the estimator takes them, by differences.
      exact: Derivatives along the directions, by forward mode.
      bias: By how much a difference without rounding is off, `smoothing` not being 0.
      rounding: The rest of slopes − exact: digits lost in the difference.
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

    Along a direction let φ(s) = f(x + s · u). Its derivative comes from forward mode,
    so that the function must be written in JAX, and continuous; the mean derivative
    over the interval of a difference is that difference without rounding:

      exact    = φ'(0)
      bias     = mean φ' over [0, smoothing] − φ'(0)                  forward
                 mean φ' over [−smoothing, smoothing] − φ'(0)         central
      rounding = slope − exact − bias

    with the mean by Gauss-Legendre quadrature of 8 points, on parameters in float32 at
    least. Bias much larger than rounding: `smoothing` is too large, or take `central`.
    Rounding much larger than bias: it is too small, or take `terms`. A kink leaves a
    hundredth of its jump in `rounding`, a step all of it.

    Args:
      key: Step key, typed or an integer seed: the directions are those of an estimate.
      value_fn: `value_fn(params)`, a real scalar, or terms.
      params: Pytree whose floating-point leaves are perturbed.
      sampler, num_directions, smoothing, difference, terms, mask: As in
        `finite_difference_estimator`; `smoothing` is a number.
    Returns:
      `SlopeErrors`, in float32 at least.
    Raises:
      TypeError: If `value_fn` has no forward-mode derivative.
      TypeError, ValueError: As `finite_difference_estimator`, and if `difference` is
        not `forward` or `central`, whose interval is known.
    Cost:
      K + 1 or 2K function values and 9K derivatives along a line, of about two values
      each. One direction at a time: the memory of a derivative. Put `jax.jit` around.
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
    validation.function(api_name, "value_fn", value_fn, "It takes the parameters.")
    validation.integer(
        api_name, "num_directions", num_directions, 1, "One direction or more."
    )
    validation.positive(
        api_name, "smoothing", smoothing, "Pass that of your estimator."
    )
    validation.instance(
        api_name, "terms", terms, bool, "As you give it to your estimator."
    )
    validation.instance(
        api_name, "sampler", sampler, directions.DirectionSampler, _SAMPLER_HINT
    )
    if difference not in (differences.forward, differences.central):
        validation.fail(
            api_name,
            "difference",
            "be one whose interval is known",
            repr(difference),
            "Pass `radazo.forward` or `radazo.central`.",
        )
    layout = flat.layout(api_name, params, mask)
    evaluate = differences.evaluation(api_name, value_fn, terms=terms, has_aux=False)
    step = jnp.asarray(smoothing, layout.dtype)
    start = difference.start(evaluate, params)
    wide = jax.tree.map(lambda x: _widened(x, layout.dtype), params)
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

        slope, _, _ = difference.slope(
            evaluate, lambda s: moved(params, s), start, step
        )

        def derivative(s: jax.Array) -> jax.Array:
            return differences.derivative(api_name, value, s)[1]

        exact = derivative(jnp.zeros_like(step))
        mean = weights @ lax.map(derivative, points)
        return SlopeErrors(slope, exact, mean - exact, slope - mean)

    return lax.map(errors, jnp.arange(num_directions, dtype=jnp.uint32))


def _widened(leaf: Any, dtype: Any) -> Any:
    return leaf.astype(dtype) if core.is_floating(leaf) else leaf
