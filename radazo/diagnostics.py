"""How good an estimate is: read from it for nothing, or measured on request.

estimate_statistics, monitor_estimate   from the slopes: no further function value
slope_errors                            differences against exact derivatives
cosine_similarity, second_moment_error  against a gradient that is known
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import base, checks, differences, directions, leaves


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
      count: int32 scalar, steps so far.
      averages: Exponential means of the squared length, the variance and the signal.
      statistics: The `EstimateStatistics` of these means; zeros before the first step.
    """

    count: jax.Array
    averages: tuple[jax.Array, jax.Array, jax.Array]
    statistics: EstimateStatistics


class SlopeErrors(NamedTuple):
    """Slopes beside exact directional derivatives, (num_directions,) each.

    Attributes:
      slopes: As the estimator takes them, by differences.
      exact: Derivatives along the directions, by forward mode.
      bias: What the difference must be off by, since `smoothing` is not 0.
      rounding: The rest of slopes − exact: digits lost in the difference.
    """

    slopes: jax.Array
    exact: jax.Array
    bias: jax.Array
    rounding: jax.Array


def estimate_statistics(
    gradient: base.Params, info: base.EstimateInfo
) -> EstimateStatistics:
    """Gradient norm, variance and signal-to-noise ratio from the slopes of an estimate.

    With c = `info.factor`, r = E‖u‖², and means over the K kept directions:

      gradient_norm² = c · mean slope²                       exact values: unbiased
      variance       = (c² r · mean slope² − ‖g‖²) / (K − 1)              unbiased
      signal         = ‖g‖² − variance            unbiased for ‖∇f‖², noise or not
      signal_to_noise = signal / variance

    If values are exact, the ratio is about K / d whatever the function, and a single
    step hardly shows it: the standard error of `signal` is about √(2d) / K · ‖∇f‖². Its
    mean over many steps does (`monitor_estimate`), and one far below K / d tells that
    noise in the values drowns the slopes: take a larger `smoothing`. Then
    `gradient_norm` is too large, too.

    Args:
      gradient: The gradient estimate.
      info: The `EstimateInfo` that came with it.
    Returns:
      `EstimateStatistics` of float scalars. `variance` and the ratio are NaN with one
      direction, and where directions of a step depend on each other (`orthogonal`),
      since their spread then says nothing of the variance. For Gaussian directions
      E‖u‖² = d stands for ‖u‖², which is off by 2 / d.
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
      distribution, 1948.
    """
    return _statistics(*_moments("estimate_statistics", gradient, info))


