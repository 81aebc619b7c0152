"""Update rules made of moments, as `optax` transformations of a gradient.

No moment is corrected for its start at zero: in the first steps, which are mostly
noise, that would undo the averaging.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.optimizers import second_moments

# Defaults of all rules: the decay rates and the ζ of the R-AdaZO paper.
B1, B2, EPS, EPS_ROOT = 0.9, 0.99, 0.0, 1e-8


class ScaleBySecondMomentState(NamedTuple):
    """State of `scale_by_second_moment`.

    Attributes:
      nu: Mean square of the input, at least float32, in the form of the granularity.
    """

    nu: Any


class ScaleByRadazoState(NamedTuple):
    """State of `scale_by_radazo`.

    Attributes:
      count: int32 scalar, number of steps.
      mu, nu: Mean of the gradients, like the parameters, and mean square of `mu`.
    """

    count: jax.Array
    mu: core.Params
    nu: Any


class ScaleByZoAdammState(NamedTuple):
    """State of `scale_by_zo_adamm`.

    Attributes:
      count, mu, nu: As in `ScaleByRadazoState`, but nu of the gradients.
      nu_max: Largest `nu` so far if `amsgrad`, else None.
    """

    count: jax.Array
    mu: core.Params
    nu: Any
    nu_max: Any


def first_moment(b1: float = B1, mu_dtype: Any = None) -> optax.GradientTransformation:
    """Replace the gradient by its exponential moving average, without bias correction.

      mu ← b1 · mu + (1 − b1) · g
      update = mu

    Args:
      b1: Decay rate in [0, 1); larger values average over more steps.
      mu_dtype: Type of mu; None keeps the types of the parameters.
    Returns, Raises, Cost:
      `optax.ema(b1, debias=False)`; otherwise as `scale_by_radazo`, without nu.
    Example:
      >>> link = first_moment(b1=0.75)
      >>> updates, state = link.update(jnp.ones(2), link.init(jnp.ones(2)))
      >>> print(updates)
      [0.25 0.25]
    References:
      Shu et al., R-AdaZO, 2025. arXiv:2502.01014, equation 4.
    """
    validation.check("first_moment", b1=b1, mu_dtype=mu_dtype)
    return optax.ema(b1, debias=False, accumulator_dtype=mu_dtype)


def scale_by_second_moment(
    b2: float = B2,
    eps: float = EPS,
    eps_root: float = EPS_ROOT,
    *,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """Divide the input by the root of its mean square.

      nu ← b2 · nu + (1 − b2) · g²
      update = g / (√(nu + eps_root) + eps)

    After `first_moment` this is R-AdaZO; applied to the gradient it is RMSProp.

    Args:
      b2, eps, eps_root, granularity: As in `scale_by_radazo`.
    Returns, Raises, Cost:
      As `scale_by_radazo`, with a `ScaleBySecondMomentState` and without mu.
    Example:
      >>> link, g = scale_by_second_moment(b2=0.99), jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 3))  # 1 / √(1 − 0.99) for any gradient
      [ 10. -10.]
    References:
      Shu et al., R-AdaZO, 2025. arXiv:2502.01014, equations 5 and 6.
    """
    validation.check("scale_by_second_moment", b2=b2, eps=eps, eps_root=eps_root)
    validation.check("scale_by_second_moment", granularity=granularity)

    def init(params: core.Params) -> Any:
        return ScaleBySecondMomentState(granularity.zeros(params))

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        nu = _mean(granularity.squares(updates, state.nu), state.nu, b2)
        scaled = _ratio(updates, granularity.each(nu, updates), eps, eps_root, updates)
        return scaled, ScaleBySecondMomentState(nu)

    return optax.GradientTransformation(init, update)


def scale_by_radazo(
    b1: float = B1,
    b2: float = B2,
    eps: float = EPS,
    eps_root: float = EPS_ROOT,
    mu_dtype: Any = None,
    *,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """Divide the momentum by the root of its own mean square (R-AdaZO).

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · mu²
      update = mu / (√(nu + eps_root) + eps)

    Unlike in `scale_by_zo_adamm`, nu is the second moment of the momentum, so the noise
    of single estimates does not shorten steps. No element exceeds 1 / √(1 − b2).

    Args:
      b1, b2: Decay rates of mu and nu in [0, 1); larger values average over more steps.
      eps: Constant added to the root, at least 0, as in the code of the authors.
      eps_root: Constant added inside the root, at least 0, as in the paper (ζ).
      mu_dtype: Type of mu; None keeps the types of the parameters, but at least
        float32. The arithmetic is at least float32.
      granularity: Elements that share nu, e.g. `per_coordinate`, `factored`, `scalar`.
    Returns:
      A `GradientTransformation` with a `ScaleByRadazoState`.
    Raises:
      TypeError, ValueError: If an argument has the wrong type or is out of range.
    Cost:
      No function values; float32 copies of the parameters: mu, nu if `per_coordinate`.
    Example:
      >>> link, g = scale_by_radazo(b2=0.99), jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 2))  # 1 / √(1 − 0.99) for any gradient
      [ 10. -10.]
    References:
      Shu et al., R-AdaZO, 2025. arXiv:2502.01014, equations 4, 6, 7 and algorithm 2.
    """
    validation.check("scale_by_radazo", b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    validation.check("scale_by_radazo", mu_dtype=mu_dtype, granularity=granularity)

    def init(params: core.Params) -> Any:
        count, mu = jnp.zeros((), jnp.int32), _zeros(params, mu_dtype)
        return ScaleByRadazoState(count, mu, granularity.zeros(params))

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = _mean(updates, state.mu, b1)
        moment = jax.tree.map(lambda g, m: m if core.is_floating(g) else g, updates, mu)
        nu = _mean(granularity.squares(moment, state.nu), state.nu, b2)
        scaled = _ratio(mu, granularity.each(nu, moment), eps, eps_root, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return scaled, ScaleByRadazoState(count, optax.tree.cast_like(mu, state.mu), nu)

    return optax.GradientTransformation(init, update)


def scale_by_zo_adamm(
    b1: float = B1,
    b2: float = B2,
    eps: float = EPS,
    eps_root: float = EPS_ROOT,
    mu_dtype: Any = None,
    *,
    amsgrad: bool = False,
    granularity: second_moments.Granularity = second_moments.per_coordinate,
) -> optax.GradientTransformation:
    """Divide the momentum by the root of the gradient's mean square (ZO-AdaMM).

      mu ← b1 · mu + (1 − b1) · g
      nu ← b2 · nu + (1 − b2) · g²
      nu_max ← max(nu_max, nu) if amsgrad else nu
      update = mu / (√(nu_max + eps_root) + eps)

    This is Adam without bias correction; `amsgrad` is the rule published in 2019.

    Args:
      b1, b2, eps, eps_root, mu_dtype, granularity: As in `scale_by_radazo`.
      amsgrad: Whether to divide by the largest second moment so far; if `factored`,
        rows and columns have separate maxima.
    Returns, Raises, Cost:
      As `scale_by_radazo`, with a `ScaleByZoAdammState`, and nu_max if `amsgrad`.
    Example:
      >>> link, g = scale_by_zo_adamm(b1=0.9, b2=0.99), jnp.array([3.0, -0.5])
      >>> updates, state = link.update(g, link.init(g))
      >>> print(jnp.round(updates, 3))  # (1 − b1) / √(1 − b2)
      [ 1. -1.]
    References:
      Chen et al., ZO-AdaMM, 2019. arXiv:1910.06513.
    """
    api_name = "scale_by_zo_adamm"
    validation.check(api_name, b1=b1, b2=b2, mu_dtype=mu_dtype, amsgrad=amsgrad)
    validation.check(api_name, eps=eps, eps_root=eps_root, granularity=granularity)

    def init(params: core.Params) -> Any:
        count, mu = jnp.zeros((), jnp.int32), _zeros(params, mu_dtype)
        nu_max = granularity.zeros(params) if amsgrad else None
        return ScaleByZoAdammState(count, mu, granularity.zeros(params), nu_max)

    def update(updates: core.Params, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = _mean(updates, state.mu, b1)
        nu = _mean(granularity.squares(updates, state.nu), state.nu, b2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else None
        each = granularity.each(nu_max if amsgrad else nu, updates)
        scaled = _ratio(mu, each, eps, eps_root, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        mu = optax.tree.cast_like(mu, state.mu)
        return scaled, ScaleByZoAdammState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def _zeros(params: core.Params, dtype: Any) -> core.Params:
    """Return an initial first moment, with placeholders for non-floating leaves."""

    def zeros(leaf: Any) -> jax.Array:
        if not core.is_floating(leaf):
            return jnp.zeros((), jnp.float32)
        return jnp.zeros_like(leaf, dtype=dtype or core.wide(leaf.dtype))

    return jax.tree.map(zeros, params)


def _mean(updates: core.Params, moment: core.Params, decay: Any) -> core.Params:
    """Return decay · moment + (1 − decay) · updates in at least float32."""

    def mean(update: Any, old: jax.Array) -> jax.Array:
        if not core.is_floating(update):
            return old
        wide = core.wide(update.dtype, old.dtype)
        rate = _cast(decay, wide)
        return rate * old.astype(wide) + (1 - rate) * update.astype(wide)

    return jax.tree.map(mean, updates, moment)


def _ratio(
    numerator: core.Params, nu: core.Params, eps: Any, eps_root: Any, like: core.Params
) -> core.Params:
    """Return numerator / (√(nu + eps_root) + eps) in the types of `like`; 0 / 0 = 0."""
    constants = (eps, eps_root)
    positive = any(isinstance(c, int | float) and c > 0 for c in constants)

    def ratio(top: Any, nu: jax.Array, like: Any) -> Any:
        if not core.is_floating(like):
            return like
        root = jnp.sqrt(nu + _cast(eps_root, nu.dtype)) + _cast(eps, nu.dtype)
        if not positive:
            root = jnp.where(root > 0, root, jnp.ones_like(root))
        return (top.astype(root.dtype) / root).astype(like.dtype)

    return jax.tree.map(ratio, numerator, nu, like)


def _cast(constant: Any, dtype: Any) -> Any:
    """Cast an injected hyperparameter; Python numbers are weakly typed already."""
    return constant.astype(dtype) if isinstance(constant, jax.Array) else constant


_HINT = "True is the published rule of 2019."
validation.declare(validation.instance, "amsgrad", of=bool, hint=_HINT)
