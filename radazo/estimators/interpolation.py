"""Estimate the gradient by linear interpolation, reusing close points: ReLIZO."""

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
      points: (num_directions + 1, d) flat parameters: the points of the last step, then
        its center.
      values: (num_directions + 1,) their function values.
      usable: (num_directions + 1,) bool, whether the row holds a point with a finite
        value.
    """

    count: jax.Array
    points: jax.Array
    values: jax.Array
    usable: jax.Array


def interpolation_estimator(
    *,
    num_directions: int = 10,
    smoothing: core.Schedule | float = 5e-3,
    reuse_distance: float = 2.0,
    max_reuse: float = 0.5,
    sampler: directions.DirectionSampler = directions.sphere,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient by linear interpolation with reused points, as ReLIZO does.

    The estimate is the shortest gradient that explains all differences of a step, the
    projection of the gradient onto the span of N directions. For N much less than d its
    mean is about N/d of the gradient. It is exact for linear functions if the
    directions span all d dimensions. A reused point costs no function value.

      δᵢ = pᵢ − x     for the points pᵢ of the last step and its center: those with
                      ‖δᵢ‖ < reuse_distance · r are reused, the nearest first,
                      at most max_reuse · N of them, with their old values
      δᵢ = smoothing · uᵢ                            for the rest of the N, evaluated
      slopeᵢ = (f(x + δᵢ) − f(x)) / ‖δᵢ‖
      g = Uᵀ (U Uᵀ)⁺ slope                           with rows δᵢ / ‖δᵢ‖ of U

    where r is the distance of a new point: `smoothing`, times √d for samplers with
    ‖u‖ = √d. After a step of length s a point is at a distance of about √(r² + s²), so
    by default points are reused while steps are shorter than 1.7 r: choose `smoothing`
    near that length.

    The pseudoinverse drops combinations that are dependent up to rounding: in float32
    one of N = d random directions in a few percent of runs. Use a few more directions,
    or the `orthogonal` sampler. `value_fn` must be the same in all steps: do not use
    mini-batches.

    Args:
      num_directions: N, at least 1: number of points that the linear function fits.
      smoothing, terms, mask, sharding: As in `finite_difference_estimator`. Differences
        to reused points are those of the sums of their terms.
      reuse_distance: Maximum distance of a reused point, at least 0, in units of the
        distance of a new point. The bias grows in proportion to it.
      max_reuse: Maximum share of the N points that are reused, in [0, 1].
      sampler: Sampler of the new directions, e.g. `sphere`.
    Returns:
      An `Estimator` whose value is f(x). `info.kept` is False where a value is not
      finite, or a displacement is lost to rounding.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`, and if `reuse_distance`
        or `max_reuse` is out of range.
    Cost:
      1 + N − reused function values per step, see `info.num_values`; at least
      1 + N − max_reuse · N. Under `jax.vmap`, N + 1 are evaluated. N + 1 copies of the
      parameters in the state, in float32 at least, and 2N to 3N more during a step.
    Example:
      >>> estimator = interpolation_estimator(num_directions=2)
      >>> fn, x = lambda x: x[0] - 2 * x[1], jnp.zeros(2)
      >>> state = estimator.init(x)
      >>> for step in range(2):
      ...     _, gradient, state, info = radazo.estimate(estimator, step, fn, x, state)
      ...     print(jnp.round(gradient, 2), info.num_values)
      ...     x = x - 1e-3 * gradient
      [ 1. -2.] 3
      [ 1. -2.] 2
    References:
      Wang et al., ReLIZO: sample reusable linear interpolation-based zeroth-order
      optimization, 2024.
    """
    api_name = "interpolation_estimator"
    _check(api_name, num_directions, reuse_distance, max_reuse, sampler)
    # A product such as 0.29 · 100 is rounded to below the exact integer.
    most = math.floor(num_directions * max_reuse + 1e-9)

    def init(layout: flat.Layout, params: core.Params) -> InterpolationState:
        del params
        return InterpolationState(
            count=jnp.zeros((), jnp.int32),
            points=jnp.zeros((num_directions + 1, layout.dim), layout.dtype),
            values=jnp.zeros(num_directions + 1, jnp.result_type(float)),
            usable=jnp.zeros(num_directions + 1, bool),
        )

    def queries(step: core.Step, state: InterpolationState) -> core.Queries:
        layout = step.layout
        spread = math.sqrt(layout.dim / sampler.factor(max(layout.dim, 1)))
        limit = step.smoothing * reuse_distance * spread
        centre = flat.ravel(layout, step.params)
        reused = _nearest(state, centre, limit, most)
        return _queries(step, state, sampler, num_directions, reused)

    return build.estimator(
        api_name,
        init,
        queries,
        _estimate,
        build.Settings(smoothing, terms, mask, sharding=sharding),
    )


def _check(
    api_name: str,
    num_directions: Any,
    reuse_distance: Any,
    max_reuse: Any,
    sampler: Any,
) -> None:
    validation.integer(
        api_name,
        "num_directions",
        num_directions,
        1,
        "The estimate explains that many differences; 10 is a good start.",
    )
    validation.non_negative(
        api_name,
        "reuse_distance",
        reuse_distance,
        "It is in distances of a new point; 0 reuses none.",
    )
    hint = "It is the share of points that may be reused; 0 reuses none."
    validation.non_negative(api_name, "max_reuse", max_reuse, hint)
    if max_reuse > 1:
        validation.fail(api_name, "max_reuse", "be at most 1", repr(max_reuse), hint)
    validation.check(api_name, sampler=sampler)


