"""Estimate the gradient by linear interpolation, reusing close points: ReLIZO."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from radazo import core, directions, flat, validation
from radazo.estimators import build


class InterpolationState(NamedTuple):
    """State of `interpolation_estimator`.

    Attributes:
      count: int32 scalar, estimates so far.
      points: (N + 1, d) flat parameters: the points of the last step, then its center.
      values: (N + 1,) their function values.
      usable: (N + 1,) bool, whether the row holds a point with a finite value.
    """

    count: jax.Array
    points: jax.Array
    values: jax.Array
    usable: jax.Array


def interpolation_estimator(
    *,
    num_directions: int = core.NUM_DIRECTIONS,
    smoothing: core.Schedule | float = core.SMOOTHING,
    reuse_distance: float = 2.0,
    max_reuse: float = 0.5,
    sampler: directions.DirectionSampler = directions.sphere,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient by linear interpolation with reused points, as ReLIZO does.

    The estimate is the shortest vector that explains all differences of a step: about
    N/d of the gradient if N is much less than d; exact for linear functions at N = d.

      δᵢ = pᵢ − x     for the points pᵢ of the last step and its center: those with
                      ‖δᵢ‖ < reuse_distance · r are reused, the nearest first,
                      at most max_reuse · N of them, with their old values
      δᵢ = smoothing · uᵢ                            for the rest of the N, evaluated
      slopeᵢ = (f(x + δᵢ) − f(x)) / ‖δᵢ‖
      g = Uᵀ (U Uᵀ)⁺ slope                           with rows δᵢ / ‖δᵢ‖ of U

    where r is the distance of a new point: `smoothing`, times √d for samplers with
    ‖u‖ = √d. By default points are reused while steps are shorter than about 1.7 r:
    choose `smoothing` near the length of a step. `value_fn` must be the same in all
    steps, without mini-batches. The pseudoinverse drops dependent directions.

    Args:
      num_directions: N, at least 1.
      smoothing, terms, mask, sharding: As in `finite_difference_estimator`; but
        for reused points, terms are summed before they are compared.
      reuse_distance: Maximum distance of a reused point, at least 0, in units of r.
      max_reuse: Maximum share of the N points that are reused, in [0, 1].
      sampler: Sampler of the new directions.
    Returns:
      An `Estimator` whose value is f(x). `info.kept` is False where a value is not
      finite, or a displacement is lost to rounding.
    Raises:
      As `finite_difference_estimator`.
    Cost:
      N + 1 function values per step, minus those reused (but N + 1 under `jax.vmap`).
      N + 1 copies of the parameters in the state, and 2N to 3N more during a step.
    Example:
      >>> estimator = interpolation_estimator(num_directions=2)
      >>> fn, x = lambda x: x[0] - 2 * x[1], jnp.zeros(2)
      >>> estimate = jax.jit(radazo.estimate, static_argnums=(0, 2))
      >>> state = estimator.init(x)
      >>> for step in range(2):
      ...     _, gradient, state, info = estimate(estimator, step, fn, x, state)
      ...     print(jnp.round(gradient, 2), info.num_values)
      ...     x = x - 1e-3 * gradient
      [ 1. -2.] 3
      [ 1. -2.] 2
    References:
      Wang et al., ReLIZO: sample reusable linear interpolation-based zeroth-order
      optimization, 2024.
    """
    api_name = "interpolation_estimator"
    validation.check(api_name, num_directions=num_directions, sampler=sampler)
    hint = "It is in units of a new point's distance; 0 reuses none."
    validation.non_negative(api_name, "reuse_distance", reuse_distance, hint)
    hint = "It is the share of points that may be reused; 0 reuses none."
    validation.share(api_name, "max_reuse", max_reuse, hint)
    # A product such as 0.29 · 100 is rounded to below the exact integer.
    most = math.floor(num_directions * max_reuse + 1e-9)

    def init(layout: flat.Layout) -> InterpolationState:
        number = num_directions + 1
        points = jnp.zeros((number, layout.dim), layout.dtype)
        values = jnp.zeros(number, jnp.result_type(float)), jnp.zeros(number, bool)
        return InterpolationState(jnp.zeros((), jnp.int32), points, *values)

    queries = functools.partial(_queries, sampler, reuse_distance, most)
    settings = build.Settings(smoothing, terms, mask, sharding=sharding)
    return build.estimator(api_name, init, queries, _estimate, settings)


