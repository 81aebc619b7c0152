"""Search among the vertices of a box by flipping blocks of signs (SignHunter).

It is an estimator with one query, whose "gradient" is the negated move of the
parameters, so that it runs wherever an optimizer does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from radazo import core, flat, partition, projections, validation
from radazo.estimators import build
from radazo.optimizers import combinators

_NAMES = ("lower", "upper")


class SignSearchState(NamedTuple):
    """State of the estimator within `sign_search`.

    Attributes:
      count: int32 scalar, steps so far.
      start, size: uint32 scalars, first element and length of the block of this step,
        in the flattened parameters; a size of 0 flips nothing.
      params_value: Float scalar, f at the parameters; inf if it is not finite.
    """

    count: jax.Array
    start: jax.Array
    size: jax.Array
    params_value: jax.Array


def sign_search(
    lower: Any, upper: Any, *, terms: bool = False, mask: core.Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Minimize over the vertices of a box by flipping blocks of signs (SignHunter).

    For attacks with bounded perturbations, and other functions whose minimum over a box
    is near a vertex. It needs no gradient, smoothing, learning rate or key.

      step 0:      evaluate f(x)
      step 1:      x ← v,  vᵢ = upper if upper − xᵢ ≤ xᵢ − lower, else lower
      step t > 1:  y = x with block t moved to the other side of the box
                   x ← y  if f(y) < f(x)

    The blocks are all elements, in the order of the leaves, then both halves, four
    quarters, and so on down to single elements: of ⌈d / 2ʰ⌉ elements each, h = 0, 1, …
    After the last one the search starts over with all elements, from the vertex it has
    reached. From the middle of the box it starts at `upper`, as the authors do.

    Parameters keep to the box, within rounding of a vertex. f must be deterministic,
    without batches. The vertex of step 1 is taken even if it is worse than the start.

    Args:
      lower, upper: Finite numbers or pytrees like the parameters, whose leaves may be
        numbers, lower ≤ upper; elements with equal bounds stay there. They may be
        traced, e.g. in a `jax.vmap` over boxes, and are not checked then.
      terms, mask: As in `finite_difference_estimator`.
    Returns:
      As `with_estimator`, with a `SignSearchState`. The value of a step is f at the
      parameters before it; a value that is not finite is never lower.
    Raises:
      ValueError: If the bounds do not fit the parameters, `lower` exceeds `upper`, or
        their distance is not finite.
      TypeError: If `terms` or `mask` is of the wrong kind.
    Cost:
      One function value per step; about 2d until every element was flipped alone.
      Scalars in the state; two copies of the parameters during a step.
    Example:
      >>> slope = jnp.array([1.0, 1, 1, 1, -1, -1, 2, 2])
      >>> result = radazo.minimize(
      ...     lambda x: x @ slope, jnp.zeros(8), sign_search(-1.0, 1.0), 9
      ... )
      >>> print(result.params, result.num_values[-1])
      [-1. -1. -1. -1.  1.  1. -1. -1.] 9
    References:
      Al-Dujaili and O'Reilly, Sign bits are all you need for black-box attacks, ICLR
      2020.
    """
    api_name, bounds = "sign_search", (lower, upper)
    if all(map(projections.is_scalar, bounds)):
        (pair,) = projections.sides(api_name, np.zeros(()), bounds, _NAMES)
        _rounded(api_name, bounds, pair, jnp.result_type(float))

    def init(layout: flat.Layout) -> SignSearchState:
        del layout
        start, size = (jnp.zeros((), jnp.uint32) for _ in range(2))
        infinity = jnp.full((), jnp.inf, jnp.result_type(float))
        return SignSearchState(jnp.zeros((), jnp.int32), start, size, infinity)

    def queries(step: core.Step, state: SignSearchState) -> core.Queries:
        arrays, rest = partition.split(step.params)
        updates = _flips(api_name, step, bounds, state)
        moved = [
            x if u is None else x + u for x, u in zip(arrays, updates, strict=True)
        ]

        def read(values: jax.Array, aux: Any) -> core.Readings:
            value = jnp.sum(values[0])
            return core.Readings(value, value[None], jnp.isfinite(value)[None], aux)

        return core.Queries(
            num=1,
            point=lambda index: rest.join(moved),
            read=read,
            num_readings=1,
            shared=_ravel(step.layout, updates),
        )

    def estimate(
        step: core.Step, state: Any, queries: core.Queries, readings: core.Readings
    ) -> core.Estimate:
        before = state.params_value
        value, valid = readings.value.astype(before.dtype), readings.valid
        taken = valid[0] & ((value < before) | (state.count == 1))
        move = jnp.where(taken, queries.shared, jnp.zeros_like(queries.shared))
        change = jnp.where(valid & jnp.isfinite(before), value - before, 0)
        info = core.EstimateInfo(change, valid, jnp.int32(1), readings.aux)
        start, size = _next_block(step.layout.dim, state)
        after = jnp.where(taken, value, before)
        state_after = SignSearchState(state.count, start, size, after)
        reported = jnp.where(state.count == 0, value, before)
        return core.Estimate(reported, -move, state_after, info, step.key[0])

    settings = build.Settings(1.0, terms, mask)
    built = build.estimator(api_name, init, queries, estimate, settings)

    def checked_init(params: core.Params) -> SignSearchState:
        layout = flat.layout(api_name, params, mask)
        _box(api_name, layout, params, bounds)
        return init(layout)

    return combinators.attach_search(api_name, built._replace(init=checked_init), key=0)


