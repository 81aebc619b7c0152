"""Diagnostics of gradient estimates.

estimate_statistics, monitor_estimate   from the slopes, without function values
slope_errors                            differences against exact derivatives
cosine_similarity, second_moment_error  against a known gradient
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, differences, directions, flat, random, validation
from radazo.replicas import check_replicas, fingerprint

__all__ = ["EstimateStatistics", "MonitorEstimateState", "SlopeErrors"]
__all__ += ["check_replicas", "cosine_similarity", "estimate_statistics", "fingerprint"]
__all__ += ["monitor_estimate", "second_moment_error", "slope_errors"]

# Quadrature along a line, exact for polynomials up to degree 15.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


class EstimateStatistics(NamedTuple):
    """Statistics of one estimate, or of the mean of several.

    Attributes:
      gradient_norm: Norm of the gradient.
      variance: Variance of the estimate, summed over its elements.
      signal_to_noise: Squared norm over variance, less noise; may be negative.
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

    For exact slopes the ratio is about K / d. If it is far smaller, noise, rounding or
    curvature dominates the slopes; `slope_errors` says which. The standard error of
    `signal` is about √(2d / K² + 8 / K) · ‖∇f‖²: average by `monitor_estimate`.

    Args:
      gradient: The gradient estimate.
      info: The `EstimateInfo` of the same estimate.
    Returns:
      `EstimateStatistics` of float scalars. Variance and ratio are NaN for a single
      direction and for dependent ones (`orthogonal`), and have a relative error of 2/d
      for Gaussian ones. Noise shared by all values counts as signal for `coordinate`.
    Raises:
      TypeError: If `info` is not an `EstimateInfo`.
    Cost:
      No function values; one pass over the gradient.
    Example:
      >>> estimator, x = radazo.rademacher_estimator(num_directions=200), jnp.zeros(50)
      >>> estimate = jax.jit(radazo.estimate, static_argnums=(0, 2))
      >>> state, norm = estimator.init(x), 3 * jnp.sqrt(50)
      >>> _, g, _, info = estimate(estimator, 0, lambda x: 3 * x.sum(), x, state)
      >>> print(jnp.round(estimate_statistics(g, info).gradient_norm), norm)
      20.0 21.213203
    References:
      Hoeffding, A class of statistics with asymptotically normal distribution, 1948:
      the signal is the U-statistic of inner products of one-direction estimates.
    """
    squared, variance, signal = _moments("estimate_statistics", gradient, info)
    return EstimateStatistics(jnp.sqrt(squared), variance, signal / variance)


def monitor_estimate(decay: float = 0.99) -> optax.GradientTransformationExtraArgs:
    """Keep statistics of the estimates in the state; pass updates through unchanged.

      with_estimator(estimator, optax.chain(monitor_estimate(), rule, ...), key)

      mean = Σ_τ decay^(t − τ) · x_τ / Σ_τ decay^(t − τ)   over steps τ that know x

    for the squared norm, the variance and the signal of `estimate_statistics`; steps
    with one kept direction give no variance.

    Args:
      decay: Decay rate in [0, 1); 0 keeps only the last step.
    Returns:
      A `GradientTransformationExtraArgs` with a `MonitorEstimateState`; read it by
      `optax.tree.get(state, "statistics")`.
    Raises:
      TypeError, ValueError: If `decay` is not in [0, 1); outside `with_estimator`.
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
        zeros = jnp.zeros(3, jnp.result_type(float))
        return MonitorEstimateState(zeros, zeros, EstimateStatistics(*zeros))

    def update(
        updates: Any, state: Any, params: core.Params | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params
        api_name, grad = "monitor_estimate(...).update", extra.get("grad")
        estimate = updates if grad is None else grad
        moments = jnp.stack(_moments(api_name, estimate, extra.get("estimate_info")))
        known = jnp.isfinite(moments)
        moments = jnp.where(known, moments, jnp.zeros_like(moments))
        averages, shares = (
            decay * old + (1 - decay) * new.astype(old.dtype)
            for old, new in ((state.averages, moments), (state.shares, known))
        )
        squared, variance, signal = averages / shares
        statistics = EstimateStatistics(jnp.sqrt(squared), variance, signal / variance)
        return updates, MonitorEstimateState(averages, shares, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(
    api_name: str, gradient: core.Params, info: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the squared norm of the gradient, the variance and the signal."""
    argument = "estimate_info" if api_name.endswith("update") else "info"
    hint = "`with_estimator(estimator, optax.chain(monitor_estimate(), ...), key)` "
    hint += "passes it on; `radazo.estimate(...)` returns it as the last of four."
    validation.instance(api_name, argument, info, core.EstimateInfo, hint)
    dtype, leaves = info.slopes.dtype, jax.tree.leaves(gradient)
    num_kept = jnp.sum(info.kept, dtype=jnp.int32).astype(dtype)
    power = jnp.sum(jnp.square(info.slopes)) / jnp.maximum(num_kept, 1)
    leaves = [x.astype(dtype) for x in leaves if core.is_floating(x)]
    squared = optax.tree.norm(leaves, squared=True)
    each = info.factor**2 * info.squared_norm * power
    variance = jnp.where(num_kept > 1, (each - squared) / (num_kept - 1), jnp.nan)
    return info.factor * power, variance, squared - variance


def cosine_similarity(gradient: core.Params, reference: core.Params) -> jax.Array:
    """Return the cosine of the angle between two pytrees.

      ⟨a, b⟩ / (‖a‖ ‖b‖)   over all floating-point leaves jointly

    Between gradient and estimate, with K directions in d dimensions, it is about
    √(K / (d + K)); for a mean with decay b1, replace K by K (1 + b1) / (1 − b1).

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

    with nu* ← b2 · nu* + (1 − b2) · (∇f)². On a quadratic it is about d / (K √3) for
    ZO-AdaMM and (1 − b1) / (1 + b1) of that for R-AdaZO.

    Args:
      second_moment: The `nu` of a state.
      reference: nu*, a pytree with the same structure and shapes.
    Returns:
      A float scalar, at least 0.
    Raises, Cost:
      As `cosine_similarity`.
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
        rule = f"have the structure and the shapes {mine}"
        hint = "Compare pytrees that belong to the same parameters."
        validation.fail(api_name, "reference", rule, other, hint)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    kept = [(a, b) for a, b in pairs if core.is_floating(a) and core.is_floating(b)]
    dtype = core.wide(*(x.dtype for pair in kept for x in pair))
    return [a.astype(dtype) for a, _ in kept], [b.astype(dtype) for _, b in kept]


class SlopeErrors(NamedTuple):
    """Slopes and their errors, (num_directions,) each.

    Attributes:
      slopes: Slopes by differences, as the estimator computes them.
      exact: Directional derivatives, by forward mode.
      bias: Error of a difference without rounding, due to `smoothing` > 0.
      rounding: Rest of slopes − exact: digits lost in the difference.
    """

    slopes: jax.Array
    exact: jax.Array
    bias: jax.Array
    rounding: jax.Array


def slope_errors(
    key: core.Key,
    value_fn: core.ValueFn,
    params: core.Params,
    sampler: directions.DirectionSampler = directions.sphere,
    *,
    num_directions: int = core.NUM_DIRECTIONS,
    smoothing: float = core.SMOOTHING,
    difference: differences.Difference = differences.forward,
    terms: bool = False,
    mask: core.Mask = None,
) -> SlopeErrors:
    """Compare slopes with exact directional derivatives, to choose `smoothing`.

    With φ(s) = f(x + s · u) along a direction:

      exact    = φ'(0)
      bias     = mean φ' over [0, smoothing] − φ'(0)                  forward
                 mean φ' over [−smoothing, smoothing] − φ'(0)         central
      rounding = slope − exact − bias

    Derivatives are by forward mode and means by quadrature with 8 points, on parameters
    in at least float32. If bias is much larger than rounding, decrease `smoothing` or
    use `central`; if it is much smaller, increase `smoothing` or use `terms`.

    Args:
      key: Step key, typed or an integer seed; the directions are those of an estimate.
      value_fn: `value_fn(params)`, a real scalar or terms, written in JAX.
      params: Pytree whose floating-point leaves are perturbed.
      sampler, num_directions, smoothing, difference, terms, mask: As in
        `finite_difference_estimator`, but `smoothing` and `num_directions` are numbers.
    Returns:
      `SlopeErrors`, at least float32.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`; if `value_fn` has no
        forward-mode derivative; if `difference` is neither `forward` nor `central`.
    Cost:
      K + 1 or 2K function values and 9K derivatives, about two values each.
    Example:
      >>> for h in (1e-3, 1.0):
      ...     errors = slope_errors(0, lambda x: x @ x, jnp.ones(1000), smoothing=h)
      ...     print(jnp.all(jnp.abs(errors.rounding) < jnp.abs(errors.bias)))
      False
      True
    """
    api_name = "slope_errors"
    validation.check(api_name, value_fn=value_fn, terms=terms, sampler=sampler)
    validation.check(api_name, num_directions=num_directions)
    hint = "Pass that of your estimator."
    validation.positive(api_name, "smoothing", smoothing, hint)
    if difference not in (differences.forward, differences.central):
        rule = "have a known interval"
        hint = "Pass `radazo.forward` or `radazo.central`."
        validation.fail(api_name, "difference", rule, repr(difference), hint)
    layout = flat.layout(api_name, params, mask)
    dim, dtype = layout.dim, layout.dtype
    evaluate = differences.evaluation(api_name, value_fn, terms=terms, has_aux=False)
    step = jnp.asarray(smoothing, dtype)
    base = evaluate(params)[0] if difference.at_params else None
    wide = jax.tree.map(lambda x: x.astype(dtype) if core.is_floating(x) else x, params)
    least = 0.0 if difference is differences.forward else -1.0
    points = step * jnp.asarray(least + (1 - least) * (_NODES + 1) / 2, dtype)
    weights = jnp.asarray(_WEIGHTS / 2, dtype)
    words = random.key_data(api_name, key)
    prepared = sampler.prepare(words, num_directions, dim, dtype)

    def errors(k: jax.Array) -> SlopeErrors:
        u = directions.direction(sampler, prepared, k, dim, dtype)

        def point(params: core.Params, s: jax.Array) -> core.Params:
            return flat.perturb(layout, params, u, s, jnp.uint32(0))

        def value(s: jax.Array) -> tuple[jax.Array, None]:
            return jnp.sum(evaluate(point(wide, s))[0]), None

        def derivative(s: jax.Array) -> jax.Array:
            return differences.derivative(api_name, value, s)[1]

        line = partial(point, params)
        slope, _, _ = differences.slope(difference, evaluate, line, base, step)
        exact = derivative(jnp.zeros_like(step))
        mean = weights @ lax.map(derivative, points)
        return SlopeErrors(slope, exact, mean - exact, slope - mean)

    return lax.map(errors, jnp.arange(num_directions, dtype=jnp.uint32))
