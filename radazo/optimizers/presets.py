"""Complete optimizers, which differ in the update rule alone.

with_estimator(estimator, optax.chain(rule, weight decay, learning rate), key)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from radazo import core, flat, validation
from radazo.estimators.finite_difference import sphere_estimator
from radazo.optimizers import combinators, second_moments, transforms


def optimizer(
    api_name: str,
    rule: Callable[..., optax.GradientTransformation],
    estimator: core.Estimator | None,
    key: core.Key,
    learning_rate: core.Schedule | float,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer with `rule(**options)`; error messages name `api_name`."""
    validation.check(api_name, learning_rate=learning_rate, weight_decay=weight_decay)
    validation.check(api_name, **options)
    if weight_decay_mask is not None and not callable(weight_decay_mask):
        hint = "It says which leaves decay: bools, or a function of the parameters."
        for choice in jax.tree.leaves(weight_decay_mask):
            validation.instance(api_name, "weight_decay_mask", choice, bool, hint)
    estimator = sphere_estimator() if estimator is None else estimator

    def decaying(params: core.Params) -> Any:
        mask = flat.resolve_mask(weight_decay_mask, params)
        chosen = jax.tree.broadcast(mask, params)
        return jax.tree.map(lambda on, x: on and core.is_floating(x), chosen, params)

    decay = optax.identity()
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.add_decayed_weights(weight_decay, decaying)
    rate = optax.scale_by_learning_rate(learning_rate)
    chain = optax.chain(rule(**options), decay, rate)
    return combinators.attach(api_name, estimator, chain, key)