def _next_block(dim: int, state: SignSearchState) -> tuple[jax.Array, jax.Array]:
    """Return (start, size) of the block after that of this step."""
    whole, zero, one = jnp.uint32(dim), jnp.uint32(0), jnp.uint32(1)
    is_last = state.start >= whole - state.size
    size = jnp.where(is_last, state.size - state.size // jnp.uint32(2), state.size)
    again = (state.size == 0) | (is_last & (state.size == one))
    size = jnp.where(again, whole, size)
    # Step 0 evaluates the start and step 1 the vertex, both without a flip.
    size = jnp.where(state.count == 0, zero, size)
    return jnp.where(is_last | again, zero, state.start + state.size), size


def _flips(
    api_name: str, step: core.Step, bounds: tuple[Any, Any], state: SignSearchState
) -> list[jax.Array | None]:
    """Return the update of each array of the parameters; None if it has none."""
    layout, offset, updates = step.layout, 0, []
    arrays, rest = partition.split(step.params)
    box = _box(api_name, layout, step.params, bounds)
    sizes = rest.pick([*layout.sizes])
    for leaf, size, sides in zip(arrays, sizes, box, strict=True):
        if sides is None:
            updates.append(None)
            continue
        x, low, up = map(jnp.asarray, (leaf, *sides))
        index = lax.iota(jnp.uint32, size).reshape(x.shape) + jnp.uint32(offset)
        in_block = index - state.start < state.size  # Wraps around before the start.
        is_up = (up - x <= x - low) ^ in_block
        sign = jnp.where(is_up, jnp.ones_like(x), -jnp.ones_like(x))
        update = projections.towards(x, jnp.where(is_up, up, low), sign)
        updates.append(jnp.where(state.count == 0, jnp.zeros_like(update), update))
        offset += size
    return updates


def _ravel(layout: flat.Layout, updates: list[jax.Array | None]) -> jax.Array:
    """Return the updates as one flat vector, (dim,)."""
    parts = [jnp.ravel(u).astype(layout.dtype) for u in updates if u is not None]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, layout.dtype)


def _box(
    api_name: str, layout: flat.Layout, params: core.Params, bounds: tuple[Any, Any]
) -> list[tuple[Any, Any] | None]:
    """Return (lower, upper) of each array in its type; None if it is not perturbed."""
    arrays, rest = partition.split(params)
    pairs = projections.sides(api_name, params, bounds, _NAMES)
    active = rest.pick([*layout.active])
    return [
        _rounded(api_name, bounds, pair, jnp.result_type(x)) if on else None
        for x, on, pair in zip(arrays, active, pairs, strict=True)
    ]


def _rounded(
    api_name: str, bounds: tuple[Any, Any], pair: tuple[Any, Any], dtype: Any
) -> tuple[Any, Any]:
    """Return (lower, upper) in a type; fail if their distance overflows in it."""
    low, up = projections.within(*pair, dtype)
    if not projections.is_traced(pair):
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = np.all(np.isfinite(up - low))
        if not is_finite:
            rule = f"be at a finite distance from `lower` in {dtype}"
            hint = "An element is moved from one bound to the other."
            validation.fail(api_name, "upper", rule, f"{bounds!r}"[:200], hint)
    return low, up
