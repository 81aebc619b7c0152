"""How good an estimate is: read from it for nothing, or measured on request.

estimate_statistics, monitor_estimate   from the slopes: no further function value
slope_errors                            differences against exact derivatives
cosine_similarity, second_moment_error  against a gradient that is known
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
    """What one estimate, or the mean of several, says of itself.

    Attributes:
      gradient_norm: Length of the gradient.
      variance: Total variance of the estimate, the sum over its elements.
      signal_to_noise: Squared length of the gradient over the variance, without what
        noise in the values adds to the slopes. It may be negative.
    """

    gradient_norm: jax.Array
    variance: jax.Array
    signal_to_noise: jax.Array


class MonitorEstimateState(NamedTuple):
    """State of `monitor_estimate`.

    Attributes:
      averages: Exponential sums of the squared length, the variance and the signal.
      shares: The sums of their weights, by which they are divided.
      statistics: The `EstimateStatistics` of the means; zeros before the first step.
    """

    averages: jax.Array
    shares: jax.Array
    statistics: EstimateStatistics


def estimate_statistics(
    gradient: core.Params, info: core.EstimateInfo
) -> EstimateStatistics:
    """Gradient norm, variance and signal-to-noise ratio from the slopes of an estimate.

    With c = `info.factor`, r = E‖u‖², and means over the K kept directions:

      gradient_norm² = c · mean slope²               unbiased where slopes are exact
      variance       = (c² r · mean slope² − ‖g‖²) / (K − 1)            unbiased
      signal         = ‖g‖² − variance      unbiased for ‖∇f‖², whatever the slopes
                                            have of noise with a mean of 0
      signal_to_noise = signal / variance

    If slopes are exact, the ratio is about K / d whatever the function. A single step
    hardly shows it: the standard error of `signal` is about √(2d / K² + 8 / K) · ‖∇f‖².
    Its mean over many steps does (`monitor_estimate`). One far below K / d tells that
    something else than the gradient makes the slopes, and `gradient_norm` too large.
    Noise or rounding: take a larger `smoothing`. Curvature, in forward differences near
    an optimum: take a smaller one, or `central`. `slope_errors` tells which.

    Args:
      gradient: The gradient estimate.
      info: The `EstimateInfo` that came with it.
    Returns:
      `EstimateStatistics` of float scalars. `variance` and the ratio are NaN with one
      direction, and where directions of a step depend on each other (`orthogonal`),
      since their spread then says nothing of the variance. For Gaussian directions
      E‖u‖² = d stands for ‖u‖², which is off by 2 / d. Directions of `coordinate` have
      a mean, so that noise of the value that they share counts as signal. A gradient
      of bfloat16 parameters is itself rounded: that counts as signal too.
    Raises:
      TypeError: If `info` is no `EstimateInfo`.
    Cost:
      No function values; one pass over the gradient.
    Example:
      >>> estimator = radazo.rademacher_estimator(num_directions=200)
      >>> params, slope = jnp.zeros(50), jnp.full(50, 3.0)
      >>> _, gradient, _, info = jax.jit(
      ...     lambda: estimator.estimate(
      ...         0, lambda x: slope @ x, params, estimator.init(params)
      ...     )
      ... )()
      >>> statistics = estimate_statistics(gradient, info)
      >>> print(jnp.round(statistics.gradient_norm), jnp.linalg.norm(slope))
      20.0 21.213203
    References:
      The signal is the U-statistic of the inner products of the K one-direction
      estimates: Hoeffding, A class of statistics with asymptotically normal
      sampler, 1948.
    """
    return _statistics(*_moments("estimate_statistics", gradient, info))


def monitor_estimate(decay: float = 0.99) -> optax.GradientTransformationExtraArgs:
    """Keep the statistics of the estimates in the state; updates pass unchanged.

    For within `with_estimator`, which hands on what the estimator saw:

      with_estimator(estimator, optax.chain(monitor_estimate(), rule, ...), key)

      mean = Σ_τ decay^(t − τ) · x_τ / Σ_τ decay^(t − τ)   over steps τ that know x

    of the squared length, the variance and the signal of `estimate_statistics`. A step
    in which one direction was kept knows no variance. Where it stands among links does
    not matter; in `optax.MultiSteps` it sees the last of the estimates only.

    Args:
      decay: Decay rate in [0, 1); 0 keeps the last step alone.
    Returns:
      A `GradientTransformationExtraArgs` whose state is a `MonitorEstimateState`; read
      it by `optax.tree.get(state, "statistics")`.
    Raises:
      TypeError: In `update`, if no estimator stands around it.
      TypeError, ValueError: If `decay` is not a number in [0, 1).
    Cost:
      No function values; one pass over the gradient, and a few scalars of state.
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
        seen = jnp.stack(_moments(api_name, estimate, estimate_info))
        known = jnp.isfinite(seen)
        seen = jnp.where(known, seen, jnp.zeros_like(seen))
        averages, shares = (
            decay * old + (1 - decay) * new.astype(old.dtype)
            for old, new in ((state.averages, seen), (state.shares, known))
        )
        statistics = _statistics(*(averages / shares))
        return updates, MonitorEstimateState(averages, shares, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(
    api_name: str, gradient: core.Params, info: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The squared length of the gradient, the variance, and the signal."""
    validation.instance(
        api_name,
        "estimate_info" if api_name.endswith("update") else "info",
        info,
        core.EstimateInfo,
        "`with_estimator(estimator, optax.chain(monitor_estimate(), ...), key)` hands "
        "it on; `estimator.estimate(...)` returns it, the last of four.",
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
    """The cosine of the angle between two pytrees of one structure.

      ⟨a, b⟩ / (‖a‖ ‖b‖)   over all floating-point leaves jointly

    For an estimate of K directions in d dimensions about √(K / (d + K)) against the
    gradient; for its exponential mean with decay b1, K (1 + b1) / (1 − b1) in place of
    K, while the parameters move slowly.

    Args:
      gradient, reference: Pytrees of arrays of the same structure and shapes.
    Returns:
      A float scalar in [−1, 1]; NaN if one of the two is zero.
    Raises:
      ValueError: If the structures differ.
    Cost:
      No function values; one pass over both.
    Example:
      >>> print(cosine_similarity(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])))
      0.70710677
    """
    pairs = _pairs("cosine_similarity", gradient, reference)
    dot = sum(jnp.vdot(a, b) for a, b in pairs)
    norms = sum(jnp.vdot(a, a) for a, _ in pairs), sum(jnp.vdot(b, b) for _, b in pairs)
    return jnp.asarray(dot / (jnp.sqrt(norms[0]) * jnp.sqrt(norms[1])))


def second_moment_error(second_moment: core.Params, reference: core.Params) -> Any:
    """How far a second moment is from the one of the true gradients.

      ‖nu − nu*‖ / ‖nu*‖   over all floating-point leaves jointly

    With nu* ← b2 · nu* + (1 − b2) · (∇f)², as `optax.tree.update_moment` makes it. On a
    quadratic about d / (K √3) for ZO-AdaMM, and (1 − b1) / (1 + b1) of it for R-AdaZO.

    Args:
      second_moment: The `nu` of a state.
      reference: nu*, a pytree of the same structure and shapes.
    Returns:
      A float scalar, at least 0.
    Raises:
      ValueError: If the structures differ.
    Cost:
      No function values; one pass over both.
    Example:
      >>> print(second_moment_error(jnp.array([2.0, 2.0]), jnp.array([1.0, 1.0])))
      1.0
    """
    pairs = _pairs("second_moment_error", second_moment, reference)
    off = sum(jnp.sum(jnp.square(a - b)) for a, b in pairs)
    whole = sum(jnp.sum(jnp.square(b)) for _, b in pairs)
    return jnp.sqrt(off) / jnp.sqrt(whole)


def _pairs(api_name: str, tree: Any, reference: Any) -> list[tuple[Any, Any]]:
    """The floating-point leaves of both, in the widest type of them all."""
    mine, other = (jax.tree.map(jnp.shape, x) for x in (tree, reference))
    if mine != other or jax.tree.structure(tree) != jax.tree.structure(reference):
        validation.fail(
            api_name,
            "reference",
            f"have the structure and the shapes {mine}",
            str(other),
            "Compare what belongs to the same parameters.",
        )
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    kept = [(a, b) for a, b in pairs if core.is_floating(a) and core.is_floating(b)]
    dtype = core.wide(*(x.dtype for pair in kept for x in pair))
    return [(a.astype(dtype), b.astype(dtype)) for a, b in kept]


def _squared_norm(tree: Any, dtype: Any) -> jax.Array:
    squares = [
        jnp.sum(jnp.square(leaf.astype(dtype)))
        for leaf in jax.tree.leaves(tree)
        if core.is_floating(leaf)
    ]
    return jnp.sum(jnp.stack(squares))
