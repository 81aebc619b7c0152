"""Fit a Gaussian process to a buffer of points, and differentiate its mean.

For two points at distance r, a length scale l and s = r² / l²:

  k(x, x')            = κ(s)
  ∇ₓ k(x, x')         = 2 κ'(s) / l² · (x − x')
  prior variance of each partial derivative = −2 κ'(0) / l²

With the points xᵢ of the buffer and their standardized values y, the posterior has

  K, weights          Kᵢⱼ = k(xᵢ, xⱼ) + jitter · δᵢⱼ,  weights = K⁻¹ y
  mean                mean(y) + std(y) · Σᵢ weightsᵢ κ(sᵢ)
  mean gradient       std(y) · Σᵢ weightsᵢ · ∇ₓ k(x, xᵢ)
  uncertainty         1 − tr(Dᵀ K⁻¹ D) / (d · prior variance),  D the rows ∇ₓ k(x, xᵢ)

Empty rows of the buffer are rows of the identity in K with a value of 0. Distances are
computed from differences: inner products lose small ones in float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from radazo import core, naming, validation

# Candidate length scales, in units of the root mean square distance of the points.
_GRID = (1.0, 2.0, 4.0, 8.0, 16.0)
_FAR = 1e4  # Upper bound of s: the kernels are 0 there, and nothing overflows.


class Kernel(NamedTuple):
    """A stationary, isotropic covariance function.

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
"""exp(−s / 2): infinitely smooth, but worse conditioned than `matern`."""


class Buffer(NamedTuple):
    """The last points and their function values."""

    points: jax.Array  # (num_points, dim)
    values: jax.Array  # (num_points,)
    squared_distances: jax.Array  # (num_points, num_points) between the points
    next_row: jax.Array  # int32 scalar, the row of the next point
    num_filled: jax.Array  # int32 scalar


class Posterior(NamedTuple):
    """The posterior of the function given a buffer."""

    kernel: Kernel
    buffer: Buffer
    length_scale: jax.Array  # float scalar l
    factor: jax.Array  # (num_points, num_points) lower Cholesky factor of K
    weights: jax.Array  # (num_points,) K⁻¹ y; 0 in empty rows
    center: jax.Array  # mean of the values
    deviation: jax.Array  # standard deviation of the values, 1 if they are all equal


def empty_buffer(num_points: int, dim: int, dtype: Any) -> Buffer:
    """Return a buffer without points."""
    points, values = jnp.zeros((num_points, dim), dtype), jnp.zeros(num_points, dtype)
    distances = jnp.zeros((num_points, num_points), dtype)
    counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return Buffer(points, values, distances, *counts)


def put(buffer: Buffer, points: jax.Array, values: jax.Array) -> Buffer:
    """Replace the oldest points by the finite ones of (n, dim) new points."""
    num_points, dtype = buffer.values.size, buffer.values.dtype
    values = values.astype(dtype)
    kept = jnp.all(jnp.isfinite(points), axis=1)
    # Differences of values must not overflow either.
    kept = kept & (jnp.abs(values) <= core.largest(dtype))
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
    """Return the (n,) squared distances of (n, dim) points from x, by differences."""
    distances = jnp.sum(jnp.square(points - x[None]), axis=1)
    # Clip at the root of the largest number, so that sums are finite.
    return jnp.minimum(distances, math.sqrt(float(jnp.finfo(points.dtype).max)))


def fit(kernel: Kernel, buffer: Buffer, length_scale: Any, jitter: Any) -> Posterior:
    """Compute the posterior; `length_scale` None selects the likeliest of five.

    log likelihood = −n / 2 · log(yᵀ K⁻¹ y / n) − 1/2 · log det K
    """
    dtype, holds = buffer.values.dtype, filled_rows(buffer)
    center, deviation, standard = standardize(buffer.values, holds)
    number = jnp.maximum(buffer.num_filled, 1).astype(dtype)

    def likelihood(length_scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        gram = kernel.covariance(_scale(buffer.squared_distances, length_scale))
        factor = factorize(gram, holds, jitter)
        half = _solve(factor, standard)
        amplitude = jnp.maximum(jnp.dot(half, half) / number, jnp.finfo(dtype).tiny)
        log = -(number / 2 * jnp.log(amplitude)) - jnp.sum(jnp.log(jnp.diag(factor)))
        log = jnp.where(jnp.isnan(log), jnp.full_like(log, -jnp.inf), log)
        return log, factor, half

    if length_scale is None:
        pairs, table = holds[:, None] & holds[None, :], buffer.squared_distances
        num_pairs = jnp.maximum(jnp.sum(pairs, dtype=jnp.int32), 1).astype(dtype)
        square = jnp.sum(jnp.where(pairs, table / num_pairs, jnp.zeros_like(table)))
        # The root mean square distance between the points, or 1 if it is 0.
        distance = jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square)))
        length_scales = distance * jnp.asarray(_GRID, dtype)
        likelihoods, factors, halves = jax.vmap(likelihood)(length_scales)
        best = jnp.argmax(likelihoods)
        length, factor, half = length_scales[best], factors[best], halves[best]
    else:
        length = jnp.asarray(length_scale, dtype)
        _, factor, half = likelihood(length)
    weights = _solve(factor, half, transpose_a=True)
    parts = length, factor, weights, center, deviation
    return Posterior(kernel, buffer, *parts)


