"""Update rules made of moments, as links that follow a gradient.

They differ by what is averaged and what is squared:

  first_moment                   mu ← b1 · mu + (1 − b1) · g
  scale_by_second_moment         nu ← b2 · nu + (1 − b2) · g²       g / √nu: RMSProp
  scale_by_zo_adamm              both of g                          mu / √nu
  scale_by_radazo                nu of mu instead of g              mu / √nu

so that R-AdaZO is `chain(first_moment(b1), scale_by_second_moment(b2))`. Whether each
element has a nu of its own is the `granularity` of all three. No moment is
corrected for its start at zero: the correction would undo the averaging in the first
steps, where a single estimate is mostly noise. The first steps are therefore long, up
to 1 / √(1 − b2) per parameter; warm the learning rate up if that matters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.optimizers import second_moments


class ScaleBySecondMomentState(NamedTuple):
    """State of `scale_by_second_moment`.

    Attributes:
      nu: As the granularity has it, in float32 at least: mean square of what came in.
    """

    nu: Any


class ScaleByRadazoState(NamedTuple):
    """State of `scale_by_radazo`.

    Attributes:
      count: int32 scalar, steps so far.
      mu: Like the parameters: mean of the gradients.
      nu: As the granularity has it, in float32 at least: mean square of `mu`.
    """

    count: jax.Array
    mu: core.Params
    nu: Any


class ScaleByZoAdammState(NamedTuple):
    """State of `scale_by_zo_adamm`.

    Attributes:
      count: int32 scalar, steps so far.
      mu: Like the parameters: mean of the gradients.
      nu: As the granularity has it, in float32 at least: mean square of the gradients.
      nu_max: The largest `nu` so far if `amsgrad`, else None, which holds nothing.
    """

    count: jax.Array
    mu: core.Params
    nu: Any
    nu_max: Any


def first_moment(b1: float = 0.9, mu_dtype: Any = None) -> optax.GradientTransformation:
    """Replace the gradient by its exponential moving average, not corrected.

      mu ← b1 · mu + (1 − b1) · g
      update = mu

    On noise of variance s² around a fixed gradient the variance of mu is
    (1 − b1) / (1 + b1) · (1 − b1²ᵗ) · s² after t steps.

    Args:
      b1: Decay rate in [0, 1); larger averages longer.
      mu_dtype: Type of mu; None keeps that of the parameters.
    Returns:
      `optax.ema(b1, debias=False)`.
    Raises:
      TypeError, ValueError: If `b1` is not a number in [0, 1).
    Cost:
      No function values; one copy of the parameters.
    Example:
      >>> link = first_moment(b1=0.75)
      >>> updates, state = link.update(jnp.ones(2), link.init(jnp.ones(2)))
      >>> print(updates)
      [0.25 0.25]
    References:
      Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, equation 4.
    """
    validation.decay("first_moment", "b1", b1)
    validation.floating("first_moment", "mu_dtype", mu_dtype)
    return optax.ema(b1, debias=False, accumulator_dtype=mu_dtype)


def scale_by_second_moment(
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    *,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """Divide what comes in by the root of its mean square.

    Behind `first_moment` what comes in is the momentum, and this is R-AdaZO's refined
    second moment; behind a gradient it is that of RMSProp.

      nu ← b2 · nu + (1 − b2) · g²
      update = g / (√(nu + eps_root) + eps)

    `optax.scale_by_rms` has either constant; here nu is float32 for half-precision
    parameters, where 1e-8 would be zero.

    Args:
      b2: Decay rate in [0, 1); larger averages longer.
      eps: Constant beside the root, at least 0: the form of the authors' code.
      eps_root: Constant inside the root, at least 0: the form of the paper (ζ).
      granularity: Which elements share a second moment: `per_coordinate`, `factored`,
        `per_leaf` or `scalar`. Those that share get the mean of their squares, and
        with it one step size.
    Returns:
      A `GradientTransformation` with a `ScaleBySecondMomentState`.
    Raises:
      TypeError, ValueError: If an argument is not a number in its range.
    Cost:
      No function values; one copy of the parameters, in float32 at least. Next to
      nothing if `factored`: rows and columns; a number a leaf `per_leaf`, one `scalar`.
    Example:
      >>> link = scale_by_second_moment(b2=0.99)
      >>> g = jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 3))  # whatever the gradient: 1 / √(1 − 0.99)
      [ 10. -10.]
    References:
      Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, equations 5 and 6.
    """
    validation.moments("scale_by_second_moment", 0.0, b2, eps, eps_root)
    second_moments.check("scale_by_second_moment", granularity)

    def init(params: core.Params) -> Any:
        return ScaleBySecondMomentState(granularity.zeros(params))

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        nu = _mean_square(updates, state.nu, b2, granularity)
        each = granularity.each(nu, updates)
        scaled = _ratio(updates, each, eps, eps_root, updates)
        return scaled, ScaleBySecondMomentState(nu)

    return optax.GradientTransformation(init, update)


def scale_by_radazo(
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    *,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """R-AdaZO's rule: momentum over the root of the momentum's own mean square.

    Differs from `scale_by_zo_adamm` in one place: the second moment is that of the
    momentum and not of the gradient, so that the noise of a single estimate does not
    shorten the step. A step is never longer than 1 / √(1 − b2) per parameter.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · mu²
      update = mu / (√(nu + eps_root) + eps)

    Args:
      b1: Decay rate of the first moment, in [0, 1); larger averages longer.
      b2: Decay rate of the second moment, in [0, 1).
      eps: Constant beside the root, at least 0: the form of the authors' code.
      eps_root: Constant inside the root, at least 0: the form of the paper (ζ).
      mu_dtype: Type in which mu is kept; None is that of the parameters, in float32 at
        least. The arithmetic is in float32 at least.
      granularity: As in `scale_by_second_moment`.
    Returns:
      A `GradientTransformation` with a `ScaleByRadazoState`.
    Raises:
      TypeError, ValueError: If an argument is not a number in its range.
    Cost:
      No function values; two copies of the parameters, in float32 at least; one if the
      granularity is not `per_coordinate`.
    Example:
      >>> link = scale_by_radazo(b2=0.99)
      >>> g = jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 2))  # whatever the gradient: 1 / √(1 − 0.99)
      [ 10. -10.]
    References:
      Shu et al., Refining adaptive zeroth-order optimization at ease, 2025.
      arXiv:2502.01014, equations 4, 6, 7 and algorithm 2.
    """
    validation.moments("scale_by_radazo", b1, b2, eps, eps_root, mu_dtype)
    second_moments.check("scale_by_radazo", granularity)

    def init(params: core.Params) -> Any:
        count, mu = jnp.zeros((), jnp.int32), _zeros(params, mu_dtype)
        return ScaleByRadazoState(count, mu, granularity.zeros(params))

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = _mean(updates, state.mu, b1)
        moved = jax.tree.map(lambda g, m: m if core.is_floating(g) else g, updates, mu)
        nu = _mean_square(moved, state.nu, b2, granularity)
        scaled = _ratio(mu, granularity.each(nu, moved), eps, eps_root, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return scaled, ScaleByRadazoState(count, _like(mu, state.mu), nu)

    return optax.GradientTransformation(init, update)


def scale_by_zo_adamm(
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 0.0,
    eps_root: float = 1e-8,
    mu_dtype: Any = None,
    *,
    amsgrad: bool = False,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """ZO-AdaMM's rule: momentum over the root of the gradient's mean square.

    As in algorithm 1 of the R-AdaZO paper: Adam without its corrections. With
    `amsgrad`, as its authors published it in 2019: the largest second moment so far.

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      nu_max ← max(nu_max, nu)                           with amsgrad, else nu
      update = mu / (√(nu_max + eps_root) + eps)

    Args:
      b1: Decay rate of the first moment, in [0, 1); larger averages longer.
      b2: Decay rate of the second moment, in [0, 1).
      eps: Constant beside the root, at least 0.
      eps_root: Constant inside the root, at least 0.
      mu_dtype: Type in which mu is kept; None is that of the parameters, in float32 at
        least. The arithmetic is in float32 at least.
      amsgrad: Whether the second moment never falls; if `factored`, its rows and its
        columns, each for itself.
      granularity: As in `scale_by_second_moment`.
    Returns:
      A `GradientTransformation` with a `ScaleByZoAdammState`.
    Raises:
      TypeError, ValueError: If an argument is not a number in its range.
    Cost:
      No function values; two copies of the parameters, three with `amsgrad`, in
      float32 at least; one if the granularity is not `per_coordinate`.
    Example:
      >>> link = scale_by_zo_adamm(b1=0.9, b2=0.99)
      >>> g = jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 3))  # (1 − b1) / √(1 − b2)
      [ 1. -1.]
    References:
      Chen et al., ZO-AdaMM: zeroth-order adaptive momentum method for black-box
      optimization, 2019. arXiv:1910.06513. Shu et al., Refining adaptive zeroth-order
      optimization at ease, 2025. arXiv:2502.01014, algorithm 1.
    """
    api_name = "scale_by_zo_adamm"
    validation.moments(api_name, b1, b2, eps, eps_root, mu_dtype)
    validation.instance(
        api_name, "amsgrad", amsgrad, bool, "True is the published rule of 2019."
    )
    second_moments.check(api_name, granularity)

    def init(params: core.Params) -> Any:
        return ScaleByZoAdammState(
            jnp.zeros((), jnp.int32),
            _zeros(params, mu_dtype),
            granularity.zeros(params),
            granularity.zeros(params) if amsgrad else None,
        )

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = _mean(updates, state.mu, b1)
        nu = _mean_square(updates, state.nu, b2, granularity)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else None
        each = granularity.each(nu_max if amsgrad else nu, updates)
        scaled = _ratio(mu, each, eps, eps_root, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return scaled, ScaleByZoAdammState(count, _like(mu, state.mu), nu, nu_max)

    return optax.GradientTransformation(init, update)


def _zeros(params: core.Params, dtype: Any) -> core.Params:
    """A first moment at its start; leaves that do not move have none but a place."""

    def zeros(leaf: Any) -> jax.Array:
        if not core.is_floating(leaf):
            return jnp.zeros((), jnp.float32)
        return jnp.zeros_like(leaf, dtype=dtype or core.wide(leaf.dtype))

    return jax.tree.map(zeros, params)


def _mean(updates: core.Params, moment: core.Params, decay: Any) -> core.Params:
    """decay · moment + (1 − decay) · updates, in float32 at least."""

    def mean(update: Any, old: jax.Array) -> jax.Array:
        if not core.is_floating(update):
            return old
        wide = core.wide(update.dtype, old.dtype)
        rate = _typed(decay, wide)
        return rate * old.astype(wide) + (1 - rate) * update.astype(wide)

    return jax.tree.map(mean, updates, moment)


def _mean_square(
    updates: core.Params,
    nu: Any,
    decay: Any,
    granularity: second_moments.Granularity,
) -> Any:
    """decay · nu + (1 − decay) · squares of the updates, like nu."""
    return _mean(granularity.squares(updates, nu), nu, decay)


def _ratio(
    numerator: core.Params,
    nu: core.Params,
    eps: Any,
    eps_root: Any,
    updates: core.Params,
) -> core.Params:
    """numerator / (√(nu + eps_root) + eps) in the types of `updates`; 0 / 0 is 0."""

    constants = (eps, eps_root)
    positive = any(isinstance(c, int | float) and c > 0 for c in constants)

    def ratio(top: Any, nu: jax.Array, update: Any) -> Any:
        if not core.is_floating(update):
            return update
        root = jnp.sqrt(nu + _typed(eps_root, nu.dtype)) + _typed(eps, nu.dtype)
        if not positive:
            root = jnp.where(root > 0, root, jnp.ones_like(root))
        return (top.astype(root.dtype) / root).astype(update.dtype)

    return jax.tree.map(ratio, numerator, nu, updates)


def _typed(constant: Any, dtype: Any) -> Any:
    """An injected hyperparameter in `dtype`; a Python number takes what it meets."""
    return constant.astype(dtype) if isinstance(constant, jax.Array) else constant


def _like(tree: core.Params, types: core.Params) -> core.Params:
    return jax.tree.map(lambda x, like: x.astype(like.dtype), tree, types)
