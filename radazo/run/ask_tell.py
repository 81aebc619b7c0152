"""A step whose function is evaluated elsewhere: ask for points, tell their values."""

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
_MISSING = "Leave out what is missing, or say None, in a mapping; NaN in an array."


class QueryId(NamedTuple):
    """Which query of which step: two integers, which any process can be sent.

    Attributes:
      count: Steps before this one.
      index: Which query of the step, from 0 on.
    """

    count: int
    index: int


class Queries(NamedTuple):
    """The queries of one step, as `ask` returns them.

    Attributes:
      ids: A `QueryId` for each query that must be evaluated, in their order.
      point: `point(id) -> params`, where to evaluate for one of them.
      function: `function(id)`, the function to evaluate there if it is not `value_fn`,
        such as the `full_value_fn` of `svrg_estimator`; else None.
    """

    ids: list[QueryId]
    point: Callable[[tuple[int, int]], core.Params]
    function: Callable[[tuple[int, int]], core.ValueFn | None]


def ask(optimizer: Any, params: Any, state: Any) -> Queries:
    """Return the points whose values the next step of an optimizer needs.

    For functions that run elsewhere: in processes, on machines, in a laboratory. A
    point is made when it is asked for, from nothing but (state, params), so whoever
    has these makes it from its `QueryId`, and no two of them need be held.

    Args:
      optimizer: A complete ZO optimizer, as `radazo`, or any that has an estimator in
        it which looks along directions: all of `finite_difference_estimator`'s kind
        but for `forward_mode`, majority votes, `prior_guided_estimator` and the two of
        history.
      params: The parameters of this step.
      state: Its state, of `optimizer.init(params)` or of `tell`.
    Returns:
      `Queries`. With `forward` query 0 is f(x) and query k + 1 is
      f(x + smoothing · uₖ); with `central` queries 2k and 2k + 1 are the points ahead
      and behind; with `one_point` query k is the point.
    Raises:
      ValueError: If there is no estimator in `optimizer`, or its difference does not
        take values at known points.
    Cost:
      No function values; a point is a copy of the parameters, made by one drawing.
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
    needed, functions = jax.device_get(_needed(optimizer, rest, arrays, state))
    ids = [QueryId(count, int(i)) for i in np.flatnonzero(needed)]
    known = frozenset(ids)

    def checked(id_: tuple[int, int]) -> int:
        if tuple(id_) not in known:
            rule = f"be one of the {len(ids)} of step {count}"
            validation.fail("point", "id_", rule, repr(id_), _HINT)
        return id_[1]

    def point(id_: tuple[int, int]) -> core.Params:
        return rest.join(_point(optimizer, rest, arrays, state, checked(id_)))

    def function(id_: tuple[int, int]) -> core.ValueFn | None:
        which = functions[checked(id_)]
        if not which:
            return None
        return combinators.first_evaluation(optimizer, params, state)[-1].functions[
            which - 1
        ]

    return Queries(ids, point, function)


def tell(
    optimizer: optax.GradientTransformation, params: Any, state: Any, values: Any
) -> tuple[core.Params, Any]:
    """Take the step of an optimizer from values that were evaluated elsewhere.

    The step is that of `optimizer.update` with the same values, bit for bit where XLA
    rounds the two programs alike; otherwise they differ in the last places.

    Args:
      optimizer, params, state: As for `ask`.
      values: A mapping from `QueryId` to value, in any order: one that is missing,
        None or NaN drops its direction, one of an earlier step comes too late and is
        ignored. Or an array of the values of all queries in their order, NaN for one
        that is not needed.
        Those in float64, as Python's numbers, are subtracted in twice the digits of
        float32 (48 of their 53 bits) where JAX has no float64.
    Returns:
      The parameters and the state after the step. Where no direction has its values
      (as without f(x), which all slopes of `forward` share) nothing moves and the
      step is counted in `num_skipped`.
    Raises:
      TypeError: If the values are not real numbers: a truth value is none.
      ValueError: If there are too many or too few, or one is of a later step.
    Cost:
      No function values; K directions are drawn again.
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
    num = len(jax.device_get(_needed(optimizer, rest, arrays, state)[0]))
    if isinstance(values, Mapping):
        count = int(combinators.find_estimator_state("tell", state).count)
        values = _in_order(count, num, values)
    arrays, state = _step(optimizer, rest, arrays, state, _in_two(_numbers(values)))
    return rest.join(arrays), state


