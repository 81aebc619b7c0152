"""Guard an estimator against outliers: skip the step, or clip its slopes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.estimators import build

_MIN_STEPS = 5  # Recent steps needed before a slope can be an outlier.


class OutlierState(NamedTuple):
    """State of `skip_outliers` and of `clip_outliers`.

    Attributes:
      count: int32 scalar, estimates so far.
      num_outliers: int32 scalar, steps that were skipped or clipped.
      recent: (window,) largest |slope| of recent steps before clipping, newest first.
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

    It suits values that are sometimes wrong, as of a failed solver or a bad batch.
    With s = the largest |slope| of the step:

      bound = factor · quantile of s over the last `window` steps with a nonzero slope
      s > bound   gradient zero and all directions dropped; the estimator state is
                  unchanged, and with `with_estimator` that of the optimizer too

    The quantile of n numbers is the ⌈quantile · n⌉-th smallest. Outliers, which must be
    fewer than 1 − quantile of the steps, are stored too: a lasting change of scale is
    accepted after at most window − ⌈quantile · window⌉ + 1 skipped steps in a row.
    Nothing is skipped before 5 steps with a nonzero slope (or `window`, if less).

    The second moment of `radazo` keeps a slope that is F times too large for about
    2 ln(F) / (1 − b2) steps. `zo_signsgd` needs no guard.

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
      That of `estimator`, in a skipped step too; its state is held twice in a step.
    Example:
      >>> sgd = radazo.zo_sgd(0.1, skip_outliers(radazo.sphere_estimator()), key=0)
      >>> fn = lambda x, step: jnp.sum(x**2) * jnp.where(step % 40 == 39, 1e6, 1.0)
      >>> steps = lambda step: step  # One value in forty is an outlier.
      >>> result = radazo.minimize(fn, jnp.ones(5), sgd, 200, batches=steps)
      >>> print(optax.tree.get(result.state, "num_outliers"), result.values[-2] < 0.01)
      5 True
    """
    return _guard("skip_outliers", estimator, quantile, window, factor, clip=False)


def clip_outliers(
    estimator: core.Estimator,
    *,
    quantile: float = 0.5,
    window: int = 50,
    factor: float = 3.0,
) -> core.Estimator:
    """Clip the slopes of steps whose largest slope is an outlier.

      slopes, gradient ← slopes, gradient · min(1, bound / s)    as in `skip_outliers`

    It suits heavy-tailed noise. It biases the estimate, and leaves outliers in the
    memory of `history_mean_estimator` and others.

    Args:
      estimator, quantile, window: As in `skip_outliers`.
      factor: Multiple of the quantile that a slope may reach, greater than 0. A random
        slope exceeds three times its median in one step of twenty, ten times in none.
    Returns, Raises, Cost:
      As `skip_outliers`; `num_outliers` is the number of clipped steps.
    Example:
      >>> estimator = clip_outliers(radazo.rademacher_estimator(), factor=2.0)
      >>> sgd, scales = radazo.zo_sgd(1.0, estimator, key=0), [1.0] * 5 + [1000.0]
      >>> fn, x = lambda x, scale: scale * x, jnp.zeros(())
      >>> print(jnp.round(radazo.minimize(fn, x, sgd, 6, batches=scales).params, 2))
      -7.0
    """
    return _guard("clip_outliers", estimator, quantile, window, factor, clip=True)


def _guard(
    api_name: str,
    estimator: core.Estimator,
    quantile: float,
    window: int,
    factor: float,
    *,
    clip: bool,
) -> core.Estimator:
    """Return an estimator that multiplies the slopes of an outlier by less than 1."""
    validation.check(api_name, estimator=estimator)
    hint = "It is the share of recent steps below the quantile; 0.5 is the median."
    validation.share(api_name, "quantile", quantile, hint)
    hint = "It is the number of recent steps that are remembered."
    validation.integer(api_name, "window", window, 1, hint)
    hint = "A slope may be that many times the quantile of recent ones."
    validation.positive(api_name, "factor", factor, hint)

    def init(params: core.Params) -> OutlierState:
        zero, recent = jnp.zeros((), jnp.int32), jnp.zeros(window, float)
        inner_state = estimator.init(params)
        return OutlierState(zero, jnp.zeros((), jnp.int32), recent, inner_state)

    def estimate(step: core.Step, state: OutlierState, *seen: Any) -> core.Estimate:
        found = estimator.estimate(step, state.inner_state, *seen)
        recent, info = state.recent, found.info
        dtype = recent.dtype
        largest = jnp.max(jnp.abs(info.slopes)).astype(dtype)
        num_seen = jnp.sum(recent > 0, dtype=jnp.int32)
        in_order = jnp.sort(jnp.where(recent > 0, recent, jnp.asarray(jnp.inf, dtype)))
        rank = jnp.asarray(quantile, dtype) * num_seen.astype(dtype)
        row = jnp.clip(jnp.ceil(rank).astype(jnp.int32) - 1, 0, recent.size - 1)
        bound = jnp.asarray(factor, dtype) * in_order[row]
        outlier = (num_seen >= min(_MIN_STEPS, window)) & (largest > bound)
        share = jnp.zeros_like(largest)
        if clip:
            share = bound / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)
        share = jnp.where(outlier, share, jnp.ones_like(largest))
        taken = share > 0
        count = optax.safe_increment(state.num_outliers)
        count = jnp.where(outlier, count, state.num_outliers)
        shifted = jnp.concatenate([largest[None], recent[:-1]])
        recent = jnp.where(largest > 0, shifted, recent)
        chosen = functools.partial(jnp.where, taken)
        inner_state = jax.tree.map(chosen, found.state, state.inner_state)
        state = OutlierState(state.count, count, recent, inner_state)
        slopes = info.slopes * share.astype(info.slopes.dtype)
        info = info._replace(slopes=slopes, kept=info.kept & taken)
        gradient = found.gradient * share.astype(found.gradient.dtype)
        found = found._replace(gradient=gradient, state=state, info=info)
        return build.next_count(found)

    return core.Estimator(
        api_name,
        init,
        lambda key, params, state: estimator.step(key, params, state.inner_state),
        lambda step, state: estimator.queries(step, state.inner_state),
        estimate,
    )
