"""Estimators that look along a guess of the gradient first, then around it.

A `Prior` guesses the direction of the gradient from what earlier steps saw. The
estimate is the gradient projected on the span of the guess and of random directions
orthogonal to it: where gradients change slowly, a guess costs one function value and is
worth many random ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from radazo import core, differences, directions, flat, naming, validation
from radazo.estimators import build, mean


class Prior(NamedTuple):
    """A guess of the gradient's direction, from a memory of one flat vector.

    All are (dim,) vectors of the perturbed elements; sign and length of a guess do not
    matter, and a guess that is zero or not finite is none. `guess` is first asked when
    there has been something to remember; until then the memory is zeros.

    Attributes:
      guess: `guess(memory, point) -> vector`, at the point where slopes are taken.
      remember: `remember(memory, point, gradient) -> memory`, after an estimate there.
    """

    guess: Callable[[jax.Array, jax.Array], jax.Array]
    remember: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

    __repr__ = naming.constant_repr


last_estimate = Prior(
    lambda memory, point: memory, lambda memory, point, gradient: gradient
)
"""The last estimate: gₜ₋₁."""

last_step = Prior(
    lambda memory, point: point - memory, lambda memory, point, gradient: point
)
"""What the parameters did, whatever made them: xₜ − xₜ₋₁."""


def momentum_prior(b1: float) -> Prior:
    """The average of past estimates as a guess of the next.

      memory ← b1 · memory + (1 − b1) · g

    Args:
      b1: Share of the past that is kept at each step, in [0, 1); 0 is `last_estimate`.
    Returns:
      A `Prior`.
    Raises:
      TypeError, ValueError: If `b1` is not a number in [0, 1).
    Cost:
      As any `Prior`: one copy of the parameters.
    Example:
      >>> estimator = radazo.prior_guided_estimator(prior=momentum_prior(0.9))
      >>> print(estimator.init(jnp.ones(3)).memory.vector)
      [0. 0. 0.]
    """
    validation.decay("momentum_prior", "b1", b1)

    def remember(memory: jax.Array, point: jax.Array, gradient: jax.Array) -> jax.Array:
        del point
        past = jnp.asarray(b1, memory.dtype)
        return past * memory + (1 - past) * gradient

    return Prior(last_estimate.guess, remember)


class Memory(NamedTuple):
    """What a `Prior` remembers.

    Attributes:
      known: Bool scalar, whether there has been anything to remember.
      vector: (dim,) what the prior made of it, zeros before.
    """

    known: jax.Array
    vector: jax.Array


class PriorGuidedState(NamedTuple):
    """State of `prior_guided_estimator`.

    Attributes:
      count: int32 scalar, estimates so far; the schedule of `smoothing` reads it.
      memory: A `Memory` of one flat vector, in float32 at least, whatever the prior.
    """

    count: jax.Array
    memory: Memory


def prior_guided_estimator(
    *,
    num_directions: int = 10,
    prior: Prior = last_estimate,
    smoothing: core.Schedule | float = 5e-3,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> core.Estimator:
    """The gradient projected on a guess of it and K − 1 random directions (PRGF).

      u₀ = guess / ‖guess‖, or a random direction where there is no guess
      u₁, ... = random directions, ⟨uⱼ, uₖ⟩ = 1 if j = k else 0
      slopeₖ = (f(x + smoothing · uₖ) − f(x)) / smoothing
      g = Σ_{k kept} slopeₖ · uₖ

    g is shorter than the gradient and leans towards the guess: no factor could make it
    unbiased. Behind `radazo` and `zo_adamm`, which do not see the scale but average
    what leans already, it was slower than `sphere_estimator` on most of six tasks;
    behind `zo_sgd` it was the best in the mean of those at one distance. For `zo_sgd`
    take a learning rate of about 1 / L, with L the Lipschitz constant of the gradient,
    whatever d and K. Where `kept` is empty g is zero and nothing is remembered.

    At that rate a step uses up the slope along the guess where the curvature is L: with
    the same curvature in all directions random ones are better. On quadratics from
    condition 10 on, `last_estimate` was ahead of `orthogonal_estimator`.

    Args:
      num_directions: K, the guess among them: at least 2 and at most d.
      prior: `last_estimate`, `last_step`, `momentum_prior(b1)`, or a `Prior` of your
        own.
        `last_step` sees what a projection or an adaptive rule made of the estimates.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns:
      An `Estimator` that is not memoryless; its state is a `PriorGuidedState`.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; if `prior` is no `Prior`;
        and if `num_directions` > d, at the first estimate.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step. One copy of the
      parameters in the state, and about 3K copies at work, since directions that know
      of each other are held together.
    Example:
      >>> estimator, x = prior_guided_estimator(num_directions=3), jnp.zeros(20)
      >>> step = jax.jit(
      ...     lambda key, state: radazo.estimate(estimator, key, jnp.sum, x, state)
      ... )
      >>> state = estimator.init(x)
      >>> for key in range(100):  # Where the gradient stays, what is known of it grows.
      ...     _, gradient, state, _ = step(key, state)
      >>> print(jnp.round(jnp.linalg.norm(gradient - 1), 1))
      0.0
    References:
      Cheng et al., On the convergence of prior-guided zeroth-order optimization
      algorithms, 2021. arXiv:2107.10110, History-PRGF.
    """
    api_name = "prior_guided_estimator"
    hint = "One is the guess, and at least one must be random; 10 is a good start."
    validation.integer(api_name, "num_directions", num_directions, 2, hint)
    check_prior(api_name, prior)
    options = mean.Options(
        directions.orthogonal, num_directions, difference, chunk_size
    )
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    mean.check(api_name, options, settings)
    own = functools.partial(guided_options, api_name, options, prior)

    def init(layout: flat.Layout, params: core.Params) -> PriorGuidedState:
        del params
        return PriorGuidedState(jnp.zeros((), jnp.int32), empty_memory(layout))

    def finished(
        step: core.Step, state: PriorGuidedState, estimate: core.Estimate
    ) -> core.Estimate:
        estimate, memory = remembered(step, options, prior, state.memory, estimate)
        return estimate._replace(state=state._replace(memory=memory))

    return build.estimator(
        api_name,
        init,
        lambda step, state: mean.queries(step, own(step, state.memory)),
        lambda step, state, queries, readings: finished(
            step,
            state,
            mean.estimated(step, own(step, state.memory), queries, readings),
        ),
        settings,
        fused=lambda function, step, state: finished(
            step, state, mean.fused(function, step, own(step, state.memory))
        ),
    )


def check_prior(api_name: str, prior: Any) -> None:
    """Check that `prior` is a `Prior`."""
    hint = "Pass a prior, e.g. `radazo.estimators.last_estimate`."
    validation.instance(api_name, "prior", prior, Prior, hint)


def empty_memory(layout: flat.Layout) -> Memory:
    """The memory before the first step."""
    return Memory(jnp.zeros((), bool), jnp.zeros(layout.dim, layout.dtype))


def guided_options(
    api_name: str,
    options: mean.Options,
    prior: Prior,
    step: core.Step,
    memory: Memory,
) -> mean.Options:
    """The options whose first direction is the guess, if there is one."""

    def orthonormal_rows(
        key: jax.Array, num_directions: int, dim: int, dtype: Any
    ) -> jax.Array:
        guess = prior.guess(memory.vector, flat.ravel(step.layout, step.params))
        guess = jnp.where(memory.known, guess, jnp.zeros_like(guess))
        return directions.orthonormal_rows(
            api_name, key, num_directions, dim, dtype, guess
        )

    sampler = options.sampler._replace(
        prepare=orthonormal_rows, factor=lambda _: float(options.num_directions or 1)
    )
    return options._replace(sampler=sampler)


def remembered(
    step: core.Step,
    options: mean.Options,
    prior: Prior,
    memory: Memory,
    estimate: core.Estimate,
) -> tuple[core.Estimate, Memory]:
    """The estimate as a projection of the gradient, and the memory after it."""
    info, dtype = estimate.info, step.layout.dtype
    # A sum over valid directions, not a mean: reweighted, it would be longer than ∇f.
    num_valid = mean.num_valid(info.kept, dtype)
    gradient = estimate.gradient * (num_valid / (options.num_directions or 1))
    info = info._replace(factor=num_valid.astype(info.slopes.dtype))
    seen = jnp.any(info.kept)
    point = flat.ravel(step.layout, step.params)
    new = prior.remember(memory.vector, point, gradient)
    vector = jnp.where(seen & jnp.isfinite(new), new, memory.vector)
    estimate = estimate._replace(gradient=gradient, info=info)
    return estimate, Memory(memory.known | seen, vector)
