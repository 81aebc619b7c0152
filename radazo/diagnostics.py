"""Diagnostics of gradient estimates.

estimate_statistics, monitor_estimate   from the slopes, without function values
slope_errors                            differences against exact derivatives
cosine_similarity, second_moment_error  against a known gradient
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation
from radazo.replicas import check_replicas, fingerprint
from radazo.slope_errors import SlopeErrors, slope_errors

__all__ = [
    "EstimateStatistics",
    "MonitorEstimateState",
    "SlopeErrors",
    "check_replicas",
    "cosine_similarity",
    "estimate_statistics",
    "fingerprint",
    "monitor_estimate",
    "second_moment_error",
    "slope_errors",
]


class EstimateStatistics(NamedTuple):
    """Statistics of one estimate, or of the mean of several.

    Attributes:
      gradient_norm: Norm of the gradient.
      variance: Total variance of the estimate, summed over its elements.
      signal_to_noise: Squared norm of the gradient over the variance, corrected for
        noise in the values; may be negative.
    """

    gradient_norm: jax.Array
    variance: jax.Array
    signal_to_noise: jax.Array


class MonitorEstimateState(NamedTuple):
    """State of `monitor_estimate`.

    Attributes:
      averages: Decayed sums of the squared norm, the variance and the signal.
      shares: Decayed sums of their weights.
      statistics: `EstimateStatistics` of the means; zeros before the first step.
    """

    averages: jax.Array
    shares: jax.Array
    statistics: EstimateStatistics


def estimate_statistics(
    gradient: core.Params, info: core.EstimateInfo
) -> EstimateStatistics:
    """Compute norm, variance and signal-to-noise ratio from the slopes of an estimate.

    With c = `info.factor`, r = E‖u‖², and means over the K kept directions:

      gradient_norm² = c · mean slope²                      unbiased for exact slopes
      variance       = (c² r · mean slope² − ‖g‖²) / (K − 1)                unbiased
      signal         = ‖g‖² − variance      unbiased for ‖∇f‖², even if slopes have
                                            zero-mean noise
      signal_to_noise = signal / variance

    For exact slopes the ratio is about K / d for any function. The standard error of
    `signal` is about √(2d / K² + 8 / K) · ‖∇f‖², so average over many steps
    (`monitor_estimate`). A ratio far below K / d means that noise, rounding (increase
    `smoothing`) or curvature (decrease it, or use `central`) dominates the slopes and
    inflates `gradient_norm`. `slope_errors` distinguishes these.

    Args:
      gradient: The gradient estimate.
      info: The `EstimateInfo` of the same estimate.
    Returns:
      `EstimateStatistics` of float scalars. Variance and ratio are NaN for a single
      direction and for dependent directions (`orthogonal`). For Gaussian directions
      E‖u‖² = d replaces ‖u‖², a relative error of 2 / d. Noise shared by all values
      counts as signal for `coordinate`, and rounding of a bfloat16 gradient for all.
    Raises:
      TypeError: If `info` is not an `EstimateInfo`.
    Cost:
      No function values; one pass over the gradient.
    Example:
      >>> estimator = radazo.rademacher_estimator(num_directions=200)
      >>> params, slope = jnp.zeros(50), jnp.full(50, 3.0)
      >>> _, gradient, _, info = jax.jit(
      ...     lambda: radazo.estimate(
      ...         estimator, 0, lambda x: slope @ x, params, estimator.init(params)
      ...     )
      ... )()
      >>> statistics = estimate_statistics(gradient, info)
      >>> print(jnp.round(statistics.gradient_norm), jnp.linalg.norm(slope))
      20.0 21.213203
    References:
      Hoeffding, A class of statistics with asymptotically normal distribution, 1948:
      the signal is the U-statistic of inner products of one-direction estimates.
    """
    return _statistics(*_moments("estimate_statistics", gradient, info))


def monitor_estimate(decay: float = 0.99) -> optax.GradientTransformationExtraArgs:
    """Keep statistics of the estimates in the state; pass updates through unchanged.

      with_estimator(estimator, optax.chain(monitor_estimate(), rule, ...), key)

      mean = Σ_τ decay^(t − τ) · x_τ / Σ_τ decay^(t − τ)   over steps τ that know x

    for the squared norm, the variance and the signal of `estimate_statistics`; steps
    with one kept direction know no variance. The position in the chain does not matter.
    Inside `optax.MultiSteps` it only sees the last estimate.

    Args:
      decay: Decay rate in [0, 1); 0 keeps only the last step.
    Returns:
      A `GradientTransformationExtraArgs` with a `MonitorEstimateState`; read it by
      `optax.tree.get(state, "statistics")`.
    Raises:
      TypeError: In `update`, if it is not inside `with_estimator`.
      TypeError, ValueError: If `decay` is not a number in [0, 1).
    Cost:
      No function values; one pass over the gradient and a few scalars of state.
    Example:
      >>> rule = optax.chain(monitor_estimate(), optax.sgd(0.0))
      >>> optimizer = radazo.with_estimator(radazo.sphere_estimator(), rule, key=0)
      >>> result = radazo.minimize(lambda x: x @ x, jnp.ones(100), optimizer, 2000)
      >>> statistics = optax.tree.get(result.state, "statistics")
      >>> print(jnp.round(statistics.gradient_norm, 1))  # ‖2x‖ = 20
      19.7
    """
    validation.decay("monitor_estimate", "decay", decay)

    def init(params: core.Params) -> MonitorEstimateState:
        del params
        zero = jnp.zeros((), jnp.result_type(float))
        zeros = jnp.zeros(3, zero.dtype)
        return MonitorEstimateState(zeros, zeros, EstimateStatistics(zero, zero, zero))

    def update(
        updates: Any,
        state: Any,
        params: core.Params | None = None,
        *,
        estimate_info: core.EstimateInfo | None = None,
        grad: core.Params | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del params, extra
        api_name = "monitor_estimate(...).update"
        estimate = updates if grad is None else grad
        moments = jnp.stack(_moments(api_name, estimate, estimate_info))
        known = jnp.isfinite(moments)
        moments = jnp.where(known, moments, jnp.zeros_like(moments))
        averages, shares = (
            decay * old + (1 - decay) * new.astype(old.dtype)
            for old, new in ((state.averages, moments), (state.shares, known))
        )
        statistics = _statistics(*(averages / shares))
        return updates, MonitorEstimateState(averages, shares, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(
    api_name: str, gradient: core.Params, info: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the squared norm of the gradient, the variance and the signal."""
    validation.instance(
        api_name,
        "estimate_info" if api_name.endswith("update") else "info",
        info,
        core.EstimateInfo,
        "`with_estimator(estimator, optax.chain(monitor_estimate(), ...), key)` passes "
        "it on; `radazo.estimate(...)` returns it as the last of four.",
    )
    num_kept = jnp.sum(info.kept, dtype=jnp.int32).astype(info.slopes.dtype)
    power = jnp.sum(jnp.square(info.slopes)) / jnp.maximum(num_kept, 1)
    squared = _squared_norm(gradient, info.slopes.dtype)
    each = info.factor**2 * info.squared_norm * power
    variance = jnp.where(num_kept > 1, (each - squared) / (num_kept - 1), jnp.nan)
    return info.factor * power, variance, squared - variance


