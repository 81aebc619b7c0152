"""Guards against slopes that stand out: skip the step, or clip its slopes.

A guard goes around an estimator and compares the largest slope of a step with those of
recent steps. It knows nothing of laws of directions, and every form takes it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.estimators import build

_ENOUGH = 5  # Recent steps without which nothing is said to stand out.

# answer(bound, largest) -> what multiplies the slopes of an outlier, in [0, 1)
_Answer = Callable[[jax.Array, jax.Array], jax.Array]


class OutlierState(NamedTuple):
    """State of `skip_outliers` and of `clip_outliers`.

    Attributes:
      count: int32 scalar, estimates so far.
      num_outliers: int32 scalar, those that were skipped or clipped.
      recent: (window,) the largest |slope| of each of the recent steps, the newest
        first, as it came; 0 where there was no step yet.
      inner_state: State of the estimator within.
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
    """Around an estimator: a step is skipped where a slope stands out.

    For values that are now and then absurd: a solver that failed, a corrupt batch, a
    sum that nearly overflowed. With s = the largest |slope| of the step:

      bound = factor · quantile of s over the last `window` steps that had a slope
      s > bound   a gradient of zero and no direction kept: `with_estimator` then leaves
                  the optimizer's state as it was, and this the estimator's
      s ≤ bound   the estimate as it is

    The quantile of n numbers is the ⌈quantile · n⌉-th smallest. Outliers enter the
    memory as they came, for else a true change of scale would be skipped forever: it is
    skipped for at most window − ⌈quantile · window⌉ + 1 steps in a row, 26 by default.
    In turn the guard holds as long as outliers are fewer than 1 − quantile of the
    steps. Before 5 steps with a slope (or `window`, if that is less) nothing is
    skipped. A step whose slopes are all zero, as on a plateau, is not remembered.

    It matters most where one step can do harm: with `zo_sgd` a slope F times too large
    is a step F times too long. Behind moments an update is bounded whatever the slope
    (for `radazo` by learning_rate / √(1 − b2) in each element), but a second moment
    forgets an outlier in some 2 ln(F) / (1 − b2) steps, in which parameters hardly
    move. It does not matter behind `zo_signsgd`, whose steps all have one length, and
    it does not help against noise that is in every step.

    Args:
      estimator: Any `Estimator`.
      quantile: Share of the recent steps that a bound is taken from, in [0, 1].
      window: Recent steps that are remembered, at least 1.
      factor: How many times the quantile a slope may be, greater than 0.
    Returns:
      An `Estimator`, which is not memoryless. The steps it skipped are counted:
      `optax.tree.get(state, "num_outliers")`, of a state or of `minimize`'s
      `result.state`; `num_skipped` counts them too, with those without a finite value.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      The function values of `estimator`, in a skipped step too; `window` numbers of
      state, no copy of the parameters. An estimator that remembers copies of the
      parameters has its state twice while a step runs.
    Example:
      >>> estimator = skip_outliers(radazo.sphere_estimator())
      >>> optimizer = radazo.zo_sgd(0.1, estimator, key=0)
      >>> def value_fn(x, step):  # One value in forty is absurd.
      ...     return jnp.sum(x**2) * jnp.where(step % 40 == 39, 1e6, 1.0)
      >>> result = radazo.minimize(
      ...     value_fn, jnp.ones(5), optimizer, 200, batches=lambda step: step
      ... )
      >>> print(optax.tree.get(result.state, "num_outliers"), result.values[-2] < 0.01)
      5 True
    """
    return _guarded(
        "skip_outliers", estimator, quantile, window, factor, _nothing_of_it
    )


def clip_outliers(
    estimator: core.Estimator,
    *,
    quantile: float = 0.5,
    window: int = 50,
    factor: float = 3.0,
) -> core.Estimator:
    """Around an estimator: the slopes of a step are clipped where one stands out.

    `skip_outliers` that takes the step, scaled down to the bound. It is gradient
    clipping with a bound that follows the run, for values whose noise has heavy tails:
    what stands out a little has something to say, and a step skipped is values lost.

      bound = factor · quantile of s over the last `window` steps that had a slope
      slopes, gradient ← slopes, gradient · min(1, bound / s)

    with s = the largest |slope| of the step, as it came. It biases the estimate in the
    steps that it clips. What an estimator remembers of a step (`history_mean_estimator`
    and its like) is not clipped: take `skip_outliers` there.

    Args:
      estimator: Any `Estimator`.
      quantile, window: As in `skip_outliers`.
      factor: How many times the quantile a slope may be, greater than 0. A slope along
        a random direction is more than three times the median of its size in one step
        of twenty, more than ten times in none.
    Returns:
      An `Estimator`, which is not memoryless. The steps it clipped are counted:
      `optax.tree.get(state, "num_outliers")`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
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
      >>> print(jnp.round(updates, 2))  # in place of -500
      -1.0
    """
    return _guarded("clip_outliers", estimator, quantile, window, factor, _up_to_bound)


def _guarded(
    api_name: str,
    estimator: core.Estimator,
    quantile: float,
    window: int,
    factor: float,
    answer: _Answer,
) -> core.Estimator:
    """The estimator with the slopes of outliers multiplied by the answer."""
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

    guarded = functools.partial(_guard, quantile, window, factor, answer)

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
    answer: _Answer,
    state: OutlierState,
    found: core.Estimate,
) -> core.Estimate:
    """The estimate with its slopes multiplied by the answer, if it is an outlier."""
    recent, info = state.recent, found.info
    largest = jnp.max(jnp.abs(info.slopes)).astype(recent.dtype)
    num_seen, typical = _quantile(recent, quantile)
    bound = jnp.asarray(factor, recent.dtype) * typical
    outlier = (num_seen >= min(_ENOUGH, window)) & (largest > bound)
    share = jnp.where(outlier, answer(bound, largest), jnp.ones_like(largest))
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


def _nothing_of_it(bound: jax.Array, largest: jax.Array) -> jax.Array:
    del bound
    return jnp.zeros_like(largest)


def _up_to_bound(bound: jax.Array, largest: jax.Array) -> jax.Array:
    return bound / jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)


def _quantile(recent: jax.Array, quantile: Any) -> tuple[jax.Array, jax.Array]:
    """How many of `recent` there are, and their quantile; zeros are none."""
    num_seen = jnp.sum(recent > 0, dtype=jnp.int32)
    last = jnp.asarray(jnp.inf, recent.dtype)
    in_order = jnp.sort(jnp.where(recent > 0, recent, last))
    share = jnp.asarray(quantile, recent.dtype) * num_seen.astype(recent.dtype)
    place = jnp.clip(jnp.ceil(share).astype(jnp.int32) - 1, 0, recent.size - 1)
    return num_seen, in_order[place]
