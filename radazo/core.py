"""The whole theory: an estimator is two pure functions.

Everything that radazo turns into a gradient comes from values of a function. An
*estimator* looks at `value_fn` in the neighbourhood of `params` and answers with a
gradient estimate; an *update rule* is an ordinary `optax.GradientTransformation` that
does not know that its gradient was estimated. The two meet in `with_estimator` alone.

Randomness is a key. A direction is a pure function of its key and is never stored if it
can be drawn again; the same key gives the same estimate.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

Key = chex.PRNGKey | int
Params = Any  # A pytree of arrays.
ValueFn = Callable[..., Any]
Schedule = Callable[[Any], Any]
Mask = Any  # A pytree of bools, a prefix of one, or a function from params to either.


class EstimateInfo(NamedTuple):
    """What an estimate saw, beside the value and the gradient.

    Nothing here is carried from step to step; it costs no further function value.

    Attributes:
      slopes: (num_directions,) directional slopes; 0 where one was dropped.
      kept: (num_directions,) bool, False where a slope was not finite, or so large that
        the gradient would not be.
      num_values: int32 scalar, function values taken.
      aux: What `value_fn` returned beside its value, or None.
      factor: Float scalar c: the gradient is c times the mean of slope times direction;
        NaN where it is something else.
      squared_norm: Float scalar, the mean of ‖u‖²; NaN where the directions of a step
        depend on each other, so that their spread says nothing of the variance.
    """

    slopes: jax.Array
    kept: jax.Array
    num_values: jax.Array
    aux: Any = None
    factor: Any = math.nan
    squared_norm: Any = math.nan


class EstimateFn(Protocol):
    """`estimate(key, value_fn, params, state) -> (value, gradient, state, info)`."""

    def __call__(
        self,
        key: Key,
        value_fn: ValueFn,
        params: Params,
        state: Any,
        *,
        has_aux: bool = False,
    ) -> tuple[jax.Array, Params, Any, EstimateInfo]: ...


class Estimator(NamedTuple):
    """A gradient estimator: function values in, gradient estimate out.

    Attributes:
      init: `init(params) -> state`, arrays only. It must not look at values.
      estimate: `estimate(key, value_fn, params, state, *, has_aux=False)
        -> (value, gradient, state, info)`. `value_fn` takes the parameters alone; with
        `has_aux` it returns `(value, aux)`, and `info.aux` carries `aux`.
      memoryless: True if an estimate from a fresh state is as good as any, so that
        `value_and_grad` may throw the state away.
    """

    init: Callable[[Params], Any]
    estimate: EstimateFn
    memoryless: bool = False


def moved(updates: Params, params: Params) -> Params:
    """params + updates; leaves that are not floating point stay as they are."""
    return jax.tree.map(
        lambda x, u: optax.apply_updates(x, u) if is_floating(x) else x, params, updates
    )


def is_floating(leaf: Any) -> bool:
    """Whether `leaf` is a floating-point array, which can be moved."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def wide(*dtypes: Any) -> Any:
    """The type to compute in: float64 if one of `dtypes` has 64 bits, else float32."""
    eight = any(jnp.dtype(dtype).itemsize == 8 for dtype in dtypes)
    # Without `jax_enable_x64` an array of NumPy is float32 as soon as it is traced.
    return jnp.dtype(jnp.result_type(float) if eight else jnp.float32)