def _queries(
    sampler: directions.DirectionSampler,
    reuse_distance: Any,
    most: int,
    step: core.Step,
    state: InterpolationState,
) -> core.Queries:
    """Return the queries at the parameters and N points; reused points come first."""
    layout, num_directions = step.layout, len(state.points) - 1
    spread = math.sqrt(layout.dim / sampler.factor(max(layout.dim, 1)))
    limit = step.smoothing * reuse_distance * spread
    center = flat.ravel(layout, step.params)
    distances = jnp.sqrt(jnp.sum(jnp.square(state.points - center[None]), axis=1))
    # A point equal to the center has no slope.
    near = state.usable & (distances < limit) & (distances > 0)
    rows = jnp.argsort(jnp.where(near, distances, jnp.inf))[:-1]  # The nearest first.
    num_reused = jnp.minimum(jnp.sum(near, dtype=jnp.int32), jnp.int32(most))
    prepared = sampler.prepare(step.key, num_directions, layout.dim, layout.dtype)

    def new_point(k: jax.Array) -> core.Params:
        u = directions.direction(sampler, prepared, k, layout.dim, layout.dtype)
        one = jnp.ones((), layout.dtype)
        return flat.perturb(layout, step.params, step.smoothing * u, one, k)

    def point(index: Any) -> core.Params:
        k = jnp.asarray(index).astype(jnp.uint32)
        return core.select(k < 1, step.params, new_point(jnp.maximum(k, 1) - 1))

    def evaluated_at(k: jax.Array) -> jax.Array:
        # A new point as rounded: in low precision it differs from x + smoothing · u.
        new = flat.ravel(layout, new_point(k))
        return jnp.where(k < num_reused.astype(k.dtype), state.points[rows[k]], new)

    def read(values: jax.Array, aux: Any) -> core.Readings:
        """Return the differences to the value at the center, then the values."""
        base = values[0]
        both = lax.map(lambda x: (jnp.sum(x - base), jnp.sum(x)), values[1:])
        numbers = jnp.concatenate(both)
        return core.Readings(jnp.sum(base), numbers, jnp.isfinite(numbers), aux)

    points = lax.map(evaluated_at, jnp.arange(num_directions, dtype=jnp.uint32))
    return core.Queries(
        num=num_directions + 1,
        point=point,
        read=read,
        num_readings=2 * num_directions,
        base=step.params,
        needed=lambda i: (i == 0) | (i > num_reused.astype(jnp.uint32)),
        shared=(points, state.values[rows], num_reused),
    )


def _estimate(
    step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
) -> core.Estimate:
    """Return the gradient of the linear function through all points of the step."""
    points, old_values, num_reused = queries.shared
    value = readings.value
    numbers = jnp.where(readings.valid, readings.slopes, jnp.nan)
    new_differences, new_values = jnp.split(numbers, 2)
    is_reused = jnp.arange(len(points), dtype=jnp.int32) < num_reused
    values = jnp.where(is_reused, old_values, new_values.astype(old_values.dtype))
    old_differences = old_values.astype(value.dtype) - value
    differences = jnp.where(is_reused, old_differences, new_differences)
    center = flat.ravel(step.layout, step.params)[None]
    gradient, slopes, kept = _interpolant(points - center, differences)

    points = jnp.concatenate([points, center])
    values = jnp.append(values, value.astype(values.dtype))
    usable = jnp.isfinite(values) & jnp.all(jnp.isfinite(points), axis=1)
    state = state._replace(
        points=jnp.where(usable[:, None], points, jnp.zeros_like(points)),
        values=jnp.where(usable, values, jnp.zeros_like(values)),
        usable=usable,
    )
    info = core.EstimateInfo(slopes, kept, queries.num - num_reused, readings.aux)
    return core.Estimate(value, gradient, state, info, num_reused.astype(jnp.uint32))


def _interpolant(displacements: jax.Array, differences: jax.Array) -> tuple[Any, ...]:
    """Return the least-norm gradient of the differences, the slopes, and `kept`."""
    dtype = displacements.dtype
    eps = len(differences) * float(jnp.finfo(dtype).eps)
    norms = jnp.sqrt(jnp.sum(jnp.square(displacements), axis=1))
    slopes = differences / jnp.where(norms > 0, norms, 1).astype(differences.dtype)
    # The truncated inverse of U Uᵀ amplifies a slope by up to 1 / eps.
    largest = core.largest(dtype, differences.dtype) * eps
    kept = (jnp.abs(slopes) <= largest) & (norms > 0)
    slopes = jnp.where(kept, slopes, jnp.zeros_like(slopes))
    inverse_norms = jnp.where(kept, 1 / norms, jnp.zeros_like(norms))
    rows = displacements * inverse_norms[:, None]
    gram = jnp.dot(rows, rows.T, precision=lax.Precision.HIGHEST)
    spectrum, basis = jnp.linalg.eigh(gram)
    counted = spectrum > eps * spectrum[-1]
    inverse = jnp.where(counted, 1 / spectrum, jnp.zeros_like(spectrum))
    along = jnp.dot(slopes.astype(dtype), basis, precision=lax.Precision.HIGHEST)
    weights = jnp.dot(basis, along * inverse, precision=lax.Precision.HIGHEST)
    gradient = jnp.dot(weights, rows, precision=lax.Precision.HIGHEST)
    return gradient, slopes, kept
