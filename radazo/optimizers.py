"""The complete optimizers: an estimator, a rule, weight decay and a learning rate.

Each is `with_estimator(estimator, optax.chain(rule, decay, learning rate), key)`. What
optax has is taken from optax: they differ in the one link named `rule`.
"""

from typing import Any

import jax
import optax

from radazo import base, checks, estimators, forms, leaves, moments


def radazo(
    learning_rate: base.Schedule | float,
    estimator: base.Estimator | None = None,
    *,
    key: base.Key,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Refined adaptive zeroth-order optimization, R-AdaZO.

    At an equal learning rate a step is about √((1 + b1) / (1 − b1)) times (4.36 times
    at b1 = 0.9) that of `zo_adamm` where estimates are mostly noise: divide a learning
    rate that was tuned for `zo_adamm` by it. The first steps move each parameter by up
    to learning_rate / √(1 − b2), ten times the learning rate; warm it up if need be.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · mu²
      update = − learning_rate · (mu / (√(nu + eps_root) + eps) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b1, b2, eps, eps_root, mu_dtype: As in `scale_by_radazo`.
      weight_decay: Share of the parameters taken off per unit of learning rate, at
        least 0, beside the rule (decoupled).
      weight_decay_mask: Which leaves decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; two copies of the parameters.
    Example:
      >>> optimizer = radazo(0.03, key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     value_fn = lambda x: jnp.sum(x**2)
      ...     updates, state = optimizer.update(None, state, params, value_fn=value_fn)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(100):
      ...     params, state = step(params, state)
      >>> print(bool(jnp.sum(params**2) < 0.25), state.num_values)
      True 1100
    References:
      Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, algorithm 2.
    """
    where = "radazo"
    checks.moments(where, b1, b2, eps, eps_root, mu_dtype)
    return _optimizer(
        where,
        estimator,
        moments.scale_by_radazo(b1, b2, eps, eps_root, mu_dtype),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_adamm(
    learning_rate: base.Schedule | float,
    estimator: base.Estimator | None = None,
    *,
    key: base.Key,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order adaptive momentum, ZO-AdaMM: Adam without corrections.

    Plain as in the R-AdaZO paper; `amsgrad=True` is the rule as its authors published
    it in 2019. Theirs goes with a learning rate that falls as 1/√t, and with a
    projection: `projected_zo_adamm`.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      update = − learning_rate · (mu / (√(nu + eps_root) + eps) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b1, b2, eps, eps_root, mu_dtype, amsgrad: As in `scale_by_zo_adamm`.
      weight_decay: Share of the parameters taken off per unit of learning rate, at
        least 0, beside the rule (decoupled).
      weight_decay_mask: Which leaves decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; two copies of the parameters, three
      with `amsgrad`.
    Example:
      >>> optimizer = zo_adamm(0.01, key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(updates, 3))  # learning_rate · (1 − b1) / √(1 − b2)
      [-0.01  0.01]
    References:
      Chen et al., ZO-AdaMM: zeroth-order adaptive momentum method for black-box
      optimization, 2019. arXiv:1910.06513.
    """
    where = "zo_adamm"
    checks.moments(where, b1, b2, eps, eps_root, mu_dtype)
    return _optimizer(
        where,
        estimator,
        moments.scale_by_zo_adamm(b1, b2, eps, eps_root, mu_dtype, amsgrad=amsgrad),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_rmsprop(
    learning_rate: base.Schedule | float,
    estimator: base.Estimator | None = None,
    *,
    key: base.Key,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order RMSProp: the gradient over the root of its mean square.

    `zo_adamm` with b1 = 0.

      nu ← b2 · nu + (1 − b2) · g²
      update = − learning_rate · (g / (√(nu + eps_root) + eps) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b2, eps, eps_root: As in `scale_by_second_moment`.
      weight_decay: Share of the parameters taken off per unit of learning rate, at
        least 0, beside the rule (decoupled).
      weight_decay_mask: Which leaves decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; one copy of the parameters.
    Example:
      >>> optimizer = zo_rmsprop(0.01, key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(updates, 3))  # learning_rate / √(1 − b2)
      [-0.1  0.1]
    References:
      Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, section 6.
    """
    where = "zo_rmsprop"
    checks.moments(where, 0.0, b2, eps, eps_root)
    return _optimizer(
        where,
        estimator,
        moments.scale_by_second_moment(b2, eps, eps_root),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_sgd(
    learning_rate: base.Schedule | float,
    estimator: base.Estimator | None = None,
    *,
    key: base.Key,
    momentum: float | None = None,
    mu_dtype: Any = None,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order gradient descent, with or without momentum.

    Tuned, it is a hard baseline to beat. Its learning rate has the unit of x² / f and
    falls as 1/d where that of the adaptive rules stays.

      mu ← momentum · mu + g                                    with momentum, else g
      update = − learning_rate · (mu + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      momentum: Decay rate in [0, 1), or None for none.
      mu_dtype: Type in which mu is kept; None is that of the parameters.
      weight_decay: Share of the parameters taken off per unit of learning rate, at
        least 0, beside the rule (decoupled).
      weight_decay_mask: Which leaves decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; no copy of the parameters, one with
      `momentum`.
    Example:
      >>> optimizer = zo_sgd(0.1, radazo.orthogonal_estimator(num_directions=2), key=0)
      >>> params = jnp.zeros(2)
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: x[0] - 2 * x[1]
      ... )
      >>> print(jnp.round(updates, 3))
      [-0.1  0.2]
    References:
      Ghadimi and Lan, Stochastic first- and zeroth-order methods for nonconvex
      stochastic programming, 2013. arXiv:1309.5549.
    """
    return _optimizer(
        "zo_sgd",
        estimator,
        _momentum("zo_sgd", momentum, mu_dtype),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_signsgd(
    learning_rate: base.Schedule | float,
    estimator: base.Estimator | None = None,
    *,
    key: base.Key,
    weight_decay: float = 0.0,
    weight_decay_mask: base.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order signSGD: every parameter moves by the learning rate.

      update = − learning_rate · (sign(g) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      weight_decay: Share of the parameters taken off per unit of learning rate, at
        least 0, beside the rule (decoupled).
      weight_decay_mask: Which leaves decay: a pytree of bools or a function of params.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; no copy of the parameters.
    Example:
      >>> optimizer = zo_signsgd(0.1, key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(updates, 3))
      [-0.1  0.1]
    References:
      Liu et al., signSGD via zeroth-order oracle, 2019.
    """
    return _optimizer(
        "zo_signsgd",
        estimator,
        optax.scale_by_sign(),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def _momentum(where: str, momentum: Any, mu_dtype: Any) -> optax.GradientTransformation:
    if momentum is None:
        return optax.identity()
    checks.decay(where, "momentum", momentum)
    checks.floating(where, "mu_dtype", mu_dtype)
    return optax.trace(momentum, accumulator_dtype=mu_dtype)


def _optimizer(
    where: str,
    estimator: base.Estimator | None,
    rule: optax.GradientTransformation,
    key: base.Key,
    learning_rate: base.Schedule | float,
    weight_decay: float,
    weight_decay_mask: base.Mask,
) -> optax.GradientTransformationExtraArgs:
    checks.non_negative(
        where,
        "learning_rate",
        learning_rate,
        "It is the size of a step or a schedule of it; to maximize, negate `value_fn`.",
        schedule=True,
    )
    checks.non_negative(
        where, "weight_decay", weight_decay, "It pulls the parameters towards 0."
    )
    if weight_decay_mask is not None and not callable(weight_decay_mask):
        for choice in jax.tree.leaves(weight_decay_mask):
            way_out = (
                "It says which leaves decay: bools, or a function of the parameters."
            )
            checks.instance(where, "weight_decay_mask", choice, bool, way_out)
    if estimator is None:
        estimator = estimators.sphere_estimator()
    decay = optax.identity()
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        decay = optax.masked(
            optax.add_decayed_weights(weight_decay),
            lambda params: _decaying(weight_decay_mask, params),
        )
    optimizer = optax.chain(rule, decay, optax.scale_by_learning_rate(learning_rate))
    return forms.attached(where, estimator, optimizer, key)


def _decaying(mask: base.Mask, params: base.Params) -> Any:
    """Which leaves decay: those chosen, if they are floating point."""

    a_function = callable(mask) and not leaves.is_tree_like(mask, params)
    chosen = mask(params) if a_function else mask
    return jax.tree.map(
        lambda choice, part: jax.tree.map(
            lambda leaf: choice and base.is_floating(leaf), part
        ),
        True if chosen is None else chosen,
        params,
    )