def monitor_estimate(decay: float = 0.99) -> optax.GradientTransformationExtraArgs:
    """Keep the statistics of the estimates in the state; updates pass unchanged.

    For within `with_estimator`, which hands on what the estimator saw:

      with_estimator(estimator, optax.chain(monitor_estimate(), rule, ...), key)

      meanₜ ← decay · meanₜ₋₁ + (1 − decay) · x,   divided by 1 − decayᵗ

    of the squared length, the variance and the signal of `estimate_statistics`; it must
    be the first of its chain, where updates are still the estimate.

    Args:
      decay: Decay rate in [0, 1); 0 keeps the last step alone.
    Returns:
      A `GradientTransformationExtraArgs` whose state is a `MonitorEstimateState`; read
      it by `optax.tree.get(state, "statistics")`.
    Raises:
      TypeError, ValueError: If `decay` is not a number in [0, 1).
      ValueError: In `update`, if no estimator stands around it.
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
    checks.decay("monitor_estimate", "decay", decay)

    def init(params: base.Params) -> MonitorEstimateState:
        del params
        zero = jnp.zeros((), jnp.result_type(float))
        return MonitorEstimateState(
            jnp.zeros((), jnp.int32),
            (zero, zero, zero),
            EstimateStatistics(zero, zero, zero),
        )

    def update(
        updates: Any,
        state: Any,
        params: base.Params | None = None,
        *,
        estimate_info: base.EstimateInfo | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del params, extra
        seen = _moments("monitor_estimate(...).update", updates, estimate_info)
        averages = tuple(
            decay * old + (1 - decay) * new.astype(old.dtype)
            for old, new in zip(state.averages, seen, strict=True)
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        dtype = averages[0].dtype
        missing = 1 - jnp.asarray(decay, dtype) ** count.astype(dtype)
        statistics = _statistics(*(average / missing for average in averages))
        return updates, MonitorEstimateState(count, averages, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(
    where: str, gradient: base.Params, info: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The squared length of the gradient, the variance, and the signal."""
    checks.instance(
        where,
        "estimate_info" if where.endswith("update") else "info",
        info,
        base.EstimateInfo,
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


def slope_errors(
    key: base.Key,
    value_fn: base.ValueFn,
    params: base.Params,
    distribution: directions.Distribution = directions.sphere,
    *,
    num_directions: int = 10,
    smoothing: float = 5e-3,
    difference: differences.Difference = differences.forward,
    terms: bool = False,
    mask: base.Mask = None,
) -> SlopeErrors:
    """Compare slopes with exact directional derivatives, to choose `smoothing`.

    Along a direction let φ(s) = f(x + s · u); its derivatives at 0 come from forward
    mode, so that the function must be differentiable, in JAX:

      exact    = φ'
      bias     = smoothing · φ'' / 2 + smoothing² · φ''' / 6             forward
                 smoothing² · φ''' / 6                                   central
      rounding = slope − exact − bias       (and what higher derivatives leave)

    Bias much larger than rounding: `smoothing` is too large, or take `central`.
    Rounding much larger than bias: it is too small, or take `terms`.

    Args:
      key: Step key, typed or an integer seed: the directions are those of an estimate.
      value_fn: `value_fn(params)`, a real scalar, or terms.
      params: Pytree whose floating-point leaves are perturbed.
      distribution, num_directions, smoothing, difference, terms, mask: As in
        `finite_difference_estimator`; `smoothing` is a number.
    Returns:
      `SlopeErrors`, in float32 at least.
    Raises:
      TypeError, ValueError: As `finite_difference_estimator`, and if `difference` is
        not `forward` or `central`, whose bias is known.
    Cost:
      K + 1 or 2K function values, and K third derivatives along a line: about 8K more.
      K copies of the parameters. A diagnosis, not for every step; put `jax.jit` around.
    Example:
      >>> for smoothing in (1e-3, 1.0):
      ...     errors = slope_errors(
      ...         0, lambda x: x @ x, jnp.ones(1000), smoothing=smoothing
      ...     )
      ...     print(jnp.all(jnp.abs(errors.rounding) < jnp.abs(errors.bias)))
      False
      True
    """
    where = "slope_errors"
    checks.positive(where, "smoothing", smoothing, "Pass that of your estimator.")
    known = difference in (differences.forward, differences.central)
    if not known:
        checks.fail(
            where,
            "difference",
            "be one whose bias is known",
            repr(difference),
            "Pass `radazo.forward` or `radazo.central`.",
        )
    drawn = directions.sample_directions(
        key, params, distribution, num_directions=num_directions, mask=mask
    )
    evaluate = differences.evaluation(where, value_fn, terms=terms, has_aux=False)
    dtype = leaves.layout(where, params, mask).dtype
    step = jnp.asarray(smoothing, dtype)
    start = difference.start(evaluate, params)

    def errors(direction: base.Params) -> SlopeErrors:
        def line(s: jax.Array) -> base.Params:
            return jax.tree.map(lambda x, u: _moved(x, u, s), params, direction)

        slope, _, _ = difference.slope(evaluate, line, start, step)
        zero = jnp.zeros((), dtype)
        first = _derivative(lambda s: jnp.sum(evaluate(line(s))[0]))
        second = _derivative(first)
        bias = step**2 / 6 * _derivative(second)(zero)
        if difference is differences.forward:
            bias = bias + step / 2 * second(zero)
        exact = first(zero)
        return SlopeErrors(slope, exact, bias, slope - exact - bias)

    return jax.vmap(errors)(drawn)


def _moved(leaf: Any, direction: Any, step: jax.Array) -> Any:
    if not base.is_floating(leaf):
        return leaf
    return (leaf + step.astype(direction.dtype) * direction).astype(leaf.dtype)


def _derivative(function: Any) -> Any:
    return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]


def cosine_similarity(gradient: base.Params, reference: base.Params) -> jax.Array:
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
    wide = [(a.astype(t), b.astype(t)) for a, b, t in pairs]
    dot = sum(jnp.vdot(a, b) for a, b in wide)
    norms = sum(jnp.vdot(a, a) for a, _ in wide), sum(jnp.vdot(b, b) for _, b in wide)
    return jnp.asarray(dot / (jnp.sqrt(norms[0]) * jnp.sqrt(norms[1])))


def second_moment_error(second_moment: base.Params, reference: base.Params) -> Any:
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
    wide = [(a.astype(t), b.astype(t)) for a, b, t in pairs]
    off = sum(jnp.sum(jnp.square(a - b)) for a, b in wide)
    whole = sum(jnp.sum(jnp.square(b)) for _, b in wide)
    return jnp.sqrt(off) / jnp.sqrt(whole)


def _pairs(where: str, tree: Any, reference: Any) -> list[tuple[Any, Any, Any]]:
    """The floating-point leaves of both, and the type to compute in."""
    if jax.tree.structure(tree) != jax.tree.structure(reference):
        checks.fail(
            where,
            "reference",
            f"have the structure {jax.tree.structure(tree)}",
            str(jax.tree.structure(reference)),
            "Compare what belongs to the same parameters.",
        )
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    kept = [(a, b) for a, b in pairs if base.is_floating(a) and base.is_floating(b)]
    dtype = base.wide(*(x.dtype for pair in kept for x in pair))
    return [(a, b, dtype) for a, b in kept]


def _squared_norm(tree: Any, dtype: Any) -> jax.Array:
    squares = [
        jnp.sum(jnp.square(leaf.astype(dtype)))
        for leaf in jax.tree.leaves(tree)
        if base.is_floating(leaf)
    ]
    return jnp.sum(jnp.stack(squares))