def _solve(factor: jax.Array, vector: jax.Array, **options: Any) -> jax.Array:
    solve = functools.partial(lax.linalg.triangular_solve, left_side=True, lower=True)
    return solve(factor, vector[:, None], **options)[:, 0]


def filled_rows(buffer: Buffer) -> jax.Array:
    """Return (num_points,) bools, whether a row holds a point."""
    return jnp.arange(buffer.values.size, dtype=jnp.int32) < buffer.num_filled


def factorize(gram: jax.Array, holds: jax.Array, jitter: Any) -> jax.Array:
    """Return the lower Cholesky factor of K, with the identity in empty rows."""
    pairs = holds[:, None] & holds[None, :]
    gram = jnp.where(pairs, gram, jnp.zeros_like(gram))
    # A smaller jitter is lost in the rounding errors of the decomposition.
    least = len(holds) * float(jnp.finfo(gram.dtype).eps)
    jitter = jnp.maximum(jnp.asarray(jitter, gram.dtype), least)
    diagonal = jnp.where(holds, jitter, jnp.ones_like(jitter))
    return jnp.linalg.cholesky(gram + jnp.diag(diagonal))


def mean(posterior: Posterior, distances: jax.Array) -> jax.Array:
    """Return the posterior mean at a point, given its squared distances."""
    s = _scale(distances, posterior.length_scale)
    standard = jnp.sum(posterior.weights * posterior.kernel.covariance(s))
    return posterior.center + posterior.deviation * standard


def mean_gradient(
    posterior: Posterior, x: jax.Array, distances: jax.Array
) -> jax.Array:
    """Return the (dim,) gradient of the posterior mean at x."""
    each = posterior.weights * _gradient_factor(posterior, distances)
    away = x[None] - posterior.buffer.points
    gradient = jnp.sum(each[:, None] * away, axis=0)
    largest = jnp.finfo(gradient.dtype).max
    gradient = jnp.clip(posterior.deviation * gradient, -largest, largest)
    return jnp.where(jnp.isnan(gradient), jnp.zeros_like(gradient), gradient)


def uncertainty(posterior: Posterior, distances: jax.Array, dim: int) -> jax.Array:
    """Return the mean variance of the partial derivatives over that of the prior."""
    each = _gradient_factor(posterior, distances)
    each = each * filled_rows(posterior.buffer).astype(distances.dtype)
    # ⟨xᵢ − x, xⱼ − x⟩ by the law of cosines.
    table = posterior.buffer.squared_distances
    inner = (distances[:, None] + distances[None, :] - table) / 2
    products = each[:, None] * each[None, :] * inner
    solved = jax.scipy.linalg.cho_solve((posterior.factor, True), products)
    prior = -2 * posterior.kernel.slope(jnp.zeros_like(posterior.length_scale))
    prior = prior / jnp.square(posterior.length_scale)
    return 1 - jnp.trace(solved) / (max(dim, 1) * prior)


def _gradient_factor(posterior: Posterior, distances: jax.Array) -> jax.Array:
    """Return the factor of x − xᵢ in ∇ₓ k(x, xᵢ)."""
    length = posterior.length_scale
    return 2 * posterior.kernel.slope(_scale(distances, length)) / jnp.square(length)


def _scale(distances: jax.Array, length_scale: jax.Array) -> jax.Array:
    return jnp.minimum(distances / jnp.square(length_scale), _FAR)


def standardize(values: jax.Array, holds: jax.Array) -> tuple[jax.Array, ...]:
    """Return mean, deviation and standardized values of the filled rows."""
    number = jnp.maximum(jnp.sum(holds, dtype=jnp.int32), 1).astype(values.dtype)
    # Subtract the lowest value, so that equal values have a deviation of exactly 0.
    lowest = jnp.min(jnp.where(holds, values, jnp.full_like(values, jnp.inf)))
    lowest = jnp.where(jnp.isfinite(lowest), lowest, jnp.zeros_like(lowest))
    above = jnp.where(holds, values - lowest, jnp.zeros_like(values))
    shift = jnp.sum(above / number)
    off = jnp.where(holds, above - shift, jnp.zeros_like(values))
    largest = jnp.max(jnp.abs(off))  # Squares of large values overflow.
    largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    off = off / largest
    deviation = jnp.sqrt(jnp.sum(jnp.square(off)) / number)
    deviation = jnp.where(deviation > 0, deviation, jnp.ones_like(deviation))
    return lowest + shift, largest * deviation, off / deviation


_NOISE = "It is the share of noise in the variance of the values."
validation.declare(validation.non_negative, "jitter", hint=_NOISE)
