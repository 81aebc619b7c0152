"""ZO-AdaMU: momentum in the direction instead of the gradient."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from radazo import core, differences, flat, random, validation
from radazo.estimators import build
from radazo.optimizers import presets


class ZoAdamuState(NamedTuple):
    """State of the directions of `zo_adamu`.

    Attributes:
      count: int32 scalar, steps so far.
      momentum: (d,) the last kept direction, signed to point uphill.
    """

    count: jax.Array
    momentum: jax.Array


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

    A direction mixes a new part with one around the momentum m, the last direction,
    whose share grows between the steps T1 and T2. n and n′ are standard normals; the
    shares a, β₁ and β₂ are share(`new_variance`), share(`b1`) and share(`b2`):

      share(last) = 1 − (1 − last) · (1 − cos(π · p)) / 2
      p = 0 before T1, (t − T1) / (T2 − T1) between, 1 after T2
      new = √a · n,  old = m + √(1 − a) · n′
      u = β₁ · new + (1 − β₁) · old
      slope = (f(x + smoothing · u) − f(x − smoothing · u)) / (2 smoothing)
      nu = β₂ · new² + (1 − β₂) · old²
      update = − learning_rate · (slope · u / √(nu + eps_root) + weight_decay · x)
      m ← u if slope ≥ 0 else −u

    Up to T1 the step is slope · sign(u). The sign of m is as in the authors' code, not
    algorithm 1; their cosine has a different period for each share, and jumps.

    Args:
      learning_rate, key, weight_decay, weight_decay_mask: As in `radazo`.
      num_steps: Steps of the run, at least 1; later ones use the last phase.
      smoothing: As in `finite_difference_estimator`; ‖u‖ is about √d.
      boundaries: (T1, T2). None for 1/5 (at most 1024) and 4/5 of `num_steps`.
      new_variance, b1, b2: Shares of the new part in the last phase, in [0, 1].
      eps_root: Constant inside the root, greater than 0.
      terms, mask, sharding: As in `finite_difference_estimator`.
    Returns, Raises:
      As `radazo`; the `WithEstimatorState` holds a `ZoAdamuState`. A step with a
      non-finite value changes neither parameters nor momentum.
    Cost:
      2 function values per step. Copies of the parameters: 1 in the state, 4 in a step.
    Example:
      >>> f, optimizer = lambda x: jnp.sum(x**2), zo_adamu(0.01, 500, key=0)
      >>> x = jnp.array([3.0, -4.0])
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(jnp.abs(updates / updates[0]), 3))  # signs, up to T1
      [1. 1.]
    References:
      Jiang et al., ZO-AdaMU optimizer, 2024. arXiv:2312.15184, algorithm 1.
    """
    api_name = "zo_adamu"
    hint = "The schedule ends with it."
    validation.integer(api_name, "num_steps", num_steps, 1, hint)
    last = {"new_variance": new_variance, "b1": b1, "b2": b2}
    for argument, share in last.items():
        hint = "It is the share of the new part in the last phase."
        validation.share(api_name, argument, share, hint)
    hint = "It keeps the division from overflowing."
    validation.positive(api_name, "eps_root", eps_root, hint)
    if boundaries is None:
        first = min(1024, num_steps // 5)
        boundaries = first, max(4 * num_steps // 5, first + 1)
    hint = "Pass None, or e.g. (1024, 16000) for 20000 steps."
    if not (isinstance(boundaries, tuple | list) and len(boundaries) == 2):
        rule = "be two numbers of steps"
        validation.fail(api_name, "boundaries", rule, repr(boundaries), hint, TypeError)
    validation.integer(api_name, "boundaries", boundaries[0], 0, hint)
    validation.integer(api_name, "boundaries", boundaries[1], boundaries[0] + 1, hint)

    def init(layout: flat.Layout) -> ZoAdamuState:
        momentum = jnp.zeros(layout.dim, layout.dtype)
        return ZoAdamuState(jnp.zeros((), jnp.int32), momentum)

    queries = functools.partial(_queries, boundaries, [*last.values()])
    estimate = functools.partial(_estimate, eps_root)
    settings = build.Settings(smoothing, terms, mask, sharding=sharding)
    estimator = build.estimator(api_name, init, queries, estimate, settings)
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    return presets.optimizer(api_name, optax.identity, *common)


def _queries(
    boundaries: tuple[int, int], last: list[Any], step: core.Step, state: ZoAdamuState
) -> core.Queries:
    """Return the queries at the two points along the direction."""
    first, second = boundaries
    dim, dtype = step.layout.dim, step.layout.dtype
    progress = (state.count - first).astype(dtype) / (second - first)
    rise = (1 - jnp.cos(math.pi * jnp.clip(progress, 0, 1))) / 2
    # The shares of the old part; they rise from 0 to 1 − last along half a cosine.
    variance, b1, b2 = ((1 - jnp.asarray(x, dtype)) * rise for x in last)
    keys = (random.fold_in(step.key, k) for k in (0, 1))
    new, noise = (random.normal(key, dim, dtype) for key in keys)
    new = jnp.sqrt(1 - variance) * new
    old = state.momentum + jnp.sqrt(variance) * noise
    direction = (1 - b1) * new + b1 * old
    nu = (1 - b2) * jnp.square(new) + b2 * jnp.square(old)
    distances = differences.central.distances(step.smoothing)

    def point(index: Any) -> core.Params:
        distance = distances[jnp.asarray(index)]
        return flat.perturb(step.layout, step.params, direction, distance, step.key[0])

    def read(values: jax.Array, aux: Any) -> core.Readings:
        slope, value = differences.central.slope(None, values, step.smoothing)
        return core.Readings(value, slope[None], jnp.isfinite(slope)[None], aux)

    return core.Queries(2, point, read, num_readings=1, shared=(direction, nu))


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