def _in_order(now: int, num: int, values: Mapping[tuple[int, int], Any]) -> np.ndarray:
    """The values of step `now` as an array, NaN where there is none."""
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
    # NaN in the narrowest type leaves the others theirs.
    missing = np.full(min(shapes, default=()), np.nan, np.float16)
    return np.stack([here.get(id_, missing) for id_ in ids])


def _numbers(values: Any) -> np.ndarray:
    """Real numbers as an array of a type that NumPy knows; Python's in float64."""
    if isinstance(values, int) and not isinstance(values, bool):
        values = validation.real(values)  # Beyond 64 bits, too.
    try:
        array = np.asarray(values)
        known = jnp.isdtype(array.dtype, ("integral", "real floating"))
    except (TypeError, ValueError):
        known, array = False, np.zeros(())  # Rows of several lengths.
    if not known:
        got = f"a {type(values).__name__}: {values!r}"[:200]
        validation.fail("tell", "values", "be real numbers", got, _MISSING, TypeError)
    return array if array.dtype.kind in "iuf" else array.astype(np.float32)


def _in_two(values: np.ndarray) -> list[np.ndarray]:
    """The values; float64 ones as two float32 where JAX has no float64."""
    if values.dtype != np.float64 or jnp.result_type(float) == np.float64:
        return [values]
    with np.errstate(over="ignore", invalid="ignore"):
        first = values.astype(np.float32)
        return [first, (values - first).astype(np.float32)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _point(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, index: Any
) -> list[jax.Array]:
    *_, queries = combinators.first_evaluation(optimizer, rest.join(arrays), state)
    return rest.pick(jax.tree.leaves(queries.point(index)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _needed(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> tuple[jax.Array, jax.Array]:
    """For each query whether it is needed, and which function it evaluates."""
    *_, queries = combinators.first_evaluation(optimizer, rest.join(arrays), state)
    jax.eval_shape(queries.point, jnp.uint32(0))  # Raises where it has no points.
    indices = jnp.arange(queries.num, dtype=jnp.uint32)
    needed = queries.needed or (lambda index: jnp.asarray(True))
    function_of = queries.function_of or (lambda index: jnp.int32(0))
    return jax.vmap(needed)(indices), jax.vmap(function_of)(indices)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, values: Any
) -> tuple[list[jax.Array], Any]:
    def evaluate(
        function: core.Function, step: core.Step, queries: core.Queries
    ) -> core.Readings:
        del function
        return queries.read(_checked(values, queries.num, step.terms), None)

    params, state = stepping.take_step(
        optimizer, None, rest.join(arrays), state, evaluate=evaluate
    )
    return rest.pick(jax.tree.leaves(params)), state


def _checked(values: list[Any], num: int, terms: bool) -> jax.Array:
    """The values, in the type in which slopes are taken of them."""
    arrays = [jnp.asarray(x) for x in values]
    shape = arrays[0].shape
    if shape[:1] != (num,) or (len(shape) > 1 and not terms):
        axes = "and further axes of terms" if terms else "and no other axis"
        rule = f"have {num} entries {axes}"
        hint = "One for each query of a step, in their order; NaN for a missing one."
        validation.fail("tell", "values", rule, f"shape {shape}", hint)
    first, *rest = (x.astype(core.wide(x.dtype)) for x in arrays)
    # As terms: the difference of two points is taken of each, and then their sum.
    return jnp.stack([first, *rest], axis=-1) if rest else first