class _Reused(NamedTuple):
    """The points of the last step that are reused.

    Attributes:
      order: (num_directions + 1,) rows of the state, the nearest first.
      number: int32 scalar, how many of them are reused.
    """

    order: jax.Array
    number: jax.Array


def _nearest(
    state: InterpolationState, centre: jax.Array, limit: jax.Array, most: int
) -> _Reused:
    """Select the points near the center, at most `most`."""
    distances = jnp.sqrt(jnp.sum(jnp.square(state.points - centre[None]), axis=1))
    # A point equal to the center has no slope.
    near = state.usable & (distances < limit) & (distances > 0)
    order = jnp.argsort(jnp.where(near, distances, jnp.inf))
    number = jnp.minimum(jnp.sum(near, dtype=jnp.int32), jnp.int32(most))
    return _Reused(order, number)


def _queries(
    step: core.Step,
    state: InterpolationState,
    sampler: directions.DirectionSampler,
    num_directions: int,
    reused: _Reused,
) -> core.Queries:
    """Return the queries at the parameters and N points; reused points come first."""
    layout = step.layout
    prepared = sampler.prepare(step.key, num_directions, layout.dim, layout.dtype)

    def vector(k: jax.Array) -> jax.Array:
        u = directions.direction(sampler, prepared, k, layout.dim, layout.dtype)
        one = jnp.ones((), layout.dtype)
        moved = flat.perturb(layout, step.params, step.smoothing * u, one, k)
        is_reused = k < reused.number.astype(k.dtype)
        old = state.points[reused.order[k]]
        # The point as evaluated: in low precision it differs from x + smoothing · u.
        return jnp.where(is_reused, old, flat.ravel(layout, moved))

    vectors = lax.map(vector, jnp.arange(num_directions, dtype=jnp.uint32))

    def point(index: Any) -> core.Params:
        k = jnp.maximum(jnp.asarray(index).astype(jnp.uint32), 1) - 1
        u = directions.direction(sampler, prepared, k, layout.dim, layout.dtype)
        distance = jnp.where(index > 0, step.smoothing, jnp.zeros_like(step.smoothing))
        one = jnp.ones((), layout.dtype)
        return flat.perturb(layout, step.params, distance * u, one, k)

    def read(values: jax.Array, aux: Any) -> core.Readings:
        """Return the differences to the value at the center, then the values."""
        base = values[0]

        def both(terms: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.sum(terms - base), jnp.sum(terms)

        numbers = jnp.concatenate(lax.map(both, values[1:]))
        return core.Readings(jnp.sum(base), numbers, jnp.isfinite(numbers), aux)

    def needed(index: Any) -> jax.Array:
        return (index == 0) | (index > reused.number.astype(jnp.uint32))

    return core.Queries(
        num=num_directions + 1,
        point=point,
        read=read,
        num_readings=2 * num_directions,
        base=step.params,
        needed=needed,
        shared=(vectors, reused),
    )


def _estimate(
    step: core.Step,
    state: InterpolationState,
    queries: core.Queries,
    readings: core.Readings,
) -> core.Estimate:
    """Return the gradient of the linear function through all points of the step."""
    layout, value = step.layout, readings.value
    points, reused = queries.shared
    numbers = jnp.where(readings.valid, readings.slopes, jnp.nan)
    new_differences, new_values = jnp.split(numbers, 2)
    old_values = state.values[reused.order[: queries.num - 1]]
    is_reused = jnp.arange(queries.num - 1, dtype=jnp.int32) < reused.number
    values = jnp.where(is_reused, old_values, new_values.astype(old_values.dtype))
    old_differences = old_values.astype(value.dtype) - value
    differences = jnp.where(is_reused, old_differences, new_differences)
    centre = flat.ravel(layout, step.params)
    gradient, slopes, kept = _interpolant(points - centre[None], differences)
    state = _remembered(
        state,
        jnp.concatenate([points, centre[None]]),
        jnp.append(values, value.astype(values.dtype)),
    )
    num_values = queries.num - reused.number
    info = core.EstimateInfo(slopes, kept, num_values, readings.aux)
    index = reused.number.astype(jnp.uint32)
    return core.Estimate(value, gradient, state, info, index)


def _interpolant(
    displacements: jax.Array, differences: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the least-norm gradient of the differences, the slopes, and `kept`."""
    dtype = displacements.dtype
    eps = len(differences) * float(jnp.finfo(dtype).eps)
    norms = jnp.sqrt(jnp.sum(jnp.square(displacements), axis=1))
    slopes = differences / jnp.where(norms > 0, norms, 1).astype(differences.dtype)
    # The truncated inverse of U Uᵀ amplifies a slope by up to 1 / eps.
    types = (dtype, differences.dtype)
    largest = min(float(jnp.finfo(x).max) for x in types) * eps / 16
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


def _remembered(
    state: InterpolationState, points: jax.Array, values: jax.Array
) -> InterpolationState:
    """Store these points, without those that are not finite."""
    usable = jnp.isfinite(values) & jnp.all(jnp.isfinite(points), axis=1)
    return state._replace(
        points=jnp.where(usable[:, None], points, jnp.zeros_like(points)),
        values=jnp.where(usable, values, jnp.zeros_like(values)),
        usable=usable,
    )