def radazo(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = transforms.B1,
    b2: float = transforms.B2,
    eps: float = transforms.EPS,
    eps_root: float = transforms.EPS_ROOT,
    mu_dtype: Any = None,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by refined adaptive zeroth-order optimization (R-AdaZO).

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · mu²
      update = − learning_rate · (mu / (√(nu + eps_root) + eps) + weight_decay · x)

    Where estimates are mostly noise, its steps are √((1 + b1) / (1 − b1)) times as long
    as those of `zo_adamm`. The first is up to learning_rate / √(1 − b2).

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is that of the paper, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b1, b2, eps, eps_root, mu_dtype, granularity: As in `scale_by_radazo`.
      weight_decay: Decoupled weight decay per unit of learning rate, at least 0.
      weight_decay_mask: Leaves that decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, as that of `with_estimator`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
    Cost:
      K + 1 function values per step by default; the memory of `scale_by_radazo`.
    Example:
      >>> f, optimizer, x = lambda x: x @ x, radazo(0.03, key=0), jnp.ones(2)
      >>> state = optimizer.init(x)
      >>> update = jax.jit(lambda *inputs: optimizer.update(*inputs, value_fn=f))
      >>> for _ in range(100):
      ...     updates, state = update(None, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f(x) < 0.01, state.num_values)
      True 1100
    References:
      Shu et al., R-AdaZO, 2025. arXiv:2502.01014, algorithm 2.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    options: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    options |= {"mu_dtype": mu_dtype, "granularity": granularity}
    return optimizer("radazo", transforms.scale_by_radazo, *common, **options)


def zo_adamm(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = transforms.B1,
    b2: float = transforms.B2,
    eps: float = transforms.EPS,
    eps_root: float = transforms.EPS_ROOT,
    mu_dtype: Any = None,
    amsgrad: bool = False,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by zeroth-order Adam without bias correction (ZO-AdaMM).

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      update = − learning_rate · (mu / (√(nu + eps_root) + eps) + weight_decay · x)

    The published rule has `amsgrad=True`, a learning rate that falls as 1/√t and a
    projection (`projected_zo_adamm`).

    Args:
      learning_rate, estimator, key, weight_decay, weight_decay_mask: As in `radazo`.
      b1, b2, eps, eps_root, mu_dtype, amsgrad, granularity: As in `scale_by_zo_adamm`.
    Returns, Raises, Cost:
      As `radazo`, with the memory of `scale_by_zo_adamm`.
    Example:
      >>> f, x, optimizer = jnp.sum, jnp.ones(2), zo_adamm(0.01, key=0)
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(updates, 3))  # learning_rate · (1 − b1) / √(1 − b2)
      [-0.01 -0.01]
    References:
      Chen et al., ZO-AdaMM, 2019. arXiv:1910.06513.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    options: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    options |= {"mu_dtype": mu_dtype, "amsgrad": amsgrad, "granularity": granularity}
    return optimizer("zo_adamm", transforms.scale_by_zo_adamm, *common, **options)


def zo_rmsprop(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b2: float = transforms.B2,
    eps: float = transforms.EPS,
    eps_root: float = transforms.EPS_ROOT,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by zeroth-order RMSProp, which is `zo_adamm` with b1 = 0.

      nu ← b2 · nu + (1 − b2) · g²
      update = − learning_rate · (g / (√(nu + eps_root) + eps) + weight_decay · x)

    Args:
      learning_rate, estimator, key, weight_decay, weight_decay_mask: As in `radazo`.
      b2, eps, eps_root, granularity: As in `scale_by_second_moment`.
    Returns, Raises, Cost:
      As `radazo`, with the memory of `scale_by_second_moment`.
    Example:
      >>> f, x, optimizer = jnp.sum, jnp.ones(2), zo_rmsprop(0.01, key=0)
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(updates, 3))  # learning_rate / √(1 − b2)
      [-0.1 -0.1]
    References:
      Shu et al., R-AdaZO, 2025. arXiv:2502.01014, section 6.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    options = {"b2": b2, "eps": eps, "eps_root": eps_root, "granularity": granularity}
    rule = transforms.scale_by_second_moment
    return optimizer("zo_rmsprop", rule, *common, **options)


def meazo(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b2: float = transforms.B2,
    eps: float = transforms.EPS,
    eps_root: float = transforms.EPS_ROOT,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by memory-efficient adaptive zeroth-order optimization (MEAZO).

      nu ← b2 · nu + (1 − b2) · mean gᵢ²                           over all elements
      update = − learning_rate · (g / (√(nu + eps_root) + eps) + weight_decay · x)

    This is `zo_rmsprop` with `granularity=scalar`. The published rule corrects nu for
    its start at zero, and squares the mean slope, which is noisier if K > 1.

    Args:
      learning_rate: As in `radazo`; the root mean square of the move of an element.
      estimator, key, weight_decay, weight_decay_mask: As in `radazo`.
      b2, eps, eps_root: As in `scale_by_second_moment`.
    Returns, Raises, Cost:
      As `radazo`, without a copy of the parameters.
    Example:
      >>> optimizer = meazo(0.01, radazo.rademacher_estimator(num_directions=1), key=0)
      >>> f, x = lambda x: x[0], jnp.ones(2)
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(jnp.abs(updates), 3))  # learning_rate / √(1 − b2)
      [0.1 0.1]
    References:
      Dbouk et al., On adaptivity in zeroth-order optimization, 2026. arXiv:2605.03869.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    rule, scalar = transforms.scale_by_second_moment, second_moments.scalar
    options = {"b2": b2, "eps": eps, "eps_root": eps_root, "granularity": scalar}
    return optimizer("meazo", rule, *common, **options)


def zo_sgd(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    momentum: float | None = None,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by zeroth-order stochastic gradient descent, with optional momentum.

      mu ← momentum · mu + g                                    with momentum, else g
      update = − learning_rate · (mu + weight_decay · x)

    Its learning rate has the unit of x² / f and must fall as 1/d.

    Args:
      learning_rate, estimator, key, weight_decay, weight_decay_mask: As in `radazo`.
      momentum: Decay rate in [0, 1), or None for no momentum.
      mu_dtype: Type of mu; None keeps the types of the parameters.
    Returns, Raises, Cost:
      As `radazo`, with one copy of the parameters, or none without `momentum`.
    Example:
      >>> optimizer = zo_sgd(0.1, radazo.orthogonal_estimator(num_directions=2), key=0)
      >>> f, x = lambda x: x[0] - 2 * x[1], jnp.zeros(2)
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(updates, 3))
      [-0.1  0.2]
    References:
      Ghadimi and Lan, 2013. arXiv:1309.5549.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    rule = optax.identity
    if momentum is not None:
        validation.check("zo_sgd", momentum=momentum, mu_dtype=mu_dtype)
        rule = partial(optax.trace, momentum, accumulator_dtype=mu_dtype)
    return optimizer("zo_sgd", rule, *common)


def zo_signsgd(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimize by zeroth-order signSGD: parameters move by ± the learning rate.

      update = − learning_rate · (sign(g) + weight_decay · x)

    With `majority_vote_estimator()` it is ZO-M-signSGD, in which directions vote on the
    sign; with `sphere_estimator(difference=radazo.central)` the antithetic variant.

    Args:
      learning_rate, estimator, key, weight_decay, weight_decay_mask: As in `radazo`.
    Returns, Raises, Cost:
      As `radazo`, without a copy of the parameters.
    Example:
      >>> f, x, optimizer = jnp.sum, jnp.ones(2), zo_signsgd(0.1, key=0)
      >>> updates, _ = optimizer.update(None, optimizer.init(x), x, value_fn=f)
      >>> print(jnp.round(updates, 3))
      [-0.1 -0.1]
    References:
      Liu et al., signSGD via zeroth-order oracle, 2019.
    """
    common = estimator, key, learning_rate, weight_decay, weight_decay_mask
    return optimizer("zo_signsgd", optax.scale_by_sign, *common)


_RATE = "It is the size of a step or a schedule of it; to maximize, negate `value_fn`."
_DECAY = "It pulls the parameters towards 0."
validation.declare(validation.non_negative, "learning_rate", hint=_RATE, schedule=True)
validation.declare(validation.non_negative, "weight_decay", hint=_DECAY)
