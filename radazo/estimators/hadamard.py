"""Estimate along sweeps of nearly orthogonal sign directions, across steps.

A sweep takes its directions from one basis of `directions.hadamard`, without
replacement. Within a step they differ only in their rows of Hadamard's matrix: the
random signs are drawn once, and the gradient is one small matrix product.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from radazo import core, differences, directions, flat, random, validation
from radazo.estimators import build, mean

_SAMPLER: Any = directions.hadamard


class HadamardState(NamedTuple):
    """State of `hadamard_estimator`.

    Attributes:
      count: int32 scalar, estimates so far.
      sweep_key: (2,) uint32, key data of the current sweep, which its first step sets.
    """

    count: jax.Array
    sweep_key: jax.Array


def hadamard_estimator(
    *,
    num_directions: int = core.NUM_DIRECTIONS,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Estimate the gradient along sign directions without replacement across steps.

      g = (d / K) · Σₖ slopeₖ · uₖ        slopeₖ as in `finite_difference_estimator`

    Consecutive steps take the next K directions of a sweep. With P the power of two
    from d on, direction j of a sweep is a random sign vector of length 1:

      uⱼ = signs ∘ h(row)[:d] / √d        row = (a · j + b) mod P, a odd and b random
      h(row)ᵢ = (−1)^(number of ones in i AND row)      a row of Hadamard's matrix

    Signs, a and b are drawn anew for each sweep, from the key of its first step.
    E[u uᵀ] = I / d: each g is unbiased on linear functions.

    The directions of a sweep are orthogonal if d is a power of two. Otherwise their
    inner products have the mean square (P − d) / (d (P − 1)) < 1 / d, that of
    independent signs. For any d, Σⱼ uⱼ uⱼᵀ = (P / d) I over all P directions: if K
    divides P, the mean of g over a sweep is exact on linear functions.

    A sweep has ⌊P / K⌋ steps and leaves out the last P mod K directions. If K > P, it
    is one step along ⌈K / P⌉ bases. P is at most 2³⁰.

    Args:
      num_directions: K, at least 1.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`; ‖u‖ = 1.
    Returns:
      An `Estimator`, which is not memoryless: its state, a `HadamardState`, is the
      position in the sweep. `info.squared_norm` is NaN.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`, and if `num_directions`
        is None.
    Cost:
      K + 1 function values (`forward`), 2K (`central`) or K (`one_point`, and
      `forward_mode`, each with a derivative) per step. One random bit per parameter
      and step, whatever K is. Besides the gradient, one copy of the parameters, or one
      to three for each direction of a batch if `chunk_size` > 1. The state holds none.
    Example:
      >>> estimator = hadamard_estimator(num_directions=2)
      >>> estimate = jax.jit(radazo.estimate, static_argnums=(0, 2))
      >>> fn, x = lambda x: x @ jnp.array([1.0, -2.0, 4.0, 3.0]), jnp.zeros(4)
      >>> state, total = estimator.init(x), jnp.zeros(4)
      >>> for key in range(2):  # A sweep of 4 directions, exact on a linear function.
      ...     _, gradient, state, _ = estimate(estimator, key, fn, x, state)
      ...     total += gradient
      >>> print(jnp.round(total / 2, 2))
      [ 1. -2.  4.  3.]
    References:
      Spall, 1992, as `rademacher_estimator`, for random signs. Bhatnagar et al.,
      Two-timescale simultaneous perturbation stochastic approximation using
      deterministic perturbation sequences, 2003, for Hadamard matrices.
    """
    api_name = "hadamard_estimator"
    validation.check(api_name, num_directions=num_directions)
    options = mean.Options(_SAMPLER, num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    mean.check(api_name, options, settings)

    def init(layout: flat.Layout) -> HadamardState:
        del layout
        return HadamardState(jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32))

    def queries(step: core.Step, state: HadamardState) -> core.Queries:
        sweep = sweep_of(step, state, num_directions)
        found = mean.queries(step, options, sweep.draw)
        fused = functools.partial(_evaluate, step, options, sweep)
        return found._replace(fused=found.fused and fused, shared=sweep)

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        sweep = queries.shared
        total = sweep.weighted_sum(readings.slopes.astype(step.layout.dtype))
        # An entry of the key is not known at compile time.
        readings = readings._replace(fused=(total, step.key[0]))
        state = state._replace(sweep_key=sweep.key)
        return mean.estimate_mean(step, state, queries, readings, options)

    return build.estimator(api_name, init, queries, estimate, settings)


