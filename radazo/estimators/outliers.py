"""Guard an estimator against outliers: skip the step, or clip its slopes.

A guard compares the largest slope of a step with those of recent steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.estimators import build

_MIN_STEPS = 5  # Recent steps needed before a slope can be an outlier.

# slope_factor(bound, largest) -> factor of the slopes of an outlier, in [0, 1)
_SlopeFactor = Callable[[jax.Array, jax.Array], jax.Array]


class OutlierState(NamedTuple):
    """State of `skip_outliers` and of `clip_outliers`.

    Attributes:
      count: int32 scalar, estimates so far.
      num_outliers: int32 scalar, steps that were skipped or clipped.
      recent: (window,) largest |slope| of each recent step before clipping, newest
        first; 0 where there was no step yet.
      inner_state: State of the wrapped estimator.
    """

    count: jax.Array
    num_outliers: jax.Array
    recent: jax.Array
    inner_state: Any


def skip_outliers(
    estimator: core.Estimator,
    *,
    quantile: float = 0.5,
    window: int = 50,
    factor: float = 10.0,
) -> core.Estimator:
    """Skip the steps of an estimator whose largest slope is an outlier.

    For values that are occasionally wrong, such as those of a failed solver or a
    corrupt batch. With s = the largest |slope| of the step:

      bound = factor · quantile of s over the last `window` steps with a nonzero slope
      s > bound   gradient zero and all directions dropped; the estimator state is
                  unchanged, and with `with_estimator` that of the optimizer too

    The quantile of n numbers is the ⌈quantile · n⌉-th smallest. Outliers are stored
    too, so a lasting change of scale is accepted after at most
    window − ⌈quantile · window⌉ + 1 skipped steps in a row, 26 by default. Outliers
    must be fewer than 1 − quantile of the steps. Nothing is skipped before 5 steps with
    a nonzero slope (or `window`, if less).

    With `zo_sgd`, a slope F times too large makes a step F times too long. `radazo`
    bounds the update by learning_rate / √(1 − b2) per element, but its second moment
    keeps an outlier for about 2 ln(F) / (1 − b2) steps, in which parameters hardly
    move. The guard has no use with `zo_signsgd`, or against noise in every step.

    Args:
      estimator: Any `Estimator`.
      quantile: Quantile of the recent steps that defines the bound, in [0, 1].
      window: Number of recent steps that are stored, at least 1.
      factor: Multiple of the quantile that a slope may reach, greater than 0.
    Returns:
      An `Estimator`, which is not memoryless. `optax.tree.get(state, "num_outliers")`
      is the number of skipped steps; they also count in `num_skipped`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
    Cost:
      The function values of `estimator`, in a skipped step too; `window` numbers of
      state, no copy of the parameters. The state of `estimator` is held twice during a
      step.
    Example:
      >>> estimator = skip_outliers(radazo.sphere_estimator())
      >>> optimizer = radazo.zo_sgd(0.1, estimator, key=0)
      >>> def value_fn(x, step):  # One value in forty is an outlier.
      ...     return jnp.sum(x**2) * jnp.where(step % 40 == 39, 1e6, 1.0)
      >>> result = radazo.minimize(
      ...     value_fn, jnp.ones(5), optimizer, 200, batches=lambda step: step
      ... )
      >>> print(optax.tree.get(result.state, "num_outliers"), result.values[-2] < 0.01)
      5 True
    """
    return _guarded("skip_outliers", estimator, quantile, window, factor, _zero_factor)


def clip_outliers(
    estimator: core.Estimator,
    *,
    quantile: float = 0.5,
    window: int = 50,
    factor: float = 3.0,
) -> core.Estimator:
    """Clip the slopes of steps whose largest slope is an outlier.

    Gradient clipping with an adaptive bound, for heavy-tailed noise.

      bound = factor · quantile of s over the last `window` steps with a nonzero slope
      slopes, gradient ← slopes, gradient · min(1, bound / s)

    where s is the largest |slope| of the step before clipping. Clipping biases the
    estimate. It does not affect the memory of an estimator such as
    `history_mean_estimator`; use `skip_outliers` there.

    Args:
      estimator: Any `Estimator`.
      quantile, window: As in `skip_outliers`.
      factor: Multiple of the quantile that a slope may reach, greater than 0. A slope
        along a random direction exceeds three times the median of its size in one step
        of twenty, ten times in none.
    Returns:
      An `Estimator`, which is not memoryless. `optax.tree.get(state, "num_outliers")`
      is the number of clipped steps.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
    Cost:
      That of `estimator`; `window` numbers of state, no copy of the parameters.
    Example:
      >>> estimator = clip_outliers(radazo.rademacher_estimator(), factor=2.0)
      >>> optimizer = radazo.zo_sgd(0.5, estimator, key=0)
      >>> scale = jnp.array([1.0] * 10 + [1000.0])
      >>> fn = lambda x, scale: scale * x
      >>> x, state = jnp.zeros(()), optimizer.init(jnp.zeros(()))
      >>> step = jax.jit(
      ...     lambda state, scale: optimizer.update(
      ...         None, state, x, value_fn=fn, scale=scale
      ...     )
      ... )
      >>> for now in scale:
      ...     updates, state = step(state, now)
      >>> print(jnp.round(updates, 2))  # instead of -500
      -1.0
    """
    return _guarded("clip_outliers", estimator, quantile, window, factor, _clip_factor)


def _guarded(
    api_name: str,
    estimator: core.Estimator,
    quantile: float,
    window: int,
    factor: float,
    slope_factor: _SlopeFactor,
) -> core.Estimator:
    """Build the guarded estimator."""
    build.check_estimator(api_name, estimator)
    hint = "It is the share of recent steps that lie below; 0.5 is the median."
    validation.share(api_name, "quantile", quantile, hint)
    hint = "It is the number of recent steps that are remembered."
    validation.integer(api_name, "window", window, 1, hint)
    hint = "It is how many times the quantile of recent slopes one may be."
    validation.positive(api_name, "factor", factor, hint)

    def init(params: core.Params) -> OutlierState:
        return OutlierState(
            count=jnp.zeros((), jnp.int32),
            num_outliers=jnp.zeros((), jnp.int32),
            recent=jnp.zeros(window, jnp.result_type(float)),
            inner_state=estimator.init(params),
        )

    guarded = functools.partial(_guard, quantile, window, factor, slope_factor)

    def estimate(
        step: core.Step,
        state: OutlierState,
        queries: core.Queries,
        readings: core.Readings,
    ) -> core.Estimate:
        inner = estimator.estimate(step, state.inner_state, queries, readings)
        return guarded(state, inner)

    fused = estimator.fused
    return core.Estimator(
        api_name,
        init,
        lambda key, params, state: estimator.step(key, params, state.inner_state),
        lambda step, state: estimator.queries(step, state.inner_state),
        estimate,
        fused=fused
        and (
            lambda function, step, state: guarded(
                state, fused(function, step, state.inner_state)
            )
        ),
    )


def _guard(
    quantile: float,
    window: int,
    factor: float,
    slope_factor: _SlopeFactor,
    state: OutlierState,
    found: core.Estimate,
) -> core.Estimate:
    """Multiply the slopes and the gradient of an outlier by the slope factor."""
    recent, info = state.recent, found.info
    largest = jnp.max(jnp.abs(info.slopes)).astype(recent.dtype)
    num_seen, typical = _quantile(recent, quantile)
    bound = jnp.asarray(factor, recent.dtype) * typical
    outlier = (num_seen >= min(_MIN_STEPS, window)) & (largest > bound)
    share = jnp.where(outlier, slope_factor(bound, largest), jnp.ones_like(largest))
    taken = share > 0
    state = OutlierState(
        count=state.count,
        num_outliers=jnp.where(
            outlier, optax.safe_increment(state.num_outliers), state.num_outliers
        ),
        recent=jnp.where(
            largest > 0, jnp.concatenate([largest[None], recent[:-1]]), recent
        ),
        inner_state=jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            found.state,
            state.inner_state,
        ),
    )
    info = info._replace(
        slopes=info.slopes * share.astype(info.slopes.dtype),
        kept=info.kept & taken,
    )
    gradient = found.gradient * share.astype(found.gradient.dtype)
    found = found._replace(gradient=gradient, state=state, info=info)
    return build.next_count(found)


def _zero_factor(bound: jax.Array, largest: jax.Array) -> jax.Array:
    del bound
    return jnp.zeros_like(largest)


def _clip_factor(bound: jax.Array, largest: jax.Array) -> jax.Array:
    return bound / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)


def _quantile(recent: jax.Array, quantile: Any) -> tuple[jax.Array, jax.Array]:
    """Return the number of nonzero elements of `recent`, and their quantile."""
    num_seen = jnp.sum(recent > 0, dtype=jnp.int32)
    last = jnp.asarray(jnp.inf, recent.dtype)
    in_order = jnp.sort(jnp.where(recent > 0, recent, last))
    share = jnp.asarray(quantile, recent.dtype) * num_seen.astype(recent.dtype)
    place = jnp.clip(jnp.ceil(share).astype(jnp.int32) - 1, 0, recent.size - 1)
    return num_seen, in_order[place]