def _statistics(
    squared: jax.Array, variance: jax.Array, signal: jax.Array
) -> EstimateStatistics:
    return EstimateStatistics(jnp.sqrt(squared), variance, signal / variance)


def cosine_similarity(gradient: core.Params, reference: core.Params) -> jax.Array:
    """Return the cosine of the angle between two pytrees.

      ⟨a, b⟩ / (‖a‖ ‖b‖)   over all floating-point leaves jointly

    Between gradient and estimate, with K directions in d dimensions, it is about
    √(K / (d + K)). For the exponential mean of estimates with decay b1, K becomes
    K (1 + b1) / (1 − b1) while the parameters move slowly.

    Args:
      gradient, reference: Pytrees of arrays with the same structure and shapes.
    Returns:
      A float scalar in [−1, 1]; NaN if one of the two is zero.
    Raises:
      ValueError: If structures or shapes differ.
    Cost:
      No function values; one pass over both.
    Example:
      >>> print(cosine_similarity(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])))
      0.70710677
    """
    a, b = _floating_leaves("cosine_similarity", gradient, reference)
    dot, left, right = (optax.tree.vdot(*pair) for pair in ((a, b), (a, a), (b, b)))
    return jnp.asarray(dot / (jnp.sqrt(left) * jnp.sqrt(right)))


def second_moment_error(second_moment: core.Params, reference: core.Params) -> Any:
    """Return the relative distance of a second moment from that of true gradients.

      ‖nu − nu*‖ / ‖nu*‖   over all floating-point leaves jointly

    with nu* ← b2 · nu* + (1 − b2) · (∇f)², as in `optax.tree.update_moment`. On a
    quadratic it is about d / (K √3) for ZO-AdaMM and (1 − b1) / (1 + b1) of that for
    R-AdaZO.

    Args:
      second_moment: The `nu` of a state.
      reference: nu*, a pytree with the same structure and shapes.
    Returns:
      A float scalar, at least 0.
    Raises:
      ValueError: If structures or shapes differ.
    Cost:
      No function values; one pass over both.
    Example:
      >>> print(second_moment_error(jnp.array([2.0, 2.0]), jnp.array([1.0, 1.0])))
      1.0
    """
    a, b = _floating_leaves("second_moment_error", second_moment, reference)
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


def _floating_leaves(
    api_name: str, tree: Any, reference: Any
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the floating-point leaves of both in their widest common type."""
    mine, other = (jax.tree.map(jnp.shape, x) for x in (tree, reference))
    if mine != other or jax.tree.structure(tree) != jax.tree.structure(reference):
        validation.fail(
            api_name,
            "reference",
            f"have the structure and the shapes {mine}",
            str(other),
            "Compare pytrees that belong to the same parameters.",
        )
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    kept = [(a, b) for a, b in pairs if core.is_floating(a) and core.is_floating(b)]
    dtype = core.wide(*(x.dtype for pair in kept for x in pair))
    return [a.astype(dtype) for a, _ in kept], [b.astype(dtype) for _, b in kept]


def _squared_norm(tree: Any, dtype: Any) -> jax.Array:
    leaves = [x.astype(dtype) for x in jax.tree.leaves(tree) if core.is_floating(x)]
    return optax.tree.norm(leaves, squared=True)