class Sweep(NamedTuple):
    """The directions of one step."""

    key: jax.Array
    bases: directions.Bases
    first: jax.Array  # uint32, the direction of the sweep that is the first of the step
    layout: flat.Layout

    def draw(self, k: jax.Array) -> jax.Array:
        """Return direction k up to its length, (d,) signs."""
        size = self.layout.dim, self.layout.dtype
        return _SAMPLER.draw(self.bases, self.first + k, *size)

    def packed(self, k: jax.Array) -> jax.Array:
        """Return the words that hold the signs of direction k."""
        dim, start = self.layout.dim, jnp.uint32(0)
        # With one word too many, XLA on CPU slices and stores the signs: fused into the
        # function, they would slow down its sums.
        return self.bases.packed(self.first + k, dim, start, -(-dim // 32) + 1)

    @property
    def scale(self) -> jax.Array:
        """The length of a direction relative to that of its signs."""
        return _SAMPLER.scale(jnp.zeros((), self.layout.dtype), self.layout.dim)

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """Return Σ weight · direction, (d,), by one small matrix product per basis."""
        dim, num_bases = self.layout.dim, self.bases.words.shape[0]
        per_basis = min(weights.size, directions.size_of_basis(dim))
        padded = jnp.pad(weights, (0, num_bases * per_basis - weights.size))
        padded = padded.reshape(num_bases, per_basis)

        def of_basis(n: jax.Array) -> jax.Array:
            first = self.first + n * jnp.uint32(per_basis)
            ks = first + lax.iota(jnp.uint32, per_basis)
            rows = jax.vmap(lambda k: self.bases.row(k, dim)[1])(ks)
            words = self.bases.signs(n, 0, -(-dim // 32))
            signs = random.unpack_signs(words, dim, weights.dtype)
            return signs * _sum_of_rows(rows, padded[n], dim)

        if num_bases == 1:
            total = of_basis(jnp.uint32(0))
        else:
            ns = jnp.arange(num_bases, dtype=jnp.uint32)
            total = jnp.sum(lax.map(of_basis, ns), axis=0)
        return total * self.scale


def _sum_of_rows(rows: jax.Array, weights: jax.Array, dim: int) -> jax.Array:
    """Return Σ weight · h(row)[:d]; h is an outer product, of high and of low bits."""
    num_low = (max(dim - 1, 1).bit_length() + 1) // 2

    def signs(size: int, rows: jax.Array) -> jax.Array:
        odd = lax.population_count(lax.iota(jnp.uint32, size)[:, None] & rows[None, :])
        return random.sign(odd << jnp.uint32(31), weights.dtype)

    high = signs(-(-dim >> num_low) or 1, rows >> jnp.uint32(num_low))
    left, right = high * weights[None, :], signs(1 << num_low, rows)
    product = jnp.dot(left, right.T, precision=lax.Precision.HIGHEST)
    return product.reshape(-1)[:dim]


def sweep_of(step: core.Step, state: Any, num_directions: int) -> Sweep:
    """Return the directions of the step that follows `state`."""
    dim, dtype = step.layout.dim, step.layout.dtype
    place = state.count % _SAMPLER.num_steps(num_directions, dim)
    key = jnp.where(place == 0, step.key, state.sweep_key)
    bases = _SAMPLER.prepare(key, num_directions, dim, dtype)
    first = place.astype(jnp.uint32) * jnp.uint32(num_directions)
    return Sweep(key, bases, first, step.layout)


def _evaluate(
    step: core.Step,
    options: mean.Options,
    sweep: Sweep,
    function: core.Function,
    *_: Any,
) -> core.Readings:
    """Evaluate along each direction, without the sum: `weighted_sum` is faster."""
    along, read = mean.line_evaluator(step, options, function)
    number = options.resolve(step.layout)
    at_once = min(options.chunk_size, number)
    ks = jnp.arange(number, dtype=jnp.uint32)

    def in_batch(k: jax.Array) -> Any:
        return along(sweep.draw(k), k)[1]

    def one(words: jax.Array, k: jax.Array) -> Any:
        drawn = random.unpack_signs(words, step.layout.dim, step.layout.dtype)
        return sweep.packed(k + jnp.uint32(1)), along(drawn, k)[1]

    if at_once > 1:
        return read(*lax.map(in_batch, ks, batch_size=at_once))
    # A carry is stored: XLA would fuse a word into its 32 elements, as in `pack_signs`.
    return read(*lax.scan(one, sweep.packed(jnp.uint32(0)), ks)[1])
