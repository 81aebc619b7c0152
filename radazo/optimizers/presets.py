"""The complete optimizers: an estimator, a rule, weight decay and a learning rate.

Each is `with_estimator(estimator, optax.chain(rule, decay, learning rate), key)`. What
optax has is taken from optax: they differ in the one link named `rule`.
"""

from typing import Any

import optax

from radazo import core, validation
from radazo.optimizers import assembly, second_moments, transforms


def radazo(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
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
      b1, b2, eps, eps_root, mu_dtype, granularity: As in `scale_by_radazo`.
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
      K + 1 function values per step by default; two copies of the parameters, one if
      the granularity is not `per_coordinate`.
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
    api_name = "radazo"
    validation.moments(api_name, b1, b2, eps, eps_root, mu_dtype)
    second_moments.check(api_name, granularity)
    return assembly.optimizer(
        api_name,
        estimator,
        transforms.scale_by_radazo(
            b1, b2, eps, eps_root, mu_dtype, granularity=granularity
        ),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_adamm(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    amsgrad: bool = False,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
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
      b1, b2, eps, eps_root, mu_dtype, amsgrad, granularity: As in
        `scale_by_zo_adamm`.
      weight_decay, weight_decay_mask: As in `radazo`.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; two copies of the parameters, three
      with `amsgrad`; one if the granularity is not `per_coordinate`.
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
    api_name = "zo_adamm"
    validation.moments(api_name, b1, b2, eps, eps_root, mu_dtype)
    second_moments.check(api_name, granularity)
    return assembly.optimizer(
        api_name,
        estimator,
        transforms.scale_by_zo_adamm(
            b1, b2, eps, eps_root, mu_dtype, amsgrad=amsgrad, granularity=granularity
        ),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_rmsprop(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order RMSProp: the gradient over the root of its mean square.

    `zo_adamm` with b1 = 0.

      nu ← b2 · nu + (1 − b2) · g²
      update = − learning_rate · (g / (√(nu + eps_root) + eps) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b2, eps, eps_root, granularity: As in `scale_by_second_moment`.
      weight_decay, weight_decay_mask: As in `radazo`.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; one copy of the parameters,
      none if the granularity is not `per_coordinate`.
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
    api_name = "zo_rmsprop"
    validation.moments(api_name, 0.0, b2, eps, eps_root)
    second_moments.check(api_name, granularity)
    return assembly.optimizer(
        api_name,
        estimator,
        transforms.scale_by_second_moment(b2, eps, eps_root, granularity=granularity),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def meazo(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Memory-efficient adaptive zeroth-order optimization, MEAZO: one step size.

    `zo_sgd` whose steps do not depend on the size of the function: `zo_rmsprop` with
    one second moment for all elements. The elements of an estimate in high dimension
    have one size, that of its noise, so that one is said to be enough.

      nu ← b2 · nu + (1 − b2) · mean gᵢ²                             over all elements
      update = − learning_rate · (g / (√(nu + eps_root) + eps) + weight_decay · x)

    As published it squares the mean of the slopes, which for one Rademacher direction
    is the same, and for K of them or of Gaussian ones has the same mean if d is large,
    with more noise; and it corrects nu for its start at zero, as no rule does here.
    With R-AdaZO's nu, that of the momentum, it is `radazo(..., granularity=scalar)`.

    Args:
      learning_rate: Step size, at least 0, or a schedule: the root mean square of the
        move of an element.
      estimator: An `Estimator`; None is `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      b2, eps, eps_root: As in `scale_by_second_moment`.
      weight_decay, weight_decay_mask: As in `radazo`.
    Returns:
      A `GradientTransformationExtraArgs`, used as
      `optimizer.update(None, state, params, value_fn=f)`; its state is a
      `WithEstimatorState`.
    Raises:
      TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    Cost:
      K + 1 function values per step by default; no copy of the parameters.
    Example:
      >>> optimizer = meazo(0.01, radazo.rademacher_estimator(num_directions=1), key=0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, state = optimizer.update(
      ...     None, optimizer.init(params), params, value_fn=lambda x: jnp.sum(x**2)
      ... )
      >>> print(jnp.round(jnp.abs(updates), 3))  # learning_rate / √(1 − b2)
      [0.1 0.1]
    References:
      Dbouk et al., On adaptivity in zeroth-order optimization, 2026. arXiv:2605.03869.
    """
    api_name = "meazo"
    validation.moments(api_name, 0.0, b2, eps, eps_root)
    return assembly.optimizer(
        api_name,
        estimator,
        transforms.scale_by_second_moment(
            b2, eps, eps_root, granularity=second_moments.scalar
        ),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


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
      weight_decay, weight_decay_mask: As in `radazo`.
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
    return assembly.optimizer(
        "zo_sgd",
        estimator,
        _momentum("zo_sgd", momentum, mu_dtype),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def zo_signsgd(
    learning_rate: core.Schedule | float,
    estimator: core.Estimator | None = None,
    *,
    key: core.Key,
    weight_decay: float = 0.0,
    weight_decay_mask: core.Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Zeroth-order signSGD: every parameter moves by the learning rate.

    The sign is that of the mean over all K directions and over the batch that
    `value_fn` takes the mean of (batch-sign). With `majority_vote_estimator()` it is
    the sign that most directions vote for, ZO-M-signSGD, and with
    `sphere_estimator(difference=radazo.central)` that of the antithetic estimate.

      update = − learning_rate · (sign(g) + weight_decay · x)

    Args:
      learning_rate: Step size, at least 0, or a schedule.
      estimator: An `Estimator`; None is the paper's, `sphere_estimator()`.
      key: Typed key or integer seed of the run.
      weight_decay, weight_decay_mask: As in `radazo`.
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
    return assembly.optimizer(
        "zo_signsgd",
        estimator,
        optax.scale_by_sign(),
        key,
        learning_rate,
        weight_decay,
        weight_decay_mask,
    )


def _momentum(
    api_name: str, momentum: Any, mu_dtype: Any
) -> optax.GradientTransformation:
    if momentum is None:
        return optax.identity()
    validation.decay(api_name, "momentum", momentum)
    validation.floating(api_name, "mu_dtype", mu_dtype)
    return optax.trace(momentum, accumulator_dtype=mu_dtype)
