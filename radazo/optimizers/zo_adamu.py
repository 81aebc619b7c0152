"""ZO-AdaMU: momentum in the direction instead of the gradient.

It is an estimator whose gradient is the update, and does not combine with other rules.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from radazo import core, differences, flat, random, validation
from radazo.estimators import build
from radazo.optimizers import assembly


class ZoAdamuState(NamedTuple):
    """State of the directions of `zo_adamu`.

    Attributes:
      count: int32 scalar, steps so far.
      momentum: (d,) the last kept direction, signed to point uphill.
    """

    count: jax.Array
    momentum: jax.Array


class _Shares(NamedTuple):
    """The shares of the new part in the last phase; each starts at 1."""

    variance: Any
    direction: Any
    square: Any


def zo_adamu(
    learning_rate: core.Schedule | float,
    num_steps: int,
    *,
    key: core.Key,
    smoothing: core.Schedule | float = 1e-2,
    boundaries: tuple[int, int] | None = None,
    new_variance: float = 0.5,
    b1: float = 0.9,
    b2: float = 0.01,
    eps_root: float = 1e-8,
    terms: bool = False,
    mask: core.Mask = None,
    sharding: NamedSharding | None = None,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by ZO-AdaMU, which draws directions around the last one.

    A direction mixes a new part with one around the momentum, the last direction. The
    momentum is phased in between the boundaries T1 and T2:

      share(last) = 1 − (1 − last) · (1 − cos(π · p)) / 2
      p = 0 before T1, (t − T1) / (T2 − T1) between, 1 after T2

    Let a, β₁ and β₂ be the shares that end at `new_variance`, `b1` and `b2`; n and n′
    are standard normals.

      new = √a · n,  old = m + √(1 − a) · n′
      u = β₁ · new + (1 − β₁) · old
      slope = (f(x + smoothing · u) − f(x − smoothing · u)) / (2 smoothing)
      nu = β₂ · new² + (1 − β₂) · old²
      update = − learning_rate · (slope · u / √(nu + eps_root) + weight_decay · x)
      m ← u if slope ≥ 0 else −u

    Up to T1 the step is slope · sign(u). The sign of m follows the authors' code, not
    algorithm 1; the distribution of an update is the same for m and −m. The authors'
    cosine has another period for each share and jumps.

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      num_steps: Steps of the run, at least 1; later ones use the last phase.
      key: Typed key or integer seed of the run.
      smoothing: Distance moved along a direction, in units of ‖u‖ ≈ √d; greater than 0,
        or a schedule of the number of steps so far.
      boundaries: (T1, T2), the steps at which the momentum starts to phase in and is
        fully in; None for 1024, or a fifth of the steps if less, and four fifths.
      new_variance: Share of the variance in the new part in the last phase, in [0, 1].
      b1: Share of the new part in the direction in the last phase, in [0, 1].
      b2: Share of the new part in nu in the last phase, in [0, 1].
      eps_root: Constant inside the root, greater than 0.
      terms, mask, sharding: As in `finite_difference_estimator`.
      weight_decay, weight_decay_mask: As in `radazo`.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState` around a `ZoAdamuState`. A step with a non-finite value
      changes neither parameters nor momentum.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      2 function values per step. One copy of the parameters in the state and about four
      during a step.
    Example:
      >>> optimizer = zo_adamu(0.01, 500, key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(jnp.abs(updates / updates[0]), 3))  # signs, up to T1
      [1. 1.]
    References:
      Jiang et al., ZO-AdaMU optimizer: adapting perturbation by the momentum and
      uncertainty in zeroth-order optimization, 2024. arXiv:2312.15184, algorithm 1.
    """
    api_name = "zo_adamu"
    last = _Shares(new_variance, b1, b2)
    validation.integer(
        api_name, "num_steps", num_steps, 1, "The schedule ends with it."
    )
    for argument, value in zip(("new_variance", "b1", "b2"), last, strict=True):
        validation.share(
            api_name, argument, value, "It is that of the new in what is mixed."
        )
    hint = "It keeps the division from overflowing."
    validation.positive(api_name, "eps_root", eps_root, hint)
    if boundaries is None:
        first = min(1024, num_steps // 5)
        boundaries = first, max(4 * num_steps // 5, first + 1)
    _check_boundaries(api_name, boundaries)

    def init(layout: flat.Layout, params: core.Params) -> ZoAdamuState:
        del params
        momentum = jnp.zeros(layout.dim, layout.dtype)
        return ZoAdamuState(jnp.zeros((), jnp.int32), momentum)

    def queries(step: core.Step, state: ZoAdamuState) -> core.Queries:
        olds = _old_shares(state.count, boundaries, last, step.layout.dtype)
        return _queries(step, _direction(step, state.momentum, olds))

    estimator = build.estimator(
        api_name,
        init,
        queries,
        functools.partial(_estimate, eps_root),
        build.Settings(smoothing, terms, mask, sharding=sharding),
    )
    return assembly.optimizer(
        api_name,
        estimator,
        optax.identity(),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def _old_shares(
    count: jax.Array, boundaries: tuple[int, int], last: _Shares, dtype: Any
) -> _Shares:
    """Return 1 − share, which rises from 0 to 1 − last along half a cosine."""
    first, second = boundaries
    progress = (count - first).astype(dtype) / (second - first)
    rise = (1 - jnp.cos(math.pi * jnp.clip(progress, 0, 1))) / 2
    return _Shares(*((1 - jnp.asarray(x, dtype)) * rise for x in last))


def _direction(
    step: core.Step, momentum: jax.Array, olds: _Shares
) -> tuple[jax.Array, jax.Array]:
    """Return the direction and nu, (dim,) each."""
    dim, dtype = step.layout.dim, step.layout.dtype
    new, noise = (
        random.normal(random.fold_in(step.key, k), dim, dtype) for k in (0, 1)
    )
    new = jnp.sqrt(1 - olds.variance) * new
    old = momentum + jnp.sqrt(olds.variance) * noise
    direction = (1 - olds.direction) * new + olds.direction * old
    nu = (1 - olds.square) * jnp.square(new) + olds.square * jnp.square(old)
    return direction, nu


def _queries(
    step: core.Step, direction_and_nu: tuple[jax.Array, jax.Array]
) -> core.Queries:
    """Return the queries at the two points along the direction."""
    direction, _ = direction_and_nu
    central = differences.central
    distances = central.distances(step.smoothing)

    def point(index: Any) -> core.Params:
        distance = distances[jnp.asarray(index)]
        return flat.perturb(step.layout, step.params, direction, distance, step.key[0])

    def read(values: jax.Array, aux: Any) -> core.Readings:
        slope, value = central.slope(None, values, step.smoothing)
        return core.Readings(value, slope[None], jnp.isfinite(slope)[None], aux)

    return core.Queries(
        num=2, point=point, read=read, num_readings=1, shared=direction_and_nu
    )


def _estimate(
    eps_root: Any,
    step: core.Step,
    state: ZoAdamuState,
    queries: core.Queries,
    readings: core.Readings,
) -> core.Estimate:
    direction, nu = queries.shared
    slope = jnp.where(readings.valid, readings.slopes, jnp.nan)[0]
    root = jnp.sqrt(nu + jnp.asarray(eps_root, nu.dtype))
    gradient = slope.astype(root.dtype) * (direction / root)
    kept = jnp.isfinite(slope) & jnp.all(jnp.isfinite(gradient))
    slope = jnp.where(kept, slope, jnp.zeros_like(slope))
    gradient = jnp.where(kept, gradient, jnp.zeros_like(gradient))
    uphill = jnp.where(slope < 0, -direction, direction)
    momentum = jnp.where(kept, uphill, state.momentum)
    nan = jnp.full((), math.nan, slope.dtype)
    info = core.EstimateInfo(
        slope[None], kept[None], jnp.int32(2), readings.aux, nan, nan
    )
    state = state._replace(momentum=momentum)
    return core.Estimate(readings.value, gradient, state, info, step.key[0])


def _check_boundaries(api_name: str, boundaries: Any) -> None:
    hint = "Pass (1024, 16000) for 20000 steps, say, or None."
    pair = isinstance(boundaries, tuple | list) and len(boundaries) == 2
    if not pair:
        rule = "be two numbers of steps"
        validation.fail(api_name, "boundaries", rule, repr(boundaries), hint, TypeError)
    first, second = boundaries
    validation.integer(api_name, "boundaries", first, 0, hint)
    validation.integer(api_name, "boundaries", second, first + 1, hint)
