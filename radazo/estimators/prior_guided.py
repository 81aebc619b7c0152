"""Estimate the gradient along a guessed direction and along random directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from radazo import core, differences, directions, flat, naming, validation
from radazo.estimators import build, mean


class Prior(NamedTuple):
    """A guess of the gradient's direction, from a memory of one vector, initially zero.

    All arguments and results are (dim,) vectors of the perturbed elements. The sign and
    length of a guess do not matter; zero and non-finite guesses are ignored.

    Attributes:
      guess: `guess(memory, point) -> vector`, at the point of the estimate.
      remember: `remember(memory, point, gradient) -> memory`, after the estimate.
    """

    guess: Callable[[jax.Array, jax.Array], jax.Array]
    remember: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

    __repr__ = naming.constant_repr


last_estimate = Prior(lambda memory, point: memory, lambda memory, point, g: g)
"""The last estimate: gₜ₋₁."""

last_step = Prior(lambda memory, point: point - memory, lambda memory, point, g: point)
"""The last change of the parameters: xₜ − xₜ₋₁."""


def momentum_prior(b1: float) -> Prior:
    """Guess the average of past estimates.

      memory ← b1 · memory + (1 − b1) · g

    Args:
      b1: Decay rate, in [0, 1); 0 is `last_estimate`.
    Returns:
      A `Prior`.
    Raises:
      TypeError, ValueError: If `b1` is not a number in [0, 1).
    Cost:
      One copy of the parameters in the state, as any `Prior`.
    Example:
      >>> prior = momentum_prior(0.9)
      >>> print(jnp.round(prior.remember(jnp.ones(2), None, jnp.zeros(2)), 2))
      [0.9 0.9]
    """
    validation.check("momentum_prior", b1=b1)

    def remember(memory: jax.Array, _: Any, gradient: jax.Array) -> jax.Array:
        past = jnp.asarray(b1, memory.dtype)
        return past * memory + (1 - past) * gradient

    return Prior(last_estimate.guess, remember)


class Memory(NamedTuple):
    """The memory of a `Prior`: `known` is False until a gradient is remembered."""

    known: jax.Array
    vector: jax.Array


class PriorGuidedState(NamedTuple):
    """State of `prior_guided_estimator`.

    Attributes:
      count: int32 scalar, estimates so far; input of the `smoothing` schedule.
      memory: A `Memory` of one flat vector, in float32 at least.
    """

    count: jax.Array
    memory: Memory


def prior_guided_estimator(
    *,
    num_directions: int = core.NUM_DIRECTIONS,
    prior: Prior = last_estimate,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """Project the gradient onto a guess of it and K − 1 random directions (PRGF).

      u₀ = guess / ‖guess‖, or a random direction if there is no guess
      u₁, ... = random directions, ⟨uⱼ, uₖ⟩ = 1 if j = k else 0
      g = Σ_{k kept} slopeₖ · uₖ           slopeₖ as in `finite_difference_estimator`

    If gradients change slowly, a guess replaces many random directions. g is shorter
    than the gradient and biased towards the guess; no factor makes it unbiased. It
    suits `zo_sgd`, with a learning rate of about 1 / L for any d and K, where L is the
    Lipschitz constant of the gradient; with `radazo` and `zo_adamm` it was slower than
    `sphere_estimator`. If all directions are dropped, g is 0 and the memory unchanged.

    Args:
      num_directions: K, including the guess: at least 2 and at most d.
      prior: `last_estimate`, `last_step`, `momentum_prior(b1)`, or a custom `Prior`.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator` that is not memoryless; its state is a `PriorGuidedState`.
    Raises:
      As `finite_difference_estimator`, and at the first estimate if K > d.
    Cost:
      Function values as `finite_difference_estimator`. One copy of the parameters in
      the state, and about 3K more during a step, since all directions are held at once.
    Example:
      >>> estimator, x = prior_guided_estimator(num_directions=2), jnp.zeros(4)
      >>> estimate = jax.jit(radazo.estimate, static_argnums=(0, 2))
      >>> state = estimator.init(x)
      >>> for key in range(20):  # The estimate of a constant gradient improves.
      ...     _, gradient, state, _ = estimate(estimator, key, jnp.sum, x, state)
      >>> print(jnp.round(gradient, 1))
      [1. 1. 1. 1.]
    References:
      Cheng et al., On the convergence of prior-guided zeroth-order optimization
      algorithms, 2021. arXiv:2107.10110, History-PRGF.
    """
    api_name = "prior_guided_estimator"
    hint = "One is the guess, and at least one must be random; 10 is a good start."
    validation.integer(api_name, "num_directions", num_directions, 2, hint)
    validation.check(api_name, prior=prior)
    options = summing_options(num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    mean.check(api_name, options, settings)
    guided = api_name, options, prior
    return build.estimator(
        api_name,
        lambda layout: PriorGuidedState(jnp.zeros((), jnp.int32), empty_memory(layout)),
        lambda step, state: guided_queries(*guided, step, state.memory),
        lambda *inputs: estimate_projection(options, prior, *inputs),
        settings,
    )


def empty_memory(layout: flat.Layout) -> Memory:
    """Return the memory before the first step."""
    return Memory(jnp.zeros((), bool), jnp.zeros(layout.dim, layout.dtype))


def summing_options(
    num_directions: int, difference: differences.Difference, chunk_size: int
) -> mean.Options:
    """Return the options of K orthonormal directions, for a sum instead of a mean."""
    sampler = directions.orthogonal._replace(factor=lambda dim: float(num_directions))
    return mean.Options(sampler, num_directions, difference, chunk_size)


def guided_queries(
    api_name: str, options: mean.Options, prior: Prior, step: core.Step, memory: Memory
) -> core.Queries:
    """Return the queries whose first direction is the guess, if there is one."""

    def rows(key: jax.Array, *sizes: Any) -> jax.Array:
        guess = prior.guess(memory.vector, flat.ravel(step.layout, step.params))
        guess = jnp.where(memory.known, guess, jnp.zeros_like(guess))
        return directions.orthonormal_rows(api_name, key, *sizes, first=guess)

    sampler = options.sampler._replace(prepare=rows)
    return mean.queries(step, options._replace(sampler=sampler))


def estimate_projection(
    options: mean.Options, prior: Prior, step: core.Step, *inputs: Any
) -> core.Estimate:
    """Estimate the projection of the gradient onto the directions, and remember it."""
    estimate = mean.estimate_mean(step, *inputs, options=options)
    info, memory, dtype = estimate.info, estimate.state.memory, step.layout.dtype
    # A sum over valid directions; scaled as a mean it would be longer than ∇f.
    num_valid = mean.num_valid(info.kept, dtype)
    gradient = estimate.gradient * (num_valid / info.slopes.size)
    info = info._replace(factor=num_valid.astype(info.slopes.dtype))
    seen = jnp.any(info.kept)
    point = flat.ravel(step.layout, step.params)
    new = prior.remember(memory.vector, point, gradient)
    vector = jnp.where(seen & jnp.isfinite(new), new, memory.vector)
    state = estimate.state._replace(memory=Memory(memory.known | seen, vector))
    return estimate._replace(gradient=gradient, info=info, state=state)


_HINT = "Pass a prior, e.g. `radazo.estimators.last_estimate`."
validation.declare(validation.instance, "prior", of=Prior, hint=_HINT)
