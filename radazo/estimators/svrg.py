"""Variance reduction by a snapshot: estimates as differences from an anchor.

A noisy estimate at the present parameters, less the same at a snapshot, plus a good
estimate at the snapshot, made once in many steps. Near the snapshot the two noisy
estimates see nearly the same, and what they share cancels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from radazo import core, partition, random, validation
from radazo.estimators import build

# Parts of the key of a step: for the estimates at x, at x₀, and of the full gradient.
_HERE, _THERE, _FULL = 0, 1, 2


class SvrgState(NamedTuple):
    """State of `svrg_estimator`.

    Attributes:
      count: int32 scalar, estimates so far.
      age: int32 scalar, estimates since the snapshot; negative before the first one.
      snapshot: The floating-point leaves of the parameters at the snapshot, None where
        the parameters have others.
      full_gradient: The estimate of the whole objective's gradient there, as
        `snapshot`.
    """

    count: jax.Array
    age: jax.Array
    snapshot: core.Params
    full_gradient: core.Params


def svrg_estimator(
    estimator: core.Estimator,
    full_value_fn: core.ValueFn,
    *,
    num_inner_steps: int = 50,
    share_directions: bool = False,
) -> core.Estimator:
    """Around an estimator: its noise from batches is reduced by a snapshot, ZO-SVRG.

    For objectives that are a mean over data: `value_fn` takes a batch, another in each
    step, and `full_value_fn` all data. Where the noise of the directions outweighs that
    of the batches, as with K much less than d, it pays for three estimates and gains
    nothing, behind `radazo` as behind `zo_sgd`: take batches alone.

      every `num_inner_steps` steps:  x₀ ← x,  G ← estimate of `full_value_fn` at x₀
      g = estimate(x) − estimate(x₀) + G           both of `value_fn`, of this step

    The mean of g is that of an estimate of the whole objective at x. Batch noise falls
    as x nears x₀. With fresh directions, as in the paper, the noise of the directions
    does not: it is that of three estimates. With shared directions it falls as well,
    to that of G.

    Args:
      estimator: Makes all three estimates; memoryless, as `sphere_estimator(...)` with
        a number for its `smoothing`.
      full_value_fn: `full_value_fn(params)`, the whole objective; without aux, and
        with terms if the estimator has `terms=True`.
      num_inner_steps: Steps between two snapshots, at least 1.
      share_directions: Whether the estimates at x and x₀ draw the same directions.
    Returns:
      An `Estimator`, which is not memoryless. Its value and aux, and the (K,) slopes
      and `kept` of `info`, are those of the estimate at x; `info.num_values` counts all
      three. Where no direction is kept at x, the gradient is zero; where none is kept
      at x₀, or no full estimate has succeeded so far, it is the estimate at x alone. A
      full estimate that fails leaves the snapshot as it was, and is made again in the
      next step.
    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If `estimator` is not memoryless, or `num_inner_steps` < 1.
    Cost:
      Twice the function values of `estimator` per step, and once more with a snapshot;
      one call of `full_value_fn` counts as one value. Two copies of the parameters in
      the state. Beside what `estimator` takes, two copies more. Under `jax.vmap` over
      runs, each step pays for a snapshot.
    Example:
      >>> data = jnp.arange(8.0)
      >>> fn = lambda x, batch: jnp.mean((x - batch) ** 2)
      >>> estimator = svrg_estimator(
      ...     radazo.rademacher_estimator(smoothing=0.5, difference=radazo.central),
      ...     lambda x: fn(x, data),
      ...     share_directions=True,
      ... )
      >>> optimizer = radazo.zo_sgd(0.25, estimator, key=0)
      >>> step = jax.jit(
      ...     lambda x, state, batch: optimizer.update(
      ...         None, state, x, value_fn=fn, batch=batch
      ...     )
      ... )
      >>> x, state = jnp.zeros(()), optimizer.init(jnp.zeros(()))
      >>> for batch in data.reshape(4, 2):  # No batch has the mean of all, 3.5.
      ...     updates, state = step(x, state, batch)
      ...     x = x + updates
      >>> print(x)  # As if all data had been in each batch: 3.5 · (1 − 2⁻⁴)
      3.28125
    References:
      Liu et al., Zeroth-order stochastic variance reduction for nonconvex optimization,
      2018. arXiv:1805.10367, algorithm 2.
    """
    api_name = "svrg_estimator"
    _check(api_name, estimator, full_value_fn, num_inner_steps, share_directions)

    def init(params: core.Params) -> SvrgState:
        estimator.init(params)  # It says what in them cannot be perturbed.
        snapshot = jax.tree.map(
            lambda x: jnp.array(x, copy=True) if core.is_floating(x) else None, params
        )
        return SvrgState(
            count=jnp.zeros((), jnp.int32),
            age=jnp.full((), -1, jnp.int32),
            snapshot=snapshot,
            full_gradient=jax.tree.map(jnp.zeros_like, snapshot),
        )

    def estimate(
        key: core.Key,
        value_fn: core.ValueFn,
        params: core.Params,
        state: Any,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, core.Params, Any, core.EstimateInfo]:
        words = random.key_data(api_name, key)
        due = (state.age < 0) | (state.age >= num_inner_steps)
        state, num_full = _if(
            due,
            functools.partial(_renewed, estimator, words, full_value_fn, params),
            lambda state: (state, jnp.zeros((), jnp.int32)),
            state,
        )
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((words, params, state))):
            value_fn = _traced_once(value_fn)
        at = functools.partial(_at, estimator, words, has_aux=has_aux)
        value, here, _, info = at(_HERE, value_fn, params)
        part = _HERE if share_directions else _THERE
        _, there, _, seen = at(part, value_fn, _at_snapshot(params, state))
        anchored = jnp.any(info.kept) & jnp.any(seen.kept) & (state.age >= 0)
        gradient = jax.tree.map(
            functools.partial(_moved, anchored), here, there, state.full_gradient
        )
        older = jnp.asarray(optax.safe_increment(state.age))
        state = state._replace(
            count=jnp.asarray(optax.safe_increment(state.count)),
            age=jnp.where(state.age < 0, state.age, older),
        )
        num_values = info.num_values + seen.num_values + num_full
        unknown = jnp.full_like(info.squared_norm, jnp.nan)
        info = info._replace(num_values=num_values, squared_norm=unknown)
        return value, gradient, state, info

    return core.Estimator(init, estimate)


def _check(
    api_name: str,
    estimator: Any,
    full_value_fn: Any,
    num_inner_steps: Any,
    share_directions: Any,
) -> None:
    build.check_estimator(api_name, estimator)
    if not estimator.memoryless:
        validation.fail(
            api_name,
            "estimator",
            "be memoryless",
            "one whose `memoryless` is False (it uses past steps, or a `smoothing` "
            "schedule reads the step)",
            "Three estimates of a step share it: take `radazo.sphere_estimator()`, "
            "say, with a number for its `smoothing`.",
        )
    hint = "It takes the parameters alone and returns the whole objective."
    validation.function(api_name, "full_value_fn", full_value_fn, hint)
    hint = "It is the number of steps between two snapshots; 50 is a good start."
    validation.integer(api_name, "num_inner_steps", num_inner_steps, 1, hint)
    hint = "True draws the same directions at the parameters and at the snapshot."
    validation.instance(api_name, "share_directions", share_directions, bool, hint)


def _at(
    estimator: core.Estimator,
    words: jax.Array,
    part: int,
    value_fn: core.ValueFn,
    params: core.Params,
    *,
    has_aux: bool = False,
) -> tuple[jax.Array, core.Params, Any, core.EstimateInfo]:
    """An estimate with a key of its own, fold_in(key, part)."""
    key = random.typed(random.fold_in(words, part))
    fresh = estimator.init(params)
    return estimator.estimate(key, value_fn, params, fresh, has_aux=has_aux)


def _renewed(
    estimator: core.Estimator,
    words: jax.Array,
    full_value_fn: core.ValueFn,
    params: core.Params,
    state: SvrgState,
) -> tuple[SvrgState, jax.Array]:
    """The state with a new snapshot, or as it was, and the function values taken."""
    _, gradient, _, info = _at(estimator, words, _FULL, full_value_fn, params)
    succeeded = jnp.any(info.kept)

    def chosen(new: Any, old: Any) -> Any:
        return None if old is None else jnp.where(succeeded, new, old)

    state = state._replace(
        age=chosen(jnp.zeros((), jnp.int32), state.age),
        snapshot=jax.tree.map(chosen, params, state.snapshot),
        full_gradient=jax.tree.map(chosen, gradient, state.full_gradient),
    )
    return state, jnp.asarray(info.num_values, jnp.int32)


def _if(
    condition: jax.Array,
    yes: Callable[[SvrgState], Any],
    no: Callable[[SvrgState], Any],
    state: SvrgState,
) -> Any:
    """One of two functions of the state; outside of any jit the other is not called."""
    if isinstance(condition, Tracer):
        return lax.cond(condition, yes, no, state)
    return (yes if condition else no)(state)


def _traced_once(value_fn: core.ValueFn) -> core.ValueFn:
    """The function, traced at one call for all that follow."""
    seen = []

    @jax.jit
    def arrays_of(params: core.Params) -> list[jax.Array]:
        arrays, rest = partition.split(value_fn(params))
        seen[:] = [rest]
        return arrays

    def called(params: core.Params) -> Any:
        arrays = arrays_of(params)
        return seen[0].join(arrays)

    return called


def _at_snapshot(params: core.Params, state: SvrgState) -> core.Params:
    """The parameters with the floating-point leaves of the snapshot."""
    return jax.tree.map(
        lambda now, then: now if then is None else then, params, state.snapshot
    )


def _moved(anchored: jax.Array, here: Any, there: Any, full: Any) -> Any:
    """here − there + full where there is an anchor, in the type of `here`."""
    if full is None:
        return here
    wide = core.wide(here.dtype)
    largest = jnp.finfo(here.dtype).max.astype(wide)
    difference = here.astype(wide) - there.astype(wide) + full.astype(wide)
    moved = jnp.clip(difference, -largest, largest).astype(here.dtype)
    return jnp.where(anchored, moved, here)
