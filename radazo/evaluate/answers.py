"""A step cut at the oracle: what an estimate takes in the place of `value_fn`.

An estimator that looks along directions asks for the values of points that it can name,
and a direction is a function of its key: so the values may be taken anywhere, by anyone
who has the key. An estimate, and each optimizer made of one, takes as its `value_fn`

  Told(values)            values that were taken elsewhere
  Replayed(...)           what a past step saw
  Watched(value_fn, [])   a function, and a list in which to put what was seen
  Asked(index, [])        a query, and a list in which to put its point
  Counted([])             a list in which to put how many directions there are
"""

import functools
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from radazo import core, validation


class Told(NamedTuple):
    """Values in the place of `value_fn`: a step from what others have evaluated.

    Of a step with K directions query 0 is f(x) and query k + 1 is f(x + smoothing · uₖ)
    for `forward`; for `central` queries 2k and 2k + 1 are the points ahead and behind,
    and for `one_point` query k is the point. `ask` gives the points.

    Attributes:
      values: (num_queries,) real array in the order of the queries, with further axes
        for terms where the estimator has `terms=True`; NaN for a missing one, whose
        direction is then dropped. They are used in their own type, as JAX has it.
      rest: What is to be added to the values and is too small for their type, of the
        same shape; None for nothing. Of float64 values where JAX has none, `tell` makes
        two float32, so that they are subtracted in nearly twice the digits.
    """

    values: Any
    rest: Any = None

    def __call__(self, params: core.Params) -> NoReturn:
        del params
        _not_a_function(self)


class Replayed(NamedTuple):
    """What a step saw in the place of `value_fn`: the same step once more.

    Nothing is evaluated. Compiled without the function, the step may round otherwise in
    its last places.

    Attributes:
      slopes: (num_directions,) as in `EstimateInfo`.
      kept: (num_directions,) bool, as there.
      value: Scalar, the value of that step.
    """

    slopes: Any
    kept: Any
    value: Any

    def __call__(self, params: core.Params) -> NoReturn:
        del params
        _not_a_function(self)


class Asked(NamedTuple):
    """A query in the place of `value_fn`: what is looked for is its point.

    Attributes:
      index: Integer scalar, which of the queries of the step.
      found: A list in which the estimate puts (point, number of queries of a step).
    """

    index: Any
    found: list[tuple[core.Params, int]]

    def __call__(self, params: core.Params) -> NoReturn:
        del params
        _not_a_function(self)


class Counted(NamedTuple):
    """A question in the place of `value_fn`: along how many directions a step looks.

    Attributes:
      found: A list in which the estimate puts K.
    """

    found: list[int]

    def __call__(self, params: core.Params) -> NoReturn:
        del params
        _not_a_function(self)


class Watched(NamedTuple):
    """A `value_fn` that hands out what a step saw along its directions.

    Every estimator that takes a mean of slope times direction appends an
    `EstimateInfo` to `infos` when it is traced: return it from the function that is
    compiled. `Replayed` makes the step again of its slopes.

    Attributes:
      value_fn: The function.
      infos: A list.

    Example:
      >>> optimizer = radazo.radazo(0.01, key=0)
      >>> @jax.jit
      ... def step(params, state):
      ...     watched = Watched(lambda x: jnp.sum(x**2), [])
      ...     updates, state = optimizer.update(None, state, params, value_fn=watched)
      ...     return optax.apply_updates(params, updates), state, watched.infos[0]
      >>> params = jnp.ones(3)
      >>> _, _, info = step(params, optimizer.init(params))
      >>> print(info.slopes.shape, info.num_values)
      (10,) 11
    """

    value_fn: core.ValueFn
    infos: list[core.EstimateInfo]

    def __call__(self, params: core.Params, **keywords: Any) -> Any:
        return self.value_fn(params, **keywords)


INSTEAD = Told | Replayed | Asked | Counted
Given = INSTEAD | Watched


def of(value_fn: Any) -> Given | None:
    """`value_fn` if it is more than a function, or none."""
    return value_fn if isinstance(value_fn, Given) else None


def bound(value_fn: Any, keywords: dict[str, Any]) -> core.ValueFn:
    """The function of the parameters alone, of the same kind."""
    if isinstance(value_fn, Watched):
        inner = functools.partial(value_fn.value_fn, **keywords)
        return value_fn._replace(value_fn=inner)
    return value_fn if of(value_fn) else functools.partial(value_fn, **keywords)


def named_by(value_fn: Any) -> Any:
    """What has the signature of the function."""
    return value_fn.value_fn if isinstance(value_fn, Watched) else value_fn


def values(told: Told, num_queries: int, *, terms: bool) -> jax.Array:
    """The values that were told, in the type in which slopes are taken of them."""
    values = jnp.asarray(told.values)
    axes = "and further axes of terms" if terms else "and no other axis"
    if values.shape[:1] != (num_queries,) or (values.ndim > 1 and not terms):
        validation.fail(
            "Told",
            "values",
            f"have {num_queries} entries {axes}",
            f"shape {values.shape}",
            "One for each query of a step, in their order; NaN for a missing one.",
        )
    values = values.astype(_wide("Told", "values", values))
    if told.rest is None:
        return values
    # As terms: the difference of two points is taken of each, and then their sum.
    return jnp.stack([values, jnp.asarray(told.rest, values.dtype)], axis=-1)


def in_two(values: np.ndarray) -> Told:
    """Float64 values for a JAX without float64."""
    if values.dtype != np.float64 or jnp.result_type(float) == np.float64:
        return Told(values)
    with np.errstate(over="ignore", invalid="ignore"):
        first = values.astype(np.float32)
        return Told(first, (values - first).astype(np.float32))


def slopes(replayed: Replayed, num_directions: int) -> jax.Array:
    """The slopes of a past step, NaN where one was dropped."""
    slopes, kept = jnp.asarray(replayed.slopes), jnp.asarray(replayed.kept)
    for name, given in (("slopes", slopes), ("kept", kept)):
        if given.shape != (num_directions,):
            validation.fail(
                "Replayed",
                name,
                f"have {num_directions} entries",
                f"shape {given.shape}",
                "It is what `EstimateInfo` has of that step, of the same estimator.",
            )
    return jnp.where(kept, slopes.astype(_wide("Replayed", "slopes", slopes)), jnp.nan)


def _wide(api_name: str, argument: str, array: jax.Array) -> Any:
    if not (
        jnp.issubdtype(array.dtype, jnp.floating)
        or jnp.issubdtype(array.dtype, jnp.integer)
    ):
        hint = "Pass an array of numbers."
        validation.fail(api_name, argument, "be real", array.dtype, hint, TypeError)
    return core.wide(array.dtype)


def _not_a_function(answer: Any) -> NoReturn:
    validation.fail(
        "estimate",
        "value_fn",
        "be a function here",
        f"a `{type(answer).__name__}`",
        "This estimator, or the optimizer behind it, evaluates points that are not "
        "known before the step: take one that looks along directions, as "
        "`radazo.sphere_estimator()` with `forward`, `central` or `one_point`.",
        TypeError,
    )
