"""A function known at a few points: what a Gaussian process says of its gradient.

A kernel is two functions of s = r² / l², r the distance of two points and l the length
scale; everything else follows from them in closed form:

  k(x, x')            = κ(s)
  ∇ₓ k(x, x')         = 2 κ'(s) / l² · (x − x')
  prior variance of each partial derivative = −2 κ'(0) / l²

With the points xᵢ of a buffer, their values y less their mean over their deviation,
Kᵢⱼ = k(xᵢ, xⱼ) + jitter · δᵢⱼ and weights = K⁻¹ y, the posterior has

  mean                mean(y) + std(y) · Σᵢ weightsᵢ κ(sᵢ)
  mean gradient       std(y) · Σᵢ weightsᵢ · ∇ₓ k(x, xᵢ)
  uncertainty         1 − tr(Dᵀ K⁻¹ D) / (d · prior variance),  D the rows ∇ₓ k(x, xᵢ)

where the last is the variance of the partial derivatives over that of the prior.

The buffer has a fixed size. Rows that are not filled are those of the identity in K and
have a value of 0: they change nothing. Distances between points are kept and never
computed from inner products, which lose in float32 what tells close points apart.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import naming

# Length scales that are tried, in units of the mean distance of the points.
_GRID = (1.0, 2.0, 4.0, 8.0, 16.0)
_FAR = 1e4  # Of s: the kernels are 0 there, and nothing overflows.


class Kernel(NamedTuple):
    """A covariance that depends on the distance alone.

    Attributes:
      covariance: `covariance(s)`, κ(s); 1 at s = 0.
      slope: `slope(s)`, the derivative κ'(s).
    """

    covariance: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]

    __repr__ = naming.constant_repr


def _matern_covariance(s: jax.Array) -> jax.Array:
    a = jnp.sqrt(5 * s)
    return (1 + a + jnp.square(a) / 3) * jnp.exp(-a)


def _matern_slope(s: jax.Array) -> jax.Array:
    a = jnp.sqrt(5 * s)
    return -5 / 6 * (1 + a) * jnp.exp(-a)


matern = Kernel(_matern_covariance, _matern_slope)
"""(1 + a + a² / 3) exp(−a), a = √(5 s): Matérn of order 5/2, twice differentiable."""

rbf = Kernel(lambda s: jnp.exp(-s / 2), lambda s: -jnp.exp(-s / 2) / 2)
"""exp(−s / 2): infinitely smooth, and the worse conditioned for it."""


class Buffer(NamedTuple):
    """The last points, and the function's values there.

    Attributes:
      points: (num_points, dim).
      values: (num_points,).
      squared_distances: (num_points, num_points) between the points.
      next_row: int32 scalar, the row that the next point takes.
      num_filled: int32 scalar, rows that hold a point.
    """

    points: jax.Array
    values: jax.Array
    squared_distances: jax.Array
    next_row: jax.Array
    num_filled: jax.Array


class Posterior(NamedTuple):
    """What a buffer says of the function.

    Attributes:
      length_scale: Float scalar l.
      factor: (num_points, num_points) lower Cholesky factor of K.
      weights: (num_points,) K⁻¹ y; 0 where a row is not filled.
      filled: (num_points,) bool.
      center: Mean of the values.
      deviation: Standard deviation of the values, 1 if they are all the same.
    """

    length_scale: jax.Array
    factor: jax.Array
    weights: jax.Array
    filled: jax.Array
    center: jax.Array
    deviation: jax.Array


def empty_buffer(num_points: int, dim: int, dtype: Any) -> Buffer:
    """A buffer without points."""
    return Buffer(
        jnp.zeros((num_points, dim), dtype),
        jnp.zeros(num_points, dtype),
        jnp.zeros((num_points, num_points), dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def put(buffer: Buffer, points: jax.Array, values: jax.Array) -> Buffer:
    """The buffer with (n, dim) more points in place of the oldest; none that, or whose
    value, is not finite."""
    num_points, dtype = buffer.values.size, buffer.values.dtype
    values = values.astype(dtype)
    kept = jnp.all(jnp.isfinite(points), axis=1)
    # Differences of values must not overflow either.
    kept = kept & (jnp.abs(values) <= jnp.finfo(dtype).max / 16)
    rank = jnp.cumsum(kept, dtype=jnp.int32)
    rows = jnp.where(kept, (buffer.next_row + rank - 1) % num_points, num_points)
    stored = buffer.points.at[rows].set(points, mode="drop")
    distances = lax.map(lambda x: squared_distances(stored, x), points)
    table = buffer.squared_distances.at[rows].set(distances, mode="drop")
    return Buffer(
        stored,
        buffer.values.at[rows].set(values, mode="drop"),
        table.at[:, rows].set(distances.T, mode="drop"),
        (buffer.next_row + rank[-1]) % num_points,
        jnp.minimum(buffer.num_filled + rank[-1], num_points),
    )


def squared_distances(points: jax.Array, x: jax.Array) -> jax.Array:
    """(n,) squared distances of (n, dim) points from x, by differences."""
    distances = jnp.sum(jnp.square(points - x[None]), axis=1)
    # The root of the largest number, so that a sum of them is finite.
    return jnp.minimum(distances, math.sqrt(float(jnp.finfo(points.dtype).max)))


def fit(kernel: Kernel, buffer: Buffer, length_scale: Any, jitter: Any) -> Posterior:
    """The posterior of a buffer.

    With `length_scale` None the one of five with the greatest marginal likelihood,
    whose amplitude a² = yᵀ K⁻¹ y / n has a closed form:

      log likelihood = −n / 2 · log a² − 1/2 · log det K
    """
    dtype = buffer.values.dtype
    holds = filled(buffer)
    center, deviation, standard = standardised(buffer.values, holds)
    number = jnp.maximum(buffer.num_filled, 1).astype(dtype)

    def likelihood(length_scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        gram = kernel.covariance(_scaled(buffer.squared_distances, length_scale))
        factor = factorized(gram, holds, jitter)
        half = lax.linalg.triangular_solve(
            factor, standard[:, None], left_side=True, lower=True
        )[:, 0]
        amplitude = jnp.maximum(jnp.dot(half, half) / number, jnp.finfo(dtype).tiny)
        halves = number / 2 * jnp.log(amplitude)
        log = -halves - jnp.sum(jnp.log(jnp.diag(factor)))
        log = jnp.where(jnp.isnan(log), jnp.full_like(log, -jnp.inf), log)
        return log, factor, half

    if length_scale is None:
        distance = _mean_distance(buffer.squared_distances, holds)
        length_scales = distance * jnp.asarray(_GRID, dtype)
        likelihoods, factors, halves = jax.vmap(likelihood)(length_scales)
        best = jnp.argmax(likelihoods)
        length, factor, half = length_scales[best], factors[best], halves[best]
    else:
        length = jnp.asarray(length_scale, dtype)
        _, factor, half = likelihood(length)
    weights = lax.linalg.triangular_solve(
        factor, half[:, None], left_side=True, lower=True, transpose_a=True
    )[:, 0]
    return Posterior(length, factor, weights, holds, center, deviation)


def filled(buffer: Buffer) -> jax.Array:
    """(num_points,) bool, whether a row holds a point."""
    return jnp.arange(buffer.values.size, dtype=jnp.int32) < buffer.num_filled


def factorized(gram: jax.Array, holds: jax.Array, jitter: Any) -> jax.Array:
    """The lower Cholesky factor of a Gram matrix with jitter, and of the identity in
    rows that hold no point."""
    pairs = holds[:, None] & holds[None, :]
    gram = jnp.where(pairs, gram, jnp.zeros_like(gram))
    # A smaller one drowns in the rounding of the decomposition.
    least = len(holds) * float(jnp.finfo(gram.dtype).eps)
    jitter = jnp.maximum(jnp.asarray(jitter, gram.dtype), least)
    return jnp.linalg.cholesky(
        gram + jnp.diag(jnp.where(holds, jitter, jnp.ones_like(jitter)))
    )


def mean(kernel: Kernel, posterior: Posterior, distances: jax.Array) -> jax.Array:
    """The posterior mean at a point at these squared distances."""
    s = _scaled(distances, posterior.length_scale)
    standard = jnp.sum(posterior.weights * kernel.covariance(s))
    return posterior.center + posterior.deviation * standard


def mean_gradient(
    kernel: Kernel,
    posterior: Posterior,
    points: jax.Array,
    x: jax.Array,
    distances: jax.Array,
) -> jax.Array:
    """(dim,) the gradient of the posterior mean at x."""
    each = posterior.weights * _gradient_factor(kernel, posterior, distances)
    gradient = jnp.sum(each[:, None] * (x[None] - points), axis=0)
    largest = jnp.finfo(gradient.dtype).max
    gradient = jnp.clip(posterior.deviation * gradient, -largest, largest)
    return jnp.where(jnp.isnan(gradient), jnp.zeros_like(gradient), gradient)


def uncertainty(
    kernel: Kernel,
    posterior: Posterior,
    table: jax.Array,
    distances: jax.Array,
    dim: int,
) -> jax.Array:
    """The posterior variance of the partial derivatives at a point, mean over them,
    relative to the prior: from 0, known, to 1, unknown.

    `table` are the squared distances between the points, `distances` those from x.
    """
    each = _gradient_factor(kernel, posterior, distances) * posterior.filled.astype(
        distances.dtype
    )
    # ⟨xᵢ − x, xⱼ − x⟩ from the three sides of a triangle.
    inner = (distances[:, None] + distances[None, :] - table) / 2
    products = each[:, None] * each[None, :] * inner
    solved = jax.scipy.linalg.cho_solve((posterior.factor, True), products)
    prior = -2 * kernel.slope(jnp.zeros_like(posterior.length_scale))
    prior = prior / jnp.square(posterior.length_scale)
    return 1 - jnp.trace(solved) / (max(dim, 1) * prior)


def _gradient_factor(
    kernel: Kernel, posterior: Posterior, distances: jax.Array
) -> jax.Array:
    """By what x − xᵢ is multiplied in ∇ₓ k(x, xᵢ)."""
    squared = jnp.square(posterior.length_scale)
    return 2 * kernel.slope(_scaled(distances, posterior.length_scale)) / squared


def _scaled(distances: jax.Array, length_scale: jax.Array) -> jax.Array:
    return jnp.minimum(distances / jnp.square(length_scale), _FAR)


def standardised(
    values: jax.Array, holds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and deviation of the values that count, and the values so scaled."""
    zero = jnp.zeros_like(values)
    number = jnp.maximum(jnp.sum(holds, dtype=jnp.int32), 1).astype(values.dtype)
    # Taken from the lowest, values that are the same have no deviation by rounding.
    lowest = jnp.min(jnp.where(holds, values, jnp.full_like(values, jnp.inf)))
    lowest = jnp.where(jnp.isfinite(lowest), lowest, jnp.zeros_like(lowest))
    above = jnp.where(holds, values - lowest, zero)
    shift = jnp.sum(above / number)
    center = lowest + shift
    off = jnp.where(holds, above - shift, zero)
    largest = jnp.max(jnp.abs(off))  # Squares of large values overflow.
    largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    off = off / largest
    deviation = jnp.sqrt(jnp.sum(jnp.square(off)) / number)
    deviation = jnp.where(deviation > 0, deviation, jnp.ones_like(deviation))
    return center, largest * deviation, off / deviation


def _mean_distance(table: jax.Array, holds: jax.Array) -> jax.Array:
    """Root of the mean squared distance between the points; 1 where that is 0."""
    pairs = holds[:, None] & holds[None, :]
    number = jnp.maximum(jnp.sum(pairs, dtype=jnp.int32), 1).astype(table.dtype)
    mean_square = jnp.sum(jnp.where(pairs, table / number, jnp.zeros_like(table)))
    return jnp.sqrt(jnp.where(mean_square > 0, mean_square, jnp.ones_like(mean_square)))
