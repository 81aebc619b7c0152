"""A step whose function is evaluated elsewhere: ask for points, tell their values."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from radazo import core, partition, validation
from radazo.evaluate import answers
from radazo.optimizers import combinators

_HINT = "Ask after each `tell`: `radazo.ask(optimizer, params, state)`."
_MISSING = "Leave out what is missing, or say None, in a mapping; NaN in an array."


class QueryId(NamedTuple):
    """Which query of which step: two integers, which any process can be sent.

    Attributes:
      count: Steps before this one.
      index: Which query of the step, from 0 on; `Told` says in which order they are.
    """

    count: int
    index: int


class Queries(NamedTuple):
    """The queries of one step, as `ask` returns them.

    Attributes:
      ids: A `QueryId` for each, in their order.
      point: `point(id) -> params`, where to evaluate for one of them.
    """

    ids: list[QueryId]
    point: Callable[[tuple[int, int]], core.Params]


def ask(optimizer: optax.GradientTransformation, params: Any, state: Any) -> Queries:
    """The points whose values the next step of an optimizer needs.

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
      `Queries`: `queries.ids`, and `queries.point(id)`, made anew in each call.
    Raises:
      TypeError: If the estimator takes values that are not known before the step.
      ValueError: If there is no estimator in `optimizer`, or its difference does not
        say where it takes values.
    Cost:
      No function values; a point is a copy of the parameters, made by one drawing.
    Example:
      >>> optimizer = radazo.radazo(0.02, key=0)
      >>> params = np.zeros(5, np.float32)
      >>> state = optimizer.init(params)
      >>> for _ in range(300):
      ...     ids, point = ask(optimizer, params, state)
      ...     values = {id: np.sum((point(id) - 1) ** 2) for id in ids}
      ...     params, state = radazo.tell(optimizer, params, state, values)
      >>> print(len(ids), state.num_values, np.max(np.abs(params - 1)) < 0.1)
      11 3300 True
    References:
      Collette et al., Object-oriented programming of optimizers, 2010 (ask and tell).
    """
    arrays, rest = partition.split(params)
    count = int(combinators.counters("ask", state).count)
    num = _num_queries(optimizer, rest, arrays, state)
    ids = [QueryId(count, i) for i in range(num)]

    def point(id_: tuple[int, int]) -> core.Params:
        if id_ not in ids:
            rule = f"be one of {num} of step {count}"
            validation.fail("point", "id_", rule, repr(id_), _HINT)
        return rest.join(_point(optimizer, rest, arrays, state, id_[1]))

    return Queries(ids, point)


def tell(
    optimizer: optax.GradientTransformation, params: Any, state: Any, values: Any
) -> tuple[core.Params, Any]:
    """The step of an optimizer, from values that were taken elsewhere.

    The same state as that of `optimizer.update`, and the same step from the same
    values: bit for bit where XLA rounds the two programs alike, which it need not:
    the last places of a step can depend on what is compiled with it.

      updates, state = optimizer.update(None, state, x, value_fn=Told(values))
      x ← x + updates

    Args:
      optimizer, params, state: As for `ask`.
      values: A mapping from `QueryId` to value, in any order: one that is missing,
        None or NaN drops its direction, one of an earlier step comes too late and is
        ignored. Or an array of all of them in the order of the queries, as for `Told`.
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
      >>> ids, point = ask(optimizer, params, state)
      >>> values = {id: np.sum(point(id)) for id in ids[:8]}
      >>> params, state = tell(optimizer, params, state, values)
      >>> print(state.count, state.num_dropped)
      1 3
    """
    if isinstance(values, Mapping):
        values = _in_order(ask(optimizer, params, state).ids, values)
    arrays, rest = partition.split(params)
    told = answers.in_two(_numbers(values))
    arrays, state = _step(optimizer, rest, arrays, state, told)
    return rest.join(arrays), state


def _in_order(ids: list[QueryId], values: Mapping[tuple[int, int], Any]) -> np.ndarray:
    """The values of this step as an array, NaN where there is none."""
    now, num, known = ids[0].count, len(ids), frozenset(ids)
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _point(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, index: Any
) -> list[jax.Array]:
    return rest.pick(jax.tree.leaves(_asked(optimizer, rest, arrays, state, index)[0]))


def _num_queries(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> int:
    return _one_for_each(optimizer, rest, arrays, state).size


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_for_each(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any
) -> jax.Array:
    """As many zeros as queries: compiled, so that no later step traces it again."""
    return jnp.zeros(_asked(optimizer, rest, arrays, state, 0)[1], jnp.bool_)


def _asked(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, index: Any
) -> tuple[core.Params, int]:
    """The point of a query, and how many there are."""
    asked = answers.Asked(index, [])
    optimizer.update(None, state, rest.join(arrays), value_fn=asked)
    return asked.found[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    optimizer: Any, rest: partition.Static, arrays: Any, state: Any, told: answers.Told
) -> tuple[list[jax.Array], Any]:
    params = rest.join(arrays)
    updates, state = optimizer.update(None, state, params, value_fn=told)
    return rest.pick(jax.tree.leaves(core.moved(updates, params))), state
