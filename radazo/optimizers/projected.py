"""Optimizers that keep the parameters in a set, by projection after each step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from radazo import core, projections, validation
from radazo.optimizers import combinators, presets, transforms


def projected(
    optimizer: optax.GradientTransformation,
    projection: projections.Projection,
    metric: Callable[[Any], core.Params] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Project the parameters onto a set after each step of an optimizer.

      updates ← optimizer.update(updates, state, x, ...)
      updates ← project(x + updates) − x

    Wrap everything that changes the updates, including the learning rate; an estimator
    may be inside or outside. Steps stay in a box exactly, and in other sets up to
    rounding; the points of an estimator may lie outside.

    Args:
      optimizer: Any `optax.GradientTransformation`.
      projection: E.g. `radazo.projections.box(-1.0, 1.0)`, or any function of params.
      metric: None for the Euclidean projection, or a function from the new state of
        the optimizer to weights, which are passed as `projection(params, weights)`.
    Returns:
      A `GradientTransformationExtraArgs` with the state and keywords of `optimizer`.
    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: In `update`, if `params` is missing.
    Cost:
      During a step one copy of the parameters and those of the projection.
    Example:
      >>> box = radazo.projections.box(-1.0, 1.0)
      >>> optimizer = projected(radazo.radazo(0.1, key=0), box)
      >>> f, x = lambda x: x[1] - x[0], jnp.array([0.5, -0.95])
      >>> print(radazo.minimize(f, x, optimizer, 1).params)
      [ 1. -1.]
    References:
      Liu et al., Zeroth-order online ADMM, 2018.
    """
    api_name = "projected"
    validation.transformation(api_name, optimizer)
    validation.check(api_name, projection=projection)
    if metric is not None:
        hint = "It takes the optimizer's state; for fixed weights, ignore that."
        validation.function(api_name, "metric", metric, hint)
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: core.Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        validation.current_params(api_name, params)
        updates, state = inner.update(updates, state, params, **extra)
        free = jax.tree.map(_add, params, updates)
        inside = projection(free, *([] if metric is None else [metric(state)]))
        return jax.tree.map(_towards, params, inside, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def zo_psgd(
    learning_rate: core.Schedule | float,
    projection: projections.Projection,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by projected stochastic gradient descent (ZO-PSGD, ZO-SPGD).

      update = project(x − learning_rate · g) − x

    The authors use a `smoothing` near 1 / √(d T) for T steps, and batches.

    Args:
      learning_rate, estimator, key: As in `radazo`.
      projection: As in `projected`.
    Returns, Raises, Cost:
      As `zo_sgd`, with one more copy of the parameters during a step.
    Example:
      >>> optimizer = zo_psgd(0.5, radazo.projections.simplex(), key=0)
      >>> f, x = lambda x: 9 * x[0], jnp.array([0.5, 0.5])
      >>> print(jnp.abs(radazo.minimize(f, x, optimizer, 1).params))
      [0. 1.]
    References:
      Liu et al., Zeroth-order online ADMM, 2018.
    """
    common = estimator, key, learning_rate
    validation.check("zo_psgd", projection=projection)
    optimizer = presets.optimizer("zo_psgd", optax.identity, *common)
    return projected(optimizer, projection)


def projected_zo_adamm(
    learning_rate: core.Schedule | float,
    projection: projections.Projection,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = transforms.B1,
    b2: float = transforms.B2,
    eps: float = transforms.EPS,
    eps_root: float = transforms.EPS_ROOT,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by ZO-AdaMM as published, projected in the metric of its steps.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      nu_max ← max(nu_max, nu)
      h = √(nu_max + eps_root) + eps
      update = project(x − learning_rate · mu / h, metric h) − x

    With the Euclidean projection the method may not converge; in a box the two agree.
    The published method has a learning rate that falls as 1/√t.

    Args:
      learning_rate, estimator, key: As in `radazo`.
      projection: As in `projected`; takes weights.
      b1, b2, eps, eps_root, mu_dtype: As in `scale_by_zo_adamm`.
    Returns, Raises, Cost:
      As `zo_adamm` with `amsgrad`, and during a step the copies of the projection.
    Example:
      >>> optimizer = projected_zo_adamm(0.5, radazo.projections.l2_ball(1.0), key=0)
      >>> f, x = lambda x: -9 * x[1], jnp.array([0.6, 0.8])
      >>> print(jnp.linalg.norm(radazo.minimize(f, x, optimizer, 1).params) <= 1)
      True
    References:
      Chen et al., ZO-AdaMM, 2019. arXiv:1910.06513, algorithm 1.
    """
    api_name, common = "projected_zo_adamm", (estimator, key, learning_rate)
    validation.check(api_name, projection=projection)
    options: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    options |= {"mu_dtype": mu_dtype, "amsgrad": True}
    rule = transforms.scale_by_zo_adamm
    optimizer = presets.optimizer(api_name, rule, *common, **options)

    def metric(state: combinators.WithEstimatorState) -> core.Params:
        nu_max = state.optimizer[0].nu_max
        return jax.tree.map(lambda nu: jnp.sqrt(nu + eps_root) + eps, nu_max)

    return projected(optimizer, projection, metric)


def _add(leaf: Any, update: Any) -> Any:
    return leaf + update.astype(leaf.dtype) if core.is_floating(leaf) else leaf


def _towards(leaf: Any, inside: Any, update: Any) -> Any:
    """Return the update from `leaf` to `inside`, rounded so as not to overshoot."""
    if not core.is_floating(leaf):
        return update
    wide = core.wide(leaf.dtype)
    sign = jnp.sign(inside.astype(wide) - leaf.astype(wide))
    return projections.towards(leaf, inside, sign)


_HINT = "Pass a projection, e.g. `radazo.projections.box(-1.0, 1.0)`."
validation.declare(validation.function, "projection", hint=_HINT)
