"""Estimators that look along a guess of the gradient first, then around it.

A `Prior` guesses the direction of the gradient from what earlier steps saw. The
estimate is the gradient projected on the span of the guess and of random directions
orthogonal to it: where gradients change slowly, a guess costs one function value and is
worth many random ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
      smoothing, difference, chunk_size, terms, mask: As in
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
      >>> step = jax.jit(lambda key, state: estimator.estimate(key, jnp.sum, x, state))
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
    validation.integer(
        api_name,
        "num_directions",
        num_directions,
        2,
        "One is the guess, and one at least must look elsewhere; 10 is a good start.",
    )
    check_prior(api_name, prior)
    options = mean.Options(
        directions.orthogonal,
        num_directions,
        smoothing,
        difference,
        chunk_size,
        terms,
        mask,
    )
    mean.check(api_name, options)

    def fresh(layout: flat.Layout, params: core.Params) -> PriorGuidedState:
        del params
        return PriorGuidedState(jnp.zeros((), jnp.int32), nothing(layout))

    def estimate(step: build.Step, state: PriorGuidedState) -> build.Estimated:
        seen = projection(api_name, step, options, prior, state.memory)
        new = state._replace(memory=seen.memory)
        return build.Estimated(seen.value, seen.gradient, new, seen.info, seen.turn)

    settings = build.Settings(smoothing, terms, mask)
    return build.estimator(api_name, settings, fresh, estimate)


class Projection(NamedTuple):
    """A gradient projected on K directions, and what came with it.

    Attributes:
      value: Scalar, the value of the step.
      gradient: (dim,) the sum of slope times direction over kept directions.
      first: (dim,) the first direction, which is that of the guess if there was one.
      memory: The memory after the step.
      info: What was seen.
      turn: As in `steps.Estimated`.
    """

    value: jax.Array
    gradient: jax.Array
    first: jax.Array
    memory: Memory
    info: core.EstimateInfo
    turn: jax.Array


def check_prior(api_name: str, prior: Any) -> None:
    """`prior` is a `Prior`."""
    hint = "Pass a prior, e.g. `radazo.estimators.last_estimate`."
    validation.instance(api_name, "prior", prior, Prior, hint)


def nothing(layout: flat.Layout) -> Memory:
    """The memory before the first step."""
    return Memory(jnp.zeros((), bool), jnp.zeros(layout.dim, layout.dtype))


def projection(
    api_name: str,
    step: build.Step,
    options: mean.Options,
    prior: Prior,
    memory: Memory,
) -> Projection:
    """Project the gradient on the guess, if there is one, and random directions."""
    layout, num_directions = step.layout, options.num_directions or 1
    point = flat.ravel(layout, step.params)
    guess = prior.guess(memory.vector, point)
    rows = directions.orthonormal_rows(
        api_name,
        step.key,
        num_directions,
        layout.dim,
        layout.dtype,
        jnp.where(memory.known, guess, jnp.zeros_like(guess)),
    )
    law = directions.orthogonal._replace(
        prepare=lambda *_: rows, factor=lambda _: float(num_directions)
    )
    options = options._replace(sampler=law)
    value, gradient, turn, info = mean.mean(step, options)
    # A sum over those kept, and no mean: reweighted, it would be longer than ∇f.
    num_kept = mean.num_kept(info.kept, layout.dtype)
    gradient = gradient * (num_kept / num_directions)
    info = info._replace(factor=num_kept.astype(info.slopes.dtype))
    seen = jnp.any(info.kept)
    new = prior.remember(memory.vector, point, gradient)
    vector = jnp.where(seen & jnp.isfinite(new), new, memory.vector)
    memory = Memory(memory.known | seen, vector)
    return Projection(value, gradient, rows[0], memory, info, turn)
