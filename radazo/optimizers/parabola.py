"""A learning rate from the values of a step, which cost nothing further.

Along the last step f is close to a parabola. Its slope is known from the slopes of the
estimate, and the next value of f gives its curvature; the best rate is at its minimum.

Between two steps the rate is multiplied by GROWTH at most, by LINEAR_GROWTH while f is
linear along the step, and by FIRST_GROWTH in the FIRST_STEPS; it is divided by FALL at
most. One step is taken for a curvature of at most MOST_CURVATURE / rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from radazo import core, validation

# Decay of the averages.
DECAY = 0.9
# Growth of the learning rate in a step: in the first steps, while f is linear along the
# step, and otherwise. It falls by half at most.
FIRST_GROWTH, FIRST_STEPS, LINEAR_GROWTH, GROWTH, FALL = 10.0, 3, 2.0, 1.2, 2.0
IS_LINEAR = 0.9  # Share of the predicted decrease.
# Curvature times learning rate, 1 at the best rate.
LEAST_CURVATURE, MOST_CURVATURE = 0.02, 8.0
BACK = 4.0  # A step that was much too long is cut to a quarter.


class ScaleByParabolaState(NamedTuple):
    """State of `scale_by_parabola`.

    Attributes:
      num_steps: int32 scalar, steps whose gradient was not zero.
      rate: Scalar, learning rate of the last step.
      previous_value, squared_norm: f before the last step, and ⟨∇f, g⟩ there.
      mean_rate, mean_curvature: Averages of the rate, and of curvature times rate.
      step: The last step, like the parameters.
    """

    num_steps: jax.Array
    rate: jax.Array
    previous_value: jax.Array
    squared_norm: jax.Array
    mean_rate: jax.Array
    mean_curvature: jax.Array
    step: core.Params


def scale_by_parabola() -> optax.GradientTransformationExtraArgs:
    """Scale the gradient by a learning rate that f gives for free.

    The estimate g = factor · mean(slopeₖ · uₖ) has the directional derivative N, and
    the value of the next step tells the curvature along the step:

      N = ⟨∇f, g⟩ = factor · mean(slopeₖ²)
      ρ = (f(x) − f(x − rate · g)) / (rate · N)
      rate ← mean(rate) / mean(2 (1 − ρ))       the minimum of the parabola, ρ = 1/2

    The means are exponential, with decay 0.9; 2 (1 − ρ) is clipped to [0.02, 8]. The
    rate falls by half at most, and grows by a fifth at most; it doubles while ρ > 0.9,
    and grows by ten in the first three steps. The first step is √eps · max(‖x‖, √d)
    long, or 8 eps · max(‖x‖, √d) in types of few bits. If ρ < −1, or f is not finite,
    the parameters go back three quarters of the step, and the rate falls to a quarter.

    Values must be exact: with batches, noise, kinks or steps, use `zo_auto`.

    Args:
      None.
    Returns:
      A `GradientTransformationExtraArgs` with a `ScaleByParabolaState`, to be the only
      link between the estimator and `optax.scale(-1)`: it reads `value` and
      `estimate_info`, which `with_estimator` passes on. The rate is NaN, and updates
      are zero, if the estimator has no `factor`; see `EstimateInfo`.
    Raises:
      ValueError: In `update`, if `value`, `estimate_info` or `params` is missing.
    Cost:
      No function values. One copy of the parameters in the state.
    Example:
      >>> rule = optax.chain(scale_by_parabola(), optax.scale(-1.0))
      >>> optimizer = radazo.with_estimator(radazo.hadamard_estimator(), rule, key=0)
      >>> value_fn = lambda x: jnp.sum(jnp.arange(1.0, 21.0) * x**2)
      >>> result = radazo.minimize(value_fn, jnp.ones(20), optimizer, 100)
      >>> print(result.values[0], result.values[-1] < 0.1)
      210.0 True
    References:
      The rule is radazo's own.
    """

    def init(params: core.Params) -> ScaleByParabolaState:
        zero = jnp.zeros((), float)
        step = optax.tree.zeros_like(params)
        none = jnp.zeros((), jnp.int32)
        return ScaleByParabolaState(none, zero, zero, zero, zero, zero, step)

    def update(
        updates: core.Params,
        state: Any,
        params: core.Params | None = None,
        *,
        value: jax.Array | None = None,
        estimate_info: core.EstimateInfo | None = None,
        **extra: Any,
    ) -> tuple[core.Params, Any]:
        del extra
        validation.current_params("scale_by_parabola", params)
        if value is None or estimate_info is None:
            rule, got = "be passed by `with_estimator`", "None"
            hint = "Use `with_estimator(estimator, optax.chain(scale_by_parabola(), "
            hint += "optax.scale(-1)), key)`."
            call = "scale_by_parabola(...).update"
            validation.fail(call, "estimate_info", rule, got, hint)
        value, slopes = (x.astype(float) for x in (value, estimate_info.slopes))
        kept = jnp.maximum(jnp.sum(estimate_info.kept), 1).astype(float)
        factor = jnp.asarray(estimate_info.factor).astype(float)
        squared_norm = factor * jnp.sum(slopes**2) / kept

        predicted = state.rate * state.squared_norm
        decrease = ratio(state.previous_value - value, predicted)
        moved = state.num_steps > 0
        is_bad = moved & ~(decrease >= -1)
        samples = state.rate, curvature(decrease)
        old = state.mean_rate, state.mean_curvature
        means = average(old, samples, DECAY, moved & ~is_bad)
        rate = limited(ratio(*means), state.rate, decrease, state.num_steps)
        rate = jnp.where(is_bad, state.rate / BACK, rate)
        length = ratio(_first_length(params), _norm(updates))
        rate = jnp.where(moved, rate, length)
        rate = jnp.where(jnp.isnan(factor), factor, rate)

        scaled, step = _scaled(updates, state.step, rate, is_bad)
        state = ScaleByParabolaState(
            num_steps=state.num_steps
            + (~is_bad & (squared_norm > 0)).astype(jnp.int32),
            rate=rate,
            previous_value=jnp.where(is_bad, state.previous_value, value),
            squared_norm=jnp.where(is_bad, state.squared_norm, squared_norm),
            mean_rate=means[0],
            mean_curvature=means[1],
            step=step,
        )
        return scaled, state

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(
    updates: core.Params, last: core.Params, rate: jax.Array, is_bad: jax.Array
) -> tuple[core.Params, core.Params]:
    """Return the scaled updates, or most of the last step back, and what remains."""
    scale = jnp.where(jnp.isfinite(rate), rate, 0)

    def scaled(update: Any, last: jax.Array) -> Any:
        if not core.is_floating(update):
            return update
        back = (1 / BACK - 1) * last
        return jnp.where(is_bad, back, scale.astype(update.dtype) * update)

    result = jax.tree.map(scaled, updates, last)
    rest = optax.tree.add(last, result)
    return result, optax.tree.where(is_bad, rest, result)


def _first_length(params: Any) -> jax.Array:
    """Return √eps, or 8 eps of the coarsest leaf, times the larger of ‖x‖ and √d."""
    leaves = [x for x in jax.tree.leaves(params) if core.is_floating(x)]
    eps = float(jnp.finfo(core.wide(*(x.dtype for x in leaves))).eps)
    coarsest = max(float(jnp.finfo(x.dtype).eps) for x in leaves)
    dim = sum(x.size for x in leaves)
    # Parameters of few bits do not move by less than their rounding.
    return max(eps**0.5, 8 * coarsest) * jnp.maximum(_norm(params), dim**0.5)


def _norm(tree: Any) -> jax.Array:
    """Return the norm of the floating-point leaves."""
    leaves = [x for x in jax.tree.leaves(tree) if core.is_floating(x)]
    wide = [x.astype(core.wide(x.dtype)) for x in leaves]
    squares = [jnp.vdot(x, x).astype(float) for x in wide]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def ratio(top: Any, bottom: Any) -> jax.Array:
    """Return top / bottom, or 0 if bottom is not positive."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1), 0)


def average(old: Any, samples: Any, decay: Any, chosen: Any) -> Any:
    """Return decay · old + (1 − decay) · sample where `chosen`, else `old`."""

    def of(x: jax.Array, sample: Any) -> jax.Array:
        return jnp.where(chosen, decay * x + (1 - decay) * sample, x)

    return jax.tree.map(of, old, samples)


def curvature(decrease: jax.Array) -> jax.Array:
    """Return curvature times rate, of a decrease relative to the predicted one."""
    return jnp.clip(2 * (1 - decrease), LEAST_CURVATURE, MOST_CURVATURE)


def limited(
    wanted: jax.Array, last: jax.Array, decrease: jax.Array, num_steps: jax.Array
) -> jax.Array:
    """Return the wanted learning rate, limited to a change of the last one."""
    is_linear = decrease > IS_LINEAR
    growth = jnp.where(is_linear, LINEAR_GROWTH, GROWTH)
    first = jnp.where(is_linear, FIRST_GROWTH, LINEAR_GROWTH)
    growth = jnp.where(num_steps <= FIRST_STEPS, first, growth)
    return jnp.clip(wanted, last / FALL, last * growth)
