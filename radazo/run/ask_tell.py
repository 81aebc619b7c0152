"""Ask for the points of a step, evaluate the function elsewhere, tell its values."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import core, partition, validation
from radazo.optimizers import combinators, stepping

_HINT = "Ask after each `tell`: `radazo.ask(optimizer, params, state)`."
_ORDER = "One for each query of a step, in their order; NaN for a missing one."
_MISSING = "In a mapping, omit a missing value or pass None; in an array, pass NaN."


class QueryId(NamedTuple):
    """The index of a query: two integers, to be sent to any process.

    Attributes:
      count: Steps before this one.
      index: Index of the query within the step.
    """

    count: int
    index: int


class Queries(NamedTuple):
    """The queries of one step, as returned by `ask`.

    Attributes:
      ids: A `QueryId` for each query that must be evaluated, in order.
      point: `point(id) -> params`, the point of a query.
      function: `function(id)`, the function to evaluate instead of `value_fn`, such as
        the `full_value_fn` of `svrg_estimator`; None for `value_fn`.
    """

    ids: list[QueryId]
    point: Callable[[tuple[int, int]], core.Params]
    function: Callable[[tuple[int, int]], core.ValueFn | None]


def ask(optimizer: Any, params: Any, state: Any) -> Queries:
    """Return the points whose values the next step of an optimizer needs.

    Each point is computed on demand, from (state, params) and its `QueryId`. With
    `forward` query 0 is f(x) and query k + 1 is f(x + smoothing · uₖ); with `central`
    queries 2k and 2k + 1 are at x ± smoothing · uₖ; with `one_point` query k is at
    x + smoothing · uₖ.

    Args:
      optimizer: A complete ZO optimizer, e.g. `radazo`, whose points are known
        before the step: not `forward_mode`.
      params: The parameters of this step.
      state: The state, from `optimizer.init(params)` or `tell`.
    Returns:
      `Queries`.
    Raises:
      ValueError: If `optimizer` has no estimator, or its points are not known.
    Cost:
      No function values. Each point draws one direction and copies the parameters.
    Example:
      >>> value_fn = lambda x: np.sum((x - 1) ** 2)
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> params = np.zeros(5, np.float32)
      >>> state = optimizer.init(params)
      >>> for _ in range(300):
      ...     queries = ask(optimizer, params, state)
      ...     values = {id: value_fn(queries.point(id)) for id in queries.ids}
      ...     params, state = radazo.tell(optimizer, params, state, values)
      >>> print(len(queries.ids), state.num_values, np.max(np.abs(params - 1)) < 0.1)
      11 3300 True
    References:
      Collette et al., Object-oriented programming of optimizers, 2010 (ask and tell).
    """
    arrays, rest = partition.split(params)
    count = int(combinators.find_estimator_state("ask", state).count)
    needed, functions = jax.device_get(_query_kinds(optimizer, rest, arrays, state))
    ids = [QueryId(count, int(i)) for i in np.flatnonzero(needed)]
    known = frozenset(ids)

    def check(id_: tuple[int, int]) -> int:
        if tuple(id_) not in known:
            rule = f"be one of the {len(ids)} of step {count}"
            validation.fail("point", "id_", rule, repr(id_), _HINT)
        return id_[1]

    def point(id_: tuple[int, int]) -> core.Params:
        return rest.join(_point(optimizer, rest, arrays, state, check(id_)))

    def function(id_: tuple[int, int]) -> core.ValueFn | None:
        which = functions[check(id_)]
        if not which:
            return None
        *_, queries = stepping.first_evaluation(optimizer, params, state)
        return queries.functions[which - 1]

    return Queries(ids, point, function)


def tell(
    optimizer: optax.GradientTransformation, params: Any, state: Any, values: Any
) -> tuple[core.Params, Any]:
    """Take the step of an optimizer from values that were evaluated elsewhere.

    The step equals that of `optimizer.update` with the same values, up to the rounding
    of two separately compiled programs.

    Args:
      optimizer, params, state: As in `ask`.
      values: A mapping from `QueryId` to value, in any order: a missing, None or NaN
        value drops its direction, and one of an earlier step is ignored. Or an array of
        the values of all queries, in order, NaN for one that is not needed. Without
        JAX's float64, float64 values keep 48 of their 53 bits, as pairs of float32.
    Returns:
      The parameters and the state after the step. If no direction has its values (with
      `forward` all need f(x)), the parameters do not change and `num_skipped` rises.
    Raises:
      TypeError: If the values are not real numbers, or are bools.
      ValueError: If there are too many or too few values, or one is of a later step.
    Cost:
      No function values; K directions are redrawn.
    Example:
      >>> optimizer = radazo.zo_sgd(0.1, radazo.gaussian_estimator(), key=0)
      >>> params = np.zeros(3, np.float32)
      >>> state = optimizer.init(params)
      >>> queries = ask(optimizer, params, state)
      >>> values = {id: np.sum(queries.point(id)) for id in queries.ids[:8]}
      >>> params, state = tell(optimizer, params, state, values)
      >>> print(state.count, state.num_dropped)
      1 3
    """
    arrays, rest = partition.split(params)
    num = len(jax.device_get(_query_kinds(optimizer, rest, arrays, state)[0]))
    if isinstance(values, Mapping):
        count = int(combinators.find_estimator_state("tell", state).count)
        values = _in_order(count, num, values)
    arrays, state = _step(optimizer, rest, arrays, state, _in_two(_numbers(values)))
    return rest.join(arrays), state


def _in_order(now: int, num: int, values: Mapping[tuple[int, int], Any]) -> np.ndarray:
    """Return the values of step `now` as an array, NaN where one is missing."""
    ids = [QueryId(now, i) for i in range(num)]
    known = frozenset(ids)
    for id_ in values:
        pair = isinstance(id_, tuple) and len(id_) == 2
        if id_ not in known and not (pair and id_[0] < now):
            rule = f"have keys of step {now} (or before) with an index below {num}"
            validation.fail("tell", "values", rule, repr(id_), _HINT)
    here = {id_: _numbers(values[id_]) for id_ in ids if values.get(id_) is not None}
    shapes = {x.shape for x in here.values()}
    if len(shapes) > 1:
        rule = "be of one shape: numbers, or rows of terms"
        validation.fail("tell", "values", rule, f"shapes {sorted(shapes)}", _MISSING)
    # NaN in the narrowest dtype does not promote the others.
    missing = np.full(min(shapes, default=()), np.nan, np.float16)
    return np.stack([here.get(id_, missing) for id_ in ids])


def _numbers(values: Any) -> np.ndarray:
    """Return real numbers as an array of a NumPy dtype; Python numbers in float64."""
    if isinstance(values, int) and not isinstance(values, bool):
        values = validation.real(values)  # May exceed 64 bits.
    try:
        array = np.asarray(values)
        known = jnp.isdtype(array.dtype, ("integral", "real floating"))
    except (TypeError, ValueError):
        known, array = False, np.zeros(())  # Ragged.
    if not known:
        got = f"a {type(values).__name__}: {values!r}"[:200]
        validation.fail("tell", "values", "be real numbers", got, _MISSING, TypeError)
    return array if array.dtype.kind in "iuf" else array.astype(np.float32)


def _in_two(values: np.ndarray) -> list[np.ndarray]:
    """Return the values; float64 ones as two float32 where JAX has no float64."""
    if values.dtype != np.float64 or jnp.result_type(float) == np.float64:
        return [values]
    with np.errstate(over="ignore", invalid="ignore"):
        first = values.astype(np.float32)
        return [first, (values - first).astype(np.float32)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _point(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, index: Any
) -> list[jax.Array]:
    *_, queries = stepping.first_evaluation(optimizer, rest.join(arrays), state)
    return rest.pick(jax.tree.leaves(queries.point(index)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _query_kinds(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> tuple[jax.Array, jax.Array]:
    """Return for each query whether it is needed, and the index of its function."""
    *_, queries = stepping.first_evaluation(optimizer, rest.join(arrays), state)
    jax.eval_shape(queries.point, jnp.uint32(0))  # Raises if there are no points.
    indices = jnp.arange(queries.num, dtype=jnp.uint32)
    needed = queries.needed or (lambda index: jnp.asarray(True))
    function_of = queries.function_of or (lambda index: jnp.int32(0))
    return jax.vmap(needed)(indices), jax.vmap(function_of)(indices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, values: Any
) -> tuple[list[jax.Array], Any]:
    """Take the step; two arrays of `values` are the parts of each value."""

    def evaluate(_: Any, step: core.Step, queries: core.Queries) -> core.Readings:
        arrays = [jnp.asarray(x) for x in values]
        shape = arrays[0].shape
        if shape[:1] != (queries.num,) or (len(shape) > 1 and not step.terms):
            axes = "and further axes of terms" if step.terms else "and no other axis"
            rule, got = f"have {queries.num} entries {axes}", f"shape {shape}"
            validation.fail("tell", "values", rule, got, _ORDER)
        # In the dtype in which slopes are computed.
        first, *second = (x.astype(core.wide(x.dtype)) for x in arrays)
        # As terms: each part is differenced before the parts are summed.
        terms = jnp.stack([first, *second], axis=-1) if second else first
        return queries.read(terms, None)

    params, state = stepping.take_step(
        optimizer, None, rest.join(arrays), state, evaluate=evaluate
    )
    return rest.pick(jax.tree.leaves(params)), state
