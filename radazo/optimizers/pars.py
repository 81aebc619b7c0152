"""Prior-guided accelerated random search (PARS).

It is an estimator whose "gradient" is the negated move of the parameters, so that keys,
counters and non-finite values are handled as in every optimizer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from radazo import core, differences, flat, validation
from radazo.estimators import build, mean, prior_guided
from radazo.optimizers import combinators


class ParsState(NamedTuple):
    """State of the estimator within `pars`.

    Attributes:
      count: int32 scalar, steps so far; the schedule of `smoothing` reads it.
      memory: A `Memory` of one flat vector, in at least float32, for any prior.
      ahead: (dim,) v − x.
      inertia, trust: Scalars γ and θ in (0, 1].
      previous_value: Float scalar, f(y) of the last step with a finite value.
    """

    count: jax.Array
    memory: prior_guided.Memory
    ahead: jax.Array
    inertia: jax.Array
    trust: jax.Array
    previous_value: jax.Array


def pars(
    smoothness: float,
    *,
    key: core.Key,
    num_directions: int = core.NUM_DIRECTIONS,
    prior: prior_guided.Prior | None = prior_guided.last_estimate,
    smoothing: core.Schedule | float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    chunk_size: int = 1,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by prior-guided accelerated random search, restarted when values rise.

    The parameters are x; slopes are taken at y, and f(y) is the value of the step. u₀
    is the guess and q = K − 1; initially v = x, γ = 1 and θ = (q / (d − 1))²:

      α  = (−θγ + √((θγ)² + 4θγ)) / 2
      y  = x + α · (v − x)
      g₁ = slope₀ · u₀ + Σₖ slopeₖ · uₖ                as `prior_guided_estimator`, at y
      g₂ = slope₀ · u₀ + ((d − 1) / q) · Σₖ slopeₖ · uₖ                     unbiased
      v ← v − (θ / α) · g₂ / smoothness
      x ← y − g₁ / smoothness
      γ ← (1 − α) · γ
      D  = slope₀² / (slope₀² + (d − 1) · mean slopeₖ²)
      θ ← (D + (1 − D) · q / (d − 1)) / (D + (1 − D) · (d − 1) / q)

    In g₂ and D, q and the mean are over the valid random directions. If f(y) rises, or
    no value is finite, v = x and γ = 1 again. Bounds of `minimize` hold for x, not y.

    A `smoothness` that is too small diverges: on quadratics (d = 128, K = 11), L/3 was
    as good as L, L/10 diverged, and 10 L was slow. At K = 2, use `prior=None`.

    Args:
      smoothness: The Lipschitz constant L of the gradient, greater than 0.
      key: Typed key or integer seed of the run.
      num_directions: K, including the guess: at least 2 and at most d.
      prior: As in `prior_guided_estimator`. None is accelerated random search (ARS):
        all K directions are random, q = K, and d − 1 becomes d.
      smoothing, difference, chunk_size, terms, mask, sharding: As in
        `finite_difference_estimator`.
    Returns, Raises:
      As `radazo`; the `WithEstimatorState` holds a `ParsState`.
    Cost:
      K + 1 function values (`forward`) or 2K (`central`) per step. Two copies of the
      parameters in the state, and about 3K during a step.
    Example:
      >>> optimizer, value_fn = pars(2.0, key=0), lambda x: jnp.sum((x - 1) ** 2)
      >>> result = radazo.minimize(value_fn, jnp.zeros(50), optimizer, 100)
      >>> print(result.num_values[-1], result.values[-1] < 0.01)
      1100 True
    References:
      Cheng et al., Prior-guided zeroth-order optimization, 2021. arXiv:2107.10110.
      O'Donoghue and Candès, Adaptive restart for accelerated gradient schemes, 2015.
    """
    api_name = "pars"
    hint = "It is the Lipschitz constant of the gradient: steps are divided by it."
    validation.positive(api_name, "smoothness", smoothness, hint)
    guess, guesses = (_NO_GUESS, 0) if prior is None else (prior, 1)
    validation.check(api_name, prior=guess)
    hint = "One random direction, and one more for the guess; 10 is a good start."
    validation.integer(api_name, "num_directions", num_directions, 1 + guesses, hint)
    options = prior_guided.summing_options(num_directions, difference, chunk_size)
    settings = build.Settings(smoothing, terms, mask, chunk_size, sharding)
    mean.check(api_name, options, settings)

    def init(layout: flat.Layout) -> ParsState:
        share = _share(num_directions, guesses, layout.dim)
        return ParsState(
            count=jnp.zeros((), jnp.int32),
            memory=prior_guided.empty_memory(layout),
            ahead=jnp.zeros(layout.dim, layout.dtype),
            inertia=jnp.ones((), layout.dtype),
            trust=jnp.asarray(share**2, layout.dtype),
            previous_value=jnp.zeros((), jnp.result_type(float)),
        )

    def at_y(step: core.Step, state: ParsState) -> core.Step:
        one, index = jnp.ones((), step.layout.dtype), state.count.astype(jnp.uint32)
        ahead = _pull(state) * state.ahead
        y = flat.perturb(step.layout, step.params, ahead, one, index)
        return step._replace(params=y)

    def queries(step: core.Step, state: ParsState) -> core.Queries:
        here, memory = at_y(step, state), state.memory
        return prior_guided.guided_queries(api_name, options, guess, here, memory)

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        seen = at_y(step, state), state, queries, readings
        estimate = prior_guided.estimate_projection(options, guess, *seen)
        known, first = state.memory.known, queries.shared(0)
        return _move(smoothness, guesses, known, first, estimate)

    built = build.estimator(api_name, init, queries, estimate, settings)
    return combinators.attach_search(api_name, built, key)


