"""Optimizers whose parameters stay in a set.

A projected step is any step, and then the nearest point of the set. It is a wrapper
around a whole optimizer, so that momentum and moments see what they always see. Only
the parameters stay inside: an estimator evaluates at x + smoothing · u, which may lie
outside by that much. Where a function has no values there, project within it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from radazo import core, projections, validation
from radazo.optimizers import assembly, combinators, transforms

# metric(state) -> weights like the parameters
Metric = Callable[[Any], core.Params]


def projected(
    optimizer: optax.GradientTransformation,
    projection: projections.Projection,
    metric: Metric | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Let every step of an optimizer end in a set.

      updates ← optimizer.update(updates, state, x, ...)
      updates ← project(x + updates) − x

    Put it around all that changes the updates, the learning rate included. The moments
    within, R-AdaZO's among them, are of gradients that know of no set. Around an
    optimizer with an estimator in it or within `with_estimator`, the steps are the
    same. Start inside the set, from `projection(params)`: then every step stays in a
    box exactly, and in other sets up to the last place of x + updates.

    Args:
      optimizer: Any `optax.GradientTransformation`.
      projection: `box`, `l2_ball`, `l1_ball` or `simplex` with its size, or a function
        `project(params)` of your own, as those of `optax.projections`.
      metric: None for the nearest point in the Euclidean sense, or a function from the
        optimizer's new state to weights like the parameters: then the projection is
        called as `projection(params, weights)`.
    Returns:
      A `GradientTransformationExtraArgs`, whose state is that of `optimizer` and whose
      keywords, as `value_fn=`, go to `optimizer`.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: In `update`, if `params` is missing.
    Cost:
      No function values; one copy of the parameters, and those of the projection, while
      it runs; no state.
    Example:
      >>> box = radazo.projections.box(-1.0, 1.0)
      >>> optimizer = projected(radazo.radazo(0.1, key=0), box)
      >>> params = jnp.array([0.5, -0.95])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: x[1] - x[0]
      ... )
      >>> print(optax.apply_updates(params, updates))
      [ 1. -1.]
    References:
      Liu et al., Zeroth-order online alternating direction method of multipliers:
      convergence analysis and applications, 2018.
    """
    api_name = "projected"
    hint = "Pass `optax.sgd(0.1)`, say, or `radazo.radazo(0.1, key=0)`."
    validation.transformation(api_name, optimizer, hint)
    _check_projection(api_name, projection)
    if metric is not None:
        hint = "It takes the optimizer's state; for fixed weights, ignore that."
        validation.function(api_name, "metric", metric, hint)
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: Any, state: Any, params: core.Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        validation.current_params(
            f"{api_name}(...).update",
            params,
            "Where a step ends is what is projected: call "
            "`optimizer.update(updates, state, params)`.",
        )
        updates, state = inner.update(updates, state, params, **extra)
        moved = jax.tree.map(_moved, params, updates)
        if metric is None:
            inside = projection(moved)
        else:
            inside = projection(moved, metric(state))
        return jax.tree.map(_towards, params, inside, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def zo_psgd(
    learning_rate: core.Schedule | float,
    projection: projections.Projection,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order projected (stochastic) gradient descent, ZO-PSGD or ZO-SPGD.

    `zo_sgd` in a set. Its authors take directions of bounded length, as the default's,
    `smoothing` near 1 / √(d T) for T steps, and the mean over a batch: pass that as a
    keyword of `value_fn`, and all points of a step are compared on the same batch.

      update = project(x − learning_rate · g) − x

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      projection: As in `projected`.
      estimator: An `Estimator`; None is `sphere_estimator()`.
      key: Typed key or integer seed of the run.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; no copy of the parameters in the state,
      and one more than `zo_sgd` while a step runs.
    Example:
      >>> optimizer = zo_psgd(0.5, radazo.projections.simplex(), key=0)
      >>> params = jnp.array([0.5, 0.5])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: 9 * x[0]
      ... )
      >>> print(jnp.abs(params + updates))  # all on the second
      [0. 1.]
    References:
      Liu et al., Zeroth-order online alternating direction method of multipliers:
      convergence analysis and applications, 2018.
    """
    api_name = "zo_psgd"
    _check_projection(api_name, projection)
    rule = optax.identity()
    optimizer = assembly.optimizer(api_name, estimator, rule, key, learning_rate)
    return projected(optimizer, projection)


def projected_zo_adamm(
    learning_rate: core.Schedule | float,
    projection: projections.Projection,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """ZO-AdaMM as its authors published it: projected in the metric of its own steps.

    A parameter whose steps are short, since its second moment is large, is one that
    the projection moves little. Euclidean projection may not converge here; in a box
    the two are the same. Theirs goes with a learning rate that falls as 1/√t.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      nu_max ← max(nu_max, nu)
      h = √(nu_max + eps_root) + eps
      update = project(x − learning_rate · mu / h, metric h) − x

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      projection: As in `projected`, a function of two arguments.
      estimator: An `Estimator`; None is `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b1, b2, eps, eps_root, mu_dtype: As in `scale_by_zo_adamm`.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; three copies of the parameters in the
      state, and those of the projection while a step runs.
    Example:
      >>> optimizer = projected_zo_adamm(0.5, radazo.projections.l2_ball(1.0), key=0)
      >>> params = jnp.array([0.6, 0.8])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: -9 * x[1]
      ... )
      >>> print(bool(optax.tree.norm(params + updates) <= 1))
      True
    References:
      Chen et al., ZO-AdaMM: zeroth-order adaptive momentum method for black-box
      optimization, 2019. arXiv:1910.06513, algorithm 1.
    """
    api_name = "projected_zo_adamm"
    _check_projection(api_name, projection)
    validation.moments(api_name, b1, b2, eps, eps_root, mu_dtype)
    rule = transforms.scale_by_zo_adamm(b1, b2, eps, eps_root, mu_dtype, amsgrad=True)
    optimizer = assembly.optimizer(api_name, estimator, rule, key, learning_rate)

    def metric(state: combinators.WithEstimatorState) -> core.Params:
        nu_max = state.optimizer[0].nu_max
        return jax.tree.map(lambda nu: jnp.sqrt(nu + eps_root) + eps, nu_max)

    return projected(optimizer, projection, metric)


def _check_projection(api_name: str, projection: Any) -> None:
    hint = "Pass a projection, e.g. `radazo.projections.box(-1.0, 1.0)`."
    validation.function(api_name, "projection", projection, hint)


def _moved(leaf: Any, change: Any) -> Any:
    return leaf + change.astype(leaf.dtype) if core.is_floating(leaf) else leaf


def _towards(leaf: Any, inside: Any, change: Any) -> Any:
    """The update that takes `leaf` to `inside`, and by no rounding beyond it."""
    if not core.is_floating(leaf):
        return change
    wide, form = core.wide(leaf.dtype), jnp.finfo(leaf.dtype)

    def rounded(x: jax.Array) -> jax.Array:
        return lax.reduce_precision(x, form.nexp, form.nmant)

    start, end = leaf.astype(wide), inside.astype(wide)
    step = rounded(end - start)
    beyond = (rounded(start + step) - end) * jnp.sign(end - start) > 0
    step = step.astype(leaf.dtype)
    return jnp.where(beyond, jnp.nextafter(step, jnp.zeros_like(step)), step)