_NO_GUESS = prior_guided.Prior(
    lambda memory, point: jnp.zeros_like(memory), lambda memory, point, gradient: memory
)


def _share(num_directions: int, guesses: int, dim: int) -> float:
    """Return q / (d − 1), the share of random directions among all orthogonal to u₀."""
    return (num_directions - guesses) / max(dim - guesses, 1)


def _pull(state: ParsState) -> jax.Array:
    """Return α, which solves α² = (1 − α) · θγ."""
    product = state.trust * state.inertia
    return (jnp.sqrt(product * product + 4 * product) - product) / 2


def _move(
    smoothness: Any, guesses: int, known: Any, first: jax.Array, estimate: core.Estimate
) -> core.Estimate:
    """Return the negated move of x as a gradient, and the state after it."""
    state: ParsState = estimate.state
    info, gradient = estimate.info, estimate.gradient
    dim, dtype = state.ahead.size, state.ahead.dtype
    pull, rate = _pull(state), 1 / jnp.asarray(smoothness, dtype)
    slopes, random = info.slopes.astype(dtype), info.kept[guesses:]
    scale = (dim - guesses) / mean.num_valid(random, dtype)
    along = jnp.sum(slopes[:guesses]) * first
    unbiased = along + scale * (gradient - along)
    downhill = rate * gradient - pull * state.ahead
    ahead = state.ahead + downhill - state.trust / pull * rate * unbiased

    value = estimate.value.astype(state.previous_value.dtype)
    informed = jnp.any(info.kept) & jnp.isfinite(value)
    restart = (known & (value > state.previous_value)) | ~informed
    trust = _trust(slopes, scale, guesses, _share(slopes.size, guesses, dim))
    state = state._replace(
        # An element that overflows triggers a restart as well.
        ahead=jnp.where(restart | ~jnp.isfinite(ahead), jnp.zeros_like(ahead), ahead),
        inertia=jnp.where(restart, jnp.ones_like(pull), (1 - pull) * state.inertia),
        trust=jnp.where(jnp.any(random), trust, state.trust),
        previous_value=jnp.where(informed, value, state.previous_value),
    )
    return estimate._replace(gradient=downhill, state=state)


def _trust(slopes: jax.Array, scale: Any, guesses: int, share: float) -> jax.Array:
    """Return θ from D, the share of ‖∇f‖² along the guess."""
    largest = jnp.max(jnp.abs(slopes))
    # Scale the largest to 1, so that squares neither overflow nor vanish.
    squares = jnp.square(slopes / jnp.maximum(largest, jnp.finfo(slopes.dtype).tiny))
    along, others = jnp.sum(squares[:guesses]), scale * jnp.sum(squares[guesses:])
    total = along + others
    along = along / jnp.where(total > 0, total, jnp.ones_like(total))
    return (along + (1 - along) * share) / (along + (1 - along) / share)
